//! What a Gateway says, who is bound to it, and what people are told of that.

use std::collections::BTreeMap;

use clap::Parser as _;
use kube::core::ObjectMeta;
use serde_json::{Value, json};

use super::{
    apply::{ApplyWaypointArgs, said},
    delete, read, table,
};
use crate::cluster::{labels, objects::Custom};

fn gateway(change: &Value) -> Custom {
    let mut object = json!({
        "metadata": {"name": "waypoint", "namespace": "shop", "generation": 2},
        "spec": {"gatewayClassName": "weft-waypoint", "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}]},
        "status": {"addresses": [{"type": "IPAddress", "value": "10.96.0.9"}], "conditions": [
            {"type": "Accepted", "status": "True", "reason": "Accepted", "message": "it is one", "observedGeneration": 2},
            {"type": "Programmed", "status": "True", "reason": "Programmed", "message": "a pod", "observedGeneration": 2},
        ]},
    });
    json_merge(&mut object, change);
    serde_json::from_value(object).expect("a Gateway")
}

fn json_merge(object: &mut Value, change: &Value) {
    match (object, change) {
        (Value::Object(fields), Value::Object(change)) => {
            for (key, value) in change {
                json_merge(fields.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (object, change) => *object = change.clone(),
    }
}

#[test]
fn a_gateway_says_whether_it_takes_requests() {
    let conditions = |accepted: &str, programmed: &str, generation: i64| {
        json!({"status": {"conditions": [
            {"type": "Accepted", "status": accepted, "reason": "UnsupportedAddress", "message": "a", "observedGeneration": generation},
            {"type": "Programmed", "status": programmed, "reason": "Pending", "message": "p", "observedGeneration": generation},
        ]}})
    };
    for (change, expect) in [
        (json!({}), Some((true, "Programmed"))),
        (conditions("True", "False", 2), Some((false, "Pending"))),
        (
            conditions("False", "False", 2),
            Some((false, "UnsupportedAddress")),
        ),
        // Of the spec before.
        (conditions("True", "True", 1), Some((false, "Waiting"))),
        (json!({"status": null}), Some((false, "Waiting"))),
        // Another mesh's waypoint is one, too.
        (
            json!({"spec": {"gatewayClassName": "other"}}),
            Some((true, "Programmed")),
        ),
        (
            json!({"spec": {"gatewayClassName": "other", "listeners": [{"protocol": "HTTP"}]}}),
            None,
        ),
    ] {
        let read = read::waypoint(&gateway(&change));
        let said = read.as_ref().map(|it| (it.programmed, it.reason.as_str()));
        assert_eq!(said, expect, "{change}");
    }
}

#[test]
fn a_services_own_label_goes_before_its_namespaces() {
    let object = |namespace: &str, name: &str, labels: &[(&str, &str)]| ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(namespace.to_owned()).filter(|it| !it.is_empty()),
        labels: Some(
            labels
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
        ),
        ..ObjectMeta::default()
    };
    let namespaces = [
        object("", "shop", &[(labels::USE_WAYPOINT, "waypoint")]),
        object(
            "",
            "bank",
            &[
                (labels::USE_WAYPOINT, "gate"),
                (labels::USE_WAYPOINT_NAMESPACE, "shop"),
            ],
        ),
        object("", "plain", &[]),
    ];
    let services = [
        object("shop", "cart", &[]),
        object("shop", "own", &[(labels::USE_WAYPOINT, "own")]),
        object("shop", "out", &[(labels::USE_WAYPOINT, "none")]),
        object("shop", "waypoint", &[(labels::GATEWAY_NAME, "waypoint")]),
        object("bank", "vault", &[]),
        object("plain", "web", &[]),
        object(
            "plain",
            "far",
            &[
                (labels::USE_WAYPOINT, "waypoint"),
                (labels::USE_WAYPOINT_NAMESPACE, "shop"),
            ],
        ),
    ];
    let key = |name: &str| ("shop".to_owned(), name.to_owned());
    assert_eq!(
        read::bound(&services, &namespaces),
        BTreeMap::from([
            (
                key("waypoint"),
                vec!["shop/cart".to_owned(), "plain/far".to_owned()]
            ),
            (key("own"), vec!["shop/own".to_owned()]),
            (key("gate"), vec!["bank/vault".to_owned()]),
        ])
    );
}

#[test]
fn a_table_says_why_one_takes_no_requests() {
    let mut ready = read::waypoint(&gateway(&json!({}))).expect("a waypoint");
    ready.replicas = Some(read::Replicas { ready: 2, wanted: 2 });
    ready.services = vec!["shop/cart".to_owned()];
    let waiting = json!({"metadata": {"name": "late"}, "status": null});
    let waiting = read::waypoint(&gateway(&waiting)).expect("a waypoint");
    assert_eq!(
        table::render(&[ready, waiting], None),
        "NAMESPACE  NAME      CLASS          FOR      PROGRAMMED    REPLICAS  ADDRESS    SERVICES\n\
         shop       waypoint  weft-waypoint  service  yes           2/2       10.96.0.9  1\n\
         shop       late      weft-waypoint  service  no (Waiting)  -         -          0\n\
         shop/late: no controller has looked at it: does weft run, and is the class its own?\n"
    );
    assert!(table::render(&[], Some("shop")).contains("no waypoint in namespace shop"));
}

#[derive(clap::Parser)]
struct Line {
    #[command(flatten)]
    args: ApplyWaypointArgs,
}

#[test]
fn what_is_applied_and_what_is_said() {
    let args = |line: &[&str]| Line::try_parse_from([&["x"], line].concat()).map(|line| line.args);
    assert!(args(&["Upper"]).is_err() && args(&["1st"]).is_err() && args(&["a.b"]).is_err());
    let enrolling = args(&["-n", "shop", "--enroll-namespace"]).expect("arguments");
    let ready = read::waypoint(&gateway(&json!({}))).expect("a waypoint");
    assert!(said(&enrolling, &ready, true).ends_with("the services of namespace shop go through it\n"));
    let waiting = read::waypoint(&gateway(&json!({"status": null}))).expect("a waypoint");
    assert!(said(&enrolling, &waiting, false).contains("is not sent through it"));
    let bound: Vec<_> = (0..12).map(|i| format!("shop/s{i}")).collect();
    assert!(delete::warning("shop", "waypoint", &bound).contains("12 services"));
    assert!(delete::warning("shop", "waypoint", &bound).contains("shop/s9 and 2 more"));
}
