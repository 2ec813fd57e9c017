//! Every map of weft's programs, once. Each is pinned by its name, so that a restarted agent finds it again.

use agent_common::{
    Config, Crowd, DnsServer, DnsSlot, Handshake, ListenerKey, Pod, PortKey, SocketState, Tuple,
    same_node::{Choice, ChoiceKey, Direct, MOST_DIRECTS, Pair},
};
use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::SkStorage,
    macros::{btf_map, map},
    maps::{Array, HashMap, LruHashMap, RingBuf, SockHash},
};

/// The pods whose sockets are captured, by netns cookie. Written by the agent.
#[map]
pub static PODS: HashMap<u64, Pod> = HashMap::with_max_entries(4_096, 0);

/// The cgroups of the node's pods, and whether what they dial is held: see [`agent_common::pod_cgroup`]. Those that are not in
/// here are held as long as an agent looks at them. Written by the agent; stays when it is gone.
#[map]
pub static POD_CGROUPS: HashMap<u64, u32> = HashMap::with_max_entries(4_096, BPF_F_NO_PREALLOC);

/// What a socket carries with it. Written here, and by the agent for its own sockets.
#[btf_map]
pub static SOCKETS: SkStorage<SocketState> = SkStorage::new();

/// 1 for the sockets that agents made: they are never steered. Apart from [`SOCKETS`], and for ever of this layout, so
/// that two agents of which one replaces the other know each other's sockets. Written by agents, never here.
#[btf_map]
pub static OWN: SkStorage<u32> = SkStorage::new();

/// Steered connections between SYN and ESTABLISHED. LRU: an app that opens and never completes cannot fill it; an entry
/// that is lost means a refused connection, never a wrong one.
#[map]
pub static HANDSHAKES: LruHashMap<Tuple, Handshake> = LruHashMap::with_max_entries(65_536, 0);

/// Connections of agents to apps, from SYN to ESTABLISHED. Apart from [`HANDSHAKES`] and not LRU: nothing that an app does
/// fills it or takes an entry away. An entry goes when the app's socket has been told, or when the agent's is closed.
#[map]
pub static BEHALF: HashMap<Tuple, Handshake> = HashMap::with_max_entries(65_536, 0);

/// The agent's listeners. An entry goes when its socket is closed, so a dead agent has none.
#[map]
pub static LISTENERS: SockHash<ListenerKey> = SockHash::with_max_entries(65_536, 0);

/// Which pods dial much, and what: see `crowds`. LRU: a count that is lost begins anew.
#[map]
pub static CROWDS: LruHashMap<u64, Crowd> = LruHashMap::with_max_entries(16_384, 0);

/// Which DNS servers a pod asks. Like [`OWN`] of this layout for ever: an agent that replaces another must know the servers
/// of datagrams that were steered before. LRU, for the entries of pods that are gone.
#[map]
pub static DNS_SERVERS: LruHashMap<DnsSlot, DnsServer> = LruHashMap::with_max_entries(65_536, 0);

/// Which ports refuse plaintext. Written by the agent from the mesh.
#[map]
pub static PORT_MODES: HashMap<PortKey, u32> = HashMap::with_max_entries(65_536, 0);

/// Settings.
#[map]
pub static CONFIG: Array<Config> = Array::with_max_entries(1, 0);

/// Which pods of this node may reach which others without the agent. What is not in here goes through it. Written by the
/// agent, and asked twice: when the app dials, and when the SYN arrives.
#[map]
pub static VERDICTS: HashMap<Pair, u32> = HashMap::with_max_entries(65_536, BPF_F_NO_PREALLOC);

/// Among how many endpoints a pod's connections to a service are spread. Written by the agent.
#[map]
pub static SERVICES: HashMap<Pair, u32> = HashMap::with_max_entries(65_536, BPF_F_NO_PREALLOC);

/// Those of these endpoints that are dialled directly. Written by the agent.
#[map]
pub static CHOICES: HashMap<ChoiceKey, Choice> = HashMap::with_max_entries(65_536, BPF_F_NO_PREALLOC);

/// Connections from app to app. Not LRU: nothing takes the entry of a connection away before its end. Before it is full,
/// new connections go through the agent.
#[map]
pub static DIRECTS: HashMap<Tuple, Direct> = HashMap::with_max_entries(MOST_DIRECTS, BPF_F_NO_PREALLOC);

/// How many entries [`DIRECTS`] has.
#[map]
pub static DIRECTS_OPEN: Array<u64> = Array::with_max_entries(1, 0);

/// What the agent logs and counts of them. When nobody reads it the newest are lost, not a connection.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(512 << 10, 0);
