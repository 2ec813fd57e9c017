//! Which pods' cgroups are held until they are captured, and which are let go.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use super::{Judged, Looker, UNKNOWN};
use crate::{
    feed::LocalPod,
    kernel::maps::PodsCgroup,
    node::pods::{
        ApiPod, Awaited, Holds, Listing,
        cgroups::{CgroupId, Folders, Looked, PodFolder, is_named_as_parent},
    },
};

/// A pod's cgroup that was seen.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) since: Instant,
    /// In each hierarchy.
    pub(super) folders: Vec<PodFolder>,
    /// Whether what it dials is refused until it is captured: it has not been a pod outside of the mesh.
    pub(super) held: bool,
}

impl Seen {
    /// Whether these are the same pod's folders: one of its cgroups is among them. One that is in none proves nothing.
    fn is_of(&self, folders: &[PodFolder]) -> bool {
        let ids = |folders: &[PodFolder]| -> BTreeSet<u64> {
            let cgroups = folders.iter().filter_map(|folder| folder.cgroup);
            cgroups.map(|cgroup| cgroup.id).collect()
        };
        let (before, now) = (ids(&self.folders), ids(folders));
        before.is_empty() || now.is_empty() || !before.is_disjoint(&now)
    }

    /// As it is by now. What was not seen this time is not gone for that, where not all could be read.
    pub(super) fn again(self, folders: &[PodFolder], whole: bool) -> Self {
        let is_seen = |before: &PodFolder| folders.iter().any(|folder| folder.path == before.path);
        let unread = |before: &PodFolder| !whole && !is_seen(before) && !is_gone(&before.path);
        let left = self.folders.iter().filter(|before| unread(before));
        Self {
            folders: folders.iter().chain(left).cloned().collect(),
            ..self
        }
    }
}

impl Looker {
    /// A static pod that is made anew has its predecessor's UID, and another cgroup. It is a new one: neither has it run before,
    /// nor is its predecessor's namespace its own.
    pub(super) fn forget_remade(&mut self, owners: &HashMap<&str, &ApiPod>, folders: &Folders) {
        let Some(seen) = &mut self.seen else { return };
        for (key, folders) in folders {
            if seen.get(key).is_some_and(|known| known.is_of(folders)) {
                continue;
            }
            seen.remove(key);
            if let Some(pod) = owners.get(key.as_str()) {
                self.found.remove(&pod.uid);
            }
        }
    }

    /// Which pods' cgroups are held, and which are not.
    pub(super) fn holds(
        &mut self,
        listing: &Listing,
        owners: &HashMap<&str, &ApiPod>,
        looked: &Looked,
        pods: &BTreeMap<Arc<str>, LocalPod>,
        now: Instant,
    ) -> Holds {
        let is_first = self.seen.is_none();
        let mut before = self.seen.take().unwrap_or_default();
        let mut seen = BTreeMap::new();
        for (key, folders) in &looked.pods {
            let owner = owners.get(key.as_str()).copied();
            let judged = owner.map_or(Judged::Unknown, |pod| self.judge(pod, listing));
            if owner.is_none() && !folders.iter().any(|folder| self.is_ours(&folder.path)) {
                continue;
            }
            let of_pod = match before.remove(key) {
                Some(known) => known.again(folders, looked.whole),
                None => Seen {
                    since: now,
                    held: !is_first || is_new(judged, folders),
                    folders: folders.clone(),
                },
            };
            seen.insert(key.clone(), of_pod);
        }
        if !looked.whole {
            // What was not seen this time is neither new nor gone for that.
            before.retain(|_, of_pod| of_pod.folders.iter().any(|folder| !is_gone(&folder.path)));
            seen.append(&mut before);
        }
        let mut holds = Holds::default();
        for (key, of_pod) in &mut seen {
            let owner = owners.get(key.as_str()).copied();
            let judged = owner.map_or(Judged::Unknown, |pod| self.judge(pod, listing));
            self.reconsider(key, of_pod, judged, owner.is_none() && listing.current, now);
            let cgroups = of_pod.folders.iter().filter_map(|folder| folder.cgroup);
            if !of_pod.held {
                holds.released.extend(cgroups.map(|cgroup| cgroup.id));
                continue;
            }
            let awaited = owner.filter(|_| judged == Judged::Enrolled).and_then(|pod| {
                let pod = pods.get(self.workload(pod).as_str())?;
                Some(Awaited {
                    uid: pod.uid.clone(),
                    netns: pod.netns.clone(),
                })
            });
            if !self.warned && of_pod.folders.iter().all(|folder| folder.cgroup.is_none()) {
                self.warned = true;
                tracing::warn!(
                    pod = key,
                    "pods of this node are not in cgroup2, or no more than a part of it is mounted here, as in a node that is a container: what they dial while they start, before they are captured, cannot be refused"
                );
            }
            let held = cgroups.map(|cgroup| (cgroup.id, awaited.clone()));
            holds.cgroups.extend(held);
        }
        self.seen = Some(seen);
        holds
    }

