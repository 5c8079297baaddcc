//! Which route takes a request, and what it does with it.

use crate::upstream::{Gateway, Peer, Upstream, yaml};

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
fn gateway(routes: &str) -> Gateway {
    let (a, b) = (named("a").address, named("b").address);
    Gateway::start(&yaml(&format!(
        "listeners: {{ web: {{ address: '127.0.0.1:0' }} }}
services:
  a: {{ endpoints: [{{ address: '{a}' }}] }}
  b: {{ endpoints: [{{ address: '{b}' }}] }}
routes:
{routes}"
    )))
}

/// Sends a head without a body; `{host}` is asked for unless the head says otherwise.
fn ask(client: &mut Peer, head: &str) -> crate::upstream::Message {
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
