//! Watchers that follow everything, at one node after another, while instances come and go.
//!
//! A watcher goes on where it was, at any node, after a few seconds or when its stream breaks. Judged by
//! `checker::watches`: changes are told in order, each once, none left out.

use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{Site, Step, contended, leases};

/// How long a watcher stays with a node, at most.
const STAYS_MS: std::ops::RangeInclusive<u64> = 500..=4000;

/// Before it turns to the next one.
const PAUSE: Duration = Duration::from_millis(20);

/// Some who write, one whose instances expire, and as many watchers as nodes.
pub(super) fn clients(site: &Site) -> impl Iterator<Item = Step> {
    let watchers = (0..site.admin.len()).map(|index| {
        let mut client = site.client(&format!("w{index}"), super::PATIENCE);
        let mut rng = StdRng::seed_from_u64(site.seed.wrapping_add(1000 + index as u64));
        let mut last = None;
        Box::new(move || {
            let node = rng.random_range(0..client.nodes());
            let until = Instant::now() + Duration::from_millis(rng.random_range(STAYS_MS));
            last = client.watch(node, last, until);
            PAUSE
        }) as Step
    });
    contended::clients(site).chain(leases::quitters(site, 2)).chain(watchers)
}
