//! Every map of weft's programs, once. Each is pinned by its name, so that a restarted agent finds it again.

use agent_common::{Config, Handshake, ListenerKey, Pod, PortKey, SocketState, Tuple};
use aya_ebpf::{
    btf_maps::SkStorage,
    macros::{btf_map, map},
    maps::{Array, HashMap, LruHashMap, SockHash},
};

/// The pods whose sockets are captured, by netns cookie. Written by the agent.
#[map]
pub static PODS: HashMap<u64, Pod> = HashMap::with_max_entries(4_096, 0);

/// What a socket carries with it. Written here, and by the agent for its own sockets.
#[btf_map]
pub static SOCKETS: SkStorage<SocketState> = SkStorage::new();

/// Connections between SYN and ESTABLISHED. LRU: an app that opens and never completes cannot fill it; an entry that
/// is lost means a refused connection, never a wrong one.
#[map]
pub static HANDSHAKES: LruHashMap<Tuple, Handshake> = LruHashMap::with_max_entries(65_536, 0);

/// The agent's listeners. An entry goes when its socket is closed, so a dead agent has none.
#[map]
pub static LISTENERS: SockHash<ListenerKey> = SockHash::with_max_entries(65_536, 0);

/// Which ports refuse plaintext. Written by the agent from the mesh.
#[map]
pub static PORT_MODES: HashMap<PortKey, u32> = HashMap::with_max_entries(65_536, 0);

/// Settings.
#[map]
pub static CONFIG: Array<Config> = Array::with_max_entries(1, 0);
