//! Changes of the members, one after another, in peace and under injuries.
//!
//! Job: choose what can be done now, start or wipe what it takes, ask a member for it, and look at what that member says
//! then. Invariants: there is one change at a time, and one whose outcome is unknown is asked for again until it is
//! known; at least three nodes vote, by what was acknowledged; one disk at a time is lost. Neighbours: `faults` says
//! when, `checker::membership` judges.

use std::{
    io, thread,
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};

use super::{FINAL_PATIENCE, Stage};
use crate::{
    checker::{CHANGING_CLIENT, FINAL_CLIENT},
    client::{Client, Patience},
    history::{Change, Outcome, Seen},
    links::Links,
    nemesis,
    processes::Joins,
};

/// How long a change may take; an injury is shorter and longer.
const CHANGE_PATIENCE: Patience =
    Patience { asked: Some(Duration::from_secs(4)), own: Duration::from_secs(6) };

/// How long it is waited at a time for a new node to take a dead one's place.
const REPLACEMENT_WAIT: Duration = Duration::from_secs(2);

/// The pause between two changes.
const PAUSE_MS: std::ops::RangeInclusive<u64> = 50..=500;

/// How long a new process may take until it answers at all.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// How long it may take in peace until everything that was begun is done, and all members say the same.
const SETTLES_WITHIN: Duration = Duration::from_secs(30);

/// So many voters there are always.
const VOTERS_MIN: usize = 3;

/// The members, as far as changes were acknowledged.
pub(super) struct Members {
    client: Client,
    /// By place.
    standings: Vec<Standing>,
    /// Begun, with an unknown outcome, at this place.
    pending: Option<(Change, usize)>,
    bag: Vec<Kind>,
    rng: StdRng,
}

/// What is known of who runs at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// Nobody who takes part.
    Nobody,
    /// A voter of this id.
    Voter(u64),
    /// A learner of this id.
    Learner(u64),
    /// Somebody who comes or goes.
    Unsure,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    AddVoter,
    AddLearner,
    Promote,
    Remove,
    RemoveLeader,
    Replace,
    Transfer,
}

const KINDS: [Kind; 7] = [
    Kind::AddVoter,
    Kind::AddLearner,
    Kind::Promote,
    Kind::Remove,
    Kind::RemoveLeader,
    Kind::Replace,
    Kind::Transfer,
];

// === impl Members ===

impl Members {
    /// The founders, once one of them says who they are; none: it does not.
    pub(super) fn found(stage: &Stage, seed: u64) -> Option<Self> {
        let mut client = stage.client(CHANGING_CLIENT, CHANGE_PATIENCE);
        let Outcome::Ok { seen: Seen::Members { members } } = client.members(0) else { return None };
        let mut standings = vec![Standing::Nobody; stage.processes.len()];
        for (id, member) in members {
            standings[stage.processes.by_name(&member.name)?] = Standing::Voter(id);
        }
        let rng = StdRng::seed_from_u64(seed.wrapping_add(2000));
        Some(Self { client, standings, pending: None, bag: Vec::new(), rng })
    }

    /// The places of those that take part for certain.
    pub(super) fn places(&self) -> Vec<usize> {
        let takes_part =
            |place: &usize| !matches!(self.standings[*place], Standing::Nobody | Standing::Unsure);
        (0..self.standings.len()).filter(takes_part).collect()
    }

    /// Makes changes until then. No process at one of the `held` places is ended.
    pub(super) fn change(
        &mut self,
        stage: &mut Stage,
        links: &Links,
        held: &[usize],
        until: Instant,
    ) -> io::Result<()> {
        while Instant::now() < until {
            let begun = match self.pending.take() {
                Some(pending) => Some((pending, true)),
                None => self.choose(stage, links, held)?.map(|chosen| (chosen, false)),
            };
            if let Some(((change, place), again)) = begun {
                self.carry_out(stage, change, place, again);
            }
            let pause = Duration::from_millis(self.rng.random_range(PAUSE_MS));
            thread::sleep(pause.min(until.saturating_duration_since(Instant::now())));
        }
        Ok(())
    }

