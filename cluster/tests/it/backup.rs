//! Backups, and what comes of them in another cluster.

use std::collections::BTreeMap;

use gogate_cluster::{
    Backup, Cluster, ManageError,
    state::{ChangeKind, Command, Instance, NewDocument, Outcome, Refusal, RestoreStep},
};

use crate::harness::{
    TIMEOUT, eventually, has, leader, places, register, registration, shutdown_all, start_all,
};

const INSTANCES: usize = 40;

async fn put(node: &Cluster, content: &str) -> u64 {
    let document = NewDocument { expected: None, content: content.into(), by: "a test".to_owned(), at_ms: 7 };
    let staged = node.propose(Command::PutDocument(document), TIMEOUT).await;
    let Ok(Outcome::Staged { version }) = staged else { panic!("{staged:?}") };
    let activated = node.propose(Command::ActivateDocument { version }, TIMEOUT).await;
    assert!(matches!(activated, Ok(Outcome::Documented { .. })), "{activated:?}");
    version
}

/// Instances of 60 KiB each, so that there are several parts, and two versions of a document.
async fn fill(node: &Cluster) {
    for at in 0..INSTANCES {
        let mut registration = registration(&format!("{at:03}"));
        registration.metadata = BTreeMap::from([("pad".to_owned(), format!("{at:03}").repeat(20 << 10))]);
        registration.ttl_ms = if at % 2 == 0 { 0 } else { 600_000 };
        node.propose(Command::Register(registration), TIMEOUT).await.unwrap();
    }
    put(node, "one").await;
    put(node, "two").await;
}

fn contents(node: &Cluster) -> (Vec<Instance>, Vec<(u64, String)>) {
    node.read(|state| {
        let instances = state.registry().iter().map(|instance| Instance::clone(instance)).collect();
        let versions = state.documents().iter().map(|version| (version.version, version.content.to_string()));
        (instances, versions.collect())
    })
}

async fn backup_of(node: &Cluster) -> Backup {
    node.linearizable(TIMEOUT).await.unwrap();
    let file = node.backup(1).encode();
    Backup::decode(&file).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_cluster_has_all_that_the_old_one_had_at_one_index() {
    let old_places = places(1);
    let old = old_places[0].start(&old_places).await.unwrap();
    fill(&old).await;
    let backup = backup_of(&old).await;
    let (instances, versions) = contents(&old);
    assert_eq!((instances.len(), versions.len()), (INSTANCES, 2));
    old.shutdown().await;

    let places = places(3);
    let nodes = start_all(&places).await;
    let follower = &nodes[(leader(&nodes).await + 1) % 3];
    let uuid = follower.status().cluster_uuid;
    let mut changes = follower.changes();
    let index = follower.restore(backup.clone(), false, TIMEOUT).await.unwrap();
    assert!(contents(follower) == (instances, versions));
    assert!(index > backup.index, "whoever watched the old cluster sees it");
    let change = changes.next().await.unwrap();
    assert_eq!(
        (change[0].index, &change[0].kind),
        (index, &ChangeKind::Reset),
        "one change, and no other before"
    );
    assert_eq!(follower.status().cluster_uuid, uuid);
    assert_eq!(follower.status().members.len(), 3);
    let lives = follower.read(|state| state.expires_in_ms("001")).unwrap();
    assert!(lives > 590_000, "its life begins anew: {lives}");
    // What comes next is newer.
    assert_eq!(put(follower, "three").await, 3);
    assert!(register(follower, "new").await.epoch > index);
    for node in &nodes {
        node.linearizable(TIMEOUT).await.unwrap();
    }
    assert!(nodes.iter().all(|node| contents(node) == contents(follower)));
    shutdown_all(nodes).await;
    // It is in the log like all else.
    let nodes = start_all(&places).await;
    assert!(has(&nodes[0], "000"));
    shutdown_all(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_has_something_is_overwritten_only_when_forced() {
    let places = places(1);
    let node = places[0].start(&places).await.unwrap();
    fill(&node).await;
    let backup = backup_of(&node).await;
    put(&node, "three").await;
    node.propose(Command::Deregister { id: "000".into() }, TIMEOUT).await.unwrap();
    let refused = node.restore(backup.clone(), false, TIMEOUT).await;
    assert!(matches!(&refused, Err(ManageError::Refused(why)) if why.contains("version 3")), "{refused:?}");
    assert!(!has(&node, "000"));
    node.restore(backup, true, TIMEOUT).await.unwrap();
    assert!(has(&node, "000"));
    let (_, versions) = contents(&node);
    let expected = [(1, "one"), (2, "two"), (4, "two")].map(|(number, text)| (number, text.to_owned()));
    assert_eq!(versions, expected, "the number never goes down");
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_that_was_not_finished_shows_nothing_and_ends_with_the_next() {
    let places = places(1);
    let node = places[0].start(&places).await.unwrap();
    let source = register(&node, "a").await;
    node.propose(Command::Deregister { id: "a".into() }, TIMEOUT).await.unwrap();
    let step = |restore, part, step| node.propose(Command::Restore { restore, part, step }, TIMEOUT);
    let instances = || RestoreStep::Instances(vec![Instance::clone(&source)]);
    let finish = RestoreStep::Finish { instances: 1, versions: 0, index: 1 };
    assert_eq!(step(7, 0, RestoreStep::Begin { force: false }).await, Ok(Outcome::Gathered));
    assert_eq!(step(7, 1, instances()).await, Ok(Outcome::Gathered));
    assert_eq!(step(7, 1, instances()).await, Ok(Outcome::Gathered), "a part that is repeated");
    assert!(!has(&node, "a"));
    assert_eq!(step(8, 0, RestoreStep::Begin { force: false }).await, Ok(Outcome::Gathered));
    let lost = Ok(Outcome::Refused(Refusal::RestoreLost));
    assert_eq!(step(7, 2, finish.clone()).await, lost, "another one began");
    assert_eq!(step(8, 2, instances()).await, lost, "a part is missing");
    assert_eq!(step(8, 1, instances()).await, Ok(Outcome::Gathered));
    // Somebody registers meanwhile: that must not be overwritten unasked.
    register(&node, "b").await;
    let refused = step(8, 2, finish.clone()).await;
    assert!(matches!(refused, Ok(Outcome::Refused(Refusal::NotEmpty { .. }))), "{refused:?}");
    assert!(has(&node, "b") && !has(&node, "a"));

    assert_eq!(step(9, 0, RestoreStep::Begin { force: true }).await, Ok(Outcome::Gathered));
    assert_eq!(step(9, 1, instances()).await, Ok(Outcome::Gathered));
    let done = step(9, 2, finish.clone()).await;
    assert!(matches!(done, Ok(Outcome::Restored { .. })), "{done:?}");
    assert_eq!(step(9, 2, finish).await, done, "the last part that is repeated");
    assert!(has(&node, "a") && !has(&node, "b"));
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_goes_on_through_a_change_of_leader() {
    let old_places = places(1);
    let old = old_places[0].start(&old_places).await.unwrap();
    fill(&old).await;
    let backup = backup_of(&old).await;
    old.shutdown().await;
    let places = places(3);
    let nodes = start_all(&places).await;
    leader(&nodes).await;
    let moves = async {
        for _ in 0..4 {
            let _ = nodes[0].transfer_leader(None, TIMEOUT).await;
        }
    };
    let (restored, ()) = tokio::join!(nodes[1].restore(backup, false, TIMEOUT), moves);
    restored.unwrap();
    eventually("all nodes have it", || nodes.iter().all(|node| has(node, "039")).then_some(())).await;
    shutdown_all(nodes).await;
}
