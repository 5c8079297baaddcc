//! The replicated state: what every node computes alike from the same log.
//!
//! Job: [`State::apply`] decides what a [`Command`] does; everything else carries it there and back.
//! Invariants: no clock, no randomness, no files, sockets, threads or floats, and no map without an order, so
//! that two nodes with one log hold equal bytes. Time enters as data (`clock`). A refusal is an outcome.
//! Neighbours: `raft` calls `apply` in the order of the log; `handle` reads.

mod clock;
mod command;
mod config;
mod format;
mod members;
mod once;
mod registry;
mod restore;
mod uploads;

use std::sync::Arc;

pub use clock::{ELAPSED_MS_MAX, LogClock, TICK_PERIOD};
pub use command::{Command, Heartbeat, NewDocument, NewNode, Outcome, Refusal, Registration, RestoreStep};
pub use config::{Documents, Fate, HISTORY, Version};
pub use format::{FORMAT, OLDEST};
pub use members::Members;
pub use registry::{EXPIRY_GRACE_MS, Instance, Registry, SPREAD_MIN, SPREAD_TICKS};
use serde::{Deserialize, Serialize};
pub use uploads::PART_BYTES;

use self::{
    format::Format,
    once::Answers,
    registry::{INSTANCES_MAX, Kept},
    restore::{Restores, Step},
    uploads::Uploads,
};

/// A node's id: at least 1, given once, never used again.
pub type NodeId = u64;

/// Everything the cluster agrees on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Counts the changes that a reader can see, from 1: `X-Gogate-Index`.
    index: u64,
    clock: LogClock,
    registry: Registry,
    documents: Documents,
    members: Members,
    answers: Answers,
    uploads: Uploads,
    restores: Restores,
    /// Not among its bytes: it is the format in which they are written.
    #[serde(skip)]
    format: Format,
    /// Deregistrations since format 4; written from that one on.
    #[cfg(feature = "next-format")]
    #[serde(skip)]
    counted: u64,
}

/// A copy of a [`State`] that can only be written out, which reads as the state: made while nothing may be applied, so
/// it copies no more than it must. Its fields are the state's, in their order.
#[derive(Debug, Default, Serialize)]
pub struct Frozen {
    index: u64,
    clock: LogClock,
    registry: Kept,
    documents: Documents,
    members: Members,
    answers: Answers,
    uploads: Uploads,
    restores: Restores,
    #[serde(skip)]
    format: Format,
    #[cfg(feature = "next-format")]
    #[serde(skip)]
    counted: u64,
}

/// Something a reader can see changed, at `index`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Where it stands in the order of all changes.
    pub index: u64,
    /// What changed.
    pub kind: ChangeKind,
}

/// What changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChangeKind {
    /// A new instance.
    Registered(Arc<Instance>),
    /// An instance was replaced by one of the same id; `was` tells which service lost it.
    Updated {
        /// What it was.
        was: Arc<Instance>,
        /// What it is.
        now: Arc<Instance>,
    },
    /// An instance was removed.
    Deregistered(Arc<Instance>),
    /// An instance was not heard from in time.
    Expired(Arc<Instance>),
    /// The document's current version.
    Document(u64),
    /// A version waits for the nodes to say whether they can run it.
    Staged(u64),
    /// A version that was staged never runs.
    Refused(u64),
    /// Everything may have changed: a snapshot was installed, or a backup restored.
    Reset,
}

// === impl State ===

