//! A socket that several parts look at: one reads, one writes, one only wants to know whether the other side is gone.
//!
//! Job: tokio's own reading and writing by shared reference, and [`Watch`]. Invariants: a piece that did not fill the
//! buffer, or was not taken whole, costs no second system call to find that there is no more; whoever waits is woken
//! by the driver of its own thread, so nothing becomes ready between a call and the note that it did not suffice.
//! Neighbours: `stream`, `relay` and `connection` read and write, `client` and `relay` watch.

use std::{
    future::Future,
    io::{self, ErrorKind, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{Interest, ReadBuf},
    net::TcpStream,
};

/// Several pieces of so many bytes together are copied into one: a copy of a few kilobytes costs less than the
/// kernel's work for a list of pieces.
const COPIED_MAX: usize = 4 << 10;

/// Whether the other side is gone for good: it reset the connection, or was silent for longer than the system waits.
/// For as long as nobody reads, which would tell as well; a mere end is only heard by reading. Nothing is registered
/// or allocated before the first question.
pub(super) struct Watch<'a> {
    pub(super) tcp: &'a TcpStream,
    state: State<'a>,
}

enum State<'a> {
    Asleep,
    Watching(Pin<Box<dyn Future<Output = ()> + 'a>>),
    Gone(ErrorKind),
}

// === impl Watch ===

impl<'a> Watch<'a> {
    pub(super) fn new(tcp: &'a TcpStream) -> Self {
        Self { tcp, state: State::Asleep }
    }

    /// Why it is gone; if it is not, the task is woken when it is. A broken pipe: its end came before that.
    pub(super) fn gone(&mut self, cx: &mut Context<'_>) -> Option<ErrorKind> {
        let tcp = self.tcp;
        if matches!(self.state, State::Asleep) {
            // An error of waiting would be the runtime's end.
            self.state = State::Watching(Box::pin(async { drop(tcp.ready(Interest::ERROR).await) }));
        }
        if let State::Watching(error) = &mut self.state
            && error.as_mut().poll(cx).is_ready()
        {
            // None is left if writing has met it, and told.
            let error = tcp.take_error().ok().flatten();
            self.state = State::Gone(error.map_or(ErrorKind::BrokenPipe, |error| error.kind()));
        }
        match self.state {
            State::Gone(reason) => Some(reason),
            State::Asleep | State::Watching(_) => None,
        }
    }
}

// === reading and writing ===

/// Reads some of what is there; 0: the other side has ended.
pub(super) fn poll_read(
    tcp: &TcpStream,
    cx: &mut Context<'_>,
    buffer: &mut ReadBuf<'_>,
) -> Poll<io::Result<usize>> {
    loop {
        ready!(tcp.poll_read_ready(cx))?;
        let room = buffer.remaining();
        match tcp.try_read_buf(buffer) {
            Ok(read) => {
                if (1..room).contains(&read) {
                    is_spent(tcp, Interest::READABLE);
                }
                return Poll::Ready(Ok(read));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Poll::Ready(Err(error)),
        }
    }
}

/// Writes some of these bytes.
pub(super) fn poll_write(tcp: &TcpStream, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
    loop {
        ready!(tcp.poll_write_ready(cx))?;
        match tcp.try_write(bytes) {
            Ok(written) => {
                if (1..bytes.len()).contains(&written) {
                    is_spent(tcp, Interest::WRITABLE);
                }
                return Poll::Ready(Ok(written));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Poll::Ready(Err(error)),
        }
    }
}

/// Writes some of these pieces; a few small ones are put together in `scratch`.
pub(super) fn poll_write_pieces(
    tcp: &TcpStream,
    cx: &mut Context<'_>,
    pieces: &[IoSlice<'_>],
    scratch: &mut Vec<u8>,
) -> Poll<io::Result<usize>> {
    let mut full = pieces.iter().filter(|piece| !piece.is_empty());
    if let (Some(only), None) = (full.next(), full.next()) {
        return poll_write(tcp, cx, only);
    }
    if pieces.iter().map(|piece| piece.len()).sum::<usize>() <= COPIED_MAX {
        scratch.clear();
        pieces.iter().for_each(|piece| scratch.extend_from_slice(piece));
        return poll_write(tcp, cx, scratch);
    }
    loop {
        ready!(tcp.poll_write_ready(cx))?;
        match tcp.try_write_vectored(pieces) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            written => return Poll::Ready(written),
        }
    }
}

/// Notes that the system must tell of more before it is worth asking it.
fn is_spent(tcp: &TcpStream, interest: Interest) {
    let _ = tcp.try_io(interest, || io::Result::<()>::Err(ErrorKind::WouldBlock.into()));
}
