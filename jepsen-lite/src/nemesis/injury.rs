//! Injuries: what is done to a cluster that runs, for a few seconds, and then undone.
//!
//! Job: choose whom one hits, do it, undo it, and say whether it has bitten. Invariants: an injury is recorded
//! when it begins and when it is over; the second record is `Installed` only if there is proof that the
//! nodes felt it (the kernel says that they stood still, something was held up on the way, the library that
//! tells the wrong time is in the process); all of it is from the seed but who leads. Neighbours: `links` and `processes` do it, `scenario`
//! says when.

use std::{io, sync::Arc, thread, time::Duration};

use rand::{Rng, rngs::StdRng, seq::SliceRandom};

use super::{kill, start};
use crate::{
    history::{Fault, FaultKind, FaultStatus, Recorder},
    links::{Heal, Latency, Links, Way},
    processes::Processes,
};

/// A kind of injury.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Nemesis {
    /// a node is stopped (SIGSTOP) and goes on
    Pause,
    /// the same with the leader
    PauseLeader,
    /// the same with a majority at once
    PauseMajority,
    /// several nodes are killed and started again, several times, quickly
    Storm,
    /// a minority is cut off from the majority
    Halves,
    /// one node is cut off from all others
    One,
    /// the leader is cut off from all others
    Leader,
    /// one way between the leader and another node is cut
    OneWay,
    /// each of five nodes sees two others: a majority, and no two the same one
    Ring,
    /// one node is cut off and comes back, several times, quickly
    Flapping,
    /// everything between the nodes is late
    Delay,
    /// a node's wall clock is off by up to an hour (needs Debian's package faketime)
    Clock,
    /// the same with the leader's
    ClockLeader,
    /// the wall clocks of the leader and then of each other node jump by an hour, forward and back (needs the same)
    Hour,
}

/// What injuries need.
pub struct Victims<'a> {
    /// The nodes.
    pub processes: &'a mut Processes,
    /// Those of them that may be injured; at least three.
    pub nodes: Vec<usize>,
    /// The ways between them.
    pub links: &'a Links,
    /// Where it is written down.
    pub recorder: &'a Arc<Recorder>,
    /// Who leads, if anybody does.
    pub leader: Option<usize>,
    /// Whether others are injured at the same time: a node that stands still sends nothing that could be held up.
    pub overlap: bool,
}

/// An injury that was done and has to be undone.
pub struct Injury {
    undo: Undo,
    nodes: Vec<usize>,
    note: String,
    /// Whatever began it took hold.
    took_hold: bool,
}

enum Undo {
    /// It is over already.
    Nothing,
    Continue,
    Rejoin {
        ways: Vec<Way>,
        bitten_before: u64,
        heal: Heal,
    },
    Hasten {
        ways: Vec<Way>,
        bitten_before: u64,
    },
    SetClock,
}

/// Kills of a storm, and how long after each other they come.
const STORM_KILLS: usize = 6;
const STORM_PAUSE_MS: u64 = 400;

/// Cuts of a link that flaps, and how long each of them, and each peace between two, lasts.
const FLAPS: usize = 5;
const FLAP_MS_MAX: u64 = 700;

/// What is late is late by so much: less than an election's time, and more.
const LATENCIES_MS: [u64; 3] = [20, 80, 200];

/// So wrong is a clock at most: an hour.
const CLOCK_S_MAX: i64 = 3600;

/// And at least.
const CLOCK_S_MIN: i64 = 60;

/// Between two jumps of clocks: a few heartbeats, and with all jumps of a node more than a tick of the leader's.
const JUMP_PAUSE: Duration = Duration::from_millis(700);

// === impl Nemesis ===

impl Nemesis {
    /// Whether it sets a clock off, which takes a library that may not be there.
    pub fn sets_a_clock(self) -> bool {
        matches!(self, Self::Clock | Self::ClockLeader | Self::Hour)
    }

    /// How many nodes it needs.
    pub fn nodes_min(self) -> u8 {
        match self {
            // Of three nodes, everyone in a ring sees all.
            Self::Ring => 5,
            _ => 3,
        }
    }

