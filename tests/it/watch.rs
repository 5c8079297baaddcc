//! Watches and blocking queries: at any node, in order, each change once, for as long as it takes.

use std::{
    collections::BTreeSet,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::{Duration, Instant},
};

use gogate::control::watch::{Form, Told, Watches};
use gogate_cluster::{
    Cluster, ClusterConfig, Timers,
    state::{Command, FORMAT, Outcome, Registration, State},
};

use crate::harness::{Connection, Event, Events, TestCluster, call, eventually, get, json};

/// How long a change may take to be seen, on a busy machine.
const SOON: Duration = Duration::from_secs(20);

fn at() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 9))
}

/// Registers `id`; the index of the change.
fn register(cluster: &TestCluster, node: usize, id: &str, name: &str) -> u64 {
    cluster.register(node, id, name, at())["index"].as_u64().unwrap()
}

fn deregister(admin: SocketAddr, id: &str) {
    assert_eq!(json(admin, "DELETE", &format!("/v1/services/{id}"), "").0, 204);
}

fn ids(event: &Event) -> BTreeSet<&str> {
    let instances = event.data["instances"].as_array().unwrap();
    instances.iter().map(|instance| instance["id"].as_str().unwrap()).collect()
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(name, id)| ((*name).to_owned(), (*id).to_owned())).collect()
}

#[test]
fn a_watcher_begins_with_a_snapshot_and_sees_every_kind_of_change() {
    let cluster = TestCluster::start(1);
    let admin = cluster.admin(0);
    let first = register(&cluster, 0, "a", "api");
    let mut events = Events::open(admin, "/v1/watch");
    let snapshot = events.expect();
    assert_eq!((snapshot.name.as_str(), snapshot.id), ("snapshot", Some(first)));
    assert_eq!(ids(&snapshot), BTreeSet::from(["a"]));
    assert_eq!((&snapshot.data["index"], &snapshot.data["config_version"]), (&first.into(), &0.into()));
    assert_eq!(snapshot.data["instances"][0]["address"], at().to_string());

    let body = r#"{"id":"b","name":"api","address":"h:1","ttl":"1s","tags":["x"],"metadata":{"zone":"1"}}"#;
    let (_, answer) = json(admin, "POST", "/v1/services", body);
    let registered = events.expect();
    assert_eq!(registered.name, "registered");
    assert_eq!(registered.data, answer, "an event shows the instance as the answer does");
    assert_eq!(registered.id, answer["index"].as_u64());
    register(&cluster, 0, "a", "api");
    deregister(admin, "a");
    assert_eq!(events.take(3), pairs(&[("updated", "a"), ("deregistered", "a"), ("expired", "b")]));
    cluster.apply(0, "routes: []\n");
    let config = events.expect();
    assert_eq!((config.name.as_str(), &config.data["version"]), ("config", &1.into()));
    assert_eq!(config.id, config.data["index"].as_u64());
}

#[test]
fn a_watcher_of_a_service_sees_that_service_and_an_instance_that_moves_leaves_it() {
    let cluster = TestCluster::start(1);
    let admin = cluster.admin(0);
    let mut api = Events::open(admin, "/v1/watch?name=api");
    let mut web = Events::open(admin, "/v1/watch?name=web&since=0");
    assert_eq!(ids(&api.expect()).len(), 0);
    register(&cluster, 0, "a", "api");
    register(&cluster, 0, "o", "other");
    register(&cluster, 0, "a", "web");
    register(&cluster, 0, "b", "api");
    assert_eq!(api.take(3), pairs(&[("registered", "a"), ("deregistered", "a"), ("registered", "b")]));
    assert_eq!(web.take(1), pairs(&[("registered", "a")]));
}

