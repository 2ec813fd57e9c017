//! One form for every address: a v4-mapped IPv6 address is an IPv4 address.

use std::{net::IpAddr, sync::Arc};

use ipnet::{IpNet, Ipv4Net};

use crate::mesh::{GatewayAddress, GatewayDestination, Match, Policy, Service, Workload};

/// One that is in that form already stays the value that others have.
pub(super) fn canonical_workload(workload: &mut Arc<Workload>) {
    if !are_canonical(&workload.addresses, workload.waypoint.as_ref()) {
        let workload = Arc::make_mut(workload);
        canonical_addresses(&mut workload.addresses);
        workload.waypoint.iter_mut().for_each(canonical_gateway);
    }
}

/// One that is in that form already stays the value that others have.
pub(super) fn canonical_service(service: &mut Arc<Service>) {
    let is_canonical = |it: &IpNet| canonical_net(*it) == *it;
    if !are_canonical(&service.vips, service.waypoint.as_ref())
        || !service.vip_networks.iter().all(is_canonical)
    {
        let service = Arc::make_mut(service);
        canonical_addresses(&mut service.vips);
        for network in &mut service.vip_networks {
            *network = canonical_net(*network);
        }
        service.waypoint.iter_mut().for_each(canonical_gateway);
    }
}

fn are_canonical(addresses: &[IpAddr], gateway: Option<&GatewayAddress>) -> bool {
    let of_gateway = match gateway.map(|it| &it.destination) {
        Some(GatewayDestination::Address(address)) => Some(address),
        Some(GatewayDestination::Service(_)) | None => None,
    };
    let mut all = addresses.iter().chain(of_gateway);
    all.all(|address| address.to_canonical() == *address)
}

fn canonical_addresses(addresses: &mut [IpAddr]) {
    for address in addresses {
        *address = address.to_canonical();
    }
}

fn canonical_gateway(gateway: &mut GatewayAddress) {
    if let GatewayDestination::Address(address) = &mut gateway.destination {
        *address = address.to_canonical();
    }
}

pub(super) fn canonical_policy(mut policy: Policy) -> Policy {
    for clause in policy.rules.iter_mut().flat_map(|rule| &mut rule.clauses) {
        clause.matches.iter_mut().for_each(canonical_match);
    }
    policy
}

fn canonical_match(match_: &mut Match) {
    let nets = [
        &mut match_.source_ips,
        &mut match_.not_source_ips,
        &mut match_.destination_ips,
        &mut match_.not_destination_ips,
    ];
    for net in nets.into_iter().flatten() {
        *net = canonical_net(*net);
    }
    if let Some(request) = &mut match_.request {
        let request = Arc::make_mut(request);
        for net in request.remote_ips.iter_mut().chain(&mut request.not_remote_ips) {
            *net = canonical_net(*net);
        }
    }
}

/// A network inside `::ffff:0:0/96` is an IPv4 network; any other stays as it is.
pub(super) fn canonical_net(net: IpNet) -> IpNet {
    let IpNet::V6(v6) = net else { return net };
    let Some(prefix_len) = v6.prefix_len().checked_sub(V4_MAPPED_BITS) else {
        return net;
    };
    let mapped = v6.addr().to_ipv4_mapped();
    mapped
        .and_then(|v4| Ipv4Net::new(v4, prefix_len).ok())
        .map_or(net, IpNet::V4)
}

/// How many bits of a v4-mapped IPv6 address come before the IPv4 address.
const V4_MAPPED_BITS: u8 = 96;
