//! `gogate cluster`: who is in it, who leads, who comes and goes.

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Subcommand;
use http::Method;
use serde_json::{Value, json};

use super::{
    CliError, Format,
    client::{Call, Client},
    output::{Table, cell, print, show},
};
use crate::node::offline;

/// What a change of the members may take, and how long its answer is waited for.
const CHANGE: &str = "30s";
const CHANGE_TIMEOUT: Duration = Duration::from_secs(35);

/// Between two looks at something that goes on.
const PROGRESS_PERIOD: Duration = Duration::from_millis(500);

#[derive(Subcommand)]
pub(super) enum ClusterCommand {
    /// The nodes: who leads, who lags, what each runs
    Status,
    /// Let a node in that runs and waits; it votes once it has caught up
    Add {
        /// Its peer address, as 10.0.0.4:7170
        address: String,
        /// It follows and serves, and never votes
        #[arg(long)]
        learner: bool,
    },
    /// Have a node vote that follows
    Promote {
        /// Its id, as `status` shows it
        id: u64,
    },
    /// Take a node out for good, dead or alive
    Remove {
        /// Its id, as `status` shows it
        id: u64,
    },
    /// Have another node lead
    TransferLeader {
        /// Which one; without it: whichever is best
        id: Option<u64>,
    },
    /// Have every node write its state to its disk, and shorten its log
    Snapshot,
    /// Write all instances and documents to a file
    Backup {
        /// Replaced whole, once all of it is there and checked
        file: PathBuf,
        /// What one node last knew: also without a quorum
        #[arg(long)]
        stale: bool,
    },
    /// Read instances and documents from a file into a new, empty cluster
    Restore {
        /// As `backup` wrote it
        file: PathBuf,
        /// In the place of what the cluster has
        #[arg(long)]
        force: bool,
    },
    /// When the majority is gone for good: make one stopped node the only member of a new cluster
    Recover {
        /// Its data folder
        #[arg(long, value_name = "DIR")]
        data_dir: PathBuf,
        /// The cluster's name, typed to confirm; without it: only says what would be done
        #[arg(long, value_name = "NAME")]
        confirm: Option<String>,
    },
    /// Have the node that --admin names stop taking traffic, so that it can be stopped
    Drain,
}

// === impl ClusterCommand ===

impl ClusterCommand {
    pub(super) async fn run(self, client: &Client, output: Format) -> Result<(), CliError> {
        match self {
            Self::Status => {
                let value = client.call(&Call::get("/v1/cluster")).await?.json()?;
                show(output, &value, || nodes(&value))
            }
            Self::Add { address, learner } => add(client, output, &address, learner).await,
            Self::Promote { id } => {
                let path = format!("/v1/cluster/members/{id}/promote?timeout={CHANGE}");
                let member = change(client, Call::new(Method::POST, path).repeatable()).await?;
                show(output, &member, || members(&member))
            }
            Self::Remove { id } => {
                let path = format!("/v1/cluster/members/{id}?timeout={CHANGE}");
                let call = Call::new(Method::DELETE, path);
                client.with_timeout(CHANGE_TIMEOUT).call(&call).await?;
                eprintln!("node {id} is no member any more; if it still runs, it can be stopped");
                Ok(())
            }
            Self::TransferLeader { id } => {
                let path = format!("/v1/cluster/transfer-leader?timeout={CHANGE}");
                let body = id.map_or(json!({}), |id| json!({ "to": id }));
                let value = change(client, Call::new(Method::POST, path).json(&body)).await?;
                show(output, &value, || {
                    let mut table = Table::new(&["LEADER"]);
                    table.row([cell(&value["leader"])]);
                    table
                })
            }
            Self::Snapshot => {
                let call =
                    Call::new(Method::POST, format!("/v1/cluster/snapshot?timeout={CHANGE}")).repeatable();
                let value = change(client, call).await?;
                show(output, &value, || {
                    let mut table = Table::new(&["NODE", "INDEX"]);
                    for (name, index) in value["nodes"].as_object().into_iter().flatten() {
                        table.row([name.clone(), cell(index)]);
                    }
                    table
                })
            }
            Self::Backup { file, stale } => backup(client, output, &file, stale).await,
            Self::Restore { file, force } => restore(client, output, &file, force).await,
            Self::Recover { data_dir, confirm } => recover(&data_dir, confirm.as_deref()),
            Self::Drain => drain(client).await,
        }
    }
}

async fn change(client: &Client, call: Call) -> Result<Value, CliError> {
    Ok(client.with_timeout(CHANGE_TIMEOUT).call(&call).await?.json()?)
}

fn nodes(value: &Value) -> Table {
    let mut table =
        Table::new(&["ID", "NAME", "ROLE", "STATE", "ADMIN", "PEER", "LAG", "CONFIG", "BUILD", "FORMAT"]);
    for node in value["nodes"].as_array().into_iter().flatten() {
        let keys =
            ["id", "name", "role", "state", "admin", "peer", "lag", "config_version", "build", "format"];
        let mut cells = keys.map(|key| cell(&node[key]));
        if node["draining"] == true {
            cells[3].push_str(", draining");
        }
        // What is in use, and what a newer build could use once all nodes have it.
        if node["format"].as_u64() > value["format"].as_u64() {
            cells[9] = format!("{} of {}", cell(&value["format"]), cells[9]);
        }
        table.row(cells);
    }
    table
}

