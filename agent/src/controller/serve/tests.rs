//! Who may see the mesh: each refusal.

mod certificates;

use tonic::Code;

use super::*;
use crate::{
    cluster::objects::Kind,
    controller::{
        compile::{ObjectRef, WaypointFor, WaypointGateway},
        placement::Placement,
        tokens::Reviewing,
    },
    feed::store::Store,
    mesh::TrustDomain,
    svid::LocalCa,
};

/// Nobody asks.
struct Nobody;

impl Reviewer for Nobody {
    fn review<'a>(&'a self, _: &'a str, _: IpAddr) -> Reviewing<'a> {
        Box::pin(async { Err(tokens::TokenError::Missing) })
    }
}

fn services() -> Services {
    let (cert, key) = LocalCa::create(&TrustDomain::default()).unwrap();
    let (cert, key) = (cert.into_bytes(), key.into_bytes());
    let ca = LocalCa::from_pem(&cert, &key, "tls.crt".as_ref(), "tls.key".as_ref()).unwrap();
    let agents = vec![("weft-system".into(), "weft-agent".into())];
    let authority = Authority::new(
        ca,
        TrustDomain::default(),
        "Kubernetes".into(),
        agents,
        Placement::default(),
    );
    Services {
        reviewer: Arc::new(Nobody),
        authority: Arc::new(authority),
        waypoints: WaypointAccounts::default(),
        feed: Server::new(Store::default()),
        counts: Arc::default(),
    }
}

fn waypoint(namespace: &str, name: &str) -> WaypointGateway {
    WaypointGateway {
        gateway: ObjectRef {
            namespace: namespace.into(),
            kind: Kind::Gateway,
            name: name.into(),
            uid: "u".into(),
            generation: 1,
        },
        class: "weft-waypoint".into(),
        waypoint_for: WaypointFor::Service,
        hbone_port: 15008,
        wishes: Default::default(),
    }
}

fn caller(namespace: &str, account: &str) -> Caller {
    Caller {
        namespace: namespace.into(),
        service_account: account.into(),
        pod: Some("pod-1".into()),
        node: Some("a".into()),
    }
}

#[test]
fn the_mesh_is_for_agents_and_waypoints_alone() {
    let services = services();
    services.waypoints.update(Some(&[waypoint("shop", "waypoint")]));
    let check = |namespace: &str, account: &str, expect: Option<Code>| {
        let answer = services.may_see_the_mesh(&caller(namespace, account));
        assert_eq!(answer.err().map(|it| it.code()), expect, "{namespace}/{account}");
    };
    check("weft-system", "weft-agent", None);
    check("shop", "waypoint", None);
    check("shop", "cart", Some(Code::PermissionDenied));
    check("pay", "waypoint", Some(Code::PermissionDenied));
    check("shop", "weft-agent", Some(Code::PermissionDenied));
    check("weft-system", "waypoint", Some(Code::PermissionDenied));
    check("shop", "", Some(Code::PermissionDenied));
    check("shop/waypoint", "", Some(Code::PermissionDenied));
}

#[test]
fn before_anything_is_compiled_nobody_but_agents_is_told_anything() {
    let services = services();
    let code = |caller: &Caller| services.may_see_the_mesh(caller).err().map(|it| it.code());
    assert_eq!(code(&caller("weft-system", "weft-agent")), None);
    assert_eq!(code(&caller("shop", "waypoint")), Some(Code::Unavailable));
    // Where there are no waypoints, none have changed.
    services.waypoints.update(None);
    assert_eq!(code(&caller("shop", "waypoint")), Some(Code::PermissionDenied));
}

#[test]
fn a_waypoint_that_is_gone_hears_no_more() {
    let services = services();
    let both = [waypoint("shop", "waypoint"), waypoint("pay", "waypoint")];
    services.waypoints.update(Some(&both));
    let until = |namespace| services.may_see_the_mesh(&caller(namespace, "waypoint"));
    let (shop, pay) = (until("shop").unwrap(), until("pay").unwrap());
    services.waypoints.update(Some(&both[1..]));
    assert!(shop.is_cancelled() && !pay.is_cancelled());
    assert!(until("shop").is_err());
    services.waypoints.update(None);
    assert!(!until("pay").unwrap().is_cancelled());
}
