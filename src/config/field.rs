//! Reading a tree key by key: what was expected, what was found, which key was probably meant.
//!
//! Job: the one walker of `check` and `node_file`. Invariants: whatever is wrong is reported at its place and
//! reading goes on, so that an operator sees every problem at once; a key without a value is as if left out.

use std::{
    collections::HashMap,
    fmt::{self, Display},
    time::Duration,
};

use super::{
    problem::{Place, Report, shown},
    yaml::{Node, Style, Value},
};

/// A value on its way from the tree into a type.
#[derive(Clone)]
pub struct Field<'a> {
    /// The value.
    pub node: &'a Node,
    /// Where it stands: `services.api`.
    pub path: String,
    /// Where problems go.
    pub report: &'a Report,
}

/// A mapping whose keys are known.
pub struct Section<'a> {
    /// The whole.
    pub field: Field<'a>,
    entries: Vec<(&'a str, Place, Field<'a>)>,
}

/// The keys of a section.
#[derive(Debug, Clone, Copy)]
pub struct Keys {
    /// What is read now.
    pub known: &'static [&'static str],
    /// What the interface has and this build does not do yet; a later one moves the row.
    pub later: &'static [&'static str],
}

// === impl Field ===

impl<'a> Field<'a> {
    /// Notes a problem with this value.
    pub fn problem(&self, problem: impl Into<String>, suggestion: Option<String>) {
        self.report.add(self.node.place, &self.path, problem, suggestion);
    }

    /// Whether nothing was written.
    #[must_use]
    pub fn is_null(&self) -> bool {
        is_null(self.node)
    }

