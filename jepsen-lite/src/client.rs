//! One client of one cluster: asks nodes through the public admin API and records what it saw.
//!
//! Job: turn a [`Call`] into a request, the answer into an [`Outcome`], and record both. Invariants: only a
//! request that was never sent, or that was answered with a refusal, is a failure; a timeout, a broken
//! connection and every answer that the contract does not explain are `unknown`. Neighbours: `http` moves the
//! bytes, `history` keeps the record, `workload` and the scenarios decide what to ask.

mod events;
mod grpc;
mod http;

use std::{
    borrow::Cow,
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use self::{
    events::{Events, ServerEvent},
    grpc::GrpcEvents,
    http::{Answer, Connection, HttpError},
};
use crate::history::{Call, Change, Member, Outcome, Recorder, Seen, Told, content_hash};

/// What one value of an instance's metadata may hold.
const METADATA_BYTES: usize = 240;

/// Between two looks whether a node has taken another's place.
const REPLACEMENT_LOOK: Duration = Duration::from_millis(100);

/// Where a node's admin API is, by the node's name.
pub type Nodes = Arc<[(String, SocketAddr)]>;

/// A client. It has one thing in flight at a time.
pub struct Client {
    name: String,
    nodes: Nodes,
    connections: Vec<Option<Connection>>,
    recorder: Arc<Recorder>,
    patience: Patience,
}

/// How long a client waits.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Told to the node as `?timeout=`; none: the node's own default.
    pub asked: Option<Duration>,
    /// After this the client gives up.
    pub own: Duration,
}

/// An instance as a client writes it.
#[derive(Debug, Clone)]
pub struct Instance {
    /// Unique in the cluster.
    pub id: String,
    /// Its service.
    pub name: String,
    /// `host:port`.
    pub address: String,
    /// Something that tells this content from every other; ASCII.
    pub payload: String,
    /// How long it lives without a heartbeat; 0: for ever.
    pub ttl_ms: u64,
}

// === impl Client ===

impl Client {
    /// A client of all `nodes`.
    pub fn new(name: String, nodes: Nodes, recorder: Arc<Recorder>, patience: Patience) -> Self {
        let connections = nodes.iter().map(|_| None).collect();
        Self { name, nodes, connections, recorder, patience }
    }

    /// Its name in the history.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many nodes there are to ask.
    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// Adds or replaces an instance.
    pub fn register(&mut self, node: usize, instance: &Instance) -> Outcome {
        let call = instance.registration(None);
        let body = instance.body().to_string();
        self.call(node, &call, "POST", "/v1/services", Some(&body), None, |answer| {
            let epoch = answer.json()?.get("epoch")?.as_u64()?;
            Some(Seen::Registered { created: answer.status == 201, epoch })
        })
    }

    /// Sends `body`, which has to be refused; `instance` is what it might be taken for.
    pub fn register_invalid(&mut self, node: usize, instance: &Instance, flaw: &str, body: &str) -> Outcome {
        let call = instance.registration(Some(flaw.to_owned()));
        self.call(node, &call, "POST", "/v1/services", Some(body), None, |_| Some(Seen::Nothing))
    }

    /// Removes an instance.
    pub fn deregister(&mut self, node: usize, id: &str) -> Outcome {
        let path = format!("/v1/services/{id}");
        let call = Call::Deregister { id: id.to_owned() };
        self.call(node, &call, "DELETE", &path, None, None, |answer| {
            Some(Seen::Removed { index: answer.header("x-gogate-index")?.parse().ok()? })
        })
    }

    /// Says that an instance lives.
    pub fn heartbeat(&mut self, node: usize, id: &str) -> Outcome {
        let path = format!("/v1/services/{id}/heartbeat");
        let call = Call::Heartbeat { id: id.to_owned() };
        self.call(node, &call, "PUT", &path, None, None, |_| Some(Seen::Nothing))
    }

    /// Reads an instance.
    pub fn get(&mut self, node: usize, id: &str) -> Outcome {
        let path = format!("/v1/services/{id}");
        let call = Call::Get { id: id.to_owned() };
        self.call(node, &call, "GET", &path, None, None, |answer| {
            let json = answer.json()?;
            let content = instance_of(&json)?.1;
            Some(Seen::Instance { content, epoch: json.get("epoch")?.as_u64()? })
        })
    }

    /// Reads all instances.
    pub fn list(&mut self, node: usize, stale: bool) -> Outcome {
        let path = if stale { "/v1/services?stale" } else { "/v1/services" };
        self.call(node, &Call::List { stale }, "GET", path, None, None, instances_in)
    }

