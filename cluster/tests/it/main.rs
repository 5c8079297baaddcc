//! The cluster crate from outside.
#![allow(clippy::unwrap_used, reason = "a test ends where it finds something else than it expects")]

mod backup;
mod expiry;
mod first_start;
mod harness;
mod log_recovery;
mod membership;
mod one_node;
mod recovery;
mod snapshots;
mod state_properties;
mod three_nodes;
mod upgrade;
