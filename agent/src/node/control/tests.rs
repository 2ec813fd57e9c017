//! What should be captured, and with which addresses.

use std::path::Path;

use super::*;
use crate::feed;

const MESH: &str = "
workloads:
  - {name: known, namespace: demo, node: a, addresses: [fd00::1, 10.0.0.1], tunnelProtocol: HBONE}
  - {name: silent, namespace: demo, node: a, addresses: [], tunnelProtocol: HBONE}
";

/// A pod that labels select, with the addresses that were found.
fn addresses(mesh: &Mesh, name: &str, found: &[&str]) -> Vec<String> {
    let known = mesh.workloads().find(|workload| *workload.name == *name);
    let uid = known.map_or_else(|| name.into(), |workload| Arc::clone(&workload.uid));
    let pod = LocalPod {
        uid: Arc::clone(&uid),
        netns: NetnsSource::Missing {
            why: "a test".into(),
            runs: true,
        },
        addresses: found.iter().map(|ip| ip.parse().expect("an address")).collect(),
        dns_capture: None,
    };
    let desired = desired(mesh, &[pod], true);
    desired[&uid].addresses.iter().map(ToString::to_string).collect()
}

#[test]
fn a_pod_has_the_addresses_that_the_mesh_gives_it_and_until_then_its_own() {
    let file = feed::parse(MESH, Path::new("mesh.yaml"), "a").expect("a mesh file");
    for (name, found, expect) in [
        // In one order, whoever says it: it is the same pod.
        (
            "known",
            &["10.0.0.1", "fd00::1"][..],
            &["10.0.0.1", "fd00::1"][..],
        ),
        ("known", &["10.0.0.9"], &["10.0.0.1", "fd00::1"]),
        ("silent", &["10.0.0.2", "10.0.0.3"], &["10.0.0.2", "10.0.0.3"]),
        ("new", &["10.0.0.4", "fd00::4"], &["10.0.0.4", "fd00::4"]),
        ("new", &[], &[]),
        // Which of them others know it by only the mesh can tell.
        ("new", &["10.0.0.4", "10.1.0.4", "fd00::4"], &[]),
        ("new", &["10.0.0.4", "fd00::4", "fd01::4"], &[]),
    ] {
        assert_eq!(addresses(&file.mesh, name, found), expect, "{name} {found:?}");
    }
}
