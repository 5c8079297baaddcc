//! `cors`: which pages of other origins may read answers (the Fetch standard, section 3.2).
//!
//! Job: answer preflights, and mark the route's answers, refusals included: a page must be able to read why it was
//! refused. Invariants: the gateway's word replaces the endpoint's; whoever asks without an Origin, or with one
//! that is not allowed, gets the same answer without the marks; an answer that depends on the origin says so in
//! Vary. It is no access control: a request of another origin is answered, its page just cannot read it.

use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};

use bytes::Bytes;

use crate::config::document::{Cors as Settings, Origin};

/// A route's rules for other origins.
#[derive(Debug)]
pub(super) struct Cors {
    any_origin: bool,
    origins: Vec<Origin>,
    credentials: bool,
    /// None: what the preflight asks for.
    methods: Option<HeaderValue>,
    headers: Option<HeaderValue>,
    exposed: Option<HeaderValue>,
    max_age: Option<HeaderValue>,
}

const TRUE: HeaderValue = HeaderValue::from_static("true");
const ANY: HeaderValue = HeaderValue::from_static("*");
const VARY_PREFLIGHT: HeaderValue =
    HeaderValue::from_static("Access-Control-Request-Method, Access-Control-Request-Headers");
const VARY_ORIGIN: HeaderValue = HeaderValue::from_static("Origin");

/// Whether a browser asks what it may ask.
pub(in super::super) fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
    method == Method::OPTIONS
        && headers.contains_key(header::ORIGIN)
        && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

// === impl Cors ===

impl Cors {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            any_origin: settings.any_origin,
            origins: settings.allowed_origins.clone(),
            credentials: settings.credentials,
            methods: list(settings.allowed_methods.iter().map(Method::as_str)),
            headers: list(settings.allowed_headers.iter().map(HeaderName::as_str)),
            exposed: list(settings.exposed_headers.iter().map(HeaderName::as_str)),
            max_age: settings.max_age.map(|age| HeaderValue::from(age.as_secs())),
        }
    }

    /// The answer to a preflight; [`Cors::mark`] does the rest of it.
    pub(super) fn preflight(&self, asked: &HeaderMap) -> Response<Bytes> {
        let mut response = Response::new(Bytes::new());
        *response.status_mut() = StatusCode::NO_CONTENT;
        let headers = response.headers_mut();
        if asked.get(header::ORIGIN).is_some_and(|origin| self.allows(origin)) {
            let methods = self.methods.as_ref().or(asked.get(header::ACCESS_CONTROL_REQUEST_METHOD));
            if let Some(methods) = methods {
                headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods.clone());
            }
            let names = self.headers.as_ref().or(asked.get(header::ACCESS_CONTROL_REQUEST_HEADERS));
            if let Some(names) = names {
                headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, names.clone());
            }
            if let Some(max_age) = &self.max_age {
                headers.insert(header::ACCESS_CONTROL_MAX_AGE, max_age.clone());
            }
        }
        headers.insert(header::VARY, VARY_PREFLIGHT);
        response
    }

    /// Marks an answer for the origin that asked.
    pub(super) fn mark(&self, origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
        headers.remove(header::ACCESS_CONTROL_ALLOW_ORIGIN);
        headers.remove(header::ACCESS_CONTROL_ALLOW_CREDENTIALS);
        headers.remove(header::ACCESS_CONTROL_EXPOSE_HEADERS);
        if !self.any_origin {
            headers.append(header::VARY, VARY_ORIGIN);
        }
        let Some(origin) = origin.filter(|origin| self.allows(origin)) else { return };
        let allowed = if self.any_origin { ANY } else { origin.clone() };
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        if self.credentials {
            headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, TRUE);
        }
        if let Some(exposed) = &self.exposed {
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed.clone());
        }
    }

    fn allows(&self, origin: &HeaderValue) -> bool {
        self.any_origin || self.origins.iter().any(|allowed| matches(allowed, origin.as_bytes()))
    }
}

/// Browsers write origins in one form: lower case, without the scheme's own port.
fn matches(allowed: &Origin, origin: &[u8]) -> bool {
    match allowed {
        Origin::Exact(exact) => exact.as_bytes() == origin,
        Origin::Below { scheme, suffix } => origin
            .strip_prefix(scheme.as_bytes())
            .and_then(|rest| rest.strip_suffix(suffix.as_bytes()))
            .is_some_and(|labels| {
                let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
                !labels.is_empty() && labels.iter().all(is_name)
            }),
    }
}

fn list<'a>(items: impl Iterator<Item = &'a str>) -> Option<HeaderValue> {
    let text = items.collect::<Vec<_>>().join(", ");
    HeaderValue::try_from(text).ok().filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_stands_for_labels_and_nothing_else() {
        let below = Origin::Below { scheme: "https://".into(), suffix: ".example.com".into() };
        for (origin, allowed) in [
            ("https://a.example.com", true),
            ("https://a.b.example.com", true),
            ("https://example.com", false),
            ("https://.example.com", false),
            ("http://a.example.com", false),
            ("https://a.example.com:8443", false),
            ("https://evil.com/.example.com", false),
            ("https://evil.com#.example.com", false),
            ("https://aexample.com", false),
            ("null", false),
        ] {
            assert_eq!(matches(&below, origin.as_bytes()), allowed, "{origin}");
        }
    }

    #[test]
    fn the_gateways_word_replaces_the_endpoints() {
        let settings = Settings {
            allowed_origins: vec![Origin::Exact("https://a.example".into())],
            ..Settings::default()
        };
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, ANY);
        headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, TRUE);
        Cors::new(&settings).mark(Some(&HeaderValue::from_static("https://b.example")), &mut headers);
        assert_eq!(headers.len(), 1, "{headers:?}");
        assert_eq!(headers[header::VARY], "Origin");
    }
}
