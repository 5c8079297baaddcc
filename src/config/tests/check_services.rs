//! `services`, key by key.

use super::{
    super::super::document::{
        Balance, CircuitBreaker, HashOn, HealthCheck, Outlier, Probe, Retries, RetryOn, Sticky,
    },
    *,
};

/// The problems of service `a` with these keys; the document is one line.
fn check_service(keys: &str, expected: &str) {
    check(&format!("services: {{ a: {{ {keys} }} }}"), expected);
}

fn service(keys: &str) -> Service {
    valid(&format!("services: {{ a: {{ {keys} }} }}")).services["a"].clone()
}

#[test]
fn every_balancer_has_its_name() {
    let header = |name| HashOn::Header(http::HeaderName::from_static(name));
    for (keys, expected) in [
        ("", Balance::RoundRobin),
        ("balance: round_robin", Balance::RoundRobin),
        ("balance: weighted_round_robin", Balance::WeightedRoundRobin),
        ("balance: least_connections", Balance::LeastConnections),
        ("balance: peak_ewma", Balance::PeakEwma),
        ("balance: random", Balance::Random),
        ("balance: consistent_hash", Balance::ConsistentHash(HashOn::ClientIp)),
        ("balance: consistent_hash, hash_on: client_ip", Balance::ConsistentHash(HashOn::ClientIp)),
        ("balance: consistent_hash, hash_on: path", Balance::ConsistentHash(HashOn::Path)),
        ("balance: consistent_hash, hash_on: header:X-User", Balance::ConsistentHash(header("x-user"))),
        (
            "balance: consistent_hash, hash_on: 'cookie: sid'",
            Balance::ConsistentHash(HashOn::Cookie("sid".into())),
        ),
    ] {
        assert_eq!(service(keys).balance, expected, "{keys}");
    }
}

#[test]
fn a_balancer_that_does_not_exist_names_the_nearest() {
    let words = "`round_robin`, `weighted_round_robin`, `least_connections`, `peak_ewma`, `random` or `consistent_hash`";
    check_service(
        "balance: roundrobin",
        &format!(
            "f:1: services.a.balance: expected {words}, found `roundrobin` (did you mean `round_robin`?)"
        ),
    );
    check_service("balance: x", &format!("f:1: services.a.balance: expected {words}, found `x`"));
    check_service(
        "hash_on: path",
        "f:1: services.a.hash_on: only `balance: consistent_hash` looks at `hash_on` (write balance: consistent_hash, or remove it)",
    );
    for (hash_on, problem) in [
        (
            "paths",
            "expected `client_ip`, `path`, `header:NAME` or `cookie:NAME`, found `paths` (did you mean `path`?)",
        ),
        ("query:q", "expected `client_ip`, `path`, `header:NAME` or `cookie:NAME`, found `query:q`"),
        ("'header:a b'", "`a b` is not the name of a header field"),
        ("'header:'", "`` is not the name of a header field"),
        ("'cookie:a=b'", "`a=b` is not the name of a cookie"),
        (
            "5",
            "expected `client_ip`, `path`, `header:NAME` or `cookie:NAME`, found the number 5 (put it in quotes: \"5\")",
        ),
    ] {
        check_service(
            &format!("balance: consistent_hash, hash_on: {hash_on}"),
            &format!("f:1: services.a.hash_on: {problem}"),
        );
    }
}

#[test]
fn a_service_with_every_key_of_its_resilience_becomes_what_it_says() {
    let service = service(
        "protocol: http1, slow_start: 30s, sticky: { cookie: sid, ttl: 1h },
  health_check: { type: http, path: '/up?full=1', expect: [200, 300-399], interval: 1s, timeout: 250ms, unhealthy_after: 4, healthy_after: 1 },
  outlier: { consecutive_errors: 7, eject_for: 10s, max_ejected_percent: 20 },
  circuit_breaker: { failures: 3, window: 5s, successes: 2, open_for: 1m }",
    );
    let [ms_250, s_1, s_5, s_10, s_30, s_60, s_3600] =
        [250, 1_000, 5_000, 10_000, 30_000, 60_000, 3_600_000].map(Duration::from_millis);
    let probe = Probe::Http { path: "/up?full=1".into(), expect: vec![200..=200, 300..=399] };
    let check = HealthCheck { probe, interval: s_1, timeout: ms_250, unhealthy_after: 4, healthy_after: 1 };
    assert_eq!(service.health_check, Some(check));
    let outlier = Outlier { consecutive_errors: 7, eject_for: s_10, max_ejected_percent: 20 };
    assert_eq!(service.outlier, Some(outlier));
    let breaker = CircuitBreaker { failures: 3, window: s_5, successes: 2, open_for: s_60 };
    assert_eq!(service.circuit_breaker, Some(breaker));
    assert_eq!(service.slow_start, Some(s_30));
    assert_eq!(service.sticky, Some(Sticky { cookie: "sid".into(), ttl: Some(s_3600) }));
}