#[test]
fn every_node_tells_every_change_once_in_order_and_a_watcher_goes_on_at_another_node() {
    const CHANGES: usize = 300;
    let mut cluster = TestCluster::start(3);
    let mut watches: Vec<Events> =
        (0..3).map(|node| Events::open(cluster.admin(node), "/v1/watch?since=0")).collect();
    let mut expected = Vec::new();
    for number in 0..CHANGES {
        expected.push(register(&cluster, number % 3, &format!("i{}", number % 50), "api"));
    }
    let seen = |events: &mut Events, count: usize| -> Vec<u64> {
        (0..count).map(|_| events.expect().id.unwrap()).collect()
    };
    for events in &mut watches {
        assert_eq!(seen(events, CHANGES), expected);
    }
    let half = expected[CHANGES / 2];
    for node in 0..3 {
        let mut since = Events::open(cluster.admin(node), &format!("/v1/watch?since={half}"));
        // What a browser sends when it comes back: the address that it began with, and where it was.
        let mut last = Events::open_after(cluster.admin(node), "/v1/watch?since=0", Some(half));
        assert_eq!(seen(&mut since, CHANGES / 2 - 1), expected[CHANGES / 2 + 1..]);
        assert_eq!(seen(&mut last, CHANGES / 2 - 1), expected[CHANGES / 2 + 1..]);
    }
    // An index that a node may not have heard of yet is waited for, not lied about.
    let newest = register(&cluster, 0, "last", "api");
    let mut ahead = Events::open(cluster.admin(2), &format!("/v1/watch?since={newest}"));
    let next = register(&cluster, 1, "next", "api");
    assert_eq!(seen(&mut ahead, 1), [next]);
    // One that nobody has given yet is of another cluster.
    let mut foreign = Events::open(cluster.admin(1), "/v1/watch?since=1000000");
    assert_eq!(foreign.expect().name, "snapshot");

    // A node that stops says so, and a watcher goes on elsewhere.
    let leader = cluster.leader();
    cluster.stop(leader);
    let stopped = &mut watches[leader];
    assert_eq!(seen(stopped, 2), [newest, next]);
    let end = stopped.expect();
    assert_eq!((end.name.as_str(), end.id), ("end", None));
    assert_eq!(end.data["status"], 503, "{end:?}");
    assert_eq!(stopped.next().unwrap(), None);
    let other = (leader + 1) % 3;
    let meanwhile = register(&cluster, other, "meanwhile", "api");
    let mut moved = Events::open_after(cluster.admin(other), "/v1/watch", Some(next));
    assert_eq!(seen(&mut moved, 1), [meanwhile]);
}

