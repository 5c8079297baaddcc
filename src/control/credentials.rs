//! The files that say who may talk to this node, read again when they change.
//!
//! Job: looks at each set of files every second and at SIGHUP, and hands what was read to whoever uses it.
//! Invariants: files that cannot be used change nothing, and that is logged; no message repeats what is in them.
//! Neighbours: `node` reads them for the first time and refuses to start; `admin::auth` uses the tokens.

use std::{
    fs::{self, Metadata},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use gogate_cluster::{PeerTls, certificate_is_for};
use tokio::signal::unix::Signal;
use tokio_rustls::rustls::{ClientConfig, ServerConfig};
use tracing::{error, info, warn};

use super::admin::auth::Access;
use crate::config::{
    self,
    certificates::{self, Clients},
    node::TlsFiles,
    tokens::{self, Credential},
};

/// How often files are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Files that are used together.
pub struct Watched {
    /// The key of the node file.
    key: &'static str,
    files: Vec<PathBuf>,
    seen: Vec<Option<Stamp>>,
    load: Box<dyn FnMut() -> Result<(), String> + Send>,
}

/// Changes when a file does.
type Stamp = (u64, i64, i64, u64);

/// The content of a tokens file.
///
/// # Errors
/// Every problem, a line each.
pub fn read_tokens(file: &Path) -> Result<Vec<Credential>, String> {
    warn_of_permissions(file);
    let problems = match config::read(file) {
        Ok(text) => match tokens::parse(&text) {
            Ok(credentials) => return Ok(credentials),
            Err(problems) => problems,
        },
        Err(problem) => vec![problem],
    };
    let shown = file.display().to_string();
    let lines: Vec<String> = problems.iter().map(|problem| problem.in_file(&shown)).collect();
    Err(lines.join("\n"))
}

/// What the admin API is served with. Whoever shows a certificate has to show one of the CA; whether one is needed
/// depends on the call.
///
/// # Errors
/// What is wrong with the files.
pub fn read_admin_tls(files: &TlsFiles) -> Result<Arc<ServerConfig>, String> {
    warn_of_permissions(&files.key);
    let clients = files.ca.as_deref().map_or(Clients::Unasked, Clients::Asked);
    certificates::server(&files.cert, &files.key, clients, &["h2", "http/1.1"])
}

/// Both ends of connections between peers; `advertise` is by which this node is reached.
///
/// # Errors
/// What is wrong with the files, also that the certificate is for another host.
pub fn read_peer_tls(
    files: &TlsFiles,
    advertise: &str,
) -> Result<(Arc<ClientConfig>, Arc<ServerConfig>), String> {
    warn_of_permissions(&files.key);
    let TlsFiles { cert, key, ca } = files;
    let ca = ca.as_deref().ok_or("`ca` is missing")?;
    if let Some(certificate) = certificates::read(cert)?.first() {
        let fits = certificate_is_for(certificate, advertise);
        fits.map_err(|problem| format!("{}: {problem}, which peer.advertise has", cert.display()))?;
    }
    let client = certificates::client(ca, Some((cert, key)), &["h2"])?;
    Ok((client, certificates::server(cert, key, Clients::Required(ca), &["h2"])?))
}

/// Whoever may write such a file may do everything, and whoever may read it is closer to that than need be.
pub fn warn_of_permissions(file: &Path) {
    let Ok(data) = fs::metadata(file) else { return };
    let mode = data.permissions().mode() & 0o777;
    if data.is_file() && mode & 0o027 != 0 {
        warn!(
            file = %file.display(),
            mode = format!("{mode:03o}"),
            "others may read this file, or write it: chmod 600 is enough for a node"
        );
    }
}

/// Looks at files until it is dropped.
pub async fn keep(mut all: Vec<Watched>, mut hangup: Signal) {
    loop {
        let is_told = tokio::select! {
            () = tokio::time::sleep(LOOK) => false,
            _ = hangup.recv() => true,
        };
        let looked = tokio::task::spawn_blocking(move || {
            all.iter_mut().for_each(|watched| watched.look(is_told));
            all
        });
        match looked.await {
            Ok(looked) => all = looked,
            Err(error) => {
                error!(%error, "files of credentials are not looked at any more: start the node again");
                return std::future::pending().await;
            }
        }
    }
}

// === impl Watched ===

impl Watched {
    /// `load` reads the files, and puts what they say to use. They were read for the first time before.
    pub fn new(
        key: &'static str,
        files: Vec<PathBuf>,
        load: impl FnMut() -> Result<(), String> + Send + 'static,
    ) -> Self {
        let seen = files.iter().map(|file| stamp(file)).collect();
        Self { key, files, seen, load: Box::new(load) }
    }

    /// The tokens file of `access`.
    pub fn tokens(file: PathBuf, access: Arc<Access>) -> Self {
        let path = file.clone();
        Self::new("admin.tokens_file", vec![file], move || {
            access.replace(read_tokens(&path)?);
            Ok(())
        })
    }

    /// What the admin API is served with.
    pub fn admin_tls(files: TlsFiles, server: Arc<ArcSwap<ServerConfig>>) -> Self {
        Self::new("admin.tls", paths(&files), move || {
            server.store(read_admin_tls(&files)?);
            Ok(())
        })
    }

    /// What peers prove to each other.
    pub fn peer_tls(files: TlsFiles, advertise: String, ends: Arc<PeerTls>) -> Self {
        Self::new("peer.tls", paths(&files), move || {
            let (client, server) = read_peer_tls(&files, &advertise)?;
            ends.replace(client, server);
            Ok(())
        })
    }

    fn look(&mut self, is_told: bool) {
        let now: Vec<Option<Stamp>> = self.files.iter().map(|file| stamp(file)).collect();
        if now == self.seen && !is_told {
            return;
        }
        self.seen = now;
        match (self.load)() {
            Ok(()) => info!(key = self.key, "files read again"),
            Err(problem) => {
                error!(
                    key = self.key,
                    "what was read before stays in use, for this cannot be used: {problem}"
                );
            }
        }
    }
}

fn paths(files: &TlsFiles) -> Vec<PathBuf> {
    [&files.cert, &files.key].into_iter().chain(&files.ca).cloned().collect()
}

fn stamp(path: &Path) -> Option<Stamp> {
    let stamp = |data: Metadata| (data.ino(), data.mtime(), data.mtime_nsec(), data.len());
    fs::metadata(path).ok().map(stamp)
}
