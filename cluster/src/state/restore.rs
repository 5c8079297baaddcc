//! A backup on its way into the state.
//!
//! A backup is larger than an entry of the log may be, so it comes in parts: they are gathered beside what the
//! cluster has, and the last step puts them in its place at once. Invariants: nothing of a restore that was not
//! finished can be seen; a part that is repeated changes nothing; another restore that begins ends this one; what
//! was left unfinished is forgotten. Neighbours: `State::apply` calls, `crate::backup` makes the parts.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Instance, Version, command::RestoreStep, registry::INSTANCES_MAX};

/// An unfinished restore is forgotten after this time on the log clock.
const FORGET_MS: u64 = 10 * 60 * 1000;

/// The restore that goes on, and how the last one ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Restores {
    gathered: Option<Gathered>,
    /// So that the last step may be repeated: the restore, and the index of its change.
    done: Option<(u64, u64)>,
}

/// What came of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Gathered {
    restore: u64,
    /// The part that comes next.
    next: u64,
    began_ms: u64,
    /// Whether it may take the place of something.
    pub(super) force: bool,
    pub(super) instances: Vec<Arc<Instance>>,
    pub(super) versions: Vec<Arc<Version>>,
}

/// What a step of a restore asks of the rest of the state.
pub(super) enum Step {
    /// Nothing.
    Gathered,
    /// It was finished, at this index.
    Done(u64),
    /// It does not follow what came before.
    Lost,
    /// More instances than there may be.
    TooMany,
    /// All is there, as it stood at this index: it takes the place of what the cluster has.
    Complete(Gathered, u64),
}

// === impl Restores ===

impl Restores {
    pub(super) fn step(&mut self, restore: u64, part: u64, step: RestoreStep, now_ms: u64) -> Step {
        if let RestoreStep::Begin { force } = step {
            let known = self.gathered.as_ref().is_some_and(|gathered| gathered.restore == restore);
            if !known {
                self.gathered = Some(Gathered {
                    restore,
                    next: part + 1,
                    began_ms: now_ms,
                    force,
                    instances: Vec::new(),
                    versions: Vec::new(),
                });
            }
            return Step::Gathered;
        }
        if let Some((_, index)) = self.done.filter(|(done, _)| *done == restore) {
            return Step::Done(index);
        }
        let Some(gathered) = self.gathered.as_mut().filter(|gathered| gathered.restore == restore) else {
            return Step::Lost;
        };
        if part < gathered.next {
            return Step::Gathered;
        }
        if part > gathered.next {
            return Step::Lost;
        }
        gathered.next += 1;
        match step {
            RestoreStep::Begin { .. } => {}
            RestoreStep::Instances(instances) => {
                if gathered.instances.len() + instances.len() > INSTANCES_MAX {
                    self.gathered = None;
                    return Step::TooMany;
                }
                gathered.instances.extend(instances.into_iter().map(Arc::new));
            }
            RestoreStep::Document(version) => gathered.add(version),
            RestoreStep::Finish { instances, versions, index } => {
                let complete = gathered.instances.len() as u64 == instances
                    && gathered.versions.len() as u64 == versions;
                return match self.gathered.take() {
                    Some(gathered) if complete => Step::Complete(gathered, index),
                    _ => Step::Lost,
                };
            }
        }
        Step::Gathered
    }

    pub(super) fn finished(&mut self, restore: u64, index: u64) {
        self.done = Some((restore, index));
    }

    /// Forgets what nobody goes on with.
    pub(super) fn forget(&mut self, now_ms: u64) {
        let forgotten = |gathered: &Gathered| gathered.began_ms.saturating_add(FORGET_MS) <= now_ms;
        if self.gathered.as_ref().is_some_and(forgotten) {
            self.gathered = None;
        }
    }
}

// === impl Gathered ===

impl Gathered {
    /// A version, or what follows of the last one's content.
    fn add(&mut self, version: Version) {
        match self.versions.last_mut() {
            Some(last) if last.version == version.version => {
                let content = format!("{}{}", last.content, version.content).into();
                *last = Arc::new(Version { content, ..version });
            }
            _ => self.versions.push(Arc::new(version)),
        }
    }
}
