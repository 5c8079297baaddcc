//! `gogate service`: register and look up instances.

use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Value, json};

use super::{
    CliError, Format,
    client::{Call, Client},
    output::{Table, cell, print, show},
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
                let value = client.call(&Call::get(path(&id))).await?.json()?;
                show(output, &value, || table([&value]))
            }
            Self::Register(register) => {
                let call = Call::new(Method::POST, "/v1/services").json(&register.body()?);
                let value = client.call(&call).await?.json()?;
                show(output, &value, || table([&value]))
            }
            Self::Deregister { id } => {
                client.call(&Call::new(Method::DELETE, path(&id))).await?;
                print(&format!("{id} is gone\n"))
            }
            Self::Heartbeat { id } => {
                let call = Call::new(Method::PUT, format!("{}/heartbeat", path(&id))).repeatable();
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

fn table<'a>(instances: impl IntoIterator<Item = &'a Value>) -> Table {
    let mut table = Table::new(&["ID", "SERVICE", "ADDRESS", "WEIGHT", "TTL", "EXPIRES_IN_MS", "TAGS"]);
    for instance in instances {
        let keys = ["id", "name", "address", "weight", "ttl", "expires_in_ms", "tags"];
        table.row(keys.map(|key| cell(&instance[key])));
    }
    table
}

/// The path of one instance.
pub(super) fn path(id: &str) -> String {
    format!("/v1/services/{}", encode(id))
}

/// Percent-encodes all but what is unreserved (RFC 3986, section 2.3).
fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}
