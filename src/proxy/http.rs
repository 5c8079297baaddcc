//! One client connection and its HTTP requests, from first byte to last count.
//!
//! Job: [`serve`] runs hyper over a client's socket; [`answer`] is the life of one request. Invariants: a request
//! uses one [`View`] from its beginning to its end; every failure is a [`ProxyError`]; every request is counted
//! once, when its answer's body is gone. Neighbours: `listener` hands over sockets, `route_match` finds the
//! route, `headers` cleans, `forward` sends.

use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    future::{Future, poll_fn},
    net::IpAddr,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header, request::Parts};
use http_body::Body;
use hyper::{
    body::Incoming,
    server::conn::http1,
    service::{HttpService, service_fn},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{
    action::{Action, CompiledRoute},
    alarm::Alarm,
    balance::hash_key,
    error::{Blame, ProxyError},
    fixed::Repeatable,
    forward::{AnswerBody, Answered, Line, Outgoing, Terms, forward},
    framing::Framing,
    headers::{self, Peer, RequestId},
    listener::{ListenerState, Permit},
    mirror, path,
    policy::{self, Passed, Passing, recovery},
    proxy_protocol::Addresses,
    record::{self, Record},
    route_match::{Asked, Found},
    sticky,
    stream::ClientStream,
    table::RoutingTable,
    upgrade::{self, Opened, Tunnel},
    upload::Upload,
    upstream::View,
    worker::Worker,
};
use crate::{
    config::document::{Balance, Limits, Service},
    telemetry::metrics::OTHER,
};

/// For so long a connection without a request keeps hyper at hand, while no more than [`AWAKE_MAX`] of the worker
/// do: with few, what they keep stays in the processor's caches; with many, making it anew from memory that another
/// connection just left is cheaper, and small.
const AWAKE: Duration = Duration::from_secs(1);
const AWAKE_MAX: usize = 128;
/// For how long what a client still sends is read after the last answer. Closing at once would reset the
/// connection, and the reset overtakes the answer.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BUFFER: usize = 16 << 10;
/// hyper's smallest buffer; `framing` holds the document's own bound.
const BUFFER_MIN: usize = 8 << 10;
const BUFFER_MAX: usize = 400 << 10;
/// More fields than this make hyper allocate for each request.
const FIELDS_WITHOUT_ALLOCATION: usize = 100;

/// A client's connection, shared by everything that works for it.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) worker: Rc<Worker>,
    pub(super) alarm: Rc<Alarm>,
    pub(super) listener: Rc<ListenerState>,
    pub(super) address: IpAddr,
    /// The connection's ends, as endpoints are told that ask for it.
    pub(super) ends: Addresses,
    pub(super) peer: Peer,
    header_timeout: Duration,
    /// How long it is kept for the next request.
    keep_alive: Duration,
    /// Between a request's head and the end of its answer.
    exchange: Cell<bool>,
    /// Reading stopped until the exchange under way is over.
    stalled: Cell<bool>,
    /// Requests whose answers are over.
    answered: Cell<u64>,
    /// What follows on the connection instead of HTTP.
    tunnel: RefCell<Option<Box<Tunnel>>>,
    /// As far as the stream knows, hyper holds nothing for this connection.
    still: Cell<bool>,
    /// The alarm is set to the moment when hyper is taken away.
    dozing: Cell<bool>,
    /// A field's name with an underscore came along.
    underscores: Cell<bool>,
}

/// Counts a connection that has hyper at hand.
struct Awake<'a>(&'a Worker);

// === impl Client ===

impl Client {
    /// Whether a request is being answered.
    pub(super) fn exchange_under_way(&self) -> bool {
        self.exchange.get()
    }

    /// How many requests have been answered, or given up.
    pub(super) fn answered(&self) -> u64 {
        self.answered.get()
    }

    /// Reading goes no further until the exchange under way is over.
    pub(super) fn stall(&self) {
        self.stalled.set(true);
    }

    /// The stream says whether it waits for a request that has not begun.
    pub(super) fn set_still(&self, still: bool) {
        self.still.set(still);
    }

    /// Whether hyper can be taken away without a loss.
    fn is_at_rest(&self) -> bool {
        self.still.get() && !self.exchange.get()
    }

    /// Whether nothing has happened for long enough to take hyper away. From then on the alarm is set to the moment
    /// when the connection is closed.
    fn falls_asleep(&self) -> bool {
        let asleep = self.dozing.get() && self.alarm.rang();
        if asleep {
            self.sleep();
        }
        asleep
    }

    fn sleep(&self) {
        if self.dozing.replace(false) {
            self.alarm.set(self.worker.alarms.soon() + self.keep_alive.saturating_sub(AWAKE));
        }
    }

    /// A request is here.
    fn exchange_begins(&self) {
        self.exchange.set(true);
        self.dozing.set(false);
    }

    /// From now on requests may have names with underscores.
    pub(super) fn expect_underscores(&self) {
        self.underscores.set(true);
    }

