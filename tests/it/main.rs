//! gogate from outside, whole processes or one part with real listeners: one binary, a file per behaviour.

// The helpers of tests may unwrap as tests do.
#![allow(clippy::unwrap_used)]

mod access_log;
mod admin_api;
mod auth;
mod backup;
mod bad_input;
mod balance;
mod bypass;
mod certificates;
mod cli;
mod client;
mod config_apply;
mod grpc;
mod harness;
mod health;
mod hostile;
mod jwt;
mod membership;
mod metrics;
mod policies;
mod proxy_http;
mod proxy_lifecycle;
mod proxy_protocol;
mod proxy_upstream;
mod resilience;
mod routing;
mod security;
mod tcp;
mod three_nodes;
mod tidy;
mod upgrade;
mod upstream;
mod watch;
mod wire;
