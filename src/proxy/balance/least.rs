//! The fewest requests under way: a heap, so that the cost is the logarithm of the number of endpoints.
//!
//! Endpoints are ordered by requests under way for their weight; among equals the one whose turn was longest ago
//! is first. Turns have weights too (stride scheduling: Waldspurger and Weihl, 1995): with one request at a time,
//! when all are equal before each, a weight of 3 is still three times the requests. Invariant: the order holds
//! whenever `upstream` is not in the middle of telling about a change.

use super::{Candidate, Load};

/// What a turn costs at weight 1.
const STRIDE: u64 = 1 << 20;

/// Candidates, the best one first.
#[derive(Debug)]
pub(in crate::proxy) struct Least {
    heap: Vec<usize>,
    /// By candidate: where it is in the heap.
    places: Vec<usize>,
    /// The latest turn.
    turn: u64,
}

// === impl Least ===

impl Least {
    pub(super) fn new(candidates: &[Candidate]) -> Self {
        let mut least = Self { heap: Vec::new(), places: vec![0; candidates.len()], turn: 0 };
        for candidate in 0..candidates.len() {
            least.places[candidate] = least.heap.len();
            least.heap.push(candidate);
            least.rise(candidate, candidates);
        }
        least.turn = candidates.iter().map(|candidate| candidate.endpoint.load.turn.get()).min().unwrap_or(0);
        least
    }

    /// The best one that `admit` takes. Only those below one that was refused are looked at besides.
    pub(super) fn pick(
        &mut self,
        candidates: &[Candidate],
        mut admit: impl FnMut(usize) -> bool,
    ) -> Option<usize> {
        let first = *self.heap.first()?;
        if admit(first) {
            return Some(first);
        }
        let mut open = vec![1, 2];
        loop {
            let existing = open.iter().enumerate().filter(|(_, place)| **place < self.heap.len());
            let best = existing
                .min_by_key(|(_, place)| Self::key(&candidates[self.heap[**place]]))
                .map(|(at, _)| at)?;
            let place = open.swap_remove(best);
            if admit(self.heap[place]) {
                return Some(self.heap[place]);
            }
            open.extend([2 * place + 1, 2 * place + 2]);
        }
    }

    /// A request to it began.
    pub(super) fn went_up(&mut self, candidate: usize, candidates: &[Candidate]) {
        let Candidate { endpoint, weight } = &candidates[candidate];
        // Whoever had few turns for a while does not get them all at once.
        self.turn = self.turn.max(endpoint.load.turn.get());
        endpoint.load.turn.set(self.turn + STRIDE / u64::from(*weight));
        self.sink(candidate, candidates);
    }

    /// A request to it ended.
    pub(super) fn went_down(&mut self, candidate: usize, candidates: &[Candidate]) {
        self.rise(candidate, candidates);
    }

    fn rise(&mut self, candidate: usize, candidates: &[Candidate]) {
        let mut place = self.places[candidate];
        while place > 0 {
            let above = (place - 1) / 2;
            if Self::key(&candidates[self.heap[above]]) <= Self::key(&candidates[candidate]) {
                break;
            }
            self.swap(place, above);
            place = above;
        }
    }

    fn sink(&mut self, candidate: usize, candidates: &[Candidate]) {
        let mut place = self.places[candidate];
        loop {
            let below = (2 * place + 1..self.heap.len().min(2 * place + 3))
                .min_by_key(|below| Self::key(&candidates[self.heap[*below]]));
            let Some(below) = below else { return };
            if Self::key(&candidates[candidate]) <= Self::key(&candidates[self.heap[below]]) {
                return;
            }
            self.swap(place, below);
            place = below;
        }
    }

    fn swap(&mut self, one: usize, other: usize) {
        self.heap.swap(one, other);
        self.places[self.heap[one]] = one;
        self.places[self.heap[other]] = other;
    }

    fn key(candidate: &Candidate) -> (u64, u64, Option<usize>) {
        let Load { in_flight, turn, candidate: place, .. } = &candidate.endpoint.load;
        // Shares of one request in 2^32 decide nothing.
        let load = (u64::from(in_flight.get()) << 32) / u64::from(candidate.weight);
        (load, turn.get(), place.get())
    }
}
