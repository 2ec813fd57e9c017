//! What the container runtime has told of the sandboxes that run here: for the look at the node's pods, which may know a pod from
//! it before the API shows it, and where its network namespace is. Pure.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use super::api::PodSandbox;
use crate::{
    cluster::{
        enrolment::{DATAPLANE_MODE, DNS_CAPTURE, Labels, SIDECAR_STATUS},
        labels::{GATEWAY_CLASS_NAME, GATEWAY_NAME},
    },
    node::pods::{ApiPod, Listing, keys},
};

/// Sandboxes that are remembered; a kubelet has some hundred pods at most.
const MOST: usize = 4096;
/// Longest path that is believed (PATH_MAX).
const LONGEST_PATH: usize = 4096;
/// Longest name, id or value: Kubernetes has none of more than 253 characters.
const LONGEST: usize = 512;
/// Addresses of a pod; the API shows two at most.
const MOST_ADDRESSES: usize = 8;
/// For how long the runtime's word is enough where the API is there and does not show the pod.
const UNKNOWN: Duration = Duration::from_secs(60);
/// What `cluster::enrolment` asks of a pod's labels and annotations. Nothing else is kept.
const LABELS: [&str; 3] = [DATAPLANE_MODE, GATEWAY_NAME, GATEWAY_CLASS_NAME];
const ANNOTATIONS: [&str; 2] = [SIDECAR_STATUS, DNS_CAPTURE];

/// A pod's sandbox, as the runtime tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    uid: String,
    namespace: String,
    name: String,
    labels: Labels,
    annotations: Labels,
    host_network: bool,
    addresses: Vec<IpAddr>,
    netns: Option<PathBuf>,
    /// The later of two sandboxes of one pod is the one that counts.
    number: u64,
    /// When it was started, where that was told; nothing for one that ran before.
    started: Option<Instant>,
}

/// The sandboxes by the runtime's own ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sandboxes {
    by_id: BTreeMap<String, Sandbox>,
    told: u64,
}

impl Sandboxes {
    /// Takes one that starts. `None`: it says too little to know its pod by, or there are too many.
    pub(in crate::node::pods) fn start(&mut self, pod: PodSandbox, now: Instant) -> Option<String> {
        self.insert(pod, Some(now))
    }

    /// Takes one of those that run already.
    pub(super) fn take_running(&mut self, pod: PodSandbox) {
        self.insert(pod, None);
    }

    /// All that run, in place of what was told before.
    pub(super) fn replace(&mut self, running: Self) {
        self.by_id = running.by_id;
        self.told = self.told.max(running.told);
    }

    /// Forgets one that has ended.
    pub(super) fn end(&mut self, id: &str) -> bool {
        self.by_id.remove(id).is_some()
    }

    fn insert(&mut self, pod: PodSandbox, started: Option<Instant>) -> Option<String> {
        let id = pod.id.clone();
        if !self.by_id.contains_key(&id) && self.by_id.len() >= MOST {
            return None;
        }
        self.told += 1;
        self.by_id.insert(id.clone(), read(pod, self.told, started)?);
        Some(id)
    }

    /// The ids of all of them, and what pods they are of.
    pub(in crate::node::pods) fn iter(&self) -> impl Iterator<Item = (&String, &Sandbox)> {
        self.by_id.iter()
    }

    /// The newest sandbox of each pod, by the UID that the kubelet knows it by.
    pub(in crate::node::pods) fn by_uid(&self) -> HashMap<&str, &Sandbox> {
        let mut sandboxes: Vec<_> = self.by_id.values().collect();
        sandboxes.sort_unstable_by_key(|sandbox| sandbox.number);
        sandboxes.into_iter().map(|it| (it.uid.as_str(), it)).collect()
    }