#[test]
fn a_watcher_that_does_not_read_is_told_and_cut_and_the_others_go_on() {
    let cluster = TestCluster::start(1);
    let admin = cluster.admin(0);
    let mut slow = Events::open(admin, "/v1/watch?since=0");
    let mut quick = Events::open(admin, "/v1/watch?since=0");
    let metadata: Vec<String> =
        (0..64).map(|number| format!(r#""key{number}":"{}""#, "x".repeat(250))).collect();
    let metadata = metadata.join(",");
    let mut connection = Connection::open(admin).unwrap();
    let mut last = 0;
    // More than the ring and all buffers on the way hold.
    for number in 0..1500 {
        let body = format!(
            r#"{{"id":"i{}","name":"api","address":"h:1","ttl":"0s","metadata":{{{metadata}}}}}"#,
            number % 10
        );
        let answer = connection.call("POST", "/v1/services", &[], &body).unwrap();
        assert!(matches!(answer.status, 200 | 201), "{}", answer.text());
        last = answer.json()["index"].as_u64().unwrap();
        assert_eq!(quick.expect().id, Some(last), "one that reads misses nothing");
    }
    let mut seen = 0;
    let end = loop {
        let event = slow.expect();
        let Some(id) = event.id else { break event };
        assert_eq!(id, seen + 1, "what a slow one sees is in order, too");
        seen = id;
    };
    assert!(seen < last);
    assert_eq!((end.name.as_str(), &end.data["status"]), ("end", &410.into()));
    assert!(end.data["type"].as_str().unwrap().ends_with(":too-slow"), "{end:?}");
    assert_eq!(slow.next().unwrap(), None);
    let mut back = Events::open_after(admin, "/v1/watch", Some(seen));
    let snapshot = back.expect();
    assert_eq!((snapshot.name.as_str(), snapshot.id), ("snapshot", Some(last)));
    let metrics = get(admin, "/metrics").unwrap().text();
    assert!(metrics.contains("gogate_watchers_cut_total 1"), "{metrics}");
}

#[test]
fn a_blocking_query_wakes_at_a_change_of_what_it_asks_for_and_ends_in_time() {
    let cluster = TestCluster::start(3);
    let index = register(&cluster, 0, "a", "api");
    let follower = (cluster.leader() + 1) % 3;
    let admin = cluster.admin(follower);
    let query = |filter: &str, index: u64, wait: &str| {
        let path = format!("/v1/services?{filter}&index={index}&wait={wait}");
        let response = get(admin, &path).unwrap();
        assert_eq!(response.status, 200, "{}", response.text());
        let index: u64 = response.header("x-gogate-index").unwrap().parse().unwrap();
        (index, response.json().as_array().unwrap().len())
    };
    assert_eq!(query("name=api", 0, "20s"), (index, 1), "what is newer already is told at once");

    let began = Instant::now();
    let other = register(&cluster, 0, "o", "other");
    assert_eq!(query("name=api", index, "300ms"), (index, 1), "nothing of it is newer");
    assert!(began.elapsed() >= Duration::from_millis(300));
    assert_eq!(query("name=other", index, "20s"), (other, 1));

    let woken = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| query("name=api&tag=blue", other, "60s"));
        eventually(SOON, "it waits", || {
            let metrics = get(admin, "/metrics").unwrap().text();
            if metrics.contains("gogate_watchers 1") { Ok(()) } else { Err("nobody watches".into()) }
        });
        // Of the service, but not of the tag.
        register(&cluster, 1, "b", "api");
        let body = r#"{"id":"c","name":"api","address":"h:1","ttl":"0s","tags":["blue"]}"#;
        let answer = call(cluster.admin(2), "POST", "/v1/services", &[], body).unwrap();
        let registered = answer.json()["index"].as_u64().unwrap();
        assert_eq!(waiting.join().unwrap(), (registered, 1));
        registered
    });
    // An index that this cluster has not given ends the wait at once, as after a restore.
    let began = Instant::now();
    assert_eq!(query("", woken + 1000, "60s"), (woken, 4));
    assert!(began.elapsed() < SOON);
}

#[test]
fn watchers_that_have_gone_are_forgotten() {
    let cluster = TestCluster::start(1);
    let admin = cluster.admin(0);
    let watching = |count: usize| {
        eventually(SOON, "the watchers are counted", || {
            let metrics = get(admin, "/metrics").unwrap().text();
            let line = metrics.lines().find(|line| line.starts_with("gogate_watchers ")).unwrap_or_default();
            if line == format!("gogate_watchers {count}") { Ok(()) } else { Err(line.to_owned()) }
        });
    };
    let watches: Vec<Events> = (0..20).map(|_| Events::open(admin, "/v1/watch?name=api")).collect();
    watching(20);
    drop(watches);
    watching(0);
}

/// A TCP proxy before a node's peer address: while it is shut, nothing reaches the node, and nobody is told so.
struct Gate {
    address: String,
    open: tokio::sync::watch::Sender<bool>,
}

// === impl Gate ===

