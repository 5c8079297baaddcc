//! Addresses, hosts and paths as operators write them.
//!
//! Job: pure functions from text to a checked value; the error is what is wrong and what to write instead.
//! Neighbours: `check` and `node_file` call them and add the place.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{
    document::{HostPattern, IpNetwork, Origin},
    problem::shown,
};

/// What is wrong with a value, and what to write instead.
pub type Refusal = (String, Option<String>);

/// `host:port` taken apart; the port is not 0 unless `port_zero`.
fn split(text: &str, port_zero: bool) -> Result<(&str, u16), Refusal> {
    let refuse = |problem: String, suggestion: Option<String>| Err((problem, suggestion));
    if let Some((scheme, rest)) = text.split_once("://") {
        let host = rest.split(['/', '?', '#']).next().unwrap_or(rest);
        let port = if scheme == "https" { 443 } else { 80 };
        let plain = if split(host, false).is_ok() { host.to_owned() } else { format!("{host}:{port}") };
        return refuse(
            format!("`{}` is a URL, not host:port", shown(text)),
            Some(format!("write \"{}\"", shown(&plain))),
        );
    }
    if text.parse::<Ipv6Addr>().is_ok() || (!text.starts_with('[') && text.matches(':').count() > 1) {
        let (host, port) = text.rsplit_once(':').unwrap_or((text, ""));
        let suggestion = match host.parse::<Ipv6Addr>() {
            Ok(ip) if port.parse::<u16>().is_ok_and(|p| p > 0) => format!("write \"[{ip}]:{port}\""),
            Ok(_) | Err(_) => "write an IPv6 address in brackets: \"[::1]:8080\"".into(),
        };
        return refuse(format!("`{}` is not host:port", shown(text)), Some(suggestion));
    }
    let Some((host, port)) = text.rsplit_once(':').filter(|(host, _)| !host.ends_with(':')) else {
        let suggestion = match text.parse::<u16>() {
            Ok(port) => format!("write \"127.0.0.1:{port}\""),
            Err(_) => format!("add a port: \"{}:8080\"", shown(text)),
        };
        return refuse(format!("`{}` has no port", shown(text)), Some(suggestion));
    };
    let digits_only = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    let lowest = u16::from(!port_zero);
    match port.parse::<u16>() {
        Ok(number) if digits_only && number >= lowest => Ok((host, number)),
        _ => refuse(
            format!("`{}` is not a port", shown(port)),
            Some(format!("ports are numbers from {lowest} to 65535")),
        ),
    }
}

/// Where something listens: `IP:port`; port 0 lets the system choose.
pub fn listen(text: &str) -> Result<SocketAddr, Refusal> {
    let (host, port) = split(text, true)?;
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(address);
    }
    let suggestion = match host {
        "" | "*" => format!("write \"0.0.0.0:{port}\" for every interface"),
        "localhost" => format!("write \"127.0.0.1:{port}\""),
        _ => format!("a listener needs an IP address: \"0.0.0.0:{port}\" or \"127.0.0.1:{port}\""),
    };
    let problem = match host {
        "" => "the IP address is missing".to_owned(),
        _ => format!("`{}` is not an IP address", shown(host)),
    };
    Err((problem, Some(suggestion)))
}

/// Where something is reached: `host:port`, the host a name or an IP address; returned in its usual form.
///
/// # Errors
/// What is wrong with it, and what to write instead.
pub fn reach(text: &str) -> Result<String, Refusal> {
    let (host, port) = split(text, false)?;
    if let Some(inner) = host.strip_prefix('[') {
        return match inner.strip_suffix(']').map(str::parse::<Ipv6Addr>) {
            Some(Ok(ip)) => Ok(format!("[{ip}]:{port}")),
            _ => Err((format!("`{}` is not an IPv6 address", shown(host)), None)),
        };
    }
    if host.is_empty() {
        return Err(("the host is missing".into(), Some(format!("write \"127.0.0.1:{port}\""))));
    }
    if let Err(problem) = host_name(host) {
        return Err((problem, None));
    }
    Ok(format!("{}:{port}", host.to_ascii_lowercase()))
}

