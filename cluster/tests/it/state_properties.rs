//! The replicated state under generated sequences of commands, beside a model that knows the real time.
//!
//! Two replicas with one log hold equal bytes, though one of them is started from a snapshot again and again; a snapshot
//! and the rest of the log make what the whole log makes; the invariants hold after every step; and nothing
//! expires early (P6), whatever the leaders do.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use gogate_cluster::{
    state::{
        Change, ChangeKind, Command, ELAPSED_MS_MAX, FORMAT, Fate, HISTORY, Heartbeat, Instance, NewDocument,
        NewNode, NodeId, OLDEST, Outcome, Refusal, Registration, RestoreStep, State, Version,
    },
    storage::codec::{decode_state, encode_state, format_of},
};
use proptest::{collection::vec, option, prelude::*};

/// What happens, as the world sees it. Small ranges, so that things meet.
#[derive(Debug, Clone)]
enum Event {
    Wait {
        ms: u64,
    },
    Tick,
    /// A tick that is stamped and never agreed on.
    LoseTick,
    /// Another leader; the beats that the old one gathered may be sent to it again.
    Lead {
        keeps_beats: bool,
    },
    Register {
        id: u8,
        name: u8,
        ttl_ms: u64,
    },
    Deregister {
        id: u8,
    },
    /// A beat is heard; of an earlier life, if `stale`.
    Beat {
        id: u8,
        stale: bool,
    },
    Put {
        expected: Option<u64>,
        content: u8,
    },
    /// A part of a document whose two parts are both there, or not.
    Store {
        upload: u64,
        part: u32,
    },
    PutStored {
        upload: u64,
    },
    Rollback {
        to: u64,
    },
    /// The nodes have said whether they can run what is staged; or what was, if `late`.
    Decide {
        ready: bool,
        late: bool,
    },
    /// A registration that is sent again under its key.
    Repeat {
        key: u8,
        id: u8,
    },
    Admit {
        incarnation: u64,
        id: Option<NodeId>,
    },
    Retire {
        node: NodeId,
    },
    /// Nothing but ticks, until what nobody goes on with is forgotten.
    Idle {
        ticks: usize,
    },
    /// A part of a backup: the one that comes next, or one `off` from it.
    Restore {
        restore: u64,
        off: i64,
        brings: Brings,
    },
    Raise {
        to: u8,
    },
    /// One of the two replicas is started again, from a snapshot.
    Restart,
}

/// What a part of a backup brings.
#[derive(Debug, Clone)]
enum Brings {
    Begin {
        force: bool,
    },
    /// Instance, epoch, time to live.
    Instances(Vec<(u8, u64, u64)>),
    /// Of the version so many numbers after the last one; 0: more of its content.
    Document {
        gap: u64,
    },
    /// Whether it says truly how much there must be, and the index at which all stood.
    Finish {
        whole: bool,
        index: u64,
    },
}

fn brings() -> impl Strategy<Value = Brings> {
    let ttl_ms = prop_oneof![Just(0), 1..8000u64];
    prop_oneof![
        2 => any::<bool>().prop_map(|force| Brings::Begin { force }),
        2 => vec((0..6u8, 1..200u64, ttl_ms), 0..3).prop_map(Brings::Instances),
        2 => (0..3u64).prop_map(|gap| Brings::Document { gap }),
        2 => (prop::bool::weighted(0.8), 0..200u64).prop_map(|(whole, index)| Brings::Finish { whole, index }),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (0..3500u64).prop_map(|ms| Event::Wait { ms }),
        6 => Just(Event::Tick),
        1 => Just(Event::LoseTick),
        1 => any::<bool>().prop_map(|keeps_beats| Event::Lead { keeps_beats }),
        4 => (0..6u8, 0..3u8, prop_oneof![Just(0), 1..8000u64])
            .prop_map(|(id, name, ttl_ms)| Event::Register { id, name, ttl_ms }),
        1 => (0..6u8).prop_map(|id| Event::Deregister { id }),
        4 => (0..6u8, any::<bool>()).prop_map(|(id, stale)| Event::Beat { id, stale }),
        2 => (option::of(0..80u64), 0..3u8).prop_map(|(expected, content)| Event::Put { expected, content }),
        2 => (0..2u64, 0..2u32).prop_map(|(upload, part)| Event::Store { upload, part }),
        1 => (0..2u64).prop_map(|upload| Event::PutStored { upload }),
        1 => (0..80u64).prop_map(|to| Event::Rollback { to }),
        3 => (any::<bool>(), prop::bool::weighted(0.1)).prop_map(|(ready, late)| Event::Decide { ready, late }),
        2 => (0..8u8, 0..2u8).prop_map(|(key, id)| Event::Repeat { key, id }),
        2 => (0..8u64, option::of(0..4u64)).prop_map(|(incarnation, id)| Event::Admit { incarnation, id }),
        1 => (0..6u64).prop_map(|node| Event::Retire { node }),
        1 => prop_oneof![9 => 1..40usize, 1 => Just(310)].prop_map(|ticks| Event::Idle { ticks }),
        8 => (0..2u64, prop_oneof![8 => Just(0i64), 1 => Just(-1), 1 => Just(1)], brings())
            .prop_map(|(restore, off, brings)| Event::Restore { restore, off, brings }),
        1 => (OLDEST..=FORMAT).prop_map(|to| Event::Raise { to }),
        2 => Just(Event::Restart),
    ]
}

