//! A gateway document without its secrets, for whoever may read it and not all of it.
//!
//! Job: [`redact`] replaces what is secret by [`MARK`] and leaves the rest of the text as it was written, comments too;
//! [`refuse_marks`] has a document refused that was written from such a text. Invariant: what is secret is told by
//! one function, [`is_secret`], for both. Neighbours: `check` calls the second, the admin API the first.

use std::{borrow::Cow, collections::BTreeSet};

use saphyr_parser::{Event, Parser, ScalarStyle};

use super::{
    problem::{Place, Report},
    yaml::{self, Node, Value},
};

/// Stands where a secret was.
pub const MARK: &str = "***";

/// A shorter secret is not looked for in comments: it would be found in words.
const LOOKED_FOR_MIN: usize = 6;

/// What a comment with an old secret has in it, most probably.
const SUSPICIOUS: [&str; 7] = ["secret:", "\"secret\"", "sha256", "private key", "$2a$", "$2b$", "$argon2"];

/// What a header field or a query parameter is called that proves something.
const CREDENTIALS: [&str; 8] =
    ["auth", "token", "secret", "passw", "apikey", "api-key", "cookie", "credential"];

/// The text of a valid document with every secret replaced by [`MARK`]; as it is if it has none.
#[must_use]
pub fn redact(text: &str) -> Cow<'_, str> {
    let Ok(Some(root)) = yaml::parse(text) else { return Cow::Borrowed("") };
    let mut secrets = Secrets::default();
    walk(&root, &mut Vec::new(), false, &mut |node, _| secrets.add(node));
    let redacted = secrets.replaced(text);
    if secrets.places.is_empty() && redacted == text {
        return Cow::Borrowed(text);
    }
    if secrets.all_gone(&redacted) {
        return Cow::Owned(redacted);
    }
    Cow::Borrowed("# this document cannot be shown without its secrets\n")
}

/// Reports every [`MARK`] that stands where a secret belongs.
pub(super) fn refuse_marks(root: &Node, report: &Report) {
    walk(root, &mut Vec::new(), false, &mut |node, path| {
        if is_mark(node) {
            let path = path.join(".").replace(".[", "[");
            let suggestion = "this is a redacted copy: `gogate config get --secrets` has what belongs here";
            report.add(node.place, &path, format!("`{MARK}` is no secret"), Some(suggestion.into()));
        }
    });
}

fn is_mark(node: &Node) -> bool {
    matches!(&node.value, Value::Scalar { text, .. } if text.trim_end() == MARK)
}

/// Whether what stands at `path` is for nobody's eyes. Items of lists are `[0]`, `[1]`, ….
fn is_secret(path: &[String]) -> bool {
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    match path[..] {
        ["policies", _, "jwt", "secret"]
        | ["policies", _, "api_key", "keys", _, "sha256"]
        | ["policies", _, "basic_auth", "users", _]
        | ["certificates", _, "key"] => true,
        [.., "set" | "add" | "headers" | "query", name] => {
            let name = name.to_ascii_lowercase().replace('_', "-");
            CREDENTIALS.iter().any(|word| name.contains(word)) || name.ends_with("key")
        }
        _ => false,
    }
}

/// Visits every secret value. The recursion is bounded as the tree is.
fn walk<'a>(
    node: &'a Node,
    path: &mut Vec<String>,
    is_below_secret: bool,
    visit: &mut impl FnMut(&'a Node, &[String]),
) {
    let secret = is_below_secret || is_secret(path);
    match &node.value {
        Value::Scalar { text, .. } => {
            if !text.is_empty() && (secret || text.contains("PRIVATE KEY-----")) {
                visit(node, path);
            }
        }
        Value::List(items) => {
            for (place, item) in items.iter().enumerate() {
                path.push(format!("[{place}]"));
                walk(item, path, secret, visit);
                path.pop();
            }
        }
        Value::Map(pairs) => {
            for (key, value) in pairs {
                let Value::Scalar { text, .. } = &key.value else { continue };
                path.push(text.clone());
                walk(value, path, secret, visit);
                path.pop();
            }
        }
    }
}

