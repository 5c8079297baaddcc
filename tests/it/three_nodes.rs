//! Three nodes: register anywhere, proxy everywhere, reload once, lose a node.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::harness::{Connection, TestCluster, TestService, call, eventually, get, json};

const NODES: usize = 3;

/// How long a node may take to catch up, on a busy machine.
const CATCH_UP: Duration = Duration::from_secs(20);

/// A document with services `s0` … that live by registration, each at its own path.
fn document(services: usize, prefix: &str) -> String {
    let mut text = String::from("listeners: { web: { address: \"127.0.0.1:8080\" } }\nservices:\n");
    for number in 0..services {
        text.push_str(&format!("  s{number}: {{}}\n"));
    }
    text.push_str("routes:\n");
    for number in 0..services {
        text.push_str(&format!(
            "  - {{ name: s{number}, match: {{ path_prefix: /{prefix}{number} }}, service: s{number} }}\n"
        ));
    }
    text
}

#[test]
fn what_is_registered_at_one_node_is_routed_by_another_at_once() {
    const ROUNDS: usize = 15;
    let (cluster, service) = (TestCluster::start(NODES), TestService::start("echo"));
    cluster.apply(1, &document(ROUNDS, "s"));
    let mut took: Vec<Duration> = (0..ROUNDS)
        .map(|round| {
            let path = format!("/s{round}");
            let mut connection = Connection::open(cluster.web(0)).unwrap();
            assert_eq!(connection.call("GET", &path, &[], "").unwrap().status, 503, "nobody is there yet");
            cluster.register(2, &format!("i{round}"), &format!("s{round}"), service.address);
            let acknowledged = Instant::now();
            eventually(CATCH_UP, "node 1 routes to it", || match connection.call("GET", &path, &[], "") {
                Ok(response) if response.status == 200 => Ok(acknowledged.elapsed()),
                other => Err(format!("{other:?}")),
            })
        })
        .collect();
    took.sort();
    // The median: other tests share the machine's two cores.
    assert!(took[ROUNDS / 2] <= Duration::from_millis(100), "{took:?}");
    for node in 0..NODES {
        assert_eq!(get(cluster.web(node), "/s0/deep").unwrap().text(), "echo", "through node {}", node + 1);
    }
}

#[test]
fn a_document_applied_at_one_node_changes_what_all_serve() {
    let (cluster, service) = (TestCluster::start(NODES), TestService::start("echo"));
    cluster.register(0, "i", "s0", service.address);
    for (prefix, gone) in [("a", "b"), ("b", "a"), ("a", "b")] {
        let answer = cluster.apply(1, &document(1, prefix));
        assert_eq!(answer["nodes"], serde_json::json!({"n1": "active", "n2": "active", "n3": "active"}));
        for node in 0..NODES {
            // At once: the answer came when every node ran it.
            assert_eq!(get(cluster.web(node), &format!("/{prefix}0")).unwrap().status, 200);
            assert_eq!(get(cluster.web(node), &format!("/{gone}0")).unwrap().status, 404);
        }
    }
}

#[test]
fn losing_any_node_costs_no_request_on_the_others_and_writes_go_on() {
    const CLIENTS: usize = 4;
    const BEFORE: u64 = 2_000;
    const IN_ALL: u64 = 6_000;
    let (mut cluster, service) = (TestCluster::start(NODES), TestService::start("echo"));
    cluster.apply(0, &document(1, "s"));
    cluster.register(0, "i", "s0", service.address);
    let leader = cluster.leader();
    for victim in [(leader + 1) % NODES, leader] {
        let survivors: Vec<usize> = (0..NODES).filter(|node| *node != victim).collect();
        for node in &survivors {
            eventually(CATCH_UP, "it is routed", || match get(cluster.web(*node), "/s0") {
                Ok(response) if response.status == 200 => Ok(()),
                other => Err(format!("{other:?}")),
            });
        }
        let traffic = Traffic::default();
        let resumed = std::thread::scope(|scope| {
            for client in 0..CLIENTS {
                let (web, traffic) = (cluster.web(survivors[client % survivors.len()]), &traffic);
                scope.spawn(move || traffic.run(web));
            }
            traffic.wait_for(BEFORE);
            cluster.kill(victim);
            let killed = Instant::now();
            let resumed = first_write(cluster.admin(survivors[0]), killed);
            traffic.wait_for(IN_ALL);
            traffic.done.store(true, Ordering::SeqCst);
            resumed
        });
        let failures = traffic.failures.into_inner().unwrap();
        assert!(
            failures.is_empty(),
            "{} of {:?} requests failed: {failures:?}",
            failures.len(),
            traffic.answered
        );
        // The machine is as busy as these clients can make it: how soon is the next test's question.
        assert!(resumed <= CATCH_UP, "writes went on after {resumed:?} only");
        cluster.start_node(victim);
        cluster.wait_until_ready();
    }
}

