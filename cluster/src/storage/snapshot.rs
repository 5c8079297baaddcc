//! Snapshots: the whole state at one log index, each in a file of its own.
//!
//! Invariants: a snapshot that has its name is complete and on the disk; there is one, and what came before it
//! is removed only then. A file that does not check is `Damaged`, never passed over: the log before it is gone.
//! Neighbours: `raft::state_machine` says what is in it, the network sends the file as it lies here.
//!
//! File: magic, version, index, length of the meta, length of the state; the meta; the state; crc32c over all.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{StorageError, folder::sync_folder};

const MAGIC: &[u8; 8] = b"gogatesn";
const VERSION: u8 = 1;
const HEADER_BYTES: usize = 8 + 1 + 8 + 4 + 8;
const CHECKSUM_BYTES: usize = 4;

/// What the names of complete snapshots end in; the index comes before it.
const SUFFIX: &str = ".snapshot";

/// What the names of unfinished files end in.
const UNFINISHED: &str = ".new";

/// The snapshots of a node.
#[derive(Debug)]
pub struct Snapshots {
    path: PathBuf,
    /// The index of the newest; one writer at a time.
    newest: Mutex<Option<u64>>,
    received: AtomicU64,
}

/// A snapshot that checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The last log index that is in it.
    pub index: u64,
    /// What Raft keeps with it.
    pub meta: Bytes,
    /// The state, encoded.
    pub state: Bytes,
}

// === impl Snapshots ===

impl Snapshots {
    /// Opens the folder, or makes it. Removes what a crash left: unfinished files, and older snapshots once the
    /// newest is found to be sound.
    pub fn open(path: &Path) -> Result<Self, StorageError> {
        let io = |source| StorageError::Io { path: path.to_owned(), source };
        if !path.exists() {
            fs::create_dir_all(path).map_err(io)?;
            sync_folder(path.parent().unwrap_or(Path::new(".")))?;
        }
        let mut indexes = Vec::new();
        for entry in fs::read_dir(path).map_err(io)? {
            let name = entry.map_err(io)?.file_name().to_string_lossy().into_owned();
            if name.ends_with(UNFINISHED) {
                fs::remove_file(path.join(name)).map_err(io)?;
            } else if let Some(index) = name.strip_suffix(SUFFIX) {
                let index = index.parse().map_err(|_| StorageError::Damaged {
                    path: path.join(&name),
                    problem: "its name has no index".to_owned(),
                })?;
                indexes.push(index);
            }
        }
        let newest = indexes.iter().max().copied();
        let snapshots =
            Self { path: path.to_owned(), newest: Mutex::new(newest), received: AtomicU64::new(0) };
        snapshots.newest()?;
        indexes.retain(|index| Some(*index) != newest);
        indexes.into_iter().try_for_each(|index| fs::remove_file(snapshots.file_path(index))).map_err(io)?;
        Ok(snapshots)
    }

    /// The newest snapshot, read whole and checked.
    pub fn newest(&self) -> Result<Option<Snapshot>, StorageError> {
        let Some(index) = self.newest_index() else { return Ok(None) };
        let path = self.file_path(index);
        let bytes = fs::read(&path).map_err(|source| StorageError::Io { path: path.clone(), source })?;
        let snapshot = Snapshot::decode(&bytes.into())
            .and_then(|snapshot| match snapshot.index == index {
                true => Ok(snapshot),
                false => Err(format!("it holds index {}", snapshot.index)),
            })
            .map_err(|problem| StorageError::Damaged { path, problem })?;
        Ok(Some(snapshot))
    }

