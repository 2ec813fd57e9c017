//! A client in the mesh and a DNS server outside of it.

use std::net::IpAddr;

use anyhow::Result;
use serde_json::json;
use weft_tests::{Agent, Pod, PodSpec, World};

use super::dnsmasq::Dnsmasq;

/// What pods of these tests have as search domains, as Kubernetes writes them.
pub(crate) const SEARCH: &str =
    "search demo.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5 timeout:2 attempts:2\n";

/// A pod `client` of the mesh on node a, which asks; a pod `dns` on node b that the mesh does not know, with dnsmasq.
pub(crate) struct Scene {
    pub(crate) client: Pod,
    pub(crate) dns: Pod,
    pub(crate) dnsmasq: Dnsmasq,
    pub(crate) agent: Agent,
}

impl Scene {
    /// Starts everything, with the services of [`services`].
    pub(crate) fn start(world: &mut World) -> Result<Self> {
        let client = world.pod("a", PodSpec::new("client").service_account("client"))?;
        let dns = world.pod("b", PodSpec::new("dns").unlisted())?;
        let dnsmasq = Dnsmasq::start(world, &dns, "")?;
        services(world);
        let agent = world.start_agent("a")?;
        Ok(Self {
            client,
            dns,
            dnsmasq,
            agent,
        })
    }

    /// The server's addresses.
    pub(crate) fn servers(&self) -> [IpAddr; 2] {
        self.dns.addresses()
    }
}

/// `web` has both families, `four` and `six` one; `db` is headless; `api.example.com` and two wildcards are hosts that are
/// not Kubernetes'.
pub(crate) fn services(world: &mut World) {
    let mesh = world.mesh_mut();
    mesh.service("web", &["10.96.0.10", "fd00:96::10"], 80, 8080, "web");
    mesh.service("four", &["10.96.0.4"], 80, 8080, "web");
    mesh.service("six", &["fd00:96::6"], 80, 8080, "web");
    mesh.service("db", &[], 5432, 5432, "db");
    for (name, hostname, vip) in [
        ("api", "api.example.com", "10.96.1.1"),
        ("wild", "*.example.com", "10.96.1.2"),
        ("wilder", "*.eu.example.com", "10.96.1.3"),
    ] {
        mesh.services.push(json!({
            "name": name, "namespace": "demo", "hostname": hostname, "vips": [vip], "endpoints": [],
        }));
    }
}

/// A pod behind `db` that nobody runs, for the mesh file.
pub(crate) fn database(number: u8, healthy: bool) -> serde_json::Value {
    json!({
        "name": format!("db-{number}"), "namespace": "demo", "node": "elsewhere", "labels": { "app": "db" },
        "addresses": [format!("10.244.9.{number}"), format!("fd00:244:9::{number:x}")], "healthy": healthy,
    })
}
