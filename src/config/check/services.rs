//! `services`: what requests are sent to.

use std::{
    collections::{BTreeMap, HashMap},
    ops::RangeInclusive,
    time::Duration,
};

use super::{
    super::{
        address,
        document::{
            Balance, CircuitBreaker, Endpoint, HashOn, HealthCheck, Outlier, Pool, Probe, ProxyProtocol,
            Service, Sticky, Timeouts,
        },
        field::{Field, Keys, Section},
        problem::shown,
    },
    TIMEOUT_MAX, accept, count, items, scalar, timeout,
};

pub(super) const SERVICE: Keys = Keys {
    known: &[
        "balance",
        "hash_on",
        "endpoints",
        "timeouts",
        "pool",
        "health_check",
        "outlier",
        "circuit_breaker",
        "slow_start",
        "sticky",
        "protocol",
        "send_proxy_protocol",
    ],
    later: &["tls"],
};
pub(super) const ENDPOINT: Keys = Keys { known: &["address", "weight"], later: &[] };
pub(super) const TIMEOUTS: Keys = Keys { known: &["connect", "request", "idle"], later: &[] };
pub(super) const POOL: Keys = Keys { known: &["max_idle", "idle_timeout", "max_connections"], later: &[] };
pub(super) const HEALTH_CHECK: Keys = Keys {
    known: &["type", "path", "expect", "interval", "timeout", "unhealthy_after", "healthy_after"],
    later: &[],
};
pub(super) const OUTLIER: Keys =
    Keys { known: &["consecutive_errors", "eject_for", "max_ejected_percent"], later: &[] };
pub(super) const CIRCUIT_BREAKER: Keys =
    Keys { known: &["failures", "window", "successes", "open_for"], later: &[] };
pub(super) const STICKY: Keys = Keys { known: &["cookie", "ttl"], later: &[] };
/// Browsers keep no cookie for longer than 400 days (RFC 6265bis, section 5.5).
const TTL_MAX: Duration = Duration::from_secs(400 * 24 * 3600);
/// A probe sooner would be a load of its own.
const INTERVAL_MIN: Duration = Duration::from_millis(10);
const BALANCE: &[&str] =
    &["round_robin", "weighted_round_robin", "least_connections", "peak_ewma", "random", "consistent_hash"];

pub(super) fn services(top: &Section<'_>) -> BTreeMap<String, Service> {
    let Some(field) = top.get("services") else { return BTreeMap::new() };
    let named = field.named().unwrap_or_default();
    named.into_iter().map(|(name, field)| (name.to_owned(), service(&field))).collect()
}

fn service(field: &Field<'_>) -> Service {
    let section = if field.is_null() { None } else { field.section(SERVICE) };
    let Some(section) = section else {
        return Service::default();
    };
    let send_proxy_protocol = section.get("send_proxy_protocol").and_then(proxy_protocol);
    protocol(&section);
    Service {
        balance: balance(&section),
        endpoints: section.get("endpoints").map(endpoints).unwrap_or_default(),
        timeouts: timeouts(&section),
        pool: if send_proxy_protocol.is_some() {
            // A connection that was announced for one client is not another one's.
            Pool { max_idle: 0, ..pool(&section) }
        } else {
            pool(&section)
        },
        health_check: section.section("health_check", HEALTH_CHECK).map(|section| health_check(&section)),
        outlier: section.section("outlier", OUTLIER).map(|section| outlier(&section)),
        circuit_breaker: section.section("circuit_breaker", CIRCUIT_BREAKER).map(|section| breaker(&section)),
        slow_start: section.get("slow_start").and_then(timeout),
        send_proxy_protocol,
        sticky: section.section("sticky", STICKY).and_then(|section| sticky(&section)),
    }
}

/// A word of the interface that this build does not know yet.
fn not_yet(field: &Field<'_>, word: &str, instead: &str) {
    let suggestion = Some(format!("use {instead}"));
    field.problem(format!("`{word}` is not supported by this build yet"), suggestion);
}

/// There is one so far, so it is judged and not kept.
fn protocol(section: &Section<'_>) {
    if let Some(field) = section.get("protocol")
        && let Some(word @ ("h2c" | "h2")) = field.choice(&["http1", "h2c", "h2"])
    {
        not_yet(field, word, "http1");
    }
}

