//! The layout of the maps: what two agents must have in common to use the same ones.

use crate::{
    Config, Crowd, Handshake, ListenerKey, Pod, PortKey, SocketState, Tuple,
    same_node::{Choice, ChoiceKey, Direct, Event, Pair},
};

/// A map, as `agent-ebpf` declares it, and its sizes in bytes.
#[derive(Clone, Copy, Debug)]
pub struct MapLayout {
    /// Its name, under which it is pinned.
    pub name: &'static str,
    /// Of a key.
    pub key: u32,
    /// Of a value.
    pub value: u32,
}

/// The maps that agents of other layouts do not use. (Those that all share are `OWN` and `DNS_SERVERS`.)
pub const MAPS: [MapLayout; 15] = [
    map::<u64, Pod>("PODS"),
    map::<u64, u32>("POD_CGROUPS"),
    map::<i32, SocketState>("SOCKETS"),
    map::<Tuple, Handshake>("HANDSHAKES"),
    map::<Tuple, Handshake>("BEHALF"),
    map::<ListenerKey, u32>("LISTENERS"),
    map::<u64, Crowd>("CROWDS"),
    map::<PortKey, u32>("PORT_MODES"),
    map::<u32, Config>("CONFIG"),
    map::<Pair, u32>("VERDICTS"),
    map::<Pair, u32>("SERVICES"),
    map::<ChoiceKey, Choice>("CHOICES"),
    map::<Tuple, Direct>("DIRECTS"),
    map::<u32, u64>("DIRECTS_OPEN"),
    // A ring has neither keys nor values; what is in it counts in the hash below.
    map::<[u8; 0], [u8; 0]>("EVENTS"),
];

/// Raised by hand when what the maps mean changes, or how many entries they have, and their sizes do not.
pub const MEANING: u32 = 2;

/// A number of this layout, the same in every build that has it.
pub const HASH: u32 = hash();

const fn map<K, V>(name: &'static str) -> MapLayout {
    MapLayout {
        name,
        key: size_of::<K>() as u32,
        value: size_of::<V>() as u32,
    }
}

const fn hash() -> u32 {
    let mut hash = add(0x811c_9dc5, &MEANING.to_le_bytes());
    let mut i = 0;
    while i < MAPS.len() {
        hash = add(hash, MAPS[i].name.as_bytes());
        hash = add(hash, &MAPS[i].key.to_le_bytes());
        hash = add(hash, &MAPS[i].value.to_le_bytes());
        i += 1;
    }
    add(hash, &(size_of::<Event>() as u32).to_le_bytes())
}

/// FNV-1a, which will be the same for ever.
const fn add(mut hash: u32, bytes: &[u8]) -> u32 {
    let mut i = 0;
    while i < bytes.len() {
        hash = (hash ^ bytes[i] as u32).wrapping_mul(0x0100_0193);
        i += 1;
    }
    hash
}
