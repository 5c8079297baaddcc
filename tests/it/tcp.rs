//! Streams: listeners that are not for HTTP, from the first byte to the end of each direction.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use gogate::config::document::{Document, Endpoint, Service};
use socket2::SockRef;

use crate::upstream::{Gateway, PATIENCE, Peer, Upstream, eventually, yaml};

/// A gateway with one stream listener, and the endpoint behind it in the test's hands.
struct Line {
    gateway: Gateway,
    endpoint: TcpListener,
}

/// A document with listener `web` for streams to service `s`. `keys` join the listener's.
pub fn streams(endpoints: &[SocketAddr], keys: &str) -> Document {
    let mut document = yaml(&format!(
        "listeners: {{ web: {{ address: '127.0.0.1:0', protocol: tcp, service: s{keys} }} }}\nservices: {{ s: {{}} }}\n"
    ));
    document.services.get_mut("s").unwrap().endpoints = addresses(endpoints);
    document
}

pub fn addresses(endpoints: &[SocketAddr]) -> Vec<Endpoint> {
    endpoints.iter().map(|address| Endpoint { address: address.to_string(), weight: 1 }).collect()
}

fn service(document: &mut Document) -> &mut Service {
    document.services.get_mut("s").unwrap()
}

pub fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// An address that refuses connections.
fn refused() -> SocketAddr {
    listen().1
}

