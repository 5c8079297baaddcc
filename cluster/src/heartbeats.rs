//! Beats, from the node where they arrive to a tick of whoever leads.
//!
//! Job: a node passes the beats of its callers to the leader, which says which of them it took; the leader keeps
//! them for its next tick ([`Inbox`]), other nodes keep them in case it dies before ([`Told`]). A beat costs no
//! log entry. Neighbours: `leader` makes the ticks, `reads` the rounds, `forward` carries commands.
//!
//! Invariants, of a beat that [`pass_on`] reports as taken:
//! - **Its instance was there.** The leader looks only after a round to a majority that began when the beat had
//!   arrived, at a state that holds all that was agreed on by then. A leader that was paused or cut off and does not
//!   know yet that it was deposed gets no round, so it says nothing; a node that is behind is not asked.
//! - **No tick that left before it ends its life.** Such a tick does not carry the beat. So the leader looks only
//!   after every tick that it had begun before the beat came is applied ([`Inbox::ticked`]). Ticks of leaders
//!   before lie in the log before the round's index, or nowhere. A later tick carries it.
//! - **It outlives one node.** Until the tick that carries it is in the log, two nodes have it: the leader, and the
//!   node that took it, or, if that was the leader, a voter that it asked. Whoever has it tells the next
//!   leader, whose first tick that moves the clock comes a second after its first.
//!
//! Whatever else happens, nobody knows: the beat may be in the inbox already, or be carried later with its true age.
//! It is told again, which changes no more than once.

use std::{
    collections::{BTreeMap, VecDeque},
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use gogate_proto::v1;
use tokio::sync::{Notify, watch};
use tonic::Code;

use crate::{
    batch::heartbeat_weight,
    forward::{self, Forwarded},
    handle::ProposeError,
    node::Node,
    raft::{Link, Roles},
    state::Heartbeat,
};

/// Instances whose beat waits for the next tick; beyond, whoever passes more on is told to come again.
const INBOX_MAX: usize = 500_000;

/// From one round for beats to the next: what comes meanwhile shares the next one, however many nodes it comes from.
const ROUND_PERIOD: Duration = Duration::from_millis(20);

/// How long the leader may take to be sure. It is asked again, or the next one is.
const CERTAIN_TIMEOUT: Duration = Duration::from_millis(500);

/// The same with the way there and back.
const CALL_TIMEOUT: Duration = Duration::from_millis(700);

/// A voter that has not said by then that it remembers is not the only one asked.
const KEEPER_PATIENCE: Duration = Duration::from_millis(50);

/// Beats that are remembered for the next leader; of more, the oldest are forgotten.
const TOLD_MAX: usize = 500_000;

/// Beats that a new leader is told at once.
const AGAIN_MAX: usize = 10_000;

/// Between two attempts to tell a new leader.
const AGAIN_PAUSE: Duration = Duration::from_millis(50);

/// The beats that wait for the leader's next tick.
pub(crate) struct Inbox {
    /// By chance: a leader that starts again, even in the same term, has another one.
    id: u64,
    roles: Roles,
    waiting: Mutex<Waiting>,
    /// The last tick that was begun here and is applied, and with it all before.
    ticked: watch::Sender<u64>,
    /// When the last round for beats began or will begin.
    round: Mutex<Instant>,
    /// The voter that remembered beats last.
    keeper: AtomicU64,
}

#[derive(Default)]
struct Waiting {
    beats: BTreeMap<Arc<str>, Beat>,
    /// How many ticks were begun.
    begun: u64,
}

/// When a life was heard from.
struct Beat {
    epoch: u64,
    heard: Instant,
}

/// The beats of one tick, or of a part of it.
#[derive(Default)]
pub(crate) struct Part(BTreeMap<Arc<str>, Beat>);

/// What a leader said of beats.
#[derive(Debug)]
pub(crate) struct Taken {
    /// Which inbox has them; it is lost with the leader's process.
    inbox: u64,
    /// How many ticks it had begun by then, all of them applied: the next one carries the beats.
    ticks: u64,
    /// The places of those whose instance is not there, or lives another life.
    unknown: Vec<usize>,
}

/// What leaders were told lately and have not put into the log.
#[derive(Debug, Default)]
pub(crate) struct Told {
    lately: Mutex<Lately>,
    /// Something lies in another inbox than the present leader's.
    other_inbox: Notify,
}

#[derive(Debug, Default)]
struct Lately {
    beats: VecDeque<ToldBeat>,
    /// Of the leader that was last asked for it.
    inbox: u64,
}

#[derive(Debug)]
struct ToldBeat {
    inbox: u64,
    ticks: u64,
    id: Arc<str>,
    epoch: u64,
    heard: Instant,
}

fn aged(id: &Arc<str>, epoch: u64, heard: Instant, now: Instant) -> Heartbeat {
    // Rounded down: an age that is too large would end the life early.
    let age_ms = u64::try_from(now.saturating_duration_since(heard).as_millis()).unwrap_or(u64::MAX);
    Heartbeat { id: id.clone(), epoch, age_ms }
}

/// When a beat was heard that is so old `now`.
fn heard(beat: &Heartbeat, now: Instant) -> Instant {
    // A clock that began less than that ago: as old as can be told.
    now.checked_sub(Duration::from_millis(beat.age_ms)).unwrap_or(now)
}

fn not_done(reason: impl Into<String>) -> ProposeError {
    ProposeError::NotDone { reason: reason.into() }
}

fn unknown(since: Instant) -> ProposeError {
    ProposeError::Unknown { waited_ms: u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX) }
}

