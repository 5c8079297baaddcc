//! One line of the access log, as text or JSON.
//!
//! Job: the fields, their order and names (docs/logs.md tells users), the same in both formats. Invariants: a line
//! is printable ASCII and ends in the only line feed that it has, whatever bytes the client sent; a JSON line is one
//! valid object; a line has a bound, since what clients choose is cut. Neighbour: `access_log` batches the lines.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Bytes of the request target that are kept; the rest is cut, and `...` says so.
const TARGET_BYTES_MAX: usize = 2048;
/// The same for every other text.
const TEXT_BYTES_MAX: usize = 256;

const HEX: &[u8; 16] = b"0123456789abcdef";

/// What there is to say about one request or one TCP stream. What is not there is `-` in text and null in JSON.
#[derive(Debug, Clone, Default)]
pub struct Entry<'a> {
    /// The client's address.
    pub client: &'a [u8],
    /// The listener's name.
    pub listener: &'a str,
    /// None where no request could be read.
    pub method: Option<&'a str>,
    /// As the client sent it.
    pub target: Option<&'a [u8]>,
    /// `HTTP/1.1`, `TCP`, …
    pub protocol: &'a str,
    /// The host that was asked for.
    pub host: Option<&'a [u8]>,
    /// The status of the answer.
    pub status: Option<u16>,
    /// The route's name.
    pub route: Option<&'a str>,
    /// The service's name.
    pub service: Option<&'a str>,
    /// The last endpoint that was tried.
    pub endpoint: Option<&'a str>,
    /// How often the request was sent, or a connection for it opened.
    pub attempts: u32,
    /// How long it waited for a place in the pool.
    pub queue: Option<Duration>,
    /// How long connections were opened for it; none where a pooled one was there.
    pub connect: Option<Duration>,
    /// From its head to the head of the endpoint's answer.
    pub first_byte: Option<Duration>,
    /// From its head to the end of its answer.
    pub total: Duration,
    /// Bytes of the client's body.
    pub request_bytes: u64,
    /// Bytes of the answer's body.
    pub response_bytes: u64,
    /// How it ended: a reason of `proxy::error`, or `complete`, `client_left`, `upstream_cut`.
    pub reason: &'a str,
    /// What the endpoint was told as X-Request-ID.
    pub request_id: Option<&'a [u8]>,
    /// The trace of `traceparent`.
    pub trace_id: Option<&'a [u8]>,
    /// What the client calls itself.
    pub user_agent: Option<&'a [u8]>,
}

/// How lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Text,
    Json,
}

/// The time of day as text, computed once a second.
#[derive(Debug, Default)]
pub(super) struct Clock {
    second: u64,
    text: [u8; 19],
}

/// Writes an entry that ended at `now` as a line.
pub(super) fn write(
    out: &mut Vec<u8>,
    clock: &mut Clock,
    format: Format,
    now: SystemTime,
    entry: &Entry<'_>,
) {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let time = Time { second: clock.text(since.as_secs()), millis: since.subsec_millis() };
    match format {
        Format::Text => text(out, time, entry),
        Format::Json => json(out, time, entry),
    }
    out.push(b'\n');
}

#[derive(Clone, Copy)]
struct Time<'a> {
    second: &'a [u8],
    millis: u32,
}

// === the two formats ===

