//! The only bridge between the planes: what the cluster agreed on becomes what the proxy runs.
//!
//! Invariants: the table always belongs to one document, whole; a document that this node cannot run leaves
//! the table as it is and is reported; before a version is served, the disk knows that it is the current one, so
//! that a restart never serves an older one (P7); a change of endpoints touches the services that it concerns and no
//! other. Neighbours: `Cluster::changes` wakes it, `activation` makes ready what is staged, `compile` computes,
//! `Proxy::publish` swaps.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt;
use gogate_cluster::{
    Changes, Cluster,
    state::{Change, ChangeKind, Version},
};
use tokio::time::MissedTickBehavior;
use tracing::{error, info};

use super::{activation::Ready, compile};
use crate::{
    config::document::Document,
    proxy::{Proxy, RoutingTable},
};

/// The least time between two publications, so that a storm of registrations is taken in few steps; the first
/// one after a quiet time is published at once.
const INTERVAL: Duration = Duration::from_millis(10);

/// Between two tries of what could not be published.
const RETRY: Duration = Duration::from_secs(1);

/// What this node runs, for `/readyz`, `/metrics` and whoever asks.
#[derive(Debug, Default)]
pub struct Published {
    version: AtomicU64,
    once: std::sync::atomic::AtomicBool,
    error: Mutex<String>,
    services: Mutex<Arc<BTreeSet<String>>>,
    expirations: AtomicU64,
    /// What was read here last to be proposed, and has not come back to be run.
    proposed: Mutex<Option<(Arc<str>, Document)>>,
}

/// Carries changes from the cluster to the proxy.
pub struct Publisher {
    cluster: Cluster,
    proxy: Arc<Proxy>,
    published: Arc<Published>,
    /// Those that the document which runs sends requests to.
    services: Arc<BTreeSet<String>>,
    /// The staged document, if this node can run it.
    ready: Option<Ready>,
}

/// What a batch of changes asks for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Work {
    /// The current document.
    whole: bool,
    /// The staged document: there is another one, or none any more.
    staged: bool,
    services: BTreeSet<String>,
    expirations: u64,
}

/// What a node says of a version that it cannot run; [`refusal_of`] reads it.
#[must_use]
pub fn refusal(version: u64, reason: &str) -> String {
    format!("version {version}: {reason}")
}

/// Whether `error`, as a node reported it, is about `version`; the reason then.
#[must_use]
pub fn refusal_of(version: u64, error: &str) -> Option<&str> {
    error.strip_prefix(&format!("version {version}: "))
}

// === impl Published ===

impl Published {
    /// The version that runs here; 0: none.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Whether the state that this node started with has been published.
    #[must_use]
    pub fn once(&self) -> bool {
        self.once.load(Ordering::Acquire)
    }

    /// Why the current document does not run here; empty if it does.
    #[must_use]
    pub fn error(&self) -> String {
        self.error.lock().expect("nothing panics under this lock").clone()
    }

    /// The services of the document that runs.
    #[must_use]
    pub fn services(&self) -> Arc<BTreeSet<String>> {
        self.services.lock().expect("nothing panics under this lock").clone()
    }

    /// Says that `content`, which is this document, is about to be proposed: it need not be read a second time.
    pub fn will_run(&self, content: Arc<str>, document: Document) {
        *self.proposed.lock().expect("nothing panics under this lock") = Some((content, document));
    }

    /// What `content` was read as, if it was the last.
    fn proposed(&self, content: &str) -> Option<Document> {
        let mut proposed = self.proposed.lock().expect("nothing panics under this lock");
        proposed.take_if(|(known, _)| **known == *content).map(|(_, document)| document)
    }

    /// Instances that expired since this node started.
    #[must_use]
    pub fn expirations(&self) -> u64 {
        self.expirations.load(Ordering::Relaxed)
    }
}

// === impl Publisher ===

impl Publisher {
    /// Publishes nothing yet.
    #[must_use]
    pub fn new(cluster: Cluster, proxy: Arc<Proxy>, published: Arc<Published>) -> Self {
        Self { cluster, proxy, published, services: Arc::default(), ready: None }
    }

