//! Who calls, and whether they may.
//!
//! One table, [`ROUTES`], has every call and the role that it needs. The router looks there before anything else,
//! and what is not in it does not exist: no handler can forget to ask. Invariants: no more of a call than its
//! head, or the one message of gRPC, is read before its caller is known; a token is compared by its hash, in constant time, with all there are; it is
//! neither kept nor logged. Neighbours: `config::tokens` reads who may, `control::credentials` keeps that fresh.

use std::{
    collections::HashMap,
    fmt,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use http::{HeaderMap, Method, header};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::{
    error::ApiError,
    rate::{ChangeRate, Counted},
};
use crate::config::{
    problem::shown,
    tokens::{Credential, Proof, Role},
};

/// A call that there is.
#[derive(Debug)]
pub struct Route {
    /// Its method; a `GET` may be a `HEAD` too.
    pub method: &'static str,
    /// Its path, `{id}` for any segment.
    pub path: &'static str,
    /// The least role that it takes; none: nobody is asked.
    pub needs: Option<Role>,
}

/// Every call of the API.
pub const ROUTES: &[Route] = &[
    // Probes: whoever watches a node has no token for it.
    route("GET", "/livez", None),
    route("GET", "/readyz", None),
    route("GET", "/health", None),
    route("GET", "/", Some(Role::Read)),
    route("GET", "/metrics", Some(Role::Read)),
    route("GET", "/backends", Some(Role::Read)),
    route("GET", "/v1/services", Some(Role::Read)),
    route("POST", "/v1/services", Some(Role::Register)),
    route("GET", "/v1/services/{id}", Some(Role::Read)),
    route("DELETE", "/v1/services/{id}", Some(Role::Register)),
    route("PUT", "/v1/services/{id}/heartbeat", Some(Role::Register)),
    route("GET", "/v1/config", Some(Role::Read)),
    route("PUT", "/v1/config", Some(Role::Write)),
    route("PATCH", "/v1/config", Some(Role::Write)),
    route("GET", "/v1/config/versions", Some(Role::Read)),
    route("GET", "/v1/config/diff", Some(Role::Read)),
    route("GET", "/v1/config/status", Some(Role::Read)),
    route("POST", "/v1/config/rollback", Some(Role::Write)),
    route("GET", "/v1/cluster", Some(Role::Read)),
    route("POST", "/v1/cluster/members", Some(Role::Admin)),
    route("DELETE", "/v1/cluster/members/{id}", Some(Role::Admin)),
    route("POST", "/v1/cluster/members/{id}/promote", Some(Role::Admin)),
    route("POST", "/v1/cluster/transfer-leader", Some(Role::Admin)),
    // It has every secret in it.
    route("GET", "/v1/cluster/backup", Some(Role::Admin)),
    route("POST", "/v1/cluster/restore", Some(Role::Admin)),
    route("POST", "/v1/cluster/snapshot", Some(Role::Admin)),
    route("POST", "/v1/node/drain", Some(Role::Admin)),
    route("GET", "/v1/watch", Some(Role::Read)),
];

const fn route(method: &'static str, path: &'static str, needs: Option<Role>) -> Route {
    Route { method, path, needs }
}

/// Wrong tokens that an address may show within [`GUESS_WINDOW`]. One that is shown again is no new guess: a client
/// with an old token is not locked out, nor those beside it.
const GUESSES_MAX: usize = 10;

/// From the first guess until it is forgotten.
const GUESS_WINDOW: Duration = Duration::from_secs(60);

/// Refusals of one address that are logged within [`GUESS_WINDOW`].
const TOLD_MAX: u32 = 20;

/// Addresses that are remembered; beyond, the one that has been for longest is forgotten.
const ADDRESSES_MAX: usize = 4096;

/// A longer token is nobody's.
const TOKEN_BYTES_MAX: usize = 1024;

/// Where a call comes from.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The other end of the connection.
    pub address: SocketAddr,
    /// The names in its certificate, if it showed one that was verified.
    pub names: Arc<[String]>,
}

/// Who calls.
#[derive(Debug, Clone)]
pub struct Caller {
    /// None: nobody is asked who they are.
    who: Option<Arc<Credential>>,
    address: IpAddr,
}

/// Who may call this node.
#[derive(Debug)]
pub struct Access {
    known: ArcSwap<Known>,
    refused: Mutex<Refused>,
    changes: ChangeRate,
}

