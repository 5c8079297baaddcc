//! Backups on real nodes: into a file, out of it, and one disk alone.

use std::time::Duration;

use crate::harness::{TestCluster, call, eventually, get, gogate, json, run};

const PATIENCE: Duration = Duration::from_secs(20);

const DOCUMENT: &str = "listeners: { web: { address: \"127.0.0.1:8080\" } }\n\
    routes: [{ name: hi, match: { path: /hi }, respond: { status: 200, body: hi } }]\n";

fn text(path: &std::path::Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_backup_of_one_cluster_is_what_another_one_serves() {
    let old = TestCluster::start(1);
    old.apply(0, DOCUMENT);
    for at in 0..20 {
        old.register(0, &format!("i{at}"), "api", "127.0.0.1:1".parse().unwrap());
    }
    let file = old.dir.path().join("backup");
    let (code, out, error) = old.cli(None, &["cluster", "backup", text(&file), "-o", "json"]);
    assert_eq!(code, Some(0), "{error}");
    let about: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&about["instances"], &about["version"]), (&20.into(), &1.into()));
    assert!(!old.dir.path().join("backup.partial").exists());

    let new = TestCluster::start(3);
    let mut damaged = std::fs::read(&file).unwrap();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    let broken = old.dir.path().join("broken");
    std::fs::write(&broken, damaged).unwrap();
    let (code, _, error) = new.cli(None, &["cluster", "restore", text(&broken)]);
    assert_eq!(code, Some(1));
    assert!(error.contains("checksum"), "{error}");
    let (code, _, error) = new.cli(Some(1), &["cluster", "restore", text(&file)]);
    assert_eq!(code, Some(0), "{error}");
    for node in 0..3 {
        eventually(PATIENCE, "it serves what was restored", || match get(new.web(node), "/hi") {
            Ok(response) if response.text() == "hi" => Ok(()),
            other => Err(format!("{other:?}")),
        });
        assert_eq!(new.instances(node).unwrap().len(), 20);
    }
    // Not twice, but when forced.
    let (code, _, error) = new.cli(Some(2), &["cluster", "restore", text(&file)]);
    assert_eq!(code, Some(1));
    assert!(error.contains("20 instances"), "{error}");
    let (code, _, error) = new.cli(Some(2), &["cluster", "restore", text(&file), "--force"]);
    assert_eq!(code, Some(0), "{error}");
    assert_eq!(new.status(0).unwrap()["nodes"].as_array().unwrap().len(), 3);
    let next = new.apply(0, &DOCUMENT.replace("/hi", "/ho"));
    assert_eq!(next["version"], 3, "{next}");
}

#[test]
fn the_body_of_a_restore_is_checked_by_the_node_too() {
    let cluster = TestCluster::start(1);
    for body in ["", "gogatebk", "not a backup at all, of some length"] {
        let (status, answer) = json(cluster.admin(0), "POST", "/v1/cluster/restore", body);
        assert_eq!(status, 400, "{answer}");
        assert!(answer["detail"].as_str().unwrap().contains("nothing was changed"), "{answer}");
    }
    let backup = call(cluster.admin(0), "GET", "/v1/cluster/backup?stale", &[], "").unwrap();
    assert_eq!(backup.header("content-type"), Some("application/octet-stream"));
    assert!(backup.body.starts_with(b"gogatebk"));
}

#[test]
fn every_node_writes_a_snapshot_when_asked() {
    let cluster = TestCluster::start(3);
    cluster.register(0, "i", "api", "127.0.0.1:1".parse().unwrap());
    let (status, answer) = json(cluster.admin(1), "POST", "/v1/cluster/snapshot", "");
    assert_eq!(status, 200);
    assert!(answer["nodes"].as_object().unwrap().values().all(|index| index.as_u64() > Some(0)), "{answer}");
    for node in 0..3 {
        assert_eq!(std::fs::read_dir(cluster.data_dir(node).join("snapshots")).unwrap().count(), 1);
    }
}

#[test]
fn one_disk_is_made_a_cluster_only_on_purpose() {
    let mut cluster = TestCluster::start(3);
    cluster.apply(0, DOCUMENT);
    cluster.register(0, "i", "api", "127.0.0.1:1".parse().unwrap());
    cluster.register(2, "j", "api", "127.0.0.1:1".parse().unwrap());
    let folder = cluster.data_dir(2);
    let recover =
        |more: &[&str]| run(gogate().args(["cluster", "recover", "--data-dir", text(&folder)]).args(more));
    let (code, _, error) = recover(&["--confirm", "test"]);
    assert_eq!(code, Some(1));
    assert!(error.contains("another gogate is using this folder"), "{error}");
    for node in 0..3 {
        cluster.kill(node);
    }
    let (code, out, error) = recover(&[]);
    assert_eq!(code, Some(2), "{error}");
    assert!(out.contains("2 instances, document version 1") && out.contains("is lost"), "{out}");
    assert!(error.contains("--confirm test"), "{error}");
    let (code, _, error) = recover(&["--confirm", "tset"]);
    assert_eq!(code, Some(2));
    assert!(error.contains("nothing was changed"), "{error}");
    let (code, out, error) = recover(&["--confirm", "test"]);
    assert_eq!(code, Some(0), "{error}");
    assert!(out.contains("only member"), "{out}");

    cluster.start_node(2);
    cluster.wait_until_ready();
    assert_eq!(cluster.instances(2).unwrap().len(), 2);
    assert_eq!(get(cluster.web(2), "/hi").unwrap().status, 200);
    cluster.wipe(0);
    cluster.start_node(0);
    cluster.wait_until_ready();
    assert_eq!(cluster.instances(0).unwrap().len(), 2);
    assert_eq!(cluster.status(2).unwrap()["nodes"].as_array().unwrap().len(), 2);
}
