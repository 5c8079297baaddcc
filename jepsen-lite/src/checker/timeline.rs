//! When which nodes were disturbed, from the record of the faults. A wall clock that is wrong disturbs nothing.

use crate::history::{Event, Fault, FaultKind};

/// From an injury to its end.
pub(super) struct Disturbance<'a> {
    pub(super) kind: FaultKind,
    pub(super) nodes: &'a [String],
    pub(super) from_us: u64,
    pub(super) to_us: u64,
}

/// A kill is written down right after it was done, and the rest right before.
const WRITTEN_LATE_US: u64 = 100_000;

/// All of them, in the order of their beginnings. One that nobody ended lasts for ever.
pub(super) fn disturbances(events: &[Event]) -> Vec<Disturbance<'_>> {
    let mut disturbances: Vec<Disturbance<'_>> = Vec::new();
    for event in events {
        let Event::Fault { at_us, fault: Fault { kind, nodes, .. } } = event else { continue };
        let is_open = |one: &&mut Disturbance<'_>, kind: FaultKind| {
            one.kind == kind && one.nodes == nodes && one.to_us == u64::MAX
        };
        let ends = match kind {
            FaultKind::Kill | FaultKind::Pause | FaultKind::Partition | FaultKind::Delay => {
                // A node that is killed while it starts has been disturbed all the time.
                if !disturbances.iter_mut().any(|one| is_open(&one, *kind)) {
                    let from_us = at_us.saturating_sub(WRITTEN_LATE_US);
                    disturbances.push(Disturbance { kind: *kind, nodes, from_us, to_us: u64::MAX });
                }
                continue;
            }
            FaultKind::Serves => FaultKind::Kill,
            FaultKind::Continue => FaultKind::Pause,
            FaultKind::Rejoin => FaultKind::Partition,
            FaultKind::Hasten => FaultKind::Delay,
            FaultKind::ClockOff
            | FaultKind::ClockRight
            | FaultKind::Start
            | FaultKind::Cut
            | FaultKind::Heal
            | FaultKind::Settled => continue,
        };
        if let Some(one) = disturbances.iter_mut().find(|one| is_open(one, ends)) {
            one.to_us = *at_us;
        }
    }
    disturbances
}

/// How much of `from_us..to_us` was disturbed, by one thing or several.
pub(super) fn disturbed_us(disturbances: &[Disturbance<'_>], from_us: u64, to_us: u64) -> u64 {
    let (mut sum_us, mut counted_to_us) = (0, from_us);
    for one in disturbances {
        let (begin, end) = (one.from_us.max(counted_to_us), one.to_us.min(to_us));
        if begin < end {
            sum_us += end - begin;
            counted_to_us = end;
        }
    }
    sum_us
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::FaultStatus;

    #[test]
    fn what_overlaps_is_counted_once() {
        let fault = |at_us, kind, node: &str| {
            let (nodes, note) = (vec![node.to_owned()], String::new());
            Event::Fault { at_us, fault: Fault { kind, nodes, status: FaultStatus::Installed, note } }
        };
        let events = [
            fault(1_100_000, FaultKind::Pause, "n1"),
            fault(2_100_000, FaultKind::Kill, "n2"),
            fault(2_500_000, FaultKind::Kill, "n2"),
            fault(3_000_000, FaultKind::Continue, "n1"),
            fault(4_000_000, FaultKind::Serves, "n2"),
            fault(6_100_000, FaultKind::Delay, "n1"),
        ];
        let disturbances = disturbances(&events);
        assert_eq!(disturbances.len(), 3);
        assert_eq!(disturbed_us(&disturbances, 0, 5_000_000), 3_000_000);
        assert_eq!(disturbed_us(&disturbances, 3_500_000, 8_000_000), 2_500_000);
        assert_eq!(disturbed_us(&disturbances, 4_000_000, 6_000_000), 0);
    }
}
