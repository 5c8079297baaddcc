//! What a thing behind an API is allowed to do: one operation after another, each from state to state.
//!
//! Job: the sequential models that `linearizability` holds histories against. Invariants: a model is pure and
//! knows no time; states are cheap to copy and to hash, so that long texts cost no memory. Neighbours: `logs`
//! reads operations from files, `checker` makes them from our own records.

mod instance;
mod register;
mod text;
mod texts;

use std::hash::Hash;

pub use instance::{InstanceModel, InstanceOperation};
pub use register::{Register, RegisterOperation};
pub use text::Text;
pub use texts::{Texts, TextsOperation};

/// A thing that takes one operation at a time, as far as one history can tell. Operations on different keys
/// are judged apart, each key with a model of its own.
pub trait Model {
    /// What a client did and was told. What the client was not told is left open in it: such an operation
    /// fits whatever the thing would have answered.
    type Operation: PartialEq;
    /// Equal states hash alike, and have the same future. States that no answer in the history can tell apart
    /// should be equal: the fewer there are, the shorter is the search.
    type State: Clone + Eq + Hash;

    /// Before the first operation.
    fn initial(&self) -> Self::State;

    /// The state after `operation`; none if it cannot have been answered like this in `state`.
    fn step(&self, state: &Self::State, operation: &Self::Operation) -> Option<Self::State>;

    /// Whether it changes no state whatever.
    fn is_read(operation: &Self::Operation) -> bool;

    /// Whether all that can follow `other` can follow `state` as well.
    fn outdoes(_state: &Self::State, _other: &Self::State) -> bool {
        false
    }
}