fn text(out: &mut Vec<u8>, time: Time<'_>, entry: &Entry<'_>) {
    time.write(out);
    out.push(b' ');
    word(out, Some(entry.client));
    out.extend_from_slice(b" \"");
    word(out, entry.method.map(str::as_bytes));
    out.push(b' ');
    match entry.target {
        Some(target) => quotable(out, target, TARGET_BYTES_MAX),
        None => out.push(b'-'),
    }
    out.push(b' ');
    out.extend_from_slice(entry.protocol.as_bytes());
    out.extend_from_slice(b"\" ");
    match entry.status {
        Some(status) => decimal(out, u64::from(status)),
        None => out.push(b'-'),
    }
    let words = [
        (" host=", entry.host),
        (" listener=", Some(entry.listener.as_bytes())),
        (" route=", entry.route.map(str::as_bytes)),
        (" service=", entry.service.map(str::as_bytes)),
        (" endpoint=", entry.endpoint.map(str::as_bytes)),
    ];
    for (key, value) in words {
        out.extend_from_slice(key.as_bytes());
        word(out, value);
    }
    out.extend_from_slice(b" attempts=");
    decimal(out, u64::from(entry.attempts));
    for (key, value) in entry.times() {
        out.push(b' ');
        out.extend_from_slice(key.as_bytes());
        out.push(b'=');
        match value {
            Some(value) => millis(out, value),
            None => out.push(b'-'),
        }
    }
    out.extend_from_slice(b" request_bytes=");
    decimal(out, entry.request_bytes);
    out.extend_from_slice(b" response_bytes=");
    decimal(out, entry.response_bytes);
    let words = [
        (" reason=", Some(entry.reason.as_bytes())),
        (" request_id=", entry.request_id),
        (" trace_id=", entry.trace_id),
    ];
    for (key, value) in words {
        out.extend_from_slice(key.as_bytes());
        word(out, value);
    }
    out.extend_from_slice(b" user_agent=");
    match entry.user_agent {
        Some(agent) => {
            out.push(b'"');
            quotable(out, agent, TEXT_BYTES_MAX);
            out.push(b'"');
        }
        None => out.push(b'-'),
    }
}

fn json(out: &mut Vec<u8>, time: Time<'_>, entry: &Entry<'_>) {
    out.extend_from_slice(b"{\"time\":\"");
    time.write(out);
    out.push(b'"');
    let texts = [
        ("client", Some(entry.client), TEXT_BYTES_MAX),
        ("method", entry.method.map(str::as_bytes), TEXT_BYTES_MAX),
        ("target", entry.target, TARGET_BYTES_MAX),
        ("protocol", Some(entry.protocol.as_bytes()), TEXT_BYTES_MAX),
    ];
    for (key, value, bytes_max) in texts {
        json_text(out, key, value, bytes_max);
    }
    json_key(out, "status");
    match entry.status {
        Some(status) => decimal(out, u64::from(status)),
        None => out.extend_from_slice(b"null"),
    }
    let texts = [
        ("host", entry.host),
        ("listener", Some(entry.listener.as_bytes())),
        ("route", entry.route.map(str::as_bytes)),
        ("service", entry.service.map(str::as_bytes)),
        ("endpoint", entry.endpoint.map(str::as_bytes)),
    ];
    for (key, value) in texts {
        json_text(out, key, value, TEXT_BYTES_MAX);
    }
    json_key(out, "attempts");
    decimal(out, u64::from(entry.attempts));
    for (key, value) in entry.times() {
        json_key(out, key);
        match value {
            Some(value) => millis(out, value),
            None => out.extend_from_slice(b"null"),
        }
    }
    json_key(out, "request_bytes");
    decimal(out, entry.request_bytes);
    json_key(out, "response_bytes");
    decimal(out, entry.response_bytes);
    let texts = [
        ("reason", Some(entry.reason.as_bytes())),
        ("request_id", entry.request_id),
        ("trace_id", entry.trace_id),
        ("user_agent", entry.user_agent),
    ];
    for (key, value) in texts {
        json_text(out, key, value, TEXT_BYTES_MAX);
    }
    out.push(b'}');
}

fn json_key(out: &mut Vec<u8>, key: &str) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(key.as_bytes());
    out.extend_from_slice(b"\":");
}

fn json_text(out: &mut Vec<u8>, key: &str, value: Option<&[u8]>, bytes_max: usize) {
    json_key(out, key);
    let Some(value) = value else { return out.extend_from_slice(b"null") };
    let (value, is_cut) = cut(value, bytes_max);
    out.push(b'"');
    if value.iter().all(|byte| is_plain(*byte)) {
        out.extend_from_slice(value);
    } else {
        for character in String::from_utf8_lossy(value).chars() {
            json_character(out, character);
        }
    }
    if is_cut {
        out.extend_from_slice(b"...");
    }
    out.push(b'"');
}

