//! `jwt`, `api_key`, `basic_auth`, `forward_auth`: policies that ask who it is.
//!
//! Invariant: no message repeats a secret, a key or a password, nor what stands where one belongs.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    time::Duration,
};

use http::{HeaderName, header};

use super::{
    super::{
        address,
        document::{
            ApiKey, ApiKeys, BasicAuth, ForwardAuth, HOW_TO_HASH_A_KEY, HttpUrl, Jwt, JwtKeys, Secret,
            Service, SkipPath, Users, sha256_hash,
        },
        field::{Field, Keys, Section},
        given,
        jose::{self, Algorithm, KeySet},
        password::{self, PasswordHash},
        problem::shown,
        yaml::Value,
    },
    accept, items,
    policies::editable,
    service_name, timeout,
};

pub(super) const JWT: Keys = Keys {
    known: &[
        "algorithms",
        "secret",
        "secret_file",
        "public_key",
        "public_key_file",
        "jwks_file",
        "jwks_url",
        "issuer",
        "audience",
        "clock_skew",
        "require_exp",
        "optional",
        "skip_paths",
        "forward_claims",
        "forward_credential",
        "realm",
    ],
    later: &[],
};
pub(super) const API_KEY: Keys = Keys {
    known: &["header", "query", "keys", "keys_file", "forward_name", "forward_credential", "realm"],
    later: &[],
};
pub(super) const API_KEY_ITEM: Keys = Keys { known: &["name", "sha256"], later: &[] };
pub(super) const BASIC_AUTH: Keys =
    Keys { known: &["users", "users_file", "forward_user", "forward_credential", "realm"], later: &[] };
pub(super) const FORWARD_AUTH: Keys =
    Keys { known: &["service", "path", "request_headers", "response_headers", "timeout"], later: &[] };

/// Where the keys of a token may come from.
const KEY_SOURCES: &[&str] =
    &["secret", "secret_file", "public_key", "public_key_file", "jwks_file", "jwks_url"];

/// More would let in tokens that have long expired.
const CLOCK_SKEW_MAX: Duration = Duration::from_secs(600);

const REALM: &str = "gogate";

// === jwt ===

pub(super) fn jwt(section: &Section<'_>) -> Option<Jwt> {
    let before = section.field.report.len();
    let algorithms = algorithms(section);
    let keys = jwt_keys(section, &algorithms);
    let texts = |key| section.get(key).map(texts).unwrap_or_default();
    let jwt = Jwt {
        keys: keys?,
        algorithms,
        issuers: texts("issuer"),
        audiences: texts("audience"),
        clock_skew: section
            .get("clock_skew")
            .and_then(|field| field.duration(Duration::ZERO, CLOCK_SKEW_MAX))
            .unwrap_or(Duration::from_secs(60)),
        require_exp: boolean(section, "require_exp", true),
        optional: boolean(section, "optional", false),
        skip_paths: section.get("skip_paths").map(skip_paths).unwrap_or_default(),
        forward_claims: section.get("forward_claims").map(forward_claims).unwrap_or_default(),
        forward_credential: boolean(section, "forward_credential", true),
        realm: realm(section),
    };
    (section.field.report.len() == before).then_some(jwt)
}

fn algorithms(section: &Section<'_>) -> Vec<Algorithm> {
    let names: Vec<&str> = jose::ALGORITHMS.iter().map(|(name, _)| *name).collect();
    let Some(field) = section.get("algorithms") else {
        let suggestion = "add algorithms: [RS256], with what the issuer signs with";
        section.field.problem("`algorithms` is missing", Some(suggestion.into()));
        return Vec::new();
    };
    let mut algorithms: Vec<Algorithm> = Vec::new();
    let empty = ("the list is empty", "name what the issuer signs with, such as RS256");
    for item in items(field, "algorithms", empty) {
        let Some(text) = item.text_as("an algorithm such as RS256") else { continue };
        let Some(algorithm) = jose::algorithm(text) else {
            let (problem, suggestion) = if text.eq_ignore_ascii_case("none") {
                (format!("`{}` would let in tokens that nobody signed", shown(text)), "remove it".to_owned())
            } else {
                (
                    format!("`{}` is not supported", shown(text)),
                    format!("the algorithms are {}", names.join(", ")),
                )
            };
            item.problem(problem, Some(suggestion));
            continue;
        };
        if algorithms.contains(&algorithm) {
            item.problem(format!("`{text}` is in the list already"), Some("remove it".into()));
        } else {
            algorithms.push(algorithm);
        }
    }
    let secret = algorithms.iter().find(|algorithm| jose::is_symmetric(**algorithm));
    let pair = algorithms.iter().find(|algorithm| !jose::is_symmetric(**algorithm));
    if let (Some(secret), Some(pair)) = (secret, pair) {
        field.problem(
            format!("{} needs a secret and {} a key pair", jose::name(*secret), jose::name(*pair)),
            Some("make a policy for each".into()),
        );
        return Vec::new();
    }
    algorithms
}