/// What must not be shown.
#[derive(Default)]
struct Secrets<'a> {
    /// An alias has the place of what it stands for.
    places: BTreeSet<Place>,
    texts: BTreeSet<&'a str>,
}

// === impl Secrets ===

impl<'a> Secrets<'a> {
    fn add(&mut self, node: &'a Node) {
        let Value::Scalar { text, .. } = &node.value else { return };
        self.places.insert(node.place);
        // A block of lines is indented in the text.
        self.texts.extend(text.lines().map(str::trim).filter(|line| line.len() >= LOOKED_FOR_MIN));
    }

    /// `text` with marks for the values at the places, and in comments.
    fn replaced(&self, text: &str) -> String {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        // The parser counts characters.
        let mut offsets = text.char_indices().map(|(offset, _)| offset).chain([text.len()]).enumerate();
        let mut offset_of = |index: usize| {
            let found = offsets.find(|(place, _)| *place >= index);
            found.map_or(text.len(), |(_, offset)| offset)
        };
        let mut out = String::with_capacity(text.len());
        let mut done = 0;
        let mut last_index = None;
        for event in Parser::new_from_str(text) {
            let Ok((Event::Scalar(_, style, ..), span)) = event else { continue };
            if span.is_empty() || last_index.is_some_and(|last| span.start.index() <= last) {
                continue;
            }
            let (start, end) = (offset_of(span.start.index()), offset_of(span.end.index()));
            last_index = Some(span.end.index());
            self.gap(&text[done..start], &mut out);
            let place = Place { line: span.start.line(), column: span.start.col() + 1 };
            let value = &text[start..end];
            if self.places.contains(&place) {
                let is_block = matches!(style, ScalarStyle::Literal | ScalarStyle::Folded);
                if is_block {
                    // What says that it is one stands before it.
                    out.push_str(MARK);
                } else {
                    // An anchor, which an alias elsewhere needs.
                    let anchor = value.split_whitespace().next().filter(|word| word.starts_with('&'));
                    out.push_str(&anchor.map_or_else(String::new, |anchor| format!("{anchor} ")));
                    out.push_str(&format!("\"{MARK}\""));
                }
                // A block has its line end, and the space before what follows it.
                out.push_str(&value[value.trim_end().len()..]);
            } else {
                out.push_str(value);
            }
            done = end;
        }
        self.gap(&text[done..], &mut out);
        out
    }

    /// What stands between two values: a comment may have an old secret.
    fn gap(&self, text: &str, out: &mut String) {
        for line in text.split_inclusive('\n') {
            let Some(start) = line.find('#') else {
                out.push_str(line);
                continue;
            };
            let (before, comment) = line.split_at(start);
            let lower = comment.to_ascii_lowercase();
            let has_one = SUSPICIOUS.iter().any(|word| lower.contains(word))
                || self.texts.iter().any(|secret| comment.contains(secret));
            out.push_str(before);
            if has_one {
                out.push_str("# ");
                out.push_str(MARK);
                out.push_str(&comment[comment.trim_end().len()..]);
            } else {
                out.push_str(comment);
            }
        }
    }

    /// Whether `redacted` can be read and none of the secrets is where it was.
    fn all_gone(&self, redacted: &str) -> bool {
        let Ok(Some(root)) = yaml::parse(redacted) else { return false };
        let mut gone = true;
        walk(&root, &mut Vec::new(), false, &mut |node, _| {
            gone &= is_mark(node);
        });
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        assert_eq!(redact(text), expected);
    }

    #[test]
    fn a_text_without_secrets_stays_as_it_is() {
        let text = "# a comment\nroutes: [{ name: a, service: b }]  # key\nbudgets: { b: { key: global } }\n";
        assert!(matches!(redact(text), Cow::Borrowed(same) if same == text));
    }

