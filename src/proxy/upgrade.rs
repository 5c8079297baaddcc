//! `Upgrade` on HTTP/1.1: WebSocket, and whatever else two ends agree on.
//!
//! Job: decide which protocols a request may ask an endpoint for, judge the endpoint's 101, and carry the tunnel
//! that follows with `relay`. Invariants: until a 101 that was asked for, a request with `Upgrade` is a request as
//! any other, and its connection is read as HTTP only; nobody is offered another version of HTTP, which would
//! carry requests past the routes (RFC 9110, section 7.8). Neighbours: `http` asks, `client` hands over,
//! `forward` sees the 101, `stream` holds back what the client sends before there is an answer.

use std::{rc::Rc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Version, header, request::Parts};
use tokio::net::TcpStream;

use super::{
    client::Client,
    forward::Line,
    pool::StreamPlace,
    record::{Carried, Record},
    relay::Relay,
    upstream::Picked,
};

const UPGRADE: HeaderValue = HeaderValue::from_static("upgrade");

/// An endpoint's side of a tunnel.
#[derive(Debug)]
pub(super) struct Opened {
    /// As the endpoint granted them.
    protocols: HeaderValue,
    endpoint: TcpStream,
    /// What the endpoint sent right behind its 101.
    early: Bytes,
    /// What is held of the endpoint to the tunnel's end.
    line: (StreamPlace, Picked),
    idle: Duration,
}

/// A tunnel whose client is told 101.
#[derive(Debug)]
pub(super) struct Tunnel {
    pub(super) opened: Opened,
    /// Counts the request at the tunnel's end.
    pub(super) record: Record,
}

/// The protocols that the endpoint is asked for. None: the request is as any other.
pub(super) fn asked(parts: &Parts, has_body: bool) -> Option<HeaderValue> {
    // Nearly always it is not there.
    if !parts.headers.contains_key(header::UPGRADE) || has_body || parts.version != Version::HTTP_11 {
        return None;
    }
    let connection = parts.headers.get_all(header::CONNECTION);
    if !connection.iter().flat_map(tokens).any(|token| token.eq_ignore_ascii_case(b"upgrade")) {
        return None;
    }
    let offered = |token: &&[u8]| !token.is_empty() && !is_http(token);
    let all = parts.headers.get_all(header::UPGRADE);
    let kept: Vec<&[u8]> = all.iter().flat_map(tokens).filter(offered).collect();
    if kept.is_empty() { None } else { HeaderValue::from_bytes(&kept.join(&b", "[..])).ok() }
}

/// Asks for them.
pub(super) fn ask(headers: &mut HeaderMap, protocols: HeaderValue) {
    headers.insert(header::UPGRADE, protocols);
    headers.insert(header::CONNECTION, UPGRADE);
}

/// The endpoint's side after a 101 with these fields. None: nobody asked for that.
pub(super) fn open(
    asked: Option<HeaderValue>,
    answer: &HeaderMap,
    line: Line,
    idle: Duration,
) -> Option<Opened> {
    let Line { lease, picked } = line;
    let protocols = asked.and_then(|asked| granted(answer, &asked));
    let opened = protocols.and_then(|protocols| Some((protocols, lease.into_stream()?)));
    let Some((protocols, (endpoint, early, place))) = opened else {
        picked.failed();
        return None;
    };
    Some(Opened { protocols, endpoint, early, line: (place, picked), idle })
}

/// What a 101 grants, if all of it was asked for.
fn granted(answer: &HeaderMap, asked: &HeaderValue) -> Option<HeaderValue> {
    let mut fields = answer.get_all(header::UPGRADE).iter();
    let (Some(granted), None) = (fields.next(), fields.next()) else { return None };
    let was_asked = |protocol: &[u8]| tokens(asked).any(|asked| asked.eq_ignore_ascii_case(protocol));
    tokens(granted).all(was_asked).then(|| granted.clone())
}

