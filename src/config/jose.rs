//! Keys that tokens are verified with, as operators and issuers write them: a secret, a PEM, a JWK set.
//!
//! Job: text → [`KeySet`]. Invariants: a key knows which algorithms it may verify, from the policy's list, its own
//! kind and its own `alg`, before it meets a token: a token chooses among them and adds none (RFC 8725, section
//! 3.1). So a public key is never an HMAC secret. No key is in a message, a log line or `Debug` output.
//! Neighbours: `check` judges what the document holds, `proxy::policy::jwt` reads files and answers.

use std::fmt;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{AlgorithmFamily, DecodingKey, crypto::aws_lc::DEFAULT_PROVIDER};
use serde::Deserialize;

use super::{address::Refusal, problem::shown};

pub use jsonwebtoken::Algorithm;

/// Every algorithm, in the order in which messages list them.
pub const ALGORITHMS: &[(&str, Algorithm)] = &[
    ("HS256", Algorithm::HS256),
    ("HS384", Algorithm::HS384),
    ("HS512", Algorithm::HS512),
    ("RS256", Algorithm::RS256),
    ("RS384", Algorithm::RS384),
    ("RS512", Algorithm::RS512),
    ("PS256", Algorithm::PS256),
    ("PS384", Algorithm::PS384),
    ("PS512", Algorithm::PS512),
    ("ES256", Algorithm::ES256),
    ("ES384", Algorithm::ES384),
    ("EdDSA", Algorithm::EdDSA),
];

/// Keys of a set that are kept; what is beyond is left out.
const KEYS_MAX: usize = 64;
/// Keys that a token without a key id is tried with: each try costs a verification.
const TRIED_MAX: usize = 4;
/// Smaller ones are not verified with (RFC 7518, section 3.3).
const RSA_BITS_MIN: usize = 2048;
/// Larger ones cost too much.
const RSA_BITS_MAX: usize = 8192;

/// The keys of a policy.
#[derive(Debug, Clone)]
pub struct KeySet {
    keys: Vec<Key>,
    /// From a JWK set: a token's key id must be one of these. A single key has no id, and a token's is not looked at.
    named: bool,
    /// Keys of the set that the policy's algorithms have no use for.
    unusable: usize,
}

/// One key and what it may verify.
#[derive(Clone)]
pub struct Key {
    id: Option<String>,
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
}

/// A JWK (RFC 7517, section 4) as far as verification needs it. Whatever else a key says is not looked at.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
    k: Option<String>,
}

#[derive(Deserialize)]
struct JwkSet {
    keys: Vec<serde_json::Value>,
}

/// The algorithm of a name.
#[must_use]
pub fn algorithm(name: &str) -> Option<Algorithm> {
    ALGORITHMS.iter().find(|(known, _)| *known == name).map(|(_, algorithm)| *algorithm)
}

/// The name of an algorithm.
#[must_use]
pub fn name(algorithm: Algorithm) -> &'static str {
    ALGORITHMS.iter().find(|(_, known)| *known == algorithm).map_or("", |(name, _)| name)
}

/// Whether the algorithm's key is a shared secret.
#[must_use]
pub fn is_symmetric(algorithm: Algorithm) -> bool {
    algorithm.family() == AlgorithmFamily::Hmac
}

// === impl KeySet ===

impl KeySet {
    /// A shared secret.
    ///
    /// # Errors
    /// What is wrong, without the secret.
    pub fn of_secret(secret: &[u8], algorithms: &[Algorithm]) -> Result<KeySet, Refusal> {
        if secret.is_empty() {
            return Err(("the secret is empty".into(), None));
        }
        let algorithms: Vec<_> = algorithms.iter().copied().filter(|known| is_symmetric(*known)).collect();
        let key = Key { id: None, algorithms, key: DecodingKey::from_secret(secret) };
        Ok(KeySet { keys: vec![key], named: false, unusable: 0 })
    }

