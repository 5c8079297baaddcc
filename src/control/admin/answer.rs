//! What handlers read from a call and how they answer it.
//!
//! Invariants: a body is never longer than its bound; a query parameter that a call does not know is refused,
//! so that `?dryrun` never applies anything. Neighbours: every handler.

use std::{borrow::Cow, time::Duration};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde::Serialize;

use super::error::ApiError;
use crate::config::parse_duration;

/// What the server sends.
pub(super) type Answer = Response<Full<Bytes>>;

/// How long a call may take unless it says so itself.
pub(super) const TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);

/// The longest that a call may ask for.
const TIMEOUT_MAX: Duration = Duration::from_secs(60);

/// The index of the last change that an answer knows of.
pub(super) const INDEX: HeaderName = HeaderName::from_static("x-gogate-index");

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
                let name = crate::config::problem::shown(name);
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

/// Reads a body of at most `limit` bytes within `timeout`.
pub(super) async fn read_body(body: Incoming, limit: usize, timeout: Duration) -> Result<Bytes, ApiError> {
    let collected = tokio::time::timeout(timeout, Limited::new(body, limit).collect()).await;
    match collected {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(ApiError::TooLarge { limit }),
        Ok(Err(error)) => Err(ApiError::Malformed(format!("the body broke off: {error}"))),
        Err(_) => {
            Err(ApiError::Malformed(format!("the body did not arrive within {} ms", timeout.as_millis())))
        }
    }
}

/// Reads JSON; a problem names the key, the line and the column.
pub(super) fn from_json<'a, T: serde::Deserialize<'a>>(body: &'a [u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body)
        .map_err(|error| ApiError::Malformed(format!("the body is not what this call takes: {error}")))
}

/// The bytes of a JSON body.
pub(super) fn body_of(value: &impl Serialize) -> Full<Bytes> {
    let bytes = serde_json::to_vec(value).expect("the API's own types have string keys and no failing impl");
    Full::new(Bytes::from(bytes))
}

/// An answer in JSON.
pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    let mut answer = Response::new(body_of(value));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

/// An answer in plain text.
pub(super) fn text(status: StatusCode, text: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(text.into()));
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
