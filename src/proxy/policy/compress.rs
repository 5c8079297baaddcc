//! `compress`: answers in a coding that the client takes (RFC 9110, sections 8.4 and 12.5.3).
//!
//! Job: decide by the head, then encode the body as it streams. Never what is encoded already, must not be
//! transformed (`no-transform`, a digest of its bytes), is a part (206, Content-Range), has no body, is shorter than
//! `min_bytes`, or is of another type. The encoded answer has a weak ETag, no Content-Length, and Vary; an answer
//! that would have been encoded for another client has Vary as well.
//! Invariants: memory for a stream is bounded by the encoder's window; no more than [`TURN`] is encoded at a time,
//! however much comes at once; whenever the endpoint has no more for now, or breaks off, what was taken in is flushed,
//! so that a stream of events arrives event by event. Neighbours: `mod` asks when the head is there, `forward` runs the
//! body through it.

use std::{
    io::{self, Write},
    task::Poll,
};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use http_body::Frame;

use crate::config::document::{Coding, Compress};

/// Enough of a piece to be sent on its own.
const PIECE: usize = 16 << 10;
/// What is taken in before the worker's other tasks have their turn: half a millisecond's work on JSON, two at worst.
const TURN: usize = 4 * PIECE;
/// What is taken in before it is flushed, if it has not come to a piece by then.
const FLUSH: usize = 16 * PIECE;
/// How far back an encoder looks: a window of 256 KiB, which is most of what a stream costs.
const WINDOW_LOG: u32 = 18;
/// Levels for content made at the moment: about what nginx's and Envoy's defaults spend.
const GZIP_LEVEL: u32 = 4;
const BROTLI_LEVEL: u32 = 4;
const ZSTD_LEVEL: i32 = 3;

const VARY_CODING: HeaderValue = HeaderValue::from_static("Accept-Encoding");
/// Whoever made them counted the bytes as they are.
const DIGESTS: [HeaderName; 3] = [
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("content-md5"),
];

/// A body on its way into a coding.
pub(in super::super) struct Compressor {
    encoder: Option<Encoder>,
    /// Came with the last piece of content and is not taken in yet.
    rest: Bytes,
    /// Something was taken in since the last flush.
    unflushed: bool,
    /// Taken in since something was sent.
    unsent: usize,
    /// Taken in during this turn, less than [`TURN`].
    taken: usize,
    /// A turn is over, or something is to be written out first.
    is_tired: bool,
    /// Why the body ends before its time, once what came before that is on its way.
    failure: Option<io::Error>,
    trailers: Option<HeaderMap>,
}

enum Encoder {
    Gzip(GzEncoder<Vec<u8>>),
    Brotli(Box<brotli::CompressorWriter<Vec<u8>>>),
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
}

// === the head ===

/// The coding that the client likes best; among equals the policy's first.
pub(super) fn coding_for(policy: &Compress, request: &HeaderMap) -> Option<Coding> {
    let mut best: Option<(Coding, u16)> = None;
    for coding in &policy.codings {
        let quality = quality_of(coding.name(), request);
        if quality > best.map_or(0, |(_, best)| best) {
            best = Some((*coding, quality));
        }
    }
    best.map(|(coding, _)| coding)
}

/// In thousandths; 0: not at all.
fn quality_of(name: &str, request: &HeaderMap) -> u16 {
    let mut any = 0;
    for value in request.get_all(header::ACCEPT_ENCODING) {
        for item in value.as_bytes().split(|byte| *byte == b',') {
            let mut parts = item.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
            let coding = parts.next().unwrap_or_default();
            let quality = parts.find_map(|part| part.strip_prefix(b"q=").or(part.strip_prefix(b"Q=")));
            let quality = quality.map_or(1_000, thousandths);
            if coding.eq_ignore_ascii_case(name.as_bytes())
                || (name == "gzip" && coding.eq_ignore_ascii_case(b"x-gzip"))
            {
                return quality;
            }
            if coding == b"*" {
                any = quality;
            }
        }
    }
    any
}

