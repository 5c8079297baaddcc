//! Where the gateway accepts connections.

use std::net::SocketAddr;

/// Where the gateway accepts connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// The document's address; a node's `bind` may replace it.
    pub address: SocketAddr,
}
