//! Published vectors, forged tokens, and every bit of a good one.

use std::time::Duration;

use jsonwebtoken::{EncodingKey, crypto::sign};
use serde_json::json;

use super::*;
use crate::config::document::{JwtKeys, Secret};

const VECTORS: &str = include_str!("../../../../tests/data/jose.json");
const RSA_PRIVATE: &str = include_str!("../../../../tests/data/rsa.private.pem");
const RSA_PUBLIC: &str = include_str!("../../../../tests/data/rsa.public.pem");
const SECRET: &[u8] = b"a secret of thirty-two bytes, ok";
const NOW: u32 = 1_700_000_000;

fn policy(algorithms: &[Algorithm]) -> Jwt {
    Jwt {
        algorithms: algorithms.to_vec(),
        keys: JwtKeys::Secret(Secret(String::new())),
        issuers: Vec::new(),
        audiences: Vec::new(),
        clock_skew: Duration::from_secs(60),
        require_exp: true,
        optional: false,
        skip_paths: Vec::new(),
        forward_claims: Vec::new(),
        forward_credential: true,
        realm: String::new(),
    }
}

fn part(json: &str) -> String {
    URL_SAFE_NO_PAD.encode(json)
}

/// A token with these parts and a good signature.
fn signed(header: &str, claims: &str, algorithm: Algorithm, key: &EncodingKey) -> String {
    let message = format!("{}.{}", part(header), part(claims));
    let signature = sign(message.as_bytes(), key, algorithm).unwrap();
    format!("{message}.{signature}")
}

fn hs256(header: &str, claims: &str) -> String {
    signed(header, claims, Algorithm::HS256, &EncodingKey::from_secret(SECRET))
}

fn judge(token: &str, policy: &Jwt, keys: &KeySet, now: f64) -> Result<Claims, Reason> {
    let claims = Token::read(token, &policy.algorithms)?.verify(keys)?;
    claims.check(policy, now).map(|()| claims)
}

fn judge_hs256(token: &str, policy: &Jwt) -> Result<Claims, Reason> {
    judge(token, policy, &KeySet::of_secret(SECRET, &policy.algorithms).unwrap(), f64::from(NOW))
}

fn all() -> Vec<Algorithm> {
    jose::ALGORITHMS.iter().map(|(_, algorithm)| *algorithm).collect()
}

#[test]
fn the_tokens_of_rfc_7515_are_let_in_before_they_expire_and_never_after() {
    let vectors: Value = serde_json::from_str(VECTORS).unwrap();
    let mut seen = 0;
    for vector in vectors["vectors"].as_array().unwrap() {
        let (name, token) = (vector["name"].as_str().unwrap(), vector["token"].as_str().unwrap());
        if vector["applies"] == false {
            assert!(Token::read(token, &all()).is_err(), "{name}");
            continue;
        }
        let algorithm = jose::algorithm(vector["algorithm"].as_str().unwrap()).unwrap();
        let policy = policy(&[algorithm]);
        let set = json!({ "keys": [vector["key"]] }).to_string();
        let keys = KeySet::of_jwks(set.as_bytes(), &policy.algorithms).unwrap();
        if name.starts_with("RFC 7520") {
            // Well signed, but what is signed is a sentence and not claims.
            assert_eq!(judge(token, &policy, &keys, 0.0), Err("the token is malformed"), "{name}");
            let (rest, _) = token.rsplit_once('.').unwrap();
            let other = format!("{rest}.AAAA");
            assert_eq!(judge(&other, &policy, &keys, 0.0), Err("the token's signature is wrong"), "{name}");
        } else {
            let claims = judge(token, &policy, &keys, 1_300_819_379.0).unwrap();
            assert_eq!(claims.text("iss").as_deref(), Some("joe"), "{name}");
            assert_eq!(judge(token, &policy, &keys, 1_300_819_440.0), Err("the token has expired"), "{name}");
        }
        seen += 1;
    }
    assert_eq!(seen, 6);
}