/// `0.5` → 500; what cannot be read is 0.
fn thousandths(quality: &[u8]) -> u16 {
    let (whole, fraction) = match quality {
        [b'1'] => return 1_000,
        [b'0'] => return 0,
        [whole, b'.', fraction @ ..] if fraction.len() <= 3 => (*whole, fraction),
        _ => return 0,
    };
    let mut thousandths = 0;
    for place in 0..3 {
        let digit = fraction.get(place).copied().unwrap_or(b'0');
        if !digit.is_ascii_digit() {
            return 0;
        }
        thousandths = thousandths * 10 + u16::from(digit - b'0');
    }
    match whole {
        b'1' if thousandths == 0 => 1_000,
        b'0' => thousandths,
        _ => 0,
    }
}

/// Makes the head that of an encoded answer, if this is one to encode. `length`: the body's, if known.
pub(super) fn begin(
    policy: &Compress,
    coding: Option<Coding>,
    status: StatusCode,
    headers: &mut HeaderMap,
    length: Option<u64>,
) -> Option<Compressor> {
    if !is_fit(policy, status, headers, length) {
        return None;
    }
    headers.append(header::VARY, VARY_CODING);
    let coding = coding?;
    let compressor = Compressor::new(coding)?;
    headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(coding.name()));
    headers.remove(header::CONTENT_LENGTH);
    headers.remove(header::ACCEPT_RANGES);
    let weak = headers.get(header::ETAG).filter(|tag| !tag.as_bytes().starts_with(b"W/"));
    if let Some(weak) = weak.and_then(|tag| HeaderValue::try_from([b"W/", tag.as_bytes()].concat()).ok()) {
        headers.insert(header::ETAG, weak);
    }
    Some(compressor)
}

fn is_fit(policy: &Compress, status: StatusCode, headers: &HeaderMap, length: Option<u64>) -> bool {
    let bodiless = status.is_informational()
        || matches!(
            status,
            StatusCode::NO_CONTENT
                | StatusCode::RESET_CONTENT
                | StatusCode::PARTIAL_CONTENT
                | StatusCode::NOT_MODIFIED
        );
    if bodiless
        || length.is_some_and(|length| length < policy.min_bytes)
        || headers.contains_key(header::CONTENT_ENCODING)
        || headers.contains_key(header::CONTENT_RANGE)
        || DIGESTS.iter().any(|digest| headers.contains_key(digest))
    {
        return false;
    }
    let no_transform = |value: &HeaderValue| {
        let mut directives = value.as_bytes().split(|byte| *byte == b',');
        directives.any(|directive| directive.trim_ascii().eq_ignore_ascii_case(b"no-transform"))
    };
    if headers.get_all(header::CACHE_CONTROL).iter().any(no_transform) {
        return false;
    }
    headers.get(header::CONTENT_TYPE).is_some_and(|value| {
        let media = value.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
        policy.types.iter().any(|pattern| is_of(media, pattern.as_bytes()))
    })
}

/// `text/*` is every text, `*+json` everything that is written in JSON.
fn is_of(media: &[u8], pattern: &[u8]) -> bool {
    if let Some(start) = pattern.strip_suffix(b"*") {
        return media.get(..start.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(start));
    }
    if let Some(end) = pattern.strip_prefix(b"*") {
        let begin = media.len().checked_sub(end.len());
        return begin.is_some_and(|begin| media[begin..].eq_ignore_ascii_case(end));
    }
    media.eq_ignore_ascii_case(pattern)
}

// === impl Compressor ===

