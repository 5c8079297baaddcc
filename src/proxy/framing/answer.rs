//! Reads answers out of an endpoint's stream of bytes, by the rules that clients' requests are held to.
//!
//! Job: [`AnswerFraming`] takes what was read, in pieces of any size, and gives back an answer's parts: head, data,
//! trailers. It knows what no byte says: whether an answer is due at all, and whether it is one to HEAD.
//! Invariants: what two clients could read in two ways is no answer; interim answers, however many, are bounded
//! together; what an answer is made of does not depend on how its bytes were cut. Neighbours: `connection` feeds it
//! and says what is due.

use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version, response};
use hyper::ext::ReasonPhrase;

use super::{
    Wrong,
    body::{Body, Holds, Left},
    line::{self, Lines, field, without_end},
};

/// The place in an endpoint's stream of bytes.
#[derive(Debug, Default)]
pub(in crate::proxy) struct AnswerFraming {
    state: State,
    head: Head,
    lines: Lines,
    body: Body,
    /// Lines of the trailers so far.
    trailers: Vec<u8>,
    /// The endpoint keeps the connection for another request.
    persistent: bool,
}

/// A part of an answer.
#[derive(Debug)]
pub(in crate::proxy) enum Part {
    Head(response::Parts),
    Data(Bytes),
    Trailers(HeaderMap),
}

/// What an endpoint owes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::proxy) enum Due {
    /// An answer.
    #[default]
    Answer,
    /// An answer that has no body, whatever its head says.
    AnswerToHead,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    /// No answer is due, or the whole of it was given back.
    #[default]
    Idle,
    Head(Due),
    Body,
    /// After 101 the bytes are not HTTP any more.
    Switched,
}

#[derive(Debug, Default)]
struct Head {
    lines: usize,
    http_11: bool,
    status: u16,
    reason: Option<ReasonPhrase>,
    headers: HeaderMap,
    content_length: Option<u64>,
    chunked: bool,
    close: bool,
    keep_alive: bool,
}

/// A head, the interim ones before it included.
const HEAD_BYTES_MAX: usize = 64 << 10;
const FIELDS_MAX: usize = 100;
/// Room for what answers usually have, so that a head's map is allocated once.
const FIELDS_USUAL: usize = 12;

// === impl AnswerFraming ===

impl AnswerFraming {
    /// A request was sent.
    pub(in crate::proxy) fn begin(&mut self, due: Due) {
        self.state = State::Head(due);
        self.lines.restart();
    }

    /// Whether no more of an answer is to come.
    pub(in crate::proxy) fn has_ended(&self) -> bool {
        self.state == State::Idle
    }

    /// Whether the answer was 101: what follows it is another protocol's.
    pub(in crate::proxy) fn has_switched(&self) -> bool {
        self.state == State::Switched
    }

    /// Whether the endpoint takes another request behind the answer that ended.
    pub(in crate::proxy) fn is_persistent(&self) -> bool {
        self.persistent
    }

    /// How many bytes of data are still to come, where that is known; 0 also says that no trailers are.
    pub(in crate::proxy) fn data_left(&self) -> Option<u64> {
        match self.state {
            // Trailers are still to be given back.
            State::Body if self.body.has_ended() => None,
            State::Body => self.body.data_left(),
            _ => Some(0),
        }
    }

