//! What a call costs: for the ignored tests that print it, which benches/README.md names.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

/// So long each round lasts, about: short against the time that others on the machine take at once.
const ROUND: Duration = Duration::from_millis(5);
const ROUNDS: usize = 100;

/// Prints how many nanoseconds of this thread's own time a call takes, in the median of the rounds.
pub(crate) fn print<T>(what: &str, mut call: impl FnMut() -> T) {
    let (begin, mut calls) = (Instant::now(), 0_u32);
    while begin.elapsed() < 10 * ROUND {
        black_box(call());
        calls += 1;
    }
    let calls = (calls / 10).max(1);
    let mut rounds: Vec<Duration> = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let begin = own_time();
        for _ in 0..calls {
            black_box(call());
        }
        rounds.push(own_time() - begin);
    }
    rounds.sort_unstable();
    println!("{what}: {:.0} ns", rounds[ROUNDS / 2].as_nanos() as f64 / f64::from(calls));
}

fn own_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    now.try_into().expect("a thread's time is never negative")
}
