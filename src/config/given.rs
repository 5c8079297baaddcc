//! What variables and flags set, put into the node file's tree.
//!
//! Job: `GOGATE_CLUSTER_PEERS=a:1,b:1` and `--set cluster.peers=a:1,b:1` become values of the tree at
//! `cluster.peers`, whose place says where they came from. Invariant: a later one wins. Neighbour: `node_file`
//! walks the tree and checks them with everything else.

use super::{
    field::is_null,
    problem::{Place, Problem, nearest, shown},
    yaml::{Node, Style, Value},
};

/// Every path that a variable or a flag may set, beside `bind.<listener>`.
pub(super) const PATHS: &[&str] = &[
    "node.name",
    "node.data_dir",
    "node.workers",
    "admin.listen",
    "admin.tokens_file",
    "admin.tls.cert",
    "admin.tls.key",
    "admin.tls.client_ca",
    "admin.change_rate",
    "peer.listen",
    "peer.advertise",
    "peer.secret_file",
    "peer.tls.cert",
    "peer.tls.key",
    "peer.tls.ca",
    "cluster.name",
    "cluster.expect",
    "cluster.peers",
    "cluster.role",
    "gateway.file",
    "gateway.watch",
    "drain.wait",
    "drain.deadline",
    "log.level",
    "log.format",
    "log.access",
    "telemetry.otlp_endpoint",
];

/// Variables that the command line reads itself.
const COMMAND_LINE_VARIABLES: &[&str] =
    &["GOGATE_ADMIN", "GOGATE_TOKEN", "GOGATE_CA", "GOGATE_CERT", "GOGATE_KEY", "GOGATE_CONFIG"];

/// What `gogate-cluster` reads in a build that can have a bug put in; any other build refuses it.
const BUG_VARIABLE: &str = "GOGATE_BUG";

/// What variables and flags set, in the order in which later ones win.
#[derive(Default)]
pub struct Given {
    /// A value's place is line 0 and, as its column, which of `sources` it has, from 1.
    values: Vec<(String, Node)>,
    sources: Vec<String>,
    problems: Vec<Problem>,
}

// === impl Given ===

impl Given {
    /// Takes a variable of the environment; those that are not gogate's are left alone.
    pub fn variable(&mut self, name: &str, value: &str, file: Option<&Node>) {
        let Some(rest) = name.strip_prefix("GOGATE_") else { return };
        // An empty variable is as good as none: compose files and shells leave such behind.
        if value.is_empty() || COMMAND_LINE_VARIABLES.contains(&name) || is_service_link(rest) {
            return;
        }
        if cfg!(feature = "bugs") && name == BUG_VARIABLE {
            return;
        }
        if let Some(path) = PATHS.iter().find(|path| variable_of(path) == name) {
            return self.put(path, value, name.to_owned());
        }
        if let Some(listener) = rest.strip_prefix("BIND_").filter(|listener| !listener.is_empty()) {
            return self.put(&format!("bind.{}", bound_listener(listener, file)), value, name.to_owned());
        }
        let variables: Vec<String> = PATHS.iter().map(|path| variable_of(path)).collect();
        let known = variables.iter().map(String::as_str).chain(COMMAND_LINE_VARIABLES.iter().copied());
        let suggestion = match nearest(name, known) {
            Some(near) => format!("did you mean {near}?"),
            None => {
                "unset it; variables are GOGATE_ and a key's path in capitals, as GOGATE_NODE_NAME".into()
            }
        };
        self.refuse(name.to_owned(), "unknown variable".into(), suggestion);
    }

    /// Takes `key=value` of a `--set` flag.
    pub fn flag(&mut self, assignment: &str) {
        let source = format!("--set {}", shown(assignment));
        let Some((path, value)) = assignment.split_once('=') else {
            return self.refuse(source, "expected key=value".into(), "as --set node.name=n1".into());
        };
        let is_bind = path.strip_prefix("bind.").is_some_and(|listener| !listener.is_empty());
        if is_bind || PATHS.contains(&path) {
            return self.put(path, value, source);
        }
        let suggestion = match nearest(path, PATHS.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => "a key is a path as in the node file: node.name".into(),
        };
        self.refuse(source, format!("unknown key `{}`", shown(path)), suggestion);
    }

    /// Puts all values into a tree.
    pub fn fill(&mut self, tree: &mut Node) {
        for (path, node) in std::mem::take(&mut self.values) {
            insert(tree, &path, node);
        }
    }

    /// The variables and flags that mean nothing.
    pub fn into_problems(self) -> Vec<Problem> {
        self.problems
    }