    /// Takes of `bytes` what belongs to the answer, up to the end of its next part. None: it has ended, has switched,
    /// or needs more bytes than these.
    pub(in crate::proxy) fn next(&mut self, bytes: &mut Bytes) -> Result<Option<Part>, &'static str> {
        let part = match self.state {
            State::Idle | State::Switched => Ok(None),
            State::Head(due) => self.next_head(bytes, due),
            State::Body => self.next_of_body(bytes),
        };
        part.map_err(|wrong| match wrong {
            Wrong::Malformed(why) => why,
            Wrong::TooLarge => "the head or the trailers are too large",
        })
    }

    /// The stream is at its end; whether the answer may end with it.
    pub(in crate::proxy) fn end(&mut self) -> bool {
        if self.state == State::Body && self.body.ends_with_the_stream() {
            self.state = State::Idle;
        }
        self.has_ended()
    }

    fn next_head(&mut self, bytes: &mut Bytes, due: Due) -> Result<Option<Part>, Wrong> {
        let mut rest = &bytes[..];
        let mut head = None;
        while let Some(line) = self.lines.next(&mut rest, HEAD_BYTES_MAX)? {
            let line = without_end(line)?;
            if !line.is_empty() || self.head.lines == 0 {
                self.head.line(line, bytes)?;
                continue;
            }
            let whole = std::mem::take(&mut self.head);
            if matches!(whole.status, 100..200) && whole.status != 101 {
                continue;
            }
            head = Some(whole);
            break;
        }
        let taken = bytes.len() - rest.len();
        bytes.advance(taken);
        let Some(head) = head else { return Ok(None) };
        self.body.begin(head.left(due)?);
        self.persistent = head.is_persistent();
        self.state = match head.status {
            101 => State::Switched,
            _ if self.body.has_ended() => State::Idle,
            _ => State::Body,
        };
        if head.chunked && self.state == State::Body {
            // What came along is judged before anybody hears of the head: as yet it can be refused as a whole.
            let (mut trial, mut rest) = (self.body.clone(), &bytes[..]);
            while !rest.is_empty() && !trial.has_ended() {
                rest = trial.take(rest)?;
            }
        }
        Ok(Some(Part::Head(head.into_parts()?)))
    }

    fn next_of_body(&mut self, bytes: &mut Bytes) -> Result<Option<Part>, Wrong> {
        let mut data = None;
        let mut rest = &bytes[..];
        while !rest.is_empty() && !self.body.has_ended() {
            let holds = self.body.holds();
            if holds == Holds::Data && data.is_some() {
                break;
            }
            let after = self.body.take(rest)?;
            let taken = &rest[..rest.len() - after.len()];
            match holds {
                Holds::Data => data = Some(bytes.slice_ref(taken)),
                Holds::Trailers => self.trailers.extend_from_slice(taken),
                Holds::Framing => {}
            }
            rest = after;
        }
        let taken = bytes.len() - rest.len();
        bytes.advance(taken);
        if let Some(data) = data {
            if self.body.has_ended() && self.trailers.len() <= END_OF_TRAILERS {
                self.finish();
            }
            return Ok(Some(Part::Data(data)));
        }
        if !self.body.has_ended() {
            return Ok(None);
        }
        let trailers = self.finish();
        if trailers.len() <= END_OF_TRAILERS {
            return Ok(None);
        }
        let mut fields = HeaderMap::new();
        for line in trailers.split_inclusive(|byte| *byte == b'\n') {
            let line = without_end(line)?;
            if !line.is_empty() {
                let (name, value, _) = field(line)?;
                fields.append(name_of(name)?, HeaderValue::from_bytes(value).map_err(|_| BAD_FIELD)?);
            }
        }
        Ok(Some(Part::Trailers(fields)))
    }

    /// The answer is over; its trailers.
    fn finish(&mut self) -> Vec<u8> {
        self.state = State::Idle;
        std::mem::take(&mut self.trailers)
    }
}

/// Trailers without a field are an empty line.
const END_OF_TRAILERS: usize = 2;

// === impl Head ===

const BAD_FIELD: Wrong = Wrong::Malformed("a field's name or value cannot be passed on");

fn name_of(name: &[u8]) -> Result<HeaderName, Wrong> {
    HeaderName::from_bytes(name).map_err(|_| BAD_FIELD)
}

/// `part` of `whole`, or, where it was put together of two reads, a copy.
fn shared(part: &[u8], whole: &Bytes) -> Bytes {
    let (inner, outer) = (part.as_ptr_range(), whole.as_ptr_range());
    let inside = outer.start <= inner.start && inner.end <= outer.end;
    if inside { whole.slice_ref(part) } else { Bytes::copy_from_slice(part) }
}

