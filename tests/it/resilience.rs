//! Ejection, circuit breakers, retries, sticky sessions and slow start, with endpoints that misbehave.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use crate::upstream::{Gateway, PATIENCE, Peer, Upstream, eventually, yaml};

/// Says its name to every request.
fn named(name: &'static str) -> Upstream {
    Upstream::start(move |mut peer| {
        while peer.request().is_some() {
            peer.send(&format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len()));
        }
    })
}

/// Reads requests, counts them, and answers these bytes; nothing: it closes.
fn counting(answer: &'static str) -> (Upstream, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let upstream = Upstream::start(move |mut peer| {
        while peer.request().is_some() {
            counted.fetch_add(1, Ordering::SeqCst);
            if answer.is_empty() {
                return;
            }
            peer.send(answer);
        }
    });
    (upstream, count)
}

const UNAVAILABLE: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n";

fn document(service: &str, route: &str, endpoints: &[&Upstream]) -> gogate::config::document::Document {
    let endpoints: Vec<_> =
        endpoints.iter().map(|upstream| format!("{{ address: '{}' }}", upstream.address)).collect();
    let (service, route) = (service.trim_end_matches(", "), route.trim_end_matches(", "));
    let comma = |keys: &str| if keys.is_empty() { String::new() } else { format!("{keys}, ") };
    yaml(&format!(
        "listeners: {{ web: {{ address: '127.0.0.1:0' }} }}
services: {{ service: {{ {}endpoints: [{}] }} }}
routes: [{{ {}name: all, service: service }}]",
        comma(service),
        endpoints.join(", "),
        comma(route)
    ))
}

fn one_worker(document: &gogate::config::document::Document) -> Gateway {
    Gateway::start_with(1, Duration::ZERO, document)
}

fn texts(client: &mut Peer, requests: usize) -> Vec<String> {
    (0..requests).map(|_| client.get("/").text()).collect()
}

// === outlier ===

#[test]
fn an_endpoint_that_fails_again_and_again_is_ejected_and_returns_by_time() {
    let ((bad, count), good) = (counting(UNAVAILABLE), named("good"));
    let outlier = "outlier: { consecutive_errors: 3, eject_for: 300ms }";
    let gateway = Gateway::start(&document(outlier, "", &[&bad, &good]));
    let mut client = gateway.client();
    eventually("it is ejected", || {
        client.get("/");
        if gateway.metrics().contains(&format!("endpoint=\"{}\"}} 0", bad.address)) {
            Ok(())
        } else {
            Err(String::new())
        }
    });
    assert_eq!(count.load(Ordering::SeqCst), 3, "errors in a row that it took");
    // As long as it is out, nothing goes there; then it gets requests again.
    eventually("it has returned", || {
        let answer = client.get("/");
        if answer.status() == 503 { Ok(()) } else { Err(answer.text()) }
    });
    assert_eq!(count.load(Ordering::SeqCst), 4);
}

#[test]
fn no_more_endpoints_are_ejected_than_the_cap_allows() {
    let bad: Vec<_> = (0..4).map(|_| counting(UNAVAILABLE).0).collect();
    let endpoints: Vec<_> = bad.iter().collect();
    let outlier = "outlier: { consecutive_errors: 1, eject_for: 1h, max_ejected_percent: 50 }";
    let gateway = Gateway::start(&document(outlier, "", &endpoints));
    let mut clients = [(); 4].map(|()| gateway.client());
    for _ in 0..10 {
        for client in &mut clients {
            assert_eq!(client.get("/").status(), 503);
        }
    }
    let out = gateway
        .metrics()
        .lines()
        .filter(|line| line.starts_with("gogate_backend_health") && line.ends_with(" 0"))
        .count();
    assert_eq!(out, 2);
    let alone = Gateway::start(&document("outlier: { consecutive_errors: 1 }", "", &endpoints[..1]));
    let mut client = alone.client();
    for _ in 0..5 {
        let answer = client.get("/");
        assert_eq!(
            (answer.status(), answer.field("proxy-status")),
            (503, None),
            "the only one is never ejected"
        );
    }
}

// === circuit breaker ===

