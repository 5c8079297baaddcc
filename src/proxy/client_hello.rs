//! The name that a TLS client asks for, read from its first bytes without decrypting anything.
//!
//! Job: a pure function over what has arrived so far. Invariants: no input panics; what is not a ClientHello
//! (RFC 8446, section 4.1.2; RFC 6066, section 3) is refused at the first byte that says so; a hello that two
//! readers could take for different names is refused; the work is bounded by [`BYTES_MAX`].
//! Neighbours: `tcp` reads the bytes and sends them on to the endpoint.

/// Bytes of a ClientHello, records included: post-quantum key shares make 2 KiB, nobody sends more than a few.
pub(super) const BYTES_MAX: usize = 16 << 10;

/// What the first bytes of a connection are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Hello {
    /// The beginning of a ClientHello; at least so many more bytes belong to it.
    More(usize),
    /// A whole one, and the host that it asks for, in lower case.
    Name(Option<String>),
    /// Nothing that an endpoint could take for a ClientHello.
    NotTls,
}

/// Bytes of a record before its content: type, version, length.
const RECORD_HEAD: usize = 5;
const RECORD_HANDSHAKE: u8 = 22;
/// RFC 8446, section 5.1.
const RECORD_MAX: usize = 1 << 14;
/// Bytes of a handshake message before its content: type, length.
const MESSAGE_HEAD: usize = 4;
const MESSAGE_CLIENT_HELLO: u8 = 1;
const EXTENSION_SERVER_NAME: u16 = 0;
const NAME_TYPE_HOST: u8 = 0;

/// Bytes that are taken from the front.
struct Reader<'a>(&'a [u8]);

/// Reads as much of a ClientHello as is there.
pub(super) fn read(bytes: &[u8]) -> Hello {
    // The message may be cut into records anywhere.
    let mut message: Vec<u8> = Vec::new();
    let mut rest = bytes;
    loop {
        if !begins_like_a_record(rest) {
            return Hello::NotTls;
        }
        let Some((head, content)) = rest.split_at_checked(RECORD_HEAD) else {
            return Hello::More(RECORD_HEAD - rest.len());
        };
        let length = usize::from(u16::from_be_bytes([head[3], head[4]]));
        if length == 0 || length > RECORD_MAX {
            return Hello::NotTls;
        }
        let (content, after) = content.split_at(length.min(content.len()));
        message.extend_from_slice(content);
        let whole = match message_length(&message) {
            Ok(whole) => whole,
            Err(()) => return Hello::NotTls,
        };
        if message.len() >= whole && whole > MESSAGE_HEAD {
            return match server_name(&message[MESSAGE_HEAD..whole]) {
                Ok(name) => Hello::Name(name),
                Err(()) => Hello::NotTls,
            };
        }
        if content.len() < length {
            return Hello::More((length - content.len()).min(whole.max(MESSAGE_HEAD) - message.len()));
        }
        rest = after;
    }
}

fn begins_like_a_record(bytes: &[u8]) -> bool {
    bytes.first().is_none_or(|kind| *kind == RECORD_HANDSHAKE) && bytes.get(1).is_none_or(|major| *major == 3)
}

/// Bytes of the whole message as far as it is known; at least its head.
fn message_length(message: &[u8]) -> Result<usize, ()> {
    if message.first().is_some_and(|kind| *kind != MESSAGE_CLIENT_HELLO) {
        return Err(());
    }
    let [_, high, middle, low, ..] = *message else { return Ok(MESSAGE_HEAD) };
    let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
    // An empty one, or one that cannot arrive within the bound, is none.
    if length == 0 || length > BYTES_MAX { Err(()) } else { Ok(MESSAGE_HEAD + length) }
}

/// The host in a hello's `server_name`.
fn server_name(hello: &[u8]) -> Result<Option<String>, ()> {
    let mut hello = Reader(hello);
    // Version and random.
    hello.take(2 + 32)?;
    // Session id, cipher suites, compression methods.
    hello.take_vector(1)?;
    hello.take_vector(2)?;
    hello.take_vector(1)?;
    if hello.0.is_empty() {
        return Ok(None);
    }
    let mut extensions = Reader(hello.take_vector(2)?);
    if !hello.0.is_empty() {
        return Err(());
    }
    let mut name = None;
    while !extensions.0.is_empty() {
        let kind = extensions.number(2)?;
        let content = extensions.take_vector(2)?;
        if kind == usize::from(EXTENSION_SERVER_NAME) {
            // RFC 8446, section 4.2: an extension is there once.
            if name.is_some() {
                return Err(());
            }
            name = Some(host(content)?);
        }
    }
    Ok(name)
}

/// The one host of a list of names.
fn host(list: &[u8]) -> Result<String, ()> {
    let mut whole = Reader(list);
    let mut names = Reader(whole.take_vector(2)?);
    let kind = names.number(1)?;
    let name = names.take_vector(2)?;
    // RFC 6066: one name of each type, and there is one type.
    if kind != usize::from(NAME_TYPE_HOST) || !names.0.is_empty() || !whole.0.is_empty() {
        return Err(());
    }
    let name = name.strip_suffix(b".").unwrap_or(name);
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b':');
    if name.is_empty() || name.len() > 255 || !name.iter().all(allowed) {
        return Err(());
    }
    Ok(name.iter().map(|byte| byte.to_ascii_lowercase() as char).collect())
}

