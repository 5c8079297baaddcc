//! What proxies serve: a version of the document that was accepted, and never an older one than before.

use std::collections::BTreeMap;

use super::{FINAL_CLIENT, Judgement, timeline};
use crate::history::{Call, Event, Operation, Outcome, Seen};

/// So long after the last disturbance, all nodes are live again for sure.
const RECOVERED_US: u64 = 5_000_000;

pub(super) fn check(events: &[Event], operations: &[Operation], judgement: &mut Judgement) {
    let versions = versions(operations);
    let looks: Vec<(&Operation, &str)> =
        operations.iter().filter_map(|look| Some((look, served(look)?))).collect();
    if looks.is_empty() {
        return;
    }
    origins(operations, &looks, judgement);
    order(&versions, &looks, judgement);
    everywhere(events, operations, &versions, &looks, judgement);
    at_the_end(&versions, &looks, judgement);
}

fn served(operation: &Operation) -> Option<&str> {
    match &operation.outcome {
        Outcome::Ok { seen: Seen::Served { marker } } => Some(marker),
        _ => None,
    }
}

/// Marker → version, as far as anybody was told.
fn versions(operations: &[Operation]) -> BTreeMap<&str, u64> {
    let told = operations.iter().filter_map(|operation| match (&operation.call, &operation.outcome) {
        (Call::PutConfig { marker, .. }, Outcome::Ok { seen: Seen::Version { version } }) => {
            Some((marker.as_str(), *version))
        }
        (_, Outcome::Ok { seen: Seen::Document { version, marker: Some(marker) } }) => {
            Some((marker.as_str(), *version))
        }
        _ => None,
    });
    told.collect()
}

/// Only what somebody wrote, and what was not refused, is served.
fn origins(operations: &[Operation], looks: &[(&Operation, &str)], judgement: &mut Judgement) {
    let mut writes: BTreeMap<&str, &Operation> = BTreeMap::new();
    for operation in operations {
        if let Call::PutConfig { marker, .. } = &operation.call {
            writes.insert(marker, operation);
        }
    }
    for (look, marker) in looks {
        match writes.get(marker) {
            None => {
                let text = format!("{} serves `{marker}`, which nobody wrote", look.node);
                judgement.violation("appears from nowhere", text, vec![look]);
            }
            Some(write) if matches!(write.outcome, Outcome::Fail { .. }) => {
                let text = format!("{} serves `{marker}`", look.node);
                judgement.violation("a refused document is served", text, vec![write, look]);
            }
            Some(_) => {}
        }
    }
}

fn order(versions: &BTreeMap<&str, u64>, looks: &[(&Operation, &str)], judgement: &mut Judgement) {
    let mut newest: BTreeMap<&str, (u64, &Operation)> = BTreeMap::new();
    for (look, marker) in looks {
        let Some(version) = versions.get(marker) else { continue };
        let Some((known, before)) = newest.get(&*look.node).copied() else {
            newest.insert(&look.node, (*version, look));
            continue;
        };
        if *version < known && before.ended_us.is_some_and(|end| end < look.invoked_us) {
            let text = format!("{} served version {known}, and then {version}", look.node);
            judgement.violation("a proxy goes back", text, vec![before, look]);
        }
        if *version > known {
            newest.insert(&look.node, (*version, look));
        }
    }
}

/// When a document is acknowledged every live node runs it; in peace all of them are live.
fn everywhere(
    events: &[Event],
    operations: &[Operation],
    versions: &BTreeMap<&str, u64>,
    looks: &[(&Operation, &str)],
    judgement: &mut Judgement,
) {
    let disturbances = timeline::disturbances(events);
    for write in operations {
        let (Call::PutConfig { .. }, Outcome::Ok { seen: Seen::Version { version } }) =
            (&write.call, &write.outcome)
        else {
            continue;
        };
        let Some(written_us) = write.ended_us else { continue };
        let calm_since_us = write.invoked_us.saturating_sub(RECOVERED_US);
        let after = looks.partition_point(|(look, _)| look.invoked_us <= written_us);
        for (look, marker) in
            looks[after..].iter().take_while(|(look, _)| look.invoked_us < written_us + RECOVERED_US)
        {
            let ended_us = look.ended_us.unwrap_or(u64::MAX);
            let calm = timeline::disturbed_us(&disturbances, calm_since_us, ended_us) == 0;
            if calm && versions.get(marker).is_some_and(|served| served < version) {
                let text =
                    format!("{} serves `{marker}` after version {version} was acknowledged", look.node);
                judgement.violation("an acknowledged document is not served", text, vec![write, look]);
            }
        }
    }
}

/// Once all is over, every proxy runs what is current.
fn at_the_end(versions: &BTreeMap<&str, u64>, looks: &[(&Operation, &str)], judgement: &mut Judgement) {
    let mut last: BTreeMap<&str, (&Operation, &str)> = BTreeMap::new();
    for (look, marker) in looks.iter().filter(|(look, _)| look.client == FINAL_CLIENT) {
        last.insert(&look.node, (look, marker));
    }
    let newest = last.values().filter_map(|(_, marker)| versions.get(marker)).max();
    for (look, marker) in last.values() {
        if versions.get(marker) < newest {
            let text = format!("{} ends with `{marker}`, which is older than what others serve", look.node);
            judgement.violation("nodes disagree at the end", text, vec![look]);
        }
    }
}
