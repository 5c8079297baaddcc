//! Bugs that can be put in on purpose, to see whether `jepsen-lite` finds them. Only with the feature `bugs`, which no
//! build that is shipped has; without it every question here is a constant no, and the variable is refused.
//! `.ci/bugs` has each of them found.
//!
//! `GOGATE_BUG` names one:
//!
//! | name | what is wrong |
//! |---|---|
//! | `barrier-skipped` | appends and votes are acknowledged before the store handed them over |
//! | `stale-read` | a linearizable read is answered from what the node last knew |
//! | `vote-forgotten` | a vote is not kept on the disk |
//! | `wall-clock` | the log clock follows the machine's wall clock |
//! | `forwarded-twice` | a follower passes a write on again when the leader's answer did not come |

#[cfg(feature = "bugs")]
mod put_in {
    use std::{
        sync::OnceLock,
        time::{Instant, SystemTime},
    };

    /// Whether this bug is put in.
    pub(crate) fn is(bug: &str) -> bool {
        static BUG: OnceLock<String> = OnceLock::new();
        #[expect(clippy::disallowed_methods, reason = "a switch for experiments, not a setting")]
        let named = BUG.get_or_init(|| std::env::var("GOGATE_BUG").unwrap_or_default());
        named == bug
    }

    /// The time by which ticks are stamped.
    pub(crate) fn now() -> Instant {
        static START: OnceLock<(Instant, SystemTime)> = OnceLock::new();
        let (instant, wall) = START.get_or_init(|| (Instant::now(), SystemTime::now()));
        match SystemTime::now().duration_since(*wall) {
            Ok(passed) if is("wall-clock") => *instant + passed,
            Err(_) if is("wall-clock") => *instant,
            _ => Instant::now(),
        }
    }
}

#[cfg(not(feature = "bugs"))]
mod put_in {
    use std::time::Instant;

    pub(crate) const fn is(_bug: &str) -> bool {
        false
    }

    pub(crate) fn now() -> Instant {
        Instant::now()
    }
}

pub(crate) use put_in::{is, now};
