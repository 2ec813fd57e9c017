//! One look at the node: what the API shows, what the cgroups show, and what follows. Level-triggered; what is remembered is
//! only what a look cannot tell: whether a pod was seen starting, and which process a namespace was found by.

mod holds;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use self::holds::Seen;
use super::{
    ApiPod, Awaited, Listing, PodSettings, Standing, View,
    cgroups::{Folders, Looked, PodFolder, Tree, is_uid, root_of},
    keys,
    netns::{Finder, Found, Identity, Missing},
    nri::{Sandbox, Sandboxes},
};
use crate::{
    cluster::enrolment::{Candidate, Outside, Verdict, dns_capture, verdict},
    feed::LocalPod,
    kernel::maps::PodsCgroup,
    net::netns::NetnsSource,
};

/// How often all cgroups are walked through when no pod is missed, and when one is.
const EXPLORE: Duration = Duration::from_secs(30);
const EXPLORE_AGAIN: Duration = Duration::from_secs(1);
/// A cgroup of which the API has not said for so long whose it is belongs to no pod of the cluster, if the API is there.
const UNKNOWN: Duration = Duration::from_secs(60);
/// How often it is asked whether what was found is still so.
const CHECK: Duration = Duration::from_secs(1);
/// For how long a pod that is not found is looked for eagerly.
const STARTS: Duration = Duration::from_secs(60);

/// What the labels say of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Judged {
    Enrolled,
    Outside,
    /// The API has not shown the pod, or not its namespace.
    Unknown,
}

pub(super) struct Looker {
    settings: PodSettings,
    tree: Tree,
    finder: Finder,
    /// By the UID in the folder's name; none before the first look.
    seen: Option<BTreeMap<String, Seen>>,
    /// By the UID in the API.
    found: BTreeMap<String, Found>,
    /// Since when pods are missed, by the UID in the API.
    missed: BTreeMap<String, Instant>,
    /// The folders under which this node's pods are.
    roots: BTreeSet<PathBuf>,
    explored: Option<Instant>,
    checked: Option<Instant>,
    is_awaiting: bool,
    /// Whether it was said that pods that start cannot be held, and that they are only once they are seen.
    warned: bool,
    warned_late: bool,
}

impl Looker {
    pub(super) fn new(settings: PodSettings, tree: Tree, finder: Finder) -> Self {
        let roots = settings
            .pods_cgroup
            .iter()
            .map(|(path, _)| path.clone())
            .collect();
        Self {
            settings,
            tree,
            finder,
            seen: None,
            found: BTreeMap::new(),
            missed: BTreeMap::new(),
            roots,
            explored: None,
            checked: None,
            is_awaiting: false,
            warned: false,
            warned_late: false,
        }
    }

    /// The folders whose changes matter.
    pub(super) fn parents(&self) -> impl Iterator<Item = &Path> {
        self.tree.parents()
    }

    /// Whether a pod that is to be captured starts.
    pub(super) fn is_awaiting(&self) -> bool {
        self.is_awaiting
    }

    /// `told` is what the container runtime says of sandboxes; nothing where it says nothing.
    pub(super) fn look(&mut self, listing: &Listing, told: &Sandboxes, now: Instant) -> View {
        let listing = &*told.added_to(listing, now);
        let odd: Vec<String> = keys_of(listing)
            .filter(|uid| !is_uid(uid))
            .map(str::to_owned)
            .collect();
        let looked = self.folders(listing, &odd, now);
        let owners = owners(listing);
        self.learn_roots(&owners, &looked.pods);
        self.forget_remade(&owners, &looked.pods);
        let pods = self.pods(listing, &owners, (&looked.pods, told), now);
        let pods_cgroup = self.pods_cgroup();
        let holds = self.holds(listing, &owners, &looked, &pods, now);
        let holds = self.with_depths(holds, &looked, pods_cgroup);
        let newest = told.by_uid();
        let standing = |sandbox: &Sandbox| match newest.get(sandbox.uid()) {
            Some(newest) if *newest == sandbox => self.standing(listing, &owners, &pods, sandbox),
            _ => Standing::Outside,
        };
        let sandboxes = told.iter().map(|(id, sandbox)| (id.clone(), standing(sandbox)));
        let sandboxes = sandboxes.collect();
        View {
            pods: pods.into_values().collect(),
            holds,
            sandboxes,
            pods_cgroup,
        }
    }

