//! Which endpoint is next.
//!
//! Job: one [`Balancer`] a service and worker picks among the endpoints that may take requests now. Each worker
//! counts for itself, so sequences and requests under way are exact per worker; [`Ring`] depends on nothing but
//! the endpoints' addresses and weights, so it is the same on all workers and nodes. Invariants: a pick costs the
//! same however many endpoints there are (`least_connections`: their logarithm; `weighted_round_robin`: how many
//! different weights there are); a balancer is made anew when the list changes, never per request.
//! Neighbours: `upstream` keeps the list, asks, and says when requests begin and end.

mod least;
mod ring;
mod smooth;

use std::{
    cell::Cell,
    net::IpAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use http::HeaderMap;

use self::{least::Least, smooth::Smooth};
use super::{cookie, upstream::LocalEndpoint};
use crate::config::document::{Balance, HashOn};

pub(super) use self::ring::{Ring, hash_of};

/// How many picks may be passed over before the whole list is gone through.
const PICKS_MAX: usize = 16;
/// After so long, a latency counts for a third (Finagle's default for its peak EWMA).
const LATENCY_DECAY: Duration = Duration::from_secs(10);
/// What an endpoint costs that has requests under way and has not answered any yet.
const UNKNOWN_NS: f64 = 1e15;

/// An endpoint that may take requests now.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) endpoint: Rc<LocalEndpoint>,
    pub(super) weight: u32,
}

/// What balancers know of an endpoint.
#[derive(Debug)]
pub(super) struct Load {
    in_flight: Cell<u32>,
    /// Its place among the candidates; none while it may not take requests.
    candidate: Cell<Option<usize>>,
    /// When it would have its next turn, in `least_connections`' own time.
    turn: Cell<u64>,
    latency_ns: Cell<f64>,
    measured: Cell<Instant>,
}

/// A service's way of choosing, in its present state.
#[derive(Debug)]
pub(super) enum Balancer {
    /// `round_robin`, and `consistent_hash` where a request has no key.
    Turns { next: usize },
    /// `weighted_round_robin`
    Smooth(Smooth),
    /// `least_connections`
    Least(Least),
    /// `peak_ewma`
    Better,
    /// `random`
    Random(Alias),
}

/// Random numbers by weight in constant time: Vose, "A linear algorithm for generating random numbers with a
/// given distribution", 1991.
#[derive(Debug)]
pub(super) struct Alias(Vec<(u32, u32)>);

/// Random numbers that need not be secret.
#[derive(Debug)]
pub(super) struct Dice(u64);

/// The hash of what `consistent_hash` looks at; none if the request does not have it.
pub(super) fn hash_key(
    hash_on: &HashOn,
    headers: &HeaderMap,
    path: &str,
    client: impl FnOnce() -> IpAddr,
) -> Option<u64> {
    match hash_on {
        HashOn::Header(name) => headers.get(name).map(|value| hash_of(value.as_bytes())),
        HashOn::Cookie(name) => cookie::value(headers, name).map(hash_of),
        HashOn::ClientIp => Some(hash_client(client())),
        HashOn::Path => Some(hash_of(path.as_bytes())),
    }
}

/// All that is known of a client whose bytes are not looked at.
pub(super) fn hash_client(client: IpAddr) -> u64 {
    match client {
        IpAddr::V4(address) => hash_of(&address.octets()),
        IpAddr::V6(address) => hash_of(&address.octets()),
    }
}

// === impl Load ===

impl Default for Load {
    fn default() -> Self {
        Self {
            in_flight: Cell::new(0),
            candidate: Cell::new(None),
            turn: Cell::new(0),
            latency_ns: Cell::new(0.0),
            measured: Cell::new(Instant::now()),
        }
    }
}

impl Load {
    /// Where it stands among the candidates.
    pub(super) fn candidate(&self) -> Option<usize> {
        self.candidate.get()
    }

    /// Says where it stands among the candidates.
    pub(super) fn set_candidate(&self, place: Option<usize>) {
        self.candidate.set(place);
    }

    pub(super) fn add_request(&self) {
        self.in_flight.set(self.in_flight.get() + 1);
    }

    pub(super) fn remove_request(&self) {
        self.in_flight.set(self.in_flight.get() - 1);
    }

