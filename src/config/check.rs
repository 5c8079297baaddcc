//! The gateway document: text → [`Document`], or every problem with its place and a suggestion.
//!
//! A file a section: `listeners`, `services`, `policies` and `budgets`, `routes`, and `actions` for what a route does.
//! Invariants: a [`Document`] leaves here only if nothing is wrong with it; no input panics or takes
//! unbounded time; reading does not stop at the first problem. Neighbours: `yaml` and `field` read,
//! `address` judges single values; the admin API, `gogate check` and the node's own file come here.

mod actions;
mod auth;
mod listeners;
mod policies;
mod retries;
mod routes;
mod services;

use std::{collections::BTreeMap, time::Duration};

use super::{
    address,
    document::{Document, IpNetwork, Limits, Service},
    field::{self, Field, Keys, Section},
    problem::{Problem, Report, shown},
    redact, yaml,
};

pub use self::listeners::default_listeners;

/// The smallest document that serves something; shown where a document is empty.
pub const EXAMPLE: &str = "\
listeners:
  web: { address: \"127.0.0.1:8080\" }
services:
  api:
    endpoints: [{ address: \"127.0.0.1:9000\" }]
routes:
  - name: api
    match: { path_prefix: / }
    service: api
";

// Every key of the interface: what this build reads, and what it does not do yet. Support for a key is
// added by moving it from `later` to `known`.
pub(super) const TOP: Keys = Keys {
    known: &[
        "listeners",
        "services",
        "routes",
        "policies",
        "budgets",
        "trusted_proxies",
        "forwarded",
        "limits",
    ],
    later: &["certificates"],
};

/// No timeout is shorter: 0 would fail every request.
const TIMEOUT_MIN: Duration = Duration::from_millis(1);
/// No timeout is longer.
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 3600);

/// Reads and checks a gateway document, YAML or JSON.
///
/// # Errors
/// Every problem, in the order of the text.
pub fn document(text: &str) -> Result<Document, Vec<Problem>> {
    let root = yaml::parse(text).map_err(|problem| vec![problem])?;
    let report = Report::default();
    let Some(root) = root.filter(|root| !field::is_null(root)) else {
        return Err(vec![Problem::general(
            "the document is empty",
            Some(format!("a minimal one:\n{}", EXAMPLE.trim_end())),
        )]);
    };
    let field = Field { node: &root, path: String::new(), report: &report };
    let document = field.section(TOP).map(|top| read(&top)).unwrap_or_default();
    redact::refuse_marks(&root, &report);
    if report.is_empty() { Ok(document) } else { Err(report.into_problems()) }
}

fn read(top: &Section<'_>) -> Document {
    let services = services::services(top);
    let listeners = listeners::listeners(top, &services);
    let budgets = policies::budgets(top);
    let policies = policies::policies(top, &services, &budgets);
    let routes = routes::routes(top, &listeners, &services, &policies);
    let (trusted_proxies, limits) = (trusted_proxies(top), limits(top));
    let forwarded = top.get("forwarded").and_then(|field| field.boolean()).unwrap_or_default();
    Document { listeners, services, routes, policies, budgets, trusted_proxies, forwarded, limits }
}

/// A value that was judged elsewhere, its refusal reported here.
fn accept<T>(field: &Field<'_>, result: Result<T, address::Refusal>) -> Option<T> {
    result.map_err(|(problem, suggestion)| field.problem(problem, suggestion)).ok()
}

/// The name of a declared service.
fn service_name(field: &Field<'_>, declared: &BTreeMap<String, Service>) -> Option<String> {
    let name = field.name()?;
    if declared.contains_key(name) {
        return Some(name.to_owned());
    }
    let declare = format!(
        "declare it under `services`: `{name}: {{}}` is enough, instances registered under that name join it"
    );
    undeclared(field, "service", name, declared, &declare);
    None
}

/// Says that there is no such thing, and which of the declared ones was probably meant; `otherwise` what to do.
fn undeclared<T>(field: &Field<'_>, what: &str, name: &str, declared: &BTreeMap<String, T>, otherwise: &str) {
    let near = field.report.nearest(name, declared.keys().map(String::as_str));
    let suggestion = near.map_or_else(|| otherwise.to_owned(), |near| format!("did you mean `{near}`?"));
    field.problem(format!("there is no {what} `{}`", shown(name)), Some(suggestion));
}

fn timeout(field: &Field<'_>) -> Option<Duration> {
    field.duration(TIMEOUT_MIN, TIMEOUT_MAX)
}

/// A value as it was written, in quotes or not.
fn scalar<'a>(field: &Field<'a>) -> Option<&'a str> {
    match &field.node.value {
        yaml::Value::Scalar { text, .. } => Some(text),
        yaml::Value::List(_) | yaml::Value::Map(_) => None,
    }
}

