//! Which formats there are, and which one the cluster writes.
//!
//! Every encoding begins with the number of its format. A build reads [`OLDEST`] to [`FORMAT`]; the cluster writes
//! the one that is in its state, which every member understands and which only ever rises (`crate::upgrade` says
//! when). Invariants: a command or an outcome keeps its encoding for ever, what is new is a new variant of a
//! new format ([`Command::format`]); it is proposed only once the cluster's format allows it. What a command does changes
//! only with the format in the state, too: two builds with one log hold equal bytes.
//!
//! | format | what is new |
//! |---|---|
//! | 2 | the first that a build of today reads |
//! | 3 | [`Command::RaiseFormat`]: the cluster's format itself; a restored document does not come into force under a number that was refused |
//! | 4 | only with the feature `next-format`, to test an upgrade with two builds: `Command::DeregisterCounted` |

use super::Command;

/// The newest format that this build understands.
pub const FORMAT: u8 = if cfg!(feature = "next-format") { 4 } else { 3 };

/// The oldest format that this build reads, and the one in which every cluster begins. What is older was never
/// released.
pub const OLDEST: u8 = 2;

/// The format that a cluster writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Format(pub(super) u8);

impl Default for Format {
    fn default() -> Self {
        Self(OLDEST)
    }
}

impl Command {
    /// The format in which this command came: where it is not in force yet, it is not proposed.
    #[must_use]
    pub fn format(&self) -> u8 {
        match self {
            Self::Once { command, .. } => command.format(),
            Self::RaiseFormat { to } => *to,
            #[cfg(feature = "next-format")]
            Self::DeregisterCounted { .. } => 4,
            Self::Tick { .. }
            | Self::Register(_)
            | Self::Deregister { .. }
            | Self::PutDocument(_)
            | Self::RollbackDocument { .. }
            | Self::AdmitNode(_)
            | Self::ActivateDocument { .. }
            | Self::RefuseDocument { .. }
            | Self::RetireNode { .. }
            | Self::StorePart { .. }
            | Self::PutUploaded { .. }
            | Self::Restore { .. } => 2,
        }
    }

    /// What it is written as in `format`: the newest command that does the same. So far none took another's place.
    #[cfg(not(feature = "next-format"))]
    pub(crate) fn written_in(self, _format: u8) -> Self {
        self
    }

    /// What it is written as in `format`: the newest command that does the same.
    #[cfg(feature = "next-format")]
    pub(crate) fn written_in(self, format: u8) -> Self {
        match self {
            Self::Deregister { id } if format >= 4 => Self::DeregisterCounted { id },
            Self::Once { key, fingerprint, command } => {
                Self::Once { key, fingerprint, command: Box::new(command.written_in(format)) }
            }
            other => other,
        }
    }
}