#[test]
fn sections_of_resilience_have_defaults_and_are_off_unless_written() {
    let on = service("health_check: {}, outlier: {}, circuit_breaker: {}, sticky: { cookie: a }");
    assert_eq!(on.health_check, Some(HealthCheck::default()));
    assert_eq!(on.outlier, Some(Outlier::default()));
    assert_eq!(on.circuit_breaker, Some(CircuitBreaker::default()));
    assert_eq!(on.sticky, Some(Sticky { cookie: "a".into(), ttl: None }));
    assert_eq!(service("health_check: { type: tcp }").health_check.unwrap().probe, Probe::Tcp);
    let off = service("");
    assert!(off.health_check.is_none() && off.outlier.is_none() && off.circuit_breaker.is_none());
    assert!(off.slow_start.is_none() && off.sticky.is_none());
}

#[test]
fn what_a_service_cannot_have_is_said() {
    for (keys, problem) in [
        ("protocol: h2c", "protocol: `h2c` is not supported by this build yet (use http1)"),
        ("protocol: http", "protocol: expected `http1`, `h2c` or `h2`, found `http` (did you mean `http1`?)"),
        (
            "health_check: { type: grpc }",
            "health_check.type: `grpc` is not supported by this build yet (use http or tcp)",
        ),
        (
            "health_check: { type: tcp, path: /x }",
            "health_check.path: a check of `type: tcp` opens a connection and asks nothing (remove it)",
        ),
        ("health_check: { path: up }", "health_check.path: `up` is not a path (write /up)"),
        ("health_check: { path: '/a b' }", "health_check.path: `/a b` is not a path"),
        (
            "health_check: { expect: [] }",
            "health_check.expect: the list is empty, so no answer would be good (write [200-299])",
        ),
        (
            "health_check: { expect: [299-200] }",
            "health_check.expect[0]: `299-200` is not a status code or a range of them (write 200 or 200-299, from 100 to 599)",
        ),
        (
            "health_check: { expect: [99] }",
            "health_check.expect[0]: `99` is not a status code or a range of them (write 200 or 200-299, from 100 to 599)",
        ),
        ("health_check: { interval: 1ms }", "health_check.interval: `1ms` is not from 10ms to 24h"),
        (
            "health_check: { healthy_after: 0 }",
            "health_check.healthy_after: expected a whole number from 1 to 1000, found the number 0",
        ),
        (
            "outlier: { max_ejected_percent: 101 }",
            "outlier.max_ejected_percent: expected a whole number from 0 to 100, found the number 101",
        ),
        (
            "circuit_breaker: { failures: 0 }",
            "circuit_breaker.failures: expected a whole number from 1 to 1000000, found the number 0",
        ),
        ("sticky: { ttl: 1h }", "sticky: `cookie` is missing (add cookie: gogate_sid)"),
        ("sticky: { cookie: 'a b' }", "sticky.cookie: `a b` is not the name of a cookie"),
    ] {
        check_service(keys, &format!("f:1: services.a.{problem}"));
    }
}

#[test]
fn retries_are_read_with_their_defaults_and_their_words() {
    let retries = |keys: &str| {
        let text =
            format!("services: {{ a: {{}} }}\nroutes: [{{ name: r, service: a, retries: {{ {keys} }} }}]");
        valid(&text).routes[0].retries.clone()
    };
    assert_eq!(retries(""), Some(Retries::default()));
    let all = RetryOn {
        connect: true,
        reset: true,
        timeout: true,
        bad_gateway: true,
        service_unavailable: true,
        gateway_timeout: true,
    };
    let written = Retries { attempts: 3, on: all, backoff: Duration::from_millis(5), budget_percent: 50 };
    let keys =
        "attempts: 3, on: [connect, reset, timeout, '502', \"503\", 504], backoff: 5ms, budget_percent: 50";
    assert_eq!(retries(keys), Some(written));
    let words = "expected `connect`, `reset`, `timeout`, `502`, `503` or `504`";
    for (keys, problem) in [
        ("on: [resets]", format!("on[0]: {words}, found `resets` (did you mean `reset`?)")),
        ("on: [connect, 500]", format!("on[1]: {words}, found `500`{}", " (did you mean `502`?)")),
        ("on: ['503', 503]", "on[1]: `503` is in the list already (remove it)".to_owned()),
        ("on: []", "on: the list is empty, so nothing would be sent again (remove `retries`)".to_owned()),
        ("attempts: 11", "attempts: expected a whole number from 1 to 10, found the number 11".to_owned()),
    ] {
        check_route(
            &format!("- {{ name: r, service: api, retries: {{ {keys} }} }}"),
            &format!("f:4: routes[0].retries.{problem}"),
        );
    }
}
