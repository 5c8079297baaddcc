//! Real gogate processes: made, started, killed, watched, and gone when this process is gone.
//!
//! Invariants: a child dies with the harness, however that ends: it is started through this program itself
//! ([`become_child`]), which asks the kernel for SIGKILL on its parent's death before it becomes the node. The
//! kernel means the *thread* that started the child, so the thread that owns a [`Processes`] starts all of
//! its nodes and outlives them. Each run has loopback addresses of its own (127.x.y.z), so that neither
//! another run nor an outgoing connection takes a port while a node is down. Neighbours: `nemesis` decides
//! when, `links` may stand in front of the peers' ports.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use rand::Rng;
use rustix::process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal};

use crate::client::Nodes;

/// The hidden first argument with which this program becomes a node.
const AS_CHILD: &str = "--as-child";

/// How many lines of a node's log a finding shows.
const LOG_TAIL_LINES: usize = 20;

/// The data plane's port, counted from the admin API's; the peers' is the one between.
const WEB_PORT: u16 = 2;

/// How many places are tried for a cluster's addresses.
const PLACES_MAX: usize = 100;

/// Where Debian's package `faketime` has its library.
const FAKETIME: [&str; 2] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
];

/// How long the kernel may take to stop a process, or to let it go on.
const PAUSES_WITHIN: Duration = Duration::from_secs(1);

/// The nodes of one cluster.
pub struct Processes {
    program: PathBuf,
    /// Those that form the cluster, and then some that may come to it later.
    nodes: Vec<Node>,
    founders: usize,
    secret: PathBuf,
}

/// How a node comes to a cluster that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Joins {
    /// It waits until somebody has it let in, and votes then.
    AsVoter,
    /// The same, but it follows only.
    AsLearner,
    /// It asks the members by itself, and takes the place of the dead one of its name.
    ByItself,
}

struct Node {
    name: String,
    dir: PathBuf,
    admin: SocketAddr,
    peer: SocketAddr,
    /// Where the others are told to reach it: in front of `peer`, if there are links.
    advertise: SocketAddr,
    child: Option<Child>,
    /// A library that is loaded into it first, and the file that tells the library the time.
    clock: Option<(PathBuf, PathBuf)>,
}

// === impl Processes ===

