//! `gogate serve`: one node in the foreground.

use std::path::PathBuf;

use clap::Args;

use super::{CliError, Environment};
use crate::{config::node_file, node, telemetry};

#[derive(Args)]
pub(super) struct Serve {
    /// The node file; without one: one node, embedded store, loopback only [env: GOGATE_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Overrides a key of the node file; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Allow addresses beyond loopback without credentials
    #[arg(long)]
    insecure: bool,
    /// End with the process of this id, which started this one
    #[arg(long, hide = true, value_name = "PID")]
    die_with: Option<i32>,
}

// === impl Serve ===

impl Serve {
    pub(super) fn run(self, environment: Environment) -> Result<(), CliError> {
        if let Some(parent) = self.die_with {
            die_with(parent)?;
        }
        let config = self.config.or_else(|| environment.get("GOGATE_CONFIG").map(PathBuf::from));
        let shown = config.as_ref().map_or_else(|| "gogate".to_owned(), |file| file.display().to_string());
        let config = node_file::load(config.as_deref(), environment, &self.set, self.insecure).map_err(
            |problems| {
                let lines: Vec<String> = problems.iter().map(|problem| problem.in_file(&shown)).collect();
                CliError::Failed(format!("the node cannot start\n{}", lines.join("\n")))
            },
        )?;
        telemetry::start(&config.log).map_err(CliError::Failed)?;
        if config.insecure {
            tracing::warn!("--insecure: whoever reaches the admin or the peer address can change everything");
        }
        node::run(config).map_err(|error| CliError::Failed(error.to_string()))
    }
}

/// Has the kernel end this process when its parent dies, even if that one is killed.
pub(super) fn die_with(parent: i32) -> Result<(), CliError> {
    use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| CliError::Failed(format!("cannot be bound to the parent's life: {error}")))?;
    // It may have died before the line above.
    if getppid().map(Pid::as_raw_pid) != Some(parent) {
        return Err(CliError::Failed(format!("the process {parent} that started this one is gone")));
    }
    Ok(())
}
