//! Is there an order, one operation after another, in which everything was answered as the model says?
//!
//! Job: judge the operations on one key. An operation takes effect at one moment between its call and its
//! return. One whose outcome is unknown never returned: it may take effect at any time after its call, or
//! never. Invariants: `Valid` means that such an order was found, `Violated` that there is none; whatever ends
//! the search before it is through (time, memory) makes it `Inconclusive`. Neighbours: `search` looks for the
//! order, `cache` remembers where it has been, `model` says what each operation does.

mod cache;
mod search;

use std::time::{Duration, Instant};

pub use search::search;

#[cfg(test)]
use crate::model::Model;

/// One operation, from its call to its return. Both are moments of one clock of any kind.
#[derive(Debug, Clone)]
pub struct Interval<O> {
    /// What was done.
    pub operation: O,
    /// When it was called.
    pub called: u64,
    /// When it returned; none: its outcome is unknown for ever. At the moment of another's call it does not
    /// count as before that.
    pub returned: Option<u64>,
}

/// What a search may cost.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// When it has to end.
    pub deadline: Instant,
    /// How many bytes it may remember its situations with, about.
    pub memory_max: usize,
}

/// What a search comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// There is an order.
    Valid,
    /// There is none.
    Violated(Partial),
    /// It ended before that was clear, and why.
    Inconclusive(&'static str),
}

/// How far an order can be brought at most. Operations go by their places in the history.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Partial {
    /// In this order everything fits …
    pub order: Vec<usize>,
    /// … but none of these can come next: what was open then, before the first of them returned.
    pub next: Vec<usize>,
}

/// With a table that grows, and what else there is, a search stays below 4 GiB.
const MEMORY_MAX: usize = 2 << 30;

// === impl Limits ===

impl Limits {
    /// So much time from now on, and a bounded memory.
    pub fn within(time: Duration) -> Self {
        Self { deadline: Instant::now() + time, memory_max: MEMORY_MAX }
    }
}

/// In this order the operations fit the model, and none comes after one that was called when it had returned.
#[cfg(test)]
#[track_caller]
pub fn assert_is_order<M: Model>(model: &M, history: &[Interval<M::Operation>], order: &[usize]) {
    let mut state = model.initial();
    for (place, operation) in order.iter().enumerate() {
        let interval = &history[*operation];
        state = model.step(&state, &interval.operation).expect("it fits");
        let before = |other: &usize| history[*other].returned.is_some_and(|end| end < interval.called);
        assert!(!order[place + 1..].iter().any(before), "{operation} comes before what had returned");
    }
}

#[cfg(test)]
mod tests;
