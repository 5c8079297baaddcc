//! The data plane: moves bytes between clients and endpoints.
//!
//! Job: [`Proxy`] owns the workers and the table they serve by. Invariants: nothing here names the cluster or
//! the control plane, and nothing here waits for either: a request is answered from this process's memory.
//! Neighbours: `control::publish` is the only caller of [`Proxy::publish`].
//!
//! The life of a request:
//! 1. [`listener`] accepts under a permit; [`client`] serves the connection; [`stream`] shows every byte to
//!    [`framing`], which refuses what is ambiguous, before hyper parses it.
//! 2. [`http`] answers a request by the worker's view of the table ([`upstream::View`]), the same to the end.
//! 3. [`path`] puts the path into its one form, [`route_match`] finds the route, or 404, or 405.
//! 4. [`headers`] makes the client's head the endpoint's; the route's policies run, in [`policy`]'s order.
//! 5. The route sends it to a service, to one of several in turns ([`split`]), or answers itself ([`fixed`]);
//!    a copy may go to another service ([`mirror`]).
//! 6. [`upstream`] chooses the endpoint, by [`balance`] and [`sticky`], among those that [`endpoint`] has nothing
//!    against ([`health`], [`outlier`], [`breaker`]); [`pool`] lends a connection or opens one; [`forward`] sends, and
//!    [`retry`] decides whether a failure may be met by sending again; [`outgoing`] is
//!    the request in bytes, [`connection`] sends it, [`upload`] streams its body.
//! 7. The answer streams back ([`forward::AnswerBody`]); its connection returns to the pool.
//! 8. A failure at any step is one [`error::ProxyError`], and [`error`] alone makes it an answer. After
//!    a 101 that was asked for, [`upgrade`] carries what follows with [`relay`].
//! 9. [`record`] has [`figures`] count the request when its body is gone, and the access log take its line.
//!
//! The life of a stream, on a listener that is not for HTTP:
//! 1. [`listener`] accepts as above, and reads the PROXY header where there is to be one ([`proxy_protocol`]).
//! 2. [`tcp`] finds the service: the listener's, or the one of the name that a TLS client asks for
//!    ([`client_hello`]).
//! 3. [`balance`] chooses the endpoint; another one is tried while nothing was sent.
//! 4. [`relay`] copies both ways until both have ended; a new table changes nothing for it.

mod action;
mod alarm;
mod backends;
mod balance;
mod breaker;
mod client;
mod client_address;
mod client_hello;
mod connection;
mod connection_rate;
mod cookie;
mod endpoint;
mod error;
mod figures;
mod fixed;
mod forward;
mod framing;
mod headers;
mod health;
mod http;
mod keeper;
mod limiter;
mod listener;
mod mirror;
mod networks;
mod outgoing;
mod outlier;
mod path;
mod policy;
mod pool;
mod proxy_protocol;
mod query;
mod record;
mod relay;
mod retry;
mod route_match;
mod socket;
mod split;
mod sticky;
mod stream;
mod table;
mod tcp;
mod upgrade;
mod upload;
mod upstream;
mod worker;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    net::{SocketAddr, TcpListener},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use tokio::sync::oneshot;

use self::{
    health::Prober,
    keeper::Keeper,
    listener::{Bound, NodeListener},
    policy::Passwords,
    worker::{Command, Shared, WorkerHandle},
};
use crate::telemetry::{access_log, metrics::Traffic};

pub use self::{
    backends::{Backend, Backends},
    table::{CompileError, RoutingTable},
};

/// How long a scrape waits for a worker.
const GATHER_WAIT: Duration = Duration::from_secs(2);

/// What the data plane needs to start.
#[derive(Debug, Clone)]
pub struct ProxyConfig {
    /// Threads; at least 1.
    pub workers: usize,
    /// Listener name → the address to open instead of the document's.
    pub bind: BTreeMap<String, SocketAddr>,
    /// How long to go on accepting after the drain began.
    pub drain_wait: Duration,
    /// How long work may take to finish after that.
    pub drain_deadline: Duration,
    /// Where requests are logged, if they are.
    pub access_log: Option<access_log::Handle>,
}

/// A running data plane.
#[derive(Debug)]
pub struct Proxy {
    config: ProxyConfig,
    shared: Arc<Shared>,
    workers: Vec<WorkerHandle>,
    prober: Prober,
    open: Mutex<Vec<OpenListener>>,
    /// One publication at a time; it is held across awaits, `open` is not.
    publishing: tokio::sync::Mutex<()>,
    next_listener: AtomicUsize,
    /// Started when a table first has something to keep fresh.
    keeper: Mutex<Option<Keeper>>,
    draining: AtomicBool,
}

/// Why a table was not put into force.
#[derive(Debug, thiserror::Error)]
#[error("listener {listener}: cannot open {address}: {reason}")]
pub struct PublishError {
    /// The listener's name in the document.
    pub listener: String,
    /// The address that was asked for.
    pub address: SocketAddr,
    /// What the system said, and what to do.
    pub reason: String,
}