/// A host name or an IPv4 address (RFC 1123 section 2.1, and the underscores that containers use).
fn host_name(host: &str) -> Result<(), String> {
    let label_ok = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if host.len() > 253 || !host.split('.').all(label_ok) {
        return Err(format!("`{}` is not a host name", shown(host)));
    }
    let last = host.rsplit('.').next().unwrap_or(host);
    if last.bytes().all(|b| b.is_ascii_digit()) && host.parse::<Ipv4Addr>().is_err() {
        return Err(format!("`{}` is not an IPv4 address", shown(host)));
    }
    Ok(())
}

/// A route's host: exact or `*.example.com`.
pub fn host_pattern(text: &str) -> Result<HostPattern, Refusal> {
    let host = text.to_ascii_lowercase();
    if host == "*" {
        return Err(("`*` is every host".into(), Some("leave `host` out".into())));
    }
    if host.contains("://") || host.contains('/') {
        let bare = host.split_once("://").map_or(host.as_str(), |(_, rest)| rest);
        let bare = bare.split(['/', ':']).next().unwrap_or(bare);
        return Err((
            format!("`{}` is not a host", shown(text)),
            Some(format!("write \"{}\"; paths go to `path` or `path_prefix`", shown(bare))),
        ));
    }
    if let Some(inner) = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        let ip = inner.parse::<Ipv6Addr>();
        let ip = ip.map_err(|_| (format!("`{}` is not an IPv6 address", shown(text)), None))?;
        return Ok(HostPattern::Exact(format!("[{ip}]")));
    }
    if let Ok(ip) = host.parse::<Ipv6Addr>() {
        return Err((format!("`{}` has no brackets", shown(text)), Some(format!("write \"[{ip}]\""))));
    }
    if let Some((name, _)) = host.split_once(':') {
        return Err((
            format!("`{}` has a port", shown(text)),
            Some(format!("write \"{}\": a route matches its host on every port", shown(name))),
        ));
    }
    if let Some(name) = host.strip_suffix('.') {
        return Err((
            format!("`{}` ends with a dot", shown(text)),
            Some(format!("write \"{}\"", shown(name))),
        ));
    }
    let (wildcard, name) = match host.strip_prefix("*.") {
        Some(name) => (true, name),
        None => (false, host.as_str()),
    };
    if name.contains('*') {
        let suggestion = "a wildcard stands for whole labels at the start: \"*.example.com\"";
        return Err((format!("`{}` is not a host", shown(text)), Some(suggestion.into())));
    }
    host_name(name).map_err(|problem| (problem, None))?;
    Ok(if wildcard { HostPattern::Wildcard(name.into()) } else { HostPattern::Exact(name.into()) })
}

/// An origin as browsers write it (RFC 6454, section 6.2): `https://app.example.com`, `https://*.example.com:8443`.
pub fn origin(text: &str) -> Result<Origin, Refusal> {
    let refuse = |suggestion: String| Err((format!("`{}` is not an origin", shown(text)), Some(suggestion)));
    let lower = text.to_ascii_lowercase();
    let Some((scheme, rest)) = lower.split_once("://") else {
        return refuse(format!("write the scheme as well: \"https://{}\"", shown(text)));
    };
    if let Some(index) = rest.find(['/', '?', '#']) {
        return refuse(format!("write \"{scheme}://{}\"", shown(&rest[..index])));
    }
    let own_port = match scheme {
        "https" => ":443",
        "http" => ":80",
        _ => "",
    };
    if let Some(host) = rest.strip_suffix(own_port).filter(|_| !own_port.is_empty()) {
        return refuse(format!("browsers leave the scheme's own port out: \"{scheme}://{}\"", shown(host)));
    }
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (rest, None),
    };
    let port_ok = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
    let scheme_ok = scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    if !port_ok || !scheme_ok || scheme.is_empty() || host == "*" {
        return refuse("write one such as \"https://app.example.com\" or \"https://*.example.com\"".into());
    }
    Ok(match host_pattern(host)? {
        HostPattern::Wildcard(name) => Origin::Below {
            scheme: format!("{scheme}://"),
            suffix: port.map_or_else(|| format!(".{name}"), |port| format!(".{name}:{port}")),
        },
        HostPattern::Exact(_) | HostPattern::Any => Origin::Exact(lower),
    })
}

