//! What policies do, a behaviour a test.

use std::{
    io::Read,
    sync::mpsc,
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, crypto::sign};

use crate::upstream::{Gateway, Message, Peer, Upstream, yaml};

/// An echo behind a gateway whose only route has policy `p`; `rest` follows the document's other lines.
fn gateway(policy: &str, rest: &str) -> (Gateway, Upstream) {
    let upstream = Upstream::echo();
    (Gateway::start(&yaml(&document(&upstream, policy, rest))), upstream)
}

fn document(upstream: &Upstream, policy: &str, rest: &str) -> String {
    format!(
        "listeners: {{ web: {{ address: '127.0.0.1:0' }} }}
services: {{ api: {{ endpoints: [{{ address: '{}' }}] }} }}
routes: [{{ name: a, match: {{ methods: [GET, POST, PUT, HEAD] }}, service: api, policies: [p] }}]
policies: {{ p: {policy} }}
{rest}",
        upstream.address
    )
}

/// A GET with these further header lines, each ended by CR LF.
fn ask(client: &mut Peer, path: &str, lines: &str) -> Message {
    client.send(&format!("GET {path} HTTP/1.1\r\nHost: gate.example\r\n{lines}\r\n"));
    client.answer()
}

#[test]
fn only_addresses_that_are_let_in_get_an_answer() {
    let (gateway, _upstream) =
        gateway("{ ip_allow: [10.0.0.0/8], ip_deny: [10.0.0.13] }", "trusted_proxies: [127.0.0.1]");
    let mut client = gateway.client();
    for (forwarded_for, status) in
        [("10.0.0.1", 200), ("10.0.0.13", 403), ("192.0.2.1", 403), ("10.0.0.1, 192.0.2.1", 403)]
    {
        let answer = ask(&mut client, "/", &format!("X-Forwarded-For: {forwarded_for}\r\n"));
        assert_eq!(answer.status(), status, "{forwarded_for}: {answer:?}");
    }
    gateway.await_metric("gogate_rejections_total{reason=\"ip_denied\"} 3");
}

#[test]
fn an_untrusted_peer_cannot_choose_its_address() {
    let (gateway, _upstream) = gateway("{ ip_allow: [10.0.0.0/8] }", "");
    assert_eq!(ask(&mut gateway.client(), "/", "X-Forwarded-For: 10.0.0.1\r\n").status(), 403);
}

#[test]
fn header_fields_are_edited_both_ways_and_on_refusals() {
    let (gateway, _upstream) = gateway(
        "{ request_headers: { set: { X-Set: new, Host: inner, X-Real-IP: none }, add: { X-Add: more }, remove: [X-Gone] },
           response_headers: { set: { X-Frame-Options: DENY }, remove: [via] }, ip_deny: [10.0.0.1] }",
        "trusted_proxies: [127.0.0.1]",
    );
    let mut client = gateway.client();
    let answer = ask(
        &mut client,
        "/",
        "X-Set: old\r\nX-Set: old2\r\nX-Add: first\r\nX-Gone: 1\r\nConnection: X-Set\r\n",
    );
    let seen = answer.text();
    for expected in ["x-set: new\n", "x-add: first\n", "x-add: more\n", "host: inner\n", "x-real-ip: none\n"]
    {
        assert_eq!(seen.matches(expected).count(), 1, "{expected:?} in {seen}");
    }
    assert!(!seen.contains("x-gone") && !seen.contains("old") && !seen.contains("\nhost: gate"), "{seen}");
    assert_eq!((answer.field("x-frame-options"), answer.field("via")), (Some("DENY"), None));
    let refused = ask(&mut client, "/", "X-Forwarded-For: 10.0.0.1\r\n");
    assert_eq!((refused.status(), refused.field("x-frame-options")), (403, Some("DENY")));
}

// === rate_limit ===

