//! The cgroups of this node's pods: folders that have a pod's UID in their name, wherever the kubelet has put them.
//!
//! No layout is assumed, because there are many: the drivers `systemd` (`kubepods-burstable-pod<uid>.slice`, with `_` for
//! `-` in the UID) and `cgroupfs` (`kubepods/burstable/pod<uid>`), a kubelet in a slice or a `--cgroup-root` of its own, one
//! hierarchy (v2), many (v1), or both (hybrid). What containers' cgroups are called below a pod's does not matter.
//!
//! Two walks: [`Tree::explore`] goes through everything and learns in which folders pods' folders lie; [`Tree::look`] reads
//! those only, and is quick. Neither takes what it could not read for gone.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, DirEntry},
    io::{self, ErrorKind},
    os::unix::fs::{DirEntryExt as _, MetadataExt as _},
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

/// The folders of pods, by the UID in their names; by their paths where that is none that is known.
pub(super) type Folders = BTreeMap<String, Vec<PodFolder>>;

/// What one look shows.
#[derive(Debug, Default)]
pub(super) struct Looked {
    pub(super) pods: Folders,
    /// What lies beside pods' folders, or above them, and is no pod's: the kubelet's own, by quality of service, and whatever
    /// somebody else has made there.
    pub(super) others: Vec<(PathBuf, CgroupId)>,
    /// Whether that is all: nothing could not be read.
    pub(super) whole: bool,
}

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

    /// A part of cgroup2, of which nobody can say how deep it lies: the agent is not in it, and the root cannot be seen.
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
/// there are any, because a runtime may leave its containers out of the unified one. `depth` says how deep what is at a path lies in
/// all of cgroup2: a container has a part of it, and a node that is a container has no more than a part either.
pub(super) fn hierarchies(mounts: &str, depth: impl Fn(&Path) -> Option<u32>) -> Vec<Hierarchy> {
    let mount = |line: &str| {
        let mut fields = line.split(' ').skip(1);
        let (path, kind, options) = (fields.next()?, fields.next()?, fields.next()?);
        Some((PathBuf::from(path), kind.to_owned(), options.to_owned()))
    };
    let mounts: Vec<_> = mounts.lines().filter_map(mount).collect();
    let mut parts = mounts.iter().filter(|(_, kind, _)| kind == "cgroup2");
    let known = parts.clone().filter_map(|(path, ..)| Some((depth(path)?, path)));
    let unified = match known.min() {
        Some((level, path)) => Some(Hierarchy::unified(path.clone(), level)),
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

/// The hierarchies, and the folders in them that have pods' folders.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    hierarchies: Vec<Hierarchy>,
    parents: BTreeMap<PathBuf, Parent>,
    /// Whether the walk through everything came to its end.
    whole: bool,
}

/// A folder that has pods' folders, or may have.
#[derive(Clone, Copy, Debug)]
struct Parent {
    /// The level of what lies in it.
    level: Option<u32>,
    /// Whether it belongs to a kubelet: all that lies in it is a pod's, or a parent too.
    only_pods: bool,
}

impl Tree {
    pub(super) fn new(hierarchies: Vec<Hierarchy>) -> Self {
        Self {
            hierarchies,
            parents: BTreeMap::new(),
            whole: false,
        }
    }

    /// The folders whose changes matter.
    pub(super) fn parents(&self) -> impl Iterator<Item = &Path> {
        self.parents.keys().map(PathBuf::as_path)
    }

    /// How deep a folder with pods' folders lies in the unified hierarchy.
    pub(super) fn level_of(&self, parent: &Path) -> Option<u32> {
        self.parents.get(parent)?.level?.checked_sub(1)
    }

    /// Goes through everything and learns where pods are. `odd` are UIDs that do not look like one: a manifest of a static pod
    /// may give it any.
    pub(super) fn explore(&mut self, odd: &[String]) {
        let before = std::mem::take(&mut self.parents);
        self.whole = true;
        let mut walk: Vec<_> = self
            .hierarchies
            .iter()
            .map(|of| (of.path.clone(), of.level.map(|level| level + 1), 0, of.only_pods))
            .collect();
        let mut left = MOST_FOLDERS;
        let mut unread = false;
        while let Some((folder, level, depth, inside)) = walk.pop() {
            left = left.saturating_sub(1);
            if left == 0 {
                tracing::warn!(
                    folders = MOST_FOLDERS,
                    "there are more cgroups than are looked at: name the pods' own by --pods-cgroup"
                );
                self.whole = false;
                break;
            }
            let only_pods = inside
                || folder
                    .file_name()
                    .is_some_and(|name| is_kubepods(&name.to_string_lossy()));
            if only_pods {
                self.parents.insert(folder.clone(), Parent { level, only_pods });
            }
            let Ok(entries) = folders(&folder) else {
                unread = true;
                self.whole &= !only_pods;
                continue;
            };
            for (name, entry) in entries {
                if uid_of(&name, odd).is_some() {
                    self.parents.insert(folder.clone(), Parent { level, only_pods });
                } else if depth < DEEPEST && !(only_pods && is_named_as_pod(&name)) {
                    walk.push((entry.path(), level.map(|level| level + 1), depth + 1, only_pods));
                }
            }
        }
        if unread || !self.whole {
            // What is not seen this time is not gone for that.
            let unseen = before.into_iter().filter(|(folder, _)| folder.exists());
            for (folder, parent) in unseen {
                self.parents.entry(folder).or_insert(parent);
            }
        }
    }

    /// The pods' folders, from the folders where they were last seen. A kubelet's folder that is new is gone into as well.
    pub(super) fn look(&mut self, odd: &[String]) -> Looked {
        let mut looked = Looked {
            whole: self.whole,
            ..Looked::default()
        };
        let mut walk: Vec<_> = self
            .parents
            .iter()
            .map(|(folder, it)| (folder.clone(), *it))
            .collect();
        let mut at = 0;
        while let Some((folder, parent)) = walk.get(at).cloned() {
            at += 1;
            let Ok(entries) = folders(&folder) else {
                looked.whole = false;
                continue;
            };
            for (name, entry) in entries {
                let path = entry.path();
                let uid = uid_of(&name, odd);
                // One that a person has named, and that nobody has shown yet.
                let unknown =
                    || (parent.only_pods && is_named_as_pod(&name)).then(|| path.display().to_string());
                if let Some(key) = uid.or_else(unknown) {
                    looked.add_pod(key, &entry, parent.level);
                } else if parent.only_pods {
                    let cgroup = parent.level.map(|level| CgroupId {
                        id: entry.ino(),
                        level,
                    });
                    looked.others.extend(cgroup.map(|cgroup| (path.clone(), cgroup)));
                    if !self.parents.contains_key(&path) && self.parents.len() < MOST_FOLDERS {
                        let below = Parent {
                            level: parent.level.map(|level| level + 1),
                            ..parent
                        };
                        self.parents.insert(path.clone(), below);
                        walk.push((path, below));
                    }
                }
            }
        }
        looked
    }
}

impl Looked {
    fn add_pod(&mut self, key: String, entry: &DirEntry, level: Option<u32>) {
        let metadata = match entry.metadata() {
            Ok(metadata) => metadata,
            Err(error) => {
                self.whole &= error.kind() == ErrorKind::NotFound;
                return;
            }
        };
        let age = metadata
            .modified()
            .ok()
            .and_then(|at| SystemTime::now().duration_since(at).ok());
        let id = metadata.ino();
        self.pods.entry(key).or_default().push(PodFolder {
            path: entry.path(),
            cgroup: level.map(|level| CgroupId { id, level }),
            age: age.unwrap_or_default(),
        });
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
        let below = folders(&folder).into_iter().flatten();
        walk.extend(below.map(|(_, entry)| entry.path()));
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

/// What lies in a folder; nothing where it is not there any more.
fn folders(folder: &Path) -> io::Result<Vec<(String, DirEntry)>> {
    let read = fs::read_dir(folder).and_then(|entries| entries.collect::<io::Result<Vec<_>>>());
    let entries = match read {
        Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
        read => read?,
    };
    let folders = entries
        .into_iter()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    Ok(folders
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry))
        .collect())
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

/// Whether a kubelet's folder is called as it calls those of pods, whatever the UID.
fn is_named_as_pod(name: &str) -> bool {
    let is_parent = |name: &str| is_kubepods(name) || is_named_as_parent(Path::new(name));
    let last = match name.strip_suffix(".slice") {
        // systemd writes `_` for a `-` of a part's own. What comes before may be called by anything: a root called `/pods`.
        Some(slice) => slice.rsplit_once('-').filter(|(parent, _)| is_parent(parent)),
        None => Some(("", name)),
    };
    let uid = last.and_then(|(_, last)| last.strip_prefix("pod"));
    let is_uid = |uid: &str| uid.starts_with(|it: char| it.is_ascii_alphanumeric());
    uid.is_some_and(is_uid) && !is_parent(name)
}

/// Whether a kubelet's folder is called as it calls those in which pods of one quality of service are.
pub(super) fn is_named_as_parent(folder: &Path) -> bool {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let name = name.strip_suffix(".slice").unwrap_or(&name);
    let name = name.rsplit('-').next().unwrap_or_default();
    matches!(name, "burstable" | "besteffort")
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
