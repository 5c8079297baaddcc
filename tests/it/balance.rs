//! Which endpoint a request goes to.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::mpsc,
    time::Duration,
};

use crate::upstream::{Gateway, PATIENCE, Peer, Upstream, yaml};

/// Says its name to every request.
fn named(name: &'static str) -> Upstream {
    Upstream::start(move |mut peer| {
        while peer.request().is_some() {
            peer.send(&format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len()));
        }
    })
}

/// A document whose service has these keys, and these endpoints with their weights.
fn document(keys: &str, endpoints: &[(&Upstream, u32)]) -> gogate::config::document::Document {
    let endpoints: Vec<String> = endpoints
        .iter()
        .map(|(upstream, weight)| format!("{{ address: '{}', weight: {weight} }}", upstream.address))
        .collect();
    yaml(&format!(
        "listeners: {{ web: {{ address: '127.0.0.1:0' }} }}
services: {{ service: {{ {keys}, endpoints: [{}] }} }}
routes: [{{ name: all, service: service }}]",
        endpoints.join(", ")
    ))
}

fn names(client: &mut Peer, requests: usize) -> String {
    (0..requests).map(|_| client.get("/").text()).collect()
}

#[test]
fn one_worker_takes_turns_by_weight_exactly_as_nginx_does() {
    let [a, b, c] = ["a", "b", "c"].map(named);
    let endpoints = [(&a, 5), (&b, 1), (&c, 1)];
    let gateway =
        Gateway::start_with(1, Duration::ZERO, &document("balance: weighted_round_robin", &endpoints));
    assert_eq!(names(&mut gateway.client(), 14), "aabacaaaabacaa");
    let gateway = Gateway::start_with(1, Duration::ZERO, &document("balance: round_robin", &endpoints));
    assert_eq!(names(&mut gateway.client(), 7), "abcabca", "round_robin does not look at weights");
}

#[test]
fn the_endpoint_with_the_fewest_requests_for_its_weight_is_next() {
    let (heard, hears) = mpsc::channel();
    let holding = |name: &'static str| {
        let heard = heard.clone();
        Upstream::start(move |mut peer| {
            while let Some(request) = peer.request() {
                heard.send(name).unwrap();
                if request.start.contains("/hold") {
                    std::thread::park_timeout(PATIENCE);
                }
                peer.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
            }
        })
    };
    let (a, b) = (holding("a"), holding("b"));
    let document = document("balance: least_connections", &[(&a, 2), (&b, 1)]);
    let gateway = Gateway::start_with(1, Duration::ZERO, &document);
    let mut held = Vec::new();
    let mut hold = || {
        let mut client = gateway.client();
        client.send("GET /hold HTTP/1.1\r\nHost: a\r\n\r\n");
        held.push(client);
        hears.recv_timeout(PATIENCE).unwrap()
    };
    let mut first_six: Vec<_> = (0..6).map(|_| hold()).collect();
    first_six.sort_unstable();
    assert_eq!(first_six, ["a", "a", "a", "a", "b", "b"]);
    // Whoever's requests go away is next, however often.
    let gone = first_six.len() - 1;
    drop(held.remove(gone));
    gateway.await_metric("gogate_upstream_connections{service=\"service\",state=\"active\"} 5");
    let mut client = gateway.client();
    client.get("/");
    let next = hears.recv_timeout(PATIENCE).unwrap();
    client.get("/");
    assert_eq!(hears.recv_timeout(PATIENCE).unwrap(), next);
}

#[test]
fn the_slow_endpoint_gets_few_requests_with_peak_ewma() {
    let slow = Upstream::start(|mut peer| {
        while peer.request().is_some() {
            std::thread::sleep(Duration::from_millis(60));
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nslow");
        }
    });
    let fast = named("fast");
    let gateway =
        Gateway::start_with(1, Duration::ZERO, &document("balance: peak_ewma", &[(&slow, 1), (&fast, 1)]));
    let answers = names(&mut gateway.client(), 200);
    let slow = answers.matches("slow").count();
    assert!((1..=5).contains(&slow), "{slow} of 200 went to the slow one");
}

#[test]
fn random_follows_the_weights() {
    let [a, b] = ["a", "b"].map(named);
    let gateway = Gateway::start(&document("balance: random", &[(&a, 9), (&b, 1)]));
    let answers = names(&mut gateway.client(), 1000);
    let b = answers.matches('b').count();
    assert!((50..150).contains(&b), "{b} of 1000 with a tenth of the weight");
}

