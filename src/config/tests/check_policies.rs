//! One table of policies and exact messages a rule.

use std::time::Duration;

use super::{
    super::{Document, document, tests::check},
    *,
};

/// A document whose line 1 declares policy `p` and line 2 a route that has it.
fn check_policy(policy: &str, expected: &str) {
    let rest = "services: { api: {} }\nroutes: [{ name: a, service: api, policies: [p] }]";
    check(&format!("policies: {{ p: {policy} }}\n{rest}"), expected);
}

fn valid(text: &str) -> Document {
    document(text).unwrap_or_else(|problems| panic!("{problems:#?}"))
}

#[test]
fn a_route_names_policies_that_are_there_each_once() {
    let head = "services: { api: {} }\npolicies: { office: { ip_allow: [10.0.0.0/8] } }\nroutes:\n";
    let route = |policies: &str| format!("{head}  - {{ name: a, service: api, policies: {policies} }}");
    assert_eq!(valid(&route("[office]")).routes[0].policies, ["office"]);
    assert!(valid(&route("[]")).routes[0].policies.is_empty());
    check(
        &route("[ofice]"),
        "f:4: routes[0].policies[0]: there is no policy `ofice` (did you mean `office`?)",
    );
    check(
        &route("[zzz]"),
        "f:4: routes[0].policies[0]: there is no policy `zzz` (declare it under `policies`)",
    );
    check(
        &route("[office, office]"),
        "f:4: routes[0].policies[1]: `office` is in the list already (remove it)",
    );
    check(
        &route("office"),
        "f:4: routes[0].policies: expected a list of names of policies, found `office` (write [office])",
    );
}

#[test]
fn a_policy_does_something_that_is_known() {
    check_policy("{}", "f:1: policies.p: the policy does nothing (give it a kind, or remove it)");
    check_policy(
        "{ ip_alow: [::1] }",
        "f:1: policies.p.ip_alow: unknown key `ip_alow` (did you mean `ip_allow`?)",
    );
}

#[test]
fn address_lists_have_addresses() {
    check_policy("{ ip_allow: [10.0.0.0/8, '::1'], ip_deny: [10.0.0.7] }", "");
    check_policy(
        "{ ip_deny: [] }",
        "f:1: policies.p.ip_deny: the list is empty (name an address or a range such as 10.0.0.0/8)",
    );
    check_policy(
        "{ ip_deny: [localhost] }",
        "f:1: policies.p.ip_deny[0]: `localhost` is not an IP address or a range such as 10.0.0.0/8",
    );
}

#[test]
fn header_edits_leave_the_framing_alone() {
    check_policy(
        "{ request_headers: { set: { X-A: b, Host: internal }, add: { X-B: c }, remove: [Cookie] } }",
        "",
    );
    check_policy(
        "{ response_headers: {} }",
        "f:1: policies.p.response_headers: it changes nothing (add set, add or remove)",
    );
    check_policy(
        "{ request_headers: { set: { Content-Length: '7' } } }",
        "f:1: policies.p.request_headers.set.Content-Length: `content-length` frames or addresses the message and is the gateway's alone (remove it)",
    );
    check_policy(
        "{ request_headers: { remove: [host] } }",
        "f:1: policies.p.request_headers.remove[0]: `host` frames or addresses the message and is the gateway's alone (remove it)",
    );
    check_policy(
        "{ response_headers: { add: { 'a b': c } } }",
        "f:1: policies.p.response_headers.add.a b: `a b` cannot be the name of a header field",
    );
    check_policy(
        "{ response_headers: { add: { X-A: \"b\\nc\" } } }",
        "f:1: policies.p.response_headers.add.X-A: `b\\nc` cannot be the value of a header field (use visible ASCII characters, spaces and tabs)",
    );
}

fn kinds(policy: &str) -> Vec<PolicyKind> {
    let document =
        valid(&format!("policies: {{ p: {policy} }}\nbudgets: {{ b: {{ rate: 1, scope: node }} }}"));
    document.policies["p"].kinds.clone()
}

