//! The search for an order: depth first, with a memory.
//!
//! The algorithm is that of Wing and Gong ("Testing and Verifying Concurrent Objects", 1993) with the memory
//! of Lowe ("Testing for Linearizability", 2017). Calls and returns lie in a linked list in the order of
//! time. What may take effect next is any call before the first return; it is tried, and its call and return
//! are lifted out of the list; if a return comes first and nothing fits, the last choice is taken back.
//!
//! Three things keep it short. A read that fits takes effect at once, and nothing else is tried in its place:
//! wherever it stands in an order, it can as well stand here. Operations that never returned are not in the
//! list; they are tried last, before a return that nothing else leads to: what nobody saw is best left out.
//! And of two of those that are alike, the one that was called first comes first.

use std::time::Instant;

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    Finding, Interval, Limits, Partial,
    cache::{Used, Visited, fingerprint},
};
use crate::model::Model;

/// The clock is looked at every so many steps.
const STEPS_PER_LOOK: u32 = 4096;

/// Searches for an order of `history`.
pub fn search<M: Model>(model: &M, history: &[Interval<M::Operation>], limits: Limits) -> Finding {
    let mut search = Search::new(model, history);
    let mut steps: u32 = 0;
    while search.missing > 0 {
        steps = steps.wrapping_add(1);
        if steps.is_multiple_of(STEPS_PER_LOOK) && Instant::now() > limits.deadline {
            return Finding::Inconclusive("it ran out of time");
        }
        if search.visited.bytes() > limits.memory_max {
            return Finding::Inconclusive("it has more to remember than it may");
        }
        match search.candidate() {
            Some(candidate) => search.attempt(candidate),
            None if search.take_back() => {}
            None => return Finding::Violated(search.longest.partial),
        }
    }
    Finding::Valid
}

struct Search<'a, M: Model> {
    model: &'a M,
    history: &'a [Interval<M::Operation>],
    timeline: Timeline,
    /// The operations that never returned, those that are alike together.
    unknown: Vec<Kind>,
    /// A random number for each operation; those that took effect, added up, stand for their set.
    numbers: Vec<u128>,

    // Where the search is.
    state: M::State,
    effective: u128,
    used: Used,
    /// Operations that returned and have not taken effect yet.
    missing: usize,
    /// How it came here.
    choices: Vec<Choice<M::State>>,
    /// What it tries next.
    cursor: Cursor,

    // Where it has been.
    visited: Visited,
    longest: Longest,
}

/// Operations that are alike and never returned, in the order of their calls, in which they take effect.
struct Kind {
    /// Each with the number of the timeline's entry before which it was called.
    members: Vec<(usize, usize)>,
}

struct Choice<S> {
    /// What was chosen.
    candidate: Candidate,
    operation: usize,
    /// The place and the state from which it was.
    cursor: Cursor,
    state: S,
}

#[derive(Debug, Clone, Copy)]
enum Candidate {
    /// The call in the timeline.
    Returned { entry: usize },
    /// The next one of a kind of unknown operations.
    Unknown { kind: usize },
}

/// The calls up to the first return are tried: the reads, then, from the start again, the rest; then, standing
/// at that return, each kind of unknown operations.
#[derive(Debug, Clone, Copy)]
struct Cursor {
    reads: bool,
    entry: usize,
    kind: usize,
}

/// The longest order so far. To copy it again and again would take longer than the search.
#[derive(Default)]
struct Longest {
    partial: Partial,
    /// So much of it is also the beginning of the present one.
    common: usize,
}

// === impl Search ===

