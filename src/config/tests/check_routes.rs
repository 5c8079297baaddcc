//! Routes: what they match, each rule's exact message.

use super::{
    super::super::document::{PathPattern, Wanted},
    check_route, valid,
};

/// A document with one route that has this match.
fn check_match(text: &str, expected: &str) {
    check_route(&format!("- {{ name: r, service: api, match: {{ {text} }} }}\n"), expected);
}

#[test]
fn conditions_become_what_they_say() {
    let document = valid(
        "services: { api: {} }
routes:
  - name: a
    match: { path_regex: '/users/[0-9]+', headers: { X-Team: '*', X-Beta: '1' }, query: { v: '2', 'a b': 'ä' } }
    service: api
  - { name: b, match: { path: /a%2Fb }, allow_encoded_slash: true, service: api }
",
    );
    let matches = &document.routes[0].matches;
    assert_eq!(matches.path, PathPattern::Regex("/users/[0-9]+".into()));
    let value = |text: &str| Wanted::Value(text.into());
    assert_eq!(matches.headers, [("x-beta".into(), value("1")), ("x-team".into(), Wanted::Present)]);
    assert_eq!(matches.query, [("a b".into(), value("ä")), ("v".into(), value("2"))]);
    assert!(document.routes[1].allow_encoded_slash && !document.routes[0].allow_encoded_slash);
}

#[test]
fn header_fields_and_parameters_have_names_and_values() {
    let at = "f:4: routes[0].match.";
    for (text, expected) in [
        ("headers: []", "headers: expected a mapping from names to values, found a list".to_owned()),
        ("headers: { 'x y': '1' }", "headers.x y: `x y` is not the name of a header field".to_owned()),
        (
            "headers: { x: 1 }",
            "headers.x: expected a value, or \"*\" for any, found the number 1 (put it in quotes: \"1\")"
                .to_owned(),
        ),
        (
            "headers: { x: ' 1' }",
            "headers.x: no field's value begins or ends with a space (write \"1\")".to_owned(),
        ),
        (
            "headers: { x: 'ä' }",
            "headers.x: a field's value here is at most 4096 ASCII characters".to_owned(),
        ),
        ("headers: { x: '1', X: '2' }", "headers.X: `x` is here twice (keep one of them)".to_owned()),
        ("query: { '': '1' }", "query.: `` is not the name of a query parameter".to_owned()),
    ] {
        check_match(text, &format!("{at}{expected}"));
    }
    let many: String = (0..17).map(|number| format!("x{number}: '*', ")).collect();
    check_match(
        &format!("headers: {{ {many} }}"),
        "f:4: routes[0].match.headers: 17 conditions are more than 16",
    );
}

#[test]
fn expressions_that_cannot_be_built_say_why() {
    for (text, expected) in [
        ("/a(b", "not a regular expression: unclosed group"),
        ("/a)(b", "not a regular expression: unopened group"),
        ("/[b-a]", "not a regular expression: invalid character class range, the start must be <= the end"),
        (r"/\p{Greek}", "not a regular expression: Unicode not allowed here"),
        (
            "/([a-z]{1,1000}){1,1000}",
            "the expression is too large (use smaller repetitions, or `path_prefix`)",
        ),
    ] {
        check_match(
            &format!("path_regex: '{text}'"),
            &format!("f:4: routes[0].match.path_regex: {expected}"),
        );
    }
    check_match(
        "path: /a, path_regex: /b",
        "f:4: routes[0].match: `path` and `path_regex` cannot both be set (keep one of them)",
    );
}

#[test]
fn an_expression_that_no_request_reaches_is_refused() {
    check_route(
        "- { name: a, service: api, match: { path_regex: '/x.*' } }
- { name: b, service: api, match: { path_prefix: / } }
- { name: c, service: api, match: { host: a.com, path_regex: '/x.*' } }
- { name: d, service: api, match: { host: a.com, path_prefix: /, methods: [GET] } }
- { name: e, service: api, match: { host: b.com, path_regex: '/x.*' } }
- { name: f, service: api, match: { host: b.com } }
- { name: g, service: api, match: { host: c.com, path_regex: '/x.*' } }
- { name: h, service: api, match: { host: c.com, path_prefix: / }, listeners: [web] }
",
        "f:4: routes[0]: no request reaches this expression: route `b` on line 5 takes every path of its host before (leave `path_prefix: /` out of `b`: a route without a path comes last)",
    );
}

#[test]
fn expressions_of_a_host_that_are_too_large_together_are_refused() {
    let mut routes = String::new();
    for number in 0..200 {
        routes += &format!(
            "- {{ name: r{number}, service: api, match: {{ path_regex: '/{number}([a-z]{{1,60}}/){{1,30}}' }} }}\n"
        );
    }
    check_route(
        &routes,
        "f:203: routes[199]: the regular expressions of this host are too large together (use `path_prefix` where it is enough)",
    );
}

#[test]
fn routes_with_other_conditions_are_other_routes() {
    check_route(
        "- { name: a, service: api, match: { headers: { x: '1', Y: '*' } } }
- { name: b, service: api, match: { headers: { y: '*', X: '1' } } }
- { name: c, service: api, match: { headers: { x: '1' } } }
- { name: d, service: api, match: { headers: { x: '2' } } }
- { name: e, service: api, match: { query: { x: '1' } } }
- { name: f, service: api, match: { path_regex: '/' } }
- { name: g, service: api, match: { path: '/' } }
- { name: h, service: api, match: { path_regex: '/' } }
",
        "f:5: routes[1]: route `b` matches exactly what route `a` on line 4 matches (remove one, or change its match)
         f:11: routes[7]: route `h` matches exactly what route `f` on line 9 matches (remove one, or change its match)",
    );
}

#[test]
fn an_encoded_slash_is_for_routes_that_allow_it() {
    check_match(
        "path: /a%2Fb",
        "f:4: routes[0].match.path: `/a%2Fb` has an encoded slash, which is refused unless `allow_encoded_slash` is true",
    );
    check_route(
        "- { name: r, service: api, allow_encoded_slash: true, match: { path: /a%00 } }",
        "f:4: routes[0].match.path: `/a%00` has an encoded NUL, which is refused in requests",
    );
    check_route(
        "- { name: r, service: api, allow_encoded_slash: yes, match: { path: /a%2fb } }",
        "f:4: routes[0].allow_encoded_slash: expected true or false, found `yes`
         f:4: routes[0].match.path: `/a%2fb` has an encoded slash, which is refused unless `allow_encoded_slash` is true",
    );
}