impl Gate {
    async fn before(target: SocketAddr) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (open, opened) = tokio::sync::watch::channel(true);
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut open = opened.clone();
                tokio::spawn(async move {
                    let _ = open.wait_for(|open| *open).await;
                    let Ok(mut far) = tokio::net::TcpStream::connect(target).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => return,
                        _ = open.wait_for(|open| !*open) => {}
                    }
                    let _ = open.wait_for(|open| *open).await;
                });
            }
        });
        Self { address, open }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_gets_a_snapshot_tells_its_watchers_to_look_again_and_goes_on_from_there() {
    const NODES: usize = 3;
    let dir = tempfile::tempdir().unwrap();
    let listeners: Vec<_> = (0..NODES).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let mut gates = Vec::new();
    for listener in &listeners {
        gates.push(Gate::before(listener.local_addr().unwrap()).await);
    }
    let peers: Vec<String> = gates.iter().map(|gate| gate.address.clone()).collect();
    let started = listeners.into_iter().zip(&peers).zip(1..).map(|((listener, advertise), number)| {
        Cluster::start(ClusterConfig {
            name: format!("n{number}"),
            data_dir: dir.path().join(format!("n{number}")),
            cluster_name: "demo".to_owned(),
            expect: NODES,
            peers: peers.clone(),
            learner: false,
            listener,
            advertise: advertise.clone(),
            admin: String::new(),
            secret: None,
            tls: None,
            build: "test".to_owned(),
            format: FORMAT,
            timers: Timers { snapshot_entries: Some(40), ..Timers::default() },
        })
    });
    let nodes: Vec<Cluster> =
        futures_util::future::join_all(started).await.into_iter().map(Result::unwrap).collect();
    let register = async |node: &Cluster, id: String| {
        let (name, address) = ("api".into(), "10.0.0.1:9000".to_owned());
        let (metadata, tags) = (std::collections::BTreeMap::new(), Vec::new());
        let instance = Registration { id: id.into(), name, address, ttl_ms: 0, weight: 1, metadata, tags };
        match node.propose(Command::Register(instance), SOON).await {
            Ok(Outcome::Registered { instance, .. }) => instance.epoch,
            other => panic!("{other:?}"),
        }
    };
    register(&nodes[0], "first".to_owned()).await;
    let leader = nodes[0].status().leader;
    let leads = nodes.iter().position(|node| Some(node.node_id()) == leader).unwrap();
    let away = (leads + 1) % NODES;
    nodes[away].linearizable(SOON).await.unwrap();

    let changes = nodes[away].changes();
    let watches = Arc::new(Watches::new(nodes[away].read(State::index)));
    let running = tokio::spawn({
        let watches = watches.clone();
        async move { watches.run(changes).await }
    });
    let mut watcher = watches.join(Some("api")).unwrap();
    assert!(watcher.resume(1));
    gates[away].open.send_replace(false);
    // An entry each: they are proposed one after the other.
    for number in 0..150 {
        register(&nodes[leads], format!("i{number}")).await;
    }
    gates[away].open.send_replace(true);

    let told = tokio::time::timeout(SOON, watcher.next()).await.expect("it is told");
    assert!(matches!(told, Told::Reset), "{told:?}");
    let node = &nodes[away];
    let render =
        || async { (node.read(State::index), node.read(|state| state.registry().len()).to_string().into()) };
    let deadline = tokio::time::Instant::now() + SOON;
    let snapshot = watcher.snapshot(Form::Json, deadline, node.read(State::index), render).await.unwrap();
    let mut reached = snapshot.index;
    assert!(reached > 40);
    assert_eq!(snapshot.bytes, reached.to_string().as_bytes(), "one instance for each index");
    let last = register(&nodes[leads], "last".to_owned()).await;
    while reached < last {
        let told = tokio::time::timeout(SOON, watcher.next()).await.expect("it goes on");
        let Told::Events(events) = told else { panic!("{told:?}") };
        for event in events {
            assert_eq!(event.index, reached + 1, "each once, and none is left out");
            reached = event.index;
        }
    }
    futures_util::future::join_all(nodes.iter().map(Cluster::shutdown)).await;
    running.await.unwrap();
    assert!(matches!(watcher.next().await, Told::Stopping));
}