    /// Replaces the gateway document by one that has `marker` in it, if its version is `if_match`. With a
    /// `flaw` it has to be refused.
    pub fn put_config(&mut self, node: usize, marker: &str, if_match: u64, flaw: Option<&str>) -> Outcome {
        let body = match flaw {
            Some(BAD_DOCUMENT) => json!({ "services": { marker: { "endpoints": "none" } } }),
            _ => json!({ "services": { marker: { "endpoints": [{ "address": "127.0.0.1:9" }] } } }),
        };
        self.put_document(node, &body, marker, if_match, flaw)
    }

    /// The same, with all that the document shall have in it.
    pub fn put_document(
        &mut self,
        node: usize,
        body: &Value,
        marker: &str,
        if_match: u64,
        flaw: Option<&str>,
    ) -> Outcome {
        let flaw = flaw.map(str::to_owned);
        let call = Call::PutConfig { marker: marker.to_owned(), if_match, flaw };
        let body = body.to_string();
        self.call(node, &call, "PUT", "/v1/config", Some(&body), Some(if_match), |answer| {
            Some(Seen::Version { version: answer.json()?.get("version")?.as_u64()? })
        })
    }

    /// Reads the gateway document.
    pub fn get_config(&mut self, node: usize, stale: bool, version: Option<u64>) -> Outcome {
        let path = match (stale, version) {
            (false, None) => "/v1/config".to_owned(),
            (true, None) => "/v1/config?stale".to_owned(),
            (false, Some(version)) => format!("/v1/config?version={version}"),
            (true, Some(version)) => format!("/v1/config?version={version}&stale"),
        };
        self.call(node, &Call::GetConfig { stale, version }, "GET", &path, None, None, |answer| {
            let version = answer.header("x-gogate-version")?.parse().ok()?;
            Some(Seen::Document { version, marker: marker_in(&answer.text()) })
        })
    }

    /// Asks who leads.
    pub fn status(&mut self, node: usize) -> Outcome {
        self.call(node, &Call::Status, "GET", "/v1/cluster", None, None, |answer| leader_of(&answer.json()?))
    }

    /// Asks who takes part.
    pub fn members(&mut self, node: usize) -> Outcome {
        self.call(node, &Call::Members, "GET", "/v1/cluster", None, None, |answer| {
            members_of(&answer.json()?).map(|members| Seen::Members { members })
        })
    }

    /// Has a node let in that waits at `address`, where the peers are.
    pub fn add(&mut self, node: usize, name: &str, address: SocketAddr, learner: bool) -> Outcome {
        let call = Call::Change(Change::Add { name: name.to_owned(), learner });
        let role = if learner { "learner" } else { "voter" };
        let body = json!({ "address": address.to_string(), "role": role }).to_string();
        self.call(node, &call, "POST", "/v1/cluster/members", Some(&body), None, |answer| {
            Some(Seen::Node { id: answer.json()?.get("id")?.as_u64()? })
        })
    }

    /// Has a node vote that follows.
    pub fn promote(&mut self, node: usize, id: u64) -> Outcome {
        let path = format!("/v1/cluster/members/{id}/promote");
        let call = Call::Change(Change::Promote { id });
        self.call(node, &call, "POST", &path, None, None, |_| Some(Seen::Node { id }))
    }

    /// Has a node taken out.
    pub fn remove(&mut self, node: usize, id: u64) -> Outcome {
        let path = format!("/v1/cluster/members/{id}");
        let call = Call::Change(Change::Remove { id });
        self.call(node, &call, "DELETE", &path, None, None, |_| Some(Seen::Node { id }))
    }

    /// Has another node lead.
    pub fn transfer(&mut self, node: usize, to: Option<u64>) -> Outcome {
        let call = Call::Change(Change::Transfer { to });
        let body = to.map(|to| json!({ "to": to }).to_string());
        self.call(node, &call, "POST", "/v1/cluster/transfer-leader", body.as_deref(), None, |answer| {
            Some(Seen::Node { id: answer.json()?.get("leader")?.as_u64()? })
        })
    }

