//! Policies that ask who it is.

use std::{collections::BTreeMap, fmt, path::PathBuf, time::Duration};

use http::HeaderName;

use super::super::{jose::Algorithm, password::PasswordHash};

/// Text that is shown to nobody.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

/// A bearer token that the gateway verifies (RFC 7519, RFC 6750).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Jwt {
    /// What a token may be signed with; not empty, all with a secret or all with a key pair.
    pub algorithms: Vec<Algorithm>,
    /// What it is verified with.
    pub keys: JwtKeys,
    /// One of these must be its `iss`; empty: it is not looked at.
    pub issuers: Vec<String>,
    /// One of these must be in its `aud`; empty: it is not looked at.
    pub audiences: Vec<String>,
    /// How far clocks may be apart. Default 60 s.
    pub clock_skew: Duration,
    /// Whether a token without `exp` is refused. Default true.
    pub require_exp: bool,
    /// Whether a request without a token passes. Default false.
    pub optional: bool,
    /// Where no token is asked for.
    pub skip_paths: Vec<SkipPath>,
    /// Claims and the fields that tell the endpoint.
    pub forward_claims: Vec<(String, HeaderName)>,
    /// Whether the endpoint gets the token. Default true.
    pub forward_credential: bool,
    /// Told to clients that are refused.
    pub realm: String,
}

/// Where the keys of a [`Jwt`] come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JwtKeys {
    /// Shared with the issuer.
    Secret(Secret),
    /// A file with the secret and nothing else.
    SecretFile(PathBuf),
    /// A PEM.
    PublicKey(String),
    /// A file with a PEM.
    PublicKeyFile(PathBuf),
    /// A file with a JWK set.
    JwksFile(PathBuf),
    /// Where a JWK set is fetched.
    JwksUrl(HttpUrl),
}

/// An `http://` URL taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpUrl {
    /// `host:port` to connect to.
    pub address: String,
    /// As the URL has it: the Host field.
    pub host: String,
    /// Path and query.
    pub target: String,
}

/// A path that a policy leaves alone, in normal form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SkipPath {
    /// This one.
    Exact(String),
    /// Everything below this one: written `/public/*`, kept as `/public/`.
    Below(String),
}

/// A key that a client sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// The field that has it. Default `X-API-Key`.
    pub header: HeaderName,
    /// The query parameter that may have it where the field is not there.
    pub query: Option<String>,
    /// Who may come.
    pub keys: ApiKeys,
    /// The field that tells the endpoint whose key it was. Default `X-Consumer`.
    pub forward_name: HeaderName,
    /// Whether the endpoint gets the key. Default false.
    pub forward_credential: bool,
    /// Told to clients that are refused.
    pub realm: String,
}

/// Where the hashes of API keys are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApiKeys {
    /// In the document: names and SHA-256 hashes.
    Listed(Vec<(String, [u8; 32])>),
    /// `name:hash` lines.
    File(PathBuf),
}

/// A user name and a password (RFC 7617).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BasicAuth {
    /// Who may come.
    pub users: Users,
    /// The field that tells the endpoint who came. Default `X-User`.
    pub forward_user: HeaderName,
    /// Whether the endpoint gets the password. Default false.
    pub forward_credential: bool,
    /// Told to clients that are refused.
    pub realm: String,
}

/// Where the hashes of passwords are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Users {
    /// In the document.
    Listed(BTreeMap<String, PasswordHash>),
    /// An htpasswd file.
    File(PathBuf),
}

/// A service that says whether a request may pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardAuth {
    /// A declared service.
    pub service: String,
    /// Path and query that it is asked at.
    pub path: String,
    /// The fields of the request that it sees; none: all.
    pub request_headers: Option<Vec<HeaderName>>,
    /// The fields of its answer that the endpoint gets.
    pub response_headers: Vec<HeaderName>,
    /// Bounds the whole question. Default 5 s.
    pub timeout: Duration,
}

// === impl Secret ===

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

// === impl SkipPath ===

impl SkipPath {
    /// Whether a path in normal form is meant.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => path == exact,
            // Some endpoints read an encoded backslash as a slash, and would climb by it.
            Self::Below(prefix) => path.starts_with(prefix.as_str()) && !path.contains("%5C"),
        }
    }
}

// === impl ApiKeys ===

impl ApiKeys {
    /// The keys of a file: `name:hash` a line, the hash SHA-256 in hexadecimal; empty lines and those that begin
    /// with `#` are skipped.
    ///
    /// # Errors
    /// What is wrong and on which line, without what stands there: it may be a key.
    pub fn parse_file(text: &str) -> Result<Vec<(String, [u8; 32])>, super::super::Refusal> {
        let mut keys: Vec<(String, [u8; 32])> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let refuse = |problem: &str, suggestion: &str| {
                Err((format!("line {}: {problem}", index + 1), Some(suggestion.to_owned())))
            };
            let Some((name, hash)) = line.split_once(':') else {
                return refuse("there is no `:`", "a line is NAME:SHA256");
            };
            if super::super::check_name(name).is_err() {
                return refuse("this cannot be a name", "names have letters, digits, `-`, `_` and `.`");
            }
            let Some(hash) = sha256_hash(hash.trim()) else {
                return refuse("this is not a SHA-256 hash", HOW_TO_HASH_A_KEY);
            };
            if keys.iter().any(|(_, known)| *known == hash) {
                return refuse("this key is there already", "keep one of the lines");
            }
            keys.push((name.to_owned(), hash));
        }
        Ok(keys)
    }
}

/// How an operator gets what is asked for.
pub const HOW_TO_HASH_A_KEY: &str = "printf %s KEY | sha256sum prints the hash, 64 hexadecimal digits";

/// 64 hexadecimal digits.
#[must_use]
pub fn sha256_hash(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let mut hash = [0; 32];
    for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |digit: u8| char::from(digit).to_digit(16);
        *byte = u8::try_from(digit(pair[0])? << 4 | digit(pair[1])?).ok()?;
    }
    Some(hash)
}
