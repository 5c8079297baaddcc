//! Group commit: many commands in one log entry, one barrier for all of them.
//!
//! Job: commands gather in a queue; while one batch is on its way, the next one fills. On the leader a
//! batch becomes a log entry, on a follower one call to the leader (`forward`). Nobody waits for a timer: a
//! lone command leaves at once.
//!
//! Invariants:
//! - Entries reach the log in the order in which they were stamped, so the time since the last tick that an
//!   entry carries agrees with the ticks before it.
//! - A command is answered `NotDone` only if it is certain that no log has it, and `Unknown` otherwise; only
//!   what is certainly not done is tried again, within its deadline (a fail-over looks like a slow write).
//! - What another node passed on is never passed on again.
//! - Every answer comes by its deadline: an isolated leader keeps entries for ever, its callers do not wait.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
};

use crate::{
    bugs,
    figures::Durations,
    forward::{self, Forwarded},
    handle::ProposeError,
    raft::{Core, Link, Links, Replica, Roles, SubmitError},
    state::{Command, Instance, NodeId, Outcome, RestoreStep, State},
    storage::codec::{self, Batch},
    upgrade,
};

/// Submissions that wait for the batcher; when it is full the caller is told `NotDone` at once.
const QUEUE: usize = 8192;

/// Submissions that the batcher itself holds while it cannot send them; then the queue fills.
const PENDING_MAX: usize = 8192;

/// Commands of one entry. What another node gathered is not split, so an entry may hold up to twice as many.
pub(crate) const BATCH_COMMANDS_MAX: usize = 512;

/// Bytes of one entry, unless a single command is larger.
const BATCH_BYTES_MAX: usize = 1 << 20;

/// Bytes of one command: it must reach a follower within a heartbeat.
pub const COMMAND_BYTES_MAX: usize = 4 << 20;

/// Batches on their way at once. An entry costs far more than a command (barriers on every node, one entry
/// after the other), so few full entries are best: with 64 writers, one flight made 90 us of CPU a write on
/// three nodes and 9.9k writes/s, three flights 136 us and 6.7k. It also keeps what waits `NotDone` and able to
/// be tried again while a leader is failing.
const FLIGHTS_MAX: usize = 1;

/// How often what waits is looked through for deadlines.
const SWEEP_PERIOD: Duration = Duration::from_millis(20);

/// What still waits this long before its deadline is told `NotDone` while that is certain.
const GIVE_UP_BEFORE: Duration = Duration::from_millis(30);

/// Between two attempts to reach a leader that cannot be reached.
const RETRY_PAUSE: Duration = Duration::from_millis(10);

const NOT_LEADER: &str = "this node is not the leader";

/// The way into the batcher. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Proposer {
    queue: mpsc::Sender<Submission>,
    pause: Arc<Pause>,
    replica: Arc<Replica>,
}

/// Between the batcher and whoever hands the leadership over.
struct Pause {
    wanted: watch::Sender<bool>,
    /// Nothing that this node leads is on its way, and nothing will be.
    quiet: watch::Sender<bool>,
}

/// While it lives, nothing new goes into this node's log by way of the batcher.
pub(crate) struct Paused {
    pause: Arc<Pause>,
}

/// Commands that are answered together.
struct Submission {
    commands: Vec<Command>,
    bytes: usize,
    origin: Origin,
    deadline: Instant,
    give_up: Instant,
    answer: oneshot::Sender<Answer>,
}

type Answer = Result<Vec<Outcome>, ProposeError>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// A caller on this node.
    Here,
    /// Another node passed it on, or it makes sense on the leader only.
    LeaderOnly,
}

/// The task that owns the queue. It ends when `stop` turns true or all [`Proposer`]s are gone.
pub(crate) struct Batcher {
    core: Core,
    id: NodeId,
    roles: Roles,
    links: Links,
    replica: Arc<Replica>,
    commit: Arc<Durations>,
    queue: mpsc::Receiver<Submission>,
    pause: Arc<Pause>,
    pending: VecDeque<Submission>,
    /// Each returns what has to be tried again.
    flights: JoinSet<Vec<Submission>>,
    clock: TickClock,
    swept: Instant,
}

/// Where a batch goes now.
enum Route {
    Log { term: u64 },
    Leader(Box<Link>),
}

/// The leader's time since its last tick; a new term begins a new count.
#[derive(Debug, Default)]
struct TickClock {
    term: u64,
    ticked: Option<Instant>,
}

