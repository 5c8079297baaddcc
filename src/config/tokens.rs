//! The tokens file: who may call the admin API, and what for.
//!
//! Invariants: a token is never written down, its SHA-256 is; no message repeats what stands where a token or a hash
//! belongs. A fast hash is right: tokens are 256 random bits (`gogate token new`), which nobody guesses from it.
//! Neighbours: `control::admin::auth` asks for the role that a call needs; `gogate token` writes entries.

use std::collections::BTreeMap;

use super::{
    document::{HOW_TO_HASH_A_KEY, sha256_hash},
    field::{Field, Keys, Section, is_null},
    given,
    problem::{Problem, Report, shown},
    yaml::{self, Value},
};

pub(super) const TOP: Keys = Keys { known: &["tokens"], later: &[] };
const ENTRY: Keys = Keys { known: &["name", "sha256", "certificate", "role", "services"], later: &[] };

/// Entries of a file: each call compares its hash with all of them.
pub const ENTRIES_MAX: usize = 1000;

/// What a caller may do; each may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Look at everything but secrets.
    Read,
    /// Register instances of some services, beat for them and remove them.
    Register,
    /// Change the document, and any instance.
    Write,
    /// Change the cluster, and see secrets.
    Admin,
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// Who it is, in the audit log and in the history of documents.
    pub name: String,
    /// What it is told by.
    pub proof: Proof,
    /// What it may do.
    pub role: Role,
    /// Of [`Role::Register`]: the services that it may register instances of.
    pub services: Vec<ServicePattern>,
}

/// What a caller shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proof {
    /// A token with this SHA-256.
    Token([u8; 32]),
    /// A client certificate with this name.
    Certificate(String),
}

/// A name, or how names begin: `api`, `web-*`, `*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePattern {
    text: String,
    is_prefix: bool,
}

/// Reads a tokens file.
///
/// # Errors
/// Every problem, in the order of the text.
pub fn parse(text: &str) -> Result<Vec<Credential>, Vec<Problem>> {
    let root = yaml::parse(text).map_err(|problem| vec![problem])?;
    let report = Report::default();
    let Some(root) = root.filter(|root| !is_null(root)) else {
        return Err(vec![Problem::general("there is no token in it", Some(HOW_TO_MAKE.into()))]);
    };
    let field = Field { node: &root, path: String::new(), report: &report };
    let mut credentials = Vec::new();
    if let Some(top) = field.section(TOP) {
        match top.get("tokens") {
            Some(field) => credentials = entries(field),
            None => field.problem("`tokens` is missing", Some(HOW_TO_MAKE.into())),
        }
    }
    if report.is_empty() { Ok(credentials) } else { Err(report.into_problems()) }
}

const HOW_TO_MAKE: &str = "`gogate token new --name NAME --role ROLE` makes a token and its entry";

fn entries(field: &Field<'_>) -> Vec<Credential> {
    let items = field.list("entries").unwrap_or_default();
    if items.is_empty() {
        field.problem("the list is empty, so nobody would be let in", Some(HOW_TO_MAKE.into()));
    }
    if items.len() > ENTRIES_MAX {
        field.problem(format!("{} entries are more than {ENTRIES_MAX}", items.len()), None);
        return Vec::new();
    }
    let mut names: BTreeMap<String, usize> = BTreeMap::new();
    let mut proofs: Vec<(Proof, usize)> = Vec::new();
    let mut credentials = Vec::new();
    for item in &items {
        if let Some(token) = given::child(item.node, "token") {
            let problem = "a token is never written down, its hash is: `sha256`";
            item.report.add(token.place, &item.path, problem, Some(HOW_TO_HASH_A_KEY.into()));
            continue;
        }
        let Some(credential) = item.section(ENTRY).and_then(|section| entry(&section)) else { continue };
        let line = item.node.place.line;
        if let Some(other) = names.insert(credential.name.clone(), line) {
            let problem = format!("the name `{}` is taken on line {other}", credential.name);
            item.problem(problem, Some("give each its own name: the audit log tells them by it".into()));
        }
        if let Some((_, other)) = proofs.iter().find(|(proof, _)| *proof == credential.proof) {
            let problem = format!("this token or certificate is there already, on line {other}");
            item.problem(problem, Some("keep one of them".into()));
        }
        proofs.push((credential.proof.clone(), line));
        credentials.push(credential);
    }
    credentials
}

fn entry(section: &Section<'_>) -> Option<Credential> {
    let missing = |key: &str, suggestion: &str| {
        section.field.problem(format!("`{key}` is missing"), Some(suggestion.into()));
    };
    let name = match section.get("name") {
        Some(field) => field.name().map(str::to_owned),
        None => {
            missing("name", "add name: with who has it");
            None
        }
    };
    let proof = match (section.get("sha256"), section.get("certificate")) {
        (Some(field), None) => hash(field).map(Proof::Token),
        (None, Some(field)) => {
            field.text_as("a name in the certificate").map(|text| Proof::Certificate(text.to_owned()))
        }
        (Some(_), Some(_)) => {
            let problem = "`sha256` and `certificate` cannot both be set";
            section.field.problem(problem, Some("make an entry for each".into()));
            None
        }
        (None, None) => {
            missing("sha256", HOW_TO_MAKE);
            None
        }
    };
    let role = match section.get("role") {
        Some(field) => field.choice(&["read", "register", "write", "admin"]).map(Role::of),
        None => {
            missing("role", "add role: read, register, write or admin");
            None
        }
    };
    let services = section.get("services").map(services);
    match (role, &services) {
        (Some(Role::Register), None) => {
            missing("services", "add services: [NAME, \"PREFIX-*\"], or [\"*\"] for all");
        }
        (Some(Role::Read | Role::Write | Role::Admin), Some(_)) => {
            section.field.problem(
                "`services` limits the role `register` only",
                Some("remove it, or choose that role".into()),
            );
        }
        _ => {}
    }
    Some(Credential { name: name?, proof: proof?, role: role?, services: services.unwrap_or_default() })
}

