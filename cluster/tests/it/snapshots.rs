//! A node that was away for too long gets a snapshot.

use std::{collections::BTreeMap, path::Path, time::Duration};

use gogate_cluster::{
    Cluster, ClusterConfig,
    state::{Command, State},
    storage::{DataDir, LogStore},
};

use crate::harness::{Place, TIMEOUT, eventually, has, leader, places, registration, shutdown_all};

fn with_small_threshold(place: &Place, peers: &[Place]) -> ClusterConfig {
    let mut config = place.config(peers);
    config.timers.snapshot_entries = Some(40);
    config
}

/// One entry each: they are proposed one after the other.
async fn register_large(node: &Cluster, id: &str) {
    let mut registration = registration(id);
    // Incompressible enough, and large enough for a snapshot of several pieces.
    registration.metadata = BTreeMap::from([("pad".to_owned(), id.repeat(32 << 10))]);
    node.propose(Command::Register(registration), TIMEOUT).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_away_gets_a_snapshot_in_pieces() {
    let places = places(3);
    let started = places.iter().map(|place| Cluster::start(with_small_threshold(place, &places)));
    let mut nodes: Vec<_> =
        futures_util::future::join_all(started).await.into_iter().map(Result::unwrap).collect();
    let leads = leader(&nodes).await;
    let away = (leads + 1) % 3;
    let name = nodes[away].status().members.iter().find(|member| member.id == nodes[away].node_id()).cloned();
    let place = places.iter().find(|place| place.name == name.as_ref().unwrap().name).unwrap();
    nodes.remove(away).shutdown().await;
    for at in 0..150 {
        register_large(&nodes[0], &format!("{at:03}")).await;
    }
    let snapshots = place.data_dir().join("snapshots");
    assert_eq!(std::fs::read_dir(&snapshots).unwrap().count(), 0, "it had none");
    let back = Cluster::start(with_small_threshold(place, &places)).await.unwrap();
    eventually("it holds the state", || has(&back, "149").then_some(())).await;
    let installed = std::fs::read_dir(&snapshots).unwrap().next().unwrap().unwrap().metadata().unwrap();
    assert!(installed.len() > 2 << 20, "{} bytes are one piece", installed.len());

    nodes[0].linearizable(TIMEOUT).await.unwrap();
    back.linearizable(TIMEOUT).await.unwrap();
    eventually("both hold the same", || {
        let equal = nodes[0].read(State::clone) == back.read(State::clone);
        equal.then_some(())
    })
    .await;
    // Its own log begins behind the snapshot now: it starts from both.
    back.shutdown().await;
    let back = Cluster::start(with_small_threshold(place, &places)).await.unwrap();
    assert!(has(&back, "000") && has(&back, "149"));
    back.linearizable(Duration::from_secs(5)).await.unwrap();
    back.shutdown().await;
    shutdown_all(nodes).await;
}

fn folder_bytes(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries
        .map(|entry| {
            if entry.path().is_dir() { folder_bytes(&entry.path()) } else { entry.metadata().unwrap().len() }
        })
        .sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_grows_with_what_there_is_and_not_with_what_was_written() {
    const ROUND: usize = 600;
    let places = places(1);
    let node = Cluster::start(with_small_threshold(&places[0], &places)).await.unwrap();
    let mut sizes = Vec::new();
    for _ in 0..6 {
        for at in 0..ROUND {
            let mut registration = registration(&format!("i{}", at % 10));
            registration.metadata = BTreeMap::from([("pad".to_owned(), format!("{at:03}").repeat(300))]);
            node.propose(Command::Register(registration), TIMEOUT).await.unwrap();
        }
        sizes.push(folder_bytes(&places[0].data_dir()));
    }
    let applied = node.status().applied;
    let written = node.snapshot_all(TIMEOUT).await;
    assert!(matches!(written[..], [(_, Some(index))] if index >= applied), "{written:?}");
    node.shutdown().await;
    println!("{sizes:?} bytes after each {ROUND} entries");
    let dir = DataDir::open_existing(&places[0].data_dir()).unwrap();
    let entries = dir.log.indexes();
    // Those that are kept behind a snapshot, and those until the next one.
    assert!(entries.end - entries.start <= 2 * 40 + 10, "{entries:?}");
    assert!(sizes[5] < 2 * sizes[1], "{sizes:?}");
}
