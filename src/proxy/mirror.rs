//! Copies of requests, sent to a second service for its own good.
//!
//! Job: [`Copy`] is a request's copy from its head to the end of its answer, which is read and dropped.
//! Invariants: the request never waits for its copy and never fails by it: the copy has a task of its own, takes what
//! the request's endpoint reads and no more, and is given up where it grows too long or too many are under way. Every
//! copy is counted once, when it is dropped. Neighbours: `http` begins copies, `upload` feeds them, `action` says which
//! requests have one.

use std::{future::poll_fn, rc::Rc, time::Instant};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Uri};

use super::{
    client::Client,
    error::ProxyError,
    framing::answer::Part,
    outgoing::Outgoing,
    pool::Lease,
    proxy_protocol,
    upload::RequestBody,
    upstream::{LocalUpstream, Wish},
    worker::Worker,
};

/// Copies under way on one worker; one more is dropped.
const COPIES_MAX: usize = 256;
/// Bytes of a body that are kept for a copy; a longer one has none.
const BODY_BYTES_MAX: usize = 64 << 10;
/// Bytes of an answer that are read so that its connection can be used again; after more it is closed.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// What became of a copy: a label.
const SENT: &str = "sent";
const FAILED: &str = "failed";
const BUSY: &str = "busy";
const BODY_TOO_LONG: &str = "body_too_long";
const INCOMPLETE: &str = "incomplete";

/// A copy on its way.
#[derive(Debug)]
pub(super) struct Copy {
    worker: Rc<Worker>,
    upstream: Rc<LocalUpstream>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    /// The PROXY header, if the service asks for one.
    announcement: Option<Vec<u8>>,
    body: BytesMut,
    /// Counted at the end; the request left before its body was whole, unless another is known.
    result: &'static str,
}

/// Copies a request: at once if it has no body, else when its body is whole.
pub(super) fn begin(
    client: &Client,
    upstream: &Rc<LocalUpstream>,
    (method, uri, headers): (&Method, &Uri, &HeaderMap),
    body: &RequestBody,
) {
    let worker = &client.worker;
    let count = |result| worker.figures.mirror(&upstream.plan.name, result);
    if worker.mirrors.get() >= COPIES_MAX {
        return count(BUSY);
    }
    if body.upload().is_some_and(|upload| upload.bytes_left() > BODY_BYTES_MAX as u64) {
        return count(BODY_TOO_LONG);
    }
    worker.mirrors.set(worker.mirrors.get() + 1);
    let announced = upstream.plan.service.send_proxy_protocol;
    let copy = Copy {
        worker: Rc::clone(worker),
        upstream: Rc::clone(upstream),
        method: method.clone(),
        uri: uri.clone(),
        headers: headers.clone(),
        announcement: announced.map(|version| proxy_protocol::write(version, &client.ends)),
        body: BytesMut::new(),
        result: INCOMPLETE,
    };
    match body.upload() {
        Some(upload) => upload.copy_to(copy),
        None => copy.start(),
    }
}

// === impl Copy ===

impl Copy {
    /// Takes more of the body; none if it is too long for a copy.
    pub(super) fn take(mut self, data: &Bytes) -> Option<Copy> {
        if self.body.len() + data.len() > BODY_BYTES_MAX {
            self.result = BODY_TOO_LONG;
            return None;
        }
        self.body.extend_from_slice(data);
        Some(self)
    }

    /// Sends the copy, its body being whole, trailers aside.
    ///
    /// The task ends within the service's timeouts, or with the worker.
    pub(super) fn start(self) {
        tokio::task::spawn_local(self.run());
    }

    async fn run(mut self) {
        let timeouts = &self.upstream.plan.service.timeouts;
        let within = timeouts.connect + timeouts.request;
        let body = RequestBody::whole(std::mem::take(&mut self.body).freeze());
        let scratch = &self.worker.buffers.scratch;
        let request = Outgoing::new(self.method.clone(), &self.uri, &self.headers, body, scratch);
        let outcome = tokio::time::timeout(within, self.exchange(&request)).await;
        self.result = if matches!(outcome, Ok(Ok(()))) { SENT } else { FAILED };
    }

    async fn exchange(&self, request: &Outgoing) -> Result<(), ProxyError> {
        let picked =
            self.upstream.choose(&Wish { hash: None, pinned: None, tried: &[], now: Instant::now() })?;
        let bounds = &self.upstream.plan.service.pool;
        // An idle connection may turn out to be closed; what is not idempotent is not sent twice.
        if let Some(lease) = picked.pool().idle_lease(bounds) {
            let sent = self.send(lease, request).await;
            if sent.is_ok() || !self.method.is_idempotent() {
                return sent;
            }
        }
        let mut lease = picked.pool().lease(bounds).await?;
        if lease.connection().is_none()
            && let Err(error) = lease.connect(self.announcement.as_deref(), &self.worker.buffers).await
        {
            picked.failed();
            return Err(error);
        }
        let sent = self.send(lease, request).await;
        if sent.is_ok() {
            picked.succeeded();
        } else {
            picked.failed();
        }
        sent
    }

    async fn send(&self, mut lease: Lease, request: &Outgoing) -> Result<(), ProxyError> {
        let connection = lease.connection().ok_or(ProxyError::ConnectFailed)?;
        connection.begin(request);
        let head = poll_fn(|cx| connection.poll_head(cx)).await;
        head.map_err(|_| ProxyError::UpstreamReset)?;
        let mut bytes = 0;
        while !connection.has_ended() {
            let part = poll_fn(|cx| connection.poll_part(cx)).await;
            match part.map_err(|_| ProxyError::UpstreamReset)? {
                Some(Part::Data(data)) => bytes += data.len(),
                Some(_) => {}
                // At the end, or where another protocol begins.
                None => break,
            }
            if bytes > ANSWER_BYTES_MAX {
                return Ok(());
            }
        }
        lease.give_back();
        Ok(())
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        self.worker.mirrors.set(self.worker.mirrors.get() - 1);
        self.worker.figures.mirror(&self.upstream.plan.name, self.result);
    }
}
