//! This node's own copy of the gateway document, `gateway.file`, and when it is proposed to the cluster.
//!
//! It is proposed on the very first start of an empty cluster, on SIGHUP, and (`gateway.watch`) when its
//! content changes. Invariants: what equals the current document makes no version (the state
//! compares, as this node's own copy may be old); a file with problems changes
//! nothing, and all of them are logged. Neighbours: `notify` watches the folder, `compile::check` judges.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use gogate_cluster::{
    Cluster, ProposeError,
    state::{Command, Fate, NewDocument, Outcome, Refusal},
};
use notify::Watcher;
use tokio::sync::Notify;
use tracing::{error, info, warn};

use super::compile;
use crate::config::{self, Problem};

/// How long the folder must be quiet before the file is read: editors write, then rename.
const QUIET: Duration = Duration::from_millis(200);

/// How long one proposal may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How long the nodes may take to say whether they can run it: longer than the leader waits for them.
const DECISION_TIMEOUT: Duration = Duration::from_secs(30);

/// Between two tries, while there is no leader.
const RETRY: Duration = Duration::from_millis(500);

/// Proposes a file.
pub struct Reload {
    cluster: Cluster,
    node: String,
    file: PathBuf,
    watch: bool,
    /// SIGHUP.
    hangup: Arc<Notify>,
}

/// Milliseconds since 1970 by this machine's clock: shown, never computed with.
#[must_use]
pub fn wall_clock_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

// === impl Reload ===

impl Reload {
    /// For the file of one node; `hangup` is notified on SIGHUP.
    #[must_use]
    pub fn new(cluster: Cluster, node: String, file: PathBuf, watch: bool, hangup: Arc<Notify>) -> Self {
        Self { cluster, node, file, watch, hangup }
    }

    /// Proposes the file when it should be; ends by being dropped.
    pub async fn run(self) {
        let changed = Arc::new(Notify::new());
        // Watched before it is read for the first time, so that no change falls between.
        let watcher = if self.watch { self.watcher(&changed) } else { None };
        let mut last = self.content().await;
        if let Some(content) = &last {
            self.first_start(content).await;
        }
        let mut again = false;
        loop {
            let why = tokio::select! {
                () = self.hangup.notified() => "SIGHUP",
                () = changed.notified(), if watcher.is_some() => {
                    quiet(&changed).await;
                    "the file changed"
                }
                () = tokio::time::sleep(RETRY), if again => "the last try failed",
            };
            let content = self.content().await;
            if content.is_none() || (why == "the file changed" && content == last) {
                continue;
            }
            last = content;
            again = self.propose(last.as_deref().unwrap_or_default(), None, why).await.is_err();
        }
    }

    /// Watches the folder: an editor that renames replaces the file, and a watch on it would be lost.
    fn watcher(&self, changed: &Arc<Notify>) -> Option<notify::RecommendedWatcher> {
        let folder = match self.file.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let (wake, file) = (changed.clone(), self.file.clone());
        let watcher = notify::recommended_watcher(move |event| {
            if concerns(&event, &file) {
                wake.notify_one();
            }
        });
        let watched = watcher.and_then(|mut watcher| {
            watcher.watch(folder, notify::RecursiveMode::NonRecursive).map(|()| watcher)
        });
        match watched {
            Ok(watcher) => Some(watcher),
            Err(error) => {
                warn!(folder = %folder.display(), %error, "the gateway file cannot be watched; SIGHUP still works");
                None
            }
        }
    }

    async fn content(&self) -> Option<String> {
        let read = tokio::fs::read(&self.file).await.map_err(|error| error.to_string());
        match read
            .and_then(|bytes| config::text(&bytes).map(str::to_owned).map_err(|problem| problem.to_string()))
        {
            Ok(content) => Some(content),
            Err(error) => {
                error!(file = %self.file.display(), %error, "the gateway file cannot be read; what runs stays");
                None
            }
        }
    }

