//! Where one message ends and the next begins, read strictly and before anything else reads it.
//!
//! Job: [`Framing`] looks at every byte that a client sends, in order, and refuses what two parsers could read
//! in two ways (RFC 9112, section 11.2): Content-Length with Transfer-Encoding, two Content-Lengths, obs-fold,
//! a bare LF, space before the colon, a broken chunk, more than one Host, a target that names another host.
//! hyper decides some of these silently, so it never sees them. It also holds the bounds on a head. [`answer`]
//! reads what endpoints send by the same rules; `line`, `body` and `target` are what both are made of.
//! Invariant: the cost is linear in the bytes, however they are cut into pieces. Neighbours: `stream` feeds it,
//! `client` answers its refusals; docs/security.md has the rules for users.

pub(super) mod answer;
mod body;
#[cfg(test)]
mod fuzz;
mod line;
mod target;

use std::sync::Arc;

use self::{
    body::{Body, Left},
    line::{Lines, field, is_token, without_end},
    target::Authority,
};
use super::error::ProxyError;
use crate::config::document::Limits;

/// The place in a client's stream of bytes.
#[derive(Debug)]
pub(super) struct Framing {
    head: Head,
    lines: Lines,
    /// Ended, unless one is under way.
    body: Body,
    requests: u64,
    waits_for_answer: bool,
    limits: Arc<Limits>,
    underscored: bool,
}

/// Why the connection must end.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) error: ProxyError,
    /// So many of the bytes taken last come before the request that is refused; none: it began before them.
    pub(super) good: Option<usize>,
}

/// What is wrong with a message, whoever sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrong {
    Malformed(&'static str),
    TooLarge,
}

/// What is known of the head being read.
#[derive(Debug, Default)]
struct Head {
    lines: usize,
    empty_lines: usize,
    http_11: bool,
    /// Of a target in absolute-form.
    authority: Option<Authority>,
    has_host: bool,
    has_authorization: bool,
    content_length: Option<u64>,
    chunked: bool,
    upgrade: bool,
}

// === impl Wrong ===

impl From<Wrong> for ProxyError {
    fn from(wrong: Wrong) -> Self {
        match wrong {
            Wrong::Malformed(why) => Self::Malformed(why),
            Wrong::TooLarge => Self::HeadTooLarge,
        }
    }
}

// === impl Framing ===

impl Framing {
    pub(super) fn new(limits: Arc<Limits>) -> Self {
        Self {
            head: Head::default(),
            lines: Lines::default(),
            body: Body::default(),
            requests: 0,
            waits_for_answer: false,
            limits,
            underscored: false,
        }
    }

    /// Whether the next byte begins a request.
    pub(super) fn at_start(&self) -> bool {
        self.lines.bytes == 0 && self.body.has_ended()
    }

    /// Whether a head has begun and not ended.
    pub(super) fn in_head(&self) -> bool {
        self.lines.bytes > 0
    }

    /// Whether any field so far had an underscore in its name.
    pub(super) fn has_seen_underscores(&self) -> bool {
        self.underscored
    }

    /// Requests whose heads have ended.
    pub(super) fn requests(&self) -> u64 {
        self.requests
    }

    /// Whether the last head asked for another protocol: what follows may not be HTTP.
    pub(super) fn waits_for_answer(&self) -> bool {
        self.waits_for_answer
    }

    /// The answer was no other protocol: what follows is HTTP.
    pub(super) fn go_on(&mut self) {
        self.waits_for_answer = false;
    }

    /// Takes the next bytes, or says why the connection must end. Of what follows a head that asks for another
    /// protocol nothing is taken until it is known to be HTTP; how many were.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<usize, Refusal> {
        let mut good = self.at_start().then_some(0);
        let mut rest = bytes;
        while !rest.is_empty() && !self.waits_for_answer {
            let taken = if self.body.has_ended() {
                self.take_head(rest)
            } else {
                self.body.take(rest).map_err(ProxyError::from)
            };
            rest = taken.map_err(|error| Refusal { error, good })?;
            if self.at_start() {
                good = Some(bytes.len() - rest.len());
            }
        }
        Ok(bytes.len() - rest.len())
    }

    /// Takes some of the bytes, one at least; the rest.
    fn take_head<'a>(&mut self, mut bytes: &'a [u8]) -> Result<&'a [u8], ProxyError> {
        while let Some(line) = self.lines.next(&mut bytes, self.limits.header_bytes)? {
            let line = without_end(line)?;
            if !line.is_empty() {
                self.underscored |= self.head.line(line, &self.limits)?;
            } else if self.head.lines > 0 {
                self.body.begin(self.head.body()?);
                self.requests += 1;
                self.waits_for_answer = self.head.upgrade && self.body.has_ended();
                self.head = Head::default();
                self.lines.restart();
                break;
            } else {
                self.head.empty_line()?;
            }
        }
        let too_long = self.head.lines == 0
            && self.lines.unfinished() > self.limits.uri_bytes + METHOD_BYTES_MAX + VERSION_BYTES;
        if too_long { Err(ProxyError::UriTooLong) } else { Ok(bytes) }
    }
}

