//! Who this node is, for its peers: what it is asked before it is anybody, and what it keeps of the answers.
//!
//! Invariants: an identity is on the disk before anybody hears of it; once something can have been agreed with this
//! node it stays who it is. Neighbours: `bootstrap` says what the calls are for, `raft::server` answers them from
//! here, `storage` keeps the identity.

use std::sync::{Arc, Mutex, PoisonError, RwLock};

use gogate_proto::v1;
use tokio::sync::watch;
use tonic::Status;

use crate::{
    handle::{Secret, StartError},
    node::Node,
    raft::Links,
    state::NodeId,
    storage::{DataDir, Identity, codec::NodeRecord},
};

const STOPPED: &str = "this node has stopped";

/// What is configured of this node and its group.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub(crate) name: String,
    pub(crate) cluster_name: String,
    pub(crate) expect: usize,
    pub(crate) peers: Vec<String>,
    pub(crate) learner: bool,
    pub(crate) advertise: String,
    pub(crate) admin: String,
    pub(crate) secret: Option<Secret>,
    pub(crate) format: u8,
}

/// Who this node is, for its peers.
pub(crate) struct Door {
    pub(super) facts: Facts,
    pub(super) links: Links,
    /// None once the node has stopped.
    dir: Mutex<Option<DataDir>>,
    whoami: RwLock<Arc<Whoami>>,
    node: RwLock<Option<Arc<Node>>>,
    /// Where the last invitation says that a member is.
    invited_to: Mutex<Option<String>>,
    /// Counts changes of the identity.
    pub(super) changes: watch::Sender<u64>,
}

/// What the calls of peers are checked against.
#[derive(Debug)]
pub(crate) struct Whoami {
    /// Empty: not part of a cluster yet.
    pub(crate) cluster_uuid: String,
    /// 0: none yet.
    pub(crate) node: NodeId,
    pub(crate) incarnation: u64,
}

// === impl Door ===

