//! Policies that ask who it is by a key, a password or another service: what a client and an endpoint see of them.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, atomic::Ordering},
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use gogate::config::node::AccessTarget;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::{
    jwt::{SECRET, bearer, good_claims, hs256, in_seconds},
    upstream::{Gateway, Message, Peer, Upstream, eventually, yaml},
};

/// `secret`, bcrypt at the least cost and argon2id.
const BCRYPT: &str = "$2b$05$xSDFDm4f40x70jJMg/StdO6u92XmuCB5.MBF3lSI0tlsTWkTKF/qO";
const ARGON2: &str =
    "$argon2id$v=19$m=1024,t=2,p=1$c2FsdHNhbHRzYWx0$RGrC2kghhmdFPTu+VWYImMCAKqufCVt9PjEVxccoErs";

/// An echo behind a gateway whose only route has policy `p`.
pub fn gateway(policy: &str) -> (Gateway, Upstream) {
    gateway_with(policy, "")
}

/// The same with further services.
pub fn gateway_with(policy: &str, services: &str) -> (Gateway, Upstream) {
    let upstream = Upstream::echo();
    let gateway = Gateway::start(&yaml(&document(policy, services, upstream.address)));
    (gateway, upstream)
}

pub fn document(policy: &str, services: &str, echo: SocketAddr) -> String {
    format!(
        "listeners: {{ web: {{ address: '127.0.0.1:0' }} }}
services: {{ api: {{ endpoints: [{{ address: '{echo}' }}] }}, {services} }}
routes: [{{ name: a, service: api, policies: [p] }}]
policies: {{ p: {{ {policy} }} }}
"
    )
}

/// A GET with these further header lines, each ended by CR LF.
pub fn ask(client: &mut Peer, path: &str, lines: &str) -> Message {
    client.send(&format!("GET {path} HTTP/1.1\r\nHost: gate.example\r\n{lines}\r\n"));
    client.answer()
}

pub fn basic(user: &str, password: &str) -> String {
    format!("Authorization: Basic {}\r\n", STANDARD.encode(format!("{user}:{password}")))
}

/// Puts a file into place at once, as a careful operator does.
pub fn replace(path: &Path, text: &str) {
    fs::write(path.with_extension("new"), text).unwrap();
    fs::rename(path.with_extension("new"), path).unwrap();
}

// === api_key ===

