//! A follower is cut off from the others for a while and returns: the leader has to stay.

use std::{
    io, thread,
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{PROBE_PATIENCE, Stage};
use crate::{
    client::Client,
    history::{Event, Fault, FaultKind, FaultStatus, Outcome, Seen},
    links::{Heal, Links},
    workload::Workload,
};

/// How long the follower is cut off.
const CUT: Duration = Duration::from_secs(5);

/// How long what was already past the link may take to be applied.
const ON_ITS_WAY: Duration = Duration::from_millis(500);

/// How long the leader is watched after the follower has caught up.
const WATCH: Duration = Duration::from_secs(2);

/// How often everyone is asked who leads.
const ASK_EVERY: Duration = Duration::from_millis(100);

/// How long the returned follower may take to catch up; longer is a finding.
const CATCHES_UP_WITHIN: Duration = Duration::from_secs(20);

/// Each client pauses up to so long: ten clusters share a machine, and what counts is who leads.
const PAUSE_MS_MAX: u64 = 200;

/// What all nodes said, one after another.
struct Said {
    /// How far each node's state has come in the log; none: it did not answer.
    applied: Vec<Option<u64>>,
}

pub(super) fn run(mut stage: Stage, clients: usize, seed: u64, rounds: usize) -> io::Result<Vec<Event>> {
    let mut rng = StdRng::seed_from_u64(seed);
    let all = stage.processes.founders();
    let links = stage.links()?;
    let serves = stage.form(|pids| {
        for (node, pid) in pids.into_iter().enumerate() {
            links.set_process(node, pid);
        }
    })?;
    if !serves {
        return stage.finish();
    }
    let nodes = stage.processes.admin();
    let workload = Workload::start(clients, PAUSE_MS_MAX, &nodes, &stage.recorder, seed);
    for round in 0..rounds {
        let Some(leader) = stage.leader() else { break };
        let cut = (leader + rng.random_range(1..all.len())) % all.len();
        let heal = if rng.random() { Heal::Resume } else { Heal::Reset };
        let caught_up = self::round(&mut stage, &links, leader, cut, heal);
        let unattributed = links.unattributed();
        stage.progress(&format!("round {}/{rounds} ({unattributed} connections of nobody)", round + 1));
        if !caught_up {
            break;
        }
    }
    let whole = workload.stop();
    let events = stage.finish();
    if whole { events } else { Err(io::Error::other("a client of the harness failed")) }
}

/// One cut; false: the follower never caught up.
fn round(stage: &mut Stage, links: &Links, leader: usize, cut: usize, heal: Heal) -> bool {
    let mut client = stage.client("observer", PROBE_PATIENCE);
    let fault = |kind, status, note: String| Fault {
        kind,
        nodes: vec![stage.processes.name(cut).to_owned()],
        status,
        note,
    };
    links.cut(cut);
    stage.recorder.fault(fault(FaultKind::Cut, FaultStatus::Installed, String::new()));
    let healed_at = Instant::now() + CUT;
    // What was on its way when the link was cut may still arrive; from then on, nothing may.
    thread::sleep(ON_ITS_WAY);
    let mut said = ask(&mut client, stage.processes.len());
    let at_first = said.applied[cut];
    while Instant::now() < healed_at {
        thread::sleep(ASK_EVERY);
        said = ask(&mut client, stage.processes.len());
    }
    let (mine, theirs) = (said.applied[cut], said.applied[leader]);
    let held = mine.is_some() && mine == at_first && mine < theirs;
    let status = if held { FaultStatus::Installed } else { FaultStatus::Indeterminate };
    links.heal(cut, heal);
    let note = format!("{heal:?}; it stood at {at_first:?}, then at {mine:?}, the leader at {theirs:?}");
    stage.recorder.fault(fault(FaultKind::Heal, status, note));

    let deadline = Instant::now() + CATCHES_UP_WITHIN;
    while said.applied[cut] < theirs {
        if Instant::now() > deadline {
            let problem = format!("it did not catch up within {CATCHES_UP_WITHIN:?} of the heal");
            stage.recorder.finding(stage.processes.name(cut), problem, stage.processes.log_tail(cut));
            return false;
        }
        thread::sleep(ASK_EVERY);
        said = ask(&mut client, stage.processes.len());
    }
    let watched = Instant::now() + WATCH;
    while Instant::now() < watched {
        thread::sleep(ASK_EVERY);
        ask(&mut client, stage.processes.len());
    }
    stage.recorder.fault(fault(FaultKind::Settled, FaultStatus::Installed, String::new()));
    true
}

fn ask(client: &mut Client, nodes: usize) -> Said {
    let applied = (0..nodes)
        .map(|node| match client.status(node) {
            Outcome::Ok { seen: Seen::Leader { applied, .. } } => Some(applied),
            _ => None,
        })
        .collect();
    Said { applied }
}
