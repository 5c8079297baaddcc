//! The routing table: a gateway document and the registry, compiled for requests.
//!
//! Job: everything a request needs to know, immutable, shared by all workers and swapped by pointer.
//! Invariants: a table is complete: every route's upstream is in it. A part that did not change keeps its
//! `Arc` in the next table, which is how workers know that its pools and counters go on.
//! Neighbours: `control::compile` asks for it, `route_match` is its index, `upstream` lives what it describes.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::net::TcpStream;
use tracing::warn;

use super::{
    action::{Action, CompiledRoute, PreviousTurns, RouteCompiler},
    balance::{Ring, hash_of},
    client_address::TrustedProxies,
    endpoint::{EndpointState, ServiceState},
    policy::{Auths, Compiler, Memory},
    route_match::RouteIndex,
};
use crate::config::document::{
    Balance, ConnectionRate, Document, Endpoint, HostPattern, Limits, Listener, Protocol, Route, Service,
};

/// Where every request goes.
#[derive(Debug, Clone, Default)]
pub struct RoutingTable {
    version: u64,
    /// What only a document changes.
    pub(super) routing: Arc<Routing>,
    /// Indexed by [`super::action::Branch::upstream`].
    pub(super) upstreams: Vec<Arc<Upstream>>,
    /// By the number of the open listener: a listener takes its new name in the same swap as its routes.
    indexes: Arc<HashMap<u64, Arc<RouteIndex>>>,
    /// By the number of the open listener, too.
    served: Arc<HashMap<u64, Arc<CompiledListener>>>,
}

/// The part of a table that only a document changes.
#[derive(Debug, Default)]
pub(super) struct Routing {
    pub(super) listeners: BTreeMap<String, Listener>,
    /// By listener name; those for HTTP.
    indexes: HashMap<Box<str>, Arc<RouteIndex>>,
    /// By listener name.
    compiled: HashMap<Box<str>, Arc<CompiledListener>>,
    pub(super) routes: Vec<CompiledRoute>,
    /// What requests are counted by: a route's name and a service's, empty where there is none.
    pub(super) counted: Vec<(Arc<str>, Arc<str>)>,
    pub(super) trusted_proxies: TrustedProxies,
    pub(super) forwarded: bool,
    pub(super) limits: Arc<Limits>,
    /// What the next document's policies go on with.
    memory: Memory,
    /// Whether some service's connections begin with a PROXY header.
    pub(super) announces: bool,
    /// Service name → its place in the table's upstreams.
    services: HashMap<Arc<str>, usize>,
    /// The state of policies that ask who it is.
    pub(super) auths: Auths,
}

/// A listener as its new connections use it.
#[derive(Debug)]
pub(super) struct CompiledListener {
    pub(super) destination: Destination,
    pub(super) proxy_protocol: bool,
    pub(super) connections_max: usize,
    pub(super) rate: Option<ConnectionRate>,
    /// None: what the service says.
    pub(super) idle: Option<Duration>,
}

/// Where a listener's connections go; numbers are places in the table's upstreams.
#[derive(Debug)]
pub(super) enum Destination {
    /// Where the routes say.
    Routes,
    Service(usize),
    /// By the name that a TLS client asks for.
    Names(ServerNames),
}

/// Names that TLS clients ask for.
#[derive(Debug, Default)]
pub(super) struct ServerNames {
    exact: HashMap<Box<str>, usize>,
    /// Without their `*.`.
    wildcards: HashMap<Box<str>, usize>,
    fallback: Option<usize>,
}

/// A service's endpoints and settings, as every worker lives them.
#[derive(Debug)]
pub(super) struct Upstream {
    pub(super) name: Arc<str>,
    name_hash: u64,
    pub(super) service: Arc<Service>,
    /// Declared and registered, in order, each address once.
    pub(super) endpoints: Vec<PlannedEndpoint>,
    /// For `consistent_hash` alone.
    pub(super) ring: Option<Ring>,
    pub(super) state: Arc<ServiceState>,
    /// For `sticky` alone: where the endpoints that [`Upstream::pin`] stands for are.
    pins: HashMap<u64, usize>,
}

/// An endpoint of an upstream.
#[derive(Debug, Clone)]
pub(super) struct PlannedEndpoint {
    pub(super) target: Target,
    pub(super) weight: u32,
    /// Goes on as long as the service has the address.
    pub(super) state: Arc<EndpointState>,
}

/// One endpoint's address, read once.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Target {
    /// As written.
    pub(super) address: Arc<str>,
    /// Known already, or to be asked for at each connect.
    pub(super) location: Location,
    /// Stands for the address, the same on every node and after every start.
    pub(super) id: u64,
}

