//! The gateway document as the gateway runs it: every default resolved, every reference checked.
//!
//! Job: the types that `check` fills from what an operator wrote and that the data plane compiles.
//! Invariants: a [`Document`] exists only if it is valid: every route's service is declared or may be
//! registered, every listener that a route names exists, names are unique. Neighbours: `check` makes it,
//! `control::compile` turns it and the registry into a `proxy::table::RoutingTable`.

mod action;
mod auth;
mod listener;
mod policy;
mod route;
mod service;

use std::{collections::BTreeMap, time::Duration};

pub use self::{
    action::{Action, Mirror, Part, Redirect, Respond, Share},
    auth::{
        ApiKey, ApiKeys, BasicAuth, ForwardAuth, HOW_TO_HASH_A_KEY, HttpUrl, Jwt, JwtKeys, Secret, SkipPath,
        Users, sha256_hash,
    },
    listener::{ConnectionRate, Listener, Protocol},
    policy::{
        Budget, BudgetKey, Coding, Compress, Cors, HeaderEdit, Origin, Policy, PolicyKind, RequestIdPolicy,
        TrustId,
    },
    route::{HostPattern, Match, PathPattern, Retries, RetryOn, Route, Wanted},
    service::{
        Balance, CircuitBreaker, Endpoint, HashOn, HealthCheck, Outlier, Pool, Probe, ProxyProtocol, Service,
        Sticky, Timeouts,
    },
};

/// A valid gateway document.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Document {
    /// By name.
    pub listeners: BTreeMap<String, Listener>,
    /// By name.
    pub services: BTreeMap<String, Service>,
    /// In the document's order, which is the last rule of precedence.
    pub routes: Vec<Route>,
    /// By name.
    pub policies: BTreeMap<String, Policy>,
    /// By name.
    pub budgets: BTreeMap<String, Budget>,
    /// Whose `X-Forwarded-*` headers are believed.
    pub trusted_proxies: Vec<IpNetwork>,
    /// Whether endpoints are sent `Forwarded` (RFC 7239) beside `X-Forwarded-*`.
    pub forwarded: bool,
    /// Bounds on what a client may send.
    pub limits: Limits,
}

/// A range of addresses in CIDR notation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpNetwork {
    /// The first address of the range.
    pub address: std::net::IpAddr,
    /// How many leading bits are fixed.
    pub prefix: u8,
}

/// Bounds on what a client may send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a request's head, request line included. Default 32 KiB.
    pub header_bytes: usize,
    /// Header fields of a request. Default 100.
    pub headers: usize,
    /// Bytes of the request target. Default 8 KiB.
    pub uri_bytes: usize,
    /// Bytes of a request's body; none means no bound.
    pub body_bytes: Option<u64>,
    /// From the first byte of a request's head to its last. Default 10 s.
    pub header_timeout: Duration,
    /// How long a connection may wait for its next request. Default 75 s.
    pub keep_alive: Duration,
    /// Bytes of a body in a second that a client must keep up; 0: none. Default 256.
    pub body_rate_min: u64,
    /// How far a client may fall behind that. Default 10 s.
    pub body_rate_grace: Duration,
    /// Client connections on this node. Default 100,000.
    pub connections: usize,
}

// === impl Limits ===

impl Default for Limits {
    fn default() -> Self {
        Self {
            header_bytes: 32 << 10,
            headers: 100,
            uri_bytes: 8 << 10,
            body_bytes: None,
            header_timeout: Duration::from_secs(10),
            keep_alive: Duration::from_secs(75),
            body_rate_min: 256,
            body_rate_grace: Duration::from_secs(10),
            connections: 100_000,
        }
    }
}
