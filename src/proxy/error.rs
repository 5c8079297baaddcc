//! What can go wrong with a request, and the one table that makes an answer of it.
//!
//! Job: every failure in the data plane is a [`ProxyError`]; [`ProxyError::row`] alone knows its status, its
//! reason in the metrics, its RFC 9209 token, who failed and whether the connection must close.
//! Invariant: the table is exhaustive, without a `_` arm. Neighbours: `http` answers with it, `listener` and
//! `client` write it raw where no HTTP exchange exists.

use std::fmt::Write;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};

/// A failed request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ProxyError {
    /// The request can be read in more than one way, or not at all.
    Malformed(&'static str),
    /// No route takes the request.
    NoRoute,
    /// A policy of the route wants to know who it is.
    Unauthorized(Box<Challenge>),
    /// The service that says who may pass gave another answer.
    AuthDenied(Box<Answer>),
    /// What it takes to say who it is is not there.
    AuthUnavailable(&'static str),
    /// More passwords are being verified than this node can.
    AuthOverload,
    /// A policy of the route does not let the client's address in.
    IpDenied,
    /// A policy's budget is spent; in so many seconds there is more.
    RateLimited(u64),
    /// As many requests are under way as a policy allows.
    TooManyInFlight,
    /// The gateway panicked over it.
    Panicked,
    /// A route knows the path, but not with this method.
    MethodNotAllowed(Vec<Method>),
    /// The client sent its request too slowly.
    RequestTimeout,
    /// The body is longer than the document allows.
    BodyTooLarge,
    /// The request target is longer than the document allows.
    UriTooLong,
    /// The head is longer, or has more fields, than the document allows.
    HeadTooLarge,
    /// The client expects what gogate does not know.
    ExpectationFailed,
    /// A transfer coding or method that gogate does not speak.
    NotImplemented(&'static str),
    /// No endpoint took the connection.
    ConnectFailed,
    /// The endpoint closed the connection before it answered.
    UpstreamReset,
    /// The endpoint's answer is not HTTP.
    UpstreamMalformed,
    /// No connection to the endpoint in time.
    ConnectTimeout,
    /// No answer from the endpoint in time.
    UpstreamTimeout,
    /// The service has no endpoint.
    NoEndpoint,
    /// Its health check or its errors speak against every endpoint of the service.
    NoHealthyEndpoint,
    /// Every endpoint that would be left has an open circuit breaker.
    BreakerOpen,
    /// Every connection to the endpoint is in use and the queue is full or too slow.
    PoolOverload,
    /// This node has as many client connections as it may.
    TooManyConnections,
    /// This listener has as many connections as it may.
    ListenerFull,
    /// The client opens connections faster than the listener allows.
    ConnectionRate,
    /// A trusted proxy did not begin with a PROXY header.
    ProxyHeader,
    /// A listener for TLS was sent something else.
    NotTls,
    /// A listener for TLS has no service for the name that the client asks for.
    NoServerName,
    /// Nothing moved on a stream for too long.
    StreamIdle,
}

/// How a client may say who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Challenge {
    /// WWW-Authenticate.
    challenge: HeaderValue,
    reason: &'static str,
}

/// Another's answer, handed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// Who failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blame {
    Client,
    Gateway,
    Upstream,
}

/// One line of the table.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) status: StatusCode,
    /// The label of `gogate_rejections_total`.
    pub(super) reason: &'static str,
    /// The `error` of `Proxy-Status` (RFC 9209, section 2.3).
    token: &'static str,
    pub(super) blame: Blame,
    detail: &'static str,
    retry_after: bool,
    /// What follows on the connection cannot be trusted, or is not wanted.
    close: bool,
}

/// Seconds told in `Retry-After`.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

// === impl Answer ===

impl Answer {
    fn response(&self) -> Response<Bytes> {
        let mut response = Response::new(self.body.clone());
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers.clone();
        response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(self.body.len()));
        response
    }
}

// === impl ProxyError ===

impl ProxyError {
    /// Who it is must be said as `challenge` says.
    pub(super) fn unauthorized(challenge: HeaderValue, reason: &'static str) -> ProxyError {
        Self::Unauthorized(Box::new(Challenge { challenge, reason }))
    }