/// A life as the world knows it.
#[derive(Debug, Clone)]
struct Life {
    epoch: u64,
    ttl_ms: u64,
    heard_ms: u64,
    /// What the state said last, to see that its clock never goes back.
    expires_in_ms: Option<u64>,
}

/// The world: real time, the leader's clock, what is on its way, and what must be true.
#[derive(Default)]
struct World {
    now_ms: u64,
    ticked_ms: Option<u64>,
    /// Instance, epoch, when it was heard.
    beats: Vec<(u8, u64, u64)>,
    lives: BTreeMap<u8, Life>,
    epochs: BTreeMap<u8, Vec<u64>>,
    admitted: BTreeMap<NodeId, u64>,
    retired: BTreeSet<NodeId>,
    /// The log clock.
    clock_ms: u64,
    index: u64,
    format: u8,
    /// The document's current version, those that are kept, the staged one, and the last number given.
    version: u64,
    versions: Vec<u64>,
    staged: Option<u64>,
    last_version: u64,
    /// The last that were refused, and why.
    refused: VecDeque<(u64, &'static str)>,
    /// The parts that are stored, and since when on the log clock.
    stored: BTreeMap<u64, (BTreeSet<u32>, u64)>,
    /// The backup that comes in, and how the last one ended.
    gathered: Option<Gathered>,
    restored: Option<(u64, u64)>,
    /// What was registered under a key.
    kept: BTreeSet<u8>,
    /// What was answered under a key, and for which instance.
    answers: BTreeMap<u8, (u8, Outcome)>,
}

/// What came of a backup.
#[derive(Debug, Clone)]
struct Gathered {
    restore: u64,
    next: u64,
    began_ms: u64,
    force: bool,
    instances: Vec<(u8, u64, u64)>,
    versions: Vec<u64>,
}

/// As they are in `state::{config, restore, uploads}`.
const REFUSED_MAX: usize = 16;
const RESTORE_FORGOTTEN_MS: u64 = 10 * 60 * 1000;
const UPLOAD_FORGOTTEN_MS: u64 = 60_000;

const NOT_READY: &str = "n1: a test";
const REPLACED: &str = "a backup was restored";

fn id(number: u8) -> Arc<str> {
    format!("i{number}").into()
}

impl World {
    /// The command that the leader makes of an event, with its time since its last tick.
    fn command(&mut self, event: &Event) -> Option<(Command, u64)> {
        let since_tick_ms = self.ticked_ms.map_or(0, |ticked_ms| self.now_ms - ticked_ms);
        let command = match *event {
            Event::Wait { ms } => {
                self.now_ms += ms;
                return None;
            }
            Event::LoseTick => {
                self.ticked_ms = Some(self.now_ms);
                return None;
            }
            Event::Lead { keeps_beats } => {
                self.ticked_ms = None;
                if !keeps_beats {
                    self.beats.clear();
                }
                return None;
            }
            Event::Beat { id, stale } => {
                let mut epochs = self.epochs.get(&id).into_iter().flatten().rev();
                if let Some(epoch) = epochs.nth(usize::from(stale)) {
                    self.beats.push((id, *epoch, self.now_ms));
                }
                return None;
            }
            Event::Tick => {
                self.ticked_ms = Some(self.now_ms);
                let heartbeats = self.beats.iter().map(|(number, epoch, heard_ms)| Heartbeat {
                    id: id(*number),
                    epoch: *epoch,
                    age_ms: self.now_ms - heard_ms,
                });
                Command::Tick { elapsed_ms: since_tick_ms, heartbeats: heartbeats.collect() }
            }
            Event::Register { id: number, name, ttl_ms } => Command::Register(Registration {
                id: id(number),
                name: format!("s{name}").into(),
                address: "10.0.0.1:80".to_owned(),
                ttl_ms,
                weight: 1,
                metadata: BTreeMap::new(),
                tags: Vec::new(),
            }),
            Event::Deregister { id: number } => Command::Deregister { id: id(number) },
            Event::Put { expected, content } => Command::PutDocument(NewDocument {
                expected,
                content: format!("routes: {content}").into(),
                by: "a test".to_owned(),
                at_ms: self.now_ms,
            }),
            Event::Store { upload, part } => {
                Command::StorePart { upload, part, bytes: bytes::Bytes::from(vec![b'#'; 3]) }
            }
            Event::PutStored { upload } => Command::PutUploaded {
                upload,
                parts: 2,
                document: NewDocument {
                    expected: None,
                    content: "".into(),
                    by: "a test".to_owned(),
                    at_ms: self.now_ms,
                },
            },
            Event::Rollback { to } => {
                Command::RollbackDocument { to, expected: None, by: "a test".to_owned(), at_ms: self.now_ms }
            }
            Event::Decide { ready, late } => {
                let version = if late { self.version } else { self.staged.unwrap_or(0) };
                match ready {
                    true => Command::ActivateDocument { version },
                    false => Command::RefuseDocument { version, reason: NOT_READY.to_owned() },
                }
            }
            Event::Repeat { key, id: number } => Command::Once {
                key: format!("k{key}").into(),
                fingerprint: [number; 16],
                command: Box::new(Command::Register(Registration {
                    id: format!("kept{number}").into(),
                    name: "kept".into(),
                    address: "10.0.0.1:80".to_owned(),
                    ttl_ms: 0,
                    weight: 1,
                    metadata: BTreeMap::new(),
                    tags: Vec::new(),
                })),
            },
            Event::Admit { incarnation, id } => {
                Command::AdmitNode(NewNode { name: format!("n{incarnation}"), incarnation, id })
            }
            Event::Retire { node } => Command::RetireNode { node },
            Event::Restore { restore, off, ref brings } => {
                let (part, step) = self.restore_step(restore, off, brings);
                Command::Restore { restore, part, step }
            }
            Event::Raise { to } => Command::RaiseFormat { to },
            Event::Idle { .. } | Event::Restart => return None,
        };
        Some((command, since_tick_ms))
    }

