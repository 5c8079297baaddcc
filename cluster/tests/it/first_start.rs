//! Crashes in the middle of the first start.

use gogate_cluster::storage::{
    DataDir, Identity, Owner,
    codec::{FORMAT, NodeRecord},
};

use crate::harness::{Place, has, leader, places, register, shutdown_all, start_all};

/// Gives the folders of `marked` the identity that a founder made and then died of.
fn leave_unfinished(places: &[Place], uuid: &str, marked: &[usize]) {
    let mut folders: Vec<_> = places
        .iter()
        .map(|place| {
            let owner = Owner { cluster_name: "demo", name: &place.name, learner: false, format: FORMAT };
            DataDir::open(&place.data_dir(), owner).unwrap()
        })
        .collect();
    let mut records: Vec<_> = places
        .iter()
        .zip(&folders)
        .map(|(place, folder)| NodeRecord {
            name: place.name.clone(),
            peer: place.address.clone(),
            admin: String::new(),
            incarnation: folder.identity.incarnation,
        })
        .collect();
    records.sort_by(|left, right| left.peer.cmp(&right.peer));
    let founders: Vec<_> = (1..).zip(records).collect();
    for at in marked {
        let folder = &mut folders[*at];
        let own = founders.iter().find(|(_, record)| record.peer == places[*at].address);
        let identity = Identity {
            cluster_uuid: Some(uuid.to_owned()),
            node: own.map(|(id, _)| *id),
            founders: founders.clone(),
            ..folder.identity.clone()
        };
        folder.save_identity(identity).unwrap();
    }
}

/// The place of the designated founder.
fn founder(places: &[Place]) -> usize {
    let lowest = places.iter().map(|place| &place.address).min();
    places.iter().position(|place| Some(&place.address) == lowest).unwrap()
}

async fn works(places: &[Place]) -> String {
    let nodes = start_all(places).await;
    leader(&nodes).await;
    register(&nodes[0], "a").await;
    nodes[1].linearizable(crate::harness::TIMEOUT).await.unwrap();
    assert!(has(&nodes[1], "a"));
    let uuid = nodes[0].status().cluster_uuid;
    assert!(nodes.iter().all(|node| node.status().cluster_uuid == uuid));
    assert!(nodes.iter().all(|node| node.status().members.len() == 3));
    shutdown_all(nodes).await;
    uuid
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_founder_that_died_before_it_asked_anybody_goes_on() {
    let places = places(3);
    leave_unfinished(&places, "5eed", &[founder(&places)]);
    assert_eq!(works(&places).await, "5eed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_founder_that_died_before_it_began_goes_on() {
    let places = places(3);
    leave_unfinished(&places, "5eed", &[0, 1, 2]);
    assert_eq!(works(&places).await, "5eed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_founder_that_lost_its_disk_before_it_began_founds_anew() {
    let places = places(3);
    let others: Vec<_> = (0..3).filter(|at| *at != founder(&places)).collect();
    leave_unfinished(&places, "5eed", &others);
    places[founder(&places)].wipe();
    assert_ne!(works(&places).await, "5eed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_founder_replaces_one_that_lost_its_disk_before_it_began() {
    let places = places(3);
    leave_unfinished(&places, "5eed", &[0, 1, 2]);
    places[(founder(&places) + 1) % 3].wipe();
    assert_eq!(works(&places).await, "5eed");
}
