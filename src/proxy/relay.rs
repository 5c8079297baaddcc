//! Bytes from one socket to another, both ways, until both ways have ended.
//!
//! Job: copy as a connection without a gateway in between would carry it: the end of one direction is passed on
//! and leaves the other alone, a reset is passed on as a reset. A direction begins by reading into the one buffer
//! of its worker and writing at once; when reads keep filling it, it goes on with splice(2), which moves pages
//! instead of bytes. Invariants: a direction that waits for its reader holds neither buffer nor pipe, one that
//! waits for its writer holds one of them and reads no further; nothing here awaits in the middle of a copy. A side
//! that is not read is watched where that is how its reset shows. Neighbours: `tcp` and `upgrade` make the two ends,
//! `socket` reads, writes and watches, `worker` owns the [`Copying`].

use std::{
    cell::RefCell,
    io::{self, ErrorKind},
    os::fd::OwnedFd,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use rustix::{
    net::{Shutdown, shutdown},
    pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice},
};
use tokio::{
    io::{Interest, ReadBuf},
    net::TcpStream,
};

use super::{
    alarm::Alarm,
    error::ProxyError,
    figures::Counter,
    listener::ListenerState,
    record::Carried,
    socket::{self, Watch},
    worker::Worker,
};

/// The worker's buffer, and the most that a direction copies at once.
const BUFFER_BYTES: usize = 16 << 10;
/// After so many reads in a row that filled the buffer, pages are moved instead.
const FULL_READS_MAX: u8 = 2;
/// What a pipe holds at most, if the system grants it.
const PIPE_BYTES: usize = 256 << 10;
/// Empty pipes that a worker keeps; more are closed, for each is two descriptors.
const PIPES_KEPT: usize = 16;
/// Rounds of one direction before other tasks get their turn.
const ROUNDS_MAX: usize = 16;

/// What the relays of a worker share.
#[derive(Debug)]
pub(super) struct Copying {
    buffer: RefCell<Box<[u8]>>,
    pipes: RefCell<Vec<Pipe>>,
}

/// Two sockets, and what is on its way between them.
#[derive(Debug)]
pub(super) struct Relay {
    client: TcpStream,
    endpoint: TcpStream,
    ways: Ways,
}

/// What becomes of a relay's bytes.
#[derive(Debug)]
struct Ways {
    worker: Rc<Worker>,
    listener: Rc<ListenerState>,
    alarm: Rc<Alarm>,
    idle: Duration,
    up: Direction,
    down: Direction,
    /// Where it is told what was carried, if anybody wants to know.
    carried: Option<Rc<Carried>>,
}

/// One way from socket to socket.
#[derive(Debug)]
struct Direction {
    state: State,
    held: Held,
    /// Bytes that the receiver took.
    carried: u64,
    full_reads: u8,
    /// Splice does not work here.
    copies_only: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// The sender has ended; the receiver is told when what is held has been written.
    Ending,
    Ended,
    /// The receiver takes no more. What it sends is still carried: it may say why.
    Deaf,
    /// It takes no more, and did not end before that.
    Reset,
}

/// What was read and is not written yet.
#[derive(Debug)]
enum Held {
    Nothing,
    Bytes { bytes: Vec<u8>, written: usize },
    Pipe { pipe: Pipe, left: usize },
}

#[derive(Debug)]
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

/// What a step of a direction came to.
enum Step {
    Moved(usize),
    /// The sender has ended.
    End,
    /// The receiver takes no more, because of this.
    Deaf(ErrorKind),
    /// Read it another way.
    Again,
}

// === impl Relay ===

impl Relay {
    /// Between `client` and `endpoint`; both directions end if nothing moves for `idle`.
    pub(super) fn new(
        worker: Rc<Worker>,
        listener: Rc<ListenerState>,
        alarm: Rc<Alarm>,
        idle: Duration,
        client: TcpStream,
        endpoint: TcpStream,
    ) -> Self {
        let (up, down) = (Direction::new(), Direction::new());
        let ways = Ways { worker, listener, alarm, idle, up, down, carried: None };
        Self { client, endpoint, ways }
    }

    /// Has what is carried counted there, too.
    pub(super) fn count_in(&mut self, carried: Rc<Carried>) {
        self.ways.carried = Some(carried);
    }

    /// Has `bytes` go to the endpoint before what the client sends.
    pub(super) fn send_first(&mut self, bytes: Vec<u8>) {
        self.ways.up.hold(bytes);
    }

    /// Has `bytes` go to the client before what the endpoint sends.
    pub(super) fn send_back_first(&mut self, bytes: Vec<u8>) {
        self.ways.down.hold(bytes);
    }

    /// Copies until both directions have ended.
    pub(super) async fn run(mut self) -> Result<(), ProxyError> {
        // Not moved out, which would take their room a second time.
        let ways = &mut self.ways;
        let (mut client, mut endpoint) = (Watch::new(&self.client), Watch::new(&self.endpoint));
        ways.alarm.set(ways.worker.alarms.soon() + ways.idle);
        std::future::poll_fn(|cx| ways.poll(cx, &mut client, &mut endpoint)).await
    }
}

