//! `jepsen-lite check`: are the operations in these logs linearizable?
//!
//! Invariants: one verdict for all files, the worst of them; what ran out of time or memory, and what cannot
//! be read, is never valid. Neighbours: `logs` reads, `linearizability` judges.

use std::{
    fs::File,
    io::BufReader,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    checker::Verdict,
    linearizability::{self, Finding, Limits, Partial},
    logs::{self, Format, KeyLog, Logged},
    model::{Register, Texts},
};

/// So many operations of a partial order are printed at most; it is its end that tells.
const ORDER_SHOWN: usize = 200;

/// Judges logs of operations: is there an order in which everything was answered as the model says?
///
/// A call that never returned, or with `:info`, may take effect at any time after it, or never. Exit code:
/// 0 valid, 1 violated, 2 inconclusive (out of time or memory, or a log that cannot be read).
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// What the operations are done to
    #[arg(long, value_enum)]
    model: ModelName,
    /// How the logs are written
    #[arg(long, value_enum)]
    format: Format,
    /// How long one log may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
    /// The logs
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum ModelName {
    /// One register, or one a key: read, write, cas; nil at first
    Register,
    /// A text under each key: get, put, append; empty at first
    Kv,
}

/// Judges each file, and prints what it comes to.
pub fn run(arguments: &Arguments) -> Verdict {
    let verdicts = arguments.files.iter().map(|file| match arguments.model {
        ModelName::Register => check::<Register>(arguments, file),
        ModelName::Kv => check::<Texts>(arguments, file),
    });
    verdicts.fold(Verdict::Valid, worse)
}

fn worse(one: Verdict, other: Verdict) -> Verdict {
    match (one, other) {
        (Verdict::Violated, _) | (_, Verdict::Violated) => Verdict::Violated,
        (Verdict::Inconclusive, _) | (_, Verdict::Inconclusive) => Verdict::Inconclusive,
        (Verdict::Valid, Verdict::Valid) => Verdict::Valid,
    }
}

fn check<M: Logged>(arguments: &Arguments, file: &Path) -> Verdict {
    let limits = Limits::within(Duration::from_secs(arguments.timeout));
    let log = File::open(file).map_err(logs::LogError::Io);
    let mut keys = match log.and_then(|log| logs::read::<M>(arguments.format, BufReader::new(log))) {
        Ok(keys) => keys,
        Err(error) => {
            eprintln!("{}:{error}", file.display());
            return Verdict::Inconclusive;
        }
    };
    // A key that takes all the time there is must not keep a violation on another from being found.
    keys.sort_by_key(|of_key| of_key.history.len());
    let operations: usize = keys.iter().map(|of_key| of_key.history.len()).sum();
    let mut verdict = Verdict::Valid;
    for of_key in &keys {
        let name = match &of_key.key {
            Some(key) => format!("{}: key {key}", file.display()),
            None => file.display().to_string(),
        };
        verdict = worse(
            verdict,
            match linearizability::search(&of_key.model, &of_key.history, limits) {
                Finding::Valid => Verdict::Valid,
                Finding::Violated(partial) => {
                    println!("{name}: not linearizable");
                    print_partial(of_key, &partial);
                    Verdict::Violated
                }
                Finding::Inconclusive(why) => {
                    println!("{name}: inconclusive: {why}");
                    Verdict::Inconclusive
                }
            },
        );
    }
    let word = match verdict {
        Verdict::Valid => "valid",
        Verdict::Violated => "VIOLATED",
        Verdict::Inconclusive => "INCONCLUSIVE",
    };
    println!("{}: {word} ({operations} operations, keys: {})", file.display(), keys.len());
    verdict
}

fn print_partial<M: Logged>(of_key: &KeyLog<M>, partial: &Partial) {
    let (count, all) = (partial.order.len(), of_key.history.len());
    println!("  the longest order in which everything fits has {count} of its {all} operations:");
    let hidden = count.saturating_sub(ORDER_SHOWN);
    if hidden > 0 {
        println!("    … {hidden} before these");
    }
    for operation in &partial.order[hidden..] {
        println!("    {}", of_key.words[*operation]);
    }
    println!("  none of these can come next, and the first of them to return has to:");
    for operation in &partial.next {
        println!("    {}", of_key.words[*operation]);
    }
}
