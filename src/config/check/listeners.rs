//! `listeners`: where the gateway accepts connections.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
};

use super::{
    super::{
        address,
        document::Listener,
        field::{Field, Keys, Section},
    },
    accept,
};

pub(super) const LISTENER: Keys = Keys { known: &["address"], later: &["tls", "protocol", "service", "sni"] };

/// The listeners of a document that names none: `web` on loopback.
#[must_use]
pub fn default_listeners() -> BTreeMap<String, Listener> {
    let address = SocketAddr::from(([127, 0, 0, 1], 8080));
    BTreeMap::from([("web".to_owned(), Listener { address })])
}

/// A listener with a problem is kept with some address, so that routes that name it are not reported as well.
pub(super) fn listeners(top: &Section<'_>) -> BTreeMap<String, Listener> {
    let Some(field) = top.get("listeners") else { return default_listeners() };
    let mut listeners = BTreeMap::new();
    let mut taken: HashMap<SocketAddr, (&str, usize)> = HashMap::new();
    for (name, field) in field.named().unwrap_or_default() {
        let address = listener_address(&field).unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)));
        if address.port() != 0
            && let Some((other, line)) = taken.insert(address, (name, field.node.place.line))
        {
            field.problem(
                format!("{address} is the address of listener `{other}` on line {line} already"),
                Some("give it an address of its own".into()),
            );
        }
        listeners.insert(name.to_owned(), Listener { address });
    }
    listeners
}

fn listener_address(field: &Field<'_>) -> Option<SocketAddr> {
    let section = field.section(LISTENER)?;
    let Some(field) = section.get("address") else {
        section.field.problem("`address` is missing", Some("add address: \"0.0.0.0:8080\"".into()));
        return None;
    };
    accept(field, address::listen(field.text_as("an address such as 0.0.0.0:8080")?))
}