    /// Waits until this node says that the place of the dead one was taken by a new one of its name, which votes.
    pub fn await_replacement(&mut self, node: usize, name: &str, dead: u64, within: Duration) -> Outcome {
        let call = Call::Change(Change::Replace { name: name.to_owned(), dead });
        let op = self.recorder.invoke(&self.name, &self.nodes[node].0, call);
        let deadline = Instant::now() + within;
        let outcome = loop {
            let answer = self.exchange(node, "GET", "/v1/cluster", None, None);
            let members = answer.ok().and_then(|answer| members_of(&answer.json()?)).unwrap_or_default();
            let new = members.iter().find(|(id, member)| {
                **id != dead && member.name == name && member.voter && !members.contains_key(&dead)
            });
            if let Some((id, _)) = new {
                break Outcome::Ok { seen: Seen::Node { id: *id } };
            }
            if Instant::now() >= deadline {
                break Outcome::Unknown { status: None, reason: "it was not seen in time".to_owned() };
            }
            std::thread::sleep(REPLACEMENT_LOOK);
        };
        self.recorder.done(op, outcome.clone());
        outcome
    }

    /// Asks the proxy for the marker of the document that it runs. This client's nodes are web addresses.
    pub fn serve(&mut self, node: usize) -> Outcome {
        self.call(node, &Call::Serve, "GET", MARKER_PATH, None, None, |answer| {
            Some(Seen::Served { marker: answer.text() })
        })
    }

    /// Sends a request through the proxy that has to be answered with `expected`. This client's nodes are web
    /// addresses.
    pub fn request(&mut self, node: usize, path: &str, expected: &str) -> Outcome {
        self.call(node, &Call::Request, "GET", path, None, None, |answer| {
            (answer.text() == expected).then_some(Seen::Nothing)
        })
    }

    /// Follows all changes from behind the index `since` on, or from a snapshot on, and records them, until then
    /// or until the stream ends. Tells where it is.
    pub fn watch(&mut self, node: usize, since: Option<u64>, until: Instant) -> Option<u64> {
        let path = since.map_or_else(|| "/v1/watch".to_owned(), |since| format!("/v1/watch?since={since}"));
        let (name, address) = &self.nodes[node];
        let Ok(mut events) = Events::open(*address, &path, until) else { return since };
        let mut last = since;
        while let Some(event) = events.next() {
            if let Some(index) = event.id {
                if let Some(told) = told_by(&event) {
                    self.recorder.watched(&self.name, name, index, told);
                }
                last = Some(index);
            }
        }
        last
    }

    /// The same over gRPC.
    pub fn watch_grpc(&mut self, node: usize, since: Option<u64>, until: Instant) -> Option<u64> {
        let (name, address) = &self.nodes[node];
        let Ok(mut events) = GrpcEvents::open(*address, since, until) else { return since };
        let mut last = since;
        while let Some(event) = events.next() {
            if let Some(told) = event.told {
                self.recorder.watched(&self.name, name, event.index, told);
            }
            last = Some(event.index);
        }
        last
    }

    /// Reads all instances, or those of one service, once something newer than `since` has happened to them, or `wait`
    /// is over.
    pub fn wait(
        &mut self,
        node: usize,
        service: Option<&str>,
        since: Option<u64>,
        wait: Duration,
    ) -> Outcome {
        let mut path = format!("/v1/services?wait={}ms", wait.as_millis());
        path.extend(service.map(|service| format!("&name={service}")));
        path.extend(since.map(|since| format!("&index={since}")));
        let call = Call::Wait { service: service.map(str::to_owned), since };
        self.call(node, &call, "GET", &path, None, None, instances_in)
    }

    /// Asks, and does not record: used to wait for something.
    pub fn probe(&mut self, node: usize, path: &str) -> bool {
        let answer = self.exchange(node, "GET", path, None, None);
        answer.is_ok_and(|answer| answer.status == 200)
    }

    #[expect(clippy::too_many_arguments, reason = "one request, spelled out; every caller is above")]
    fn call(
        &mut self,
        node: usize,
        call: &Call,
        method: &str,
        path: &str,
        body: Option<&str>,
        if_match: Option<u64>,
        see: impl FnOnce(&Answer) -> Option<Seen>,
    ) -> Outcome {
        let path = match self.patience.asked {
            None => path.to_owned(),
            Some(asked) => {
                let joint = if path.contains('?') { '&' } else { '?' };
                format!("{path}{joint}timeout={}ms", asked.as_millis())
            }
        };
        let op = self.recorder.invoke(&self.name, &self.nodes[node].0, call.clone());
        let answer = self.exchange(node, method, &path, body, if_match);
        let outcome = outcome_of(call, answer, see);
        self.recorder.done(op, outcome.clone());
        outcome
    }

