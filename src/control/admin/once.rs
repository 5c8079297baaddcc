//! `Idempotency-Key`: a write that may be repeated, at any node and across fail-overs, and is done once.
//!
//! As the IETF's draft has it (draft-ietf-httpapi-idempotency-key-header): the same key for another request is 422.
//! Invariants: what identifies a request is its method, path, precondition and body, and nothing of the node that
//! takes it; what the cluster keeps of it is bounded (`gogate_cluster`'s `state::once`). Neighbours: the
//! handlers of writes.

use std::sync::Arc;

use gogate_cluster::state::Command;
use http::{header, request::Parts};
use sha2::{Digest, Sha256};

use super::error::ApiError;

/// Bytes of a key.
const KEY_MAX: usize = 255;

/// A request that has a key.
pub(super) struct Once {
    key: Arc<str>,
    fingerprint: [u8; 16],
}

// === impl Once ===

impl Once {
    /// The key of a request with this head and body; none: it has none.
    pub(super) fn of(head: &Parts, body: &[u8]) -> Result<Option<Self>, ApiError> {
        let mut values = head.headers.get_all("idempotency-key").iter();
        let Some(value) = values.next() else { return Ok(None) };
        let key = value.to_str().unwrap_or_default().trim();
        if key.is_empty() || key.len() > KEY_MAX || values.next().is_some() {
            return Err(ApiError::Malformed(format!(
                "`Idempotency-Key` is one text of 1 to {KEY_MAX} printable characters, as a UUID is"
            )));
        }
        let precondition = head.headers.get(header::IF_MATCH).map_or(&b""[..], |value| value.as_bytes());
        let mut digest = Sha256::new();
        for part in [head.method.as_str().as_bytes(), head.uri.path().as_bytes(), precondition, body] {
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part);
        }
        let digest: [u8; 32] = digest.finalize().into();
        let mut fingerprint = [0; 16];
        fingerprint.copy_from_slice(&digest[..16]);
        Ok(Some(Self { key: key.into(), fingerprint }))
    }

    /// `command`, done once if the request has a key.
    pub(super) fn command(once: Option<Self>, command: Command) -> Command {
        match once {
            None => command,
            Some(Self { key, fingerprint }) => Command::Once { key, fingerprint, command: Box::new(command) },
        }
    }

    /// A number that only this key and request have, for what is made by chance otherwise.
    pub(super) fn number(&self) -> u64 {
        let mut digest = Sha256::new();
        digest.update(self.fingerprint);
        digest.update(self.key.as_bytes());
        let digest: [u8; 32] = digest.finalize().into();
        u64::from_le_bytes(digest[..8].try_into().expect("8 of 32 bytes"))
    }
}
