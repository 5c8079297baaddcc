//! What the process tells about itself: metrics now; the access log and traces have their rooms here.

pub mod metrics;
