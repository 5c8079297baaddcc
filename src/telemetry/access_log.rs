//! The access log: one line a request, written off the workers.
//!
//! Job: a worker formats its lines into a batch of its own ([`Lines`]) and hands whole batches to one writer thread
//! ([`AccessLog`]), which owns the file. Invariants: the request path never waits for the writer: when the queue is
//! full, the line is dropped and counted; a disk that is full stops no traffic and is reported once, until it works
//! again; every line is printable ASCII, so nothing that a client sends can end a line, begin another or reach a
//! terminal (`line` has the formats). Neighbours: `node` opens and closes it, `proxy` fills in [`Entry`]s.

mod line;

use std::{
    cell::RefCell,
    fs::{File, OpenOptions},
    io::{self, Write},
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::{Duration, SystemTime},
};

use tokio::sync::oneshot;
use tracing::{info, warn};

pub use self::line::Entry;
pub(crate) use self::line::civil;
use self::line::{Clock, Format};
use crate::config::node::AccessTarget;

/// A batch is handed over when it has so many bytes, or at the worker's next tick.
const BATCH_BYTES: usize = 32 << 10;
/// Room behind that for the line that fills it.
const BATCH_SLACK: usize = 4 << 10;
/// Batches that may wait for the writer. When there are more the worker fills the one it has, and drops lines then.
const QUEUE_BATCHES: usize = 64;
/// How long the writer may take to end: a pipe that nobody reads must not hold up the exit.
const CLOSE_WAIT: Duration = Duration::from_secs(2);
/// Lines hold addresses of people: not for everybody on the machine.
const FILE_MODE: u32 = 0o640;

/// The process's access log; dropped without [`AccessLog::close`], what waits may be lost.
#[derive(Debug)]
pub struct AccessLog {
    handle: Handle,
    ended: oneshot::Receiver<()>,
}

/// How the rest of the process reaches the writer.
#[derive(Debug, Clone)]
pub struct Handle {
    queue: SyncSender<Message>,
    shared: Arc<Shared>,
    format: Format,
}

/// One worker's end of it: not shared between threads.
#[derive(Debug)]
pub struct Lines {
    handle: Handle,
    batch: RefCell<Batch>,
}

#[derive(Debug, Default)]
struct Batch {
    bytes: Vec<u8>,
    clock: Clock,
}

#[derive(Debug, Default)]
struct Shared {
    dropped: AtomicU64,
    reopen: AtomicBool,
    closing: AtomicBool,
}

#[derive(Debug)]
enum Message {
    Lines(Vec<u8>),
    /// A flag of [`Shared`] has changed.
    Look,
}

/// The thread that writes.
struct Writer {
    file: File,
    /// None: standard output.
    path: Option<PathBuf>,
    shared: Arc<Shared>,
    /// Lines lost since a write failed; none while writing works.
    failing: Option<u64>,
    /// The file ends in the middle of a line.
    torn: bool,
}

// === impl AccessLog ===

impl AccessLog {
    /// Opens the target and starts the writer; none when it is off.
    ///
    /// # Errors
    /// When the file cannot be opened, or no thread started.
    pub fn open(target: &AccessTarget, json: bool) -> io::Result<Option<AccessLog>> {
        let (file, path) = match target {
            AccessTarget::Off => return Ok(None),
            // A descriptor of our own: the standard library's would look at every byte for ends of lines.
            AccessTarget::Stdout => (File::from(io::stdout().as_fd().try_clone_to_owned()?), None),
            AccessTarget::File(path) => (open_file(path)?, Some(path.clone())),
        };
        Self::start(file, path, json).map(Some)
    }

    fn start(file: File, path: Option<PathBuf>, json: bool) -> io::Result<AccessLog> {
        let (queue, messages) = sync_channel(QUEUE_BATCHES);
        let shared = Arc::new(Shared::default());
        let (end, ended) = oneshot::channel();
        let mut writer = Writer { file, path, shared: Arc::clone(&shared), failing: None, torn: false };
        thread::Builder::new().name("access-log".to_owned()).spawn(move || {
            writer.run(&messages);
            // Nobody may be waiting.
            let _ = end.send(());
        })?;
        let format = if json { Format::Json } else { Format::Text };
        Ok(AccessLog { handle: Handle { queue, shared, format }, ended })
    }

