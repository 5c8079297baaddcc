//! Watches: the changes of the cluster, told to whoever watches at this node.
//!
//! One hub for each node. It hears each change once and puts it into a ring of the newest events; a watcher is a
//! cursor into that ring and no more, so a slow one costs nobody anything: when its place is gone it is told,
//! and its stream ends. What wakes watchers are groups: of those who watch one service, and of those who watch
//! everything, so that a change wakes only whom it concerns.
//!
//! Invariants:
//! - a watcher sees the events of its filter in the order of their indexes, each once, none left out, from the
//!   index that it began at; after a reset (a snapshot was installed, or this hub fell behind) it is told to
//!   look at the whole state again;
//! - an event is in the ring before anybody is woken for it, and a watcher looks at the ring after it has noted
//!   that it was woken, so none sleeps beside an event;
//! - watchers are woken in portions, between which the other tasks of the control plane have their turn, and a
//!   pass over many of them is followed by a pause as long: what comes meanwhile goes out together;
//! - the number of watchers is bounded, and each holds no lock while it waits.
//!
//! Neighbours: `Cluster::changes` feeds it, `admin::watch` serves streams, `admin::services` blocking queries.

mod event;
mod ring;

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, RwLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
pub use event::{Event, EventKind, Form};
use gogate_cluster::{
    Changes,
    state::{Change, ChangeKind},
};
use ring::{Cursor, Found, Ring};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, watch},
    task,
    time::{Instant, MissedTickBehavior},
};

/// Watchers of one node, blocking queries among them. One more is refused.
pub const WATCHERS_MAX: usize = 10_000;

/// Watchers that are woken together: what other tasks may have to wait for is a portion's work, some hundred
/// small writes.
const PORTION: usize = 128;

/// The least time between two passes of waking; the first one after a quiet time is at once.
const PASS_PERIOD: Duration = Duration::from_millis(5);

/// The longest pause after a pass, however long it took.
const PAUSE_MAX: Duration = Duration::from_millis(250);

/// Between two signs of life to watchers that have nothing else to hear.
pub const BEAT: Duration = Duration::from_secs(15);

/// Bytes of all different snapshots that are being sent, in KiB; one more waits for its turn.
const SNAPSHOTS_KIB_MAX: u32 = 256 << 10;

/// The hub of one node.
pub struct Watches {
    ring: RwLock<Ring>,
    topics: Mutex<Topics>,
    /// Somebody is to be woken.
    dirty: Notify,
    closed: AtomicBool,
    watchers: AtomicUsize,
    cut: AtomicU64,
    snapshot_kib: Arc<Semaphore>,
}

/// Who watches what.
#[derive(Default)]
struct Topics {
    everything: Topic,
    /// Those that somebody watches.
    services: HashMap<Arc<str>, Topic>,
    /// Those whose watchers are to be woken.
    dirty: BTreeSet<Arc<str>>,
    everything_dirty: bool,
}

#[derive(Default)]
struct Topic {
    watchers: usize,
    groups: Vec<Group>,
    snapshots: SnapshotCells,
}

/// Wakes up to [`PORTION`] watchers by a new value.
type Group = Arc<watch::Sender<()>>;

/// The snapshots that watchers of one topic are being sent, one for each form. The lock is held while one is made: those who come
/// meanwhile wait, and all who came before the next one began share it.
type SnapshotCells = Arc<[tokio::sync::Mutex<std::sync::Weak<Snapshot>>; Form::COUNT]>;

/// The state of a topic at one index, rendered.
#[derive(Debug)]
pub struct Snapshot {
    /// The index of the state that it shows.
    pub index: u64,
    /// As it goes out.
    pub bytes: Bytes,
    /// The ring's, from before the state was read.
    generation: u64,
    _room: OwnedSemaphorePermit,
}

/// One that watches a service, or everything.
pub struct Watcher {
    watches: Arc<Watches>,
    service: Option<Arc<str>>,
    woken: watch::Receiver<()>,
    cursor: Option<Cursor>,
    snapshots: SnapshotCells,
    beat: Instant,
}

/// What a watcher is told next.
#[derive(Debug)]
pub enum Told {
    /// These happened; there is at least one.
    Events(Vec<Arc<Event>>),
    /// It has seen everything of its filter up to this index.
    Beat(u64),
    /// Everything may have changed: go on from a snapshot.
    Reset,
    /// What it would have seen next is gone: the end.
    TooSlow,
    /// This node stops: the end.
    Stopping,
}

/// Why nobody can begin to watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// There are too many.
    #[error("{WATCHERS_MAX} watchers are at this node already: watch at another one")]
    Full,
    /// The end is near.
    #[error("this node is stopping: watch at another one")]
    Stopping,
}

