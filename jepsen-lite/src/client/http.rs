//! The little HTTP/1.1 that a client of the admin API needs, over blocking sockets.
//!
//! Invariants: everything ends by its deadline; an error says whether the request may have reached the node.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use serde_json::Value;

/// More than any answer needs; a longer one counts as lost.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// Why there is no answer.
#[derive(Debug)]
pub enum HttpError {
    /// No byte of the request was sent: it cannot have happened.
    NotSent(String),
    /// Some of it may have arrived.
    Lost(String),
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body, without its framing.
    pub body: Vec<u8>,
    /// Whether the connection ends here.
    pub closes: bool,
}

/// One connection to one node.
pub struct Connection {
    stream: TcpStream,
    /// Received and not yet used.
    buffer: Vec<u8>,
}

// === impl Connection ===

impl Connection {
    /// Connects.
    pub fn open(address: SocketAddr, deadline: Instant) -> Result<Self, HttpError> {
        let not_sent = |error: io::Error| HttpError::NotSent(format!("cannot connect: {error}"));
        let stream =
            still(deadline).and_then(|left| TcpStream::connect_timeout(&address, left)).map_err(not_sent)?;
        stream.set_nodelay(true).map_err(not_sent)?;
        Ok(Self { stream, buffer: Vec::new() })
    }

    /// Whether the node has not closed it meanwhile: then a request on it would look lost without need.
    pub fn is_usable(&self) -> bool {
        let mut byte = [0];
        let quiet = self.stream.set_nonblocking(true).is_ok()
            && matches!(self.stream.peek(&mut byte), Err(error) if error.kind() == io::ErrorKind::WouldBlock);
        self.stream.set_nonblocking(false).is_ok() && quiet
    }

    /// Sends one request and reads its answer.
    pub fn exchange(
        &mut self,
        method: &str,
        path: &str,
        body: Option<&str>,
        if_match: Option<u64>,
        deadline: Instant,
    ) -> Result<Answer, HttpError> {
        let body = body.unwrap_or_default();
        let if_match = if_match.map_or_else(String::new, |version| format!("If-Match: \"{version}\"\r\n"));
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: gogate\r\nContent-Type: application/json\r\n{if_match}Content-Length: {}\r\n\r\n{body}",
            body.len(),
        );
        self.send(request.as_bytes(), deadline)
            .and_then(|()| self.answer(deadline))
            .map_err(|error| HttpError::Lost(error.to_string()))
    }

    /// Sends a request whose answer goes on; [`Self::chunk`] reads it if the status, which is told, is 200.
    pub fn ask_for_stream(&mut self, path: &str, deadline: Instant) -> Result<u16, HttpError> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: gogate\r\nAccept: text/event-stream\r\n\r\n");
        self.send(request.as_bytes(), deadline)
            .and_then(|()| self.line_block(deadline))
            .and_then(|head| parse_head(&head))
            .map(|(status, _)| status)
            .map_err(|error| HttpError::Lost(error.to_string()))
    }

    /// Sends these bytes, whatever they are.
    pub fn send(&mut self, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
        while !bytes.is_empty() {
            self.stream.set_write_timeout(Some(still(deadline)?))?;
            let sent = self.stream.write(bytes)?;
            bytes = &bytes[sent..];
        }
        Ok(())
    }

    fn answer(&mut self, deadline: Instant) -> io::Result<Answer> {
        let head = self.line_block(deadline)?;
        let (status, headers) = parse_head(&head)?;
        let mut answer = Answer { status, headers, body: Vec::new(), closes: false };
        answer.closes = answer.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        if status == 204 || status == 304 {
            return Ok(answer);
        }
        if answer.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
            answer.body = self.chunks(deadline)?;
        } else if let Some(length) = answer.header("content-length") {
            let length = length.parse().map_err(io::Error::other)?;
            answer.body = self.take(length, deadline)?;
        } else {
            return Err(io::Error::other("the answer says neither how long it is nor that it is chunked"));
        }
        Ok(answer)
    }

    fn chunks(&mut self, deadline: Instant) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let chunk = self.chunk(deadline)?;
            if chunk.is_empty() {
                return Ok(body);
            }
            body.extend(chunk);
            if body.len() > ANSWER_BYTES_MAX {
                return Err(io::Error::other("the answer is too long"));
            }
        }
    }

    /// The next piece of a body that comes in pieces; an empty one is its end.
    pub fn chunk(&mut self, deadline: Instant) -> io::Result<Vec<u8>> {
        let line = self.line(deadline)?;
        let length = usize::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
        let chunk = self.take(length, deadline)?;
        self.line(deadline)?;
        Ok(chunk)
    }

    /// Lines up to an empty one.
    fn line_block(&mut self, deadline: Instant) -> io::Result<Vec<String>> {
        let mut lines = Vec::new();
        loop {
            let line = self.line(deadline)?;
            if line.is_empty() {
                return Ok(lines);
            }
            lines.push(line);
        }
    }

    fn line(&mut self, deadline: Instant) -> io::Result<String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\r\n") {
                let line = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
                self.buffer.drain(..end + 2);
                return Ok(line);
            }
            self.receive(deadline)?;
        }
    }

    /// The next so many bytes, whatever they are.
    pub fn take(&mut self, length: usize, deadline: Instant) -> io::Result<Vec<u8>> {
        if length > ANSWER_BYTES_MAX {
            return Err(io::Error::other("the answer is too long"));
        }
        while self.buffer.len() < length {
            self.receive(deadline)?;
        }
        let rest = self.buffer.split_off(length);
        Ok(std::mem::replace(&mut self.buffer, rest))
    }

    fn receive(&mut self, deadline: Instant) -> io::Result<()> {
        let mut piece = [0; 16 << 10];
        self.stream.set_read_timeout(Some(still(deadline)?))?;
        let received = self.stream.read(&mut piece)?;
        if received == 0 {
            return Err(io::Error::other("the node closed the connection"));
        }
        self.buffer.extend_from_slice(&piece[..received]);
        Ok(())
    }
}

