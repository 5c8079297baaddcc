//! Histories made by hand: what must be found, and what must not.

use super::*;
use crate::history::Seen;

mod membership;
mod watches;
mod work;

/// A history in the making. Every call takes a millisecond unless it is left open.
#[derive(Default)]
struct History {
    events: Vec<Event>,
    clock_us: u64,
    ops: u64,
}

impl History {
    fn begin(&mut self, client: &str, node: &str, call: Call) -> u64 {
        self.clock_us += 1000;
        self.ops += 1;
        let (client, node) = (client.to_owned(), node.to_owned());
        self.events.push(Event::Invoke { at_us: self.clock_us, op: self.ops, client, node, call });
        self.ops
    }

    fn end(&mut self, op: u64, outcome: Outcome) {
        self.clock_us += 1000;
        self.events.push(Event::Done { at_us: self.clock_us, op, outcome });
    }

    fn call(&mut self, client: &str, node: &str, call: Call, outcome: Outcome) {
        let op = self.begin(client, node, call);
        self.end(op, outcome);
    }

    fn write(&mut self, call: Call, outcome: Outcome) {
        self.call("c1", "n1", call, outcome);
    }

    fn fault(&mut self, kind: FaultKind, node: &str) {
        self.clock_us += 1000;
        let fault =
            Fault { kind, nodes: vec![node.to_owned()], status: FaultStatus::Installed, note: String::new() };
        self.events.push(Event::Fault { at_us: self.clock_us, fault });
    }

    fn status(&mut self, node: &str, leader: Option<&str>, term: u64) {
        let id = leader.and_then(|name| name.strip_prefix('n')?.parse().ok());
        let seen = Seen::Leader { leader: leader.map(str::to_owned), id, term, applied: 1 };
        self.call("observer", node, Call::Status, ok_seeing(seen));
    }

    /// Both nodes say this at the end.
    fn ends_with(mut self, instances: &[(&str, &str)]) -> Judgement {
        self.final_read("n1", instances);
        self.final_read("n2", instances);
        self.judge()
    }

    fn final_read(&mut self, node: &str, instances: &[(&str, &str)]) {
        for stale in [false, true] {
            self.call(FINAL_CLIENT, node, Call::List { stale }, ok_seeing(list(instances)));
        }
    }

    fn final_document(&mut self, node: &str, version: u64, marker: Option<&str>) {
        let seen = Seen::Document { version, marker: marker.map(str::to_owned) };
        self.call(FINAL_CLIENT, node, Call::GetConfig { stale: false, version: None }, ok_seeing(seen));
    }

    fn judge(self) -> Judgement {
        check(&self.events, &demands())
    }
}

fn demands() -> Demands {
    let nodes = vec!["n1".to_owned(), "n2".to_owned()];
    Demands {
        nodes,
        changes_min: 0,
        acknowledged_min: 0,
        faults: vec![FaultKind::Kill],
        all_take_hold: false,
        faults_min: 0,
    }
}

fn ok() -> Outcome {
    ok_seeing(Seen::Nothing)
}

fn ok_seeing(seen: Seen) -> Outcome {
    Outcome::Ok { seen }
}

fn fail(status: u16) -> Outcome {
    Outcome::Fail { status: Some(status), reason: String::new() }
}

fn unknown() -> Outcome {
    Outcome::Unknown { status: None, reason: String::new() }
}

fn register(id: &str, content: &str) -> Call {
    Call::Register { id: id.to_owned(), content: content.to_owned(), ttl_ms: 0, flaw: None }
}

fn flawed(id: &str, content: &str) -> Call {
    let flaw = Some("it is flawed".to_owned());
    Call::Register { id: id.to_owned(), content: content.to_owned(), ttl_ms: 0, flaw }
}

fn deregister(id: &str) -> Call {
    Call::Deregister { id: id.to_owned() }
}

fn put_config(marker: &str, if_match: u64) -> Call {
    Call::PutConfig { marker: marker.to_owned(), if_match, flaw: None }
}

