//! Instances expire once, at one index on every node, and never early.

use std::time::{Duration, Instant};

use gogate_cluster::{
    Changes, Cluster, ProposeError,
    state::{ChangeKind, Command, Heartbeat, Outcome, Registration},
};

use crate::harness::{TIMEOUT, eventually, has, leader, places, registration, shutdown_all, start_all};

const TTL: Duration = Duration::from_millis(1500);

/// The index and the time of the expiry that comes next.
async fn expired(changes: &mut Changes) -> (u64, Instant) {
    loop {
        let next = tokio::time::timeout(TIMEOUT, changes.next()).await.expect("it expires");
        for change in next.expect("the node runs").iter() {
            if matches!(change.kind, ChangeKind::Expired(_)) {
                return (change.index, Instant::now());
            }
        }
    }
}

async fn register_mortal(node: &Cluster) -> Heartbeat {
    register_for(node, TTL).await
}

async fn register_for(node: &Cluster, ttl: Duration) -> Heartbeat {
    let mut registration = registration("mortal");
    registration.ttl_ms = u64::try_from(ttl.as_millis()).unwrap();
    match node.propose(Command::Register(registration), TIMEOUT).await {
        Ok(Outcome::Registered { instance, .. }) => {
            Heartbeat { id: instance.id.clone(), epoch: instance.epoch, age_ms: 0 }
        }
        other => panic!("{other:?}"),
    }
}

/// The places of those that are not there, once the leader was sure in time, on a busy machine.
async fn unknown(node: &Cluster, beats: &[Heartbeat]) -> Vec<usize> {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match node.forward_heartbeats(beats.to_vec()).await {
            Ok(unknown) => return unknown,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_instance_expires_once_everywhere_and_not_early() {
    let places = places(3);
    let mut nodes = start_all(&places).await;
    let leads = leader(&nodes).await;
    let beat = register_mortal(&nodes[(leads + 1) % 3]).await;
    let mut last_beat = Instant::now();
    let mut term = nodes[0].status().term;
    // Through a follower, past its first life, and past the life of a leader.
    for round in 0..10 {
        if round == 4 {
            nodes.remove(leads).shutdown().await;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
        let sent = Instant::now();
        if let Ok(unknown) = nodes[0].forward_heartbeats(vec![beat.clone()]).await {
            assert_eq!(unknown, [0; 0], "it lives");
            last_beat = sent;
            term = nodes[0].status().term;
        }
    }
    assert!(has(&nodes[0], "mortal"), "it was heard from");
    let mut changes: Vec<_> = nodes.iter().map(Cluster::changes).collect();
    let mut seen = Vec::new();
    for changes in &mut changes {
        seen.push(expired(changes).await);
    }
    assert_eq!(seen[0].0, seen[1].0, "at one index");
    let lived = seen.iter().map(|(_, at)| at.duration_since(last_beat)).min().unwrap();
    println!("expired {lived:?} after the last beat that was taken, with a life of {TTL:?}");
    assert!(lived >= TTL, "{lived:?}");
    // The promise, and a second for a machine that is busy with other tests.
    let elections = u32::try_from(nodes[0].status().term - term).unwrap();
    let latest = TTL + Duration::from_millis(1500) + Duration::from_secs(2) * elections;
    assert!(lived <= latest + Duration::from_secs(1), "{lived:?} with {elections} elections");
    eventually("it is gone", || (!has(&nodes[0], "mortal")).then_some(())).await;
    shutdown_all(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_heartbeats_than_one_entry_holds_stop_no_tick() {
    let places = places(1);
    let node = places[0].start(&places).await.unwrap();
    let mortal = register_mortal(&node).await;
    let mut changes = node.changes();
    // Above what one write may hold; nobody knows these ids, and a beat of theirs renews nothing.
    let unknown = |at| Heartbeat { id: format!("{at:0>250}").into(), epoch: 1, age_ms: 0 };
    let mut beats: Vec<_> = (0..20_000).map(unknown).collect();
    // The last of them all, in the last of the ticks.
    beats.push(mortal);
    let heard = Instant::now();
    node.forward_heartbeats(beats).await.unwrap();
    let lived = expired(&mut changes).await.1.duration_since(heard);
    assert!(lived >= TTL, "{lived:?}");
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_beat_is_taken_of_the_life_that_is_there_only() {
    let places = places(3);
    let nodes = start_all(&places).await;
    let leads = leader(&nodes).await;
    let mortal = register_for(&nodes[(leads + 1) % 3], Duration::from_secs(60)).await;
    let another = Heartbeat { id: "another".into(), ..mortal.clone() };
    let before = Heartbeat { epoch: mortal.epoch - 1, ..mortal.clone() };
    for node in [leads, (leads + 1) % 3] {
        let beats = [mortal.clone(), another.clone(), before.clone(), mortal.clone()];
        assert_eq!(unknown(&nodes[node], &beats).await, [1, 2]);
    }
    let gone = nodes[leads].propose(Command::Deregister { id: mortal.id.clone() }, TIMEOUT).await;
    assert!(matches!(gone, Ok(Outcome::Deregistered { .. })), "{gone:?}");
    // Whatever this node has heard of it.
    assert_eq!(unknown(&nodes[(leads + 2) % 3], &[mortal]).await, [0]);
    shutdown_all(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_nobody_follows_takes_no_beat() {
    let places = places(3);
    let mut nodes = start_all(&places).await;
    let alone = nodes.remove(leader(&nodes).await);
    let mortal = register_for(&alone, Duration::from_secs(60)).await;
    shutdown_all(nodes).await;
    // At first it does not know: it leads by its own account, and has the instance.
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match alone.forward_heartbeats(vec![mortal.clone()]).await {
            Ok(unknown) => panic!("it was taken but for {unknown:?}"),
            // It knows, so nothing is left open.
            Err(ProposeError::NotDone { .. }) => break,
            Err(ProposeError::Unknown { .. }) => assert!(Instant::now() < deadline, "it never knew"),
        }
    }
    alone.shutdown().await;
}

/// How much longer the mortal one lives on than the silent one, as a node knows it.
fn ahead_ms(node: &Cluster) -> u64 {
    let (mortal, silent) = node.read(|state| (state.expires_in_ms("mortal"), state.expires_in_ms("silent")));
    mortal.zip(silent).map_or(0, |(mortal, silent)| mortal.saturating_sub(silent))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_beat_that_was_taken_outlives_the_leader_wherever_it_arrived() {
    const LIFE: Duration = Duration::from_secs(60);
    const SPENT_MS: u64 = 1_500;
    for arrives in 0..2 {
        let places = places(3);
        let mut nodes = start_all(&places).await;
        let leads = leader(&nodes).await;
        let beat = register_for(&nodes[leads], LIFE).await;
        let silent = Registration { ttl_ms: 60_000, ..registration("silent") };
        nodes[leads].propose(Command::Register(silent), TIMEOUT).await.unwrap();
        eventually("some of its life is over everywhere", || {
            let over = |node: &Cluster| {
                node.read(|state| state.expires_in_ms("silent")).is_some_and(|left| left <= 60_000 - SPENT_MS)
            };
            nodes.iter().all(over).then_some(())
        })
        .await;
        // At the leader, or at another node; before the next tick, but for one time in a hundred.
        assert_eq!(unknown(&nodes[(leads + arrives) % 3], &[beat]).await, [0; 0]);
        nodes.remove(leads).shutdown().await;
        eventually("the next leader knows of it", || {
            nodes.iter().all(|node| ahead_ms(node) > SPENT_MS / 2).then_some(())
        })
        .await;
        shutdown_all(nodes).await;
    }
}