impl Head {
    /// Takes one line without its end, most likely out of `source`.
    fn line(&mut self, line: &[u8], source: &Bytes) -> Result<(), Wrong> {
        self.lines += 1;
        if self.lines == 1 {
            return self.status_line(line);
        }
        if self.lines - 1 > FIELDS_MAX {
            return Err(Wrong::TooLarge);
        }
        let (name, value, _) = field(line)?;
        match name.len() {
            10 if name.eq_ignore_ascii_case(b"connection") => {
                for token in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                    self.close |= token.eq_ignore_ascii_case(b"close");
                    self.keep_alive |= token.eq_ignore_ascii_case(b"keep-alive");
                }
            }
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                if self.content_length.is_some() {
                    return Err(Wrong::Malformed("there is more than one Content-Length"));
                }
                self.content_length = Some(line::content_length(value)?);
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                if self.chunked || !self.http_11 || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Wrong::Malformed("Transfer-Encoding is not chunked, once, in HTTP/1.1"));
                }
                self.chunked = true;
            }
            _ => {}
        }
        if self.headers.is_empty() {
            self.headers.reserve(FIELDS_USUAL);
        }
        let value = HeaderValue::from_maybe_shared(shared(value, source)).map_err(|_| BAD_FIELD)?;
        self.headers.append(name_of(name)?, value);
        Ok(())
    }

    /// RFC 9112, section 4. The space before an empty reason is often left out.
    fn status_line(&mut self, line: &[u8]) -> Result<(), Wrong> {
        const MALFORMED: Wrong = Wrong::Malformed("the status line is not `HTTP/1.1 200 reason`");
        let (version, rest) = line.split_at_checked(9).ok_or(MALFORMED)?;
        self.http_11 = match version {
            b"HTTP/1.1 " => true,
            b"HTTP/1.0 " => false,
            _ => return Err(MALFORMED),
        };
        let (code, reason) = rest.split_at_checked(3).ok_or(MALFORMED)?;
        if !code.iter().all(u8::is_ascii_digit) || code[0] == b'0' {
            return Err(MALFORMED);
        }
        self.status = code.iter().fold(0, |status, digit| status * 10 + u16::from(digit - b'0'));
        let is_text = |byte: &u8| *byte >= 0x20 && *byte != 0x7f || *byte == b'\t';
        let reason = match reason {
            [] => reason,
            [b' ', reason @ ..] if reason.iter().all(is_text) => reason,
            _ => return Err(MALFORMED),
        };
        let usual = StatusCode::from_u16(self.status).ok().and_then(|status| status.canonical_reason());
        if usual.is_none_or(|usual| usual.as_bytes() != reason) {
            self.reason = ReasonPhrase::try_from(reason).ok();
        }
        Ok(())
    }

    /// What follows this head: RFC 9112, section 6.3.
    fn left(&self, due: Due) -> Result<Left, Wrong> {
        if self.content_length.is_some() && self.chunked {
            return Err(Wrong::Malformed("there are both Content-Length and Transfer-Encoding"));
        }
        Ok(match (self.content_length, self.chunked) {
            _ if due == Due::AnswerToHead || matches!(self.status, 101 | 204 | 304) => Left::Nothing,
            (_, true) => Left::CHUNKS,
            (Some(length), false) => Left::length(length),
            (None, false) => Left::UntilClose,
        })
    }

    /// RFC 9112, section 9.3.
    fn is_persistent(&self) -> bool {
        !self.close && (self.http_11 || self.keep_alive)
    }

    fn into_parts(self) -> Result<response::Parts, Wrong> {
        let status = StatusCode::from_u16(self.status);
        let (mut parts, ()) = http::Response::new(()).into_parts();
        parts.status = status.map_err(|_| Wrong::Malformed("there is no such status"))?;
        parts.version = if self.http_11 { Version::HTTP_11 } else { Version::HTTP_10 };
        parts.headers = self.headers;
        if let Some(reason) = self.reason {
            parts.extensions.insert(reason);
        }
        Ok(parts)
    }
}

