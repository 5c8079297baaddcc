//! Answers that need no endpoint: redirects, and answers that are always the same.
//!
//! Job: a route's `redirect` or `respond`, made ready when the document is compiled. Invariant: a client's words in
//! a redirect's place are its path and query in their normal form, and its host: the path begins with one slash and
//! has no backslash (`path`), the document has no placeholder where another host could begin (`check::actions`), and
//! a field's value holds no line end. Neighbours: `action` compiles, `http` answers.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Uri, header};

use super::error::ProxyError;
use crate::config::document::{Part, Redirect, Respond};

/// A route's own answer.
#[derive(Debug)]
pub(super) enum FixedAnswer {
    Redirect { to: Vec<Part>, status: StatusCode },
    Respond { status: StatusCode, headers: HeaderMap, body: Bytes },
}

/// What a redirect may repeat of a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Repeatable<'a> {
    /// Without its port.
    pub(super) host: &'a str,
    /// Its path in the normal form.
    pub(super) uri: &'a Uri,
    pub(super) scheme: &'a str,
}

// === impl FixedAnswer ===

impl FixedAnswer {
    pub(super) fn redirect(redirect: &Redirect) -> Self {
        Self::Redirect { to: redirect.to.clone(), status: code(redirect.status) }
    }

    pub(super) fn respond(respond: &Respond) -> Self {
        let mut headers = HeaderMap::new();
        for (name, value) in &respond.headers {
            // Both were checked with the document.
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
                headers.insert(name, value);
            }
        }
        let body = Bytes::from(respond.body.clone());
        if let Ok(content_type) = HeaderValue::try_from(&respond.content_type)
            && !body.is_empty()
        {
            headers.insert(header::CONTENT_TYPE, content_type);
        }
        // RFC 9110, section 8.6: none with 204; with 304 it would speak of another answer's body.
        if !matches!(respond.status, 204 | 304) {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
        }
        Self::Respond { status: code(respond.status), headers, body }
    }

    pub(super) fn response(&self, request: &Repeatable<'_>) -> Result<Response<Bytes>, ProxyError> {
        match self {
            Self::Redirect { to, status } => {
                let mut response = Response::new(Bytes::new());
                *response.status_mut() = *status;
                let headers = response.headers_mut();
                headers.insert(header::LOCATION, place(to, request)?);
                headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
                Ok(response)
            }
            Self::Respond { status, headers, body } => {
                let mut response = Response::new(body.clone());
                *response.status_mut() = *status;
                headers.clone_into(response.headers_mut());
                Ok(response)
            }
        }
    }
}

/// The code was checked with the document.
fn code(status: u16) -> StatusCode {
    StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

fn place(to: &[Part], request: &Repeatable<'_>) -> Result<HeaderValue, ProxyError> {
    // `OPTIONS *` has no path.
    let path = if request.uri.path().starts_with('/') { request.uri.path() } else { "/" };
    let query = request.uri.query().unwrap_or("");
    let mut place = String::with_capacity(64 + path.len() + query.len());
    for part in to {
        match part {
            Part::Text(text) => place.push_str(text),
            Part::Scheme => place.push_str(request.scheme),
            Part::Host if request.host.is_empty() => {
                return Err(ProxyError::Malformed("the redirect repeats the host, and there is no Host"));
            }
            Part::Host => place.push_str(request.host),
            Part::Path => place.push_str(path),
            Part::Query if query.is_empty() => {
                if place.ends_with(['?', '&']) {
                    place.pop();
                }
            }
            Part::Query => place.push_str(query),
            Part::Uri => {
                place.push_str(path);
                if !query.is_empty() {
                    place.push('?');
                    place.push_str(query);
                }
            }
        }
    }
    place.try_into().map_err(|_| ProxyError::Malformed("the target cannot be repeated in a redirect"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_put_together_from_what_was_asked() {
        let text = |text: &str| Part::Text(text.into());
        for (to, uri, expected) in [
            (vec![text("https://"), Part::Host, Part::Uri], "/a/b?c=d", "https://h.example/a/b?c=d"),
            (vec![text("https://"), Part::Host, Part::Uri], "/", "https://h.example/"),
            (vec![Part::Scheme, text("://new.example"), Part::Path], "/a?b", "http://new.example/a"),
            (vec![text("/new"), Part::Path, text("?"), Part::Query], "/a?b", "/new/a?b"),
            (vec![text("/new"), Part::Path, text("?"), Part::Query], "/a", "/new/a"),
            (vec![text("/new?old="), Part::Path, text("&"), Part::Query], "/a", "/new?old=/a"),
            (vec![text("/new"), Part::Path], "*", "/new/"),
        ] {
            let uri = uri.parse().unwrap();
            let request = Repeatable { host: "h.example", uri: &uri, scheme: "http" };
            assert_eq!(place(&to, &request).unwrap(), expected);
        }
        let uri = "/a".parse().unwrap();
        let request = Repeatable { host: "", uri: &uri, scheme: "http" };
        assert!(place(&[text("https://"), Part::Host], &request).is_err());
    }
}
