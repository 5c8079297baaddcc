//! Send a request to one endpoint, and stream its answer back.
//!
//! Job: choose an endpoint, take a pooled connection or open one, send under deadlines, and decide whether a
//! failure may be met by sending again: always where the request never left; where a reused connection turned
//! out to be closed before any byte of an answer, if the method is idempotent and nothing of a body is gone
//! (RFC 9110, section 9.2.2; RFC 9112, section 9.3.1). So a stale pooled connection never becomes a 502.
//! Beyond that a route's `retries` say what is tried again, and `retry` decides.
//! Neighbours: `http` calls it, `pool` lends, `upload` carries the body.

use std::{
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use http::{StatusCode, response};
use http_body::{Body, Frame, SizeHint};

use super::{
    client::Client,
    connection,
    error::ProxyError,
    framing::answer::Part,
    headers,
    outgoing::Outgoing,
    policy::{Compressor, recovery},
    pool::{Lease, Pool},
    proxy_protocol,
    record::{self, Journey, Record},
    retry::{self, Failure},
    upload::Upload,
    upstream::{LocalUpstream, Picked, Wish},
};
use crate::config::document::Retries;

/// How a request wants to be sent.
#[derive(Debug)]
pub(super) struct Terms<'a> {
    /// Of what `consistent_hash` looks at.
    pub(super) hash: Option<u64>,
    /// The endpoint that the client's cookie names.
    pub(super) pinned: Option<u64>,
    pub(super) retries: Option<&'a Retries>,
    /// For one attempt, from its last byte to the head of the answer.
    pub(super) answer_within: Duration,
    /// The end of the route's time.
    pub(super) until: Option<Instant>,
}

/// How one attempt ended.
enum Attempt {
    Answered(response::Parts),
    /// The request never left, or met a connection that the endpoint had closed: it may be sent again.
    Unsent,
    Failed(ProxyError),
}

/// A request's attempts.
struct Trying<'a> {
    client: &'a Client,
    upstream: &'a Rc<LocalUpstream>,
    terms: &'a Terms<'a>,
    /// The endpoints that failed; nothing is allocated before one did.
    tried: Vec<u64>,
    retries: u32,
    now: Instant,
    /// Why it is to be tried again, until it is.
    failure: Option<Failure>,
    error: Option<ProxyError>,
}

/// An endpoint's answer, its body still to come.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) head: response::Parts,
    /// What the body comes by.
    pub(super) line: Line,
}

/// An endpoint and a connection to it.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) lease: Lease,
    pub(super) picked: Picked,
}

/// Sends the request and waits for the head of its answer.
pub(super) async fn forward(
    client: &Client,
    upstream: &Rc<LocalUpstream>,
    outgoing: Outgoing,
    terms: &Terms<'_>,
    record: &Record,
) -> Result<Answered, ProxyError> {
    let journey = record.journey().map(|journey| &**journey);
    let plan = &upstream.plan;
    let service = &*plan.service;
    let mut trying = Trying::new(client, upstream, terms, record.started);
    let mut stale = false;
    loop {
        let picked = trying.choose()?;
        let pool = picked.pool();
        if let Some(journey) = journey {
            journey.attempt(&pool.target.address);
        }
        let idle = if stale || service.send_proxy_protocol.is_some() {
            None
        } else {
            pool.idle_lease(&service.pool)
        };
        let mut lease = match idle {
            Some(lease) => lease,
            None => match open(client, upstream, pool, journey).await {
                Ok(lease) => lease,
                Err(error) => {
                    let Some(failure) = Failure::of(&error) else { return Err(error) };
                    picked.failed();
                    let Some(pause) = trying.again(&picked, failure) else { return Err(error) };
                    trying.error = Some(error);
                    drop(picked);
                    trying.rest(pause).await;
                    continue;
                }
            },
        };
        let time = if outgoing.body.upload().is_some() { service.timeouts.idle } else { terms.answer_within };
        client.alarm.set(client.worker.alarms.soon().max(record.started) + time);
        match send(client, &mut lease, &outgoing).await {
            Attempt::Answered(head) => {
                judge(&picked, head.status);
                if trying.replays()
                    && outgoing.is_repeatable()
                    && let Some(pause) = trying.again(&picked, Failure::Status(head.status))
                {
                    // A connection whose answer is not read to its end cannot carry another one.
                    lease.give_back();
                    drop(picked);
                    trying.rest(pause).await;
                    continue;
                }
                return Ok(Answered { head, line: Line { lease, picked } });
            }
            Attempt::Failed(error) => {
                let Some(failure) = Failure::of(&error) else { return Err(error) };
                picked.failed();
                if !(trying.replays() && outgoing.is_repeatable()) {
                    return Err(error);
                }
                let Some(pause) = trying.again(&picked, failure) else { return Err(error) };
                trying.error = Some(error);
                drop((lease, picked));
                trying.rest(pause).await;
            }
            Attempt::Unsent if stale => {
                picked.failed();
                return Err(ProxyError::UpstreamReset);
            }
            Attempt::Unsent => {
                client.worker.figures.retry(&plan.name, "stale");
                stale = true;
            }
        }
    }
}

