//! Regular expressions over paths: how they are read, and how large they may be.
//!
//! Job: one way to build them, for `check`, which judges each alone, and for the data plane, which puts all of a
//! host's together. Invariants: an expression matches a whole path, and its time is linear in the path's length;
//! a path in normal form is ASCII, so that `\d` and `.` mean ASCII too and stay small.

use regex_automata::{
    MatchKind,
    meta::{BuildError, Config, Regex},
    util::syntax,
};

use super::Refusal;

/// Bytes that one expression may take when built.
const ONE_BYTES_MAX: usize = 256 << 10;
/// Bytes that a host's expressions may take together.
const HOST_BYTES_MAX: usize = 16 << 20;
/// Bytes in which one thread remembers what it has found out about a host's expressions.
const CACHE_BYTES_MAX: usize = 16 << 20;

/// Builds expressions to be searched for together. With [`MatchKind::LeftmostFirst`] the first in order is
/// found, with [`MatchKind::All`] every one.
pub fn together<'a>(
    expressions: impl IntoIterator<Item = &'a str>,
    kind: MatchKind,
) -> Result<Regex, Box<BuildError>> {
    let whole: Vec<String> = expressions.into_iter().map(|text| format!(r"(?:{text})\z")).collect();
    build(&whole, kind, HOST_BYTES_MAX)
}

/// Whether an expression can be used.
pub fn check(text: &str) -> Result<(), Refusal> {
    // Alone first: what closes a group that the expression did not open must not close ours.
    let alone = build(&[text.to_owned()], MatchKind::LeftmostFirst, ONE_BYTES_MAX);
    let whole = alone.and_then(|_| together([text], MatchKind::LeftmostFirst));
    whole.map(|_| ()).map_err(|error| refusal(&error))
}

fn build(expressions: &[String], kind: MatchKind, bytes_max: usize) -> Result<Regex, Box<BuildError>> {
    let config = Config::new()
        .match_kind(kind)
        .utf8_empty(false)
        .nfa_size_limit(Some(bytes_max))
        .hybrid_cache_capacity(CACHE_BYTES_MAX);
    let syntax = syntax::Config::new().unicode(false).utf8(false);
    Regex::builder().configure(config).syntax(syntax).build_many(expressions).map_err(Box::new)
}

fn refusal(error: &BuildError) -> Refusal {
    if error.size_limit().is_some() {
        let suggestion = "use smaller repetitions, or `path_prefix`".to_owned();
        return ("the expression is too large".into(), Some(suggestion));
    }
    // Its last line says what is wrong; those before draw the expression.
    let reason = error.syntax_error().map(ToString::to_string).unwrap_or_else(|| error.to_string());
    let reason = reason.lines().last().unwrap_or_default();
    let reason = reason.strip_prefix("error: ").unwrap_or(reason);
    (format!("not a regular expression: {reason}"), None)
}
