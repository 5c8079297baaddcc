//! One gogate process, wired: what runs, what feeds it, when it ends.
//!
//! | task | inputs | outputs | ends |
//! |---|---|---|---|
//! | proxy workers (threads of their own) | client connections, the routing table | upstream requests | after the drain, or with the process |
//! | keeper (a thread of its own, once a policy needs it) | files and URLs of keys and users | what policies know | with the proxy |
//! | passwords (threads of their own, once a password comes) | passwords and hashes | whether they fit | with the proxy |
//! | health (a thread of its own) | the routing table | what each endpoint's health check says | with the proxy |
//! | access log (a thread of its own) | the workers' lines | a file or stdout | after the drain, when all lines are written; given 2 s |
//! | reopen | SIGHUP | the access log's file, opened again | aborted after the drain |
//! | cluster (its own tasks, on a thread of their own) | peers, proposals | the replicated state, its changes | `Cluster::shutdown`; by itself only when its core stops, and then the process ends |
//! | publish | `Cluster::changes` | the proxy's table, this node's report | aborted after the drain; if it ends before, as do those below, the process ends |
//! | heartbeats | beats that callers of the admin API wait for | the leader's inbox, its answers | aborted after the drain |
//! | watches | `Cluster::changes` | the watchers at this node | aborted after the drain; open watches are told of the end |
//! | credentials | SIGHUP, the files of tokens and certificates | who may call | aborted after the drain |
//! | reload | SIGHUP, the gateway file | proposals | aborted after the drain |
//! | drain | SIGTERM, `POST /v1/node/drain` | the leadership to another node, the proxy's end | aborted after the drain |
//! | quorum | a linearizable read now and then | `caught_up`, log lines | aborted after the drain |
//! | admin | its listener | calls of all of the above | told to stop after the drain; open calls get 2 s |
//! | signals | SIGTERM, SIGINT, SIGHUP | drain, stop at once, reload | with the process |
//!
//! All others share the thread `control`. Invariants: the data plane has its own threads, so nothing here can delay
//! a request, and the group has its own, so that no call can delay its heartbeats; whatever was started is stopped
//! in the opposite order. Neighbours: `cli::serve` reads the node file and calls [`run`].

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use arc_swap::ArcSwap;
use gogate_cluster::{Cluster, ClusterConfig, PeerTls, StartError, Timers, state::State};
use tokio::{
    net::TcpListener,
    runtime::{Handle, Runtime},
    signal::unix::{Signal, SignalKind, signal},
    sync::{Notify, watch},
    task::{self, JoinSet},
};
use tokio_rustls::rustls::ServerConfig;
use tracing::{error, info, warn};

use crate::{
    config::node::{NodeConfig, Role},
    control::{
        admin::{self, Context, auth::Access},
        credentials::{self, Watched},
        drain::{self, Drain},
        heartbeats,
        publish::{Published, Publisher},
        reload::Reload,
        watch::Watches,
    },
    proxy::{Proxy, ProxyConfig},
    telemetry::access_log::AccessLog,
};

/// What can be done with files alone, for the command line.
pub use crate::control::backup as offline;

/// What this build calls itself.
pub const BUILD: &str = gogate_cluster::BUILD;

/// How long what was handed to other threads (a folder's fsync, a document's check) may hold up the exit.
const LINGER: Duration = Duration::from_secs(1);

/// Between two looks at whether there is a quorum, and how long one look may take.
const QUORUM_PERIOD: Duration = Duration::from_secs(2);

/// Between two looks while this node has never had one.
const QUORUM_RETRY: Duration = Duration::from_millis(50);

/// How long the cluster may take to close its store.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(10);

/// Why a node did not start, or ended by itself. Each message is one line.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// An address cannot be listened on.
    #[error("{key} {address}: cannot listen: {error}{}", advice(.error))]
    Listen {
        /// The key of the node file.
        key: &'static str,
        /// Its value.
        address: SocketAddr,
        /// Why not.
        error: io::Error,
    },
    /// The cluster part.
    #[error(transparent)]
    Cluster(#[from] StartError),
    /// The access log's file.
    #[error("log.access: {target} cannot be opened: {error}")]
    AccessLog {
        /// Its name.
        target: String,
        /// Why not.
        error: io::Error,
    },
    /// A file of credentials.
    #[error("{key}: {problem}")]
    Credentials {
        /// The key of the node file.
        key: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The data plane's threads.
    #[error("the proxy cannot start: {0}")]
    Proxy(io::Error),
    /// The runtime or the signals.
    #[error("the process cannot start: {0}")]
    Process(io::Error),
    /// A task that lives as long as the node ended.
    #[error(
        "the {0} task has ended, which is a defect (a panic's message is above): the node cannot go on without it; start it again"
    )]
    TaskEnded(&'static str),
    /// The consensus core stopped.
    #[error("the consensus core has stopped: {0}; start the node again")]
    Stopped(String),
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "; another process listens there: stop it, or choose another address",
        io::ErrorKind::PermissionDenied => "; ports below 1024 need CAP_NET_BIND_SERVICE",
        io::ErrorKind::AddrNotAvailable => "; this machine has no such address",
        _ => "",
    }
}