    /// Adds at which depths pods lie, and whether those that are not seen yet are held: where they lie as a kubelet lays them,
    /// in the folder of all of them or in one below.
    pub(super) fn with_depths(
        &mut self,
        mut holds: Holds,
        looked: &Looked,
        root: Option<PodsCgroup>,
    ) -> Holds {
        let seen = self.seen.iter().flat_map(BTreeMap::values);
        let all = seen.flat_map(|of_pod| of_pod.folders.iter().filter_map(|folder| folder.cgroup));
        let all: Vec<CgroupId> = all.collect();
        let told: BTreeSet<u32> = all.iter().map(|cgroup| cgroup.level).collect();
        let usual = root.map(|root| [root.level + 1, root.level + 2]);
        if let Some(usual) = usual
            && told.iter().all(|level| usual.contains(level))
        {
            holds.levels = usual;
            holds.released.extend(self.strangers(looked, usual));
            holds.unseen = looked.whole;
            if holds.unseen {
                // What is in neither is held, and no longer than there is an agent: who is unknown is not named.
                holds.cgroups.retain(|_, awaited| awaited.is_some());
            }
            return holds;
        }
        if usual.is_some() && !self.warned_late {
            self.warned_late = true;
            tracing::warn!(
                ?told,
                "pods do not lie in the folder of all pods or in one below it, which is where a kubelet makes them: those that start are held back once they are seen, and not before (is --pods-cgroup the kubelet's own?)"
            );
        }
        let held = all.iter().filter(|cgroup| holds.cgroups.contains_key(&cgroup.id));
        let levels: BTreeSet<u32> = held.map(|cgroup| cgroup.level).collect();
        if levels.len() > holds.levels.len() {
            tracing::warn!(
                ?levels,
                "pods lie at more than two depths: not all that start are held back"
            );
        }
        let levels = holds.levels.iter_mut().zip(levels);
        levels.for_each(|(to, level)| *to = level);
        holds
    }

    /// What lies where pods do, and is neither a pod's nor has pods': nobody knows what it is, and it is not weft's to hold.
    fn strangers(&self, looked: &Looked, [outer, inner]: [u32; 2]) -> Vec<u64> {
        let folders = looked.pods.values().flatten();
        let with_pods: BTreeSet<&Path> = folders.filter_map(|folder| folder.path.parent()).collect();
        let is_parent = |folder: &Path| is_named_as_parent(folder) || with_pods.contains(folder);
        let is_strange = |(folder, cgroup): &&(PathBuf, CgroupId)| {
            let beside_pods =
                cgroup.level == outer || cgroup.level == inner && folder.parent().is_some_and(is_parent);
            beside_pods && self.is_ours(folder) && !is_parent(folder)
        };
        let strange = looked.others.iter().filter(is_strange);
        strange.map(|(_, cgroup)| cgroup.id).collect()
    }

    fn reconsider(&self, key: &str, seen: &mut Seen, judged: Judged, is_strange: bool, now: Instant) {
        seen.held = match judged {
            Judged::Enrolled => seen.held,
            Judged::Outside => false,
            Judged::Unknown => {
                let too_long = is_strange && now.saturating_duration_since(seen.since) >= UNKNOWN;
                if seen.held && too_long {
                    tracing::warn!(
                        pod = key,
                        "the API does not show this pod of the node: what it dials is not refused any more"
                    );
                }
                seen.held && !too_long
            }
        };
    }
}

/// At the first look pods that are outside, and are not known, have run before: they are not stopped.
fn is_new(judged: Judged, folders: &[PodFolder]) -> bool {
    match judged {
        Judged::Enrolled => true,
        Judged::Outside => false,
        Judged::Unknown => folders.iter().any(|folder| folder.age < UNKNOWN),
    }
}

/// Whether a folder is not there any more; what cannot be read may be.
fn is_gone(folder: &Path) -> bool {
    fs::symlink_metadata(folder).is_err_and(|error| error.kind() == ErrorKind::NotFound)
}
