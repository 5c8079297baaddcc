//! The gateway document: text → [`Document`], or every problem with its place and a suggestion.
//!
//! Invariants: a [`Document`] leaves here only if nothing is wrong with it; no input panics or takes
//! unbounded time; reading does not stop at the first problem. Neighbours: `yaml` and `field` read,
//! `address` judges single values; the admin API, `gogate check` and the node's own file come here.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    time::Duration,
};

use super::{
    address,
    document::{
        Balance, Document, Endpoint, HostPattern, IpNetwork, Limits, Listener, Match, PathPattern, Pool,
        Route, Service, Timeouts,
    },
    field::{Field, Keys, Section},
    problem::{Problem, Report, shown},
    yaml,
};

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
    known: &["listeners", "services", "routes", "trusted_proxies", "limits"],
    later: &["certificates", "policies", "budgets"],
};
const LISTENER: Keys = Keys { known: &["address"], later: &["tls", "protocol", "service", "sni"] };
const SERVICE: Keys = Keys {
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
const ENDPOINT: Keys = Keys { known: &["address", "weight"], later: &[] };
const TIMEOUTS: Keys = Keys { known: &["connect", "request", "idle"], later: &[] };
const POOL: Keys = Keys { known: &["max_idle", "idle_timeout", "max_connections"], later: &[] };
const ROUTE: Keys = Keys {
    known: &["name", "listeners", "match", "service", "timeout"],
    later: &["split", "redirect", "respond", "mirror", "policies", "retries"],
};
const MATCH: Keys =
    Keys { known: &["host", "path", "path_prefix", "methods"], later: &["path_regex", "headers", "query"] };
const LIMITS: Keys = Keys {
    known: &["header_bytes", "headers", "uri_bytes", "body_bytes", "header_timeout", "connections"],
    later: &[],
};
const BALANCE_LATER: &[&str] =
    &["weighted_round_robin", "least_connections", "peak_ewma", "random", "consistent_hash"];

/// No timeout is shorter: 0 would fail every request.
const TIMEOUT_MIN: Duration = Duration::from_millis(1);
/// No timeout is longer.
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 3600);

/// The listeners of a document that names none: `web` on loopback.
#[must_use]
pub fn default_listeners() -> BTreeMap<String, Listener> {
    let address = SocketAddr::from(([127, 0, 0, 1], 8080));
    BTreeMap::from([("web".to_owned(), Listener { address })])
}

/// Reads and checks a gateway document, YAML or JSON.
///
/// # Errors
/// Every problem, in the order of the text.
pub fn document(text: &str) -> Result<Document, Vec<Problem>> {
    let root = yaml::parse(text).map_err(|problem| vec![problem])?;
    let report = Report::default();
    let Some(root) = root.filter(|root| !super::field::is_null(root)) else {
        return Err(vec![Problem::general(
            "the document is empty",
            Some(format!("a minimal one:\n{}", EXAMPLE.trim_end())),
        )]);
    };
    let field = Field { node: &root, path: String::new(), report: &report };
    let document = field.section(TOP).map(|top| read(&top)).unwrap_or_default();
    if report.is_empty() { Ok(document) } else { Err(report.into_problems()) }
}

fn read(top: &Section<'_>) -> Document {
    let listeners = listeners(top);
    let services = services(top);
    let routes = routes(top, &listeners, &services);
    Document { listeners, services, routes, trusted_proxies: trusted_proxies(top), limits: limits(top) }
}

/// A value that was judged elsewhere, its refusal reported here.
fn accept<T>(field: &Field<'_>, result: Result<T, address::Refusal>) -> Option<T> {
    result.map_err(|(problem, suggestion)| field.problem(problem, suggestion)).ok()
}

// === listeners ===

/// A listener with a problem is kept with some address, so that routes that name it are not reported as well.
fn listeners(top: &Section<'_>) -> BTreeMap<String, Listener> {
    let Some(field) = top.get("listeners") else { return default_listeners() };
    let mut listeners = BTreeMap::new();
    let mut taken: HashMap<SocketAddr, (&str, usize)> = HashMap::new();
    for (name, field) in field.named().unwrap_or_default() {
        let address = listener_address(&field).unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)));
        if address.port() != 0
            && let Some((other, line)) = taken.insert(address, (name, field.node.place.line))
        {
            field.problem(
                format!("{address} is the address of listener `{other}` on line {line} already"),
                Some("give it an address of its own".into()),
            );
        }
        listeners.insert(name.to_owned(), Listener { address });
    }
    listeners
}

fn listener_address(field: &Field<'_>) -> Option<SocketAddr> {
    let section = field.section(LISTENER)?;
    let Some(field) = section.get("address") else {
        section.field.problem("`address` is missing", Some("add address: \"0.0.0.0:8080\"".into()));
        return None;
    };
    accept(field, address::listen(field.text_as("an address such as 0.0.0.0:8080")?))
}

// === services ===

fn services(top: &Section<'_>) -> BTreeMap<String, Service> {
    let Some(field) = top.get("services") else { return BTreeMap::new() };
    let named = field.named().unwrap_or_default();
    named.into_iter().map(|(name, field)| (name.to_owned(), service(&field))).collect()
}