impl Door {
    pub(crate) fn new(facts: Facts, links: Links, dir: DataDir) -> Self {
        let whoami = RwLock::new(Arc::new(Whoami::of(&dir.identity)));
        if let Some(uuid) = &dir.identity.cluster_uuid {
            links.set_cluster(uuid);
        }
        let (changes, _) = watch::channel(0);
        Self {
            facts,
            links,
            dir: Mutex::new(Some(dir)),
            whoami,
            node: RwLock::default(),
            invited_to: Mutex::default(),
            changes,
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.facts.name
    }

    /// Where others reach it.
    pub(crate) fn address(&self) -> &str {
        &self.facts.advertise
    }

    pub(crate) fn secret(&self) -> Option<&str> {
        self.facts.secret.as_ref().map(|secret| secret.0.as_str())
    }

    pub(crate) fn identity(&self) -> Arc<Whoami> {
        self.whoami.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The node, once it runs and until it stops.
    pub(crate) fn node(&self) -> Option<Arc<Node>> {
        self.node.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn open(&self, node: Arc<Node>) {
        *self.node.write().unwrap_or_else(PoisonError::into_inner) = Some(node);
    }

    /// Lets nobody in any more, and gives the data folder back.
    pub(crate) fn close(&self) -> Option<DataDir> {
        // The folder first: without a node, what lay in it at the start is what `is_pristine` goes by.
        let dir = self.dir.lock().unwrap_or_else(PoisonError::into_inner).take();
        *self.node.write().unwrap_or_else(PoisonError::into_inner) = None;
        dir
    }

    /// Whether nothing can have been agreed with this node, which before it runs only its disk can tell.
    async fn is_pristine(&self) -> Result<bool, String> {
        if let Some(node) = self.node() {
            return Ok(node.core.is_pristine().await);
        }
        match self.dir.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            Some(dir) => Ok(!dir.used),
            None => Err(STOPPED.to_owned()),
        }
    }

    /// What lies on the disk.
    pub(crate) fn kept(&self) -> Option<Identity> {
        self.dir.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|dir| dir.identity.clone())
    }

    /// Keeps what `change` makes of the identity; returns when it is on the disk.
    pub(super) fn keep<E: From<String>>(
        &self,
        change: impl FnOnce(&mut Identity) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut dir = self.dir.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(dir) = dir.as_mut() else { return Err(STOPPED.to_owned().into()) };
        let mut identity = dir.identity.clone();
        change(&mut identity)?;
        if identity == dir.identity {
            return Ok(());
        }
        dir.save_identity(identity).map_err(|error| error.to_string())?;
        if let Some(uuid) = &dir.identity.cluster_uuid {
            self.links.set_cluster(uuid);
        }
        let whoami = Arc::new(Whoami::of(&dir.identity));
        *self.whoami.write().unwrap_or_else(PoisonError::into_inner) = whoami;
        self.changes.send_modify(|changes| *changes += 1);
        Ok(())
    }

    /// This node as the others know it.
    pub(super) fn record(&self) -> NodeRecord {
        NodeRecord {
            name: self.facts.name.clone(),
            peer: self.facts.advertise.clone(),
            admin: self.facts.admin.clone(),
            incarnation: self.identity().incarnation,
        }
    }

    /// What this node answers when it is asked who it is; nothing once it has stopped.
    pub(crate) async fn identify(&self) -> Result<v1::IdentifyReply, Status> {
        let pristine = self.is_pristine().await.map_err(Status::unavailable)?;
        let whoami = self.identity();
        Ok(v1::IdentifyReply {
            name: self.facts.name.clone(),
            cluster_name: self.facts.cluster_name.clone(),
            peer: self.facts.advertise.clone(),
            admin: self.facts.admin.clone(),
            incarnation: whoami.incarnation,
            cluster_uuid: whoami.cluster_uuid.clone(),
            node: whoami.node,
            pristine,
            role: role(self.facts.learner).to_owned(),
        })
    }

    /// Keeps what the founder made, or says why not.
    pub(crate) async fn adopt(&self, request: v1::AdoptRequest) -> Result<(), String> {
        let pristine = self.is_pristine().await?;
        let name = &self.facts.name;
        if request.cluster_name != self.facts.cluster_name {
            return Err(format!(
                "node `{name}` is of cluster `{}`, not of `{}`",
                self.facts.cluster_name, request.cluster_name
            ));
        }
        let founders: Vec<_> = request.founders.into_iter().map(founder).collect();
        let in_order = founders.iter().zip(1..).all(|((id, _), expected)| *id == expected)
            && founders.windows(2).all(|pair| pair[0].1.peer < pair[1].1.peer);
        if founders.len() != self.facts.expect || !in_order {
            return Err(format!(
                "node `{name}` expects {} founders, not {}: give all nodes the same `cluster.expect` and `cluster.peers`",
                self.facts.expect,
                founders.len()
            ));
        }
        self.keep(|identity| {
            let own = founders.iter().find(|(_, record)| record.incarnation == identity.incarnation);
            let Some((id, _)) = own else {
                return Err(format!(
                    "node `{name}` is not who the founder thinks: its data folder is another one"
                ));
            };
            let same_id = identity.node.is_none_or(|known| known == *id);
            let same_uuid = identity.cluster_uuid.as_ref().is_none_or(|uuid| *uuid == request.cluster_uuid);
            let founds_anew = match (identity.founders.first(), founders.first()) {
                (Some((_, old)), Some((_, new))) => {
                    old.peer == new.peer && old.incarnation != new.incarnation
                }
                // It joined: nobody founds with it.
                _ => identity.node.is_none(),
            };
            if !same_id || !(same_uuid || (pristine && founds_anew)) {
                return Err(format!("node `{name}` is part of a cluster already"));
            }
            identity.node = Some(*id);
            identity.cluster_uuid = Some(request.cluster_uuid.clone());
            identity.founders.clone_from(&founders);
            Ok(())
        })
    }

    /// There is a cluster, and a member of it at `address`: asked there from now on, beside the configured peers.
    pub(crate) fn invite(&self, request: v1::InviteRequest) -> Result<(), String> {
        let name = &self.facts.name;
        if request.cluster_name != self.facts.cluster_name {
            return Err(format!(
                "node `{name}` is of cluster `{}`, not of `{}`",
                self.facts.cluster_name, request.cluster_name
            ));
        }
        *self.invited_to.lock().unwrap_or_else(PoisonError::into_inner) = Some(request.address);
        self.changes.send_modify(|changes| *changes += 1);
        Ok(())
    }

    pub(super) fn invited_to(&self) -> Option<String> {
        self.invited_to.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// One of the configured peers, by chance.
    pub(crate) fn some_peer(&self) -> Option<String> {
        let others: Vec<_> = self.facts.peers.iter().filter(|peer| **peer != self.facts.advertise).collect();
        others.get(rand::random_range(0..others.len().max(1))).map(|peer| (*peer).clone())
    }

    pub(super) fn error(&self, problem: String) -> StartError {
        StartError::Bootstrap { cluster: self.facts.cluster_name.clone(), problem }
    }
}

pub(crate) fn role(learner: bool) -> &'static str {
    if learner { "learner" } else { "voter" }
}

fn founder(message: v1::Founder) -> (NodeId, NodeRecord) {
    let v1::Founder { node, name, peer, admin, incarnation } = message;
    (node, NodeRecord { name, peer, admin, incarnation })
}

pub(super) fn message((id, record): &(NodeId, NodeRecord)) -> v1::Founder {
    let NodeRecord { name, peer, admin, incarnation } = record.clone();
    v1::Founder { node: *id, name, peer, admin, incarnation }
}

// === impl Whoami ===

impl Whoami {
    fn of(identity: &Identity) -> Self {
        Self {
            cluster_uuid: identity.cluster_uuid.clone().unwrap_or_default(),
            node: identity.node.unwrap_or(0),
            incarnation: identity.incarnation,
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;
    use crate::{
        state::FORMAT,
        storage::{LogStore, Meta, Owner},
    };

    fn dir(folder: &tempfile::TempDir) -> DataDir {
        let owner = Owner { cluster_name: "demo", name: "n2", learner: false, format: FORMAT };
        DataDir::open(folder.path(), owner).unwrap()
    }

    fn door(dir: DataDir) -> Door {
        let facts = Facts {
            name: "n2".to_owned(),
            cluster_name: "demo".to_owned(),
            expect: 2,
            peers: vec!["a:1".to_owned(), "b:1".to_owned()],
            learner: false,
            advertise: "b:1".to_owned(),
            admin: String::new(),
            secret: None,
            format: FORMAT,
        };
        Door::new(facts, Links::new(None, None, "b:1").unwrap(), dir)
    }

    fn adoption(uuid: &str, own: u64) -> v1::AdoptRequest {
        let founder = |node, peer: &str, incarnation| v1::Founder {
            node,
            peer: peer.to_owned(),
            incarnation,
            ..v1::Founder::default()
        };
        v1::AdoptRequest {
            cluster_name: "demo".to_owned(),
            cluster_uuid: uuid.to_owned(),
            founders: vec![founder(1, "a:1", 77), founder(2, "b:1", own)],
        }
    }

    #[tokio::test]
    async fn a_member_that_is_just_starting_is_not_pristine() {
        let folder = tempfile::tempdir().unwrap();
        let fresh = door(dir(&folder));
        assert!(fresh.identify().await.unwrap().pristine);
        let own = fresh.identity().incarnation;
        fresh.adopt(adoption("5eed", own)).await.unwrap();
        let closed = fresh.close().unwrap();
        // It votes, and is killed.
        closed.log.put(Meta::Vote, Some(b"a vote")).unwrap();
        closed.log.barrier().unwrap();
        drop(closed);

        let member = door(dir(&folder));
        let reply = member.identify().await.unwrap();
        assert_eq!((reply.node, reply.pristine), (2, false));
        let refusal = member.adopt(adoption("other", own)).await.unwrap_err();
        assert!(refusal.contains("part of a cluster already"), "{refusal}");
        assert_eq!(member.kept().unwrap().cluster_uuid.as_deref(), Some("5eed"));
    }

    #[tokio::test]
    async fn only_a_founder_that_lost_its_disk_is_followed_anew() {
        let folder = tempfile::tempdir().unwrap();
        let adopted = door(dir(&folder));
        let own = adopted.identity().incarnation;
        adopted.adopt(adoption("5eed", own)).await.unwrap();
        adopted.adopt(adoption("5eed", own)).await.unwrap();
        let uuid = || adopted.kept().unwrap().cluster_uuid.unwrap();
        // Somebody else, whose list of peers is another one.
        let mut other = adoption("other", own);
        other.founders[0].peer = "0:1".to_owned();
        adopted.adopt(other).await.unwrap_err();
        // The same incarnation founds once.
        adopted.adopt(adoption("other", own)).await.unwrap_err();
        assert_eq!(uuid(), "5eed");
        let mut anew = adoption("anew", own);
        anew.founders[0].incarnation += 1;
        adopted.adopt(anew).await.unwrap();
        assert_eq!(uuid(), "anew");
    }

    #[tokio::test]
    async fn a_node_that_has_stopped_says_nothing_of_itself() {
        let folder = tempfile::tempdir().unwrap();
        let stopped = door(dir(&folder));
        let own = stopped.identity().incarnation;
        stopped.close();
        assert_eq!(stopped.identify().await.unwrap_err().code(), Code::Unavailable);
        stopped.adopt(adoption("5eed", own)).await.unwrap_err();
    }
}