    /// Takes a latency into account: a higher one at once, a lower one by and by.
    pub(super) fn measure(&self, latency: Duration, now: Instant) {
        let latency = latency.as_nanos() as f64;
        let kept = self.decay(now);
        let before = self.latency_ns.get();
        let mean = if latency > before { latency } else { before * kept + latency * (1.0 - kept) };
        self.latency_ns.set(mean);
        self.measured.set(now);
    }

    /// The peak-sensitive mean of latencies times the requests that would be under way. What was measured long
    /// ago counts little, so that an endpoint that was slow once is tried again.
    fn cost(&self, now: Instant) -> f64 {
        let requests = f64::from(self.in_flight.get());
        let latency = self.latency_ns.get();
        if latency == 0.0 && requests > 0.0 {
            return UNKNOWN_NS * requests;
        }
        latency * self.decay(now) * (requests + 1.0)
    }

    fn decay(&self, now: Instant) -> f64 {
        let elapsed = now.saturating_duration_since(self.measured.get());
        (-elapsed.as_secs_f64() / LATENCY_DECAY.as_secs_f64()).exp()
    }
}

// === impl Balancer ===

impl Balancer {
    /// For these candidates. `start` moves the first turn, so that few requests to many workers do not all meet
    /// the first endpoint.
    pub(super) fn new(balance: &Balance, candidates: &[Candidate], start: usize) -> Self {
        match balance {
            Balance::RoundRobin | Balance::ConsistentHash(_) => {
                Self::Turns { next: start.checked_rem(candidates.len()).unwrap_or(0) }
            }
            Balance::WeightedRoundRobin => {
                Self::Smooth(Smooth::new(candidates.iter().map(|candidate| candidate.weight), start))
            }
            Balance::LeastConnections => Self::Least(Least::new(candidates)),
            Balance::PeakEwma => Self::Better,
            Balance::Random => Self::Random(Alias::new(candidates.iter().map(|candidate| candidate.weight))),
        }
    }

    /// Where the turn stands, for a list that replaces the one before.
    pub(super) fn turn(&self) -> usize {
        match self {
            Self::Turns { next } => *next,
            Self::Smooth(smooth) => smooth.turn(),
            Self::Least(_) | Self::Better | Self::Random(_) => 0,
        }
    }

    /// The next candidate that `admit` takes. Whoever is refused has had the turn. `again`: it is not the request's
    /// first.
    pub(super) fn pick(
        &mut self,
        candidates: &[Candidate],
        dice: &mut Dice,
        now: Instant,
        again: bool,
        mut admit: impl FnMut(&Candidate) -> bool,
    ) -> Option<usize> {
        if let Self::Least(least) = self {
            return least.pick(candidates, |place| admit(&candidates[place]));
        }
        // A second attempt that took the next turn would make every request of two endpoints meet the same one
        // first.
        let picks = if again && matches!(self, Self::Turns { .. }) { 0 } else { PICKS_MAX };
        for _ in 0..picks {
            let place = self.next(candidates, dice, now)?;
            if admit(&candidates[place]) {
                return Some(place);
            }
        }
        // Everybody is asked once.
        let start = dice.below(candidates.len());
        (start..candidates.len()).chain(0..start).find(|place| admit(&candidates[*place]))
    }

    fn next(&mut self, candidates: &[Candidate], dice: &mut Dice, now: Instant) -> Option<usize> {
        let count = candidates.len();
        if count == 0 {
            return None;
        }
        Some(match self {
            Self::Turns { next } => {
                let turn = *next;
                *next = if turn + 1 == count { 0 } else { turn + 1 };
                turn
            }
            Self::Smooth(smooth) => smooth.next(),
            Self::Random(alias) => alias.roll(dice),
            Self::Better if count == 1 => 0,
            Self::Better => {
                let one = dice.below(count);
                let other = dice.below(count - 1);
                let other = if other >= one { other + 1 } else { other };
                let cost = |place: usize| {
                    let candidate = &candidates[place];
                    candidate.endpoint.load.cost(now) / f64::from(candidate.weight)
                };
                if cost(other) < cost(one) { other } else { one }
            }
            Self::Least(_) => return None,
        })
    }

