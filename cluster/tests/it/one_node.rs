//! A cluster of one: everything but the peers.

use std::time::Duration;

use gogate_cluster::{
    StartError,
    state::{ChangeKind, Command, Outcome, Refusal},
};

use crate::harness::{TIMEOUT, has, places, register};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_of_one_agrees_with_itself_and_remembers() {
    let places = places(1);
    let node = places[0].start(&places).await.unwrap();
    assert_eq!(node.node_id(), 1);
    let mut changes = node.changes();
    let instance = register(&node, "a").await;
    let change = changes.next().await.unwrap();
    assert_eq!(change[0].index, instance.epoch);
    assert!(matches!(&change[0].kind, ChangeKind::Registered(registered) if *registered == instance));
    let refused = node.propose(Command::Deregister { id: "b".into() }, TIMEOUT).await;
    assert_eq!(refused, Ok(Outcome::Refused(Refusal::UnknownInstance { id: "b".into() })));
    node.linearizable(TIMEOUT).await.unwrap();
    node.shutdown().await;
    assert!(changes.next().await.is_none());

    let again = places[0].start(&places).await.unwrap();
    assert!(has(&again, "a"), "its last known state is readable at once");
    register(&again, "b").await;
    again.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_in_use_or_of_another_cluster_is_refused() {
    let places = places(1);
    let node = places[0].start(&places).await.unwrap();
    let elsewhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let config = places[0].config_on(elsewhere, &places);
    match gogate_cluster::Cluster::start(config).await {
        Err(StartError::DataDir { problem, .. }) => assert!(problem.contains("another gogate"), "{problem}"),
        other => panic!("the folder is in use: {:?}", other.err()),
    }
    node.shutdown().await;
    let mut config = places[0].config(&places);
    config.cluster_name = "other".to_owned();
    match gogate_cluster::Cluster::start(config).await {
        Err(StartError::DataDir { problem, .. }) => assert!(problem.contains("demo"), "{problem}"),
        other => panic!("the folder is another cluster's: {:?}", other.err()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_writers_share_entries() {
    let places = places(1);
    let node = places[0].start(&places).await.unwrap();
    register(&node, "first").await;
    let before = node.status().applied;
    let writers = (0..500).map(|writer| {
        let node = node.clone();
        tokio::spawn(async move { register(&node, &format!("i{writer}")).await })
    });
    let instances = futures_util::future::join_all(writers).await;
    let mut epochs: Vec<_> = instances.iter().map(|instance| instance.as_ref().unwrap().epoch).collect();
    epochs.sort_unstable();
    epochs.dedup();
    assert_eq!(epochs.len(), 500, "each has its own index");
    let entries = node.status().applied - before;
    assert!(entries < 250, "{entries} entries for 500 writes");
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proposal_without_time_is_not_done_or_unknown() {
    let places = places(1);
    let node = places[0].start(&places).await.unwrap();
    let answer = node.propose(Command::Deregister { id: "a".into() }, Duration::ZERO).await;
    assert!(answer.is_err(), "{answer:?}");
    node.shutdown().await;
}
