//! The gateway document: applied, compared, refused, rolled back, read from a file.

use std::time::Duration;

use crate::harness::{TestCluster, TestService, call, eventually, free_address, get, json};

/// A document that sends `path` to an endpoint.
fn document(path: &str, endpoint: std::net::SocketAddr) -> String {
    format!(
        "services:\n  echo:\n    endpoints: [{{ address: \"{endpoint}\" }}]\n\
         listeners: {{ web: {{ address: \"127.0.0.1:8080\" }} }}\n\
         routes:\n  - name: echo\n    match: {{ path_prefix: {path} }}\n    service: echo\n"
    )
}

#[test]
fn a_document_is_served_compared_and_rolled_back() {
    let (cluster, service) = (TestCluster::start(1), TestService::start("echo"));
    let (admin, web) = (cluster.admin(0), cluster.web(0));
    assert_eq!(json(admin, "GET", "/v1/config", "").0, 404, "there is none yet");

    let one = document("/one", service.address);
    let answer = cluster.apply(0, &one);
    assert_eq!((&answer["version"], &answer["nodes"]["n1"]), (&1.into(), &"active".into()), "{answer}");
    assert_eq!(get(web, "/one").unwrap().text(), "echo");
    let read = get(admin, "/v1/config").unwrap();
    assert_eq!((read.text(), read.header("etag")), (one, Some("\"1\"")));
    assert_eq!(read.header("x-gogate-version"), Some("1"));

    let two = document("/two", service.address);
    let stale = call(admin, "PUT", "/v1/config", &[("if-match", "\"7\"")], &two).unwrap();
    assert_eq!((stale.status, &stale.json()["current"]), (412, &1.into()));
    let dry = call(admin, "PUT", "/v1/config?dry_run", &[], &two).unwrap();
    assert_eq!((dry.status, &dry.json()["changed"]), (200, &true.into()));
    assert_eq!(get(web, "/two").unwrap().status, 404, "a dry run changes nothing");
    let fresh = call(admin, "PUT", "/v1/config", &[("if-match", "\"1\"")], &two).unwrap();
    assert_eq!((fresh.status, &fresh.json()["version"]), (200, &2.into()));
    assert_eq!(get(web, "/two").unwrap().status, 200);
    assert_eq!(get(web, "/one").unwrap().status, 404);

    let (status, back) = json(admin, "POST", "/v1/config/rollback", r#"{"version":1}"#);
    assert_eq!((status, &back["version"]), (200, &3.into()), "{back}");
    assert_eq!(get(web, "/one").unwrap().status, 200);
    let (_, versions) = json(admin, "GET", "/v1/config/versions", "");
    let numbers: Vec<_> = versions.as_array().unwrap().iter().map(|version| &version["version"]).collect();
    assert_eq!(numbers, [3, 2, 1]);
    let (_, state) = json(admin, "GET", "/v1/config/status?wait=3", "");
    assert_eq!((&state["version"], &state["nodes"]["n1"]["state"]), (&3.into(), &"active".into()));
    assert_eq!(get(admin, "/v1/config?version=2").unwrap().text(), two);
}

#[test]
fn a_document_with_problems_changes_nothing_and_all_are_listed() {
    let (cluster, service) = (TestCluster::start(1), TestService::start("echo"));
    cluster.apply(0, &document("/", service.address));
    for (bad, places) in [
        ("", vec![""]),
        ("lisseners: {}\nroutes: [{ name: a, service: b }]\n", vec!["lisseners", "routes[0].service"]),
        (
            "services: { a: { endpoints: [{ address: nowhere }] } }\nroutes: [{ name: r, service: a }, { name: r, service: a }]\n",
            vec!["services.a.endpoints[0].address", "routes[1].name"],
        ),
        ("services: 7\n", vec!["services"]),
    ] {
        let response = call(cluster.admin(0), "PUT", "/v1/config", &[], bad).unwrap();
        let problem = response.json();
        assert_eq!(response.status, 422, "{bad}: {problem}");
        let found: Vec<_> = problem["problems"]
            .as_array()
            .unwrap()
            .iter()
            .map(|problem| problem["path"].as_str().unwrap())
            .collect();
        for place in places {
            assert!(found.contains(&place), "{bad}: {problem}");
        }
    }
    assert_eq!(get(cluster.web(0), "/").unwrap().text(), "echo", "what ran goes on");
    assert_eq!(get(cluster.admin(0), "/v1/config").unwrap().header("etag"), Some("\"1\""));
}

/// `document` with one more listener, at `taken`.
fn with_listener(document: &str, taken: std::net::SocketAddr) -> String {
    document.replace("listeners: {", &format!("listeners: {{ more: {{ address: \"{taken}\" }},"))
}

#[test]
fn a_listener_that_cannot_be_opened_is_named_and_what_ran_stays_current() {
    let (mut cluster, service) = (TestCluster::start(1), TestService::start("echo"));
    let good = document("/", service.address);
    cluster.apply(0, &good);
    let taken = TestService::start("taken");
    let (status, problem) = json(cluster.admin(0), "PUT", "/v1/config", &with_listener(&good, taken.address));
    assert_eq!(status, 409, "{problem}");
    let detail = problem["detail"].as_str().unwrap();
    for says in ["version 2 was refused by n1", "listener more", &taken.address.to_string(), "in use"] {
        assert!(detail.contains(says), "{says}: {detail}");
    }
    assert_eq!(get(cluster.web(0), "/").unwrap().text(), "echo");
    let current = get(cluster.admin(0), "/v1/config").unwrap();
    assert_eq!((current.header("etag"), current.text()), (Some("\"1\""), good));

    cluster.kill(0);
    cluster.start_node(0);
    cluster.wait_until_ready();
    assert_eq!(get(cluster.web(0), "/").unwrap().text(), "echo", "a restart finds what ran");
    drop(taken);
    assert_eq!(
        cluster.apply(0, &document("/other", service.address))["version"],
        3,
        "a number is given once"
    );
}

#[test]
fn a_document_that_one_node_cannot_run_takes_effect_on_none() {
    let (mut cluster, service) = (TestCluster::prepare(3), TestService::start("echo"));
    // Where the listener is opened differs from node to node; the third one's port is taken.
    let taken = TestService::start("taken");
    let addresses = [free_address(), free_address(), taken.address];
    for (node, address) in addresses.iter().enumerate() {
        let file = std::fs::read_to_string(cluster.file(node)).unwrap();
        let bound = file.replace("bind:    {", &format!("bind:    {{ more: \"{address}\","));
        std::fs::write(cluster.file(node), bound).unwrap();
        cluster.start_node(node);
    }
    cluster.wait_until_ready();
    let [first, second, _] = addresses;
    let good = document("/", service.address);
    cluster.apply(0, &good);
    let (status, problem) = json(cluster.admin(0), "PUT", "/v1/config", &with_listener(&good, first));
    assert_eq!(status, 409, "{problem}");
    let detail = problem["detail"].as_str().unwrap();
    for says in ["version 2 was refused by n3", &taken.address.to_string(), "in use"] {
        assert!(detail.contains(says), "{says}: {detail}");
    }
    for node in 0..3 {
        assert_eq!(problem["nodes"][format!("n{}", node + 1)], "runs version 1", "{problem}");
        assert_eq!(get(cluster.web(node), "/").unwrap().text(), "echo");
        assert_eq!(get(cluster.admin(node), "/v1/config").unwrap().header("etag"), Some("\"1\""));
    }
    for address in [first, second] {
        assert!(std::net::TcpListener::bind(address).is_ok(), "the port was given back");
    }
}

#[test]
fn a_start_with_a_document_that_cannot_run_serves_the_one_before_and_tries_again() {
    let (mut cluster, service) = (TestCluster::start(1), TestService::start("echo"));
    let good = document("/", service.address);
    cluster.apply(0, &good);
    // Held by nobody while it is applied, and by this process when the node comes back.
    let address = free_address();
    cluster.apply(0, &with_listener(&good, address));
    cluster.kill(0);
    let held = std::net::TcpListener::bind(address).unwrap();
    cluster.start_node(0);
    cluster.wait_until_ready();
    assert_eq!(get(cluster.web(0), "/").unwrap().text(), "echo");
    let verbose = get(cluster.admin(0), "/readyz?verbose").unwrap();
    assert!(verbose.text().contains("version 1 runs, not version 2"), "{}", verbose.text());

    drop(held);
    eventually(Duration::from_secs(10), "version 2 runs", || {
        match json(cluster.admin(0), "GET", "/v1/config/status", "") {
            (200, status) if status["nodes"]["n1"]["state"] == "active" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

#[test]
fn a_version_that_does_not_run_in_time_is_no_success() {
    let (cluster, service) = (TestCluster::start(1), TestService::start("echo"));
    cluster.apply(0, &document("/", service.address));
    let (status, answer) = json(cluster.admin(0), "GET", "/v1/config/status?wait=99&timeout=200ms", "");
    assert_eq!((status, &answer["version"]), (504, &99.into()), "{answer}");
    assert_eq!(answer["nodes"]["n1"], "pending: still runs version 1");
}

#[test]
fn the_largest_document_is_written_through_a_follower_and_a_larger_one_is_too_large() {
    let cluster = TestCluster::start(2);
    let service = TestService::start("echo");
    let follower = 1 - cluster.leader();
    let mut largest = document("/", service.address);
    while largest.len() < 8 << 20 {
        let missing = (8 << 20) - largest.len();
        largest.push_str(&format!("#{}\n", "x".repeat(missing.min(1000).saturating_sub(2))));
    }
    largest.truncate(8 << 20);
    assert_eq!(cluster.apply(follower, &largest)["version"], 1);
    largest.push('\n');
    assert_eq!(json(cluster.admin(follower), "PUT", "/v1/config", &largest).0, 413);
}

#[test]
fn the_file_of_a_node_is_applied_first_on_hangup_and_when_it_changes() {
    let service = TestService::start("echo");
    let mut cluster = TestCluster::prepare(1);
    let file = cluster.dir.path().join("gateway.yaml");
    std::fs::write(&file, document("/first", service.address)).unwrap();
    let mut node = std::fs::read_to_string(cluster.file(0)).unwrap();
    node.push_str(&format!("gateway: {{ file: \"{}\", watch: true }}\n", file.display()));
    std::fs::write(cluster.file(0), node).unwrap();
    cluster.start_node(0);
    cluster.wait_until_ready();
    let serves = |path: &str| {
        eventually(Duration::from_secs(10), &format!("{path} is served"), || {
            match get(cluster.web(0), path) {
                Ok(response) if response.status == 200 => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    };
    serves("/first");

    // As editors do it: a new file, moved over the old one.
    let beside = cluster.dir.path().join("gateway.yaml.new");
    std::fs::write(&beside, document("/renamed", service.address)).unwrap();
    std::fs::rename(&beside, &file).unwrap();
    serves("/renamed");
    std::fs::write(&file, "routes: 7\n").unwrap();
    std::fs::write(&file, document("/written", service.address)).unwrap();
    serves("/written");

    let version = get(cluster.admin(0), "/v1/config").unwrap().header("etag").map(str::to_owned);
    cluster.apply(0, &document("/api", service.address));
    cluster.signal(0, rustix::process::Signal::HUP);
    serves("/written");
    let now = get(cluster.admin(0), "/v1/config").unwrap().header("etag").map(str::to_owned);
    assert_ne!(version, now);
}

#[test]
fn a_node_that_starts_alone_serves_the_version_that_it_served_last() {
    let (mut cluster, service) = (TestCluster::start(3), TestService::start("echo"));
    cluster.apply(0, &document("/one", service.address));
    cluster.apply(0, &document("/two", service.address));
    for node in 0..3 {
        assert_eq!(get(cluster.web(node), "/two").unwrap().status, 200, "n{} serves it", node + 1);
    }
    (0..3).for_each(|node| cluster.kill(node));
    for node in 0..3 {
        cluster.start_node(node);
        eventually(Duration::from_secs(10), "it serves what it served last", || {
            match get(cluster.web(node), "/two") {
                Ok(response) if response.status == 200 => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        assert_eq!(get(cluster.web(node), "/one").unwrap().status, 404, "not an older one");
        cluster.kill(node);
    }
}

#[test]
fn documents_that_come_at_once_take_effect_one_after_the_other() {
    let (cluster, service) = (TestCluster::start(3), TestService::start("echo"));
    let versions: Vec<u64> = std::thread::scope(|scope| {
        let applied: Vec<_> = (0..6)
            .map(|number| {
                let (cluster, address) = (&cluster, service.address);
                scope.spawn(move || {
                    let answer = cluster.apply(number % 3, &document(&format!("/{number}"), address));
                    answer["version"].as_u64().unwrap()
                })
            })
            .collect();
        let mut versions: Vec<_> = applied.into_iter().map(|applied| applied.join().unwrap()).collect();
        versions.sort_unstable();
        versions
    });
    assert_eq!(versions, (1..=6).collect::<Vec<_>>());
}

#[test]
fn a_patch_changes_what_it_names_and_nothing_else() {
    let (cluster, service) = (TestCluster::start(3), TestService::start("echo"));
    let admin = cluster.admin(1);
    cluster.apply(0, &document("/one", service.address));
    let patch =
        |body: &str, headers: &[(&str, &str)]| call(admin, "PATCH", "/v1/config", headers, body).unwrap();
    let more = r#"{"services":{"echo":{"balance":"random"}},"routes":[{"name":"r","match":{"path":"/two"},"service":"echo"}]}"#;
    let answer = patch(more, &[("content-type", "application/merge-patch+json")]);
    assert_eq!((answer.status, &answer.json()["version"]), (200, &2.into()), "{}", answer.text());
    assert_eq!(get(cluster.web(2), "/two").unwrap().text(), "echo", "the endpoint and the listener are kept");
    assert_eq!(get(cluster.web(2), "/one").unwrap().status, 404);
    assert_eq!(patch(more, &[]).json()["changed"], false, "the same again is no version");

    assert_eq!(patch(r#"{"routes":null}"#, &[("if-match", "\"1\"")]).status, 412);
    assert_eq!(patch("{", &[]).status, 400);
    let wrong = patch(r#"{"services":{"echo":{"balance":"fair"}}}"#, &[]);
    assert_eq!((wrong.status, &wrong.json()["problems"][0]["path"]), (422, &"services.echo.balance".into()));
    let difference = get(admin, "/v1/config/diff?from=1&to=2").unwrap();
    assert!(difference.text().contains("+      \"balance\": \"random\""), "{}", difference.text());
    let removed = patch(r#"{"routes":null}"#, &[("if-match", "\"2\"")]);
    assert_eq!((removed.status, &removed.json()["version"]), (200, &3.into()), "{}", removed.text());
    assert_eq!(get(cluster.web(0), "/two").unwrap().status, 404);
}

#[test]
fn patches_that_meet_are_all_in_the_end() {
    let cluster = TestCluster::start(3);
    cluster.apply(0, "routes: []\n");
    std::thread::scope(|scope| {
        for number in 0..6_usize {
            let admin = cluster.admin(number % 3);
            scope.spawn(move || {
                let body = format!(r#"{{"services":{{"s{number}":{{}}}}}}"#);
                let answer = call(admin, "PATCH", "/v1/config?timeout=60s", &[], &body).unwrap();
                assert_eq!(answer.status, 200, "{}", answer.text());
            });
        }
    });
    let services = &get(cluster.admin(0), "/v1/config").unwrap().json()["services"];
    assert_eq!(services.as_object().unwrap().len(), 6, "{services}");
}
