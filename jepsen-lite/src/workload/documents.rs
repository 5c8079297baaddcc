//! Documents that several clients replace, and what each proxy makes of them.
//!
//! A writer reads the current version and replaces it, as long as it is still that one (If-Match). Each
//! document has a route by which the proxy itself answers the document's marker. Judged by
//! `checker::documents` and `checker::served`: no update is lost, and no proxy goes back.

use std::time::Duration;

use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::json;

use super::{PATIENCE, Site, Step};
use crate::{
    client::{Client, MARKER, Patience, marker_route},
    history::{Outcome, Seen},
};

/// The longest pause of a writer. A document is no small thing: a few a second.
const PAUSE_MS_MAX: u64 = 400;

/// Between two looks at a proxy.
const LOOK: Duration = Duration::from_millis(25);

/// A proxy answers from memory.
const LOOK_PATIENCE: Patience = Patience { asked: None, own: Duration::from_secs(2) };

/// Some who write, and one who looks at each proxy.
pub(super) fn clients(site: &Site) -> impl Iterator<Item = Step> {
    let writers = (0..site.clients).map(|index| {
        let mut client = site.client(&format!("c{index}"), PATIENCE);
        let mut rng = StdRng::seed_from_u64(site.seed.wrapping_add(index as u64));
        let mut number = 0;
        Box::new(move || {
            number += 1;
            replace(&mut client, &mut rng, number);
            Duration::from_millis(rng.random_range(0..=PAUSE_MS_MAX))
        }) as Step
    });
    let lookers = (0..site.web.len()).map(|node| {
        let mut client = site.web_client(&format!("look{node}"), LOOK_PATIENCE);
        Box::new(move || {
            client.serve(node);
            LOOK
        }) as Step
    });
    writers.chain(lookers)
}

fn replace(client: &mut Client, rng: &mut StdRng, number: u64) {
    let node = rng.random_range(0..client.nodes());
    let Outcome::Ok { seen: Seen::Document { version, .. } } = client.get_config(node, false, None) else {
        return;
    };
    let marker = format!("{MARKER}{}-{number}", client.name());
    let document = json!({ "routes": [marker_route(&marker)] });
    let node = rng.random_range(0..client.nodes());
    client.put_document(node, &document, &marker, version, None);
}