#[test]
fn every_kind_of_failure_opens_the_breaker() {
    let hanging = Upstream::start(|mut peer| {
        peer.request();
        peer.is_closed();
    });
    let nobody = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        Upstream { address: listener.local_addr().unwrap(), connections: Arc::default() }
    };
    for (upstream, status) in [
        (counting("").0, 502),
        (Upstream::says("SSH-2.0\r\n\r\n"), 502),
        (hanging, 504),
        (counting(UNAVAILABLE).0, 503),
        (counting("HTTP/1.1 502 No\r\nContent-Length: 0\r\n\r\n").0, 502),
        (counting("HTTP/1.1 504 No\r\nContent-Length: 0\r\n\r\n").0, 504),
        (nobody, 502),
    ] {
        let keys = "circuit_breaker: { failures: 2, open_for: 1h }, timeouts: { request: 50ms }";
        let gateway = Gateway::start(&document(keys, "", &[&upstream]));
        let statuses: Vec<_> = (0..3).map(|_| gateway.client().get("/").status()).collect();
        assert_eq!(statuses, [status, status, 503]);
        let metrics = gateway.metrics();
        assert!(metrics.contains("reason=\"breaker_open\"} 1"), "{metrics}");
        let state = format!(
            "gogate_circuit_breaker_state{{service=\"service\",endpoint=\"{}\"}} 2",
            upstream.address
        );
        assert!(metrics.contains(&state), "{metrics}");
    }
    // The endpoint's own failures and the client's are something else.
    let fine = counting("HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n").0;
    let gateway = Gateway::start(&document("circuit_breaker: { failures: 1 }", "", &[&fine]));
    let mut client = gateway.client();
    assert_eq!([client.get("/").status(), client.get("/").status()], [500, 500]);
}

#[test]
fn failures_that_are_a_window_apart_do_not_open_the_breaker() {
    const REQUESTS: usize = 3;
    let arrived = |window: &str| {
        let (upstream, count) = counting(UNAVAILABLE);
        let keys = format!("circuit_breaker: {{ failures: 2, window: {window}, open_for: 1h }}");
        let gateway = Gateway::start(&document(&keys, "", &[&upstream]));
        let mut client = gateway.client();
        for _ in 0..REQUESTS {
            assert_eq!(client.get("/").status(), 503);
            // Longer than the short window: what has passed is what the test is about, and more does no harm.
            std::thread::sleep(Duration::from_millis(50));
        }
        count.load(Ordering::SeqCst)
    };
    assert_eq!(arrived("20ms"), REQUESTS, "each failure is forgotten by the next");
    assert_eq!(arrived("1h"), 2);
}

#[test]
fn a_half_open_breaker_lets_one_request_through_at_a_time() {
    const CLIENTS: usize = 12;
    let (asked, asks) = mpsc::channel::<mpsc::Sender<&'static str>>();
    let upstream = Upstream::start(move |mut peer| {
        while peer.request().is_some() {
            let (tell, told) = mpsc::channel();
            asked.send(tell).unwrap();
            match told.recv() {
                Ok(answer) => peer.send(answer),
                Err(_) => return,
            }
        }
    });
    let keys = "circuit_breaker: { failures: 1, open_for: 1ms, successes: 2 }";
    let gateway = Gateway::start(&document(keys, "", &[&upstream]));
    let ask = || {
        let mut client = gateway.client();
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        client
    };
    let mut client = ask();
    asks.recv_timeout(PATIENCE).unwrap().send(UNAVAILABLE).unwrap();
    assert_eq!(client.answer().status(), 503);
    gateway.await_metric(&format!(
        "gogate_circuit_breaker_state{{service=\"service\",endpoint=\"{}\"}} 1",
        upstream.address
    ));
    // Both workers are asked by many at once: one request arrives, the rest are refused.
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| ask()).collect();
    let probe = asks.recv_timeout(PATIENCE).unwrap();
    let refused = |clients: &mut Vec<Peer>| {
        let mut left = Vec::new();
        for mut client in clients.drain(..) {
            client.0.get_ref().set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            match client.answer().status() {
                503 => {}
                _ => left.push(client),
            }
        }
        left
    };
    let mut left = refused(&mut clients);
    assert_eq!(left.len(), 1, "requests that were let through");
    assert!(asks.try_recv().is_err());
    // Whose client leaves gives its place back, and the next one is the probe.
    left.clear();
    let mut next = eventually("the place is free", || {
        let client = ask();
        match asks.recv_timeout(Duration::from_millis(50)) {
            Ok(probe) => Ok((client, probe)),
            Err(error) => Err(error.to_string()),
        }
    });
    drop(probe);
    next.1.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
    assert_eq!(next.0.answer().status(), 200);
    // It takes two: still one at a time.
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| ask()).collect();
    let second = asks.recv_timeout(PATIENCE).unwrap();
    let mut left = refused(&mut clients);
    assert_eq!(left.len(), 1);
    second.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
    left[0].0.get_ref().set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(left[0].answer().status(), 200);
    let _open: Vec<_> = (0..CLIENTS).map(|_| ask()).collect();
    // Kept: an endpoint that closes instead of answering would open it again.
    let _asked: Vec<_> = (0..CLIENTS).map(|_| asks.recv_timeout(PATIENCE).unwrap()).collect();
}

