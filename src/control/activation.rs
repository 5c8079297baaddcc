//! A staged document on this node: can it run here, and what is ready for the moment in which it is activated.
//!
//! Job: compile the staged document beside what runs, take the ports that it needs, and say "ready", or why not, in
//! words that name the key; the leader waits for that (`gogate_cluster`'s activation). Invariants: what runs is not
//! touched; a port that was said to be free stays taken until the document is activated or dropped; what was
//! compiled is used only on the table that it was compiled upon. Neighbours: [`super::publish`] holds what is
//! ready and puts it into force.

use std::{collections::BTreeSet, sync::Arc};

use gogate_cluster::{Cluster, state::Version};

use super::compile;
use crate::{
    config::{check, document::Document},
    proxy::{Proxy, Reserved, RoutingTable},
};

/// A document that this node can run.
pub(super) struct Ready {
    /// Its number.
    pub(super) version: u64,
    /// What it says.
    pub(super) document: Document,
    /// The services that it sends requests to.
    pub(super) services: BTreeSet<String>,
    /// It, compiled.
    pub(super) table: RoutingTable,
    /// The ports of its new listeners.
    pub(super) reserved: Reserved,
    /// The table that it was compiled upon.
    upon: Arc<RoutingTable>,
}

// === impl Ready ===

impl Ready {
    /// Reads (unless it is `known` already what it says), compiles and reserves; an error says why this node cannot
    /// run it.
    pub(super) async fn make(
        cluster: &Cluster,
        proxy: &Proxy,
        version: &Arc<Version>,
        known: Option<Document>,
    ) -> Result<Self, String> {
        let document = match known {
            Some(document) => document,
            None => read(version.clone()).await?,
        };
        let upon = proxy.table();
        let (document, services, table) = compiled(cluster, version.version, document, upon.clone()).await?;
        let reserved = proxy.reserve(&table).await.map_err(|error| error.to_string())?;
        Ok(Self { version: version.version, document, services, table, reserved, upon })
    }

    /// The same, compiled upon what runs now if something else was published since.
    pub(super) async fn renewed(mut self, cluster: &Cluster, proxy: &Proxy) -> Result<Self, String> {
        let upon = proxy.table();
        if !Arc::ptr_eq(&self.upon, &upon) {
            let anew = compiled(cluster, self.version, self.document, upon.clone()).await?;
            (self.document, self.services, self.table) = anew;
            self.upon = upon;
        }
        Ok(self)
    }
}

/// What the document says. A large one takes long: not on a thread that answers calls.
async fn read(version: Arc<Version>) -> Result<Document, String> {
    let read = tokio::task::spawn_blocking(move || {
        check::document(&version.content)
            .map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
    });
    read.await.map_err(|error| format!("it could not be read: {error}"))?
}

async fn compiled(
    cluster: &Cluster,
    version: u64,
    document: Document,
    upon: Arc<RoutingTable>,
) -> Result<(Document, BTreeSet<String>, RoutingTable), String> {
    let cluster = cluster.clone();
    let compiled = tokio::task::spawn_blocking(move || {
        let services = compile::services(&document);
        let registered = cluster.read(|state| compile::registered(state.registry(), &services));
        let table = RoutingTable::compile(version, &document, &registered, &upon);
        table.map(|table| (document, services, table)).map_err(|error| error.to_string())
    });
    compiled.await.map_err(|error| format!("it could not be compiled: {error}"))?
}
