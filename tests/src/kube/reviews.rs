//! What is asked by a create and not stored: reviews and token requests; bindings, evictions and scales, which write
//! something else than they are.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use serde_json::{Value, json};

use super::{
    Server,
    access::{self, User, Wish},
    answer::{self, Answer},
    controllers, delete,
    failure::{Cause, Failure},
    kinds::Kind,
    managed::{self, Writer},
    object,
    request::{Request, Target, parse_body},
    structure::Structure,
    tokens::{self, Wanted},
};

pub(super) fn answer(
    server: &Arc<Server>,
    request: &Request,
    target: &Target,
    kind: &Kind,
) -> Result<Answer, Failure> {
    if target.sub == "scale" {
        return scale(server, request, target, kind);
    }
    if request.method != "POST" {
        return Err(Failure::method_not_allowed());
    }
    let body = parse_body(request, &kind.kind)?;
    match (target.sub.as_str(), kind.plural.as_str()) {
        ("token", _) => token(server, request, target, kind, body),
        ("binding", _) => bind(server, target, kind, &body),
        ("eviction", _) => {
            delete::one(server, request, target, kind)?;
            let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
            Ok(answer::json(201, &status))
        }
        (_, "tokenreviews") => token_review(server, request, kind, body),
        (_, "selfsubjectreviews") => Ok(self_review(server, request)),
        (_, "selfsubjectaccessreviews") => access_review(server, request, kind, body, Some(&request.user)),
        (_, "subjectaccessreviews" | "localsubjectaccessreviews") => {
            access_review(server, request, kind, body, None)
        }
        _ => Err(Failure::method_not_allowed()),
    }
}

/// A review as it is given back: with its status, and who sent it noted in `managedFields`.
fn reviewed(server: &Server, request: &Request, kind: &Kind, mut body: Value, status: Value) -> Answer {
    let now = server.clock.stamp();
    let api_version = kind.preferred();
    let writer = Writer {
        manager: request.manager(),
        api_version: &api_version,
        subresource: "",
        now: &now,
    };
    body["metadata"] = json!({});
    managed::update(Structure::BuiltIn(kind), None, &mut body, &writer);
    body["kind"] = kind.kind.as_str().into();
    body["apiVersion"] = api_version.into();
    body["status"] = status;
    answer::json(201, &body)
}

fn shown_user(user: &User) -> Value {
    let mut shown = json!({"username": user.name, "groups": user.groups});
    if !user.uid.is_empty() {
        shown["uid"] = user.uid.as_str().into();
    }
    for (key, value) in &user.extra {
        shown["extra"][key] = json!([value]);
    }
    shown
}

fn texts(list: &Value) -> Vec<String> {
    let all = list.as_array().into_iter().flatten();
    all.filter_map(|one| one.as_str().map(Into::into)).collect()
}

fn token_review(server: &Server, request: &Request, kind: &Kind, body: Value) -> Result<Answer, Failure> {
    let token = body["spec"]["token"].as_str().unwrap_or_default().to_owned();
    if token.is_empty() {
        return Err(Failure::bad_request(
            "token is required for TokenReview in authentication",
        ));
    }
    let told = server
        .reviews
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .get(&token)
        .cloned();
    if let Some(status) = told {
        return Ok(reviewed(server, request, kind, body, status));
    }
    let mut audiences = texts(&body["spec"]["audiences"]);
    if audiences.is_empty() {
        audiences.push(tokens::ISSUER.into());
    }
    let times = (server.clock.now(), server.clock.wall());
    let reviewed_as = tokens::review(&mut server.state(), &token, &audiences, times);
    let status = match reviewed_as {
        Ok((user, common)) => json!({"authenticated": true, "user": shown_user(&user), "audiences": common}),
        Err(error) => json!({"user": {}, "error": error}),
    };
    Ok(reviewed(server, request, kind, body, status))
}

fn self_review(server: &Server, request: &Request) -> Answer {
    answer::json(
        201,
        &json!({
            "kind": "SelfSubjectReview", "apiVersion": "authentication.k8s.io/v1",
            "metadata": {"creationTimestamp": server.clock.stamp()},
            "status": {"userInfo": shown_user(&request.user)},
        }),
    )
}

