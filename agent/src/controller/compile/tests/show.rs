//! A compiled mesh in a form to be read, without what is as usual.

use std::fmt::Write as _;

use super::*;
use crate::mesh::{
    BalancingMode, GatewayAddress, GatewayDestination, HealthPolicy, Match, MtlsMode, PeerAuthentication,
    PortMapping, StringMatch, TunnelProtocol,
};

pub(super) fn show(compiled: &Compiled) -> String {
    let mut out = String::new();
    let parts = &compiled.parts;
    parts.workloads.iter().for_each(|it| workload(it, &mut out));
    parts.services.iter().for_each(|it| service(it, &mut out));
    parts.policies.iter().for_each(|it| policy(it, &mut out));
    show_http::show(compiled, &mut out);
    modes(compiled, &mut out);
    for it in &compiled.waypoints {
        let WaypointGateway {
            gateway,
            class,
            waypoint_for,
            hbone_port,
            wishes,
        } = it;
        let (namespace, name) = (&gateway.namespace, &gateway.name);
        let _ = writeln!(
            out,
            "deploy {class} {namespace}/{name} for {waypoint_for:?} on {hbone_port}"
        );
        wished(wishes, &mut out);
    }
    for diagnostic in &compiled.diagnostics {
        let _ = writeln!(out, "{diagnostic}");
    }
    out
}

fn wished(wishes: &WaypointWishes, out: &mut String) {
    let usual = WaypointWishes {
        listeners: wishes.listeners.clone(),
        ..WaypointWishes::default()
    };
    if *wishes != usual {
        let _ = writeln!(
            out,
            "  as {:?}",
            WaypointWishes {
                listeners: Vec::new(),
                ..wishes.clone()
            }
        );
    }
}

fn joined<T: ToString>(all: impl IntoIterator<Item = T>) -> String {
    let all: Vec<_> = all.into_iter().map(|it| it.to_string()).collect();
    all.join(", ")
}

fn workload(it: &Workload, out: &mut String) {
    let _ = writeln!(out, "workload {}", it.uid);
    let mut line = |text: String| {
        let _ = writeln!(out, "  {text}");
    };
    let tunnel = match (it.tunnel_protocol, it.native_tunnel) {
        (TunnelProtocol::None, _) => "plain",
        (TunnelProtocol::Hbone, false) => "HBONE",
        (TunnelProtocol::Hbone, true) => "native HBONE",
    };
    let healthy = if it.healthy { "" } else { ", not healthy" };
    let host = if it.host_network { ", host network" } else { "" };
    let at = joined(&it.addresses);
    line(format!(
        "{} at [{at}] on node '{}', {tunnel}{healthy}{host}",
        it.identity.principal(),
        it.node
    ));
    line(format!(
        "{:?} {}, canonical {}:{}",
        it.workload_type, it.workload_name, it.canonical_name, it.canonical_revision
    ));
    let place = &it.locality;
    if *place != crate::mesh::Locality::default() || !it.network.is_empty() {
        line(format!(
            "in {}/{}/{} {}",
            place.region, place.zone, place.subzone, it.network
        ));
    }
    if it.capacity != 1 {
        line(format!("capacity {}", it.capacity));
    }
    if let Some(same_node) = it.same_node {
        line(format!("same node: {same_node:?}"));
    }
    if let Some(waypoint) = &it.waypoint {
        line(format!("waypoint {}", gateway(waypoint)));
    }
    for key in &it.policies {
        line(format!("policy {key}"));
    }
    for key in &it.authentications {
        line(format!("authentication {key}"));
    }
    for (key, subset) in &it.subsets {
        line(format!("subset {subset} of {key}"));
    }
    for (key, ports) in &it.services {
        line(format!("backs {key} {}", mapped(ports)));
    }
}

fn mapped(ports: &[PortMapping]) -> String {
    joined(
        ports
            .iter()
            .map(|it| format!("{}->{}", it.service_port, it.target_port)),
    )
}

fn gateway(it: &GatewayAddress) -> String {
    match &it.destination {
        GatewayDestination::Service(key) => format!("{key} on {}", it.hbone_port),
        GatewayDestination::Address(address) => format!("{address} on {}", it.hbone_port),
    }
}