#[test]
fn writes_go_on_within_a_second_of_the_leaders_death() {
    const ROUNDS: usize = 3;
    let mut cluster = TestCluster::start(NODES);
    let mut took: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let leader = cluster.leader();
            cluster.kill(leader);
            let took = first_write(cluster.admin((leader + 1) % NODES), Instant::now());
            cluster.start_node(leader);
            cluster.wait_until_ready();
            took
        })
        .collect();
    took.sort();
    // The median: other tests share the machine's two cores.
    assert!(took[ROUNDS / 2] <= Duration::from_secs(1), "{took:?}");
}

/// Writes until one is acknowledged; the time since `killed`.
fn first_write(admin: SocketAddr, killed: Instant) -> Duration {
    let body = r#"{"id":"after","name":"other","address":"127.0.0.1:9","ttl":"0s"}"#;
    eventually(CATCH_UP, "a write is acknowledged", || {
        match call(admin, "POST", "/v1/services?timeout=250ms", &[], body) {
            Ok(response) if matches!(response.status, 200 | 201) => Ok(killed.elapsed()),
            other => Err(format!("{other:?}")),
        }
    })
}

/// Requests without pause, and how they fared.
#[derive(Default)]
struct Traffic {
    answered: AtomicU64,
    failures: Mutex<Vec<String>>,
    done: AtomicBool,
}

// === impl Traffic ===

impl Traffic {
    fn run(&self, web: SocketAddr) {
        let mut connection = Connection::open(web).unwrap();
        while !self.done.load(Ordering::SeqCst) {
            match connection.call("GET", "/s0", &[], "") {
                Ok(response) if response.status == 200 && response.body == b"echo" => {
                    self.answered.fetch_add(1, Ordering::SeqCst);
                }
                other => {
                    self.failures.lock().unwrap().push(format!("{other:?}"));
                    return;
                }
            }
        }
    }

    /// Returns when so many were answered, or one failed.
    fn wait_for(&self, count: u64) {
        eventually(Duration::from_secs(60), "requests are answered", || {
            let answered = self.answered.load(Ordering::SeqCst);
            let failed = !self.failures.lock().unwrap().is_empty();
            if answered >= count || failed { Ok(()) } else { Err(answered.to_string()) }
        });
    }
}

