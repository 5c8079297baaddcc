//! The cluster crate from outside.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers as well")]

mod log_recovery;
mod state_properties;
