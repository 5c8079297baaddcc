//! What the clients saw: every operation from its start to its end, and every fault, in the order of one clock.
//!
//! Job: the record on which a run is judged, in memory and as JSON lines (`history.jsonl`). Invariants: an
//! operation is recorded as begun before its first byte is sent and as ended after its answer was read, so
//! the recorded interval contains the real one; times are microseconds of one monotonic clock. Neighbours:
//! `client` records, `nemesis` records its faults, `checker` reads.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufRead, BufReader, BufWriter, Write},
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use serde::{Deserialize, Serialize};

/// One line of the history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A client is about to ask.
    Invoke {
        /// When, in microseconds since the run began.
        at_us: u64,
        /// The operation's number.
        op: u64,
        /// Who asks.
        client: String,
        /// Which node is asked.
        node: String,
        /// What is asked.
        call: Call,
    },
    /// The client knows what became of it, or knows that it does not.
    Done {
        /// When.
        at_us: u64,
        /// The number given at the start.
        op: u64,
        /// What became of it.
        outcome: Outcome,
    },
    /// A watcher was told of something.
    Watched {
        /// When.
        at_us: u64,
        /// Who.
        watcher: String,
        /// By which node.
        node: String,
        /// The index of it.
        index: u64,
        /// What.
        told: Told,
    },
    /// Something was done to the cluster.
    Fault {
        /// When.
        at_us: u64,
        /// What.
        fault: Fault,
    },
    /// A process did what it must not do, whatever the clients saw.
    Finding {
        /// When.
        at_us: u64,
        /// Which node.
        node: String,
        /// What it did.
        problem: String,
        /// The end of its log.
        log: String,
    },
}

/// What a watcher is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "told", rename_all = "snake_case")]
pub enum Told {
    /// All that is there: id → hash of the content.
    Snapshot {
        /// By id.
        instances: BTreeMap<String, String>,
    },
    /// An instance is there, with this content, or gone.
    Change {
        /// Which one.
        id: String,
        /// The hash of its content.
        content: Option<String>,
    },
}

/// What a client asks of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "call", rename_all = "snake_case")]
pub enum Call {
    /// Add or replace an instance.
    Register {
        /// Its id.
        id: String,
        /// The hash of everything that was sent ([`content_hash`]).
        content: String,
        /// How long it lives without a heartbeat; 0: for ever.
        #[serde(default)]
        ttl_ms: u64,
        /// If set: what is wrong with it, so that it has to be refused.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        flaw: Option<String>,
    },
    /// Remove an instance.
    Deregister {
        /// Its id.
        id: String,
    },
    /// Say that an instance lives.
    Heartbeat {
        /// Its id.
        id: String,
    },
    /// Read an instance.
    Get {
        /// Its id.
        id: String,
    },
    /// Read all instances.
    List {
        /// Whether the node may answer with what it last knew.
        stale: bool,
    },
    /// Read all instances, or those of a service, once something is newer.
    Wait {
        /// Which service; none: all.
        service: Option<String>,
        /// Newer than this index; none: at once.
        since: Option<u64>,
    },
    /// Replace the gateway document.
    PutConfig {
        /// A name that occurs in this document and no other.
        marker: String,
        /// The version that is to be replaced.
        if_match: u64,
        /// If set: what is wrong with it, so that it has to be refused.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        flaw: Option<String>,
    },
    /// Read the gateway document.
    GetConfig {
        /// Whether the node may answer with what it last knew.
        stale: bool,
        /// An old version; none: the current one.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        version: Option<u64>,
    },
    /// Ask who leads.
    Status,
    /// Ask who takes part.
    Members,
    /// Change who takes part, or who leads.
    Change(Change),
    /// Ask the proxy for the marker of the document that it runs.
    Serve,
    /// A request through the proxy, to a service that is always there.
    Request,
}

/// A change of the members.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "snake_case")]
pub enum Change {
    /// A node that waits is let in.
    Add {
        /// Its name.
        name: String,
        /// It is to follow only.
        learner: bool,
    },
    /// One that follows is to vote.
    Promote {
        /// Its id.
        id: u64,
    },
    /// One is taken out for good.
    Remove {
        /// Its id.
        id: u64,
    },
    /// A dead one's place is taken by a new one of its name, by itself.
    Replace {
        /// The name.
        name: String,
        /// The dead one's id.
        dead: u64,
    },
    /// Another one is to lead.
    Transfer {
        /// Its id; none: whoever is best.
        to: Option<u64>,
    },
}

/// A node that takes part, by another's account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Whether it votes.
    pub voter: bool,
}

/// What became of an operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// Acknowledged.
    Ok {
        /// What the answer told.
        #[serde(default)]
        seen: Seen,
    },
    /// It has not happened and never will.
    Fail {
        /// The answer's status; none: the request was never sent.
        status: Option<u16>,
        /// What was said.
        reason: String,
    },
    /// It may have happened, or may yet.
    Unknown {
        /// The answer's status, if there was one.
        status: Option<u16>,
        /// What was said.
        reason: String,
    },
}

