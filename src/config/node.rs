//! What one process runs on: the node file, the environment and the flags, every default resolved.
//!
//! Invariant: nothing is left to check. Neighbours: `node_file` fills the written form, [`NodeConfig`] is
//! what `crate::node` wires.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use super::document::Secret;

/// One process's own settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    /// Stable and unique in the cluster.
    pub name: String,
    /// Where the store and the identity lie.
    pub data_dir: PathBuf,
    /// Threads of the data plane; at least 1 (0 in the file: one per core).
    pub workers: usize,
    /// Where the admin API listens.
    pub admin_listen: SocketAddr,
    /// Who may call it; none: whoever reaches it (loopback only, unless `insecure`).
    pub admin_tokens_file: Option<PathBuf>,
    /// What it is served with; none: without TLS.
    pub admin_tls: Option<TlsFiles>,
    /// Changes of the document and of the cluster that a caller may ask this node for each second; at least 1.
    pub admin_change_rate: u32,
    /// Where other nodes reach this one's gRPC service from, and where it listens.
    pub peer_listen: SocketAddr,
    /// `host:port` told to the other nodes; the listen address unless set.
    pub peer_advertise: String,
    /// The shared secret's content; none: peers are believed (loopback only, unless `insecure`).
    pub peer_secret: Option<Secret>,
    /// What the peers prove to each other; none: they speak without TLS. It has a CA.
    pub peer_tls: Option<TlsFiles>,
    /// The group to be part of; none: a cluster of one.
    pub cluster: Option<ClusterConfig>,
    /// Listener name → the address to open instead of the document's.
    pub bind: BTreeMap<String, SocketAddr>,
    /// The gateway document's file, if this node has one.
    pub gateway_file: Option<PathBuf>,
    /// Whether to propose the file when it changes.
    pub gateway_watch: bool,
    /// How long to go on accepting after becoming unready.
    pub drain_wait: Duration,
    /// How long work may take to finish after that.
    pub drain_deadline: Duration,
    /// Logging.
    pub log: LogConfig,
    /// Whether addresses beyond loopback may do without credentials.
    pub insecure: bool,
}

/// Files in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// This node's certificate, and those between it and the CA.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The CA of those who show a certificate to this node.
    pub ca: Option<PathBuf>,
}

/// The group to be part of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterConfig {
    /// The cluster's name: a data folder of another one is refused.
    pub name: String,
    /// How many nodes form it on the first start; 0: it forms none, it waits to be let in.
    pub expect: usize,
    /// `host:port` of the peers, this node among them or not.
    pub peers: Vec<String>,
    /// Voter or learner.
    pub role: Role,
}

/// What a node is in the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It votes.
    Voter,
    /// It follows and serves.
    Learner,
}

/// How the process logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// A `tracing` filter: `info`, `gogate=debug,warn`.
    pub level: String,
    /// One JSON object a line instead of text; of the access log, too.
    pub json: bool,
    /// Where requests are logged.
    pub access: AccessTarget,
}

/// Where the access log goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum AccessTarget {
    /// Nowhere.
    #[default]
    Off,
    /// Standard output.
    Stdout,
    /// Appended to a file.
    File(PathBuf),
}

impl std::fmt::Display for AccessTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Stdout => f.write_str("stdout"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}
