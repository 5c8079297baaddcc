//! `routes`: which requests go where.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use regex_automata::MatchKind;

use super::{
    super::{
        address,
        document::{
            Action, HostPattern, Listener, Match, Mirror, PathPattern, Policy, Retries, Route, Service,
            Wanted,
        },
        field::{Field, Keys, Section},
        path_regex,
        problem::shown,
    },
    accept, actions, items,
    policies::route_policies,
    retries::{RETRIES, retries},
    timeout, undeclared,
};

pub(super) const ROUTE: Keys = Keys {
    known: &[
        "name",
        "listeners",
        "match",
        "service",
        "split",
        "redirect",
        "respond",
        "mirror",
        "policies",
        "allow_encoded_slash",
        "timeout",
        "retries",
    ],
    later: &[],
};
pub(super) const MATCH: Keys =
    Keys { known: &["host", "path", "path_prefix", "path_regex", "methods", "headers", "query"], later: &[] };
/// Fields, or parameters, of one match.
const CONDITIONS_MAX: usize = 16;
/// Bytes of a name or value to match.
const CONDITION_BYTES_MAX: usize = 4 << 10;

pub(super) fn routes(
    top: &Section<'_>,
    listeners: &BTreeMap<String, Listener>,
    services: &BTreeMap<String, Service>,
    policies: &BTreeMap<String, Policy>,
) -> Vec<Route> {
    let Some(field) = top.get("routes") else { return Vec::new() };
    let items = field.list("routes").unwrap_or_default();
    let http = listeners.values().filter(|listener| listener.is_http()).count();
    if http == 0 && !items.is_empty() {
        let kind = if listeners.is_empty() { "listener" } else { "listener for HTTP" };
        let suggestion = "add listeners: { web: { address: \"0.0.0.0:8080\" } }";
        field.problem(format!("no {kind} is declared, so no route can be reached"), Some(suggestion.into()));
    }
    let mut routes = Vec::with_capacity(items.len());
    let mut places = Vec::with_capacity(items.len());
    let mut names: HashMap<String, usize> = HashMap::new();
    let mut matches: HashMap<MatchKey, (String, usize)> = HashMap::new();
    for item in items {
        let before = item.report.len();
        let Some(section) = item.section(ROUTE) else { continue };
        let route = route(&section, listeners, services, policies);
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
        circle(&item, &route);
        duplicate(&item, &route, http, &mut matches);
        routes.push(route);
        places.push(item);
    }
    expressions(&routes, &places);
    routes
}

/// A route as far as it could be read.
struct PartialRoute {
    name: Option<String>,
    listeners: Vec<String>,
    matches: Match,
    action: Option<Action>,
    mirror: Option<Mirror>,
    allow_encoded_slash: bool,
    policies: Vec<String>,
    timeout: Option<Duration>,
    retries: Option<Retries>,
}

fn whole(route: PartialRoute) -> Option<Route> {
    Some(Route {
        name: route.name?,
        listeners: route.listeners,
        matches: route.matches,
        action: route.action?,
        mirror: route.mirror,
        allow_encoded_slash: route.allow_encoded_slash,
        policies: route.policies,
        timeout: route.timeout,
        retries: route.retries,
    })
}

fn route(
    section: &Section<'_>,
    listeners: &BTreeMap<String, Listener>,
    services: &BTreeMap<String, Service>,
    policies: &BTreeMap<String, Policy>,
) -> PartialRoute {
    let name = match section.get("name") {
        Some(field) => field.name().map(str::to_owned),
        None => {
            section.field.problem("`name` is missing", Some("add name: with a name of its own".into()));
            None
        }
    };
    let action = actions::action(section, services);
    let allow_encoded_slash = section.get("allow_encoded_slash").and_then(Field::boolean).unwrap_or_default();
    PartialRoute {
        name,
        listeners: section
            .get("listeners")
            .map(|field| route_listeners(field, listeners))
            .unwrap_or_default(),
        matches: section
            .section("match", MATCH)
            .map(|section| matches(&section, allow_encoded_slash))
            .unwrap_or_default(),
        mirror: actions::mirror(section, action.as_ref(), services),
        action,
        allow_encoded_slash,
        policies: section.get("policies").map(|field| route_policies(field, policies)).unwrap_or_default(),
        timeout: section.get("timeout").and_then(timeout),
        retries: section.section("retries", RETRIES).map(|section| retries(&section)),
    }
}

