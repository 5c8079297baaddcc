//! When a request may be sent again.
//!
//! Job: pure decisions; `forward` carries them out. A request that never left may always be sent again; one that did
//! only if its method is idempotent and nothing of a body is gone (RFC 9110, section 9.2.2). [`Budget`] keeps
//! retries from multiplying the load on a service that is down. Without a `retries` section a route has one
//! more try of an endpoint that takes no connection, at another one, at once.
//! Neighbours: `forward` asks, `upstream` keeps a service's budget.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use http::StatusCode;

use super::error::ProxyError;
use crate::config::document::{Retries, RetryOn};

/// No pause is longer than so many times the first.
const BACKOFF_TIMES_MAX: u32 = 10;
/// Retries that any service may have, whatever the percentage, so that a few requests may be retried too.
const FREE_PER_SECOND: u64 = 10;
/// The budget looks back over so many seconds.
const SECONDS: usize = 10;

/// Requests and retries of a service in the last seconds, as one worker counts them.
#[derive(Debug, Default)]
pub(super) struct Budget {
    /// By second.
    seconds: [Cell<Second>; SECONDS],
}

#[derive(Debug, Clone, Copy, Default)]
struct Second {
    number: u64,
    requests: u64,
    retries: u64,
}

/// Why a request may have to be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// It did not get a connection.
    Connect,
    /// The connection ended, or what came is not HTTP.
    Reset,
    /// No answer in time.
    Timeout,
    /// The endpoint said so.
    Status(StatusCode),
}

// === impl Failure ===

impl Failure {
    /// What kind of failure an error is; none if the endpoint is not to blame.
    pub(super) fn of(error: &ProxyError) -> Option<Failure> {
        match error {
            ProxyError::ConnectFailed | ProxyError::ConnectTimeout => Some(Self::Connect),
            ProxyError::UpstreamReset | ProxyError::UpstreamMalformed => Some(Self::Reset),
            ProxyError::UpstreamTimeout => Some(Self::Timeout),
            _ => None,
        }
    }

    /// The label of `gogate_retries_total`.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Reset => "reset",
            Self::Timeout => "timeout",
            Self::Status(StatusCode::BAD_GATEWAY) => "502",
            Self::Status(StatusCode::SERVICE_UNAVAILABLE) => "503",
            Self::Status(_) => "504",
        }
    }

    /// Whether the route wants it retried.
    pub(super) fn is_in(self, on: RetryOn) -> bool {
        match self {
            Self::Connect => on.connect,
            Self::Reset => on.reset,
            Self::Timeout => on.timeout,
            Self::Status(StatusCode::BAD_GATEWAY) => on.bad_gateway,
            Self::Status(StatusCode::SERVICE_UNAVAILABLE) => on.service_unavailable,
            Self::Status(StatusCode::GATEWAY_TIMEOUT) => on.gateway_timeout,
            Self::Status(_) => false,
        }
    }
}

/// The pause before the `retry`-th retry, from 0: anything up to twice as much each time ("full jitter": Brooker,
/// "Exponential backoff and jitter", AWS Architecture Blog, 2015). `random` is any number.
pub(super) fn pause(retries: &Retries, retry: u32, random: u64) -> Duration {
    let times = 1_u32.checked_shl(retry).unwrap_or(BACKOFF_TIMES_MAX).min(BACKOFF_TIMES_MAX);
    let longest_us = u64::try_from((retries.backoff * times).as_micros()).unwrap_or(u64::MAX);
    Duration::from_micros(((u128::from(random) * u128::from(longest_us)) >> 64) as u64)
}

// === impl Budget ===

impl Budget {
    /// A request came that may be retried.
    pub(super) fn request(&self, now: Instant) {
        self.count(now, |second| second.requests += 1);
    }