    #[test]
    fn secrets_are_marked_and_all_else_stays() {
        check(
            "policies:\n  a: { jwt: { algorithms: [HS256], secret: 'hunter2-hunter2' } } # é, not hunter2-hunter2\n  b:\n    basic_auth:\n      users:\n        ann: $2b$05$abc   # hers\n        \"bob\": \"$2b$05$def\"\n",
            "policies:\n  a: { jwt: { algorithms: [HS256], secret: \"***\" } } # ***\n  b:\n    basic_auth:\n      users:\n        ann: \"***\"   # hers\n        \"bob\": \"***\"\n",
        );
        check(
            r#"{"policies":{"é":{"api_key":{"keys":[{"name":"x","sha256":"00ff"}]}},"h":{"request_headers":{"set":{"Authorization":"Basic x","x-zone":"a"}}}}}"#,
            r#"{"policies":{"é":{"api_key":{"keys":[{"name":"x","sha256":"***"}]}},"h":{"request_headers":{"set":{"Authorization":"***","x-zone":"a"}}}}}"#,
        );
    }

    #[test]
    fn a_block_an_alias_and_a_commented_secret_are_secrets_too() {
        check(
            "policies:\n  a:\n    jwt:\n      secret: |\n        line one\n        line two\n      issuer: me\n",
            "policies:\n  a:\n    jwt:\n      secret: |\n        ***\n      issuer: me\n",
        );
        let hidden = redact("certificates:\n  c:\n    key: >-\n      aaa\n      bbb\n\n# end\nroutes: []\n");
        assert!(hidden.contains("# end\nroutes: []") && !hidden.contains("bbb"), "{hidden}");
        let hidden = redact("policies:\n  a: { jwt: { issuer: &i hunter22, secret: *i } }\n");
        assert_eq!(hidden, "policies:\n  a: { jwt: { issuer: &i \"***\", secret: *i } }\n");
        check("# secret: old\nroutes: []\n", "# ***\nroutes: []\n");
        check(
            "services: { a: { note: \"-----BEGIN PRIVATE KEY-----\" } }\n",
            "services: { a: { note: \"***\" } }\n",
        );
    }

    #[test]
    fn a_redacted_copy_is_no_document() {
        let text = "policies:\n  a: { jwt: { algorithms: [HS256], secret: \"***\" } }\n";
        let problems = crate::config::check::document(text).unwrap_err();
        let problem = problems.iter().find(|problem| problem.problem.contains("***")).unwrap();
        assert_eq!((problem.path.as_str(), problem.line), ("policies.a.jwt.secret", 2));
    }

    proptest::proptest! {
        #[test]
        fn no_secret_is_left_however_it_is_written(secret in "[a-z0-9 é:#'\"\\\\{}\\[\\],&*!|>%@`-]{6,24}", style in 0..4usize) {
            let secret = format!("q7{}z9", secret.trim());
            let written = match style {
                0 => serde_json::to_string(&secret).unwrap(),
                1 => format!("'{}'", secret.replace('\'', "''")),
                2 => format!("|\n        {secret}"),
                _ => secret.clone(),
            };
            let text = format!(
                "policies:\n  a:\n    jwt:\n      secret: {written}\n      issuer: here # now\nroutes: []\n"
            );
            let hidden = redact(&text);
            proptest::prop_assert!(!hidden.contains(&secret), "{}", hidden);
            if yaml::parse(&text).is_ok() {
                let before = yaml::parse(&text).unwrap().unwrap();
                let after = yaml::parse(&hidden).unwrap();
                proptest::prop_assert!(after.is_some(), "{}", text);
                let routes = |root: &Node| matches!(&root.value, Value::Map(pairs) if pairs.len() == 2);
                proptest::prop_assert_eq!(routes(&before), routes(&after.unwrap()), "{}\n{}", text, hidden);
            }
        }
    }
}
