//! Watches: every watcher is told the same changes, in order, each once, none left out.
//!
//! What is known to have happened is what any watcher was told, and what was acknowledged with its index. A watcher
//! covers all indices from a snapshot to the last one that it was told of; there, it must have been told all of
//! that. No content is sent twice, so none comes twice. And a snapshot has what the changes before it make of the first one. A call that waits never goes back, does not
//! overlook what was acknowledged before it began, and answers what is there at the index that it tells.

use std::collections::{BTreeMap, BTreeSet};

use super::Judgement;
use crate::history::{Call, Event, Operation, Outcome, Seen, Told};

/// A change is known by its index and the instance.
type Key<'a> = (u64, &'a str);

/// What became of the instance: there, with this content; or gone.
type Change<'a> = Option<&'a str>;

/// What one watcher was told between two snapshots.
struct Stretch<'a> {
    watcher: &'a str,
    snapshot: (u64, &'a BTreeMap<String, String>),
    changes: Vec<(Key<'a>, Change<'a>, &'a str)>,
}

pub(super) fn check(events: &[Event], operations: &[Operation], judgement: &mut Judgement) {
    let stretches = stretches(events, judgement);
    let mut known = acknowledged(operations);
    for stretch in &stretches {
        let mut before = (stretch.snapshot.0, BTreeSet::new());
        for ((index, id), change, node) in &stretch.changes {
            let Stretch { watcher, .. } = stretch;
            if *index > before.0 {
                before = (*index, BTreeSet::new());
            }
            if *index < before.0 || !before.1.insert(*id) || *index <= stretch.snapshot.0 {
                let text = format!("{watcher} was told of `{id}` at {index} by {node}, after {}", before.0);
                judgement.violation("a change is told twice, or out of order", text, vec![]);
            }
            let first = *known.entry((*index, id)).or_insert(*change);
            if first != *change {
                let text = format!(
                    "{watcher} was told by {node} that `{id}` is {change:?} at {index}; it is {first:?}"
                );
                judgement.violation("a change is told in two ways", text, vec![]);
            }
        }
    }
    twice(&known, operations, judgement);
    completeness(&stretches, &known, judgement);
    snapshots(&stretches, &known, judgement);
    waits(&stretches, operations, judgement);
}

/// A watcher's record, cut at its snapshots.
fn stretches<'a>(events: &'a [Event], judgement: &mut Judgement) -> Vec<Stretch<'a>> {
    let mut open: BTreeMap<&str, Stretch<'_>> = BTreeMap::new();
    let mut stretches = Vec::new();
    for event in events {
        let Event::Watched { watcher, node, index, told, .. } = event else { continue };
        let watcher = watcher.as_str();
        match told {
            Told::Snapshot { instances } => {
                let stretch = Stretch { watcher, snapshot: (*index, instances), changes: Vec::new() };
                stretches.extend(open.insert(watcher, stretch));
            }
            Told::Change { id, content } => match open.get_mut(watcher) {
                Some(stretch) => stretch.changes.push(((*index, id), content.as_deref(), node)),
                None => {
                    let text =
                        format!("{watcher} was told of `{id}` at {index} by {node}, before any snapshot");
                    judgement.violation("a change is told twice, or out of order", text, vec![]);
                }
            },
        }
    }
    stretches.extend(open.into_values());
    stretches
}

/// What was acknowledged together with its index.
fn acknowledged(operations: &[Operation]) -> BTreeMap<Key<'_>, Change<'_>> {
    operations.iter().filter_map(changed).collect()
}

fn changed(operation: &Operation) -> Option<(Key<'_>, Change<'_>)> {
    match (&operation.call, &operation.outcome) {
        (Call::Register { id, content, .. }, Outcome::Ok { seen: Seen::Registered { epoch, .. } }) => {
            Some(((*epoch, id.as_str()), Some(content.as_str())))
        }
        (Call::Deregister { id }, Outcome::Ok { seen: Seen::Removed { index } }) => {
            Some(((*index, id.as_str()), None))
        }
        _ => None,
    }
}

