//! The admin API of one node, call by call.

use std::time::Duration;

use crate::harness::{Connection, TestCluster, call, eventually, get, json};

#[test]
fn an_instance_lives_from_its_registration_to_its_removal() {
    let cluster = TestCluster::start(1);
    let admin = cluster.admin(0);
    let body = r#"{"id":"a/1","name":"api","address":"10.0.0.1:9000","weight":3,"metadata":{"zone":"x"},"tags":["blue"]}"#;
    let first = call(admin, "POST", "/v1/services", &[], body).unwrap();
    assert_eq!(first.status, 201, "{}", first.text());
    let instance = first.json();
    assert_eq!(instance["expires_in_ms"], 30_000);
    assert_eq!(instance["epoch"], instance["index"]);
    assert_eq!(first.header("x-gogate-index").unwrap(), instance["index"].to_string());

    let (status, again) = json(admin, "POST", "/v1/services", body);
    assert_eq!(status, 200, "the same id replaces");
    assert!(again["epoch"].as_u64() > instance["epoch"].as_u64(), "a new life has a new epoch");

    let (status, found) = json(admin, "GET", "/v1/services/a%2F1", "");
    assert_eq!((status, &found["address"], &found["weight"]), (200, &"10.0.0.1:9000".into(), &3.into()));
    let (_, list) = json(admin, "GET", "/v1/services?name=api&tag=blue", "");
    assert_eq!(list.as_array().unwrap().len(), 1);
    for none in ["/v1/services?name=other", "/v1/services?tag=red&stale"] {
        assert_eq!(json(admin, "GET", none, "").1, serde_json::json!([]), "{none}");
    }

    assert_eq!(json(admin, "DELETE", "/v1/services/a%2F1", "").0, 204);
    assert_eq!(json(admin, "DELETE", "/v1/services/a%2F1", "").0, 404);
    assert_eq!(json(admin, "GET", "/v1/services/a%2F1", "").0, 404);
}

#[test]
fn a_silent_instance_expires_and_one_that_beats_does_not() {
    let cluster = TestCluster::start(1);
    let admin = cluster.admin(0);
    for id in ["silent", "beating"] {
        let body = format!(r#"{{"id":"{id}","name":"api","address":"10.0.0.1:9000","ttl":"3s"}}"#);
        assert_eq!(json(admin, "POST", "/v1/services", &body).0, 201);
    }
    eventually(Duration::from_secs(20), "the silent one is gone", || {
        let (status, beat) = json(admin, "PUT", "/v1/services/beating/heartbeat", "");
        assert_eq!((status, &beat["expires_in_ms"]), (200, &3000.into()), "{beat}");
        match json(admin, "GET", "/v1/services/silent", "") {
            (404, _) => Ok(()),
            (_, seen) => Err(seen.to_string()),
        }
    });
    assert_eq!(json(admin, "GET", "/v1/services/beating", "").0, 200);
    assert_eq!(json(admin, "PUT", "/v1/services/silent/heartbeat", "").0, 404);
}

#[test]
fn backends_are_every_service_s_endpoints_as_the_node_sees_them() {
    let cluster = TestCluster::start(1);
    let admin = cluster.admin(0);
    let document = r#"{"listeners":{"web":{"address":"127.0.0.1:0"}},
        "services":{"api":{"circuit_breaker":{},"endpoints":[{"address":"10.0.0.1:9000","weight":3}]}}}"#;
    assert_eq!(json(admin, "PUT", "/v1/config", document).0, 200);
    let (status, seen) = json(admin, "GET", "/backends", "");
    assert_eq!(status, 200);
    let api = seen["services"].as_array().unwrap().iter().find(|service| service["name"] == "api").unwrap();
    let expected = serde_json::json!({
        "address": "10.0.0.1:9000",
        "weight": 3,
        "available": true,
        "health": "unknown",
        "ejected_for_ms": null,
        "circuit_breaker": "closed",
    });
    assert_eq!(api["endpoints"], serde_json::json!([expected]));
    assert_eq!(json(admin, "POST", "/backends", "").0, 405);
}