#[cfg(test)]
/// Reads an answer in pieces; its data if it ended just there, none if it goes on.
pub(super) fn read(
    pieces: &mut dyn Iterator<Item = &[u8]>,
    due: Due,
) -> Result<Option<Vec<u8>>, &'static str> {
    let mut framing = AnswerFraming::default();
    framing.begin(due);
    let mut data = Vec::new();
    for piece in pieces {
        let mut bytes = Bytes::copy_from_slice(piece);
        while let Some(part) = framing.next(&mut bytes)? {
            if let Part::Data(piece) = part {
                data.extend_from_slice(&piece);
            }
        }
        if framing.has_ended() && !bytes.is_empty() {
            return Err("there are bytes that no request asked for");
        }
    }
    Ok(framing.has_ended().then_some(data))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fed whole and byte by byte, an answer must come to the same: its data and end, more to come, or a refusal.
    #[track_caller]
    fn check(bytes: &[u8], due: Due, expected: Result<Option<&str>, ()>) {
        let expected = expected.map(|data| data.map(|data| data.as_bytes().to_vec()));
        let text = String::from_utf8_lossy(bytes);
        let whole = read(&mut [bytes].into_iter(), due).map_err(drop);
        assert_eq!(whole, expected, "whole: {text:?}");
        assert_eq!(read(&mut bytes.chunks(1), due).map_err(drop), expected, "byte by byte: {text:?}");
    }

    #[test]
    fn answers_end_where_their_framing_says() {
        let ends = |answer: &str, data: &str| check(answer.as_bytes(), Due::Answer, Ok(Some(data)));
        ends("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", "abc");
        ends("HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", "");
        let chunked = "HTTP/1.1 200 \r\nTransfer-Encoding: Chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\n";
        ends(&format!("{chunked}\r\n"), "abcde");
        ends(&format!("{chunked}x: 1\r\n\r\n"), "abcde");
        ends("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: a\r\n\r\nHTTP/1.1 204 No\r\n\r\n", "");
        ends("HTTP/1.1 304 Not Modified\r\nContent-Length: 100\r\n\r\n", "");
        ends("HTTP/1.0 999 What\r\nContent-Length: 0\r\n\r\n", "");
        check(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n", Due::AnswerToHead, Ok(Some("")));
        let goes_on = |answer: &str| check(answer.as_bytes(), Due::Answer, Ok(None));
        goes_on("HTTP/1.1 200 OK\r\n\r\nuntil the end");
        goes_on("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab");
        goes_on("HTTP/1.1 101 Switching Protocols\r\n\r\n\0any\nthing");
        goes_on("HTTP/1.1 103 Early Hints\r\n\r\n");
    }

    #[test]
    fn answers_that_two_clients_read_differently_are_refused() {
        let head = |fields: &str| format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n").into_bytes();
        for fields in [
            "Content-Length: 3\r\nTransfer-Encoding: chunked",
            "Content-Length: 3\r\nContent-Length: 3",
            "Content-Length: 3, 3",
            "Content-Length: +3",
            "Content-Length: 03",
            "Content-Length: ",
            "Transfer-Encoding: gzip, chunked",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: identity",
            "X: 1\r\n folded",
            "X : 1",
            "X: 1\nY: 2",
            "X: 1\rY: 2",
            "X: a\0b",
            "no colon",
        ] {
            check(&head(fields), Due::Answer, Err(()));
            check(&head(fields), Due::AnswerToHead, Err(()));
        }
        for answer in [
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/2 200\r\n\r\n",
            "HTTP/1.1  200 OK\r\n\r\n",
            "HTTP/1.1 20 OK\r\n\r\n",
            "HTTP/1.1 2000 OK\r\n\r\n",
            "HTTP/1.1 099 OK\r\n\r\n",
            "HTTP/1.1 200 a\0b\r\n\r\n",
            "\r\nHTTP/1.1 200 OK\r\n\r\n",
            "hello\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nabc",
            "HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\nabc",
        ] {
            check(answer.as_bytes(), Due::Answer, Err(()));
        }
        check(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", Due::AnswerToHead, Err(()));
    }

    #[test]
    fn an_answer_is_whole_whatever_follows_it() {
        let mut bytes = Bytes::from_static(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\naHTTP/1.1 200");
        let mut framing = AnswerFraming::default();
        framing.begin(Due::Answer);
        assert!(matches!(framing.next(&mut bytes), Ok(Some(Part::Head(_)))));
        assert!(matches!(framing.next(&mut bytes), Ok(Some(Part::Data(data))) if data == "a"));
        assert!(framing.has_ended());
        assert_eq!(bytes, "HTTP/1.1 200");
    }

    #[test]
    fn what_came_with_a_head_is_judged_before_it_is_passed_on() {
        let mut bytes =
            Bytes::from_static(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\nx\r\n");
        let mut framing = AnswerFraming::default();
        framing.begin(Due::Answer);
        assert!(framing.next(&mut bytes).is_err());
    }

    #[test]
    fn a_head_is_passed_on_as_it_came() {
        let mut bytes = Bytes::from_static(
            b"HTTP/1.1 200 Fine\r\nSet-Cookie: a\r\nX-Odd:\t \xff\xfe \r\nset-cookie: b\r\nContent-Length: 0\r\n\r\n",
        );
        let mut framing = AnswerFraming::default();
        framing.begin(Due::Answer);
        let Ok(Some(Part::Head(head))) = framing.next(&mut bytes) else { panic!("no head") };
        let cookies: Vec<_> = head.headers.get_all("set-cookie").iter().collect();
        assert_eq!(cookies, ["a", "b"]);
        assert_eq!(head.headers["x-odd"].as_bytes(), b"\xff\xfe");
        assert_eq!(head.extensions.get::<ReasonPhrase>().unwrap().as_bytes(), b"Fine");
    }

    #[test]
    fn a_connection_goes_on_where_both_versions_of_http_say_so() {
        for (head, expected) in [
            ("HTTP/1.1 204 No\r\n\r\n", true),
            ("HTTP/1.1 204 No\r\nConnection: x, Close\r\n\r\n", false),
            ("HTTP/1.0 204 No\r\n\r\n", false),
            ("HTTP/1.0 204 No\r\nConnection: Keep-Alive\r\n\r\n", true),
        ] {
            let mut framing = AnswerFraming::default();
            framing.begin(Due::Answer);
            assert!(framing.next(&mut Bytes::from_static(head.as_bytes())).unwrap().is_some());
            assert_eq!(framing.is_persistent(), expected, "{head}");
        }
    }

    #[test]
    fn only_an_answer_of_unknown_length_ends_with_its_stream() {
        for (answer, expected) in [
            ("HTTP/1.1 200 OK\r\n\r\nabc", true),
            ("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabc", false),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", false),
            ("HTTP/1.1 200 OK\r\n", false),
        ] {
            let mut framing = AnswerFraming::default();
            framing.begin(Due::Answer);
            let mut bytes = Bytes::from_static(answer.as_bytes());
            while framing.next(&mut bytes).unwrap().is_some() {}
            assert_eq!(framing.end(), expected, "{answer}");
        }
    }

    #[test]
    fn a_head_has_bounds() {
        let fields = "X: 1\r\n".repeat(FIELDS_MAX + 1);
        check(format!("HTTP/1.1 200 OK\r\n{fields}\r\n").as_bytes(), Due::Answer, Err(()));
        let long = "x".repeat(HEAD_BYTES_MAX);
        check(format!("HTTP/1.1 200 OK\r\nX: {long}").as_bytes(), Due::Answer, Err(()));
        let interim = "HTTP/1.1 100 Continue\r\n\r\n".repeat(HEAD_BYTES_MAX / 25 + 1);
        check(interim.as_bytes(), Due::Answer, Err(()));
    }
}