fn json_character(out: &mut Vec<u8>, character: char) {
    match u8::try_from(character) {
        Ok(byte @ (b'"' | b'\\')) => out.extend_from_slice(&[b'\\', byte]),
        Ok(byte) if is_plain(byte) => out.push(byte),
        Ok(_) | Err(_) => {
            for unit in character.encode_utf16(&mut [0; 2]) {
                let [high, low] = unit.to_be_bytes();
                out.extend_from_slice(b"\\u");
                out.extend_from_slice(&hex(high));
                out.extend_from_slice(&hex(low));
            }
        }
    }
}

// === values ===

/// A value that stands between spaces.
fn word(out: &mut Vec<u8>, value: Option<&[u8]>) {
    match value {
        Some(value) if !value.is_empty() => {
            let (value, is_cut) = cut(value, TEXT_BYTES_MAX);
            escape(out, value, |byte| is_plain(byte) && byte != b' ');
            if is_cut {
                out.extend_from_slice(b"...");
            }
        }
        Some(_) | None => out.push(b'-'),
    }
}

/// A value that stands between quotes.
fn quotable(out: &mut Vec<u8>, value: &[u8], bytes_max: usize) {
    let (value, is_cut) = cut(value, bytes_max);
    escape(out, value, is_plain);
    if is_cut {
        out.extend_from_slice(b"...");
    }
}

fn escape(out: &mut Vec<u8>, value: &[u8], is_plain: impl Fn(u8) -> bool) {
    let mut rest = value;
    while let Some(place) = rest.iter().position(|byte| !is_plain(*byte)) {
        out.extend_from_slice(&rest[..place]);
        match rest[place] {
            byte @ (b'"' | b'\\') => out.extend_from_slice(&[b'\\', byte]),
            byte => {
                out.extend_from_slice(b"\\x");
                out.extend_from_slice(&hex(byte));
            }
        }
        rest = &rest[place + 1..];
    }
    out.extend_from_slice(rest);
}

/// Whether a byte stands for itself in both formats: printable ASCII without the quote and the backslash.
fn is_plain(byte: u8) -> bool {
    matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\'
}

fn cut(value: &[u8], bytes_max: usize) -> (&[u8], bool) {
    match value.get(..bytes_max) {
        Some(kept) if kept.len() < value.len() => (kept, true),
        Some(_) | None => (value, false),
    }
}

fn hex(byte: u8) -> [u8; 2] {
    [HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]
}

fn decimal(out: &mut Vec<u8>, mut value: u64) {
    let mut digits = [0; 20];
    let mut first = digits.len();
    loop {
        first -= 1;
        digits[first] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[first..]);
}

/// So many digits, with zeros in front.
fn padded<const DIGITS: usize>(mut value: u64) -> [u8; DIGITS] {
    let mut digits = [b'0'; DIGITS];
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
    }
    digits
}

/// Milliseconds with three places: `12.345`.
fn millis(out: &mut Vec<u8>, duration: Duration) {
    let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    decimal(out, us / 1000);
    out.push(b'.');
    out.extend_from_slice(&padded::<3>(us % 1000));
}

// === impl Entry ===

impl Entry<'_> {
    fn times(&self) -> [(&'static str, Option<Duration>); 4] {
        [
            ("queue_ms", self.queue),
            ("connect_ms", self.connect),
            ("first_byte_ms", self.first_byte),
            ("total_ms", Some(self.total)),
        ]
    }
}

// === impl Time ===

impl Time<'_> {
    /// RFC 3339, in UTC.
    fn write(self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.second);
        out.push(b'.');
        out.extend_from_slice(&padded::<3>(u64::from(self.millis)));
        out.push(b'Z');
    }
}

// === impl Clock ===

