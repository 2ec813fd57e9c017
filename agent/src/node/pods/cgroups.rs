//! The cgroups of this node's pods: folders that have a pod's UID in their name, wherever the kubelet has put them.
//!
//! No layout is assumed, because there are many: the drivers `systemd` (`kubepods-burstable-pod<uid>.slice`, with `_` for
//! `-` in the UID) and `cgroupfs` (`kubepods/burstable/pod<uid>`), a kubelet in a slice or a `--cgroup-root` of its own, one
//! hierarchy (v2), many (v1), or both (hybrid). What containers' cgroups are called below a pod's does not matter.
//!
//! Two walks: [`Tree::explore`] goes through everything and learns in which folders pods' folders lie; [`Tree::look`] reads
//! those only, and is quick.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, DirEntry},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

/// How deep pods' folders may lie. A kubelet in a container of a container puts them at ten or so.
const DEEPEST: usize = 24;
/// Folders that one walk goes into. A node with systemd has some hundreds outside of its pods.
const MOST_FOLDERS: usize = 20_000;
/// Folders of one pod that are looked into for processes.
const MOST_OF_A_POD: usize = 512;
/// Processes of one pod that are looked at.
const MOST_PROCESSES: usize = 4_096;
/// The inode of the root of cgroup2 in every kernel.
const ROOT_ID: u64 = 1;

/// The folder of one pod in one hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PodFolder {
    pub(super) path: PathBuf,
    /// What the kernel's programs know it by; none in a hierarchy of v1.
    pub(super) cgroup: Option<CgroupId>,
    /// How long it has been there, or has been as it is.
    pub(super) age: Duration,
}

/// A cgroup of the unified hierarchy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CgroupId {
    pub(super) id: u64,
    /// How deep it lies; the root is 0.
    pub(super) level: u32,
}

/// The folders of pods, by the UID in their names.
pub(super) type Folders = BTreeMap<String, Vec<PodFolder>>;

/// Where to look for pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hierarchy {
    path: PathBuf,
    /// How deep `path` lies in the unified hierarchy; none for v1.
    level: Option<u32>,
    /// Whether all of it is this node's pods'.
    only_pods: bool,
}

impl Hierarchy {
    /// The folder of cgroup2 that has this node's pods and nothing else.
    pub(super) fn pods(path: PathBuf, level: u32) -> Self {
        Self {
            only_pods: true,
            ..Self::unified(path, level)
        }
    }

    pub(super) fn is_unified(&self) -> bool {
        self.level.is_some()
    }

    /// A folder of cgroup2, not necessarily the root.
    pub(super) fn unified(path: PathBuf, level: u32) -> Self {
        Self {
            path,
            level: Some(level),
            only_pods: false,
        }
    }

    /// A part of cgroup2, of which nobody can say how deep it lies: a node that is a container itself sees no more.
    pub(super) fn part(path: PathBuf) -> Self {
        Self {
            path,
            level: None,
            only_pods: false,
        }
    }

    /// The mount point of a hierarchy of v1.
    pub(super) fn v1(path: PathBuf) -> Self {
        Self {
            path,
            level: None,
            only_pods: false,
        }
    }
}

/// The hierarchies in which to look, from the text of /proc/self/mounts: the unified one where there is one, and one of v1 where
/// there are any, because a runtime may leave its containers out of the unified one. `is_whole` says whether the root of
/// cgroup2 is at a path: a container has a part of it at another, and a node that is a container has no more than a part.
pub(super) fn hierarchies(mounts: &str, is_whole: impl Fn(&Path) -> bool) -> Vec<Hierarchy> {
    let mount = |line: &str| {
        let mut fields = line.split(' ').skip(1);
        let (path, kind, options) = (fields.next()?, fields.next()?, fields.next()?);
        Some((PathBuf::from(path), kind.to_owned(), options.to_owned()))
    };
    let mounts: Vec<_> = mounts.lines().filter_map(mount).collect();
    let mut parts = mounts.iter().filter(|(_, kind, _)| kind == "cgroup2");
    let unified = match parts.clone().find(|(path, ..)| is_whole(path)) {
        Some((path, ..)) => Some(Hierarchy::unified(path.clone(), 0)),
        None => parts.next().map(|(path, ..)| Hierarchy::part(path.clone())),
    };
    let of = |controller: &str| {
        let has = |options: &str| options.split(',').any(|option| option == controller);
        let mut v1 = mounts.iter().filter(|(_, kind, _)| kind == "cgroup");
        v1.find(|(.., options)| has(options))
            .map(|(path, ..)| Hierarchy::v1(path.clone()))
    };
    // Each of them has every pod under every driver; the first is the one that a kubelet cannot do without.
    let v1 = ["memory", "pids", "name=systemd"].into_iter().find_map(of);
    unified.into_iter().chain(v1).collect()
}

/// Whether the root of cgroup2 is at this path.
pub(super) fn is_root_of_cgroup2(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|folder| folder.ino() == ROOT_ID)
}

/// The hierarchies, and the folders in them that have pods' folders.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    hierarchies: Vec<Hierarchy>,
    /// With the level of what lies in them.
    parents: BTreeMap<PathBuf, Option<u32>>,
}

