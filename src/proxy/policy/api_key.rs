//! `api_key`: a key that a client sends in a field or a query parameter.
//!
//! Only SHA-256 hashes are known here: keys are random and long, so that a fast hash is as good as a slow one. The
//! key is taken away before the endpoint sees the request; whose it was is told in a field that no client may send.
//! Neighbours: `auth` calls, `config::document` reads files of keys.

use std::{borrow::Cow, sync::Arc};

use http::{HeaderMap, HeaderName, HeaderValue, Uri, uri::PathAndQuery};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::{
    super::{
        error::ProxyError,
        keeper::{Kept, Watched},
        query::{decoded, parameters},
    },
    auth::{challenge, strip},
};
use crate::config::document::{self, ApiKeys};

/// A longer one is nobody's.
const KEY_BYTES_MAX: usize = 1024;

#[derive(Debug)]
pub(super) struct ApiKey {
    policy: document::ApiKey,
    keys: Keys,
    forwarded: [HeaderName; 1],
    challenge: HeaderValue,
}

#[derive(Debug)]
enum Keys {
    Fixed(Names),
    File(Arc<Watched<Names>>),
}

/// Whose the hashes are, in the order of the hashes.
#[derive(Debug)]
struct Names(Box<[([u8; 32], HeaderValue)]>);

// === impl ApiKey ===

impl ApiKey {
    pub(super) fn new(policy: &document::ApiKey) -> Result<ApiKey, String> {
        let keys = match &policy.keys {
            ApiKeys::Listed(keys) => Keys::Fixed(Names::new(keys)),
            ApiKeys::File(path) => Keys::File(Watched::open(path, |text| {
                ApiKeys::parse_file(text).map(|keys| Names::new(&keys))
            })?),
        };
        Ok(ApiKey {
            keys,
            forwarded: [policy.forward_name.clone()],
            challenge: challenge(&format!("ApiKey realm=\"{}\"", policy.realm)),
            policy: policy.clone(),
        })
    }

    /// What must be kept fresh for it.
    pub(super) fn kept(&self) -> Option<Arc<dyn Kept>> {
        match &self.keys {
            Keys::Fixed(_) => None,
            Keys::File(file) => Some(Arc::clone(file) as _),
        }
    }

    pub(super) fn check(&self, headers: &mut HeaderMap, uri: &mut Uri) -> Result<(), ProxyError> {
        strip(headers, &self.forwarded);
        let key = self.presented(headers, uri).map_err(|reason| self.refuse(reason))?;
        let key = key.ok_or_else(|| self.refuse("an API key is needed"))?;
        let name = match &self.keys {
            Keys::Fixed(names) => names.of(&key).cloned(),
            Keys::File(file) => file.value().of(&key).cloned(),
        };
        let name = name.ok_or_else(|| self.refuse("the API key is not known"))?;
        if !self.policy.forward_credential {
            headers.remove(&self.policy.header);
            self.take_out(uri);
        }
        headers.insert(self.policy.forward_name.clone(), name);
        Ok(())
    }

    /// Removes the key from a target.
    pub(super) fn take_out(&self, uri: &mut Uri) {
        if let Some(name) = &self.policy.query {
            remove_parameter(uri, name);
        }
    }

    /// The one key that was sent.
    fn presented<'a>(
        &self,
        headers: &'a HeaderMap,
        uri: &'a Uri,
    ) -> Result<Option<Cow<'a, [u8]>>, &'static str> {
        const SEVERAL: &str = "there is more than one API key";
        let mut fields = headers.get_all(&self.policy.header).iter();
        let mut found = fields.next().map(|value| Cow::Borrowed(value.as_bytes()));
        if fields.next().is_some() {
            return Err(SEVERAL);
        }
        if let Some(name) = &self.policy.query {
            for (_, value) in parameters(uri.query().unwrap_or_default()).filter(|(sent, _)| is(sent, name)) {
                if found.is_some() {
                    return Err(SEVERAL);
                }
                found = Some(key(value));
            }
        }
        match found {
            Some(key) if key.is_empty() => Ok(None),
            Some(key) if key.len() > KEY_BYTES_MAX => Err("the API key is not known"),
            found => Ok(found),
        }
    }

    fn refuse(&self, reason: &'static str) -> ProxyError {
        ProxyError::unauthorized(self.challenge.clone(), reason)
    }
}

