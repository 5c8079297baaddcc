//! What can be asked of the replicated state, and what it answers.
//!
//! Invariant: these types are the wire and disk format (`storage::codec`). Variants are only ever added at the end, in
//! a new format (`format`), and keep their fields; an unknown variant stops a node, it is never skipped.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Instance, NodeId, Version};

/// One change, as proposed. [`super::State::apply`] is the only place that carries it out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Time passed on the leader's monotonic clock, and these instances were heard from.
    Tick {
        /// Milliseconds since the term's previous tick, 0 for its first. Filled in by the leader's batcher,
        /// unless it is 0 already: then more heartbeats follow, and the time comes with the last of them.
        elapsed_ms: u64,
        /// Instances heard from at any node since the previous tick.
        heartbeats: Vec<Heartbeat>,
    },
    /// Adds an instance, or replaces the one of the same id.
    Register(Registration),
    /// Removes an instance.
    Deregister {
        /// Which one.
        id: Arc<str>,
    },
    /// Stages a new version of the gateway document.
    PutDocument(NewDocument),
    /// Stages a new version with the content of an old one.
    RollbackDocument {
        /// The version to take the content from.
        to: u64,
        /// If given, the version that must be the current one.
        expected: Option<u64>,
        /// Who asked.
        by: String,
        /// The proposer's wall clock, milliseconds since 1970: shown, never computed with.
        at_ms: u64,
    },
    /// Gives a node its id, which is never used again. The same incarnation gets the same id.
    AdmitNode(NewNode),
    /// Every live node can run the staged document: it is the current one from here on.
    ActivateDocument {
        /// The staged version.
        version: u64,
    },
    /// A live node cannot run the staged document: it is dropped.
    RefuseDocument {
        /// The staged version.
        version: u64,
        /// Which node cannot, and why.
        reason: String,
    },
    /// Carried out once, however often it is proposed with this key: again, it answers what it answered then.
    Once {
        /// Who repeats it gives the same key again.
        key: Arc<str>,
        /// Of what was asked; the same key for something else is refused.
        fingerprint: [u8; 16],
        /// What is asked; never a `Once` itself.
        command: Box<Command>,
    },
    /// Takes a node out for good: its id is never used again, and it never comes back under it.
    RetireNode {
        /// Which one.
        node: NodeId,
    },
    /// A part of a value that is larger than an entry may be; nothing shows of it before it is used.
    StorePart {
        /// By chance: which value.
        upload: u64,
        /// Which part, from 0.
        part: u32,
        /// The part itself.
        bytes: Bytes,
    },
    /// Stages a document whose content was stored in parts; its own is empty.
    PutUploaded {
        /// Which value.
        upload: u64,
        /// How many parts it has.
        parts: u32,
        /// All else.
        document: NewDocument,
    },
    /// One part of a backup on its way back.
    Restore {
        /// Which restore, by chance: another one ends it.
        restore: u64,
        /// Counted from 0; a part that is repeated changes nothing.
        part: u64,
        /// What it brings.
        step: RestoreStep,
    },
    /// Every member understands this format: it is the cluster's from here on.
    RaiseFormat {
        /// Which one; a lower one than the cluster's changes nothing.
        to: u8,
    },
    /// As `Deregister`, and counted: what a build to come may add.
    #[cfg(feature = "next-format")]
    DeregisterCounted {
        /// Which one.
        id: Arc<str>,
    },
}

/// One part of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestoreStep {
    /// The first.
    Begin {
        /// Whether it may take the place of instances and documents.
        force: bool,
    },
    /// Some instances.
    Instances(Vec<Instance>),
    /// A version of the document, or more of the content of the one before, which has the same number then.
    Document(Version),
    /// The last one: what was gathered takes the place of what the cluster has.
    Finish {
        /// How many instances there must be.
        instances: u64,
        /// How many versions there must be.
        versions: u64,
        /// The index at which they stood: the one of this change is beyond it.
        index: u64,
    },
}

/// An instance was heard from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Which instance.
    pub id: Arc<str>,
    /// The life that was heard from; a beat of an earlier life renews nothing.
    pub epoch: u64,
    /// How long before the tick it arrived, at least: rounded down. A beat that is taken for an earlier one
    /// than it was would end the life early.
    pub age_ms: u64,
}

/// An instance to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// Unique in the cluster.
    pub id: Arc<str>,
    /// The service that it belongs to.
    pub name: Arc<str>,
    /// `host:port`.
    pub address: String,
    /// How long it lives without a heartbeat; 0: for ever.
    pub ttl_ms: u64,
    /// For the weighted balancers, at least 1.
    pub weight: u32,
    /// Free to use.
    pub metadata: BTreeMap<String, String>,
    /// Free to use, and to filter by.
    pub tags: Vec<String>,
}

