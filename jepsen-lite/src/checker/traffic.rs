//! A node that is up answers, whatever happens to the others (P1, P8, P10).

use super::{
    Judgement,
    timeline::{self, Disturbance},
};
use crate::history::{Call, Event, FaultKind, Operation, Outcome};

/// Fewer answered requests mean nothing.
const ANSWERED_MIN: usize = 1000;

pub(super) fn check(events: &[Event], operations: &[Operation], judgement: &mut Judgement) {
    let disturbances = timeline::disturbances(events);
    let mut answered = 0;
    for request in operations.iter().filter(|operation| operation.call == Call::Request) {
        if matches!(request.outcome, Outcome::Ok { .. }) {
            answered += 1;
        } else if !disturbances.iter().any(|one| explains(one, request)) {
            let text = format!("{} was up, and a request through it failed", request.node);
            judgement.violation("a request is lost", text, vec![request]);
        }
    }
    if answered < ANSWERED_MIN {
        judgement.doubts.push(format!("only {answered} requests were answered; {ANSWERED_MIN} are needed"));
    }
}

/// Whether its node was down or stood still at some time while it was on its way.
fn explains(disturbance: &Disturbance<'_>, request: &Operation) -> bool {
    matches!(disturbance.kind, FaultKind::Kill | FaultKind::Pause)
        && disturbance.nodes.contains(&request.node)
        && disturbance.from_us <= request.ended_us.unwrap_or(u64::MAX)
        && request.invoked_us <= disturbance.to_us
}
