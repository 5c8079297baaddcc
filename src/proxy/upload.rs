//! A request's body on its way to an endpoint.
//!
//! Job: stream the client's body to the endpoint's connection, within the document's bound and the service's idle
//! time, and know whether any of it is gone: only a body that nobody has read can be sent again.
//! Neighbours: `http` makes it, `connection` reads it, `forward` asks why it failed.

use std::{
    cell::{Cell, RefCell},
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body::{Body, Frame};
use hyper::body::Incoming;

use super::{
    client::Client,
    error::ProxyError,
    headers,
    mirror::Copy,
    record::{Journey, Record},
};
use crate::config::document::Limits;

/// What follows a request's head.
#[derive(Debug, Clone)]
pub(super) enum RequestBody {
    None,
    /// Bytes that are here.
    Whole(Bytes),
    Client(Rc<Upload>),
}

/// A body under way.
#[derive(Debug)]
pub(super) struct Upload {
    incoming: RefCell<Incoming>,
    client: Rc<Client>,
    journey: Option<Rc<Journey>>,
    bytes: Cell<u64>,
    bytes_max: u64,
    /// None: a client may be as slow as `idle` allows.
    pace: Option<Pace>,
    idle: Duration,
    /// How long the endpoint may take once it has all of it.
    answer: Duration,
    begun: Cell<bool>,
    ended: Cell<bool>,
    /// It is the client that everyone waits for.
    waits: Cell<bool>,
    failure: RefCell<Option<ProxyError>>,
    /// Policies have judged the head: no field comes after them.
    drops_trailers: Cell<bool>,
    /// A copy that grows with it.
    copy: RefCell<Option<Copy>>,
}

/// How fast a client sends, counted only while it is the client that everyone waits for: the time that it may
/// still be behind. Each byte buys some, never more than the document grants at first.
#[derive(Debug)]
struct Pace {
    bytes_per_second: u64,
    credit_max: Duration,
    credit: Cell<Duration>,
    waits_since: Cell<Instant>,
}

// === impl RequestBody ===

impl RequestBody {
    /// A body that is here already.
    pub(super) fn whole(bytes: Bytes) -> Self {
        if bytes.is_empty() { Self::None } else { Self::Whole(bytes) }
    }

    /// The next piece, none at the end.
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match self {
            Self::None => Poll::Ready(None),
            Self::Whole(bytes) => {
                let bytes = std::mem::take(bytes);
                *self = Self::None;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Self::Client(upload) => upload.poll_frame(cx),
        }
    }

    pub(super) fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }

    /// Whether all of it has been handed out.
    pub(super) fn has_ended(&self) -> bool {
        match self {
            Self::None => true,
            Self::Whole(_) => false,
            Self::Client(upload) => upload.has_ended(),
        }
    }

    /// How long it is; none: nobody knows before its end.
    pub(super) fn length(&self) -> Option<u64> {
        match self {
            Self::None => Some(0),
            Self::Whole(bytes) => Some(bytes.len() as u64),
            Self::Client(upload) => upload.incoming.borrow().size_hint().exact(),
        }
    }

    /// The client's body under way.
    pub(super) fn upload(&self) -> Option<&Upload> {
        if let Self::Client(upload) = self { Some(upload) } else { None }
    }

    /// Whether it can still be sent from its beginning.
    pub(super) fn is_untouched(&self) -> bool {
        self.upload().is_none_or(Upload::is_untouched)
    }
}

// === impl Upload ===

impl Upload {
    pub(super) fn new(
        incoming: Incoming,
        record: &Record,
        bytes_max: Option<u64>,
        limits: &Limits,
        idle: Duration,
        answer: Duration,
    ) -> Rc<Self> {
        Rc::new(Self {
            incoming: RefCell::new(incoming),
            client: Rc::clone(record.client()),
            journey: record.journey().cloned(),
            bytes: Cell::new(0),
            bytes_max: bytes_max.unwrap_or(u64::MAX),
            pace: Pace::new(limits, record.client().worker.alarms.soon()),
            idle,
            answer,
            begun: Cell::new(false),
            ended: Cell::new(false),
            waits: Cell::new(false),
            failure: RefCell::new(None),
            drops_trailers: Cell::new(false),
            copy: RefCell::new(None),
        })
    }

