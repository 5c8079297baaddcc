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
