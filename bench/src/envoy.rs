//! A real Envoy beside an app, set up as sidecar injection does: everything that the app dials goes to port 15001, everything
//! that comes to the pod to 15006, and the two Envoys of a pair speak mutual TLS. The other settings are Envoy's own.

use std::{path::Path, process::Command};

use anyhow::Result;
use serde_json::{Value, json};
use weft_tests::{Pod, program};

use crate::stage::HTTP2_PORT;

/// Who may dial past the redirection: the sidecar itself, by Istio's user id for it.
pub(crate) const UID: u32 = 1337;
/// What the app dials ends here.
pub(crate) const OUTBOUND: u16 = 15001;
/// What comes to the pod ends here.
pub(crate) const INBOUND: u16 = 15006;
/// Threads that carry traffic: as many as the machines have cores that the targets were measured on.
pub(crate) const WORKERS: &str = "2";

/// How an Envoy treats connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Envoy {
    /// As bytes.
    Tcp,
    /// As requests.
    Http {
        /// The major version that the two Envoys speak with each other.
        version: u8,
        access_log: bool,
    },
}

impl Envoy {
    pub(crate) fn http(version: u8, access_log: bool) -> Self {
        Self::Http { version, access_log }
    }

    pub(crate) fn is_http(self) -> bool {
        self != Self::Tcp
    }

    /// Its bootstrap file, which is JSON. `peer` is the identity that the other side must prove.
    pub(crate) fn config(self, certs: &Path, dir: &Path, peer: &str) -> Value {
        let tls = expecting(&tls(certs, self.alpn()), peer);
        let chain = |cluster: &str, tls: Option<Value>| json!({ "filters": [self.filter(cluster, dir)], "transport_socket": tls });
        let mut h2 = chain("inbound h2", Some(downstream_tls(&tls)));
        h2["filter_chain_match"] = json!({ "destination_port": HTTP2_PORT });
        let inbound = json!([chain("inbound", Some(downstream_tls(&tls))), h2]);
        let http = |version| self.is_http().then(|| speaks(version));
        json!({
            "static_resources": {
                "listeners": [
                    listener("outbound", OUTBOUND, json!([chain("outbound", None)])),
                    listener("inbound", INBOUND, inbound),
                ],
                "clusters": [
                    cluster("outbound", self.between(), Some(upstream_tls(&tls))),
                    cluster("inbound", http(1), None),
                    cluster("inbound h2", http(2), None),
                ],
            },
            // The work of a run is more than Envoy's defaults let through at once.
            "layered_runtime": { "layers": [{ "name": "limits", "static_layer": {
                "overload": { "global_downstream_max_connections": 50_000 },
            }}]},
        })
    }

    /// What carries a connection from a listener to its cluster.
    fn filter(self, cluster: &str, dir: &Path) -> Value {
        match self {
            Self::Tcp => typed(
                "envoy.filters.network.tcp_proxy",
                "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                json!({ "stat_prefix": cluster, "cluster": cluster }),
            ),
            Self::Http { access_log, .. } => typed(
                "envoy.filters.network.http_connection_manager",
                "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                json!({
                    "stat_prefix": cluster,
                    "codec_type": "AUTO",
                    "access_log": if access_log { vec![log(&dir.join("access.log"))] } else { Vec::new() },
                    "route_config": { "virtual_hosts": [{
                        "name": "all",
                        "domains": ["*"],
                        "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": cluster } }],
                    }]},
                    "http_filters": [typed(
                        "envoy.filters.http.router",
                        "envoy.extensions.filters.http.router.v3.Router",
                        json!({}),
                    )],
                }),
            ),
        }
    }

    /// What the two Envoys speak with each other.
    fn between(self) -> Option<Value> {
        match self {
            Self::Tcp => None,
            Self::Http { version, .. } => Some(speaks(version)),
        }
    }

    /// The protocol that the TLS handshake agrees on.
    fn alpn(self) -> &'static str {
        match self {
            Self::Tcp => "istio",
            Self::Http { version: 1, .. } => "http/1.1",
            Self::Http { .. } => "h2",
        }
    }
}

/// The options of a cluster that speaks this version of HTTP.
fn speaks(version: u8) -> Value {
    let options = if version == 1 {
        "http_protocol_options"
    } else {
        "http2_protocol_options"
    };
    json!({ "explicit_http_config": { options: {} } })
}

/// An extension with its settings, as Envoy names both.
pub(crate) fn typed(name: &str, kind: &str, mut settings: Value) -> Value {
    settings["@type"] = format!("type.googleapis.com/{kind}").into();
    json!({ "name": name, "typed_config": settings })
}

fn log(path: &Path) -> Value {
    typed(
        "envoy.access_loggers.file",
        "envoy.extensions.access_loggers.file.v3.FileAccessLog",
        json!({ "path": path }),
    )
}

