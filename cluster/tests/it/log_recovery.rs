//! The log through its trait, both stores: what was written is read; and what is on a disk is there after a
//! crash, or is reported as damaged, and never served as something else.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    ops::Range,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use gogate_cluster::storage::{
    DataDir, LogStore, MemoryLog, Meta, Owner, SledLog, StorageError, codec::FORMAT,
};
use tempfile::TempDir;

/// A record's content follows from its index, so that a reader knows what must be there.
fn record(index: u64) -> Bytes {
    let len = match index % 50 {
        0 => 20_000,
        rest => 40 + rest as usize * 8,
    };
    let mut content = format!("record {index:08} ").into_bytes();
    content.extend((content.len()..len).map(|at| (index as usize * 31 + at * 7) as u8));
    content.into()
}

fn records(range: Range<u64>) -> Vec<Bytes> {
    range.map(record).collect()
}

/// A pseudo-random sequence: the same for the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

// === both stores ===

fn check_a_log(log: &dyn LogStore) {
    assert_eq!(log.indexes(), 0..0);
    log.append(5, &records(5..105)).unwrap();
    assert_eq!(log.indexes(), 5..105);
    assert_eq!(log.read(0..1000).unwrap(), records(5..105));
    assert_eq!(log.read(50..60).unwrap(), records(50..60));
    log.truncate(90).unwrap();
    log.append(90, &[Bytes::from_static(b"other"), Bytes::new()]).unwrap();
    assert_eq!(log.indexes(), 5..92);
    assert_eq!(log.read(89..92).unwrap(), [record(89), Bytes::from_static(b"other"), Bytes::new()]);
    log.purge(49).unwrap();
    assert_eq!(log.indexes(), 50..92);
    assert_eq!(log.read(0..51).unwrap(), records(50..51));
    log.put(Meta::Vote, Some(b"one")).unwrap();
    log.put(Meta::Vote, Some(b"two")).unwrap();
    log.put(Meta::Purged, Some(b"49")).unwrap();
    log.put(Meta::Committed, Some(b"60")).unwrap();
    log.put(Meta::Committed, None).unwrap();
    log.barrier().unwrap();
}

fn check_the_same_log(log: &dyn LogStore) {
    assert_eq!(log.indexes(), 50..92);
    assert_eq!(log.read(50..90).unwrap(), records(50..90));
    assert_eq!(log.get(Meta::Vote).unwrap(), Some(Bytes::from_static(b"two")));
    assert_eq!(log.get(Meta::Purged).unwrap(), Some(Bytes::from_static(b"49")));
    assert_eq!(log.get(Meta::Committed).unwrap(), None);
    log.truncate(50).unwrap();
    assert_eq!(log.indexes(), 0..0);
    log.append(50, &records(50..60)).unwrap();
    log.purge(1000).unwrap();
    assert_eq!(log.indexes(), 0..0);
    log.append(2000, &records(2000..2003)).unwrap();
    assert_eq!(log.read(0..5000).unwrap(), records(2000..2003));
}

#[test]
fn both_stores_keep_a_log() {
    let memory = MemoryLog::default();
    check_a_log(&memory);
    check_the_same_log(&memory);
    let folder = TempDir::new().unwrap();
    let log = SledLog::open(folder.path()).unwrap();
    check_a_log(&log);
    drop(log);
    check_the_same_log(&SledLog::open(folder.path()).unwrap());
    let log = SledLog::open(folder.path()).unwrap();
    assert_eq!(log.read(0..5000).unwrap(), records(2000..2003));
}

#[test]
fn records_of_any_size_make_no_files_of_their_own() {
    let folder = TempDir::new().unwrap();
    let log = SledLog::open(folder.path()).unwrap();
    let sizes = [0, 1, 6 * 1024 - 13, 6 * 1024 - 12, 100_000, 200_000, 5 << 20, 300];
    let written: Vec<_> = sizes.map(|len| (0..len).map(|at| (at * 7) as u8).collect::<Bytes>()).into();
    log.append(1, &written).unwrap();
    log.barrier().unwrap();
    assert_eq!(log.read(1..100).unwrap(), written);
    drop(log);
    assert_eq!(SledLog::open(folder.path()).unwrap().read(1..100).unwrap(), written);
    assert_eq!(fs::read_dir(folder.path().join("blobs")).unwrap().count(), 0);
}

