//! What gogate nodes agree on.
//!
//! A [`Cluster`] is this process's part in a Raft group that replicates a [`State`]: the registry of service
//! instances, the gateway documents and the members. The promises it keeps (names from the project's
//! design): P2 an acknowledged write is on the disks of a majority; P3 any node takes any call; P4 reads are
//! linearizable unless asked to be stale; P5 an outcome that is not known is said to be unknown.
//!
//! Raft does not show here: `raft/` alone names the library, `storage/` alone names the disk, `state/` names
//! neither a clock nor a file. Reading order: `handle`, then `state/mod`, then `batch` and `election`.

pub mod state;
pub mod storage;

mod activation;
mod backup;
mod batch;
mod bootstrap;
mod bugs;
mod election;
mod figures;
mod forward;
mod handle;
mod heartbeats;
mod leader;
mod manage;
mod members;
mod node;
mod raft;
mod reads;
mod status;
mod tls;
mod upgrade;

pub use backup::Backup;
pub use batch::COMMAND_BYTES_MAX;
pub use figures::{BUCKETS, DurationTotals, Figures};
pub use handle::{Changes, Cluster, ClusterConfig, ProposeError, ReadError, Secret, StartError, Timers};
pub use manage::ManageError;
pub use raft::{Survivor, recover, survivor};
pub use status::{Member, MemberReport, Status};
/// The build, as messages and the status name it.
pub const BUILD: &str = match cfg!(feature = "next-format") {
    true => concat!(env!("CARGO_PKG_VERSION"), "+next-format"),
    false => env!("CARGO_PKG_VERSION"),
};

pub use tls::{PeerTls, certificate_is_for};
