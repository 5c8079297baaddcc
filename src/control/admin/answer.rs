//! What handlers read from a call and how they answer it.
//!
//! Invariants: a body is never longer than its bound; a query parameter that a call does not know is refused,
//! so that `?dryrun` never applies anything. Neighbours: every handler.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited, combinators::UnsyncBoxBody};
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::time::Instant;

use super::error::ApiError;
use crate::config::{Problem, parse_duration, problem::shown};

/// What the server sends.
pub(super) type Answer = Response<Body>;

/// The body of a call.
pub(super) enum Incoming {
    /// It comes over the connection.
    Network(hyper::body::Incoming),
    /// It was made of another call.
    Whole(Full<Bytes>),
}

/// The body of an answer.
pub(super) enum Body {
    /// It is all there.
    Whole(Full<Bytes>),
    /// It comes piece by piece, for as long as it takes.
    Stream(UnsyncBoxBody<Bytes, Infallible>),
}

/// How long a call may take unless it says so itself.
pub(super) const TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);

/// The longest that a call may ask for.
const TIMEOUT_MAX: Duration = Duration::from_secs(60);

/// Unknown keys of a body that are told one by one.
const UNKNOWN_MAX: usize = 20;

/// The index of the last change that an answer knows of.
pub(super) const INDEX: HeaderName = HeaderName::from_static("x-gogate-index");

// === impl Incoming ===

impl http_body::Body for Incoming {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.get_mut() {
            Self::Network(body) => Pin::new(body).poll_frame(context).map_err(Into::into),
            Self::Whole(body) => Pin::new(body).poll_frame(context).map_err(|never| match never {}),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Network(body) => body.is_end_stream(),
            Self::Whole(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Network(body) => body.size_hint(),
            Self::Whole(body) => body.size_hint(),
        }
    }
}

// === impl Body ===

impl From<Full<Bytes>> for Body {
    fn from(body: Full<Bytes>) -> Self {
        Self::Whole(body)
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(body) => Pin::new(body).poll_frame(context),
            Self::Stream(body) => Pin::new(body).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(body) => body.is_end_stream(),
            Self::Stream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(body) => body.size_hint(),
            Self::Stream(body) => body.size_hint(),
        }
    }
}

/// The query of a call.
pub(super) struct Query<'a>(&'a str);

// === impl Query ===

impl<'a> Query<'a> {
    /// Reads `query`; refuses what is not in `known`, nor `timeout`.
    pub(super) fn new(query: Option<&'a str>, known: &[&str]) -> Result<Self, ApiError> {
        let query = Self(query.unwrap_or_default());
        for (name, _) in query.pairs() {
            if name != "timeout" && !known.contains(&name) {
                let mut list = known.join(", ");
                list.push_str(if list.is_empty() { "timeout" } else { ", timeout" });
                let name = shown(name);
                return Err(ApiError::Malformed(format!(
                    "unknown query parameter `{name}`: this call knows {list}"
                )));
            }
        }
        Ok(query)
    }

    fn pairs(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        let pairs = self.0.split('&').filter(|pair| !pair.is_empty());
        pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")))
    }

