//! PROXY headers: those that are believed, and those that endpoints are sent.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    time::Duration,
};

use gogate::config::document::Service;

use crate::{
    tcp::{addresses, listen, pass, patient, streams, vector},
    upstream::{Gateway, Peer, Upstream, yaml},
};

const V2_BEGINNING: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

fn v2(command: u8, family: u8, content: &[u8]) -> Vec<u8> {
    [V2_BEGINNING, &[command, family], &vector(2, content)].concat()
}

fn v2_tcp4() -> Vec<u8> {
    v2(0x21, 0x11, &[192, 0, 2, 7, 198, 51, 100, 1, 0x10, 0, 0, 80, 4, 0, 1, 9])
}

/// The HTTP listener of a gateway that believes PROXY headers from `trusted`.
fn announced(trusted: &str) -> (Gateway, Upstream) {
    let upstream = Upstream::echo();
    let document = yaml(&format!(
        "listeners: {{ web: {{ address: '127.0.0.1:0', proxy_protocol: true }} }}
services: {{ s: {{ endpoints: [{{ address: '{}' }}] }} }}
routes: [{{ name: all, service: s }}]
limits: {{ header_timeout: 300ms }}
trusted_proxies: [{trusted}]
",
        upstream.address
    ));
    (Gateway::start(&document), upstream)
}

const REQUEST: &[u8] = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n";