#[derive(Debug)]
enum Known {
    /// Without credentials: everybody who reaches it, which loopback or `--insecure` answers for.
    Anyone,
    /// Everybody with a certificate, which was verified before anything came.
    Certificates,
    /// These.
    Listed(Vec<Arc<Credential>>),
}

/// What addresses were refused, in the last minute.
#[derive(Debug, Default)]
struct Refused {
    addresses: HashMap<IpAddr, Failures>,
}

#[derive(Debug)]
struct Failures {
    since: Instant,
    /// The beginnings of the hashes of wrong tokens.
    guesses: Vec<u64>,
    told: u32,
}

/// The row of a call, or that there is none.
pub(super) fn find(method: &Method, parts: &[&str], path: &str) -> Result<&'static Route, ApiError> {
    let method = if method == Method::HEAD { "GET" } else { method.as_str() };
    let mut allow = Vec::new();
    for route in ROUTES.iter().filter(|route| route.is_at(parts)) {
        if route.method == method {
            return Ok(route);
        }
        allow.push(route.method);
        if route.method == "GET" {
            allow.push("HEAD");
        }
    }
    if allow.is_empty() {
        return Err(unknown_path(path));
    }
    allow.sort_unstable();
    Err(ApiError::Method { allow: allow.join(", ") })
}

/// The answer where nothing is.
pub(super) fn unknown_path(path: &str) -> ApiError {
    ApiError::NotFound(format!("nothing is at `{}`; GET / lists what there is", shown(path)))
}

// === impl Route ===

impl Route {
    fn is_at(&self, parts: &[&str]) -> bool {
        let mut own = self.path[1..].split('/');
        let fits = |own: &str, part: &&str| own == "{id}" || own == *part;
        parts.iter().all(|part| own.next().is_some_and(|own| fits(own, part))) && own.next().is_none()
    }

    /// Whether it is worth a line in the audit log: it changes something, or hands everything out.
    pub(super) fn is_audited(&self) -> bool {
        let is_change = self.method != "GET" && !self.path.ends_with("/heartbeat");
        is_change || self.path == "/v1/cluster/backup"
    }

    /// Whether a caller may ask for it so many times a second only: it is read, compiled or agreed on by all nodes.
    /// A node's way out is always open.
    fn is_counted(&self) -> bool {
        self.method != "GET" && self.needs >= Some(Role::Write) && self.path != "/v1/node/drain"
    }
}

// === impl Access ===

impl Access {
    /// `listed`: the tokens file's content, if there is one; `certificates`: whether clients can show one;
    /// `change_rate`: changes of the document and of the cluster that a caller may ask for each second.
    #[must_use]
    pub fn new(listed: Option<Vec<Credential>>, certificates: bool, change_rate: u32) -> Self {
        let known = match (listed, certificates) {
            (Some(listed), _) => Known::listed(listed),
            (None, true) => Known::Certificates,
            (None, false) => Known::Anyone,
        };
        let (known, changes) = (ArcSwap::from_pointee(known), ChangeRate::new(change_rate));
        Self { known, refused: Mutex::default(), changes }
    }

    /// From now on these may call, and nobody else.
    pub fn replace(&self, listed: Vec<Credential>) {
        self.known.store(Arc::new(Known::listed(listed)));
    }

    /// Who makes a call, if it has to be known.
    pub(super) fn identify(
        &self,
        route: &Route,
        headers: &HeaderMap,
        origin: &Origin,
    ) -> Result<Caller, ApiError> {
        let address = origin.address.ip().to_canonical();
        let known = self.known.load();
        let who = match &**known {
            _ if route.needs.is_none() => None,
            Known::Anyone => None,
            Known::Certificates => match origin.names.first() {
                Some(name) => Some(Arc::new(Credential {
                    name: name.clone(),
                    proof: Proof::Certificate(name.clone()),
                    role: Role::Admin,
                    services: Vec::new(),
                })),
                None => {
                    let detail = "this call needs a client certificate (of the CA in `admin.tls.client_ca`)";
                    return Err(ApiError::Unauthenticated { detail: detail.into(), is_wrong: false });
                }
            },
            Known::Listed(listed) => Some(self.of(listed, bearer(headers)?, origin, address)?),
        };
        Ok(Caller { who, address })
    }

