//! Tests of the arithmetic: addresses, and what is derived from them.

extern crate std;

use super::*;

#[test]
fn addresses_round_trip_and_know_their_family() {
    for (text, v4, loopback) in [
        ("10.1.2.3", true, false),
        ("127.0.0.1", true, true),
        ("127.9.8.7", true, true),
        ("::1", false, true),
        ("fd00::1", false, false),
        ("::ffff:10.1.2.3", true, false),
    ] {
        let ip: IpAddr = text.parse().expect("an address");
        let address = Address::from(ip);
        assert_eq!(IpAddr::from(address), ip.to_canonical(), "{text}");
        assert_eq!((address.is_v4(), address.is_loopback()), (v4, loopback), "{text}");
    }
    assert!(Address::from(IpAddr::from([0, 0, 0, 0])).is_unspecified());
    assert!(Address::default().is_unspecified());
    assert!(Address::from("fe80::1".parse::<IpAddr>().expect("an address")).is_v6_link_local());
    for (text, multicast) in [
        ("224.0.0.251", true),
        ("255.255.255.255", true),
        ("223.255.255.255", false),
        ("ff02::fb", true),
        ("fe80::1", false),
    ] {
        let address = Address::from(text.parse::<IpAddr>().expect("an address"));
        assert_eq!(address.is_multicast(), multicast, "{text}");
    }
}

#[test]
fn each_destination_has_a_loopback_address_that_a_host_may_have() {
    for last in 0..=255_u8 {
        let destination = Address::from(IpAddr::from([10, 96, last, 255 - last]));
        for port in [1, 80, 443, 8080, u16::MAX] {
            let IpAddr::V4(hop) = destination.loopback_for(port).into() else {
                panic!("not IPv4")
            };
            let address = Address::from(IpAddr::from(hop));
            assert!(
                hop.is_loopback() && address.is_steered_to() && hop.octets()[3] % 2 == 1,
                "{hop}"
            );
            assert!(!address.is_behalf_source(), "{hop}");
        }
    }
}

/// Destinations as a cluster has them: addresses in a row, a few ports each.
fn destinations() -> impl Iterator<Item = (Address, u16)> {
    let ip = |high: u8, low: u8| IpAddr::from([10, 96, high, low]);
    let ports = [80, 443, 8080, 9090];
    let rows = (0..16).flat_map(|high| (0..=255).map(move |low| (high, low)));
    rows.flat_map(move |(high, low)| ports.map(|port| (Address::from(ip(high, low)), port)))
}

#[test]
fn hardly_two_destinations_share_a_loopback_address() {
    let mut hops: std::vec::Vec<u32> = destinations()
        .map(|(ip, port)| ip.loopback_for(port).w3)
        .collect();
    let all = hops.len();
    hops.sort_unstable();
    hops.dedup();
    // Drawn by lot, 16,384 of 2^21 would have about 64 that are not alone.
    assert!(all - hops.len() < 256, "{} of {all} differ", hops.len());
}

#[test]
fn ports_that_apps_use_are_not_steered_to() {
    for port in [53, HBONE_PORT, 15006, 15053, 32_768, 60_999] {
        assert!(!is_steered_port(port), "{port}");
    }
    assert!(is_steered_port(OUTBOUND_PORT) && is_steered_port(u16::MAX));
}
