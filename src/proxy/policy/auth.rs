//! Policies that ask who it is and answer themselves: `jwt`, `api_key`, `basic_auth`, in this order.
//!
//! Job: what they share, and their state for a table: compiled once a policy, carried over from table to table
//! while the document says the same, so that fetched keys and read files live on. Invariant: a request that any of
//! them does not let in goes no further. Neighbours: `policy` calls, `table` compiles, `keeper` keeps fresh.

use std::{collections::BTreeMap, sync::Arc};

use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::{super::keeper::Kept, api_key::ApiKey, basic_auth::BasicAuth, jwt::Jwt};
use crate::config::document::{Document, PolicyKind};

/// The state of every policy that asks, by the policy's name.
#[derive(Debug, Default)]
pub(in super::super) struct Auths(BTreeMap<String, Vec<(PolicyKind, Auth)>>);

/// One of them; cloned into every route that names it.
#[derive(Debug, Clone)]
pub(super) enum Auth {
    Jwt(Arc<Jwt>),
    ApiKey(Arc<ApiKey>),
    Basic(Arc<BasicAuth>),
}

// === impl Auths ===

impl Auths {
    /// Reads files; what equals `previous`'s is carried over and reads none. The error names the policy.
    pub(in super::super) fn compile(
        document: &Document,
        previous: &Auths,
    ) -> Result<Auths, (String, String)> {
        let mut auths = BTreeMap::new();
        for (name, policy) in &document.policies {
            let before = previous.0.get(name).map_or(&[][..], Vec::as_slice);
            let mut compiled = Vec::new();
            for kind in &policy.kinds {
                let auth = match before.iter().find(|(known, _)| known == kind) {
                    Some((_, auth)) => Some(auth.clone()),
                    None => Auth::new(name, kind).map_err(|reason| (name.clone(), reason))?,
                };
                compiled.extend(auth.map(|auth| (kind.clone(), auth)));
            }
            if !compiled.is_empty() {
                auths.insert(name.clone(), compiled);
            }
        }
        Ok(Auths(auths))
    }

    /// Those of a policy.
    pub(super) fn of(&self, policy: &str) -> impl Iterator<Item = &Auth> {
        self.0.get(policy).into_iter().flatten().map(|(_, auth)| auth)
    }

    /// What must be kept fresh for all of them.
    pub(in super::super) fn kept(&self) -> Vec<Arc<dyn Kept>> {
        let kept = |auth: &Auth| match auth {
            Auth::Jwt(jwt) => jwt.kept(),
            Auth::ApiKey(api_key) => api_key.kept(),
            Auth::Basic(basic_auth) => basic_auth.kept(),
        };
        self.0.values().flatten().filter_map(|(_, auth)| kept(auth)).collect()
    }
}

// === impl Auth ===

impl Auth {
    fn new(name: &str, kind: &PolicyKind) -> Result<Option<Auth>, String> {
        Ok(Some(match kind {
            PolicyKind::Jwt(policy) => Self::Jwt(Arc::new(Jwt::new(name, policy)?)),
            PolicyKind::ApiKey(policy) => Self::ApiKey(Arc::new(ApiKey::new(policy)?)),
            PolicyKind::BasicAuth(policy) => Self::Basic(Arc::new(BasicAuth::new(policy)?)),
            _ => return Ok(None),
        }))
    }

    /// The place in the order they run in: what costs least first.
    pub(super) fn place(&self) -> usize {
        match self {
            Self::Jwt(_) => 0,
            Self::ApiKey(_) => 1,
            Self::Basic(_) => 2,
        }
    }
}

// === what they share ===

/// WWW-Authenticate.
pub(super) fn challenge(text: &str) -> HeaderValue {
    // Realms are printable ASCII, so this cannot fail.
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static("Bearer"))
}

/// Takes fields away that only the gateway may set, and their twins.
pub(super) fn strip(headers: &mut HeaderMap, names: &[HeaderName]) {
    for name in names {
        headers.remove(name);
    }
    remove_twins(headers, || names.iter());
}

/// Takes fields away whose names are these with `_` for `-`: servers that hand fields on as variables (CGI, WSGI,
/// FastCGI) cannot tell them apart.
pub(super) fn remove_twins<'a, I: Iterator<Item = &'a HeaderName>>(
    headers: &mut HeaderMap,
    names: impl Fn() -> I,
) {
    let alike = |name: &HeaderName| {
        let same = |known: &HeaderName| {
            let dash = |byte: u8| if byte == b'_' { b'-' } else { byte };
            known.as_str().bytes().map(dash).eq(name.as_str().bytes().map(dash))
        };
        names().any(same)
    };
    let has_underscore = |name: &&HeaderName| name.as_str().contains('_');
    let twins: Vec<HeaderName> =
        headers.keys().filter(has_underscore).filter(|name| alike(name)).cloned().collect();
    for twin in twins {
        headers.remove(twin);
    }
}

/// The credential of a scheme in Authorization; none if the field is not there or of another scheme.
pub(super) fn credential<'a>(headers: &'a HeaderMap, scheme: &str) -> Result<Option<&'a str>, &'static str> {
    let mut fields = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = fields.next() else { return Ok(None) };
    if fields.next().is_some() {
        // One reader would take the first, another one the last.
        return Err("there is more than one Authorization");
    }
    let text = value.to_str().map_err(|_| "Authorization is malformed")?;
    let (known, credential) = text.split_once(' ').unwrap_or((text, ""));
    // Some endpoints take a tab for the space after the scheme: what is no bearer token here would be one there.
    if known.contains('\t') {
        return Err("Authorization is malformed");
    }
    if !known.eq_ignore_ascii_case(scheme) {
        return Ok(None);
    }
    let credential = credential.trim_matches(' ');
    if credential.is_empty() || credential.contains([' ', ',', '\t']) {
        return Err("Authorization is malformed");
    }
    Ok(Some(credential))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_taken_away_under_every_name_that_looks_like_it() {
        let mut headers = HeaderMap::new();
        for name in ["x-user", "x_user", "X-USER", "x-user_", "x-users"] {
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_static("eve"));
        }
        strip(&mut headers, &[HeaderName::from_static("x-user")]);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["x-user_", "x-users"]);
    }

    #[test]
    fn a_credential_is_one_word_after_its_scheme() {
        let read = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::AUTHORIZATION, HeaderValue::from_static(value));
            }
            credential(&headers, "bearer").map(|found| found.map(str::to_owned))
        };
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&["Basic abc"]), Ok(None));
        assert_eq!(read(&["Bearer abc"]), Ok(Some("abc".into())));
        assert_eq!(read(&["bEARER  abc "]), Ok(Some("abc".into())));
        for bad in [
            &["Bearer"][..],
            &["Bearer "],
            &["Bearer\tabc"],
            &["Bearer a b"],
            &["Bearer a,b"],
            &["Bearer a", "Bearer a"],
            &["Basic a", "Bearer b"],
        ] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
    }
}