fn access_review(
    server: &Server,
    request: &Request,
    kind: &Kind,
    body: Value,
    own: Option<&User>,
) -> Result<Answer, Failure> {
    let spec = &body["spec"];
    let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    if resource.is_object() == path.is_object() {
        let what = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
        let cause = Cause::invalid("spec.resourceAttributes", "null", what);
        return Err(Failure::invalid("authorization.k8s.io", "", "", &[cause]));
    }
    let user = own.cloned().unwrap_or_else(|| User {
        name: spec["user"].as_str().unwrap_or_default().into(),
        groups: texts(&spec["groups"]),
        ..User::default()
    });
    let text = |value: &'_ Value, field: &str| value[field].as_str().unwrap_or_default().to_owned();
    let of = if resource.is_object() { resource } else { path };
    let (verb, group, namespace) = (text(of, "verb"), text(of, "group"), text(of, "namespace"));
    let (name, path, sub) = (text(of, "name"), text(of, "path"), text(of, "subresource"));
    let plural = text(of, "resource");
    let wish = Wish {
        verb: &verb,
        group: &group,
        resource: if sub.is_empty() {
            plural
        } else {
            format!("{plural}/{sub}")
        },
        namespace: &namespace,
        name: &name,
        path: &path,
    };
    let status = match access::allowed(&server.state(), &user, &wish) {
        None => json!({"allowed": false}),
        Some(reason) if reason.is_empty() => json!({"allowed": true}),
        Some(reason) => json!({"allowed": true, "reason": reason}),
    };
    Ok(reviewed(server, request, kind, body, status))
}

fn token(
    server: &Server,
    request: &Request,
    target: &Target,
    kind: &Kind,
    mut body: Value,
) -> Result<Answer, Failure> {
    let seconds = body["spec"]["expirationSeconds"].as_u64().unwrap_or(3600);
    let mut state = server.state();
    let account = state.value("serviceaccounts", &object::key(&target.namespace, &target.name));
    let account = account.ok_or_else(|| Failure::not_found(kind, &target.name))?;
    if seconds < 600 {
        let what = "may not specify a duration less than 10 minutes";
        let cause = Cause::invalid("spec.expirationSeconds", seconds, what);
        return Err(Failure::invalid(
            "authentication.k8s.io",
            "TokenRequest",
            "",
            &[cause],
        ));
    }
    let mut audiences = texts(&body["spec"]["audiences"]);
    if audiences.is_empty() {
        audiences.push(tokens::ISSUER.into());
    }
    let bound = body["spec"]["boundObjectRef"].clone();
    let pod = bound
        .is_object()
        .then(|| bound_pod(&state, target, &bound))
        .transpose()?;
    let uid = account["metadata"]["uid"].as_str().unwrap_or_default();
    let wanted = Wanted {
        namespace: &target.namespace,
        account: (&target.name, uid),
        audiences,
        lasts: Duration::from_secs(seconds),
        pod: pod.as_ref(),
        now: server.clock.wall(),
    };
    let (token, expires) = tokens::issue(&mut state, &wanted);
    body["spec"] =
        json!({"audiences": wanted.audiences, "expirationSeconds": seconds, "boundObjectRef": bound});
    let (now, api_version) = (server.clock.stamp(), "authentication.k8s.io/v1");
    let writer = Writer {
        manager: request.manager(),
        api_version,
        subresource: "token",
        now: &now,
    };
    let mut value = json!({"metadata": {"name": target.name, "namespace": target.namespace, "uid": uid, "creationTimestamp": now}, "spec": body["spec"]});
    managed::update(Structure::BuiltIn(kind), None, &mut value, &writer);
    value["kind"] = "TokenRequest".into();
    value["apiVersion"] = api_version.into();
    value["status"] = json!({"token": token, "expirationTimestamp": expires});
    Ok(answer::json(201, &value))
}

