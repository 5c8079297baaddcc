//! Which node of which cluster a data folder belongs to.
//!
//! Invariants: the incarnation is made with the folder and never changes, so a wiped disk is another node; the
//! file is replaced whole and carries a checksum. It is text, for people to read: JSON and a line with the
//! checksum. Neighbours: `bootstrap` fills in what the peers agree on, `storage` opens it first.

use std::{fs, io, path::Path};

use serde::{Deserialize, Serialize};

use super::{
    StorageError,
    codec::NodeRecord,
    folder::{seal_text, unseal_text, write_file},
};
use crate::state::NodeId;

/// The file's name in the data folder.
const FILE: &str = "identity";

const FORMAT: u32 = 1;

/// Which node of which cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Made with the folder: random, never changed.
    pub incarnation: u64,
    /// The node's name.
    pub name: String,
    /// The cluster's name.
    pub cluster_name: String,
    /// The cluster, once it was formed or joined.
    pub cluster_uuid: Option<String>,
    /// The node's id, once it was given one.
    pub node: Option<NodeId>,
    /// Who forms the cluster, kept before the first of them may act upon it.
    pub founders: Vec<(NodeId, NodeRecord)>,
    /// Whether it follows without a vote.
    pub learner: bool,
}

#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    format: u32,
    identity: T,
}

// === impl Identity ===

impl Identity {
    /// One for a folder that has none.
    pub(super) fn new(cluster_name: &str, name: &str, learner: bool) -> Self {
        Self {
            incarnation: rand::random(),
            name: name.to_owned(),
            cluster_name: cluster_name.to_owned(),
            cluster_uuid: None,
            node: None,
            founders: Vec::new(),
            learner,
        }
    }

    /// What the folder says; `None` if it says nothing.
    pub(super) fn load(data_dir: &Path) -> Result<Option<Self>, StorageError> {
        let path = data_dir.join(FILE);
        match fs::read(&path) {
            Ok(bytes) => {
                Self::decode(&bytes).map(Some).map_err(|problem| StorageError::Damaged { path, problem })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StorageError::Io { path, source }),
        }
    }

    pub(super) fn save(&self, data_dir: &Path) -> Result<(), StorageError> {
        let versioned = Versioned { format: FORMAT, identity: self };
        let json = serde_json::to_string_pretty(&versioned).expect("plain structs of strings and numbers");
        write_file(&data_dir.join(FILE), seal_text(&json).as_bytes())
    }

    /// Refuses a folder of somebody else.
    pub(super) fn check(&self, data_dir: &Path, cluster_name: &str, name: &str) -> Result<(), StorageError> {
        let problem = if self.cluster_name != cluster_name {
            format!(
                "it belongs to cluster `{}`, and this node is of cluster `{cluster_name}`: give it another data folder, or set cluster.name to `{}`",
                self.cluster_name, self.cluster_name
            )
        } else if self.name != name {
            format!(
                "it belongs to node `{}`, and this node is `{name}`: give it another data folder, or set node.name to `{}`",
                self.name, self.name
            )
        } else {
            return Ok(());
        };
        Err(StorageError::Refused { path: data_dir.to_owned(), problem })
    }

    fn decode(bytes: &[u8]) -> Result<Self, String> {
        let json = unseal_text(bytes)?;
        let Versioned { format, identity }: Versioned<serde_json::Value> =
            serde_json::from_str(json).map_err(|error| error.to_string())?;
        if format != FORMAT {
            return Err(format!("its format is {format}, this build reads {FORMAT}"));
        }
        serde_json::from_value(identity).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_flipped_bit_or_cut_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let mut identity = Identity::new("demo", "n1", false);
        identity.node = Some(1);
        identity.cluster_uuid = Some("4f".to_owned());
        identity.founders = vec![(1, NodeRecord { name: "n\"1\n".to_owned(), ..NodeRecord::default() })];
        identity.save(folder.path()).unwrap();
        assert_eq!(Identity::load(folder.path()).unwrap().as_ref(), Some(&identity));
        let sound = fs::read(folder.path().join(FILE)).unwrap();
        for at in 0..sound.len() {
            let mut damaged = sound.clone();
            damaged[at] ^= 0x10;
            for content in [&damaged[..], &sound[..at]] {
                fs::write(folder.path().join(FILE), content).unwrap();
                let found = Identity::load(folder.path());
                assert!(matches!(found, Err(StorageError::Damaged { .. })), "at {at}: {found:?}");
            }
        }
    }
}
