//! The command line: answers, exit codes, the throw-away cluster.

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Command, Stdio},
    time::Duration,
};

use crate::harness::{Program, TestCluster, TestService, eventually, free_address, get, gogate, run};

/// Runs `gogate` against `admin`; its exit code, stdout and stderr.
fn at(admin: &str, arguments: &[&str]) -> (Option<i32>, String, String) {
    run(gogate().args(["--admin", admin]).args(arguments))
}

#[test]
fn the_exit_code_tells_what_happened() {
    let nobody = format!("http://{}", free_address());
    let (code, _, said) = at(&nobody, &["cluster", "status"]);
    assert_eq!(code, Some(1));
    assert!(said.contains(&nobody) && said.contains("gogate dev"), "{said}");
    assert_eq!(at(&nobody, &["cluster", "stats"]).0, Some(2));
    assert_eq!(at("nonsense", &["cluster", "status"]).0, Some(2));
    assert_eq!(run(gogate().arg("version")).0, Some(0));

    // One that accepts a call and never answers it in full: nobody knows what became of it.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        drop(listener.accept().map(|(mut stream, _)| {
            let _ = std::io::Read::read(&mut stream, &mut [0; 1024]);
        }));
    });
    let (code, _, said) = at(&address, &["service", "deregister", "a"]);
    assert_eq!(code, Some(3), "{said}");
}

