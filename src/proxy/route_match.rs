//! Which route a request takes: precedence, its index, and the one form of a path.
//!
//! Precedence (CONTRACT.md): an exact host beats a wildcard (the longest first), which beats no host; then an
//! exact path, then the longest prefix; then routes that ask for a method; then the document's order. A route
//! that does not take the method gives way to the next one.
//! Invariant: the cost of a match depends on the length of host and path, never on the number of routes: hosts,
//! exact paths and each segment of a prefix are looked up by hash. Neighbours: `table` builds the index, `http` asks.

use std::{borrow::Cow, collections::HashMap};

use http::Method;

use crate::config::document::{HostPattern, PathPattern, Route};

/// Routes of one listener, ready to be asked.
#[derive(Debug, Default)]
pub(super) struct RouteIndex {
    exact_hosts: HashMap<Box<str>, PathIndex>,
    /// Keyed by what follows `*.`.
    wildcard_hosts: HashMap<Box<str>, PathIndex>,
    any_host: PathIndex,
}

/// What a match found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The route's place in the document.
    Route(usize),
    /// The path is known, but not with this method; these are.
    OtherMethods(Vec<Method>),
    /// No route.
    Nothing,
}

/// Why a path is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BadPath;

#[derive(Debug, Default)]
struct PathIndex {
    exact: HashMap<Box<str>, Vec<Candidate>>,
    prefixes: Segment,
}

/// A node of the tree of prefixes: one path segment.
#[derive(Debug, Default)]
struct Segment {
    below: HashMap<Box<str>, Segment>,
    candidates: Vec<Candidate>,
}

#[derive(Debug)]
struct Candidate {
    route: usize,
    /// Empty: any.
    methods: Box<[Method]>,
}

/// One search: the method asked for, and what was seen on the way.
struct Search<'a> {
    method: &'a Method,
    other_methods: Vec<Method>,
}

// === impl RouteIndex ===

impl RouteIndex {
    /// Indexes those of the document's routes that `serves` lets through.
    pub(super) fn new(routes: &[Route], serves: impl Fn(&Route) -> bool) -> RouteIndex {
        let mut index = RouteIndex::default();
        for (place, route) in routes.iter().enumerate().filter(|(_, route)| serves(route)) {
            let paths = match &route.matches.host {
                HostPattern::Any => &mut index.any_host,
                HostPattern::Exact(host) => index.exact_hosts.entry(host.as_str().into()).or_default(),
                HostPattern::Wildcard(suffix) => {
                    index.wildcard_hosts.entry(suffix.as_str().into()).or_default()
                }
            };
            let methods = route.matches.methods.iter();
            let methods = methods.filter_map(|name| Method::from_bytes(name.as_bytes()).ok());
            let candidates = match &route.matches.path {
                PathPattern::Any => &mut paths.prefixes.candidates,
                PathPattern::Exact(path) => paths.exact.entry(path.as_str().into()).or_default(),
                PathPattern::Prefix(prefix) => paths.prefixes.descend(prefix),
            };
            candidates.push(Candidate { route: place, methods: methods.collect() });
            // Stable: the document's order stays the last rule.
            candidates.sort_by_key(|candidate| candidate.methods.is_empty());
        }
        index
    }

    /// The route for a request. `host` is without its port, `path` in its normal form.
    pub(super) fn find(&self, host: &str, path: &str, method: &Method) -> Found {
        let lower: Cow<'_, str> = if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
            host.to_ascii_lowercase().into()
        } else {
            host.into()
        };
        let mut search = Search { method, other_methods: Vec::new() };
        if let Some(route) = self.find_by_host(&lower, path, &mut search) {
            return Found::Route(route);
        }
        if search.other_methods.is_empty() { Found::Nothing } else { search.into_other_methods() }
    }

    fn find_by_host(&self, host: &str, path: &str, search: &mut Search<'_>) -> Option<usize> {
        if !self.exact_hosts.is_empty()
            && let Some(route) = self.exact_hosts.get(host).and_then(|paths| paths.find(path, search))
        {
            return Some(route);
        }
        if !self.wildcard_hosts.is_empty() {
            let mut rest = host;
            while let Some((_, suffix)) = rest.split_once('.') {
                rest = suffix;
                if let Some(route) = self.wildcard_hosts.get(rest).and_then(|paths| paths.find(path, search))
                {
                    return Some(route);
                }
            }
        }
        self.any_host.find(path, search)
    }
}

// === impl PathIndex, Segment, Search ===

