//! Connections to one endpoint, as one worker keeps them.
//!
//! Job: lend a connection, an idle one first (the latest used, so that the rest may age), else a new one, else a
//! place in a queue. More than `max_idle` may be idle for a moment: a busy worker gives back and takes out in
//! bursts, and closing at once what the next burst needs would open and close connections all the time.
//! Invariants: at most `max_connections` exist; a connection that the endpoint closed is not lent; everything
//! here belongs to one thread. Neighbours: `upstream` owns one per endpoint, `connection` is
//! what is lent, `forward` borrows.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
    task::{Poll, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::net::TcpStream;

use super::{
    connection::{Buffers, Connection},
    error::ProxyError,
    table::Target,
};
use crate::config::document::Pool as Bounds;

/// Requests that may wait for a connection to one endpoint; one more is told 503.
const WAITERS_MAX: usize = 1024;
/// How long idle connections beyond `max_idle` are kept: those that no burst of the last second needed are
/// closed.
const SURPLUS_KEPT: Duration = Duration::from_secs(1);

/// One endpoint's connections.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) target: Target,
    #[expect(
        clippy::vec_box,
        reason = "a connection moves between pool, lease and waiter; its box does not"
    )]
    idle: RefCell<Vec<Box<Connection>>>,
    /// Idle or lent.
    open: Cell<usize>,
    waiters: RefCell<VecDeque<Rc<Waiter>>>,
    /// Connections that are not HTTP's.
    streams: Cell<usize>,
}

/// The right to one stream to the endpoint.
#[derive(Debug)]
pub(super) struct StreamPlace(Rc<Pool>);

/// The right to one connection, and the connection once there is one. Dropped with it, the connection is closed.
#[derive(Debug)]
pub(super) struct Lease {
    connection: Option<Box<Connection>>,
    pool: Rc<Pool>,
    /// Whether the service wants connections to carry more than one request.
    reusable: bool,
    /// The place has gone on with its connection.
    passed_on: bool,
}

#[derive(Debug)]
struct Waiter {
    lease: RefCell<Option<Lease>>,
    waker: RefCell<Waker>,
}

/// Takes a waiter out of the queue when its request goes away.
struct Waiting {
    pool: Rc<Pool>,
    waiter: Rc<Waiter>,
}

// === impl Pool ===

impl Pool {
    pub(super) fn new(target: Target) -> Rc<Self> {
        Rc::new(Self {
            target,
            idle: RefCell::default(),
            open: Cell::new(0),
            waiters: RefCell::default(),
            streams: Cell::new(0),
        })
    }

    /// A lease with an idle connection, if there is a live one.
    pub(super) fn idle_lease(self: &Rc<Self>, bounds: &Bounds) -> Option<Lease> {
        loop {
            let connection = self.idle.borrow_mut().pop()?;
            if connection.is_usable() {
                return Some(Lease::new(self, Some(connection), bounds.max_idle > 0));
            }
            drop(Lease::new(self, None, bounds.max_idle > 0));
        }
    }

    /// A lease to open a connection with, or one that another request gave back. Where as many connections
    /// exist as may, an idle one makes room, or the request waits; the caller minds the time.
    pub(super) async fn lease(self: &Rc<Self>, bounds: &Bounds) -> Result<Lease, ProxyError> {
        if self.open.get() < bounds.max_connections {
            self.open.set(self.open.get() + 1);
            return Ok(Lease::new(self, None, bounds.max_idle > 0));
        }
        let oldest = {
            let mut idle = self.idle.borrow_mut();
            (!idle.is_empty()).then(|| idle.remove(0))
        };
        if oldest.is_some() {
            return Ok(Lease::new(self, None, bounds.max_idle > 0));
        }
        if self.waiters.borrow().len() >= WAITERS_MAX {
            return Err(ProxyError::PoolOverload);
        }
        let waiter =
            Rc::new(Waiter { lease: RefCell::new(None), waker: RefCell::new(Waker::noop().clone()) });
        self.waiters.borrow_mut().push_back(Rc::clone(&waiter));
        let waiting = Waiting { pool: Rc::clone(self), waiter };
        std::future::poll_fn(|cx| match waiting.waiter.lease.borrow_mut().take() {
            Some(lease) => Poll::Ready(Ok(lease)),
            None => {
                waiting.waiter.waker.borrow_mut().clone_from(cx.waker());
                Poll::Pending
            }
        })
        .await
    }

