//! From a pod's cgroup to its network namespace, and the proof that it is that; or from the container runtime's word, which is
//! root's on this node and is believed.
//!
//! A process is found in the cgroup, its namespace is opened by way of /proc, and then it is asked again whether the process
//! is still there: a number that was given to another process in between is noticed. The namespace must be neither the
//! node's nor the agent's own, and it must have the pod's addresses, or any at all where the API does not know them yet.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, Read as _},
    net::IpAddr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use thiserror::Error;

use super::cgroups::{PodFolder, processes};
use crate::net::{
    netlink,
    netns::{Netns, NetnsSource},
};

/// Processes of one pod whose namespaces are looked at. All but a few containers share their pod's.
const MOST_TRIED: usize = 64;

/// Device and inode of a namespace's file.
pub(super) type Identity = (u64, u64);

/// Why a pod's network namespace is not known.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(super) enum Missing {
    #[error("the pod has no cgroup on this node yet")]
    NoCgroup,
    #[error("no process runs in the pod's cgroup {}", .0.display())]
    NoProcess(PathBuf),
    #[error("the processes in the pod's cgroup {} are in the node's network namespace", .0.display())]
    OnlyNodes(PathBuf),
    #[error("the container runtime says that the pod is in {at}, which is the node's network namespace")]
    Nodes { at: String },
    #[error("the pod's network namespace {at} has no address yet")]
    NoAddress { at: String },
    #[error("the API says that the pod has the address {address}, but its network namespace {at} does not")]
    WrongAddress { address: IpAddr, at: String },
    #[error("cannot look into the network namespace {at}: {why}")]
    Look { at: String, why: String },
    #[error("it is in the network namespace of {by}")]
    Taken { by: Arc<str> },
}

impl From<Missing> for NetnsSource {
    fn from(why: Missing) -> Self {
        Self::Missing {
            runs: !matches!(why, Missing::NoCgroup | Missing::NoProcess(_)),
            why: why.to_string().into(),
        }
    }
}

/// A pod's network namespace, and by which process it was found.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) netns: Netns,
    pub(super) identity: Identity,
    pub(super) addresses: Vec<IpAddr>,
    by: By,
    /// What the container runtime said when it was looked for.
    told: Option<PathBuf>,
}

/// What a namespace was found by.
#[derive(Clone, Debug)]
enum By {
    /// A process of the pod.
    Process(Process),
    /// Its place on the node, by the container runtime's word.
    Path(PathBuf),
}

impl Found {
    /// Whether the container runtime says the same as when it was looked for.
    pub(super) fn is_as_told(&self, told: Option<&Path>) -> bool {
        self.told.as_deref() == told
    }
}

/// A process; no other one is taken for it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Process {
    /// When it was started, in the kernel's ticks: of a pod's processes the sandbox is the first.
    started: u64,
    pid: u32,
    folder: PathBuf,
}

/// How pods' namespaces are found.
#[derive(Clone, Debug)]
pub(super) struct Finder {
    /// Where the node's processes are: /proc, in a pod with hostPID.
    proc: PathBuf,
    /// The node's own namespace and the agent's.
    foreign: HashSet<Identity>,
}

impl Finder {
    pub(super) fn new(proc: PathBuf, foreign: impl IntoIterator<Item = Identity>) -> Self {
        Self {
            proc,
            foreign: foreign.into_iter().collect(),
        }
    }

    /// The namespace of the pod with these folders, whose addresses are `expected`, if they are known. The container runtime
    /// may have told where it is: that is believed before processes are asked, which may not be there yet.
    ///
    /// # Errors
    /// What is missing, or wrong with the one that comes closest.
    pub(super) fn find(
        &self,
        folders: &[PodFolder],
        told: Option<&Path>,
        expected: &[IpAddr],
    ) -> Result<Found, Missing> {
        let by_word = told.map(|path| self.find_at(path, expected));
        let found = match by_word {
            Some(Ok(found)) => Ok(found),
            Some(Err(why)) => self.find_in(folders, expected).map_err(|other| match other {
                Missing::NoCgroup | Missing::NoProcess(_) => why,
                other => other,
            }),
            None => self.find_in(folders, expected),
        };
        found.map(|found| Found {
            told: told.map(Path::to_owned),
            ..found
        })
    }

    /// The namespace at a place that the container runtime has told.
    fn find_at(&self, path: &Path, expected: &[IpAddr]) -> Result<Found, Missing> {
        let at = path.display().to_string();
        let opened = self.open_at(path).map_err(|source| Missing::Look {
            at: at.clone(),
            why: source.to_string(),
        });
        let (file, identity) = opened?;
        if self.foreign.contains(&identity) {
            return Err(Missing::Nodes { at });
        }
        check(By::Path(path.to_owned()), at, (file, identity), expected)
    }