impl PathIndex {
    fn find(&self, path: &str, search: &mut Search<'_>) -> Option<usize> {
        if !self.exact.is_empty()
            && let Some(route) = self.exact.get(path).and_then(|candidates| search.choose(candidates))
        {
            return Some(route);
        }
        self.prefixes.find(path.strip_prefix('/').unwrap_or(path), search)
    }
}

impl Segment {
    /// The candidates of a prefix; a slash at its end says nothing, as in the Gateway API.
    fn descend(&mut self, prefix: &str) -> &mut Vec<Candidate> {
        let mut segment = self;
        for name in prefix.split('/').filter(|name| !name.is_empty()) {
            segment = segment.below.entry(name.into()).or_default();
        }
        &mut segment.candidates
    }

    /// The deepest segment first: the longest prefix wins. Goes no deeper than the longest prefix written.
    fn find(&self, rest: &str, search: &mut Search<'_>) -> Option<usize> {
        if !self.below.is_empty() {
            let (name, rest) = rest.split_once('/').unwrap_or((rest, ""));
            if let Some(below) = self.below.get(name)
                && let Some(route) = below.find(rest, search)
            {
                return Some(route);
            }
        }
        search.choose(&self.candidates)
    }
}

impl Search<'_> {
    fn choose(&mut self, candidates: &[Candidate]) -> Option<usize> {
        for candidate in candidates {
            if candidate.methods.is_empty() || candidate.methods.contains(self.method) {
                return Some(candidate.route);
            }
            self.other_methods.extend_from_slice(&candidate.methods);
        }
        None
    }

    fn into_other_methods(mut self) -> Found {
        self.other_methods.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        self.other_methods.dedup();
        Found::OtherMethods(self.other_methods)
    }
}

// === paths ===

/// A path in its one form, for routing and for what is sent upstream: no dot segments, no doubled slashes,
/// unreserved characters (RFC 3986, section 2.3) not percent-encoded. An encoded slash, a NUL and a broken
/// percent-encoding are refused: endpoints disagree on what they mean. Borrowed if it is in that form already.
pub(super) fn normalize(path: &str) -> Result<Cow<'_, str>, BadPath> {
    if is_normal(path.as_bytes()) {
        return Ok(path.into());
    }
    let decoded = decode_unreserved(path.as_bytes())?;
    let mut normal = String::with_capacity(decoded.len());
    let mut segments = decoded.split('/').peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        match segment {
            "" | "." => {}
            ".." => normal.truncate(normal.rfind('/').unwrap_or(0)),
            _ => {
                normal.push('/');
                normal.push_str(segment);
            }
        }
        if is_last && matches!(segment, "" | "." | "..") {
            normal.push('/');
        }
    }
    Ok(normal.into())
}

fn is_normal(path: &[u8]) -> bool {
    let mut after_slash = false;
    for (place, byte) in path.iter().enumerate() {
        match byte {
            b'%' | 0 => return false,
            b'/' if after_slash => return false,
            // `/.well-known` is normal; whatever could be a dot segment is looked at closely.
            b'.' if after_slash && matches!(path.get(place + 1), None | Some(b'/' | b'.')) => return false,
            _ => {}
        }
        after_slash = *byte == b'/';
    }
    path.first() == Some(&b'/')
}

