//! What was answered to commands with an idempotency key: a repetition gets the same answer and does nothing.
//!
//! Invariants: an answer is kept for [`KEPT_MS`] on the log clock, unless more than [`ANSWERS_MAX`] came since; what
//! was refused is kept like what was done, so that a repetition never does what its first try did not. Neighbours:
//! `State::apply` looks here before it carries out a `Command::Once`.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::command::{Outcome, Refusal};

/// How long an answer is kept: longer than any client goes on repeating a call.
pub const KEPT_MS: u64 = 3_600_000;

/// Answers at one time; of more, the oldest are forgotten.
pub const ANSWERS_MAX: usize = 65_536;

/// The answers, by key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Answers {
    by_key: BTreeMap<Arc<str>, ([u8; 16], Outcome)>,
    /// When each is forgotten, on the log clock, in that order.
    ends: VecDeque<(u64, Arc<str>)>,
}

// === impl Answers ===

impl Answers {
    /// What this key was answered; refused, if it was for something else.
    pub(super) fn get(&self, key: &str, fingerprint: [u8; 16]) -> Option<Outcome> {
        let (known, outcome) = self.by_key.get(key)?;
        Some(if *known == fingerprint { outcome.clone() } else { Outcome::Refused(Refusal::KeyReused) })
    }

    /// Keeps what a key was answered that has no answer yet.
    pub(super) fn keep(&mut self, key: Arc<str>, fingerprint: [u8; 16], outcome: &Outcome, now_ms: u64) {
        // Nothing was decided on the request itself: whoever repeats it wants to know how it ends.
        if matches!(outcome, Outcome::Refused(Refusal::Staging { .. } | Refusal::UploadGone)) {
            return;
        }
        if self.ends.len() >= ANSWERS_MAX {
            self.forget_first();
        }
        self.by_key.insert(key.clone(), (fingerprint, outcome.clone()));
        self.ends.push_back((now_ms.saturating_add(KEPT_MS), key));
    }

    /// Forgets what is older than [`KEPT_MS`].
    pub(super) fn forget(&mut self, now_ms: u64) {
        while self.ends.front().is_some_and(|(end_ms, _)| *end_ms <= now_ms) {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        if let Some((_, key)) = self.ends.pop_front() {
            self.by_key.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_bounded_and_the_oldest_go_first() {
        let mut answers = Answers::default();
        let key = |number: usize| Arc::from(number.to_string());
        for number in 0..=ANSWERS_MAX {
            answers.keep(key(number), [0; 16], &Outcome::Ticked, number as u64);
        }
        assert_eq!(answers.get(&key(0), [0; 16]), None);
        assert_eq!(answers.get(&key(1), [0; 16]), Some(Outcome::Ticked));
        answers.forget(KEPT_MS + 1);
        assert_eq!(answers.get(&key(1), [0; 16]), None);
        assert_eq!(answers.get(&key(2), [0; 16]), Some(Outcome::Ticked));
    }
}