// === impl Proposer ===

impl Proposer {
    /// Has one command agreed on, wherever the leader is.
    pub(crate) async fn propose(&self, command: Command, timeout: Duration) -> Result<Outcome, ProposeError> {
        let mut outcomes = self.submit(vec![command], Origin::Here, timeout).await?;
        outcomes.pop().ok_or_else(|| unknown(timeout))
    }

    /// Has commands agreed on if this node leads.
    pub(crate) async fn propose_as_leader(
        &self,
        commands: Vec<Command>,
        timeout: Duration,
    ) -> Result<Vec<Outcome>, ProposeError> {
        self.submit(commands, Origin::LeaderOnly, timeout).await
    }

    /// Lets nothing more into the log of this node until the result is dropped: what comes meanwhile waits, and
    /// goes to whoever leads then. One at a time.
    pub(crate) fn pause(&self) -> Paused {
        self.pause.quiet.send_replace(false);
        self.pause.wanted.send_replace(true);
        Paused { pause: self.pause.clone() }
    }

    async fn submit(&self, commands: Vec<Command>, origin: Origin, timeout: Duration) -> Answer {
        let format = self.replica.read(State::format);
        if let Some(refused) = commands.iter().find_map(|command| upgrade::allows(format, command).err()) {
            return Err(not_done(refused));
        }
        let bytes = commands.iter().map(weight).sum();
        if bytes > COMMAND_BYTES_MAX.max(2 * BATCH_BYTES_MAX) {
            return Err(not_done(format!(
                "{bytes} bytes are more than the {COMMAND_BYTES_MAX} of one write"
            )));
        }
        let now = Instant::now();
        let deadline = now + timeout;
        let give_up = deadline - GIVE_UP_BEFORE.min(timeout / 4);
        let (answer, answered) = oneshot::channel();
        let submission = Submission { commands, bytes, origin, deadline, give_up, answer };
        self.queue.try_send(submission).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                not_done("too many writes are waiting on this node".to_owned())
            }
            mpsc::error::TrySendError::Closed(_) => not_done("this node is stopping".to_owned()),
        })?;
        match tokio::time::timeout_at(deadline.into(), answered).await {
            Ok(Ok(answer)) => answer,
            // The batcher is gone, or busy: it may have handed the command over.
            Ok(Err(_)) | Err(_) => Err(unknown(now.elapsed())),
        }
    }
}

/// About how many bytes a command takes in the log.
fn weight(command: &Command) -> usize {
    const FIXED: usize = 64;
    FIXED
        + match command {
            Command::Tick { heartbeats, .. } => {
                heartbeats.iter().map(|beat| heartbeat_weight(&beat.id)).sum()
            }
            Command::Register(registration) => {
                let metadata: usize =
                    registration.metadata.iter().map(|(key, value)| key.len() + value.len() + 4).sum();
                let tags: usize = registration.tags.iter().map(|tag| tag.len() + 2).sum();
                registration.id.len() + registration.name.len() + registration.address.len() + metadata + tags
            }
            Command::Deregister { id } => id.len(),
            #[cfg(feature = "next-format")]
            Command::DeregisterCounted { id } => id.len(),
            Command::PutDocument(document) | Command::PutUploaded { document, .. } => {
                document.content.len() + document.by.len()
            }
            Command::StorePart { bytes, .. } => bytes.len(),
            Command::RollbackDocument { by, .. } => by.len(),
            Command::AdmitNode(node) => node.name.len(),
            Command::ActivateDocument { .. } => 0,
            Command::RefuseDocument { reason, .. } => reason.len(),
            Command::Once { key, command, .. } => key.len() + weight(command),
            Command::RetireNode { .. } | Command::RaiseFormat { .. } => 0,
            Command::Restore { step, .. } => match step {
                RestoreStep::Instances(instances) => instances.iter().map(instance_weight).sum(),
                RestoreStep::Document(version) => version.content.len() + version.by.len(),
                RestoreStep::Begin { .. } | RestoreStep::Finish { .. } => 0,
            },
        }
}

/// About how many bytes an instance takes in the log.
pub(crate) fn instance_weight(instance: &Instance) -> usize {
    const FIXED: usize = 32;
    let metadata: usize = instance.metadata.iter().map(|(key, value)| key.len() + value.len() + 4).sum();
    let tags: usize = instance.tags.iter().map(|tag| tag.len() + 2).sum();
    FIXED + instance.id.len() + instance.name.len() + instance.address.len() + metadata + tags
}

