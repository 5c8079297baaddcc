//! Clients that write through all nodes at once.
//!
//! Job: a stream of registrations, removals, heartbeats, reads, documents and requests that must be refused,
//! from the seed; and, below, other streams of other things. Invariants: here, an id is written by one client only, and never again after an operation on it
//! became unknown, so that what may be there stays easy to say; no content is sent twice. Neighbours:
//! `client` asks and records; a scenario starts and stops it.

mod contended;
mod documents;
mod leases;
mod traffic;
mod watches;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::json;

use crate::{
    client::{BAD_DOCUMENT, Client, Instance, MARKER, Nodes, Patience},
    history::{Outcome, Recorder, Seen},
};

/// How long a client waits: longer than the node is asked to, so that a node can say that it does not know.
pub const PATIENCE: Patience = Patience { asked: Some(Duration::from_secs(2)), own: Duration::from_secs(4) };

/// Who leads now is not worth a long wait.
const OBSERVER_PATIENCE: Patience =
    Patience { asked: Some(Duration::from_millis(400)), own: Duration::from_millis(600) };

/// Between two questions who leads.
const OBSERVE: Duration = Duration::from_millis(100);

/// Instances that one client keeps; beyond, it removes more than it adds.
const OWNED_MAX: usize = 400;

/// What is sent along with an instance: mostly little, sometimes enough to fill a log entry.
const PAYLOAD_BYTES: [usize; 3] = [16, 2 << 10, 12 << 10];

/// What clients do while faults are injected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    /// few instances that everybody writes and reads
    Registry,
    /// instances that live by heartbeats, and some that fall silent
    Leases,
    /// documents that several replace, and what each proxy serves
    Documents,
    /// requests through every proxy
    Traffic,
    /// watchers at one node after another, while instances come and go
    Watches,
    /// as `registry`, while nodes are added, promoted, removed and replaced, and the leadership goes round
    Membership,
}

/// Where clients work, and as who.
pub struct Site {
    /// The nodes' admin API.
    pub admin: Nodes,
    /// Their proxies.
    pub web: Nodes,
    /// Where all of it is recorded.
    pub recorder: Arc<Recorder>,
    /// Where everything random comes from.
    pub seed: u64,
    /// How many clients there are.
    pub clients: usize,
}

/// What a client does next; it tells how long it pauses then.
type Step = Box<dyn FnMut() -> Duration + Send>;

/// The running clients. They stop when it is dropped.
pub struct Workload {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// One client and what it knows to be there.
struct Writer {
    client: Client,
    rng: StdRng,
    owned: Vec<Instance>,
    next: u64,
}

// === impl Work ===

impl Work {
    /// So many acknowledged writes are to be had even from a cluster that is injured most of the time.
    pub fn acknowledged_per_minute(self) -> usize {
        match self {
            Self::Registry | Self::Watches | Self::Membership => 300,
            Self::Leases | Self::Documents => 15,
            Self::Traffic => 10,
        }
    }
}

// === impl Workload ===

impl Workload {
    /// Starts `clients` clients that write what is theirs alone, each of which pauses up to `pause_ms_max`
    /// after every operation.
    pub fn start(
        clients: usize,
        pause_ms_max: u64,
        nodes: &Nodes,
        recorder: &Arc<Recorder>,
        seed: u64,
    ) -> Self {
        let clients = (0..clients).map(|index| {
            let client = Client::new(format!("c{index}"), nodes.clone(), recorder.clone(), PATIENCE);
            let rng = StdRng::seed_from_u64(seed.wrapping_add(index as u64));
            let mut writer = Writer { client, rng, owned: Vec::new(), next: 0 };
            let step = move || {
                writer.step();
                Duration::from_millis(writer.rng.random_range(0..=pause_ms_max))
            };
            Box::new(step) as Step
        });
        Self::spawn(clients)
    }

    /// Starts the clients of this work, and one that asks who leads.
    pub fn of(work: Work, site: &Site) -> io::Result<Self> {
        let clients: Box<dyn Iterator<Item = Step>> = match work {
            Work::Registry | Work::Membership => Box::new(contended::clients(site)),
            Work::Leases => Box::new(leases::clients(site)),
            Work::Documents => Box::new(documents::clients(site)),
            Work::Traffic => Box::new(traffic::clients(site)?),
            Work::Watches => Box::new(watches::clients(site)),
        };
        Ok(Self::spawn(clients.chain(std::iter::once(observer(site)))))
    }

    /// Starts a thread for each of `clients`, which takes its steps again and again.
    fn spawn(clients: impl Iterator<Item = Step>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = clients
            .map(|mut step| {
                let stop = stop.clone();
                thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        thread::sleep(step());
                    }
                })
            })
            .collect();
        Self { stop, threads }
    }

    /// Stops the clients and waits for what they have begun. False: one of them failed.
    pub fn stop(mut self) -> bool {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).all(|thread| thread.join().is_ok())
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

// === impl Site ===

impl Site {
    fn client(&self, name: &str, patience: Patience) -> Client {
        Client::new(name.to_owned(), self.admin.clone(), self.recorder.clone(), patience)
    }

