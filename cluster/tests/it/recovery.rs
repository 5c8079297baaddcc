//! A majority is gone for good: one disk makes a new group.

use gogate_cluster::{
    Cluster,
    state::Command,
    storage::{DataDir, LogStore},
};

use crate::harness::{TIMEOUT, eventually, has, leader, places, register, shutdown_all, start_all};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_disk_leads_on_under_another_uuid_and_lets_new_nodes_in() {
    let places = places(3);
    let nodes = start_all(&places).await;
    leader(&nodes).await;
    for at in 0..20 {
        register(&nodes[at % 3], &format!("i{at}")).await;
    }
    for node in &nodes {
        node.linearizable(TIMEOUT).await.unwrap();
    }
    let uuid = nodes[0].status().cluster_uuid;
    let id = nodes[0].node_id();
    let folder = places[0].data_dir();
    let in_use = gogate_cluster::survivor(&folder).unwrap_err().to_string();
    assert!(in_use.contains("another gogate is using this folder"), "{in_use}");
    shutdown_all(nodes).await;

    let nobody = gogate_cluster::survivor(&folder.join("nowhere")).unwrap_err().to_string();
    assert!(nobody.contains("no node has its data here") && !folder.join("nowhere").exists(), "{nobody}");
    let survivor = gogate_cluster::survivor(&folder).unwrap();
    assert_eq!((survivor.node, survivor.instances, survivor.others.len()), (id, 20, 2));
    assert_eq!(survivor.cluster_uuid, uuid);
    let recovered = gogate_cluster::recover(&folder).unwrap();
    assert_ne!(recovered.cluster_uuid, uuid);
    let again = gogate_cluster::recover(&folder).unwrap_err().to_string();
    assert!(again.contains("the only member"), "{again}");

    // One of the old ones is still there, with its disk: neither speaks to the other.
    let old = places[1].start(&places).await.unwrap();
    let node = places[0].start(&places).await.unwrap();
    register(&node, "after").await;
    assert!((0..20).all(|at| has(&node, &format!("i{at}"))));
    assert_eq!(node.status().members.len(), 1);
    assert_eq!(node.status().cluster_uuid, recovered.cluster_uuid);
    assert!(!has(&old, "after"));
    let write =
        old.propose(Command::Deregister { id: "i1".into() }, std::time::Duration::from_millis(300)).await;
    assert!(write.is_err(), "{write:?}");
    old.shutdown().await;

    // With empty disks the others come back, as new nodes.
    places[1].wipe();
    places[2].wipe();
    let (second, third) = tokio::join!(places[1].start(&places), places[2].start(&places));
    let nodes = vec![node, second.unwrap(), third.unwrap()];
    let mut ids: Vec<_> = nodes[1..].iter().map(Cluster::node_id).collect();
    ids.sort_unstable();
    assert_eq!(ids, [4, 5]);
    eventually("all vote and have all", || {
        let voters = nodes[0].status().members.iter().filter(|member| member.voter).count();
        let all = nodes.iter().all(|node| has(node, "i0") && has(node, "after"));
        (voters == 3 && all).then_some(())
    })
    .await;
    for node in &nodes {
        node.linearizable(TIMEOUT).await.unwrap();
    }
    let states: Vec<_> = nodes.iter().map(|node| node.read(|state| state.members().clone())).collect();
    assert_eq!(states[0], states[1]);
    assert_eq!(states[0], states[2]);
    assert_ne!(nodes[0].transfer_leader(None, TIMEOUT).await.unwrap(), id);
    register(&nodes[1], "later").await;
    shutdown_all(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recovery_that_was_cut_short_is_finished_by_the_same_call() {
    let places = places(3);
    let nodes = start_all(&places).await;
    leader(&nodes).await;
    register(&nodes[0], "a").await;
    nodes[2].linearizable(TIMEOUT).await.unwrap();
    shutdown_all(nodes).await;
    let folder = places[2].data_dir();
    // It died after its first step.
    let mut dir = DataDir::open_existing(&folder).unwrap();
    let mut identity = dir.identity.clone();
    identity.cluster_uuid = Some("5eed".to_owned());
    dir.save_identity(identity).unwrap();
    drop(dir);
    let old = places[0].start(&places).await.unwrap();
    let alone = places[2].start(&places).await.unwrap();
    assert!(has(&alone, "a"), "it shows what it knows");
    assert!(alone.linearizable(std::time::Duration::from_millis(800)).await.is_err(), "and leads nothing");
    shutdown_all(vec![alone, old]).await;

    gogate_cluster::recover(&folder).unwrap();
    let dir = DataDir::open_existing(&folder).unwrap();
    assert!(dir.log.indexes().is_empty(), "its snapshot covers the log");
    drop(dir);
    let node = places[2].start(&places).await.unwrap();
    register(&node, "b").await;
    assert!(has(&node, "a"));
    node.shutdown().await;
}
