//! `Upgrade`: WebSocket and others, from the request to the end of the tunnel.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use gogate::config::document::Document;

use crate::upstream::{Gateway, Message, PATIENCE, Peer, Upstream, document, eventually, service};

const ASK: &str = "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: h2c, Chat/1, websocket\r\nSec-WebSocket-Key: k\r\n\r\n";
const GRANT: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: chat/1\r\nSec-WebSocket-Accept: x\r\n\r\n";

/// A gateway and the endpoint behind it, in the test's hands.
struct Line {
    gateway: Gateway,
    endpoint: TcpListener,
}

fn line(change: impl FnOnce(&mut Document)) -> Line {
    let endpoint = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut document = document(&[endpoint.local_addr().unwrap()]);
    change(&mut document);
    Line { gateway: Gateway::start(&document), endpoint }
}

impl Line {
    /// A client that asked, and the endpoint with its request.
    fn asked(&self, request: &str) -> (Peer, Peer, Message) {
        let mut client = self.gateway.client();
        client.send(request);
        let mut endpoint = Peer::new(self.endpoint.accept().unwrap().0);
        let request = endpoint.request().unwrap();
        (client, endpoint, request)
    }

    /// Both ends of a tunnel.
    fn tunnel(&self) -> (Peer, Peer) {
        let (mut client, mut endpoint, _) = self.asked(ASK);
        endpoint.send(GRANT);
        assert_eq!(client.answer().status(), 101);
        (client, endpoint)
    }
}

fn pass(from: &mut Peer, to: &mut Peer, text: &str) {
    from.send(text);
    expect(to, text);
}

fn expect(peer: &mut Peer, text: &str) {
    let mut read = vec![0; text.len()];
    peer.0.read_exact(&mut read).unwrap();
    assert_eq!(String::from_utf8_lossy(&read), text);
}

fn end(peer: &mut Peer) {
    peer.0.get_mut().shutdown(Shutdown::Write).unwrap();
}

#[test]
fn an_upgrade_is_asked_for_and_granted_without_what_concerns_one_hop_only() {
    let line = line(|_| {});
    let (mut client, mut endpoint, request) = line.asked(ASK);
    assert_eq!(request.field("upgrade"), Some("Chat/1, websocket"), "HTTP/2 is not offered");
    assert_eq!(request.field("connection"), Some("upgrade"));
    assert_eq!(request.field("sec-websocket-key"), Some("k"));
    assert_eq!(request.field("x-forwarded-for"), Some("127.0.0.1"));
    endpoint.send(GRANT);
    let answer = client.answer();
    assert_eq!(answer.status(), 101, "{answer:?}");
    assert_eq!(answer.field("upgrade"), Some("chat/1"));
    assert_eq!(answer.field("connection"), Some("upgrade"));
    assert_eq!(answer.field("sec-websocket-accept"), Some("x"));
    assert!(answer.field("content-length").is_none() && answer.field("transfer-encoding").is_none());
    pass(&mut client, &mut endpoint, "\0not HTTP\r\n\r\n");
    pass(&mut endpoint, &mut client, "HTTP/1.1 200 OK\r\n\r\n");
}

#[test]
fn a_tunnel_ends_one_direction_at_a_time() {
    let line = line(|_| {});
    for client_ends_first in [true, false] {
        for other_goes_on in [true, false] {
            let (client, endpoint) = line.tunnel();
            let (mut first, mut second) =
                if client_ends_first { (client, endpoint) } else { (endpoint, client) };
            pass(&mut first, &mut second, "a");
            pass(&mut second, &mut first, "b");
            end(&mut first);
            assert!(second.is_closed());
            if other_goes_on {
                for _ in 0..50 {
                    pass(&mut second, &mut first, "c");
                }
            }
            end(&mut second);
            assert!(first.is_closed());
        }
    }
    line.gateway.await_metric("gogate_connections_active{listener=\"web\"} 0");
    line.gateway.await_metric("gogate_upstream_connections{service=\"service\",state=\"active\"} 0");
    line.gateway.await_metric(
        "gogate_requests_total{route=\"all\",service=\"service\",method=\"GET\",code=\"101\"} 4",
    );
}

