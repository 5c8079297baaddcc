//! Deadlines that cost a store.
//!
//! Job: every client connection has one [`Alarm`]; moving its deadline writes a cell, and the worker's tick
//! looks at all of them and wakes the tasks that are due. A timer of the runtime would cost a registration and a
//! cancellation for every step of every request. Invariant: an alarm never rings early and at most two ticks
//! late. Neighbours: `worker` owns the [`Alarms`] and ticks, `http`, `stream` and `forward` set and ask.

use std::{
    cell::{Cell, RefCell},
    rc::{Rc, Weak},
    task::Waker,
    time::{Duration, Instant},
};

/// How often the alarms are looked at.
pub(super) const TICK: Duration = Duration::from_millis(25);

/// A connection's deadline.
#[derive(Debug)]
pub(super) struct Alarm {
    at: Cell<Option<Instant>>,
    /// No deadline is set later than this.
    ceiling: Cell<Option<Instant>>,
    rang: Cell<bool>,
    waker: RefCell<Waker>,
}

/// All alarms of a worker.
#[derive(Debug)]
pub(super) struct Alarms {
    alarms: RefCell<Vec<Weak<Alarm>>>,
    now: Cell<Instant>,
}

// === impl Alarm ===

impl Alarm {
    /// Says which task to wake.
    pub(super) fn belongs_to(&self, waker: &Waker) {
        self.waker.borrow_mut().clone_from(waker);
    }

    /// Moves the deadline; one that has rung is forgotten.
    pub(super) fn set(&self, at: Instant) {
        let at = self.ceiling.get().map_or(at, |ceiling| at.min(ceiling));
        self.at.set(Some(at));
        self.rang.set(false);
    }

    /// Bounds the deadlines set from now on.
    pub(super) fn set_ceiling(&self, ceiling: Option<Instant>) {
        self.ceiling.set(ceiling);
    }

    /// Whether the deadline has passed.
    pub(super) fn rang(&self) -> bool {
        self.rang.get()
    }

    /// Wakes the task that the alarm belongs to.
    pub(super) fn wake(&self) {
        self.waker.borrow().wake_by_ref();
    }
}

// === impl Alarms ===

impl Alarms {
    pub(super) fn new() -> Self {
        Self { alarms: RefCell::default(), now: Cell::new(Instant::now()) }
    }

    /// A new alarm, looked at until it is dropped.
    pub(super) fn add(&self) -> Rc<Alarm> {
        let alarm = Rc::new(Alarm {
            at: Cell::new(None),
            ceiling: Cell::new(None),
            rang: Cell::new(false),
            waker: RefCell::new(Waker::noop().clone()),
        });
        self.alarms.borrow_mut().push(Rc::downgrade(&alarm));
        alarm
    }

    /// A moment not before now, good enough for a deadline.
    pub(super) fn soon(&self) -> Instant {
        self.now.get() + TICK
    }

    /// Wakes whoever is due and forgets the alarms that are gone.
    pub(super) fn tick(&self) {
        let now = Instant::now();
        self.now.set(now);
        self.alarms.borrow_mut().retain(|alarm| {
            let Some(alarm) = alarm.upgrade() else { return false };
            if alarm.at.get().is_some_and(|at| at <= now) {
                alarm.at.set(None);
                alarm.rang.set(true);
                alarm.wake();
            }
            true
        });
    }

    /// Wakes every task, for news that concern all of them.
    pub(super) fn wake_all(&self) {
        for alarm in self.alarms.borrow().iter().filter_map(Weak::upgrade) {
            alarm.wake();
        }
    }
}
