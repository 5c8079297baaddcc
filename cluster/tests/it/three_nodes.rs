//! Three nodes: forming, forwarding, failing over, coming back.

use std::time::{Duration, Instant};

use gogate_cluster::Cluster;

use crate::harness::{TIMEOUT, eventually, has, leader, places, register, shutdown_all, start_all};

fn voters(node: &Cluster) -> Vec<u64> {
    node.status().members.iter().filter(|member| member.voter).map(|member| member.id).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_at_once_they_form_one_cluster() {
    let places = places(3);
    let nodes = start_all(&places).await;
    leader(&nodes).await;
    let mut ids: Vec<_> = nodes.iter().map(Cluster::node_id).collect();
    ids.sort_unstable();
    assert_eq!(ids, [1, 2, 3]);
    let uuid = nodes[0].status().cluster_uuid;
    assert!(nodes.iter().all(|node| node.status().cluster_uuid == uuid));
    for (at, node) in nodes.iter().enumerate() {
        register(node, &format!("i{at}")).await;
    }
    for node in &nodes {
        node.linearizable(TIMEOUT).await.unwrap();
        assert!((0..3).all(|at| has(node, &format!("i{at}"))));
        assert_eq!(voters(node), [1, 2, 3]);
    }
    shutdown_all(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_go_on_when_the_leader_stops() {
    let places = places(3);
    let mut nodes = start_all(&places).await;
    let stopped = leader(&nodes).await;
    register(&nodes[0], "before").await;
    let old = nodes.remove(stopped);
    old.shutdown().await;
    let begun = Instant::now();
    register(&nodes[0], "after").await;
    let outage = begun.elapsed();
    println!("writes resumed after {outage:?}");
    assert!(outage < Duration::from_secs(2), "{outage:?}");
    nodes.push(places[stopped].start(&places).await.unwrap());
    eventually("the stopped node has what it missed", || has(&nodes[2], "after").then_some(())).await;
    shutdown_all(nodes).await;
}