    fn gathered(&mut self, restore: u64) -> Option<&mut Gathered> {
        self.gathered.as_mut().filter(|gathered| gathered.restore == restore)
    }

    /// The number of the part, and the step.
    fn restore_step(&mut self, restore: u64, off: i64, brings: &Brings) -> (u64, RestoreStep) {
        let gathered = self.gathered(restore);
        let next = gathered.as_ref().map_or(1, |gathered| gathered.next);
        let part = next.saturating_add_signed(off);
        let step = match brings {
            Brings::Begin { force } => return (0, RestoreStep::Begin { force: *force }),
            Brings::Instances(instances) => {
                let instance = |(number, epoch, ttl_ms): &(u8, u64, u64)| Instance {
                    id: id(*number),
                    name: "restored".into(),
                    address: "10.0.0.2:80".to_owned(),
                    ttl_ms: *ttl_ms,
                    weight: 1,
                    metadata: BTreeMap::new(),
                    tags: Vec::new(),
                    epoch: *epoch,
                };
                RestoreStep::Instances(instances.iter().map(instance).collect())
            }
            Brings::Document { gap } => RestoreStep::Document(Version {
                version: next_version(gathered.as_deref(), *gap),
                content: "restored".into(),
                sha256: String::new(),
                by: "a test".to_owned(),
                at_ms: 0,
            }),
            Brings::Finish { whole, index } => {
                let counts = gathered.map_or((0, 0), |all| (all.instances.len(), all.versions.len()));
                let (instances, versions) = (counts.0 as u64 + u64::from(!whole), counts.1 as u64);
                RestoreStep::Finish { instances, versions, index: *index }
            }
        };
        (part, step)
    }