/// Whether a route's path is written as requests are matched: normalised, percent-encoded, without a query.
pub fn path(text: &str, allow_encoded_slash: bool) -> Result<(), Refusal> {
    let refuse = |problem: String, suggestion: String| Err((problem, Some(suggestion)));
    if !text.starts_with('/') {
        return refuse(
            format!("`{}` does not begin with `/`", shown(text)),
            format!("write \"/{}\"", shown(text)),
        );
    }
    if let Some(index) = text.find(['?', '#']) {
        return refuse(
            format!("`{}` has more than a path", shown(text)),
            format!("write \"{}\"", shown(&text[..index])),
        );
    }
    if let Some(c) = text.chars().find(|c| !c.is_ascii_graphic() || "\"<>\\^`{|}".contains(*c)) {
        let mut buffer = [0; 4];
        let encoded: String = c.encode_utf8(&mut buffer).bytes().map(|b| format!("%{b:02X}")).collect();
        return refuse(
            format!(
                "`{}` has the character `{}`, which no request's path has",
                shown(text),
                shown(&c.to_string())
            ),
            format!("write {encoded} in its place"),
        );
    }
    match normalised(text, allow_encoded_slash) {
        Ok(normal) if normal == text => Ok(()),
        Ok(normal) => refuse(
            format!("`{}` is not in normal form, so that no request would match it", shown(text)),
            format!("write \"{}\"", shown(&normal)),
        ),
        Err(problem) => Err((format!("`{}` {problem}", shown(text)), None)),
    }
}

/// Dot segments and doubled slashes removed, percent-encoded unreserved characters decoded (RFC 3986 section 6.2.2).
fn normalised(path: &str, allow_encoded_slash: bool) -> Result<String, &'static str> {
    let mut decoded = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(index) = rest.find('%') {
        decoded.push_str(&rest[..index]);
        let hex = rest.get(index + 1..index + 3).filter(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
        let byte = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match byte.ok_or("has a `%` without two hexadecimal digits")? {
            b'/' if !allow_encoded_slash => {
                return Err("has an encoded slash, which is refused unless `allow_encoded_slash` is true");
            }
            0 => return Err("has an encoded NUL, which is refused in requests"),
            byte if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => decoded.push(char::from(byte)),
            byte => decoded.push_str(&format!("%{byte:02X}")),
        }
        rest = &rest[index + 3..];
    }
    decoded.push_str(rest);

    let mut segments: Vec<&str> = Vec::new();
    let mut ends_with_slash = true;
    for segment in decoded.split('/').skip(1) {
        ends_with_slash = matches!(segment, "" | "." | "..");
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            _ => segments.push(segment),
        }
    }
    let mut normal = format!("/{}", segments.join("/"));
    if ends_with_slash && !segments.is_empty() {
        normal.push('/');
    }
    Ok(normal)
}

/// `10.0.0.0/8` or a single address.
pub fn network(text: &str) -> Result<IpNetwork, Refusal> {
    let refuse = || (format!("`{}` is not an IP address or a range such as 10.0.0.0/8", shown(text)), None);
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().map_err(|_| refuse())?;
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let prefix = match prefix {
        None => bits,
        Some(prefix) => prefix
            .parse::<u8>()
            .ok()
            .filter(|p| *p <= bits && prefix.bytes().all(|b| b.is_ascii_digit()))
            .ok_or_else(|| (format!("`/{}` is not from /0 to /{bits}", shown(prefix)), None))?,
    };
    let first = match address {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from_bits(ip.to_bits() & mask))
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & mask))
        }
    };
    if first != address {
        return Err((
            format!("`{}` has bits beyond its prefix", shown(text)),
            Some(format!("write {first}/{prefix}, or {address} for the one address")),
        ));
    }
    Ok(IpNetwork { address, prefix })
}
