//! A waypoint between the two agents of a pair: weft's own, or a real Envoy that is given the same place, the same mutual TLS
//! and the same route. The agents, the pods and the service are the same in both.
//!
//! ```text
//!   client ── agent ══ waypoint ══ agent ── nginx
//! ```

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use weft_tests::{Agent, AgentOptions, LIMIT, Pod, PodSpec, World, process::Process, wait_until};

use crate::{
    envoy::{self, WORKERS},
    pki,
    stage::{HTTP_PORT, HTTP2_PORT},
};

/// HBONE.
const PORT: u16 = 15008;

/// Whose waypoint it is.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    /// weft's, with this many routes, of which the last is taken.
    Weft { routes: usize },
    /// Envoy, with one.
    Envoy { binary: PathBuf },
}

/// One that runs, or is about to.
pub(crate) struct Waypoint {
    kind: Kind,
    pod: Pod,
    /// The service's address, which clients dial.
    pub(crate) vip: String,
    ours: Option<Agent>,
    theirs: Option<Process>,
}

impl Waypoint {
    /// Its pod, and the service that goes through it. `slug` names both, `nth` tells their addresses apart.
    pub(crate) fn prepare(world: &mut World, kind: Kind, slug: &str, nth: usize) -> Result<Self> {
        let account = format!("{slug}-waypoint");
        let spec = PodSpec::new(&account).service_account(&account);
        let pod = world.pod("b", spec.label("gateway", slug).native())?;
        let vip = format!("10.96.2.{}", 2 * nth + 1);
        let gateway = format!("10.96.2.{}", 2 * nth + 2);
        let services = &mut world.mesh_mut().services;
        services.push(json!({
            "name": account, "namespace": "demo", "vips": [gateway],
            "ports": [{ "port": PORT, "targetPort": PORT }], "selector": { "gateway": slug },
        }));
        services.push(json!({
            "name": slug, "namespace": "demo", "vips": [vip],
            "ports": [
                { "port": HTTP_PORT, "targetPort": HTTP_PORT, "appProtocol": "http" },
                { "port": HTTP2_PORT, "targetPort": HTTP2_PORT, "appProtocol": "http2" },
            ],
            "selector": { "app": slug },
            "waypoint": { "service": format!("demo/{account}.demo.svc.cluster.local") },
        }));
        if let Kind::Weft { routes } = kind {
            let file = world.dir().join(format!("{slug}.yaml"));
            fs::write(&file, manifest(slug, routes)).context("write the routes")?;
            world.mesh_mut().manifests.push(file);
        }
        Ok(Self {
            kind,
            pod,
            vip,
            ours: None,
            theirs: None,
        })
    }

    /// Starts it in front of the server's pod, once the agents run.
    pub(crate) fn start(&mut self, world: &mut World, server: &Pod) -> Result<()> {
        match self.kind.clone() {
            Kind::Weft { .. } => {
                let options = AgentOptions::default().arg(&format!("--workers={WORKERS}"));
                self.ours = Some(world.start_waypoint(&self.pod, options)?);
            }
            Kind::Envoy { binary } => self.theirs = Some(self.start_envoy(world, &binary, server)?),
        }
        Ok(())
    }

    fn start_envoy(&self, world: &World, binary: &Path, server: &Pod) -> Result<Process> {
        let dir = world.dir().join(self.pod.name());
        let certs = pki::issue(world, &self.pod, dir.join("certs"))?;
        let config = dir.join("envoy.json");
        let text = config_of_envoy(&certs, server, &self.vip).to_string();
        fs::write(&config, text).context("write Envoy's configuration")?;
        let log = dir.join("envoy.log");
        let mut command = self.pod.command(binary);
        envoy::command(&mut command, &config, &log);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(dir.join("stderr.log")).context("create Envoy's stderr.log")?);
        let process = Process::spawn(&mut command, "envoy")?;
        wait_until("Envoy to listen", LIMIT, || self.pod.netns().listens_on(PORT)).with_context(|| {
            let read = |name| fs::read_to_string(dir.join(name)).unwrap_or_default();
            format!("it said: {}{}", read("envoy.log"), read("stderr.log"))
        })?;
        Ok(process)
    }

    /// Its process.
    pub(crate) fn pid(&self) -> Option<u32> {
        let theirs = self.theirs.as_ref().map(Process::id);
        self.ours.as_ref().and_then(Agent::pid).or(theirs)
    }
}

/// Exact paths that nobody asks for, and one route for all the rest.
fn manifest(slug: &str, routes: usize) -> String {
    let to = json!([{ "destination": { "host": slug } }]);
    let unused =
        (1..routes).map(|n| json!({ "match": [{ "uri": { "exact": format!("/route/{n}") } }], "route": to }));
    let all = json!({ "match": [{ "uri": { "prefix": "/" } }], "route": to });
    let object = json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": { "name": slug, "namespace": "demo" },
        "spec": { "hosts": [slug], "http": unused.chain([all]).collect::<Vec<_>>() },
    });
    object.to_string()
}

