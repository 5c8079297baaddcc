//! Precedence by tables; then the index against a matcher that knows no index.

use std::sync::LazyLock;

use http::HeaderValue;
use proptest::prelude::*;

use super::*;
use crate::config::document::Action;

/// A route as tests write it.
#[derive(Debug, Clone, Default)]
struct Written {
    host: &'static str,
    /// `/a` exact, `/a*` a prefix, `~/a.+` an expression.
    path: &'static str,
    methods: &'static [&'static str],
    /// A value `*` asks for presence.
    headers: &'static [(&'static str, &'static str)],
    query: &'static [(&'static str, &'static str)],
}

/// A request as tests write it.
#[derive(Debug, Clone)]
struct Sent {
    method: &'static str,
    host: &'static str,
    path: String,
    query: Option<String>,
    headers: Vec<(&'static str, &'static str)>,
}

fn route(written: &Written) -> Route {
    let host = match written.host {
        "" => HostPattern::Any,
        host => host.strip_prefix("*.").map_or_else(
            || HostPattern::Exact(host.to_owned()),
            |suffix| HostPattern::Wildcard(suffix.to_owned()),
        ),
    };
    let path = match (written.path, written.path.strip_prefix('~'), written.path.strip_suffix('*')) {
        ("", ..) => PathPattern::Any,
        (_, Some(text), _) => PathPattern::Regex(text.to_owned()),
        (_, None, Some(prefix)) => PathPattern::Prefix(prefix.to_owned()),
        (path, None, None) => PathPattern::Exact(path.to_owned()),
    };
    let conditions = |pairs: &[(&str, &str)]| {
        let wanted = |value: &str| match value {
            "*" => Wanted::Present,
            value => Wanted::Value(value.to_owned()),
        };
        pairs.iter().map(|(name, value)| ((*name).to_owned(), wanted(value))).collect()
    };
    Route {
        name: String::new(),
        listeners: Vec::new(),
        matches: Match {
            host,
            path,
            methods: written.methods.iter().map(|&name| name.to_owned()).collect(),
            headers: conditions(written.headers),
            query: conditions(written.query),
        },
        action: Action::Service(String::new()),
        mirror: None,
        policies: Vec::new(),
        allow_encoded_slash: false,
        timeout: None,
        retries: None,
    }
}

fn routes(written: &[Written]) -> Vec<Route> {
    written.iter().map(route).collect()
}

/// A request from its line: `GET host/path?query`, then `name: value` a line.
fn sent(text: &'static str) -> Sent {
    let mut lines = text.lines();
    let (method, target) = lines.next().unwrap().split_once(' ').unwrap();
    let (target, query) = match target.split_once('?') {
        Some((target, query)) => (target, Some(query.to_owned())),
        None => (target, None),
    };
    let (host, path) = target.split_at(target.find('/').unwrap());
    let headers = lines.map(|line| line.trim().split_once(": ").unwrap()).collect();
    Sent { method, host, path: path.to_owned(), query, headers }
}

