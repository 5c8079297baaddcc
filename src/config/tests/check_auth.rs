//! One table of policies and exact messages a rule.

use std::time::Duration;

use super::super::{
    super::{
        document::{ApiKeys, JwtKeys, PolicyKind, SkipPath, Users},
        jose::Algorithm,
    },
    Document, document,
    tests::check,
};

const BCRYPT: &str = "$2b$05$xSDFDm4f40x70jJMg/StdO6u92XmuCB5.MBF3lSI0tlsTWkTKF/qO";
const SHA256: &str = "0123456789abcdef0123456789ABCDEF0123456789abcdef0123456789abcdef";

/// A document whose line 1 declares policy `p`.
fn document_of(policy: &str) -> String {
    let rest = "services: { api: {}, auth: {} }\nroutes: [{ name: a, service: api, policies: [p] }]";
    format!("policies: {{ p: {{ {policy} }} }}\n{rest}")
}

/// `expected` follows `f:1: policies.p.`; nothing when it is valid.
fn check_policy(policy: &str, expected: &str) {
    let expected = if expected.is_empty() { String::new() } else { format!("f:1: policies.p.{expected}") };
    check(&document_of(policy), &expected);
}

fn valid(policy: &str) -> PolicyKind {
    let mut document: Document =
        document(&document_of(policy)).unwrap_or_else(|problems| panic!("{problems:#?}"));
    document.policies.remove("p").unwrap().kinds.remove(0)
}

