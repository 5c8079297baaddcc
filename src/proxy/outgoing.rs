//! A request as an endpoint reads it.
//!
//! Job: [`Outgoing`] is a head in bytes, written once for however many attempts, and the body that follows it.
//! Invariant: what frames the body is this gateway's own word, made from the body; fields that say otherwise are left
//! out. Neighbours: `http` makes it, `forward` decides where it goes, `connection` sends it.

use std::{cell::RefCell, rc::Rc};

use http::{HeaderMap, HeaderName, Method, Uri, header};

use super::upload::RequestBody;

/// A request that can be sent.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) method: Method,
    pub(super) head: Rc<[u8]>,
    pub(super) body: RequestBody,
    /// None: the body is as long as the head says; else it is sent in chunks, and these fields may follow it.
    pub(super) chunked: Option<Rc<[HeaderName]>>,
}

// === impl Outgoing ===

impl Outgoing {
    /// `target` is in origin-form; the head is put together in `scratch`.
    pub(super) fn new(
        method: Method,
        target: &Uri,
        headers: &HeaderMap,
        body: RequestBody,
        scratch: &RefCell<Vec<u8>>,
    ) -> Self {
        let mut head = scratch.borrow_mut();
        head.clear();
        let target = target.path_and_query().map_or("/", |target| target.as_str());
        for piece in [method.as_str(), " ", target, " HTTP/1.1\r\n"] {
            head.extend_from_slice(piece.as_bytes());
        }
        let mut field = |name: &str, value: &[u8]| {
            for piece in [name.as_bytes(), b": ", value, b"\r\n"] {
                head.extend_from_slice(piece);
            }
        };
        for (name, value) in headers {
            let is_framing = *name == header::CONTENT_LENGTH || *name == header::TRANSFER_ENCODING;
            // Nothing, said aloud, is how many a request without a body ends.
            if !is_framing || (*name == header::CONTENT_LENGTH && body.is_none() && value == "0") {
                field(name.as_str(), value.as_bytes());
            }
        }
        let length = body.length();
        match length {
            Some(0) => {}
            Some(length) => field("content-length", length.to_string().as_bytes()),
            None => field("transfer-encoding", b"chunked"),
        }
        head.extend_from_slice(b"\r\n");
        let chunked = length.is_none().then(|| announced(headers));
        Self { method, head: Rc::from(&head[..]), body, chunked }
    }

    /// Whether it may be sent once more after it was: RFC 9110, section 9.2.2.
    pub(super) fn is_repeatable(&self) -> bool {
        self.method.is_idempotent() && self.body.is_untouched()
    }
}

/// The fields that may follow the body.
fn announced(headers: &HeaderMap) -> Rc<[HeaderName]> {
    let lists = headers.get_all(header::TRAILER).iter();
    let names = lists.flat_map(|list| list.as_bytes().split(|byte| *byte == b','));
    names.filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok()).collect()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::HeaderValue;

    use super::*;

    fn head(method: Method, fields: &[(&'static str, &'static str)], body: &'static str) -> String {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        let body = RequestBody::whole(Bytes::from_static(body.as_bytes()));
        let outgoing = Outgoing::new(method, &Uri::from_static("/a?b"), &headers, body, &RefCell::default());
        String::from_utf8(outgoing.head.to_vec()).unwrap()
    }

    #[test]
    fn a_head_is_framed_by_what_follows_it() {
        let fields = [
            ("host", "a"),
            ("content-length", "7"),
            ("transfer-encoding", "chunked"),
            ("x", "1"),
            ("x", "2"),
        ];
        let expected = "POST /a?b HTTP/1.1\r\nhost: a\r\nx: 1\r\nx: 2\r\ncontent-length: 3\r\n\r\n";
        assert_eq!(head(Method::POST, &fields, "abc"), expected);
        assert_eq!(head(Method::GET, &fields, ""), "GET /a?b HTTP/1.1\r\nhost: a\r\nx: 1\r\nx: 2\r\n\r\n");
        let expected = "POST /a?b HTTP/1.1\r\ncontent-length: 0\r\n\r\n";
        assert_eq!(head(Method::POST, &[("content-length", "0")], ""), expected);
    }
}
