//! The newest events of a node, in the order of their indexes: what watchers read from.
//!
//! Invariants: all changes newer than `base` that this node has heard of are here; positions only grow, and a
//! reset leaves a gap, so that a cursor tells by itself whether it missed a reset or fell behind; the ring is
//! bounded by count and by bytes, whoever reads or does not. Neighbours: `super` feeds it under a lock.

use std::{collections::VecDeque, sync::Arc};

use gogate_cluster::state::{Change, ChangeKind};

use super::event::Event;

/// Events kept: at 200 changes a second more than a minute to come back in.
pub(super) const EVENTS_MAX: usize = 16_384;

/// What they may keep alive together, as [`Event::size`] counts.
pub(super) const BYTES_MAX: usize = 32 << 20;

/// Events that one read returns at most, and the bytes after which it returns.
const READ_EVENTS_MAX: usize = 128;
const READ_BYTES_MAX: usize = 16 << 10;

/// The newest events.
#[derive(Debug)]
pub(super) struct Ring {
    events: VecDeque<Arc<Event>>,
    bytes: usize,
    /// The position of the first event, or of the next one if there is none.
    first: u64,
    /// The position after the last reset.
    reset: u64,
    /// The index of the last change that is not here any more.
    base: u64,
    /// The index of the last change.
    last: u64,
}

/// Where a watcher stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cursor {
    /// The position of the next event to look at.
    position: u64,
    /// Events up to this index are known to the watcher, wherever they stand.
    pub(super) after: u64,
}

/// What a watcher finds.
#[derive(Debug)]
pub(super) enum Found {
    /// These, of which there is at least one.
    Events(Vec<Arc<Event>>),
    /// Nothing for it up to this index.
    Nothing(u64),
    /// Everything may have changed.
    Reset,
    /// What it would have seen next is gone.
    Fallen,
}

// === impl Ring ===

impl Ring {
    /// Without events; the next change is newer than `index`.
    pub(super) fn new(index: u64) -> Self {
        Self { events: VecDeque::new(), bytes: 0, first: 1, reset: 1, base: index, last: index }
    }

    /// Takes in a change, and hands each of its events to `told`. One that was seen before is left out.
    pub(super) fn push(&mut self, change: &Change, mut told: impl FnMut(&Event)) {
        if let ChangeKind::Reset = change.kind {
            self.first += self.events.len() as u64 + 1;
            self.reset = self.first;
            self.events.clear();
            (self.bytes, self.base, self.last) = (0, change.index, change.index);
            return;
        }
        if change.index <= self.last {
            return;
        }
        self.last = change.index;
        for event in Event::of(change) {
            told(&event);
            self.bytes += event.size();
            self.events.push_back(Arc::new(event));
        }
        while self.events.len() > EVENTS_MAX || self.bytes > BYTES_MAX {
            let Some(event) = self.events.pop_front() else { break };
            self.first += 1;
            self.bytes -= event.size();
            self.base = event.index;
        }
    }

    /// The position after the last reset: whoever saw another one has to look at the state again.
    pub(super) fn generation(&self) -> u64 {
        self.reset
    }

    /// Where a watcher goes on that knows everything up to `index`; none: that is too old.
    pub(super) fn after(&self, index: u64) -> Option<Cursor> {
        if index < self.base {
            return None;
        }
        let known = self.events.partition_point(|event| event.index <= index);
        Some(Cursor { position: self.first + known as u64, after: index })
    }

    /// What stands at `cursor` for a watcher of `service`, or of everything; moves the cursor behind it.
    pub(super) fn read(&self, cursor: &mut Cursor, service: Option<&str>) -> Found {
        if cursor.position < self.reset {
            return Found::Reset;
        }
        let Some(skipped) = cursor.position.checked_sub(self.first) else { return Found::Fallen };
        let mut found = Vec::new();
        let mut bytes = 0;
        for event in
            self.events.range(usize::try_from(skipped).unwrap_or(usize::MAX).min(self.events.len())..)
        {
            if found.len() >= READ_EVENTS_MAX || bytes >= READ_BYTES_MAX {
                break;
            }
            cursor.position += 1;
            if event.index > cursor.after && event.is_for(service) {
                cursor.after = event.index;
                bytes += event.size();
                found.push(event.clone());
            }
        }
        if found.is_empty() { Found::Nothing(self.last) } else { Found::Events(found) }
    }
}

#[cfg(test)]
mod tests {
    use gogate_cluster::state::Instance;

    use super::*;

    fn instance(id: &str, name: &str, address: &str) -> Arc<Instance> {
        Arc::new(Instance {
            id: id.into(),
            name: name.into(),
            address: address.into(),
            ttl_ms: 0,
            weight: 1,
            metadata: std::collections::BTreeMap::new(),
            tags: Vec::new(),
            epoch: 1,
        })
    }

    fn registered(index: u64, name: &str) -> Change {
        let kind = ChangeKind::Registered(instance(&format!("i{index}"), name, "h:1"));
        Change { index, kind }
    }

