//! One change as watchers see it.
//!
//! Invariants: an event is rendered at most once for each form, however many watchers it goes to; a watcher of
//! one service sees an instance that moves to another service leave, and one of the other service sees it come.
//! Neighbours: [`super::ring`] keeps events, `admin::watch` renders them.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use gogate_cluster::state::{Change, ChangeKind, Instance};

/// What an event takes beside its texts, for the ring's bound: itself, the instance, its places in maps.
const OVERHEAD: usize = 400;

/// A change that watchers are told of.
#[derive(Debug)]
pub struct Event {
    /// Where it stands in the order of all changes.
    pub index: u64,
    /// What happened.
    pub kind: EventKind,
    audience: Audience,
    frames: [OnceLock<Bytes>; Form::COUNT],
}

/// How what watchers are sent is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Form {
    /// Server-sent events with JSON.
    #[default]
    Json,
    /// Messages of gRPC.
    Grpc,
}

/// What happened.
#[derive(Debug, Clone)]
pub enum EventKind {
    /// A new instance.
    Registered(Arc<Instance>),
    /// An instance was replaced by one of the same id.
    Updated {
        /// What it was.
        was: Arc<Instance>,
        /// What it is.
        now: Arc<Instance>,
    },
    /// An instance was removed.
    Deregistered(Arc<Instance>),
    /// An instance was not heard from in time.
    Expired(Arc<Instance>),
    /// This version of the gateway document is the current one.
    Config(u64),
}

/// Who is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Audience {
    /// Those who watch its service, and those who watch everything.
    Service,
    /// Those who watch its service only: the others are told otherwise.
    ServiceOnly,
    /// Those who watch everything only.
    Everything,
}

// === impl Form ===

impl Form {
    /// How many there are.
    pub(super) const COUNT: usize = 2;

    /// Its place among them.
    pub(super) fn place(self) -> usize {
        match self {
            Self::Json => 0,
            Self::Grpc => 1,
        }
    }
}

// === impl Event ===

impl Event {
    /// The events that `change` makes: several if it concerns two services, none if nobody who watches can tell.
    pub(super) fn of(change: &Change) -> Vec<Self> {
        let event = |kind, audience| Self { index: change.index, kind, audience, frames: Default::default() };
        match &change.kind {
            ChangeKind::Registered(instance) => {
                vec![event(EventKind::Registered(instance.clone()), Audience::Service)]
            }
            ChangeKind::Deregistered(instance) => {
                vec![event(EventKind::Deregistered(instance.clone()), Audience::Service)]
            }
            ChangeKind::Expired(instance) => {
                vec![event(EventKind::Expired(instance.clone()), Audience::Service)]
            }
            ChangeKind::Updated { was, now } => {
                let updated = EventKind::Updated { was: was.clone(), now: now.clone() };
                if was.name == now.name {
                    return vec![event(updated, Audience::Service)];
                }
                vec![
                    event(updated, Audience::Everything),
                    event(EventKind::Deregistered(was.clone()), Audience::ServiceOnly),
                    event(EventKind::Registered(now.clone()), Audience::ServiceOnly),
                ]
            }
            ChangeKind::Document(version) => vec![event(EventKind::Config(*version), Audience::Everything)],
            // A version that does not run yet, or never will, changes nothing for those who watch.
            ChangeKind::Staged(_) | ChangeKind::Refused(_) | ChangeKind::Reset => Vec::new(),
        }
    }

    /// The instance as it is now, or was last; none: it is about no instance.
    #[must_use]
    pub fn instance(&self) -> Option<&Arc<Instance>> {
        match &self.kind {
            EventKind::Registered(instance)
            | EventKind::Updated { now: instance, .. }
            | EventKind::Deregistered(instance)
            | EventKind::Expired(instance) => Some(instance),
            EventKind::Config(_) => None,
        }
    }

    /// Whether a watcher of `service`, or of everything, is told of it.
    pub(super) fn is_for(&self, service: Option<&str>) -> bool {
        match (service, self.audience) {
            (None, audience) => audience != Audience::ServiceOnly,
            (Some(_), Audience::Everything) => false,
            (Some(service), _) => self.instance().is_some_and(|instance| *instance.name == *service),
        }
    }

    /// Whether an instance with `tag` is or was concerned.
    #[must_use]
    pub fn has_tag(&self, tag: &str) -> bool {
        let has = |instance: &Instance| instance.tags.iter().any(|own| own == tag);
        let was = matches!(&self.kind, EventKind::Updated { was, .. } if has(was));
        was || self.instance().is_some_and(|instance| has(instance))
    }

    /// Its bytes on the wire, which the first watcher that needs them in this form makes for all.
    pub fn rendered(&self, form: Form, render: impl FnOnce(&Self) -> Bytes) -> &Bytes {
        self.frames[form.place()].get_or_init(|| render(self))
    }

    /// About how many bytes it keeps alive, rendered and not.
    pub(super) fn size(&self) -> usize {
        let of = |instance: &Instance| {
            let labels = instance.metadata.iter().map(|(key, value)| key.len() + value.len() + 100);
            let tags = instance.tags.iter().map(|tag| tag.len() + 40);
            let texts = instance.id.len() + instance.name.len() + instance.address.len();
            texts + labels.chain(tags).sum::<usize>()
        };
        let was = match &self.kind {
            EventKind::Updated { was, .. } => of(was),
            _ => 0,
        };
        // An instance's texts lie here twice once they are rendered.
        OVERHEAD + was + self.instance().map_or(0, |instance| 2 * of(instance))
    }
}