/// Exactly one source, of a kind that the algorithms can use.
fn jwt_keys(section: &Section<'_>, algorithms: &[Algorithm]) -> Option<JwtKeys> {
    let mut given = KEY_SOURCES.iter().filter_map(|key| Some((*key, section.get(key)?)));
    let Some((key, field)) = given.next() else {
        let suggestion = match algorithms.first() {
            Some(algorithm) if jose::is_symmetric(*algorithm) => "add `secret_file` or `secret`",
            _ => "add `jwks_url`, `jwks_file`, `public_key_file` or `public_key`",
        };
        section.field.problem("nothing to verify a token with", Some(suggestion.into()));
        return None;
    };
    if let Some((other, _)) = given.next() {
        let problem = format!("`{key}` and `{other}` cannot both be set");
        section.field.problem(problem, Some("keep one of them".into()));
        return None;
    }
    if let Some(algorithm) = algorithms.first() {
        let symmetric = jose::is_symmetric(*algorithm);
        let fits = match key {
            "secret" | "secret_file" => symmetric,
            // A secret is not fetched over a network.
            "public_key" | "public_key_file" | "jwks_url" => !symmetric,
            _ => true,
        };
        if !fits {
            let needed = if symmetric {
                "`secret`, `secret_file` or `jwks_file`"
            } else {
                "`public_key`, `public_key_file`, `jwks_file` or `jwks_url`"
            };
            let name = jose::name(*algorithm);
            field.problem(
                format!("{name} cannot be verified with `{key}`"),
                Some(format!("it needs {needed}")),
            );
            return None;
        }
    }
    Some(match key {
        "secret" => JwtKeys::Secret(Secret(hidden_text(field, "a secret")?.to_owned())),
        "secret_file" => JwtKeys::SecretFile(path(field)?),
        "public_key" => {
            let pem = hidden_text(field, "a public key in PEM")?;
            if !algorithms.is_empty() {
                accept(field, KeySet::of_pem(pem, algorithms))?;
            }
            JwtKeys::PublicKey(pem.to_owned())
        }
        "public_key_file" => JwtKeys::PublicKeyFile(path(field)?),
        "jwks_file" => JwtKeys::JwksFile(path(field)?),
        _ => JwtKeys::JwksUrl(accept(field, http_url(field.text_as("a URL")?))?),
    })
}

fn http_url(text: &str) -> Result<HttpUrl, address::Refusal> {
    if text.starts_with("https://") {
        let problem = "`https://` is not supported by this build yet";
        let suggestion =
            "keep the set in a file: `jwks_file`; or http:// where nobody can change what is on the way";
        return Err((problem.into(), Some(suggestion.into())));
    }
    let refuse = || (format!("`{}` is not an http:// URL", shown(text)), None);
    let rest = text.strip_prefix("http://").ok_or_else(refuse)?;
    let (host, target) = rest.find(['/', '?']).map_or((rest, "/"), |place| rest.split_at(place));
    let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
    if target.contains('#') || target.parse::<http::Uri>().is_err() {
        return Err(refuse());
    }
    let has_port = host.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'));
    let address = address::reach(&if has_port { host.to_owned() } else { format!("{host}:80") })?;
    Ok(HttpUrl { address, host: host.to_owned(), target })
}

fn skip_paths(field: &Field<'_>) -> Vec<SkipPath> {
    let mut paths = Vec::new();
    for item in field.list("paths").unwrap_or_default() {
        let Some(text) = item.text_as("a path such as /health") else { continue };
        let (path, below) = match text.strip_suffix("/*") {
            Some(prefix) => (format!("{prefix}/"), true),
            None => (text.to_owned(), false),
        };
        if path.contains('*') {
            let problem = format!("`{}` has a `*` that is not the last segment", shown(text));
            item.problem(problem, Some("/public/* is everything below /public/".into()));
            continue;
        }
        if accept(&item, address::path(&path, false)).is_some() {
            paths.push(if below { SkipPath::Below(path) } else { SkipPath::Exact(path) });
        }
    }
    paths
}

fn forward_claims(field: &Field<'_>) -> Vec<(String, HeaderName)> {
    let mut claims = Vec::new();
    let mut taken: HashMap<HeaderName, &str> = HashMap::new();
    for (claim, field) in field.texts("a mapping from claims to header fields").unwrap_or_default() {
        let Some(name) = forwarded_field(&field) else { continue };
        if let Some(other) = taken.insert(name.clone(), claim) {
            let problem = format!("the claim `{}` is forwarded as `{name}` already", shown(other));
            field.problem(problem, Some("give each claim a field of its own".into()));
            continue;
        }
        claims.push((claim.to_owned(), name));
    }
    claims
}

