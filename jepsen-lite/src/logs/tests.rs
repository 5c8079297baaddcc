//! Logs as they are written, and as they should not be.

use super::*;
use crate::linearizability::{self, Finding, Limits};

fn judge<M: Logged>(format: Format, log: &str) -> Finding {
    let keys = read::<M>(format, log.as_bytes()).unwrap();
    let limits = Limits::within(std::time::Duration::from_secs(60));
    let findings = keys.iter().map(|of_key| linearizability::search(&of_key.model, &of_key.history, limits));
    findings.into_iter().find(|finding| *finding != Finding::Valid).unwrap_or(Finding::Valid)
}

#[track_caller]
fn register(log: &str, valid: bool) {
    let log = log.replace("- ", "INFO  jepsen.util - ");
    assert_eq!(judge::<Register>(Format::Jepsen, &log) == Finding::Valid, valid, "{log}");
}

#[track_caller]
fn texts(log: &str, valid: bool) {
    assert_eq!(judge::<Texts>(Format::Edn, log) == Finding::Valid, valid, "{log}");
}

#[track_caller]
fn refused(format: Format, log: &str, number: u64, part: &str) {
    let error = match format {
        Format::Jepsen => read::<Register>(format, log.as_bytes()).map(|_| ()),
        Format::Edn => read::<Texts>(format, log.as_bytes()).map(|_| ()),
    };
    let text = error.expect_err("it is refused").to_string();
    assert!(text.starts_with(&format!("{number}: ")) && text.contains(part), "{text}");
}

#[test]
fn a_register_is_nil_until_it_is_written() {
    register("- 0\t:invoke\t:read\tnil\n- 0\t:ok\t:read\tnil", true);
    register("- 0\t:invoke\t:read\tnil\n- 0\t:ok\t:read\t0", false);
    register(
        "- 0   :invoke :write  3\n- 0   :ok     :write  3\n- 1 :invoke :read nil\n- 1 :ok :read 3",
        true,
    );
    register("- 0 :invoke :write 3\n- 0 :ok :write 3\n- 1 :invoke :read nil\n- 1 :ok :read nil", false);
}

#[test]
fn compare_and_set_sets_what_it_compares() {
    let written = "- 0 :invoke :write 3\n- 0 :ok :write 3\n- 0 :invoke :cas [3 4]\n";
    register(&format!("{written}- 0 :ok :cas [3 4]\n- 1 :invoke :read nil\n- 1 :ok :read 4"), true);
    register(&format!("{written}- 0 :ok :cas [3 4]\n- 1 :invoke :read nil\n- 1 :ok :read 3"), false);
    register(&format!("{written}- 0 :fail :cas [3 4]\n- 1 :invoke :read nil\n- 1 :ok :read 3"), true);
    register(&format!("{written}- 0 :fail :cas [3 4]\n- 1 :invoke :read nil\n- 1 :ok :read 4"), false);
}

#[test]
fn what_has_no_return_may_happen_at_any_time_or_never() {
    for end in ["- 0 :info :write :timed-out\n", ""] {
        let written = format!("- 0 :invoke :write 3\n{end}- 1 :invoke :write 4\n- 1 :ok :write 4\n");
        let read = |process: u8, value: u8| {
            format!("- {process} :invoke :read nil\n- {process} :ok :read {value}\n")
        };
        register(&format!("{written}{}", read(1, 4)), true);
        register(&format!("{written}{}", read(1, 3)), true);
        register(&format!("{written}{}{}", read(1, 4), read(2, 3)), true);
        register(&format!("{written}{}{}{}", read(1, 4), read(2, 3), read(1, 4)), false);
    }
}

#[test]
fn a_read_that_failed_says_nothing() {
    register(
        "- 0 :invoke :read nil\n- 0 :fail :read :timed-out\n- 1 :invoke :read nil\n- 1 :ok :read nil",
        true,
    );
}

#[test]
fn other_lines_of_jepsens_are_passed_over() {
    let log = "2014-05-20 INFO  jepsen.core - Worker 3 starting\n\n\
         2014-05-20 INFO [worker 1] jepsen.util - 1 :invoke :write 2\n\
         INFO  jepsen.util - :nemesis :info :start \"cut\"\n\
         INFO  jepsen.util - 1 :ok :write 2\n";
    let keys = read::<Register>(Format::Jepsen, log.as_bytes()).unwrap();
    assert_eq!(keys.len(), 1);
    assert_eq!(keys[0].words, ["lines 3-5: process 1 :write 2"]);
}

#[test]
fn texts_are_kept_apart_by_key() {
    let append = "{:process 0, :type :invoke, :f :append, :key \"3\", :value \"x\"}\n\
         {:process 0, :type :ok, :f :append, :key \"3\", :value \"x\"}\n";
    let get = |key: &str, value: &str| {
        format!(
            "{{:process 1, :type :invoke, :f :get, :key \"{key}\", :value nil}}\n\
             {{:process 1, :type :ok, :f :get, :key \"{key}\", :value \"{value}\"}}\n"
        )
    };
    texts(&format!("{append}{}", get("3", "x")), true);
    texts(&format!("{append}{}", get("3", "")), false);
    texts(&format!("{append}{}", get("4", "")), true);
    texts(&format!("{append}{}", get("4", "x")), false);
    texts(&format!("{append}{append}{}", get("3", "xx")), true);
    let put = append.replace(":append", ":put");
    texts(&format!("{append}{put}{}", get("3", "x")), true);
}

#[test]
fn a_line_that_cannot_be_read_is_named() {
    let jepsen = |lines: &str| lines.replace("- ", "INFO  jepsen.util - ");
    for (log, number, part) in [
        ("- 0 :invoke :read nil\n- 0 :done :read nil", 2, ":done"),
        ("- x :invoke :read nil", 1, "`x`"),
        ("- 0 :invoke read nil", 1, "`read`"),
        ("- 0 :invoke :pop nil", 1, ":pop"),
        ("\n- 0 :invoke :cas 3", 2, "[0 3]"),
        ("- 0 :invoke :write [1", 1, "`]` is missing"),
        ("- 0 :invoke :write", 1, "missing"),
        ("- 0 :ok :read 1", 1, "has called nothing"),
        ("- 0 :invoke :read nil\n- 0 :ok :write 1", 2, "line 1"),
    ] {
        refused(Format::Jepsen, &jepsen(log), number, part);
    }
    let invoke = "{:process 0, :type :invoke, :f :get, :key \"1\", :value nil}\n";
    for (log, number, part) in [
        ("what", 1, "not a map"),
        ("{:process 0, :type :invoke, :key \"1\"}", 1, ":f"),
        ("{:type :invoke, :f :get}", 1, ":process"),
        ("{:process 0, :f :get}", 1, ":type"),
        ("{:process 0, :type :invoke, :f :read}", 1, ":read"),
        ("{:process 0, :type :invoke, :f :put, :value [1]}", 1, "not a single value"),
        (
            &*format!("{invoke}{{:process 0, :type :ok, :f :get, :key \"2\", :value \"\"}}"),
            2,
            "something else",
        ),
    ] {
        refused(Format::Edn, log, number, part);
    }
}

#[test]
fn a_log_without_operations_is_not_valid() {
    let log = "INFO  jepsen.core - nothing\n";
    assert!(matches!(read::<Register>(Format::Jepsen, log.as_bytes()), Err(LogError::Empty)));
    assert!(matches!(read::<Texts>(Format::Edn, "".as_bytes()), Err(LogError::Empty)));
}
