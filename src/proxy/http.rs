//! One HTTP request of a client's connection, from its head to its last count.
//!
//! Job: [`answer`] is the life of a request, whatever comes of it; [`exchange`] is the part of it that can fail.
//! Invariants: a request uses one [`View`] from its beginning to its end; every failure is a [`ProxyError`]; every
//! request is counted once, when its answer's body is gone. Neighbours: `client` is the connection that it came on,
//! `route_match` finds the route, `headers` cleans, `policy` judges, `forward` sends.

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    net::IpAddr,
    pin::pin,
    rc::Rc,
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header, request::Parts, response,
};
use http_body::Body;
use hyper::body::Incoming;

use super::{
    action::{Action, CompiledRoute},
    balance::hash_key,
    client::Client,
    error::{Blame, ProxyError},
    fixed::Repeatable,
    forward::{AnswerBody, Answered, Line, Terms, forward},
    headers::{self, RequestId},
    mirror,
    outgoing::Outgoing,
    path,
    policy::{self, Passed, Passing, recovery},
    record::Record,
    route_match::{Asked, Found},
    sticky,
    table::RoutingTable,
    upgrade::{self, Opened, Tunnel},
    upload::{RequestBody, Upload},
    upstream::View,
};
use crate::config::document::{Balance, Service};