/// What an answer told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "saw", rename_all = "snake_case")]
pub enum Seen {
    /// Nothing but yes.
    #[default]
    Nothing,
    /// An instance was registered.
    Registered {
        /// It was not there before.
        created: bool,
        /// The number of this registration.
        epoch: u64,
    },
    /// An instance was removed.
    Removed {
        /// At this index.
        index: u64,
    },
    /// One instance.
    Instance {
        /// The hash of its content.
        content: String,
        /// The number of its registration.
        #[serde(default)]
        epoch: u64,
    },
    /// All instances: id → hash of the content.
    Instances {
        /// `X-Gogate-Index`.
        index: u64,
        /// By id.
        instances: BTreeMap<String, String>,
    },
    /// What the proxy answered.
    Served {
        /// The marker of the document that it runs.
        marker: String,
    },
    /// The number of a new document.
    Version {
        /// The number.
        version: u64,
    },
    /// A document; version 0 and no marker: there is none.
    Document {
        /// Its number.
        version: u64,
        /// The marker in it, if one was found.
        marker: Option<String>,
    },
    /// Who leads, by one node's account.
    Leader {
        /// Its name; none: this node knows of none.
        leader: Option<String>,
        /// Its id.
        #[serde(default)]
        id: Option<u64>,
        /// The term.
        term: u64,
        /// How far the asked node's state has come in the log.
        applied: u64,
    },
    /// Who takes part, by one node's account.
    Members {
        /// By id.
        members: BTreeMap<u64, Member>,
    },
    /// The node that a change was about, or that leads by it.
    Node {
        /// Its id.
        id: u64,
    },
}

/// Something that was done to the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// What was done.
    pub kind: FaultKind,
    /// To whom.
    pub nodes: Vec<String>,
    /// Whether it took hold.
    pub status: FaultStatus,
    /// For the reader of a timeline.
    pub note: String,
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// Ended with SIGKILL.
    Kill,
    /// Started again.
    Start,
    /// Cut off from the others in both directions.
    Cut,
    /// Cut off no more.
    Heal,
    /// Caught up after the heal, and watched for a while: the cut's window ends here.
    Settled,
    /// Answers again after its start.
    Serves,
    /// Stopped where it stood (SIGSTOP).
    Pause,
    /// Went on.
    Continue,
    /// Ways between nodes were cut.
    Partition,
    /// They were opened again. Its status says whether anything had been held up on them.
    Rejoin,
    /// Ways between nodes were made slow.
    Delay,
    /// They were made fast again. Its status says whether anything had been late on them.
    Hasten,
    /// The wall clock was set off.
    ClockOff,
    /// It was set right again. Its status says whether the node had been told the wrong time.
    ClockRight,
}

/// Whether a fault took hold. Only what was installed counts; the rest makes a run inconclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultStatus {
    /// It took hold.
    Installed,
    /// There was nothing to do it to.
    Skipped,
    /// It cannot be told whether it took hold.
    Indeterminate,
}

/// Takes events in, from any thread.
pub struct Recorder {
    start: Instant,
    next_op: AtomicU64,
    tally: Tally,
    inner: Mutex<Inner>,
}

/// How operations ended so far, for the progress lines.
#[derive(Debug, Default)]
pub struct Tally {
    /// Acknowledged.
    pub ok: AtomicU64,
    /// Failed or refused.
    pub fail: AtomicU64,
    /// Unknown.
    pub unknown: AtomicU64,
}

struct Inner {
    events: Vec<Event>,
    file: BufWriter<File>,
    /// The first error of writing the file; told once, at the end.
    broken: Option<io::Error>,
}

/// One operation, its start and end put together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Operation {
    /// Its number.
    pub op: u64,
    /// Who asked.
    pub client: String,
    /// Which node was asked.
    pub node: String,
    /// What was asked.
    pub call: Call,
    /// When it began.
    pub invoked_us: u64,
    /// When it ended; none: the client never came back from it.
    pub ended_us: Option<u64>,
    /// What became of it; unknown if it never ended.
    pub outcome: Outcome,
}

// === impl Recorder ===

impl Recorder {
    /// Records into `file`, which is made anew.
    pub fn create(file: &Path) -> io::Result<Self> {
        let file = BufWriter::new(File::create(file)?);
        Ok(Self {
            start: Instant::now(),
            next_op: AtomicU64::new(0),
            tally: Tally::default(),
            inner: Mutex::new(Inner { events: Vec::new(), file, broken: None }),
        })
    }

