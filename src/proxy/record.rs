//! What is kept of a request until its end: then it is counted, and logged if the access log is on.
//!
//! Job: [`Record`] lives as long as the answer's body. Invariants: every request is counted once and logged at most
//! once, whatever becomes of it; without an access log nothing is kept for it, and each note costs one branch.
//! Neighbours: `http` begins it, `forward` notes the way to the endpoint in its [`Journey`], `figures` count,
//! `telemetry::access_log` takes the line.

use std::{
    cell::{Cell, RefCell},
    net::IpAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, Version, header, request::Parts};

use super::{
    client::Client,
    client_address::{TrustedProxies, client_address},
    error::{ProxyError, Row},
    figures::{RouteFigures, method_label},
    headers::RequestId,
    listener::ListenerState,
    policy::{Compressor, Passed},
    upstream::View,
    worker::Worker,
};
use crate::telemetry::access_log::Entry;

/// What a request is counted as when its client left before the answer; nginx's number, for want of a standard.
const CLIENT_LEFT: u16 = 499;

/// How an exchange ended that no [`ProxyError`] ended. The first one holds until another is known.
pub(super) const CLIENT_LEFT_REASON: &str = "client_left";
pub(super) const COMPLETE: &str = "complete";
pub(super) const UPSTREAM_CUT: &str = "upstream_cut";
/// It was still under way at the drain's deadline.
const DRAIN_CUT: &str = "drain_cut";
/// One side of a stream was gone without an end, which the other was told.
const RESET: &str = "reset";

/// A request being counted: what it has come to is counted when this is dropped.
#[derive(Debug)]
pub(super) struct Record {
    client: Rc<Client>,
    pub(super) figures: Rc<RouteFigures>,
    pub(super) started: Instant,
    method: &'static str,
    /// 499 until there is an answer: the client went away.
    status: u16,
    reason: &'static str,
    response_bytes: u64,
    /// Whose request it is, once somebody asked.
    client_address: Option<IpAddr>,
    /// None: the route has no policies.
    pub(super) passed: Option<Box<Passed>>,
    /// None: there is no access log.
    journey: Option<Rc<Journey>>,
}

/// What only the access log wants to know.
#[derive(Debug)]
pub(super) struct Journey {
    method: Method,
    target: RefCell<Uri>,
    version: Version,
    host: Option<HeaderValue>,
    user_agent: Option<HeaderValue>,
    request_id: HeaderValue,
    trace_id: Option<HeaderValue>,
    endpoint: RefCell<Option<Arc<str>>>,
    attempts: Cell<u32>,
    queue: Cell<Option<Duration>>,
    connect: Cell<Option<Duration>>,
    first_byte: Cell<Option<Instant>>,
    request_bytes: Cell<u64>,
}

/// A stream to be logged: when this is dropped.
#[derive(Debug)]
pub(super) struct StreamRecord {
    worker: Rc<Worker>,
    listener: Rc<ListenerState>,
    client: IpAddr,
    started: Instant,
    host: RefCell<Option<String>>,
    service: RefCell<Option<Arc<str>>>,
    endpoint: RefCell<Option<Arc<str>>>,
    attempts: Cell<u32>,
    connect: Cell<Option<Duration>>,
    reason: Cell<&'static str>,
    pub(super) carried: Rc<Carried>,
}

/// What a stream has carried so far.
#[derive(Debug, Default)]
pub(super) struct Carried {
    /// Bytes to the endpoint.
    pub(super) up: Cell<u64>,
    /// Bytes to the client.
    pub(super) down: Cell<u64>,
    /// It did not end as both sides wanted.
    pub(super) reset: Cell<bool>,
}

// === impl Record ===

impl Record {
    /// A request whose head is here.
    pub(super) fn begin(
        client: &Rc<Client>,
        view: &View,
        started: Instant,
        parts: &Parts,
        request_id: &RequestId,
    ) -> Self {
        let mut record = Self {
            client: Rc::clone(client),
            figures: Rc::clone(&client.worker.unrouted),
            started,
            method: method_label(&parts.method),
            status: CLIENT_LEFT,
            reason: CLIENT_LEFT_REASON,
            response_bytes: 0,
            client_address: None,
            passed: None,
            journey: None,
        };
        if client.worker.access_log.is_some() {
            record.client_address(&parts.headers, &view.table.routing.trusted_proxies);
            record.journey = Some(Rc::new(Journey::begin(parts, request_id)));
        }
        record
    }

    /// Whose request it is.
    pub(super) fn client(&self) -> &Rc<Client> {
        &self.client
    }

    /// The client's address, worked out once.
    pub(super) fn client_address(&mut self, headers: &HeaderMap, trusted: &TrustedProxies) -> IpAddr {
        let peer = self.client.address;
        *self.client_address.get_or_insert_with(|| client_address(headers, peer, trusted))
    }

