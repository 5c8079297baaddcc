//! The registry's rules, instance by instance.
//!
//! Each id is written by one client, one operation after another; so what it may be at any time is what the
//! last acknowledged operation made of it, or what one of the unknown ones made of it, which may take effect
//! as late as they like. A read, a heartbeat or a removal has to find one of these.

use std::collections::BTreeMap;

use super::{Demands, FINAL_CLIENT, Judgement};
use crate::history::{Call, Operation, Outcome, Seen};

/// What is known of one id.
#[derive(Default)]
struct Life<'a> {
    /// What the last acknowledged write made of it: content, or gone.
    settled: Option<&'a str>,
    settled_by: Option<&'a Operation>,
    /// What the unknown ones make of it if they happen.
    pending: Vec<(Option<&'a str>, &'a Operation)>,
    /// Everything that was ever sent under this id, valid or not, acknowledged or not.
    sent: Vec<(&'a str, &'a Operation)>,
    busy_until_us: u64,
    /// A violation was found: what follows from it is not told again.
    condemned: bool,
}

/// What one node said at the end.
struct FinalRead<'a> {
    operation: &'a Operation,
    index: u64,
    instances: &'a BTreeMap<String, String>,
}

pub(super) fn check(operations: &[Operation], demands: &Demands, judgement: &mut Judgement) {
    let mut lives: BTreeMap<&str, Life<'_>> = BTreeMap::new();
    for operation in operations {
        let Some(id) = operation.call.instance() else { continue };
        let life = lives.entry(id).or_default();
        if operation.invoked_us < life.busy_until_us {
            judgement.doubts.push(format!("`{id}` was written by two at once: the harness is broken"));
        }
        life.busy_until_us = operation.ended_us.unwrap_or(u64::MAX);
        life.step(id, operation, judgement);
    }
    let reads = final_reads(operations, demands, judgement);
    for read in &reads {
        for (id, life) in &mut lives {
            life.compare(id, read, judgement);
        }
        for id in read.instances.keys().filter(|id| !lives.contains_key(id.as_str())) {
            let text = format!("{} has `{id}`, which nobody ever wrote", read.operation.node);
            judgement.violation("appears from nowhere", text, vec![]);
        }
    }
    for (id, life) in lives.iter().filter(|(_, life)| !life.condemned) {
        disagreement(id, life, &reads, judgement);
    }
}

// === impl Life ===

impl<'a> Life<'a> {
    fn may_be(&self, content: Option<&str>) -> bool {
        self.settled == content || self.pending.iter().any(|(pending, _)| *pending == content)
    }

    fn may_be_there(&self) -> bool {
        self.settled.is_some() || self.pending.iter().any(|(pending, _)| pending.is_some())
    }

    fn step(&mut self, id: &str, operation: &'a Operation, judgement: &mut Judgement) {
        match (&operation.call, &operation.outcome) {
            (Call::Register { content, flaw: Some(flaw), .. }, outcome) => {
                self.sent.push((content, operation));
                if matches!(outcome, Outcome::Ok { .. }) {
                    let text = format!("`{id}` was acknowledged although {flaw}");
                    judgement.violation("acknowledged what must be refused", text, vec![operation]);
                }
            }
            (Call::Register { content, .. }, outcome) => {
                self.sent.push((content, operation));
                match outcome {
                    Outcome::Ok { .. } => self.settle(Some(content), operation),
                    Outcome::Unknown { .. } => self.pending.push((Some(content), operation)),
                    Outcome::Fail { .. } => {}
                }
            }
            (Call::Deregister { .. }, Outcome::Unknown { .. }) => self.pending.push((None, operation)),
            (Call::Deregister { .. }, Outcome::Ok { .. }) => {
                self.expect(self.may_be_there(), id, operation, judgement);
                self.settle(None, operation);
            }
            (Call::Heartbeat { .. }, Outcome::Ok { .. }) => {
                self.expect(self.may_be_there(), id, operation, judgement);
            }
            (Call::Get { .. }, Outcome::Ok { seen: Seen::Instance { content, .. } }) => {
                self.expect(self.may_be(Some(content)), id, operation, judgement);
            }
            (_, Outcome::Fail { status: Some(404), .. }) => {
                self.expect(self.may_be(None), id, operation, judgement);
            }
            _ => {}
        }
    }

    fn settle(&mut self, content: Option<&'a str>, operation: &'a Operation) {
        self.settled = content;
        self.settled_by = Some(operation);
    }