fn decode_unreserved(path: &[u8]) -> Result<String, BadPath> {
    let digit = |byte: u8| (byte as char).to_digit(16);
    let mut decoded = String::with_capacity(path.len());
    let mut bytes = path.iter();
    while let Some(byte) = bytes.next() {
        if *byte == 0 || !byte.is_ascii() {
            return Err(BadPath);
        }
        if *byte != b'%' {
            decoded.push(char::from(*byte));
            continue;
        }
        let high = bytes.next().and_then(|byte| digit(*byte)).ok_or(BadPath)?;
        let low = bytes.next().and_then(|byte| digit(*byte)).ok_or(BadPath)?;
        let value = u8::try_from(high * 16 + low).map_err(|_| BadPath)?;
        match value {
            0 | b'/' => return Err(BadPath),
            b'-' | b'.' | b'_' | b'~' => decoded.push(char::from(value)),
            _ if value.is_ascii_alphanumeric() => decoded.push(char::from(value)),
            _ => {
                const HEX: &[u8; 16] = b"0123456789ABCDEF";
                decoded.push('%');
                decoded.push(char::from(HEX[usize::from(value >> 4)]));
                decoded.push(char::from(HEX[usize::from(value & 15)]));
            }
        }
    }
    Ok(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::document::Match;

    fn route(host: &str, path: &str, methods: &[&str]) -> Route {
        let host = match host {
            "" => HostPattern::Any,
            host => host.strip_prefix("*.").map_or_else(
                || HostPattern::Exact(host.to_owned()),
                |suffix| HostPattern::Wildcard(suffix.to_owned()),
            ),
        };
        let path = match path {
            "" => PathPattern::Any,
            path => path.strip_suffix('*').map_or_else(
                || PathPattern::Exact(path.to_owned()),
                |prefix| PathPattern::Prefix(prefix.to_owned()),
            ),
        };
        let methods = methods.iter().map(|&name| name.to_owned()).collect();
        Route {
            name: String::new(),
            listeners: Vec::new(),
            matches: Match { host, path, methods },
            service: String::new(),
            timeout: None,
        }
    }

    #[track_caller]
    fn check(routes: &[(&str, &str, &[&str])], request: (&str, &str, &str), expected: Found) {
        let routes: Vec<Route> =
            routes.iter().map(|(host, path, methods)| route(host, path, methods)).collect();
        let index = RouteIndex::new(&routes, |_| true);
        let (host, path, method) = request;
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        assert_eq!(index.find(host, path, &method), expected, "{request:?}");
    }

    #[test]
    fn an_exact_host_beats_a_wildcard_beats_none() {
        let routes: &[(&str, &str, &[&str])] = &[
            ("", "/a", &[]),
            ("*.example.com", "/a", &[]),
            ("*.b.example.com", "", &[]),
            ("a.example.com", "", &[]),
        ];
        check(routes, ("a.example.com", "/a", "GET"), Found::Route(3));
        check(routes, ("A.Example.COM", "/a", "GET"), Found::Route(3));
        check(routes, ("x.example.com", "/a", "GET"), Found::Route(1));
        check(routes, ("x.b.example.com", "/a", "GET"), Found::Route(2));
        check(routes, ("example.com", "/a", "GET"), Found::Route(0));
        check(routes, ("x.example.com", "/b", "GET"), Found::Nothing);
    }

    #[test]
    fn an_exact_path_beats_the_longest_prefix() {
        let routes: &[(&str, &str, &[&str])] =
            &[("", "/*", &[]), ("", "/v1*", &[]), ("", "/v1/users*", &[]), ("", "/v1/users", &[])];
        check(routes, ("h", "/v1/users", "GET"), Found::Route(3));
        check(routes, ("h", "/v1/users/7", "GET"), Found::Route(2));
        check(routes, ("h", "/v1", "GET"), Found::Route(1));
        check(routes, ("h", "/v1/", "GET"), Found::Route(1));
        check(routes, ("h", "/v10", "GET"), Found::Route(0));
    }

    #[test]
    fn a_route_that_asks_for_the_method_comes_first_and_a_refusal_lists_what_is_allowed() {
        let routes: &[(&str, &str, &[&str])] =
            &[("", "/a*", &[]), ("", "/a*", &["POST"]), ("", "/b", &["PUT", "GET"]), ("", "/b", &["GET"])];
        check(routes, ("h", "/a", "POST"), Found::Route(1));
        check(routes, ("h", "/a", "GET"), Found::Route(0));
        check(routes, ("h", "/b", "GET"), Found::Route(2));
        check(routes, ("h", "/b", "DELETE"), Found::OtherMethods(vec![Method::GET, Method::PUT]));
    }

    #[test]
    fn a_path_has_one_form() {
        for (path, expected) in [
            ("/", Some("/")),
            ("/a/b", Some("/a/b")),
            ("/.well-known/x", Some("/.well-known/x")),
            ("/a//b///c", Some("/a/b/c")),
            ("/a/./b/../c", Some("/a/c")),
            ("/a/..", Some("/")),
            ("/a/b/..", Some("/a/")),
            ("/../../etc", Some("/etc")),
            ("/%2e%2E/x", Some("/x")),
            ("/%7euser/%41", Some("/~user/A")),
            ("/a%20b%3f", Some("/a%20b%3F")),
            ("/a/", Some("/a/")),
            ("/a/.", Some("/a/")),
            ("/a%2fb", None),
            ("/a%00", None),
            ("/a%zz", None),
            ("/a%2", None),
        ] {
            assert_eq!(normalize(path).ok().as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn a_normal_path_is_borrowed() {
        assert!(matches!(normalize("/v1/orders/7.json"), Ok(Cow::Borrowed(_))));
    }
}
