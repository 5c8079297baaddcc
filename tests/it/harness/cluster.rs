//! Real gogate processes, each with its own folder and ports.

use std::{
    collections::BTreeSet,
    fs::File,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::Mutex,
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;

use super::{call, eventually, get, json};

/// How long a node may take to be ready, on a busy machine.
const READY: Duration = Duration::from_secs(30);

/// How long a process may take to end after SIGTERM.
const END: Duration = Duration::from_secs(15);

/// Nodes on loopback.
pub struct TestCluster {
    pub dir: TempDir,
    nodes: Vec<Node>,
}

struct Node {
    name: String,
    admin: SocketAddr,
    web: SocketAddr,
    peer: String,
    file: PathBuf,
    process: Option<Program>,
}

/// A process that is killed when it is dropped.
pub struct Program {
    child: Child,
}

/// The program under test.
pub fn gogate() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gogate"));
    command.stdin(Stdio::null());
    command
}

/// An address that nothing listens on, given once. Not from the range that outgoing connections take their
/// ports from: a node that restarts must find its port free.
pub fn free_address() -> SocketAddr {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().unwrap();
    loop {
        let port = 12_000 + rand::random_range(0..18_000);
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        if TcpListener::bind(address).is_ok() && given.insert(port) {
            return address;
        }
    }
}

// === impl TestCluster ===

impl TestCluster {
    /// Starts `count` nodes, without a document, and waits until they are ready and have a leader.
    pub fn start(count: usize) -> Self {
        let mut cluster = Self::prepare(count);
        for node in 0..count {
            cluster.start_node(node);
        }
        cluster.wait_until_ready();
        cluster
    }

    /// Writes the node files and starts nothing.
    pub fn prepare(count: usize) -> Self {
        let dir = TempDir::new().unwrap();
        let peers: Vec<String> = (0..count).map(|_| free_address().to_string()).collect();
        let nodes = (0..count).map(|place| Node::prepare(dir.path(), place, &peers)).collect();
        Self { dir, nodes }
    }

    /// Waits until every node that runs is ready and knows the same leader.
    pub fn wait_until_ready(&self) {
        for node in &self.nodes {
            if node.process.is_none() {
                continue;
            }
            eventually(READY, &format!("{} is ready", node.name), || {
                match get(node.admin, "/readyz?verbose") {
                    Ok(response) if response.status == 200 && response.text().contains("[+] quorum") => {
                        Ok(())
                    }
                    Ok(response) => Err(response.text()),
                    Err(error) => Err(error.to_string()),
                }
            });
        }
    }

    /// Writes the file of one more node, which waits to be let in; returns its place.
    pub fn prepare_waiting(&mut self, role: &str) -> usize {
        let place = self.nodes.len();
        let cluster = format!("{{ name: test, join: true, role: {role} }}");
        self.nodes.push(Node::write(self.dir.path(), place, &free_address().to_string(), &cluster));
        place
    }

