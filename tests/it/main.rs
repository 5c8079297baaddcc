//! Whole processes, observed from outside: one binary, a file per behaviour.

// The helpers of tests may unwrap as tests do.
#![allow(clippy::unwrap_used)]

mod admin_api;
mod bad_input;
mod cli;
mod config_apply;
mod harness;
mod three_nodes;
mod tidy;