fn service(field: &Field<'_>) -> Service {
    let section = if field.is_null() { None } else { field.section(SERVICE) };
    let Some(section) = section else {
        return Service {
            balance: Balance::default(),
            endpoints: Vec::new(),
            timeouts: Timeouts::default(),
            pool: Pool::default(),
        };
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

fn timeout(field: &Field<'_>) -> Option<Duration> {
    field.duration(TIMEOUT_MIN, TIMEOUT_MAX)
}

fn timeouts(service: &Section<'_>) -> Timeouts {
    let default = Timeouts::default();
    let Some(section) = service.section("timeouts", TIMEOUTS) else { return default };
    let read = |key, default| section.get(key).and_then(timeout).unwrap_or(default);
    Timeouts {
        connect: read("connect", default.connect),
        request: read("request", default.request),
        idle: read("idle", default.idle),
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
    }
}

fn count(section: &Section<'_>, key: &str, from: u64, to: u64, default: usize) -> usize {
    let number = section.get(key).and_then(|field| field.integer(from, to));
    number.and_then(|number| usize::try_from(number).ok()).unwrap_or(default)
}

// === routes ===

fn routes(
    top: &Section<'_>,
    listeners: &BTreeMap<String, Listener>,
    services: &BTreeMap<String, Service>,
) -> Vec<Route> {
    let Some(field) = top.get("routes") else { return Vec::new() };
    let items = field.list("routes").unwrap_or_default();
    if listeners.is_empty() && !items.is_empty() {
        let suggestion = "add listeners: { web: { address: \"0.0.0.0:8080\" } }";
        field.problem("no listener is declared, so no route can be reached", Some(suggestion.into()));
    }
    let mut routes = Vec::with_capacity(items.len());
    let mut names: HashMap<String, usize> = HashMap::new();
    let mut matches: HashMap<MatchKey, (String, usize)> = HashMap::new();
    for item in items {
        let before = item.report.len();
        let Some(section) = item.section(ROUTE) else { continue };
        let route = route(&section, listeners, services);
        let line = item.node.place.line;
        if let Some(line) = route.name.as_ref().and_then(|name| names.insert(name.clone(), line)) {
            let problem = format!("another route has this name, on line {line}");
            let name = section.get("name").unwrap_or(&item);
            name.problem(problem, Some("give each route a name of its own".into()));
        }
        // A match that was read with problems is not what the operator meant, so it is not compared.
        if item.report.len() != before {
            continue;
        }
        let Some(route) = whole(route) else { continue };
        duplicate(&item, &route, listeners.len(), &mut matches);
        routes.push(route);
    }
    routes
}

/// A route as far as it could be read.
struct PartialRoute {
    name: Option<String>,
    listeners: Vec<String>,
    matches: Match,
    service: Option<String>,
    timeout: Option<Duration>,
}

fn whole(route: PartialRoute) -> Option<Route> {
    Some(Route {
        name: route.name?,
        listeners: route.listeners,
        matches: route.matches,
        service: route.service?,
        timeout: route.timeout,
    })
}

fn route(
    section: &Section<'_>,
    listeners: &BTreeMap<String, Listener>,
    services: &BTreeMap<String, Service>,
) -> PartialRoute {
    let name = match section.get("name") {
        Some(field) => field.name().map(str::to_owned),
        None => {
            section.field.problem("`name` is missing", Some("add name: with a name of its own".into()));
            None
        }
    };
    PartialRoute {
        name,
        listeners: section
            .get("listeners")
            .map(|field| route_listeners(field, listeners))
            .unwrap_or_default(),
        matches: section.section("match", MATCH).map(|section| matches(&section)).unwrap_or_default(),
        service: route_service(section, services),
        timeout: section.get("timeout").and_then(timeout),
    }
}

fn route_listeners(field: &Field<'_>, declared: &BTreeMap<String, Listener>) -> Vec<String> {
    let items = field.list("listener names").unwrap_or_default();
    if items.is_empty() && matches!(field.node.value, yaml::Value::List(_)) {
        let suggestion = "leave `listeners` out for every listener, or name one";
        field.problem("the list is empty, so the route could not be reached", Some(suggestion.into()));
    }
    let mut names: Vec<String> = Vec::with_capacity(items.len());
    for item in items {
        let Some(name) = item.text_as("the name of a listener") else { continue };
        if !declared.contains_key(name) {
            let suggestion = match item.report.nearest(name, declared.keys().map(String::as_str)) {
                Some(near) => format!("did you mean `{near}`?"),
                None => "declare it under `listeners`".into(),
            };
            item.problem(format!("there is no listener `{}`", shown(name)), Some(suggestion));
        } else if names.iter().any(|n| n == name) {
            item.problem(format!("`{name}` is in the list already"), Some("remove it".into()));
        } else {
            names.push(name.to_owned());
        }
    }
    names
}

fn route_service(section: &Section<'_>, declared: &BTreeMap<String, Service>) -> Option<String> {
    let names = || declared.keys().map(String::as_str);
    let Some(field) = section.get("service") else {
        let suggestion = match names().next() {
            Some(name) if declared.len() == 1 => format!("add service: {name}"),
            _ => "add service: with the name of one under `services`".into(),
        };
        section.field.problem("`service` is missing", Some(suggestion));
        return None;
    };
    let name = field.name()?;
    if declared.contains_key(name) {
        return Some(name.to_owned());
    }
    let suggestion = match field.report.nearest(name, names()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!(
            "declare it under `services`: `{name}: {{}}` is enough, instances registered under that name join it"
        ),
    };
    field.problem(format!("there is no service `{name}`"), Some(suggestion));
    None
}

fn matches(section: &Section<'_>) -> Match {
    let host = section.get("host").and_then(|field| {
        let text = field.text_as("a host such as api.example.com or *.example.com")?;
        accept(field, address::host_pattern(text))
    });
    if section.get("path").is_some() && section.get("path_prefix").is_some() {
        let suggestion = Some("keep one of them".into());
        section.field.problem("`path` and `path_prefix` cannot both be set", suggestion);
    }
    let path = match (section.get("path"), section.get("path_prefix")) {
        (Some(field), _) => path_text(field).map(PathPattern::Exact),
        (None, Some(field)) => path_prefix(field),
        (None, None) => None,
    };
    Match {
        host: host.unwrap_or(HostPattern::Any),
        path: path.unwrap_or(PathPattern::Any),
        methods: section.get("methods").map(methods).unwrap_or_default(),
    }
}

fn path_text(field: &Field<'_>) -> Option<String> {
    let text = field.text_as("a path such as /v1")?;
    accept(field, address::path(text))?;
    Some(text.to_owned())
}

/// `/` is every path.
fn path_prefix(field: &Field<'_>) -> Option<PathPattern> {
    let text = path_text(field)?;
    if text == "/" {
        return Some(PathPattern::Any);
    }
    if let Some(prefix) = text.strip_suffix('/') {
        field.problem(
            format!("the prefix `{}` ends with `/`", shown(&text)),
            Some(format!("write \"{prefix}\": it matches {prefix} and all below it", prefix = shown(prefix))),
        );
        return None;
    }
    Some(PathPattern::Prefix(text))
}

fn methods(field: &Field<'_>) -> Vec<String> {
    let items = field.list("methods").unwrap_or_default();
    let mut methods: Vec<String> = Vec::with_capacity(items.len());
    for item in items {
        let Some(text) = item.text_as("a method such as GET") else { continue };
        // RFC 9110 section 5.6.2: a token.
        let is_token = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b));
        let upper = text.to_ascii_uppercase();
        if !is_token {
            item.problem(format!("`{}` is not a method", shown(text)), None);
        } else if upper != text {
            let problem = format!("`{}` is not in capitals, and methods are case-sensitive", shown(text));
            item.problem(problem, Some(format!("write {}", shown(&upper))));
        } else if methods.contains(&upper) {
            item.problem(format!("`{}` is in the list already", shown(text)), Some("remove it".into()));
        } else {
            methods.push(upper);
        }
    }
    methods
}

