//! Whom a request asks: its target and its Host, and that they agree.

use std::net::Ipv6Addr;

use super::Wrong;

/// The authority of a target in absolute-form, kept until the Host field is known.
#[derive(Debug)]
pub(super) struct Authority {
    host: Box<[u8]>,
    default_port: &'static [u8],
}

const MALFORMED: Wrong = Wrong::Malformed("the request target is malformed");

/// Judges a request target (RFC 9112, section 3.2). The authority, where it has one.
pub(super) fn target(method: &[u8], target: &[u8]) -> Result<Option<Authority>, Wrong> {
    if !target.iter().all(|byte| TARGET[usize::from(*byte)]) {
        return Err(Wrong::Malformed("the request target has a character that must be encoded"));
    }
    match target {
        // Origin-form.
        [b'/', ..] => Ok(None),
        b"*" if method == b"OPTIONS" => Ok(None),
        _ => absolute(target).map(Some),
    }
}

fn absolute(target: &[u8]) -> Result<Authority, Wrong> {
    let after = |scheme: &[u8]| {
        let (start, rest) = target.split_at_checked(scheme.len())?;
        start.eq_ignore_ascii_case(scheme).then_some(rest)
    };
    let (rest, default_port): (_, &[u8]) = match (after(b"http://"), after(b"https://")) {
        (Some(rest), _) => (rest, b":80"),
        (None, Some(rest)) => (rest, b":443"),
        (None, None) => return Err(MALFORMED),
    };
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
    let host = &rest[..end];
    if !is_host(host) {
        return Err(Wrong::Malformed("the host of the request target is malformed"));
    }
    Ok(Authority { host: host.into(), default_port })
}

/// Whether a Host, or the authority of a target, names one host: a name or an address, and perhaps a port. No
/// user, no percent-encoding: nobody needs them, and their readers differ.
pub(super) fn is_host(host: &[u8]) -> bool {
    let (name, rest) = match host {
        [b'[', literal @ ..] => {
            let Some(end) = memchr::memchr(b']', literal) else { return false };
            let address = std::str::from_utf8(&literal[..end]).ok().and_then(|text| text.parse().ok());
            let Some::<Ipv6Addr>(_) = address else { return false };
            (&literal[..end], &literal[end + 1..])
        }
        host => host.split_at(memchr::memchr(b':', host).unwrap_or(host.len())),
    };
    let port = match rest {
        [] => true,
        [b':', digits @ ..] => {
            let number = std::str::from_utf8(digits).ok().and_then(|text| text.parse::<u16>().ok());
            digits.iter().all(u8::is_ascii_digit) && number.is_some()
        }
        _ => false,
    };
    !name.is_empty() && port && name.iter().all(|byte| is_host_byte(*byte))
}

fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b'~' | b':')
}

// === impl Authority ===

impl Authority {
    /// Whether a Host names the same host. RFC 9112, section 3.2.2 lets the target win; a server that lets the
    /// field win would answer for another host, so both must say the same.
    pub(super) fn is(&self, host: &[u8]) -> bool {
        let bare = |host: &'_ [u8]| host.strip_suffix(self.default_port).unwrap_or(host).to_ascii_lowercase();
        bare(&self.host) == bare(host)
    }
}

/// What a target may be made of: RFC 3986's characters, and those that clients are known to leave unencoded and
/// nobody reads as something else. Not `#`, which begins what is never sent; not `\`, which some read as `/`.
const TARGET: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0x21;
    while byte < 0x7f {
        table[byte] = !matches!(byte as u8, b'#' | b'<' | b'>' | b'\\' | b'^' | b'`');
        byte += 1;
    }
    table
};