impl State {
    /// Carries out one command. `since_tick_ms` is the leader's time since its last tick when it took the
    /// command in, so that a life counted from now is not counted from the tick.
    ///
    /// Must not fail: whatever cannot be done is refused. Called in the order of the log, by one thread.
    pub fn apply(&mut self, command: Command, since_tick_ms: u64, changes: &mut Vec<Change>) -> Outcome {
        let now_ms = self.clock.at(since_tick_ms);
        match command {
            Command::Tick { elapsed_ms, heartbeats } => {
                let now_ms = self.clock.advance(elapsed_ms);
                // A tick that carries beats only was taken in some time after the last one that carried time.
                let heard_ms = self.clock.at(since_tick_ms);
                for heartbeat in &heartbeats {
                    self.registry.renew(heartbeat, heard_ms);
                }
                for instance in self.registry.expire(now_ms) {
                    self.change(ChangeKind::Expired(instance), changes);
                }
                self.answers.forget(now_ms);
                self.uploads.forget(now_ms);
                self.restores.forget(now_ms);
                Outcome::Ticked
            }
            Command::Register(registration) => {
                let (was, now) = match self.registry.register(registration, self.index + 1, now_ms) {
                    Ok(registered) => registered,
                    Err(refusal) => return Outcome::Refused(refusal),
                };
                let expires_in_ms = (now.ttl_ms > 0).then_some(now.ttl_ms);
                let created = was.is_none();
                let kind = match was {
                    None => ChangeKind::Registered(now.clone()),
                    Some(was) => ChangeKind::Updated { was, now: now.clone() },
                };
                self.change(kind, changes);
                Outcome::Registered { instance: now, created, expires_in_ms }
            }
            Command::Deregister { id } => self.deregister(id, changes),
            Command::PutDocument(document) => {
                let staged = self.documents.stage(document);
                self.staged(staged, changes)
            }
            Command::RollbackDocument { to, expected, by, at_ms } => {
                let staged = self.documents.stage_old(to, expected, by, at_ms);
                self.staged(staged, changes)
            }
            Command::StorePart { upload, part, bytes } => {
                self.uploads.keep(upload, part, bytes, now_ms);
                Outcome::Stored
            }
            Command::PutUploaded { upload, parts, document } => {
                let content =
                    self.uploads.take(upload, parts).and_then(|bytes| String::from_utf8(bytes).ok());
                let staged = content.ok_or(Refusal::UploadGone).and_then(|content| {
                    self.documents.stage(NewDocument { content: content.into(), ..document })
                });
                self.staged(staged, changes)
            }
            Command::ActivateDocument { version } => {
                let activated = self.documents.activate(version);
                self.decided(activated, version, ChangeKind::Document(version), changes)
            }
            Command::RefuseDocument { version, reason } => {
                let refused = self.documents.refuse(version, reason);
                self.decided(refused, version, ChangeKind::Refused(version), changes)
            }
            Command::Once { key, fingerprint, command } => {
                if let Some(known) = self.answers.get(&key, fingerprint) {
                    return known;
                }
                let outcome = self.apply(*command, since_tick_ms, changes);
                self.answers.keep(key, fingerprint, &outcome, self.clock.at(since_tick_ms));
                outcome
            }
            Command::AdmitNode(node) => match self.members.admit(node) {
                Ok(node) => Outcome::Admitted { node },
                Err(refusal) => Outcome::Refused(refusal),
            },
            Command::Restore { restore, part, step } => self.restore(restore, part, step, now_ms, changes),
            Command::RetireNode { node } => match self.members.retire(node) {
                Ok(()) => Outcome::Retired { node },
                Err(refusal) => Outcome::Refused(refusal),
            },
            Command::RaiseFormat { to } => {
                self.format = self.format.max(Format(to));
                Outcome::Raised { format: self.format() }
            }
            #[cfg(feature = "next-format")]
            Command::DeregisterCounted { id } => {
                self.counted += 1;
                self.deregister(id, changes)
            }
        }
    }

    fn deregister(&mut self, id: Arc<str>, changes: &mut Vec<Change>) -> Outcome {
        match self.registry.remove(&id) {
            None => Outcome::Refused(Refusal::UnknownInstance { id }),
            Some(instance) => {
                self.change(ChangeKind::Deregistered(instance), changes);
                Outcome::Deregistered { index: self.index }
            }
        }
    }

    fn staged(&mut self, result: Result<(u64, bool), Refusal>, changes: &mut Vec<Change>) -> Outcome {
        match result {
            Err(refusal) => Outcome::Refused(refusal),
            Ok((version, false)) => Outcome::Documented { version, changed: false },
            Ok((version, true)) => {
                self.change(ChangeKind::Staged(version), changes);
                Outcome::Staged { version }
            }
        }
    }

