//! The data plane's metrics: each has the value that the traffic gave it.

use std::{
    io::{Read, Write},
    net::TcpListener,
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
