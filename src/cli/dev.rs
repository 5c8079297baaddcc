//! `gogate dev`: a throw-away cluster on this machine, with sample services behind it.
//!
//! Job: real processes, each with its own node file and store, wired to each other on loopback. Invariants:
//! they end with this process, even if it is killed; their data goes with it unless `--dir` was given; a node
//! that dies is reported and left dead, because losing one is what people come here to try.

use std::{
    collections::BTreeSet,
    fs::{File, TryLockError},
    io::Write,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use clap::Args;
use http::StatusCode;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    process::Command,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::Instant,
};

use super::{
    CliError, Environment,
    client::{Call, Client},
};
use crate::config::node_file;

/// The ports that are taken if they are free; else the next free ones.
const WEB: u16 = 8081;
const ADMIN: u16 = 7071;
const PEER: u16 = 7171;
const SAMPLE: u16 = 9101;

/// The sample services, by instance.
const SAMPLES: [&str; 3] = ["hello", "hello", "time"];

/// How long the cluster may take to stand.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// Between two looks at whether it stands.
const POLL: Duration = Duration::from_millis(50);

/// How long processes may take to end before they are killed.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

const GATEWAY: &str = "\
# The gateway document: one for the whole cluster. Change it, then: gogate config apply FILE
listeners:
  web: { address: \"127.0.0.1:8080\" }   # each node of `gogate dev` opens the address in its own node file instead
services:
  hello: {}                            # instances register themselves
  time: {}
routes:
  - name: hello
    match: { path_prefix: /hello }
    service: hello
  - name: time
    match: { path_prefix: /time }
    service: time
";

#[derive(Args)]
pub(super) struct Dev {
    /// How many nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=9))]
    nodes: u16,
    /// Keep the data here; without it, it is thrown away at the end
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// One node's addresses.
struct Node {
    name: String,
    file: PathBuf,
    web: SocketAddr,
    admin: SocketAddr,
    peer: SocketAddr,
}

/// One process that was started.
struct Running {
    name: String,
    pid: i32,
    is_node: bool,
}

/// All processes that were started.
struct Processes {
    running: Vec<Running>,
    ended: mpsc::Receiver<(i32, Option<ExitStatus>)>,
    end: mpsc::Sender<(i32, Option<ExitStatus>)>,
}

/// Ports that are free now, each given once.
#[derive(Default)]
struct Ports {
    given: BTreeSet<u16>,
}

// === impl Dev ===

impl Dev {
    pub(super) async fn run(self, environment: Environment) -> Result<(), CliError> {
        let failed = |error: std::io::Error| CliError::Failed(format!("cannot listen to signals: {error}"));
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let throw_away = self.dir.is_none();
        let dir = self
            .dir
            .clone()
            .unwrap_or_else(|| std::env::temp_dir().join(format!("gogate-dev-{}", std::process::id())));
        std::fs::create_dir_all(&dir).map_err(|error| in_dir(&dir, &error))?;
        let dir = dir.canonicalize().map_err(|error| in_dir(&dir, &error))?;
        let _lock = lock(&dir)?;

        let (end, ended) = mpsc::channel(16);
        let mut processes = Processes { running: Vec::new(), ended, end };
        let result = tokio::select! {
            result = self.live(&dir, &environment, &mut processes) => result,
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
        };
        if result.is_ok() {
            say("\nstopping");
        }
        processes.stop().await;
        if throw_away && result.is_ok() {
            let _ = std::fs::remove_dir_all(&dir);
        } else {
            say(&format!("data and logs are in {}", dir.display()));
        }
        result
    }

    /// Starts everything, tells how to use it, and reports what dies.
    async fn live(
        &self,
        dir: &Path,
        environment: &Environment,
        processes: &mut Processes,
    ) -> Result<(), CliError> {
        let mut ports = Ports::default();
        let nodes = self.nodes(dir, &mut ports)?;
        say(&format!("starting {} nodes; data and logs in {}", nodes.len(), dir.display()));
        for node in &nodes {
            let args = ["serve".into(), "--config".into(), node.file.display().to_string()];
            processes.start(&node.name, &args, dir, environment, true)?;
        }
        let admin: Vec<String> = nodes.iter().map(|node| format!("http://{}", node.admin)).collect();
        let admin = admin.join(",");
        for (place, name) in SAMPLES.iter().enumerate() {
            let listen = format!("127.0.0.1:{}", ports.from(SAMPLE)?);
            let args = ["sample", "--name", name, "--listen", &listen, "--admin", &admin].map(String::from);
            processes.start(&format!("{name}-{}", place + 1), &args, dir, environment, false)?;
        }
        self.wait_until_it_stands(&nodes, processes).await?;
        say(&format!("\n{}", guide(&nodes, processes, &admin)?));
        loop {
            let (running, status) = processes.next_end().await;
            say(&obituary(&running, status, &nodes));
        }
    }

    /// The nodes of this folder, or new ones.
    fn nodes(&self, dir: &Path, ports: &mut Ports) -> Result<Vec<Node>, CliError> {
        let names: Vec<String> = (1..=self.nodes).map(|number| format!("n{number}")).collect();
        let file = |name: &str| dir.join(name).join("node.yaml");
        if names.iter().all(|name| file(name).exists()) {
            return names.into_iter().map(|name| Node::read(file(&name), name)).collect();
        }
        let gateway = dir.join("gateway.yaml");
        if !gateway.exists() {
            std::fs::write(&gateway, GATEWAY).map_err(|error| in_dir(&gateway, &error))?;
        }
        let mut nodes = Vec::new();
        for (name, number) in names.into_iter().zip(0..) {
            let mut address = |first: u16| {
                ports.from(first + number).map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
            };
            let (web, admin, peer) = (address(WEB)?, address(ADMIN)?, address(PEER)?);
            nodes.push(Node { file: file(&name), name, web, admin, peer });
        }
        let peers: Vec<String> = nodes.iter().map(|node| node.peer.to_string()).collect();
        for node in &nodes {
            node.write(&gateway, &peers).map_err(|error| in_dir(&node.file, &error))?;
        }
        Ok(nodes)
    }

    /// Returns once every node is ready and requests through each of them reach both sample services.
    async fn wait_until_it_stands(&self, nodes: &[Node], processes: &mut Processes) -> Result<(), CliError> {
        let deadline = Instant::now() + START_DEADLINE;
        for node in nodes {
            for (address, path, what) in [
                (node.admin, "/readyz", "is ready"),
                (node.web, "/hello", "routes to hello"),
                (node.web, "/time", "routes to time"),
            ] {
                loop {
                    if let Ok((ended, status)) = processes.ended.try_recv() {
                        return Err(processes.died_early(ended, status, node));
                    }
                    let client = Client::new([address.to_string()], None)?;
                    // A kept folder's document may have other routes by now: then 404 is the right answer.
                    let stands = |status: StatusCode| status.is_success() || status == StatusCode::NOT_FOUND;
                    if client.send(&Call::get(path)).await.is_ok_and(|reply| stands(reply.status)) {
                        say(&format!("  {} {what}", node.name));
                        break;
                    }
                    if Instant::now() > deadline {
                        let seconds = START_DEADLINE.as_secs();
                        return Err(CliError::Failed(format!(
                            "after {seconds} s it is still not so that {} {what}: see its log",
                            node.name
                        )));
                    }
                    tokio::time::sleep(POLL).await;
                }
            }
        }
        Ok(())
    }
}

/// Tells a person. Nobody may be listening any more, and that must not end the cluster.
fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Holds the folder for this process, to its end: two clusters on the same ports and data would be none.
fn lock(dir: &Path) -> Result<File, CliError> {
    let path = dir.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|error| in_dir(&path, &error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(CliError::Failed(format!(
            "{}: another `gogate dev` runs there: stop it, or choose another folder with --dir",
            dir.display()
        ))),
        Err(TryLockError::Error(error)) => Err(in_dir(&path, &error)),
    }
}

fn in_dir(path: &Path, error: &std::io::Error) -> CliError {
    CliError::Failed(format!("{}: {error}; choose another folder with --dir", path.display()))
}

fn obituary(running: &Running, status: Option<ExitStatus>, nodes: &[Node]) -> String {
    let how = status.map_or_else(|| "ended".to_owned(), |status| format!("ended ({status})"));
    let Running { name, pid, .. } = running;
    match nodes.iter().find(|node| node.name == *name) {
        None => format!("{name} (pid {pid}) {how}"),
        Some(node) => {
            let back = format!("{} serve --config {}", program(), node.file.display());
            format!("{name} (pid {pid}) {how}; the others go on. Bring it back with: {back}")
        }
    }
}

/// This program, as a shell would call it.
fn program() -> String {
    std::env::current_exe().map_or_else(|_| "gogate".into(), |path| path.display().to_string())
}

/// Where everything is, and five things to try.
fn guide(nodes: &[Node], processes: &Processes, admin: &str) -> Result<String, CliError> {
    let (Some(first), Some(last)) = (nodes.first(), nodes.last()) else {
        return Err(CliError::Usage("--nodes is at least 1".into()));
    };
    let second = nodes.get(1).unwrap_or(first);
    let gogate = program();
    let mut text = format!("{:<6}{:<9}{:<25}{:<25}{}\n", "node", "pid", "web", "admin", "peer");
    let pid_of = |name: &str| {
        processes.running.iter().find(|running| running.name == name).map_or(0, |running| running.pid)
    };
    for Node { name, web, admin, peer, .. } in nodes {
        text.push_str(&format!(
            "{name:<6}{:<9}{:<25}{:<25}{peer}\n",
            pid_of(name),
            format!("http://{web}"),
            format!("http://{admin}")
        ));
    }
    let requests: Vec<String> =
        nodes.iter().map(|node| format!("curl -s http://{}/hello", node.web)).collect();
    text.push_str(&format!(
        "\nTry this in another terminal:\n\n  export GOGATE_ADMIN={admin}\n\n\
         \x20 # 1. a request through each node\n  {}\n\
         \x20 # 2. one more instance, registered at {}; {} routes to it at once\n  {gogate} sample --name hello --listen 127.0.0.1:9105 --admin http://{} &\n  sleep 1; curl -s http://{}/hello\n\
         \x20 # 3. change the routes once, at {}, for all nodes\n  {gogate} config get | sed 's#/hello#/greetings#' > gateway.yaml; {gogate} --admin http://{} config apply gateway.yaml; curl -s http://{}/greetings\n\
         \x20 # 4. lose a node: the others go on\n  kill -9 {}; curl -s http://{}/greetings\n\
         \x20 # 5. who is left, who leads\n  {gogate} cluster status\n\n\
         Ctrl-C stops all of this; what you started yourself is yours to stop.",
        requests.join("; "), last.name, first.name, last.admin, first.web, second.name, second.admin, last.web,
        pid_of(&first.name), second.web,
    ));
    Ok(text)
}

// === impl Node ===

impl Node {
    fn read(file: PathBuf, name: String) -> Result<Self, CliError> {
        let config = node_file::load(Some(&file), [], &[], false).map_err(|problems| {
            let lines: Vec<String> =
                problems.iter().map(|problem| problem.in_file(&file.display().to_string())).collect();
            CliError::Failed(lines.join("\n"))
        })?;
        let web =
            config.bind.get("web").copied().unwrap_or_else(|| SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)));
        Ok(Self { name, file, web, admin: config.admin_listen, peer: config.peer_listen })
    }

    fn write(&self, gateway: &Path, peers: &[String]) -> std::io::Result<()> {
        let Self { name, file, web, admin, peer } = self;
        let folder = file.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder)?;
        let quoted = |path: &Path| serde_json::Value::from(path.display().to_string()).to_string();
        let (data, gateway) = (quoted(&folder.join("data")), quoted(gateway));
        let (expect, peers) = (peers.len(), peers.join(", "));
        let content = format!(
            "node:    {{ name: {name}, data_dir: {data} }}\n\
             admin:   {{ listen: \"{admin}\" }}\n\
             peer:    {{ listen: \"{peer}\" }}\n\
             cluster: {{ name: dev, expect: {expect}, peers: [{peers}] }}\n\
             bind:    {{ web: \"{web}\" }}\n\
             gateway: {{ file: {gateway}, watch: true }}\n\
             drain:   {{ wait: 0s, deadline: 2s }}\n"
        );
        std::fs::write(file, content)
    }
}

