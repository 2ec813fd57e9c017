//! Which endpoint of a service a connection is given, as a mesh file says it: `loadBalancing`, or the fields that a
//! Kubernetes Service has for it; and of which families its name has addresses.

use serde_saphyr::Spanned;

use super::{
    problem::{Place, Problems},
    schema::{LoadBalancingEntry, ServiceEntry},
    values,
};
use crate::mesh::{BalancingMode, HealthPolicy, IpFamilies, LoadBalancing, RoutingScope};

/// Reads all that a service says of it.
pub(super) fn load_balancing(
    entry: &ServiceEntry,
    place: &Place<'_>,
    problems: &mut Problems,
) -> LoadBalancing {
    let distribution = problems.optional(
        &entry.traffic_distribution,
        place,
        "trafficDistribution",
        values::traffic_distribution,
    );
    let local = problems.optional(
        &entry.internal_traffic_policy,
        place,
        "internalTrafficPolicy",
        values::internal_policy,
    );
    let of_service = match local {
        // It outdoes the distribution, as in Kubernetes.
        Some(Some(strict)) => strict,
        _ => distribution.unwrap_or_default(),
    };
    let health = match entry.publish_not_ready_addresses {
        Some(true) => HealthPolicy::AllowAll,
        _ => HealthPolicy::OnlyHealthy,
    };
    let Some(written) = &entry.load_balancing else {
        return LoadBalancing { health, ..of_service };
    };
    if entry.traffic_distribution.is_some()
        || entry.internal_traffic_policy.is_some()
        || entry.publish_not_ready_addresses.is_some()
    {
        let message = "write either loadBalancing, or trafficDistribution, internalTrafficPolicy and \
                       publishNotReadyAddresses as a Kubernetes Service has them";
        problems.add(written.referenced, &place.field("loadBalancing"), message);
    }
    written_out(written, &place.field("loadBalancing"), problems)
}

fn written_out(
    entry: &Spanned<LoadBalancingEntry>,
    place: &Place<'_>,
    problems: &mut Problems,
) -> LoadBalancing {
    let (at, entry) = (entry.referenced, &entry.value);
    let mode = problems
        .optional(&entry.mode, place, "mode", mode)
        .unwrap_or_default();
    let has_scopes = entry
        .routing_preference
        .as_ref()
        .is_some_and(|scopes| !scopes.is_empty());
    let scoped = matches!(mode, BalancingMode::Failover | BalancingMode::Strict);
    // One that was meant and does not count would send traffic where it was not meant to go.
    if entry.mode.is_none() && has_scopes {
        problems.add(
            at,
            place,
            "has a routingPreference and no mode: add mode: FAILOVER or mode: STRICT",
        );
    } else if scoped && !has_scopes {
        problems.add(
            at,
            place,
            "has a mode and no routingPreference: add one, for example [REGION, ZONE]",
        );
    } else if !scoped && has_scopes {
        problems.add(
            at,
            place,
            "has a routingPreference, which this mode does not ask: remove one of them",
        );
    }
    LoadBalancing {
        routing_preference: problems.read_all(
            &entry.routing_preference,
            &place.field("routingPreference"),
            scope,
        ),
        mode,
        health: problems
            .optional(&entry.health_policy, place, "healthPolicy", health_policy)
            .unwrap_or_default(),
    }
}

fn scope(text: &str) -> Result<RoutingScope, String> {
    match text {
        "NETWORK" => Ok(RoutingScope::Network),
        "REGION" => Ok(RoutingScope::Region),
        "ZONE" => Ok(RoutingScope::Zone),
        "SUBZONE" => Ok(RoutingScope::Subzone),
        "NODE" => Ok(RoutingScope::Node),
        "CLUSTER" => Ok(RoutingScope::Cluster),
        _ => Err(values::one_of(
            text,
            "NETWORK, REGION, ZONE, SUBZONE, NODE or CLUSTER",
        )),
    }
}

fn mode(text: &str) -> Result<BalancingMode, String> {
    match text {
        "UNSPECIFIED" => Ok(BalancingMode::Any),
        "FAILOVER" => Ok(BalancingMode::Failover),
        "STRICT" => Ok(BalancingMode::Strict),
        "PASSTHROUGH" => Ok(BalancingMode::Passthrough),
        _ => Err(values::one_of(
            text,
            "FAILOVER, STRICT, PASSTHROUGH or UNSPECIFIED",
        )),
    }
}

fn health_policy(text: &str) -> Result<HealthPolicy, String> {
    match text {
        "ONLY_HEALTHY" => Ok(HealthPolicy::OnlyHealthy),
        "ALLOW_ALL" => Ok(HealthPolicy::AllowAll),
        _ => Err(values::one_of(text, "ONLY_HEALTHY or ALLOW_ALL")),
    }
}

/// Of which families the service's name has addresses.
pub(super) fn ip_families(text: &str) -> Result<IpFamilies, String> {
    match text {
        "AUTOMATIC" => Ok(IpFamilies::Automatic),
        "IPV4_ONLY" => Ok(IpFamilies::Ipv4Only),
        "IPV6_ONLY" => Ok(IpFamilies::Ipv6Only),
        "DUAL" => Ok(IpFamilies::Dual),
        _ => Err(values::one_of(text, "AUTOMATIC, IPV4_ONLY, IPV6_ONLY or DUAL")),
    }
}
