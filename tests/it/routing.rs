//! Which route takes a request, and what it does with it.

use std::{
    net::{SocketAddr, TcpListener},
    sync::{
        Mutex,
        mpsc::{self, Receiver},
    },
    time::{Duration, Instant},
};

use gogate::config::document::Document;

use crate::upstream::{Gateway, Message, PATIENCE, Peer, Upstream, yaml};

/// An endpoint that answers with this name and the request's line.
fn named(name: &'static str) -> Upstream {
    Upstream::start(move |mut peer| {
        while let Some(request) = peer.request() {
            let body = format!("{name}: {}", request.start);
            peer.send(&format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
        }
    })
}

/// Services `a` and `b`, whose endpoints say which they are, and these routes.
fn document(routes: &str) -> Document {
    let (a, b) = (named("a").address, named("b").address);
    yaml(&format!(
        "listeners: {{ web: {{ address: '127.0.0.1:0' }} }}
services:
  a: {{ endpoints: [{{ address: '{a}' }}] }}
  b: {{ endpoints: [{{ address: '{b}' }}] }}
routes:
{routes}"
    ))
}

fn gateway(routes: &str) -> Gateway {
    Gateway::start(&document(routes))
}

/// Sends a head without a body; `{host}` is asked for unless the head says otherwise.
fn ask(client: &mut Peer, head: &str) -> Message {
    let host = if head.contains("\nHost:") { "" } else { "\r\nHost: gate.example" };
    client.send(&format!("{}{host}\r\n\r\n", head.replace('\n', "\r\n")));
    client.answer()
}

#[test]
fn host_path_method_fields_and_query_choose_the_route() {
    let gateway = gateway(
        "- { name: wildcard, match: { host: '*.example' }, service: b }
- { name: exact, match: { host: one.example, path_prefix: /v1 }, service: a }
- { name: users, match: { path_regex: '/users/[0-9]+' }, service: a }
- { name: beta, match: { path: /x, headers: { X-Beta: '1', X-Team: '*' } }, service: a }
- { name: version, match: { path: /x, query: { 'v w': 'a/b' } }, service: b }
- { name: write, match: { path: /y, methods: [PUT, DELETE] }, service: a }",
    );
    let mut client = gateway.client();
    for (head, expected) in [
        ("GET /v1/q HTTP/1.1\nHost: one.example:80", "a: GET /v1/q HTTP/1.1"),
        ("GET /v2 HTTP/1.1\nHost: one.example", "b: GET /v2 HTTP/1.1"),
        ("GET /v1 HTTP/1.1\nHost: Two.Example", "b: GET /v1 HTTP/1.1"),
        ("GET /./users//7 HTTP/1.1\nHost: z", "a: GET /users/7 HTTP/1.1"),
        ("GET /x HTTP/1.1\nHost: z\nx-beta: 1\nX-TEAM: blue", "a: GET /x HTTP/1.1"),
        ("GET /x?v+w=a%2Fb HTTP/1.1\nHost: z\nx-beta: 1", "b: GET /x?v+w=a%2Fb HTTP/1.1"),
        ("PUT /y HTTP/1.1\nHost: z\nContent-Length: 0", "a: PUT /y HTTP/1.1"),
    ] {
        let answer = ask(&mut client, head);
        assert_eq!((answer.status(), &*answer.text()), (200, expected), "{head}");
    }
    for head in ["GET /users/7x HTTP/1.1\nHost: z", "GET /x HTTP/1.1\nHost: z\nx-beta: 1"] {
        assert_eq!(ask(&mut client, head).status(), 404, "{head}");
    }
    let answer = ask(&mut client, "GET /y HTTP/1.1\nHost: z");
    assert_eq!((answer.status(), answer.field("allow")), (405, Some("DELETE, PUT")));
}

#[test]
fn an_encoded_slash_reaches_only_the_endpoint_of_a_route_that_allows_it() {
    let gateway = gateway(
        "- { name: files, match: { path_prefix: /files }, allow_encoded_slash: true, service: a }
- { name: secret, match: { path: /files/secret/key }, service: b }
- { name: all, service: b }",
    );
    let mut client = gateway.client();
    let answer = ask(&mut client, "GET /files//%41%2fb HTTP/1.1");
    assert_eq!((answer.status(), &*answer.text()), (200, "a: GET /files/A%2Fb HTTP/1.1"));
    for path in ["/a%2Fb", "/files%2Fsecret", "/files/..%2fsecret", "/files/%00", "/files/a%2F%2e%2e/b"] {
        let answer = ask(&mut gateway.client(), &format!("GET {path} HTTP/1.1"));
        assert_eq!(answer.status(), 400, "{path}");
    }
}

#[test]
fn a_redirect_repeats_what_was_asked_and_no_other_host() {
    let gateway = gateway(
        "- { name: https, match: { host: old.example }, redirect: { to: 'https://{host}{uri}' } }
- { name: moved, match: { path_prefix: /old }, redirect: { to: '/new{path}?{query}', status: 301 } }
- { name: local, match: { path_prefix: /same }, redirect: { to: '{path}?again=1', status: 303 } }",
    );
    let mut client = gateway.client();
    for (head, status, place) in [
        ("GET /a/../b?c=d%0d%0ax HTTP/1.1\nHost: old.example:8080", 308, "https://old.example/b?c=d%0d%0ax"),
        ("GET /old/x HTTP/1.1", 301, "/new/old/x"),
        ("GET /old/x?y HTTP/1.1", 301, "/new/old/x?y"),
        ("GET /old//evil.example HTTP/1.1", 301, "/new/old/evil.example"),
        ("GET //same//evil.example HTTP/1.1", 303, "/same/evil.example?again=1"),
        ("GET /same/%5Cevil.example HTTP/1.1", 303, "/same/%5Cevil.example?again=1"),
    ] {
        let answer = ask(&mut client, head);
        assert_eq!((answer.status(), answer.field("location")), (status, Some(place)), "{head}");
        assert_eq!(answer.body, b"", "{head}");
    }
    let answer = ask(&mut client, "GET /same/%0d%0aSet-Cookie:x HTTP/1.1");
    assert_eq!(answer.field("location"), Some("/same/%0D%0ASet-Cookie:x?again=1"));
    gateway.await_metric("gogate_requests_total{route=\"https\",service=\"\",method=\"GET\",code=\"308\"} 1");
}

#[test]
fn a_fixed_answer_is_framed_as_its_status_and_method_want() {
    let gateway = gateway(
        "- { name: hello, match: { path: /hello }, respond: { body: 'hello', headers: { Cache-Control: no-store } } }
- { name: none, match: { path: /none }, respond: { status: 204 } }
- { name: same, match: { path: /same }, respond: { status: 304, headers: { ETag: '\"1\"' } } }
- { name: down, match: { path: /down }, respond: { status: 503, body: '{}', content_type: application/json } }",
    );
    let mut client = gateway.client();
    let answer = client.get("/hello");
    assert_eq!((answer.status(), &*answer.text()), (200, "hello"));
    assert_eq!(answer.field("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!(
        (answer.field("cache-control"), answer.field("content-length")),
        (Some("no-store"), Some("5"))
    );
    client.send("HEAD /hello HTTP/1.1\r\nHost: a\r\n\r\n");
    let answer = client.answer_to_head();
    assert_eq!((answer.status(), answer.field("content-length")), (200, Some("5")));
    for (path, status) in [("/none", 204), ("/same", 304)] {
        let answer = client.get(path);
        assert_eq!((answer.status(), answer.field("content-length")), (status, None), "{path}");
        assert_eq!(answer.field("transfer-encoding"), None, "{path}");
    }
    client.send("POST /down HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nok");
    let answer = client.answer();
    assert_eq!((answer.status(), answer.field("content-type")), (503, Some("application/json")));
}

#[test]
fn a_split_is_exact_over_any_hundred_requests_of_all_workers() {
    let mut document =
        document("- { name: canary, split: [{ service: a, weight: 95 }, { service: b, weight: 5 }] }");
    let gateway = Gateway::start(&document);
    // Connections are spread over both workers.
    let mut clients: Vec<Peer> = (0..10).map(|_| gateway.client()).collect();
    let mut ask = |number: usize| clients[number % 10].get("/").text();
    let first: Vec<String> = (0..150).map(&mut ask).collect();
    let of_b = |answers: &[String]| answers.iter().filter(|answer| answer.starts_with("b:")).count();
    for window in first.windows(100) {
        assert_eq!(of_b(window), 5);
    }
    // The turns go on where they stood.
    document.limits.headers += 1;
    gateway.publish(&document);
    let all: Vec<String> = first.into_iter().chain((0..150).map(&mut ask)).collect();
    for window in all.windows(100) {
        assert_eq!(of_b(window), 5);
    }
    gateway
        .await_metric("gogate_requests_total{route=\"canary\",service=\"b\",method=\"GET\",code=\"200\"} 15");
}

/// Everything goes to an endpoint that echoes; copies go to `shadow`.
fn mirroring(shadow: SocketAddr, percent: u32) -> Gateway {
    let echo = Upstream::echo().address;
    Gateway::start(&yaml(&format!(
        "listeners: {{ web: {{ address: '127.0.0.1:0' }} }}
services:
  real: {{ endpoints: [{{ address: '{echo}' }}] }}
  shadow: {{ endpoints: [{{ address: '{shadow}' }}], timeouts: {{ connect: 1s, request: 1s }} }}
routes:
  - {{ name: all, service: real, mirror: {{ service: shadow, percent: {percent} }} }}"
    )))
}

/// An endpoint that hands over every request and answers as it likes.
fn recording(answer: &'static str) -> (SocketAddr, Receiver<Message>) {
    let (sender, receiver) = mpsc::channel();
    let sender = Mutex::new(sender);
    let upstream = Upstream::start(move |mut peer| {
        while let Some(request) = peer.request() {
            sender.lock().unwrap().send(request).unwrap();
            peer.send(answer);
        }
    });
    (upstream.address, receiver)
}

#[test]
fn a_copy_is_the_request_and_its_answer_goes_nowhere() {
    let (shadow, copies) = recording("HTTP/1.1 500 No\r\nContent-Length: 3\r\n\r\nbad");
    let gateway = mirroring(shadow, 100);
    let mut client = gateway.client();
    client.send("PUT /a//b?c=d HTTP/1.1\r\nHost: h\r\nX-A: 1\r\nConnection: X-B\r\nX-B: 2\r\nContent-Length: 4\r\n\r\nbody");
    let answer = client.answer();
    assert!(answer.status() == 200 && answer.text().ends_with("\nbody"), "{answer:?}");
    let copy = copies.recv_timeout(PATIENCE).unwrap();
    assert_eq!((&*copy.start, &*copy.text()), ("PUT /a/b?c=d HTTP/1.1", "body"));
    assert_eq!((copy.field("host"), copy.field("x-a"), copy.field("x-b")), (Some("h"), Some("1"), None));
    client.send("POST /chunks HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n");
    assert_eq!(client.answer().status(), 200);
    let copy = copies.recv_timeout(PATIENCE).unwrap();
    assert_eq!((copy.field("content-length"), &*copy.text()), (Some("5"), "abcde"));
    assert_eq!(copy.field("transfer-encoding"), None);
    client.send("HEAD /head HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(client.answer_to_head().status(), 200);
    assert!(copies.recv_timeout(PATIENCE).unwrap().start.starts_with("HEAD /head"));
    client.send("GET /up HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    assert_eq!(client.answer().status(), 200);
    assert_eq!(client.get("/last").status(), 200);
    let copy = copies.recv_timeout(PATIENCE).unwrap();
    assert!(copy.start.starts_with("GET /last"), "an upgrade was copied: {copy:?}");
    gateway.await_metric("gogate_mirrors_total{service=\"shadow\",result=\"sent\"} 4");
}

#[test]
fn so_many_of_a_hundred_requests_are_copied() {
    let (shadow, copies) = recording("HTTP/1.1 204 No Content\r\n\r\n");
    let gateway = mirroring(shadow, 10);
    let mut clients: Vec<Peer> = (0..4).map(|_| gateway.client()).collect();
    for number in 0..200 {
        assert_eq!(clients[number % 4].get(&format!("/{number}")).status(), 200);
    }
    gateway.await_metric("gogate_mirrors_total{service=\"shadow\",result=\"sent\"} 20");
    assert_eq!(copies.try_iter().count(), 20);
}

#[test]
fn a_shadow_that_is_silent_dead_overrun_or_speaks_another_protocol_changes_nothing() {
    // Takes connections and says nothing: its copies end with the time they have.
    let silent = Upstream::start(|mut peer| while peer.request().is_some() {});
    let gateway = mirroring(silent.address, 100);
    let mut client = gateway.client();
    let begun = Instant::now();
    for _ in 0..20 {
        assert_eq!(client.get("/").status(), 200);
    }
    assert!(begun.elapsed() < Duration::from_secs(10), "requests waited: {:?}", begun.elapsed());
    let long = "x".repeat((64 << 10) + 1);
    client.send(&format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{long}", long.len()));
    assert_eq!(client.answer().status(), 200);
    client.send("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n");
    for _ in 0..3 {
        client.send(&format!("8000\r\n{}\r\n", "y".repeat(0x8000)));
    }
    client.send("0\r\n\r\n");
    assert_eq!(client.answer().status(), 200);
    gateway.await_metric("gogate_mirrors_total{service=\"shadow\",result=\"body_too_long\"} 2");
    gateway.await_metric("gogate_mirrors_total{service=\"shadow\",result=\"failed\"} 20");

    let (switching, _copies) = recording("HTTP/1.1 101 Switching Protocols\r\n\r\nnot HTTP");
    let gateway = mirroring(switching, 100);
    let mut client = gateway.client();
    assert_eq!((client.get("/").status(), client.get("/").status()), (200, 200));
    gateway.await_metric("gogate_mirrors_total{service=\"shadow\",result=\"sent\"} 2");

    let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gateway = mirroring(dead, 100);
    assert_eq!(gateway.client().get("/").status(), 200);
    gateway.await_metric("gogate_mirrors_total{service=\"shadow\",result=\"failed\"} 1");
}