/// A gateway document to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewDocument {
    /// If given, the version that must be the current one (0: there is none yet).
    pub expected: Option<u64>,
    /// As the operator wrote it, YAML or JSON; validated before it is proposed.
    pub content: Arc<str>,
    /// Who asked.
    pub by: String,
    /// The proposer's wall clock, milliseconds since 1970: shown, never computed with.
    pub at_ms: u64,
}

/// A node that asks to be part of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewNode {
    /// Stable and unique.
    pub name: String,
    /// Made when its data folder was made: a wiped disk is another node.
    pub incarnation: u64,
    /// A founder brings its id along; a node that joins gets the next one.
    pub id: Option<NodeId>,
}

/// What became of a [`Command`]. A refusal is a normal outcome, recorded like any other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The clock moved.
    Ticked,
    /// The instance as it is now.
    Registered {
        /// What is stored.
        instance: Arc<Instance>,
        /// False if it replaced one of the same id.
        created: bool,
        /// Until it expires unless it is heard from; none: never.
        expires_in_ms: Option<u64>,
    },
    /// The instance is gone.
    Deregistered {
        /// The index of the removal.
        index: u64,
    },
    /// The current document.
    Documented {
        /// Its version.
        version: u64,
        /// False if what was proposed equals what was current: then no version was made.
        changed: bool,
    },
    /// The node's id.
    Admitted {
        /// Never used before, or this incarnation's own.
        node: NodeId,
    },
    /// Nothing changed.
    Refused(Refusal),
    /// The document waits for the nodes to say whether they can run it.
    Staged {
        /// Its version.
        version: u64,
    },
    /// The node is no member for ever.
    Retired {
        /// Its id.
        node: NodeId,
    },
    /// The part is kept for a while.
    Stored,
    /// The part of a backup is kept until the others are there.
    Gathered,
    /// The backup is what the cluster has now.
    Restored {
        /// The index of the change.
        index: u64,
    },
    /// The cluster's format.
    Raised {
        /// Which one.
        format: u8,
    },
}

/// Why a [`Command`] changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// No such instance, or it expired.
    #[error("no instance has the id `{id}`; it may have expired: register it again")]
    UnknownInstance {
        /// What was asked for.
        id: Arc<str>,
    },
    /// The caller knew another version.
    #[error("the current document is version {current}, not {expected}: read it and apply your change to it")]
    StaleDocument {
        /// What is current; 0: none.
        current: u64,
        /// What the caller expected.
        expected: u64,
    },
    /// The version was never there, or is older than the history.
    #[error("version {version} is not in the history, which holds {oldest} to {newest}")]
    UnknownVersion {
        /// What was asked for.
        version: u64,
        /// The oldest there is; 0: none.
        oldest: u64,
        /// The newest there is; 0: none.
        newest: u64,
    },
    /// An id that was used before, or is none.
    #[error("node id {node} cannot be given: it was used before, or is none")]
    UsedNode {
        /// Which id.
        node: NodeId,
    },
    /// There are as many instances as there may be.
    #[error("there are {max} instances, as many as there may be: deregister some, or let them expire")]
    RegistryFull {
        /// How many there may be.
        max: u64,
    },
    /// One document at a time.
    #[error("version {version} of the document is just being put into force: try again")]
    Staging {
        /// The one that is staged.
        version: u64,
    },
    /// It was activated or refused already.
    #[error("version {version} is not waiting to be put into force")]
    NotStaged {
        /// Which version.
        version: u64,
    },
    /// The key belongs to another request.
    #[error("the idempotency key was used for another request: give every request a key of its own")]
    KeyReused,
    /// An id that was never given.
    #[error("no node ever had the id {node}")]
    UnknownNode {
        /// Which id.
        node: NodeId,
    },
    /// Parts of the value are missing: they were kept for too long.
    #[error("what was written in parts is not whole any more; nothing was changed: try again")]
    UploadGone,
    /// A backup would take the place of something.
    #[error(
        "the cluster has {instances} instances and document version {version}: a backup goes into an empty one, or is forced into their place"
    )]
    NotEmpty {
        /// How many there are.
        instances: u64,
        /// The current one or the staged one; 0: none.
        version: u64,
    },
    /// The part does not follow the one before.
    #[error("another restore began, or this one was forgotten: begin again")]
    RestoreLost,
}
