//! What wins, what is refused, and where a problem is said to come from.

use super::*;

struct Input<'a> {
    file: &'a str,
    variables: &'a [(&'a str, &'a str)],
    set: &'a [&'a str],
    insecure: bool,
}

const NOTHING: Input<'static> = Input { file: "", variables: &[], set: &[], insecure: false };

fn load_input(input: &Input<'_>) -> Result<NodeConfig, Vec<Problem>> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("secret"), "  s3cret\n").unwrap();
    std::fs::write(folder.path().join("empty"), "\n").unwrap();
    std::fs::write(folder.path().join("two"), "one\ntwo\n").unwrap();
    let here = folder.path().display().to_string();
    let file = folder.path().join("node.yaml");
    std::fs::write(&file, input.file.replace("HERE", &here)).unwrap();
    let variables = input.variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let set: Vec<String> = input.set.iter().map(|s| (*s).to_owned()).collect();
    let result = load(Some(&file), variables, &set, input.insecure);
    result.map_err(|mut problems| {
        for problem in &mut problems {
            problem.problem = problem.problem.replace(&here, "HERE");
        }
        problems
    })
}

fn loaded(input: &Input<'_>) -> NodeConfig {
    load_input(input).unwrap_or_else(|problems| panic!("{problems:#?}"))
}

/// The problems of an input, one a line as they are printed.
fn check_input(input: &Input<'_>, expected: &str) {
    let problems = match load_input(input) {
        Ok(_) => String::new(),
        Err(problems) => problems.iter().map(|p| p.in_file("f") + "\n").collect(),
    };
    let expected: String = expected.lines().map(|line| line.trim_start().to_owned() + "\n").collect();
    assert_eq!(problems, expected, "for the file:\n{}", input.file);
}

fn check_file(file: &str, expected: &str) {
    check_input(&Input { file, ..NOTHING }, expected);
}

#[test]
fn without_a_file_a_node_is_alone_and_on_loopback() {
    let node = load(None, [], &[], false).unwrap();
    assert_eq!(node.admin_listen, "127.0.0.1:7070".parse().unwrap());
    assert_eq!(node.peer_listen, "127.0.0.1:7170".parse().unwrap());
    assert_eq!(node.peer_advertise, "127.0.0.1:7170");
    assert_eq!(node.data_dir, Path::new("./data").join(&node.name));
    assert_eq!((node.cluster, node.peer_secret, node.gateway_file), (None, None, None));
    assert!(node.workers >= 1 && !node.gateway_watch && !node.insecure && !node.name.is_empty());
    assert_eq!(node.log, LogConfig { level: "info".into(), json: false, access: AccessTarget::Off });
    assert_eq!(loaded(&Input { file: "# comments only\n", ..NOTHING }).admin_listen.port(), 7070);
}

#[test]
fn a_file_with_every_key_becomes_what_it_says() {
    let node = loaded(&Input {
        file: "node: { name: n1, data_dir: /var/lib/gogate, workers: 3 }
admin: { listen: 127.0.0.1:1, change_rate: 7 }
peer: { listen: '0.0.0.0:2', advertise: 'n1.internal:2', secret_file: HERE/secret }
cluster: { name: demo, expect: 3, peers: ['n1.internal:2', 'n2.internal:2', 'n3.internal:2'], role: learner }
bind: { web: 127.0.0.1:8081 }
gateway: { file: gateway.yaml, watch: false }
drain: { wait: 0s, deadline: 1m }
log: { level: 'gogate=debug,warn', format: json, access: /var/log/gogate/access.log }
",
        ..NOTHING
    });
    assert_eq!(node.name, "n1");
    assert_eq!(node.data_dir, Path::new("/var/lib/gogate"));
    assert_eq!(node.workers, 3);
    assert_eq!((node.admin_listen.port(), node.admin_change_rate), (1, 7));
    assert_eq!(node.peer_listen, "0.0.0.0:2".parse().unwrap());
    assert_eq!(node.peer_advertise, "n1.internal:2");
    assert_eq!(node.peer_secret, Some(Secret("s3cret".into())));
    let cluster = node.cluster.unwrap();
    assert_eq!((cluster.name.as_str(), cluster.expect, cluster.peers.len()), ("demo", 3, 3));
    assert_eq!(cluster.role, Role::Learner);
    assert_eq!(node.bind["web"], "127.0.0.1:8081".parse().unwrap());
    assert_eq!(node.gateway_file.as_deref(), Some(Path::new("gateway.yaml")));
    assert!(!node.gateway_watch);
    assert_eq!((node.drain_wait, node.drain_deadline), (Duration::ZERO, Duration::from_secs(60)));
    let access = AccessTarget::File("/var/log/gogate/access.log".into());
    assert_eq!(node.log, LogConfig { level: "gogate=debug,warn".into(), json: true, access });
}