// === impl Trying ===

impl<'a> Trying<'a> {
    fn new(client: &'a Client, upstream: &'a Rc<LocalUpstream>, terms: &'a Terms<'a>, now: Instant) -> Self {
        if terms.retries.is_some() {
            upstream.budget.request(now);
        }
        Self { client, upstream, terms, tried: Vec::new(), retries: 0, now, failure: None, error: None }
    }

    /// The endpoint for the next attempt: one that was not tried, if there is one.
    fn choose(&mut self) -> Result<Picked, ProxyError> {
        let Terms { hash, pinned, retries, .. } = *self.terms;
        let wish = Wish { hash, pinned, tried: &self.tried, now: self.now };
        let picked = match self.upstream.choose(&wish) {
            Err(_) if retries.is_some() && !self.tried.is_empty() => {
                self.upstream.choose(&Wish { tried: &[], ..wish })
            }
            picked => picked,
        };
        // What went wrong before says more than that nobody else is left.
        let picked = picked.map_err(|error| self.error.take().unwrap_or(error))?;
        if let Some(failure) = self.failure.take() {
            self.client.worker.figures.retry(&self.upstream.plan.name, failure.reason());
        }
        Ok(picked)
    }

    /// Whether answers and failures after sending may lead to another attempt.
    fn replays(&self) -> bool {
        self.terms
            .retries
            .is_some_and(|retries| self.retries < retries.attempts && retries.on.is_after_sending())
    }

    /// Whether there is another attempt after this failure, and after how long.
    fn again(&mut self, picked: &Picked, failure: Failure) -> Option<Duration> {
        let pause = match self.terms.retries {
            None => {
                let is_first = self.retries == 0 && failure == Failure::Connect;
                (is_first && self.upstream.endpoints.len() > 1).then_some(Duration::ZERO)?
            }
            Some(retries) => {
                if self.retries >= retries.attempts || !failure.is_in(retries.on) {
                    return None;
                }
                let now = Instant::now();
                let pause = retry::pause(retries, self.retries, self.client.worker.random());
                let in_time = self.terms.until.is_none_or(|until| now + pause < until);
                (in_time && self.upstream.budget.retry(retries.budget_percent, now)).then_some(pause)?
            }
        };
        self.retries += 1;
        self.tried.push(picked.id());
        self.failure = Some(failure);
        Some(pause)
    }

    async fn rest(&mut self, pause: Duration) {
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        self.now = Instant::now();
    }
}

/// What an answer's status says of its endpoint: these are a gateway's own words for one that does not work.
fn judge(picked: &Picked, status: StatusCode) {
    match status {
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
            picked.failed();
        }
        _ => picked.succeeded(),
    }
}

/// Sends the request and reads the whole answer, for the gateway's own use. A body that is longer than `bytes_max`
/// or breaks off is left out.
pub(super) async fn ask(
    client: &Client,
    upstream: &Rc<LocalUpstream>,
    outgoing: Outgoing,
    record: &Record,
    answer_within: Duration,
    bytes_max: usize,
) -> Result<(response::Parts, Option<Bytes>), ProxyError> {
    let terms = Terms { hash: None, pinned: None, retries: None, answer_within, until: None };
    let Answered { head, line } = forward(client, upstream, outgoing, &terms, record).await?;
    let Line { mut lease, picked: _picked } = line;
    let mut body = BytesMut::new();
    while let Some(connection) = lease.connection().filter(|connection| !connection.has_ended()) {
        let part = poll_fn(|cx| match connection.poll_part(cx) {
            Poll::Ready(part) => Poll::Ready(Ok(part)),
            Poll::Pending if client.alarm.rang() => Poll::Ready(Err(ProxyError::UpstreamTimeout)),
            Poll::Pending => Poll::Pending,
        });
        match part.await? {
            Ok(Some(Part::Data(data))) if body.len() + data.len() <= bytes_max => {
                body.extend_from_slice(&data);
            }
            Ok(Some(Part::Data(_))) | Err(_) => return Ok((head, None)),
            Ok(Some(_)) => {}
            // At the end, or where another protocol begins.
            Ok(None) => break,
        }
    }
    lease.give_back();
    Ok((head, Some(body.freeze())))
}

