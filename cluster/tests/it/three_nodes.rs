//! Three nodes: forming, forwarding, failing over, coming back.

use std::time::{Duration, Instant};

use gogate_cluster::{
    Cluster, ProposeError, Secret, StartError,
    state::{Command, Registration},
};

use crate::harness::{
    Gate, TIMEOUT, eventually, has, leader, places, register, registration, shutdown_all, start_all,
};

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
async fn in_any_order_they_wait_for_the_last() {
    for late in 0..3 {
        let places = places(3);
        let early = places.iter().enumerate().filter(|(at, _)| *at != late);
        let mut early: Vec<_> = early.map(|(_, place)| Box::pin(place.start(&places))).collect();
        let waiting = futures_util::future::select_all(&mut early);
        let too_early = tokio::time::timeout(Duration::from_millis(300), waiting).await;
        assert!(too_early.is_err(), "nothing forms without node {late}");
        let (last, first) = tokio::join!(places[late].start(&places), futures_util::future::join_all(early));
        let mut nodes: Vec<_> = first.into_iter().map(Result::unwrap).collect();
        nodes.push(last.unwrap());
        let uuid = nodes[0].status().cluster_uuid;
        assert!(nodes.iter().all(|node| node.status().cluster_uuid == uuid));
        register(&nodes[0], "a").await;
        shutdown_all(nodes).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_go_on_when_the_leader_stops() {
    let places = places(3);
    let mut nodes = start_all(&places).await;
    let mut outages = Vec::new();
    for round in 0..5 {
        let stopped = leader(&nodes).await;
        let name = places.iter().position(|place| {
            nodes[stopped]
                .status()
                .members
                .iter()
                .any(|member| member.id == nodes[stopped].node_id() && member.name == place.name)
        });
        let old = nodes.remove(stopped);
        old.shutdown().await;
        let begun = Instant::now();
        register(&nodes[0], &format!("i{round}")).await;
        outages.push(begun.elapsed());
        let back = places[name.unwrap()].start(&places).await.unwrap();
        eventually("the stopped node has what it missed", || has(&back, &format!("i{round}")).then_some(()))
            .await;
        nodes.push(back);
    }
    outages.sort_unstable();
    println!("writes resumed after {outages:?}");
    assert!(outages[4] < Duration::from_secs(2), "{outages:?}");
    shutdown_all(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_the_stop_of_all() {
    let places = places(3);
    let nodes = start_all(&places).await;
    for at in 0..20 {
        register(&nodes[at % 3], &format!("i{at}")).await;
    }
    shutdown_all(nodes).await;
    let nodes = start_all(&places).await;
    nodes[2].linearizable(TIMEOUT).await.unwrap();
    assert!((0..20).all(|at| has(&nodes[2], &format!("i{at}"))));
    register(&nodes[1], "after").await;
    shutdown_all(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_alone_starts_and_shows_what_it_last_knew() {
    let places = places(3);
    let nodes = start_all(&places).await;
    register(&nodes[0], "a").await;
    nodes[1].linearizable(TIMEOUT).await.unwrap();
    shutdown_all(nodes).await;
    let alone = places[1].start(&places).await.unwrap();
    assert!(has(&alone, "a"));
    let read = alone.linearizable(Duration::from_millis(200)).await;
    assert!(read.is_err(), "nobody confirms it");
    let write = alone.propose(Command::Deregister { id: "a".into() }, Duration::from_millis(200)).await;
    assert!(write.is_err(), "{write:?}");
    alone.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_hears_no_leader_names_none() {
    let places = places(3);
    let mut nodes = start_all(&places).await;
    let leader = leader(&nodes).await;
    let last = nodes.remove((leader + 1) % 3);
    shutdown_all(nodes).await;
    eventually("the dead leader is named no more", || last.status().leader.is_none().then_some(())).await;
    last.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_node_comes_back_as_another() {
    let places = places(3);
    let mut nodes = start_all(&places).await;
    register(&nodes[0], "a").await;
    let wiped = nodes.remove(1);
    let old_id = wiped.node_id();
    wiped.shutdown().await;
    places[1].wipe();
    let back = places[1].start(&places).await.unwrap();
    assert_eq!(back.node_id(), 4);
    eventually("the new one votes in the place of the old one", || {
        let voters = voters(&nodes[0]);
        (voters.len() == 3 && voters.contains(&4) && !voters.contains(&old_id)).then_some(())
    })
    .await;
    assert!(nodes[0].status().members.iter().all(|member| member.id != old_id));
    eventually("it holds the state", || has(&back, "a").then_some(())).await;
    register(&back, "b").await;
    // It counts: with it and one other there is a majority.
    nodes.remove(0).shutdown().await;
    register(&back, "c").await;
    back.shutdown().await;
    shutdown_all(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fourth_node_joins_and_a_living_name_is_refused() {
    let all = places(5);
    let (founders, others) = all.split_at(3);
    let nodes = start_all(founders).await;
    leader(&nodes).await;
    let mut learner = others[0].config(founders);
    learner.learner = true;
    let learner = Cluster::start(learner).await.unwrap();
    register(&learner, "a").await;
    eventually("it follows", || has(&learner, "a").then_some(())).await;
    assert_eq!(voters(&nodes[0]), [1, 2, 3]);
    let mut namesake = others[1].config(founders);
    namesake.name = "n2".to_owned();
    match Cluster::start(namesake).await {
        Err(StartError::Bootstrap { problem, .. }) => assert!(problem.contains("is alive"), "{problem}"),
        other => panic!("the name is taken: {:?}", other.err()),
    }
    learner.shutdown().await;
    shutdown_all(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_refused_and_told_why() {
    let all = places(5);
    let (founders, others) = all.split_at(3);
    let nodes = start_all(founders).await;
    let mut config = others[0].config(founders);
    config.secret = Some(Secret("a guess".to_owned()));
    match Cluster::start(config).await {
        Err(StartError::Bootstrap { problem, .. }) => assert!(problem.contains("secret"), "{problem}"),
        other => panic!("its secret is wrong: {:?}", other.err()),
    }
    let mut config = others[1].config(founders);
    config.cluster_name = "other".to_owned();
    match Cluster::start(config).await {
        Err(StartError::Bootstrap { problem, .. }) => assert!(problem.contains("`demo`"), "{problem}"),
        other => panic!("it is of another cluster: {:?}", other.err()),
    }
    shutdown_all(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_on_an_isolated_leader_is_unknown_in_time() {
    let places = places(3);
    let mut nodes = start_all(&places).await;
    let alone = leader(&nodes).await;
    let registration = Registration { ttl_ms: 60_000, ..registration("a") };
    nodes[0].propose(Command::Register(registration), TIMEOUT).await.unwrap();
    let alone = nodes.remove(alone);
    // The leader's own tick must not be what is on its way when the others go: the next one is a second off.
    let lives_ms = || alone.read(|state| state.expires_in_ms("a"));
    for _ in 0..2 {
        let before = lives_ms();
        eventually("a tick passes", || (lives_ms() != before).then_some(())).await;
    }
    // Writes are on their way then, so that some were taken into the log.
    let writes = async {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let begun = Instant::now();
            let write = || alone.propose(Command::Deregister { id: "b".into() }, Duration::from_millis(400));
            let answers = futures_util::future::join_all((0..50).map(|_| write())).await;
            assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
            if answers.iter().any(|answer| matches!(answer, Err(ProposeError::Unknown { .. }))) {
                break;
            }
            assert!(Instant::now() < deadline, "{answers:?}");
        }
    };
    futures_util::future::join(shutdown_all(nodes), writes).await;
    eventually("it knows that nobody hears it", || alone.status().leader.is_none().then_some(())).await;
    let answer = alone.propose(Command::Deregister { id: "a".into() }, Duration::from_millis(400)).await;
    assert!(matches!(answer, Err(ProposeError::NotDone { .. })), "{answer:?}");
    alone.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_was_cut_off_does_not_depose_the_leader() {
    const ROUNDS: u64 = 6;
    let places = places(3);
    let mut gates = Vec::new();
    for place in &places {
        gates.push(Gate::before(place.address.clone()).await);
    }
    let addresses: Vec<_> = gates.iter().map(|gate| gate.address.clone()).collect();
    let started = places.iter().zip(&addresses).map(|(place, address)| {
        let mut config = place.config(&places);
        config.peers.clone_from(&addresses);
        config.advertise.clone_from(address);
        Cluster::start(config)
    });
    let nodes: Vec<_> =
        futures_util::future::join_all(started).await.into_iter().map(Result::unwrap).collect();
    let leads = leader(&nodes).await;
    register(&nodes[leads], "a").await;
    let term = nodes[leads].status().term;
    for round in 0..ROUNDS {
        let cut = (leads + 1 + usize::try_from(round % 2).unwrap()) % 3;
        gates[cut].shut();
        // Longer than any silence after which it asks for votes: it asks, and is refused.
        tokio::time::sleep(Duration::from_millis(900)).await;
        register(&nodes[leads], &format!("i{round}")).await;
        gates[cut].open();
        eventually("it has what it missed", || has(&nodes[cut], &format!("i{round}")).then_some(())).await;
        assert_eq!(nodes[leads].status().leader, Some(nodes[leads].node_id()), "round {round}");
        assert!(nodes.iter().all(|node| node.status().term == term), "round {round}");
    }
    shutdown_all(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_stays_one_whatever_its_file_says_later() {
    let places = places(2);
    let (first, second) = (&places[..1], &places[1]);
    let voter = places[0].start(first).await.unwrap();
    let config = |learner| {
        let mut config = second.config(&places);
        config.expect = 1;
        config.learner = learner;
        config
    };
    let learner = Cluster::start(config(true)).await.unwrap();
    register(&learner, "a").await;
    learner.shutdown().await;
    let learner = Cluster::start(config(false)).await.unwrap();
    register(&learner, "b").await;
    // It would have asked for a vote by now, every 200 ms, and been given one.
    let asked = Instant::now() + Duration::from_secs(1);
    while Instant::now() < asked {
        assert_eq!(voters(&voter), [1]);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    shutdown_all(vec![learner, voter]).await;
}
