//! Ways around routes and policies that clients have tried on other gateways: another spelling of a path, a host or
//! a field, a field that comes late or is named away.

use gogate::config::document::Document;

use crate::upstream::{Gateway, Message, Upstream, yaml};

/// Routes with policies before an endpoint that says what it saw; what no other route takes, it gets as it is.
fn document(upstream: &Upstream, guard: &Upstream) -> Document {
    yaml(&format!(
        "listeners: {{ web: {{ address: '127.0.0.1:0' }} }}
services:
  echo: {{ endpoints: [{{ address: '{}' }}] }}
  guard: {{ endpoints: [{{ address: '{}' }}] }}
policies:
  cors: {{ cors: {{ allowed_origins: ['https://a.example'] }} }}
  fields: {{ request_headers: {{ set: {{ X-Tenant: good }}, remove: [X-Debug] }}, request_id: {{ header: X-Id }} }}
  token: {{ jwt: {{ algorithms: [HS256], secret: a secret of thirty-two bytes, optional: true }} }}
  ask: {{ forward_auth: {{ service: guard }} }}
routes:
  - {{ name: host, match: {{ host: private.example }}, respond: {{ status: 403 }} }}
  - {{ name: admin, match: {{ path_prefix: /admin }}, respond: {{ status: 403 }} }}
  - {{ name: cors, match: {{ path: /cors, methods: [DELETE] }}, service: echo, policies: [cors] }}
  - {{ name: fields, match: {{ path: /fields }}, service: echo, policies: [fields] }}
  - {{ name: token, match: {{ path: /token }}, service: echo, policies: [token] }}
  - {{ name: ask, match: {{ path: /ask }}, service: echo, policies: [ask] }}
  - {{ name: rest, service: echo }}
trusted_proxies: [127.0.0.0/8]",
        upstream.address, guard.address
    ))
}

/// The answer to a request with this line, host and further lines, each ended by CR LF.
fn ask(start: &str, host: &str, lines: &str) -> Message {
    let (upstream, guard) = (
        Upstream::echo(),
        Upstream::says("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"),
    );
    let gateway = Gateway::start(&document(&upstream, &guard));
    let mut client = gateway.client();
    client.send(&format!("{start} HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n"));
    client.answer()
}

#[test]
fn dot_segments_that_only_some_endpoints_see_are_refused() {
    for path in ["/x/..;/admin", "/.;a=1/admin", "/x/%2e%2e;/admin", "/x/..%5cadmin", "/x/..%5C..%5Cadmin"] {
        assert_eq!(ask(&format!("GET {path}"), "a", "").status(), 400, "{path}");
    }
    assert_eq!(ask("GET /x;v=1/..a;b", "a", "").status(), 200);
}

/// No way around by mistake: docs/security.md says what to write for endpoints that cut parameters off.
#[test]
fn a_path_parameter_is_part_of_its_segment() {
    let seen = ask("GET /admin;x", "a", "");
    assert_eq!((seen.status(), seen.text().lines().next()), (200, Some("GET /admin;x HTTP/1.1")));
    assert_eq!(ask("GET /admin/;x", "a", "").status(), 403);
    assert_eq!(ask("GET /admin/x;y", "a", "").status(), 403);
}

#[test]
fn a_host_with_the_root_behind_it_is_the_same_host() {
    assert_eq!(ask("GET /", "private.example.", "").status(), 403);
    assert_eq!(ask("GET /", "Private.Example.:80", "").status(), 403);
    assert_eq!(ask("GET http://private.example./", "private.example.", "").status(), 403);
}

#[test]
fn a_preflight_stays_one_whatever_connection_names() {
    let fields = "Origin: https://a.example\r\nAccess-Control-Request-Method: DELETE\r\n";
    assert_eq!(ask("OPTIONS /cors", "a", fields).status(), 204);
    let named_away = format!("{fields}Connection: Origin\r\n");
    let answer = ask("OPTIONS /cors", "a", &named_away);
    assert_eq!(answer.status(), 204, "the route takes no OPTIONS: {answer:?}");
}

#[test]
fn what_policies_say_is_not_said_again_with_underscores() {
    let fields =
        "X_Tenant: evil\r\nX_Debug: evil\r\nX_Id: evil\r\nX_Forwarded_Prefix: evil\r\nX_Other: 1\r\n";
    let seen = ask("GET /fields", "a", fields).text();
    assert!(
        !seen.contains("evil") && seen.contains("x-tenant: good") && seen.contains("x_other: 1"),
        "{seen}"
    );
}

#[test]
fn trailers_do_not_come_behind_policies() {
    let trailers = "Transfer-Encoding: chunked\r\nTrailer: x-tenant, x-sum, x_real_ip\r\n\r\n3\r\nabc\r\n0\r\n\
                    x-tenant: evil\r\nx-sum: 7\r\nx_real_ip: 10.0.0.1\r\n";
    let seen = ask("POST /fields", "a", trailers).text();
    assert!(seen.contains("abc") && !seen.contains("evil"), "{seen}");
    let seen = ask("POST /rest", "a", trailers).text();
    assert!(seen.contains("x-sum: 7") && !seen.contains("10.0.0.1"), "{seen}");
}

#[test]
fn a_token_behind_a_tab_is_no_way_past_verification() {
    assert_eq!(ask("GET /token", "a", "Authorization: Bearer\tabc\r\n").status(), 401);
    assert_eq!(ask("GET /token", "a", "Authorization: Digest a=1,\tb=2\r\n").status(), 200);
}

#[test]
fn an_interim_answer_of_the_service_that_is_asked_is_no_answer() {
    assert_eq!(ask("GET /ask", "a", "").status(), 503);
}

#[test]
fn whoever_began_the_list_of_addresses_does_not_choose_the_real_one() {
    let seen = ask("GET /", "a", "X-Forwarded-For: 10.0.0.1, 192.0.2.7\r\n").text();
    assert!(seen.contains("x-real-ip: 192.0.2.7"), "{seen}");
}
