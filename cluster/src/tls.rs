//! What peers prove to each other by certificates.
//!
//! Job: holds the configuration of both ends of a connection, which may be replaced: connections that are open go on
//! as they are. Invariants: each side shows a certificate of the peers' own CA, and it has to be for the host by
//! which the node is reached (`advertise`); nobody is asked by an end that has no certificate. Neighbours:
//! `raft::stream` makes the connections; who reads the files is not this crate's business.

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
};

use tokio_rustls::rustls::{
    ClientConfig, ServerConfig,
    client::verify_server_name,
    pki_types::{CertificateDer, ServerName},
    server::ParsedCertificate,
};

/// The certificates of this node, and whom it believes.
pub struct PeerTls {
    ends: RwLock<Ends>,
}

#[derive(Clone)]
struct Ends {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

// === impl PeerTls ===

impl PeerTls {
    /// Both have to show this node's certificate, and to ask for the peer's.
    #[must_use]
    pub fn new(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Self {
        Self { ends: RwLock::new(Ends { client, server }) }
    }

    /// From now on connections are made and taken with these.
    pub fn replace(&self, client: Arc<ClientConfig>, server: Arc<ServerConfig>) {
        *self.ends.write().unwrap_or_else(PoisonError::into_inner) = Ends { client, server };
    }

    pub(crate) fn client(&self) -> Arc<ClientConfig> {
        self.ends.read().unwrap_or_else(PoisonError::into_inner).client.clone()
    }

    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        self.ends.read().unwrap_or_else(PoisonError::into_inner).server.clone()
    }
}

impl fmt::Debug for PeerTls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("PeerTls").finish_non_exhaustive()
    }
}

/// Whether a certificate is for the host of `address`, a `host:port`.
///
/// # Errors
/// That it is not, or why it cannot be told.
pub fn certificate_is_for(certificate: &CertificateDer<'_>, address: &str) -> Result<(), String> {
    let name = host_name(address)?;
    let parsed = ParsedCertificate::try_from(certificate).map_err(|error| error.to_string())?;
    verify_server_name(&parsed, &name).map_err(|_| {
        format!("the certificate is not for `{}` (among its subject alternative names)", host(address))
    })
}

/// The host of a `host:port` as certificates name it.
pub(crate) fn host_name(address: &str) -> Result<ServerName<'static>, String> {
    let host = host(address);
    ServerName::try_from(host.to_owned()).map_err(|_| format!("no certificate can be for `{host}`"))
}

fn host(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_of_an_address_is_what_a_certificate_names() {
        for (address, expected) in
            [("n1.internal:7170", "n1.internal"), ("[fd00::1]:7170", "fd00::1"), ("10.0.0.1:1", "10.0.0.1")]
        {
            assert_eq!(host(address), expected);
            assert!(host_name(address).is_ok());
        }
        assert!(host_name("a b:1").is_err());
    }
}
