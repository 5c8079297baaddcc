//! One process's own settings as written: the node file, the environment, the flags.
//!
//! Job: a flag (`--set key=value`) beats a variable (`GOGATE_` and the path in capitals), that beats the file, that
//! beats the default. One walk checks them all. Invariants: the environment is passed in, never read here; the
//! only look at the machine is its host name, its cores and the secret's file. Neighbours: `given` puts
//! variables and flags into the file's tree, `node` is the result.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    address,
    document::Secret,
    field::{Field, Keys, Section, is_null},
    given::{Given, child, map},
    node::{AccessTarget, ClusterConfig, LogConfig, NodeConfig, Role, TlsFiles},
    problem::{Place, Problem, Report, nearest, shown},
    yaml::{self, Node, Value},
};

pub(super) const TOP: Keys = Keys {
    known: &["node", "admin", "peer", "cluster", "bind", "gateway", "drain", "log"],
    later: &["telemetry"],
};
const NODE: Keys = Keys { known: &["name", "data_dir", "workers"], later: &[] };
const ADMIN: Keys = Keys { known: &["listen", "tokens_file", "tls", "change_rate"], later: &[] };
const ADMIN_TLS: Keys = Keys { known: &["cert", "key", "client_ca"], later: &[] };
const PEER: Keys = Keys { known: &["listen", "advertise", "secret_file", "tls"], later: &[] };
const PEER_TLS: Keys = Keys { known: &["cert", "key", "ca"], later: &[] };
const CLUSTER: Keys = Keys { known: &["name", "expect", "peers", "role", "join"], later: &[] };
const GATEWAY: Keys = Keys { known: &["file", "watch"], later: &[] };
const DRAIN: Keys = Keys { known: &["wait", "deadline"], later: &[] };
const LOG: Keys = Keys { known: &["level", "format", "access"], later: &[] };

/// More than a cluster takes in: documents take effect one after the other.
const CHANGE_RATE_DEFAULT: u32 = 50;

/// A secret is a line, not a book: a larger file is the wrong one.
const SECRET_BYTES_MAX: usize = 4096;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const DURATION_MAX: Duration = Duration::from_secs(24 * 3600);

/// Reads the node file if there is one, the variables and the `--set` flags, and resolves every default.
/// Relative paths are relative to the current directory, wherever they were written.
///
/// # Errors
/// Every problem: those of the file in its order, then those of variables and flags.
pub fn load(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
    set: &[String],
    insecure: bool,
) -> Result<NodeConfig, Vec<Problem>> {
    let mut root = match file {
        Some(file) => read_file(file).map_err(|problem| vec![problem])?,
        None => None,
    };
    if let Some(problem) = root.as_ref().and_then(not_a_node_file) {
        return Err(vec![problem]);
    }
    let mut given = Given::default();
    for (name, value) in environment {
        given.variable(&name, &value, root.as_ref());
    }
    for assignment in set {
        given.flag(assignment);
    }
    let tree = root.get_or_insert_with(|| map(Place::default()));
    given.fill(tree);
    let report = Report::default();
    let node = resolve(tree, &report, insecure, secret);
    let mut problems = report.into_problems();
    for problem in &mut problems {
        given.name_source(problem);
    }
    problems.extend(given.into_problems());
    match node {
        Some(node) if problems.is_empty() => Ok(node),
        _ => Err(problems),
    }
}

/// Checks the text of a node file alone, without variables, flags or the files that it names.
///
/// # Errors
/// Every problem, in the order of the text.
pub fn check(text: &str) -> Result<(), Vec<Problem>> {
    let root = yaml::parse(text).map_err(|problem| vec![problem])?;
    let report = Report::default();
    let root = root.filter(|root| !is_null(root)).unwrap_or_else(|| map(Place::default()));
    // `--insecure` and the secret belong to the machine that will run it.
    resolve(&root, &report, true, |_| Ok(String::new()));
    if report.is_empty() { Ok(()) } else { Err(report.into_problems()) }
}