#[test]
fn a_kind_that_cannot_add_up_is_once_on_a_route() {
    check(
        "services: { api: {} }
policies: { a: { strip_prefix: /v1, ip_deny: [::1] }, b: { strip_prefix: /v2, ip_deny: [::1] } }
routes: [{ name: r, service: api, policies: [a, b] }]",
        "f:3: routes[0].policies[1]: `b` has `strip_prefix`, which the route has of `a` already (a route has it once: keep one of them)",
    );
}

#[test]
fn budgets_count_for_each_node_and_say_so() {
    let budget = |text: &str| format!("budgets: {{ b: {text} }}");
    let document = valid(&budget("{ rate: 100, per: 1m, burst: 10, key: 'header:X-Key', scope: node }"));
    let key = BudgetKey::Header(HeaderName::from_static("x-key"));
    assert_eq!(document.budgets["b"], Budget { rate: 100, per: Duration::from_secs(60), burst: 10, key });
    let document = valid(&budget("{ rate: 5, scope: node }"));
    let per = Duration::from_secs(1);
    assert_eq!(document.budgets["b"], Budget { rate: 5, per, burst: 5, key: BudgetKey::Global });
    let document = valid(&budget("{ rate: 5, key: 'claim:sub', scope: node }"));
    assert_eq!(document.budgets["b"].key, BudgetKey::Claim("sub".into()));
    const SAID: &str = "`scope: cluster`, which is the default, is not supported by this build yet (write scope: node, so that each node counts for itself)";
    check(&budget("{ rate: 5 }"), &format!("f:1: budgets.b: {SAID}"));
    check(&budget("{ rate: 5, scope: cluster }"), &format!("f:1: budgets.b.scope: {SAID}"));
    for (text, expected) in [
        ("{ scope: node }", "budgets.b: `rate` is missing (add rate: 100)"),
        (
            "{ rate: 2000, per: 1ms, scope: node }",
            "budgets.b: 2000 in 1ms is more than a million a second (so many need no limit: leave it out)",
        ),
        (
            "{ rate: 1, scope: node, key: clientip }",
            "budgets.b.key: `clientip` is not a key of a budget (did you mean `client_ip`?)",
        ),
        (
            "{ rate: 1, scope: node, key: 'claim:' }",
            "budgets.b.key: `claim:` is not a key of a budget (write global, client_ip, header:NAME, claim:NAME or route)",
        ),
        (
            "{ rate: 1, scope: node, on_partition: deny }",
            "budgets.b.on_partition: `on_partition` is not supported by this build yet (remove it)",
        ),
    ] {
        check(&budget(text), &format!("f:1: {expected}"));
    }
    check(
        "policies: { p: { rate_limit: { budget: fre } } }\nbudgets: { free: { rate: 1, scope: node } }",
        "f:1: policies.p.rate_limit.budget: there is no budget `fre` (did you mean `free`?)",
    );
    check_policy(
        "{ rate_limit: {} }",
        "f:1: policies.p.rate_limit: `budget` is missing (add budget: with the name of one under `budgets`)",
    );
}

