//! What a route does with a request beside sending it on: a file a kind, and here the order they run in.
//!
//! The order is fixed, whatever the order in the document:
//! 0. `recovery` around all of it, on every route;
//! 1. `request_id`;
//! 2. `ip_filter`: `ip_deny`, then `ip_allow`;
//! 3. `cors` answers a preflight;
//! 4. `max_in_flight`;
//! 5. `rate_limit`;
//! 6. `jwt`, `api_key`, `basic_auth`, `forward_auth`: who it is;
//! 7. `rate_limit` by claim;
//! 8. `body_limit`;
//! 9. `rewrite`: `replace_path`, `strip_prefix`, `add_prefix`;
//! 10. `request_headers`, and the request is sent;
//! 11. on every answer of the route, the gateway's own included: `rate_limit` tells how the client stands,
//!     `response_headers`, `cors`; on an endpoint's, `compress` last.
//!
//! Invariants: a route without policies pays one branch; what can be decided at once is decided without an
//! `async` function; the state of a policy is the node's, and outlives a document that does not change it.
//! Policies see the head after hop-by-hop fields are gone (`headers::prepare_request`), so that a client cannot
//! name away in `Connection` what a policy adds. Neighbours: `action` has them compiled, `http` calls.

mod api_key;
mod auth;
mod basic_auth;
mod body_limit;
mod compress;
mod cors;
mod forward_auth;
mod headers;
mod ip_filter;
mod jwt;
mod max_in_flight;
mod rate_limit;
pub(super) mod recovery;
mod request_id;
mod rewrite;

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, atomic::AtomicUsize},
    time::Instant,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Uri, header, request::Parts};
use regex::Regex;

use self::{
    auth::Auth,
    cors::Cors,
    forward_auth::ForwardAuth,
    ip_filter::IpFilter,
    jwt::Claims,
    max_in_flight::{InFlight, MaxInFlight},
    rate_limit::RateLimit,
    rewrite::Rewrite,
};
use super::{
    client::Client,
    error::ProxyError,
    figures::Figures,
    limiter::{Decision, Limiter},
    record::Record,
    upstream::View,
};
use crate::config::document::{
    Budget, BudgetKey, Coding, Compress, Document, HeaderEdit, PolicyKind, RequestIdPolicy, Route,
};

pub(super) use self::{
    auth::Auths,
    basic_auth::{Passwords, Verified},
    compress::Compressor,
    cors::is_preflight,
};

/// A route's policies.
#[derive(Debug, Default)]
pub(super) struct RoutePolicies {
    request_id: Option<RequestIdPolicy>,
    ip_filter: IpFilter,
    cors: Option<Cors>,
    max_in_flight: Vec<MaxInFlight>,
    rate_limits: Vec<RateLimit>,
    /// In the order they run in.
    auth: Vec<Auth>,
    forward_auth: Option<ForwardAuth>,
    body_bytes_max: Option<u64>,
    rewrite: Rewrite,
    request_headers: Vec<HeaderEdit>,
    response_headers: Vec<HeaderEdit>,
    compress: Option<Compress>,
}

/// What policies remember from one request to the next, for the whole node.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// By budget, and by route where each has its own.
    limiters: HashMap<(String, Option<String>), Arc<Limiter>>,
    /// By policy and place in it.
    in_flight: HashMap<String, Arc<AtomicUsize>>,
}

/// Compiles the policies of a document's routes.
pub(super) struct Compiler<'a> {
    document: &'a Document,
    auths: &'a Auths,
    /// The services' places in the table.
    services: &'a HashMap<Arc<str>, usize>,
    previous: &'a Memory,
    memory: Memory,
    /// Routes with the same list share what it compiles to.
    shared: HashMap<&'a [String], Arc<RoutePolicies>>,
}

/// A request on its way through the policies of its route.
#[derive(Debug)]
pub(super) struct Passing<'a> {
    /// As the endpoint will see it.
    pub(super) parts: &'a mut Parts,
    /// The target that the endpoint will see.
    pub(super) uri: &'a mut Uri,
    /// Whose request it is.
    pub(super) client: IpAddr,
    /// When it came.
    pub(super) at: Instant,
    /// A browser asks what it may ask.
    pub(super) is_preflight: bool,
    /// The least that its body is long.
    pub(super) body_bytes_min: u64,
    pub(super) figures: &'a Figures,
    pub(super) request_id: &'a HeaderValue,
    /// What its token says, once that was verified.
    pub(super) claims: Option<Box<Claims>>,
}

/// What a request's policies know when its answer comes, and hold until its body is gone.
#[derive(Debug)]
pub(super) struct Passed {
    policies: Arc<RoutePolicies>,
    origin: Option<HeaderValue>,
    coding: Option<Coding>,
    is_head: bool,
    /// Places in `rate_limits`, with what became of it.
    decisions: Vec<(usize, Decision)>,
    in_flight: Vec<InFlight>,
    /// What the client is told the request is called.
    request_id: Option<HeaderValue>,
}