    /// Now, on the history's clock.
    pub fn now_us(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// How operations ended so far.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// An operation begins. Call it before the first byte is sent.
    pub fn invoke(&self, client: &str, node: &str, call: Call) -> u64 {
        let op = self.next_op.fetch_add(1, Ordering::Relaxed);
        self.push(|at_us| Event::Invoke {
            at_us,
            op,
            client: client.to_owned(),
            node: node.to_owned(),
            call,
        });
        op
    }

    /// An operation ended. Call it after the answer was read.
    pub fn done(&self, op: u64, outcome: Outcome) {
        let counter = match &outcome {
            Outcome::Ok { .. } => &self.tally.ok,
            Outcome::Fail { .. } => &self.tally.fail,
            Outcome::Unknown { .. } => &self.tally.unknown,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        self.push(|at_us| Event::Done { at_us, op, outcome });
    }

    /// A watcher was told of something.
    pub fn watched(&self, watcher: &str, node: &str, index: u64, told: Told) {
        let (watcher, node) = (watcher.to_owned(), node.to_owned());
        self.push(|at_us| Event::Watched { at_us, watcher, node, index, told });
    }

    /// Something was done to the cluster.
    pub fn fault(&self, fault: Fault) {
        self.push(|at_us| Event::Fault { at_us, fault });
    }

    /// Something was done to the cluster, at a time that was taken when it was done.
    pub fn fault_at(&self, at_us: u64, fault: Fault) {
        self.push(|_| Event::Fault { at_us, fault });
    }

    /// A process did what it must not do.
    pub fn finding(&self, node: &str, problem: String, log: String) {
        self.push(|at_us| Event::Finding { at_us, node: node.to_owned(), problem, log });
    }

    /// Ends the record: everything is in the file, and handed over for judgement.
    pub fn finish(&self) -> io::Result<Vec<Event>> {
        let mut inner = self.inner.lock().expect("no thread panics while it records");
        inner.file.flush()?;
        match inner.broken.take() {
            Some(error) => Err(error),
            None => Ok(std::mem::take(&mut inner.events)),
        }
    }

    /// The time is taken under the lock, so that the lines stand in the order of their times.
    fn push(&self, event: impl FnOnce(u64) -> Event) {
        let mut inner = self.inner.lock().expect("no thread panics while it records");
        let event = event(self.now_us());
        let written = serde_json::to_writer(&mut inner.file, &event)
            .map_err(io::Error::from)
            .and_then(|()| inner.file.write_all(b"\n"));
        if let Err(error) = written {
            inner.broken.get_or_insert(error);
        }
        inner.events.push(event);
    }
}

/// Reads a history that was written by an earlier run.
pub fn read(path: &Path) -> io::Result<Vec<Event>> {
    let mut events = Vec::new();
    for (number, line) in BufReader::new(File::open(path)?).lines().enumerate() {
        let line = line?;
        let event = serde_json::from_str(&line)
            .map_err(|error| io::Error::other(format!("{}:{}: {error}", path.display(), number + 1)))?;
        events.push(event);
    }
    Ok(events)
}

/// Puts starts and ends together, in the order of the starts.
pub fn operations(events: &[Event]) -> Vec<Operation> {
    let mut operations: Vec<Operation> = Vec::new();
    let mut position = BTreeMap::new();
    for event in events {
        match event {
            Event::Invoke { at_us, op, client, node, call } => {
                position.insert(*op, operations.len());
                operations.push(Operation {
                    op: *op,
                    client: client.clone(),
                    node: node.clone(),
                    call: call.clone(),
                    invoked_us: *at_us,
                    ended_us: None,
                    outcome: Outcome::Unknown { status: None, reason: "it never ended".to_owned() },
                });
            }
            Event::Done { at_us, op, outcome } => {
                if let Some(operation) = position.get(op).and_then(|index| operations.get_mut(*index)) {
                    operation.ended_us = Some(*at_us);
                    operation.outcome = outcome.clone();
                }
            }
            Event::Watched { .. } | Event::Fault { .. } | Event::Finding { .. } => {}
        }
    }
    operations
}

/// FNV-1a of an instance's parts, each with its length, so that no two lists of parts run together.
pub fn content_hash<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for part in parts {
        let length = (part.len() as u64).to_le_bytes();
        for byte in length.iter().chain(part.as_bytes()) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_reads_back_as_it_was_recorded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("history.jsonl");
        let recorder = Recorder::create(&path).unwrap();
        let call = Call::Register { id: "a".to_owned(), content: content_hash(["x"]), ttl_ms: 0, flaw: None };
        let op = recorder.invoke("c0", "n1", call);
        recorder.fault(Fault {
            kind: FaultKind::Kill,
            nodes: vec!["n1".to_owned()],
            status: FaultStatus::Installed,
            note: String::new(),
        });
        recorder.done(op, Outcome::Ok { seen: Seen::Nothing });
        recorder.finding("n1", "it ended by itself".to_owned(), "log".to_owned());
        let open = recorder.invoke("c0", "n2", Call::Status);
        let events = recorder.finish().unwrap();

        assert_eq!(read(&path).unwrap(), events);
        let operations = operations(&events);
        assert_eq!(operations.len(), 2);
        assert!(operations[0].invoked_us <= operations[0].ended_us.unwrap());
        assert_eq!(operations[0].outcome, Outcome::Ok { seen: Seen::Nothing });
        assert_eq!(operations[1].op, open);
        assert!(matches!(operations[1].outcome, Outcome::Unknown { .. }));
    }

    #[test]
    fn a_hash_tells_parts_apart() {
        assert_ne!(content_hash(["ab", "c"]), content_hash(["a", "bc"]));
        assert_eq!(content_hash(["ab", "c"]), content_hash(["ab", "c"]));
    }
}
