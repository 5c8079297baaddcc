//! Instances expire once, at one index on every node, and never early.

use std::time::{Duration, Instant};

use gogate_cluster::{
    Changes, Cluster,
    state::{ChangeKind, Command, Heartbeat, Outcome},
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
    let mut registration = registration("mortal");
    registration.ttl_ms = u64::try_from(TTL.as_millis()).unwrap();
    match node.propose(Command::Register(registration), TIMEOUT).await {
        Ok(Outcome::Registered { instance, .. }) => {
            Heartbeat { id: instance.id.clone(), epoch: instance.epoch, age_ms: 0 }
        }
        other => panic!("{other:?}"),
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
        if nodes[0].forward_heartbeats(vec![beat.clone()]).await.is_ok() {
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
