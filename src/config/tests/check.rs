//! One table of inputs and exact messages a rule.

use super::{
    super::document::{Action, HostPattern, Match, PathPattern, Pool, Timeouts},
    actions::{MIRROR, REDIRECT, RESPOND, SHARE},
    auth::{API_KEY, API_KEY_ITEM, BASIC_AUTH, FORWARD_AUTH, JWT},
    listeners::{CONNECTION_RATE, LISTENER},
    policies::{BUDGET, COMPRESS, CORS, HEADER_EDIT, POLICY, RATE_LIMIT, REPLACE_PATH, REQUEST_ID},
    retries::RETRIES,
    routes::{MATCH, ROUTE},
    services::{CIRCUIT_BREAKER, ENDPOINT, HEALTH_CHECK, OUTLIER, POOL, SERVICE, STICKY, TIMEOUTS},
    *,
};

/// The problems of a document, one a line as `gogate check` prints them; nothing when it is valid.
pub(super) fn check(text: &str, expected: &str) {
    let problems = match document(text) {
        Ok(_) => String::new(),
        Err(problems) => problems.iter().map(|p| p.in_file("f") + "\n").collect(),
    };
    let expected: String = expected.lines().map(|line| line.trim_start().to_owned() + "\n").collect();
    assert_eq!(problems, expected, "for the document:\n{text}");
}

/// The same for a document whose line 1 declares listeners `web` and `secure`, and line 2 services `api` and `cart`.
fn check_route(route: &str, expected: &str) {
    let head = "listeners: { web: { address: '0.0.0.0:80' }, secure: { address: '0.0.0.0:81' } }\n\
                services: { api: {}, cart: {} }\nroutes:\n";
    check(&format!("{head}{route}"), expected);
}

fn valid(text: &str) -> Document {
    document(text).unwrap_or_else(|problems| panic!("{problems:#?}"))
}

#[test]
fn a_document_with_every_key_becomes_what_it_says() {
    let document = valid(
        "listeners:
  web: { address: '0.0.0.0:8080' }
  v6: { address: '[::1]:0' }
services:
  api:
    balance: round_robin
    endpoints: [{ address: '10.0.0.1:9000', weight: 5 }, { address: 'Api.Internal:80' }, { address: '[::1]:80' }]
    timeouts: { connect: 250ms, request: 5s, idle: 1m }
    pool: { max_idle: 0, idle_timeout: 10s, max_connections: 7 }
  cart: {}
  late:
routes:
  - name: one
    listeners: [web]
    match: { host: API.example.com, path_prefix: /v1, methods: [GET, POST] }
    service: api
    timeout: 15s
  - { name: two, match: { host: '*.Example.com', path: /a%20b/ }, service: cart }
  - { name: three, match: { path_prefix: / }, service: late }
trusted_proxies: [10.0.0.0/8, '::1', 192.168.1.1]
limits: { header_bytes: 64KiB, headers: 50, uri_bytes: 1024, body_bytes: 10MB, header_timeout: 1s, keep_alive: 2s, body_rate_min: 1KiB, body_rate_grace: 3s, connections: 9 }
forwarded: true
",
    );
    assert_eq!(document.listeners["web"].address, "0.0.0.0:8080".parse().unwrap());
    assert_eq!(document.listeners["v6"].address, "[::1]:0".parse().unwrap());
    let api = &document.services["api"];
    let endpoints: Vec<_> = api.endpoints.iter().map(|e| (e.address.as_str(), e.weight)).collect();
    assert_eq!(endpoints, [("10.0.0.1:9000", 5), ("api.internal:80", 1), ("[::1]:80", 1)]);
    let [connect, request, idle] = [250, 5_000, 60_000].map(Duration::from_millis);
    assert_eq!(api.timeouts, Timeouts { connect, request, idle, stream: idle });
    let idle_timeout = Duration::from_secs(10);
    assert_eq!(api.pool, Pool { max_idle: 0, idle_timeout, max_connections: 7, max_streams: 7 });
    assert_eq!(document.services["late"].timeouts, Timeouts::default());
    let one = &document.routes[0];
    assert_eq!(
        (one.name.as_str(), &one.action, &one.listeners[..]),
        ("one", &Action::Service("api".into()), &["web".into()][..])
    );
    assert_eq!(one.timeout, Some(Duration::from_secs(15)));
    assert_eq!(one.matches.host, HostPattern::Exact("api.example.com".into()));
    assert_eq!(one.matches.path, PathPattern::Prefix("/v1".into()));
    assert_eq!(one.matches.methods, ["GET", "POST"]);
    assert_eq!(document.routes[1].matches.host, HostPattern::Wildcard("example.com".into()));
    assert_eq!(document.routes[1].matches.path, PathPattern::Exact("/a%20b/".into()));
    let every = Match { path: PathPattern::Prefix("/".into()), ..Match::default() };
    assert_eq!(document.routes[2].matches, every);
    assert_eq!(document.trusted_proxies.len(), 3);
    assert_eq!(document.trusted_proxies[1].prefix, 128);
    let limits = &document.limits;
    assert_eq!((limits.header_bytes, limits.headers, limits.uri_bytes), (64 << 10, 50, 1024));
    assert_eq!((limits.body_bytes, limits.connections), (Some(10_000_000), 9));
    assert_eq!((limits.keep_alive, limits.body_rate_grace), (Duration::from_secs(2), Duration::from_secs(3)));
    assert_eq!((limits.body_rate_min, document.forwarded), (1024, true));
}

