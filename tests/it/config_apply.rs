//! The gateway document: applied, compared, refused, rolled back, read from a file.

use std::time::Duration;

use crate::harness::{TestCluster, TestService, call, eventually, get, json};

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

#[test]
fn a_listener_that_cannot_be_opened_is_named_and_what_ran_goes_on() {
    let (cluster, service) = (TestCluster::start(1), TestService::start("echo"));
    cluster.apply(0, &document("/", service.address));
    let taken = TestService::start("taken");
    let bad = document("/", service.address)
        .replace("listeners: {", &format!("listeners: {{ more: {{ address: \"{}\" }},", taken.address));
    let (status, problem) = json(cluster.admin(0), "PUT", "/v1/config", &bad);
    assert_eq!(status, 409, "{problem}");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("n1") && detail.contains(&taken.address.to_string()), "{detail}");
    assert_eq!(get(cluster.web(0), "/").unwrap().text(), "echo");
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
