//! What happens to header fields on their way through.
//!
//! Job: take away what concerns one hop only (RFC 9110, section 7.6.1), tell the endpoint who asked
//! (X-Forwarded-*, X-Real-IP, Via), and give every request an id and a trace. Invariant: what an untrusted peer
//! says about itself is dropped before anything is added. Neighbours: `http` calls it in both directions.

use std::net::IpAddr;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, header};

/// Named once; a lookup by constant costs no parse.
pub(super) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub(super) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
pub(super) const X_FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

const VIA: HeaderValue = HeaderValue::from_static("1.1 gogate");
const HTTP: HeaderValue = HeaderValue::from_static("http");
const CHUNKED: HeaderValue = HeaderValue::from_static("chunked");
const TRAILERS: HeaderValue = HeaderValue::from_static("trailers");

/// More than the gateway adds to a request.
const FIELDS_ADDED: usize = 10;
/// Longest request id that is kept.
const REQUEST_ID_MAX: usize = 128;

/// Who asked, as the endpoint is told.
#[derive(Debug)]
pub(super) struct Peer {
    /// The client's address.
    pub(super) ip: HeaderValue,
    /// The listener's port.
    pub(super) port: HeaderValue,
}

/// A request's id and, where the client sent no valid trace, the trace that begins with it.
#[derive(Debug)]
pub(super) struct RequestId {
    pub(super) id: HeaderValue,
    traceparent: Option<HeaderValue>,
}

// === impl RequestId ===

impl RequestId {
    /// The client's id if it is well-formed, else one of `random`'s 192 bits.
    pub(super) fn of(headers: &HeaderMap, mut random: impl FnMut() -> u64) -> Self {
        let kept = headers.get(X_REQUEST_ID).filter(|id| is_well_formed_id(id.as_bytes()));
        let traced = headers.get(TRACEPARENT).is_some_and(|trace| is_well_formed_trace(trace.as_bytes()));
        if let (Some(id), true) = (kept, traced) {
            return Self { id: id.clone(), traceparent: None };
        }
        // One allocation holds both: the request's id is the trace's.
        let mut text = BytesMut::with_capacity(55);
        text.put_slice(b"00-");
        text.put_slice(&hex(random()));
        text.put_slice(&hex(random()));
        text.put_slice(b"-");
        text.put_slice(&hex(random()));
        text.put_slice(b"-01");
        let text = text.freeze();
        let made = |bytes: Bytes| HeaderValue::from_maybe_shared(bytes).unwrap_or(HTTP);
        Self {
            id: kept.cloned().unwrap_or_else(|| made(text.slice(3..35))),
            traceparent: (!traced).then(|| made(text)),
        }
    }

    /// The trace's id: of the one that begins here, or of the client's.
    pub(super) fn trace_id(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let trace = self.traceparent.as_ref().or_else(|| headers.get(TRACEPARENT))?;
        HeaderValue::from_bytes(trace.as_bytes().get(3..35)?).ok()
    }
}

fn hex(value: u64) -> [u8; 16] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    std::array::from_fn(|place| DIGITS[(value >> (60 - 4 * place)) as usize & 15])
}

/// Whether an id that came with a request can be kept.
pub(super) fn is_well_formed_id(id: &[u8]) -> bool {
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:+/=@".contains(byte);
    (1..=REQUEST_ID_MAX).contains(&id.len()) && id.iter().all(allowed)
}

/// W3C Trace Context: `00-<32 hex>-<16 hex>-<2 hex>`, neither id all zeros.
fn is_well_formed_trace(trace: &[u8]) -> bool {
    let shape = trace.len() == 55 && trace.starts_with(b"00-") && trace[35] == b'-' && trace[52] == b'-';
    let lower_hex = |part: &[u8]| part.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let zero = |part: &[u8]| part.iter().all(|byte| *byte == b'0');
    shape
        && [3..35, 36..52, 53..55].into_iter().all(|range| lower_hex(&trace[range]))
        && !zero(&trace[3..35])
        && !zero(&trace[36..52])
}

// === requests ===

