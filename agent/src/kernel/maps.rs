//! The programs' maps, typed. One writer at a time: the node role's enrolment loop owns [`Maps`]; each worker has its
//! own [`SocketStates`], which touches only sockets of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

pub use agent_common::ListenerKind;
use agent_common::{
    Address, Config, ListenerKey, Pod, PortKey, SocketState, flags,
    layout::{HASH, MEANING},
    pod_cgroup, pod_flags, port_mode,
};
use aya::maps::{Array, HashMap, Map, MapData, MapError, SkStorage, SockHash};

use super::pins::{GENERATION, Generation, Pins};

/// The name of this build's layout: agents that have the same one can use the same maps.
pub fn layout() -> String {
    format!("{GENERATION}{MEANING}-{HASH:08x}")
}

/// The maps that enrolment writes.
pub struct Maps {
    pods: HashMap<MapData, u64, Pod>,
    listeners: SockHash<MapData, ListenerKey>,
    port_modes: HashMap<MapData, PortKey, u32>,
    pod_cgroups: HashMap<MapData, u64, u32>,
    /// What is in `pod_cgroups`: nobody else writes it meanwhile.
    standings: BTreeMap<u64, u32>,
    config: Array<MapData, Config>,
}

impl Maps {
    /// Opens the maps of a generation.
    ///
    /// # Errors
    /// When one is missing, or has another layout than this build expects.
    pub fn open(generation: &Generation) -> Result<Self, MapError> {
        let open = |name| MapData::from_pin(generation.map(name));
        let pod_cgroups = HashMap::try_from(Map::HashMap(open("POD_CGROUPS")?))?;
        Ok(Self {
            standings: pod_cgroups.iter().collect::<Result<_, _>>()?,
            pod_cgroups,
            pods: HashMap::try_from(Map::HashMap(open("PODS")?))?,
            listeners: SockHash::try_from(Map::SockHash(open("LISTENERS")?))?,
            port_modes: HashMap::try_from(Map::HashMap(open("PORT_MODES")?))?,
            config: Array::try_from(Map::Array(open("CONFIG")?))?,
        })
    }

    /// Says which of the node's pods' cgroups are held, and which are not. `hold` is for those that are in neither.
    ///
    /// The order: nobody who waits reads as released, nobody is held for not being in the map before everybody is in it, and
    /// whoever was held by name is so until it is for not being in the map, or the other way about.
    ///
    /// # Errors
    /// When the map is full (4,096 cgroups), and those of bpf(2). Whoever is not in the map is not held then.
    pub fn set_pod_cgroups(&mut self, cgroups: &PodCgroups, hold: Option<Hold>) -> Result<(), MapError> {
        let written = self.write_pod_cgroups(cgroups).or_else(|_| {
            // Those that are gone may have filled it.
            self.forget_pod_cgroups(cgroups)?;
            self.write_pod_cgroups(cgroups)
        });
        let hold = hold.filter(|_| written.is_ok());
        let [level, other] = cgroups.levels;
        let told = self.configure(|config| {
            (config.pod_level, config.pod_level_too) = (level, other);
            config.hold_until = hold.map_or(0, |hold| nanoseconds(hold.until));
            if let Some(Hold { pods, .. }) = hold {
                (config.pods, config.pods_level) = (pods.id, pods.level);
            }
        });
        let forgotten = self.forget_pod_cgroups(cgroups);
        written.and(told).and(forgotten)
    }

    fn forget_pod_cgroups(&mut self, cgroups: &PodCgroups) -> Result<(), MapError> {
        let is_gone = |cgroup: &u64| !cgroups.held.contains(cgroup) && !cgroups.released.contains(cgroup);
        for gone in self.standings.keys().copied().filter(is_gone).collect::<Vec<_>>() {
            absent_is_fine(self.pod_cgroups.remove(&gone))?;
            self.standings.remove(&gone);
        }
        Ok(())
    }