// === impl Watches ===

impl Watches {
    /// Without watchers; the first change that it is told of is newer than `index`.
    #[must_use]
    pub fn new(index: u64) -> Self {
        Self {
            ring: RwLock::new(Ring::new(index)),
            topics: Mutex::default(),
            dirty: Notify::new(),
            closed: AtomicBool::new(false),
            watchers: AtomicUsize::new(0),
            cut: AtomicU64::new(0),
            snapshot_kib: Arc::new(Semaphore::new(SNAPSHOTS_KIB_MAX as usize)),
        }
    }

    /// Tells watchers of `changes` until there are no more, which have to begin before the index that this hub
    /// was made with.
    pub async fn run(&self, mut changes: Changes) {
        let feed = async {
            while let Some(changes) = changes.next().await {
                self.take(&changes);
            }
        };
        tokio::select! {
            () = feed => {}
            () = self.wake() => {}
        }
        self.close();
    }

    /// How many watch now.
    #[must_use]
    pub fn watchers(&self) -> usize {
        self.watchers.load(Ordering::Relaxed)
    }

    /// How many were cut because they were too slow.
    #[must_use]
    pub fn cut(&self) -> u64 {
        self.cut.load(Ordering::Relaxed)
    }

    /// Counts a watcher that was cut because it was too slow.
    pub fn count_cut(&self) {
        self.cut.fetch_add(1, Ordering::Relaxed);
    }

    /// Begins to watch `service`, or everything. The watcher stands nowhere until [`Watcher::resume`].
    ///
    /// # Errors
    /// When there are too many already, or the end was announced.
    pub fn join(self: &Arc<Self>, service: Option<&str>) -> Result<Watcher, Refused> {
        if self.watchers.fetch_add(1, Ordering::AcqRel) >= WATCHERS_MAX {
            self.watchers.fetch_sub(1, Ordering::AcqRel);
            return Err(Refused::Full);
        }
        let service: Option<Arc<str>> = service.map(Into::into);
        let (woken, snapshots) = self.topics().join(service.as_ref());
        let beat = Instant::now();
        let watcher = Watcher { watches: self.clone(), service, woken, cursor: None, snapshots, beat };
        // After joining: a watcher that does not see it is seen by `close`.
        if self.is_closed() { Err(Refused::Stopping) } else { Ok(watcher) }
    }

    /// Ends all watches, and refuses new ones.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        let mut topics = self.topics();
        topics.touch_all();
        for group in topics.drain() {
            group.send_replace(());
        }
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    fn topics(&self) -> MutexGuard<'_, Topics> {
        self.topics.lock().expect("nothing panics under this lock")
    }

    fn read_ring<R>(&self, look: impl FnOnce(&Ring) -> R) -> R {
        look(&self.ring.read().expect("nothing panics under this lock"))
    }

    /// Takes in what one log entry changed.
    fn take(&self, changes: &[Change]) {
        let mut touched = Vec::new();
        {
            let mut ring = self.ring.write().expect("nothing panics under this lock");
            for change in changes {
                ring.push(change, |event| touched.extend(event.instance().map(|found| found.name.clone())));
            }
        }
        let mut topics = self.topics();
        if changes.iter().any(|change| change.kind == ChangeKind::Reset) {
            topics.touch_all();
        } else {
            topics.touch(&touched);
        }
        drop(topics);
        self.dirty.notify_one();
    }

    /// Wakes watchers, for ever.
    async fn wake(&self) {
        let mut beat = tokio::time::interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.dirty.notified() => {}
                _ = beat.tick() => self.topics().touch_all(),
            }
            let began = Instant::now();
            let groups = self.topics().drain();
            let mut portion = 0;
            for group in groups {
                portion += group.receiver_count();
                group.send_replace(());
                if portion >= PORTION {
                    portion = 0;
                    task::yield_now().await;
                }
            }
            tokio::time::sleep(began.elapsed().clamp(PASS_PERIOD, PAUSE_MAX)).await;
        }
    }
}

// === impl Topics ===

impl Topics {
    fn join(&mut self, service: Option<&Arc<str>>) -> (watch::Receiver<()>, SnapshotCells) {
        let topic = match service {
            None => &mut self.everything,
            Some(service) => self.services.entry(service.clone()).or_default(),
        };
        topic.watchers += 1;
        topic.groups.retain(|group| group.receiver_count() > 0);
        let free = topic.groups.iter().find(|group| group.receiver_count() < PORTION);
        let woken = if let Some(group) = free {
            group.subscribe()
        } else {
            let (group, woken) = watch::channel(());
            topic.groups.push(Arc::new(group));
            woken
        };
        (woken, topic.snapshots.clone())
    }

