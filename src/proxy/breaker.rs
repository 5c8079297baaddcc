//! The circuit breaker of one endpoint, for the whole node.
//!
//! Job: closed, it counts failures in a sliding window; open, it keeps requests away for a time; half-open, it lets
//! through one request at a time and closes after enough of them went well, or opens again. Invariants: exactly one
//! request is under way while it is half-open, across all workers: its place is taken and given back by
//! compare-and-swap, and a request that ends without a verdict gives it back too. State and time are one word,
//! so nobody acts on one with the other's past. No locks; closed and without failures nothing is written.
//! Neighbours: `endpoint` holds it, `upstream` asks and tells; time comes from them.

use std::sync::atomic::{
    AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed},
};

use crate::config::document::CircuitBreaker;

/// The window is counted in so many parts: failures are forgotten a part at a time.
const PARTS: u64 = 10;

/// An endpoint's breaker. Its word: two bits of phase; the rest is when it half-opens (open) or how many requests
/// went well (half-open).
#[derive(Debug, Default)]
pub(super) struct Breaker {
    word: AtomicU64,
    /// Each: the number of its part of time, and failures in it.
    parts: [AtomicU64; PARTS as usize],
}

/// What a breaker says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Closed,
    /// Until then, in ms.
    Open(u64),
    /// After so many requests that went well; whether another one is under way.
    HalfOpen {
        successes: u64,
        probing: bool,
    },
}

/// Whether a request may pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    Free,
    /// It is the one that decides; it has to say how it went or give its place back.
    Probe,
    Refused,
}

// === impl Phase ===

impl Phase {
    fn word(self) -> u64 {
        match self {
            Self::Closed => 0,
            Self::Open(until) => until << 2 | 1,
            Self::HalfOpen { successes, probing: false } => successes << 2 | 2,
            Self::HalfOpen { successes, probing: true } => successes << 2 | 3,
        }
    }

    fn of(word: u64) -> Self {
        let value = word >> 2;
        match word & 3 {
            0 => Self::Closed,
            1 => Self::Open(value),
            2 => Self::HalfOpen { successes: value, probing: false },
            _ => Self::HalfOpen { successes: value, probing: true },
        }
    }
}

// === impl Breaker ===

impl Breaker {
    /// The phase at a time: an open breaker whose time is over is half-open.
    pub(super) fn phase(&self, now_ms: u64) -> Phase {
        match Phase::of(self.word.load(Acquire)) {
            Phase::Open(until) if now_ms >= until => Phase::HalfOpen { successes: 0, probing: false },
            phase => phase,
        }
    }

    /// Asks for a request.
    pub(super) fn enter(&self, now_ms: u64) -> Entry {
        let word = self.word.load(Acquire);
        let successes = match Phase::of(word) {
            Phase::Closed => return Entry::Free,
            Phase::Open(until) if now_ms >= until => 0,
            Phase::HalfOpen { successes, probing: false } => successes,
            Phase::Open(_) | Phase::HalfOpen { probing: true, .. } => return Entry::Refused,
        };
        let probing = Phase::HalfOpen { successes, probing: true }.word();
        match self.word.compare_exchange(word, probing, AcqRel, Acquire) {
            Ok(_) => Entry::Probe,
            // Somebody else was faster.
            Err(_) => Entry::Refused,
        }
    }

    /// The probe ended without a verdict.
    pub(super) fn give_back(&self) {
        let word = self.word.load(Acquire);
        if let Phase::HalfOpen { successes, probing: true } = Phase::of(word) {
            let idle = Phase::HalfOpen { successes, probing: false }.word();
            // Only the probe itself changes this word.
            let _ = self.word.compare_exchange(word, idle, AcqRel, Acquire);
        }
    }

    /// The probe went well; whether the breaker closed.
    pub(super) fn probe_succeeded(&self, settings: &CircuitBreaker) -> bool {
        let word = self.word.load(Acquire);
        let Phase::HalfOpen { successes, probing: true } = Phase::of(word) else { return false };
        let successes = successes + 1;
        let closes = successes >= u64::from(settings.successes);
        let next = if closes { Phase::Closed } else { Phase::HalfOpen { successes, probing: false } };
        if closes {
            self.parts.iter().for_each(|part| part.store(0, Relaxed));
        }
        self.word.compare_exchange(word, next.word(), AcqRel, Acquire).is_ok() && closes
    }

