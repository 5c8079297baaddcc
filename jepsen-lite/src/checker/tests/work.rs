//! Histories of works under injuries: what must be found, and what must not.

use super::*;

impl History {
    fn injury(&mut self, kind: FaultKind, node: &str, after_ms: u64) {
        self.clock_us += after_ms * 1000;
        self.fault(kind, node);
    }

    /// The rules that it breaks; that it is short, and nobody read at its end, is left aside.
    #[track_caller]
    fn rules(self, work: Work, expected: &[&str]) {
        let judgement = check_work(work, &self.events, &demands());
        let rules: Vec<_> = judgement.violations.iter().map(|violation| violation.rule).collect();
        assert_eq!(rules, expected, "{:?}", judgement.violations);
    }
}

// === The registry ===

fn get(id: &str) -> Call {
    Call::Get { id: id.to_owned() }
}

fn registered(created: bool, epoch: u64) -> Outcome {
    ok_seeing(Seen::Registered { created, epoch })
}

fn seen(content: &str, epoch: u64) -> Outcome {
    ok_seeing(Seen::Instance { content: content.to_owned(), epoch })
}

#[test]
fn what_several_write_at_once_may_come_in_any_order() {
    let mut history = History::default();
    let one = history.begin("c1", "n1", register("a", "1"));
    let other = history.begin("c2", "n2", register("a", "2"));
    history.call("c3", "n2", get("a"), fail(404));
    history.call("c3", "n2", get("a"), seen("2", 5));
    history.end(one, registered(false, 6));
    history.end(other, registered(true, 5));
    history.call("c3", "n1", get("a"), seen("1", 6));
    history.write(deregister("a"), ok());
    history.write(deregister("a"), fail(404));
    history.rules(Work::Registry, &[]);
}

#[test]
fn an_unknown_write_shows_late_once_and_a_refused_one_never() {
    let begin = || {
        let mut history = History::default();
        history.write(register("a", "1"), unknown());
        history.write(register("a", "2"), registered(true, 3));
        history.write(register("a", "3"), fail(503));
        history
    };
    let mut history = begin();
    history.call("c2", "n1", get("a"), seen("1", 4));
    history.write(deregister("a"), ok());
    history.rules(Work::Registry, &[]);

    let mut history = begin();
    history.call("c2", "n1", get("a"), seen("1", 4));
    history.call("c2", "n1", get("a"), seen("2", 3));
    history.rules(Work::Registry, &["not linearizable", "epochs go back"]);

    let mut history = begin();
    history.call("c2", "n1", get("a"), seen("3", 4));
    history.rules(Work::Registry, &["not linearizable"]);
}

#[test]
fn a_list_is_a_read_of_each_instance() {
    let mut history = History::default();
    history.write(register("a", "1"), registered(true, 1));
    history.call("c2", "n2", Call::List { stale: false }, ok_seeing(list(&[])));
    history.write(deregister("a"), ok());
    history.rules(Work::Registry, &["not linearizable"]);
}

#[test]
fn epochs_belong_to_one_registration_and_go_up() {
    let mut history = History::default();
    history.write(register("a", "1"), registered(true, 4));
    history.write(register("a", "2"), registered(false, 4));
    history.write(deregister("a"), ok());
    history.rules(Work::Registry, &["an epoch has two contents", "epochs go back"]);
}

#[test]
fn a_registration_that_happens_twice_is_found_although_an_order_fits() {
    let mut history = History::default();
    let twice = history.begin("c1", "n1", register("a", "1"));
    history.call("c2", "n2", get("a"), seen("1", 4));
    history.end(twice, registered(true, 5));
    history.write(deregister("a"), ok());
    history.rules(Work::Registry, &["a registration happens twice"]);
}

// === Leases ===

fn lease(id: &str) -> Call {
    Call::Register { id: id.to_owned(), content: "1".to_owned(), ttl_ms: 3000, flaw: None }
}