impl Tree {
    pub(super) fn new(hierarchies: Vec<Hierarchy>) -> Self {
        Self {
            hierarchies,
            parents: BTreeMap::new(),
        }
    }

    /// The folders whose changes matter.
    pub(super) fn parents(&self) -> impl Iterator<Item = &Path> {
        self.parents.keys().map(PathBuf::as_path)
    }

    /// How deep a folder with pods' folders lies in the unified hierarchy.
    pub(super) fn level_of(&self, parent: &Path) -> Option<u32> {
        self.parents.get(parent).copied().flatten()?.checked_sub(1)
    }

    /// Goes through everything and learns where pods are. `odd` are UIDs that do not look like one: a manifest of a static pod
    /// may give it any.
    pub(super) fn explore(&mut self, odd: &[String]) {
        self.parents.clear();
        let mut walk: Vec<_> = self
            .hierarchies
            .iter()
            .map(|of| (of.path.clone(), of.level.map(|level| level + 1), 0, of.only_pods))
            .collect();
        let mut left = MOST_FOLDERS;
        while let Some((folder, level, depth, inside)) = walk.pop() {
            left = left.saturating_sub(1);
            if left == 0 {
                tracing::warn!(
                    folders = MOST_FOLDERS,
                    "there are more cgroups than are looked at: name the pods' own by --pods-cgroup"
                );
                return;
            }
            let is_parent = inside
                || folder
                    .file_name()
                    .is_some_and(|name| is_kubepods(&name.to_string_lossy()));
            if is_parent {
                self.parents.insert(folder.clone(), level);
            }
            for (name, entry) in folders(&folder) {
                if uid_of(&name, odd).is_some() {
                    self.parents.insert(folder.clone(), level);
                } else if depth < DEEPEST {
                    walk.push((entry.path(), level.map(|level| level + 1), depth + 1, is_parent));
                }
            }
        }
    }

    /// The pods' folders, from the folders where they were last seen.
    pub(super) fn look(&self, odd: &[String]) -> Folders {
        let now = SystemTime::now();
        let mut found = Folders::new();
        for (parent, level) in &self.parents {
            for (name, entry) in folders(parent) {
                let Some(uid) = uid_of(&name, odd) else { continue };
                let Ok(metadata) = entry.metadata() else { continue };
                let age = metadata
                    .modified()
                    .ok()
                    .and_then(|at| now.duration_since(at).ok());
                let id = metadata.ino();
                found.entry(uid).or_default().push(PodFolder {
                    path: entry.path(),
                    cgroup: level.map(|level| CgroupId { id, level }),
                    age: age.unwrap_or_default(),
                });
            }
        }
        found
    }
}

/// The folder under which a kubelet has all its pods, of a pod's folder: the topmost that is called so. Two kubelets of one
/// kernel, such as a test's, have one each.
pub(super) fn root_of(folder: &Path) -> Option<&Path> {
    folder
        .ancestors()
        .skip(1)
        .filter(|folder| {
            folder
                .file_name()
                .is_some_and(|name| is_kubepods(&name.to_string_lossy()))
        })
        .last()
}

/// The processes of a pod, as /proc numbers them, in no order. Those that cannot be seen from here are left out.
pub(super) fn processes(folder: &Path) -> BTreeSet<u32> {
    let mut pids = BTreeSet::new();
    let mut walk = vec![folder.to_owned()];
    for _ in 0..MOST_OF_A_POD {
        let Some(folder) = walk.pop() else { break };
        pids.extend(members(&folder));
        if pids.len() > MOST_PROCESSES {
            break;
        }
        walk.extend(folders(&folder).map(|(_, entry)| entry.path()));
    }
    pids
}

fn members(folder: &Path) -> Vec<u32> {
    let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    // 0 is a process of another PID namespace.
    text.lines()
        .filter_map(|line| line.parse().ok())
        .filter(|pid| *pid != 0)
        .collect()
}

fn folders(folder: &Path) -> impl Iterator<Item = (String, DirEntry)> {
    let entries = fs::read_dir(folder).ok();
    entries
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry))
}

fn is_kubepods(name: &str) -> bool {
    let name = name.strip_suffix(".slice").unwrap_or(name);
    name == "kubepods" || name.ends_with("-kubepods")
}

/// The UID of the pod that a folder belongs to, as the API writes it.
fn uid_of(name: &str, odd: &[String]) -> Option<String> {
    let name = name.strip_suffix(".slice").unwrap_or(name).replace('_', "-");
    let (_, uid) = name.rsplit_once("pod")?;
    if is_uid(uid) {
        return Some(uid.to_owned());
    }
    let known = |odd: &&String| name.ends_with(&format!("pod{}", odd.replace('_', "-")));
    odd.iter().find(known).cloned()
}

/// Whether it looks as the API server makes them, or as the kubelet makes those of static pods: a hash.
pub(super) fn is_uid(uid: &str) -> bool {
    let hex = |part: &str| part.bytes().all(|byte| byte.is_ascii_hexdigit());
    let parts: Vec<_> = uid.split('-').collect();
    let lengths: Vec<_> = parts.iter().map(|part| part.len()).collect();
    parts.into_iter().all(hex) && (lengths == [8, 4, 4, 4, 12] || lengths == [32])
}

#[cfg(test)]
mod tests;
