//! The client library and `gogate service watch`, against nodes that come and go.

use std::{
    io::{BufRead, BufReader},
    process::Stdio,
    time::Duration,
};

use gogate::client::{Call, Client, Error, Event, Instance};
use http::Method;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::harness::{Program, TestCluster, eventually, free_address, gogate, json};

/// How long a change may take to be seen, on a busy machine.
const SOON: Duration = Duration::from_secs(20);

/// A client of all nodes of `cluster`, which asks them in order.
fn client(cluster: &TestCluster) -> Client {
    Client::new(cluster.admins().split(','), None).unwrap()
}

fn wait_for(cluster: &TestCluster, node: usize, id: &str, there: bool) {
    eventually(SOON, &format!("{id} is {}there", if there { "" } else { "not " }), || {
        let ids = cluster.instances(node)?;
        if ids.contains(id) == there { Ok(()) } else { Err(format!("{ids:?}")) }
    });
}

/// Returns once an instance that registers now and never beats has expired.
fn wait_for_a_life(cluster: &TestCluster, node: usize) {
    let body = r#"{"id":"silent","name":"other","address":"h:1","ttl":"1s"}"#;
    assert!(json(cluster.admin(node), "POST", "/v1/services", body).0 < 300);
    wait_for(cluster, node, "silent", false);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registration_lives_through_the_loss_of_a_node_and_ends_with_its_guard() {
    let mut cluster = TestCluster::start(3);
    let client = client(&cluster);
    let instance = Instance { ttl: Duration::from_secs(1), ..Instance::new("api", "10.0.0.1:9000") };
    let registration = client.register(instance.clone()).await.unwrap();
    let id = registration.instance().id.clone();
    assert!(registration.instance().epoch > 0);
    wait_for_a_life(&cluster, 1);
    wait_for(&cluster, 1, &id, true);

    // The node that it beats at.
    cluster.kill(0);
    wait_for_a_life(&cluster, 1);
    wait_for(&cluster, 1, &id, true);

    // Forgotten, it registers again: a new life.
    let path = format!("/v1/services/{id}");
    assert_eq!(json(cluster.admin(1), "DELETE", &path, "").0, 204);
    wait_for(&cluster, 1, &id, true);
    let (_, again) = json(cluster.admin(1), "GET", &path, "");
    assert!(again["epoch"].as_u64().unwrap() > registration.instance().epoch);

    registration.close().await.unwrap();
    assert!(!cluster.instances(1).unwrap().contains(&id), "closed is gone");
    let registration = client.register(instance).await.unwrap();
    wait_for(&cluster, 1, &id, true);
    drop(registration);
    wait_for(&cluster, 1, &id, false);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_goes_on_at_the_next_node_where_it_was() {
    const CHANGES: usize = 60;
    let mut cluster = TestCluster::start(3);
    let mut watch = client(&cluster).watch(Some("api")).await.unwrap();
    let first = watch.next().await.unwrap();
    assert!(matches!(first, Event::Snapshot { ref instances, .. } if instances.is_empty()), "{first:?}");
    let mut expected = Vec::new();
    for number in 0..CHANGES {
        // The node that is watched at dies, another one stops in order, and the first comes back.
        match number {
            20 => cluster.kill(0),
            30 => {
                cluster.start_node(0);
                cluster.wait_until_ready();
            }
            40 => cluster.stop(1),
            _ => {}
        }
        let answer = cluster.register(2, &format!("i{number}"), "api", free_address());
        expected.push(answer["index"].as_u64().unwrap());
        if number % 10 == 5 {
            let event = watch.next().await.unwrap();
            assert!(expected.contains(&event.index()), "{event:?}");
        }
    }
    // Those that were read on the way are six.
    for index in &expected[6..] {
        let event = tokio::time::timeout(SOON, watch.next()).await.expect("it goes on").unwrap();
        assert_eq!(event.index(), *index);
        assert!(matches!(event, Event::Registered { .. }), "{event:?}");
    }
}

#[tokio::test]
async fn errors_say_what_is_known() {
    let nobody = Client::new([free_address().to_string()], None).unwrap();
    assert!(matches!(nobody.watch(None).await, Err(Error::Unreachable(_))));
    let cluster = TestCluster::start(1);
    let client = client(&cluster);
    let wrong = client.register(Instance { weight: 0, ..Instance::new("api", "h:1") }).await;
    assert!(matches!(wrong, Err(Error::Refused { status: 422, .. })), "{wrong:?}");
}

/// A node that answers every call with `status`, once a connection.
async fn node_that_answers(status: u16) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let _ = stream.read(&mut request).await;
            let answer = format!("HTTP/1.1 {status} S\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{{}}");
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    address
}

#[tokio::test]
async fn what_a_node_does_not_know_the_next_one_is_asked_if_it_may_be_repeated() {
    let once = Call::new(Method::PUT, "/v1/services/a/heartbeat");
    let beat = once.clone().repeatable();
    for (nodes, call, status) in [
        (vec![504, 200], &beat, 200),
        (vec![504, 404], &beat, 404),
        (vec![504, 200], &once, 504),
        (vec![503, 504, 503], &beat, 504),
        (vec![503, 200], &once, 200),
    ] {
        let mut addresses = Vec::new();
        for status in &nodes {
            addresses.push(node_that_answers(*status).await);
        }
        let reply = Client::new(addresses, None).unwrap().send(call).await.unwrap();
        assert_eq!(reply.status, status, "{nodes:?}");
    }
}

#[test]
fn the_command_prints_changes_and_goes_on_when_its_node_is_lost() {
    let mut cluster = TestCluster::start(3);
    cluster.register(0, "a", "api", free_address());
    let watch = |arguments: &[&str]| {
        let mut command = gogate();
        command.args(["--admin", &cluster.admins(), "service", "watch"]).args(arguments);
        Program::start(command.stdout(Stdio::piped()))
    };
    let (mut person, mut program) = (watch(&[]), watch(&["api", "-o", "json"]));
    let mut lines = BufReader::new(person.stdout()).lines().map(Result::unwrap);
    let mut values = BufReader::new(program.stdout()).lines().map(|line| {
        let value: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
        value
    });
    assert!(lines.next().unwrap().contains("snapshot      instances: 1"));
    assert!(lines.next().unwrap().contains("present       a "));
    assert_eq!(values.next().unwrap()["instances"][0]["id"], "a");
    cluster.kill(0);
    let address = free_address();
    let index = cluster.register(1, "b", "api", address)["index"].clone();
    let line = lines.next().unwrap();
    for part in ["Z  registered    b ", "api ", &address.to_string()] {
        assert!(line.contains(part), "{line}");
    }
    let value = values.next().unwrap();
    assert_eq!((&value["event"], &value["id"], &value["index"]), (&"registered".into(), &"b".into(), &index));
}
