//! What a route does with a request beside sending it on: a file a kind, and here the order they run in.
//!
//! The order is fixed, whatever the order in the document:
//! 1. `ip_filter`: `ip_allow`, `ip_deny`;
//! 2. [forward] — what follows sees the head as the endpoint will;
//! 3. `request_headers`, then the endpoint answers;
//! 4. `response_headers`, on every answer of the route, the gateway's own included.
//!
//! Invariants: a route without policies pays one branch; what can be decided at once is decided without an
//! `async` function; the state of a policy is the node's, and outlives a document that does not change it.
//! Policies see the head after hop-by-hop fields are gone (`headers::prepare_request`), so that a client cannot
//! name away in `Connection` what a policy adds. Neighbours: `table` compiles, `http` calls.

mod headers;
mod ip_filter;

use std::{net::IpAddr, sync::Arc};

use http::{HeaderMap, request::Parts};

use self::ip_filter::IpFilter;
use super::error::ProxyError;
use crate::config::document::{Document, HeaderEdit, PolicyKind, Route};

/// A route's policies.
#[derive(Debug, Default)]
pub(super) struct RoutePolicies {
    ip_filter: IpFilter,
    request_headers: Vec<HeaderEdit>,
    response_headers: Vec<HeaderEdit>,
}

/// A request on its way through the policies of its route.
#[derive(Debug)]
pub(super) struct Passing<'a> {
    /// As the endpoint will see it.
    pub(super) parts: &'a mut Parts,
    /// Whose request it is.
    pub(super) client: IpAddr,
}

/// What a request's policies know when its answer comes.
#[derive(Debug)]
pub(super) struct Passed {
    policies: Arc<RoutePolicies>,
}

// === impl RoutePolicies ===

impl RoutePolicies {
    /// The policies that `route` names; none if they do nothing.
    pub(super) fn compile(document: &Document, route: &Route) -> Option<Arc<RoutePolicies>> {
        if route.policies.is_empty() {
            return None;
        }
        let mut compiled = RoutePolicies::default();
        let named = route.policies.iter().filter_map(|name| document.policies.get(name));
        for kind in named.flat_map(|policy| &policy.kinds) {
            match kind {
                PolicyKind::IpAllow(networks) => compiled.ip_filter.allow(networks),
                PolicyKind::IpDeny(networks) => compiled.ip_filter.deny(networks),
                PolicyKind::RequestHeaders(edit) => compiled.request_headers.push(edit.clone()),
                PolicyKind::ResponseHeaders(edit) => compiled.response_headers.push(edit.clone()),
            }
        }
        Some(Arc::new(compiled))
    }

    /// What happens before the request is sent.
    pub(super) fn admit(&self, request: &mut Passing<'_>) -> Result<(), ProxyError> {
        if !self.ip_filter.is_empty() {
            self.ip_filter.check(request.client)?;
        }
        for edit in &self.request_headers {
            headers::edit(&mut request.parts.headers, edit);
        }
        Ok(())
    }
}

// === impl Passed ===

impl Passed {
    pub(super) fn new(policies: &Arc<RoutePolicies>) -> Box<Passed> {
        Box::new(Passed { policies: Arc::clone(policies) })
    }

    /// What happens to the head of the answer, whoever gave it.
    pub(super) fn finish(&self, headers: &mut HeaderMap) {
        for edit in &self.policies.response_headers {
            headers::edit(headers, edit);
        }
    }
}