    fn filled(changes: impl IntoIterator<Item = Change>) -> Ring {
        let mut ring = Ring::new(0);
        changes.into_iter().for_each(|change| ring.push(&change, |_| {}));
        ring
    }

    /// The indexes that a watcher which knows everything up to `since` sees, to the end.
    fn seen(ring: &Ring, since: u64, service: Option<&str>) -> Vec<u64> {
        let mut cursor = ring.after(since).expect("it is not too old");
        let mut indexes = Vec::new();
        while let Found::Events(events) = ring.read(&mut cursor, service) {
            indexes.extend(events.iter().map(|event| event.index));
        }
        indexes
    }

    #[test]
    fn a_watcher_sees_what_is_newer_than_it_knows_and_of_its_service() {
        let ring = filled((1..=300).map(|index| registered(index, if index % 3 == 0 { "a" } else { "b" })));
        assert_eq!(seen(&ring, 0, None), (1..=300).collect::<Vec<_>>());
        assert_eq!(seen(&ring, 297, None), [298, 299, 300]);
        assert_eq!(seen(&ring, 291, Some("a")), [294, 297, 300]);
        assert_eq!(seen(&ring, 0, Some("c")), [0; 0]);
    }

    #[test]
    fn what_was_seen_before_is_not_taken_in_again() {
        let twice = (1..=3).chain(2..=4).map(|index| registered(index, "a"));
        assert_eq!(seen(&filled(twice), 0, None), [1, 2, 3, 4]);
        // The state was read at 6, before the ring heard of 5 and 6.
        let mut ring = filled((1..=4).map(|index| registered(index, "a")));
        let mut cursor = ring.after(6).unwrap();
        (5..=7).for_each(|index| ring.push(&registered(index, "a"), |_| {}));
        let Found::Events(events) = ring.read(&mut cursor, None) else { panic!("7 is new") };
        assert_eq!(events.iter().map(|event| event.index).collect::<Vec<_>>(), [7]);
    }

    #[test]
    fn an_instance_that_moves_leaves_one_service_and_comes_to_another() {
        let (was, now) = (instance("i", "a", "h:1"), instance("i", "b", "h:1"));
        let ring = filled([Change { index: 1, kind: ChangeKind::Updated { was, now } }]);
        let one = |service| {
            let Found::Events(events) = ring.read(&mut ring.after(0).unwrap(), service) else { return "" };
            assert_eq!(events.len(), 1);
            match events[0].kind {
                super::super::EventKind::Registered(_) => "registered",
                super::super::EventKind::Updated { .. } => "updated",
                super::super::EventKind::Deregistered(_) => "deregistered",
                _ => "other",
            }
        };
        let seen = [None, Some("a"), Some("b"), Some("c")].map(one);
        assert_eq!(seen, ["updated", "deregistered", "registered", ""]);
    }

    #[test]
    fn whoever_falls_behind_is_told_and_what_is_gone_is_too_old() {
        let mut ring = filled([registered(1, "a")]);
        let mut cursor = ring.after(0).unwrap();
        let count = EVENTS_MAX as u64;
        (2..=count + 1).for_each(|index| ring.push(&registered(index, "a"), |_| {}));
        assert!(matches!(ring.read(&mut cursor, None), Found::Fallen));
        assert_eq!(ring.after(0), None);
        assert_eq!(seen(&ring, 1, None).len(), EVENTS_MAX);
    }

    #[test]
    fn the_ring_is_bounded_by_bytes_too() {
        let mut ring = Ring::new(0);
        for index in 1..=1000 {
            let kind = ChangeKind::Registered(instance("i", "a", &"x".repeat(100_000)));
            ring.push(&Change { index, kind }, |_| {});
        }
        assert!(ring.bytes <= BYTES_MAX && ring.events.len() > 100, "{}", ring.events.len());
        let events: usize = ring.events.iter().map(|event| event.size()).sum();
        assert_eq!(events, ring.bytes);
    }

    #[test]
    fn a_reset_is_seen_by_every_cursor_from_before_it_and_by_none_from_after() {
        let mut ring = filled((1..=3).map(|index| registered(index, "a")));
        let (mut at_the_start, mut at_the_end) = (ring.after(0).unwrap(), ring.after(3).unwrap());
        ring.push(&Change { index: 9, kind: ChangeKind::Reset }, |_| {});
        assert!(matches!(ring.read(&mut at_the_start, None), Found::Reset));
        assert!(matches!(ring.read(&mut at_the_end, None), Found::Reset));
        assert_eq!(ring.after(8), None, "what came before the reset is not known");
        ring.push(&registered(10, "a"), |_| {});
        assert_eq!(seen(&ring, 9, None), [10]);
        // Back in time, as after a restore.
        ring.push(&Change { index: 2, kind: ChangeKind::Reset }, |_| {});
        ring.push(&registered(3, "a"), |_| {});
        assert_eq!(seen(&ring, 2, None), [3]);
    }
}