// === api_key ===

pub(super) fn api_key(section: &Section<'_>) -> Option<ApiKey> {
    let before = section.field.report.len();
    let keys = match (section.get("keys"), section.get("keys_file")) {
        (Some(_), Some(_)) => {
            let problem = "`keys` and `keys_file` cannot both be set";
            section.field.problem(problem, Some("keep one of them".into()));
            None
        }
        (Some(field), None) => api_keys(field).map(ApiKeys::Listed),
        (None, Some(field)) => path(field).map(ApiKeys::File),
        (None, None) => {
            let suggestion = "add keys: [{ name: NAME, sha256: HASH }] or `keys_file`";
            section.field.problem("no key would be let in", Some(suggestion.into()));
            None
        }
    };
    let header = |key, default| match section.get(key) {
        Some(field) => forwarded_field(field).unwrap_or(default),
        None => default,
    };
    let api_key = ApiKey {
        keys: keys?,
        header: header("header", HeaderName::from_static("x-api-key")),
        query: section.get("query").and_then(query),
        forward_name: header("forward_name", HeaderName::from_static("x-consumer")),
        forward_credential: boolean(section, "forward_credential", false),
        realm: realm(section),
    };
    if api_key.header == api_key.forward_name {
        let problem = format!("`{}` cannot have both the key and its name", api_key.header);
        section.field.problem(problem, Some("choose another `forward_name`".into()));
    }
    (section.field.report.len() == before).then_some(api_key)
}

fn api_keys(field: &Field<'_>) -> Option<Vec<(String, [u8; 32])>> {
    let items = field.list("keys")?;
    if items.is_empty() {
        let suggestion = "add { name: NAME, sha256: HASH }";
        field.problem("the list is empty, so no key would be let in", Some(suggestion.into()));
    }
    let mut keys = Vec::with_capacity(items.len());
    let mut lines: HashMap<[u8; 32], usize> = HashMap::new();
    for item in items {
        if given::child(item.node, "key").is_some() {
            let problem = "a key is never written down, its hash is: `sha256`";
            item.problem(problem, Some(HOW_TO_HASH_A_KEY.into()));
            continue;
        }
        let Some(section) = item.section(API_KEY_ITEM) else { continue };
        let missing = |key: &str, suggestion: &str| {
            section.field.problem(format!("`{key}` is missing"), Some(suggestion.into()));
        };
        let name = match section.get("name") {
            Some(field) => field.name(),
            None => {
                missing("name", "add name: with whose key it is");
                None
            }
        };
        let Some(field) = section.get("sha256") else {
            missing("sha256", HOW_TO_HASH_A_KEY);
            continue;
        };
        // A hash of digits alone is a number to YAML.
        let Some(hash) = hidden_text(field, "a SHA-256 hash").and_then(|text| {
            let hash = sha256_hash(text);
            if hash.is_none() {
                field.problem("this is not a SHA-256 hash", Some(HOW_TO_HASH_A_KEY.into()));
            }
            hash
        }) else {
            continue;
        };
        if let Some(line) = lines.insert(hash, item.node.place.line) {
            item.problem(
                format!("this key is there already, on line {line}"),
                Some("keep one of them".into()),
            );
        }
        keys.extend(name.map(|name| (name.to_owned(), hash)));
    }
    Some(keys)
}

/// The name of a query parameter, as it stands in a URL.
fn query(field: &Field<'_>) -> Option<String> {
    let text = field.text_as("the name of a query parameter")?;
    if !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)) {
        let rule = "use letters, digits, `-`, `.`, `_` and `~`";
        field
            .problem(format!("`{}` cannot be the name of a query parameter", shown(text)), Some(rule.into()));
        return None;
    }
    Some(text.to_owned())
}

// === basic_auth ===

pub(super) fn basic_auth(section: &Section<'_>) -> Option<BasicAuth> {
    let before = section.field.report.len();
    let users = match (section.get("users"), section.get("users_file")) {
        (Some(_), Some(_)) => {
            let problem = "`users` and `users_file` cannot both be set";
            section.field.problem(problem, Some("keep one of them".into()));
            None
        }
        (Some(field), None) => users(field).map(Users::Listed),
        (None, Some(field)) => path(field).map(Users::File),
        (None, None) => {
            let suggestion = "add users: { NAME: HASH } or `users_file`, an htpasswd file";
            section.field.problem("nobody would be let in", Some(suggestion.into()));
            None
        }
    };
    let forward_user = match section.get("forward_user") {
        Some(field) => forwarded_field(field),
        None => Some(HeaderName::from_static("x-user")),
    };
    let basic_auth = BasicAuth {
        users: users?,
        forward_user: forward_user?,
        forward_credential: boolean(section, "forward_credential", false),
        realm: realm(section),
    };
    (section.field.report.len() == before).then_some(basic_auth)
}

