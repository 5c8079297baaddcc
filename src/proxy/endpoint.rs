//! One endpoint as the whole node knows it: health, ejection, circuit breaker.
//!
//! Job: [`EndpointState`] is shared by all workers and the prober, and goes on over reloads while its service has
//! its address. Invariants: atomics only; a request that finds everything well reads one number of the
//! service, [`ServiceState::version`], which changes whenever an endpoint may have become usable or unusable
//! otherwise than by time. Neighbours: `table` carries it over, `health`, `outlier` and `breaker` are its
//! parts, `upstream` asks and tells.

use std::{
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    breaker::{Breaker, Phase},
    outlier::Outlier,
};
use crate::config::document::{Outlier as OutlierSettings, Service};

/// What endpoints of a service have in common.
#[derive(Debug, Default)]
pub(super) struct ServiceState {
    version: AtomicU64,
    /// Somebody is ejecting an endpoint at this moment.
    ejecting: AtomicBool,
}

/// What is known of an endpoint.
#[derive(Debug)]
pub(super) struct EndpointState {
    health: AtomicU8,
    pub(super) outlier: Outlier,
    pub(super) breaker: Breaker,
    service: Arc<ServiceState>,
}

/// What the health check says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Health {
    /// It has not said anything yet, or there is none.
    Unknown,
    Healthy,
    Unhealthy,
}

/// Whether an endpoint may have requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    Up,
    /// One at a time: its breaker is half-open.
    HalfOpen,
    Unhealthy,
    /// Until then, in ms.
    Ejected(u64),
    /// Until then, in ms.
    Open(u64),
}

/// Milliseconds since the process began to count.
pub(super) fn ms(now: Instant) -> u64 {
    u64::try_from(now.saturating_duration_since(*START).as_millis()).unwrap_or(u64::MAX)
}

/// The moment that [`ms`] counts as `ms`.
pub(super) fn moment(ms: u64) -> Instant {
    *START + Duration::from_millis(ms)
}

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

// === impl ServiceState ===

impl ServiceState {
    /// Changes with every piece of news.
    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    fn tell(&self) {
        self.version.fetch_add(1, Ordering::Release);
    }
}

// === impl EndpointState ===

impl EndpointState {
    pub(super) fn new(service: Arc<ServiceState>) -> Self {
        Self {
            health: AtomicU8::new(Health::Unknown as u8),
            outlier: Outlier::default(),
            breaker: Breaker::default(),
            service,
        }
    }

    /// All that counts for a request, by the service's settings.
    pub(super) fn standing(&self, settings: &Service, now_ms: u64) -> Standing {
        if settings.health_check.is_some() && self.health() == Health::Unhealthy {
            return Standing::Unhealthy;
        }
        if settings.outlier.is_some()
            && let Some(until) = self.outlier.ejected_until(now_ms)
        {
            return Standing::Ejected(until);
        }
        match settings.circuit_breaker.as_ref().map(|_| self.breaker.phase(now_ms)) {
            None | Some(Phase::Closed) => Standing::Up,
            Some(Phase::Open(until)) => Standing::Open(until),
            Some(Phase::HalfOpen { .. }) => Standing::HalfOpen,
        }
    }

    pub(super) fn health(&self) -> Health {
        match self.health.load(Ordering::Acquire) {
            1 => Health::Healthy,
            2 => Health::Unhealthy,
            _ => Health::Unknown,
        }
    }

    pub(super) fn set_health(&self, health: Health) {
        if self.health.swap(health as u8, Ordering::AcqRel) != health as u8 {
            self.service.tell();
        }
    }

    /// A request went well; `probe`: the one that a half-open breaker let through.
    pub(super) fn succeeded(&self, settings: &Service, probe: bool) {
        if settings.outlier.is_some() {
            self.outlier.succeeded();
        }
        if probe {
            match &settings.circuit_breaker {
                Some(breaker) if self.breaker.probe_succeeded(breaker) => self.service.tell(),
                Some(_) => {}
                None => self.breaker.give_back(),
            }
        }
    }

    /// A request failed; true if the endpoint made too many errors in a row, see [`EndpointState::eject`].
    pub(super) fn failed(&self, settings: &Service, probe: bool, now_ms: u64) -> bool {
        match &settings.circuit_breaker {
            Some(breaker) if self.breaker.failed(probe, now_ms, breaker) => self.service.tell(),
            Some(_) => {}
            None if probe => self.breaker.give_back(),
            None => {}
        }
        settings.outlier.as_ref().is_some_and(|outlier| self.outlier.failed(outlier))
    }

    /// Ejects the endpoint, unless `max_ejected_percent` of `all` of its service's are out already.
    pub(super) fn eject<'a>(
        &self,
        settings: &OutlierSettings,
        all: impl ExactSizeIterator<Item = &'a Arc<EndpointState>>,
        now_ms: u64,
    ) -> Option<Duration> {
        // Two at once could both be the last one that is allowed. The next error of whoever lost tries again.
        if self.service.ejecting.swap(true, Ordering::Acquire) {
            return None;
        }
        let allowed = all.len() as u64 * u64::from(settings.max_ejected_percent) / 100;
        let out = all.filter(|state| state.outlier.ejected_until(now_ms).is_some()).count() as u64;
        let ejects = out < allowed && self.outlier.ejected_until(now_ms).is_none();
        let time = ejects.then(|| self.outlier.eject(now_ms, settings));
        self.service.ejecting.store(false, Ordering::Release);
        if time.is_some() {
            self.service.tell();
        }
        time
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_are_ejected_than_the_percentage_allows() {
        let settings = OutlierSettings {
            consecutive_errors: 1,
            eject_for: Duration::from_secs(1),
            max_ejected_percent: 50,
        };
        for (count, allowed) in [(1, 0), (2, 1), (3, 1), (4, 2), (10, 5)] {
            let service = Arc::new(ServiceState::default());
            let all: Vec<_> =
                (0..count).map(|_| Arc::new(EndpointState::new(Arc::clone(&service)))).collect();
            let eject =
                |now| all.iter().filter(|state| state.eject(&settings, all.iter(), now).is_some()).count();
            assert_eq!(eject(10), allowed, "of {count}");
            assert_eq!(service.version(), allowed as u64);
            assert_eq!(eject(1_009), 0, "they are still out");
            assert_eq!(eject(1_010), allowed, "they have returned");
        }
    }
}
