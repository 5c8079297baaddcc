//! Routes: what they match, each rule's exact message.

use super::{
    super::super::document::{Action, Mirror, Part, PathPattern, Redirect, Share, Wanted},
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

/// A document with one route that does this.
fn check_action(text: &str, expected: &str) {
    check_route(&format!("- {{ name: r, match: {{ path: /x }}, {text} }}\n"), expected);
}

#[test]
fn actions_become_what_they_say() {
    let document = valid(
        "services: { a: {}, b: {} }
routes:
  - { name: split, match: { path: /1 }, split: [{ service: a, weight: 95 }, { service: b, weight: 5 }], mirror: { service: b } }
  - { name: redirect, match: { path: /2 }, redirect: { to: 'https://{host}/new{path}?{query}', status: 301 } }
  - { name: respond, match: { path: /3 }, respond: { status: 503, body: '{}', content_type: application/json, headers: { Retry-After: '60' } } }
  - { name: empty, match: { path: /4 }, respond: { body: '' } }
",
    );
    let action = |place: usize| &document.routes[place].action;
    let share = |service: &str, weight| Share { service: service.into(), weight };
    assert_eq!(*action(0), Action::Split(vec![share("a", 95), share("b", 5)]));
    assert_eq!(document.routes[0].mirror, Some(Mirror { service: "b".into(), percent: 100 }));
    let text = |text: &str| Part::Text(text.into());
    let to = vec![text("https://"), Part::Host, text("/new"), Part::Path, text("?"), Part::Query];
    assert_eq!(*action(1), Action::Redirect(Redirect { to, status: 301 }));
    let Action::Respond(respond) = action(2) else { panic!("{:?}", action(2)) };
    assert_eq!((respond.status, &*respond.body, &*respond.content_type), (503, "{}", "application/json"));
    assert_eq!(respond.headers, [("retry-after".into(), "60".into())]);
    let Action::Respond(respond) = action(3) else { panic!("{:?}", action(3)) };
    assert_eq!((respond.status, &*respond.content_type), (200, "text/plain; charset=utf-8"));
}

#[test]
fn a_route_does_one_thing() {
    check_action(
        "service: api, respond: { status: 200 }",
        "f:4: routes[0]: `service` and `respond` cannot both be set (keep one of them)",
    );
    check_action(
        "redirect: { to: '/y' }, mirror: { service: api }",
        "f:4: routes[0].mirror: the route sends nothing to a service, so there is nothing to mirror (remove `mirror`)",
    );
    check_action(
        "service: api, mirror: { percent: 101 }",
        "f:4: routes[0].mirror.percent: expected a whole number from 0 to 100, found the number 101",
    );
}

#[test]
fn a_split_has_weights_that_can_be_kept() {
    let at = "f:4: routes[0].split";
    for (text, expected) in [
        (
            "[]",
            ": the list is empty (write [{ service: NAME, weight: 95 }, { service: OTHER, weight: 5 }])",
        ),
        (
            "[{ service: api }, { weight: 1 }]",
            "[0]: `weight` is missing (add weight: with a whole number, the same for equal shares)
             f:4: routes[0].split[1]: `service` is missing (add service: with the name of one under `services`)",
        ),
        (
            "[{ service: api, weight: 1 }, { service: crat, weight: 1 }]",
            "[1].service: there is no service `crat` (did you mean `cart`?)",
        ),
        (
            "[{ service: api, weight: 1 }, { service: api, weight: 1 }]",
            "[1]: `api` is in the list already (keep one of them, with the sum of the weights)",
        ),
        (
            "[{ service: api, weight: 0 }, { service: cart, weight: 0 }]",
            ": every weight is 0, so no request could be sent (give one of them a weight)",
        ),
        (
            "[{ service: api, weight: 10001 }, { service: cart, weight: 2 }]",
            ": these weights repeat only after 10003 requests, more than 10000 (use weights with smaller numbers, such as percents)",
        ),
        (
            "[{ service: api, weight: -1 }]",
            "[0].weight: expected a whole number from 0 to 1000000, found the number -1",
        ),
    ] {
        check_action(&format!("split: {text}"), &format!("{at}{expected}"));
    }
    check_action("split: [{ service: api, weight: 990000 }, { service: cart, weight: 10000 }]", "");
}

#[test]
fn a_redirect_never_leads_where_a_client_says() {
    let hosts =
        "a client could choose the host, for its own words follow it at once (put a `/` after the host)";
    let starts = "expected http://, https://, {scheme}:// or a path that begins with `/` (write https://{host}{uri} or /new{path})";
    let missing = "the host is missing (write https://{host}{uri})";
    let local = "`//` at the beginning would name another host";
    for (to, expected) in [
        ("//evil.example", format!("{local} (write https:// before it, or one `/`)")),
        ("/{path}", format!("{local} (write {{path}}: it begins with `/`)")),
        ("https://{path}", missing.to_owned()),
        ("https:///x", missing.to_owned()),
        ("{scheme}://{uri}", missing.to_owned()),
        ("https://a.example{query}", hosts.to_owned()),
        ("https://{host}:80{query}", hosts.to_owned()),
        ("{host}/x", starts.to_owned()),
        ("ftp://a.example/", starts.to_owned()),
        ("javascript:{path}", starts.to_owned()),
        ("x", starts.to_owned()),
        (
            "/{paht}",
            "there is no placeholder `{paht}` (there are {scheme}, {host}, {path}, {query} and {uri})"
                .to_owned(),
        ),
        ("/a}b", "a brace stands alone (percent-encode it: %7B, %7D)".to_owned()),
        ("/a b", "` ` cannot be in a URL (percent-encode it)".to_owned()),
        ("/a\\\\b", "`\\` cannot be in a URL (percent-encode it)".to_owned()),
        ("/a\\r\\nb", "`\\r` cannot be in a URL (percent-encode it)".to_owned()),
    ] {
        check_action(
            &format!("redirect: {{ to: \"{to}\" }}"),
            &format!("f:4: routes[0].redirect.to: {expected}"),
        );
    }
    for to in [
        "https://{host}{uri}",
        "http://{host}:8080/a",
        "{scheme}://www.{host}{path}?{query}",
        "/y{path}",
        "https://a.example?{query}",
    ] {
        check_action(&format!("redirect: {{ to: '{to}' }}"), "");
    }
    check_action(
        "redirect: { to: /y, status: 304 }",
        "f:4: routes[0].redirect.status: 304 is not a redirect to another place (301, 302, 303, 307 and 308 are; 308 and 307 keep the method)",
    );
    check_action(
        "redirect: {}",
        "f:4: routes[0].redirect: `to` is missing (add to: \"https://{host}{uri}\")",
    );
}

#[test]
fn a_redirect_in_a_circle_is_refused() {
    for to in ["{uri}", "{path}", "{path}?{query}", "{scheme}://{host}{uri}", "/x", "/x?{query}"] {
        check_action(
            &format!("redirect: {{ to: '{to}' }}"),
            "f:4: routes[0]: the redirect leads back to this route, over and over (name another scheme, host or path in `redirect.to`)",
        );
    }
}

#[test]
fn a_fixed_answer_is_whole() {
    let at = "f:4: routes[0].respond";
    for (text, expected) in [
        ("status: 100", ".status: expected a whole number from 200 to 599, found the number 100"),
        ("status: 204, body: x", ".body: an answer with status 204 has no body (remove `body`)"),
        (
            "headers: { Content-Length: '5' }",
            ".headers.Content-Length: the gateway sets `content-length` itself (remove it)",
        ),
        (
            "headers: { Content-Type: a/b }",
            ".headers.Content-Type: the gateway sets `content-type` itself (use `content_type`)",
        ),
        ("headers: { 'a b': c }", ".headers.a b: `a b` is not the name of a header field"),
        (
            "headers: { a: \"b\\r\\nc: d\" }",
            ".headers.a: a field's value here is at most 4096 ASCII characters",
        ),
        ("content_type: \"a\\nb\"", ".content_type: a field's value here is at most 4096 ASCII characters"),
    ] {
        check_action(&format!("respond: {{ {text} }}"), &format!("{at}{expected}"));
    }
    let long = "x".repeat((64 << 10) + 1);
    check_action(
        &format!("respond: {{ body: {long} }}"),
        "f:4: routes[0].respond.body: 65537 bytes are more than 65536",
    );
}
