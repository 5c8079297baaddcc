//! The PROXY protocol: how a proxy tells the next one whose connection it is.
//!
//! Job: pure functions for both versions of the header
//! (<https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>): read one from the first bytes of a connection,
//! write one. Invariants: no input panics; a header has one reading or none; its length is bounded.
//! Neighbours: `listener` reads from trusted peers, `tcp` and `pool` write to endpoints that ask for it.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::SplitN,
};

use crate::config::document::ProxyProtocol;

/// Bytes of a header that are looked at: version 1 has 107 at most; version 2 may carry 64 KiB of extras, of
/// which everybody sends a few hundred bytes.
pub(super) const BYTES_MAX: usize = 4096;

/// The first bytes of a connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Header {
    /// The beginning of one: all bytes so far belong to it.
    More,
    /// A whole one.
    Whole {
        /// What follows belongs to the connection.
        length: usize,
        /// None: the proxy speaks for itself.
        addresses: Option<Addresses>,
    },
    /// No header, or none that may be believed.
    Malformed,
}

/// The two ends of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Addresses {
    /// Who opened it.
    pub(super) source: SocketAddr,
    /// Where it was opened to.
    pub(super) destination: SocketAddr,
}

const V1_BEGINNING: &[u8] = b"PROXY ";
/// With CRLF.
const V1_MAX: usize = 107;
const V2_BEGINNING: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const V2_HEAD: usize = 16;
const V2_LOCAL: u8 = 0x20;
const V2_PROXY: u8 = 0x21;
const V2_TCP4: u8 = 0x11;
const V2_TCP6: u8 = 0x21;

// === reading ===

/// Reads a header from the first bytes of a connection.
pub(super) fn read(bytes: &[u8]) -> Header {
    let begins = |beginning: &[u8]| {
        let compared = beginning.len().min(bytes.len());
        bytes[..compared] == beginning[..compared]
    };
    if begins(V1_BEGINNING) {
        read_v1(bytes)
    } else if begins(V2_BEGINNING) {
        read_v2(bytes)
    } else {
        Header::Malformed
    }
}

fn read_v1(bytes: &[u8]) -> Header {
    let bounded = &bytes[..bytes.len().min(V1_MAX)];
    let Some(end) = memchr::memchr(b'\n', bounded) else {
        return if bytes.len() < V1_MAX { Header::More } else { Header::Malformed };
    };
    let line = bounded[..end].strip_suffix(b"\r").and_then(|line| std::str::from_utf8(line).ok());
    let Some(fields) = line.and_then(|line| line.strip_prefix("PROXY ")) else { return Header::Malformed };
    let length = end + 1;
    if fields == "UNKNOWN" || fields.starts_with("UNKNOWN ") {
        return Header::Whole { length, addresses: None };
    }
    match v1_addresses(fields) {
        Some(addresses) => Header::Whole { length, addresses: Some(addresses) },
        None => Header::Malformed,
    }
}

/// `TCP4 192.0.2.1 192.0.2.2 1234 80`.
fn v1_addresses(fields: &str) -> Option<Addresses> {
    let mut fields = fields.splitn(5, ' ');
    let family = fields.next()?;
    let ip = |fields: &mut SplitN<'_, char>| -> Option<IpAddr> {
        let text = fields.next()?;
        match family {
            "TCP4" => text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
            "TCP6" => text.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
            _ => None,
        }
    };
    let (source, destination) = (ip(&mut fields)?, ip(&mut fields)?);
    let port = |text: &str| -> Option<u16> {
        let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
        if plain { text.parse().ok() } else { None }
    };
    let (source_port, destination_port) = (port(fields.next()?)?, port(fields.next()?)?);
    Some(Addresses {
        source: SocketAddr::new(source, source_port),
        destination: SocketAddr::new(destination, destination_port),
    })
}

fn read_v2(bytes: &[u8]) -> Header {
    let Some((head, content)) = bytes.split_at_checked(V2_HEAD) else { return Header::More };
    let (command, family) = (head[12], head[13]);
    let content_length = usize::from(u16::from_be_bytes([head[14], head[15]]));
    let length = V2_HEAD + content_length;
    if length > BYTES_MAX || !matches!(command, V2_LOCAL | V2_PROXY) {
        return Header::Malformed;
    }
    let Some(content) = content.get(..content_length) else { return Header::More };
    // Local: a health check of the proxy's own. What is no TCP has no addresses that mean anything here.
    if command == V2_LOCAL || family == 0 {
        return Header::Whole { length, addresses: None };
    }
    let addresses = match family {
        V2_TCP4 => v2_addresses::<4>(content),
        V2_TCP6 => v2_addresses::<16>(content),
        _ => None,
    };
    match addresses {
        Some(addresses) => Header::Whole { length, addresses: Some(addresses) },
        None => Header::Malformed,
    }
}

