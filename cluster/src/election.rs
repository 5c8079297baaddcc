//! Who campaigns, and when: the library's own election timer is off, this asks first.
//!
//! Job: when no leader was heard for a while, ask the other voters whether they would vote for this node
//! (pre-vote, Raft thesis 9.6), and begin a campaign only when a majority would. Without it a follower that
//! was cut off and returns deposes a healthy leader every time, because it comes back with a higher term.
//!
//! Invariants: a node that is no voter never campaigns; asking spends no term, so it may be repeated soon; a
//! node says yes only when its leader's lease is over, because until then the library would refuse the vote
//! itself; whoever said yes holds its own campaign back, so that two do not split the votes; of two that ask
//! each other at once, one goes first (the longer log, then the higher id). The asker's term does not
//! matter: a candidate whose term is too low learns a higher one from the refusals and asks again, whereas
//! refusing it here could leave nobody electable (the longest log with the lowest term).
//!
//! Fail-over takes: the silence (400 to 500 ms after the last heartbeat, which is on average half an interval
//! old), one round of questions, one of votes with a barrier each.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::stream::{FuturesUnordered, StreamExt};
use gogate_proto::v1;
use tokio::sync::watch;

use crate::{
    handle::Timers,
    raft::{Core, Links, Membership},
    state::NodeId,
    storage::codec::LogPosition,
};

/// How long a peer has to say whether it would vote.
const QUESTION_TIMEOUT: Duration = Duration::from_millis(150);

/// After a campaign, or a question that was answered with no, this node waits for a time between these.
const AGAIN_MIN: Duration = Duration::from_millis(40);
const AGAIN_MAX: Duration = Duration::from_millis(160);

/// How long the end of this node's log may take to be told to it.
const TOLD_WITHIN: Duration = Duration::from_millis(100);

/// How long a campaign may take: the votes' own deadline.
const CAMPAIGN: Duration = Duration::from_millis(300);

/// When this node last heard of a leader or a candidate.
#[derive(Debug)]
pub(crate) struct Heard {
    leader: Mutex<Instant>,
    candidate: Mutex<Option<Instant>>,
}

/// The supervisor of this node's campaigns.
pub(crate) struct Election {
    id: NodeId,
    core: Core,
    links: Links,
    heard: Arc<Heard>,
    timers: Timers,
    /// From the questions to the end of the campaign.
    asking: AtomicBool,
    /// This node is to stop soon: others go first.
    reluctant: AtomicBool,
    /// This node is no member any more, and never campaigns again.
    out: AtomicBool,
}

// === impl Heard ===

impl Heard {
    /// A node that starts gives whoever leads the time to be heard.
    pub(crate) fn new() -> Self {
        Self { leader: Mutex::new(Instant::now()), candidate: Mutex::new(None) }
    }

    /// A leader was heard.
    pub(crate) fn leader(&self) {
        *self.leader.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// This node gave another its vote, or would.
    pub(crate) fn candidate(&self) {
        *self.candidate.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// How long no leader was heard.
    pub(crate) fn silence(&self) -> Duration {
        self.leader.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    /// When a campaign may begin after a silence of `timeout`. Whoever would vote for another gives it half of
    /// that: a time of chance too, or two that held back for each other would collide again.
    fn due(&self, timeout: Duration) -> Instant {
        let leader = *self.leader.lock().unwrap_or_else(PoisonError::into_inner);
        let candidate = *self.candidate.lock().unwrap_or_else(PoisonError::into_inner);
        let due = leader + timeout;
        candidate.map_or(due, |candidate| due.max(candidate + timeout / 2))
    }
}

// === impl Election ===

impl Election {
    pub(crate) fn new(id: NodeId, core: Core, links: Links, heard: Arc<Heard>, timers: Timers) -> Self {
        Self {
            id,
            core,
            links,
            heard,
            timers,
            asking: AtomicBool::new(false),
            reluctant: AtomicBool::new(false),
            out: AtomicBool::new(false),
        }
    }

    /// From now on this node campaigns only when no other does.
    pub(crate) fn hold_back(&self) {
        self.reluctant.store(true, Ordering::Release);
    }

    /// Whether others are to go first.
    pub(crate) fn holds_back(&self) -> bool {
        self.reluctant.load(Ordering::Acquire)
    }

    /// From now on this node never campaigns.
    pub(crate) fn leave(&self) {
        self.out.store(true, Ordering::Release);
    }

    /// Whether a leader was heard lately: within the longest silence before a campaign.
    pub(crate) fn hears_leader(&self) -> bool {
        self.heard.silence() <= self.timers.campaign_max
    }

    /// Why this node would not vote for `candidate`, whose log ends there; `None`: it would.
    pub(crate) fn would_vote(
        &self,
        candidate: NodeId,
        last_log: Option<LogPosition>,
    ) -> Option<&'static str> {
        let leads = self.core.roles().is_leader();
        if leads && self.core.since_quorum().is_none_or(|since| since <= self.timers.election_max) {
            return Some("it leads");
        }
        if !leads && self.heard.silence() <= self.timers.election_max {
            return Some("it hears a leader");
        }
        let own_log = self.core.last_log();
        if last_log < own_log {
            return Some("its log is longer");
        }
        if self.asking.load(Ordering::Acquire) && (last_log, candidate) < (own_log, self.id) {
            return Some("it asks for votes itself and goes first");
        }
        self.heard.candidate();
        None
    }

    /// Campaigns at once, because the leader of `term`, whose log ends at `leaders_log`, asked for it: nobody is
    /// asked before, for the leader itself makes way. Returns once this node leads, or why it does not.
    pub(crate) async fn campaign_for(
        &self,
        term: u64,
        leaders_log: Option<LogPosition>,
    ) -> Result<(), &'static str> {
        let mut roles = self.core.roles();
        if roles.term() != term || roles.is_leader() {
            return Err("it is in another term");
        }
        if !roles.membership().is_voter(self.id) {
            return Err("it is no voter");
        }
        // What was written a moment ago may not be told here yet, though the leader knows that it was.
        if tokio::time::timeout(TOLD_WITHIN, self.core.log_reaches(leaders_log)).await.is_err() {
            return Err("its log is shorter");
        }
        self.links.set_transfer_term(term + 1);
        tracing::info!(term = term + 1, "the leader hands over to this node, it campaigns");
        self.core.elect().await;
        let elected = async {
            while !roles.is_leader() && roles.term() <= term + 1 && roles.changed().await {}
            roles.is_leader()
        };
        match tokio::time::timeout(CAMPAIGN, elected).await {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => Err("it was not elected"),
        }
    }

    /// Runs until `stop` turns true or the core has ended.
    pub(crate) async fn run(self: Arc<Self>, mut stop: watch::Receiver<bool>) {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => {}
            () = self.supervise() => {}
        }
    }

