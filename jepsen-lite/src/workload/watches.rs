//! Watchers that follow everything, at one node after another, while instances come and go.
//!
//! A watcher goes on where it was, at any node, after a few seconds or when its stream breaks: by server-sent events, or
//! over gRPC. Others call and wait until something is newer than what they know. Judged by `checker::watches`:
//! changes are told in order, each once, none left out.

use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{Site, Step, contended, leases};
use crate::{
    client::Client,
    history::{Outcome, Seen},
};

/// How long a watcher stays with a node, at most.
const STAYS_MS: std::ops::RangeInclusive<u64> = 500..=4000;

/// How long a call waits at most: less than its client does.
const WAITS_MS: std::ops::RangeInclusive<u64> = 100..=1500;

/// What they wait for: changes of anything, and of the service that everybody writes.
const WAITED_FOR: [Option<&str>; 2] = [None, Some(contended::SERVICE)];

/// Before it turns to the next one.
const PAUSE: Duration = Duration::from_millis(20);

/// Some who write, some whose instances expire, as many watchers as nodes for each kind of stream, and some who wait.
pub(super) fn clients(site: &Site) -> impl Iterator<Item = Step> {
    let streams = (0..site.admin.len())
        .flat_map(|index| [("w", index, Client::watch as Watch), ("g", index, Client::watch_grpc)]);
    let watchers = streams.map(|(kind, index, watch)| {
        let mut client = site.client(&format!("{kind}{index}"), super::PATIENCE);
        let mut rng = StdRng::seed_from_u64(site.seed.wrapping_add(1000 + index as u64));
        let mut last = None;
        Box::new(move || {
            let node = rng.random_range(0..client.nodes());
            let until = Instant::now() + Duration::from_millis(rng.random_range(STAYS_MS));
            last = watch(&mut client, node, last, until);
            PAUSE
        }) as Step
    });
    let waiting = WAITED_FOR.into_iter().enumerate().map(|(index, service)| {
        let mut client = site.client(&format!("p{index}"), super::PATIENCE);
        let mut rng = StdRng::seed_from_u64(site.seed.wrapping_add(2000 + index as u64));
        let mut last = None;
        Box::new(move || {
            let node = rng.random_range(0..client.nodes());
            let wait = Duration::from_millis(rng.random_range(WAITS_MS));
            if let Outcome::Ok { seen: Seen::Instances { index, .. } } =
                client.wait(node, service, last, wait)
            {
                last = Some(index);
            }
            PAUSE
        }) as Step
    });
    contended::clients(site).chain(leases::quitters(site, 2)).chain(watchers).chain(waiting)
}

/// A way to follow changes from where one is.
type Watch = fn(&mut Client, usize, Option<u64>, Instant) -> Option<u64>;
