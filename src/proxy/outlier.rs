//! Ejection of an endpoint that fails again and again, for the whole node.
//!
//! Job: count errors in a row, and keep an endpoint out for a time that grows with every ejection, as Envoy does: the
//! n-th time n times `eject_for`, at most [`EJECTION_MAX`]; each `eject_for` without an ejection takes one off n.
//! Invariants: no locks; without errors nothing is written. Neighbours: `endpoint` holds it and minds how many
//! may be out at once; time comes from there.

use std::{
    sync::atomic::{
        AtomicU32, AtomicU64,
        Ordering::{Acquire, Relaxed, Release},
    },
    time::Duration,
};

use crate::config::document::Outlier as Settings;

/// The longest ejection, unless `eject_for` itself is longer.
const EJECTION_MAX: Duration = Duration::from_secs(300);

/// An endpoint's errors.
#[derive(Debug, Default)]
pub(super) struct Outlier {
    in_a_row: AtomicU32,
    ejections: AtomicU32,
    until_ms: AtomicU64,
}

// === impl Outlier ===

impl Outlier {
    /// Until when it is out, in ms; none if it is not.
    pub(super) fn ejected_until(&self, now_ms: u64) -> Option<u64> {
        Some(self.until_ms.load(Acquire)).filter(|until| *until > now_ms)
    }

    pub(super) fn succeeded(&self) {
        if self.in_a_row.load(Relaxed) != 0 {
            self.in_a_row.store(0, Relaxed);
        }
    }

    /// Whether there are enough errors in a row now.
    pub(super) fn failed(&self, settings: &Settings) -> bool {
        self.in_a_row.fetch_add(1, Relaxed) + 1 >= settings.consecutive_errors
    }

    /// Puts it out; for how long. The caller sees to it that nobody else does so at this moment.
    pub(super) fn eject(&self, now_ms: u64, settings: &Settings) -> Duration {
        let eject_for_ms = settings.eject_for.as_millis().max(1) as u64;
        let since_return = now_ms.saturating_sub(self.until_ms.load(Relaxed));
        let forgiven = u32::try_from(since_return / eject_for_ms).unwrap_or(u32::MAX);
        let ejections = self.ejections.load(Relaxed).saturating_sub(forgiven).saturating_add(1);
        let longest = EJECTION_MAX.max(settings.eject_for);
        let time = settings.eject_for.saturating_mul(ejections).min(longest);
        self.ejections.store(ejections, Relaxed);
        self.in_a_row.store(0, Relaxed);
        self.until_ms.store(now_ms + time.as_millis() as u64, Release);
        time
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_in_a_row_eject_and_repeats_take_longer() {
        let settings =
            Settings { consecutive_errors: 3, eject_for: Duration::from_secs(30), max_ejected_percent: 50 };
        let outlier = Outlier::default();
        assert!(!outlier.failed(&settings) && !outlier.failed(&settings));
        outlier.succeeded();
        assert!(!outlier.failed(&settings) && !outlier.failed(&settings) && outlier.failed(&settings));
        let mut now = 1_000;
        for seconds in [30, 60, 90] {
            assert_eq!(outlier.eject(now, &settings), Duration::from_secs(seconds));
            assert_eq!(outlier.ejected_until(now + seconds * 1_000 - 1), Some(now + seconds * 1_000));
            now += seconds * 1_000;
            assert_eq!(outlier.ejected_until(now), None);
        }
        // Two times 30 s of peace take two off three.
        assert_eq!(outlier.eject(now + 60_000, &settings), Duration::from_secs(60));
        for _ in 0..20 {
            outlier.eject(now + 60_000, &settings);
        }
        assert_eq!(outlier.eject(now + 60_000, &settings), EJECTION_MAX);
    }
}