fn members(member: &Value) -> Table {
    let mut table = Table::new(&["ID", "NAME", "ROLE", "PEER"]);
    table.row(["id", "name", "role", "peer"].map(|key| cell(&member[key])));
    table
}

async fn add(client: &Client, output: Format, address: &str, learner: bool) -> Result<(), CliError> {
    let wanted = if learner { "learner" } else { "voter" };
    let path = format!("/v1/cluster/members?timeout={CHANGE}");
    let call =
        Call::new(Method::POST, path).json(&json!({ "address": address, "role": wanted })).repeatable();
    let mut member = change(client, call).await?;
    let mut told = Value::Null;
    while member["role"] != wanted {
        let status = client.call(&Call::get("/v1/cluster")).await?.json()?;
        let nodes = status["nodes"].as_array();
        let Some(node) = nodes.into_iter().flatten().find(|node| node["id"] == member["id"]) else {
            return Err(CliError::Failed(format!("node {} is no member any more", member["id"])));
        };
        if told != node["lag"] {
            told = node["lag"].clone();
            eprintln!("node {} follows, {} entries behind", member["id"], cell(&told));
        }
        member["role"] = node["role"].clone();
        tokio::time::sleep(PROGRESS_PERIOD).await;
    }
    show(output, &member, || members(&member))
}

async fn drain(client: &Client) -> Result<(), CliError> {
    let [node] = client.nodes() else {
        return Err(CliError::Usage(
            "--admin names several nodes, and draining is about one: name the one that is to stop".into(),
        ));
    };
    let call = Call::new(Method::POST, "/v1/node/drain?timeout=5s").repeatable();
    loop {
        let value = client.call(&call).await?.json()?;
        if value["state"] == "drained" {
            return print(&format!("{} is drained and can be stopped\n", cell(&value["node"])));
        }
        eprintln!("{} at {node} is draining", cell(&value["node"]));
    }
}

/// What a backup or a restore of a large cluster may take.
const LONG: &str = "60s";
const LONG_TIMEOUT: Duration = Duration::from_secs(65);

async fn backup(client: &Client, output: Format, file: &Path, stale: bool) -> Result<(), CliError> {
    let stale = if stale { "&stale" } else { "" };
    let call = Call::get(format!("/v1/cluster/backup?timeout={LONG}{stale}"));
    let reply = client.with_timeout(LONG_TIMEOUT).call(&call).await?;
    let unsound = |problem| CliError::Failed(format!("what arrived is not a sound backup: {problem}"));
    let about = offline::inspect(&reply.body).map_err(unsound)?;
    let mut partial = file.as_os_str().to_owned();
    partial.push(".partial");
    let written = File::create(&partial)
        .and_then(|mut partial| partial.write_all(&reply.body).and_then(|()| partial.sync_all()))
        .and_then(|()| std::fs::rename(&partial, file));
    written.map_err(|error| CliError::Failed(format!("{}: {error}", file.display())))?;
    show(output, &about, || contents(&about))
}

async fn restore(client: &Client, output: Format, file: &Path, force: bool) -> Result<(), CliError> {
    let failed = |problem: String| CliError::Failed(format!("{}: {problem}", file.display()));
    let bytes = std::fs::read(file).map_err(|error| failed(error.to_string()))?;
    let about = offline::inspect(&bytes).map_err(failed)?;
    eprintln!("{} bytes of cluster {}, index {}", about["bytes"], cell(&about["cluster"]), about["index"]);
    let force = if force { "&force" } else { "" };
    let mut call = Call::new(Method::POST, format!("/v1/cluster/restore?timeout={LONG}{force}"));
    call.body = bytes.into();
    call.headers.push((http::header::CONTENT_TYPE, "application/octet-stream".into()));
    let value = client.with_timeout(LONG_TIMEOUT).call(&call).await?.json()?;
    show(output, &value, || contents(&value))
}

fn contents(about: &Value) -> Table {
    let mut table = Table::new(&["INDEX", "INSTANCES", "VERSION", "VERSIONS", "BYTES"]);
    table.row(["index", "instances", "version", "versions", "bytes"].map(|key| cell(&about[key])));
    table
}

fn recover(data_dir: &Path, confirm: Option<&str>) -> Result<(), CliError> {
    let (cluster, described) = offline::survivor(data_dir).map_err(CliError::Failed)?;
    let warning = "What this disk does not hold is lost: writes that the others acknowledged and this node had not seen yet.\n\
        If one of the others can still be started, start it instead. If not, wipe their data folders before they run again.\n";
    match confirm {
        Some(name) if name == cluster => {
            eprint!("{described}{warning}");
            print(&offline::recover(data_dir).map_err(CliError::Failed)?)
        }
        Some(name) => Err(CliError::Usage(format!(
            "the cluster is called `{cluster}`, not `{name}`; nothing was changed"
        ))),
        None => {
            print(&format!("{described}{warning}"))?;
            Err(CliError::Usage(format!("nothing was changed; to do it, add --confirm {cluster}")))
        }
    }
}