impl<'a, M: Model> Search<'a, M> {
    fn new(model: &'a M, history: &'a [Interval<M::Operation>]) -> Self {
        let timeline = Timeline::new(history);
        let mut open: Vec<usize> =
            (0..history.len()).filter(|operation| history[*operation].returned.is_none()).collect();
        open.sort_by_key(|operation| history[*operation].called);
        let returned = history.len() - open.len();
        let mut unknown: Vec<Kind> = Vec::new();
        for operation in open {
            let Interval { operation: done, called, .. } = &history[operation];
            let member = (operation, timeline.position(*called));
            match unknown.iter_mut().find(|kind| history[kind.members[0].0].operation == *done) {
                Some(kind) => kind.members.push(member),
                None => unknown.push(Kind { members: vec![member] }),
            }
        }
        // Any numbers will do; the same ones every time make a search the same every time.
        let mut rng = StdRng::seed_from_u64(0);
        Self {
            model,
            history,
            numbers: history.iter().map(|_| rng.random()).collect(),
            state: model.initial(),
            effective: 0,
            used: Used::none_of(unknown.len()),
            missing: returned,
            choices: Vec::new(),
            cursor: Cursor::at(timeline.first()),
            visited: Visited::default(),
            longest: Longest::default(),
            timeline,
            unknown,
        }
    }

    /// What may take effect next, from the cursor on; the cursor then stands at it.
    fn candidate(&mut self) -> Option<Candidate> {
        loop {
            let entry = self.cursor.entry;
            let at = &self.timeline.entries[entry];
            if at.is_call {
                if M::is_read(&self.history[at.operation].operation) == self.cursor.reads {
                    return Some(Candidate::Returned { entry });
                }
                self.cursor.entry = self.timeline.next[entry];
            } else if self.cursor.reads {
                self.cursor = Cursor { reads: false, ..Cursor::at(self.timeline.first()) };
            } else {
                break;
            }
        }
        while self.cursor.kind < self.unknown.len() {
            let kind = self.cursor.kind;
            if self.next_of(kind).is_some_and(|(_, before)| before <= self.cursor.entry) {
                return Some(Candidate::Unknown { kind });
            }
            self.cursor.kind += 1;
        }
        None
    }

    /// The first of a kind that has not taken effect, and before which entry it was called.
    fn next_of(&self, kind: usize) -> Option<(usize, usize)> {
        self.unknown[kind].members.get(self.used.of_kind(kind) as usize).copied()
    }

    /// Goes there if the model allows it and it is worth the way; else past it.
    fn attempt(&mut self, candidate: Candidate) {
        let operation = match candidate {
            Candidate::Returned { entry } => self.timeline.entries[entry].operation,
            Candidate::Unknown { kind } => self.next_of(kind).expect("it was found to have one").0,
        };
        let Some(state) = self.model.step(&self.state, &self.history[operation].operation) else {
            return self.advance();
        };
        if matches!(candidate, Candidate::Unknown { .. }) && self.is_idle(operation, &state) {
            return self.advance();
        }
        self.set(candidate, true);
        let place = self.effective.wrapping_add(fingerprint(&state));
        if !self.visited.insert(place, &self.used) {
            self.set(candidate, false);
            return self.advance();
        }
        let state = std::mem::replace(&mut self.state, state);
        self.choices.push(Choice { candidate, operation, cursor: self.cursor, state });
        if let Candidate::Returned { entry } = candidate {
            self.timeline.lift(entry);
            self.missing -= 1;
        }
        self.cursor = Cursor::at(self.timeline.first());
    }

    /// Whether an unknown operation leads nowhere with `state`: it did not have to happen, so it is of no use
    /// if nothing more is possible after it, nor if it makes the unknown one just before it pointless.
    fn is_idle(&self, operation: usize, state: &M::State) -> bool {
        let alone = |last: &Choice<M::State>| {
            matches!(last.candidate, Candidate::Unknown { .. })
                && self.model.step(&last.state, &self.history[operation].operation).as_ref() == Some(state)
        };
        M::outdoes(&self.state, state) || self.choices.last().is_some_and(alone)
    }

    /// Takes choices back, up to one that had others beside it, and goes past that; false: there is none.
    fn take_back(&mut self) -> bool {
        self.note_longest();
        while let Some(Choice { candidate, cursor, state, .. }) = self.choices.pop() {
            self.longest.common = self.longest.common.min(self.choices.len());
            self.set(candidate, false);
            if let Candidate::Returned { entry } = candidate {
                self.timeline.put_back(entry);
                self.missing += 1;
            }
            self.state = state;
            self.cursor = cursor;
            if !cursor.reads {
                self.advance();
                return true;
            }
        }
        false
    }