    /// What the world learns from an outcome, and whether it is a possible one.
    fn judge(&mut self, event: &Event, since_tick_ms: u64, outcome: &Outcome, changes: &[Change]) {
        let now_ms = self.clock_ms + since_tick_ms.min(ELAPSED_MS_MAX);
        for change in changes.iter().filter(|change| change.kind != ChangeKind::Reset) {
            self.index += 1;
            assert_eq!(change.index, self.index, "changes are numbered without gaps");
        }
        match (event, outcome) {
            (Event::Tick, Outcome::Ticked) => self.judge_tick(since_tick_ms, changes),
            (Event::Restore { restore, off, brings }, outcome) => {
                self.judge_restore(*restore, *off, brings, now_ms, outcome, changes);
            }
            (Event::Retire { node }, Outcome::Retired { node: retired }) => {
                assert_eq!(node, retired);
                assert!(self.admitted.contains_key(node));
                self.retired.insert(*node);
            }
            (Event::Retire { node }, Outcome::Refused(refusal)) => {
                assert_eq!(*refusal, Refusal::UnknownNode { node: *node });
                assert!(!self.admitted.contains_key(node));
            }
            (Event::Raise { to }, Outcome::Raised { format }) => {
                self.format = self.format.max(*to);
                assert_eq!(*format, self.format, "it never falls");
            }
            (Event::Register { id, ttl_ms, .. }, Outcome::Registered { instance, created, .. }) => {
                assert_eq!(instance.epoch, self.index, "a life is named after the index at which it begins");
                let life = Life {
                    epoch: instance.epoch,
                    ttl_ms: *ttl_ms,
                    heard_ms: self.now_ms,
                    expires_in_ms: None,
                };
                assert_eq!(self.lives.insert(*id, life).is_none(), *created);
                self.epochs.entry(*id).or_default().push(instance.epoch);
            }
            (Event::Deregister { id }, Outcome::Deregistered { index }) => {
                assert_eq!(*index, self.index);
                assert!(self.lives.remove(id).is_some());
            }
            (Event::Deregister { id }, Outcome::Refused(_)) => assert!(!self.lives.contains_key(id)),
            (Event::Store { upload, part }, Outcome::Stored) => {
                let stored = self.stored.entry(*upload).or_default();
                stored.0.insert(*part);
                stored.1 = now_ms;
            }
            (Event::PutStored { upload }, outcome) => {
                let whole = self.stored.remove(upload).is_some_and(|(parts, _)| parts.len() == 2);
                match outcome {
                    Outcome::Refused(Refusal::UploadGone) => assert!(!whole),
                    Outcome::Staged { version } => {
                        assert!(whole);
                        self.stage(*version);
                    }
                    Outcome::Documented { changed: false, .. }
                    | Outcome::Refused(Refusal::Staging { .. }) => assert!(whole),
                    other => panic!("{other:?}"),
                }
            }
            (Event::Put { .. } | Event::Rollback { .. }, Outcome::Refused(Refusal::Staging { version })) => {
                assert_eq!(self.staged, Some(*version));
            }
            (Event::Put { expected, .. }, Outcome::Staged { version }) => {
                assert!(expected.is_none_or(|expected| expected == self.version));
                self.stage(*version);
            }
            (Event::Put { .. } | Event::Rollback { .. }, Outcome::Documented { version, changed }) => {
                assert_eq!((*version, *changed), (self.version, false));
            }
            (Event::Put { expected, .. }, Outcome::Refused(_)) => assert_ne!(*expected, Some(self.version)),
            (Event::Rollback { .. }, Outcome::Staged { version }) => self.stage(*version),
            (Event::Rollback { to }, Outcome::Refused(_)) => {
                let kept = self.versions.iter().rev().take(HISTORY);
                assert!(!kept.copied().any(|version| version == *to));
            }
            (Event::Decide { ready, .. }, Outcome::Documented { version, changed: true }) => {
                assert_eq!(self.staged.take(), Some(*version));
                match ready {
                    true => {
                        self.version = *version;
                        self.versions.push(*version);
                    }
                    false => self.refuse(*version, NOT_READY),
                }
            }
            (Event::Decide { late, .. }, Outcome::Refused(_)) => assert!(*late || self.staged.is_none()),
            (Event::Repeat { key, id }, outcome) => match self.answers.get(key) {
                Some((of, answer)) if of == id => assert_eq!(outcome, answer, "it is answered alike"),
                Some(_) => assert_eq!(*outcome, Outcome::Refused(Refusal::KeyReused)),
                None => {
                    assert_eq!(changes.len(), 1, "it is done the first time");
                    self.answers.insert(*key, (*id, outcome.clone()));
                    self.kept.insert(*id);
                }
            },
            (Event::Admit { incarnation, .. }, Outcome::Admitted { node }) => {
                assert_eq!(
                    *self.admitted.entry(*node).or_insert(*incarnation),
                    *incarnation,
                    "an id is given once"
                );
                assert_ne!(*node, 0);
            }
            (Event::Admit { id, .. }, Outcome::Refused(_)) => {
                assert!(id.is_some_and(|id| id == 0 || self.admitted.contains_key(&id)));
            }
            (event, outcome) => panic!("{event:?} made {outcome:?}"),
        }
    }

