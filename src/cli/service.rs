//! `gogate service`: register and look up instances.

use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Value, json};

use super::{
    CliError, Format,
    client::{Call, Client, Event, Instance, encode, instance_path},
    output::{Table, cell, print, show, tell, yaml},
};

#[derive(Subcommand)]
pub(super) enum Service {
    /// The registered instances
    List {
        /// Those of one service
        name: Option<String>,
        /// Those with this tag
        #[arg(long)]
        tag: Option<String>,
        /// What the node last knew, without asking the leader
        #[arg(long)]
        stale: bool,
    },
    /// One instance
    Get {
        /// Its id
        id: String,
    },
    /// Add an instance, or replace the one of the same id
    Register(Register),
    /// Remove an instance
    Deregister {
        /// Its id
        id: String,
    },
    /// Say that an instance is alive
    Heartbeat {
        /// Its id
        id: String,
    },
    /// Print changes as they happen, at whichever node is left
    Watch {
        /// Those of one service
        name: Option<String>,
    },
}

#[derive(Args)]
pub(super) struct Register {
    /// The service that it belongs to
    #[arg(long)]
    name: String,
    /// Where it is reached
    #[arg(long, value_name = "HOST:PORT")]
    address: String,
    /// Unique in the cluster; made if not given
    #[arg(long)]
    id: Option<String>,
    /// How long it lives without a heartbeat; 0s: for ever
    #[arg(long, default_value = "30s")]
    ttl: String,
    /// For the weighted balancers
    #[arg(long, default_value_t = 1)]
    weight: u32,
    /// May be given several times
    #[arg(long)]
    tag: Vec<String>,
    /// May be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    meta: Vec<String>,
}

// === impl Service ===

impl Service {
    pub(super) async fn run(self, client: &Client, output: Format) -> Result<(), CliError> {
        match self {
            Self::List { name, tag, stale } => {
                let mut path = String::from("/v1/services?");
                for (key, value) in [("name", name), ("tag", tag)] {
                    if let Some(value) = value {
                        path.push_str(&format!("{key}={}&", encode(&value)));
                    }
                }
                path.push_str(if stale { "stale" } else { "stale=false" });
                let value = client.call(&Call::get(path)).await?.json()?;
                show(output, &value, || table(value.as_array().into_iter().flatten()))
            }
            Self::Get { id } => {
                let value = client.call(&Call::get(instance_path(&id))).await?.json()?;
                show(output, &value, || table([&value]))
            }
            Self::Watch { name } => watch(client, output, name.as_deref()).await,
            Self::Register(register) => {
                let call = Call::new(Method::POST, "/v1/services").json(&register.body()?);
                let value = client.call(&call).await?.json()?;
                show(output, &value, || table([&value]))
            }
            Self::Deregister { id } => {
                client.call(&Call::new(Method::DELETE, instance_path(&id))).await?;
                print(&format!("{id} is gone\n"))
            }
            Self::Heartbeat { id } => {
                let call = Call::new(Method::PUT, format!("{}/heartbeat", instance_path(&id))).repeatable();
                let value = client.call(&call).await?.json()?;
                show(output, &value, || {
                    let mut table = Table::new(&["EPOCH", "EXPIRES_IN_MS"]);
                    table.row(["epoch", "expires_in_ms"].map(|key| cell(&value[key])));
                    table
                })
            }
        }
    }
}

// === impl Register ===

impl Register {
    fn body(self) -> Result<Value, CliError> {
        let Self { name, address, id, ttl, weight, tag, meta } = self;
        let mut metadata = serde_json::Map::new();
        for pair in meta {
            let Some((key, value)) = pair.split_once('=') else {
                return Err(CliError::Usage(format!("--meta takes KEY=VALUE, not `{pair}`")));
            };
            metadata.insert(key.to_owned(), value.into());
        }
        Ok(
            json!({"id": id, "name": name, "address": address, "ttl": ttl, "weight": weight, "tags": tag, "metadata": metadata}),
        )
    }
}

/// Prints until nobody reads on.
async fn watch(client: &Client, output: Format, name: Option<&str>) -> Result<(), CliError> {
    let mut watch = client.watch(name).await?;
    loop {
        let event = watch.next().await?;
        let value = || serde_json::to_value(&event).expect("its keys are texts and nothing in it can fail");
        let text = match output {
            Format::Json => format!("{}\n", value()),
            Format::Yaml => format!("---\n{}", yaml(&value())),
            Format::Table => lines(&event, &time_of_day()),
        };
        if !tell(&text)? {
            return Ok(());
        }
    }
}

/// An event for a person: when it was heard of, what happened, to whom.
fn lines(event: &Event, time: &str) -> String {
    let line = |what: &str, instance: &Instance| {
        let Instance { id, name, address, .. } = instance;
        format!("{time}  {what:<12}  {id:<28}  {name:<16}  {address}\n")
    };
    match event {
        Event::Snapshot { index, instances, .. } => {
            let count = instances.len();
            let mut text = format!("{time}  {:<12}  instances: {count}, index: {index}\n", "snapshot");
            text.extend(instances.iter().map(|instance| line("present", instance)));
            text
        }
        Event::Registered { instance, .. } => line("registered", instance),
        Event::Updated { instance, .. } => line("updated", instance),
        Event::Deregistered { instance, .. } => line("deregistered", instance),
        Event::Expired { instance, .. } => line("expired", instance),
        Event::Config { version, .. } => format!("{time}  {:<12}  version {version}\n", "config"),
    }
}

/// The time of day in UTC.
fn time_of_day() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let seconds = now.as_secs() % 86_400;
    format!("{:02}:{:02}:{:02}Z", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

fn table<'a>(instances: impl IntoIterator<Item = &'a Value>) -> Table {
    let mut table = Table::new(&["ID", "SERVICE", "ADDRESS", "WEIGHT", "TTL", "EXPIRES_IN_MS", "TAGS"]);
    for instance in instances {
        let keys = ["id", "name", "address", "weight", "ttl", "expires_in_ms", "tags"];
        table.row(keys.map(|key| cell(&instance[key])));
    }
    table
}
