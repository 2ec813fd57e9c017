//! The folder on bpffs in which everything is pinned, and who may change it.
//!
//! ```text
//! /sys/fs/bpf/weft       locked by the agent that writes the maps
//!   OWN                  the mark of agents' own sockets, of one layout for ever
//!   DNS_SERVERS          which DNS servers pods ask, of one layout for ever
//!   takeover/            locked by an agent that asks for the lock
//!   maps-1-0a1b2c3d/     a generation: the maps of one layout, and the links of the programs that use them;
//!                        locked, shared, by every agent that has connections in it
//!   maps-1-…-unfinished/ one that is being made
//!   retired-1/           what shows the sockets of an earlier generation their peers
//! ```
//!
//! A generation is made aside and renamed when it is whole, so that one that a crash left half-made is known by its
//! name. Two generations work side by side while one agent replaces another. Called by `load` and `takeover`, and by
//! `weft release`.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock, major, minor};

use super::{link, maps};

mod generation;

pub use generation::Generation;
use generation::{is_producer, is_reader};

/// The maps that all generations share.
pub(super) const OWN: &str = "OWN";
pub(super) const DNS_SERVERS: &str = "DNS_SERVERS";
/// The folder whose lock asks for the lock.
const TAKEOVER: &str = "takeover";
/// A generation's suffix until it is whole. (bpffs keeps names with a dot for itself.)
const UNFINISHED: &str = "-unfinished";
/// What the names of generations begin with.
pub(super) const GENERATION: &str = "maps-";
/// What the names of those begin with that were set aside because they do not fit.
const FOREIGN: &str = "foreign-";
/// What is left of generations that nobody writes any more.
const RETIRED: &str = "retired-";
/// How many of those are kept. A socket that is older than that many changes of layout sees the agent as its peer.
const MOST_RETIRED: usize = 2;

/// The folder that a person means by this path: bpffs takes no name with a dot, and names of nodes, of which folders are made,
/// have them. They become `_`.
///
/// # Errors
/// None; for clap.
pub fn place(path: &str) -> Result<PathBuf, Infallible> {
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    let dots_only = name.chars().all(|c| c == '.');
    let name = if dots_only {
        name.to_owned()
    } else {
        name.replace('.', "_")
    };
    let slash = if path.contains('/') { "/" } else { "" };
    Ok(format!("{parent}{slash}{name}").into())
}

/// The folder on bpffs.
#[derive(Clone, Debug)]
pub struct Pins(PathBuf);

