//! PeerAuthentication: whether plaintext is taken.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{ObjectRef, Reader, Selector, there};
use crate::{
    cluster::objects::{Custom, Kind},
    mesh::{MtlsMode, PeerAuthentication, Place, PolicyKey, values},
};

/// Reads one, and for whom it is.
pub fn peer_authentication(object: &Custom, reader: &mut Reader<'_>) -> (PeerAuthentication, Selector) {
    let reference = ObjectRef::new(Kind::PeerAuthentication, &object.metadata);
    let (spec, place) = (&object.spec, Place::ROOT.field("spec"));
    let mut said = PeerAuthentication {
        key: PolicyKey {
            namespace: reference.namespace.as_str().into(),
            name: reference.name.as_str().into(),
        },
        mode: None,
        ports: BTreeMap::new(),
    };
    if !spec.is_null() && reader.fields(spec, &place).is_none() {
        said.mode = Some(MtlsMode::Strict);
        return (said, Selector::Everything);
    }
    let selector = reader.selector(spec);
    said.mode = there(spec, "mtls").and_then(|it| mode_in(it, &place.field("mtls"), reader));
    said.ports = ports(spec, &place, reader);
    if !matches!(selector, Selector::Labels(_)) && !said.ports.is_empty() {
        let message = "counts only with a selector: but for STRICT it is ignored";
        reader.warn(&place.field("portLevelMtls"), "PortsIgnored", message);
        said.ports.retain(|_, mode| *mode == MtlsMode::Strict);
    }
    if selector == Selector::Unreadable {
        // Nobody knows for whom: what it opens stays closed.
        said.mode = said.mode.filter(|mode| *mode == MtlsMode::Strict);
    }
    (said, selector)
}

/// `mode` of a field that has one.
fn mode_in(value: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> Option<MtlsMode> {
    if reader.fields(value, place).is_none() {
        return Some(MtlsMode::Strict);
    }
    let written = there(value, "mode")?;
    let place = place.field("mode");
    if written.as_str() == Some("DISABLE") {
        let message = "DISABLE is ignored, as if it were UNSET: write PERMISSIVE to take plaintext as well";
        reader.warn(&place, "DisableIgnored", message);
    }
    // What cannot be read is closed.
    reader
        .parse(written, &place, values::mtls_mode)
        .unwrap_or(Some(MtlsMode::Strict))
}

fn ports(spec: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> BTreeMap<u16, MtlsMode> {
    let place = place.field("portLevelMtls");
    let written = there(spec, "portLevelMtls").and_then(|it| reader.fields(it, &place));
    let mut modes = BTreeMap::new();
    for (port, value) in written.into_iter().flatten() {
        let place = place.field(port);
        let number = values::port(port).map_err(|message| reader.invalid(&place, message));
        let mode = mode_in(value, &place, reader);
        if let (Ok(number), Some(mode)) = (number, mode) {
            modes.insert(number, mode);
        }
    }
    modes
}