fn hash(field: &Field<'_>) -> Option<[u8; 32]> {
    // A hash of digits alone is a number to YAML.
    let hash = match &field.node.value {
        Value::Scalar { text, .. } => sha256_hash(text),
        Value::List(_) | Value::Map(_) => None,
    };
    if hash.is_none() {
        let suggestion = "printf %s TOKEN | sha256sum prints the hash, 64 hexadecimal digits";
        field.problem("this is not a SHA-256 hash", Some(suggestion.into()));
    }
    hash
}

fn services(field: &Field<'_>) -> Vec<ServicePattern> {
    let items = field.list("names of services").unwrap_or_default();
    if items.is_empty() {
        field.problem("the list is empty", Some("name a service, or \"*\" for all".into()));
    }
    let mut patterns = Vec::new();
    for item in items {
        let Some(text) = item.text_as("the name of a service") else { continue };
        match ServicePattern::new(text) {
            Some(pattern) => patterns.push(pattern),
            None => item.problem(
                format!("`{}` cannot be the name of a service", shown(text)),
                Some("a `*` may stand at the end: \"web-*\"".into()),
            ),
        }
    }
    patterns
}

// === impl Role ===

impl Role {
    /// The word for it, as in the file.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Register => "register",
            Self::Write => "write",
            Self::Admin => "admin",
        }
    }

    fn of(word: &str) -> Self {
        match word {
            "admin" => Self::Admin,
            "write" => Self::Write,
            "register" => Self::Register,
            _ => Self::Read,
        }
    }
}

// === impl ServicePattern ===

impl ServicePattern {
    /// None if no service can be called so.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let (name, is_prefix) = match text.strip_suffix('*') {
            Some(prefix) => (prefix, true),
            None => (text, false),
        };
        let is_good = super::check_name(name).is_ok() || (is_prefix && name.is_empty());
        is_good.then(|| Self { text: name.to_owned(), is_prefix })
    }

    /// Whether it means this service.
    #[must_use]
    pub fn matches(&self, service: &str) -> bool {
        if self.is_prefix { service.starts_with(&self.text) } else { service == self.text }
    }
}

impl std::fmt::Display for ServicePattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", self.text, if self.is_prefix { "*" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

    #[track_caller]
    fn problems(text: &str, expected: &str) {
        let problems = parse(text).unwrap_err();
        let lines: Vec<String> = problems.iter().map(|problem| problem.in_file("f")).collect();
        assert_eq!(lines.join("\n"), expected);
    }

    #[test]
    fn entries_say_who_and_what_for() {
        let text = format!(
            "tokens:\n  - {{ name: ci, sha256: {HASH}, role: write }}\n  - {{ name: shop, certificate: shop.internal, role: register, services: [api, \"web-*\"] }}\n"
        );
        let credentials = parse(&text).unwrap();
        assert_eq!((credentials[0].name.as_str(), credentials[0].role), ("ci", Role::Write));
        assert_eq!(credentials[1].proof, Proof::Certificate("shop.internal".into()));
        let matches = |name: &str| credentials[1].services.iter().any(|pattern| pattern.matches(name));
        assert!(matches("api") && matches("web-1") && !matches("api2") && !matches("web"));
        assert!(ServicePattern::new("*").unwrap().matches("anything"));
        assert!(ServicePattern::new("a*b").is_none() && ServicePattern::new("").is_none());
    }

    #[test]
    fn what_is_wrong_is_told_without_what_stands_there() {
        problems(
            "tokens: [{ name: a, token: hunter2, role: read }]\n",
            "f:1: tokens[0]: a token is never written down, its hash is: `sha256` (printf %s KEY | sha256sum prints the hash, 64 hexadecimal digits)",
        );
        problems(
            "tokens:\n  - { name: a, sha256: hunter2, role: reed }\n  - { nam: b, role: register }\n",
            "f:2: tokens[0].sha256: this is not a SHA-256 hash (printf %s TOKEN | sha256sum prints the hash, 64 hexadecimal digits)
f:2: tokens[0].role: expected `read`, `register`, `write` or `admin`, found `reed` (did you mean `read`?)
f:3: tokens[1]: `name` is missing (add name: with who has it)
f:3: tokens[1]: `sha256` is missing (`gogate token new --name NAME --role ROLE` makes a token and its entry)
f:3: tokens[1]: `services` is missing (add services: [NAME, \"PREFIX-*\"], or [\"*\"] for all)
f:3: tokens[1].nam: unknown key `nam` (did you mean `name`?)",
        );
        let twice = format!(
            "tokens:\n  - {{ name: a, sha256: {HASH}, role: read }}\n  - {{ name: a, sha256: {HASH}, role: read, services: [x] }}\n"
        );
        problems(
            &twice,
            "f:3: tokens[1]: `services` limits the role `register` only (remove it, or choose that role)
f:3: tokens[1]: the name `a` is taken on line 2 (give each its own name: the audit log tells them by it)
f:3: tokens[1]: this token or certificate is there already, on line 2 (keep one of them)",
        );
        for nothing in ["", "tokens: []\n", "tokens: [x, y]\n", "{}\n", "a: [\n"] {
            parse(nothing).unwrap_err();
        }
    }
}