// === impl Inbox ===

impl Inbox {
    pub(crate) fn new(roles: Roles) -> Self {
        Self {
            id: rand::random(),
            roles,
            waiting: Mutex::default(),
            ticked: watch::Sender::new(0),
            round: Mutex::new(Instant::now()),
            keeper: AtomicU64::new(0),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in beats as old as they say. Of one instance the newest counts. Returns how many ticks were begun.
    fn put(&self, heartbeats: &[Heartbeat], now: Instant) -> Result<u64, String> {
        if self.roles.leading().is_none() {
            return Err("this node is not the leader".to_owned());
        }
        let mut waiting = self.waiting();
        if waiting.beats.len() + heartbeats.len() > INBOX_MAX {
            return Err("too many heartbeats wait for the next tick".to_owned());
        }
        for beat in heartbeats {
            let newest = Beat { epoch: beat.epoch, heard: heard(beat, now) };
            keep_newest(&mut waiting.beats, beat.id.clone(), newest);
        }
        Ok(waiting.begun)
    }

    /// Begins a tick: whatever is taken in from now on may come too late for it. Returns its number.
    pub(crate) fn begin_tick(&self) -> u64 {
        let mut waiting = self.waiting();
        waiting.begun += 1;
        waiting.begun
    }

    /// Takes out all, or as many as fit into `bytes_max`, at least one; also whether that is all.
    pub(crate) fn take(&self, bytes_max: usize) -> (Part, bool) {
        let mut waiting = self.waiting();
        let rest = split_off_rest(&mut waiting.beats, bytes_max);
        let is_all = rest.is_empty();
        (Part(mem::replace(&mut waiting.beats, rest)), is_all)
    }

    /// A part was not agreed on: its beats wait for the next tick, unless newer ones came.
    pub(crate) fn put_back(&self, part: Part) {
        let mut waiting = self.waiting();
        for (id, beat) in part.0 {
            keep_newest(&mut waiting.beats, id, beat);
        }
    }

    /// All parts of this tick are applied, so all ticks before are, too, or never will be.
    pub(crate) fn note_ticked(&self, number: u64) {
        self.ticked.send_replace(number);
    }

    /// Returns once this tick, or a later one, is applied.
    async fn ticked(&self, number: u64) {
        // The other end is this inbox's own.
        let _ = self.ticked.subscribe().wait_for(|ticked| *ticked >= number).await;
    }

    /// When the next round for beats begins: at once, unless there was one just now.
    fn next_round(&self) -> Instant {
        let mut round = self.round.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if *round <= now {
            *round = now.max(*round + ROUND_PERIOD);
        }
        *round
    }
}

/// Leaves in `beats` what fits one tick of `bytes_max`, at least one, and returns the others.
fn split_off_rest(beats: &mut BTreeMap<Arc<str>, Beat>, bytes_max: usize) -> BTreeMap<Arc<str>, Beat> {
    let mut bytes = 0;
    let first_too_many = beats.keys().enumerate().find(|(at, id)| {
        bytes += heartbeat_weight(id);
        *at > 0 && bytes > bytes_max
    });
    match first_too_many.map(|(_, id)| id.clone()) {
        Some(id) => beats.split_off(&id),
        None => BTreeMap::new(),
    }
}

fn keep_newest(beats: &mut BTreeMap<Arc<str>, Beat>, id: Arc<str>, beat: Beat) {
    let newest = beats.get(&id).is_none_or(|kept| (kept.epoch, kept.heard) < (beat.epoch, beat.heard));
    if newest {
        beats.insert(id, beat);
    }
}

// === impl Part ===

impl Part {
    /// The beats, as old as they are now.
    pub(crate) fn heartbeats(&self) -> Vec<Heartbeat> {
        let now = Instant::now();
        self.0.iter().map(|(id, beat)| aged(id, beat.epoch, beat.heard, now)).collect()
    }
}

// === impl Told ===

impl Told {
    fn lately(&self) -> MutexGuard<'_, Lately> {
        self.lately.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers what an inbox took when so many ticks had been begun there, and forgets what it took before the
    /// last but one of the `ticked`, which are applied. What lies in a lost inbox stays until it is told again.
    fn note(&self, inbox: u64, ticks: u64, ticked: u64, heartbeats: Vec<Heartbeat>, now: Instant) {
        let mut lately = self.lately();
        if inbox != lately.inbox {
            self.other_inbox.notify_one();
        }
        lately.beats.extend(heartbeats.into_iter().map(|beat| {
            let heard = heard(&beat, now);
            ToldBeat { inbox, ticks, id: beat.id, epoch: beat.epoch, heard }
        }));
        while let Some(oldest) = lately.beats.front() {
            let is_in_log = oldest.inbox == inbox && oldest.ticks < ticked;
            if lately.beats.len() <= TOLD_MAX && !is_in_log {
                break;
            }
            lately.beats.pop_front();
        }
    }

    fn note_inbox(&self, inbox: u64) {
        self.lately().inbox = inbox;
    }

    /// Takes out the oldest that other inboxes than `inbox` took.
    fn take_lost(&self, inbox: u64) -> Vec<ToldBeat> {
        let mut lately = self.lately();
        let (mut lost, mut kept) = (Vec::new(), VecDeque::with_capacity(lately.beats.len()));
        for beat in lately.beats.drain(..) {
            if beat.inbox != inbox && lost.len() < AGAIN_MAX {
                lost.push(beat);
            } else {
                kept.push_back(beat);
            }
        }
        lately.beats = kept;
        lost
    }

    fn put_back(&self, lost: Vec<ToldBeat>) {
        let mut lately = self.lately();
        for beat in lost.into_iter().rev() {
            lately.beats.push_front(beat);
        }
    }
}

/// Passes beats on to the leader and remembers them for the next one. Returns the places of those whose instance is
/// not there, or lives another life; the others are taken.
pub(crate) async fn pass_on(node: &Node, heartbeats: Vec<Heartbeat>) -> Result<Vec<usize>, ProposeError> {
    tell(node, heartbeats).await.map(|taken| taken.unknown)
}

/// Tells every new leader what the one before was told and may have died with. Ends with the core.
pub(crate) async fn tell_new_leaders(node: Arc<Node>) {
    let mut roles = node.core.roles();
    loop {
        if roles.leader().is_some() && tell_again(&node).await.is_err() {
            tokio::time::sleep(AGAIN_PAUSE).await;
            continue;
        }
        tokio::select! {
            runs = roles.changed() => if !runs {
                return;
            },
            () = node.told.other_inbox.notified() => {}
        }
    }
}

async fn tell_again(node: &Node) -> Result<(), ProposeError> {
    // Without beats it is only asked which inbox there is.
    let mut inbox = tell(node, Vec::new()).await?.inbox;
    node.told.note_inbox(inbox);
    loop {
        let lost = node.told.take_lost(inbox);
        if lost.is_empty() {
            return Ok(());
        }
        let now = Instant::now();
        let heartbeats = lost.iter().map(|beat| aged(&beat.id, beat.epoch, beat.heard, now)).collect();
        match tell(node, heartbeats).await {
            Ok(taken) => inbox = taken.inbox,
            Err(error) => {
                node.told.put_back(lost);
                return Err(error);
            }
        }
    }
}

/// To the leader, or into the own inbox if that is this node.
async fn tell(node: &Node, heartbeats: Vec<Heartbeat>) -> Result<Taken, ProposeError> {
    let roles = node.core.roles();
    let begun = Instant::now();
    if roles.leading().is_some() {
        let keep = |inbox, ticks| keep(node, inbox, ticks, &heartbeats);
        return take(node, &heartbeats, keep).await;
    }
    let membership = roles.membership();
    let leader = roles.leader().and_then(|leader| Some((leader, membership.nodes.get(&leader)?)));
    let Some((leader, record)) = leader else { return Err(not_done("no leader is known")) };
    let link = node.links.member(leader, record);
    let taken = tokio::select! {
        taken = call(&link, &heartbeats) => taken?,
        () = forward::deposed(roles, leader) => return Err(unknown(begun)),
    };
    node.told.note(taken.inbox, taken.ticks, taken.ticks, heartbeats, begun);
    Ok(taken)
}

/// One call to the leader.
async fn call(link: &Link, heartbeats: &[Heartbeat]) -> Result<Taken, ProposeError> {
    let begun = Instant::now();
    let request = v1::HeartbeatsRequest { heartbeats: messages(heartbeats) };
    let mut client = link.client();
    let call = client.heartbeats(link.request(request, Some(CALL_TIMEOUT)));
    let status = match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Ok(Ok(reply)) => {
            let v1::HeartbeatsReply { inbox, unknown, ticks } = reply.into_inner();
            let unknown = unknown.into_iter().filter_map(|place| usize::try_from(place).ok()).collect();
            return Ok(Taken { inbox, ticks, unknown });
        }
        Ok(Err(status)) => status,
        Err(_) => return Err(unknown(begun)),
    };
    match forward::failure(&status) {
        Forwarded::NotDone => {
            Err(not_done(format!("the leader did not take the heartbeats: {}", status.message())))
        }
        Forwarded::Refused(reason) => Err(not_done(reason)),
        Forwarded::Outcomes(_) | Forwarded::Unknown => Err(unknown(begun)),
    }
}

fn messages(heartbeats: &[Heartbeat]) -> Vec<v1::Heartbeat> {
    heartbeats
        .iter()
        .map(|beat| v1::Heartbeat { id: beat.id.to_string(), epoch: beat.epoch, age_ms: beat.age_ms })
        .collect()
}

/// What another node passed on to this one, and remembers.
pub(crate) async fn take_passed_on(
    node: &Node,
    heartbeats: Vec<v1::Heartbeat>,
) -> Result<v1::HeartbeatsReply, ProposeError> {
    let taken = take(node, &of_messages(heartbeats), |_, _| async { Ok(()) }).await?;
    // As many as came in a message of a few MiB.
    let unknown = taken.unknown.into_iter().map(|place| u32::try_from(place).unwrap_or(u32::MAX)).collect();
    Ok(v1::HeartbeatsReply { inbox: taken.inbox, unknown, ticks: taken.ticks })
}

fn of_messages(heartbeats: Vec<v1::Heartbeat>) -> Vec<Heartbeat> {
    heartbeats
        .into_iter()
        .map(|beat| Heartbeat { id: beat.id.into(), epoch: beat.epoch, age_ms: beat.age_ms })
        .collect()
}

/// On the leader: takes beats in, is sure that it leads, and has them kept by a second node with `keep`, which is told
/// the inbox and how many ticks were begun. What is certainly not done was not taken in; anything else may have been.
async fn take<K: Future<Output = Result<(), ()>>>(
    node: &Node,
    heartbeats: &[Heartbeat],
    keep: impl FnOnce(u64, u64) -> K,
) -> Result<Taken, ProposeError> {
    let begun = Instant::now();
    let roles = node.core.roles();
    let Some(term) = roles.leading() else { return Err(not_done("this node is not the leader")) };
    let ticks = node.inbox.put(heartbeats, begun).map_err(not_done)?;
    let mut taken = Taken { inbox: node.inbox.id, ticks, unknown: Vec::new() };
    if heartbeats.is_empty() {
        return Ok(taken);
    }
    let leads = async {
        tokio::time::sleep_until(node.inbox.next_round().into()).await;
        let index = node.reader.index().await.map_err(drop)?;
        node.replica.applied().wait_for(|applied| *applied >= index).await.map_err(drop)?;
        node.inbox.ticked(ticks).await;
        Ok(())
    };
    let kept = keep(taken.inbox, ticks);
    let certain = tokio::time::timeout(CERTAIN_TIMEOUT, async { tokio::try_join!(leads, kept) }).await;
    // The round may have been another leader's, whom this node only asked. Terms do not go back, so this node's view
    // was the same at both looks only if it was in between, too.
    if !matches!(certain, Ok(Ok(_))) || roles.leading() != Some(term) {
        return Err(unknown(begun));
    }
    taken.unknown = node.replica.read(|state| {
        let lives = |beat: &Heartbeat| {
            state.registry().get(&beat.id).is_some_and(|instance| instance.epoch == beat.epoch)
        };
        let gone = heartbeats.iter().enumerate().filter(|(_, beat)| !lives(beat));
        gone.map(|(place, _)| place).collect()
    });
    Ok(taken)
}

/// On the leader: has another voter remember its own callers' beats: the one that did so last, then the others. A
/// cluster of one has nobody to outlive it.
async fn keep(node: &Node, inbox: u64, ticks: u64, heartbeats: &[Heartbeat]) -> Result<(), ()> {
    let membership = node.core.roles().membership();
    let mut others: Vec<_> = membership.nodes.iter().collect();
    others.retain(|(id, _)| **id != node.id && membership.is_voter(**id));
    if others.is_empty() {
        return Ok(());
    }
    let last = node.inbox.keeper.load(Ordering::Relaxed);
    others.sort_by_key(|(id, _)| **id != last);
    let ticked = *node.inbox.ticked.borrow();
    let request = v1::KeepHeartbeatsRequest { inbox, ticks, ticked, heartbeats: messages(heartbeats) };
    let (mut others, mut asked) = (others.into_iter(), FuturesUnordered::new());
    loop {
        if let Some((id, record)) = others.next() {
            let link = node.links.member(*id, record);
            let request = link.request(request.clone(), Some(CERTAIN_TIMEOUT));
            asked.push(async move { (*id, link.client().keep_heartbeats(request).await) });
        }
        tokio::select! {
            kept = asked.next() => match kept {
                // A node of a version before keeps nothing; with it there is no more than there was.
                Some((id, Err(status))) if status.code() != Code::Unimplemented => {
                    tracing::debug!(id, %status, "a voter does not keep heartbeats");
                }
                Some((id, _)) => {
                    node.inbox.keeper.store(id, Ordering::Relaxed);
                    return Ok(());
                }
                None => return Err(()),
            },
            () = tokio::time::sleep(KEEPER_PATIENCE) => {}
        }
    }
}

/// On another voter: remembers what lies in the leader's inbox only.
pub(crate) fn keep_for_leader(node: &Node, request: v1::KeepHeartbeatsRequest) {
    let v1::KeepHeartbeatsRequest { inbox, ticks, ticked, heartbeats } = request;
    node.told.note(inbox, ticks, ticked, of_messages(heartbeats), Instant::now());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(told: &Told, inbox: u64, ticks: u64, ids: &[&str], now: Instant) {
        let beat = |id: &&str| Heartbeat { id: (*id).into(), epoch: 1, age_ms: 10 };
        told.note(inbox, ticks, ticks, ids.iter().map(beat).collect(), now);
    }

    fn ids(beats: &[ToldBeat]) -> Vec<&str> {
        beats.iter().map(|beat| &*beat.id).collect()
    }

    #[test]
    fn what_a_lost_inbox_took_is_told_again_with_its_age() {
        let told = Told::default();
        let start = Instant::now();
        note(&told, 7, 0, &["a"], start);
        note(&told, 8, 0, &["b"], start);
        // However long the election took, and however many ticks there were since.
        note(&told, 8, 50, &["c"], start);
        let lost = told.take_lost(8);
        assert_eq!(ids(&lost), ["a"]);
        let again = aged(&lost[0].id, lost[0].epoch, lost[0].heard, start + Duration::from_millis(2500));
        assert_eq!(again.age_ms, 2510);
        assert!(told.take_lost(8).is_empty());
        told.put_back(lost);
        assert_eq!(ids(&told.take_lost(8)), ["a"], "it was not told yet");
    }

    #[test]
    fn a_beat_is_forgotten_once_the_tick_after_it_is_applied() {
        let told = Told::default();
        let now = Instant::now();
        note(&told, 7, 3, &["a"], now);
        note(&told, 7, 3, &["b"], now);
        assert_eq!(told.lately().beats.len(), 2, "the fourth tick carries them");
        note(&told, 7, 4, &["c"], now);
        assert_eq!(ids(&told.take_lost(0)), ["c"]);
    }

    #[tokio::test]
    async fn what_was_noted_of_another_inbox_than_the_present_one_is_news() {
        let told = Told::default();
        told.note_inbox(8);
        // Its answer came late: the next leader was told of all else already.
        note(&told, 7, 0, &["a"], Instant::now());
        told.other_inbox.notified().await;
    }
}
