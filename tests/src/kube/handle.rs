//! The stand-in from inside: objects made, read and removed without a request, waiting, time, and troubles.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{
    Rule, StandIn, clock, controllers, crds, defaults,
    faults::{Of, Outage, Signal},
    kinds::Kind,
    logs::WantedLog,
    object,
    store::State,
    tokens::{self, Wanted},
};

impl StandIn {
    /// Makes or replaces each object of a YAML stream, status and all, as if a controller had written it: nothing is
    /// checked, a namespace that is missing is made. An object keeps its uid; what the text does not say is gone.
    pub fn apply_yaml(&self, yaml: &str) -> Result<()> {
        let options = serde_saphyr::Options::default();
        let documents: Vec<Value> =
            serde_saphyr::from_multiple_with_options(yaml, options).context("read YAML")?;
        documents
            .into_iter()
            .filter(|document| !document.is_null())
            .try_for_each(|document| self.apply(document))
    }

    /// As [`StandIn::apply_yaml`], one object.
    pub fn apply(&self, mut value: Value) -> Result<()> {
        let (api_version, named) = (text(&value["apiVersion"]), text(&value["kind"]));
        let (group, version) = api_version.rsplit_once('/').unwrap_or(("", &api_version));
        let mut state = self.server.state();
        let found = state
            .kinds
            .iter()
            .find(|kind| kind.group == group && kind.kind == named && kind.version(version).is_some());
        let kind = found
            .cloned()
            .with_context(|| format!("{api_version} {named} is not served"))?;
        if let Some(map) = value.as_object_mut() {
            map.remove("apiVersion");
            map.remove("kind");
        }
        let name = text(&value["metadata"]["name"]);
        let namespace = match text(&value["metadata"]["namespace"]) {
            _ if !kind.namespaced => String::new(),
            none if none.is_empty() => "default".to_owned(),
            namespace => namespace,
        };
        if kind.namespaced {
            value["metadata"]["namespace"] = namespace.as_str().into();
            self.ensure_namespace(&mut state, &namespace);
        }
        if kind.group == "events.k8s.io" {
            value = super::events::to_core(value);
        }
        self.put(&mut state, &kind, version, &object::key(&namespace, &name), value);
        Ok(())
    }

    fn put(&self, state: &mut State, kind: &Arc<Kind>, version: &str, key: &str, mut value: Value) {
        let status = value.get("status").cloned();
        let uid = value["metadata"]["uid"].as_str().map(ToOwned::to_owned);
        let live = state.value(&kind.table, key);
        match &live {
            None => {
                defaults::new(kind, version, &mut value, &self.server.clock.stamp(), state);
                defaults::allocate(kind, &mut value, state);
                if let Some(uid) = uid {
                    value["metadata"]["uid"] = uid.into();
                }
            }
            Some(live) => {
                for field in [
                    "uid",
                    "creationTimestamp",
                    "generation",
                    "deletionTimestamp",
                    "deletionGracePeriodSeconds",
                ] {
                    value["metadata"][field] = live["metadata"][field].clone();
                }
                if status.is_none() {
                    value["status"] = live["status"].clone();
                }
                defaults::tidy(kind, &mut value);
                defaults::changed(kind, version, live, &mut value);
                if kind.has_generation() && live["spec"] != value["spec"] {
                    let generation = live["metadata"]["generation"].as_u64().unwrap_or(0);
                    value["metadata"]["generation"] = (generation + 1).into();
                }
                value["metadata"]["resourceVersion"] = live["metadata"]["resourceVersion"].clone();
            }
        }
        if let Some(status) = status {
            value["status"] = status;
        }
        if live.as_ref() != Some(&value) {
            let change = state.commit(kind, key, Some(value));
            controllers::after(&self.server, state, kind, &change);
        }
    }

    pub(super) fn namespace(&self, name: &str) {
        self.ensure_namespace(&mut self.server.state(), name);
    }

    fn ensure_namespace(&self, state: &mut State, name: &str) {
        if state.object("namespaces", name).is_none() {
            controllers::create(
                &self.server,
                state,
                ("", "namespaces"),
                "",
                json!({"metadata": {"name": name}}),
            );
        }
    }

    /// The definitions of Gateway API's and Istio's resources, with schemas that take anything.
    pub fn install_crds(&self) -> Result<()> {
        self.install_gateway_api()?;
        self.install_istio()
    }

    /// Gateway API's: GatewayClass, Gateway, the routes, ReferenceGrant.
    pub fn install_gateway_api(&self) -> Result<()> {
        crds::gateway_api()
            .into_iter()
            .try_for_each(|definition| self.apply(definition))
    }

    /// Istio's: networking and security.
    pub fn install_istio(&self) -> Result<()> {
        crds::istio()
            .into_iter()
            .try_for_each(|definition| self.apply(definition))
    }