    fn write_pod_cgroups(&mut self, cgroups: &PodCgroups) -> Result<(), MapError> {
        let held = cgroups.held.iter().map(|cgroup| (*cgroup, pod_cgroup::HELD));
        let released = cgroups.released.difference(&cgroups.held);
        let released = released.map(|cgroup| (*cgroup, pod_cgroup::RELEASED));
        for (cgroup, standing) in held.chain(released) {
            if self.standings.get(&cgroup) != Some(&standing) {
                self.pod_cgroups.insert(cgroup, standing, 0)?;
                self.standings.insert(cgroup, standing);
            }
        }
        Ok(())
    }

    /// Holds nobody any more of whom nothing is said.
    ///
    /// # Errors
    /// Those of bpf(2).
    pub fn end_hold(&mut self) -> Result<(), MapError> {
        self.configure(|config| config.hold_until = 0)
    }

    /// Among how many workers `sk_lookup` spreads connections; 0 when no agent has said it yet.
    pub fn workers(&self) -> u16 {
        let config = self.config.get(&0, 0).unwrap_or_default();
        config.workers.try_into().unwrap_or(u16::MAX)
    }

    /// Says among how many workers `sk_lookup` spreads connections.
    ///
    /// # Errors
    /// Those of bpf(2).
    pub fn set_workers(&mut self, workers: u16) -> Result<(), MapError> {
        self.configure(|config| config.workers = workers.max(1).into())
    }

    /// Says who the node itself is, and under which cgroup its pods are: a process of the node that is in no pod reaches pods
    /// past their policies. Without `pods` none does.
    ///
    /// # Errors
    /// Those of bpf(2).
    pub fn set_node(&mut self, node: Option<u64>, pods: Option<PodsCgroup>) -> Result<(), MapError> {
        self.configure(|config| {
            config.node = node.unwrap_or_default();
            config.pods = pods.map_or(0, |pods| pods.id);
            config.pods_level = pods.map_or(0, |pods| pods.level);
        })
    }

    /// Says under which cgroup the node's pods are, as [`Self::set_node`].
    ///
    /// # Errors
    /// Those of bpf(2).
    pub fn set_pods_cgroup(&mut self, pods: PodsCgroup) -> Result<(), MapError> {
        self.configure(|config| (config.pods, config.pods_level) = (pods.id, pods.level))
    }

    /// Says until when connections may go from app to app, by the kernel's monotonic clock; zero ends it now.
    ///
    /// # Errors
    /// Those of bpf(2).
    pub fn set_lease(&mut self, until: Duration) -> Result<(), MapError> {
        self.configure(|config| config.lease = nanoseconds(until))
    }

    fn configure(&mut self, change: impl FnOnce(&mut Config)) -> Result<(), MapError> {
        let before = self.config.get(&0, 0).unwrap_or_default();
        let mut config = before;
        change(&mut config);
        // Most turns say the same again, and a write of the whole is one of what programs read.
        if config == before {
            return Ok(());
        }
        self.config.set(0, config, 0)
    }

    /// Captures the sockets that a pod's apps make from now on; those that ask DNS servers if `dns` is set.
    ///
    /// # Errors
    /// When the map is full (4,096 pods), and those of bpf(2).
    pub fn insert_pod(&mut self, cookie: u64, addresses: &[IpAddr], dns: bool) -> Result<(), MapError> {
        let first = |v4: bool| {
            addresses
                .iter()
                .find(|ip| ip.is_ipv4() == v4)
                .map(|ip| Address::from(*ip))
        };
        let pod = Pod {
            v4: first(true).unwrap_or_default(),
            v6: first(false).unwrap_or_default(),
            flags: if dns { pod_flags::DNS } else { 0 },
        };
        self.pods.insert(cookie, pod, 0)
    }

