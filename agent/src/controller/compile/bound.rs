//! What a waypoint asks of every request to a service, besides routes: the policies and RequestAuthentications that name the
//! service, its waypoint or that one's class, and those RequestAuthentications that are for its workloads.
//!
//! A waypoint's own service says it for requests that are sent to workloads themselves.

use super::{
    authentications::{all, covering, push_new},
    namespace::Pass,
    unit::Owned,
    waypoint_only::{is_about, targets, waypoint},
};
use crate::{
    cluster::objects::Kind,
    manifests::{Authentication, Bound},
    mesh::{PolicyKey, Service},
};

/// Notes it for every service that has a waypoint, and for waypoints.
pub(super) fn bound(pass: &mut Pass<'_>) {
    let mut read = Vec::new();
    for service in &pass.unit.services {
        let said = match &service.value.waypoint {
            Some(_) => Some(of_service(service, pass)),
            None => of_waypoint(service, pass),
        };
        read.extend(said.map(|said| (service.value.key.clone(), said)));
    }
    for (key, [policies, authentications]) in read {
        let bound = pass.unit.bound.entry(key).or_default();
        (bound.policies, bound.authentications) = (policies, authentications);
        bound.judged = true;
    }
    pass.unit.bound.retain(|_, bound| *bound != Bound::default());
}

/// Policies and RequestAuthentications.
fn of_service(service: &Owned<Service>, pass: &Pass<'_>) -> [Vec<PolicyKey>; 2] {
    let Owned { owner, value } = service;
    let waypoint = value.waypoint.as_ref().and_then(|it| waypoint(pass, it));
    let own = pass.policies.iter().filter(|read| is_about(read, owner, value));
    let mut policies: Vec<_> = own.map(|read| read.policy.key.clone()).collect();
    let named = |it: &&Authentication| targets(&it.targets, owner, value);
    let own = pass.authentications.iter().filter(named);
    let mut authentications: Vec<_> = own.map(|it| it.value.key.clone()).collect();
    if let Some(waypoint) = waypoint {
        waypoint
            .policies
            .iter()
            .for_each(|key| push_new(&mut policies, key));
        let of_waypoint = waypoint.authentications.iter();
        of_waypoint.for_each(|key| push_new(&mut authentications, key));
    }
    // The whole namespace's and the mesh's are there for a service without workloads too.
    let of_all = |it: &&Authentication| !it.targets.any && it.selector.is_none();
    let of_all = all(pass).filter(of_all).map(|it| &it.value.key);
    of_all.for_each(|key| push_new(&mut authentications, key));
    if all(pass).any(|it| it.selector.is_some()) {
        let backs = pass
            .drafts
            .all
            .iter()
            .filter(|it| it.workload.services.contains_key(&value.key));
        let of_workloads = backs.flat_map(|draft| covering(pass, draft));
        of_workloads.for_each(|key| push_new(&mut authentications, key));
    }
    [policies, authentications]
}

/// None for a service that is no waypoint. By its name: the label of Gateways' services is not on every one that was made by hand.
fn of_waypoint(service: &Owned<Service>, pass: &Pass<'_>) -> Option<[Vec<PolicyKey>; 2]> {
    let found = pass.cx.shared.waypoint_of(&service.value.key);
    let found = found.filter(|_| service.owner.kind == Kind::Service);
    found.map(|it| [it.policies.clone(), it.authentications.clone()])
}