    fn folders(&mut self, listing: &Listing, odd: &[String], now: Instant) -> Looked {
        let due = |after| {
            self.explored
                .is_none_or(|at| now.saturating_duration_since(at) >= after)
        };
        let mut explore = due(EXPLORE);
        if !explore {
            let looked = self.tree.look(odd);
            let is_missed = |pod: &ApiPod| {
                self.judge(pod, listing) == Judged::Enrolled
                    && keys(pod).all(|key| !looked.pods.contains_key(key))
            };
            if !listing.pods.iter().any(is_missed) {
                return looked;
            }
            explore = due(EXPLORE_AGAIN);
            if !explore {
                return looked;
            }
        }
        self.tree.explore(odd);
        self.explored = Some(now);
        self.tree.look(odd)
    }

    /// A kubelet's folder that has one of this node's pods has no others.
    fn learn_roots(&mut self, owners: &HashMap<&str, &ApiPod>, folders: &Folders) {
        if self.settings.pods_cgroup.is_some() {
            return;
        }
        let ours = folders
            .iter()
            .filter(|(uid, _)| owners.contains_key(uid.as_str()));
        let roots = ours
            .flat_map(|(_, folders)| folders)
            .filter_map(|folder| root_of(&folder.path));
        for root in roots {
            if !self.roots.contains(root) {
                self.roots.insert(root.to_owned());
            }
        }
        self.roots.retain(|root| root.exists());
    }

    /// The pods that are to be captured, by their workloads' uids.
    fn pods(
        &mut self,
        listing: &Listing,
        owners: &HashMap<&str, &ApiPod>,
        (folders, told): (&Folders, &Sandboxes),
        now: Instant,
    ) -> BTreeMap<Arc<str>, LocalPod> {
        let told = told.by_uid();
        let enrolled: Vec<_> = listing
            .pods
            .iter()
            .filter(|pod| self.judge(pod, listing) == Judged::Enrolled)
            .collect();
        let wanted: BTreeSet<&str> = enrolled.iter().map(|pod| pod.uid.as_str()).collect();
        self.found.retain(|uid, _| wanted.contains(uid.as_str()));
        self.missed.retain(|uid, _| wanted.contains(uid.as_str()));
        self.is_awaiting = false;
        let check = self
            .checked
            .is_none_or(|at| now.saturating_duration_since(at) >= CHECK);
        if check {
            self.checked = Some(now);
        }
        let mut taken: HashMap<Identity, Arc<str>> = HashMap::new();
        let mut pods = BTreeMap::new();
        for pod in enrolled {
            let uid: Arc<str> = self.workload(pod).into();
            let is_own = |key: &&str| owners.get(key).is_some_and(|owner| owner.uid == pod.uid);
            let of_pod = keys(pod).filter(is_own).filter_map(|key| folders.get(key));
            let of_pod: Vec<PodFolder> = of_pod.flatten().cloned().collect();
            let mut sandboxes = keys(pod).filter(is_own).filter_map(|key| told.get(key));
            let path = sandboxes.find_map(|sandbox| sandbox.netns());
            let found = match self.find(pod, (&of_pod, path.map(PathBuf::as_path)), check) {
                Ok(found) => match taken.insert(found.identity, uid.clone()) {
                    Some(other) => Err(Missing::Taken { by: other }),
                    None => Ok((NetnsSource::Held(found.netns.clone()), found.addresses.clone())),
                },
                Err(why) => Err(why),
            };
            let (netns, addresses) = found.unwrap_or_else(|why| (why.into(), Vec::new()));
            if matches!(netns, NetnsSource::Missing { .. }) {
                let since = *self.missed.entry(pod.uid.clone()).or_insert(now);
                self.is_awaiting |= now.saturating_duration_since(since) < STARTS;
            } else {
                self.missed.remove(&pod.uid);
            }
            let dns_capture = dns_capture(&pod.annotations);
            pods.insert(
                uid.clone(),
                LocalPod {
                    uid,
                    netns,
                    addresses,
                    dns_capture,
                },
            );
        }
        pods
    }