    /// For the workers, and for [`Handle::reopen`].
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Writes what waits and ends the writer; the workers have ended before.
    pub async fn close(self) {
        self.handle.shared.closing.store(true, Ordering::Release);
        self.handle.wake();
        if tokio::time::timeout(CLOSE_WAIT, self.ended).await.is_err() {
            warn!("the access log could not be written to its end in time");
        }
    }
}

// === impl Handle ===

impl Handle {
    /// A worker's own end.
    #[must_use]
    pub fn lines(&self) -> Lines {
        Lines { handle: self.clone(), batch: RefCell::default() }
    }

    /// Opens the file again by its name: whoever rotates the log has moved the old one.
    pub fn reopen(&self) {
        self.shared.reopen.store(true, Ordering::Release);
        self.wake();
    }

    /// Lines that were not written, because the queue was full or a write failed.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    fn wake(&self) {
        // A full queue wakes the writer by itself.
        let _ = self.queue.try_send(Message::Look);
    }
}

// === impl Lines ===

impl Lines {
    /// Adds a line, or drops it when the writer is behind.
    pub fn add(&self, entry: &Entry<'_>) {
        let batch = &mut *self.batch.borrow_mut();
        if batch.bytes.len() >= BATCH_BYTES && !self.hand_over(batch) {
            self.handle.shared.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if batch.bytes.capacity() == 0 {
            batch.bytes.reserve(BATCH_BYTES + BATCH_SLACK);
        }
        line::write(&mut batch.bytes, &mut batch.clock, self.handle.format, SystemTime::now(), entry);
    }

    /// Hands over what there is: called at every tick, so that a line is seen soon.
    pub fn flush(&self) {
        let batch = &mut *self.batch.borrow_mut();
        if !batch.bytes.is_empty() {
            self.hand_over(batch);
        }
    }

    /// Whether the writer took the batch.
    fn hand_over(&self, batch: &mut Batch) -> bool {
        let message = Message::Lines(std::mem::take(&mut batch.bytes));
        match self.handle.queue.try_send(message) {
            Err(
                TrySendError::Full(Message::Lines(bytes)) | TrySendError::Disconnected(Message::Lines(bytes)),
            ) => {
                batch.bytes = bytes;
                false
            }
            _ => true,
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        let batch = &mut *self.batch.borrow_mut();
        if !batch.bytes.is_empty() && !self.hand_over(batch) {
            self.handle.shared.dropped.fetch_add(count_lines(&batch.bytes), Ordering::Relaxed);
        }
    }
}

// === impl Writer ===

impl Writer {
    /// Ends when it is told to and nothing waits.
    fn run(&mut self, messages: &Receiver<Message>) {
        loop {
            let Ok(message) = messages.recv() else { return };
            if let Message::Lines(lines) = message {
                self.write(&lines);
            }
            if self.shared.reopen.swap(false, Ordering::AcqRel) {
                self.reopen();
            }
            if self.shared.closing.load(Ordering::Acquire) {
                while let Ok(message) = messages.try_recv() {
                    if let Message::Lines(lines) = message {
                        self.write(&lines);
                    }
                }
                return;
            }
        }
    }

    fn write(&mut self, lines: &[u8]) {
        if self.torn && write_all(&mut self.file, b"\n").1.is_ok() {
            self.torn = false;
        }
        // If even that does not fit, the lines are tried all the same: the error is the news.
        let (written, result) = write_all(&mut self.file, lines);
        let Err(error) = result else {
            if let Some(lost) = self.failing.take() {
                info!(lost, "the access log can be written again");
            }
            return;
        };
        self.torn |= written > 0 && lines[written - 1] != b'\n';
        let lost = count_lines(&lines[written..]);
        self.shared.dropped.fetch_add(lost, Ordering::Relaxed);
        if self.failing.is_none() {
            warn!(file = %self.name(), %error, "the access log cannot be written: lines are lost, traffic goes on");
        }
        *self.failing.get_or_insert(0) += lost;
    }

    fn reopen(&mut self) {
        let Some(path) = &self.path else { return };
        match open_file(path) {
            Ok(file) => {
                self.file = file;
                self.torn = false;
                info!(file = %self.name(), "the access log is opened again");
            }
            Err(error) => {
                warn!(file = %self.name(), %error, "the access log cannot be opened again: the old file goes on");
            }
        }
    }

    fn name(&self) -> std::path::Display<'_> {
        self.path.as_deref().unwrap_or(Path::new("stdout")).display()
    }
}

fn open_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(FILE_MODE).open(path)
}

