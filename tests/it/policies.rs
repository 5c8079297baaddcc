//! What policies do, a behaviour a test.

use crate::upstream::{Gateway, Message, Peer, Upstream, yaml};

/// An echo behind a gateway whose only route has policy `p`; `rest` follows the document's other lines.
fn gateway(policy: &str, rest: &str) -> (Gateway, Upstream) {
    let upstream = Upstream::echo();
    let gateway = Gateway::start(&yaml(&format!(
        "listeners: {{ web: {{ address: '127.0.0.1:0' }} }}
services: {{ api: {{ endpoints: [{{ address: '{}' }}] }} }}
routes: [{{ name: a, service: api, policies: [p] }}]
policies: {{ p: {policy} }}
{rest}",
        upstream.address
    )));
    (gateway, upstream)
}

/// A GET with these further header lines, each ended by CR LF.
fn ask(client: &mut Peer, path: &str, lines: &str) -> Message {
    client.send(&format!("GET {path} HTTP/1.1\r\nHost: gate.example\r\n{lines}\r\n"));
    client.answer()
}

#[test]
fn only_addresses_that_are_let_in_get_an_answer() {
    let (gateway, _upstream) =
        gateway("{ ip_allow: [10.0.0.0/8], ip_deny: [10.0.0.13] }", "trusted_proxies: [127.0.0.1]");
    let mut client = gateway.client();
    for (forwarded_for, status) in
        [("10.0.0.1", 200), ("10.0.0.13", 403), ("192.0.2.1", 403), ("10.0.0.1, 192.0.2.1", 403)]
    {
        let answer = ask(&mut client, "/", &format!("X-Forwarded-For: {forwarded_for}\r\n"));
        assert_eq!(answer.status(), status, "{forwarded_for}: {answer:?}");
    }
    gateway.await_metric("gogate_rejections_total{reason=\"ip_denied\"} 3");
}

#[test]
fn an_untrusted_peer_cannot_choose_its_address() {
    let (gateway, _upstream) = gateway("{ ip_allow: [10.0.0.0/8] }", "");
    assert_eq!(ask(&mut gateway.client(), "/", "X-Forwarded-For: 10.0.0.1\r\n").status(), 403);
}

#[test]
fn header_fields_are_edited_both_ways_and_on_refusals() {
    let (gateway, _upstream) = gateway(
        "{ request_headers: { set: { X-Set: new, Host: inner, X-Real-IP: none }, add: { X-Add: more }, remove: [X-Gone] },
           response_headers: { set: { X-Frame-Options: DENY }, remove: [via] }, ip_deny: [10.0.0.1] }",
        "trusted_proxies: [127.0.0.1]",
    );
    let mut client = gateway.client();
    let answer = ask(
        &mut client,
        "/",
        "X-Set: old\r\nX-Set: old2\r\nX-Add: first\r\nX-Gone: 1\r\nConnection: X-Set\r\n",
    );
    let seen = answer.text();
    for expected in ["x-set: new\n", "x-add: first\n", "x-add: more\n", "host: inner\n", "x-real-ip: none\n"]
    {
        assert_eq!(seen.matches(expected).count(), 1, "{expected:?} in {seen}");
    }
    assert!(!seen.contains("x-gone") && !seen.contains("old") && !seen.contains("\nhost: gate"), "{seen}");
    assert_eq!((answer.field("x-frame-options"), answer.field("via")), (Some("DENY"), None));
    let refused = ask(&mut client, "/", "X-Forwarded-For: 10.0.0.1\r\n");
    assert_eq!((refused.status(), refused.field("x-frame-options")), (403, Some("DENY")));
}