fn read_file(file: &Path) -> Result<Option<Node>, Problem> {
    let root = yaml::parse(&yaml::read(file)?)?;
    // A file of comments only sets nothing, as a missing file would.
    Ok(root.filter(|root| !is_null(root)))
}

fn not_a_node_file(root: &Node) -> Option<Problem> {
    let is_map = matches!(&root.value, Value::Map(pairs) if !pairs.is_empty());
    let has_own = TOP.known.iter().any(|key| child(root, key).is_some());
    let has_other = super::check::TOP.known.iter().any(|key| child(root, key).is_some());
    (is_map && !has_own && has_other).then(|| {
        Problem::general(
            "this is a gateway document, not a node file",
            Some("name it in the node file: gateway: { file: … }".into()),
        )
    })
}

// === as written ===

/// What was written; nothing looked up, no default filled in.
#[derive(Default)]
struct NodeFile {
    name: Option<String>,
    data_dir: Option<PathBuf>,
    workers: usize,
    admin_listen: Option<SocketAddr>,
    admin_tokens_file: Option<PathBuf>,
    admin_tls: Option<TlsFiles>,
    admin_change_rate: Option<u32>,
    peer_listen: Option<SocketAddr>,
    peer_advertise: Option<String>,
    peer_secret_file: Option<PathBuf>,
    peer_tls: Option<TlsFiles>,
    cluster: Option<ClusterFile>,
    bind: BTreeMap<String, SocketAddr>,
    gateway_file: Option<PathBuf>,
    gateway_watch: Option<bool>,
    drain_wait: Option<Duration>,
    drain_deadline: Option<Duration>,
    log_level: Option<String>,
    log_json: bool,
    log_access: Option<AccessTarget>,
}

#[derive(Default)]
struct ClusterFile {
    name: Option<String>,
    expect: Option<usize>,
    peers: Vec<String>,
    role: Option<Role>,
    join: bool,
}

/// The sections that were written, to name the place of a problem between two keys.
type Sections<'a> = BTreeMap<&'static str, Section<'a>>;

fn read<'a>(root: &'a Node, report: &'a Report) -> Option<(NodeFile, Sections<'a>)> {
    let top = Field { node: root, path: String::new(), report }.section(TOP)?;
    let mut sections = Sections::new();
    let known = [
        ("node", NODE),
        ("admin", ADMIN),
        ("peer", PEER),
        ("cluster", CLUSTER),
        ("gateway", GATEWAY),
        ("drain", DRAIN),
        ("log", LOG),
    ];
    for (key, keys) in known {
        if let Some(section) = top.section(key, keys) {
            sections.insert(key, section);
        }
    }
    let get = |section: &str, key: &str| sections.get(section).and_then(|section| section.get(key));
    let duration = |section, key| get(section, key).and_then(|f| f.duration(Duration::ZERO, DURATION_MAX));
    let workers = get("node", "workers").and_then(|f| f.integer(0, 1024)).unwrap_or(0);
    let file = NodeFile {
        name: get("node", "name").and_then(Field::name).map(str::to_owned),
        data_dir: get("node", "data_dir").and_then(path),
        workers: usize::try_from(workers).unwrap_or(0),
        admin_listen: get("admin", "listen").and_then(listen),
        admin_tokens_file: get("admin", "tokens_file").and_then(path),
        admin_tls: get("admin", "tls").and_then(|field| tls(field, ADMIN_TLS, "client_ca", false)),
        admin_change_rate: get("admin", "change_rate")
            .and_then(|f| f.integer(1, 1_000_000))
            .and_then(|rate| u32::try_from(rate).ok()),
        peer_listen: get("peer", "listen").and_then(listen),
        peer_advertise: get("peer", "advertise").and_then(reach),
        peer_secret_file: get("peer", "secret_file").and_then(path),
        peer_tls: get("peer", "tls").and_then(|field| tls(field, PEER_TLS, "ca", true)),
        cluster: sections.get("cluster").map(cluster),
        bind: top.get("bind").map(bind).unwrap_or_default(),
        gateway_file: get("gateway", "file").and_then(path),
        gateway_watch: get("gateway", "watch").and_then(Field::boolean),
        drain_wait: duration("drain", "wait"),
        drain_deadline: duration("drain", "deadline"),
        log_level: get("log", "level").and_then(log_level),
        log_json: get("log", "format").and_then(|f| f.choice(&["text", "json"])) == Some("json"),
        log_access: get("log", "access").and_then(access_target),
    };
    if file.gateway_watch == Some(true) && get("gateway", "file").is_none() {
        let suggestion = Some("add gateway.file, or remove gateway.watch".into());
        if let Some(field) = get("gateway", "watch") {
            field.problem("there is no file to watch", suggestion);
        }
    }
    Some((file, sections))
}

