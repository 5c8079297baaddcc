//! `gogate config`: read and change the gateway document.

use std::path::PathBuf;

use clap::Subcommand;
use http::{Method, header};
use serde_json::{Value, json};

use super::{
    CliError, Format,
    client::{Call, Client},
    output::{Table, cell, print, show},
};

#[derive(Subcommand)]
pub(super) enum Config {
    /// Print the document
    Get {
        /// Another version than the current one
        #[arg(long, value_name = "N")]
        version: Option<u64>,
    },
    /// Make a file the current document, on all nodes
    Apply {
        /// YAML or JSON
        file: PathBuf,
        /// Validate only
        #[arg(long)]
        dry_run: bool,
        /// Only if this version is the current one
        #[arg(long, value_name = "N")]
        if_version: Option<u64>,
    },
    /// The versions that are kept
    Log,
    /// What each node runs
    Status,
    /// Make a new version with the content of an old one
    Rollback {
        /// The old one
        version: u64,
    },
}

// === impl Config ===

impl Config {
    pub(super) async fn run(self, client: &Client, output: Format) -> Result<(), CliError> {
        match self {
            Self::Get { version } => {
                let path =
                    version.map_or("/v1/config".into(), |version| format!("/v1/config?version={version}"));
                let reply = client.call(&Call::get(path)).await?;
                print(&String::from_utf8_lossy(&reply.body))
            }
            Self::Apply { file, dry_run, if_version } => {
                apply(client, output, file, dry_run, if_version).await
            }
            Self::Log => {
                let value = client.call(&Call::get("/v1/config/versions")).await?.json()?;
                show(output, &value, || {
                    let mut table = Table::new(&["VERSION", "AT", "BY", "SIZE", "SHA256"]);
                    for version in value.as_array().into_iter().flatten() {
                        let sha256 = cell(&version["sha256"]).chars().take(12).collect();
                        let [number, at, by, size] =
                            ["version", "at", "by", "size"].map(|key| cell(&version[key]));
                        table.row([number, at, by, size, sha256]);
                    }
                    table
                })
            }
            Self::Status => {
                let value = client.call(&Call::get("/v1/config/status")).await?.json()?;
                show(output, &value, || {
                    let mut table = Table::new(&["NODE", "STATE", "VERSION", "ERROR"]);
                    for (name, node) in value["nodes"].as_object().into_iter().flatten() {
                        let [state, version, error] =
                            ["state", "version", "error"].map(|key| cell(&node[key]));
                        table.row([name.clone(), state, version, error]);
                    }
                    table
                })
            }
            Self::Rollback { version } => {
                let call =
                    Call::new(Method::POST, "/v1/config/rollback").json(&json!({ "version": version }));
                let value = client.call(&call).await?.json()?;
                applied(output, &value)
            }
        }
    }
}

async fn apply(
    client: &Client,
    output: Format,
    file: PathBuf,
    dry_run: bool,
    if_version: Option<u64>,
) -> Result<(), CliError> {
    let content = std::fs::read(&file);
    let content =
        content.map_err(|error| CliError::Failed(format!("{}: cannot be read: {error}", file.display())))?;
    let mut call = Call::new(Method::PUT, if dry_run { "/v1/config?dry_run" } else { "/v1/config" });
    call.headers.push((header::CONTENT_TYPE, "application/yaml".into()));
    if let Some(version) = if_version {
        call.headers.push((header::IF_MATCH, format!("\"{version}\"")));
    }
    call.body = content.into();
    let value = client.call(&call).await?.json()?;
    applied(output, &value)
}

fn applied(output: Format, value: &Value) -> Result<(), CliError> {
    if output != Format::Table {
        return show(output, value, || Table::new(&[]));
    }
    let version = cell(&value["version"]);
    let changed = value["changed"].as_bool().unwrap_or(true);
    let mut said = match (value["dry_run"].as_bool().unwrap_or(false), changed) {
        (true, true) => format!("valid; it would follow version {version}; nothing was changed\n"),
        (true, false) => format!("valid; it equals version {version}, which runs\n"),
        (false, true) => format!("version {version} runs\n"),
        (false, false) => format!("nothing to do: it equals version {version}, which runs\n"),
    };
    for (node, running) in value["nodes"].as_object().into_iter().flatten() {
        said.push_str(&format!("  {node}: {}\n", cell(running)));
    }
    print(&said)
}