impl Processes {
    /// Lays out `founders` nodes under `dir`, each with its node file, and places for `spares` more. With `links`,
    /// the others reach a node through its address for links instead of its own.
    pub fn create(program: &Path, dir: &Path, founders: u8, spares: u8, links: bool) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let secret = dir.join("secret");
        fs::write(&secret, "jepsen-lite\n")?;
        let mut nodes: Vec<Node> = free_place(founders + spares)?
            .into_iter()
            .enumerate()
            .map(|(index, (admin, peer, link))| {
                let name = format!("n{}", index + 1);
                let advertise = if links { link } else { peer };
                Node { dir: dir.join(&name), name, admin, peer, advertise, child: None, clock: None }
            })
            .collect();
        for node in &mut nodes {
            fs::create_dir_all(&node.dir)?;
        }
        let processes = Self { program: program.to_owned(), nodes, founders: founders.into(), secret };
        let founding = &processes.nodes[..processes.founders];
        for node in founding {
            node.write_file(&processes.secret, &format!("expect: {founders}, peers: {:?}", peers(founding)))?;
        }
        Ok(processes)
    }

    /// How many there are, those that never ran included.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Those that form the cluster.
    pub fn founders(&self) -> Vec<usize> {
        (0..self.founders).collect()
    }

    /// Those that were started and not killed.
    pub fn running(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|node| self.nodes[*node].child.is_some()).collect()
    }

    /// Makes a node that does not run a new one, with an empty disk, that comes to the cluster like this.
    pub fn renew(&self, node: usize, joins: Joins) -> io::Result<()> {
        let node = &self.nodes[node];
        match fs::remove_dir_all(node.data()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let cluster = match joins {
            Joins::AsVoter => "join: true, role: voter".to_owned(),
            Joins::AsLearner => "join: true, role: learner".to_owned(),
            // It expects all of them, so it never forms a cluster with a few that wait.
            Joins::ByItself => format!("peers: {:?}", peers(&self.nodes)),
        };
        node.write_file(&self.secret, &cluster)
    }

    /// A node's name.
    pub fn name(&self, node: usize) -> &str {
        &self.nodes[node].name
    }

    /// The node of this name.
    pub fn by_name(&self, name: &str) -> Option<usize> {
        self.nodes.iter().position(|node| node.name == name)
    }

    /// Where clients ask.
    pub fn admin(&self) -> Nodes {
        self.nodes.iter().map(|node| (node.name.clone(), node.admin)).collect()
    }

    /// Where requests to be routed go.
    pub fn web(&self) -> Nodes {
        self.nodes.iter().map(|node| (node.name.clone(), node.web())).collect()
    }

    /// Where a node's peer port is, and where the others are told that it is.
    pub fn peer(&self, node: usize) -> (SocketAddr, SocketAddr) {
        (self.nodes[node].peer, self.nodes[node].advertise)
    }

    /// Starts a node and tells its process id. Its log goes on where it ended.
    pub fn start(&mut self, node: usize) -> io::Result<u32> {
        let node = &mut self.nodes[node];
        let log = OpenOptions::new().create(true).append(true).open(node.log())?;
        let mut command = Command::new(std::env::current_exe()?);
        if let Some((library, file)) = &node.clock {
            command
                .env("LD_PRELOAD", library)
                .env("FAKETIME_TIMESTAMP_FILE", file)
                .env("FAKETIME_NO_CACHE", "1")
                .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        let child = command
            .arg(AS_CHILD)
            .arg(std::process::id().to_string())
            .arg(&self.program)
            .args(["serve", "--config"])
            .arg(node.dir.join("node.yaml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C in a terminal goes to the whole group: the nodes are not to drain, but to die with us.
            .process_group(0)
            .spawn()?;
        let pid = child.id();
        node.child = Some(child);
        Ok(pid)
    }

    /// From their next start on, the nodes' wall clocks can be set; false: libfaketime is not installed.
    pub fn make_clocks(&mut self) -> io::Result<bool> {
        let Some(library) = FAKETIME.iter().map(Path::new).find(|path| path.exists()) else {
            return Ok(false);
        };
        for node in &mut self.nodes {
            let file = node.dir.join("clock");
            fs::write(&file, "+0s\n")?;
            node.clock = Some((library.to_owned(), file));
        }
        Ok(true)
    }

    /// Sets a node's wall clock off by so many seconds. Its monotonic clock goes on as it does.
    pub fn set_clock(&self, node: usize, offset_s: i64) -> io::Result<()> {
        match &self.nodes[node].clock {
            Some((_, file)) => fs::write(file, format!("{offset_s:+}s\n")),
            None => Err(io::Error::other("this node's clock cannot be set")),
        }
    }

    /// Whether a node that runs is told the time by [`Self::set_clock`]: the library reads the file whenever it is
    /// asked. (What the node shows of its wall clock is no proof: a `Date` is cached, and then never goes back.)
    pub fn asks_our_clock(&self, node: usize) -> io::Result<bool> {
        let Node { clock: Some((library, _)), child: Some(child), .. } = &self.nodes[node] else {
            return Ok(false);
        };
        let maps = fs::read_to_string(format!("/proc/{}/maps", child.id()))?;
        Ok(maps.lines().any(|line| line.ends_with(&*library.to_string_lossy())))
    }

    /// Stops a node where it stands (SIGSTOP), or lets it go on. True: the kernel says that it does.
    pub fn pause(&self, node: usize, stop: bool) -> io::Result<bool> {
        let Some(child) = &self.nodes[node].child else { return Ok(false) };
        let pid =
            i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
        kill_process(pid, if stop { Signal::STOP } else { Signal::CONT })?;
        // The signal is delivered soon, not at once.
        let deadline = Instant::now() + PAUSES_WITHIN;
        while is_stopped(child.id())? != stop {
            if Instant::now() > deadline {
                return Ok(false);
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(true)
    }

    /// Sends SIGKILL to all of them at once; [`Self::reap`] has to follow.
    pub fn kill(&mut self, nodes: &[usize]) -> io::Result<()> {
        for &node in nodes {
            if let Some(child) = &mut self.nodes[node].child {
                child.kill()?;
            }
        }
        Ok(())
    }

    /// Waits until they are gone. True: SIGKILL ended all of them; false: one had ended by itself before.
    pub fn reap(&mut self, nodes: &[usize]) -> io::Result<bool> {
        let mut killed = true;
        for &node in nodes {
            killed &= match self.nodes[node].child.take() {
                Some(mut child) => child.wait()?.signal() == Some(Signal::KILL.as_raw()),
                None => false,
            };
        }
        Ok(killed)
    }

    /// How a node ended, if it ended by itself.
    pub fn ended(&mut self, node: usize) -> Option<ExitStatus> {
        self.nodes[node].child.as_mut()?.try_wait().ok().flatten()
    }

    /// The end of a node's log.
    pub fn log_tail(&self, node: usize) -> String {
        let log = fs::read(self.nodes[node].log()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        let all: Vec<usize> = (0..self.nodes.len()).collect();
        // Nothing is left to be done about one that cannot be killed.
        let _ = self.kill(&all).and_then(|()| self.reap(&all));
    }
}

// === impl Node ===

impl Node {
    fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    fn web(&self) -> SocketAddr {
        SocketAddr::new(self.admin.ip(), self.admin.port() + WEB_PORT)
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Its node file; `cluster` is what it is told about the cluster besides the name.
    fn write_file(&self, secret: &Path, cluster: &str) -> io::Result<()> {
        let Self { name, dir, admin, peer, advertise, .. } = self;
        let (data, secret) = (self.data(), secret.display());
        // Every document has the listener `web`, at one address for all nodes unless they say otherwise.
        let web = self.web();
        let file = format!(
            "node: {{ name: {name}, data_dir: {data:?} }}\n\
             admin: {{ listen: \"{admin}\" }}\n\
             peer: {{ listen: \"{peer}\", advertise: \"{advertise}\", secret_file: \"{secret}\" }}\n\
             cluster: {{ name: jepsen-lite, {cluster} }}\n\
             bind: {{ web: \"{web}\" }}\n\
             drain: {{ wait: 0s, deadline: 1s }}\n",
        );
        fs::write(dir.join("node.yaml"), file)
    }
}

/// Where the others are told to reach these nodes.
fn peers(nodes: &[Node]) -> Vec<String> {
    nodes.iter().map(|node| node.advertise.to_string()).collect()
}

/// Whether a process stands still by a signal: proc(5), `/proc/PID/stat`, the first field after the name.
fn is_stopped(pid: u32) -> io::Result<bool> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let state = stat.rsplit_once(") ").and_then(|(_, fields)| fields.chars().next());
    Ok(state == Some('T'))
}

/// Admin, peer and link address of each node, on loopback addresses and ports that nobody has.
fn free_place(count: u8) -> io::Result<Vec<(SocketAddr, SocketAddr, SocketAddr)>> {
    // Not from the seed: two runs of one seed may go on at the same time.
    let mut rng = rand::rng();
    for _ in 0..PLACES_MAX {
        let (a, b) = (rng.random_range(64..=254), rng.random_range(0..=255));
        // Below the ports that outgoing connections take.
        let port = rng.random_range(10_000..30_000);
        let address = |last: u8, port: u16| SocketAddr::from((Ipv4Addr::new(127, a, b, last), port));
        let place: Vec<_> = (1..=count)
            .map(|node| (address(node, port), address(node, port + 1), address(100 + node, port + 1)))
            .collect();
        let free = |address: &SocketAddr| TcpListener::bind(address).is_ok();
        if place.iter().all(|(admin, peer, link)| free(admin) && free(peer) && free(link)) {
            return Ok(place);
        }
    }
    Err(io::Error::other("no free loopback addresses (127.x.y.z) were found"))
}

/// If this process was started as a child, becomes the node and never returns, but with an error.
pub fn become_child() -> Option<io::Error> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next()? != AS_CHILD {
        return None;
    }
    let parent = arguments.next()?.into_string().ok()?.parse::<i32>().ok()?;
    let program: OsString = arguments.next()?;
    if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
        return Some(error.into());
    }
    // It may have ended before we asked.
    if getppid().is_none_or(|pid| pid.as_raw_nonzero().get() != parent) {
        return Some(io::Error::other("the harness is gone"));
    }
    Some(Command::new(program).args(arguments).exec())
}

/// Whether `program` can be started at all; said before anything else is done.
pub fn check_program(program: &Path) -> io::Result<PathBuf> {
    let problem = |error: io::Error| io::Error::other(format!("--bin {}: {error}", program.display()));
    let program = program.canonicalize().map_err(problem)?;
    File::open(&program).map_err(problem)?;
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_file_names_everything_that_a_node_needs() {
        let dir = tempfile::tempdir().unwrap();
        let processes = Processes::create(Path::new("/bin/true"), dir.path(), 3, 1, true).unwrap();
        let file = fs::read_to_string(dir.path().join("n2/node.yaml")).unwrap();
        let (peer, advertise) = processes.peer(1);
        assert_ne!(peer, advertise);
        for part in ["name: n2", "expect: 3", &peer.to_string(), &advertise.to_string(), "secret_file"] {
            assert!(file.contains(part), "{part} is not in {file}");
        }
        let (_, spare) = processes.peer(3);
        assert!(!file.contains(&spare.to_string()), "a spare is no founder: {file}");
        processes.renew(3, Joins::AsLearner).unwrap();
        let file = fs::read_to_string(dir.path().join("n4/node.yaml")).unwrap();
        assert!(file.contains("name: n4") && file.contains("join: true, role: learner"), "{file}");
    }

    #[test]
    fn a_process_that_is_killed_is_told_from_one_that_ended() {
        // The child is this very test program, which does not know the hidden argument and ends.
        let dir = tempfile::tempdir().unwrap();
        let mut processes = Processes::create(Path::new("/bin/true"), dir.path(), 1, 0, false).unwrap();
        assert!(!processes.reap(&[0]).unwrap());
        processes.start(0).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while processes.ended(0).is_none() {
            assert!(Instant::now() < deadline, "the child never ended");
            thread::yield_now();
        }
        processes.kill(&[0]).unwrap();
        assert!(!processes.reap(&[0]).unwrap());
    }
}