/// The life of one request. Failures are answers.
pub(super) async fn answer(
    client: Rc<Client>,
    request: Request<Incoming>,
) -> Result<Response<AnswerBody>, Infallible> {
    let started = Instant::now();
    let view = client.worker.view();
    let (parts, body) = request.into_parts();
    let mut request_id = RequestId::of(&parts.headers, || client.worker.random());
    let mut record = Record::begin(&client, &view, started, &parts, &request_id);
    let outcome = {
        let mut exchange = pin!(exchange(&client, &view, parts, body, &mut request_id, &mut record));
        poll_fn(|cx| {
            recovery::catch(|| exchange.as_mut().poll(cx)).unwrap_or(Poll::Ready(Err(ProxyError::Panicked)))
        })
        .await
    };
    let mut close = client.worker.is_draining();
    let mut response = match outcome {
        Ok(Answer::Endpoint(endpoint)) => {
            close |= endpoint.early;
            let mut parts = endpoint.head;
            record.answered(parts.status);
            headers::prepare_answer(&mut parts.headers);
            record.finish(&mut parts.headers);
            let length = match &endpoint.rest {
                Rest::Body(line) => line.lease.data_left(),
                Rest::Tunnel(_) => Some(0),
            };
            let compressor = if length == Some(0) {
                None
            } else {
                record.compress(parts.status, &mut parts.headers, length)
            };
            let mut body = match endpoint.rest {
                Rest::Body(line) => AnswerBody::endpoint(line, endpoint.idle, &client, record),
                Rest::Tunnel(opened) => {
                    close = false;
                    upgrade::grant(&mut parts.headers, &opened);
                    client.goes_on_as(Tunnel { opened, record });
                    AnswerBody::nothing(&client)
                }
            };
            if let Some(compressor) = compressor {
                body = body.compressed(compressor);
            }
            Response::from_parts(parts, body)
        }
        Ok(Answer::Fixed(response)) => {
            record.answered_by_route(response.status());
            client.own_answer_begins();
            let (mut parts, content) = response.into_parts();
            record.finish(&mut parts.headers);
            Response::from_parts(parts, AnswerBody::own(content, &client, record))
        }
        Err(error) => {
            let row = error.row();
            record.failed(&row);
            client.worker.figures.reject(row.reason);
            client.own_answer_begins();
            if row.blame == Blame::Upstream {
                tracing::debug!(reason = row.reason, service = %record.figures.names().1, "request failed");
            }
            let (mut parts, content) = error.response(&request_id.id).into_parts();
            record.finish(&mut parts.headers);
            Response::from_parts(parts, AnswerBody::own(content, &client, record))
        }
    };
    if close {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

/// What a request came to.
enum Answer {
    Endpoint(FromEndpoint),
    /// The route's own, or a policy's.
    Fixed(Response<Bytes>),
}

/// An endpoint's answer, its body still to come.
struct FromEndpoint {
    head: response::Parts,
    rest: Rest,
    idle: Duration,
    /// It came before the request's end: what follows on the client's connection is not known to be a request.
    early: bool,
}

/// What follows an answer's head.
enum Rest {
    /// A body, on this connection.
    Body(Line),
    /// Another protocol.
    Tunnel(Opened),
}

async fn exchange(
    client: &Rc<Client>,
    view: &View,
    mut parts: Parts,
    body: Incoming,
    request_id: &mut RequestId,
    record: &mut Record,
) -> Result<Answer, ProxyError> {
    let routing = &*view.table.routing;
    if client.expects_underscores() {
        headers::remove_shadows(&mut parts.headers);
    }
    let host = host_of(&parts);
    let (mut uri, encoded_slash) = origin_form(&parts.method, &parts.uri)?;
    let found = match find_preflight(client, &view.table, host.as_ref(), &uri, &parts) {
        Some(place) => Ok(place),
        None => find_route(client, &view.table, host.as_ref(), &uri, &parts, &parts.method),
    };
    let found = found.map(|place| &routing.routes[place]);
    // What a path with an encoded slash means, a route must say.
    if encoded_slash && !found.as_ref().is_ok_and(|route| route.allow_encoded_slash) {
        return Err(BAD_PATH);
    }
    let route = found?;
    record.figures = Rc::clone(&view.figures[route.counted]);
    let own_bytes_max = route.policies.as_ref().and_then(|policies| policies.body_bytes_max());
    let bytes_max = own_bytes_max.or(routing.limits.body_bytes);
    if own_bytes_max.is_none() && bytes_max.is_some_and(|bytes_max| body.size_hint().lower() > bytes_max) {
        return Err(ProxyError::BodyTooLarge);
    }

    let until = route.timeout.map(|timeout| record.started + timeout);
    client.alarm.set_ceiling(until);
    let asked = upgrade::asked(&parts, !body.is_end_stream());
    // Before `Connection` can name away what made it one: the route was chosen for that.
    let is_preflight = policy::is_preflight(&parts.method, &parts.headers);
    prepare_head(client, view, route, &mut parts, host, request_id, record);
    if let Some(policies) = &route.policies {
        let address = record.client_address(&parts.headers, &routing.trusted_proxies);
        let passed = record.passed.insert(Passed::new(policies, &parts, &request_id.id));
        let mut passing = Passing {
            parts: &mut parts,
            uri: &mut uri,
            client: address,
            at: record.started,
            is_preflight,
            body_bytes_min: body.size_hint().lower(),
            figures: &client.worker.figures,
            request_id: &request_id.id,
            claims: None,
        };
        if let Some(answer) = policies.admit(&mut passing, passed)? {
            return Ok(Answer::Fixed(answer));
        }
        if policies.authenticates() {
            // Boxed: those who are not asked who they are have no room for it in their tasks.
            Box::pin(policies.authenticate(&mut passing, client, view, record)).await?;
        }
        if let Some(passed) = &mut record.passed {
            policies.prepare(&mut passing, passed)?;
        }
    }
    if let Some(protocols) = &asked {
        upgrade::ask(&mut parts.headers, protocols.clone());
    }
    let branch = match &route.action {
        Action::Send(branch) => branch,
        Action::Split(split) => {
            let upstreams = split.branches.iter().map(|branch| &*view.upstreams[branch.upstream].plan);
            let stuck = sticky::owner(upstreams, &parts.headers);
            let branch = &split.branches[stuck.unwrap_or_else(|| split.turns.take())];
            record.figures = Rc::clone(&view.figures[branch.counted]);
            branch
        }
        Action::Answer(answer) => {
            return answer.response(&repeatable(&parts.headers, &uri)).map(Answer::Fixed);
        }
    };
    let upstream = &view.upstreams[branch.upstream];
    let service = &*upstream.plan.service;
    let timeouts = &service.timeouts;
    let client_address = || record.client_address(&parts.headers, &routing.trusted_proxies);
    let terms = terms(route, service, &parts.headers, uri.path(), until, client_address);
    let upload = (!body.is_end_stream())
        .then(|| Upload::new(body, record, bytes_max, &routing.limits, timeouts.idle, terms.answer_within));
    if let (Some(upload), Some(_)) = (&upload, &route.policies) {
        upload.drop_trailers();
    }
    let body = upload.clone().map_or(RequestBody::None, RequestBody::Client);
    // A copy of an upgrade would be a stream that nobody speaks on.
    if let Some(mirror) = &route.mirror
        && asked.is_none()
        && mirror.turns.take() == 0
    {
        let copied = &view.upstreams[mirror.upstream];
        mirror::begin(client, copied, (&parts.method, &uri, &parts.headers), &body);
    }
    let scratch = &client.worker.buffers.scratch;
    let outgoing = Outgoing::new(parts.method, &uri, &parts.headers, body, scratch);
    drop((uri, parts.headers));
    let Answered { mut head, line } = forward(client, upstream, outgoing, &terms, record).await?;
    if let Some(sticky) = &service.sticky {
        let pin = line.picked.pin();
        if terms.pinned != Some(pin) {
            sticky::set(sticky, pin, &mut head.headers);
        }
    }
    client.alarm.set_ceiling(None);
    let early = upload.is_some_and(|upload| !upload.has_ended());
    let rest = if head.status == StatusCode::SWITCHING_PROTOCOLS {
        let idle = view.table.listener(client.listener.id).and_then(|listener| listener.idle);
        let opened = upgrade::open(asked, &head.headers, line, idle.unwrap_or(timeouts.stream));
        Rest::Tunnel(opened.ok_or(ProxyError::UpstreamMalformed)?)
    } else {
        Rest::Body(line)
    };
    Ok(Answer::Endpoint(FromEndpoint { head, rest, idle: timeouts.idle, early }))
}

/// Makes the client's head the endpoint's, as far as no policy has a word in it but the one that names the request.
fn prepare_head(
    client: &Client,
    view: &View,
    route: &CompiledRoute,
    parts: &mut Parts,
    host: Option<HeaderValue>,
    request_id: &mut RequestId,
    record: &mut Record,
) {
    let trusted = view.table.trusts(client.address);
    if let Some(policies) = &route.policies {
        let new = || RequestId::of(&HeaderMap::new(), || client.worker.random()).id;
        if let Some(id) = policies.request_id(&parts.headers, trusted, &request_id.id, new) {
            record.renamed(&id);
            request_id.id = id;
        }
    }
    let vouched = trusted.then(|| record.client_address(&parts.headers, &view.table.routing.trusted_proxies));
    headers::prepare_request(&mut parts.headers, &client.peer, request_id, vouched, host.as_ref());
    if view.table.routing.forwarded {
        headers::add_forwarded(&mut parts.headers, &client.peer, host.as_ref());
    }
    match host {
        Some(host) if parts.uri.authority().is_some() => drop(parts.headers.insert(header::HOST, host)),
        Some(_) => {}
        // HTTP/1.0 does without; HTTP/1.1, which the endpoint is spoken to in, does not.
        None => drop(parts.headers.insert(header::HOST, HeaderValue::from_static(""))),
    }
}

/// How a request of this route wants to be sent to this service.
fn terms<'a>(
    route: &'a CompiledRoute,
    service: &Service,
    headers: &HeaderMap,
    path: &str,
    until: Option<Instant>,
    client_address: impl FnOnce() -> IpAddr,
) -> Terms<'a> {
    let retries = route.retries.as_ref();
    let mut answer_within = route.timeout.unwrap_or(service.timeouts.request);
    if retries.is_some_and(|retries| retries.on.timeout) {
        // There must be time left for another attempt.
        answer_within = answer_within.min(service.timeouts.request);
    }
    let hash = match &service.balance {
        Balance::ConsistentHash(on) => hash_key(on, headers, path, client_address),
        _ => None,
    };
    let pinned = service.sticky.as_ref().and_then(|sticky| sticky::pin_of(sticky, headers));
    Terms { hash, pinned, retries, answer_within, until }
}

