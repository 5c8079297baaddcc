//! What operators see of endpoints: `/backends`, and the gauges of each endpoint.
//!
//! Invariant: no more than [`SERIES_MAX`] endpoints have gauges, so that a registry of many instances does not
//! become as many time series; the first ones of the document have them. Neighbours: `endpoint` knows,
//! `control::admin::health` shows.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use prometheus::proto::MetricFamily;

use super::{
    breaker::Phase,
    endpoint::{Health, Standing, ms},
    table::RoutingTable,
};
use crate::telemetry::metrics::{BACKEND_HEALTH, CIRCUIT_BREAKER_STATE, gauge};

/// Endpoints with gauges of their own.
const SERIES_MAX: usize = 10_000;

/// A service's endpoints.
#[derive(Debug)]
pub struct Backends {
    /// The service's name.
    pub service: Arc<str>,
    /// In the order in which they take turns.
    pub endpoints: Vec<Backend>,
}

/// An endpoint as this node sees it.
#[derive(Debug)]
pub struct Backend {
    /// As written.
    pub address: Arc<str>,
    /// Its share.
    pub weight: u32,
    /// Whether it may have requests.
    pub available: bool,
    /// What the health check says: `healthy`, `unhealthy`, or `unknown` if it has said nothing or there is none.
    pub health: &'static str,
    /// How long it stays out because of errors.
    pub ejected_for: Option<Duration>,
    /// `closed`, `half-open` or `open`; none: there is no breaker.
    pub breaker: Option<&'static str>,
}

impl RoutingTable {
    pub(super) fn backends(&self, now: Instant) -> Vec<Backends> {
        let now = ms(now);
        let backends = |upstream: &Arc<super::table::Upstream>| {
            let service = &*upstream.service;
            let backend = |endpoint: &super::table::PlannedEndpoint| {
                let state = &endpoint.state;
                let ejected = state.outlier.ejected_until(now).filter(|_| service.outlier.is_some());
                let standing = state.standing(service, now);
                Backend {
                    address: Arc::clone(&endpoint.target.address),
                    weight: endpoint.weight,
                    available: matches!(standing, Standing::Up | Standing::HalfOpen),
                    health: match state.health() {
                        Health::Unknown => "unknown",
                        Health::Healthy => "healthy",
                        Health::Unhealthy => "unhealthy",
                    },
                    ejected_for: ejected.map(|until| Duration::from_millis(until - now)),
                    breaker: service.circuit_breaker.as_ref().map(|_| match state.breaker.phase(now) {
                        Phase::Closed => "closed",
                        Phase::HalfOpen { .. } => "half-open",
                        Phase::Open(_) => "open",
                    }),
                }
            };
            let endpoints = upstream.endpoints.iter().map(backend).collect();
            Backends { service: Arc::clone(&upstream.name), endpoints }
        };
        self.upstreams.iter().map(backends).collect()
    }
}

/// The gauges of each endpoint.
pub(super) fn families(backends: &[Backends]) -> Vec<MetricFamily> {
    let mut all: Vec<(&str, &Backend)> = Vec::new();
    for backends in backends {
        let left = SERIES_MAX - all.len();
        all.extend(backends.endpoints.iter().take(left).map(|endpoint| (&*backends.service, endpoint)));
    }
    let all = || all.iter().copied();
    let labels = |service, endpoint| vec![("service", service), ("endpoint", endpoint)];
    let health = gauge(
        BACKEND_HEALTH,
        "1 if an endpoint is healthy and not ejected",
        all().map(|(service, endpoint)| {
            let healthy = endpoint.health != "unhealthy" && endpoint.ejected_for.is_none();
            (labels(service, &*endpoint.address), f64::from(u8::from(healthy)))
        }),
    );
    let breaker = gauge(
        CIRCUIT_BREAKER_STATE,
        "circuit breakers of endpoints: 0 closed, 1 half-open, 2 open",
        all().filter_map(|(service, endpoint)| {
            let state = match endpoint.breaker? {
                "closed" => 0.0,
                "half-open" => 1.0,
                _ => 2.0,
            };
            Some((labels(service, &*endpoint.address), state))
        }),
    );
    let mut families = vec![health, breaker];
    families.retain(|family| !family.get_metric().is_empty());
    families
}
