//! Send a request to one endpoint, and stream its answer back.
//!
//! Job: choose an endpoint, take a pooled connection or open one, send under deadlines, and decide whether a
//! failure may be met by sending again: always where the request never left; where a reused connection turned
//! out to be closed before any byte of an answer, if the method is idempotent and nothing of a body is gone
//! (RFC 9110, section 9.2.2; RFC 9112, section 9.3.1). So a stale pooled connection never becomes a 502.
//! Neighbours: `http` calls it, `pool` lends, `upload` carries the body.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version, response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::{
    error::{Blame, ProxyError},
    http::Client,
    policy::{Compressor, recovery},
    pool::{Lease, Pool},
    proxy_protocol,
    record::{self, Journey, Record},
    upload::{RequestBody, Upload},
    upstream::{LocalUpstream, Picked, Wish},
};

/// A request as the endpoint will see it.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) method: Method,
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
    /// None: no body.
    pub(super) upload: Option<Rc<Upload>>,
}

/// How one attempt ended.
enum Attempt {
    Answered(Response<Incoming>),
    /// The request is whole and may be sent again.
    Unsent(Outgoing),
    Failed(ProxyError),
}

/// An endpoint's answer, its body still to come.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) response: Response<Incoming>,
    /// What the body comes by.
    pub(super) line: Line,
}

/// An endpoint and a connection to it.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) lease: Lease,
    pub(super) picked: Picked,
}

/// Sends the request and waits for the head of its answer. `hash` is of what `consistent_hash` looks at.
pub(super) async fn forward(
    client: &Client,
    upstream: &Rc<LocalUpstream>,
    mut outgoing: Outgoing,
    hash: Option<u64>,
    record: &Record,
    answer_within: Duration,
) -> Result<Answered, ProxyError> {
    let journey = record.journey().map(|journey| &**journey);
    let plan = &upstream.plan;
    let service = &*plan.service;
    let mut refused = None;
    let mut stale = false;
    loop {
        let tried: &[u64] = refused.as_ref().map_or(&[], |(id, _)| std::slice::from_ref(id));
        let picked = match (upstream.choose(&Wish { hash, tried, now: record.started }), &refused) {
            (Ok(picked), _) => picked,
            // Nobody else is there: what went wrong first says more.
            (Err(_), Some((_, error))) => return Err(ProxyError::clone(error)),
            (Err(error), None) => return Err(error),
        };
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
                Err(error @ (ProxyError::ConnectFailed | ProxyError::ConnectTimeout)) => {
                    picked.failed();
                    if refused.is_some() || upstream.endpoints.len() == 1 {
                        return Err(error);
                    }
                    client.worker.figures.retry(&plan.name, "connect");
                    refused = Some((picked.id(), error));
                    continue;
                }
                Err(error) => return Err(error),
            },
        };
        let time = if outgoing.upload.is_some() { service.timeouts.idle } else { answer_within };
        client.alarm.set(client.worker.alarms.soon().max(record.started) + time);
        match send(client, &mut lease, outgoing).await {
            Attempt::Answered(response) => {
                judge(&picked, response.status());
                return Ok(Answered { response, line: Line { lease, picked } });
            }
            Attempt::Failed(error) => {
                if error.row().blame == Blame::Upstream {
                    picked.failed();
                }
                return Err(error);
            }
            Attempt::Unsent(_) if stale => {
                picked.failed();
                return Err(ProxyError::UpstreamReset);
            }
            Attempt::Unsent(again) => {
                client.worker.figures.retry(&plan.name, "stale");
                stale = true;
                outgoing = again;
            }
        }
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
    let Answered { response, line } =
        forward(client, upstream, outgoing, None, record, answer_within).await?;
    let Line { mut lease, picked: _picked } = line;
    let (head, mut incoming) = response.into_parts();
    let mut body = BytesMut::new();
    while !incoming.is_end_stream() {
        let Some(connection) = lease.connection() else { return Ok((head, None)) };
        let frame =
            poll_fn(|cx| match connection.poll_with(cx, |cx| Pin::new(&mut incoming).poll_frame(cx)) {
                Poll::Ready(frame) => Poll::Ready(Ok(frame)),
                Poll::Pending if client.alarm.rang() => Poll::Ready(Err(ProxyError::UpstreamTimeout)),
                Poll::Pending => Poll::Pending,
            });
        let data = match frame.await? {
            None => break,
            Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
            Some(Err(_)) => return Ok((head, None)),
        };
        if body.len() + data.len() > bytes_max {
            return Ok((head, None));
        }
        body.extend_from_slice(&data);
    }
    if lease.connection().is_some_and(|connection| connection.is_usable()) {
        lease.give_back();
    }
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
        let connected = client.in_time(lease.connect(header.as_deref()), ProxyError::ConnectTimeout).await;
        if let Some((journey, since)) = opened {
            journey.connected(since);
        }
        connected?;
    }
    Ok(lease)
}

