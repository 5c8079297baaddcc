//! `jwt`: which tokens let a request pass, and where their keys come from.

use std::{
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use jsonwebtoken::{Algorithm, EncodingKey, crypto::sign};
use serde_json::{Value, json};

use crate::{
    auth::{ask, basic, document, gateway, replace},
    upstream::{Gateway, Upstream, eventually, yaml},
};

pub const SECRET: &str = "a secret of thirty-two bytes, ok";

pub fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

pub fn in_seconds(seconds: i64) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    i64::try_from(now).unwrap() + seconds
}

fn token(header: &Value, claims: &Value, algorithm: Algorithm, key: &EncodingKey) -> String {
    let part = |json: &Value| URL_SAFE_NO_PAD.encode(json.to_string());
    let message = format!("{}.{}", part(header), part(claims));
    let signature = sign(message.as_bytes(), key, algorithm).unwrap();
    format!("{message}.{signature}")
}

/// What an issuer that knows [`SECRET`] makes.
pub fn hs256(claims: &Value) -> String {
    token(&json!({ "alg": "HS256" }), claims, Algorithm::HS256, &EncodingKey::from_secret(SECRET.as_bytes()))
}

pub fn good_claims() -> Value {
    json!({ "sub": "ada", "exp": in_seconds(60) })
}

/// A key pair's token, and its JWK.
fn eddsa(key_id: &str, claims: &Value) -> String {
    let key = EncodingKey::from_ed_pem(include_bytes!("../data/ed25519.private.pem")).unwrap();
    token(&json!({ "alg": "EdDSA", "kid": key_id }), claims, Algorithm::EdDSA, &key)
}

fn eddsa_jwk(key_id: &str) -> Value {
    let pem = include_str!("../data/ed25519.public.pem");
    let der = STANDARD.decode(pem.lines().filter(|line| !line.starts_with('-')).collect::<String>()).unwrap();
    // The key is the end of its DER.
    let x = URL_SAFE_NO_PAD.encode(&der[der.len() - 32..]);
    json!({ "kty": "OKP", "crv": "Ed25519", "kid": key_id, "x": x })
}

#[test]
fn a_good_token_passes_and_anything_else_is_told_why() {
    let (gateway, _upstream) = gateway(&format!(
        "jwt: {{ algorithms: [HS256], secret: '{SECRET}', issuer: me, audience: [shop], realm: shop }}"
    ));
    let mut client = gateway.client();
    let claims = json!({ "sub": "ada", "iss": "me", "aud": ["shop"], "exp": in_seconds(60) });
    let good = bearer(&hs256(&claims));
    let answer = ask(&mut client, "/", &good);
    assert_eq!(answer.status(), 200, "{answer:?}");
    assert!(answer.text().contains(&good.trim_end().replace("Authorization", "authorization")));

    let answer = ask(&mut client, "/", "");
    assert_eq!(answer.status(), 401);
    // RFC 6750, section 3.1: no error where there was no token.
    assert_eq!(answer.field("www-authenticate"), Some("Bearer realm=\"shop\""));
    assert_eq!(answer.field("content-type"), Some("application/problem+json"));
    assert_eq!(answer.field("proxy-status"), Some("gogate; error=http_request_denied"));

    let with = |key: &str, value: Value| {
        let mut claims = claims.clone();
        claims[key] = value;
        bearer(&hs256(&claims))
    };
    let forged = token(
        &json!({ "alg": "HS256" }),
        &claims,
        Algorithm::HS256,
        &EncodingKey::from_secret(b"another secret of 32 bytes, no!!"),
    );
    let unsigned = format!(
        "{}.{}.",
        URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#),
        URL_SAFE_NO_PAD.encode(claims.to_string())
    );
    for (lines, error, why) in [
        (with("exp", in_seconds(-61).into()), "invalid_token", "the token has expired"),
        (with("nbf", in_seconds(120).into()), "invalid_token", "the token is not valid yet"),
        (with("iss", "you".into()), "invalid_token", "the token is of another issuer"),
        (with("aud", "bank".into()), "invalid_token", "the token is for another audience"),
        (bearer(&forged), "invalid_token", "the token's signature is wrong"),
        (bearer(&unsigned), "invalid_token", "the token's algorithm is not accepted here"),
        (bearer("x"), "invalid_token", "the token is malformed"),
        (bearer(&"x".repeat(17 << 10)), "invalid_token", "the token is too long"),
        ("Authorization: Bearer\r\n".to_owned(), "invalid_request", "Authorization is malformed"),
    ] {
        let answer = ask(&mut client, "/", &lines);
        let expected = format!("Bearer realm=\"shop\", error=\"{error}\", error_description=\"{why}\"");
        assert_eq!((answer.status(), answer.field("www-authenticate")), (401, Some(&*expected)), "{lines}");
    }
    gateway.await_metric("gogate_rejections_total{reason=\"unauthorized\"} 10");
}