    fn find(
        &mut self,
        pod: &ApiPod,
        (folders, told): (&[PodFolder], Option<&Path>),
        check: bool,
    ) -> Result<&Found, Missing> {
        let has = |found: &Found| {
            pod.addresses
                .iter()
                .all(|address| found.addresses.contains(address))
        };
        let current = self.found.get(&pod.uid).is_some_and(|found| {
            has(found) && found.is_as_told(told) && (!check || self.finder.is_current(found))
        });
        if !current {
            self.found.remove(&pod.uid);
            let found = self.finder.find(folders, told, &pod.addresses)?;
            self.found.insert(pod.uid.clone(), found);
        }
        self.found.get(&pod.uid).ok_or(Missing::NoCgroup)
    }

    fn judge(&self, pod: &ApiPod, listing: &Listing) -> Judged {
        // Whoever holds its own agent back, or captures it, waits for itself.
        if pod.namespace == self.settings.own_namespace {
            return Judged::Outside;
        }
        let namespace = listing.namespaces.get(&pod.namespace);
        match verdict(Candidate {
            labels: &pod.labels,
            annotations: &pod.annotations,
            namespace,
            host_network: pod.host_network,
            ended: pod.ended,
        }) {
            Verdict::Outside(Outside::Unlabelled) if namespace.is_none() => Judged::Unknown,
            Verdict::Outside(_) => Judged::Outside,
            Verdict::ByPod | Verdict::ByNamespace => Judged::Enrolled,
        }
    }

    /// What the runtime waits for, of the newest sandbox of a pod.
    fn standing(
        &self,
        listing: &Listing,
        owners: &HashMap<&str, &ApiPod>,
        pods: &BTreeMap<Arc<str>, LocalPod>,
        sandbox: &Sandbox,
    ) -> Standing {
        let Some(owner) = owners.get(sandbox.uid()) else {
            return Standing::Unknown;
        };
        match self.judge(owner, listing) {
            Judged::Outside => Standing::Outside,
            Judged::Unknown => Standing::Unknown,
            Judged::Enrolled => match pods.get(self.workload(owner).as_str()) {
                Some(pod) => Standing::Awaits(Awaited {
                    uid: pod.uid.clone(),
                    netns: pod.netns.clone(),
                }),
                None => Standing::Unknown,
            },
        }
    }

    fn is_ours(&self, folder: &Path) -> bool {
        self.roots.iter().any(|root| folder.starts_with(root))
    }

    /// The cgroup of all this node's pods, where there is one.
    fn pods_cgroup(&self) -> Option<PodsCgroup> {
        let level = |root: &Path| self.tree.level_of(root);
        let mut unified = self.roots.iter().filter_map(|root| Some((root, level(root)?)));
        let (root, level) = unified.next().filter(|_| unified.next().is_none())?;
        let id = fs::metadata(root).ok()?.ino();
        Some(PodsCgroup { id, level })
    }

    fn workload(&self, pod: &ApiPod) -> String {
        format!("{}//Pod/{}/{}", self.settings.cluster, pod.namespace, pod.name)
    }
}

fn keys_of(listing: &Listing) -> impl Iterator<Item = &str> {
    listing.pods.iter().flat_map(keys)
}

/// Whose a cgroup is. A pod's UID goes before what another one says that it is called.
fn owners(listing: &Listing) -> HashMap<&str, &ApiPod> {
    let aliases = listing
        .pods
        .iter()
        .flat_map(|pod| keys(pod).map(move |key| (key, pod)));
    let uids = listing.pods.iter().map(|pod| (pod.uid.as_str(), pod));
    aliases.chain(uids).collect()
}

#[cfg(test)]
mod tests;
