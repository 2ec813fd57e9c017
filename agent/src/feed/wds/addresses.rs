//! Addresses and networks as bytes.

use std::net::IpAddr;

use bytes::Bytes;
use ipnet::IpNet;

use super::{Unreadable, bad};

pub(super) fn ip(bytes: &[u8], field: &'static str) -> Result<IpAddr, Unreadable> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    let v6 = || <[u8; 16]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| v6())
        .map_err(|_| bad(field, format!("{} bytes are no address", bytes.len())))
}

/// The network of an address and a prefix. Bits beyond the prefix do not count.
pub(super) fn network(bytes: &[u8], length: u32, field: &'static str) -> Result<IpNet, Unreadable> {
    let address = ip(bytes, field)?;
    let wrong = |_| bad(field, format!("/{length} is no prefix of {address}"));
    let length =
        u8::try_from(length).map_err(|_| bad(field, format!("/{length} is no prefix of {address}")))?;
    IpNet::new(address, length).map(|net| net.trunc()).map_err(wrong)
}

pub(super) fn bytes(address: IpAddr) -> Bytes {
    match address {
        IpAddr::V4(v4) => Bytes::copy_from_slice(&v4.octets()),
        IpAddr::V6(v6) => Bytes::copy_from_slice(&v6.octets()),
    }
}

pub(super) fn port(port: u32, field: &'static str) -> Result<u16, Unreadable> {
    u16::try_from(port).map_err(|_| bad(field, format!("{port} is no port")))
}