    fn of(
        &self,
        listed: &[Arc<Credential>],
        token: Option<&[u8]>,
        origin: &Origin,
        address: IpAddr,
    ) -> Result<Arc<Credential>, ApiError> {
        let Some(token) = token else {
            let is_named = |credential: &&Arc<Credential>| matches!(&credential.proof, Proof::Certificate(name) if origin.names.contains(name));
            return listed.iter().find(is_named).cloned().ok_or_else(|| {
                let detail = if origin.names.is_empty() {
                    "this call needs a token: send `Authorization: Bearer TOKEN` (the command line takes --token and GOGATE_TOKEN)"
                } else {
                    "no entry of the tokens file names this certificate, and there is no token"
                };
                ApiError::Unauthenticated { detail: detail.into(), is_wrong: false }
            });
        };
        // Before it is looked at: who guesses must not learn from the answer.
        if let Some(left) = self.refused().blocked(address, Instant::now()) {
            return Err(ApiError::TooManyGuesses { seconds: left.as_secs() + 1 });
        }
        let hash: [u8; 32] = Sha256::digest(token).into();
        let mut found = None;
        // All are compared, whichever it is.
        for credential in listed {
            if let Proof::Token(known) = &credential.proof
                && bool::from(known.ct_eq(&hash))
            {
                found = Some(credential);
            }
        }
        found.cloned().filter(|_| token.len() <= TOKEN_BYTES_MAX).ok_or_else(|| {
            let guess = u64::from_le_bytes(hash[..8].try_into().expect("8 of 32 bytes"));
            self.refused().guessed(address, guess, Instant::now());
            let detail = "the token is not known to this node";
            ApiError::Unauthenticated { detail: detail.into(), is_wrong: true }
        })
    }

    /// Refuses a change to whoever asks for them too fast.
    pub(super) fn check_rate(&self, route: &Route, caller: &Caller) -> Result<(), ApiError> {
        if !route.is_counted() {
            return Ok(());
        }
        let counted = match caller.name() {
            Some(name) => Counted::Named(name.to_owned()),
            None => Counted::From(network(caller.address)),
        };
        self.changes.take(counted, Instant::now()).map_err(|too_fast| ApiError::TooManyChanges {
            caller: caller.to_string(),
            per_second: too_fast.per_second,
            seconds: too_fast.wait.as_secs() + 1,
        })
    }

    /// Whether a refusal is to be logged, and whether it is the last one for a while.
    pub(super) fn tells(&self, origin: &Origin) -> Option<bool> {
        self.refused().tells(origin.address.ip().to_canonical(), Instant::now())
    }

    fn refused(&self) -> std::sync::MutexGuard<'_, Refused> {
        self.refused.lock().expect("nothing panics under this lock")
    }
}

/// The one token of a call.
fn bearer(headers: &HeaderMap) -> Result<Option<&[u8]>, ApiError> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let token = value.as_bytes().split_at_checked(7).filter(|(scheme, token)| {
        scheme.eq_ignore_ascii_case(b"bearer ") && !token.trim_ascii().is_empty() && values.next().is_none()
    });
    match token {
        Some((_, token)) => Ok(Some(token.trim_ascii())),
        None => {
            let detail = "`Authorization` is to be there once, as `Bearer TOKEN`";
            Err(ApiError::Unauthenticated { detail: detail.into(), is_wrong: false })
        }
    }
}

// === impl Known ===

impl Known {
    fn listed(credentials: Vec<Credential>) -> Self {
        Self::Listed(credentials.into_iter().map(Arc::new).collect())
    }
}

// === impl Refused ===

impl Refused {
    /// For how long an address is not listened to.
    fn blocked(&self, address: IpAddr, now: Instant) -> Option<Duration> {
        let failures = self.addresses.get(&network(address))?;
        let left = GUESS_WINDOW.checked_sub(now.saturating_duration_since(failures.since))?;
        (failures.guesses.len() >= GUESSES_MAX).then_some(left)
    }

    fn guessed(&mut self, address: IpAddr, guess: u64, now: Instant) {
        let failures = self.of(address, now);
        if !failures.guesses.contains(&guess) && failures.guesses.len() < GUESSES_MAX {
            failures.guesses.push(guess);
        }
    }

    fn tells(&mut self, address: IpAddr, now: Instant) -> Option<bool> {
        let failures = self.of(address, now);
        failures.told = failures.told.saturating_add(1);
        (failures.told <= TOLD_MAX).then_some(failures.told == TOLD_MAX)
    }