    fn decided(
        &mut self,
        result: Result<(), Refusal>,
        version: u64,
        kind: ChangeKind,
        changes: &mut Vec<Change>,
    ) -> Outcome {
        match result {
            Err(refusal) => Outcome::Refused(refusal),
            Ok(()) => {
                self.change(kind, changes);
                Outcome::Documented { version, changed: true }
            }
        }
    }

    fn change(&mut self, kind: ChangeKind, changes: &mut Vec<Change>) {
        self.index += 1;
        changes.push(Change { index: self.index, kind });
    }

    fn restore(
        &mut self,
        restore: u64,
        part: u64,
        step: RestoreStep,
        now_ms: u64,
        changes: &mut Vec<Change>,
    ) -> Outcome {
        let forced = !matches!(step, RestoreStep::Begin { force: false });
        if let Some(refusal) = self.occupied().filter(|_| !forced) {
            return Outcome::Refused(refusal);
        }
        match self.restores.step(restore, part, step, now_ms) {
            Step::Gathered => Outcome::Gathered,
            Step::Done(index) => Outcome::Restored { index },
            Step::Lost => Outcome::Refused(Refusal::RestoreLost),
            Step::TooMany => Outcome::Refused(Refusal::RegistryFull { max: INSTANCES_MAX as u64 }),
            Step::Complete(gathered, index) => {
                if let Some(refusal) = self.occupied().filter(|_| !gathered.force) {
                    return Outcome::Refused(refusal);
                }
                // An epoch is the index of a registration: what comes next must be newer than any.
                let newest = gathered.instances.iter().map(|instance| instance.epoch).max().unwrap_or(0);
                self.index = self.index.max(newest).max(index);
                self.registry = Registry::of(gathered.instances, now_ms);
                // Before format 3 a number that had been refused could come again.
                let given = match self.format() {
                    ..3 => self.documents.current_version(),
                    3.. => self.documents.last(),
                };
                self.documents.replace(gathered.versions, given);
                self.change(ChangeKind::Reset, changes);
                self.restores.finished(restore, self.index);
                Outcome::Restored { index: self.index }
            }
        }
    }

    /// Why a backup may not take this state's place unasked.
    fn occupied(&self) -> Option<Refusal> {
        let instances = self.registry.len() as u64;
        let version =
            self.documents.staged().map_or(self.documents.current_version(), |staged| staged.version);
        (instances > 0 || version > 0).then_some(Refusal::NotEmpty { instances, version })
    }

    /// As it is now, to be written out.
    #[must_use]
    pub fn freeze(&self) -> Frozen {
        let Self { index, clock, registry, documents, members, answers, uploads, restores, format, .. } =
            self;
        Frozen {
            format: *format,
            #[cfg(feature = "next-format")]
            counted: self.counted,
            index: *index,
            clock: *clock,
            registry: registry.kept(),
            documents: documents.clone(),
            members: members.clone(),
            answers: answers.clone(),
            uploads: uploads.clone(),
            restores: restores.clone(),
        }
    }

    /// The format in which the cluster writes: each member understands it.
    #[must_use]
    pub fn format(&self) -> u8 {
        self.format.0
    }

    /// Deregistrations since format 4.
    #[cfg(feature = "next-format")]
    #[must_use]
    pub fn counted(&self) -> u64 {
        self.counted
    }

    /// A state that was read, and the format in which it was written.
    pub(crate) fn read_in(self, format: u8) -> Self {
        Self { format: Format(format), ..self }
    }

    /// With what follows the others' bytes from format 4 on.
    #[cfg(feature = "next-format")]
    pub(crate) fn with_counted(self, counted: u64) -> Self {
        Self { counted, ..self }
    }

    /// The index of the last change.
    #[must_use]
    pub fn index(&self) -> u64 {
        self.index
    }

    /// The instances.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The gateway documents.
    #[must_use]
    pub fn documents(&self) -> &Documents {
        &self.documents
    }

    /// The nodes that were ever part of the cluster.
    #[must_use]
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// How long `instance` lives on unless it is heard from; none: for ever, or it is gone already.
    #[must_use]
    pub fn expires_in_ms(&self, id: &str) -> Option<u64> {
        let deadline_ms = self.registry.deadline_ms(id)?;
        Some(deadline_ms.saturating_sub(self.clock.at(0)))
    }
}

// === impl Frozen ===