    fn exchange(
        &mut self,
        node: usize,
        method: &str,
        path: &str,
        body: Option<&str>,
        if_match: Option<u64>,
    ) -> Result<Answer, HttpError> {
        let deadline = Instant::now() + self.patience.own;
        let mut connection = match self.connections[node].take().filter(Connection::is_usable) {
            Some(connection) => connection,
            None => Connection::open(self.nodes[node].1, deadline)?,
        };
        let answer = connection.exchange(method, path, body, if_match, deadline)?;
        if !answer.closes {
            self.connections[node] = Some(connection);
        }
        Ok(answer)
    }
}

/// The flaw of a document that is written with a wrong type.
pub const BAD_DOCUMENT: &str = "endpoints is not a list";

/// What an answer means for the one who asked: one table.
fn outcome_of(
    call: &Call,
    answer: Result<Answer, HttpError>,
    see: impl FnOnce(&Answer) -> Option<Seen>,
) -> Outcome {
    let answer = match answer {
        Ok(answer) => answer,
        Err(HttpError::NotSent(reason)) => return Outcome::Fail { status: None, reason },
        Err(HttpError::Lost(reason)) => return Outcome::Unknown { status: None, reason },
    };
    let status = Some(answer.status);
    match answer.status {
        200..=299 => match see(&answer) {
            Some(seen) => Outcome::Ok { seen },
            None => Outcome::Unknown { status, reason: format!("cannot be read: {}", answer.excerpt()) },
        },
        404 if matches!(call, Call::GetConfig { version: None, .. }) => {
            Outcome::Ok { seen: Seen::Document { version: 0, marker: None } }
        }
        // 503 promises that nothing was written.
        400..=499 | 503 => Outcome::Fail { status, reason: answer.excerpt() },
        _ => Outcome::Unknown { status, reason: answer.excerpt() },
    }
}

// === impl Instance ===

impl Instance {
    /// The hash of what is sent, and of what has to come back.
    pub fn content(&self) -> String {
        content_hash([&*self.id, &*self.name, &*self.address, &*self.payload])
    }

    fn registration(&self, flaw: Option<String>) -> Call {
        Call::Register { id: self.id.clone(), content: self.content(), ttl_ms: self.ttl_ms, flaw }
    }

    /// As the API takes it. A value of the metadata may not be long: the payload is spread over several.
    pub fn body(&self) -> Value {
        let pieces = self.payload.as_bytes().chunks(METADATA_BYTES).enumerate();
        let metadata: BTreeMap<String, Cow<'_, str>> =
            pieces.map(|(number, piece)| (format!("{number:03}"), String::from_utf8_lossy(piece))).collect();
        json!({
            "id": self.id, "name": self.name, "address": self.address, "ttl": format!("{}ms", self.ttl_ms), "metadata": metadata,
        })
    }
}

/// An instance's id and hash, from the API's form.
fn instance_of(value: &Value) -> Option<(String, String)> {
    let text = |key: &str| value.get(key)?.as_str();
    let (id, name, address) = (text("id")?, text("name")?, text("address")?);
    let metadata: BTreeMap<&String, &Value> = value.get("metadata")?.as_object()?.iter().collect();
    let payload = metadata.values().map(|piece| piece.as_str()).collect::<Option<String>>()?;
    Some((id.to_owned(), content_hash([id, name, address, &payload])))
}

/// What a list tells.
fn instances_in(answer: &Answer) -> Option<Seen> {
    let index = answer.header("x-gogate-index")?.parse().ok()?;
    Some(Seen::Instances { index, instances: instances_of(&answer.json()?)? })
}

/// A list, or an object with the list in it.
fn instances_of(value: &Value) -> Option<BTreeMap<String, String>> {
    let list = match value {
        Value::Array(list) => list,
        Value::Object(object) => object.values().find_map(Value::as_array)?,
        _ => return None,
    };
    list.iter().map(instance_of).collect()
}

/// What an event says of instances; those of documents say nothing of them.
fn told_by(event: &ServerEvent) -> Option<Told> {
    let data: Value = serde_json::from_str(&event.data).ok()?;
    match &*event.name {
        "snapshot" => Some(Told::Snapshot { instances: instances_of(&data)? }),
        "registered" | "updated" => {
            let (id, content) = instance_of(&data)?;
            Some(Told::Change { id, content: Some(content) })
        }
        "deregistered" | "expired" => Some(Told::Change { id: instance_of(&data)?.0, content: None }),
        _ => None,
    }
}

