//! What requests are sent to.

use std::time::Duration;

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
