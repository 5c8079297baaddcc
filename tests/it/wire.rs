//! What holds on the wire beside single messages: trailers, names with underscores, answers that do not end where
//! they should, and clients that take their time.

use std::{
    io::{Read, Write},
    sync::atomic::Ordering,
    time::Duration,
};

use gogate::config::document::Document;

use crate::upstream::{Gateway, PATIENCE, Upstream, eventually, yaml};

/// Everything goes to `upstream`; `more` is the rest of the document.
fn document(upstream: &Upstream, more: &str) -> Document {
    yaml(&format!(
        "listeners: {{ web: {{ address: '127.0.0.1:0' }} }}\n\
         services: {{ service: {{ endpoints: [{{ address: '{}' }}] }} }}\n\
         routes: [{{ name: all, match: {{ path_prefix: / }}, service: service }}]\n{more}",
        upstream.address
    ))
}

#[test]
fn a_name_with_underscores_does_not_stand_for_one_with_hyphens() {
    let upstream = Upstream::echo();
    let gateway = Gateway::start(&document(&upstream, ""));
    let mut client = gateway.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\nX_Forwarded_For: 10.0.0.1\r\nHOST_: b\r\napi_key: 7\r\n\r\n");
    let seen = client.answer().text();
    assert!(!seen.contains("10.0.0.1") && seen.contains("api_key: 7\n"), "{seen}");
}

#[test]
fn trailers_say_nothing_that_belongs_into_a_head() {
    let upstream = Upstream::start(|mut peer| {
        while let Some(request) = peer.request() {
            let trailer = request.fields.iter().filter(|(name, _)| name == "x-forwarded-for").count();
            assert_eq!((trailer, request.field("x-sum")), (1, Some("7")), "{request:?}");
            peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: via, x-total\r\n\r\n");
            peer.send("0\r\nvia: evil\r\nx-total: 9\r\n\r\n");
        }
    });
    let gateway = Gateway::start(&document(&upstream, ""));
    let mut client = gateway.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nTrailer: x-sum, x-forwarded-for\r\n");
    client.send("Transfer-Encoding: chunked\r\n\r\n0\r\nx-sum: 7\r\nx-forwarded-for: 10.0.0.1\r\n\r\n");
    let answer = client.answer();
    assert_eq!((answer.status(), answer.field("x-total")), (200, Some("9")), "{answer:?}");
    assert_eq!(answer.field("via"), Some("1.1 gogate"), "{answer:?}");
    assert_eq!(answer.fields.iter().filter(|(name, _)| name == "via").count(), 1, "{answer:?}");
}

#[test]
fn bytes_after_an_answer_end_its_connection() {
    const GOOD: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood";
    const EVIL: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
    // At once, and when the connection is idle.
    for at_once in [true, false] {
        let (said, both) = std::sync::mpsc::channel();
        let upstream = Upstream::start(move |mut peer| {
            while peer.request().is_some() {
                if at_once {
                    peer.send(&[GOOD, EVIL].concat());
                } else {
                    peer.send(GOOD);
                    peer.send(EVIL);
                }
                said.send(()).unwrap();
            }
        });
        let gateway = Gateway::start_with(1, Duration::ZERO, &document(&upstream, ""));
        for number in 1..=3 {
            let answer = gateway.client().get("/");
            assert_eq!((answer.status(), answer.text().as_str()), (200, "good"), "{at_once} {answer:?}");
            both.recv_timeout(PATIENCE).unwrap();
            assert_eq!(upstream.connections.load(Ordering::SeqCst), number);
        }
    }
}

#[test]
fn an_answer_that_goes_wrong_after_its_head_is_cut_off() {
    let (read, is_read) = std::sync::mpsc::channel();
    let is_read = std::sync::Mutex::new(is_read);
    let upstream = Upstream::start(move |mut peer| {
        peer.request();
        peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n");
        is_read.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        peer.send("zz\r\nmore\r\n0\r\n\r\n");
        assert!(peer.is_closed());
    });
    let gateway = Gateway::start(&document(&upstream, ""));
    let mut client = gateway.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    client.head();
    read.send(()).unwrap();
    let mut rest = String::new();
    client.0.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "4\r\nhalf\r\n", "there is no last chunk");
}

