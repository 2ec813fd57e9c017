//! The DNS servers that pods ask, as the programs noted them: which server stands behind a port that a datagram was
//! steered to. Read by the workers; only the programs write it.

use std::net::{IpAddr, SocketAddr};

pub use agent_common::{DNS_PORT, DNS_SERVER_PORT as SERVER_PORT, DNS_SLOTS};
use agent_common::{DnsServer, DnsSlot};
use aya::maps::{HashMap, Map, MapData, MapError};

use super::pins::Pins;

/// The pinned list.
pub struct DnsServers(HashMap<MapData, DnsSlot, DnsServer>);

impl DnsServers {
    /// Opens the list that all generations of maps share.
    ///
    /// # Errors
    /// When it is missing.
    pub fn open(pins: &Pins) -> Result<Self, MapError> {
        let map = MapData::from_pin(pins.dns_servers())?;
        Ok(Self(HashMap::try_from(Map::LruHashMap(map))?))
    }

    /// The server that the pod with this address asks by way of a slot.
    pub fn server(&self, pod: IpAddr, slot: u16) -> Option<SocketAddr> {
        let key = DnsSlot {
            pod: pod.into(),
            slot: slot.into(),
        };
        let server = self.0.get(&key, 0).ok()?;
        Some(SocketAddr::new(server.addr.into(), SERVER_PORT))
    }
}