    fn advance(&mut self) {
        let entry = self.cursor.entry;
        if self.timeline.entries[entry].is_call {
            self.cursor.entry = self.timeline.next[entry];
        } else {
            self.cursor.kind += 1;
        }
    }

    /// Notes that an operation takes effect, or that it does not, in the set of those that do.
    fn set(&mut self, candidate: Candidate, takes_effect: bool) {
        match (candidate, takes_effect) {
            (Candidate::Returned { entry }, _) => {
                self.effective ^= self.numbers[self.timeline.entries[entry].operation];
            }
            (Candidate::Unknown { kind }, true) => self.used.add(kind),
            (Candidate::Unknown { kind }, false) => self.used.remove(kind),
        }
    }

    /// The search stands at a return that nothing leads to: is that farther than ever?
    fn note_longest(&mut self) {
        let known = self.longest.partial.order.len();
        if known > 0 && self.choices.len() <= known {
            return;
        }
        let common = self.longest.common;
        let partial = &mut self.longest.partial;
        partial.order.truncate(common);
        partial.order.extend(self.choices[common..].iter().map(|choice| choice.operation));
        partial.next = self.timeline.open_calls();
        self.longest.common = self.choices.len();
    }
}

// === impl Cursor ===

impl Cursor {
    fn at(entry: usize) -> Self {
        Self { reads: true, entry, kind: 0 }
    }
}

/// Calls and returns in the order of time, as a linked list. The last entry is the list's head.
struct Timeline {
    entries: Vec<Entry>,
    next: Vec<usize>,
    previous: Vec<usize>,
}

struct Entry {
    operation: usize,
    at: u64,
    is_call: bool,
    /// The return of a call.
    returns: usize,
}

// === impl Timeline ===

impl Timeline {
    fn new<O>(history: &[Interval<O>]) -> Self {
        let mut entries = Vec::new();
        for (operation, interval) in history.iter().enumerate() {
            if let Some(returned) = interval.returned {
                for (at, is_call) in [(interval.called, true), (returned, false)] {
                    entries.push(Entry { operation, at, is_call, returns: 0 });
                }
            }
        }
        // At one moment calls come first: what cannot be told apart is taken as at the same time.
        entries.sort_by_key(|entry| (entry.at, !entry.is_call));
        let mut returns = vec![0; history.len()];
        for (index, entry) in entries.iter().enumerate() {
            returns[entry.operation] = index;
        }
        for entry in &mut entries {
            entry.returns = returns[entry.operation];
        }
        let links = entries.len() + 1;
        let next = (0..links).map(|index| (index + 1) % links).collect();
        let previous = (0..links).map(|index| (index + links - 1) % links).collect();
        Self { entries, next, previous }
    }

    /// Before which entry something lies that was called then.
    fn position(&self, called: u64) -> usize {
        self.entries.partition_point(|entry| entry.at < called)
    }

    fn first(&self) -> usize {
        self.next[self.entries.len()]
    }

    /// Takes a call and its return out of the list. They keep their links, by which they find back.
    fn lift(&mut self, call: usize) {
        for entry in [call, self.entries[call].returns] {
            let (previous, next) = (self.previous[entry], self.next[entry]);
            self.next[previous] = next;
            self.previous[next] = previous;
        }
    }

    /// Puts back what was lifted last.
    fn put_back(&mut self, call: usize) {
        for entry in [self.entries[call].returns, call] {
            let (previous, next) = (self.previous[entry], self.next[entry]);
            self.next[previous] = entry;
            self.previous[next] = entry;
        }
    }

    /// The operations that are called before the first return in the list.
    fn open_calls(&self) -> Vec<usize> {
        let mut calls = Vec::new();
        let mut entry = self.first();
        while self.entries.get(entry).is_some_and(|entry| entry.is_call) {
            calls.push(self.entries[entry].operation);
            entry = self.next[entry];
        }
        calls
    }
}
