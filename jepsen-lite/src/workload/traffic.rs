//! Requests through every proxy, all the time, while documents are replaced that do not concern them.
//!
//! Job: a service, a route to it in every document, and clients that each send one request after another to
//! one node. Judged by `checker::traffic`: whatever happens to the others, a node that is up answers (P1,
//! P8, P10).

use std::{
    io::{self, BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::json;

use super::{PATIENCE, Site, Step};
use crate::{
    client::{Client, MARKER, Patience, marker_route},
    history::{Outcome, Seen},
};

/// A request that takes longer counts as one that failed.
const REQUEST_PATIENCE: Patience = Patience { asked: None, own: Duration::from_secs(5) };

/// Between two requests of a client.
const PAUSE: Duration = Duration::from_millis(10);

/// Between two documents.
const DOCUMENT_PAUSE: Duration = Duration::from_secs(1);

/// What the service answers.
const ANSWER: &str = "served";

/// The clients. Each node has some, with connections of their own; it is waited until the first document is
/// everywhere.
pub(super) fn clients(site: &Site) -> io::Result<impl Iterator<Item = Step>> {
    let service = serve()?;
    first_document(site, service)?;
    let requests = (0..site.clients).map(|index| {
        let node = index % site.web.len();
        let mut client = site.web_client(&format!("r{index}"), REQUEST_PATIENCE);
        Box::new(move || {
            client.request(node, "/traffic", ANSWER);
            PAUSE
        }) as Step
    });
    let mut client = site.client("c0", PATIENCE);
    let mut rng = StdRng::seed_from_u64(site.seed);
    let mut number = 0;
    let writer = Box::new(move || {
        number += 1;
        let node = rng.random_range(0..client.nodes());
        replace(&mut client, node, service, number);
        DOCUMENT_PAUSE
    }) as Step;
    Ok(requests.chain(std::iter::once(writer)))
}

/// Puts the first document, and waits until every proxy runs it.
fn first_document(site: &Site, service: SocketAddr) -> io::Result<()> {
    let mut client = site.client("c0", PATIENCE);
    let mut web = site.web_client("probe", REQUEST_PATIENCE);
    for _ in 0..100 {
        if matches!(replace(&mut client, 0, service, 0), Some(Outcome::Ok { .. }))
            && (0..site.web.len()).all(|node| web.probe(node, "/traffic"))
        {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(100));
    }
    Err(io::Error::other("the first document was not taken, or not run by every node"))
}

fn replace(client: &mut Client, node: usize, service: SocketAddr, number: u64) -> Option<Outcome> {
    let Outcome::Ok { seen: Seen::Document { version, .. } } = client.get_config(node, false, None) else {
        return None;
    };
    let marker = format!("{MARKER}{}-{number}", client.name());
    let document = json!({
        "services": { "traffic": { "endpoints": [{ "address": service.to_string() }] } },
        "routes": [
            { "name": "traffic", "match": { "path": "/traffic" }, "service": "traffic" },
            marker_route(&marker),
        ],
    });
    Some(client.put_document(node, &document, &marker, version, None))
}

/// A service that answers every request alike, for as long as this process lives.
fn serve() -> io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || answer_all(&stream));
        }
    });
    Ok(address)
}

/// Requests without a body, one after another.
fn answer_all(mut stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    for line in BufReader::new(stream).lines() {
        if line?.is_empty() {
            let length = ANSWER.len();
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{ANSWER}")?;
        }
    }
    Ok(())
}
