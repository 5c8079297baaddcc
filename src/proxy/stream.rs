//! A client's socket as hyper sees it.
//!
//! Job: show every byte to `framing` before hyper reads it, and enforce the deadlines that hold between requests.
//! [`ClientStream`] borrows its socket, which `client` watches as well. Neighbour: `client` wraps it for hyper.

use std::{
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::{client::Client, error::ProxyError, framing::Framing, socket};

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
        let mut scratch = this.client.worker.buffers.scratch.borrow_mut();
        let written = socket::poll_write_pieces(this.tcp, cx, bufs, &mut scratch);
        drop(scratch);
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
