//! A client's connection, from first byte to close.
//!
//! Job: [`serve`] runs hyper over a client's socket as long as requests come, and ends the connection: at once,
//! with a refusal, or in a tunnel. [`Client`] is what everything that works for it shares. Invariants: without a
//! request it soon holds its socket and little more; the alarm is set whatever it waits for; what hyper is not shown
//! is answered and counted here. Neighbours: `listener` hands over sockets, `stream` shows hyper what may be shown,
//! `http` answers requests, `upgrade` carries what follows a 101.

use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    future::{Future, poll_fn},
    net::IpAddr,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use http::HeaderValue;
use hyper::{
    body::Incoming,
    server::conn::http1,
    service::{HttpService, service_fn},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{
    alarm::Alarm,
    error::ProxyError,
    forward::AnswerBody,
    framing::Framing,
    headers::Peer,
    http::answer,
    listener::{ListenerState, Permit},
    proxy_protocol::Addresses,
    record,
    socket::Watch,
    stream::ClientStream,
    upgrade::{self, Tunnel},
    worker::Worker,
};
use crate::{config::document::Limits, telemetry::metrics::OTHER};

/// For so long a connection without a request keeps hyper at hand, while no more than [`AWAKE_MAX`] of the worker
/// do: with few, what they keep stays in the processor's caches; with many, making it anew from memory that another
/// connection just left is cheaper, and small.
const AWAKE: Duration = Duration::from_secs(1);
const AWAKE_MAX: usize = 128;
/// For how long what a client still sends is read after the last answer. Closing at once would reset the
/// connection, and the reset overtakes the answer.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BUFFER: usize = 16 << 10;
/// hyper's smallest buffer; `framing` holds the document's own bound.
const BUFFER_MIN: usize = 8 << 10;
const BUFFER_MAX: usize = 400 << 10;
/// More fields than this make hyper allocate for each request.
const FIELDS_WITHOUT_ALLOCATION: usize = 100;

/// A client's connection, shared by everything that works for it.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) worker: Rc<Worker>,
    pub(super) alarm: Rc<Alarm>,
    pub(super) listener: Rc<ListenerState>,
    pub(super) address: IpAddr,
    /// The connection's ends, as endpoints are told that ask for it.
    pub(super) ends: Addresses,
    pub(super) peer: Peer,
    header_timeout: Duration,
    /// How long it is kept for the next request.
    keep_alive: Duration,
    /// Between a request's head and the end of its answer.
    exchange: Cell<bool>,
    /// Reading stopped until the exchange under way is over.
    stalled: Cell<bool>,
    /// Requests whose answers are over.
    answered: Cell<u64>,
    /// What follows on the connection instead of HTTP.
    tunnel: RefCell<Option<Box<Tunnel>>>,
    /// As far as the stream knows, hyper holds nothing for this connection.
    still: Cell<bool>,
    /// The stream has looked for more in this turn of hyper's, and is woken by whatever comes.
    listening: Cell<bool>,
    /// The alarm is set to the moment when hyper is taken away.
    dozing: Cell<bool>,
    /// A field's name with an underscore came along.
    underscores: Cell<bool>,
}

/// Counts a connection that has hyper at hand.
struct Awake<'a>(&'a Worker);

/// Lets go of a tunnel that its connection did not live to carry: it holds the client, which holds it.
struct Unclaimed(Rc<Client>);

// === impl Client ===

impl Client {
    fn new(worker: Rc<Worker>, listener: Rc<ListenerState>, ends: Addresses, limits: &Limits) -> Self {
        let address = ends.source.ip().to_canonical();
        Self {
            alarm: worker.alarms.add(),
            address,
            ends,
            peer: Peer {
                ip: HeaderValue::try_from(address.to_string()).unwrap_or(HeaderValue::from_static("unknown")),
                port: listener.port.clone(),
            },
            header_timeout: limits.header_timeout,
            keep_alive: limits.keep_alive,
            exchange: Cell::new(false),
            stalled: Cell::new(false),
            answered: Cell::new(0),
            tunnel: RefCell::new(None),
            still: Cell::new(false),
            listening: Cell::new(false),
            dozing: Cell::new(false),
            underscores: Cell::new(false),
            listener,
            worker,
        }
    }

    /// Whether a request is being answered.
    pub(super) fn exchange_under_way(&self) -> bool {
        self.exchange.get()
    }

