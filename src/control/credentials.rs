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

use tokio::signal::unix::Signal;
use tracing::{error, info, warn};

use super::admin::auth::Access;
use crate::config::{
    self,
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

fn stamp(path: &Path) -> Option<Stamp> {
    let stamp = |data: Metadata| (data.ino(), data.mtime(), data.mtime_nsec(), data.len());
    fs::metadata(path).ok().map(stamp)
}
