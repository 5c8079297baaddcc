//! Two tables of messages that parsers read differently: what becomes of each, and what the other side sees.
//!
//! `hostile.json` has requests: refused, or forwarded as exactly one request that a strict parser, written here
//! and sharing nothing with the gateway, reads. `hostile_answers.json` has endpoints' answers. `benches/hostile`
//! shows the same tables to nginx and HAProxy; docs/security.md has what came of it.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::Shutdown,
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use serde::Deserialize;
use serde_json::Value;

use crate::upstream::{Gateway, Peer, Upstream, document};

/// A row of `hostile.json`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    /// Where the rule comes from: an RFC and its section.
    #[serde(rename = "rule")]
    _rule: String,
    /// Text whose characters are bytes, or a list of such texts and of `[text, times]`.
    send: Value,
    /// `"forwarded"`, a status, or one for each request.
    expect: Value,
    /// What the endpoint sees, where that is not plain from the request.
    start: Option<String>,
    #[serde(default)]
    fields: BTreeMap<String, String>,
    #[serde(default)]
    absent: Vec<String>,
    body: Option<String>,
    /// How many requests the endpoint sees; as many as are forwarded.
    requests: Option<usize>,
    /// Whether the connection ends after a request that is forwarded.
    #[serde(default)]
    closes: bool,
}

/// A row of `hostile_answers.json`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Answer {
    name: String,
    #[serde(rename = "rule")]
    _rule: String,
    #[serde(default)]
    head: bool,
    send: Value,
    /// Whether the endpoint closes after it.
    #[serde(default)]
    closes: bool,
    /// A status, or `"cut"`: a head that came too early to take back, and no end.
    expect: Value,
    body: Option<String>,
    /// Whether the connection carries the next request.
    #[serde(default)]
    reused: bool,
}

/// One request as the strict parser reads it.
#[derive(Debug, PartialEq, Eq)]
struct Request {
    start: String,
    /// In order, trailers last, names in lower case.
    fields: Vec<(String, String)>,
    body: Vec<u8>,
}

/// What an endpoint saw.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Request(Request),
    /// No request, or one that could be read in another way.
    Bad(String),
}

// === the tables ===

fn bytes(send: &Value) -> Vec<u8> {
    match send {
        Value::String(text) => text.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect(),
        Value::Array(pieces) => pieces
            .iter()
            .flat_map(|piece| match piece {
                Value::Array(repeated) => {
                    bytes(&repeated[0]).repeat(usize::try_from(repeated[1].as_u64().unwrap()).unwrap())
                }
                piece => bytes(piece),
            })
            .collect(),
        other => panic!("neither text nor a list: {other}"),
    }
}

impl Case {
    fn statuses(&self) -> Vec<u16> {
        match &self.expect {
            Value::Number(status) => vec![u16::try_from(status.as_u64().unwrap()).unwrap()],
            Value::Array(statuses) => {
                statuses.iter().map(|status| u16::try_from(status.as_u64().unwrap()).unwrap()).collect()
            }
            _ => vec![200; self.requests.unwrap_or(1)],
        }
    }

    /// Judges what the endpoint saw of it.
    #[track_caller]
    fn check(&self, seen: &[Seen]) {
        let forwarded = self.statuses().iter().filter(|status| **status == 200).count();
        assert_eq!(seen.len(), self.requests.unwrap_or(forwarded), "{}: {seen:#?}", self.name);
        for one in seen {
            let Seen::Request(request) = one else { panic!("{}: {one:?}", self.name) };
            if let Some(start) = &self.start {
                assert_eq!(&request.start, start, "{}", self.name);
            }
            if let Some(body) = &self.body {
                assert_eq!(String::from_utf8_lossy(&request.body), *body, "{}: {request:?}", self.name);
            }
            let values = |name: &str| -> Vec<&str> {
                request.fields.iter().filter(|(known, _)| known == name).map(|(_, value)| &**value).collect()
            };
            for (name, value) in &self.fields {
                assert_eq!(values(name), [value], "{}: {name} in {request:#?}", self.name);
            }
            for name in self.absent.iter().map(String::as_str).chain(["connection", "keep-alive"]) {
                assert!(values(name).is_empty(), "{}: {name} in {request:#?}", self.name);
            }
        }
    }
}

// === a strict parser ===