    /// The table.
    pub(super) fn row(&self) -> Row {
        use Blame::{Client, Gateway, Upstream};
        let row = |status: u16, reason, token, blame, detail| Row {
            status: StatusCode::from_u16(status).expect("the table holds valid codes"),
            reason,
            token,
            blame,
            detail,
            retry_after: status == 503,
            close: false,
        };
        let closing = |row: Row| Row { close: true, ..row };
        match self {
            Self::Malformed(why) => closing(row(400, "malformed", "http_request_error", Client, why)),
            Self::NoRoute => {
                row(404, "no_route", "destination_not_found", Client, "no route takes this request")
            }
            Self::Unauthorized(challenge) => {
                row(401, "unauthorized", "http_request_denied", Client, challenge.reason)
            }
            Self::AuthDenied(answer) => Row {
                status: answer.status,
                retry_after: false,
                ..row(403, "auth_denied", "http_request_denied", Client, "this request may not pass")
            },
            Self::AuthUnavailable(why) => {
                row(503, "auth_unavailable", "destination_unavailable", Gateway, why)
            }
            Self::AuthOverload => row(
                503,
                "auth_overload",
                "http_request_denied",
                Gateway,
                "too many passwords are being verified",
            ),
            Self::IpDenied => {
                row(403, "ip_denied", "http_request_denied", Client, "this address is not let in here")
            }
            Self::RateLimited(_) => row(
                429,
                "rate_limited",
                "http_request_denied",
                Client,
                "so many requests are not allowed; see Retry-After",
            ),
            Self::TooManyInFlight => row(
                503,
                "max_in_flight",
                "http_request_denied",
                Gateway,
                "as many requests are under way here as are allowed",
            ),
            Self::Panicked => closing(row(
                500,
                "panic",
                "proxy_internal_error",
                Gateway,
                "the gateway failed over this request",
            )),
            Self::MethodNotAllowed(_) => row(
                405,
                "method_not_allowed",
                "http_request_denied",
                Client,
                "no route takes this method here; see the Allow header",
            ),
            Self::RequestTimeout => closing(row(
                408,
                "request_timeout",
                "http_request_error",
                Client,
                "the request did not arrive in time",
            )),
            Self::BodyTooLarge => closing(row(
                413,
                "body_too_large",
                "http_request_denied",
                Client,
                "the request body is longer than is taken here",
            )),
            Self::UriTooLong => closing(row(
                414,
                "uri_too_long",
                "http_request_denied",
                Client,
                "the request target is longer than limits.uri_bytes",
            )),
            Self::ExpectationFailed => closing(row(
                417,
                "expectation_failed",
                "http_request_error",
                Client,
                "the only expectation understood is 100-continue",
            )),
            Self::HeadTooLarge => closing(row(
                431,
                "head_too_large",
                "http_request_denied",
                Client,
                "the request head is longer than limits.header_bytes or has more fields than limits.headers",
            )),
            Self::NotImplemented(why) => {
                closing(row(501, "not_implemented", "http_request_error", Client, why))
            }
            Self::ConnectFailed => {
                row(502, "connect_failed", "connection_refused", Upstream, "no endpoint took the connection")
            }
            Self::UpstreamReset => row(
                502,
                "upstream_reset",
                "connection_terminated",
                Upstream,
                "the endpoint closed the connection before it answered",
            ),
            Self::UpstreamMalformed => row(
                502,
                "upstream_malformed",
                "http_protocol_error",
                Upstream,
                "the endpoint's answer is not valid HTTP",
            ),
            Self::ConnectTimeout => row(
                504,
                "connect_timeout",
                "connection_timeout",
                Upstream,
                "no connection to an endpoint in time",
            ),
            Self::UpstreamTimeout => row(
                504,
                "upstream_timeout",
                "http_response_timeout",
                Upstream,
                "the endpoint did not answer in time",
            ),
            Self::NoEndpoint => {
                row(503, "no_endpoint", "destination_unavailable", Upstream, "the service has no endpoint")
            }
            Self::NoHealthyEndpoint => row(
                503,
                "no_healthy_endpoint",
                "destination_unavailable",
                Upstream,
                "no endpoint of the service is healthy",
            ),
            Self::BreakerOpen => row(
                503,
                "breaker_open",
                "destination_unavailable",
                Upstream,
                "the service's endpoints failed too often and are left in peace for a while",
            ),
            Self::PoolOverload => row(
                503,
                "pool_overload",
                "connection_limit_reached",
                Gateway,
                "every connection to the endpoint is in use",
            ),
            Self::TooManyConnections => closing(row(
                503,
                "too_many_connections",
                "connection_limit_reached",
                Gateway,
                "this node has as many connections as limits.connections allows",
            )),
            Self::ListenerFull => closing(row(
                503,
                "listener_full",
                "connection_limit_reached",
                Gateway,
                "this listener has as many connections as its document allows",
            )),
            Self::ConnectionRate => closing(Row {
                retry_after: true,
                ..row(
                    429,
                    "connection_rate",
                    "connection_limit_reached",
                    Client,
                    "this address opens connections too fast",
                )
            }),
            Self::ProxyHeader => closing(row(
                400,
                "proxy_header",
                "http_request_error",
                Client,
                "the connection does not begin with a PROXY header",
            )),
            Self::NotTls => closing(row(
                400,
                "not_tls",
                "tls_protocol_error",
                Client,
                "the connection does not begin with a TLS ClientHello",
            )),
            Self::NoServerName => closing(row(
                421,
                "no_server_name",
                "destination_not_found",
                Client,
                "no service has the name that the TLS client asks for",
            )),
            Self::StreamIdle => closing(row(
                408,
                "stream_idle",
                "connection_timeout",
                Client,
                "nothing moved on the connection for too long",
            )),
        }
    }

