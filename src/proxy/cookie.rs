//! Cookies that clients sent (RFC 6265, section 4.2).
//!
//! Neighbours: `balance` hashes one, `sticky` recognises its own.

use http::{HeaderMap, header::COOKIE};

/// The value of the first cookie with this name.
pub(super) fn value<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    let pairs = headers.get_all(COOKIE).iter().flat_map(|field| field.as_bytes().split(|byte| *byte == b';'));
    pairs.map(<[u8]>::trim_ascii).find_map(|pair| pair.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_found_by_its_whole_name() {
        let mut headers = HeaderMap::new();
        headers.append(COOKIE, "ab=1; a=2;b = 3; a=4".parse().unwrap());
        headers.append(COOKIE, "c=5=6; d=".parse().unwrap());
        let text = |name| value(&headers, name).map(|value| std::str::from_utf8(value).unwrap());
        for (name, expected) in [
            ("a", Some("2")),
            ("ab", Some("1")),
            ("c", Some("5=6")),
            ("d", Some("")),
            ("b", None),
            ("e", None),
        ] {
            assert_eq!(text(name), expected, "{name}");
        }
    }
}