#[test]
fn a_spent_budget_is_refused_and_says_when_to_come_back() {
    let (gateway, upstream) =
        gateway("{ rate_limit: { budget: b } }", "budgets: { b: { rate: 2, per: 1h, scope: node } }");
    let mut client = gateway.client();
    let first = client.get("/");
    assert_eq!(first.status(), 200);
    assert_eq!(first.field("ratelimit-policy"), Some("\"b\";q=2;w=3600"));
    assert_eq!(first.field("ratelimit"), Some("\"b\";r=1;t=1800"));
    assert_eq!(client.get("/").status(), 200);
    let refused = client.get("/");
    assert_eq!(refused.status(), 429);
    let wait: u64 = refused.field("retry-after").unwrap().parse().unwrap();
    assert!((1_700..=1_800).contains(&wait), "{refused:?}");
    assert_eq!(refused.field("ratelimit"), Some(&*format!("\"b\";r=0;t={wait}")));
    assert!(refused.text().contains("request_id"), "{refused:?}");
    gateway.await_metric("gogate_rate_limit_decisions_total{budget=\"b\",decision=\"allowed\"} 2");
    gateway.await_metric("gogate_rate_limit_decisions_total{budget=\"b\",decision=\"refused\"} 1");
    gateway.await_metric("gogate_rejections_total{reason=\"rate_limited\"} 1");
    // A reload that does not concern the budget does not fill it again.
    let budget = "budgets: { b: { rate: 2, per: 1h, scope: node } }";
    let other = "{ rate_limit: { budget: b }, response_headers: { set: { X-New: '1' } } }";
    gateway.publish(&yaml(&document(&upstream, other, budget)));
    let refused = client.get("/");
    assert_eq!((refused.status(), refused.field("x-new")), (429, Some("1")));
}

#[test]
fn a_budget_is_exact_over_all_workers_of_a_node() {
    let (gateway, _upstream) = gateway(
        "{ rate_limit: { budget: b } }",
        "budgets: { b: { rate: 40, per: 1s, burst: 20, scope: node } }",
    );
    let began = Instant::now();
    let address = gateway.address();
    let clients: Vec<_> = (0..8)
        .map(|_| {
            std::thread::spawn(move || {
                let mut client = Peer::connect(address);
                (0..150).filter(|_| client.get("/").status() == 200).count()
            })
        })
        .collect();
    let admitted: usize = clients.into_iter().map(|client| client.join().unwrap()).sum();
    let bound = 20.0 + 40.0 * began.elapsed().as_secs_f64();
    assert!((20..=bound as usize).contains(&admitted), "{admitted} of {bound}");
}

#[test]
fn a_budget_counts_by_its_key() {
    let (by_address, _upstream) = gateway(
        "{ rate_limit: { budget: b } }",
        "trusted_proxies: [127.0.0.1]\nbudgets: { b: { rate: 1, per: 1h, key: client_ip, scope: node } }",
    );
    let mut client = by_address.client();
    let mut from = |address: &str| ask(&mut client, "/", &format!("X-Forwarded-For: {address}\r\n")).status();
    assert_eq!(["192.0.2.1", "192.0.2.2", "192.0.2.1"].map(&mut from), [200, 200, 429]);
    assert_eq!(["2001:db8::1", "2001:db8::2", "2001:db8:1::1"].map(from), [200, 429, 200]);
    let (by_header, _upstream) = gateway(
        "{ rate_limit: { budget: b } }",
        "budgets: { b: { rate: 1, per: 1h, key: 'header:X-Key', scope: node } }",
    );
    let mut client = by_header.client();
    let mut with = |key: &str| ask(&mut client, "/", key).status();
    let keys = ["X-Key: a\r\n", "X-Key: b\r\n", "X-Key: a\r\n", "", ""];
    assert_eq!(keys.map(&mut with), [200, 200, 429, 200, 429]);
}

