//! The verdict on a history: pure, from the clients' records alone.
//!
//! Job: say whether what was acknowledged is there, what was removed is gone, what was refused never shows,
//! and whether the run had enough in it to mean anything. Invariant: what may have happened is allowed both
//! ways, so that every violation is one. Neighbours: the files below hold the rules, one for each work or promise;
//! `history` the records, `report` tells.

mod contended;
mod documents;
mod leadership;
mod leases;
mod membership;
mod registry;
mod served;
mod timeline;
mod traffic;
mod watches;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::{
    history::{self, Call, Change, Event, Fault, FaultKind, FaultStatus, Operation, Outcome},
    workload::Work,
};

pub use leadership::{Failover, failovers};

/// The client whose reads at the end are held against everything that was written.
pub const FINAL_CLIENT: &str = "final";

/// The client that changes the members, one change after another.
pub const CHANGING_CLIENT: &str = "members";

/// What a run must have had in it, or it proves nothing.
#[derive(Debug, Clone)]
pub struct Demands {
    /// Every node has to be read at the end.
    pub nodes: Vec<String>,
    /// At least so many acknowledged changes of the members.
    pub changes_min: usize,
    /// At least so many acknowledged writes.
    pub acknowledged_min: usize,
    /// Faults of these kinds …
    pub faults: Vec<FaultKind>,
    /// … at least so many that took hold.
    pub faults_min: usize,
    /// None may have failed to take hold, unless there was nothing to do it to.
    pub all_take_hold: bool,
}

/// Something that must not be.
#[derive(Debug, Clone, Serialize)]
pub struct Violation {
    /// Which rule was broken, in a few words.
    pub rule: &'static str,
    /// What was seen.
    pub text: String,
    /// The operations that show it.
    pub operations: Vec<Operation>,
}

/// What a history comes to.
#[derive(Debug, Default, Serialize)]
pub struct Judgement {
    /// What must not be.
    pub violations: Vec<Violation>,
    /// Why the run does not mean as much as it should.
    pub doubts: Vec<String>,
    /// `register ok` → how many, and so on.
    pub counts: BTreeMap<String, usize>,
    /// Writes that were acknowledged.
    pub acknowledged: usize,
    /// Faults of the demanded kind that took hold.
    pub faults: usize,
}

/// Three ways a run can end; the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Nothing wrong, and enough was tried.
    Valid,
    /// Something must not be.
    Violated,
    /// Nothing wrong was seen, but too little was tried, or the harness failed.
    Inconclusive,
}

/// Judges a history of clients that write what is theirs alone.
pub fn check(events: &[Event], demands: &Demands) -> Judgement {
    judge(events, demands, |operations, judgement| {
        registry::check(operations, demands, judgement);
        documents::check(operations, judgement);
        leadership::check(events, operations, judgement);
    })
}

/// Judges a history of this work.
pub fn check_work(work: Work, events: &[Event], demands: &Demands) -> Judgement {
    judge(events, demands, |operations, judgement| {
        let members = match work {
            Work::Membership => membership::names_at_the_end(operations),
            _ => demands.nodes.clone(),
        };
        match work {
            Work::Registry => contended::check(operations, judgement),
            Work::Leases => leases::check(events, operations, judgement),
            Work::Documents => {
                documents::check(operations, judgement);
                served::check(events, operations, judgement);
            }
            Work::Traffic => {
                documents::check(operations, judgement);
                traffic::check(events, operations, judgement);
            }
            Work::Watches => watches::check(events, operations, judgement),
            Work::Membership => {
                contended::check(operations, judgement);
                membership::check(operations, demands, judgement);
            }
        }
        judgement.doubt_unread(operations, &members);
    })
}

fn judge(events: &[Event], demands: &Demands, rules: impl FnOnce(&[Operation], &mut Judgement)) -> Judgement {
    let operations = history::operations(events);
    let mut judgement = Judgement::default();
    for event in events {
        if let Event::Finding { at_us, node, problem, log } = event {
            let text = format!("{:.3} s: {node}: {problem}\n{log}", seconds(*at_us));
            judgement.violation("a process failed", text, Vec::new());
        }
    }
    leadership::one_of_a_term(&operations, &mut judgement);
    leadership::check_clocks(events, &operations, &mut judgement);
    rules(&operations, &mut judgement);
    judgement.count(&operations);
    judgement.doubt_unexpected(&operations);
    judgement.doubt_too_little(events, demands);
    judgement
}

/// Microseconds as seconds, for people.
#[expect(clippy::cast_precision_loss, reason = "for display")]
pub fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

// === impl Judgement ===

impl Judgement {
    /// What it comes to.
    pub fn verdict(&self) -> Verdict {
        match (self.violations.is_empty(), self.doubts.is_empty()) {
            (false, _) => Verdict::Violated,
            (true, false) => Verdict::Inconclusive,
            (true, true) => Verdict::Valid,
        }
    }

    fn violation(&mut self, rule: &'static str, text: String, operations: Vec<&Operation>) {
        let operations = operations.into_iter().cloned().collect();
        self.violations.push(Violation { rule, text, operations });
    }

    fn count(&mut self, operations: &[Operation]) {
        for operation in operations {
            let outcome = match operation.outcome {
                Outcome::Ok { .. } => "ok",
                Outcome::Fail { .. } => "fail",
                Outcome::Unknown { .. } => "unknown",
            };
            *self.counts.entry(format!("{} {outcome}", operation.call.kind())).or_default() += 1;
            if outcome == "ok" && operation.call.is_write() {
                self.acknowledged += 1;
            }
        }
    }

