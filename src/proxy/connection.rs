//! One connection to an endpoint: HTTP/1.1, one request at a time.
//!
//! Job: write a request as [`Outgoing`] has it, and read its answer by `framing::answer`. It has no task: whoever holds
//! it for a request polls it, and its socket wakes that request's task.
//! Invariants: between a request and its answer it holds its state and no buffer (a thousand requests under way must
//! fit into the processor's caches): what is read goes through one block of the worker, what is written is the
//! request's own. A body is read no faster than the endpoint takes it. Neighbours: `pool` keeps it between requests,
//! `forward` sends on it.

use std::{
    cell::RefCell,
    io::{self, IoSlice, Write},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderName, Method, response};
use tokio::{io::AsyncWriteExt, net::TcpStream};
use tokio_util::io::poll_read_buf;

use super::{
    framing::answer::{AnswerFraming, Due, Part},
    outgoing::Outgoing,
    socket,
    table::Target,
    upload::RequestBody,
};

/// So much may be read at once, and so much at least there is room for.
const BLOCK: usize = 128 << 10;
const READ_MIN: usize = 64 << 10;
/// A read of so many bytes is passed on with the block it is in, a smaller one as a copy: it must not hold the block.
const SHARED_MIN: usize = 32 << 10;

/// An open connection, with or without a request on it.
pub(super) struct Connection {
    tcp: TcpStream,
    buffers: Rc<Buffers>,
    answers: AnswerFraming,
    /// Was read, and not taken by `answers` yet.
    read: Bytes,
    /// A head that is not written out.
    head: Option<Rc<[u8]>>,
    /// A body that is not written out.
    upload: Option<Box<Uploading>>,
    /// How much of what is to be written next (head and piece of the body) is written.
    written: usize,
    /// Whether any byte of the request under way has left.
    left: bool,
    /// Whether the endpoint has sent anything since the request began.
    received: bool,
    /// The endpoint takes no more. What it said before that is still to be read, often why it takes no more.
    deaf: bool,
    /// It carries nothing any more.
    over: bool,
    /// It has carried a request before.
    pub(super) reused: bool,
    pub(super) idle_since: Instant,
}

/// Why there is no answer, or no more of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// The connection ended.
    Closed,
    /// What the endpoint sent is no answer.
    Malformed,
    /// The request's body failed; it knows why.
    Body,
}

/// What the connections of a worker read and write with. Empty between two calls.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    /// Where small writes are put together.
    pub(super) scratch: RefCell<Vec<u8>>,
    block: RefCell<BytesMut>,
}

/// A body on its way: one piece of it at a time.
struct Uploading {
    body: RequestBody,
    /// None: as long as its head says; else the fields that may follow it.
    chunked: Option<Rc<[HeaderName]>>,
    ended: bool,
    /// What frames the data before and behind it.
    before: Vec<u8>,
    data: Bytes,
    behind: &'static [u8],
}

// === impl Connection ===

impl Connection {
    /// Opens a connection that begins with `header`, if there is one.
    pub(super) async fn open(
        target: &Target,
        header: Option<&[u8]>,
        buffers: &Rc<Buffers>,
    ) -> io::Result<Connection> {
        let mut tcp = target.connect().await?;
        if let Some(header) = header {
            tcp.write_all(header).await?;
        }
        Ok(Connection {
            tcp,
            buffers: Rc::clone(buffers),
            answers: AnswerFraming::default(),
            read: Bytes::new(),
            head: None,
            upload: None,
            written: 0,
            left: false,
            received: false,
            deaf: false,
            over: false,
            reused: false,
            idle_since: Instant::now(),
        })
    }

