//! Create, update and patch: decode, default, check, note who owns what, store.

use serde_json::{Value, json};

use super::{
    Server,
    answer::{self, Answer},
    controllers, decode, defaults,
    failure::Failure,
    kinds::Kind,
    managed::{self, Writer},
    object, patch as patches,
    request::{Request, Target, parse_body},
    store::State,
    structure::Structure,
    validate,
};

/// An object on its way in, without `kind` and `apiVersion`.
pub(super) struct Draft {
    pub(super) value: Value,
    /// Texts of `Warning` headers.
    pub(super) warnings: Vec<String>,
}

/// Who owns the fields of a draft.
#[derive(Clone, Copy, PartialEq)]
enum Tracked {
    /// To be found by comparison with what there was.
    Compare,
    /// Server-side apply has noted it.
    Applied,
}

/// A request, what it is for, and what there is: all that a write needs.
pub(super) struct Write<'a> {
    pub(super) server: &'a Server,
    pub(super) request: &'a Request,
    pub(super) target: &'a Target,
    pub(super) kind: &'a Kind,
}

pub(super) fn create(
    server: &Server,
    request: &Request,
    target: &Target,
    kind: &Kind,
) -> Result<Answer, Failure> {
    let write = Write {
        server,
        request,
        target,
        kind,
    };
    let body = parse_body(request, &kind.kind)?;
    let draft = decode::decode(&write, body)?;
    let mut state = server.state();
    write.insert(&mut state, draft, Tracked::Compare)
}

pub(super) fn update(
    server: &Server,
    request: &Request,
    target: &Target,
    kind: &Kind,
) -> Result<Answer, Failure> {
    let write = Write {
        server,
        request,
        target,
        kind,
    };
    let body = parse_body(request, &kind.kind)?;
    let draft = decode::decode(&write, body)?;
    let mut state = server.state();
    let live = write.live(&state)?;
    write.replace(&mut state, &live, draft, Tracked::Compare)
}

pub(super) fn patch(
    server: &Server,
    request: &Request,
    target: &Target,
    kind: &Kind,
) -> Result<Answer, Failure> {
    let write = Write {
        server,
        request,
        target,
        kind,
    };
    if target.name.is_empty() {
        return Err(Failure::method_not_allowed());
    }
    if request.content_type == "application/apply-patch+yaml" {
        return apply(&write);
    }
    let patch = patches::Patch::parse(request, kind)?;
    let mut state = server.state();
    let live = write.live(&state)?;
    let shown = write.shown_value(live.clone());
    let patched = patch.onto(kind, &shown)?;
    patches::check_strings(&patched)?;
    let draft = decode::decode(&write, patched)?;
    write.replace(&mut state, &live, draft, Tracked::Compare)
}

fn apply(write: &Write<'_>) -> Result<Answer, Failure> {
    let request = write.request;
    let applied = patches::applied(request)?;
    let mut draft = decode::decode(write, applied)?;
    let sub = write.target.sub.as_str();
    restrict(&mut draft.value, write, sub);
    let structure = Structure::of(write.kind, &write.target.version);
    let now = write.server.clock.stamp();
    let api_version = write.kind.api_version(&write.target.version);
    let writer = write.writer(&now, &api_version);
    let force = request.query.flag("force");
    let version = draft.value["metadata"]
        .as_object_mut()
        .and_then(|metadata| metadata.remove("resourceVersion"));
    let mut state = write.server.state();
    let live = match write.live(&state) {
        Ok(live) => live,
        Err(_) if sub.is_empty() => {
            draft.value = managed::apply(structure, &json!({"metadata": {}}), &draft.value, &writer, force)?;
            return write.insert(&mut state, draft, Tracked::Applied);
        }
        Err(absent) => return Err(absent),
    };
    draft.value = managed::apply(structure, &live, &draft.value, &writer, force)?;
    if let Some(version) = version {
        draft.value["metadata"]["resourceVersion"] = version;
    }
    write.replace(&mut state, &live, draft, Tracked::Applied)
}

/// What an apply may own here: the status through its subresource alone.
fn restrict(value: &mut Value, write: &Write<'_>, sub: &str) {
    let Some(map) = value.as_object_mut() else { return };
    if sub == "status" {
        map.retain(|key, _| ["metadata", "status"].contains(&key.as_str()));
    } else if write.kind.has_status(&write.target.version) {
        map.remove("status");
    }
}

