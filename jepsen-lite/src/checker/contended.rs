//! Instances that several write at once: each is linearizable, and its epochs go up.
//!
//! Per instance, an order is searched in which every answer fits (`linearizability`). A list is a read of each
//! instance. Beside that, an epoch is one registration's: it has one content, which nobody sends again and so has no
//! other epoch; a later registration has a higher one, and no answer goes back to a lower one.

use std::{collections::BTreeMap, time::Duration};

use super::{FINAL_CLIENT, Judgement};
use crate::{
    history::{Call, Operation, Outcome, Seen},
    linearizability::{self, Finding, Interval, Limits, Partial},
    model::{InstanceModel, InstanceOperation},
};

/// What the search may take for one instance.
const SEARCH_TIME: Duration = Duration::from_secs(60);

/// So many operations of an order are shown: its end.
const ORDER_SHOWN: usize = 12;

/// What was done to one instance.
#[derive(Default)]
struct Life<'a> {
    model: InstanceModel,
    history: Vec<Interval<InstanceOperation>>,
    operations: Vec<&'a Operation>,
}

pub(super) fn check(operations: &[Operation], judgement: &mut Judgement) {
    for (id, life) in &lives(operations) {
        life.check(id, judgement);
        epochs(id, &life.operations, judgement);
    }
    agreement(operations, judgement);
}

fn lives(operations: &[Operation]) -> BTreeMap<&str, Life<'_>> {
    let mut lives: BTreeMap<&str, Life<'_>> = BTreeMap::new();
    for operation in operations {
        if let Some(id) = operation.call.instance() {
            lives.entry(id).or_default();
        }
    }
    for operation in operations {
        match (&operation.call, &operation.outcome) {
            (Call::List { stale: false }, Outcome::Ok { seen: Seen::Instances { instances, .. } }) => {
                for (id, life) in &mut lives {
                    life.take(InstanceOperation::Get(instances.get(*id).cloned()), operation);
                }
            }
            (call, outcome) => {
                let done = call.instance().zip(meaning(call, outcome));
                if let Some((id, done)) = done
                    && let Some(life) = lives.get_mut(id)
                {
                    life.take(done, operation);
                }
            }
        }
    }
    lives
}

/// What an operation on one instance says of it; none if it says nothing.
fn meaning(call: &Call, outcome: &Outcome) -> Option<InstanceOperation> {
    let not_there = matches!(outcome, Outcome::Fail { status: Some(404), .. });
    let refused = matches!(outcome, Outcome::Fail { .. }) && !not_there;
    match (call, outcome) {
        _ if refused => None,
        (Call::Register { content, .. }, outcome) => {
            let created = match outcome {
                Outcome::Ok { seen: Seen::Registered { created, .. } } => Some(*created),
                _ => None,
            };
            Some(InstanceOperation::Register { content: content.clone(), created })
        }
        (Call::Deregister { .. }, outcome) => {
            let found = if matches!(outcome, Outcome::Ok { .. }) { Some(true) } else { None };
            Some(InstanceOperation::Deregister { found: found.or(not_there.then_some(false)) })
        }
        (Call::Get { .. }, Outcome::Ok { seen: Seen::Instance { content, .. } }) => {
            Some(InstanceOperation::Get(Some(content.clone())))
        }
        (Call::Get { .. }, Outcome::Fail { .. }) => Some(InstanceOperation::Get(None)),
        _ => None,
    }
}

impl<'a> Life<'a> {
    fn take(&mut self, done: InstanceOperation, operation: &'a Operation) {
        if let InstanceOperation::Get(Some(content)) = &done {
            self.model.read(content);
        }
        let unknown = matches!(operation.outcome, Outcome::Unknown { .. });
        let returned = operation.ended_us.filter(|_| !unknown);
        self.history.push(Interval { operation: done, called: operation.invoked_us, returned });
        self.operations.push(operation);
    }

