//! What the proxy's tests stand between: an endpoint that behaves as badly as a test wants, a data plane, and a
//! client that sends bytes as they are.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use gogate::{
    config::{
        check,
        document::{Action, Document, Endpoint, Listener, Match, PathPattern, Route, Service},
        node::AccessTarget,
    },
    proxy::{Proxy, ProxyConfig, RoutingTable},
    telemetry::access_log::AccessLog,
};
use socket2::SockRef;

/// Nothing in these tests takes longer, however busy the machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// One HTTP message.
#[derive(Debug, Clone, Default)]
pub struct Message {
    /// The first line.
    pub start: String,
    /// In order, names in lower case.
    pub fields: Vec<(String, String)>,
    /// After chunks are put together.
    pub body: Vec<u8>,
    /// Whether it ended as its framing said.
    pub whole: bool,
}

/// An endpoint; each connection is a thread that runs the test's handler.
#[derive(Debug)]
pub struct Upstream {
    pub address: SocketAddr,
    pub connections: Arc<AtomicUsize>,
}

/// A connection as an [`Upstream`]'s handler and a test's client see it.
#[derive(Debug)]
pub struct Peer(pub BufReader<TcpStream>);

/// A running data plane.
#[derive(Debug)]
pub struct Gateway {
    pub proxy: Arc<Proxy>,
    pub runtime: tokio::runtime::Runtime,
}

// === impl Message ===

impl Message {
    pub fn status(&self) -> u16 {
        self.start.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0)
    }

    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(known, _)| known == name).map(|(_, value)| &**value)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

// === impl Upstream ===

impl Upstream {
    pub fn start(handler: impl Fn(Peer) + Send + Sync + 'static) -> Upstream {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let (counted, handler) = (Arc::clone(&connections), Arc::new(handler));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                counted.fetch_add(1, Ordering::SeqCst);
                let handler = Arc::clone(&handler);
                std::thread::spawn(move || handler(Peer::new(stream)));
            }
        });
        Upstream { address, connections }
    }

    /// Answers every request with its own head and body as text.
    pub fn echo() -> Upstream {
        Upstream::start(|mut peer| {
            while let Some(request) = peer.request() {
                let fields: String =
                    request.fields.iter().map(|(name, value)| format!("{name}: {value}\n")).collect();
                let body = format!("{}\n{fields}\n{}", request.start, request.text());
                peer.send(&format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()));
                if !request.start.starts_with("HEAD") {
                    peer.send(&body);
                }
            }
        })
    }

    /// Reads a request on each connection, then sends these bytes and closes.
    pub fn says(answer: &'static str) -> Upstream {
        Upstream::start(move |mut peer| {
            if peer.request().is_some() {
                peer.send(answer);
            }
        })
    }
}

// === impl Peer ===

impl Peer {
    pub fn new(stream: TcpStream) -> Peer {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Peer(BufReader::new(stream))
    }

    pub fn connect(address: SocketAddr) -> Peer {
        Peer::new(TcpStream::connect(address).unwrap())
    }

    /// Sends bytes as they are; a peer that has gone is noticed when reading.
    pub fn send(&mut self, text: &str) {
        let _ = self.0.get_mut().write_all(text.as_bytes());
    }

    pub fn get(&mut self, path: &str) -> Message {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: gate.example\r\n\r\n"));
        self.answer()
    }

    /// The next request, if the peer sends one.
    pub fn request(&mut self) -> Option<Message> {
        let message = self.message(true, false);
        message.whole.then_some(message)
    }

    /// The answer to anything but HEAD.
    pub fn answer(&mut self) -> Message {
        self.message(false, false)
    }

    pub fn answer_to_head(&mut self) -> Message {
        self.message(false, true)
    }

    /// Reads the head of a request and not its body.
    pub fn head(&mut self) {
        while self.line().is_some_and(|line| !line.is_empty()) {}
    }

    /// Whether the other side has closed.
    pub fn is_closed(&mut self) -> bool {
        match self.0.read(&mut [0]) {
            Ok(read) => read == 0,
            Err(error) => error.kind() == ErrorKind::ConnectionReset,
        }
    }

    /// Goes without an end.
    pub fn reset(self) {
        SockRef::from(self.0.get_ref()).set_linger(Some(Duration::ZERO)).unwrap();
    }

    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        match self.0.read_line(&mut line) {
            Ok(read) if read > 0 => Some(line.trim_end_matches(['\r', '\n']).to_owned()),
            _ => None,
        }
    }

    fn message(&mut self, is_request: bool, no_body: bool) -> Message {
        let mut message = Message::default();
        let Some(start) = self.line() else { return message };
        message.start = start;
        loop {
            match self.line() {
                None => return message,
                Some(line) if line.is_empty() => break,
                Some(line) => {
                    let (name, value) = line.split_once(':').unwrap_or((&line, ""));
                    message.fields.push((name.to_lowercase(), value.trim().to_owned()));
                }
            }
        }
        let bodiless = no_body || matches!(message.status(), 100..=199 | 204 | 304) && !is_request;
        if bodiless {
            message.whole = true;
        } else if message.field("transfer-encoding") == Some("chunked") {
            message.whole = self.chunks(&mut message);
        } else if let Some(length) = message.field("content-length").and_then(|text| text.parse().ok()) {
            let mut body = vec![0; length];
            message.whole = self.0.read_exact(&mut body).is_ok();
            message.body = body;
        } else if is_request {
            message.whole = true;
        } else {
            message.whole = self.0.read_to_end(&mut message.body).is_ok();
        }
        message
    }

    /// The next chunk of a body.
    pub fn chunk(&mut self) -> Vec<u8> {
        let size = self.line().and_then(|line| usize::from_str_radix(&line, 16).ok()).unwrap();
        let mut chunk = vec![0; size + 2];
        self.0.read_exact(&mut chunk).unwrap();
        chunk.truncate(size);
        chunk
    }

    /// Reads chunks and trailers; trailers join the fields.
    fn chunks(&mut self, message: &mut Message) -> bool {
        loop {
            let Some(size) = self.line().and_then(|line| usize::from_str_radix(&line, 16).ok()) else {
                return false;
            };
            if size == 0 {
                break;
            }
            let mut chunk = vec![0; size + 2];
            if self.0.read_exact(&mut chunk).is_err() {
                return false;
            }
            message.body.extend_from_slice(&chunk[..size]);
        }
        loop {
            match self.line() {
                None => return false,
                Some(line) if line.is_empty() => return true,
                Some(line) => {
                    let (name, value) = line.split_once(':').unwrap_or((&line, ""));
                    message.fields.push((name.to_lowercase(), value.trim().to_owned()));
                }
            }
        }
    }
}

