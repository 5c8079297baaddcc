//! Who was heard from at this node, told to the leader four times a second.
//!
//! Invariants: a beat costs a map entry here and no log entry; a beat that could not be told is kept and told
//! again with its true age; of two beats of one instance the newer one counts. Neighbours: `admin::services`
//! takes beats in, `Cluster::forward_heartbeats` carries them.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use gogate_cluster::{
    Cluster,
    state::{Heartbeat, Instance},
};
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{info, warn};

/// How often the leader is told: well within the registry's grace, so that a beat that came just before its
/// instance's deadline still counts.
const PERIOD: Duration = Duration::from_millis(250);

/// Instances whose beats wait. A beat beyond it is refused, and the client told so: its next try goes to
/// another node or comes after the next telling.
const WAITING_MAX: usize = 1_000_000;

/// Beats in one message to the leader: well below a message's 4 MiB with ids of 255 bytes.
const MESSAGE_MAX: usize = 8_000;

/// How long telling may fail before beats are refused, so that instances turn to a node that is heard.
/// Longer than an election with all its retries, shorter than a useful TTL.
const CUT_OFF: Duration = Duration::from_secs(5);

/// The beats that arrived here and that the leader has not heard of.
pub struct Heartbeats {
    inner: Mutex<Inner>,
}

struct Inner {
    waiting: HashMap<Arc<str>, Beat>,
    told: Instant,
}

#[derive(Clone, Copy)]
struct Beat {
    epoch: u64,
    arrived: Instant,
}

/// What became of a beat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// The leader will hear of it.
    Noted,
    /// Nobody has heard from this node for a while.
    CutOff,
    /// Too many wait.
    Full,
}

// === impl Heartbeats ===

impl Heartbeats {
    /// Without any beats.
    #[must_use]
    pub fn new() -> Self {
        Self { inner: Mutex::new(Inner { waiting: HashMap::new(), told: Instant::now() }) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("nothing panics under this lock")
    }

    /// Takes in that `instance` was heard from just now.
    pub fn take(&self, instance: &Instance) -> Taken {
        if instance.ttl_ms == 0 {
            return Taken::Noted;
        }
        let arrived = Instant::now();
        let mut inner = self.lock();
        let cut_off = arrived.duration_since(inner.told) > CUT_OFF;
        if inner.waiting.len() >= WAITING_MAX && !inner.waiting.contains_key(&instance.id) {
            return Taken::Full;
        }
        inner.waiting.insert(instance.id.clone(), Beat { epoch: instance.epoch, arrived });
        if cut_off { Taken::CutOff } else { Taken::Noted }
    }

    /// Takes out all that wait.
    fn drain(&self) -> HashMap<Arc<str>, Beat> {
        std::mem::take(&mut self.lock().waiting)
    }

    /// Puts back what could not be told, unless something newer came meanwhile.
    fn put_back(&self, beats: impl IntoIterator<Item = (Arc<str>, Beat)>) {
        let mut inner = self.lock();
        for (id, beat) in beats {
            if inner.waiting.len() >= WAITING_MAX {
                break;
            }
            if let Entry::Vacant(entry) = inner.waiting.entry(id) {
                entry.insert(beat);
            }
        }
    }

    /// Tells the leader for ever; ends by being dropped.
    pub async fn forward(&self, cluster: &Cluster) {
        let mut period = tokio::time::interval(PERIOD);
        period.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            period.tick().await;
            let beats: Vec<(Arc<str>, Beat)> = self.drain().into_iter().collect();
            let mut told = 0;
            let mut failure = None;
            for message in beats.chunks(MESSAGE_MAX) {
                let now = Instant::now();
                let heartbeats = message.iter().map(|(id, beat)| beat.aged(id, now)).collect();
                if let Err(error) = cluster.forward_heartbeats(heartbeats).await {
                    failure = Some(error);
                    break;
                }
                told += message.len();
            }
            let Some(error) = failure else {
                self.reached();
                continue;
            };
            self.put_back(beats.into_iter().skip(told));
            if self.lock().told.elapsed() > CUT_OFF {
                warn!(%error, "heartbeats cannot reach a leader; they are kept, and refused from now on");
            }
        }
    }

    fn reached(&self) {
        let mut inner = self.lock();
        if inner.told.elapsed() > CUT_OFF {
            info!("heartbeats reach the leader again");
        }
        inner.told = Instant::now();
    }
}

impl Default for Heartbeats {
    fn default() -> Self {
        Self::new()
    }
}

// === impl Beat ===

impl Beat {
    fn aged(self, id: &Arc<str>, now: Instant) -> Heartbeat {
        // Rounded down: an age that is too large would end the life early.
        let age = now.saturating_duration_since(self.arrived);
        let age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        Heartbeat { id: id.clone(), epoch: self.epoch, age_ms }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(id: &str, epoch: u64) -> Instance {
        Instance {
            id: id.into(),
            name: "api".into(),
            address: "10.0.0.1:80".into(),
            ttl_ms: 30_000,
            weight: 1,
            metadata: std::collections::BTreeMap::new(),
            tags: Vec::new(),
            epoch,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_beat_that_was_put_back_keeps_its_age() {
        let heartbeats = Heartbeats::new();
        assert_eq!(heartbeats.take(&instance("a", 1)), Taken::Noted);
        heartbeats.put_back(heartbeats.drain());
        tokio::time::advance(Duration::from_secs(3)).await;
        let beats = heartbeats.drain();
        let (id, beat) = beats.iter().next().unwrap();
        assert_eq!(beat.aged(id, Instant::now()).age_ms, 3000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_newer_beat_is_not_replaced_by_one_put_back() {
        let heartbeats = Heartbeats::new();
        heartbeats.take(&instance("a", 1));
        let old = heartbeats.drain();
        heartbeats.take(&instance("a", 2));
        heartbeats.put_back(old);
        assert_eq!(heartbeats.drain()["a"].epoch, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_nobody_hears_refuses_beats_and_keeps_them() {
        let heartbeats = Heartbeats::new();
        tokio::time::advance(CUT_OFF + Duration::from_secs(1)).await;
        assert_eq!(heartbeats.take(&instance("a", 1)), Taken::CutOff);
        assert_eq!(heartbeats.drain().len(), 1);
        heartbeats.reached();
        assert_eq!(heartbeats.take(&instance("a", 1)), Taken::Noted);
    }
}
