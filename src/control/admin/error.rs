//! What the admin API answers when it cannot do what was asked: one enum, one table.
//!
//! Invariant: a call whose outcome is not known is `Unknown` and nothing else (P5). Neighbours: every handler
//! returns [`ApiError`]; `answer` alone turns it into RFC 9457 problem+json.

use std::collections::BTreeMap;

use gogate_cluster::{
    ManageError, ProposeError, ReadError,
    state::{NodeId, Refusal},
};
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use serde::Serialize;

use super::answer::{Answer, json_bytes};
use crate::{config::problem::Problem, control::watch::Refused};

/// Why a call was not done.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ApiError {
    /// The call itself is wrong.
    #[error("{0}")]
    Malformed(String),
    /// A page of somewhere else made a browser send it.
    #[error("this call comes from a page of `{origin}`, which is not this node; nothing was done")]
    Forbidden {
        /// As the browser said.
        origin: String,
    },
    /// Nobody knows who calls.
    #[error("{detail}; nothing was done")]
    Unauthenticated {
        /// What to send.
        detail: String,
        /// Whether a token was sent that nobody has.
        is_wrong: bool,
    },
    /// Whoever calls may not.
    #[error("{detail}")]
    NotAllowed {
        /// Who may what.
        detail: String,
    },
    /// Too many wrong tokens came from there.
    #[error(
        "too many wrong tokens came from this address: no token is looked at for {seconds} s; nothing was done"
    )]
    TooManyGuesses {
        /// Until one is looked at again.
        seconds: u64,
    },
    /// The caller asks for changes too fast.
    #[error(
        "{caller} asks for more changes than the {per_second} a second of `admin.change_rate`: come back in {seconds} s; nothing was done"
    )]
    TooManyChanges {
        /// Who it is.
        caller: String,
        /// How many it may ask for.
        per_second: u32,
        /// Until it may ask again.
        seconds: u64,
    },
    /// The body is not in a format that the call takes.
    #[error("the body of this call is JSON: send `Content-Type: application/json`")]
    MediaType,
    /// Nothing is there.
    #[error("{0}")]
    NotFound(String),
    /// The path is known, the method is not.
    #[error("this path takes {allow}")]
    Method {
        /// What it takes, as `Allow` says it.
        allow: String,
    },
    /// A node cannot run what was asked for, or something else is under way.
    #[error("{detail}")]
    Conflict {
        /// Which node, and why.
        detail: String,
        /// What each node runs.
        nodes: BTreeMap<String, String>,
    },
    /// It would do harm, or makes no sense as things are.
    #[error("{0}")]
    Refused(String),
    /// It is written, and not every node runs it yet.
    #[error("{detail}")]
    NotYet {
        /// Which version, and what to do.
        detail: String,
        /// Its number.
        version: u64,
        /// What each node runs.
        nodes: BTreeMap<String, String>,
    },
    /// The caller knew another version.
    #[error("{detail}")]
    Stale {
        /// What is current.
        current: u64,
        /// What to do.
        detail: String,
    },
    /// The body has too many bytes.
    #[error("the body may have {limit} bytes at most")]
    TooLarge {
        /// How many it may have.
        limit: usize,
    },
    /// The document or the instance is not valid.
    #[error("{}; nothing was changed", count(.0.len()))]
    Invalid(Vec<Problem>),
    /// Nothing was written, or nothing can be read, now.
    #[error("{0}")]
    Unavailable(String),
    /// The service has no such call.
    #[error("this node does not know this call; proto/gogate/v1/control.proto has those of its version")]
    NotImplemented,
    /// A watcher fell behind by more than this node keeps.
    #[error(
        "this watcher is too slow: what comes next is not kept any more; come back with the last event's id for a snapshot"
    )]
    TooSlow,
    /// It may have been done, or may yet be.
    #[error("{0}")]
    Unknown(String),
}

/// RFC 9457.
#[derive(Serialize)]
struct ProblemJson<'a> {
    r#type: String,
    title: &'static str,
    status: u16,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    leader: Option<NodeId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    current: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nodes: Option<&'a BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problems: Option<&'a [Problem]>,
}

fn count(problems: usize) -> String {
    format!("{problems} problem{}", if problems == 1 { "" } else { "s" })
}

// === impl ApiError ===