/// Makes a client's head the endpoint's. `vouched`: the peer is a proxy whose word is believed, and the client's
/// address is this as far as trusted proxies vouch for it.
pub(super) fn prepare_request(
    headers: &mut HeaderMap,
    peer: &Peer,
    request_id: &RequestId,
    vouched: Option<IpAddr>,
    host: Option<&HeaderValue>,
) {
    // Once, not by doubling again and again.
    headers.reserve(FIELDS_ADDED);
    let chunked = headers.contains_key(header::TRANSFER_ENCODING);
    let takes_trailers = headers.get(header::TE).is_some_and(|te| has_token(te.as_bytes(), b"trailers"));
    remove_hop_by_hop(headers);
    if chunked {
        headers.insert(header::TRANSFER_ENCODING, CHUNKED);
    }
    if takes_trailers {
        headers.insert(header::TE, TRAILERS);
    }
    if let Some(client) = vouched {
        forward_as_trusted(headers, peer, client, host);
    } else {
        headers.remove(FORWARDED);
        headers.remove(X_FORWARDED_PREFIX);
        headers.insert(X_FORWARDED_FOR, peer.ip.clone());
        headers.insert(X_REAL_IP, peer.ip.clone());
        headers.insert(X_FORWARDED_PROTO, HTTP);
        headers.insert(X_FORWARDED_PORT, peer.port.clone());
        match host {
            Some(host) => drop(headers.insert(X_FORWARDED_HOST, host.clone())),
            None => drop(headers.remove(X_FORWARDED_HOST)),
        }
    }
    headers.insert(X_REQUEST_ID, request_id.id.clone());
    if let Some(traceparent) = &request_id.traceparent {
        headers.insert(TRACEPARENT, traceparent.clone());
        headers.remove(TRACESTATE);
    }
    headers.append(header::VIA, VIA);
}

/// A trusted proxy's account is kept and continued.
fn forward_as_trusted(headers: &mut HeaderMap, peer: &Peer, client: IpAddr, host: Option<&HeaderValue>) {
    headers.append(X_FORWARDED_FOR, peer.ip.clone());
    // Never the list's first address: whoever is not trusted may have begun the list.
    headers
        .entry(X_REAL_IP)
        .or_insert_with(|| HeaderValue::try_from(client.to_string()).unwrap_or_else(|_| peer.ip.clone()));
    headers.entry(X_FORWARDED_PROTO).or_insert(HTTP);
    headers.entry(X_FORWARDED_PORT).or_insert(peer.port.clone());
    if let Some(host) = host {
        headers.entry(X_FORWARDED_HOST).or_insert(host.clone());
    }
}

/// Says once more who asked, in the standard's words (RFC 7239), after what trusted proxies said.
pub(super) fn add_forwarded(headers: &mut HeaderMap, peer: &Peer, host: Option<&HeaderValue>) {
    let mut text = Vec::with_capacity(96);
    // IPv6 has colons, which only a quoted value may.
    let ip = peer.ip.as_bytes();
    let (open, close): (&[u8], &[u8]) = if ip.contains(&b':') { (b"\"[", b"]\"") } else { (b"", b"") };
    for piece in [b"for=", open, ip, close] {
        text.extend_from_slice(piece);
    }
    if let Some(host) = host {
        for piece in [b";host=\"", host.as_bytes(), b"\""] {
            text.extend_from_slice(piece);
        }
    }
    text.extend_from_slice(b";proto=http");
    if let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(text)) {
        headers.append(FORWARDED, value);
    }
}

/// Takes away fields that an endpoint which reads `_` as `-` (CGI and what follows its rules) would take for
/// ones that the gateway or its policies speak for: `X_Forwarded_For` for `X-Forwarded-For`.
pub(super) fn remove_shadows(headers: &mut HeaderMap) {
    let shadows = |name: &&HeaderName| {
        let name = name.as_str();
        is_shadow(name) || name.contains('_') && headers.contains_key(&*name.replace('_', "-"))
    };
    let shadows: Vec<HeaderName> = headers.keys().filter(shadows).cloned().collect();
    for name in shadows {
        headers.remove(name);
    }
}