    /// A path is the node's own, which need not be the agent's: its first process has it.
    fn open_at(&self, path: &Path) -> io::Result<(File, Identity)> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = match path.strip_prefix("/proc") {
            Ok(rest) => File::from(openat(CWD, self.proc.join(rest), flags, Mode::empty())?),
            Err(_) => {
                let root = openat(
                    CWD,
                    self.proc.join("1/root"),
                    OFlags::PATH | OFlags::CLOEXEC,
                    Mode::empty(),
                );
                // Links among its folders lead to other ones of the node's.
                let on_node =
                    root.and_then(|root| openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT));
                File::from(on_node.or_else(|_| openat(CWD, path, flags, Mode::empty()))?)
            }
        };
        let metadata = file.metadata()?;
        Ok((file, (metadata.dev(), metadata.ino())))
    }

    fn find_in(&self, folders: &[PodFolder], expected: &[IpAddr]) -> Result<Found, Missing> {
        let first = folders.first().ok_or(Missing::NoCgroup)?;
        let mut candidates: Vec<Process> = folders
            .iter()
            .flat_map(|folder| self.candidates(&folder.path))
            .collect();
        candidates.sort_unstable();
        candidates.dedup_by(|a, b| (a.started, a.pid) == (b.started, b.pid));
        let mut missing = Missing::NoProcess(first.path.clone());
        let mut tried = HashSet::new();
        for process in candidates.into_iter().take(MOST_TRIED) {
            let Ok((file, identity)) = self.open(&process) else {
                continue;
            };
            if self.foreign.contains(&identity) || self.is_of_starter(&process, identity) {
                if tried.is_empty() {
                    missing = Missing::OnlyNodes(first.path.clone());
                }
                continue;
            }
            if !tried.insert(identity) {
                continue;
            }
            let at = format!("/proc/{}/ns/net", process.pid);
            match check(By::Process(process), at, (file, identity), expected) {
                Ok(found) => return Ok(found),
                // The sandbox's comes first; a container may have made others.
                Err(why) if tried.len() == 1 => missing = why,
                Err(_) => {}
            }
        }
        Err(missing)
    }

    /// Whether what was found is still what that process has, and the process still the pod's.
    pub(super) fn is_current(&self, found: &Found) -> bool {
        let opened = match &found.by {
            By::Process(process) => self.open(process),
            By::Path(path) => self.open_at(path),
        };
        opened.is_ok_and(|(_, identity)| identity == found.identity)
    }

    /// Whether it is the namespace of whoever started the pod: a runtime moves a process into the cgroup first, and into a
    /// namespace then. Where nodes are namespaces themselves, that one is not known otherwise.
    fn is_of_starter(&self, process: &Process, identity: Identity) -> bool {
        let of_parent = || {
            let (parent, _) = stat(&self.open_process(process.pid)?)?;
            if processes(&process.folder).contains(&parent) {
                return Ok(None);
            }
            let netns = fs::metadata(self.proc.join(parent.to_string()).join("ns/net"))?;
            Ok::<_, io::Error>(Some((netns.dev(), netns.ino())))
        };
        of_parent().is_ok_and(|parents| parents == Some(identity))
    }

    fn candidates(&self, folder: &Path) -> Vec<Process> {
        let process = |pid: u32| {
            let folder_of_it = self.open_process(pid).ok()?;
            Some(Process {
                started: started(&folder_of_it).ok()?,
                pid,
                folder: folder.to_owned(),
            })
        };
        processes(folder).into_iter().filter_map(process).collect()
    }

    fn open_process(&self, pid: u32) -> io::Result<File> {
        File::open(self.proc.join(pid.to_string()))
    }

    /// The namespace of a process. In this order: the process (its folder in /proc stays that process's for ever), its
    /// namespace, whether it is in the cgroup, whether it lives.
    fn open(&self, process: &Process) -> io::Result<(File, Identity)> {
        let gone = || io::Error::from(io::ErrorKind::NotFound);
        let folder = self.open_process(process.pid)?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let netns = File::from(openat(&folder, "ns/net", flags, Mode::empty())?);
        if !processes(&process.folder).contains(&process.pid) {
            return Err(gone());
        }
        if started(&folder)? != process.started {
            return Err(gone());
        }
        let metadata = netns.metadata()?;
        Ok((netns, (metadata.dev(), metadata.ino())))
    }
}

fn check(
    by: By,
    at: String,
    (file, identity): (File, Identity),
    expected: &[IpAddr],
) -> Result<Found, Missing> {
    let look = |source: io::Error| Missing::Look {
        at: at.clone(),
        why: source.to_string(),
    };
    let netns = Netns::hold(file, Path::new(&at)).map_err(look)?;
    let addresses = netns.enter(netlink::addresses).map_err(look)?;
    if addresses.is_empty() {
        return Err(Missing::NoAddress { at });
    }
    if let Some(address) = expected.iter().find(|address| !addresses.contains(address)) {
        return Err(Missing::WrongAddress {
            address: *address,
            at,
        });
    }
    Ok(Found {
        netns,
        identity,
        addresses,
        by,
        told: None,
    })
}

/// When a process was started; fails when it has ended.
fn started(process: &File) -> io::Result<u64> {
    Ok(stat(process)?.1)
}

/// The process's parent, and when it was started; fails when it has ended. proc(5): the 4th and the 22nd field; the second,
/// its name, may have anything in it.
fn stat(process: &File) -> io::Result<(u32, u64)> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let mut text = String::new();
    File::from(openat(process, "stat", flags, Mode::empty())?).read_to_string(&mut text)?;
    let after_name = text.rsplit(')').next().unwrap_or_default();
    let fields: Vec<_> = after_name.split_ascii_whitespace().collect();
    let lives = !matches!(fields.first(), None | Some(&("Z" | "X")));
    let parent = fields.get(1).and_then(|field| field.parse().ok());
    let started = fields.get(19).and_then(|field| field.parse().ok());
    parent
        .zip(started)
        .filter(|_| lives)
        .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
}

#[cfg(test)]
mod tests;