/// What two routes must not have in common.
#[derive(PartialEq, Eq, Hash)]
struct MatchKey {
    listeners: Vec<String>,
    host: (u8, String),
    path: (u8, String),
    methods: Vec<String>,
}

/// Two routes with the same match: the second could never win.
fn duplicate(
    item: &Field<'_>,
    route: &Route,
    listeners: usize,
    seen: &mut HashMap<MatchKey, (String, usize)>,
) {
    let sorted = |names: &[String]| {
        let mut names = names.to_vec();
        names.sort_unstable();
        names
    };
    let key = MatchKey {
        // A list of all listeners is as good as none.
        listeners: if route.listeners.len() == listeners { Vec::new() } else { sorted(&route.listeners) },
        host: match &route.matches.host {
            HostPattern::Any => (0, String::new()),
            HostPattern::Exact(name) => (1, name.clone()),
            HostPattern::Wildcard(name) => (2, name.clone()),
        },
        path: match &route.matches.path {
            PathPattern::Any => (0, String::new()),
            PathPattern::Exact(path) => (1, path.clone()),
            PathPattern::Prefix(path) => (2, path.clone()),
        },
        methods: sorted(&route.matches.methods),
    };
    if let Some((other, line)) = seen.get(&key) {
        item.problem(
            format!("route `{}` matches exactly what route `{other}` on line {line} matches", route.name),
            Some("remove one, or change its match".into()),
        );
        return;
    }
    seen.insert(key, (route.name.clone(), item.node.place.line));
}

// === trusted_proxies, limits ===

fn trusted_proxies(top: &Section<'_>) -> Vec<IpNetwork> {
    let Some(field) = top.get("trusted_proxies") else { return Vec::new() };
    let mut networks = Vec::new();
    for item in field.list("addresses and ranges").unwrap_or_default() {
        let Some(text) = item.text_as("an IP address or a range such as 10.0.0.0/8") else { continue };
        networks.extend(accept(&item, address::network(text)));
    }
    networks
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
