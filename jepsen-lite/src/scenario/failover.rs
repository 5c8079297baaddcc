//! The leader is killed again and again; a retrying client on each survivor waits for its first write.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::Stage;
use crate::{
    client::{Client, Instance, Patience},
    history::{Event, Outcome},
    nemesis,
};

/// A try is given up after this, and the next one begins.
const TRY: Patience = Patience { asked: None, own: Duration::from_millis(250) };

/// Between a refusal and the next try.
const PAUSE: Duration = Duration::from_millis(5);

/// How long the cluster is left in peace before the next kill.
const PEACE: Duration = Duration::from_secs(1);

/// The clients have been writing for up to so long when it happens.
const WRITING_MS_MAX: u64 = 500;

pub(super) fn run(mut stage: Stage, seed: u64, rounds: usize) -> io::Result<Vec<Event>> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut stands = stage.form(|_| ())?;
    for round in 0..rounds {
        if !stands {
            break;
        }
        thread::sleep(PEACE);
        let Some(leader) = stage.leader() else { break };
        let writing = Duration::from_millis(rng.random_range(0..=WRITING_MS_MAX));
        stands = self::round(&mut stage, round, leader, writing)?;
        stage.progress(&format!("round {}/{rounds}", round + 1));
    }
    stage.finish()
}

/// One kill of the leader; false: the cluster did not come back from it.
fn round(stage: &mut Stage, round: usize, leader: usize, writing: Duration) -> io::Result<bool> {
    let killed = Arc::new(AtomicBool::new(false));
    let survivors = stage.all().into_iter().filter(|node| *node != leader);
    let writers: Vec<_> = survivors
        .map(|node| {
            let client = stage.client(&format!("w{node}-{round}"), TRY);
            let killed = killed.clone();
            (node, thread::spawn(move || write(client, node, &killed)))
        })
        .collect();
    thread::sleep(writing);
    nemesis::kill(&mut stage.processes, &stage.recorder, &[leader], "the leader")?;
    killed.store(true, Ordering::Relaxed);
    for (node, writer) in writers {
        let written = writer.join().map_err(|_| io::Error::other("a client of the harness failed"))?;
        if !written {
            let problem =
                format!("no write was acknowledged within {:?} of the kill", nemesis::SERVES_WITHIN);
            let log = stage.processes.log_tail(node);
            stage.recorder.finding(stage.processes.name(node), problem, log);
        }
    }
    nemesis::start(&mut stage.processes, &stage.recorder, &[leader])?;
    Ok(stage.serve(&[leader]))
}

/// Writes without pause until one that began after the kill is acknowledged; false: that never came.
fn write(mut client: Client, node: usize, killed: &AtomicBool) -> bool {
    let mut deadline = None;
    for number in 0_u64.. {
        let begins_after = killed.load(Ordering::Relaxed);
        let id = format!("{}-{number}", client.name());
        let instance = Instance {
            payload: id.clone(),
            id,
            name: "failover".into(),
            address: "127.0.0.1:9000".into(),
            ttl_ms: 0,
        };
        let outcome = client.register(node, &instance);
        if begins_after {
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + nemesis::SERVES_WITHIN);
            match outcome {
                Outcome::Ok { .. } => return true,
                _ if Instant::now() > deadline => return false,
                _ => {}
            }
        }
        if let Outcome::Fail { .. } = outcome {
            thread::sleep(PAUSE);
        }
    }
    false
}
