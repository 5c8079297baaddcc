//! Which formats a data folder holds, said where a build that does not understand them sees it first.
//!
//! Job: [`Formats::admit`] is asked before anything of a format is written into the log or the snapshots: a format that
//! this node does not understand is an error, which stops it with nothing written; a newer one than ever before is
//! noted on the disk first. So [`Formats::open`], which comes before the store is even opened, can turn an older
//! build away and leave the folder as it is. Invariant: the note is never behind what is on the disk, and only ever
//! rises. Neighbours: `raft::log_store` and `raft::state_machine` ask, `data_dir` opens.
//!
//! The file is text, for people to read, with a checksum; where it is missing, all is of the oldest format.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use super::{
    StorageError,
    codec::OLDEST,
    folder::{seal_text, unseal_text, write_file},
};
use crate::BUILD;

/// The file's name in the data folder.
const FILE: &str = "format";

/// What a node understands, and what its folder holds.
#[derive(Debug)]
pub struct Formats {
    path: PathBuf,
    understood: u8,
    noted: Mutex<u8>,
}

// === impl Formats ===

impl Formats {
    /// Of a data folder, for a node that reads up to `understood`; refused if the folder holds more.
    pub fn open(data_dir: &Path, understood: u8) -> Result<Self, StorageError> {
        let path = data_dir.join(FILE);
        let noted = match fs::read(&path) {
            Ok(bytes) => {
                let damaged = |problem| StorageError::Damaged { path: path.clone(), problem };
                let text = unseal_text(&bytes).map_err(damaged)?;
                let (format, build) = parse(text).ok_or_else(|| damaged(format!("it says `{text}`")))?;
                if !(OLDEST..=understood).contains(&format) {
                    let advice = match format < OLDEST {
                        true => "go through a build that understands both".to_owned(),
                        false => format!("install gogate {build} or newer"),
                    };
                    return Err(StorageError::Refused {
                        path: data_dir.to_owned(),
                        problem: format!(
                            "what lies in it is of format {format}, as written by gogate {build}, and this build ({BUILD}) understands formats {OLDEST} to {understood}: {advice}; nothing was changed"
                        ),
                    });
                }
                format
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => OLDEST,
            Err(source) => return Err(StorageError::Io { path, source }),
        };
        Ok(Self { path, understood, noted: Mutex::new(noted) })
    }

    /// The newest format that this node understands.
    pub fn understood(&self) -> u8 {
        self.understood
    }

    /// Returns once something of `format` may be written.
    pub fn admit(&self, format: u8) -> Result<(), StorageError> {
        if format > self.understood {
            let problem = format!(
                "the cluster writes format {format}, and this build ({BUILD}) understands formats {OLDEST} to {}: install a newer gogate; nothing of it was written",
                self.understood
            );
            return Err(StorageError::Refused { path: self.path.clone(), problem });
        }
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        if format > *noted {
            let text = seal_text(&format!("format {format}, written by gogate {BUILD}"));
            write_file(&self.path, text.as_bytes())?;
            *noted = format;
        }
        Ok(())
    }
}

fn parse(text: &str) -> Option<(u8, &str)> {
    let (format, build) = text.strip_prefix("format ")?.split_once(", written by gogate ")?;
    Some((format.parse().ok()?, build))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_admitted_keeps_a_build_away_that_does_not_understand_it() {
        let folder = tempfile::tempdir().unwrap();
        let formats = Formats::open(folder.path(), 8).unwrap();
        formats.admit(OLDEST).unwrap();
        assert!(!folder.path().join(FILE).exists(), "the oldest needs no note");
        formats.admit(7).unwrap();
        formats.admit(5).unwrap();
        let refused = formats.admit(9).unwrap_err().to_string();
        assert!(refused.contains("format 9") && refused.contains("2 to 8"), "{refused}");
        drop(formats);
        assert_eq!(Formats::open(folder.path(), 7).unwrap().understood(), 7);
        let refused = Formats::open(folder.path(), 6).unwrap_err().to_string();
        for said in ["format 7", "2 to 6", &format!("install gogate {BUILD} or newer"), "nothing was changed"]
        {
            assert!(refused.contains(said), "{refused}");
        }
    }

    #[test]
    fn any_flipped_bit_or_cut_is_found() {
        let folder = tempfile::tempdir().unwrap();
        Formats::open(folder.path(), 8).unwrap().admit(7).unwrap();
        let path = folder.path().join(FILE);
        let sound = fs::read(&path).unwrap();
        for at in 0..sound.len() {
            let mut damaged = sound.clone();
            damaged[at] ^= 0x10;
            for content in [&damaged[..], &sound[..at]] {
                fs::write(&path, content).unwrap();
                let found = Formats::open(folder.path(), 8);
                assert!(matches!(found, Err(StorageError::Damaged { .. })), "at {at}: {found:?}");
            }
        }
    }
}