// === impl Ways ===

impl Ways {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut Watch<'_>,
        endpoint: &mut Watch<'_>,
    ) -> Poll<Result<(), ProxyError>> {
        let (copying, listener) = (&self.worker.copying, &*self.listener);
        let up = self.up.advance(cx, client.tcp, endpoint.tcp, copying, &listener.bytes_in);
        let down = self.down.advance(cx, endpoint.tcp, client.tcp, copying, &listener.bytes_out);
        if let Some(carried) = &self.carried {
            carried.up.set(self.up.carried);
            carried.down.set(self.down.carried);
        }
        match (up, down) {
            (Err(_), _) | (_, Err(_)) => return self.reset([client.tcp, endpoint.tcp]),
            (Ok(false), Ok(false)) => {}
            (Ok(_), Ok(_)) => self.alarm.set(self.worker.alarms.soon() + self.idle),
        }
        // Only an error tells of one who is not read: because it has ended, or the endpoint does not take its bytes.
        // What an endpoint said before its reset is read first, however slow the client is.
        if !self.up.reads()
            && let Some(reason) = client.gone(cx)
        {
            self.down.deafen(reason);
        }
        if self.down.state != State::Open
            && let Some(reason) = endpoint.gone(cx)
        {
            self.up.deafen(reason);
        }
        if self.down.state == State::Reset && self.up.is_held() {
            return self.reset([client.tcp, endpoint.tcp]);
        }
        if self.up.is_over() && self.down.is_over() {
            let was_reset = [&self.up, &self.down].iter().any(|way| way.state == State::Reset);
            return if was_reset { self.reset([client.tcp, endpoint.tcp]) } else { Poll::Ready(Ok(())) };
        }
        if self.alarm.rang() { Poll::Ready(Err(ProxyError::StreamIdle)) } else { Poll::Pending }
    }

    /// One side is gone without an end: the other is to know that it was not one.
    fn reset(&self, sides: [&TcpStream; 2]) -> Poll<Result<(), ProxyError>> {
        if let Some(carried) = &self.carried {
            carried.reset.set(true);
        }
        for side in sides {
            // A side that cannot be told is gone itself.
            let _ = side.set_zero_linger();
        }
        Poll::Ready(Ok(()))
    }
}

// === impl Direction ===

impl Direction {
    fn new() -> Self {
        Self { state: State::Open, held: Held::Nothing, carried: 0, full_reads: 0, copies_only: false }
    }

    fn hold(&mut self, bytes: Vec<u8>) {
        if !bytes.is_empty() {
            self.held = Held::Bytes { bytes, written: 0 };
        }
    }

    fn is_over(&self) -> bool {
        !matches!(self.state, State::Open | State::Ending)
    }

    fn is_held(&self) -> bool {
        !matches!(self.held, Held::Nothing)
    }

    /// Whether it waits for its sender, and is woken by whatever comes.
    fn reads(&self) -> bool {
        self.state == State::Open && !self.is_held()
    }

    /// The receiver takes no more.
    fn deafen(&mut self, reason: ErrorKind) {
        if matches!(self.state, State::Deaf | State::Reset) {
            return;
        }
        self.held = Held::Nothing;
        // After an end the system says that the pipe is broken.
        self.state = if reason == ErrorKind::BrokenPipe { State::Deaf } else { State::Reset };
    }

    /// Moves what can be moved now; whether anything was. An error: `from` is gone.
    fn advance(
        &mut self,
        cx: &mut Context<'_>,
        from: &TcpStream,
        to: &TcpStream,
        copying: &Copying,
        count: &Counter,
    ) -> io::Result<bool> {
        let mut moved = false;
        for _ in 0..ROUNDS_MAX {
            let step = match (&mut self.held, self.state) {
                (_, State::Ended | State::Deaf | State::Reset) => return Ok(moved),
                (Held::Bytes { .. } | Held::Pipe { .. }, _) => self.flush(cx, to, copying),
                (Held::Nothing, State::Ending) => {
                    // A receiver that is gone needs no end.
                    let _ = shutdown(to, Shutdown::Write);
                    self.state = State::Ended;
                    return Ok(true);
                }
                (Held::Nothing, State::Open) if self.full_reads >= FULL_READS_MAX && !self.copies_only => {
                    self.fill_pipe(cx, from, copying)
                }
                (Held::Nothing, State::Open) => self.copy(cx, from, to, copying),
            };
            let Poll::Ready(step) = step else { return Ok(moved) };
            match step? {
                Step::Moved(bytes) => {
                    count.add(bytes as u64);
                    self.carried += bytes as u64;
                    moved = true;
                }
                Step::End => self.state = State::Ending,
                Step::Deaf(reason) => self.deafen(reason),
                Step::Again => {}
            }
        }
        cx.waker().wake_by_ref();
        Ok(moved)
    }

