//! The beats of this node's callers on their way to the leader, and its answers on their way back.
//!
//! Invariants: a caller is told what the leader said of its beat, or that nobody knows, never what this node thinks;
//! one message is on its way at a time and all that comes meanwhile is in the next one, so that beats cost the same
//! however many there are; a beat that may not have been taken is told again with its true age, until its caller's
//! deadline. Neighbours: `admin::services` takes beats in, `Cluster::forward_heartbeats` carries them, and the
//! leader there says how soon the next message may follow.

use std::{collections::VecDeque, mem, sync::Arc, time::Duration};

use gogate_cluster::{
    Cluster, ProposeError,
    state::{Heartbeat, Instance},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

/// Callers that wait to be taken into a message. Beyond it one is told so at once: its next try goes to another node.
const WAITING_MAX: usize = 65_536;

/// Beats in one message to the leader: well below a message's 16 MiB with ids of 255 bytes.
const MESSAGE_MAX: usize = 8_000;

/// Between two attempts to reach a leader.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// A beat that is not on its way this long before its deadline will not be: there is time to say so. A quarter of a
/// time that is shorter.
const GIVE_UP_BEFORE: Duration = Duration::from_millis(30);

/// The way in for beats. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Heartbeats {
    queue: mpsc::Sender<Beat>,
}

/// The task that passes them on.
#[derive(Debug)]
pub struct Forwarder {
    queue: mpsc::Receiver<Beat>,
    waiting: VecDeque<Beat>,
    /// Why the last message was not taken.
    reason: String,
}

#[derive(Debug)]
struct Beat {
    id: Arc<str>,
    epoch: u64,
    arrived: Instant,
    give_up: Instant,
    /// Whether it may have been taken.
    was_told: bool,
    answer: oneshot::Sender<Result<Heard, ProposeError>>,
}

/// What the leader said of a beat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// The instance lives for its TTL from when the beat arrived.
    Lives,
    /// It is not there, or it was registered anew.
    Gone,
}

/// Both ends.
#[must_use]
pub fn channel() -> (Heartbeats, Forwarder) {
    let (sender, queue) = mpsc::channel(WAITING_MAX);
    (
        Heartbeats { queue: sender },
        Forwarder {
            queue,
            waiting: VecDeque::new(),
            reason: "the leader could not be told in time".to_owned(),
        },
    )
}

// === impl Heartbeats ===

impl Heartbeats {
    /// Has the leader told that `instance` was heard from just now.
    ///
    /// # Errors
    /// When it certainly was not told until `deadline`, or nobody knows.
    pub async fn beat(&self, instance: &Instance, deadline: Instant) -> Result<Heard, ProposeError> {
        let not_done = |reason: &str| ProposeError::NotDone { reason: reason.to_owned() };
        let (answer, answered) = oneshot::channel();
        let arrived = Instant::now();
        let (id, epoch) = (instance.id.clone(), instance.epoch);
        let give_up = deadline - GIVE_UP_BEFORE.min((deadline - arrived) / 4);
        let beat = Beat { id, epoch, arrived, give_up, was_told: false, answer };
        self.queue.try_send(beat).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => not_done("too many heartbeats wait for the leader"),
            mpsc::error::TrySendError::Closed(_) => not_done("this node is stopping"),
        })?;
        match tokio::time::timeout_at(deadline, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => Err(unknown(arrived)),
        }
    }
}

fn unknown(since: Instant) -> ProposeError {
    ProposeError::Unknown { waited_ms: u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX) }
}

// === impl Forwarder ===