/// Runs a node until it is told to stop.
///
/// # Errors
/// When it cannot start, or its consensus core stops.
pub fn run(config: NodeConfig) -> Result<(), NodeError> {
    raise_descriptor_limit();
    // A thread each: a call that computes must not hold up the group's heartbeats, and a second thread for either
    // costs more in waking each other than it brings.
    let control = runtime("control")?;
    let consensus = runtime("consensus")?;
    let result = control.block_on(live(config, consensus.handle()));
    control.shutdown_timeout(LINGER);
    consensus.shutdown_timeout(LINGER);
    result
}

fn runtime(name: &str) -> Result<Runtime, NodeError> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(1).thread_name(name).enable_all().build().map_err(NodeError::Process)
}

/// A gateway's connections are descriptors: take all that the hard limit gives.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
    {
        warn!(%error, "the limit of open files could not be raised");
    }
}

/// Start, run, drain, stop.
async fn live(config: NodeConfig, consensus: &Handle) -> Result<(), NodeError> {
    let mut signals = Signals::new().map_err(NodeError::Process)?;
    let access_log = AccessLog::open(&config.log.access, config.log.json)
        .map_err(|error| NodeError::AccessLog { target: config.log.access.to_string(), error })?;
    let Credentials { access, admin_tls, peer_tls, files } = credentials(&config)?;
    let admin_listener = listen("admin.listen", config.admin_listen)?;
    let admin_address = admin_listener.local_addr().map_err(NodeError::Process)?;
    let admin_listener = TcpListener::from_std(admin_listener).map_err(NodeError::Process)?;
    let peer_listener = listen("peer.listen", config.peer_listen)?;
    info!(node = %config.name, admin = %admin_address, peer = %config.peer_listen, build = BUILD, "starting");

    // Served from here on: a node that waits for its peers is alive, and not ready.
    let context = Arc::new(OnceLock::new());
    let (stop, stopped) = watch::channel(false);
    let mut admin = tokio::spawn(admin::serve(admin_listener, access, admin_tls, context.clone(), stopped));

    let cluster_name =
        config.cluster.as_ref().map_or_else(|| config.name.clone(), |cluster| cluster.name.clone());
    let cluster_config =
        cluster_config(&config, cluster_name.clone(), peer_listener, admin_address, peer_tls);
    let cluster = tokio::select! {
        started = consensus.spawn(Cluster::start(cluster_config)) => {
            started.map_err(|panic| NodeError::Process(panic.into()))??
        }
        () = signals.stop() => {
            info!("stopped before the cluster was formed");
            return Ok(());
        }
    };
    let proxy = Proxy::start(ProxyConfig {
        workers: config.workers,
        bind: config.bind.clone(),
        drain_wait: config.drain_wait,
        drain_deadline: config.drain_deadline,
        access_log: access_log.as_ref().map(AccessLog::handle),
    });
    let proxy = Arc::new(proxy.map_err(NodeError::Proxy)?);

    let published = Arc::new(Published::default());
    let (heartbeats, forwarder) = heartbeats::channel();
    let (caught_up, has_caught_up) = watch::channel(false);
    let publisher = Publisher::new(cluster.clone(), proxy.clone(), published.clone());
    let mut tasks = Tasks::default();
    tasks.spawn("publish", publisher.run(cluster.changes()));
    // Its index is read once changes are heard: what is applied in between is heard twice and told once.
    let changes = cluster.changes();
    let watches = Arc::new(Watches::new(cluster.read(State::index)));
    tasks.spawn("watches", {
        let watches = watches.clone();
        async move { watches.run(changes).await }
    });
    let drain = Arc::new(Drain::new(cluster.clone(), proxy.clone()));
    tasks.spawn("drain", drain.clone().run());
    tasks.spawn("quorum", watch_quorum(cluster.clone(), caught_up));
    tasks.spawn("heartbeats", forwarder.run(cluster.clone()));
    if let Some(log) = &access_log {
        let (log, mut hangup) = (log.handle(), signal(SignalKind::hangup()).map_err(NodeError::Process)?);
        tasks.spawn("reopen", async move {
            while hangup.recv().await.is_some() {
                log.reopen();
            }
        });
    }
    if !files.is_empty() {
        let hangup = signal(SignalKind::hangup()).map_err(NodeError::Process)?;
        tasks.spawn("credentials", credentials::keep(files, hangup));
    }
    if let Some(file) = config.gateway_file.clone() {
        let (cluster, name, hangup) = (cluster.clone(), config.name.clone(), signals.hangup.clone());
        tasks.spawn("reload", Reload::new(cluster, name, file, config.gateway_watch, hangup).run());
    }
    let _ = context.set(Context {
        cluster_name,
        node: config.name.clone(),
        cluster: cluster.clone(),
        proxy: proxy.clone(),
        published,
        heartbeats,
        watches: watches.clone(),
        drain: drain.clone(),
        caught_up: has_caught_up,
        build: BUILD,
    });
    info!(id = cluster.node_id(), "this node takes part in the cluster");

    let result = tokio::select! {
        () = signals.stop() => Ok(()),
        reason = cluster.stopped() => Err(NodeError::Stopped(reason)),
        name = tasks.ended() => Err(NodeError::TaskEnded(name)),
        _ = &mut admin => Err(NodeError::TaskEnded("admin")),
    };
    if result.is_ok() {
        info!(wait = ?config.drain_wait, deadline = ?config.drain_deadline, "draining; a second signal ends it at once");
        drain.begin();
        tokio::select! {
            () = drain.done() => {}
            () = signals.stop() => warn!("told to stop at once; open requests are cut"),
        }
    }
    tasks.running.abort_all();
    if let Some(log) = access_log {
        log.close().await;
    }
    watches.close();
    let _ = stop.send(true);
    let closing = async {
        if !admin.is_finished() {
            let _ = admin.await;
        }
        if result.is_ok() {
            // Nobody else could lead when the drain began, or wanted to since.
            drain::hand_over(&cluster).await;
        }
        cluster.shutdown().await;
    };
    tokio::select! {
        closed = tokio::time::timeout(SHUTDOWN_DEADLINE, closing) => if closed.is_err() {
            error!("the cluster took too long to close; what was acknowledged is on disk");
        },
        () = signals.stop() => {}
    }
    result
}

