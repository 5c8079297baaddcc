//! Changes of the members: what was acknowledged is in effect, what was refused is not, and no id is used twice.
//!
//! One client makes all changes, one after another, and asks the same node who the members are right after each
//! that was acknowledged: nothing is done to that node in between. In the end every member has to tell the members
//! that the acknowledged changes make of the first ones; what is unknown is allowed both ways.

use std::collections::{BTreeMap, BTreeSet};

use super::{CHANGING_CLIENT, Demands, FINAL_CLIENT, Judgement};
use crate::history::{Call, Change, Member, Operation, Outcome, Seen};

type Members = BTreeMap<u64, Member>;

const NOT_IN_EFFECT: &str = "an acknowledged change is not in effect";
const OTHERS: &str = "the members are not those that were acknowledged";

/// What the changes make of the first members.
#[derive(Default)]
struct Expected {
    members: Members,
    /// These may be gone.
    maybe_gone: BTreeSet<u64>,
    /// These may vote.
    maybe_voters: BTreeSet<u64>,
    /// One of this name may have come, under an id that nobody was told.
    maybe_come: BTreeSet<String>,
}

pub(super) fn check(operations: &[Operation], demands: &Demands, judgement: &mut Judgement) {
    let changing: Vec<&Operation> =
        operations.iter().filter(|operation| operation.client == CHANGING_CLIENT).collect();
    let mut expected = Expected::default();
    let mut used: BTreeMap<u64, &Operation> = BTreeMap::new();
    let mut changes = 0;
    if let Some((first, members)) = changing.first().and_then(|first| Some((*first, told(first)?))) {
        expected.members.clone_from(members);
        used.extend(members.keys().map(|id| (*id, first)));
    }
    for (at, operation) in changing.iter().enumerate() {
        let Call::Change(change) = &operation.call else { continue };
        if let Outcome::Ok { seen: Seen::Node { id } } = operation.outcome {
            changes += 1;
            let is_new = matches!(change, Change::Add { .. } | Change::Replace { .. });
            if let Some(before) = used.insert(id, operation).filter(|_| is_new) {
                let text = format!("node {id} is somebody new, and was somebody before");
                judgement.violation("an id is used twice", text, vec![before, operation]);
            }
            if let Some(next) = changing.get(at + 1)
                && next.node == operation.node
                && let Some(members) = told(next)
                && !shows(members, change, id, &operation.node)
            {
                let text = format!("{} acknowledged {change:?}, and then said: {members:?}", next.node);
                judgement.violation(NOT_IN_EFFECT, text, vec![operation, next]);
            }
        }
        expected.take(change, &operation.outcome);
    }
    if changes < demands.changes_min {
        judgement.doubts.push(format!(
            "only {changes} changes of the members were acknowledged; {} are needed to mean something",
            demands.changes_min
        ));
    }
    one_name_for_each_id(operations, judgement);
    let last = at_the_end(operations);
    if last.is_empty() {
        judgement.doubts.push("nobody said in the end who the members are".to_owned());
    }
    for operation in last.into_values() {
        let Some(members) = told(operation) else { continue };
        if let Some(problem) = expected.problem(members) {
            let text = format!("{} says in the end: {members:?}; {problem}", operation.node);
            judgement.violation(OTHERS, text, vec![operation]);
        }
    }
}

/// The names of the members, by the last word of any of them.
pub(super) fn names_at_the_end(operations: &[Operation]) -> Vec<String> {
    let last = at_the_end(operations).into_values().max_by_key(|operation| operation.invoked_us);
    let members = last.and_then(told);
    members.into_iter().flatten().map(|(_, member)| member.name.clone()).collect()
}

/// The last word of each node.
fn at_the_end(operations: &[Operation]) -> BTreeMap<&str, &Operation> {
    let said =
        operations.iter().filter(|operation| operation.client == FINAL_CLIENT && told(operation).is_some());
    said.map(|operation| (operation.node.as_str(), operation)).collect()
}

