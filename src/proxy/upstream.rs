//! A service as one worker lives it.
//!
//! Job: the worker's own pools and turns for each upstream of the table, and the worker's [`View`] of a table:
//! what requests of this worker need beside it. [`LocalUpstream::choose`] is the only way to an endpoint: the
//! [`Picked`] that it returns knows how many requests are under way, and is told how they end.
//! Invariant: a view is built when the table changes, never per request; what did not change keeps its pools and
//! counters. Neighbours: `worker` refreshes the view, `forward` asks for an endpoint, `balance` picks.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    balance::{Balancer, Candidate, Dice, Load},
    breaker::Entry,
    endpoint::{EndpointState, Standing, moment, ms},
    error::ProxyError,
    figures::RouteFigures,
    pool::Pool,
    retry::Budget,
    table::{PlannedEndpoint, RoutingTable, Upstream},
};
use crate::config::document::Balance;

/// A table, and this worker's part in it. Requests keep theirs to the end.
#[derive(Debug)]
pub(super) struct View {
    pub(super) table: Arc<RoutingTable>,
    /// By what the table counts requests by.
    pub(super) figures: Vec<Rc<RouteFigures>>,
    /// By the table's upstreams.
    pub(super) upstreams: Vec<Rc<LocalUpstream>>,
}

/// One worker's part of a service.
#[derive(Debug)]
pub(super) struct LocalUpstream {
    pub(super) plan: Arc<Upstream>,
    /// By the plan's endpoints.
    pub(super) endpoints: Vec<Rc<LocalEndpoint>>,
    /// Goes on when a reload replaces the rest.
    choice: Rc<RefCell<Choice>>,
    pub(super) budget: Rc<Budget>,
}

/// One worker's part of an endpoint.
#[derive(Debug)]
pub(super) struct LocalEndpoint {
    pub(super) pool: Rc<Pool>,
    pub(super) load: Load,
    state: Arc<EndpointState>,
    /// Whether it is more to a request than a candidate: half-open, or on its way to its full share.
    special: Cell<bool>,
    was_up: Cell<bool>,
    ramp: Cell<Option<Ramp>>,
}

/// On its way to its full share.
#[derive(Debug, Clone, Copy)]
struct Ramp {
    since: Instant,
    /// How much of the next turn it has earned.
    earned: f64,
}

/// What a request wants of an endpoint.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wish<'a> {
    /// For `consistent_hash`: the key's hash.
    pub(super) hash: Option<u64>,
    /// The endpoint that it had before, as [`Picked::pin`] called it.
    pub(super) pinned: Option<u64>,
    /// The ids of endpoints that are not wanted.
    pub(super) tried: &'a [u64],
    pub(super) now: Instant,
}

/// An endpoint with a request on its way to it. Whoever has it says how it went: [`Picked::succeeded`] or
/// [`Picked::failed`]; dropped without either, as when the client leaves, it speaks neither for nor against the
/// endpoint. The request counts as under way until it is dropped.
#[derive(Debug)]
pub(super) struct Picked {
    upstream: Rc<LocalUpstream>,
    endpoint: Rc<LocalEndpoint>,
    since: Instant,
    /// The one request that a half-open breaker let through, until its verdict.
    probe: Cell<bool>,
}

/// The endpoints that may take requests, and whose turn it is.
#[derive(Debug)]
struct Choice {
    plan: Arc<Upstream>,
    endpoints: Vec<Rc<LocalEndpoint>>,
    candidates: Vec<Candidate>,
    balancer: Balancer,
    dice: Dice,
    /// What of the service's news the candidates know.
    version: u64,
    /// When time alone changes who is a candidate.
    until: Option<Instant>,
    /// Breakers keep requests from some.
    broken: bool,
    ramping: bool,
}

/// What a new or recovered endpoint gets at least of its share (Envoy's default).
const RAMP_MIN: f64 = 0.1;

// === impl View ===