fn beat(id: &str) -> Call {
    Call::Heartbeat { id: id.to_owned() }
}

/// Registered, then after so long a beat, then after so long a look that sees it or not.
fn looked_at(beat_after_ms: u64, look_after_ms: u64, there: bool) -> History {
    let mut history = History::default();
    history.status("n1", Some("n1"), 1);
    history.write(lease("a"), registered(true, 1));
    history.clock_us += beat_after_ms * 1000;
    history.write(beat("a"), ok());
    history.clock_us += look_after_ms * 1000;
    let seen: &[(&str, &str)] = if there { &[("a", "1")] } else { &[] };
    history.call("c2", "n2", Call::List { stale: false }, ok_seeing(list(seen)));
    history
}

#[test]
fn who_was_heard_stays_and_who_was_not_goes() {
    looked_at(2000, 2000, true).rules(Work::Leases, &[]);
    looked_at(2000, 3500, false).rules(Work::Leases, &[]);
    looked_at(2000, 5000, true).rules(Work::Leases, &[]);
}

#[test]
fn an_early_expiry_is_found() {
    looked_at(2000, 2900, false).rules(Work::Leases, &["an instance expires early"]);
    let mut history = History::default();
    history.write(lease("a"), registered(true, 1));
    history.write(beat("a"), fail(404));
    history.rules(Work::Leases, &["an instance expires early"]);
}

#[test]
fn a_late_expiry_is_found_unless_elections_or_faults_explain_it() {
    looked_at(0, 6000, true).rules(Work::Leases, &["an instance outlives its TTL"]);

    let mut history = looked_at(0, 0, true);
    history.status("n1", Some("n2"), 2);
    history.clock_us += 6_000_000;
    history.call("c2", "n2", Call::List { stale: false }, ok_seeing(list(&[("a", "1")])));
    history.rules(Work::Leases, &[]);

    let mut history = looked_at(0, 0, true);
    history.injury(FaultKind::Pause, "n1", 0);
    history.injury(FaultKind::Continue, "n1", 4000);
    history.clock_us += 5_000_000;
    history.call("c2", "n2", Call::List { stale: false }, ok_seeing(list(&[("a", "1")])));
    history.clock_us += 2_000_000;
    history.call("c2", "n2", Call::List { stale: false }, ok_seeing(list(&[("a", "1")])));
    history.rules(Work::Leases, &["an instance outlives its TTL"]);
}

#[test]
fn who_may_come_into_being_later_may_stay() {
    let mut history = looked_at(0, 0, true);
    history.write(lease("a"), unknown());
    history.clock_us += 20_000_000;
    history.call("c2", "n2", Call::List { stale: false }, ok_seeing(list(&[("a", "1")])));
    history.rules(Work::Leases, &[]);
}

// === Documents ===

fn served(marker: &str) -> Outcome {
    ok_seeing(Seen::Served { marker: marker.to_owned() })
}

#[test]
fn a_lost_update_is_found() {
    let mut history = History::default();
    let one = history.begin("c1", "n1", put_config("m1", 0));
    let other = history.begin("c2", "n2", put_config("m2", 0));
    history.end(one, version(1));
    history.end(other, version(2));
    history.rules(Work::Documents, &["an update is lost"]);
}

#[test]
fn versions_may_have_gaps() {
    let mut history = History::default();
    history.write(put_config("m1", 0), version(1));
    history.write(put_config("m2", 1), fail(409));
    history.write(put_config("m3", 1), version(3));
    history.rules(Work::Documents, &[]);
}

#[test]
fn a_proxy_that_goes_back_is_found() {
    let mut history = History::default();
    let one = history.begin("c1", "n1", put_config("m1", 0));
    history.call("look", "n1", Call::Serve, served("m1"));
    history.end(one, version(1));
    let other = history.begin("c1", "n1", put_config("m2", 1));
    history.call("look", "n1", Call::Serve, served("m2"));
    // Another proxy may be behind, while it is not acknowledged.
    history.call("look", "n2", Call::Serve, served("m1"));
    history.call("look", "n1", Call::Serve, served("m1"));
    history.end(other, version(2));
    history.rules(Work::Documents, &["a proxy goes back"]);
}

