//! What the command line needs of backups and of disks without a running node: it may not name the cluster itself.
//!
//! Neighbours: `gogate_cluster` does both; `cli::cluster` shows what this says.

use std::{fmt::Write, path::Path};

use gogate_cluster::{Backup, Survivor};
use serde_json::{Value, json};

/// Bytes of a backup's file that can be taken back.
pub const BYTES_MAX: usize = 256 << 20;

/// What a backup's file holds.
///
/// # Errors
/// Why it cannot be used.
pub fn inspect(bytes: &[u8]) -> Result<Value, String> {
    let backup = Backup::decode(bytes)?;
    Ok(json!({
        "cluster": backup.cluster,
        "node": backup.node,
        "made_at_ms": backup.made_at_ms,
        "index": backup.index,
        "instances": backup.instances.len(),
        "versions": backup.versions.len(),
        "version": backup.versions.last().map_or(0, |version| version.version),
        "bytes": bytes.len(),
    }))
}

/// What the folder of a stopped node would be made to, in words; changes nothing.
///
/// # Errors
/// Why it cannot be.
pub fn survivor(data_dir: &Path) -> Result<(String, String), String> {
    let survivor = gogate_cluster::survivor(data_dir).map_err(|error| error.to_string())?;
    Ok((survivor.cluster.clone(), described(&survivor)))
}

/// Makes the node of this folder the only member of a new cluster.
///
/// # Errors
/// Why it was not, or not wholly: the same call again is safe.
pub fn recover(data_dir: &Path) -> Result<String, String> {
    let recovered = gogate_cluster::recover(data_dir).map_err(|error| error.to_string())?;
    Ok(format!(
        "node {} (`{}`) is the only member of a new cluster of the name `{}`, uuid {}\n",
        recovered.node, recovered.name, recovered.cluster, recovered.cluster_uuid
    ))
}

fn described(survivor: &Survivor) -> String {
    let Survivor { cluster, cluster_uuid, name, node, last_log, committed, instances, version, others } =
        survivor;
    let mut said = format!(
        "cluster `{cluster}`, uuid {cluster_uuid}\n\
         node {node} (`{name}`): log up to {last_log}, of which {committed} are known to be agreed on\n\
         {instances} instances, document version {version}\n"
    );
    for (id, name) in others {
        let _ = writeln!(said, "gone for good: node {id} (`{name}`)");
    }
    said
}