/// A lease with a connection that is new, or that another request just gave back.
async fn open(
    client: &Client,
    upstream: &LocalUpstream,
    pool: &Rc<Pool>,
    journey: Option<&Journey>,
) -> Result<Lease, ProxyError> {
    let service = &*upstream.plan.service;
    client.alarm.set(client.worker.alarms.soon() + service.timeouts.connect);
    let now = || journey.map(|journey| (journey, Instant::now()));
    let queued = now();
    let lease = client.in_time(pool.lease(&service.pool), ProxyError::PoolOverload).await;
    if let Some((journey, since)) = queued {
        journey.queued(since);
    }
    let mut lease = lease?;
    if lease.connection().is_none() {
        let header = service.send_proxy_protocol.map(|version| proxy_protocol::write(version, &client.ends));
        let opened = now();
        let connected = client
            .in_time(lease.connect(header.as_deref(), &client.worker.buffers), ProxyError::ConnectTimeout)
            .await;
        if let Some((journey, since)) = opened {
            journey.connected(since);
        }
        connected?;
    }
    Ok(lease)
}

/// Sends on a connection.
async fn send(client: &Client, lease: &mut Lease, outgoing: &Outgoing) -> Attempt {
    let Some(connection) = lease.connection() else { return Attempt::Failed(ProxyError::ConnectFailed) };
    connection.begin(outgoing);
    let outcome = poll_fn(|cx| match connection.poll_head(cx) {
        Poll::Ready(outcome) => Poll::Ready(Some(outcome)),
        Poll::Pending if client.alarm.rang() => Poll::Ready(None),
        Poll::Pending => Poll::Pending,
    })
    .await;
    let upload = outgoing.body.upload();
    let error = match outcome {
        Some(Ok(head)) => return Attempt::Answered(head),
        None if upload.is_some_and(Upload::waits_for_client) => ProxyError::RequestTimeout,
        None => ProxyError::UpstreamTimeout,
        Some(Err(failure)) => {
            if let Some(failure) = upload.and_then(Upload::failure) {
                return Attempt::Failed(failure);
            }
            let is_stale = connection.reused && !connection.has_received() && outgoing.is_repeatable();
            // A body may have been read for a write that failed.
            let never_left = !connection.has_left() && outgoing.body.is_untouched();
            if is_stale || never_left {
                return Attempt::Unsent;
            }
            match failure {
                connection::Failure::Malformed => ProxyError::UpstreamMalformed,
                _ => ProxyError::UpstreamReset,
            }
        }
    };
    Attempt::Failed(error)
}

// === impl AnswerBody ===

/// What hyper sends to the client.
#[derive(Debug)]
pub(super) struct AnswerBody {
    content: Content,
    client: Rc<Client>,
    /// Encodes the content on its way.
    compressor: Option<Box<Compressor>>,
    /// Counts the request when the body is gone; none: something else does.
    record: Option<Record>,
}

#[derive(Debug)]
enum Content {
    Own(Option<Bytes>),
    /// No line: it is whole.
    Endpoint {
        line: Option<Line>,
        idle: Duration,
    },
    /// The body ended before its time.
    Broken(std::io::ErrorKind),
}

impl AnswerBody {
    /// The gateway's own words.
    pub(super) fn own(content: Bytes, client: &Rc<Client>, record: Record) -> Self {
        Self {
            content: Content::Own(Some(content)),
            client: Rc::clone(client),
            compressor: None,
            record: Some(record),
        }
    }

    /// Nothing, for an answer after which something else than HTTP follows.
    pub(super) fn nothing(client: &Rc<Client>) -> Self {
        Self { content: Content::Own(None), client: Rc::clone(client), compressor: None, record: None }
    }

    /// An endpoint's body, which may stand still for `idle`.
    pub(super) fn endpoint(line: Line, idle: Duration, client: &Rc<Client>, record: Record) -> Self {
        client.alarm.set(client.worker.alarms.soon() + idle);
        let content = Content::Endpoint { line: Some(line), idle };
        let mut body = Self { content, client: Rc::clone(client), compressor: None, record: Some(record) };
        if body.is_end_stream() {
            body.end();
        }
        body
    }

