//! Where one request ends and the next begins, read strictly and before anything else reads it.
//!
//! Job: [`Framing`] looks at every byte that a client sends, in order, and refuses what two parsers could read
//! in two ways (RFC 9112, section 11.2): Content-Length with Transfer-Encoding, two Content-Lengths, obs-fold,
//! a bare LF, space before the colon, a broken chunk, more than one Host. hyper decides some of these silently,
//! so it never sees them. It also holds the bounds on a head.
//! Invariant: the cost is linear in the bytes, however they are cut into pieces. Neighbours: `stream` feeds it,
//! `http` answers its refusals.

use std::sync::Arc;

use super::error::ProxyError;
use crate::config::document::Limits;

/// The place in a client's stream of bytes.
#[derive(Debug)]
pub(super) struct Framing {
    state: State,
    head: Head,
    /// A line of a head that has not ended yet.
    partial: Vec<u8>,
    requests: u64,
    waits_for_answer: bool,
    limits: Arc<Limits>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Head,
    /// So many bytes of a body are left.
    Length(u64),
    Chunk(Chunk),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chunk {
    Size {
        value: u64,
        digits: u8,
    },
    /// Ignored, as RFC 9112, section 7.1.1 asks; holds the size.
    Extension(u64),
    SizeLineFeed(u64),
    Data(u64),
    DataCarriageReturn,
    DataLineFeed,
    /// The lines after the last chunk; they end with an empty one.
    Trailers,
}

/// Why the connection must end.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) error: ProxyError,
    /// So many of the bytes taken last come before the request that is refused; none: it began before them.
    pub(super) good: Option<usize>,
}

/// What is known of the head being read.
#[derive(Debug, Default)]
struct Head {
    lines: usize,
    bytes: usize,
    http_11: bool,
    hosts: usize,
    content_length: Option<u64>,
    chunked: bool,
    upgrade: bool,
}

const MALFORMED_LINE: ProxyError = ProxyError::Malformed("a line of the head does not end with CRLF");
const MALFORMED_CHUNK: ProxyError = ProxyError::Malformed("a chunk of the body is malformed");

// === impl Framing ===

impl Framing {
    pub(super) fn new(limits: Arc<Limits>) -> Self {
        Self {
            state: State::Head,
            head: Head::default(),
            partial: Vec::new(),
            requests: 0,
            waits_for_answer: false,
            limits,
        }
    }

    /// Whether the next byte begins a request.
    pub(super) fn at_start(&self) -> bool {
        self.state == State::Head && self.head.bytes == 0 && self.partial.is_empty()
    }

