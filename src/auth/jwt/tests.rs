//! Tests of tokens: what is read of them, and what makes them worthless.

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn signed(key: &KeyPair, header: &str, claims: &Value) -> String {
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let signed = format!("{}.{}", part(header), part(&claims.to_string()));
    let signature = key.sign(signed.as_bytes()).expect("a key with a seed");
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

const HEADER: &str = r#"{"typ":"JWT","alg":"ed25519-nkey"}"#;

fn user_claims(account: &KeyPair, user: &KeyPair) -> Value {
    json!({"iss": account.public_key(), "sub": user.public_key(), "iat": 5, "exp": 10,
        "name": "ann", "nats": {"type": "user", "version": 2, "subs": -1,
        "pub": {"allow": ["a"]}, "resp": {"max": 3}}})
}

#[test]
fn what_a_token_says_is_read_and_its_signature_is_its_issuers() {
    let (account, user) = (KeyPair::new_account(), KeyPair::new_user());
    let text = signed(&account, HEADER, &user_claims(&account, &user));
    let claims: Claims<UserClaims> = decode_signed(&text).unwrap();
    assert_eq!((claims.issuer, claims.name.as_str()), (account.public_key(), "ann"));
    assert_eq!(claims.body.permissions.publish.allow, ["a"]);
    assert_eq!(claims.body.permissions.responses, Some(ResponsesClaim { max: 3, ttl: 0 }));
    assert_eq!((claims.body.subs, claims.body.payload), (-1, 0));
    let forged = signed(&KeyPair::new_account(), HEADER, &user_claims(&account, &user));
    assert_eq!(decode_signed::<UserClaims>(&forged), Err(TokenError::Signature));
}

#[test]
fn a_token_holds_from_its_beginning_up_to_its_end() {
    let (account, user) = (KeyPair::new_account(), KeyPair::new_user());
    let mut claims = user_claims(&account, &user);
    claims["nbf"] = 7.into();
    let claims = decode_signed::<UserClaims>(&signed(&account, HEADER, &claims)).unwrap();
    let in_time: Vec<i64> = (0..20).filter(|now| claims.is_in_time(*now)).collect();
    assert_eq!(in_time, [7, 8, 9]);
}

#[test]
fn no_other_algorithm_kind_version_or_key_is_taken() {
    let (account, user) = (KeyPair::new_account(), KeyPair::new_user());
    let claims = user_claims(&account, &user);
    for header in [
        r#"{"typ":"JWT","alg":"none"}"#,
        r#"{"alg":"HS256"}"#,
        r#"{"alg":"ed25519-nkey"}"#,
        r#"{"typ":"JWT","alg":"ed25519-x"}"#,
    ] {
        let text = signed(&account, header, &claims);
        assert_eq!(decode::<UserClaims>(&text), Err(TokenError::Algorithm));
    }
    let text = signed(&account, HEADER, &claims);
    assert_eq!(decode::<AccountClaims>(&text), Err(TokenError::Kind));
    for (field, value) in [("type", json!("account")), ("version", json!(1))] {
        let mut other = claims.clone();
        other["nats"][field] = value;
        assert_eq!(decode::<UserClaims>(&signed(&account, HEADER, &other)), Err(TokenError::Kind));
    }
    // A user that signs for itself, and an account that is meant as a user.
    for (field, key) in [("iss", user.public_key()), ("sub", account.public_key())] {
        let mut other = claims.clone();
        other[field] = key.into();
        assert_eq!(decode::<UserClaims>(&signed(&user, HEADER, &other)), Err(TokenError::Keys));
    }
}

fn signed_as_of_old(key: &KeyPair, claims: &Value) -> String {
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let (header, body) = (part(r#"{"typ":"jwt","alg":"ed25519"}"#), part(&claims.to_string()));
    let signature = key.sign(body.as_bytes()).expect("a key with a seed");
    format!("{header}.{body}.{}", URL_SAFE_NO_PAD.encode(signature))
}

#[test]
fn a_user_of_version_1_has_no_limits_that_it_does_not_name() {
    let (account, user) = (KeyPair::new_account(), KeyPair::new_user());
    let old = json!({"iss": account.public_key(), "sub": user.public_key(), "iat": 5,
        "type": "user", "tags": ["a:b"], "issuer_account": "A",
        "nats": {"payload": 7, "max": 9, "src": "10.0.0.0/8, 127.0.0.1/32",
            "bearer_token": true, "allowed_connection_types": ["MQTT"]}});
    let claims = decode_signed::<UserClaims>(&signed_as_of_old(&account, &old)).unwrap();
    let body = claims.body;
    assert_eq!((body.subs, body.data, body.payload), (-1, -1, 7));
    assert_eq!((body.issuer_account.as_str(), &*body.tags), ("A", &["a:b".to_owned()][..]));
    assert_eq!(body.src, ["10.0.0.0/8", "127.0.0.1/32"]);
    assert!(body.bearer_token && body.allowed_connection_types.is_empty());
}

#[test]
fn a_signature_is_of_what_its_version_signs_and_of_nothing_else() {
    let (account, user) = (KeyPair::new_account(), KeyPair::new_user());
    let mut old = json!({"iss": account.public_key(), "sub": user.public_key(),
        "type": "user", "nats": {}});
    // Signed as the other version would be.
    let text = signed(&account, HEADER, &old);
    assert_eq!(decode_signed::<UserClaims>(&text), Err(TokenError::Signature));
    let text = signed_as_of_old(&account, &user_claims(&account, &user));
    assert_eq!(decode_signed::<UserClaims>(&text), Err(TokenError::Signature));
    // No kind, and none that is known.
    for kind in ["", "x"] {
        old["type"] = kind.into();
        let text = signed_as_of_old(&account, &old);
        assert_eq!(decode_signed::<UserClaims>(&text), Err(TokenError::Kind), "{kind}");
    }
}

#[test]
fn a_revocation_is_for_what_was_made_up_to_then() {
    let revocations = [("UA".to_owned(), 10), ("*".to_owned(), 3)].into();
    let account = AccountClaims { revocations, ..AccountClaims::default() };
    assert!(account.has_revoked("UA", 10) && !account.has_revoked("UA", 11));
    assert!(account.has_revoked("UB", 3) && !account.has_revoked("UB", 4));
}

#[test]
fn a_token_is_found_between_its_lines_of_dashes() {
    let file = "-----BEGIN NATS OPERATOR JWT-----\na.b.c\n------END NATS OPERATOR JWT------\n";
    assert_eq!(
        (undecorated(file), undecorated("a.b.c\n"), undecorated("")),
        ("a.b.c", "a.b.c", "")
    );
}

#[test]
fn an_address_is_in_a_network_by_its_first_bits() {
    let networks = ["10.1.0.0/16".to_owned(), "2001:db8::/32".to_owned()];
    for ip in ["10.1.2.3", "2001:db8::1"] {
        assert!(comes_from(&networks, ip), "{ip}");
    }
    for ip in ["10.2.0.1", "2001:db9::1", "", "10.1"] {
        assert!(!comes_from(&networks, ip), "{ip}");
    }
    assert!(comes_from(&["0.0.0.0/0".to_owned()], "1.2.3.4"));
    assert!(!comes_from(&["10.0.0.0/33".to_owned(), "x".to_owned()], "10.0.0.0"));
    assert!(comes_from(&[], "anything"));
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "\\PC*") {
        let _ = decode::<UserClaims>(&text);
    }

}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    /// A token with any letter changed is not valid.
    #[test]
    fn one_other_letter_anywhere_makes_a_token_worthless(at in 0_usize..2000, to in 0_u8..64) {
        let (account, user) = (KeyPair::new_account(), KeyPair::new_user());
        let text = signed(&account, HEADER, &user_claims(&account, &user));
        let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let mut bytes = text.clone().into_bytes();
        let at = at % bytes.len();
        bytes[at] = alphabet[usize::from(to)];
        let changed = String::from_utf8(bytes).unwrap();
        prop_assert!(changed == text || decode_signed::<UserClaims>(&changed).is_err());
    }
}

#[test]
fn a_measured_service_says_the_share_or_that_headers_ask_for_it() {
    let rule = |text: &str| {
        let claim: ExportClaim = serde_json::from_str(text).expect("an export");
        let rule = claim.service_latency.as_ref().and_then(LatencyClaim::rule);
        rule.map(|rule| (rule.percent, rule.subject))
    };
    let of = |latency: &str| rule(&format!("{{\"service_latency\":{latency}}}"));
    assert_eq!(of("{\"sampling\":25,\"results\":\"l.a\"}"), Some((25, "l.a".to_owned())));
    for headers in ["\"headers\"", "\"Headers\"", "0"] {
        let latency = format!("{{\"sampling\":{headers},\"results\":\"l\"}}");
        assert_eq!(of(&latency), Some((0, "l".to_owned())));
    }
    for wrong in ["101", "-1", "\"half\""] {
        assert_eq!(of(&format!("{{\"sampling\":{wrong},\"results\":\"l\"}}")), None);
    }
    assert_eq!(of("{\"sampling\":25,\"results\":\"l.*\"}"), None);
    assert_eq!((of("{\"sampling\":25}"), of("null"), rule("{}")), (None, None, None));
}
