//! One line in the log for every change that was asked for, and for every call that was refused.
//!
//! Invariants: a line says who, from where, what and with what outcome, and never a token nor a query, in which one
//! may have been put by mistake; `log.level` does not silence it, but for a directive of its own (`audit=off`); an
//! address that is refused again and again does not fill the log. Neighbour: the router calls.

use http::{HeaderMap, StatusCode, request::Parts};

use super::{
    answer::Answer,
    auth::{Access, Caller, Origin, Route},
    config::VERSION,
};
use crate::config::problem::shown;

/// Lines have this target.
const TARGET: &str = crate::telemetry::AUDIT;

/// What a handler says that its answer is about; put into the answer's extensions.
#[derive(Debug, Clone)]
pub(super) struct Subject(pub(super) String);

/// What became known of a call.
#[derive(Default)]
pub(super) struct Asked {
    pub(super) route: Option<&'static Route>,
    pub(super) caller: Option<Caller>,
}

// === impl Asked ===

impl Asked {
    /// Logs the call, if that is worth it.
    pub(super) fn log(
        &self,
        access: &Access,
        origin: &Origin,
        head: &Parts,
        status: StatusCode,
        answer: &Answer,
    ) {
        let refused = matches!(
            status,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS
        );
        let subject = answer.extensions().get::<Subject>();
        let is_audited = self.route.is_some_and(Route::is_audited);
        if !refused && !is_audited && subject.is_none() {
            return;
        }
        let name = self.caller.as_ref().and_then(Caller::name);
        let mut last = false;
        if refused && (name.is_none() || status == StatusCode::TOO_MANY_REQUESTS) {
            match access.tells(origin) {
                None => return,
                Some(is_last) => last = is_last,
            }
        }
        tracing::info!(
            target: TARGET,
            by = name.unwrap_or("-"),
            from = %origin.address.ip().to_canonical(),
            method = %head.method,
            path = %shown(head.uri.path()),
            outcome = status.as_u16(),
            about = subject.map(|subject| shown(&subject.0)),
            version = answer.headers().get(VERSION).and_then(|value| value.to_str().ok()),
            request_id = request_id(&head.headers),
            "audit: {}",
            if refused { "refused" } else { "asked" }
        );
        if last {
            tracing::info!(
                target: TARGET,
                from = %origin.address.ip().to_canonical(),
                "audit: further refusals of this address are not logged for up to a minute"
            );
        }
    }
}

/// As the caller gave it, if it is well-formed.
fn request_id(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get("x-request-id")?.to_str().ok()?;
    (text.len() <= 128 && text.bytes().all(|byte| byte.is_ascii_graphic())).then_some(text)
}