/// Two addresses of so many bytes, two ports, and extras that are passed over.
fn v2_addresses<const IP: usize>(content: &[u8]) -> Option<Addresses>
where
    IpAddr: From<[u8; IP]>,
{
    let (source, rest) = content.split_first_chunk::<IP>()?;
    let (destination, rest) = rest.split_first_chunk::<IP>()?;
    let (ports, _) = rest.split_first_chunk::<4>()?;
    let address = |ip: [u8; IP], port: [u8; 2]| {
        SocketAddr::new(IpAddr::from(ip).to_canonical(), u16::from_be_bytes(port))
    };
    Some(Addresses {
        source: address(*source, [ports[0], ports[1]]),
        destination: address(*destination, [ports[2], ports[3]]),
    })
}

// === writing ===

/// The header that announces a connection.
pub(super) fn write(version: ProxyProtocol, addresses: &Addresses) -> Vec<u8> {
    let (source, destination) = (addresses.source, addresses.destination);
    let ips = (source.ip().to_canonical(), destination.ip().to_canonical());
    let ports = [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat();
    match (version, ips) {
        (ProxyProtocol::V1, (IpAddr::V4(from), IpAddr::V4(to))) => {
            format!("PROXY TCP4 {from} {to} {} {}\r\n", source.port(), destination.port()).into_bytes()
        }
        (ProxyProtocol::V1, (from, to)) => {
            let (from, to) = (v6(from), v6(to));
            format!("PROXY TCP6 {from} {to} {} {}\r\n", source.port(), destination.port()).into_bytes()
        }
        (ProxyProtocol::V2, (IpAddr::V4(from), IpAddr::V4(to))) => {
            write_v2(V2_TCP4, &[&from.octets()[..], &to.octets(), &ports].concat())
        }
        (ProxyProtocol::V2, (from, to)) => {
            write_v2(V2_TCP6, &[&v6(from).octets()[..], &v6(to).octets(), &ports].concat())
        }
    }
}

fn write_v2(family: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap_or(u16::MAX).to_be_bytes();
    [V2_BEGINNING, &[V2_PROXY, family], &length, content].concat()
}

/// Both ends are told in one family.
fn v6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(source: &str, destination: &str, length: usize) -> Header {
        let addresses =
            Addresses { source: source.parse().unwrap(), destination: destination.parse().unwrap() };
        Header::Whole { length, addresses: Some(addresses) }
    }

    fn v2(command: u8, family: u8, content: &[u8]) -> Vec<u8> {
        let length = u16::try_from(content.len()).unwrap().to_be_bytes();
        [V2_BEGINNING, &[command, family], &length, content].concat()
    }

    /// What a whole header reads as; every shorter piece of it must ask for more.
    fn whole(header: &[u8]) -> Header {
        for end in 0..header.len() {
            assert_eq!(read(&header[..end]), Header::More, "{end} bytes of {header:?}");
        }
        let followed = [header, b"GET / HTTP/1.1\r\n"].concat();
        assert_eq!(read(&followed), read(header), "what follows does not matter");
        read(header)
    }

    #[test]
    fn headers_of_version_1_are_lines() {
        assert_eq!(
            whole(b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n"),
            from("192.0.2.1:56324", "198.51.100.2:443", 45)
        );
        assert_eq!(
            whole(b"PROXY TCP6 2001:db8::1 2001:db8::2 0 65535\r\n"),
            from("[2001:db8::1]:0", "[2001:db8::2]:65535", 44)
        );
        for unknown in ["PROXY UNKNOWN\r\n", "PROXY UNKNOWN ffff:: whatever\r\n"] {
            assert_eq!(whole(unknown.as_bytes()), Header::Whole { length: unknown.len(), addresses: None });
        }
    }

    #[test]
    fn a_line_that_is_not_exactly_one_is_refused() {
        for line in [
            "GET / HTTP/1.1\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 56324\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 56324 443 1\r\n",
            "PROXY  TCP4 192.0.2.1 198.51.100.2 56324 443\r\n",
            "PROXY TCP4 192.0.2.01 198.51.100.2 56324 443\r\n",
            "PROXY TCP4 ::1 ::1 56324 443\r\n",
            "PROXY TCP6 192.0.2.1 198.51.100.2 56324 443\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 056324 443\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 65536 443\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 +1 443\r\n",
            "PROXY UDP4 192.0.2.1 198.51.100.2 1 2\r\n",
            "PROXY UNKNOWNS\r\n",
            "PROXY \r\n",
            "proxy TCP4 192.0.2.1 198.51.100.2 1 2\r\n",
        ] {
            assert_eq!(read(line.as_bytes()), Header::Malformed, "{line:?}");
        }
        let endless = format!("PROXY UNKNOWN {}", "x".repeat(V1_MAX));
        assert_eq!(read(endless.as_bytes()), Header::Malformed);
    }

    #[test]
    fn headers_of_version_2_are_binary_and_their_extras_are_passed_over() {
        let v4 = [192, 0, 2, 1, 198, 51, 100, 2, 0xdc, 4, 1, 187];
        assert_eq!(whole(&v2(0x21, 0x11, &v4)), from("192.0.2.1:56324", "198.51.100.2:443", 28));
        let extras = [&v4[..], &[3, 0, 4, 1, 2, 3, 4]].concat();
        assert_eq!(whole(&v2(0x21, 0x11, &extras)), from("192.0.2.1:56324", "198.51.100.2:443", 35));
        let mut v6 = [0; 36];
        (v6[15], v6[31], v6[33], v6[35]) = (1, 2, 7, 8);
        assert_eq!(whole(&v2(0x21, 0x21, &v6)), from("[::1]:7", "[::2]:8", 52));
        for (command, family, content) in
            [(0x20, 0, &[][..]), (0x20, 0x11, &v4[..]), (0x21, 0, &[][..]), (0x21, 0, &[1; 216][..])]
        {
            let header = v2(command, family, content);
            assert_eq!(whole(&header), Header::Whole { length: header.len(), addresses: None });
        }
    }

    #[test]
    fn a_header_of_version_2_that_says_nothing_is_refused() {
        for (why, header) in [
            ("version 1", v2(0x11, 0x11, &[0; 12])),
            ("no command", v2(0x22, 0x11, &[0; 12])),
            ("UDP", v2(0x21, 0x12, &[0; 12])),
            ("a UNIX socket", v2(0x21, 0x31, &[0; 216])),
            ("too short for its addresses", v2(0x21, 0x11, &[0; 11])),
            ("too short for IPv6", v2(0x21, 0x21, &[0; 35])),
            ("too long", v2(0x21, 0x11, &[0; BYTES_MAX])),
            ("another beginning", b"\r\n\r\n\0\r\nQUIT\r".to_vec()),
        ] {
            assert_eq!(read(&header), Header::Malformed, "{why}");
        }
    }

    #[test]
    fn what_is_written_is_read_as_it_was_meant() {
        for (source, destination, told) in [
            ("192.0.2.1:56324", "198.51.100.2:443", ["192.0.2.1:56324", "198.51.100.2:443"]),
            ("[2001:db8::1]:1", "[2001:db8::2]:65535", ["[2001:db8::1]:1", "[2001:db8::2]:65535"]),
            ("[::ffff:192.0.2.1]:1", "198.51.100.2:2", ["192.0.2.1:1", "198.51.100.2:2"]),
            ("192.0.2.1:1", "[2001:db8::2]:2", ["192.0.2.1:1", "[2001:db8::2]:2"]),
        ] {
            let addresses =
                Addresses { source: source.parse().unwrap(), destination: destination.parse().unwrap() };
            for version in [ProxyProtocol::V1, ProxyProtocol::V2] {
                let header = write(version, &addresses);
                let Header::Whole { length, addresses: Some(read) } = whole(&header) else {
                    panic!("{header:?}")
                };
                assert_eq!(length, header.len());
                let canonical = |address: SocketAddr| {
                    SocketAddr::new(address.ip().to_canonical(), address.port()).to_string()
                };
                assert_eq!([canonical(read.source), canonical(read.destination)], told);
            }
        }
    }

    #[test]
    fn no_input_panics_and_a_header_lies_within_its_bytes() {
        bolero::check!().for_each(|bytes: &[u8]| {
            if let Header::Whole { length, .. } = read(bytes) {
                assert!(length <= bytes.len() && length <= BYTES_MAX);
            }
        });
    }
}