impl Clock {
    /// `2026-11-24T09:30:00` of a second since 1970.
    fn text(&mut self, second: u64) -> &[u8] {
        if self.second != second || self.text[0] == 0 {
            self.second = second;
            let (year, month, day) = civil(second / 86_400);
            let (year, month, day) = (padded::<4>(year), padded::<2>(month), padded::<2>(day));
            let [hour, minute, second] = [second / 3600 % 24, second / 60 % 60, second % 60].map(padded::<2>);
            let parts: [&[u8]; 11] =
                [&year, b"-", &month, b"-", &day, b"T", &hour, b":", &minute, b":", &second];
            let mut place = 0;
            for part in parts {
                self.text[place..place + part.len()].copy_from_slice(part);
                place += part.len();
            }
        }
        &self.text
    }
}

/// Year, month and day of a day since 1970 (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
pub(crate) fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(format: Format, entry: &Entry<'_>) -> String {
        let mut out = Vec::new();
        let now = UNIX_EPOCH + Duration::from_millis(1_795_519_345_007);
        write(&mut out, &mut Clock::default(), format, now, entry);
        String::from_utf8(out).unwrap()
    }

    fn entry() -> Entry<'static> {
        Entry {
            client: b"10.0.0.7",
            listener: "web",
            method: Some("GET"),
            target: Some(b"/v1/x?y=1"),
            protocol: "HTTP/1.1",
            host: Some(b"api.example"),
            status: Some(200),
            route: Some("api"),
            service: Some("backend"),
            endpoint: Some("10.0.0.1:9000"),
            attempts: 2,
            queue: Some(Duration::from_micros(12)),
            connect: None,
            first_byte: Some(Duration::from_micros(3_201)),
            total: Duration::from_micros(1_003_377),
            request_bytes: 0,
            response_bytes: 1024,
            reason: "complete",
            request_id: Some(b"r-1"),
            trace_id: Some(b"0af7651916cd43dd8448eb211c80319c"),
            user_agent: Some(b"curl/8 \"x\""),
        }
    }

    #[test]
    fn a_request_is_one_line_of_text() {
        assert_eq!(
            line(Format::Text, &entry()),
            "2026-11-24T11:22:25.007Z 10.0.0.7 \"GET /v1/x?y=1 HTTP/1.1\" 200 host=api.example listener=web route=api \
             service=backend endpoint=10.0.0.1:9000 attempts=2 queue_ms=0.012 connect_ms=- first_byte_ms=3.201 \
             total_ms=1003.377 request_bytes=0 response_bytes=1024 reason=complete request_id=r-1 \
             trace_id=0af7651916cd43dd8448eb211c80319c user_agent=\"curl/8 \\\"x\\\"\"\n"
        );
    }

    #[test]
    fn a_request_is_one_json_object() {
        assert_eq!(
            line(Format::Json, &entry()),
            concat!(
                r#"{"time":"2026-11-24T11:22:25.007Z","client":"10.0.0.7","method":"GET","target":"/v1/x?y=1","#,
                r#""protocol":"HTTP/1.1","status":200,"host":"api.example","listener":"web","route":"api","#,
                r#""service":"backend","endpoint":"10.0.0.1:9000","attempts":2,"queue_ms":0.012,"connect_ms":null,"#,
                r#""first_byte_ms":3.201,"total_ms":1003.377,"request_bytes":0,"response_bytes":1024,"#,
                r#""reason":"complete","request_id":"r-1","trace_id":"0af7651916cd43dd8448eb211c80319c","#,
                r#""user_agent":"curl/8 \"x\""}"#,
                "\n"
            )
        );
    }

    #[test]
    #[ignore = "prints a figure, of an optimised build"]
    fn prints_what_a_line_costs() {
        let (mut out, mut clock) = (Vec::new(), Clock::default());
        let now = UNIX_EPOCH + Duration::from_millis(1_795_519_345_007);
        for (name, format) in [("text", Format::Text), ("JSON", Format::Json)] {
            crate::cost::print(&format!("a line of the access log, {name}"), || {
                out.clear();
                write(&mut out, &mut clock, format, now, &entry());
            });
        }
    }

    #[test]
    fn what_could_not_be_read_is_a_dash_or_null() {
        let nothing = Entry { client: b"::1", protocol: "HTTP/1.1", reason: "malformed", ..Entry::default() };
        let text = line(Format::Text, &nothing);
        assert!(text.contains(" ::1 \"- - HTTP/1.1\" - host=- listener=- route=- "), "{text}");
        let json: serde_json::Value = serde_json::from_str(&line(Format::Json, &nothing)).unwrap();
        assert_eq!(json["target"], serde_json::Value::Null);
    }

    #[test]
    fn dates_are_right_around_leap_days_and_new_years() {
        for (second, expected) in [
            (0, "1970-01-01T00:00:00"),
            (951_782_399, "2000-02-28T23:59:59"),
            (951_782_400, "2000-02-29T00:00:00"),
            (1_709_251_199, "2024-02-29T23:59:59"),
            (1_798_761_599, "2026-12-31T23:59:59"),
            (4_107_542_400, "2100-03-01T00:00:00"),
        ] {
            assert_eq!(std::str::from_utf8(Clock::default().text(second)).unwrap(), expected);
        }
    }

    #[test]
    fn what_a_client_chooses_is_cut() {
        let long = vec![b'a'; 100_000];
        let entry = Entry { target: Some(&long), user_agent: Some(&long), host: Some(&long), ..entry() };
        for format in [Format::Text, Format::Json] {
            let line = line(format, &entry);
            assert!(line.len() < 4096 && line.contains("aaa..."), "{} bytes", line.len());
        }
    }

    /// Whatever bytes come, a line stays one line of printable ASCII that reads back.
    #[test]
    fn no_input_leaves_its_field() {
        bolero::check!().with_type::<[Vec<u8>; 4]>().for_each(|[target, host, id, agent]| {
            let hostile = Entry {
                target: Some(target),
                host: Some(host),
                request_id: Some(id),
                user_agent: Some(agent),
                ..entry()
            };
            for format in [Format::Text, Format::Json] {
                let line = line(format, &hostile);
                let (content, end) = line.split_at(line.len() - 1);
                assert_eq!(end, "\n");
                assert!(content.bytes().all(|byte| matches!(byte, b' '..=b'~')), "{content}");
            }
            let json: serde_json::Value = serde_json::from_str(&line(Format::Json, &hostile)).unwrap();
            assert_eq!(json.as_object().unwrap().len(), 22);
            if agent.len() <= TEXT_BYTES_MAX {
                assert_eq!(json["user_agent"], *String::from_utf8_lossy(agent));
            }
            let text = line(Format::Text, &hostile);
            assert_eq!(unescaped_quotes(&text), 4, "{text}");
        });
    }

    fn unescaped_quotes(text: &str) -> usize {
        let mut escaped = false;
        text.bytes()
            .filter(|byte| {
                let is_quote = *byte == b'"' && !escaped;
                escaped = *byte == b'\\' && !escaped;
                is_quote
            })
            .count()
    }

    #[test]
    fn lines_that_a_client_tries_to_make_up_stay_inside_their_quotes() {
        let forged =
            b"/\" 200\r\n2026-01-01T00:00:00.000Z 1.2.3.4 \"GET /admin\x1b[2J\xff\xc2\x9b HTTP/1.1\" 200";
        let entry = Entry { target: Some(forged), ..entry() };
        let text = line(Format::Text, &entry);
        assert!(
            text.contains(r#""GET /\" 200\x0d\x0a2026-01-01T00:00:00.000Z 1.2.3.4 \"GET /admin\x1b[2J\xff\xc2\x9b HTTP/1.1\" 200 HTTP/1.1" 200 host="#),
            "{text}"
        );
        let json: serde_json::Value = serde_json::from_str(&line(Format::Json, &entry)).unwrap();
        assert_eq!(json["target"], *String::from_utf8_lossy(forged));
    }
}
