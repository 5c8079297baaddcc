//! What watchers were told: what must be found, and what must not.

use super::*;
use crate::history::Told;

impl History {
    fn told(&mut self, watcher: &str, index: u64, told: Told) {
        self.clock_us += 1000;
        let (watcher, node) = (watcher.to_owned(), "n1".to_owned());
        self.events.push(Event::Watched { at_us: self.clock_us, watcher, node, index, told });
    }

    fn change(&mut self, watcher: &str, index: u64, id: &str, content: Option<&str>) {
        let (id, content) = (id.to_owned(), content.map(str::to_owned));
        self.told(watcher, index, Told::Change { id, content });
    }

    fn snapshot(&mut self, watcher: &str, index: u64, instances: &[(&str, &str)]) {
        let Seen::Instances { instances, .. } = list(instances) else { unreachable!("a list has instances") };
        self.told(watcher, index, Told::Snapshot { instances });
    }

    #[track_caller]
    fn watches_break(self, expected: &[&str]) {
        let judgement = check_work(Work::Watches, &self.events, &demands());
        let rules: Vec<_> = judgement.violations.iter().map(|violation| violation.rule).collect();
        assert_eq!(rules, expected, "{:?}", judgement.violations);
    }
}

/// One watcher that was told all there was: `a` at 3, `b` at 4, `a` gone at 5, `c` at 6.
fn watched() -> History {
    let mut history = History::default();
    history.snapshot("w1", 2, &[]);
    history.change("w1", 3, "a", Some("1"));
    history.change("w1", 4, "b", Some("2"));
    history.change("w1", 5, "a", None);
    history.change("w1", 6, "c", Some("3"));
    history
}

#[test]
fn watchers_that_are_told_alike_are_valid_wherever_they_begin_and_end() {
    let mut history = watched();
    history.snapshot("w2", 3, &[("a", "1")]);
    history.change("w2", 4, "b", Some("2"));
    history.change("w2", 5, "a", None);
    history.snapshot("w2", 6, &[("b", "2"), ("c", "3")]);
    let registered = ok_seeing(Seen::Registered { created: true, epoch: 4 });
    history.write(register("b", "2"), registered);
    history.write(deregister("a"), ok_seeing(Seen::Removed { index: 5 }));
    history.watches_break(&[]);
}

#[test]
fn a_change_that_one_watcher_misses_is_found() {
    let mut history = watched();
    history.snapshot("w2", 2, &[]);
    history.change("w2", 3, "a", Some("1"));
    history.change("w2", 5, "a", None);
    history.watches_break(&["a change is left out"]);
}

#[test]
fn a_write_that_was_acknowledged_and_no_watcher_was_told_of_is_found() {
    let mut history = History::default();
    history.snapshot("w1", 2, &[]);
    history.write(register("b", "2"), ok_seeing(Seen::Registered { created: true, epoch: 3 }));
    history.change("w1", 4, "a", Some("1"));
    history.watches_break(&["a change is left out"]);
}

#[test]
fn a_change_that_comes_twice_or_out_of_order_is_found() {
    let rule = "a change is told twice, or out of order";
    let mut history = watched();
    history.change("w1", 6, "c", Some("3"));
    history.watches_break(&[rule]);
    let mut history = watched();
    history.change("w1", 5, "a", None);
    history.watches_break(&[rule]);
}

#[test]
fn a_registration_that_happens_twice_is_found() {
    let mut history = watched();
    history.change("w1", 7, "b", None);
    history.change("w1", 8, "b", Some("2"));
    history.watches_break(&["a registration happens twice"]);
}

#[test]
fn changes_at_one_index_may_be_several() {
    let mut history = watched();
    history.change("w1", 7, "b", None);
    history.change("w1", 7, "c", None);
    history.change("w1", 8, "d", Some("4"));
    history.watches_break(&[]);
}

#[test]
fn a_change_with_two_contents_is_found() {
    let mut history = watched();
    history.snapshot("w2", 3, &[("a", "1")]);
    history.change("w2", 4, "b", Some("other"));
    history.watches_break(&["a change is told in two ways"]);
}

#[test]
fn a_snapshot_that_the_changes_do_not_explain_is_found() {
    let mut history = watched();
    history.snapshot("w2", 5, &[("a", "1"), ("b", "2")]);
    history.watches_break(&["a snapshot is not what the changes make of it"]);
}

fn waited(since: Option<u64>, service: Option<&str>) -> Call {
    Call::Wait { since, service: service.map(str::to_owned) }
}

fn answer(index: u64, instances: &[(&str, &str)]) -> Outcome {
    let Seen::Instances { instances, .. } = list(instances) else { unreachable!("a list has instances") };
    ok_seeing(Seen::Instances { index, instances })
}

#[test]
fn calls_that_wait_are_told_what_is_there_and_may_be_told_the_old_index() {
    let mut history = watched();
    history.call("p1", "n1", waited(None, None), answer(3, &[("a", "1")]));
    history.call("p1", "n1", waited(Some(3), None), answer(5, &[("b", "2")]));
    history.call("p2", "n1", waited(Some(3), Some("b")), answer(5, &[("b", "2")]));
    history.call("p2", "n1", waited(Some(5), Some("b")), answer(5, &[("b", "other")]));
    let acknowledged = ok_seeing(Seen::Registered { created: true, epoch: 6 });
    history.write(register("c", "3"), acknowledged);
    history.call("p2", "n1", waited(Some(5), Some("b")), answer(5, &[("b", "2")]));
    history.watches_break(&[]);
}

#[test]
fn a_call_that_waits_and_goes_back_overlooks_or_makes_up_is_found() {
    let mut history = watched();
    history.call("p1", "n1", waited(Some(5), None), answer(4, &[("a", "1"), ("b", "2")]));
    history.watches_break(&["a call that waits goes back"]);

    let mut history = watched();
    history.write(register("c", "3"), ok_seeing(Seen::Registered { created: true, epoch: 6 }));
    history.call("p1", "n1", waited(Some(5), None), answer(5, &[("b", "2")]));
    history.watches_break(&["a call that waits overlooks a change"]);

    let mut history = watched();
    history.call("p1", "n1", waited(Some(3), None), answer(4, &[("a", "1")]));
    history.watches_break(&["a call that waits is told what is not there"]);
}