    /// Whether a head has begun and not ended.
    pub(super) fn in_head(&self) -> bool {
        self.state == State::Head && !self.at_start()
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
            rest = self.take_piece(rest).map_err(|error| Refusal { error, good })?;
            if self.at_start() {
                good = Some(bytes.len() - rest.len());
            }
        }
        Ok(bytes.len() - rest.len())
    }

    /// Takes some of the bytes, one at least; the rest.
    fn take_piece<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], ProxyError> {
        match self.state {
            State::Head => self.take_head(bytes),
            State::Length(left) => {
                let taken = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                self.state = match left - taken as u64 {
                    0 => State::Head,
                    left => State::Length(left),
                };
                Ok(&bytes[taken..])
            }
            State::Chunk(chunk) => self.take_chunk(chunk, bytes),
        }
    }

    fn take_head<'a>(&mut self, mut bytes: &'a [u8]) -> Result<&'a [u8], ProxyError> {
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            let (line, rest) = bytes.split_at(end + 1);
            bytes = rest;
            self.count(line.len())?;
            let ended = if self.partial.is_empty() {
                self.head.line(line, &self.limits)?
            } else {
                self.partial.extend_from_slice(line);
                let ended = self.head.line(&self.partial, &self.limits);
                self.partial.clear();
                ended?
            };
            if ended {
                self.state = self.head.framing()?;
                self.requests += 1;
                self.waits_for_answer = self.head.upgrade && self.state == State::Head;
                self.head = Head::default();
                return Ok(bytes);
            }
        }
        self.count(bytes.len())?;
        self.partial.extend_from_slice(bytes);
        let too_long = self.head.lines == 0 && self.partial.len() > self.limits.uri_bytes + LINE_BESIDE_URI;
        if too_long { Err(ProxyError::UriTooLong) } else { Ok(&[]) }
    }

    fn count(&mut self, bytes: usize) -> Result<(), ProxyError> {
        self.head.bytes += bytes;
        if self.head.bytes > self.limits.header_bytes { Err(ProxyError::HeadTooLarge) } else { Ok(()) }
    }

    fn take_chunk<'a>(&mut self, chunk: Chunk, bytes: &'a [u8]) -> Result<&'a [u8], ProxyError> {
        let (byte, rest) = (bytes[0], &bytes[1..]);
        let next = match (chunk, byte) {
            (Chunk::Size { value, digits }, _) if byte.is_ascii_hexdigit() && digits < 15 => {
                let digit = (byte as char).to_digit(16).unwrap_or(0);
                Chunk::Size { value: value << 4 | u64::from(digit), digits: digits + 1 }
            }
            (Chunk::Size { value, digits: 1.. }, b'\r') => Chunk::SizeLineFeed(value),
            (Chunk::Size { value, digits: 1.. }, b';') => Chunk::Extension(value),
            (Chunk::Extension(size), b'\r') => Chunk::SizeLineFeed(size),
            (Chunk::Extension(size), b'\t' | b' '..) => {
                self.count(1)?;
                Chunk::Extension(size)
            }
            (Chunk::SizeLineFeed(0), b'\n') => Chunk::Trailers,
            (Chunk::SizeLineFeed(size), b'\n') => Chunk::Data(size),
            (Chunk::Data(left), _) => {
                let taken = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                let left = left - taken as u64;
                self.state =
                    State::Chunk(if left == 0 { Chunk::DataCarriageReturn } else { Chunk::Data(left) });
                return Ok(&bytes[taken..]);
            }
            (Chunk::DataCarriageReturn, b'\r') => Chunk::DataLineFeed,
            (Chunk::DataLineFeed, b'\n') => {
                self.head = Head::default();
                Chunk::Size { value: 0, digits: 0 }
            }
            (Chunk::Trailers, _) => return self.take_trailers(bytes),
            _ => return Err(MALFORMED_CHUNK),
        };
        self.state = State::Chunk(next);
        Ok(rest)
    }

    fn take_trailers<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], ProxyError> {
        let end = memchr::memchr(b'\n', bytes).map_or(bytes.len(), |end| end + 1);
        let (piece, rest) = bytes.split_at(end);
        self.count(piece.len())?;
        self.partial.extend_from_slice(piece);
        if self.partial.ends_with(b"\n") {
            let Some(line) = self.partial.strip_suffix(b"\r\n") else { return Err(MALFORMED_LINE) };
            if line.is_empty() {
                self.state = State::Head;
                self.head = Head::default();
            } else {
                field(line)?;
            }
            self.partial.clear();
        }
        Ok(rest)
    }
}

// === impl Head ===

/// What a request line holds beside its target: a method (bounded here), two spaces, the version and CRLF.
const LINE_BESIDE_URI: usize = 64;

