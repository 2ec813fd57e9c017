//! The oracle: the same questions asked of plain lists, in the words of the documentation and in no hurry. No index, no
//! shortcut, nothing shared with the code that it judges but the values.

pub(crate) mod authorize;
pub(crate) mod requests;
pub(crate) mod route;

use std::net::IpAddr;

use weft_pure::mesh::{GatewayAddress, GatewayDestination, Service, ServiceKey, Workload};

use crate::world::World;

impl World {
    /// Every workload, the first of each uid.
    pub(crate) fn workloads(&self) -> impl Iterator<Item = &Workload> {
        let all = &self.parts.workloads;
        let first = |at: usize| all[..at].iter().all(|earlier| earlier.uid != all[at].uid);
        (0..all.len()).filter(move |at| first(*at)).map(|at| &all[at])
    }

    /// Every service, the first of each key.
    pub(crate) fn services(&self) -> impl Iterator<Item = &Service> {
        let all = &self.parts.services;
        let first = |at: usize| all[..at].iter().all(|earlier| earlier.key != all[at].key);
        (0..all.len()).filter(move |at| first(*at)).map(|at| &all[at])
    }

    pub(crate) fn service_of(&self, key: &ServiceKey) -> Option<&Service> {
        self.services().find(|service| service.key == *key)
    }

    /// The first that has it; a pod of the host's network never has its own.
    pub(crate) fn workload_at(&self, ip: IpAddr) -> Option<&Workload> {
        let pods = self.workloads().filter(|workload| !workload.host_network);
        pods.into_iter().find(|workload| workload.addresses.contains(&ip))
    }

    /// The first whose very address it is. Else, if it is no pod's, the first with the smallest network around it.
    pub(crate) fn service_at(&self, ip: IpAddr) -> Option<&Service> {
        if let Some(service) = self.services().find(|service| service.vips.contains(&ip)) {
            return Some(service);
        }
        if self.workload_at(ip).is_some() {
            return None;
        }
        let mut best: Option<(u8, &Service)> = None;
        for service in self.services() {
            for network in service
                .vip_networks
                .iter()
                .filter(|network| network.contains(&ip))
            {
                if best.is_none_or(|(longest, _)| network.prefix_len() > longest) {
                    best = Some((network.prefix_len(), service));
                }
            }
        }
        best.map(|(_, service)| service)
    }

    pub(crate) fn in_cluster(&self, ip: IpAddr) -> bool {
        self.parts.cluster_cidrs.iter().any(|cidr| cidr.contains(&ip))
    }

    /// The service that a waypoint's pods are behind.
    fn gateway_service(&self, gateway: &GatewayAddress) -> Option<&Service> {
        match &gateway.destination {
            GatewayDestination::Service(key) => self.service_of(key),
            GatewayDestination::Address(ip) => self.service_at(*ip),
        }
    }

    /// Whether a workload is one of a waypoint's own pods.
    fn is_of_waypoint(&self, workload: &Workload, gateway: &GatewayAddress) -> bool {
        if let Some(service) = self.gateway_service(gateway) {
            return workload.services.contains_key(&service.key);
        }
        matches!(&gateway.destination, GatewayDestination::Address(ip) if workload.addresses.contains(ip))
    }
}
