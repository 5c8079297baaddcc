//! A stream of events over gRPC: `gogate.v1.Registry/Watch` of `proto/gogate/v1/control.proto`, at the admin port.
//!
//! Just as much of HTTP/2 (RFC 9113, with prior knowledge), HPACK (RFC 7541) and protobuf as one call takes that is
//! answered by a stream, written down here once more: a library that gogate uses as well would share its bugs.
//! Invariant: an event is told whole or not at all.

use std::{collections::BTreeMap, io, net::SocketAddr, time::Instant};

use super::http::{Connection, HttpError};
use crate::history::{Told, content_hash};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The call's only stream.
const STREAM: u32 = 1;

/// Types of frames.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

/// Flags of frames. An acknowledgement and the end of a stream have the same.
const ACK: u8 = 0x1;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;

/// `SETTINGS_INITIAL_WINDOW_SIZE`, and the largest there is: nobody ever waits for a window.
const INITIAL_WINDOW_SIZE: u16 = 4;
const WINDOW_MAX: u32 = (1 << 31) - 1;

/// What a connection's window has without being asked.
const WINDOW_DEFAULT: u32 = 65_535;

/// More than any event needs.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// What an event says; none for documents and signs of life.
pub struct GrpcEvent {
    /// Its index.
    pub index: u64,
    /// What it says of instances.
    pub told: Option<Told>,
}

/// A stream that goes on.
pub struct GrpcEvents {
    connection: Connection,
    deadline: Instant,
    /// Received and not yet told.
    body: Vec<u8>,
    /// What came of a snapshot of several messages.
    snapshot: BTreeMap<String, String>,
}

// === impl GrpcEvents ===

impl GrpcEvents {
    /// Asks for all changes behind `since`, or from a snapshot on; everything has to come before the deadline.
    pub fn open(address: SocketAddr, since: Option<u64>, deadline: Instant) -> Result<Self, HttpError> {
        let mut connection = Connection::open(address, deadline)?;
        let mut bytes = PREFACE.to_vec();
        let mut settings = INITIAL_WINDOW_SIZE.to_be_bytes().to_vec();
        settings.extend(WINDOW_MAX.to_be_bytes());
        bytes.extend(frame(SETTINGS, 0, 0, &settings));
        bytes.extend(frame(WINDOW_UPDATE, 0, 0, &(WINDOW_MAX - WINDOW_DEFAULT).to_be_bytes()));
        bytes.extend(frame(HEADERS, END_HEADERS, STREAM, &head()));
        bytes.extend(frame(DATA, END_STREAM, STREAM, &request(since)));
        connection.send(&bytes, deadline).map_err(|error| HttpError::Lost(error.to_string()))?;
        Ok(Self { connection, deadline, body: Vec::new(), snapshot: BTreeMap::new() })
    }

    /// The next event; none: the stream is over, or the time is.
    pub fn next(&mut self) -> Option<GrpcEvent> {
        loop {
            let message = self.message()?;
            if let Some(event) = self.event(&message)? {
                return Some(event);
            }
        }
    }

    /// None: it cannot be read. Nothing in it: a snapshot that goes on.
    fn event(&mut self, message: &[u8]) -> Option<Option<GrpcEvent>> {
        let (mut index, mut told) = (0, None);
        for (number, field) in fields(message)? {
            match (number, field) {
                (1, Field::Number(number)) => index = number,
                (2, Field::Bytes(bytes)) => {
                    if self.take_snapshot(bytes)? {
                        return Some(None);
                    }
                    told = Some(Told::Snapshot { instances: std::mem::take(&mut self.snapshot) });
                }
                (3 | 4, Field::Bytes(bytes)) => {
                    let (id, content) = instance(bytes)?;
                    told = Some(Told::Change { id, content: Some(content) });
                }
                (5 | 6, Field::Bytes(bytes)) => {
                    told = Some(Told::Change { id: instance(bytes)?.0, content: None });
                }
                _ => {}
            }
        }
        Some(Some(GrpcEvent { index, told }))
    }

    /// Whether there is more to come.
    fn take_snapshot(&mut self, bytes: &[u8]) -> Option<bool> {
        let mut more = false;
        for (number, field) in fields(bytes)? {
            match (number, field) {
                (1, Field::Bytes(bytes)) => self.snapshot.extend([instance(bytes)?]),
                (3, Field::Number(number)) => more = number != 0,
                _ => {}
            }
        }
        Some(more)
    }

