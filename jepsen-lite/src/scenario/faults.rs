//! A workload, and injuries of many kinds, one after another or several at once.
//!
//! Each injury lasts for some seconds, is undone, and a short peace follows: too short for everything to have
//! recovered, now and then. Where the members change, they do so all the while. At the end all is undone, and
//! everything is read.

use std::{
    io, thread,
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};

use super::{FINAL_PATIENCE, Faults, PROBE_PATIENCE, Stage, membership::Members};
use crate::{
    checker::FINAL_CLIENT,
    client::Client,
    history::{Event, Fault, FaultKind, FaultStatus, Outcome, Seen},
    links::Links,
    nemesis::{Nemesis, Victims},
    workload::{Site, Work, Workload},
};

/// The records with which injuries end.
pub(super) const ENDS: [FaultKind; 5] =
    [FaultKind::Kill, FaultKind::Continue, FaultKind::Rejoin, FaultKind::Hasten, FaultKind::ClockRight];

/// How long an injury lasts: shorter and longer than an election, and than a TTL.
const INJURY_MS: std::ops::RangeInclusive<u64> = 1000..=5000;

/// The peace after it.
const PEACE_MS: std::ops::RangeInclusive<u64> = 500..=3000;

/// Fewer nodes are not injured: an injury of one has to leave a majority.
const NODES_MIN: usize = 3;

/// The peace at the beginning, and before the end.
const CALM: Duration = Duration::from_secs(3);

/// How long the proxies may take to run what is current, once all is over.
const SERVES_CURRENT_WITHIN: Duration = Duration::from_secs(15);

pub(super) fn run(mut stage: Stage, faults: &Faults, clients: usize, seed: u64) -> io::Result<Vec<Event>> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut nemeses = faults.nemeses.clone();
    if nemeses.iter().any(|nemesis| nemesis.sets_a_clock()) && !stage.processes.make_clocks()? {
        stage.progress("no clock is set off: libfaketime is not installed (Debian's package faketime)");
        nemeses.retain(|nemesis| !nemesis.sets_a_clock());
    }
    let links = stage.links()?;
    let serves = stage.form(|pids| {
        for (node, pid) in pids.into_iter().enumerate() {
            links.set_process(node, pid);
        }
    })?;
    if !serves {
        return stage.finish();
    }
    let (admin, web) = (stage.processes.admin(), stage.processes.web());
    let site = Site { admin, web, recorder: stage.recorder.clone(), seed, clients };
    let workload = Workload::of(faults.work, &site)?;
    let mut members = match faults.work {
        Work::Membership => Some(
            Members::found(&stage, seed)
                .ok_or_else(|| io::Error::other("nobody says who the members are"))?,
        ),
        _ => None,
    };
    go_on(&mut stage, &links, &mut members, &[], CALM)?;
    let ends = Instant::now() + faults.time;
    let mut bag = Vec::new();
    while Instant::now() < ends && !nemeses.is_empty() {
        let mut chosen = Vec::new();
        while chosen.len() < faults.at_once.min(nemeses.len()) {
            if bag.is_empty() {
                bag.clone_from(&nemeses);
                bag.shuffle(&mut rng);
            }
            // Two of a kind would be one.
            chosen.extend(bag.pop().filter(|nemesis| !chosen.contains(nemesis)));
        }
        if !injure(&mut stage, &links, &mut members, &chosen, &mut rng)? {
            break;
        }
        let peace = Duration::from_millis(rng.random_range(PEACE_MS));
        go_on(&mut stage, &links, &mut members, &[], peace)?;
    }
    go_on(&mut stage, &links, &mut members, &[], CALM)?;
    if let Some(members) = members {
        members.settle(&mut stage)?;
    }
    let whole = workload.stop();
    let all = stage.all();
    if stage.serve(&all) && matches!(faults.work, Work::Documents | Work::Traffic) {
        look_at_proxies(&stage, &site);
    }
    let events = stage.finish();
    if whole { events } else { Err(io::Error::other("a client of the harness failed")) }
}

/// Lets the time pass; the members change meanwhile, where they do at all, but for the processes that are held.
fn go_on(
    stage: &mut Stage,
    links: &Links,
    members: &mut Option<Members>,
    held: &[usize],
    time: Duration,
) -> io::Result<()> {
    match members {
        Some(members) => members.change(stage, links, held, Instant::now() + time),
        None => {
            thread::sleep(time);
            Ok(())
        }
    }
}

/// Does all of these at once, and undoes them; false: the cluster did not come back from it.
fn injure(
    stage: &mut Stage,
    links: &Links,
    members: &mut Option<Members>,
    nemeses: &[Nemesis],
    rng: &mut StdRng,
) -> io::Result<bool> {
    let nodes = members.as_ref().map_or_else(|| stage.all(), Members::places);
    // Less than that there are only for as long as somebody comes or goes.
    if nodes.len() < NODES_MIN {
        return Ok(true);
    }
    stage.progress(&format!("{nemeses:?}"));
    let (leader, overlap) = (leads(stage), nemeses.len() > 1);
    let mut injuries = Vec::new();
    for nemesis in nemeses {
        injuries.push(nemesis.injure(&mut victims(stage, links, &nodes, leader, overlap), rng)?);
    }
    let held: Vec<usize> = injuries.iter().flat_map(|injury| injury.held().iter().copied()).collect();
    go_on(stage, links, members, &held, Duration::from_millis(rng.random_range(INJURY_MS)))?;
    let mut killed = Vec::new();
    for injury in injuries {
        killed.extend(injury.undo(&mut victims(stage, links, &nodes, leader, overlap))?);
    }
    if let Some(members) = members {
        // Who was removed meanwhile does not serve again.
        let places = members.places();
        killed.retain(|node| places.contains(node));
    }
    let serves = stage.serve(&killed);
    for node in killed.into_iter().filter(|_| serves) {
        let nodes = vec![stage.processes.name(node).to_owned()];
        let (kind, status) = (FaultKind::Serves, FaultStatus::Installed);
        stage.recorder.fault(Fault { kind, nodes, status, note: String::new() });
    }
    Ok(serves)
}

fn victims<'a>(
    stage: &'a mut Stage,
    links: &'a Links,
    nodes: &[usize],
    leader: Option<usize>,
    overlap: bool,
) -> Victims<'a> {
    let Stage { processes, recorder, .. } = stage;
    Victims { processes, nodes: nodes.to_vec(), links, recorder, leader, overlap }
}

/// Who leads, by the word of whoever knows of the highest term.
pub(super) fn leads(stage: &Stage) -> Option<usize> {
    let mut client = stage.client("observer", PROBE_PATIENCE);
    let said = stage.all().into_iter().filter_map(|node| match client.status(node) {
        Outcome::Ok { seen: Seen::Leader { leader: Some(leader), term, .. } } => Some((term, leader)),
        _ => None,
    });
    stage.processes.by_name(&said.max()?.1)
}

/// Asks every proxy what it serves, until all say the same.
fn look_at_proxies(stage: &Stage, site: &Site) {
    let nodes = site.web.clone();
    let mut client = Client::new(FINAL_CLIENT.to_owned(), nodes, stage.recorder.clone(), FINAL_PATIENCE);
    let deadline = Instant::now() + SERVES_CURRENT_WITHIN;
    loop {
        let looks: Vec<Outcome> = stage.all().into_iter().map(|node| client.serve(node)).collect();
        if looks.windows(2).all(|pair| pair[0] == pair[1]) || Instant::now() > deadline {
            return;
        }
        thread::sleep(Duration::from_millis(200));
    }
}
