//! PeerAuthentications: whether plaintext is taken, by the mesh, by a namespace, by the workloads that one selects.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    namespace::{Pass, selects_nothing},
    service_entries::since,
};
use crate::{
    cluster::objects::{Custom, Kind},
    manifests::{ObjectRef, Reader, Selector, Severity, there},
    mesh::{MtlsMode, PeerAuthentication, Place, PolicyKey, values},
};

/// Reads the namespace's, the oldest first: of two that cover the same it counts, as in Istio.
pub(super) fn peer_authentications(pass: &mut Pass<'_>) {
    let mut all: Vec<_> = pass.objects.of_kind(Kind::PeerAuthentication).collect();
    all.sort_by_key(|(name, object)| (since(&object.metadata), *name));
    for (_, object) in all {
        let mut reader = pass.reader(Kind::PeerAuthentication, &object.metadata);
        let (said, selector) = read(object, &mut reader);
        match selector {
            Selector::Labels(labels) => {
                let selected = pass.drafts.select(&labels);
                if selected.is_empty() {
                    let object = ObjectRef::new(Kind::PeerAuthentication, &object.metadata);
                    selects_nothing(object, &mut pass.unit);
                }
                for at in selected {
                    let uid = pass.drafts.all[at].workload.uid.clone();
                    let modes = &mut pass.unit.workload_peer_authentications;
                    modes.entry(uid).or_insert_with(|| said.clone());
                }
            }
            Selector::Everything | Selector::Unreadable => whole_namespace(object, said, pass),
        }
    }
}

fn whole_namespace(object: &Custom, said: PeerAuthentication, pass: &mut Pass<'_>) {
    if let Some(older) = &pass.unit.peer_authentication {
        let message = format!(
            "{} covers the same and is older, so that it counts: remove one",
            older.key
        );
        let mut reader = pass.reader(Kind::PeerAuthentication, &object.metadata);
        reader.tell(Severity::Warning, "Ignored", message);
        return;
    }
    pass.unit.peer_authentication = Some(said);
}

fn read(object: &Custom, reader: &mut Reader<'_>) -> (PeerAuthentication, Selector) {
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
