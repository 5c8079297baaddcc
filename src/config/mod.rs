//! What operators write, and what the process makes of it.
//!
//! Two inputs: the node file (`node_file` as written, `node` as checked) and the gateway document (`check`
//! reads it, `document` is the checked form). Nothing outside this folder and `main.rs` reads the environment.

pub mod document;
pub mod node;