impl Head {
    /// Takes one line with its line feed; whether it was the last one.
    fn line(&mut self, line: &[u8], limits: &Limits) -> Result<bool, ProxyError> {
        let Some(line) = line.strip_suffix(b"\r\n") else { return Err(MALFORMED_LINE) };
        if line.is_empty() {
            // RFC 9112, section 2.2: empty lines before a request line are passed over.
            return Ok(self.lines > 0);
        }
        self.lines += 1;
        if self.lines == 1 {
            return self.request_line(line, limits).map(|()| false);
        }
        if self.lines - 1 > limits.headers {
            return Err(ProxyError::HeadTooLarge);
        }
        let (name, value) = field(line)?;
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => {
                self.hosts += 1;
                if self.hosts > 1 {
                    return Err(ProxyError::Malformed("there is more than one Host"));
                }
            }
            7 if name.eq_ignore_ascii_case(b"upgrade") => self.upgrade = true,
            14 if name.eq_ignore_ascii_case(b"content-length") => self.content_length(value)?,
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => self.transfer_encoding(value)?,
            _ => {}
        }
        Ok(false)
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
        if method.is_empty() || method.len() > 32 || !method.iter().all(|byte| is_token(*byte)) {
            return Err(ProxyError::Malformed("the method is not a token"));
        }
        if target.is_empty() || !target.iter().all(|byte| (0x21..0x7f).contains(byte)) {
            return Err(ProxyError::Malformed("the request target has a character that must be encoded"));
        }
        self.http_11 = match version {
            b"HTTP/1.1" => true,
            b"HTTP/1.0" => false,
            _ => return Err(ProxyError::Malformed("the version is not HTTP/1.1 or HTTP/1.0")),
        };
        Ok(())
    }

    fn content_length(&mut self, value: &[u8]) -> Result<(), ProxyError> {
        if self.content_length.is_some() {
            return Err(ProxyError::Malformed("there is more than one Content-Length"));
        }
        // Fifteen digits are more than any body; a longer number would overflow somewhere.
        let number = (1..=15).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
        if !number {
            return Err(ProxyError::Malformed("Content-Length is not a number"));
        }
        self.content_length =
            Some(value.iter().fold(0, |length, digit| length * 10 + u64::from(digit - b'0')));
        Ok(())
    }

    fn transfer_encoding(&mut self, value: &[u8]) -> Result<(), ProxyError> {
        if self.chunked || !self.http_11 {
            return Err(ProxyError::Malformed("Transfer-Encoding is repeated or not allowed in HTTP/1.0"));
        }
        if !value.eq_ignore_ascii_case(b"chunked") {
            return Err(ProxyError::NotImplemented("the only transfer coding understood is chunked"));
        }
        self.chunked = true;
        Ok(())
    }

    /// What follows this head.
    fn framing(&self) -> Result<State, ProxyError> {
        if self.http_11 && self.hosts == 0 {
            return Err(ProxyError::Malformed("there is no Host"));
        }
        match (self.content_length, self.chunked) {
            (Some(_), true) => {
                Err(ProxyError::Malformed("there are both Content-Length and Transfer-Encoding"))
            }
            (None, true) => Ok(State::Chunk(Chunk::Size { value: 0, digits: 0 })),
            (None | Some(0), false) => Ok(State::Head),
            (Some(length), false) => Ok(State::Length(length)),
        }
    }
}

/// A field line without its line end: its name, and its value without space around it.
fn field(line: &[u8]) -> Result<(&[u8], &[u8]), ProxyError> {
    if matches!(line.first(), Some(b' ' | b'\t')) {
        return Err(ProxyError::Malformed("a field is folded over more than one line"));
    }
    let Some(colon) = memchr::memchr(b':', line) else {
        return Err(ProxyError::Malformed("a field has no colon"));
    };
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    if name.is_empty() || !name.iter().all(|byte| is_token(*byte)) {
        return Err(ProxyError::Malformed("a field's name is not a token"));
    }
    if !value.iter().all(|byte| *byte >= 0x20 && *byte != 0x7f || *byte == b'\t') {
        return Err(ProxyError::Malformed("a field's value has a control character"));
    }
    Ok((name, value.trim_ascii()))
}

/// RFC 9110, section 5.6.2.
fn is_token(byte: u8) -> bool {
    const TOKEN: [bool; 256] = {
        let mut table = [false; 256];
        let mut byte = 0;
        while byte < 128 {
            let c = byte as u8;
            table[byte] = c.is_ascii_alphanumeric()
                || matches!(c, b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.')
                || matches!(c, b'^' | b'_' | b'`' | b'|' | b'~');
            byte += 1;
        }
        table
    };
    TOKEN[usize::from(byte)]
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
    }
}
