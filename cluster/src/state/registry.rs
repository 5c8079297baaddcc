//! The registry: which service instances exist, and when a silent one vanishes.
//!
//! Invariants: `instances`, `services` and `deadlines` tell of the same instances; an instance expires at a
//! tick and nowhere else; a beat renews only the life (epoch) that it was sent by; most of a service never vanishes at
//! one tick ([`SPREAD_TICKS`]). Neighbours: `State::apply` calls, `clock` says what time it is.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize, Serializer};

use super::command::{Heartbeat, Refusal, Registration};

/// An endpoint that was registered and lives by heartbeats.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Unique in the cluster.
    pub id: Arc<str>,
    /// The service that it belongs to.
    pub name: Arc<str>,
    /// `host:port`.
    pub address: String,
    /// How long it lives without a heartbeat; 0: for ever.
    pub ttl_ms: u64,
    /// For the weighted balancers, at least 1.
    pub weight: u32,
    /// Free to use.
    pub metadata: BTreeMap<String, String>,
    /// Free to use, and to filter by.
    pub tags: Vec<String>,
    /// The index at which this life began: a new one for every registration.
    pub epoch: u64,
}

/// How long a beat that came in time may be on its way to the leader's inbox. With a tick a second this makes an
/// expiry at most 1.5 s late, never early.
pub const EXPIRY_GRACE_MS: u64 = 500;

/// When more than half of a service is due at one tick, it is more likely cut off than dead: it expires over so many
/// ticks, and what is heard from meanwhile stays. So it ends by itself, at most so many seconds late.
pub const SPREAD_TICKS: usize = 5;

/// Fewer that are due at once are no sign of anything.
pub const SPREAD_MIN: usize = 20;

/// Instances at one time: ten times what a cluster is built for, so that whoever registers without end meets a
/// refusal before the nodes' memory does. One that is there may be replaced when it is full.
pub const INSTANCES_MAX: usize = 1_000_000;

/// All instances, by id, by service and by deadline.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "Kept")]
pub struct Registry {
    instances: BTreeMap<Arc<str>, Life>,
    services: BTreeMap<Arc<str>, BTreeSet<Arc<str>>>,
    deadlines: BTreeSet<(u64, Arc<str>)>,
    /// The services that expire over several ticks, and how many instances at each.
    spread: BTreeMap<Arc<str>, usize>,
}

/// What a snapshot has of it: the indexes follow.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Kept {
    lives: Vec<Life>,
    spread: BTreeMap<Arc<str>, usize>,
}

/// The same, to be written.
#[derive(Serialize)]
struct KeptRef<'a> {
    #[serde(serialize_with = "in_order")]
    lives: &'a BTreeMap<Arc<str>, Life>,
    spread: &'a BTreeMap<Arc<str>, usize>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Life {
    instance: Arc<Instance>,
    /// On the log clock; none: for ever.
    deadline_ms: Option<u64>,
}

// === impl Registry ===

