//! A node that was away for too long gets a snapshot.

use std::{collections::BTreeMap, time::Duration};

use gogate_cluster::{
    Cluster, ClusterConfig,
    state::{Command, State},
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