fn path(field: &Field<'_>) -> Option<PathBuf> {
    let text = field.text_as("a path")?;
    if text.contains('\0') {
        field.problem(format!("`{}` is not a path", shown(text)), None);
        return None;
    }
    Some(PathBuf::from(text))
}

/// Files that belong together; none if all keys of it were left empty.
fn tls(field: &Field<'_>, keys: Keys, ca: &str, needs_ca: bool) -> Option<TlsFiles> {
    let section = field.section(keys)?;
    if keys.known.iter().all(|key| section.get(key).is_none()) {
        return None;
    }
    let file = |key: &str| section.get(key).and_then(path);
    for key in keys.known.iter().filter(|key| needs_ca || **key != ca) {
        if section.get(key).is_none() {
            field.problem(format!("`{key}` is missing"), Some(format!("add {key}: a file in PEM")));
        }
    }
    Some(TlsFiles { cert: file("cert")?, key: file("key")?, ca: file(ca) })
}

fn accept<T>(field: &Field<'_>, result: Result<T, address::Refusal>) -> Option<T> {
    result.map_err(|(problem, suggestion)| field.problem(problem, suggestion)).ok()
}

fn listen(field: &Field<'_>) -> Option<SocketAddr> {
    accept(field, address::listen(field.text_as("an address such as 127.0.0.1:7070")?))
}

fn reach(field: &Field<'_>) -> Option<String> {
    accept(field, address::reach(field.text_as("an address such as 10.0.0.1:7170")?))
}

fn cluster(section: &Section<'_>) -> ClusterFile {
    if section.get("name").is_none() {
        let suggestion = Some("add name: the same on all nodes".into());
        section.field.problem("`name` is missing", suggestion);
    }
    let mut peers: Vec<String> = Vec::new();
    for item in section.get("peers").and_then(|field| field.list("addresses")).unwrap_or_default() {
        let Some(peer) = reach(&item) else { continue };
        if peers.contains(&peer) {
            item.problem(format!("`{peer}` is in the list already"), Some("remove it".into()));
        } else {
            peers.push(peer);
        }
    }
    let expect = section.get("expect").and_then(|field| field.integer(1, 9));
    let role = section.get("role").and_then(|field| field.choice(&["voter", "learner"]));
    ClusterFile {
        name: section.get("name").and_then(Field::name).map(str::to_owned),
        expect: expect.and_then(|n| usize::try_from(n).ok()),
        peers,
        join: section.get("join").and_then(Field::boolean) == Some(true),
        role: role.map(|role| if role == "learner" { Role::Learner } else { Role::Voter }),
    }
}

fn bind(field: &Field<'_>) -> BTreeMap<String, SocketAddr> {
    let mut bind = BTreeMap::new();
    let mut taken: BTreeMap<SocketAddr, &str> = BTreeMap::new();
    for (name, field) in field.named().unwrap_or_default() {
        if field.is_null() {
            continue;
        }
        let Some(address) = listen(&field) else { continue };
        if let Some(other) = taken.insert(address, name).filter(|_| address.port() != 0) {
            let suggestion = Some("give it an address of its own".into());
            field.problem(format!("{address} is where listener `{other}` is opened already"), suggestion);
        }
        bind.insert(name.to_owned(), address);
    }
    bind
}