impl View {
    /// The view of `table`, keeping what it shares with the view before. `worker` numbers the workers.
    pub(super) fn new(table: Arc<RoutingTable>, previous: Option<&View>, worker: usize) -> Self {
        let figures = match previous {
            Some(view) if Arc::ptr_eq(&view.table.routing, &table.routing) => view.figures.clone(),
            _ => Self::figures_of(&table, previous),
        };
        let previous = previous.map_or(&[][..], |view| &view.upstreams);
        // Nearly always an upstream keeps its place; otherwise it is looked for by name.
        let mut by_name: Option<HashMap<&str, &Rc<LocalUpstream>>> = None;
        let mut upstreams = Vec::with_capacity(table.upstreams.len());
        for (place, plan) in table.upstreams.iter().enumerate() {
            let before = previous.get(place).filter(|before| before.plan.name == plan.name).or_else(|| {
                by_name
                    .get_or_insert_with(|| {
                        previous.iter().map(|upstream| (&*upstream.plan.name, upstream)).collect()
                    })
                    .get(&*plan.name)
                    .copied()
            });
            upstreams.push(match before {
                Some(before) if Arc::ptr_eq(&before.plan, plan) => Rc::clone(before),
                before => Rc::new(LocalUpstream::new(Arc::clone(plan), before, worker)),
            });
        }
        Self { figures, upstreams, table }
    }

    fn figures_of(table: &RoutingTable, previous: Option<&View>) -> Vec<Rc<RouteFigures>> {
        let known: HashMap<_, _> = previous
            .map_or(&[][..], |view| &view.figures)
            .iter()
            .map(|figures| (figures.names(), figures))
            .collect();
        let figures = |(route, service): &(_, _)| match known.get(&(route, service)) {
            Some(figures) => Rc::clone(figures),
            None => Rc::new(RouteFigures::new(route, service)),
        };
        table.routing.counted.iter().map(figures).collect()
    }
}

// === impl LocalUpstream ===

impl LocalUpstream {
    fn new(plan: Arc<Upstream>, previous: Option<&Rc<LocalUpstream>>, worker: usize) -> Self {
        let known: HashMap<_, _> = previous
            .map_or(&[][..], |upstream| &upstream.endpoints)
            .iter()
            .map(|endpoint| (&endpoint.pool.target, endpoint))
            .collect();
        let endpoint = |planned: &PlannedEndpoint| match known.get(&planned.target) {
            Some(endpoint) if Arc::ptr_eq(&endpoint.state, &planned.state) => Rc::clone(endpoint),
            _ => Rc::new(LocalEndpoint::new(Pool::new(planned.target.clone()), Arc::clone(&planned.state))),
        };
        let endpoints: Vec<_> = plan.endpoints.iter().map(endpoint).collect();
        let choice = match previous {
            Some(previous) => {
                let choice = Rc::clone(&previous.choice);
                let turn = choice.borrow().balancer.turn();
                choice.borrow_mut().change(&plan, &endpoints, turn);
                choice
            }
            None => Rc::new(RefCell::new(Choice::new(&plan, &endpoints, worker))),
        };
        let budget = previous.map_or_else(Rc::default, |upstream| Rc::clone(&upstream.budget));
        Self { plan, endpoints, choice, budget }
    }

    /// The endpoint for a request.
    pub(super) fn choose(self: &Rc<Self>, wish: &Wish<'_>) -> Result<Picked, ProxyError> {
        let (endpoint, probe) = self.choice.borrow_mut().choose(wish)?;
        Ok(Picked { upstream: Rc::clone(self), endpoint, since: wish.now, probe: Cell::new(probe) })
    }
}

// === impl LocalEndpoint ===

impl LocalEndpoint {
    pub(super) fn new(pool: Rc<Pool>, state: Arc<EndpointState>) -> Self {
        Self {
            pool,
            load: Load::default(),
            state,
            special: Cell::new(false),
            was_up: Cell::new(false),
            ramp: Cell::new(None),
        }
    }

    /// Whether a turn that came is taken: so many of them as the endpoint's present share is of its full one.
    fn takes_turn(&self, now: Instant, slow_start: Duration) -> bool {
        let Some(ramp) = self.ramp.get() else { return true };
        let share = now.saturating_duration_since(ramp.since).as_secs_f64() / slow_start.as_secs_f64();
        let earned = ramp.earned + share.max(RAMP_MIN);
        let taken = earned >= 1.0;
        let earned = if taken { earned - 1.0 } else { earned };
        self.ramp.set((share < 1.0).then_some(Ramp { earned, ..ramp }));
        taken
    }
}

// === impl Picked ===

impl Picked {
    /// The endpoint's connections.
    pub(super) fn pool(&self) -> &Rc<Pool> {
        &self.endpoint.pool
    }

    /// Stands for the endpoint among those of its service.
    pub(super) fn id(&self) -> u64 {
        self.endpoint.pool.target.id
    }

