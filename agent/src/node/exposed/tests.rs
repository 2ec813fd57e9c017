//! Which connections that are older than a capture go on, as a table.

use super::*;
use crate::feed::parse;

const MESH: &str = r#"
clusterCidrs: [10.244.0.0/16, 10.96.0.0/16]
workloads:
- {name: client, namespace: demo, node: a, addresses: [10.244.1.10], tunnelProtocol: HBONE}
- {name: web, namespace: demo, node: b, addresses: [10.244.2.10], tunnelProtocol: HBONE, labels: {app: web}}
- {name: strict, namespace: strict, node: b, addresses: [10.244.2.11], tunnelProtocol: HBONE}
- {name: plain, namespace: demo, node: b, addresses: [10.244.2.12]}
services:
- name: web
  namespace: demo
  vips: [10.96.0.10]
  ports: [{port: 80, targetPort: 8080}]
  selector: {app: web}
peerAuthentications:
- {namespace: strict, mode: STRICT}
"#;

fn socket(local: &str, remote: &str, cookie: u64) -> TcpSocket {
    TcpSocket {
        local: local.parse().expect("an address"),
        remote: remote.parse().expect("an address"),
        listens: false,
        cookie,
    }
}

fn listener(port: u16) -> TcpSocket {
    TcpSocket {
        listens: true,
        ..socket(&format!("0.0.0.0:{port}"), "0.0.0.0:0", 0)
    }
}

/// What is ended of a pod's connections, by the cookies of their sockets.
fn ended(pod: &str, late: bool, sockets: &[TcpSocket]) -> Vec<u64> {
    let mesh = parse(MESH, std::path::Path::new("mesh.yaml"), "a")
        .expect("a mesh")
        .mesh;
    let workload = mesh
        .workloads()
        .find(|it| &*it.name == pod)
        .expect("it is there")
        .clone();
    let node = HashSet::from(["192.168.77.1".parse().expect("an address")]);
    let refused = refused(&mesh, &workload, (&workload.addresses, &node), late, sockets);
    refused.into_iter().map(|(socket, _)| socket.cookie).collect()
}

#[test]
fn what_a_running_pod_may_do_goes_on_when_it_gets_the_label() {
    let sockets = [
        listener(8080),
        socket("127.0.0.1:40000", "127.0.0.1:8080", 1),
        socket("10.244.1.10:40001", "10.244.1.10:8080", 2),
        // Outbound: to the mesh, by address and by service; to one that takes no plaintext; to others; to nowhere known.
        socket("10.244.1.10:40002", "10.244.2.10:8080", 3),
        socket("10.244.1.10:40003", "10.96.0.10:80", 4),
        socket("10.244.1.10:40004", "10.244.2.11:8080", 5),
        socket("10.244.1.10:40005", "10.244.2.12:8080", 6),
        socket("10.244.1.10:40006", "93.184.215.14:443", 7),
        socket("10.244.1.10:40007", "10.244.9.9:8080", 8),
        // A tunnel, and inbound ones.
        socket("10.244.1.10:40008", "10.244.2.10:15008", 9),
        socket("10.244.1.10:8080", "10.244.2.12:50000", 10),
        socket("10.244.1.10:8080", "192.168.77.1:50001", 11),
    ];
    assert_eq!(ended("client", false, &sockets), [5]);
    // Nobody has allowed what it did while it was to be in the mesh and was not.
    assert_eq!(ended("client", true, &sockets), [3, 4, 5, 8]);
}

#[test]
fn a_pod_in_strict_keeps_its_probes_and_nothing_from_the_network() {
    let sockets = [
        listener(8080),
        socket("127.0.0.1:8080", "127.0.0.1:40000", 1),
        socket("10.244.2.11:8080", "192.168.77.1:50001", 2),
        socket("10.244.2.11:8080", "10.244.1.10:40002", 3),
        socket("10.244.2.11:15008", "10.244.1.10:40003", 4),
        socket("10.244.2.11:40005", "93.184.215.14:443", 5),
    ];
    for late in [false, true] {
        assert_eq!(ended("strict", late, &sockets), [3], "{late}");
    }
}
