//! What a person is told, and a machine.
//!
//! Invariant: a failure comes with its seed, what was done to the nodes and when, the operations that show it
//! and the command that repeats it.

use std::{
    collections::BTreeMap,
    fmt::{self, Display, Formatter},
    path::PathBuf,
};

use clap::ValueEnum;
use serde::Serialize;

use crate::{
    checker::{Failover, Judgement, Verdict, Violation, seconds},
    history::{Event, Operation, Outcome},
    scenario::{HISTORY_FILE, Run, Scenario, Settings},
};

/// So many violations of one rule are printed; all are in the JSON.
const SHOWN_PER_RULE: usize = 3;

/// So much of the timeline before the first and after the last operation of a violation is printed.
const TIMELINE_US: u64 = 5_000_000;

/// What the slowest failover may take with `--strict`.
const WORST_US_MAX: u64 = 1_000_000;

/// Everything about a run.
#[derive(Serialize)]
pub struct Report<'a> {
    /// What it comes to.
    pub verdict: Verdict,
    scenario: Scenario,
    seed: u64,
    /// Repeats it.
    command: String,
    dir: PathBuf,
    clusters: Vec<Cluster<'a>>,
    failover: Option<Times>,
    /// Why the figures are not good enough, if they had to be.
    too_slow: Option<String>,
}

#[derive(Serialize)]
struct Cluster<'a> {
    dir: PathBuf,
    judgement: &'a Judgement,
    timeline: Vec<&'a Event>,
}

/// How long writes waited for a new leader.
#[derive(Serialize)]
struct Times {
    kills: usize,
    median_us: Option<u64>,
    worst_us: Option<u64>,
    by_survivor: BTreeMap<String, Figures>,
    samples: Vec<Failover>,
}

#[derive(Serialize)]
struct Figures {
    samples: usize,
    median_us: Option<u64>,
    worst_us: Option<u64>,
}

// === impl Report ===

impl<'a> Report<'a> {
    /// A report on `runs`. With `strict`, slow failovers are a violation.
    pub fn new(settings: &Settings, strict: bool, runs: &'a [Run]) -> Self {
        let failover = (settings.scenario == Scenario::Failover).then(|| Times::new(runs));
        let too_slow = failover.as_ref().filter(|_| strict).and_then(Times::too_slow);
        let verdicts = || runs.iter().map(|run| run.judgement.verdict());
        let verdict = if too_slow.is_some() || verdicts().any(|verdict| verdict == Verdict::Violated) {
            Verdict::Violated
        } else if runs.is_empty() || verdicts().any(|verdict| verdict == Verdict::Inconclusive) {
            Verdict::Inconclusive
        } else {
            Verdict::Valid
        };
        let clusters = runs
            .iter()
            .map(|run| Cluster { dir: run.dir.clone(), judgement: &run.judgement, timeline: timeline(run) })
            .collect();
        let (scenario, seed, dir) = (settings.scenario, settings.seed, settings.dir.clone());
        let mut command = command(settings);
        if strict {
            command.push_str(" --strict");
        }
        Self { verdict, scenario, seed, command, dir, clusters, failover, too_slow }
    }

    /// The whole of it, for a machine.
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a report has nothing that JSON cannot say")
    }
}