/// The route of a preflight is the one that takes the request which it asks about, whatever methods that takes, if
/// it answers preflights.
fn find_preflight(
    client: &Client,
    table: &RoutingTable,
    host: Option<&HeaderValue>,
    uri: &Uri,
    parts: &Parts,
) -> Option<usize> {
    if !policy::is_preflight(&parts.method, &parts.headers) {
        return None;
    }
    let method = parts.headers.get(header::ACCESS_CONTROL_REQUEST_METHOD)?;
    let method = Method::from_bytes(method.as_bytes()).ok()?;
    let place = find_route(client, table, host, uri, parts, &method).ok()?;
    let policies = table.routing.routes[place].policies.as_ref()?;
    policies.answers_preflights().then_some(place)
}

/// What a redirect may repeat; `headers` are as the endpoint would see them, so that the scheme is a trusted
/// proxy's or this connection's.
fn repeatable<'a>(headers: &'a HeaderMap, uri: &'a Uri) -> Repeatable<'a> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
    let scheme = if text("x-forwarded-proto") == "https" { "https" } else { "http" };
    Repeatable { host: without_port(text("host")), uri, scheme }
}

fn find_route(
    client: &Client,
    table: &RoutingTable,
    host: Option<&HeaderValue>,
    uri: &Uri,
    parts: &Parts,
    method: &Method,
) -> Result<usize, ProxyError> {
    let index = table.index(client.listener.id).ok_or(ProxyError::NoRoute)?;
    let host = host.and_then(|host| host.to_str().ok()).map_or("", without_port);
    // A name that ends with the root is the same name (RFC 1034, section 3.1), and endpoints take it so.
    let host = host.strip_suffix('.').unwrap_or(host);
    let (path, query) = (uri.path(), uri.query());
    match index.find(&Asked { host, path, query, method, headers: &parts.headers }) {
        Found::Route(place) => Ok(place),
        Found::OtherMethods(methods) => Err(ProxyError::MethodNotAllowed(methods)),
        Found::Nothing => Err(ProxyError::NoRoute),
    }
}