#[test]
fn a_policy_says_how_exact_clocks_are_and_whether_tokens_must_end() {
    let status = |keys: &str, claims: Value| {
        let (gateway, _upstream) =
            gateway(&format!("jwt: {{ algorithms: [HS256], secret: '{SECRET}', {keys} }}"));
        ask(&mut gateway.client(), "/", &bearer(&hs256(&claims))).status()
    };
    let late = json!({ "exp": in_seconds(-5) });
    assert_eq!((status("", late.clone()), status("clock_skew: 1s", late)), (200, 401));
    let lasting = json!({ "sub": "ada" });
    assert_eq!((status("", lasting.clone()), status("require_exp: false", lasting)), (401, 200));
}

#[test]
fn claims_reach_the_endpoint_from_the_gateway_alone() {
    let (gateway, _upstream) = gateway(&format!(
        "jwt: {{ algorithms: [HS256], secret: '{SECRET}', optional: true, skip_paths: [/health, /public/*],
        forward_claims: {{ sub: X-User, roles: X-Roles }}, forward_credential: false }}"
    ));
    let mut client = gateway.client();
    let lies = "X-User: root\r\nx_user: root\r\nX-Roles: admin\r\nConnection: X-User\r\n";
    let claims = json!({ "sub": "ada", "roles": ["a", "b"], "exp": in_seconds(60) });
    let seen = ask(&mut client, "/", &format!("{lies}{}", bearer(&hs256(&claims)))).text();
    assert!(seen.contains("x-user: ada\n") && seen.contains("x-roles: [\"a\",\"b\"]\n"), "{seen}");
    assert!(!seen.contains("root") && !seen.contains("admin") && !seen.contains("authorization"), "{seen}");
    for path in ["/", "/health", "/public/x"] {
        let answer = ask(&mut client, path, lies);
        assert_eq!(answer.status(), 200, "{path}");
        assert!(
            !answer.text().contains("root") && !answer.text().contains("admin"),
            "{path}: {}",
            answer.text()
        );
    }
    // A claim that would end the field, or change on its way, is not sent.
    for name in ["a\r\nX-Roles: admin", "a\u{0}", " ada", "a\u{7f}"] {
        let answer = ask(&mut client, "/", &bearer(&hs256(&json!({ "sub": name, "exp": in_seconds(60) }))));
        assert_eq!(answer.status(), 401, "{name:?}");
    }
    // No token is no lie; a bad one is.
    assert_eq!(ask(&mut client, "/", &bearer("x")).status(), 401);
    assert_eq!(ask(&mut client, "/", &basic("ada", "x")).status(), 200);
}

#[test]
fn only_the_paths_that_were_named_are_skipped() {
    let (gateway, _upstream) = gateway(&format!(
        "jwt: {{ algorithms: [HS256], secret: '{SECRET}', skip_paths: [/health, /public/*] }}"
    ));
    let mut client = gateway.client();
    for (path, status) in [
        ("/health", 200),
        ("/health?x=1", 200),
        ("/%68ealth", 200),
        ("/x/../health", 200),
        ("/public/a/b", 200),
        ("/healthz", 401),
        ("/health/", 401),
        ("/health/x", 401),
        ("/HEALTH", 401),
        ("/public", 401),
        ("/publicity", 401),
        ("/public/../secret", 401),
        ("/public/%2e%2e/secret", 401),
        ("//public//..//secret", 401),
    ] {
        assert_eq!(ask(&mut client, path, "").status(), status, "{path}");
    }
}