    /// Stands for the endpoint of this service, on every node and after every start.
    pub(super) fn pin(&self) -> u64 {
        self.upstream.plan.pin(self.id())
    }

    /// The endpoint did what it should: it took the connection (TCP) or sent the head of an answer (HTTP).
    pub(super) fn succeeded(&self) {
        let service = &*self.upstream.plan.service;
        self.endpoint.state.succeeded(service, self.probe.take());
        if service.balance == Balance::PeakEwma {
            let now = Instant::now();
            self.endpoint.load.measure(now.saturating_duration_since(self.since), now);
        }
    }

    /// The endpoint failed: no connection, a reset, a malformed answer or none in time, or 502, 503, 504.
    pub(super) fn failed(&self) {
        let plan = &self.upstream.plan;
        let (service, state) = (&*plan.service, &self.endpoint.state);
        let now = Instant::now();
        if state.failed(service, self.probe.take(), ms(now))
            && let Some(outlier) = &service.outlier
        {
            let all = plan.endpoints.iter().map(|endpoint| &endpoint.state);
            if let Some(time) = state.eject(outlier, all, ms(now)) {
                let endpoint = &*self.endpoint.pool.target.address;
                tracing::warn!(service = %plan.name, endpoint, ?time, "an endpoint is ejected");
            }
        }
        if service.balance == Balance::PeakEwma {
            // Failures are often quick: they must not make the endpoint look good.
            let latency = now.saturating_duration_since(self.since);
            self.endpoint.load.measure(latency.max(service.timeouts.connect), now);
        }
    }
}

impl Drop for Picked {
    fn drop(&mut self) {
        if self.probe.get() {
            self.endpoint.state.breaker.give_back();
        }
        self.endpoint.load.remove_request();
        self.upstream.choice.borrow_mut().ended(&self.endpoint);
    }
}

// === impl Choice ===

impl Choice {
    fn new(plan: &Arc<Upstream>, endpoints: &[Rc<LocalEndpoint>], turn: usize) -> Self {
        let mut choice = Self {
            plan: Arc::clone(plan),
            endpoints: Vec::new(),
            candidates: Vec::new(),
            balancer: Balancer::new(&plan.service.balance, &[], 0),
            dice: Dice::new(rand::random()),
            version: 0,
            until: None,
            broken: false,
            ramping: false,
        };
        // Whoever is there from the beginning has its full share at once.
        endpoints.iter().for_each(|endpoint| endpoint.was_up.set(true));
        choice.change(plan, endpoints, turn);
        choice
    }

    /// Goes on with another plan.
    fn change(&mut self, plan: &Arc<Upstream>, endpoints: &[Rc<LocalEndpoint>], turn: usize) {
        for endpoint in &self.endpoints {
            endpoint.load.set_candidate(None);
        }
        self.plan = Arc::clone(plan);
        self.endpoints = endpoints.to_vec();
        self.refresh(Instant::now(), turn);
    }

    /// Finds out who may have requests.
    fn refresh(&mut self, now: Instant, turn: usize) {
        let settings = &*self.plan.service;
        // Before the rest is read: what comes later is seen at the next request.
        self.version = self.plan.state.version();
        self.candidates.clear();
        (self.broken, self.ramping) = (false, false);
        let mut until: Option<u64> = None;
        let mut wait = |time: u64| until = Some(until.map_or(time, |until| until.min(time)));
        for (endpoint, planned) in self.endpoints.iter().zip(&self.plan.endpoints) {
            let standing = endpoint.state.standing(settings, ms(now));
            match standing {
                Standing::Up | Standing::Unhealthy => {}
                Standing::HalfOpen => self.broken = true,
                Standing::Ejected(time) => wait(time),
                Standing::Open(time) => {
                    self.broken = true;
                    wait(time);
                }
            }
            let is_up = standing == Standing::Up;
            if is_up && !endpoint.was_up.get() && settings.slow_start.is_some() {
                endpoint.ramp.set(Some(Ramp { since: now, earned: 0.0 }));
            } else if !is_up || settings.slow_start.is_none() {
                endpoint.ramp.set(None);
            }
            endpoint.was_up.set(is_up);
            self.ramping |= endpoint.ramp.get().is_some();
            endpoint.special.set(!is_up || endpoint.ramp.get().is_some());
            if is_up || standing == Standing::HalfOpen {
                endpoint.load.set_candidate(Some(self.candidates.len()));
                self.candidates.push(Candidate { endpoint: Rc::clone(endpoint), weight: planned.weight });
            } else {
                endpoint.load.set_candidate(None);
            }
        }
        self.until = until.map(moment);
        self.balancer = Balancer::new(&settings.balance, &self.candidates, turn);
    }