fn sha256(key: &str) -> String {
    Sha256::digest(key).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn an_api_key_lets_in_whose_it_is_and_goes_no_further() {
    let (gateway, _upstream) = gateway(&format!(
        "api_key: {{ query: key, keys: [{{ name: shop, sha256: {} }}, {{ name: bank, sha256: {} }}] }}",
        sha256("k-shop"),
        sha256("k bank+%")
    ));
    let mut client = gateway.client();
    let lies = "X-Consumer: root\r\nX_Consumer: root\r\n";
    for (path, lines, name) in [
        ("/?a=1&b", "X-API-Key: k-shop\r\n", "shop"),
        ("/?a=1&key=k-shop&b", "", "shop"),
        ("/?key=k%20bank%2B%25&a=1&b", "", "bank"),
        ("/?a=1&%6bey=k-shop&b", "", "shop"),
        ("/?a=1&b", "x-api-key: k bank+%\r\n", "bank"),
    ] {
        let answer = ask(&mut client, path, &format!("{lies}{lines}"));
        let seen = answer.text();
        assert_eq!(answer.status(), 200, "{path} {lines}");
        assert!(seen.starts_with("GET /?a=1&b HTTP/1.1\n"), "{seen}");
        assert!(seen.contains(&format!("x-consumer: {name}\n")) && !seen.contains("root"), "{seen}");
        assert!(!seen.contains("k-shop") && !seen.contains("x-api-key"), "{seen}");
    }
    for (path, lines) in [
        ("/", ""),
        ("/", "X-API-Key: \r\n"),
        ("/", "X-API-Key: k-shop2\r\n"),
        ("/", "X-API-Key: k-sho\r\n"),
        ("/", "X-API-Key: k-shop\r\nX-API-Key: k-shop\r\n"),
        ("/?key=k-shop", "X-API-Key: k-shop\r\n"),
        ("/?key=k-shop&key=k-shop", ""),
        // The endpoint would take the one that is not taken away.
        ("/?key=k-shop&%6bey=other", ""),
        ("/?%6Bey=k-shop&ke%79=k-shop", ""),
        ("/?k%65y=k-shop", "X-API-Key: k-shop\r\n"),
        ("/?key=", ""),
        ("/", "Authorization: ApiKey k-shop\r\n"),
    ] {
        let answer = ask(&mut client, path, lines);
        assert_eq!(
            (answer.status(), answer.field("www-authenticate")),
            (401, Some("ApiKey realm=\"gogate\"")),
            "{path} {lines}"
        );
        assert!(!answer.text().contains("k-sho"));
    }
}

#[test]
fn api_keys_in_a_file_come_and_go_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys");
    replace(&file, &format!("# ours\nshop:{}\n", sha256("one")));
    let (gateway, _upstream) = gateway(&format!(
        "api_key: {{ header: X-Key, forward_name: X-Who, forward_credential: true, keys_file: '{}' }}",
        file.display()
    ));
    let mut client = gateway.client();
    let seen = ask(&mut client, "/", "X-Key: one\r\n").text();
    assert!(seen.contains("x-key: one\n") && seen.contains("x-who: shop\n"), "{seen}");
    replace(&file, &format!("shop:{}\n", sha256("two")));
    eventually("the other key", || {
        match (
            ask(&mut client, "/", "X-Key: two\r\n").status(),
            ask(&mut client, "/", "X-Key: one\r\n").status(),
        ) {
            (200, 401) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    // A file that is broken later changes nothing.
    replace(&file, "two");
    std::thread::yield_now();
    assert_eq!(ask(&mut client, "/", "X-Key: two\r\n").status(), 200);
}

// === basic_auth ===

#[test]
fn a_password_lets_in_its_user_and_goes_no_further() {
    let (gateway, _upstream) =
        gateway(&format!("basic_auth: {{ users: {{ ada: '{BCRYPT}', grace: '{ARGON2}' }}, realm: shop }}"));
    let mut client = gateway.client();
    for user in ["ada", "grace", "ada"] {
        let answer = ask(&mut client, "/", &format!("X-User: root\r\n{}", basic(user, "secret")));
        let seen = answer.text();
        assert_eq!(answer.status(), 200, "{user}");
        assert!(seen.contains(&format!("x-user: {user}\n")) && !seen.contains("root"), "{seen}");
        assert!(!seen.contains("authorization"), "{seen}");
    }
    for lines in [
        String::new(),
        basic("ada", "Secret"),
        basic("ada", ""),
        basic("eve", "secret"),
        basic("", "secret"),
        basic("ADA", "secret"),
        "Authorization: Basic !!!\r\n".to_owned(),
        format!("Authorization: Basic {}\r\n", STANDARD.encode("ada")),
        format!("Authorization: Bearer {}\r\n", STANDARD.encode("ada:secret")),
    ] {
        let answer = ask(&mut client, "/", &lines);
        let challenge = "Basic realm=\"shop\", charset=\"UTF-8\"";
        assert_eq!((answer.status(), answer.field("www-authenticate")), (401, Some(challenge)), "{lines}");
    }
}

#[test]
fn users_in_a_file_come_and_go_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("users");
    replace(&file, &format!("ada:{BCRYPT}\n"));
    let (gateway, _upstream) = gateway(&format!(
        "basic_auth: {{ users_file: '{}', forward_user: X-Who, forward_credential: true }}",
        file.display()
    ));
    let mut client = gateway.client();
    let seen = ask(&mut client, "/", &basic("ada", "secret")).text();
    assert!(seen.contains("x-who: ada\n") && seen.contains("authorization: Basic"), "{seen}");
    replace(&file, &format!("grace:{ARGON2}\n"));
    // What was remembered of her password does not outlive its user.
    eventually("the other user", || {
        match (
            ask(&mut client, "/", &basic("grace", "secret")).status(),
            ask(&mut client, "/", &basic("ada", "secret")).status(),
        ) {
            (200, 401) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

#[test]
fn passwords_are_hashed_beside_the_requests_of_others() {
    let slow = "$2b$12$xSDFDm4f40x70jJMg/StdO6u92XmuCB5.MBF3lSI0tlsTWkTKF/qO";
    let upstream = Upstream::echo();
    let text = document(&format!("basic_auth: {{ users: {{ ada: '{slow}' }} }}"), "", upstream.address)
        .replace("routes: [", "routes: [{ name: open, match: { path: /open }, service: api }, ");
    let gateway = Gateway::start_with(1, Duration::ZERO, &yaml(&text));
    let answered: Vec<_> = (0..4)
        .map(|number| {
            let mut client = gateway.client();
            let credentials = basic("ada", &number.to_string());
            client.send(&format!("GET / HTTP/1.1\r\nHost: gate.example\r\n{credentials}\r\n"));
            std::thread::spawn(move || (client.answer().status(), Instant::now()))
        })
        .collect();
    // The only worker has the others' requests first.
    assert_eq!(ask(&mut gateway.client(), "/open", "").status(), 200);
    let open = Instant::now();
    let answered: Vec<_> = answered.into_iter().map(|thread| thread.join().unwrap()).collect();
    assert!(answered.iter().all(|(status, _)| *status == 401), "{answered:?}");
    assert!(answered.iter().any(|(_, at)| *at > open), "a hash was in the way");
}

#[test]
fn more_passwords_than_can_be_hashed_are_shed() {
    let slow = "$2b$12$xSDFDm4f40x70jJMg/StdO6u92XmuCB5.MBF3lSI0tlsTWkTKF/qO";
    let (gateway, _upstream) = gateway(&format!("basic_auth: {{ users: {{ ada: '{slow}' }} }}"));
    let threads = std::thread::available_parallelism().unwrap().get().div_ceil(2);
    let mut clients: Vec<_> = (0..2 + 17 * threads).map(|_| gateway.client()).collect();
    for client in &mut clients {
        client.send(&format!("GET / HTTP/1.1\r\nHost: gate.example\r\n{}\r\n", basic("ada", "x")));
    }
    // Those who are not let wait hear so at once; the others leave and cost nothing more.
    gateway.await_metric("gogate_rejections_total{reason=\"auth_overload\"}");
}

#[test]
fn a_flood_of_passwords_from_one_network_leaves_a_place_for_others() {
    let users: Vec<_> = (0..10).map(|number| format!("u{number}: '{BCRYPT}'")).collect();
    let upstream = Upstream::echo();
    let policy = format!("basic_auth: {{ users: {{ {} }} }}", users.join(", "));
    let text = document(&policy, "", upstream.address) + "trusted_proxies: [127.0.0.1]\n";
    let gateway = Gateway::start(&yaml(&text));
    let from = |address: &str, user: &str, password: &str| {
        format!("X-Forwarded-For: {address}\r\n{}", basic(user, password))
    };
    // Twice as many as may wait and be hashed, over and over until the gateway is gone.
    let threads = std::thread::available_parallelism().unwrap().get().div_ceil(2);
    for number in 0..2 * 17 * threads {
        let mut client = gateway.client();
        let lines = from(&format!("2001:db8::{number:x}"), "u0", "wrong");
        std::thread::spawn(move || while ask(&mut client, "/", &lines).status() != 0 {});
    }
    gateway.await_metric("gogate_rejections_total{reason=\"auth_overload\"}");
    let mut client = gateway.client();
    for number in 0..10 {
        // Nobody of whom a worker remembers anything.
        let lines = from(&format!("2001:db8:0:1{number}::1"), &format!("u{number}"), "secret");
        assert_eq!(ask(&mut client, "/", &lines).status(), 200, "{number}");
    }
}

// === forward_auth ===

/// A service that answers each question with what `answers` says of it.
fn guard(answers: impl Fn(&Message) -> String + Send + Sync + 'static) -> Upstream {
    Upstream::start(move |mut peer| {
        while let Some(question) = peer.request() {
            let answer = answers(&question);
            peer.send(&answer);
        }
    })
}

fn guarded(guard: &Upstream, keys: &str) -> (Gateway, Upstream) {
    let service = format!("guard: {{ endpoints: [{{ address: '{}' }}] }}", guard.address);
    gateway_with(&format!("forward_auth: {{ service: guard, {keys} }}"), &service)
}

#[test]
fn another_service_lets_a_request_pass_and_says_whose_it_is() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let questions = Arc::clone(&asked);
    let guard = guard(move |question| {
        questions.lock().unwrap().push(question.clone());
        "HTTP/1.1 204 No Content\r\nX-User: ada\r\nX-Team: a\r\nX-Team: b\r\nX-Other: 1\r\n\r\n".to_owned()
    });
    let (gateway, _upstream) =
        guarded(&guard, "path: '/verify?full=1', response_headers: [X-User, X-Team, X-Gone]");
    let mut client = gateway.client();
    client.send(
        "POST /a/../b?c=1 HTTP/1.1\r\nHost: gate.example\r\nContent-Length: 5\r\nContent-Type: text/plain\r\nCookie: s=1\r\n\
         X-User: root\r\nx_user: root\r\nX-Gone: root\r\nX-Forwarded-Method: GET\r\nX_Forwarded_Uri: /open\r\n\r\nhello",
    );
    let answer = client.answer();
    let seen = answer.text();
    assert_eq!(answer.status(), 200, "{answer:?}");
    assert!(seen.starts_with("POST /b?c=1 HTTP/1.1\n") && seen.ends_with("\nhello"), "{seen}");
    for expected in ["x-user: ada\n", "x-team: a\n", "x-team: b\n", "cookie: s=1\n"] {
        assert!(seen.contains(expected), "{seen}");
    }
    assert!(!seen.contains("root") && !seen.contains("x-other"), "{seen}");

    let question = asked.lock().unwrap().remove(0);
    assert_eq!(question.start, "GET /verify?full=1 HTTP/1.1");
    for (name, value) in [
        ("x-forwarded-method", Some("POST")),
        ("x-forwarded-uri", Some("/b?c=1")),
        ("x-forwarded-host", Some("gate.example")),
        ("x-forwarded-proto", Some("http")),
        ("x-forwarded-for", Some("127.0.0.1")),
        ("cookie", Some("s=1")),
        ("content-length", None),
        ("content-type", None),
        ("transfer-encoding", None),
        ("x_forwarded_uri", None),
    ] {
        assert_eq!(question.field(name), value, "{name}: {question:?}");
    }
    assert_eq!(question.fields.iter().filter(|(name, _)| name == "x-forwarded-method").count(), 1);
    // The next one goes by the same connection.
    assert_eq!(ask(&mut client, "/", "").status(), 200);
    assert_eq!(guard.connections.load(Ordering::SeqCst), 1);
}

#[test]
fn only_the_fields_that_were_named_go_to_the_other_service() {
    let guard = guard(|question| {
        let names: Vec<_> = question.fields.iter().map(|(name, _)| name.clone()).collect();
        format!("HTTP/1.1 200 OK\r\nX-Seen: {}\r\nContent-Length: 2\r\n\r\nok", names.join(" "))
    });
    let (gateway, _upstream) =
        guarded(&guard, "request_headers: [Authorization], response_headers: [X-Seen]");
    let text = ask(&mut gateway.client(), "/", "Authorization: x\r\nCookie: s=1\r\nAccept: a/b\r\n").text();
    let seen = text.lines().find(|line| line.starts_with("x-seen: ")).unwrap();
    for expected in ["authorization", "host", "x-forwarded-for", "x-forwarded-uri", "x-request-id"] {
        assert!(seen.contains(expected), "{seen}");
    }
    assert!(!seen.contains("cookie") && !seen.contains("accept"), "{seen}");
}

#[test]
fn what_the_other_service_answers_is_the_clients_answer() {
    let guard = guard(|question| {
        let (status, more, body) = match question.field("x-forwarded-uri").unwrap_or_default() {
            "/login" => (
                "302 Found",
                "Location: https://login.example/\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n",
                "",
            ),
            "/401" => (
                "401 Unauthorized",
                "WWW-Authenticate: Digest realm=\"x\"\r\nConnection: X-Hop\r\nX-Hop: 1\r\n",
                "who?",
            ),
            "/500" => ("500 No", "", "broken"),
            _ => ("403 Forbidden", "", "no"),
        };
        let body = if body == "no" { "n".repeat(70 << 10) } else { body.to_owned() };
        format!("HTTP/1.1 {status}\r\n{more}Content-Length: {}\r\n\r\n{body}", body.len())
    });
    let (gateway, upstream) = guarded(&guard, "");
    let mut client = gateway.client();
    let answer = ask(&mut client, "/login", "");
    assert_eq!((answer.status(), answer.field("location")), (302, Some("https://login.example/")));
    assert_eq!(answer.fields.iter().filter(|(name, _)| name == "set-cookie").count(), 2);
    let answer = ask(&mut client, "/401", "");
    assert_eq!((answer.status(), answer.text().as_str()), (401, "who?"));
    assert_eq!((answer.field("www-authenticate"), answer.field("x-hop")), (Some("Digest realm=\"x\""), None));
    let answer = ask(&mut client, "/500", "");
    assert_eq!((answer.status(), answer.text().as_str()), (500, "broken"));
    // More than the gateway holds is left out.
    let answer = ask(&mut client, "/403", "");
    assert_eq!((answer.status(), answer.field("content-length"), answer.body.len()), (403, Some("0"), 0));
    client.send("HEAD /401 HTTP/1.1\r\nHost: gate.example\r\n\r\n");
    let answer = client.answer_to_head();
    assert_eq!((answer.status(), answer.field("content-length")), (401, Some("4")));
    assert_eq!(ask(&mut client, "/500", "").status(), 500);
    assert_eq!(upstream.connections.load(Ordering::SeqCst), 0, "nothing reached the endpoint");
    gateway.await_metric("gogate_rejections_total{reason=\"auth_denied\"} 6");
}

#[test]
fn nobody_passes_unasked() {
    let gone = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let silent = Upstream::start(|mut peer| {
        peer.request();
        // Until the gateway gives up.
        peer.is_closed();
    });
    let half = Upstream::says("HTTP/1.1 200 OK\r\nContent-");
    let nonsense = Upstream::says("yes, let them in\r\n\r\n");
    for address in [gone, silent.address, half.address, nonsense.address] {
        let service = format!("guard: {{ endpoints: [{{ address: '{address}' }}] }}");
        let (gateway, upstream) = gateway_with("forward_auth: { service: guard, timeout: 200ms }", &service);
        let mut client = gateway.client();
        let answer = ask(&mut client, "/", "");
        assert_eq!((answer.status(), answer.field("retry-after")), (503, Some("1")), "{answer:?}");
        assert_eq!(upstream.connections.load(Ordering::SeqCst), 0, "nothing reached the endpoint");
        gateway.await_metric("gogate_rejections_total{reason=\"auth_unavailable\"} 1");
    }
    let (gateway, _upstream) = gateway_with("forward_auth: { service: guard }", "guard: {}");
    assert_eq!(ask(&mut gateway.client(), "/", "").status(), 503);
}

#[test]
fn policies_that_ask_add_up() {
    let guard = guard(|question| {
        let status = if question.field("x-user") == Some("ada") { "204 Yes" } else { "403 No" };
        format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n")
            .replace("204 Yes\r\nContent-Length: 0\r\n", "204 Yes\r\n")
    });
    let service = format!("guard: {{ endpoints: [{{ address: '{}' }}] }}", guard.address);
    let (gateway, _upstream) = gateway_with(
        &format!(
            "forward_auth: {{ service: guard }}, api_key: {{ keys: [{{ name: shop, sha256: {} }}] }},
             jwt: {{ algorithms: [HS256], secret: '{SECRET}', forward_claims: {{ sub: X-User }} }},
             request_headers: {{ remove: [X-User] }}",
            sha256("k-shop")
        ),
        &service,
    );
    let mut client = gateway.client();
    let token = bearer(&hs256(&good_claims()));
    assert_eq!(ask(&mut client, "/", "X-API-Key: k-shop\r\n").status(), 401);
    assert_eq!(ask(&mut client, "/", &token).status(), 401);
    let other = bearer(&hs256(&json!({ "sub": "eve", "exp": in_seconds(60) })));
    assert_eq!(ask(&mut client, "/", &format!("{other}X-API-Key: k-shop\r\n")).status(), 403);
    let answer = ask(&mut client, "/", &format!("{token}X-API-Key: k-shop\r\n"));
    assert_eq!(answer.status(), 200);
    // Edits come after whoever asks, and have the last word.
    assert!(
        answer.text().contains("x-consumer: shop\n") && !answer.text().contains("x-user"),
        "{}",
        answer.text()
    );
}

#[test]
fn an_api_key_is_in_no_log() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("access.log");
    let upstream = Upstream::echo();
    let policy = format!("api_key: {{ query: key, keys: [{{ name: shop, sha256: {} }}] }}", sha256("k-shop"));
    let document = yaml(&document(&policy, "", upstream.address));
    let (gateway, log) = Gateway::start_logging(&AccessTarget::File(file.clone()), &document);
    let mut client = gateway.client();
    assert_eq!(ask(&mut client, "/?a=1&key=k-shop", "").status(), 200);
    assert_eq!(ask(&mut client, "/?a=1&key=k-shop2", "X-API-Key: k-shop\r\n").status(), 401);
    drop(client);
    gateway.runtime.block_on(async {
        gateway.proxy.drain().await;
        log.close().await;
    });
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains("/?a=1") && !text.contains("k-shop"), "{text}");
}
