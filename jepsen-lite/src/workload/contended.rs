//! Few instances that everybody writes: registered anew, removed, read, at any node.
//!
//! Invariant: no content is sent twice, so that a read tells whose write it saw. Judged by
//! `checker::contended`: per instance, is there an order in which all of it fits?

use std::time::Duration;

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{PATIENCE, Site, Step};
use crate::client::{Client, Instance};

/// The service of all of them; their ids begin with it.
pub(super) const SERVICE: &str = "shared";

/// So few that each is always written by several at once.
const INSTANCES: usize = 5;

/// The longest pause of a client: some dozens of operations a second on each instance.
const PAUSE_MS_MAX: u64 = 40;

pub(super) fn clients(site: &Site) -> impl Iterator<Item = Step> {
    (0..site.clients).map(|index| {
        let mut client = site.client(&format!("c{index}"), PATIENCE);
        let mut rng = StdRng::seed_from_u64(site.seed.wrapping_add(index as u64));
        let mut number = 0;
        Box::new(move || {
            number += 1;
            step(&mut client, &mut rng, number);
            Duration::from_millis(rng.random_range(0..=PAUSE_MS_MAX))
        }) as Step
    })
}

fn step(client: &mut Client, rng: &mut StdRng, number: u64) {
    let node = rng.random_range(0..client.nodes());
    let id = format!("{SERVICE}-{}", rng.random_range(0..INSTANCES));
    match rng.random_range(0..100) {
        0..40 => {
            let payload = format!("{}-{number}", client.name());
            let (name, address) = (SERVICE.to_owned(), "127.0.0.1:9000".to_owned());
            client.register(node, &Instance { id, name, address, payload, ttl_ms: 0 });
        }
        40..55 => {
            client.deregister(node, &id);
        }
        55..95 => {
            client.get(node, &id);
        }
        _ => {
            client.list(node, false);
        }
    }
}
