//! One thread of the data plane: its runtime, its listeners, its pools, its figures.
//!
//! Job: run everything that belongs to one core, so that a request crosses no thread and takes no lock. The
//! thread hears from the rest of the process by [`Command`]s only, and looks at the shared table's pointer.
//! Invariants: [`Worker`] is never seen by another thread; the thread ends when it was told to drain and its
//! connections are gone or out of time, or when [`super::Proxy`] is dropped. Neighbours: `crate::proxy` commands,
//! `listener`, `client` and `http` run on it.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    io,
    net::TcpListener as StdListener,
    rc::Rc,
    sync::{Arc, atomic::AtomicUsize},
    time::Instant,
};

use arc_swap::ArcSwap;
use tokio::{
    net::TcpListener,
    runtime::{Builder, LocalOptions, LocalRuntime},
    sync::{mpsc, oneshot},
};

use super::{
    alarm::{Alarms, TICK},
    connection::Buffers,
    figures::{Figures, RouteFigures},
    listener::{self, ListenerState, NodeListener},
    policy::{Passwords, Verified},
    relay::Copying,
    table::RoutingTable,
    upstream::View,
};
use crate::telemetry::{access_log, metrics::Traffic};

/// Commands that may wait for a worker; the control plane waits when there are more.
const COMMANDS_MAX: usize = 16;
/// Idle connections are looked at once in so many ticks: about once a second.
const TICKS_PER_SWEEP: u32 = 40;

/// What all workers share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) table: ArcSwap<RoutingTable>,
    /// Client connections of this node.
    pub(super) connections: Arc<AtomicUsize>,
    /// This node's threads that verify passwords.
    pub(super) passwords: Passwords,
}

/// The parts of a worker that its tasks use.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) alarms: Alarms,
    pub(super) figures: Figures,
    /// None: requests are not logged.
    pub(super) access_log: Option<access_log::Lines>,
    pub(super) copying: Copying,
    /// Requests that no route took.
    pub(super) unrouted: Rc<RouteFigures>,
    /// Copies of requests under way.
    pub(super) mirrors: Cell<usize>,
    /// Client connections that have hyper at hand.
    pub(super) awake: Cell<usize>,
    pub(super) buffers: Rc<Buffers>,
    /// Passwords that were right.
    pub(super) verified: Verified,
    view: RefCell<Rc<View>>,
    listeners: RefCell<BTreeMap<u64, Accepting>>,
    draining: Cell<bool>,
    cut: Cell<bool>,
    random: Cell<u64>,
    number: usize,
}

/// A listener at work.
#[derive(Debug)]
struct Accepting {
    state: Rc<ListenerState>,
    /// Dropped or sent, it stops accepting; none: it has stopped, but connections may be open.
    stop: Option<oneshot::Sender<()>>,
}

/// What a worker is told. Listeners are numbered, for their names may change.
#[derive(Debug)]
pub(super) enum Command {
    /// Accept on these.
    Open(Vec<(u64, Arc<str>, Arc<NodeListener>, StdListener)>),
    /// These have other names now.
    Rename(Vec<(u64, Arc<str>)>),
    /// Stop accepting on these.
    Close(Vec<u64>),
    /// Copy the figures.
    Gather(oneshot::Sender<Traffic>),
    /// Stop accepting, finish what is under way until then, end.
    Drain(Instant),
    /// Say when all commands before this one are done.
    Settle(oneshot::Sender<()>),
}

/// A worker as the rest of the process holds it.
#[derive(Debug)]
pub(super) struct WorkerHandle {
    pub(super) commands: mpsc::Sender<Command>,
    /// Resolves when the thread has ended.
    pub(super) ended: tokio::sync::Mutex<oneshot::Receiver<()>>,
}

// === impl WorkerHandle ===

impl WorkerHandle {
    /// Starts a worker's thread.
    pub(super) fn start(
        number: usize,
        shared: Arc<Shared>,
        access_log: Option<access_log::Handle>,
    ) -> io::Result<WorkerHandle> {
        let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
        let (ended_sender, ended) = oneshot::channel();
        let (ready_sender, ready) = std::sync::mpsc::sync_channel(1);
        std::thread::Builder::new().name(format!("proxy-{number}")).spawn(move || {
            let runtime =
                match Builder::new_current_thread().enable_all().build_local(LocalOptions::default()) {
                    Ok(runtime) => runtime,
                    Err(error) => return drop(ready_sender.send(Err(error))),
                };
            drop(ready_sender.send(Ok(())));
            run(&runtime, number, shared, access_log.as_ref(), receiver);
            drop(runtime);
            // Nobody may be waiting.
            let _ = ended_sender.send(());
        })?;
        ready.recv().map_err(io::Error::other)??;
        Ok(WorkerHandle { commands, ended: tokio::sync::Mutex::new(ended) })
    }
}

fn run(
    runtime: &LocalRuntime,
    number: usize,
    shared: Arc<Shared>,
    access_log: Option<&access_log::Handle>,
    mut commands: mpsc::Receiver<Command>,
) {
    runtime.block_on(async move {
        let worker = Worker::new(number, shared, access_log);
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut ticks_to_sweep = TICKS_PER_SWEEP;
        let mut deadline = None;
        loop {
            tokio::select! {
                command = commands.recv() => match command {
                    Some(Command::Drain(until)) => {
                        worker.begin_to_drain();
                        deadline = Some(until);
                    }
                    Some(command) => worker.obey(command),
                    None => break,
                },
                _ = ticks.tick() => {
                    worker.alarms.tick();
                    if let Some(lines) = &worker.access_log {
                        lines.flush();
                    }
                    ticks_to_sweep -= 1;
                    if ticks_to_sweep == 0 {
                        ticks_to_sweep = TICKS_PER_SWEEP;
                        worker.sweep();
                    }
                    if deadline.is_some_and(|deadline| worker.is_idle() || Instant::now() >= deadline) {
                        worker.cut.set(true);
                        break;
                    }
                }
            }
        }
    });
}

