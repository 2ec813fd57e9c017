//! One generation: a folder with the maps of one layout, and the links of the programs that use them.

use std::{
    collections::HashSet,
    fs::{self, File},
    io,
    path::PathBuf,
};

use agent_common::layout::MAPS;
use aya::maps::MapInfo;
use rustix::fs::FlockOperation;

use super::{UNFINISHED, lock, make_folder, name_of};
use crate::kernel::link;

/// Pins of links to the cgroup: the program and the cgroup's id, which is its inode number.
const LINK_PREFIX: &str = "link-";
/// Pins of `sk_lookup` links are named by the netns cookie, so that the next agent knows whose they are.
const LOOKUP_PREFIX: &str = "lookup-";

/// The maps of one layout, and the links of the programs that use them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation(pub(super) PathBuf);

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

    /// A lock that no agent has which uses it; none while one does.
    pub(super) fn unused(&self) -> Option<File> {
        lock(&self.0, FlockOperation::NonBlockingLockExclusive).ok()
    }

    /// Detaches `sk_lookup` from pods in which another generation's has taken over, unless an agent that lives still accepts
    /// there.
    ///
    /// # Errors
    /// Those of bpffs.
    pub fn abandon(&self, pods: &HashSet<u64>) -> io::Result<()> {
        let Some(_unused) = self.unused() else {
            return Ok(());
        };
        let abandoned = self.lookups().into_iter().filter(|pod| pods.contains(pod));
        abandoned
            .into_iter()
            .try_for_each(|pod| link::detach(&self.lookup(pod)))
    }

    /// Whether every map is there and as this build has it.
    pub(super) fn is_usable(&self) -> bool {
        MAPS.iter().all(|map| {
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

    pub(super) fn remove(&self) -> io::Result<()> {
        self.unpin(|_| true)?;
        fs::remove_dir(&self.0)
    }

    pub(super) fn unpin(&self, which: impl Fn(&str) -> bool) -> io::Result<()> {
        let pins = self.pins()?;
        let mut chosen = pins.iter().filter(|pin| which(&name_of(pin)));
        chosen.try_for_each(|pin| match name_of(pin) {
            name if name.starts_with(LINK_PREFIX) || name.starts_with(LOOKUP_PREFIX) => link::detach(pin),
            _ => link::unpin(pin),
        })
    }

    /// What weft has pinned here, but for the maps that all generations share.
    pub(super) fn pins(&self) -> io::Result<Vec<PathBuf>> {
        let mut pins = Vec::new();
        for entry in fs::read_dir(&self.0)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_link = name.starts_with(LINK_PREFIX) || name.starts_with(LOOKUP_PREFIX);
            let is_map = MAPS.iter().any(|map| map.name == name);
            if (is_link || is_map) && !entry.file_type()?.is_dir() {
                pins.push(entry.path());
            }
        }
        Ok(pins)
    }
}

/// What catches new sockets: the programs of connect(2) and sendmsg(2).
pub(super) fn is_producer(pin: &str) -> bool {
    pin.starts_with(LINK_PREFIX) && (pin.contains("connect") || pin.contains("sendmsg"))
}

/// What shows sockets their peers for as long as they live.
pub(super) fn is_reader(pin: &str) -> bool {
    pin.starts_with(LINK_PREFIX) && (pin.contains("getpeername") || pin.contains("recvmsg"))
}

#[cfg(test)]
mod tests {
    use super::*;

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