impl ApiError {
    /// The status, a title that never changes, and the last part of the type's URN.
    fn table(&self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::Malformed(_) => (StatusCode::BAD_REQUEST, "malformed request", "malformed"),
            Self::Forbidden { .. } => (StatusCode::FORBIDDEN, "forbidden", "forbidden"),
            Self::Unauthenticated { .. } => {
                (StatusCode::UNAUTHORIZED, "who calls is not known", "unauthenticated")
            }
            Self::NotAllowed { .. } => (StatusCode::FORBIDDEN, "not allowed", "not-allowed"),
            Self::TooManyGuesses { .. } => {
                (StatusCode::TOO_MANY_REQUESTS, "too many wrong tokens", "too-many")
            }
            Self::TooManyChanges { .. } => {
                (StatusCode::TOO_MANY_REQUESTS, "too many changes", "too-many-changes")
            }
            Self::MediaType => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported media type", "media-type"),
            Self::NotFound(_) => (StatusCode::NOT_FOUND, "not found", "not-found"),
            Self::Method { .. } => (StatusCode::METHOD_NOT_ALLOWED, "method not allowed", "method"),
            Self::Conflict { .. } => (StatusCode::CONFLICT, "conflict", "conflict"),
            Self::Refused(_) => (StatusCode::CONFLICT, "conflict", "conflict"),
            Self::NotYet { .. } => (StatusCode::GATEWAY_TIMEOUT, "not running everywhere yet", "not-yet"),
            Self::Stale { .. } => (StatusCode::PRECONDITION_FAILED, "stale version", "stale"),
            Self::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "body too large", "too-large"),
            Self::Invalid(_) => (StatusCode::UNPROCESSABLE_ENTITY, "not valid", "invalid"),
            Self::Unavailable(_) => (StatusCode::SERVICE_UNAVAILABLE, "not available now", "unavailable"),
            Self::NotImplemented => (StatusCode::NOT_IMPLEMENTED, "not implemented", "not-implemented"),
            Self::TooSlow => (StatusCode::GONE, "too slow", "too-slow"),
            Self::Unknown(_) => (StatusCode::GATEWAY_TIMEOUT, "outcome unknown", "unknown-outcome"),
        }
    }

    /// The status that it is answered with.
    pub(super) fn status(&self) -> StatusCode {
        self.table().0
    }

    /// The problem in JSON; `leader` is told where another node may help.
    pub(super) fn problem_json(&self, leader: Option<NodeId>) -> Vec<u8> {
        let (status, title, kind) = self.table();
        let helps = matches!(self, Self::Unavailable(_) | Self::Unknown(_));
        json_bytes(&ProblemJson {
            r#type: format!("urn:gogate:problem:{kind}"),
            title,
            status: status.as_u16(),
            detail: self.to_string(),
            leader: leader.filter(|_| helps),
            current: if let Self::Stale { current, .. } = self { Some(*current) } else { None },
            version: if let Self::NotYet { version, .. } = self { Some(*version) } else { None },
            nodes: match self {
                Self::Conflict { nodes, .. } | Self::NotYet { nodes, .. } => Some(nodes),
                _ => None,
            },
            problems: if let Self::Invalid(problems) = self { Some(problems) } else { None },
        })
    }

    /// The answer; `leader` is told where another node may help.
    pub(super) fn answer(&self, leader: Option<NodeId>) -> Answer {
        let mut answer = Response::new(Full::new(self.problem_json(leader).into()).into());
        *answer.status_mut() = self.status();
        let headers = answer.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        match self {
            Self::Method { allow } => {
                let allow = HeaderValue::try_from(allow).expect("methods and commas make a header value");
                headers.insert(header::ALLOW, allow);
            }
            Self::Unauthenticated { is_wrong, .. } => {
                // RFC 6750, 3.
                let challenge = if *is_wrong {
                    "Bearer realm=\"gogate\", error=\"invalid_token\""
                } else {
                    "Bearer realm=\"gogate\""
                };
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
            }
            Self::TooManyGuesses { seconds } | Self::TooManyChanges { seconds, .. } => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from(*seconds));
            }
            Self::Unavailable(_) => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            _ => {}
        }
        answer
    }
}

impl From<ProposeError> for ApiError {
    fn from(error: ProposeError) -> Self {
        match error {
            ProposeError::NotDone { .. } => Self::Unavailable(error.to_string()),
            ProposeError::Unknown { .. } => Self::Unknown(error.to_string()),
        }
    }
}

impl From<ManageError> for ApiError {
    fn from(error: ManageError) -> Self {
        let detail = error.to_string();
        match error {
            ManageError::UnknownNode(_) => Self::NotFound(detail),
            ManageError::Refused(_) => Self::Refused(detail),
            ManageError::NotDone(_) => Self::Unavailable(detail),
            ManageError::Unknown(_) => Self::Unknown(detail),
        }
    }
}

impl From<ReadError> for ApiError {
    fn from(error: ReadError) -> Self {
        Self::Unavailable(error.reason)
    }
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> Self {
        Self::Unavailable(refused.to_string())
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let detail = refusal.to_string();
        match refusal {
            Refusal::UnknownInstance { .. } | Refusal::UnknownVersion { .. } => Self::NotFound(detail),
            Refusal::StaleDocument { current, .. } => Self::Stale { current, detail },
            Refusal::RegistryFull { .. } | Refusal::UploadGone => Self::Unavailable(detail),
            Refusal::Staging { .. } => Self::Conflict { detail, nodes: BTreeMap::new() },
            Refusal::KeyReused => Self::Invalid(vec![Problem::general(detail, None)]),
            // None of these is proposed through this API.
            Refusal::NotEmpty { .. }
            | Refusal::RestoreLost
            | Refusal::UsedNode { .. }
            | Refusal::UnknownNode { .. }
            | Refusal::NotStaged { .. } => Self::Malformed(detail),
        }
    }
}