    /// Whether the last answer is whole, and nothing stands in the way of another request.
    pub(super) fn is_usable(&self) -> bool {
        let is_free = self.answers.has_ended() && self.answers.is_persistent() && !self.is_sending();
        is_free
            && !self.deaf
            && !self.over
            && self.read.is_empty()
            // No system call unless the socket has news, which are bad ones.
            && matches!(self.tcp.try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Before the first call of [`Connection::poll_head`] for a request.
    pub(super) fn begin(&mut self, request: &Outgoing) {
        self.head = Some(Rc::clone(&request.head));
        self.upload = Uploading::of(request);
        (self.written, self.left, self.received) = (0, false, false);
        self.answers.begin(if request.method == Method::HEAD { Due::AnswerToHead } else { Due::Answer });
    }

    /// Whether any byte of the request has left.
    pub(super) fn has_left(&self) -> bool {
        self.left
    }

    /// Whether the endpoint has sent anything since [`Connection::begin`].
    pub(super) fn has_received(&self) -> bool {
        self.received
    }

    /// Whether the answer is whole.
    pub(super) fn has_ended(&self) -> bool {
        self.answers.has_ended()
    }

    /// How much of the answer is still to come, in bytes, where that is known.
    pub(super) fn data_left(&self) -> Option<u64> {
        self.answers.data_left()
    }

    /// After a request, before it waits for the next one.
    pub(super) fn rest(&mut self) {
        self.reused = true;
        self.idle_since = Instant::now();
    }

    /// Sends the request and reads the head of its answer.
    pub(super) fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<response::Parts, Failure>> {
        Poll::Ready(match ready!(self.poll_part(cx)) {
            Ok(Some(Part::Head(head))) => Ok(head),
            Ok(_) => Err(Failure::Malformed),
            Err(failure) => Err(failure),
        })
    }

    /// The next part of the answer, none at its end. What is left of the request is sent meanwhile.
    pub(super) fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Part>, Failure>> {
        if self.is_sending()
            && let Poll::Ready(Err(failure)) = self.poll_send(cx)
        {
            self.over = true;
            return Poll::Ready(Err(failure));
        }
        loop {
            match self.answers.next(&mut self.read) {
                Ok(None) if !self.answers.has_ended() && !self.answers.has_switched() => {}
                Ok(part) => return Poll::Ready(Ok(part)),
                Err(why) => {
                    tracing::debug!(why, "the endpoint's answer is refused");
                    self.over = true;
                    return Poll::Ready(Err(Failure::Malformed));
                }
            }
            match ready!(self.poll_read(cx)) {
                Ok(0) if self.answers.end() => {
                    self.over = true;
                    return Poll::Ready(Ok(None));
                }
                Ok(0) | Err(_) => {
                    self.over = true;
                    return Poll::Ready(Err(Failure::Closed));
                }
                Ok(_) => self.received = true,
            }
        }
    }

    /// The socket, after an answer of 101, and what came behind that answer.
    pub(super) fn into_tunnel(self) -> Option<(TcpStream, Bytes)> {
        (self.answers.has_switched() && !self.is_sending()).then_some((self.tcp, self.read))
    }

    fn is_sending(&self) -> bool {
        self.head.is_some() || self.upload.is_some()
    }

    /// Reads more; nothing is left of what was read before.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut block = self.buffers.block.borrow_mut();
        // It is this worker's again once everything that was passed on with it is gone.
        if block.capacity() < READ_MIN && !block.try_reclaim(READ_MIN) {
            *block = BytesMut::with_capacity(BLOCK);
        }
        let taken = ready!(poll_read_buf(Pin::new(&mut self.tcp), cx, &mut *block))?;
        self.read = if taken >= SHARED_MIN { block.split().freeze() } else { Bytes::copy_from_slice(&block) };
        block.clear();
        Poll::Ready(Ok(taken))
    }

    /// Writes what there is of the request.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        loop {
            if let Some(upload) = &mut self.upload {
                upload.fill(cx)?;
            }
            let (before, data, behind) = match &self.upload {
                Some(upload) => (&*upload.before, &*upload.data, upload.behind),
                None => (&[][..], &[][..], &[][..]),
            };
            let pieces = [self.head.as_deref().unwrap_or_default(), before, data, behind];
            let total: usize = pieces.iter().map(|piece| piece.len()).sum();
            if total == 0 {
                let over = self.upload.as_ref().is_none_or(|upload| upload.ended);
                if over {
                    self.upload = None;
                }
                return if over { Poll::Ready(Ok(())) } else { Poll::Pending };
            }
            let mut scratch = self.buffers.scratch.borrow_mut();
            let pieces = unwritten(pieces, self.written);
            let Ok(taken) = ready!(socket::poll_write_pieces(&self.tcp, cx, &pieces, &mut scratch)) else {
                (self.head, self.upload, self.deaf) = (None, None, true);
                return Poll::Ready(Ok(()));
            };
            self.left |= taken > 0;
            self.written += taken;
            if self.written == total {
                self.written = 0;
                self.head = None;
                self.upload = self.upload.take().and_then(Uploading::next);
            }
            if !self.is_sending() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("tcp", &self.tcp).finish_non_exhaustive()
    }
}

/// What of `pieces` comes after the first `written` bytes.
fn unwritten(pieces: [&[u8]; 4], written: usize) -> [IoSlice<'_>; 4] {
    let mut left = written;
    pieces.map(|piece| {
        let skipped = left.min(piece.len());
        left -= skipped;
        IoSlice::new(&piece[skipped..])
    })
}

// === impl Uploading ===

impl Uploading {
    fn of(request: &Outgoing) -> Option<Box<Self>> {
        (!request.body.is_none()).then(|| {
            Box::new(Self {
                body: request.body.clone(),
                chunked: request.chunked.clone(),
                ended: false,
                before: Vec::new(),
                data: Bytes::new(),
                behind: b"",
            })
        })
    }

    /// Fetches the next piece if none is waiting and there is one.
    fn fill(&mut self, cx: &mut Context<'_>) -> Result<(), Failure> {
        while !self.ended && self.data.is_empty() && self.before.is_empty() {
            let Poll::Ready(frame) = self.body.poll_frame(cx) else { break };
            let frame = frame.transpose().map_err(|_| Failure::Body)?;
            let Some(allowed) = &self.chunked else {
                self.ended = frame.is_none() || self.body.has_ended();
                self.data = frame.and_then(|frame| frame.into_data().ok()).unwrap_or_default();
                continue;
            };
            match frame.map(|frame| frame.into_data()) {
                Some(Ok(data)) if data.is_empty() => {}
                Some(Ok(data)) => {
                    write!(self.before, "{:x}\r\n", data.len()).map_err(|_| Failure::Body)?;
                    (self.data, self.behind) = (data, b"\r\n");
                }
                last => {
                    self.ended = true;
                    self.before.extend_from_slice(b"0\r\n");
                    let trailers = last.and_then(|last| last.err()?.into_trailers().ok());
                    for (name, value) in trailers.iter().flatten().filter(|(name, _)| allowed.contains(name))
                    {
                        for piece in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                            self.before.extend_from_slice(piece);
                        }
                    }
                    self.behind = b"\r\n";
                }
            }
        }
        Ok(())
    }

    /// The piece is written: what remains, if any.
    fn next(mut self: Box<Self>) -> Option<Box<Self>> {
        self.before.clear();
        (self.data, self.behind) = (Bytes::new(), b"");
        (!self.ended).then_some(self)
    }
}