    /// What the route's policies do to the head of the answer, whoever gave it.
    pub(super) fn finish(&self, headers: &mut HeaderMap) {
        if let Some(passed) = &self.passed {
            passed.finish(headers);
        }
    }

    /// Encodes the endpoint's answer, if a policy says so and its client gains by it.
    pub(super) fn compress(
        &self,
        status: StatusCode,
        headers: &mut HeaderMap,
        length: Option<u64>,
    ) -> Option<Compressor> {
        self.passed.as_ref()?.compress(status, headers, length)
    }

    /// The request goes by another id.
    pub(super) fn renamed(&mut self, id: &HeaderValue) {
        if let Some(journey) = self.journey.as_mut().and_then(Rc::get_mut) {
            journey.request_id = id.clone();
        }
    }

    /// For notes on the way.
    pub(super) fn journey(&self) -> Option<&Rc<Journey>> {
        self.journey.as_ref()
    }

    /// The endpoint's answer has begun.
    pub(super) fn answered(&mut self, status: StatusCode) {
        self.status = status.as_u16();
        if let Some(journey) = &self.journey {
            journey.first_byte.set(Some(Instant::now()));
        }
    }

    /// The route has an answer of its own.
    pub(super) fn answered_by_route(&mut self, status: StatusCode) {
        self.status = status.as_u16();
        self.reason = COMPLETE;
    }

    /// The gateway answers itself.
    pub(super) fn failed(&mut self, row: &Row) {
        self.status = row.status.as_u16();
        self.reason = row.reason;
    }

    /// So much more of the answer's body went to the client.
    pub(super) fn sent(&mut self, bytes: usize) {
        self.response_bytes += bytes as u64;
    }

    /// What became of the tunnel that the request asked for.
    pub(super) fn carried(&mut self, carried: &Carried, ended: &Result<(), ProxyError>) {
        self.reason = carried.reason(ended);
        self.response_bytes += carried.down.get();
        if let Some(journey) = &self.journey {
            journey.request_bytes.set(carried.up.get());
        }
    }

    /// How the endpoint's answer ended.
    pub(super) fn ended(&mut self, reason: &'static str) {
        self.reason = reason;
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let now = Instant::now();
        let total = now.saturating_duration_since(self.started);
        self.figures.count(self.method, self.status, total);
        if let Some(journey) = self.journey.take() {
            journey.log(self, total);
        }
        self.client.exchange_ends(now);
    }
}

// === impl Journey ===

impl Journey {
    /// Takes out of the target what nobody may read in a log.
    pub(super) fn redact(&self, take_out: impl FnOnce(&mut Uri)) {
        take_out(&mut self.target.borrow_mut());
    }

    fn begin(parts: &Parts, request_id: &RequestId) -> Self {
        Self {
            method: parts.method.clone(),
            target: RefCell::new(parts.uri.clone()),
            version: parts.version,
            host: parts.headers.get(header::HOST).cloned(),
            user_agent: parts.headers.get(header::USER_AGENT).cloned(),
            request_id: request_id.id.clone(),
            trace_id: request_id.trace_id(&parts.headers),
            endpoint: RefCell::default(),
            attempts: Cell::default(),
            queue: Cell::default(),
            connect: Cell::default(),
            first_byte: Cell::default(),
            request_bytes: Cell::default(),
        }
    }

    /// An endpoint is tried.
    pub(super) fn attempt(&self, endpoint: &Arc<str>) {
        self.attempts.set(self.attempts.get().saturating_add(1));
        *self.endpoint.borrow_mut() = Some(Arc::clone(endpoint));
    }

    /// It waited for a place in the pool since then.
    pub(super) fn queued(&self, since: Instant) {
        add(&self.queue, since.elapsed());
    }

    /// A connection was opened, or not, since then.
    pub(super) fn connected(&self, since: Instant) {
        add(&self.connect, since.elapsed());
    }

    /// So much more of the client's body was read.
    pub(super) fn received(&self, bytes: usize) {
        self.request_bytes.set(self.request_bytes.get() + bytes as u64);
    }