    fn of(&mut self, address: IpAddr, now: Instant) -> &mut Failures {
        let address = network(address);
        let is_over = |failures: &Failures| now.saturating_duration_since(failures.since) >= GUESS_WINDOW;
        if self.addresses.len() >= ADDRESSES_MAX && !self.addresses.contains_key(&address) {
            self.addresses.retain(|_, failures| !is_over(failures));
            if self.addresses.len() >= ADDRESSES_MAX {
                let oldest = self.addresses.iter().min_by_key(|(_, failures)| failures.since);
                if let Some(oldest) = oldest.map(|(address, _)| *address) {
                    self.addresses.remove(&oldest);
                }
            }
        }
        let fresh = || Failures { since: now, guesses: Vec::new(), told: 0 };
        let failures = self.addresses.entry(address).or_insert_with(fresh);
        if is_over(failures) {
            *failures = fresh();
        }
        failures
    }
}

/// Whoever has one address of IPv6 has its /64.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) & !u128::from(u64::MAX)).into()),
    }
}

// === impl Caller ===

impl Caller {
    /// Who it is, if that was asked.
    pub(super) fn name(&self) -> Option<&str> {
        self.who.as_ref().map(|who| who.name.as_str())
    }

    /// What it may do.
    pub(super) fn role(&self) -> Role {
        self.who.as_ref().map_or(Role::Admin, |who| who.role)
    }

    /// Refuses a call that its role does not cover.
    pub(super) fn check_role(&self, route: &Route) -> Result<(), ApiError> {
        match route.needs {
            Some(needed) if self.role() < needed => Err(self.refusal(&format!(
                "{} {} needs the role {}",
                route.method,
                route.path,
                needed.word()
            ))),
            _ => Ok(()),
        }
    }

    /// Whether it may do so with some services only.
    pub(super) fn is_limited(&self) -> bool {
        self.role() == Role::Register
    }

    /// Refuses what concerns another service than it may register instances of.
    pub(super) fn check_service(&self, service: &str) -> Result<(), ApiError> {
        let Some(who) = self.who.as_ref().filter(|_| self.is_limited()) else { return Ok(()) };
        if who.services.iter().any(|pattern| pattern.matches(service)) {
            return Ok(());
        }
        let own: Vec<String> = who.services.iter().map(ToString::to_string).collect();
        Err(self.refusal(&format!("limited to the services {}, not `{}`", own.join(", "), shown(service))))
    }

    /// Refuses secrets to whoever is no admin.
    pub(super) fn check_secrets(&self) -> Result<(), ApiError> {
        if self.role() == Role::Admin {
            return Ok(());
        }
        Err(self.refusal("secrets are shown to the role admin"))
    }

    fn refusal(&self, why: &str) -> ApiError {
        let (name, role) = (self.name().unwrap_or("-"), self.role().word());
        ApiError::NotAllowed { detail: format!("`{name}` has the role {role}: {why}; nothing was done") }
    }
}

