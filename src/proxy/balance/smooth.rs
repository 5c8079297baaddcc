//! Smooth weighted round robin, as nginx has it.
//!
//! nginx adds each endpoint's weight to its account, takes the one with the most, and subtracts the total from
//! it: 5, 1, 1 give a a b a c a a. After `step` picks an account holds `step * weight - total * picked`. Of
//! endpoints with the same weight it is the one picked least that has most, so they take turns among themselves,
//! and only one of each weight has to be looked at: the sequence is nginx's, the cost does not grow with the
//! number of endpoints, only with the number of different weights.

/// The sequence, at some point.
#[derive(Debug)]
pub(in crate::proxy) struct Smooth {
    groups: Vec<Group>,
    total: u64,
    step: u64,
    start: usize,
}

/// Endpoints of one weight.
#[derive(Debug)]
struct Group {
    weight: u64,
    members: Vec<usize>,
    /// The member whose turn it is.
    next: usize,
    /// How often each member before `next` was picked in this round of the whole sequence.
    rounds: u64,
}

// === impl Smooth ===

impl Smooth {
    /// `start` moves the turns among equals.
    pub(super) fn new(weights: impl Iterator<Item = u32>, start: usize) -> Self {
        let mut by_weight = std::collections::BTreeMap::<u64, Vec<usize>>::new();
        for (place, weight) in weights.enumerate() {
            by_weight.entry(weight.into()).or_default().push(place);
        }
        let total = by_weight.iter().map(|(weight, members)| weight * members.len() as u64).sum();
        let groups = by_weight.into_iter().map(|(weight, mut members)| {
            let turn = start % members.len();
            members.rotate_left(turn);
            Group { weight, members, next: 0, rounds: 0 }
        });
        Self { groups: groups.collect(), total, step: 0, start }
    }

    /// How the turns among equals were moved.
    pub(super) fn turn(&self) -> usize {
        self.start.wrapping_add(self.step as usize)
    }

    /// The next one. There must be one.
    pub(super) fn next(&mut self) -> usize {
        if self.step == self.total {
            // Every account is at nothing again.
            self.step = 0;
            self.groups.iter_mut().for_each(|group| group.rounds = 0);
        }
        self.step += 1;
        let (step, total) = (self.step, self.total);
        let account = |group: &Group| i128::from(step * group.weight) - i128::from(total * group.rounds);
        let key = |group: &Group| (account(group), std::cmp::Reverse(group.members[group.next]));
        let most = self.groups.iter_mut().max_by_key(|group| key(group)).expect("there is an endpoint");
        let place = most.members[most.next];
        most.next += 1;
        if most.next == most.members.len() {
            most.next = 0;
            most.rounds += 1;
        }
        place
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// nginx's own way (`ngx_http_upstream_get_peer`), to compare with.
    fn nginx(weights: &[u32], picks: usize) -> Vec<usize> {
        let total: i64 = weights.iter().map(|weight| i64::from(*weight)).sum();
        let mut accounts = vec![0_i64; weights.len()];
        let pick = |_| {
            let mut best = 0;
            for (place, weight) in weights.iter().enumerate() {
                accounts[place] += i64::from(*weight);
                if accounts[place] > accounts[best] {
                    best = place;
                }
            }
            accounts[best] -= total;
            best
        };
        (0..picks).map(pick).collect()
    }

    #[test]
    fn the_sequence_is_nginx_s() {
        let mut smooth = Smooth::new([5, 1, 1].into_iter(), 0);
        let names: String = (0..14).map(|_| ["a", "b", "c"][smooth.next()]).collect();
        assert_eq!(names, "aabacaaaabacaa");
        for weights in [
            &[1, 1, 1][..],
            &[1, 2, 3],
            &[3, 2, 3, 2, 1],
            &[7, 1, 7, 7, 3, 1, 1],
            &[100, 99],
            &[65_535, 1, 40],
        ] {
            let mut smooth = Smooth::new(weights.iter().copied(), 0);
            let picked: Vec<_> = (0..3_000).map(|_| smooth.next()).collect();
            assert_eq!(picked, nginx(weights, 3_000), "{weights:?}");
        }
    }

    #[test]
    fn workers_begin_at_different_equals() {
        let first = |start| Smooth::new([2, 2, 2].into_iter(), start).next();
        assert_eq!([first(0), first(1), first(2), first(3)], [0, 1, 2, 0]);
    }
}
