//! Values that are larger than one log entry may be: written in parts, then used by one command.
//!
//! An entry has to reach a follower within a heartbeat, so what is larger goes ahead in parts that nobody sees, and the
//! command that uses it names the upload. Invariants: an upload that is not used within [`KEPT_MS`] of its last part, on
//! the log clock, is forgotten; all together have at most [`BYTES_MAX`], and the oldest goes first; what is not
//! whole is never used. Neighbours: `Cluster::propose` divides, `State::apply` puts together.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Bytes of one part.
pub const PART_BYTES: usize = 256 << 10;

/// How long an upload waits for its next part or its use.
const KEPT_MS: u64 = 60_000;

/// Bytes of all uploads under way.
const BYTES_MAX: usize = 64 << 20;

/// The uploads under way.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Uploads {
    by_id: BTreeMap<u64, Upload>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Upload {
    parts: BTreeMap<u32, Bytes>,
    /// When the last part came, on the log clock.
    at_ms: u64,
}

// === impl Uploads ===

impl Uploads {
    pub(super) fn keep(&mut self, id: u64, part: u32, bytes: Bytes, now_ms: u64) {
        let upload = self.by_id.entry(id).or_default();
        upload.at_ms = now_ms;
        upload.parts.insert(part, bytes);
        while self.by_id.values().map(Upload::len).sum::<usize>() > BYTES_MAX {
            let oldest = self.by_id.iter().min_by_key(|(id, upload)| (upload.at_ms, **id));
            let Some(id) = oldest.map(|(id, _)| *id) else { return };
            self.by_id.remove(&id);
        }
    }

    /// The whole, if all its `parts` are there; it is forgotten either way.
    pub(super) fn take(&mut self, id: u64, parts: u32) -> Option<Vec<u8>> {
        let upload = self.by_id.remove(&id)?;
        let whole = upload.parts.keys().copied().eq(0..parts);
        whole.then(|| upload.parts.into_values().flatten().collect())
    }

    /// Forgets what nobody goes on with.
    pub(super) fn forget(&mut self, now_ms: u64) {
        self.by_id.retain(|_, upload| upload.at_ms.saturating_add(KEPT_MS) > now_ms);
    }
}

// === impl Upload ===

impl Upload {
    fn len(&self) -> usize {
        self.parts.values().map(Bytes::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_come_in_any_order_and_make_a_whole_once() {
        let mut uploads = Uploads::default();
        uploads.keep(7, 1, Bytes::from_static(b"b"), 0);
        uploads.keep(8, 1, Bytes::from_static(b"b"), 0);
        uploads.keep(7, 0, Bytes::from_static(b"a"), 0);
        assert_eq!(uploads.take(7, 2).as_deref(), Some(&b"ab"[..]));
        assert_eq!(uploads.take(7, 2), None);
        assert_eq!(uploads.take(8, 2), None, "its first part is missing");
    }

    #[test]
    fn what_nobody_goes_on_with_is_forgotten_and_all_is_bounded() {
        let mut uploads = Uploads::default();
        uploads.keep(1, 0, Bytes::from_static(b"a"), 10);
        uploads.forget(10 + KEPT_MS - 1);
        assert!(uploads.by_id.contains_key(&1));
        uploads.forget(10 + KEPT_MS);
        assert!(uploads.by_id.is_empty());
        for part in 0..=BYTES_MAX / PART_BYTES {
            uploads.keep(part as u64, 0, Bytes::from(vec![0; PART_BYTES]), part as u64);
        }
        assert_eq!(uploads.by_id.len(), BYTES_MAX / PART_BYTES);
        assert!(!uploads.by_id.contains_key(&0), "the oldest went");
    }
}
