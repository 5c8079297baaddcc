//! `rate_limit`: spends a budget, or refuses with 429.
//!
//! Job: choose the key that the budget counts by; `proxy::limiter` does the counting. Clients are told what is
//! left by the fields of draft-ietf-httpapi-ratelimit-headers-10: `RateLimit-Policy` says the quota, `RateLimit`
//! what remains of it; they are lists, so an endpoint's own stay beside them.
//! Invariant: an IPv6 client is its /64, for it can choose among the addresses in there.

use std::{borrow::Cow, fmt::Write, hash::Hash, net::IpAddr, sync::Arc, time::Instant};

use http::{HeaderMap, HeaderName, HeaderValue};

use super::{
    super::{
        client_address::subscriber,
        limiter::{Decision, Limiter},
    },
    jwt::Claims,
};
use crate::config::document::{Budget, BudgetKey};

const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// A budget that a route spends.
#[derive(Debug)]
pub(super) struct RateLimit {
    pub(super) name: Arc<str>,
    pub(super) limiter: Arc<Limiter>,
    policy: HeaderValue,
}

/// Whom a request is counted for. The kinds are apart: no header can pass for an address.
#[derive(Hash)]
enum Key<'a> {
    Everybody,
    Address(u128),
    Header(Vec<&'a [u8]>),
    Claim(Cow<'a, str>),
}

// === impl RateLimit ===

impl RateLimit {
    pub(super) fn new(name: &str, limiter: Arc<Limiter>) -> Self {
        let policy = policy_of(name, limiter.budget());
        Self { name: name.into(), limiter, policy }
    }

    /// Whether it waits until it is known who asks.
    pub(super) fn is_by_claim(&self) -> bool {
        matches!(self.limiter.budget().key, BudgetKey::Claim(_))
    }

    /// Spends one request.
    pub(super) fn spend(
        &self,
        headers: &HeaderMap,
        client: IpAddr,
        claims: Option<&Claims>,
        at: Instant,
    ) -> Decision {
        let key = match &self.limiter.budget().key {
            BudgetKey::Global | BudgetKey::Route => Key::Everybody,
            BudgetKey::ClientAddress => Key::Address(subscriber(client)),
            BudgetKey::Header(name) => {
                let values: Vec<&[u8]> = headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
                // Leaving the header out must not be a way around the limit.
                if values.is_empty() { Key::Address(subscriber(client)) } else { Key::Header(values) }
            }
            BudgetKey::Claim(name) => {
                let claim = claims.and_then(|claims| claims.text(name));
                claim.map_or_else(|| Key::Address(subscriber(client)), Key::Claim)
            }
        };
        self.limiter.spend(key, at)
    }

    /// Tells the client how it stands.
    pub(super) fn tell(&self, decision: &Decision, headers: &mut HeaderMap) {
        headers.append(RATELIMIT_POLICY, self.policy.clone());
        let mut text = String::with_capacity(self.name.len() + 32);
        let wait_s = seconds(decision);
        let written = write!(text, "\"{}\";r={};t={wait_s}", self.name, decision.remaining);
        if let (Ok(()), Ok(value)) = (written, HeaderValue::try_from(text)) {
            headers.append(RATELIMIT, value);
        }
    }
}

/// Whole seconds until a refused client may come again, or until an admitted one has its whole burst back.
pub(super) fn seconds(decision: &Decision) -> u64 {
    let ms = u64::try_from(decision.wait.as_millis()).unwrap_or(u64::MAX);
    ms.div_ceil(1_000).max(u64::from(!decision.allowed))
}

/// `"free";q=100;w=1`; the window is left out where it is not whole seconds, which is all that the field can say.
fn policy_of(name: &str, budget: &Budget) -> HeaderValue {
    let window = match budget.per.subsec_nanos() {
        0 => format!(";w={}", budget.per.as_secs()),
        _ => String::new(),
    };
    let text = format!("\"{name}\";q={}{window}", budget.rate);
    // A name has nothing that a header value could not have.
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn limit(key: BudgetKey) -> RateLimit {
        let budget = Budget { rate: 1, per: Duration::from_secs(60), burst: 1, key };
        RateLimit::new("free", Arc::new(Limiter::keyed(budget)))
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_ipv6_client_is_its_network() {
        let limit = limit(BudgetKey::ClientAddress);
        let now = Instant::now();
        let ask = |client| limit.spend(&HeaderMap::new(), address(client), None, now).allowed;
        assert!(ask("2001:db8::1") && !ask("2001:db8::2") && ask("2001:db8:0:1::1"));
        assert!(ask("192.0.2.1") && ask("192.0.2.2") && !ask("::ffff:192.0.2.1"));
    }

    #[test]
    fn without_the_header_a_client_is_its_address() {
        let limit = limit(BudgetKey::Header(HeaderName::from_static("x-key")));
        let now = Instant::now();
        let with = |value: &'static str| {
            [(HeaderName::from_static("x-key"), HeaderValue::from_static(value))].into_iter().collect()
        };
        let client = address("192.0.2.1");
        assert!(limit.spend(&with("a"), client, None, now).allowed);
        assert!(!limit.spend(&with("a"), address("192.0.2.2"), None, now).allowed);
        assert!(limit.spend(&with("b"), client, None, now).allowed);
        assert!(limit.spend(&HeaderMap::new(), client, None, now).allowed);
        assert!(!limit.spend(&HeaderMap::new(), client, None, now).allowed);
    }

    #[test]
    fn a_client_is_told_how_it_stands() {
        let limit = limit(BudgetKey::ClientAddress);
        let now = Instant::now();
        let client = address("192.0.2.1");
        let mut headers = HeaderMap::new();
        limit.tell(&limit.spend(&headers, client, None, now), &mut headers);
        let refused = limit.spend(&headers, client, None, now);
        limit.tell(&refused, &mut headers);
        let told: Vec<_> = headers.get_all(RATELIMIT).iter().collect();
        assert_eq!(told, ["\"free\";r=0;t=60", "\"free\";r=0;t=60"]);
        assert_eq!(headers[RATELIMIT_POLICY], "\"free\";q=1;w=60");
        assert_eq!(seconds(&refused), 60);
    }
}
