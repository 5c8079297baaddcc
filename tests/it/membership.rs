//! Running a cluster of real nodes: planned stops, drains, nodes that come and go.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::harness::{TestCluster, TestService, call, eventually, get, json};

/// How long a node may take, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

const DOCUMENT: &str = "listeners: { web: { address: \"127.0.0.1:8080\" } }\nservices: { echo: {} }\n\
    routes: [{ name: echo, match: { path_prefix: / }, service: echo }]\n";

/// A cluster that serves `echo` on every node.
fn serving(nodes: usize) -> (TestCluster, TestService) {
    let (cluster, service) = (TestCluster::start(nodes), TestService::start("echo"));
    cluster.apply(0, DOCUMENT);
    cluster.register(0, "i", "echo", service.address);
    for node in 0..nodes {
        serves(&cluster, node);
    }
    (cluster, service)
}

#[track_caller]
fn serves(cluster: &TestCluster, node: usize) {
    eventually(PATIENCE, "it serves", || match get(cluster.web(node), "/") {
        Ok(response) if response.status == 200 => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

/// What `node` knows of the node at `place`.
fn known(cluster: &TestCluster, node: usize, place: usize) -> Option<Value> {
    let status = cluster.status(node).ok()?;
    let nodes = status["nodes"].as_array()?;
    nodes.iter().find(|known| known["peer"] == cluster.peer(place)).cloned()
}

fn id(cluster: &TestCluster, node: usize, place: usize) -> u64 {
    eventually(PATIENCE, "it is a member", || {
        known(cluster, node, place).and_then(|node| node["id"].as_u64()).ok_or_else(|| "not yet".to_owned())
    })
}

fn verbose(cluster: &TestCluster, node: usize) -> (u16, String) {
    match get(cluster.admin(node), "/readyz?verbose") {
        Ok(response) => (response.status, response.text()),
        Err(error) => (0, error.to_string()),
    }
}

#[test]
fn a_planned_stop_of_the_leader_fails_no_write_and_costs_no_election() {
    let mut cluster = TestCluster::start(3);
    let leader = cluster.leader();
    let survivor = (leader + 1) % 3;
    let done = AtomicBool::new(false);
    let admin = cluster.admin(survivor);
    let longest = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let (mut longest, mut count) = (Duration::ZERO, 0);
            while !done.load(Ordering::SeqCst) {
                let begun = Instant::now();
                let body = format!(r#"{{"id":"w{count}","name":"w","address":"127.0.0.1:1","ttl":"0s"}}"#);
                let (status, answer) = json(admin, "POST", "/v1/services", &body);
                assert_eq!(status, 201, "{answer}");
                longest = longest.max(begun.elapsed());
                count += 1;
            }
            longest
        });
        cluster.stop(leader);
        std::thread::sleep(Duration::from_millis(300));
        done.store(true, Ordering::SeqCst);
        writer.join().unwrap()
    });
    println!("the longest write took {longest:?}");
    let log = cluster.log(leader);
    assert!(log.contains("the leadership was handed over"), "{log}");
}

#[test]
fn a_drained_node_lives_on_and_is_no_more_ready_and_no_leader() {
    let (mut cluster, _service) = serving(3);
    let leader = cluster.leader();
    let (code, _, error) = cluster.cli(None, &["cluster", "drain"]);
    assert_eq!(code, Some(2), "which one? {error}");
    let (code, out, error) = cluster.cli(Some(leader), &["cluster", "drain"]);
    assert_eq!(code, Some(0), "{error}");
    assert!(out.contains("can be stopped"), "{out}");
    let (status, text) = verbose(&cluster, leader);
    assert_eq!(status, 503);
    assert!(text.contains("draining") && text.contains("[+] quorum"), "{text}");
    assert!(get(cluster.web(leader), "/").is_err(), "it takes no connection");
    let other = (leader + 1) % 3;
    eventually(PATIENCE, "another leads", || match known(&cluster, other, leader) {
        Some(node) if node["state"] == "follower" && node["draining"] == true => Ok(()),
        other => Err(format!("{other:?}")),
    });
    serves(&cluster, other);
    // It still takes calls, and again is as good as once.
    cluster.register(leader, "j", "echo", "127.0.0.1:1".parse().unwrap());
    assert_eq!(json(cluster.admin(leader), "POST", "/v1/node/drain", "").0, 200);
    cluster.stop(leader);
}

