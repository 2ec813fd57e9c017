//! `trafficPolicy` of a DestinationRule: how endpoints are chosen and used.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::{
    manifests::{Reader, Severity, port, rule::within, there, words},
    mesh::{
        Place,
        http::{Balancer, OutlierDetection, RetryBudget, TrafficPolicy},
        values,
    },
};

/// What one says, each field whole or not at all.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Partial {
    balancer: Option<Balancer>,
    pool: Option<Pool>,
    outliers: Option<OutlierDetection>,
    retry_budget: Option<RetryBudget>,
    /// Whether endpoints expect TLS of the mesh's own making, which is not done.
    pub(super) wants_tls: bool,
    /// By the service's port.
    pub(super) ports: BTreeMap<u16, Partial>,
}

/// `connectionPool`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Pool {
    connect_timeout_ms: Option<u64>,
    idle_timeout_ms: Option<u64>,
    max_connections: u32,
    max_pending: u32,
    max_requests: u32,
    max_requests_per_connection: u32,
}

impl Partial {
    /// What this says in place of what `under` says.
    pub(super) fn over(&self, under: &Self) -> Self {
        let mut ports = under.ports.clone();
        ports.extend(self.ports.clone());
        Self {
            balancer: self.balancer.or(under.balancer),
            pool: self.pool.or(under.pool),
            outliers: self.outliers.or(under.outliers),
            retry_budget: self.retry_budget.or(under.retry_budget),
            wants_tls: self.wants_tls || under.wants_tls,
            ports,
        }
    }

    /// With the defaults for what it does not say; without its ports.
    pub(super) fn whole(&self) -> TrafficPolicy {
        let pool = self.pool.unwrap_or_default();
        TrafficPolicy {
            balancer: self.balancer.unwrap_or_default(),
            connect_timeout_ms: pool.connect_timeout_ms,
            idle_timeout_ms: pool.idle_timeout_ms,
            max_requests_per_connection: pool.max_requests_per_connection,
            max_connections: pool.max_connections,
            max_pending: pool.max_pending,
            max_requests: pool.max_requests,
            retry_budget: self.retry_budget.unwrap_or_default(),
            outliers: self.outliers,
        }
    }

    /// Its ports, each whole.
    pub(super) fn whole_ports(&self) -> BTreeMap<u16, TrafficPolicy> {
        let ports = self.ports.iter();
        ports.map(|(port, it)| (*port, it.whole())).collect()
    }
}

