//! Where the gateway accepts connections.

use std::{net::SocketAddr, time::Duration};

use super::HostPattern;

/// Where the gateway accepts connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// The document's address; a node's `bind` may replace it.
    pub address: SocketAddr,
    /// What is spoken there.
    pub protocol: Protocol,
    /// Whether trusted proxies begin with a PROXY header.
    pub proxy_protocol: bool,
    /// Connections open at once on this node; none: the node's bound alone.
    pub connections: Option<usize>,
    /// How fast one client may open connections.
    pub connection_rate: Option<ConnectionRate>,
    /// How long a stream may stand still; none: what the service says.
    pub idle_timeout: Option<Duration>,
}

/// What a listener's clients speak.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Protocol {
    /// HTTP; routes say where requests go.
    #[default]
    Http,
    /// Anything: each connection is a stream to this service.
    Tcp {
        /// The service's name.
        service: String,
    },
    /// TLS that is not decrypted: the name that the client asks for says where the stream goes.
    TlsPassthrough {
        /// Names to services.
        sni: Vec<(HostPattern, String)>,
        /// The service of clients that name no host, or none of these; none: they are turned away.
        service: Option<String>,
    },
}

/// New connections that one client address may open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionRate {
    /// Each second.
    pub rate: u32,
    /// At once, after a while without.
    pub burst: u32,
}

// === impl Listener ===

impl Listener {
    /// A listener for HTTP with nothing else set.
    #[must_use]
    pub fn http(address: SocketAddr) -> Self {
        Self {
            address,
            protocol: Protocol::Http,
            proxy_protocol: false,
            connections: None,
            connection_rate: None,
            idle_timeout: None,
        }
    }

    /// Whether routes apply.
    #[must_use]
    pub fn is_http(&self) -> bool {
        self.protocol == Protocol::Http
    }

    /// The services that its connections are sent to without a route.
    pub fn services(&self) -> impl Iterator<Item = &String> {
        let (sni, service) = match &self.protocol {
            Protocol::Http => (&[][..], None),
            Protocol::Tcp { service } => (&[][..], Some(service)),
            Protocol::TlsPassthrough { sni, service } => (&sni[..], service.as_ref()),
        };
        sni.iter().map(|(_, service)| service).chain(service)
    }
}