// === impl Compiler ===

impl<'a> Compiler<'a> {
    /// Carries over from `previous` what the document did not change.
    pub(super) fn new(
        document: &'a Document,
        auths: &'a Auths,
        services: &'a HashMap<Arc<str>, usize>,
        previous: &'a Memory,
    ) -> Self {
        Self { document, auths, services, previous, memory: Memory::default(), shared: HashMap::new() }
    }

    /// What the next document's compiler carries over.
    pub(super) fn into_memory(self) -> Memory {
        self.memory
    }

    /// The policies that `route` names; none if it names none.
    pub(super) fn compile(&mut self, route: &'a Route) -> Option<Arc<RoutePolicies>> {
        if route.policies.is_empty() {
            return None;
        }
        if let Some(same) = self.shared.get(&*route.policies) {
            return Some(Arc::clone(same));
        }
        let mut auth: Vec<Auth> =
            route.policies.iter().flat_map(|name| self.auths.of(name)).cloned().collect();
        auth.sort_by_key(Auth::place);
        let mut compiled = RoutePolicies { auth, ..RoutePolicies::default() };
        let document = self.document;
        for name in &route.policies {
            for kind in document.policies.get(name).into_iter().flat_map(|policy| &policy.kinds) {
                self.add(&mut compiled, route, name, kind);
            }
        }
        let compiled = Arc::new(compiled);
        let own = |limit: &RateLimit| limit.limiter.budget().key == BudgetKey::Route;
        if !compiled.rate_limits.iter().any(own) {
            self.shared.insert(&route.policies, Arc::clone(&compiled));
        }
        Some(compiled)
    }

    fn add(&mut self, compiled: &mut RoutePolicies, route: &Route, policy: &str, kind: &PolicyKind) {
        match kind {
            PolicyKind::RequestId(request_id) => compiled.request_id = Some(request_id.clone()),
            PolicyKind::IpAllow(networks) => compiled.ip_filter.allow(networks),
            PolicyKind::IpDeny(networks) => compiled.ip_filter.deny(networks),
            PolicyKind::Cors(cors) => compiled.cors = Some(Cors::new(cors)),
            PolicyKind::MaxInFlight(max) => {
                let now = self.memory.in_flight.entry(policy.to_owned()).or_insert_with(|| {
                    self.previous.in_flight.get(policy).map(Arc::clone).unwrap_or_default()
                });
                compiled.max_in_flight.push(MaxInFlight { max: *max, now: Arc::clone(now) });
            }
            PolicyKind::RateLimit(name) => {
                // The check has seen that it is there.
                if let Some(budget) = self.document.budgets.get(name) {
                    let limiter = self.limiter(name, budget, route);
                    compiled.rate_limits.push(RateLimit::new(name, limiter));
                }
            }
            // `auths` have them.
            PolicyKind::Jwt(_) | PolicyKind::ApiKey(_) | PolicyKind::BasicAuth(_) => {}
            PolicyKind::ForwardAuth(policy) => {
                let place = self.services.get(policy.service.as_str());
                compiled.forward_auth = place.map(|place| ForwardAuth::new(policy, *place));
            }
            PolicyKind::BodyLimit(bytes_max) => compiled.body_bytes_max = Some(*bytes_max),
            PolicyKind::ReplacePath { regex, with } => {
                // The check has compiled it as well.
                compiled.rewrite.replace = Regex::new(regex).ok().map(|regex| (regex, with.clone()));
            }
            PolicyKind::StripPrefix(prefix) => {
                compiled.rewrite.strip =
                    HeaderValue::from_str(prefix).ok().map(|told| (prefix.clone(), told));
            }
            PolicyKind::AddPrefix(prefix) => compiled.rewrite.add = Some(prefix.clone()),
            PolicyKind::RequestHeaders(edit) => compiled.request_headers.push(edit.clone()),
            PolicyKind::ResponseHeaders(edit) => compiled.response_headers.push(edit.clone()),
            PolicyKind::Compress(compress) => compiled.compress = Some(compress.clone()),
        }
    }

    /// One for the budget, or for the route's share of it: what is spent stays spent over a change of anything else.
    fn limiter(&mut self, name: &str, budget: &Budget, route: &Route) -> Arc<Limiter> {
        let own = (budget.key == BudgetKey::Route).then(|| route.name.clone());
        let key = (name.to_owned(), own);
        if let Some(known) = self.memory.limiters.get(&key) {
            return Arc::clone(known);
        }
        let previous = self.previous.limiters.get(&key).filter(|previous| previous.budget() == budget);
        let limiter = previous.map_or_else(
            || {
                Arc::new(match budget.key {
                    BudgetKey::Global | BudgetKey::Route => Limiter::single(budget.clone()),
                    BudgetKey::ClientAddress | BudgetKey::Header(_) | BudgetKey::Claim(_) => {
                        Limiter::keyed(budget.clone())
                    }
                })
            },
            Arc::clone,
        );
        self.memory.limiters.insert(key, Arc::clone(&limiter));
        limiter
    }
}

