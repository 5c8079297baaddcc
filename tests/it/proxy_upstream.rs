//! Endpoints that misbehave, and what becomes of requests to them.

use std::{
    io::Read,
    net::{Shutdown, TcpListener},
    sync::{
        Barrier,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use gogate::{config::document::Endpoint, proxy::RoutingTable};

use crate::upstream::{Gateway, PATIENCE, Peer, Upstream, document, service, yaml};

#[test]
fn a_stale_pooled_connection_never_gives_502() {
    // Closes after a number of answers that varies, at once or a moment later, so that every race is met.
    let turns = AtomicUsize::new(0);
    let upstream = Upstream::start(move |mut peer| {
        let turn = turns.fetch_add(1, Ordering::SeqCst);
        for answered in 0.. {
            if peer.request().is_none() {
                return;
            }
            if answered > 0 && answered >= turn % 4 {
                return;
            }
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
            if turn.is_multiple_of(3) && answered >= turn % 5 {
                std::thread::sleep(Duration::from_micros(turn as u64 % 7 * 50));
                return;
            }
        }
    });
    let gateway = Gateway::start(&document(&[upstream.address]));
    let requests = |gateway: &Gateway| {
        let mut client = gateway.client();
        for n in 0..250 {
            let answer = client.get("/");
            assert_eq!(answer.status(), 200, "{n}: {answer:?}");
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| requests(&gateway));
        }
    });
    let metrics = gateway.metrics();
    assert!(metrics.contains("gogate_retries_total{service=\"service\",reason=\"stale\"}"), "{metrics}");
}

