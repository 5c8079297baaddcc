//! A service as one worker lives it.
//!
//! Job: the worker's own pools and turn for each upstream of the table, and the worker's [`View`] of a table:
//! what requests of this worker need beside it. Invariant: a view is built when the table changes, never per
//! request; what did not change keeps its pools and counters. Neighbours: `worker` refreshes the view, `forward`
//! asks for an endpoint.

use std::{collections::HashMap, rc::Rc, sync::Arc};

use super::{
    balance::RoundRobin,
    figures::RouteFigures,
    pool::Pool,
    table::{RoutingTable, Upstream},
};

/// A table, and this worker's part in it. Requests keep theirs to the end.
#[derive(Debug)]
pub(super) struct View {
    pub(super) table: Arc<RoutingTable>,
    /// By the table's routes.
    pub(super) figures: Vec<Rc<RouteFigures>>,
    /// By the table's upstreams.
    pub(super) upstreams: Vec<Rc<LocalUpstream>>,
}

/// One worker's pools for a service.
#[derive(Debug)]
pub(super) struct LocalUpstream {
    pub(super) plan: Arc<Upstream>,
    pub(super) pools: Vec<Rc<Pool>>,
    turn: RoundRobin,
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
        let figures = |route: &super::table::CompiledRoute| match known.get(&(&route.name, &route.service)) {
            Some(figures) => Rc::clone(figures),
            None => Rc::new(RouteFigures::new(&route.name, &route.service)),
        };
        table.routing.routes.iter().map(figures).collect()
    }
}

// === impl LocalUpstream ===

impl LocalUpstream {
    fn new(plan: Arc<Upstream>, previous: Option<&Rc<LocalUpstream>>, worker: usize) -> Self {
        let known: HashMap<_, _> = previous
            .map_or(&[][..], |upstream| &upstream.pools)
            .iter()
            .map(|pool| (&pool.target, pool))
            .collect();
        let pool = |target| {
            known.get(target).map_or_else(|| Pool::new(Clone::clone(target)), |&pool| Rc::clone(pool))
        };
        let pools = plan.targets.iter().map(pool).collect();
        let turn = RoundRobin::starting_at(previous.map_or(worker, |upstream| upstream.turn.position()));
        Self { plan, pools, turn }
    }

    /// The place of the endpoint whose turn it is, other than `not`.
    pub(super) fn choose(&self, not: Option<usize>) -> Option<usize> {
        self.turn.next(self.pools.len(), not)
    }
}
