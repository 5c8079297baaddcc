//! A register that is read, written, and compared and set. It starts with nothing in it.

use super::{Model, Text};

/// The model.
#[derive(Debug, Default)]
pub struct Register;

/// What was done to a register.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegisterOperation {
    /// It was read; none: it was empty.
    Read(Option<Text>),
    /// It was set.
    Write(Option<Text>),
    /// It was set to the second, because it was the first. A comparison that failed has not happened.
    CompareAndSet(Option<Text>, Option<Text>),
}

impl Model for Register {
    type Operation = RegisterOperation;
    type State = Option<Text>;

    fn initial(&self) -> Self::State {
        None
    }

    fn step(&self, state: &Self::State, operation: &Self::Operation) -> Option<Self::State> {
        match operation {
            RegisterOperation::Read(seen) => (state == seen).then_some(*state),
            RegisterOperation::Write(value) => Some(*value),
            RegisterOperation::CompareAndSet(expected, value) => (state == expected).then_some(*value),
        }
    }

    fn is_read(operation: &Self::Operation) -> bool {
        matches!(operation, RegisterOperation::Read(_))
    }
}