fn service(it: &Service, out: &mut String) {
    let _ = writeln!(out, "service {} ({})", it.key, it.name);
    let mut line = |text: String| {
        let _ = writeln!(out, "  {text}");
    };
    let addresses = it.vips.iter().map(ToString::to_string);
    let networks = it.vip_networks.iter().map(ToString::to_string);
    line(format!(
        "at [{}], ports {}",
        joined(addresses.chain(networks)),
        mapped(&it.ports)
    ));
    if !it.app_protocols.is_empty() {
        let spoken = it
            .app_protocols
            .iter()
            .map(|(port, protocol)| format!("{port} {protocol:?}"));
        line(format!("speaks {}", joined(spoken)));
    }
    let balancing = &it.load_balancing;
    if balancing.mode != BalancingMode::Any {
        let scopes = balancing
            .routing_preference
            .iter()
            .map(|scope| format!("{scope:?}"));
        line(format!("{:?} {}", balancing.mode, joined(scopes)));
    }
    if balancing.health == HealthPolicy::AllowAll {
        line("also what is not healthy".into());
    }
    if it.ip_families != Default::default() {
        line(format!("{:?}", it.ip_families));
    }
    if !it.subject_alt_names.is_empty() {
        line(format!("also {}", joined(&it.subject_alt_names)));
    }
    if let Some(waypoint) = &it.waypoint {
        line(format!("waypoint {}", gateway(waypoint)));
    }
}

fn policy(it: &Policy, out: &mut String) {
    let dry_run = if it.dry_run { ", dry run" } else { "" };
    let _ = writeln!(out, "policy {} {} ({}{dry_run})", it.action, it.key, it.scope);
    for rule in &it.rules {
        let clauses = rule.clauses.iter().map(|clause| {
            let matches: Vec<_> = clause.matches.iter().map(match_).collect();
            format!("({})", matches.join(" or "))
        });
        let clauses: Vec<_> = clauses.collect();
        let text = if clauses.is_empty() {
            "all".to_owned()
        } else {
            clauses.join(" and ")
        };
        let _ = writeln!(out, "  {text}");
    }
}

fn match_(it: &Match) -> String {
    let name = |name: &StringMatch| match name {
        StringMatch::Exact(text) => text.to_string(),
        StringMatch::Prefix(text) => format!("{text}*"),
        StringMatch::Suffix(text) => format!("*{text}"),
        StringMatch::Presence => "*".to_owned(),
    };
    let names = |list: &[StringMatch]| joined(list.iter().map(name));
    let accounts = |list: &[crate::mesh::ServiceAccountMatch]| {
        joined(list.iter().map(|it| format!("{}/{}", it.namespace, it.name)))
    };
    let fields = [
        ("namespaces", names(&it.namespaces)),
        ("not namespaces", names(&it.not_namespaces)),
        ("accounts", accounts(&it.service_accounts)),
        ("not accounts", accounts(&it.not_service_accounts)),
        ("trust domains", names(&it.trust_domains)),
        ("not trust domains", names(&it.not_trust_domains)),
        ("principals", names(&it.principals)),
        ("not principals", names(&it.not_principals)),
        ("from", joined(&it.source_ips)),
        ("not from", joined(&it.not_source_ips)),
        ("to", joined(&it.destination_ips)),
        ("not to", joined(&it.not_destination_ips)),
        ("ports", joined(&it.destination_ports)),
        ("not ports", joined(&it.not_destination_ports)),
        ("unseen", joined(&it.unseen)),
        (
            "request",
            it.request.as_deref().map(show_http::request).unwrap_or_default(),
        ),
        ("unreadable", joined(&it.unreadable)),
    ];
    let said = fields.iter().filter(|(_, value)| !value.is_empty());
    let said: Vec<_> = said.map(|(field, value)| format!("{field} [{value}]")).collect();
    if said.is_empty() {
        "nothing".to_owned()
    } else {
        said.join(" ")
    }
}

fn modes(compiled: &Compiled, out: &mut String) {
    let all = &compiled.parts.peer_authentications;
    let mut lines = Vec::new();
    if all.mesh != PeerAuthentication::default() {
        lines.push(format!("mTLS of the mesh: {}", modes_of(&all.mesh)));
    }
    let namespaces = all.namespaces.iter();
    lines.extend(namespaces.map(|(name, it)| format!("mTLS of namespace {name}: {}", modes_of(it))));
    let workloads = all.workloads.iter();
    lines.extend(workloads.map(|(uid, it)| format!("mTLS of {uid}: {}", modes_of(it))));
    let same_nodes = compiled.parts.same_nodes.namespaces.iter();
    lines.extend(same_nodes.map(|(name, it)| format!("same node in namespace {name}: {it:?}")));
    lines.sort();
    for line in lines {
        let _ = writeln!(out, "{line}");
    }
}

fn modes_of(it: &PeerAuthentication) -> String {
    let mode = |mode: &MtlsMode| format!("{mode:?}").to_uppercase();
    let whole = it.mode.as_ref().map_or("as above".to_owned(), mode);
    let ports = it.ports.iter().map(|(port, it)| format!(", {port} {}", mode(it)));
    format!("{whole}{} ({})", ports.collect::<String>(), it.key)
}