#[test]
fn a_gap_is_refused() {
    let folder = TempDir::new().unwrap();
    let log = SledLog::open(folder.path()).unwrap();
    log.append(1, &records(1..3)).unwrap();
    assert!(matches!(log.append(4, &records(4..5)), Err(StorageError::Io { .. })));
    log.append(3, &records(3..5)).unwrap();
    assert_eq!(log.read(0..10).unwrap(), records(1..5));
}

#[test]
fn a_folder_in_use_is_refused() {
    let folder = TempDir::new().unwrap();
    let log = SledLog::open(folder.path()).unwrap();
    let refused = SledLog::open(folder.path()).err().expect("it is open").to_string();
    assert!(refused.contains("another gogate is using this folder"), "{refused}");
    drop(log);
    SledLog::open(folder.path()).unwrap();
}

// === damage ===

fn copy(from: &Path) -> TempDir {
    let to = TempDir::new().unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), to.path().join(entry.file_name())).unwrap();
        }
    }
    to
}

/// The file in `path` whose name begins like this.
fn name_of(path: &Path, begin: &str) -> String {
    let mut names =
        fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.find(|name| name.starts_with(begin)).unwrap_or_else(|| panic!("there is no {begin}"))
}

/// A log of 200 small records over several leaves, closed after it was opened for the second time.
fn a_closed_log() -> TempDir {
    let folder = TempDir::new().unwrap();
    let log = SledLog::open(folder.path()).unwrap();
    for index in 1..201 {
        log.append(index, &records(index..index + 1)).unwrap();
        if index % 10 == 5 {
            log.put(Meta::Vote, Some(format!("the vote at {index:08}").as_bytes())).unwrap();
        }
        log.barrier().unwrap();
    }
    drop(log);
    drop(SledLog::open(folder.path()).unwrap());
    folder
}

fn assert_damaged(folder: &TempDir, what: &str) {
    match SledLog::open(folder.path()) {
        Err(StorageError::Damaged { .. }) => {}
        Err(other) => panic!("{what}: {other}"),
        Ok(_) => panic!("{what}: it opened"),
    }
}

/// Every place of `pattern` in `content`.
fn places(content: &[u8], pattern: &[u8]) -> Vec<usize> {
    let windows = content.windows(pattern.len()).enumerate();
    windows.filter(|(_, window)| *window == pattern).map(|(at, _)| at).collect()
}

#[test]
fn a_flipped_byte_in_a_value_is_damage() {
    let sound = a_closed_log();
    let content = fs::read(sound.path().join("db")).unwrap();
    let mut patterns: Vec<_> = [1, 2, 50, 77, 199, 200].map(|index| format!("record {index:08}")).into();
    patterns.push("the vote at 00000195".to_owned());
    for pattern in patterns {
        // sled rewrites a leaf while the old copy still lies in the file: all copies are hit.
        let mut damaged = content.clone();
        let places = places(&content, pattern.as_bytes());
        assert!(!places.is_empty(), "{pattern} is in the file");
        places.into_iter().for_each(|at| damaged[at + 3] ^= 0x10);
        let folder = copy(sound.path());
        fs::write(folder.path().join("db"), damaged).unwrap();
        assert_damaged(&folder, &pattern);
        // sled has cut its file by now; that must not make a sound log of it.
        assert_damaged(&folder, &pattern);
    }
}

#[test]
fn a_flipped_byte_anywhere_is_damage_or_harmless() {
    let sound = a_closed_log();
    let mut dice = Dice(7);
    let mut found = 0;
    for name in ["db", "db", "db", "conf", "snap.", "watermark"] {
        let name = &name_of(sound.path(), name);
        let content = fs::read(sound.path().join(name)).unwrap();
        let written = content.iter().rposition(|byte| *byte != 0).unwrap() as u64 + 1;
        for _ in 0..10 {
            let at = dice.below(written) as usize;
            let mut damaged = content.clone();
            damaged[at] ^= 1 << dice.below(8);
            let folder = copy(sound.path());
            fs::write(folder.path().join(name), damaged).unwrap();
            match SledLog::open(folder.path()) {
                Err(StorageError::Damaged { .. }) => found += 1,
                Err(other) => panic!("{name} at {at}: {other}"),
                Ok(log) => {
                    assert_eq!(log.read(0..1000).unwrap(), records(1..201), "{name} at {at}");
                    let vote = log.get(Meta::Vote).unwrap();
                    assert_eq!(vote, Some(Bytes::from_static(b"the vote at 00000195")), "{name} at {at}");
                }
            }
        }
    }
    assert!(found >= 15, "only {found} of 60 flipped bytes were found");
}

