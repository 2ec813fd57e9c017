//! What the indexes find, and the mTLS modes of the scopes.

use super::*;
use crate::mesh::{Action, PeerAuthentication, Scope, sample};

#[test]
fn addresses() {
    let mut parts = sample::parts();
    let host_network = Workload {
        host_network: true,
        ..sample::pod("host", &["192.168.77.2"])
    };
    let twin = sample::pod("twin", &["10.0.0.1"]);
    parts.workloads = vec![
        sample::pod("mapped", &["::ffff:10.0.0.1", "fd00::1"]),
        host_network,
        twin,
    ];
    parts.services = vec![sample::service("web", &["::ffff:10.96.0.1"])];
    let mesh = Mesh::new(parts);
    let check = |address: &str, pod: Option<&str>, service: Option<&str>| {
        let address = address.parse().unwrap();
        assert_eq!(
            mesh.workload_at(address).map(|workload| &*workload.name),
            pod,
            "{address}"
        );
        assert_eq!(
            mesh.service_at(address).map(|service| &*service.name),
            service,
            "{address}"
        );
    };
    check("10.0.0.1", Some("mapped"), None);
    check("::ffff:10.0.0.1", Some("mapped"), None);
    check("fd00::1", Some("mapped"), None);
    check("192.168.77.2", None, None);
    check("10.96.0.1", None, Some("web"));
    check("::ffff:10.96.0.1", None, Some("web"));
    assert_eq!(
        mesh.workload(&sample::uid("host"))
            .map(|workload| &*workload.name),
        Some("host")
    );
    assert_eq!(
        (
            mesh.workloads().len(),
            mesh.services().len(),
            mesh.policies().len()
        ),
        (3, 1, 0)
    );
}

/// The first of two stays, and nothing leads to the other.
#[test]
fn twins() {
    let mut parts = sample::parts();
    let shown = |mesh: &Mesh, address: &str| {
        let address = address.parse().unwrap();
        (
            mesh.workload_at(address).is_some(),
            mesh.service_at(address).is_some(),
        )
    };
    parts.workloads = ["10.0.0.1", "10.0.0.2"]
        .map(|address| sample::pod("web", &[address]))
        .to_vec();
    parts.services = ["10.96.0.1", "10.96.0.2"]
        .map(|vip| sample::service("web", &[vip]))
        .to_vec();
    let policy = |action| sample::policy("root/p", Scope::Mesh, action, Vec::new());
    parts.policies = [Action::Allow, Action::Deny].map(policy).to_vec();
    let mesh = Mesh::new(parts);
    assert_eq!(shown(&mesh, "10.0.0.1"), (true, false));
    assert_eq!(shown(&mesh, "10.0.0.2"), (false, false));
    assert_eq!(shown(&mesh, "10.96.0.1"), (false, true));
    assert_eq!(shown(&mesh, "10.96.0.2"), (false, false));
    let covering = mesh
        .policies_of(&sample::pod("web", &[]))
        .map(|policy| policy.action)
        .collect::<Vec<_>>();
    assert_eq!(covering, [Action::Allow]);
}

/// A pod that went and whose address another has by now is given no connections: they would reach the other.
#[test]
fn a_pod_whose_address_another_has_is_no_endpoint() {
    let mut parts = sample::parts();
    parts.services = vec![sample::service("web", &["10.96.0.1"])];
    let stale = sample::backs(sample::pod("stale", &["10.0.0.1", "10.0.0.2"]), "web");
    let other = sample::backs(sample::pod("other", &["10.0.0.3"]), "web");
    parts.workloads = vec![sample::pod("new", &["10.0.0.1"]), stale, other];
    let mesh = Mesh::new(parts);
    let names: Vec<_> = mesh
        .endpoints(&sample::service_key("web"))
        .iter()
        .map(|endpoint| &*endpoint.workload.name)
        .collect();
    assert_eq!(names, ["other"]);
}

