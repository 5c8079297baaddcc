//! What a route does with a request beside sending it on.

use http::{HeaderName, HeaderValue};

use super::{ApiKey, BasicAuth, ForwardAuth, IpNetwork, Jwt};

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
    /// Only with a token that the gateway verifies.
    Jwt(Jwt),
    /// Only with a key.
    ApiKey(ApiKey),
    /// Only with a password.
    BasicAuth(BasicAuth),
    /// Only if another service says so.
    ForwardAuth(ForwardAuth),
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
            Self::Jwt(_) => "jwt",
            Self::ApiKey(_) => "api_key",
            Self::BasicAuth(_) => "basic_auth",
            Self::ForwardAuth(_) => "forward_auth",
            Self::RequestHeaders(_) => "request_headers",
            Self::ResponseHeaders(_) => "response_headers",
        }
    }

    /// Whether a route may have several of it, from several policies: they all hold.
    #[must_use]
    pub fn adds_up(&self) -> bool {
        match self {
            Self::IpAllow(_) | Self::IpDeny(_) | Self::RequestHeaders(_) | Self::ResponseHeaders(_) => true,
            Self::Jwt(_) | Self::ApiKey(_) | Self::BasicAuth(_) | Self::ForwardAuth(_) => false,
        }
    }
}