    /// How many requests have been answered, or given up.
    pub(super) fn answered(&self) -> u64 {
        self.answered.get()
    }

    /// Reading goes no further until the exchange under way is over.
    pub(super) fn stall(&self) {
        self.stalled.set(true);
    }

    /// The stream says whether it waits for a request that has not begun.
    pub(super) fn set_still(&self, still: bool) {
        self.still.set(still);
    }

    /// The stream says whether the client's end, too, would wake it.
    pub(super) fn set_listening(&self, listening: bool) {
        self.listening.set(listening);
    }

    /// Whether a request is being answered of whose client nothing is heard: hyper reads no further with the next
    /// request or a body's bytes in its hands, nor what may be another protocol.
    fn is_unheard(&self) -> bool {
        self.exchange.get() && !self.listening.get()
    }

    /// Whether hyper can be taken away without a loss.
    fn is_at_rest(&self) -> bool {
        self.still.get() && !self.exchange.get()
    }

    /// Whether nothing has happened for long enough to take hyper away. From then on the alarm is set to the moment
    /// when the connection is closed.
    fn falls_asleep(&self) -> bool {
        let asleep = self.dozing.get() && self.alarm.rang();
        if asleep {
            self.sleep();
        }
        asleep
    }

    fn sleep(&self) {
        if self.dozing.replace(false) {
            self.alarm.set(self.worker.alarms.soon() + self.keep_alive.saturating_sub(AWAKE));
        }
    }

    /// A request is here.
    fn exchange_begins(&self) {
        self.exchange.set(true);
        self.dozing.set(false);
    }

    /// From now on requests may have names with underscores.
    pub(super) fn expect_underscores(&self) {
        self.underscores.set(true);
    }

    pub(super) fn expects_underscores(&self) -> bool {
        self.underscores.get()
    }

    /// The first bytes of a head are here: the rest must follow in time.
    pub(super) fn head_began(&self) {
        self.dozing.set(false);
        self.alarm.set(self.worker.alarms.soon() + self.header_timeout);
    }

    /// Waits for `work` until the alarm rings.
    pub(super) async fn in_time<T>(
        &self,
        work: impl Future<Output = Result<T, ProxyError>>,
        late: ProxyError,
    ) -> Result<T, ProxyError> {
        let mut work = pin!(work);
        let done = poll_fn(|cx| match work.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending if self.alarm.rang() => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        });
        done.await.unwrap_or(Err(late))
    }

    /// The answer is the gateway's own: it may be read as slowly as any other body.
    pub(super) fn own_answer_begins(&self) {
        self.alarm.set_ceiling(None);
        self.alarm.set(self.worker.alarms.soon() + self.keep_alive);
    }

    /// The answer being given is HTTP's last one.
    pub(super) fn goes_on_as(&self, tunnel: Tunnel) {
        *self.tunnel.borrow_mut() = Some(Box::new(tunnel));
    }

    /// The answer is over.
    pub(super) fn exchange_ends(&self, now: Instant) {
        self.alarm.set_ceiling(None);
        self.alarm.set(now + AWAKE.min(self.keep_alive));
        self.dozing.set(true);
        self.exchange.set(false);
        self.answered.set(self.answered.get() + 1);
        if self.stalled.take() {
            self.alarm.wake();
        }
    }
}

// === impl Awake ===

impl<'a> Awake<'a> {
    fn begin(worker: &'a Worker) -> Self {
        worker.awake.set(worker.awake.get() + 1);
        Self(worker)
    }
}

impl Drop for Awake<'_> {
    fn drop(&mut self) {
        self.0.awake.set(self.0.awake.get() - 1);
    }
}

// === impl Unclaimed ===

impl Drop for Unclaimed {
    fn drop(&mut self) {
        drop(self.0.tunnel.take());
    }
}

// === a connection ===