#[test]
fn a_jwt_policy_says_how_a_token_is_verified() {
    let PolicyKind::Jwt(jwt) = valid(
        "jwt: { algorithms: [RS256, ES384], jwks_url: 'http://issuer.example:8080/keys?v=1', issuer: me,
        audience: [a, b], clock_skew: 5s, require_exp: false, optional: true, skip_paths: [/health, /public/*],
        forward_claims: { sub: X-User, 'https://x.example/roles': X-Roles }, forward_credential: false, realm: shop }",
    ) else {
        panic!("another kind")
    };
    assert_eq!(jwt.algorithms, [Algorithm::RS256, Algorithm::ES384]);
    let JwtKeys::JwksUrl(url) = jwt.keys else { panic!("other keys") };
    assert_eq!(
        (&*url.address, &*url.host, &*url.target),
        ("issuer.example:8080", "issuer.example:8080", "/keys?v=1")
    );
    assert_eq!((jwt.issuers, jwt.audiences), (vec!["me".to_owned()], vec!["a".to_owned(), "b".to_owned()]));
    assert_eq!(jwt.clock_skew, Duration::from_secs(5));
    assert_eq!((jwt.require_exp, jwt.optional, jwt.forward_credential), (false, true, false));
    assert_eq!(jwt.skip_paths, [SkipPath::Exact("/health".into()), SkipPath::Below("/public/".into())]);
    let claims: Vec<_> = jwt.forward_claims.iter().map(|(claim, field)| (&**claim, field.as_str())).collect();
    assert_eq!(claims, [("sub", "x-user"), ("https://x.example/roles", "x-roles")]);
    assert_eq!(jwt.realm, "shop");

    let PolicyKind::Jwt(jwt) = valid("jwt: { algorithms: [HS256], secret: 123456 }") else {
        panic!("another kind")
    };
    assert_eq!(jwt.clock_skew, Duration::from_secs(60));
    assert_eq!((jwt.require_exp, jwt.optional, jwt.forward_credential), (true, false, true));
    assert_eq!(jwt.realm, "gogate");
    assert!(!format!("{jwt:?}").contains("123456"), "a secret is shown to nobody");
    for keys in ["secret_file: s", "jwks_file: /etc/keys.json"] {
        valid(&format!("jwt: {{ algorithms: [HS512], {keys} }}"));
    }
    for keys in ["jwks_file: k", "public_key_file: k.pem", "jwks_url: 'http://h'"] {
        valid(&format!("jwt: {{ algorithms: [EdDSA], {keys} }}"));
    }
}

#[test]
fn a_token_has_algorithms_and_one_source_of_keys_that_go_together() {
    for (keys, expected) in [
        (
            "secret: s",
            "jwt: `algorithms` is missing (add algorithms: [RS256], with what the issuer signs with)",
        ),
        (
            "algorithms: [], secret: s",
            "jwt.algorithms: the list is empty (name what the issuer signs with, such as RS256)",
        ),
        (
            "algorithms: [NONE], secret: s",
            "jwt.algorithms[0]: `NONE` would let in tokens that nobody signed (remove it)",
        ),
        (
            "algorithms: [ES512], jwks_file: k",
            "jwt.algorithms[0]: `ES512` is not supported (the algorithms are HS256, HS384, HS512, RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA)",
        ),
        (
            "algorithms: [RS256, RS256], jwks_file: k",
            "jwt.algorithms[1]: `RS256` is in the list already (remove it)",
        ),
        (
            "algorithms: [RS256, HS256], jwks_file: k",
            "jwt.algorithms: HS256 needs a secret and RS256 a key pair (make a policy for each)",
        ),
        ("algorithms: [HS256]", "jwt: nothing to verify a token with (add `secret_file` or `secret`)"),
        (
            "algorithms: [RS256]",
            "jwt: nothing to verify a token with (add `jwks_url`, `jwks_file`, `public_key_file` or `public_key`)",
        ),
        (
            "algorithms: [RS256], jwks_file: a, jwks_url: b",
            "jwt: `jwks_file` and `jwks_url` cannot both be set (keep one of them)",
        ),
        (
            "algorithms: [RS256], secret: s3cr3t",
            "jwt.secret: RS256 cannot be verified with `secret` (it needs `public_key`, `public_key_file`, `jwks_file` or `jwks_url`)",
        ),
        (
            "algorithms: [HS256], public_key: p",
            "jwt.public_key: HS256 cannot be verified with `public_key` (it needs `secret`, `secret_file` or `jwks_file`)",
        ),
        (
            "algorithms: [HS256], jwks_url: 'http://h/'",
            "jwt.jwks_url: HS256 cannot be verified with `jwks_url` (it needs `secret`, `secret_file` or `jwks_file`)",
        ),
        ("algorithms: [HS256], secret: [s3cr3t]", "jwt.secret: expected a secret"),
        (
            "algorithms: [RS256], public_key: s3cr3t",
            "jwt.public_key: this is not a PEM (a public key begins with -----BEGIN PUBLIC KEY-----)",
        ),
        (
            "algorithms: [RS256], public_key: '-----BEGIN PRIVATE KEY-----'",
            "jwt.public_key: this is a private key, which only the issuer may have (openssl pkey -in FILE -pubout prints its public key)",
        ),
        (
            "algorithms: [RS256], jwks_url: 'https://issuer.example/keys'",
            "jwt.jwks_url: `https://` is not supported by this build yet (keep the set in a file: `jwks_file`; or http:// where nobody can change what is on the way)",
        ),
        ("algorithms: [RS256], jwks_url: issuer", "jwt.jwks_url: `issuer` is not an http:// URL"),
        (
            "algorithms: [RS256], jwks_url: 'http://h:0/'",
            "jwt.jwks_url: `0` is not a port (ports are numbers from 1 to 65535)",
        ),
    ] {
        check_policy(&format!("jwt: {{ {keys} }}"), expected);
    }
}

#[test]
fn what_a_jwt_policy_forwards_and_skips_is_well_formed() {
    let head = "algorithms: [HS256], secret: s";
    for (keys, expected) in [
        ("clock_skew: 1h", "jwt.clock_skew: `1h` is not from 0ms to 10m"),
        ("issuer: []", "jwt.issuer: the list is empty, so no token would be let in (name one, or remove it)"),
        ("skip_paths: [health]", "jwt.skip_paths[0]: `health` does not begin with `/` (write \"/health\")"),
        (
            "skip_paths: ['/a/*/b']",
            "jwt.skip_paths[0]: `/a/*/b` has a `*` that is not the last segment (/public/* is everything below /public/)",
        ),
        (
            "skip_paths: [/a/../b]",
            "jwt.skip_paths[0]: `/a/../b` is not in normal form, so that no request would match it (write \"/b\")",
        ),
        (
            "forward_claims: { sub: Host }",
            "jwt.forward_claims.sub: `host` frames or addresses the message and is the gateway's alone (remove it)",
        ),
        (
            "forward_claims: { sub: Authorization }",
            "jwt.forward_claims.sub: `authorization` has a meaning of its own (choose another field)",
        ),
        (
            "forward_claims: { sub: X-User, email: x-user }",
            "jwt.forward_claims.email: the claim `sub` is forwarded as `x-user` already (give each claim a field of its own)",
        ),
        (
            "realm: 'a\"b'",
            "jwt.realm: `a\"b` cannot be a realm (use printable ASCII characters other than `\"` and `\\`)",
        ),
        ("audiences: [a]", "jwt.audiences: unknown key `audiences` (did you mean `audience`?)"),
    ] {
        check_policy(&format!("jwt: {{ {head}, {keys} }}"), expected);
    }
}

