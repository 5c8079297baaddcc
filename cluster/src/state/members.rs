//! Which node ids were ever given: an id is never used twice.
//!
//! Who votes is the Raft group's own record (`raft`); this one remembers the dead as well, so that a disk that
//! was wiped, or a backup of one, cannot come back as somebody it is not.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{
    NodeId,
    command::{NewNode, Refusal},
};

/// Every node that was ever admitted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Members {
    admitted: BTreeMap<NodeId, Admitted>,
    /// Those that were taken out for good.
    retired: BTreeSet<NodeId>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Admitted {
    name: String,
    incarnation: u64,
}

// === impl Members ===

impl Members {
    /// The id of the node with this incarnation.
    #[must_use]
    pub fn by_incarnation(&self, incarnation: u64) -> Option<NodeId> {
        self.admitted.iter().find(|(_, node)| node.incarnation == incarnation).map(|(id, _)| *id)
    }

    /// Every id that was ever given.
    pub fn ids(&self) -> impl Iterator<Item = NodeId> {
        self.admitted.keys().copied()
    }

    /// Whether this id was ever given.
    #[must_use]
    pub fn knows(&self, id: NodeId) -> bool {
        self.admitted.contains_key(&id)
    }

    /// Whether this node was taken out for good.
    #[must_use]
    pub fn is_retired(&self, id: NodeId) -> bool {
        self.retired.contains(&id)
    }

    /// Those that were taken out for good.
    pub fn retired(&self) -> impl Iterator<Item = NodeId> {
        self.retired.iter().copied()
    }

    /// Takes a node out for good; again changes nothing.
    pub(super) fn retire(&mut self, id: NodeId) -> Result<(), Refusal> {
        if !self.knows(id) {
            return Err(Refusal::UnknownNode { node: id });
        }
        self.retired.insert(id);
        Ok(())
    }

    pub(super) fn admit(&mut self, node: NewNode) -> Result<NodeId, Refusal> {
        let NewNode { name, incarnation, id } = node;
        if let Some(known) = self.by_incarnation(incarnation) {
            return Ok(known);
        }
        let last = self.admitted.last_key_value().map_or(0, |(id, _)| *id);
        let id = id.unwrap_or_else(|| last.saturating_add(1));
        if id == 0 || self.admitted.contains_key(&id) {
            return Err(Refusal::UsedNode { node: id });
        }
        self.admitted.insert(id, Admitted { name, incarnation });
        Ok(id)
    }
}
