//! The log clock: time as the log tells it.
//!
//! The leader proposes a tick about once a second with the time that passed on its monotonic clock, 0 for the
//! first of its term. So the clock never runs ahead of real time: a leader that was paused, changed or whose
//! wall clock is wrong can only make it late. Invariant: it never goes back.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How often the leader proposes a tick.
pub const TICK_PERIOD: Duration = Duration::from_secs(1);

/// The most that one tick may move the clock, whatever it says: two periods.
pub const ELAPSED_MS_MAX: u64 = 2000;

/// Milliseconds that the cluster has agreed have passed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogClock {
    now_ms: u64,
}

// === impl LogClock ===

impl LogClock {
    /// The time `since_tick_ms` after the last tick.
    pub(super) fn at(self, since_tick_ms: u64) -> u64 {
        self.now_ms.saturating_add(since_tick_ms.min(ELAPSED_MS_MAX))
    }

    pub(super) fn advance(&mut self, elapsed_ms: u64) -> u64 {
        self.now_ms = self.at(elapsed_ms);
        self.now_ms
    }
}