#[test]
fn origins_are_written_as_browsers_write_them() {
    let cors = "{ cors: { allowed_origins: ['https://A.example', 'https://*.b.example:8443'], credentials: true, max_age: 1h } }";
    let [PolicyKind::Cors(cors)] = &kinds(cors)[..] else { panic!() };
    let below = Origin::Below { scheme: "https://".into(), suffix: ".b.example:8443".into() };
    assert_eq!(cors.allowed_origins, [Origin::Exact("https://a.example".into()), below]);
    assert_eq!((cors.credentials, cors.max_age), (true, Some(Duration::from_secs(3600))));
    let origin = |origin: &str, expected: &str| {
        let expected =
            format!("f:1: policies.p.cors.allowed_origins[0]: `{origin}` is not an origin ({expected})");
        check_policy(&format!("{{ cors: {{ allowed_origins: ['{origin}'] }} }}"), &expected);
    };
    origin("app.example", "write the scheme as well: \"https://app.example\"");
    origin("https://app.example/", "write \"https://app.example\"");
    origin("https://a.example:443", "browsers leave the scheme's own port out: \"https://a.example\"");
    origin("https://*", "write one such as \"https://app.example.com\" or \"https://*.example.com\"");
    check_policy(
        "{ cors: {} }",
        "f:1: policies.p.cors: `allowed_origins` is missing (add allowed_origins: [\"https://app.example.com\"])",
    );
    check_policy(
        "{ cors: { allowed_origins: ['*'], credentials: true } }",
        "f:1: policies.p.cors: `credentials: true` with the origin `*` would let every site act as whoever visits it (name the origins, or leave `credentials` out)",
    );
    check_policy(
        "{ cors: { allowed_origins: ['*', 'https://a.example'] } }",
        "f:1: policies.p.cors.allowed_origins: `*` allows the other origins as well (keep `*` or name the origins)",
    );
}

#[test]
fn paths_are_rewritten_to_paths() {
    check_policy(
        "{ strip_prefix: /v1, add_prefix: /api, replace_path: { regex: '^/a(.*)$', with: '/b${1}' } }",
        "",
    );
    check_policy(
        "{ strip_prefix: /v1/ }",
        "f:1: policies.p.strip_prefix: the prefix `/v1/` ends with `/` (write \"/v1\")",
    );
    check_policy(
        "{ add_prefix: api }",
        "f:1: policies.p.add_prefix: `api` does not begin with `/` (write \"/api\")",
    );
    check_policy(
        "{ replace_path: { regex: '(', with: /b } }",
        "f:1: policies.p.replace_path.regex: `(` is not a regular expression: unclosed group",
    );
    check_policy(
        "{ replace_path: { regex: a, with: '/b?c' } }",
        "f:1: policies.p.replace_path.with: `/b?c` has the character `?`, which no path has",
    );
    check_policy(
        "{ replace_path: { regex: a } }",
        "f:1: policies.p.replace_path: `with` is missing (write { regex: \"^/old/(.*)$\", with: \"/new/$1\" })",
    );
}

#[test]
fn ids_and_codings_are_known_ones() {
    let policy = RequestIdPolicy { header: HeaderName::from_static("x-id"), trust: TrustId::Proxies };
    assert_eq!(kinds("{ request_id: { header: X-Id, trust: proxies } }"), [PolicyKind::RequestId(policy)]);
    assert_eq!(kinds("{ compress: {} }"), [PolicyKind::Compress(Compress::default())]);
    let [PolicyKind::Compress(compress)] =
        &kinds("{ compress: { codings: [gzip], min_bytes: 0, types: [Text/*] } }")[..]
    else {
        panic!()
    };
    assert_eq!((&compress.codings[..], compress.min_bytes), (&[Coding::Gzip][..], 0));
    assert_eq!(compress.types, ["text/*"]);
    check_policy(
        "{ compress: { codings: [deflate] } }",
        "f:1: policies.p.compress.codings[0]: expected `zstd`, `br` or `gzip`, found `deflate`",
    );
    check_policy(
        "{ compress: { types: ['a*b'] } }",
        "f:1: policies.p.compress.types[0]: `a*b` is not a media type (write one such as text/html, text/* or *+json)",
    );
    check_policy(
        "{ max_in_flight: 0 }",
        "f:1: policies.p.max_in_flight: expected a whole number from 1 to 10000000, found the number 0",
    );
    check_policy(
        "{ body_limit: big }",
        "f:1: policies.p.body_limit: expected a size such as 512, 32KiB or 10MB, found `big` (units are B, kB, MB, GB and KiB, MiB, GiB)",
    );
}