/// How much was written, and whether that is all.
fn write_all(file: &mut File, bytes: &[u8]) -> (usize, io::Result<()>) {
    let mut written = 0;
    while written < bytes.len() {
        match file.write(&bytes[written..]) {
            Ok(0) => return (written, Err(io::ErrorKind::WriteZero.into())),
            Ok(more) => written += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (written, Err(error)),
        }
    }
    (written, Ok(()))
}

fn count_lines(lines: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', lines).count() as u64
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn entry(target: &str) -> Entry<'_> {
        Entry {
            target: Some(target.as_bytes()),
            protocol: "HTTP/1.1",
            reason: "complete",
            ..Entry::default()
        }
    }

    #[tokio::test]
    async fn every_line_is_written_before_it_closes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access.log");
        let log = AccessLog::open(&AccessTarget::File(path.clone()), false).unwrap().unwrap();
        let handle = log.handle();
        let workers: Vec<_> = (0..2)
            .map(|worker| {
                let lines = handle.lines();
                thread::spawn(move || {
                    for number in 0..2_000 {
                        lines.add(&entry(&format!("/{worker}/{number}")));
                        // All batches together fit into the queue: however slow the writer, nothing is to be dropped.
                        if number % 100 == 0 {
                            lines.flush();
                        }
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.join().unwrap();
        }
        log.close().await;
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(handle.dropped(), 0);
        for worker in 0..2 {
            let mine = text.lines().filter(|line| line.contains(&format!(" /{worker}/"))).count();
            assert_eq!(mine, 2_000);
        }
    }

    #[tokio::test]
    async fn a_reader_that_stops_costs_lines_and_no_time() {
        let (mut reader, writer) = io::pipe().unwrap();
        let log = AccessLog::start(std::os::fd::OwnedFd::from(writer).into(), None, true).unwrap();
        let (handle, lines) = (log.handle(), log.handle().lines());
        let mut added = 0;
        // The pipe, the queue and the batch fill up; nobody reads.
        while handle.dropped() < 100 {
            lines.add(&entry("/"));
            added += 1;
            assert!(added < 1_000_000, "the queue has no bound");
        }
        let reading = thread::spawn(move || {
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            text
        });
        // What was taken arrives, once somebody reads again.
        while !lines.batch.borrow().bytes.is_empty() {
            lines.flush();
            tokio::task::yield_now().await;
        }
        drop(lines);
        log.close().await;
        let text = reading.join().unwrap();
        assert_eq!(text.lines().count() as u64, added - handle.dropped());
        assert!(text.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()));
    }

    #[tokio::test]
    async fn a_full_disk_loses_lines_and_nothing_else() {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let log = AccessLog::start(full, None, false).unwrap();
        let (handle, lines) = (log.handle(), log.handle().lines());
        for _ in 0..3 {
            lines.add(&entry("/"));
            lines.flush();
        }
        drop(lines);
        log.close().await;
        assert_eq!(handle.dropped(), 3);
    }

    #[tokio::test]
    async fn a_log_that_was_moved_is_begun_anew() {
        let folder = tempfile::tempdir().unwrap();
        let [path, moved] = ["access.log", "access.log.1"].map(|name| folder.path().join(name));
        let log = AccessLog::open(&AccessTarget::File(path.clone()), false).unwrap().unwrap();
        let (handle, lines) = (log.handle(), log.handle().lines());
        lines.add(&entry("/before"));
        lines.flush();
        while std::fs::read_to_string(&path).unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        std::fs::rename(&path, &moved).unwrap();
        handle.reopen();
        while !path.exists() {
            tokio::task::yield_now().await;
        }
        lines.add(&entry("/after"));
        drop(lines);
        log.close().await;
        let read = |path| std::fs::read_to_string(path).unwrap();
        assert!(read(&moved).contains(" /before ") && !read(&moved).contains(" /after "));
        assert!(read(&path).contains(" /after "));
    }
}
