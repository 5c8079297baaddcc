//! Tables that come and go, and the end of a data plane.

use std::{
    collections::BTreeMap,
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use gogate::{
    config::document::{Endpoint, HostPattern, Listener, PathPattern},
    proxy::RoutingTable,
};

use crate::{
    harness::{TestCluster, TestService, free_address},
    upstream::{Gateway, PATIENCE, Peer, Upstream, document, eventually, route},
};

#[test]
fn a_reload_under_load_drops_nothing() {
    let (first, second) = (Upstream::echo(), Upstream::echo());
    let gateway = Gateway::start(&document(&[first.address]));
    let (stop, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client = gateway.client();
                while !stop.load(Ordering::SeqCst) {
                    let answer = client.get("/");
                    assert_eq!(answer.status(), 200, "{answer:?}");
                    answered.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        for turn in 0..50 {
            let before = answered.load(Ordering::SeqCst);
            gateway.publish(&document(&[[first.address, second.address][turn % 2]]));
            eventually("requests go on", || {
                let now = answered.load(Ordering::SeqCst);
                if now > before { Ok(()) } else { Err(now.to_string()) }
            });
        }
        stop.store(true, Ordering::SeqCst);
    });
    assert!(second.connections.load(Ordering::SeqCst) > 0);
}

#[test]
fn what_a_reload_does_not_change_keeps_its_connections_and_counters() {
    let upstream = Upstream::echo();
    let mut document = document(&[upstream.address]);
    let gateway = Gateway::start_with(1, Duration::ZERO, &document);
    let mut client = gateway.client();
    for _ in 0..5 {
        assert_eq!(client.get("/").status(), 200);
        document.routes.push(route(&format!("r{}", document.routes.len()), PathPattern::Any, &[]));
        gateway.publish(&document);
    }
    assert_eq!(upstream.connections.load(Ordering::SeqCst), 1);
    gateway.await_metric(
        "gogate_requests_total{route=\"all\",service=\"service\",method=\"GET\",code=\"200\"} 5",
    );
}

#[test]
fn a_registered_instance_joins_and_leaves() {
    let (fixed, instance) = (Upstream::echo(), Upstream::echo());
    let gateway = Gateway::start(&document(&[fixed.address]));
    let registered = vec![Endpoint { address: instance.address.to_string(), weight: 1 }];
    let publish = |registered| {
        let table = gateway.proxy.table().with_endpoints("service", registered);
        gateway.runtime.block_on(gateway.proxy.publish(table)).unwrap();
    };
    publish(registered);
    let mut client = gateway.client();
    for _ in 0..4 {
        assert_eq!(client.get("/").status(), 200);
    }
    assert!(instance.connections.load(Ordering::SeqCst) > 0);
    publish(Vec::new());
    let before = instance.connections.load(Ordering::SeqCst);
    for _ in 0..4 {
        assert_eq!(client.get("/").status(), 200);
    }
    assert_eq!(instance.connections.load(Ordering::SeqCst), before);
}

#[test]
fn a_port_in_use_changes_nothing_and_is_named() {
    let upstream = Upstream::echo();
    let mut document = document(&[upstream.address]);
    let gateway = Gateway::start(&document);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let other = Gateway::start(&document);
    for address in [taken.local_addr().unwrap(), other.address()] {
        document.listeners.insert("extra".to_owned(), Listener::http(address));
        let table = RoutingTable::compile(2, &document, &BTreeMap::new(), &gateway.proxy.table()).unwrap();
        let error = gateway.runtime.block_on(gateway.proxy.publish(table)).unwrap_err();
        assert_eq!((error.listener.as_str(), error.address), ("extra", address));
        assert!(error.reason.contains("in use"), "{error}");
        assert_eq!(gateway.proxy.table().version(), 1);
        assert_eq!(gateway.client().get("/").status(), 200);
    }
}

#[test]
fn a_listener_that_a_table_adds_opens_and_one_that_it_drops_closes() {
    let upstream = Upstream::echo();
    let mut document = document(&[upstream.address]);
    let gateway = Gateway::start(&document);
    let address = gateway.address();
    let mut kept = gateway.client();
    assert_eq!(kept.get("/").status(), 200);
    document.listeners.insert("extra".to_owned(), Listener::http("127.0.0.1:0".parse().unwrap()));
    gateway.publish(&document);
    let extra = gateway.proxy.addresses()["extra"];
    assert_eq!(Peer::connect(extra).get("/").status(), 200);
    document.listeners.remove("extra");
    gateway.publish(&document);
    eventually("the listener is closed", || match TcpStream::connect(extra) {
        Ok(_) => Err("still accepts".to_owned()),
        Err(_) => Ok(()),
    });
    assert_eq!(gateway.address(), address);
    assert_eq!(kept.get("/").status(), 200);
}

#[test]
fn routes_belong_to_their_listeners() {
    let upstream = Upstream::echo();
    let mut document = document(&[upstream.address]);
    document.listeners.insert("inner".to_owned(), Listener::http("127.0.0.1:0".parse().unwrap()));
    document.routes[0].listeners = vec!["inner".to_owned()];
    let gateway = Gateway::start(&document);
    assert_eq!(gateway.client().get("/").status(), 404);
    assert_eq!(Peer::connect(gateway.proxy.addresses()["inner"]).get("/").status(), 200);
}

#[test]
fn a_drain_lets_a_slow_request_finish_and_takes_no_new_one() {
    let (finish, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let upstream = Upstream::start(move |mut peer| {
        peer.request();
        let _ = wait.lock().unwrap().recv_timeout(PATIENCE);
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    });
    let gateway = Gateway::start(&document(&[upstream.address]));
    let (address, mut idle) = (gateway.address(), gateway.client());
    let mut slow = gateway.client();
    slow.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    gateway.await_metric("gogate_upstream_connections{service=\"service\",state=\"active\"} 1");

    let proxy = Arc::clone(&gateway.proxy);
    let drained = gateway.runtime.spawn(async move { proxy.drain().await });
    eventually("new connections are refused", || match TcpStream::connect(address) {
        Ok(_) => Err("still accepts".to_owned()),
        Err(_) => Ok(()),
    });
    assert!(gateway.proxy.is_draining());
    assert!(idle.is_closed(), "an idle connection goes at once");
    assert!(!drained.is_finished(), "the slow request is still under way");
    finish.send(()).unwrap();
    let answer = slow.answer();
    assert_eq!((answer.text().as_str(), answer.field("connection")), ("ok", Some("close")));
    assert!(slow.is_closed());
    gateway.runtime.block_on(async { tokio::time::timeout(PATIENCE, drained).await }).unwrap().unwrap();
}

#[test]
fn a_listener_that_changes_its_name_only_never_stops_accepting() {
    let upstream = Upstream::echo();
    let address = free_address();
    let mut documents = ["web", "front"].map(|name| {
        let mut document = document(&[upstream.address]);
        document.listeners = [(name.to_owned(), Listener::http(address))].into();
        document.routes[0].listeners = vec![name.to_owned()];
        document
    });
    let gateway = Gateway::start(&documents[0]);
    let mut kept = gateway.client();
    let (stop, connected) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                // Refused or reset while the listener is away.
                let answer = Peer::connect(address).get("/");
                // 404 where the old name meets the new table.
                assert_eq!(answer.status(), 200, "{answer:?}");
                connected.fetch_add(1, Ordering::SeqCst);
            }
        });
        for _ in 0..20 {
            documents.reverse();
            let before = connected.load(Ordering::SeqCst);
            gateway.publish(&documents[0]);
            assert_eq!(gateway.proxy.addresses().into_values().collect::<Vec<_>>(), [address]);
            assert_eq!(kept.get("/").status(), 200, "the new name is known when a publication returns");
            eventually("connections go on", || {
                let now = connected.load(Ordering::SeqCst);
                if now > before { Ok(()) } else { Err(now.to_string()) }
            });
        }
        stop.store(true, Ordering::SeqCst);
    });
}

