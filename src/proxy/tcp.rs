//! One stream: a connection of a client that goes to an endpoint as it is.
//!
//! Job: find the service, open a connection to one of its endpoints, and let `relay` copy. Invariants: nothing of
//! the client's bytes is lost or sent before an endpoint has taken the connection, so another endpoint can be
//! tried until then; a stream needs nothing of the table once it runs, so a new table leaves it alone.
//! Neighbours: `listener` hands over sockets, `client_hello` reads the name that a TLS client asks for, `upstream`
//! chooses.

use std::{net::IpAddr, rc::Rc, sync::Arc, time::Instant};

use bytes::BufMut;
use tokio::{io::AsyncReadExt, net::TcpStream};

use super::{
    alarm::Alarm,
    balance::hash_client,
    client_hello::{self, Hello},
    error::ProxyError,
    listener::{ListenerState, Permit},
    pool::StreamPlace,
    proxy_protocol::{self, Addresses},
    record::StreamRecord,
    relay::Relay,
    table::{CompiledListener, Destination},
    upstream::{LocalUpstream, Picked, View, Wish},
    worker::Worker,
};
use crate::config::document::{Balance, HashOn};

/// Endpoints that are tried for one stream.
const TRIES_MAX: usize = 3;
/// What is read of a ClientHello at first.
const HELLO_BYTES: usize = 2 << 10;

/// A stream that was just accepted.
struct Stream {
    worker: Rc<Worker>,
    listener: Rc<ListenerState>,
    alarm: Rc<Alarm>,
    client: TcpStream,
    /// Whose it is: the peer's, or what its PROXY header says.
    address: IpAddr,
    ends: Addresses,
    /// None: there is no access log.
    record: Option<Rc<StreamRecord>>,
}

/// Carries a client's connection to its end. The permit goes with it.
pub(super) async fn serve(
    worker: Rc<Worker>,
    listener: Rc<ListenerState>,
    view: Rc<View>,
    settings: Arc<CompiledListener>,
    client: TcpStream,
    ends: Addresses,
    permit: Permit,
) {
    let alarm = worker.alarms.add();
    let address = ends.source.ip().to_canonical();
    let record = StreamRecord::begin(&worker, &listener, address);
    let stream =
        Stream { worker: Rc::clone(&worker), listener, alarm, client, address, ends, record: record.clone() };
    let carried = match stream.begin(view, settings).await {
        Ok(Some((relay, place))) => {
            let ended = relay.run().await;
            drop(place);
            ended
        }
        Ok(None) => Ok(()),
        Err(error) => Err(error),
    };
    if let Some(record) = &record {
        record.ended(&carried);
    }
    if let Err(error) = carried {
        worker.figures.reject(error.row().reason);
    }
    drop(permit);
}

/// What a stream holds of its endpoint to its end.
struct Line {
    _place: StreamPlace,
    _picked: Picked,
}

impl Stream {
    /// Finds an endpoint for it; none if the client has gone.
    async fn begin(
        mut self,
        view: Rc<View>,
        settings: Arc<CompiledListener>,
    ) -> Result<Option<(Relay, Line)>, ProxyError> {
        let mut first = Vec::new();
        let service = match &settings.destination {
            Destination::Names(names) => {
                self.alarm.set(self.worker.alarms.soon() + view.table.routing.limits.header_timeout);
                let name = self.alarm.limit(read_name(&mut self.client, &mut first)).await;
                let Some(name) = name.unwrap_or(Err(ProxyError::NotTls))? else { return Ok(None) };
                let found = names.find(name.as_deref());
                if let Some(record) = &self.record {
                    record.asked_for(name);
                }
                found.ok_or(ProxyError::NoServerName)?
            }
            Destination::Service(service) => *service,
            Destination::Routes => return Ok(None),
        };
        let upstream = &view.upstreams[service];
        let (endpoint, place) = self.open(upstream).await?;
        let idle = settings.idle.unwrap_or(upstream.plan.service.timeouts.stream);
        if let Some(version) = upstream.plan.service.send_proxy_protocol {
            first.splice(..0, proxy_protocol::write(version, &self.ends));
        }
        let mut relay = Relay::new(self.worker, self.listener, self.alarm, idle, self.client, endpoint);
        relay.send_first(first);
        if let Some(record) = self.record {
            relay.count_in(Rc::clone(&record.carried));
        }
        Ok(Some((relay, place)))
    }

    /// Opens a connection to an endpoint, another one if the first does not take it.
    async fn open(&self, upstream: &Rc<LocalUpstream>) -> Result<(TcpStream, Line), ProxyError> {
        let plan = &upstream.plan;
        let service = &*plan.service;
        if let Some(record) = &self.record {
            record.goes_to(&plan.name);
        }
        let hash = match service.balance {
            Balance::ConsistentHash(HashOn::ClientIp) => Some(hash_client(self.address)),
            _ => None,
        };
        let mut tried: Vec<u64> = Vec::new();
        let mut failure = None;
        while tried.len() < TRIES_MAX {
            let picked =
                match upstream.choose(&Wish { hash, pinned: None, tried: &tried, now: Instant::now() }) {
                    Ok(picked) => picked,
                    // What went wrong first says more than that nobody is left.
                    Err(error) => return Err(failure.unwrap_or(error)),
                };
            if failure.is_some() {
                self.worker.figures.retry(&plan.name, "connect");
            }
            tried.push(picked.id());
            let pool = picked.pool();
            let Some(place) = pool.stream(&service.pool) else {
                failure = Some(ProxyError::PoolOverload);
                continue;
            };
            self.alarm.set(self.worker.alarms.soon() + service.timeouts.connect);
            let began = self.record.as_deref().map(|record| record.attempt(&pool.target.address));
            let connected = self.alarm.limit(pool.target.connect()).await;
            if let (Some(record), Some(began)) = (&self.record, began) {
                record.connected(began);
            }
            let error = match connected {
                Some(Ok(endpoint)) => {
                    picked.succeeded();
                    return Ok((endpoint, Line { _place: place, _picked: picked }));
                }
                Some(Err(_)) => ProxyError::ConnectFailed,
                None => ProxyError::ConnectTimeout,
            };
            picked.failed();
            failure = Some(error);
        }
        Err(failure.unwrap_or(ProxyError::NoEndpoint))
    }
}

/// The name that a TLS client asks for, and the bytes that it took to find out. None: the client has gone.
async fn read_name(
    client: &mut TcpStream,
    bytes: &mut Vec<u8>,
) -> Result<Option<Option<String>>, ProxyError> {
    let mut wanted = 1;
    loop {
        let before = bytes.len();
        if before + wanted > client_hello::BYTES_MAX {
            return Err(ProxyError::NotTls);
        }
        // In one piece nearly always; what comes piece by piece is looked at when enough is there.
        bytes.reserve(HELLO_BYTES.max(wanted));
        match client.read_buf(&mut (&mut *bytes).limit(client_hello::BYTES_MAX - before)).await {
            Ok(0) | Err(_) if before == 0 => return Ok(None),
            Ok(0) | Err(_) => return Err(ProxyError::NotTls),
            Ok(read) if read < wanted => {
                wanted -= read;
                continue;
            }
            Ok(_) => {}
        }
        wanted = match client_hello::read(bytes) {
            Hello::More(more) => more,
            Hello::Name(name) => return Ok(Some(name)),
            Hello::NotTls => return Err(ProxyError::NotTls),
        };
    }
}
