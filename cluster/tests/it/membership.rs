//! Running a group: handing the leadership over, letting nodes in, taking them out.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use gogate_cluster::{
    Cluster, ClusterConfig, ManageError,
    state::{Command, Outcome},
};

use crate::harness::{
    Place, TIMEOUT, eventually, has, leader, places, register, registration, shutdown_all, start_all,
};

fn voters(node: &Cluster) -> Vec<u64> {
    node.status().members.iter().filter(|member| member.voter).map(|member| member.id).collect()
}

fn place_of<'a>(places: &'a [Place], node: &Cluster) -> &'a Place {
    let members = node.status().members;
    let own = members.iter().find(|member| member.id == node.node_id()).expect("it is a member");
    places.iter().find(|place| place.name == own.name).expect("it was started from a place")
}

/// A node that forms nothing and waits to be let in.
fn waiting(place: &Place, learner: bool) -> ClusterConfig {
    let mut config = place.config(&[]);
    config.learner = learner;
    config
}

/// What a writer saw: when each write was acknowledged, and what was not.
#[derive(Default)]
struct Written {
    acknowledged: Vec<(String, Instant)>,
    failures: Vec<String>,
}

/// Registers one after the other until told to end.
async fn write(node: &Cluster, name: &str, done: &AtomicBool) -> Written {
    let mut written = Written::default();
    let mut number = 0;
    while !done.load(Ordering::SeqCst) {
        let id = format!("{name}-{number}");
        number += 1;
        match node.propose(Command::Register(registration(&id)), TIMEOUT).await {
            Ok(Outcome::Registered { .. }) => written.acknowledged.push((id, Instant::now())),
            other => written.failures.push(format!("{id}: {other:?}")),
        }
    }
    written
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leadership_goes_over_without_losing_or_failing_a_write() {
    const ROUNDS: usize = 8;
    let places = places(3);
    let nodes = start_all(&places).await;
    leader(&nodes).await;
    let done = AtomicBool::new(false);
    let hand_over = async {
        let mut moments = Vec::new();
        for round in 0..ROUNDS {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let before = nodes[leader(&nodes).await].node_id();
            let begun = Instant::now();
            // From any node: the leader itself, and those that pass it on.
            let after = nodes[round % 3].transfer_leader(None, TIMEOUT).await.unwrap();
            moments.push((begun, Instant::now()));
            assert_ne!(before, after);
            assert_eq!(nodes[leader(&nodes).await].node_id(), after);
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        done.store(true, Ordering::SeqCst);
        moments
    };
    let writers = ["a", "b", "c"].into_iter().zip(&nodes).map(|(name, node)| write(node, name, &done));
    let (moments, written) = tokio::join!(hand_over, futures_util::future::join_all(writers));
    for node in &nodes {
        node.linearizable(TIMEOUT).await.unwrap();
    }
    let mut pauses = Vec::new();
    for Written { acknowledged, failures } in written {
        assert_eq!(failures, [""; 0]);
        let lost: Vec<_> = acknowledged.iter().filter(|(id, _)| !has(&nodes[0], id)).collect();
        assert!(lost.is_empty(), "{lost:?}");
        for (begun, ended) in &moments {
            let around = acknowledged.windows(2).filter(|pair| pair[1].1 > *begun && pair[0].1 < *ended);
            pauses.extend(around.map(|pair| pair[1].1 - pair[0].1).max());
        }
    }
    pauses.sort_unstable();
    println!("writes paused for {pauses:?}");
    let median = pauses[pauses.len() / 2];
    assert!(median < Duration::from_millis(100), "{pauses:?}");
    shutdown_all(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leadership_goes_to_whom_it_was_meant_for_and_to_nobody_who_cannot_lead() {
    let all = places(4);
    let (founders, other) = all.split_at(3);
    let nodes = start_all(founders).await;
    let leads = leader(&nodes).await;
    let to = nodes[(leads + 1) % 3].node_id();
    assert_eq!(nodes[(leads + 2) % 3].transfer_leader(Some(to), TIMEOUT).await, Ok(to));
    assert_eq!(nodes[leader(&nodes).await].node_id(), to);
    assert_eq!(nodes[0].transfer_leader(Some(to), TIMEOUT).await, Ok(to), "it leads already");
    let unknown = nodes[0].transfer_leader(Some(9), TIMEOUT).await;
    assert!(matches!(unknown, Err(ManageError::UnknownNode(_))), "{unknown:?}");
    let mut config = other[0].config(founders);
    config.learner = true;
    let learner = Cluster::start(config).await.unwrap();
    let refused = nodes[0].transfer_leader(Some(learner.node_id()), TIMEOUT).await;
    assert!(matches!(&refused, Err(ManageError::Refused(why)) if why.contains("no vote")), "{refused:?}");
    learner.shutdown().await;
    shutdown_all(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_cannot_hand_over_leads_on() {
    let places = places(3);
    let mut nodes = start_all(&places).await;
    let leads = nodes.remove(leader(&nodes).await);
    let gone = nodes.remove(0);
    let gone_id = gone.node_id();
    gone.shutdown().await;
    let refused = leads.transfer_leader(Some(gone_id), Duration::from_secs(2)).await;
    assert!(matches!(refused, Err(ManageError::NotDone(_))), "{refused:?}");
    assert_eq!(leads.status().leader, Some(leads.node_id()));
    register(&leads, "a").await;
    // And the one that lives is chosen by itself.
    assert_eq!(leads.transfer_leader(None, TIMEOUT).await, Ok(nodes[0].node_id()));
    register(&leads, "b").await;
    leads.shutdown().await;
    shutdown_all(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_node_hears_of_it_and_never_comes_back_under_its_id() {
    let places = places(3);
    let mut nodes = start_all(&places).await;
    let out = nodes.remove((leader(&nodes).await + 1) % 3);
    let (id, place) = (out.node_id(), place_of(&places, &out));
    register(&out, "a").await;
    assert_eq!(out.remove_member(id, TIMEOUT).await, Ok(id));
    eventually("it knows", || out.is_removed().then_some(())).await;
    assert!(has(&out, "a"), "it shows what it last knew");
    eventually("two voters are left", || (voters(&nodes[0]).len() == 2).then_some(())).await;
    assert!(nodes[0].status().members.iter().all(|member| member.id != id));
    let again = nodes[0].remove_member(id, TIMEOUT).await;
    assert!(matches!(&again, Err(ManageError::UnknownNode(why)) if why.contains("any more")), "{again:?}");
    register(&nodes[0], "b").await;
    out.shutdown().await;

    // Its disk is not let in again: it asks, as it hears of nobody.
    let term = nodes[0].status().term;
    let back = place.start(&places).await.unwrap();
    eventually("it is told again", || back.is_removed().then_some(())).await;
    assert!(!has(&back, "b"));
    assert_eq!(nodes[0].status().term, term, "it disturbs nobody");
    back.shutdown().await;
    // With another disk it is another node.
    place.wipe();
    let back = place.start(&places).await.unwrap();
    assert_eq!(back.node_id(), 4);
    eventually("it votes", || voters(&nodes[0]).contains(&4).then_some(())).await;
    back.shutdown().await;
    shutdown_all(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_may_be_removed_at_itself_and_writes_go_on() {
    let places = places(3);
    let mut nodes = start_all(&places).await;
    let old = nodes.remove(leader(&nodes).await);
    let id = old.node_id();
    assert_eq!(old.remove_member(id, TIMEOUT).await, Ok(id));
    eventually("it knows", || old.is_removed().then_some(())).await;
    let begun = Instant::now();
    register(&nodes[0], "a").await;
    println!("the first write after it took {:?}", begun.elapsed());
    eventually("it is gone", || (!voters(&nodes[0]).contains(&id)).then_some(())).await;
    old.shutdown().await;
    register(&nodes[1], "b").await;
    shutdown_all(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_removed_that_the_majority_needs() {
    let places = places(3);
    let mut nodes = start_all(&places).await;
    let leads = nodes.remove(leader(&nodes).await);
    let dead = nodes.remove(0);
    let (dead_id, living) = (dead.node_id(), nodes.remove(0));
    dead.shutdown().await;
    let refused = leads.remove_member(living.node_id(), TIMEOUT).await;
    assert!(
        matches!(&refused, Err(ManageError::Refused(why)) if why.contains(&format!("node {dead_id}"))),
        "{refused:?}"
    );
    assert_eq!(voters(&leads).len(), 3);
    // The dead one may go, from a node that does not lead; then the other one; never the last.
    assert_eq!(living.remove_member(dead_id, TIMEOUT).await, Ok(dead_id));
    assert_eq!(leads.remove_member(living.node_id(), TIMEOUT).await, Ok(living.node_id()));
    let last = leads.remove_member(leads.node_id(), TIMEOUT).await;
    assert!(matches!(&last, Err(ManageError::Refused(why)) if why.contains("last voter")), "{last:?}");
    let unknown = leads.remove_member(77, TIMEOUT).await;
    assert!(matches!(unknown, Err(ManageError::UnknownNode(_))), "{unknown:?}");
    register(&leads, "a").await;
    living.shutdown().await;
    leads.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_waits_is_let_in_and_votes_when_it_has_caught_up() {
    let all = places(5);
    let (founders, others) = all.split_at(3);
    let nodes = start_all(founders).await;
    let follower = &nodes[(leader(&nodes).await + 1) % 3];
    register(follower, "a").await;

    let nobody = follower.add_member(&others[0].address, false, TIMEOUT).await;
    assert!(matches!(&nobody, Err(ManageError::Refused(why)) if why.contains("start it")), "{nobody:?}");
    let starting = Cluster::start(waiting(&others[0], false));
    let invited = async { eventually_added(follower, &others[0].address, false).await };
    let (fourth, id) = tokio::join!(starting, invited);
    let fourth = fourth.unwrap();
    assert_eq!((fourth.node_id(), id), (4, 4));
    eventually("it votes", || voters(follower).contains(&4).then_some(())).await;
    eventually("it has the state", || has(&fourth, "a").then_some(())).await;
    assert_eq!(follower.add_member(&others[0].address, false, TIMEOUT).await, Ok(4), "it is one already");

    let starting = Cluster::start(waiting(&others[1], true));
    let invited = async {
        let other_role = eventually_refused(follower, &others[1].address).await;
        assert!(other_role.contains("cluster.role"), "{other_role}");
        eventually_added(follower, &others[1].address, true).await
    };
    let (fifth, id) = tokio::join!(starting, invited);
    let fifth = fifth.unwrap();
    assert_eq!((fifth.node_id(), id), (5, 5));
    assert_eq!(voters(follower), [1, 2, 3, 4]);
    // It may be given a vote later.
    assert_eq!(follower.promote_member(5, TIMEOUT).await, Ok(5));
    assert_eq!(voters(follower), [1, 2, 3, 4, 5]);
    fifth.shutdown().await;
    fourth.shutdown().await;
    shutdown_all(nodes).await;
}

/// Its server may be a moment away.
async fn eventually_added(node: &Cluster, address: &str, learner: bool) -> u64 {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match node.add_member(address, learner, TIMEOUT).await {
            Ok(id) => return id,
            Err(error) if Instant::now() > deadline => panic!("{error}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

async fn eventually_refused(node: &Cluster, address: &str) -> String {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match node.add_member(address, false, TIMEOUT).await {
            Err(ManageError::Refused(why)) if !why.contains("does not answer") => return why,
            other => assert!(Instant::now() < deadline, "{other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_joins_is_not_held_up_by_a_removed_node_that_still_runs() {
    // In the order in which they are asked: the removed one is the last that answers as a member.
    let mut all = places(4);
    all.sort_by(|left, right| left.address.cmp(&right.address));
    let (joining, founders) = all.split_first().expect("there are four");
    let nodes = start_all(founders).await;
    let [one, other, removed] = &nodes[..] else { panic!("there are three") };
    leader(&nodes).await;
    one.transfer_leader(Some(one.node_id()), TIMEOUT).await.unwrap();
    one.remove_member(removed.node_id(), TIMEOUT).await.unwrap();
    eventually("it knows", || removed.is_removed().then_some(())).await;
    // It does not hear that another leads now.
    one.transfer_leader(Some(other.node_id()), TIMEOUT).await.unwrap();
    let joined = tokio::time::timeout(TIMEOUT, joining.start(&all)).await;
    let joined = joined.expect("it joins in time").unwrap();
    eventually("it votes", || voters(other).contains(&joined.node_id()).then_some(())).await;
    joined.shutdown().await;
    shutdown_all(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_that_does_not_answer_is_not_promoted() {
    let all = places(4);
    let (founders, other) = all.split_at(3);
    let nodes = start_all(founders).await;
    leader(&nodes).await;
    let mut config = other[0].config(founders);
    config.learner = true;
    let learner = Cluster::start(config).await.unwrap();
    let id = learner.node_id();
    learner.shutdown().await;
    let refused = nodes[0].promote_member(id, TIMEOUT).await;
    assert!(matches!(&refused, Err(ManageError::Refused(why)) if why.contains("answer")), "{refused:?}");
    assert_eq!(nodes[0].remove_member(id, TIMEOUT).await, Ok(id), "a dead learner may go");
    shutdown_all(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_takes_every_call_and_never_leads() {
    let all = places(4);
    let (founders, other) = all.split_at(3);
    let mut nodes = start_all(founders).await;
    leader(&nodes).await;
    let mut config = other[0].config(founders);
    config.learner = true;
    let learner = Cluster::start(config).await.unwrap();
    register(&learner, "a").await;
    learner.linearizable(TIMEOUT).await.unwrap();
    assert!(has(&learner, "a"));
    let leads = learner.transfer_leader(None, TIMEOUT).await.unwrap();
    assert_ne!(leads, learner.node_id());
    // With one voter and a learner there is no quorum: nobody leads, and the learner least of all.
    nodes.remove(0).shutdown().await;
    nodes.remove(0).shutdown().await;
    // Whoever leads finds out that no majority hears it.
    while nodes[0].linearizable(Duration::from_millis(300)).await.is_ok() {}
    let until = Instant::now() + Duration::from_secs(1);
    while Instant::now() < until {
        assert_ne!(learner.status().leader, Some(learner.node_id()));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(has(&learner, "a"));
    let write = learner.propose(Command::Deregister { id: "a".into() }, Duration::from_millis(300)).await;
    assert!(write.is_err(), "{write:?}");
    learner.shutdown().await;
    shutdown_all(nodes).await;
}