impl Write<'_> {
    fn key(&self, name: &str) -> String {
        object::key(&self.target.namespace, name)
    }

    fn live(&self, state: &State) -> Result<Value, Failure> {
        let found = state.value(&self.kind.table, &self.key(&self.target.name));
        found.ok_or_else(|| Failure::not_found(self.kind, &self.target.name))
    }

    /// As the API shows it in the version that was asked for.
    fn shown_value(&self, value: Value) -> Value {
        let mut shown = if self.kind.group == "events.k8s.io" {
            super::events::to_new(value)
        } else {
            value
        };
        shown["kind"] = self.kind.kind.as_str().into();
        shown["apiVersion"] = self.kind.api_version(&self.target.version).into();
        shown
    }

    fn writer<'w>(&'w self, now: &'w str, api_version: &'w str) -> Writer<'w> {
        Writer {
            manager: self.request.manager(),
            api_version,
            subresource: &self.target.sub,
            now,
        }
    }

    /// Tells who owns what, unless apply has.
    fn track(&self, live: Option<&Value>, value: &mut Value, tracked: Tracked) {
        if tracked == Tracked::Applied {
            return;
        }
        let (now, api_version) = (
            self.server.clock.stamp(),
            self.kind.api_version(&self.target.version),
        );
        let structure = Structure::of(self.kind, &self.target.version);
        managed::update(structure, live, value, &self.writer(&now, &api_version));
    }

    fn insert(&self, state: &mut State, draft: Draft, tracked: Tracked) -> Result<Answer, Failure> {
        let Draft { mut value, warnings } = draft;
        defaults::tidy(self.kind, &mut value);
        self.name(state, &mut value)?;
        let name = value["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        if self.kind.namespaced {
            value["metadata"]["namespace"] = self.target.namespace.as_str().into();
            self.check_namespace(state, &name)?;
        }
        defaults::new(
            self.kind,
            &self.target.version,
            &mut value,
            &self.server.clock.stamp(),
            state,
        );
        self.track(None, &mut value, tracked);
        defaults::allocate(self.kind, &mut value, state);
        validate::object(self.kind, &self.target.version, None, &value)?;
        if state.object(&self.kind.table, &self.key(&name)).is_some() {
            return Err(Failure::already_exists(self.kind, &name));
        }
        if self.request.dry_run() {
            let shown = object::shown_value(self.kind, &self.target.version, &value);
            return Ok(warned(answer::json_bytes(201, shown), &warnings));
        }
        let change = state.commit(self.kind, &self.key(&name), Some(value));
        let stored = change
            .after
            .as_ref()
            .map(|object| object.shown(self.kind, &self.target.version));
        controllers::after(self.server, state, self.kind, &change);
        Ok(warned(
            answer::json_bytes(201, stored.unwrap_or_default()),
            &warnings,
        ))
    }

    /// The name, given or made up.
    fn name(&self, state: &mut State, value: &mut Value) -> Result<(), Failure> {
        let metadata = &mut value["metadata"];
        if !self.target.name.is_empty() {
            metadata["name"] = self.target.name.as_str().into();
        }
        if metadata["name"].as_str().is_some_and(|name| !name.is_empty()) {
            return Ok(());
        }
        let Some(prefix) = metadata["generateName"].as_str() else {
            let cause = super::failure::Cause::required("metadata.name", "name or generateName is required");
            return Err(Failure::invalid(&self.kind.group, &self.kind.kind, "", &[cause]));
        };
        metadata["name"] = format!("{prefix}{}", state.random.suffix()).into();
        Ok(())
    }

    fn check_namespace(&self, state: &State, name: &str) -> Result<(), Failure> {
        let namespace = &self.target.namespace;
        let namespaces = state.kind("", "v1", "namespaces").cloned();
        let Some(found) = state.value("namespaces", namespace) else {
            return Err(namespaces.map_or_else(Failure::no_such_resource, |kind| {
                Failure::not_found(&kind, namespace)
            }));
        };
        if found["metadata"]["deletionTimestamp"].is_null() {
            return Ok(());
        }
        let message = format!(
            "{} \"{name}\" is forbidden: unable to create new content in namespace {namespace} because it is being terminated",
            self.kind.qualified()
        );
        let cause = super::failure::Cause::new(
            "NamespaceTerminating",
            "metadata.namespace",
            format!("namespace {namespace} is being terminated"),
        );
        let details = super::failure::of_object(self.kind, name);
        Err(Failure::new(403, "Forbidden", message)
            .details(details)
            .causes(&[cause]))
    }

    fn replace(
        &self,
        state: &mut State,
        live: &Value,
        draft: Draft,
        tracked: Tracked,
    ) -> Result<Answer, Failure> {
        let Draft { mut value, warnings } = draft;
        self.check_lock(live, &value)?;
        self.keep(live, &mut value);
        defaults::changed(self.kind, &self.target.version, live, &mut value);
        validate::object(self.kind, &self.target.version, Some(live), &value)?;
        self.track(Some(live), &mut value, tracked);
        let counted = |value: &Value| {
            let mut rest = value.as_object().cloned().unwrap_or_default();
            rest.retain(|key, _| !["metadata", "status"].contains(&key.as_str()));
            rest
        };
        if self.kind.has_generation() && counted(live) != counted(&value) {
            let generation = live["metadata"]["generation"].as_u64().unwrap_or(0);
            value["metadata"]["generation"] = (generation + 1).into();
        }
        let shown = |value: &Value| object::shown_value(self.kind, &self.target.version, value);
        if value == *live || self.request.dry_run() {
            let value = self.shown_value(value);
            let bytes = serde_json::to_vec(&value).unwrap_or_default();
            return Ok(warned(answer::json_bytes(200, bytes), &warnings));
        }
        let key = self.key(&self.target.name);
        let metadata = &value["metadata"];
        let released = metadata["finalizers"].as_array().is_none_or(Vec::is_empty)
            && metadata["deletionTimestamp"].is_string()
            && metadata["deletionGracePeriodSeconds"].as_u64().unwrap_or(0) == 0
            && self.kind.table != "namespaces";
        if released {
            let change = state.commit(self.kind, &key, None);
            controllers::after(self.server, state, self.kind, &change);
            return Ok(warned(answer::json_bytes(200, shown(&value)), &warnings));
        }
        let change = state.commit(self.kind, &key, Some(value));
        let stored = change
            .after
            .as_ref()
            .map(|object| object.shown(self.kind, &self.target.version));
        controllers::after(self.server, state, self.kind, &change);
        Ok(warned(
            answer::json_bytes(200, stored.unwrap_or_default()),
            &warnings,
        ))
    }

    /// The optimistic lock and the uid.
    fn check_lock(&self, live: &Value, value: &Value) -> Result<(), Failure> {
        let (kind, name) = (self.kind, &self.target.name);
        let text =
            |value: &Value, field: &str| value["metadata"][field].as_str().unwrap_or_default().to_owned();
        let (uid, live_uid) = (text(value, "uid"), text(live, "uid"));
        if !uid.is_empty() && uid != live_uid {
            let registry = match kind.group.as_str() {
                "" => kind.plural.clone(),
                _ if kind.custom => format!("{}/{}", kind.group, kind.plural),
                _ => kind.plural.clone(),
            };
            let why = format!(
                "StorageError: invalid object, Code: 4, Key: /registry/{registry}/{}, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: {uid}, UID in object meta: {live_uid}",
                self.key(name)
            );
            return Err(Failure::conflict(kind, name, &why));
        }
        let version = text(value, "resourceVersion");
        let must = kind.custom || kind.plural == "leases";
        if version.is_empty() && must && self.request.method == "PUT" {
            let what = "must be specified for an update";
            let cause = super::failure::Cause::invalid("metadata.resourceVersion", 0, what);
            return Err(Failure::invalid(&kind.group, &kind.plural, name, &[cause]));
        }
        if !version.is_empty() && version != text(live, "resourceVersion") {
            return Err(Failure::modified(kind, name));
        }
        Ok(())
    }

    /// What an update cannot change: what the server set, and the half of the object that it is not for.
    fn keep(&self, live: &Value, value: &mut Value) {
        const SERVER: [&str; 7] = [
            "name",
            "namespace",
            "uid",
            "creationTimestamp",
            "generation",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
        ];
        if self.target.sub == "status" {
            let status = value["status"].take();
            let metadata = value["metadata"].take();
            *value = live.clone();
            value["status"] = status;
            if !self.kind.custom && metadata.is_object() {
                value["metadata"] = metadata;
            } else {
                // Who owns the status is noted nevertheless.
                value["metadata"]["managedFields"] = metadata["managedFields"].clone();
            }
        } else if self.kind.has_status(&self.target.version) {
            value["status"] = live["status"].clone();
        }
        for field in SERVER {
            value["metadata"][field] = live["metadata"][field].clone();
        }
        value["metadata"]["resourceVersion"] = live["metadata"]["resourceVersion"].clone();
        defaults::tidy(self.kind, value);
    }
}

fn warned(mut answer: Answer, warnings: &[String]) -> Answer {
    for warning in warnings {
        let quoted = warning.replace('\\', "\\\\").replace('"', "\\\"");
        answer = answer::with(answer, "warning", &format!("299 - \"{quoted}\""));
    }
    answer
}
