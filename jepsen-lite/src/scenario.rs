//! What a run does, from the first process to the last read.
//!
//! Job: the list of scenarios, and what they share: a cluster that stands, its clients, its end. Invariants: a
//! run ends with every node read, or with a finding; the verdict comes from the history alone. Neighbours:
//! each scenario has a file below; `processes`, `links`, `nemesis`, `workload` do, `checker` judges.

mod failover;
mod faults;
mod kill;
mod membership;
mod returning_follower;

use std::{
    fs, io,
    net::TcpListener,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::{
    checker::{self, Demands, FINAL_CLIENT, Failover, Judgement},
    client::{Client, Patience},
    history::{Event, FaultKind, Outcome, Recorder, Seen},
    links::Links,
    nemesis::{self, Nemesis},
    processes::Processes,
    workload::{self, Work},
};

/// The most that a call may take once the faults are over.
const FINAL_PATIENCE: Patience =
    Patience { asked: Some(Duration::from_secs(20)), own: Duration::from_secs(30) };

/// The most that a question by the harness itself may take.
const PROBE_PATIENCE: Patience =
    Patience { asked: Some(Duration::from_secs(1)), own: Duration::from_secs(2) };

/// Of changes of the members, one in so many seconds has to be acknowledged at least.
const CHANGE_PER_S: usize = 10;

/// Old versions of the document that are read at the end.
const VERSIONS_READ: u64 = 32;

/// Places for nodes that come to a cluster that runs, where its members change.
const SPARES: u8 = 2;

/// Kept in a run's folder.
pub const HISTORY_FILE: &str = "history.jsonl";

/// What a run does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scenario {
    /// kill -9 at random moments while clients write; half of the kills hit a node that is starting
    Kill,
    /// a follower is cut off for 5 s and returns: the leader has to stay
    ReturningFollower,
    /// the leader is killed again and again: how long until writes are acknowledged
    Failover,
    /// a workload of its own, under injuries of many kinds
    Faults,
}

/// What a scenario is told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The gogate program.
    pub program: PathBuf,
    /// Which scenario.
    pub scenario: Scenario,
    /// How many faults.
    pub rounds: usize,
    /// How many clients write.
    pub clients: usize,
    /// How many clusters share the rounds.
    pub parallel: usize,
    /// How many nodes a cluster has.
    pub nodes: u8,
    /// What the scenario `faults` does.
    pub faults: Faults,
    /// Where everything random comes from.
    pub seed: u64,
    /// Where data, logs and histories lie.
    pub dir: PathBuf,
}

/// What the scenario `faults` is told besides.
#[derive(Debug, Clone)]
pub struct Faults {
    /// What the clients do.
    pub work: Work,
    /// Which injuries are done.
    pub nemeses: Vec<Nemesis>,
    /// For so long.
    pub time: Duration,
    /// So many at once.
    pub at_once: usize,
}

/// What one cluster's run came to.
pub struct Run {
    /// Its folder.
    pub dir: PathBuf,
    /// Everything that was recorded.
    pub events: Vec<Event>,
    /// The judgement on it.
    pub judgement: Judgement,
    /// What the failover scenario measured.
    pub failovers: Vec<Failover>,
}

/// One cluster that runs, and its record.
struct Stage {
    processes: Processes,
    recorder: Arc<Recorder>,
    dir: PathBuf,
    label: String,
}

// === impl Scenario ===

impl Scenario {
    /// Rounds, unless told otherwise.
    pub fn rounds(self) -> usize {
        match self {
            Self::Kill => 200,
            Self::ReturningFollower => 100,
            Self::Failover => 50,
            // It goes by time; a round has all that happens in that.
            Self::Faults => 1,
        }
    }

    /// Clients, unless told otherwise.
    pub fn clients(self) -> usize {
        match self {
            Self::Kill => 16,
            Self::ReturningFollower => 2,
            // One for each survivor.
            Self::Failover => 2,
            Self::Faults => 8,
        }
    }

    /// Clusters, unless told otherwise.
    pub fn parallel(self) -> usize {
        match self {
            Self::Kill | Self::Failover | Self::Faults => 1,
            Self::ReturningFollower => 10,
        }
    }
}

// === impl Settings ===