/// About how many bytes a heartbeat takes in a tick.
pub(crate) fn heartbeat_weight(id: &str) -> usize {
    id.len() + 16
}

fn not_done(reason: String) -> ProposeError {
    ProposeError::NotDone { reason }
}

fn unknown(waited: Duration) -> ProposeError {
    ProposeError::Unknown { waited_ms: u64::try_from(waited.as_millis()).unwrap_or(u64::MAX) }
}

// === impl Paused ===

impl Paused {
    /// Returns once all that had gone into the log is answered.
    pub(crate) async fn quiet(&self) {
        // The batcher's end of it lives as long as this one's.
        let _ = self.pause.quiet.subscribe().wait_for(|quiet| *quiet).await;
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        self.pause.wanted.send_replace(false);
    }
}

// === impl Submission ===

impl Submission {
    fn answer(self, answer: Answer) {
        // The caller may have gone away.
        let _ = self.answer.send(answer);
    }
}

// === impl Batcher ===

impl Batcher {
    pub(crate) fn new(
        core: Core,
        id: NodeId,
        links: Links,
        replica: Arc<Replica>,
        commit: Arc<Durations>,
    ) -> (Proposer, Self) {
        let (sender, queue) = mpsc::channel(QUEUE);
        let pause = Arc::new(Pause { wanted: watch::Sender::new(false), quiet: watch::Sender::new(false) });
        let batcher = Self {
            roles: core.roles(),
            core,
            id,
            links,
            replica: replica.clone(),
            commit,
            queue,
            pause: pause.clone(),
            pending: VecDeque::new(),
            flights: JoinSet::new(),
            clock: TickClock::default(),
            swept: Instant::now(),
        };
        (Proposer { queue: sender, pause, replica }, batcher)
    }

