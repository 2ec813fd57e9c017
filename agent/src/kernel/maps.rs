//! The programs' maps, typed. One writer at a time: the node role's enrolment loop owns [`Maps`]; each worker has its
//! own [`SocketStates`], which touches only sockets of its own.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

pub use agent_common::ListenerKind;
use agent_common::{Address, Config, ListenerKey, Pod, PortKey, SocketState, flags, port_mode};
use aya::maps::{Array, HashMap, MapData, MapError, SkStorage, SockHash};

/// Names of the maps, as `agent-ebpf` declares them. Each is pinned under its name.
pub const NAMES: [&str; 6] = [
    "PODS",
    "SOCKETS",
    "HANDSHAKES",
    "LISTENERS",
    "PORT_MODES",
    "CONFIG",
];

/// The maps that enrolment writes.
pub struct Maps {
    pods: HashMap<MapData, u64, Pod>,
    listeners: SockHash<MapData, ListenerKey>,
    port_modes: HashMap<MapData, PortKey, u32>,
    config: Array<MapData, Config>,
}

impl Maps {
    /// Opens the maps that are pinned in `pin_dir`.
    ///
    /// # Errors
    /// When one is missing, or has another layout than this build expects.
    pub fn open(pin_dir: &Path) -> Result<Self, MapError> {
        let open = |name| MapData::from_pin(pin_dir.join(name));
        Ok(Self {
            pods: HashMap::try_from(aya::maps::Map::HashMap(open("PODS")?))?,
            listeners: SockHash::try_from(aya::maps::Map::SockHash(open("LISTENERS")?))?,
            port_modes: HashMap::try_from(aya::maps::Map::HashMap(open("PORT_MODES")?))?,
            config: Array::try_from(aya::maps::Map::Array(open("CONFIG")?))?,
        })
    }

    /// Says among how many workers `sk_lookup` spreads connections.
    ///
    /// # Errors
    /// Those of bpf(2).
    pub fn set_workers(&mut self, workers: u16) -> Result<(), MapError> {
        self.config.set(
            0,
            Config {
                workers: workers.max(1).into(),
            },
            0,
        )
    }

    /// Captures the sockets that a pod's apps make from now on.
    ///
    /// # Errors
    /// When the map is full (4,096 pods), and those of bpf(2).
    pub fn insert_pod(&mut self, cookie: u64, addresses: &[IpAddr]) -> Result<(), MapError> {
        let first = |v4: bool| {
            addresses
                .iter()
                .find(|ip| ip.is_ipv4() == v4)
                .map(|ip| Address::from(*ip))
        };
        let pod = Pod {
            v4: first(true).unwrap_or_default(),
            v6: first(false).unwrap_or_default(),
        };
        self.pods.insert(cookie, pod, 0)
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

fn absent_is_fine(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => result,
    }
}

/// The state that sockets carry in the kernel: what was dialled, and whose socket it is.
pub struct SocketStates(Mutex<SkStorage<MapData, SocketState>>);

impl SocketStates {
    /// Opens the pinned socket storage.
    ///
    /// # Errors
    /// When it is missing, or has another layout than this build expects.
    pub fn open(pin_dir: &Path) -> Result<Self, MapError> {
        let map = MapData::from_pin(pin_dir.join("SOCKETS"))?;
        Ok(Self(Mutex::new(SkStorage::try_from(aya::maps::Map::SkStorage(
            map,
        ))?)))
    }

    /// What the app dialled, for an accepted socket that was steered to us; `None` for one that was not.
    pub fn original_destination(&self, accepted: &impl AsRawFd) -> Option<SocketAddr> {
        let state = self.storage().get(accepted, 0).ok()?;
        let steered = state.flags & flags::STEERED != 0;
        steered.then(|| SocketAddr::new(state.addr.into(), state.port as u16))
    }

    /// Whom an accepted socket was told that it was dialled on behalf of.
    pub fn on_behalf_of(&self, accepted: &impl AsRawFd) -> Option<SocketAddr> {
        let state = self.storage().get(accepted, 0).ok()?;
        let told = state.flags & flags::ON_BEHALF != 0;
        told.then(|| SocketAddr::new(state.addr.into(), state.port as u16))
    }

    /// Marks a socket as the agent's own, before it dials: it is not steered.
    ///
    /// # Errors
    /// Those of bpf(2).
    pub fn mark_own(&self, socket: &impl AsRawFd) -> Result<(), MapError> {
        self.storage().insert(
            socket,
            SocketState {
                flags: flags::AGENT,
                ..SocketState::default()
            },
            0,
        )
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
        };
        self.storage().insert(socket, state, 0)
    }

    /// aya wants `&mut` to write; a worker has a handle of its own, so the lock is never contended.
    fn storage(&self) -> MutexGuard<'_, SkStorage<MapData, SocketState>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
