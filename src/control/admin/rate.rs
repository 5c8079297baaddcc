//! How fast a caller may ask for changes of the document and of the cluster.
//!
//! Each of them is read, compiled and agreed on by all nodes, so one caller that asks in a loop would keep everybody
//! busy. What lives by many small calls is not counted here: registrations, beats, reads. Job: a token bucket a
//! caller, kept as the moment at which it will be full again. Invariant: memory is bounded however many callers
//! come; whose bucket is full, or nearest to it, makes room, which can only be in its favour. Neighbours: `auth`
//! has the table of calls, the router asks before a body is read.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// So many seconds' worth may be asked for at once.
const BURST_SECONDS: u32 = 4;

/// Callers that are remembered.
const CALLERS_MAX: usize = 4096;

/// Whose changes are counted together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Counted {
    /// Whoever has a token or a certificate of this name.
    Named(String),
    /// Whoever calls from there, where nobody is asked for a name.
    From(IpAddr),
}

/// Who asked for changes of late.
#[derive(Debug)]
pub(super) struct ChangeRate {
    per_second: u32,
    full_at: Mutex<HashMap<Counted, Instant>>,
}

/// The caller asks too fast.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooFast {
    /// How many changes a second it may ask for.
    pub(super) per_second: u32,
    /// Until it may ask for the next one.
    pub(super) wait: Duration,
}

// === impl ChangeRate ===

impl ChangeRate {
    /// `per_second` is at least 1.
    pub(super) fn new(per_second: u32) -> Self {
        Self { per_second: per_second.max(1), full_at: Mutex::default() }
    }

    /// Counts one more change, unless it is one too many.
    pub(super) fn take(&self, caller: Counted, now: Instant) -> Result<(), TooFast> {
        let one = Duration::from_secs(1) / self.per_second;
        // Every entry is written whole, so a panic elsewhere cannot have left one half changed.
        let mut known = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        let full_at = known.get(&caller).map_or(now, |full_at| now.max(*full_at)) + one;
        let most = one * self.per_second * BURST_SECONDS;
        if let Some(wait) = full_at.duration_since(now).checked_sub(most).filter(|wait| !wait.is_zero()) {
            return Err(TooFast { per_second: self.per_second, wait });
        }
        if known.len() >= CALLERS_MAX && !known.contains_key(&caller) {
            known.retain(|_, full_at| *full_at > now);
            if known.len() >= CALLERS_MAX
                && let Some(fullest) =
                    known.iter().min_by_key(|(_, at)| **at).map(|(caller, _)| caller.clone())
            {
                known.remove(&fullest);
            }
        }
        known.insert(caller, full_at);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn named(name: &str) -> Counted {
        Counted::Named(name.to_owned())
    }

    #[test]
    fn a_caller_has_four_seconds_worth_at_once_and_then_its_rate() {
        let (rate, now) = (ChangeRate::new(10), Instant::now());
        let taken = |caller: &str, after_ms: u64| {
            let now = now + Duration::from_millis(after_ms);
            (0..99).filter(|_| rate.take(named(caller), now).is_ok()).count()
        };
        assert_eq!(taken("a", 0), 40);
        assert_eq!(taken("a", 99), 0);
        assert_eq!(taken("a", 100), 1);
        assert_eq!(taken("a", 1100), 10);
        assert_eq!(taken("b", 1100), 40, "each has its own");
        assert_eq!(taken("a", 60_000), 40, "no more than that, however long it waited");
        let too_fast = TooFast { per_second: 10, wait: Duration::from_millis(70) };
        assert_eq!(rate.take(named("a"), now + Duration::from_millis(60_030)), Err(too_fast));
    }

    #[test]
    fn who_is_remembered_is_bounded_and_who_is_forgotten_loses_nothing() {
        let (rate, now) = (ChangeRate::new(1), Instant::now());
        for _ in 0..4 {
            assert!(rate.take(named("busy"), now).is_ok());
        }
        for address in 0..10_000 {
            assert!(rate.take(Counted::From(Ipv4Addr::from_bits(address).into()), now).is_ok());
        }
        assert_eq!(rate.full_at.lock().unwrap().len(), CALLERS_MAX);
        assert!(rate.take(named("busy"), now).is_err(), "those that used least make room");
    }
}
