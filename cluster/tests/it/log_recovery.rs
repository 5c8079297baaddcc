//! The log through its trait, both stores: what was written is read, and what is on a disk is there again or is
//! reported.

use bytes::Bytes;
use gogate_cluster::storage::{LogStore, MemoryLog, Meta, SledLog};

fn record(index: u64, len: usize) -> Bytes {
    (0..len).map(|at| (index as usize * 31 + at * 7) as u8).collect()
}

fn records(range: std::ops::Range<u64>, len: usize) -> Vec<Bytes> {
    range.map(|index| record(index, len)).collect()
}

fn check_a_log(log: &dyn LogStore) {
    assert_eq!(log.indexes(), 0..0);
    log.append(5, &records(5..105, 300)).unwrap();
    assert_eq!(log.indexes(), 5..105);
    assert_eq!(log.read(0..1000).unwrap(), records(5..105, 300));
    assert_eq!(log.read(50..60).unwrap(), records(50..60, 300));
    log.truncate(90).unwrap();
    log.append(90, &[Bytes::from_static(b"other"), Bytes::new()]).unwrap();
    assert_eq!(log.indexes(), 5..92);
    assert_eq!(log.read(89..92).unwrap(), [record(89, 300), Bytes::from_static(b"other"), Bytes::new()]);
    log.purge(49).unwrap();
    assert_eq!(log.indexes(), 50..92);
    assert_eq!(log.read(0..51).unwrap(), records(50..51, 300));
    log.put(Meta::Vote, Some(b"one")).unwrap();
    log.put(Meta::Vote, Some(b"two")).unwrap();
    log.put(Meta::Purged, Some(b"49")).unwrap();
    log.put(Meta::Committed, Some(b"60")).unwrap();
    log.put(Meta::Committed, None).unwrap();
    assert_eq!(log.get(Meta::Vote).unwrap(), Some(Bytes::from_static(b"two")));
    assert_eq!(log.get(Meta::Committed).unwrap(), None);
    log.barrier().unwrap();
}

fn check_the_same_log(log: &dyn LogStore) {
    assert_eq!(log.indexes(), 50..92);
    assert_eq!(log.read(50..90).unwrap(), records(50..90, 300));
    assert_eq!(log.get(Meta::Vote).unwrap(), Some(Bytes::from_static(b"two")));
    assert_eq!(log.get(Meta::Purged).unwrap(), Some(Bytes::from_static(b"49")));
    assert_eq!(log.get(Meta::Committed).unwrap(), None);
    log.purge(1000).unwrap();
    assert_eq!(log.indexes(), 0..0);
    log.append(2000, &records(2000..2003, 10)).unwrap();
    assert_eq!(log.read(0..5000).unwrap(), records(2000..2003, 10));
}

#[test]
fn both_stores_keep_a_log() {
    let memory = MemoryLog::default();
    check_a_log(&memory);
    check_the_same_log(&memory);
    let folder = tempfile::tempdir().unwrap();
    let log = SledLog::open(folder.path()).unwrap();
    check_a_log(&log);
    drop(log);
    let log = SledLog::open(folder.path()).unwrap();
    check_the_same_log(&log);
}
