//! Where clients come in.
//!
//! Job: open sockets that all workers share by SO_REUSEPORT, accept under the bound on connections, hand over.
//! Invariants: an address in use by anyone else is refused, not shared; running out of descriptors does not spin;
//! a listener that closes takes in what already queued. Neighbours: `crate::proxy` opens, `worker` runs
//! [`accept`], `http` serves.

use std::{
    cell::{Cell, RefCell},
    io,
    net::{SocketAddr, TcpListener as StdListener},
    pin::pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use ::http::HeaderValue;
use futures_util::FutureExt;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::oneshot,
};

use super::{error::ProxyError, http, record, worker::Worker};

/// Connections the kernel queues for each worker; more are left to their retransmissions.
const BACKLOG: i32 = 4096;
/// How long accepting rests when the process has run out of descriptors.
const OUT_OF_DESCRIPTORS_REST: Duration = Duration::from_millis(100);

/// A listener as its connections know it.
#[derive(Debug)]
pub(super) struct ListenerState {
    /// What tables know it by.
    pub(super) id: u64,
    /// The name in the document in force, for the metrics.
    pub(super) name: RefCell<Arc<str>>,
    /// Its port, as endpoints are told.
    pub(super) port: HeaderValue,
    accepted: Cell<u64>,
    open: Cell<u64>,
}

/// The right to one of the node's client connections.
#[derive(Debug)]
pub(super) struct Permit {
    listener: Rc<ListenerState>,
    connections: Arc<AtomicUsize>,
}

// === opening ===

/// Opens `count` sockets on one address; the address they got.
pub(super) fn open(address: SocketAddr, count: usize) -> io::Result<(SocketAddr, Vec<StdListener>)> {
    // With SO_REUSEPORT another process of the same user could share the port unseen; a socket without it
    // cannot be bound beside anyone.
    let probe = socket(address)?;
    probe.bind(&address.into())?;
    let address = probe.local_addr()?.as_socket().unwrap_or(address);
    drop(probe);
    let mut sockets = Vec::with_capacity(count);
    for _ in 0..count {
        let socket = socket(address)?;
        socket.set_reuse_port(true)?;
        // The connections that it accepts inherit this.
        socket.set_tcp_nodelay(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        sockets.push(socket.into());
    }
    Ok((address, sockets))
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

// === impl ListenerState ===

impl ListenerState {
    pub(super) fn new(id: u64, name: Arc<str>, address: SocketAddr) -> Rc<Self> {
        Rc::new(Self {
            id,
            name: RefCell::new(name),
            port: HeaderValue::from(address.port()),
            accepted: Cell::new(0),
            open: Cell::new(0),
        })
    }

    /// Connections accepted so far and open now.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.accepted.get(), self.open.get())
    }
}

// === impl Permit ===

impl Permit {
    fn new(worker: &Worker, listener: &Rc<ListenerState>) -> Option<Self> {
        let connections = Arc::clone(&worker.shared.connections);
        let before = connections.fetch_add(1, Ordering::Relaxed);
        listener.accepted.set(listener.accepted.get() + 1);
        listener.open.set(listener.open.get() + 1);
        let permit = Self { listener: Rc::clone(listener), connections };
        (before < worker.view().table.routing.limits.connections).then_some(permit)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
        self.listener.open.set(self.listener.open.get() - 1);
    }
}

// === accepting ===

/// Accepts until `stop` is sent or dropped, and then what has queued already.
pub(super) async fn accept(
    worker: Rc<Worker>,
    state: Rc<ListenerState>,
    socket: TcpListener,
    stop: oneshot::Receiver<()>,
) {
    let mut stop = pin!(stop);
    loop {
        let accepted = tokio::select! {
            biased;
            _ = &mut stop => break,
            accepted = socket.accept() => accepted,
        };
        match accepted {
            Ok((tcp, peer)) => hand_over(&worker, &state, tcp, peer),
            // The client gave up while it queued.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::warn!(listener = %state.name.borrow(), %error, "cannot accept; resting");
                tokio::time::sleep(OUT_OF_DESCRIPTORS_REST).await;
            }
        }
    }
    while let Some(Ok((tcp, peer))) = socket.accept().now_or_never() {
        hand_over(&worker, &state, tcp, peer);
    }
}

fn hand_over(worker: &Rc<Worker>, state: &Rc<ListenerState>, tcp: TcpStream, peer: SocketAddr) {
    let Some(permit) = Permit::new(worker, state) else { return shed(worker, state, &tcp, peer) };
    tokio::task::spawn_local(http::serve(Rc::clone(worker), Rc::clone(state), tcp, peer, permit));
}

/// Says 503 without reading anything: the least that a client in excess may cost.
fn shed(worker: &Worker, state: &ListenerState, tcp: &TcpStream, peer: SocketAddr) {
    let error = ProxyError::TooManyConnections;
    let client = peer.ip().to_canonical().to_string();
    let id = record::refuse(worker, state, client.as_bytes(), &error);
    // A client whose socket takes not even this is closed all the same.
    let _ = tcp.try_write(&error.raw_response(&id));
}