    /// Refuses a pod's new sockets: an earlier agent captured it, and this one could not yet.
    ///
    /// # Errors
    /// When the map is full, and those of bpf(2).
    pub fn refuse_pod(&mut self, cookie: u64) -> Result<(), MapError> {
        self.pods.insert(cookie, Pod::default(), 0)
    }

    /// Captures no more of a pod's new sockets.
    ///
    /// # Errors
    /// Those of bpf(2). A pod that is not there is fine.
    pub fn remove_pod(&mut self, cookie: u64) -> Result<(), MapError> {
        absent_is_fine(self.pods.remove(&cookie))
    }

    /// The netns cookies of the pods that are captured.
    pub fn pods(&self) -> Vec<u64> {
        self.pods.keys().filter_map(Result::ok).collect()
    }

    /// Hands SYNs of one kind to `listener`; replaces another agent's.
    ///
    /// # Errors
    /// When the map is full, and those of bpf(2).
    pub fn insert_listener(
        &mut self,
        pod: IpAddr,
        kind: ListenerKind,
        worker: u16,
        listener: &impl AsRawFd,
    ) -> Result<(), MapError> {
        let key = ListenerKey {
            pod: pod.into(),
            kind: kind as u16,
            worker,
        };
        self.listeners.insert(key, listener.as_raw_fd(), 0)
    }

    /// Refuses SYNs of one kind.
    ///
    /// # Errors
    /// Those of bpf(2). One that is not there is fine.
    pub fn remove_listener(&mut self, pod: IpAddr, kind: ListenerKind, worker: u16) -> Result<(), MapError> {
        let key = ListenerKey {
            pod: pod.into(),
            kind: kind as u16,
            worker,
        };
        absent_is_fine(self.listeners.remove(&key))
    }

    /// Makes `modes` the pod's only port modes: whether plaintext is refused, by port; port 0 stands for the rest.
    ///
    /// # Errors
    /// When the map is full, and those of bpf(2).
    pub fn set_port_modes(&mut self, pod: IpAddr, modes: &[(u16, bool)]) -> Result<(), MapError> {
        let pod = Address::from(pod);
        for (port, strict) in modes {
            let mode = if *strict {
                port_mode::STRICT
            } else {
                port_mode::PERMISSIVE
            };
            self.port_modes.insert(
                PortKey {
                    pod,
                    port: (*port).into(),
                },
                mode,
                0,
            )?;
        }
        let kept = |key: &PortKey| modes.iter().any(|(port, _)| u32::from(*port) == key.port);
        let stale: Vec<PortKey> = self
            .port_modes
            .keys()
            .filter_map(Result::ok)
            .filter(|key| key.pod == pod && !kept(key))
            .collect();
        stale
            .iter()
            .try_for_each(|key| absent_is_fine(self.port_modes.remove(key)))
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Which of the node's pods may dial.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodCgroups {
    /// The cgroups of those that may not, by their ids.
    pub held: BTreeSet<u64>,
    /// Those of all others. A cgroup that is in both is held.
    pub released: BTreeSet<u64>,
    /// The depths at which they lie; 0 for none.
    pub levels: [u32; 2],
}

/// That pods which are not seen yet are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    /// Under which cgroup.
    pub pods: PodsCgroup,
    /// Until when, by the kernel's monotonic clock.
    pub until: Duration,
}

/// The cgroup under which all pods of the node are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodsCgroup {
    /// Its id: the inode number of its folder.
    pub id: u64,
    /// How deep it lies; the root of cgroup2 is 0.
    pub level: u32,
}

pub(super) fn absent_is_fine(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => result,
    }
}

/// One of 254 loopback addresses to dial apps from over IPv4. The programs let nobody be dialled from there of whom they
/// have no note.
pub fn behalf_source(number: u8) -> IpAddr {
    Address::behalf_source(number).into()
}

/// Why an app is not dialled although it may be there.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error(
    "the kernel could not note who the client is (is its map BEHALF full?), and the app must not see a loopback peer"
)]
pub struct Unnoted;

