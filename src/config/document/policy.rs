//! What a route does with a request beside sending it on.

use http::{HeaderName, HeaderValue};

use super::IpNetwork;

/// A named policy: what it does, each kind at most once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policy {
    /// In no order: the data plane has one of its own.
    pub kinds: Vec<PolicyKind>,
}

/// One thing that a policy does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PolicyKind {
    /// Only clients from these.
    IpAllow(Vec<IpNetwork>),
    /// No client from these.
    IpDeny(Vec<IpNetwork>),
    /// Changes of the head that the endpoint sees.
    RequestHeaders(HeaderEdit),
    /// Changes of the head that the client sees.
    ResponseHeaders(HeaderEdit),
}

/// Changes of header fields: first what goes, then what is set, then what is added.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HeaderEdit {
    /// In place of all fields of the name.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Beside those that are there.
    pub add: Vec<(HeaderName, HeaderValue)>,
    /// All fields of the name go.
    pub remove: Vec<HeaderName>,
}

// === impl PolicyKind ===

impl PolicyKind {
    /// Its key in the document.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::IpAllow(_) => "ip_allow",
            Self::IpDeny(_) => "ip_deny",
            Self::RequestHeaders(_) => "request_headers",
            Self::ResponseHeaders(_) => "response_headers",
        }
    }

    /// Whether a route may have several of it, from several policies: they all hold.
    #[must_use]
    pub fn adds_up(&self) -> bool {
        match self {
            Self::IpAllow(_) | Self::IpDeny(_) | Self::RequestHeaders(_) | Self::ResponseHeaders(_) => true,
        }
    }
}
