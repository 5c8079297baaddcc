//! Upgrades: which format a cluster writes while its nodes understand different ones. A node that understands less
//! than this build stands for an older one.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use gogate_cluster::{
    Cluster, StartError,
    state::{FORMAT, OLDEST, State},
};

use crate::harness::{Place, TIMEOUT, eventually, has, leader, places, register, shutdown_all, start_all};

/// Longer than the leader takes between two looks at what the members understand.
const SEVERAL_LOOKS: Duration = Duration::from_millis(2500);

fn format(node: &Cluster) -> u8 {
    node.read(State::format)
}

async fn eventually_writes(nodes: &[Cluster], format_wanted: u8) {
    eventually("all nodes have the format", || {
        nodes.iter().all(|node| format(node) == format_wanted).then_some(())
    })
    .await;
}

async fn start_in(place: &Place, peers: &[Place], format: u8, learner: bool) -> Result<Cluster, StartError> {
    let mut config = place.config(peers);
    (config.format, config.learner) = (format, learner);
    Cluster::start(config).await
}

/// Every file of a folder, with its content.
fn content(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => {
                    files.insert(path.display().to_string(), fs::read(&path).unwrap());
                }
            }
        }
    }
    files
}

/// Three nodes of which the last one is of an older build.
async fn start_mixed(places: &[Place]) -> Vec<Cluster> {
    let [first, second, third] = places else { panic!("three places") };
    let started =
        tokio::join!(first.start(places), second.start(places), start_in(third, places, OLDEST, false));
    let nodes = vec![started.0.unwrap(), started.1.unwrap(), started.2.unwrap()];
    leader(&nodes).await;
    nodes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_cluster_comes_to_the_newest_format_by_itself() {
    let places = places(3);
    let nodes = start_all(&places).await;
    eventually_writes(&nodes, FORMAT).await;
    assert_eq!(nodes[0].status().format, FORMAT);
    shutdown_all(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_format_rises_with_the_last_node_that_is_updated_and_until_then_any_may_go_back() {
    let places = places(3);
    let mut nodes = start_mixed(&places).await;
    register(&nodes[2], "before").await;
    // Whoever leads: the format is what all of them understand.
    for to in [3, 1] {
        nodes[0].transfer_leader(Some(to), TIMEOUT).await.unwrap();
        tokio::time::sleep(SEVERAL_LOOKS).await;
        assert!(nodes.iter().all(|node| format(node) == OLDEST));
    }
    let reports = nodes[0].member_reports(TIMEOUT).await;
    let understood = reports.into_iter().map(|(member, report)| (member.name, report.unwrap().format));
    let expected =
        [("n1", FORMAT), ("n2", FORMAT), ("n3", OLDEST)].map(|(name, format)| (name.to_owned(), format));
    assert_eq!(understood.collect::<BTreeMap<_, _>>(), expected.into());
    // One that was updated already goes back.
    nodes.remove(0).shutdown().await;
    nodes.insert(0, start_in(&places[0], &places, OLDEST, false).await.unwrap());
    register(&nodes[0], "back").await;
    // All are updated, one after the other.
    for at in [0, 2] {
        assert_eq!(format(&nodes[at]), OLDEST);
        nodes.remove(at).shutdown().await;
        nodes.insert(at, places[at].start(&places).await.unwrap());
    }
    eventually_writes(&nodes, FORMAT).await;
    register(&nodes[1], "after").await;
    for node in &nodes {
        node.linearizable(TIMEOUT).await.unwrap();
        assert!(["before", "back", "after"].iter().all(|id| has(node, id)));
    }
    shutdown_all(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_build_neither_starts_on_newer_data_nor_changes_it() {
    let places = places(3);
    let mut nodes = start_all(&places).await;
    eventually_writes(&nodes, FORMAT).await;
    register(&nodes[0], "a").await;
    let snapshots = nodes[0].snapshot_all(TIMEOUT).await;
    assert!(snapshots.iter().all(|(_, index)| index.is_some()), "{snapshots:?}");
    nodes.remove(0).shutdown().await;
    let before = content(&places[0].data_dir());
    let refused = start_in(&places[0], &places, OLDEST, false).await.err().unwrap();
    let said = refused.to_string();
    let folder = places[0].data_dir().display().to_string();
    for part in [folder.as_str(), &format!("format {FORMAT}"), "install gogate", "nothing was changed"] {
        assert!(said.contains(part), "{said}");
    }
    assert!(content(&places[0].data_dir()) == before, "the folder was changed");
    // And with the build that it is for, it is as if nothing had happened.
    let back = places[0].start(&places).await.unwrap();
    assert!(has(&back, "a"));
    nodes.push(back);
    shutdown_all(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_understand_the_clusters_format_is_not_let_in() {
    let all = places(4);
    let (founders, other) = all.split_at(3);
    let nodes = start_all(founders).await;
    eventually_writes(&nodes, FORMAT).await;
    for learner in [false, true] {
        let refused = start_in(&other[0], founders, OLDEST, learner).await.err().unwrap().to_string();
        assert!(refused.contains(&format!("the cluster writes format {FORMAT}")), "{refused}");
        assert!(refused.contains("install the gogate that the other nodes run"), "{refused}");
        other[0].wipe();
    }
    assert_eq!(nodes[0].status().members.len(), 3);
    shutdown_all(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_counts_and_so_does_a_member_that_is_away() {
    let all = places(4);
    let (founders, others) = all.split_at(3);
    // An older build founds with the others, so that the cluster is one that it can be let into.
    let mut nodes = start_mixed(founders).await;
    let learner = start_in(&others[0], founders, OLDEST, true).await.unwrap();
    nodes.remove(2).shutdown().await;
    nodes.push(founders[2].start(founders).await.unwrap());
    let stays = async |nodes: &[Cluster]| {
        let until = Instant::now() + SEVERAL_LOOKS;
        while Instant::now() < until {
            assert!(nodes.iter().all(|node| format(node) == OLDEST));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    stays(&nodes).await;
    let id = learner.node_id();
    learner.shutdown().await;
    stays(&nodes).await;
    assert_eq!(nodes[0].remove_member(id, TIMEOUT).await, Ok(id));
    eventually_writes(&nodes, FORMAT).await;
    shutdown_all(nodes).await;
}
