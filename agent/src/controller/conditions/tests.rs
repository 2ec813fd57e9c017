//! What a status comes to, given the one that is there.

use serde_json::{Value, json};

use super::{
    Address, Condition, GatewayStatus, ListenerStatus, Parent, Status,
    merge::{cleared, merged},
};
use crate::{
    cluster::objects::{Custom, Kind},
    controller::compile::ObjectRef,
};

const NOW: &str = "2026-02-02T00:00:00Z";
const BEFORE: &str = "2026-01-01T00:00:00Z";

fn object(kind: Kind) -> ObjectRef {
    ObjectRef {
        namespace: "shop".to_owned(),
        kind,
        name: "it".to_owned(),
        uid: "u".to_owned(),
        generation: 4,
    }
}

fn live(status: Value) -> Custom {
    Custom {
        status,
        ..Custom::default()
    }
}

fn bound() -> Condition {
    Condition::new("istio.io/WaypointBound", true, "WaypointAccepted", "by gate")
}

fn written(type_: &str, status: &str, reason: &str, message: &str, since: &str) -> Value {
    json!({"type": type_, "status": status, "reason": reason, "message": message, "lastTransitionTime": since, "observedGeneration": 4})
}

#[test]
fn what_is_said_of_an_entry_is_written_once_and_taken_back() {
    for kind in [Kind::ServiceEntry, Kind::WorkloadEntry] {
        let wrong = Condition::new("ZtunnelAccepted", false, "NoAddress", "it leads nowhere");
        let said = |conditions| Status::Conditions(conditions);
        let wanted = said(vec![wrong, bound()]);
        let status = merged(&object(kind), &live(json!({})), &wanted, BEFORE).expect("it is new");
        assert_eq!(status["conditions"].as_array().map(Vec::len), Some(2));
        assert_eq!(
            merged(&object(kind), &live(status.clone()), &wanted, NOW),
            None,
            "{kind:?}"
        );
        let mended = merged(&object(kind), &live(status), &said(vec![bound()]), NOW).expect("less is said");
        let types = mended["conditions"].as_array().into_iter().flatten();
        let types: Vec<_> = types.filter_map(|it| it["type"].as_str()).collect();
        assert_eq!(types, ["istio.io/WaypointBound"]);
    }
}

#[test]
fn what_is_said_already_is_not_written() {
    let said = written(
        "istio.io/WaypointBound",
        "True",
        "WaypointAccepted",
        "by gate",
        BEFORE,
    );
    let other = json!({"type": "Other", "status": "True"});
    let wanted = Status::Conditions(vec![bound()]);
    let check = |conditions: Value| {
        let live = live(json!({ "conditions": conditions }));
        merged(&object(Kind::Service), &live, &wanted, NOW)
    };
    assert_eq!(check(json!([other, said])), None);
    // The time of the last change stays, unless the status is another.
    let mut older = said.clone();
    older["observedGeneration"] = 3.into();
    assert_eq!(check(json!([other, older])), Some(json!({"conditions": [said]})));
    let mut not = said.clone();
    not["status"] = "False".into();
    let mut now = said.clone();
    now["lastTransitionTime"] = NOW.into();
    assert_eq!(check(json!([not])), Some(json!({"conditions": [now]})));
    assert_eq!(check(Value::Null), Some(json!({"conditions": [now]})));
}

#[test]
fn a_list_with_one_owner_keeps_what_others_said() {
    let said = written("WaypointAccepted", "True", "Accepted", "m", BEFORE);
    let other = json!({"type": "Reconciled", "status": "True"});
    let object = object(Kind::AuthorizationPolicy);
    let there = live(json!({"conditions": [other, said]}));
    let nothing = merged(&object, &there, &Status::Conditions(Vec::new()), NOW);
    assert_eq!(nothing, Some(json!({"conditions": [other]})));
    let there = live(json!({"conditions": [other]}));
    assert_eq!(
        merged(&object, &there, &Status::Conditions(Vec::new()), NOW),
        None
    );
    let accepted = Condition::new("WaypointAccepted", true, "Accepted", "m");
    let mut now = said;
    now["lastTransitionTime"] = NOW.into();
    let added = merged(&object, &there, &Status::Conditions(vec![accepted]), NOW);
    assert_eq!(added, Some(json!({"conditions": [other, now]})));
}

