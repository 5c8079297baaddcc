//! `services`: what requests are sent to.

use std::collections::{BTreeMap, HashMap};

use super::{
    super::{
        address,
        document::{Balance, Endpoint, HashOn, Pool, ProxyProtocol, Service, Timeouts},
        field::{Field, Keys, Section},
        problem::shown,
    },
    accept, count, timeout,
};

pub(super) const SERVICE: Keys = Keys {
    known: &["balance", "hash_on", "endpoints", "timeouts", "pool", "send_proxy_protocol"],
    later: &["health_check", "outlier", "circuit_breaker", "protocol", "tls", "slow_start", "sticky"],
};
pub(super) const ENDPOINT: Keys = Keys { known: &["address", "weight"], later: &[] };
pub(super) const TIMEOUTS: Keys = Keys { known: &["connect", "request", "idle"], later: &[] };
pub(super) const POOL: Keys = Keys { known: &["max_idle", "idle_timeout", "max_connections"], later: &[] };
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
        send_proxy_protocol,
    }
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
    let count = |key, from, default| count(&section, key, from, 1_000_000, default);
    Pool {
        max_idle: count("max_idle", 0, default.max_idle),
        idle_timeout: section.get("idle_timeout").and_then(timeout).unwrap_or(default.idle_timeout),
        max_connections: count("max_connections", 1, default.max_connections),
        max_streams: count("max_connections", 1, default.max_streams),
    }
}
