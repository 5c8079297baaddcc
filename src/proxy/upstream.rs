//! A service as one worker lives it.
//!
//! Job: the worker's own pools and turns for each upstream of the table, and the worker's [`View`] of a table:
//! what requests of this worker need beside it. [`LocalUpstream::choose`] is the only way to an endpoint: the
//! [`Picked`] that it returns knows how many requests are under way, and is told how they end.
//! Invariant: a view is built when the table changes, never per request; what did not change keeps its pools and
//! counters. Neighbours: `worker` refreshes the view, `forward` asks for an endpoint, `balance` picks.

use std::{cell::RefCell, collections::HashMap, rc::Rc, sync::Arc, time::Instant};

use super::{
    balance::{Balancer, Candidate, Dice, Load},
    error::ProxyError,
    figures::RouteFigures,
    pool::Pool,
    table::{RoutingTable, Upstream},
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
}

/// One worker's part of an endpoint.
#[derive(Debug)]
pub(super) struct LocalEndpoint {
    pub(super) pool: Rc<Pool>,
    pub(super) load: Load,
}

/// What a request wants of an endpoint.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wish<'a> {
    /// For `consistent_hash`: the key's hash.
    pub(super) hash: Option<u64>,
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
}

/// The endpoints that may take requests, and whose turn it is.
#[derive(Debug)]
struct Choice {
    plan: Arc<Upstream>,
    endpoints: Vec<Rc<LocalEndpoint>>,
    candidates: Vec<Candidate>,
    balancer: Balancer,
    dice: Dice,
}

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
        let endpoint = |target| match known.get(target) {
            Some(endpoint) => Rc::clone(endpoint),
            None => Rc::new(LocalEndpoint::new(Pool::new(Clone::clone(target)))),
        };
        let endpoints: Vec<_> = plan.endpoints.iter().map(|planned| endpoint(&planned.target)).collect();
        let choice = match previous {
            Some(previous) => {
                let choice = Rc::clone(&previous.choice);
                let turn = choice.borrow().balancer.turn();
                choice.borrow_mut().change(&plan, &endpoints, turn);
                choice
            }
            None => Rc::new(RefCell::new(Choice::new(&plan, &endpoints, worker))),
        };
        Self { plan, endpoints, choice }
    }

    /// The endpoint for a request.
    pub(super) fn choose(self: &Rc<Self>, wish: &Wish<'_>) -> Result<Picked, ProxyError> {
        let endpoint = self.choice.borrow_mut().choose(wish).ok_or(ProxyError::NoEndpoint)?;
        Ok(Picked { upstream: Rc::clone(self), endpoint, since: wish.now })
    }
}

// === impl LocalEndpoint ===

impl LocalEndpoint {
    pub(super) fn new(pool: Rc<Pool>) -> Self {
        Self { pool, load: Load::default() }
    }
}

// === impl Picked ===

impl Picked {
    /// The endpoint's connections.
    pub(super) fn pool(&self) -> &Rc<Pool> {
        &self.endpoint.pool
    }

    /// Stands for the endpoint, everywhere and always.
    pub(super) fn id(&self) -> u64 {
        self.endpoint.pool.target.id
    }

    /// The endpoint did what it should: it took the connection (TCP) or sent the head of an answer (HTTP).
    pub(super) fn succeeded(&self) {
        if self.upstream.plan.service.balance == Balance::PeakEwma {
            let now = Instant::now();
            self.endpoint.load.measure(now.saturating_duration_since(self.since), now);
        }
    }

    /// The endpoint failed: no connection, a reset, a malformed answer or none in time, or 502, 503, 504.
    pub(super) fn failed(&self) {
        if self.upstream.plan.service.balance == Balance::PeakEwma {
            // Failures are often quick: they must not make the endpoint look good.
            let now = Instant::now();
            let latency = now.saturating_duration_since(self.since);
            self.endpoint.load.measure(latency.max(self.upstream.plan.service.timeouts.connect), now);
        }
    }
}

impl Drop for Picked {
    fn drop(&mut self) {
        self.endpoint.load.remove_request();
        self.upstream.choice.borrow_mut().ended(&self.endpoint);
    }
}

// === impl Choice ===

impl Choice {
    fn new(plan: &Arc<Upstream>, endpoints: &[Rc<LocalEndpoint>], turn: usize) -> Self {
        let balancer = Balancer::new(&plan.service.balance, &[], 0);
        let (plan_before, dice) = (Arc::clone(plan), Dice::new(rand::random()));
        let mut choice =
            Self { plan: plan_before, endpoints: Vec::new(), candidates: Vec::new(), balancer, dice };
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
        self.refresh(turn);
    }

    /// Finds out who may take requests.
    fn refresh(&mut self, turn: usize) {
        self.candidates.clear();
        for (endpoint, planned) in self.endpoints.iter().zip(&self.plan.endpoints) {
            endpoint.load.set_candidate(Some(self.candidates.len()));
            self.candidates.push(Candidate { endpoint: Rc::clone(endpoint), weight: planned.weight });
        }
        self.balancer = Balancer::new(&self.plan.service.balance, &self.candidates, turn);
    }

    fn choose(&mut self, wish: &Wish<'_>) -> Option<Rc<LocalEndpoint>> {
        let admit = |endpoint: &LocalEndpoint| !wish.tried.contains(&endpoint.pool.target.id);
        let endpoint = match (&self.plan.ring, wish.hash) {
            (Some(ring), Some(hash)) => {
                let usable = |place: usize| self.endpoints[place].load.candidate().is_some();
                let place = ring.find(hash, usable, |place| admit(&self.endpoints[place]))?;
                &self.endpoints[place]
            }
            _ => {
                let admit = |candidate: &Candidate| admit(&candidate.endpoint);
                let place = self.balancer.pick(&self.candidates, &mut self.dice, wish.now, admit)?;
                &self.candidates[place].endpoint
            }
        };
        endpoint.load.add_request();
        if let Some(place) = endpoint.load.candidate() {
            self.balancer.began(place, &self.candidates);
        }
        Some(Rc::clone(endpoint))
    }

    fn ended(&mut self, endpoint: &LocalEndpoint) {
        if let Some(place) = endpoint.load.candidate() {
            self.balancer.ended(place, &self.candidates);
        }
    }
}
