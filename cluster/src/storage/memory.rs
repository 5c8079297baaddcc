//! The log in memory: the twin of `sled` for tests and throw-away nodes. Durable for as long as the process.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;

use super::{LogStore, Meta, StorageError};

/// A [`LogStore`] that forgets everything when it is dropped.
#[derive(Debug, Default)]
pub struct MemoryLog {
    contents: Mutex<Contents>,
}

#[derive(Debug, Default)]
struct Contents {
    records: BTreeMap<u64, Bytes>,
    meta: BTreeMap<Meta, Bytes>,
}

// === impl MemoryLog ===

impl MemoryLog {
    fn contents(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LogStore for MemoryLog {
    fn indexes(&self) -> Range<u64> {
        let contents = self.contents();
        match (contents.records.first_key_value(), contents.records.last_key_value()) {
            (Some((first, _)), Some((last, _))) => *first..*last + 1,
            _ => 0..0,
        }
    }

    fn append(&self, first: u64, records: &[Bytes]) -> Result<(), StorageError> {
        self.contents().records.extend((first..).zip(records.iter().cloned()));
        Ok(())
    }

    fn truncate(&self, index: u64) -> Result<(), StorageError> {
        self.contents().records.split_off(&index);
        Ok(())
    }

    fn purge(&self, index: u64) -> Result<(), StorageError> {
        let mut contents = self.contents();
        contents.records = contents.records.split_off(&(index + 1));
        Ok(())
    }

    fn read(&self, range: Range<u64>) -> Result<Vec<Bytes>, StorageError> {
        Ok(self.contents().records.range(range).map(|(_, record)| record.clone()).collect())
    }

    fn put(&self, meta: Meta, value: Option<&[u8]>) -> Result<(), StorageError> {
        let mut contents = self.contents();
        match value {
            Some(value) => contents.meta.insert(meta, Bytes::copy_from_slice(value)),
            None => contents.meta.remove(&meta),
        };
        Ok(())
    }

    fn get(&self, meta: Meta) -> Result<Option<Bytes>, StorageError> {
        Ok(self.contents().meta.get(&meta).cloned())
    }

    fn barrier(&self) -> Result<(), StorageError> {
        Ok(())
    }
}
