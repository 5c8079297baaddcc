//! Backups: what a cluster agreed on, as one checked file, and the way back into another cluster.
//!
//! Job: [`Backup`] is the file; [`restore`] carries it through the log in parts (`state::restore`). A backup holds the
//! instances and the document's versions. It does not hold the members: who is part of a cluster, and under which
//! ids, is that cluster's own. Invariants: what is read from a file was checked whole; a restore takes place at one
//! index or not at all. Neighbours: `control::admin::backup` is the way in and out.
//!
//! File: magic, version, length of the body; the body; crc32c over all.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::{
    batch::instance_weight,
    handle::ProposeError,
    manage::ManageError,
    node::Node,
    state::{Command, Instance, Outcome, Refusal, RestoreStep, Version},
    storage::codec,
};

const MAGIC: &[u8; 8] = b"gogatebk";
const VERSION: u8 = 1;
const HEADER_BYTES: usize = 8 + 1 + 8;
const CHECKSUM_BYTES: usize = 4;

/// Bytes of one part: well within what reaches a follower in a heartbeat.
const PART_BYTES: usize = 512 << 10;

/// One attempt of one part.
const PART_TIMEOUT: Duration = Duration::from_secs(5);

/// Between two attempts of one part.
const AGAIN_PAUSE: Duration = Duration::from_millis(50);

/// What a cluster agreed on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backup {
    /// The cluster's name.
    pub cluster: String,
    /// The cluster's uuid.
    pub cluster_uuid: String,
    /// The node that made it.
    pub node: String,
    /// Its wall clock, milliseconds since 1970: shown, never computed with.
    pub made_at_ms: u64,
    /// The index that it stands at: all changes up to it are in it, and none after.
    pub index: u64,
    /// The instances, ordered by id.
    pub instances: Vec<Arc<Instance>>,
    /// The document's versions that were kept, oldest first.
    pub versions: Vec<Arc<Version>>,
}

// === impl Backup ===

impl Backup {
    /// As a file has it.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let body = codec::encode(self);
        let mut bytes = BytesMut::with_capacity(HEADER_BYTES + body.len() + CHECKSUM_BYTES);
        bytes.put_slice(MAGIC);
        bytes.put_u8(VERSION);
        bytes.put_u64_le(body.len() as u64);
        bytes.put_slice(&body);
        let checksum = crc32c::crc32c(&bytes);
        bytes.put_u32_le(checksum);
        bytes.freeze()
    }

    /// What a file holds, or why it cannot be used.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        if !bytes.starts_with(MAGIC) {
            return Err("it is no backup of gogate".to_owned());
        }
        if bytes.len() < HEADER_BYTES + CHECKSUM_BYTES {
            return Err(format!("it is cut off after {} bytes", bytes.len()));
        }
        let (checked, mut checksum) = bytes.split_at(bytes.len() - CHECKSUM_BYTES);
        let (mut header, body) = checked.split_at(HEADER_BYTES);
        header.advance(MAGIC.len());
        let version = header.get_u8();
        if version != VERSION {
            return Err(format!("its version is {version}, this build reads {VERSION}"));
        }
        let len = header.get_u64_le();
        if len != body.len() as u64 {
            return Err(format!("it holds {} bytes of {len}: it is cut off or was added to", body.len()));
        }
        if checksum.get_u32_le() != crc32c::crc32c(checked) {
            return Err("its checksum does not match: it is damaged".to_owned());
        }
        codec::decode("a backup", body).map_err(|error| error.to_string())
    }

    /// Its parts, in order.
    fn steps(self, force: bool) -> Vec<RestoreStep> {
        let (instances, versions) = (self.instances.len() as u64, self.versions.len() as u64);
        let index = self.index;
        let mut steps = vec![RestoreStep::Begin { force }];
        let mut part = Vec::new();
        let mut bytes = 0;
        for instance in self.instances {
            bytes += instance_weight(&instance);
            part.push(Arc::unwrap_or_clone(instance));
            if bytes >= PART_BYTES {
                steps.push(RestoreStep::Instances(std::mem::take(&mut part)));
                bytes = 0;
            }
        }
        if !part.is_empty() {
            steps.push(RestoreStep::Instances(part));
        }
        for version in self.versions {
            for content in pieces(&version.content) {
                steps.push(RestoreStep::Document(Version {
                    content: content.into(),
                    ..Version::clone(&version)
                }));
            }
        }
        steps.push(RestoreStep::Finish { instances, versions, index });
        steps
    }
}

