//! What an endpoint sends, held to the rules for what a client sends.
//!
//! Job: [`AnswerFraming`] looks at every byte before hyper reads it: an answer is one that a client reads as
//! hyper does, or its connection ends. It knows what no byte says: whether an answer is due at all, and whether
//! it is one to HEAD. Invariant: interim answers, however many, are bounded together. Neighbours:
//! `stream` feeds it, `connection` says what is due.

use super::{
    Wrong,
    body::{Body, Left},
    line::{self, Lines, field, without_end},
};

/// The place in an endpoint's stream of bytes.
#[derive(Debug, Default)]
pub(in crate::proxy) struct AnswerFraming {
    state: State,
    head: Head,
    lines: Lines,
    body: Body,
}

/// Why the connection must end.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::proxy) struct Broken {
    pub(in crate::proxy) why: &'static str,
    /// So many of the bytes taken last end an answer that is whole: what follows it is what is wrong.
    pub(in crate::proxy) good: usize,
}

/// What an endpoint owes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::proxy) enum Due {
    /// Nothing: no request is under way.
    Nothing,
    /// An answer.
    Answer,
    /// An answer that has no body, whatever its head says.
    AnswerToHead,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    Head,
    Body,
    /// After 101 the bytes are not HTTP any more.
    Switched,
}

#[derive(Debug, Default)]
struct Head {
    lines: usize,
    http_11: bool,
    status: u16,
    content_length: Option<u64>,
    chunked: bool,
}

/// A head, the interim ones before it included.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// More fields than this make hyper allocate.
const FIELDS_MAX: usize = 100;

// === impl AnswerFraming ===

impl AnswerFraming {
    /// Takes the next bytes, of an answer that is `due`. What is due after them, or why the connection must end.
    pub(in crate::proxy) fn take(&mut self, bytes: &[u8], mut due: Due) -> Result<Due, Broken> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let taken = match self.state {
                State::Switched => break,
                State::Head if due == Due::Nothing => {
                    let why = "there are bytes that no request asked for";
                    return Err(Broken { why, good: bytes.len() - rest.len() });
                }
                State::Head => self.take_head(rest, due),
                State::Body => self.body.take(rest),
            };
            rest = taken.map_err(|wrong| match wrong {
                Wrong::Malformed(why) => Broken { why, good: 0 },
                Wrong::TooLarge => Broken { why: "the head or the trailers are too large", good: 0 },
            })?;
            if self.state == State::Body && self.body.has_ended() {
                self.state = State::Head;
                due = Due::Nothing;
            }
        }
        Ok(due)
    }

    fn take_head<'a>(&mut self, mut bytes: &'a [u8], due: Due) -> Result<&'a [u8], Wrong> {
        while let Some(line) = self.lines.next(&mut bytes, HEAD_BYTES_MAX)? {
            let line = without_end(line)?;
            if !line.is_empty() || self.head.lines == 0 {
                self.head.line(line)?;
                continue;
            }
            let head = std::mem::take(&mut self.head);
            self.state = match head.status {
                101 => State::Switched,
                100..200 => continue,
                _ => State::Body,
            };
            self.body.begin(head.body(due)?);
            self.lines.restart();
            break;
        }
        Ok(bytes)
    }
}

// === impl Head ===

impl Head {
    /// Takes one line without its end.
    fn line(&mut self, line: &[u8]) -> Result<(), Wrong> {
        self.lines += 1;
        if self.lines == 1 {
            return self.status_line(line);
        }
        if self.lines - 1 > FIELDS_MAX {
            return Err(Wrong::TooLarge);
        }
        let (name, value, _) = field(line)?;
        match name.len() {
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
        match reason {
            [] => Ok(()),
            [b' ', reason @ ..] if reason.iter().all(is_text) => Ok(()),
            _ => Err(MALFORMED),
        }
    }

    /// What follows this head: RFC 9112, section 6.3.
    fn body(&self, due: Due) -> Result<Left, Wrong> {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fed whole and byte by byte, an answer must end the same way: what is due after it, or a refusal.
    #[track_caller]
    fn check(bytes: &[u8], due: Due, expected: Result<Due, ()>) {
        let outcome = |pieces: &mut dyn Iterator<Item = &[u8]>| {
            let mut framing = AnswerFraming::default();
            let mut due = due;
            for piece in pieces {
                due = framing.take(piece, due).map_err(drop)?;
            }
            Ok(due)
        };
        let text = String::from_utf8_lossy(bytes);
        assert_eq!(outcome(&mut [bytes].into_iter()), expected, "whole: {text:?}");
        assert_eq!(outcome(&mut bytes.chunks(1)), expected, "byte by byte: {text:?}");
    }

    #[test]
    fn answers_end_where_their_framing_says() {
        let ends = |answer: &str| check(answer.as_bytes(), Due::Answer, Ok(Due::Nothing));
        ends("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc");
        ends("HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n");
        ends("HTTP/1.1 200 \r\nTransfer-Encoding: Chunked\r\n\r\n3\r\nabc\r\n0\r\nx: 1\r\n\r\n");
        ends("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: a\r\n\r\nHTTP/1.1 204 No\r\n\r\n");
        ends("HTTP/1.1 304 Not Modified\r\nContent-Length: 100\r\n\r\n");
        ends("HTTP/1.0 999 What\r\nContent-Length: 0\r\n\r\n");
        check(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n", Due::AnswerToHead, Ok(Due::Nothing));
        let goes_on = |answer: &str| check(answer.as_bytes(), Due::Answer, Ok(Due::Answer));
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
        check(b"HTTP/1.1 200 OK\r\n", Due::Nothing, Err(()));
        check(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", Due::AnswerToHead, Err(()));
    }

    #[test]
    fn an_answer_is_whole_whatever_follows_it() {
        let good = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na";
        let broken = AnswerFraming::default().take(&[good, &b"HTTP/1.1 200"[..]].concat(), Due::Answer);
        assert_eq!(broken.unwrap_err().good, good.len());
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