/// Whether a name stands for one that the gateway speaks for.
fn is_shadow(name: &str) -> bool {
    name.contains('_') && {
        let dashed = name.replace('_', "-");
        SPOKEN_FOR.iter().any(|known| known.as_str() == dashed)
    }
}

/// What no client's field with another spelling stands for.
const SPOKEN_FOR: [HeaderName; 25] = [
    X_FORWARDED_FOR,
    X_FORWARDED_PROTO,
    X_FORWARDED_HOST,
    X_FORWARDED_PORT,
    X_FORWARDED_PREFIX,
    X_REAL_IP,
    X_REQUEST_ID,
    FORWARDED,
    TRACEPARENT,
    TRACESTATE,
    KEEP_ALIVE,
    PROXY_CONNECTION,
    header::AUTHORIZATION,
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    header::COOKIE,
    header::EXPECT,
    header::HOST,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::VIA,
];

// === trailers ===

/// Beside [`SPOKEN_FOR`]: what says how a message is to be read or kept.
const ONLY_IN_HEADS: [HeaderName; 5] = [
    header::CACHE_CONTROL,
    header::CONTENT_ENCODING,
    header::CONTENT_RANGE,
    header::MAX_FORWARDS,
    header::SET_COOKIE,
];

/// Takes out of trailers what belongs into a head: whoever merges them would believe it (RFC 9110, section
/// 6.5.1). Of what remains, only fields that the head announced are sent.
pub(super) fn prepare_trailers(trailers: &mut HeaderMap) {
    for name in SPOKEN_FOR.into_iter().chain(ONLY_IN_HEADS) {
        trailers.remove(name);
    }
    let shadows: Vec<HeaderName> = trailers.keys().filter(|name| is_shadow(name.as_str())).cloned().collect();
    for name in shadows {
        trailers.remove(name);
    }
}

// === answers ===

/// Makes an endpoint's head the client's.
pub(super) fn prepare_answer(headers: &mut HeaderMap) {
    remove_hop_by_hop(headers);
    headers.append(header::VIA, VIA);
}

// === both ===

/// Fields that Connection may not name away: they address the message and frame it.
const END_TO_END: [HeaderName; 2] = [header::HOST, header::CONTENT_LENGTH];

/// What concerns one hop only, beside Connection and what it names. Expect is answered by the gateway itself.
const HOP_BY_HOP: [HeaderName; 8] = [
    KEEP_ALIVE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    PROXY_CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::EXPECT,
];

/// Most heads hold none of them or only Connection: one look at each name costs less than a lookup for each of these.
fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let (mut connection, mut others) = (false, false);
    for name in headers.keys() {
        if *name == header::CONNECTION {
            connection = true;
        } else if HOP_BY_HOP.contains(name) {
            others = true;
        }
    }
    if connection {
        remove_named_in_connection(headers);
    }
    if others {
        for name in &HOP_BY_HOP {
            headers.remove(name);
        }
    }
}

fn remove_named_in_connection(headers: &mut HeaderMap) {
    let header::Entry::Occupied(connection) = headers.entry(header::CONNECTION) else { return };
    let (_, values) = connection.remove_entry_mult();
    let mut named: Vec<HeaderName> = Vec::new();
    for value in values {
        for token in value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            // What nearly every Connection says names no field.
            if token.eq_ignore_ascii_case(b"keep-alive") || token.eq_ignore_ascii_case(b"close") {
                continue;
            }
            named.extend(HeaderName::from_bytes(token).ok().filter(|name| !END_TO_END.contains(name)));
        }
    }
    for name in named {
        headers.remove(name);
    }
}