/// TLS 1.3 with the certificates of a directory; whoever is at the other end must be of the same authority.
pub(crate) fn tls(certs: &Path, alpn: &str) -> Value {
    let file = |name| json!({ "filename": certs.join(name) });
    json!({
        "tls_params": { "tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3" },
        "alpn_protocols": [alpn],
        "tls_certificates": [{ "certificate_chain": file("cert.pem"), "private_key": file("key.pem") }],
        "validation_context": { "trusted_ca": file("root.pem") },
    })
}

/// The same, and it must be this identity.
pub(crate) fn expecting(tls: &Value, peer: &str) -> Value {
    let mut tls = tls.clone();
    tls["validation_context"]["match_typed_subject_alt_names"] =
        json!([{ "san_type": "URI", "matcher": { "exact": peer } }]);
    tls
}

pub(crate) fn upstream_tls(common: &Value) -> Value {
    typed(
        "envoy.transport_sockets.tls",
        "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        json!({ "common_tls_context": common }),
    )
}

pub(crate) fn downstream_tls(common: &Value) -> Value {
    typed(
        "envoy.transport_sockets.tls",
        "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        json!({ "common_tls_context": common, "require_client_certificate": true }),
    )
}

fn listener(name: &str, port: u16, chains: Value) -> Value {
    json!({
        "name": name,
        "address": { "socket_address": { "address": "0.0.0.0", "port_value": port } },
        "tcp_backlog_size": 4096,
        "listener_filters": [typed(
            "envoy.filters.listener.original_dst",
            "envoy.extensions.filters.listener.original_dst.v3.OriginalDst",
            json!({}),
        )],
        "filter_chains": chains,
    })
}

/// Where a connection was going before it was redirected.
fn cluster(name: &str, http: Option<Value>, tls: Option<Value>) -> Value {
    let mut cluster = unbounded(name, http);
    cluster["type"] = "ORIGINAL_DST".into();
    cluster["lb_policy"] = "CLUSTER_PROVIDED".into();
    if let Some(tls) = tls {
        cluster["transport_socket"] = tls;
    }
    cluster
}

/// One address, and which version of HTTP is spoken to it, where it is HTTP.
pub(crate) fn fixed(name: &str, address: Value, http: Option<u8>) -> Value {
    let mut cluster = unbounded(name, http.map(speaks));
    cluster["type"] = "STATIC".into();
    cluster["load_assignment"] = json!({
        "cluster_name": name,
        "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address } }] }],
    });
    cluster
}

/// With more of everything than a run needs.
fn unbounded(name: &str, http: Option<Value>) -> Value {
    let most = 50_000;
    let mut cluster = json!({
        "name": name,
        "connect_timeout": "10s",
        "circuit_breakers": { "thresholds": [{
            "max_connections": most, "max_pending_requests": most, "max_requests": most, "max_retries": most,
        }]},
    });
    if let Some(http) = http {
        let kind = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
        cluster["typed_extension_protocol_options"][kind] = typed(kind, kind, http)["typed_config"].clone();
    }
    cluster
}

/// Leads the pod's connections to its Envoy, in and out, by the rules of sidecar injection.
pub(crate) fn redirect(pod: &Pod) -> Result<()> {
    let (uid, inbound, outbound) = (UID.to_string(), INBOUND.to_string(), OUTBOUND.to_string());
    let rules: [&[&str]; 4] = [
        &[
            "OUTPUT",
            "-p",
            "tcp",
            "-m",
            "owner",
            "--uid-owner",
            &uid,
            "-j",
            "RETURN",
        ],
        &["OUTPUT", "-p", "tcp", "-o", "lo", "-j", "RETURN"],
        &["OUTPUT", "-p", "tcp", "-j", "REDIRECT", "--to-ports", &outbound],
        &[
            "PREROUTING",
            "-p",
            "tcp",
            "-j",
            "REDIRECT",
            "--to-ports",
            &inbound,
        ],
    ];
    for rule in rules {
        let mut iptables = pod.command("iptables");
        program::run(iptables.args(["-w", "-t", "nat", "-A"]).args(rule), "iptables")?;
    }
    Ok(())
}

/// The command that runs it.
pub(crate) fn command(envoy: &mut Command, config: &Path, log: &Path) {
    envoy.arg("-c").arg(config).args(["--concurrency", WORKERS]);
    envoy.args(["--disable-hot-restart", "--log-level", "error", "--log-path"]);
    envoy.arg(log);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_of_bytes_offers_no_http_and_both_sides_must_prove_who_they_are() {
        let config = |envoy: Envoy| envoy.config(Path::new("/c"), Path::new("/d"), "spiffe://x");
        let tcp = config(Envoy::Tcp).to_string();
        assert!(tcp.contains("TcpProxy") && !tcp.contains("HttpConnectionManager"));
        let http = config(Envoy::http(2, false));
        assert!(http.to_string().contains("http2_protocol_options"));
        assert!(!http.to_string().contains("FileAccessLog"));
        assert!(config(Envoy::http(1, true)).to_string().contains("FileAccessLog"));
        let inbound = &http["static_resources"]["listeners"][1]["filter_chains"][0]["transport_socket"];
        assert_eq!(inbound["typed_config"]["require_client_certificate"], true);
    }
}
