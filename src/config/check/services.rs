//! `services`: what requests are sent to.

use std::collections::{BTreeMap, HashMap};

use super::{
    super::{
        address,
        document::{Balance, Endpoint, Pool, Service, Timeouts},
        field::{Field, Keys, Section},
        problem::shown,
    },
    accept, count, timeout,
};

pub(super) const SERVICE: Keys = Keys {
    known: &["balance", "endpoints", "timeouts", "pool"],
    later: &[
        "hash_on",
        "health_check",
        "outlier",
        "circuit_breaker",
        "protocol",
        "tls",
        "send_proxy_protocol",
        "slow_start",
        "sticky",
    ],
};
pub(super) const ENDPOINT: Keys = Keys { known: &["address", "weight"], later: &[] };
pub(super) const TIMEOUTS: Keys = Keys { known: &["connect", "request", "idle"], later: &[] };
pub(super) const POOL: Keys = Keys { known: &["max_idle", "idle_timeout", "max_connections"], later: &[] };
const BALANCE_LATER: &[&str] =
    &["weighted_round_robin", "least_connections", "peak_ewma", "random", "consistent_hash"];

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
    if let Some(field) = section.get("balance") {
        balance(field);
    }
    Service {
        balance: Balance::RoundRobin,
        endpoints: section.get("endpoints").map(endpoints).unwrap_or_default(),
        timeouts: timeouts(&section),
        pool: pool(&section),
    }
}

fn balance(field: &Field<'_>) {
    let Some(text) = field.text() else { return };
    if BALANCE_LATER.contains(&text) {
        let suggestion = Some("use round_robin".into());
        field.problem(format!("`{text}` is not supported by this build yet"), suggestion);
    } else if text != "round_robin" {
        let known = BALANCE_LATER.iter().copied().chain(["round_robin"]);
        let suggestion = match field.report.nearest(text, known) {
            Some(word) => format!("did you mean `{word}`?"),
            None => "use round_robin".into(),
        };
        field.problem(format!("expected `round_robin`, found `{}`", shown(text)), Some(suggestion));
    }
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