    /// A public key in PEM.
    ///
    /// # Errors
    /// What is wrong, without the key.
    pub fn of_pem(pem: &str, algorithms: &[Algorithm]) -> Result<KeySet, Refusal> {
        let refuse = |problem: &str, suggestion: &str| Err((problem.into(), Some(suggestion.into())));
        if pem.contains("PRIVATE KEY-----") {
            return refuse(
                "this is a private key, which only the issuer may have",
                "openssl pkey -in FILE -pubout prints its public key",
            );
        }
        if pem.contains("BEGIN CERTIFICATE-----") {
            return refuse(
                "this is a certificate",
                "openssl x509 -in FILE -pubkey -noout prints its public key",
            );
        }
        if !pem.contains("BEGIN PUBLIC KEY-----") && !pem.contains("BEGIN RSA PUBLIC KEY-----") {
            return refuse("this is not a PEM", "a public key begins with -----BEGIN PUBLIC KEY-----");
        }
        let bytes = pem.as_bytes();
        let read = DecodingKey::from_rsa_pem(bytes)
            .or_else(|_| DecodingKey::from_ec_pem(bytes))
            .or_else(|_| DecodingKey::from_ed_pem(bytes));
        let Ok(key) = read else {
            return refuse("this PEM holds no RSA, EC or Ed25519 public key", "check that it is whole");
        };
        let may = of_key(&key).map_err(|problem| (problem, None))?;
        let usable: Vec<_> = algorithms.iter().copied().filter(|known| may.contains(known)).collect();
        if usable.is_empty() {
            let may: Vec<_> = may.iter().map(|algorithm| name(*algorithm)).collect();
            return Err((
                "none of the policy's algorithms can be verified with this key".into(),
                Some(format!("it is for {}", may.join(", "))),
            ));
        }
        Ok(KeySet { keys: vec![Key { id: None, algorithms: usable, key }], named: false, unusable: 0 })
    }

    /// A JWK set (RFC 7517, section 5). Keys that the algorithms have no use for are left out.
    ///
    /// # Errors
    /// What is wrong, without any key.
    pub fn of_jwks(json: &[u8], algorithms: &[Algorithm]) -> Result<KeySet, Refusal> {
        let set: JwkSet = serde_json::from_slice(json).map_err(|_| {
            let suggestion = "a JWK set is JSON: {\"keys\": [{\"kty\": \"RSA\", …}]}";
            ("this is not a JWK set".to_owned(), Some(suggestion.to_owned()))
        })?;
        let mut keys = Vec::new();
        let (all, mut why) = (set.keys.len(), None);
        for value in set.keys.into_iter().take(KEYS_MAX) {
            match Key::of_jwk(value, algorithms) {
                Ok(key) => keys.push(key),
                Err(reason) => why = why.or(Some(reason)),
            }
        }
        if keys.is_empty() {
            let names: Vec<_> = algorithms.iter().map(|algorithm| name(*algorithm)).collect();
            let problem = format!("the JWK set has no key for {}", names.join(", "));
            return Err((problem, why.map(|why| format!("its first key: {why}"))));
        }
        let unusable = all - keys.len();
        Ok(KeySet { keys, named: true, unusable })
    }

    /// Keys of the set that were left out.
    #[must_use]
    pub fn unusable(&self) -> usize {
        self.unusable
    }

    /// How many keys there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether a key of this id is here; any id is where keys have none.
    #[must_use]
    pub fn has(&self, id: &str) -> bool {
        !self.named || self.keys.iter().any(|key| key.id.as_deref() == Some(id))
    }

    /// The keys that may verify a token of this key id and algorithm.
    pub fn candidates(&self, id: Option<&str>, algorithm: Algorithm) -> impl Iterator<Item = &Key> {
        let id = id.filter(|_| self.named);
        let fits = move |key: &&Key| {
            key.algorithms.contains(&algorithm) && id.is_none_or(|id| key.id.as_deref() == Some(id))
        };
        self.keys.iter().filter(fits).take(TRIED_MAX)
    }
}

// === impl Key ===

impl Key {
    /// Whether `signature`, base64url, is this key's for `message`.
    #[must_use]
    pub fn verifies(&self, algorithm: Algorithm, message: &[u8], signature: &str) -> bool {
        // The caller has asked `candidates`; a key is held to its own list all the same.
        self.algorithms.contains(&algorithm)
            && jsonwebtoken::crypto::verify(signature, message, &self.key, algorithm).unwrap_or(false)
    }