#[test]
fn keys_in_files_are_read_again_when_they_change() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.json");
    replace(&file, &json!({ "keys": [eddsa_jwk("old")] }).to_string());
    let (gateway, _upstream) =
        gateway(&format!("jwt: {{ algorithms: [EdDSA], jwks_file: '{}' }}", file.display()));
    let mut client = gateway.client();
    let mut status = |key_id: &str| ask(&mut client, "/", &bearer(&eddsa(key_id, &good_claims()))).status();
    assert_eq!((status("old"), status("new")), (200, 401));
    replace(&file, &json!({ "keys": [eddsa_jwk("new")] }).to_string());
    eventually("the new key", || match (status("new"), status("old")) {
        (200, 401) => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

#[test]
fn every_source_of_keys_lets_in_its_own_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let pem = include_str!("../data/rsa.public.pem");
    let inline = pem.trim_end().replace('\n', "\\n");
    let rsa = EncodingKey::from_rsa_pem(include_bytes!("../data/rsa.private.pem")).unwrap();
    let rs256 = token(&json!({ "alg": "RS256" }), &good_claims(), Algorithm::RS256, &rsa);
    for (policy, token) in [
        (
            format!("algorithms: [HS256], secret_file: '{}'", write("secret", &format!("{SECRET}\n"))),
            hs256(&good_claims()),
        ),
        (format!("algorithms: [RS256, PS256], public_key_file: '{}'", write("key.pem", pem)), rs256.clone()),
        (format!("algorithms: [RS256], public_key: \"{inline}\""), rs256),
    ] {
        let (gateway, _upstream) = gateway(&format!("jwt: {{ {policy} }}"));
        let answer = ask(&mut gateway.client(), "/", &bearer(&token));
        assert_eq!(answer.status(), 200, "{policy}: {answer:?}");
    }
}

#[test]
fn a_file_that_cannot_be_used_stops_the_document_and_is_named() {
    let document = |path: &str| {
        yaml(&document(
            &format!("jwt: {{ algorithms: [RS256], jwks_file: '{path}' }}"),
            "",
            ([127, 0, 0, 1], 1).into(),
        ))
    };
    let compile = |path: &str| {
        let none = gogate::proxy::RoutingTable::default();
        let table = gogate::proxy::RoutingTable::compile(
            1,
            &document(path),
            &std::collections::BTreeMap::new(),
            &none,
        );
        table.unwrap_err().to_string()
    };
    let error = compile("/nowhere/keys.json");
    assert!(error.starts_with("policy p: cannot read /nowhere/keys.json: "), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.json");
    fs::write(&file, "s3cr3t").unwrap();
    let error = compile(&file.display().to_string());
    assert!(error.contains("this is not a JWK set") && !error.contains("s3cr3t"), "{error}");
}

/// An issuer's server: what it answers can be changed, and it counts.
struct Issuer {
    answer: Arc<Mutex<String>>,
    fetches: Arc<AtomicUsize>,
    upstream: Upstream,
}

impl Issuer {
    fn start(answer: &str) -> Issuer {
        let answer = Arc::new(Mutex::new(answer.to_owned()));
        let fetches = Arc::new(AtomicUsize::new(0));
        let (answers, counted) = (Arc::clone(&answer), Arc::clone(&fetches));
        let upstream = Upstream::start(move |mut peer| {
            if peer.request().is_some() {
                counted.fetch_add(1, Ordering::SeqCst);
                let answer = answers.lock().unwrap().clone();
                peer.send(&answer);
            }
        });
        Issuer { answer, fetches, upstream }
    }

    fn with_keys(ids: &[&str]) -> Issuer {
        Issuer::start(&Issuer::keys(ids))
    }

    fn keys(ids: &[&str]) -> String {
        let body = json!({ "keys": ids.iter().map(|id| eddsa_jwk(id)).collect::<Vec<_>>() }).to_string();
        format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nCache-Control: max-age=3600\r\n\r\n{body}",
            body.len()
        )
    }

    fn says(&self, answer: &str) {
        *self.answer.lock().unwrap() = answer.to_owned();
    }

    fn fetches(&self) -> usize {
        self.fetches.load(Ordering::SeqCst)
    }

    fn policy(&self) -> String {
        format!("jwt: {{ algorithms: [EdDSA], jwks_url: 'http://{}/keys' }}", self.upstream.address)
    }
}

#[test]
fn fetched_keys_are_kept_and_fetched_again_for_a_key_that_is_new() {
    let issuer = Issuer::with_keys(&["one"]);
    let (gateway, _upstream) = gateway(&issuer.policy());
    let mut client = gateway.client();
    let mut status = |key_id: &str| ask(&mut client, "/", &bearer(&eddsa(key_id, &good_claims()))).status();
    // The first request waits for the keys.
    assert_eq!(status("one"), 200);
    assert_eq!(status("one"), 200);
    assert_eq!(issuer.fetches(), 1);
    // The issuer changes its keys: the first token of the new one makes the node ask.
    issuer.says(&Issuer::keys(&["one", "two"]));
    assert_eq!(status("two"), 200);
    assert_eq!((status("one"), issuer.fetches()), (200, 2));
    // Nobody makes it ask again so soon.
    for number in 0..20 {
        assert_eq!(status(&format!("unknown-{number}")), 401);
    }
    assert_eq!(issuer.fetches(), 2);
    // A reload that does not change the policy keeps the keys.
    let document = document(&issuer.policy(), "other: {}", _upstream.address);
    issuer.says("HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n");
    gateway.publish(&yaml(&document));
    assert_eq!((status("two"), issuer.fetches()), (200, 2));
}

#[test]
fn a_failed_fetch_keeps_the_keys_that_are_known() {
    for answer in [
        "HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        "HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n{\"keys\": []}",
        "HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n{\"keys\"",
        "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
        "nonsense",
    ] {
        let issuer = Issuer::with_keys(&["one"]);
        let (gateway, _upstream) = gateway(&issuer.policy());
        let mut client = gateway.client();
        let mut status =
            |key_id: &str| ask(&mut client, "/", &bearer(&eddsa(key_id, &good_claims()))).status();
        assert_eq!(status("one"), 200);
        issuer.says(answer);
        assert_eq!(status("two"), 401, "{answer}");
        assert_eq!((status("one"), issuer.fetches()), (200, 2), "{answer}");
    }
}

#[test]
fn without_keys_the_gateway_says_come_back_later_and_recovers() {
    let issuer = Issuer::start("HTTP/1.1 503 Later\r\nContent-Length: 0\r\n\r\n");
    let (gateway, _upstream) = gateway(&issuer.policy());
    let mut client = gateway.client();
    let mut ask = || ask(&mut client, "/", &bearer(&eddsa("one", &good_claims())));
    let answer = ask();
    assert_eq!((answer.status(), answer.field("retry-after")), (503, Some("1")), "{answer:?}");
    // Once the first fetch has failed nobody waits for the next.
    let begun = Instant::now();
    assert_eq!(ask().status(), 503);
    assert!(begun.elapsed() < Duration::from_millis(500));
    issuer.says(&Issuer::keys(&["one"]));
    eventually("keys", || match ask().status() {
        200 => Ok(()),
        other => Err(other.to_string()),
    });
}

#[test]
fn nothing_encoded_leads_out_of_a_path_that_is_skipped() {
    let upstream = Upstream::echo();
    let text = document(
        &format!("jwt: {{ algorithms: [HS256], secret: '{SECRET}', skip_paths: [/public/*] }}"),
        "",
        upstream.address,
    )
    .replace("name: a,", "name: a, allow_encoded_slash: true,");
    let gateway = Gateway::start(&yaml(&text));
    for (path, status) in [
        ("/public/a%2Fb", 200),
        ("/public/..%2Fsecret", 400),
        ("/public/x%2f..%2f..%2fsecret", 400),
        ("/public/..%5Csecret", 400),
        ("/public/..%5c..%5csecret", 400),
        ("/public/..\\secret", 400),
    ] {
        assert_eq!(ask(&mut gateway.client(), path, "").status(), status, "{path}");
    }
}
