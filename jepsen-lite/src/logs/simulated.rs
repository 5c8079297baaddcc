//! Logs from a simulator that is linearizable, and the same made wrong.

use std::time::Duration;

use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use super::*;
use crate::linearizability::{self, Finding, Limits, Partial};

/// What the clients call.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Thing {
    Register,
    Texts,
}

/// A call on its way. `None` for its client: there is none.
enum Call {
    Begun { function: &'static str, value: String },
    Effective { function: &'static str, returns: Option<String> },
}

struct Simulation {
    thing: Thing,
    rng: StdRng,
    state: Option<String>,
    calls: u64,
    log: Vec<String>,
}

impl Simulation {
    /// `clients` call the thing `count` times in all; one call in `lost_one_in` is never heard of again,
    /// whether it takes effect or not.
    fn run(thing: Thing, seed: u64, clients: usize, count: u64, lost_one_in: Option<u32>) -> Vec<String> {
        let rng = StdRng::seed_from_u64(seed);
        let mut simulation = Self { thing, rng, state: None, calls: 0, log: Vec::new() };
        let mut open: Vec<Option<Call>> = (0..clients).map(|_| None).collect();
        let mut processes: Vec<usize> = (0..clients).collect();
        while simulation.calls < count || open.iter().any(Option::is_some) {
            let client = simulation.rng.random_range(0..clients);
            let process = processes[client];
            open[client] = match open[client].take() {
                None if simulation.calls == count => None,
                None => Some(simulation.begin(process)),
                Some(Call::Begun { function, value })
                    if lost_one_in.is_some_and(|one_in| simulation.rng.random_ratio(1, one_in)) =>
                {
                    if simulation.rng.random() {
                        simulation.effect(function, &value);
                    }
                    if simulation.rng.random() {
                        simulation.say(process, "info", function, ":timed-out");
                    }
                    processes[client] += clients;
                    None
                }
                Some(Call::Begun { function, value }) => {
                    let returns = simulation.effect(function, &value);
                    Some(Call::Effective { function, returns })
                }
                Some(Call::Effective { function, returns }) => {
                    match returns {
                        Some(value) => simulation.say(process, "ok", function, &value),
                        None => simulation.say(process, "fail", function, "nil"),
                    }
                    None
                }
            };
        }
        simulation.log
    }

    fn begin(&mut self, process: usize) -> Call {
        self.calls += 1;
        let mut number = || self.rng.random_range(0..5);
        let (function, value) = match (self.thing, number()) {
            (Thing::Register, 0..2) => ("read", "nil".to_owned()),
            (Thing::Register, 2) => ("write", number().to_string()),
            (Thing::Register, _) => ("cas", format!("[{} {}]", number(), number())),
            (Thing::Texts, 0..2) => ("get", "nil".to_owned()),
            (Thing::Texts, 2) if number() == 0 => ("put", format!("\"p{} \"", self.calls)),
            (Thing::Texts, _) => ("append", format!("\"a{} \"", self.calls)),
        };
        self.say(process, "invoke", function, &value);
        Call::Begun { function, value }
    }

    /// It takes effect, and returns this; none: it failed.
    fn effect(&mut self, function: &str, value: &str) -> Option<String> {
        let unquoted = value.trim_matches('"');
        match function {
            "read" => return Some(self.state.clone().unwrap_or_else(|| "nil".to_owned())),
            "get" => return Some(format!("\"{}\"", self.state.as_deref().unwrap_or_default())),
            "append" => self.state.get_or_insert_default().push_str(unquoted),
            "cas" => {
                let (from, to) = unquoted.trim_matches(['[', ']']).split_once(' ').expect("a pair");
                if self.state.as_deref() != Some(from) {
                    return None;
                }
                self.state = Some(to.to_owned());
            }
            _ => self.state = Some(unquoted.to_owned()),
        }
        Some(value.to_owned())
    }

    fn say(&mut self, process: usize, kind: &str, function: &str, value: &str) {
        self.log.push(match self.thing {
            Thing::Register => format!("INFO  jepsen.util - {process}\t:{kind}\t:{function}\t{value}"),
            Thing::Texts => {
                format!("{{:process {process}, :type :{kind}, :f :{function}, :key \"7\", :value {value}}}")
            }
        });
    }
}

fn judge<M: Logged>(format: Format, log: &[String]) -> (KeyLog<M>, Finding) {
    let mut keys = read::<M>(format, log.join("\n").as_bytes()).unwrap();
    assert_eq!(keys.len(), 1);
    let of_key = keys.remove(0);
    let limits = Limits::within(Duration::from_secs(60));
    let finding = linearizability::search(&of_key.model, &of_key.history, limits);
    (of_key, finding)
}

/// It is found, and the order that is shown is one.
#[track_caller]
fn is_found<M: Logged>(format: Format, log: &[String]) -> Partial {
    let (of_key, finding) = judge::<M>(format, log);
    let Finding::Violated(partial) = finding else { panic!("{finding:?}") };
    linearizability::assert_is_order(&of_key.model, &of_key.history, &partial.order);
    partial
}

/// Replaces what one of the returns of this function says.
fn falsify(log: &mut [String], function: &str, value: &str, rng: &mut StdRng) -> u64 {
    let mark = format!(":{function}");
    let returns: Vec<usize> =
        (0..log.len()).filter(|line| log[*line].contains(":ok") && log[*line].contains(&mark)).collect();
    let line = *returns.choose(rng).expect("there are some");
    let old = match log[line].rsplit_once(":value ") {
        Some((before, _)) => format!("{before}:value {value}}}"),
        None => format!("{}\t{value}", log[line].rsplit_once('\t').expect("it has a value").0),
    };
    log[line] = old;
    line as u64 + 1
}

#[test]
fn what_a_linearizable_register_answers_is_valid() {
    for seed in 0..100 {
        for lost_one_in in [None, Some(20), Some(5)] {
            let log = Simulation::run(Thing::Register, seed, 5, 170, lost_one_in);
            assert_eq!(judge::<Register>(Format::Jepsen, &log).1, Finding::Valid, "seed {seed}");
        }
    }
}

#[test]
fn what_linearizable_texts_answer_is_valid() {
    for seed in 0..10 {
        for lost_one_in in [None, Some(50), Some(5)] {
            let log = Simulation::run(Thing::Texts, seed, 10, 1000, lost_one_in);
            assert_eq!(judge::<Texts>(Format::Edn, &log).1, Finding::Valid, "seed {seed}");
        }
    }
}

#[test]
fn a_read_of_what_nobody_wrote_is_found_where_it_stands() {
    let mut rng = StdRng::seed_from_u64(1);
    for seed in 0..50 {
        let mut log = Simulation::run(Thing::Register, seed, 5, 170, Some(20));
        let line = falsify(&mut log, "read", "9", &mut rng);
        let partial = is_found::<Register>(Format::Jepsen, &log);
        let (of_key, _) = judge::<Register>(Format::Jepsen, &log);
        let open = partial.next.iter().filter_map(|operation| of_key.history[*operation].returned);
        assert!(open.min() <= Some(line), "seed {seed}: it goes past line {line}");
    }
}

#[test]
fn a_get_that_lacks_what_was_there_before_it_is_found() {
    let mut rng = StdRng::seed_from_u64(2);
    for seed in 0..10 {
        let mut log = Simulation::run(Thing::Texts, seed, 10, 1000, Some(50));
        // Early on a text may still be empty.
        let late = log.len() / 2;
        falsify(&mut log[late..], "get", "\"\"", &mut rng);
        is_found::<Texts>(Format::Edn, &log);
    }
}

#[test]
fn an_append_that_is_acknowledged_and_lost_is_found() {
    for seed in 0..10 {
        let mut log = Simulation::run(Thing::Texts, seed, 10, 300, None);
        for (function, said, returned) in
            [("put", "\"p\"", "\"p\""), ("append", "\"lost\"", "\"lost\""), ("get", "nil", "\"p\"")]
        {
            for (kind, value) in [("invoke", said), ("ok", returned)] {
                let line =
                    format!("{{:process 99, :type :{kind}, :f :{function}, :key \"7\", :value {value}}}");
                log.push(line);
            }
        }
        is_found::<Texts>(Format::Edn, &log);
    }
}
