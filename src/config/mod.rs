//! What operators write, and what the process makes of it.
//!
//! Two inputs: the node file (`node_file` as written, `node` as checked) and the gateway document (`check`
//! reads it, `document` is the checked form). `yaml` and `field` read both, `problem` is what they say.
//! Nothing outside this folder and `main.rs` reads the environment, and here it is passed in.

pub mod check;
pub mod document;
pub mod node;
pub mod node_file;
pub mod problem;

mod address;
mod field;
mod yaml;

pub use address::reach;
pub use field::parse_duration;
pub use problem::Problem;
pub use yaml::{TEXT_BYTES_MAX, text};

/// Whether a tree is a gateway document rather than a node file, told by its top-level keys.
fn is_document(root: &yaml::Node) -> bool {
    const KEYS: [&str; 7] =
        ["listeners", "services", "routes", "trusted_proxies", "limits", "policies", "budgets"];
    let yaml::Value::Map(pairs) = &root.value else { return false };
    pairs.iter().any(
        |(key, _)| matches!(&key.value, yaml::Value::Scalar { text, .. } if KEYS.contains(&text.as_str())),
    )
}