impl Forwarder {
    /// Passes beats on until all [`Heartbeats`] are gone.
    pub async fn run(mut self, cluster: Cluster) {
        while self.gather().await {
            self.give_up();
            let count = self.waiting.len().min(MESSAGE_MAX);
            if count == 0 {
                continue;
            }
            let told = cluster.forward_heartbeats(self.message(count)).await;
            let failed = told.is_err();
            self.answer(count, told);
            if failed {
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
    }

    /// Waits for a beat and takes all that have come; false: no more will.
    async fn gather(&mut self) -> bool {
        if self.waiting.is_empty() {
            match self.queue.recv().await {
                Some(beat) => self.waiting.push_back(beat),
                None => return false,
            }
        }
        while self.waiting.len() < WAITING_MAX
            && let Ok(beat) = self.queue.try_recv()
        {
            self.waiting.push_back(beat);
        }
        true
    }

    /// Lets go of those whose caller has gone, or has to be told something now.
    fn give_up(&mut self) {
        let now = Instant::now();
        let is_over = |beat: &Beat| beat.answer.is_closed() || beat.give_up <= now;
        if !self.waiting.iter().any(is_over) {
            return;
        }
        for beat in mem::take(&mut self.waiting) {
            if !is_over(&beat) {
                self.waiting.push_back(beat);
            } else if beat.was_told {
                let error = unknown(beat.arrived);
                beat.answer(Err(error));
            } else {
                beat.answer(Err(ProposeError::NotDone { reason: self.reason.clone() }));
            }
        }
    }

    /// The first `count`, as old as they are now.
    fn message(&self, count: usize) -> Vec<Heartbeat> {
        let now = Instant::now();
        self.waiting.iter().take(count).map(|beat| beat.aged(now)).collect()
    }

    /// Tells the callers of the first `count` what the leader said; those of which it said nothing wait on.
    fn answer(&mut self, count: usize, told: Result<Vec<usize>, ProposeError>) {
        match told {
            Ok(gone) => {
                let mut gone = gone.into_iter().peekable();
                for (place, beat) in self.waiting.drain(..count).enumerate() {
                    let heard = if gone.next_if_eq(&place).is_some() { Heard::Gone } else { Heard::Lives };
                    beat.answer(Ok(heard));
                }
            }
            Err(ProposeError::NotDone { reason }) => self.reason = reason,
            Err(ProposeError::Unknown { .. }) => {
                self.waiting.iter_mut().take(count).for_each(|beat| beat.was_told = true);
            }
        }
    }
}

// === impl Beat ===

impl Beat {
    fn aged(&self, now: Instant) -> Heartbeat {
        // Rounded down: an age that is too large would end the life early.
        let age = now.saturating_duration_since(self.arrived);
        let age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        Heartbeat { id: self.id.clone(), epoch: self.epoch, age_ms }
    }

    fn answer(self, answer: Result<Heard, ProposeError>) {
        // The caller may have gone away.
        let _ = self.answer.send(answer);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(5);

    fn instance(id: &str) -> Instance {
        Instance {
            id: id.into(),
            name: "api".into(),
            address: "10.0.0.1:80".into(),
            ttl_ms: 30_000,
            weight: 1,
            metadata: std::collections::BTreeMap::new(),
            tags: Vec::new(),
            epoch: 1,
        }
    }

    fn not_done(reason: &str) -> ProposeError {
        ProposeError::NotDone { reason: reason.into() }
    }

    #[tokio::test(start_paused = true)]
    async fn each_caller_hears_what_the_leader_said_of_its_beat() {
        let (heartbeats, mut forwarder) = channel();
        let instances = ["a", "b", "c"].map(instance);
        let mut calls = instances
            .each_ref()
            .map(|instance| Box::pin(heartbeats.beat(instance, Instant::now() + TIMEOUT)));
        assert!(calls.iter_mut().all(|call| call.now_or_never().is_none()));
        assert!(forwarder.gather().await);
        // The third one is in the next message.
        forwarder.answer(2, Ok(vec![1]));
        let answers = calls.each_mut().map(|call| call.now_or_never());
        assert_eq!(answers, [Some(Ok(Heard::Lives)), Some(Ok(Heard::Gone)), None]);
        assert_eq!(forwarder.message(1)[0].id, "c".into());
    }

    #[tokio::test(start_paused = true)]
    async fn a_beat_that_is_told_again_has_its_true_age() {
        let (heartbeats, mut forwarder) = channel();
        let instance = instance("a");
        let mut call = Box::pin(heartbeats.beat(&instance, Instant::now() + TIMEOUT));
        assert!((&mut call).now_or_never().is_none());
        assert!(forwarder.gather().await);
        forwarder.answer(1, Err(not_done("no leader is known")));
        tokio::time::advance(Duration::from_secs(3)).await;
        forwarder.give_up();
        assert_eq!(forwarder.message(1)[0].age_ms, 3000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_beat_that_nobody_took_until_its_deadline_was_not_taken_or_nobody_knows() {
        let unknown = ProposeError::Unknown { waited_ms: 4980 };
        let left = Duration::from_millis(20);
        for (said, heard) in [
            (not_done("no leader is known"), not_done("no leader is known")),
            (ProposeError::Unknown { waited_ms: 500 }, unknown),
        ] {
            let (heartbeats, mut forwarder) = channel();
            let instance = instance("a");
            let mut call = Box::pin(heartbeats.beat(&instance, Instant::now() + TIMEOUT));
            assert!((&mut call).now_or_never().is_none());
            assert!(forwarder.gather().await);
            forwarder.answer(1, Err(said));
            tokio::time::advance(TIMEOUT - left).await;
            forwarder.give_up();
            assert_eq!(call.now_or_never(), Some(Err(heard)));
            assert!(forwarder.waiting.is_empty());
        }
        let (heartbeats, _forwarder) = channel();
        let answer = heartbeats.beat(&instance("a"), Instant::now() + TIMEOUT).await;
        assert_eq!(answer, Err(ProposeError::Unknown { waited_ms: 5000 }), "it is on its way");
    }

    #[tokio::test(start_paused = true)]
    async fn one_caller_more_than_may_wait_is_told_so_at_once() {
        let (heartbeats, _forwarder) = channel();
        let instance = instance("a");
        let deadline = Instant::now() + TIMEOUT;
        let mut waiting: Vec<_> =
            (0..WAITING_MAX).map(|_| Box::pin(heartbeats.beat(&instance, deadline))).collect();
        assert!(waiting.iter_mut().all(|call| call.now_or_never().is_none()));
        let answer = heartbeats.beat(&instance, deadline).now_or_never();
        assert_eq!(answer, Some(Err(not_done("too many heartbeats wait for the leader"))));
    }
}
