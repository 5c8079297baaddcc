//! Turns by weight: which service of a split a request goes to, and whether it is mirrored.
//!
//! Job: [`Turns`] is a cycle made once from the weights and one counter for all workers of the node. Invariants:
//! in any window as long as the cycle each share comes exactly as often as its weight, reduced, says; so with
//! weights that add up to 100, or to a part of 100, any 100 requests are split exactly. Shares are spread evenly,
//! never at random. A reload that does not change the shares goes on where the count stood.
//! Neighbours: `action` makes and carries over, `http` takes turns.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// Whose turn it is.
#[derive(Debug)]
pub(super) struct Turns {
    /// What they were made of.
    shares: Vec<(Arc<str>, u32)>,
    /// Places of shares.
    cycle: Box<[u16]>,
    taken: AtomicU64,
}

// === impl Turns ===

impl Turns {
    /// `previous` if its shares are the same, so that it goes on. Some weight is not 0, and `config` bounds how
    /// long the cycle gets.
    pub(super) fn new(shares: Vec<(Arc<str>, u32)>, previous: Option<&Arc<Turns>>) -> Arc<Turns> {
        if let Some(previous) = previous.filter(|previous| previous.shares == shares) {
            return Arc::clone(previous);
        }
        let weights: Vec<u32> = shares.iter().map(|(_, weight)| *weight).collect();
        let cycle = cycle(&weights);
        Arc::new(Turns { shares, cycle, taken: AtomicU64::new(0) })
    }

    /// The place of the share whose turn it is.
    pub(super) fn take(&self) -> usize {
        // Which request gets which turn does not matter, only that each turn is taken once.
        let taken = self.taken.fetch_add(1, Ordering::Relaxed);
        let place = taken.checked_rem(self.cycle.len() as u64).unwrap_or_default();
        self.cycle.get(place as usize).map_or(0, |share| usize::from(*share))
    }
}

/// Smooth weighted round robin, as nginx does it, once around: after `sum of weights` steps it repeats.
fn cycle(weights: &[u32]) -> Box<[u16]> {
    let divisor = weights.iter().copied().fold(0, common_divisor).max(1);
    let weights: Vec<i64> = weights.iter().map(|weight| i64::from(weight / divisor)).collect();
    let sum: i64 = weights.iter().sum();
    let mut current = vec![0; weights.len()];
    let step = |_| {
        let mut best = 0;
        for (place, weight) in weights.iter().enumerate() {
            current[place] += weight;
            if current[place] > current[best] {
                best = place;
            }
        }
        current[best] -= sum;
        u16::try_from(best).unwrap_or_default()
    };
    (0..sum).map(step).collect()
}

/// Euclid's; 0 divides by everything.
pub(super) fn common_divisor(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { common_divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(weights: &[u32]) -> Arc<Turns> {
        Turns::new(shares(weights), None)
    }

    fn shares(weights: &[u32]) -> Vec<(Arc<str>, u32)> {
        weights.iter().enumerate().map(|(place, weight)| (place.to_string().into(), *weight)).collect()
    }

    #[test]
    fn any_hundred_turns_are_split_exactly() {
        for weights in
            [&[95, 5][..], &[1, 99], &[50, 50], &[20, 30, 50], &[1, 1, 2], &[10, 0], &[0, 7], &[190, 10]]
        {
            let sum: u32 = weights.iter().sum();
            let turns = turns(weights);
            let taken: Vec<usize> = (0..500).map(|_| turns.take()).collect();
            for window in taken.windows(100) {
                for (place, weight) in weights.iter().enumerate() {
                    let count = window.iter().filter(|share| **share == place).count();
                    assert_eq!(count, (weight * 100 / sum) as usize, "{weights:?}");
                }
            }
        }
    }

    #[test]
    fn shares_are_spread_evenly() {
        let turns = turns(&[95, 5]);
        let places: Vec<usize> = (0..200).filter(|_| turns.take() == 1).collect();
        assert!(places.windows(2).all(|pair| pair[1] - pair[0] == 20), "{places:?}");
        assert_eq!(cycle(&[5, 1, 1]), [0, 0, 1, 0, 2, 0, 0].into());
    }

    #[test]
    fn workers_share_the_count() {
        let turns = turns(&[9, 1]);
        let seconds: usize = std::thread::scope(|scope| {
            let count = || (0..250).filter(|_| turns.take() == 1).count();
            let workers: Vec<_> = (0..4).map(|_| scope.spawn(count)).collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).sum()
        });
        assert_eq!(seconds, 100);
    }

    #[test]
    fn the_count_goes_on_when_the_shares_stay() {
        let before = turns(&[1, 1]);
        assert_eq!(before.take(), 0);
        let same = Turns::new(shares(&[1, 1]), Some(&before));
        assert_eq!(same.take(), 1);
        let other = Turns::new(shares(&[1, 2]), Some(&before));
        assert!(!Arc::ptr_eq(&before, &other));
    }
}