    fn stage(&mut self, version: u64) {
        assert_eq!((self.staged, version), (None, self.last_version + 1), "numbers count up by one");
        (self.staged, self.last_version) = (Some(version), version);
    }

    fn refuse(&mut self, version: u64, reason: &'static str) {
        self.refused.push_back((version, reason));
        if self.refused.len() > REFUSED_MAX {
            self.refused.pop_front();
        }
    }

    /// Why a backup may not take this world's place unasked.
    fn occupied(&self) -> Option<Outcome> {
        let instances = (self.lives.len() + self.kept.len()) as u64;
        let version = self.staged.unwrap_or(self.version);
        (instances > 0 || version > 0).then_some(Outcome::Refused(Refusal::NotEmpty { instances, version }))
    }

    fn judge_restore(
        &mut self,
        restore: u64,
        off: i64,
        brings: &Brings,
        now_ms: u64,
        outcome: &Outcome,
        changes: &[Change],
    ) {
        let lost = Outcome::Refused(Refusal::RestoreLost);
        let occupied = self.occupied();
        let expected = if let Brings::Begin { force } = *brings {
            match occupied.filter(|_| !force) {
                Some(refused) => refused,
                None => {
                    if self.gathered(restore).is_none() {
                        let (instances, versions) = (Vec::new(), Vec::new());
                        self.gathered =
                            Some(Gathered { restore, next: 1, began_ms: now_ms, force, instances, versions });
                    }
                    Outcome::Gathered
                }
            }
        } else if let Some((_, index)) = self.restored.filter(|(restored, _)| *restored == restore) {
            Outcome::Restored { index }
        } else {
            match (self.gathered(restore), off) {
                (None, _) | (Some(_), 1..) => lost,
                (Some(_), ..=-1) => Outcome::Gathered,
                (Some(gathered), 0) => {
                    gathered.next += 1;
                    match brings {
                        Brings::Begin { .. } => unreachable!("it came before"),
                        Brings::Instances(instances) => {
                            gathered.instances.extend(instances);
                            Outcome::Gathered
                        }
                        Brings::Document { gap } => {
                            let version = next_version(Some(gathered), *gap);
                            if gathered.versions.last() != Some(&version) {
                                gathered.versions.push(version);
                            }
                            Outcome::Gathered
                        }
                        Brings::Finish { whole, index } => {
                            let gathered = self.gathered.take().expect("it was there");
                            match occupied.filter(|_| !gathered.force) {
                                _ if !whole => lost,
                                Some(refused) => refused,
                                None => self.replace(gathered, *index, changes),
                            }
                        }
                    }
                }
            }
        };
        assert_eq!(*outcome, expected);
    }

