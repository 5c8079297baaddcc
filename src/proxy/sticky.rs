//! Requests of one client to one endpoint, by a cookie.
//!
//! Job: the cookie's value stands for an endpoint of a service ([`pin_of`]); it is the same on every node and says
//! nothing to the client. A cookie for an endpoint that may not be used, or that is no longer there, is
//! replaced. A client of a split stays with the service whose cookie it has. Neighbours: `http` reads it and sets
//! it, `upstream` finds the endpoint.

use http::{HeaderMap, HeaderValue, header::SET_COOKIE};

use super::{cookie, table::Upstream};
use crate::config::document::Sticky;

/// What the client's cookie says, if it can be one of ours.
pub(super) fn pin_of(sticky: &Sticky, headers: &HeaderMap) -> Option<u64> {
    let value = cookie::value(headers, &sticky.cookie)?;
    let is_ours = value.len() == 16 && value.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let text = std::str::from_utf8(value).ok().filter(|_| is_ours)?;
    u64::from_str_radix(text, 16).ok()
}

/// Which of several services the client has an endpoint of, by the services' own cookies.
pub(super) fn owner<'a>(
    mut upstreams: impl Iterator<Item = &'a Upstream>,
    headers: &HeaderMap,
) -> Option<usize> {
    upstreams.position(|upstream| {
        let sticky = upstream.service.sticky.as_ref();
        let pin = sticky.and_then(|sticky| pin_of(sticky, headers));
        pin.is_some_and(|pin| upstream.place_of(pin).is_some())
    })
}

/// Tells the client its endpoint.
pub(super) fn set(sticky: &Sticky, pin: u64, headers: &mut HeaderMap) {
    let name = &sticky.cookie;
    let age = sticky.ttl.map_or_else(String::new, |ttl| format!("; Max-Age={}", ttl.as_secs()));
    let cookie = format!("{name}={pin:016x}; Path=/{age}; HttpOnly; SameSite=Lax");
    if let Ok(cookie) = HeaderValue::try_from(cookie) {
        headers.append(SET_COOKIE, cookie);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_cookie_comes_back_as_it_was_set() {
        let mut sticky = Sticky { cookie: "sid".into(), ttl: Some(Duration::from_secs(3600)) };
        let mut answer = HeaderMap::new();
        set(&sticky, 0xab, &mut answer);
        assert_eq!(answer[SET_COOKIE], "sid=00000000000000ab; Path=/; Max-Age=3600; HttpOnly; SameSite=Lax");
        let request = |cookie: &str| HeaderMap::from_iter([(http::header::COOKIE, cookie.parse().unwrap())]);
        assert_eq!(pin_of(&sticky, &request("sid=00000000000000ab")), Some(0xab));
        for other in
            ["sid=ab", "sid=00000000000000AB", "sid=+0000000000000ab", "tid=00000000000000ab", "sid="]
        {
            assert_eq!(pin_of(&sticky, &request(other)), None, "{other}");
        }
        sticky.ttl = None;
        let mut answer = HeaderMap::new();
        set(&sticky, 1, &mut answer);
        assert_eq!(answer[SET_COOKIE], "sid=0000000000000001; Path=/; HttpOnly; SameSite=Lax");
    }
}