impl Display for Report<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for cluster in &self.clusters {
            cluster.fmt_violations(f)?;
        }
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        let (mut acknowledged, mut faults) = (0, 0);
        for Cluster { judgement, .. } in &self.clusters {
            acknowledged += judgement.acknowledged;
            faults += judgement.faults;
            for (what, times) in &judgement.counts {
                *counts.entry(what).or_default() += times;
            }
        }
        writeln!(f, "\noperations:")?;
        for (what, times) in counts {
            writeln!(f, "  {times:>8}  {what}")?;
        }
        writeln!(f, "  {acknowledged:>8}  acknowledged writes in all, {faults} faults that took hold")?;
        if let Some(times) = &self.failover {
            times.fmt(f)?;
        }
        if let Some(too_slow) = &self.too_slow {
            writeln!(f, "too slow: {too_slow}")?;
        }
        for Cluster { dir, judgement, .. } in &self.clusters {
            for doubt in &judgement.doubts {
                writeln!(f, "doubt ({}): {doubt}", dir.display())?;
            }
        }
        let violations: usize = self.clusters.iter().map(|cluster| cluster.judgement.violations.len()).sum();
        match self.verdict {
            Verdict::Valid => writeln!(f, "valid (seed {})", self.seed),
            Verdict::Violated => {
                writeln!(f, "VIOLATED: {violations} violations (seed {})", self.seed)?;
                self.fmt_where(f)
            }
            Verdict::Inconclusive => {
                writeln!(f, "INCONCLUSIVE: nothing wrong was seen, but see the doubts (seed {})", self.seed)?;
                self.fmt_where(f)
            }
        }
    }
}

impl Report<'_> {
    fn fmt_where(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "repeat it: {}", self.command)?;
        for Cluster { dir, .. } in &self.clusters {
            writeln!(f, "data, logs and {HISTORY_FILE}: {}", dir.display())?;
        }
        Ok(())
    }
}

// === impl Cluster ===

impl Cluster<'_> {
    fn fmt_violations(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut by_rule: BTreeMap<&str, Vec<&Violation>> = BTreeMap::new();
        for violation in &self.judgement.violations {
            by_rule.entry(violation.rule).or_default().push(violation);
        }
        for (rule, violations) in by_rule {
            writeln!(f, "\n{rule}: {} times in {}", violations.len(), self.dir.display())?;
            for violation in violations.iter().take(SHOWN_PER_RULE) {
                writeln!(f, "  {}", violation.text.replace('\n', "\n    "))?;
                self.fmt_operations(f, &violation.operations)?;
            }
        }
        Ok(())
    }

    /// The operations, among what was done to the nodes around them.
    fn fmt_operations(&self, f: &mut Formatter<'_>, operations: &[Operation]) -> fmt::Result {
        let Some(from_us) = operations.iter().map(|operation| operation.invoked_us).min() else {
            return Ok(());
        };
        let to_us = operations.iter().filter_map(|operation| operation.ended_us).max().unwrap_or(from_us);
        let near = from_us.saturating_sub(TIMELINE_US)..=to_us.saturating_add(TIMELINE_US);
        let mut lines: Vec<(u64, String)> =
            operations.iter().map(|operation| (operation.invoked_us, operation.to_string())).collect();
        for event in &self.timeline {
            let (at_us, line) = told(event);
            if near.contains(&at_us) {
                lines.push((at_us, line));
            }
        }
        lines.sort();
        for (at_us, line) in lines {
            writeln!(f, "    {:10.6} s  {line}", seconds(at_us))?;
        }
        Ok(())
    }
}

fn timeline(run: &Run) -> Vec<&Event> {
    run.events.iter().filter(|event| matches!(event, Event::Fault { .. } | Event::Finding { .. })).collect()
}

/// An event of the timeline, in one line.
fn told(event: &Event) -> (u64, String) {
    match event {
        Event::Fault { at_us, fault } => {
            let nodes = fault.nodes.join(", ");
            (*at_us, format!("*** {:?} {nodes} ({:?}) {}", fault.kind, fault.status, fault.note))
        }
        Event::Finding { at_us, node, problem, .. } => (*at_us, format!("*** {node}: {problem}")),
        Event::Invoke { at_us, .. } | Event::Done { at_us, .. } | Event::Watched { at_us, .. } => {
            (*at_us, String::new())
        }
    }
}