// === impl Gateway ===

impl Gateway {
    /// A data plane with this document in force.
    pub fn start(document: &Document) -> Gateway {
        Gateway::start_with(2, Duration::ZERO, document)
    }

    pub fn start_with(workers: usize, drain_wait: Duration, document: &Document) -> Gateway {
        Gateway::start_config(workers, drain_wait, PATIENCE, document)
    }

    /// One worker whose drain takes no longer than this.
    pub fn start_draining(drain_deadline: Duration, document: &Document) -> Gateway {
        Gateway::start_config(1, Duration::ZERO, drain_deadline, document)
    }

    /// One worker with an access log, which the test closes to read it.
    pub fn start_logging(target: &AccessTarget, document: &Document) -> (Gateway, AccessLog) {
        let log = AccessLog::open(target, true).unwrap().unwrap();
        let config = ProxyConfig { access_log: Some(log.handle()), ..config(1, Duration::ZERO, PATIENCE) };
        (Gateway::start_proxy(config, document), log)
    }

    fn start_config(
        workers: usize,
        drain_wait: Duration,
        drain_deadline: Duration,
        document: &Document,
    ) -> Gateway {
        Gateway::start_proxy(config(workers, drain_wait, drain_deadline), document)
    }

    fn start_proxy(config: ProxyConfig, document: &Document) -> Gateway {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let gateway = Gateway { proxy: Arc::new(Proxy::start(config).unwrap()), runtime };
        gateway.publish(document);
        gateway
    }

    pub fn publish(&self, document: &Document) {
        let previous = self.proxy.table();
        let table =
            RoutingTable::compile(previous.version() + 1, document, &BTreeMap::new(), &previous).unwrap();
        self.runtime.block_on(self.proxy.publish(table)).unwrap();
    }

    pub fn address(&self) -> SocketAddr {
        self.proxy.addresses()["web"]
    }

    pub fn client(&self) -> Peer {
        Peer::connect(self.address())
    }

    /// The metrics as Prometheus would read them.
    pub fn metrics(&self) -> String {
        let families = self.runtime.block_on(self.proxy.gather());
        prometheus::TextEncoder::new().encode_to_string(&families).unwrap()
    }

    /// Waits until the metrics hold this line.
    pub fn await_metric(&self, line: &str) {
        eventually(line, || {
            let metrics = self.metrics();
            if metrics.contains(line) { Ok(()) } else { Err(metrics) }
        });
    }
}

fn config(workers: usize, drain_wait: Duration, drain_deadline: Duration) -> ProxyConfig {
    ProxyConfig { workers, bind: BTreeMap::new(), drain_wait, drain_deadline, access_log: None }
}

/// Asks until it is so, and says what was seen last if it never is.
#[track_caller]
pub fn eventually<T>(what: &str, mut ask: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(seen) if Instant::now() > deadline => panic!("not in time: {what}; last seen: {seen}"),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// A document: everything on listener `web` goes to `service`, which has these endpoints.
pub fn document(endpoints: &[SocketAddr]) -> Document {
    let mut document = Document::default();
    document.listeners.insert("web".to_owned(), Listener::http("127.0.0.1:0".parse().unwrap()));
    let endpoints =
        endpoints.iter().map(|address| Endpoint { address: address.to_string(), weight: 1 }).collect();
    let service = Service { endpoints, ..Service::default() };
    document.services.insert("service".to_owned(), service);
    document.routes.push(route("all", PathPattern::Any, &[]));
    document
}

/// A document as an operator writes it; listeners have port 0.
pub fn yaml(text: &str) -> Document {
    check::document(text).unwrap_or_else(|problems| panic!("{problems:#?}"))
}

/// The service of [`document`].
pub fn service(document: &mut Document) -> &mut Service {
    document.services.get_mut("service").unwrap()
}

/// A route to `service`.
pub fn route(name: &str, path: PathPattern, methods: &[&str]) -> Route {
    let methods = methods.iter().map(|&method| method.to_owned()).collect();
    Route {
        name: name.to_owned(),
        listeners: Vec::new(),
        matches: Match { path, methods, ..Match::default() },
        action: Action::Service("service".to_owned()),
        mirror: None,
        allow_encoded_slash: false,
        policies: Vec::new(),
        timeout: None,
        retries: None,
    }
}
