//! The cluster's format: raised when every member understands a newer one.
//!
//! Job: [`Upgrade`] asks, on the leader, which format each member understands, voters and learners alike, and proposes
//! to raise the cluster's to the newest that all of them do (`Command::RaiseFormat`); [`check`] says whether a node may
//! join, and [`allows`] whether a command may be proposed: the one place that keeps new ones out of the log until then.
//!
//! Invariants:
//! - The format never falls. A member that does not answer keeps it where it is.
//! - No member meets what it does not understand. The raise is itself of the new format; it is proposed, and a
//!   node let in, under one lock (`Admission::claim`), and who joins is checked once more after its id was agreed on:
//!   then every raise that is ahead of it in the log is in the state.
//! - If one does all the same (a build that was taken back too late), it stops before it writes anything of it
//!   (`storage::formats`).
//!
//! Until the raise every node can be taken back to its old build; after it none. Neighbours: `state::format` has
//! the list, `storage::codec` writes it before everything.

use std::{sync::Arc, time::Duration};

use crate::{
    manage::ask,
    node::Node,
    state::{Command, NodeId, Outcome, State},
};

/// Between two questions to the members, while there is a newer format than the cluster's.
const PERIOD: Duration = Duration::from_secs(1);

/// What a build understands that does not say it yet.
const UNSAID: u8 = 2;

/// How long a raise may take.
const RAISE_TIMEOUT: Duration = Duration::from_secs(2);

/// Raises the cluster's format while this node leads; idle on every other one.
pub(crate) struct Upgrade {
    node: Arc<Node>,
    /// What keeps the format where it is, as it was said last.
    told: String,
}

/// Whether a build that understands `oldest` to `format` can be part of a cluster of `current`, and if not, why.
pub(crate) fn check(format: u8, oldest: u8, current: u8) -> Result<(), String> {
    let advice = if format < current {
        "install the gogate that the other nodes run"
    } else if oldest > current {
        "update the other nodes first, or install a gogate in between"
    } else {
        return Ok(());
    };
    Err(format!(
        "the cluster writes format {current}, and its build understands formats {oldest} to {format}: {advice}"
    ))
}

/// Whether `command` may be proposed in a cluster of `format`, and if not, why.
pub(crate) fn allows(format: u8, command: &Command) -> Result<(), String> {
    let needed = command.format();
    // A raise is proposed by `Upgrade` alone, which has asked.
    if needed <= format || matches!(command, Command::RaiseFormat { .. }) {
        return Ok(());
    }
    Err(format!("this needs format {needed}, and the cluster still writes {format}: update all nodes first"))
}

/// The newest format that a peer understands, as it says; one that says nothing is of a build before this was said.
pub(crate) fn said(format: u32) -> u8 {
    match format {
        0 => UNSAID,
        format => u8::try_from(format).unwrap_or(u8::MAX),
    }
}

// === impl Upgrade ===

impl Upgrade {
    pub(crate) fn new(node: Arc<Node>) -> Self {
        Self { node, told: String::new() }
    }

    /// Ends with the core.
    pub(crate) async fn run(mut self) {
        let mut roles = self.node.core.roles();
        loop {
            let is_newest = self.node.replica.read(State::format) >= self.node.format();
            if roles.leading().is_some() && !is_newest {
                self.raise().await;
            }
            // On the leader a new member or a new build shows by its answers only.
            let again = tokio::time::sleep(PERIOD);
            tokio::select! {
                runs = roles.changed() => if !runs { return },
                () = again, if !is_newest => {}
            }
        }
    }

    async fn raise(&mut self) {
        // Asked once without the lock, which a member that is away would keep from others for as long as it is.
        if let Err(reason) = self.common().await {
            if reason != self.told {
                tracing::info!("{reason}");
                self.told = reason;
            }
            return;
        }
        // Somebody who joins just now is asked next time.
        let Some(_nobody_joins) = self.node.members.claim() else { return };
        let Ok(format) = self.common().await else { return };
        let command = vec![Command::RaiseFormat { to: format }];
        let raised = self.node.proposer.propose_as_leader(command, RAISE_TIMEOUT).await;
        if let Ok([Outcome::Raised { format }]) = raised.as_deref() {
            tracing::info!(
                format,
                "every node understands this format, which is the cluster's from here on: older builds cannot be started any more"
            );
        }
    }

    /// The newest format that all members understand, if the cluster does not write it yet; else why not.
    async fn common(&self) -> Result<u8, String> {
        let membership = self.node.core.roles().membership();
        let answers = ask(&self.node, &membership, membership.nodes.keys().copied()).await;
        let current = self.node.replica.read(State::format);
        let understands = |id: &NodeId| answers.get(id).map(|reply| said(reply.format));
        let newest = membership.nodes.keys().map(understands).min().flatten().unwrap_or(current);
        if newest > current {
            return Ok(newest.min(self.node.format()));
        }
        let slow = membership.nodes.iter().filter_map(|(id, record)| match understands(id) {
            None => Some(format!("node {id} (`{}`) does not answer", record.name)),
            Some(format) if format <= current => {
                Some(format!("node {id} (`{}`) understands no newer one than {format}", record.name))
            }
            Some(_) => None,
        });
        let slow: Vec<_> = slow.collect();
        Err(format!(
            "the cluster keeps format {current} and does not use {} yet: {}",
            self.node.format(),
            slow.join(", ")
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_joins_whose_build_reads_what_the_cluster_writes() {
        assert_eq!(check(5, 3, 3), Ok(()));
        assert_eq!(check(5, 3, 5), Ok(()));
        let newer = check(5, 3, 6).unwrap_err();
        assert!(newer.contains("writes format 6") && newer.contains("formats 3 to 5"), "{newer}");
        let older = check(5, 3, 2).unwrap_err();
        assert!(older.contains("update the other nodes first"), "{older}");
    }

    #[test]
    fn who_says_nothing_understands_the_format_of_then_and_nonsense_is_not_believed_to_be_little() {
        assert_eq!([0, 3, 1000].map(said), [2, 3, u8::MAX]);
    }

    #[cfg(feature = "next-format")]
    #[test]
    fn a_new_command_is_proposed_once_the_clusters_format_allows_it() {
        let new = Command::DeregisterCounted { id: "a".into() };
        let once = Command::Once { key: "k".into(), fingerprint: [0; 16], command: Box::new(new.clone()) };
        for command in [new, once] {
            let refused = allows(3, &command).unwrap_err();
            assert!(refused.contains("needs format 4") && refused.contains("update all nodes"), "{refused}");
            assert_eq!(allows(4, &command), Ok(()));
        }
        let old = Command::Deregister { id: "a".into() };
        assert_eq!(old.clone().written_in(3), old);
        assert_eq!(old.written_in(4), Command::DeregisterCounted { id: "a".into() });
    }
}
