//! Changes of the members, and leaders: what must be found, and what must not.

use super::*;
use crate::history::Member;

/// Some members: id, name, whether it votes.
type Members = &'static [(u64, &'static str, bool)];

const FOUNDERS: Members = &[(1, "n1", true), (2, "n2", true), (3, "n3", true)];

impl History {
    fn members(&mut self, client: &str, node: &str, members: Members) {
        let member =
            |(id, name, voter): &(u64, &str, bool)| (*id, Member { name: (*name).to_owned(), voter: *voter });
        let members = members.iter().map(member).collect();
        self.call(client, node, Call::Members, ok_seeing(Seen::Members { members }));
    }

    fn change_members(&mut self, node: &str, change: Change, outcome: Outcome) {
        self.call(CHANGING_CLIENT, node, Call::Change(change), outcome);
    }

    #[track_caller]
    fn ends_with_members(mut self, members: Members, expected: &[&str]) {
        self.members(FINAL_CLIENT, "n1", members);
        let judgement = check_work(Work::Membership, &self.events, &demands());
        let rules: Vec<_> = judgement.violations.iter().map(|violation| violation.rule).collect();
        assert_eq!(rules, expected, "{:?}", judgement.violations);
    }
}

fn founded() -> History {
    let mut history = History::default();
    history.members(CHANGING_CLIENT, "n1", FOUNDERS);
    history
}

fn node(id: u64) -> Outcome {
    ok_seeing(Seen::Node { id })
}

fn add(name: &str) -> Change {
    Change::Add { name: name.to_owned(), learner: false }
}

fn replace(name: &str, dead: u64) -> Change {
    Change::Replace { name: name.to_owned(), dead }
}

#[test]
fn changes_that_are_in_effect_in_the_end_are_valid() {
    let mut history = founded();
    history.change_members("n1", add("n4"), node(4));
    history.members(
        CHANGING_CLIENT,
        "n1",
        &[(1, "n1", true), (2, "n2", true), (3, "n3", true), (4, "n4", false)],
    );
    history.change_members("n2", Change::Promote { id: 4 }, node(4));
    history.change_members("n3", Change::Remove { id: 3 }, node(3));
    // Who is out hears of nothing any more.
    history.members(CHANGING_CLIENT, "n3", FOUNDERS);
    history.change_members("n1", replace("n2", 2), node(5));
    history.change_members("n1", Change::Transfer { to: Some(4) }, node(4));
    history.ends_with_members(&[(1, "n1", true), (4, "n4", true), (5, "n2", true)], &[]);
}

#[test]
fn what_is_unknown_may_be_and_what_was_refused_may_not() {
    let left_open = || {
        let mut history = founded();
        history.change_members("n1", add("n4"), unknown());
        history.change_members("n1", Change::Remove { id: 3 }, unknown());
        history
    };
    left_open().ends_with_members(FOUNDERS, &[]);
    left_open().ends_with_members(&[(1, "n1", true), (2, "n2", true), (4, "n4", true)], &[]);

    let refused = || {
        let mut history = founded();
        history.change_members("n1", add("n4"), fail(503));
        history.change_members("n1", Change::Remove { id: 3 }, fail(409));
        history
    };
    let rule = "the members are not those that were acknowledged";
    refused().ends_with_members(FOUNDERS, &[]);
    refused().ends_with_members(&[(1, "n1", true), (2, "n2", true)], &[rule]);
    refused()
        .ends_with_members(&[(1, "n1", true), (2, "n2", true), (3, "n3", true), (4, "n4", true)], &[rule]);
}

#[test]
fn a_removal_that_was_unknown_and_then_finds_nobody_was_made() {
    let mut history = founded();
    history.change_members("n1", Change::Remove { id: 3 }, unknown());
    history.change_members("n1", Change::Remove { id: 3 }, fail(404));
    history.ends_with_members(FOUNDERS, &["the members are not those that were acknowledged"]);
}

#[test]
fn an_acknowledged_change_that_the_same_node_does_not_show_is_found() {
    let mut history = founded();
    history.change_members("n1", Change::Remove { id: 3 }, node(3));
    history.members(CHANGING_CLIENT, "n1", FOUNDERS);
    history
        .ends_with_members(&[(1, "n1", true), (2, "n2", true)], &["an acknowledged change is not in effect"]);
}

#[test]
fn a_voter_that_does_not_vote_in_the_end_is_found() {
    let mut history = founded();
    history.change_members("n1", add("n4"), node(4));
    let members = &[(1, "n1", true), (2, "n2", true), (3, "n3", true), (4, "n4", false)];
    history.ends_with_members(members, &["the members are not those that were acknowledged"]);
}

#[test]
fn an_id_that_comes_again_is_found() {
    let mut history = founded();
    history.change_members("n1", Change::Remove { id: 3 }, node(3));
    history.change_members("n1", add("n3"), node(3));
    history.ends_with_members(FOUNDERS, &["an id is used twice"]);
}

#[test]
fn two_leaders_of_one_term_are_found_whatever_is_tried() {
    let mut history = founded();
    history.status("n1", Some("n1"), 3);
    history.status("n2", None, 4);
    history.status("n3", Some("n2"), 4);
    history.status("n1", Some("n1"), 3);
    history.ends_with_members(FOUNDERS, &[]);
    let mut history = founded();
    history.status("n1", Some("n1"), 3);
    history.status("n3", Some("n2"), 3);
    history.ends_with_members(FOUNDERS, &["a term has two leaders"]);
}