/// Whether a parameter's name, as it was sent, is this one: an endpoint decodes it before it looks.
fn is(sent: &str, name: &str) -> bool {
    decoded(sent).eq(name.bytes())
}

/// The key that a value is. Many have a `+`, and none a space, which it stands for in forms.
fn key(value: &str) -> Cow<'_, [u8]> {
    if value.contains('%') {
        Cow::Owned(decoded(&value.replace('+', "%2B")).collect())
    } else {
        Cow::Borrowed(value.as_bytes())
    }
}

fn remove_parameter(uri: &mut Uri, name: &str) {
    let Some(query) = uri.query() else { return };
    if !parameters(query).any(|(sent, _)| is(sent, name)) {
        return;
    }
    let is_kept = |pair: &&str| !is(pair.split_once('=').map_or(*pair, |(sent, _)| sent), name);
    let kept: Vec<&str> = query.split('&').filter(is_kept).collect();
    let (path, kept) = (uri.path(), kept.join("&"));
    let target = if kept.is_empty() { path.to_owned() } else { format!("{path}?{kept}") };
    // What is left of a valid target is one.
    if let Ok(target) = PathAndQuery::try_from(target) {
        let mut parts = std::mem::take(uri).into_parts();
        parts.path_and_query = Some(target);
        *uri = Uri::from_parts(parts).unwrap_or_default();
    }
}

// === impl Names ===

impl Names {
    fn new(keys: &[(String, [u8; 32])]) -> Names {
        let value = |name: &String| HeaderValue::from_str(name).unwrap_or(HeaderValue::from_static(""));
        let mut names: Vec<_> = keys.iter().map(|(name, hash)| (*hash, value(name))).collect();
        names.sort_by_key(|(hash, _)| *hash);
        Names(names.into())
    }

    /// The cost does not grow with the number of keys: the first bytes of the hash find the place, and tell nobody
    /// anything who cannot choose them; the whole is compared in constant time.
    fn of(&self, key: &[u8]) -> Option<&HeaderValue> {
        const PREFIX: usize = 8;
        let hash: [u8; 32] = Sha256::digest(key).into();
        let first = self.0.partition_point(|(known, _)| known[..PREFIX] < hash[..PREFIX]);
        let near = self.0[first..].iter().take_while(|(known, _)| known[..PREFIX] == hash[..PREFIX]);
        near.filter(|(known, _)| bool::from(known.ct_eq(&hash))).map(|(_, name)| name).next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parameter_goes_and_the_others_stay_as_they_are() {
        for (target, expected) in [
            ("/a?key=1", "/a"),
            ("/a?x=%2F&key=1&y", "/a?x=%2F&y"),
            ("/a?key", "/a"),
            ("/a?key=1&key=2", "/a"),
            ("/a?%6bey=1&k%65y&x&key=2", "/a?x"),
            ("/a?%256bey=1", "/a?%256bey=1"),
            ("/a?keys=1", "/a?keys=1"),
            ("/a", "/a"),
        ] {
            let mut uri: Uri = target.parse().unwrap();
            remove_parameter(&mut uri, "key");
            assert_eq!(uri, expected, "{target}");
        }
    }

    #[test]
    fn a_key_is_decoded_and_keeps_its_pluses() {
        for (value, expected) in [("a", "a"), ("a+b", "a+b"), ("%41+%2b%20", "A++ "), ("%zz", "%zz")] {
            assert_eq!(&*key(value), expected.as_bytes());
        }
    }

    #[test]
    fn a_key_is_found_among_many_by_its_whole_hash() {
        let keys: Vec<(String, [u8; 32])> = (0..1000)
            .map(|number| (format!("k{number}"), Sha256::digest(format!("secret-{number}")).into()))
            .collect();
        let mut near: [u8; 32] = keys[7].1;
        near[31] ^= 1;
        let names = Names::new(&[&keys[..], &[("near".to_owned(), near)]].concat());
        assert_eq!(names.of(b"secret-7").unwrap(), "k7");
        assert_eq!(names.of(b"secret-999").unwrap(), "k999");
        assert!(names.of(b"secret-1000").is_none());
        assert!(Names::new(&[]).of(b"").is_none());
    }
}
