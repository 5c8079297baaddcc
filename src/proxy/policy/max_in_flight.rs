//! `max_in_flight`: no more requests than this at a time, on this node; others get 503 at once.
//!
//! Invariant: a request counts from here to the last byte of its answer, whatever becomes of it.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use super::super::error::ProxyError;

/// A policy's requests, counted over all routes that have it.
#[derive(Debug)]
pub(super) struct MaxInFlight {
    pub(super) max: usize,
    pub(super) now: Arc<AtomicUsize>,
}

/// One request being counted.
#[derive(Debug)]
pub(super) struct InFlight(Arc<AtomicUsize>);

// === impl MaxInFlight, InFlight ===

impl MaxInFlight {
    pub(super) fn enter(&self) -> Result<InFlight, ProxyError> {
        let before = self.now.fetch_add(1, Ordering::Relaxed);
        let entered = InFlight(Arc::clone(&self.now));
        if before < self.max { Ok(entered) } else { Err(ProxyError::TooManyInFlight) }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_leaves_makes_room_and_who_was_refused_takes_none() {
        let limit = MaxInFlight { max: 2, now: Arc::default() };
        let first = limit.enter().unwrap();
        let _second = limit.enter().unwrap();
        assert!(limit.enter().is_err() && limit.enter().is_err());
        drop(first);
        let _third = limit.enter().unwrap();
        assert!(limit.enter().is_err());
    }
}
