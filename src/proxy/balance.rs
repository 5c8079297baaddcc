//! Which endpoint is next.
//!
//! Job: in turn, per worker. Neighbours: `upstream` asks.

use std::cell::Cell;

/// Endpoints in turn.
#[derive(Debug, Default)]
pub(super) struct RoundRobin(Cell<usize>);

// === impl RoundRobin ===

impl RoundRobin {
    /// Begins at another endpoint for each worker, so that few requests do not all meet the first one.
    pub(super) fn starting_at(start: usize) -> Self {
        Self(Cell::new(start))
    }

    /// Where the turn stands, for a list that replaces the one before.
    pub(super) fn position(&self) -> usize {
        self.0.get()
    }

    /// The next of `count` places other than `not`; none if there is no other.
    pub(super) fn next(&self, count: usize, not: Option<usize>) -> Option<usize> {
        for _ in 0..2 {
            let turn = self.0.get();
            self.0.set(turn.wrapping_add(1));
            let place = turn.checked_rem(count)?;
            if Some(place) != not {
                return Some(place);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_take_turns_and_one_can_be_passed_over() {
        let turns = RoundRobin::starting_at(1);
        let places: Vec<_> = (0..4).map(|_| turns.next(3, None)).collect();
        assert_eq!(places, [Some(1), Some(2), Some(0), Some(1)]);
        assert_eq!(turns.next(3, Some(2)), Some(0));
        assert_eq!(turns.next(1, Some(0)), None);
        assert_eq!(turns.next(0, None), None);
    }
}