/// A level, or directives as `tracing` filters have them: `gogate=debug,warn`.
fn log_level(field: &Field<'_>) -> Option<String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let text = field.text_as("a level such as info, or a filter such as gogate=debug,warn")?;
    for directive in text.split(',').map(str::trim) {
        let level = directive.rsplit('=').next().unwrap_or(directive);
        if LEVELS.contains(&level.to_ascii_lowercase().as_str()) {
            continue;
        }
        let suggestion = match nearest(level, LEVELS) {
            Some(near) => format!("did you mean `{near}`?"),
            None => "levels are off, error, warn, info, debug and trace".into(),
        };
        field.problem(format!("`{}` is not a level", shown(level)), Some(suggestion));
        return None;
    }
    if let Err(error) = text.parse::<tracing_subscriber::filter::EnvFilter>() {
        field.problem(format!("`{}` is not a filter: {error}", shown(text)), None);
        return None;
    }
    Some(text.to_owned())
}

/// `off`, `stdout` or a file. A bare word is more likely a mistake than a file's name.
fn access_target(field: &Field<'_>) -> Option<AccessTarget> {
    let text = field.text_as("`off`, `stdout` or a file")?;
    match text {
        "off" => Some(AccessTarget::Off),
        "stdout" => Some(AccessTarget::Stdout),
        word if !word.contains(['/', '.']) => {
            let suggestion = match nearest(word, ["off", "stdout"]) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("write ./{} if it is a file", shown(word)),
            };
            let problem = format!("expected `off`, `stdout` or a file, found `{}`", shown(word));
            field.problem(problem, Some(suggestion));
            None
        }
        _ => path(field).map(AccessTarget::File),
    }
}

// === as resolved ===

/// Fills in what depends on the machine and judges what depends on two keys.
fn resolve(
    root: &Node,
    report: &Report,
    insecure: bool,
    read_secret: impl Fn(&Path) -> Result<String, (String, &'static str)>,
) -> Option<NodeConfig> {
    let (file, sections) = read(root, report)?;
    let at = |section: &'static str, key: &str, problem: String, suggestion: &str| {
        let place = sections.get(section).map_or(Place::default(), |section| section.place(key));
        report.add(place, &format!("{section}.{key}"), problem, Some(suggestion.to_owned()));
    };
    let name = file.name.clone().unwrap_or_else(host_name);
    let admin_listen = file.admin_listen.unwrap_or(SocketAddr::new(LOOPBACK, 7070));
    let peer_listen = file.peer_listen.unwrap_or(SocketAddr::new(LOOPBACK, 7170));
    let peer_secret = match &file.peer_secret_file {
        Some(path) => match read_secret(path) {
            Ok(secret) => Some(Secret(secret)),
            Err((problem, suggestion)) => {
                at("peer", "secret_file", problem, suggestion);
                None
            }
        },
        None => None,
    };
    if !insecure && !is_loopback(admin_listen) && !asks_who_calls(&file) {
        let problem = format!("{admin_listen} is not loopback, and `admin.tokens_file` is missing");
        let suggestion = "add admin.tokens_file (`gogate token new` makes its entries) or admin.tls with client_ca, or pass --insecure";
        at("admin", "listen", problem, suggestion);
    }
    if !insecure && !is_loopback(peer_listen) && file.peer_secret_file.is_none() && file.peer_tls.is_none() {
        let problem = format!("{peer_listen} is not loopback, and `peer.secret_file` is missing");
        let suggestion =
            "add peer.secret_file (a file with the same secret on all nodes) or peer.tls, or pass --insecure";
        at("peer", "listen", problem, suggestion);
    }
    if file.cluster.is_some() && file.peer_advertise.is_none() && peer_listen.ip().is_unspecified() {
        let problem = format!("missing: other nodes cannot reach this one at {peer_listen}");
        at("peer", "advertise", problem, "add peer.advertise: this node's own address, as 10.0.0.1:7170");
    }
    let peer_advertise = file.peer_advertise.clone().unwrap_or_else(|| peer_listen.to_string());
    let cluster = file.cluster.as_ref().map(|cluster| {
        let (cluster, problem) = resolve_cluster(cluster, &peer_advertise);
        if let Some((key, problem, suggestion)) = problem {
            at("cluster", key, problem, suggestion);
        }
        cluster
    });
    let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Some(NodeConfig {
        data_dir: file.data_dir.clone().unwrap_or_else(|| Path::new("./data").join(&name)),
        name,
        workers: if file.workers == 0 { cores() } else { file.workers },
        admin_listen,
        admin_tokens_file: file.admin_tokens_file,
        admin_tls: file.admin_tls,
        admin_change_rate: file.admin_change_rate.unwrap_or(CHANGE_RATE_DEFAULT),
        peer_tls: file.peer_tls,
        peer_listen,
        peer_advertise,
        peer_secret,
        cluster,
        bind: file.bind,
        gateway_watch: file.gateway_watch.unwrap_or(file.gateway_file.is_some()),
        gateway_file: file.gateway_file,
        drain_wait: file.drain_wait.unwrap_or(Duration::from_secs(5)),
        drain_deadline: file.drain_deadline.unwrap_or(Duration::from_secs(30)),
        log: LogConfig {
            level: file.log_level.unwrap_or_else(|| "info".into()),
            json: file.log_json,
            access: file.log_access.unwrap_or_default(),
        },
        insecure,
    })
}

