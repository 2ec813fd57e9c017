//! The CA: who may have which certificate.
//!
//! Whoever shows a token of its service account may have a certificate of that service account. Only the agent's service
//! account may ask for others, and only for those of which a pod runs on the node that its token is bound to: an agent that is
//! broken into cannot become what its node does not run.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use thiserror::Error;
use tonic::Status;

use super::{
    allowance::{Allowances, Rate},
    placement::Placement,
    tokens::Caller,
};
use crate::{
    mesh::{SpiffeId, SpiffeIdError, TrustDomain},
    net::{chain, tls::to_pem},
    rpc::ca::{CertificateRequest, CertificateResponse, IMPERSONATED},
    svid::{LocalCa, LocalCaError, Signed},
};

/// Certificates that one caller may have.
const RATE: Rate = Rate {
    burst: 1000.0,
    per_second: 20.0,
    most: 20_000,
};
/// The longest request, in bytes of PEM.
const LONGEST_CSR: usize = 64 * 1024;
/// A certificate of less would be renewed all the time.
const SHORTEST: Duration = Duration::from_secs(60);

/// Whose service account may ask for others: namespace and name.
pub type AgentAccount = (Arc<str>, Arc<str>);

/// Signs for those who may.
pub(super) struct Authority {
    /// Replaced when the root is.
    ca: ArcSwap<LocalCa>,
    trust_domain: TrustDomain,
    cluster: Arc<str>,
    agents: Vec<AgentAccount>,
    placement: Placement,
    allowances: Allowances<Caller>,
}

/// Why there is no certificate.
#[derive(Debug, Error)]
pub(super) enum Denied {
    /// Too much of a request.
    #[error("the request is larger than {LONGEST_CSR} bytes")]
    TooLarge,
    /// Too many.
    #[error("too many certificates: at most {} a second in the long run; try again later", RATE.per_second)]
    TooMany,
    /// Not a name.
    #[error("{name} is no identity")]
    Name {
        /// What was asked for.
        name: String,
        /// Why.
        #[source]
        source: SpiffeIdError,
    },
    /// Not an agent.
    #[error("{caller} asks for {asked}: only weft's agents may ask for others than themselves")]
    NotAnAgent {
        /// Who asks.
        caller: Caller,
        /// For whom.
        asked: SpiffeId,
    },
    /// An agent whose node is unknown.
    #[error("{0}'s token names no node: agents need a token that is bound to their pod (a projected volume)")]
    NoNode(Caller),
    /// An agent that asks for what its node does not run.
    #[error("no pod with the identity {asked} runs on node {node}")]
    NotOnNode {
        /// The node.
        node: String,
        /// For whom it asks.
        asked: SpiffeId,
    },
    /// The request itself is not a good one, or the CA failed.
    #[error("the certificate could not be signed")]
    Sign(#[source] LocalCaError),
}

impl Denied {
    /// What the client is told.
    pub(super) fn status(&self) -> Status {
        match self {
            Self::TooLarge | Self::Name { .. } => Status::invalid_argument(self.to_string()),
            Self::TooMany => Status::resource_exhausted(self.to_string()),
            Self::NotAnAgent { .. } | Self::NoNode(_) | Self::NotOnNode { .. } => {
                Status::permission_denied(self.to_string())
            }
            Self::Sign(LocalCaError::Csr(_) | LocalCaError::AnotherName { .. }) => {
                Status::invalid_argument(chain(self))
            }
            Self::Sign(_) => Status::internal(chain(self)),
        }
    }

    /// For metrics.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::TooLarge => "too_large",
            Self::TooMany => "rate_limited",
            Self::Name { .. } => "name",
            Self::NotAnAgent { .. } => "not_an_agent",
            Self::NoNode(_) => "no_node",
            Self::NotOnNode { .. } => "not_on_node",
            Self::Sign(_) => "request",
        }
    }
}

