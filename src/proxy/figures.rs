//! What a worker counts.
//!
//! Job: plain integers that only one thread touches, keyed by what requests already hold; strings and label sets
//! are made at the scrape. Neighbours: `http` and `forward` count, `worker` turns it into
//! [`crate::telemetry::metrics::Traffic`].

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    sync::Arc,
    time::Duration,
};

use http::Method;

use crate::telemetry::metrics::{Histogram, OTHER, RequestLabels, Traffic};

/// A number that goes up.
#[derive(Debug, Default)]
pub(super) struct Counter(Cell<u64>);

/// What is counted for the worker as a whole.
#[derive(Debug, Default)]
pub(super) struct Figures {
    pub(super) request_bytes: Counter,
    pub(super) response_bytes: Counter,
    rejections: RefCell<BTreeMap<&'static str, u64>>,
    /// By budget: admitted and refused. A document has few: a short list beats a map.
    decisions: RefCell<Vec<(Arc<str>, [u64; 2])>>,
    retries: RefCell<BTreeMap<(Arc<str>, &'static str), u64>>,
    mirrors: RefCell<BTreeMap<(Arc<str>, &'static str), u64>>,
}

/// What is counted for a route.
#[derive(Debug)]
pub(super) struct RouteFigures {
    route: Arc<str>,
    service: Arc<str>,
    /// A route sees few methods and codes: a short list beats a map.
    answers: RefCell<Vec<(&'static str, u16, u64)>>,
    durations: RefCell<Histogram>,
}

// === impl Counter ===

impl Counter {
    pub(super) fn add(&self, more: u64) {
        self.0.set(self.0.get() + more);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.get()
    }
}

// === impl Figures ===

impl Figures {
    /// Counts a request that the gateway refused or that failed.
    pub(super) fn reject(&self, reason: &'static str) {
        *self.rejections.borrow_mut().entry(reason).or_default() += 1;
    }

    /// Counts a request that is sent again.
    pub(super) fn retry(&self, service: &Arc<str>, reason: &'static str) {
        *self.retries.borrow_mut().entry((Arc::clone(service), reason)).or_default() += 1;
    }

    /// Counts a decision about a budget.
    pub(super) fn decide(&self, budget: &Arc<str>, allowed: bool) {
        let mut decisions = self.decisions.borrow_mut();
        let place = decisions
            .iter()
            .position(|(known, _)| Arc::ptr_eq(known, budget))
            .or_else(|| decisions.iter().position(|(known, _)| known == budget))
            .unwrap_or_else(|| {
                decisions.push((Arc::clone(budget), [0, 0]));
                decisions.len() - 1
            });
        decisions[place].1[usize::from(!allowed)] += 1;
    }

    /// Counts what became of a copy of a request.
    pub(super) fn mirror(&self, service: &Arc<str>, result: &'static str) {
        *self.mirrors.borrow_mut().entry((Arc::clone(service), result)).or_default() += 1;
    }

    /// Copies the figures for a scrape.
    pub(super) fn copy_to(&self, traffic: &mut Traffic) {
        traffic.request_bytes += self.request_bytes.get();
        traffic.response_bytes += self.response_bytes.get();
        traffic.rejections.clone_from(&self.rejections.borrow());
        traffic.retries.clone_from(&self.retries.borrow());
        for (budget, [allowed, refused]) in self.decisions.borrow().iter() {
            *traffic.decisions.entry((Arc::clone(budget), "allowed")).or_default() += allowed;
            *traffic.decisions.entry((Arc::clone(budget), "refused")).or_default() += refused;
        }
        traffic.mirrors.clone_from(&self.mirrors.borrow());
    }
}

// === impl RouteFigures ===

impl RouteFigures {
    pub(super) fn new(route: &Arc<str>, service: &Arc<str>) -> Self {
        Self {
            route: Arc::clone(route),
            service: Arc::clone(service),
            answers: RefCell::default(),
            durations: RefCell::default(),
        }
    }

    /// The route's and the service's name.
    pub(super) fn names(&self) -> (&Arc<str>, &Arc<str>) {
        (&self.route, &self.service)
    }

    /// Counts an answer.
    pub(super) fn count(&self, method: &'static str, code: u16, duration: Duration) {
        self.durations.borrow_mut().observe(duration);
        let mut answers = self.answers.borrow_mut();
        let same = |(known, seen, _): &&mut (&'static str, u16, u64)| *seen == code && *known == method;
        match answers.iter_mut().find(same) {
            Some((_, _, count)) => *count += 1,
            None => answers.push((method, code, 1)),
        }
    }

    /// Copies the figures for a scrape.
    pub(super) fn copy_to(&self, traffic: &mut Traffic) {
        let names = || (Arc::clone(&self.route), Arc::clone(&self.service));
        for (method, code, count) in self.answers.borrow().iter() {
            let (route, service) = names();
            *traffic.requests.entry(RequestLabels { route, service, method, code: *code }).or_default() +=
                count;
        }
        if self.durations.borrow().count() > 0 {
            traffic.durations.insert(names(), *self.durations.borrow());
        }
    }
}

/// A method as a label: from a closed set.
pub(super) fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        Method::CONNECT => "CONNECT",
        Method::TRACE => "TRACE",
        _ => OTHER,
    }
}
