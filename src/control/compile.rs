//! Document + registry → `RoutingTable`.
//!
//! Invariants: pure; only services that the document sends requests to get endpoints, so an instance of a name that
//! nobody routes to costs nothing here. Neighbours: `publish` calls, `proxy::table` compiles.

use std::collections::{BTreeMap, BTreeSet};

use gogate_cluster::state::Registry;

use crate::{
    config::{
        Problem, check,
        document::{Document, Endpoint, Listener, Route},
    },
    proxy::RoutingTable,
};

/// The registered endpoints of the services in `names`; a service without any is there with an empty list.
#[must_use]
pub fn registered<'a>(
    registry: &Registry,
    names: impl IntoIterator<Item = &'a String>,
) -> BTreeMap<String, Vec<Endpoint>> {
    names.into_iter().map(|name| (name.clone(), endpoints(registry, name))).collect()
}

/// The registered endpoints of one service: by address, each once, though several instances may have it.
fn endpoints(registry: &Registry, name: &str) -> Vec<Endpoint> {
    let mut weights: BTreeMap<&str, u32> = BTreeMap::new();
    for instance in registry.of_service(name) {
        let weight = weights.entry(&instance.address).or_default();
        *weight = instance.weight.max(*weight);
    }
    let endpoint = |(address, weight): (&str, u32)| Endpoint { address: address.to_owned(), weight };
    weights.into_iter().map(endpoint).collect()
}

/// The services that anything may be sent to: those declared, and those that a route or a listener names and that
/// live by registration alone.
#[must_use]
pub fn services(document: &Document) -> BTreeSet<String> {
    let routed = document.routes.iter().flat_map(Route::services);
    let streamed = document.listeners.values().flat_map(Listener::services);
    document.services.keys().chain(routed).chain(streamed).cloned().collect()
}

/// The document that `content` is, or everything for which it could not run on any node. A large document takes long:
/// not on a thread that answers calls.
pub fn check(content: &str) -> Result<Document, Vec<Problem>> {
    let document = check::document(content)?;
    let compiled = RoutingTable::compile(0, &document, &BTreeMap::new(), &RoutingTable::default());
    compiled.map_err(|error| vec![Problem::general(error.to_string(), None)])?;
    Ok(document)
}

#[cfg(test)]
mod tests {
    use gogate_cluster::state::{Command, Registration, State};

    use super::*;

    fn register(state: &mut State, id: &str, name: &str, address: &str) {
        let registration = Registration {
            id: id.into(),
            name: name.into(),
            address: address.into(),
            ttl_ms: 0,
            weight: 1,
            metadata: BTreeMap::new(),
            tags: Vec::new(),
        };
        state.apply(Command::Register(registration), 0, &mut Vec::new());
    }

    #[test]
    fn an_address_that_two_instances_have_is_one_endpoint() {
        let mut state = State::default();
        register(&mut state, "a", "api", "10.0.0.1:80");
        register(&mut state, "b", "api", "10.0.0.1:80");
        register(&mut state, "c", "other", "10.0.0.2:80");
        let registered = registered(state.registry(), &["api".to_owned(), "none".to_owned()]);
        assert_eq!(registered["api"].len(), 1);
        assert!(registered["none"].is_empty());
        assert!(!registered.contains_key("other"));
    }
}
