//! The cluster crate from outside.

mod log_recovery;