fn version(version: u64) -> Outcome {
    ok_seeing(Seen::Version { version })
}

fn list(instances: &[(&str, &str)]) -> Seen {
    let instances = instances.iter().map(|(id, content)| ((*id).to_owned(), (*content).to_owned())).collect();
    Seen::Instances { index: 1, instances }
}

#[track_caller]
fn is_valid(judgement: &Judgement) {
    assert_eq!(judgement.verdict(), Verdict::Valid, "{:?} {:?}", judgement.violations, judgement.doubts);
}

#[track_caller]
fn breaks(judgement: &Judgement, rule: &str) {
    let rules: Vec<_> = judgement.violations.iter().map(|violation| violation.rule).collect();
    assert_eq!(rules, [rule], "{:?}", judgement.violations);
    assert_eq!(judgement.verdict(), Verdict::Violated);
}

// === The registry ===

#[test]
fn what_was_acknowledged_and_is_there_is_valid() {
    let mut history = History::default();
    history.write(register("a", "1"), ok());
    history.write(register("b", "1"), ok());
    history.write(deregister("b"), ok());
    history.write(register("c", "1"), fail(503));
    history.write(flawed("d", "1"), fail(422));
    history.write(register("e", "1"), ok());
    history.write(register("e", "2"), ok());
    is_valid(&history.ends_with(&[("a", "1"), ("e", "2")]));
}

#[test]
fn a_missing_registration_is_found() {
    let mut history = History::default();
    history.write(register("a", "1"), ok());
    breaks(&history.ends_with(&[]), "an acknowledged registration is missing");
}

#[test]
fn a_registration_that_is_missing_on_one_node_only_is_found() {
    let mut history = History::default();
    history.write(register("a", "1"), ok());
    history.final_read("n1", &[("a", "1")]);
    history.final_read("n2", &[]);
    breaks(&history.judge(), "an acknowledged registration is missing");
}

#[test]
fn a_registration_that_only_the_stale_read_lacks_is_found() {
    let mut history = History::default();
    history.write(register("a", "1"), ok());
    history.final_read("n1", &[("a", "1")]);
    history.call(FINAL_CLIENT, "n2", Call::List { stale: false }, ok_seeing(list(&[("a", "1")])));
    history.call(FINAL_CLIENT, "n2", Call::List { stale: true }, ok_seeing(list(&[])));
    breaks(&history.judge(), "an acknowledged registration is missing");
}

#[test]
fn a_stale_read_that_is_old_is_a_node_that_is_behind_and_no_loss() {
    let mut history = History::default();
    history.write(register("a", "1"), ok());
    history.final_read("n1", &[("a", "1")]);
    history.final_read("n2", &[("a", "1")]);
    let old = Seen::Instances { index: 0, instances: BTreeMap::new() };
    history.call(FINAL_CLIENT, "n2", Call::List { stale: true }, ok_seeing(old));
    breaks(&history.judge(), "a node is behind at the end");
}

#[test]
fn stale_reads_alone_prove_nothing() {
    let mut history = History::default();
    history.write(register("a", "1"), ok());
    for node in ["n1", "n2"] {
        history.call(FINAL_CLIENT, node, Call::List { stale: true }, ok_seeing(list(&[])));
    }
    assert_eq!(history.judge().verdict(), Verdict::Inconclusive);
}

#[test]
fn a_removal_that_is_undone_is_found() {
    let mut history = History::default();
    history.write(register("a", "1"), ok());
    history.write(deregister("a"), ok());
    breaks(&history.ends_with(&[("a", "1")]), "an acknowledged removal is undone");
}

#[test]
fn an_old_content_is_found() {
    let mut history = History::default();
    history.write(register("a", "1"), ok());
    history.write(register("a", "2"), ok());
    breaks(&history.ends_with(&[("a", "1")]), "an acknowledged registration is undone");
}

