//! The sockets as hyper sees them.
//!
//! Job: both show every byte to `framing` before hyper reads it. [`ClientStream`] borrows its socket, which `client`
//! watches as well, and enforces the deadlines that hold between requests; [`EndpointStream`] wakes the task of the
//! request that holds the connection. Neighbours: `client` and `forward` wrap them for hyper.

use std::{
    cell::{Cell, RefCell},
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::{
    client::Client,
    error::ProxyError,
    framing::{
        Framing,
        answer::{AnswerFraming, Due},
    },
    socket,
};

/// A client's socket.
#[derive(Debug)]
pub(super) struct ClientStream<'a> {
    tcp: &'a TcpStream,
    framing: Framing,
    client: Rc<Client>,
    /// Why no more is read; `client` answers it.
    refusal: Option<ProxyError>,
    /// Whether the refusal concerns a request that nobody else answers.
    answerable: bool,
    /// The client's side is full: an answer is not written out yet.
    blocked: bool,
    /// The last look for more to read found nothing.
    starved: bool,
    /// Was read behind a request for another protocol, and is not looked at yet.
    held: Vec<u8>,
}

/// An answer in several pieces of so many bytes together is copied into one: a copy of a few kilobytes costs less
/// than the kernel's work for a list of pieces.
const COPIED_MAX: usize = 4 << 10;

/// An endpoint's socket.
#[derive(Debug)]
pub(super) struct EndpointStream {
    tcp: TcpStream,
    task: Rc<Task>,
    framing: AnswerFraming,
    exchange: Rc<EndpointExchange>,
    /// The endpoint takes no more. What it said before that is still to be read, often why it takes no more, so
    /// the error is left to reading: writing waits.
    deaf: bool,
}

/// What a connection to an endpoint and its socket tell each other about the request under way.
#[derive(Debug)]
pub(super) struct EndpointExchange {
    /// What the endpoint owes.
    pub(super) due: Cell<Due>,
    /// Whether it has sent anything since the request began.
    pub(super) received: Cell<bool>,
    /// Why nothing more is read: what was sent is no answer, or too much of one.
    pub(super) broken: Cell<Option<&'static str>>,
}

/// The task that an endpoint's connection works for: another one for each request.
#[derive(Debug)]
pub(super) struct Task(RefCell<Waker>);

// === impl ClientStream ===

impl<'a> ClientStream<'a> {
    pub(super) fn new(tcp: &'a TcpStream, framing: Framing, client: Rc<Client>) -> Self {
        Self {
            tcp,
            framing,
            client,
            refusal: None,
            answerable: false,
            blocked: false,
            starved: false,
            held: Vec::new(),
        }
    }

    /// Ready when there is something to read, be it the end.
    pub(super) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.tcp.poll_read_ready(cx).map(drop)
    }

    /// Whether nothing of a request has come that was not passed on, and everything written is on its way: this
    /// and the client's exchange being over, hyper holds nothing for this connection.
    fn is_still(&self) -> bool {
        self.starved && !self.blocked && self.refusal.is_none() && self.framing.at_start()
    }

    /// What the client sent of another protocol already. None: an answer before it was not written out, and is lost.
    pub(super) fn into_tunnel(self) -> Option<Vec<u8>> {
        (!self.blocked && self.refusal.is_none()).then_some(self.held)
    }

    /// Whether what the client sends now may belong to another protocol: nobody reads it before that is known.
    fn waits_for_answer(&mut self) -> bool {
        if !self.framing.waits_for_answer() {
            return false;
        }
        let waits = self.client.answered() < self.framing.requests();
        if waits {
            self.client.stall();
        } else {
            self.framing.go_on();
        }
        waits
    }

    /// Reads what was held back, or from the socket.
    fn poll_bytes(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.held.is_empty() {
            return socket::poll_read(self.tcp, cx, buf).map_ok(drop);
        }
        let taken = self.held.len().min(buf.remaining());
        buf.put_slice(&self.held[..taken]);
        self.held.drain(..taken);
        Poll::Ready(Ok(()))
    }

    /// Holds what comes before it is known whether it is HTTP. An end before anything else gives up the request, as
    /// it does any other.
    fn poll_early(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.held.is_empty() {
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let read = socket::poll_read(self.tcp, cx, buf);
        self.client.set_listening(read.is_pending());
        if ready!(read)? == 0 {
            return Poll::Ready(Ok(()));
        }
        self.held.extend_from_slice(&buf.filled()[before..]);
        buf.set_filled(before);
        Poll::Pending
    }

    /// Why it was read no further, and whether a request was left half read.
    pub(super) fn into_parts(self) -> (Option<ProxyError>, bool) {
        let unread = !self.framing.at_start();
        (self.refusal.filter(|_| self.answerable), unread)
    }

    fn refuse(&mut self, refusal: ProxyError, answerable: bool) {
        self.refusal = Some(refusal);
        self.answerable = answerable;
    }

    fn refused(&self) -> Poll<io::Result<()>> {
        // What was asked before is answered first, to the last byte.
        if self.answerable && (self.client.exchange_under_way() || self.blocked) {
            self.client.stall();
            return Poll::Pending;
        }
        Poll::Ready(Err(io::ErrorKind::InvalidData.into()))
    }

    /// Ends reading: silently where no request has begun.
    fn out_of_time(&mut self) -> io::Error {
        if self.framing.in_head() {
            self.refuse(ProxyError::RequestTimeout, true);
        }
        io::ErrorKind::TimedOut.into()
    }
}