#[path = "check_services.rs"]
mod services_tests;

#[test]
fn json_is_read_like_yaml() {
    let json = r#"{"services": {"api": {"endpoints": [{"address": "10.0.0.1:80", "weight": 2}]}},
	"routes": [{"name": "a", "match": {"path": "\/x", "methods": ["GET"]}, "service": "api"}], "limits": null}"#;
    let document = valid(json);
    assert_eq!(document.routes[0].matches.path, PathPattern::Exact("/x".into()));
    assert_eq!(document.limits, Limits::default());
    check(
        "{\n\"services\": {\n\"api\": {\"endpoint\": []}}}",
        "f:3: services.api.endpoint: unknown key `endpoint` (did you mean `endpoints`?)",
    );
}

#[test]
fn what_is_left_out_has_its_default() {
    let document = valid("services: { api: {} }");
    assert_eq!(document.listeners, default_listeners());
    assert!(document.routes.is_empty());
    assert_eq!(valid("listeners: {}").listeners.len(), 0);
    assert_eq!(document.limits, Limits::default());
}

#[test]
fn the_examples_are_valid() {
    assert_eq!(valid(EXAMPLE).routes.len(), 1);
    let document = valid(include_str!("../../../docs/examples/gateway.yaml"));
    assert!(document.routes.len() >= 3);
}

/// Every section of the document.
const SECTIONS: &[Keys] = &[
    TOP,
    LISTENER,
    CONNECTION_RATE,
    SERVICE,
    ENDPOINT,
    TIMEOUTS,
    POOL,
    ROUTE,
    MATCH,
    SHARE,
    REDIRECT,
    RESPOND,
    MIRROR,
    POLICY,
    HEADER_EDIT,
    JWT,
    API_KEY,
    API_KEY_ITEM,
    BASIC_AUTH,
    FORWARD_AUTH,
    REQUEST_ID,
    CORS,
    RATE_LIMIT,
    REPLACE_PATH,
    COMPRESS,
    BUDGET,
    LIMITS,
    RETRIES,
    HEALTH_CHECK,
    OUTLIER,
    CIRCUIT_BREAKER,
    STICKY,
];

/// Whether `key:` is in a text, in the words of an operator.
fn writes(text: &str, key: &str) -> bool {
    let is_word = |before: char| before.is_ascii_alphanumeric() || before == '_';
    text.match_indices(&format!("{key}:")).any(|(at, _)| !text[..at].ends_with(is_word))
}

