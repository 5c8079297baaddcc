//! What operators write, and what the process makes of it.
//!
//! Two inputs: the node file (`node_file` as written, `node` as checked) and the gateway document (`check`
//! reads it, `document` is the checked form). `yaml` and `field` read both, `problem` is what they say.
//! Nothing outside this folder and `main.rs` reads the environment, and here it is passed in.

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
mod yaml;

pub use address::{Refusal, reach};
pub use diff::diff;
pub use field::{check_name, parse_duration, parse_size};
pub use merge::merge;
pub use problem::Problem;
pub use yaml::{TEXT_BYTES_MAX, read, text};

/// The two inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A gateway document, replicated.
    Document,
    /// One process's own settings.
    NodeFile,
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
    if has(node_file::TOP) > has(check::TOP) { Kind::NodeFile } else { Kind::Document }
}
