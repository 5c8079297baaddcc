//! What is done to the cluster, and whether it took hold.
//!
//! Job: the plan of kills, all of it from the seed, and carrying it out. Invariant: every fault is recorded
//! with what became of it; one that did not take hold is never counted, and is no finding either. Neighbours:
//! `processes` does it, `scenario` says when the next one is due.

mod injury;

use std::{
    io, thread,
    time::{Duration, Instant},
};

use rand::{Rng, rngs::StdRng};

use crate::{
    client::Client,
    history::{Fault, FaultKind, FaultStatus, Recorder},
    processes::Processes,
};

pub use injury::{Nemesis, Victims};

/// The longest that a node runs undisturbed before it is killed.
const RUNNING_MS_MAX: u64 = 1000;

/// The longest after its start that a node is killed while it is starting.
const STARTING_MS_MAX: u64 = 300;

/// In one of so many pairs of rounds all nodes are killed at once.
const ALL_ONE_IN: u32 = 10;

/// How long a node may take from its start until it serves; longer is a finding.
pub const SERVES_WITHIN: Duration = Duration::from_secs(30);

/// A kill to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kill {
    /// The moment: since the last round, or since the start of the node.
    pub after: Duration,
    /// Whether it is aimed at a node that has just been started, by the kill before.
    pub starting: bool,
    /// Which nodes.
    pub nodes: Vec<usize>,
}

/// A pair of kills for every two rounds: one while the node runs, one while it starts again.
pub fn plan(rounds: usize, nodes: usize, rng: &mut StdRng) -> Vec<Kill> {
    let mut plan = Vec::with_capacity(rounds);
    while plan.len() < rounds {
        let all = rng.random_ratio(1, ALL_ONE_IN);
        let targets = if all { (0..nodes).collect() } else { vec![rng.random_range(0..nodes)] };
        let mut kill = |starting, ms_max| Kill {
            after: Duration::from_millis(rng.random_range(0..=ms_max)),
            starting,
            nodes: targets.clone(),
        };
        plan.extend([kill(false, RUNNING_MS_MAX), kill(true, STARTING_MS_MAX)]);
    }
    plan.truncate(rounds);
    plan
}

/// Kills the nodes at once, then says which; a node that had ended by itself is a finding.
pub fn kill(processes: &mut Processes, recorder: &Recorder, nodes: &[usize], note: &str) -> io::Result<()> {
    let mut failed = Vec::new();
    for &node in nodes {
        if let Some(status) = processes.ended(node) {
            failed.push((node, status));
        }
    }
    processes.kill(nodes)?;
    // Between the signal and the end of the process: what begins after this was not answered by the dead.
    let at_us = recorder.now_us();
    let installed = processes.reap(nodes)?;
    let status = match (installed, failed.is_empty()) {
        (true, _) => FaultStatus::Installed,
        (false, false) => FaultStatus::Skipped,
        (false, true) => FaultStatus::Indeterminate,
    };
    let names = nodes.iter().map(|node| processes.name(*node).to_owned()).collect();
    recorder.fault_at(at_us, Fault { kind: FaultKind::Kill, nodes: names, status, note: note.to_owned() });
    for (node, status) in failed {
        recorder.finding(
            processes.name(node),
            format!("the process ended by itself ({status}) before it was killed"),
            processes.log_tail(node),
        );
    }
    Ok(())
}

/// Starts the nodes.
pub fn start(processes: &mut Processes, recorder: &Recorder, nodes: &[usize]) -> io::Result<Vec<u32>> {
    let pids = nodes.iter().map(|node| processes.start(*node)).collect::<io::Result<_>>()?;
    recorder.fault(Fault {
        kind: FaultKind::Start,
        nodes: nodes.iter().map(|node| processes.name(*node).to_owned()).collect(),
        status: FaultStatus::Installed,
        note: String::new(),
    });
    Ok(pids)
}

/// How often a node that is awaited is asked whether it serves.
const ASK_EVERY: Duration = Duration::from_millis(20);

/// Waits until the nodes answer a linearizable read. False, and a finding, if any node ends or one takes too long.
pub fn serve_again(
    processes: &mut Processes,
    recorder: &Recorder,
    probe: &mut Client,
    nodes: &[usize],
) -> bool {
    let deadline = Instant::now() + SERVES_WITHIN;
    let mut waiting = nodes.to_vec();
    loop {
        waiting.retain(|node| !probe.probe(*node, "/v1/services?name=none"));
        let Some(node) = waiting.first().copied() else { return true };
        // Without another one there may be no majority to serve with.
        let ended = (0..processes.len()).find_map(|node| Some((node, processes.ended(node)?)));
        let (node, problem) = match ended {
            Some((node, status)) if waiting.contains(&node) => {
                (node, format!("the store failed to open: the process ended ({status})"))
            }
            Some((node, status)) => (node, format!("the process ended by itself ({status})")),
            None if Instant::now() < deadline => {
                thread::sleep(ASK_EVERY);
                continue;
            }
            None => (node, format!("it did not serve within {} s of its start", SERVES_WITHIN.as_secs())),
        };
        recorder.finding(processes.name(node), problem, processes.log_tail(node));
        return false;
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn half_of_the_kills_hit_a_node_that_was_just_started_and_a_seed_repeats_them() {
        let of = |seed| plan(200, 3, &mut StdRng::seed_from_u64(seed));
        let kills = of(7);
        assert_eq!(kills.len(), 200);
        assert_eq!(kills.iter().filter(|kill| kill.starting).count(), 100);
        assert!(kills.chunks(2).all(|pair| pair[1].starting && pair[0].nodes == pair[1].nodes));
        assert!(kills.iter().any(|kill| kill.nodes.len() == 3));
        assert_eq!(kills, of(7));
        assert_ne!(kills, of(8));
    }
}
