//! What a route does with a request beside sending it on: a file a kind, and here the order they run in.
//!
//! The order is fixed, whatever the order in the document:
//! 1. `ip_filter`: `ip_allow`, `ip_deny`;
//! 2. `jwt`, `api_key`, `basic_auth`, `forward_auth`: who it is;
//! 3. `request_headers`, then the endpoint answers;
//! 4. `response_headers`, on every answer of the route, the gateway's own included.
//!
//! Invariants: a route without policies pays one branch; what can be decided at once is decided without an
//! `async` function; the state of a policy is the node's, and outlives a document that does not change it.
//! Policies see the head after hop-by-hop fields are gone (`headers::prepare_request`), so that a client cannot
//! name away in `Connection` what a policy adds. Neighbours: `table` compiles, `http` calls.

mod api_key;
mod auth;
mod basic_auth;
mod forward_auth;
mod headers;
mod ip_filter;
mod jwt;

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use http::{HeaderMap, Uri, request::Parts};

use self::{auth::Auth, forward_auth::ForwardAuth, ip_filter::IpFilter, jwt::Claims};
use super::{error::ProxyError, http::Client, record::Record, upstream::View};
use crate::config::document::{Document, HeaderEdit, PolicyKind, Route};

pub(super) use self::{
    auth::Auths,
    basic_auth::{Passwords, Verified},
};

/// A route's policies.
#[derive(Debug, Default)]
pub(super) struct RoutePolicies {
    ip_filter: IpFilter,
    /// In the order they run in.
    auth: Vec<Auth>,
    forward_auth: Option<ForwardAuth>,
    request_headers: Vec<HeaderEdit>,
    response_headers: Vec<HeaderEdit>,
}

/// A request on its way through the policies of its route.
#[derive(Debug)]
pub(super) struct Passing<'a> {
    /// As the endpoint will see it.
    pub(super) parts: &'a mut Parts,
    /// Its target, path in its one form.
    pub(super) uri: &'a mut Uri,
    /// Whose request it is.
    pub(super) client: IpAddr,
    /// What its token says, once that was verified.
    pub(super) claims: Option<Box<Claims>>,
}

/// What a request's policies know when its answer comes.
#[derive(Debug)]
pub(super) struct Passed {
    policies: Arc<RoutePolicies>,
}

// === impl RoutePolicies ===

impl RoutePolicies {
    /// The policies that `route` names; none if they do nothing.
    pub(super) fn compile(
        document: &Document,
        route: &Route,
        auths: &Auths,
        services: &HashMap<Arc<str>, usize>,
    ) -> Option<Arc<RoutePolicies>> {
        if route.policies.is_empty() {
            return None;
        }
        let mut auth: Vec<Auth> = route.policies.iter().flat_map(|name| auths.of(name)).cloned().collect();
        auth.sort_by_key(Auth::place);
        let mut compiled = RoutePolicies { auth, ..RoutePolicies::default() };
        let named = route.policies.iter().filter_map(|name| document.policies.get(name));
        for kind in named.flat_map(|policy| &policy.kinds) {
            match kind {
                PolicyKind::IpAllow(networks) => compiled.ip_filter.allow(networks),
                PolicyKind::IpDeny(networks) => compiled.ip_filter.deny(networks),
                // `auths` have them.
                PolicyKind::Jwt(_) | PolicyKind::ApiKey(_) | PolicyKind::BasicAuth(_) => {}
                PolicyKind::ForwardAuth(policy) => {
                    let place = services.get(policy.service.as_str());
                    compiled.forward_auth = place.map(|place| ForwardAuth::new(policy, *place));
                }
                PolicyKind::RequestHeaders(edit) => compiled.request_headers.push(edit.clone()),
                PolicyKind::ResponseHeaders(edit) => compiled.response_headers.push(edit.clone()),
            }
        }
        Some(Arc::new(compiled))
    }

    /// What happens before it is known who asks.
    pub(super) fn admit(&self, request: &mut Passing<'_>) -> Result<(), ProxyError> {
        if !self.ip_filter.is_empty() {
            self.ip_filter.check(request.client)?;
        }
        Ok(())
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
                Auth::ApiKey(api_key) => api_key.check(headers, request.uri)?,
                Auth::Basic(basic_auth) => {
                    basic_auth.check(headers, &worker.shared.passwords, &worker.verified).await?;
                }
            }
        }
        if let Some(forward_auth) = &self.forward_auth {
            forward_auth.check(request.parts, request.uri, client, view, record).await?;
        }
        Ok(())
    }

    /// What happens before the request is sent.
    pub(super) fn prepare(&self, request: &mut Passing<'_>) -> Result<(), ProxyError> {
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