    fn web_client(&self, name: &str, patience: Patience) -> Client {
        Client::new(name.to_owned(), self.web.clone(), self.recorder.clone(), patience)
    }
}

/// One term has one leader (Raft's election safety), and elections give an expiry more time: somebody has to look.
fn observer(site: &Site) -> Step {
    let mut client = site.client("observer", OBSERVER_PATIENCE);
    let mut turn = 0;
    Box::new(move || {
        turn += 1;
        client.status(turn % client.nodes());
        OBSERVE
    })
}

// === impl Writer ===

impl Writer {
    fn step(&mut self) {
        let node = self.rng.random_range(0..self.client.nodes());
        let registers = if self.owned.len() < OWNED_MAX { 50 } else { 15 };
        match self.rng.random_range(0..100) {
            choice if choice < registers => self.register(node),
            50..53 => self.register_invalid(node),
            53..54 => self.put_config_stale(node),
            54..56 => self.put_config(node),
            56..60 => self.replace(node),
            60..68 => self.heartbeat(node),
            68..76 => self.get(node),
            _ => self.deregister(node),
        }
    }

    fn instance(&mut self, id: String) -> Instance {
        let length = match self.rng.random_range(0..1000) {
            0..950 => PAYLOAD_BYTES[0],
            950..995 => PAYLOAD_BYTES[1],
            _ => PAYLOAD_BYTES[2],
        };
        let mut payload = String::with_capacity(length);
        while payload.len() < length {
            payload.push_str(&format!("{:016x}", self.rng.random::<u64>()));
        }
        let name = format!("service-{}", self.rng.random_range(0..8));
        Instance {
            id,
            name,
            address: format!("127.0.0.1:{}", self.rng.random_range(1..=65_535)),
            payload,
            ttl_ms: 0,
        }
    }

    fn fresh_id(&mut self) -> String {
        self.next += 1;
        format!("{}-{}", self.client.name(), self.next)
    }

    fn register(&mut self, node: usize) {
        let id = self.fresh_id();
        let instance = self.instance(id);
        if let Outcome::Ok { .. } = self.client.register(node, &instance) {
            self.owned.push(instance);
        }
    }

    /// A new content under an id that is there.
    fn replace(&mut self, node: usize) {
        let Some(was) = self.take_owned() else { return };
        let instance = self.instance(was.id.clone());
        match self.client.register(node, &instance) {
            Outcome::Ok { .. } => self.owned.push(instance),
            Outcome::Fail { .. } => self.owned.push(was),
            Outcome::Unknown { .. } => {}
        }
    }

    fn deregister(&mut self, node: usize) {
        let Some(instance) = self.take_owned() else { return };
        if let Outcome::Fail { status, .. } = self.client.deregister(node, &instance.id)
            && status != Some(404)
        {
            self.owned.push(instance);
        }
    }

    fn heartbeat(&mut self, node: usize) {
        if let Some(index) = self.any_owned() {
            self.client.heartbeat(node, &self.owned[index].id);
        }
    }

    fn get(&mut self, node: usize) {
        if let Some(index) = self.any_owned() {
            self.client.get(node, &self.owned[index].id);
        }
    }

    fn register_invalid(&mut self, node: usize) {
        let id = self.fresh_id();
        let instance = self.instance(id);
        let mut body = instance.body();
        let flaw = match self.rng.random_range(0..5) {
            0 => {
                body["name"] = json!(null);
                "its name is null"
            }
            1 => {
                body["address"] = json!("nowhere");
                "its address has no port"
            }
            2 => {
                body["weight"] = json!("heavy");
                "its weight is a string"
            }
            3 => {
                body["ttl"] = json!("soon");
                "its ttl is no duration"
            }
            _ => {
                let whole = body.to_string();
                let cut = &whole[..whole.len() - 2];
                self.client.register_invalid(node, &instance, "its JSON is cut off", cut);
                return;
            }
        };
        self.client.register_invalid(node, &instance, flaw, &body.to_string());
    }

    /// Reads the document and replaces it, as an operator would.
    fn put_config(&mut self, node: usize) {
        let Some(version) = self.version(node) else { return };
        let marker = format!("{MARKER}{}", self.fresh_id());
        self.client.put_config(node, &marker, version, None);
    }

    fn put_config_stale(&mut self, node: usize) {
        let Some(version) = self.version(node) else { return };
        let marker = format!("{MARKER}{}", self.fresh_id());
        if self.rng.random() {
            self.client.put_config(node, &marker, version + 1_000_000, Some("its If-Match is no version"));
        } else {
            self.client.put_config(node, &marker, version, Some(BAD_DOCUMENT));
        }
    }

    fn version(&mut self, node: usize) -> Option<u64> {
        match self.client.get_config(node, false, None) {
            Outcome::Ok { seen: Seen::Document { version, .. } } => Some(version),
            _ => None,
        }
    }

    fn any_owned(&mut self) -> Option<usize> {
        (!self.owned.is_empty()).then(|| self.rng.random_range(0..self.owned.len()))
    }

    fn take_owned(&mut self) -> Option<Instance> {
        self.any_owned().map(|index| self.owned.swap_remove(index))
    }
}