fn health_check(section: &Section<'_>) -> HealthCheck {
    let default = HealthCheck::default();
    let word = section.get("type").and_then(|field| {
        let word = field.choice(&["http", "tcp", "grpc"])?;
        if word == "grpc" {
            not_yet(field, word, "http or tcp");
        }
        Some(word)
    });
    let probe = if word == Some("tcp") {
        for field in ["path", "expect"].into_iter().filter_map(|key| section.get(key)) {
            field.problem(
                "a check of `type: tcp` opens a connection and asks nothing",
                Some("remove it".into()),
            );
        }
        Probe::Tcp
    } else {
        let path = section.get("path").and_then(probe_path).unwrap_or_else(|| "/".to_owned());
        Probe::Http { path, expect: section.get("expect").map_or_else(|| vec![200..=299], codes) }
    };
    let interval = section.get("interval").and_then(|field| field.duration(INTERVAL_MIN, TIMEOUT_MAX));
    let probes = |key, default| count(section, key, 1, 1_000, default);
    HealthCheck {
        probe,
        interval: interval.unwrap_or(default.interval),
        timeout: section.get("timeout").and_then(timeout).unwrap_or(default.timeout),
        unhealthy_after: probes("unhealthy_after", default.unhealthy_after),
        healthy_after: probes("healthy_after", default.healthy_after),
    }
}

/// Sent as it is.
fn probe_path(field: &Field<'_>) -> Option<String> {
    let text = field.text_as("a path such as /healthz")?;
    let good = text.starts_with('/') && text.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
    if !good {
        let suggestion = if text.starts_with('/') { None } else { Some(format!("write /{}", shown(text))) };
        field.problem(format!("`{}` is not a path", shown(text)), suggestion);
        return None;
    }
    Some(text.to_owned())
}

/// `[200, 300-399]`
fn codes(field: &Field<'_>) -> Vec<RangeInclusive<u16>> {
    let empty = ("the list is empty, so no answer would be good", "write [200-299]");
    let items = items(field, "status codes", empty);
    let mut codes = Vec::with_capacity(items.len());
    for item in items {
        let text = scalar(&item).unwrap_or_default();
        let (from, to) = text.split_once('-').unwrap_or((text, text));
        let code = |text: &str| text.trim().parse::<u16>().ok().filter(|code| (100..=599).contains(code));
        match (code(from), code(to)) {
            (Some(from), Some(to)) if from <= to => codes.push(from..=to),
            _ => item.problem(
                format!("`{}` is not a status code or a range of them", shown(text)),
                Some("write 200 or 200-299, from 100 to 599".into()),
            ),
        }
    }
    codes
}

fn outlier(section: &Section<'_>) -> Outlier {
    let default = Outlier::default();
    Outlier {
        consecutive_errors: count(section, "consecutive_errors", 1, 1_000_000, default.consecutive_errors),
        eject_for: section.get("eject_for").and_then(timeout).unwrap_or(default.eject_for),
        max_ejected_percent: count(section, "max_ejected_percent", 0, 100, default.max_ejected_percent),
    }
}

fn breaker(section: &Section<'_>) -> CircuitBreaker {
    let default = CircuitBreaker::default();
    let time = |key, default| section.get(key).and_then(timeout).unwrap_or(default);
    CircuitBreaker {
        failures: count(section, "failures", 1, 1_000_000, default.failures),
        window: time("window", default.window),
        successes: count(section, "successes", 1, 1_000_000, default.successes),
        open_for: time("open_for", default.open_for),
    }
}

fn sticky(section: &Section<'_>) -> Option<Sticky> {
    let Some(field) = section.get("cookie") else {
        section.field.problem("`cookie` is missing", Some("add cookie: gogate_sid".into()));
        return None;
    };
    let cookie = cookie_name(field, field.text_as("the name of a cookie")?)?;
    let ttl = section.get("ttl").and_then(|field| field.duration(Duration::from_secs(1), TTL_MAX));
    Some(Sticky { cookie, ttl })
}

fn proxy_protocol(field: &Field<'_>) -> Option<ProxyProtocol> {
    Some(if field.choice(&["v1", "v2"])? == "v1" { ProxyProtocol::V1 } else { ProxyProtocol::V2 })
}

