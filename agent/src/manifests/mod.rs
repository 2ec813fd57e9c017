//! PURE. What routes and policies of the Gateway API and of Istio mean, as [`crate::mesh::http`]'s values, and what is wrong with
//! single objects.
//!
//! [`Routings`] reads what one namespace says of routes, [`link`] puts together what is said of one service. What an object says
//! of the objects around it is asked through [`Surroundings`], so that the controller and mesh files have one meaning for each
//! kind. No I/O, no clock, no panic: what cannot be read is a [`Diagnostic`], and what is in doubt is closed. Called by
//! `controller::compile` and by mesh files.

mod diagnostic;
pub mod documents;
mod gateway;
mod grant;
pub mod guards;
mod istio;
mod link;
mod peer_authentication;
pub mod policy;
mod read;
mod routings;
mod rule;
mod rules;
mod targets;
pub(crate) mod tree;
mod words;

use std::{collections::BTreeSet, sync::Arc};

use serde_json::Value;

pub use diagnostic::{Diagnostic, ObjectRef, Severity};
pub use grant::Grant;
pub use istio::{
    Authentication, DestinationRule, OfService, SubsetOf, authentication, destination_rule, merged_traffic,
    names_no_host, needs_token,
};
pub use link::{Bound, link};
pub use peer_authentication::peer_authentication;
pub use read::{Labels, Reader, Selector, port, there};
pub use routings::{Reach, Routings, is_routing, namespace_of};
pub use targets::{Target, TargetKind, Targets, targets};

use crate::{
    cluster::objects::{Kind, ObjectMeta},
    mesh::{ServiceKey, http::HostMatch},
};

/// What the objects around an object are.
pub trait Surroundings {
    /// What services' hostnames end in.
    fn cluster_domain(&self) -> &str;
    /// The services that a Service or a ServiceEntry is; none where there is no such object.
    fn services_of(&self, kind: Kind, namespace: &str, name: &str) -> Vec<Known>;
    /// The service of a hostname, as the objects of a namespace see it: their own namespace's comes first.
    fn service_at(&self, hostname: &str, from: &str) -> Option<Known>;
    /// Whether a ReferenceGrant permits objects of a kind and namespace to refer to an object of another namespace.
    fn permits(&self, from: (Kind, &str), to: (Kind, &str, &str)) -> bool;
    /// What a VirtualService says that names no hosts, for others that delegate to it.
    fn delegate(&self, namespace: &str, name: &str) -> Option<Arc<Value>>;
}

/// A service, as far as those know it who refer to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Which.
    pub key: ServiceKey,
    /// Those that clients dial.
    pub ports: Vec<u16>,
    /// The subsets that a DestinationRule makes of it.
    pub subsets: BTreeSet<Arc<str>>,
    /// Whether nothing may be sent to it: its endpoints expect what is not done.
    pub refused: bool,
}

/// When an object was made, in seconds; 0 where nobody says it.
pub fn since(metadata: &ObjectMeta) -> i64 {
    let made = metadata.creation_timestamp.as_ref();
    made.map_or(0, |time| time.0.as_second())
}

/// Which services a host of an Istio object means in a namespace; none where it cannot be read.
pub fn host_match(host: &str, namespace: &str, cluster_domain: &str) -> Option<HostMatch> {
    words::host(&full_hostname(host, namespace, cluster_domain)).ok()
}

/// The hostname that a host of an Istio object means in a namespace: a name without dots is a service of the namespace.
pub fn full_hostname(host: &str, namespace: &str, cluster_domain: &str) -> String {
    match host.contains('.') || host.contains('*') {
        true => host.to_ascii_lowercase(),
        false => format!("{}.{namespace}.svc.{cluster_domain}", host.to_ascii_lowercase()),
    }
}

#[cfg(test)]
mod tests;