#[test]
fn a_post_that_reached_the_endpoint_is_not_sent_again() {
    let posts = std::sync::Arc::new(AtomicUsize::new(0));
    let seen = std::sync::Arc::clone(&posts);
    let upstream = Upstream::start(move |mut peer| {
        while let Some(request) = peer.request() {
            if request.start.starts_with("POST") {
                seen.fetch_add(1, Ordering::SeqCst);
                return;
            }
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let gateway = Gateway::start_with(1, Duration::ZERO, &document(&[upstream.address]));
    let mut client = gateway.client();
    assert_eq!(client.get("/").status(), 200);
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc");
    assert_eq!(client.answer().status(), 502);
    assert_eq!(posts.load(Ordering::SeqCst), 1);
}

#[test]
fn an_endpoint_that_refuses_is_passed_over() {
    let upstream = Upstream::echo();
    let refusing = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let gateway = Gateway::start(&document(&[refusing, upstream.address]));
    let mut client = gateway.client();
    for _ in 0..10 {
        assert_eq!(client.get("/").status(), 200);
    }
    let gateway = Gateway::start(&document(&[refusing]));
    let answer = gateway.client().get("/");
    assert_eq!(answer.status(), 502);
    assert_eq!(answer.field("proxy-status"), Some("gogate; error=connection_refused"));
}

#[test]
fn a_service_without_endpoints_is_503() {
    let gateway = Gateway::start(&document(&[]));
    let answer = gateway.client().get("/");
    assert_eq!((answer.status(), answer.field("retry-after")), (503, Some("1")));
}

#[test]
fn an_answer_that_is_not_http_is_502_and_its_connection_not_used_again() {
    for (answer, error) in [
        ("SSH-2.0-OpenSSH\r\n\r\n", "http_protocol_error"),
        ("HTTP/1.1 200 OK\r\nno colon\r\n\r\n", "http_protocol_error"),
        ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", "http_protocol_error"),
        ("HTTP/1.1 200 O", "connection_terminated"),
        ("", "connection_terminated"),
    ] {
        let upstream = Upstream::says(answer);
        let gateway = Gateway::start(&document(&[upstream.address]));
        let mut client = gateway.client();
        for _ in 0..2 {
            let seen = client.get("/");
            assert_eq!(seen.status(), 502, "{answer:?} {seen:?}");
            assert_eq!(seen.field("proxy-status"), Some(&*format!("gogate; error={error}")), "{answer:?}");
        }
        assert_eq!(upstream.connections.load(Ordering::SeqCst), 2, "{answer:?}");
    }
}

#[test]
fn half_an_answer_is_not_made_whole() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    ] {
        let upstream = Upstream::says(answer);
        let gateway = Gateway::start(&document(&[upstream.address]));
        let seen = gateway.client().get("/");
        assert!(seen.status() == 200 && !seen.whole, "{seen:?}");
    }
}

#[test]
fn a_body_that_stands_still_is_given_up() {
    let upstream = Upstream::start(|mut peer| {
        peer.request();
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf");
        peer.is_closed();
    });
    let mut document = document(&[upstream.address]);
    service(&mut document).timeouts.idle = Duration::from_millis(100);
    let gateway = Gateway::start(&document);
    let seen = gateway.client().get("/");
    assert!(seen.status() == 200 && !seen.whole, "{seen:?}");
}

#[test]
fn an_answer_before_the_body_is_passed_on() {
    const ANSWER: &str = "HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nno!";
    // What the endpoint does once it has answered; closing with bytes unread resets the connection.
    type After = fn(&mut Peer);
    let after: [(&str, After); 4] = [
        ("closes", |_| ()),
        ("takes no more", |_| std::thread::park_timeout(PATIENCE)),
        ("says it will write no more", |peer| {
            peer.0.get_ref().shutdown(Shutdown::Write).unwrap();
            std::thread::park_timeout(PATIENCE);
        }),
        ("reads on", |peer| while peer.0.read(&mut [0; 4096]).is_ok_and(|read| read > 0) {}),
    ];
    for (what, after) in after {
        let upstream = Upstream::start(move |mut peer| {
            peer.head();
            peer.send(ANSWER);
            after(&mut peer);
        });
        let gateway = Gateway::start_with(1, Duration::ZERO, &document(&[upstream.address]));
        for (sent, turn) in [0, 10, 64 << 10, 8 << 20].into_iter().zip(1..) {
            let mut client = gateway.client();
            let mut sending = Peer::new(client.0.get_ref().try_clone().unwrap());
            let upload = std::thread::spawn(move || {
                sending.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n");
                sending.send(&"x".repeat(sent));
            });
            let answer = client.answer();
            assert_eq!((answer.status(), answer.text().as_str()), (413, "no!"), "{what}, {sent}: {answer:?}");
            assert_eq!(answer.field("connection"), Some("close"), "{what}, {sent}");
            assert!(client.is_closed(), "{what}, {sent}");
            upload.join().unwrap();
            let opened = upstream.connections.load(Ordering::SeqCst);
            assert_eq!(opened, turn, "{what}, {sent}: the connection is not used again");
        }
    }
}

#[test]
fn a_full_pool_makes_requests_wait_and_then_503() {
    let upstream = Upstream::start(|mut peer| {
        while peer.request().is_some() {
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no");
            // The body's end comes when the test has seen the others wait.
            std::thread::sleep(Duration::from_millis(20));
            peer.send("k");
        }
    });
    let mut document = document(&[upstream.address]);
    service(&mut document).pool.max_connections = 1;
    let gateway = Gateway::start_with(1, Duration::ZERO, &document);
    std::thread::scope(|scope| {
        for _ in 0..5 {
            scope.spawn(|| assert_eq!(gateway.client().get("/").text(), "ok"));
        }
    });
    assert_eq!(upstream.connections.load(Ordering::SeqCst), 1, "never more than the bound");

    let stuck = Upstream::start(|mut peer| {
        peer.request();
        peer.is_closed();
    });
    let mut document = crate::upstream::document(&[stuck.address]);
    service(&mut document).pool.max_connections = 1;
    service(&mut document).timeouts.connect = Duration::from_millis(100);
    let gateway = Gateway::start_with(1, Duration::ZERO, &document);
    let mut first = gateway.client();
    first.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    gateway.await_metric("gogate_upstream_connections{service=\"service\",state=\"active\"} 1");
    let answer = gateway.client().get("/");
    assert_eq!(answer.status(), 503, "{answer:?}");
    assert_eq!(answer.field("proxy-status"), Some("gogate; error=connection_limit_reached"));
}

#[test]
fn idle_connections_are_closed_in_time() {
    let upstream = Upstream::echo();
    let mut document = document(&[upstream.address]);
    service(&mut document).pool.idle_timeout = Duration::from_millis(10);
    let gateway = Gateway::start(&document);
    assert_eq!(gateway.client().get("/").status(), 200);
    gateway.await_metric("gogate_upstream_connections{service=\"service\",state=\"idle\"} 0");
}

#[test]
fn a_busy_worker_keeps_the_connections_it_needs_and_closes_the_rest_later() {
    const CLIENTS: usize = 300;
    const ROUNDS: usize = 6;
    // Nobody is answered before all have asked, so that every round needs as many connections as there are clients.
    let asked = Barrier::new(CLIENTS);
    let upstream = Upstream::start(move |mut peer| {
        while peer.request().is_some() {
            asked.wait();
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    let mut document = document(&[upstream.address]);
    service(&mut document).pool.max_idle = 16;
    let gateway = Gateway::start_with(1, Duration::ZERO, &document);
    let mut clients: Vec<Peer> = (0..CLIENTS).map(|_| gateway.client()).collect();
    for _ in 0..ROUNDS {
        for client in &mut clients {
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        }
        for client in &mut clients {
            assert_eq!(client.answer().text(), "ok");
        }
    }
    let opened = upstream.connections.load(Ordering::SeqCst);
    // As many as there are clients, unless the machine stood still for a second between two rounds. Closing at
    // once would make it 1720.
    assert!(opened < 2 * CLIENTS, "{opened} connections for {CLIENTS} clients in {ROUNDS} rounds");
    gateway.await_metric("gogate_upstream_connections{service=\"service\",state=\"idle\"} 16");
}

#[test]
fn a_service_without_idle_connections_uses_each_once() {
    let upstream = Upstream::echo();
    let gateway = Gateway::start(&yaml(&format!(
        "listeners: {{ web: {{ address: '127.0.0.1:0' }} }}
services: {{ service: {{ endpoints: [{{ address: '{}' }}], pool: {{ max_idle: 0 }} }} }}
routes: [{{ name: all, service: service }}]",
        upstream.address
    )));
    let mut client = gateway.client();
    for turn in 1..=3 {
        assert_eq!(client.get("/").status(), 200);
        assert_eq!(upstream.connections.load(Ordering::SeqCst), turn);
    }
}

#[test]
fn an_endpoint_may_have_a_name() {
    // `localhost` may have an IPv6 address too, where nothing listens.
    let upstream = Upstream::echo();
    let mut document = document(&[]);
    let named = |host: &str| Endpoint { address: format!("{host}:{}", upstream.address.port()), weight: 1 };
    service(&mut document).endpoints = vec![named("localhost")];
    let gateway = Gateway::start(&document);
    assert_eq!(gateway.client().get("/").status(), 200);
    service(&mut document).endpoints = vec![named("nowhere.invalid")];
    gateway.publish(&document);
    let answer = gateway.client().get("/");
    assert_eq!(answer.status(), 502);
    assert_eq!(answer.field("proxy-status"), Some("gogate; error=connection_refused"));
}

#[test]
fn an_instance_whose_address_cannot_be_read_is_left_out() {
    let upstream = Upstream::echo();
    let document = document(&[upstream.address]);
    let gateway = Gateway::start(&document);
    let bad = vec![Endpoint { address: "nowhere".to_owned(), weight: 1 }];
    let compiled = {
        let registered = [("service".to_owned(), bad.clone())].into();
        RoutingTable::compile(2, &document, &registered, &gateway.proxy.table()).unwrap()
    };
    let joined = gateway.proxy.table().with_endpoints("service", bad);
    for table in [compiled, joined] {
        gateway.runtime.block_on(gateway.proxy.publish(table)).unwrap();
        let mut client = gateway.client();
        for _ in 0..4 {
            assert_eq!(client.get("/").status(), 200);
        }
    }
}

#[test]
fn a_client_that_leaves_while_it_uploads_takes_its_request_along() {
    let (left, is_left) = std::sync::mpsc::channel();
    let upstream = Upstream::start(move |mut peer| {
        peer.head();
        let mut body = Vec::new();
        // Ends early or with a reset; a body made whole would tell the endpoint what the client did not say.
        let _ = peer.0.read_to_end(&mut body);
        left.send(body).unwrap();
    });
    let gateway = Gateway::start(&document(&[upstream.address]));
    for head in ["Content-Length: 1000", "Transfer-Encoding: chunked"] {
        let mut client = gateway.client();
        client.send(&format!("PUT / HTTP/1.1\r\nHost: a\r\n{head}\r\n\r\n5\r\nhello\r\n"));
        gateway.await_metric("gogate_upstream_connections{service=\"service\",state=\"active\"} 1");
        drop(client);
        let body = is_left.recv_timeout(PATIENCE).unwrap();
        assert!(body.len() < 1000 && !body.ends_with(b"0\r\n\r\n"), "{head}: {body:?}");
        gateway.await_metric("gogate_upstream_connections{service=\"service\",state=\"active\"} 0");
    }
}