/// The host asked for, with its port: `framing` has seen that target and Host name the same one.
fn host_of(parts: &Parts) -> Option<HeaderValue> {
    match parts.uri.authority() {
        Some(authority) => HeaderValue::try_from(authority.as_str()).ok(),
        None => parts.headers.get(header::HOST).cloned(),
    }
}

fn without_port(host: &str) -> &str {
    match host.rfind(':') {
        // An IPv6 address keeps its colons.
        Some(colon) if !host[colon..].contains(']') => &host[..colon],
        _ => host,
    }
}

const BAD_PATH: ProxyError = ProxyError::Malformed(
    "the path has an encoded slash, a hidden dot segment, a NUL or a broken percent-encoding",
);

/// The target as it is routed and sent, path in its one form, and query; and whether the path has an encoded
/// slash. Nothing is allocated where the client sent it so.
fn origin_form(method: &Method, uri: &Uri) -> Result<(Uri, bool), ProxyError> {
    if uri.path() == "*" && method == Method::OPTIONS {
        return Ok((uri.clone(), false));
    }
    let path = path::normalize(uri.path()).map_err(|_| BAD_PATH)?;
    if matches!(path.text, std::borrow::Cow::Borrowed(_)) && uri.authority().is_none() {
        return Ok((uri.clone(), false));
    }
    let encoded_slash = path.encoded_slash;
    Ok((path.target(uri.query()).map_err(|_| BAD_PATH)?, encoded_slash))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_read_without_its_port() {
        for (host, expected) in
            [("a.example:80", "a.example"), ("a", "a"), ("[::1]:80", "[::1]"), ("[::1]", "[::1]"), ("", "")]
        {
            assert_eq!(without_port(host), expected);
        }
    }

    #[test]
    fn a_target_is_sent_in_origin_form() {
        for (target, expected) in [
            ("/a?b=%2F", "/a?b=%2F"),
            ("http://h.example/a//b?x", "/a/b?x"),
            ("http://h.example", "/"),
            ("/a/../b", "/b"),
        ] {
            let uri: Uri = target.parse().unwrap();
            assert_eq!(origin_form(&Method::GET, &uri).unwrap().0, expected, "{target}");
        }
        let uri: Uri = "/a%2fb".parse().unwrap();
        assert_eq!(origin_form(&Method::GET, &uri).unwrap(), (Uri::from_static("/a%2Fb"), true));
    }
}