    /// An object, by its kind or plural ("Pod", "pods", "Gateway.networking.istio.io"); no namespace for what has none.
    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        let state = self.server.state();
        let kind = resolve(&state, kind)?;
        let value = state.value(&kind.table, &object::key(namespace, name))?;
        Some(typed(&kind, value))
    }

    /// All objects of a kind, of one namespace or ("") of all, by name.
    pub fn list(&self, kind: &str, namespace: &str) -> Vec<Value> {
        let state = self.server.state();
        let Some(kind) = resolve(&state, kind) else {
            return Vec::new();
        };
        let all = state
            .objects(&kind.table)
            .filter(|object| namespace.is_empty() || object.namespace == namespace);
        all.map(|object| typed(&kind, object.value())).collect()
    }

    /// Removes an object at once, whatever its grace; a finalizer holds it. Whether it was there.
    pub fn delete(&self, kind: &str, namespace: &str, name: &str) -> bool {
        let mut state = self.server.state();
        let Some(kind) = resolve(&state, kind) else {
            return false;
        };
        let key = object::key(namespace, name);
        let there = state.object(&kind.table, &key).is_some();
        if kind.table == "namespaces" {
            controllers::finalize(&self.server, &mut state, name);
        } else {
            controllers::remove(&self.server, &mut state, &kind.table, &key);
        }
        there
    }

    /// Lays `patch` over an object, as a JSON merge patch that may touch everything.
    pub fn merge(&self, kind: &str, namespace: &str, name: &str, patch: &Value) -> Result<()> {
        let mut value = self
            .get(kind, namespace, name)
            .with_context(|| format!("no {kind} {namespace}/{name}"))?;
        json_patch::merge(&mut value, patch);
        self.apply(value)
    }

    /// Changes an object in one step, as if a controller had: what others write meanwhile is not lost. Whether it was there.
    pub fn change(
        &self,
        (kind, namespace, name): (&str, &str, &str),
        change: impl FnOnce(&mut Value),
    ) -> bool {
        let mut state = self.server.state();
        let Some(kind) = resolve(&state, kind) else {
            return false;
        };
        let key = object::key(namespace, name);
        let Some(mut value) = state.value(&kind.table, &key) else {
            return false;
        };
        let before = value.clone();
        change(&mut value);
        if value != before {
            let change = state.commit(&kind, &key, Some(value));
            controllers::after(&self.server, &mut state, &kind, &change);
        }
        true
    }

    /// Removes a pod whose node has ended it, if it is still this one.
    pub fn forget_pod(&self, namespace: &str, name: &str, uid: &str) {
        let mut state = self.server.state();
        let key = object::key(namespace, name);
        let found = state.value("pods", &key);
        let kind = state.kind("", "v1", "pods").cloned();
        if let (Some(kind), Some(found)) = (kind, found)
            && found["metadata"]["uid"] == uid
        {
            let change = state.commit(&kind, &key, None);
            controllers::after(&self.server, &mut state, &kind, &change);
        }
    }

    /// What answers for logs of pods: it is given the pod and which of its logs. Only the first call counts.
    pub fn logs_from(
        &self,
        source: impl Fn(&Value, WantedLog<'_>) -> Result<Vec<u8>> + Send + Sync + 'static,
    ) {
        let _ = self.server.logs.set(Box::new(source));
    }

    /// Tells of each write by its revision.
    pub fn changes(&self) -> tokio::sync::watch::Receiver<u64> {
        self.server.state().tick.subscribe()
    }

    /// Waits, looking at each change, until the object satisfies `check`; `None` is an object that is not there. Blocks
    /// the thread: in a task use [`StandIn::until`].
    pub fn wait_for(
        &self,
        (kind, namespace, name): (&str, &str, &str),
        limit: Duration,
        check: impl Fn(Option<&Value>) -> bool,
    ) -> Result<Option<Value>> {
        let what = format!("{kind} {namespace}/{name}");
        crate::wait_until(&what, limit, || {
            let found = self.get(kind, namespace, name);
            check(found.as_ref()).then_some(found)
        })
    }

    /// As [`StandIn::wait_for`], for a task.
    pub async fn until(
        &self,
        (kind, namespace, name): (&str, &str, &str),
        limit: Duration,
        check: impl Fn(Option<&Value>) -> bool,
    ) -> Result<Option<Value>> {
        let mut tick = self.server.state().tick.subscribe();
        let held = async {
            loop {
                let found = self.get(kind, namespace, name);
                if check(found.as_ref()) {
                    return found;
                }
                if tick.changed().await.is_err() {
                    return None;
                }
            }
        };
        match tokio::time::timeout(limit, held).await {
            Ok(found) => Ok(found),
            Err(_) => bail!("waited {limit:?} in vain for {kind} {namespace}/{name}"),
        }
    }

    /// The resourceVersion of the last write.
    pub fn version(&self) -> u64 {
        self.server.version()
    }

    /// How many requests there were with this verb of RBAC for this resource, by its plural; refused ones count, too.
    pub fn requests(&self, verb: &'static str, resource: &str) -> u64 {
        let asked = self.server.asked();
        asked.get(&(verb, resource.to_owned())).copied().unwrap_or(0)
    }

    /// Moves the clock of a stand-in that was started with [`super::Options::clock_by_hand`].
    pub fn advance(&self, by: Duration) {
        self.server.clock.advance(by);
    }

    /// A service account's token as its kubelet would fetch it, good for an hour; bound to a pod, if one is named.
    /// Without audiences it is for the API server.
    pub fn token(
        &self,
        namespace: &str,
        account: &str,
        audiences: &[&str],
        pod: Option<&str>,
    ) -> Result<String> {
        let mut state = self.server.state();
        let found = state.value("serviceaccounts", &object::key(namespace, account));
        let found = found.with_context(|| format!("no service account {namespace}/{account}"))?;
        let pod = pod.map(|pod| {
            let found = state.value("pods", &object::key(namespace, pod));
            found.with_context(|| format!("no pod {namespace}/{pod}"))
        });
        let pod = pod.transpose()?;
        let audiences = if audiences.is_empty() {
            &[tokens::ISSUER]
        } else {
            audiences
        };
        let wanted = Wanted {
            namespace,
            account: (account, &text(&found["metadata"]["uid"])),
            audiences: audiences.iter().map(|audience| (*audience).to_owned()).collect(),
            lasts: Duration::from_secs(3600),
            pod: pod.as_ref(),
            now: self.server.clock.wall(),
        };
        Ok(tokens::issue(&mut state, &wanted).0)
    }

    /// What TokenReviews of this text say from now on: their whole `status`, as some other API server would have it.
    pub fn review_as(&self, token: &str, status: Value) {
        let mut reviews = self.server.reviews.lock().unwrap_or_else(PoisonError::into_inner);
        reviews.insert(token.to_owned(), status);
    }

    /// When a clock moved by hand stands, as a timestamp.
    pub fn now(&self) -> String {
        clock::stamp(self.server.clock.wall())
    }

    /// Troubles.
    pub fn faults(&self) -> Faults<'_> {
        Faults(self)
    }
}

