//! The import rules of ARCHITECTURE.md, held over the sources.

use std::path::{Path, PathBuf};

/// A text that must not be in some files.
struct Rule {
    /// What must not be there.
    text: &'static str,
    /// Below which folder.
    under: &'static str,
    /// Except in these files and folders.
    except: &'static [&'static str],
    why: &'static str,
}

const RULES: &[Rule] = &[
    Rule {
        text: "gogate_cluster",
        under: "src",
        except: &["src/control", "src/node.rs", "src/lib.rs"],
        why: "only node and control may use the cluster: requests are served while it is away",
    },
    Rule {
        text: "crate::control",
        under: "src",
        except: &["src/control", "src/node.rs"],
        why: "nothing below the control plane may know it",
    },
    Rule {
        text: "crate::proxy",
        under: "src/client",
        except: &[],
        why: "the client talks to nodes and is none",
    },
    Rule {
        text: "crate::node",
        under: "src",
        except: &["src/cli", "src/cli.rs"],
        why: "the wiring is known to the command line alone",
    },
    Rule {
        text: "openraft",
        under: "cluster/src",
        except: &["cluster/src/raft"],
        why: "one folder absorbs a library's changes",
    },
    Rule {
        text: "sled::",
        under: "cluster/src",
        except: &["cluster/src/storage"],
        why: "one folder absorbs a library's changes",
    },
    Rule {
        text: "\"gogate_",
        under: "src",
        except: &["src/telemetry/metrics.rs"],
        why: "a metric's name is spelled once, in telemetry/metrics.rs",
    },
    Rule {
        text: "gogate_cluster",
        under: "jepsen-lite",
        except: &[],
        why: "what judges must not share the code that it judges",
    },
    Rule {
        text: "env::var",
        under: "src",
        except: &["src/main.rs", "src/config"],
        why: "a test can start ten nodes in one process",
    },
];

/// What `cluster/src/state` must not name: every node reaches the same bytes from the same log.
const IMPURE: &[&str] = &[
    "std::time::Instant",
    "SystemTime",
    "std::fs",
    "std::net",
    "std::thread",
    "tokio",
    "rand::",
    "HashMap",
    "HashSet",
    "f32",
    "f64",
];

#[test]
fn the_planes_import_only_what_they_may() {
    let mut broken = Vec::new();
    for rule in RULES {
        for file in sources(rule.under) {
            let excepted = rule.except.iter().any(|folder| file.starts_with(root().join(folder)));
            if !excepted {
                broken.extend(lines_with(&file, rule.text).map(|line| format!("{line}: {}", rule.why)));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn the_replicated_state_is_pure() {
    let mut broken = Vec::new();
    for file in sources("cluster/src/state") {
        for text in IMPURE {
            broken.extend(lines_with(&file, text).map(|line| format!("{line}: {text}")));
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn every_module_says_its_job() {
    let silent = |file: &PathBuf| !std::fs::read_to_string(file).unwrap().starts_with("//!");
    let silent: Vec<PathBuf> = ["src", "cluster/src", "jepsen-lite/src", "tests/it"]
        .into_iter()
        .flat_map(sources)
        .filter(silent)
        .collect();
    assert!(silent.is_empty(), "without a module doc: {silent:?}");
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every source file below a folder, and the one that is named like it.
fn sources(folder: &str) -> Vec<PathBuf> {
    let mut folders = vec![root().join(folder)];
    let named = root().join(format!("{folder}.rs"));
    let mut files: Vec<PathBuf> = named.exists().then_some(named).into_iter().collect();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    assert!(!files.is_empty(), "nothing below {folder}: the rule checks nothing");
    files
}

/// The lines of code in which `text` stands; comments may name anything, and so may a file's own tests.
fn lines_with(file: &Path, text: &'static str) -> impl Iterator<Item = String> {
    let content = std::fs::read_to_string(file).unwrap();
    let code = content.split("#[cfg(test)]").next().unwrap_or_default().to_owned();
    let file = file.display().to_string();
    let lines: Vec<String> = code.lines().map(str::to_owned).collect();
    lines.into_iter().enumerate().filter_map(move |(place, line)| {
        let found = !line.trim_start().starts_with("//") && line.contains(text);
        found.then(|| format!("{file}:{}", place + 1))
    })
}
