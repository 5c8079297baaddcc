//! Starts that cannot succeed: one clear line that names the thing, exit code 1, never a panic.

use std::process::Stdio;

use crate::harness::{TestCluster, TestService, gogate, run};

/// Runs a node that must not start; what it said.
#[track_caller]
fn refused(arguments: &[&str], says: &[&str]) {
    let (code, _, said) = run(gogate().arg("serve").args(arguments).stdout(Stdio::null()));
    assert_eq!(code, Some(1), "{said}");
    assert!(!said.contains("panicked") && !said.contains("backtrace"), "{said}");
    let last = said.lines().last().unwrap_or_default();
    for part in says {
        assert!(last.contains(part), "`{part}` is not in `{last}`\n{said}");
    }
}

#[test]
fn a_node_file_with_problems_is_refused_with_all_of_them() {
    let cluster = TestCluster::prepare(1);
    let file = cluster.dir.path().join("bad.yaml");
    std::fs::write(&file, "node: { nam: n1 }\nadmin: { listen: 7070 }\n").unwrap();
    let (code, _, said) = run(gogate().args(["serve", "--config"]).arg(&file));
    assert_eq!(code, Some(1), "{said}");
    for part in ["bad.yaml:1: node.nam", "bad.yaml:2: admin.listen", "name"] {
        assert!(said.contains(part), "`{part}` is not in\n{said}");
    }
}

#[test]
fn a_port_in_use_is_named() {
    let (cluster, taken) = (TestCluster::prepare(1), TestService::start("taken"));
    let file = cluster.file(0).display().to_string();
    let address = taken.address.to_string();
    for key in ["admin.listen", "peer.listen"] {
        let set = format!("{key}={address}");
        refused(&["--config", &file, "--set", &set], &[key, &address, "another process"]);
    }
}

#[test]
fn a_data_folder_that_cannot_be_written_is_named() {
    let cluster = TestCluster::prepare(1);
    let file = cluster.file(0).display().to_string();
    // Below a file no folder can be made, not even by root.
    let folder = format!("{file}/data");
    refused(&["--config", &file, "--set", &format!("node.data_dir={folder}")], &[&folder]);
}

#[test]
fn a_data_folder_of_another_cluster_is_refused() {
    let mut cluster = TestCluster::start(1);
    cluster.stop(0);
    let file = cluster.file(0).display().to_string();
    refused(&["--config", &file, "--set", "cluster.name=other"], &["other", "test"]);
}

#[test]
fn a_damaged_store_is_never_served() {
    let mut cluster = TestCluster::start(1);
    for number in 0..20 {
        cluster.register(0, &format!("i{number}"), "api", "127.0.0.1:9".parse().unwrap());
    }
    cluster.kill(0);
    damage(&cluster.data_dir(0));
    let file = cluster.file(0).display().to_string();
    refused(&["--config", &file], &["damaged", &cluster.data_dir(0).display().to_string()]);
}

/// Overwrites the middle of the largest file below `folder`, as a disk that lies does.
fn damage(folder: &std::path::Path) {
    let mut folders = vec![folder.to_owned()];
    let mut largest = (0, folder.to_owned());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let metadata = entry.metadata().unwrap();
            if metadata.is_dir() {
                folders.push(entry.path());
            } else {
                largest = largest.max((metadata.len(), entry.path()));
            }
        }
    }
    let mut bytes = std::fs::read(&largest.1).unwrap();
    // Records lie at the front of a young store: every byte there that is not zero is turned over.
    for byte in bytes.iter_mut().filter(|byte| **byte != 0).skip(256) {
        *byte = !*byte;
    }
    std::fs::write(&largest.1, bytes).unwrap();
}
