//! `gogate cluster`: who is in it, who leads.

use clap::Subcommand;

use super::{
    CliError, Format,
    client::{Call, Client},
    output::{Table, cell, show},
};

#[derive(Subcommand)]
pub(super) enum ClusterCommand {
    /// The nodes: who leads, who lags, what each runs
    Status,
}

// === impl ClusterCommand ===

impl ClusterCommand {
    pub(super) async fn run(self, client: &Client, output: Format) -> Result<(), CliError> {
        match self {
            Self::Status => {
                let value = client.call(&Call::get("/v1/cluster")).await?.json()?;
                show(output, &value, || {
                    let mut table = Table::new(&[
                        "ID", "NAME", "ROLE", "STATE", "ADMIN", "PEER", "LAG", "CONFIG", "BUILD",
                    ]);
                    for node in value["nodes"].as_array().into_iter().flatten() {
                        let keys = [
                            "id",
                            "name",
                            "role",
                            "state",
                            "admin",
                            "peer",
                            "lag",
                            "config_version",
                            "build",
                        ];
                        table.row(keys.map(|key| cell(&node[key])));
                    }
                    table
                })
            }
        }
    }
}
