//! One value as people write it, in a mesh file or in a manifest: from the text to what it means, or to a message that
//! says what is wrong with it and how to mend it. Nothing here knows of any other value.

mod requests;

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;

use super::{
    AppProtocol, BalancingMode, HealthPolicy, LoadBalancing, MtlsMode, RoutingScope, SameNode,
    ServiceAccountMatch, ServiceKey, SpiffeId, StringMatch, TrustDomain, is_own_port,
};

pub use requests::{path_pattern, request_condition};

/// The longest name that Kubernetes knows, in bytes.
const LONGEST_NAME: usize = 253;
/// How many characters of a value a message repeats.
const QUOTED_CHARS: usize = 64;
/// The longest DNS label, and the longest value of a Kubernetes label, in bytes.
const LONGEST_LABEL: usize = 63;

/// An address that a pod or a service can have. A v4-mapped IPv6 address is the IPv4 address.
pub fn address(text: &str) -> Result<IpAddr, String> {
    let not_an_address = || {
        let value = quoted(text);
        format!("{value} is not an IP address: write four numbers, or an IPv6 address")
    };
    let address = text
        .parse::<IpAddr>()
        .map_err(|_| not_an_address())?
        .to_canonical();
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
        return Err(format!(
            "{address} is an address that no pod and no service can have"
        ));
    }
    Ok(address)
}

/// A network; a single address is a network of its own.
pub fn network(text: &str) -> Result<IpNet, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(IpNet::from(address));
    }
    let network = text.parse::<IpNet>().map_err(|_| {
        let value = quoted(text);
        format!("{value} is not a network: write an address and a prefix length, for example 10.244.0.0/16")
    })?;
    Ok(network.trunc())
}

/// A virtual address of a service: a single one, or a network of them.
pub fn vip(text: &str) -> Result<IpNet, String> {
    let network = match text.contains('/') {
        true => network(text)?,
        false => IpNet::from(address(text)?),
    };
    if network.prefix_len() == network.max_prefix_len() {
        return address(&network.addr().to_string()).map(IpNet::from);
    }
    Ok(network)
}

/// How much an endpoint takes, against others.
pub fn capacity(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| {
        let value = quoted(text);
        format!("{value} is not a capacity: write a whole number, 0 for an endpoint that takes nothing new")
    })
}

/// A port of a pod.
pub fn port(text: &str) -> Result<u16, String> {
    match text.parse::<u16>() {
        Ok(0) | Err(_) => {
            let value = quoted(text);
            Err(format!("{value} is not a port: write a number from 1 to 65535"))
        }
        Ok(port) => Ok(port),
    }
}

/// A port that apps may listen on or dial.
pub fn app_port(text: &str) -> Result<u16, String> {
    let port = port(text)?;
    if is_own_port(port) {
        return Err(format!(
            "{port} is one of weft's own ports, which no app can have: choose another (a waypoint's service does not \
             need its HBONE port)"
        ));
    }
    Ok(port)
}

/// The name of a pod, a policy or a service account, or a hostname: a DNS name, as Kubernetes wants it.
pub fn name(text: &str) -> Result<Arc<str>, String> {
    dns_name(text, LONGEST_NAME, true)
}

/// The name of a namespace or a service: a single DNS label.
pub fn label(text: &str) -> Result<Arc<str>, String> {
    dns_name(text, LONGEST_LABEL, false)
}

fn dns_name(text: &str, longest: usize, dots: bool) -> Result<Arc<str>, String> {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let legal = |b: u8| alphanumeric(b) || b == b'-' || (dots && b == b'.');
    let ends = [text.bytes().next(), text.bytes().next_back()];
    let well_formed = ends.into_iter().all(|end| end.is_some_and(alphanumeric)) && text.bytes().all(legal);
    if well_formed && text.len() <= longest && !text.contains("..") {
        return Ok(text.into());
    }
    let (value, dot) = (quoted(text), if dots { ", `.`" } else { "" });
    Err(format!(
        "{value} is not a name: use at most {longest} lower-case letters, digits, `-`{dot}, with a letter or a digit \
         at both ends"
    ))
}

/// A word for telemetry: a canonical name, a region, a cluster.
pub fn word(text: &str) -> Result<Arc<str>, String> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'/' | b':');
    if text.is_empty() || text.len() > LONGEST_NAME || !text.bytes().all(legal) {
        let value = quoted(text);
        return Err(format!(
            "{value} cannot be used here: use at most {LONGEST_NAME} letters, digits, `.`, `-`, `_`, `/`, `:`"
        ));
    }
    Ok(text.into())
}

/// The value of a Kubernetes label, which may be empty.
pub fn label_value(text: &str) -> Result<(), String> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    if text.len() > LONGEST_LABEL || !text.bytes().all(legal) {
        let value = quoted(text);
        return Err(format!(
            "{value} is not the value of a label: use at most {LONGEST_LABEL} letters, digits, `.`, `-`, `_`"
        ));
    }
    Ok(())
}

