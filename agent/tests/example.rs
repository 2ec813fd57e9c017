//! The example mesh file is a good one, and means what its comments say.

use std::path::Path;

use weft::{
    feed::parse,
    mesh::{Inbound, MtlsMode, NextHop, Outbound, Verdict, authorize, route},
};

#[test]
fn the_example_mesh_file_means_what_it_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/mesh.example.yaml");
    let text = std::fs::read_to_string(&path).expect("the example is there");
    let file = parse(&text, &path, "node-a").unwrap_or_else(|error| panic!("{error}"));
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
    assert_eq!(*tunnel.identities, [cart.identity.clone()]);

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