    /// In peace: finishes what was begun, stops who takes no part any more, and has all members say who they are.
    pub(super) fn settle(mut self, stage: &mut Stage) -> io::Result<()> {
        let deadline = Instant::now() + SETTLES_WITHIN;
        while let Some((change, place)) = self.pending.take() {
            self.carry_out(stage, change, place, true);
            if Instant::now() > deadline {
                break;
            }
        }
        let is_gone = |place: &usize| self.standings[*place] == Standing::Nobody;
        let gone: Vec<usize> = stage.all().into_iter().filter(is_gone).collect();
        if !gone.is_empty() {
            nemesis::kill(&mut stage.processes, &stage.recorder, &gone, "it takes no part any more")?;
        }
        let places = self.places();
        let mut client = stage.client(FINAL_CLIENT, FINAL_PATIENCE);
        loop {
            let said: Vec<Outcome> = places.iter().map(|place| client.members(*place)).collect();
            let alike = said.iter().all(|said| self.is_told_by(stage, said));
            if alike || Instant::now() > deadline {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// Whether these are the members that were acknowledged.
    fn is_told_by(&self, stage: &Stage, said: &Outcome) -> bool {
        let Outcome::Ok { seen: Seen::Members { members } } = said else { return false };
        members.len() == self.places().len()
            && members.iter().all(|(id, member)| {
                let standing = stage.processes.by_name(&member.name).map(|place| self.standings[place]);
                let voter = if member.voter { Standing::Voter(*id) } else { Standing::Learner(*id) };
                standing == Some(voter)
            })
    }

    fn voters(&self) -> usize {
        self.standings.iter().filter(|standing| matches!(standing, Standing::Voter(_))).count()
    }

    /// The next change of a bag that can be made now; what it takes is started.
    fn choose(
        &mut self,
        stage: &mut Stage,
        links: &Links,
        held: &[usize],
    ) -> io::Result<Option<(Change, usize)>> {
        if self.bag.is_empty() {
            self.bag = KINDS.to_vec();
            self.bag.shuffle(&mut self.rng);
        }
        let leader = super::faults::leads(stage);
        for at in 0..self.bag.len() {
            if let Some(chosen) = self.prepare(self.bag[at], stage, links, held, leader)? {
                self.bag.remove(at);
                return Ok(Some(chosen));
            }
        }
        self.bag.clear();
        Ok(None)
    }

    fn prepare(
        &mut self,
        kind: Kind,
        stage: &mut Stage,
        links: &Links,
        held: &[usize],
        leader: Option<usize>,
    ) -> io::Result<Option<(Change, usize)>> {
        let spare_voter = self.voters() > VOTERS_MIN;
        let suits = |place: &usize| {
            let (leads, is_held) = (leader == Some(*place), held.contains(place));
            match (kind, self.standings[*place]) {
                (Kind::AddVoter | Kind::AddLearner, Standing::Nobody) => !is_held,
                (Kind::Promote | Kind::Remove, Standing::Learner(_)) => true,
                (Kind::Remove, Standing::Voter(_)) => spare_voter && !leads,
                (Kind::RemoveLeader, Standing::Voter(_)) => spare_voter && leads,
                (Kind::Replace, Standing::Voter(_)) => !is_held,
                (Kind::Transfer, Standing::Voter(_)) => true,
                _ => false,
            }
        };
        let mut places: Vec<usize> = (0..self.standings.len()).filter(suits).collect();
        places.shuffle(&mut self.rng);
        let Some(place) = places.first().copied() else { return Ok(None) };
        let name = stage.processes.name(place).to_owned();
        let id = match self.standings[place] {
            Standing::Voter(id) | Standing::Learner(id) => id,
            Standing::Nobody | Standing::Unsure => 0,
        };
        let change = match kind {
            Kind::AddVoter | Kind::AddLearner => {
                let learner = kind == Kind::AddLearner;
                let joins = if learner { Joins::AsLearner } else { Joins::AsVoter };
                renew(stage, links, place, joins, "it takes no part any more")?;
                Change::Add { name, learner }
            }
            Kind::Promote => Change::Promote { id },
            Kind::Remove | Kind::RemoveLeader => Change::Remove { id },
            Kind::Replace => {
                renew(stage, links, place, Joins::ByItself, "for good, and its disk is lost")?;
                Change::Replace { name, dead: id }
            }
            Kind::Transfer => Change::Transfer { to: self.rng.random::<bool>().then_some(id) },
        };
        Ok(Some((change, place)))
    }

    /// Asks a member for the change, and then who the members are. `again`: it may have been done already.
    fn carry_out(&mut self, stage: &Stage, change: Change, place: usize, again: bool) {
        stage.progress(&format!("{change:?}"));
        let before = self.standings[place];
        if !matches!(change, Change::Transfer { .. }) {
            self.standings[place] = Standing::Unsure;
        }
        let mut asked = self.places();
        if matches!(change, Change::Remove { .. } | Change::Promote { .. }) {
            // The node itself takes the call, too.
            asked.push(place);
        }
        let asked = asked[self.rng.random_range(0..asked.len())];
        let client = &mut self.client;
        let outcome = match &change {
            Change::Add { name, learner } => client.add(asked, name, stage.processes.peer(place).1, *learner),
            Change::Promote { id } => client.promote(asked, *id),
            Change::Remove { id } => client.remove(asked, *id),
            Change::Replace { name, dead } => client.await_replacement(asked, name, *dead, REPLACEMENT_WAIT),
            Change::Transfer { to } => client.transfer(asked, *to),
        };
        let known = match &outcome {
            Outcome::Ok { .. } => self.client.members(asked),
            _ => outcome.clone(),
        };
        self.note(change, place, before, again, &outcome, &known);
    }

    fn note(
        &mut self,
        change: Change,
        place: usize,
        before: Standing,
        again: bool,
        outcome: &Outcome,
        known: &Outcome,
    ) {
        let votes = |id: u64| match known {
            Outcome::Ok { seen: Seen::Members { members } } => members.get(&id).is_some_and(|it| it.voter),
            _ => false,
        };
        let id = match outcome {
            Outcome::Ok { seen: Seen::Node { id } } => Some(*id),
            _ => None,
        };
        let gone = matches!(outcome, Outcome::Fail { status: Some(404), .. }) && again;
        let refused = matches!(outcome, Outcome::Fail { .. }) && !again;
        self.standings[place] = match (&change, id) {
            (Change::Transfer { .. }, _) => return,
            (Change::Add { learner: true, .. }, Some(id)) => Standing::Learner(id),
            (
                Change::Add { learner: false, .. } | Change::Promote { .. } | Change::Replace { .. },
                Some(id),
            ) if votes(id) => Standing::Voter(id),
            // It was let in, and votes once it has caught up.
            (Change::Add { .. } | Change::Promote { .. } | Change::Replace { .. }, Some(id)) => {
                self.pending = Some((Change::Promote { id }, place));
                Standing::Unsure
            }
            (Change::Remove { .. }, Some(_)) => Standing::Nobody,
            (Change::Remove { .. }, None) if gone => Standing::Nobody,
            (Change::Remove { .. } | Change::Promote { .. }, None) if refused => before,
            (_, None) => {
                self.pending = Some((change, place));
                Standing::Unsure
            }
        };
    }
}

/// Ends who runs at a place, starts somebody new there with an empty disk, and waits until that answers.
fn renew(stage: &mut Stage, links: &Links, place: usize, joins: Joins, why: &str) -> io::Result<()> {
    if stage.all().contains(&place) {
        nemesis::kill(&mut stage.processes, &stage.recorder, &[place], why)?;
    }
    stage.processes.renew(place, joins)?;
    for pid in nemesis::start(&mut stage.processes, &stage.recorder, &[place])? {
        links.set_process(place, pid);
    }
    let mut probe = stage.client("probe", super::PROBE_PATIENCE);
    let deadline = Instant::now() + ANSWERS_WITHIN;
    while !probe.probe(place, "/livez") && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
