//! Whose request it is.
//!
//! Job: the one answer to "which address does the client have", for policies, hashing and the access log, and to
//! which addresses are one client. Invariant: only the word of trusted proxies counts, so nobody can choose an
//! address for themselves. Neighbours: `record` keeps the answer for a request, `connection_rate` and
//! `policy::rate_limit` count clients.

use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;

use super::{
    headers::X_FORWARDED_FOR,
    networks::{Networks, number},
};
use crate::config::document::IpNetwork;

/// Proxies whose word counts. The families are apart: who trusts all of IPv6 trusts nobody's IPv4.
#[derive(Debug, Default)]
pub(super) struct TrustedProxies {
    ipv4: Networks,
    ipv6: Networks,
}

impl TrustedProxies {
    pub(super) fn new(networks: &[IpNetwork]) -> Self {
        let (ipv4, ipv6): (Vec<_>, Vec<_>) = networks.iter().partition(|network| network.address.is_ipv4());
        Self { ipv4: Networks::new(ipv4), ipv6: Networks::new(ipv6) }
    }

    pub(super) fn contain(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            address @ IpAddr::V4(_) => self.ipv4.contain(address),
            address @ IpAddr::V6(_) => self.ipv6.contain(address),
        }
    }
}

/// The client's address: the peer's, or, as far as trusted proxies vouch for it, what X-Forwarded-For says:
/// the last address in it that is not a trusted proxy's. The same before and after the peer is added to it.
pub(super) fn client_address(headers: &HeaderMap, peer: IpAddr, trusted: &TrustedProxies) -> IpAddr {
    let mut address = peer;
    if !trusted.contain(peer) {
        return address;
    }
    // Field lines and the items in each are one list; each proxy adds at its end.
    for value in headers.get_all(X_FORWARDED_FOR).iter().rev() {
        for item in value.as_bytes().rsplit(|byte| *byte == b',') {
            // What a trusted proxy says that is no address says nothing of whom it heard it from.
            let Some(hop) = parse(item.trim_ascii()) else { return address };
            address = hop;
            if !trusted.contain(address) {
                return address;
            }
        }
    }
    address
}

/// Who counts as one client: an IPv4 address, or the /64 of one subscriber, who can choose among the addresses in
/// there. Never 0.
pub(super) fn subscriber(address: IpAddr) -> u128 {
    match address.to_canonical() {
        address @ IpAddr::V4(_) => number(address),
        IpAddr::V6(address) => address.to_bits() >> 64 << 64 | 1,
    }
}

/// An address, with or without a port: some proxies add it.
fn parse(item: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(item).ok()?;
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()));
    address.map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::{super::networks::networks, *};

    #[track_caller]
    fn check(peer: &str, forwarded_for: &[&'static str], expected: &str) {
        let trusted = TrustedProxies::new(&networks(&["10.0.0.0/8", "::/0"]));
        let mut headers = HeaderMap::new();
        for value in forwarded_for {
            headers.append(X_FORWARDED_FOR, HeaderValue::from_static(value));
        }
        let address = client_address(&headers, peer.parse().unwrap(), &trusted);
        assert_eq!(address.to_string(), expected, "{forwarded_for:?}");
    }

    #[test]
    fn the_last_address_that_is_not_a_trusted_proxys_is_the_clients() {
        check("192.0.2.1", &["198.51.100.7"], "192.0.2.1");
        check("10.0.0.1", &[], "10.0.0.1");
        check("10.0.0.1", &["198.51.100.7"], "198.51.100.7");
        check("10.0.0.1", &["203.0.113.9, 198.51.100.7, 10.0.0.2"], "198.51.100.7");
        check("10.0.0.1", &["203.0.113.9", "198.51.100.7,10.0.0.2", "10.0.0.1"], "198.51.100.7");
        check("10.0.0.1", &["10.0.0.3, 10.0.0.2"], "10.0.0.3");
        check("10.0.0.1", &["198.51.100.7, unknown, 10.0.0.2"], "10.0.0.2");
        check("10.0.0.1", &["198.51.100.7:4711"], "198.51.100.7");
        check("10.0.0.1", &["[2001:db8::7]:4711"], "2001:db8::7");
        check("10.0.0.1", &["[2001:db8::7]"], "2001:db8::7");
        check("10.0.0.1", &["::ffff:198.51.100.7"], "198.51.100.7");
    }
}
