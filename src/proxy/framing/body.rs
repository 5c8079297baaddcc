//! Where a body ends: by its length, by its chunks, or with its connection.

use super::{
    Wrong,
    line::{Lines, field, without_end},
};

/// A body on its way through.
#[derive(Debug, Clone, Default)]
pub(super) struct Body {
    left: Left,
    /// Of all chunks.
    extension_bytes: usize,
    /// Of the chunk under way.
    extension_bytes_here: usize,
    trailers: usize,
    lines: Lines,
}

/// What the next bytes of a body are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holds {
    Data,
    Trailers,
    /// They say where data ends.
    Framing,
}

/// What is still to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Left {
    #[default]
    Nothing,
    Length(u64),
    Chunk(Chunk),
    UntilClose,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chunk {
    Size {
        value: u64,
        digits: u8,
    },
    /// Ignored, as RFC 9112, section 7.1.1 asks; holds the size.
    Extension(u64),
    SizeLineFeed(u64),
    Data(u64),
    DataCarriageReturn,
    DataLineFeed,
    /// The lines after the last chunk; they end with an empty one.
    Trailers,
}

/// Nobody uses chunk extensions; long ones are only there to cost something.
const EXTENSION_BYTES_MAX: usize = 256;
/// For a whole body, however many chunks it has.
const EXTENSIONS_BYTES_MAX: usize = 8 << 10;
/// hyper, which reads those of clients, takes 16 KiB.
const TRAILERS_BYTES_MAX: usize = 8 << 10;
const TRAILERS_MAX: usize = 64;

const MALFORMED: Wrong = Wrong::Malformed("a chunk of the body is malformed");

// === impl Left ===

impl Left {
    /// The first chunk.
    pub(super) const CHUNKS: Left = Left::Chunk(Chunk::Size { value: 0, digits: 0 });

    pub(super) fn length(length: u64) -> Left {
        if length == 0 { Left::Nothing } else { Left::Length(length) }
    }
}

// === impl Body ===

impl Body {
    pub(super) fn begin(&mut self, left: Left) {
        self.left = left;
        self.extension_bytes = 0;
    }

    pub(super) fn has_ended(&self) -> bool {
        self.left == Left::Nothing
    }

    /// What the next byte is.
    pub(super) fn holds(&self) -> Holds {
        match self.left {
            Left::Length(_) | Left::UntilClose | Left::Chunk(Chunk::Data(_)) => Holds::Data,
            Left::Chunk(Chunk::Trailers) => Holds::Trailers,
            Left::Nothing | Left::Chunk(_) => Holds::Framing,
        }
    }

    /// How many bytes of data are still to come, where that is known.
    pub(super) fn data_left(&self) -> Option<u64> {
        match self.left {
            Left::Nothing => Some(0),
            Left::Length(left) => Some(left),
            Left::Chunk(_) | Left::UntilClose => None,
        }
    }

    /// Whether the end of the stream is its end.
    pub(super) fn ends_with_the_stream(&self) -> bool {
        self.left == Left::UntilClose
    }

    /// Takes some of the bytes, one at least; the rest.
    pub(super) fn take<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], Wrong> {
        match self.left {
            Left::Nothing => Ok(bytes),
            Left::UntilClose => Ok(&[]),
            Left::Length(left) => {
                let (left, rest) = pass(left, bytes);
                self.left = Left::length(left);
                Ok(rest)
            }
            Left::Chunk(chunk) => self.take_chunk(chunk, bytes),
        }
    }

    fn take_chunk<'a>(&mut self, chunk: Chunk, bytes: &'a [u8]) -> Result<&'a [u8], Wrong> {
        let (byte, rest) = (bytes[0], &bytes[1..]);
        let next = match (chunk, byte) {
            (Chunk::Size { value, digits }, _) if byte.is_ascii_hexdigit() && digits < 15 => {
                let digit = (byte as char).to_digit(16).unwrap_or(0);
                Chunk::Size { value: value << 4 | u64::from(digit), digits: digits + 1 }
            }
            (Chunk::Size { value, digits: 1.. }, b'\r') => Chunk::SizeLineFeed(value),
            (Chunk::Size { value, digits: 1.. }, b';') => {
                self.extension_bytes_here = 0;
                Chunk::Extension(value)
            }
            (Chunk::Extension(size), b'\r') => Chunk::SizeLineFeed(size),
            (Chunk::Extension(size), b'\t' | b' '..=0x7e | 0x80..) => {
                self.extension_bytes += 1;
                self.extension_bytes_here += 1;
                if self.extension_bytes_here > EXTENSION_BYTES_MAX
                    || self.extension_bytes > EXTENSIONS_BYTES_MAX
                {
                    return Err(Wrong::Malformed("the chunk extensions are too long"));
                }
                Chunk::Extension(size)
            }
            (Chunk::SizeLineFeed(0), b'\n') => {
                self.trailers = 0;
                self.lines.restart();
                Chunk::Trailers
            }
            (Chunk::SizeLineFeed(size), b'\n') => Chunk::Data(size),
            (Chunk::Data(left), _) => {
                let (left, rest) = pass(left, bytes);
                self.left =
                    Left::Chunk(if left == 0 { Chunk::DataCarriageReturn } else { Chunk::Data(left) });
                return Ok(rest);
            }
            (Chunk::DataCarriageReturn, b'\r') => Chunk::DataLineFeed,
            (Chunk::DataLineFeed, b'\n') => Chunk::Size { value: 0, digits: 0 },
            (Chunk::Trailers, _) => return self.take_trailers(bytes),
            _ => return Err(MALFORMED),
        };
        self.left = Left::Chunk(next);
        Ok(rest)
    }

    fn take_trailers<'a>(&mut self, mut bytes: &'a [u8]) -> Result<&'a [u8], Wrong> {
        if let Some(line) = self.lines.next(&mut bytes, TRAILERS_BYTES_MAX)? {
            let line = without_end(line)?;
            if line.is_empty() {
                self.left = Left::Nothing;
            } else {
                field(line)?;
                self.trailers += 1;
                if self.trailers > TRAILERS_MAX {
                    return Err(Wrong::TooLarge);
                }
            }
        }
        Ok(bytes)
    }
}

/// What is left of `left` after as many of `bytes` as it covers, and the rest of them.
fn pass(left: u64, bytes: &[u8]) -> (u64, &[u8]) {
    let taken = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
    (left - taken as u64, &bytes[taken..])
}