impl Frozen {
    /// The format in which it is to be written.
    pub(crate) fn format(&self) -> u8 {
        self.format.0
    }

    #[cfg(feature = "next-format")]
    pub(crate) fn counted(&self) -> u64 {
        self.counted
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn register(id: &str, ttl_ms: u64) -> Command {
        Command::Register(Registration {
            id: id.into(),
            name: "api".into(),
            address: "10.0.0.1:80".to_owned(),
            ttl_ms,
            weight: 1,
            metadata: BTreeMap::new(),
            tags: Vec::new(),
        })
    }

    fn beat(id: &str, epoch: u64, age_ms: u64) -> Heartbeat {
        Heartbeat { id: id.into(), epoch, age_ms }
    }

    fn put(content: &str, expected: Option<u64>) -> Command {
        Command::PutDocument(NewDocument {
            expected,
            content: content.into(),
            by: "a test".to_owned(),
            at_ms: 0,
        })
    }

    fn admit(incarnation: u64, id: Option<NodeId>) -> Command {
        Command::AdmitNode(NewNode { name: format!("n{incarnation}"), incarnation, id })
    }

    /// A state that commands were applied to.
    fn state(commands: impl IntoIterator<Item = Command>) -> State {
        let mut state = State::default();
        commands.into_iter().for_each(|command| {
            state.apply(command, 0, &mut Vec::new());
        });
        state
    }

    /// Who expires at a tick.
    fn tick(state: &mut State, elapsed_ms: u64, heartbeats: Vec<Heartbeat>) -> Vec<String> {
        let mut changes = Vec::new();
        state.apply(Command::Tick { elapsed_ms, heartbeats }, 0, &mut changes);
        let expired = changes.into_iter().map(|change| match change.kind {
            ChangeKind::Expired(instance) => instance.id.to_string(),
            other => panic!("a tick made {other:?}"),
        });
        expired.collect()
    }

    #[test]
    fn an_instance_expires_once_its_ttl_has_passed_and_not_before() {
        let mut state = state([register("a", 1500), register("b", 1500), register("for-ever", 0)]);
        assert_eq!(tick(&mut state, 1499 + EXPIRY_GRACE_MS, vec![]), [""; 0]);
        assert_eq!(tick(&mut state, 1, vec![]), ["a", "b"]);
        assert_eq!(tick(&mut state, 2000, vec![]), [""; 0]);
        assert_eq!(state.registry().len(), 1);
    }

    #[test]
    fn a_tick_moves_the_clock_by_two_periods_at_most() {
        let mut state = state([register("a", ELAPSED_MS_MAX + 1 - EXPIRY_GRACE_MS)]);
        assert_eq!(tick(&mut state, u64::MAX, vec![]), [""; 0]);
        assert_eq!(tick(&mut state, 1, vec![]), ["a"]);
    }

    #[test]
    fn a_life_is_counted_from_the_registration_and_not_from_the_tick() {
        let mut state = State::default();
        state.apply(register("a", 1000), 900, &mut Vec::new());
        assert_eq!(tick(&mut state, 1899, vec![]), [""; 0]);
        assert_eq!(tick(&mut state, EXPIRY_GRACE_MS, vec![]), [""; 0]);
        assert_eq!(tick(&mut state, 1, vec![]), ["a"]);
    }

    #[test]
    fn a_heartbeat_is_counted_from_when_it_was_heard() {
        let mut state = state([register("a", 1500)]);
        assert_eq!(tick(&mut state, 1000, vec![beat("a", 1, 400)]), [""; 0]);
        assert_eq!(state.expires_in_ms("a"), Some(1100));
        assert_eq!(tick(&mut state, 0, vec![beat("a", 1, 900)]), [""; 0]);
        assert_eq!(state.expires_in_ms("a"), Some(1100), "a beat never shortens a life");
        assert_eq!(tick(&mut state, 2000, vec![beat("a", 1, 0)]), [""; 0], "a beat comes before the expiry");
    }

    #[test]
    fn a_tick_of_beats_alone_counts_them_from_when_they_were_heard() {
        let mut state = state([register("a", 1500)]);
        let beats = Command::Tick { elapsed_ms: 0, heartbeats: vec![beat("a", 1, 100)] };
        state.apply(beats, 900, &mut Vec::new());
        assert_eq!(state.expires_in_ms("a"), Some(900 - 100 + 1500));
    }

    #[test]
    fn a_beat_in_the_last_moment_counts_while_it_is_on_its_way() {
        let mut state = state([register("a", 1500)]);
        assert_eq!(tick(&mut state, 1500, vec![]), [""; 0]);
        assert_eq!(tick(&mut state, EXPIRY_GRACE_MS, vec![beat("a", 1, EXPIRY_GRACE_MS)]), [""; 0]);
        assert_eq!(state.expires_in_ms("a"), Some(1500 - EXPIRY_GRACE_MS));
    }

    #[test]
    fn a_heartbeat_of_an_earlier_life_renews_nothing() {
        let mut state = state([register("a", 1500), register("a", 1500)]);
        assert_eq!(tick(&mut state, 1000, vec![beat("a", 1, 0), beat("unknown", 1, 0)]), [""; 0]);
        assert_eq!(state.expires_in_ms("a"), Some(500));
        assert_eq!(tick(&mut state, 500 + EXPIRY_GRACE_MS, vec![beat("a", 1, 0)]), ["a"]);
    }

    #[test]
    fn the_same_id_again_replaces_the_instance() {
        let mut state = state([register("a", 1500)]);
        let Command::Register(registration) = register("a", 0) else { unreachable!() };
        let moved = Registration { name: "web".into(), ..registration };
        let outcome = state.apply(Command::Register(moved), 0, &mut Vec::new());
        let Outcome::Registered { instance, created: false, expires_in_ms: None } = outcome else {
            panic!("{outcome:?}")
        };
        assert_eq!((&*instance.name, instance.epoch), ("web", 2));
        assert_eq!(state.registry().of_service("api").count(), 0);
        assert_eq!(state.registry().of_service("web").count(), 1);
        assert_eq!(tick(&mut state, 2000, vec![]), [""; 0], "the old life's end is forgotten");
    }

    /// Stages a document and puts it into force.
    fn activate(state: &mut State, content: &str, expected: Option<u64>) -> Outcome {
        match state.apply(put(content, expected), 0, &mut Vec::new()) {
            Outcome::Staged { version } => {
                state.apply(Command::ActivateDocument { version }, 0, &mut Vec::new())
            }
            other => other,
        }
    }

    #[test]
    fn the_newest_64_versions_are_kept() {
        let mut state = State::default();
        for version in 1..=70 {
            activate(&mut state, &format!("document {version}"), None);
        }
        let versions: Vec<_> = state.documents().iter().map(|document| document.version).collect();
        assert_eq!(versions, (7..=70).collect::<Vec<_>>());
        let rollback = |to| Command::RollbackDocument { to, expected: None, by: String::new(), at_ms: 0 };
        let refused = Refusal::UnknownVersion { version: 6, oldest: 7, newest: 70 };
        assert_eq!(state.apply(rollback(6), 0, &mut Vec::new()), Outcome::Refused(refused));
        let outcome = state.apply(rollback(7), 0, &mut Vec::new());
        assert_eq!(outcome, Outcome::Staged { version: 71 });
        state.apply(Command::ActivateDocument { version: 71 }, 0, &mut Vec::new());
        assert_eq!(&*state.documents().current().unwrap().content, "document 7");
    }

    #[test]
    fn a_document_is_compared_with_the_version_its_author_knew() {
        let mut state = State::default();
        activate(&mut state, "one", Some(0));
        activate(&mut state, "two", Some(1));
        let refused = |expected| Outcome::Refused(Refusal::StaleDocument { current: 2, expected });
        assert_eq!(state.apply(put("three", Some(1)), 0, &mut Vec::new()), refused(1));
        assert_eq!(state.apply(put("two", Some(0)), 0, &mut Vec::new()), refused(0));
        let unchanged = Outcome::Documented { version: 2, changed: false };
        let mut changes = Vec::new();
        assert_eq!(state.apply(put("two", Some(2)), 0, &mut changes), unchanged);
        assert_eq!(changes, []);
        let changed = Outcome::Documented { version: 3, changed: true };
        assert_eq!(activate(&mut state, "three", Some(2)), changed);
    }

    #[test]
    fn a_staged_document_runs_once_it_is_activated_and_never_if_it_is_refused() {
        let mut state = state([put("one", None)]);
        assert_eq!(state.documents().current_version(), 0);
        assert_eq!(state.documents().fate(1), Fate::Staged);
        let mut apply = |command| state.apply(command, 0, &mut Vec::new());
        assert_eq!(apply(put("two", None)), Outcome::Refused(Refusal::Staging { version: 1 }));
        let reason = "n2: the port is in use".to_owned();
        let refuse = |version| Command::RefuseDocument { version, reason: reason.clone() };
        assert_eq!(apply(refuse(2)), Outcome::Refused(Refusal::NotStaged { version: 2 }));
        assert_eq!(apply(refuse(1)), Outcome::Documented { version: 1, changed: true });
        let activate = |version| Command::ActivateDocument { version };
        assert_eq!(apply(activate(1)), Outcome::Refused(Refusal::NotStaged { version: 1 }));
        assert_eq!(apply(put("two", Some(0))), Outcome::Staged { version: 2 }, "a number is given once");
        assert_eq!(apply(activate(2)), Outcome::Documented { version: 2, changed: true });
        assert_eq!(state.documents().fate(1), Fate::Refused { reason });
        assert_eq!(state.documents().fate(2), Fate::Activated);
        assert_eq!(state.documents().current_version(), 2);
    }

    #[test]
    fn what_was_asked_with_a_key_is_done_once_and_answered_alike() {
        let once = |key: &str, print: u8, command| Command::Once {
            key: key.into(),
            fingerprint: [print; 16],
            command: Box::new(command),
        };
        let mut state = State::default();
        let first = state.apply(once("k", 1, register("a", 1500)), 0, &mut Vec::new());
        tick(&mut state, 1000, vec![beat("a", 1, 0)]);
        let mut changes = Vec::new();
        assert_eq!(state.apply(once("k", 1, register("a", 1500)), 0, &mut changes), first);
        assert_eq!(changes, []);
        let reused = state.apply(once("k", 2, register("b", 0)), 0, &mut changes);
        assert_eq!(reused, Outcome::Refused(Refusal::KeyReused));
        assert_eq!(state.registry().len(), 1);
        state.apply(Command::Deregister { id: "a".into() }, 0, &mut Vec::new());
        assert_eq!(
            state.apply(once("k", 1, register("a", 1500)), 0, &mut changes),
            first,
            "it is not undone"
        );
        assert!(state.registry().is_empty());
    }

    #[test]
    fn a_node_id_is_given_once() {
        let mut state = state([admit(10, Some(1)), admit(20, Some(3))]);
        let mut admit = |incarnation, id| state.apply(admit(incarnation, id), 0, &mut Vec::new());
        assert_eq!(admit(10, None), Outcome::Admitted { node: 1 }, "the same incarnation keeps its id");
        assert_eq!(admit(30, None), Outcome::Admitted { node: 4 });
        for node in [0, 1, 3, 4] {
            assert_eq!(admit(40, Some(node)), Outcome::Refused(Refusal::UsedNode { node }));
        }
        assert_eq!(admit(50, Some(NodeId::MAX)), Outcome::Admitted { node: NodeId::MAX });
        assert_eq!(admit(60, None), Outcome::Refused(Refusal::UsedNode { node: NodeId::MAX }));
    }

    #[test]
    fn a_retired_node_keeps_its_id_for_ever() {
        let mut state = state([admit(10, Some(1)), admit(20, Some(2))]);
        let mut retire = |node| state.apply(Command::RetireNode { node }, 0, &mut Vec::new());
        assert_eq!(retire(2), Outcome::Retired { node: 2 });
        assert_eq!(retire(2), Outcome::Retired { node: 2 });
        assert_eq!(retire(3), Outcome::Refused(Refusal::UnknownNode { node: 3 }));
        assert!(state.members().is_retired(2) && !state.members().is_retired(1));
        assert_eq!(state.apply(admit(30, None), 0, &mut Vec::new()), Outcome::Admitted { node: 3 });
    }
}