impl Registry {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.instances.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.instances.is_empty()
    }

    /// The instance with this id.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<&Arc<Instance>> {
        self.instances.get(id).map(|life| &life.instance)
    }

    /// All of them, ordered by id.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Instance>> {
        self.instances.values().map(|life| &life.instance)
    }

    /// Those of one service, ordered by id.
    pub fn of_service(&self, name: &str) -> impl Iterator<Item = &Arc<Instance>> {
        self.services.get(name).into_iter().flatten().filter_map(|id| self.get(id))
    }

    /// The names of the services that have instances, with how many.
    pub fn services(&self) -> impl Iterator<Item = (&Arc<str>, usize)> {
        self.services.iter().map(|(name, ids)| (name, ids.len()))
    }

    /// What is written of it: half the work of a clone, and a third of its memory.
    pub(super) fn kept(&self) -> Kept {
        Kept { lives: self.instances.values().cloned().collect(), spread: self.spread.clone() }
    }

    pub(super) fn deadline_ms(&self, id: &str) -> Option<u64> {
        self.instances.get(id)?.deadline_ms
    }

    /// What was there under this id, and what is there now.
    pub(super) fn register(
        &mut self,
        registration: Registration,
        index: u64,
        now_ms: u64,
    ) -> Result<(Option<Arc<Instance>>, Arc<Instance>), Refusal> {
        if self.len() >= INSTANCES_MAX && self.get(&registration.id).is_none() {
            return Err(Refusal::RegistryFull { max: INSTANCES_MAX as u64 });
        }
        let was = self.remove(&registration.id);
        let Registration { id, name, address, ttl_ms, weight, metadata, tags } = registration;
        let instance = Arc::new(Instance { id, name, address, ttl_ms, weight, metadata, tags, epoch: index });
        let deadline_ms = (ttl_ms > 0).then(|| now_ms.saturating_add(ttl_ms));
        self.insert(Life { instance: instance.clone(), deadline_ms });
        Ok((was, instance))
    }

    /// These instances and no others. Each has its whole TTL before it: nobody could hear from it until now.
    pub(super) fn of(instances: Vec<Arc<Instance>>, now_ms: u64) -> Self {
        let mut registry = Self::default();
        for instance in instances {
            registry.remove(&instance.id);
            let deadline_ms = (instance.ttl_ms > 0).then(|| now_ms.saturating_add(instance.ttl_ms));
            registry.insert(Life { instance, deadline_ms });
        }
        registry
    }

    /// Adds a life whose id is not there.
    fn insert(&mut self, life: Life) {
        let Instance { id, name, .. } = &*life.instance;
        if let Some(deadline_ms) = life.deadline_ms {
            self.deadlines.insert((deadline_ms, id.clone()));
        }
        self.services.entry(name.clone()).or_default().insert(id.clone());
        self.instances.insert(id.clone(), life);
    }

    pub(super) fn remove(&mut self, id: &str) -> Option<Arc<Instance>> {
        let Life { instance, deadline_ms } = self.instances.remove(id)?;
        if let Some(deadline_ms) = deadline_ms {
            self.deadlines.remove(&(deadline_ms, instance.id.clone()));
        }
        if let Some(ids) = self.services.get_mut(&instance.name) {
            ids.remove(id);
            if ids.is_empty() {
                self.services.remove(&instance.name);
            }
        }
        Some(instance)
    }

    /// Gives the life that was heard from its whole TTL, counted from when it was heard. Never shortens one.
    pub(super) fn renew(&mut self, heartbeat: &Heartbeat, now_ms: u64) {
        let Some(life) = self.instances.get_mut(&heartbeat.id) else { return };
        let Some(deadline_ms) = life.deadline_ms else { return };
        let renewed_ms = now_ms.saturating_add(life.instance.ttl_ms).saturating_sub(heartbeat.age_ms);
        if life.instance.epoch != heartbeat.epoch || renewed_ms <= deadline_ms {
            return;
        }
        life.deadline_ms = Some(renewed_ms);
        self.deadlines.remove(&(deadline_ms, life.instance.id.clone()));
        self.deadlines.insert((renewed_ms, life.instance.id.clone()));
    }

    /// The services more than half of which was due at one tick, and that expire over several.
    pub fn spread(&self) -> impl Iterator<Item = &Arc<str>> {
        self.spread.keys()
    }

    /// Removes what is overdue by [`EXPIRY_GRACE_MS`], in the order of the deadlines; of most of a service only
    /// a part.
    pub(super) fn expire(&mut self, now_ms: u64) -> Vec<Arc<Instance>> {
        let overdue = |deadline_ms: u64| deadline_ms.saturating_add(EXPIRY_GRACE_MS) <= now_ms;
        let due: Vec<Arc<Instance>> = self
            .deadlines
            .iter()
            .take_while(|(deadline_ms, _)| overdue(*deadline_ms))
            .filter_map(|(_, id)| self.get(id).cloned())
            .collect();
        let mut left = self.spread_now(&due);
        let mut expired = Vec::new();
        for instance in due {
            match left.get_mut(&instance.name) {
                Some(0) => continue,
                Some(left) => *left -= 1,
                None => {}
            }
            expired.extend(self.remove(&instance.id));
        }
        expired
    }

    /// How many may expire now of the services that expire over several ticks.
    fn spread_now(&mut self, due: &[Arc<Instance>]) -> BTreeMap<Arc<str>, usize> {
        let mut counts: BTreeMap<&Arc<str>, usize> = BTreeMap::new();
        for instance in due {
            *counts.entry(&instance.name).or_default() += 1;
        }
        // It ends with the tick that takes the rest.
        self.spread.retain(|name, share| counts.get(name).is_some_and(|due| *due > *share));
        for (name, due) in counts {
            let size = self.services.get(name).map_or(0, BTreeSet::len);
            if due > SPREAD_MIN && due * 2 > size && !self.spread.contains_key(name) {
                self.spread.insert(name.clone(), due.div_ceil(SPREAD_TICKS));
            }
        }
        self.spread.clone()
    }
}

