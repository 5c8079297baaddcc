//! How much of a budget is spent, and whether there is more: answers at once, for all workers of the node.
//!
//! Job: the generic cell rate algorithm (ITU-T I.371; a token bucket in one number): a key's state is its
//! theoretical arrival time, the moment at which its bucket is full again. A request moves it on by the interval
//! between two requests; one that would move it further than `burst` intervals beyond now is refused.
//! Invariants: over any window W no key admits more than `burst` + W / interval, however many workers spend, for
//! every admission moves one number by compare-and-swap; integers only, the interval rounded up; nothing here
//! waits for the cluster. Keys live in a table of fixed size: no allocation for a key, and the longest idle one
//! gives way first. Neighbours: `policy::rate_limit` chooses the key; `table` carries limiters over.

use std::{
    hash::{BuildHasher, Hash, RandomState},
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::config::document::Budget;

/// Keys that share a place in the table by their hash; the one idle longest gives way to a new one.
const WAYS: usize = 16;
/// Sets that come to memory together: about a page of the machine's.
const SETS_PER_PAGE: usize = 16;
/// So that a million keys are kept though they do not spread evenly: twice as many have room.
const PAGES: usize = (2 << 20) / WAYS / SETS_PER_PAGE;
/// No time is so late: a key in an entry is about to be replaced.
const BEING_REPLACED: u64 = u64::MAX;
/// A bucket takes no longer to fill: two centuries, far from any overflow.
const FILL_NS_MAX: u128 = 1 << 62;
/// How often a worker looks again at a set that another worker is changing before it lets others run.
const SPINS: u32 = 64;

/// A budget, or one route's share of it, as this node spends it.
#[derive(Debug)]
pub(super) struct Limiter {
    budget: Budget,
    /// What times count from.
    epoch: Instant,
    interval_ns: u64,
    burst_ns: u64,
    spent: Spent,
}

/// What became of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Decision {
    pub(super) allowed: bool,
    /// Requests that would be admitted at once after this one.
    pub(super) remaining: u64,
    /// Until the whole burst is there again; if refused, until the next request is admitted.
    pub(super) wait: Duration,
}

#[derive(Debug)]
enum Spent {
    One(AtomicU64),
    /// Made for the first key: a budget that nobody spends costs nothing.
    ByKey(OnceLock<Table>),
}

/// Key → theoretical arrival time; set-associative, so that its size is fixed and a look costs the same always.
#[derive(Debug)]
struct Table {
    hasher: RandomState,
    /// A page is made when one of its keys first comes.
    pages: Box<[OnceLock<Box<[Set; SETS_PER_PAGE]>>]>,
}

#[derive(Debug, Default)]
struct Set {
    /// Some worker gives an entry to a new key. Only other new keys of the set wait for it: known ones do not.
    changing: AtomicBool,
    /// 0: none.
    keys: [AtomicU64; WAYS],
    times: [AtomicU64; WAYS],
}

// === impl Limiter ===

impl Limiter {
    /// For a budget of which there is one, or one for each route.
    pub(super) fn single(budget: Budget) -> Limiter {
        Self::new(budget, Spent::One(AtomicU64::new(0)))
    }

    /// For a budget that every key has for itself.
    pub(super) fn keyed(budget: Budget) -> Limiter {
        Self::new(budget, Spent::ByKey(OnceLock::new()))
    }

    fn new(budget: Budget, spent: Spent) -> Limiter {
        let rate = u128::from(budget.rate.max(1));
        let interval = budget.per.as_nanos().div_ceil(rate).clamp(1, FILL_NS_MAX);
        let burst = (interval * u128::from(budget.burst.max(1))).min(FILL_NS_MAX);
        let ns = |ns: u128| u64::try_from(ns).unwrap_or(u64::MAX);
        Limiter { budget, epoch: Instant::now(), interval_ns: ns(interval), burst_ns: ns(burst), spent }
    }

    pub(super) fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Spends one request of the key's at this moment, if there is one. Without keys the key does not matter.
    pub(super) fn spend(&self, key: impl Hash, at: Instant) -> Decision {
        let now = u64::try_from(at.saturating_duration_since(self.epoch).as_nanos()).unwrap_or(0);
        match &self.spent {
            Spent::One(time) => {
                // It never is being replaced.
                self.advance(time, now, || true).unwrap_or(Decision::REFUSED)
            }
            Spent::ByKey(table) => table.get_or_init(|| Table::new(PAGES)).spend(key, now, self),
        }
    }