    /// A request to a candidate began.
    pub(super) fn began(&mut self, place: usize, candidates: &[Candidate]) {
        if let Self::Least(least) = self {
            least.went_up(place, candidates);
        }
    }

    /// A request to a candidate ended.
    pub(super) fn ended(&mut self, place: usize, candidates: &[Candidate]) {
        if let Self::Least(least) = self {
            least.went_down(place, candidates);
        }
    }
}

// === impl Alias ===

impl Alias {
    fn new(weights: impl Iterator<Item = u32>) -> Self {
        let weights: Vec<u64> = weights.map(u64::from).collect();
        let total: u64 = weights.iter().sum();
        let full = f64::from(u32::MAX);
        // Each share in units of the mean one.
        let mut shares: Vec<f64> =
            weights.iter().map(|weight| *weight as f64 * weights.len() as f64 / total as f64).collect();
        let (mut small, mut large): (Vec<usize>, Vec<usize>) =
            (0..shares.len()).partition(|place| shares[*place] < 1.0);
        let mut slots: Vec<(u32, u32)> = (0..shares.len()).map(|place| (u32::MAX, place as u32)).collect();
        while let (Some(poor), Some(rich)) = (small.pop(), large.pop()) {
            slots[poor] = ((shares[poor] * full) as u32, rich as u32);
            shares[rich] -= 1.0 - shares[poor];
            if shares[rich] < 1.0 { small.push(rich) } else { large.push(rich) }
        }
        Self(slots)
    }

    fn roll(&self, dice: &mut Dice) -> usize {
        let place = dice.below(self.0.len());
        let (own, other) = self.0[place];
        if (dice.next() as u32) <= own { place } else { other as usize }
    }
}