// === impl RoutePolicies ===

impl RoutePolicies {
    /// Whether preflights are answered here, whatever methods the route takes.
    pub(super) fn answers_preflights(&self) -> bool {
        self.cors.is_some()
    }

    /// The longest body that the route takes, where that is not the document's bound.
    pub(super) fn body_bytes_max(&self) -> Option<u64> {
        self.body_bytes_max
    }

    /// The id that the request goes by on this route.
    pub(super) fn request_id(
        &self,
        headers: &HeaderMap,
        peer_is_trusted: bool,
        given: &HeaderValue,
        new: impl FnOnce() -> HeaderValue,
    ) -> Option<HeaderValue> {
        let policy = self.request_id.as_ref()?;
        Some(request_id::choose(policy, headers, peer_is_trusted, given, new))
    }

    /// What happens before it is known who asks; an answer if it is not to be sent at all.
    pub(super) fn admit(
        &self,
        request: &mut Passing<'_>,
        passed: &mut Passed,
    ) -> Result<Option<Response<Bytes>>, ProxyError> {
        if !self.ip_filter.is_empty() {
            self.ip_filter.check(request.client)?;
        }
        if let Some(cors) = &self.cors
            && request.is_preflight
        {
            return Ok(Some(cors.preflight(&request.parts.headers)));
        }
        for limit in &self.max_in_flight {
            passed.in_flight.push(limit.enter()?);
        }
        self.spend(request, passed, false)?;
        Ok(None)
    }

    /// Whether [`RoutePolicies::authenticate`] has anything to do.
    pub(super) fn authenticates(&self) -> bool {
        !self.auth.is_empty() || self.forward_auth.is_some()
    }

    /// Asks who it is.
    pub(super) async fn authenticate(
        &self,
        request: &mut Passing<'_>,
        client: &Client,
        view: &View,
        record: &Record,
    ) -> Result<(), ProxyError> {
        let worker = &client.worker;
        for auth in &self.auth {
            let headers = &mut request.parts.headers;
            match auth {
                Auth::Jwt(jwt) => {
                    let claims = jwt.check(headers, request.uri.path()).await?;
                    request.claims = claims;
                }
                Auth::ApiKey(api_key) => {
                    if let Some(journey) = record.journey() {
                        journey.redact(|target| api_key.take_out(target));
                    }
                    api_key.check(headers, request.uri)?;
                }
                Auth::Basic(basic_auth) => {
                    let (passwords, verified) = (&worker.shared.passwords, &worker.verified);
                    basic_auth.check(headers, request.client, passwords, verified).await?;
                }
            }
        }
        if let Some(forward_auth) = &self.forward_auth {
            forward_auth.check(request.parts, request.uri, client, view, record).await?;
        }
        Ok(())
    }

    /// What happens before the request is sent.
    pub(super) fn prepare(&self, request: &mut Passing<'_>, passed: &mut Passed) -> Result<(), ProxyError> {
        self.spend(request, passed, true)?;
        if let Some(bytes_max) = self.body_bytes_max {
            body_limit::check(request.body_bytes_min, bytes_max)?;
        }
        if !self.rewrite.is_empty() {
            self.rewrite.apply(request.uri, &mut request.parts.headers)?;
        }
        if let Some(policy) = &self.request_id {
            auth::remove_twins(&mut request.parts.headers, || std::iter::once(&policy.header));
            request.parts.headers.insert(policy.header.clone(), request.request_id.clone());
        }
        for edit in &self.request_headers {
            let spoken_for = || edit.remove.iter().chain(edit.set.iter().map(|(name, _)| name));
            auth::remove_twins(&mut request.parts.headers, spoken_for);
            headers::edit(&mut request.parts.headers, edit);
        }
        Ok(())
    }

    /// Spends the route's budgets: those that count by claim, or the others.
    fn spend(&self, request: &Passing<'_>, passed: &mut Passed, by_claim: bool) -> Result<(), ProxyError> {
        for (place, limit) in self.rate_limits.iter().enumerate() {
            if limit.is_by_claim() != by_claim {
                continue;
            }
            let claims = request.claims.as_deref();
            let decision = limit.spend(&request.parts.headers, request.client, claims, request.at);
            passed.decisions.push((place, decision));
            request.figures.decide(&limit.name, decision.allowed);
            if !decision.allowed {
                return Err(ProxyError::RateLimited(rate_limit::seconds(&decision)));
            }
        }
        Ok(())
    }
}