// === impl Worker ===

impl Worker {
    fn new(number: usize, shared: Arc<Shared>, access_log: Option<&access_log::Handle>) -> Rc<Self> {
        let view = View::new(shared.table.load_full(), None, number);
        let nobody: Arc<str> = "".into();
        Rc::new(Self {
            shared,
            alarms: Alarms::new(),
            figures: Figures::default(),
            access_log: access_log.map(access_log::Handle::lines),
            copying: Copying::new(),
            unrouted: Rc::new(RouteFigures::new(&nobody, &nobody)),
            mirrors: Cell::new(0),
            awake: Cell::default(),
            buffers: Rc::default(),
            verified: Verified::new(),
            view: RefCell::new(Rc::new(view)),
            listeners: RefCell::default(),
            draining: Cell::new(false),
            cut: Cell::new(false),
            random: Cell::new(rand::random()),
            number,
        })
    }

    /// This worker's view of the table in force.
    pub(super) fn view(&self) -> Rc<View> {
        let table = self.shared.table.load();
        let view = self.view.borrow();
        if Arc::ptr_eq(&view.table, &table) {
            return Rc::clone(&view);
        }
        let next = Rc::new(View::new(Arc::clone(&table), Some(&view), self.number));
        drop(view);
        *self.view.borrow_mut() = Rc::clone(&next);
        next
    }

    /// Whether answers should close their connections.
    pub(super) fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// Whether what is still under way is cut off: the drain's deadline has passed.
    pub(super) fn is_cut(&self) -> bool {
        self.cut.get()
    }

    /// The next of a sequence that nobody outside can guess to be wrong about (splitmix64): ids, not secrets.
    pub(super) fn random(&self) -> u64 {
        let state = self.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.random.set(state);
        let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn obey(self: &Rc<Self>, command: Command) {
        match command {
            Command::Open(sockets) => {
                for (id, name, node, socket) in sockets {
                    self.open(id, name, node, socket);
                }
            }
            Command::Rename(names) => {
                for (id, name) in names {
                    if let Some(listener) = self.listeners.borrow().get(&id) {
                        *listener.state.name.borrow_mut() = name;
                    }
                }
            }
            Command::Close(ids) => {
                for id in ids {
                    if let Some(listener) = self.listeners.borrow_mut().get_mut(&id) {
                        listener.stop = None;
                    }
                }
            }
            // Whoever asked may have gone.
            Command::Gather(reply) => {
                let _ = reply.send(self.gather());
            }
            Command::Settle(reply) => {
                self.view();
                let _ = reply.send(());
            }
            Command::Drain(_) => self.begin_to_drain(),
        }
    }

    fn open(self: &Rc<Self>, id: u64, name: Arc<str>, node: Arc<NodeListener>, socket: StdListener) {
        let socket = match TcpListener::from_std(socket) {
            Ok(socket) => socket,
            // The other workers' sockets share the port.
            Err(error) => return tracing::error!(listener = %name, %error, "a worker cannot accept"),
        };
        let state = ListenerState::new(id, name, node);
        let (stop, stopped) = oneshot::channel();
        let accept = listener::accept(Rc::clone(self), Rc::clone(&state), socket, stopped);
        tokio::task::spawn_local(accept);
        self.listeners.borrow_mut().insert(id, Accepting { state, stop: Some(stop) });
    }

    fn begin_to_drain(&self) {
        self.draining.set(true);
        for listener in self.listeners.borrow_mut().values_mut() {
            listener.stop = None;
        }
        self.alarms.wake_all();
    }

    fn is_idle(&self) -> bool {
        self.listeners.borrow().values().all(|listener| listener.state.counts().1 == 0)
    }

    /// Closes what has been idle too long, and forgets listeners that are closed and empty.
    fn sweep(&self) {
        let now = Instant::now();
        for upstream in &self.view().upstreams {
            for endpoint in &upstream.endpoints {
                endpoint.pool.sweep(&upstream.plan.service.pool, now);
            }
        }
        self.listeners
            .borrow_mut()
            .retain(|_, listener| listener.stop.is_some() || listener.state.counts().1 > 0);
    }

    fn gather(&self) -> Traffic {
        let mut traffic = Traffic::default();
        self.figures.copy_to(&mut traffic);
        self.unrouted.copy_to(&mut traffic);
        let view = self.view();
        for figures in &view.figures {
            figures.copy_to(&mut traffic);
        }
        for upstream in &view.upstreams {
            let sum = traffic.upstream_connections.entry(Arc::clone(&upstream.plan.name)).or_default();
            for (active, idle) in upstream.endpoints.iter().map(|endpoint| endpoint.pool.counts()) {
                sum.active += active as u64;
                sum.idle += idle as u64;
            }
        }
        for listener in self.listeners.borrow().values() {
            let (total, active) = listener.state.counts();
            let sum = traffic.connections.entry(Arc::clone(&listener.state.name.borrow())).or_default();
            sum.total += total;
            sum.active += active;
            sum.stream_bytes_in += listener.state.bytes_in.get();
            sum.stream_bytes_out += listener.state.bytes_out.get();
        }
        traffic
    }
}