async fn send(client: &Client, lease: &mut Lease, outgoing: Outgoing) -> Attempt {
    let Some(connection) = lease.connection() else { return Attempt::Failed(ProxyError::ConnectFailed) };
    let Outgoing { method, uri, headers, upload } = outgoing;
    // Cheaper than a copy of the map, and seldom read.
    let saved = (connection.reused && method.is_idempotent()).then(|| {
        connection.saved.extend(headers.iter().map(|(name, value)| (name.clone(), value.clone())));
        (method.clone(), uri.clone())
    });
    let body = upload.as_ref().map_or_else(RequestBody::empty, |upload| upload.body(&connection.task));
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    *request.version_mut() = Version::HTTP_11;

    connection.begin();
    let mut answer = pin!(connection.sender.try_send_request(request));
    let outcome = poll_fn(|cx| match connection.poll_with(cx, |cx| answer.as_mut().poll(cx)) {
        Poll::Ready(outcome) => Poll::Ready(Some(outcome)),
        Poll::Pending if client.alarm.rang() => Poll::Ready(None),
        Poll::Pending => Poll::Pending,
    })
    .await;
    let mut error = match outcome {
        Some(Ok(response)) => return Attempt::Answered(response),
        Some(Err(error)) => error,
        None if upload.as_ref().is_some_and(|upload| upload.waits_for_client()) => {
            return Attempt::Failed(ProxyError::RequestTimeout);
        }
        None => return Attempt::Failed(ProxyError::UpstreamTimeout),
    };
    if let Some(failure) = upload.as_ref().and_then(|upload| upload.failure()) {
        return Attempt::Failed(failure);
    }
    if let Some(request) = error.take_message() {
        let (parts, _) = request.into_parts();
        return Attempt::Unsent(Outgoing {
            method: parts.method,
            uri: parts.uri,
            headers: parts.headers,
            upload,
        });
    }
    if !connection.has_received()
        && upload.as_ref().is_none_or(|upload| upload.is_untouched())
        && let Some((method, uri)) = saved
    {
        let mut headers = HeaderMap::with_capacity(connection.saved.len());
        for (name, value) in connection.saved.drain(..) {
            headers.append(name, value);
        }
        return Attempt::Unsent(Outgoing { method, uri, headers, upload });
    }
    Attempt::Failed(if error.error().is_parse() {
        ProxyError::UpstreamMalformed
    } else {
        ProxyError::UpstreamReset
    })
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
    Endpoint {
        incoming: Incoming,
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
    pub(super) fn endpoint(
        incoming: Incoming,
        line: Line,
        idle: Duration,
        client: &Rc<Client>,
        record: Record,
    ) -> Self {
        client.alarm.set(client.worker.alarms.soon() + idle);
        let content = Content::Endpoint { incoming, line: Some(line), idle };
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
            && let Some(Line { mut lease, .. }) = line.take()
            && lease.connection().is_some_and(|connection| connection.is_usable())
        {
            lease.give_back();
        }
    }
}

impl AnswerBody {
    /// The next piece for the client.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        let Some(mut compressor) = self.compressor.take() else { return self.poll_content(cx) };
        let piece = compressor.poll_frame(|| self.poll_content(cx));
        self.compressor = Some(compressor);
        piece
    }

    /// The next piece as it came.
    fn poll_content(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        let this = self;
        let (incoming, line, idle) = match &mut this.content {
            Content::Own(content) => {
                return Poll::Ready(content.take().map(|bytes| Ok(Frame::data(bytes))));
            }
            Content::Endpoint { incoming, line, idle } => (incoming, line, *idle),
            Content::Broken(kind) => return Poll::Ready(Some(Err((*kind).into()))),
        };
        let connection = line.as_mut().and_then(|line| line.lease.connection());
        let Some(connection) = connection else { return Poll::Ready(None) };
        let Poll::Ready(frame) = connection.poll_with(cx, |cx| Pin::new(&mut *incoming).poll_frame(cx))
        else {
            let late = this.client.alarm.rang();
            return if late { this.break_off(cx, std::io::ErrorKind::TimedOut) } else { Poll::Pending };
        };
        match frame {
            Some(Ok(frame)) => {
                if frame.is_trailers() || incoming.is_end_stream() {
                    this.end();
                } else {
                    this.client.alarm.set(this.client.worker.alarms.soon() + idle);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(_)) => this.break_off(cx, std::io::ErrorKind::UnexpectedEof),
            None => {
                this.end();
                Poll::Ready(None)
            }
        }
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
            Content::Endpoint { incoming, .. } => incoming.is_end_stream(),
            Content::Broken(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        if self.compressor.is_some() {
            return SizeHint::default();
        }
        match &self.content {
            Content::Own(content) => SizeHint::with_exact(content.as_ref().map_or(0, Bytes::len) as u64),
            Content::Endpoint { incoming, .. } => incoming.size_hint(),
            Content::Broken(_) => SizeHint::default(),
        }
    }
}