fn ask(index: &RouteIndex, sent: &Sent) -> Found {
    let method = Method::from_bytes(sent.method.as_bytes()).unwrap();
    let mut headers = HeaderMap::new();
    for (name, value) in &sent.headers {
        headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    let query = sent.query.as_deref();
    index.find(&Asked { host: sent.host, path: &sent.path, query, method: &method, headers: &headers })
}

/// Which route each request takes, by place; none is no route.
#[track_caller]
fn check(written: &[Written], expected: &[(&'static str, Option<usize>)]) {
    let index = RouteIndex::new(&routes(written), |_| true).unwrap();
    for (request, route) in expected {
        let route = route.map_or(Found::Nothing, Found::Route);
        assert_eq!(ask(&index, &sent(request)), route, "{request}");
    }
}

fn at(host: &'static str, path: &'static str) -> Written {
    Written { host, path, ..Written::default() }
}

#[test]
fn an_exact_host_beats_a_wildcard_beats_none() {
    let written =
        &[at("", "/a"), at("*.example.com", "/a"), at("*.b.example.com", ""), at("a.example.com", "")];
    check(
        written,
        &[
            ("GET a.example.com/a", Some(3)),
            ("GET A.Example.COM/a", Some(3)),
            ("GET x.example.com/a", Some(1)),
            ("GET x.b.example.com/a", Some(2)),
            ("GET example.com/a", Some(0)),
            ("GET x.example.com/b", None),
        ],
    );
}

#[test]
fn an_exact_path_beats_the_longest_prefix() {
    let written =
        &[at("", "/*"), at("", "/v1*"), at("", "/v1/users*"), at("", "/v1/users"), at("", "/v1/teams/")];
    check(
        written,
        &[
            ("GET h/v1/users", Some(3)),
            ("GET h/v1/users/", Some(2)),
            ("GET h/v1/users/7", Some(2)),
            ("GET h/v1", Some(1)),
            ("GET h/v1/", Some(1)),
            ("GET h/v1/teams", Some(1)),
            ("GET h/v1/teams/", Some(4)),
            ("GET h/v10", Some(0)),
            ("GET h/", Some(0)),
        ],
    );
}

#[test]
fn expressions_match_whole_paths_in_order_after_prefixes_and_before_no_path() {
    let written = &[
        at("", "~/users/[0-9]+"),
        at("", "~/users/.*"),
        at("", "~/(a|ab)"),
        at("", "/users/9*"),
        at("", ""),
        at("h", "~/.+x"),
    ];
    check(
        written,
        &[
            ("GET g/users/7", Some(0)),
            ("GET g/users/7x", Some(1)),
            ("GET h/users/7x", Some(5)),
            ("GET g/users/9", Some(3)),
            ("GET g/ab", Some(2)),
            ("GET g/abc", Some(4)),
            ("GET g/x/users/7", Some(4)),
        ],
    );
}

#[test]
fn an_expression_whose_route_does_not_fit_gives_way_to_the_next() {
    let post = Written { methods: &["POST"], ..at("", "~/a.*") };
    let beta = Written { headers: &[("x-beta", "1")], ..at("", "~/a.*") };
    let written =
        &[at("", "~/ab.*"), post, beta, at("", "~/a[0-9]*"), Written { methods: &["PUT"], ..at("", "~/.*") }];
    check(
        written,
        &[
            ("POST h/a1", Some(1)),
            ("GET h/a1\n x-beta: 1", Some(2)),
            ("POST h/a1\n x-beta: 1", Some(1)),
            ("GET h/a1", Some(3)),
            ("GET h/abc", Some(0)),
            ("PUT h/ax", Some(4)),
        ],
    );
    let index = RouteIndex::new(&routes(written), |_| true).unwrap();
    assert_eq!(ask(&index, &sent("GET h/ax")), Found::OtherMethods(vec![Method::POST, Method::PUT]));
}

#[test]
fn more_conditions_come_first_and_what_does_not_fit_gives_way() {
    let written = &[
        at("", "/a*"),
        Written { query: &[("v", "2")], ..at("", "/a*") },
        Written { query: &[("v", "2"), ("w", "*")], ..at("", "/a*") },
        Written { headers: &[("x-beta", "1")], ..at("", "/a*") },
        Written { headers: &[("x-beta", "1"), ("x-team", "*")], ..at("", "/a*") },
        Written { methods: &["POST"], ..at("", "/a*") },
        Written { methods: &["POST"], headers: &[("x-team", "a b")], ..at("", "/a*") },
    ];
    check(
        written,
        &[
            ("GET h/a", Some(0)),
            ("GET h/a?v=1", Some(0)),
            ("GET h/a?v=1&v=2", Some(1)),
            ("GET h/a?w&v=2", Some(2)),
            ("GET h/a?v=2\n x-beta: 1", Some(3)),
            ("GET h/a\n x-beta: 2\n x-beta: 1", Some(3)),
            ("GET h/a\n x-beta: 10", Some(0)),
            ("GET h/a\n x-beta: 1\n x-team: x", Some(4)),
            ("POST h/a\n x-beta: 1\n x-team: x", Some(5)),
            ("POST h/a\n x-team: a b", Some(6)),
        ],
    );
}

#[test]
fn names_and_values_of_the_query_are_decoded_once() {
    let written = &[Written { query: &[("a b", "c/d"), ("e", "")], ..at("", "/x") }];
    check(
        written,
        &[
            ("GET h/x?a+b=c/d&e", Some(0)),
            ("GET h/x?a%20b=c%2fd&&e=", Some(0)),
            ("GET h/x?a%2520b=c/d&e", None),
            ("GET h/x?a+b=c%252Fd&e", None),
            ("GET h/x?a+b=c/d", None),
            ("GET h/x?a+b=c/d&e=%", None),
            ("GET h/x", None),
        ],
    );
}

#[test]
fn a_refusal_lists_the_methods_of_routes_that_fit_otherwise() {
    let written = &[
        Written { methods: &["PUT", "GET"], ..at("", "/b") },
        Written { methods: &["GET", "PATCH"], ..at("", "/b*") },
        Written { methods: &["DELETE"], headers: &[("x-admin", "1")], ..at("", "/b") },
        Written { methods: &["DELETE"], query: &[("force", "*")], ..at("", "/b") },
    ];
    let index = RouteIndex::new(&routes(written), |_| true).unwrap();
    let others = vec![Method::GET, Method::PATCH, Method::PUT];
    assert_eq!(ask(&index, &sent("DELETE h/b")), Found::OtherMethods(others));
    assert_eq!(ask(&index, &sent("DELETE h/b?force")), Found::Route(3));
    assert_eq!(ask(&index, &sent("DELETE h/c")), Found::Nothing);
}

#[test]
fn a_less_specific_host_takes_what_the_routes_of_a_host_do_not() {
    let written = &[
        Written { methods: &["POST"], ..at("a.b.c", "/x") },
        at("*.b.c", "/y"),
        at("*.c", "/z"),
        at("", "/x"),
    ];
    check(
        written,
        &[
            ("POST a.b.c/x", Some(0)),
            ("GET a.b.c/x", Some(3)),
            ("GET a.b.c/y", Some(1)),
            ("GET a.b.c/z", Some(2)),
        ],
    );
}

#[test]
fn what_is_not_a_path_takes_routes_without_one() {
    let index = RouteIndex::new(&routes(&[at("", "/**"), at("", "")]), |_| true).unwrap();
    let options = Sent { method: "OPTIONS", host: "h", path: "*".into(), query: None, headers: Vec::new() };
    assert_eq!(ask(&index, &options), Found::Route(1));
}

#[test]
fn a_path_of_any_depth_is_matched_without_recursion() {
    let deep = "/a".repeat(30_000);
    let mut route = route(&at("", ""));
    route.matches.path = PathPattern::Prefix(deep.clone());
    let index = RouteIndex::new(&[route], |_| true).unwrap();
    let request = |path| Sent { method: "GET", host: "h", path, query: None, headers: Vec::new() };
    assert_eq!(ask(&index, &request(format!("{deep}/b"))), Found::Route(0));
    assert_eq!(ask(&index, &request(deep[2..].to_owned())), Found::Nothing);
}

/// What decides among ten thousand routes is looked up, whatever it is that tells them apart.
#[test]
fn many_routes_that_differ_in_one_condition_are_not_tried_in_turn() {
    let mut many: Vec<Route> = (0..10_000)
        .map(|number| {
            let mut route = route(&at("", "/a"));
            let value = Wanted::Value(number.to_string());
            match number % 2 {
                0 => route.matches.headers.push(("x-tenant".into(), value)),
                _ => route.matches.query.push(("tenant".into(), value)),
            }
            route
        })
        .collect();
    many.push(route(&Written { methods: &["POST"], ..at("", "/a") }));
    let index = RouteIndex::new(&many, |_| true).unwrap();
    let by_condition = |index: &RouteIndex| {
        let paths = &index.any_host;
        let exact = &paths.tree.nodes[paths.tree.step(ROOT, "a").unwrap()].exact;
        let by_condition = exact.by_condition.as_ref().unwrap();
        (by_condition.rest.len(), by_condition.table.iter().map(|known| known.places.len()).max())
    };
    assert_eq!(by_condition(&index), (1, Some(1)));
    assert_eq!(ask(&index, &sent("GET h/a\n x-tenant: 8000")), Found::Route(8000));
    assert_eq!(ask(&index, &sent("GET h/a?tenant=8001&tenant=7")), Found::Route(7));
    assert_eq!(ask(&index, &sent("GET h/a?tenant=8001\n x-tenant: 9998")), Found::Route(9998));
    assert_eq!(ask(&index, &sent("GET h/a?tenant=8000")), Found::OtherMethods(vec![Method::POST]));
}

// === the index against a matcher without one ===

/// How well a route fits, by the rules as they are written; more is better.
type Rank = ((u8, usize), (u8, usize, Reverse<usize>), bool, usize, usize, Reverse<usize>);

/// Tries every route.
fn naive(routes: &[Route], sent: &Sent) -> Found {
    let mut best: Option<(Rank, usize)> = None;
    let mut methods: Vec<Method> = Vec::new();
    for (place, route) in routes.iter().enumerate() {
        let Some((host, path)) = naive_host(&route.matches.host, sent).zip(naive_path(routes, route, sent))
        else {
            continue;
        };
        let matches = &route.matches;
        let header = |name: &str, wanted: &Wanted| {
            sent.headers.iter().any(|(known, value)| {
                *known == name
                    && (*wanted == Wanted::Present || *wanted == Wanted::Value((*value).to_owned()))
            })
        };
        let parameter = |name: &str, wanted: &Wanted| {
            let pairs = sent.query.as_deref().unwrap_or("").split('&').filter(|pair| !pair.is_empty());
            pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).any(|(known, value)| {
                let (known, value) = (known.replace("%61", "a"), value.replace("%61", "a"));
                known == name && (*wanted == Wanted::Present || *wanted == Wanted::Value(value))
            })
        };
        if !matches.headers.iter().all(|(name, wanted)| header(name, wanted))
            || !matches.query.iter().all(|(name, wanted)| parameter(name, wanted))
        {
            continue;
        }
        if !matches.methods.is_empty() && !matches.methods.iter().any(|method| method == sent.method) {
            methods.extend(matches.methods.iter().map(|name| Method::from_bytes(name.as_bytes()).unwrap()));
            continue;
        }
        let (headers, query) = (matches.headers.len(), matches.query.len());
        let rank = (host, path, !matches.methods.is_empty(), headers, query, Reverse(place));
        if best.is_none_or(|(known, _)| rank > known) {
            best = Some((rank, place));
        }
    }
    methods.sort_by(|a, b| a.as_str().cmp(b.as_str()));
    methods.dedup();
    match best {
        Some((_, place)) => Found::Route(place),
        None if methods.is_empty() => Found::Nothing,
        None => Found::OtherMethods(methods),
    }
}

fn naive_host(pattern: &HostPattern, sent: &Sent) -> Option<(u8, usize)> {
    let host = sent.host.to_lowercase();
    match pattern {
        HostPattern::Any => Some((0, 0)),
        HostPattern::Wildcard(suffix) => host
            .strip_suffix(suffix.as_str())
            .is_some_and(|rest| rest.ends_with('.'))
            .then_some((1, suffix.len())),
        HostPattern::Exact(name) => (host == *name).then_some((2, 0)),
    }
}

fn naive_path(routes: &[Route], route: &Route, sent: &Sent) -> Option<(u8, usize, Reverse<usize>)> {
    let first = Reverse(0);
    match &route.matches.path {
        PathPattern::Any => Some((0, 0, first)),
        PathPattern::Regex(text) => {
            let written = routes.iter().position(|other| {
                other.matches.host == route.matches.host && other.matches.path == route.matches.path
            });
            let whole = &WHOLE.iter().find(|(known, _)| known == text).unwrap().1;
            whole.is_match(&sent.path).then_some((1, 0, Reverse(written.unwrap())))
        }
        PathPattern::Prefix(prefix) => {
            let prefix = prefix.trim_end_matches('/');
            let rest = sent.path.strip_prefix(prefix)?;
            (rest.is_empty() || rest.starts_with('/')).then_some((2, prefix.len(), first))
        }
        PathPattern::Exact(path) => (*path == sent.path).then_some((3, 0, first)),
    }
}

fn any_of<T: Clone + std::fmt::Debug>(values: &'static [T]) -> impl Strategy<Value = T> {
    (0..values.len()).prop_map(move |place| values[place].clone())
}

type Pairs = &'static [(&'static str, &'static str)];

const PATHS: &[&str] = &[
    "", "/*", "/a", "/a/", "/a*", "/a/b", "/a/b*", "/a/b/c*", "/b*", "/", "~/a.*", "~/[ab]", "~/a/.+",
    "~/.*c", "~/a|/b",
];
static WHOLE: LazyLock<Vec<(String, regex::Regex)>> = LazyLock::new(|| {
    let texts = PATHS.iter().filter_map(|path| path.strip_prefix('~'));
    texts.map(|text| (text.to_owned(), regex::Regex::new(&format!("^(?:{text})$")).unwrap())).collect()
});
const METHODS: &[&[&str]] = &[&[], &[], &["GET"], &["POST"], &["GET", "POST"]];
const HEADERS: &[Pairs] = &[
    &[],
    &[],
    &[("h", "1")],
    &[("h", "2")],
    &[("h", "*")],
    &[("g", "1"), ("h", "1")],
    &[("g", "*"), ("h", "*")],
];
const QUERIES: &[Pairs] = &[&[], &[], &[("a", "1")], &[("a", "a")], &[("a", "*")], &[("a", "1"), ("b", "")]];

prop_compose! {
    fn any_route()(
        host in any_of(&["", "", "a.b.c", "x.b.c", "*.b.c", "*.c"]),
        path in any_of(PATHS),
        methods in any_of(METHODS),
        headers in any_of(HEADERS),
        query in any_of(QUERIES),
    ) -> Written {
        Written { host, path, methods, headers, query }
    }
}

prop_compose! {
    fn any_request()(
        method in any_of(&["GET", "POST", "PUT"]),
        host in any_of(&["", "a.b.c", "A.B.C", "x.b.c", "y.x.b.c", "b.c", "c", "z"]),
        path in "(/|(/[abc]{1,2}){1,4}/?)",
        query in proptest::option::of("((a|b|%61)(=(1|2|a|%61)?)?&?){0,3}"),
        headers in proptest::collection::vec(
            any_of(&[("h", "1"), ("h", "2"), ("g", "1"), ("g", "2"), ("i", "1")]), 0..4),
    ) -> Sent {
        Sent { method, host, path, query, headers }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// From few routes to so many of one path that their conditions are looked up.
    #[test]
    fn the_index_agrees_with_trying_every_route(
        written in proptest::collection::vec(any_route(), 0..60),
        one_path in any::<bool>(),
        requests in proptest::collection::vec(any_request(), 1..40),
    ) {
        let written: Vec<Written> =
            written.into_iter().map(|route| if one_path { Written { path: "/a*", ..route } } else { route }).collect();
        let routes = routes(&written);
        let index = RouteIndex::new(&routes, |_| true).unwrap();
        for sent in &requests {
            prop_assert_eq!(ask(&index, sent), naive(&routes, sent), "{:?}", sent);
        }
    }
}

/// The same, chosen by bytes: what a fuzzer can follow.
#[test]
fn the_index_agrees_whatever_is_asked() {
    const HOSTS: [&str; 6] = ["", "a.b.c", "x.b.c", "*.b.c", "*.c", "*.x.b.c"];
    const ASKED: [&str; 8] = ["", "a.b.c", "A.B.C", "x.b.c", "y.x.b.c", "b.c", "c", "z"];
    const SENT: [&str; 12] =
        ["/", "/a", "/a/", "/a/b", "/a/b/", "/a/b/c", "/a/bc", "/ab", "/b", "/b/a", "/a/c/b", "/c/c"];
    const ARGUMENTS: [Option<&str>; 6] =
        [None, Some(""), Some("a=1"), Some("a=%61&b"), Some("b=&a=1"), Some("%61=1")];
    const FIELDS: [Pairs; 5] =
        [&[], &[("h", "1")], &[("h", "2"), ("g", "1")], &[("i", "1")], &[("h", "2"), ("h", "1")]];
    fn of<T: Copy>(values: &[T], byte: u8) -> T {
        values[usize::from(byte) % values.len()]
    }
    bolero::check!().with_iterations(300).with_type::<(Vec<[u8; 5]>, Vec<[u8; 5]>)>().for_each(
        |(routes, requests)| {
            let written = routes.iter().take(40).map(|&[host, path, methods, headers, query]| Written {
                host: of(&HOSTS, host),
                path: of(PATHS, path),
                methods: of(METHODS, methods),
                headers: of(HEADERS, headers),
                query: of(QUERIES, query),
            });
            let routes = self::routes(&written.collect::<Vec<_>>());
            let index = RouteIndex::new(&routes, |_| true).unwrap();
            for &[method, host, path, query, fields] in requests {
                let sent = Sent {
                    method: of(&["GET", "POST", "PUT"], method),
                    host: of(&ASKED, host),
                    path: of(&SENT, path).to_owned(),
                    query: of(&ARGUMENTS, query).map(str::to_owned),
                    headers: of(&FIELDS, fields).to_vec(),
                };
                assert_eq!(ask(&index, &sent), naive(&routes, &sent), "{sent:?}");
            }
        },
    );
}