    /// The right to one more stream, if there may be one more.
    pub(super) fn stream(self: &Rc<Self>, bounds: &Bounds) -> Option<StreamPlace> {
        let streams = self.streams.get();
        if streams >= bounds.max_streams {
            return None;
        }
        self.streams.set(streams + 1);
        Some(StreamPlace(Rc::clone(self)))
    }

    /// Closes idle connections that the endpoint closed, that nobody used for `idle_timeout`, or that are
    /// beyond `max_idle` and of no use lately.
    pub(super) fn sweep(&self, bounds: &Bounds, now: Instant) {
        let mut idle = self.idle.borrow_mut();
        let before = idle.len();
        // The longest idle come first.
        let mut surplus = before.saturating_sub(bounds.max_idle);
        idle.retain(|connection| {
            let kept = if surplus > 0 { SURPLUS_KEPT.min(bounds.idle_timeout) } else { bounds.idle_timeout };
            surplus = surplus.saturating_sub(1);
            now.saturating_duration_since(connection.idle_since) < kept && connection.is_usable()
        });
        self.open.set(self.open.get() - (before - idle.len()));
    }

    /// Connections in use and idle ones.
    pub(super) fn counts(&self) -> (usize, usize) {
        let idle = self.idle.borrow().len();
        (self.open.get() - idle + self.streams.get(), idle)
    }

    /// Gives a place that came free to the first that waits; whether anyone did.
    fn hand_over(
        self: &Rc<Self>,
        connection: Option<Box<Connection>>,
        reusable: bool,
    ) -> Result<(), Option<Box<Connection>>> {
        let Some(waiter) = self.waiters.borrow_mut().pop_front() else { return Err(connection) };
        *waiter.lease.borrow_mut() = Some(Lease::new(self, connection, reusable));
        waiter.waker.borrow().wake_by_ref();
        Ok(())
    }
}

// === impl Lease ===

impl Lease {
    fn new(pool: &Rc<Pool>, connection: Option<Box<Connection>>, reusable: bool) -> Self {
        Self { connection, pool: Rc::clone(pool), reusable, passed_on: false }
    }

    /// The connection, if there is one already.
    pub(super) fn connection(&mut self) -> Option<&mut Connection> {
        self.connection.as_deref_mut()
    }

    /// Opens a connection for this lease, which begins with `header`; the caller minds the time.
    pub(super) async fn connect(
        &mut self,
        header: Option<&[u8]>,
        buffers: &Rc<Buffers>,
    ) -> Result<(), ProxyError> {
        let connection = Connection::open(&self.pool.target, header, buffers).await;
        self.connection = Some(Box::new(connection.map_err(|_| ProxyError::ConnectFailed)?));
        Ok(())
    }

    /// How many bytes of the answer under way are still to come, where that is known.
    pub(super) fn data_left(&self) -> Option<u64> {
        self.connection.as_ref().map_or(Some(0), |connection| connection.data_left())
    }

    /// Gives the connection back for the next request, or closes it if it cannot carry one.
    pub(super) fn give_back(mut self) {
        let is_usable = |connection: &mut Box<Connection>| self.reusable && connection.is_usable();
        let Some(mut connection) = self.connection.take_if(is_usable) else { return };
        connection.rest();
        if let Err(Some(connection)) = self.pool.hand_over(Some(connection), self.reusable) {
            self.pool.idle.borrow_mut().push(connection);
        }
        self.passed_on = true;
    }

    /// Makes a stream of it after an answer of 101: the connection carries no more requests, and its place is
    /// another one's.
    pub(super) fn into_stream(mut self) -> Option<(TcpStream, Bytes, StreamPlace)> {
        let (tcp, early) = self.connection.take()?.into_tunnel()?;
        self.pool.streams.set(self.pool.streams.get() + 1);
        Some((tcp, early, StreamPlace(Rc::clone(&self.pool))))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.connection = None;
        if self.passed_on {
            return;
        }
        if self.pool.hand_over(None, self.reusable).is_err() {
            self.pool.open.set(self.pool.open.get() - 1);
        }
    }
}

// === impl StreamPlace ===

impl Drop for StreamPlace {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get() - 1);
    }
}

// === impl Waiting ===

impl Drop for Waiting {
    fn drop(&mut self) {
        // A lease that came too late goes to the next one, or back.
        let late = self.waiter.lease.borrow_mut().take();
        self.pool.waiters.borrow_mut().retain(|waiter| !Rc::ptr_eq(waiter, &self.waiter));
        if let Some(lease) = late {
            if lease.connection.is_some() { lease.give_back() } else { drop(lease) }
        }
    }
}
