//! Network links between nodes that can be cut, in user space and without privileges.
//!
//! Job: a TCP relay in front of each node's peer port. The nodes are told the relay's address
//! (`peer.advertise`), so every connection between two of them passes here. Which node dialled is found out
//! like `ss -p` does: the other end of the accepted connection is a line in `/proc/net/tcp` with an inode, and
//! the process that holds that socket has it under `/proc/PID/fd`. Needs Linux and one user, nothing else.
//!
//! Invariants: nothing is forwarded for a dialler who is not known: the connection is closed, and counted.
//! While a way from one node to another is cut, no byte passes on it and nothing is closed, as if packets were
//! lost; new connections on it are accepted by the kernel, and then silent. What the kernels' buffers and the
//! relay hold at that time arrives after a [`Heal::Resume`] and is lost with a [`Heal::Reset`]. A way with a
//! latency is slow, too: one piece after another waits. Neighbours: `nemesis` and `scenario` cut and heal,
//! `processes` tells addresses and process ids.

use std::{
    collections::BTreeMap,
    fs, io,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rand::Rng;

/// What one direction of a connection holds at most, besides the kernel's buffers.
const PIECE_BYTES: usize = 16 << 10;

/// A way from one node to another.
pub type Way = (usize, usize);

/// How long a piece takes on its way: `base`, and up to `jitter` more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Latency {
    /// At least.
    pub base: Duration,
    /// At most so much more.
    pub jitter: Duration,
}

/// How the links come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heal {
    /// Connections go on where they stood: what was held arrives late.
    Resume,
    /// Connections that were cut are closed: what was held is lost.
    Reset,
}

/// The links of one cluster. They are closed when it is dropped.
pub struct Links {
    shared: Arc<Shared>,
    fronts: Vec<SocketAddr>,
}

struct Shared {
    /// node → its peer port.
    backs: Vec<SocketAddr>,
    gate: Mutex<Gate>,
    changed: Condvar,
    unattributed: AtomicU64,
}

struct Gate {
    /// How many cuts there are on a way: several may overlap.
    cut: BTreeMap<Way, usize>,
    slow: BTreeMap<Way, Latency>,
    /// Pieces, and ends of connections, that found their way cut or slow.
    bitten: BTreeMap<Way, u64>,
    /// node → its process.
    pids: Vec<Option<u32>>,
    connections: Vec<Weak<Connection>>,
    stopped: bool,
}

/// One connection between two nodes.
struct Connection {
    from: usize,
    to: usize,
    dialler: TcpStream,
    reset: AtomicBool,
}

/// Why the gate's lock is never poisoned.
const UNBROKEN: &str = "no thread panics while it holds the gate";

// === impl Links ===

impl Links {
    /// A relay for each node: its peer port, and the listener that stands in front of it.
    pub fn create(ports: Vec<(SocketAddr, TcpListener)>) -> io::Result<Self> {
        let (backs, listeners): (Vec<_>, Vec<_>) = ports.into_iter().unzip();
        let fronts = listeners.iter().map(TcpListener::local_addr).collect::<io::Result<_>>()?;
        let gate = Gate {
            cut: BTreeMap::new(),
            slow: BTreeMap::new(),
            bitten: BTreeMap::new(),
            pids: backs.iter().map(|_| None).collect(),
            connections: Vec::new(),
            stopped: false,
        };
        let shared = Arc::new(Shared {
            backs,
            gate: Mutex::new(gate),
            changed: Condvar::new(),
            unattributed: AtomicU64::new(0),
        });
        for (to, listener) in listeners.into_iter().enumerate() {
            let shared = shared.clone();
            thread::spawn(move || {
                while let Ok((dialler, _)) = listener.accept() {
                    if shared.gate().stopped {
                        return;
                    }
                    let shared = shared.clone();
                    // A connection that breaks is the nodes' business.
                    thread::spawn(move || drop(shared.relay(dialler, to)));
                }
            });
        }
        Ok(Self { shared, fronts })
    }

    /// Tells which process is this node: connections from it are its own.
    pub fn set_process(&self, node: usize, pid: u32) {
        self.shared.gate().pids[node] = Some(pid);
        self.shared.changed.notify_all();
    }

