//! `ip_allow`, `ip_deny`: who may ask at all.
//!
//! Invariant: what is denied is denied, whatever allows it; every list of allowed addresses must have the client.
//! A look costs no more than the logarithm of a list's length.

use std::net::IpAddr;

use super::super::{client_address::number, error::ProxyError};
use crate::config::document::IpNetwork;

/// All lists of a route.
#[derive(Debug, Default)]
pub(super) struct IpFilter {
    allow: Vec<Ranges>,
    deny: Vec<Ranges>,
}

/// Addresses as ranges, in order and apart. IPv4 lies where IPv6 maps it to.
#[derive(Debug)]
struct Ranges(Box<[(u128, u128)]>);

// === impl IpFilter ===

impl IpFilter {
    pub(super) fn allow(&mut self, networks: &[IpNetwork]) {
        self.allow.push(Ranges::new(networks));
    }

    pub(super) fn deny(&mut self, networks: &[IpNetwork]) {
        self.deny.push(Ranges::new(networks));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty()
    }

    pub(super) fn check(&self, client: IpAddr) -> Result<(), ProxyError> {
        let client = number(client);
        let denied = self.deny.iter().any(|ranges| ranges.contain(client));
        if denied || !self.allow.iter().all(|ranges| ranges.contain(client)) {
            return Err(ProxyError::IpDenied);
        }
        Ok(())
    }
}

// === impl Ranges ===

impl Ranges {
    fn new(networks: &[IpNetwork]) -> Self {
        let mut ranges: Vec<_> = networks.iter().map(range).collect();
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

    fn contain(&self, address: u128) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(texts: &[&str]) -> Vec<IpNetwork> {
        let network = |text: &&str| {
            let (address, prefix) = text.split_once('/').unwrap();
            IpNetwork { address: address.parse().unwrap(), prefix: prefix.parse().unwrap() }
        };
        texts.iter().map(network).collect()
    }

    #[test]
    fn a_client_is_in_a_list_if_it_is_in_one_of_its_networks() {
        let ranges = Ranges::new(&networks(&[
            "10.1.0.0/16",
            "10.0.0.0/8",
            "192.0.2.7/32",
            "10.255.255.255/32",
            "2001:db8::/64",
        ]));
        assert_eq!(ranges.0.len(), 3, "overlapping ranges are one");
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
            assert_eq!(ranges.contain(number(address.parse().unwrap())), contained, "{address}");
        }
        assert!(Ranges::new(&networks(&["0.0.0.0/0"])).contain(number([1, 2, 3, 4].into())));
        assert!(!Ranges::new(&networks(&["0.0.0.0/0"])).contain(1));
        assert!(Ranges::new(&networks(&["::/0"])).contain(number([1, 2, 3, 4].into())));
    }

    #[test]
    fn what_is_denied_is_denied_and_every_list_must_allow() {
        let mut filter = IpFilter::default();
        filter.allow(&networks(&["10.0.0.0/8"]));
        filter.allow(&networks(&["10.0.0.0/16"]));
        filter.deny(&networks(&["10.0.0.7/32"]));
        for (address, allowed) in
            [("10.0.0.1", true), ("10.0.0.7", false), ("10.1.0.1", false), ("192.0.2.1", false)]
        {
            assert_eq!(filter.check(address.parse().unwrap()).is_ok(), allowed, "{address}");
        }
    }
}