fn told(operation: &Operation) -> Option<&Members> {
    match &operation.outcome {
        Outcome::Ok { seen: Seen::Members { members } } => Some(members),
        _ => None,
    }
}

/// Whether a change of which node `id` came can be seen in what `node` says.
fn shows(members: &Members, change: &Change, id: u64, node: &str) -> bool {
    match change {
        Change::Add { name, .. } => members.get(&id).is_some_and(|member| member.name == *name),
        Change::Promote { .. } => members.get(&id).is_some_and(|member| member.voter),
        // One that is out hears of nothing any more.
        Change::Remove { .. } => members.get(&id).is_none_or(|member| member.name == node),
        Change::Replace { name, dead } => {
            members.get(&id).is_some_and(|member| member.name == *name) && !members.contains_key(dead)
        }
        // Another may lead by now.
        Change::Transfer { .. } => true,
    }
}

fn one_name_for_each_id(operations: &[Operation], judgement: &mut Judgement) {
    let mut names: BTreeMap<u64, (&str, &Operation)> = BTreeMap::new();
    for operation in operations {
        for (id, member) in told(operation).into_iter().flatten() {
            let (name, first) = *names.entry(*id).or_insert((&member.name, operation));
            if name != member.name {
                let text = format!("node {id} is `{name}` and `{}`", member.name);
                judgement.violation("an id is used twice", text, vec![first, operation]);
            }
        }
    }
}

// === impl Expected ===

impl Expected {
    fn take(&mut self, change: &Change, outcome: &Outcome) {
        let id = match outcome {
            Outcome::Ok { seen: Seen::Node { id } } => Some(*id),
            _ => None,
        };
        let unknown = matches!(outcome, Outcome::Unknown { .. });
        match (change, id) {
            (Change::Add { name, learner }, Some(id)) => self.come(id, name, !learner),
            (Change::Replace { name, dead }, Some(id)) => {
                self.go(*dead);
                self.come(id, name, true);
            }
            (Change::Promote { id }, Some(_)) => {
                if let Some(member) = self.members.get_mut(id) {
                    member.voter = true;
                }
            }
            (Change::Remove { id }, Some(_)) => self.go(*id),
            // It was unknown before, and this is how it is known now.
            (Change::Remove { id }, None)
                if self.maybe_gone.contains(id)
                    && matches!(outcome, Outcome::Fail { status: Some(404), .. }) =>
            {
                self.go(*id);
            }
            (Change::Add { name, .. }, None) if unknown => {
                self.maybe_come.insert(name.clone());
            }
            (Change::Replace { name, dead }, None) => {
                self.maybe_come.insert(name.clone());
                self.maybe_gone.insert(*dead);
            }
            (Change::Promote { id }, None) if unknown => {
                self.maybe_voters.insert(*id);
            }
            (Change::Remove { id }, None) if unknown => {
                self.maybe_gone.insert(*id);
            }
            (Change::Transfer { .. }, _)
            | (Change::Add { .. } | Change::Promote { .. } | Change::Remove { .. }, None) => {}
        }
    }

    fn come(&mut self, id: u64, name: &str, voter: bool) {
        self.maybe_come.remove(name);
        self.members.insert(id, Member { name: name.to_owned(), voter });
    }

    fn go(&mut self, id: u64) {
        self.maybe_gone.remove(&id);
        self.members.remove(&id);
    }

    /// Why these cannot be the members.
    fn problem(&self, members: &Members) -> Option<String> {
        let lost = self.members.keys().find(|id| !members.contains_key(id) && !self.maybe_gone.contains(id));
        if let Some(id) = lost {
            return Some(format!("node {id} was never removed"));
        }
        members.iter().find_map(|(id, member)| match self.members.get(id) {
            None if self.maybe_come.contains(&member.name) => None,
            None => Some(format!("node {id} was removed, or never let in")),
            Some(expected) if expected.voter && !member.voter => Some(format!("node {id} was to vote")),
            Some(expected) if member.voter && !expected.voter && !self.maybe_voters.contains(id) => {
                Some(format!("nobody had node {id} vote"))
            }
            Some(_) => None,
        })
    }
}