/// The pod that a token is to be bound to.
fn bound_pod(state: &super::store::State, target: &Target, bound: &Value) -> Result<Value, Failure> {
    let name = bound["name"].as_str().unwrap_or_default();
    let kind = state
        .kind("", "v1", "pods")
        .cloned()
        .ok_or_else(Failure::no_such_resource)?;
    let pod = state.value("pods", &object::key(&target.namespace, name));
    let pod = pod.ok_or_else(|| Failure::not_found(&kind, name))?;
    if pod["spec"]["serviceAccountName"] != target.name.as_str() {
        return Err(Failure::bad_request(format!(
            "cannot bind token for serviceaccount \"{}\" to pod running with different serviceaccount name.",
            target.name
        )));
    }
    let uid = bound["uid"].as_str().unwrap_or_default();
    if !uid.is_empty() && pod["metadata"]["uid"] != uid {
        let message = format!(
            "Operation cannot be fulfilled on Pod \"{name}\": the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        return Err(Failure::new(409, "Conflict", message).details(json!({"name": name, "kind": "Pod"})));
    }
    Ok(pod)
}

/// Puts a pod on a node, as the scheduler does; it gets the node's topology labels.
fn bind(server: &Server, target: &Target, kind: &Kind, body: &Value) -> Result<Answer, Failure> {
    let mut state = server.state();
    let key = object::key(&target.namespace, &target.name);
    let mut pod = state
        .value("pods", &key)
        .ok_or_else(|| Failure::not_found(kind, &target.name))?;
    let node = body["target"]["name"].as_str().unwrap_or_default();
    if let Some(bound) = pod["spec"]["nodeName"].as_str() {
        let why = format!("pod {} is already assigned to node \"{bound}\"", target.name);
        return Err(Failure::conflict(kind, &target.name, &why));
    }
    pod["spec"]["nodeName"] = node.into();
    let labels = state
        .object("nodes", node)
        .map(|node| node.labels.clone())
        .unwrap_or_default();
    for (label, value) in labels {
        if ["topology.kubernetes.io/zone", "topology.kubernetes.io/region"].contains(&label.as_str()) {
            pod["metadata"]["labels"][label] = value.into();
        }
    }
    let scheduled = json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": server.clock.stamp()});
    match pod["status"]["conditions"].as_array_mut() {
        Some(conditions) => conditions.push(scheduled),
        None => pod["status"]["conditions"] = json!([scheduled]),
    }
    let change = state.commit(kind, &key, Some(pod));
    controllers::after(server, &mut state, kind, &change);
    let status =
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Ok(answer::json(201, &status))
}

/// How many replicas, read and written.
fn scale(server: &Server, request: &Request, target: &Target, kind: &Kind) -> Result<Answer, Failure> {
    let mut state = server.state();
    let key = object::key(&target.namespace, &target.name);
    let mut live = state
        .value(&kind.table, &key)
        .ok_or_else(|| Failure::not_found(kind, &target.name))?;
    let shown = |live: &Value| {
        let metadata = &live["metadata"];
        json!({
            "kind": "Scale", "apiVersion": "autoscaling/v1",
            "metadata": {"name": metadata["name"], "namespace": metadata["namespace"], "uid": metadata["uid"],
                "resourceVersion": metadata["resourceVersion"], "creationTimestamp": metadata["creationTimestamp"]},
            "spec": {"replicas": live["spec"]["replicas"]},
            "status": {"replicas": live["status"]["replicas"].as_u64().unwrap_or(0)},
        })
    };
    let mut wanted = shown(&live);
    match request.method.as_str() {
        "GET" => return Ok(answer::json(200, &wanted)),
        "PUT" => wanted = parse_body(request, "Scale")?,
        "PATCH" => wanted = super::patch::Patch::parse(request, kind)?.onto(kind, &wanted)?,
        _ => return Err(Failure::method_not_allowed()),
    }
    if wanted["spec"]["replicas"] != live["spec"]["replicas"] {
        live["spec"]["replicas"] = wanted["spec"]["replicas"].clone();
        let generation = live["metadata"]["generation"].as_u64().unwrap_or(0);
        live["metadata"]["generation"] = (generation + 1).into();
        let change = state.commit(kind, &key, Some(live));
        controllers::after(server, &mut state, kind, &change);
        live = change
            .after
            .as_ref()
            .map(|object| object.value())
            .unwrap_or_default();
    }
    Ok(answer::json(200, &shown(&live)))
}
