//! `listeners` beyond the address: protocols, names, bounds.

use std::time::Duration;

use super::super::{
    super::document::{ConnectionRate, Document, HostPattern, Protocol},
    document,
};

fn document_of(listeners: &str) -> String {
    format!("services: {{ a: {{}}, b: {{}} }}\nlisteners:\n{listeners}")
}

/// The problems of a document whose line 1 declares services `a` and `b`, one a line.
fn check(listeners: &str, expected: &str) {
    super::super::tests::check(&document_of(listeners), expected);
}

fn valid(listeners: &str) -> Document {
    document(&document_of(listeners)).unwrap_or_else(|problems| panic!("{problems:#?}"))
}

#[test]
fn every_key_of_a_listener_is_read() {
    let document = valid(
        "  t: { address: '127.0.0.1:1', protocol: tcp, service: a, proxy_protocol: true, connections: 7, connection_rate: { rate: 5, burst: 9 }, idle_timeout: 5m }
  s: { address: '127.0.0.1:2', protocol: tls_passthrough, sni: { A.example.com: a, '*.b.example.com': b }, service: a }
  n: { address: '127.0.0.1:3', protocol: tls_passthrough, sni: { a.example.com: a } }
  h: { address: '127.0.0.1:4', protocol: http, connection_rate: { rate: 5 } }
",
    );
    let listener = &document.listeners["t"];
    assert_eq!(listener.protocol, Protocol::Tcp { service: "a".into() });
    assert!(listener.proxy_protocol);
    assert_eq!(listener.connections, Some(7));
    assert_eq!(listener.connection_rate, Some(ConnectionRate { rate: 5, burst: 9 }));
    assert_eq!(listener.idle_timeout, Some(Duration::from_secs(300)));
    let exact = (HostPattern::Exact("a.example.com".into()), "a".to_owned());
    let wildcard = (HostPattern::Wildcard("b.example.com".into()), "b".to_owned());
    assert_eq!(
        document.listeners["s"].protocol,
        Protocol::TlsPassthrough { sni: vec![exact.clone(), wildcard], service: Some("a".into()) }
    );
    assert_eq!(
        document.listeners["n"].protocol,
        Protocol::TlsPassthrough { sni: vec![exact], service: None }
    );
    let listener = &document.listeners["h"];
    assert!(listener.is_http() && !listener.proxy_protocol && listener.connections.is_none());
    assert_eq!(listener.connection_rate, Some(ConnectionRate { rate: 5, burst: 5 }));
}

#[test]
fn a_protocol_has_the_keys_that_it_needs_and_no_others() {
    check(
        "  a: { address: '127.0.0.1:1', protocol: tpc }
  b: { address: '127.0.0.1:2', protocol: tcp }
  c: { address: '127.0.0.1:3', protocol: tcp, service: c, sni: { x: a } }
  d: { address: '127.0.0.1:4', protocol: tls_passthrough }
  e: { address: '127.0.0.1:5', service: a, sni: { x: a } }
",
        "f:3: listeners.a.protocol: expected `http`, `tcp` or `tls_passthrough`, found `tpc` (did you mean `tcp`?)
         f:4: listeners.b: `service` is missing (add service: with the name of one under `services`)
         f:5: listeners.c.service: there is no service `c` (did you mean `a`?)
         f:5: listeners.c.sni: only a `tls_passthrough` listener reads the name that a TLS client asks for (add protocol: tls_passthrough, or remove it)
         f:6: listeners.d: neither `sni` nor `service` is there (add sni: with host names and their services, service: for all others, or both)
         f:7: listeners.e.service: routes say where the requests of an `http` listener go (add protocol: tcp, or a route with this service)
         f:7: listeners.e.sni: only a `tls_passthrough` listener reads the name that a TLS client asks for (add protocol: tls_passthrough, or remove it)",
    );
}

#[test]
fn server_names_are_hosts_and_each_is_there_once() {
    check(
        "  t:
    address: '127.0.0.1:1'
    protocol: tls_passthrough
    sni:
      a.example.com: a
      A.example.com: b
      '*': a
      10.0.0.1: a
      'b.example.com:443': a
      c.example.com: nobody
",
        "f:8: listeners.t.sni.A.example.com: `a.example.com` is there already, on line 7 (keep one of them)
         f:9: listeners.t.sni.*: `*` is every host (write it as `service` of the listener)
         f:10: listeners.t.sni.10.0.0.1: `10.0.0.1` is an address: no client asks for one by name (write it as `service` of the listener, which clients without a name get)
         f:11: listeners.t.sni.b.example.com:443: `b.example.com:443` has a port (write \"b.example.com\": a route matches its host on every port)
         f:12: listeners.t.sni.c.example.com: there is no service `nobody` (declare it under `services`: `nobody: {}` is enough, instances registered under that name join it)",
    );
}

#[test]
fn bounds_of_a_listener_have_ranges() {
    check(
        "  t: { address: '127.0.0.1:1', connections: 0, connection_rate: { burst: 3 }, idle_timeout: 0s, proxy_protocol: yes }
  u: { address: '127.0.0.1:2', connection_rate: { rate: 0, per: 1s } }
",
        "f:3: listeners.t.connections: expected a whole number from 1 to 10000000, found the number 0
         f:3: listeners.t.connection_rate: `rate` is missing (add rate: with the connections that one client may open each second)
         f:3: listeners.t.idle_timeout: `0s` is not from 1ms to 24h
         f:3: listeners.t.proxy_protocol: expected true or false, found `yes`
         f:4: listeners.u.connection_rate.rate: expected a whole number from 1 to 1000000, found the number 0
         f:4: listeners.u.connection_rate.per: unknown key `per` (the keys here are `rate` and `burst`)",
    );
}

#[test]
fn routes_are_for_http_listeners() {
    check(
        "  t: { address: '127.0.0.1:1', protocol: tcp, service: a }
routes: [{ name: r, service: a, listeners: [t] }]
",
        "f:4: routes: no listener for HTTP is declared, so no route can be reached (add listeners: { web: { address: \"0.0.0.0:8080\" } })
         f:4: routes[0].listeners[0]: `t` is not a listener for HTTP, so it has no routes (name an `http` listener; the listener itself says where its streams go)",
    );
    check(
        "  t: { address: '127.0.0.1:1', protocol: tcp, service: a }
  w: { address: '127.0.0.1:2' }
routes: [{ name: r, service: a, listeners: [w] }, { name: s, service: b }]
",
        "f:5: routes[1]: route `s` matches exactly what route `r` on line 5 matches (remove one, or change its match)",
    );
}

#[test]
fn connections_that_are_announced_are_not_kept_for_others() {
    use super::super::super::document::ProxyProtocol;
    let text = "services: { a: { send_proxy_protocol: v1, pool: { max_idle: 9, max_connections: 3 } }, b: { send_proxy_protocol: v2 }, c: {} }";
    let services = document(text).unwrap().services;
    assert_eq!(services["a"].send_proxy_protocol, Some(ProxyProtocol::V1));
    assert_eq!((services["a"].pool.max_idle, services["a"].pool.max_connections), (0, 3));
    assert_eq!(services["b"].send_proxy_protocol, Some(ProxyProtocol::V2));
    assert_eq!((services["c"].send_proxy_protocol, services["c"].pool.max_idle), (None, 128));
    let problems = document("services: { a: { send_proxy_protocol: v3 } }").unwrap_err();
    assert_eq!(
        problems[0].in_file("f"),
        "f:1: services.a.send_proxy_protocol: expected `v1` or `v2`, found `v3` (did you mean `v1`?)"
    );
}