    /// Reads into the worker's buffer and writes at once; what is not taken is held.
    fn copy(
        &mut self,
        cx: &mut Context<'_>,
        from: &TcpStream,
        to: &TcpStream,
        copying: &Copying,
    ) -> Poll<io::Result<Step>> {
        let mut buffer = copying.buffer.borrow_mut();
        let mut read = ReadBuf::new(&mut buffer);
        ready!(socket::poll_read(from, cx, &mut read))?;
        let bytes = read.filled();
        if bytes.is_empty() {
            return Poll::Ready(Ok(Step::End));
        }
        self.full_reads = if bytes.len() == BUFFER_BYTES { self.full_reads.saturating_add(1) } else { 0 };
        let written = match socket::poll_write(to, cx, bytes) {
            Poll::Ready(Ok(written)) => written,
            Poll::Ready(Err(error)) => return Poll::Ready(Ok(Step::Deaf(error.kind()))),
            Poll::Pending => 0,
        };
        self.hold(bytes[written..].to_vec());
        Poll::Ready(Ok(Step::Moved(written)))
    }

    /// Writes what is held.
    fn flush(&mut self, cx: &mut Context<'_>, to: &TcpStream, copying: &Copying) -> Poll<io::Result<Step>> {
        let (written, done) = match &mut self.held {
            Held::Nothing => return Poll::Ready(Ok(Step::Again)),
            Held::Bytes { bytes, written } => match ready!(socket::poll_write(to, cx, &bytes[*written..])) {
                Ok(more) => {
                    *written += more;
                    (more, *written == bytes.len())
                }
                Err(error) => return Poll::Ready(Ok(Step::Deaf(error.kind()))),
            },
            Held::Pipe { pipe, left } => match ready!(pipe.poll_empty(cx, to, *left)) {
                Ok(more) => {
                    *left -= more;
                    (more, *left == 0)
                }
                Err(error) => return Poll::Ready(Ok(Step::Deaf(error.kind()))),
            },
        };
        if done && let Held::Pipe { pipe, .. } = std::mem::replace(&mut self.held, Held::Nothing) {
            copying.give_back(pipe);
        }
        Poll::Ready(Ok(Step::Moved(written)))
    }

    /// Moves what `from` has into a pipe, which is then held.
    fn fill_pipe(
        &mut self,
        cx: &mut Context<'_>,
        from: &TcpStream,
        copying: &Copying,
    ) -> Poll<io::Result<Step>> {
        loop {
            ready!(from.poll_read_ready(cx))?;
            let Ok(pipe) = copying.pipe() else {
                // Out of descriptors, perhaps: copying needs none.
                self.copies_only = true;
                return Poll::Ready(Ok(Step::Again));
            };
            let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
            let moved = from
                .try_io(Interest::READABLE, || Ok(splice(from, None, &pipe.write, None, PIPE_BYTES, flags)?));
            match moved {
                Ok(0) => {
                    copying.give_back(pipe);
                    return Poll::Ready(Ok(Step::End));
                }
                Ok(left) => {
                    // What comes in small pieces is cheaper to copy.
                    if left < BUFFER_BYTES {
                        self.full_reads = 0;
                    }
                    self.held = Held::Pipe { pipe, left };
                    return Poll::Ready(Ok(Step::Again));
                }
                Err(error) => {
                    copying.give_back(pipe);
                    match error.kind() {
                        ErrorKind::WouldBlock | ErrorKind::Interrupted => {}
                        ErrorKind::InvalidInput => {
                            self.copies_only = true;
                            return Poll::Ready(Ok(Step::Again));
                        }
                        _ => return Poll::Ready(Err(error)),
                    }
                }
            }
        }
    }
}

// === impl Pipe ===

impl Pipe {
    fn open() -> io::Result<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // The system may grant less: then more is moved in smaller pieces.
        let _ = fcntl_setpipe_size(&write, PIPE_BYTES);
        Ok(Self { read, write })
    }

    /// Moves some of the `left` bytes in it to a socket.
    fn poll_empty(&self, cx: &mut Context<'_>, to: &TcpStream, left: usize) -> Poll<io::Result<usize>> {
        loop {
            ready!(to.poll_write_ready(cx))?;
            let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
            let moved =
                to.try_io(Interest::WRITABLE, || Ok(splice(&self.read, None, to, None, left, flags)?));
            match moved {
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                moved => return Poll::Ready(moved),
            }
        }
    }
}

// === impl Copying ===

impl Copying {
    pub(super) fn new() -> Self {
        Self { buffer: RefCell::new(vec![0; BUFFER_BYTES].into()), pipes: RefCell::default() }
    }

    /// An empty pipe.
    fn pipe(&self) -> io::Result<Pipe> {
        match self.pipes.borrow_mut().pop() {
            Some(pipe) => Ok(pipe),
            None => Pipe::open(),
        }
    }

    /// Keeps an empty pipe for the next one who needs it.
    fn give_back(&self, pipe: Pipe) {
        let mut pipes = self.pipes.borrow_mut();
        if pipes.len() < PIPES_KEPT {
            pipes.push(pipe);
        }
    }
}