/// A listener that the workers accept on.
#[derive(Debug, Clone)]
struct OpenListener {
    id: u64,
    name: Arc<str>,
    requested: SocketAddr,
    node: Arc<NodeListener>,
}

/// The ports of a table's new listeners, taken before it is in force, so that nobody has them when it is.
#[derive(Debug, Default)]
pub struct Reserved {
    ports: HashMap<Port, Bound>,
}

/// What tells listeners apart: the address, and for any port (0) the name too.
type Port = (SocketAddr, Option<String>);

/// What it takes to go from the open listeners to a table's.
#[derive(Default)]
struct Plan {
    next: Vec<OpenListener>,
    renamed: Vec<(u64, Arc<str>)>,
    gone: Vec<u64>,
    /// With a socket for each worker.
    new: Vec<(OpenListener, Vec<TcpListener>)>,
}

// === impl Proxy ===

impl Proxy {
    /// Starts the workers with an empty table: no listeners, and 404 everywhere.
    pub fn start(config: ProxyConfig) -> io::Result<Proxy> {
        let shared = Arc::new(Shared {
            table: ArcSwap::from_pointee(RoutingTable::default()),
            connections: Arc::default(),
            passwords: Passwords::default(),
        });
        let workers = (0..config.workers.max(1))
            .map(|number| WorkerHandle::start(number, Arc::clone(&shared), config.access_log.clone()))
            .collect::<io::Result<_>>()?;
        Ok(Proxy {
            config,
            shared,
            workers,
            prober: Prober::start()?,
            open: Mutex::default(),
            publishing: tokio::sync::Mutex::default(),
            next_listener: AtomicUsize::new(0),
            keeper: Mutex::default(),
            draining: AtomicBool::new(false),
        })
    }

    /// Takes the ports that `table` needs and that are not open, or says which one cannot be had. What is not
    /// published is given back when it is dropped.
    pub async fn reserve(&self, table: &RoutingTable) -> Result<Reserved, PublishError> {
        let _one_at_a_time = self.publishing.lock().await;
        let mut reserved = Reserved::default();
        if self.is_draining() {
            return Ok(reserved);
        }
        let open: HashSet<Port> =
            self.open_listeners().iter().map(|open| port(&open.name, open.requested)).collect();
        for (name, address) in self.listeners(table) {
            let port = port(name, address);
            if !open.contains(&port) {
                reserved.ports.insert(port, self.bind(name, address)?);
            }
        }
        Ok(reserved)
    }

    /// Puts a table into force: new listeners are opened on every worker or none, then the table is swapped,
    /// then listeners that it no longer has are closed. A listener that changed only its name stays open.
    pub async fn publish(&self, table: RoutingTable) -> Result<(), PublishError> {
        self.publish_reserved(table, Reserved::default()).await
    }

    /// The same, with the ports that were taken for this table.
    pub async fn publish_reserved(
        &self,
        mut table: RoutingTable,
        reserved: Reserved,
    ) -> Result<(), PublishError> {
        let _one_at_a_time = self.publishing.lock().await;
        if self.is_draining() {
            table.serve(self.open_listeners().iter().map(|listener| (listener.id, &*listener.name)));
            self.put(table);
            return Ok(());
        }
        let mut plan = self.plan(&table, reserved)?;
        table.serve(plan.next.iter().map(|listener| (listener.id, &*listener.name)));
        self.put(table);
        for (number, worker) in self.workers.iter().enumerate() {
            let new = plan.new.iter_mut().filter_map(|(listener, sockets)| {
                let socket = sockets.pop()?;
                Some((listener.id, Arc::clone(&listener.name), Arc::clone(&listener.node), socket))
            });
            let commands = [
                Command::Rename(plan.renamed.clone()),
                Command::Open(new.collect()),
                Command::Close(plan.gone.clone()),
            ];
            for command in commands {
                if worker.commands.send(command).await.is_err() {
                    tracing::error!(worker = number, "a worker has ended");
                }
            }
        }
        *self.open_listeners() = plan.next;
        self.settle().await;
        Ok(())
    }

    fn put(&self, table: RoutingTable) {
        self.keep_fresh(&table);
        let table = Arc::new(table);
        self.shared.table.store(Arc::clone(&table));
        self.prober.show(table);
    }

