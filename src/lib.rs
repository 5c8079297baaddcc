//! gogate: an API gateway that is its own cluster.
//!
//! Two planes and one state. [`proxy`] moves bytes, [`control`] moves decisions, `gogate_cluster` makes
//! decisions agreed and durable; the folder tells which plane you are in, the plane tells what you may import:
//! `main → node → control → proxy → {telemetry, config}`, and only `node` and `control` may name
//! `gogate_cluster`. [`client`] is for programs that talk to a cluster, as the command line does; it knows
//! neither plane. ARCHITECTURE.md is the map; `tests/it/tidy.rs` holds the rules.

pub mod cli;
pub mod client;
pub mod config;
pub mod control;
#[cfg(test)]
mod cost;
pub mod node;
pub mod proxy;
pub mod telemetry;