/// A pod, as `namespace/name`.
pub fn pod(text: &str) -> Result<(Arc<str>, Arc<str>), String> {
    let parts = text.split_once('/').ok_or_else(|| {
        let value = quoted(text);
        format!("{value} is not a pod: write <namespace>/<name>")
    })?;
    Ok((label(parts.0)?, name(parts.1)?))
}

/// A service's hostname; `*.` in front of one stands for all hosts below it.
pub fn hostname(text: &str) -> Result<Arc<str>, String> {
    match text.strip_prefix("*.") {
        Some(zone) => name(zone).map(|_| text.into()),
        None => name(text),
    }
}

/// A service, as `namespace/hostname` or `namespace/name`.
pub fn service(text: &str, cluster_domain: &str) -> Result<ServiceKey, String> {
    let (namespace, hostname) = text.split_once('/').ok_or_else(|| {
        let value = quoted(text);
        format!("{value} is not a service: write <namespace>/<hostname>, or <namespace>/<name>")
    })?;
    let namespace = label(namespace)?;
    let hostname = if hostname.contains('.') {
        self::hostname(hostname)?
    } else {
        cluster_hostname(hostname, &namespace, cluster_domain)?
    };
    Ok(ServiceKey { namespace, hostname })
}

/// The hostname that Kubernetes gives to a service.
pub fn cluster_hostname(service: &str, namespace: &str, cluster_domain: &str) -> Result<Arc<str>, String> {
    let service = label(service)?;
    name(&format!("{service}.{namespace}.svc.{cluster_domain}"))
}

/// An identity, with or without `spiffe://`.
pub fn identity(text: &str) -> Result<SpiffeId, String> {
    let principal = text.strip_prefix("spiffe://").unwrap_or(text);
    format!("spiffe://{principal}")
        .parse()
        .map_err(|_| not_a_principal(text))
}

/// A principal as Istio's policies write it: whole, `prefix*`, `*suffix` or `*`; with or without `spiffe://`.
pub fn principal(text: &str) -> Result<StringMatch, String> {
    let pattern = pattern(text.strip_prefix("spiffe://").unwrap_or(text))?;
    // A whole principal that no certificate can carry would silently match nothing: in a DENY policy, a hole.
    if matches!(pattern, StringMatch::Exact(_)) {
        identity(text)?;
    }
    Ok(pattern)
}

fn not_a_principal(text: &str) -> String {
    let value = quoted(text);
    format!(
        "{value} is no workload's identity: write <trust domain>/ns/<namespace>/sa/<service account>, or a pattern \
         that starts or ends with `*`"
    )
}

/// A namespace as Istio's policies write it.
pub fn namespace(text: &str) -> Result<StringMatch, String> {
    let pattern = pattern(text)?;
    if let StringMatch::Exact(name) = &pattern {
        label(name)?;
    }
    Ok(pattern)
}

/// A trust domain, or a pattern of some.
pub fn trust_domain(text: &str) -> Result<StringMatch, String> {
    let pattern = pattern(text)?;
    if let StringMatch::Exact(name) = &pattern {
        name.parse::<TrustDomain>().map_err(|error| error.to_string())?;
    }
    Ok(pattern)
}

/// A service account as Istio's policies write it: `<namespace>/<name>`, or its name alone for one of the policy's own
/// namespace; no patterns.
pub fn service_account(text: &str, own_namespace: &str) -> Result<ServiceAccountMatch, String> {
    let (namespace, account) = text.split_once('/').unwrap_or((own_namespace, text));
    Ok(ServiceAccountMatch {
        namespace: label(namespace)?,
        name: name(account)?,
    })
}

/// Any text at all.
pub fn not_empty(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("is empty: write something, or remove it".into());
    }
    Ok(())
}

/// A text as Istio's policies write it: whole, `start*`, `*end` or `*`.
pub fn pattern(text: &str) -> Result<StringMatch, String> {
    let pattern = match (text.strip_prefix('*'), text.strip_suffix('*')) {
        (Some(""), _) => StringMatch::Presence,
        (Some(suffix), None) => StringMatch::Suffix(suffix.into()),
        (None, Some(prefix)) => StringMatch::Prefix(prefix.into()),
        _ => StringMatch::Exact(text.into()),
    };
    let rest = match &pattern {
        StringMatch::Presence => "",
        StringMatch::Exact(rest) | StringMatch::Prefix(rest) | StringMatch::Suffix(rest) => rest,
    };
    if text.is_empty() || rest.contains('*') {
        let value = quoted(text);
        return Err(format!(
            "{value} is not a pattern: write a whole name, `start*`, `*end` or `*`"
        ));
    }
    Ok(pattern)
}

