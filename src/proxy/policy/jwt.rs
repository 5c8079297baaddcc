//! `jwt`: a bearer token that the gateway verifies itself.
//!
//! The algorithm is the policy's, never the token's. What the endpoint hears of a token it hears from the gateway
//! alone: fields that claims are forwarded as are taken from the client first, on every path and with or without a
//! token. Claims stay with the request, for limits by claim. Neighbours: `token` judges, `jwks` fetches keys,
//! `config::jose` reads them, `auth` calls.

mod jwks;
mod token;

use std::{
    path::Path,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use http::{HeaderMap, HeaderName, HeaderValue, header};

use self::{
    jwks::Jwks,
    token::{Reason, Token},
};
use super::{
    super::{
        error::ProxyError,
        keeper::{Kept, Watched},
    },
    auth::{self, credential, strip},
};
use crate::config::{
    document::{self, JwtKeys, Secret},
    jose::{self, Algorithm, KeySet},
};

pub(super) use self::token::Claims;

#[derive(Debug)]
pub(super) struct Jwt {
    policy: document::Jwt,
    keys: Keys,
    /// Fields that no client may send.
    forwarded: Vec<HeaderName>,
}

#[derive(Debug)]
enum Keys {
    Fixed(Arc<KeySet>),
    File(Arc<Watched<Arc<KeySet>>>),
    Fetched(Arc<Jwks>),
}

// === impl Jwt ===

impl Jwt {
    pub(super) fn new(name: &str, policy: &document::Jwt) -> Result<Jwt, String> {
        Ok(Jwt {
            keys: Keys::new(name, policy)?,
            forwarded: policy.forward_claims.iter().map(|(_, field)| field.clone()).collect(),
            policy: policy.clone(),
        })
    }

    /// What must be kept fresh for it.
    pub(super) fn kept(&self) -> Option<Arc<dyn Kept>> {
        match &self.keys {
            Keys::Fixed(_) => None,
            Keys::File(file) => Some(Arc::clone(file) as _),
            Keys::Fetched(jwks) => Some(Arc::clone(jwks) as _),
        }
    }

    /// The claims of the request's token; none where it needs none and has none.
    pub(super) async fn check(
        &self,
        headers: &mut HeaderMap,
        path: &str,
    ) -> Result<Option<Box<Claims>>, ProxyError> {
        strip(headers, &self.forwarded);
        if self.policy.skip_paths.iter().any(|skipped| skipped.matches(path)) {
            return Ok(None);
        }
        let text = match credential(headers, "bearer") {
            Ok(Some(text)) => text,
            Ok(None) if self.policy.optional => return Ok(None),
            Ok(None) => return Err(self.refuse(None, "a bearer token is needed")),
            Err(reason) => return Err(self.refuse(Some("invalid_request"), reason)),
        };
        let invalid = |reason| self.refuse(Some("invalid_token"), reason);
        let token = Token::read(text, &self.policy.algorithms).map_err(invalid)?;
        let keys = self.keys.for_token(token.key_id.as_deref()).await?;
        let claims = token.verify(&keys).map_err(invalid)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        claims.check(&self.policy, now.as_secs_f64()).map_err(invalid)?;
        if !self.policy.forward_credential {
            headers.remove(header::AUTHORIZATION);
        }
        for (claim, field) in &self.policy.forward_claims {
            let Some(text) = claims.text(claim) else { continue };
            let value = field_value(&text).ok_or_else(|| invalid("a claim cannot be sent on"))?;
            headers.insert(field.clone(), value);
        }
        Ok(Some(Box::new(claims)))
    }

    /// RFC 6750, section 3: without a token there is no error to name.
    fn refuse(&self, error: Option<&str>, reason: Reason) -> ProxyError {
        let realm = &self.policy.realm;
        let challenge = match error {
            Some(error) => {
                format!("Bearer realm=\"{realm}\", error=\"{error}\", error_description=\"{reason}\"")
            }
            None => format!("Bearer realm=\"{realm}\""),
        };
        ProxyError::unauthorized(auth::challenge(&challenge), reason)
    }
}

/// A claim as a field: control characters would end it, spaces at its ends would be lost.
fn field_value(text: &str) -> Option<HeaderValue> {
    let trimmed = text.trim_matches([' ', '\t']).len() == text.len();
    let clean = !text.bytes().any(|byte| byte.is_ascii_control());
    if trimmed && clean { HeaderValue::from_bytes(text.as_bytes()).ok() } else { None }
}

// === impl Keys ===

impl Keys {
    fn new(name: &str, policy: &document::Jwt) -> Result<Keys, String> {
        let algorithms = policy.algorithms.clone();
        let fixed = |read: Result<KeySet, crate::config::Refusal>| {
            read.map(|keys| Keys::Fixed(Arc::new(keys))).map_err(|(problem, _)| problem)
        };
        let file = |path: &Path, parse: fn(&str, &[Algorithm]) -> Result<KeySet, crate::config::Refusal>| {
            Watched::open(path, move |text| parse(text, &algorithms).map(Arc::new)).map(Keys::File)
        };
        match &policy.keys {
            JwtKeys::Secret(Secret(secret)) => {
                warn_of_short_secret(name, secret.len(), &policy.algorithms);
                fixed(KeySet::of_secret(secret.as_bytes(), &policy.algorithms))
            }
            JwtKeys::PublicKey(pem) => fixed(KeySet::of_pem(pem, &policy.algorithms)),
            // An editor ends a file with a line break, which is no part of a secret.
            JwtKeys::SecretFile(path) => {
                file(path, |text, algorithms| KeySet::of_secret(text.trim_end().as_bytes(), algorithms))
            }
            JwtKeys::PublicKeyFile(path) => file(path, KeySet::of_pem),
            JwtKeys::JwksFile(path) => {
                file(path, |text, algorithms| KeySet::of_jwks(text.as_bytes(), algorithms))
            }
            JwtKeys::JwksUrl(url) => Ok(Keys::Fetched(Jwks::new(url.clone(), policy.algorithms.clone()))),
        }
    }

    /// The keys to verify a token with: where its own is not known and may have come meanwhile, they are fetched.
    async fn for_token(&self, key_id: Option<&str>) -> Result<Arc<KeySet>, ProxyError> {
        const NO_KEYS: ProxyError =
            ProxyError::AuthUnavailable("the keys to verify tokens with are not there yet");
        let jwks = match self {
            Self::Fixed(keys) => return Ok(Arc::clone(keys)),
            Self::File(file) => return Ok(Arc::clone(&file.value())),
            Self::Fetched(jwks) => jwks,
        };
        let mut keys = jwks.keys();
        if keys.is_none() {
            jwks.first().await;
            keys = jwks.keys();
        } else if key_id.is_some_and(|id| keys.as_ref().is_none_or(|keys| !keys.has(id))) {
            jwks.another().await;
            keys = jwks.keys();
        }
        keys.ok_or(NO_KEYS)
    }
}

/// RFC 7518, section 3.2: as long as the hash. Shorter ones can be guessed by whoever has one token.
fn warn_of_short_secret(policy: &str, bytes: usize, algorithms: &[Algorithm]) {
    let needed = |algorithm: &Algorithm| match algorithm {
        Algorithm::HS384 => 48,
        Algorithm::HS512 => 64,
        _ => 32,
    };
    if let Some(algorithm) = algorithms.iter().find(|algorithm| bytes < needed(algorithm)) {
        let (name, needed) = (jose::name(*algorithm), needed(algorithm));
        tracing::warn!(policy, bytes, needed, "the secret is shorter than {name} asks for");
    }
}