// === impl Dice ===

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(ring::GOLDEN);
        ring::mix(self.0)
    }

    /// From 0 to one less than `bound`, without a division: Lemire, "Fast random integer generation in an
    /// interval", 2019; the bias of one in 2^32 does not matter here.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        (((self.next() >> 32) * bound as u64) >> 32) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::document::Endpoint,
        proxy::{endpoint::EndpointState, pool::Pool, table::Target},
    };
    use std::sync::Arc;

    fn target(place: usize) -> Target {
        Target::new(&Endpoint { address: format!("10.0.0.1:{}", place + 1), weight: 1 }).unwrap()
    }

    fn candidates(weights: &[u32]) -> Vec<Candidate> {
        let candidate = |(place, weight): (usize, &u32)| {
            let endpoint = {
                let state = Arc::new(EndpointState::new(Arc::default()));
                Rc::new(LocalEndpoint::new(Pool::new(target(place)), state))
            };
            endpoint.load.set_candidate(Some(place));
            Candidate { endpoint, weight: *weight }
        };
        weights.iter().enumerate().map(candidate).collect()
    }

    struct Bench {
        candidates: Vec<Candidate>,
        balancer: Balancer,
        dice: Dice,
        now: Instant,
    }

    impl Bench {
        fn new(balance: &Balance, weights: &[u32]) -> Self {
            let candidates = candidates(weights);
            let balancer = Balancer::new(balance, &candidates, 0);
            Self { candidates, balancer, dice: Dice::new(7), now: Instant::now() }
        }

        fn pick(&mut self, admit: impl Fn(&Candidate) -> bool) -> Option<usize> {
            self.balancer.pick(&self.candidates, &mut self.dice, self.now, false, admit)
        }

        fn begin(&mut self) -> usize {
            let place = self.pick(|_| true).unwrap();
            self.candidates[place].endpoint.load.add_request();
            self.balancer.began(place, &self.candidates);
            place
        }

        fn end(&mut self, place: usize) {
            self.candidates[place].endpoint.load.remove_request();
            self.balancer.ended(place, &self.candidates);
        }

        fn counts(&mut self, picks: usize) -> Vec<usize> {
            let mut counts = vec![0; self.candidates.len()];
            for _ in 0..picks {
                counts[self.pick(|_| true).unwrap()] += 1;
            }
            counts
        }
    }

    #[test]
    fn endpoints_take_turns_and_one_can_be_passed_over() {
        let mut bench = Bench::new(&Balance::RoundRobin, &[1, 1, 1]);
        let picked: Vec<_> = (0..4).map(|_| bench.pick(|_| true).unwrap()).collect();
        assert_eq!(picked, [0, 1, 2, 0]);
        let one = Rc::clone(&bench.candidates[1].endpoint);
        assert_eq!(bench.pick(|candidate| !Rc::ptr_eq(&candidate.endpoint, &one)), Some(2));
        assert_eq!(bench.pick(|_| false), None);
        assert_eq!(Bench::new(&Balance::RoundRobin, &[]).pick(|_| true), None);
    }

    #[test]
    fn random_follows_the_weights() {
        let mut bench = Bench::new(&Balance::Random, &[5, 1, 0x4000, 2]);
        let counts = bench.counts(200_000);
        assert!(counts[2] > 199_700, "{counts:?}");
        let counts = Bench::new(&Balance::Random, &[5, 1, 1, 3]).counts(100_000);
        for (count, expected) in counts.iter().zip([50_000.0, 10_000.0, 10_000.0, 30_000.0]) {
            assert!((*count as f64 / expected - 1.0).abs() < 0.05, "{counts:?}");
        }
    }

    #[test]
    fn the_fewest_requests_for_their_weight_win_and_ties_take_turns() {
        let mut bench = Bench::new(&Balance::LeastConnections, &[1, 1, 1]);
        assert_eq!([(); 4].map(|()| bench.begin()), [0, 1, 2, 0]);
        bench.end(1);
        assert_eq!(bench.begin(), 1);
        assert_eq!(bench.begin(), 2, "1 and 2 have one each, and 2's turn was longer ago");
        let mut bench = Bench::new(&Balance::LeastConnections, &[1, 1, 1]);
        let one_at_a_time = [(); 6].map(|()| {
            let place = bench.begin();
            bench.end(place);
            place
        });
        assert_eq!(one_at_a_time, [0, 1, 2, 0, 1, 2]);
        let mut bench = Bench::new(&Balance::LeastConnections, &[3, 1]);
        let mut begun = [(); 8].map(|()| bench.begin());
        begun.sort_unstable();
        assert_eq!(begun, [0, 0, 0, 0, 0, 0, 1, 1]);
    }

    #[test]
    fn the_fewest_are_found_behind_those_that_are_refused() {
        let mut bench = Bench::new(&Balance::LeastConnections, &[1; 100]);
        for _ in 0..100 {
            bench.begin();
        }
        bench.end(70);
        bench.end(30);
        let refused = Rc::clone(&bench.candidates[70].endpoint);
        assert_eq!(bench.pick(|candidate| !Rc::ptr_eq(&candidate.endpoint, &refused)), Some(30));
        assert_eq!(bench.pick(|_| false), None);
    }

    #[test]
    fn a_slow_endpoint_is_avoided_and_tried_again_later() {
        let mut bench = Bench::new(&Balance::PeakEwma, &[1, 1]);
        let now = bench.now;
        bench.candidates[0].endpoint.load.measure(Duration::from_millis(100), now);
        bench.candidates[1].endpoint.load.measure(Duration::from_millis(1), now);
        assert_eq!(bench.counts(100), [0, 100]);
        // 50 under way at the fast one do not make the slow one better, 150 do.
        for _ in 0..50 {
            bench.begin();
        }
        assert_eq!(bench.counts(10), [0, 10]);
        let begun: Vec<_> = (0..100).map(|_| bench.begin()).collect();
        assert_eq!(begun.iter().filter(|place| **place == 0).count(), 1);
        // A low latency pulls the mean down by and by, a high one up at once.
        let load = Load::default();
        load.measure(Duration::from_millis(100), now);
        load.measure(Duration::from_millis(1), now + LATENCY_DECAY);
        let mean = load.latency_ns.get();
        assert!((30e6..40e6).contains(&mean), "{mean}");
        load.measure(Duration::from_millis(50), now + LATENCY_DECAY);
        assert_eq!(load.latency_ns.get(), 50e6);
    }

    #[test]
    fn an_endpoint_that_never_answered_gets_one_request_at_a_time() {
        let mut bench = Bench::new(&Balance::PeakEwma, &[1, 1]);
        let now = bench.now;
        bench.candidates[0].endpoint.load.measure(Duration::from_millis(5), now);
        assert_eq!(bench.begin(), 1);
        assert_eq!(bench.counts(50), [50, 0]);
    }
}