    /// The first bytes of a head are here: the rest must follow in time.
    pub(super) fn head_began(&self) {
        self.dozing.set(false);
        self.alarm.set(self.worker.alarms.soon() + self.header_timeout);
    }

    /// Waits for `work` until the alarm rings.
    pub(super) async fn in_time<T>(
        &self,
        work: impl Future<Output = Result<T, ProxyError>>,
        late: ProxyError,
    ) -> Result<T, ProxyError> {
        let mut work = pin!(work);
        let done = poll_fn(|cx| match work.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending if self.alarm.rang() => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        });
        done.await.unwrap_or(Err(late))
    }

    /// It may be read as slowly as any other body.
    fn own_answer_begins(&self) {
        self.alarm.set_ceiling(None);
        self.alarm.set(self.worker.alarms.soon() + self.keep_alive);
    }

    /// The answer is over.
    pub(super) fn exchange_ends(&self, now: Instant) {
        self.alarm.set_ceiling(None);
        self.alarm.set(now + AWAKE.min(self.keep_alive));
        self.dozing.set(true);
        self.exchange.set(false);
        self.answered.set(self.answered.get() + 1);
        if self.stalled.take() {
            self.alarm.wake();
        }
    }
}

/// Lets go of a tunnel that its connection did not live to carry: it holds the client, which holds it.
struct Unclaimed(Rc<Client>);

impl Drop for Unclaimed {
    fn drop(&mut self) {
        drop(self.0.tunnel.take());
    }
}

// === impl Awake ===

impl<'a> Awake<'a> {
    fn begin(worker: &'a Worker) -> Self {
        worker.awake.set(worker.awake.get() + 1);
        Self(worker)
    }
}

impl Drop for Awake<'_> {
    fn drop(&mut self) {
        self.0.awake.set(self.0.awake.get() - 1);
    }
}

// === a connection ===

/// Serves a client until either side has had enough. The permit goes with the connection.
pub(super) async fn serve(
    worker: Rc<Worker>,
    listener: Rc<ListenerState>,
    tcp: TcpStream,
    ends: Addresses,
    permit: Permit,
) {
    let limits = Arc::clone(&worker.view().table.routing.limits);
    let address = ends.source.ip().to_canonical();
    let client = Rc::new(Client {
        alarm: worker.alarms.add(),
        address,
        ends,
        peer: Peer {
            ip: HeaderValue::try_from(address.to_string()).unwrap_or(HeaderValue::from_static("unknown")),
            port: listener.port.clone(),
        },
        header_timeout: limits.header_timeout,
        keep_alive: limits.keep_alive,
        exchange: Cell::new(false),
        stalled: Cell::new(false),
        answered: Cell::new(0),
        tunnel: RefCell::new(None),
        still: Cell::new(false),
        dozing: Cell::new(false),
        underscores: Cell::new(false),
        listener,
        worker,
    });
    let _unclaimed = Unclaimed(Rc::clone(&client));
    client.head_began();
    let mut stream = ClientStream::new(tcp, Framing::new(Arc::clone(&limits)), Rc::clone(&client));
    loop {
        if !next_request(&client, &stream).await {
            return;
        }
        // In a box: what rests is small.
        let mut connection = Box::new(hyper_for(&client, stream, &limits));
        let awake = Awake::begin(&client.worker);
        let mut draining = false;
        let over = poll_fn(|cx| {
            // Before hyper, which would take the alarm for the client's last one.
            let asleep = client.falls_asleep();
            if client.worker.is_draining() && !draining {
                draining = true;
                Pin::new(&mut *connection).graceful_shutdown();
            }
            match Pin::new(&mut *connection).poll(cx) {
                // How the connection ended matters to nobody: requests are counted by their records.
                Poll::Ready(_) => Poll::Ready(true),
                Poll::Pending if client.is_at_rest() && (asleep || client.worker.awake.get() > AWAKE_MAX) => {
                    Poll::Ready(false)
                }
                Poll::Pending => Poll::Pending,
            }
        })
        .await;
        drop(awake);
        stream = connection.into_parts().io.into_inner();
        if over {
            break;
        }
        client.sleep();
    }
    let tunnel = client.tunnel.take();
    if let Some(tunnel) = tunnel {
        if let Some((tcp, first)) = stream.into_tunnel() {
            Box::pin(upgrade::carry(&client, tcp, first, tunnel)).await;
        }
        return drop(permit);
    }
    if client.exchange_under_way() {
        return;
    }
    let (tcp, refusal, unread) = stream.into_parts();
    if refusal.is_some() || unread {
        Box::pin(say_goodbye(&client, tcp, refusal)).await;
    }
    drop(permit);
}