    /// The same, encoded.
    pub(super) fn compressed(self, compressor: Compressor) -> Self {
        Self { compressor: Some(Box::new(compressor)), ..self }
    }

    /// Fails at the next poll: what came before the failure is written out first, for hyper drops what it holds
    /// when a body fails.
    fn break_off<T>(&mut self, cx: &Context<'_>, kind: std::io::ErrorKind) -> Poll<T> {
        self.ended(record::UPSTREAM_CUT);
        if let Content::Endpoint { line: Some(line), .. } = &self.content {
            line.picked.failed();
        }
        self.content = Content::Broken(kind);
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn ended(&mut self, reason: &'static str) {
        if let Some(record) = &mut self.record {
            record.ended(reason);
        }
    }

    /// The answer is whole: its connection may carry the next one.
    fn end(&mut self) {
        self.ended(record::COMPLETE);
        if let Content::Endpoint { line, .. } = &mut self.content
            && let Some(Line { lease, .. }) = line.take()
        {
            lease.give_back();
        }
    }
}

impl AnswerBody {
    /// The next piece for the client.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        let Some(mut compressor) = self.compressor.take() else { return self.poll_content(cx) };
        if compressor.is_tired() {
            self.compressor = Some(compressor);
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let piece = compressor.poll_frame(|| self.poll_content(cx));
        self.compressor = Some(compressor);
        piece
    }

    /// The next piece as it came.
    fn poll_content(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        let this = self;
        let (line, idle) = match &mut this.content {
            Content::Own(content) => {
                return Poll::Ready(content.take().map(|bytes| Ok(Frame::data(bytes))));
            }
            Content::Endpoint { line, idle } => (line, *idle),
            Content::Broken(kind) => return Poll::Ready(Some(Err((*kind).into()))),
        };
        let connection = line.as_mut().and_then(|line| line.lease.connection());
        let Some(connection) = connection else { return Poll::Ready(None) };
        let Poll::Ready(part) = connection.poll_part(cx) else {
            let late = this.client.alarm.rang();
            return if late { this.break_off(cx, std::io::ErrorKind::TimedOut) } else { Poll::Pending };
        };
        let frame = match part {
            Ok(Some(Part::Data(data))) => Some(Frame::data(data)),
            Ok(Some(Part::Trailers(mut trailers))) => {
                headers::prepare_trailers(&mut trailers);
                Some(Frame::trailers(trailers))
            }
            Ok(Some(Part::Head(_))) | Err(_) => {
                return this.break_off(cx, std::io::ErrorKind::UnexpectedEof);
            }
            Ok(None) => None,
        };
        if connection.has_ended() {
            this.end();
        } else {
            this.client.alarm.set(this.client.worker.alarms.soon() + idle);
        }
        Poll::Ready(frame.map(Ok))
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        let Some(piece) = recovery::catch(|| this.poll_piece(cx)) else {
            let reason = ProxyError::Panicked.row().reason;
            this.client.worker.figures.reject(reason);
            this.ended(reason);
            this.content = Content::Broken(std::io::ErrorKind::Other);
            return Poll::Ready(Some(Err(std::io::ErrorKind::Other.into())));
        };
        if let Poll::Ready(Some(Ok(frame))) = &piece
            && let Some(data) = frame.data_ref()
        {
            let is_endpoints = !matches!(this.content, Content::Own(_));
            if is_endpoints {
                this.client.worker.figures.response_bytes.add(data.len() as u64);
            }
            if let Some(record) = &mut this.record {
                record.sent(data.len());
            }
        }
        piece
    }

    fn is_end_stream(&self) -> bool {
        if let Some(compressor) = &self.compressor {
            return compressor.is_end();
        }
        match &self.content {
            Content::Own(content) => content.as_ref().is_none_or(Bytes::is_empty),
            Content::Endpoint { line, .. } => {
                line.as_ref().is_none_or(|line| line.lease.data_left() == Some(0))
            }
            Content::Broken(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        if self.compressor.is_some() {
            return SizeHint::default();
        }
        match &self.content {
            Content::Own(content) => SizeHint::with_exact(content.as_ref().map_or(0, Bytes::len) as u64),
            Content::Endpoint { line, .. } => {
                let left = line.as_ref().map_or(Some(0), |line| line.lease.data_left());
                left.map_or_else(SizeHint::default, SizeHint::with_exact)
            }
            Content::Broken(_) => SizeHint::default(),
        }
    }
}
