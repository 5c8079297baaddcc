//! `listeners`: where the gateway accepts connections, and what is spoken there.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
};

use super::{
    super::{
        address,
        document::{ConnectionRate, HostPattern, Listener, Protocol, Service},
        field::{Field, Keys, Section},
        problem::shown,
    },
    accept, service_name, timeout,
};

pub(super) const LISTENER: Keys = Keys {
    known: &[
        "address",
        "protocol",
        "service",
        "sni",
        "proxy_protocol",
        "connections",
        "connection_rate",
        "idle_timeout",
    ],
    later: &["tls"],
};
pub(super) const CONNECTION_RATE: Keys = Keys { known: &["rate", "burst"], later: &[] };

/// The listeners of a document that names none: `web` on loopback.
#[must_use]
pub fn default_listeners() -> BTreeMap<String, Listener> {
    BTreeMap::from([("web".to_owned(), Listener::http(SocketAddr::from(([127, 0, 0, 1], 8080))))])
}

/// A listener with a problem is kept with some address, so that routes that name it are not reported as well.
pub(super) fn listeners(
    top: &Section<'_>,
    services: &BTreeMap<String, Service>,
) -> BTreeMap<String, Listener> {
    let Some(field) = top.get("listeners") else { return default_listeners() };
    let mut listeners = BTreeMap::new();
    let mut taken: HashMap<SocketAddr, (&str, usize)> = HashMap::new();
    for (name, field) in field.named().unwrap_or_default() {
        let listener = listener(&field, services);
        let address = listener.address;
        if address.port() != 0
            && let Some((other, line)) = taken.insert(address, (name, field.node.place.line))
        {
            field.problem(
                format!("{address} is the address of listener `{other}` on line {line} already"),
                Some("give it an address of its own".into()),
            );
        }
        listeners.insert(name.to_owned(), listener);
    }
    listeners
}

fn listener(field: &Field<'_>, services: &BTreeMap<String, Service>) -> Listener {
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
    let Some(section) = field.section(LISTENER) else { return Listener::http(nowhere) };
    let number = |key, to| section.get(key).and_then(|field| field.integer(1, to));
    Listener {
        address: listener_address(&section).unwrap_or(nowhere),
        protocol: protocol(&section, services).unwrap_or_default(),
        proxy_protocol: section.get("proxy_protocol").and_then(Field::boolean).unwrap_or(false),
        connections: number("connections", 10_000_000).and_then(|number| usize::try_from(number).ok()),
        connection_rate: section
            .section("connection_rate", CONNECTION_RATE)
            .and_then(|s| connection_rate(&s)),
        idle_timeout: section.get("idle_timeout").and_then(timeout),
    }
}

fn listener_address(section: &Section<'_>) -> Option<SocketAddr> {
    let Some(field) = section.get("address") else {
        section.field.problem("`address` is missing", Some("add address: \"0.0.0.0:8080\"".into()));
        return None;
    };
    accept(field, address::listen(field.text_as("an address such as 0.0.0.0:8080")?))
}

fn protocol(section: &Section<'_>, services: &BTreeMap<String, Service>) -> Option<Protocol> {
    let word = match section.get("protocol") {
        Some(field) => field.choice(&["http", "tcp", "tls_passthrough"])?,
        None => "http",
    };
    if word != "tls_passthrough"
        && let Some(field) = section.get("sni")
    {
        field.problem(
            "only a `tls_passthrough` listener reads the name that a TLS client asks for",
            Some("add protocol: tls_passthrough, or remove it".into()),
        );
    }
    let service = section.get("service");
    match word {
        "tcp" => match service {
            Some(field) => Some(Protocol::Tcp { service: service_name(field, services)? }),
            None => {
                let suggestion = "add service: with the name of one under `services`";
                section.field.problem("`service` is missing", Some(suggestion.into()));
                None
            }
        },
        "tls_passthrough" => {
            if service.is_none() && section.get("sni").is_none() {
                let suggestion =
                    "add sni: with host names and their services, service: for all others, or both";
                section.field.problem("neither `sni` nor `service` is there", Some(suggestion.into()));
                return None;
            }
            let sni = section.get("sni").map(|field| sni(field, services)).unwrap_or_default();
            Some(Protocol::TlsPassthrough { sni, service: service.and_then(|f| service_name(f, services)) })
        }
        _ => {
            if let Some(field) = service {
                field.problem(
                    "routes say where the requests of an `http` listener go",
                    Some("add protocol: tcp, or a route with this service".into()),
                );
            }
            Some(Protocol::Http)
        }
    }
}

fn sni(field: &Field<'_>, services: &BTreeMap<String, Service>) -> Vec<(HostPattern, String)> {
    let mut names: Vec<(HostPattern, String)> = Vec::new();
    let mut lines: HashMap<HostPattern, usize> = HashMap::new();
    for (host, place, field) in field.pairs("a mapping from host names to services").unwrap_or_default() {
        let pattern = match server_name(host) {
            Ok(pattern) => pattern,
            Err((problem, suggestion)) => {
                field.report.add(place, &field.path, problem, suggestion);
                continue;
            }
        };
        if let Some(line) = lines.insert(pattern.clone(), place.line) {
            let problem = format!("`{}` is there already, on line {line}", shown(&host.to_ascii_lowercase()));
            field.report.add(place, &field.path, problem, Some("keep one of them".into()));
        }
        if let Some(service) = service_name(&field, services) {
            names.push((pattern, service));
        }
    }
    names
}

/// A host as a TLS client asks for it (RFC 6066, section 3: a name, never an address).
fn server_name(host: &str) -> Result<HostPattern, address::Refusal> {
    if host == "*" {
        return Err(("`*` is every host".into(), Some("write it as `service` of the listener".into())));
    }
    match address::host_pattern(host)? {
        HostPattern::Exact(name) if name.starts_with('[') || name.parse::<IpAddr>().is_ok() => {
            let suggestion = "write it as `service` of the listener, which clients without a name get";
            Err((
                format!("`{}` is an address: no client asks for one by name", shown(host)),
                Some(suggestion.into()),
            ))
        }
        pattern => Ok(pattern),
    }
}

fn connection_rate(section: &Section<'_>) -> Option<ConnectionRate> {
    let Some(field) = section.get("rate") else {
        let suggestion = "add rate: with the connections that one client may open each second";
        section.field.problem("`rate` is missing", Some(suggestion.into()));
        return None;
    };
    let number =
        |field: &Field<'_>| field.integer(1, 1_000_000).and_then(|number| u32::try_from(number).ok());
    let rate = number(field)?;
    let burst = match section.get("burst") {
        Some(field) => number(field)?,
        None => rate,
    };
    Some(ConnectionRate { rate, burst })
}

#[cfg(test)]
#[path = "../tests/check_listeners.rs"]
mod tests;
