//! Active health checks: one prober for the node, however many workers it has.
//!
//! Job: [`Prober`] is a thread with a runtime of its own; each table that is put into force is shown to it. An
//! endpoint with a `health_check` has a task that asks it at once and then every `interval`, give or take a tenth
//! so that many endpoints are not asked at the same moment. Invariants: at most one probe an endpoint and
//! [`PROBES_MAX`] in all are under way, each no longer than its `timeout`; an endpoint that a reload does not
//! change keeps its task, its counts and its schedule; one that is gone, or no longer checked, has no task. An endpoint
//! that has not been heard of counts as healthy. Neighbours: `endpoint` keeps the verdict, workers read it.

use std::{collections::HashMap, io, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    runtime::Builder,
    sync::{Semaphore, watch},
    task::AbortHandle,
    time::Instant,
};
use tracing::{debug, info, warn};

use super::{
    endpoint::{EndpointState, Health},
    table::{RoutingTable, Target},
};
use crate::config::document::{HealthCheck, Probe, ProxyProtocol};

/// Probes that may be under way.
const PROBES_MAX: usize = 256;
/// What is read of an answer. Its status line is in it, or it is no answer; a short answer is read whole, so that
/// closing does not reset the connection under the endpoint.
const ANSWER_BYTES_MAX: usize = 8 << 10;

/// What endpoints that expect a PROXY header are told of a probe, which is nobody's: the specification's sections
/// 2.1 (`UNKNOWN`) and 2.2 (`LOCAL`).
const ANNOUNCED_V1: &[u8] = b"PROXY UNKNOWN\r\n";
const ANNOUNCED_V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

/// The prober as the rest of the process holds it; dropped, it ends.
#[derive(Debug)]
pub(super) struct Prober {
    tables: watch::Sender<Arc<RoutingTable>>,
}

/// An endpoint that is being checked.
struct Checked {
    /// Held, so that no other one can have its place in memory, which is the key.
    _state: Arc<EndpointState>,
    check: HealthCheck,
    announce: Option<ProxyProtocol>,
    task: AbortHandle,
}

/// Probes in a row.
#[derive(Debug, Default)]
struct Streak {
    good: u32,
    bad: u32,
}

// === impl Prober ===

impl Prober {
    /// Starts the thread; there is nothing to check yet.
    pub(super) fn start() -> io::Result<Prober> {
        let (tables, mut shown) = watch::channel(Arc::new(RoutingTable::default()));
        let runtime = Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("proxy-health".into()).spawn(move || {
            runtime.block_on(async move {
                let permits = Arc::new(Semaphore::new(PROBES_MAX));
                let mut checked = HashMap::new();
                while shown.changed().await.is_ok() {
                    let table = Arc::clone(&shown.borrow_and_update());
                    checked = follow(&table, checked, &permits);
                }
            });
        })?;
        Ok(Prober { tables })
    }

    /// Checks what this table says from now on.
    pub(super) fn show(&self, table: Arc<RoutingTable>) {
        self.tables.send_replace(table);
    }
}

/// Starts what is missing, and stops what is left over.
fn follow(
    table: &RoutingTable,
    mut before: HashMap<*const EndpointState, Checked>,
    permits: &Arc<Semaphore>,
) -> HashMap<*const EndpointState, Checked> {
    let mut checked = HashMap::with_capacity(before.len());
    for upstream in &table.upstreams {
        let Some(check) = &upstream.service.health_check else {
            upstream.endpoints.iter().for_each(|endpoint| endpoint.state.set_health(Health::Unknown));
            continue;
        };
        let announce = upstream.service.send_proxy_protocol;
        for endpoint in &upstream.endpoints {
            let key = Arc::as_ptr(&endpoint.state);
            let same = before.remove(&key).filter(|same| same.check == *check && same.announce == announce);
            checked.insert(
                key,
                same.unwrap_or_else(|| {
                    let state = Arc::clone(&endpoint.state);
                    let work = attend(
                        Arc::clone(&upstream.name),
                        endpoint.target.clone(),
                        (check.clone(), announce),
                        Arc::clone(&state),
                        Arc::clone(permits),
                    );
                    let task = tokio::spawn(work).abort_handle();
                    Checked { _state: state, check: check.clone(), announce, task }
                }),
            );
        }
    }
    checked
}

