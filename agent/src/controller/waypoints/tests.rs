//! What is made for a Gateway, what is done about what is there, and what the Gateway says of it.

use std::collections::BTreeMap;

use kube::core::DynamicObject;
use serde_json::{Value, json};

use super::{
    Settings, Surroundings,
    apply::Trouble,
    covers::covers,
    objects::objects,
    parts::{Key, Part},
    plan::{Action, Actual, is_ours, plan},
    pod_fields, resources, status,
};
use crate::{
    cluster::objects::Object,
    controller::{
        compile::{self, Resources, WaypointGateway, compile},
        conditions::{Condition, GatewayStatus, Status},
    },
};

fn settings() -> Settings {
    Settings {
        image: "weft:1".to_owned(),
        pull_policy: "IfNotPresent".to_owned(),
        controller: None,
        namespace: "weft-system".to_owned(),
        service: "weft-controller".to_owned(),
        audience: "weft-ca".to_owned(),
        replicas: 2,
        resources: resources(r#"{"requests":{"cpu":"100m","memory":"128Mi"},"limits":{"memory":"1Gi"}}"#)
            .expect("resources"),
        pod: pod_fields(r#"{"nodeSelector":{"pool":"mesh"}}"#).expect("fields of a pod"),
        drain_timeout: 30,
        listen_address: [0, 0, 0, 0].into(),
        mesh: vec!["--trust-domain=cluster.local".to_owned()],
        log: vec!["--log=info".to_owned()],
    }
}

fn around() -> Surroundings {
    Surroundings {
        controller: "10.96.0.5:15012".to_owned(),
        roots: "PEM".to_owned(),
    }
}

/// A waypoint `shop/gate`, compiled, with a change to its Gateway.
fn waypoint(change: &Value) -> WaypointGateway {
    let mut gateway = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": {"name": "gate", "namespace": "shop", "uid": "u-1", "generation": 3},
        "spec": {"gatewayClassName": "weft-waypoint", "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}]},
    });
    lay(&mut gateway, change);
    let object = Object::from_manifest(gateway).expect("a Gateway");
    let compiled = compile(&Resources::new([object]), &compile::Settings::default());
    compiled.waypoints.into_iter().next().expect("a waypoint of ours")
}

fn lay(object: &mut Value, change: &Value) {
    match (object, change) {
        (Value::Object(fields), Value::Object(change)) => {
            for (key, value) in change {
                lay(fields.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (object, change) => *object = change.clone(),
    }
}

fn annotated(annotations: &Value) -> Value {
    json!({"metadata": {"annotations": annotations}})
}

fn made(change: &Value) -> BTreeMap<Part, Value> {
    let all = objects(&waypoint(change), &settings(), &around());
    all.into_iter().map(|(key, value)| (key.part, value)).collect()
}

fn key(part: Part) -> Key {
    Key {
        namespace: "shop".to_owned(),
        name: "gate".to_owned(),
        part,
    }
}

#[test]
fn every_object_is_its_gateways_and_says_so() {
    let made = made(&json!({"spec": {"infrastructure": {
        "labels": {"team": "shop", "app.kubernetes.io/managed-by": "me"}, "annotations": {"note": "n"}}}}));
    assert_eq!(made.len(), 4);
    for object in made.values() {
        let metadata = &object["metadata"];
        assert_eq!(metadata["ownerReferences"][0]["uid"], "u-1");
        assert_eq!(
            metadata["labels"]["gateway.networking.k8s.io/gateway-name"],
            "gate"
        );
        assert_eq!(
            metadata["labels"]["gateway.networking.k8s.io/gateway-class-name"],
            "weft-waypoint"
        );
        assert_eq!(
            metadata["labels"]["gateway.istio.io/managed"],
            "istio.io-mesh-controller"
        );
        assert_eq!(metadata["labels"]["team"], "shop");
        assert_eq!(
            metadata["labels"]["app.kubernetes.io/managed-by"], "weft",
            "not to be overridden"
        );
        assert_eq!(metadata["annotations"]["note"], "n");
        let object: DynamicObject = serde_json::from_value(object.clone()).expect("an object");
        assert!(is_ours(&object));
    }
}

#[test]
fn its_pods_may_do_nothing_and_end_slower_than_they_drain() {
    let made = made(&json!({}));
    let spec = &made[&Part::Deployment]["spec"];
    assert_eq!(spec["replicas"], 2);
    assert_eq!(spec["strategy"]["rollingUpdate"]["maxUnavailable"], 0);
    let template = &spec["template"];
    assert_eq!(template["metadata"]["labels"]["istio.io/dataplane-mode"], "none");
    let pod = &template["spec"];
    assert_eq!(pod["serviceAccountName"], "gate");
    assert_eq!(pod["automountServiceAccountToken"], false);
    assert_eq!(pod["terminationGracePeriodSeconds"], 45);
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(pod["nodeSelector"]["pool"], "mesh");
    let topologies: Vec<_> = pod["topologySpreadConstraints"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|it| it["topologyKey"].as_str().expect("a key"))
        .collect();
    assert_eq!(
        topologies,
        ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]
    );
    let container = &pod["containers"][0];
    assert_eq!(
        container["securityContext"]["capabilities"]["drop"],
        json!(["ALL"])
    );
    assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
    let args: Vec<_> = container["args"]
        .as_array()
        .expect("arguments")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    for expected in [
        "waypoint",
        "--gateway=shop/gate",
        "--controller=10.96.0.5:15012",
        "--controller-name=weft-controller.weft-system.svc",
        "--drain-timeout=30",
        "--ready-address=0.0.0.0:15021",
    ] {
        assert!(args.contains(&expected), "{expected} in {args:?}");
    }
    let token = &pod["volumes"][0]["projected"]["sources"][0]["serviceAccountToken"];
    assert_eq!(token["audience"], "weft-ca");
    assert_eq!(template["metadata"]["annotations"]["weft.dev/root-cert"], "PEM");
    assert_eq!(made[&Part::Service]["spec"]["ports"][0]["port"], 15008);
    assert_eq!(made[&Part::DisruptionBudget]["spec"]["maxUnavailable"], 1);
}

#[test]
fn annotations_say_how_much() {
    let made = made(&annotated(&json!({
        "weft.dev/waypoint-max-replicas": "6", "weft.dev/waypoint-cpu": "2", "weft.dev/waypoint-memory": "512Mi"})));
    assert_eq!(
        made[&Part::Deployment]["spec"].get("replicas"),
        None,
        "the autoscaler's"
    );
    let scaler = &made[&Part::Autoscaler]["spec"];
    assert_eq!(
        (&scaler["minReplicas"], &scaler["maxReplicas"]),
        (&json!(2), &json!(6))
    );
    let resources = &made[&Part::Deployment]["spec"]["template"]["spec"]["containers"][0]["resources"];
    assert_eq!(
        *resources,
        json!({"requests": {"cpu": "2", "memory": "512Mi"}, "limits": {"memory": "512Mi"}})
    );
    let addressed = waypoint(&json!({"spec": {"addresses": [{"value": "10.96.0.77"}]}}));
    let all = objects(&addressed, &settings(), &around());
    let service = all
        .iter()
        .find(|(key, _)| key.part == Part::Service)
        .expect("a Service");
    assert_eq!(service.1["spec"]["clusterIP"], "10.96.0.77");
}

#[test]
fn what_cannot_be_deployed_is_a_fault() {
    for (change, reason) in [
        (
            annotated(&json!({"weft.dev/waypoint-replicas": "0"})),
            "InvalidParameters",
        ),
        (
            annotated(&json!({"weft.dev/waypoint-cpu": "lots"})),
            "InvalidParameters",
        ),
        (
            annotated(&json!({"weft.dev/waypoint-memory": "-1Gi"})),
            "InvalidParameters",
        ),
        (
            annotated(&json!({"weft.dev/waypoint-min-replicas": "2"})),
            "InvalidParameters",
        ),
        (
            annotated(&json!({"weft.dev/waypoint-min-replicas": "3", "weft.dev/waypoint-max-replicas": "2"})),
            "InvalidParameters",
        ),
        (
            json!({"spec": {"infrastructure": {"parametersRef": {"name": "x"}}}}),
            "InvalidParameters",
        ),
        (
            json!({"spec": {"infrastructure": {"labels": {"a": "b c"}}}}),
            "InvalidParameters",
        ),
        (
            json!({"spec": {"addresses": [{"type": "Hostname", "value": "a.example"}]}}),
            "UnsupportedAddress",
        ),
        (
            json!({"spec": {"addresses": [{"value": "10.96.0.1"}, {"value": "10.96.0.2"}]}}),
            "UnsupportedAddress",
        ),
        (
            json!({"spec": {"addresses": [{"value": "ten"}]}}),
            "UnsupportedAddress",
        ),
        (
            json!({"spec": {"listeners": [{"name": "web", "port": 80, "protocol": "HTTP"}]}}),
            "ListenersNotValid",
        ),
        (json!({"metadata": {"name": "a.b"}}), "Invalid"),
        (json!({"metadata": {"name": "1a"}}), "Invalid"),
    ] {
        let waypoint = waypoint(&change);
        let fault = waypoint.wishes.fault.as_ref().map(|it| it.reason);
        assert_eq!(fault, Some(reason), "{change}");
        let Status::Gateway(said) = status::gateway(&waypoint, &Actual::new(), &[]) else {
            panic!("a Gateway's status");
        };
        assert_eq!(told(&said, "Accepted"), (false, reason));
        assert_eq!(told(&said, "Programmed"), (false, "Invalid"));
    }
}

/// As the API has it after it was applied.
fn stored(value: &Value) -> DynamicObject {
    let mut value = value.clone();
    value["metadata"]["uid"] = "stored".into();
    value["metadata"]["resourceVersion"] = "7".into();
    value["spec"]["added"] = "by the API".into();
    serde_json::from_value(value).expect("an object")
}

fn all_there(desired: &BTreeMap<Key, Value>) -> Actual {
    desired
        .iter()
        .map(|(key, value)| (key.clone(), stored(value)))
        .collect()
}

fn desired(change: &Value) -> BTreeMap<Key, Value> {
    objects(&waypoint(change), &settings(), &around())
        .into_iter()
        .collect()
}

#[test]
fn nothing_is_done_where_everything_is_right() {
    let desired = desired(&json!({}));
    assert_eq!(plan(&desired, |_| false, &all_there(&desired)), []);
    let made: Vec<_> = plan(&desired, |_| false, &Actual::new());
    let created = made.iter().map(|it| match it {
        Action::Create(key, _) => key.part,
        other => panic!("{other:?}"),
    });
    let expected = [
        Part::ServiceAccount,
        Part::Service,
        Part::Deployment,
        Part::DisruptionBudget,
    ];
    assert_eq!(created.collect::<Vec<_>>(), expected);
}

#[test]
fn what_somebody_changed_is_put_right_and_what_nobody_wants_goes() {
    let plain = desired(&json!({}));
    let mut actual = all_there(&plain);
    let deployment = actual.get_mut(&key(Part::Deployment)).expect("there");
    deployment.data["spec"]["template"]["spec"]["containers"][0]["image"] = "other:2".into();
    match plan(&plain, |_| false, &actual).as_slice() {
        [Action::Apply(at, value, uid)] => {
            assert_eq!(
                (at, value, uid.as_str()),
                (&key(Part::Deployment), &plain[at], "stored")
            );
        }
        other => panic!("{other:?}"),
    }
    // It asks for no autoscaler any more.
    let scaled = desired(&annotated(&json!({"weft.dev/waypoint-max-replicas": "6"})));
    let mut actual = all_there(&scaled);
    actual.extend(all_there(&plain));
    match plan(&plain, |_| false, &actual).as_slice() {
        [
            Action::Delete {
                key: at,
                part_of_waypoint: true,
                ..
            },
        ] => assert_eq!(at.part, Part::Autoscaler),
        other => panic!("{other:?}"),
    }
    // Its Gateway is none of ours any more: somebody has to look.
    let gone = plan(&BTreeMap::new(), |_| false, &all_there(&plain));
    assert_eq!(gone.len(), 4);
    assert!(gone.iter().all(|it| matches!(
        it,
        Action::Delete {
            part_of_waypoint: false,
            ..
        }
    )));
    // Or asks for something that cannot be.
    assert_eq!(plan(&BTreeMap::new(), |_| true, &all_there(&plain)), []);
    // What is on its way out is left to go.
    let mut going = all_there(&plain);
    for object in going.values_mut() {
        object.metadata.deletion_timestamp =
            serde_json::from_value(json!("2026-01-01T00:00:00Z")).expect("a time");
    }
    assert_eq!(plan(&BTreeMap::new(), |_| false, &going), []);
}

#[test]
fn an_object_covers_what_was_applied() {
    let cases = [
        (json!({"a": 1, "b": 2}), json!({"a": 1}), true),
        (json!({"a": 1}), json!({"a": 2}), false),
        (
            json!({"a": [{"name": "x", "v": 1}, {"name": "side"}]}),
            json!({"a": [{"name": "x", "v": 1}]}),
            true,
        ),
        (
            json!({"a": [{"name": "x", "v": 1}]}),
            json!({"a": [{"name": "x", "v": 2}]}),
            false,
        ),
        (json!({"args": ["a", "b"]}), json!({"args": ["a"]}), false),
        (
            json!({"requests": {"cpu": "1", "memory": "1Gi"}}),
            json!({"requests": {"cpu": "1000m", "memory": "1024Mi"}}),
            true,
        ),
        (
            json!({"requests": {"cpu": "2"}}),
            json!({"requests": {"cpu": "1000m"}}),
            false,
        ),
        (json!({}), json!({"tolerations": [], "affinity": {}}), true),
        (json!({}), json!({"a": "b"}), false),
    ];
    for (there, wanted, expect) in cases {
        assert_eq!(covers(&there, &wanted), expect, "{there} {wanted}");
    }
}

#[test]
fn only_what_says_so_and_is_owned_is_ours() {
    let ours = desired(&json!({}))[&key(Part::Service)].clone();
    let check = |change: &Value| {
        let mut object = ours.clone();
        lay(&mut object, change);
        is_ours(&serde_json::from_value(object).expect("an object"))
    };
    assert!(check(&json!({})));
    assert!(!check(&json!({"metadata": {"ownerReferences": []}})));
    assert!(!check(
        &json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": "Helm"}}})
    ));
    assert!(!check(
        &json!({"metadata": {"labels": {"gateway.networking.k8s.io/gateway-name": "other"}}})
    ));
}

fn told<'a>(said: &'a GatewayStatus, type_: &str) -> (bool, &'a str) {
    let is = |it: &&Condition| it.type_ == type_;
    let found = said.conditions.iter().find(is).expect("a condition");
    (found.holds == Some(true), &found.reason)
}

/// What there is, what went wrong, and what is said of it.
type Case<'a> = (Actual, &'a [(Part, &'a Trouble)], (bool, &'a str));

#[test]
fn a_gateway_is_programmed_when_a_pod_of_it_takes_requests() {
    let plain = waypoint(&json!({}));
    let made: BTreeMap<_, _> = objects(&plain, &settings(), &around()).into_iter().collect();
    let with = |available: u64, address: &str| {
        let mut actual = all_there(&made);
        let deployment = actual.get_mut(&key(Part::Deployment)).expect("there");
        deployment.data["status"]["availableReplicas"] = available.into();
        let service = actual.get_mut(&key(Part::Service)).expect("there");
        service.data["spec"]["clusterIPs"] = json!([address]);
        actual
    };
    let refused = Trouble::Refused("no".to_owned());
    let foreign = Trouble::Foreign;
    let cases: [Case<'_>; 7] = [
        (Actual::new(), &[], (false, "Pending")),
        (with(0, "10.96.0.9"), &[], (false, "Pending")),
        (with(1, "None"), &[], (false, "AddressNotAssigned")),
        (with(1, "10.96.0.9"), &[], (true, "Programmed")),
        // Requests go on.
        (
            with(1, "10.96.0.9"),
            &[(Part::DisruptionBudget, &refused)],
            (true, "Programmed"),
        ),
        (
            with(0, "10.96.0.9"),
            &[(Part::DisruptionBudget, &refused)],
            (false, "Pending"),
        ),
        (
            Actual::new(),
            &[(Part::Deployment, &foreign)],
            (false, "NoResources"),
        ),
    ];
    for (actual, troubles, expect) in cases {
        let Status::Gateway(said) = status::gateway(&plain, &actual, troubles) else {
            panic!("a Gateway's status");
        };
        assert_eq!(told(&said, "Programmed"), expect, "{troubles:?}");
        assert_eq!(told(&said, "Accepted"), (true, "Accepted"));
        assert_eq!(said.listeners.len(), 1);
    }
    let asks = waypoint(&json!({"spec": {"addresses": [{"value": "192.0.2.1"}]}}));
    let Status::Gateway(said) = status::gateway(&asks, &Actual::new(), &[(Part::Service, &refused)]) else {
        panic!("a Gateway's status");
    };
    assert_eq!(told(&said, "Programmed"), (false, "AddressNotUsable"));
}

#[test]
fn an_installation_sets_what_it_may() {
    assert!(pod_fields(r#"{"tolerations":[],"priorityClassName":"mesh"}"#).is_ok());
    assert!(pod_fields(r#"{"hostNetwork":true}"#).is_err());
    assert!(resources(r#"{"requests":{"cpu":"1"}}"#).is_ok());
    assert!(resources(r#"{"claims":[]}"#).is_err());
    assert!(resources(r#"{"limits":"1"}"#).is_err());
}