    /// An endpoint, and whether the request is the one that its half-open breaker lets through.
    fn choose(&mut self, wish: &Wish<'_>) -> Result<(Rc<LocalEndpoint>, bool), ProxyError> {
        if self.plan.state.version() != self.version || self.until.is_some_and(|until| wish.now >= until) {
            self.refresh(wish.now, self.balancer.turn());
        }
        let mut probe = false;
        let mut picked = self.pick(wish, self.ramping, &mut probe);
        if picked.is_none() && self.ramping {
            // Nobody has earned a turn, and somebody must have it.
            picked = self.pick(wish, false, &mut probe);
        }
        let endpoint = match picked {
            Some(endpoint) => endpoint,
            None if self.endpoints.is_empty() => return Err(ProxyError::NoEndpoint),
            None if self.broken => return Err(ProxyError::BreakerOpen),
            None => return Err(ProxyError::NoHealthyEndpoint),
        };
        endpoint.load.add_request();
        if let Some(place) = endpoint.load.candidate() {
            self.balancer.began(place, &self.candidates);
        }
        Ok((endpoint, probe))
    }

    fn pick(&mut self, wish: &Wish<'_>, ramping: bool, probe: &mut bool) -> Option<Rc<LocalEndpoint>> {
        let slow_start = self.plan.service.slow_start.filter(|_| ramping);
        let mut admit = |endpoint: &LocalEndpoint, slow_start: Option<Duration>| {
            if wish.tried.contains(&endpoint.pool.target.id) {
                return false;
            }
            if !endpoint.special.get() {
                return true;
            }
            if slow_start.is_some_and(|slow_start| !endpoint.takes_turn(wish.now, slow_start)) {
                return false;
            }
            if self.plan.service.circuit_breaker.is_none() {
                return true;
            }
            let entry = endpoint.state.breaker.enter(ms(wish.now));
            *probe = entry == Entry::Probe;
            entry != Entry::Refused
        };
        let usable = |place: usize| self.endpoints[place].load.candidate().is_some();
        if let Some(place) = wish.pinned.and_then(|pin| self.plan.place_of(pin))
            && usable(place)
            && admit(&self.endpoints[place], None)
        {
            return Some(Rc::clone(&self.endpoints[place]));
        }
        let endpoint = match (&self.plan.ring, wish.hash) {
            (Some(ring), Some(hash)) => {
                let place = ring.find(hash, usable, |place| admit(&self.endpoints[place], None))?;
                &self.endpoints[place]
            }
            _ => {
                let admit = |candidate: &Candidate| admit(&candidate.endpoint, slow_start);
                let again = !wish.tried.is_empty();
                let place = self.balancer.pick(&self.candidates, &mut self.dice, wish.now, again, admit)?;
                &self.candidates[place].endpoint
            }
        };
        Some(Rc::clone(endpoint))
    }

    fn ended(&mut self, endpoint: &LocalEndpoint) {
        if let Some(place) = endpoint.load.candidate() {
            self.balancer.ended(place, &self.candidates);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;

    #[test]
    #[ignore = "prints a figure, of an optimised build"]
    fn prints_what_a_choice_costs() {
        for balance in [
            "round_robin",
            "weighted_round_robin",
            "least_connections",
            "peak_ewma",
            "random",
            "consistent_hash, hash_on: path",
        ] {
            for endpoints in [3, 100] {
                let mut text = format!("services: {{ s: {{ balance: {balance}, endpoints: [");
                for number in 1..=endpoints {
                    write!(text, "{{ address: '10.0.0.{number}:80', weight: {} }}, ", number % 3 + 1)
                        .unwrap();
                }
                let document = crate::config::check::document(&(text + "] } }")).unwrap();
                let table =
                    RoutingTable::compile(1, &document, &[].into(), &RoutingTable::default()).unwrap();
                let view = View::new(Arc::new(table), None, 0);
                let now = Instant::now();
                let mut hash = 0_u64;
                crate::cost::print(&format!("{balance} among {endpoints}"), || {
                    hash = hash.wrapping_add(0x9e37_79b9_7f4a_7c15);
                    let wish = Wish { hash: Some(hash), pinned: None, tried: &[], now };
                    view.upstreams[0].choose(&wish).unwrap().succeeded();
                });
            }
        }
    }
}
