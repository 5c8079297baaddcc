//! A request's body on its way to an endpoint.
//!
//! Job: stream the client's body into hyper's client, within the document's bound and the service's idle time,
//! and know whether any of it is gone: only a body that nobody has read can be sent again.
//! Neighbours: `http` makes it, `forward` asks why it failed.

use std::{
    cell::{Cell, RefCell},
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::{
    error::ProxyError,
    http::Client,
    record::{Journey, Record},
    stream::Task,
};

/// What hyper sends.
#[derive(Debug)]
pub(super) struct RequestBody(Option<Rc<Upload>>);

/// A body under way.
#[derive(Debug)]
pub(super) struct Upload {
    incoming: RefCell<Incoming>,
    client: Rc<Client>,
    journey: Option<Rc<Journey>>,
    /// Who is woken by more of it: the request's task, not hyper's inner channels.
    task: RefCell<Option<Rc<Task>>>,
    bytes: Cell<u64>,
    bytes_max: u64,
    idle: Duration,
    /// How long the endpoint may take once it has all of it.
    answer: Duration,
    begun: Cell<bool>,
    ended: Cell<bool>,
    /// It is the client that everyone waits for.
    waits: Cell<bool>,
    failure: RefCell<Option<ProxyError>>,
}

// === impl RequestBody ===

impl RequestBody {
    /// No body.
    pub(super) fn empty() -> Self {
        Self(None)
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let Some(upload) = &self.0 else { return Poll::Ready(None) };
        let waker = upload.task.borrow().as_ref().map_or_else(|| cx.waker().clone(), |task| task.waker());
        upload.poll_frame(&mut Context::from_waker(&waker))
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|upload| upload.incoming.borrow().is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or_else(|| SizeHint::with_exact(0), |upload| upload.incoming.borrow().size_hint())
    }
}

// === impl Upload ===

impl Upload {
    pub(super) fn new(
        incoming: Incoming,
        record: &Record,
        bytes_max: Option<u64>,
        idle: Duration,
        answer: Duration,
    ) -> Rc<Self> {
        Rc::new(Self {
            incoming: RefCell::new(incoming),
            client: Rc::clone(record.client()),
            journey: record.journey().cloned(),
            task: RefCell::new(None),
            bytes: Cell::new(0),
            bytes_max: bytes_max.unwrap_or(u64::MAX),
            idle,
            answer,
            begun: Cell::new(false),
            ended: Cell::new(false),
            waits: Cell::new(false),
            failure: RefCell::new(None),
        })
    }

    /// The body for one attempt to send it.
    pub(super) fn body(self: &Rc<Self>, task: &Rc<Task>) -> RequestBody {
        *self.task.borrow_mut() = Some(Rc::clone(task));
        RequestBody(Some(Rc::clone(self)))
    }

    /// Whether it can still be sent from its beginning.
    pub(super) fn is_untouched(&self) -> bool {
        !self.begun.get()
    }

    /// Whether the client has sent all of it.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.get()
    }

    /// Whether the client is what everyone waits for.
    pub(super) fn waits_for_client(&self) -> bool {
        self.waits.get()
    }

    /// Why it could not be sent, if the client or a bound is to blame.
    pub(super) fn failure(&self) -> Option<ProxyError> {
        self.failure.borrow().clone()
    }

    fn poll_frame(&self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let Poll::Ready(frame) = Pin::new(&mut *self.incoming.borrow_mut()).poll_frame(cx) else {
            self.waits.set(true);
            return Poll::Pending;
        };
        self.waits.set(false);
        self.begun.set(true);
        let alarm = &self.client.alarm;
        let frame = match frame {
            Some(Ok(frame)) => frame,
            Some(Err(_)) => {
                return self.fail(ProxyError::Malformed("the request body is broken or ended early"));
            }
            None => {
                self.ended.set(true);
                alarm.set(self.client.worker.alarms.soon() + self.answer);
                return Poll::Ready(None);
            }
        };
        if let Some(data) = frame.data_ref() {
            self.bytes.set(self.bytes.get() + data.len() as u64);
            if self.bytes.get() > self.bytes_max {
                return self.fail(ProxyError::BodyTooLarge);
            }
            self.client.worker.figures.request_bytes.add(data.len() as u64);
            if let Some(journey) = &self.journey {
                journey.received(data.len());
            }
        }
        self.ended.set(frame.is_trailers() || self.incoming.borrow().is_end_stream());
        let time = if self.ended.get() { self.answer } else { self.idle };
        alarm.set(self.client.worker.alarms.soon() + time);
        Poll::Ready(Some(Ok(frame)))
    }

    fn fail(&self, error: ProxyError) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        *self.failure.borrow_mut() = Some(error);
        Poll::Ready(Some(Err(io::ErrorKind::InvalidData.into())))
    }
}
