//! Delete: preconditions, finalizers, a pod's grace, a namespace's end.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};

use super::{
    Server,
    answer::{self, Answer},
    clock,
    controllers::{self, mark},
    failure::{Failure, of_object},
    kinds::Kind,
    object, read,
    request::{Request, Target},
    store::State,
};

pub(super) fn one(
    server: &Arc<Server>,
    request: &Request,
    target: &Target,
    kind: &Kind,
) -> Result<Answer, Failure> {
    let options = options(request)?;
    let mut state = server.state();
    let key = object::key(&target.namespace, &target.name);
    let live = state
        .value(&kind.table, &key)
        .ok_or_else(|| Failure::not_found(kind, &target.name))?;
    preconditions(kind, &options, &live)?;
    if request.dry_run() {
        return Ok(answer::json_bytes(
            200,
            object::shown_value(kind, &target.version, &live),
        ));
    }
    let gone = remove(server, &mut state, kind, &key, &live, &options);
    Ok(match gone {
        Deleted::Gone(value) if !["pods", "services", "serviceaccounts"].contains(&kind.table.as_str()) => {
            let mut details = of_object(kind, &target.name);
            details["uid"] = value["metadata"]["uid"].clone();
            let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details});
            answer::json(200, &status)
        }
        Deleted::Gone(value) | Deleted::Going(value) => {
            answer::json_bytes(200, object::shown_value(kind, &target.version, &value))
        }
    })
}

pub(super) fn collection(
    server: &Arc<Server>,
    request: &Request,
    target: &Target,
    kind: &Kind,
) -> Result<Answer, Failure> {
    let options = options(request)?;
    let selector = read::selector(&request.query, target, kind)?;
    let prefix = read::prefix(target);
    let mut state = server.state();
    let table = state.table(&kind.table).objects.range(prefix.clone()..);
    let chosen = table
        .take_while(|(key, _)| key.starts_with(&prefix))
        .filter(|(_, object)| selector.matches(object));
    let chosen: Vec<(String, Value)> = chosen
        .map(|(key, object)| (key.clone(), object.value()))
        .collect();
    let mut items = Vec::new();
    for (key, live) in &chosen {
        let (Deleted::Gone(value) | Deleted::Going(value)) =
            remove(server, &mut state, kind, key, live, &options);
        items.push(value);
    }
    let revision = state.revision.to_string();
    let api_version = kind.api_version(&target.version);
    let list = json!({"kind": kind.list, "apiVersion": api_version, "metadata": {"resourceVersion": revision}, "items": items});
    Ok(answer::json(200, &list))
}

enum Deleted {
    Gone(Value),
    /// Marked; something or somebody holds it.
    Going(Value),
}

fn options(request: &Request) -> Result<Value, Failure> {
    let mut options = match request.body.is_empty() {
        true => json!({}),
        false => super::request::parse_body(request, "DeleteOptions")?,
    };
    if let Some(grace) = request.query.number("gracePeriodSeconds") {
        options["gracePeriodSeconds"] = grace.into();
    }
    Ok(options)
}

fn preconditions(kind: &Kind, options: &Value, live: &Value) -> Result<(), Failure> {
    for (field, called) in [("uid", "UID"), ("resourceVersion", "ResourceVersion")] {
        let (Some(asked), own) = (options["preconditions"][field].as_str(), &live["metadata"][field]) else {
            continue;
        };
        if asked == *own {
            continue;
        }
        let name = live["metadata"]["name"].as_str().unwrap_or_default();
        let message = format!(
            "Operation cannot be fulfilled on {} \"{name}\": the {called} in the precondition ({asked}) does not match the {called} in record ({}). The object might have been {}",
            kind.kind,
            own.as_str().unwrap_or_default(),
            if field == "uid" {
                "deleted and then recreated"
            } else {
                "modified"
            },
        );
        let mut details = json!({"name": name, "kind": kind.kind});
        if !kind.group.is_empty() {
            details["group"] = kind.group.as_str().into();
        }
        return Err(Failure::new(409, "Conflict", message).details(details));
    }
    Ok(())
}

fn remove(
    server: &Arc<Server>,
    state: &mut State,
    kind: &Kind,
    key: &str,
    live: &Value,
    options: &Value,
) -> Deleted {
    if kind.table == "namespaces" {
        return namespace(server, state, kind, key, live);
    }
    let now = server.clock.stamp();
    let mut value = live.clone();
    if kind.table == "pods" {
        let grace = grace(live, options);
        let marked = live["metadata"]["deletionGracePeriodSeconds"].as_u64();
        if marked.is_some_and(|marked| marked > 0 && grace >= marked) {
            return Deleted::Going(value);
        }
        let at = clock::stamp(server.clock.wall() + Duration::from_secs(grace));
        mark(kind, &mut value, &at, grace);
        value = stored(server, state, kind, key, value);
        if grace > 0 {
            return Deleted::Going(value);
        }
    }
    if value["metadata"]["finalizers"]
        .as_array()
        .is_some_and(|held| !held.is_empty())
    {
        if value["metadata"]["deletionTimestamp"].is_null() {
            mark(kind, &mut value, &now, 0);
            value = stored(server, state, kind, key, value);
        }
        return Deleted::Going(value);
    }
    let change = state.commit(kind, key, None);
    controllers::after(server, state, kind, &change);
    value["metadata"]["resourceVersion"] = change.revision.to_string().into();
    Deleted::Gone(value)
}

/// Writes, and gives what was stored.
fn stored(server: &Server, state: &mut State, kind: &Kind, key: &str, value: Value) -> Value {
    let change = state.commit(kind, key, Some(value));
    controllers::after(server, state, kind, &change);
    change
        .after
        .as_ref()
        .map(|object| object.value())
        .unwrap_or_default()
}

/// How many seconds a pod has: none if it is on no node or has ended.
fn grace(pod: &Value, options: &Value) -> u64 {
    let ended = ["Succeeded", "Failed"]
        .iter()
        .any(|phase| pod["status"]["phase"] == *phase);
    if !pod["spec"]["nodeName"].is_string() || ended {
        return 0;
    }
    let own = pod["spec"]["terminationGracePeriodSeconds"]
        .as_u64()
        .unwrap_or(30);
    options["gracePeriodSeconds"].as_u64().unwrap_or(own)
}

/// A namespace is marked; a little later its content goes, and when nothing holds any of it, the namespace.
fn namespace(server: &Arc<Server>, state: &mut State, kind: &Kind, name: &str, live: &Value) -> Deleted {
    let mut value = live.clone();
    if live["metadata"]["deletionTimestamp"].is_string() {
        return Deleted::Going(value);
    }
    value["metadata"]["deletionTimestamp"] = server.clock.stamp().into();
    value["status"]["phase"] = "Terminating".into();
    let value = stored(server, state, kind, name, value);
    let ends = server.clock.now() + server.options.namespace_ends;
    let (server, name, mut tick) = (server.clone(), name.to_owned(), state.tick.subscribe());
    server.clone().runtime.spawn(async move {
        server.clock.until(ends).await;
        while !controllers::finalize(&server, &mut server.state(), &name) {
            if tick.changed().await.is_err() {
                return;
            }
        }
    });
    Deleted::Going(value)
}
