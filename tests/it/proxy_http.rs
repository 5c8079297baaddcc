//! What a client of the proxy sees, one rule a test.

use std::{
    io::{Read, Write},
    time::Duration,
};

use gogate::config::document::{IpNetwork, PathPattern};

use crate::upstream::{Gateway, Peer, Upstream, document, route, service, yaml};

fn echo() -> (Gateway, Upstream) {
    let upstream = Upstream::echo();
    (Gateway::start(&document(&[upstream.address])), upstream)
}

/// Sends bytes to a gateway in front of an echo, and expects this status and a closed connection.
#[track_caller]
fn check_refused(gateway: &Gateway, request: &str, status: u16) {
    let mut client = gateway.client();
    client.send(request);
    let answer = client.answer();
    assert_eq!(answer.status(), status, "{request:?} {answer:?}");
    assert_eq!(answer.field("content-type"), Some("application/problem+json"), "{request:?} {answer:?}");
    assert!(answer.text().contains("request_id"), "{answer:?}");
    assert!(answer.field("proxy-status").unwrap().starts_with("gogate; error="), "{answer:?}");
    assert!(client.is_closed(), "{request:?}");
}

#[test]
fn a_request_reaches_the_endpoint_with_who_asked() {
    let (gateway, _upstream) = echo();
    let mut client = gateway.client();
    client.send(
        "GET /a//b/../c?q=1 HTTP/1.1\r\nHost: gate.example\r\nX-Forwarded-For: 10.9.9.9\r\n\
         Connection: X-Hop\r\nX-Hop: 1\r\nX-Mine: kept\r\n\r\n",
    );
    let answer = client.answer();
    let seen = answer.text();
    assert!(seen.starts_with("GET /a/c?q=1 HTTP/1.1\n"), "{seen}");
    for expected in [
        "x-forwarded-for: 127.0.0.1\n",
        "x-real-ip: 127.0.0.1\n",
        "x-forwarded-proto: http\n",
        "x-forwarded-host: gate.example\n",
        "host: gate.example\n",
        "via: 1.1 gogate\n",
        "x-mine: kept\n",
        "traceparent: 00-",
    ] {
        assert!(seen.contains(expected), "{expected:?} in {seen}");
    }
    assert!(seen.contains(&format!("x-forwarded-port: {}\n", gateway.address().port())), "{seen}");
    assert!(!seen.contains("x-hop") && !seen.contains("10.9.9.9"), "{seen}");
    assert_eq!(answer.field("via"), Some("1.1 gogate"));
}

#[test]
fn a_trusted_proxys_account_is_continued() {
    let upstream = Upstream::echo();
    let mut document = document(&[upstream.address]);
    document.trusted_proxies.push(IpNetwork { address: "127.0.0.0".parse().unwrap(), prefix: 8 });
    let gateway = Gateway::start(&document);
    let mut client = gateway.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 10.9.9.9\r\nX-Forwarded-Proto: https\r\n\r\n");
    let seen = client.answer().text();
    assert!(seen.contains("x-forwarded-for: 10.9.9.9\n"), "{seen}");
    assert!(seen.contains("x-forwarded-for: 127.0.0.1\n"), "{seen}");
    assert!(seen.contains("x-forwarded-proto: https\n"), "{seen}");
}

