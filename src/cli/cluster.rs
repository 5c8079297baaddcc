//! `gogate cluster`: who is in it, who leads, who comes and goes.

use std::time::Duration;

use clap::Subcommand;
use http::Method;
use serde_json::{Value, json};

use super::{
    CliError, Format,
    client::{Call, Client},
    output::{Table, cell, print, show},
};

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
            Self::Drain => drain(client).await,
        }
    }
}

async fn change(client: &Client, call: Call) -> Result<Value, CliError> {
    Ok(client.with_timeout(CHANGE_TIMEOUT).call(&call).await?.json()?)
}

fn nodes(value: &Value) -> Table {
    let mut table = Table::new(&["ID", "NAME", "ROLE", "STATE", "ADMIN", "PEER", "LAG", "CONFIG", "BUILD"]);
    for node in value["nodes"].as_array().into_iter().flatten() {
        let keys = ["id", "name", "role", "state", "admin", "peer", "lag", "config_version", "build"];
        let mut cells = keys.map(|key| cell(&node[key]));
        if node["draining"] == true {
            cells[3].push_str(", draining");
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
