//! The command line: what it takes, what it prints, how it exits.
//!
//! Invariants: an answer goes to stdout, everything else to stderr; exit codes are 0 done, 1 refused or failed,
//! 2 wrong usage, 3 outcome unknown; the environment is what `main` read. Neighbours: one file below for each
//! group of commands; those that talk to a cluster do so through
//! [`crate::client`] alone.

pub mod check;
mod cluster;
mod config;
mod dev;
mod output;
mod probe;
mod sample;
mod serve;
mod service;
mod token;

use std::{collections::BTreeMap, ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{
    client::{self, Client},
    config::certificates,
};

/// Where the admin API is unless told otherwise.
const ADMIN_DEFAULT: &str = "http://127.0.0.1:7070";

/// The variables that the process was started with and that concern it.
pub type Environment = BTreeMap<String, String>;

#[derive(Parser)]
#[command(
    name = "gogate",
    version,
    about = "An API gateway that is its own cluster",
    propagate_version = false
)]
struct Cli {
    #[command(flatten)]
    target: Target,
    #[command(subcommand)]
    command: Command,
}

/// Which cluster, and how its answers are shown.
#[derive(Args)]
struct Target {
    /// The nodes' admin API; the next one is tried when one is gone [env: GOGATE_ADMIN] [default: http://127.0.0.1:7070]
    #[arg(long, global = true, value_name = "URL[,URL...]")]
    admin: Option<String>,
    /// The admin API's token [env: GOGATE_TOKEN]
    #[arg(long, global = true, value_name = "TOKEN")]
    token: Option<String>,
    /// The CA of the nodes' certificates, in PEM, for https:// addresses [env: GOGATE_CA]
    #[arg(long, global = true, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// A certificate to show to the nodes, with --key [env: GOGATE_CERT]
    #[arg(long, global = true, value_name = "FILE")]
    cert: Option<PathBuf>,
    /// The certificate's private key [env: GOGATE_KEY]
    #[arg(long, global = true, value_name = "FILE")]
    key: Option<PathBuf>,
    /// How answers are shown
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    output: Format,
}

/// How an answer is shown.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For a person
    Table,
    /// As the API answers
    Json,
    /// The same in YAML
    Yaml,
}

#[derive(Subcommand)]
enum Command {
    /// Run one node in the foreground
    Serve(serve::Serve),
    /// Run a throw-away cluster on this machine, with sample services behind it
    Dev(dev::Dev),
    /// Validate a node file or a gateway document
    Check {
        /// The file
        file: PathBuf,
    },
    /// Read and change the gateway document
    #[command(subcommand)]
    Config(config::Config),
    /// Register and look up service instances
    #[command(subcommand)]
    Service(service::Service),
    /// Look at the cluster and change who is in it
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    /// Make tokens for the admin API
    #[command(subcommand)]
    Token(token::Token),
    /// Print the version
    Version,
    /// Run a small HTTP service that registers itself
    #[command(hide = true)]
    Sample(sample::Sample),
    /// Exit 0 if the node is ready: a container's health check
    #[command(hide = true)]
    Ready,
}

/// Why a command did not do what was asked, and so the exit code.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// Refused or failed: 1.
    #[error("{0}")]
    Failed(String),
    /// Wrong usage: 2.
    #[error("{0}")]
    Usage(String),
    /// It may have been done, or may yet be: 3.
    #[error("outcome unknown: {0}")]
    Unknown(String),
    /// It is written, but does not run everywhere yet: 3.
    #[error("{0}")]
    NotYet(String),
}

/// Runs the command that `args` name.
#[must_use]
pub fn run(args: impl IntoIterator<Item = OsString>, environment: Environment) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors, and go to stdout.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match cli.run(environment) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("gogate: {error}");
            error.exit_code()
        }
    }
}

/// Runs `work` on a runtime that ends with it: a command needs no more than one thread.
fn block_on<T>(work: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| CliError::Failed(format!("cannot start: {error}")))?.block_on(work)
}

// === impl Cli ===

impl Cli {
    fn run(self, environment: Environment) -> Result<ExitCode, CliError> {
        let Self { target, command } = self;
        let client = || target.client(&environment);
        let output = target.output;
        match command {
            Command::Serve(serve) => serve.run(environment)?,
            Command::Dev(dev) => block_on(dev.run(environment))?,
            Command::Check { file } => {
                return check::run(&file, &mut std::io::stdout())
                    .map_err(|error| CliError::Failed(format!("the answer cannot be written: {error}")));
            }
            Command::Config(config) => block_on(config.run(&client()?, output, &environment))?,
            Command::Service(service) => block_on(service.run(&client()?, output))?,
            Command::Cluster(cluster) => block_on(cluster.run(&client()?, output))?,
            Command::Token(token) => token.run(output)?,
            Command::Version => println!("gogate {}", crate::node::BUILD),
            Command::Sample(sample) => block_on(sample.run(client()?))?,
            Command::Ready => block_on(probe::ready(&client()?))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

// === impl Target ===

impl Target {
    fn client(&self, environment: &Environment) -> Result<Client, CliError> {
        let admin = self.admin.as_ref().or_else(|| environment.get("GOGATE_ADMIN"));
        let token = self.token.as_ref().or_else(|| environment.get("GOGATE_TOKEN"));
        let addresses = admin.map_or(ADMIN_DEFAULT, String::as_str).split(',');
        let file = |own: &Option<PathBuf>, name: &str| {
            own.clone().or_else(|| environment.get(name).map(PathBuf::from))
        };
        let (cert, key) = (file(&self.cert, "GOGATE_CERT"), file(&self.key, "GOGATE_KEY"));
        let own = match (&cert, &key) {
            (Some(cert), Some(key)) => Some((cert.as_path(), key.as_path())),
            (None, None) => None,
            _ => return Err(CliError::Usage("--cert and --key go together".into())),
        };
        let Some(ca) = file(&self.ca, "GOGATE_CA") else {
            return Ok(Client::new(addresses, token.cloned())?);
        };
        let tls = certificates::client(&ca, own, &["http/1.1"]);
        Ok(Client::with_tls(addresses, token.cloned(), tls.map_err(CliError::Failed)?)?)
    }
}

// === impl CliError ===

impl CliError {
    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Failed(_) => ExitCode::from(1),
            Self::Usage(_) => ExitCode::from(2),
            Self::Unknown(_) | Self::NotYet(_) => ExitCode::from(3),
        }
    }
}

impl From<client::Error> for CliError {
    fn from(error: client::Error) -> Self {
        match error {
            client::Error::Address(said) => Self::Usage(said),
            client::Error::Refused { kind, detail, .. } if kind == "not-yet" => Self::NotYet(detail),
            client::Error::Refused { detail, .. } => Self::Failed(detail),
            client::Error::Unknown(said) => Self::Unknown(said),
            client::Error::Unreachable(said) => Self::Failed(format!(
                "{said}\nstart one with `gogate dev` or `gogate serve`, or name the nodes with --admin or GOGATE_ADMIN"
            )),
            client::Error::Answer(_) => Self::Failed(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
