//! How long things took: totals that a scrape reads.
//!
//! Invariant: recording is a few relaxed additions; nothing here allocates or locks.

use std::{
    array,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// The upper bounds of the buckets, in seconds; the last one is open.
pub const BUCKETS: [f64; 14] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, f64::INFINITY];

/// Durations, counted by [`BUCKETS`].
#[derive(Debug, Default)]
pub(crate) struct Durations {
    buckets: [AtomicU64; BUCKETS.len()],
    sum_us: AtomicU64,
}

/// What was recorded so far.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DurationTotals {
    /// How many fell into each of [`BUCKETS`] and not into one before.
    pub buckets: [u64; BUCKETS.len()],
    /// All of them added up, in seconds.
    pub sum_seconds: f64,
}

/// Figures of this node for `/metrics`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Figures {
    /// The current term.
    pub term: u64,
    /// Whether this node leads.
    pub is_leader: bool,
    /// The log index that the state has reached.
    pub applied: u64,
    /// On the leader, from handing a batch to the log until it was applied.
    pub commit: DurationTotals,
    /// The barriers that made the log durable.
    pub fsync: DurationTotals,
}

// === impl Durations ===

impl Durations {
    pub(crate) fn record(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = BUCKETS.iter().position(|bound| seconds <= *bound).unwrap_or(BUCKETS.len() - 1);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    pub(crate) fn totals(&self) -> DurationTotals {
        #[expect(clippy::cast_precision_loss, reason = "a sum for people")]
        let sum_seconds = self.sum_us.load(Ordering::Relaxed) as f64 / 1e6;
        let buckets = array::from_fn(|bucket| self.buckets[bucket].load(Ordering::Relaxed));
        DurationTotals { buckets, sum_seconds }
    }
}
