//! The way out: a node that is to stop is not ready any more, hands its part over and lets its work finish.
//!
//! Job: [`Drain::run`] does it once, whoever asked first: SIGTERM or `POST /v1/node/drain`. Invariants: there is
//! no way back but a new process; what waits here for others is bounded, so that a node always comes to its end.
//! Neighbours: `node` runs it and stops the process afterwards, `Proxy::drain` has the data plane's part.

use std::{sync::Arc, time::Duration};

use gogate_cluster::{Cluster, ManageError};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::proxy::Proxy;

/// How long the leadership may take to go over; after that the others elect, as after a failure.
const HAND_OVER: Duration = Duration::from_secs(3);

/// A node's way out.
pub struct Drain {
    cluster: Cluster,
    proxy: Arc<Proxy>,
    asked: watch::Sender<bool>,
    done: watch::Sender<bool>,
}

// === impl Drain ===

impl Drain {
    /// Nothing happens until [`Drain::begin`].
    #[must_use]
    pub fn new(cluster: Cluster, proxy: Arc<Proxy>) -> Self {
        Self { cluster, proxy, asked: watch::Sender::new(false), done: watch::Sender::new(false) }
    }

    /// Asks for it. Again changes nothing.
    pub fn begin(&self) {
        self.asked.send_replace(true);
    }

    /// Whether it was asked for.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        *self.asked.borrow()
    }

    /// Returns when it is over.
    pub async fn done(&self) {
        // The other end of it is in `self`.
        let _ = self.done.subscribe().wait_for(|done| *done).await;
    }

    /// Drains when it is asked for. Never returns: the node lives on until it is told to stop.
    pub async fn run(self: Arc<Self>) {
        let _ = self.asked.subscribe().wait_for(|asked| *asked).await;
        info!("draining: this node is not ready any more");
        self.cluster.hold_back();
        tokio::join!(hand_over(&self.cluster), self.proxy.drain());
        info!("drained");
        self.done.send_replace(true);
        std::future::pending::<()>().await;
    }
}

/// Has another node lead, if this one does and there is another.
pub async fn hand_over(cluster: &Cluster) {
    let status = cluster.status();
    let others = status.members.iter().any(|member| member.voter && member.id != status.node);
    if status.leader != Some(status.node) || !others {
        return;
    }
    match cluster.transfer_leader(None, HAND_OVER).await {
        Ok(leader) => info!(leader, "another node leads"),
        // The other voters are away: they will have a leader when they are back.
        Err(ManageError::Refused(reason) | ManageError::NotDone(reason)) => {
            warn!(reason, "the leadership was not handed over");
        }
        Err(error) => warn!(%error, "the leadership was perhaps not handed over"),
    }
}
