//! The connections of the admin API: HTTP/1.1, and HTTP/2 with prior knowledge.
//!
//! Invariants: their number is bounded, and idle ones never keep a probe out. Watchers and calls share them, and
//! neither keeps the other out: there is room for more connections than the watchers that `control::watch` admits,
//! and a watcher's connection is never taken for an idle one. Over HTTP/1.1 it is closed when it takes nothing of
//! what it is sent, signs of life at least, for [`STALL_TIMEOUT`]; over HTTP/2, when it does not answer a ping. A
//! call over HTTP/1.1 costs no task of its own. Neighbours: `super` answers the calls.

use std::{
    collections::HashMap,
    convert::Infallible,
    pin::{Pin, pin},
    sync::{Arc, Mutex},
    task::Poll,
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http_body::Frame;
use http_body_util::BodyExt;
use hyper::{
    body::SizeHint,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{Notify, watch::Receiver},
    task::{self, JoinSet},
    time::Instant,
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};
use tracing::{debug, warn};

use super::{
    Starting,
    answer::{Answer, Body},
    auth::{Access, Origin},
    handle,
};
use crate::{config::certificates, control::watch::BEAT};

/// Connections at one time. When they are taken, a new one takes the place of the one that has been idle for
/// longest, so that idle ones never keep a probe out; if all are at work, it waits for the first to end.
const CONNECTIONS_MAX: usize = 12_288;

/// From one answer to the end of the next call's head, which bounds the sending of the answer too; connections
/// that take longer are closed.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a stream may take nothing of what it is sent, which is something at least once in a
/// [`BEAT`].
const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// What the kernel may hold for a client that does not read, and how long for one that does not acknowledge.
const SEND_BUFFER: usize = 128 << 10;
const USER_TIMEOUT: Duration = Duration::from_secs(60);

/// Bytes of a call's head.
const HEAD_MAX: usize = 64 << 10;

/// How long open calls may go on when the server stops.
const STOP_DEADLINE: Duration = Duration::from_secs(2);

/// How long a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Calls of one HTTP/2 connection at once, streams among them.
const STREAMS_MAX: u32 = 256;

/// Between two looks at a connection of which three bytes or fewer have come.
const PEEK_PAUSE: Duration = Duration::from_millis(10);

/// How long to wait when no connection can be accepted, most often for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What is known of an open connection.
struct Slot {
    /// What it does, and since when.
    state: Mutex<(Phase, Instant)>,
    /// Its place is needed.
    close: Notify,
    /// Calls under way, where there may be several.
    calls: Mutex<usize>,
}

/// What a connection does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// It waits for a call, or is being sent a whole answer.
    Idle,
    /// A call is being worked on.
    Call,
    /// It is sent a stream, and took something of it since then.
    Stream,
}

/// A stream that its connection is told of.
struct Streamed {
    body: Body,
    slot: Arc<Slot>,
}

/// One of the calls of a connection that may have several: while there is one, it is not idle.
struct Busy(Arc<Slot>);

/// The answer of such a call.
struct Held {
    body: Body,
    _busy: Busy,
}

/// The open connections.
#[derive(Default)]
struct Connections {
    open: JoinSet<()>,
    slots: HashMap<task::Id, Arc<Slot>>,
}

