//! What only the leader does: it ticks the log clock and tidies the membership.
//!
//! Job: about once a second propose a tick with the heartbeats that arrived at any node since; see that every
//! founder is admitted and that a change of voters which a dead leader began is finished. Invariants: all of
//! it is proposed, nothing is done; a node that was deposed meanwhile proposes in vain. Neighbours: `heartbeats`
//! has the inbox, `batch` fills in the time, `state::clock` says why a late tick is harmless and an early one cannot be.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::watch;

use crate::{
    batch::Proposer,
    heartbeats::Inbox,
    members,
    raft::{Core, Replica, Roles},
    state::{Command, ELAPSED_MS_MAX, NewNode, SPREAD_TICKS, TICK_PERIOD},
};

/// How often a leader that no majority hears looks whether one does again.
const SILENCE_PERIOD: Duration = Duration::from_millis(50);

/// A tick that is not agreed on by then is given up; the next one carries its time and its heartbeats.
const TICK_TIMEOUT: Duration = Duration::from_secs(2);

/// Heartbeats of one tick: well within an entry, which must reach a follower within a Raft heartbeat.
const TICK_BYTES_MAX: usize = 768 << 10;

/// The leader's duties; idle on every other node.
pub(crate) struct Duties {
    core: Core,
    replica: Arc<Replica>,
    proposer: Proposer,
    inbox: Arc<Inbox>,
    /// The services that were reported to expire over several ticks.
    spread: Mutex<BTreeSet<Arc<str>>>,
}

// === impl Duties ===

impl Duties {
    pub(crate) fn new(core: Core, replica: Arc<Replica>, proposer: Proposer, inbox: Arc<Inbox>) -> Self {
        Self { core, replica, proposer, inbox, spread: Mutex::default() }
    }

    pub(crate) async fn run(self, mut stop: watch::Receiver<bool>) {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => {}
            () = self.watch_roles() => {}
        }
    }

    async fn watch_roles(&self) {
        let mut roles = self.core.roles();
        loop {
            if let Some(term) = roles.leading() {
                tracing::info!(term, "this node leads");
                // What is left in the inbox then stays: it may lead again, and an old beat does no harm.
                self.lead(term, &mut roles).await;
            }
            if roles.leading().is_none() {
                tokio::select! {
                    changed = roles.changed() => if !changed { return },
                    // A majority that hears this node again is no change of roles.
                    () = tokio::time::sleep(SILENCE_PERIOD), if roles.is_leader() => {}
                }
            }
        }
    }

    /// Returns when another term began.
    async fn lead(&self, term: u64, roles: &mut Roles) {
        let mut ticks = tokio::time::interval(TICK_PERIOD);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while roles.leading() == Some(term) {
            tokio::select! {
                _ = ticks.tick() => {
                    self.tick().await;
                    self.admit_founders(roles).await;
                    self.finish_change(roles).await;
                    self.finish_removals(roles).await;
                }
                true = roles.changed() => {}
            }
        }
    }

    /// All beats, in as many ticks as they need. Only the last one carries time: an earlier one would let those
    /// expire whose beats are in a later one. Beats that come meanwhile are in the last one, too.
    async fn tick(&self) {
        let number = self.inbox.begin_tick();
        loop {
            let (part, is_last) = self.inbox.take(TICK_BYTES_MAX);
            let elapsed_ms = if is_last { ELAPSED_MS_MAX } else { 0 };
            let tick = Command::Tick { elapsed_ms, heartbeats: part.heartbeats() };
            if let Err(error) = self.proposer.propose_as_leader(vec![tick], TICK_TIMEOUT).await {
                // Whoever leads next is told of its heartbeats by those who remember them.
                if self.core.roles().leading().is_some() {
                    tracing::warn!(%error, "a tick was not agreed on, its heartbeats wait for the next one");
                }
                self.inbox.put_back(part);
                return;
            }
            if is_last {
                self.inbox.note_ticked(number);
                self.report_spread();
                return;
            }
        }
    }

    /// Says when most of a service begins and ends to expire.
    fn report_spread(&self) {
        let now: BTreeSet<Arc<str>> = self.replica.read(|state| state.registry().spread().cloned().collect());
        let mut told = self.spread.lock().unwrap_or_else(PoisonError::into_inner);
        for service in now.difference(&told) {
            tracing::warn!(%service, "more than half of a service was not heard from: it expires over {SPREAD_TICKS} s, and whoever is heard from meanwhile stays");
        }
        for service in told.difference(&now) {
            tracing::info!(%service, "no more of the service is due to expire");
        }
        *told = now;
    }

    /// The first members were not admitted by anybody: their ids are noted as used now.
    async fn admit_founders(&self, roles: &Roles) {
        let missing: Vec<_> = self.replica.read(|state| {
            let admitted = |incarnation| state.members().by_incarnation(incarnation).is_some();
            let nodes = roles.membership().nodes;
            nodes.into_iter().filter(|(_, node)| !admitted(node.incarnation)).collect()
        });
        if missing.is_empty() {
            return;
        }
        let commands = missing
            .into_iter()
            .map(|(id, node)| {
                Command::AdmitNode(NewNode { name: node.name, incarnation: node.incarnation, id: Some(id) })
            })
            .collect();
        // Tried again at the next tick.
        let _ = self.proposer.propose_as_leader(commands, TICK_TIMEOUT).await;
    }

    /// A removal is decided before it is carried out: a leader may have died in between.
    async fn finish_removals(&self, roles: &Roles) {
        let membership = roles.membership();
        let retired: BTreeSet<_> = self.replica.read(|state| state.members().retired().collect());
        let left: BTreeSet<_> = membership.nodes.keys().copied().filter(|id| retired.contains(id)).collect();
        // Itself it cannot take out: an operator's removal hands over first.
        if !left.is_empty() && !left.contains(&self.core.id()) {
            let _ =
                tokio::time::timeout(TICK_TIMEOUT, members::take_out(&self.core, left, &membership)).await;
        }
    }

    /// A leader that died between the two steps of a change of voters left two sets of them.
    async fn finish_change(&self, roles: &Roles) {
        let membership = roles.membership();
        if let [_, wanted] = membership.voters.as_slice() {
            // Refused while somebody else is at it, which is as good; without a quorum it would never end, and the
            // ticks with it.
            let _ = tokio::time::timeout(TICK_TIMEOUT, self.core.change_voters(wanted.clone())).await;
        }
    }
}