impl Compressor {
    /// None: the encoder has no memory, and the answer goes as it is.
    fn new(coding: Coding) -> Option<Self> {
        let encoder = match coding {
            Coding::Gzip => Encoder::Gzip(GzEncoder::new(Vec::new(), Compression::new(GZIP_LEVEL))),
            Coding::Brotli => Encoder::Brotli(Box::new(brotli::CompressorWriter::new(
                Vec::new(),
                PIECE,
                BROTLI_LEVEL,
                WINDOW_LOG,
            ))),
            Coding::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), ZSTD_LEVEL).ok()?;
                encoder.window_log(WINDOW_LOG).ok()?;
                Encoder::Zstd(encoder)
            }
        };
        Some(Self {
            encoder: Some(encoder),
            rest: Bytes::new(),
            unflushed: false,
            unsent: 0,
            taken: 0,
            is_tired: false,
            failure: None,
            trailers: None,
        })
    }

    /// The next piece of the encoded body, an empty one at the end of a turn; `poll_content` is the body's.
    pub(in super::super) fn poll_frame(
        &mut self,
        mut poll_content: impl FnMut() -> Poll<Option<io::Result<Frame<Bytes>>>>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if let Some(failure) = self.failure.take() {
            return Poll::Ready(Some(Err(failure)));
        }
        while let Some(encoder) = &mut self.encoder {
            if self.rest.is_empty() {
                let frame = match poll_content() {
                    Poll::Pending if !self.unflushed => {
                        self.taken = 0;
                        return Poll::Pending;
                    }
                    Poll::Pending => return Poll::Ready(self.flush()),
                    Poll::Ready(frame) => frame,
                };
                let data = match frame.transpose() {
                    Err(failure) => {
                        // hyper drops what it holds when a body fails: in the pause it writes it out.
                        (self.failure, self.is_tired) = (Some(failure), true);
                        return Poll::Ready(self.flush());
                    }
                    Ok(frame) => frame.map(Frame::into_data),
                };
                match data {
                    Some(Ok(data)) => self.rest = data,
                    last => {
                        self.trailers = last.and_then(|last| last.err()?.into_trailers().ok());
                        let rest = self.encoder.take().map(Encoder::finish);
                        return Poll::Ready(rest.map(|rest| rest.map(|rest| Frame::data(rest.into()))));
                    }
                }
            }
            let piece = self.rest.split_to(self.rest.len().min(TURN - self.taken));
            if let Err(error) = encoder.write(&piece) {
                return Poll::Ready(Some(Err(error)));
            }
            self.taken += piece.len();
            self.unsent += piece.len();
            self.unflushed = true;
            if self.taken == TURN {
                (self.taken, self.is_tired) = (0, true);
            }
            if encoder.ready() >= PIECE {
                self.unsent = 0;
                return Poll::Ready(Some(Ok(Frame::data(encoder.take()))));
            }
            // Content that leaves nothing to send does not go on for ever.
            if self.unsent >= FLUSH {
                return Poll::Ready(self.flush());
            }
            if self.is_tired {
                return Poll::Ready(Some(Ok(Frame::data(Bytes::new()))));
            }
        }
        Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))))
    }

    /// All that was taken in.
    fn flush(&mut self) -> Option<io::Result<Frame<Bytes>>> {
        let encoder = self.encoder.as_mut()?;
        (self.unflushed, self.unsent) = (false, 0);
        Some(encoder.flush().map(|()| Frame::data(encoder.take())))
    }

    /// Whether it is to pause: a fast endpoint with a fast client would keep the worker's other tasks waiting.
    pub(in super::super) fn is_tired(&mut self) -> bool {
        std::mem::take(&mut self.is_tired)
    }

    /// Whether the last piece has been taken.
    pub(in super::super) fn is_end(&self) -> bool {
        self.encoder.is_none() && self.trailers.is_none()
    }
}

impl std::fmt::Debug for Compressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compressor").field("ended", &self.is_end()).finish_non_exhaustive()
    }
}

// === impl Encoder ===

impl Encoder {
    fn write(&mut self, data: &[u8]) -> io::Result<()> {
        match self {
            Self::Gzip(encoder) => encoder.write_all(data),
            Self::Brotli(encoder) => encoder.write_all(data),
            Self::Zstd(encoder) => encoder.write_all(data),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Gzip(encoder) => encoder.flush(),
            Self::Brotli(encoder) => encoder.flush(),
            Self::Zstd(encoder) => encoder.flush(),
        }
    }