/// Reads `trafficPolicy`.
pub(super) fn partial(parent: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> Partial {
    let Some(value) = there(parent, "trafficPolicy") else {
        return Partial::default();
    };
    let place = place.field("trafficPolicy");
    if reader.fields(value, &place).is_none() {
        return Partial::default();
    }
    let mut read = settings(value, &place, reader);
    let entries = reader.list(value, "portLevelSettings", &place);
    let place = place.field("portLevelSettings");
    for (i, entry) in entries.iter().enumerate() {
        let place = place.index(i);
        let number = reader.required(within(entry, "port"), "number", &place.field("port"), port);
        let of_port = settings(entry, &place, reader);
        read.wants_tls |= of_port.wants_tls;
        if let Some(number) = number {
            read.ports.entry(number).or_insert(of_port);
        }
    }
    read
}

fn settings(value: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> Partial {
    for field in ["tunnel", "proxyProtocol"] {
        not_yet(value, field, place, reader);
    }
    let section = |field| there(value, field);
    Partial {
        balancer: section("loadBalancer").map(|it| balancer(it, &place.field("loadBalancer"), reader)),
        pool: section("connectionPool").map(|it| pool(it, &place.field("connectionPool"), reader)),
        outliers: section("outlierDetection")
            .map(|it| outliers(it, &place.field("outlierDetection"), reader)),
        retry_budget: section("retryBudget").map(|it| retry_budget(it, &place.field("retryBudget"), reader)),
        wants_tls: section("tls").is_some_and(|it| wants_tls(it, &place.field("tls"), reader)),
        ports: BTreeMap::new(),
    }
}

/// Tells of a field that changes nothing here.
fn not_yet(value: &Value, field: &str, place: &Place<'_>, reader: &mut Reader<'_>) {
    if there(value, field).is_some() {
        reader.warn(
            &place.field(field),
            "NotSupported",
            "is not done yet, and changes nothing",
        );
    }
}

fn balancer(value: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> Balancer {
    for field in [
        "consistentHash",
        "localityLbSetting",
        "zoneAwareLbSetting",
        "warmup",
        "warmupDurationSecs",
    ] {
        not_yet(value, field, place, reader);
    }
    if there(value, "simple").and_then(Value::as_str) == Some("PASSTHROUGH") {
        reader.warn(
            &place.field("simple"),
            "NotSupported",
            "PASSTHROUGH is not done: endpoints are chosen",
        );
        return Balancer::default();
    }
    let simple = |text: &str| match text {
        "ROUND_ROBIN" => Ok(Balancer::RoundRobin),
        "LEAST_REQUEST" | "LEAST_CONN" | "UNSPECIFIED" => Ok(Balancer::LeastRequest),
        "RANDOM" => Ok(Balancer::Random),
        _ => Err(values::one_of(text, "ROUND_ROBIN, LEAST_REQUEST or RANDOM")),
    };
    reader
        .optional(value, "simple", place, simple)
        .unwrap_or_default()
}

fn pool(value: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> Pool {
    let (tcp, http) = (within(value, "tcp"), within(value, "http"));
    let (of_tcp, of_http) = (place.field("tcp"), place.field("http"));
    for field in ["tcpKeepalive", "maxConnectionDuration"] {
        not_yet(tcp, field, &of_tcp, reader);
    }
    for field in [
        "h2UpgradePolicy",
        "useClientProtocol",
        "maxConcurrentStreams",
        "maxRetries",
    ] {
        not_yet(http, field, &of_http, reader);
    }
    let positive = |ms: &u64| *ms > 0;
    let connect_timeout = reader.optional(tcp, "connectTimeout", &of_tcp, words::duration);
    let idle_http = reader.optional(http, "idleTimeout", &of_http, words::duration);
    let idle_tcp = reader.optional(tcp, "idleTimeout", &of_tcp, words::duration);
    let max_connections = reader.optional(tcp, "maxConnections", &of_tcp, words::count);
    let mut count = |field| {
        let read = reader.optional(http, field, &of_http, words::count);
        read.unwrap_or(0)
    };
    Pool {
        connect_timeout_ms: connect_timeout.filter(positive),
        idle_timeout_ms: idle_http.or(idle_tcp).filter(positive),
        max_connections: max_connections.unwrap_or(0),
        max_pending: count("http1MaxPendingRequests"),
        max_requests: count("http2MaxRequests"),
        max_requests_per_connection: count("maxRequestsPerConnection"),
    }
}

/// With Envoy's defaults.
fn outliers(value: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> OutlierDetection {
    for field in ["consecutiveLocalOriginFailures", "splitExternalLocalOriginErrors"] {
        not_yet(value, field, place, reader);
    }
    let mut count = |field, default| {
        let read = reader.optional(value, field, place, words::count);
        read.unwrap_or(default)
    };
    let consecutive_5xx = count("consecutive5xxErrors", 5);
    let old = count("consecutiveErrors", 0);
    let consecutive_gateway_errors = count("consecutiveGatewayErrors", old);
    let max_ejection_percent = count("maxEjectionPercent", 10).min(100);
    let min_health_percent = count("minHealthPercent", 0).min(100);
    let mut ms = |field, default| {
        let read = reader.optional(value, field, place, words::duration);
        read.filter(|ms| *ms > 0).unwrap_or(default)
    };
    OutlierDetection {
        consecutive_5xx,
        consecutive_gateway_errors,
        interval_ms: ms("interval", 10_000),
        base_ejection_ms: ms("baseEjectionTime", 30_000),
        max_ejection_percent,
        min_health_percent,
    }
}

fn retry_budget(value: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> RetryBudget {
    let default = RetryBudget::default();
    let percent = reader.optional(value, "percent", place, words::percent);
    let at_least = reader.optional(value, "minRetryConcurrency", place, words::count);
    RetryBudget {
        percent: percent.map_or(default.percent, |per_10_000| per_10_000.div_ceil(100)),
        at_least: at_least.unwrap_or(default.at_least),
    }
}

/// Whether endpoints expect TLS besides the mesh's own: what is sent to them without it would be in clear.
fn wants_tls(value: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> bool {
    let place = place.field("mode");
    match there(value, "mode").and_then(Value::as_str) {
        None | Some("ISTIO_MUTUAL") => false,
        Some("DISABLE") => {
            reader.warn(
                &place,
                "TlsIgnored",
                "DISABLE is ignored: what goes to the mesh's pods is always encrypted",
            );
            false
        }
        Some(_) => {
            let message = format!(
                "{place}: TLS of a waypoint's own making is not done yet, and nothing is sent without it, so that \
                 requests are refused: let the app do it, or remove this"
            );
            reader.tell(Severity::Error, "NotSupported", message);
            true
        }
    }
}
