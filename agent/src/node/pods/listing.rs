//! What the API shows of this node, as two watches: its pods, and the labels of all namespaces. Both go on for ever; what they
//! lose is listed again.

use std::{collections::BTreeMap, net::IpAddr, pin::pin, sync::Arc, time::Duration};

use futures::{Stream, StreamExt as _};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::{
    Api, Client, ResourceExt as _,
    api::PartialObjectMeta,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::{ApiPod, Listing};
use crate::cluster::enrolment::Labels;

/// For how long a watch must not have failed to count as new.
const QUIET: Duration = Duration::from_secs(90);

/// Watches the pods of the node of this name. Nothing is shown until everything was listed once.
pub fn watch(client: Client, node: &str) -> watch::Receiver<Option<Arc<Listing>>> {
    let here = watcher::Config::default().fields(&format!("spec.nodeName={node}"));
    let pods = watcher(Api::<Pod>::all(client.clone()), here).default_backoff();
    let everywhere = watcher::Config::default();
    let namespaces = Api::<PartialObjectMeta<Namespace>>::all(client);
    let namespaces = watcher(namespaces, everywhere).default_backoff();
    let (publish, listing) = watch::channel(None);
    tokio::spawn(run(pods, namespaces, publish));
    listing
}

async fn run(
    pods: impl Stream<Item = watcher::Result<Event<Pod>>>,
    namespaces: impl Stream<Item = watcher::Result<Event<PartialObjectMeta<Namespace>>>>,
    publish: watch::Sender<Option<Arc<Listing>>>,
) {
    let (mut pods, mut namespaces) = (pin!(pods), pin!(namespaces));
    let mut shown = (Shown::<ApiPod>::new("pods"), Shown::<Labels>::new("namespaces"));
    loop {
        let now = Instant::now();
        let quiet_at = [shown.0.failed, shown.1.failed]
            .into_iter()
            .flatten()
            .map(|failed| failed + QUIET)
            .max()
            .filter(|at| *at > now);
        let quiet = async {
            match quiet_at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(event) = pods.next() => shown.0.take(event, key, |pod| of_pod(&pod)),
            Some(event) = namespaces.next() => shown.1.take(event, |it| it.name_any(), |it| it.metadata.labels.unwrap_or_default()),
            () = quiet => {}
            () = publish.closed() => return,
        }
        if let (Some(pods), Some(namespaces)) = (&shown.0.listed, &shown.1.listed) {
            let is_quiet = |failed: Option<Instant>| failed.is_none_or(|at| at.elapsed() >= QUIET);
            let listing = Listing {
                pods: pods.values().cloned().collect(),
                namespaces: namespaces.clone(),
                current: is_quiet(shown.0.failed) && is_quiet(shown.1.failed),
            };
            publish.send_if_modified(|last| {
                let is_new = last.as_deref() != Some(&listing);
                if is_new {
                    *last = Some(Arc::new(listing));
                }
                is_new
            });
        }
    }
}

/// What one watch has shown.
struct Shown<T> {
    what: &'static str,
    /// None before the first list is complete.
    listed: Option<BTreeMap<String, T>>,
    /// A list that is not complete.
    listing: BTreeMap<String, T>,
    failed: Option<Instant>,
}

impl<T> Shown<T> {
    fn new(what: &'static str) -> Self {
        Self {
            what,
            listed: None,
            listing: BTreeMap::new(),
            failed: None,
        }
    }

    fn take<K>(
        &mut self,
        event: watcher::Result<Event<K>>,
        key: impl Fn(&K) -> String,
        kept: impl Fn(K) -> T,
    ) {
        match event {
            Ok(Event::Init) => self.listing.clear(),
            Ok(Event::InitApply(object)) => drop(self.listing.insert(key(&object), kept(object))),
            Ok(Event::InitDone) => {
                self.listed = Some(std::mem::take(&mut self.listing));
                self.failed = None;
            }
            Ok(Event::Apply(object)) => {
                if let Some(listed) = &mut self.listed {
                    listed.insert(key(&object), kept(object));
                }
            }
            Ok(Event::Delete(object)) => {
                if let Some(listed) = &mut self.listed {
                    listed.remove(&key(&object));
                }
            }
            Err(error) => {
                if self.failed.is_none_or(|at| at.elapsed() >= QUIET) {
                    let what = self.what;
                    tracing::warn!(
                        what,
                        error = crate::telemetry::chain(&error),
                        "the API does not show this node's pods any more; trying again: what was shown stays"
                    );
                }
                self.failed = Some(Instant::now());
            }
        }
    }
}

/// A pod that was made anew has another UID, and may be shown before the end of its predecessor is.
fn key(pod: &Pod) -> String {
    pod.metadata.uid.clone().unwrap_or_default()
}

fn of_pod(pod: &Pod) -> ApiPod {
    let spec = pod.spec.as_ref();
    let status = pod.status.as_ref();
    let phase = status.and_then(|status| status.phase.as_deref());
    let many = status
        .and_then(|status| status.pod_ips.as_deref())
        .unwrap_or_default();
    let one = status.and_then(|status| status.pod_ip.as_deref());
    let addresses = many.iter().map(|it| it.ip.as_str()).chain(one);
    let mut addresses: Vec<IpAddr> = addresses.filter_map(|ip| ip.parse().ok()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    ApiPod {
        uid: pod.metadata.uid.clone().unwrap_or_default(),
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        name: pod.name_any(),
        labels: pod.metadata.labels.clone().unwrap_or_default(),
        annotations: pod.metadata.annotations.clone().unwrap_or_default(),
        host_network: spec.and_then(|spec| spec.host_network).unwrap_or(false),
        ended: matches!(phase, Some("Succeeded" | "Failed")),
        addresses,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(value: serde_json::Value) -> Pod {
        serde_json::from_value(value).expect("a pod")
    }

    #[test]
    fn a_pod_is_read_as_the_api_writes_it() {
        let shown = of_pod(&pod(json!({
            "metadata": {"name": "web", "namespace": "demo", "uid": "u", "labels": {"app": "web"}},
            "spec": {"containers": [], "hostNetwork": true},
            "status": {"phase": "Succeeded", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}, {"ip": "?"}]},
        })));
        assert_eq!(
            shown.addresses,
            ["10.0.0.1", "fd00::1"].map(|ip| ip.parse::<IpAddr>().expect("an address"))
        );
        assert!(shown.host_network && shown.ended);
        let empty = of_pod(&pod(json!({"metadata": {"name": "web"}})));
        assert!(empty.addresses.is_empty() && !empty.ended && !empty.host_network);
    }

    #[test]
    fn a_list_that_is_not_complete_is_not_shown() {
        let mut shown = Shown::<ApiPod>::new("pods");
        let web = |uid: &str| pod(json!({"metadata": {"name": "web", "uid": uid}}));
        let mut take = |event| {
            shown.take(Ok(event), key, |pod| of_pod(&pod));
            shown
                .listed
                .as_ref()
                .map(|pods| pods.keys().cloned().collect::<Vec<_>>())
        };
        assert_eq!(take(Event::Init), None);
        assert_eq!(take(Event::InitApply(web("1"))), None);
        assert_eq!(take(Event::InitDone), Some(vec!["1".into()]));
        assert_eq!(take(Event::Apply(web("2"))), Some(vec!["1".into(), "2".into()]));
        assert_eq!(take(Event::Delete(web("1"))), Some(vec!["2".into()]));
        // The watch was lost and begins anew: until that is complete the last one holds.
        assert_eq!(take(Event::Init), Some(vec!["2".into()]));
        assert_eq!(take(Event::InitApply(web("3"))), Some(vec!["2".into()]));
        assert_eq!(take(Event::InitDone), Some(vec!["3".into()]));
    }
}