#[test]
fn an_api_key_is_known_by_its_hash_alone() {
    let PolicyKind::ApiKey(api_key) =
        valid(&format!("api_key: {{ keys: [{{ name: shop, sha256: {SHA256} }}] }}"))
    else {
        panic!("another kind")
    };
    assert_eq!((api_key.header.as_str(), api_key.forward_name.as_str()), ("x-api-key", "x-consumer"));
    assert_eq!((api_key.query.as_deref(), api_key.forward_credential), (None, false));
    let ApiKeys::Listed(keys) = api_key.keys else { panic!("other keys") };
    assert_eq!((&*keys[0].0, keys[0].1[..3].to_vec()), ("shop", vec![0x01, 0x23, 0x45]));
    let PolicyKind::ApiKey(api_key) = valid(
        "api_key: { header: X-Key, query: key, keys_file: keys, forward_name: X-Who, forward_credential: true }",
    ) else {
        panic!("another kind")
    };
    assert_eq!((api_key.header.as_str(), api_key.forward_name.as_str()), ("x-key", "x-who"));
    assert_eq!((api_key.query.as_deref(), api_key.forward_credential), (Some("key"), true));

    let how = "(printf %s KEY | sha256sum prints the hash, 64 hexadecimal digits)";
    for (keys, expected) in [
        ("", "api_key: no key would be let in (add keys: [{ name: NAME, sha256: HASH }] or `keys_file`)".to_owned()),
        ("keys: []", "api_key.keys: the list is empty, so no key would be let in (add { name: NAME, sha256: HASH })".to_owned()),
        ("keys: [], keys_file: f", "api_key: `keys` and `keys_file` cannot both be set (keep one of them)".to_owned()),
        (
            "keys: [{ name: a, key: t0ps3cr3t }]",
            format!("api_key.keys[0]: a key is never written down, its hash is: `sha256` {how}"),
        ),
        ("keys: [{ name: a }]", format!("api_key.keys[0]: `sha256` is missing {how}")),
        ("keys: [{ name: a, sha256: t0ps3cr3t }]", format!("api_key.keys[0].sha256: this is not a SHA-256 hash {how}")),
        (
            &format!("keys: [{{ sha256: {SHA256} }}]"),
            "api_key.keys[0]: `name` is missing (add name: with whose key it is)".to_owned(),
        ),
        (
            &format!("keys: [{{ name: a, sha256: {SHA256} }}, {{ name: b, sha256: {SHA256} }}]"),
            "api_key.keys[1]: this key is there already, on line 1 (keep one of them)".to_owned(),
        ),
        (
            "keys_file: f, header: X-Consumer",
            "api_key: `x-consumer` cannot have both the key and its name (choose another `forward_name`)".to_owned(),
        ),
        (
            "keys_file: f, query: 'a b'",
            "api_key.query: `a b` cannot be the name of a query parameter (use letters, digits, `-`, `.`, `_` and `~`)".to_owned(),
        ),
    ] {
        check_policy(&format!("api_key: {{ {keys} }}"), &expected);
    }
}

#[test]
fn a_file_of_api_keys_is_read_line_by_line() {
    let keys = ApiKeys::parse_file(&format!("# keys\n\nshop:{SHA256}\n")).unwrap();
    assert_eq!(keys[0].0, "shop");
    for (text, expected) in [
        ("t0ps3cr3t", "line 1: there is no `:`"),
        ("\na b:x", "line 2: this cannot be a name"),
        ("a:t0ps3cr3t", "line 1: this is not a SHA-256 hash"),
        (&format!("a:{SHA256}\nb:{SHA256}"), "line 2: this key is there already"),
    ] {
        assert_eq!(ApiKeys::parse_file(text).unwrap_err().0, expected);
    }
}

