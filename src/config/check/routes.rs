//! `routes`: which requests go where.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use super::{
    super::{
        address,
        document::{HostPattern, Listener, Match, PathPattern, Route, Service},
        field::{Field, Keys, Section},
        problem::shown,
        yaml,
    },
    accept, timeout,
};

pub(super) const ROUTE: Keys = Keys {
    known: &["name", "listeners", "match", "service", "timeout"],
    later: &["split", "redirect", "respond", "mirror", "policies", "retries"],
};
pub(super) const MATCH: Keys =
    Keys { known: &["host", "path", "path_prefix", "methods"], later: &["path_regex", "headers", "query"] };

pub(super) fn routes(
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