    /// The listing, with the pods that start and that the API has not shown yet.
    pub(in crate::node::pods) fn added_to<'a>(&self, listing: &'a Listing, now: Instant) -> Cow<'a, Listing> {
        let shown: HashSet<&str> = listing.pods.iter().flat_map(keys).collect();
        let is_new = |sandbox: &Sandbox| {
            let since = sandbox.started.map(|at| now.saturating_duration_since(at));
            since.is_some_and(|since| since < UNKNOWN || !listing.current)
        };
        let mut more: Vec<_> = self
            .by_uid()
            .into_values()
            .filter(|sandbox| !shown.contains(sandbox.uid.as_str()) && is_new(sandbox))
            .collect();
        if more.is_empty() {
            return Cow::Borrowed(listing);
        }
        more.sort_unstable_by_key(|sandbox| sandbox.number);
        let mut listing = listing.clone();
        listing.pods.extend(more.into_iter().map(Sandbox::as_shown));
        Cow::Owned(listing)
    }
}

impl Sandbox {
    pub(in crate::node::pods) fn uid(&self) -> &str {
        &self.uid
    }

    /// Where its network namespace is on the node, where the runtime says it.
    pub(in crate::node::pods) fn netns(&self) -> Option<&PathBuf> {
        self.netns.as_ref()
    }