    fn output(&mut self) -> &mut Vec<u8> {
        match self {
            Self::Gzip(encoder) => encoder.get_mut(),
            Self::Brotli(encoder) => encoder.get_mut(),
            Self::Zstd(encoder) => encoder.get_mut(),
        }
    }

    fn ready(&mut self) -> usize {
        self.output().len()
    }

    fn take(&mut self) -> Bytes {
        std::mem::take(self.output()).into()
    }

    fn finish(self) -> io::Result<Vec<u8>> {
        match self {
            Self::Gzip(encoder) => encoder.finish(),
            Self::Brotli(encoder) => Ok(encoder.into_inner()),
            Self::Zstd(encoder) => encoder.finish(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, io::Read};

    use super::*;

    fn fields(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let field = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        fields.iter().map(field).collect()
    }

    #[test]
    fn the_client_gets_the_coding_that_it_likes_best() {
        use Coding::{Brotli, Gzip, Zstd};
        for (accepted, expected) in [
            ("gzip, br, zstd", Some(Zstd)),
            ("gzip;q=1.0, br;q=0.9", Some(Gzip)),
            ("br;q=0.5, gzip;q=0.501", Some(Gzip)),
            ("*", Some(Zstd)),
            ("*;q=0.1, zstd;q=0", Some(Brotli)),
            ("x-gzip", Some(Gzip)),
            ("GZIP ; q=1", Some(Gzip)),
            ("gzip;q=0", None),
            ("gzip;q=2", None),
            ("gzip;q=x", None),
            ("identity", None),
            ("", None),
        ] {
            let request =
                HeaderMap::from_iter([(header::ACCEPT_ENCODING, HeaderValue::from_static(accepted))]);
            assert_eq!(coding_for(&Compress::default(), &request), expected, "{accepted}");
        }
        assert_eq!(coding_for(&Compress::default(), &HeaderMap::new()), None);
    }

    #[test]
    fn only_what_gains_by_it_is_encoded() {
        const TEXT: (&str, &str) = ("content-type", "text/plain; charset=utf-8");
        for (status, answer, length, expected) in [
            (200, vec![TEXT], Some(5_000), true),
            (404, vec![TEXT], None, true),
            (200, vec![("content-type", "application/problem+json")], None, true),
            (200, vec![("content-type", "TEXT/event-stream")], None, true),
            (200, vec![("content-type", "image/png")], None, false),
            (200, vec![], None, false),
            (200, vec![TEXT], Some(100), false),
            (204, vec![TEXT], None, false),
            (304, vec![TEXT], None, false),
            (206, vec![TEXT], None, false),
            (200, vec![TEXT, ("content-range", "bytes 0-1/2")], None, false),
            (200, vec![TEXT, ("content-encoding", "gzip")], None, false),
            (200, vec![TEXT, ("cache-control", "max-age=1, No-Transform")], None, false),
            (200, vec![TEXT, ("content-digest", "sha-256=:abc=:")], None, false),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            let fit = is_fit(&Compress::default(), status, &fields(&answer), length);
            assert_eq!(fit, expected, "{status} {answer:?} {length:?}");
        }
    }

    #[test]
    fn the_head_says_what_became_of_the_body() {
        let mut headers = fields(&[
            ("content-type", "text/html"),
            ("content-length", "5000"),
            ("accept-ranges", "bytes"),
            ("etag", "\"abc\""),
        ]);
        let policy = Compress::default();
        let plain = headers.clone();
        assert!(begin(&policy, Some(Coding::Gzip), StatusCode::OK, &mut headers, Some(5_000)).is_some());
        let expected = fields(&[
            ("content-type", "text/html"),
            ("content-encoding", "gzip"),
            ("etag", "W/\"abc\""),
            ("vary", "Accept-Encoding"),
        ]);
        assert_eq!(headers, expected);
        let mut headers = plain.clone();
        assert!(begin(&policy, None, StatusCode::OK, &mut headers, Some(5_000)).is_none());
        assert_eq!(headers.remove(header::VARY).unwrap(), "Accept-Encoding");
        assert_eq!(headers, plain);
    }

    #[test]
    fn other_tasks_have_their_turn_however_fast_the_content_comes_and_in_whatever_pieces() {
        const LENGTH: usize = 4 * FLUSH;
        for coding in [Coding::Gzip, Coding::Brotli, Coding::Zstd] {
            // The last ones are more than is read at once.
            for size in [PIECE, TURN, FLUSH, LENGTH] {
                let mut compressor = Compressor::new(coding).unwrap();
                let content = Bytes::from(vec![b'a'; size]);
                let (mut left, mut turns, mut empty) = (LENGTH, 0, 0);
                while !compressor.is_end() {
                    let piece = compressor.poll_frame(|| {
                        let frame = (left > 0).then(|| Ok(Frame::data(content.clone())));
                        left = left.saturating_sub(size);
                        Poll::Ready(frame)
                    });
                    let Poll::Ready(Some(Ok(frame))) = piece else { panic!("{coding:?} {size}: {piece:?}") };
                    turns += usize::from(compressor.is_tired());
                    empty += usize::from(frame.data_ref().is_some_and(Bytes::is_empty));
                }
                assert_eq!(turns, LENGTH / TURN, "{coding:?} {size}");
                assert!(empty < turns, "{coding:?} {size}: it goes on for ever");
                assert!(!compressor.is_tired(), "a turn is told once");
            }
        }
    }

    fn decoded(coding: Coding, encoded: &[u8]) -> Vec<u8> {
        let mut plain = Vec::new();
        // What is not finished yet decodes as far as it was flushed.
        let _ = match coding {
            Coding::Gzip => flate2::read::GzDecoder::new(encoded).read_to_end(&mut plain),
            Coding::Brotli => brotli::Decompressor::new(encoded, 4096).read_to_end(&mut plain),
            Coding::Zstd => zstd::stream::read::Decoder::new(encoded).unwrap().read_to_end(&mut plain),
        };
        plain
    }

    #[test]
    fn every_coding_gives_back_what_went_in_and_flushes_when_nothing_comes() {
        for coding in [Coding::Gzip, Coding::Brotli, Coding::Zstd] {
            let mut compressor = Compressor::new(coding).unwrap();
            let long: Vec<u8> =
                (0..400_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
            let frame = |data: &[u8]| Poll::Ready(Some(Ok(Frame::data(Bytes::copy_from_slice(data)))));
            let mut script: VecDeque<Poll<Option<io::Result<Frame<Bytes>>>>> = VecDeque::new();
            script.extend([frame(b"data: 1\n\n"), Poll::Pending, Poll::Pending]);
            script.extend(long.chunks(50_000).map(frame));
            let trailers = fields(&[("x-end", "1")]);
            script.push_back(Poll::Ready(Some(Ok(Frame::trailers(trailers.clone())))));
            let mut encoded = Vec::new();
            let mut next = |compressor: &mut Compressor| {
                compressor.poll_frame(|| script.pop_front().unwrap_or(Poll::Ready(None)))
            };
            let Poll::Ready(Some(Ok(first))) = next(&mut compressor) else {
                panic!("{coding:?} does not flush")
            };
            encoded.extend_from_slice(&first.into_data().unwrap());
            assert_eq!(decoded(coding, &encoded), b"data: 1\n\n", "{coding:?}");
            assert!(next(&mut compressor).is_pending());
            let mut seen_trailers = None;
            while let Poll::Ready(Some(frame)) = next(&mut compressor) {
                match frame.unwrap().into_data() {
                    Ok(data) => encoded.extend_from_slice(&data),
                    Err(frame) => seen_trailers = frame.into_trailers().ok(),
                }
            }
            assert!(compressor.is_end());
            assert_eq!(seen_trailers, Some(trailers), "{coding:?}");
            assert!(decoded(coding, &encoded)[9..] == long, "{coding:?}");
        }
    }
}