    pub fn start_node(&mut self, node: usize) {
        let Node { name, file, process, .. } = &mut self.nodes[node];
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join(format!("{name}.log")))
            .unwrap();
        let child =
            gogate().args(["serve", "--config"]).arg(file).stderr(log).stdout(Stdio::null()).spawn().unwrap();
        *process = Some(Program { child });
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self, node: usize) {
        self.nodes[node].process.take().expect("it runs");
    }

    /// SIGTERM, and waits until it is gone.
    pub fn stop(&mut self, node: usize) {
        let mut process = self.nodes[node].process.take().expect("it runs");
        let status = process.terminate();
        assert!(status.success(), "{} ended with {status}", self.nodes[node].name);
    }

    /// Sends a signal by its name.
    pub fn signal(&self, node: usize, signal: rustix::process::Signal) {
        self.nodes[node].process.as_ref().expect("it runs").signal(signal);
    }

    /// Bounds the descriptors that a node may have open from now on.
    pub fn limit_descriptors(&self, node: usize, count: u64) {
        let process = self.nodes[node].process.as_ref().expect("it runs");
        let process = rustix::process::Pid::from_child(&process.child);
        let limit = rustix::process::Rlimit { current: Some(count), maximum: Some(1024) };
        rustix::process::prlimit(Some(process), rustix::process::Resource::Nofile, limit).unwrap();
    }

    /// Removes what a node keeps on disk.
    pub fn wipe(&mut self, node: usize) {
        assert!(self.nodes[node].process.is_none(), "it runs");
        std::fs::remove_dir_all(self.data_dir(node)).unwrap();
    }

    pub fn data_dir(&self, node: usize) -> PathBuf {
        self.dir.path().join(&self.nodes[node].name)
    }

    /// Where other nodes reach it.
    pub fn peer(&self, node: usize) -> &str {
        &self.nodes[node].peer
    }

    /// What it has logged.
    pub fn log(&self, node: usize) -> String {
        std::fs::read_to_string(self.dir.path().join(format!("{}.log", self.nodes[node].name))).unwrap()
    }

    /// `gogate` with the nodes' admin addresses: all of them, or one.
    pub fn cli(&self, node: Option<usize>, arguments: &[&str]) -> (Option<i32>, String, String) {
        let admins = node.map_or_else(|| self.admins(), |node| format!("http://{}", self.admin(node)));
        run(gogate().args(["--admin", &admins]).args(arguments))
    }

    pub fn file(&self, node: usize) -> &Path {
        &self.nodes[node].file
    }

    pub fn admin(&self, node: usize) -> SocketAddr {
        self.nodes[node].admin
    }

    pub fn web(&self, node: usize) -> SocketAddr {
        self.nodes[node].web
    }

    /// The admin addresses of all nodes, as the command line takes them.
    pub fn admins(&self) -> String {
        let urls: Vec<String> = self.nodes.iter().map(|node| format!("http://{}", node.admin)).collect();
        urls.join(",")
    }

    /// Applies a document at `node`; panics unless all nodes run it.
    #[track_caller]
    pub fn apply(&self, node: usize, document: &str) -> Value {
        let (status, answer) = json(self.admin(node), "PUT", "/v1/config?timeout=20s", document);
        assert_eq!(status, 200, "{answer}");
        answer
    }

    /// Registers an instance at `node` that never expires; panics unless it is acknowledged.
    #[track_caller]
    pub fn register(&self, node: usize, id: &str, name: &str, address: SocketAddr) -> Value {
        let body = format!(r#"{{"id":"{id}","name":"{name}","address":"{address}","ttl":"0s"}}"#);
        let (status, answer) = json(self.admin(node), "POST", "/v1/services?timeout=20s", &body);
        assert!(matches!(status, 200 | 201), "{answer}");
        answer
    }

    /// The ids of all instances, as `node` knows them by a linearizable read.
    pub fn instances(&self, node: usize) -> Result<BTreeSet<String>, String> {
        let response =
            call(self.admin(node), "GET", "/v1/services", &[], "").map_err(|error| error.to_string())?;
        if response.status != 200 {
            return Err(response.text());
        }
        let answer = response.json();
        let ids = answer.as_array().into_iter().flatten().filter_map(|instance| instance["id"].as_str());
        Ok(ids.map(str::to_owned).collect())
    }

    /// What `GET /v1/cluster` says at `node`.
    pub fn status(&self, node: usize) -> Result<Value, String> {
        get(self.admin(node), "/v1/cluster")
            .map(|response| response.json())
            .map_err(|error| error.to_string())
    }

    /// The place of the leader among the nodes.
    pub fn leader(&self) -> usize {
        eventually(READY, "a leader stands", || {
            let Some(node) = self.nodes.iter().position(|node| node.process.is_some()) else {
                return Err("no node runs".into());
            };
            let status = self.status(node)?;
            let leader =
                status["nodes"].as_array().into_iter().flatten().find(|node| node["id"] == status["leader"]);
            let name = leader.and_then(|leader| leader["name"].as_str());
            self.nodes
                .iter()
                .position(|node| Some(node.name.as_str()) == name)
                .ok_or_else(|| status.to_string())
        })
    }
}

impl Drop for TestCluster {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for node in &self.nodes {
            let log = std::fs::read_to_string(self.dir.path().join(format!("{}.log", node.name)))
                .unwrap_or_default();
            let last: Vec<&str> = log.lines().rev().take(40).collect();
            eprintln!("--- the log of {}", node.name);
            for line in last.iter().rev() {
                eprintln!("{line}");
            }
        }
    }
}

// === impl Node ===

impl Node {
    fn prepare(dir: &Path, place: usize, peers: &[String]) -> Self {
        let (expect, list) = (peers.len(), peers.join(", "));
        let cluster = format!("{{ name: test, expect: {expect}, peers: [{list}] }}");
        Self::write(dir, place, &peers[place], &cluster)
    }

    fn write(dir: &Path, place: usize, peer: &str, cluster: &str) -> Self {
        let name = format!("n{}", place + 1);
        let (admin, web, file) = (free_address(), free_address(), dir.join(format!("{name}.yaml")));
        let data = dir.join(&name);
        let content = format!(
            "node:    {{ name: {name}, data_dir: \"{}\", workers: 1 }}\n\
             admin:   {{ listen: \"{admin}\" }}\n\
             peer:    {{ listen: \"{peer}\" }}\n\
             cluster: {cluster}\n\
             bind:    {{ web: \"{web}\" }}\n\
             drain:   {{ wait: 0s, deadline: 2s }}\n",
            data.display()
        );
        std::fs::write(&file, content).unwrap();
        Self { name, admin, web, peer: peer.to_owned(), file, process: None }
    }
}

// === impl Program ===

impl Program {
    /// Starts `command` and owns the process.
    pub fn start(command: &mut Command) -> Self {
        Self { child: command.spawn().unwrap() }
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal).unwrap();
    }

    /// SIGTERM, then waits for the end.
    pub fn terminate(&mut self) -> std::process::ExitStatus {
        self.signal(rustix::process::Signal::TERM);
        eventually(END, "the process ends after SIGTERM", || match self.child.try_wait() {
            Ok(Some(status)) => Ok(status),
            Ok(None) => Err("it runs".to_owned()),
            Err(error) => Err(error.to_string()),
        })
    }

    /// What it has written to its piped stdout; takes it once.
    pub fn stdout(&mut self) -> std::process::ChildStdout {
        self.child.stdout.take().expect("stdout is piped")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a command to its end; its output as text.
pub fn run(command: &mut Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (status.code(), text(stdout), text(stderr))
}