#[test]
fn a_body_that_trickles_is_told_408() {
    let upstream = Upstream::echo();
    let limits = "limits: { body_rate_min: 100, body_rate_grace: 300ms }";
    let gateway = Gateway::start(&document(&upstream, limits));
    let mut client = gateway.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n");
    let mut trickle = client.0.get_ref().try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        // At most fifty bytes a second: no single wait is long.
        while trickle.write_all(b"x").is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let answer = client.answer();
    assert_eq!(answer.status(), 408, "{answer:?}");
    assert!(client.is_closed());
    sender.join().unwrap();
    // One that keeps up takes longer than the grace, and is served, though it may stall for seconds.
    let mut client = gateway.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n");
    for _ in 0..10 {
        client.send(&"x".repeat(100));
        std::thread::sleep(Duration::from_millis(40));
    }
    assert_eq!(client.answer().status(), 200);
}

#[test]
fn a_slow_endpoint_is_not_the_clients_fault() {
    // Reads nothing for longer than the grace, then all.
    let upstream = Upstream::start(|mut peer| {
        std::thread::sleep(Duration::from_millis(1_500));
        if peer.request().is_some() {
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let limits = "limits: { body_rate_min: 1MiB, body_rate_grace: 1s }";
    let gateway = Gateway::start(&document(&upstream, limits));
    let mut client = gateway.client();
    const LENGTH: usize = 16 << 20;
    client.send(&format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {LENGTH}\r\n\r\n"));
    client.send(&"x".repeat(LENGTH));
    assert_eq!(client.answer().status(), 200);
}

#[test]
fn a_reader_that_trickles_is_given_up() {
    const LENGTH: usize = 64 << 20;
    let upstream = Upstream::start(|mut peer| {
        peer.request();
        peer.send(&format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n"));
        peer.send(&"x".repeat(LENGTH));
    });
    let mut document = document(&upstream, "");
    document.services.get_mut("service").unwrap().timeouts.idle = Duration::from_millis(200);
    let gateway = Gateway::start(&document);
    let mut client = gateway.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut piece = [0; 64];
    eventually("the connection is closed", || {
        client.0.get_mut().read(&mut piece).map_err(|error| error.to_string()).ok();
        let metrics = gateway.metrics();
        let closed = metrics.contains("gogate_connections_active{listener=\"web\"} 0");
        if closed { Ok(()) } else { Err(metrics) }
    });
}

#[test]
fn an_idle_connection_is_kept_as_long_as_the_document_says() {
    let upstream = Upstream::echo();
    let gateway = Gateway::start(&document(&upstream, "limits: { keep_alive: 100ms }"));
    let mut client = gateway.client();
    assert_eq!(client.get("/").status(), 200);
    let idle = std::time::Instant::now();
    assert!(client.is_closed());
    assert!(idle.elapsed() >= Duration::from_millis(90), "{:?}", idle.elapsed());
}

#[test]
fn forwarded_is_sent_where_the_document_asks_for_it() {
    let upstream = Upstream::echo();
    for (more, expected) in [
        ("forwarded: true", "forwarded: for=127.0.0.1;host=\"a\";proto=http\n"),
        (
            "forwarded: true\ntrusted_proxies: [127.0.0.0/8]",
            "forwarded: for=6.6.6.6\nforwarded: for=127.0.0.1;host=\"a\";proto=http\n",
        ),
        ("forwarded: false", ""),
    ] {
        let gateway = Gateway::start(&document(&upstream, more));
        let mut client = gateway.client();
        client.send("GET / HTTP/1.1\r\nHost: a\r\nForwarded: for=6.6.6.6\r\n\r\n");
        let seen = client.answer().text();
        let lines: String = seen
            .lines()
            .filter(|line| line.starts_with("forwarded:"))
            .map(|line| format!("{line}\n"))
            .collect();
        assert_eq!(lines, expected, "{more}");
    }
}

#[test]
fn an_answer_before_the_requests_end_ends_both_connections() {
    let upstream = Upstream::start(|mut peer| {
        peer.head();
        peer.send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno");
        peer.is_closed();
    });
    let gateway = Gateway::start(&document(&upstream, ""));
    for number in 1..=2 {
        let mut client = gateway.client();
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nhalf");
        let answer = client.answer();
        assert_eq!((answer.status(), answer.text().as_str()), (413, "no"), "{answer:?}");
        assert_eq!(answer.field("connection"), Some("close"), "{answer:?}");
        assert!(client.is_closed());
        assert_eq!(upstream.connections.load(Ordering::SeqCst), number);
    }
}