/// Where an endpoint is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Location {
    /// The address was written as one.
    Address(SocketAddr),
    /// A name and port, looked up when a connection is opened.
    Name,
}

/// Why a document cannot be compiled.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CompileError {
    /// An endpoint's address cannot be read.
    #[error("service {service}: endpoint {address:?} is not host:port")]
    Endpoint {
        /// The service's name.
        service: String,
        /// The address as written.
        address: String,
    },
    /// A route names a listener that does not exist.
    #[error("route {route}: there is no listener {listener:?}")]
    Listener {
        /// The route's name.
        route: String,
        /// The listener as written.
        listener: String,
    },
    /// A host's regular expressions cannot be put together.
    #[error("the path_regex expressions of a host: {0}")]
    Expressions(String),
    /// A policy's file cannot be used on this node.
    #[error("policy {policy}: {reason}")]
    Policy {
        /// The policy's name.
        policy: String,
        /// What is wrong, naming the file.
        reason: String,
    },
}

// === impl RoutingTable ===

impl RoutingTable {
    /// Compiles a document with the registered instances by service name. Upstreams that equal `previous`'s
    /// are carried over.
    pub fn compile(
        version: u64,
        document: &Document,
        registered: &BTreeMap<String, Vec<Endpoint>>,
        previous: &RoutingTable,
    ) -> Result<RoutingTable, CompileError> {
        let mut upstreams = Vec::new();
        let mut services = HashMap::new();
        let undeclared = Service::default();
        let routed = document.routes.iter().flat_map(Route::services);
        let streamed = document.listeners.values().flat_map(Listener::services);
        for name in document.services.keys().chain(routed).chain(streamed) {
            if services.contains_key(name.as_str()) {
                continue;
            }
            let service = document.services.get(name).unwrap_or(&undeclared);
            let service = Arc::new(service.clone());
            let registered = registered.get(name).map_or(&[][..], Vec::as_slice);
            let before = previous.upstream(name);
            let upstream = Upstream::new(&name.as_str().into(), &service, registered, before)?;
            services.insert(Arc::clone(&upstream.name), upstreams.len());
            upstreams.push(previous.carry_over(upstream));
        }
        let auths = Auths::compile(document, &previous.routing.auths)
            .map_err(|(policy, reason)| CompileError::Policy { policy, reason })?;
        let routing = Routing::new(document, services, auths, &previous.routing)?;
        Ok(RoutingTable {
            version,
            routing: Arc::new(routing),
            upstreams,
            indexes: Arc::default(),
            served: Arc::default(),
        })
    }

    /// The same table with other registered instances for one service; a service that no route uses
    /// changes nothing.
    #[must_use]
    #[expect(clippy::needless_pass_by_value, reason = "callers have made the list for this call")]
    pub fn with_endpoints(&self, service: &str, registered: Vec<Endpoint>) -> RoutingTable {
        let mut table = self.clone();
        if let Some(place) = self.routing.services.get(service)
            && let Some(upstream) = table.upstreams.get_mut(*place)
        {
            let changed = Upstream::joined(&upstream.name, &upstream.service, &registered, Some(upstream));
            if !changed.is_same(upstream) {
                *upstream = Arc::new(changed);
            }
        }
        table
    }

    /// The document's version; 0 before the first.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Says which open listeners, by number and name, the table serves.
    pub(super) fn serve<'a>(&mut self, listeners: impl Iterator<Item = (u64, &'a str)>) {
        let (mut indexes, mut served) = (HashMap::new(), HashMap::new());
        for (id, name) in listeners {
            indexes.extend(self.routing.indexes.get(name).map(|index| (id, Arc::clone(index))));
            served.extend(self.routing.compiled.get(name).map(|listener| (id, Arc::clone(listener))));
        }
        (self.indexes, self.served) = (Arc::new(indexes), Arc::new(served));
    }

    /// What an open listener does with new connections; none: the table no longer has it.
    pub(super) fn listener(&self, listener: u64) -> Option<&Arc<CompiledListener>> {
        self.served.get(&listener)
    }

    /// The routes of an open listener.
    pub(super) fn index(&self, listener: u64) -> Option<&RouteIndex> {
        self.indexes.get(&listener).map(|index| &**index)
    }

    /// Whether what `peer` says about its client is believed.
    pub(super) fn trusts(&self, peer: IpAddr) -> bool {
        self.routing.trusted_proxies.contain(peer)
    }

    fn upstream(&self, service: &str) -> Option<&Arc<Upstream>> {
        self.upstreams.get(*self.routing.services.get(service)?)
    }

    fn carry_over(&self, upstream: Upstream) -> Arc<Upstream> {
        match self.upstream(&upstream.name) {
            Some(previous) if previous.is_same(&upstream) => Arc::clone(previous),
            _ => Arc::new(upstream),
        }
    }
}

