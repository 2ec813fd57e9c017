//! DestinationRules: what they say of the namespace's services, and which workloads are of which subset.

use std::collections::BTreeSet;

use super::namespace::Pass;
use crate::{
    cluster::objects::Kind,
    manifests::{
        DestinationRule, OfService, Reader, Severity, SubsetOf, destination_rule, merged_traffic,
        namespace_of,
    },
    mesh::{ServiceKey, TunnelProtocol, http::HostMatch},
};

/// Reads the namespace's, and the root namespace's for services of which it says nothing itself.
pub(super) fn destination_rules(pass: &mut Pass<'_>) {
    let mut own: Vec<DestinationRule> = Vec::new();
    for (_, object) in pass.objects.of_kind(Kind::DestinationRule) {
        let domain = &pass.cx.settings.cluster_domain;
        let mut reader = pass.reader(Kind::DestinationRule, &object.metadata);
        own.extend(destination_rule(object, domain, &mut reader));
    }
    tell_unused(&own, pass);
    let root = &pass.cx.shared.root().destination_rules;
    let keys: Vec<_> = pass.unit.services.iter().map(|it| it.value.key.clone()).collect();
    for key in keys {
        let said = merged_traffic(&key.hostname, &own).or_else(|| merged_traffic(&key.hostname, root));
        if let Some(said) = said {
            of_service(key, said, pass);
        }
    }
}

fn of_service(key: ServiceKey, said: OfService, pass: &mut Pass<'_>) {
    for subset in &said.subsets {
        let members = members(&key, subset, pass);
        if members.is_empty() && *subset.object.namespace == **pass.namespace {
            let message = format!(
                "spec.subsets: {:.64} selects no workload of {}, so that its share is answered with 503: compare its \
                 labels with the pods'",
                subset.name, key.hostname
            );
            let mut reader = Reader::new(subset.object.clone(), &mut pass.unit.diagnostics);
            reader.tell(Severity::Warning, "SubsetSelectsNothing", message);
        }
        for at in members {
            let subsets = &mut pass.drafts.all[at].workload.subsets;
            subsets.push((key.clone(), subset.name.clone()));
        }
    }
    let names: BTreeSet<_> = said.subsets.into_iter().map(|it| it.name).collect();
    if !names.is_empty() {
        pass.unit.subsets.insert(key.clone(), names);
    }
    let bound = pass.unit.bound.entry(key).or_default();
    bound.traffic = said.traffic;
    bound.refused = said.refused;
}

/// Those of a service's workloads that have the labels.
fn members(key: &ServiceKey, subset: &SubsetOf, pass: &Pass<'_>) -> Vec<usize> {
    let labelled = match subset.labels.is_empty() {
        true => (0..pass.drafts.all.len()).collect(),
        false => pass.drafts.select(&subset.labels),
    };
    let backs = |at: &usize| pass.drafts.all[*at].workload.services.contains_key(key);
    labelled.into_iter().filter(backs).collect()
}

fn is_meshed(key: &ServiceKey, pass: &Pass<'_>) -> bool {
    let mut drafts = pass.drafts.all.iter().map(|it| &it.workload);
    drafts.any(|it| it.tunnel_protocol == TunnelProtocol::Hbone && it.services.contains_key(key))
}

/// Says which count for nobody: they are about no service of theirs, or about one without a waypoint.
fn tell_unused(own: &[DestinationRule], pass: &mut Pass<'_>) {
    if pass.is_root() {
        return;
    }
    let domain = &pass.cx.settings.cluster_domain;
    let mut told = Vec::new();
    for rule in own {
        let HostMatch::Exact(host) = &rule.host else {
            continue;
        };
        let mut services = pass.unit.services.iter().map(|it| &it.value);
        let service = services.find(|it| it.key.hostname == *host);
        let (reason, message) = match (service, namespace_of(host, domain)) {
            // What is not in the mesh is another mesh's, or an ingress gateway's.
            (Some(service), _) if service.waypoint.is_some() || !is_meshed(&service.key, pass) => continue,
            (Some(service), _) => (
                "NoWaypoint",
                format!(
                    "spec.host: {} has no waypoint, so that nobody in the mesh does what is said of it here: label it \
                     istio.io/use-waypoint",
                    service.key
                ),
            ),
            (None, Some(namespace)) if *namespace != **pass.namespace => (
                "Elsewhere",
                format!(
                    "spec.host: only rules of the service's own namespace and of the root namespace count: move it to \
                     {namespace:.64}"
                ),
            ),
            _ => (
                "UnknownHost",
                format!("spec.host: there is no service {host} in this namespace: correct the name"),
            ),
        };
        told.push((rule.object.clone(), reason, message));
    }
    for (object, reason, message) in told {
        Reader::new(object, &mut pass.unit.diagnostics).tell(Severity::Warning, reason, message);
    }
}