#[test]
fn requests_go_to_endpoints_whose_breakers_are_closed() {
    let ((bad, count), good) = (counting(""), named("good"));
    let keys = "circuit_breaker: { failures: 2, open_for: 1h }";
    let gateway = one_worker(&document(keys, "", &[&bad, &good]));
    let mut client = gateway.client();
    let statuses: Vec<_> = (0..12).map(|_| client.get("/").status()).collect();
    assert_eq!(statuses.iter().filter(|status| **status == 502).count(), 2, "{statuses:?}");
    assert_eq!(count.load(Ordering::SeqCst), 2);
}

#[test]
fn a_stream_goes_to_an_endpoint_whose_breaker_is_closed() {
    let good = Upstream::start(|mut peer| {
        peer.send("hello");
        peer.is_closed();
    });
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gateway = one_worker(&yaml(&format!(
        "listeners: {{ web: {{ address: '127.0.0.1:0', protocol: tcp, service: s }} }}
services: {{ s: {{ circuit_breaker: {{ failures: 2, open_for: 1h }}, endpoints: [{{ address: '{nobody}' }}, {{ address: '{}' }}] }} }}",
        good.address
    )));
    for _ in 0..8 {
        let mut greeting = [0; 5];
        std::io::Read::read_exact(&mut gateway.client().0, &mut greeting).unwrap();
        assert_eq!(&greeting, b"hello");
    }
    let metrics = gateway.metrics();
    assert!(
        metrics.contains("gogate_retries_total{reason=\"connect\",service=\"s\"} 2")
            || metrics.contains("gogate_retries_total{service=\"s\",reason=\"connect\"} 2"),
        "{metrics}"
    );
    assert!(
        metrics.contains(&format!("gogate_circuit_breaker_state{{service=\"s\",endpoint=\"{nobody}\"}} 2"))
    );
}

// === retries ===

#[test]
fn a_failed_request_is_sent_to_another_endpoint_when_the_route_says_so() {
    for (answer, on) in [
        (UNAVAILABLE, "'503'"),
        ("", "reset"),
        ("HTTP/1.1 502 No\r\nContent-Length: 9\r\n\r\nnot today", "502"),
    ] {
        let ((bad, count), good) = (counting(answer), named("good"));
        let route = format!("retries: {{ attempts: 2, on: [connect, {on}], backoff: 1ms }}");
        let gateway = one_worker(&document("", &route, &[&bad, &good]));
        assert_eq!(texts(&mut gateway.client(), 6), ["good"; 6], "{on}");
        assert_eq!(count.load(Ordering::SeqCst), 3, "{on}: every other request met it first");
        let reason = on.trim_matches('\'');
        gateway.await_metric(&format!("gogate_retries_total{{service=\"service\",reason=\"{reason}\"}} 3"));
        // What is not in the list is passed on.
        let gateway = one_worker(&document("", "retries: { on: [connect, '504'] }", &[&bad, &good]));
        let mut client = gateway.client();
        let good = (0..4).filter(|_| client.get("/").status() == 200).count();
        assert_eq!(good, 2, "{on}");
    }
}

