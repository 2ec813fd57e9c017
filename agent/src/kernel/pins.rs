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
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use aya::maps::MapInfo;
use rustix::fs::{FlockOperation, flock, major, minor};

use super::{link, maps};

/// The maps that all generations share.
pub(super) const OWN: &str = "OWN";
pub(super) const DNS_SERVERS: &str = "DNS_SERVERS";
/// The folder whose lock asks for the lock.
const TAKEOVER: &str = "takeover";
/// A generation's suffix until it is whole. (bpffs keeps names with a dot for itself.)
const UNFINISHED: &str = "-unfinished";
/// What is left of generations that nobody writes any more.
const RETIRED: &str = "retired-";
/// How many of those are kept. A socket that is older than that many changes of layout sees the agent as its peer.
const MOST_RETIRED: usize = 2;
/// Pins of links to the cgroup: the program and the cgroup's id, which is its inode number.
const LINK_PREFIX: &str = "link-";
/// Pins of `sk_lookup` links are named by the netns cookie, so that the next agent knows whose they are.
const LOOKUP_PREFIX: &str = "lookup-";

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
        let own = self.generation();
        if own.exists() && !own.is_usable() {
            let aside = free_name(&self.0, "foreign-");
            tracing::warn!(folder = %own.0.display(), aside = %aside.display(), "setting aside pins that do not fit");
            fs::rename(&own.0, aside)?;
        }
        Ok(())
    }

    /// The generations of other layouts, and the folder itself where another version has pinned into it directly.
    ///
    /// # Errors
    /// Those of bpffs.
    pub fn foreign(&self) -> io::Result<Vec<Generation>> {
        let own = self.generation();
        let of_ours = |folder: &Path| {
            let name = folder.file_name().unwrap_or_default().to_string_lossy();
            folder == own.0 || name == TAKEOVER || name.starts_with(RETIRED)
        };
        let mut foreign: Vec<_> = folders(&self.0)?
            .into_iter()
            .filter(|folder| !of_ours(folder))
            .map(Generation)
            .collect();
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
        let Ok(_unused) = lock(&foreign.0, FlockOperation::NonBlockingLockExclusive) else {
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
        let folders = folders(&self.0)?;
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
        fs::remove_dir(&self.0)
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

/// The maps of one layout, and the links of the programs that use them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation(PathBuf);

impl Generation {
    /// Where a map is pinned.
    pub fn map(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Where the link of a program to a cgroup is pinned.
    pub fn link(&self, program: &str, cgroup: u64) -> PathBuf {
        self.0.join(format!("{LINK_PREFIX}{program}@{cgroup}"))
    }

    /// Where the link of `sk_lookup` to a pod's namespace is pinned.
    pub fn lookup(&self, cookie: u64) -> PathBuf {
        self.0.join(format!("{LOOKUP_PREFIX}{cookie}"))
    }

    /// Where such a link is pinned until it can take its place.
    pub fn unfinished_lookup(&self) -> PathBuf {
        self.0.join(format!("{LOOKUP_PREFIX}{UNFINISHED}"))
    }

    /// The links to cgroups.
    pub fn links(&self) -> Vec<PathBuf> {
        let pins = self.pins().unwrap_or_default();
        let is_link = |pin: &PathBuf| name_of(pin).starts_with(LINK_PREFIX);
        pins.into_iter().filter(is_link).collect()
    }

    /// The netns cookies of the pods that `sk_lookup` is attached to.
    pub fn lookups(&self) -> Vec<u64> {
        let pins = self.pins().unwrap_or_default();
        let cookie = |pin: &PathBuf| name_of(pin).strip_prefix(LOOKUP_PREFIX)?.parse().ok();
        pins.iter().filter_map(cookie).collect()
    }

    /// Whether it was made, whole.
    pub fn exists(&self) -> bool {
        self.0.exists()
    }

    /// An empty folder to make the generation in, aside.
    ///
    /// # Errors
    /// Those of bpffs.
    pub fn begin(&self) -> io::Result<Self> {
        let mut name = self.0.clone().into_os_string();
        name.push(UNFINISHED);
        let aside = Self(name.into());
        make_folder(&aside.0)?;
        Ok(aside)
    }

    /// Gives one that was made aside its name: it is whole.
    ///
    /// # Errors
    /// Those of bpffs.
    pub fn finish(&self, aside: &Self) -> io::Result<()> {
        fs::rename(&aside.0, &self.0)
    }

    /// Says that this process has connections in it, for as long as the answer is kept.
    ///
    /// # Errors
    /// Those of flock(2).
    pub fn hold(&self) -> io::Result<File> {
        lock(&self.0, FlockOperation::NonBlockingLockShared)
    }

    /// Whether every map is there and as this build has it.
    fn is_usable(&self) -> bool {
        maps::LAYOUT.iter().all(|map| {
            MapInfo::from_pin(self.map(map.name))
                .is_ok_and(|info| (info.key_size(), info.value_size()) == (map.key, map.value))
        })
    }

    /// Stops what catches new sockets. Connections that were caught go on.
    ///
    /// # Errors
    /// Those of bpffs.
    pub fn stop_producing(&self) -> io::Result<()> {
        self.unpin(is_producer)
    }

    fn remove(&self) -> io::Result<()> {
        self.unpin(|_| true)?;
        fs::remove_dir(&self.0)
    }

    fn unpin(&self, which: impl Fn(&str) -> bool) -> io::Result<()> {
        let pins = self.pins()?;
        let mut chosen = pins.iter().filter(|pin| which(&name_of(pin)));
        chosen.try_for_each(|pin| match name_of(pin) {
            name if name.starts_with(LINK_PREFIX) || name.starts_with(LOOKUP_PREFIX) => link::detach(pin),
            _ => link::unpin(pin),
        })
    }

    /// Everything that is pinned here, but the maps that all share and what the kernel puts into the root of bpffs.
    fn pins(&self) -> io::Result<Vec<PathBuf>> {
        let mut pins = Vec::new();
        for entry in fs::read_dir(&self.0)? {
            let entry = entry?;
            let name = entry.file_name();
            let others = name == OWN || name == DNS_SERVERS || name == "maps.debug" || name == "progs.debug";
            if !others && !entry.file_type()?.is_dir() {
                pins.push(entry.path());
            }
        }
        Ok(pins)
    }
}

/// What catches new sockets: the programs of connect(2) and sendmsg(2).
fn is_producer(pin: &str) -> bool {
    pin.starts_with(LINK_PREFIX) && (pin.contains("connect") || pin.contains("sendmsg"))
}

/// What shows sockets their peers for as long as they live.
fn is_reader(pin: &str) -> bool {
    pin.starts_with(LINK_PREFIX) && (pin.contains("getpeername") || pin.contains("recvmsg"))
}

fn name_of(pin: &Path) -> String {
    let name = pin.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// A lock on a folder: bpffs holds no plain files.
fn lock(folder: &Path, operation: FlockOperation) -> io::Result<File> {
    let folder = File::open(folder)?;
    flock(&folder, operation)?;
    Ok(folder)
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
    fn the_holder_of_a_lock_is_found() {
        let locks = "1: POSIX  ADVISORY  WRITE 7 00:1c:5678 0 EOF\n\
                     2: FLOCK  ADVISORY  READ  8 00:1c:5678 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 1234 00:1c:5678 0 EOF\n\
                     3: -> FLOCK  ADVISORY  WRITE 99 00:1c:5678 0 EOF\n";
        assert_eq!(holder(locks, "00:1c:5678"), Some(1234));
        assert_eq!(holder(locks, "00:1d:5678"), None);
        assert_eq!(holder("nonsense\n", "00:1c:5678"), None);
    }

    #[test]
    fn pins_are_told_apart_by_their_names() {
        for (pin, producer, reader) in [
            ("link-weft_connect4@1", true, false),
            ("link-weft_sendmsg6@1", true, false),
            ("link-weft_sockops@1", false, false),
            ("link-weft_getpeername4@1", false, true),
            ("link-weft_recvmsg6@1", false, true),
            ("lookup-77", false, false),
            ("PODS", false, false),
        ] {
            assert_eq!((is_producer(pin), is_reader(pin)), (producer, reader), "{pin}");
        }
    }
}