#[test]
fn a_password_is_known_by_its_hash_alone() {
    let PolicyKind::BasicAuth(basic_auth) =
        valid(&format!("basic_auth: {{ users: {{ 'ada@x.example': {BCRYPT} }} }}"))
    else {
        panic!("another kind")
    };
    assert_eq!((basic_auth.forward_user.as_str(), basic_auth.forward_credential), ("x-user", false));
    let Users::Listed(users) = &basic_auth.users else { panic!("other users") };
    assert!(users["ada@x.example"].verifies(b"secret"));
    assert!(!format!("{basic_auth:?}").contains(BCRYPT));
    valid(
        "basic_auth: { users_file: /etc/users, realm: shop, forward_user: X-Who, forward_credential: true }",
    );

    let how = "(htpasswd -nB NAME makes a bcrypt hash, argon2 SALT -id -e an argon2id one)";
    for (keys, expected) in [
        ("", "basic_auth: nobody would be let in (add users: { NAME: HASH } or `users_file`, an htpasswd file)".to_owned()),
        ("users: {}", "basic_auth.users: nobody would be let in (add NAME: HASH; htpasswd -nB NAME prints both)".to_owned()),
        (
            "users: {}, users_file: f",
            "basic_auth: `users` and `users_file` cannot both be set (keep one of them)".to_owned(),
        ),
        (
            "users: { ada: hunter2 }",
            format!("basic_auth.users.ada: this is not a hash: passwords are never written down {how}"),
        ),
        ("users: { ada: 12345 }", format!("basic_auth.users.ada: this is not a hash: passwords are never written down {how}")),
        (
            "users: { ada: '$apr1$x$y' }",
            format!("basic_auth.users.ada: this kind of hash is too weak or not supported; bcrypt and argon2 are {how}"),
        ),
        (
            &format!("users: {{ 'a:b': {BCRYPT} }}"),
            "basic_auth.users.a:b: `a:b` cannot be a user (users have printable ASCII characters without a `:`)".to_owned(),
        ),
    ] {
        check_policy(&format!("basic_auth: {{ {keys} }}"), &expected);
    }
}

#[test]
fn another_service_is_asked_as_it_was_declared() {
    let PolicyKind::ForwardAuth(forward_auth) = valid("forward_auth: { service: auth }") else {
        panic!("another kind")
    };
    assert_eq!((&*forward_auth.service, &*forward_auth.path), ("auth", "/"));
    assert_eq!((forward_auth.request_headers, forward_auth.timeout), (None, Duration::from_secs(5)));
    let PolicyKind::ForwardAuth(forward_auth) = valid(
        "forward_auth: { service: auth, path: '/verify?full=1', request_headers: [Authorization, Cookie],
        response_headers: [X-User, Authorization], timeout: 250ms }",
    ) else {
        panic!("another kind")
    };
    assert_eq!(forward_auth.path, "/verify?full=1");
    assert_eq!(forward_auth.request_headers.unwrap(), ["authorization", "cookie"]);
    assert_eq!(forward_auth.response_headers, ["x-user", "authorization"]);
    for (keys, expected) in [
        ("", "forward_auth: `service` is missing (add service: with the name of one under `services`)"),
        ("service: auht", "forward_auth.service: there is no service `auht` (did you mean `auth`?)"),
        (
            "service: zzzz",
            "forward_auth.service: there is no service `zzzz` (declare it under `services`: `zzzz: {}` is enough, instances registered under that name join it)",
        ),
        (
            "service: auth, path: verify",
            "forward_auth.path: `verify` does not begin with `/` (write \"/verify\")",
        ),
        ("service: auth, path: '/a?b#c'", "forward_auth.path: `/a?b#c` has a query that cannot be sent"),
        (
            "service: auth, response_headers: [Content-Length]",
            "forward_auth.response_headers[0]: `content-length` frames or addresses the message and is the gateway's alone (remove it)",
        ),
    ] {
        check_policy(&format!("forward_auth: {{ {keys} }}"), expected);
    }
}
