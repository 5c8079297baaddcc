//! How fast each client opens connections to a listener.
//!
//! Job: a token bucket a client (IPv6: a /64), kept as the moment at which it will be full again. Exact
//! over the workers of a node. Invariants: memory and time are bounded however many addresses come: what has not
//! come for longest makes room, which can only be in its favour. This is the only lock that serving takes: once a
//! connection, for a few comparisons, and only where a listener has a rate. Neighbours: `listener` asks.

use std::{
    collections::hash_map::RandomState,
    hash::BuildHasher,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use super::client_address::subscriber;
use crate::config::document::ConnectionRate;

/// Groups of addresses; an address always falls into the same one.
const GROUPS: usize = 4096;
/// Addresses that a group remembers.
const GROUP_SIZE: usize = 8;

/// The clients of one listener.
#[derive(Debug)]
pub(super) struct ConnectionRates {
    started: Instant,
    hash: RandomState,
    groups: Box<[Mutex<[Client; GROUP_SIZE]>]>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Client {
    /// As a [`subscriber`]; 0: nobody.
    address: u128,
    /// When its bucket will be full, in nanoseconds since `started`.
    full_at_ns: u64,
}

impl ConnectionRates {
    pub(super) fn new(now: Instant) -> Self {
        let groups = (0..GROUPS).map(|_| Mutex::default()).collect();
        Self { started: now, hash: RandomState::new(), groups }
    }

    /// Whether `address` may open one more connection now; if so it is counted.
    pub(super) fn allows(&self, address: IpAddr, rate: ConnectionRate, now: Instant) -> bool {
        let address = subscriber(address);
        let now_ns =
            u64::try_from(now.saturating_duration_since(self.started).as_nanos()).unwrap_or(u64::MAX);
        let token_ns = 1_000_000_000 / u64::from(rate.rate.max(1));
        let place = self.hash.hash_one(address) as usize % GROUPS;
        // A client is written whole, so a panic elsewhere cannot have left one half changed.
        let mut group = self.groups[place].lock().unwrap_or_else(PoisonError::into_inner);
        let known = group.iter().position(|client| client.address == address);
        let Some(client) = known
            .or_else(|| (0..GROUP_SIZE).min_by_key(|place| group[*place].full_at_ns))
            .and_then(|place| group.get_mut(place))
        else {
            return true;
        };
        if client.address != address {
            *client = Client { address, full_at_ns: now_ns };
        }
        let full_at_ns = client.full_at_ns.max(now_ns) + token_ns;
        let allowed = full_at_ns - now_ns <= token_ns * u64::from(rate.burst);
        if allowed {
            client.full_at_ns = full_at_ns;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, time::Duration};

    use super::*;

    const RATE: ConnectionRate = ConnectionRate { rate: 10, burst: 3 };

    #[test]
    fn a_client_has_its_burst_and_then_its_rate() {
        let now = Instant::now();
        let rates = ConnectionRates::new(now);
        let address: IpAddr = "192.0.2.1".parse().unwrap();
        let allowed = |after_ms: u64| {
            let now = now + Duration::from_millis(after_ms);
            (0..9).filter(|_| rates.allows(address, RATE, now)).count()
        };
        assert_eq!(allowed(0), 3);
        assert_eq!(allowed(99), 0);
        assert_eq!(allowed(100), 1);
        assert_eq!(allowed(300), 2);
        assert_eq!(allowed(60_000), 3, "no more than the burst, however long it waited");
        assert!(rates.allows("192.0.2.2".parse().unwrap(), RATE, now), "each has its own");
    }

    #[test]
    fn addresses_of_one_network_are_one_client() {
        let now = Instant::now();
        let rates = ConnectionRates::new(now);
        let allowed = |address: &str| rates.allows(address.parse().unwrap(), RATE, now);
        assert!((0..3).all(|n| allowed(&format!("2001:db8::{n}"))));
        assert!(!allowed("2001:db8::ffff:1"));
        assert!(allowed("2001:db8:0:1::1"));
        assert!(allowed("::1"));
    }

    #[test]
    fn more_addresses_than_are_remembered_do_no_harm() {
        let now = Instant::now();
        let rates = ConnectionRates::new(now);
        for address in 0..100_000_u32 {
            assert!(rates.allows(IpAddr::V4(Ipv4Addr::from_bits(address)), RATE, now));
        }
    }
}