/// Who may talk to this node, and the files that say so.
struct Credentials {
    access: Arc<Access>,
    admin_tls: Option<Arc<ArcSwap<ServerConfig>>>,
    peer_tls: Option<Arc<PeerTls>>,
    files: Vec<Watched>,
}

/// Reads the files for the first time: what cannot be used then keeps the node from starting.
fn credentials(config: &NodeConfig) -> Result<Credentials, NodeError> {
    let failed = |key| move |problem| NodeError::Credentials { key, problem };
    let mut files = Vec::new();
    let shows_certificates = config.admin_tls.as_ref().is_some_and(|tls| tls.ca.is_some());
    let tokens = config.admin_tokens_file.as_ref().map(|file| credentials::read_tokens(file));
    let tokens = tokens.transpose().map_err(failed("admin.tokens_file"))?;
    let access = Arc::new(Access::new(tokens, shows_certificates, config.admin_change_rate));
    if let Some(file) = &config.admin_tokens_file {
        files.push(Watched::tokens(file.clone(), access.clone()));
    }
    let mut admin_tls = None;
    if let Some(tls) = &config.admin_tls {
        let server = credentials::read_admin_tls(tls).map_err(failed("admin.tls"))?;
        let server = admin_tls.insert(Arc::new(ArcSwap::new(server)));
        files.push(Watched::admin_tls(tls.clone(), server.clone()));
    } else if config.admin_tokens_file.is_some() && !config.admin_listen.ip().to_canonical().is_loopback() {
        warn!("admin.listen is not loopback and admin.tls is missing: tokens travel in the clear");
    }
    let mut peer_tls = None;
    if let Some(tls) = &config.peer_tls {
        let advertise = config.peer_advertise.clone();
        let (client, server) = credentials::read_peer_tls(tls, &advertise).map_err(failed("peer.tls"))?;
        let ends = peer_tls.insert(Arc::new(PeerTls::new(client, server)));
        files.push(Watched::peer_tls(tls.clone(), advertise, ends.clone()));
    }
    Ok(Credentials { access, admin_tls, peer_tls, files })
}

