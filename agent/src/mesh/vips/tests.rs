//! The smallest network around an address counts.

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::mesh::sample;

/// `name address-or-network...`
fn service(text: &str) -> Arc<Service> {
    let mut words = text.split(' ');
    let mut service = sample::service(words.next().unwrap(), &[]);
    for vip in words {
        match vip.parse() {
            Ok(address) => service.vips.push(address),
            Err(_) => service.vip_networks.push(vip.parse().unwrap()),
        }
    }
    Arc::new(service)
}

fn find(vips: &Vips, address: &str) -> Option<String> {
    let address = address.parse().unwrap();
    let service = vips.at(address).or_else(|| vips.around(address));
    service.map(|service| service.name.to_string())
}

#[test]
fn longest_prefix() {
    let services = [
        "all 0.0.0.0/0",
        "ten 10.0.0.0/8",
        "part 10.1.0.0/16 fd00::/16",
        "twin 10.1.0.0/16",
        "small 10.1.2.0/24 fd00::/64",
        "one 10.1.2.3 fd00::3",
        "single 10.1.2.4/32",
        // Written with bits that do not count.
        "untidy 10.2.3.4/16",
    ];
    let vips = Vips::new(&services.map(service));
    let check =
        |address, expect: Option<&str>| assert_eq!(find(&vips, address).as_deref(), expect, "{address}");
    check("10.1.2.3", Some("one"));
    check("10.1.2.4", Some("single"));
    check("10.1.2.5", Some("small"));
    check("10.1.3.5", Some("part"));
    check("10.2.3.5", Some("untidy"));
    check("10.3.3.5", Some("ten"));
    check("11.3.3.5", Some("all"));
    check("fd00::3", Some("one"));
    check("fd00::4", Some("small"));
    check("fd00:0:0:1::4", Some("part"));
    check("fd01::4", None);
}

proptest! {
    #[test]
    fn as_a_look_at_every_network(nets in vec((0u32..16, 26u8..=32), 0..8), address in 0u32..16) {
        let network = |(base, len): (u32, u8)| IpNet::new(IpAddr::V4((0x0a00_0000 | base).into()), len).unwrap();
        let networks: Vec<_> = nets.into_iter().map(network).collect();
        let named = |(nth, network): (usize, &IpNet)| service(&format!("s{nth} {network}"));
        let vips = Vips::new(&networks.iter().enumerate().map(named).collect::<Vec<_>>());
        let address = IpAddr::V4((0x0a00_0000 | address).into());
        let around = networks.iter().enumerate().filter(|(_, network)| network.contains(&address));
        // The longest prefix, and of those the first.
        let best = around.min_by_key(|(nth, network)| (std::cmp::Reverse(network.prefix_len()), *nth));
        let expect = best.map(|(nth, _)| format!("s{nth}"));
        prop_assert_eq!(find(&vips, &address.to_string()), expect);
    }
}
