//! Certificates and keys from files in PEM, made into what rustls takes.
//!
//! Invariants: no message repeats anything of a key; whoever is verified, is so by the CA that is given and by no
//! other: there is no list of CAs of the system here. Neighbours: `control::credentials` reads again what changes, the
//! command line trusts by `--ca`.

use std::{path::Path, sync::Arc};

use tokio_rustls::rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};

/// Whether a server asks its clients for a certificate of a CA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clients<'a> {
    /// No.
    Unasked,
    /// Those that have none are let in, too.
    Asked(&'a Path),
    /// Nobody is let in without.
    Required(&'a Path),
}

/// The certificates in a file, the owner's first.
///
/// # Errors
/// What is wrong with the file.
pub fn read(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let wrong =
        |error: &dyn std::fmt::Display| format!("{} has no certificate in PEM: {error}", file.display());
    let found = CertificateDer::pem_file_iter(file).map_err(|error| wrong(&error))?;
    let found: Vec<_> = found.collect::<Result<_, _>>().map_err(|error| wrong(&error))?;
    if found.is_empty() { Err(wrong(&"nothing is in it")) } else { Ok(found) }
}

/// A server that shows the certificate in `cert`.
///
/// # Errors
/// What is wrong with the files.
pub fn server(
    cert: &Path,
    key: &Path,
    clients: Clients<'_>,
    protocols: &[&str],
) -> Result<Arc<ServerConfig>, String> {
    let builder = ServerConfig::builder_with_provider(provider());
    let builder = builder.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
    let builder = match clients {
        Clients::Unasked => builder.with_no_client_auth(),
        Clients::Asked(ca) | Clients::Required(ca) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(roots(ca)?.into(), provider());
            let verifier = match clients {
                Clients::Asked(_) => verifier.allow_unauthenticated(),
                _ => verifier,
            };
            let verifier = verifier.build().map_err(|error| format!("{}: {error}", ca.display()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let config = builder.with_single_cert(read(cert)?, private_key(key)?);
    let mut config = config.map_err(|error| unfit(cert, key, &error))?;
    config.alpn_protocols = alpn(protocols);
    Ok(Arc::new(config))
}

/// A client that believes servers of the CA in `ca`, and shows the certificate and key of `own`.
///
/// # Errors
/// What is wrong with the files.
pub fn client(
    ca: &Path,
    own: Option<(&Path, &Path)>,
    protocols: &[&str],
) -> Result<Arc<ClientConfig>, String> {
    let builder = ClientConfig::builder_with_provider(provider());
    let builder = builder.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
    let builder = builder.with_root_certificates(roots(ca)?);
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let config = builder.with_client_auth_cert(read(cert)?, private_key(key)?);
            config.map_err(|error| unfit(cert, key, &error))?
        }
    };
    config.alpn_protocols = alpn(protocols);
    Ok(Arc::new(config))
}

/// The names that a certificate is for: its subject alternative names that are DNS names or URIs.
#[must_use]
pub fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok(parsed) = webpki::EndEntityCert::try_from(certificate) else { return Vec::new() };
    parsed.valid_dns_names().chain(parsed.valid_uri_names()).map(str::to_owned).collect()
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn roots(ca: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in read(ca)? {
        roots.add(certificate).map_err(|error| format!("{} is no CA: {error}", ca.display()))?;
    }
    Ok(roots)
}

fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_file(file)
        .map_err(|error| format!("{} has no private key in PEM: {error}", file.display()))
}

fn unfit(cert: &Path, key: &Path, error: &dyn std::fmt::Display) -> String {
    format!("{} and {} cannot be used together: {error}", cert.display(), key.display())
}

fn alpn(protocols: &[&str]) -> Vec<Vec<u8>> {
    protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect()
}