/// The state that sockets carry in the kernel: what was dialled, and whose socket it is.
pub struct SocketStates {
    states: Mutex<SkStorage<MapData, SocketState>>,
    own: Mutex<SkStorage<MapData, u32>>,
}

/// What the programs have told of a connection that was steered to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steered {
    /// What the app dialled.
    pub destination: SocketAddr,
    /// What the endpoint is to be picked by, where the way began in the kernel: see [`super::verdicts::Verdicts::spread`].
    pub draw: Option<u64>,
}

impl SocketStates {
    /// Opens the socket storage of a generation, and the one that all share.
    ///
    /// # Errors
    /// When it is missing, or has another layout than this build expects.
    pub fn open(generation: &Generation, pins: &Pins) -> Result<Self, MapError> {
        let states = Map::SkStorage(MapData::from_pin(generation.map("SOCKETS"))?);
        let own = Map::SkStorage(MapData::from_pin(pins.own())?);
        Ok(Self {
            states: Mutex::new(SkStorage::try_from(states)?),
            own: Mutex::new(SkStorage::try_from(own)?),
        })
    }

    /// What the app dialled, for an accepted socket that was steered to us; `None` for one that was not.
    pub fn steered(&self, accepted: &impl AsRawFd) -> Option<Steered> {
        let state = self.storage().get(accepted, 0).ok()?;
        let steered = state.flags & flags::STEERED != 0;
        steered.then(|| Steered {
            destination: SocketAddr::new(state.addr.into(), state.port as u16),
            draw: (state.flags & flags::DRAWN != 0).then(|| state.draw.into()),
        })
    }

    /// Whom an accepted socket was told that it was dialled on behalf of.
    pub fn on_behalf_of(&self, accepted: &impl AsRawFd) -> Option<SocketAddr> {
        let state = self.storage().get(accepted, 0).ok()?;
        let told = state.flags & flags::ON_BEHALF != 0;
        told.then(|| SocketAddr::new(state.addr.into(), state.port as u16))
    }

    /// Marks a socket as the agent's own, before it dials: it is not steered, by no version's programs.
    ///
    /// # Errors
    /// Those of bpf(2).
    pub fn mark_own(&self, socket: &impl AsRawFd) -> Result<(), MapError> {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        own.insert(socket, 1, 0)
    }

    /// Marks a socket that is to dial an app on behalf of `client`: the app will see `client` as its peer.
    ///
    /// # Errors
    /// Those of bpf(2).
    pub fn mark_on_behalf(&self, socket: &impl AsRawFd, client: SocketAddr) -> Result<(), MapError> {
        let state = SocketState {
            addr: client.ip().into(),
            port: client.port().into(),
            flags: flags::AGENT | flags::ON_BEHALF,
            ..SocketState::default()
        };
        self.storage().insert(socket, state, 0)?;
        self.mark_own(socket)
    }

    /// Whether the kernel could note on whose behalf a socket dials, which it does when the connect begins. A connection
    /// of which this fails must not be used: the app would not see who is there.
    ///
    /// # Errors
    /// [`Unnoted`], the reason.
    pub fn noted(&self, socket: &impl AsRawFd) -> Result<(), Unnoted> {
        let state = self.storage().get(socket, 0).map_err(|_| Unnoted)?;
        if state.flags & flags::UNNOTED == 0 {
            Ok(())
        } else {
            Err(Unnoted)
        }
    }

    /// aya wants `&mut` to write; a worker has a handle of its own, so the lock is never contended.
    fn storage(&self) -> MutexGuard<'_, SkStorage<MapData, SocketState>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_has_a_name_that_a_folder_may_have() {
        let name = layout();
        assert!(name.starts_with("maps-2-") && name.len() == 15, "{name}");
        assert_eq!(name, layout());
    }
}
