//! What the resources of the discovery service mean: `istio.workload.Address` and `istio.security.Authorization` as workloads,
//! services and policies of a mesh, and the other way round; and `weft.mesh.Http`, a type of our own for waypoints.
//!
//! Pure. What weft says beyond Istio's fields travels in extensions, in such a way that an agent that does not know them
//! decides no more openly than one that does. Not here: the protocol that carries them (`client`, `server`).

mod addresses;
mod decode;
mod encode;
mod http;
mod mtls;
mod policies;
#[cfg(test)]
pub(super) mod tests;

use std::sync::Arc;

use thiserror::Error;

pub use decode::{service, workload};
pub use encode::{encode_service, encode_workload};
pub use http::{
    Http, authentication_name, encode_authentication, encode_routes, http, routes_name, routes_of,
};
pub use mtls::{Converted, converted, encode_modes, modes_policy};
pub use policies::{encode_policy, policy};

use crate::mesh::{Interned, PolicyKey, Service, ServiceKey, TrustDomain};

/// How a workload's connections inside its node go: `kernel` or `tunnel`.
const SAME_NODE: &str = "weft.dev/same-node";
/// Names of a match's fields that no L4 agent can judge, one a line.
const UNSEEN: &str = "weft.dev/unseen";
/// Names of a match's fields that could not be read, one a line.
const UNREADABLE: &str = "weft.dev/unreadable";
/// A match's trust domains; a line that begins with `!` is one that must not match.
const TRUST_DOMAINS: &str = "weft.dev/trust-domains";
/// What the fields named in [`UNSEEN`] say, in JSON, for whoever sees requests.
const REQUEST: &str = "weft.dev/request";
/// On a policy: it is AUDIT. Its value is `dry-run` where it is that as well.
const AUDIT: &str = "weft.dev/audit";
/// The subsets that a workload is of, in JSON: pairs of a service and a name.
const SUBSETS: &str = "weft.dev/subsets";
/// The request authentications of a workload, in JSON: a list of names.
const AUTHENTICATIONS: &str = "weft.dev/authentications";
/// A port that no connection has. It keeps a match that would otherwise be empty, or wider than it is, from meaning that to an
/// agent that does not know the extensions.
const NO_PORT: u16 = 0;

/// Why a resource cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Unreadable {
    /// Not the bytes of such a message.
    #[error("it is no message of its type: {0}")]
    Encoding(String),
    /// A field says what cannot be.
    #[error("{field}: {why}")]
    Field {
        /// The field's name in the protocol.
        field: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

fn bad(field: &'static str, why: impl ToString) -> Unreadable {
    let why = why.to_string();
    Unreadable::Field { field, why }
}

/// What whoever reads can judge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sees {
    /// An agent. What resources say of requests is not decoded.
    #[default]
    Connections,
    /// A waypoint.
    Requests,
}

/// What the resources leave out: the mesh's own settings.
#[derive(Clone, Debug)]
pub struct Defaults {
    /// Who reads.
    pub sees: Sees,
    /// Of workloads that do not say it.
    pub trust_domain: TrustDomain,
    /// Of workloads that do not say it.
    pub cluster: Arc<str>,
}

/// An address of the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Addressed {
    /// A workload.
    Workload(Arc<crate::mesh::Workload>),
    /// A service.
    Service(Arc<Service>),
}

/// Reads an `istio.workload.Address`. What workloads have in common is kept once, in `interned`.
///
/// # Errors
/// When it says nothing that could be, with the field.
pub fn address(bytes: &[u8], defaults: &Defaults, interned: &mut Interned) -> Result<Addressed, Unreadable> {
    use crate::rpc::workload::{Address, AddressType};
    let address: Address =
        prost::Message::decode(bytes).map_err(|err| Unreadable::Encoding(err.to_string()))?;
    match address.r#type {
        Some(AddressType::Workload(it)) => {
            let mut workload = workload(*it, defaults)?;
            workload.intern(interned);
            Ok(Addressed::Workload(Arc::new(workload)))
        }
        Some(AddressType::Service(it)) => Ok(Addressed::Service(Arc::new(service(*it)?))),
        None => Err(bad("type", "neither a workload nor a service")),
    }
}

/// `namespace/hostname`, as resources name services.
pub fn service_name(key: &ServiceKey) -> String {
    key.to_string()
}

fn service_key(name: &str) -> Option<ServiceKey> {
    let (namespace, hostname) = name.split_once('/')?;
    (!hostname.is_empty()).then(|| ServiceKey {
        namespace: namespace.into(),
        hostname: hostname.to_ascii_lowercase().into(),
    })
}

/// `namespace/name`, as workloads name policies. A name without a namespace is of the empty one.
fn policy_key(name: &str) -> PolicyKey {
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    PolicyKey {
        namespace: namespace.into(),
        name: name.into(),
    }
}