fn count<T: TryFrom<u64>>(section: &Section<'_>, key: &str, from: u64, to: u64, default: T) -> T {
    let number = section.get(key).and_then(|field| field.integer(from, to));
    number.and_then(|number| T::try_from(number).ok()).unwrap_or(default)
}

/// The items of a list that is of no use without any; `empty` is what an empty one is told.
fn items<'a>(field: &Field<'a>, expected: &str, empty: (&str, &str)) -> Vec<Field<'a>> {
    let items = field.list(expected).unwrap_or_default();
    if items.is_empty() && matches!(field.node.value, yaml::Value::List(_)) {
        field.problem(empty.0, Some(empty.1.into()));
    }
    items
}

fn networks(items: &[Field<'_>]) -> Vec<IpNetwork> {
    let mut networks = Vec::with_capacity(items.len());
    for item in items {
        let Some(text) = item.text_as("an IP address or a range such as 10.0.0.0/8") else { continue };
        networks.extend(accept(item, address::network(text)));
    }
    networks
}

// === trusted_proxies, limits ===

const LIMITS: Keys = Keys {
    known: &[
        "header_bytes",
        "headers",
        "uri_bytes",
        "body_bytes",
        "header_timeout",
        "keep_alive",
        "body_rate_min",
        "body_rate_grace",
        "connections",
    ],
    later: &[],
};

fn trusted_proxies(top: &Section<'_>) -> Vec<IpNetwork> {
    let items = top.get("trusted_proxies").and_then(|field| field.list("addresses and ranges"));
    networks(&items.unwrap_or_default())
}

fn limits(top: &Section<'_>) -> Limits {
    let default = Limits::default();
    let Some(section) = top.section("limits", LIMITS) else { return default };
    let bytes = |key, from, to, default| {
        let size = section.get(key).and_then(|field| field.size(from, to));
        size.and_then(|size| usize::try_from(size).ok()).unwrap_or(default)
    };
    let limits = Limits {
        // hyper's read buffer has at least 8 KiB.
        header_bytes: bytes("header_bytes", 8 << 10, 1 << 20, default.header_bytes),
        headers: count(&section, "headers", 1, 10_000, default.headers),
        // The `http` crate's bound of a URI.
        uri_bytes: bytes("uri_bytes", 64, 65_534, default.uri_bytes),
        body_bytes: section.get("body_bytes").and_then(|field| field.size(1, 1 << 50)),
        header_timeout: section.get("header_timeout").and_then(timeout).unwrap_or(default.header_timeout),
        keep_alive: section.get("keep_alive").and_then(timeout).unwrap_or(default.keep_alive),
        body_rate_min: section
            .get("body_rate_min")
            .and_then(|field| field.size(0, 1 << 30))
            .unwrap_or(default.body_rate_min),
        body_rate_grace: section.get("body_rate_grace").and_then(timeout).unwrap_or(default.body_rate_grace),
        connections: count(&section, "connections", 1, 10_000_000, default.connections),
    };
    if limits.uri_bytes > limits.header_bytes {
        section.field.report.add(
            section.place("uri_bytes"),
            "limits.uri_bytes",
            format!(
                "{} bytes are more than `header_bytes` allows for the whole head, {}",
                limits.uri_bytes, limits.header_bytes
            ),
            Some("raise `header_bytes` or lower `uri_bytes`".into()),
        );
    }
    limits
}

#[cfg(test)]
#[path = "tests/check.rs"]
mod tests;