/// Has the cleaned fields of a 101 say what was granted.
pub(super) fn grant(headers: &mut HeaderMap, opened: &Opened) {
    // RFC 9110, section 8.6: there is no body.
    headers.remove(header::CONTENT_LENGTH);
    ask(headers, opened.protocols.clone());
}

/// Carries a tunnel to its end. `first`: what the client sent before it knew of the 101.
pub(super) async fn carry(client: &Client, tcp: TcpStream, first: Vec<u8>, tunnel: Box<Tunnel>) {
    let Tunnel { opened, mut record } = *tunnel;
    let Opened { endpoint, early, line, idle, .. } = opened;
    let (worker, listener) = (Rc::clone(&client.worker), Rc::clone(&client.listener));
    let mut relay = Relay::new(worker, listener, Rc::clone(&client.alarm), idle, tcp, endpoint);
    relay.send_first(first);
    relay.send_back_first(early.into());
    let carried = Rc::new(Carried::default());
    relay.count_in(Rc::clone(&carried));
    let ended = relay.run().await;
    if let Err(error) = &ended {
        client.worker.figures.reject(error.row().reason);
    }
    record.carried(&carried, &ended);
    drop(line);
}

fn tokens(list: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    list.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

/// `h2c`, `HTTP/2.0` and their like.
fn is_http(protocol: &[u8]) -> bool {
    let name = protocol.split(|byte| *byte == b'/').next().unwrap_or(protocol);
    [&b"h2c"[..], b"h2", b"h3", b"http"].iter().any(|http| name.eq_ignore_ascii_case(http))
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn asked_for(fields: &[(&str, &str)]) -> Option<String> {
        let mut request = Request::new(());
        for (name, value) in fields {
            let name = header::HeaderName::try_from(*name).unwrap();
            request.headers_mut().append(name, value.parse().unwrap());
        }
        asked(&request.into_parts().0, false).map(|protocols| protocols.to_str().unwrap().to_owned())
    }

    #[test]
    fn an_upgrade_is_asked_for_in_both_fields_and_is_never_to_http() {
        for (fields, expected) in [
            (&[("upgrade", "websocket"), ("connection", "Upgrade")][..], Some("websocket")),
            (&[("upgrade", "websocket"), ("connection", "keep-alive, upgrade")], Some("websocket")),
            (&[("upgrade", "a/1,, b"), ("upgrade", "c"), ("connection", "upgrade")], Some("a/1, b, c")),
            (&[("upgrade", "h2c, websocket"), ("connection", "upgrade")], Some("websocket")),
            (&[("upgrade", "H2C"), ("connection", "upgrade, http2-settings")], None),
            (&[("upgrade", "HTTP/2.0"), ("connection", "upgrade")], None),
            (&[("upgrade", "websocket")], None),
            (&[("upgrade", "websocket"), ("connection", "upgrades")], None),
            (&[("upgrade", ""), ("connection", "upgrade")], None),
            (&[("connection", "upgrade")], None),
        ] {
            assert_eq!(asked_for(fields).as_deref(), expected, "{fields:?}");
        }
        let mut parts = Request::new(()).into_parts().0;
        ask(&mut parts.headers, HeaderValue::from_static("websocket"));
        assert!(asked(&parts, false).is_some());
        assert!(asked(&parts, true).is_none(), "a body would have to end first");
        parts.version = Version::HTTP_10;
        assert!(asked(&parts, false).is_none());
    }

    #[test]
    fn only_what_was_asked_for_is_granted() {
        let asked = HeaderValue::from_static("chat/2, websocket");
        for (granted, expected) in [
            (Some("WebSocket"), true),
            (Some("chat/2, websocket"), true),
            (Some("chat"), false),
            (Some("websocket, h2c"), false),
            (Some(""), false),
            (None, false),
        ] {
            let mut answer = HeaderMap::new();
            answer.extend(granted.map(|granted| (header::UPGRADE, HeaderValue::from_static(granted))));
            let protocols = super::granted(&answer, &asked);
            assert_eq!(protocols.is_some(), expected, "{granted:?}");
        }
    }
}
