//! The admin API over gRPC: `gogate.v1.Registry` of `proto/gogate/v1/control.proto`.
//!
//! A call becomes the call of the admin API that it stands for, and takes its way from there: one router, one
//! check of what may be done and of what is written, one handler. What the handler answers has the form that
//! [`Form`] says. Invariants: a message is bounded before it is read; every answer ends with a status.
//! Neighbours: `super` detects HTTP/2, `answer` and `watch` write messages.

use std::{convert::Infallible, time::Duration};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use gogate_cluster::state::Instance;
use gogate_proto::v1;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header, request::Parts,
};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use prost::Message;
use serde_json::{Map, Value};
use tokio::time::Instant;

use super::{
    answer::{Answer, Body, Incoming, read_body},
    error::ApiError,
};
use crate::{client, control::watch::Form};

/// Bytes of a message from a client: a registration's body and what surrounds it.
const MESSAGE_MAX: usize = 64 << 10;

/// The longest that a call may take, as in the rest of the API.
const TIMEOUT_MAX: Duration = Duration::from_secs(60);

/// Where all of its calls are.
const SERVICE: &str = "/gogate.v1.Registry/";

const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// Status codes, as gRPC numbers them.
mod code {
    pub(super) const OK: u8 = 0;
    pub(super) const UNKNOWN: u8 = 2;
    pub(super) const INVALID_ARGUMENT: u8 = 3;
    pub(super) const DEADLINE_EXCEEDED: u8 = 4;
    pub(super) const NOT_FOUND: u8 = 5;
    pub(super) const PERMISSION_DENIED: u8 = 7;
    pub(super) const RESOURCE_EXHAUSTED: u8 = 8;
    pub(super) const FAILED_PRECONDITION: u8 = 9;
    pub(super) const OUT_OF_RANGE: u8 = 11;
    pub(super) const UNIMPLEMENTED: u8 = 12;
    pub(super) const UNAVAILABLE: u8 = 14;
    pub(super) const UNAUTHENTICATED: u8 = 16;
}