    fn log(&self, record: &Record, total: Duration) {
        let client = &record.client;
        let Some(lines) = &client.worker.access_log else { return };
        let vouched_for;
        let address = match record.client_address {
            Some(address) if address != client.address => {
                vouched_for = address.to_string();
                vouched_for.as_bytes()
            }
            Some(_) | None => client.peer.ip.as_bytes(),
        };
        let absolute;
        let uri = self.target.borrow();
        let target = match uri.path_and_query() {
            Some(target) if uri.authority().is_none() => target.as_str(),
            _ => {
                absolute = uri.to_string();
                &absolute
            }
        };
        let (route, service) = record.figures.names();
        lines.add(&Entry {
            client: address,
            listener: &client.listener.name.borrow(),
            method: Some(self.method.as_str()),
            target: Some(target.as_bytes()),
            protocol: if self.version == Version::HTTP_10 { "HTTP/1.0" } else { "HTTP/1.1" },
            host: self.host.as_ref().map(HeaderValue::as_bytes),
            status: Some(record.status),
            route: Some(&**route).filter(|name| !name.is_empty()),
            service: Some(&**service).filter(|name| !name.is_empty()),
            endpoint: self.endpoint.borrow().as_deref(),
            attempts: self.attempts.get(),
            queue: self.queue.get(),
            connect: self.connect.get(),
            first_byte: self.first_byte.get().map(|at| at.saturating_duration_since(record.started)),
            total,
            request_bytes: self.request_bytes.get(),
            response_bytes: record.response_bytes,
            reason: match record.reason {
                CLIENT_LEFT_REASON if client.worker.is_cut() => DRAIN_CUT,
                reason => reason,
            },
            request_id: Some(self.request_id.as_bytes()),
            trace_id: self.trace_id.as_ref().map(HeaderValue::as_bytes),
            user_agent: self.user_agent.as_ref().map(HeaderValue::as_bytes),
        });
    }
}

fn add(sum: &Cell<Option<Duration>>, more: Duration) {
    sum.set(Some(sum.get().unwrap_or_default() + more));
}

// === impl StreamRecord ===

impl StreamRecord {
    /// A stream that was accepted; none where there is no access log.
    pub(super) fn begin(
        worker: &Rc<Worker>,
        listener: &Rc<ListenerState>,
        client: IpAddr,
    ) -> Option<Rc<Self>> {
        worker.access_log.as_ref()?;
        Some(Rc::new(Self {
            worker: Rc::clone(worker),
            listener: Rc::clone(listener),
            client,
            started: Instant::now(),
            host: RefCell::default(),
            service: RefCell::default(),
            endpoint: RefCell::default(),
            attempts: Cell::default(),
            connect: Cell::default(),
            reason: Cell::new(DRAIN_CUT),
            carried: Rc::default(),
        }))
    }

    /// The name that a TLS client asked for.
    pub(super) fn asked_for(&self, name: Option<String>) {
        *self.host.borrow_mut() = name;
    }

    /// Its service is known.
    pub(super) fn goes_to(&self, service: &Arc<str>) {
        *self.service.borrow_mut() = Some(Arc::clone(service));
    }

    /// An endpoint is tried, now.
    pub(super) fn attempt(&self, endpoint: &Arc<str>) -> Instant {
        self.attempts.set(self.attempts.get().saturating_add(1));
        *self.endpoint.borrow_mut() = Some(Arc::clone(endpoint));
        Instant::now()
    }

    /// A connection was opened, or not, since then.
    pub(super) fn connected(&self, since: Instant) {
        add(&self.connect, since.elapsed());
    }

    /// What became of it.
    pub(super) fn ended(&self, result: &Result<(), ProxyError>) {
        self.reason.set(match result {
            Ok(()) if self.endpoint.borrow().is_none() => CLIENT_LEFT_REASON,
            result => self.carried.reason(result),
        });
    }
}

impl Drop for StreamRecord {
    fn drop(&mut self) {
        let Some(lines) = &self.worker.access_log else { return };
        lines.add(&Entry {
            client: self.client.to_string().as_bytes(),
            listener: &self.listener.name.borrow(),
            protocol: "TCP",
            host: self.host.borrow().as_deref().map(str::as_bytes),
            service: self.service.borrow().as_deref(),
            endpoint: self.endpoint.borrow().as_deref(),
            attempts: self.attempts.get(),
            connect: self.connect.get(),
            total: self.started.elapsed(),
            request_bytes: self.carried.up.get(),
            response_bytes: self.carried.down.get(),
            reason: self.reason.get(),
            ..Entry::default()
        });
    }
}

// === impl Carried ===

impl Carried {
    fn reason(&self, ended: &Result<(), ProxyError>) -> &'static str {
        match ended {
            Err(error) => error.row().reason,
            Ok(()) if self.reset.get() => RESET,
            Ok(()) => COMPLETE,
        }
    }
}

// === refusals without a request ===

/// Counts and logs what was refused before there was a request to answer; the id that its client is told.
pub(super) fn refuse(
    worker: &Worker,
    listener: &ListenerState,
    client: &[u8],
    refusal: &ProxyError,
) -> HeaderValue {
    let row = refusal.row();
    worker.figures.reject(row.reason);
    let id = RequestId::of(&HeaderMap::new(), || worker.random()).id;
    if let Some(lines) = &worker.access_log {
        lines.add(&Entry {
            client,
            listener: &listener.name.borrow(),
            protocol: "HTTP/1.1",
            status: Some(row.status.as_u16()),
            reason: row.reason,
            request_id: Some(id.as_bytes()),
            ..Entry::default()
        });
    }
    id
}