impl Serialize for Registry {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        KeptRef { lives: &self.instances, spread: &self.spread }.serialize(serializer)
    }
}

fn in_order<S: Serializer>(lives: &BTreeMap<Arc<str>, Life>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(lives.values())
}

impl From<Kept> for Registry {
    fn from(kept: Kept) -> Self {
        let mut registry = Self { spread: kept.spread, ..Self::default() };
        kept.lives.into_iter().for_each(|life| registry.insert(life));
        registry
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registration(number: usize) -> Registration {
        Registration {
            id: format!("i{number}").into(),
            name: "api".into(),
            address: String::new(),
            ttl_ms: 0,
            weight: 1,
            metadata: BTreeMap::new(),
            tags: Vec::new(),
        }
    }

    #[test]
    fn a_full_registry_refuses_what_is_new_and_replaces_what_is_there() {
        let mut registry = Registry::default();
        let Ok((_, instance)) = registry.register(registration(0), 1, 0) else { panic!("it is empty") };
        let life = Life { instance, deadline_ms: None };
        // The other indexes play no part in the bound, and would take seconds to fill.
        registry.instances.extend((1..INSTANCES_MAX).map(|n| (Arc::from(format!("i{n}")), life.clone())));
        let refused = Refusal::RegistryFull { max: INSTANCES_MAX as u64 };
        assert_eq!(registry.register(registration(INSTANCES_MAX), 2, 0), Err(refused));
        assert!(registry.register(registration(0), 2, 0).is_ok());
        assert!(registry.remove("i0").is_some());
        assert!(registry.register(registration(INSTANCES_MAX), 3, 0).is_ok());
    }

    #[test]
    fn most_of_a_service_expires_over_several_ticks_and_whoever_is_heard_from_meanwhile_stays() {
        let mut registry = Registry::default();
        for number in 0..100 {
            let mortal = Registration { ttl_ms: 1000, ..registration(number) };
            registry.register(mortal, number as u64 + 1, 0).unwrap();
        }
        // Of a service that lives, few die at once.
        let now_ms = 1000 + EXPIRY_GRACE_MS;
        assert_eq!(registry.expire(now_ms).len(), 20);
        assert_eq!(registry.spread().map(|name| &**name).collect::<Vec<_>>(), ["api"]);
        let bytes = postcard::to_stdvec(&registry).unwrap();
        assert_eq!(postcard::from_bytes::<Registry>(&bytes).unwrap(), registry);
        for number in 0..50 {
            if let Some(epoch) = registry.get(&format!("i{number}")).map(|instance| instance.epoch) {
                let id = format!("i{number}").into();
                registry.renew(&Heartbeat { id, epoch, age_ms: 0 }, now_ms);
            }
        }
        let mut expired = 20;
        for _ in 1..SPREAD_TICKS {
            expired += registry.expire(now_ms).len();
        }
        assert_eq!(registry.expire(now_ms), []);
        assert_eq!(registry.spread().count(), 0, "it has ended by itself");
        assert!(expired + registry.len() == 100 && registry.len() >= 30, "{} are left", registry.len());
    }

    #[test]
    fn a_part_of_a_service_and_a_few_of_a_small_one_expire_at_once() {
        let mut registry = Registry::default();
        for number in 0..100 {
            let ttl_ms = if number < 50 { 1000 } else { 0 };
            registry.register(Registration { ttl_ms, ..registration(number) }, 1, 0).unwrap();
        }
        for number in 200..200 + SPREAD_MIN {
            let small = Registration { name: "small".into(), ttl_ms: 1000, ..registration(number) };
            registry.register(small, 1, 0).unwrap();
        }
        assert_eq!(registry.expire(1000 + EXPIRY_GRACE_MS).len(), 50 + SPREAD_MIN);
    }
}