    /// The backup takes the place of all instances and documents.
    fn replace(&mut self, gathered: Gathered, index: u64, changes: &[Change]) -> Outcome {
        let newest = gathered.instances.iter().map(|(_, epoch, _)| *epoch).max().unwrap_or(0);
        self.index = self.index.max(newest).max(index) + 1;
        assert_eq!(changes, [Change { index: self.index, kind: ChangeKind::Reset }]);
        (self.lives, self.kept) = (BTreeMap::new(), BTreeSet::new());
        for (number, epoch, ttl_ms) in gathered.instances {
            self.lives.insert(number, Life { epoch, ttl_ms, heard_ms: self.now_ms, expires_in_ms: None });
            self.epochs.entry(number).or_default().push(epoch);
        }
        if let Some(staged) = self.staged.take() {
            self.refuse(staged, REPLACED);
        }
        self.versions = gathered.versions;
        let current = self.versions.last().copied();
        // A number is given once.
        let given = if self.format >= 3 { self.last_version } else { self.version };
        self.last_version = self.last_version.max(current.unwrap_or(0));
        if current.is_some_and(|current| current <= given) {
            self.last_version += 1;
            self.versions.push(self.last_version);
        }
        self.version = self.versions.last().copied().unwrap_or(0);
        let refused = self.refused.iter().any(|(refused, _)| *refused == self.version);
        assert!(self.format < 3 || !refused, "what was refused is not in force");
        self.restored = Some((gathered.restore, self.index));
        Outcome::Restored { index: self.index }
    }

    fn judge_tick(&mut self, elapsed_ms: u64, changes: &[Change]) {
        self.clock_ms += elapsed_ms.min(ELAPSED_MS_MAX);
        let clock_ms = self.clock_ms;
        self.stored.retain(|_, (_, at_ms)| *at_ms + UPLOAD_FORGOTTEN_MS > clock_ms);
        self.gathered.take_if(|gathered| gathered.began_ms + RESTORE_FORGOTTEN_MS <= clock_ms);
        for (number, epoch, heard_ms) in std::mem::take(&mut self.beats) {
            if let Some(life) = self.lives.get_mut(&number).filter(|life| life.epoch == epoch) {
                life.heard_ms = life.heard_ms.max(heard_ms);
                life.expires_in_ms = None;
            }
        }
        for change in changes {
            let ChangeKind::Expired(instance) = &change.kind else { panic!("a tick made {change:?}") };
            let number = instance.id[1..].parse().unwrap();
            let life = self.lives.remove(&number).expect("it lived");
            let due_ms = life.heard_ms + life.ttl_ms;
            assert!(self.now_ms >= due_ms, "{} expired {} ms early", instance.id, due_ms - self.now_ms);
            assert_ne!(life.ttl_ms, 0, "it lives for ever");
        }
    }
}

/// The number of a version so many after the last that came.
fn next_version(gathered: Option<&Gathered>, gap: u64) -> u64 {
    match gathered.and_then(|gathered| gathered.versions.last()) {
        Some(last) => last + gap,
        None => 1 + gap,
    }
}

// === invariants ===

fn invariant_the_lives_are_those_of_the_world(state: &State, world: &World) {
    let living = state.registry().iter().filter(|instance| &*instance.name != "kept");
    let lives: Vec<_> = living.map(|instance| (instance.id.clone(), instance.epoch)).collect();
    let expected: Vec<_> = world.lives.iter().map(|(number, life)| (id(*number), life.epoch)).collect();
    assert_eq!(lives, expected);
}

fn invariant_the_indexes_tell_of_the_same_instances(state: &State) {
    let registry = state.registry();
    let mut listed = 0;
    for (name, count) in registry.services() {
        let instances: Vec<_> = registry.of_service(name).collect();
        assert_eq!(instances.len(), count);
        assert!(count > 0, "a service without instances is not listed");
        assert!(instances.iter().all(|instance| instance.name == *name));
        listed += count;
    }
    assert_eq!(listed, registry.len());
    for instance in registry.iter() {
        assert_eq!(state.expires_in_ms(&instance.id).is_some(), instance.ttl_ms > 0);
    }
    // The indexes are not in the bytes: they are rebuilt, and equal those that were kept step by step.
    assert_eq!(decode_state(&bytes(state)).unwrap(), *state);
}

fn invariant_the_clock_never_goes_back(state: &State, world: &mut World) {
    for (number, life) in &mut world.lives {
        let left = state.expires_in_ms(&id(*number));
        if let (Some(before), Some(now)) = (life.expires_in_ms, left) {
            assert!(now <= before, "i{number} had {before} ms left, and has {now}");
        }
        life.expires_in_ms = left;
    }
}

fn invariant_what_was_activated_is_kept_and_nothing_else_runs(state: &State, world: &World) {
    let documents = state.documents();
    let versions: Vec<_> = documents.iter().map(|document| document.version).collect();
    assert_eq!(versions, world.versions[world.versions.len().saturating_sub(HISTORY)..]);
    assert_eq!(documents.current_version(), world.version);
    assert_eq!(documents.staged().map(|staged| staged.version), world.staged);
    assert!(versions.is_sorted_by(|earlier, later| earlier < later), "{versions:?}");
    for version in world.last_version.saturating_sub(3)..=world.last_version {
        let refused = world.refused.iter().find(|(refused, _)| *refused == version);
        let expected = match refused {
            _ if world.staged == Some(version) => Fate::Staged,
            Some((_, reason)) => Fate::Refused { reason: (*reason).to_owned() },
            None if versions.contains(&version) => Fate::Activated,
            None => Fate::Unknown,
        };
        assert_eq!(documents.fate(version), expected);
    }
}

fn invariant_ids_are_given_once_and_for_ever(state: &State, world: &World) {
    let members = state.members();
    assert!(members.ids().eq(world.admitted.keys().copied()));
    assert!(members.retired().eq(world.retired.iter().copied()));
    for (node, incarnation) in &world.admitted {
        assert!(members.knows(*node));
        assert_eq!(members.by_incarnation(*incarnation), Some(*node));
        assert_eq!(members.is_retired(*node), world.retired.contains(node));
    }
}

fn invariant_the_format_is_the_one_it_is_written_in(state: &State, world: &World) {
    assert_eq!(state.format(), world.format.max(OLDEST));
    assert_eq!(format_of(&bytes(state)), state.format());
}

fn bytes(state: &State) -> bytes::Bytes {
    encode_state(&state.freeze())
}

// === properties ===

#[derive(Default)]
struct Run {
    world: World,
    log: Vec<(Command, u64)>,
    state: State,
    twin: State,
}

impl Run {
    fn step(&mut self, event: &Event) {
        match event {
            Event::Idle { ticks } => {
                for _ in 0..*ticks {
                    self.step(&Event::Wait { ms: ELAPSED_MS_MAX });
                    self.step(&Event::Tick);
                }
            }
            Event::Restart => self.twin = decode_state(&bytes(&self.twin)).unwrap(),
            event => self.command(event),
        }
    }