#[test]
fn a_routes_other_controllers_are_left_alone() {
    let parent = json!({"group": "", "kind": "Service", "name": "cart"});
    let wanted = Status::Parents(vec![Parent {
        parent_ref: parent.clone(),
        conditions: vec![Condition::new("Accepted", true, "Accepted", "m")],
    }]);
    let theirs =
        json!({"parentRef": {"name": "gateway"}, "controllerName": "example.com/other", "conditions": []});
    let ours = |since: &str| {
        json!({"parentRef": parent, "controllerName": "weft.dev/mesh-controller",
            "conditions": [written("Accepted", "True", "Accepted", "m", since)]})
    };
    let object = object(Kind::HttpRoute);
    let check =
        |parents: Value, wanted: &Status| merged(&object, &live(json!({ "parents": parents })), wanted, NOW);
    assert_eq!(
        check(json!([theirs]), &wanted),
        Some(json!({"parents": [theirs, ours(NOW)]}))
    );
    assert_eq!(check(json!([theirs, ours(BEFORE)]), &wanted), None);
    // It has that parent no more.
    let none = Status::Parents(Vec::new());
    assert_eq!(
        check(json!([theirs, ours(BEFORE)]), &none),
        Some(json!({"parents": [theirs]}))
    );
}

#[test]
fn a_gateways_status_is_written_once() {
    let conditions = || vec![Condition::new("Accepted", true, "Accepted", "m")];
    let wanted = Status::Gateway(GatewayStatus {
        conditions: conditions(),
        listeners: vec![ListenerStatus {
            name: "mesh".to_owned(),
            attached_routes: 0,
            conditions: conditions(),
        }],
        addresses: vec![Address {
            type_: "IPAddress",
            value: "10.96.0.9".to_owned(),
        }],
    });
    let object = object(Kind::Gateway);
    let first = merged(&object, &live(Value::Null), &wanted, BEFORE).expect("nothing was said");
    assert_eq!(
        first["listeners"][0]["conditions"][0]["lastTransitionTime"],
        BEFORE
    );
    let mut stored = first.clone();
    // As the API has it.
    stored["listeners"][0]
        .as_object_mut()
        .expect("fields")
        .remove("supportedKinds");
    stored["conditions"]
        .as_array_mut()
        .expect("a list")
        .push(json!({"type": "Theirs", "status": "True"}));
    assert_eq!(merged(&object, &live(stored.clone()), &wanted, NOW), None);
    stored["addresses"][0]["value"] = "10.96.0.10".into();
    assert_eq!(merged(&object, &live(stored), &wanted, NOW), Some(first));
}

#[test]
fn what_we_said_is_taken_back_and_nothing_else() {
    let by = |manager: &str, status: Value| {
        let fields = json!({"f:status": {"f:conditions": {}}});
        let entry =
            json!([{"manager": manager, "operation": "Apply", "subresource": "status", "fieldsV1": fields}]);
        let mut live = live(status);
        live.metadata.managed_fields = serde_json::from_value(entry).expect("managed fields");
        live
    };
    let other = json!({"type": "Reconciled", "status": "True"});
    let accepted = written("ZtunnelAccepted", "True", "Accepted", "in force", BEFORE);
    let both = json!({"conditions": [other, accepted]});
    let policy = Kind::AuthorizationPolicy;
    assert_eq!(
        cleared(policy, &by("weft", both.clone())),
        Some(json!({"conditions": [other]}))
    );
    assert_eq!(cleared(policy, &by("istiod", both)), None, "another mesh's");
    // The API takes away what we sent before and send no more.
    let captured =
        json!({"conditions": [written("weft.dev/PodsCaptured", "True", "AllCaptured", "m", BEFORE)]});
    let nothing = Some(json!({"conditions": []}));
    assert_eq!(cleared(Kind::Namespace, &by("weft", captured)), nothing);
    assert_eq!(cleared(Kind::Service, &by("weft", Value::Null)), nothing);
    assert_eq!(cleared(Kind::Namespace, &by("kubelet", Value::Null)), None);
    let gateway = json!({"conditions": [written("Programmed", "True", "Programmed", "m", BEFORE)], "addresses": [{"value": "10.0.0.1"}]});
    assert_eq!(
        cleared(Kind::Gateway, &by("weft", gateway.clone())),
        Some(json!({"conditions": [], "listeners": [], "addresses": []}))
    );
    assert_eq!(cleared(Kind::Gateway, &by("envoy", gateway)), None);
    let parent = |controller: &str| json!({"parentRef": {"name": "web"}, "controllerName": controller, "conditions": []});
    let route = json!({"parents": [parent("weft.dev/mesh-controller"), parent("theirs")]});
    // They have written the list after us.
    let left = Some(json!({"parents": [parent("theirs")]}));
    assert_eq!(cleared(Kind::HttpRoute, &by("theirs", route)), left);
    let theirs = json!({"parents": [parent("theirs")]});
    assert_eq!(cleared(Kind::HttpRoute, &by("weft", theirs)), None);
}
