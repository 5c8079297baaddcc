//! The control plane: decisions, from a call or a file to what the proxy runs.
//!
//! The life of a change of the document:
//! 1. [`admin`] (on any node) or [`reload`] (this node's file) reads it; `config::check` finds every problem.
//! 2. `Cluster::propose`: a follower passes it to the leader once; a majority has it on disk before the answer.
//! 3. `State::apply` numbers and stages it, or refuses it because the caller knew another version.
//! 4. [`publish`] on every node hears of it, [`activation`] makes it ready beside what runs and says so, or why not.
//! 5. The leader proposes to activate it once all live nodes are ready, or to drop it because one cannot run it.
//! 6. Where that is applied, the proxy swaps the table; the node reports which version it runs, and the caller of
//!    step 1 hears of all live ones.
//!
//! The life of a registration: `admin::services` checks and proposes it; `publish` on every node puts the
//! endpoint into the one service that it belongs to. Heartbeats take neither path: [`heartbeats`] gathers them
//! into messages to the leader. [`watch`] hears of every change, too, and tells whoever watches.
//!
//! Invariants: only `publish` writes the proxy's table; nothing here is awaited by a request; every wait has a
//! deadline. Deliberately absent: any way for the proxy to ask the cluster.

mod activation;
pub mod admin;
pub mod backup;
pub mod compile;
pub mod credentials;
pub mod drain;
pub mod heartbeats;
pub mod publish;
pub mod reload;
pub mod watch;