#[test]
fn a_token_that_nobody_signed_is_refused_however_it_spells_none() {
    let claims = part(&json!({ "sub": "eve", "exp": NOW + 60 }).to_string());
    for algorithm in ["none", "None", "NONE", "nOnE", "noNe", "", " none", "HS256 ", "hs256", "Hs256"] {
        let header = part(&json!({ "alg": algorithm, "typ": "JWT" }).to_string());
        for signature in ["", "AAAA"] {
            let token = format!("{header}.{claims}.{signature}");
            let refused = judge_hs256(&token, &policy(&[Algorithm::HS256]));
            assert_eq!(refused, Err("the token's algorithm is not accepted here"), "{algorithm:?}");
        }
    }
    for header in ["{}", r#"{"alg":null}"#, r#"{"alg":["HS256"]}"#, r#"{"alg":256}"#, "[]", "null", ""] {
        let token = hs256(header, "{}");
        assert_eq!(
            judge_hs256(&token, &policy(&[Algorithm::HS256])),
            Err("the token is malformed"),
            "{header}"
        );
    }
}

#[test]
fn a_public_key_is_never_an_hmac_secret() {
    let der = RSA_PUBLIC.lines().filter(|line| !line.starts_with('-')).collect::<String>();
    let der = base64::engine::general_purpose::STANDARD.decode(der).unwrap();
    let keys = KeySet::of_pem(RSA_PUBLIC, &[Algorithm::RS256]).unwrap();
    let claims = json!({ "sub": "eve", "exp": NOW + 60 }).to_string();
    let bodies = [RSA_PUBLIC.as_bytes(), RSA_PUBLIC.trim_end().as_bytes(), &der];
    for secret in bodies {
        for (name, algorithm) in &jose::ALGORITHMS[..3] {
            let header = json!({ "alg": name }).to_string();
            let forged = signed(&header, &claims, *algorithm, &EncodingKey::from_secret(secret));
            for accepted in [&[Algorithm::RS256][..], &all()] {
                assert!(judge(&forged, &policy(accepted), &keys, f64::from(NOW)).is_err(), "{name}");
            }
        }
    }
    let key = EncodingKey::from_rsa_pem(RSA_PRIVATE.as_bytes()).unwrap();
    let good = signed(r#"{"alg":"RS256"}"#, &claims, Algorithm::RS256, &key);
    assert!(judge(&good, &policy(&[Algorithm::RS256]), &keys, f64::from(NOW)).is_ok());
    // The same key, the same family, but not what the policy says.
    let other = signed(r#"{"alg":"RS384"}"#, &claims, Algorithm::RS384, &key);
    assert!(judge(&other, &policy(&[Algorithm::RS256]), &keys, f64::from(NOW)).is_err());
    // Another algorithm's signature under the policy's name.
    let lie = signed(r#"{"alg":"RS256"}"#, &claims, Algorithm::PS256, &key);
    assert_eq!(
        judge(&lie, &policy(&[Algorithm::RS256]), &keys, f64::from(NOW)),
        Err("the token's signature is wrong")
    );
}

#[test]
fn every_algorithm_lets_in_what_it_signed() {
    let claims = json!({ "exp": NOW + 60 }).to_string();
    let pems = [
        ("RS256 RS384 RS512 PS256 PS384 PS512", RSA_PRIVATE, RSA_PUBLIC),
        (
            "ES256",
            include_str!("../../../../tests/data/ec.private.pem"),
            include_str!("../../../../tests/data/ec.public.pem"),
        ),
        (
            "ES384",
            include_str!("../../../../tests/data/ec384.private.pem"),
            include_str!("../../../../tests/data/ec384.public.pem"),
        ),
        (
            "EdDSA",
            include_str!("../../../../tests/data/ed25519.private.pem"),
            include_str!("../../../../tests/data/ed25519.public.pem"),
        ),
    ];
    let mut seen = 0;
    for (names, private, public) in pems {
        for name in names.split(' ') {
            let algorithm = jose::algorithm(name).unwrap();
            let bytes = private.as_bytes();
            let key = EncodingKey::from_rsa_pem(bytes)
                .or_else(|_| EncodingKey::from_ec_pem(bytes))
                .or_else(|_| EncodingKey::from_ed_pem(bytes))
                .unwrap();
            let token = signed(&json!({ "alg": name }).to_string(), &claims, algorithm, &key);
            let keys = KeySet::of_pem(public, &[algorithm]).unwrap();
            assert!(judge(&token, &policy(&[algorithm]), &keys, f64::from(NOW)).is_ok(), "{name}");
            seen += 1;
        }
    }
    for (name, algorithm) in &jose::ALGORITHMS[..3] {
        let header = json!({ "alg": name }).to_string();
        let token = signed(&header, &claims, *algorithm, &EncodingKey::from_secret(SECRET));
        assert!(judge_hs256(&token, &policy(&[*algorithm])).is_ok(), "{name}");
        seen += 1;
    }
    assert_eq!(seen, jose::ALGORITHMS.len());
}

/// Every bit of the text, so also every character; and every bit of what the text encodes.
#[test]
fn a_token_with_any_bit_changed_is_refused() {
    let key = EncodingKey::from_ed_pem(include_bytes!("../../../../tests/data/ed25519.private.pem")).unwrap();
    let public = include_str!("../../../../tests/data/ed25519.public.pem");
    let claims = json!({ "sub": "ada", "exp": NOW + 60 }).to_string();
    let eddsa = signed(r#"{"alg":"EdDSA"}"#, &claims, Algorithm::EdDSA, &key);
    let secret = KeySet::of_secret(SECRET, &[Algorithm::HS256]).unwrap();
    let tokens = [
        (hs256(r#"{"alg":"HS256"}"#, &claims), Algorithm::HS256, secret),
        (eddsa, Algorithm::EdDSA, KeySet::of_pem(public, &[Algorithm::EdDSA]).unwrap()),
    ];
    for (token, algorithm, keys) in tokens {
        let policy = policy(&[algorithm]);
        assert!(judge(&token, &policy, &keys, f64::from(NOW)).is_ok());
        let mut changed = 0;
        for (place, bit) in (0..token.len()).flat_map(|place| (0..8).map(move |bit| (place, bit))) {
            let mut bytes = token.clone().into_bytes();
            bytes[place] ^= 1 << bit;
            let Ok(text) = String::from_utf8(bytes) else { continue };
            assert!(judge(&text, &policy, &keys, f64::from(NOW)).is_err(), "{text}");
            changed += 1;
        }
        let parts: Vec<&str> = token.split('.').collect();
        for (number, part) in parts.iter().enumerate() {
            let decoded = URL_SAFE_NO_PAD.decode(part).unwrap();
            for (place, bit) in (0..decoded.len()).flat_map(|place| (0..8).map(move |bit| (place, bit))) {
                let mut bytes = decoded.clone();
                bytes[place] ^= 1 << bit;
                let mut parts: Vec<String> = parts.iter().map(|&part| part.to_owned()).collect();
                parts[number] = URL_SAFE_NO_PAD.encode(bytes);
                assert!(judge(&parts.join("."), &policy, &keys, f64::from(NOW)).is_err(), "{parts:?}");
                changed += 1;
            }
        }
        for place in 0..token.len() {
            assert!(judge(&token[..place], &policy, &keys, f64::from(NOW)).is_err());
        }
        assert!(changed > 1000);
    }
}

#[test]
fn what_has_more_than_one_meaning_is_refused() {
    let policy = policy(&[Algorithm::HS256]);
    let claims = json!({ "exp": NOW + 60 }).to_string();
    for (header, claims, expected) in [
        (r#"{"alg":"HS256","alg":"HS256"}"#, &*claims, "the token is malformed"),
        (r#"{"alg":"HS256"}"#, r#"{"exp":1,"exp":9999999999}"#, "the token is malformed"),
        (r#"{"alg":"HS256"}"#, r#"{"exp":9999999999,"a":{"b":1,"b":2}}"#, "the token is malformed"),
        (r#"{"alg":"HS256"}"#, r#"{"exp":9999999999} x"#, "the token is malformed"),
        (r#"{"alg":"HS256","crit":["exp"]}"#, &*claims, "the token has critical extensions"),
        (r#"{"alg":"HS256","crit":[]}"#, &*claims, "the token has critical extensions"),
        (r#"{"alg":"HS256","kid":7}"#, &*claims, "the token is malformed"),
        (r#"{"alg":"HS256"}"#, r#"{"exp":"9999999999"}"#, "the token is malformed"),
        (r#"{"alg":"HS256"}"#, r#"{"exp":null}"#, "the token is malformed"),
        (r#"{"alg":"HS256"}"#, "[]", "the token is malformed"),
    ] {
        assert_eq!(judge_hs256(&hs256(header, claims), &policy), Err(expected), "{header} {claims}");
    }
    let good = hs256(r#"{"alg":"HS256"}"#, &claims);
    for token in [format!("{good}."), format!(".{good}"), good.replace('.', ".."), format!("{good}=")] {
        assert!(judge_hs256(&token, &policy).is_err(), "{token}");
    }
    let long = hs256(r#"{"alg":"HS256"}"#, &json!({ "exp": NOW + 60, "x": "y".repeat(13_000) }).to_string());
    assert_eq!(judge_hs256(&long, &policy), Err("the token is too long"));
    let deep = format!("{}1{}", "[".repeat(200), "]".repeat(200));
    let deep = hs256(r#"{"alg":"HS256"}"#, &format!(r#"{{"exp":9999999999,"x":{deep}}}"#));
    assert_eq!(judge_hs256(&deep, &policy), Err("the token is malformed"));
}

#[test]
fn a_wrong_key_id_is_refused_even_if_a_key_would_fit() {
    let policy = policy(&[Algorithm::HS256]);
    let set =
        json!({ "keys": [{ "kty": "oct", "kid": "a", "k": URL_SAFE_NO_PAD.encode(SECRET) }] }).to_string();
    let keys = KeySet::of_jwks(set.as_bytes(), &policy.algorithms).unwrap();
    let claims = json!({ "exp": NOW + 60 }).to_string();
    let judge = |header: &str| judge(&hs256(header, &claims), &policy, &keys, f64::from(NOW)).map(|_| ());
    assert_eq!(judge(r#"{"alg":"HS256","kid":"a"}"#), Ok(()));
    assert_eq!(judge(r#"{"alg":"HS256"}"#), Ok(()));
    for id in ["b", "A", "a ", "", "../a"] {
        let header = json!({ "alg": "HS256", "kid": id }).to_string();
        assert_eq!(judge(&header), Err("the token's key is not known"), "{id:?}");
    }
}

#[test]
fn claims_hold_within_the_clocks_skew() {
    let base = policy(&[Algorithm::HS256]);
    let strict = Jwt { clock_skew: Duration::ZERO, ..base.clone() };
    let lasting = Jwt { require_exp: false, ..base.clone() };
    let fresh = u64::from(NOW) + 600;
    for (claims, policy, expected) in [
        (json!({ "exp": NOW }), &strict, Err("the token has expired")),
        (json!({ "exp": f64::from(NOW) + 0.5 }), &strict, Ok(())),
        (json!({ "exp": NOW - 59 }), &base, Ok(())),
        (json!({ "exp": NOW - 60 }), &base, Err("the token has expired")),
        (json!({ "exp": -1 }), &base, Err("the token has expired")),
        (json!({}), &base, Err("the token does not expire")),
        (json!({}), &lasting, Ok(())),
        (json!({ "exp": NOW - 60 }), &lasting, Err("the token has expired")),
        (json!({ "exp": fresh, "nbf": NOW + 60 }), &base, Ok(())),
        (json!({ "exp": fresh, "nbf": NOW + 61 }), &base, Err("the token is not valid yet")),
        (json!({ "exp": fresh, "iat": NOW + 61 }), &base, Err("the token was made in the future")),
        (json!({ "exp": 1e300 }), &base, Ok(())),
    ] {
        let token = hs256(r#"{"alg":"HS256"}"#, &claims.to_string());
        assert_eq!(judge_hs256(&token, policy).map(|_| ()), expected, "{claims}");
    }
}

#[test]
fn issuer_and_audience_are_compared_whole() {
    let base = Jwt {
        issuers: vec!["https://a".into(), "https://b".into()],
        audiences: vec!["shop".into()],
        ..policy(&[Algorithm::HS256])
    };
    let (issuer, audience) =
        (Err("the token is of another issuer"), Err("the token is for another audience"));
    for (iss, aud, expected) in [
        (json!("https://a"), json!("shop"), Ok(())),
        (json!("https://b"), json!(["x", "shop"]), Ok(())),
        (json!("https://a/"), json!("shop"), issuer),
        (json!(["https://a"]), json!("shop"), issuer),
        (json!(null), json!("shop"), issuer),
        (json!("https://a"), json!("shops"), audience),
        (json!("https://a"), json!([]), audience),
        (json!("https://a"), json!([["shop"]]), audience),
        (json!("https://a"), json!({ "shop": 1 }), audience),
        (json!("https://a"), json!(null), audience),
    ] {
        let claims = json!({ "exp": NOW + 60, "iss": iss, "aud": aud });
        let token = hs256(r#"{"alg":"HS256"}"#, &claims.to_string());
        assert_eq!(judge_hs256(&token, &base).map(|_| ()), expected, "{claims}");
    }
    let neither = hs256(r#"{"alg":"HS256"}"#, &json!({ "exp": NOW + 60 }).to_string());
    assert_eq!(judge_hs256(&neither, &base).map(|_| ()), issuer);
}

#[test]
fn claims_are_told_as_text_or_json() {
    let claims =
        json!({ "exp": NOW + 60, "s": "é", "n": 7, "b": true, "l": ["a", 1], "o": { "k": "v" }, "z": null });
    let claims =
        judge_hs256(&hs256(r#"{"alg":"HS256"}"#, &claims.to_string()), &policy(&[Algorithm::HS256])).unwrap();
    for (claim, expected) in [
        ("s", Some("é")),
        ("n", Some("7")),
        ("b", Some("true")),
        ("l", Some(r#"["a",1]"#)),
        ("o", Some(r#"{"k":"v"}"#)),
        ("z", None),
        ("none", None),
    ] {
        assert_eq!(claims.text(claim).as_deref(), expected, "{claim}");
    }
}

#[test]
#[ignore = "prints a figure, of an optimised build"]
fn prints_what_a_verification_costs() {
    let ec_private = include_bytes!("../../../../tests/data/ec.private.pem");
    let ec_public = include_str!("../../../../tests/data/ec.public.pem");
    let claims = json!({ "sub": "ada", "iss": "me", "aud": ["shop"], "exp": NOW + 60 }).to_string();
    for (name, key, keys) in [
        ("HS256", EncodingKey::from_secret(SECRET), KeySet::of_secret(SECRET, &[Algorithm::HS256])),
        (
            "RS256",
            EncodingKey::from_rsa_pem(RSA_PRIVATE.as_bytes()).unwrap(),
            KeySet::of_pem(RSA_PUBLIC, &[Algorithm::RS256]),
        ),
        (
            "ES256",
            EncodingKey::from_ec_pem(ec_private).unwrap(),
            KeySet::of_pem(ec_public, &[Algorithm::ES256]),
        ),
    ] {
        let (algorithm, keys) = (jose::algorithm(name).unwrap(), keys.unwrap());
        let token = signed(&json!({ "alg": name }).to_string(), &claims, algorithm, &key);
        let policy = policy(&[algorithm]);
        crate::cost::print(&format!("a token, {name}"), || {
            judge(&token, &policy, &keys, f64::from(NOW)).unwrap()
        });
    }
}