// === impl Answer ===

impl Answer {
    /// The first header of this name, which is in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> Option<Value> {
        serde_json::from_slice(&self.body).ok()
    }

    /// What a record says of it.
    pub fn excerpt(&self) -> String {
        self.text().chars().take(200).collect()
    }
}

fn parse_head(lines: &[String]) -> io::Result<(u16, Vec<(String, String)>)> {
    let mut lines = lines.iter();
    let status = lines
        .next()
        .and_then(|line| line.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok())
        .ok_or_else(|| io::Error::other("this is not an HTTP/1.1 answer"))?;
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    Ok((status, headers))
}

/// What is left; never zero, which a socket would take for "for ever".
fn still(deadline: Instant) -> io::Result<Duration> {
    match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time")),
        left => Ok(left),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Answers each of `answers` to one request, on one connection.
    fn node(answers: Vec<&'static str>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            for answer in answers {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        address
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    #[test]
    fn reads_answers_with_a_length_in_chunks_and_without_a_body() {
        let address = node(vec![
            "HTTP/1.1 200 OK\r\nX-Gogate-Index: 7\r\nContent-Length: 2\r\n\r\n{}",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n",
            "HTTP/1.1 204 No Content\r\n\r\n",
        ]);
        let mut connection = Connection::open(address, soon()).unwrap();
        let mut get = || connection.exchange("GET", "/", None, None, soon()).unwrap();
        let first = get();
        assert_eq!(
            (first.status, first.header("x-gogate-index"), first.text()),
            (200, Some("7"), "{}".into())
        );
        assert_eq!(get().text(), "{}");
        assert_eq!(get().status, 204);
    }

    #[test]
    fn a_refused_connection_was_never_sent_and_a_closed_one_is_lost() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        assert!(matches!(Connection::open(address, soon()), Err(HttpError::NotSent(_))));

        let address = node(vec!["HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}"]);
        let mut connection = Connection::open(address, soon()).unwrap();
        let cut = connection.exchange("GET", "/", None, None, soon());
        assert!(matches!(cut, Err(HttpError::Lost(_))));
    }
}