    fn leave(&mut self, service: Option<&Arc<str>>) {
        let Some(service) = service else {
            self.everything.watchers -= 1;
            return;
        };
        if let Some(topic) = self.services.get_mut(service) {
            topic.watchers -= 1;
            if topic.watchers == 0 {
                self.services.remove(service);
            }
        }
    }

    fn touch(&mut self, services: &[Arc<str>]) {
        self.everything_dirty = true;
        for service in services {
            if let Some((service, _)) = self.services.get_key_value(service) {
                self.dirty.insert(service.clone());
            }
        }
    }

    fn touch_all(&mut self) {
        self.everything_dirty = true;
        self.dirty.extend(self.services.keys().cloned());
    }

    /// Takes out the groups that are to be woken.
    fn drain(&mut self) -> Vec<Group> {
        let mut groups = Vec::new();
        if std::mem::take(&mut self.everything_dirty) {
            groups.extend(self.everything.groups.iter().cloned());
        }
        for service in std::mem::take(&mut self.dirty) {
            groups.extend(
                self.services.get(&service).into_iter().flat_map(|topic| topic.groups.iter().cloned()),
            );
        }
        groups
    }
}

// === impl Watcher ===

impl Watcher {
    /// Where it watches.
    #[must_use]
    pub fn watches(&self) -> &Watches {
        &self.watches
    }

    /// What it watches; none: everything.
    #[must_use]
    pub fn service(&self) -> Option<&str> {
        self.service.as_deref()
    }

    /// Goes on after `index`, up to which it knows everything; false if that is too old.
    pub fn resume(&mut self, index: u64) -> bool {
        self.cursor = self.watches.read_ring(|ring| ring.after(index));
        self.cursor.is_some()
    }

    /// The state of its filter at one index, not older than when this was called, and what it is told next are
    /// the changes after it. `render` reads the state and makes the bytes; watchers of the same filter that ask
    /// at the same time for the same `form` share them. None: there was no room for it until `deadline`.
    pub async fn snapshot<F>(
        &mut self,
        form: Form,
        deadline: Instant,
        now: u64,
        render: impl Fn() -> F,
    ) -> Option<Arc<Snapshot>>
    where
        F: Future<Output = (u64, Bytes)>,
    {
        tokio::time::timeout_at(deadline, async {
            loop {
                let snapshot = self.shared_snapshot(form, now, &render).await?;
                // It may have been too long in the making, or everything changed meanwhile.
                let cursor = self.watches.read_ring(|ring| {
                    let cursor = ring.after(snapshot.index);
                    cursor.filter(|_| ring.generation() == snapshot.generation)
                });
                if let Some(cursor) = cursor {
                    self.cursor = Some(cursor);
                    return Some(snapshot);
                }
            }
        })
        .await
        .ok()
        .flatten()
    }

    async fn shared_snapshot<F>(&self, form: Form, now: u64, render: impl Fn() -> F) -> Option<Arc<Snapshot>>
    where
        F: Future<Output = (u64, Bytes)>,
    {
        let mut cell = self.snapshots[form.place()].lock().await;
        let current = self.watches.read_ring(Ring::generation);
        if let Some(shared) = cell.upgrade()
            && shared.index >= now
            && shared.generation == current
        {
            return Some(shared);
        }
        let (index, bytes) = render().await;
        let kib =
            u32::try_from(bytes.len() >> 10).unwrap_or(u32::MAX).saturating_add(1).min(SNAPSHOTS_KIB_MAX);
        // The semaphore is never closed.
        let room = self.watches.snapshot_kib.clone().acquire_many_owned(kib).await.ok()?;
        let snapshot = Arc::new(Snapshot { index, bytes, generation: current, _room: room });
        *cell = Arc::downgrade(&snapshot);
        Some(snapshot)
    }