    /// The answer to a client.
    pub(super) fn response(&self, request_id: &HeaderValue) -> Response<Bytes> {
        let row = self.row();
        if let Self::AuthDenied(answer) = self {
            return answer.response();
        }
        let mut body = String::with_capacity(256);
        let title = row.status.canonical_reason().unwrap_or("Error");
        let id = request_id.to_str().unwrap_or("");
        write!(
            body,
            r#"{{"type":"about:blank","title":"{title}","status":{},"detail":"{}","request_id":"{id}"}}"#,
            row.status.as_u16(),
            row.detail,
        )
        .expect("writing to a String cannot fail");
        let mut response = Response::new(Bytes::from(body));
        *response.status_mut() = row.status;
        let length = response.body().len();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        headers.insert("x-request-id", request_id.clone());
        if let Ok(status) = HeaderValue::try_from(format!("gogate; error={}", row.token)) {
            headers.insert("proxy-status", status);
        }
        if let Self::RateLimited(seconds) = self {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(*seconds));
        } else if row.retry_after {
            headers.insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        if row.close {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if let Self::Unauthorized(challenge) = self {
            headers.insert(header::WWW_AUTHENTICATE, challenge.challenge.clone());
        }
        if let Self::MethodNotAllowed(methods) = self {
            let names: Vec<&str> = methods.iter().map(Method::as_str).collect();
            if let Ok(allow) = HeaderValue::try_from(names.join(", ")) {
                headers.insert(header::ALLOW, allow);
            }
        }
        response
    }

    /// The same answer as bytes, for a connection on which no exchange is under way.
    pub(super) fn raw_response(&self, request_id: &HeaderValue) -> Vec<u8> {
        let response = self.response(request_id);
        let mut raw = format!("HTTP/1.1 {}\r\n", response.status()).into_bytes();
        for (name, value) in response.headers() {
            raw.extend_from_slice(name.as_str().as_bytes());
            raw.extend_from_slice(b": ");
            raw.extend_from_slice(value.as_bytes());
            raw.extend_from_slice(b"\r\n");
        }
        raw.extend_from_slice(b"\r\n");
        raw.extend_from_slice(response.body());
        raw
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_names_the_request_and_says_whether_to_come_back() {
        let id = HeaderValue::from_static("r-1");
        let response = ProxyError::PoolOverload.response(&id);
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["retry-after"], "1");
        assert_eq!(response.headers()["proxy-status"], "gogate; error=connection_limit_reached");
        let problem: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
        assert_eq!(problem["status"], 503);
        assert_eq!(problem["request_id"], "r-1");
    }

    #[test]
    fn a_wrong_method_is_told_the_right_ones() {
        let error = ProxyError::MethodNotAllowed(vec![Method::GET, Method::PUT]);
        assert_eq!(error.response(&HeaderValue::from_static("r")).headers()["allow"], "GET, PUT");
    }
}