    async fn supervise(&self) {
        let mut roles = self.core.roles();
        loop {
            let leads = roles.is_leader();
            if leads || !roles.membership().is_voter(self.id) {
                if !roles.changed().await {
                    return;
                }
                if leads {
                    // Whoever deposed this node has its chance first.
                    self.heard.leader();
                }
                continue;
            }
            // Sampled anew for every campaign, or the same two nodes would collide again and again.
            let mut timeout = between(self.timers.campaign_min, self.timers.campaign_max);
            if self.holds_back() {
                timeout += self.timers.campaign_max;
            }
            let due = self.heard.due(timeout);
            if Instant::now() < due {
                tokio::select! {
                    () = tokio::time::sleep_until(due.into()) => {}
                    changed = roles.changed() => match changed {
                        true => continue,
                        false => return,
                    },
                }
                if Instant::now() < self.heard.due(timeout) {
                    continue;
                }
            }
            if self.out.load(Ordering::Acquire) {
                return;
            }
            self.asking.store(true, Ordering::Release);
            let granted = self.ask(&roles.membership()).await;
            if granted && Instant::now() >= self.heard.due(self.timers.election_max) {
                tracing::info!(term = roles.term() + 1, "no leader is heard, this node campaigns");
                self.core.elect().await;
                self.decided(&mut roles).await;
            }
            self.asking.store(false, Ordering::Release);
            tokio::time::sleep(between(AGAIN_MIN, AGAIN_MAX)).await;
            if !roles.core_runs() {
                return;
            }
        }
    }

    /// Waits for what a campaign comes to: this node leads, another does, or nobody in time. Its own new term
    /// is a change of its role as well: to begin again on that would throw away the votes under way.
    async fn decided(&self, roles: &mut crate::raft::Roles) {
        let began = Instant::now();
        let decided = async {
            while roles.leading().is_none() && self.heard.silence() > began.elapsed() && roles.changed().await
            {
            }
        };
        let _ = tokio::time::timeout(CAMPAIGN, decided).await;
    }

    /// Whether a majority would vote for this node.
    async fn ask(&self, membership: &Membership) -> bool {
        let mut granted = BTreeSet::from([self.id]);
        let mut questions = FuturesUnordered::new();
        for (id, node) in &membership.nodes {
            if *id != self.id && membership.is_voter(*id) {
                let link = self.links.member(*id, node);
                let message = v1::VoteRequest {
                    vote: Some(v1::Vote { term: 0, node: self.id, committed: false }),
                    last_log: self.core.last_log().map(|last| v1::LogId {
                        term: last.term,
                        node: last.node,
                        index: last.index,
                    }),
                    transfer: false,
                };
                questions.push(async move {
                    let request = link.request(message, Some(QUESTION_TIMEOUT));
                    match link.client().pre_vote(request).await {
                        Ok(reply) => reply.into_inner().granted.then(|| link.id()),
                        Err(status) => {
                            link.note(&status);
                            None
                        }
                    }
                });
            }
        }
        while !membership.is_majority(&granted) {
            match questions.next().await {
                None => return false,
                Some(answer) => granted.extend(answer),
            }
        }
        true
    }
}

fn between(min: Duration, max: Duration) -> Duration {
    if min < max { rand::random_range(min..max) } else { min }
}