    /// Does it.
    pub fn injure(self, victims: &mut Victims<'_>, rng: &mut StdRng) -> io::Result<Injury> {
        let count = victims.nodes.len();
        let mut all = victims.nodes.clone();
        all.shuffle(rng);
        let one = all[0];
        let leader = victims.leader.filter(|leader| all.contains(leader)).unwrap_or(one);
        let heal = if rng.random() { Heal::Resume } else { Heal::Reset };
        let cut = |ways: Vec<Way>, nodes: Vec<usize>| (ways, nodes, heal);
        let (ways, nodes, heal) = match self {
            Self::Pause => return pause(self, victims, &[one]),
            Self::PauseLeader => return pause(self, victims, &[leader]),
            Self::PauseMajority => return pause(self, victims, &all[..=count / 2]),
            Self::Storm => return storm(victims, &all, rng),
            Self::Flapping => return flapping(victims, one, rng),
            Self::Delay => return Ok(delay(victims, rng)),
            Self::Clock => return set_clock(victims, one, rng),
            Self::ClockLeader => return set_clock(victims, leader, rng),
            Self::Hour => return jump(victims, leader),
            Self::Halves => {
                let (minority, majority) = all.split_at((count - 1) / 2);
                cut(both_ways(minority, majority), minority.to_vec())
            }
            Self::One => cut(both_ways(&[one], &all[1..]), vec![one]),
            Self::Leader => {
                all.retain(|node| *node != leader);
                cut(both_ways(&[leader], &all), vec![leader])
            }
            Self::OneWay => {
                all.retain(|node| *node != leader);
                let other = all[rng.random_range(0..all.len())];
                let way = if rng.random() { (leader, other) } else { (other, leader) };
                cut(vec![way], vec![way.0, way.1])
            }
            Self::Ring => {
                let place = |node: usize| all.iter().position(|other| *other == node).unwrap_or_default();
                let apart = |(from, to): &Way| {
                    let steps = place(*from).abs_diff(place(*to));
                    steps > 1 && steps < count - 1
                };
                let ways = all.iter().flat_map(|from| all.iter().map(|to| (*from, *to))).filter(apart);
                cut(ways.collect(), all.clone())
            }
        };
        Ok(partition(self, victims, ways, nodes, heal))
    }
}

fn both_ways(ones: &[usize], others: &[usize]) -> Vec<Way> {
    ones.iter().flat_map(|one| others.iter().flat_map(|other| [(*one, *other), (*other, *one)])).collect()
}

fn pause(nemesis: Nemesis, victims: &mut Victims<'_>, nodes: &[usize]) -> io::Result<Injury> {
    // Written down first: from then on a node may be silent.
    let note = format!("{nemesis:?}");
    victims.record(FaultKind::Pause, nodes, true, note.clone());
    let mut took_hold = true;
    for node in nodes {
        took_hold &= victims.processes.pause(*node, true)?;
    }
    Ok(Injury { undo: Undo::Continue, nodes: nodes.to_vec(), note, took_hold })
}

fn partition(
    nemesis: Nemesis,
    victims: &mut Victims<'_>,
    ways: Vec<Way>,
    nodes: Vec<usize>,
    heal: Heal,
) -> Injury {
    let names: Vec<String> = ways
        .iter()
        .map(|(from, to)| format!("{} → {}", victims.processes.name(*from), victims.processes.name(*to)))
        .collect();
    let note = format!("{nemesis:?}: {}", names.join(", "));
    victims.record(FaultKind::Partition, &nodes, true, note.clone());
    let bitten_before = victims.links.bitten(&ways);
    victims.links.cut_ways(&ways);
    let undo = Undo::Rejoin { ways, bitten_before, heal };
    Injury { undo, nodes, note, took_hold: true }
}

fn flapping(victims: &mut Victims<'_>, node: usize, rng: &mut StdRng) -> io::Result<Injury> {
    let others: Vec<usize> = victims.nodes.iter().copied().filter(|other| *other != node).collect();
    let ways = both_ways(&[node], &others);
    let nemesis = Nemesis::Flapping;
    for flap in 1..=FLAPS {
        let injury = partition(nemesis, victims, ways.clone(), vec![node], Heal::Resume);
        thread::sleep(Duration::from_millis(rng.random_range(FLAP_MS_MAX / 2..=FLAP_MS_MAX)));
        // The last one is undone like any other.
        if flap == FLAPS {
            return Ok(injury);
        }
        injury.undo(victims)?;
        thread::sleep(Duration::from_millis(rng.random_range(0..=FLAP_MS_MAX)));
    }
    unreachable!("the last flap returns")
}

fn delay(victims: &mut Victims<'_>, rng: &mut StdRng) -> Injury {
    let all = victims.nodes.clone();
    let ways: Vec<Way> = both_ways(&all, &all).into_iter().filter(|(from, to)| from != to).collect();
    let base = Duration::from_millis(LATENCIES_MS[rng.random_range(0..LATENCIES_MS.len())]);
    let latency = Latency { base, jitter: base };
    let note = format!("{latency:?}");
    victims.record(FaultKind::Delay, &all, true, note.clone());
    let bitten_before = victims.links.bitten(&ways);
    victims.links.slow_down(&ways, latency);
    Injury { undo: Undo::Hasten { ways, bitten_before }, nodes: all, note, took_hold: true }
}