#[test]
fn a_file_that_is_cut_or_missing_is_damage() {
    let sound = a_closed_log();
    let content = fs::read(sound.path().join("db")).unwrap();
    let written = content.iter().rposition(|byte| *byte != 0).unwrap();
    for len in [0, 1000, written / 2, written - 10] {
        let folder = copy(sound.path());
        fs::write(folder.path().join("db"), &content[..len]).unwrap();
        assert_damaged(&folder, &format!("cut to {len} bytes"));
    }
    for name in ["db", "watermark"] {
        let folder = copy(sound.path());
        fs::remove_file(folder.path().join(name)).unwrap();
        assert_damaged(&folder, &format!("{name} is missing"));
    }
}

/// Takes out what lies under the last of sled's keys: the last chunk of the last record.
fn remove_the_last_chunk(folder: &Path) {
    let db = sled::Config::new().path(folder).segment_size(512 * 1024).flush_every_ms(None).open().unwrap();
    let (key, _) = db.iter().last().unwrap().unwrap();
    assert_eq!(key[0], b'r');
    db.remove(key).unwrap();
    db.flush().unwrap();
}

#[test]
fn half_a_record_is_removed_unless_it_had_passed_a_barrier() {
    for passed in [false, true] {
        let folder = TempDir::new().unwrap();
        let log = SledLog::open(folder.path()).unwrap();
        log.append(1, &records(1..100)).unwrap();
        log.barrier().unwrap();
        // Of several chunks.
        log.append(100, &records(100..101)).unwrap();
        if passed {
            log.barrier().unwrap();
        }
        drop(log);
        remove_the_last_chunk(folder.path());
        if passed {
            assert_damaged(&folder, "a record that was acknowledged is only half there");
            continue;
        }
        let log = SledLog::open(folder.path()).unwrap();
        assert_eq!(log.read(0..1000).unwrap(), records(1..100));
        log.append(100, &records(100..130)).unwrap();
        log.barrier().unwrap();
        drop(log);
        assert_eq!(SledLog::open(folder.path()).unwrap().read(0..1000).unwrap(), records(1..130));
    }
}

#[test]
fn what_a_kill_during_open_leaves_is_cleared() {
    let folder = a_closed_log();
    fs::write(folder.path().join("snap.FFFFFFFFFFFFFFFF.generating"), b"half of it").unwrap();
    assert_eq!(SledLog::open(folder.path()).unwrap().read(0..1000).unwrap(), records(1..201));

    // The very first open: nothing was acknowledged, whatever lies there is made anew.
    let unformed = TempDir::new().unwrap();
    drop(SledLog::open(unformed.path()).unwrap());
    fs::remove_file(unformed.path().join("watermark")).unwrap();
    fs::remove_file(unformed.path().join("db")).unwrap();
    fs::write(unformed.path().join("conf"), b"seg").unwrap();
    SledLog::open(unformed.path()).unwrap().append(1, &records(1..2)).unwrap();
}

// === the data folder ===

const OWNER: Owner<'static> = Owner { cluster_name: "demo", name: "n1", learner: false, format: FORMAT };

fn refusal(folder: &TempDir, owner: Owner<'_>) -> String {
    DataDir::open(folder.path(), owner).err().expect("it is refused").to_string()
}

#[test]
fn a_data_folder_is_its_owners() {
    let folder = TempDir::new().unwrap();
    let mut dir = DataDir::open(folder.path(), OWNER).unwrap();
    let mut identity = dir.identity.clone();
    identity.node = Some(3);
    dir.save_identity(identity.clone()).unwrap();
    assert!(refusal(&folder, OWNER).contains("another gogate is using this folder"));
    drop(dir);
    assert_eq!(DataDir::open(folder.path(), OWNER).unwrap().identity, identity);
    let other = refusal(&folder, Owner { cluster_name: "shop", ..OWNER });
    assert!(other.contains("belongs to cluster `demo`") && other.contains("cluster `shop`"), "{other}");
    let other = refusal(&folder, Owner { name: "n2", ..OWNER });
    assert!(other.contains("belongs to node `n1`"), "{other}");
}

