//! Who may do what at the admin API, what is shown of secrets, and what is told of both.

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::Stdio,
    time::Duration,
};

use gogate::control::admin::auth::ROUTES;
use gogate_proto::v1::{RegisterRequest, registry_client::RegistryClient};
use rustix::process::Signal;
use serde_json::Value;
use tonic::{Code, Request};

use crate::harness::{Program, Response, TestCluster, call, eventually, free_address, get, gogate, run};

const WITHIN: Duration = Duration::from_secs(15);

/// Each route, a call of it, and the least role that it takes. Harmless to whoever may: nothing that the other
/// calls need goes away.
const CALLS: &[(&str, &str, &str, &str, &str)] = &[
    ("GET", "/livez", "/livez", "", "nobody"),
    ("GET", "/readyz", "/readyz", "", "nobody"),
    ("GET", "/health", "/health", "", "nobody"),
    ("GET", "/", "/", "", "read"),
    ("GET", "/metrics", "/metrics", "", "read"),
    ("GET", "/backends", "/backends", "", "read"),
    ("GET", "/v1/services", "/v1/services", "", "read"),
    ("POST", "/v1/services", "/v1/services", r#"{"id":"t","name":"api","address":"h:1"}"#, "register"),
    ("GET", "/v1/services/{id}", "/v1/services/none", "", "read"),
    ("DELETE", "/v1/services/{id}", "/v1/services/none", "", "register"),
    ("PUT", "/v1/services/{id}/heartbeat", "/v1/services/none/heartbeat", "", "register"),
    ("GET", "/v1/config", "/v1/config", "", "read"),
    ("PUT", "/v1/config", "/v1/config?dry_run", "services: {}", "write"),
    ("PATCH", "/v1/config", "/v1/config?dry_run", "{}", "write"),
    ("GET", "/v1/config/versions", "/v1/config/versions", "", "read"),
    ("GET", "/v1/config/diff", "/v1/config/diff", "", "read"),
    ("GET", "/v1/config/status", "/v1/config/status", "", "read"),
    ("POST", "/v1/config/rollback", "/v1/config/rollback", r#"{"version":99}"#, "write"),
    ("GET", "/v1/cluster", "/v1/cluster", "", "read"),
    ("GET", "/v1/watch", "/v1/watch", "", "read"),
    ("POST", "/v1/cluster/members", "/v1/cluster/members", "{}", "admin"),
    ("DELETE", "/v1/cluster/members/{id}", "/v1/cluster/members/99", "", "admin"),
    ("POST", "/v1/cluster/members/{id}/promote", "/v1/cluster/members/99/promote", "", "admin"),
    ("POST", "/v1/cluster/transfer-leader", "/v1/cluster/transfer-leader", r#"{"to":99}"#, "admin"),
    ("GET", "/v1/cluster/backup", "/v1/cluster/backup", "", "admin"),
    ("POST", "/v1/cluster/restore", "/v1/cluster/restore", "no backup", "admin"),
    ("POST", "/v1/cluster/snapshot", "/v1/cluster/snapshot", "", "admin"),
    // The last, for afterwards there is nobody to ask.
    ("POST", "/v1/node/drain", "/v1/node/drain", "", "admin"),
];

/// From the least to the most.
const ROLES: [&str; 5] = ["nobody", "read", "register", "write", "admin"];

const SECRETS: &str = "\
# what runs
services: { api: {} }
policies:
  login: { jwt: { algorithms: [HS256], secret: \"jwt-hunter2-jwt-hunter2-jwt-hunter2\" } }   # for all
  keys: { api_key: { keys: [{ name: a, sha256: 2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b }] } }
  users: { basic_auth: { users: { ann: \"$2b$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW\" } } }
  onward: { request_headers: { set: { Authorization: \"Basic b253YXJkLWh1bnRlcjI=\" } } }
routes: [{ name: a, match: { path_prefix: /a }, service: api, policies: [login, onward] }]
";

/// What must not be shown of [`SECRETS`].
const HIDDEN: [&str; 4] = ["jwt-hunter2", "2bb80d53", "CCCCCCCCCCCC", "b253YXJk"];

/// One node whose admin API asks for tokens: one for each role, called like it, and `shop`, limited to `shop-*`.
struct Guarded {
    cluster: TestCluster,
    tokens: Vec<(&'static str, String)>,
}

/// A token and its entry, by the command.
pub fn new_token(file: &str, arguments: &[&str]) -> String {
    let (code, token, said) = run(gogate().args(["token", "new", "--file", file]).args(arguments));
    assert_eq!(code, Some(0), "{said}");
    token.trim().to_owned()
}

// === impl Guarded ===

impl Guarded {
    fn start() -> Self {
        Self::start_with(|content| content)
    }

    /// `change` is done to the node file.
    fn start_with(change: impl Fn(String) -> String) -> Self {
        let mut cluster = TestCluster::prepare(1);
        let file = cluster.dir.path().join("tokens.yaml").display().to_string();
        let mut tokens = vec![("nobody", String::new())];
        for role in &ROLES[1..] {
            let limit: &[&str] = if *role == "register" { &["--service", "*"] } else { &[] };
            let arguments = [&["--name", role, "--role", role][..], limit].concat();
            tokens.push((role, new_token(&file, &arguments)));
        }
        let shop = ["--name", "shop", "--role", "register", "--service", "shop-*"];
        tokens.push(("shop", new_token(&file, &shop)));
        let content = std::fs::read_to_string(cluster.file(0)).unwrap();
        let listen = format!("listen: \"{}\"", cluster.admin(0));
        let with_tokens = content.replace(&listen, &format!("{listen}, tokens_file: \"{file}\""));
        assert_ne!(with_tokens, content);
        std::fs::write(cluster.file(0), change(with_tokens)).unwrap();
        cluster.start_node(0);
        cluster.wait_until_ready();
        Self { cluster, tokens }
    }

    fn admin(&self) -> SocketAddr {
        self.cluster.admin(0)
    }

    fn token(&self, name: &str) -> &str {
        &self.tokens.iter().find(|(own, _)| *own == name).unwrap().1
    }

    fn tokens_file(&self) -> PathBuf {
        self.cluster.dir.path().join("tokens.yaml")
    }

    /// A call as somebody.
    #[track_caller]
    fn json(&self, name: &str, method: &str, path: &str, body: &str) -> (u16, Value) {
        let bearer = format!("Bearer {}", self.token(name));
        let headers = if name == "nobody" { vec![] } else { vec![("authorization", bearer.as_str())] };
        let response = call(self.admin(), method, path, &headers, body).unwrap();
        let is_json = response.header("content-type").is_some_and(|kind| kind.contains("json"));
        (response.status, if is_json { response.json() } else { response.text().into() })
    }

    /// The status and what goes with it of a call with a token of any kind.
    fn with(&self, token: &str) -> Response {
        let bearer = format!("Bearer {token}");
        call(self.admin(), "GET", "/v1/config/versions", &[("authorization", &bearer)], "").unwrap()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.cluster.dir.path().join("n1.log")).unwrap()
    }

    /// Waits until a line of the log has all of `texts`.
    #[track_caller]
    fn logs(&self, texts: &[&str]) {
        eventually(WITHIN, &format!("the log has {texts:?}"), || {
            let log = self.log();
            let found = log.lines().any(|line| texts.iter().all(|text| line.contains(text)));
            if found { Ok(()) } else { Err(log) }
        });
    }
}

/// The status of a call whose answer may have no end, and what of it came with the head.
fn status(address: SocketAddr, method: &str, path: &str, token: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(WITHIN)).unwrap();
    let authorization =
        if token.is_empty() { String::new() } else { format!("authorization: Bearer {token}\r\n") };
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-length: {length}\r\n{authorization}\r\n"
    );
    stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    while !answer.windows(4).any(|window| window == b"\r\n\r\n") {
        let length = stream.read(&mut piece).unwrap();
        assert!(length > 0, "{method} {path}: the connection ended");
        answer.extend_from_slice(&piece[..length]);
    }
    let text = String::from_utf8_lossy(&answer).into_owned();
    (text[9..12].parse().unwrap(), text)
}

#[test]
fn every_route_takes_the_roles_that_it_should_and_no_other() {
    let rows: BTreeSet<_> = ROUTES.iter().map(|route| (route.method, route.path)).collect();
    let tested: BTreeSet<_> = CALLS.iter().map(|(method, path, ..)| (*method, *path)).collect();
    assert_eq!(rows, tested, "every route is in this table, with the least role that it takes");

    let node = Guarded::start();
    assert_eq!(node.json("admin", "PUT", "/v1/config", "services: { api: {} }").0, 200);
    let refused = call(node.admin(), "GET", "/metrics", &[], "").unwrap();
    assert_eq!(refused.header("www-authenticate"), Some("Bearer realm=\"gogate\""));
    let bearer = format!("Bearer {}", node.token("read"));
    let head = call(node.admin(), "PATCH", "/v1/services", &[("authorization", &bearer)], "").unwrap();
    assert_eq!((head.status, head.header("allow")), (405, Some("GET, HEAD, POST")));
    for (method, _, path, body, least) in CALLS {
        let least = ROLES.iter().position(|role| role == least).unwrap();
        for (place, role) in ROLES.iter().enumerate() {
            let (code, answer) = status(node.admin(), method, path, node.token(role), body);
            let refused = matches!(code, 401 | 403 | 429);
            assert_eq!(!refused, place >= least, "{method} {path} as {role}: {answer}");
            if refused {
                assert_eq!(code, if *role == "nobody" { 401 } else { 403 }, "{answer}");
                assert!(answer.contains("application/problem+json"), "{answer}");
            }
            assert!(!answer.contains("nothing is at"), "{method} {path} has no handler");
        }
    }
}

#[test]
fn a_registrar_may_touch_its_own_services_only() {
    let node = Guarded::start();
    let instance = |id: &str, name: &str| format!(r#"{{"id":"{id}","name":"{name}","address":"h:1"}}"#);
    assert_eq!(node.json("write", "POST", "/v1/services", &instance("w", "web")).0, 201);
    assert_eq!(node.json("shop", "POST", "/v1/services", &instance("s", "shop-1")).0, 201);
    assert_eq!(node.json("shop", "PUT", "/v1/services/s/heartbeat", "").0, 200);
    for (method, path, body) in [
        ("POST", "/v1/services", instance("x", "web")),
        ("POST", "/v1/services", instance("x", "shop")),
        // It would take the place of somebody else's.
        ("POST", "/v1/services", instance("w", "shop-1")),
        ("DELETE", "/v1/services/w", String::new()),
        ("PUT", "/v1/services/w/heartbeat", String::new()),
    ] {
        let (code, answer) = node.json("shop", method, path, &body);
        assert_eq!(code, 403, "{method} {path}: {answer}");
        assert!(answer["detail"].as_str().unwrap().contains("limited to the services shop-*"), "{answer}");
    }
    assert_eq!(node.json("shop", "GET", "/v1/services/w", "").1["name"], "web");
    assert_eq!(node.json("shop", "DELETE", "/v1/services/s", "").0, 204);
    assert_eq!(node.json("shop", "DELETE", "/v1/services/s", "").0, 404);
}

#[test]
fn tokens_are_read_again_and_a_broken_file_keeps_the_old_ones() {
    let node = Guarded::start();
    let file = node.tokens_file();
    let next = new_token(&file.display().to_string(), &["--name", "next", "--role", "read"]);
    eventually(WITHIN, "the new token is known", || match node.with(&next).status {
        200 => Ok(()),
        other => Err(other.to_string()),
    });
    let good = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, "tokens: [{ name: a, token: in-the-clear }]\n").unwrap();
    node.logs(&["ERROR", "admin.tokens_file", "a token is never written down"]);
    assert_eq!(node.with(&next).status, 200, "what was read before stays");
    // The one that is gone from the file is not let in any more.
    std::fs::write(&file, good.lines().filter(|line| !line.contains("next")).collect::<Vec<_>>().join("\n"))
        .unwrap();
    node.cluster.signal(0, Signal::HUP);
    eventually(WITHIN, "the removed token is refused", || match node.with(&next).status {
        401 => Ok(()),
        other => Err(other.to_string()),
    });
    assert_eq!(node.with(node.token("read")).status, 200);
    assert!(!node.log().contains("in-the-clear"));
}

#[test]
fn who_guesses_tokens_is_not_listened_to_for_a_while() {
    let node = Guarded::start();
    for _ in 0..30 {
        assert_eq!(node.with("the-same-old-one").status, 401, "an old token is no new guess");
    }
    for guess in 0..9 {
        let refused = node.with(&format!("guess-{guess}"));
        assert_eq!(refused.status, 401);
        assert_eq!(
            refused.header("www-authenticate"),
            Some("Bearer realm=\"gogate\", error=\"invalid_token\"")
        );
    }
    let refused = node.with("one-more");
    assert_eq!(refused.status, 429, "{}", refused.text());
    let seconds: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=61).contains(&seconds));
    assert_eq!(node.with(node.token("read")).status, 429, "or the answer would tell that it is right");
    assert_eq!(call(node.admin(), "GET", "/readyz", &[], "").unwrap().status, 200);
    node.logs(&["audit: further refusals of this address are not logged"]);
}

#[test]
fn who_asks_for_changes_too_fast_is_told_when_to_come_back() {
    let node =
        Guarded::start_with(|content| content.replacen("admin:   { ", "admin:   { change_rate: 1, ", 1));
    let put = |role: &str| {
        let bearer = format!("Bearer {}", node.token(role));
        call(node.admin(), "PUT", "/v1/config", &[("authorization", bearer.as_str())], "routes: []\n")
            .unwrap()
    };
    assert_eq!(put("write").status, 200);
    let refused = (0..100).map(|_| put("write")).find(|answer| answer.status != 200).unwrap();
    assert_eq!(refused.status, 429, "{}", refused.text());
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert!(refused.text().contains("write from 127.0.0.1 asks for more changes than the 1 a second"));
    node.logs(&["audit: refused", "by=\"write\"", "path=/v1/config", "outcome=429"]);
    assert_eq!(put("admin").status, 200, "whom others do not hold up");
    for number in 0..20 {
        let body = format!(r#"{{"id":"i{number}","name":"api","address":"h:1"}}"#);
        assert_eq!(node.json("write", "POST", "/v1/services", &body).0, 201, "instances are not counted");
    }
}

#[test]
fn changes_and_refusals_are_audited_by_name() {
    // Whatever else is silenced.
    let node = Guarded::start_with(|content| format!("{content}log: {{ level: warn }}\n"));
    let bearer = format!("Bearer {}", node.token("write"));
    let headers = [("authorization", bearer.as_str()), ("x-request-id", "r-7")];
    let body = r#"{"id":"a","name":"api","address":"h:1"}"#;
    assert_eq!(call(node.admin(), "POST", "/v1/services", &headers, body).unwrap().status, 201);
    node.logs(&["audit: asked", "by=\"write\"", "from=127.0.0.1", "POST", "outcome=201", "a of api", "r-7"]);
    assert_eq!(node.json("write", "PUT", "/v1/config", "services: { api: {} }").0, 200);
    node.logs(&["audit: asked", "by=\"write\"", "PUT", "path=/v1/config", "outcome=200", "version=\"1\""]);
    let (_, versions) = node.json("read", "GET", "/v1/config/versions", "");
    assert_eq!(versions[0]["by"], "write from 127.0.0.1 at n1");
    assert_eq!(node.json("read", "DELETE", "/v1/services/a", "").0, 403);
    node.logs(&["audit: refused", "by=\"read\"", "DELETE", "path=/v1/services/a", "outcome=403"]);
    assert_eq!(node.json("nobody", "DELETE", "/v1/services/a", "").0, 401);
    node.logs(&["audit: refused", "by=\"-\"", "DELETE", "outcome=401"]);
    assert_eq!(node.json("register", "PUT", "/v1/services/a/heartbeat", "").0, 200);
    assert_eq!(node.json("read", "GET", "/v1/config?secrets=true", "").0, 403);
    assert_eq!(node.json("admin", "GET", "/v1/config?secrets=true", "").0, 200);
    node.logs(&["audit: asked", "by=\"admin\"", "the document with its secrets"]);
    let log = node.log();
    assert!(!log.contains("heartbeat"), "a beat is no change: {log}");
    for (name, token) in &node.tokens[1..] {
        assert!(!log.contains(token.as_str()), "the token of {name} is in the log");
    }
}

#[test]
fn secrets_are_shown_to_admins_who_ask() {
    let node = Guarded::start();
    let (code, answer) = node.json("write", "PUT", "/v1/config", SECRETS);
    assert_eq!(code, 200, "{answer}");
    for name in ["read", "write", "admin"] {
        let (code, shown) = node.json(name, "GET", "/v1/config", "");
        let shown = shown.as_str().unwrap();
        assert_eq!(code, 200);
        assert_eq!(HIDDEN.iter().find(|secret| shown.contains(**secret)), None, "{shown}");
        assert!(shown.starts_with("# what runs\n") && shown.contains("secret: \"***\" } }   # for all"));
        let (code, answer) = node.json("write", "PUT", "/v1/config", shown);
        assert_eq!(code, 422, "a copy without its secrets is no document: {answer}");
        assert!(answer.to_string().contains("policies.login.jwt.secret"), "{answer}");
        let (_, diff) = node.json(name, "GET", "/v1/config/diff", "");
        assert_eq!(HIDDEN.iter().find(|secret| diff.to_string().contains(**secret)), None, "{diff}");
    }
    for name in ["read", "write"] {
        assert_eq!(node.json(name, "GET", "/v1/config?secrets=true", "").0, 403);
    }
    assert_eq!(node.json("admin", "GET", "/v1/config?secrets=true", "").1, SECRETS);
    let patch = r#"{"policies":{"tidy":{"body_limit":"1MiB"}}}"#;
    assert_eq!(node.json("write", "PATCH", "/v1/config", patch).0, 200, "secrets stay in a patched document");
    let (_, whole) = node.json("admin", "GET", "/v1/config?secrets=true", "");
    assert!(whole.to_string().contains("jwt-hunter2"), "{whole}");

    let admin = format!("http://{}", node.admin());
    let get = |name: &str, more: &[&str]| {
        let token = node.token(name);
        run(gogate().env("GOGATE_TOKEN", token).args(["--admin", &admin, "config", "get"]).args(more))
    };
    assert!(!get("admin", &[]).1.contains("jwt-hunter2"));
    assert!(get("admin", &["--secrets"]).1.contains("jwt-hunter2"));
    let (code, _, said) = get("write", &["--secrets"]);
    assert!(code == Some(1) && said.contains("role admin"), "{said}");
    let (code, _, said) = run(gogate().args(["--admin", &admin, "config", "get"]));
    assert!(code == Some(1) && said.contains("--token"), "{said}");
}

#[test]
fn without_tokens_secrets_must_still_be_asked_for() {
    let cluster = TestCluster::start(1);
    cluster.apply(0, SECRETS);
    let shown = |path: &str| call(cluster.admin(0), "GET", path, &[], "").unwrap();
    assert!(!shown("/v1/config").text().contains("jwt-hunter2"));
    assert_eq!(shown("/v1/config?secrets=true").text(), SECRETS);
    assert_eq!(shown("/v1/config").header("etag"), Some("\"1\""));
}

#[test]
fn the_log_has_no_secret_whatever_it_is_given() {
    let node = Guarded::start_with(|content| {
        let secret = PathBuf::from(content.split("data_dir: \"").nth(1).unwrap().split('"').next().unwrap());
        let secret = secret.with_file_name("peer-secret");
        std::fs::write(&secret, "peer-hunter2\n").unwrap();
        let peer =
            content.replace("peer:    {", &format!("peer:    {{ secret_file: \"{}\",", secret.display()));
        assert_ne!(peer, content);
        format!("{peer}log: {{ level: \"trace\" }}\n")
    });
    assert_eq!(node.json("write", "PUT", "/v1/config", SECRETS).0, 200);
    // A document that is wrong beside its secrets, and in them.
    let wrong = SECRETS.replace("HS256", "RS256").replace("2bb80d53", "zz");
    let (code, said) = node.json("write", "PUT", "/v1/config", &wrong);
    assert_eq!(code, 422);
    assert_eq!(HIDDEN.iter().find(|secret| said.to_string().contains(**secret)), None, "{said}");
    let misplaced = "policies: { login: { jwt: jwt-hunter2 } }";
    assert_eq!(node.json("write", "PUT", "/v1/config", misplaced).0, 422);
    node.with("token-hunter2");
    call(node.admin(), "GET", "/v1/config?token=query-hunter2", &[], "").unwrap();
    call(node.admin(), "PUT", "/v1/config?token=query-hunter2", &[], "").unwrap();
    let bearer = format!("Bearer {}", node.token("admin"));
    call(node.admin(), "DELETE", "/v1/services/x", &[("authorization", &bearer)], "").unwrap();
    node.logs(&["audit", "path=/v1/services/x"]);
    let log = node.log();
    let tokens = node.tokens.iter().skip(1).map(|(_, token)| token.as_str());
    let file = std::fs::read_to_string(node.tokens_file()).unwrap();
    let hashes = file.split('"').filter(|word| word.len() == 64);
    let others = ["peer-hunter2", "token-hunter2", "query-hunter2"];
    for secret in HIDDEN.into_iter().chain(others).chain(tokens).chain(hashes) {
        assert!(!log.contains(secret), "`{secret}` is in the log:\n{log}");
    }
}

#[test]
fn an_address_beyond_loopback_needs_a_credential_unless_it_is_insisted() {
    let folder = tempfile::tempdir().unwrap();
    let anywhere = |port: u16| format!("0.0.0.0:{port}");
    let (admin, peer) = (free_address(), free_address());
    let set = [
        format!("admin.listen={}", anywhere(admin.port())),
        format!("peer.listen={peer}"),
        format!("node.data_dir={}", folder.path().join("data").display()),
        "drain.wait=0s".to_owned(),
    ];
    let arguments: Vec<&str> = set.iter().flat_map(|set| ["--set", set]).collect();
    let (code, _, said) = run(gogate().arg("serve").args(&arguments));
    assert_eq!(code, Some(1));
    assert!(said.contains("`admin.tokens_file` is missing") && said.contains("--insecure"), "{said}");

    let log = std::fs::File::create(folder.path().join("log")).unwrap();
    let mut insisted = gogate();
    insisted.args(["serve", "--insecure"]).args(&arguments).stdout(Stdio::null()).stderr(log);
    let mut insisted = Program::start(&mut insisted);
    eventually(WITHIN, "it serves", || match get(admin, "/v1/cluster") {
        Ok(answer) if answer.status == 200 => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let log = std::fs::read_to_string(folder.path().join("log")).unwrap();
    assert!(log.contains("WARN") && log.contains("--insecure"), "{log}");
    insisted.terminate();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_over_grpc_need_the_same_tokens() {
    let node = Guarded::start();
    let mut client = RegistryClient::connect(format!("http://{}", node.admin())).await.unwrap();
    for (name, expected) in [
        ("nobody", Err(Code::Unauthenticated)),
        ("read", Err(Code::PermissionDenied)),
        ("shop", Err(Code::PermissionDenied)),
        ("register", Ok(())),
    ] {
        let (id, service, address) = ("a".to_owned(), "api".to_owned(), "h:1".to_owned());
        let mut request =
            Request::new(RegisterRequest { id, name: service, address, ..RegisterRequest::default() });
        if name != "nobody" {
            let bearer = format!("Bearer {}", node.token(name));
            request.metadata_mut().insert("authorization", bearer.parse().unwrap());
        }
        let answer = client.register(request).await;
        assert_eq!(answer.map(drop).map_err(|status| status.code()), expected, "{name}");
    }
    node.logs(&["audit: refused", "by=\"read\"", "POST", "path=/v1/services", "outcome=403"]);
    node.logs(&["audit: asked", "by=\"register\"", "a of api"]);
}
