//! One table of policies and exact messages a rule.

use super::super::{Document, document};

fn check(text: &str, expected: &str) {
    let problems = match document(text) {
        Ok(_) => String::new(),
        Err(problems) => problems.iter().map(|p| p.in_file("f") + "\n").collect(),
    };
    let expected: String = expected.lines().map(|line| line.trim_start().to_owned() + "\n").collect();
    assert_eq!(problems, expected, "for the document:\n{text}");
}

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