#[test]
fn requests_are_logged_to_stdout_a_file_or_not_at_all() {
    let access =
        |value: &str| loaded(&Input { variables: &[("GOGATE_LOG_ACCESS", value)], ..NOTHING }).log.access;
    assert_eq!(access("off"), AccessTarget::Off);
    assert_eq!(access("stdout"), AccessTarget::Stdout);
    assert_eq!(access("access.log"), AccessTarget::File("access.log".into()));
    assert_eq!(access("./off"), AccessTarget::File("./off".into()));
    check_file(
        "log: { access: stdot }",
        "f:1: log.access: expected `off`, `stdout` or a file, found `stdot` (did you mean `stdout`?)",
    );
    check_file(
        "log: { access: combined }",
        "f:1: log.access: expected `off`, `stdout` or a file, found `combined` (write ./combined if it is a file)",
    );
    check_file(
        "log: { access: true }",
        "f:1: log.access: expected `off`, `stdout` or a file, found `true` (put it in quotes: \"true\")",
    );
}

#[test]
fn a_flag_beats_a_variable_that_beats_the_file() {
    let file = "node: { name: file }\nadmin: { listen: 127.0.0.1:1 }\npeer: { listen: 127.0.0.1:2 }\n";
    let variables = [("GOGATE_NODE_NAME", "variable"), ("GOGATE_ADMIN_LISTEN", "127.0.0.1:3")];
    let node =
        loaded(&Input { file, variables: &variables, set: &["node.name=a", "node.name=b"], ..NOTHING });
    assert_eq!(node.name, "b");
    assert_eq!(node.admin_listen.port(), 3);
    assert_eq!(node.peer_listen.port(), 2);
}

#[test]
fn variables_set_lists_numbers_names_and_binds() {
    let variables = [
        ("GOGATE_NODE_NAME", "123"),
        ("GOGATE_NODE_WORKERS", "2"),
        ("GOGATE_CLUSTER_NAME", "true"),
        ("GOGATE_CLUSTER_PEERS", "a:1, b:1 ,c:1,"),
        ("GOGATE_CLUSTER_EXPECT", "3"),
        ("GOGATE_BIND_WEB", "127.0.0.1:1"),
        ("GOGATE_BIND_MY_WEB", "127.0.0.1:2"),
        ("GOGATE_GATEWAY_FILE", "g.yaml"),
        ("GOGATE_GATEWAY_WATCH", "false"),
        ("GOGATE_DRAIN_WAIT", ""),
    ];
    let file = "bind:\n  My-Web: 127.0.0.1:9\n";
    let set = ["bind.a.b=127.0.0.1:3"];
    let node = loaded(&Input { file, variables: &variables, set: &set, insecure: false });
    assert_eq!((node.name.as_str(), node.workers), ("123", 2));
    let cluster = node.cluster.unwrap();
    assert_eq!((cluster.name.as_str(), cluster.expect), ("true", 3));
    assert_eq!(cluster.peers, ["a:1", "b:1", "c:1"]);
    let bind: Vec<_> = node.bind.iter().map(|(name, address)| (name.as_str(), address.port())).collect();
    assert_eq!(bind, [("My-Web", 2), ("a.b", 3), ("web", 1)]);
    assert!(!node.gateway_watch);
    assert_eq!(node.drain_wait, Duration::from_secs(5));
}