fn has_token(list: &[u8], token: &[u8]) -> bool {
    list.split(|byte| *byte == b',').any(|item| item.trim_ascii().eq_ignore_ascii_case(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepared(fields: &[(&'static str, &'static str)], vouched: Option<[u8; 4]>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        let peer = Peer { ip: HeaderValue::from_static("192.0.2.7"), port: HeaderValue::from(8080) };
        let id = RequestId::of(&headers, || 0xabc);
        let host = headers.get(header::HOST).cloned();
        prepare_request(&mut headers, &peer, &id, vouched.map(IpAddr::from), host.as_ref());
        headers
    }

    fn all(headers: &HeaderMap, name: &str) -> Vec<String> {
        headers.get_all(name).iter().map(|value| value.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn what_connection_names_goes_with_it() {
        let headers = prepared(
            &[
                ("host", "a"),
                ("connection", "close, X-Secret"),
                ("connection", "host"),
                ("x-secret", "1"),
                ("keep-alive", "5"),
                ("te", "gzip, trailers"),
                ("upgrade", "h2c"),
            ],
            None,
        );
        for gone in ["connection", "x-secret", "keep-alive", "upgrade"] {
            assert!(!headers.contains_key(gone), "{gone}");
        }
        assert_eq!(all(&headers, "te"), ["trailers"]);
        assert_eq!(all(&headers, "host"), ["a"], "a client cannot take the host away");
    }

    #[test]
    fn an_untrusted_peer_does_not_speak_for_others() {
        let headers = prepared(
            &[
                ("host", "a"),
                ("x-forwarded-for", "10.0.0.1"),
                ("x-forwarded-proto", "https"),
                ("x-real-ip", "10.0.0.1"),
                ("forwarded", "for=10.0.0.1"),
            ],
            None,
        );
        assert_eq!(all(&headers, "x-forwarded-for"), ["192.0.2.7"]);
        assert_eq!(all(&headers, "x-real-ip"), ["192.0.2.7"]);
        assert_eq!(all(&headers, "x-forwarded-proto"), ["http"]);
        assert_eq!(all(&headers, "x-forwarded-host"), ["a"]);
        assert_eq!(all(&headers, "x-forwarded-port"), ["8080"]);
        assert!(!headers.contains_key("forwarded"));
        assert_eq!(all(&headers, "via"), ["1.1 gogate"]);
    }

    #[test]
    fn a_trusted_proxy_is_continued() {
        let headers = prepared(
            &[
                ("host", "a"),
                ("x-forwarded-for", "10.0.0.1"),
                ("x-forwarded-proto", "https"),
                ("via", "1.1 edge"),
            ],
            Some([10, 0, 0, 1]),
        );
        assert_eq!(all(&headers, "x-forwarded-for"), ["10.0.0.1", "192.0.2.7"]);
        assert_eq!(all(&headers, "x-real-ip"), ["10.0.0.1"]);
        assert_eq!(all(&headers, "x-forwarded-proto"), ["https"]);
        assert_eq!(all(&headers, "via"), ["1.1 edge", "1.1 gogate"]);
    }

    #[test]
    fn forwarded_quotes_what_is_no_token() {
        for (ip, expected) in [
            ("192.0.2.7", "for=192.0.2.7;host=\"a:80\";proto=http"),
            ("2001:db8::1", "for=\"[2001:db8::1]\";host=\"a:80\";proto=http"),
        ] {
            let peer = Peer { ip: HeaderValue::from_static(ip), port: HeaderValue::from(8080) };
            let mut headers = HeaderMap::new();
            add_forwarded(&mut headers, &peer, Some(&HeaderValue::from_static("a:80")));
            assert_eq!(all(&headers, "forwarded"), [expected]);
        }
    }

    #[test]
    fn a_name_with_underscores_does_not_stand_for_another() {
        let mut headers = HeaderMap::new();
        for name in ["x_forwarded_for", "x-forwarded_proto", "content_length", "x-user", "x_user", "api_key"]
        {
            headers.append(name, HeaderValue::from_static("1"));
        }
        remove_shadows(&mut headers);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["api_key", "x-user"]);
    }

    #[test]
    fn ids_and_traces_are_kept_if_well_formed_and_made_otherwise() {
        const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let headers = prepared(&[("x-request-id", "order-7"), ("traceparent", TRACE)], None);
        assert_eq!(all(&headers, "x-request-id"), ["order-7"]);
        assert_eq!(all(&headers, "traceparent"), [TRACE]);
        let headers = prepared(&[("x-request-id", "a b\"<"), ("traceparent", "00-zz")], None);
        let id = all(&headers, "x-request-id").remove(0);
        assert_eq!(id, "0000000000000abc0000000000000abc");
        assert_eq!(all(&headers, "traceparent"), [format!("00-{id}-0000000000000abc-01")]);
    }
}