#[test]
fn a_request_is_sent_as_often_as_its_attempts_allow() {
    let (bad, count) = counting(UNAVAILABLE);
    let gateway = one_worker(&document("", "retries: { attempts: 3, on: ['503'], backoff: 1ms }", &[&bad]));
    let mut client = gateway.client();
    assert_eq!(client.get("/").status(), 503, "the endpoint's own answer is passed on in the end");
    assert_eq!(count.load(Ordering::SeqCst), 4);
    // The fields are all there each time.
    let upstream = {
        let turn = AtomicUsize::new(0);
        Upstream::start(move |mut peer| {
            while let Some(request) = peer.request() {
                if turn.fetch_add(1, Ordering::SeqCst) < 2 {
                    return;
                }
                let text = format!("{:?}", request.fields);
                peer.send(&format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len()));
            }
        })
    };
    let gateway =
        one_worker(&document("", "retries: { attempts: 2, on: [reset], backoff: 1ms }", &[&upstream]));
    let mut client = gateway.client();
    client.send("GET /x HTTP/1.1\r\nHost: a\r\nX-Twice: 1\r\nX-Twice: 2\r\n\r\n");
    let seen = client.answer().text();
    for field in ["(\"x-twice\", \"1\")", "(\"x-twice\", \"2\")", "(\"host\", \"a\")"] {
        assert_eq!(seen.matches(field).count(), 1, "{field} in {seen}");
    }
}

#[test]
fn what_reached_the_endpoint_and_is_not_safe_to_repeat_is_not_sent_again() {
    for answer in [UNAVAILABLE, ""] {
        let ((bad, count), route) = (
            counting(answer),
            "retries: { attempts: 5, on: [connect, reset, timeout, 502, 503, 504], backoff: 1ms }",
        );
        let gateway = one_worker(&document("", route, &[&bad]));
        let mut sent = 0;
        for request in [
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
            "PATCH / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
            // Idempotent, but its body is gone.
            "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
            "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        ] {
            let mut client = gateway.client();
            client.send(request);
            assert!(client.answer().status() >= 502);
            sent += 1;
            assert_eq!(count.load(Ordering::SeqCst), sent, "{request:?} was sent again");
        }
        gateway.client().get("/");
        assert_eq!(count.load(Ordering::SeqCst), sent + 6);
    }
    // What never left may be sent again, whatever it is.
    let good = named("good");
    let nobody = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        Upstream { address: listener.local_addr().unwrap(), connections: Arc::default() }
    };
    let gateway = one_worker(&document("", "retries: { on: [connect], backoff: 1ms }", &[&nobody, &good]));
    let mut client = gateway.client();
    for _ in 0..4 {
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc");
        assert_eq!(client.answer().text(), "good");
    }
}

#[test]
fn retries_stay_within_the_route_s_time() {
    let hanging = Upstream::start(|mut peer| {
        peer.request();
        peer.is_closed();
    });
    let good = named("good");
    let keys = "timeouts: { request: 80ms }";
    let route = "timeout: 5s, retries: { on: [timeout], backoff: 1ms }";
    let gateway = one_worker(&document(keys, route, &[&hanging, &good]));
    assert_eq!(texts(&mut gateway.client(), 4), ["good"; 4]);
    gateway.await_metric("gogate_retries_total{service=\"service\",reason=\"timeout\"} 2");
    let route = "timeout: 300ms, retries: { attempts: 10, on: [timeout], backoff: 1ms }";
    let gateway = one_worker(&document(keys, route, &[&hanging]));
    let started = Instant::now();
    assert_eq!(gateway.client().get("/").status(), 504);
    let took = started.elapsed();
    assert!((Duration::from_millis(200)..Duration::from_millis(900)).contains(&took), "{took:?}");
}

#[test]
fn a_budget_bounds_the_retries_of_a_service_that_is_down() {
    const REQUESTS: usize = 200;
    let (bad, count) = counting(UNAVAILABLE);
    let route = "retries: { attempts: 10, on: ['503'], backoff: 0ms, budget_percent: 10 }";
    let gateway = one_worker(&document("", route, &[&bad]));
    let mut client = gateway.client();
    for _ in 0..REQUESTS {
        assert_eq!(client.get("/").status(), 503);
    }
    let retried = count.load(Ordering::SeqCst) - REQUESTS;
    // Ten for each of ten seconds and a tenth of the requests; a slow machine may have begun to forget.
    assert!((100..=160).contains(&retried), "{retried} retries of {REQUESTS} requests");
}

// === sticky ===