/// Waits for a request's first byte, or the client's end; false: neither came in time. Meanwhile the connection
/// holds its socket and little more: buffers and parser are made when they are needed, from memory that the last
/// request left warm.
async fn next_request(client: &Client, stream: &ClientStream) -> bool {
    poll_fn(|cx| {
        client.alarm.belongs_to(cx.waker());
        if client.worker.is_draining() {
            return Poll::Ready(false);
        }
        match stream.poll_readable(cx) {
            Poll::Ready(()) => Poll::Ready(true),
            Poll::Pending if client.alarm.rang() => Poll::Ready(false),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// hyper over a client's socket, for one or more requests.
fn hyper_for(
    client: &Rc<Client>,
    stream: ClientStream,
    limits: &Limits,
) -> http1::Connection<
    TokioIo<ClientStream>,
    impl HttpService<Incoming, ResBody = AnswerBody, Error = Infallible> + use<>,
> {
    let mut builder = http1::Builder::new();
    builder.header_read_timeout(None).max_buf_size(limits.header_bytes.max(BUFFER_MIN).max(BUFFER_MAX));
    if limits.headers > FIELDS_WITHOUT_ALLOCATION {
        builder.max_headers(limits.headers);
    }
    let client = Rc::clone(client);
    let service = service_fn(move |request| {
        // Not in the answer's future, which is polled later: hyper reads on before.
        client.exchange_begins();
        answer(Rc::clone(&client), request)
    });
    builder.serve_connection(TokioIo::new(stream), service)
}

/// Tells the client why it was read no further, and lets what it still sends run out.
async fn say_goodbye(client: &Client, mut tcp: TcpStream, refusal: Option<ProxyError>) {
    if let Some(refusal) = &refusal {
        let id = record::refuse(&client.worker, &client.listener, client.peer.ip.as_bytes(), refusal);
        client.worker.unrouted.count(OTHER, refusal.row().status.as_u16(), Duration::ZERO);
        let written = tokio::time::timeout(LINGER, tcp.write_all(&refusal.raw_response(&id))).await;
        if !matches!(written, Ok(Ok(()))) {
            return;
        }
    }
    linger(tcp).await;
}

async fn linger(mut tcp: TcpStream) {
    let discard = async {
        tcp.shutdown().await?;
        let mut buffer = vec![0; LINGER_BUFFER];
        while tcp.read(&mut buffer).await? > 0 {}
        std::io::Result::Ok(())
    };
    // Whatever happens, the connection is closed next.
    let _ = tokio::time::timeout(LINGER, discard).await;
}

// === a request ===

/// The life of one request. Failures are answers.
async fn answer(client: Rc<Client>, request: Request<Incoming>) -> Result<Response<AnswerBody>, Infallible> {
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
            record.answered(endpoint.response.status());
            let (mut parts, incoming) = endpoint.response.into_parts();
            headers::prepare_answer(&mut parts.headers);
            record.finish(&mut parts.headers);
            let compressor = if incoming.is_end_stream() {
                None
            } else {
                record.compress(parts.status, &mut parts.headers, incoming.size_hint().exact())
            };
            let mut body = match endpoint.rest {
                Rest::Body(line) => AnswerBody::endpoint(incoming, line, endpoint.idle, &client, record),
                Rest::Tunnel(opened) => {
                    close = false;
                    upgrade::grant(&mut parts.headers, &opened);
                    *client.tunnel.borrow_mut() = Some(Box::new(Tunnel { opened, record }));
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
#[expect(
    clippy::large_enum_variant,
    reason = "the large one is the usual one, and a box would cost each request"
)]
enum Answer {
    Endpoint(FromEndpoint),
    /// The route's own, or a policy's.
    Fixed(Response<Bytes>),
}

/// An endpoint's answer, its body still to come.
struct FromEndpoint {
    response: Response<Incoming>,
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
    if client.underscores.get() {
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
    let outgoing = Outgoing { method: parts.method, uri, headers: parts.headers, upload: upload.clone() };
    // A copy of an upgrade would be a stream that nobody speaks on.
    if let Some(mirror) = &route.mirror
        && asked.is_none()
        && mirror.turns.take() == 0
    {
        mirror::begin(client, &view.upstreams[mirror.upstream], &outgoing);
    }
    let Answered { mut response, line } = forward(client, upstream, outgoing, &terms, record).await?;
    if let Some(sticky) = &service.sticky {
        let pin = line.picked.pin();
        if terms.pinned != Some(pin) {
            sticky::set(sticky, pin, response.headers_mut());
        }
    }
    client.alarm.set_ceiling(None);
    let early = upload.is_some_and(|upload| !upload.has_ended());
    let rest = if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let idle = view.table.listener(client.listener.id).and_then(|listener| listener.idle);
        let opened = upgrade::open(asked, response.headers(), line, idle.unwrap_or(timeouts.stream));
        Rest::Tunnel(opened.ok_or(ProxyError::UpstreamMalformed)?)
    } else {
        Rest::Body(line)
    };
    Ok(Answer::Endpoint(FromEndpoint { response, rest, idle: timeouts.idle, early }))
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
