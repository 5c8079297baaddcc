//! `replace_path`, `strip_prefix`, `add_prefix`: the path that the endpoint sees.
//!
//! Job: work on the path in its one form, in this order, and bring the result into that form again, so that no
//! rewrite makes a path that the endpoint reads differently. The query stays. What was stripped is told in
//! X-Forwarded-Prefix; the endpoint's own links (Location, cookies) are its own to make with it.

use std::borrow::Cow;

use http::{HeaderMap, HeaderValue, Uri};
use regex::Regex;

use super::super::{error::ProxyError, headers::X_FORWARDED_PREFIX, path as paths};

/// What a route does to paths.
#[derive(Debug, Default)]
pub(super) struct Rewrite {
    pub(super) replace: Option<(Regex, String)>,
    pub(super) strip: Option<(String, HeaderValue)>,
    pub(super) add: Option<String>,
}

// === impl Rewrite ===

impl Rewrite {
    pub(super) fn is_empty(&self) -> bool {
        self.replace.is_none() && self.strip.is_none() && self.add.is_none()
    }

    pub(super) fn apply(&self, uri: &mut Uri, headers: &mut HeaderMap) -> Result<(), ProxyError> {
        const BAD: ProxyError = ProxyError::Malformed("the path cannot be rewritten to a valid one");
        // `OPTIONS *` has no path.
        if uri.path() == "*" {
            return Ok(());
        }
        let mut path = Cow::Borrowed(uri.path());
        if let Some((regex, with)) = &self.replace
            && let Cow::Owned(replaced) = regex.replace_all(&path, with)
        {
            path = Cow::Owned(replaced);
        }
        if let Some((prefix, told)) = &self.strip
            && let Some(rest) = strip(&path, prefix)
        {
            path = Cow::Owned(rest.to_owned());
            headers.append(X_FORWARDED_PREFIX, told.clone());
        }
        if let Some(prefix) = &self.add {
            path = Cow::Owned(format!("{prefix}{path}"));
        }
        let Cow::Owned(mut path) = path else { return Ok(()) };
        if !path.starts_with('/') {
            path.insert(0, '/');
        }
        let normal = paths::normalize(&path).map_err(|_| BAD)?;
        // Only what the route let in may go on.
        if normal.encoded_slash && !uri.path().contains("%2F") {
            return Err(BAD);
        }
        *uri = normal.target(uri.query()).map_err(|_| BAD)?;
        Ok(())
    }
}

/// What follows the prefix, if that is a whole number of segments.
fn strip<'a>(path: &'a str, prefix: &str) -> Option<&'a str> {
    let rest = path.strip_prefix(prefix)?;
    match rest.as_bytes().first() {
        None => Some("/"),
        Some(b'/') => Some(rest),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(rewrite: &Rewrite, from: &str, to: &str) -> HeaderMap {
        let (mut uri, mut headers) = (Uri::try_from(from).unwrap(), HeaderMap::new());
        rewrite.apply(&mut uri, &mut headers).unwrap();
        assert_eq!(uri, to, "{from}");
        headers
    }

    fn replacing(regex: &str, with: &str) -> Rewrite {
        Rewrite { replace: Some((Regex::new(regex).unwrap(), with.to_owned())), ..Rewrite::default() }
    }

    #[test]
    fn a_prefix_is_stripped_by_segments() {
        let strip = Some(("/v1".to_owned(), HeaderValue::from_static("/v1")));
        let rewrite = Rewrite { strip, ..Rewrite::default() };
        assert_eq!(check(&rewrite, "/v1/a/b?q=1", "/a/b?q=1")["x-forwarded-prefix"], "/v1");
        check(&rewrite, "/v1", "/");
        check(&rewrite, "/v1/?x", "/?x");
        assert!(check(&rewrite, "/v10/a", "/v10/a").is_empty());
        check(&rewrite, "*", "*");
    }

    #[test]
    fn groups_of_the_regex_are_in_the_new_path() {
        check(&replacing("^/users/([^/]+)/(.*)$", "/u-${1}/$2"), "/users/7/x/y?z", "/u-7/x/y?z");
        check(&replacing("^/a$", "/b"), "/c", "/c");
        check(&replacing("o", "0"), "/foo/o", "/f00/0");
    }

    #[test]
    fn a_rewritten_path_is_in_the_one_form() {
        check(&replacing("^/x", "a//b/../c"), "/x/d", "/a/c/d");
        check(&replacing("^/.*", ""), "/x", "/");
        let mut uri = Uri::from_static("/x/2Fb");
        let refused = replacing("^/x/", "/%").apply(&mut uri, &mut HeaderMap::new());
        assert!(refused.is_err(), "{uri}");
    }

    #[test]
    fn replacing_comes_before_stripping_before_adding() {
        let rewrite = Rewrite {
            replace: Some((Regex::new("^/old").unwrap(), "/v1".to_owned())),
            strip: Some(("/v1".to_owned(), HeaderValue::from_static("/v1"))),
            add: Some("/api".to_owned()),
        };
        check(&rewrite, "/old/x", "/api/x");
        check(&rewrite, "/other", "/api/other");
    }
}
