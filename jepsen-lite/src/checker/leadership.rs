//! Leadership: a term has one leader; a follower that was cut off and returns changes nothing, nor does a clock that
//! jumps; how long writes wait for a new leader.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Judgement;
use crate::history::{Call, Event, Fault, FaultKind, FaultStatus, Operation, Outcome, Seen};

/// From the kill of the leader to the first write on one survivor that began after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failover {
    /// When the leader was killed.
    pub killed_at_us: u64,
    /// Which node.
    pub killed: String,
    /// Which survivor was asked.
    pub asked: String,
    /// How long it took; none: it never came, up to the next start of the killed node.
    pub took_us: Option<u64>,
}

/// From a cut to the end of the watch after its heal.
struct Window<'a> {
    cut: &'a str,
    from_us: u64,
    to_us: u64,
}

/// The leader and the term are the same throughout every window, by everyone's account but the one's who was
/// cut off; and by his, once he is back.
pub(super) fn check(events: &[Event], operations: &[Operation], judgement: &mut Judgement) {
    let statuses: Vec<_> = operations.iter().filter_map(|op| Some((op, leader_seen(op)?))).collect();
    for window in windows(events) {
        let before = statuses.iter().rfind(|(op, (leader, _))| {
            ended(op) < window.from_us && op.node != window.cut && leader.is_some()
        });
        let Some((first, (leader, term))) = before else {
            judgement.doubts.push(format!("nobody said who led before {} was cut off", window.cut));
            continue;
        };
        let inside = |op: &Operation| op.invoked_us >= window.from_us && ended(op) <= window.to_us;
        let kept = |seen: &(Option<&str>, u64)| seen.1 == *term && (seen.0.is_none() || seen.0 == *leader);
        let deposed = statuses.iter().find(|(op, seen)| inside(op) && op.node != window.cut && !kept(seen));
        // The one who returns has to follow: his last word counts.
        let returned = statuses.iter().rfind(|(op, _)| inside(op) && op.node == window.cut);
        let deposed = deposed.or_else(|| returned.filter(|(_, seen)| seen.1 != *term || seen.0 != *leader));
        if let Some((op, (now, now_term))) = deposed {
            let text = format!(
                "{} led in term {term} before {} was cut off; {} then said: {}, term {now_term}",
                leader.unwrap_or("nobody"),
                window.cut,
                op.node,
                now.unwrap_or("nobody"),
            );
            judgement.violation("a returning follower deposed the leader", text, vec![first, op]);
        }
        if !statuses.iter().any(|(op, _)| inside(op) && op.node != window.cut) || returned.is_none() {
            judgement.doubts.push(format!("nobody was asked who led while {} was cut off", window.cut));
        }
    }
}

/// Whoever is said to lead in a term is the one who leads in it (Raft's election safety).
pub(super) fn one_of_a_term(operations: &[Operation], judgement: &mut Judgement) {
    let mut leaders: BTreeMap<u64, (u64, &Operation)> = BTreeMap::new();
    for operation in operations {
        let Outcome::Ok { seen: Seen::Leader { id: Some(id), term, .. } } = operation.outcome else {
            continue;
        };
        let (first, by) = *leaders.entry(term).or_insert((id, operation));
        if first != id {
            let text = format!("node {first} leads in term {term}, and so does node {id}");
            judgement.violation("a term has two leaders", text, vec![by, operation]);
        }
    }
}

/// Where nothing but clocks was set off and nobody changed the members or the leader, the term is the same from before
/// the first of them to the end.
pub(super) fn check_clocks(events: &[Event], operations: &[Operation], judgement: &mut Judgement) {
    let mut first_us = None;
    for (at_us, fault) in faults(events) {
        match fault.kind {
            FaultKind::ClockOff => first_us = first_us.or(Some(at_us)),
            FaultKind::ClockRight | FaultKind::Start | FaultKind::Serves => {}
            _ => return,
        }
    }
    let Some(first_us) = first_us else { return };
    if operations.iter().any(|op| matches!(op.call, Call::Change(_))) {
        return;
    }
    let statuses: Vec<_> = operations.iter().filter_map(|op| Some((op, leader_seen(op)?))).collect();
    let before = statuses.iter().rfind(|(op, (leader, _))| ended(op) < first_us && leader.is_some());
    let Some((first, (_, term))) = before else {
        judgement.doubts.push("nobody said who led before a clock was set off".to_owned());
        return;
    };
    if let Some((op, (_, now_term))) =
        statuses.iter().find(|(op, seen)| op.invoked_us >= first_us && seen.1 != *term)
    {
        let text = format!(
            "it was term {term} before the first clock was set off, {} then said {now_term}",
            op.node
        );
        judgement.violation("a clock that jumped cost the lead", text, vec![first, op]);
    }
}

/// What the retrying clients had to wait, kill by kill and survivor by survivor.
pub fn failovers(events: &[Event], operations: &[Operation], nodes: &[String]) -> Vec<Failover> {
    let mut failovers = Vec::new();
    for (at_us, fault) in faults(events) {
        if fault.kind != FaultKind::Kill || fault.status != FaultStatus::Installed {
            continue;
        }
        let until_us = faults(events)
            .find(|(start_us, start)| {
                start.kind == FaultKind::Start && *start_us > at_us && start.nodes == fault.nodes
            })
            .map_or(u64::MAX, |(start_us, _)| start_us);
        for node in nodes.iter().filter(|node| !fault.nodes.contains(node)) {
            let acknowledged = operations
                .iter()
                .filter(|op| {
                    op.node == *node && op.call.is_write() && matches!(op.outcome, Outcome::Ok { .. })
                })
                .filter(|op| op.invoked_us >= at_us && ended(op) <= until_us)
                .map(ended)
                .min();
            failovers.push(Failover {
                killed_at_us: at_us,
                killed: fault.nodes.join(", "),
                asked: node.clone(),
                took_us: acknowledged.map(|end_us| end_us - at_us),
            });
        }
    }
    failovers
}

fn windows(events: &[Event]) -> Vec<Window<'_>> {
    let mut windows = Vec::new();
    let mut open: Option<(&str, u64)> = None;
    for (at_us, fault) in faults(events) {
        match (fault.kind, fault.nodes.first()) {
            (FaultKind::Cut, Some(cut)) => open = Some((cut, at_us)),
            (FaultKind::Settled, _) => {
                windows.extend(open.take().map(|(cut, from_us)| Window { cut, from_us, to_us: at_us }));
            }
            _ => {}
        }
    }
    // One that was never settled lasts to the end.
    windows.extend(open.map(|(cut, from_us)| Window { cut, from_us, to_us: u64::MAX }));
    windows
}

fn faults(events: &[Event]) -> impl Iterator<Item = (u64, &Fault)> {
    events.iter().filter_map(|event| match event {
        Event::Fault { at_us, fault } => Some((*at_us, fault)),
        _ => None,
    })
}

fn leader_seen(operation: &Operation) -> Option<(Option<&str>, u64)> {
    match (&operation.call, &operation.outcome) {
        (Call::Status, Outcome::Ok { seen: Seen::Leader { leader, term, .. } }) => {
            Some((leader.as_deref(), *term))
        }
        _ => None,
    }
}

fn ended(operation: &Operation) -> u64 {
    operation.ended_us.unwrap_or(u64::MAX)
}