// === impl Routing ===

impl Routing {
    fn new(
        document: &Document,
        services: HashMap<Arc<str>, usize>,
        auths: Auths,
        previous: &Routing,
    ) -> Result<Routing, CompileError> {
        let mut routes = Vec::with_capacity(document.routes.len());
        let mut compiler = RouteCompiler {
            services: &services,
            previous: previous.turns(),
            counted: Vec::new(),
            policies: Compiler::new(document, &auths, &services, &previous.memory),
        };
        for route in &document.routes {
            if let Some(listener) =
                route.listeners.iter().find(|name| !document.listeners.contains_key(*name))
            {
                let (route, listener) = (route.name.clone(), listener.clone());
                return Err(CompileError::Listener { route, listener });
            }
            routes.push(compiler.compile(route));
        }
        let (counted, memory) = (compiler.counted, compiler.policies.into_memory());
        Ok(Routing {
            listeners: document.listeners.clone(),
            indexes: Self::indexes(document)?,
            compiled: document
                .listeners
                .iter()
                .map(|(name, listener)| {
                    (name.as_str().into(), Arc::new(CompiledListener::new(listener, &services)))
                })
                .collect(),
            routes,
            counted,
            trusted_proxies: TrustedProxies::new(&document.trusted_proxies),
            forwarded: document.forwarded,
            limits: Arc::new(document.limits.clone()),
            memory,
            announces: document.services.values().any(|service| service.send_proxy_protocol.is_some()),
            services,
            auths,
        })
    }

    /// One index for each listener; listeners that no route names share one.
    fn indexes(document: &Document) -> Result<HashMap<Box<str>, Arc<RouteIndex>>, CompileError> {
        let serves = |route: &Route, listener: &str| {
            route.listeners.is_empty() || route.listeners.iter().any(|name| name == listener)
        };
        let mut shared: Option<Arc<RouteIndex>> = None;
        let mut indexes = HashMap::new();
        let http = document.listeners.iter().filter(|(_, listener)| listener.is_http());
        for (listener, _) in http {
            let named = document.routes.iter().any(|route| route.listeners.contains(listener));
            let index = match &shared {
                Some(shared) if !named => Arc::clone(shared),
                _ => {
                    let index = RouteIndex::new(&document.routes, |route| serves(route, listener));
                    Arc::new(index.map_err(|error| CompileError::Expressions(error.to_string()))?)
                }
            };
            if !named {
                shared = Some(Arc::clone(&index));
            }
            indexes.insert(listener.as_str().into(), index);
        }
        Ok(indexes)
    }

    /// The turns of each split and mirror by its route's name, to be carried over.
    fn turns(&self) -> HashMap<&str, PreviousTurns<'_>> {
        let mut turns = HashMap::new();
        for route in &self.routes {
            let split = match &route.action {
                Action::Split(split) => Some(&split.turns),
                Action::Send(_) | Action::Answer(_) => None,
            };
            let mirror = route.mirror.as_ref().map(|mirror| &mirror.turns);
            if split.is_some() || mirror.is_some() {
                turns.insert(&*route.name, PreviousTurns { split, mirror });
            }
        }
        turns
    }
}

// === impl CompiledListener, ServerNames ===

impl CompiledListener {
    fn new(listener: &Listener, services: &HashMap<Arc<str>, usize>) -> Self {
        let place = |service: &str| {
            *services.get(service).expect("compile gave every service that a listener names an upstream")
        };
        let destination = match &listener.protocol {
            Protocol::Http => Destination::Routes,
            Protocol::Tcp { service } => Destination::Service(place(service)),
            Protocol::TlsPassthrough { sni, service } => {
                let fallback = service.as_deref().map(place);
                let mut names = ServerNames { fallback, ..ServerNames::default() };
                for (pattern, service) in sni {
                    match pattern {
                        HostPattern::Any => names.fallback = Some(place(service)),
                        HostPattern::Exact(name) => {
                            names.exact.insert(name.as_str().into(), place(service));
                        }
                        HostPattern::Wildcard(name) => {
                            names.wildcards.insert(name.as_str().into(), place(service));
                        }
                    }
                }
                Destination::Names(names)
            }
        };
        Self {
            destination,
            proxy_protocol: listener.proxy_protocol,
            connections_max: listener.connections.unwrap_or(usize::MAX),
            rate: listener.connection_rate,
            idle: listener.idle_timeout,
        }
    }
}

impl ServerNames {
    /// Where a client that asks for `name` goes: the exact name first, then the longest wildcard.
    pub(super) fn find(&self, name: Option<&str>) -> Option<usize> {
        let Some(name) = name else { return self.fallback };
        if let Some(place) = self.exact.get(name) {
            return Some(*place);
        }
        let parents = name.match_indices('.').map(|(dot, _)| &name[dot + 1..]);
        let wildcard = parents.filter_map(|parent| self.wildcards.get(parent)).next();
        wildcard.copied().or(self.fallback)
    }
}