// === impl Processes ===

impl Processes {
    /// Starts this program with `args`, its output going to a file in `dir`.
    fn start(
        &mut self,
        name: &str,
        args: &[String],
        dir: &Path,
        environment: &Environment,
        is_node: bool,
    ) -> Result<(), CliError> {
        let failed = |error: std::io::Error| CliError::Failed(format!("{name} cannot be started: {error}"));
        let log = File::options()
            .create(true)
            .append(true)
            .open(dir.join(format!("{name}.log")))
            .map_err(failed)?;
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        command.args(args).arg("--die-with").arg(std::process::id().to_string());
        // The variables are for this command, not for the nodes that it makes up; and a Ctrl-C in the terminal
        // is for this process alone, which then ends the others in order.
        for variable in environment.keys() {
            command.env_remove(variable);
        }
        command.process_group(0).stdin(Stdio::null()).stdout(log.try_clone().map_err(failed)?).stderr(log);
        let mut child = command.spawn().map_err(failed)?;
        let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) else {
            return Err(CliError::Failed(format!("{name} ended at once")));
        };
        self.running.push(Running { name: name.to_owned(), pid, is_node });
        let end = self.end.clone();
        tokio::spawn(async move {
            let status = child.wait().await.ok();
            let _ = end.send((pid, status)).await;
        });
        Ok(())
    }

    /// The next process that ends.
    async fn next_end(&mut self) -> (Running, Option<ExitStatus>) {
        loop {
            // This struct holds a sender itself, so the channel is never closed.
            let Some((pid, status)) = self.ended.recv().await else { std::future::pending().await };
            if let Some(running) = self.forget(pid) {
                return (running, status);
            }
        }
    }

    fn forget(&mut self, pid: i32) -> Option<Running> {
        let place = self.running.iter().position(|running| running.pid == pid)?;
        Some(self.running.remove(place))
    }

    fn died_early(&mut self, pid: i32, status: Option<ExitStatus>, node: &Node) -> CliError {
        let name = self.forget(pid).map_or_else(|| pid.to_string(), |running| running.name);
        let how = status.map_or_else(String::new, |status| format!(" ({status})"));
        let dir = node.file.parent().and_then(Path::parent).unwrap_or(Path::new("."));
        let log = dir.join(format!("{name}.log"));
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        let last = said.lines().last().unwrap_or_default();
        CliError::Failed(format!("{name} ended{how}: {last}\nits log: {}", log.display()))
    }

    /// Ends the services, which deregister, then the nodes; kills what does not end.
    async fn stop(&mut self) {
        for nodes in [false, true] {
            self.signal(Signal::TERM, nodes);
            let ended = async {
                while self.running.iter().any(|running| running.is_node == nodes) {
                    self.next_end().await;
                }
            };
            if tokio::time::timeout(STOP_DEADLINE, ended).await.is_err() {
                self.signal(Signal::KILL, nodes);
            }
        }
    }

    fn signal(&self, signal: Signal, nodes: bool) {
        for running in self.running.iter().filter(|running| running.is_node == nodes) {
            if let Some(pid) = Pid::from_raw(running.pid) {
                let _ = kill_process(pid, signal);
            }
        }
    }
}

// === impl Ports ===

impl Ports {
    /// The first free port from `first` on.
    fn from(&mut self, first: u16) -> Result<u16, CliError> {
        let free = |port: &u16| {
            !self.given.contains(port) && TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok()
        };
        let Some(port) = (first..=first.saturating_add(900)).find(free) else {
            return Err(CliError::Failed(format!("no port from {first} on is free")));
        };
        if port != first && !self.given.contains(&first) {
            say(&format!("port {first} is taken: {port} is used instead"));
        }
        self.given.insert(port);
        Ok(port)
    }
}