#[test]
fn a_tunnel_ends_with_a_reset_after_an_end_though_the_endpoint_is_silent() {
    let line = line(|_| {});
    let (mut client, mut endpoint) = line.tunnel();
    end(&mut client);
    assert!(endpoint.is_closed());
    client.reset();
    line.gateway.await_metric("gogate_connections_active{listener=\"web\"} 0");
    line.gateway.await_metric("gogate_upstream_connections{service=\"service\",state=\"active\"} 0");
}

#[test]
fn what_either_side_sends_too_early_is_not_lost() {
    let line = line(|_| {});
    let (mut client, mut endpoint, _) = line.asked(&format!("{ASK}\0early, and not HTTP"));
    endpoint.send(&format!("{GRANT}right behind"));
    assert_eq!(client.answer().status(), 101);
    expect(&mut endpoint, "\0early, and not HTTP");
    expect(&mut client, "right behind");
    pass(&mut client, &mut endpoint, "later");
}

#[test]
fn what_follows_a_request_whose_upgrade_is_refused_is_read_as_http() {
    let line = line(|_| {});
    let next = "GET /next HTTP/1.1\r\nHost: a\r\n\r\n";
    let (mut client, mut endpoint, _) = line.asked(&format!("{ASK}{next}"));
    endpoint.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno");
    assert_eq!(client.answer().text(), "no");
    assert_eq!(endpoint.request().unwrap().start, "GET /next HTTP/1.1");
    endpoint.send("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nyes");
    assert_eq!(client.answer().text(), "yes");

    // What no two parsers read alike is refused as ever.
    let line = self::line(|_| {});
    let (mut client, mut endpoint, _) = line.asked(&format!(
        "{ASK}POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    ));
    endpoint.send("HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(client.answer().status(), 426);
    assert_eq!(client.answer().status(), 400);
    assert!(client.is_closed());
}

#[test]
fn a_101_that_nobody_asked_for_is_a_bad_answer() {
    for (request, answer) in [
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", GRANT),
        (ASK, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"),
        (ASK, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: chat/2\r\n\r\n"),
        (ASK, "HTTP/1.1 101 Switching Protocols\r\n\r\n"),
        // A request with a body does not ask.
        (
            "POST / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: chat/1\r\nContent-Length: 1\r\n\r\nx",
            GRANT,
        ),
        ("GET / HTTP/1.0\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: chat/1\r\n\r\n", GRANT),
    ] {
        let upstream = Upstream::says(answer);
        let gateway = Gateway::start(&document(&[upstream.address]));
        let mut client = gateway.client();
        client.send(request);
        let answer = client.answer();
        assert_eq!(answer.status(), 502, "{request}");
        assert_eq!(answer.field("proxy-status"), Some("gogate; error=http_protocol_error"));
    }
}

#[test]
fn a_request_that_offers_http_2_only_is_a_request_as_any_other() {
    let upstream = Upstream::echo();
    let gateway = Gateway::start(&document(&[upstream.address]));
    let mut client = gateway.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n");
    let answer = client.answer();
    assert_eq!(answer.status(), 200);
    let text = answer.text();
    assert!(!text.contains("upgrade") && !text.contains("http2-settings"), "{text}");
    assert_eq!(client.get("/").status(), 200);
}

#[test]
fn reloads_leave_tunnels_alone() {
    let line = line(|_| {});
    let (mut client, mut endpoint) = line.tunnel();
    let other = Upstream::echo();
    for turn in 0..100 {
        let mut document = document(&[other.address]);
        document.listeners.get_mut("web").unwrap().connections = Some(100 + turn);
        line.gateway.publish(&document);
        pass(&mut client, &mut endpoint, "up");
        pass(&mut endpoint, &mut client, "down");
    }
    assert_eq!(line.gateway.client().get("/").status(), 200);
    let mut document = document(&[other.address]);
    document.listeners.clear();
    line.gateway.publish(&document);
    pass(&mut client, &mut endpoint, "and on");
}

#[test]
fn a_tunnel_on_which_nothing_moves_is_closed() {
    let line = line(|document| {
        document.listeners.get_mut("web").unwrap().idle_timeout = Some(Duration::from_millis(200));
    });
    let (mut client, mut endpoint) = line.tunnel();
    assert!(client.is_closed() && endpoint.is_closed());
    line.gateway.await_metric("gogate_rejections_total{reason=\"stream_idle\"} 1");
}

#[test]
fn a_tunnel_outlives_the_times_of_a_request() {
    let line = line(|document| {
        document.routes[0].timeout = Some(Duration::from_millis(200));
        service(document).timeouts.idle = Duration::from_millis(100);
    });
    let (mut client, mut endpoint) = line.tunnel();
    // Nothing to wait for: the times have passed.
    std::thread::sleep(Duration::from_millis(400));
    pass(&mut client, &mut endpoint, "still");
    pass(&mut endpoint, &mut client, "here");
}

#[test]
fn a_tunnel_leaves_its_place_in_the_pool_to_requests() {
    let line = line(|document| service(document).pool.max_connections = 1);
    let (_client, _endpoint) = line.tunnel();
    let (_second, _other) = line.tunnel();
    line.gateway.await_metric("gogate_upstream_connections{service=\"service\",state=\"active\"} 2");
}

#[test]
fn a_drain_waits_for_tunnels_until_its_deadline() {
    let endpoint = TcpListener::bind("127.0.0.1:0").unwrap();
    let gateway =
        Gateway::start_draining(Duration::from_millis(500), &document(&[endpoint.local_addr().unwrap()]));
    let line = Line { gateway, endpoint };
    let (mut client, mut endpoint) = line.tunnel();
    let proxy = std::sync::Arc::clone(&line.gateway.proxy);
    let started = std::time::Instant::now();
    let drained = line.gateway.runtime.spawn(async move { proxy.drain().await });
    refuses(line.gateway.address());
    if started.elapsed() < Duration::from_millis(400) {
        pass(&mut client, &mut endpoint, "still here");
    }
    assert!(client.is_closed() && endpoint.is_closed());
    assert!(started.elapsed() >= Duration::from_millis(500));
    line.gateway.runtime.block_on(async { tokio::time::timeout(PATIENCE, drained).await }).unwrap().unwrap();
}

fn refuses(address: SocketAddr) {
    eventually("new connections are refused", || match TcpStream::connect(address) {
        Ok(_) => Err("still accepts".to_owned()),
        Err(_) => Ok(()),
    });
}

#[test]
fn much_goes_through_a_tunnel_both_ways() {
    const BYTES: usize = 8 << 20;
    let line = line(|_| {});
    let (client, endpoint) = line.tunnel();
    let (client, endpoint) = (client.0.into_inner(), endpoint.0.into_inner());
    std::thread::scope(|scope| {
        for (stream, fill) in [(&client, 1_u8), (&endpoint, 2)] {
            scope.spawn(move || {
                let mut stream = stream;
                stream.write_all(&vec![fill; BYTES]).unwrap();
                stream.shutdown(Shutdown::Write).unwrap();
            });
            scope.spawn(move || {
                let mut stream = stream;
                let mut received = Vec::new();
                stream.read_to_end(&mut received).unwrap();
                assert!(received.len() == BYTES && received.iter().all(|byte| *byte == 3 - fill));
            });
        }
    });
    drop((client, endpoint));
    line.gateway
        .await_metric(&format!("gogate_stream_bytes_total{{listener=\"web\",direction=\"in\"}} {BYTES}"));
}

#[test]
fn several_upgrades_and_requests_share_a_gateway() {
    let line = line(|_| {});
    let mut tunnels: Vec<_> = (0..20).map(|_| line.tunnel()).collect();
    for (client, endpoint) in &mut tunnels {
        pass(client, endpoint, "one");
        pass(endpoint, client, "two");
    }
    // A request before the upgrade, on the same connection.
    let mut client = line.gateway.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut endpoint = Peer::new(line.endpoint.accept().unwrap().0);
    endpoint.request().unwrap();
    endpoint.send("HTTP/1.1 204 No Content\r\n\r\n");
    assert_eq!(client.answer().status(), 204);
    client.send(ASK);
    assert_eq!(endpoint.request().unwrap().field("upgrade"), Some("Chat/1, websocket"));
    endpoint.send(GRANT);
    assert_eq!(client.answer().status(), 101);
    pass(&mut client, &mut endpoint, "three");
}
