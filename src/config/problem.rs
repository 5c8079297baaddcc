//! What is wrong with an input, where, and what to do about it.
//!
//! Neighbours: `yaml`, `field`, `check` and `node_file` report problems; the admin API answers them as JSON,
//! `gogate check` prints them.

use std::{
    cell::{Cell, RefCell},
    fmt,
};

use serde::{Deserialize, Serialize};

/// Problems kept of one input. What is beyond is dropped and said to be: nobody reads so many, and a hostile
/// document must not make an answer of any size.
pub const PROBLEMS_MAX: usize = 1000;

/// Names that are compared to suggest the nearest, for one input. Beyond it problems have no such suggestion:
/// ten thousand wrong names against ten thousand declared ones must not take minutes.
const COMPARISONS_MAX: usize = 200_000;

/// Characters of a value that a message repeats.
const SHOWN_MAX: usize = 60;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// From 1; 0 when the problem does not lie in the text.
    #[serde(default, skip_serializing_if = "is_nowhere")]
    pub line: usize,
    /// From 1; 0 when the problem does not lie in the text.
    #[serde(default, skip_serializing_if = "is_nowhere")]
    pub column: usize,
    /// The variable or flag that set the value, if it does not come from the text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The key: `services.api.endpoints[0].address`; empty for the whole.
    pub path: String,
    /// What is wrong.
    pub problem: String,
    /// What to do, where that can be said.
    pub suggestion: Option<String>,
}

/// A place in the text; lines and columns count from 1, 0 is nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Place {
    /// From 1.
    pub line: usize,
    /// From 1.
    pub column: usize,
}

/// Gathers problems while an input is read.
#[derive(Debug, Default)]
pub struct Report {
    problems: RefCell<Vec<Problem>>,
    comparisons: Cell<usize>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_nowhere(place: &usize) -> bool {
    *place == 0
}

// === impl Problem ===

impl Problem {
    /// A problem that has no place in a text.
    #[must_use]
    pub fn general(problem: impl Into<String>, suggestion: Option<String>) -> Self {
        Self { line: 0, column: 0, source: None, path: String::new(), problem: problem.into(), suggestion }
    }

    /// `FILE:LINE: path: problem (suggestion)`; a variable or flag stands in the file's place.
    #[must_use]
    pub fn in_file(&self, file: &str) -> String {
        match (&self.source, self.line) {
            (Some(source), _) => format!("{source}: {}", self.message()),
            (None, 0) => format!("{file}: {}", self.message()),
            (None, line) => format!("{file}:{line}: {}", self.message()),
        }
    }

    /// `path: problem (suggestion)`.
    #[must_use]
    pub fn message(&self) -> String {
        let mut message = String::new();
        if !self.path.is_empty() {
            message.push_str(&self.path);
            message.push_str(": ");
        }
        message.push_str(&self.problem);
        if let Some(suggestion) = &self.suggestion {
            message.push_str(&format!(" ({suggestion})"));
        }
        message
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.source, self.line) {
            (Some(source), _) => write!(f, "{source}: {}", self.message()),
            (None, 0) => f.write_str(&self.message()),
            (None, line) => write!(f, "line {line}: {}", self.message()),
        }
    }
}

// === impl Report ===

impl Report {
    /// Notes a problem at a place.
    pub fn add(&self, place: Place, path: &str, problem: impl Into<String>, suggestion: Option<String>) {
        let mut problems = self.problems.borrow_mut();
        if problems.len() > PROBLEMS_MAX {
            return;
        }
        if problems.len() == PROBLEMS_MAX {
            problems.push(Problem::general(
                format!("more than {PROBLEMS_MAX} problems; the rest is not listed"),
                Some("correct these first".into()),
            ));
            return;
        }
        problems.push(Problem {
            line: place.line,
            column: place.column,
            source: None,
            path: path.to_owned(),
            problem: problem.into(),
            suggestion,
        });
    }

    /// The name among `known` that `name` most probably stands for, while comparisons last.
    pub fn nearest<'a>(&self, name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
        let counted = known.into_iter().take_while(|_| {
            self.comparisons.set(self.comparisons.get() + 1);
            self.comparisons.get() <= COMPARISONS_MAX
        });
        nearest(name, counted)
    }

    /// How many there are so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.problems.borrow().len()
    }

    /// Whether there are none so far.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.problems.borrow().is_empty()
    }

    /// All problems in the order of the text; those without a place come last.
    #[must_use]
    pub fn into_problems(self) -> Vec<Problem> {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|p| (p.line == 0, p.line, p.column));
        problems
    }
}

/// A value as a message repeats it: on one line, shortened, control characters escaped.
#[must_use]
pub fn shown(value: &str) -> String {
    let mut shown: String = value.chars().take(SHOWN_MAX).flat_map(visible).collect();
    if value.chars().nth(SHOWN_MAX).is_some() {
        shown.push('…');
    }
    shown
}

fn visible(c: char) -> impl Iterator<Item = char> {
    let escaped = if c.is_control() { Some(c.escape_default()) } else { None };
    let plain = if escaped.is_none() { Some(c) } else { None };
    escaped.into_iter().flatten().chain(plain)
}

/// The name among `known` that `name` most probably stands for.
#[must_use]
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if name.len() > SHOWN_MAX {
        return None;
    }
    let name = name.to_lowercase().replace('-', "_");
    known
        .into_iter()
        .map(|k| (strsim::damerau_levenshtein(&name, &k.to_lowercase().replace('-', "_")), k))
        .filter(|(distance, k)| *distance <= (k.len().max(name.len()) / 3).max(1))
        .min()
        .map(|(_, k)| k)
}
