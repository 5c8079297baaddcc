//! What the tests of whole processes share: clusters, services, clients, waiting.
//!
//! Invariants: nothing has a fixed port; nothing sleeps to be right; whatever was started ends with the test,
//! and a test that fails shows the logs of its nodes.

mod client;
mod cluster;
mod events;
mod service;

use std::time::{Duration, Instant};

pub use client::{Connection, Response, call, get, json};
pub use cluster::{Program, TestCluster, free_address, gogate, run};
pub use events::{Event, Events};
pub use service::TestService;

/// Between two looks at a condition.
const POLL: Duration = Duration::from_millis(10);

/// Returns what `look` finds as soon as it finds something; panics at the deadline with what was seen last.
#[track_caller]
pub fn eventually<T>(within: Duration, condition: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + within;
    loop {
        match look() {
            Ok(found) => return found,
            Err(seen) if Instant::now() > deadline => {
                panic!("not within {within:?}: {condition}\nlast seen: {seen}")
            }
            Err(_) => std::thread::sleep(POLL),
        }
    }
}
