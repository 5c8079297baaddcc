//! Folders and small files, made so that they are there after a power cut.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Write},
    path::Path,
};

use super::StorageError;

/// Keeps every other process, and every other opening in this one, out of `path` until it is dropped.
pub(super) fn lock_folder(path: &Path) -> Result<File, StorageError> {
    let io = |source| StorageError::Io { path: path.to_owned(), source };
    let folder = File::open(path).map_err(io)?;
    match folder.try_lock() {
        Ok(()) => Ok(folder),
        Err(TryLockError::Error(error)) => Err(io(error)),
        Err(TryLockError::WouldBlock) => Err(io(io::Error::new(
            io::ErrorKind::WouldBlock,
            "another gogate is using this folder: stop it, or give this one a folder of its own",
        ))),
    }
}

/// Makes the names in `path` durable: a new or renamed file is found after a power cut only once this is done.
pub(super) fn sync_folder(path: &Path) -> Result<(), StorageError> {
    File::open(path)
        .and_then(|folder| folder.sync_all())
        .map_err(|source| StorageError::Io { path: path.to_owned(), source })
}

/// A text for people to read, with the line that says whether it is whole.
pub(super) fn seal_text(text: &str) -> String {
    format!("{text}\nchecksum {:08x}\n", crc32c::crc32c(text.as_bytes()))
}

/// The text that [`seal_text`] sealed, or what is wrong with it.
pub(super) fn unseal_text(bytes: &[u8]) -> Result<&str, String> {
    let text = str::from_utf8(bytes).map_err(|error| error.to_string())?;
    let (text, checksum) = text
        .strip_suffix('\n')
        .and_then(|text| text.rsplit_once("\nchecksum "))
        .ok_or_else(|| "it does not end in its checksum".to_owned())?;
    match checksum == format!("{:08x}", crc32c::crc32c(text.as_bytes())) {
        true => Ok(text),
        false => Err("its checksum does not match".to_owned()),
    }
}

/// Replaces the file whole: after a crash it has its old content or its new one.
pub(super) fn write_file(path: &Path, content: &[u8]) -> Result<(), StorageError> {
    let temporary = path.with_extension("new");
    let io = |source| StorageError::Io { path: path.to_owned(), source };
    let mut file = File::create(&temporary).map_err(io)?;
    file.write_all(content).map_err(io)?;
    file.sync_all().map_err(io)?;
    fs::rename(&temporary, path).map_err(io)?;
    sync_folder(path.parent().unwrap_or(Path::new(".")))
}