#[test]
fn every_key_is_in_the_documentation() {
    let page = include_str!("../../../docs/configuration.md");
    let example = include_str!("../../../docs/examples/gateway.yaml");
    let mentions = |key: &str| {
        page.match_indices(key).any(|(at, _)| {
            let before = page[..at].ends_with(['`', '.']);
            before && page[at + key.len()..].starts_with(['`', '.', '['])
        })
    };
    for key in SECTIONS.iter().flat_map(|keys| keys.known.iter().chain(keys.later)) {
        assert!(mentions(key), "docs/configuration.md does not say what `{key}` is");
    }
    for key in SECTIONS.iter().flat_map(|keys| keys.known) {
        assert!(writes(example, key), "docs/examples/gateway.yaml does not have `{key}:`");
    }
    for path in super::super::given::PATHS {
        let section = path.rsplit_once('.').map_or(*path, |(section, _)| section);
        let said = page.contains(&format!("`{path}`")) || page.contains(&format!("`{section}`"));
        assert!(said, "docs/configuration.md does not say what `{path}` is");
    }
    assert!(page.contains(EXAMPLE), "docs/configuration.md has another smallest document");
}

#[test]
fn every_key_has_a_test_of_what_it_does() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it");
    // What the tests stand between is no test, and its fields have the keys' names.
    let tests = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|rs| rs == "rs") && !path.ends_with("upstream.rs"));
    let texts: Vec<_> = tests.map(|path| std::fs::read_to_string(path).unwrap()).collect();
    for key in SECTIONS.iter().flat_map(|keys| keys.known) {
        assert!(texts.iter().any(|text| writes(text, key)), "no test in tests/it says what `{key}:` does");
    }
}

#[test]
fn an_empty_document_is_refused_with_an_example() {
    for text in ["", "\n\n", "# nothing\n", "null", "~", "---\n", "\u{feff}"] {
        let problems = document(text).unwrap_err();
        assert_eq!(problems.len(), 1, "for {text:?}");
        assert_eq!(problems[0].problem, "the document is empty");
        assert!(problems[0].suggestion.as_ref().unwrap().ends_with(EXAMPLE.trim_end()));
    }
    check(
        "[]",
        "f:1: expected a mapping with the keys `listeners`, `services`, `routes`, `policies`, `budgets`, `trusted_proxies`, `forwarded` and `limits`, found a list",
    );
    check(
        "hello",
        "f:1: expected a mapping with the keys `listeners`, `services`, `routes`, `policies`, `budgets`, `trusted_proxies`, `forwarded` and `limits`, found `hello`",
    );
}

#[test]
fn unknown_keys_name_the_nearest_and_later_ones_say_so() {
    check("route: []", "f:1: route: unknown key `route` (did you mean `routes`?)");
    check(
        "zzz: 1",
        "f:1: zzz: unknown key `zzz` (the keys here are `listeners`, `services`, `routes`, `policies`, `budgets`, `trusted_proxies`, `forwarded` and `limits`)",
    );
    check(
        "services: { a: { time-outs: {} } }",
        "f:1: services.a.time-outs: unknown key `time-outs` (did you mean `timeouts`?)",
    );
    check(
        "services:\n  a:\n    tls: { verify: true }\ncertificates: { shop: {} }\npolicies:\n",
        "f:3: services.a.tls: `tls` is not supported by this build yet (remove it)
         f:4: certificates: `certificates` is not supported by this build yet (remove it)",
    );
    check(
        "listeners: { a: { address: '127.0.0.1:1', tls: { x: y } } }",
        "f:1: listeners.a.tls: `tls` is not supported by this build yet (remove it)",
    );
}