#[test]
fn a_node_is_let_in_serves_is_taken_out_and_knows_it() {
    let (mut cluster, _service) = serving(3);
    let fourth = cluster.prepare_waiting("voter");
    let (code, _, error) = cluster.cli(None, &["cluster", "add", cluster.peer(fourth)]);
    assert_eq!(code, Some(1));
    assert!(error.contains("start it first"), "{error}");
    cluster.start_node(fourth);
    eventually(PATIENCE, "it is let in", || {
        match cluster.cli(Some(1), &["cluster", "add", cluster.peer(fourth), "-o", "json"]) {
            (Some(0), out, _) => Ok(out),
            (_, _, error) => Err(error),
        }
    });
    let id = id(&cluster, 0, fourth);
    assert_eq!(known(&cluster, 0, fourth).unwrap()["role"], "voter");
    serves(&cluster, fourth);

    let (code, _, error) = cluster.cli(Some(0), &["cluster", "remove", &id.to_string()]);
    assert_eq!(code, Some(0), "{error}");
    // The leader took it out; the node that passed the call on hears of it like any.
    eventually(PATIENCE, "it is gone", || {
        known(&cluster, 0, fourth).map_or(Ok(()), |node| Err(node.to_string()))
    });
    eventually(PATIENCE, "it knows", || match verbose(&cluster, fourth) {
        (503, text) if text.contains("[-] member") => Ok(()),
        (_, text) => Err(text),
    });
    assert_eq!(get(cluster.admin(fourth), "/livez").unwrap().status, 200);
    assert_eq!(get(cluster.web(fourth), "/").unwrap().status, 200, "it serves what it last knew");
    let (code, _, error) = cluster.cli(Some(0), &["cluster", "remove", &id.to_string()]);
    assert_eq!(code, Some(1));
    assert!(error.contains("no member any more"), "{error}");
    // Its id and its disk are gone for good; an empty disk is a new node.
    cluster.stop(fourth);
    cluster.wipe(fourth);
    cluster.start_node(fourth);
    eventually(PATIENCE, "it is let in again", || {
        match cluster.cli(Some(2), &["cluster", "add", cluster.peer(fourth)]) {
            (Some(0), ..) => Ok(()),
            (_, _, error) => Err(error),
        }
    });
    assert_eq!(self::id(&cluster, 0, fourth), id + 1);
}

#[test]
fn the_leader_is_removed_through_itself() {
    let cluster = TestCluster::start(3);
    let leader = cluster.leader();
    let id = id(&cluster, leader, leader);
    let response = call(cluster.admin(leader), "DELETE", &format!("/v1/cluster/members/{id}"), &[], "");
    assert_eq!(response.unwrap().status, 204);
    let other = (leader + 1) % 3;
    cluster.register(other, "i", "echo", "127.0.0.1:1".parse().unwrap());
    eventually(PATIENCE, "it is gone", || {
        known(&cluster, other, leader).map_or(Ok(()), |node| Err(node.to_string()))
    });
}

/// Registers `id` at the first node that takes it, as a client with several addresses does.
fn write(admins: &[SocketAddr], first: usize, id: &str) {
    let body = format!(r#"{{"id":"{id}","name":"w","address":"127.0.0.1:1","ttl":"0s"}}"#);
    let deadline = Instant::now() + PATIENCE;
    for at in first.. {
        match call(admins[at % admins.len()], "POST", "/v1/services", &[], &body) {
            Ok(response) if matches!(response.status, 200 | 201) => return,
            // Nothing was written; the same id may be registered again in any case.
            Ok(response) if response.status == 503 => {}
            Ok(response) => panic!("{}", response.text()),
            Err(_) => {}
        }
        assert!(Instant::now() < deadline, "no node takes it");
    }
}

#[test]
fn a_rolling_restart_fails_no_write() {
    let mut cluster = TestCluster::start(3);
    let admins: Vec<_> = (0..3).map(|node| cluster.admin(node)).collect();
    let done = AtomicBool::new(false);
    let (count, longest) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let (mut count, mut longest) = (0, Duration::ZERO);
            while !done.load(Ordering::SeqCst) {
                let begun = Instant::now();
                write(&admins, count, &format!("w{count}"));
                longest = longest.max(begun.elapsed());
                count += 1;
            }
            (count, longest)
        });
        for node in 0..3 {
            cluster.stop(node);
            cluster.start_node(node);
            cluster.wait_until_ready();
        }
        done.store(true, Ordering::SeqCst);
        writer.join().unwrap()
    });
    println!("{count} writes, the longest took {longest:?}");
    for node in 0..3 {
        assert_eq!(cluster.instances(node).unwrap().len(), count);
    }
}