impl Settings {
    /// The demands on a history with so many rounds. Each is well below what a run gives that works.
    pub fn demands(&self, rounds: usize) -> Demands {
        let seconds = usize::try_from(self.faults.time.as_secs()).unwrap_or(usize::MAX);
        let (faults, faults_min, acknowledged_min) = match self.scenario {
            Scenario::Kill => (vec![FaultKind::Kill], rounds, 20 * rounds),
            Scenario::ReturningFollower => (vec![FaultKind::Heal], rounds, 5 * rounds),
            Scenario::Failover => (vec![FaultKind::Kill], rounds, 2 * rounds),
            Scenario::Faults => {
                let acknowledged = self.faults.work.acknowledged_per_minute() * seconds / 60;
                (faults::ENDS.to_vec(), 1 + seconds / 15, acknowledged)
            }
        };
        let all_take_hold = self.scenario == Scenario::Faults;
        let changes_min = match self.scenario {
            Scenario::Faults if self.faults.work == Work::Membership => 1 + seconds / CHANGE_PER_S,
            _ => 0,
        };
        Demands { nodes: self.node_names(), changes_min, acknowledged_min, faults, faults_min, all_take_hold }
    }

    fn node_names(&self) -> Vec<String> {
        (1..=self.nodes).map(|node| format!("n{node}")).collect()
    }
}

/// Clusters form one after another: what a machine can start at once is not what a scenario is about.
static FORMING: Mutex<()> = Mutex::new(());