/// Serves a client until either side has had enough. The permit goes with the connection.
pub(super) async fn serve(
    worker: Rc<Worker>,
    listener: Rc<ListenerState>,
    tcp: TcpStream,
    ends: Addresses,
    permit: Permit,
) {
    let limits = Arc::clone(&worker.view().table.routing.limits);
    let client = Rc::new(Client::new(worker, listener, ends, &limits));
    let _unclaimed = Unclaimed(Rc::clone(&client));
    client.head_began();
    let mut stream = ClientStream::new(&tcp, Framing::new(Arc::clone(&limits)), Rc::clone(&client));
    loop {
        if !next_request(&client, &stream).await {
            return;
        }
        // In a box: what rests is small.
        let mut connection = Box::new(hyper_for(&client, stream, &limits));
        let awake = Awake::begin(&client.worker);
        let mut watch = Watch::new(&tcp);
        let mut draining = false;
        let over = poll_fn(|cx| {
            // Before hyper, which would take the alarm for the client's last one.
            let asleep = client.falls_asleep();
            if client.worker.is_draining() && !draining {
                draining = true;
                Pin::new(&mut *connection).graceful_shutdown();
            }
            client.set_listening(false);
            match Pin::new(&mut *connection).poll(cx) {
                // How the connection ended matters to nobody: requests are counted by their records.
                Poll::Ready(_) => Poll::Ready(true),
                Poll::Pending if client.is_unheard() && watch.gone(cx).is_some() => Poll::Ready(true),
                Poll::Pending if client.is_at_rest() && (asleep || client.worker.awake.get() > AWAKE_MAX) => {
                    Poll::Ready(false)
                }
                Poll::Pending => Poll::Pending,
            }
        })
        .await;
        drop(awake);
        stream = connection.into_parts().io.into_inner();
        if over {
            break;
        }
        client.sleep();
    }
    let tunnel = client.tunnel.take();
    if let Some(tunnel) = tunnel {
        if let Some(first) = stream.into_tunnel() {
            Box::pin(upgrade::carry(&client, tcp, first, tunnel)).await;
        }
        return drop(permit);
    }
    if client.exchange_under_way() {
        return;
    }
    let (refusal, unread) = stream.into_parts();
    if refusal.is_some() || unread {
        Box::pin(say_goodbye(&client, tcp, refusal)).await;
    }
    drop(permit);
}

/// Waits for a request's first byte, or the client's end; false: neither came in time. Meanwhile the connection
/// holds its socket and little more: buffers and parser are made when they are needed, from memory that the last
/// request left warm.
async fn next_request(client: &Client, stream: &ClientStream<'_>) -> bool {
    poll_fn(|cx| {
        client.alarm.belongs_to(cx.waker());
        if client.worker.is_draining() {
            return Poll::Ready(false);
        }
        match stream.poll_readable(cx) {
            Poll::Ready(()) => Poll::Ready(true),
            Poll::Pending if client.alarm.rang() => Poll::Ready(false),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// hyper over a client's socket, for one or more requests.
fn hyper_for<'a>(
    client: &Rc<Client>,
    stream: ClientStream<'a>,
    limits: &Limits,
) -> http1::Connection<
    TokioIo<ClientStream<'a>>,
    impl HttpService<Incoming, ResBody = AnswerBody, Error = Infallible> + use<>,
> {
    let mut builder = http1::Builder::new();
    builder.header_read_timeout(None).max_buf_size(limits.header_bytes.max(BUFFER_MIN).max(BUFFER_MAX));
    if limits.headers > FIELDS_WITHOUT_ALLOCATION {
        builder.max_headers(limits.headers);
    }
    let client = Rc::clone(client);
    let service = service_fn(move |request| {
        // Not in the answer's future, which is polled later: hyper reads on before.
        client.exchange_begins();
        answer(Rc::clone(&client), request)
    });
    builder.serve_connection(TokioIo::new(stream), service)
}

/// Tells the client why it was read no further, and lets what it still sends run out.
async fn say_goodbye(client: &Client, mut tcp: TcpStream, refusal: Option<ProxyError>) {
    if let Some(refusal) = &refusal {
        let id = record::refuse(&client.worker, &client.listener, client.peer.ip.as_bytes(), refusal);
        client.worker.unrouted.count(OTHER, refusal.row().status.as_u16(), Duration::ZERO);
        let written = tokio::time::timeout(LINGER, tcp.write_all(&refusal.raw_response(&id))).await;
        if !matches!(written, Ok(Ok(()))) {
            return;
        }
    }
    linger(tcp).await;
}

async fn linger(mut tcp: TcpStream) {
    let discard = async {
        tcp.shutdown().await?;
        let mut buffer = vec![0; LINGER_BUFFER];
        while tcp.read(&mut buffer).await? > 0 {}
        std::io::Result::Ok(())
    };
    // Whatever happens, the connection is closed next.
    let _ = tokio::time::timeout(LINGER, discard).await;
}
