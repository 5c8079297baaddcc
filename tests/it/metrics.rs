//! The data plane's metrics: each has the value that the traffic gave it.

use std::{
    io::{Read, Write},
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::upstream::{Gateway, Peer, Upstream, yaml};

#[test]
fn every_figure_has_the_value_that_the_traffic_gave_it() {
    let alive = Upstream::echo();
    let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let echo = Upstream::start(|mut peer| {
        let mut bytes = [0; 5];
        while peer.0.read_exact(&mut bytes).is_ok() {
            peer.0.get_mut().write_all(&bytes).unwrap();
        }
    });
    let document = yaml(&format!(
        "listeners:
  web: {{ address: '127.0.0.1:0' }}
  raw: {{ address: '127.0.0.1:0', protocol: tcp, service: echo }}
services:
  api: {{ endpoints: [{{ address: '{dead}' }}, {{ address: '{alive}' }}] }}
  echo: {{ endpoints: [{{ address: '{echo}' }}] }}
routes:
  - {{ name: api, match: {{ path_prefix: /api }}, service: api }}
  - {{ name: few, match: {{ path_prefix: /few }}, service: api, policies: [few] }}
policies: {{ few: {{ rate_limit: {{ budget: few }} }} }}
budgets: {{ few: {{ rate: 1, per: 1h, scope: node }} }}
",
        alive = alive.address,
        echo = echo.address
    ));
    let gateway = Gateway::start_with(1, std::time::Duration::ZERO, &document);

    let mut client = gateway.client();
    let mut answered = client.get("/api").body.len();
    client.send("POST /api HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello");
    answered += client.answer().body.len();
    client.send("BREW /api HTTP/1.1\r\nHost: a\r\n\r\n");
    answered += client.answer().body.len();
    assert_eq!(client.get("/nowhere").status(), 404);
    let few = client.get("/few");
    assert_eq!(few.status(), 200);
    answered += few.body.len();
    assert_eq!(client.get("/few").status(), 429);

    let mut stream = Peer::connect(gateway.proxy.addresses()["raw"]);
    stream.send("hello");
    stream.0.read_exact(&mut [0; 5]).unwrap();

    for line in [
        "gogate_connections_total{listener=\"web\"} 1",
        "gogate_connections_active{listener=\"web\"} 1",
        "gogate_connections_active{listener=\"raw\"} 1",
        "gogate_requests_total{route=\"api\",service=\"api\",method=\"GET\",code=\"200\"} 1",
        "gogate_requests_total{route=\"api\",service=\"api\",method=\"POST\",code=\"200\"} 1",
        "gogate_requests_total{route=\"api\",service=\"api\",method=\"_OTHER\",code=\"200\"} 1",
        "gogate_requests_total{route=\"\",service=\"\",method=\"GET\",code=\"404\"} 1",
        "gogate_requests_total{route=\"few\",service=\"api\",method=\"GET\",code=\"429\"} 1",
        "gogate_request_duration_seconds_count{route=\"api\",service=\"api\"} 3",
        "gogate_request_duration_seconds_bucket{route=\"api\",service=\"api\",le=\"+Inf\"} 3",
        "gogate_request_bytes_total 5",
        &format!("gogate_response_bytes_total {answered}"),
        "gogate_stream_bytes_total{listener=\"raw\",direction=\"in\"} 5",
        "gogate_stream_bytes_total{listener=\"raw\",direction=\"out\"} 5",
        "gogate_upstream_connections{service=\"api\",state=\"idle\"} 1",
        "gogate_upstream_connections{service=\"api\",state=\"active\"} 0",
        "gogate_upstream_connections{service=\"echo\",state=\"active\"} 1",
        "gogate_retries_total{service=\"api\",reason=\"connect\"}",
        "gogate_rejections_total{reason=\"no_route\"} 1",
        "gogate_rejections_total{reason=\"rate_limited\"} 1",
        "gogate_rate_limit_decisions_total{budget=\"few\",decision=\"allowed\"} 1",
        "gogate_rate_limit_decisions_total{budget=\"few\",decision=\"refused\"} 1",
    ] {
        gateway.await_metric(line);
    }

    let text = gateway.metrics();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap();
        let family =
            ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
        assert!(
            text.contains(&format!("# TYPE {family} ")) && text.contains(&format!("# HELP {family} ")),
            "{line}"
        );
        let counts = text.contains(&format!("# TYPE {family} counter"));
        assert_eq!(family.ends_with("_total"), counts, "{family}");
    }
}

#[test]
fn the_gauges_of_an_endpoint_say_how_it_is_before_and_after_it_goes_bad() {
    let well = Arc::new(AtomicBool::new(true));
    let is_well = Arc::clone(&well);
    let shaky = Upstream::start(move |mut peer| {
        while peer.request().is_some() {
            let status = if is_well.load(Ordering::SeqCst) { "200 OK" } else { "503 Service Unavailable" };
            peer.send(&format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n"));
        }
    });
    let steady = Upstream::echo();
    // One breaker stays open for the test, one is half-open at once.
    let gateway = Gateway::start(&yaml(&format!(
        "listeners: {{ web: {{ address: '127.0.0.1:0' }} }}
services:
  checked:
    health_check: {{ path: /healthz, interval: 10ms, unhealthy_after: 2, healthy_after: 2 }}
    endpoints: [{{ address: '{shaky}' }}, {{ address: '{steady}' }}]
  open: {{ circuit_breaker: {{ failures: 2, open_for: 1h }}, endpoints: [{{ address: '{shaky}' }}] }}
  half: {{ circuit_breaker: {{ failures: 2, open_for: 1ms }}, endpoints: [{{ address: '{shaky}' }}] }}
routes:
  - {{ name: open, match: {{ path: /open }}, service: open }}
  - {{ name: half, match: {{ path: /half }}, service: half }}
",
        shaky = shaky.address,
        steady = steady.address
    )));
    let health = |endpoint: &Upstream, value: u8| {
        let address = endpoint.address;
        gateway.await_metric(&format!(
            "gogate_backend_health{{service=\"checked\",endpoint=\"{address}\"}} {value}\n"
        ));
    };
    let breaker = |service: &str, state: u8| {
        let address = shaky.address;
        gateway.await_metric(&format!(
            "gogate_circuit_breaker_state{{service=\"{service}\",endpoint=\"{address}\"}} {state}\n"
        ));
    };
    let mut client = gateway.client();
    for path in ["/open", "/half"] {
        assert_eq!(client.get(path).status(), 200);
    }
    health(&shaky, 1);
    health(&steady, 1);
    breaker("open", 0);
    breaker("half", 0);

    well.store(false, Ordering::SeqCst);
    health(&shaky, 0);
    health(&steady, 1);
    for path in ["/open", "/open", "/half", "/half"] {
        assert_eq!(client.get(path).status(), 503);
    }
    breaker("open", 2);
    breaker("half", 1);

    well.store(true, Ordering::SeqCst);
    health(&shaky, 1);
    assert_eq!(client.get("/half").status(), 200);
    breaker("half", 0);
    breaker("open", 2);
    assert!(!gateway.metrics().contains("gogate_circuit_breaker_state{service=\"checked\""), "it has none");
}
