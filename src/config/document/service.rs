//! What requests are sent to.

use std::{ops::RangeInclusive, time::Duration};

/// What requests are sent to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Service {
    /// How an endpoint is chosen.
    pub balance: Balance,
    /// The endpoints of the document; instances registered under the service's name join them.
    pub endpoints: Vec<Endpoint>,
    /// How long each step may take.
    pub timeouts: Timeouts,
    /// The bounds of each worker's pool for this service.
    pub pool: Pool,
    /// Whether connections to its endpoints begin with a PROXY header.
    pub send_proxy_protocol: Option<ProxyProtocol>,
    /// How endpoints are asked whether they are well; none: they are not.
    pub health_check: Option<HealthCheck>,
    /// When an endpoint that fails is kept out; none: never.
    pub outlier: Option<Outlier>,
    /// When an endpoint is left in peace; none: never.
    pub circuit_breaker: Option<CircuitBreaker>,
    /// How long a new or recovered endpoint takes to its full share.
    pub slow_start: Option<Duration>,
    /// Keeps a client's requests at one endpoint.
    pub sticky: Option<Sticky>,
}

/// A version of the PROXY protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyProtocol {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

/// How an endpoint is chosen.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Balance {
    /// In turn.
    #[default]
    RoundRobin,
    /// In turn by weight, as evenly spread as can be.
    WeightedRoundRobin,
    /// The one with the fewest requests under way for its weight.
    LeastConnections,
    /// The better of two by latency and requests under way.
    PeakEwma,
    /// At random by weight.
    Random,
    /// The same one for the same key.
    ConsistentHash(HashOn),
}

/// What a request's endpoint depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HashOn {
    /// The value of a header field.
    Header(http::HeaderName),
    /// The value of a cookie.
    Cookie(String),
    /// The client's address without its port.
    ClientIp,
    /// The path in its normal form, without the query.
    Path,
}

/// One address of a service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// `host:port`; the host is an IP address or a name, IPv6 in brackets.
    pub address: String,
    /// 1 … 65535; used by the weighted balancers.
    pub weight: u32,
}

/// How endpoints are asked whether they are well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    /// What is asked.
    pub probe: Probe,
    /// From one probe to the next. Default 5 s.
    pub interval: Duration,
    /// How long a probe may take. Default 2 s.
    pub timeout: Duration,
    /// Failed probes in a row. Default 3.
    pub unhealthy_after: u32,
    /// Good probes in a row. Default 2.
    pub healthy_after: u32,
}

/// What a health check asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// Whether a connection can be opened.
    Tcp,
    /// What GET of a path is answered with.
    Http {
        /// With its query. Default `/`.
        path: String,
        /// Good status codes. Default 200 to 299.
        expect: Vec<RangeInclusive<u16>>,
    },
}

/// When an endpoint that fails is kept out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outlier {
    /// Errors in a row. Default 5.
    pub consecutive_errors: u32,
    /// The first time; longer when it repeats. Default 30 s.
    pub eject_for: Duration,
    /// Of the service's endpoints, at once. Default 50.
    pub max_ejected_percent: u32,
}

/// When an endpoint is left in peace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CircuitBreaker {
    /// Failures within `window`. Default 5.
    pub failures: u32,
    /// Default 10 s.
    pub window: Duration,
    /// Good requests, one at a time, that close it. Default 1.
    pub successes: u32,
    /// How long nothing is sent. Default 30 s.
    pub open_for: Duration,
}

/// Keeps a client's requests at one endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sticky {
    /// The cookie's name.
    pub cookie: String,
    /// How long the client keeps it; none: until it is closed.
    pub ttl: Option<Duration>,
}

/// How long each step of a request may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// To open a connection to an endpoint. Default 2 s.
    pub connect: Duration,
    /// From the request's last byte sent upstream to the answer's head. Default 30 s.
    pub request: Duration,
    /// Between two pieces of a body, either way. Default 60 s.
    pub idle: Duration,
    /// For how long nothing may move on a stream or an upgraded connection: `idle` where that is written.
    /// Default 1 h.
    pub stream: Duration,
}

/// The bounds of a pool of upstream connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// Idle connections kept to each endpoint. Default 128.
    pub max_idle: usize,
    /// How long an idle connection is kept. Default 60 s.
    pub idle_timeout: Duration,
    /// Connections to each endpoint, idle or not. Default 1024.
    pub max_connections: usize,
    /// Streams to each endpoint: `max_connections` where that is written. Default: no bound.
    pub max_streams: usize,
}

// === impl HealthCheck, Outlier, CircuitBreaker ===

impl Default for HealthCheck {
    fn default() -> Self {
        Self {
            probe: Probe::Http { path: "/".to_owned(), expect: vec![200..=299] },
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(2),
            unhealthy_after: 3,
            healthy_after: 2,
        }
    }
}

impl Default for Outlier {
    fn default() -> Self {
        Self { consecutive_errors: 5, eject_for: Duration::from_secs(30), max_ejected_percent: 50 }
    }
}

impl Default for CircuitBreaker {
    fn default() -> Self {
        Self { failures: 5, window: Duration::from_secs(10), successes: 1, open_for: Duration::from_secs(30) }
    }
}

// === impl Timeouts, Pool ===

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            request: Duration::from_secs(30),
            idle: Duration::from_secs(60),
            stream: Duration::from_secs(3600),
        }
    }
}

impl Default for Pool {
    fn default() -> Self {
        Self {
            max_idle: 128,
            idle_timeout: Duration::from_secs(60),
            max_connections: 1024,
            max_streams: usize::MAX,
        }
    }
}