#[test]
fn the_next_node_is_asked_when_one_is_gone() {
    let cluster = TestCluster::start(1);
    let admin = format!("http://{},http://{}", free_address(), cluster.admin(0));
    let (code, answer, said) = at(&admin, &["cluster", "status"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(answer.contains("n1") && answer.contains("leader"), "{answer}");
    assert!(!answer.contains('\x1b'), "no colour unless on a terminal");
}

#[test]
fn services_and_documents_are_handled_by_command() {
    let (cluster, service) = (TestCluster::start(1), TestService::start("echo"));
    let admin = cluster.admins();
    let ok = |arguments: &[&str]| {
        let (code, answer, said) = at(&admin, arguments);
        assert_eq!(code, Some(0), "{arguments:?}: {said}");
        answer
    };
    let address = service.address.to_string();
    ok(&[
        "service",
        "register",
        "--name",
        "echo",
        "--address",
        &address,
        "--id",
        "e 1",
        "--tag",
        "t",
        "--meta",
        "k=v",
    ]);
    let listed: serde_json::Value =
        serde_json::from_str(&ok(&["service", "list", "echo", "-o", "json"])).unwrap();
    assert_eq!(listed[0]["metadata"]["k"], "v");
    assert!(ok(&["service", "get", "e 1"]).contains(&address));
    ok(&["service", "heartbeat", "e 1"]);

    let file = cluster.dir.path().join("gateway.yaml");
    let file_name = file.display().to_string();
    std::fs::write(&file, "services: { echo: {} }\nroutes: [{ name: e, service: echo }]\n").unwrap();
    assert!(ok(&["check", &file_name]).contains("1 route"));
    assert!(ok(&["config", "apply", &file_name, "--dry-run"]).contains("valid"));
    assert!(ok(&["config", "apply", &file_name, "--if-version", "0"]).contains("version 1 runs"));
    assert_eq!(ok(&["config", "get"]), std::fs::read_to_string(&file).unwrap());
    assert_eq!(get(cluster.web(0), "/").unwrap().text(), "echo");

    std::fs::write(&file, "routes: [{ name: e, servce: echo }]\n").unwrap();
    let (code, _, said) = at(&admin, &["config", "apply", &file_name]);
    assert_eq!(code, Some(1));
    assert!(said.contains("servce") && said.contains("service"), "{said}");
    assert_eq!(at(&admin, &["check", &file_name]).0, Some(1));
    assert_eq!(at(&admin, &["config", "rollback", "7"]).0, Some(1));
    assert!(ok(&["config", "log"]).contains("VERSION"));
    assert!(ok(&["config", "status", "-o", "yaml"]).contains("\"state\": \"active\""));
    ok(&["service", "deregister", "e 1"]);
    assert_eq!(at(&admin, &["service", "get", "e 1"]).0, Some(1));
    assert_eq!(at(&admin, &["ready"]).0, Some(0));
}

#[test]
fn the_sample_service_registers_itself_and_says_goodbye() {
    let cluster = TestCluster::start(1);
    let listen = free_address().to_string();
    let mut sample = Program::start(
        gogate()
            .args(["sample", "--name", "hello", "--listen", &listen, "--admin", &cluster.admins()])
            .stderr(Stdio::null()),
    );
    let id = format!("hello-{listen}");
    let within = Duration::from_secs(10);
    eventually(within, "it is registered", || {
        let ids = cluster.instances(0)?;
        if ids.contains(&id) { Ok(()) } else { Err(format!("{ids:?}")) }
    });
    let address: SocketAddr = listen.parse().unwrap();
    assert_eq!(get(address, "/healthz").unwrap().status, 200);
    assert_eq!(get(address, "/x?y=1").unwrap().json()["path"], "/x?y=1");
    assert!(sample.terminate().success());
    assert_eq!(cluster.instances(0).unwrap().len(), 0, "it deregistered before it ended");
}

#[test]
fn the_throw_away_cluster_stands_serves_and_ends() {
    let dir = tempfile::tempdir().unwrap();
    let mut dev = Program::start(gogate().args(["dev", "--dir"]).arg(dir.path()).stdout(Stdio::piped()));
    let mut said = Vec::new();
    for line in BufReader::new(dev.stdout()).lines() {
        let line = line.unwrap();
        let done = line.contains("Ctrl-C stops all");
        said.push(line);
        if done {
            break;
        }
    }
    let said = said.join("\n");
    let addresses = |column: usize| -> Vec<SocketAddr> {
        let rows = said.lines().filter(|line| line.starts_with('n') && line.contains("http://"));
        rows.map(|row| {
            row.split_whitespace().nth(column).unwrap().trim_start_matches("http://").parse().unwrap()
        })
        .collect()
    };
    let (webs, admins) = (addresses(2), addresses(3));
    assert_eq!((webs.len(), admins.len()), (3, 3), "{said}");
    for web in &webs {
        assert_eq!(get(*web, "/hello").unwrap().json()["service"], "hello");
        assert_eq!(get(*web, "/time").unwrap().json()["service"], "time");
    }
    let commands: Vec<&str> =
        said.lines().filter(|line| line.contains(". ") && line.trim_start().starts_with('#')).collect();
    assert_eq!(commands.len(), 5, "{said}");
    let (code, _, second) = run(gogate().args(["dev", "--dir"]).arg(dir.path()));
    assert_eq!(code, Some(1));
    assert!(second.contains("another `gogate dev` runs there"), "{second}");
    assert!(dev.terminate().success());
    for address in webs.iter().chain(&admins) {
        assert!(get(*address, "/").is_err(), "{address} still answers");
    }
    let left = Command::new("pgrep").arg("-f").arg(dir.path()).output();
    assert!(left.is_err() || left.unwrap().stdout.is_empty(), "processes were left");
}

#[test]
fn a_document_is_compared_and_edited_by_command() {
    let (cluster, dir) = (TestCluster::start(1), tempfile::tempdir().unwrap());
    let admin = cluster.admins();
    cluster.apply(0, "routes: [{ name: a, match: { path: /a }, respond: { status: 200 } }]\n");
    cluster.apply(0, "routes: [{ name: b, match: { path: /b }, respond: { status: 200 } }]\n");
    let (code, told, said) = at(&admin, &["config", "diff"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(told.contains("--- version 1") && told.contains("\n+routes: [{ name: b"), "{told}");
    let file = dir.path().join("next.yaml");
    std::fs::write(&file, "routes: []\n").unwrap();
    let (_, told, said) = at(&admin, &["config", "diff", file.to_str().unwrap()]);
    assert!(told.contains("--- current version") && told.ends_with("+routes: []\n"), "{told}{said}");
    assert_eq!(at(&admin, &["config", "diff", "1", "9"]).0, Some(1), "there is no version 9");

    let edit = |editor: &str| {
        run(gogate().args(["--admin", &admin, "config", "edit"]).env("EDITOR", editor).env_remove("VISUAL"))
    };
    let (code, told, _) = edit("true");
    assert_eq!((code, told.as_str()), (Some(0), "nothing was edited, nothing was changed\n"));
    let (code, told, said) = edit("sed -i s,/b,/c,");
    assert_eq!(code, Some(0), "{said}");
    assert!(told.contains("version 3 runs"), "{told}");
    assert_eq!(get(cluster.web(0), "/c").unwrap().status, 200);
    assert_eq!(edit("false").0, Some(1));
    let (code, _, said) = edit("sed -i s,respond,respand,");
    assert_eq!(code, Some(1));
    let kept = said.lines().find_map(|line| line.strip_prefix("what you wrote is kept: ")).expect(&said);
    assert!(kept.ends_with("--if-version 3"), "{kept}");
    let kept = kept.split(' ').nth(3).unwrap();
    assert!(std::fs::read_to_string(kept).unwrap().contains("respand"));
    std::fs::remove_file(kept).unwrap();
}