fn users(field: &Field<'_>) -> Option<BTreeMap<String, PasswordHash>> {
    let pairs = field.texts("a mapping from users to password hashes")?;
    if pairs.is_empty() {
        let suggestion = "add NAME: HASH; htpasswd -nB NAME prints both";
        field.problem("nobody would be let in", Some(suggestion.into()));
    }
    let mut users = BTreeMap::new();
    for (name, field) in pairs {
        if !password::is_user(name) {
            let rule = "users have printable ASCII characters without a `:`";
            field.problem(format!("`{}` cannot be a user", shown(name)), Some(rule.into()));
            continue;
        }
        let Some(text) = hidden_text(&field, "a password hash") else { continue };
        users.extend(accept(&field, PasswordHash::new(text)).map(|hash| (name.to_owned(), hash)));
    }
    Some(users)
}

// === forward_auth ===

pub(super) fn forward_auth(
    section: &Section<'_>,
    services: &BTreeMap<String, Service>,
) -> Option<ForwardAuth> {
    let before = section.field.report.len();
    let service = match section.get("service") {
        Some(field) => service_name(field, services),
        None => {
            let suggestion = "add service: with the name of one under `services`";
            section.field.problem("`service` is missing", Some(suggestion.into()));
            None
        }
    };
    let asked = section.get("path").map_or(Some("/".to_owned()), |field| {
        let text = field.text_as("a path such as /verify")?;
        // A query is no part of what `address::path` judges.
        let (path, query) = text.split_once('?').unwrap_or((text, ""));
        accept(field, address::path(path, false))?;
        if format!("/?{query}").parse::<http::Uri>().is_err() || query.contains('#') {
            field.problem(format!("`{}` has a query that cannot be sent", shown(text)), None);
        }
        Some(text.to_owned())
    });
    let names = |field: &Field<'_>| -> Vec<HeaderName> {
        let items = field.list("names of header fields").unwrap_or_default();
        // Authorization and Cookie are what it is asked about, and what it may answer.
        let name = |item: &Field<'_>| editable(item, item.text_as("the name of a header field")?, &[]);
        items.iter().filter_map(name).collect()
    };
    let forward_auth = ForwardAuth {
        service: service?,
        path: asked?,
        request_headers: section.get("request_headers").map(names),
        response_headers: section.get("response_headers").map(names).unwrap_or_default(),
        timeout: section.get("timeout").and_then(timeout).unwrap_or(Duration::from_secs(5)),
    };
    (section.field.report.len() == before).then_some(forward_auth)
}

// === what they share ===

/// Text that no message repeats.
fn hidden_text<'a>(field: &Field<'a>, expected: &str) -> Option<&'a str> {
    match &field.node.value {
        Value::Scalar { text, .. } if !text.trim().is_empty() => Some(text),
        Value::Scalar { .. } | Value::List(_) | Value::Map(_) => {
            field.problem(format!("expected {expected}"), None);
            None
        }
    }
}

fn path(field: &Field<'_>) -> Option<PathBuf> {
    field.text_as("a file").map(PathBuf::from)
}

fn boolean(section: &Section<'_>, key: &str, default: bool) -> bool {
    section.get(key).and_then(Field::boolean).unwrap_or(default)
}

/// One text or a list of them.
fn texts(field: &Field<'_>) -> Vec<String> {
    if let Value::List(_) = field.node.value {
        let items = field.list("texts").unwrap_or_default();
        if items.is_empty() {
            field.problem(
                "the list is empty, so no token would be let in",
                Some("name one, or remove it".into()),
            );
        }
        return items.iter().filter_map(|item| item.text_as("text")).map(str::to_owned).collect();
    }
    field.text_as("text").map(str::to_owned).into_iter().collect()
}

/// Stands in quotes in WWW-Authenticate.
fn realm(section: &Section<'_>) -> String {
    let Some(field) = section.get("realm") else { return REALM.into() };
    let Some(text) = field.text_as("text") else { return REALM.into() };
    if !text.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\') {
        let rule = "use printable ASCII characters other than `\"` and `\\`";
        field.problem(format!("`{}` cannot be a realm", shown(text)), Some(rule.into()));
    }
    text.to_owned()
}

/// A field that the gateway alone may set: what clients send under its name is taken away.
fn forwarded_field(field: &Field<'_>) -> Option<HeaderName> {
    let name = editable(field, field.text_as("the name of a header field")?, &[])?;
    if name == header::AUTHORIZATION || name == header::COOKIE {
        // Removing them would remove what others need.
        field.problem(format!("`{name}` has a meaning of its own"), Some("choose another field".into()));
        return None;
    }
    Some(name)
}

#[cfg(test)]
#[path = "../tests/check_auth.rs"]
mod tests;