#[test]
fn a_problem_names_the_variable_or_flag_that_it_comes_from() {
    check_input(
        &Input {
            file: "node: { workers: -1 }\n",
            variables: &[("GOGATE_ADMIN_LISTEN", "7070"), ("GOGATE_CLUSTER_PEERS", "a:1,b")],
            set: &["drain.wait=5", "cluster.name=x"],
            insecure: false,
        },
        "f:1: node.workers: expected a whole number from 0 to 1024, found the number -1
         GOGATE_ADMIN_LISTEN: admin.listen: `7070` has no port (write \"127.0.0.1:7070\")
         GOGATE_CLUSTER_PEERS: cluster.peers[1]: `b` has no port (add a port: \"b:8080\")
         --set drain.wait=5: drain.wait: expected a duration such as 250ms, 5s, 1m or 24h, found `5` (add a unit: 5s or 5ms)",
    );
}

#[test]
fn unknown_variables_and_flags_name_the_nearest() {
    check_input(
        &Input {
            variables: &[("GOGATE_NODE_NAM", "x"), ("GOGATE_WHATEVER_ELSE_IT_IS", "x"), ("PATH", "x")],
            set: &["nodename", "admin.lisen=x", "zz=1"],
            ..NOTHING
        },
        "GOGATE_NODE_NAM: unknown variable (did you mean GOGATE_NODE_NAME?)
         GOGATE_WHATEVER_ELSE_IT_IS: unknown variable (unset it; variables are GOGATE_ and a key's path in capitals, as GOGATE_NODE_NAME)
         --set nodename: expected key=value (as --set node.name=n1)
         --set admin.lisen=x: unknown key `admin.lisen` (did you mean `admin.listen`?)
         --set zz=1: unknown key `zz` (a key is a path as in the node file: node.name)",
    );
}

#[test]
fn variables_of_the_command_line_and_of_kubernetes_are_left_alone() {
    let names = [
        "GOGATE_ADMIN",
        "GOGATE_TOKEN",
        "GOGATE_PORT",
        "GOGATE_SERVICE_HOST",
        "GOGATE_SERVICE_PORT",
        "GOGATE_SERVICE_PORT_WEB",
        "GOGATE_PORT_8080_TCP",
        "GOGATE_PORT_8080_TCP_ADDR",
        "GOGATE_ADMIN_SERVICE_HOST",
        "GOGATE_ADMIN_PORT_7070_TCP_PROTO",
    ];
    let variables = names.map(|name| (name, "tcp://10.0.0.1:80"));
    assert_eq!(loaded(&Input { variables: &variables, ..NOTHING }).admin_listen.port(), 7070);
}

#[cfg(not(feature = "bugs"))]
#[test]
fn a_build_that_can_have_no_bug_put_in_refuses_the_name_of_one() {
    check_input(
        &Input { variables: &[("GOGATE_BUG", "stale-read")], ..NOTHING },
        "GOGATE_BUG: unknown variable (did you mean GOGATE_CA?)",
    );
}

#[cfg(feature = "bugs")]
#[test]
fn a_build_that_can_have_a_bug_put_in_takes_the_name_of_one() {
    loaded(&Input { variables: &[("GOGATE_BUG", "stale-read")], ..NOTHING });
}

#[test]
fn unknown_keys_later_keys_and_documents_are_refused() {
    check_file(
        "nodes: {}\nadmin: { tls: { cert: y }, change_rate: 0 }\ntelemetry: { otlp_endpoint: z }\npeer: { tls: }\n",
        "f:1: nodes: unknown key `nodes` (did you mean `node`?)
         f:2: admin.tls: `key` is missing (add key: a file in PEM)
         f:2: admin.change_rate: expected a whole number from 1 to 1000000, found the number 0
         f:3: telemetry: `telemetry` is not supported by this build yet (remove it)",
    );
    check_input(
        &Input { variables: &[("GOGATE_TELEMETRY_OTLP_ENDPOINT", "x")], ..NOTHING },
        "GOGATE_TELEMETRY_OTLP_ENDPOINT: telemetry: `telemetry` is not supported by this build yet (remove it)",
    );
    check_file(
        "routes: []\n",
        "f: this is a gateway document, not a node file (name it in the node file: gateway: { file: … })",
    );
    check_file(
        "[]",
        "f:1: expected a mapping with the keys `node`, `admin`, `peer`, `cluster`, `bind`, `gateway`, `drain` and `log`, found a list",
    );
}

#[test]
fn a_missing_file_is_named() {
    let problems = load(Some(Path::new("/nowhere/node.yaml")), [], &[], false).unwrap_err();
    assert!(problems[0].in_file("node.yaml").starts_with("node.yaml: cannot be read: No such file"));
}

#[test]
fn addresses_beyond_loopback_need_credentials() {
    let file = "admin: { listen: '0.0.0.0:7070' }\npeer: { listen: '10.0.0.1:7170' }\n";
    check_file(
        file,
        "f:1: admin.listen: 0.0.0.0:7070 is not loopback, and `admin.tokens_file` is missing (add admin.tokens_file (`gogate token new` makes its entries) or admin.tls with client_ca, or pass --insecure)
         f:2: peer.listen: 10.0.0.1:7170 is not loopback, and `peer.secret_file` is missing (add peer.secret_file (a file with the same secret on all nodes) or peer.tls, or pass --insecure)",
    );
    let node = loaded(&Input { file, insecure: true, ..NOTHING });
    assert!(node.insecure && node.peer_secret.is_none());
    check_file("peer: { listen: '10.0.0.1:7170', secret_file: HERE/secret }\n", "");
    check_file("admin: { listen: '[::1]:7070' }\npeer: { listen: '127.8.0.1:7170' }\n", "");
}

#[test]
fn a_secret_that_cannot_be_used_is_refused() {
    check_file(
        "peer:\n  secret_file: HERE/none\n",
        "f:2: peer.secret_file: HERE/none cannot be read: No such file or directory (os error 2) (write the shared secret into that file)",
    );
    check_file(
        "peer:\n  secret_file: /dev/zero\n",
        "f:2: peer.secret_file: /dev/zero has more than 4096 bytes (name the right file)",
    );
    check_file(
        "peer:\n  secret_file: HERE/empty\n",
        "f:2: peer.secret_file: HERE/empty is empty (write the shared secret into it)",
    );
    check_file(
        "peer:\n  secret_file: HERE/two\n",
        "f:2: peer.secret_file: HERE/two holds more than one word of printable characters (write one line of printable ASCII, as from `openssl rand -hex 32`)",
    );
}

#[test]
fn a_cluster_has_a_name_peers_and_an_address_of_this_node() {
    check_file(
        "cluster: { expect: 3, peers: ['a:1', 'a:1', ':1'], role: vote }\npeer:\n  listen: '0.0.0.0:7170'\n  secret_file: HERE/secret\n",
        "f:1: cluster: `name` is missing (add name: the same on all nodes)
         f:1: cluster.expect: 3 nodes are expected, but `cluster.peers` and this node are 2 (list all peers in cluster.peers, or lower cluster.expect)
         f:1: cluster.peers[1]: `a:1` is in the list already (remove it)
         f:1: cluster.peers[2]: the host is missing (write \"127.0.0.1:1\")
         f:1: cluster.role: expected `voter` or `learner`, found `vote` (did you mean `voter`?)
         f:3: peer.advertise: missing: other nodes cannot reach this one at 0.0.0.0:7170 (add peer.advertise: this node's own address, as 10.0.0.1:7170)",
    );
    check_file(
        "cluster: { name: c, role: learner }\n",
        "f:1: cluster.peers: a learner has no peer to follow (add cluster.peers)",
    );
    check_file(
        "cluster: { name: c, expect: 0 }\n",
        "f:1: cluster.expect: expected a whole number from 1 to 9, found the number 0",
    );
}

#[test]
fn expect_defaults_to_the_peers_and_this_node() {
    let expect = |file: &str| loaded(&Input { file, ..NOTHING }).cluster.unwrap().expect;
    assert_eq!(expect("cluster: { name: c }\n"), 1);
    assert_eq!(expect("cluster: { name: c, peers: ['a:1', 'b:1'] }\n"), 3);
    assert_eq!(expect("cluster: { name: c, peers: ['127.0.0.1:7170', 'b:1'] }\n"), 2);
    assert_eq!(expect("cluster: { name: c, join: true, role: learner }\n"), 0, "it waits to be let in");
    check_file(
        "cluster: { name: c, join: true, expect: 1 }\n",
        "f:1: cluster.expect: a node that joins forms no cluster, so it expects nobody (remove cluster.expect, or cluster.join)",
    );
}

#[test]
fn watching_needs_a_file_and_is_on_with_one() {
    check_file(
        "gateway: { watch: true }\n",
        "f:1: gateway.watch: there is no file to watch (add gateway.file, or remove gateway.watch)",
    );
    assert!(loaded(&Input { file: "gateway: { file: g.yaml }\n", ..NOTHING }).gateway_watch);
}

#[test]
fn log_levels_are_checked() {
    check_file("log:\n  level: inof\n", "f:2: log.level: `inof` is not a level (did you mean `info`?)");
    check_file(
        "log:\n  level: gogate=loud\n",
        "f:2: log.level: `loud` is not a level (levels are off, error, warn, info, debug and trace)",
    );
}
