//! Who has which address in the whole cluster, and which short name. An address leads to one pod or one service, and what a
//! user writes into an object must not take what Kubernetes gave to somebody else: the stronger claim keeps it, then the
//! older object.

use std::{collections::BTreeSet, sync::Arc};

use ipnet::IpNet;
use rustc_hash::FxHashMap;

use crate::cluster::objects::Kind;

/// What can be claimed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Thing {
    /// An address, or a network.
    Address(IpNet),
    /// `cart.shop`: a host of the Internet, or the short name of a service.
    Name(Arc<str>),
}

/// What a claim rests on, the strongest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    /// Kubernetes gave it to a service.
    ClusterIp,
    /// A pod has it.
    Pod,
    /// A pod that is about to go has it: perhaps no longer.
    LeavingPod,
    /// A load balancer gave it to a service.
    LoadBalancer,
    /// Somebody wrote it into a ServiceEntry's addresses.
    ServiceEntry,
    /// Somebody wrote it down as an endpoint's.
    Endpoint,
}

impl Rank {
    /// Whether both may have the address. Endpoints are reached by name, so that several objects may name one machine; but
    /// never a pod's or a service's address, which would be dialled without its identity.
    fn beside(self, stronger: Self) -> bool {
        match self {
            Self::Pod | Self::LeavingPod => stronger == Self::ClusterIp,
            Self::Endpoint => {
                matches!(stronger, Self::LoadBalancer | Self::ServiceEntry | Self::Endpoint)
            }
            Self::ClusterIp | Self::LoadBalancer | Self::ServiceEntry => false,
        }
    }
}

/// An object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Owner {
    pub(super) namespace: Arc<str>,
    pub(super) kind: Kind,
    pub(super) name: Arc<str>,
}

/// That an object has an address or a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Claim {
    pub(super) thing: Thing,
    pub(super) rank: Rank,
    /// When the object was made, in seconds; 0 where that does not count.
    pub(super) since: i64,
    pub(super) owner: Owner,
}

impl Claim {
    fn is_beside(&self, stronger: &Self) -> bool {
        match self.thing {
            Thing::Address(_) => self.rank.beside(stronger.rank),
            // Several namespaces may have an entry for one host: each sees its own.
            Thing::Name(_) => stronger.rank != Rank::ClusterIp,
        }
    }
}

/// All claims, by what they claim.
#[derive(Debug, Default)]
pub(super) struct Claims(FxHashMap<Thing, Vec<Claim>>);

impl Claims {
    /// Replaces a namespace's claims, each list in order. The namespaces of those whose address may have changed hands.
    pub(super) fn replace(&mut self, old: &[Claim], new: &[Claim]) -> BTreeSet<Arc<str>> {
        let mut touched = BTreeSet::new();
        for gone in old.iter().filter(|claim| new.binary_search(claim).is_err()) {
            let claims = self.0.entry(gone.thing.clone()).or_default();
            claims.retain(|claim| claim != gone);
            touched.extend(claims.iter().map(|claim| claim.owner.namespace.clone()));
            if claims.is_empty() {
                self.0.remove(&gone.thing);
            }
        }
        for claim in new.iter().filter(|claim| old.binary_search(claim).is_err()) {
            let claims = self.0.entry(claim.thing.clone()).or_default();
            touched.extend(claims.iter().map(|claim| claim.owner.namespace.clone()));
            // Nearly always it is the only one, and Vec would make room for four.
            claims.reserve_exact(1);
            claims.push(claim.clone());
        }
        touched
    }

    /// Whose claim keeps this one from having it.
    pub(super) fn taken_by(&self, claim: &Claim) -> Option<&Claim> {
        let others = self.0.get(&claim.thing)?.iter();
        others
            .filter(|other| other.owner != claim.owner && *other < claim && !claim.is_beside(other))
            .min()
    }
}
