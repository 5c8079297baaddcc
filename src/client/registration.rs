//! An instance that is registered for as long as its guard lives.
//!
//! Invariants: it beats three times within its life, at any node that answers; when the cluster has forgotten
//! it, it registers again; it deregisters once the guard is closed or dropped, or the attempt is over in
//! [`FAREWELL`], and its life ends by itself.

use std::{collections::BTreeMap, time::Duration};

use http::{Method, StatusCode};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::json;
use tokio::{sync::oneshot, task::JoinHandle};

use super::{Call, Client, Error, instance_path};

/// Between two tries while no node takes the registration.
const RETRY: Duration = Duration::from_millis(250);

/// The most that a node is given to have a beat taken: its own default.
const BEAT_TIMEOUT_MAX: Duration = Duration::from_secs(5);

/// How long deregistering may take.
const FAREWELL: Duration = Duration::from_secs(3);

/// The life without a heartbeat unless it is given.
const TTL_DEFAULT: Duration = Duration::from_secs(30);

/// One instance of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Unique in the cluster.
    pub id: String,
    /// The service.
    pub name: String,
    /// `host:port`.
    pub address: String,
    /// How long it lives without a heartbeat; zero: for ever.
    #[serde(serialize_with = "write_ttl", deserialize_with = "read_ttl")]
    pub ttl: Duration,
    /// For the weighted balancers, at least 1.
    pub weight: u32,
    /// Free to use.
    pub metadata: BTreeMap<String, String>,
    /// Free to use, and to filter by.
    pub tags: Vec<String>,
    /// The index at which this life began; given by the cluster.
    #[serde(default)]
    pub epoch: u64,
}

/// Keeps an instance registered; deregisters it when it is dropped.
///
/// Dropping needs the runtime to live on for a moment: what has to be sure of it awaits [`Registration::close`].
#[derive(Debug)]
#[must_use = "the instance is deregistered when this is dropped"]
pub struct Registration {
    instance: Instance,
    stop: oneshot::Sender<()>,
    keeper: JoinHandle<Result<(), Error>>,
}

// === impl Instance ===

impl Instance {
    /// An instance of `name` at `address`, a `host:port`, with a life of 30 s and an id made of both: a process
    /// that comes back at the same address replaces itself.
    #[must_use]
    pub fn new(name: impl Into<String>, address: impl Into<String>) -> Self {
        let (name, address) = (name.into(), address.into());
        Self {
            id: format!("{name}-{address}"),
            name,
            address,
            ttl: TTL_DEFAULT,
            weight: 1,
            metadata: BTreeMap::new(),
            tags: Vec::new(),
            epoch: 0,
        }
    }

    fn registration(&self) -> Call {
        let Self { id, name, address, ttl, weight, metadata, tags, epoch: _ } = self;
        let body = json!({"id": id, "name": name, "address": address, "ttl": format!("{}ms", ttl.as_millis()),
            "weight": weight, "metadata": metadata, "tags": tags});
        // It has an id: twice is once.
        Call::new(Method::POST, "/v1/services").json(&body).repeatable()
    }
}

fn write_ttl<S: Serializer>(ttl: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    match ttl.as_millis() {
        ms if ms % 1000 == 0 => serializer.collect_str(&format_args!("{}s", ms / 1000)),
        ms => serializer.collect_str(&format_args!("{ms}ms")),
    }
}

fn read_ttl<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    crate::config::parse_duration(&text).map_err(|_| de::Error::custom(format!("`{text}` is no duration")))
}

// === impl Registration ===

impl Registration {
    pub(super) async fn begin(client: &Client, instance: Instance) -> Result<Self, Error> {
        let instance = register(client, &instance).await?;
        let (stop, stopped) = oneshot::channel();
        let keeper = tokio::spawn(keep(client.clone(), instance.clone(), stopped));
        Ok(Self { instance, stop, keeper })
    }

    /// The instance as it was first registered.
    #[must_use]
    pub fn instance(&self) -> &Instance {
        &self.instance
    }

    /// Deregisters it, and returns when that is done.
    ///
    /// # Errors
    /// When no node took it in time: its life then ends by itself.
    pub async fn close(self) -> Result<(), Error> {
        drop(self.stop);
        match self.keeper.await {
            Ok(deregistered) => deregistered,
            Err(error) => Err(Error::Unknown(format!("the instance's keeper has ended: {error}"))),
        }
    }
}

async fn register(client: &Client, instance: &Instance) -> Result<Instance, Error> {
    let reply = client.call(&instance.registration()).await?;
    serde_json::from_slice(&reply.body)
        .map_err(|error| Error::Answer(format!("the answer is no instance: {error}")))
}

/// Beats until `stopped` resolves, then deregisters.
async fn keep(client: Client, instance: Instance, stopped: oneshot::Receiver<()>) -> Result<(), Error> {
    tokio::select! {
        // The guard sends nothing: it is gone.
        _ = stopped => {}
        () = stay(&client, &instance) => {}
    }
    let farewell = Call::new(Method::DELETE, instance_path(&instance.id)).repeatable();
    match tokio::time::timeout(FAREWELL, client.call(&farewell)).await {
        // Forgotten already, as after a first try whose answer was lost.
        Ok(Err(Error::Refused { status: 404, .. })) => Ok(()),
        Ok(done) => done.map(drop),
        Err(_) => Err(Error::Unknown(format!("no node answered within {FAREWELL:?}"))),
    }
}

/// Keeps `instance` alive, for ever.
async fn stay(client: &Client, instance: &Instance) {
    if instance.ttl.is_zero() {
        return std::future::pending().await;
    }
    let period = instance.ttl / 3;
    // A node that hangs must not cost the life: a second one is asked within the same period.
    let client = client.with_timeout(period.mul_f64(0.75).max(RETRY));
    // Nor one that hears no leader: it says so earlier, and all of three nodes can be asked in two periods.
    let asked = (period / 2).min(BEAT_TIMEOUT_MAX);
    let path = format!("{}/heartbeat?timeout={}ms", instance_path(&instance.id), asked.as_millis());
    let beat = Call::new(Method::PUT, path).repeatable();
    loop {
        tokio::time::sleep(period).await;
        match client.send(&beat).await {
            Ok(reply) if reply.status == StatusCode::NOT_FOUND => {
                while register(&client, instance).await.is_err() {
                    tokio::time::sleep(RETRY).await;
                }
            }
            // What could not be told now is told with the next beat: three fit into a life.
            Ok(_) | Err(_) => {}
        }
    }
}
