//! The one form of a path: what routes are matched with, what policies see and what is sent upstream.
//!
//! Job: [`normalize`]. Invariants: it is done once and decodes once: a normal path normalises to itself, and
//! `%252F` stays what it is. Two spellings of a path that an endpoint could take for one are one here, or are
//! refused. Neighbours: `http` calls it before `route_match`; `config::address` holds routes to the same form.

use std::borrow::Cow;

use http::{Uri, uri::InvalidUri};

/// A path in its one form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NormalPath<'a> {
    /// Begins with `/`, except for the `*` of OPTIONS, which never comes here.
    pub(super) text: Cow<'a, str>,
    /// It has a `%2F`, which only a route with `allow_encoded_slash` takes.
    pub(super) encoded_slash: bool,
}

/// Why a path is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BadPath;

/// What a byte of a path is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Byte {
    /// Stands for itself.
    Plain,
    Slash,
    Dot,
    Percent,
    /// Has no place in a path (RFC 3986, section 3.3); clients send it all the same, and some endpoints read a
    /// backslash as a slash. It is percent-encoded.
    Foreign,
    /// NUL, and what no request line holds.
    Never,
}

// === impl NormalPath ===

impl NormalPath<'_> {
    /// What a request asks for with this path and a query.
    pub(super) fn target(self, query: Option<&str>) -> Result<Uri, InvalidUri> {
        let target = match query {
            Some(query) => format!("{}?{query}", self.text),
            None => self.text.into_owned(),
        };
        target.try_into()
    }
}

const BYTES: [Byte; 256] = {
    let mut bytes = [Byte::Plain; 256];
    let mut place = 0;
    while place < 256 {
        bytes[place] = match place as u8 {
            0..=0x20 | 0x7f => Byte::Never,
            b'/' => Byte::Slash,
            b'.' => Byte::Dot,
            b'%' => Byte::Percent,
            b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}' | 0x80.. => Byte::Foreign,
            _ => Byte::Plain,
        };
        place += 1;
    }
    bytes
};

/// The one form: no dot segments, no doubled slashes, unreserved characters (RFC 3986, section 2.3) not
/// percent-encoded, all that has no place in a path percent-encoded, in capitals. A NUL and a broken
/// percent-encoding are refused, and so are dot segments that only some endpoints see: beside an encoded slash or
/// backslash, or before a parameter (`..;`), which servlets cut off. Borrowed if it is in that form already.
pub(super) fn normalize(path: &str) -> Result<NormalPath<'_>, BadPath> {
    if is_normal(path.as_bytes()) {
        return Ok(NormalPath { text: path.into(), encoded_slash: false });
    }
    let (decoded, encoded_slash) = decode_unreserved(path.as_bytes())?;
    if decoded.split('/').any(hides_a_dot_segment) {
        return Err(BadPath);
    }
    let mut normal = String::with_capacity(decoded.len() + 1);
    let mut segments = decoded.split('/').peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        match segment {
            "" | "." => {}
            ".." => normal.truncate(normal.rfind('/').unwrap_or(0)),
            _ => {
                normal.push('/');
                normal.push_str(segment);
            }
        }
        if is_last && matches!(segment, "" | "." | "..") {
            normal.push('/');
        }
    }
    Ok(NormalPath { text: normal.into(), encoded_slash })
}

fn hides_a_dot_segment(segment: &str) -> bool {
    // One that is a dot segment as it stands hides nothing: it is resolved.
    let parts = segment.split("%2F").flat_map(|part| part.split("%5C"));
    let is_dots = |part: &str| matches!(part.split(';').next(), Some("." | ".."));
    !matches!(segment, "." | "..") && { parts }.any(is_dots)
}

fn is_normal(path: &[u8]) -> bool {
    let mut after_slash = false;
    for (place, byte) in path.iter().enumerate() {
        match BYTES[usize::from(*byte)] {
            Byte::Plain => after_slash = false,
            Byte::Slash if after_slash => return false,
            Byte::Slash => after_slash = true,
            // `/.well-known` is normal; whatever could be a dot segment is looked at closely.
            Byte::Dot if after_slash && matches!(path.get(place + 1), None | Some(b'/' | b'.' | b';')) => {
                return false;
            }
            Byte::Dot => after_slash = false,
            Byte::Percent | Byte::Foreign | Byte::Never => return false,
        }
    }
    path.first() == Some(&b'/')
}

/// The decoded path, and whether an encoded slash stayed in it.
fn decode_unreserved(path: &[u8]) -> Result<(String, bool), BadPath> {
    let digit = |byte: u8| (byte as char).to_digit(16);
    let mut decoded = String::with_capacity(path.len());
    let mut encoded_slash = false;
    let mut bytes = path.iter();
    while let Some(byte) = bytes.next() {
        match BYTES[usize::from(*byte)] {
            Byte::Plain | Byte::Slash | Byte::Dot => decoded.push(char::from(*byte)),
            Byte::Never => return Err(BadPath),
            Byte::Foreign => encode(*byte, &mut decoded),
            Byte::Percent => {
                let high = bytes.next().and_then(|byte| digit(*byte)).ok_or(BadPath)?;
                let low = bytes.next().and_then(|byte| digit(*byte)).ok_or(BadPath)?;
                let value = u8::try_from(high * 16 + low).map_err(|_| BadPath)?;
                match value {
                    0 => return Err(BadPath),
                    b'-' | b'.' | b'_' | b'~' => decoded.push(char::from(value)),
                    _ if value.is_ascii_alphanumeric() => decoded.push(char::from(value)),
                    _ => {
                        encoded_slash |= value == b'/';
                        encode(value, &mut decoded);
                    }
                }
            }
        }
    }
    Ok((decoded, encoded_slash))
}