    /// Publishes what is there, then every change, until the cluster is shut down. What could not be published
    /// is tried again: the port that was taken may be free by then.
    pub async fn run(mut self, mut changes: Changes) {
        let mut failed = Work::default();
        self.publish(Work { whole: true, staged: true, ..Work::default() }, &mut failed).await;
        self.published.once.store(true, Ordering::Release);
        let mut retry = tokio::time::interval(RETRY);
        retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let mut work = Work::default();
            tokio::select! {
                next = changes.next() => {
                    let Some(first) = next else { return };
                    work.add(&first);
                    while let Some(Some(more)) = changes.next().now_or_never() {
                        work.add(&more);
                    }
                }
                _ = retry.tick(), if failed != Work::default() => {
                    work = std::mem::take(&mut failed);
                }
            }
            if self.publish(work, &mut failed).await {
                tokio::time::sleep(INTERVAL).await;
            }
        }
    }

    /// Does what `work` asks for, and notes what `failed`; false if nothing was to be done.
    async fn publish(&mut self, mut work: Work, failed: &mut Work) -> bool {
        self.published.expirations.fetch_add(work.expirations, Ordering::Relaxed);
        if work.whole {
            *failed = Work { whole: !self.publish_whole().await, ..Work::default() };
        }
        if work.staged {
            self.prepare().await;
        }
        // After the document: what was made ready may be older than these changes.
        work.services.retain(|service| self.services.contains(service));
        if !work.services.is_empty() && !self.publish_endpoints(&work.services).await {
            failed.services.append(&mut work.services);
        }
        work.whole || work.staged || !work.services.is_empty()
    }

    /// Makes ready what is staged, and tells the leader whether it can run here; drops what is not staged any more.
    async fn prepare(&mut self) {
        let staged = self.cluster.read(|state| state.documents().staged().cloned());
        let Some(staged) = staged else {
            self.ready = None;
            return;
        };
        if self.ready.as_ref().is_some_and(|ready| ready.version == staged.version) {
            return;
        }
        // What an earlier one reserved may be what this one needs.
        self.ready = None;
        let known = self.published.proposed(&staged.content);
        let made = Ready::make(&self.cluster, &self.proxy, &staged, known).await;
        let said = made.map(|ready| self.ready = Some(ready));
        self.cluster.ready(staged.version, said);
    }

    /// Puts the current document into force; false if this node cannot run it, which is reported.
    async fn publish_whole(&mut self) -> bool {
        let Some(current) = self.cluster.read(|state| state.documents().current().cloned()) else {
            return true;
        };
        let Err(reason) = self.run_version(&current).await else {
            self.said(current.version, String::new());
            return true;
        };
        if self.published.version() == 0 {
            self.run_older(&current).await;
        }
        let running = self.published.version();
        let refused = refusal(current.version, &reason);
        if refused != self.published.error() {
            error!(version = current.version, running, %reason, "this node cannot run the gateway document; what ran goes on, and it is tried again");
        }
        self.said(running, refused);
        // The endpoints of what goes on may have changed with a snapshot.
        self.publish_endpoints(&self.services).await;
        false
    }

    /// Nothing runs, as after a start, and the current version cannot: the newest older one that can is better
    /// than none (P1).
    async fn run_older(&mut self, current: &Version) {
        let older = self.cluster.read(|state| {
            let kept = state.documents().iter().rev();
            let older = kept.filter(|kept| kept.version < current.version);
            older.cloned().collect::<Vec<_>>()
        });
        for version in older {
            if self.run_version(&version).await.is_ok() {
                return;
            }
        }
    }

    async fn run_version(&mut self, version: &Arc<Version>) -> Result<(), String> {
        let ready = match self.ready.take_if(|ready| ready.version == version.version) {
            Some(ready) => ready.renewed(&self.cluster, &self.proxy).await?,
            None => Ready::make(&self.cluster, &self.proxy, version, None).await?,
        };
        self.cluster.keep_applied().await;
        let published = self.proxy.publish_reserved(ready.table, ready.reserved).await;
        published.map_err(|error| error.to_string())?;
        self.services = Arc::new(ready.services);
        self.published.services.lock().expect("nothing panics under this lock").clone_from(&self.services);
        self.published.version.store(version.version, Ordering::Release);
        info!(version = version.version, by = %version.by, "the gateway document runs");
        Ok(())
    }

    /// Swaps the endpoints of those of the `changed` services that requests are sent to; false if it failed.
    async fn publish_endpoints(&self, changed: &BTreeSet<String>) -> bool {
        let services: Vec<&String> = changed.intersection(&self.services).collect();
        if services.is_empty() {
            return true;
        }
        let registered =
            self.cluster.read(|state| compile::registered(state.registry(), services.iter().copied()));
        let mut table = RoutingTable::clone(&self.proxy.table());
        for (service, endpoints) in registered {
            table = table.with_endpoints(&service, endpoints);
        }
        let published = self.proxy.publish(table).await;
        if let Err(error) = &published {
            error!(%error, "the endpoints could not be published; it is tried again");
        }
        published.is_ok()
    }

    fn said(&self, version: u64, error: String) {
        self.published.error.lock().expect("nothing panics under this lock").clone_from(&error);
        self.cluster.report(version, error);
    }
}

// === impl Work ===

impl Work {
    fn add(&mut self, changes: &[Change]) {
        for change in changes {
            match &change.kind {
                ChangeKind::Reset => (self.whole, self.staged) = (true, true),
                ChangeKind::Document(_) => self.whole = true,
                ChangeKind::Staged(_) | ChangeKind::Refused(_) => self.staged = true,
                ChangeKind::Registered(instance) | ChangeKind::Deregistered(instance) => {
                    self.touch(&instance.name);
                }
                ChangeKind::Updated { was, now } => {
                    self.touch(&was.name);
                    self.touch(&now.name);
                }
                ChangeKind::Expired(instance) => {
                    self.expirations += 1;
                    self.touch(&instance.name);
                }
            }
        }
    }

    fn touch(&mut self, service: &str) {
        if !self.services.contains(service) {
            self.services.insert(service.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_about_its_own_version_only() {
        let said = refusal(12, "address in use");
        assert_eq!(refusal_of(12, &said), Some("address in use"));
        assert_eq!(refusal_of(1, &said), None);
        assert_eq!(refusal_of(12, ""), None);
    }
}
