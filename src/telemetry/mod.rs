//! What the process tells about itself: the log, the access log and metrics; traces have their room here.
//!
//! Invariants: the log goes to stderr, so that a command's answer on stdout stays clean; at INFO it tells what
//! an operator did or must know, never a request or a log entry.

pub mod access_log;
pub mod metrics;

use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, fmt};

use crate::config::node::LogConfig;

/// What the libraries below say only when something is wrong: their INFO is not an operator's. The consensus
/// says nothing at all: while a peer is lost it has dozens of errors a second, and what an operator must know
/// of them this process says itself, once. `log.level: openraft=error` brings them back.
const QUIET: &str = "openraft=off,sled=warn,hyper=warn,h2=warn,tower=warn,tonic=warn";

/// What changes and refusals of the admin API are logged as; on unless a directive of its own says otherwise.
pub const AUDIT: &str = "audit";

/// Starts the log of this process.
///
/// # Errors
/// When the level is no filter, or a log was started before.
pub fn start(log: &LogConfig) -> Result<(), String> {
    let filter = EnvFilter::try_new(format!("{QUIET},{AUDIT}=info,{}", log.level)).map_err(|error| {
        format!("log.level: `{}` is not a filter: {error}; use info, or gogate=debug,warn", log.level)
    })?;
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    let started = if log.json {
        builder.json().flatten_event(true).try_init()
    } else {
        builder.with_ansi(std::io::stderr().is_terminal()).try_init()
    };
    started.map_err(|error| format!("the log cannot be started: {error}"))
}