/// A registration that was asked for once happens once.
fn twice(known: &BTreeMap<Key<'_>, Change<'_>>, operations: &[Operation], judgement: &mut Judgement) {
    let mut registered: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for ((index, id), change) in known {
        let Some(content) = change else { continue };
        if let Some(before) = registered.insert((id, content), *index) {
            let asked = |operation: &&Operation| match &operation.call {
                Call::Register { id: asked, content: sent, .. } => asked == id && sent == content,
                _ => false,
            };
            let text = format!("`{id}` became `{content}` at {before}, and again at {index}");
            let asked = operations.iter().filter(asked).collect();
            judgement.violation("a registration happens twice", text, asked);
        }
    }
}

fn completeness(stretches: &[Stretch<'_>], known: &BTreeMap<Key<'_>, Change<'_>>, judgement: &mut Judgement) {
    let mut told_of: BTreeMap<&str, usize> = BTreeMap::new();
    for Stretch { watcher, snapshot, changes } in stretches {
        *told_of.entry(watcher).or_default() += changes.len();
        let told: BTreeSet<Key<'_>> = changes.iter().map(|(key, ..)| *key).collect();
        // Of the last index there may be more to come.
        let Some(end) = told.last().map(|(index, _)| *index) else { continue };
        let covered = known.range((snapshot.0 + 1, "")..(end.max(snapshot.0 + 1), ""));
        for ((index, id), change) in covered.filter(|(key, _)| !told.contains(key)) {
            let text = format!(
                "{watcher} was not told that `{id}` became {change:?} at {index}, only of what came later"
            );
            judgement.violation("a change is left out", text, vec![]);
        }
    }
    for (watcher, told) in told_of {
        if 2 * told < known.len() {
            judgement.doubts.push(format!("{watcher} was told of {told} of {} changes only", known.len()));
        }
    }
}

/// From the first snapshot on, it is known what is there at any index.
fn snapshots(stretches: &[Stretch<'_>], known: &BTreeMap<Key<'_>, Change<'_>>, judgement: &mut Judgement) {
    let mut snapshots: Vec<&Stretch<'_>> = stretches.iter().collect();
    snapshots.sort_by_key(|stretch| stretch.snapshot.0);
    let Some((first, rest)) = snapshots.split_first() else {
        return judgement.doubts.push("nobody watched".to_owned());
    };
    let mut there: BTreeMap<&str, &str> =
        first.snapshot.1.iter().map(|(id, content)| (id.as_str(), content.as_str())).collect();
    let mut changes = known.range((first.snapshot.0 + 1, "")..).peekable();
    for Stretch { watcher, snapshot: (index, instances), .. } in rest {
        while let Some(((_, id), change)) = changes.next_if(|((changed, _), _)| changed <= index) {
            match change {
                Some(content) => there.insert(id, content),
                None => there.remove(id),
            };
        }
        let same = instances.len() == there.len()
            && instances.iter().all(|(id, content)| there.get(id.as_str()) == Some(&content.as_str()));
        if !same {
            let text = format!(
                "{watcher}'s snapshot at {index} is {instances:?}, and the changes make {there:?} of it"
            );
            judgement.violation("a snapshot is not what the changes make of it", text, vec![]);
        }
    }
}

/// An answer to a call that waited.
struct Waited<'a> {
    operation: &'a Operation,
    service: Option<&'a str>,
    since: Option<u64>,
    index: u64,
    instances: &'a BTreeMap<String, String>,
}

fn waited(operation: &Operation) -> Option<Waited<'_>> {
    match (&operation.call, &operation.outcome) {
        (Call::Wait { service, since }, Outcome::Ok { seen: Seen::Instances { index, instances } }) => {
            let (service, since, index) = (service.as_deref(), *since, *index);
            Some(Waited { operation, service, since, index, instances })
        }
        _ => None,
    }
}

