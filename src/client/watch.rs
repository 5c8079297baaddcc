//! A watch that outlives the nodes it watches at.
//!
//! Invariants: events come in the order of their indexes, each once; after one node is lost the next one goes on
//! from the index that was reached, or begins with a snapshot if it does not know that far back; a node that says
//! nothing for [`SILENCE`] is taken for lost.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::Instant;

use super::{ANSWER_MAX, Call, Client, Error, Instance, Reply, connection::Connection, encode};

/// More than a node lets pass between two signs of life.
const SILENCE: Duration = Duration::from_secs(45);

/// Between two rounds over the nodes while none lets a watcher in, at first and at most.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// What happened, at an index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// How things stand: what was known before is to be forgotten.
    Snapshot {
        /// The index.
        index: u64,
        /// All instances of what is watched.
        instances: Vec<Instance>,
        /// The current version of the gateway document; only for those who watch everything.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        config_version: Option<u64>,
    },
    /// An instance is new.
    Registered {
        /// The index.
        index: u64,
        /// The instance.
        #[serde(flatten)]
        instance: Instance,
    },
    /// An instance replaced the one of the same id.
    Updated {
        /// The index.
        index: u64,
        /// The instance as it is now.
        #[serde(flatten)]
        instance: Instance,
    },
    /// An instance was removed, or moved to a service that is not watched.
    Deregistered {
        /// The index.
        index: u64,
        /// The instance as it was.
        #[serde(flatten)]
        instance: Instance,
    },
    /// An instance was not heard from in time.
    Expired {
        /// The index.
        index: u64,
        /// The instance as it was.
        #[serde(flatten)]
        instance: Instance,
    },
    /// Another gateway document is current; only for those who watch everything.
    Config {
        /// The index.
        index: u64,
        /// Its version.
        version: u64,
    },
}

/// A watch. Reads only while [`Watch::next`] is awaited.
pub struct Watch {
    client: Client,
    path: String,
    /// The place of the node that it is at, or that is asked next.
    place: usize,
    stream: Option<Stream>,
    /// The index that was reached.
    last: Option<u64>,
}

struct Stream {
    connection: Connection,
    body: Incoming,
    /// What came of blocks that are not whole, and up to where there is no end of one.
    text: Vec<u8>,
    searched: usize,
    heard: Instant,
}

/// One block of a stream.
#[derive(Debug, Default, PartialEq, Eq)]
struct Block {
    name: String,
    data: String,
    /// A node's word that everything up to this index was told.
    reached: Option<u64>,
}

/// Why a node did not let a watcher in.
enum Closed {
    /// The next one may.
    Try(String),
    /// No node will.
    Never(Error),
}

// === impl Event ===

impl Event {
    /// The index at which it happened.
    #[must_use]
    pub fn index(&self) -> u64 {
        match self {
            Self::Snapshot { index, .. }
            | Self::Registered { index, .. }
            | Self::Updated { index, .. }
            | Self::Deregistered { index, .. }
            | Self::Expired { index, .. }
            | Self::Config { index, .. } => *index,
        }
    }
}

// === impl Watch ===

impl Watch {
    pub(super) async fn begin(client: &Client, service: Option<&str>) -> Result<Self, Error> {
        let path = match service {
            Some(name) => format!("/v1/watch?name={}", encode(name)),
            None => "/v1/watch".to_owned(),
        };
        let place = client.in_turn().next().map_or(0, |(place, _)| place);
        let mut watch = Self { client: client.clone(), path, place, stream: None, last: None };
        watch.stream = Some(watch.round().await?);
        Ok(watch)
    }

    /// What happened next. Waits for as long as it takes, through the loss of any node; while none can be
    /// reached it tries again. Cancel-safe: nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// When a node refuses it for a reason that will not pass, as for want of a credential.
    pub async fn next(&mut self) -> Result<Event, Error> {
        loop {
            let Some(stream) = &mut self.stream else {
                self.stream = Some(self.reconnect().await?);
                continue;
            };
            while let Some(block) = stream.block() {
                self.last = block.reached.max(self.last);
                if block.name == "end" {
                    break;
                }
                if let Some(event) = block.event() {
                    // A snapshot may be of an older index: after a restore it is what holds.
                    self.last = Some(event.index());
                    return Ok(event);
                }
            }
            if !stream.more().await {
                self.stream = None;
                self.place += 1;
            }
        }
    }