// === impl Passed ===

impl Passed {
    /// Notes of the request what its answer depends on.
    pub(super) fn new(policies: &Arc<RoutePolicies>, parts: &Parts, request_id: &HeaderValue) -> Box<Passed> {
        let headers = &parts.headers;
        let coding = policies.compress.as_ref().and_then(|policy| compress::coding_for(policy, headers));
        let origin = policies.cors.as_ref().and_then(|_| headers.get(header::ORIGIN).cloned());
        Box::new(Passed {
            policies: Arc::clone(policies),
            origin,
            coding,
            is_head: parts.method == Method::HEAD,
            decisions: Vec::new(),
            in_flight: Vec::new(),
            request_id: policies.request_id.as_ref().map(|_| request_id.clone()),
        })
    }

    /// What happens to the head of the answer, whoever gave it.
    pub(super) fn finish(&self, answer: &mut HeaderMap) {
        for (place, decision) in &self.decisions {
            self.policies.rate_limits[*place].tell(decision, answer);
        }
        if let (Some(policy), Some(id)) = (&self.policies.request_id, &self.request_id) {
            answer.insert(policy.header.clone(), id.clone());
        }
        for edit in &self.policies.response_headers {
            headers::edit(answer, edit);
        }
        if let Some(cors) = &self.policies.cors {
            cors.mark(self.origin.as_ref(), answer);
        }
    }

    /// Encodes the endpoint's answer, if its client gains by it. `length`: the body's, if known.
    pub(super) fn compress(
        &self,
        status: StatusCode,
        answer: &mut HeaderMap,
        length: Option<u64>,
    ) -> Option<Compressor> {
        let policy = self.policies.compress.as_ref().filter(|_| !self.is_head)?;
        compress::begin(policy, self.coding, status, answer, length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::check;

    fn document(budget: &str) -> Document {
        let text = format!(
            "services: {{ s: {{}} }}
policies: {{ p: {{ rate_limit: {{ budget: b }} }}, q: {{ max_in_flight: 3 }} }}
budgets: {{ b: {budget} }}
routes:
  - {{ name: one, match: {{ path: /1 }}, service: s, policies: [p, q] }}
  - {{ name: two, match: {{ path: /2 }}, service: s, policies: [p, q] }}
  - {{ name: three, match: {{ path: /3 }}, service: s }}"
        );
        check::document(&text).unwrap_or_else(|problems| panic!("{problems:#?}"))
    }

    fn compiled(document: &Document, previous: &Memory) -> (Vec<Option<Arc<RoutePolicies>>>, Memory) {
        let (auths, services) = (Auths::default(), HashMap::new());
        let mut compiler = Compiler::new(document, &auths, &services, previous);
        let routes = document.routes.iter().map(|route| compiler.compile(route)).collect();
        (routes, compiler.into_memory())
    }

    #[test]
    fn what_is_spent_stays_spent_until_its_budget_changes() {
        const BUDGET: &str = "{ rate: 1, per: 1h, scope: node }";
        let (first, memory) = compiled(&document(BUDGET), &Memory::default());
        let (second, memory) = compiled(&document(BUDGET), &memory);
        let (third, _) = compiled(&document("{ rate: 2, per: 1h, scope: node }"), &memory);
        let [first, second, third] =
            [&first, &second, &third].map(|routes| Arc::clone(routes[0].as_ref().unwrap()));
        let limiter = |policies: &RoutePolicies| Arc::clone(&policies.rate_limits[0].limiter);
        assert!(Arc::ptr_eq(&limiter(&first), &limiter(&second)));
        assert!(!Arc::ptr_eq(&limiter(&second), &limiter(&third)));
        let counter = |policies: &RoutePolicies| Arc::clone(&policies.max_in_flight[0].now);
        assert!(Arc::ptr_eq(&counter(&first), &counter(&third)), "requests in flight stay counted");
    }

    #[test]
    fn routes_share_what_they_have_in_common() {
        let document = document("{ rate: 1, per: 1h, key: global, scope: node }");
        let (routes, _) = compiled(&document, &Memory::default());
        assert!(Arc::ptr_eq(routes[0].as_ref().unwrap(), routes[1].as_ref().unwrap()));
        assert!(routes[2].is_none());
    }

    #[test]
    fn each_route_may_have_a_budget_of_its_own() {
        let document = document("{ rate: 1, per: 1h, key: route, scope: node }");
        let (routes, _) = compiled(&document, &Memory::default());
        let limiter = |place: usize| Arc::clone(&routes[place].as_ref().unwrap().rate_limits[0].limiter);
        assert!(!Arc::ptr_eq(&limiter(0), &limiter(1)));
    }
}
