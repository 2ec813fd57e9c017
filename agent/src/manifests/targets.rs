//! `targetRefs`, and `targetRef` of before: the services and waypoints that a policy is about.

use serde_json::Value;

use super::{Reader, there};
use crate::mesh::Place;

/// What a policy says of its targets.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Targets {
    /// Those that can be read.
    pub all: Vec<Target>,
    /// Whether it names any, so that it is a waypoint's to enforce.
    pub any: bool,
    /// Whether one cannot be read: nobody knows for what it is, so that it is for all that may be meant.
    pub unreadable: bool,
}

/// What a policy is about.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// Its kind.
    pub kind: TargetKind,
    /// Its name, in the policy's namespace.
    pub name: String,
}

/// The kinds of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the API's")]
pub enum TargetKind {
    Service,
    ServiceEntry,
    Gateway,
    GatewayClass,
}

impl Targets {
    /// Whether this is, or may be, one of them.
    pub fn contains(&self, kind: TargetKind, name: &str) -> bool {
        self.unreadable || self.all.iter().any(|it| it.kind == kind && it.name == name)
    }
}

/// Reads them.
pub fn targets(spec: &Value, reader: &mut Reader<'_>) -> Targets {
    let (root, before) = (Place::ROOT.field("spec"), reader.faults());
    let place = root.field("targetRefs");
    let several = reader.list(spec, "targetRefs", &root).iter().enumerate();
    let mut all: Vec<_> = several
        .filter_map(|(i, value)| target(value, &place.index(i), reader))
        .collect();
    if let Some(one) = there(spec, "targetRef") {
        all.extend(target(one, &root.field("targetRef"), reader));
    }
    let said = |field| there(spec, field).is_some_and(|it| it.as_array().is_none_or(|it| !it.is_empty()));
    Targets {
        any: said("targetRefs") || said("targetRef"),
        unreadable: reader.faults() > before,
        all,
    }
}

fn target(value: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> Option<Target> {
    reader.fields(value, place)?;
    let text = |text: &str| Ok::<_, String>(text.to_owned());
    let name = reader.required(value, "name", place, text)?;
    let kind = reader.required(value, "kind", place, text)?;
    let group = reader.optional(value, "group", place, text).unwrap_or_default();
    let kind = match (group.as_str(), kind.as_str()) {
        ("" | "core", "Service") => TargetKind::Service,
        ("networking.istio.io", "ServiceEntry") => TargetKind::ServiceEntry,
        ("gateway.networking.k8s.io", "Gateway") => TargetKind::Gateway,
        ("gateway.networking.k8s.io", "GatewayClass") => TargetKind::GatewayClass,
        _ => {
            let message =
                "is not known here: write a Service, ServiceEntry, Gateway or GatewayClass with its group";
            reader.invalid(&place.field("kind"), message);
            return None;
        }
    };
    Some(Target { kind, name })
}