    /// Moves a time on, unless that is too far. None: the entry is not the key's any more.
    fn advance(&self, time: &AtomicU64, now: u64, is_ours: impl Fn() -> bool) -> Option<Decision> {
        let mut current = time.load(Ordering::Acquire);
        loop {
            // Asked after the time was read: were the entry given to another key since, the time would differ.
            if current == BEING_REPLACED || !is_ours() {
                return None;
            }
            let (next, decision) = self.decide(current, now);
            if !decision.allowed {
                return Some(decision);
            }
            match time.compare_exchange_weak(current, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(decision),
                Err(seen) => current = seen,
            }
        }
    }

    /// The rule: where the time would move to, and whether it may.
    fn decide(&self, time: u64, now: u64) -> (u64, Decision) {
        let next = time.max(now) + self.interval_ns;
        let ahead = next - now;
        let allowed = ahead <= self.burst_ns;
        let decision = if allowed {
            let remaining = (self.burst_ns - ahead) / self.interval_ns;
            Decision { allowed, remaining, wait: Duration::from_nanos(ahead) }
        } else {
            Decision { allowed, remaining: 0, wait: Duration::from_nanos(ahead - self.burst_ns) }
        };
        (next, decision)
    }
}

// === impl Decision ===

impl Decision {
    const REFUSED: Decision = Decision { allowed: false, remaining: 0, wait: Duration::from_secs(1) };
}

// === impl Table, Set ===

impl Table {
    fn new(pages: usize) -> Table {
        let pages = std::iter::repeat_with(OnceLock::new).take(pages).collect();
        // Keyed at random for each table: nobody can choose keys that meet in one set.
        Table { hasher: RandomState::new(), pages }
    }

    fn spend(&self, key: impl Hash, now: u64, limiter: &Limiter) -> Decision {
        // Two keys with one hash of 64 bits would share a bucket; a million keys hold such a pair once in
        // thirty million tables.
        let key = self.hasher.hash_one(key).max(1);
        let place = (key % (self.pages.len() * SETS_PER_PAGE) as u64) as usize;
        let page = self.pages[place / SETS_PER_PAGE].get_or_init(Box::default);
        page[place % SETS_PER_PAGE].spend(key, now, limiter)
    }
}