    /// Cuts a node off from all others, in both directions.
    pub fn cut(&self, node: usize) {
        self.cut_ways(&self.all_ways_of(node));
    }

    /// Lets it back.
    pub fn heal(&self, node: usize, heal: Heal) {
        self.heal_ways(&self.all_ways_of(node), heal);
    }

    /// Cuts these ways.
    pub fn cut_ways(&self, ways: &[Way]) {
        let mut gate = self.shared.gate();
        for way in ways {
            *gate.cut.entry(*way).or_default() += 1;
        }
    }

    /// Opens them again.
    pub fn heal_ways(&self, ways: &[Way], heal: Heal) {
        let mut gate = self.shared.gate();
        for way in ways {
            if let Some(cuts) = gate.cut.get_mut(way) {
                *cuts -= 1;
            }
        }
        gate.cut.retain(|_, cuts| *cuts > 0);
        if heal == Heal::Reset {
            gate.reset(|Connection { from, to, .. }| {
                ways.contains(&(*from, *to)) || ways.contains(&(*to, *from))
            });
        }
        self.shared.changed.notify_all();
    }

    /// Makes these ways slow.
    pub fn slow_down(&self, ways: &[Way], latency: Latency) {
        self.shared.gate().slow.extend(ways.iter().map(|way| (*way, latency)));
    }

    /// Makes them as fast as they were.
    pub fn speed_up(&self, ways: &[Way]) {
        self.shared.gate().slow.retain(|way, _| !ways.contains(way));
        self.shared.changed.notify_all();
    }

    /// How often something was held up on these ways so far.
    pub fn bitten(&self, ways: &[Way]) -> u64 {
        let gate = self.shared.gate();
        ways.iter().filter_map(|way| gate.bitten.get(way)).sum()
    }

    fn all_ways_of(&self, node: usize) -> Vec<Way> {
        let others = (0..self.fronts.len()).filter(|other| *other != node);
        others.flat_map(|other| [(node, other), (other, node)]).collect()
    }

    /// Connections that were closed because nobody could tell whose they were.
    pub fn unattributed(&self) -> u64 {
        self.shared.unattributed.load(Ordering::Relaxed)
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        let mut gate = self.shared.gate();
        gate.stopped = true;
        gate.reset(|_| true);
        drop(gate);
        self.shared.changed.notify_all();
        for front in &self.fronts {
            // Wakes the relay from accept(); it sees that it is over.
            drop(TcpStream::connect(front));
        }
    }
}

// === impl Gate ===

impl Gate {
    fn reset(&mut self, which: impl Fn(&Connection) -> bool) {
        self.connections.retain(|connection| connection.strong_count() > 0);
        for connection in self.connections.iter().filter_map(Weak::upgrade).filter(|one| which(one)) {
            connection.reset.store(true, Ordering::Relaxed);
            // It may be closed already.
            let _ = connection.dialler.shutdown(Shutdown::Both);
        }
    }
}

// === impl Shared ===