    /// The last log index that is in the newest snapshot.
    #[must_use]
    pub fn newest_index(&self) -> Option<u64> {
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest snapshot's file, to send it as it is. It stays readable when a newer one takes its place.
    pub fn newest_file(&self) -> Result<Option<File>, StorageError> {
        let Some(index) = self.newest_index() else { return Ok(None) };
        let path = self.file_path(index);
        File::open(&path).map(Some).map_err(|source| StorageError::Io { path, source })
    }

    /// Keeps a snapshot; returns when it is on the disk, and the older ones are gone. One that is older than
    /// the newest is not kept.
    pub fn write(&self, snapshot: &Snapshot) -> Result<(), StorageError> {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if newest.is_some_and(|newest| newest > snapshot.index) {
            return Ok(());
        }
        let path = self.file_path(snapshot.index);
        let unfinished = path.with_extension(&UNFINISHED[1..]);
        snapshot
            .write_to(&unfinished)
            .and_then(|()| fs::rename(&unfinished, &path))
            .map_err(|source| StorageError::Io { path: path.clone(), source })?;
        sync_folder(&self.path)?;
        let older = newest.replace(snapshot.index).filter(|older| *older != snapshot.index);
        if let Some(older) = older.map(|index| self.file_path(index)) {
            fs::remove_file(&older).map_err(|source| StorageError::Io { path: older, source })?;
        }
        Ok(())
    }

    /// A file to receive a peer's snapshot into. It has no name: what is not installed is gone by itself.
    pub fn begin_receiving(&self) -> Result<File, StorageError> {
        let number = self.received.fetch_add(1, Ordering::Relaxed);
        let path = self.path.join(format!("received-{number}{UNFINISHED}"));
        File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .and_then(|file| fs::remove_file(&path).map(|()| file))
            .map_err(|source| StorageError::Io { path, source })
    }

    /// Checks what was received and keeps it, as [`Snapshots::write`] does, if `admit` lets it in.
    pub fn install(
        &self,
        received: &mut File,
        admit: impl FnOnce(&Snapshot) -> Result<(), StorageError>,
    ) -> Result<Snapshot, StorageError> {
        let path = self.path.join("a received snapshot");
        let io = |source| StorageError::Io { path: path.clone(), source };
        let mut bytes = Vec::new();
        received.rewind().map_err(io)?;
        received.read_to_end(&mut bytes).map_err(io)?;
        let snapshot = Snapshot::decode(&bytes.into())
            .map_err(|problem| StorageError::Damaged { path: path.clone(), problem })?;
        admit(&snapshot)?;
        self.write(&snapshot)?;
        Ok(snapshot)
    }

    fn file_path(&self, index: u64) -> PathBuf {
        // As many digits as the largest index has, so that a listing is in order.
        self.path.join(format!("{index:020}{SUFFIX}"))
    }
}

// === impl Snapshot ===

impl Snapshot {
    fn write_to(&self, path: &Path) -> io::Result<()> {
        let mut header = BytesMut::with_capacity(HEADER_BYTES);
        header.put_slice(MAGIC);
        header.put_u8(VERSION);
        header.put_u64_le(self.index);
        let meta_len =
            u32::try_from(self.meta.len()).map_err(|_| io::Error::other("its meta is above 4 GiB"))?;
        header.put_u32_le(meta_len);
        header.put_u64_le(self.state.len() as u64);
        let mut crc = 0;
        let mut file = File::create(path)?;
        for part in [&header[..], &self.meta, &self.state] {
            crc = crc32c::crc32c_append(crc, part);
            file.write_all(part)?;
        }
        file.write_all(&crc.to_le_bytes())?;
        file.sync_all()
    }