    /// The value of `name`, decoded.
    pub(super) fn get(&self, name: &str) -> Result<Option<Cow<'a, str>>, ApiError> {
        let Some((_, value)) = self.pairs().find(|(key, _)| *key == name) else { return Ok(None) };
        decode(value)
            .map(Some)
            .ok_or_else(|| ApiError::Malformed(format!("query parameter `{name}` is badly encoded")))
    }

    /// The text `name`; an empty one is none.
    pub(super) fn text(&self, name: &str) -> Result<Option<Cow<'a, str>>, ApiError> {
        Ok(self.get(name)?.filter(|text| !text.is_empty()))
    }

    /// Whether `name` is set: present, and not `false` or `0`.
    pub(super) fn flag(&self, name: &str) -> Result<bool, ApiError> {
        match self.get(name)?.as_deref() {
            None | Some("false" | "0") => Ok(false),
            Some("" | "true" | "1") => Ok(true),
            Some(other) => Err(ApiError::Malformed(format!("`{name}` is true or false, not `{other}`"))),
        }
    }

    /// The whole number `name`.
    pub(super) fn number(&self, name: &str) -> Result<Option<u64>, ApiError> {
        let Some(value) = self.get(name)? else { return Ok(None) };
        let number = value
            .parse()
            .map_err(|_| ApiError::Malformed(format!("`{name}` is a whole number, not `{value}`")));
        number.map(Some)
    }

    /// Until when the call may take, all of it.
    pub(super) fn deadline(&self) -> Result<Instant, ApiError> {
        Ok(Instant::now() + self.timeout()?)
    }

    /// The duration `name`, at most `max`.
    pub(super) fn duration(&self, name: &str, max: Duration) -> Result<Option<Duration>, ApiError> {
        let Some(value) = self.get(name)? else { return Ok(None) };
        let duration = parse_duration(&value).ok().filter(|duration| *duration <= max);
        let seconds = max.as_secs();
        let wrong = || {
            ApiError::Malformed(format!(
                "`{name}` is a duration of at most {seconds}s, not `{}`",
                shown(&value)
            ))
        };
        duration.ok_or_else(wrong).map(Some)
    }

    /// How long the call may take.
    pub(super) fn timeout(&self) -> Result<Duration, ApiError> {
        let Some(value) = self.get("timeout")? else { return Ok(TIMEOUT_DEFAULT) };
        match parse_duration(&value) {
            Ok(timeout) if !timeout.is_zero() && timeout <= TIMEOUT_MAX => Ok(timeout),
            _ => Err(ApiError::Malformed(format!("`timeout` is a duration from 1ms to 60s, not `{value}`"))),
        }
    }
}

/// Percent-decodes a path segment or a query value; none if it is not well-formed UTF-8.
pub(super) fn decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains(['%', '+']) {
        return Some(Cow::Borrowed(text));
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let (high, low) = (hex(bytes.next()?)?, hex(bytes.next()?)?);
                high << 4 | low
            }
            other => other,
        });
    }
    String::from_utf8(decoded).ok().map(Cow::Owned)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

/// What is left until the deadline, and at least a little, so that an answer can still be taken.
pub(super) fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(10))
}

/// Reads a body of at most `limit` bytes until `deadline`.
pub(super) async fn read_body(body: Incoming, limit: usize, deadline: Instant) -> Result<Bytes, ApiError> {
    match tokio::time::timeout_at(deadline, Limited::new(body, limit).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(ApiError::TooLarge { limit }),
        Ok(Err(error)) => Err(ApiError::Malformed(format!("the body broke off: {error}"))),
        Err(_) => Err(ApiError::Malformed("the body did not arrive within the call's timeout".into())),
    }
}

/// The fields of a body in JSON; gathers all that is wrong with them.
pub(super) struct Fields {
    fields: Map<String, Value>,
    problems: Vec<Problem>,
}

// === impl Fields ===

impl Fields {
    /// Reads an object with no other keys than `known`. What is no JSON is malformed, all else is a problem.
    pub(super) fn new(body: &[u8], known: &[&str]) -> Result<Self, ApiError> {
        let value = serde_json::from_slice(body)
            .map_err(|error| ApiError::Malformed(format!("the body is not JSON: {error}")))?;
        let mut fields = Self { fields: Map::new(), problems: Vec::new() };
        match value {
            Value::Object(map) => fields.fields = map,
            other => fields.wrong("", format!("expected an object, not {}", kind(&other)), ""),
        }
        let unknown: Vec<String> =
            fields.fields.keys().filter(|key| !known.contains(&key.as_str())).cloned().collect();
        for key in unknown.iter().take(UNKNOWN_MAX) {
            fields.wrong(&shown(key), "unknown key".into(), &format!("known are {}", known.join(", ")));
        }
        Ok(fields)
    }