fn route_listeners(field: &Field<'_>, declared: &BTreeMap<String, Listener>) -> Vec<String> {
    let empty = (
        "the list is empty, so the route could not be reached",
        "leave `listeners` out for every HTTP listener, or name one",
    );
    let items = items(field, "listener names", empty);
    let mut names: Vec<String> = Vec::with_capacity(items.len());
    for item in items {
        let Some(name) = item.text_as("the name of a listener") else { continue };
        let Some(listener) = declared.get(name) else {
            undeclared(&item, "listener", name, declared, "declare it under `listeners`");
            continue;
        };
        if !listener.is_http() {
            let suggestion = "name an `http` listener; the listener itself says where its streams go";
            item.problem(
                format!("`{name}` is not a listener for HTTP, so it has no routes"),
                Some(suggestion.into()),
            );
        } else if names.iter().any(|n| n == name) {
            item.problem(format!("`{name}` is in the list already"), Some("remove it".into()));
        } else {
            names.push(name.to_owned());
        }
    }
    names
}

fn matches(section: &Section<'_>, allow_encoded_slash: bool) -> Match {
    let host = section.get("host").and_then(|field| {
        let text = field.text_as("a host such as api.example.com or *.example.com")?;
        accept(field, address::host_pattern(text))
    });
    let written = |key: &&str| section.get(key).is_some();
    if let [first, second, ..] =
        ["path", "path_prefix", "path_regex"].into_iter().filter(written).collect::<Vec<_>>()[..]
    {
        let suggestion = Some("keep one of them".into());
        section.field.problem(format!("`{first}` and `{second}` cannot both be set"), suggestion);
    }
    let exact =
        section.get("path").map(|field| path_text(field, allow_encoded_slash).map(PathPattern::Exact));
    let prefix = || section.get("path_prefix").map(|field| path_prefix(field, allow_encoded_slash));
    let regex = || section.get("path_regex").map(path_regex);
    Match {
        host: host.unwrap_or(HostPattern::Any),
        path: exact.or_else(prefix).or_else(regex).flatten().unwrap_or(PathPattern::Any),
        methods: section.get("methods").map(methods).unwrap_or_default(),
        headers: section
            .get("headers")
            .map(|field| conditions(field, header_name, header_value))
            .unwrap_or_default(),
        query: section
            .get("query")
            .map(|field| conditions(field, parameter_name, parameter_value))
            .unwrap_or_default(),
    }
}

fn path_text(field: &Field<'_>, allow_encoded_slash: bool) -> Option<String> {
    let text = field.text_as("a path such as /v1")?;
    accept(field, address::path(text, allow_encoded_slash))?;
    Some(text.to_owned())
}

fn path_prefix(field: &Field<'_>, allow_encoded_slash: bool) -> Option<PathPattern> {
    let text = path_text(field, allow_encoded_slash)?;
    if let Some(prefix) = text.strip_suffix('/').filter(|prefix| !prefix.is_empty()) {
        field.problem(
            format!("the prefix `{}` ends with `/`", shown(&text)),
            Some(format!("write \"{prefix}\": it matches {prefix} and all below it", prefix = shown(prefix))),
        );
        return None;
    }
    Some(PathPattern::Prefix(text))
}

fn path_regex(field: &Field<'_>) -> Option<PathPattern> {
    let text = field.text_as("a regular expression such as /users/[0-9]+")?;
    accept(field, path_regex::check(text))?;
    Some(PathPattern::Regex(text.to_owned()))
}

/// Fields or parameters by name. In order of their names, so that two ways to write them are one.
fn conditions(
    field: &Field<'_>,
    name: fn(&str) -> Result<String, address::Refusal>,
    value: fn(&str) -> Result<(), address::Refusal>,
) -> Vec<(String, Wanted)> {
    let mut conditions: Vec<(String, Wanted)> = Vec::new();
    let pairs = field.texts("a mapping from names to values").unwrap_or_default();
    if pairs.len() > CONDITIONS_MAX {
        field.problem(format!("{} conditions are more than {CONDITIONS_MAX}", pairs.len()), None);
        return conditions;
    }
    for (key, field) in pairs {
        let Some(name) = accept(&field, name(key)) else { continue };
        let Some(text) = field.text_as("a value, or \"*\" for any") else { continue };
        if accept(&field, value(text)).is_none() {
            continue;
        }
        if conditions.iter().any(|(known, _)| *known == name) {
            field.problem(format!("`{}` is here twice", shown(&name)), Some("keep one of them".into()));
            continue;
        }
        let wanted = if text == "*" { Wanted::Present } else { Wanted::Value(text.to_owned()) };
        conditions.push((name, wanted));
    }
    conditions.sort();
    conditions
}

fn header_name(name: &str) -> Result<String, address::Refusal> {
    if is_token(name) && name.len() <= CONDITION_BYTES_MAX {
        return Ok(name.to_ascii_lowercase());
    }
    Err((format!("`{}` is not the name of a header field", shown(name)), None))
}

