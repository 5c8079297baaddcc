//! Which requests go where.

use std::time::Duration;

use super::action::{Action, Mirror};

/// Which requests go where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Unique in the document.
    pub name: String,
    /// Names of listeners; empty means every HTTP listener.
    pub listeners: Vec<String>,
    /// Which requests.
    pub matches: Match,
    /// What is done with them.
    pub action: Action,
    /// A copy of some of them.
    pub mirror: Option<Mirror>,
    /// Whether a path with an encoded slash is taken; otherwise it is refused.
    pub allow_encoded_slash: bool,
    /// Names of policies; the data plane has its own order for what they do.
    pub policies: Vec<String>,
    /// Bounds the whole of a request up to the answer's head; overrides the service's `timeouts.request`.
    pub timeout: Option<Duration>,
    /// When a request is sent again; none: only where it never left.
    pub retries: Option<Retries>,
}

/// When a request is sent again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retries {
    /// After the first time. Default 1.
    pub attempts: u32,
    /// After what.
    pub on: RetryOn,
    /// The longest first pause. Default 25 ms.
    pub backoff: Duration,
    /// Of the service's requests. Default 20.
    pub budget_percent: u32,
}

/// After what a request is sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RetryOn {
    /// No connection.
    pub connect: bool,
    /// The connection ended before the answer, or the answer is not HTTP.
    pub reset: bool,
    /// No answer within the service's `timeouts.request`.
    pub timeout: bool,
    /// 502
    pub bad_gateway: bool,
    /// 503
    pub service_unavailable: bool,
    /// 504
    pub gateway_timeout: bool,
}

impl RetryOn {
    /// Whether anything is in it that can happen only once a request was sent.
    #[must_use]
    pub fn is_after_sending(self) -> bool {
        let Self { connect: _, reset, timeout, bad_gateway, service_unavailable, gateway_timeout } = self;
        reset || timeout || bad_gateway || service_unavailable || gateway_timeout
    }
}

impl Default for Retries {
    fn default() -> Self {
        Self {
            attempts: 1,
            on: RetryOn { connect: true, reset: true, ..RetryOn::default() },
            backoff: Duration::from_millis(25),
            budget_percent: 20,
        }
    }
}

/// What a request must look like.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Match {
    /// Which host.
    pub host: HostPattern,
    /// Which path.
    pub path: PathPattern,
    /// Upper-case method names; empty means any.
    pub methods: Vec<String>,
    /// Lower-case names of fields and what they must hold; all of them.
    pub headers: Vec<(String, Wanted)>,
    /// Decoded names of parameters and what they must hold; all of them.
    pub query: Vec<(String, Wanted)>,
}

/// What a field or parameter must hold.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Wanted {
    /// Anything: it is enough that it is there.
    Present,
    /// Exactly this.
    Value(String),
}

/// Which host a route serves. Names are lower case.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum HostPattern {
    /// Any.
    #[default]
    Any,
    /// This one.
    Exact(String),
    /// Every name below this one: `*.example.com` is kept as `example.com`.
    Wildcard(String),
}

/// Which path a route serves.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum PathPattern {
    /// Any.
    #[default]
    Any,
    /// This one.
    Exact(String),
    /// This one and all below it: `/v1` matches `/v1` and `/v1/x`, not `/v10`.
    Prefix(String),
    /// What this regular expression matches from its beginning to its end.
    Regex(String),
}

// === impl Route ===

impl Route {
    /// The services that its requests, and their copies, are sent to.
    pub fn services(&self) -> impl Iterator<Item = &String> {
        let one = match &self.action {
            Action::Service(service) => Some(service),
            Action::Split(_) | Action::Redirect(_) | Action::Respond(_) => None,
        };
        let shares = match &self.action {
            Action::Split(shares) => &shares[..],
            Action::Service(_) | Action::Redirect(_) | Action::Respond(_) => &[],
        };
        let mirror = self.mirror.as_ref().map(|mirror| &mirror.service);
        one.into_iter().chain(shares.iter().map(|share| &share.service)).chain(mirror)
    }
}
