//! Keys as issuers write them, and which tokens they verify.

use super::*;

/// The published vectors: see the file.
const VECTORS: &str = include_str!("../../../tests/data/jose.json");

fn all() -> Vec<Algorithm> {
    ALGORITHMS.iter().map(|(_, algorithm)| *algorithm).collect()
}

fn set(keys: &serde_json::Value, algorithms: &[Algorithm]) -> Result<KeySet, Refusal> {
    KeySet::of_jwks(serde_json::json!({ "keys": [keys] }).to_string().as_bytes(), algorithms)
}

#[test]
fn the_signatures_of_rfc_7515_and_7520_verify_with_their_own_algorithm_alone() {
    let vectors: serde_json::Value = serde_json::from_str(VECTORS).unwrap();
    let mut verified = 0;
    for vector in vectors["vectors"].as_array().unwrap().iter().filter(|vector| !vector["key"].is_null()) {
        let name = vector["name"].as_str().unwrap();
        if vector["applies"] == false {
            assert!(
                set(&vector["key"], &all()).is_err(),
                "{name}: the key of an algorithm that is not spoken"
            );
            continue;
        }
        let expected = algorithm(vector["algorithm"].as_str().unwrap()).unwrap();
        let (message, signature) = vector["token"].as_str().unwrap().rsplit_once('.').unwrap();
        let keys = set(&vector["key"], &all()).unwrap();
        for algorithm in all() {
            let verifies = keys
                .candidates(vector["key"]["kid"].as_str(), algorithm)
                .any(|key| key.verifies(algorithm, message.as_bytes(), signature));
            assert_eq!(verifies, algorithm == expected, "{name}: {algorithm:?}");
        }
        verified += 1;
    }
    assert_eq!(verified, 6);
}

#[test]
fn a_key_is_bound_to_the_policys_algorithms_and_its_own() {
    let vectors: serde_json::Value = serde_json::from_str(VECTORS).unwrap();
    let mut key = vectors["vectors"][1]["key"].clone();
    let keys = set(&key, &[Algorithm::PS256]).unwrap();
    assert_eq!(keys.candidates(None, Algorithm::RS256).count(), 0);
    assert_eq!(keys.candidates(None, Algorithm::PS256).count(), 1);
    key["alg"] = "RS512".into();
    let (problem, why) = set(&key, &[Algorithm::PS256]).unwrap_err();
    assert_eq!(problem, "the JWK set has no key for PS256");
    assert_eq!(why.as_deref(), Some("its first key: it is for other algorithms, RS512"));
    key["alg"] = "RS256".into();
    key["use"] = "enc".into();
    assert!(set(&key, &all()).is_err());
}

#[test]
fn keys_that_cannot_verify_are_left_out_and_said_why() {
    for (key, expected) in [
        (
            serde_json::json!({"kty": "RSA", "n": "AQAB", "e": "AQAB"}),
            "its 17 bits are not from 2048 to 8192",
        ),
        (
            serde_json::json!({"kty": "EC", "crv": "secp256k1", "x": "AA", "y": "AA"}),
            "its kind is EC secp256k1",
        ),
        (
            serde_json::json!({"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}),
            "its curve is neither P-256 nor P-384",
        ),
        (serde_json::json!({"kty": "OKP", "crv": "Ed448", "x": "AA"}), "its kind is OKP Ed448"),
        (serde_json::json!({"kty": "oct"}), "its `k` is not there or not base64url"),
        (serde_json::json!({"kty": "oct", "k": "a+b="}), "its `k` is not there or not base64url"),
        (
            serde_json::json!({"kty": "oct", "k": "AAAA", "key_ops": ["sign"]}),
            "its `key_ops` have no `verify`",
        ),
        (serde_json::json!(7), "it is not a JWK"),
    ] {
        let (_, why) = set(&key, &all()).unwrap_err();
        assert_eq!(why.unwrap(), format!("its first key: {expected}"), "{key}");
    }
    assert_eq!(KeySet::of_jwks(b"{}", &all()).unwrap_err().0, "this is not a JWK set");
    let good = serde_json::json!({"kty": "oct", "k": "AAAA"});
    let two = serde_json::json!({"keys": [{"kty": "dsa"}, good]}).to_string();
    let keys = KeySet::of_jwks(two.as_bytes(), &all()).unwrap();
    assert_eq!((keys.len(), keys.unusable()), (1, 1));
}

#[test]
fn a_tokens_key_id_chooses_among_the_keys_of_a_set_only() {
    let key = |id: &str| serde_json::json!({"kty": "oct", "kid": id, "k": "AAAA"});
    let set = serde_json::json!({"keys": [key("a"), key("b")]}).to_string();
    let keys = KeySet::of_jwks(set.as_bytes(), &all()).unwrap();
    assert!(keys.has("a") && !keys.has("c"));
    assert_eq!(keys.candidates(Some("a"), Algorithm::HS256).count(), 1);
    assert_eq!(keys.candidates(Some("c"), Algorithm::HS256).count(), 0);
    assert_eq!(keys.candidates(None, Algorithm::HS256).count(), 2);
    let secret = KeySet::of_secret(b"secret", &all()).unwrap();
    assert!(secret.has("anything"));
    assert_eq!(secret.candidates(Some("anything"), Algorithm::HS256).count(), 1);
    assert_eq!(secret.candidates(None, Algorithm::RS256).count(), 0);
    assert!(!format!("{secret:?}{keys:?}").contains("AAAA"));
}

#[test]
fn a_pem_must_be_a_public_key_that_the_algorithms_can_use() {
    const PRIVATE: &str = include_str!("../../../tests/data/rsa.private.pem");
    const RSA: &str = include_str!("../../../tests/data/rsa.public.pem");
    const EC: &str = include_str!("../../../tests/data/ec.public.pem");
    const ED: &str = include_str!("../../../tests/data/ed25519.public.pem");
    for (pem, algorithm) in
        [(RSA, Algorithm::RS256), (RSA, Algorithm::PS512), (EC, Algorithm::ES256), (ED, Algorithm::EdDSA)]
    {
        let keys = KeySet::of_pem(pem, &[algorithm]).unwrap();
        assert_eq!(keys.candidates(Some("any"), algorithm).count(), 1);
    }
    for (pem, algorithms, expected) in [
        (PRIVATE, all(), "this is a private key, which only the issuer may have"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----", all(), "this is a certificate"),
        ("ssh-rsa AAAA", all(), "this is not a PEM"),
        (
            "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----",
            all(),
            "this PEM holds no RSA, EC or Ed25519 public key",
        ),
        (EC, vec![Algorithm::RS256], "none of the policy's algorithms can be verified with this key"),
        (RSA, vec![Algorithm::HS256], "none of the policy's algorithms can be verified with this key"),
    ] {
        assert_eq!(KeySet::of_pem(pem, &algorithms).unwrap_err().0, expected);
    }
}
