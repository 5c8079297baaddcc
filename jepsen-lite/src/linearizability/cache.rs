//! Where a search has been, so that it goes nowhere twice.
//!
//! A situation is the set of operations that have taken effect and the state that they left. Of operations
//! that returned, all that matters is which ones took effect; with those that never returned there is more to
//! say: who has used fewer of them to come to the same place can do whatever the other one can. So a
//! situation is not worth another visit if it was reached before with a part of the same unknown operations.
//! Without that, each of k unknown writes doubles the places to go; with it, a few remain of each kind.
//!
//! Invariants: a place is known by 128 bits, not by its set and state: among 10^8 places, two are taken for
//! one with a chance of 10^-22. Forty bytes a place, and more only where unknown operations were used.

use std::collections::{
    HashMap,
    hash_map::{DefaultHasher, Entry},
};
use std::hash::{BuildHasherDefault, Hash, Hasher};

/// Which of the operations that never returned have taken effect: of each kind, so many.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Used {
    of_kind: Box<[u32]>,
    all: u32,
}

/// The places that were visited.
#[derive(Default)]
pub(super) struct Visited {
    /// Each with the sets of unknown operations with which it was reached, none of them a part of another.
    /// No sets: it was reached without any, which beats all others.
    places: HashMap<u128, Vec<Used>, BuildHasherDefault<Folded>>,
    /// What the sets take.
    set_bytes: usize,
}

/// What a place takes in a table that may be half empty.
const PLACE_BYTES: usize = 80;

/// What a set takes besides its numbers: itself, its place in a list, and what the allocator adds.
const SET_BYTES: usize = 64;

/// A place is a hash already: its halves are folded into what the table needs.
#[derive(Default)]
pub(super) struct Folded(u64);

/// 128 bits of a value.
pub(super) fn fingerprint(value: &impl Hash) -> u128 {
    let half = |salt: u64| {
        let mut hasher = DefaultHasher::new();
        salt.hash(&mut hasher);
        value.hash(&mut hasher);
        u128::from(hasher.finish())
    };
    half(0) << 64 | half(1)
}

// === impl Used ===

impl Used {
    /// None of so many kinds.
    pub(super) fn none_of(kinds: usize) -> Self {
        Self { of_kind: vec![0; kinds].into(), all: 0 }
    }

    /// How many of this kind have taken effect.
    pub(super) fn of_kind(&self, kind: usize) -> u32 {
        self.of_kind[kind]
    }

    /// One more of this kind does.
    pub(super) fn add(&mut self, kind: usize) {
        self.of_kind[kind] += 1;
        self.all += 1;
    }

    /// That is taken back.
    pub(super) fn remove(&mut self, kind: usize) {
        self.of_kind[kind] -= 1;
        self.all -= 1;
    }

    fn bytes(&self) -> usize {
        SET_BYTES + size_of_val(&*self.of_kind)
    }

    fn is_part_of(&self, other: &Self) -> bool {
        self.all <= other.all && self.of_kind.iter().zip(&other.of_kind).all(|(mine, theirs)| mine <= theirs)
    }
}

// === impl Visited ===

impl Visited {
    /// True if this is a new place, or it was reached with less than ever before.
    pub(super) fn insert(&mut self, place: u128, used: &Used) -> bool {
        match self.places.entry(place) {
            Entry::Vacant(vacant) => {
                let sets = if used.all == 0 { Vec::new() } else { vec![used.clone()] };
                self.set_bytes += sets.len() * used.bytes();
                vacant.insert(sets);
                true
            }
            Entry::Occupied(mut occupied) => {
                let sets = occupied.get_mut();
                if sets.is_empty() || sets.iter().any(|set| set.is_part_of(used)) {
                    return false;
                }
                let before = sets.len();
                sets.retain(|set| !used.is_part_of(set));
                if used.all > 0 {
                    sets.push(used.clone());
                }
                // All sets are of one size.
                self.set_bytes = self.set_bytes + sets.len() * used.bytes() - before * used.bytes();
                true
            }
        }
    }

    /// How much memory that takes, about.
    pub(super) fn bytes(&self) -> usize {
        self.places.len() * PLACE_BYTES + self.set_bytes
    }
}

// === impl Folded ===

impl Hasher for Folded {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "one half after the other")]
    fn write_u128(&mut self, number: u128) {
        self.0 ^= number as u64 ^ (number >> 64) as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(kinds: &[usize]) -> Used {
        let mut used = Used::none_of(100);
        for kind in kinds {
            used.add(*kind);
        }
        used
    }

    #[test]
    fn a_place_is_worth_another_visit_only_with_less() {
        let mut visited = Visited::default();
        assert!(visited.insert(1, &used(&[3, 70])));
        assert!(!visited.insert(1, &used(&[3, 70])));
        assert!(!visited.insert(1, &used(&[3, 4, 70])));
        assert!(!visited.insert(1, &used(&[3, 70, 70])));
        assert!(visited.insert(1, &used(&[4])));
        assert!(visited.insert(1, &used(&[70])));
        assert!(!visited.insert(1, &used(&[3, 70])));
        assert_eq!(visited.bytes(), PLACE_BYTES + 2 * used(&[]).bytes(), "the place, and two sets");
        assert!(visited.insert(1, &used(&[])));
        assert!(!visited.insert(1, &used(&[])));
        assert!(!visited.insert(1, &used(&[4])));
        assert_eq!(visited.bytes(), PLACE_BYTES);
        assert!(visited.insert(2, &used(&[4])));
    }

    #[test]
    fn fingerprints_tell_values_apart() {
        assert_eq!(fingerprint(&1), fingerprint(&1));
        assert_ne!(fingerprint(&1), fingerprint(&2));
        assert_ne!(fingerprint(&1) >> 64, fingerprint(&1) & u128::from(u64::MAX));
    }
}
