//! Which waypoint an object is bound to: the label of the object itself, or its namespace's.
//!
//! What is bound to a waypoint goes through it or nowhere. A waypoint that is not there, not ready or not for this
//! namespace is no reason to go around it: connections are refused, and a diagnostic says so.

use std::sync::Arc;

use super::{
    WaypointFor,
    namespace::{Pass, label},
    shared::Waypoint,
};
use crate::{
    cluster::{
        labels,
        objects::{Kind, ObjectMeta},
    },
    manifests::{Labels, ObjectRef, Reader, Severity},
    mesh::{GatewayAddress, GatewayDestination, HBONE_PORT, ServiceKey},
};

/// What is dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Consumer {
    /// A service's address or name.
    Service,
    /// A workload's own address.
    Workload,
}

/// What a label says.
struct Asked {
    namespace: String,
    name: String,
    /// By the object itself, not by its namespace.
    itself: bool,
}

/// The waypoint that an object is bound to.
pub(super) fn waypoint_of(
    pass: &mut Pass<'_>,
    kind: Kind,
    metadata: &ObjectMeta,
    consumer: Consumer,
) -> Option<GatewayAddress> {
    let object = || ObjectRef::new(kind, metadata);
    waypoint(pass, metadata.labels.as_ref(), object, consumer)
}

/// The waypoint that an object of these labels is bound to.
pub(super) fn waypoint(
    pass: &mut Pass<'_>,
    labels: Option<&Labels>,
    object: impl FnOnce() -> ObjectRef,
    consumer: Consumer,
) -> Option<GatewayAddress> {
    let asked = asked(pass, labels)?;
    let key = (asked.namespace.clone(), asked.name.clone());
    pass.unit.asked.insert(key.clone());
    let found = pass.cx.shared.waypoint(&key);
    let teller = match (&pass.objects.itself, asked.itself) {
        (Some(namespace), false) => ObjectRef::new(Kind::Namespace, &namespace.metadata),
        _ => object(),
    };
    let own_labels = pass.labels();
    let namespace = pass.namespace.clone();
    let cluster_domain = &pass.cx.settings.cluster_domain;
    let mut reader = Reader::new(teller, &mut pass.unit.diagnostics);
    match found {
        // As far as anybody knows it is for services, unless the workload itself asks for it.
        None if consumer == Consumer::Workload && !asked.itself => None,
        None => {
            let message = format!(
                "label {}: there is no waypoint {}/{}, so that connections are refused: create that Gateway, or \
                 correct the label",
                labels::USE_WAYPOINT,
                asked.namespace,
                asked.name
            );
            reader.tell(Severity::Error, "WaypointMissing", message);
            Some(gateway(
                service_of(&asked.namespace, &asked.name, cluster_domain),
                HBONE_PORT,
            ))
        }
        Some(found) if !covers(found.waypoint_for, consumer) => {
            if asked.itself {
                not_for(consumer, &asked, &mut reader);
            }
            None
        }
        Some(found) if !found.admits(&namespace, own_labels) => {
            let message = format!(
                "label {}: waypoint {}/{} does not admit this namespace, so that connections are refused: add \
                 allowedRoutes.namespaces to its listener",
                labels::USE_WAYPOINT,
                asked.namespace,
                asked.name
            );
            reader.tell(Severity::Error, "WaypointNotAllowed", message);
            Some(gateway(nobody(&found.key), found.hbone_port))
        }
        Some(found) => {
            tell_unready(found, &asked, &mut reader);
            Some(gateway(found.key.clone(), found.hbone_port))
        }
    }
}

fn asked(pass: &Pass<'_>, own: Option<&Labels>) -> Option<Asked> {
    let (labels, itself) = match label(own, labels::USE_WAYPOINT) {
        Some(_) => (own, true),
        None => (pass.labels(), false),
    };
    let name = label(labels, labels::USE_WAYPOINT).filter(|name| *name != "none")?;
    let elsewhere = label(labels, labels::USE_WAYPOINT_NAMESPACE);
    Some(Asked {
        namespace: elsewhere.unwrap_or(pass.namespace).to_owned(),
        name: name.to_owned(),
        itself,
    })
}

fn covers(waypoint_for: WaypointFor, consumer: Consumer) -> bool {
    match waypoint_for {
        WaypointFor::All => true,
        WaypointFor::None => false,
        WaypointFor::Service => consumer == Consumer::Service,
        WaypointFor::Workload => consumer == Consumer::Workload,
    }
}

fn not_for(consumer: Consumer, asked: &Asked, reader: &mut Reader<'_>) {
    let what = match consumer {
        Consumer::Service => "services",
        Consumer::Workload => "workloads",
    };
    let message = format!(
        "label {}: waypoint {}/{} is not for {what}: set its label {} to all",
        labels::USE_WAYPOINT,
        asked.namespace,
        asked.name,
        labels::WAYPOINT_FOR
    );
    reader.tell(Severity::Warning, "WaypointNotFor", message);
}

fn tell_unready(found: &Waypoint, asked: &Asked, reader: &mut Reader<'_>) {
    if !found.ready {
        let message = format!(
            "label {}: waypoint {}/{} is not ready, so that connections are refused until it is",
            labels::USE_WAYPOINT,
            asked.namespace,
            asked.name
        );
        reader.tell(Severity::Warning, "WaypointNotReady", message);
    }
}

/// The service in front of a waypoint's pods, which has the Gateway's name.
pub(super) fn service_of(namespace: &str, name: &str, cluster_domain: &str) -> ServiceKey {
    ServiceKey {
        namespace: namespace.into(),
        hostname: format!("{name}.{namespace}.svc.{cluster_domain}").into(),
    }
}

/// A key that no service has: whatever leads to it is refused.
fn nobody(key: &ServiceKey) -> ServiceKey {
    ServiceKey {
        namespace: Arc::default(),
        hostname: key.hostname.clone(),
    }
}

fn gateway(service: ServiceKey, hbone_port: u16) -> GatewayAddress {
    GatewayAddress {
        destination: GatewayDestination::Service(service),
        hbone_port,
    }
}