/// A text in pieces of at most about [`PART_BYTES`]; one even if it is empty.
fn pieces(mut text: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    while text.len() > PART_BYTES {
        // A character has at most four bytes.
        let end = (PART_BYTES - 3..=PART_BYTES).rev().find(|end| text.is_char_boundary(*end));
        let (piece, rest) = text.split_at(end.unwrap_or(text.len()));
        pieces.push(piece);
        text = rest;
    }
    pieces.push(text);
    pieces
}

/// Puts a backup in the place of what the cluster has; returns the index of that change. `force`: also when the
/// cluster has instances or a document. Until the last part nothing can be seen of it.
pub(crate) async fn restore(
    node: &Node,
    backup: Backup,
    force: bool,
    timeout: Duration,
) -> Result<u64, ManageError> {
    let deadline = Instant::now() + timeout;
    let restore = rand::random();
    let steps = backup.steps(force);
    let last = steps.len() as u64 - 1;
    for (part, step) in (0..).zip(steps) {
        let command = Command::Restore { restore, part, step };
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match node.proposer.propose(command.clone(), left.min(PART_TIMEOUT)).await {
                Ok(Outcome::Gathered) => break,
                Ok(Outcome::Restored { index }) => return Ok(index),
                Ok(Outcome::Refused(refusal @ Refusal::NotEmpty { .. })) => {
                    return Err(ManageError::Refused(refusal.to_string()));
                }
                Ok(Outcome::Refused(refusal)) => return Err(ManageError::NotDone(refusal.to_string())),
                Ok(other) => return Err(ManageError::Unknown(format!("the leader answered {other:?}"))),
                // A part that is repeated changes nothing.
                Err(error) if left <= AGAIN_PAUSE => {
                    return Err(match error {
                        ProposeError::Unknown { .. } if part == last => {
                            ManageError::Unknown(error.to_string())
                        }
                        _ => {
                            ManageError::NotDone(format!("part {part} of {last} did not get through in time"))
                        }
                    });
                }
                Err(_) => tokio::time::sleep(AGAIN_PAUSE).await,
            }
        }
    }
    Err(ManageError::Unknown("the last part was not answered as such".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backup() -> Backup {
        let version = |version, content: &str| {
            Arc::new(Version {
                version,
                content: content.into(),
                sha256: "ab".to_owned(),
                by: "a test".to_owned(),
                at_ms: 7,
            })
        };
        Backup {
            cluster: "demo".to_owned(),
            cluster_uuid: "5eed".to_owned(),
            node: "n1".to_owned(),
            made_at_ms: 1,
            index: 9,
            instances: Vec::new(),
            versions: vec![version(3, "routes: []"), version(4, &"ä".repeat(PART_BYTES))],
        }
    }

    #[test]
    fn any_flipped_bit_or_cut_is_found() {
        let mut small = backup();
        small.versions.pop();
        let sound = small.encode();
        assert_eq!(Backup::decode(&sound), Ok(small));
        for at in 0..sound.len() {
            let mut damaged = sound.to_vec();
            damaged[at] ^= 0x10;
            assert!(Backup::decode(&damaged).is_err(), "flipped at {at}");
            assert!(Backup::decode(&sound[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn a_large_text_goes_in_pieces_of_whole_characters() {
        let steps = backup().steps(false);
        let contents: Vec<_> = steps
            .iter()
            .filter_map(|step| match step {
                RestoreStep::Document(version) if version.version == 4 => Some(&*version.content),
                _ => None,
            })
            .collect();
        assert!(contents.len() > 1 && contents.iter().all(|content| content.len() <= PART_BYTES));
        assert_eq!(contents.concat(), *backup().versions[1].content);
    }
}
