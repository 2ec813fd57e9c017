//! Where pods stand, and what people are told of it.

use super::*;

fn pod(name: &str, change: serde_json::Value) -> Pod {
    let mut value = json!({
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"containers": [], "nodeName": "node-a"},
        "status": {"phase": "Running"},
    });
    for (section, fields) in change.as_object().expect("sections") {
        for (field, content) in fields.as_object().expect("fields") {
            value[section][field] = content.clone();
        }
    }
    serde_json::from_value(value).expect("a pod")
}

fn ambient() -> Labels {
    Labels::from([(DATAPLANE_MODE.to_owned(), AMBIENT.to_owned())])
}

fn annotated(state: &str) -> serde_json::Value {
    json!({"metadata": {"annotations": {REDIRECTION: state}}})
}

#[test]
fn each_pod_stands_somewhere() {
    let nothing = json!({});
    let out = json!({"metadata": {"labels": {DATAPLANE_MODE: "none"}}});
    let host = json!({"spec": {"hostNetwork": true}});
    let (enrolled, not) = (ambient(), Labels::new());
    for (change, namespace, expect) in [
        (&nothing, &enrolled, Some(State::Waiting)),
        (&annotated("pending"), &enrolled, Some(State::Waiting)),
        (&annotated("enabled"), &enrolled, Some(State::Captured)),
        (&out, &enrolled, Some(State::Outside)),
        (&host, &enrolled, Some(State::Outside)),
        (&nothing, &not, Some(State::Outside)),
        (&annotated("enabled"), &not, Some(State::Leaving)),
        (&annotated("pending"), &not, Some(State::Outside)),
        (&json!({"status": {"phase": "Pending"}}), &enrolled, None),
        (&json!({"status": {"phase": "Succeeded"}}), &enrolled, None),
    ] {
        let row = row(&pod("web", change.clone()), namespace);
        assert_eq!(row.map(|row| row.state), expect, "{change}");
    }
}

#[test]
fn a_table_says_what_to_do_next() {
    let rows = [pod("web-1", annotated("enabled")), pod("cart", json!({}))];
    let outcome = Outcome {
        namespace: "shop".to_owned(),
        enrolled: true,
        complete: false,
        pods: rows.iter().filter_map(|pod| row(pod, &ambient())).collect(),
    };
    assert_eq!(
        table::render(&outcome),
        "POD    NODE    STATE\n\
         web-1  node-a  captured\n\
         cart   node-a  waiting: no agent has seen it: does weft run on its node?\n\
         namespace shop has the label, and 1 pods are not captured yet: wait longer with --wait, or look at the agents of their \
         nodes\n"
    );
    assert_eq!(table::progress(&outcome.pods), "1 of 2 pods, 1 to go");
    let nobody = Outcome {
        complete: true,
        pods: Vec::new(),
        ..outcome
    };
    assert!(table::render(&nobody).starts_with("namespace shop is in the mesh; no pod"));
}
