//! `request_id`: under which name a request's id travels, and from whom one is kept.
//!
//! Without the policy every request has one as X-Request-ID, kept if it is well-formed (`proxy::headers`).

use http::{HeaderMap, HeaderValue};

use super::super::headers::{self, X_REQUEST_ID};
use crate::config::document::{RequestIdPolicy, TrustId};

/// The id of a request: one that came with it, or a new one.
pub(super) fn choose(
    policy: &RequestIdPolicy,
    headers: &HeaderMap,
    peer_is_trusted: bool,
    given: &HeaderValue,
    new: impl FnOnce() -> HeaderValue,
) -> HeaderValue {
    let trusts = match policy.trust {
        TrustId::Anyone => true,
        TrustId::Proxies => peer_is_trusted,
        TrustId::Nobody => false,
    };
    let came = headers.get(&policy.header).filter(|id| headers::is_well_formed_id(id.as_bytes()));
    match came {
        Some(came) if trusts => came.clone(),
        // The id that the request already has was made for it, unless it came with it.
        _ if trusts || headers.get(X_REQUEST_ID) != Some(given) => given.clone(),
        _ => new(),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;

    #[test]
    fn an_id_is_kept_from_whom_it_is_believed() {
        use TrustId::{Anyone, Nobody, Proxies};
        for (header, trust, proxy, expected) in [
            ("x-request-id", Anyone, false, "default"),
            ("x-request-id", Proxies, true, "default"),
            ("x-request-id", Proxies, false, "new"),
            ("x-request-id", Nobody, true, "new"),
            ("x-mine", Anyone, false, "mine"),
            ("x-mine", Proxies, false, "new"),
            ("x-bad", Anyone, false, "default"),
            ("x-absent", Anyone, false, "default"),
        ] {
            let headers: HeaderMap = [("x-request-id", "default"), ("x-mine", "mine"), ("x-bad", "a b")]
                .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
                .into_iter()
                .collect();
            let policy = RequestIdPolicy { header: HeaderName::from_static(header), trust };
            let given = HeaderValue::from_static("default");
            let id = choose(&policy, &headers, proxy, &given, || HeaderValue::from_static("new"));
            assert_eq!(id, expected, "{header} {trust:?} {proxy}");
        }
    }
}