/// As the history of documents has it.
impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "{name} from {}", self.address),
            None => write!(f, "{}", self.address),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tokens;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn origin(names: &[&str]) -> Origin {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        Origin { address: "10.0.0.1:5".parse().unwrap(), names: names.into() }
    }

    fn access() -> Access {
        let hash = |token: &str| {
            let hash: [u8; 32] = Sha256::digest(token).into();
            hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
        };
        let text = format!(
            "tokens:\n  - {{ name: r, sha256: {}, role: read }}\n  - {{ name: g, sha256: {}, role: register, services: [api] }}\n  - {{ name: c, certificate: c.internal, role: admin }}\n",
            hash("reading"),
            hash("registering")
        );
        Access::new(Some(tokens::parse(&text).unwrap()), true, 1)
    }

    fn row(method: &'static str, path: &'static str) -> &'static Route {
        ROUTES.iter().find(|route| route.method == method && route.path == path).unwrap()
    }

    fn with(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())])
    }

    #[test]
    fn a_call_is_found_by_its_path_and_then_its_method() {
        let find = |method: Method, path: &str| {
            let parts: Vec<&str> = path[1..].split('/').collect();
            find(&method, &parts, path).map(|route| route.path)
        };
        assert_eq!(find(Method::HEAD, "/"), Ok("/"));
        assert_eq!(find(Method::PUT, "/v1/services/a/heartbeat"), Ok("/v1/services/{id}/heartbeat"));
        assert_eq!(
            find(Method::PATCH, "/v1/services"),
            Err(ApiError::Method { allow: "GET, HEAD, POST".into() })
        );
        assert!(matches!(find(Method::GET, "/v1/services/a/b"), Err(ApiError::NotFound(_))));
        assert!(matches!(find(Method::GET, "/v1"), Err(ApiError::NotFound(_))));
    }

    #[test]
    fn callers_are_told_by_token_or_certificate() {
        let (access, call) = (access(), row("POST", "/v1/services"));
        let who = |headers: &HeaderMap, names: &[&str]| {
            access.identify(call, headers, &origin(names)).map(|caller| caller.name().map(str::to_owned))
        };
        assert_eq!(who(&with("bearer  registering "), &[]), Ok(Some("g".into())));
        assert_eq!(who(&HeaderMap::new(), &["x", "c.internal"]), Ok(Some("c".into())));
        for (headers, names) in [
            (with("Bearer wrong"), &["c.internal"][..]),
            (with("Basic registering"), &[]),
            (with("Bearer "), &[]),
            (HeaderMap::new(), &["other.internal"]),
        ] {
            assert!(matches!(who(&headers, names), Err(ApiError::Unauthenticated { .. })), "{headers:?}");
        }
        let mut twice = with("Bearer registering");
        twice.append(header::AUTHORIZATION, "Bearer registering".parse().unwrap());
        assert!(who(&twice, &[]).is_err());
        let probe = access.identify(row("GET", "/livez"), &with("Bearer wrong"), &origin(&[])).unwrap();
        assert_eq!(probe.name(), None);
    }

    #[test]
    fn a_role_covers_its_calls_and_a_registrar_its_services() {
        let access = access();
        let caller = |token: &str| {
            access.identify(row("GET", "/"), &with(&format!("Bearer {token}")), &origin(&[])).unwrap()
        };
        let (reader, registrar) = (caller("reading"), caller("registering"));
        assert!(reader.check_role(row("GET", "/v1/config")).is_ok());
        assert!(reader.check_role(row("POST", "/v1/services")).is_err());
        assert!(registrar.check_role(row("POST", "/v1/services")).is_ok());
        assert!(registrar.check_role(row("PUT", "/v1/config")).is_err());
        assert!(registrar.check_service("api").is_ok());
        let refusal = registrar.check_service("web").unwrap_err();
        assert!(refusal.to_string().contains("limited to the services api, not `web`"), "{refusal}");
        assert!(registrar.check_secrets().is_err());
    }

    #[test]
    fn guesses_are_counted_and_a_repeated_one_is_none() {
        let (mut refused, now) = (Refused::default(), Instant::now());
        let (one, other) = (address("10.0.0.1"), address("10.0.0.2"));
        for _ in 0..1000 {
            refused.guessed(one, 7, now);
        }
        assert_eq!(refused.blocked(one, now), None);
        for guess in 0..10 {
            refused.guessed(one, guess, now);
        }
        assert_eq!(refused.blocked(one, now), Some(GUESS_WINDOW));
        assert_eq!(refused.blocked(other, now), None);
        assert_eq!(refused.blocked(one, now + GUESS_WINDOW + Duration::from_millis(1)), None);
        refused.guessed(one, 1, now + GUESS_WINDOW);
        assert_eq!(refused.blocked(one, now + GUESS_WINDOW), None, "it begins anew");
    }

    #[test]
    fn what_is_remembered_of_refusals_is_bounded() {
        let (mut refused, now) = (Refused::default(), Instant::now());
        for number in 0..ADDRESSES_MAX + 100 {
            let address = IpAddr::V4(std::net::Ipv4Addr::from(u32::try_from(number).unwrap()));
            for guess in 0..=10 {
                refused.guessed(address, guess, now);
            }
        }
        assert_eq!(refused.addresses.len(), ADDRESSES_MAX);
        assert!(refused.addresses.values().all(|failures| failures.guesses.len() <= GUESSES_MAX));
        assert_eq!(network(address("fd00::1:2:3:4")), network(address("fd00::5")));
        let told = (0..100).filter_map(|_| refused.tells(address("::1"), now)).collect::<Vec<_>>();
        assert_eq!((told.len(), told.last()), (20, Some(&true)));
    }
}
