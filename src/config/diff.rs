//! What one document has that another has not, as `diff -u` prints it.
//!
//! Invariant: the time is bounded; beyond it the difference is correct, and larger than it need be. Neighbours: the
//! admin API compares versions, the command line a version with a file.

use std::time::Duration;

/// How long the smallest difference is looked for.
const TIMEOUT: Duration = Duration::from_millis(500);

/// The unified difference from `old` to `new`, under these names; empty if they are alike.
#[must_use]
pub fn diff(old_name: &str, old: &str, new_name: &str, new: &str) -> String {
    let mut config = similar::TextDiff::configure();
    let diff = config.timeout(TIMEOUT).diff_lines(old, new);
    diff.unified_diff().context_radius(3).header(old_name, new_name).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_told_as_diff_does() {
        let (old, new) = ("a\nb\nc\n", "a\nB\nc\n");
        assert_eq!(diff("1", old, "2", new), "--- 1\n+++ 2\n@@ -1,3 +1,3 @@\n a\n-b\n+B\n c\n");
        assert_eq!(diff("1", old, "2", old), "");
    }
}