#[test]
fn a_claim_of_a_verified_token_is_a_key_too() {
    const SECRET: &str = "a secret of thirty-two bytes, ok";
    let token = |sub: &str| {
        let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
        let message = format!(
            "{}.{}",
            part(r#"{"alg":"HS256"}"#),
            part(&format!(r#"{{"sub":"{sub}","exp":99999999999}}"#))
        );
        let key = EncodingKey::from_secret(SECRET.as_bytes());
        let signature = sign(message.as_bytes(), &key, Algorithm::HS256).unwrap();
        format!("Authorization: Bearer {message}.{signature}\r\n")
    };
    let (gateway, _upstream) = gateway(
        &format!(
            "{{ jwt: {{ algorithms: [HS256], secret: '{SECRET}', optional: true }}, rate_limit: {{ budget: b }} }}"
        ),
        "budgets: { b: { rate: 1, per: 1h, key: 'claim:sub', scope: node } }",
    );
    let mut client = gateway.client();
    let lines = [token("ann"), token("bob"), token("ann"), String::new(), String::new()];
    let statuses = lines.map(|lines| ask(&mut client, "/", &lines).status());
    assert_eq!(statuses, [200, 200, 429, 200, 429]);
    let forged = token("ann").replace("Bearer ", "Bearer x");
    assert_eq!(ask(&mut client, "/", &forged).status(), 401, "nobody spends what they do not own");
}

#[test]
fn each_route_spends_its_own_budget() {
    let upstream = Upstream::echo();
    let gateway = Gateway::start(&yaml(&format!(
        "listeners: {{ web: {{ address: '127.0.0.1:0' }} }}
services: {{ api: {{ endpoints: [{{ address: '{}' }}] }} }}
routes:
  - {{ name: a, match: {{ path: /a }}, service: api, policies: [p] }}
  - {{ name: b, match: {{ path: /b }}, service: api, policies: [p] }}
policies: {{ p: {{ rate_limit: {{ budget: b }} }} }}
budgets: {{ b: {{ rate: 1, per: 1h, key: route, scope: node }} }}",
        upstream.address
    )));
    let mut client = gateway.client();
    assert_eq!(["/a", "/a", "/b", "/b"].map(|path| client.get(path).status()), [200, 429, 200, 429]);
}

// === cors ===

const CORS: &str =
    "{ cors: { allowed_origins: ['https://app.example', 'https://*.shop.example'], credentials: true,
    allowed_methods: [GET, PUT], allowed_headers: [X-Key], exposed_headers: [X-Total], max_age: 1h } }";

#[test]
fn a_preflight_is_answered_here_though_the_route_does_not_take_options() {
    let (gateway, upstream) = gateway(CORS, "");
    let mut client = gateway.client();
    let mut preflight = |origin: &str| {
        client.send(&format!(
            "OPTIONS / HTTP/1.1\r\nHost: h\r\nOrigin: {origin}\r\nAccess-Control-Request-Method: PUT\r\n\r\n"
        ));
        client.answer()
    };
    let answer = preflight("https://a.shop.example");
    assert_eq!(answer.status(), 204);
    for (name, value) in [
        ("access-control-allow-origin", "https://a.shop.example"),
        ("access-control-allow-credentials", "true"),
        ("access-control-allow-methods", "GET, PUT"),
        ("access-control-allow-headers", "x-key"),
        ("access-control-max-age", "3600"),
    ] {
        assert_eq!(answer.field(name), Some(value), "{answer:?}");
    }
    let answer = preflight("https://evil.example");
    assert_eq!((answer.status(), answer.field("access-control-allow-origin")), (204, None));
    assert_eq!(answer.field("access-control-allow-methods"), None);
    assert_eq!(upstream.connections.load(std::sync::atomic::Ordering::SeqCst), 0);
    client.send("OPTIONS / HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(client.answer().status(), 405, "it is no preflight");
}

#[test]
fn pages_of_allowed_origins_can_read_answers_and_refusals() {
    let (gateway, _upstream) =
        gateway(&CORS.replacen('{', "{ ip_deny: [10.0.0.1], ", 1), "trusted_proxies: [127.0.0.1]");
    let mut client = gateway.client();
    for (lines, status, origin) in [
        ("Origin: https://app.example\r\n", 200, Some("https://app.example")),
        ("Origin: https://app.example\r\nX-Forwarded-For: 10.0.0.1\r\n", 403, Some("https://app.example")),
        ("Origin: https://evil.example\r\n", 200, None),
        ("", 200, None),
    ] {
        let answer = ask(&mut client, "/", lines);
        assert_eq!(answer.status(), status, "{lines}");
        assert_eq!(answer.field("access-control-allow-origin"), origin, "{lines}");
        assert_eq!(answer.field("access-control-expose-headers"), origin.map(|_| "x-total"));
        assert_eq!(answer.field("vary"), Some("Origin"));
    }
}

#[test]
fn with_any_origin_and_no_lists_a_preflight_gets_what_it_asks_for() {
    let (gateway, _upstream) = gateway("{ cors: { allowed_origins: ['*'] } }", "");
    let mut client = gateway.client();
    client.send(
        "OPTIONS / HTTP/1.1\r\nHost: h\r\nOrigin: https://x\r\nAccess-Control-Request-Method: PUT\r\n\
         Access-Control-Request-Headers: x-a,x-b\r\n\r\n",
    );
    let answer = client.answer();
    assert_eq!(answer.field("access-control-allow-origin"), Some("*"));
    assert_eq!(answer.field("access-control-allow-methods"), Some("PUT"));
    assert_eq!(answer.field("access-control-allow-headers"), Some("x-a,x-b"));
}

// === paths, bodies, ids ===

#[test]
fn the_endpoint_sees_the_rewritten_path_and_what_was_stripped() {
    let (gateway, _upstream) = gateway(
        "{ strip_prefix: /v1, add_prefix: /api, replace_path: { regex: '^/old/(.*)$', with: '/v1/$1' } }",
        "",
    );
    let mut client = gateway.client();
    for (path, seen, prefix) in [
        ("/v1/a?q=1", "GET /api/a?q=1 ", true),
        ("/old//b/../c", "GET /api/c ", true),
        ("/v1", "GET /api/ ", true),
        ("/v10", "GET /api/v10 ", false),
    ] {
        let answer = ask(&mut client, path, "X-Forwarded-Prefix: /mine\r\n").text();
        assert!(answer.starts_with(seen), "{path}: {answer}");
        assert_eq!(answer.contains("x-forwarded-prefix: /v1\n"), prefix, "{answer}");
        assert!(!answer.contains("/mine"), "{answer}");
    }
}

#[test]
fn a_routes_body_limit_stands_in_for_the_documents() {
    let (gateway, _upstream) = gateway("{ body_limit: 10 }", "limits: { body_bytes: 5 }");
    let post = |framing: &str| {
        let mut client = gateway.client();
        client.send(&format!("POST / HTTP/1.1\r\nHost: h\r\n{framing}"));
        client.answer().status()
    };
    assert_eq!(post("Content-Length: 10\r\n\r\n0123456789"), 200);
    assert_eq!(post("Content-Length: 11\r\n\r\n0123456789a"), 413);
    assert_eq!(post("Transfer-Encoding: chunked\r\n\r\na\r\n0123456789\r\n0\r\n\r\n"), 200);
    assert_eq!(post("Transfer-Encoding: chunked\r\n\r\nb\r\n0123456789a\r\n0\r\n\r\n"), 413);
}

#[test]
fn a_requests_id_travels_under_the_policys_name() {
    let (gateway, _upstream) = gateway("{ request_id: { header: X-Correlation-ID } }", "");
    let mut client = gateway.client();
    let answer = ask(&mut client, "/", "X-Correlation-ID: order-7\r\nX-Request-ID: other\r\n");
    let seen = answer.text();
    assert!(
        seen.contains("x-correlation-id: order-7\n") && seen.contains("x-request-id: order-7\n"),
        "{seen}"
    );
    assert_eq!(answer.field("x-correlation-id"), Some("order-7"));
    let answer = ask(&mut client, "/", "");
    let id = answer.field("x-correlation-id").unwrap();
    assert_eq!(id.len(), 32);
    assert!(answer.text().contains(&format!("x-request-id: {id}\n")), "{answer:?}");
}

#[test]
fn an_id_is_made_where_nobody_is_believed() {
    let (gateway, _upstream) = gateway("{ request_id: { trust: nobody }, ip_deny: [127.0.0.1] }", "");
    let answer = ask(&mut gateway.client(), "/", "X-Request-ID: forged\r\n");
    let id = answer.field("x-request-id").unwrap();
    assert_eq!((answer.status(), id.len()), (403, 32));
    assert!(answer.text().contains(&format!("\"request_id\":\"{id}\"")), "{answer:?}");
}

// === max_in_flight ===

#[test]
fn a_request_in_excess_is_refused_at_once_and_the_next_one_has_its_place() {
    let (go_on, may_answer) = mpsc::channel::<()>();
    let may_answer = std::sync::Mutex::new(may_answer);
    let upstream = Upstream::start(move |mut peer| {
        while peer.request().is_some() {
            let _ = may_answer.lock().unwrap().recv();
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    let gateway = Gateway::start(&yaml(&document(&upstream, "{ max_in_flight: 1 }", "")));
    let (mut first, mut second) = (gateway.client(), gateway.client());
    first.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    crate::upstream::eventually("the first request is at the endpoint", || {
        let connections = upstream.connections.load(std::sync::atomic::Ordering::SeqCst);
        if connections == 1 { Ok(()) } else { Err(connections.to_string()) }
    });
    let refused = second.get("/");
    assert_eq!((refused.status(), refused.field("retry-after")), (503, Some("1")));
    go_on.send(()).unwrap();
    assert_eq!(first.answer().status(), 200);
    go_on.send(()).unwrap();
    // The place is free when the answer's body is gone, which the client may know first.
    crate::upstream::eventually("there is room again", || match second.get("/").status() {
        200 => Ok(()),
        status => Err(status.to_string()),
    });
    gateway.await_metric("gogate_rejections_total{reason=\"max_in_flight\"}");
}

// === compress ===

/// An endpoint that answers with this head and body, the head's last line ended.
fn says(head: &'static str, body: &'static str) -> Upstream {
    Upstream::start(move |mut peer| {
        while let Some(request) = peer.request() {
            peer.send(&format!("HTTP/1.1 200 OK\r\n{head}Content-Length: {}\r\n\r\n", body.len()));
            if !request.start.starts_with("HEAD") {
                peer.send(body);
            }
        }
    })
}

#[test]
fn an_answer_is_encoded_as_its_client_likes_it() {
    let body: &'static str = "all work and no play ".repeat(200).leak();
    let upstream = says("Content-Type: text/plain\r\nETag: \"a\"\r\n", body);
    let gateway = Gateway::start(&yaml(&document(&upstream, "{ compress: {} }", "")));
    let mut client = gateway.client();
    for (accepted, coding) in [("gzip", "gzip"), ("gzip;q=0.5, br", "br"), ("zstd, gzip", "zstd")] {
        let answer = ask(&mut client, "/", &format!("Accept-Encoding: {accepted}\r\n"));
        assert_eq!(answer.field("content-encoding"), Some(coding));
        assert_eq!((answer.field("etag"), answer.field("vary")), (Some("W/\"a\""), Some("Accept-Encoding")));
        assert_eq!(answer.field("content-length"), None);
        assert!(answer.whole && answer.body.len() < body.len() / 10, "{coding}: {}", answer.body.len());
        let mut plain = String::new();
        match coding {
            "gzip" => flate2::read::GzDecoder::new(&*answer.body).read_to_string(&mut plain).unwrap(),
            "br" => brotli::Decompressor::new(&*answer.body, 4096).read_to_string(&mut plain).unwrap(),
            _ => zstd::stream::read::Decoder::new(&*answer.body).unwrap().read_to_string(&mut plain).unwrap(),
        };
        assert_eq!(plain, body, "{coding}");
    }
    let plain = ask(&mut client, "/", "");
    assert_eq!((plain.text(), plain.field("vary")), (body.to_owned(), Some("Accept-Encoding")));
    client.send("HEAD / HTTP/1.1\r\nHost: h\r\nAccept-Encoding: gzip\r\n\r\n");
    let head = client.answer_to_head();
    assert_eq!(head.field("content-encoding"), None);
    assert_eq!(head.field("content-length"), Some(&*body.len().to_string()));
}

#[test]
fn what_is_encoded_or_must_not_be_transformed_goes_as_it_is() {
    let body: &'static str = "x".repeat(5_000).leak();
    for head in [
        "Content-Type: text/plain\r\nContent-Encoding: br\r\n",
        "Content-Type: text/plain\r\nCache-Control: no-transform\r\n",
        "Content-Type: image/png\r\n",
    ] {
        let upstream = says(head, body);
        let gateway = Gateway::start(&yaml(&document(&upstream, "{ compress: { codings: [gzip] } }", "")));
        let answer = ask(&mut gateway.client(), "/", "Accept-Encoding: gzip\r\n");
        assert_eq!((answer.text(), answer.field("etag")), (body.to_owned(), None), "{head}");
    }
    let upstream = says("Content-Type: text/plain\r\n", "short");
    let gateway = Gateway::start(&yaml(&document(&upstream, "{ compress: { min_bytes: 6 } }", "")));
    assert_eq!(ask(&mut gateway.client(), "/", "Accept-Encoding: gzip\r\n").text(), "short");
}

#[test]
fn an_event_arrives_before_the_next_one_is_made() {
    let (go_on, more) = mpsc::channel::<()>();
    let more = std::sync::Mutex::new(more);
    let upstream = Upstream::start(move |mut peer| {
        if peer.request().is_some() {
            peer.send(
                "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
            );
            for event in ["data: 1\n\n", "data: 2\n\n"] {
                peer.send(&format!("{:x}\r\n{event}\r\n", event.len()));
                let _ = more.lock().unwrap().recv_timeout(Duration::from_secs(20));
            }
            peer.send("0\r\n\r\n");
        }
    });
    let gateway =
        Gateway::start(&yaml(&document(&upstream, "{ compress: { types: [text/event-stream] } }", "")));
    let mut client = gateway.client();
    client.send("GET / HTTP/1.1\r\nHost: h\r\nAccept-Encoding: gzip\r\n\r\n");
    client.head();
    let mut encoded = Vec::new();
    for expected in ["data: 1\n\n", "data: 1\n\ndata: 2\n\n"] {
        loop {
            let mut plain = String::new();
            // It is not at its end yet: what was flushed is there before the error.
            let _ = flate2::read::GzDecoder::new(&*encoded).read_to_string(&mut plain);
            if plain == expected {
                break;
            }
            encoded.extend_from_slice(&client.chunk());
        }
        go_on.send(()).unwrap();
    }
}

#[test]
fn an_encoded_answer_that_breaks_off_has_all_that_came_and_no_end() {
    const WORDS: &str = "all work and no play ";
    let upstream = Upstream::start(|mut peer| {
        if let Some(request) = peer.request() {
            let content = WORDS.repeat(200);
            let framing = match &*request.start {
                "GET /chunks HTTP/1.1" => format!("Transfer-Encoding: chunked\r\n\r\n{:x}", content.len()),
                _ => format!("Content-Length: {}\r\n", 2 * content.len()),
            };
            // Half of the body and the end of the connection come at once.
            peer.send(&format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n{framing}\r\n{content}\r\n"));
        }
    });
    let gateway = Gateway::start(&yaml(&document(&upstream, "{ compress: {} }", "")));
    for path in ["/chunks", "/length"] {
        for coding in ["gzip", "br", "zstd"] {
            let answer = ask(&mut gateway.client(), path, &format!("Accept-Encoding: {coding}\r\n"));
            assert_eq!((answer.status(), answer.whole), (200, false), "{path} {coding}: {answer:?}");
            let mut plain = Vec::new();
            // The error is at the end of what came.
            let _ = match coding {
                "gzip" => flate2::read::GzDecoder::new(&*answer.body).read_to_end(&mut plain),
                "br" => brotli::Decompressor::new(&*answer.body, 4096).read_to_end(&mut plain),
                _ => zstd::stream::read::Decoder::new(&*answer.body).unwrap().read_to_end(&mut plain),
            };
            let plain = String::from_utf8(plain).unwrap();
            assert_eq!(plain.trim_end(), WORDS.repeat(200).trim_end(), "{path} {coding}");
        }
    }
}