#[test]
fn a_call_that_is_wrong_is_refused_and_says_why() {
    let cluster = TestCluster::start(1);
    let admin = cluster.admin(0);
    let large = format!(r#"{{"name":"{}"}}"#, "x".repeat(70_000));
    for (method, path, body, status, says) in [
        ("POST", "/v1/services", "{", 400, "EOF"),
        ("POST", "/v1/services", r#"{"name":"a","adress":"h:1"}"#, 422, "adress"),
        ("POST", "/v1/services", r#"{"name":"a"}"#, 422, "address"),
        ("POST", "/v1/services", r#"{"name":7,"address":"h:1"}"#, 422, "expected a text"),
        ("POST", "/v1/services", r#"["a","h:1"]"#, 422, "expected an object"),
        ("POST", "/v1/config/rollback", r#"{"version":"1"}"#, 422, "a whole number"),
        ("POST", "/v1/services", &large, 413, "65536"),
        ("GET", "/v1/services?staple", "", 400, "staple"),
        ("GET", "/v1/services?index=4&wait=1h", "", 400, "at most 600s"),
        ("GET", "/v1/watch?since=x", "", 400, "whole number"),
        ("GET", "/v1/watch?after=4", "", 400, "unknown query parameter"),
        ("POST", "/v1/watch", "", 405, "GET"),
        ("GET", "/v1/services?timeout=2h", "", 400, "timeout"),
        ("GET", "/v1/services/none", "", 404, "none"),
        ("PUT", "/v1/services/none/heartbeat", "", 404, "register"),
        ("PATCH", "/v1/services", "", 405, "POST"),
        ("GET", "/v1/nothing", "", 404, "/v1/nothing"),
        ("GET", "/v1/config?version=x", "", 400, "version"),
        ("POST", "/v1/config/rollback", r#"{"version":9}"#, 404, "9"),
    ] {
        let response = call(admin, method, path, &[], body).unwrap();
        let problem = response.json();
        assert_eq!(response.status, status, "{method} {path} {body:.50}: {problem}");
        assert_eq!(response.header("content-type"), Some("application/problem+json"));
        assert_eq!(problem["status"], status);
        assert!(problem.to_string().contains(says), "{method} {path}: {problem}");
    }
    assert_eq!(json(admin, "GET", "/v1/services", "").1, serde_json::json!([]), "nothing changed");
}

#[test]
fn a_write_that_a_foreign_page_sends_or_that_asks_for_too_much_is_refused() {
    let cluster = TestCluster::start(1);
    let admin = cluster.admin(0);
    let own = format!("http://{admin}");
    let body = r#"{"id":"a","name":"api","address":"h:1"}"#;
    for (name, value, status) in [
        ("origin", "https://evil.example", 403),
        ("origin", "null", 403),
        ("content-type", "text/plain;charset=UTF-8", 415),
        ("idempotency-key", " ", 400),
        ("origin", own.as_str(), 201),
        ("content-type", "application/json", 200),
    ] {
        let response = call(admin, "POST", "/v1/services", &[(name, value)], body).unwrap();
        assert_eq!(response.status, status, "{name}: {value}: {}", response.text());
    }
}

#[test]
fn every_problem_of_a_registration_is_listed() {
    let cluster = TestCluster::start(1);
    let body = r#"{"name":"a b","address":"nowhere","ttl":"soon","weight":0}"#;
    let (status, problem) = json(cluster.admin(0), "POST", "/v1/services", body);
    let paths: Vec<_> =
        problem["problems"].as_array().unwrap().iter().map(|problem| &problem["path"]).collect();
    assert_eq!(status, 422);
    assert_eq!(paths, ["name", "address", "weight", "ttl"]);
}

#[test]
fn probes_and_metrics_answer() {
    let cluster = TestCluster::start(1);
    let admin = cluster.admin(0);
    for path in ["/livez", "/readyz", "/health", "/"] {
        assert_eq!(get(admin, path).unwrap().status, 200, "{path}");
    }
    cluster.register(0, "a", "api", "127.0.0.1:9".parse().unwrap());
    let metrics = get(admin, "/metrics").unwrap().text();
    for line in [
        "gogate_registry_instances{service=\"_OTHER\"} 1",
        "gogate_raft_is_leader 1",
        "gogate_config_version{state=\"active\"} 0",
        "gogate_build_info{version=",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    let status = cluster.status(0).unwrap();
    assert_eq!(status["leader"], status["nodes"][0]["id"]);
    assert_eq!(status["nodes"][0]["name"], "n1");
    assert_eq!(status["nodes"][0]["admin"], admin.to_string());
    assert_eq!(status["cluster"], "test");
}

#[test]
fn a_connection_serves_many_calls() {
    let cluster = TestCluster::start(1);
    let mut connection = Connection::open(cluster.admin(0)).unwrap();
    for number in 0..50 {
        let body = format!(r#"{{"id":"i{number}","name":"api","address":"10.0.0.1:{}"}}"#, 9000 + number);
        assert_eq!(connection.call("POST", "/v1/services", &[], &body).unwrap().status, 201);
    }
    assert_eq!(cluster.instances(0).unwrap().len(), 50);
}

#[test]
fn a_write_with_a_key_is_done_once_at_whichever_node_it_is_repeated() {
    let mut cluster = TestCluster::start(3);
    let body = r#"{"name":"api","address":"10.0.0.1:80","ttl":"0s"}"#;
    let register = |cluster: &TestCluster, node, body: &str| {
        call(cluster.admin(node), "POST", "/v1/services", &[("idempotency-key", "a-key")], body).unwrap()
    };
    let first = register(&cluster, 0, body);
    assert_eq!(first.status, 201);
    let again = register(&cluster, 1, body);
    assert_eq!((again.status, again.json()), (201, first.json()));
    let other = register(&cluster, 2, &body.replace("10.0.0.1", "10.0.0.2"));
    assert_eq!(other.status, 422, "the key was for something else: {}", other.text());

    let leader = cluster.leader();
    let id = first.json()["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/services/{id}");
    // What was on its way to a leader that died is unknown: a key is there so that it may be repeated.
    let remove = |cluster: &TestCluster, node| {
        let once =
            || call(cluster.admin(node), "DELETE", &path, &[("idempotency-key", "another")], "").unwrap();
        std::iter::repeat_with(once)
            .take(100)
            .map(|answer| answer.status)
            .find(|status| *status != 504)
            .expect("it ends")
    };
    assert_eq!(remove(&cluster, leader), 204);
    cluster.kill(leader);
    let node = (leader + 1) % 3;
    assert_eq!(remove(&cluster, node), 204, "the new leader knows that it was done");
    assert_eq!(register(&cluster, node, body).json(), first.json());
    assert_eq!(cluster.instances(node).unwrap().len(), 0, "and it is not done again");
}