impl Pins {
    /// The folder, which must exist.
    pub fn new(root: PathBuf) -> Self {
        Self(root)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Where the mark of agents' own sockets is pinned, which all generations share.
    pub fn own(&self) -> PathBuf {
        self.0.join(OWN)
    }

    /// Where the list of DNS servers is pinned, which all generations share.
    pub fn dns_servers(&self) -> PathBuf {
        self.0.join(DNS_SERVERS)
    }

    /// The generation of this build's layout. It may not exist.
    pub fn generation(&self) -> Generation {
        Generation(self.0.join(maps::layout()))
    }

    /// The lock of the agent that writes the maps.
    ///
    /// # Errors
    /// WouldBlock when another process holds it.
    pub fn lock(&self) -> io::Result<File> {
        lock(&self.0, FlockOperation::NonBlockingLockExclusive)
    }

    /// The lock of the agent that asks for the other one.
    ///
    /// # Errors
    /// WouldBlock when another process asks already.
    pub fn request(&self) -> io::Result<File> {
        let folder = self.0.join(TAKEOVER);
        make_folder(&folder)?;
        lock(&folder, FlockOperation::NonBlockingLockExclusive)
    }

    /// Whether an agent has asked for the lock since the folder was made.
    pub fn was_ever_requested(&self) -> bool {
        self.0.join(TAKEOVER).exists()
    }

    /// Whether an agent asks for the lock.
    pub fn is_requested(&self) -> bool {
        let folder = self.0.join(TAKEOVER);
        matches!(lock(&folder, FlockOperation::NonBlockingLockShared), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// The process that holds the lock of the folder, as this process's PID namespace numbers it.
    pub fn holder(&self) -> Option<u32> {
        let folder = fs::metadata(&self.0).ok()?;
        let (major, minor) = (major(folder.dev()), minor(folder.dev()));
        let file = format!("{major:02x}:{minor:02x}:{}", folder.ino());
        holder(&fs::read_to_string("/proc/locks").ok()?, &file)
    }

    /// Removes what a crash left half-made, and makes sure that the generation of this build's layout is usable: one
    /// that is not is set aside and counts as foreign from now on.
    ///
    /// # Errors
    /// Those of bpffs.
    pub fn sweep(&self) -> io::Result<()> {
        for folder in folders(&self.0)? {
            if folder.to_string_lossy().ends_with(UNFINISHED) {
                tracing::warn!(folder = %folder.display(), "removing pins that were left half-made");
                Generation(folder).remove()?;
            }
        }
        self.strip_retired()?;
        let own = self.generation();
        link::detach(&own.unfinished_lookup())?;
        if own.exists() && !own.is_usable() {
            let aside = free_name(&self.0, FOREIGN);
            tracing::warn!(folder = %own.0.display(), aside = %aside.display(), "setting aside pins that do not fit");
            fs::rename(&own.0, aside)?;
        }
        Ok(())
    }

    /// Retired generations keep what shows sockets their peers; the rest goes, if a crash has left it.
    ///
    /// # Errors
    /// Those of bpffs.
    pub fn strip_retired(&self) -> io::Result<()> {
        folders(&self.0)?
            .into_iter()
            .filter(|folder| name_of(folder).starts_with(RETIRED))
            .try_for_each(|folder| Generation(folder).unpin(|pin| !is_reader(pin)))
    }

    /// The generations of other layouts, and the folder itself where another version has pinned into it directly. What is
    /// none of weft's is left alone.
    ///
    /// # Errors
    /// Those of bpffs.
    pub fn foreign(&self) -> io::Result<Vec<Generation>> {
        let own = self.generation();
        let is_foreign = |folder: &PathBuf| {
            let name = name_of(folder);
            *folder != own.0 && (name.starts_with(GENERATION) || name.starts_with(FOREIGN))
        };
        let folders = folders(&self.0)?.into_iter();
        let mut foreign: Vec<_> = folders.filter(is_foreign).map(Generation).collect();
        let flat = Generation(self.0.clone());
        if !flat.pins()?.is_empty() {
            foreign.push(flat);
        }
        Ok(foreign)
    }

    /// Takes a foreign generation out of use, but for what its sockets need to be shown their peers. Answers false while
    /// an agent has connections in it.
    ///
    /// # Errors
    /// Those of bpffs.
    pub fn retire(&self, foreign: &Generation) -> io::Result<bool> {
        if foreign.0 == self.0 {
            return foreign.unpin(|_| true).map(|()| true);
        }
        let Some(_unused) = foreign.unused() else {
            return Ok(false);
        };
        // Renamed first: whatever happens now, nobody takes it for whole again.
        let retired = Generation(free_name(&self.0, RETIRED));
        fs::rename(&foreign.0, &retired.0)?;
        retired.unpin(|pin| !is_reader(pin))?;
        self.forget_the_oldest()?;
        Ok(true)
    }

    fn forget_the_oldest(&self) -> io::Result<()> {
        let number = |folder: &Path| -> Option<u32> {
            let name = folder.file_name()?.to_str()?;
            name.strip_prefix(RETIRED)?.parse().ok()
        };
        let mut retired: Vec<_> = folders(&self.0)?
            .into_iter()
            .filter_map(|folder| number(&folder).map(|number| (number, folder)))
            .collect();
        retired.sort_unstable();
        let kept = retired.len().saturating_sub(MOST_RETIRED);
        retired
            .drain(..kept)
            .try_for_each(|(_, folder)| Generation(folder).remove())
    }

    /// Unpins everything and removes the folder. What catches new sockets goes first, so that none is steered to nobody.
    ///
    /// # Errors
    /// WouldBlock when an agent still has connections, and those of bpffs.
    pub fn remove(&self) -> io::Result<()> {
        let is_ours = |folder: &PathBuf| {
            let name = name_of(folder);
            [GENERATION, FOREIGN, RETIRED]
                .iter()
                .any(|prefix| name.starts_with(prefix))
        };
        let folders: Vec<_> = folders(&self.0)?.into_iter().filter(is_ours).collect();
        let in_use = folders
            .iter()
            .map(|folder| lock(folder, FlockOperation::NonBlockingLockExclusive));
        let _unused = in_use.collect::<io::Result<Vec<_>>>()?;
        let all = || folders.iter().chain([&self.0]).cloned().map(Generation);
        all().try_for_each(|generation| generation.unpin(is_producer))?;
        for folder in &folders {
            Generation(folder.clone()).remove()?;
        }
        Generation(self.0.clone()).unpin(|_| true)?;
        link::unpin(&self.own())?;
        link::unpin(&self.dns_servers())?;
        match fs::remove_dir(self.0.join(TAKEOVER)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::remove_dir(&self.0)
    }

    /// Whether the folder is the root of its file system, which other programs pin into as well.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub fn is_mount_point(&self) -> io::Result<bool> {
        let device = |path: &Path| fs::metadata(path).map(|it| it.dev());
        Ok(device(&self.0)? != device(&self.0.join(".."))?)
    }

    /// How many pods are captured, and how many programs are attached to cgroups.
    pub fn attached(&self) -> (usize, usize) {
        let folders = folders(&self.0).unwrap_or_default();
        let all: Vec<_> = folders
            .into_iter()
            .chain([self.0.clone()])
            .map(Generation)
            .collect();
        let pods: BTreeSet<_> = all.iter().flat_map(Generation::lookups).collect();
        (
            pods.len(),
            all.iter().map(|generation| generation.links().len()).sum(),
        )
    }

    /// Whether there is anything at all.
    pub fn exists(&self) -> bool {
        self.0.exists()
    }
}

fn name_of(pin: &Path) -> String {
    let name = pin.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// A lock on a folder: bpffs holds no plain files.
fn lock(path: &Path, operation: FlockOperation) -> io::Result<File> {
    let folder = File::open(path)?;
    flock(&folder, operation)?;
    // `weft release` may have removed it meanwhile, and another agent made it anew.
    if folder.metadata()?.ino() == fs::metadata(path)?.ino() {
        Ok(folder)
    } else {
        Err(io::ErrorKind::NotFound.into())
    }
}

fn make_folder(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

fn folders(root: &Path) -> io::Result<Vec<PathBuf>> {
    let mut folders = Vec::new();
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            folders.push(entry.path());
        }
    }
    folders.sort_unstable();
    Ok(folders)
}

/// `prefix` and the number after the highest in use.
fn free_name(root: &Path, prefix: &str) -> PathBuf {
    let number = |folder: &PathBuf| -> Option<u32> { name_of(folder).strip_prefix(prefix)?.parse().ok() };
    let folders = folders(root).unwrap_or_default();
    let highest = folders.iter().filter_map(number).max().unwrap_or(0);
    root.join(format!("{prefix}{}", highest.saturating_add(1)))
}

/// From lines such as `3: FLOCK  ADVISORY  WRITE 1234 00:1c:5678 0 EOF` (proc_locks(5)). A process of another PID
/// namespace has no number.
fn holder(locks: &str, folder: &str) -> Option<u32> {
    locks.lines().find_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        match fields[..] {
            [_, "FLOCK", _, "WRITE", pid, file, ..] if file == folder => {
                pid.parse().ok().filter(|pid| *pid > 0)
            }
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_nodes_become_names_that_bpffs_takes() {
        for (given, taken) in [
            ("/sys/fs/bpf/weft", "/sys/fs/bpf/weft"),
            (
                "/sys/fs/bpf/weft-ip-10-0-0-1.ec2.internal",
                "/sys/fs/bpf/weft-ip-10-0-0-1_ec2_internal",
            ),
            ("/run/a.b/bpf/weft", "/run/a.b/bpf/weft"),
            ("weft.a", "weft_a"),
            ("/sys/fs/bpf/..", "/sys/fs/bpf/.."),
            ("/weft", "/weft"),
        ] {
            assert_eq!(place(given), Ok(taken.into()));
        }
    }

    #[test]
    fn the_holder_of_a_lock_is_found() {
        let locks = "1: POSIX  ADVISORY  WRITE 7 00:1c:5678 0 EOF\n\
                     2: FLOCK  ADVISORY  READ  8 00:1c:5678 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 1234 00:1c:5678 0 EOF\n\
                     3: -> FLOCK  ADVISORY  WRITE 99 00:1c:5678 0 EOF\n";
        assert_eq!(holder(locks, "00:1c:5678"), Some(1234));
        assert_eq!(holder(locks, "00:1d:5678"), None);
        assert_eq!(holder("nonsense\n", "00:1c:5678"), None);
    }
}