    /// A mapping with known keys. Unknown and unsupported ones are reported.
    pub fn section(&self, keys: Keys) -> Option<Section<'a>> {
        let mut entries = Vec::new();
        for (name, place, field) in
            self.pairs(format_args!("a mapping with the keys {}", listed(keys.known)))?
        {
            if keys.known.contains(&name) {
                if !field.is_null() {
                    entries.push((name, place, field));
                }
            } else if keys.later.contains(&name) {
                if !field.is_null() {
                    self.report.add(
                        place,
                        &field.path,
                        format!("`{name}` is not supported by this build yet"),
                        Some("remove it".into()),
                    );
                }
            } else {
                let all = keys.known.iter().chain(keys.later).copied();
                let suggestion = match self.report.nearest(name, all) {
                    Some(key) => format!("did you mean `{key}`?"),
                    None => format!("the keys here are {}", listed(keys.known)),
                };
                let problem = format!("unknown key `{}`", shown(name));
                self.report.add(place, &field.path, problem, Some(suggestion));
            }
        }
        Some(Section { field: self.clone(), entries })
    }

    /// A mapping whose keys are names that the operator chose.
    pub fn named(&self) -> Option<Vec<(&'a str, Field<'a>)>> {
        let pairs = self.pairs("a mapping from names")?;
        let mut named = Vec::with_capacity(pairs.len());
        for (name, place, field) in pairs {
            match check_name(name) {
                Ok(()) => named.push((name, field)),
                Err(rule) => {
                    let problem = format!("`{}` cannot be a name", shown(name));
                    self.report.add(place, &self.path, problem, Some(rule.into()));
                }
            }
        }
        Some(named)
    }

    /// A mapping whose keys are any text.
    pub fn texts(&self, expected: impl Display) -> Option<Vec<(&'a str, Field<'a>)>> {
        let pairs = self.pairs(expected)?;
        Some(pairs.into_iter().map(|(name, _, field)| (name, field)).collect())
    }

    /// The pairs of a mapping; keys that occur twice, merge keys and keys that are not text are reported.
    pub fn pairs(&self, expected: impl Display) -> Option<Vec<(&'a str, Place, Field<'a>)>> {
        let Value::Map(pairs) = &self.node.value else {
            self.unexpected(expected);
            return None;
        };
        let mut first: HashMap<&str, Place> = HashMap::with_capacity(pairs.len());
        let mut read = Vec::with_capacity(pairs.len());
        for (key, value) in pairs {
            let Value::Scalar { text, style } = &key.value else {
                let problem = format!("a key must be text, found {}", described(key));
                self.report.add(key.place, &self.path, problem, None);
                continue;
            };
            if text == "<<" && *style == Style::Plain {
                self.report.add(
                    key.place,
                    &self.path,
                    "merge keys are not supported",
                    Some("write the keys out".into()),
                );
                continue;
            }
            let path = join(&self.path, text);
            if let Some(earlier) = first.insert(text, key.place) {
                let problem = format!(
                    "`{}` is here on line {} and on line {}",
                    shown(text),
                    earlier.line,
                    key.place.line
                );
                self.report.add(key.place, &path, problem, Some("keep one of them".into()));
                continue;
            }
            read.push((text.as_str(), key.place, Field { node: value, path, report: self.report }));
        }
        Some(read)
    }

    /// The items of a list.
    pub fn list(&self, of: &str) -> Option<Vec<Field<'a>>> {
        let Value::List(items) = &self.node.value else {
            let suggestion = match &self.node.value {
                Value::Scalar { text, .. } => Some(format!("write [{}]", shown(text))),
                Value::List(_) | Value::Map(_) => None,
            };
            self.problem(format!("expected a list of {of}, found {}", described(self.node)), suggestion);
            return None;
        };
        let field =
            |(index, node)| Field { node, path: format!("{}[{index}]", self.path), report: self.report };
        Some(items.iter().enumerate().map(field).collect())
    }

    /// Text that is not empty; `expected` says what it should be.
    pub fn text_as(&self, expected: impl Display) -> Option<&'a str> {
        if let Value::Scalar { text, style } = &self.node.value {
            if text.trim().is_empty() {
                self.problem(format!("expected {expected}, found nothing"), None);
                return None;
            }
            if *style != Style::Plain || plain_kind(text) == Kind::Text {
                return Some(text);
            }
            let suggestion = Some(format!("put it in quotes: \"{}\"", shown(text)));
            self.problem(format!("expected {expected}, found {}", described(self.node)), suggestion);
            return None;
        }
        self.unexpected(expected);
        None
    }

    /// Text of any length, empty too.
    pub fn any_text(&self, expected: impl Display) -> Option<&'a str> {
        match &self.node.value {
            Value::Scalar { text, style } if text.is_empty() && *style != Style::Plain => Some(text),
            _ => self.text_as(expected),
        }
    }

    /// A name: of a node, a listener, a service, a route.
    pub fn name(&self) -> Option<&'a str> {
        let name = self.text_as("a name")?;
        match check_name(name) {
            Ok(()) => Some(name),
            Err(rule) => {
                self.problem(format!("`{}` cannot be a name", shown(name)), Some(rule.into()));
                None
            }
        }
    }

    /// A whole number in a range.
    pub fn integer(&self, from: u64, to: u64) -> Option<u64> {
        let expected = || format!("a whole number from {from} to {to}");
        let Value::Scalar { text, style } = &self.node.value else {
            self.unexpected(expected());
            return None;
        };
        let number = text.parse::<u64>().ok().filter(|n| (from..=to).contains(n));
        if *style == Style::Quoted && number.is_some() {
            let problem = format!("expected {}, found {}", expected(), described(self.node));
            self.problem(problem, Some("remove the quotes".into()));
            return None;
        }
        if number.is_none() {
            self.unexpected(expected());
        }
        number
    }

    /// `true` or `false`.
    pub fn boolean(&self) -> Option<bool> {
        if let Value::Scalar { text, style: Style::Plain | Style::Given } = &self.node.value {
            match text.to_ascii_lowercase().as_str() {
                "true" => return Some(true),
                "false" => return Some(false),
                _ => {}
            }
        }
        self.unexpected("true or false");
        None
    }

    /// One of a few words.
    pub fn choice(&self, words: &'static [&'static str]) -> Option<&'static str> {
        let text = self.text_as(listed_or(words))?;
        if let Some(word) = words.iter().find(|word| **word == text) {
            return Some(word);
        }
        let suggestion =
            self.report.nearest(text, words.iter().copied()).map(|word| format!("did you mean `{word}`?"));
        self.problem(format!("expected {}, found `{}`", listed_or(words), shown(text)), suggestion);
        None
    }

    /// A duration in a range.
    pub fn duration(&self, from: Duration, to: Duration) -> Option<Duration> {
        let Value::Scalar { text, .. } = &self.node.value else {
            self.unexpected("a duration such as 250ms, 5s, 1m or 24h");
            return None;
        };
        let duration = match parse_duration(text) {
            Ok(duration) => duration,
            Err(suggestion) => {
                let problem = "expected a duration such as 250ms, 5s, 1m or 24h, found ";
                self.problem(format!("{problem}{}", described(self.node)), suggestion);
                return None;
            }
        };
        if duration < from || duration > to {
            let problem = format!("`{}` is not from {} to {}", shown(text), written(from), written(to));
            self.problem(problem, None);
            return None;
        }
        Some(duration)
    }

    /// A size in bytes in a range.
    pub fn size(&self, from: u64, to: u64) -> Option<u64> {
        let expected = "a size such as 512, 32KiB or 10MB";
        let Value::Scalar { text, .. } = &self.node.value else {
            self.unexpected(expected);
            return None;
        };
        let Some(size) = parse_size(text) else {
            let problem = format!("expected {expected}, found {}", described(self.node));
            self.problem(problem, Some("units are B, kB, MB, GB and KiB, MiB, GiB".into()));
            return None;
        };
        if !(from..=to).contains(&size) {
            self.problem(format!("`{}` is not from {from} to {to} bytes", shown(text)), None);
            return None;
        }
        Some(size)
    }

    fn unexpected(&self, expected: impl Display) {
        self.problem(format!("expected {expected}, found {}", described(self.node)), None);
    }
}

// === impl Section ===