    /// An answer has to fit one of the things that the id may be.
    fn expect(&mut self, fits: bool, id: &str, operation: &'a Operation, judgement: &mut Judgement) {
        if fits || self.condemned {
            return;
        }
        self.condemned = true;
        let text =
            format!("`{id}` on {}: the answer does not fit what was acknowledged before", operation.node);
        let operations = self.settled_by.into_iter().chain([operation]).collect();
        judgement.violation("an answer contradicts an acknowledgement", text, operations);
    }

    fn compare(&mut self, id: &str, read: &FinalRead<'a>, judgement: &mut Judgement) {
        let seen = read.instances.get(id).map(String::as_str);
        if self.condemned || self.may_be(seen) {
            return;
        }
        self.condemned = true;
        let node = &read.operation.node;
        let sent: Vec<_> = self.sent.iter().filter(|(sent, _)| Some(*sent) == seen).collect();
        let was_acknowledged = sent.iter().any(|(_, op)| matches!(op.outcome, Outcome::Ok { .. }));
        let (rule, text) = match seen {
            None => ("an acknowledged registration is missing", format!("{node} does not have `{id}`")),
            Some(_) if sent.is_empty() => {
                ("appears from nowhere", format!("{node} has `{id}` with a content that nobody sent"))
            }
            Some(_) if !was_acknowledged => {
                ("a refused write appears", format!("{node} has `{id}` as it was refused"))
            }
            Some(_) if self.settled.is_none() => {
                ("an acknowledged removal is undone", format!("{node} still has `{id}`"))
            }
            Some(_) => ("an acknowledged registration is undone", format!("{node} has an old `{id}`")),
        };
        let sent = sent.into_iter().map(|(_, operation)| *operation);
        let mut operations: Vec<_> = sent.chain(self.settled_by).collect();
        operations.dedup_by_key(|operation| operation.op);
        judgement.violation(rule, text, operations);
    }
}

/// What is unknown may be there or not, but alike on all nodes.
fn disagreement(id: &str, life: &Life<'_>, reads: &[FinalRead<'_>], judgement: &mut Judgement) {
    let Some((first, rest)) = reads.split_first() else { return };
    let Some(other) = rest.iter().find(|read| read.instances.get(id) != first.instances.get(id)) else {
        return;
    };
    let told = |read: &FinalRead<'_>| if read.instances.contains_key(id) { "has" } else { "does not have" };
    let text = format!(
        "{} {} `{id}`, {} {} it, or not with the same content",
        first.operation.node,
        told(first),
        other.operation.node,
        told(other)
    );
    let operations = life.pending.iter().map(|(_, operation)| *operation).chain(life.settled_by).collect();
    judgement.violation("nodes disagree at the end", text, operations);
}

/// The last read of every node, of both kinds. One that is missing is a doubt. One that may be stale, and is,
/// tells of a node that is behind, not of a loss: it is not held against what was written.
fn final_reads<'a>(
    operations: &'a [Operation],
    demands: &Demands,
    judgement: &mut Judgement,
) -> Vec<FinalRead<'a>> {
    let mut reads = BTreeMap::new();
    for operation in operations.iter().filter(|operation| operation.client == FINAL_CLIENT) {
        if let (Call::List { stale }, Outcome::Ok { seen: Seen::Instances { index, instances } }) =
            (&operation.call, &operation.outcome)
        {
            let read = FinalRead { operation, index: *index, instances };
            reads.insert((&*operation.node, *stale), read);
        }
    }
    for node in &demands.nodes {
        for stale in [false, true] {
            if !reads.contains_key(&(node.as_str(), stale)) {
                judgement.doubts.push(format!("{node} could not be read at the end (stale: {stale})"));
            }
        }
    }
    let newest = reads.iter().filter(|((_, stale), _)| !stale).map(|(_, read)| read.index).max();
    reads.retain(|(node, stale), read| {
        let Some(newest) = newest.filter(|newest| *stale && read.index < *newest) else {
            // Without any that is not stale, nobody knows how old the others are.
            return newest.is_some();
        };
        let text = format!("{node} ends at index {} and never heard of {newest}", read.index);
        judgement.violation("a node is behind at the end", text, vec![read.operation]);
        false
    });
    reads.into_values().collect()
}

// === impl Call ===

impl Call {
    /// The instance that it is about.
    pub(super) fn instance(&self) -> Option<&str> {
        match self {
            Self::Register { id, .. }
            | Self::Deregister { id }
            | Self::Heartbeat { id }
            | Self::Get { id } => Some(id),
            Self::List { .. }
            | Self::Wait { .. }
            | Self::PutConfig { .. }
            | Self::GetConfig { .. }
            | Self::Status
            | Self::Serve
            | Self::Members
            | Self::Change(_)
            | Self::Request => None,
        }
    }
}
