//! The frame round every value on the disk: version, length, crc32c over the key and the payload.
//!
//! Invariant: a value that was cut, changed or stored under another key does not open.

use bytes::{BufMut, Bytes, BytesMut};

/// The frame's own version; what it holds has versions of its own.
const VERSION: u8 = 1;

/// Version, length, checksum.
const HEADER_BYTES: usize = 1 + 4 + 4;

/// A chained payload begins with the checksum of the value before it.
pub(super) const CHAIN_BYTES: usize = 4;

/// `parts`, one after the other, in a frame that belongs under `key`.
pub(super) fn seal(key: &[u8], parts: &[&[u8]]) -> Bytes {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    let len = u32::try_from(len).expect("what is kept was received in messages far below 4 GiB");
    let crc = parts.iter().fold(crc32c::crc32c(key), |crc, part| crc32c::crc32c_append(crc, part));
    let mut sealed = BytesMut::with_capacity(HEADER_BYTES + len as usize);
    sealed.put_u8(VERSION);
    sealed.put_u32_le(len);
    sealed.put_u32_le(crc);
    parts.iter().for_each(|part| sealed.put_slice(part));
    sealed.freeze()
}

/// The payload, if it is what was sealed under `key`.
pub(super) fn unseal<'a>(key: &[u8], sealed: &'a [u8]) -> Result<&'a [u8], String> {
    let Some((header, payload)) = sealed.split_at_checked(HEADER_BYTES) else {
        return Err(format!("it is cut off after {} bytes", sealed.len()));
    };
    if header[0] != VERSION {
        return Err(format!("its version is {}, this build reads {VERSION}", header[0]));
    }
    let len = u32_at(header, 1);
    if len as usize != payload.len() {
        return Err(format!("it holds {} bytes of {len}", payload.len()));
    }
    if crc32c::crc32c_append(crc32c::crc32c(key), payload) != u32_at(header, 5) {
        return Err("its checksum does not match".to_owned());
    }
    Ok(payload)
}

/// Whether the end of a sealed value is missing.
pub(super) fn is_cut(sealed: &[u8]) -> bool {
    sealed.len() < HEADER_BYTES || sealed.len() - HEADER_BYTES < u32_at(sealed, 1) as usize
}

/// The checksum that a sealed value carries; of one too short to carry any, 0.
pub(super) fn checksum(sealed: &[u8]) -> u32 {
    if sealed.len() < HEADER_BYTES { 0 } else { u32_at(sealed, 5) }
}

/// The checksum of the value before this one, by which a chained payload begins.
pub(super) fn chained_to(sealed: &[u8]) -> Result<u32, String> {
    if sealed.len() < HEADER_BYTES + CHAIN_BYTES {
        return Err("it is too short".to_owned());
    }
    Ok(u32_at(sealed, HEADER_BYTES))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