fn asks_who_calls(file: &NodeFile) -> bool {
    file.admin_tokens_file.is_some() || file.admin_tls.as_ref().is_some_and(|tls| tls.ca.is_some())
}

type Refusal = (&'static str, String, &'static str);

/// `expect` defaults to the number of peers, this node counted once whether it is listed or not.
fn resolve_cluster(file: &ClusterFile, advertise: &str) -> (ClusterConfig, Option<Refusal>) {
    let is_listed = file.peers.iter().any(|peer| peer == advertise);
    let nodes = file.peers.len() + usize::from(!is_listed);
    let role = file.role.unwrap_or(Role::Voter);
    let expect = if file.join { 0 } else { file.expect.unwrap_or(nodes.min(9)) };
    let problem = if file.join && file.expect.is_some() {
        let problem = "a node that joins forms no cluster, so it expects nobody".to_owned();
        Some(("expect", problem, "remove cluster.expect, or cluster.join"))
    } else if file.join {
        None
    } else if role == Role::Learner && file.peers.is_empty() {
        Some(("peers", "a learner has no peer to follow".to_owned(), "add cluster.peers"))
    } else if expect > nodes {
        let problem = format!("{expect} nodes are expected, but `cluster.peers` and this node are {nodes}");
        Some(("expect", problem, "list all peers in cluster.peers, or lower cluster.expect"))
    } else {
        None
    };
    let name = file.name.clone().unwrap_or_default();
    (ClusterConfig { name, expect, peers: file.peers.clone(), role }, problem)
}

fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

/// The secret's file, without the space around it.
fn secret(path: &Path) -> Result<String, (String, &'static str)> {
    let shown = path.display();
    let bytes = yaml::read_at_most(path, SECRET_BYTES_MAX + 1).map_err(|error| {
        (format!("{shown} cannot be read: {error}"), "write the shared secret into that file")
    })?;
    if bytes.len() > SECRET_BYTES_MAX {
        return Err((format!("{shown} has more than {SECRET_BYTES_MAX} bytes"), "name the right file"));
    }
    let text = std::str::from_utf8(&bytes).map(str::trim);
    match text {
        Ok("") => Err((format!("{shown} is empty"), "write the shared secret into it")),
        Ok(text) if text.bytes().all(|b| b.is_ascii_graphic()) => Ok(text.to_owned()),
        Ok(_) | Err(_) => {
            let suggestion = "write one line of printable ASCII, as from `openssl rand -hex 32`";
            Err((format!("{shown} holds more than one word of printable characters"), suggestion))
        }
    }
}

/// The machine's name as a node's name, or `gogate`.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if super::field::check_name(name).is_ok() { name.to_owned() } else { "gogate".into() }
}

#[cfg(test)]
#[path = "tests/node_file.rs"]
mod tests;