impl Set {
    fn spend(&self, key: u64, now: u64, limiter: &Limiter) -> Decision {
        let mut spins = 0;
        loop {
            if let Some(decision) = self.spend_known(key, now, limiter) {
                return decision;
            }
            if !self.changing.swap(true, Ordering::Acquire) {
                // Another worker may have brought the key in between the look and the right to change.
                let known = self.spend_known(key, now, limiter);
                let decision = known.unwrap_or_else(|| self.spend_new(key, now, limiter));
                self.changing.store(false, Ordering::Release);
                return decision;
            }
            spins += 1;
            if spins % SPINS == 0 {
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
    }

    fn spend_known(&self, key: u64, now: u64, limiter: &Limiter) -> Option<Decision> {
        let way = self.keys.iter().position(|known| known.load(Ordering::Acquire) == key)?;
        limiter.advance(&self.times[way], now, || self.keys[way].load(Ordering::Acquire) == key)
    }

    /// Gives the key the entry whose bucket is full for the longest time, or will be first.
    fn spend_new(&self, key: u64, now: u64, limiter: &Limiter) -> Decision {
        let (first, decision) = limiter.decide(0, now);
        loop {
            let times = self.times.iter().map(|time| time.load(Ordering::Acquire));
            let Some((way, time)) = times.enumerate().min_by_key(|(_, time)| *time) else { return decision };
            // The worker that spends for the key that goes moves its time: then another one may be idle longer.
            let reserve =
                self.times[way].compare_exchange(time, BEING_REPLACED, Ordering::AcqRel, Ordering::Acquire);
            if reserve.is_ok() {
                self.keys[way].store(key, Ordering::Release);
                self.times[way].store(first, Ordering::Release);
                return decision;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    };

    use proptest::prelude::*;

    use super::*;
    use crate::config::document::BudgetKey;

    fn budget(rate: u64, per: Duration, burst: u64) -> Budget {
        Budget { rate, per, burst, key: BudgetKey::ClientAddress }
    }

    fn second(rate: u64, burst: u64) -> Budget {
        budget(rate, Duration::from_secs(1), burst)
    }

    fn after(limiter: &Limiter, ms: u64) -> Instant {
        limiter.epoch + Duration::from_millis(ms)
    }

    #[test]
    fn a_burst_is_there_at_once_and_comes_back_with_time() {
        let limiter = Limiter::single(second(10, 3));
        let ask = |ms| limiter.spend((), after(&limiter, ms));
        assert_eq!([0, 0, 0].map(|ms| ask(ms).remaining), [2, 1, 0]);
        let refused = ask(40);
        assert_eq!((refused.allowed, refused.wait), (false, Duration::from_millis(60)));
        assert!(ask(100).allowed && !ask(100).allowed && ask(200).allowed && !ask(299).allowed);
        let full = ask(10_000);
        assert_eq!((full.remaining, full.wait), (2, Duration::from_millis(100)));
    }

    #[test]
    fn keys_do_not_spend_each_others_budget() {
        let limiter = Limiter::keyed(second(1, 2));
        let ask = |key: &str| limiter.spend(key, after(&limiter, 0)).allowed;
        assert_eq!(["a", "a", "a", "b", "b", "b"].map(ask), [true, true, false, true, true, false]);
    }

    #[test]
    fn a_million_keys_keep_their_state_and_more_take_no_more_memory() {
        let limiter = Limiter::keyed(second(1, 1));
        let ask = |key: u64, ms| limiter.spend(key, after(&limiter, ms)).allowed;
        for key in 0..1_000_000 {
            assert!(ask(key, 0), "{key}");
        }
        let forgotten = (0..1_000_000).filter(|key| ask(*key, 1)).count();
        assert!(forgotten < 2_000, "{forgotten} of a million");
        assert!(size_of::<Set>() * SETS_PER_PAGE * PAGES <= 36 << 20, "the table is bounded by construction");
    }

    #[test]
    fn the_key_that_was_idle_longest_gives_way() {
        let limiter = Limiter::single(second(1, 10));
        let set = Set::default();
        for key in 1..=WAYS as u64 {
            set.spend(key, key * 1_000_000, &limiter);
        }
        set.spend(1, 100_000_000, &limiter);
        set.spend(99, 100_000_001, &limiter);
        let known = |key| set.keys.iter().any(|known| known.load(SeqCst) == key);
        assert!(known(1) && known(99) && !known(2) && known(3));
    }

    #[test]
    fn workers_together_never_admit_more_than_burst_and_rate() {
        const KEYS: u64 = 3 * WAYS as u64;
        let (rate, burst) = (2_000, 50);
        // One page of sets, so that workers meet where keys are brought in.
        let spent = Spent::ByKey(Table::new(1).into());
        let limiter = Arc::new(Limiter::new(second(rate, burst), spent));
        let one = Arc::new(Limiter::single(second(rate, burst)));
        let admitted: Arc<Vec<AtomicUsize>> = Arc::new((0..=KEYS).map(|_| AtomicUsize::new(0)).collect());
        let began = Instant::now();
        let threads: Vec<_> = (0..4u64)
            .map(|thread| {
                let (limiter, one, admitted) = (limiter.clone(), one.clone(), admitted.clone());
                std::thread::spawn(move || {
                    for round in 0..60_000u64 {
                        let key = (round * 7 + thread) % KEYS;
                        if limiter.spend(key, Instant::now()).allowed {
                            admitted[key as usize].fetch_add(1, SeqCst);
                        }
                        if one.spend((), Instant::now()).allowed {
                            admitted[KEYS as usize].fetch_add(1, SeqCst);
                        }
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let bound = burst as f64 + rate as f64 * began.elapsed().as_secs_f64();
        for (key, admitted) in admitted.iter().enumerate() {
            let admitted = admitted.load(SeqCst);
            assert!(admitted as f64 <= bound, "key {key}: {admitted} of {bound}");
            assert!(admitted >= burst as usize, "key {key}: {admitted}");
        }
    }

    proptest! {
        /// Over every window of every sequence of requests.
        #[test]
        fn no_window_admits_more_than_burst_and_rate(
            rate in 1..5_000u64,
            burst in 1..50u64,
            per_ms in 1..5_000u64,
            gaps_us in prop::collection::vec(0..20_000u64, 1..300),
        ) {
            let limiter = Limiter::single(budget(rate, Duration::from_millis(per_ms), burst));
            let mut admitted: Vec<u64> = Vec::new();
            let mut now_us = 0;
            for gap in gaps_us {
                now_us += gap;
                if limiter.spend((), limiter.epoch + Duration::from_micros(now_us)).allowed {
                    admitted.push(now_us);
                }
            }
            for (place, from) in admitted.iter().enumerate() {
                for (more, to) in admitted[place..].iter().enumerate() {
                    let window_us = u128::from(to - from);
                    let refilled = window_us * u128::from(rate) / u128::from(per_ms * 1_000);
                    let others = more as u128;
                    prop_assert!(others < u128::from(burst) + refilled);
                }
            }
        }
    }
}
