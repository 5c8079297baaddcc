//! Small histories against brute force, and the bounds of a search.

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;
use crate::model::{Register, RegisterOperation, Text};

fn number(number: u64) -> Option<Text> {
    Some(Text::from(&*number.to_string()))
}

fn judge(history: &[Interval<RegisterOperation>]) -> Finding {
    search(&Register, history, Limits::within(Duration::from_secs(60)))
}

#[test]
fn small_histories_are_judged_as_by_trying_every_order() {
    let mut rng = StdRng::seed_from_u64(5);
    let mut valid = 0;
    for round in 0..4000 {
        let history: Vec<_> = (0..rng.random_range(1..8))
            .map(|_| {
                let called = rng.random_range(0..12);
                let value = |rng: &mut StdRng| {
                    Some(rng.random_range(0..3)).filter(|value| *value > 0).and_then(number)
                };
                let operation = match rng.random_range(0..3) {
                    0 => RegisterOperation::Read(value(&mut rng)),
                    1 => RegisterOperation::Write(value(&mut rng)),
                    _ => RegisterOperation::CompareAndSet(value(&mut rng), value(&mut rng)),
                };
                let returned = rng.random_ratio(3, 4).then(|| called + rng.random_range(0..6));
                Interval { operation, called, returned }
            })
            .collect();
        let expected = has_order(&history, &mut Vec::new(), None);
        valid += usize::from(expected);
        match judge(&history) {
            Finding::Valid => assert!(expected, "round {round}: {history:?}"),
            Finding::Violated(partial) => {
                assert!(!expected, "round {round}: {history:?}");
                assert_is_order(&Register, &history, &partial.order);
            }
            Finding::Inconclusive(why) => panic!("{why}"),
        }
    }
    assert!((500..3500).contains(&valid), "{valid} of them are valid: most say nothing");
}

/// Tries everything. Done are those in `order`.
fn has_order(history: &[Interval<RegisterOperation>], order: &mut Vec<usize>, state: Option<Text>) -> bool {
    let left: Vec<usize> = (0..history.len()).filter(|operation| !order.contains(operation)).collect();
    let first_return = left.iter().filter_map(|operation| history[*operation].returned).min();
    let Some(first_return) = first_return else { return true };
    left.into_iter().filter(|operation| history[*operation].called <= first_return).any(|operation| {
        let Some(state) = Register.step(&state, &history[operation].operation) else { return false };
        order.push(operation);
        let found = has_order(history, order, state);
        order.pop();
        found
    })
}

fn write(value: u64, called: u64) -> Interval<RegisterOperation> {
    Interval { operation: RegisterOperation::Write(number(value)), called, returned: None }
}

fn read(value: u64, called: u64) -> Interval<RegisterOperation> {
    Interval { operation: RegisterOperation::Read(number(value)), called, returned: Some(called + 1) }
}

#[test]
fn many_unknown_writes_do_not_double_the_work_each() {
    // 60 writes that may or may not happen, and a hundred reads of which every third sees another of them.
    let mut history: Vec<_> = (0..60).map(|value| write(value, value)).collect();
    history.extend((0..100).map(|place| read(place / 3, 100 + 2 * place)));
    assert_eq!(judge(&history), Finding::Valid);
    // Each of them is written once: a value does not come back.
    history.push(read(5, 300));
    assert!(matches!(judge(&history), Finding::Violated(_)));
}

#[test]
fn what_runs_out_of_time_or_memory_is_inconclusive() {
    // All of twenty at once, and none explains the read that comes after: every set of them is a place to go.
    let at_once = |value| Interval { returned: Some(100), ..write(value, value) };
    let mut history: Vec<_> = (0..20).map(at_once).collect();
    history.push(read(99, 200));
    let late = Limits { deadline: Instant::now(), ..Limits::within(Duration::ZERO) };
    assert!(matches!(search(&Register, &history, late), Finding::Inconclusive(_)));
    let small = Limits { memory_max: 1000, ..Limits::within(Duration::from_secs(60)) };
    assert!(matches!(search(&Register, &history, small), Finding::Inconclusive(_)));
}

#[test]
fn nothing_at_all_and_nothing_known_are_valid() {
    assert_eq!(judge(&[]), Finding::Valid);
    let unknown = write(1, 1);
    assert_eq!(judge(&[unknown]), Finding::Valid);
}