impl Display for Operation {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { op, client, node, call, invoked_us, ended_us, outcome } = self;
        let call = serde_json::to_string(call).map_err(|_| fmt::Error)?;
        write!(f, "op {op}: {client} asks {node} {call}: ")?;
        match outcome {
            Outcome::Ok { .. } => write!(f, "ok")?,
            Outcome::Fail { status: Some(status), reason } => write!(f, "failed, {status} {reason}")?,
            Outcome::Fail { status: None, reason } => write!(f, "failed, {reason}")?,
            Outcome::Unknown { reason, .. } => write!(f, "unknown, {reason}")?,
        }
        match ended_us {
            Some(ended_us) => write!(f, ", after {:.6} s", seconds(ended_us - invoked_us)),
            None => write!(f, ", never ended"),
        }
    }
}

// === impl Times ===

impl Times {
    fn new(runs: &[Run]) -> Self {
        let samples: Vec<Failover> = runs.iter().flat_map(|run| run.failovers.iter().cloned()).collect();
        let mut by_survivor: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for sample in &samples {
            by_survivor.entry(sample.asked.clone()).or_default().extend(sample.took_us);
        }
        let all: Vec<u64> = samples.iter().filter_map(|sample| sample.took_us).collect();
        let mut kills: Vec<u64> = samples.iter().map(|sample| sample.killed_at_us).collect();
        kills.dedup();
        let figures = Figures::new(all);
        Self {
            kills: kills.len(),
            median_us: figures.median_us,
            worst_us: figures.worst_us,
            by_survivor: by_survivor.into_iter().map(|(node, took)| (node, Figures::new(took))).collect(),
            samples,
        }
    }

    fn too_slow(&self) -> Option<String> {
        let never = self.samples.iter().filter(|sample| sample.took_us.is_none()).count();
        if never > 0 {
            return Some(format!("{never} times no write was acknowledged before the killed node came back"));
        }
        let worst_us = self.worst_us.filter(|worst_us| *worst_us > WORST_US_MAX)?;
        Some(format!("{:.3} s at worst, {:.3} s are allowed", seconds(worst_us), seconds(WORST_US_MAX)))
    }
}

impl Display for Times {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let figure =
            |us: Option<u64>| us.map_or_else(|| "never".to_owned(), |us| format!("{:.3} s", seconds(us)));
        writeln!(f, "from the leader's kill to the first acknowledged write that began after it:")?;
        for (node, Figures { samples, median_us, worst_us }) in &self.by_survivor {
            writeln!(f, "  {node}: median {}, worst {} of {samples}", figure(*median_us), figure(*worst_us))?;
        }
        let Self { kills, median_us, worst_us, .. } = self;
        writeln!(f, "  all: median {}, worst {} of {kills} kills", figure(*median_us), figure(*worst_us))
    }
}

// === impl Figures ===

impl Figures {
    fn new(mut took_us: Vec<u64>) -> Self {
        took_us.sort_unstable();
        Self {
            samples: took_us.len(),
            median_us: took_us.get(took_us.len() / 2).copied(),
            worst_us: took_us.last().copied(),
        }
    }
}

/// The command that repeats a run.
fn command(settings: &Settings) -> String {
    let Settings { program, scenario, rounds, clients, parallel, nodes, faults, seed, .. } = settings;
    let scenario = name(scenario);
    let faults = match settings.scenario {
        Scenario::Faults => {
            let nemeses: Vec<String> = faults.nemeses.iter().map(name).collect();
            format!(
                " --workload {} --nemesis {} --at-once {} --seconds {} --nodes {nodes}",
                name(&faults.work),
                nemeses.join(","),
                faults.at_once,
                faults.time.as_secs(),
            )
        }
        Scenario::Kill | Scenario::ReturningFollower | Scenario::Failover => String::new(),
    };
    format!(
        "cargo run --release -p jepsen-lite -- --bin {} --scenario {scenario} --rounds {rounds} --clients {clients} --parallel {parallel}{faults} --seed {seed}",
        program.display()
    )
}

/// As the command line has it.
fn name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}
