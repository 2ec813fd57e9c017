//! Does what was planned, one request after the other. What the API refuses is not asked again at once, and the Gateway says it; what
//! is behind it is done all the same.

use std::{collections::BTreeMap, time::Duration};

use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
    core::DynamicObject,
};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::{
    parts::{Key, Part},
    plan::{Action, Actual, is_ours},
};
use crate::{
    cluster::{
        client::{explain, is_not_found},
        labels,
        objects::{Custom, Kind},
    },
    controller::{compile::ObjectRef, conditions::FIELD_MANAGER},
};

/// Between two requests that write.
const PACE: Duration = Duration::from_millis(20);
/// What was refused is tried again after this.
const AGAIN: Duration = Duration::from_secs(4);

/// Why an object of a waypoint is not as it is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// There is one of that name, and it is not ours.
    Foreign,
    /// What the API says.
    Refused(String),
}

/// What was refused, and what it was.
struct Blocked {
    wanted: Value,
    until: Instant,
    trouble: Trouble,
}

/// Does it.
pub(super) struct Applier {
    client: Client,
    blocked: BTreeMap<Key, Blocked>,
    /// What was applied last, and the version that came of it: what the API writes in a form of its own is not applied again and
    /// again.
    applied: BTreeMap<Key, (Value, Option<String>)>,
}

impl Applier {
    pub(super) fn new(client: Client) -> Self {
        Self {
            client,
            blocked: BTreeMap::new(),
            applied: BTreeMap::new(),
        }
    }

    /// What was refused of a Gateway's objects.
    pub(super) fn troubles(&self, gateway: &ObjectRef) -> impl Iterator<Item = (Part, &Trouble)> {
        let of = move |key: &Key| key.namespace == gateway.namespace && key.name == gateway.name;
        let all = self.blocked.iter().filter(move |(key, _)| of(key));
        all.map(|(key, blocked)| (key.part, &blocked.trouble))
    }

    /// What nobody wants any more is no trouble.
    pub(super) fn forget_others(&mut self, desired: &BTreeMap<Key, Value>) {
        self.blocked.retain(|key, _| desired.contains_key(key));
        self.applied.retain(|key, _| desired.contains_key(key));
    }

    /// Does one thing, and notes what came of it.
    ///
    /// # Errors
    /// Where the API cannot be asked at all.
    pub(super) async fn act(
        &mut self,
        action: Action,
        actual: &mut Actual,
        now: Instant,
    ) -> Result<(), kube::Error> {
        match action {
            Action::Create(key, wanted) if !self.is_blocked(&key, &wanted, now) => {
                let found = self.api(&key).get_opt(&key.name).await;
                match found {
                    Ok(Some(there)) if is_ours(&there) => {
                        // It is heard of soon.
                        self.blocked.remove(&key);
                        Ok(())
                    }
                    Ok(Some(_)) => {
                        self.block(key, wanted, Trouble::Foreign, now);
                        Ok(())
                    }
                    Ok(None) => self.patch(key, wanted, None, actual, now).await,
                    Err(error) => self.refused(key, wanted, error, now),
                }
            }
            Action::Apply(key, wanted, uid)
                if !self.is_blocked(&key, &wanted, now) && !self.is_applied(&key, &wanted, actual) =>
            {
                self.patch(key, wanted, Some(uid), actual, now).await
            }
            Action::Create(..) | Action::Apply(..) => Ok(()),
            Action::Delete {
                key,
                uid,
                part_of_waypoint,
            } => {
                let deleted = match part_of_waypoint {
                    true => Ok(true),
                    false => self.has_left(&key, actual).await,
                };
                match deleted {
                    Ok(true) => self.delete(&key, uid, actual).await,
                    Ok(false) => Ok(()),
                    Err(error) => not_deleted(&key, error),
                }
            }
        }
    }

    fn is_blocked(&self, key: &Key, wanted: &Value, now: Instant) -> bool {
        let blocked = self.blocked.get(key);
        blocked.is_some_and(|it| it.wanted == *wanted && now < it.until)
    }

    /// Whether the object is as the API made it of this very text.
    fn is_applied(&self, key: &Key, wanted: &Value, actual: &Actual) -> bool {
        let (Some((text, version)), Some(there)) = (self.applied.get(key), actual.get(key)) else {
            return false;
        };
        text == wanted && *version == there.metadata.resource_version
    }

