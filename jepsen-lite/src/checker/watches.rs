//! Watches: every watcher is told the same changes, in order, each once, none left out.
//!
//! What is known to have happened is what any watcher was told, and what was acknowledged with its index. A watcher
//! covers all indices from a snapshot to the last one that it was told of; there, it must have been told all of
//! that. And a snapshot has what the changes before it make of the first one.

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
    completeness(&stretches, &known, judgement);
    snapshots(&stretches, &known, judgement);
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
    let changes = operations.iter().filter_map(|operation| match (&operation.call, &operation.outcome) {
        (Call::Register { id, content, .. }, Outcome::Ok { seen: Seen::Registered { epoch, .. } }) => {
            Some(((*epoch, id.as_str()), Some(content.as_str())))
        }
        (Call::Deregister { id }, Outcome::Ok { seen: Seen::Removed { index } }) => {
            Some(((*index, id.as_str()), None))
        }
        _ => None,
    });
    changes.collect()
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