#[test]
fn a_failed_write_that_shows_is_found() {
    let mut history = History::default();
    history.write(register("a", "1"), fail(503));
    breaks(&history.ends_with(&[("a", "1")]), "a refused write appears");
}

#[test]
fn a_flawed_write_that_shows_is_found_even_if_its_outcome_is_unknown() {
    let mut history = History::default();
    history.write(flawed("a", "1"), unknown());
    breaks(&history.ends_with(&[("a", "1")]), "a refused write appears");
}

#[test]
fn a_flawed_write_that_is_acknowledged_is_found() {
    let mut history = History::default();
    history.write(flawed("a", "1"), ok());
    breaks(&history.ends_with(&[]), "acknowledged what must be refused");
}

#[test]
fn what_nobody_wrote_is_found() {
    let history = History::default();
    let judgement = history.ends_with(&[("a", "1")]);
    assert!(judgement.violations.iter().all(|violation| violation.rule == "appears from nowhere"));
    assert_eq!(judgement.verdict(), Verdict::Violated);

    let mut history = History::default();
    history.write(register("a", "1"), ok());
    breaks(&history.ends_with(&[("a", "x")]), "appears from nowhere");
}

#[test]
fn an_unknown_write_may_have_happened_or_not() {
    for end in [&[("a", "1"), ("b", "2")][..], &[("b", "1")], &[("a", "1")], &[]] {
        let mut history = History::default();
        history.write(register("a", "1"), unknown());
        history.write(register("b", "1"), ok());
        history.write(register("b", "2"), unknown());
        history.write(deregister("b"), unknown());
        is_valid(&history.ends_with(end));
    }
}

#[test]
fn an_unknown_write_may_happen_after_a_later_acknowledged_one() {
    for end in [&[("a", "1")][..], &[]] {
        let mut history = History::default();
        history.write(register("a", "1"), unknown());
        history.write(deregister("a"), ok());
        is_valid(&history.ends_with(end));
    }
}

#[test]
fn a_write_that_never_ended_is_unknown() {
    for end in [&[("a", "1")][..], &[]] {
        let mut history = History::default();
        history.begin("c1", "n1", register("a", "1"));
        is_valid(&history.ends_with(end));
    }
}

#[test]
fn nodes_have_to_agree_on_what_is_unknown() {
    let mut history = History::default();
    history.write(register("a", "1"), unknown());
    history.final_read("n1", &[("a", "1")]);
    history.final_read("n2", &[]);
    breaks(&history.judge(), "nodes disagree at the end");
}

#[test]
fn an_answer_that_knows_nothing_of_an_acknowledged_registration_is_found() {
    let id = || "a".to_owned();
    for call in [Call::Heartbeat { id: id() }, Call::Get { id: id() }, Call::Deregister { id: id() }] {
        let mut history = History::default();
        history.write(register("a", "1"), ok());
        history.write(call, fail(404));
        breaks(&history.ends_with(&[("a", "1")]), "an answer contradicts an acknowledgement");
    }
}

#[test]
fn a_read_of_an_old_content_is_found() {
    let mut history = History::default();
    history.write(register("a", "1"), ok());
    history.write(register("a", "2"), ok());
    history.write(
        Call::Get { id: "a".to_owned() },
        ok_seeing(Seen::Instance { content: "1".to_owned(), epoch: 1 }),
    );
    breaks(&history.ends_with(&[("a", "2")]), "an answer contradicts an acknowledgement");
}

// === Documents ===

#[test]
fn documents_that_count_up_are_valid() {
    let mut history = History::default();
    history.write(put_config("m1", 0), version(1));
    history.write(put_config("m2", 0), fail(412));
    history.write(put_config("m3", 1), unknown());
    history.write(put_config("m4", 2), version(3));
    for node in ["n1", "n2"] {
        let seen = Seen::Document { version: 2, marker: Some("m3".to_owned()) };
        let old = Call::GetConfig { stale: false, version: Some(2) };
        history.call(FINAL_CLIENT, node, old, ok_seeing(seen));
        history.final_document(node, 3, Some("m4"));
    }
    is_valid(&history.ends_with(&[]));
}