fn listen(key: &'static str, address: SocketAddr) -> Result<std::net::TcpListener, NodeError> {
    let listener = || {
        use socket2::{Domain, Protocol, Socket, Type};
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        // A restart must not wait for the connections of the process before it to be forgotten.
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(1024)?;
        Ok(socket.into())
    };
    listener().map_err(|error| NodeError::Listen { key, address, error })
}

fn cluster_config(
    config: &NodeConfig,
    cluster_name: String,
    listener: std::net::TcpListener,
    admin: SocketAddr,
    tls: Option<Arc<PeerTls>>,
) -> ClusterConfig {
    let cluster = config.cluster.as_ref();
    ClusterConfig {
        name: config.name.clone(),
        data_dir: config.data_dir.clone(),
        cluster_name,
        expect: cluster.map_or(1, |cluster| cluster.expect),
        peers: cluster.map_or_else(Vec::new, |cluster| cluster.peers.clone()),
        learner: cluster.is_some_and(|cluster| cluster.role == Role::Learner),
        listener,
        advertise: config.peer_advertise.clone(),
        admin: told_address(admin, &config.peer_advertise),
        secret: config.peer_secret.clone().map(|secret| gogate_cluster::Secret(secret.0)),
        tls,
        build: BUILD.to_owned(),
        format: gogate_cluster::state::FORMAT,
        timers: Timers::default(),
    }
}

/// Where others reach what listens at `listen`: on all addresses, it is where they reach this node's peer port.
fn told_address(listen: SocketAddr, peer_advertise: &str) -> String {
    match peer_advertise.rsplit_once(':') {
        Some((host, _)) if listen.ip().is_unspecified() => format!("{host}:{}", listen.port()),
        _ => listen.to_string(),
    }
}

/// Learns when this node has caught up with its cluster, and says when there is no quorum (P1).
async fn watch_quorum(cluster: Cluster, caught_up: watch::Sender<bool>) {
    while cluster.linearizable(QUORUM_PERIOD).await.is_err() {
        tokio::time::sleep(QUORUM_RETRY).await;
    }
    caught_up.send_replace(true);
    let mut reachable = true;
    loop {
        tokio::time::sleep(QUORUM_PERIOD).await;
        match cluster.linearizable(QUORUM_PERIOD).await {
            Ok(()) if !reachable => info!("there is a quorum again"),
            Err(error) if reachable => {
                warn!(reason = %error.reason, "no quorum: requests are served from what this node last knew");
            }
            Ok(()) | Err(_) => continue,
        }
        reachable = !reachable;
    }
}

/// The tasks of this file's table that end only with the node.
#[derive(Default)]
struct Tasks {
    running: JoinSet<()>,
    names: HashMap<task::Id, &'static str>,
}

/// What the operating system asks of the process.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Arc<Notify>,
}

// === impl Tasks ===

impl Tasks {
    fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.names.insert(self.running.spawn(task).id(), name);
    }

    /// The name of the first one that ends, panicking or not.
    async fn ended(&mut self) -> &'static str {
        let id = match self.running.join_next_with_id().await {
            None => return std::future::pending().await,
            Some(Ok((id, ()))) => id,
            Some(Err(error)) => error.id(),
        };
        self.names.get(&id).copied().unwrap_or("control")
    }
}

// === impl Signals ===

impl Signals {
    fn new() -> io::Result<Self> {
        let hangup = Arc::new(Notify::new());
        let (mut received, notify) = (signal(SignalKind::hangup())?, hangup.clone());
        tokio::spawn(async move {
            while received.recv().await.is_some() {
                notify.notify_one();
            }
        });
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup,
        })
    }

    /// Resolves at the next request to stop.
    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_are_told_an_address_that_they_can_reach() {
        let told = |listen: &str, advertise| told_address(listen.parse().unwrap(), advertise);
        assert_eq!(told("0.0.0.0:7070", "n1:7170"), "n1:7070");
        assert_eq!(told("[::]:7070", "[fd00::1]:7170"), "[fd00::1]:7070");
        assert_eq!(told("10.0.0.9:7070", "n1:7170"), "10.0.0.9:7070");
    }

    #[tokio::test]
    async fn a_task_that_ends_or_panics_is_named() {
        let mut tasks = Tasks::default();
        tasks.spawn("quorum", std::future::pending());
        tasks.spawn("publish", async { panic!("a defect") });
        assert_eq!(tasks.ended().await, "publish");
        tasks.spawn("reload", async {});
        assert_eq!(tasks.ended().await, "reload");
    }
}
