//! The cluster crate from outside.

mod harness;
mod log_recovery;
mod one_node;
mod three_nodes;
