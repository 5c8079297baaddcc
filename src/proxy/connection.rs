//! One connection to an endpoint.
//!
//! Job: hyper's client connection, driven by the request that holds it instead of a task of its own: nothing
//! wakes anything to move a request from one task to another. Its socket wakes the request's task; what hyper
//! wakes inside (its channels) only sets a flag that [`Connection::poll_with`] looks at.
//! Invariant: a wake-up is never lost: after every poll of hyper the flag is looked at, and the task is woken if
//! it stays set. Neighbours: `pool` keeps it between requests, `forward` sends on it.

use std::{
    io,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Instant,
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{io::AsyncWriteExt, net::TcpStream};

use super::{
    framing::answer::Due,
    stream::{EndpointExchange, EndpointStream, Task},
    table::Target,
    upload::RequestBody,
};

/// How often hyper is polled for one wake-up before other tasks get their turn.
const POLLS_MAX: usize = 32;

/// An open connection, with or without a request on it.
pub(super) struct Connection {
    pub(super) sender: http1::SendRequest<RequestBody>,
    /// None once it has ended.
    hyper: Option<http1::Connection<TokioIo<EndpointStream>, RequestBody>>,
    /// What it left when it ended.
    left: Option<http1::Parts<TokioIo<EndpointStream>>>,
    pub(super) task: Rc<Task>,
    flag: Arc<Flag>,
    flag_waker: Waker,
    exchange: Rc<EndpointExchange>,
    /// The fields of the request under way if it may be sent again; kept for its memory.
    pub(super) saved: Vec<(HeaderName, HeaderValue)>,
    pub(super) reused: bool,
    pub(super) idle_since: Instant,
}

#[derive(Debug, Default)]
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

// === impl Connection ===

impl Connection {
    /// Opens a connection that begins with `header`, if there is one.
    pub(super) async fn open(target: &Target, header: Option<&[u8]>) -> io::Result<Connection> {
        let mut tcp = target.connect().await?;
        if let Some(header) = header {
            tcp.write_all(header).await?;
        }
        let task = Rc::new(Task::nobody());
        let exchange = Rc::new(EndpointExchange::none());
        let stream = EndpointStream::new(tcp, Rc::clone(&task), Rc::clone(&exchange));
        let (sender, hyper) =
            http1::Builder::new().handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        let flag = Arc::new(Flag::default());
        Ok(Connection {
            sender,
            hyper: Some(hyper),
            left: None,
            task,
            flag_waker: Arc::clone(&flag).into(),
            flag,
            exchange,
            saved: Vec::new(),
            reused: false,
            idle_since: Instant::now(),
        })
    }

    /// Whether it is open and takes a request.
    pub(super) fn is_usable(&mut self) -> bool {
        self.poll_hyper();
        self.hyper.is_some() && self.sender.is_ready() && self.exchange.broken.get().is_none()
    }

    /// Before a request is sent.
    pub(super) fn begin(&mut self, method: &Method) {
        self.exchange.received.set(false);
        self.exchange.due.set(if *method == Method::HEAD { Due::AnswerToHead } else { Due::Answer });
    }

    /// Why what the endpoint sent is no answer.
    pub(super) fn broken(&self) -> Option<&'static str> {
        self.exchange.broken.get()
    }

    /// Whether the endpoint has sent anything since [`Connection::begin`].
    pub(super) fn has_received(&self) -> bool {
        self.exchange.received.get()
    }

    /// After a request, before it waits for the next one.
    pub(super) fn rest(&mut self) {
        self.task.set(Waker::noop());
        self.saved.clear();
        self.reused = true;
        self.idle_since = Instant::now();
    }

    /// Polls the connection and `what`, which depends on nothing but it, until neither makes progress.
    pub(super) fn poll_with<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut what: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        self.task.set(cx.waker());
        for _ in 0..POLLS_MAX {
            if let Poll::Ready(done) = what(&mut Context::from_waker(&self.flag_waker)) {
                return Poll::Ready(done);
            }
            self.flag.0.store(false, Ordering::Relaxed);
            self.poll_hyper();
            if let Poll::Ready(done) = what(&mut Context::from_waker(&self.flag_waker)) {
                return Poll::Ready(done);
            }
            if !self.flag.0.load(Ordering::Relaxed) {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// The socket, after an answer of 101, and what came behind that answer.
    pub(super) fn into_tunnel(self) -> Option<(TcpStream, Bytes)> {
        self.left.map(|left| (left.io.into_inner().into_tcp(), left.read_buf))
    }

    /// Once ended it is dropped, so that whoever waits for it hears so.
    fn poll_hyper(&mut self) {
        if let Some(hyper) = &mut self.hyper
            && Pin::new(hyper).poll(&mut Context::from_waker(&self.flag_waker)).is_ready()
        {
            self.left = self.hyper.take().map(http1::Connection::into_parts);
        }
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("open", &self.hyper.is_some()).finish_non_exhaustive()
    }
}