fn set_clock(victims: &mut Victims<'_>, node: usize, rng: &mut StdRng) -> io::Result<Injury> {
    let offset_s = rng.random_range(CLOCK_S_MIN..=CLOCK_S_MAX) * if rng.random() { 1 } else { -1 };
    let note = format!("by {offset_s} s");
    victims.record(FaultKind::ClockOff, &[node], true, note.clone());
    victims.processes.set_clock(node, offset_s)?;
    Ok(Injury { undo: Undo::SetClock, nodes: vec![node], note, took_hold: true })
}

/// Forward, back by twice as much, and so on with the next: at the end all are behind.
fn jump(victims: &mut Victims<'_>, leader: usize) -> io::Result<Injury> {
    let others = victims.nodes.iter().copied().filter(|node| *node != leader);
    let nodes: Vec<usize> = std::iter::once(leader).chain(others).collect();
    let note = format!("by {CLOCK_S_MAX} s and by -{CLOCK_S_MAX} s, one after the other");
    victims.record(FaultKind::ClockOff, &nodes, true, note.clone());
    for node in &nodes {
        for offset_s in [CLOCK_S_MAX, -CLOCK_S_MAX] {
            victims.processes.set_clock(*node, offset_s)?;
            thread::sleep(JUMP_PAUSE);
        }
    }
    Ok(Injury { undo: Undo::SetClock, nodes, note, took_hold: true })
}

/// Kills come so quickly that some hit a node that is starting, and some a cluster without a quorum.
fn storm(victims: &mut Victims<'_>, nodes: &[usize], rng: &mut StdRng) -> io::Result<Injury> {
    let nodes = &nodes[..=nodes.len() / 2];
    for number in 0..STORM_KILLS {
        let node = [nodes[number % nodes.len()]];
        kill(victims.processes, victims.recorder, &node, "storm")?;
        start_and_tell(victims, &node)?;
        thread::sleep(Duration::from_millis(rng.random_range(0..=STORM_PAUSE_MS)));
    }
    Ok(Injury { undo: Undo::Nothing, nodes: nodes.to_vec(), note: String::new(), took_hold: true })
}

/// Starts nodes, and tells the links which processes they are now.
fn start_and_tell(victims: &mut Victims<'_>, nodes: &[usize]) -> io::Result<()> {
    let pids = start(victims.processes, victims.recorder, nodes)?;
    for (node, pid) in nodes.iter().zip(pids) {
        victims.links.set_process(*node, pid);
    }
    Ok(())
}

// === impl Injury ===

impl Injury {
    /// The nodes whose processes have to be there when it is undone.
    pub fn held(&self) -> &[usize] {
        match self.undo {
            Undo::Continue | Undo::SetClock => &self.nodes,
            Undo::Nothing | Undo::Rejoin { .. } | Undo::Hasten { .. } => &[],
        }
    }

    /// Undoes it. What it was done to may need a while to recover; the nodes that were killed are returned.
    pub fn undo(self, victims: &mut Victims<'_>) -> io::Result<Vec<usize>> {
        let Self { undo, nodes, note, took_hold } = self;
        let (kind, bitten) = match undo {
            Undo::Nothing => return Ok(nodes),
            Undo::Continue => {
                let mut went_on = true;
                for node in &nodes {
                    went_on &= victims.processes.pause(*node, false)?;
                }
                (FaultKind::Continue, went_on)
            }
            Undo::Rejoin { ways, bitten_before, heal } => {
                let bitten = victims.links.bitten(&ways) > bitten_before;
                victims.links.heal_ways(&ways, heal);
                (FaultKind::Rejoin, bitten)
            }
            Undo::Hasten { ways, bitten_before } => {
                let bitten = victims.links.bitten(&ways) > bitten_before;
                victims.links.speed_up(&ways);
                (FaultKind::Hasten, bitten)
            }
            Undo::SetClock => {
                let mut bitten = true;
                for node in &nodes {
                    bitten &= victims.processes.asks_our_clock(*node)?;
                    victims.processes.set_clock(*node, 0)?;
                }
                (FaultKind::ClockRight, bitten)
            }
        };
        victims.record(kind, &nodes, took_hold && bitten, note);
        Ok(Vec::new())
    }
}

// === impl Victims ===

impl Victims<'_> {
    fn record(&self, kind: FaultKind, nodes: &[usize], took_hold: bool, note: String) {
        let nodes = nodes.iter().map(|node| self.processes.name(*node).to_owned()).collect();
        let status = match (took_hold, self.overlap) {
            (true, _) => FaultStatus::Installed,
            (false, true) => FaultStatus::Skipped,
            (false, false) => FaultStatus::Indeterminate,
        };
        self.recorder.fault(Fault { kind, nodes, status, note });
    }
}
