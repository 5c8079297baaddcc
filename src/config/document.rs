//! The gateway document as the gateway runs it: every default resolved, every reference checked.
//!
//! Job: the types that `check` fills from what an operator wrote and that the data plane compiles.
//! Invariants: a [`Document`] exists only if it is valid: every route's service is declared or may be
//! registered, every listener that a route names exists, names are unique. Neighbours: `check` makes it,
//! `control::compile` turns it and the registry into a `proxy::table::RoutingTable`.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

/// A valid gateway document.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Document {
    /// By name.
    pub listeners: BTreeMap<String, Listener>,
    /// By name.
    pub services: BTreeMap<String, Service>,
    /// In the document's order, which is the last rule of precedence.
    pub routes: Vec<Route>,
    /// Whose `X-Forwarded-*` headers are believed.
    pub trusted_proxies: Vec<IpNetwork>,
    /// Bounds on what a client may send.
    pub limits: Limits,
}

/// Where the gateway accepts connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// The document's address; a node's `bind` may replace it.
    pub address: SocketAddr,
}

/// What requests are sent to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// How an endpoint is chosen.
    pub balance: Balance,
    /// The endpoints of the document; instances registered under the service's name join them.
    pub endpoints: Vec<Endpoint>,
    /// How long each step may take.
    pub timeouts: Timeouts,
    /// The bounds of each worker's pool for this service.
    pub pool: Pool,
}

/// How an endpoint is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Balance {
    /// In turn.
    #[default]
    RoundRobin,
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
}

/// Which requests go where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Unique in the document.
    pub name: String,
    /// Names of listeners; empty means every HTTP listener.
    pub listeners: Vec<String>,
    /// Which requests.
    pub matches: Match,
    /// The name of the service.
    pub service: String,
    /// Bounds the whole of a request up to the answer's head; overrides the service's `timeouts.request`.
    pub timeout: Option<Duration>,
}

/// What a request must look like.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Match {
    /// Which host.
    pub host: HostPattern,
    /// Which path.
    pub path: PathPattern,
    /// Upper-case method names; empty means any.
    pub methods: Vec<String>,
}

/// Which host a route serves. Names are lower case.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum HostPattern {
    /// Any.
    #[default]
    Any,
    /// This one.
    Exact(String),
    /// Every name below this one: `*.example.com` is kept as `example.com`.
    Wildcard(String),
}

/// Which path a route serves.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum PathPattern {
    /// Any.
    #[default]
    Any,
    /// This one.
    Exact(String),
    /// This one and all below it: `/v1` matches `/v1` and `/v1/x`, not `/v10`.
    Prefix(String),
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
    /// Client connections on this node. Default 100,000.
    pub connections: usize,
}

// === impl Timeouts, Pool, Limits ===

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            request: Duration::from_secs(30),
            idle: Duration::from_secs(60),
        }
    }
}

impl Default for Pool {
    fn default() -> Self {
        Self { max_idle: 128, idle_timeout: Duration::from_secs(60), max_connections: 1024 }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header_bytes: 32 << 10,
            headers: 100,
            uri_bytes: 8 << 10,
            body_bytes: None,
            header_timeout: Duration::from_secs(10),
            connections: 100_000,
        }
    }
}

// === impl IpNetwork ===

impl IpNetwork {
    /// Whether `address` lies in the range; an IPv4 address mapped into IPv6 counts as IPv4.
    #[must_use]
    pub fn contains(&self, address: std::net::IpAddr) -> bool {
        use std::net::IpAddr::{V4, V6};
        match (self.address, address.to_canonical()) {
            (V4(network), V4(address)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
                network.to_bits() & mask == address.to_bits() & mask
            }
            (V6(network), V6(address)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
                network.to_bits() & mask == address.to_bits() & mask
            }
            (V4(_), V6(_)) | (V6(_), V4(_)) => false,
        }
    }
}
