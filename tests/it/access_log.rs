//! The access log: what a request's line says, from real requests.

use std::{
    io::{Read, Write},
    net::TcpListener,
    time::Duration,
};

use gogate::{
    config::{document::IpNetwork, node::AccessTarget},
    telemetry::access_log::AccessLog,
};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    harness::{TestCluster, eventually as wait_for, get, gogate, run},
    upstream::{Gateway, Peer, Upstream, document, eventually, service, yaml},
};

/// A gateway and the file that it logs to.
struct Logged {
    gateway: Gateway,
    log: AccessLog,
    folder: TempDir,
}

// === impl Logged ===

impl Logged {
    fn start(document: &gogate::config::document::Document) -> Logged {
        let folder = tempfile::tempdir().unwrap();
        let target = AccessTarget::File(folder.path().join("access.log"));
        let (gateway, log) = Gateway::start_logging(&target, document);
        Logged { gateway, log, folder }
    }

    /// Drains, and reads every line.
    fn lines(self) -> Vec<Value> {
        self.gateway.runtime.block_on(async {
            self.gateway.proxy.drain().await;
            self.log.close().await;
        });
        let text = std::fs::read_to_string(self.folder.path().join("access.log")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn refused_address() -> std::net::SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[test]
fn a_line_says_where_a_request_went_and_what_it_took() {
    let upstream = Upstream::echo();
    let logged = Logged::start(&document(&[upstream.address]));
    let mut client = logged.gateway.client();
    client.send(
        "POST /a//b?c=d HTTP/1.1\r\nHost: gate.example\r\nUser-Agent: \"me\"\r\nX-Request-ID: mine\r\n\
         traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\nContent-Length: 5\r\n\r\nhello",
    );
    let answer = client.answer();
    assert_eq!(answer.status(), 200);
    assert_eq!(client.get("/again").status(), 200);
    drop(client);

    let lines = logged.lines();
    let [first, second] = &lines[..] else { panic!("{lines:#?}") };
    for (field, expected) in [
        ("client", "127.0.0.1"),
        ("method", "POST"),
        ("target", "/a//b?c=d"),
        ("protocol", "HTTP/1.1"),
        ("host", "gate.example"),
        ("listener", "web"),
        ("route", "all"),
        ("service", "service"),
        ("endpoint", &upstream.address.to_string()),
        ("reason", "complete"),
        ("request_id", "mine"),
        ("trace_id", "0af7651916cd43dd8448eb211c80319c"),
        ("user_agent", "\"me\""),
    ] {
        assert_eq!(first[field], expected, "{field}");
    }
    let time = first["time"].as_str().unwrap();
    assert!(time.len() == 24 && time.starts_with("20") && time.ends_with('Z'), "{time}");
    assert_eq!((&first["status"], &first["attempts"]), (&200.into(), &1.into()));
    assert_eq!(first["request_bytes"], 5);
    assert_eq!(first["response_bytes"], answer.body.len());
    let ms = |line: &Value, field: &str| line[field].as_f64().unwrap();
    assert!(ms(first, "connect_ms") <= ms(first, "first_byte_ms"));
    assert!(ms(first, "first_byte_ms") > 0.0 && ms(first, "first_byte_ms") <= ms(first, "total_ms"));
    // A pooled connection was neither waited for nor opened; ids that the client does not send are made.
    assert_eq!((&second["queue_ms"], &second["connect_ms"]), (&Value::Null, &Value::Null));
    assert_eq!(second["user_agent"], Value::Null);
    assert_eq!(second["request_id"].as_str().unwrap().len(), 32);
    assert_eq!(second["request_id"], second["trace_id"]);
}

#[test]
fn an_endpoint_that_was_tried_in_vain_counts_as_an_attempt() {
    let upstream = Upstream::echo();
    let logged = Logged::start(&document(&[refused_address(), upstream.address]));
    // In turn: at least one of two requests meets the dead endpoint first.
    for _ in 0..2 {
        assert_eq!(logged.gateway.client().get("/").status(), 200);
    }
    let lines = logged.lines();
    assert!(
        lines.iter().any(|line| line["attempts"] == 2 && line["connect_ms"] != Value::Null),
        "{lines:#?}"
    );
    assert!(lines.iter().all(|line| line["endpoint"] == upstream.address.to_string()));
}

#[test]
fn what_the_gateway_answers_itself_has_its_reason() {
    let document = yaml(
        "listeners: { web: { address: '127.0.0.1:0' } }
services: { dead: { endpoints: [{ address: 'REFUSED' }] } }
routes: [{ name: dead, match: { path_prefix: /dead, methods: [GET] }, service: dead }]"
            .replace("REFUSED", &refused_address().to_string())
            .as_str(),
    );
    let logged = Logged::start(&document);
    assert_eq!(logged.gateway.client().get("/dead").status(), 502);
    assert_eq!(logged.gateway.client().get("/nowhere").status(), 404);
    let mut client = logged.gateway.client();
    client.send("GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.answer().status(), 400);
    let told = |client: &mut Peer| client.answer().field("x-request-id").map(str::to_owned);
    let mut client = logged.gateway.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n");
    let id = told(&mut client);

    let lines = logged.lines();
    let seen: Vec<_> = lines
        .iter()
        .map(|line| (line["status"].as_u64().unwrap(), line["reason"].as_str().unwrap(), &line["route"]))
        .collect();
    let nothing = Value::Null;
    let dead = Value::from("dead");
    assert_eq!(
        seen,
        [
            (502, "connect_failed", &dead),
            (404, "no_route", &nothing),
            (400, "malformed", &nothing),
            (400, "malformed", &nothing)
        ]
    );
    assert!(lines[0]["response_bytes"].as_u64().unwrap() > 0, "the gateway's own words are counted");
    assert_eq!(lines[3]["request_id"].as_str(), id.as_deref(), "the client was told the id that is logged");
    assert_eq!(lines[3]["target"], Value::Null, "a request that could not be read is not quoted");
}

#[test]
fn a_line_says_who_ended_an_answer_early() {
    let cuts = Upstream::says("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf");
    let logged = Logged::start(&document(&[cuts.address]));
    let answer = logged.gateway.client().get("/");
    assert!(!answer.whole);
    let lines = logged.lines();
    assert_eq!((&lines[0]["status"], &lines[0]["reason"]), (&200.into(), &"upstream_cut".into()));
    assert_eq!(lines[0]["response_bytes"], 4);

    let never = Upstream::start(|mut peer| {
        peer.head();
        // Until the gateway gives up on it.
        peer.is_closed();
    });
    let mut slow = document(&[never.address]);
    service(&mut slow).timeouts.request = Duration::from_secs(20);
    let logged = Logged::start(&slow);
    let mut client = logged.gateway.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    eventually("the request reached the endpoint", || {
        let seen = never.connections.load(std::sync::atomic::Ordering::SeqCst);
        if seen == 1 { Ok(()) } else { Err(seen.to_string()) }
    });
    drop(client);
    logged.gateway.await_metric(r#"code="499""#);
    let lines = logged.lines();
    assert_eq!((&lines[0]["status"], &lines[0]["reason"]), (&499.into(), &"client_left".into()));
    assert_eq!(lines[0]["first_byte_ms"], Value::Null);
}

#[test]
fn a_stream_is_a_line_when_it_ends() {
    let echo = Upstream::start(|mut peer| {
        let mut bytes = [0; 5];
        while peer.0.read_exact(&mut bytes).is_ok() {
            peer.0.get_mut().write_all(&bytes).unwrap();
        }
    });
    let document = yaml(&format!(
        "listeners: {{ web: {{ address: '127.0.0.1:0', protocol: tcp, service: echo }} }}
services: {{ echo: {{ endpoints: [{{ address: '{}' }}] }} }}",
        echo.address
    ));
    let logged = Logged::start(&document);
    let mut client = logged.gateway.client();
    client.send("hello");
    let mut answer = [0; 5];
    client.0.read_exact(&mut answer).unwrap();
    client.0.get_ref().shutdown(std::net::Shutdown::Write).unwrap();
    assert!(client.is_closed());
    let lines = logged.lines();
    let [line] = &lines[..] else { panic!("{lines:#?}") };
    for (field, expected) in [
        ("protocol", "TCP"),
        ("client", "127.0.0.1"),
        ("listener", "web"),
        ("service", "echo"),
        ("endpoint", &echo.address.to_string()),
        ("reason", "complete"),
    ] {
        assert_eq!(line[field], expected, "{field}");
    }
    for (field, expected) in [("attempts", 1), ("request_bytes", 5), ("response_bytes", 5)] {
        assert_eq!(line[field], expected, "{field}");
    }
    assert!(line["connect_ms"].is_number() && line["status"].is_null() && line["target"].is_null());
}

#[test]
fn an_upgraded_request_is_a_line_with_what_it_carried() {
    let echo = Upstream::start(|mut peer| {
        peer.head();
        peer.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n");
        let mut bytes = [0; 5];
        while peer.0.read_exact(&mut bytes).is_ok() {
            peer.0.get_mut().write_all(&bytes).unwrap();
        }
    });
    let logged = Logged::start(&document(&[echo.address]));
    let mut client = logged.gateway.client();
    client.send("GET /echo HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n");
    assert_eq!(client.answer().status(), 101);
    client.send("hello");
    let mut answer = [0; 5];
    client.0.read_exact(&mut answer).unwrap();
    client.0.get_ref().shutdown(std::net::Shutdown::Write).unwrap();
    assert!(client.is_closed());
    let lines = logged.lines();
    assert_eq!((&lines[0]["status"], &lines[0]["reason"]), (&101.into(), &"complete".into()));
    assert_eq!((&lines[0]["request_bytes"], &lines[0]["response_bytes"]), (&5.into(), &5.into()));
}

#[test]
fn a_trusted_proxy_says_whose_request_is_logged() {
    let upstream = Upstream::echo();
    let mut trusting = document(&[upstream.address]);
    trusting.trusted_proxies.push(IpNetwork { address: "127.0.0.0".parse().unwrap(), prefix: 8 });
    let logged = Logged::start(&trusting);
    let mut client = logged.gateway.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.7\r\n\r\n");
    assert_eq!(client.answer().status(), 200);
    assert_eq!(logged.lines()[0]["client"], "192.0.2.7");
}

#[test]
fn dropped_lines_are_a_metric_where_there_is_a_log() {
    let upstream = Upstream::echo();
    let target = AccessTarget::File("/dev/full".into());
    let (gateway, _log) = Gateway::start_logging(&target, &document(&[upstream.address]));
    assert!(gateway.metrics().contains("gogate_access_log_dropped_total 0"));
    assert_eq!(gateway.client().get("/").status(), 200);
    gateway.await_metric("gogate_access_log_dropped_total 1");
    let silent = Gateway::start(&document(&[upstream.address]));
    assert!(!silent.metrics().contains("gogate_access_log_dropped_total"));
}

#[test]
fn a_node_writes_every_line_to_the_file_that_has_the_name() {
    let mut cluster = TestCluster::prepare(1);
    let folder = cluster.dir.path().to_owned();
    let [log, moved] = ["access.log", "access.log.1"].map(|name| folder.join(name));
    let node_file = folder.join("n1.yaml");
    let mut settings = std::fs::read_to_string(&node_file).unwrap();
    settings.push_str(&format!("log: {{ access: \"{}\" }}\n", log.display()));
    std::fs::write(&node_file, settings).unwrap();
    cluster.start_node(0);
    cluster.wait_until_ready();
    cluster.apply(0, "routes: []");

    let within = Duration::from_secs(10);
    assert_eq!(get(cluster.web(0), "/before").unwrap().status, 404);
    wait_for(within, "the line is written soon", || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        if text.contains("\"GET /before HTTP/1.1\" 404 ") { Ok(()) } else { Err(text) }
    });
    std::fs::rename(&log, &moved).unwrap();
    cluster.signal(0, rustix::process::Signal::HUP);
    wait_for(within, "the file is opened anew", || {
        log.metadata().map(drop).map_err(|error| error.to_string())
    });
    assert_eq!(get(cluster.web(0), "/after").unwrap().status, 404);
    cluster.stop(0);
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(text.contains("\"GET /after HTTP/1.1\" 404 ") && text.contains(" reason=no_route "), "{text}");
    assert!(!text.contains("/before"), "{text}");
}

#[test]
fn a_node_whose_log_cannot_be_opened_says_so_and_does_not_start() {
    let cluster = TestCluster::prepare(1);
    let (code, _, said) = run(gogate()
        .args(["serve", "--set", "log.access=/nowhere/access.log", "--config"])
        .arg(cluster.dir.path().join("n1.yaml")));
    assert_eq!(code, Some(1));
    assert!(said.contains("log.access: /nowhere/access.log cannot be opened: No such file"), "{said}");
}
