//! What policies know from elsewhere, kept fresh: files that change, keys that are fetched.
//!
//! Job: one thread a node, started when a table first has something to keep, holds a task for each [`Kept`] of the
//! table in force. Invariants: no request waits for a file, and none fetches; a failed refresh keeps what is known
//! and says so. Neighbours: [`super::Proxy`] owns it and tells it the table's, `policy` reads the values.

use std::{
    collections::HashMap,
    fmt,
    fs::{self, Metadata},
    future::Future,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{
    sync::watch,
    task::{AbortHandle, JoinSet},
};

use crate::config::Refusal;

/// How often a file is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// A larger file is not a file of keys or users.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Something that a task keeps fresh.
pub(super) trait Kept: fmt::Debug + Send + Sync {
    /// Runs until nobody needs it any more.
    fn keep(self: Arc<Self>) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// The thread; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Keeper {
    /// The latest list is the only one that matters.
    all: watch::Sender<Vec<Arc<dyn Kept>>>,
}

/// A file and what was last read of it.
pub(super) struct Watched<T> {
    path: PathBuf,
    parse: Box<Parse<T>>,
    value: ArcSwap<T>,
    seen: ArcSwap<Option<Stamp>>,
}

type Parse<T> = dyn Fn(&str) -> Result<T, Refusal> + Send + Sync;

/// Changes when a file does.
type Stamp = (u64, i64, i64, u64);

// === impl Keeper ===

impl Keeper {
    pub(super) fn start() -> io::Result<Keeper> {
        let (all, kept) = watch::channel(Vec::new());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("keeper".into()).spawn(move || runtime.block_on(keep_all(kept)))?;
        Ok(Keeper { all })
    }

    /// From now on these are kept, and no others.
    pub(super) fn keep(&self, all: Vec<Arc<dyn Kept>>) {
        self.all.send_replace(all);
    }
}

async fn keep_all(mut lists: watch::Receiver<Vec<Arc<dyn Kept>>>) {
    let mut tasks = JoinSet::new();
    let mut running: HashMap<usize, AbortHandle> = HashMap::new();
    while lists.changed().await.is_ok() {
        let list = lists.borrow_and_update().clone();
        let mut before = std::mem::take(&mut running);
        for kept in list {
            // A task holds its own, so no other has its address.
            let place = Arc::as_ptr(&kept).cast::<()>() as usize;
            let task = before.remove(&place).unwrap_or_else(|| tasks.spawn(kept.keep()));
            running.insert(place, task);
        }
        before.into_values().for_each(|gone| gone.abort());
        // Those that were aborted before.
        while tasks.try_join_next().is_some() {}
    }
}

// === impl Watched ===

impl<T: Send + Sync + 'static> Watched<T> {
    /// Reads the file.
    pub(super) fn open(
        path: &Path,
        parse: impl Fn(&str) -> Result<T, Refusal> + Send + Sync + 'static,
    ) -> Result<Arc<Self>, String> {
        let seen = stamp(path);
        let value = read(path, &parse)?;
        Ok(Arc::new(Self {
            path: path.to_owned(),
            parse: Box::new(parse),
            value: ArcSwap::from_pointee(value),
            seen: ArcSwap::from_pointee(seen),
        }))
    }

    /// What was last read.
    pub(super) fn value(&self) -> arc_swap::Guard<Arc<T>> {
        self.value.load()
    }

    fn look(&self) {
        let now = stamp(&self.path);
        if now == **self.seen.load() {
            return;
        }
        self.seen.store(Arc::new(now));
        let file = self.path.display();
        match read(&self.path, &self.parse) {
            Ok(value) => {
                self.value.store(Arc::new(value));
                tracing::info!(%file, "file read again");
            }
            Err(reason) => {
                tracing::warn!(%reason, "file changed and cannot be used: what was read before stays");
            }
        }
    }
}

impl<T: Send + Sync + 'static> Kept for Watched<T> {
    fn keep(self: Arc<Self>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move {
            loop {
                // First: the file may have changed since it was read for a table that came into force later.
                self.look();
                tokio::time::sleep(LOOK).await;
            }
        })
    }
}

impl<T> fmt::Debug for Watched<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched").field("path", &self.path).finish_non_exhaustive()
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let stamp = |data: Metadata| (data.ino(), data.mtime(), data.mtime_nsec(), data.len());
    fs::metadata(path).ok().map(stamp)
}

/// The reason names the file and repeats nothing of it.
fn read<T>(path: &Path, parse: &impl Fn(&str) -> Result<T, Refusal>) -> Result<T, String> {
    let file = path.display();
    let mut text = String::new();
    let read = fs::File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text));
    read.map_err(|error| format!("cannot read {file}: {error}"))?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("{file} is larger than {FILE_BYTES_MAX} bytes"));
    }
    parse(&text).map_err(|(problem, suggestion)| match suggestion {
        Some(suggestion) => format!("{file}: {problem} ({suggestion})"),
        None => format!("{file}: {problem}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(text: &str) -> Result<u32, Refusal> {
        text.trim().parse().map_err(|_| ("this is not a number".to_owned(), Some("write one".to_owned())))
    }

    #[test]
    fn a_file_is_read_again_when_it_changes_and_kept_when_it_breaks() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("n");
        let missing = Watched::open(&path, number).unwrap_err();
        assert!(missing.starts_with(&format!("cannot read {}: ", path.display())), "{missing}");
        fs::write(&path, "1").unwrap();
        let watched = Watched::open(&path, number).unwrap();
        let next = |text: &str| {
            fs::write(path.with_extension("new"), text).unwrap();
            fs::rename(path.with_extension("new"), &path).unwrap();
            watched.look();
            **watched.value()
        };
        assert_eq!(next("2"), 2);
        assert_eq!(next("two"), 2);
        assert_eq!(next("3"), 3);
        fs::remove_file(&path).unwrap();
        watched.look();
        assert_eq!(**watched.value(), 3);
    }
}