/// Causes troubles to one stand-in.
pub struct Faults<'a>(&'a StandIn);

impl Faults<'_> {
    /// From now on, until it has struck as often as the rule says or all are cleared. A watch suffers what is there when
    /// it is opened.
    pub fn inject(&self, rule: Rule) {
        self.0.server.faults.inject(rule);
    }

    /// No more of what was injected.
    pub fn clear(&self) {
        self.0.server.faults.clear();
    }

    /// Cuts open watches of a resource in the middle of a line, or ("") all.
    pub fn cut_watches(&self, resource: &str) {
        self.0.server.faults.signal(Signal::Cut(of(resource)));
    }

    /// Ends open watches of a resource with 410, or ("") all.
    pub fn expire_watches(&self, resource: &str) {
        self.0.server.faults.signal(Signal::Expire(of(resource)));
    }

    /// Breaks every connection, and refuses new ones until [`Faults::recover`].
    pub fn refuse(&self) {
        self.0.server.faults.outage.send_replace(Outage::Refusing);
        self.0.server.faults.break_connections();
    }

    /// Takes connections and requests, and answers nothing until [`Faults::recover`]; open watches stand still.
    pub fn hang(&self) {
        self.0.server.faults.outage.send_replace(Outage::Hanging);
    }

    /// Ends an outage.
    pub fn recover(&self) {
        self.0.server.faults.outage.send_replace(Outage::None);
    }

    /// A restart over the same data, compacted: every connection breaks, and watches and lists from before are too old.
    pub fn restart(&self) {
        self.0.server.state().forget();
        self.0.server.faults.break_connections();
    }

    /// Forgets all history, and breaks nothing.
    pub fn forget(&self) {
        self.0.server.state().forget();
    }
}

fn of(resource: &str) -> Of {
    if resource.is_empty() {
        Of::all()
    } else {
        Of::resource(resource)
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// By kind or plural, with the group behind it where two have the same.
fn resolve(state: &State, name: &str) -> Option<Arc<Kind>> {
    let named = |kind: &&Arc<Kind>| {
        let bare = [&kind.kind, &kind.plural];
        bare.iter()
            .any(|own| *own == name || name.strip_prefix(own.as_str()) == Some(&format!(".{}", kind.group)))
    };
    state.kinds.iter().find(named).cloned()
}

fn typed(kind: &Kind, mut value: Value) -> Value {
    value["kind"] = kind.kind.as_str().into();
    value["apiVersion"] = kind.preferred().into();
    value
}