impl<'a> Section<'a> {
    /// The value of a key, if one was written.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Field<'a>> {
        self.entries.iter().find(|(name, ..)| *name == key).map(|(_, _, field)| field)
    }

    /// The place of a key, or of the section if it is not there.
    #[must_use]
    pub fn place(&self, key: &str) -> Place {
        let entry = self.entries.iter().find(|(name, ..)| *name == key);
        entry.map_or(self.field.node.place, |(_, place, _)| *place)
    }

    /// A section inside this one.
    pub fn section(&self, key: &str, keys: Keys) -> Option<Section<'a>> {
        self.get(key)?.section(keys)
    }
}

// === single values ===

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Null,
    Boolean,
    Number,
    Text,
}

/// YAML 1.2's core schema; `yes`, `no`, `on` and `off` are text.
fn plain_kind(text: &str) -> Kind {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Kind::Null,
        "true" | "True" | "TRUE" | "false" | "False" | "FALSE" => Kind::Boolean,
        _ if is_number(text) => Kind::Number,
        _ => Kind::Text,
    }
}

fn is_number(text: &str) -> bool {
    let digits = text.trim_start_matches(['+', '-']);
    digits.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && digits.contains(|c: char| c.is_ascii_digit())
        && (digits.parse::<f64>().is_ok()
            || digits.strip_prefix("0x").is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()))
            || digits.strip_prefix("0o").is_some_and(|octal| octal.bytes().all(|b| b.is_ascii_digit())))
}

/// Whether a node stands for nothing.
#[must_use]
pub fn is_null(node: &Node) -> bool {
    matches!(&node.value, Value::Scalar { text, style: Style::Plain } if plain_kind(text) == Kind::Null)
}

/// A value as a message names it.
fn described(node: &Node) -> String {
    match &node.value {
        Value::Scalar { text, style: Style::Plain } => match plain_kind(text) {
            Kind::Null => "nothing".into(),
            Kind::Boolean => format!("`{text}`"),
            Kind::Number => format!("the number {}", shown(text)),
            Kind::Text => format!("`{}`", shown(text)),
        },
        Value::Scalar { text, style: Style::Quoted } => format!("the text \"{}\"", shown(text)),
        Value::Scalar { text, style: Style::Given } => format!("`{}`", shown(text)),
        Value::List(_) => "a list".into(),
        Value::Map(_) => "a mapping".into(),
    }
}

/// Whether `name` can name a node, a listener, a service or a route.
///
/// # Errors
/// The rule that it breaks.
pub fn check_name(name: &str) -> Result<(), &'static str> {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let starts = name.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
    if starts && name.len() <= 128 && name.bytes().all(good) {
        Ok(())
    } else {
        Err("names have 1 to 128 letters, digits, `-`, `_` or `.` and begin with a letter or digit")
    }
}

/// `250ms`, `5s`, `1m`, `24h`.
///
/// # Errors
/// What to write instead, if that can be said.
pub fn parse_duration(text: &str) -> Result<Duration, Option<String>> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text[..digits].parse().map_err(|_| None)?;
    let ms_per_unit = match text[digits..].trim_start() {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "" => return Err(Some(format!("add a unit: {number}s or {number}ms"))),
        "d" => return Err(Some(format!("write {}h", number.saturating_mul(24)))),
        _ => return Err(Some("units are ms, s, m and h".into())),
    };
    number.checked_mul(ms_per_unit).map(Duration::from_millis).ok_or(None)
}

/// `512`, `32KiB`, `10MB`.
#[must_use]
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text[..digits].parse().ok()?;
    let bytes_per_unit = match text[digits..].trim_start() {
        "" | "B" => 1,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    number.checked_mul(bytes_per_unit)
}

/// A duration as an operator would write it.
#[must_use]
pub fn written(duration: Duration) -> String {
    let ms = duration.as_millis();
    let units = [("h", 3_600_000), ("m", 60_000), ("s", 1_000)];
    match units.iter().find(|(_, unit_ms)| ms > 0 && ms.is_multiple_of(*unit_ms)) {
        Some((unit, unit_ms)) => format!("{}{unit}", ms / unit_ms),
        None => format!("{ms}ms"),
    }
}

/// `a`, `b` and `c`. Nearly always it is not said: nothing is put together before it is.
#[must_use]
pub fn listed<'a>(words: &'a [&'a str]) -> impl Display + 'a {
    Listed { words, last_word: "and" }
}

fn listed_or<'a>(words: &'a [&'a str]) -> impl Display + 'a {
    Listed { words, last_word: "or" }
}

struct Listed<'a> {
    words: &'a [&'a str],
    last_word: &'static str,
}

impl Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, word) in self.words.iter().enumerate() {
            if place > 0 && place + 1 == self.words.len() {
                write!(f, " {} ", self.last_word)?;
            } else if place > 0 {
                f.write_str(", ")?;
            }
            write!(f, "`{word}`")?;
        }
        Ok(())
    }
}

fn join(path: &str, key: &str) -> String {
    let key = shown(key);
    if path.is_empty() { key } else { format!("{path}.{key}") }
}