/// The first request of `bytes` and its length; none: it has not ended. Whatever the RFCs leave to the recipient is an error.
fn parse(bytes: &[u8]) -> Result<Option<(Request, usize)>, String> {
    let mut at = 0;
    let Some(start) = line(bytes, &mut at)? else { return Ok(None) };
    let parts: Vec<&str> = start.split(' ').collect();
    let [method, target, "HTTP/1.1"] = parts[..] else { return Err(format!("request line {start:?}")) };
    let plain = target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#' && byte != b'\\');
    let form = target.starts_with('/') || (target == "*" && method == "OPTIONS");
    if !is_token(method) || !plain || !form {
        return Err(format!("request line {start:?}"));
    }
    let Some(mut fields) = fields(bytes, &mut at)? else { return Ok(None) };
    let all = |name: &str| -> Vec<String> {
        fields.iter().filter(|(known, _)| known == name).map(|(_, value)| value.clone()).collect()
    };
    if all("host").len() != 1 {
        return Err(format!("Hosts {:?}", all("host")));
    }
    let mut body = Vec::new();
    match (&all("content-length")[..], &all("transfer-encoding")[..]) {
        ([], []) => {}
        ([length], []) => {
            let number: usize = length.parse().map_err(|_| format!("Content-Length {length:?}"))?;
            if number.to_string() != *length {
                return Err(format!("Content-Length {length:?}"));
            }
            let Some(piece) = bytes[at..].get(..number) else { return Ok(None) };
            body.extend_from_slice(piece);
            at += number;
        }
        ([], [coding]) if coding == "chunked" => loop {
            let Some(size) = line(bytes, &mut at)? else { return Ok(None) };
            if size.is_empty() || size.len() > 8 || !size.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(format!("chunk size {size:?}"));
            }
            let size = usize::from_str_radix(&size, 16).map_err(|error| error.to_string())?;
            if size == 0 {
                let Some(trailers) = self::fields(bytes, &mut at)? else { return Ok(None) };
                fields.extend(trailers);
                break;
            }
            let Some(piece) = bytes[at..].get(..size + 2) else { return Ok(None) };
            let Some(data) = piece.strip_suffix(b"\r\n") else { return Err("chunk end".to_owned()) };
            body.extend_from_slice(data);
            at += size + 2;
        },
        framing => return Err(format!("framing {framing:?}")),
    }
    Ok(Some((Request { start, fields, body }, at)))
}

/// The next line, of bytes that are text for whoever does not look closely.
fn line(bytes: &[u8], at: &mut usize) -> Result<Option<String>, String> {
    let rest = &bytes[*at..];
    let Some(end) = rest.iter().position(|byte| *byte == b'\n') else { return Ok(None) };
    let Some(text) = rest[..end].strip_suffix(b"\r") else { return Err("a bare LF".to_owned()) };
    if text.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t') {
        return Err(format!("a control character in {:?}", String::from_utf8_lossy(text)));
    }
    *at += end + 1;
    Ok(Some(text.iter().map(|byte| char::from(*byte)).collect()))
}

/// The fields up to the empty line.
fn fields(bytes: &[u8], at: &mut usize) -> Result<Option<Vec<(String, String)>>, String> {
    let mut fields = Vec::new();
    loop {
        let Some(line) = line(bytes, at)? else { return Ok(None) };
        if line.is_empty() {
            return Ok(Some(fields));
        }
        let (name, value) = line.split_once(':').ok_or_else(|| format!("no colon in {line:?}"))?;
        if !is_token(name) {
            return Err(format!("the name {name:?}"));
        }
        fields.push((name.to_ascii_lowercase(), value.trim_matches([' ', '\t']).to_owned()));
    }
}

fn is_token(text: &str) -> bool {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(token)
}

/// An endpoint that answers what it reads strictly, and writes down what it saw.
fn strict_endpoint() -> (Upstream, Arc<Mutex<Vec<Seen>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let upstream = Upstream::start(move |mut peer| {
        let (mut held, mut piece) = (Vec::new(), [0; 4096]);
        loop {
            match parse(&held) {
                Ok(Some((request, length))) => {
                    held.drain(..length);
                    log.lock().unwrap().push(Seen::Request(request));
                    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
                }
                Ok(None) => match peer.0.read(&mut piece) {
                    Ok(read) if read > 0 => held.extend_from_slice(&piece[..read]),
                    // Half a request, of one that was refused later, is none.
                    _ => return,
                },
                Err(why) => {
                    let bytes = String::from_utf8_lossy(&held);
                    log.lock().unwrap().push(Seen::Bad(format!("{why}: {bytes:?}")));
                    return;
                }
            }
        }
    });
    (upstream, seen)
}

/// The next answer that is not an interim one.
fn answer_of(client: &mut Peer) -> u16 {
    loop {
        let status = client.answer().status();
        if status != 100 {
            return status;
        }
    }
}