    fn as_shown(&self) -> ApiPod {
        ApiPod {
            uid: self.uid.clone(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            labels: self.labels.clone(),
            annotations: self.annotations.clone(),
            host_network: self.host_network,
            ended: false,
            addresses: self.addresses.clone(),
        }
    }
}

fn read(pod: PodSandbox, number: u64, started: Option<Instant>) -> Option<Sandbox> {
    let named = [&pod.id, &pod.uid, &pod.namespace, &pod.name];
    if named.iter().any(|text| text.is_empty() || text.len() > LONGEST) {
        return None;
    }
    let namespaces = pod.linux.map(|linux| linux.namespaces).unwrap_or_default();
    // One that says nothing of any namespace says nothing of this one either.
    let says = !namespaces.is_empty();
    let network = namespaces.into_iter().find(|it| it.r#type == "network");
    let host_network = says && network.is_none();
    let path = network.map(|network| network.path);
    let path = path.filter(|path| path.starts_with('/') && path.len() <= LONGEST_PATH);
    Some(Sandbox {
        uid: pod.uid,
        namespace: pod.namespace,
        name: pod.name,
        labels: kept(pod.labels, &LABELS),
        annotations: kept(pod.annotations, &ANNOTATIONS),
        host_network,
        addresses: pod
            .ips
            .iter()
            .take(MOST_ADDRESSES)
            .filter_map(|ip| ip.parse().ok())
            .collect(),
        netns: path.map(PathBuf::from),
        number,
        started,
    })
}

fn kept(from: HashMap<String, String>, keys: &[&str]) -> Labels {
    let known = from.into_iter().filter(|(key, _)| keys.contains(&key.as_str()));
    // The sidecar's status may be long, and only whether there is one matters.
    known
        .map(|(key, value)| {
            (
                key,
                Some(value).filter(|it| it.len() <= LONGEST).unwrap_or_default(),
            )
        })
        .collect()
}

/// A sandbox of a pod `web` without labels, as a runtime tells of it.
#[cfg(test)]
pub(in crate::node::pods) fn told(id: &str, namespace: &str, uid: &str, netns: &str) -> PodSandbox {
    use super::api::{LinuxNamespace, LinuxPodSandbox};
    let of = |kind: &str, path: &str| LinuxNamespace {
        r#type: kind.to_owned(),
        path: path.to_owned(),
    };
    PodSandbox {
        id: id.to_owned(),
        name: "web".to_owned(),
        uid: uid.to_owned(),
        namespace: namespace.to_owned(),
        linux: Some(LinuxPodSandbox {
            namespaces: vec![of("ipc", ""), of("network", netns)],
        }),
        ..PodSandbox::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::enrolment::AMBIENT;

    fn sandbox(id: &str, uid: &str, netns: &str) -> PodSandbox {
        let texts = |texts: &[(&str, &str)]| {
            let owned = texts
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
            owned.collect()
        };
        PodSandbox {
            labels: texts(&[(DATAPLANE_MODE, AMBIENT), ("app", "web")]),
            annotations: texts(&[(SIDECAR_STATUS, "{}")]),
            ips: vec!["10.0.0.1".to_owned(), "?".to_owned()],
            ..told(id, "demo", uid, netns)
        }
    }

    #[test]
    fn a_pod_is_known_by_the_runtimes_word_until_the_api_has_had_its_time() {
        let now = Instant::now();
        let mut told = Sandboxes::default();
        assert_eq!(
            told.start(sandbox("s", "u", "/run/netns/x"), now).as_deref(),
            Some("s")
        );
        let mut listing = Listing {
            current: true,
            ..Listing::default()
        };
        let shown = told.added_to(&listing, now);
        let [pod] = &*shown.pods else { panic!("one pod") };
        assert_eq!(
            (pod.uid.as_str(), pod.name.as_str(), pod.host_network),
            ("u", "web", false)
        );
        assert_eq!(
            pod.labels,
            Labels::from([(DATAPLANE_MODE.to_owned(), AMBIENT.to_owned())])
        );
        assert!(pod.annotations.contains_key(SIDECAR_STATUS));
        assert_eq!(pod.addresses, ["10.0.0.1".parse::<IpAddr>().expect("an address")]);
        let later = now + UNKNOWN;
        assert!(
            told.added_to(&listing, later).pods.is_empty(),
            "it is no pod of the cluster"
        );
        listing.current = false;
        assert_eq!(told.added_to(&listing, later).pods.len(), 1, "the API is away");
        // What the API shows goes before.
        listing.pods.push(ApiPod {
            uid: "u".to_owned(),
            ..ApiPod::default()
        });
        assert!(matches!(told.added_to(&listing, now), Cow::Borrowed(_)));
        assert!(told.end("s") && !told.end("s"));
        let mut running = Sandboxes::default();
        running.take_running(sandbox("s", "u", "/run/netns/x"));
        told.replace(running);
        assert!(
            told.added_to(&Listing::default(), now).pods.is_empty(),
            "it ran before"
        );
        assert_eq!(told.by_uid().len(), 1);
    }

    #[test]
    fn the_newest_sandbox_of_a_pod_counts() {
        let now = Instant::now();
        let mut told = Sandboxes::default();
        for (id, netns) in [("b", "/run/netns/1"), ("a", "/run/netns/2")] {
            told.start(sandbox(id, "u", netns), now);
        }
        let of_pod = |told: &Sandboxes| told.by_uid()["u"].netns().cloned();
        assert_eq!(of_pod(&told), Some("/run/netns/2".into()));
        assert_eq!(told.added_to(&Listing::default(), now).pods.len(), 1);
        told.end("a");
        assert_eq!(of_pod(&told), Some("/run/netns/1".into()));
    }

    #[test]
    fn only_a_runtime_that_tells_of_namespaces_says_that_there_is_none() {
        let of = |pod| read(pod, 0, None).expect("it says enough");
        let mut pod = sandbox("s", "u", "/run/netns/x");
        assert!(!of(pod.clone()).host_network);
        if let Some(linux) = &mut pod.linux {
            linux.namespaces.pop();
        }
        assert!(of(pod.clone()).host_network);
        pod.linux = None;
        assert!(!of(pod).host_network);
        for odd in ["", "run/netns/x", &format!("/{}", "x".repeat(LONGEST_PATH))] {
            assert_eq!(of(sandbox("s", "u", odd)).netns(), None);
        }
    }

    #[test]
    fn what_says_too_little_or_is_too_much_is_not_kept() {
        let now = Instant::now();
        let mut told = Sandboxes::default();
        for (id, uid) in [("", "u"), ("s", ""), ("s", &"u".repeat(LONGEST + 1))] {
            assert_eq!(told.start(sandbox(id, uid, ""), now), None);
        }
        for number in 0..=MOST {
            told.start(sandbox(&number.to_string(), &number.to_string(), ""), now);
        }
        assert_eq!(told.by_id.len(), MOST);
        let mut many = sandbox("0", "0", "");
        many.ips = vec!["10.0.0.1".to_owned(); 1000];
        assert!(told.start(many, now).is_some());
        assert_eq!(told.by_id["0"].addresses.len(), MOST_ADDRESSES);
        // One that is known may say something else.
        assert!(told.start(sandbox("0", "0", "/run/netns/x"), now).is_some());
    }
}