pub fn patient(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

impl Line {
    fn start(keys: &str) -> Line {
        let (endpoint, address) = listen();
        Line { gateway: Gateway::start(&streams(&[address], keys)), endpoint }
    }

    fn client(&self) -> TcpStream {
        patient(TcpStream::connect(self.gateway.address()).unwrap())
    }

    fn accept(&self) -> TcpStream {
        patient(self.endpoint.accept().unwrap().0)
    }

    /// Both ends of a new stream.
    fn stream(&self) -> (TcpStream, TcpStream) {
        let client = self.client();
        (client, self.accept())
    }
}

/// One byte through.
pub fn pass(from: &mut TcpStream, to: &mut TcpStream, byte: u8) {
    from.write_all(&[byte]).unwrap();
    let mut read = [0];
    to.read_exact(&mut read).unwrap();
    assert_eq!(read, [byte]);
}

fn assert_ended(stream: &mut TcpStream) {
    assert_eq!(stream.read(&mut [0]).unwrap(), 0, "an orderly end");
}

fn assert_reset(stream: &mut TcpStream) {
    let mut buffer = [0; 4096];
    let error = loop {
        match stream.read(&mut buffer) {
            Ok(0) => panic!("an orderly end, not a reset"),
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

/// Whether the gateway has closed, either way.
fn is_closed(stream: &mut TcpStream) -> bool {
    match stream.read(&mut [0]) {
        Ok(read) => read == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

#[test]
fn each_direction_ends_by_itself_whoever_ends_first() {
    let line = Line::start("");
    for client_ends_first in [true, false] {
        for other_goes_on in [true, false] {
            let (client, endpoint) = line.stream();
            let (mut first, mut second) =
                if client_ends_first { (client, endpoint) } else { (endpoint, client) };
            pass(&mut first, &mut second, 1);
            pass(&mut second, &mut first, 2);
            first.write_all(b"last").unwrap();
            first.shutdown(Shutdown::Write).unwrap();
            let mut last = Vec::new();
            second.read_to_end(&mut last).unwrap();
            assert_eq!(last, b"last", "all that was sent comes before the end");
            if other_goes_on {
                for byte in 0..100 {
                    pass(&mut second, &mut first, byte);
                }
            }
            second.shutdown(Shutdown::Write).unwrap();
            assert_ended(&mut first);
        }
    }
    line.gateway.await_metric("gogate_connections_active{listener=\"web\"} 0");
}

#[test]
fn both_directions_may_end_at_once() {
    let line = Line::start("");
    let (mut client, mut endpoint) = line.stream();
    client.shutdown(Shutdown::Write).unwrap();
    endpoint.shutdown(Shutdown::Write).unwrap();
    assert_ended(&mut client);
    assert_ended(&mut endpoint);
}

#[test]
fn a_reset_is_passed_on_as_one() {
    let line = Line::start("");
    for client_resets in [true, false] {
        let (mut client, mut endpoint) = line.stream();
        pass(&mut client, &mut endpoint, 1);
        let (first, mut second) = if client_resets { (client, endpoint) } else { (endpoint, client) };
        reset(first);
        assert_reset(&mut second);
    }
    line.gateway.await_metric("gogate_connections_active{listener=\"web\"} 0");
}

#[test]
fn a_reset_is_passed_on_to_a_side_that_still_sends() {
    let line = Line::start("");
    let (mut client, endpoint) = line.stream();
    client.write_all(&[7; 100_000]).unwrap();
    reset(endpoint);
    let ended = eventually("the client's writes fail", || match client.write(&[7; 1000]) {
        Ok(_) => Err("it can still write".to_owned()),
        Err(error) => Ok(error.kind()),
    });
    assert!(matches!(ended, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{ended:?}");
}

/// Goes without an end.
fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
}

#[test]
fn a_reset_after_an_end_is_noticed_though_the_other_side_is_silent() {
    let line = Line::start("");
    for client_resets in [true, false] {
        let (client, endpoint) = line.stream();
        let (mut first, mut second) = if client_resets { (client, endpoint) } else { (endpoint, client) };
        pass(&mut first, &mut second, 1);
        first.shutdown(Shutdown::Write).unwrap();
        assert_ended(&mut second);
        reset(first);
        line.gateway.await_metric("gogate_connections_active{listener=\"web\"} 0");
        line.gateway.await_metric("gogate_upstream_connections{service=\"s\",state=\"active\"} 0");
        eventually("what it sends is refused", || match second.write(&[7]) {
            Ok(_) => Err("it can still write".to_owned()),
            Err(_) => Ok(()),
        });
    }
}

#[test]
fn what_was_sent_before_an_end_arrives_though_a_reset_follows() {
    let line = Line::start("");
    let (mut client, mut endpoint) = line.stream();
    let sent = pattern(4, 300_000);
    client.write_all(&sent).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    // The gateway has all of it, and the client's end, before the endpoint reads.
    line.gateway.await_metric("gogate_stream_bytes_total{listener=\"web\",direction=\"in\"} 300000");
    reset(client);
    line.gateway.await_metric("gogate_connections_active{listener=\"web\"} 0");
    let mut received = Vec::new();
    endpoint.read_to_end(&mut received).unwrap();
    assert!(received == sent, "{} bytes", received.len());
}

#[test]
fn a_reset_by_a_client_whose_bytes_wait_for_a_silent_endpoint_is_noticed() {
    let line = Line::start("");
    let (mut client, mut endpoint) = line.stream();
    client.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let piece = vec![7; 1 << 20];
    while client.write(&piece).is_ok() {}
    reset(client);
    line.gateway.await_metric("gogate_connections_active{listener=\"web\"} 0");
    assert_reset(&mut endpoint);
}

/// Bytes that show when one is missing, doubled or in another place.
fn pattern(seed: u32, length: usize) -> Vec<u8> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

#[test]
fn large_transfers_go_both_ways_at_once_and_arrive_as_they_were() {
    const BYTES: usize = 24 << 20;
    let line = Line::start("");
    let (client, endpoint) = line.stream();
    let (up, down) = (pattern(1, BYTES), pattern(2, BYTES));
    std::thread::scope(|scope| {
        for (stream, sent, expected) in [(&client, &up, &down), (&endpoint, &down, &up)] {
            scope.spawn(move || {
                let mut stream = stream;
                // Pieces of many sizes, so that copying and splicing take turns.
                let mut rest = &sent[..];
                for size in (0..).map(|turn| [1, 700, 16_384, 100_000, 1 << 20][turn % 5]) {
                    let (piece, after) = rest.split_at(size.min(rest.len()));
                    stream.write_all(piece).unwrap();
                    rest = after;
                    if rest.is_empty() {
                        break;
                    }
                }
                stream.shutdown(Shutdown::Write).unwrap();
            });
            scope.spawn(move || {
                let mut received = Vec::with_capacity(BYTES);
                let mut stream = stream;
                stream.read_to_end(&mut received).unwrap();
                assert!(received == *expected, "{} bytes, not as they were sent", received.len());
            });
        }
    });
    drop((client, endpoint));
    line.gateway
        .await_metric(&format!("gogate_stream_bytes_total{{listener=\"web\",direction=\"in\"}} {BYTES}"));
    line.gateway
        .await_metric(&format!("gogate_stream_bytes_total{{listener=\"web\",direction=\"out\"}} {BYTES}"));
}

#[test]
fn a_reader_that_stands_still_stops_the_writer_and_loses_nothing() {
    let line = Line::start("");
    let (mut client, mut endpoint) = line.stream();
    client.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let piece = pattern(3, 1 << 20);
    let mut sent = 0;
    let blocked = loop {
        match client.write(&piece[sent % piece.len()..]) {
            Ok(written) => sent += written,
            Err(error) => break error.kind(),
        }
        assert!(sent < 256 << 20, "the gateway takes more and more");
    };
    assert_eq!(blocked, ErrorKind::WouldBlock);
    // The other direction is not concerned.
    pass(&mut endpoint, &mut client, 9);
    client.shutdown(Shutdown::Write).unwrap();
    let mut received = Vec::new();
    endpoint.read_to_end(&mut received).unwrap();
    assert_eq!(received.len(), sent);
    assert!(received.chunks(piece.len()).all(|chunk| chunk == &piece[..chunk.len()]));
}

#[test]
fn another_endpoint_is_tried_before_the_first_byte() {
    let good = Upstream::start(|mut peer| {
        let mut byte = [0];
        while peer.0.read(&mut byte).is_ok_and(|read| read > 0) {
            peer.0.get_mut().write_all(&byte).unwrap();
        }
    });
    let gateway = Gateway::start_with(1, Duration::ZERO, &streams(&[refused(), good.address], ""));
    for _ in 0..4 {
        let mut client = Peer::connect(gateway.address());
        client.send("x");
        let mut echoed = [0];
        client.0.read_exact(&mut echoed).unwrap();
        assert_eq!(&echoed, b"x");
    }
    gateway.await_metric("gogate_retries_total{service=\"s\",reason=\"connect\"}");
}

#[test]
fn a_stream_that_no_endpoint_takes_is_closed_and_counted() {
    let mut document = streams(&[refused()], "");
    let gateway = Gateway::start(&document);
    assert!(Peer::connect(gateway.address()).is_closed());
    gateway.await_metric("gogate_rejections_total{reason=\"connect_failed\"} 1");
    service(&mut document).endpoints.clear();
    gateway.publish(&document);
    assert!(Peer::connect(gateway.address()).is_closed());
    gateway.await_metric("gogate_rejections_total{reason=\"no_endpoint\"} 1");
    gateway.await_metric("gogate_connections_active{listener=\"web\"} 0");
}

#[test]
fn streams_to_an_endpoint_are_bounded_where_the_pool_says_so() {
    let (endpoint, address) = listen();
    let mut document = yaml(
        "listeners: { web: { address: '127.0.0.1:0', protocol: tcp, service: s } }
services: { s: { pool: { max_connections: 1 } } }",
    );
    service(&mut document).endpoints = addresses(&[address]);
    let gateway = Gateway::start_with(1, Duration::ZERO, &document);
    let client = Peer::connect(gateway.address());
    let (accepted, _) = endpoint.accept().unwrap();
    gateway.await_metric("gogate_upstream_connections{service=\"s\",state=\"active\"} 1");
    assert!(Peer::connect(gateway.address()).is_closed());
    gateway.await_metric("gogate_rejections_total{reason=\"pool_overload\"} 1");
    drop((client, accepted));
    gateway.await_metric("gogate_upstream_connections{service=\"s\",state=\"active\"} 0");
    let _client = Peer::connect(gateway.address());
    endpoint.accept().unwrap();
}

#[test]
fn a_stream_on_which_nothing_moves_is_closed() {
    let line = Line::start(", idle_timeout: 1s");
    let (mut client, mut endpoint) = line.stream();
    let started = Instant::now();
    while started.elapsed() < Duration::from_millis(1_500) {
        // One direction is enough.
        pass(&mut client, &mut endpoint, 1);
        std::thread::sleep(Duration::from_millis(20));
    }
    let last = Instant::now();
    assert!(is_closed(&mut client) && is_closed(&mut endpoint));
    assert!(last.elapsed() >= Duration::from_millis(800), "{:?}", last.elapsed());
    line.gateway.await_metric("gogate_rejections_total{reason=\"stream_idle\"} 1");
}

#[test]
fn the_service_says_how_long_a_stream_may_stand_still_if_the_listener_does_not() {
    let (endpoint, address) = listen();
    let mut document = yaml(
        "listeners: { web: { address: '127.0.0.1:0', protocol: tcp, service: s } }
services: { s: { timeouts: { idle: 100ms } } }",
    );
    service(&mut document).endpoints = addresses(&[address]);
    let gateway = Gateway::start(&document);
    let mut client = Peer::connect(gateway.address());
    let _accepted = endpoint.accept().unwrap();
    assert!(client.is_closed());
    gateway.await_metric("gogate_rejections_total{reason=\"stream_idle\"} 1");
}

#[test]
fn a_listener_has_no_more_connections_than_its_bound() {
    let line = Line::start(", connections: 2");
    let (first, second) = (line.stream(), line.stream());
    assert!(is_closed(&mut line.client()));
    line.gateway.await_metric("gogate_rejections_total{reason=\"listener_full\"} 1");
    drop(first);
    line.gateway.await_metric("gogate_connections_active{listener=\"web\"} 1");
    let (mut client, mut endpoint) = line.stream();
    pass(&mut client, &mut endpoint, 1);
    drop(second);
}

#[test]
fn a_full_http_listener_says_503() {
    let upstream = Upstream::echo();
    let mut document = crate::upstream::document(&[upstream.address]);
    document.listeners.get_mut("web").unwrap().connections = Some(1);
    let gateway = Gateway::start(&document);
    let mut first = gateway.client();
    assert_eq!(first.get("/").status(), 200);
    let answer = gateway.client().answer();
    assert_eq!((answer.status(), answer.field("connection")), (503, Some("close")));
    assert_eq!(first.get("/").status(), 200);
}

#[test]
fn a_client_opens_connections_no_faster_than_its_rate() {
    let line = Line::start(", connection_rate: { rate: 1, burst: 3 }");
    let started = Instant::now();
    let streams: Vec<_> = (0..3).map(|_| line.stream()).collect();
    // Another token comes a second after the first was taken.
    let refused = is_closed(&mut line.client());
    assert!(refused || started.elapsed() > Duration::from_secs(1));
    line.gateway.await_metric("gogate_rejections_total{reason=\"connection_rate\"}");
    drop(streams);

    let upstream = Upstream::echo();
    let mut document = crate::upstream::document(&[upstream.address]);
    document.listeners.get_mut("web").unwrap().connection_rate =
        Some(gogate::config::document::ConnectionRate { rate: 1, burst: 1 });
    let gateway = Gateway::start(&document);
    let answers: Vec<_> = (0..3).map(|_| gateway.client().get("/")).collect();
    assert_eq!(answers[0].status(), 200);
    let limited = answers.iter().find(|answer| answer.status() == 429).expect("one is too many");
    assert!(limited.field("retry-after").is_some());
}

#[test]
fn a_reload_leaves_streams_alone() {
    let (endpoint, address) = listen();
    let mut document = streams(&[address], "");
    let gateway = Gateway::start(&document);
    let mut client = patient(TcpStream::connect(gateway.address()).unwrap());
    let mut accepted = patient(endpoint.accept().unwrap().0);
    pass(&mut client, &mut accepted, 1);
    // The listener's own settings, the service's endpoints, another service, and the listener's end.
    for turn in 0..20 {
        let web = document.listeners.get_mut("web").unwrap();
        web.connections = Some(1 + turn);
        web.idle_timeout = Some(Duration::from_secs(60 + turn as u64));
        gateway.publish(&document);
        pass(&mut client, &mut accepted, 2);
    }
    service(&mut document).endpoints = addresses(&[refused()]);
    gateway.publish(&document);
    pass(&mut accepted, &mut client, 3);
    let gone = gateway.address();
    document.listeners.clear();
    gateway.publish(&document);
    eventually("the listener is closed", || match TcpStream::connect(gone) {
        Ok(_) => Err("still accepts".to_owned()),
        Err(_) => Ok(()),
    });
    pass(&mut client, &mut accepted, 4);
    pass(&mut accepted, &mut client, 5);
    accepted.shutdown(Shutdown::Write).unwrap();
    assert_ended(&mut client);
}

#[test]
fn a_listener_may_change_what_it_speaks() {
    let upstream = Upstream::echo();
    let http = crate::upstream::document(&[upstream.address]);
    let mut tcp = http.clone();
    tcp.routes.clear();
    let service = "service".to_owned();
    tcp.listeners.get_mut("web").unwrap().protocol = gogate::config::document::Protocol::Tcp { service };
    let gateway = Gateway::start(&http);
    assert!(gateway.client().get("/").text().contains("x-forwarded-for"));
    gateway.publish(&tcp);
    assert!(!gateway.client().get("/").text().contains("x-forwarded-for"), "as the client sent it");
    gateway.publish(&http);
    assert!(gateway.client().get("/").text().contains("x-forwarded-for"));
}

#[test]
fn a_drain_waits_for_streams_until_its_deadline() {
    let (endpoint, address) = listen();
    let gateway = Gateway::start_draining(Duration::from_millis(500), &streams(&[address], ""));
    let mut client = patient(TcpStream::connect(gateway.address()).unwrap());
    let mut accepted = patient(endpoint.accept().unwrap().0);
    pass(&mut client, &mut accepted, 1);
    let proxy = std::sync::Arc::clone(&gateway.proxy);
    let started = Instant::now();
    let drained = gateway.runtime.spawn(async move { proxy.drain().await });
    let address = gateway.address();
    eventually("new connections are refused", || match TcpStream::connect(address) {
        Ok(_) => Err("still accepts".to_owned()),
        Err(_) => Ok(()),
    });
    if started.elapsed() < Duration::from_millis(400) {
        pass(&mut client, &mut accepted, 2);
    }
    assert!(is_closed(&mut client) && is_closed(&mut accepted));
    assert!(started.elapsed() >= Duration::from_millis(500));
    gateway.runtime.block_on(async { tokio::time::timeout(PATIENCE, drained).await }).unwrap().unwrap();
}

#[test]
fn a_drain_ends_when_the_last_stream_has_ended() {
    let line = Line::start("");
    let (mut client, mut endpoint) = line.stream();
    pass(&mut client, &mut endpoint, 1);
    let proxy = std::sync::Arc::clone(&line.gateway.proxy);
    let drained = line.gateway.runtime.spawn(async move { proxy.drain().await });
    pass(&mut endpoint, &mut client, 2);
    assert!(!drained.is_finished());
    drop((client, endpoint));
    line.gateway.runtime.block_on(async { tokio::time::timeout(PATIENCE, drained).await }).unwrap().unwrap();
}

#[test]
fn routes_without_listeners_are_not_served_on_stream_listeners() {
    let upstream = Upstream::echo();
    let mut document = crate::upstream::document(&[upstream.address]);
    let (endpoint, address) = listen();
    let service = Service { endpoints: addresses(&[address]), ..Service::default() };
    document.services.insert("raw".to_owned(), service);
    let mut listener = document.listeners["web"].clone();
    listener.protocol = gogate::config::document::Protocol::Tcp { service: "raw".to_owned() };
    document.listeners.insert("raw".to_owned(), listener);
    let gateway = Gateway::start(&document);
    assert_eq!(gateway.client().get("/").status(), 200);
    let mut raw = Peer::connect(gateway.proxy.addresses()["raw"]);
    raw.send("GET / HTTP/1.1\r\n\r\n");
    let mut accepted = Peer::new(endpoint.accept().unwrap().0);
    assert_eq!(accepted.request().unwrap().start, "GET / HTTP/1.1");
}

// === tls_passthrough ===

pub fn vector(length_bytes: usize, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    [&length[length.len() - length_bytes..], content].concat()
}

/// A ClientHello in records of so many bytes.
fn hello(name: Option<&str>, record: usize) -> Vec<u8> {
    let names = name.map(|name| vector(2, &[&[0][..], &vector(2, name.as_bytes())].concat()));
    let extensions = names.map(|names| [&[0, 0][..], &vector(2, &names)].concat()).unwrap_or_default();
    let body = [&[3, 3][..], &[7; 32], &vector(1, &[]), &vector(2, &[0x13, 1]), &vector(1, &[0])].concat();
    let body = [body, vector(2, &extensions)].concat();
    let message = [&[1][..], &vector(3, &body)].concat();
    message.chunks(record).flat_map(|piece| [&[22, 3, 1][..], &vector(2, piece)].concat()).collect()
}

/// A gateway with services `a`, `b` and `other` behind one TLS listener, each of which says its name, then echoes.
fn passthrough(fallback: bool) -> (Gateway, Vec<Upstream>) {
    let says = |name: &'static str| {
        Upstream::start(move |mut peer| {
            peer.send(name);
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = peer.0.read(&mut buffer) {
                peer.0.get_mut().write_all(&buffer[..read]).unwrap();
            }
        })
    };
    let upstreams = vec![says("a"), says("b"), says("o")];
    let fallback = if fallback { ", service: other" } else { "" };
    let document = yaml(&format!(
        "listeners:
  web: {{ address: '127.0.0.1:0', protocol: tls_passthrough, sni: {{ a.example.com: a, '*.b.example.com': b, '*.example.com': a }}{fallback} }}
limits: {{ header_timeout: 300ms }}
services:
  a: {{ endpoints: [{{ address: '{}' }}] }}
  b: {{ endpoints: [{{ address: '{}' }}] }}
  other: {{ endpoints: [{{ address: '{}' }}] }}
",
        upstreams[0].address, upstreams[1].address, upstreams[2].address
    ));
    (Gateway::start(&document), upstreams)
}

/// Which endpoint a connection reached, and whether it got the bytes as they were sent.
fn reached(client: &mut TcpStream, sent: &[u8]) -> Option<char> {
    let mut name = [0];
    client.read_exact(&mut name).ok()?;
    let mut echoed = vec![0; sent.len()];
    client.read_exact(&mut echoed).unwrap();
    assert!(echoed == sent, "the endpoint gets the hello as it was sent");
    Some(name[0] as char)
}

#[test]
fn the_name_that_a_tls_client_asks_for_says_where_its_stream_goes() {
    for (fallback, name, expected) in [
        (true, Some("a.example.com"), Some('a')),
        (true, Some("A.Example.COM"), Some('a')),
        (true, Some("x.b.example.com"), Some('b')),
        (true, Some("y.x.b.example.com"), Some('b')),
        (true, Some("b.example.com"), Some('a')),
        (true, Some("example.com"), Some('o')),
        (true, None, Some('o')),
        (false, Some("a.example.com"), Some('a')),
        (false, Some("example.org"), None),
        (false, None, None),
    ] {
        let (gateway, _upstreams) = passthrough(fallback);
        let sent = hello(name, 1 << 14);
        let mut client = patient(TcpStream::connect(gateway.address()).unwrap());
        client.write_all(&sent).unwrap();
        assert_eq!(reached(&mut client, &sent), expected, "{name:?}");
        if expected.is_none() {
            gateway.await_metric("gogate_rejections_total{reason=\"no_server_name\"} 1");
        }
    }
}

#[test]
fn a_hello_may_come_byte_by_byte_and_in_several_records() {
    let (gateway, _upstreams) = passthrough(false);
    for record in [1, 5, 1 << 14] {
        let sent = hello(Some("x.b.example.com"), record);
        let mut client = patient(TcpStream::connect(gateway.address()).unwrap());
        for byte in &sent {
            client.write_all(&[*byte]).unwrap();
        }
        assert_eq!(reached(&mut client, &sent), Some('b'), "records of {record}");
        client.write_all(b"more").unwrap();
        let mut more = [0; 4];
        client.read_exact(&mut more).unwrap();
        assert_eq!(&more, b"more");
    }
}

#[test]
fn what_is_no_client_hello_is_closed_and_counted() {
    let (gateway, upstreams) = passthrough(true);
    let long = hello(Some(&"a.".repeat(10_000)), 1 << 14);
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[22, 3, 1, 0, 5, 2, 0, 0, 1, 0], &long] {
        let mut client = patient(TcpStream::connect(gateway.address()).unwrap());
        // The gateway may close before all is sent.
        let _ = client.write_all(bytes);
        assert!(is_closed(&mut client));
    }
    gateway.await_metric("gogate_rejections_total{reason=\"not_tls\"} 3");
    // Half a hello, and no more in time.
    let mut slow = patient(TcpStream::connect(gateway.address()).unwrap());
    slow.write_all(&hello(Some("a.example.com"), 1 << 14)[..20]).unwrap();
    assert!(is_closed(&mut slow));
    gateway.await_metric("gogate_rejections_total{reason=\"not_tls\"} 4");
    // A port scan is not a client that did something wrong.
    drop(TcpStream::connect(gateway.address()).unwrap());
    gateway.await_metric("gogate_connections_active{listener=\"web\"} 0");
    gateway.await_metric("gogate_rejections_total{reason=\"not_tls\"} 4");
    let connections = |upstream: &Upstream| upstream.connections.load(std::sync::atomic::Ordering::SeqCst);
    assert_eq!(upstreams.iter().map(connections).sum::<usize>(), 0);
}
