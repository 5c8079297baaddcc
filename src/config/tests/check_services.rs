//! `services`, key by key.

use super::{
    super::super::document::{Balance, HashOn},
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