    pub(crate) async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut core_runs = true;
        let mut pause = self.pause.wanted.subscribe();
        loop {
            let paused = *pause.borrow_and_update();
            self.sweep(paused);
            self.launch(paused).await;
            let quiet = paused && self.flights.is_empty();
            self.pause.quiet.send_if_modified(|known| std::mem::replace(known, quiet) != quiet);
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return,
                submission = self.queue.recv(), if self.pending.len() < PENDING_MAX => match submission {
                    None => return,
                    Some(submission) => {
                        self.accept(submission);
                        while self.pending.len() < PENDING_MAX && let Ok(submission) = self.queue.try_recv() {
                            self.accept(submission);
                        }
                    }
                },
                Some(again) = self.flights.join_next() => {
                    for submission in again.unwrap_or_default().into_iter().rev() {
                        self.pending.push_front(submission);
                    }
                }
                changed = self.roles.changed(), if core_runs => core_runs = changed,
                // It never ends: this task holds its other end.
                _ = pause.changed() => {}
                () = tokio::time::sleep(SWEEP_PERIOD), if !self.pending.is_empty() => {}
            }
        }
    }

    /// A tick goes first: its batch is stamped with the time after it.
    fn accept(&mut self, submission: Submission) {
        match submission.commands.first() {
            Some(Command::Tick { .. }) => self.pending.push_front(submission),
            _ => self.pending.push_back(submission),
        }
    }

    /// Tells those whose time is up that nothing was written, and those of other nodes when this one will lead no
    /// longer: they keep it and know best where to go next.
    fn sweep(&mut self, paused: bool) {
        let now = Instant::now();
        if !paused && now < self.swept + SWEEP_PERIOD {
            return;
        }
        self.swept = now;
        let leading = self.roles.leading().is_some();
        let mut kept = VecDeque::with_capacity(self.pending.len());
        for submission in self.pending.drain(..) {
            if submission.answer.is_closed() {
                continue;
            }
            let tick = matches!(submission.commands.first(), Some(Command::Tick { .. }));
            if submission.origin == Origin::LeaderOnly && (!leading || paused && !tick) {
                submission.answer(Err(not_done(NOT_LEADER.to_owned())));
            } else if submission.give_up <= now {
                let reason = match self.roles.leader() {
                    None => "no leader is known: too few nodes can reach each other",
                    Some(_) => "the leader could not be reached in time",
                };
                submission.answer(Err(not_done(reason.to_owned())));
            } else {
                kept.push_back(submission);
            }
        }
        self.pending = kept;
    }

    /// Sends as many batches as may be on their way.
    async fn launch(&mut self, paused: bool) {
        while !self.pending.is_empty() && self.flights.len() < FLIGHTS_MAX {
            match self.route() {
                Some(Route::Log { .. }) if paused => return,
                Some(Route::Log { term }) => self.send_to_log(term).await,
                Some(Route::Leader(link)) => self.send_to_leader(link),
                None => return,
            }
        }
    }

    fn route(&self) -> Option<Route> {
        if let Some(term) = self.roles.leading() {
            return Some(Route::Log { term });
        }
        let leader = self.roles.leader().filter(|leader| *leader != self.id)?;
        let membership = self.roles.membership();
        let link = self.links.member(leader, membership.nodes.get(&leader)?);
        Some(Route::Leader(Box::new(link)))
    }

    /// The next batch: the commands, and who waits for how many of them.
    fn take(&mut self, to_log: bool) -> Flight {
        let mut flight = Flight { commands: Vec::new(), waiting: Vec::new() };
        let mut bytes = 0;
        while let Some(mut next) = self.pending.pop_front() {
            if next.answer.is_closed() {
                // Whoever gave it up may have gone on: a tick that was given up must not follow the next one.
                continue;
            }
            let fits = flight.commands.len() + next.commands.len() <= BATCH_COMMANDS_MAX
                && bytes + next.bytes <= BATCH_BYTES_MAX;
            if !fits && !flight.commands.is_empty() {
                self.pending.push_front(next);
                break;
            }
            if next.origin == Origin::LeaderOnly && !to_log {
                next.answer(Err(not_done(NOT_LEADER.to_owned())));
                continue;
            }
            bytes += next.bytes;
            let count = next.commands.len();
            flight.commands.append(&mut next.commands);
            flight.waiting.push(Waiting { count, submission: next });
        }
        flight
    }

    async fn send_to_log(&mut self, term: u64) {
        let mut flight = self.take(true);
        let begun = Instant::now();
        let since_tick_ms = self.clock.stamp(term, &mut flight.commands, bugs::now());
        let current = self.replica.read(State::format);
        let commands = std::mem::take(&mut flight.commands).into_iter();
        let commands: Vec<_> = commands.map(|command| command.written_in(current)).collect();
        // A raise is of the format that it raises to: who does not understand that one stops here.
        let format = commands.iter().map(Command::format).fold(current, u8::max);
        let batch = Batch { since_tick_ms, commands };
        let encoded = codec::encode_in(format, &batch);
        flight.commands = batch.commands;
        let answer = self.core.submit(encoded).await;
        let commit = self.commit.clone();
        self.flights.spawn(async move {
            let latest = flight.latest_deadline();
            match tokio::time::timeout_at(latest.into(), answer).await {
                Ok(Ok(outcomes)) => {
                    commit.record(begun.elapsed());
                    flight.done(outcomes);
                    Vec::new()
                }
                Ok(Err(SubmitError::NotLeader)) => flight.again(),
                Ok(Err(SubmitError::Unknown)) | Err(_) => {
                    flight.unknown(begun.elapsed());
                    Vec::new()
                }
            }
        });
    }

    fn send_to_leader(&mut self, link: Box<Link>) {
        let flight = self.take(false);
        if flight.commands.is_empty() {
            return;
        }
        let roles = self.roles.clone();
        self.flights.spawn(async move {
            let begun = Instant::now();
            match forward::to_leader(&link, roles, &flight.commands, flight.latest_deadline()).await {
                Forwarded::Outcomes(outcomes) => {
                    flight.done(outcomes);
                    Vec::new()
                }
                Forwarded::NotDone => {
                    tokio::time::sleep(RETRY_PAUSE).await;
                    flight.again()
                }
                Forwarded::Refused(reason) => {
                    flight.refused(&reason);
                    Vec::new()
                }
                Forwarded::Unknown => {
                    flight.unknown(begun.elapsed());
                    Vec::new()
                }
            }
        });
    }
}

/// A batch on its way.
struct Flight {
    commands: Vec<Command>,
    waiting: Vec<Waiting>,
}

/// Who waits for the next `count` commands of a flight.
struct Waiting {
    count: usize,
    /// Everything of the submission but its commands.
    submission: Submission,
}

// === impl Flight ===

impl Flight {
    fn latest_deadline(&self) -> Instant {
        self.waiting.iter().map(|waiting| waiting.submission.deadline).max().unwrap_or_else(Instant::now)
    }