    /// Takes one retry out, if there is one.
    pub(super) fn retry(&self, percent: u32, now: Instant) -> bool {
        let number = second(now);
        let recent = |kept: &Second| number.saturating_sub(kept.number) < SECONDS as u64;
        let seconds = self.seconds.iter().map(Cell::get).filter(recent);
        let (requests, retries) = seconds.fold((0, 0), |(requests, retries), second| {
            (requests + second.requests, retries + second.retries)
        });
        let allowed = requests * u64::from(percent) / 100 + FREE_PER_SECOND * SECONDS as u64;
        if retries >= allowed {
            return false;
        }
        self.count(now, |second| second.retries += 1);
        true
    }

    fn count(&self, now: Instant, add: impl FnOnce(&mut Second)) {
        let number = second(now);
        let kept = &self.seconds[(number % SECONDS as u64) as usize];
        let mut second = kept.get();
        if second.number != number {
            second = Second { number, requests: 0, retries: 0 };
        }
        add(&mut second);
        kept.set(second);
    }
}

/// The first second is not 0, which an unused place has.
fn second(now: Instant) -> u64 {
    super::endpoint::ms(now) / 1000 + SECONDS as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_anything_up_to_twice_as_long_each_time() {
        let retries = Retries { backoff: Duration::from_millis(25), ..Retries::default() };
        for (retry, longest_ms) in [(0, 25), (1, 50), (2, 100), (3, 200), (4, 250), (5, 250), (40, 250)] {
            assert_eq!(pause(&retries, retry, 0), Duration::ZERO);
            let longest = pause(&retries, retry, u64::MAX);
            assert!(longest <= Duration::from_millis(longest_ms), "{retry}: {longest:?}");
            assert!(
                longest >= Duration::from_millis(longest_ms) - Duration::from_micros(1),
                "{retry}: {longest:?}"
            );
            assert_eq!(pause(&retries, retry, 1 << 63), Duration::from_micros(longest_ms * 500));
        }
    }

    #[test]
    fn a_budget_is_a_share_of_the_requests_and_a_few_more() {
        let budget = Budget::default();
        let now = crate::proxy::endpoint::moment(5_500);
        let at = |seconds| now + Duration::from_secs(seconds);
        let taken = |now| (0..10_000).take_while(|_| budget.retry(20, now)).count();
        assert_eq!(taken(at(0)), 100, "without requests, ten for each of ten seconds");
        (0..1_000).for_each(|_| budget.request(at(1)));
        assert_eq!(taken(at(1)), 200);
        assert_eq!(taken(at(9)), 0);
        assert_eq!(taken(at(10)), 100, "what was taken in the first second is forgotten");
        assert_eq!(taken(at(40)), 100);
    }

    #[test]
    fn a_failure_is_retried_if_the_route_says_so() {
        let only = |set: fn(&mut RetryOn)| {
            let mut on = RetryOn::default();
            set(&mut on);
            on
        };
        for (error, on) in [
            (ProxyError::ConnectFailed, only(|on| on.connect = true)),
            (ProxyError::ConnectTimeout, only(|on| on.connect = true)),
            (ProxyError::UpstreamReset, only(|on| on.reset = true)),
            (ProxyError::UpstreamMalformed, only(|on| on.reset = true)),
            (ProxyError::UpstreamTimeout, only(|on| on.timeout = true)),
        ] {
            let failure = Failure::of(&error).unwrap();
            assert!(failure.is_in(on) && !failure.is_in(RetryOn::default()), "{error:?}");
        }
        for error in [ProxyError::PoolOverload, ProxyError::RequestTimeout, ProxyError::BodyTooLarge] {
            assert_eq!(Failure::of(&error), None);
        }
        let all = RetryOn {
            connect: true,
            reset: true,
            timeout: true,
            bad_gateway: true,
            service_unavailable: true,
            gateway_timeout: true,
        };
        for (status, retried) in [(502, true), (503, true), (504, true), (500, false), (404, false)] {
            let failure = Failure::Status(StatusCode::from_u16(status).unwrap());
            assert_eq!(failure.is_in(all), retried, "{status}");
        }
    }
}