    fn check(&self, id: &str, judgement: &mut Judgement) {
        match linearizability::search(&self.model, &self.history, Limits::within(SEARCH_TIME)) {
            Finding::Valid => {}
            Finding::Inconclusive(why) => {
                judgement.doubts.push(format!("whether `{id}` is linearizable is not known: {why}"));
            }
            Finding::Violated(Partial { order, next }) => {
                let text = format!(
                    "of {} operations on `{id}`, an order that fits has {} at most; its last ones, and those of which none can come next:",
                    self.history.len(),
                    order.len(),
                );
                let last = order.iter().skip(order.len().saturating_sub(ORDER_SHOWN));
                let shown = last.chain(&next).map(|operation| self.operations[*operation]).collect();
                judgement.violation("not linearizable", text, shown);
            }
        }
    }
}

/// The epoch that an operation was told, and the content under it.
fn told(operation: &Operation) -> Option<(u64, &str)> {
    match (&operation.call, &operation.outcome) {
        (Call::Register { content, .. }, Outcome::Ok { seen: Seen::Registered { epoch, .. } })
        | (Call::Get { .. }, Outcome::Ok { seen: Seen::Instance { content, epoch } }) => {
            Some((*epoch, content))
        }
        _ => None,
    }
}

fn epochs(id: &str, operations: &[&Operation], judgement: &mut Judgement) {
    let mut contents: BTreeMap<u64, (&str, &Operation)> = BTreeMap::new();
    let mut registered: BTreeMap<&str, (u64, &Operation)> = BTreeMap::new();
    let mut by_end: Vec<(&Operation, u64)> = Vec::new();
    for operation in operations {
        let Some((epoch, content)) = told(operation) else { continue };
        let (once, by) = *registered.entry(content).or_insert((epoch, operation));
        if once != epoch {
            let text =
                format!("`{content}` of `{id}` was registered once, and has the epochs {once} and {epoch}");
            judgement.violation("a registration happens twice", text, vec![by, operation]);
        }
        let (first, by) = *contents.entry(epoch).or_insert((content, operation));
        if first != content {
            let text = format!("epoch {epoch} of `{id}` is `{first}` and `{content}`");
            judgement.violation("an epoch has two contents", text, vec![by, operation]);
        }
        by_end.push((operation, epoch));
    }
    by_end.sort_by_key(|(operation, _)| operation.ended_us);
    let mut ended = by_end.iter().peekable();
    let mut highest: Option<(&Operation, u64)> = None;
    for operation in operations {
        let Some((epoch, _)) = told(operation) else { continue };
        let before = |end: Option<u64>| end.is_some_and(|end| end < operation.invoked_us);
        while let Some((other, other_epoch)) = ended.next_if(|(other, _)| before(other.ended_us)) {
            if highest.is_none_or(|(_, highest)| highest < *other_epoch) {
                highest = Some((other, *other_epoch));
            }
        }
        let Some((by, known)) = highest else { continue };
        let is_new = matches!(operation.call, Call::Register { .. });
        if epoch < known || (is_new && epoch == known) {
            let text = format!("`{id}` had epoch {known}, and then {epoch}");
            judgement.violation("epochs go back", text, vec![by, operation]);
        }
    }
}

/// What the nodes last knew, once they had heard of everything, is alike.
fn agreement(operations: &[Operation], judgement: &mut Judgement) {
    let mut last: BTreeMap<&str, (&BTreeMap<String, String>, u64, &Operation)> = BTreeMap::new();
    for operation in operations.iter().filter(|operation| operation.client == FINAL_CLIENT) {
        if let (Call::List { stale: true }, Outcome::Ok { seen: Seen::Instances { instances, index } }) =
            (&operation.call, &operation.outcome)
        {
            last.insert(&operation.node, (instances, *index, operation));
        }
    }
    let mut last = last.into_values();
    let Some((instances, index, first)) = last.next() else { return };
    if let Some((_, _, other)) = last.find(|(others, other, _)| *other == index && *others != instances) {
        let text = format!("{} and {} have different instances at index {index}", first.node, other.node);
        judgement.violation("nodes disagree at the end", text, vec![first, other]);
    }
}