    fn done(self, outcomes: Vec<Outcome>) {
        let complete = outcomes.len() == self.commands.len();
        let mut outcomes = outcomes.into_iter();
        for Waiting { count, submission } in self.waiting {
            let own: Vec<_> = outcomes.by_ref().take(count).collect();
            // A leader that answers for fewer commands than it was given: what became of these is unknown.
            submission.answer(if complete { Ok(own) } else { Err(unknown(Duration::ZERO)) });
        }
    }

    /// None of it was written: what may be tried again.
    fn again(self) -> Vec<Submission> {
        let mut commands = self.commands.into_iter();
        let mut again = Vec::with_capacity(self.waiting.len());
        for Waiting { count, mut submission } in self.waiting {
            submission.commands = commands.by_ref().take(count).collect();
            again.push(submission);
        }
        again
    }

    fn unknown(self, waited: Duration) {
        for Waiting { submission, .. } in self.waiting {
            submission.answer(Err(unknown(waited)));
        }
    }

    fn refused(self, reason: &str) {
        for Waiting { submission, .. } in self.waiting {
            submission.answer(Err(not_done(reason.to_owned())));
        }
    }
}

// === impl TickClock ===

impl TickClock {
    /// The time since the last tick, for a batch of `term`; a tick at its front is filled in and starts anew,
    /// unless it was proposed without time.
    fn stamp(&mut self, term: u64, commands: &mut [Command], now: Instant) -> u64 {
        if self.term != term {
            *self = Self { term, ticked: None };
        }
        let since = self.ticked.map_or(Duration::ZERO, |ticked| now.saturating_duration_since(ticked));
        let since_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        match commands.first_mut() {
            Some(Command::Tick { elapsed_ms, .. }) if *elapsed_ms > 0 => {
                *elapsed_ms = since_ms;
                // Only whole milliseconds were told: the rest counts for the next tick.
                self.ticked =
                    Some(self.ticked.map_or(now, |ticked| ticked + Duration::from_millis(since_ms)));
                0
            }
            _ => since_ms,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tick() -> Command {
        Command::Tick { elapsed_ms: 77, heartbeats: Vec::new() }
    }

    fn elapsed(commands: &[Command]) -> Option<u64> {
        match commands.first() {
            Some(Command::Tick { elapsed_ms, .. }) => Some(*elapsed_ms),
            _ => None,
        }
    }

    #[test]
    fn the_first_tick_of_a_term_carries_no_time() {
        let mut clock = TickClock::default();
        let start = Instant::now();
        let mut stamp = |term, now| {
            let mut commands = [tick()];
            assert_eq!(clock.stamp(term, &mut commands, now), 0);
            elapsed(&commands)
        };
        assert_eq!(stamp(3, start), Some(0));
        let later = start + Duration::from_micros(1_000_900);
        assert_eq!(stamp(3, later), Some(1000));
        assert_eq!(stamp(4, later + Duration::from_secs(9)), Some(0));
    }

    #[test]
    fn parts_of_a_millisecond_are_not_lost() {
        let mut clock = TickClock::default();
        let start = Instant::now();
        clock.stamp(1, &mut [tick()], start);
        let mut told = 0;
        for step in 1..=10u32 {
            let mut commands = [tick()];
            clock.stamp(1, &mut commands, start + Duration::from_micros(1500) * step);
            told += elapsed(&commands).expect("it is a tick");
        }
        assert_eq!(told, 15);
    }

    #[test]
    fn a_tick_without_time_leaves_it_to_the_next_one() {
        let mut clock = TickClock::default();
        let start = Instant::now();
        clock.stamp(1, &mut [tick()], start);
        let mut beats = [Command::Tick { elapsed_ms: 0, heartbeats: Vec::new() }];
        assert_eq!(clock.stamp(1, &mut beats, start + Duration::from_millis(700)), 700);
        assert_eq!(elapsed(&beats), Some(0));
        let mut commands = [tick()];
        clock.stamp(1, &mut commands, start + Duration::from_secs(1));
        assert_eq!(elapsed(&commands), Some(1000));
    }

    #[test]
    fn other_commands_are_stamped_with_the_time_since_the_tick() {
        let mut clock = TickClock::default();
        let start = Instant::now();
        clock.stamp(1, &mut [tick()], start);
        let mut commands = [Command::Deregister { id: "a".into() }];
        assert_eq!(clock.stamp(1, &mut commands, start + Duration::from_millis(420)), 420);
    }
}