#[test]
fn wrong_types_say_what_was_expected_and_found() {
    check("services: []", "f:1: services: expected a mapping from names, found a list");
    check(
        "services: { a: 5, b: { pool: true } }",
        "f:1: services.a: expected a mapping with the keys `balance`, `hash_on`, `endpoints`, `timeouts`, `pool`, `health_check`, `outlier`, `circuit_breaker`, `slow_start`, `sticky`, `protocol` and `send_proxy_protocol`, found the number 5
         f:1: services.b.pool: expected a mapping with the keys `max_idle`, `idle_timeout` and `max_connections`, found `true`",
    );
    check("routes: { a: b }", "f:1: routes: expected a list of routes, found a mapping");
    check(
        "trusted_proxies: 10.0.0.0/8",
        "f:1: trusted_proxies: expected a list of addresses and ranges, found `10.0.0.0/8` (write [10.0.0.0/8])",
    );
    check(
        "services: { a: { endpoints: [{ address: 'h:1', weight: '5' }, { address: 'h:2', weight: many }] } }",
        "f:1: services.a.endpoints[0].weight: expected a whole number from 1 to 65535, found the text \"5\" (remove the quotes)
         f:1: services.a.endpoints[1].weight: expected a whole number from 1 to 65535, found `many`",
    );
    check_route(
        "- { name: 123, service: true }",
        "f:4: routes[0].name: expected a name, found the number 123 (put it in quotes: \"123\")
         f:4: routes[0].service: expected a name, found `true` (put it in quotes: \"true\")",
    );
    check(
        "services: { [a]: {}, ? {b: c} : {} }",
        "f:1: services: a key must be text, found a list\nf:1: services: a key must be text, found a mapping",
    );
    check("services: { 'a b': {}, '': {} }",
        "f:1: services: `a b` cannot be a name (names have 1 to 128 letters, digits, `-`, `_` or `.` and begin with a letter or digit)
         f:1: services: `` cannot be a name (names have 1 to 128 letters, digits, `-`, `_` or `.` and begin with a letter or digit)");
}

#[test]
fn keys_that_occur_twice_name_both_lines() {
    check(
        "services:\n  a: {}\n  b: {}\n  a: {}\n",
        "f:4: services.a: `a` is here on line 2 and on line 4 (keep one of them)",
    );
    check(
        "routes: []\nroutes: []",
        "f:2: routes: `routes` is here on line 1 and on line 2 (keep one of them)",
    );
}

#[test]
fn aliases_are_followed_and_merge_keys_are_not() {
    let document = valid("services:\n  a: { timeouts: &slow { request: 60s } }\n  b: { timeouts: *slow }\n");
    assert_eq!(document.services["b"].timeouts.request, Duration::from_secs(60));
    check(
        "services:\n  a: &a { timeouts: {} }\n  b: { <<: *a }\n",
        "f:3: services.b: merge keys are not supported (write the keys out)",
    );
    check("services: !!map { }", "f:1: tags are not supported (remove the `!…`)");
    check(
        "routes: []\n---\nroutes: []",
        "f:2: a second document begins here (keep one document in a file: remove the `---`)",
    );
}

#[test]
fn listeners_have_addresses_of_their_own() {
    check(
        "listeners: { a: }",
        "f:1: listeners.a: expected a mapping with the keys `address`, `protocol`, `service`, `sni`, `proxy_protocol`, `connections`, `connection_rate` and `idle_timeout`, found nothing",
    );
    check("listeners: { a: {} }", "f:1: listeners.a: `address` is missing (add address: \"0.0.0.0:8080\")");
    check(
        "listeners:\n  a: { address: '0.0.0.0:80' }\n  b: { address: '0.0.0.0:80' }\n  c: { address: '0.0.0.0:0' }\n  d: { address: '0.0.0.0:0' }\n",
        "f:3: listeners.b: 0.0.0.0:80 is the address of listener `a` on line 2 already (give it an address of its own)",
    );
    for (address, expected) in [
        ("8080", "`8080` has no port (write \"127.0.0.1:8080\")"),
        (":8080", "the IP address is missing (write \"0.0.0.0:8080\" for every interface)"),
        ("localhost:80", "`localhost` is not an IP address (write \"127.0.0.1:80\")"),
        (
            "web.example.com:80",
            "`web.example.com` is not an IP address (a listener needs an IP address: \"0.0.0.0:80\" or \"127.0.0.1:80\")",
        ),
        ("::1:80", "`::1:80` is not host:port (write \"[::1]:80\")"),
        ("::", "`::` is not host:port (write an IPv6 address in brackets: \"[::1]:8080\")"),
        ("1.2.3.4:65536", "`65536` is not a port (ports are numbers from 0 to 65535)"),
        ("1.2.3.4:+80", "`+80` is not a port (ports are numbers from 0 to 65535)"),
    ] {
        let text = format!("listeners: {{ a: {{ address: '{address}' }} }}");
        check(&text, &format!("f:1: listeners.a.address: {expected}"));
    }
}

#[test]
fn endpoints_are_hosts_with_a_port() {
    for (address, expected) in [
        ("10.0.0.1", "`10.0.0.1` has no port (add a port: \"10.0.0.1:8080\")"),
        ("http://api:9000/x", "`http://api:9000/x` is a URL, not host:port (write \"api:9000\")"),
        ("https://api", "`https://api` is a URL, not host:port (write \"api:443\")"),
        ("api:0", "`0` is not a port (ports are numbers from 1 to 65535)"),
        ("api:", "`` is not a port (ports are numbers from 1 to 65535)"),
        (":80", "the host is missing (write \"127.0.0.1:80\")"),
        ("10.0.0.256:80", "`10.0.0.256` is not an IPv4 address"),
        ("a b:80", "`a b` is not a host name"),
        ("-a:80", "`-a` is not a host name"),
        ("[::g]:80", "`[::g]` is not an IPv6 address"),
        ("fe80::1:80", "`fe80::1:80` is not host:port (write \"[fe80::1]:80\")"),
        ("a:b:80", "`a:b:80` is not host:port (write an IPv6 address in brackets: \"[::1]:8080\")"),
    ] {
        let text = format!("services: {{ s: {{ endpoints: [{{ address: '{address}' }}] }} }}");
        check(&text, &format!("f:1: services.s.endpoints[0].address: {expected}"));
    }
    check(
        "services:\n  s:\n    endpoints:\n    - address: h:1\n    - {}\n    - address: H:1\n    - { address: h:2, weight: 0 }\n",
        "f:5: services.s.endpoints[1]: `address` is missing (add address: \"10.0.0.1:9000\")
         f:6: services.s.endpoints[2].address: `h:1` is an endpoint already, on line 4 (keep one of them; `weight` gives it a larger share)
         f:7: services.s.endpoints[3].weight: expected a whole number from 1 to 65535, found the number 0",
    );
}

#[test]
fn durations_have_units_and_are_never_zero() {
    for (value, expected) in [
        ("5", "expected a duration such as 250ms, 5s, 1m or 24h, found the number 5 (add a unit: 5s or 5ms)"),
        ("0s", "`0s` is not from 1ms to 24h"),
        ("25h", "`25h` is not from 1ms to 24h"),
        ("2d", "expected a duration such as 250ms, 5s, 1m or 24h, found `2d` (write 48h)"),
        (
            "5 sec",
            "expected a duration such as 250ms, 5s, 1m or 24h, found `5 sec` (units are ms, s, m and h)",
        ),
        ("1.5s", "expected a duration such as 250ms, 5s, 1m or 24h, found `1.5s` (units are ms, s, m and h)"),
        ("-1s", "expected a duration such as 250ms, 5s, 1m or 24h, found `-1s`"),
        (
            "99999999999999999999s",
            "expected a duration such as 250ms, 5s, 1m or 24h, found `99999999999999999999s`",
        ),
        ("[]", "expected a duration such as 250ms, 5s, 1m or 24h, found a list"),
    ] {
        let text = format!("services: {{ s: {{ timeouts: {{ connect: {value} }} }} }}");
        check(&text, &format!("f:1: services.s.timeouts.connect: {expected}"));
    }
}

#[test]
fn limits_have_ranges() {
    check(
        "limits:\n  header_bytes: 4KiB\n  headers: 0\n  uri_bytes: 1MB\n  body_bytes: 10 mb\n  header_timeout: 0ms\n  connections: -1\n",
        "f:2: limits.header_bytes: `4KiB` is not from 8192 to 1048576 bytes
         f:3: limits.headers: expected a whole number from 1 to 10000, found the number 0
         f:4: limits.uri_bytes: `1MB` is not from 64 to 65534 bytes
         f:5: limits.body_bytes: expected a size such as 512, 32KiB or 10MB, found `10 mb` (units are B, kB, MB, GB and KiB, MiB, GiB)
         f:6: limits.header_timeout: `0ms` is not from 1ms to 24h
         f:7: limits.connections: expected a whole number from 1 to 10000000, found the number -1",
    );
    check(
        "limits: { header_bytes: 8KiB, uri_bytes: 16KiB }",
        "f:1: limits.uri_bytes: 16384 bytes are more than `header_bytes` allows for the whole head, 8192 (raise `header_bytes` or lower `uri_bytes`)",
    );
}

#[test]
fn routes_are_named_once_and_name_what_is_declared() {
    check_route(
        "- {}\n- { name: r, service: crat, listeners: [wbe, web, web, x1] }\n- { name: r, service: api, listeners: [] }\n- { name: s, service: payments }\n- 7\n",
        "f:4: routes[0]: `name` is missing (add name: with a name of its own)
         f:4: routes[0]: `service` is missing (add service: with the name of one under `services`)
         f:5: routes[1].service: there is no service `crat` (did you mean `cart`?)
         f:5: routes[1].listeners[0]: there is no listener `wbe` (did you mean `web`?)
         f:5: routes[1].listeners[2]: `web` is in the list already (remove it)
         f:5: routes[1].listeners[3]: there is no listener `x1` (declare it under `listeners`)
         f:6: routes[2].name: another route has this name, on line 5 (give each route a name of its own)
         f:6: routes[2].listeners: the list is empty, so the route could not be reached (leave `listeners` out for every HTTP listener, or name one)
         f:7: routes[3].service: there is no service `payments` (declare it under `services`: `payments: {}` is enough, instances registered under that name join it)
         f:8: routes[4]: expected a mapping with the keys `name`, `listeners`, `match`, `service`, `split`, `redirect`, `respond`, `mirror`, `policies`, `allow_encoded_slash`, `timeout` and `retries`, found the number 7",
    );
    check(
        "listeners: {}\nservices: { a: {} }\nroutes: [{ name: r, service: a }, { name: s }]",
        "f:3: routes: no listener is declared, so no route can be reached (add listeners: { web: { address: \"0.0.0.0:8080\" } })
         f:3: routes[1]: `service` is missing (add service: a)",
    );
}

#[test]
fn two_routes_that_match_the_same_are_refused() {
    check_route(
        "- { name: a, service: api, listeners: [web, secure], match: { host: A.com, path: /x, methods: [GET, PUT] } }
- { name: b, service: cart, listeners: [secure, web], match: { host: a.com, path: /x, methods: [PUT, GET] } }
- { name: c, service: api, match: { host: a.com, path: /x, methods: [PUT, GET] } }
- { name: d, service: api, match: { host: a.com, path_prefix: /x }, listeners: [web] }
- { name: e, service: api, match: { path_prefix: / } }
- { name: f, service: api }
",
        "f:5: routes[1]: route `b` matches exactly what route `a` on line 4 matches (remove one, or change its match)
         f:6: routes[2]: route `c` matches exactly what route `a` on line 4 matches (remove one, or change its match)
         f:9: routes[5]: route `f` matches exactly what route `e` on line 8 matches (remove one, or change its match)",
    );
}

#[test]
fn hosts_are_exact_or_begin_with_a_wildcard() {
    for (host, expected) in [
        ("*", "`*` is every host (leave `host` out)"),
        ("a.com:80", "`a.com:80` has a port (write \"a.com\": a route matches its host on every port)"),
        (
            "https://a.com/x",
            "`https://a.com/x` is not a host (write \"a.com\"; paths go to `path` or `path_prefix`)",
        ),
        (
            "a.*.com",
            "`a.*.com` is not a host (a wildcard stands for whole labels at the start: \"*.example.com\")",
        ),
        ("a.com.", "`a.com.` ends with a dot (write \"a.com\")"),
        ("::1", "`::1` has no brackets (write \"[::1]\")"),
        ("a..com", "`a..com` is not a host name"),
        ("1.2.3", "`1.2.3` is not an IPv4 address"),
    ] {
        let route = format!("- {{ name: r, service: api, match: {{ host: '{host}' }} }}\n");
        check_route(&route, &format!("f:4: routes[0].match.host: {expected}"));
    }
    check_route("- { name: r, service: api, match: { host: '[::1]' } }\n", "");
    check_route("- { name: r, service: api, match: { host: '*.co' } }\n", "");
}

#[test]
fn paths_are_written_in_the_form_in_which_requests_are_matched() {
    let normal = "is not in normal form, so that no request would match it";
    for (path, expected) in [
        ("v1", "`v1` does not begin with `/` (write \"/v1\")".to_owned()),
        ("/a//b", format!("`/a//b` {normal} (write \"/a/b\")")),
        ("/a/./b/../c", format!("`/a/./b/../c` {normal} (write \"/a/c\")")),
        ("/a/..", format!("`/a/..` {normal} (write \"/\")")),
        ("/../a/.", format!("`/../a/.` {normal} (write \"/a/\")")),
        ("/%61%2e", format!("`/%61%2e` {normal} (write \"/a.\")")),
        ("/%e4", format!("`/%e4` {normal} (write \"/%E4\")")),
        ("/a?b=c", "`/a?b=c` has more than a path (write \"/a\")".to_owned()),
        (
            "/a b",
            "`/a b` has the character ` `, which no request's path has (write %20 in its place)".to_owned(),
        ),
        (
            "/ä",
            "`/ä` has the character `ä`, which no request's path has (write %C3%A4 in its place)".to_owned(),
        ),
        (
            "/a%2Fb",
            "`/a%2Fb` has an encoded slash, which is refused unless `allow_encoded_slash` is true".to_owned(),
        ),
        ("/a%00", "`/a%00` has an encoded NUL, which is refused in requests".to_owned()),
        ("/a%4", "`/a%4` has a `%` without two hexadecimal digits".to_owned()),
        ("/a%+1", "`/a%+1` has a `%` without two hexadecimal digits".to_owned()),
    ] {
        let route = format!("- {{ name: r, service: api, match: {{ path: '{path}' }} }}\n");
        check_route(&route, &format!("f:4: routes[0].match.path: {expected}"));
    }
    check_route(
        "- { name: r, service: api, match: { path: /a, path_prefix: /a } }\n- { name: s, service: api, match: { path_prefix: /a/ } }",
        "f:4: routes[0].match: `path` and `path_prefix` cannot both be set (keep one of them)
         f:5: routes[1].match.path_prefix: the prefix `/a/` ends with `/` (write \"/a\": it matches /a and all below it)",
    );
}

#[test]
fn methods_are_tokens_in_capitals() {
    check_route(
        "- { name: r, service: api, match: { methods: [get, GET, GET, 'G T', PURGE, 5] } }",
        "f:4: routes[0].match.methods[0]: `get` is not in capitals, and methods are case-sensitive (write GET)
         f:4: routes[0].match.methods[2]: `GET` is in the list already (remove it)
         f:4: routes[0].match.methods[3]: `G T` is not a method
         f:4: routes[0].match.methods[5]: expected a method such as GET, found the number 5 (put it in quotes: \"5\")",
    );
}

#[test]
fn trusted_proxies_are_addresses_and_ranges() {
    check(
        "trusted_proxies:\n- 10.0.0.0/33\n- 10.0.0.1/8\n- ten\n- '::/0'\n- 0.0.0.0/0\n- 10.0.0.0/+8\n",
        "f:2: trusted_proxies[0]: `/33` is not from /0 to /32
         f:3: trusted_proxies[1]: `10.0.0.1/8` has bits beyond its prefix (write 10.0.0.0/8, or 10.0.0.1 for the one address)
         f:4: trusted_proxies[2]: `ten` is not an IP address or a range such as 10.0.0.0/8
         f:7: trusted_proxies[5]: `/+8` is not from /0 to /32",
    );
}

#[test]
fn problems_are_json_as_the_api_answers_them() {
    let problems = document("routes: []\nroute: []\n").unwrap_err();
    let json = serde_json::to_value(&problems).unwrap();
    let expected = serde_json::json!([{
        "line": 2, "column": 1, "path": "route",
        "problem": "unknown key `route`", "suggestion": "did you mean `routes`?",
    }]);
    assert_eq!(json, expected);
}

#[path = "check_hostile.rs"]
mod hostile;

#[path = "check_routes.rs"]
mod routes_section;
