//! One instance of the registry: registered, replaced, removed, read. It is not there at first.
//!
//! Which content it had between two others that were read is nobody's business: all that are never read are
//! one state.

use std::collections::HashSet;

use super::Model;

/// The model of one id.
#[derive(Debug, Default)]
pub struct InstanceModel {
    read: HashSet<String>,
}

/// What was done to an instance, and what was said about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InstanceOperation {
    /// It was registered; whether it was new, if that was said.
    Register {
        /// The hash of its content.
        content: String,
        /// Whether it was not there before.
        created: Option<bool>,
    },
    /// It was removed; whether it was there, if that was said.
    Deregister {
        /// Whether it was there.
        found: Option<bool>,
    },
    /// It was read; none: it was not there.
    Get(Option<String>),
}

/// What is there.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum InstanceState {
    /// Nothing.
    Absent,
    /// An instance; with its content, if anybody ever reads that.
    Present(Option<String>),
}

impl InstanceModel {
    /// Somebody reads this content in the history.
    pub fn read(&mut self, content: &str) {
        self.read.insert(content.to_owned());
    }
}

impl Model for InstanceModel {
    type Operation = InstanceOperation;
    type State = InstanceState;

    fn initial(&self) -> InstanceState {
        InstanceState::Absent
    }

    fn step(&self, state: &InstanceState, operation: &InstanceOperation) -> Option<InstanceState> {
        let absent = *state == InstanceState::Absent;
        match operation {
            InstanceOperation::Register { content, created } => created
                .is_none_or(|created| created == absent)
                .then(|| InstanceState::Present(self.read.get(content).cloned())),
            InstanceOperation::Deregister { found } => {
                found.is_none_or(|found| found != absent).then_some(InstanceState::Absent)
            }
            InstanceOperation::Get(seen) => match (state, seen) {
                (InstanceState::Absent, None) => true,
                (InstanceState::Present(content), Some(_)) => content == seen,
                _ => false,
            }
            .then(|| state.clone()),
        }
    }

    fn is_read(operation: &InstanceOperation) -> bool {
        matches!(operation, InstanceOperation::Get(_) | InstanceOperation::Deregister { found: Some(false) })
    }
}
