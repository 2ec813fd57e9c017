//! Each refusal, and what is signed.

use std::collections::BTreeMap;

use prost_types::{Struct, Value, value};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::*;
use crate::{
    mesh::{Locality, TunnelProtocol, Workload, WorkloadType},
    svid::Csr,
};

fn id(namespace: &str, account: &str) -> SpiffeId {
    SpiffeId::new(&TrustDomain::default(), namespace, account).unwrap()
}

fn workload(name: &str, account: &str, node: &str) -> Workload {
    Workload {
        uid: format!("Kubernetes//Pod/shop/{name}").into(),
        name: name.into(),
        namespace: "shop".into(),
        identity: id("shop", account),
        addresses: Vec::new(),
        node: node.into(),
        tunnel_protocol: TunnelProtocol::Hbone,
        native_tunnel: false,
        workload_name: name.into(),
        workload_type: WorkloadType::Pod,
        canonical_name: name.into(),
        canonical_revision: "latest".into(),
        cluster: "Kubernetes".into(),
        network: "".into(),
        locality: Locality::default(),
        capacity: 1,
        healthy: true,
        host_network: false,
        waypoint: None,
        same_node: None,
        policies: Vec::new(),
        services: Default::default(),
        subsets: Vec::new(),
        authentications: Vec::new(),
    }
}

struct World {
    authority: Authority,
    placement: Placement,
}

fn world() -> World {
    let placement = Placement::default();
    let (here, there) = (workload("cart-1", "cart", "a"), workload("pay-1", "pay", "b"));
    let mut agent = workload("weft-agent-x", "weft-agent", "a");
    agent.uid = "Kubernetes//Pod/weft-system/weft-agent-x".into();
    agent.identity = id("weft-system", "weft-agent");
    placement.update([&here, &there, &agent], []);
    let (cert, key) = LocalCa::create(&TrustDomain::default()).unwrap();
    let (cert, key) = (cert.into_bytes(), key.into_bytes());
    let ca = LocalCa::from_pem(&cert, &key, "tls.crt".as_ref(), "tls.key".as_ref()).unwrap();
    let agents = vec![("weft-system".into(), "weft-agent".into())];
    let authority = Authority::new(
        ca,
        TrustDomain::default(),
        "Kubernetes".into(),
        agents,
        placement.clone(),
    );
    World { authority, placement }
}

fn agent(node: Option<&str>) -> Caller {
    Caller {
        namespace: "weft-system".into(),
        service_account: "weft-agent".into(),
        pod: Some("weft-agent-x".into()),
        node: node.map(str::to_owned),
    }
}

fn pod(account: &str) -> Caller {
    Caller {
        namespace: "shop".into(),
        service_account: account.into(),
        pod: Some("cart-1".into()),
        node: Some("a".into()),
    }
}

fn request(csr: &SpiffeId, impersonated: Option<&str>) -> CertificateRequest {
    let metadata = impersonated.map(|name| Struct {
        fields: BTreeMap::from([(
            IMPERSONATED.to_owned(),
            Value {
                kind: Some(value::Kind::StringValue(name.to_owned())),
            },
        )]),
    });
    CertificateRequest {
        csr: Csr::new(csr).unwrap().pem,
        validity_duration: 3600,
        metadata,
    }
}

#[track_caller]
fn refused(world: &World, caller: &Caller, request: &CertificateRequest, reason: &str, code: tonic::Code) {
    let denied = world.authority.create(caller, request).unwrap_err();
    assert_eq!(
        (denied.reason(), denied.status().code()),
        (reason, code),
        "{denied}"
    );
}

#[test]
fn an_agent_has_what_its_node_runs() {
    let world = world();
    let cart = id("shop", "cart");
    // Also where Kubernetes does not say the node: then its pod does.
    for caller in [agent(Some("a")), agent(None)] {
        let asked = request(&cart, Some(cart.as_str()));
        let answer = world.authority.create(&caller, &asked).unwrap();
        assert_eq!(answer.cert_chain.len(), 2);
        let der = pem::parse(&answer.cert_chain[0]).unwrap().into_contents();
        let (_, cert) = X509Certificate::from_der(&der).unwrap();
        let names = cert.subject_alternative_name().unwrap().unwrap();
        assert_eq!(names.value.general_names, [GeneralName::URI(cart.as_str())]);
        let validity = cert.validity();
        let seconds = validity.not_after.timestamp() - validity.not_before.timestamp();
        assert!((3600..=3720).contains(&seconds), "{seconds} s");
    }
}