// === impl Head ===

const METHOD_BYTES_MAX: usize = 32;
/// Two spaces, the version and CRLF.
const VERSION_BYTES: usize = 12;
/// RFC 9112, section 2.2: at least one empty line before a request line is passed over. Old clients send one
/// after a body.
const EMPTY_LINES_MAX: usize = 2;

impl Head {
    fn empty_line(&mut self) -> Result<(), ProxyError> {
        self.empty_lines += 1;
        if self.empty_lines > EMPTY_LINES_MAX {
            return Err(ProxyError::Malformed("too many empty lines come before the request"));
        }
        Ok(())
    }

    /// Takes one line without its end; whether it is a field with an underscore in its name.
    fn line(&mut self, line: &[u8], limits: &Limits) -> Result<bool, ProxyError> {
        self.lines += 1;
        if self.lines == 1 {
            return self.request_line(line, limits).map(|()| false);
        }
        if self.lines - 1 > limits.headers {
            return Err(ProxyError::HeadTooLarge);
        }
        let (name, value, underscored) = field(line)?;
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => self.host(value)?,
            6 if name.eq_ignore_ascii_case(b"expect") => self.expect(value)?,
            13 if name.eq_ignore_ascii_case(b"authorization") => self.authorization()?,
            7 if name.eq_ignore_ascii_case(b"upgrade") => self.upgrade = true,
            14 if name.eq_ignore_ascii_case(b"content-length") => self.content_length(value)?,
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => self.transfer_encoding(value)?,
            _ => {}
        }
        Ok(underscored)
    }

    fn request_line(&mut self, line: &[u8], limits: &Limits) -> Result<(), ProxyError> {
        let mut parts = line.split(|byte| *byte == b' ');
        let (Some(method), Some(target), Some(version), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(ProxyError::Malformed("the request line is not `METHOD target HTTP/1.1`"));
        };
        if target.len() > limits.uri_bytes {
            return Err(ProxyError::UriTooLong);
        }
        if method.is_empty() || method.len() > METHOD_BYTES_MAX || !method.iter().all(|byte| is_token(*byte))
        {
            return Err(ProxyError::Malformed("the method is not a token"));
        }
        self.http_11 = match version {
            b"HTTP/1.1" => true,
            b"HTTP/1.0" => false,
            _ => return Err(ProxyError::Malformed("the version is not HTTP/1.1 or HTTP/1.0")),
        };
        match method {
            b"CONNECT" => return Err(ProxyError::NotImplemented("CONNECT is for forward proxies")),
            // It would show the client the fields that are added on the way.
            b"TRACE" => return Err(ProxyError::NotImplemented("TRACE is not forwarded")),
            _ => {}
        }
        self.authority = target::target(method, target)?;
        Ok(())
    }

    fn host(&mut self, value: &[u8]) -> Result<(), ProxyError> {
        if std::mem::replace(&mut self.has_host, true) {
            return Err(ProxyError::Malformed("there is more than one Host"));
        }
        if !target::is_host(value) {
            return Err(ProxyError::Malformed("Host is malformed"));
        }
        if self.authority.as_ref().is_some_and(|authority| !authority.is(value)) {
            return Err(ProxyError::Malformed("Host and the request target name different hosts"));
        }
        Ok(())
    }

    /// RFC 9110, section 10.1.1; HTTP/1.0 does not know it.
    fn expect(&self, value: &[u8]) -> Result<(), ProxyError> {
        if self.http_11 && !value.eq_ignore_ascii_case(b"100-continue") {
            return Err(ProxyError::ExpectationFailed);
        }
        Ok(())
    }

    /// What checks the first and what serves by the last would let another one in.
    fn authorization(&mut self) -> Result<(), ProxyError> {
        if std::mem::replace(&mut self.has_authorization, true) {
            return Err(ProxyError::Malformed("there is more than one Authorization"));
        }
        Ok(())
    }

    fn content_length(&mut self, value: &[u8]) -> Result<(), ProxyError> {
        if self.content_length.is_some() {
            return Err(ProxyError::Malformed("there is more than one Content-Length"));
        }
        self.content_length = Some(line::content_length(value)?);
        Ok(())
    }

    /// RFC 9112, sections 6.1 and 6.3.
    fn transfer_encoding(&mut self, value: &[u8]) -> Result<(), ProxyError> {
        if self.chunked || !self.http_11 {
            return Err(ProxyError::Malformed("Transfer-Encoding is repeated or not allowed in HTTP/1.0"));
        }
        if !value.eq_ignore_ascii_case(b"chunked") {
            let mut codings = value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).rev();
            let chunked_last = codings.next().is_some_and(|last| last.eq_ignore_ascii_case(b"chunked"));
            let chunked_before = codings.any(|coding| coding.eq_ignore_ascii_case(b"chunked"));
            return Err(if value.is_empty() || chunked_before || (value.contains(&b',') && !chunked_last) {
                ProxyError::Malformed("chunked is not the last transfer coding, or is there twice")
            } else {
                ProxyError::NotImplemented("the only transfer coding understood is chunked")
            });
        }
        self.chunked = true;
        Ok(())
    }

    /// What follows this head.
    fn body(&self) -> Result<Left, ProxyError> {
        if self.http_11 && !self.has_host {
            return Err(ProxyError::Malformed("there is no Host"));
        }
        match (self.content_length, self.chunked) {
            (Some(_), true) => {
                Err(ProxyError::Malformed("there are both Content-Length and Transfer-Encoding"))
            }
            (None, true) => Ok(Left::CHUNKS),
            (length, false) => Ok(Left::length(length.unwrap_or(0))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framing() -> Framing {
        let limits = Limits { header_bytes: 500, headers: 5, uri_bytes: 100, ..Limits::default() };
        Framing::new(Arc::new(limits))
    }

    /// Fed whole and byte by byte, a stream must end the same way.
    #[track_caller]
    fn check(bytes: &str, expected: Result<bool, u16>) {
        let outcome = |pieces: &mut dyn Iterator<Item = &[u8]>| {
            let mut framing = framing();
            for piece in pieces {
                framing.take(piece).map_err(|refusal| refusal.error.row().status.as_u16())?;
            }
            Ok(framing.at_start())
        };
        assert_eq!(outcome(&mut [bytes.as_bytes()].into_iter()), expected, "whole: {bytes:?}");
        assert_eq!(outcome(&mut bytes.as_bytes().chunks(1)), expected, "byte by byte: {bytes:?}");
    }

    #[test]
    fn requests_end_where_their_framing_says() {
        check("GET / HTTP/1.1\r\nHost: a\r\n\r\n", Ok(true));
        check("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.0\r\n\r\n", Ok(true));
        check("GET / HTTP/1.1\r\nHost: a\r\n", Ok(false));
        check("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", Ok(true));
        check("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nab", Ok(false));
        let chunked = "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        check(&format!("{chunked}3\r\nabc\r\nA;x=1\r\n0123456789\r\n0\r\n\r\n"), Ok(true));
        check(&format!("{chunked}0\r\nx-sum: 1\r\n\r\n"), Ok(true));
        check(&format!("{chunked}3\r\nabc\r\n"), Ok(false));
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        let get = |fields: &str| format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n");
        for fields in [
            "Content-Length: 3\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nContent-Length: 3",
            "Content-Length: 3\r\nContent-Length: 3",
            "Content-Length: +3",
            "Content-Length: 3, 3",
            "Content-Length: ",
            "Host: b",
            "X: 1\r\n folded",
            "X : 1",
            "X: 1\nY: 2",
            "X: a\0b",
            "no colon",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked, chunked",
            "Transfer-Encoding: chunked, gzip",
            "Transfer-Encoding: \u{b}chunked",
            "Transfer-Encoding: ",
            "Content-Length: 03",
            "Content-Length: 0x3",
            "Authorization: a\r\nAuthorization: b",
        ] {
            check(&get(fields), Err(400));
        }
        check("GET / HTTP/1.1\r\n\r\n", Err(400));
        check("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", Err(400));
        check("GET / HTTP/2.0\r\nHost: a\r\n\r\n", Err(400));
        check("GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", Err(400));
        check(&get("Transfer-Encoding: gzip, chunked"), Err(501));
        let chunked = "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        for body in
            ["x\r\n", "3\nabc\r\n", "3\r\nabcd\r\n", "\r\n", "0\r\nbad\r\n\r\n", "fffffffffffffffff\r\n"]
        {
            check(&format!("{chunked}{body}"), Err(400));
        }
    }

    #[test]
    fn a_request_asks_one_host() {
        let request = |target: &str, host: &str| format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        for (target, host) in [
            ("/", "a.example:8080"),
            ("/", "[::1]:80"),
            ("/", "my_service"),
            ("http://a.example/x", "A.EXAMPLE"),
            ("HTTP://a.example:80?q", "a.example"),
            ("https://a.example/", "a.example:443"),
            ("//a/b?c=[1]|{2}", "a"),
        ] {
            check(&request(target, host), Ok(true));
        }
        for (target, host) in [
            ("/", ""),
            ("/", "a b"),
            ("/", "a,b"),
            ("/", "a@b"),
            ("/", "a:b"),
            ("/", "a:"),
            ("/", "a:80:80"),
            ("/", "a:65536"),
            ("/", "[::1"),
            ("/", "[x]"),
            ("/", "a%00"),
            ("/", "a/b"),
            ("http://a/", "b"),
            ("http://a:81/", "a"),
            ("http://u@a/", "a"),
            ("http:///", "a"),
            ("ftp://a/", "a"),
            ("a:80", "a:80"),
            ("a", "a"),
            ("?a", "a"),
            ("*", "a"),
            ("/a#b", "a"),
            ("/a\\b", "a"),
            ("/a\u{7f}", "a"),
        ] {
            check(&request(target, host), Err(400));
        }
        check("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", Ok(true));
        check("CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", Err(501));
        check("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", Err(501));
    }

    #[test]
    fn only_one_expectation_is_understood() {
        check("GET / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\n\r\n", Ok(true));
        check("GET / HTTP/1.1\r\nHost: a\r\nExpect: more\r\n\r\n", Err(417));
        check("GET / HTTP/1.0\r\nExpect: more\r\n\r\n", Ok(true));
    }

    #[test]
    fn a_refusal_spares_the_requests_before_it() {
        let good = "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";
        let refusal = framing().take(format!("{good}{good}GET / HTTP/1.1\n").as_bytes()).unwrap_err();
        assert_eq!(refusal.good, Some(2 * good.len()));
        let mut framing = framing();
        assert_eq!(framing.take(b"GET / "), Ok(6));
        assert_eq!(framing.take(b"HTTP/1.1\n").unwrap_err().good, None);
    }

    #[test]
    fn what_follows_a_head_that_asks_for_another_protocol_waits() {
        let ask = b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\n\r\n";
        let mut framing = framing();
        assert_eq!(framing.take(&[&ask[..], b"\0"].concat()), Ok(ask.len()));
        assert!(framing.waits_for_answer());
        assert_eq!((framing.requests(), framing.take(b"\0")), (1, Ok(0)));
        framing.go_on();
        assert!(framing.take(b"\n\n").is_err());
    }

    #[test]
    fn a_head_has_bounds() {
        check(&format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(100)), Err(414));
        check(&"G".repeat(165), Err(414));
        check(&format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(500)), Err(431));
        check("GET / HTTP/1.1\r\nHost: a\r\na: 1\r\nb: 1\r\nc: 1\r\nd: 1\r\ne: 1\r\n\r\n", Err(431));
        check("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", Ok(true));
        check("\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", Err(400));
    }

    #[test]
    fn what_comes_with_chunks_has_bounds() {
        let chunked = "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        let chunk = |extension: usize| format!("1;{}\r\nx\r\n", "e".repeat(extension));
        check(&format!("{chunked}{}0\r\n\r\n", chunk(256)), Ok(true));
        check(&format!("{chunked}{}", chunk(257)), Err(400));
        check(&format!("{chunked}{}", chunk(200).repeat(41)), Err(400));
        check(&format!("{chunked}0\r\n{}\r\n", "x: 1\r\n".repeat(65)), Err(431));
        check(&format!("{chunked}0\r\nx: {}\r\n\r\n", "x".repeat(8 << 10)), Err(431));
    }
}
