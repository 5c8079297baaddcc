//! P6: nobody vanishes who was heard, and nobody stays who was not.
//!
//! An instance's life is counted from when its last acknowledged beat (or registration) was *sent*: before the
//! TTL has passed since then, no linearizable answer may lack it. One that fell silent has to be gone after
//! the TTL, 1.5 s, 2 s for each election, and the time in which there may have been no quorum, counted from
//! the *answer* to its last beat; all the time that anything was disturbed counts as such.

use std::collections::BTreeMap;

use super::{Judgement, seconds, timeline};
use crate::history::{Call, Event, Operation, Outcome, Seen};

/// What an expiry may take beyond the TTL, in peace (P6).
const LATE_US: u64 = 1_500_000;

/// And for each election.
const ELECTION_US: u64 = 2_000_000;

/// And because two clocks, the harness's threads and the nodes' share two cores.
const SLACK_US: u64 = 1_000_000;

/// One instance, from its registration on.
struct Life<'a> {
    ttl_us: u64,
    /// The last registration or beat that was acknowledged.
    heard: &'a Operation,
    /// The last one that may have been taken in; none: that may be any time, its outcome is unknown.
    silent_since_us: Option<u64>,
}

pub(super) fn check(events: &[Event], operations: &[Operation], judgement: &mut Judgement) {
    let disturbances = timeline::disturbances(events);
    let terms = terms(operations);
    let mut by_end: Vec<&Operation> =
        operations.iter().filter(|operation| operation.ended_us.is_some()).collect();
    by_end.sort_by_key(|operation| operation.ended_us);
    let mut lives: BTreeMap<&str, Life<'_>> = BTreeMap::new();
    let mut looks = 0;
    for operation in by_end {
        take(&mut lives, operation);
        let absent = |id: &str| match (&operation.call, &operation.outcome) {
            (Call::Heartbeat { id: other }, Outcome::Fail { status: Some(404), .. }) => other == id,
            (Call::List { stale: false }, Outcome::Ok { seen: Seen::Instances { instances, .. } }) => {
                !instances.contains_key(id)
            }
            _ => false,
        };
        let ended_us = operation.ended_us.unwrap_or(u64::MAX);
        lives.retain(|id, life| {
            // What began before it was heard may not have seen it yet.
            let after = life.heard.ended_us.is_some_and(|heard_us| heard_us < operation.invoked_us);
            if !after || !absent(id) {
                return true;
            }
            if ended_us < life.heard.invoked_us + life.ttl_us {
                let text = format!(
                    "`{id}` was heard {:.3} s before, and lives for {:.3} s",
                    seconds(ended_us - life.heard.invoked_us),
                    seconds(life.ttl_us),
                );
                judgement.violation("an instance expires early", text, vec![life.heard, operation]);
            }
            false
        });
        let (Call::List { stale: false }, Outcome::Ok { seen: Seen::Instances { instances, .. } }) =
            (&operation.call, &operation.outcome)
        else {
            continue;
        };
        looks += 1;
        for (id, life) in lives.iter().filter(|(id, _)| instances.contains_key(**id)) {
            let Some(since_us) = life.silent_since_us else { continue };
            let at_us = operation.invoked_us;
            let elections = elections(&terms, since_us, at_us);
            let without_quorum_us = timeline::disturbed_us(&disturbances, since_us, at_us);
            let allowed_us = life.ttl_us + LATE_US + elections * ELECTION_US + without_quorum_us + SLACK_US;
            if at_us > since_us.saturating_add(allowed_us) {
                let text = format!(
                    "`{id}` was last heard {:.3} s before; {:.3} s are allowed ({elections} elections, disturbed for {:.3} s)",
                    seconds(at_us - since_us),
                    seconds(allowed_us),
                    seconds(without_quorum_us),
                );
                judgement.violation("an instance outlives its TTL", text, vec![life.heard, operation]);
            }
        }
    }
    if looks == 0 {
        judgement.doubts.push("nobody looked at the instances".to_owned());
    }
}

/// Registrations and beats make a life, or make it longer.
fn take<'a>(lives: &mut BTreeMap<&'a str, Life<'a>>, operation: &'a Operation) {
    let (id, ttl_us) = match &operation.call {
        Call::Register { id, ttl_ms, .. } => (id.as_str(), Some(ttl_ms * 1000)),
        Call::Heartbeat { id } => (id.as_str(), None),
        _ => return,
    };
    match (&operation.outcome, ttl_us, lives.get_mut(id)) {
        (Outcome::Ok { .. }, Some(ttl_us), _) => {
            lives.insert(id, Life { ttl_us, heard: operation, silent_since_us: operation.ended_us });
        }
        (Outcome::Ok { .. }, None, Some(life)) => {
            life.heard = operation;
            life.silent_since_us = life.silent_since_us.and(operation.ended_us);
        }
        // A registration may come into force later; a beat that is carried late carries its age.
        (Outcome::Unknown { .. }, Some(_), Some(life)) => life.silent_since_us = None,
        (Outcome::Unknown { .. }, None, Some(life)) => {
            life.silent_since_us = life.silent_since_us.and(operation.ended_us);
        }
        (Outcome::Fail { .. }, ..) | (_, _, None) => {}
    }
}

/// The terms that were seen, each with when it was first heard of.
fn terms(operations: &[Operation]) -> BTreeMap<u64, u64> {
    let mut terms = BTreeMap::new();
    for operation in operations {
        if let Outcome::Ok { seen: Seen::Leader { term, .. } } = operation.outcome {
            let seen_us = operation.ended_us.unwrap_or(u64::MAX);
            terms.entry(term).and_modify(|first: &mut u64| *first = seen_us.min(*first)).or_insert(seen_us);
        }
    }
    terms
}

/// How far the terms went up between two moments.
fn elections(terms: &BTreeMap<u64, u64>, from_us: u64, to_us: u64) -> u64 {
    let at = |at_us: u64| terms.iter().rev().find(|(_, first_us)| **first_us <= at_us).map(|(term, _)| *term);
    // What is heard of later may have been before.
    let newest = terms.iter().find(|(_, first_us)| **first_us > to_us).map(|(term, _)| *term).or(at(to_us));
    newest.zip(at(from_us)).map_or(0, |(newest, oldest)| newest.saturating_sub(oldest))
}
