//! Nodes of one process with real gRPC between them and real stores.

use std::{
    collections::BTreeMap,
    net::TcpListener,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::watch;

use gogate_cluster::{
    Cluster, ClusterConfig, Secret, StartError, Timers,
    state::{Command, FORMAT, Instance, Outcome, Registration},
};

pub const TIMEOUT: Duration = Duration::from_secs(10);

/// A place for a node: its address, and the folder that outlives it.
pub struct Place {
    pub name: String,
    pub address: String,
    folder: tempfile::TempDir,
}

pub fn places(count: usize) -> Vec<Place> {
    // All are held until all are taken, so that no address is given twice.
    let listeners: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let numbered = listeners.iter().zip(1..);
    numbered
        .map(|(listener, number)| Place {
            name: format!("n{number}"),
            address: listener.local_addr().unwrap().to_string(),
            folder: tempfile::tempdir().unwrap(),
        })
        .collect()
}

impl Place {
    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub fn wipe(&self) {
        std::fs::remove_dir_all(self.data_dir()).unwrap();
    }

    /// Where its node listens; the address was free a moment ago.
    pub fn listener(&self) -> TcpListener {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            match TcpListener::bind(&self.address) {
                Ok(listener) => return listener,
                Err(error) if Instant::now() > deadline => panic!("{}: {error}", self.address),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    pub fn config(&self, peers: &[Place]) -> ClusterConfig {
        self.config_on(self.listener(), peers)
    }

    pub fn config_on(&self, listener: TcpListener, peers: &[Place]) -> ClusterConfig {
        ClusterConfig {
            name: self.name.clone(),
            data_dir: self.data_dir(),
            cluster_name: "demo".to_owned(),
            expect: peers.len(),
            peers: peers.iter().map(|peer| peer.address.clone()).collect(),
            learner: false,
            listener,
            advertise: self.address.clone(),
            admin: String::new(),
            secret: Some(Secret("between us".to_owned())),
            tls: None,
            build: "test".to_owned(),
            format: FORMAT,
            timers: Timers::default(),
        }
    }

    pub async fn start(&self, peers: &[Place]) -> Result<Cluster, StartError> {
        Cluster::start(self.config(peers)).await
    }
}

/// Starts a node at each place, all at once.
pub async fn start_all(places: &[Place]) -> Vec<Cluster> {
    let started = futures_util::future::join_all(places.iter().map(|place| place.start(places))).await;
    started.into_iter().map(|started| started.unwrap()).collect()
}

pub async fn shutdown_all(nodes: Vec<Cluster>) {
    futures_util::future::join_all(nodes.iter().map(Cluster::shutdown)).await;
}

/// Waits until `condition` holds and returns what it found.
pub async fn eventually<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    eventually_within(TIMEOUT, what, condition).await
}

pub async fn eventually_within<T>(
    timeout: Duration,
    what: &str,
    mut condition: impl FnMut() -> Option<T>,
) -> T {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {timeout:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The place in `nodes` of the one leader that all of them agree on.
pub async fn leader(nodes: &[Cluster]) -> usize {
    eventually("all nodes agree on a leader", || {
        let leader = nodes[0].status().leader?;
        let agreed = nodes.iter().all(|node| node.status().leader == Some(leader));
        nodes.iter().position(|node| agreed && node.node_id() == leader)
    })
    .await
}

pub fn registration(id: &str) -> Registration {
    Registration {
        id: id.into(),
        name: "api".into(),
        address: "10.0.0.1:9000".to_owned(),
        ttl_ms: 0,
        weight: 1,
        metadata: BTreeMap::new(),
        tags: Vec::new(),
    }
}

pub async fn register(node: &Cluster, id: &str) -> Arc<Instance> {
    match node.propose(Command::Register(registration(id)), TIMEOUT).await {
        Ok(Outcome::Registered { instance, .. }) => instance,
        other => panic!("{id} was not registered: {other:?}"),
    }
}

pub fn has(node: &Cluster, id: &str) -> bool {
    node.read(|state| state.registry().get(id).is_some())
}

/// A TCP proxy before a node: while it is shut, nothing reaches the node, and nobody is told so.
pub struct Gate {
    pub address: String,
    open: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl Gate {
    pub async fn before(target: String) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (open, opened) = watch::channel(true);
        let task = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(pass(near, target.clone(), opened.clone()));
            }
        });
        Self { address, open, task }
    }

    pub fn shut(&self) {
        self.open.send_replace(false);
    }

    pub fn open(&self) {
        self.open.send_replace(true);
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Copies both ways until the gate is shut; then holds the connection until it opens, and drops it.
async fn pass(mut near: tokio::net::TcpStream, target: String, mut open: watch::Receiver<bool>) {
    if *open.borrow() {
        let Ok(mut far) = tokio::net::TcpStream::connect(target).await else { return };
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut near, &mut far) => return,
            _ = open.wait_for(|open| !*open) => {}
        }
        let _ = open.wait_for(|open| *open).await;
    } else {
        let _ = open.wait_for(|open| *open).await;
    }
}
