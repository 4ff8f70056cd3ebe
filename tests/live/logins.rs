//! Every way to log in that nats-py has, on every number of shards; async-nats is driven beside it
//! where its own tests do not do that already.
//!
//! Without nats-py the tests say so and pass, except under `CI`.

use std::path::Path;
use std::process::Command;

use crate::broker::tokens::{World, credentials, unlimited};
use crate::broker::{Broker, shard_counts};
use nkeys::KeyPair;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair as TlsKey};
use rcgen::{KeyUsagePurpose, SanType};
use serde_json::{Value, json};

/// Whether nats-py can be run, with what it needs to sign.
fn has_client() -> bool {
    let found = Command::new("python3").args(["-c", "import nats, nkeys"]).output();
    let found = found.is_ok_and(|output| output.status.success());
    assert!(found || std::env::var_os("CI").is_none(), "nats-py and nkeys are not installed");
    found
}

/// Logs in with each of `good` and each of `bad`, all at once.
fn log_in(broker: &Broker, good: &[Value], bad: &[Value]) {
    let all: Vec<&Value> = good.iter().chain(bad).collect();
    let output = Command::new("python3")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/live/logins.py"))
        .arg(broker.url())
        .arg(json!(all).to_string())
        .output()
        .expect("python runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(said.lines().count(), all.len(), "{complaint}");
    for (at, line) in said.lines().enumerate() {
        let is_in = line == "in me";
        assert!(is_in || line.starts_with("out "), "{line}");
        assert_eq!(is_in, at < good.len(), "{line}: {}", all[at]);
    }
}

#[test]
fn by_user_and_password_plain_and_hashed() {
    if !has_client() {
        return;
    }
    let config = "authorization { timeout: 30, users: [\n\
        { user: ann, password: plain }, { user: bob, \
        password: \"$2a$04$zyxwvutsrqponmlkjihgfurQNWOPnczANr9Lnsgmk2Svikvt0pD4G\" } ] }\n";
    for &shards in shard_counts() {
        let broker = Broker::with_config(shards, config);
        log_in(
            &broker,
            &[
                json!({"user": "ann", "password": "plain"}),
                json!({"user": "bob", "password": "tok3n"}),
            ],
            &[
                json!({"user": "ann", "password": "tok3n"}),
                json!({"user": "bob", "password": "plain"}),
                json!({}),
            ],
        );
    }
}

#[test]
fn by_token() {
    if !has_client() {
        return;
    }
    for &shards in shard_counts() {
        let broker = Broker::with_config(shards, "authorization { token: s3cret, timeout: 30 }\n");
        log_in(&broker, &[json!({"token": "s3cret"})], &[json!({"token": "secret"})]);
    }
}

#[test]
fn by_nkey_and_by_credentials() {
    if !has_client() {
        return;
    }
    let dir = tempfile::tempdir().expect("a scratch directory");
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.display().to_string()
    };
    let (ann, eve) = (KeyPair::new_user(), KeyPair::new_user());
    let seed = |key: &KeyPair| key.seed().expect("a key of our own");
    let (ann_seed, eve_seed) = (write("ann", &seed(&ann)), write("eve", &seed(&eve)));
    let mut world = World::new();
    let (account, stranger) = (KeyPair::new_account(), KeyPair::new_account());
    world.account(&account, json!({}));
    let good = write("good.creds", &credentials(&account, unlimited(), json!({})));
    let bad = write("bad.creds", &credentials(&stranger, unlimited(), json!({})));
    for &shards in shard_counts() {
        let users = format!(
            "authorization {{ timeout: 30, users: [ {{ nkey: {} }} ] }}\n",
            ann.public_key()
        );
        let broker = Broker::with_config(shards, &users);
        log_in(&broker, &[json!({"nkeys_seed": ann_seed})], &[json!({"nkeys_seed": eve_seed})]);
        let broker = Broker::with_config(
            shards,
            &format!("{}authorization {{ timeout: 30 }}\n", world.config()),
        );
        log_in(
            &broker,
            &[json!({"user_credentials": good})],
            &[json!({"user_credentials": bad}), json!({})],
        );
    }
}

#[test]
fn over_tls_and_with_a_certificate_that_says_who_it_is() {
    if !has_client() {
        return;
    }
    let dir = tempfile::tempdir().expect("a scratch directory");
    let path = |name: &str| dir.path().join(name).display().to_string();
    let key = TlsKey::generate().expect("a key");
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    authority.distinguished_name.push(DnType::CommonName, "the authority of this test");
    let own = authority.self_signed(&key).expect("a certificate");
    std::fs::write(path("ca.pem"), own.pem()).expect("written");
    let issuer = Issuer::new(authority, key);
    let sign = |file: &str, name: SanType| {
        let key = TlsKey::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![name];
        params.use_authority_key_identifier_extension = true;
        let signed = params.signed_by(&key, &issuer).expect("a certificate");
        std::fs::write(path(&format!("{file}.pem")), signed.pem()).expect("written");
        std::fs::write(path(&format!("{file}.key")), key.serialize_pem()).expect("written");
    };
    sign("server", SanType::DnsName("localhost".try_into().expect("a name")));
    sign("ann", SanType::Rfc822Name("ann@example.com".try_into().expect("a name")));
    sign("eve", SanType::Rfc822Name("eve@example.com".try_into().expect("a name")));
    let (ca, cert, key) = (path("ca.pem"), path("server.pem"), path("server.key"));
    let tls = |more: &str| {
        format!(
            "tls {{ cert_file: '{cert}', key_file: '{key}', ca_file: '{ca}', \
             timeout: 30, {more} }}\n"
        )
    };
    let client = |name: &str| (path(&format!("{name}.pem")), path(&format!("{name}.key")));
    for &shards in shard_counts() {
        let secret =
            format!("{}authorization {{ user: ann, password: pw, timeout: 30 }}\n", tls(""));
        let broker = Broker::with_config(shards, &secret);
        log_in(
            &broker,
            &[json!({"ca": ca, "user": "ann", "password": "pw"})],
            &[json!({"ca": ca, "user": "ann", "password": "no"})],
        );
        let users = "authorization { timeout: 30, users: [ { user: \"ann@example.com\" } ] }\n";
        let broker =
            Broker::with_config(shards, &format!("{}{users}", tls("verify_and_map: true")));
        let with = |(cert, key)| json!({"ca": ca, "cert": cert, "key": key});
        log_in(&broker, &[with(client("ann"))], &[with(client("eve")), json!({"ca": ca})]);
    }
}