#[test]
fn what_is_acknowledged_in_peace_is_served_everywhere() {
    let mut history = History::default();
    history.write(put_config("m1", 0), version(1));
    history.write(put_config("m2", 1), version(2));
    history.call("look", "n2", Call::Serve, served("m1"));
    history.rules(Work::Documents, &["an acknowledged document is not served"]);

    let mut history = History::default();
    history.write(put_config("m1", 0), version(1));
    history.fault(FaultKind::Partition, "n2");
    history.write(put_config("m2", 1), version(2));
    history.call("look", "n2", Call::Serve, served("m1"));
    history.fault(FaultKind::Rejoin, "n2");
    history.rules(Work::Documents, &[]);
}

#[test]
fn a_refused_document_that_is_served_is_found() {
    let mut history = History::default();
    history.write(put_config("m1", 0), fail(409));
    history.call("look", "n1", Call::Serve, served("m1"));
    history.call("look", "n1", Call::Serve, served("m9"));
    history.rules(Work::Documents, &["a refused document is served", "appears from nowhere"]);
}

#[test]
fn a_proxy_that_stays_behind_at_the_end_is_found() {
    let mut history = History::default();
    history.fault(FaultKind::Partition, "n2");
    history.write(put_config("m1", 0), version(1));
    history.write(put_config("m2", 1), version(2));
    history.call(FINAL_CLIENT, "n1", Call::Serve, served("m2"));
    history.call(FINAL_CLIENT, "n2", Call::Serve, served("m1"));
    history.rules(Work::Documents, &["nodes disagree at the end"]);
}

// === Traffic ===

#[test]
fn a_request_may_fail_only_while_its_own_node_is_down() {
    let mut history = History::default();
    history.injury(FaultKind::Pause, "n1", 1000);
    history.call("r1", "n1", Call::Request, unknown());
    history.call("r2", "n2", Call::Request, fail(502));
    history.injury(FaultKind::Continue, "n1", 1000);
    history.injury(FaultKind::Partition, "n1", 1000);
    history.call("r1", "n1", Call::Request, fail(503));
    history.injury(FaultKind::Rejoin, "n1", 1000);
    history.injury(FaultKind::Kill, "n2", 1000);
    history.call("r2", "n2", Call::Request, fail(503));
    history.injury(FaultKind::Start, "n2", 1000);
    history.call("r2", "n2", Call::Request, fail(503));
    history.injury(FaultKind::Serves, "n2", 1000);
    history.call("r2", "n2", Call::Request, fail(503));
    history.rules(Work::Traffic, &["a request is lost"; 3]);
}

// === Doubts ===

#[test]
fn an_injury_that_did_not_bite_and_a_node_that_was_not_read_are_doubts() {
    let mut history = History::default();
    history.write(register("a", "1"), registered(true, 1));
    history.write(deregister("a"), ok());
    let fault = |status| Event::Fault {
        at_us: 5_000_000,
        fault: Fault { kind: FaultKind::Rejoin, nodes: vec![], status, note: String::new() },
    };
    let demands =
        Demands { faults: vec![FaultKind::Rejoin], faults_min: 1, all_take_hold: true, ..demands() };
    let judge = |events: &[Event]| check_work(Work::Registry, events, &demands).verdict();
    history.events.push(fault(FaultStatus::Installed));
    assert_eq!(judge(&history.events), Verdict::Inconclusive, "nobody was read");
    for node in ["n1", "n2"] {
        history.call(FINAL_CLIENT, node, Call::List { stale: false }, ok_seeing(list(&[])));
    }
    assert_eq!(judge(&history.events), Verdict::Valid);
    history.events.push(fault(FaultStatus::Indeterminate));
    assert_eq!(judge(&history.events), Verdict::Inconclusive);
}
