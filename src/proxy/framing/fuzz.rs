//! Any bytes at all: the guard must not depend on how they are cut, and what it lets through hyper must read as it does.
//!
//! Each check runs on bytes (with a stored corpus in `__fuzz__`, and under `cargo bolero` guided by coverage) and on
//! sentences of pieces that mean something, which random bytes hardly ever do.

use std::{
    cell::Cell,
    convert::Infallible,
    io,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::{client, rt, server, service::service_fn};

use super::{
    Framing,
    answer::{Due, read},
};
use crate::config::document::Limits;

/// A socket on which everything has arrived already, which stays open, and on which what is written is lost.
struct Arrived {
    bytes: Bytes,
    /// An endpoint's answer does not come before the request.
    after_a_write: bool,
}

impl rt::Read for Arrived {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        mut buf: rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if self.after_a_write || self.bytes.is_empty() {
            return Poll::Pending;
        }
        let taken = buf.remaining().min(self.bytes.len());
        buf.put_slice(&self.bytes.split_to(taken));
        Poll::Ready(Ok(()))
    }
}

impl rt::Write for Arrived {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.after_a_write = false;
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

// === requests ===

/// The guard's verdict: the requests that ended, or the status of the refusal.
fn requests(pieces: &mut dyn Iterator<Item = &[u8]>) -> Result<(u64, bool), u16> {
    let mut framing = Framing::new(Arc::new(Limits { headers: 20, ..Limits::default() }));
    for piece in pieces {
        let taken = framing.take(piece).map_err(|refusal| refusal.error.row().status.as_u16())?;
        if taken < piece.len() || framing.waits_for_answer() {
            return Ok((framing.requests(), false));
        }
    }
    Ok((framing.requests(), framing.at_start()))
}

fn check_requests(bytes: &[u8]) {
    let whole = requests(&mut [bytes].into_iter());
    assert_eq!(whole, requests(&mut bytes.chunks(1)), "whole or byte by byte");
    assert_eq!(whole, requests(&mut bytes.chunks(7)), "whole or in pieces");
    let Ok((expected, true)) = whole else { return };
    let (seen, broken) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(false)));
    let closes = Rc::new(Cell::new(false));
    let service = service_fn(|request: Request<hyper::body::Incoming>| {
        let (seen, broken, closes) = (Rc::clone(&seen), Rc::clone(&broken), Rc::clone(&closes));
        async move {
            seen.set(seen.get() + 1);
            let may_end = request.version() == http::Version::HTTP_10
                || request.headers().contains_key(http::header::CONNECTION);
            closes.set(closes.get() || may_end);
            broken.set(broken.get() || request.into_body().collect().await.is_err());
            Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
        }
    });
    let io = Arrived { bytes: Bytes::copy_from_slice(bytes), after_a_write: false };
    let mut connection = pin!(server::conn::http1::Builder::new().serve_connection(io, service));
    let mut cx = Context::from_waker(Waker::noop());
    // One poll goes as far as the bytes do, but for hyper's turns to others.
    let ended = (0..100).find_map(|_| match connection.as_mut().poll(&mut cx) {
        Poll::Ready(ended) => Some(ended),
        Poll::Pending => None,
    });
    assert!(!broken.get(), "hyper finds the body broken");
    if !closes.get() {
        assert!(!matches!(ended, Some(Err(_))), "hyper: {ended:?} for {:?}", String::from_utf8_lossy(bytes));
        assert_eq!(seen.get(), expected, "hyper reads another number of requests");
    }
}

const PIECES: [&str; 48] = [
    "GET / HTTP/1.1\r\n",
    "POST /a?b HTTP/1.1\r\n",
    "PUT http://a/ HTTP/1.1\r\n",
    "OPTIONS * HTTP/1.1\r\n",
    "GET / HTTP/1.0\r\n",
    "Host: a\r\n",
    "Host: a\r\n\r\n",
    "Content-Length: 3\r\n",
    "Content-Length: 0\r\n",
    "Content-Length: ",
    "Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding: ",
    "Connection: close\r\n",
    "Expect: 100-continue\r\n",
    "Authorization: x\r\n",
    "X: 1\r\n",
    "\r\n",
    "\n",
    "\r",
    "\r\n\r\n",
    "0\r\n\r\n",
    "0\r\n",
    "3\r\nabc\r\n",
    "3\r\n",
    "3;a=b\r\n",
    "a",
    "abc",
    ":",
    " ",
    "\t",
    ",",
    ";",
    "\0",
    "\u{7f}",
    "/",
    "%2e",
    "..",
    "chunked",
    "3",
    "0",
    "HTTP/1.1 200 OK\r\n",
    "HTTP/1.1 204\r\n\r\n",
    "HTTP/1.1 100 Continue\r\n\r\n",
    "HTTP/1.1 304 Not Modified\r\n",
    "HTTP/1.0 200 OK\r\n",
    "HTTP/1.1 101 x\r\n\r\n",
    "HTTP/1.1 ",
    "200",
];