    /// An answer that the contract does not know for this call is no proof of anything, but has to be seen.
    fn doubt_unexpected(&mut self, operations: &[Operation]) {
        let mut unexpected: BTreeMap<(&str, u16), (usize, &str)> = BTreeMap::new();
        for operation in operations {
            if let Some((status, reason)) = unexpected_answer(operation) {
                unexpected.entry((operation.call.kind(), status)).or_insert((0, reason)).0 += 1;
            }
        }
        for ((kind, status), (times, reason)) in unexpected {
            self.doubts.push(format!("{times} × {kind} was answered {status}, for example: {reason}"));
        }
    }

    /// What a node last knew has to be seen.
    fn doubt_unread(&mut self, operations: &[Operation], nodes: &[String]) {
        let read = |operation: &&Operation| {
            operation.client == FINAL_CLIENT
                && operation.call == Call::List { stale: false }
                && matches!(operation.outcome, Outcome::Ok { .. })
        };
        let read: BTreeSet<&str> = operations.iter().filter(read).map(|operation| &*operation.node).collect();
        for node in nodes.iter().filter(|node| !read.contains(node.as_str())) {
            self.doubts.push(format!("{node} could not be read at the end"));
        }
    }

    fn doubt_too_little(&mut self, events: &[Event], demands: &Demands) {
        let faults: Vec<&Fault> = events
            .iter()
            .filter_map(|event| match event {
                Event::Fault { fault, .. } if demands.faults.contains(&fault.kind) => Some(fault),
                _ => None,
            })
            .collect();
        self.faults = faults.iter().filter(|fault| fault.status == FaultStatus::Installed).count();
        if self.faults < demands.faults_min {
            let (kinds, seen) = (&demands.faults, faults.len());
            self.doubts.push(format!(
                "only {} of {} faults ({kinds:?}) took hold; {seen} were tried",
                self.faults, demands.faults_min
            ));
        }
        if demands.all_take_hold {
            for fault in faults.iter().filter(|fault| fault.status == FaultStatus::Indeterminate) {
                let Fault { kind, nodes, note, .. } = fault;
                self.doubts.push(format!("{note} ({kind:?} of {}) did not bite", nodes.join(", ")));
            }
        }
        if self.acknowledged < demands.acknowledged_min {
            self.doubts.push(format!(
                "only {} writes were acknowledged; {} are needed to mean something",
                self.acknowledged, demands.acknowledged_min
            ));
        }
    }
}

/// The status and reason of an answer that the contract does not give for this call.
fn unexpected_answer(operation: &Operation) -> Option<(u16, &str)> {
    let (status, reason, known) = match &operation.outcome {
        Outcome::Ok { .. } => return None,
        Outcome::Unknown { status, reason } => ((*status)?, reason, *status == Some(504)),
        Outcome::Fail { status, reason } => {
            let status = (*status)?;
            let known = match &operation.call {
                Call::Register { flaw: Some(_), .. } | Call::PutConfig { flaw: Some(_), .. } => {
                    (400..=499).contains(&status)
                }
                Call::Deregister { .. } | Call::Heartbeat { .. } | Call::Get { .. } => status == 404,
                Call::GetConfig { version, .. } => version.is_some() && status == 404,
                Call::PutConfig { flaw: None, .. } => status == 409 || status == 412,
                // While no route is there.
                Call::Serve => status == 404,
                Call::Change(_) => status == 404 || status == 409,
                Call::Register { flaw: None, .. }
                | Call::List { .. }
                | Call::Wait { .. }
                | Call::Status
                | Call::Members
                | Call::Request => false,
            } || status == 429
                || status == 503;
            (status, reason, known)
        }
    };
    (!known).then_some((status, reason.as_str()))
}

// === impl Call ===

impl Call {
    /// For counting.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Register { flaw: None, .. } => "register",
            Self::Register { flaw: Some(_), .. } => "register (flawed)",
            Self::Deregister { .. } => "deregister",
            Self::Heartbeat { .. } => "heartbeat",
            Self::Get { .. } => "get",
            Self::List { .. } => "list",
            Self::Wait { .. } => "wait",
            Self::PutConfig { flaw: None, .. } => "put config",
            Self::PutConfig { flaw: Some(_), .. } => "put config (flawed)",
            Self::GetConfig { .. } => "get config",
            Self::Status => "status",
            Self::Members => "members",
            Self::Change(Change::Add { learner: false, .. }) => "add a voter",
            Self::Change(Change::Add { learner: true, .. }) => "add a learner",
            Self::Change(Change::Promote { .. }) => "promote",
            Self::Change(Change::Remove { .. }) => "remove",
            Self::Change(Change::Replace { .. }) => "replace",
            Self::Change(Change::Transfer { .. }) => "transfer",
            Self::Serve => "what the proxy serves",
            Self::Request => "request",
        }
    }

    /// Whether an acknowledgement of it is a promise about the state.
    pub fn is_write(&self) -> bool {
        matches!(
            self,
            Self::Register { flaw: None, .. } | Self::Deregister { .. } | Self::PutConfig { flaw: None, .. }
        )
    }
}

#[cfg(test)]
mod tests;