/// STRICT or PERMISSIVE; UNSET and DISABLE say nothing.
pub fn mtls_mode(text: &str) -> Result<Option<MtlsMode>, String> {
    match text {
        "STRICT" => Ok(Some(MtlsMode::Strict)),
        "PERMISSIVE" => Ok(Some(MtlsMode::Permissive)),
        "UNSET" | "DISABLE" => Ok(None),
        _ => Err(one_of(text, "STRICT, PERMISSIVE or UNSET")),
    }
}

/// How connections inside a node go.
pub fn same_node(text: &str) -> Result<SameNode, String> {
    match text {
        "kernel" => Ok(SameNode::Kernel),
        "tunnel" => Ok(SameNode::Tunnel),
        _ => Err(one_of(text, "kernel or tunnel")),
    }
}

/// The message for a word that is none of those that may stand here.
pub fn one_of(text: &str, words: &str) -> String {
    let value = quoted(text);
    format!("{value} is not known here: write {words}")
}

/// `trafficDistribution` of a Service. Case does not count, as in Istio's annotation.
pub fn traffic_distribution(text: &str) -> Result<LoadBalancing, String> {
    match text.to_ascii_lowercase().as_str() {
        "preferclose" | "prefersamezone" => Ok(LoadBalancing::failover(&LoadBalancing::CLOSE)),
        "prefersamenode" => Ok(LoadBalancing::failover(&LoadBalancing::SAME_NODE)),
        _ => Err(one_of(text, "PreferClose, PreferSameZone or PreferSameNode")),
    }
}

/// `internalTrafficPolicy` of a Service: what `Local` asks for; `Cluster` asks for nothing.
pub fn internal_policy(text: &str) -> Result<Option<LoadBalancing>, String> {
    match text {
        "Local" => Ok(Some(LoadBalancing {
            routing_preference: vec![RoutingScope::Node],
            mode: BalancingMode::Strict,
            health: HealthPolicy::OnlyHealthy,
        })),
        "Cluster" => Ok(None),
        _ => Err(one_of(text, "Local or Cluster")),
    }
}

/// What is spoken on a port, by a word of `appProtocol`; none for one that says nothing of what weft knows.
pub fn app_protocol(word: &str) -> Option<AppProtocol> {
    match word.to_ascii_lowercase().as_str() {
        "http" | "http1" | "http/1.1" | "kubernetes.io/ws" => Some(AppProtocol::Http11),
        "http2" | "h2c" | "kubernetes.io/h2c" => Some(AppProtocol::Http2),
        "grpc" | "grpc-web" => Some(AppProtocol::Grpc),
        "tls" | "https" | "kubernetes.io/wss" => Some(AppProtocol::Tls),
        "tcp" | "mongo" | "mysql" | "redis" => Some(AppProtocol::Tcp),
        _ => None,
    }
}

/// Where people write a canonical name in labels, the first of which counts (as in Istio).
pub const CANONICAL_NAME: [&str; 3] = ["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"];
/// Where they write a canonical revision.
pub const CANONICAL_REVISION: [&str; 3] = [
    "service.istio.io/canonical-revision",
    "app.kubernetes.io/version",
    "version",
];

/// The keys of an AuthorizationPolicy's conditions that an L4 agent sees.
const CONDITION_KEYS: [&str; 7] = [
    "source.ip",
    "source.namespace",
    "source.serviceAccount",
    "source.principal",
    "source.trustDomain",
    "destination.ip",
    "destination.port",
];
/// Those that only a request has, or a TLS handshake of the app.
const REQUEST_KEYS: [&str; 5] = [
    "remote.ip",
    "request.auth.principal",
    "request.auth.audiences",
    "request.auth.presenter",
    "connection.sni",
];
/// How the others of these begin.
const REQUEST_PREFIXES: [&str; 3] = [
    "request.headers[",
    "request.auth.claims[",
    "experimental.envoy.filters.",
];

/// The key of an AuthorizationPolicy's condition.
pub fn condition_key(text: &str) -> Result<Arc<str>, String> {
    let of_a_request =
        REQUEST_KEYS.contains(&text) || REQUEST_PREFIXES.iter().any(|prefix| text.starts_with(prefix));
    if of_a_request || CONDITION_KEYS.contains(&text) {
        return Ok(text.into());
    }
    let known = format!(
        "{} or an attribute of requests, such as request.headers[x]",
        CONDITION_KEYS.join(", ")
    );
    Err(one_of(text, &known))
}

/// A value as messages show it: quoted, escaped and not too long.
pub fn quoted(value: &str) -> String {
    let shown: String = value.chars().take(QUOTED_CHARS).collect();
    let rest = if shown.len() < value.len() { "..." } else { "" };
    format!("{shown:?}{rest}")
}