impl Drop for Checked {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The life of an endpoint's check.
async fn attend(
    service: Arc<str>,
    target: Target,
    (check, announce): (HealthCheck, Option<ProxyProtocol>),
    state: Arc<EndpointState>,
    permits: Arc<Semaphore>,
) {
    let mut streak = Streak::default();
    loop {
        let due = Instant::now() + jittered(check.interval);
        let heard = {
            let Ok(_permit) = permits.acquire().await else { return };
            match tokio::time::timeout(check.timeout, ask(&target, &check.probe, announce)).await {
                Ok(heard) => heard,
                Err(_) => Err("no answer in time".to_owned()),
            }
        };
        let endpoint = &*target.address;
        if let Err(reason) = &heard {
            debug!(%service, endpoint, %reason, "a health check failed");
        }
        if let Some(health) = streak.hear(heard.is_ok(), &check)
            && health != state.health()
        {
            match &heard {
                Ok(()) => info!(%service, endpoint, "an endpoint is healthy"),
                Err(reason) => warn!(%service, endpoint, %reason, "an endpoint is unhealthy"),
            }
            state.set_health(health);
        }
        tokio::time::sleep_until(due).await;
    }
}

/// Asks once; an error says what was wrong.
async fn ask(target: &Target, probe: &Probe, announce: Option<ProxyProtocol>) -> Result<(), String> {
    let mut tcp = target.connect().await.map_err(|error| format!("no connection: {error}"))?;
    let Probe::Http { path, expect } = probe else { return Ok(()) };
    let announced = match announce {
        None => &b""[..],
        Some(ProxyProtocol::V1) => ANNOUNCED_V1,
        Some(ProxyProtocol::V2) => ANNOUNCED_V2,
    };
    tcp.write_all(announced).await.map_err(|error| format!("the connection broke: {error}"))?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {}\r\nUser-Agent: gogate-health/{}\r\nAccept: */*\r\nConnection: close\r\n\r\n",
        target.address,
        env!("CARGO_PKG_VERSION"),
    );
    tcp.write_all(request.as_bytes()).await.map_err(|error| format!("the connection broke: {error}"))?;
    let mut answer = Vec::with_capacity(ANSWER_BYTES_MAX);
    while !answer.contains(&b'\n') && answer.len() < ANSWER_BYTES_MAX {
        match tcp.read_buf(&mut answer).await {
            Ok(0) => return Err("the connection was closed before an answer".to_owned()),
            Ok(_) => {}
            Err(error) => return Err(format!("the connection broke: {error}")),
        }
    }
    let status = status_of(&answer).ok_or("the answer is not HTTP")?;
    if expect.iter().any(|range| range.contains(&status)) {
        Ok(())
    } else {
        Err(format!("it answered {status}"))
    }
}

/// `HTTP/1.1 200 …` → 200
fn status_of(answer: &[u8]) -> Option<u16> {
    let rest = answer.strip_prefix(b"HTTP/1.")?;
    let [b'0' | b'1', b' ', code @ ..] = rest else { return None };
    let code = code.get(..3).filter(|code| code.iter().all(u8::is_ascii_digit))?;
    std::str::from_utf8(code).ok()?.parse().ok()
}

fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(rand::random_range(0.9..1.1))
}

// === impl Streak ===

impl Streak {
    /// What is known now, if this probe decides it.
    fn hear(&mut self, good: bool, check: &HealthCheck) -> Option<Health> {
        if good {
            self.bad = 0;
            self.good = self.good.saturating_add(1);
            (self.good >= check.healthy_after).then_some(Health::Healthy)
        } else {
            self.good = 0;
            self.bad = self.bad.saturating_add(1);
            (self.bad >= check.unhealthy_after).then_some(Health::Unhealthy)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_takes_as_many_probes_in_a_row_as_it_says() {
        let check = HealthCheck { unhealthy_after: 3, healthy_after: 2, ..HealthCheck::default() };
        let mut streak = Streak::default();
        let (no, up, down) = (None, Some(Health::Healthy), Some(Health::Unhealthy));
        for (good, expected) in [
            (false, no),
            (false, no),
            (true, no),
            (true, up),
            (false, no),
            (false, no),
            (false, down),
            (false, down),
            (true, no),
            (false, no),
            (true, no),
            (true, up),
        ] {
            assert_eq!(streak.hear(good, &check), expected);
        }
    }

    #[test]
    fn a_status_is_read_from_http_1_only() {
        for (answer, expected) in [
            ("HTTP/1.1 200 OK\r\n", Some(200)),
            ("HTTP/1.0 503\r\n", Some(503)),
            ("HTTP/2 200\r\n", None),
            ("HTTP/1.1 20\r\n", None),
            ("SSH-2.0-OpenSSH\r\n", None),
            ("", None),
        ] {
            assert_eq!(status_of(answer.as_bytes()), expected, "{answer:?}");
        }
    }

    #[test]
    fn intervals_vary_by_a_tenth() {
        let interval = Duration::from_secs(10);
        let seen: Vec<_> = (0..1000).map(|_| jittered(interval)).collect();
        assert!(seen.iter().all(|seen| (Duration::from_secs(9)..=Duration::from_secs(11)).contains(seen)));
        assert!(seen.iter().any(|seen| *seen < Duration::from_millis(9_500)));
        assert!(seen.iter().any(|seen| *seen > Duration::from_millis(10_500)));
    }
}
