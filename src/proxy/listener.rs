//! Where clients come in.
//!
//! Job: open sockets that all workers share by SO_REUSEPORT, accept under the bound on connections, hand over.
//! Invariants: an address in use by anyone else is refused, not shared; running out of descriptors does not spin;
//! a listener that closes takes in what already queued; a PROXY header is believed from trusted proxies only.
//! Neighbours: `crate::proxy` opens, `worker` runs [`accept`], `client` and `tcp` serve.

use std::{
    cell::{Cell, RefCell},
    io,
    net::{SocketAddr, TcpListener as StdListener},
    pin::pin,
    rc::Rc,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use http::HeaderValue;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
    sync::oneshot,
};

use super::{
    client,
    connection_rate::ConnectionRates,
    error::ProxyError,
    figures::Counter,
    proxy_protocol::{self, Addresses, Header},
    record,
    table::{CompiledListener, Destination},
    tcp,
    upstream::View,
    worker::Worker,
};

/// Connections the kernel queues for each worker; more are left to their retransmissions.
const BACKLOG: i32 = 4096;
/// How long accepting rests when the process has run out of descriptors.
const OUT_OF_DESCRIPTORS_REST: Duration = Duration::from_millis(100);

/// A listener as its connections know it: one worker's part.
#[derive(Debug)]
pub(super) struct ListenerState {
    /// What tables know it by.
    pub(super) id: u64,
    /// The name in the document in force, for the metrics.
    pub(super) name: RefCell<Arc<str>>,
    /// Its port, as endpoints are told.
    pub(super) port: HeaderValue,
    /// Bytes of streams, from clients.
    pub(super) bytes_in: Counter,
    /// Bytes of streams, to clients.
    pub(super) bytes_out: Counter,
    node: Arc<NodeListener>,
    accepted: Cell<u64>,
    open: Cell<u64>,
}

/// A listener as all workers share it.
#[derive(Debug)]
pub(super) struct NodeListener {
    /// Where it is really bound to.
    pub(super) address: SocketAddr,
    open: AtomicUsize,
    /// Made for the first connection under a rate.
    rates: OnceLock<ConnectionRates>,
}

/// The right to one of the node's client connections.
#[derive(Debug)]
pub(super) struct Permit {
    listener: Rc<ListenerState>,
    connections: Arc<AtomicUsize>,
}

/// A connection that was accepted, and by which table.
struct Accepted {
    worker: Rc<Worker>,
    state: Rc<ListenerState>,
    view: Rc<View>,
    settings: Arc<CompiledListener>,
    tcp: TcpStream,
    client: SocketAddr,
    /// Where the client's connection was opened to, if a PROXY header says so.
    destination: Option<SocketAddr>,
    permit: Permit,
}

// === opening ===

/// Sockets of one address that are bound, one for each worker, and do not listen yet: clients are refused, and
/// nobody else gets the port.
#[derive(Debug)]
pub(super) struct Bound {
    /// Where they are really bound to.
    pub(super) address: SocketAddr,
    sockets: Vec<Socket>,
}

// === impl Bound ===

impl Bound {
    /// Binds `count` sockets to one address.
    pub(super) fn new(address: SocketAddr, count: usize) -> io::Result<Self> {
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
            sockets.push(socket);
        }
        Ok(Self { address, sockets })
    }

    /// Lets clients connect.
    pub(super) fn listen(self) -> io::Result<Vec<StdListener>> {
        self.sockets.iter().try_for_each(|socket| socket.listen(BACKLOG))?;
        Ok(self.sockets.into_iter().map(StdListener::from).collect())
    }
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

// === impl NodeListener, ListenerState ===

impl NodeListener {
    pub(super) fn new(address: SocketAddr) -> Self {
        Self { address, open: AtomicUsize::new(0), rates: OnceLock::new() }
    }
}