    /// What happened next. Cancel-safe: what was not returned is returned by the next call.
    pub async fn next(&mut self) -> Told {
        loop {
            // First noted, then looked: what comes after the look wakes it again.
            self.woken.borrow_and_update();
            if self.watches.is_closed() {
                return Told::Stopping;
            }
            let Some(cursor) = &mut self.cursor else { return Told::Reset };
            let service = self.service.as_deref();
            let last = match self.watches.read_ring(|ring| ring.read(cursor, service)) {
                Found::Events(events) => {
                    self.beat = Instant::now();
                    return Told::Events(events);
                }
                Found::Reset => {
                    self.cursor = None;
                    return Told::Reset;
                }
                Found::Fallen => {
                    self.watches.count_cut();
                    return Told::TooSlow;
                }
                Found::Nothing(last) => last.max(cursor.after),
            };
            // The hub wakes everybody once in a beat; half of one is left to the timers.
            if self.beat.elapsed() >= BEAT / 2 {
                self.beat = Instant::now();
                return Told::Beat(last);
            }
            if self.woken.changed().await.is_err() {
                return Told::Stopping;
            }
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.watches.topics().leave(self.service.as_ref());
        self.watches.watchers.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use gogate_cluster::state::Instance;

    use super::*;

    fn registered(index: u64, name: &str) -> Change {
        let instance = Instance {
            id: format!("i{index}").into(),
            name: name.into(),
            address: "h:1".into(),
            ttl_ms: 0,
            weight: 1,
            metadata: std::collections::BTreeMap::new(),
            tags: Vec::new(),
            epoch: index,
        };
        Change { index, kind: ChangeKind::Registered(Arc::new(instance)) }
    }

    /// A hub whose watchers are woken.
    fn hub() -> Arc<Watches> {
        let watches = Arc::new(Watches::new(0));
        let waking = watches.clone();
        tokio::spawn(async move { waking.wake().await });
        watches
    }

    fn indexes(told: Told) -> Vec<u64> {
        match told {
            Told::Events(events) => events.iter().map(|event| event.index).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_those_whom_a_change_concerns_are_told() {
        let watches = hub();
        let mut watchers: Vec<_> =
            [None, Some("a"), Some("b")].map(|service| watches.join(service).unwrap()).into();
        watchers.iter_mut().for_each(|watcher| assert!(watcher.resume(0)));
        watches.take(&[registered(1, "a"), registered(2, "c")]);
        assert_eq!(indexes(watchers[0].next().await), [1, 2]);
        assert_eq!(indexes(watchers[1].next().await), [1]);
        assert!(watchers[2].next().now_or_never().is_none());
        watches.take(&[registered(3, "b")]);
        assert_eq!(indexes(watchers[2].next().await), [3]);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_hears_nothing_is_told_how_far_it_has_come() {
        let watches = hub();
        let mut watcher = watches.join(Some("a")).unwrap();
        assert!(watcher.resume(0));
        watches.take(&[registered(7, "b")]);
        let began = Instant::now();
        assert!(matches!(watcher.next().await, Told::Beat(7)));
        assert!(began.elapsed() <= BEAT * 2);
        assert!(watcher.resume(7));
    }

    #[tokio::test(start_paused = true)]
    async fn a_reset_asks_every_watcher_to_look_again() {
        let watches = hub();
        let mut watcher = watches.join(Some("a")).unwrap();
        assert!(watcher.resume(0));
        watches.take(&[Change { index: 5, kind: ChangeKind::Reset }]);
        assert!(matches!(watcher.next().await, Told::Reset));
        let render = || async { (5, Bytes::from_static(b"state")) };
        let snapshot = watcher.snapshot(Form::Json, Instant::now() + BEAT, 5, render).await.unwrap();
        assert_eq!(snapshot.index, 5);
        watches.take(&[registered(6, "a")]);
        assert_eq!(indexes(watcher.next().await), [6]);
    }

    #[tokio::test(start_paused = true)]
    async fn watchers_that_ask_together_share_a_snapshot() {
        let watches = hub();
        let mut watchers: Vec<_> = (0..100).map(|_| watches.join(None).unwrap()).collect();
        let made = AtomicUsize::new(0);
        let render = || async {
            made.fetch_add(1, Ordering::SeqCst);
            task::yield_now().await;
            (3, Bytes::from_static(b"state"))
        };
        let deadline = Instant::now() + BEAT;
        let asked = watchers.iter_mut().map(|watcher| watcher.snapshot(Form::Json, deadline, 3, render));
        let snapshots = futures_util::future::join_all(asked).await;
        assert!(snapshots.iter().all(Option::is_some));
        assert_eq!(made.load(Ordering::SeqCst), 1);
        // An older one is no answer to somebody who asks later.
        assert!(watchers[0].snapshot(Form::Json, deadline, 4, render).now_or_never().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn there_are_so_many_and_no_more_and_the_end_is_told_to_all() {
        let watches = hub();
        let mut watchers: Vec<_> = (0..WATCHERS_MAX).map(|_| watches.join(Some("a")).unwrap()).collect();
        assert_eq!(watches.join(None).err(), Some(Refused::Full));
        drop(watchers.pop());
        drop(watches.join(None).unwrap());
        assert!(watchers.iter_mut().all(|watcher| watcher.resume(0)));
        let first = watchers[0].next();
        watches.close();
        assert!(matches!(first.await, Told::Stopping));
        assert_eq!(watches.join(None).err(), Some(Refused::Stopping));
        drop(watchers);
        assert!(watches.topics().services.is_empty(), "nothing is left of what nobody watches");
        assert_eq!(watches.watchers(), 0);
    }
}
