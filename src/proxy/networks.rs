//! Sets of addresses.
//!
//! Job: tell whether an address lies in one of many networks. Invariant: a look costs no more than the logarithm of
//! their number. Neighbours: `policy::ip_filter` and `client_address` look.

use std::net::IpAddr;

use crate::config::document::IpNetwork;

/// Networks as ranges, in order and apart. IPv4 lies where IPv6 maps it to.
#[derive(Debug, Default)]
pub(super) struct Networks(Box<[(u128, u128)]>);

// === impl Networks ===

impl Networks {
    pub(super) fn new<'a>(networks: impl IntoIterator<Item = &'a IpNetwork>) -> Self {
        let mut ranges: Vec<_> = networks.into_iter().map(range).collect();
        ranges.sort_unstable();
        ranges.dedup_by(|next, range| {
            let joined = next.0 <= range.1;
            if joined {
                range.1 = range.1.max(next.1);
            }
            joined
        });
        Self(ranges.into())
    }

    pub(super) fn contain(&self, address: IpAddr) -> bool {
        let address = number(address);
        let after = self.0.partition_point(|(first, _)| *first <= address);
        after > 0 && self.0[after - 1].1 >= address
    }
}

fn range(network: &IpNetwork) -> (u128, u128) {
    let bits: u32 = if network.address.is_ipv4() { 32 } else { 128 };
    let free = bits.saturating_sub(u32::from(network.prefix));
    let first = number(network.address);
    (first, first | 1u128.checked_shl(free).map_or(u128::MAX, |size| size - 1))
}

/// An address as a number; IPv4 lies where IPv6 maps it to.
pub(super) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// Tests' short form of networks.
#[cfg(test)]
pub(super) fn networks(texts: &[&str]) -> Vec<IpNetwork> {
    let network = |text: &&str| {
        let (address, prefix) = text.split_once('/').unwrap();
        IpNetwork { address: address.parse().unwrap(), prefix: prefix.parse().unwrap() }
    };
    texts.iter().map(network).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_in_networks_if_it_is_in_one_of_them() {
        let several = Networks::new(&networks(&[
            "10.1.0.0/16",
            "10.0.0.0/8",
            "192.0.2.7/32",
            "10.255.255.255/32",
            "2001:db8::/64",
        ]));
        assert_eq!(several.0.len(), 3, "overlapping ranges are one");
        for (address, contained) in [
            ("10.0.0.0", true),
            ("10.255.255.255", true),
            ("11.0.0.0", false),
            ("9.255.255.255", false),
            ("192.0.2.7", true),
            ("192.0.2.8", false),
            ("::ffff:10.0.0.1", true),
            ("2001:db8::ffff:ffff:ffff:ffff", true),
            ("2001:db8:0:1::", false),
        ] {
            assert_eq!(several.contain(address.parse().unwrap()), contained, "{address}");
        }
        let (ipv4, one) = (Networks::new(&networks(&["0.0.0.0/0"])), [1, 2, 3, 4].into());
        assert!(ipv4.contain(one) && !ipv4.contain("::1".parse().unwrap()));
        assert!(Networks::new(&networks(&["::/0"])).contain(one));
    }
}