    /// Notes a problem with the field at `path`.
    pub(super) fn wrong(&mut self, path: &str, problem: String, suggestion: &str) {
        let suggestion = Some(suggestion.to_owned()).filter(|text| !text.is_empty());
        self.problems.push(Problem { path: path.into(), ..Problem::general(problem, suggestion) });
    }

    /// The value of `key`, which `read` understands; none if it is missing, null, or wrong, which is noted.
    fn field<T>(&mut self, key: &str, expected: &str, read: impl Fn(Value) -> Result<T, Value>) -> Option<T> {
        let value = self.fields.remove(key).filter(|value| !value.is_null())?;
        match read(value) {
            Ok(value) => Some(value),
            Err(found) => {
                self.wrong(key, format!("expected {expected}, not {}", kind(&found)), "");
                None
            }
        }
    }

    /// A text.
    pub(super) fn text(&mut self, key: &str) -> Option<String> {
        self.field(key, "a text", text_of)
    }

    /// A text that has to be there; it is noted if it is not.
    pub(super) fn needed(&mut self, key: &str) -> Option<String> {
        if self.fields.get(key).is_none_or(Value::is_null) {
            self.wrong(key, "missing".into(), "");
        }
        self.text(key)
    }

    /// A whole number.
    pub(super) fn number(&mut self, key: &str) -> Option<u64> {
        self.field(key, "a whole number", |value| value.as_u64().ok_or(value))
    }

    /// A list of texts.
    pub(super) fn texts(&mut self, key: &str) -> Vec<String> {
        let read = |value| match value {
            Value::Array(items) => items.into_iter().map(text_of).collect(),
            other => Err(other),
        };
        self.field(key, "a list of texts", read).unwrap_or_default()
    }

    /// Texts by name.
    pub(super) fn texts_by_name(&mut self, key: &str) -> BTreeMap<String, String> {
        let read = |value| match value {
            Value::Object(map) => map.into_iter().map(|(key, value)| Ok((key, text_of(value)?))).collect(),
            other => Err(other),
        };
        self.field(key, "an object of texts", read).unwrap_or_default()
    }

    /// All that was wrong; none is Ok.
    pub(super) fn checked(self) -> Result<(), ApiError> {
        if self.problems.is_empty() { Ok(()) } else { Err(ApiError::Invalid(self.problems)) }
    }
}

fn text_of(value: Value) -> Result<String, Value> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(other),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "that number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// JSON in one line.
pub(super) fn json_bytes(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("the API's own types have string keys and no failing impl")
}

/// An answer in JSON.
pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    let mut answer = Response::new(Full::new(json_bytes(value).into()).into());
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

/// An answer in plain text.
pub(super) fn text(status: StatusCode, text: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(text.into()).into());
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_parameter_that_nobody_knows_is_refused() {
        assert!(Query::new(Some("dryrun"), &["dry_run"]).is_err());
        assert!(Query::new(Some("dry_run&timeout=1s"), &["dry_run"]).is_ok());
    }

    #[test]
    fn a_timeout_has_bounds() {
        let timeout = |text| Query::new(Some(text), &[]).unwrap().timeout();
        assert_eq!(timeout(""), Ok(TIMEOUT_DEFAULT));
        assert_eq!(timeout("timeout=250ms"), Ok(Duration::from_millis(250)));
        for bad in ["timeout=0s", "timeout=61s", "timeout=x", "timeout="] {
            assert!(timeout(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn bad_encodings_are_no_text() {
        assert_eq!(decode("a%2Fb").as_deref(), Some("a/b"));
        for bad in ["%", "%4", "%zz", "%ff"] {
            assert_eq!(decode(bad), None, "{bad}");
        }
    }
}