#[test]
fn a_listener_may_have_an_ipv6_address() {
    if let Err(error) = TcpListener::bind("[::1]:0") {
        return eprintln!("SKIPPED: this machine has no IPv6 loopback: {error}");
    }
    let upstream = Upstream::echo();
    let mut document = document(&[upstream.address]);
    document.listeners.insert("web".to_owned(), Listener::http("[::1]:0".parse().unwrap()));
    let gateway = Gateway::start(&document);
    assert!(gateway.address().is_ipv6());
    let answer = gateway.client().get("/");
    assert!(answer.text().contains("x-forwarded-for: ::1\n"), "{answer:?}");
}

#[test]
fn what_is_under_way_at_the_drain_deadline_is_cut() {
    let upstream = Upstream::start(|mut peer| {
        peer.request();
        peer.is_closed();
    });
    let gateway = Gateway::start_draining(Duration::from_millis(200), &document(&[upstream.address]));
    let mut slow = gateway.client();
    slow.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    gateway.await_metric("gogate_upstream_connections{service=\"service\",state=\"active\"} 1");
    let started = Instant::now();
    let drained = async { tokio::time::timeout(PATIENCE, gateway.proxy.drain()).await };
    gateway.runtime.block_on(drained).expect("the deadline ends the drain");
    assert!(started.elapsed() >= Duration::from_millis(200), "not before the deadline");
    assert!(slow.is_closed());
}

