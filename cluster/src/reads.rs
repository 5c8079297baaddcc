//! Linearizable reads: which index a read has to wait for.
//!
//! Job: one round to a majority tells it for every reader that asked before the round began. On a follower
//! the round is one call to the leader. Invariant: a reader is only answered by a round that began after it
//! asked. Neighbours: `handle` then waits until that index is applied.

use std::time::Duration;

use gogate_proto::v1;
use tokio::sync::{mpsc, oneshot, watch};

use crate::raft::{Core, Links, Roles};

/// Readers that wait for a round; when it is full the caller is told so at once.
const QUEUE: usize = 8192;

/// One attempt. A leader that has lost its majority does not answer.
const ROUND_TIMEOUT: Duration = Duration::from_millis(500);

/// Between two attempts, unless another leader stands earlier.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// The way to ask. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Reader {
    queue: mpsc::Sender<oneshot::Sender<u64>>,
}

/// The task that makes the rounds.
pub(crate) struct Rounds {
    core: Core,
    roles: Roles,
    links: Links,
    queue: mpsc::Receiver<oneshot::Sender<u64>>,
    waiting: Vec<oneshot::Sender<u64>>,
}

// === impl Reader ===

impl Reader {
    /// The index that holds every write acknowledged before this call; cancelled by dropping it.
    pub(crate) async fn index(&self) -> Result<u64, String> {
        let (answer, index) = oneshot::channel();
        self.queue.try_send(answer).map_err(|_| "too many reads are waiting on this node".to_owned())?;
        index.await.map_err(|_| "this node is stopping".to_owned())
    }
}

// === impl Rounds ===

impl Rounds {
    pub(crate) fn new(core: Core, links: Links) -> (Reader, Self) {
        let (sender, queue) = mpsc::channel(QUEUE);
        let rounds = Self { roles: core.roles(), core, links, queue, waiting: Vec::new() };
        (Reader { queue: sender }, rounds)
    }

    pub(crate) async fn run(mut self, mut stop: watch::Receiver<bool>) {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => {}
            () = self.rounds() => {}
        }
    }

    async fn rounds(&mut self) {
        while let Some(first) = self.queue.recv().await {
            self.waiting.push(first);
            // Whoever was woken together with the first one is in the same round.
            tokio::task::yield_now().await;
            while !self.waiting.is_empty() {
                while self.waiting.len() < QUEUE
                    && let Ok(next) = self.queue.try_recv()
                {
                    self.waiting.push(next);
                }
                match self.round().await {
                    Some(index) => {
                        for answer in self.waiting.drain(..) {
                            // The reader may have given up.
                            let _ = answer.send(index);
                        }
                    }
                    None => {
                        tokio::select! {
                            () = tokio::time::sleep(RETRY_PAUSE) => {}
                            true = self.roles.changed() => {}
                        }
                        self.waiting.retain(|answer| !answer.is_closed());
                    }
                }
            }
        }
    }

    async fn round(&self) -> Option<u64> {
        if self.roles.leading().is_some() {
            return tokio::time::timeout(ROUND_TIMEOUT, self.core.read_index()).await.ok()?.ok();
        }
        let leader = self.roles.leader()?;
        let link = self.links.member(leader, self.roles.membership().nodes.get(&leader)?);
        let timeout_ms = u64::try_from(ROUND_TIMEOUT.as_millis()).unwrap_or(u64::MAX);
        let request = link.request(v1::ReadIndexRequest { timeout_ms }, Some(ROUND_TIMEOUT));
        Some(link.client().read_index(request).await.ok()?.into_inner().index)
    }
}