    fn command(&mut self, event: &Event) {
        let Some((command, since_tick_ms)) = self.world.command(event) else { return };
        let (mut changes, mut twins) = (Vec::new(), Vec::new());
        let outcome = self.state.apply(command.clone(), since_tick_ms, &mut changes);
        assert_eq!(self.twin.apply(command.clone(), since_tick_ms, &mut twins), outcome);
        assert_eq!(changes, twins);
        self.log.push((command, since_tick_ms));
        self.world.judge(event, since_tick_ms, &outcome, &changes);
        assert_eq!(self.state.index(), self.world.index);
        assert_eq!(bytes(&self.state), bytes(&self.twin), "two replicas with one log hold equal bytes");
        invariant_the_lives_are_those_of_the_world(&self.state, &self.world);
        invariant_the_indexes_tell_of_the_same_instances(&self.state);
        invariant_the_clock_never_goes_back(&self.state, &mut self.world);
        invariant_what_was_activated_is_kept_and_nothing_else_runs(&self.state, &self.world);
        invariant_ids_are_given_once_and_for_ever(&self.state, &self.world);
        invariant_the_format_is_the_one_it_is_written_in(&self.state, &self.world);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn whatever_happens_the_invariants_hold(events in vec(event(), 1..150), cut in 0..150usize) {
        let mut run = Run::default();
        let mut snapshot = None;
        for (at, event) in events.iter().enumerate() {
            if at == cut {
                snapshot = Some((run.log.len(), bytes(&run.state)));
            }
            run.step(event);
        }
        if let Some((len, snapshot)) = snapshot {
            let mut restored = decode_state(&snapshot).unwrap();
            for (command, since_tick_ms) in run.log.split_off(len) {
                restored.apply(command, since_tick_ms, &mut Vec::new());
            }
            prop_assert_eq!(bytes(&restored), bytes(&run.state), "snapshot and replay make the same");
        }
    }
}