#[test]
fn a_cookie_keeps_a_client_at_its_endpoint_until_it_is_gone() {
    let upstreams = ["a", "b", "c"].map(named);
    let endpoints: Vec<_> = upstreams.iter().collect();
    let keys = "sticky: { cookie: sid, ttl: 1h }";
    let gateway = Gateway::start(&document(keys, "", &endpoints));
    let send = |cookie: &str| {
        let mut client = gateway.client();
        client.send(&format!("GET / HTTP/1.1\r\nHost: a\r\nCookie: x=1; {cookie}\r\n\r\n"));
        client.answer()
    };
    let first = send("y=2");
    let set = first.field("set-cookie").unwrap();
    let (cookie, attributes) = set.split_once("; ").unwrap();
    assert_eq!(attributes, "Path=/; Max-Age=3600; HttpOnly; SameSite=Lax");
    assert!(!upstreams.iter().any(|upstream| cookie.contains(&upstream.address.to_string())));
    for _ in 0..10 {
        let again = send(cookie);
        assert_eq!((again.text(), again.field("set-cookie")), (first.text(), None));
    }
    let others: Vec<_> = endpoints
        .iter()
        .zip(["a", "b", "c"])
        .filter(|(_, name)| *name != first.text())
        .map(|(upstream, _)| *upstream)
        .collect();
    gateway.publish(&document(keys, "", &others));
    let moved = send(cookie);
    assert_ne!(moved.text(), first.text());
    let new = moved.field("set-cookie").unwrap().split_once("; ").unwrap().0.to_owned();
    assert_eq!((send(&new).text(), send(&new).field("set-cookie")), (moved.text(), None));
    // It comes back under the same name.
    gateway.publish(&document(keys, "", &endpoints));
    assert_eq!(send(cookie).text(), first.text());
}

#[test]
fn a_client_of_a_split_stays_with_the_service_whose_cookie_it_has() {
    let [old, new] = ["old", "new"].map(named);
    let gateway = one_worker(&yaml(&format!(
        "listeners: {{ web: {{ address: '127.0.0.1:0' }} }}
services:
  old: {{ sticky: {{ cookie: sid }}, endpoints: [{{ address: '{}' }}] }}
  new: {{ sticky: {{ cookie: sid }}, endpoints: [{{ address: '{}' }}] }}
routes: [{{ name: all, split: [{{ service: old, weight: 1 }}, {{ service: new, weight: 1 }}] }}]",
        old.address, new.address
    )));
    let mut cookies = std::collections::BTreeMap::new();
    let mut client = gateway.client();
    while cookies.len() < 2 {
        let answer = client.get("/");
        let cookie = answer.field("set-cookie").unwrap().split_once(';').unwrap().0.to_owned();
        cookies.insert(answer.text(), cookie);
    }
    for (service, cookie) in &cookies {
        for _ in 0..5 {
            client.send(&format!("GET / HTTP/1.1\r\nHost: a\r\nCookie: {cookie}\r\n\r\n"));
            let answer = client.answer();
            assert_eq!((&answer.text(), answer.field("set-cookie")), (service, None));
        }
    }
}

// === slow start ===

#[test]
fn a_new_endpoint_gets_a_small_share_at_first() {
    let (old, new) = (named("old"), named("new"));
    for balance in ["round_robin", "weighted_round_robin"] {
        let keys = format!("balance: {balance}, slow_start: 24h");
        let gateway = one_worker(&document(&keys, "", &[&old]));
        gateway.publish(&document(&keys, "", &[&old, &new]));
        let answers = texts(&mut gateway.client(), 110);
        let share = answers.iter().filter(|answer| *answer == "new").count();
        assert!((9..=11).contains(&share), "{balance}: {share} of 110 with a tenth of the weight");
        // Whoever is there from the beginning has its full share.
        let gateway = one_worker(&document(&keys, "", &[&old, &new]));
        let answers = texts(&mut gateway.client(), 10);
        assert_eq!(answers.iter().filter(|answer| *answer == "new").count(), 5, "{balance}");
    }
    let keys = "slow_start: 1ms";
    let gateway = one_worker(&document(keys, "", &[&old]));
    gateway.publish(&document(keys, "", &[&old, &new]));
    let mut client = gateway.client();
    eventually("its full share", || {
        let answers = texts(&mut client, 10);
        let share = answers.iter().filter(|answer| *answer == "new").count();
        if share == 5 { Ok(()) } else { Err(share.to_string()) }
    });
}