    /// The reason says what the key is for, never what it is.
    fn of_jwk(value: serde_json::Value, algorithms: &[Algorithm]) -> Result<Key, String> {
        let jwk: Jwk = serde_json::from_value(value).map_err(|_| "it is not a JWK".to_owned())?;
        if jwk.usage.as_deref().is_some_and(|usage| usage != "sig") {
            return Err("its `use` is not `sig`".into());
        }
        if jwk.key_ops.as_ref().is_some_and(|operations| operations.iter().all(|name| name != "verify")) {
            return Err("its `key_ops` have no `verify`".into());
        }
        let part = |part: &Option<String>, name: &str| {
            let text = part.as_deref().filter(|text| !text.is_empty());
            let bytes = text.and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
            bytes.ok_or_else(|| format!("its `{name}` is not there or not base64url"))
        };
        let key = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
            ("oct", _) => DecodingKey::from_secret(&part(&jwk.k, "k")?),
            ("RSA", _) => {
                let (modulus, exponent) = (part(&jwk.n, "n")?, part(&jwk.e, "e")?);
                DecodingKey::from_rsa_raw_components(&modulus, &exponent)
            }
            ("EC", Some("P-256" | "P-384")) => {
                // Uncompressed (SEC 1, section 2.3.3), as the verifier takes it.
                let point = [vec![4], part(&jwk.x, "x")?, part(&jwk.y, "y")?].concat();
                DecodingKey::from_ec_der(&point)
            }
            ("OKP", Some("Ed25519")) => DecodingKey::from_ed_der(&part(&jwk.x, "x")?),
            (kind, curve) => {
                return Err(format!("its kind is {} {}", shown(kind), shown(curve.unwrap_or_default())));
            }
        };
        let may = of_key(&key)?;
        let own = jwk.alg.as_deref();
        let usable = |known: &Algorithm| may.contains(known) && own.is_none_or(|own| own == name(*known));
        let algorithms: Vec<_> = algorithms.iter().copied().filter(usable).collect();
        if algorithms.is_empty() {
            let what = own.map_or_else(|| format!("of the kind {}", shown(&jwk.kty)), shown);
            return Err(format!("it is for other algorithms, {what}"));
        }
        Ok(Key { id: jwk.kid, algorithms, key })
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key")
            .field("id", &self.id)
            .field("algorithms", &self.algorithms)
            .finish_non_exhaustive()
    }
}

/// What a key can verify by its kind and size.
fn of_key(key: &DecodingKey) -> Result<Vec<Algorithm>, String> {
    let bytes = key.try_get_as_bytes().unwrap_or_default();
    match (key.family(), bytes.len()) {
        (AlgorithmFamily::Hmac, 0) => Err("it is empty".into()),
        (family @ AlgorithmFamily::Hmac, _) => Ok(family.algorithms().to_vec()),
        (family @ AlgorithmFamily::Rsa, _) => {
            let bits = modulus_bits(key).ok_or("it is not an RSA public key")?;
            if !(RSA_BITS_MIN..=RSA_BITS_MAX).contains(&bits) {
                return Err(format!("its {bits} bits are not from {RSA_BITS_MIN} to {RSA_BITS_MAX}"));
            }
            Ok(family.algorithms().to_vec())
        }
        (AlgorithmFamily::Ec, 65) => Ok(vec![Algorithm::ES256]),
        (AlgorithmFamily::Ec, 97) => Ok(vec![Algorithm::ES384]),
        (AlgorithmFamily::Ec, _) => Err("its curve is neither P-256 nor P-384".into()),
        (family @ AlgorithmFamily::Ed, 32) => Ok(family.algorithms().to_vec()),
        (AlgorithmFamily::Ed, _) => Err("it is not an Ed25519 public key".into()),
    }
}

fn modulus_bits(key: &DecodingKey) -> Option<usize> {
    use jsonwebtoken::DecodingKeyKind::{RsaModulusExponent, SecretOrDer};
    let modulus = match key.kind() {
        RsaModulusExponent { n, .. } => n.clone(),
        SecretOrDer(der) => (DEFAULT_PROVIDER.key_utils.rsa_pub_components_from_public_key)(der).ok()?.0,
    };
    let first = modulus.iter().position(|byte| *byte != 0)?;
    Some((modulus.len() - first) * 8 - modulus[first].leading_zeros() as usize)
}

#[cfg(test)]
#[path = "tests/jose.rs"]
mod tests;
