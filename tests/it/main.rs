//! Whole processes, observed from outside: one binary, a file per behaviour.

mod admin_api;
mod bad_input;
mod cli;
mod config_apply;
mod harness;
mod three_nodes;
mod tidy;
