//! Instances that live by heartbeats: some are kept alive, some fall silent.
//!
//! Those that are kept alive beat several times in a TTL, each time at another node, as a client does that
//! knows all of them. Invariant: an id that fell silent is never used again. Judged by `checker::leases`: nobody
//! vanishes who was heard (P6), and nobody stays who was not.

use std::time::Duration;

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{Site, Step};
use crate::{
    client::{Client, Instance, Patience},
    history::Outcome,
};

/// Short, so that a fault of a few seconds is longer.
const TTL: Duration = Duration::from_secs(3);

/// A beat that takes longer is tried at another node: several tries fit in a TTL.
const PATIENCE: Patience =
    Patience { asked: Some(Duration::from_millis(400)), own: Duration::from_millis(600) };

/// Between two beats.
const BEAT_MS: std::ops::RangeInclusive<u64> = 200..=500;

/// Between two instances that fall silent.
const SILENT_MS: std::ops::RangeInclusive<u64> = 500..=1500;

/// Between two looks at everything.
const LOOK_MS: std::ops::RangeInclusive<u64> = 50..=150;

/// Every fourth client leaves its instances to themselves, and every fourth looks; the others keep one alive.
pub(super) fn clients(site: &Site) -> impl Iterator<Item = Step> {
    (0..site.clients).map(|index| {
        let client = site.client(&format!("c{index}"), PATIENCE);
        let rng = StdRng::seed_from_u64(site.seed.wrapping_add(index as u64));
        match index % 4 {
            0 => quitter(client, rng),
            1 => looker(client, rng),
            _ => keeper(client, rng),
        }
    })
}

/// So many clients that leave their instances to themselves.
pub(super) fn quitters(site: &Site, count: usize) -> impl Iterator<Item = Step> {
    (0..count).map(|index| {
        let rng = StdRng::seed_from_u64(site.seed.wrapping_add(100 + index as u64));
        quitter(site.client(&format!("q{index}"), PATIENCE), rng)
    })
}

fn instance(id: String) -> Instance {
    let ttl_ms = u64::try_from(TTL.as_millis()).expect("a TTL is short");
    Instance { payload: id.clone(), id, name: "lease".into(), address: "127.0.0.1:9000".into(), ttl_ms }
}

fn pause(rng: &mut StdRng, ms: std::ops::RangeInclusive<u64>) -> Duration {
    Duration::from_millis(rng.random_range(ms))
}

fn keeper(mut client: Client, mut rng: StdRng) -> Step {
    let instance = instance(format!("kept-{}", client.name()));
    let mut registered = false;
    Box::new(move || {
        let node = rng.random_range(0..client.nodes());
        if registered {
            let outcome = client.heartbeat(node, &instance.id);
            registered = !matches!(outcome, Outcome::Fail { status: Some(404), .. });
        } else {
            registered = matches!(client.register(node, &instance), Outcome::Ok { .. });
        }
        pause(&mut rng, BEAT_MS)
    })
}

fn quitter(mut client: Client, mut rng: StdRng) -> Step {
    let mut number = 0;
    Box::new(move || {
        number += 1;
        let instance = instance(format!("left-{}-{number}", client.name()));
        let mut node = rng.random_range(0..client.nodes());
        client.register(node, &instance);
        for _ in 0..rng.random_range(0..3) {
            std::thread::sleep(pause(&mut rng, BEAT_MS));
            node = rng.random_range(0..client.nodes());
            client.heartbeat(node, &instance.id);
        }
        pause(&mut rng, SILENT_MS)
    })
}

fn looker(mut client: Client, mut rng: StdRng) -> Step {
    Box::new(move || {
        let node = rng.random_range(0..client.nodes());
        client.list(node, false);
        pause(&mut rng, LOOK_MS)
    })
}