    /// Has what the table knows from files and URLs kept fresh, and no longer what other tables did.
    fn keep_fresh(&self, table: &RoutingTable) {
        let kept = table.routing.auths.kept();
        let mut keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner);
        if keeper.is_none() && !kept.is_empty() {
            match Keeper::start() {
                Ok(started) => *keeper = Some(started),
                Err(error) => tracing::error!(%error, "keys and users are not kept fresh: no thread for it"),
            }
        }
        if let Some(keeper) = &*keeper {
            keeper.keep(kept);
        }
    }

    /// The table in force.
    #[must_use]
    pub fn table(&self) -> Arc<RoutingTable> {
        self.shared.table.load_full()
    }

    /// The addresses that listeners are really bound to, by name.
    #[must_use]
    pub fn addresses(&self) -> BTreeMap<String, SocketAddr> {
        self.open_listeners()
            .iter()
            .map(|listener| (listener.name.to_string(), listener.node.address))
            .collect()
    }

    /// The workers' figures, added up, as Prometheus families.
    pub async fn gather(&self) -> Vec<prometheus::proto::MetricFamily> {
        let mut sum = Traffic::default();
        for worker in &self.workers {
            let (reply, figures) = oneshot::channel();
            let gather = async {
                worker.commands.send(Command::Gather(reply)).await.ok()?;
                figures.await.ok()
            };
            // A worker that has ended or hangs is left out rather than holding the scrape.
            if let Ok(Some(figures)) = tokio::time::timeout(GATHER_WAIT, gather).await {
                sum.add(&figures);
            }
        }
        sum.access_log_dropped = self.config.access_log.as_ref().map(access_log::Handle::dropped);
        let mut families = sum.families();
        families.extend(backends::families(&self.backends()));
        families
    }

    /// Every service's endpoints, as this node sees them.
    #[must_use]
    pub fn backends(&self) -> Vec<Backends> {
        self.table().backends(Instant::now())
    }

    /// Whether [`Proxy::drain`] has begun.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Stops: accepts for `drain_wait` more, then takes no connection, closes each after its answer, and returns
    /// when all are gone or at the deadline, which cuts the rest. Once is enough; again only waits.
    pub async fn drain(&self) {
        if !self.draining.swap(true, Ordering::Relaxed) {
            tokio::time::sleep(self.config.drain_wait).await;
            let _no_publication = self.publishing.lock().await;
            let deadline = Instant::now() + self.config.drain_deadline;
            for worker in &self.workers {
                // A worker that has ended has nothing to drain.
                let _ = worker.commands.send(Command::Drain(deadline)).await;
            }
        }
        for worker in &self.workers {
            let mut ended = worker.ended.lock().await;
            if !ended.is_terminated() {
                // An error says that the thread is gone without a word, which is as good.
                let _ = (&mut *ended).await;
            }
        }
    }

    /// Waits until every worker has done what it was told.
    async fn settle(&self) {
        for worker in &self.workers {
            let (reply, settled) = oneshot::channel();
            if worker.commands.send(Command::Settle(reply)).await.is_ok() {
                // An error says that the worker has ended.
                let _ = settled.await;
            }
        }
    }

    fn open_listeners(&self) -> std::sync::MutexGuard<'_, Vec<OpenListener>> {
        // The list is replaced whole, so a panic elsewhere cannot have left it half changed.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A table's listeners by name, and where this node opens them.
    fn listeners<'a>(&'a self, table: &'a RoutingTable) -> impl Iterator<Item = (&'a str, SocketAddr)> {
        let listeners = table.routing.listeners.iter();
        listeners
            .map(|(name, listener)| (name.as_str(), *self.config.bind.get(name).unwrap_or(&listener.address)))
    }

    fn bind(&self, listener: &str, address: SocketAddr) -> Result<Bound, PublishError> {
        Bound::new(address, self.workers.len()).map_err(|error| PublishError::new(listener, address, &error))
    }

    /// Compares the table's listeners with the open ones by address, and opens what is missing.
    fn plan(&self, table: &RoutingTable, mut reserved: Reserved) -> Result<Plan, PublishError> {
        let open = self.open_listeners().clone();
        let mut kept: HashMap<Port, OpenListener> =
            open.into_iter().map(|listener| (port(&listener.name, listener.requested), listener)).collect();
        let mut plan = Plan::default();
        for (name, address) in self.listeners(table) {
            let name_shared: Arc<str> = name.into();
            let port = port(name, address);
            if let Some(mut same) = kept.remove(&port) {
                if same.name != name_shared {
                    plan.renamed.push((same.id, Arc::clone(&name_shared)));
                    same.name = name_shared;
                }
                plan.next.push(same);
                continue;
            }
            let bound = match reserved.ports.remove(&port) {
                Some(bound) => bound,
                None => self.bind(name, address)?,
            };
            let node = Arc::new(NodeListener::new(bound.address));
            let sockets = bound.listen().map_err(|error| PublishError::new(name, address, &error))?;
            let id = self.next_listener.fetch_add(1, Ordering::Relaxed) as u64;
            let listener = OpenListener { id, name: name_shared, requested: address, node };
            plan.next.push(listener.clone());
            plan.new.push((listener, sockets));
        }
        plan.gone = kept.values().map(|listener| listener.id).collect();
        Ok(plan)
    }
}

fn port(name: &str, address: SocketAddr) -> Port {
    (address, (address.port() == 0).then(|| name.to_owned()))
}

// === impl PublishError ===

impl PublishError {
    fn new(listener: &str, address: SocketAddr, error: &io::Error) -> Self {
        Self { listener: listener.to_owned(), address, reason: reason(error) }
    }
}

fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "the port is in use; stop what listens there or choose another port".to_owned()
        }
        io::ErrorKind::AddrNotAvailable => {
            "this machine does not have that address; use one of its own or 0.0.0.0".to_owned()
        }
        io::ErrorKind::PermissionDenied => {
            "not permitted; choose a port above 1023 or grant CAP_NET_BIND_SERVICE".to_owned()
        }
        _ => error.to_string(),
    }
}
