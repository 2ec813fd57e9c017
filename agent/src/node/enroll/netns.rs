//! The network namespace of a pod that is about to be captured, and whether it is the pod's.

use std::net::{IpAddr, UdpSocket};

use super::EnrollError;
use crate::net::netns::{Netns, NetnsSource};

pub(super) fn open(source: &NetnsSource) -> Result<Netns, EnrollError> {
    if let NetnsSource::Missing { why, .. } = source {
        return Err(EnrollError::Missing(why.clone()));
    }
    source.open().map_err(|error| EnrollError::Netns {
        path: source.to_string(),
        source: error,
    })
}

/// The pod must have the addresses that the mesh gives it: a wrong one would send its apps' connections elsewhere.
pub(super) fn check_addresses(netns: &Netns, addresses: &[IpAddr]) -> Result<(), EnrollError> {
    if addresses.is_empty() {
        return Err(EnrollError::NoAddress);
    }
    addresses.iter().try_for_each(|address| {
        let bound = netns.enter(|| UdpSocket::bind((*address, 0)));
        bound.map(drop).map_err(|source| EnrollError::NotItsAddress {
            address: *address,
            source,
        })
    })
}