#[test]
fn an_agent_has_nothing_that_another_node_runs() {
    let world = world();
    let pay = id("shop", "pay");
    let asked = request(&pay, Some(pay.as_str()));
    refused(
        &world,
        &agent(Some("a")),
        &asked,
        "not_on_node",
        tonic::Code::PermissionDenied,
    );
    // Nor any more what its node has run before.
    let cart = id("shop", "cart");
    world
        .placement
        .update([], &["Kubernetes//Pod/shop/cart-1".into()]);
    let asked = request(&cart, Some(cart.as_str()));
    refused(
        &world,
        &agent(Some("a")),
        &asked,
        "not_on_node",
        tonic::Code::PermissionDenied,
    );
}

#[test]
fn a_pod_has_its_own_and_not_its_neighbours() {
    let world = world();
    let (cart, pay) = (id("shop", "cart"), id("shop", "pay"));
    assert!(
        world
            .authority
            .create(&pod("cart"), &request(&cart, None))
            .is_ok()
    );
    let asked = request(&pay, Some(pay.as_str()));
    refused(
        &world,
        &pod("cart"),
        &asked,
        "not_an_agent",
        tonic::Code::PermissionDenied,
    );
    // Whatever the request itself says.
    refused(
        &world,
        &pod("cart"),
        &request(&pay, None),
        "request",
        tonic::Code::InvalidArgument,
    );
}

#[test]
fn an_account_of_that_name_in_another_namespace_is_no_agent() {
    let world = world();
    let caller = Caller {
        namespace: "shop".into(),
        ..agent(Some("a"))
    };
    let cart = id("shop", "cart");
    refused(
        &world,
        &caller,
        &request(&cart, Some(cart.as_str())),
        "not_an_agent",
        tonic::Code::PermissionDenied,
    );
}

#[test]
fn an_agent_without_a_pod_is_on_no_node() {
    let world = world();
    let caller = Caller {
        pod: None,
        ..agent(None)
    };
    let cart = id("shop", "cart");
    refused(
        &world,
        &caller,
        &request(&cart, Some(cart.as_str())),
        "no_node",
        tonic::Code::PermissionDenied,
    );
}

#[test]
fn garbage_is_refused() {
    let world = world();
    let cart = id("shop", "cart");
    let not_a_csr = CertificateRequest {
        csr: "-----BEGIN NOTHING-----".into(),
        ..request(&cart, None)
    };
    refused(
        &world,
        &pod("cart"),
        &not_a_csr,
        "request",
        tonic::Code::InvalidArgument,
    );
    let large = CertificateRequest {
        csr: "x".repeat(LONGEST_CSR + 1),
        ..request(&cart, None)
    };
    refused(
        &world,
        &pod("cart"),
        &large,
        "too_large",
        tonic::Code::InvalidArgument,
    );
    let asked = request(&cart, Some("spiffe://cluster.local/not/a/workload"));
    refused(
        &world,
        &agent(Some("a")),
        &asked,
        "name",
        tonic::Code::InvalidArgument,
    );
}

#[test]
fn nobody_may_have_too_many() {
    let world = world();
    let (cart, caller) = (id("shop", "cart"), pod("cart"));
    let asked = CertificateRequest {
        csr: String::new(),
        ..request(&cart, None)
    };
    let limited = (0..2 * RATE.burst as usize)
        .filter(|_| matches!(world.authority.create(&caller, &asked), Err(Denied::TooMany)))
        .count();
    assert!(limited > RATE.burst as usize / 2, "{limited}");
    // The others are not concerned.
    assert!(
        world
            .authority
            .create(&pod("other"), &request(&id("shop", "other"), None))
            .is_ok()
    );
}
