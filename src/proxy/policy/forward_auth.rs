//! `forward_auth`: another service says whether the request may pass, as with Traefik's ForwardAuth.
//!
//! The service is one of the document's, with its own endpoints, pool and deadlines. 2xx lets the request pass; any
//! other answer is the client's. Invariants: nobody passes unasked: where it cannot be asked, or not in time, the
//! request fails; what the endpoint is told of the service's answer no client may send.
//! Neighbours: `policy` calls, `forward` asks.

use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header, request::Parts};

use super::{
    super::{
        client::Client,
        error::{Answer, ProxyError},
        forward::ask,
        headers,
        outgoing::Outgoing,
        record::Record,
        upload::RequestBody,
        upstream::View,
    },
    auth::strip,
};
use crate::config::document;

/// Of the service's answer; a longer body is left out.
const BODY_BYTES_MAX: usize = 64 << 10;

const X_FORWARDED_METHOD: HeaderName = HeaderName::from_static("x-forwarded-method");
const X_FORWARDED_URI: HeaderName = HeaderName::from_static("x-forwarded-uri");

/// Fields that say how a body comes: the question has none.
static OF_THE_BODY: [HeaderName; 7] = [
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::TE,
    header::TRAILER,
    header::EXPECT,
    header::CONTENT_ENCODING,
    header::CONTENT_TYPE,
];

/// What the service gets whatever `request_headers` says: all of it is the gateway's own word, and the host.
static ALWAYS: [HeaderName; 9] = [
    header::HOST,
    header::VIA,
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("x-forwarded-proto"),
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-forwarded-port"),
    HeaderName::from_static("x-real-ip"),
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("traceparent"),
];

#[derive(Debug)]
pub(super) struct ForwardAuth {
    policy: document::ForwardAuth,
    target: Uri,
    /// The fields that the service gets; none: all.
    asked_with: Option<Vec<HeaderName>>,
    /// The service's place in the table.
    upstream: usize,
}

// === impl ForwardAuth ===

impl ForwardAuth {
    pub(super) fn new(policy: &document::ForwardAuth, upstream: usize) -> ForwardAuth {
        // `config::check` has read it as one.
        let target = policy.path.parse().unwrap_or_else(|_| Uri::from_static("/"));
        let asked_with = policy.request_headers.as_ref().map(|names| {
            let own = names.iter().filter(|name| !ALWAYS.contains(name));
            ALWAYS.iter().chain(own).cloned().collect()
        });
        ForwardAuth { policy: policy.clone(), target, asked_with, upstream }
    }

    pub(super) async fn check(
        &self,
        parts: &mut Parts,
        uri: &Uri,
        client: &Client,
        view: &View,
        record: &Record,
    ) -> Result<(), ProxyError> {
        let upstream = &view.upstreams[self.upstream];
        let headers = self.question(parts, uri);
        let scratch = &client.worker.buffers.scratch;
        let outgoing = Outgoing::new(Method::GET, &self.target, &headers, RequestBody::None, scratch);
        let ceiling = client.alarm.ceiling();
        let until = Instant::now() + self.policy.timeout;
        client.alarm.set_ceiling(Some(ceiling.map_or(until, |ceiling| ceiling.min(until))));
        let answer = ask(client, upstream, outgoing, record, self.policy.timeout, BODY_BYTES_MAX).await;
        client.alarm.set_ceiling(ceiling);
        let (mut head, body) = answer.map_err(|error| {
            tracing::debug!(service = %self.policy.service, ?error, "who may pass cannot be asked");
            ProxyError::AuthUnavailable("the service that says who may pass does not answer")
        })?;
        if head.status.is_informational() {
            // 101: nobody asked it to speak another protocol.
            return Err(ProxyError::AuthUnavailable("the service that says who may pass gave no answer"));
        }
        if !head.status.is_success() {
            headers::prepare_answer(&mut head.headers);
            head.headers.remove(header::CONTENT_LENGTH);
            let body = body.unwrap_or_else(Bytes::new);
            return Err(ProxyError::AuthDenied(Box::new(Answer {
                status: head.status,
                headers: head.headers,
                body,
            })));
        }
        strip(&mut parts.headers, &self.policy.response_headers);
        for name in &self.policy.response_headers {
            for value in head.headers.get_all(name) {
                parts.headers.append(name.clone(), value.clone());
            }
        }
        Ok(())
    }

    fn question(&self, parts: &Parts, uri: &Uri) -> HeaderMap {
        let mut headers = match &self.asked_with {
            None => parts.headers.clone(),
            Some(names) => {
                let mut chosen = HeaderMap::with_capacity(names.len());
                for name in names {
                    for value in parts.headers.get_all(name) {
                        chosen.append(name.clone(), value.clone());
                    }
                }
                chosen
            }
        };
        for name in &OF_THE_BODY {
            headers.remove(name);
        }
        strip(&mut headers, &[X_FORWARDED_METHOD, X_FORWARDED_URI]);
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        for (name, value) in [(X_FORWARDED_METHOD, parts.method.as_str()), (X_FORWARDED_URI, target)] {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(name, value);
            }
        }
        headers
    }
}