#[test]
fn a_version_that_is_given_twice_is_found() {
    let mut history = History::default();
    let first = history.begin("c1", "n1", put_config("m1", 0));
    let second = history.begin("c2", "n2", put_config("m2", 0));
    history.end(first, version(1));
    history.end(second, version(1));
    breaks(&history.ends_with(&[]), "a document version is not unique");
}

#[test]
fn a_version_that_goes_back_is_found() {
    let mut history = History::default();
    history.write(put_config("m1", 0), version(2));
    history.write(put_config("m2", 0), version(1));
    breaks(&history.ends_with(&[]), "document versions go back");
}

#[test]
fn a_read_that_goes_back_is_found() {
    let mut history = History::default();
    history.write(put_config("m1", 0), version(1));
    history.write(put_config("m2", 1), version(2));
    let seen = Seen::Document { version: 1, marker: Some("m1".to_owned()) };
    history.call("c2", "n2", Call::GetConfig { stale: false, version: None }, ok_seeing(seen));
    breaks(&history.ends_with(&[]), "document versions go back");
}

#[test]
fn writes_at_the_same_time_may_be_acknowledged_in_any_order() {
    let mut history = History::default();
    let first = history.begin("c1", "n1", put_config("m1", 0));
    let second = history.begin("c2", "n2", put_config("m2", 1));
    history.end(second, version(2));
    history.end(first, version(1));
    is_valid(&history.ends_with(&[]));
}

#[test]
fn a_refused_document_that_shows_is_found() {
    let mut history = History::default();
    history.write(put_config("m1", 0), fail(412));
    history.final_document("n1", 1, Some("m1"));
    breaks(&history.ends_with(&[]), "a refused write appears");
}

#[test]
fn a_missing_document_is_found() {
    let mut history = History::default();
    history.write(put_config("m1", 0), version(1));
    history.call(
        FINAL_CLIENT,
        "n1",
        Call::GetConfig { stale: true, version: None },
        ok_seeing(Seen::Document { version: 0, marker: None }),
    );
    breaks(&history.ends_with(&[]), "an acknowledged document is missing");
}

#[test]
fn a_version_with_another_content_is_found() {
    let mut history = History::default();
    history.write(put_config("m1", 0), version(1));
    history.write(put_config("m2", 1), unknown());
    history.final_document("n1", 1, Some("m2"));
    breaks(&history.ends_with(&[]), "a document version has two contents");
}

// === Leadership ===

fn cut_and_return(during: Option<(&str, u64)>, returned: (&str, u64)) -> Judgement {
    let mut history = History::default();
    history.status("n1", Some("n1"), 4);
    history.fault(FaultKind::Cut, "n2");
    history.status("n2", None, 4);
    history.status("n1", during.map(|(leader, _)| leader), during.map_or(4, |(_, term)| term));
    history.fault(FaultKind::Heal, "n2");
    history.status("n2", Some(returned.0), returned.1);
    history.fault(FaultKind::Settled, "n2");
    history.ends_with(&[])
}

#[test]
fn a_leader_that_stays_is_valid() {
    is_valid(&cut_and_return(Some(("n1", 4)), ("n1", 4)));
    is_valid(&cut_and_return(None, ("n1", 4)));
}

#[test]
fn a_leader_that_is_deposed_is_found() {
    let rule = "a returning follower deposed the leader";
    breaks(&cut_and_return(Some(("n3", 5)), ("n3", 5)), rule);
    breaks(&cut_and_return(Some(("n1", 5)), ("n1", 5)), rule);
    breaks(&cut_and_return(Some(("n1", 4)), ("n2", 5)), rule);
}

