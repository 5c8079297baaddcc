//! What a route does with a request beside sending it on.

use std::time::Duration;

use http::{HeaderName, HeaderValue, Method};

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
    /// The name under which a request's id travels.
    RequestId(RequestIdPolicy),
    /// Only clients from these.
    IpAllow(Vec<IpNetwork>),
    /// No client from these.
    IpDeny(Vec<IpNetwork>),
    /// What pages of other origins may do.
    Cors(Cors),
    /// Requests at a time.
    MaxInFlight(usize),
    /// Spends the budget of this name.
    RateLimit(String),
    /// Only with a token that the gateway verifies.
    Jwt(Jwt),
    /// Only with a key.
    ApiKey(ApiKey),
    /// Only with a password.
    BasicAuth(BasicAuth),
    /// Only if another service says so.
    ForwardAuth(ForwardAuth),
    /// The longest body, in place of the document's bound.
    BodyLimit(u64),
    /// A regular expression and what takes the place of its matches in the path.
    ReplacePath {
        /// Known to compile.
        regex: String,
        /// With `$1` and `${name}` for groups.
        with: String,
    },
    /// What the path loses, if it begins with it; no `/` at its end.
    StripPrefix(String),
    /// What the path begins with then; no `/` at its end.
    AddPrefix(String),
    /// Changes of the head that the endpoint sees.
    RequestHeaders(HeaderEdit),
    /// Changes of the head that the client sees.
    ResponseHeaders(HeaderEdit),
    /// Answers in a coding that the client takes.
    Compress(Compress),
}

/// The id of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestIdPolicy {
    /// Where it is read, and where endpoint and client find it. Default `X-Request-ID`.
    pub header: HeaderName,
    /// Whose id is kept, if it is well-formed. Default anyone's.
    pub trust: TrustId,
}

/// Whose id is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TrustId {
    /// Every client's.
    #[default]
    Anyone,
    /// That of trusted proxies.
    Proxies,
    /// Every request gets a new one.
    Nobody,
}

/// What pages of other origins may do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cors {
    /// `*`: no origin is named, and there are no credentials.
    pub any_origin: bool,
    /// In lower case.
    pub allowed_origins: Vec<Origin>,
    /// Empty: what the preflight asks for.
    pub allowed_methods: Vec<Method>,
    /// Empty: what the preflight asks for.
    pub allowed_headers: Vec<HeaderName>,
    /// Fields of the answer that a page may read.
    pub exposed_headers: Vec<HeaderName>,
    /// Whether cookies and the like may go along.
    pub credentials: bool,
    /// How long a preflight's answer holds.
    pub max_age: Option<Duration>,
}

/// An origin that is allowed, as browsers write it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// This one.
    Exact(String),
    /// Every one whose host lies below a name: `https://*.example.com:8443`.
    Below {
        /// `https://`
        scheme: String,
        /// `.example.com:8443`
        suffix: String,
    },
}

/// Which answers are encoded, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compress {
    /// The first is preferred where the client likes several as well. Default zstd, br, gzip.
    pub codings: Vec<Coding>,
    /// Shorter bodies stay as they are. Default 1 KiB.
    pub min_bytes: u64,
    /// Media types in lower case; `*` stands for the rest at one end.
    pub types: Vec<String>,
}

/// A content coding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    /// RFC 1952.
    Gzip,
    /// RFC 7932.
    Brotli,
    /// RFC 8878.
    Zstd,
}

/// How much may be asked, and by whom it is counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Budget {
    /// Requests in `per`.
    pub rate: u64,
    /// The time in which `rate` requests come back.
    pub per: Duration,
    /// Requests at once, after a rest.
    pub burst: u64,
    /// What has a budget of its own.
    pub key: BudgetKey,
}

/// What has a budget of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BudgetKey {
    /// All requests together.
    Global,
    /// Each client address; of IPv6, each /64.
    ClientAddress,
    /// Each value of a header field.
    Header(HeaderName),
    /// Each value of a claim of the request's token.
    Claim(String),
    /// Each route.
    Route,
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
            Self::RequestId(_) => "request_id",
            Self::IpAllow(_) => "ip_allow",
            Self::IpDeny(_) => "ip_deny",
            Self::Cors(_) => "cors",
            Self::MaxInFlight(_) => "max_in_flight",
            Self::RateLimit(_) => "rate_limit",
            Self::Jwt(_) => "jwt",
            Self::ApiKey(_) => "api_key",
            Self::BasicAuth(_) => "basic_auth",
            Self::ForwardAuth(_) => "forward_auth",
            Self::BodyLimit(_) => "body_limit",
            Self::ReplacePath { .. } => "replace_path",
            Self::StripPrefix(_) => "strip_prefix",
            Self::AddPrefix(_) => "add_prefix",
            Self::RequestHeaders(_) => "request_headers",
            Self::ResponseHeaders(_) => "response_headers",
            Self::Compress(_) => "compress",
        }
    }

    /// Whether a route may have several of it, from several policies: they all hold.
    #[must_use]
    pub fn adds_up(&self) -> bool {
        match self {
            Self::IpAllow(_)
            | Self::IpDeny(_)
            | Self::MaxInFlight(_)
            | Self::RateLimit(_)
            | Self::RequestHeaders(_)
            | Self::ResponseHeaders(_) => true,
            Self::RequestId(_)
            | Self::Cors(_)
            | Self::Jwt(_)
            | Self::ApiKey(_)
            | Self::BasicAuth(_)
            | Self::ForwardAuth(_)
            | Self::BodyLimit(_)
            | Self::ReplacePath { .. }
            | Self::StripPrefix(_)
            | Self::AddPrefix(_)
            | Self::Compress(_) => false,
        }
    }
}

// === impl Compress, Coding ===

impl Default for Compress {
    fn default() -> Self {
        let types = [
            "text/*",
            "application/json",
            "application/javascript",
            "application/xml",
            "application/wasm",
            "image/svg+xml",
            "*+json",
            "*+xml",
        ];
        Self {
            codings: vec![Coding::Zstd, Coding::Brotli, Coding::Gzip],
            min_bytes: 1 << 10,
            types: types.map(str::to_owned).into(),
        }
    }
}

impl Coding {
    /// As in `Content-Encoding`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Brotli => "br",
            Self::Zstd => "zstd",
        }
    }
}