#[test]
fn a_proxy_header_says_who_the_client_is() {
    let (gateway, _upstream) = announced("127.0.0.0/8");
    for (header, client) in [
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 4096 80\r\n".to_vec(), "192.0.2.7"),
        (b"PROXY TCP6 2001:db8::7 2001:db8::1 4096 80\r\n".to_vec(), "2001:db8::7"),
        (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1"),
        (v2_tcp4(), "192.0.2.7"),
        (v2(0x20, 0, &[]), "127.0.0.1"),
    ] {
        for in_pieces in [false, true] {
            let mut peer = gateway.client();
            let bytes = [&header[..], REQUEST].concat();
            if in_pieces {
                for byte in &bytes {
                    peer.0.get_mut().write_all(&[*byte]).unwrap();
                }
            } else {
                peer.0.get_mut().write_all(&bytes).unwrap();
            }
            let answer = peer.answer();
            assert!(answer.text().contains(&format!("x-forwarded-for: {client}\n")), "{answer:?}");
            assert_eq!(peer.get("/").status(), 200, "the connection goes on as any other");
        }
    }
}

#[test]
fn a_trusted_proxy_without_a_good_header_is_closed_and_counted() {
    let (gateway, upstream) = announced("127.0.0.1");
    for (number, bytes) in [
        REQUEST.to_vec(),
        b"PROXY TCP4 192.0.2.7 198.51.100.1 4096\r\n".to_vec(),
        v2(0x21, 0x11, &[1, 2, 3]),
        v2(0x21, 0x11, &[0; 5000]),
        b"PROXY TCP4".to_vec(),
    ]
    .iter()
    .enumerate()
    {
        let mut peer = gateway.client();
        // The gateway may close before all is sent.
        let _ = peer.0.get_mut().write_all(bytes);
        assert!(peer.is_closed(), "{bytes:?}");
        gateway.await_metric(&format!("gogate_rejections_total{{reason=\"proxy_header\"}} {}", number + 1));
    }
    assert_eq!(upstream.connections.load(std::sync::atomic::Ordering::SeqCst), 0);
    drop(gateway.client());
    gateway.await_metric("gogate_connections_active{listener=\"web\"} 0");
    gateway.await_metric("gogate_rejections_total{reason=\"proxy_header\"} 5");
}

#[test]
fn a_header_from_anybody_else_is_not_believed() {
    let (gateway, upstream) = announced("192.0.2.0/24");
    assert!(gateway.client().get("/").text().contains("x-forwarded-for: 127.0.0.1\n"));
    let before = upstream.connections.load(std::sync::atomic::Ordering::SeqCst);
    let mut peer = gateway.client();
    peer.0.get_mut().write_all(b"PROXY TCP4 192.0.2.7 198.51.100.1 4096 80\r\n").unwrap();
    peer.0.get_mut().write_all(REQUEST).unwrap();
    assert_eq!(peer.answer().status(), 400, "it is a malformed request");
    assert_eq!(upstream.connections.load(std::sync::atomic::Ordering::SeqCst), before);
}

#[test]
fn a_stream_begins_behind_its_proxy_header() {
    for (trusted, expected) in [("127.0.0.1", &b"hello"[..]), ("192.0.2.1", b"PROXY UNKNOWN\r\nhello")] {
        let (endpoint, address) = listen();
        let mut document = streams(&[address], ", proxy_protocol: true");
        document.trusted_proxies =
            yaml(&format!("trusted_proxies: [{trusted}]\nservices: {{ a: {{}} }}")).trusted_proxies;
        let gateway = Gateway::start(&document);
        let mut client = patient(TcpStream::connect(gateway.address()).unwrap());
        client.write_all(b"PROXY UNKNOWN\r\nhello").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut received = Vec::new();
        patient(endpoint.accept().unwrap().0).read_to_end(&mut received).unwrap();
        assert_eq!(received, expected);
    }
}

#[test]
fn the_rate_counts_clients_behind_a_proxy_each_for_itself() {
    let (gateway, _upstream) = announced("127.0.0.1");
    let mut document = yaml(
        "listeners: { web: { address: '127.0.0.1:0', proxy_protocol: true, connection_rate: { rate: 1, burst: 1 } } }
services: { s: {} }
trusted_proxies: [127.0.0.1]
routes: [{ name: all, service: s }]",
    );
    document.services = gateway_services(&_upstream);
    gateway.publish(&document);
    let status = |client: &str| {
        let mut peer = gateway.client();
        peer.send(&format!("PROXY TCP4 {client} 198.51.100.1 4096 80\r\n"));
        peer.0.get_mut().write_all(REQUEST).unwrap();
        peer.answer().status()
    };
    for client in ["192.0.2.1", "192.0.2.2", "192.0.2.3"] {
        assert_eq!(status(client), 200);
    }
    assert!((0..3).map(|_| status("192.0.2.1")).any(|status| status == 429));
}

fn gateway_services(upstream: &Upstream) -> std::collections::BTreeMap<String, Service> {
    let service = Service { endpoints: addresses(&[upstream.address]), ..Service::default() };
    [("s".to_owned(), service)].into()
}

// === PROXY headers for endpoints ===

/// An endpoint's address with the header that it begins with, and one listener for each protocol.
fn announcing(version: &str) -> (Gateway, TcpListener) {
    let (endpoint, address) = listen();
    let document = yaml(&format!(
        "listeners:
  web: {{ address: '127.0.0.1:0', proxy_protocol: true }}
  raw: {{ address: '127.0.0.1:0', protocol: tcp, service: s }}
services: {{ s: {{ endpoints: [{{ address: '{address}' }}], send_proxy_protocol: {version} }} }}
routes: [{{ name: all, service: s }}]
trusted_proxies: [127.0.0.1]
"
    ));
    (Gateway::start_with(1, Duration::ZERO, &document), endpoint)
}

fn read_exactly(stream: &mut impl Read, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_stream_is_announced_to_an_endpoint_that_asks_for_it() {
    for version in ["v1", "v2"] {
        let (gateway, endpoint) = announcing(version);
        let raw = gateway.proxy.addresses()["raw"];
        let mut client = patient(TcpStream::connect(raw).unwrap());
        let port = client.local_addr().unwrap().port();
        let mut accepted = patient(endpoint.accept().unwrap().0);
        let expected = if version == "v1" {
            format!("PROXY TCP4 127.0.0.1 127.0.0.1 {port} {}\r\n", raw.port()).into_bytes()
        } else {
            let ports = [port.to_be_bytes(), raw.port().to_be_bytes()].concat();
            v2(0x21, 0x11, &[&[127, 0, 0, 1, 127, 0, 0, 1][..], &ports].concat())
        };
        assert_eq!(read_exactly(&mut accepted, expected.len()), expected, "before the client says anything");
        pass(&mut client, &mut accepted, 1);
        pass(&mut accepted, &mut client, 2);
    }
}

#[test]
fn each_request_is_announced_with_its_own_client() {
    let (gateway, endpoint) = announcing("v1");
    let clients = ["192.0.2.7 198.51.100.1 4096 80", "192.0.2.8 198.51.100.1 4097 81"];
    let mut peers: Vec<Peer> = clients
        .iter()
        .map(|client| {
            let mut peer = gateway.client();
            peer.send(&format!("PROXY TCP4 {client}\r\n"));
            peer
        })
        .collect();
    for turn in [0, 1, 0] {
        peers[turn].0.get_mut().write_all(REQUEST).unwrap();
        let mut accepted = Peer::new(endpoint.accept().unwrap().0);
        let expected = format!("PROXY TCP4 {}\r\n", clients[turn]);
        assert_eq!(read_exactly(&mut accepted.0, expected.len()), expected.as_bytes());
        assert_eq!(accepted.request().unwrap().start, "GET /x HTTP/1.1");
        accepted.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        assert_eq!(peers[turn].answer().text(), "ok");
        assert!(accepted.is_closed(), "no other client may get this connection");
    }
}
