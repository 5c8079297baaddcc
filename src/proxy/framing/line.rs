//! Lines of a head or of trailers, cut out of a stream, and what a field line must look like.

use super::Wrong;

/// Cuts lines out of pieces of a stream. A line that comes whole is not copied.
#[derive(Debug, Clone, Default)]
pub(super) struct Lines {
    /// A line that has not ended yet.
    partial: Vec<u8>,
    /// `partial` was handed out whole.
    taken: bool,
    /// All bytes since [`Lines::restart`].
    pub(super) bytes: usize,
}

// === impl Lines ===

impl Lines {
    /// The next line, its line feed included, or none when `bytes` end inside it. All lines together may be
    /// `bytes_max` long.
    pub(super) fn next<'a, 'b: 'a>(
        &'a mut self,
        bytes: &mut &'b [u8],
        bytes_max: usize,
    ) -> Result<Option<&'a [u8]>, Wrong> {
        if std::mem::take(&mut self.taken) {
            self.partial.clear();
        }
        let end = memchr::memchr(b'\n', bytes).map(|end| end + 1);
        let (piece, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
        *bytes = rest;
        self.bytes += piece.len();
        if self.bytes > bytes_max {
            return Err(Wrong::TooLarge);
        }
        if end.is_some() && self.partial.is_empty() {
            return Ok(Some(piece));
        }
        self.partial.extend_from_slice(piece);
        self.taken = end.is_some();
        Ok(self.taken.then_some(&*self.partial))
    }

    /// How much of a line is here.
    pub(super) fn unfinished(&self) -> usize {
        if self.taken { 0 } else { self.partial.len() }
    }

    /// Counts from zero again.
    pub(super) fn restart(&mut self) {
        self.bytes = 0;
    }
}

/// A line without its CRLF, the only line end (RFC 9112, section 2.2 lets a recipient take a bare LF; two that
/// decide differently see different messages).
pub(super) fn without_end(line: &[u8]) -> Result<&[u8], Wrong> {
    line.strip_suffix(b"\r\n").ok_or(Wrong::Malformed("a line does not end with CRLF"))
}

/// A field's name and its value without space around it, and whether the name has an underscore.
pub(super) fn field(line: &[u8]) -> Result<(&[u8], &[u8], bool), Wrong> {
    if matches!(line.first(), Some(b' ' | b'\t')) {
        return Err(Wrong::Malformed("a field is folded over more than one line"));
    }
    let Some(colon) = memchr::memchr(b':', line) else {
        return Err(Wrong::Malformed("a field has no colon"));
    };
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    let seen = name.iter().fold(0, |seen, byte| seen | NAME[usize::from(*byte)]);
    if name.is_empty() || seen & NO_TOKEN != 0 {
        return Err(Wrong::Malformed("a field's name is not a token"));
    }
    // Without an early end this is done many bytes at a time.
    let control =
        value.iter().fold(false, |bad, byte| bad | (*byte < 0x20) & (*byte != b'\t') | (*byte == 0x7f));
    if control {
        return Err(Wrong::Malformed("a field's value has a control character"));
    }
    Ok((name, value.trim_ascii(), seen & UNDERSCORE != 0))
}

/// RFC 9110, section 5.6.2.
pub(super) fn is_token(byte: u8) -> bool {
    NAME[usize::from(byte)] & NO_TOKEN == 0
}

const NO_TOKEN: u8 = 1;
const UNDERSCORE: u8 = 2;

const NAME: [u8; 256] = {
    let mut table = [NO_TOKEN; 256];
    let mut byte = 0;
    while byte < 128 {
        let c = byte as u8;
        if c == b'_' {
            table[byte] = UNDERSCORE;
        } else if c.is_ascii_alphanumeric()
            || matches!(c, b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.')
            || matches!(c, b'^' | b'`' | b'|' | b'~')
        {
            table[byte] = 0;
        }
        byte += 1;
    }
    table
};

/// A Content-Length, read so that nobody can read another number in it: digits only, no zero before others, no
/// list, and not so many that it overflows somewhere.
pub(super) fn content_length(value: &[u8]) -> Result<u64, Wrong> {
    let plain = (1..=15).contains(&value.len())
        && value.iter().all(u8::is_ascii_digit)
        && (value.len() == 1 || value[0] != b'0');
    if !plain {
        return Err(Wrong::Malformed("Content-Length is not one plain number"));
    }
    Ok(value.iter().fold(0, |length, digit| length * 10 + u64::from(digit - b'0')))
}
