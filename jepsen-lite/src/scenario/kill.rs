//! kill -9 at random moments while clients write through all nodes.
//!
//! Rounds come in pairs: a node that runs is killed, started, and killed again while it starts; now and then
//! it is all nodes at once. At the very end all nodes are killed and started once more: what is read then
//! comes from the disks.

use std::{io, thread};

use rand::{SeedableRng, rngs::StdRng};

use super::Stage;
use crate::{
    history::Event,
    nemesis::{self, Kill},
    workload::Workload,
};

/// Each client pauses up to so long: enough that 200 rounds have some 100,000 writes.
const PAUSE_MS_MAX: u64 = 20;

/// A progress line comes every so many rounds.
const PROGRESS_ROUNDS: usize = 10;

pub(super) fn run(mut stage: Stage, clients: usize, seed: u64, rounds: usize) -> io::Result<Vec<Event>> {
    let all = stage.processes.founders();
    if !stage.form(|_| ())? {
        return stage.finish();
    }
    let nodes = stage.processes.admin();
    let workload = Workload::start(clients, PAUSE_MS_MAX, &nodes, &stage.recorder, seed);
    let plan = nemesis::plan(rounds, all.len(), &mut StdRng::seed_from_u64(seed));
    let mut stands = true;
    for (round, kill) in plan.iter().enumerate() {
        let starts_next = plan.get(round + 1).is_some_and(|next| next.starting);
        stands = self::round(&mut stage, kill, starts_next)?;
        if (round + 1) % PROGRESS_ROUNDS == 0 || !stands {
            stage.progress(&format!("round {}/{rounds}", round + 1));
        }
        if !stands {
            break;
        }
    }
    if !workload.stop() {
        return Err(io::Error::other("a client of the harness failed"));
    }
    if stands {
        nemesis::kill(&mut stage.processes, &stage.recorder, &all, "all at once, at the end")?;
        nemesis::start(&mut stage.processes, &stage.recorder, &all)?;
        stage.serve(&all);
    }
    stage.finish()
}

/// One kill. Unless the next one is aimed at the start of these nodes, waits until they serve; false: they
/// do not.
fn round(stage: &mut Stage, kill: &Kill, starts_next: bool) -> io::Result<bool> {
    thread::sleep(kill.after);
    let note = match (kill.starting, kill.nodes.len()) {
        (true, _) => format!("{} ms after its start", kill.after.as_millis()),
        (false, 1) => "while it ran".to_owned(),
        (false, _) => "all at once".to_owned(),
    };
    nemesis::kill(&mut stage.processes, &stage.recorder, &kill.nodes, &note)?;
    nemesis::start(&mut stage.processes, &stage.recorder, &kill.nodes)?;
    Ok(starts_next || stage.serve(&kill.nodes))
}
