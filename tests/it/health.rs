//! Active health checks, with endpoints that come and go and hang.

use std::{
    net::TcpListener,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use crate::upstream::{Gateway, PATIENCE, Upstream, eventually, yaml};

/// An endpoint that is probed at `/healthz`: it notes when, and answers as it is told to.
struct Probed {
    upstream: Upstream,
    well: Arc<AtomicBool>,
    probes: Arc<Mutex<Vec<(Instant, String)>>>,
}

impl Probed {
    fn start() -> Probed {
        let well = Arc::new(AtomicBool::new(true));
        let probes = Arc::new(Mutex::new(Vec::new()));
        let (is_well, noted) = (Arc::clone(&well), Arc::clone(&probes));
        let upstream = Upstream::start(move |mut peer| {
            while let Some(request) = peer.request() {
                if request.start.starts_with("GET /healthz") {
                    let agent = request.field("user-agent").unwrap_or_default().to_owned();
                    noted.lock().unwrap().push((Instant::now(), agent));
                    let status = if is_well.load(Ordering::SeqCst) { "204 OK" } else { "500 Not Well" };
                    peer.send(&format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n"));
                } else {
                    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
                }
            }
        });
        Probed { upstream, well, probes }
    }

    fn count(&self) -> usize {
        self.probes.lock().unwrap().len()
    }

    fn await_probes(&self, count: usize) {
        eventually("probes", || {
            let seen = self.count();
            if seen >= count { Ok(()) } else { Err(seen.to_string()) }
        });
    }
}

fn document(check: &str, endpoints: &[&str]) -> gogate::config::document::Document {
    let endpoints: Vec<_> = endpoints.iter().map(|address| format!("{{ address: '{address}' }}")).collect();
    yaml(&format!(
        "listeners: {{ web: {{ address: '127.0.0.1:0' }} }}
services: {{ service: {{ health_check: {{ {check} }}, endpoints: [{}] }} }}
routes: [{{ name: all, service: service }}]",
        endpoints.join(", ")
    ))
}

fn health(gateway: &Gateway, address: &str, value: u8) {
    gateway.await_metric(&format!(
        "gogate_backend_health{{service=\"service\",endpoint=\"{address}\"}} {value}"
    ));
}

fn refusing() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

#[test]
fn an_unhealthy_endpoint_has_no_requests_until_it_is_well_again() {
    let (sick, well) = (Probed::start(), Upstream::echo());
    let [one, other] = [sick.upstream.address.to_string(), well.address.to_string()];
    let check =
        "path: /healthz, interval: 10ms, unhealthy_after: 2, healthy_after: 2, expect: [200-299, 404]";
    let gateway = Gateway::start(&document(check, &[&one, &other]));
    // The echo answers 200 to anything.
    sick.await_probes(3);
    health(&gateway, &one, 1);
    sick.well.store(false, Ordering::SeqCst);
    health(&gateway, &one, 0);
    let mut client = gateway.client();
    for _ in 0..10 {
        assert!(client.get("/x").text().starts_with("GET /x"), "only the other endpoint echoes");
    }
    sick.well.store(true, Ordering::SeqCst);
    health(&gateway, &one, 1);
    let answers: Vec<_> = (0..4).map(|_| client.get("/x").text()).collect();
    assert!(answers.iter().any(|answer| answer == "ok"), "{answers:?}");
}

#[test]
fn there_is_one_prober_however_many_workers_and_reloads_there_are() {
    let probed = Probed::start();
    let address = probed.upstream.address.to_string();
    let check = "type: http, path: /healthz, interval: 60ms";
    let started = Instant::now();
    let gateway = Gateway::start_with(4, Duration::ZERO, &document(check, &[&address]));
    eventually("eight probes", || {
        gateway.publish(&document(check, &[&address]));
        let seen = probed.count();
        if seen >= 8 { Ok(()) } else { Err(seen.to_string()) }
    });
    let probes = probed.probes.lock().unwrap();
    // Seven intervals, each at least nine tenths of what is written; two probers would take half as long.
    let took = probes[7].0 - started;
    assert!(took >= Duration::from_millis(7 * 54), "eight probes in {took:?}");
    assert!(probes[0].1.starts_with("gogate-health/"), "{probes:?}");
}

#[test]
fn an_endpoint_that_is_gone_is_not_probed() {
    let (gone, stays) = (Probed::start(), Probed::start());
    let [one, other] = [gone.upstream.address.to_string(), stays.upstream.address.to_string()];
    let check = "path: /healthz, interval: 10ms";
    let gateway = Gateway::start(&document(check, &[&one, &other]));
    gone.await_probes(2);
    gateway.publish(&document(check, &[&other]));
    // One may be on its way.
    stays.await_probes(stays.count() + 3);
    let seen = gone.count();
    stays.await_probes(stays.count() + 10);
    assert_eq!(gone.count(), seen);
}

#[test]
fn a_hanging_endpoint_has_one_probe_at_a_time_and_is_unhealthy() {
    let (now, most) = (AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
    let seen = Arc::clone(&most);
    let hanging = Upstream::start(move |mut peer| {
        seen.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        peer.head();
        peer.is_closed();
        now.fetch_sub(1, Ordering::SeqCst);
    });
    let address = hanging.address.to_string();
    let gateway =
        Gateway::start(&document("interval: 10ms, timeout: 100ms, unhealthy_after: 3", &[&address]));
    health(&gateway, &address, 0);
    assert!(hanging.connections.load(Ordering::SeqCst) >= 3);
    // The endpoint may hear of the end of one after the beginning of the next.
    assert!(most.load(Ordering::SeqCst) <= 2, "{most:?}");
}

#[test]
fn without_a_healthy_endpoint_requests_get_503() {
    let garbage = Upstream::says("SSH-2.0-OpenSSH\r\n");
    let half = Upstream::says("HTTP/1.1 2");
    let redirect = Upstream::says("HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n");
    for address in
        [garbage.address.to_string(), half.address.to_string(), redirect.address.to_string(), refusing()]
    {
        let gateway = Gateway::start(&document("interval: 10ms, unhealthy_after: 1", &[&address]));
        health(&gateway, &address, 0);
        let answer = gateway.client().get("/");
        assert_eq!((answer.status(), answer.field("retry-after")), (503, Some("1")), "{address}");
        assert!(gateway.metrics().contains("reason=\"no_healthy_endpoint\"} 1"));
        // A check that is no longer written says nothing any more.
        gateway.publish(&yaml(&format!(
            "listeners: {{ web: {{ address: '127.0.0.1:0' }} }}
services: {{ service: {{ endpoints: [{{ address: '{address}' }}] }} }}
routes: [{{ name: all, service: service }}]"
        )));
        health(&gateway, &address, 1);
    }
}

#[test]
fn a_tcp_check_opens_a_connection_and_asks_nothing() {
    let silent = Upstream::start(|mut peer| {
        assert!(peer.0.get_ref().set_read_timeout(Some(PATIENCE)).is_ok());
        assert!(peer.is_closed(), "a probe said something");
    });
    let [up, down] = [silent.address.to_string(), refusing()];
    let gateway = Gateway::start(&document("type: tcp, interval: 10ms, unhealthy_after: 2", &[&down, &up]));
    health(&gateway, &down, 0);
    health(&gateway, &up, 1);
    let probed = silent.connections.load(Ordering::SeqCst);
    eventually("more probes", || {
        let seen = silent.connections.load(Ordering::SeqCst);
        if seen > probed + 2 { Ok(()) } else { Err(seen.to_string()) }
    });
}
