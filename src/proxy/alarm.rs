//! Deadlines that cost a store.
//!
//! Job: every client connection has one [`Alarm`]; moving its deadline writes a cell, and nothing else as long as
//! the deadline moves later, as it nearly always does. A timer of the runtime would cost a registration and a
//! cancellation for every step of every request. The worker's tick looks at the alarms whose turn it is: each has
//! one valid note in a wheel of ticks, at its deadline or at most [`SPAN`] ahead; one whose deadline moved on
//! meanwhile is noted again. So an idle connection costs a look every [`SPAN`], not one at every tick.
//! Invariant: an alarm never rings early and at most two ticks late. Neighbours: `worker` owns the [`Alarms`] and
//! ticks, `client`, `http`, `stream`, `forward`, `tcp` and `relay` set and ask.

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    pin::pin,
    rc::{Rc, Weak},
    task::{Poll, Waker},
    time::{Duration, Instant},
};

/// How often the alarms are looked at.
pub(super) const TICK: Duration = Duration::from_millis(25);
/// How far ahead, in ticks, an alarm is noted.
const SPAN: u64 = 80;

/// A connection's deadline.
#[derive(Debug)]
pub(super) struct Alarm {
    at: Cell<Option<Instant>>,
    /// No deadline is set later than this.
    ceiling: Cell<Option<Instant>>,
    rang: Cell<bool>,
    waker: RefCell<Waker>,
    /// When the wheel looks at it next; none: it has no note there.
    looked_at: Cell<Option<Instant>>,
    wheel: Rc<Wheel>,
    /// Its place in the wheel's list.
    place: usize,
}

/// All alarms of a worker.
#[derive(Debug)]
pub(super) struct Alarms {
    wheel: Rc<Wheel>,
    now: Cell<Instant>,
}

#[derive(Debug)]
struct Wheel {
    began: Instant,
    /// The last tick that was looked at.
    tick: Cell<u64>,
    alarms: RefCell<Places>,
    /// Notes by tick, modulo [`SPAN`] + 1: the current one is being read while others are written.
    notes: RefCell<Vec<Vec<Note>>>,
}

#[derive(Debug, Default)]
struct Places {
    taken: Vec<Place>,
    free: Vec<usize>,
}

#[derive(Debug)]
struct Place {
    alarm: Weak<Alarm>,
    /// Only the note with this number is valid: a place is used again, an alarm is noted again.
    note: u64,
}

#[derive(Debug, Clone, Copy)]
struct Note {
    place: usize,
    number: u64,
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
        if self.looked_at.get().is_none_or(|looked_at| at < looked_at) {
            self.looked_at.set(Some(self.wheel.note(self.place, at)));
        }
    }

    /// Bounds the deadlines set from now on.
    pub(super) fn set_ceiling(&self, ceiling: Option<Instant>) {
        self.ceiling.set(ceiling);
    }

    /// What [`Alarm::set_ceiling`] set.
    pub(super) fn ceiling(&self) -> Option<Instant> {
        self.ceiling.get()
    }

    /// Whether the deadline has passed.
    pub(super) fn rang(&self) -> bool {
        self.rang.get()
    }

    /// Waits for `work`, on whose task the alarm rings, until the deadline; none: it passed.
    pub(super) async fn limit<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        poll_fn(|cx| {
            self.belongs_to(cx.waker());
            match work.as_mut().poll(cx) {
                Poll::Ready(done) => Poll::Ready(Some(done)),
                Poll::Pending if self.rang() => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }

    /// Wakes the task that the alarm belongs to.
    pub(super) fn wake(&self) {
        self.waker.borrow().wake_by_ref();
    }

    /// Rings if it is time, else is noted again.
    fn look(&self, now: Instant) {
        self.looked_at.set(None);
        match self.at.get() {
            Some(at) if at <= now => {
                self.at.set(None);
                self.rang.set(true);
                self.wake();
            }
            Some(at) => self.looked_at.set(Some(self.wheel.note(self.place, at))),
            None => {}
        }
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        self.wheel.alarms.borrow_mut().give_back(self.place);
    }
}

// === impl Alarms ===

impl Alarms {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self { wheel: Rc::new(Wheel::new(now)), now: Cell::new(now) }
    }

    /// A new alarm, looked at until it is dropped.
    pub(super) fn add(&self) -> Rc<Alarm> {
        Rc::new_cyclic(|alarm| Alarm {
            at: Cell::new(None),
            ceiling: Cell::new(None),
            rang: Cell::new(false),
            waker: RefCell::new(Waker::noop().clone()),
            looked_at: Cell::new(None),
            place: self.wheel.alarms.borrow_mut().take(alarm.clone()),
            wheel: Rc::clone(&self.wheel),
        })
    }

    /// A moment not before now, good enough for a deadline.
    pub(super) fn soon(&self) -> Instant {
        self.now.get() + TICK
    }

    /// Wakes whoever is due.
    pub(super) fn tick(&self) {
        let now = Instant::now();
        self.now.set(now);
        self.wheel.turn(now);
    }

    /// Wakes every task, for news that concern all of them.
    pub(super) fn wake_all(&self) {
        for alarm in self.wheel.alarms.borrow().taken.iter().filter_map(|place| place.alarm.upgrade()) {
            alarm.wake();
        }
    }
}