    /// Proposes the file to an empty cluster, until it is not empty any more.
    async fn first_start(&self, content: &str) {
        let mut told = false;
        loop {
            let current = self.cluster.read(|state| state.documents().current().cloned());
            if let Some(current) = current {
                if *current.content != *content {
                    info!(version = current.version, file = %self.file.display(), "the gateway file differs from the document that runs; SIGHUP proposes it");
                }
                return;
            }
            // Only a cluster that can be asked is known to be empty.
            if self.cluster.linearizable(TIMEOUT).await.is_ok() {
                match self.propose(content, Some(0), "first start").await {
                    Err(ProposeError::Unknown { .. } | ProposeError::NotDone { .. }) => {}
                    Ok(()) => return,
                }
            } else if !told {
                told = true;
                info!("waiting for a leader, to propose the gateway file to a cluster without a document");
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Proposes `content`. An error means that it may be tried again; everything else is settled and logged.
    async fn propose(&self, content: &str, expected: Option<u64>, why: &str) -> Result<(), ProposeError> {
        let file = self.file.display();
        let text: Arc<str> = content.into();
        let judged = text.clone();
        let checked = tokio::task::spawn_blocking(move || compile::check(&judged)).await;
        let checked = checked.unwrap_or_else(|error| {
            Err(vec![Problem::general(format!("it could not be checked: {error}"), None)])
        });
        if let Err(problems) = checked {
            for problem in &problems {
                error!("{}", problem.in_file(&file.to_string()));
            }
            error!(%file, why, problems = problems.len(), "the gateway file is not valid; what runs stays");
            return Ok(());
        }
        let by = format!("{file} on {}", self.node);
        let document = NewDocument { expected, content: text, by, at_ms: wall_clock_ms() };
        match self.cluster.propose(Command::PutDocument(document), TIMEOUT).await {
            Ok(Outcome::Staged { version }) => match self.cluster.fate(version, DECISION_TIMEOUT).await {
                Fate::Activated => info!(%file, why, version, "the gateway file is the current document"),
                Fate::Refused { reason } => {
                    error!(%file, why, version, refused_by = %reason, "the gateway file was refused; what runs stays");
                }
                Fate::Staged | Fate::Unknown => {
                    warn!(%file, why, version, "the gateway file is written, but not in force yet");
                }
            },
            Ok(Outcome::Refused(refusal @ Refusal::Staging { .. })) => {
                return Err(ProposeError::NotDone { reason: refusal.to_string() });
            }
            Ok(Outcome::Documented { .. }) => {
                info!(%file, why, "the gateway file equals what runs: nothing to do");
            }
            Ok(Outcome::Refused(Refusal::StaleDocument { current, .. })) if expected == Some(0) => {
                info!(version = current, "another node was first with its gateway file");
            }
            Ok(outcome) => {
                error!(%file, why, ?outcome, "the cluster refused the gateway file; what runs stays");
            }
            Err(error) => {
                warn!(%file, why, %error, "the gateway file could not be proposed");
                return Err(error);
            }
        }
        Ok(())
    }
}

/// Whether an event in the folder may have changed `file`'s content. Reading it is an event too, and must not
/// be one of these. Kubernetes swaps a link named `..data` beside the link that is the file.
fn concerns(event: &notify::Result<notify::Event>, file: &Path) -> bool {
    use notify::event::{AccessKind, AccessMode, EventKind};
    let Ok(event) = event else { return true };
    let written = match event.kind {
        EventKind::Access(kind) => kind == AccessKind::Close(AccessMode::Write),
        EventKind::Any
        | EventKind::Create(_)
        | EventKind::Modify(_)
        | EventKind::Remove(_)
        | EventKind::Other => true,
    };
    let ours = |path: &PathBuf| path.file_name() == file.file_name() || path.ends_with("..data");
    written && (event.need_rescan() || event.paths.iter().any(ours))
}

/// Returns once nothing was notified for [`QUIET`].
async fn quiet(changed: &Notify) {
    while tokio::time::timeout(QUIET, changed.notified()).await.is_ok() {}
}