// === impl Upstream ===

impl Upstream {
    fn new(
        name: &Arc<str>,
        service: &Arc<Service>,
        registered: &[Endpoint],
        before: Option<&Arc<Upstream>>,
    ) -> Result<Upstream, CompileError> {
        if let Some(bad) = service.endpoints.iter().find(|endpoint| Target::new(endpoint).is_none()) {
            let (service, address) = (name.to_string(), bad.address.clone());
            return Err(CompileError::Endpoint { service, address });
        }
        Ok(Self::joined(name, service, registered, before))
    }

    /// A registered address that cannot be read is left out: one bad instance must not take a service down.
    fn joined(
        name: &Arc<str>,
        service: &Arc<Service>,
        registered: &[Endpoint],
        before: Option<&Arc<Upstream>>,
    ) -> Upstream {
        let state = before.map_or_else(Arc::default, |before| Arc::clone(&before.state));
        let known: HashMap<&str, &Arc<EndpointState>> = before
            .map_or(&[][..], |before| &before.endpoints)
            .iter()
            .map(|endpoint| (&*endpoint.target.address, &endpoint.state))
            .collect();
        let state_of = |address: &str| match known.get(address) {
            Some(state) => Arc::clone(state),
            None => Arc::new(EndpointState::new(Arc::clone(&state))),
        };
        let declared = &service.endpoints;
        let mut endpoints = Vec::with_capacity(declared.len() + registered.len());
        let mut seen = std::collections::HashSet::new();
        for endpoint in declared.iter().chain(registered) {
            if !seen.insert(endpoint.address.as_str()) {
                continue;
            }
            match Target::new(endpoint) {
                Some(target) => {
                    let (weight, state) = (endpoint.weight.max(1), state_of(&target.address));
                    endpoints.push(PlannedEndpoint { target, weight, state });
                }
                None => {
                    warn!(service = %name, address = %endpoint.address, "instance left out: not host:port");
                }
            }
        }
        let ring = matches!(service.balance, Balance::ConsistentHash(_))
            .then(|| Ring::new(endpoints.iter().map(|endpoint| (endpoint.target.id, endpoint.weight))));
        let mut upstream = Upstream {
            name: Arc::clone(name),
            name_hash: hash_of(name.as_bytes()),
            service: Arc::clone(service),
            endpoints,
            ring,
            state,
            pins: HashMap::new(),
        };
        if service.sticky.is_some() {
            let pins = upstream.endpoints.iter().enumerate();
            upstream.pins = pins.map(|(place, endpoint)| (upstream.pin(endpoint.target.id), place)).collect();
        }
        upstream
    }

    /// Whether nothing that was written or registered differs.
    fn is_same(&self, other: &Upstream) -> bool {
        let same = |(one, other): (&PlannedEndpoint, &PlannedEndpoint)| {
            (&one.target, one.weight) == (&other.target, other.weight)
        };
        self.name == other.name
            && self.service == other.service
            && self.endpoints.len() == other.endpoints.len()
            && self.endpoints.iter().zip(&other.endpoints).all(same)
    }

    /// What stands for an endpoint of this service and no other one, outside of this process.
    pub(super) fn pin(&self, id: u64) -> u64 {
        self.name_hash ^ id
    }

    /// Where the endpoint is that a pin stands for.
    pub(super) fn place_of(&self, pin: u64) -> Option<usize> {
        self.pins.get(&pin).copied()
    }
}

// === impl Target ===

impl Target {
    pub(super) fn new(endpoint: &Endpoint) -> Option<Target> {
        let address = Arc::from(endpoint.address.as_str());
        let id = hash_of(endpoint.address.as_bytes());
        if let Ok(socket_address) = endpoint.address.parse() {
            return Some(Target { address, location: Location::Address(socket_address), id });
        }
        let (host, port) = endpoint.address.rsplit_once(':')?;
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
        let valid = !host.is_empty() && host.bytes().all(is_name) && port.parse::<u16>().is_ok_and(|p| p > 0);
        valid.then_some(Target { address, location: Location::Name, id })
    }

    /// Opens a connection; the caller minds the time. Each of a name's addresses is tried in turn.
    pub(super) async fn connect(&self) -> io::Result<TcpStream> {
        let tcp = match self.location {
            Location::Address(address) => TcpStream::connect(address).await?,
            Location::Name => TcpStream::connect(&*self.address).await?,
        };
        tcp.set_nodelay(true)?;
        Ok(tcp)
    }
}
