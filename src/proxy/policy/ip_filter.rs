//! `ip_allow`, `ip_deny`: who may ask at all.
//!
//! Invariant: what is denied is denied, whatever allows it; every list of allowed addresses must have the client.

use std::net::IpAddr;

use super::super::{error::ProxyError, networks::Networks};
use crate::config::document::IpNetwork;

/// All lists of a route.
#[derive(Debug, Default)]
pub(super) struct IpFilter {
    allow: Vec<Networks>,
    deny: Vec<Networks>,
}

// === impl IpFilter ===

impl IpFilter {
    pub(super) fn allow(&mut self, networks: &[IpNetwork]) {
        self.allow.push(Networks::new(networks));
    }

    pub(super) fn deny(&mut self, networks: &[IpNetwork]) {
        self.deny.push(Networks::new(networks));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty()
    }

    pub(super) fn check(&self, client: IpAddr) -> Result<(), ProxyError> {
        let denied = self.deny.iter().any(|networks| networks.contain(client));
        if denied || !self.allow.iter().all(|networks| networks.contain(client)) {
            return Err(ProxyError::IpDenied);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::super::networks::networks, *};

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
