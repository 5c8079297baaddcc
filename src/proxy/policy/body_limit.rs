//! `body_limit`: the longest body of a request, in place of `limits.body_bytes`.
//!
//! A length that is told beforehand is refused here; one that turns out on the way is refused by `upload`, which
//! has the same bound.

use super::super::error::ProxyError;

pub(super) fn check(bytes_min: u64, bytes_max: u64) -> Result<(), ProxyError> {
    if bytes_min > bytes_max { Err(ProxyError::BodyTooLarge) } else { Ok(()) }
}