fn encode(byte: u8, text: &mut String) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    text.push('%');
    text.push(char::from(HEX[usize::from(byte >> 4)]));
    text.push(char::from(HEX[usize::from(byte & 15)]));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_one_form() {
        for (path, expected) in [
            ("/", Some("/")),
            ("/a/b", Some("/a/b")),
            ("/.well-known/x", Some("/.well-known/x")),
            ("/a//b///c", Some("/a/b/c")),
            ("/a/./b/../c", Some("/a/c")),
            ("/a/..", Some("/")),
            ("/a/b/..", Some("/a/")),
            ("/../../etc", Some("/etc")),
            ("/%2e%2E/x", Some("/x")),
            ("/%7euser/%41", Some("/~user/A")),
            ("/a%20b%3f", Some("/a%20b%3F")),
            ("/a/", Some("/a/")),
            ("/a/.", Some("/a/")),
            ("/..a/.b./c..", Some("/..a/.b./c..")),
            ("/a\\b", Some("/a%5Cb")),
            ("/a;x=1/b;..", Some("/a;x=1/b;..")),
            ("/...;/..a;", Some("/...;/..a;")),
            ("/a%5c\"{b}|^`", Some("/a%5C%22%7Bb%7D%7C%5E%60")),
            ("/ä", Some("/%C3%A4")),
            ("/%c3%a4", Some("/%C3%A4")),
            ("/a%252fb", Some("/a%252fb")),
            ("/a%00", None),
            ("/a%zz", None),
            ("/a\\..\\b", None),
            ("/a/..%5cb", None),
            ("/.%5Cb", None),
            ("/a/..;/b", None),
            ("/.;x/b", None),
            ("/a/%2e%2e;", None),
            ("/a%2", None),
            ("/a%", None),
            ("/a\u{0}", None),
        ] {
            let normal = normalize(path);
            assert_eq!(normal.as_ref().ok().map(|normal| &*normal.text), expected, "{path}");
            if let Ok(normal) = normal {
                assert!(!normal.encoded_slash, "{path}");
                assert_eq!(normalize(&normal.text), Ok(normal.clone()), "{path}: its form has another form");
            }
        }
    }

    #[test]
    fn an_encoded_slash_is_kept_and_told_but_not_beside_a_dot_segment() {
        for (path, expected) in [
            ("/a%2fb/%2F", Some("/a%2Fb/%2F")),
            ("/a%2fb/../c", Some("/c")),
            ("/a%2f...", Some("/a%2F...")),
            ("/a%2f..", None),
            ("/a/%2e%2E%2fetc", None),
            ("/x/.%2Fy", None),
        ] {
            let normal = normalize(path).ok();
            assert_eq!(normal.as_ref().map(|normal| &*normal.text), expected, "{path}");
            assert!(normal.is_none_or(|normal| normal.encoded_slash), "{path}");
        }
    }

    #[test]
    fn a_normal_path_is_borrowed() {
        let normal = normalize("/v1/orders/7.json").unwrap();
        assert!(matches!(normal.text, Cow::Borrowed(_)));
    }

    #[track_caller]
    fn check_form(path: &str) {
        let Ok(normal) = normalize(path) else { return };
        let text = &*normal.text;
        assert!(text.starts_with('/') && !text.contains("//"), "{path:?}: {text:?}");
        assert!(
            !text.contains("%00") && text.bytes().all(|byte| byte.is_ascii_graphic()),
            "{path:?}: {text:?}"
        );
        // Nor is there one for an endpoint that decodes slashes.
        let climbs = text.split('/').flat_map(|part| part.split("%2F")).flat_map(|part| part.split("%5C"));
        let climbs = { climbs }.any(|part| matches!(part.split(';').next(), Some("." | "..")));
        assert!(!climbs && !text.contains("%2e") && !text.contains("%2E"), "{path:?}: {text:?}");
        assert!(normal.encoded_slash || !text.contains("%2F"), "{path:?}: {text:?}");
        let again = normalize(text).map(|again| again.text.into_owned());
        assert_eq!(again.as_deref(), Ok(text), "{path:?}: its form has another form");
    }

    #[test]
    fn whatever_a_path_is_it_has_one_form_or_none() {
        const PIECES: [&str; 24] = [
            "/", "/", "//", ".", "..", "/.", "/..", "%2e", "%2E", "%2f", "%2F", "%5c", "\\", "%", "%25",
            "2e", "2f", "a", "%61", "%00", ";", "~", "%7e", "ä",
        ];
        bolero::check!().with_iterations(5000).for_each(|bytes: &[u8]| {
            if let Ok(path) = std::str::from_utf8(bytes) {
                check_form(path);
            }
            let choices = bytes.iter().take(24).map(|byte| PIECES[usize::from(*byte) % PIECES.len()]);
            check_form(&choices.collect::<String>());
        });
    }
}