fn balance(section: &Section<'_>) -> Balance {
    let hash_on = section.get("hash_on");
    let word = section.get("balance").map_or(Some("round_robin"), |field| field.choice(BALANCE));
    let is_hash = word.is_none_or(|word| word == "consistent_hash");
    if let Some(field) = hash_on.filter(|_| !is_hash) {
        let suggestion = Some("write balance: consistent_hash, or remove it".into());
        field.problem("only `balance: consistent_hash` looks at `hash_on`", suggestion);
    }
    match word.unwrap_or("round_robin") {
        "weighted_round_robin" => Balance::WeightedRoundRobin,
        "least_connections" => Balance::LeastConnections,
        "peak_ewma" => Balance::PeakEwma,
        "random" => Balance::Random,
        "consistent_hash" => {
            let hash_on = hash_on.map_or(Some(HashOn::ClientIp), hash_key);
            Balance::ConsistentHash(hash_on.unwrap_or(HashOn::ClientIp))
        }
        _ => Balance::RoundRobin,
    }
}

fn hash_key(field: &Field<'_>) -> Option<HashOn> {
    const EXPECTED: &str = "`client_ip`, `path`, `header:NAME` or `cookie:NAME`";
    let text = field.text_as(EXPECTED)?;
    match (text, text.split_once(':')) {
        ("client_ip", _) => return Some(HashOn::ClientIp),
        ("path", _) => return Some(HashOn::Path),
        (_, Some(("header", name))) => match http::HeaderName::try_from(name.trim()) {
            Ok(name) => return Some(HashOn::Header(name)),
            Err(_) => {
                field.problem(format!("`{}` is not the name of a header field", shown(name)), None);
                return None;
            }
        },
        (_, Some(("cookie", name))) => return cookie_name(field, name.trim()).map(HashOn::Cookie),
        _ => {}
    }
    let suggestion =
        field.report.nearest(text, ["client_ip", "path"]).map(|word| format!("did you mean `{word}`?"));
    field.problem(format!("expected {EXPECTED}, found `{}`", shown(text)), suggestion);
    None
}

/// RFC 6265, section 4.1.1: a token.
fn cookie_name(field: &Field<'_>, name: &str) -> Option<String> {
    let in_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if !name.is_empty() && name.len() <= 128 && name.bytes().all(in_token) {
        return Some(name.to_owned());
    }
    field.problem(format!("`{}` is not the name of a cookie", shown(name)), None);
    None
}

fn endpoints(field: &Field<'_>) -> Vec<Endpoint> {
    let mut endpoints = Vec::new();
    let mut lines: HashMap<String, usize> = HashMap::new();
    for item in field.list("endpoints").unwrap_or_default() {
        let Some(section) = item.section(ENDPOINT) else { continue };
        let weight = section.get("weight").and_then(|field| field.integer(1, 65_535)).unwrap_or(1);
        let Some(field) = section.get("address") else {
            item.problem("`address` is missing", Some("add address: \"10.0.0.1:9000\"".into()));
            continue;
        };
        let Some(text) = field.text_as("an address such as 10.0.0.1:9000") else { continue };
        let Some(address) = accept(field, address::reach(text)) else { continue };
        if let Some(line) = lines.insert(address.clone(), field.node.place.line) {
            let suggestion = Some("keep one of them; `weight` gives it a larger share".into());
            field.problem(format!("`{address}` is an endpoint already, on line {line}"), suggestion);
        }
        let weight = u32::try_from(weight).unwrap_or(1);
        endpoints.push(Endpoint { address, weight });
    }
    endpoints
}

fn timeouts(service: &Section<'_>) -> Timeouts {
    let default = Timeouts::default();
    let Some(section) = service.section("timeouts", TIMEOUTS) else { return default };
    let read = |key, default| section.get(key).and_then(timeout).unwrap_or(default);
    Timeouts {
        connect: read("connect", default.connect),
        request: read("request", default.request),
        idle: read("idle", default.idle),
        // What is right between two pieces of a body is too short for a stream, unless somebody says so.
        stream: read("idle", default.stream),
    }
}

fn pool(service: &Section<'_>) -> Pool {
    let default = Pool::default();
    let Some(section) = service.section("pool", POOL) else { return default };
    Pool {
        max_idle: count(&section, "max_idle", 0, 1_000_000, default.max_idle),
        idle_timeout: section.get("idle_timeout").and_then(timeout).unwrap_or(default.idle_timeout),
        max_connections: count(&section, "max_connections", 1, 1_000_000, default.max_connections),
        max_streams: count(&section, "max_connections", 1, 1_000_000, default.max_streams),
    }
}
