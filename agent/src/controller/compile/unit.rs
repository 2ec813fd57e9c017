//! What one namespace means, before and after it is known who has which address.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;

use super::{
    WaypointGateway,
    claims::{Claim, Claims, Owner, Thing},
};
use crate::{
    manifests::{Bound, Diagnostic, ObjectRef, Severity},
    mesh::{
        Interned, PeerAuthentication, Policy, PolicyKey, SameNode, Service, ServiceKey, Workload,
        http::RequestAuthentication,
    },
};

/// What one namespace means by itself.
#[derive(Clone, Debug, Default)]
pub(super) struct Unit {
    pub(super) workloads: Vec<Owned<Workload>>,
    pub(super) services: Vec<Owned<Service>>,
    pub(super) policies: Vec<Arc<Policy>>,
    pub(super) authentications: Vec<Arc<RequestAuthentication>>,
    /// What is said of services besides their routes.
    pub(super) bound: BTreeMap<ServiceKey, Bound>,
    /// The subsets that a DestinationRule makes of services.
    pub(super) subsets: BTreeMap<ServiceKey, BTreeSet<Arc<str>>>,
    /// Of the whole namespace; of the mesh, where it is the root namespace.
    pub(super) peer_authentication: Option<PeerAuthentication>,
    /// Of single workloads, by uid.
    pub(super) workload_peer_authentications: BTreeMap<Arc<str>, PeerAuthentication>,
    pub(super) same_node: Option<SameNode>,
    pub(super) waypoints: Vec<WaypointGateway>,
    /// In order.
    pub(super) claims: Vec<Claim>,
    /// The waypoints that it asked for, whether or not they are there.
    pub(super) asked: BTreeSet<(String, String)>,
    /// In order.
    pub(super) diagnostics: Vec<Diagnostic>,
}

/// What an object means.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Owned<T> {
    pub(super) owner: Owner,
    pub(super) value: Arc<T>,
}

/// What a namespace brings into the mesh: without the addresses that others have.
#[derive(Clone, Debug, Default)]
pub(super) struct Emitted {
    pub(super) workloads: BTreeMap<Arc<str>, Arc<Workload>>,
    pub(super) services: BTreeMap<ServiceKey, Arc<Service>>,
    pub(super) policies: BTreeMap<PolicyKey, Arc<Policy>>,
    pub(super) authentications: BTreeMap<PolicyKey, Arc<RequestAuthentication>>,
    /// About addresses that others have. In order.
    pub(super) diagnostics: Vec<Diagnostic>,
}

impl Unit {
    /// What is as it was before stays the same value, for whoever holds it, and what workloads have in common is kept once.
    pub(super) fn share(&mut self, before: &Emitted, interned: &mut Interned) {
        fn share<T: Eq>(new: &mut Arc<T>, old: Option<&Arc<T>>) {
            if let Some(same) = old.filter(|old| *old == new) {
                *new = same.clone();
            }
        }
        for it in &mut self.workloads {
            let old = before.workloads.get(&it.value.uid);
            share(&mut it.value, old);
            if let Some(new) = Arc::get_mut(&mut it.value) {
                new.intern(interned);
            }
        }
        self.workloads.shrink_to_fit();
        self.claims.shrink_to_fit();
        for it in &mut self.services {
            let old = before.services.get(&it.value.key);
            share(&mut it.value, old);
        }
        for it in &mut self.policies {
            let old = before.policies.get(&it.key);
            share(it, old);
        }
        for it in &mut self.authentications {
            let old = before.authentications.get(&it.key);
            share(it, old);
        }
    }

    /// What it brings into the mesh. Of two values with one key the first stays.
    pub(super) fn emit(&self, claims: &Claims, object: impl Fn(&Owner) -> ObjectRef) -> Emitted {
        let lost = self
            .claims
            .iter()
            .filter_map(|claim| Some((claim, claims.taken_by(claim)?)));
        let lost: Vec<_> = lost.collect();
        let keeps_thing = |owner: &Owner, thing: &Thing| {
            let is = |(claim, _): &(&Claim, &Claim)| claim.thing == *thing && claim.owner == *owner;
            !lost.iter().any(is)
        };
        let keeps = |owner: &Owner, address| keeps_thing(owner, &Thing::Address(address));
        let mut emitted = Emitted::default();
        for Owned { owner, value } in &self.workloads {
            let mut workload = value.clone();
            let keeps = |it: &IpAddr| value.host_network || keeps(owner, IpNet::from(*it));
            if !value.addresses.iter().all(keeps) {
                Arc::make_mut(&mut workload).addresses.retain(keeps);
            }
            let entry = emitted.workloads.entry(workload.uid.clone());
            entry.or_insert(workload);
        }
        for Owned { owner, value } in &self.services {
            let mut service = value.clone();
            if !lost.is_empty() {
                if !keeps_thing(owner, &Thing::Name(service.key.hostname.clone())) {
                    continue;
                }
                let service = Arc::make_mut(&mut service);
                service.vips.retain(|it: &IpAddr| keeps(owner, IpNet::from(*it)));
                service.vip_networks.retain(|it| keeps(owner, *it));
            }
            let entry = emitted.services.entry(service.key.clone());
            entry.or_insert(service);
        }
        for policy in &self.policies {
            let entry = emitted.policies.entry(policy.key.clone());
            entry.or_insert_with(|| policy.clone());
        }
        for it in &self.authentications {
            let entry = emitted.authentications.entry(it.key.clone());
            entry.or_insert_with(|| it.clone());
        }
        emitted.diagnostics = lost
            .iter()
            .map(|(claim, by)| taken(&object(&claim.owner), claim, by))
            .collect();
        emitted.diagnostics.sort();
        emitted
    }
}

fn taken(object: &ObjectRef, claim: &Claim, by: &Claim) -> Diagnostic {
    let (reason, thing) = match &claim.thing {
        Thing::Address(net) if net.prefix_len() == net.max_prefix_len() => {
            ("AddressTaken", format!("address {}", net.addr()))
        }
        Thing::Address(net) => ("AddressTaken", format!("network {net}")),
        Thing::Name(name) => ("HostTaken", format!("host {name}")),
    };
    let Owner {
        namespace,
        kind,
        name,
    } = &by.owner;
    let message = format!(
        "{thing} is {} {namespace}/{name}'s, which keeps it: remove it here or there",
        kind.kind()
    );
    Diagnostic::new(object, Severity::Warning, reason, message)
}
