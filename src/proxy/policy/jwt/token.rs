//! A token taken apart and judged; pure.
//!
//! Job: compact JWS → header, message, signature; claims against a policy at a moment. Invariants: nothing of a
//! token is believed before its signature is; objects with a key twice are refused, for two readers could see two
//! values; what a refusal says to the client is fixed text. Neighbours: `jwt` asks, `config::jose` has the keys.

use std::{borrow::Cow, fmt};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value};

use crate::config::{
    document::Jwt,
    jose::{self, Algorithm, KeySet},
};

/// Longer ones are not looked at.
pub(super) const TOKEN_BYTES_MAX: usize = 16 << 10;

/// Why a token is not let in, as the client is told.
pub(super) type Reason = &'static str;

/// A token whose signature was not looked at yet.
#[derive(Debug)]
pub(super) struct Token<'a> {
    pub(super) key_id: Option<String>,
    algorithm: Algorithm,
    /// Header and payload as they were signed.
    message: &'a str,
    payload: &'a str,
    signature: &'a str,
}

/// What a verified token says.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::proxy) struct Claims(Map<String, Value>);

/// JSON in which no object has a key twice.
struct Strict(Value);

// === impl Token ===

impl<'a> Token<'a> {
    /// Takes a token apart, if `algorithms` have its own.
    pub(super) fn read(text: &'a str, algorithms: &[Algorithm]) -> Result<Token<'a>, Reason> {
        if text.len() > TOKEN_BYTES_MAX {
            return Err("the token is too long");
        }
        let parts = text.rsplit_once('.').and_then(|(message, signature)| {
            let (header, payload) = message.split_once('.')?;
            (!payload.contains('.')).then_some((message, header, payload, signature))
        });
        let (message, header, payload, signature) = parts.ok_or("the token is malformed")?;
        let header = object(header)?;
        // RFC 7515, section 4.1.11: what must be understood is not.
        if header.contains_key("crit") {
            return Err("the token has critical extensions");
        }
        let Some(Value::String(name)) = header.get("alg") else { return Err("the token is malformed") };
        let algorithm = jose::algorithm(name).filter(|known| algorithms.contains(known));
        let algorithm = algorithm.ok_or("the token's algorithm is not accepted here")?;
        let key_id = match header.get("kid") {
            None => None,
            Some(Value::String(id)) => Some(id.clone()),
            Some(_) => return Err("the token is malformed"),
        };
        Ok(Token { key_id, algorithm, message, payload, signature })
    }

    /// What the token says, if one of the keys signed it.
    pub(super) fn verify(&self, keys: &KeySet) -> Result<Claims, Reason> {
        let mut candidates = keys.candidates(self.key_id.as_deref(), self.algorithm).peekable();
        if candidates.peek().is_none() {
            return Err("the token's key is not known");
        }
        if !candidates.any(|key| key.verifies(self.algorithm, self.message.as_bytes(), self.signature)) {
            return Err("the token's signature is wrong");
        }
        object(self.payload).map(Claims)
    }
}

fn object(part: &str) -> Result<Map<String, Value>, Reason> {
    const MALFORMED: Reason = "the token is malformed";
    let json = URL_SAFE_NO_PAD.decode(part).map_err(|_| MALFORMED)?;
    match serde_json::from_slice(&json) {
        Ok(Strict(Value::Object(map))) => Ok(map),
        Ok(_) | Err(_) => Err(MALFORMED),
    }
}

// === impl Claims ===

impl Claims {
    /// Whether they hold for this policy at `now`, in seconds since 1970.
    pub(super) fn check(&self, policy: &Jwt, now: f64) -> Result<(), Reason> {
        let skew = policy.clock_skew.as_secs_f64();
        match self.moment("exp")? {
            // RFC 7519, section 4.1.4: not on or after it.
            Some(expires) if now >= expires + skew => return Err("the token has expired"),
            None if policy.require_exp => return Err("the token does not expire"),
            Some(_) | None => {}
        }
        if self.moment("nbf")?.is_some_and(|begins| now + skew < begins) {
            return Err("the token is not valid yet");
        }
        if self.moment("iat")?.is_some_and(|made| now + skew < made) {
            return Err("the token was made in the future");
        }
        if !policy.issuers.is_empty()
            && !self.names("iss", false).any(|name| policy.issuers.iter().any(|i| i == name))
        {
            return Err("the token is of another issuer");
        }
        if !policy.audiences.is_empty()
            && !self.names("aud", true).any(|name| policy.audiences.iter().any(|a| a == name))
        {
            return Err("the token is for another audience");
        }
        Ok(())
    }

    /// A claim as text: texts as they are, everything else as JSON; none if it is not there or null.
    pub(in crate::proxy) fn text(&self, claim: &str) -> Option<Cow<'_, str>> {
        match self.0.get(claim)? {
            Value::Null => None,
            Value::String(text) => Some(Cow::Borrowed(text)),
            other => Some(Cow::Owned(other.to_string())),
        }
    }

    /// A NumericDate (RFC 7519, section 2).
    fn moment(&self, claim: &str) -> Result<Option<f64>, Reason> {
        match self.0.get(claim) {
            None => Ok(None),
            Some(Value::Number(number)) => Ok(number.as_f64()),
            Some(_) => Err("the token is malformed"),
        }
    }

    /// The text of a claim, or its texts if it may be a list.
    fn names<'a>(&'a self, claim: &str, list: bool) -> impl Iterator<Item = &'a str> {
        let values = match self.0.get(claim) {
            Some(Value::Array(values)) if list => values.as_slice(),
            Some(value @ Value::String(_)) => std::slice::from_ref(value),
            Some(_) | None => &[],
        };
        values.iter().filter_map(Value::as_str)
    }
}

// === impl Strict ===

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Strict)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("not a number"))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Strict(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut pairs: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some((key, Strict(value))) = pairs.next_entry::<String, Strict>()? {
            if map.insert(key, value).is_some() {
                return Err(A::Error::custom("a key is there twice"));
            }
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