/// Whether a request is one of these calls.
pub(super) fn is_grpc(head: &Parts) -> bool {
    let kind = head.headers.get(header::CONTENT_TYPE);
    kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// The call of the admin API that `request` stands for.
pub(super) async fn translated(request: Request<Incoming>) -> Result<Request<Incoming>, ApiError> {
    let (mut head, body) = request.into_parts();
    let deadline = Instant::now() + TIMEOUT_MAX;
    let message = unframed(read_body(body, MESSAGE_MAX, deadline).await?)?;
    let call = call(head.uri.path().strip_prefix(SERVICE).unwrap_or_default(), message)?;
    let client::Call { method, mut path, body, .. } = call;
    if let Some(timeout) = timeout(&head.headers)? {
        path.push(if path.contains('?') { '&' } else { '?' });
        path.push_str(&format!("timeout={}ms", timeout.min(TIMEOUT_MAX).as_millis().max(1)));
    }
    head.method = method;
    head.uri = path.parse().map_err(|error| ApiError::Malformed(format!("the call has no path: {error}")))?;
    head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    head.extensions.insert(Form::Grpc);
    Ok(Request::from_parts(head, Incoming::Whole(Full::new(body))))
}

/// What `name` of the service is called in the admin API.
fn call(name: &str, message: Bytes) -> Result<client::Call, ApiError> {
    let query = |path: &str, pairs: &[(&str, Option<String>)]| {
        let pairs = pairs.iter().filter_map(|(key, value)| Some((key, value.as_ref()?)));
        let pairs: Vec<String> =
            pairs.map(|(key, value)| format!("{key}={}", client::encode(value))).collect();
        client::Call::get(format!("{path}?{}", pairs.join("&")))
    };
    let text = |text: String| Some(text).filter(|text| !text.is_empty());
    let number = |number: Option<u64>| number.map(|number| number.to_string());
    let id = |id: String| {
        let id = text(id).ok_or_else(|| ApiError::Malformed("the id is empty".into()))?;
        Ok::<_, ApiError>(client::instance_path(&id))
    };
    Ok(match name {
        "Register" => {
            let v1::RegisterRequest { id, name, address, ttl_ms, weight, metadata, tags } = decoded(message)?;
            let mut body = Map::new();
            body.extend(text(id).map(|id| ("id".to_owned(), id.into())));
            body.insert("name".to_owned(), name.into());
            body.insert("address".to_owned(), address.into());
            body.extend(ttl_ms.map(|ms| ("ttl".to_owned(), format!("{ms}ms").into())));
            body.extend(weight.map(|weight| ("weight".to_owned(), weight.into())));
            let metadata = metadata.into_iter().map(|(key, value)| (key, Value::from(value)));
            body.insert("metadata".to_owned(), metadata.collect::<Map<_, _>>().into());
            body.insert("tags".to_owned(), tags.into());
            client::Call::new(Method::POST, "/v1/services").json(&body.into())
        }
        "Deregister" => client::Call::new(Method::DELETE, id(decoded::<v1::DeregisterRequest>(message)?.id)?),
        "Beat" => {
            let path = id(decoded::<v1::BeatRequest>(message)?.id)?;
            client::Call::new(Method::PUT, format!("{path}/heartbeat"))
        }
        "List" => {
            let v1::ListRequest { name, tag, stale, index, wait_ms } = decoded(message)?;
            let wait = wait_ms.map(|ms| format!("{ms}ms"));
            let pairs = [
                ("name", text(name)),
                ("tag", text(tag)),
                ("stale", Some(stale.to_string())),
                ("index", number(index)),
                ("wait", wait),
            ];
            query("/v1/services", &pairs)
        }
        "Watch" => {
            let v1::WatchRequest { name, since, stale } = decoded(message)?;
            let pairs = [("name", text(name)), ("stale", Some(stale.to_string())), ("since", number(since))];
            query("/v1/watch", &pairs)
        }
        _ => return Err(ApiError::NotImplemented),
    })
}

fn decoded<M: Message + Default>(message: Bytes) -> Result<M, ApiError> {
    M::decode(message).map_err(|error| ApiError::Malformed(format!("the message cannot be read: {error}")))
}

/// The one message of a body.
fn unframed(mut body: Bytes) -> Result<Bytes, ApiError> {
    let wrong = |problem: &str| Err(ApiError::Malformed(format!("the body is not one message: {problem}")));
    if body.len() < 5 {
        return wrong("it is too short");
    }
    match (body.get_u8(), body.get_u32()) {
        (0, length) if usize::try_from(length).is_ok_and(|length| length == body.len()) => Ok(body),
        (0, _) => wrong("its length is another"),
        _ => wrong("it is compressed, which nobody offered"),
    }
}

/// What the client gives the call.
fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, ApiError> {
    let Some(value) = headers.get(TIMEOUT) else { return Ok(None) };
    let read = || {
        let text = value.to_str().ok()?;
        let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        let number: u64 = number.parse().ok().filter(|_| number.len() <= 8)?;
        Some(match unit {
            "H" => Duration::from_secs(number * 3600),
            "M" => Duration::from_secs(number * 60),
            "S" => Duration::from_secs(number),
            "m" => Duration::from_millis(number),
            "u" => Duration::from_micros(number),
            "n" => Duration::from_nanos(number),
            _ => return None,
        })
    };
    read().map(Some).ok_or_else(|| ApiError::Malformed("`grpc-timeout` is no duration".into()))
}

/// `message` with its length before it.
pub(super) fn framed(message: &impl Message, into: &mut BytesMut) {
    let length = message.encoded_len();
    into.reserve(5 + length);
    into.put_u8(0);
    into.put_u32(u32::try_from(length).expect("no answer has 4 GiB"));
    message.encode(into).expect("there is room");
}

/// An answer of one message.
pub(super) fn answer(message: &impl Message) -> Answer {
    let mut bytes = BytesMut::new();
    framed(message, &mut bytes);
    let frames = [Ok::<_, Infallible>(Frame::data(bytes.freeze())), Ok(end(None))];
    with_kind(Response::new(Body::Stream(StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync())))
}

/// An answer that says what is wrong and no more.
pub(super) fn refusal(error: &ApiError) -> Answer {
    let mut answer = with_kind(Response::new(Full::new(Bytes::new()).into()));
    let (code, said) = status(error);
    answer.headers_mut().insert(STATUS, HeaderValue::from(u16::from(code)));
    answer.headers_mut().insert(MESSAGE, said);
    answer
}

/// The same answer, said to be gRPC's.
pub(super) fn with_kind(mut answer: Answer) -> Answer {
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    answer
}

/// The end of an answer.
pub(super) fn end(error: Option<&ApiError>) -> Frame<Bytes> {
    let mut trailers = HeaderMap::new();
    let Some(error) = error else {
        trailers.insert(STATUS, HeaderValue::from(u16::from(code::OK)));
        return Frame::trailers(trailers);
    };
    let (code, said) = status(error);
    trailers.insert(STATUS, HeaderValue::from(u16::from(code)));
    trailers.insert(MESSAGE, said);
    Frame::trailers(trailers)
}

fn status(error: &ApiError) -> (u8, HeaderValue) {
    let code = match error.status() {
        StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE | StatusCode::UNPROCESSABLE_ENTITY => {
            code::INVALID_ARGUMENT
        }
        StatusCode::UNAUTHORIZED => code::UNAUTHENTICATED,
        StatusCode::FORBIDDEN => code::PERMISSION_DENIED,
        StatusCode::NOT_FOUND => code::NOT_FOUND,
        StatusCode::CONFLICT | StatusCode::PRECONDITION_FAILED => code::FAILED_PRECONDITION,
        StatusCode::GONE => code::OUT_OF_RANGE,
        StatusCode::TOO_MANY_REQUESTS => code::RESOURCE_EXHAUSTED,
        StatusCode::NOT_IMPLEMENTED => code::UNIMPLEMENTED,
        StatusCode::SERVICE_UNAVAILABLE => code::UNAVAILABLE,
        StatusCode::GATEWAY_TIMEOUT => code::DEADLINE_EXCEEDED,
        _ => code::UNKNOWN,
    };
    let mut said = error.to_string();
    if let ApiError::Invalid(problems) = error {
        problems.iter().for_each(|problem| said.push_str(&format!("; {problem}")));
    }
    // Percent-encoded, as gRPC has it.
    let said = HeaderValue::try_from(client::encode(&said));
    (code, said.unwrap_or(HeaderValue::from_static("")))
}

/// An instance as messages show it.
pub(super) fn instance(instance: &Instance, expires_in_ms: Option<u64>) -> v1::Instance {
    let Instance { id, name, address, ttl_ms, weight, metadata, tags, epoch } = instance;
    v1::Instance {
        id: id.to_string(),
        name: name.to_string(),
        address: address.clone(),
        ttl_ms: *ttl_ms,
        weight: *weight,
        metadata: metadata.clone().into_iter().collect(),
        tags: tags.clone(),
        epoch: *epoch,
        expires_in_ms,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(result: &Result<impl std::fmt::Debug, ApiError>) {
        assert!(matches!(result, Err(ApiError::Malformed(_))), "{result:?}");
    }

    #[test]
    fn a_body_is_one_message() {
        assert_eq!(unframed(Bytes::from_static(b"\0\0\0\0\x02ab")), Ok(Bytes::from_static(b"ab")));
        for bad in [&b""[..], b"\0\0\0\0", b"\0\0\0\0\x02a", b"\0\0\0\0\x01ab", b"\x01\0\0\0\x01a"] {
            refused(&unframed(Bytes::copy_from_slice(bad)));
        }
    }

    #[test]
    fn deadlines_are_read_as_grpc_writes_them() {
        let read = |text: &'static str| {
            timeout(&HeaderMap::from_iter([(TIMEOUT, HeaderValue::from_bytes(text.as_bytes()).unwrap())]))
        };
        assert_eq!(read("250m"), Ok(Some(Duration::from_millis(250))));
        assert_eq!(read("2S"), Ok(Some(Duration::from_secs(2))));
        assert_eq!(read("99999999H"), Ok(Some(Duration::from_secs(99_999_999 * 3600))));
        ["", "5", "S", "1x", "-1S", "123456789S", "é"].into_iter().for_each(|bad| refused(&read(bad)));
    }
}