impl AsyncRead for ClientStream<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.refusal.is_some() {
            return this.refused();
        }
        if this.waits_for_answer() {
            this.client.set_still(false);
            return this.poll_early(cx, buf);
        }
        let before = buf.filled().len();
        let read = this.poll_bytes(cx, buf);
        this.starved = read.is_pending();
        this.client.set_listening(this.starved);
        this.client.set_still(this.is_still());
        let Poll::Ready(read) = read else {
            // An exchange under way minds its own deadlines.
            let late = this.client.alarm.rang() && !this.client.exchange_under_way();
            return if late { Poll::Ready(Err(this.out_of_time())) } else { Poll::Pending };
        };
        read?;
        let was_at_start = this.framing.at_start();
        match this.framing.take(&buf.filled()[before..]) {
            Ok(taken) if before + taken < buf.filled().len() => {
                this.held.splice(..0, buf.filled()[before + taken..].iter().copied());
                buf.set_filled(before + taken);
            }
            Ok(_) => {}
            Err(refusal) => {
                // Inside a request's own body the exchange under way answers.
                this.refuse(refusal.error, refusal.good.is_some() || !this.client.exchange_under_way());
                let Some(good) = refusal.good.filter(|good| *good > 0) else { return this.refused() };
                buf.set_filled(before + good);
            }
        }
        if this.framing.has_seen_underscores() {
            this.client.expect_underscores();
        }
        if was_at_start && this.framing.in_head() && !this.client.exchange_under_way() {
            this.client.head_began();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ClientStream<'_> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = socket::poll_write(self.tcp, cx, buf);
        self.in_time(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let written = match bufs {
            [only] => socket::poll_write(this.tcp, cx, only),
            bufs if bufs.iter().map(|piece| piece.len()).sum::<usize>() <= COPIED_MAX => {
                let mut scratch = this.client.worker.scratch.borrow_mut();
                scratch.clear();
                bufs.iter().for_each(|piece| scratch.extend_from_slice(piece));
                socket::poll_write(this.tcp, cx, &scratch)
            }
            bufs => socket::poll_write_vectored(this.tcp, cx, bufs),
        };
        this.in_time(written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// `client` closes the socket next, if it does not have something to say before: a shutdown would only be one
    /// more system call.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl ClientStream<'_> {
    /// A client that takes nothing for as long as a body may stand still is given up.
    fn in_time(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        let was_blocked = std::mem::replace(&mut self.blocked, written.is_pending());
        if was_blocked != self.blocked {
            self.client.set_still(self.is_still());
        }
        if was_blocked && !self.blocked && self.refusal.is_some() {
            // Reading may have waited for this.
            self.client.alarm.wake();
        }
        match written {
            Poll::Pending if self.client.alarm.rang() => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            written => written,
        }
    }
}

// === impl EndpointStream ===

impl EndpointStream {
    /// The socket for another protocol.
    pub(super) fn into_tcp(self) -> TcpStream {
        self.tcp
    }

    pub(super) fn new(tcp: TcpStream, task: Rc<Task>, exchange: Rc<EndpointExchange>) -> Self {
        Self { tcp, task, framing: AnswerFraming::default(), exchange, deaf: false }
    }

    /// Judges what was read; how much of it is given to hyper.
    fn judge(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let exchange = &*self.exchange;
        exchange.received.set(true);
        match self.framing.take(bytes, exchange.due.get()) {
            Ok(due) => {
                exchange.due.set(due);
                Ok(bytes.len())
            }
            Err(broken) => {
                exchange.broken.set(Some(broken.why));
                if broken.good > 0 { Ok(broken.good) } else { Err(io::ErrorKind::InvalidData.into()) }
            }
        }
    }

    fn or_deaf(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Err(_)) = written {
            self.deaf = true;
            // hyper has read before it wrote: it must look again.
            self.task.waker().wake();
            return Poll::Pending;
        }
        written
    }
}

impl AsyncRead for EndpointStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.exchange.broken.get().is_some() {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        let before = buf.filled().len();
        let waker = this.task.0.borrow();
        ready!(Pin::new(&mut this.tcp).poll_read(&mut Context::from_waker(&waker), buf))?;
        drop(waker);
        if buf.filled().len() > before {
            let good = this.judge(&buf.filled()[before..])?;
            buf.set_filled(before + good);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for EndpointStream {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.deaf {
            return Poll::Pending;
        }
        let this = &mut *self;
        let written =
            Pin::new(&mut this.tcp).poll_write(&mut Context::from_waker(&this.task.0.borrow()), buf);
        this.or_deaf(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.deaf {
            return Poll::Pending;
        }
        let this = &mut *self;
        let written = write_pieces(&mut this.tcp, &mut Context::from_waker(&this.task.0.borrow()), bufs);
        this.or_deaf(written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

/// One piece is written without the kernel's work for a list of them.
fn write_pieces(
    tcp: &mut TcpStream,
    cx: &mut Context<'_>,
    bufs: &[io::IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    match bufs {
        [only] => Pin::new(tcp).poll_write(cx, only),
        bufs => Pin::new(tcp).poll_write_vectored(cx, bufs),
    }
}

// === impl EndpointExchange ===

impl EndpointExchange {
    /// Before the first request.
    pub(super) fn none() -> Self {
        Self { due: Cell::new(Due::Nothing), received: Cell::new(false), broken: Cell::new(None) }
    }
}

// === impl Task ===

impl Task {
    /// A connection that nobody waits for.
    pub(super) fn nobody() -> Self {
        Self(RefCell::new(Waker::noop().clone()))
    }

    /// Says which task to wake from now on.
    pub(super) fn set(&self, waker: &Waker) {
        self.0.borrow_mut().clone_from(waker);
    }

    /// The task's waker.
    pub(super) fn waker(&self) -> Waker {
        self.0.borrow().clone()
    }
}
