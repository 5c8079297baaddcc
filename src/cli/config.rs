//! `gogate config`: read and change the gateway document.

use std::{io::Write, path::PathBuf, process::Command};

use clap::Subcommand;
use http::{Method, header};
use serde_json::{Value, json};

use super::{
    CliError, Environment, Format,
    client::{Call, Client},
    output::{Table, cell, print, show},
};
use crate::config;

#[derive(Subcommand)]
pub(super) enum Config {
    /// Print the document
    Get {
        /// Another version than the current one
        #[arg(long, value_name = "N")]
        version: Option<u64>,
        /// With its secrets, which the role admin may see
        #[arg(long)]
        secrets: bool,
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
    /// What changed between two versions
    Diff {
        /// The old one: a version, or a file [default: the one before B]
        a: Option<String>,
        /// The new one: a version, or a file [default: the current one]
        b: Option<String>,
    },
    /// Change the current version in $VISUAL or $EDITOR, and apply it if nobody else did meanwhile
    Edit,
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
    pub(super) async fn run(
        self,
        client: &Client,
        output: Format,
        environment: &Environment,
    ) -> Result<(), CliError> {
        match self {
            Self::Get { version, secrets } => {
                let reply = client.call(&get(version, secrets)).await?;
                print(&String::from_utf8_lossy(&reply.body))
            }
            Self::Apply { file, dry_run, if_version } => {
                apply(client, output, file, dry_run, if_version).await
            }
            Self::Diff { a, b } => diff(client, a, b).await,
            Self::Edit => edit(client, output, environment).await,
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

fn get(version: Option<u64>, secrets: bool) -> Call {
    let version = version.map(|version| format!("version={version}"));
    let secrets = secrets.then(|| "secrets=true".to_owned());
    let query: Vec<String> = version.into_iter().chain(secrets).collect();
    Call::get(format!("/v1/config?{}", query.join("&")))
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

/// Two versions are compared by the node, a file with a version here.
async fn diff(client: &Client, a: Option<String>, b: Option<String>) -> Result<(), CliError> {
    let is_version = |side: &Option<String>| side.as_ref().is_none_or(|text| text.parse::<u64>().is_ok());
    if is_version(&a) && is_version(&b) {
        let parts = [("from", &a), ("to", &b)];
        let query = parts.map(|(name, side)| side.as_ref().map(|version| format!("{name}={version}")));
        let query: Vec<String> = query.into_iter().flatten().collect();
        let reply = client.call(&Call::get(format!("/v1/config/diff?{}", query.join("&")))).await?;
        return print(&String::from_utf8_lossy(&reply.body));
    }
    // A file alone is what is to follow the current version.
    let (old, new) = if a.is_some() && b.is_none() { (None, a) } else { (a, b) };
    let (old, new) = (side(client, old).await?, side(client, new).await?);
    print(&config::diff(&old.0, &old.1, &new.0, &new.1))
}

/// The name and the text of a version, or of a file.
async fn side(client: &Client, named: Option<String>) -> Result<(String, String), CliError> {
    let version = match &named {
        None => None,
        Some(text) => match text.parse::<u64>() {
            Ok(version) => Some(version),
            Err(_) => {
                let read = config::read(text.as_ref());
                let read = read.map_err(|problem| CliError::Failed(problem.in_file(text)))?;
                // As the node shows its versions: else every secret would differ.
                return Ok((text.clone(), config::redact(&read).into_owned()));
            }
        },
    };
    let reply = client.call(&get(version, false)).await?;
    let name = named.map_or_else(|| "current version".to_owned(), |version| format!("version {version}"));
    Ok((name, String::from_utf8_lossy(&reply.body).into_owned()))
}

/// The document goes through a file of its own; what cannot be applied stays there.
async fn edit(client: &Client, output: Format, environment: &Environment) -> Result<(), CliError> {
    let failed = |what: &str, error: std::io::Error| CliError::Failed(format!("{what}: {error}"));
    let versions = client.call(&Call::get("/v1/config/versions")).await?.json()?;
    let newest = versions.get(0).and_then(|version| version["version"].as_u64());
    let version = newest.ok_or_else(|| CliError::Failed("there is no document yet: apply one".into()))?;
    // Who may not see secrets edits the rest: a document that has some is refused then, unless they are put in.
    let reply = match client.call(&get(Some(version), true)).await {
        Ok(reply) => reply,
        Err(_) => client.call(&get(Some(version), false)).await?,
    };
    let mut file = tempfile::Builder::new()
        .prefix("gogate-")
        .suffix(".yaml")
        .tempfile()
        .map_err(|error| failed("no file to edit can be made", error))?;
    file.write_all(&reply.body).map_err(|error| failed("the file to edit cannot be written", error))?;
    let editor = ["VISUAL", "EDITOR"].into_iter().find_map(|name| environment.get(name));
    let editor = editor.map_or("vi", String::as_str);
    let path = file.path().to_owned();
    // By a shell, as other programs do it: `EDITOR="code --wait"`.
    let status = Command::new("sh")
        .args(["-c", &format!("{editor} \"$1\""), "sh"])
        .arg(&path)
        .status()
        .map_err(|error| failed(&format!("`{editor}` cannot be started"), error))?;
    if !status.success() {
        return Err(CliError::Failed(format!("`{editor}` ended with {status}; nothing was changed")));
    }
    let edited = std::fs::read(&path).map_err(|error| failed("the edited file cannot be read", error))?;
    if edited == reply.body {
        return print("nothing was edited, nothing was changed\n");
    }
    let result = apply(client, output, path.clone(), false, Some(version)).await;
    if result.is_err() && file.keep().is_ok() {
        eprintln!("what you wrote is kept: gogate config apply {} --if-version {version}", path.display());
    }
    result
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