#[test]
fn what_would_do_harm_is_refused_with_its_reason() {
    let mut cluster = TestCluster::start(3);
    let leader = cluster.leader();
    let refused = |method: &str, path: &str, body: &str| {
        let (status, answer) = json(cluster.admin(leader), method, path, body);
        (status, answer["detail"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(refused("DELETE", "/v1/cluster/members/99", "").0, 404);
    assert_eq!(refused("DELETE", "/v1/cluster/members/n1", "").0, 400);
    assert_eq!(refused("POST", "/v1/cluster/members/99/promote", "").0, 404);
    assert_eq!(refused("POST", "/v1/cluster/transfer-leader", r#"{"to": 99}"#).0, 404);
    assert_eq!(refused("POST", "/v1/cluster/transfer-leader", r#"{"too": 1}"#).0, 422);
    assert_eq!(refused("POST", "/v1/cluster/members", r#"{"role": "king"}"#).0, 422);
    let nobody = refused("POST", "/v1/cluster/members", r#"{"address": "127.0.0.1:9"}"#);
    assert_eq!(nobody.0, 409, "{}", nobody.1);

    let (dead, living) = ((leader + 1) % 3, (leader + 2) % 3);
    let (dead_id, living_id) = (id(&cluster, leader, dead), id(&cluster, leader, living));
    cluster.kill(dead);
    let path = format!("/v1/cluster/members/{living_id}");
    let (status, answer) = json(cluster.admin(leader), "DELETE", &path, "");
    assert_eq!(status, 409);
    assert!(answer["detail"].as_str().unwrap().contains("no majority"), "{answer}");
    let path = format!("/v1/cluster/members/{dead_id}");
    assert_eq!(call(cluster.admin(leader), "DELETE", &path, &[], "").unwrap().status, 204);
    // When it comes back it is told, disturbs nobody and stays out.
    cluster.start_node(dead);
    eventually(PATIENCE, "it is told", || match verbose(&cluster, dead) {
        (503, text) if text.contains("[-] member") => Ok(()),
        (_, text) => Err(text),
    });
    cluster.register(leader, "i", "echo", "127.0.0.1:1".parse().unwrap());
}

#[test]
fn a_learner_gateway_serves_takes_calls_and_outlives_the_voters() {
    let (mut cluster, _service) = serving(3);
    let learner = cluster.prepare_waiting("learner");
    cluster.start_node(learner);
    let mismatch = eventually(PATIENCE, "its role is compared", || {
        match cluster.cli(Some(0), &["cluster", "add", cluster.peer(learner)]) {
            (Some(1), _, error) if error.contains("cluster.role") => Ok(error),
            other => Err(format!("{other:?}")),
        }
    });
    assert!(mismatch.contains("nothing was changed"), "{mismatch}");
    let (code, out, error) = cluster.cli(Some(0), &["cluster", "add", cluster.peer(learner), "--learner"]);
    assert_eq!(code, Some(0), "{error}");
    assert!(out.contains("learner"), "{out}");
    serves(&cluster, learner);
    cluster.register(learner, "j", "other", "127.0.0.1:1".parse().unwrap());
    assert!(cluster.instances(learner).unwrap().contains("j"));
    let answer = cluster.apply(learner, &DOCUMENT.replace("path_prefix: /", "path_prefix: /echo"));
    assert_eq!(answer["nodes"]["n4"], "active", "{answer}");
    assert_eq!(json(cluster.admin(learner), "POST", "/v1/cluster/transfer-leader", "").0, 200);

    for voter in 0..3 {
        cluster.kill(voter);
    }
    assert_eq!(get(cluster.web(learner), "/echo").unwrap().status, 200);
    cluster.kill(learner);
    cluster.start_node(learner);
    eventually(PATIENCE, "it serves from its own disk", || match get(cluster.web(learner), "/echo") {
        Ok(response) if response.status == 200 => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert_eq!(get(cluster.admin(learner), "/readyz").unwrap().status, 200);
}
