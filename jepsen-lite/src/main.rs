//! jepsen-lite: faults against real gogate processes, judged from the clients' records alone.
//!
//! It links no crate of gogate's: a shared bug would pass its own check. Reading order: `scenario` (what a run
//! does), `workload` and `client` (what is asked), `nemesis`, `processes` and `links` (what is done to the
//! nodes), `history` (what is known), `checker` (what it means), `report` (what a person is told). Beside that,
//! `check` judges logs of other programs: `logs`, `model`, `linearizability`.

mod check;
mod checker;
mod client;
mod history;
mod linearizability;
mod links;
mod logs;
mod model;
mod nemesis;
mod processes;
mod report;
mod scenario;
mod workload;

use std::{fs, io, path::PathBuf, process::ExitCode, time::Duration};

use clap::{Parser, Subcommand, ValueEnum};

use crate::{
    checker::Verdict,
    nemesis::Nemesis,
    report::Report,
    scenario::{Faults, Run, Scenario, Settings},
    workload::Work,
};

/// Starts real gogate processes, does harm to them, and judges from the clients' records what was lost.
///
/// Exit code: 0 valid, 1 violated, 2 inconclusive (too little was tried, or the harness failed).
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// The gogate program
    #[arg(long, default_value = "target/release/gogate")]
    bin: PathBuf,
    /// What to do
    #[arg(long, value_enum, default_value_t = Scenario::Kill)]
    scenario: Scenario,
    /// How many faults [default: kill 200, returning-follower 100, failover 50]; faults: goes by --seconds
    #[arg(long)]
    rounds: Option<usize>,
    /// How many clients write to each cluster [default: kill 16, faults 8, returning-follower 2]
    #[arg(long)]
    clients: Option<usize>,
    /// How many clusters share the rounds [default: 1; returning-follower 10]
    #[arg(long)]
    parallel: Option<usize>,
    /// faults: what the clients do
    #[arg(long, value_enum, default_value_t = Work::Registry)]
    workload: Work,
    /// faults: which injuries are done, one after another [default: all that so many nodes allow]
    #[arg(long, value_enum, value_delimiter = ',')]
    nemesis: Vec<Nemesis>,
    /// faults: how many injuries at once
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=3))]
    at_once: u8,
    /// faults: for how long
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// How many nodes a cluster has [default: 3, and 5 if a nemesis needs them]
    #[arg(long, value_parser = clap::value_parser!(u8).range(3..=9))]
    nodes: Option<u8>,
    /// Repeats the plan of faults and operations; how they meet is up to the machine [default: random]
    #[arg(long)]
    seed: Option<u64>,
    /// Where data, logs and histories are put [default: a new folder under the system's temporary one]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Where to put the report as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// Keep data, logs and histories even if nothing is wrong
    #[arg(long)]
    keep: bool,
    /// failover: fail if one takes more than 1 s
    #[arg(long)]
    strict: bool,
    /// Start nothing: judge this history of an earlier run again
    #[arg(long, value_name = "HISTORY")]
    check: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Check(check::Arguments),
}

fn main() -> ExitCode {
    if let Some(error) = processes::become_child() {
        eprintln!("jepsen-lite: cannot become a node: {error}");
        return ExitCode::from(127);
    }
    let arguments = Arguments::parse();
    let verdict = match &arguments.command {
        Some(Command::Check(arguments)) => Ok(check::run(arguments)),
        None => run(&arguments),
    };
    match verdict {
        Ok(Verdict::Valid) => ExitCode::SUCCESS,
        Ok(Verdict::Violated) => ExitCode::from(1),
        Ok(Verdict::Inconclusive) => ExitCode::from(2),
        Err(error) => {
            eprintln!("jepsen-lite: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &Arguments) -> io::Result<Verdict> {
    let settings = settings(arguments)?;
    let runs = match &arguments.check {
        Some(history) => vec![again(&settings, history)?],
        None => {
            fs::create_dir(&settings.dir)
                .map_err(|error| io::Error::other(format!("{}: {error}", settings.dir.display())))?;
            println!("seed {}, everything in {}", settings.seed, settings.dir.display());
            scenario::run(&settings)?
        }
    };
    let report = Report::new(&settings, arguments.strict, &runs);
    print!("{report}");
    if let Some(path) = &arguments.json {
        fs::write(path, report.json())?;
    }
    if report.verdict == Verdict::Valid && arguments.check.is_none() && !arguments.keep {
        fs::remove_dir_all(&settings.dir)?;
    }
    Ok(report.verdict)
}

fn settings(arguments: &Arguments) -> io::Result<Settings> {
    let scenario = arguments.scenario;
    let needed = arguments.nemesis.iter().map(|nemesis| nemesis.nodes_min()).max();
    let nodes = arguments.nodes.or(needed).unwrap_or(3);
    let nemeses = match &*arguments.nemesis {
        [] => Nemesis::value_variants().iter().copied().filter(|one| one.nodes_min() <= nodes).collect(),
        _ if needed > Some(nodes) => return Err(io::Error::other("the nemesis `ring` needs --nodes 5")),
        chosen => chosen.to_vec(),
    };
    let faults = Faults {
        work: arguments.workload,
        nemeses,
        time: Duration::from_secs(arguments.seconds),
        at_once: arguments.at_once.into(),
    };
    let seed = arguments.seed.unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let parent = arguments.dir.clone().unwrap_or_else(std::env::temp_dir);
    fs::create_dir_all(&parent)?;
    let run = format!("jepsen-lite-{seed}-{}", std::process::id());
    Ok(Settings {
        program: match arguments.check {
            Some(_) => arguments.bin.clone(),
            None => processes::check_program(&arguments.bin)?,
        },
        scenario,
        rounds: arguments.rounds.unwrap_or_else(|| scenario.rounds()),
        clients: arguments.clients.unwrap_or_else(|| scenario.clients()),
        parallel: arguments.parallel.unwrap_or_else(|| scenario.parallel()),
        nodes,
        faults,
        seed,
        dir: parent.canonicalize()?.join(run),
    })
}

fn again(settings: &Settings, history: &std::path::Path) -> io::Result<Run> {
    let events = history::read(history)?;
    let dir = history.parent().unwrap_or(history).to_owned();
    Ok(scenario::judge(settings, settings.rounds, dir, events))
}