/// Every choice is a piece, half of the time the first of a request or an answer where one may begin.
fn sentence(choices: &[u8]) -> Vec<u8> {
    choices.iter().flat_map(|choice| PIECES[usize::from(*choice) % PIECES.len()].bytes()).collect()
}

#[test]
fn requests_are_read_alike_however_they_come() {
    bolero::check!().with_iterations(2000).for_each(check_requests);
}

#[test]
fn sentences_are_read_alike_however_they_come() {
    bolero::check!().with_iterations(5000).for_each(|choices: &[u8]| {
        let choices = &choices[..choices.len().min(24)];
        check_requests(&sentence(choices));
        // Most sentences break at once: these begin well.
        check_requests(&[b"POST / HTTP/1.1\r\nHost: a\r\n", &sentence(choices)[..]].concat());
        check_requests(
            &[b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", &sentence(choices)[..]]
                .concat(),
        );
    });
}

// === answers ===

fn check_answers(bytes: &[u8], due: Due) {
    let whole = read(&mut [bytes].into_iter(), due);
    // What is wrong with bytes that are wrong in two ways depends on which are seen first.
    let found = |pieces: &mut dyn Iterator<Item = &[u8]>| read(pieces, due).map_err(drop);
    let expected = whole.clone().map_err(drop);
    assert_eq!(expected, found(&mut bytes.chunks(1)), "whole or byte by byte");
    assert_eq!(expected, found(&mut bytes.chunks(7)), "whole or in pieces");
    let Ok(Some(data)) = whole else { return };
    // The guard has seen an answer end: hyper must see it end there too, though the connection stays open.
    let mut cx = Context::from_waker(Waker::noop());
    let io = Arrived { bytes: Bytes::copy_from_slice(bytes), after_a_write: true };
    let mut handshake = pin!(client::conn::http1::handshake::<_, Empty<Bytes>>(io));
    let Poll::Ready(Ok((mut sender, connection))) = handshake.as_mut().poll(&mut cx) else {
        panic!("the handshake waits")
    };
    let mut request = Request::new(Empty::new());
    if due == Due::AnswerToHead {
        *request.method_mut() = Method::HEAD;
    }
    let mut answer = pin!(async { sender.send_request(request).await?.into_body().collect().await });
    let mut connection = pin!(connection);
    let mut open = true;
    for _ in 0..1000 {
        if let Poll::Ready(answer) = answer.as_mut().poll(&mut cx) {
            let seen = answer.map(|answer| answer.to_bytes());
            let text = String::from_utf8_lossy(bytes);
            assert_eq!(seen.expect(&text), data, "hyper reads other data in {text:?}");
            return;
        }
        open = open && connection.as_mut().poll(&mut cx).is_pending();
    }
    panic!("hyper waits for more of {:?}", String::from_utf8_lossy(bytes));
}

#[test]
fn answers_are_read_alike_however_they_come() {
    bolero::check!().with_iterations(2000).for_each(|bytes: &[u8]| {
        check_answers(bytes, Due::Answer);
        check_answers(bytes, Due::AnswerToHead);
    });
}

#[test]
fn sentences_of_answers_are_read_alike_however_they_come() {
    bolero::check!().with_iterations(5000).for_each(|choices: &[u8]| {
        let choices = &choices[..choices.len().min(24)];
        for due in [Due::Answer, Due::AnswerToHead] {
            check_answers(&sentence(choices), due);
            check_answers(&[b"HTTP/1.1 200 OK\r\n", &sentence(choices)[..]].concat(), due);
            let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
            check_answers(&[chunked, &sentence(choices)[..]].concat(), due);
        }
    });
}