/// Envoy in a waypoint's place: HBONE ends here, one route, HBONE to the server's pod; each leg through a listener of its own
/// inside the process, as Istio sets its waypoints up.
fn config_of_envoy(certs: &Path, server: &Pod, vip: &str) -> Value {
    let tls = envoy::tls(certs, "h2");
    let ports = [(HTTP_PORT, 1), (HTTP2_PORT, 2)];
    let connects = ports.map(|(port, _)| {
        json!({
            "name": format!("connect {port}"),
            "domains": [format!("{vip}:{port}")],
            "routes": [{
                "match": { "connect_matcher": {} },
                "route": {
                    "cluster": format!("inside {port}"),
                    "upgrade_configs": [{ "upgrade_type": "CONNECT", "connect_config": {} }],
                },
            }],
        })
    });
    let terminate = json!({
        "name": "hbone",
        "address": { "socket_address": { "address": "0.0.0.0", "port_value": PORT } },
        "tcp_backlog_size": 4096,
        "filter_chains": [{
            "filters": [http(json!({
                "stat_prefix": "hbone",
                "codec_type": "HTTP2",
                "http2_protocol_options": { "allow_connect": true },
                "upgrade_configs": [{ "upgrade_type": "CONNECT" }],
                "route_config": { "virtual_hosts": connects },
            }))],
            "transport_socket": envoy::downstream_tls(&tls),
        }],
    });
    let mut listeners = vec![terminate];
    let mut clusters = vec![hbone(server, &tls)];
    for (port, version) in ports {
        listeners.extend([requests(port), tunnel(server, port)]);
        clusters.push(internal(&format!("inside {port}"), None));
        clusters.push(internal(&format!("tunnel {port}"), Some(version)));
    }
    json!({
        "bootstrap_extensions": [envoy::typed(
            "envoy.bootstrap.internal_listener",
            "envoy.extensions.bootstrap.internal_listener.v3.InternalListener",
            json!({}),
        )],
        "static_resources": { "listeners": listeners, "clusters": clusters },
        "layered_runtime": { "layers": [{ "name": "limits", "static_layer": {
            "overload": { "global_downstream_max_connections": 50_000 },
        }}]},
    })
}

/// An HTTP connection manager.
fn http(mut settings: Value) -> Value {
    settings["http_filters"] = json!([envoy::typed(
        "envoy.filters.http.router",
        "envoy.extensions.filters.http.router.v3.Router",
        json!({}),
    )]);
    envoy::typed(
        "envoy.filters.network.http_connection_manager",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        settings,
    )
}

/// The requests of one port, and their one route.
fn requests(port: u16) -> Value {
    json!({
        "name": format!("inside {port}"),
        "internal_listener": {},
        "filter_chains": [{ "filters": [http(json!({
            "stat_prefix": format!("inside {port}"),
            "codec_type": "AUTO",
            "route_config": { "virtual_hosts": [{
                "name": "all",
                "domains": ["*"],
                "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": format!("tunnel {port}"), "timeout": "0s" } }],
            }]},
        }))] }],
    })
}

/// What goes to the server's pod, as a CONNECT.
fn tunnel(server: &Pod, port: u16) -> Value {
    json!({
        "name": format!("tunnel {port}"),
        "internal_listener": {},
        "filter_chains": [{ "filters": [envoy::typed(
            "envoy.filters.network.tcp_proxy",
            "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            json!({
                "stat_prefix": format!("tunnel {port}"),
                "cluster": "hbone",
                "tunneling_config": { "hostname": server.addr(port).to_string() },
            }),
        )] }],
    })
}

/// A listener inside the process, as an upstream; which version of HTTP is spoken to it, where it is HTTP.
fn internal(listener: &str, version: Option<u8>) -> Value {
    let mut cluster = envoy::fixed(
        listener,
        json!({ "envoy_internal_address": { "server_listener_name": listener } }),
        version,
    );
    cluster["transport_socket"] = envoy::typed(
        "envoy.transport_sockets.internal_upstream",
        "envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport",
        json!({ "transport_socket": envoy::typed(
            "envoy.transport_sockets.raw_buffer",
            "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer",
            json!({}),
        )}),
    );
    cluster
}

/// The server's agent, which must prove the server's identity.
fn hbone(server: &Pod, tls: &Value) -> Value {
    let address = json!({ "socket_address": { "address": server.v4().to_string(), "port_value": PORT } });
    let mut cluster = envoy::fixed("hbone", address, Some(2));
    cluster["transport_socket"] = envoy::upstream_tls(&envoy::expecting(tls, &server.identity()));
    cluster
}