    /// Has the endpoint not see trailers: one that merges them with the head would believe what policies have taken
    /// out of it, or set.
    pub(super) fn drop_trailers(&self) {
        self.drops_trailers.set(true);
    }

    /// Lets a copy grow with it, and be sent when it is whole.
    pub(super) fn copy_to(&self, copy: Copy) {
        *self.copy.borrow_mut() = Some(copy);
    }

    /// At least so many bytes are still to come.
    pub(super) fn bytes_left(&self) -> u64 {
        self.incoming.borrow().size_hint().lower()
    }

    fn is_untouched(&self) -> bool {
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
            self.wait();
            return Poll::Pending;
        };
        let alarm = &self.client.alarm;
        if self.waits.replace(false)
            && let Some(pace) = &self.pace
            && !pace.go_on(self.client.worker.alarms.soon())
        {
            return self.fail(ProxyError::RequestTimeout);
        }
        self.begun.set(true);
        let frame = match frame {
            Some(Ok(mut frame)) => {
                if let Some(trailers) = frame.trailers_mut() {
                    if self.drops_trailers.get() {
                        trailers.clear();
                    }
                    headers::prepare_trailers(trailers);
                }
                frame
            }
            Some(Err(_)) => {
                return self.fail(ProxyError::Malformed("the request body is broken or ended early"));
            }
            None => {
                self.finish_copy();
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
            if let Some(pace) = &self.pace {
                pace.earn(data.len() as u64);
            }
            self.client.worker.figures.request_bytes.add(data.len() as u64);
            if let Some(journey) = &self.journey {
                journey.received(data.len());
            }
            let mut copy = self.copy.borrow_mut();
            if let Some(grown) = copy.take() {
                *copy = grown.take(data);
            }
        }
        self.ended.set(frame.is_trailers() || self.incoming.borrow().is_end_stream());
        if self.ended.get() {
            self.finish_copy();
        }
        let time = if self.ended.get() { self.answer } else { self.idle };
        alarm.set(self.client.worker.alarms.soon() + time);
        Poll::Ready(Some(Ok(frame)))
    }

    fn finish_copy(&self) {
        if let Some(copy) = self.copy.take() {
            copy.start();
        }
    }

    /// It is the client's turn, for as long as its pace leaves it.
    fn wait(&self) {
        if self.waits.replace(true) {
            return;
        }
        if let Some(pace) = &self.pace {
            let now = self.client.worker.alarms.soon();
            pace.waits_since.set(now);
            self.client.alarm.set(now + pace.credit.get().min(self.idle));
        }
    }

    fn fail(&self, error: ProxyError) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        *self.failure.borrow_mut() = Some(error);
        Poll::Ready(Some(Err(io::ErrorKind::InvalidData.into())))
    }
}

// === impl Pace ===

impl Pace {
    fn new(limits: &Limits, now: Instant) -> Option<Self> {
        (limits.body_rate_min > 0).then(|| Self {
            bytes_per_second: limits.body_rate_min,
            credit_max: limits.body_rate_grace,
            credit: Cell::new(limits.body_rate_grace),
            waits_since: Cell::new(now),
        })
    }

    /// The wait is over; whether the client is still in time.
    fn go_on(&self, now: Instant) -> bool {
        let waited = now.saturating_duration_since(self.waits_since.get());
        let left = self.credit.get().checked_sub(waited);
        self.credit.set(left.unwrap_or_default());
        left.is_some()
    }

    fn earn(&self, bytes: u64) {
        let bought = Duration::from_micros(bytes.saturating_mul(1_000_000) / self.bytes_per_second);
        self.credit.set((self.credit.get() + bought).min(self.credit_max));
    }
}