impl Authority {
    /// Signs with this CA.
    pub(super) fn new(
        ca: LocalCa,
        trust_domain: TrustDomain,
        cluster: Arc<str>,
        agents: Vec<AgentAccount>,
        placement: Placement,
    ) -> Self {
        Self {
            ca: ArcSwap::from_pointee(ca),
            trust_domain,
            cluster,
            agents,
            placement,
            allowances: Allowances::new(RATE),
        }
    }

    /// Signs with this one from now on.
    pub(super) fn replace(&self, ca: LocalCa) {
        self.ca.store(Arc::new(ca));
    }

    /// The CA in force.
    pub(super) fn ca(&self) -> Arc<LocalCa> {
        self.ca.load_full()
    }

    /// Whether a caller is one of weft's agents.
    pub(super) fn is_agent(&self, caller: &Caller) -> bool {
        let is = |(namespace, name): &AgentAccount| {
            **namespace == *caller.namespace && **name == *caller.service_account
        };
        self.agents.iter().any(is)
    }

    /// The certificate that is asked for.
    ///
    /// # Errors
    /// When the caller may not have it, with the reason.
    pub(super) fn create(
        &self,
        caller: &Caller,
        request: &CertificateRequest,
    ) -> Result<CertificateResponse, Denied> {
        if request.csr.len() > LONGEST_CSR {
            return Err(Denied::TooLarge);
        }
        if !self.allowances.spend(caller, Instant::now()) {
            return Err(Denied::TooMany);
        }
        let id = self.identity(caller, request)?;
        let asked = u64::try_from(request.validity_duration).unwrap_or_default();
        let lifetime = match asked {
            0 => Duration::MAX,
            seconds => SHORTEST.max(Duration::from_secs(seconds)),
        };
        let signed = self
            .ca()
            .certify_only(&request.csr, &id, lifetime)
            .map_err(Denied::Sign)?;
        tracing::debug!(%caller, %id, "signed");
        Ok(answer(&signed))
    }

    /// For whom a certificate is to be: the caller itself, or whom an agent names.
    fn identity(&self, caller: &Caller, request: &CertificateRequest) -> Result<SpiffeId, Denied> {
        let named = |name: String, source| Denied::Name { name, source };
        let own = SpiffeId::new(&self.trust_domain, &caller.namespace, &caller.service_account)
            .map_err(|source| named(caller.to_string(), source))?;
        let asked = match impersonated(request) {
            Some(name) => name.parse().map_err(|source| named(name.to_owned(), source))?,
            None => return Ok(own),
        };
        if asked == own {
            return Ok(own);
        }
        if !self.is_agent(caller) {
            let caller = caller.clone();
            return Err(Denied::NotAnAgent { caller, asked });
        }
        let node = self.node(caller).ok_or_else(|| Denied::NoNode(caller.clone()))?;
        if !self.placement.runs(&node, &asked) {
            return Err(Denied::NotOnNode { node, asked });
        }
        Ok(asked)
    }

    /// Where the caller's pod runs: as its token says, or else as its pod says, which the token is bound to.
    fn node(&self, caller: &Caller) -> Option<String> {
        if let Some(node) = &caller.node {
            return Some(node.clone());
        }
        let pod = caller.pod.as_ref()?;
        let uid = format!("{}//Pod/{}/{pod}", self.cluster, caller.namespace);
        self.placement.node(&uid).map(|node| node.to_string())
    }
}

/// The name under [`IMPERSONATED`]; none where it is missing or empty.
fn impersonated(request: &CertificateRequest) -> Option<&str> {
    let value = request.metadata.as_ref()?.fields.get(IMPERSONATED)?;
    match &value.kind {
        Some(prost_types::value::Kind::StringValue(name)) if !name.is_empty() => Some(name),
        _ => None,
    }
}

/// The certificate first, the root last. More roots than one are one text, as everybody reads it.
fn answer(signed: &Signed) -> CertificateResponse {
    let mut cert_chain: Vec<String> = signed.chain.iter().map(to_pem).collect();
    cert_chain.push(signed.trust.to_pem());
    CertificateResponse { cert_chain }
}

#[cfg(test)]
mod tests;