#[test]
fn cluster_addresses() {
    let parts = |cidr: &str| MeshParts {
        cluster_cidrs: vec![cidr.parse().unwrap()],
        ..sample::parts()
    };
    let check = |cidr, address: &str, expect| {
        let mesh = Mesh::new(parts(cidr));
        assert_eq!(
            mesh.is_cluster_address(address.parse().unwrap()),
            expect,
            "{address} in {cidr}"
        );
    };
    check("10.0.0.0/8", "10.1.2.3", true);
    check("10.0.0.0/8", "::ffff:10.1.2.3", true);
    check("10.0.0.0/8", "11.1.2.3", false);
    check("::ffff:10.0.0.0/104", "10.1.2.3", true);
    check("::ffff:10.0.0.0/104", "11.1.2.3", false);
    check("fd00::/8", "fd12::1", true);
    check("fd00::/8", "10.1.2.3", false);
}

/// `mode`, then `port=mode` for single ports; S is STRICT, P is PERMISSIVE, `-` says nothing.
fn modes(text: &str) -> PeerAuthentication {
    let mode = |text: &str| match text {
        "S" => Some(MtlsMode::Strict),
        "P" => Some(MtlsMode::Permissive),
        _ => None,
    };
    let port = |text: &str| {
        let (port, text) = text.split_once('=')?;
        Some((port.parse().unwrap(), mode(text)?))
    };
    PeerAuthentication {
        mode: text.split(' ').next().and_then(mode),
        ports: text.split(' ').skip(1).filter_map(port).collect(),
        ..PeerAuthentication::default()
    }
}

/// The modes that three scopes give to a workload, as [`modes`] writes them.
fn check(mesh: &str, namespace: &str, selector: &str, expect: &str) {
    let pod = sample::pod("web", &["10.0.0.1"]);
    let mut parts = sample::parts();
    parts.peer_authentications = PeerAuthentications {
        mesh: modes(mesh),
        namespaces: [("demo".into(), modes(namespace)), ("other".into(), modes("S"))]
            .into_iter()
            .collect(),
        workloads: [(pod.uid.clone(), modes(selector)), ("other".into(), modes("S"))]
            .into_iter()
            .collect(),
    };
    let mesh = Mesh::new(parts);
    let (found, expect) = (mesh.strict_ports(&pod), modes(expect));
    assert_eq!(
        (Some(found.mode), found.ports.clone()),
        (expect.mode, expect.ports)
    );
    for port in [1, 8080, 9090] {
        assert_eq!(
            mesh.mtls_mode(&pod, port),
            *found.ports.get(&port).unwrap_or(&found.mode),
            "port {port}"
        );
    }
}

#[test]
fn mtls_modes() {
    check("-", "-", "-", "P");
    check("S", "-", "-", "S");
    check("S", "P", "-", "P");
    check("P", "S", "-", "S");
    check("S", "P", "S", "S");
    check("S", "S", "P", "P");
    check("S", "-", "P 8080=S", "P 8080=S");
    check("S", "-", "- 8080=P", "S 8080=P");
    check("-", "S", "- 8080=P 9090=P", "S 8080=P 9090=P");
    // A port that is as the rest is not an exception.
    check("-", "-", "S 8080=S", "S");
    // A scope's own mode outdoes the ports of the scopes above it.
    check("- 8080=S", "-", "-", "P 8080=S");
    check("- 8080=S", "P", "-", "P");
    check("P 8080=S", "- 9090=S", "-", "P 8080=S 9090=S");
    check("P 8080=S", "- 8080=P", "-", "P");
}

#[test]
fn endpoints_are_those_that_can_be_chosen() {
    let mut parts = sample::parts();
    parts.services = vec![sample::service("web", &["10.96.0.1"])];
    let unhealthy = Workload {
        healthy: false,
        ..sample::pod("sick", &["10.0.0.2"])
    };
    let pods = [
        sample::pod("well", &["10.0.0.1"]),
        unhealthy,
        sample::pod("unborn", &[]),
    ];
    parts.workloads = pods.map(|pod| sample::backs(pod, "web")).to_vec();
    parts
        .workloads
        .push(sample::backs(sample::pod("lost", &["10.0.0.3"]), "nowhere"));
    let mesh = Mesh::new(parts);
    let names = |service| -> Vec<_> {
        mesh.endpoints(&sample::service_key(service))
            .iter()
            .map(|e| e.workload.name.to_string())
            .collect()
    };
    assert_eq!(names("web"), ["well"]);
    assert!(names("nowhere").is_empty());
    assert_eq!(
        mesh.endpoints(&sample::service_key("web"))[0].target_port(80),
        Some(8080)
    );
    assert_eq!(
        mesh.endpoints(&sample::service_key("web"))[0].target_port(81),
        None
    );
}