    fn decode(bytes: &Bytes) -> Result<Self, String> {
        let len = bytes.len();
        if len < HEADER_BYTES + CHECKSUM_BYTES {
            return Err(format!("it is cut off after {len} bytes"));
        }
        let checked = bytes.slice(..len - CHECKSUM_BYTES);
        let mut header = bytes.slice(..HEADER_BYTES);
        if header.copy_to_bytes(MAGIC.len()) != MAGIC[..] {
            return Err("it is not a snapshot".to_owned());
        }
        let version = header.get_u8();
        if version != VERSION {
            return Err(format!("its version is {version}, this build reads {VERSION}"));
        }
        let index = header.get_u64_le();
        let (meta_len, state_len) = (u64::from(header.get_u32_le()), header.get_u64_le());
        let body_len = (checked.len() - HEADER_BYTES) as u64;
        if meta_len.checked_add(state_len) != Some(body_len) {
            return Err(format!("it holds {body_len} bytes of {}", meta_len.saturating_add(state_len)));
        }
        if bytes.slice(len - CHECKSUM_BYTES..).get_u32_le() != crc32c::crc32c(&checked) {
            return Err("its checksum does not match".to_owned());
        }
        let mut meta = checked.slice(HEADER_BYTES..);
        let state = meta.split_off(meta_len as usize);
        Ok(Self { index, meta, state })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(index: u64) -> Snapshot {
        let state = (0..100_000_u64).map(|at| (at * index) as u8).collect();
        Snapshot { index, meta: Bytes::from(format!("meta of {index}")), state }
    }

    fn names(path: &Path) -> Vec<String> {
        let entries = fs::read_dir(path).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn only_the_newest_is_kept_and_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::open(folder.path()).unwrap();
        assert_eq!(snapshots.newest().unwrap(), None);
        for index in [3, 7, 7, 5] {
            snapshots.write(&snapshot(index)).unwrap();
        }
        assert_eq!(snapshots.newest().unwrap(), Some(snapshot(7)));
        drop(snapshots);
        let snapshots = Snapshots::open(folder.path()).unwrap();
        assert_eq!(snapshots.newest().unwrap(), Some(snapshot(7)));
        assert_eq!(names(folder.path()), ["00000000000000000007.snapshot"]);
    }

    #[test]
    fn what_a_crash_left_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        Snapshots::open(folder.path()).unwrap().write(&snapshot(7)).unwrap();
        snapshot(3).write_to(&folder.path().join("00000000000000000003.snapshot")).unwrap();
        fs::write(folder.path().join("00000000000000000009.new"), b"gogate").unwrap();
        let snapshots = Snapshots::open(folder.path()).unwrap();
        assert_eq!(snapshots.newest().unwrap(), Some(snapshot(7)));
        assert_eq!(names(folder.path()), ["00000000000000000007.snapshot"]);
    }

    #[test]
    fn one_is_received_in_pieces_and_installed() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let sender = Snapshots::open(from.path()).unwrap();
        sender.write(&snapshot(7)).unwrap();
        let mut bytes = Vec::new();
        sender.newest_file().unwrap().unwrap().read_to_end(&mut bytes).unwrap();

        let receiver = Snapshots::open(to.path()).unwrap();
        receiver.write(&snapshot(2)).unwrap();
        let mut file = receiver.begin_receiving().unwrap();
        for piece in bytes.chunks(1000) {
            file.write_all(piece).unwrap();
        }
        assert_eq!(receiver.install(&mut file, |_| Ok(())).unwrap(), snapshot(7));
        assert_eq!(Snapshots::open(to.path()).unwrap().newest().unwrap(), Some(snapshot(7)));

        let mut cut = receiver.begin_receiving().unwrap();
        cut.write_all(&bytes[..bytes.len() / 2]).unwrap();
        assert!(matches!(receiver.install(&mut cut, |_| Ok(())), Err(StorageError::Damaged { .. })));
        let refused = || StorageError::Refused { path: PathBuf::new(), problem: String::new() };
        sender.write(&snapshot(9)).unwrap();
        let mut newer = sender.newest_file().unwrap().unwrap();
        receiver.install(&mut newer, |_| Err(refused())).unwrap_err();
        assert_eq!(receiver.newest().unwrap(), Some(snapshot(7)));
    }

    #[test]
    fn any_flipped_bit_or_cut_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let small =
            Snapshot { index: 7, meta: Bytes::from_static(b"meta"), state: Bytes::from_static(b"state") };
        Snapshots::open(folder.path()).unwrap().write(&small).unwrap();
        let path = folder.path().join("00000000000000000007.snapshot");
        let sound = fs::read(&path).unwrap();
        for at in 0..sound.len() {
            let mut damaged = sound.clone();
            damaged[at] ^= 0x10;
            for content in [&damaged[..], &sound[..at]] {
                fs::write(&path, content).unwrap();
                let found = Snapshots::open(folder.path());
                assert!(matches!(found, Err(StorageError::Damaged { .. })), "at {at}: {found:?}");
            }
        }
    }
}
