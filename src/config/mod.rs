//! What operators write, and what the process makes of it.
//!
//! Three inputs: the node file (`node_file` as written, `node` as checked), the gateway document (`check`
//! reads it, `document` is the checked form) and the tokens file (`tokens`). `yaml` and `field` read both, `problem` is what they say.
//! Nothing outside this folder and `main.rs` reads the environment, and here it is passed in.

pub mod certificates;
pub mod check;
pub mod document;
pub mod jose;
pub mod node;
pub mod node_file;
pub mod password;
pub mod problem;

mod address;
mod diff;
mod field;
mod given;
mod merge;
pub mod path_regex;
mod redact;
pub mod tokens;
mod yaml;

pub use address::{Refusal, reach};
pub use diff::diff;
pub use field::{check_name, parse_duration, parse_size};
pub use merge::merge;
pub use problem::Problem;
pub use redact::{MARK, redact};
pub use yaml::{TEXT_BYTES_MAX, read, text};

/// The inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A gateway document, replicated.
    Document,
    /// One process's own settings.
    NodeFile,
    /// Who may call the admin API.
    Tokens,
}

/// Which input a text is, told by its top-level keys; a text that has no key of a node file is taken for a
/// document.
#[must_use]
pub fn kind(text: &str) -> Kind {
    match yaml::parse(text) {
        Ok(Some(root)) => kind_of(&root),
        Ok(None) | Err(_) => Kind::Document,
    }
}

fn kind_of(root: &yaml::Node) -> Kind {
    let yaml::Value::Map(pairs) = &root.value else { return Kind::Document };
    let has = |keys: field::Keys| {
        let all = || keys.known.iter().chain(keys.later);
        let is_one = |node: &yaml::Node| match &node.value {
            yaml::Value::Scalar { text, .. } => all().any(|key| key == text),
            yaml::Value::List(_) | yaml::Value::Map(_) => false,
        };
        pairs.iter().filter(|(key, _)| is_one(key)).count()
    };
    let (document, node_file) = (has(check::TOP), has(node_file::TOP));
    if document + node_file == 0 && has(tokens::TOP) > 0 {
        Kind::Tokens
    } else if node_file > document {
        Kind::NodeFile
    } else {
        Kind::Document
    }
}