    /// One message, without the five bytes before it: whether it is compressed, and its length.
    fn message(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some((&[0, a, b, c, d], rest)) = self.body.split_first_chunk::<5>() {
                let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).ok()?;
                if rest.len() >= length {
                    let message = rest[..length].to_vec();
                    self.body.drain(..5 + length);
                    return Some(message);
                }
            } else if self.body.len() >= 5 {
                return None;
            }
            let more = self.data().ok().flatten()?;
            self.body.extend(more);
            if self.body.len() > MESSAGE_BYTES_MAX {
                return None;
            }
        }
    }

    /// The next piece of the answer; none: it is over.
    fn data(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            let head = self.connection.take(9, self.deadline)?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let (kind, flags) = (head[3], head[4]);
            let length = usize::try_from(length).map_err(io::Error::other)?;
            let payload = self.connection.take(length, self.deadline)?;
            match kind {
                DATA if flags & PADDED == 0 && !payload.is_empty() => return Ok(Some(payload)),
                // Trailers, a refusal, or an answer that ends here.
                DATA | HEADERS if flags & END_STREAM != 0 => return Ok(None),
                RST_STREAM | GOAWAY => return Ok(None),
                SETTINGS if flags & ACK == 0 => {
                    self.connection.send(&frame(SETTINGS, ACK, 0, &[]), self.deadline)?;
                }
                PING if flags & ACK == 0 => {
                    self.connection.send(&frame(PING, ACK, 0, &payload), self.deadline)?;
                }
                DATA if flags & PADDED != 0 => {
                    return Err(io::Error::other("padding, which nobody needs here"));
                }
                _ => {}
            }
        }
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("what is sent here is short").to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The request's head: each field literal, with a new name, never indexed (RFC 7541, 6.2.2), and shorter than 127.
fn head() -> Vec<u8> {
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/gogate.v1.Registry/Watch"),
        (":authority", "gogate"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    let mut head = Vec::new();
    for (name, value) in fields {
        head.push(0);
        for text in [name, value] {
            head.push(u8::try_from(text.len()).expect("it is short"));
            head.extend(text.as_bytes());
        }
    }
    head
}

/// A `WatchRequest`, framed as gRPC's messages are.
fn request(since: Option<u64>) -> Vec<u8> {
    let mut message = Vec::new();
    if let Some(mut since) = since {
        // Field 2, a varint.
        message.push(2 << 3);
        while since >= 0x80 {
            message.push((since & 0x7f) as u8 | 0x80);
            since >>= 7;
        }
        message.push((since & 0x7f) as u8);
    }
    let length = u32::try_from(message.len()).expect("it is short");
    let mut framed = vec![0];
    framed.extend(length.to_be_bytes());
    framed.extend(message);
    framed
}

/// A field of a message.
#[derive(Debug, PartialEq, Eq)]
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// A message's fields in their order, each with its number; none: it cannot be read.
fn fields(mut bytes: &[u8]) -> Option<Vec<(u64, Field<'_>)>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        let field = match tag & 7 {
            0 => Field::Number(varint(&mut bytes)?),
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).ok()?;
                let (field, rest) = bytes.split_at_checked(length)?;
                bytes = rest;
                Field::Bytes(field)
            }
            _ => return None,
        };
        fields.push((tag >> 3, field));
    }
    Some(fields)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// An instance's id and hash.
fn instance(bytes: &[u8]) -> Option<(String, String)> {
    let (mut id, mut name, mut address) = (String::new(), String::new(), String::new());
    let mut metadata = BTreeMap::new();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
    for (number, field) in fields(bytes)? {
        match (number, field) {
            (1, Field::Bytes(bytes)) => id = text(bytes)?,
            (2, Field::Bytes(bytes)) => name = text(bytes)?,
            (3, Field::Bytes(bytes)) => address = text(bytes)?,
            (6, Field::Bytes(bytes)) => {
                let (mut key, mut value) = (String::new(), String::new());
                for entry in fields(bytes)? {
                    match entry {
                        (1, Field::Bytes(bytes)) => key = text(bytes)?,
                        (2, Field::Bytes(bytes)) => value = text(bytes)?,
                        _ => {}
                    }
                }
                metadata.insert(key, value);
            }
            _ => {}
        }
    }
    let payload: String = metadata.into_values().collect();
    let content = content_hash([&*id, &*name, &*address, &*payload]);
    Some((id, content))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_read_as_it_is_written() {
        assert_eq!(request(None), [0, 0, 0, 0, 0]);
        for number in [0, 1, 127, 128, 300, u64::MAX] {
            let framed = request(Some(number));
            assert_eq!(fields(&framed[5..]), Some(vec![(2, Field::Number(number))]));
        }
        assert_eq!(fields(&[0x10, 0x80]), None, "it is cut off");
        assert_eq!(fields(&[0x0a, 5, 1]), None, "it is cut off");
    }

    #[test]
    fn an_instance_hashes_like_what_is_written() {
        let entry = |key: &str, value: &str| {
            let mut entry = vec![0x0a, key.len() as u8];
            entry.extend(key.bytes());
            entry.extend([0x12, value.len() as u8]);
            entry.extend(value.bytes());
            let mut field = vec![0x32, entry.len() as u8];
            field.extend(entry);
            field
        };
        let mut message = b"\x0a\x01a\x12\x01s\x1a\x01x\x20\x00".to_vec();
        message.extend(entry("001", "second"));
        message.extend(entry("000", "first "));
        let content = content_hash(["a", "s", "x", "first second"]);
        assert_eq!(instance(&message), Some(("a".to_owned(), content)));
    }
}