fn waits(stretches: &[Stretch<'_>], operations: &[Operation], judgement: &mut Judgement) {
    let mut waited: Vec<Waited<'_>> = operations.iter().filter_map(waited).collect();
    if waited.is_empty() {
        return judgement.doubts.push("no call that waits was answered".to_owned());
    }
    overlooked(&waited, operations, judgement);
    for Waited { operation, since, index, .. } in &waited {
        if since.is_some_and(|since| *index < since) {
            let text = format!("it knew of {since:?}, and was told of {index}");
            judgement.violation("a call that waits goes back", text, vec![operation]);
        }
    }
    // One that answers in vain tells the old index, and perhaps what came in the moment of its answer.
    waited.retain(|waited| waited.since != Some(waited.index));
    waited.sort_by_key(|waited| waited.index);
    let mut compared = vec![false; waited.len()];
    for Stretch { snapshot, changes, .. } in stretches {
        let Some(((end, _), ..)) = changes.last() else { continue };
        let mut there: BTreeMap<&str, &str> =
            snapshot.1.iter().map(|(id, content)| (id.as_str(), content.as_str())).collect();
        let mut changes = changes.iter().peekable();
        for (waited, compared) in waited.iter().zip(&mut compared) {
            // Of the last index there may be more to come.
            if *compared || waited.index < snapshot.0 || waited.index >= *end {
                continue;
            }
            while let Some(((_, id), change, _)) = changes.next_if(|((index, _), ..)| *index <= waited.index)
            {
                match change {
                    Some(content) => there.insert(id, content),
                    None => there.remove(id),
                };
            }
            *compared = true;
            let wanted = there.iter().filter(|(id, _)| is_of(waited.service, id));
            if !wanted.map(|(id, content)| (*id, *content)).eq(pairs(waited.instances)) {
                let text = format!(
                    "it was told {:?} at {}, and the changes make {there:?} of what was before",
                    waited.instances, waited.index
                );
                judgement.violation(
                    "a call that waits is told what is not there",
                    text,
                    vec![waited.operation],
                );
            }
        }
    }
    if !compared.contains(&true) {
        judgement
            .doubts
            .push("no answer to a call that waits could be compared with what watchers were told".to_owned());
    }
}

fn pairs(instances: &BTreeMap<String, String>) -> impl Iterator<Item = (&str, &str)> {
    instances.iter().map(|(id, content)| (id.as_str(), content.as_str()))
}

/// Where anybody asks for one service, its instances' ids begin with its name.
fn is_of(service: Option<&str>, id: &str) -> bool {
    service.is_none_or(|service| id.starts_with(service))
}

/// None may find nothing newer if something newer was acknowledged before it began.
fn overlooked(waited: &[Waited<'_>], operations: &[Operation], judgement: &mut Judgement) {
    let mut by_end: Vec<(u64, Key<'_>, &Operation)> = operations
        .iter()
        .filter_map(|operation| Some((operation.ended_us?, changed(operation)?.0, operation)))
        .collect();
    by_end.sort_by_key(|(ended_us, ..)| *ended_us);
    let services: BTreeSet<Option<&str>> = waited.iter().map(|waited| waited.service).collect();
    for wanted in services {
        let mut ended = by_end.iter().filter(|(_, (_, id), _)| is_of(wanted, id)).peekable();
        let mut newest: Option<(u64, &Operation)> = None;
        for Waited { operation, service, since, index, .. } in waited {
            if *service != wanted {
                continue;
            }
            while let Some((_, (changed, _), by)) =
                ended.next_if(|(end_us, ..)| *end_us < operation.invoked_us)
            {
                newest = newest.filter(|(newest, _)| newest >= changed).or(Some((*changed, by)));
            }
            if let Some((newest, by)) = newest
                && *index < newest
            {
                let text = format!(
                    "it knew of {since:?}, was told of {index}, and {newest} was acknowledged before"
                );
                judgement.violation("a call that waits overlooks a change", text, vec![by, operation]);
            }
        }
    }
}