    async fn reconnect(&mut self) -> Result<Stream, Error> {
        let mut pause = PAUSE_MIN;
        loop {
            match self.round().await {
                Err(Error::Unreachable(_)) => {}
                done => return done,
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Asks every node once, from the one whose turn it is.
    async fn round(&mut self) -> Result<Stream, Error> {
        let mut failures = Vec::new();
        let nodes = self.client.nodes.clone();
        for _ in 0..nodes.len() {
            let node = &nodes[self.place % nodes.len()];
            match self.open(node).await {
                Ok(stream) => return Ok(stream),
                Err(Closed::Never(error)) => return Err(error),
                Err(Closed::Try(problem)) => failures.push((node, problem)),
            }
            self.place += 1;
        }
        Err(self.client.unreachable(&failures))
    }

    async fn open(&self, node: &str) -> Result<Stream, Closed> {
        let mut call = Call::get(&*self.path);
        if let Some(last) = self.last {
            call.headers.push((http::HeaderName::from_static("last-event-id"), last.to_string()));
        }
        let request = self.client.request(node, &call);
        let request = request.map_err(|error| Closed::Never(Error::Address(error.to_string())))?;
        let opened = async {
            let mut connection = Connection::open(node, self.client.connector()).await?;
            let response = connection.send(request).await?;
            Ok::<_, String>((connection, response))
        };
        let (mut connection, response) = match tokio::time::timeout(self.client.answer_timeout, opened).await
        {
            Ok(opened) => opened.map_err(Closed::Try)?,
            Err(_) => return Err(Closed::Try("no answer in time".into())),
        };
        let (head, body) = response.into_parts();
        if head.status == StatusCode::OK {
            return Ok(Stream { connection, body, text: Vec::new(), searched: 0, heard: Instant::now() });
        }
        let body = connection.driven(Limited::new(body, ANSWER_MAX).collect());
        let body = match tokio::time::timeout(self.client.answer_timeout, body).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(_)) | Err(_) => Bytes::new(),
        };
        let error = Reply { status: head.status, body }.into_error();
        // What is the client's fault is so at every node.
        Err(if head.status.is_client_error() { Closed::Never(error) } else { Closed::Try(error.to_string()) })
    }
}

// === impl Stream ===

impl Stream {
    /// Waits for more of it; false: it has ended, or there was silence for too long.
    async fn more(&mut self) -> bool {
        let frame = self.connection.driven(self.body.frame());
        let Ok(Some(Ok(frame))) = tokio::time::timeout_at(self.heard + SILENCE, frame).await else {
            return false;
        };
        self.heard = Instant::now();
        if let Ok(bytes) = frame.into_data() {
            self.text.extend_from_slice(&bytes);
        }
        self.text.len() <= ANSWER_MAX
    }

    /// The next whole block.
    fn block(&mut self) -> Option<Block> {
        let Some(end) = memchr::memmem::find(&self.text[self.searched..], b"\n\n") else {
            // The first half of an end may be there.
            self.searched = self.text.len().saturating_sub(1);
            return None;
        };
        let end = self.searched + end;
        let block = Block::read(&String::from_utf8_lossy(&self.text[..end]));
        self.text.drain(..end + 2);
        self.searched = 0;
        Some(block)
    }
}

// === impl Block ===

impl Block {
    fn read(text: &str) -> Self {
        let mut block = Self::default();
        for line in text.lines() {
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "event" => value.clone_into(&mut block.name),
                "data" => block.data.push_str(value),
                "" => block.reached = value.strip_prefix("index=").and_then(|index| index.parse().ok()),
                _ => {}
            }
        }
        block
    }

    /// None: a comment, or something that a later version tells of.
    fn event(self) -> Option<Event> {
        let Value::Object(mut fields) = serde_json::from_str(&self.data).ok()? else { return None };
        fields.insert("event".to_owned(), self.name.into());
        serde_json::from_value(Value::Object(fields)).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_read_as_a_node_writes_them() {
        let instance = r#"{"id":"a","name":"api","address":"h:1","ttl":"1500ms","weight":1,"metadata":{},"tags":["x"],"epoch":7,"expires_in_ms":1500,"index":7}"#;
        let block = Block::read(&format!("id: 7\nevent: registered\ndata: {instance}"));
        let Some(Event::Registered { index: 7, instance }) = block.event() else { panic!("it is one") };
        assert_eq!((instance.ttl, instance.epoch), (Duration::from_millis(1500), 7));
        let snapshot = Block::read("id: 9\nevent: snapshot\ndata: {\"index\":9,\"instances\":[]}");
        let expected = Event::Snapshot { index: 9, instances: Vec::new(), config_version: None };
        assert_eq!(snapshot.event(), Some(expected));
        assert_eq!(Block::read(": index=12").reached, Some(12));
        assert_eq!(Block::read("event: later\ndata: {\"index\":1}").event(), None);
        assert_eq!(Block::read(":").event(), None);
    }
}