/// Fields arrive without the spaces around their value.
fn header_value(value: &str) -> Result<(), address::Refusal> {
    if value.trim() != value {
        let suggestion = format!("write \"{}\"", shown(value.trim()));
        return Err(("no field's value begins or ends with a space".into(), Some(suggestion)));
    }
    if value.len() > CONDITION_BYTES_MAX || !value.bytes().all(|b| b == b' ' || b.is_ascii_graphic()) {
        return Err((
            format!("a field's value here is at most {CONDITION_BYTES_MAX} ASCII characters"),
            None,
        ));
    }
    Ok(())
}

fn parameter_value(value: &str) -> Result<(), address::Refusal> {
    if value.len() > CONDITION_BYTES_MAX {
        return Err((format!("a parameter's value here is at most {CONDITION_BYTES_MAX} bytes"), None));
    }
    Ok(())
}

fn parameter_name(name: &str) -> Result<String, address::Refusal> {
    if name.is_empty() || name.len() > CONDITION_BYTES_MAX {
        return Err((format!("`{}` is not the name of a query parameter", shown(name)), None));
    }
    Ok(name.to_owned())
}

/// RFC 9110 section 5.6.2.
pub(super) fn is_token(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !text.is_empty() && text.bytes().all(allowed)
}

fn methods(field: &Field<'_>) -> Vec<String> {
    let items = field.list("methods").unwrap_or_default();
    let mut methods: Vec<String> = Vec::with_capacity(items.len());
    for item in items {
        let Some(text) = item.text_as("a method such as GET") else { continue };
        let upper = text.to_ascii_uppercase();
        if !is_token(text) {
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

/// A redirect that sends a client to where it is.
fn circle(item: &Field<'_>, route: &Route) {
    let Action::Redirect(redirect) = &route.action else { return };
    let exact = match &route.matches.path {
        PathPattern::Exact(path) if route.matches.query.is_empty() => Some(path.as_str()),
        _ => None,
    };
    // A policy may have changed the path.
    if route.policies.is_empty() && actions::leads_back(redirect, exact) {
        let suggestion = "name another scheme, host or path in `redirect.to`".into();
        item.problem("the redirect leads back to this route, over and over", Some(suggestion));
    }
}

/// What two routes must not have in common.
#[derive(PartialEq, Eq, Hash)]
struct MatchKey {
    listeners: Vec<String>,
    host: (u8, String),
    path: (u8, String),
    methods: Vec<String>,
    headers: Vec<(String, Wanted)>,
    query: Vec<(String, Wanted)>,
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
            // Every path, which as a prefix comes first.
            PathPattern::Prefix(path) if path == "/" => (0, String::new()),
            PathPattern::Prefix(path) => (2, path.clone()),
            PathPattern::Regex(text) => (3, text.clone()),
        },
        methods: sorted(&route.matches.methods),
        headers: route.matches.headers.clone(),
        query: route.matches.query.clone(),
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

/// Regular expressions that cannot be put together, or that no request reaches.
fn expressions(routes: &[Route], places: &[Field<'_>]) {
    let mut hosts: HashMap<&HostPattern, Vec<usize>> = HashMap::new();
    for (place, route) in routes.iter().enumerate() {
        if matches!(&route.matches.path, PathPattern::Regex(_)) {
            hosts.entry(&route.matches.host).or_default().push(place);
        }
    }
    if hosts.is_empty() {
        return;
    }
    for (place, route) in routes.iter().enumerate() {
        let Some(shadowed) = hosts.get(&route.matches.host) else { continue };
        if !takes_every_path(&route.matches) {
            continue;
        }
        let covers = |other: &&usize| {
            let other = &routes[**other].listeners;
            let named = |name| route.listeners.contains(name);
            route.listeners.is_empty() || (!other.is_empty() && other.iter().all(named))
        };
        for other in shadowed.iter().filter(covers) {
            let (name, line) = (&route.name, places[place].node.place.line);
            places[*other].problem(
                format!("no request reaches this expression: route `{name}` on line {line} takes every path of its host before"),
                Some(format!("leave `path_prefix: /` out of `{name}`: a route without a path comes last")),
            );
        }
    }
    for expressions in hosts.values() {
        let texts = expressions.iter().filter_map(|place| match &routes[*place].matches.path {
            PathPattern::Regex(text) => Some(text.as_str()),
            PathPattern::Any | PathPattern::Exact(_) | PathPattern::Prefix(_) => None,
        });
        if path_regex::together(texts, MatchKind::LeftmostFirst).is_err()
            && let Some(last) = expressions.last()
        {
            let problem = "the regular expressions of this host are too large together";
            places[*last].problem(problem, Some("use `path_prefix` where it is enough".into()));
        }
    }
}

fn takes_every_path(matches: &Match) -> bool {
    matches.path == PathPattern::Prefix("/".into())
        && matches.methods.is_empty()
        && matches.headers.is_empty()
        && matches.query.is_empty()
}