#[test]
fn a_process_out_of_descriptors_goes_on_when_it_has_some_again() {
    let service = TestService::start("service");
    let mut cluster = TestCluster::prepare(1);
    cluster.start_node(0);
    cluster.wait_until_ready();
    let address = service.address;
    cluster.apply(
        0,
        &format!(
            "listeners: {{ web: {{ address: \"127.0.0.1:0\" }} }}\n\
             services: {{ a: {{ endpoints: [{{ address: \"{address}\" }}] }} }}\n\
             routes: [{{ name: all, service: a }}]\n"
        ),
    );
    let web = cluster.web(0);
    assert_eq!(Peer::connect(web).get("/").status(), 200);
    cluster.limit_descriptors(0, 0);
    // They are queued by the kernel; the worker cannot take them.
    let mut waiting: Vec<Peer> = (0..8).map(|_| Peer::connect(web)).collect();
    let log = || std::fs::read_to_string(cluster.dir.path().join("n1.log")).unwrap();
    let rests = || log().matches("cannot accept").count();
    let (started, before) = (Instant::now(), rests());
    eventually("it has tried several times", || match rests() - before {
        0..=3 => Err(log()),
        _ => Ok(()),
    });
    let tenths = started.elapsed().as_millis() as usize / 100;
    assert!(rests() - before <= tenths + 2, "it rests between the tries");
    cluster.limit_descriptors(0, 1024);
    for client in &mut waiting {
        assert_eq!(client.get("/").status(), 200);
    }
}

#[test]
fn ten_thousand_routes_cost_what_ten_cost() {
    let upstream = Upstream::echo();
    let time = |routes: usize| {
        let mut document = document(&[upstream.address]);
        document.routes = (0..routes)
            .map(|n| {
                let mut route =
                    route(&format!("r{n}"), PathPattern::Prefix(format!("/v1/tenants/{n}/orders")), &[]);
                route.matches.host = HostPattern::Exact(format!("h{}.example", n % 100));
                route
            })
            .collect();
        let gateway = Gateway::start_with(1, Duration::ZERO, &document);
        let last = routes - 1;
        let request =
            format!("GET /v1/tenants/{last}/orders/7 HTTP/1.1\r\nHost: h{}.example\r\n\r\n", last % 100);
        let mut client = gateway.client();
        // The best of several rounds: other work on the machine only ever adds.
        (0..8)
            .map(|_| {
                let started = Instant::now();
                for _ in 0..50 {
                    client.send(&request);
                    assert_eq!(client.answer().status(), 200);
                }
                started.elapsed()
            })
            .min()
            .unwrap()
    };
    let (ten, many) = (time(10), time(10_000));
    // A scan of 10,000 routes would take ten times what a request takes.
    assert!(many < ten * 3, "10 routes: {ten:?}, 10,000 routes: {many:?}");
}