#[test]
fn a_data_folder_with_a_part_missing_is_never_a_fresh_start() {
    for missing in ["log", "identity", "snapshots"] {
        let folder = TempDir::new().unwrap();
        let dir = DataDir::open(folder.path(), OWNER).unwrap();
        dir.log.append(1, &records(1..10)).unwrap();
        let snapshot = gogate_cluster::storage::Snapshot {
            index: 5,
            meta: Bytes::new(),
            state: Bytes::from_static(b"the state"),
        };
        dir.snapshots.write(&snapshot).unwrap();
        dir.log.purge(5).unwrap();
        dir.log.barrier().unwrap();
        drop(dir);
        drop(DataDir::open(folder.path(), OWNER).unwrap());
        let path = folder.path().join(missing);
        if path.is_dir() {
            fs::remove_dir_all(path).unwrap();
        } else {
            fs::remove_file(path).unwrap();
        }
        let found = DataDir::open(folder.path(), OWNER);
        assert!(matches!(found, Err(StorageError::Damaged { .. })), "{missing} is missing");
    }
}

// === kill -9 ===

/// Run by [`what_passed_a_barrier_survives_kill_9`] in a process of its own, which hands it a folder.
#[test]
#[ignore = "writes until it is killed: started by another test, with a folder on its standard input"]
fn writes_until_it_is_killed() {
    let mut folder = String::new();
    std::io::stdin().read_line(&mut folder).unwrap();
    if folder.trim().is_empty() {
        return;
    }
    let log = SledLog::open(Path::new(folder.trim())).unwrap();
    let indexes = log.indexes();
    let mut next = indexes.end.max(1);
    let mut dice = Dice(next);
    let say = |line: String| writeln!(std::io::stdout(), "\n{line}").unwrap();
    loop {
        let end = next + 1 + dice.below(4);
        log.append(next, &records(next..end)).unwrap();
        let votes = dice.below(4) == 0;
        if votes {
            log.put(Meta::Vote, Some(&(end - 1).to_le_bytes())).unwrap();
        }
        log.barrier().unwrap();
        say(format!("acknowledged {}", end - 1));
        if votes {
            say(format!("voted {}", end - 1));
        }
        next = end;
        match dice.below(40) {
            0 => log.purge(next.saturating_sub(500)).unwrap(),
            1 => {
                let back = next.saturating_sub(3).max(log.indexes().start);
                say(format!("truncating {back}"));
                log.truncate(back).unwrap();
                next = back;
            }
            _ => {}
        }
    }
}

/// The last index that must be there, and the vote that was acknowledged last.
fn write_and_kill(folder: &Path, life: Duration) -> Option<(u64, u64)> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "log_recovery::writes_until_it_is_killed", "--ignored", "--nocapture"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    writeln!(child.stdin.take().unwrap(), "{}", folder.display()).unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let reader = thread::spawn(move || {
        let (mut last, mut vote) = (None, 0);
        for line in lines.map_while(Result::ok) {
            if let Some(index) = line.strip_prefix("acknowledged ") {
                last = Some(index.parse::<u64>().unwrap());
            } else if let Some(index) = line.strip_prefix("truncating ") {
                last = Some(index.parse::<u64>().unwrap() - 1);
            } else if let Some(index) = line.strip_prefix("voted ") {
                vote = index.parse().unwrap();
            }
        }
        last.map(|last| (last, vote))
    });
    // The fault's moment, not something that is waited for.
    thread::sleep(life);
    child.kill().unwrap();
    child.wait().unwrap();
    reader.join().unwrap()
}

#[test]
fn what_passed_a_barrier_survives_kill_9() {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    let mut dice = Dice(1);
    let mut acknowledged = (0, 0);
    let (mut rounds, mut working) = (0, 0);
    let deadline = Instant::now() + Duration::from_secs(60);
    while rounds < 40 || working < 8 {
        assert!(Instant::now() < deadline, "{working} of {rounds} rounds came to write anything");
        rounds += 1;
        if let Some((last, vote)) = write_and_kill(path, Duration::from_millis(dice.below(100))) {
            acknowledged = (last, vote.max(acknowledged.1));
            working += 1;
        }
        let log = SledLog::open(path).unwrap_or_else(|error| panic!("round {rounds}: {error}"));
        let indexes = log.indexes();
        let (last, vote) = acknowledged;
        assert!(last == 0 || indexes.end > last, "round {rounds}: {indexes:?} lacks {last}");
        assert_eq!(log.read(indexes.clone()).unwrap(), records(indexes.clone()), "round {rounds}");
        let kept =
            log.get(Meta::Vote).unwrap().map_or(0, |vote| u64::from_le_bytes(vote[..].try_into().unwrap()));
        assert!(kept >= vote.min(last), "round {rounds}: the vote is {kept}, {vote} was acknowledged");
    }
}
