//! Connections to one endpoint, as one worker keeps them.
//!
//! Job: lend a connection, an idle one first (the latest used, so that the rest may age), else a new one, else a
//! place in a queue. Invariants: at most `max_connections` exist; a connection that the endpoint closed is not
//! lent; everything here belongs to one thread. Neighbours: `upstream` owns one per endpoint, `connection` is
//! what is lent, `forward` borrows.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
    task::{Poll, Waker},
    time::{Duration, Instant},
};

use super::{
    connection::Connection,
    error::ProxyError,
    table::{Location, Target},
};
use crate::config::document::Pool as Bounds;

/// Requests that may wait for a connection to one endpoint; one more is told 503.
const WAITERS_MAX: usize = 1024;

/// One endpoint's connections.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) target: Target,
    idle: RefCell<Vec<Box<Connection>>>,
    /// Idle or lent.
    open: Cell<usize>,
    waiters: RefCell<VecDeque<Rc<Waiter>>>,
}

/// The right to one connection, and the connection once there is one. Dropped with it, the connection is closed.
#[derive(Debug)]
pub(super) struct Lease {
    connection: Option<Box<Connection>>,
    pool: Rc<Pool>,
    max_idle: usize,
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
        Rc::new(Self { target, idle: RefCell::default(), open: Cell::new(0), waiters: RefCell::default() })
    }

    /// A lease with an idle connection, if there is a live one.
    pub(super) fn idle_lease(self: &Rc<Self>, bounds: &Bounds) -> Option<Lease> {
        loop {
            let mut connection = self.idle.borrow_mut().pop()?;
            if connection.is_usable() {
                return Some(Lease::new(self, Some(connection), bounds.max_idle));
            }
            drop(Lease::new(self, None, bounds.max_idle));
        }
    }

    /// A lease to open a connection with, or one that another request gave back. Where as many connections
    /// exist as may, an idle one makes room, or the request waits; the caller minds the time.
    pub(super) async fn lease(self: &Rc<Self>, bounds: &Bounds) -> Result<Lease, ProxyError> {
        if self.open.get() < bounds.max_connections {
            self.open.set(self.open.get() + 1);
            return Ok(Lease::new(self, None, bounds.max_idle));
        }
        let oldest = {
            let mut idle = self.idle.borrow_mut();
            (!idle.is_empty()).then(|| idle.remove(0))
        };
        if oldest.is_some() {
            return Ok(Lease::new(self, None, bounds.max_idle));
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

    /// Closes idle connections that the endpoint closed or nobody used for `idle_timeout`.
    pub(super) fn sweep(&self, idle_timeout: Duration, now: Instant) {
        let before = self.idle.borrow().len();
        self.idle.borrow_mut().retain_mut(|connection| {
            now.saturating_duration_since(connection.idle_since) < idle_timeout && connection.is_usable()
        });
        self.open.set(self.open.get() - (before - self.idle.borrow().len()));
    }

    /// Connections in use and idle ones.
    pub(super) fn counts(&self) -> (usize, usize) {
        let idle = self.idle.borrow().len();
        (self.open.get() - idle, idle)
    }

    /// Gives a place that came free to the first that waits; whether anyone did.
    fn hand_over(
        self: &Rc<Self>,
        connection: Option<Box<Connection>>,
        max_idle: usize,
    ) -> Result<(), Option<Box<Connection>>> {
        let Some(waiter) = self.waiters.borrow_mut().pop_front() else { return Err(connection) };
        *waiter.lease.borrow_mut() = Some(Lease::new(self, connection, max_idle));
        waiter.waker.borrow().wake_by_ref();
        Ok(())
    }
}

// === impl Lease ===

impl Lease {
    fn new(pool: &Rc<Pool>, connection: Option<Box<Connection>>, max_idle: usize) -> Self {
        Self { connection, pool: Rc::clone(pool), max_idle, passed_on: false }
    }

    /// The connection, if there is one already.
    pub(super) fn connection(&mut self) -> Option<&mut Connection> {
        self.connection.as_deref_mut()
    }

    /// Opens a connection for this lease; the caller minds the time.
    pub(super) async fn connect(&mut self) -> Result<(), ProxyError> {
        let address = match self.pool.target.location {
            Location::Address(address) => address,
            Location::Name => tokio::net::lookup_host(&*self.pool.target.address)
                .await
                .ok()
                .and_then(|mut addresses| addresses.next())
                .ok_or(ProxyError::ConnectFailed)?,
        };
        let connection = Connection::open(address).await.map_err(|_| ProxyError::ConnectFailed)?;
        self.connection = Some(Box::new(connection));
        Ok(())
    }

    /// Gives the connection back for the next request.
    pub(super) fn give_back(mut self) {
        let Some(mut connection) = self.connection.take() else { return };
        connection.rest();
        let pool = Rc::clone(&self.pool);
        match pool.hand_over(Some(connection), self.max_idle) {
            Ok(()) => {}
            Err(Some(connection)) if pool.idle.borrow().len() < self.max_idle => {
                pool.idle.borrow_mut().push(connection);
            }
            Err(_) => return,
        }
        self.passed_on = true;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.connection = None;
        if self.passed_on {
            return;
        }
        if self.pool.hand_over(None, self.max_idle).is_err() {
            self.pool.open.set(self.pool.open.get() - 1);
        }
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
