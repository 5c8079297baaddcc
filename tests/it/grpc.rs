//! The registry over gRPC, by a client that tonic generated, at the port of the admin API.

use std::{collections::HashMap, time::Duration};

use gogate_proto::v1::{
    self, BeatRequest, DeregisterRequest, ListRequest, RegisterRequest, WatchRequest,
    registry_client::RegistryClient, watch_event::Event,
};
use tonic::{Code, Request, Streaming, transport::Channel};

use crate::harness::{Events, TestCluster, free_address, get, json};

/// How long an event may take, on a busy machine.
const SOON: Duration = Duration::from_secs(20);

async fn client(cluster: &TestCluster, node: usize) -> RegistryClient<Channel> {
    RegistryClient::connect(format!("http://{}", cluster.admin(node))).await.unwrap()
}

fn instance(id: &str, name: &str) -> RegisterRequest {
    let (id, name, address) = (id.to_owned(), name.to_owned(), "10.0.0.1:9000".to_owned());
    RegisterRequest { id, name, address, ..RegisterRequest::default() }
}

async fn next(watch: &mut Streaming<v1::WatchEvent>) -> (u64, Event) {
    let event = tokio::time::timeout(SOON, watch.message()).await.expect("it goes on").unwrap();
    let event = event.expect("the stream goes on");
    (event.index, event.event.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_does_what_its_line_of_the_admin_api_does() {
    let cluster = TestCluster::start(1);
    let admin = cluster.admin(0);
    let mut client = client(&cluster, 0).await;
    let request = RegisterRequest {
        ttl_ms: Some(1500),
        weight: Some(3),
        metadata: HashMap::from([("zone".to_owned(), "x".to_owned())]),
        tags: vec!["blue".to_owned()],
        ..instance("a/1", "api")
    };
    let reply = client.register(request.clone()).await.unwrap().into_inner();
    let registered = reply.instance.unwrap();
    assert!(reply.created && registered.epoch == reply.index);
    assert_eq!((registered.ttl_ms, registered.expires_in_ms), (1500, Some(1500)));
    let (_, seen) = json(admin, "GET", "/v1/services/a%2F1", "");
    assert_eq!(
        (&seen["weight"], &seen["metadata"]["zone"], &seen["ttl"]),
        (&3.into(), &"x".into(), &"1500ms".into())
    );
    assert!(!client.register(request).await.unwrap().into_inner().created, "the same id replaces");

    let beat = client.beat(BeatRequest { id: "a/1".to_owned() }).await.unwrap().into_inner();
    assert_eq!(beat.expires_in_ms, Some(1500));
    let list =
        |tag: &str| ListRequest { name: "api".to_owned(), tag: tag.to_owned(), ..ListRequest::default() };
    let listed = client.list(list("blue")).await.unwrap().into_inner();
    assert_eq!((listed.instances.len(), listed.index), (1, beat.index));
    assert_eq!(client.list(list("red")).await.unwrap().into_inner().instances.len(), 0);
    let blocking = ListRequest { index: Some(listed.index), wait_ms: Some(50), ..list("") };
    assert_eq!(client.list(blocking).await.unwrap().into_inner().index, listed.index);

    let gone = DeregisterRequest { id: "a/1".to_owned() };
    assert!(client.deregister(gone.clone()).await.unwrap().into_inner().index > listed.index);
    let unknown = client.deregister(gone).await.unwrap_err();
    assert_eq!((unknown.code(), unknown.message().contains("a/1")), (Code::NotFound, true));
    let wrong = RegisterRequest { weight: Some(0), ..instance("", "a b") };
    let wrong = client.register(wrong).await.unwrap_err();
    assert_eq!(wrong.code(), Code::InvalidArgument);
    assert!(wrong.message().contains("weight") && wrong.message().contains("a b"), "{}", wrong.message());
    // Its metadata are the headers of the call: a write with a key is done once.
    let mut keyed = Request::new(instance("", "once"));
    keyed.metadata_mut().insert("idempotency-key", "k".parse().unwrap());
    let (mut again, metadata) = (Request::new(instance("", "once")), keyed.metadata().clone());
    *again.metadata_mut() = metadata;
    let first = client.register(keyed).await.unwrap().into_inner();
    assert_eq!(client.register(again).await.unwrap().into_inner().instance, first.instance);
    // The port goes on speaking HTTP/1.1.
    assert_eq!(get(admin, "/livez").unwrap().status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_tells_what_the_events_tell_and_ends_with_its_node() {
    let mut cluster = TestCluster::start(3);
    let mut client = client(&cluster, 1).await;
    let first = cluster.register(0, "a", "api", free_address())["index"].as_u64().unwrap();
    let mut all = client.watch(WatchRequest::default()).await.unwrap().into_inner();
    let resumed = WatchRequest { name: "api".to_owned(), since: Some(first), stale: false };
    let mut api = client.watch(resumed).await.unwrap().into_inner();
    let mut events = Events::open(cluster.admin(1), &format!("/v1/watch?since={first}"));

    let (index, Event::Snapshot(snapshot)) = next(&mut all).await else { panic!("it begins with one") };
    assert_eq!((index, snapshot.instances.len(), snapshot.more), (first, 1, false));
    assert_eq!(snapshot.config_version, Some(0));
    cluster.register(0, "o", "other", free_address());
    cluster.register(2, "b", "api", free_address());
    cluster.register(0, "b", "api", free_address());
    assert_eq!(json(cluster.admin(2), "DELETE", "/v1/services/b", "").0, 204);
    let mut expected = Vec::new();
    for _ in 0..4 {
        let (index, event) = next(&mut all).await;
        let (name, id) = match event {
            Event::Registered(now) => ("registered", now.id),
            Event::Updated(now) => ("updated", now.id),
            Event::Deregistered(was) => ("deregistered", was.id),
            other => panic!("{other:?}"),
        };
        expected.push(index);
        let told = events.expect();
        assert_eq!((told.id, told.name.as_str(), &told.data["id"]), (Some(index), name, &id.into()));
    }
    for index in &expected[1..] {
        assert_eq!(next(&mut api).await.0, *index);
    }
    cluster.stop(1);
    let ended = loop {
        match tokio::time::timeout(SOON, all.message()).await.expect("it ends") {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it ended without a reason"),
            Err(status) => break status,
        }
    };
    assert_eq!(ended.code(), Code::Unavailable, "{ended:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_is_larger_than_a_message_comes_in_several() {
    let cluster = TestCluster::start(1);
    let mut client = client(&cluster, 0).await;
    let metadata: HashMap<_, _> = (0..60).map(|number| (format!("k{number}"), "x".repeat(250))).collect();
    for number in 0..200 {
        let request =
            RegisterRequest { metadata: metadata.clone(), ..instance(&format!("i{number}"), "api") };
        client.register(request).await.unwrap();
    }
    let mut watch = client.watch(WatchRequest::default()).await.unwrap().into_inner();
    let (mut instances, mut messages) = (0, 0);
    loop {
        let (_, Event::Snapshot(part)) = next(&mut watch).await else { panic!("the snapshot is not over") };
        instances += part.instances.len();
        messages += 1;
        if !part.more {
            break;
        }
    }
    assert_eq!(instances, 200);
    assert!(messages > 2, "3 MiB came in {messages} messages");
}