    /// A request failed; `probe`: the one that decides. Whether the breaker opened.
    pub(super) fn failed(&self, probe: bool, now_ms: u64, settings: &CircuitBreaker) -> bool {
        let open = Phase::Open(now_ms + as_ms(settings.open_for)).word();
        if probe {
            let word = self.word.load(Acquire);
            let probing = matches!(Phase::of(word), Phase::HalfOpen { probing: true, .. });
            return probing && self.word.compare_exchange(word, open, AcqRel, Acquire).is_ok();
        }
        // Requests that began before it opened say nothing new.
        let closed = Phase::Closed.word();
        if self.word.load(Acquire) != closed || self.count(now_ms, settings) < u64::from(settings.failures) {
            return false;
        }
        self.word.compare_exchange(closed, open, AcqRel, Acquire).is_ok()
    }

    /// Counts a failure; how many there are in the window then.
    fn count(&self, now_ms: u64, settings: &CircuitBreaker) -> u64 {
        const COUNT: u64 = u32::MAX as u64;
        // 32 bits of time: at the shortest part, 1 ms, this is seven weeks before an old count could be met again.
        let number = (now_ms / (as_ms(settings.window) / PARTS).max(1)) & COUNT;
        let part = &self.parts[(number % PARTS) as usize];
        let _ = part.fetch_update(AcqRel, Acquire, |word| match word >> 32 {
            same if same == number => Some(if word & COUNT == COUNT { word } else { word + 1 }),
            _ => Some(number << 32 | 1),
        });
        let parts = self.parts.iter().map(|part| part.load(Acquire));
        parts.filter(|word| number.wrapping_sub(word >> 32) & COUNT < PARTS).map(|word| word & COUNT).sum()
    }
}

fn as_ms(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX >> 2)
}

#[cfg(test)]
mod tests {
    use std::{sync::Barrier, time::Duration};

    use super::*;

    const SETTINGS: CircuitBreaker = CircuitBreaker {
        failures: 3,
        window: Duration::from_secs(10),
        successes: 2,
        open_for: Duration::from_secs(30),
    };

    fn fails(breaker: &Breaker, now_ms: u64) -> bool {
        breaker.failed(false, now_ms, &SETTINGS)
    }

    #[test]
    fn failures_within_the_window_open_it_and_time_half_opens_it() {
        let breaker = Breaker::default();
        assert!(!fails(&breaker, 1_000_000) && !fails(&breaker, 1_005_000));
        // The first is forgotten by now.
        assert!(!fails(&breaker, 1_010_500));
        assert_eq!(breaker.enter(1_010_500), Entry::Free);
        assert!(fails(&breaker, 1_011_000));
        assert_eq!(breaker.phase(1_011_000), Phase::Open(1_041_000));
        assert_eq!(breaker.enter(1_040_999), Entry::Refused);
        assert_eq!(breaker.phase(1_041_000), Phase::HalfOpen { successes: 0, probing: false });
        assert!(!fails(&breaker, 1_050_000), "a request from before it opened");
        assert_eq!(breaker.enter(1_050_000), Entry::Probe);
        assert!(breaker.failed(true, 1_050_000, &SETTINGS));
        assert_eq!(breaker.phase(1_050_000), Phase::Open(1_080_000));
    }

    #[test]
    fn one_request_at_a_time_closes_it_after_enough_successes() {
        let breaker = Breaker::default();
        let opened = (0..3).map(|_| fails(&breaker, 1_000)).collect::<Vec<_>>();
        assert_eq!(opened, [false, false, true]);
        let now = 31_000;
        assert_eq!([breaker.enter(now), breaker.enter(now)], [Entry::Probe, Entry::Refused]);
        breaker.give_back();
        assert_eq!([breaker.enter(now), breaker.enter(now)], [Entry::Probe, Entry::Refused]);
        assert!(!breaker.probe_succeeded(&SETTINGS));
        assert_eq!([breaker.enter(now), breaker.enter(now)], [Entry::Probe, Entry::Refused]);
        assert!(breaker.probe_succeeded(&SETTINGS));
        assert_eq!([breaker.enter(now), breaker.enter(now)], [Entry::Free, Entry::Free]);
        assert!(!fails(&breaker, now), "what was counted before is forgotten");
    }

    #[test]
    fn of_many_threads_one_is_the_probe() {
        const THREADS: usize = 8;
        let breaker = Breaker::default();
        for round in 1..200_u64 {
            let now = round * 100_000;
            while !fails(&breaker, now) {}
            let start = Barrier::new(THREADS);
            let probes: usize = std::thread::scope(|scope| {
                let enter = || {
                    start.wait();
                    usize::from(breaker.enter(now + 30_000) == Entry::Probe)
                };
                let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(enter)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).sum()
            });
            assert_eq!(probes, 1, "round {round}");
            breaker.probe_succeeded(&SETTINGS);
            assert_eq!(breaker.enter(now + 30_000), Entry::Probe);
            assert!(breaker.probe_succeeded(&SETTINGS));
        }
    }
}