// === impl Wheel, Places ===

impl Wheel {
    fn new(began: Instant) -> Self {
        let notes = (0..=SPAN).map(|_| Vec::new()).collect();
        Self { began, tick: Cell::new(0), alarms: RefCell::default(), notes: RefCell::new(notes) }
    }

    /// Notes an alarm at the tick after `at`, or as far ahead as the wheel goes; when that is.
    fn note(&self, place: usize, at: Instant) -> Instant {
        let next = self.tick.get() + 1;
        let ahead = at.saturating_duration_since(self.began);
        let tick = ticks(ahead + TICK - Duration::from_nanos(1)).clamp(next, next + SPAN - 1);
        let number = {
            let mut alarms = self.alarms.borrow_mut();
            let place = &mut alarms.taken[place];
            place.note += 1;
            place.note
        };
        self.notes.borrow_mut()[Self::slot(tick)].push(Note { place, number });
        self.began + TICK * u32::try_from(tick).unwrap_or(u32::MAX)
    }

    /// Looks at every alarm noted at a tick up to now.
    fn turn(&self, now: Instant) {
        let ticks = ticks(now.saturating_duration_since(self.began));
        // After a pause longer than the wheel once around is enough.
        let first = (self.tick.get() + 1).max(ticks.saturating_sub(SPAN));
        for tick in first..=ticks {
            self.tick.set(tick);
            let mut notes = std::mem::take(&mut self.notes.borrow_mut()[Self::slot(tick)]);
            for note in notes.drain(..) {
                let alarm = self.alarms.borrow().noted(note);
                if let Some(alarm) = alarm {
                    alarm.look(now);
                }
            }
            // For its memory; what was noted meanwhile went to other ticks.
            self.notes.borrow_mut()[Self::slot(tick)] = notes;
        }
    }

    fn slot(tick: u64) -> usize {
        usize::try_from(tick % (SPAN + 1)).unwrap_or(0)
    }
}

/// Whole ticks in `time`; a sum, because a division of 128 bits is slow.
fn ticks(time: Duration) -> u64 {
    const PER_SECOND: u64 = Duration::from_secs(1).as_millis() as u64 / TICK.as_millis() as u64;
    time.as_secs() * PER_SECOND + u64::from(time.subsec_millis()) / TICK.as_millis() as u64
}

impl Places {
    fn take(&mut self, alarm: Weak<Alarm>) -> usize {
        if let Some(place) = self.free.pop() {
            let taken = &mut self.taken[place];
            taken.alarm = alarm;
            taken.note += 1;
            return place;
        }
        self.taken.push(Place { alarm, note: 0 });
        self.taken.len() - 1
    }

    fn give_back(&mut self, place: usize) {
        // Even a weak reference would keep the alarm's memory.
        self.taken[place].alarm = Weak::new();
        self.free.push(place);
    }

    fn noted(&self, note: Note) -> Option<Rc<Alarm>> {
        self.taken.get(note.place).filter(|place| place.note == note.number)?.alarm.upgrade()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(count: u32) -> Duration {
        TICK * count
    }

    #[test]
    fn an_alarm_rings_at_its_deadline_however_often_it_moved() {
        let alarms = Alarms::new();
        let began = alarms.wheel.began;
        let rings = |alarm: &Alarm, at: Duration| {
            alarms.wheel.turn(began + at);
            alarm.rang()
        };
        let alarm = alarms.add();
        // Farther than the wheel reaches, nearer, farther again.
        alarm.set(began + after(1_000));
        alarm.set(began + after(10));
        alarm.set(began + after(300));
        for early in [9, 10, 11, 80, 81, 200, 299] {
            assert!(!rings(&alarm, after(early)), "{early}");
        }
        assert!(rings(&alarm, after(300)));
        // One that rang is quiet until it is set again, which may be for a moment that has passed.
        alarm.set(began);
        assert!(!alarm.rang());
        assert!(!rings(&alarm, after(300)));
        assert!(rings(&alarm, after(301)));
    }

    #[test]
    fn a_pause_of_the_worker_loses_no_alarm() {
        let alarms = Alarms::new();
        let began = alarms.wheel.began;
        let set: Vec<_> = (1..200)
            .map(|tick| {
                let alarm = alarms.add();
                alarm.set(began + after(tick));
                alarm
            })
            .collect();
        alarms.wheel.turn(began + after(100));
        let rang = set.iter().filter(|alarm| alarm.rang()).count();
        assert_eq!(rang, 100);
        alarms.wheel.turn(began + after(1_000));
        assert!(set.iter().all(|alarm| alarm.rang()));
    }

    #[test]
    fn a_note_of_an_alarm_that_is_gone_does_not_reach_the_next_in_its_place() {
        let alarms = Alarms::new();
        let began = alarms.wheel.began;
        let gone = alarms.add();
        gone.set(began + after(5));
        drop(gone);
        let next = alarms.add();
        assert_eq!(next.place, 0);
        next.set(began + after(50));
        alarms.wheel.turn(began + after(49));
        assert!(!next.rang());
        alarms.wheel.turn(began + after(50));
        assert!(next.rang());
    }
}