#[test]
fn a_clock_that_costs_the_lead_is_found_unless_something_else_may_have() {
    let jumps = |term, other: Option<FaultKind>| {
        let mut history = History::default();
        history.status("n1", Some("n1"), 4);
        history.fault(FaultKind::ClockOff, "n1");
        other.into_iter().for_each(|kind| history.fault(kind, "n2"));
        history.status("n2", Some("n1"), term);
        history.fault(FaultKind::ClockRight, "n1");
        history.ends_with(&[])
    };
    is_valid(&jumps(4, None));
    breaks(&jumps(5, None), "a clock that jumped cost the lead");
    is_valid(&jumps(5, Some(FaultKind::Delay)));
}

#[test]
fn failover_is_the_first_write_that_began_after_the_kill() {
    let mut history = History::default();
    let open = history.begin("w1", "n2", register("a", "1"));
    history.fault(FaultKind::Kill, "n1");
    let killed_us = history.clock_us;
    history.end(open, ok());
    history.call("w1", "n2", register("b", "1"), unknown());
    history.call("w1", "n2", register("c", "1"), ok());
    let acknowledged_us = history.clock_us;
    history.fault(FaultKind::Start, "n1");
    history.call("w2", "n3", register("d", "1"), ok());
    let nodes = ["n1", "n2", "n3"].map(str::to_owned);
    let failovers = failovers(&history.events, &history::operations(&history.events), &nodes);
    let took: Vec<_> = failovers.iter().map(|failover| (&*failover.asked, failover.took_us)).collect();
    assert_eq!(took, [("n2", Some(acknowledged_us - killed_us)), ("n3", None)]);
}

// === Doubts ===

#[test]
fn too_little_of_anything_is_inconclusive() {
    let mut history = History::default();
    history.write(register("a", "1"), ok());
    history.final_read("n1", &[("a", "1")]);
    let judge = |history: &History, demands: Demands| check(&history.events, &demands).verdict();
    assert_eq!(judge(&history, demands()), Verdict::Inconclusive, "n2 was not read");
    history.final_read("n2", &[("a", "1")]);
    assert_eq!(judge(&history, demands()), Verdict::Valid);
    assert_eq!(judge(&history, Demands { acknowledged_min: 2, ..demands() }), Verdict::Inconclusive);
    assert_eq!(judge(&history, Demands { faults_min: 1, ..demands() }), Verdict::Inconclusive);
    history.fault(FaultKind::Kill, "n1");
    assert_eq!(judge(&history, Demands { faults_min: 1, ..demands() }), Verdict::Valid);
}

#[test]
fn a_fault_that_did_not_take_hold_does_not_count() {
    let mut history = History::default();
    for status in [FaultStatus::Skipped, FaultStatus::Indeterminate] {
        let fault = Fault { kind: FaultKind::Kill, nodes: vec![], status, note: String::new() };
        history.events.push(Event::Fault { at_us: 0, fault });
    }
    let judgement = check(&history.events, &Demands { faults_min: 1, nodes: vec![], ..demands() });
    assert_eq!((judgement.faults, judgement.verdict()), (0, Verdict::Inconclusive));
}

#[test]
fn an_answer_that_the_contract_does_not_give_is_a_doubt() {
    for outcome in [fail(422), Outcome::Unknown { status: Some(500), reason: String::new() }] {
        let mut history = History::default();
        history.write(register("a", "1"), outcome);
        assert_eq!(history.ends_with(&[]).verdict(), Verdict::Inconclusive);
    }
}

#[test]
fn a_process_that_ends_by_itself_is_found() {
    let mut history = History::default();
    let (node, problem, log) = ("n1".to_owned(), "it ended".to_owned(), "log".to_owned());
    history.events.push(Event::Finding { at_us: 1, node, problem, log });
    breaks(&history.ends_with(&[]), "a process failed");
}

#[test]
fn an_id_that_two_clients_write_at_once_is_the_harness_at_fault() {
    let mut history = History::default();
    let first = history.begin("c1", "n1", register("a", "1"));
    let second = history.begin("c2", "n1", register("a", "2"));
    history.end(first, ok());
    history.end(second, ok());
    assert_eq!(history.ends_with(&[("a", "2")]).verdict(), Verdict::Inconclusive);
}