#[test]
fn a_key_has_one_endpoint_on_every_worker_and_node() {
    let upstreams = ["a", "b", "c", "d", "e"].map(named);
    let endpoints: Vec<_> = upstreams.iter().map(|upstream| (upstream, 1)).collect();
    let send = |gateway: &Gateway, head: &str| {
        let mut client = gateway.client();
        client.send(&format!("GET {head}\r\n\r\n"));
        client.answer().text()
    };
    for (hash_on, request) in [
        ("header:X-User", (|key| format!("/ HTTP/1.1\r\nHost: a\r\nX-User: {key}")) as fn(usize) -> String),
        ("cookie:sid", |key| format!("/ HTTP/1.1\r\nHost: a\r\nCookie: x=1; sid={key}; y=2")),
        ("path", |key| format!("/{key}?q=1 HTTP/1.1\r\nHost: a")),
    ] {
        let keys = format!("balance: consistent_hash, hash_on: '{hash_on}'");
        let [one, other] = [(), ()].map(|()| Gateway::start(&document(&keys, &endpoints)));
        let mut owners = BTreeMap::new();
        for key in 0..100 {
            let owner = send(&one, &request(key));
            assert_eq!(send(&one, &request(key)), owner, "{hash_on} {key}");
            assert_eq!(send(&other, &request(key)), owner, "{hash_on} {key}: the other node");
            owners.insert(key, owner);
        }
        let all: BTreeSet<_> = owners.values().collect();
        assert_eq!(all.len(), 5, "{hash_on}: {owners:?}");
        // Without the last endpoint only its keys move.
        one.publish(&document(&keys, &endpoints[..4]));
        for (key, owner) in &owners {
            let now = send(&one, &request(*key));
            assert!(now != "e" && (now == *owner || owner == "e"), "{hash_on} {key}: {owner} {now}");
        }
    }
    let gateway = Gateway::start(&document("balance: consistent_hash, hash_on: client_ip", &endpoints));
    let first = gateway.client().get("/").text();
    assert!((0..20).all(|_| gateway.client().get("/").text() == first));
}

#[test]
fn a_request_without_the_key_has_the_next_endpoint_in_turn() {
    let upstreams = ["a", "b", "c"].map(named);
    let endpoints: Vec<_> = upstreams.iter().map(|upstream| (upstream, 1)).collect();
    for hash_on in ["header:X-User", "cookie:sid"] {
        let keys = format!("balance: consistent_hash, hash_on: '{hash_on}'");
        let gateway = Gateway::start_with(1, Duration::ZERO, &document(&keys, &endpoints));
        assert_eq!(names(&mut gateway.client(), 6), "abcabc", "{hash_on}");
    }
}

#[test]
fn a_reload_moves_nobody_s_turn_and_forgets_no_request() {
    let (heard, hears) = mpsc::channel();
    let holding = |name: &'static str| {
        let heard = heard.clone();
        Upstream::start(move |mut peer| {
            while peer.request().is_some() {
                heard.send(name).unwrap();
                std::thread::park_timeout(PATIENCE);
            }
        })
    };
    let (a, b, c) = (holding("a"), holding("b"), holding("c"));
    let keys = "balance: least_connections";
    let gateway = Gateway::start_with(1, Duration::ZERO, &document(keys, &[(&a, 1)]));
    let mut held = Vec::new();
    let mut hold = || {
        let mut client = gateway.client();
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        held.push(client);
        hears.recv_timeout(PATIENCE).unwrap()
    };
    assert_eq!([hold(), hold()], ["a", "a"]);
    gateway.publish(&document(keys, &[(&a, 1), (&b, 1)]));
    assert_eq!([hold(), hold()], ["b", "b"], "a still has its two");
    gateway.publish(&document(keys, &[(&c, 1), (&a, 1), (&b, 1)]));
    assert_eq!([hold(), hold()], ["c", "c"]);
    gateway.publish(&document("balance: round_robin", &[(&c, 1), (&a, 1), (&b, 1)]));
    gateway.publish(&document(keys, &[(&b, 1), (&c, 1)]));
    // Requests to an endpoint that is gone end without harm, those to others count.
    held.drain(0..3);
    gateway.await_metric("gogate_upstream_connections{service=\"service\",state=\"active\"} 3");
    let mut client = gateway.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(hears.recv_timeout(PATIENCE).unwrap(), "b", "b has one and c has two");
}