fn leader_of(value: &Value) -> Option<Seen> {
    let nodes = value.get("nodes")?.as_array()?;
    let leader = value.get("leader")?;
    let name = nodes
        .iter()
        .find(|node| !leader.is_null() && node.get("id") == Some(leader))
        .and_then(|node| node.get("name")?.as_str())
        .map(str::to_owned);
    let id = leader.as_u64();
    Some(Seen::Leader {
        // An id without a name is still somebody.
        leader: name.or_else(|| id.map(|id| format!("#{id}"))),
        id,
        term: value.get("term")?.as_u64()?,
        applied: value.get("applied")?.as_u64()?,
    })
}

fn members_of(value: &Value) -> Option<BTreeMap<u64, Member>> {
    let member = |node: &Value| {
        let text = |key: &str| node.get(key)?.as_str();
        let member = Member { name: text("name")?.to_owned(), voter: text("role")? == "voter" };
        Some((node.get("id")?.as_u64()?, member))
    };
    value.get("nodes")?.as_array()?.iter().map(member).collect()
}

/// The first word of a document that is a marker.
fn marker_in(document: &str) -> Option<String> {
    let rest = &document[document.find(MARKER)?..];
    let end = rest.find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '-');
    Some(rest[..end.unwrap_or(rest.len())].to_owned())
}

/// What every marker begins with.
pub const MARKER: &str = "marker-";

/// Where a document with [`marker_route`] answers its marker.
const MARKER_PATH: &str = "/marker";

/// A route by which the proxy itself answers `marker`.
pub fn marker_route(marker: &str) -> Value {
    json!({ "name": "marker", "match": { "path": MARKER_PATH }, "respond": { "status": 200, "body": marker } })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &str) -> Result<Answer, HttpError> {
        Ok(Answer { status, headers: Vec::new(), body: body.as_bytes().to_vec(), closes: false })
    }

    #[test]
    fn an_answer_is_a_failure_only_if_it_promises_that_nothing_was_written() {
        let call = Call::Deregister { id: "a".to_owned() };
        let outcome = |answer| outcome_of(&call, answer, |_| Some(Seen::Nothing));
        assert!(matches!(outcome(answer(204, "")), Outcome::Ok { .. }));
        for status in [400, 404, 412, 422, 429, 503] {
            assert!(matches!(outcome(answer(status, "")), Outcome::Fail { .. }), "{status}");
        }
        for status in [500, 502, 504, 302] {
            assert!(matches!(outcome(answer(status, "")), Outcome::Unknown { .. }), "{status}");
        }
        let refused = Err(HttpError::NotSent("refused".to_owned()));
        assert!(matches!(outcome(refused), Outcome::Fail { status: None, .. }));
        assert!(matches!(outcome(Err(HttpError::Lost("eof".to_owned()))), Outcome::Unknown { .. }));
    }

    #[test]
    fn what_is_written_hashes_like_what_is_read() {
        let instance = Instance {
            id: "a".to_owned(),
            name: "s".to_owned(),
            address: "127.0.0.1:1".to_owned(),
            payload: "p".repeat(METADATA_BYTES * 12 + 1),
            ttl_ms: 0,
        };
        let read = instance_of(&instance.body()).unwrap();
        assert_eq!(read, ("a".to_owned(), instance.content()));
        let listed = instances_of(&json!([instance.body()])).unwrap();
        assert_eq!(listed.get("a"), Some(&instance.content()));
    }

    #[test]
    fn a_marker_is_found_in_yaml_and_in_json() {
        assert_eq!(marker_in("{\"marker-c1-2\":{}}").as_deref(), Some("marker-c1-2"));
        assert_eq!(marker_in("services:\n  marker-c1-2: {}").as_deref(), Some("marker-c1-2"));
        assert_eq!(marker_in("services: {}"), None);
    }

    #[test]
    fn the_leader_goes_by_its_name() {
        let status = json!({ "leader": 2, "term": 3, "applied": 4, "nodes": [{ "id": 2, "name": "n2" }] });
        let seen = Seen::Leader { leader: Some("n2".to_owned()), id: Some(2), term: 3, applied: 4 };
        assert_eq!(leader_of(&status), Some(seen));
        let nobody = json!({ "leader": null, "term": 3, "applied": 4, "nodes": [{ "id": 2, "name": "n2" }] });
        assert_eq!(leader_of(&nobody), Some(Seen::Leader { leader: None, id: None, term: 3, applied: 4 }));
    }
}