impl Shared {
    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().expect(UNBROKEN)
    }

    fn relay(&self, dialler: TcpStream, to: usize) -> io::Result<()> {
        let Some(from) = self.dialler_of(&dialler)? else {
            self.unattributed.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        };
        let connection = Arc::new(Connection { from, to, dialler, reset: AtomicBool::new(false) });
        self.gate().connections.push(Arc::downgrade(&connection));
        // To connect takes packets both ways.
        let ways = [(from, to), (to, from)];
        if !ways.into_iter().all(|way| self.pass(&connection, way)) {
            return Ok(());
        }
        let back = TcpStream::connect(self.backs[to])?;
        let dialler = &connection.dialler;
        for stream in [dialler, &back] {
            stream.set_nodelay(true)?;
        }
        thread::scope(|scope| {
            scope.spawn(|| self.pump(&connection, (from, to), dialler, &back));
            self.pump(&connection, (to, from), &back, dialler);
        });
        Ok(())
    }

    /// Moves bytes one way until either end is done, each piece only while the way is open.
    fn pump(&self, connection: &Connection, way: Way, mut from: &TcpStream, mut to: &TcpStream) {
        let mut piece = [0; PIECE_BYTES];
        while let Ok(received @ 1..) = from.read(&mut piece) {
            if !self.pass(connection, way) || to.write_all(&piece[..received]).is_err() {
                break;
            }
        }
        // The end of a connection is told like its bytes: not while the way is cut.
        self.pass(connection, way);
        for stream in [from, to] {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Waits as long as the way takes, and until it is open; false: the connection is over.
    fn pass(&self, connection: &Connection, way: Way) -> bool {
        let is_reset = || connection.reset.load(Ordering::Relaxed);
        let mut gate = self.gate();
        if gate.cut.contains_key(&way) || gate.slow.contains_key(&way) {
            *gate.bitten.entry(way).or_default() += 1;
        }
        if let Some(latency) = gate.slow.get(&way) {
            let arrives = Instant::now() + latency.base + latency.jitter.mul_f64(rand::rng().random());
            let on_its_way = |gate: &mut Gate| gate.slow.contains_key(&way) && !is_reset();
            while on_its_way(&mut gate) {
                let Some(left) = arrives.checked_duration_since(Instant::now()) else { break };
                gate = self.changed.wait_timeout(gate, left).expect(UNBROKEN).0;
            }
        }
        drop(
            self.changed.wait_while(gate, |gate| !is_reset() && gate.cut.contains_key(&way)).expect(UNBROKEN),
        );
        !is_reset()
    }

    /// The node whose process holds the other end.
    fn dialler_of(&self, accepted: &TcpStream) -> io::Result<Option<usize>> {
        let (theirs, ours) = (accepted.peer_addr()?, accepted.local_addr()?);
        let table = fs::read_to_string("/proc/net/tcp")?;
        let Some(inode) = inode_of(&table, theirs, ours) else { return Ok(None) };
        let socket = format!("socket:[{inode}]");
        let pids = self.gate().pids.clone();
        Ok(pids.iter().position(|pid| pid.is_some_and(|pid| holds(pid, &socket))))
    }
}

/// Whether a process has this open.
fn holds(pid: u32, socket: &str) -> bool {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    entries
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .any(|link| link.as_os_str() == socket)
}

/// The inode of the socket at `local`, connected to `remote`: columns 2, 3 and 10 of proc(5), `net/tcp`.
fn inode_of(table: &str, local: SocketAddr, remote: SocketAddr) -> Option<&str> {
    let (local, remote) = (hexadecimal(local)?, hexadecimal(remote)?);
    table.lines().find_map(|line| {
        let mut columns = line.split_ascii_whitespace().skip(1);
        (columns.next()? == local && columns.next()? == remote).then(|| columns.nth(6)).flatten()
    })
}

/// An address as the kernel writes it: the four bytes as one number of this machine, then the port.
fn hexadecimal(address: SocketAddr) -> Option<String> {
    match address {
        SocketAddr::V4(address) => {
            let ip = u32::from_ne_bytes(address.ip().octets());
            Some(format!("{ip:08X}:{:04X}", address.port()))
        }
        SocketAddr::V6(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two nodes; this process is the second, and dials the first.
    fn links() -> (Links, TcpListener, SocketAddr) {
        let listen = || TcpListener::bind("127.0.0.1:0").unwrap();
        let (node, front) = (listen(), listen());
        let (back, front_address) = (node.local_addr().unwrap(), front.local_addr().unwrap());
        let links = Links::create(vec![(back, front), (back, listen())]).unwrap();
        links.set_process(1, std::process::id());
        (links, node, front_address)
    }

    fn connect(node: &TcpListener, front: SocketAddr) -> (TcpStream, TcpStream) {
        let dialler = TcpStream::connect(front).unwrap();
        let (accepted, _) = node.accept().unwrap();
        for stream in [&dialler, &accepted] {
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        }
        (dialler, accepted)
    }

    fn is_silent(stream: &TcpStream) -> bool {
        stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let silent = stream.peek(&mut [0]).is_err();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        silent
    }

    #[test]
    fn a_cut_holds_bytes_back_in_both_directions_until_it_is_healed() {
        let (links, node, front) = links();
        let (mut dialler, mut accepted) = connect(&node, front);
        let mut bytes = [0; 2];
        dialler.write_all(b"ab").unwrap();
        accepted.read_exact(&mut bytes).unwrap();
        links.cut(1);
        dialler.write_all(b"cd").unwrap();
        accepted.write_all(b"ef").unwrap();
        assert!(is_silent(&accepted) && is_silent(&dialler));
        links.heal(1, Heal::Resume);
        accepted.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"cd");
        dialler.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"ef");
    }

    #[test]
    fn a_reset_loses_what_was_held_back() {
        let (links, node, front) = links();
        let (mut dialler, mut accepted) = connect(&node, front);
        links.cut(0);
        dialler.write_all(b"ab").unwrap();
        assert!(is_silent(&accepted));
        links.heal(0, Heal::Reset);
        assert!(!matches!(accepted.read(&mut [0; 2]), Ok(1..)));
        // The next connection is whole.
        let (mut dialler, mut accepted) = connect(&node, front);
        dialler.write_all(b"c").unwrap();
        accepted.read_exact(&mut [0]).unwrap();
    }

    #[test]
    fn a_way_that_is_cut_leaves_the_way_back_open_and_counts_what_it_held() {
        let (links, node, front) = links();
        let (mut dialler, mut accepted) = connect(&node, front);
        dialler.write_all(b"a").unwrap();
        accepted.read_exact(&mut [0]).unwrap();
        links.cut_ways(&[(1, 0)]);
        assert_eq!(links.bitten(&[(1, 0)]), 0);
        dialler.write_all(b"b").unwrap();
        accepted.write_all(b"c").unwrap();
        dialler.read_exact(&mut [0]).unwrap();
        assert!(is_silent(&accepted));
        assert_eq!((links.bitten(&[(1, 0)]), links.bitten(&[(0, 1)])), (1, 0));
        links.heal_ways(&[(1, 0)], Heal::Resume);
        accepted.read_exact(&mut [0]).unwrap();
    }

    #[test]
    fn a_way_that_is_cut_twice_is_open_once_both_are_healed() {
        let (links, node, front) = links();
        let (mut dialler, mut accepted) = connect(&node, front);
        dialler.write_all(b"a").unwrap();
        accepted.read_exact(&mut [0]).unwrap();
        links.cut_ways(&[(1, 0)]);
        links.cut(1);
        links.heal_ways(&[(1, 0)], Heal::Resume);
        dialler.write_all(b"b").unwrap();
        assert!(is_silent(&accepted));
        links.heal(1, Heal::Resume);
        accepted.read_exact(&mut [0]).unwrap();
    }

    #[test]
    fn a_slow_way_takes_its_time() {
        let (links, node, front) = links();
        let (mut dialler, mut accepted) = connect(&node, front);
        let latency = Latency { base: Duration::from_millis(100), jitter: Duration::from_millis(10) };
        links.slow_down(&[(1, 0)], latency);
        let sent = Instant::now();
        dialler.write_all(b"a").unwrap();
        accepted.read_exact(&mut [0]).unwrap();
        assert!(sent.elapsed() >= latency.base);
        assert_eq!(links.bitten(&[(1, 0)]), 1);
        // It is not waited for what is fast again.
        let endless = Latency { base: Duration::from_secs(3600), ..latency };
        links.slow_down(&[(1, 0)], endless);
        dialler.write_all(b"b").unwrap();
        assert!(is_silent(&accepted));
        links.speed_up(&[(1, 0)]);
        accepted.read_exact(&mut [0]).unwrap();
    }

    #[test]
    fn a_connection_of_nobody_is_closed() {
        let (links, _node, front) = links();
        // No process holds this one's descriptors: pid 0 is nobody.
        links.set_process(1, 0);
        let mut dialler = TcpStream::connect(front).unwrap();
        dialler.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        assert!(!matches!(dialler.read(&mut [0]), Ok(1..)));
        assert_eq!(links.unattributed(), 1);
    }

    #[test]
    fn a_line_of_the_kernel_is_read() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             0: 0100007F:1F90 0200007F:1F91 01 00000000:00000000 00:00000000 00000000  1000        0 4242 1\n";
        let (local, remote) = ("127.0.0.1:8080".parse().unwrap(), "127.0.0.2:8081".parse().unwrap());
        if cfg!(target_endian = "little") {
            assert_eq!(inode_of(table, local, remote), Some("4242"));
            assert_eq!(inode_of(table, remote, local), None);
        }
    }
}
