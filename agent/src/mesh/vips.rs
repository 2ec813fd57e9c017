//! Services by the virtual address that was dialled: an address of their own, or one of a network of theirs, of which the
//! smallest counts. Built by `index`.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;
use rustc_hash::FxHashMap;

use super::Service;

/// Virtual addresses.
#[derive(Clone, Debug, Default)]
pub(super) struct Vips {
    addresses: FxHashMap<IpAddr, Arc<Service>>,
    /// The longest prefixes first: an address is looked up once for each length that is used.
    networks_v4: Vec<Networks>,
    networks_v6: Vec<Networks>,
}

/// The networks of one prefix length.
#[derive(Clone, Debug)]
struct Networks {
    prefix_len: u8,
    services: FxHashMap<IpNet, Arc<Service>>,
}

impl Vips {
    /// Where two services have the same address or network, the first keeps it. Addresses must be canonical.
    pub(super) fn new(services: &[Arc<Service>]) -> Self {
        let mut vips = Self::default();
        for service in services {
            for address in &service.vips {
                vips.addresses.entry(*address).or_insert_with(|| service.clone());
            }
            for network in &service.vip_networks {
                vips.add_network(*network, service);
            }
        }
        for networks in [&mut vips.networks_v4, &mut vips.networks_v6] {
            networks.sort_by_key(|networks| std::cmp::Reverse(networks.prefix_len));
        }
        vips
    }

    fn add_network(&mut self, network: IpNet, service: &Arc<Service>) {
        if network.prefix_len() == network.max_prefix_len() {
            self.addresses
                .entry(network.addr())
                .or_insert_with(|| service.clone());
            return;
        }
        let networks = match network {
            IpNet::V4(_) => &mut self.networks_v4,
            IpNet::V6(_) => &mut self.networks_v6,
        };
        let prefix_len = network.prefix_len();
        let at = networks
            .iter()
            .position(|it| it.prefix_len == prefix_len)
            .unwrap_or_else(|| {
                networks.push(Networks {
                    prefix_len,
                    services: FxHashMap::default(),
                });
                networks.len() - 1
            });
        networks[at]
            .services
            .entry(network.trunc())
            .or_insert_with(|| service.clone());
    }

    /// The service of this very address.
    pub(super) fn at(&self, address: IpAddr) -> Option<&Arc<Service>> {
        self.addresses.get(&address)
    }

    /// The service with the smallest network around this address.
    pub(super) fn around(&self, address: IpAddr) -> Option<&Arc<Service>> {
        let networks = if address.is_ipv4() {
            &self.networks_v4
        } else {
            &self.networks_v6
        };
        networks.iter().find_map(|networks| {
            let network = IpNet::new(address, networks.prefix_len).ok()?;
            networks.services.get(&network.trunc())
        })
    }
}

#[cfg(test)]
mod tests;