#[test]
fn acknowledged_writes_survive_restarts_of_one_of_all_and_of_a_wiped_node() {
    let (mut cluster, service) = (TestCluster::start(NODES), TestService::start("echo"));
    let text = document(1, "s");
    cluster.apply(2, &text);
    let mut written = std::collections::BTreeSet::new();
    let mut write = |cluster: &TestCluster, nodes: &[usize]| {
        for node in nodes {
            let id = format!("i{}", written.len());
            cluster.register(*node, &id, "s0", service.address);
            written.insert(id);
        }
        written.clone()
    };
    write(&cluster, &[0, 1, 2, 0, 1, 2]);

    cluster.kill(0);
    let expected = write(&cluster, &[1, 2, 1, 2]);
    cluster.start_node(0);
    cluster.wait_until_ready();
    has_all(&cluster, 0, &expected, &text);

    for node in 0..NODES {
        cluster.kill(node);
    }
    for node in 0..NODES {
        cluster.start_node(node);
    }
    cluster.wait_until_ready();
    for node in 0..NODES {
        has_all(&cluster, node, &expected, &text);
    }

    let ids = |cluster: &TestCluster| -> Vec<u64> {
        let status = cluster.status(0).unwrap();
        status["nodes"].as_array().unwrap().iter().filter_map(|node| node["id"].as_u64()).collect()
    };
    let before = ids(&cluster);
    cluster.kill(2);
    cluster.wipe(2);
    let expected = write(&cluster, &[0, 1]);
    cluster.start_node(2);
    has_all(&cluster, 2, &expected, &text);
    let status = cluster.status(2).unwrap();
    let own = status["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|node| node["name"] == "n3" && node["state"] != "unreachable");
    let own: Vec<u64> = own.filter_map(|node| node["id"].as_u64()).collect();
    assert!(own.len() == 1 && !before.contains(&own[0]), "ids before: {before:?}, now: {status}");
    let expected = write(&cluster, &[2]);
    has_all(&cluster, 0, &expected, &text);
}

/// Waits until `node` has all of this in its own state, and serves it.
fn has_all(cluster: &TestCluster, node: usize, expected: &std::collections::BTreeSet<String>, text: &str) {
    eventually(CATCH_UP, &format!("node {} has everything", node + 1), || {
        let found = cluster.instances(node)?;
        if found != *expected {
            return Err(format!("{found:?}"));
        }
        let document = get(cluster.admin(node), "/v1/config?stale").map_err(|error| error.to_string())?;
        if document.text() != text {
            return Err(document.text());
        }
        match get(cluster.web(node), "/s0") {
            Ok(response) if response.status == 200 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

#[test]
fn a_node_that_slept_takes_no_beat_of_what_expired_meanwhile() {
    const CALLS: usize = 20;
    let cluster = TestCluster::start(NODES);
    let leader = cluster.leader();
    let (sleeper, awake) = ((leader + 1) % NODES, (leader + 2) % NODES);
    let body = r#"{"id":"mortal","name":"s","address":"127.0.0.1:9","ttl":"1s"}"#;
    assert_eq!(json(cluster.admin(sleeper), "POST", "/v1/services", body).0, 201);
    assert_eq!(json(cluster.admin(sleeper), "PUT", "/v1/services/mortal/heartbeat", "").0, 200);
    cluster.signal(sleeper, rustix::process::Signal::STOP);
    eventually(CATCH_UP, "it expires", || {
        match json(cluster.admin(awake), "GET", "/v1/services/mortal", "") {
            (404, _) => Ok(()),
            (status, seen) => Err(format!("{status} {seen}")),
        }
    });
    // They lie in the sockets of the node that sleeps, and are what it finds when it wakes up.
    let mut calls: Vec<TcpStream> = (0..CALLS)
        .map(|_| {
            let mut stream = TcpStream::connect(cluster.admin(sleeper)).unwrap();
            stream.set_read_timeout(Some(CATCH_UP)).unwrap();
            stream
                .write_all(
                    b"PUT /v1/services/mortal/heartbeat HTTP/1.1\r\nHost: n\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
                )
                .unwrap();
            stream
        })
        .collect();
    cluster.signal(sleeper, rustix::process::Signal::CONT);
    for stream in &mut calls {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    }
}

#[test]
fn a_node_without_a_quorum_serves_what_it_knew_and_says_so() {
    let (mut cluster, service) = (TestCluster::start(NODES), TestService::start("echo"));
    cluster.apply(0, &document(1, "s"));
    cluster.register(0, "i", "s0", service.address);
    let known = |cluster: &TestCluster| {
        eventually(CATCH_UP, "node 1 serves", || match get(cluster.web(0), "/s0") {
            Ok(response) if response.status == 200 => Ok(()),
            other => Err(format!("{other:?}")),
        });
    };
    known(&cluster);
    // A node that starts alone knows what it knew to be committed; that follows the entry by the next one,
    // which is at the latest the next tick.
    let applied = |cluster: &TestCluster| cluster.status(0).map(|status| status["applied"].as_u64());
    let registered = applied(&cluster).unwrap();
    eventually(CATCH_UP, "two more ticks were applied", || match applied(&cluster)? {
        now if now >= registered.map(|index| index + 2) => Ok(()),
        now => Err(format!("{now:?}")),
    });
    cluster.kill(1);
    cluster.kill(2);
    // Alone with its memory, then alone with its disk.
    for _ in 0..2 {
        known(&cluster);
        assert_eq!(get(cluster.admin(0), "/readyz").unwrap().status, 200);
        eventually(CATCH_UP, "it says that there is no quorum", || {
            let said = get(cluster.admin(0), "/readyz?verbose").map_err(|error| error.to_string())?.text();
            if said.contains("[-] quorum") { Ok(()) } else { Err(said) }
        });
        let begun = Instant::now();
        let body = r#"{"id":"x","name":"s0","address":"127.0.0.1:9"}"#;
        let (status, problem) = json(cluster.admin(0), "POST", "/v1/services?timeout=500ms", body);
        assert!(matches!(status, 503 | 504), "{problem}");
        assert!(begun.elapsed() < Duration::from_secs(3), "a call ends at its deadline");
        assert_eq!(json(cluster.admin(0), "GET", "/v1/services?timeout=300ms", "").0, 503);
        assert_eq!(json(cluster.admin(0), "GET", "/v1/services/i?stale", "").0, 200);
        cluster.kill(0);
        cluster.start_node(0);
    }
}

#[test]
fn the_status_shows_the_clusters_format_and_the_newest_of_each_node() {
    let cluster = TestCluster::start(NODES);
    eventually(CATCH_UP, "the cluster writes what all nodes understand", || {
        let status = cluster.status(1)?;
        let newest: Vec<_> =
            status["nodes"].as_array().into_iter().flatten().map(|node| node["format"].as_u64()).collect();
        match status["format"].as_u64() {
            format @ Some(3..) if newest == [format; NODES] => Ok(()),
            _ => Err(status.to_string()),
        }
    });
}