    fn put(&mut self, path: &str, value: &str, source: String) {
        self.sources.push(source);
        let place = Place { line: 0, column: self.sources.len() };
        let scalar = |text: &str| {
            let style = if text.is_empty() { Style::Plain } else { Style::Given };
            Node { place, value: Value::Scalar { text: text.to_owned(), style } }
        };
        let node = if path == "cluster.peers" && !value.is_empty() {
            let items = value.split(',').map(str::trim).filter(|item| !item.is_empty());
            Node { place, value: Value::List(items.map(scalar).collect()) }
        } else {
            scalar(value)
        };
        self.values.push((path.to_owned(), node));
    }

    fn refuse(&mut self, source: String, problem: String, suggestion: String) {
        self.problems.push(Problem { source: Some(source), ..Problem::general(problem, Some(suggestion)) });
    }

    /// Says where the value came from that a problem is about.
    pub fn name_source(&self, problem: &mut Problem) {
        if problem.line == 0 && problem.column > 0 {
            problem.source = self.sources.get(problem.column - 1).cloned();
            problem.column = 0;
        }
    }
}

/// `cluster.peers` → `GOGATE_CLUSTER_PEERS`.
fn variable_of(path: &str) -> String {
    format!("GOGATE_{}", capitals(path))
}

fn capitals(path: &str) -> String {
    path.to_ascii_uppercase().replace(['.', '-'], "_")
}

/// The listener that a variable means: one that the file binds, whatever its case, or else in lower case.
fn bound_listener(name: &str, file: Option<&Node>) -> String {
    let bound = file.and_then(|root| child(root, "bind")).map(|bind| &bind.value);
    if let Some(Value::Map(pairs)) = bound {
        for (key, _) in pairs {
            if let Value::Scalar { text, .. } = &key.value
                && capitals(text) == name
            {
                return text.clone();
            }
        }
    }
    name.to_ascii_lowercase()
}

/// Kubernetes sets `GOGATE_PORT`, `GOGATE_SERVICE_HOST`, `GOGATE_ADMIN_PORT_7070_TCP_ADDR` and so on in every pod
/// beside services called `gogate` or `gogate-admin`: they are not ours.
fn is_service_link(rest: &str) -> bool {
    if rest.starts_with("BIND_") {
        return false;
    }
    let ends = ["SERVICE_HOST", "SERVICE_PORT", "PORT"];
    ends.iter().any(|end| rest == *end || rest.ends_with(&format!("_{end}")))
        || rest.contains("SERVICE_PORT_")
        || format!("_{rest}").split_once("_PORT_").is_some_and(|(_, tail)| {
            let digits = tail.bytes().take_while(u8::is_ascii_digit).count();
            let tail = &tail[digits..];
            digits > 0 && ["_TCP", "_UDP", "_SCTP"].iter().any(|protocol| tail.starts_with(protocol))
        })
}

/// An empty mapping.
pub fn map(place: Place) -> Node {
    Node { place, value: Value::Map(Vec::new()) }
}

/// The value of a key of a mapping.
pub fn child<'a>(node: &'a Node, key: &str) -> Option<&'a Node> {
    let Value::Map(pairs) = &node.value else { return None };
    let is_key = |node: &Node| matches!(&node.value, Value::Scalar { text, .. } if text == key);
    pairs.iter().find(|(node, _)| is_key(node)).map(|(_, value)| value)
}

/// Sets the value of a path, making the sections on the way that are not there.
fn insert(tree: &mut Node, path: &str, node: Node) {
    // A section that is no mapping is reported by the walk; nothing can be put into it.
    if is_null(tree) {
        tree.value = Value::Map(Vec::new());
    }
    let Value::Map(pairs) = &mut tree.value else { return };
    // Only the first dot divides `bind.<listener>`: a listener's name may have dots.
    let (key, rest) = match path.split_once('.') {
        Some((key, rest)) => (key, Some(rest)),
        None => (path, None),
    };
    let is_key = |node: &Node| matches!(&node.value, Value::Scalar { text, .. } if text == key);
    let index = match pairs.iter().position(|(node, _)| is_key(node)) {
        Some(index) => index,
        None => {
            let value = Value::Scalar { text: key.to_owned(), style: Style::Quoted };
            pairs.push((Node { place: node.place, value }, map(node.place)));
            pairs.len() - 1
        }
    };
    match rest {
        Some(rest) if key == "bind" => insert_leaf(&mut pairs[index].1, rest, node),
        Some(rest) => insert(&mut pairs[index].1, rest, node),
        None => {
            pairs[index].0.place = node.place;
            pairs[index].1 = node;
        }
    }
}

fn insert_leaf(tree: &mut Node, key: &str, node: Node) {
    if is_null(tree) {
        tree.value = Value::Map(Vec::new());
    }
    let Value::Map(pairs) = &mut tree.value else { return };
    let is_key = |node: &Node| matches!(&node.value, Value::Scalar { text, .. } if text == key);
    pairs.retain(|(node, _)| !is_key(node));
    let value = Value::Scalar { text: key.to_owned(), style: Style::Quoted };
    pairs.push((Node { place: node.place, value }, node));
}