/// Runs the scenario on as many clusters as asked for, each on a thread of its own.
pub fn run(settings: &Settings) -> io::Result<Vec<Run>> {
    let clusters = settings.parallel.clamp(1, settings.rounds.max(1));
    thread::scope(|scope| {
        let threads: Vec<_> = (0..clusters)
            .map(|cluster| {
                let rounds = settings.rounds / clusters + usize::from(cluster < settings.rounds % clusters);
                scope.spawn(move || run_cluster(settings, cluster, rounds))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a scenario returns its errors")).collect()
    })
}

fn run_cluster(settings: &Settings, cluster: usize, rounds: usize) -> io::Result<Run> {
    let dir = settings.dir.join(format!("cluster-{cluster}"));
    let seed = settings.seed.wrapping_add(1000 * cluster as u64);
    let links = matches!(settings.scenario, Scenario::ReturningFollower | Scenario::Faults);
    let stage = Stage::create(settings, &dir, format!("cluster {cluster}"), links)?;
    let events = match settings.scenario {
        Scenario::Kill => kill::run(stage, settings.clients, seed, rounds),
        Scenario::ReturningFollower => returning_follower::run(stage, settings.clients, seed, rounds),
        Scenario::Failover => failover::run(stage, seed, rounds),
        Scenario::Faults => faults::run(stage, &settings.faults, settings.clients, seed),
    }?;
    Ok(judge(settings, rounds, dir, events))
}

/// Judges what was recorded, now or by an earlier run.
pub fn judge(settings: &Settings, rounds: usize, dir: PathBuf, events: Vec<Event>) -> Run {
    let demands = settings.demands(rounds);
    let judgement = match settings.scenario {
        Scenario::Faults => checker::check_work(settings.faults.work, &events, &demands),
        _ => checker::check(&events, &demands),
    };
    let failovers = match settings.scenario {
        Scenario::Failover => {
            checker::failovers(&events, &crate::history::operations(&events), &demands.nodes)
        }
        _ => Vec::new(),
    };
    Run { dir, events, judgement, failovers }
}

// === impl Stage ===

impl Stage {
    /// Lays out a cluster; nothing runs yet.
    fn create(settings: &Settings, dir: &Path, label: String, links: bool) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let spares = match (settings.scenario, settings.faults.work) {
            (Scenario::Faults, Work::Membership) => SPARES,
            _ => 0,
        };
        let processes = Processes::create(&settings.program, dir, settings.nodes, spares, links)?;
        let recorder = Arc::new(Recorder::create(&dir.join(HISTORY_FILE))?);
        Ok(Self { processes, recorder, dir: dir.to_owned(), label })
    }

    /// Starts all nodes and waits until they serve; a finding, and false, if they do not. `started` is told
    /// each node's process as soon as it has one.
    fn form(&mut self, started: impl FnOnce(Vec<u32>)) -> io::Result<bool> {
        let turn = FORMING.lock().expect("no thread panics while its cluster forms");
        let all = self.processes.founders();
        started(nemesis::start(&mut self.processes, &self.recorder, &all)?);
        let serves = self.serve(&all);
        drop(turn);
        if serves {
            self.progress("the cluster serves");
        }
        Ok(serves)
    }

    /// Puts links in front of all nodes. They are to be told the nodes' processes.
    fn links(&self) -> io::Result<Links> {
        let ports = (0..self.processes.len()).map(|node| {
            let (peer, advertise) = self.processes.peer(node);
            Ok((peer, TcpListener::bind(advertise)?))
        });
        Links::create(ports.collect::<io::Result<_>>()?)
    }

    /// The nodes that run.
    fn all(&self) -> Vec<usize> {
        self.processes.running()
    }

    fn client(&self, name: &str, patience: Patience) -> Client {
        Client::new(name.to_owned(), self.processes.admin(), self.recorder.clone(), patience)
    }

    fn progress(&self, text: &str) {
        let tally = self.recorder.tally();
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let (ok, fail, unknown) = (count(&tally.ok), count(&tally.fail), count(&tally.unknown));
        let at = checker::seconds(self.recorder.now_us());
        println!("{at:7.1} s  {}: {text}; {ok} ok, {fail} failed or refused, {unknown} unknown", self.label);
    }

    /// Waits until these nodes serve; a finding otherwise.
    fn serve(&mut self, nodes: &[usize]) -> bool {
        let mut probe = self.client("probe", PROBE_PATIENCE);
        nemesis::serve_again(&mut self.processes, &self.recorder, &mut probe, nodes)
    }

    /// Who leads, once all nodes say the same; a finding if they do not in time.
    fn leader(&mut self) -> Option<usize> {
        let mut client = self.client("observer", PROBE_PATIENCE);
        let deadline = Instant::now() + nemesis::SERVES_WITHIN;
        while Instant::now() < deadline {
            let said: Vec<_> = self.all().into_iter().map(|node| client.status(node)).collect();
            let mut leaders = said.iter().map(|outcome| match outcome {
                Outcome::Ok { seen: Seen::Leader { leader: Some(leader), term, .. } } => Some((leader, term)),
                _ => None,
            });
            let first = leaders.next().flatten();
            if let Some((leader, _)) = first.filter(|_| leaders.all(|other| other == first)) {
                return self.processes.by_name(leader);
            }
            thread::sleep(Duration::from_millis(50));
        }
        for node in self.all() {
            let log = self.processes.log_tail(node);
            self.recorder.finding(
                self.processes.name(node),
                "the nodes do not agree on a leader".to_owned(),
                log,
            );
        }
        None
    }

    /// Reads everything from every node that runs, and ends the record.
    fn finish(mut self) -> io::Result<Vec<Event>> {
        // What is unknown may still be on its way: no node is asked before it has to have given up.
        thread::sleep(workload::PATIENCE.own);
        // A node that is down is a finding by itself, and what it would have said is not waited for.
        let down = self.all().into_iter().any(|node| self.processes.ended(node).is_some());
        let mut client = self.client(FINAL_CLIENT, if down { PROBE_PATIENCE } else { FINAL_PATIENCE });
        let newest = self.all().into_iter().map(|node| index_of(&client.list(node, false))).max();
        for node in self.all() {
            read_stale(&mut client, node, newest.unwrap_or_default());
            let version = match client.get_config(node, false, None) {
                Outcome::Ok { seen: Seen::Document { version, .. } } => version,
                _ => 0,
            };
            client.get_config(node, true, None);
            for version in version.saturating_sub(VERSIONS_READ) + 1..=version {
                client.get_config(node, false, Some(version));
            }
        }
        for node in self.all() {
            if let Some(status) = self.processes.ended(node) {
                let problem = format!("the process ended by itself ({status})");
                self.recorder.finding(self.processes.name(node), problem, self.processes.log_tail(node));
            }
        }
        self.progress("over; judging");
        let Self { recorder, dir, .. } = self;
        recorder
            .finish()
            .map_err(|error| io::Error::other(format!("{}: {error}", dir.join(HISTORY_FILE).display())))
    }
}

/// What a node last knew may be a little old: it is given time to hear of the newest change.
fn read_stale(client: &mut Client, node: usize, newest: u64) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while index_of(&client.list(node, true)) < newest && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(100));
    }
}

fn index_of(outcome: &Outcome) -> u64 {
    match outcome {
        Outcome::Ok { seen: Seen::Instances { index, .. } } => *index,
        _ => 0,
    }
}
