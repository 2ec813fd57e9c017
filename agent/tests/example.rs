//! The example mesh file is a good one, names every field, and means what its comments say.

use std::path::Path;

use weft::{
    feed::parse,
    mesh::{Inbound, MtlsMode, NextHop, Outbound, Verdict, authorize, route},
};

fn example() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/mesh.example.yaml");
    std::fs::read_to_string(path).expect("the example is there")
}

#[test]
fn the_example_mesh_file_means_what_it_says() {
    let file = parse(&example(), Path::new("mesh.yaml"), "node-a").unwrap_or_else(|error| panic!("{error}"));
    let mesh = file.mesh;
    assert_eq!(file.local_pods.len(), 1, "node-a has one pod to capture");
    let at = |ip: &str| {
        mesh.workload_at(ip.parse().expect("an address"))
            .expect("a workload")
            .clone()
    };
    let (shop, cart) = (at("10.244.1.10"), at("10.244.2.10"));

    let question = Outbound {
        source: shop.clone(),
        destination: "10.96.0.10:80".parse().expect("an address"),
    };
    let NextHop::Tunnel(tunnel) = route(&mesh, &question, 0).next else {
        panic!("not a tunnel")
    };
    assert_eq!(tunnel.addr.to_string(), "10.244.2.10:15008");
    assert_eq!(*tunnel.identities, *std::slice::from_ref(&cart.identity));

    let ask = |peer, port| {
        let destination = ([10, 244, 2, 10], port).into();
        authorize(
            &mesh,
            &cart,
            &Inbound {
                peer,
                source_ip: [10, 244, 1, 10].into(),
                destination,
            },
        )
    };
    assert!(matches!(
        ask(Some(shop.identity.clone()), 8080),
        Verdict::Allow { .. }
    ));
    assert!(matches!(ask(Some(shop.identity.clone()), 8081), Verdict::Deny(_)));
    assert!(matches!(ask(None, 8080), Verdict::Deny(_)));
    assert_eq!(mesh.mtls_mode(&cart, 8080), MtlsMode::Strict);
    assert_eq!(mesh.mtls_mode(&cart, 9090), MtlsMode::Permissive);
}

/// What the entries of a mesh file may be made of: every field of the feed's schema.
const FIELDS: [&str; 79] = [
    "trustDomain",
    "cluster",
    "clusterDomain",
    "rootNamespace",
    "clusterCidrs",
    "workloads",
    "services",
    "policies",
    "peerAuthentications",
    "name",
    "namespace",
    "serviceAccount",
    "node",
    "addresses",
    "tunnelProtocol",
    "netns",
    "dnsCapture",
    "labels",
    "workloadName",
    "workloadType",
    "canonicalName",
    "canonicalRevision",
    "region",
    "zone",
    "subzone",
    "healthy",
    "network",
    "capacity",
    "hostNetwork",
    "waypoint",
    "hostname",
    "vips",
    "ports",
    "selector",
    "endpoints",
    "subjectAltNames",
    "loadBalancing",
    "routingPreference",
    "healthPolicy",
    "trafficDistribution",
    "internalTrafficPolicy",
    "publishNotReadyAddresses",
    "ipFamilies",
    "port",
    "targetPort",
    "service",
    "address",
    "action",
    "dryRun",
    "rules",
    "from",
    "to",
    "when",
    "principals",
    "notPrincipals",
    "namespaces",
    "notNamespaces",
    "ipBlocks",
    "notIpBlocks",
    "serviceAccounts",
    "notServiceAccounts",
    "trustDomains",
    "notTrustDomains",
    "requestPrincipals",
    "notRequestPrincipals",
    "remoteIpBlocks",
    "notRemoteIpBlocks",
    "hosts",
    "notHosts",
    "methods",
    "notMethods",
    "paths",
    "notPaths",
    "notPorts",
    "key",
    "values",
    "notValues",
    "mode",
    "portLevelMtls",
];

#[test]
fn the_example_names_every_field() {
    let text = example();
    let names: Vec<_> = text
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| text.contains(&format!("{word}:")))
        .collect();
    let missing: Vec<_> = FIELDS.iter().filter(|field| !names.contains(field)).collect();
    assert!(missing.is_empty(), "the example does not name {missing:?}");
}

#[test]
fn the_fields_that_the_example_leaves_out_are_good_ones() {
    let shown = |line: &str| {
        let (indent, rest) = line.split_at(line.len() - line.trim_start().len());
        match rest.strip_prefix('#') {
            Some(field) if !field.starts_with([' ', '#']) => format!("{indent}{field}\n"),
            _ => format!("{line}\n"),
        }
    };
    let text: String = example().lines().map(shown).collect();
    let file = parse(&text, Path::new("mesh.yaml"), "node-a").unwrap_or_else(|error| panic!("{error}"));
    assert!(
        file.mesh
            .workload_at("10.244.2.30".parse().expect("an address"))
            .is_some()
    );
}
