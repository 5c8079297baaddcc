//! Whose request it is.
//!
//! Job: the one answer to "which address does the client have", for policies, hashing and the access log, and to
//! which addresses are one client. Invariant: only the word of trusted proxies counts, so nobody can choose an
//! address for themselves. Neighbours: `record` keeps the answer for a request, `connection_rate` and
//! `policy::rate_limit` count clients.

use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;

use super::headers::X_FORWARDED_FOR;
use crate::config::document::IpNetwork;

/// The client's address: the peer's, or, as far as trusted proxies vouch for it, what X-Forwarded-For says:
/// the last address in it that is not a trusted proxy's. The same before and after the peer is added to it.
pub(super) fn client_address(headers: &HeaderMap, peer: IpAddr, trusted: &[IpNetwork]) -> IpAddr {
    let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.contains(address));
    let mut address = peer;
    if trusted.is_empty() || !is_trusted(peer) {
        return address;
    }
    // Field lines and the items in each are one list; each proxy adds at its end.
    for value in headers.get_all(X_FORWARDED_FOR).iter().rev() {
        for item in value.as_bytes().rsplit(|byte| *byte == b',') {
            // What a trusted proxy says that is no address says nothing of whom it heard it from.
            let Some(hop) = parse(item.trim_ascii()) else { return address };
            address = hop;
            if !is_trusted(address) {
                return address;
            }
        }
    }
    address
}

/// An address as a number; IPv4 lies where IPv6 maps it to.
pub(super) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    }
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

    use super::*;

    #[track_caller]
    fn check(peer: &str, forwarded_for: &[&'static str], expected: &str) {
        let trusted = [IpNetwork { address: [10, 0, 0, 0].into(), prefix: 8 }];
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