/// Serves until `stop` turns true, then lets open calls finish for a short while. Before there is a context
/// every call but the probes is refused.
pub async fn serve(
    listener: TcpListener,
    access: Arc<Access>,
    tls: Option<Arc<ArcSwap<ServerConfig>>>,
    context: Starting,
    mut stop: Receiver<bool>,
) {
    let mut connections = Connections::default();
    loop {
        let accepted = tokio::select! {
            _ = stop.wait_for(|stopped| *stopped) => break,
            accepted = listener.accept() => accepted,
            () = connections.ended(), if !connections.open.is_empty() => continue,
        };
        match accepted {
            Ok((stream, peer)) => {
                let _ = stream.set_nodelay(true);
                let socket = socket2::SockRef::from(&stream);
                let _ = socket.set_send_buffer_size(SEND_BUFFER);
                let _ = socket.set_tcp_user_timeout(Some(USER_TIMEOUT));
                let slot = Arc::new(Slot::new());
                let origin = Origin { address: peer, names: Arc::default() };
                let tls = tls.as_ref().map(|tls| TlsAcceptor::from(tls.load_full()));
                let task = connection(
                    stream,
                    tls,
                    origin,
                    access.clone(),
                    context.clone(),
                    stop.clone(),
                    slot.clone(),
                );
                connections.make_room().await;
                connections.slots.insert(connections.open.spawn(task).id(), slot);
            }
            Err(error) => {
                warn!(%error, "the admin API cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    let all = async { while connections.open.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(STOP_DEADLINE, all).await;
}

/// One connection, to its end.
async fn connection(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    origin: Origin,
    access: Arc<Access>,
    context: Starting,
    stop: Receiver<bool>,
    slot: Arc<Slot>,
) {
    if let Some(tls) = tls {
        // In a box, for what a handshake keeps is large.
        return Box::pin(tls_connection(stream, tls, origin, access, context, stop, slot)).await;
    }
    let is_http2 = tokio::select! {
        is_http2 = is_http2(&stream) => is_http2,
        () = slot.over() => return,
    };
    match is_http2 {
        Ok(false) => http1_connection(stream, origin, access, context, stop, slot).await,
        // In a box: it takes more room than the others, which are many.
        Ok(true) => Box::pin(http2_connection(stream, origin, access, context, stop, slot)).await,
        Err(error) => debug!(peer = %origin.address, %error, "an admin connection broke off"),
    }
}

/// The same with TLS, which says by ALPN what is spoken. Nothing else is.
async fn tls_connection(
    stream: TcpStream,
    tls: TlsAcceptor,
    mut origin: Origin,
    access: Arc<Access>,
    context: Starting,
    stop: Receiver<bool>,
    slot: Arc<Slot>,
) {
    let shaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await;
    let stream = match shaken {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return debug!(peer = %origin.address, %error, "an admin connection has no TLS"),
        Err(_) => return debug!(peer = %origin.address, "a TLS handshake of the admin API took too long"),
    };
    let session = stream.get_ref().1;
    if let Some(certificate) = session.peer_certificates().and_then(<[_]>::first) {
        origin.names = certificates::names(certificate).into();
    }
    if session.alpn_protocol() == Some(b"h2") {
        http2_connection(stream, origin, access, context, stop, slot).await;
    } else {
        http1_connection(stream, origin, access, context, stop, slot).await;
    }
}

/// Whether the client begins as HTTP/2 does (RFC 9113, section 3.4): no method of HTTP/1.1 does so.
async fn is_http2(stream: &TcpStream) -> std::io::Result<bool> {
    const PREFACE: &[u8] = b"PRI ";
    let mut first = [0; PREFACE.len()];
    loop {
        let count = stream.peek(&mut first).await?;
        if count == 0 || !PREFACE.starts_with(&first[..count]) {
            return Ok(false);
        }
        if count == PREFACE.len() {
            return Ok(true);
        }
        // There is something to peek at, so nothing wakes this when more of it comes.
        tokio::time::sleep(PEEK_PAUSE).await;
    }
}

async fn http2_connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    origin: Origin,
    access: Arc<Access>,
    context: Starting,
    mut stop: Receiver<bool>,
    slot: Arc<Slot>,
) {
    let (calls, called_from) = (slot.clone(), origin.clone());
    let service = service_fn(move |request| {
        let (context, busy) = (context.clone(), Busy::new(&calls));
        let (access, origin) = (access.clone(), called_from.clone());
        async move {
            let answer = handle(&context, &access, &origin, request).await;
            Ok::<_, Infallible>(answer.map(|body| Held { body, _busy: busy }))
        }
    });
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(u32::try_from(HEAD_MAX).unwrap_or(u32::MAX))
        .max_send_buf_size(HEAD_MAX)
        .keep_alive_interval(Some(BEAT))
        .keep_alive_timeout(BEAT);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = async { let _ = stop.wait_for(|stopped| *stopped).await; } => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        () = slot.over() => {
            // A call may have just come: it is answered.
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(STOP_DEADLINE, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        debug!(peer = %origin.address, %error, "an admin connection broke off");
    }
}

async fn http1_connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    origin: Origin,
    access: Arc<Access>,
    context: Starting,
    mut stop: Receiver<bool>,
    slot: Arc<Slot>,
) {
    let service = service_fn(|request| async {
        slot.turn(Phase::Call);
        let answer = handle(&context, &access, &origin, request).await;
        Ok::<_, Infallible>(slot.answered(answer))
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_MAX)
        .half_close(false);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut stopped = pin!(async move { stop.wait_for(|stopped| *stopped).await.is_ok() });
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        _ = stopped.as_mut() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        () = slot.over() => {
            if slot.state().0 == Phase::Stream {
                debug!(peer = %origin.address, "a client takes nothing of its stream: it is cut");
                if let Some(context) = context.get() {
                    context.watches.count_cut();
                }
            }
            return;
        }
    };
    if let Err(error) = ended {
        debug!(peer = %origin.address, %error, "an admin connection broke off");
    }
}

// === impl Connections ===

impl Connections {
    /// Returns when one has ended, or there is none.
    async fn ended(&mut self) {
        if let Some(ended) = self.open.join_next_with_id().await {
            self.slots.remove(&ended.map_or_else(|error| error.id(), |(id, ())| id));
        }
    }

    /// Returns once there is room for one more, closing the one that has been idle for longest if need be.
    async fn make_room(&mut self) {
        while self.open.len() >= CONNECTIONS_MAX {
            let idle = self.slots.values().filter(|slot| slot.is_idle());
            if let Some(slot) = idle.min_by_key(|slot| slot.since()) {
                slot.close.notify_one();
            }
            // It may have got a call in this moment: then another one is chosen.
            let _ = tokio::time::timeout(ACCEPT_PAUSE, self.ended()).await;
        }
    }
}

// === impl Slot ===

impl Slot {
    fn new() -> Self {
        Self { state: Mutex::new((Phase::Idle, Instant::now())), close: Notify::new(), calls: Mutex::new(0) }
    }

    fn state(&self) -> (Phase, Instant) {
        *self.state.lock().expect("nothing panics under this lock")
    }

    fn turn(&self, phase: Phase) {
        *self.state.lock().expect("nothing panics under this lock") = (phase, Instant::now());
    }

    /// Notes that `answer` is about to be sent.
    fn answered(self: &Arc<Self>, answer: Answer) -> Answer {
        answer.map(|body| match body {
            Body::Whole(_) => {
                self.turn(Phase::Idle);
                body
            }
            Body::Stream(_) => {
                self.turn(Phase::Stream);
                Body::Stream(Streamed { body, slot: self.clone() }.boxed_unsync())
            }
        })
    }

    fn is_idle(&self) -> bool {
        self.state().0 == Phase::Idle
    }

    fn since(&self) -> Instant {
        self.state().1
    }

    /// When the connection has to end unless something happens before.
    fn end(&self) -> Option<Instant> {
        match self.state() {
            (Phase::Idle, since) => Some(since + HEAD_TIMEOUT),
            (Phase::Stream, since) => Some(since + STALL_TIMEOUT),
            (Phase::Call, _) => None,
        }
    }

    /// Returns when the connection has been idle for too long, or its place is needed while it is idle, or its
    /// client takes nothing of a stream.
    async fn over(&self) {
        loop {
            let look_again = self.end().unwrap_or_else(|| Instant::now() + HEAD_TIMEOUT);
            tokio::select! {
                () = tokio::time::sleep_until(look_again) => {}
                () = self.close.notified() => if self.is_idle() { return },
            }
            if self.end().is_some_and(|end| end <= Instant::now()) {
                return;
            }
        }
    }
}

// === impl Streamed ===

impl http_body::Body for Streamed {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Self { body, slot } = self.get_mut();
        // It is asked for more only when there is room: the client takes what it is sent.
        slot.turn(Phase::Stream);
        Pin::new(body).poll_frame(context)
    }
}

impl Drop for Streamed {
    fn drop(&mut self) {
        self.slot.turn(Phase::Idle);
    }
}

// === impl Busy ===

impl Busy {
    fn new(slot: &Arc<Slot>) -> Self {
        let mut calls = slot.calls.lock().expect("nothing panics under this lock");
        *calls += 1;
        slot.turn(Phase::Call);
        drop(calls);
        Self(slot.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut calls = self.0.calls.lock().expect("nothing panics under this lock");
        *calls -= 1;
        if *calls == 0 {
            self.0.turn(Phase::Idle);
        }
    }
}

// === impl Held ===

impl http_body::Body for Held {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use http_body::Body as _;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stream_is_not_idle_and_ends_when_its_client_takes_nothing() {
        let slot = Arc::new(Slot::new());
        let frames = futures_util::stream::pending::<Result<Frame<Bytes>, Infallible>>();
        let body = Body::Stream(http_body_util::StreamBody::new(frames).boxed_unsync());
        let mut answer = slot.answered(http::Response::new(body));
        slot.close.notify_one();
        let mut over = pin!(slot.over());
        for _ in 0..10 {
            tokio::time::advance(STALL_TIMEOUT / 2).await;
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            assert!(Pin::new(answer.body_mut()).poll_frame(&mut context).is_pending());
            assert!(over.as_mut().now_or_never().is_none(), "it takes what it is sent");
        }
        tokio::time::advance(STALL_TIMEOUT + Duration::from_secs(1)).await;
        assert!(over.as_mut().now_or_never().is_some());
        drop(answer);
        assert!(slot.is_idle());
    }
}