impl ListenerState {
    pub(super) fn new(id: u64, name: Arc<str>, node: Arc<NodeListener>) -> Rc<Self> {
        Rc::new(Self {
            id,
            name: RefCell::new(name),
            port: HeaderValue::from(node.address.port()),
            bytes_in: Counter::default(),
            bytes_out: Counter::default(),
            node,
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
    fn new(
        worker: &Worker,
        listener: &Rc<ListenerState>,
        node_max: usize,
        listener_max: usize,
    ) -> Result<Self, ProxyError> {
        let connections = Arc::clone(&worker.shared.connections);
        let of_node = connections.fetch_add(1, Ordering::Relaxed);
        let of_listener = listener.node.open.fetch_add(1, Ordering::Relaxed);
        listener.accepted.set(listener.accepted.get() + 1);
        listener.open.set(listener.open.get() + 1);
        let permit = Self { listener: Rc::clone(listener), connections };
        if of_node >= node_max {
            Err(ProxyError::TooManyConnections)
        } else if of_listener >= listener_max {
            Err(ProxyError::ListenerFull)
        } else {
            Ok(permit)
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
        self.listener.node.open.fetch_sub(1, Ordering::Relaxed);
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

fn hand_over(worker: &Rc<Worker>, state: &Rc<ListenerState>, tcp: TcpStream, client: SocketAddr) {
    let view = worker.view();
    let routing = &view.table.routing;
    // A table without this listener is about to close it: nobody knows what to speak.
    let Some(settings) = view.table.listener(state.id).map(Arc::clone) else { return };
    let permit = match Permit::new(worker, state, routing.limits.connections, settings.connections_max) {
        Ok(permit) => permit,
        Err(error) => return turn_away(worker, state, &settings, &tcp, client, &error),
    };
    let announced = settings.proxy_protocol && view.table.trusts(client.ip());
    let accepted = Accepted {
        worker: Rc::clone(worker),
        state: Rc::clone(state),
        view: Rc::clone(&view),
        settings,
        tcp,
        client,
        destination: None,
        permit,
    };
    if announced {
        tokio::task::spawn_local(accepted.read_header());
    } else {
        accepted.begin();
    }
}

impl Accepted {
    /// Hands over to what the listener's clients speak.
    fn begin(self) {
        let Self { worker, state, view, settings, tcp, client, destination, permit } = self;
        if let Some(rate) = settings.rate {
            let now = Instant::now();
            let rates = state.node.rates.get_or_init(|| ConnectionRates::new(now));
            if !rates.allows(client.ip(), rate, now) {
                return turn_away(&worker, &state, &settings, &tcp, client, &ProxyError::ConnectionRate);
            }
        }
        // Asking the system costs a call, which is in vain where no service wants to know.
        let asked = || view.table.routing.announces.then(|| tcp.local_addr().ok()).flatten();
        let destination = destination.or_else(asked).unwrap_or(state.node.address);
        let ends = Addresses { source: client, destination };
        match settings.destination {
            Destination::Routes => {
                drop(view);
                tokio::task::spawn_local(client::serve(worker, state, tcp, ends, permit));
            }
            Destination::Service(_) | Destination::Names(_) => {
                tokio::task::spawn_local(tcp::serve(worker, state, view, settings, tcp, ends, permit));
            }
        }
    }

    /// Begins as the client that the PROXY header names. Without a good one the connection is closed: what it
    /// carries cannot be told from a header.
    async fn read_header(mut self) {
        let alarm = self.worker.alarms.add();
        alarm.set(self.worker.alarms.soon() + self.view.table.routing.limits.header_timeout);
        match alarm.limit(read_header(&mut self.tcp)).await {
            Some(Ok(addresses)) => {
                if let Some(Addresses { source, destination }) = addresses {
                    (self.client, self.destination) = (source, Some(destination));
                }
                self.begin();
            }
            // Somebody looked whether the port is open.
            Some(Err(error)) if error.kind() == io::ErrorKind::NotConnected => {}
            Some(Err(_)) | None => self.worker.figures.reject(ProxyError::ProxyHeader.row().reason),
        }
    }
}

/// Takes a PROXY header from a connection and nothing of what follows.
async fn read_header(tcp: &mut TcpStream) -> io::Result<Option<Addresses>> {
    let mut bytes = vec![0; proxy_protocol::BYTES_MAX];
    let mut taken = 0;
    while taken < bytes.len() {
        let seen = taken + tcp.peek(&mut bytes[taken..]).await?;
        if seen == taken {
            let kind = if taken == 0 { io::ErrorKind::NotConnected } else { io::ErrorKind::UnexpectedEof };
            return Err(kind.into());
        }
        let (belongs, whole) = match proxy_protocol::read(&bytes[..seen]) {
            Header::More => (seen, None),
            Header::Whole { length, addresses } => (length, Some(addresses)),
            Header::Malformed => break,
        };
        tcp.read_exact(&mut bytes[taken..belongs]).await?;
        taken = belongs;
        if let Some(addresses) = whole {
            return Ok(addresses);
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}

/// Says no without reading anything: the least that a client in excess may cost.
fn turn_away(
    worker: &Worker,
    state: &ListenerState,
    settings: &CompiledListener,
    tcp: &TcpStream,
    client: SocketAddr,
    error: &ProxyError,
) {
    if !matches!(settings.destination, Destination::Routes) {
        return worker.figures.reject(error.row().reason);
    }
    let client = client.ip().to_canonical().to_string();
    let id = record::refuse(worker, state, client.as_bytes(), error);
    // A client whose socket takes not even this is closed all the same.
    let _ = tcp.try_write(&error.raw_response(&id));
}