#[test]
fn ambiguous_framing_is_refused_and_the_connection_closed() {
    let (gateway, upstream) = echo();
    for request in [
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\nHost: a\n\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n 2\r\n\r\n",
        "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        "GET /a%2Fb HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        "\u{0}\u{1}\u{2}\r\n\r\n",
    ] {
        check_refused(&gateway, request, 400);
    }
    check_refused(&gateway, "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501);
    assert_eq!(gateway.client().get("/after").status(), 200, "others are served as before");
    drop(upstream);
}

#[test]
fn a_bad_request_behind_a_good_one_is_answered_after_it() {
    let (gateway, _upstream) = echo();
    const GET: &str = "GET /good HTTP/1.1\r\nHost: a\r\n\r\n";
    const PUT: &str = "PUT /good HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";
    const CHUNKED: &str = "PUT /good HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let bad_chunk = format!("{CHUNKED}3\r\nabcd\r\n");
    let good_chunk = format!("{CHUNKED}3\r\nabc\r\n0\r\n\r\n");
    for bad in ["GET /bad HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "\0", &bad_chunk] {
        for good in [&[GET][..], &[PUT], &[&good_chunk], &[GET, PUT, GET]] {
            let mut client = gateway.client();
            client.send(&format!("{}{bad}", good.concat()));
            for _ in good {
                let answer = client.answer();
                assert!(answer.status() == 200 && answer.text().contains(" /good "), "{answer:?}");
            }
            assert_eq!(client.answer().status(), 400, "{good:?} {bad:?}");
            assert!(client.is_closed());
        }
    }
}

#[test]
fn a_bad_request_waits_until_the_answer_before_it_is_written_out() {
    // More than the sockets and hyper hold between them.
    const LENGTH: usize = 16 << 20;
    let upstream = Upstream::start(|mut peer| {
        peer.request();
        peer.send(&format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n"));
        peer.send(&"x".repeat(LENGTH));
    });
    let gateway = Gateway::start(&document(&[upstream.address]));
    let mut client = gateway.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /bad HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n");
    // Reads no more than it takes for the exchange to end with much of its answer not yet written out.
    let mut read = Vec::new();
    let mut piece = vec![0; 64 << 10];
    while !gateway.metrics().contains("method=\"GET\",code=\"200\"} 1") {
        client.0.read_exact(&mut piece).unwrap();
        read.extend_from_slice(&piece);
    }
    client.0.read_to_end(&mut read).unwrap();
    let text = String::from_utf8(read).unwrap();
    let (_, rest) = text.split_once("\r\n\r\n").unwrap();
    assert!(rest.len() > LENGTH, "the answer ends after {} bytes", rest.len());
    let (body, next) = rest.split_at(LENGTH);
    assert!(body.bytes().all(|byte| byte == b'x'));
    assert!(next.starts_with("HTTP/1.1 400 "), "{next:.100}");
}

#[test]
fn bounds_of_the_document_are_kept() {
    let upstream = Upstream::echo();
    let mut document = document(&[upstream.address]);
    let limits = "limits: { uri_bytes: 100, headers: 5, header_bytes: 8KiB, body_bytes: 10 }";
    document.limits = yaml(&format!("services: {{ service: {{}} }}\n{limits}")).limits;
    let gateway = Gateway::start(&document);
    check_refused(&gateway, &format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(100)), 414);
    check_refused(&gateway, &format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(8 << 10)), 431);
    check_refused(&gateway, &format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: 1\r\n".repeat(5)), 431);
    check_refused(&gateway, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\n01234567890", 413);
    check_refused(
        &gateway,
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nb\r\n01234567890\r\n0\r\n\r\n",
        413,
    );
    let mut client = gateway.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n0123456789");
    assert_eq!(client.answer().status(), 200);
}

#[test]
fn too_many_connections_are_told_503() {
    let upstream = Upstream::echo();
    let mut document = document(&[upstream.address]);
    document.limits.connections = 1;
    let gateway = Gateway::start(&document);
    let mut first = gateway.client();
    assert_eq!(first.get("/").status(), 200);
    let mut second = gateway.client();
    let answer = second.answer();
    assert_eq!(answer.status(), 503);
    assert!(answer.field("retry-after").is_some());
    assert!(second.is_closed());
    assert_eq!(first.get("/").status(), 200);
}

#[test]
fn a_slow_head_is_told_408_and_an_empty_connection_is_closed() {
    let upstream = Upstream::echo();
    let mut document = document(&[upstream.address]);
    document.limits.header_timeout = Duration::from_millis(100);
    let gateway = Gateway::start(&document);
    check_refused(&gateway, "GET / HTTP/1.1\r\nHost:", 408);
    assert!(gateway.client().is_closed());
}

#[test]
fn an_unknown_path_is_404_and_another_method_405() {
    let upstream = Upstream::echo();
    let mut document = document(&[upstream.address]);
    document.routes = vec![
        route("read", PathPattern::Exact("/a".to_owned()), &["GET"]),
        route("write", PathPattern::Exact("/a".to_owned()), &["PUT"]),
    ];
    let gateway = Gateway::start(&document);
    let mut client = gateway.client();
    assert_eq!(client.get("/b").status(), 404);
    client.send("DELETE /a HTTP/1.1\r\nHost: a\r\n\r\n");
    let answer = client.answer();
    assert_eq!((answer.status(), answer.field("allow")), (405, Some("GET, PUT")));
    assert_eq!(client.get("/a").status(), 200, "the connection goes on");
    gateway.await_metric("gogate_rejections_total{reason=\"method_not_allowed\"} 1");
    gateway.await_metric(
        "gogate_requests_total{route=\"read\",service=\"service\",method=\"GET\",code=\"200\"} 1",
    );
}

#[test]
fn bodies_and_trailers_stream_both_ways() {
    let upstream = Upstream::start(|mut peer| {
        while let Some(request) = peer.request() {
            assert_eq!(request.field("x-sum"), Some("7"), "{request:?}");
            peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-total\r\n\r\n");
            for piece in request.body.chunks(1000) {
                peer.send(&format!("{:x}\r\n{}\r\n", piece.len(), String::from_utf8_lossy(piece)));
            }
            peer.send("0\r\nx-total: 9\r\n\r\n");
        }
    });
    let gateway = Gateway::start(&document(&[upstream.address]));
    let mut client = gateway.client();
    let body = "0123456789".repeat(20_000);
    for _ in 0..2 {
        client.send("POST / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nTrailer: x-sum\r\n");
        client.send("Transfer-Encoding: chunked\r\n\r\n");
        client.send(&format!("{:x}\r\n{body}\r\n0\r\nx-sum: 7\r\n\r\n", body.len()));
        let answer = client.answer();
        assert_eq!((answer.status(), answer.text() == body), (200, true), "{:?}", answer.fields);
        assert_eq!(answer.field("x-total"), Some("9"));
    }
    assert_eq!(upstream.connections.load(std::sync::atomic::Ordering::SeqCst), 1, "one connection is used");
}

#[test]
fn an_expecting_client_is_told_to_continue() {
    let (gateway, _upstream) = echo();
    let mut client = gateway.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(client.answer().status(), 100);
    client.send("abc");
    let answer = client.answer();
    assert!(answer.status() == 200 && answer.text().ends_with("\nabc"), "{answer:?}");
}

#[test]
fn answers_without_a_body_keep_the_connection() {
    let upstream = Upstream::start(|mut peer| {
        while let Some(request) = peer.request() {
            peer.send(match request.start.split(' ').nth(1) {
                Some("/204") => "HTTP/1.1 204 No Content\r\n\r\n",
                Some("/304") => "HTTP/1.1 304 Not Modified\r\nETag: \"1\"\r\n\r\n",
                Some("/103") => {
                    "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
                }
                _ => "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
            });
        }
    });
    let gateway = Gateway::start(&document(&[upstream.address]));
    let mut client = gateway.client();
    assert_eq!(client.get("/204").status(), 204);
    let answer = client.get("/304");
    assert_eq!((answer.status(), answer.field("etag")), (304, Some("\"1\"")));
    client.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.answer_to_head().field("content-length"), Some("1000"));
    let answer = client.get("/103");
    assert_eq!((answer.status(), answer.text().as_str()), (200, "ok"));
}

#[test]
fn an_answer_that_ends_with_its_connection_is_passed_on() {
    let upstream = Upstream::says("HTTP/1.1 200 OK\r\n\r\nuntil the end");
    let gateway = Gateway::start(&document(&[upstream.address]));
    let mut client = gateway.client();
    for _ in 0..3 {
        let answer = client.get("/");
        assert_eq!((answer.status(), answer.text().as_str()), (200, "until the end"));
    }
}

#[test]
fn an_http_1_0_client_is_served() {
    let (gateway, _upstream) = echo();
    let mut client = gateway.client();
    client.send("GET /old HTTP/1.0\r\n\r\n");
    let answer = client.answer();
    assert!(answer.text().starts_with("GET /old HTTP/1.1\n"), "{answer:?}");
    assert!(client.is_closed());
}

#[test]
fn a_request_in_single_bytes_is_a_request() {
    let (gateway, _upstream) = echo();
    let mut client = gateway.client();
    for byte in "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n".bytes()
    {
        client.0.get_mut().write_all(&[byte]).unwrap();
    }
    let answer = client.answer();
    assert!(answer.status() == 200 && answer.text().ends_with("abc"), "{answer:?}");
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let (gateway, _upstream) = echo();
    let mut client = gateway.client();
    let requests: String = (0..20).map(|n| format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n")).collect();
    client.send(&requests);
    for n in 0..20 {
        let answer = client.answer();
        assert!(answer.text().starts_with(&format!("GET /{n} ")), "{n}: {answer:?}");
    }
}

#[test]
fn a_client_that_leaves_takes_its_request_along() {
    let (left, is_left) = std::sync::mpsc::channel();
    let upstream = Upstream::start(move |mut peer| {
        peer.request();
        // Never answers: the only end is that the gateway closes.
        left.send(peer.is_closed()).unwrap();
    });
    let gateway = Gateway::start(&document(&[upstream.address]));
    let mut client: Peer = gateway.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    gateway.await_metric("gogate_upstream_connections{service=\"service\",state=\"active\"} 1");
    drop(client);
    assert!(is_left.recv_timeout(crate::upstream::PATIENCE).unwrap());
    gateway.await_metric("method=\"GET\",code=\"499\"} 1");
}

#[test]
fn a_client_that_resets_is_noticed_whatever_it_sent_before() {
    const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    const UPGRADE: &str = "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n";
    let (asked, is_asked) = std::sync::mpsc::channel();
    let (over, is_over) = std::sync::mpsc::channel::<()>();
    let is_over = std::sync::Mutex::new(is_over);
    let upstream = Upstream::start(move |mut peer| {
        peer.head();
        asked.send(()).unwrap();
        // Reads no more and never answers.
        let _ = is_over.lock().unwrap().recv();
    });
    let gateway = Gateway::start(&document(&[upstream.address]));
    let cases = [
        format!("{GET}{GET}"),
        UPGRADE.to_owned(),
        format!("{UPGRADE}\0early, and not HTTP"),
        // More than hyper and the sockets hold.
        format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{}", 1 << 30, "x".repeat(32 << 20)),
    ];
    for case in &cases {
        let mut client = gateway.client();
        client.0.get_ref().set_write_timeout(Some(Duration::from_millis(300))).unwrap();
        client.send(case);
        is_asked.recv_timeout(crate::upstream::PATIENCE).unwrap();
        client.reset();
        gateway.await_metric("gogate_upstream_connections{service=\"service\",state=\"active\"} 0");
        gateway.await_metric("gogate_connections_active{listener=\"web\"} 0");
        over.send(()).unwrap();
    }
    gateway.await_metric("method=\"GET\",code=\"499\"} 3");
}

#[test]
fn a_client_that_leaves_before_its_upgrade_is_answered_takes_its_request_along() {
    let upstream = Upstream::start(|mut peer| {
        peer.request();
        peer.is_closed();
    });
    let gateway = Gateway::start(&document(&[upstream.address]));
    let mut client = gateway.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n");
    gateway.await_metric("gogate_upstream_connections{service=\"service\",state=\"active\"} 1");
    drop(client);
    gateway.await_metric("method=\"GET\",code=\"499\"} 1");
    gateway.await_metric("gogate_upstream_connections{service=\"service\",state=\"active\"} 0");
}

#[test]
fn a_service_has_its_own_times() {
    let upstream = Upstream::start(|mut peer| {
        peer.request();
        peer.is_closed();
    });
    let mut document = document(&[upstream.address]);
    service(&mut document).timeouts.request = Duration::from_millis(100);
    let gateway = Gateway::start(&document);
    let mut client = gateway.client();
    let answer = client.get("/");
    assert_eq!(answer.status(), 504);
    assert_eq!(answer.field("proxy-status"), Some("gogate; error=http_response_timeout"));
    // A route's own time goes before it.
    document.routes[0].timeout = Some(Duration::from_millis(100));
    service(&mut document).timeouts.request = Duration::from_secs(600);
    gateway.publish(&document);
    assert_eq!(client.get("/").status(), 504);
}