    fn block(&mut self, key: Key, wanted: Value, trouble: Trouble, now: Instant) {
        let blocked = Blocked {
            wanted,
            until: now + AGAIN,
            trouble,
        };
        let before = self.blocked.get(&key).map(|it| &it.trouble);
        if before != Some(&blocked.trouble) {
            tracing::warn!(object = %key, why = ?blocked.trouble, "cannot make this object of a waypoint");
        }
        self.blocked.insert(key, blocked);
    }

    fn refused(
        &mut self,
        key: Key,
        wanted: Value,
        error: kube::Error,
        now: Instant,
    ) -> Result<(), kube::Error> {
        // Also where nobody answered: perhaps it is this object alone that takes so long.
        self.block(key, wanted, Trouble::Refused(explain(&error)), now);
        match error {
            kube::Error::Api(_) => Ok(()),
            error => Err(error),
        }
    }

    /// Server-side apply. What we have made before is ours to put right, whoever changed it; what we make must be new: a field
    /// that has another owner then is a conflict.
    async fn patch(
        &mut self,
        key: Key,
        wanted: Value,
        uid: Option<String>,
        actual: &mut Actual,
        now: Instant,
    ) -> Result<(), kube::Error> {
        let mut body = wanted.clone();
        let mut params = PatchParams::apply(FIELD_MANAGER);
        if let Some(uid) = &uid {
            // Of another object of that name nothing may change.
            body["metadata"]["uid"] = uid.as_str().into();
            params = params.force();
        }
        let patched = self
            .api(&key)
            .patch(&key.name, &params, &Patch::Apply(&body))
            .await;
        sleep(PACE).await;
        match patched {
            Ok(object) => {
                tracing::info!(object = %key, new = uid.is_none(), "applied");
                self.blocked.remove(&key);
                let version = object.metadata.resource_version.clone();
                self.applied.insert(key.clone(), (wanted, version));
                actual.insert(key, object);
                Ok(())
            }
            // It has been replaced or removed: the watch says so.
            Err(kube::Error::Api(status)) if uid.is_some() && matches!(status.code, 404 | 409) => {
                actual.remove(&key);
                Ok(())
            }
            Err(error) => self.refused(key, wanted, error, now),
        }
    }

    async fn delete(&self, key: &Key, uid: String, actual: &mut Actual) -> Result<(), kube::Error> {
        let params = DeleteParams::background().preconditions(Preconditions {
            uid: Some(uid),
            resource_version: None,
        });
        let deleted = self.api(key).delete(&key.name, &params).await;
        sleep(PACE).await;
        match deleted {
            Ok(_) => tracing::info!(object = %key, "deleted"),
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
            Err(error) => return not_deleted(key, error),
        }
        actual.remove(key);
        Ok(())
    }

    /// Whether the Gateway of an object is there, and of another class by now. Of one that is gone Kubernetes collects what it
    /// owned; of one that is only not known to us nothing may go.
    async fn has_left(&self, key: &Key, actual: &Actual) -> Result<bool, kube::Error> {
        let Some(object) = actual.get(key) else {
            return Ok(false);
        };
        let Some(gateway) = self.gateway(key).await? else {
            return Ok(false);
        };
        let owners = object.metadata.owner_references.iter().flatten();
        let owned = owners
            .map(|it| Some(&it.uid))
            .any(|uid| uid == gateway.metadata.uid.as_ref());
        let made_for = object.metadata.labels.as_ref();
        let made_for = made_for.and_then(|labels| labels.get(labels::GATEWAY_CLASS_NAME));
        let class = gateway.spec.get("gatewayClassName").and_then(Value::as_str);
        Ok(owned && class != made_for.map(String::as_str))
    }

    /// In whichever version the cluster serves it.
    async fn gateway(&self, key: &Key) -> Result<Option<Custom>, kube::Error> {
        for version in Kind::Gateway.versions() {
            let resource = Kind::Gateway.api_resource(version);
            let gateways = Api::<Custom>::namespaced_with(self.client.clone(), &key.namespace, &resource);
            match gateways.get_opt(&key.name).await {
                Ok(None) => {}
                // A version that is not served.
                Err(error) if is_not_found(&error) => {}
                found => return found,
            }
        }
        Ok(None)
    }

    fn api(&self, key: &Key) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &key.namespace, &key.part.api_resource())
    }
}

/// It is tried again with the next turn.
fn not_deleted(key: &Key, error: kube::Error) -> Result<(), kube::Error> {
    match error {
        kube::Error::Api(_) => {
            tracing::warn!(object = %key, error = explain(&error), "cannot delete");
            Ok(())
        }
        error => Err(error),
    }
}