// === impl Reader ===

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], ()> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(())?;
        self.0 = rest;
        Ok(taken)
    }

    /// A number of so many bytes, the highest first.
    fn number(&mut self, bytes: usize) -> Result<usize, ()> {
        Ok(self.take(bytes)?.iter().fold(0, |number, byte| number << 8 | usize::from(*byte)))
    }

    /// What a length of so many bytes is before.
    fn take_vector(&mut self, length_bytes: usize) -> Result<&'a [u8], ()> {
        let length = self.number(length_bytes)?;
        self.take(length)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn vector(length_bytes: usize, content: &[u8]) -> Vec<u8> {
        let length = content.len().to_be_bytes();
        [&length[length.len() - length_bytes..], content].concat()
    }

    fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
        [&kind.to_be_bytes()[..], &vector(2, content)].concat()
    }

    fn names(hosts: &[&str]) -> Vec<u8> {
        let names: Vec<u8> =
            hosts.iter().flat_map(|host| [&[0][..], &vector(2, host.as_bytes())].concat()).collect();
        extension(0, &vector(2, &names))
    }

    fn message(extensions: Option<&[u8]>) -> Vec<u8> {
        let mut hello =
            [&[3, 3][..], &[7; 32], &vector(1, &[1; 32]), &vector(2, &[0x13, 1]), &vector(1, &[0])].concat();
        if let Some(extensions) = extensions {
            hello.extend(vector(2, extensions));
        }
        [&[1][..], &vector(3, &hello)].concat()
    }

    fn records(message: &[u8], size: usize) -> Vec<u8> {
        message.chunks(size).flat_map(|piece| [&[22, 3, 1][..], &vector(2, piece)].concat()).collect()
    }

    fn with_extensions(extensions: &[u8]) -> Vec<u8> {
        records(&message(Some(extensions)), RECORD_MAX)
    }

    fn name(name: &str) -> Hello {
        Hello::Name(Some(name.to_owned()))
    }

    #[test]
    fn the_name_is_found_however_the_hello_is_cut() {
        let extensions =
            [extension(0x2a2a, &[]), names(&["Shop.Example.com."]), extension(16, b"h2")].concat();
        for size in [1, 2, 3, 4, 5, 7, 50, RECORD_MAX] {
            let bytes = records(&message(Some(&extensions)), size);
            assert_eq!(read(&bytes), name("shop.example.com"), "records of {size} bytes");
            for end in 0..bytes.len() {
                match read(&bytes[..end]) {
                    Hello::More(more) => assert!(more >= 1 && more <= bytes.len() - end, "{end}: {more}"),
                    other => panic!("{end} of {} bytes in records of {size}: {other:?}", bytes.len()),
                }
            }
        }
    }

    #[test]
    fn what_follows_the_hello_does_not_matter() {
        let mut bytes = with_extensions(&names(&["a.example"]));
        bytes.extend_from_slice(&[0xff; 99]);
        assert_eq!(read(&bytes), name("a.example"));
    }

    #[test]
    fn a_hello_may_have_no_name() {
        assert_eq!(read(&records(&message(None), RECORD_MAX)), Hello::Name(None));
        assert_eq!(read(&with_extensions(&[])), Hello::Name(None));
        assert_eq!(read(&with_extensions(&extension(16, b"h2"))), Hello::Name(None));
    }

    #[test]
    fn what_is_no_hello_is_refused_as_soon_as_it_shows() {
        let good = with_extensions(&names(&["a.example"]));
        let changed = |place: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[place] = byte;
            bytes
        };
        for (why, bytes) in [
            ("a request", b"GET / HTTP/1.1\r\n".to_vec()),
            ("an alert", vec![21]),
            ("SSLv2", vec![0x80, 0x2e, 1]),
            ("an empty record", vec![22, 3, 1, 0, 0]),
            ("a record that is too long", vec![22, 3, 1, 0x40, 1]),
            ("another major version", vec![22, 2]),
            ("a server's hello", changed(5, 2)),
            ("a message beyond the bound", changed(6, 1)),
            ("a session id beyond its end", changed(5 + 4 + 34, 255)),
            ("another record inside", [&records(&message(None), 10)[..15], &[23]].concat()),
            ("two names", with_extensions(&names(&["a.example", "b.example"]))),
            ("two lists", with_extensions(&[names(&["a.example"]), names(&["a.example"])].concat())),
            ("no name in the list", with_extensions(&names(&[]))),
            ("an empty name", with_extensions(&names(&[""]))),
            ("a NUL", with_extensions(&names(&["a\0.example"]))),
            ("a name that is too long", with_extensions(&names(&[&"a".repeat(256)]))),
            ("another type of name", with_extensions(&extension(0, &vector(2, &[1, 0, 1, b'a'])))),
            ("something behind the list", with_extensions(&extension(0, &[0, 4, 0, 0, 1, b'a', 0]))),
        ] {
            assert_eq!(read(&bytes), Hello::NotTls, "{why}");
        }
    }

    #[test]
    fn no_input_panics_and_more_is_asked_for_only_within_the_bound() {
        bolero::check!().for_each(|bytes: &[u8]| {
            if let Hello::More(more) = read(bytes) {
                assert!((1..=RECORD_MAX).contains(&more));
            }
        });
        let good = with_extensions(&names(&["a.example"]));
        for place in 0..good.len() {
            for byte in 0..=255 {
                let mut bytes = good.clone();
                bytes[place] = byte;
                read(&bytes);
            }
        }
    }
}
