//! The gateway document's rules: a number once, numbers that go up, a content for a number.

use std::collections::BTreeMap;

use super::{FINAL_CLIENT, Judgement};
use crate::history::{Call, Operation, Outcome, Seen};

pub(super) fn check(operations: &[Operation], judgement: &mut Judgement) {
    let acknowledged = acknowledged(operations, judgement);
    order(operations, &acknowledged, judgement);
    updates(operations, &acknowledged, judgement);
    contents(operations, &acknowledged, judgement);
    at_the_end(operations, &acknowledged, judgement);
}

/// Number → the write that was given it.
fn acknowledged<'a>(operations: &'a [Operation], judgement: &mut Judgement) -> BTreeMap<u64, &'a Operation> {
    let mut acknowledged: BTreeMap<u64, &Operation> = BTreeMap::new();
    for operation in operations {
        let Call::PutConfig { if_match, flaw, .. } = &operation.call else { continue };
        let Outcome::Ok { seen: Seen::Version { version } } = operation.outcome else { continue };
        if let Some(flaw) = flaw {
            let text = format!("version {version} was acknowledged although {flaw}");
            judgement.violation("acknowledged what must be refused", text, vec![operation]);
        }
        if version <= *if_match {
            let text = format!("version {version} follows version {if_match}");
            judgement.violation("document versions go back", text, vec![operation]);
        }
        if let Some(other) = acknowledged.insert(version, operation) {
            let text = format!("version {version} was given twice");
            judgement.violation("a document version is not unique", text, vec![other, operation]);
        }
    }
    acknowledged
}

/// What began after an acknowledgement sees at least that version, and makes a higher one.
fn order(operations: &[Operation], acknowledged: &BTreeMap<u64, &Operation>, judgement: &mut Judgement) {
    let mut by_end: Vec<_> = acknowledged.iter().collect();
    by_end.sort_by_key(|(_, operation)| operation.ended_us);
    let mut by_end = by_end.into_iter().peekable();
    let mut newest: Option<(u64, &Operation)> = None;
    for operation in operations {
        while let Some((version, ended)) =
            by_end.next_if(|(_, ended)| ended.ended_us.is_some_and(|end| end < operation.invoked_us))
        {
            if newest.is_none_or(|(newest, _)| newest < *version) {
                newest = Some((*version, ended));
            }
        }
        let Some((newest, by)) = newest else { continue };
        let (seen, floor) = match (&operation.call, &operation.outcome) {
            (Call::PutConfig { .. }, Outcome::Ok { seen: Seen::Version { version } }) => {
                (*version, newest + 1)
            }
            (
                Call::GetConfig { stale: false, version: None },
                Outcome::Ok { seen: Seen::Document { version, .. } },
            ) => (*version, newest),
            _ => continue,
        };
        if seen < floor {
            let text =
                format!("{} answered version {seen} after version {newest} was acknowledged", operation.node);
            judgement.violation("document versions go back", text, vec![by, operation]);
        }
    }
}

/// What replaces version V comes right after V: nothing that was current in between is overwritten unseen.
fn updates(operations: &[Operation], acknowledged: &BTreeMap<u64, &Operation>, judgement: &mut Judgement) {
    let mut current = acknowledged.clone();
    for operation in operations {
        if let (Call::GetConfig { version: None, .. }, Outcome::Ok { seen: Seen::Document { version, .. } }) =
            (&operation.call, &operation.outcome)
        {
            current.entry(*version).or_insert(operation);
        }
    }
    for (version, write) in acknowledged {
        let Call::PutConfig { if_match, .. } = &write.call else { continue };
        if if_match >= version {
            continue;
        }
        let before = |by: &Operation| write.ended_us.is_some_and(|end| by.invoked_us < end);
        if let Some((lost, by)) = current.range(if_match + 1..*version).find(|(_, by)| before(by)) {
            let text =
                format!("version {version} replaced version {if_match}, and version {lost} was current");
            judgement.violation("an update is lost", text, vec![by, write]);
        }
    }
}

/// A version has one content, and only that of a write that may have happened.
fn contents(operations: &[Operation], acknowledged: &BTreeMap<u64, &Operation>, judgement: &mut Judgement) {
    let mut writes = BTreeMap::new();
    for operation in operations {
        if let Call::PutConfig { marker, flaw, .. } = &operation.call {
            let possible = flaw.is_none() && !matches!(operation.outcome, Outcome::Fail { .. });
            writes.insert(marker.as_str(), (operation, possible));
        }
    }
    let mut known: BTreeMap<u64, (&str, &Operation)> = BTreeMap::new();
    for (version, operation) in acknowledged {
        if let Call::PutConfig { marker, .. } = &operation.call {
            known.insert(*version, (marker, operation));
        }
    }
    for operation in operations {
        let Outcome::Ok { seen: Seen::Document { version, marker } } = &operation.outcome else { continue };
        if *version == 0 {
            continue;
        }
        let node = &operation.node;
        let Some(marker) = marker.as_deref() else {
            let text = format!("{node} has a version {version} that nobody wrote");
            judgement.violation("appears from nowhere", text, vec![operation]);
            continue;
        };
        let (first, by) = *known.entry(*version).or_insert((marker, operation));
        if first != marker {
            let text = format!("version {version} is `{first}`, and `{marker}` on {node}");
            judgement.violation("a document version has two contents", text, vec![by, operation]);
            continue;
        }
        match writes.get(marker) {
            Some((_, true)) => {}
            Some((write, false)) => {
                let text = format!("{node} has `{marker}` as version {version}");
                judgement.violation("a refused write appears", text, vec![write, operation]);
            }
            None => {
                let text = format!("{node} has `{marker}` as version {version}, which nobody wrote");
                judgement.violation("appears from nowhere", text, vec![operation]);
            }
        }
    }
}

/// The last answers of all nodes are alike, and not older than what was acknowledged.
fn at_the_end(operations: &[Operation], acknowledged: &BTreeMap<u64, &Operation>, judgement: &mut Judgement) {
    let mut last: BTreeMap<(&str, bool), (u64, &Operation)> = BTreeMap::new();
    for operation in operations.iter().filter(|operation| operation.client == FINAL_CLIENT) {
        if let (
            Call::GetConfig { stale, version: None },
            Outcome::Ok { seen: Seen::Document { version, .. } },
        ) = (&operation.call, &operation.outcome)
        {
            last.insert((&operation.node, *stale), (*version, operation));
        }
    }
    let newest = acknowledged.last_key_value();
    for (version, operation) in last.values() {
        if let Some((newest, by)) = newest.filter(|(newest, _)| *newest > version) {
            let text = format!("{} ends at version {version}; {newest} was acknowledged", operation.node);
            judgement.violation("an acknowledged document is missing", text, vec![by, operation]);
        }
    }
    let mut last = last.into_values();
    let Some((version, first)) = last.next() else { return };
    if let Some((other_version, other)) = last.find(|(other, _)| *other != version) {
        let text = format!("{} ends at {version}, {} at {other_version}", first.node, other.node);
        judgement.violation("nodes disagree at the end", text, vec![first, other]);
    }
}