#[test]
fn no_request_is_forwarded_that_can_be_read_in_two_ways() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("hostile.json")).unwrap();
    assert!(cases.len() >= 120, "{} cases", cases.len());
    let (upstream, seen) = strict_endpoint();
    let gateway = Gateway::start_with(1, Duration::ZERO, &document(&[upstream.address]));
    for case in &cases {
        let mut client = gateway.client();
        client.0.get_mut().write_all(&bytes(&case.send)).unwrap();
        let statuses: Vec<u16> = case.statuses().iter().map(|_| answer_of(&mut client)).collect();
        assert_eq!(statuses, case.statuses(), "{}; the endpoint saw {:?}", case.name, seen.lock().unwrap());
        let refused = statuses.last() != Some(&200);
        if refused || case.closes {
            assert!(client.is_closed(), "{}", case.name);
        } else {
            // Nothing is left over that would come before the next request.
            assert_eq!(client.get("/next").status(), 200, "{}", case.name);
            let last = seen.lock().unwrap().pop();
            let next =
                |seen: &Seen| matches!(seen, Seen::Request(request) if request.start == "GET /next HTTP/1.1");
            assert!(last.as_ref().is_some_and(next), "{}: {last:?}", case.name);
        }
        case.check(&std::mem::take(&mut *seen.lock().unwrap()));
    }
}

/// In single bytes a body that goes wrong is found out after its head was forwarded: the endpoint may see half of it, never a whole.
#[test]
fn nor_is_one_that_comes_byte_by_byte() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("hostile.json")).unwrap();
    let (upstream, seen) = strict_endpoint();
    let gateway = Gateway::start_with(1, Duration::ZERO, &document(&[upstream.address]));
    for case in &cases {
        let bytes = bytes(&case.send);
        if bytes.len() > 400 {
            continue;
        }
        let mut client = gateway.client();
        // A refusal may come before the last byte.
        let _ = bytes.chunks(1).try_for_each(|byte| client.0.get_mut().write_all(byte));
        for expected in case.statuses() {
            let status = answer_of(&mut client);
            assert_eq!(status >= 400, expected >= 400, "{}: {status}", case.name);
        }
        if case.statuses().last() == Some(&200) {
            case.check(&std::mem::take(&mut *seen.lock().unwrap()));
        } else {
            assert!(client.is_closed(), "{}", case.name);
            let seen = std::mem::take(&mut *seen.lock().unwrap());
            let whole = seen.iter().filter(|seen| matches!(seen, Seen::Request(_))).count();
            assert!(whole <= case.requests.unwrap_or(0), "{}: {seen:?}", case.name);
            assert!(!seen.iter().any(|seen| matches!(seen, Seen::Bad(_))), "{}: {seen:?}", case.name);
        }
    }
}

#[test]
fn no_answer_is_passed_on_that_can_be_read_in_two_ways() {
    const GOOD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood";
    let cases: Vec<Answer> = serde_json::from_str(include_str!("hostile_answers.json")).unwrap();
    assert!(cases.len() >= 30, "{} cases", cases.len());
    let script = Arc::new(Mutex::new((GOOD.to_vec(), false)));
    let read = Arc::clone(&script);
    let upstream = Upstream::start(move |mut peer| {
        while peer.request().is_some() {
            let (answer, closes) = read.lock().unwrap().clone();
            let _ = peer.0.get_mut().write_all(&answer);
            if closes {
                let _ = peer.0.get_mut().shutdown(Shutdown::Write);
            }
        }
    });
    let gateway = Gateway::start_with(1, Duration::ZERO, &document(&[upstream.address]));
    for case in &cases {
        *script.lock().unwrap() = (bytes(&case.send), case.closes);
        let mut client = gateway.client();
        let method = if case.head { "HEAD" } else { "GET" };
        client.send(&format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n"));
        let answer = if case.head { client.answer_to_head() } else { client.answer() };
        match &case.expect {
            Value::Number(status) => {
                assert_eq!(u64::from(answer.status()), status.as_u64().unwrap(), "{}: {answer:?}", case.name);
                assert!(answer.whole, "{}: {answer:?}", case.name);
            }
            _ => assert!(answer.status() == 200 && !answer.whole, "{}: {answer:?}", case.name),
        }
        if answer.status() == 502 {
            let status = answer.field("proxy-status");
            assert_eq!(status, Some("gogate; error=http_protocol_error"), "{}", case.name);
        }
        if let Some(body) = &case.body {
            assert_eq!(answer.text(), *body, "{}", case.name);
        }
        let framings = answer
            .fields
            .iter()
            .filter(|(name, _)| matches!(name.as_str(), "content-length" | "transfer-encoding"));
        assert!(framings.count() <= 1, "{}: {answer:?}", case.name);
        drop(client);

        let before = upstream.connections.load(Ordering::SeqCst);
        *script.lock().unwrap() = (GOOD.to_vec(), false);
        let next = gateway.client().get("/");
        assert_eq!((next.status(), next.text().as_str()), (200, "good"), "after {}", case.name);
        let opened = upstream.connections.load(Ordering::SeqCst) - before;
        assert_eq!(opened == 0, case.reused, "{}: {opened} connections opened after it", case.name);
    }
}
