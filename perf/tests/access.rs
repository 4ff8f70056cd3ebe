//! Getting in: TLS and credentials, against nats-server, which has all of them.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking, as tests do")]

mod program;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use program::{error_of, json_of, nats_server, perf, perf_with};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair as CertificateKey,
};
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use tempfile::TempDir;

/// A directory with a server's configuration and all that belongs to it.
struct Site {
    dir: TempDir,
}

impl Site {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    /// The command of a server with this configuration.
    fn server(&self, program: &str, config: &str) -> String {
        let config = self.write("server.conf", config);
        format!("{program} -a 127.0.0.1 -p {{port}} -c '{config}'")
    }

    /// An authority, and certificates that it has signed for this host and for a client.
    fn with_certificates() -> Self {
        let site = Self::new();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority =
            CertifiedIssuer::self_signed(params, CertificateKey::generate().unwrap()).unwrap();
        site.write("ca.pem", &authority.pem());
        for (name, host) in [("server", "127.0.0.1"), ("client", "client.test")] {
            let key = CertificateKey::generate().unwrap();
            let params = CertificateParams::new(vec![host.to_owned()]).unwrap();
            let certificate = params.signed_by(&key, &authority).unwrap();
            site.write(&format!("{name}.pem"), &certificate.pem());
            site.write(&format!("{name}.key"), &key.serialize_pem());
        }
        site
    }

    /// The server's section `tls`, with more in it.
    fn tls(&self, more: &str) -> String {
        let file = |name| self.path(name).display().to_string();
        format!(
            "tls {{ cert_file: '{}', key_file: '{}', ca_file: '{}', {more} }}",
            file("server.pem"),
            file("server.key"),
            file("ca.pem")
        )
    }

    fn option(&self, option: &str, file: &str) -> String {
        format!("{option} {}", self.path(file).display())
    }
}

/// Messages of several read buffers' and of several TLS records' length arrive whole and in order,
/// and everything else works, too.
fn assert_all_works(server: &str, options: &str) {
    let load = "--verify --pubs 2 --subs 3 --warmup 50ms --duration 300ms";
    for command in [
        format!("throughput {load}"),
        format!("throughput {load} --payload 100KiB"),
        format!("latency {load} --rate 500 --lag-max 1s"),
    ] {
        let output = perf_with(&format!("{command} --json - {options}"), &["--server", server]);
        assert!(output.status.success(), "{command} {options}: {}", error_of(&output));
        assert!(json_of(&output)["delivered"].as_u64().unwrap() > 0, "{command} {options}");
    }
    let output = perf_with(
        &format!("rtt --warmup 50ms --duration 200ms --json - {options}"),
        &["--server", server],
    );
    assert!(json_of(&output)["replies"].as_u64().unwrap() > 0, "{}", error_of(&output));
    // Few at once: signing is slow in a program that is not optimised.
    let output = perf_with(
        &format!("connect --conns 50 --concurrency 4 --json - {options}"),
        &["--server", server],
    );
    assert_eq!(json_of(&output)["ready_us"]["count"], 50, "{}", error_of(&output));
}

/// The one line that it ends with.
fn refusal(server: &str, options: &str) -> String {
    let output = perf_with(&format!("throughput {options}"), &["--server", server]);
    let error = error_of(&output);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    error
}

#[test]
fn tls_is_spoken_when_the_server_requires_it() {
    let Some(program) = nats_server("TLS is to be spoken") else { return };
    let site = Site::with_certificates();
    let server = site.server(program, &site.tls(""));
    let authority = site.option("--tlsca", "ca.pem");
    assert_all_works(&server, &authority);
    assert_all_works(&server, "--tlsinsecure");
    let error = refusal(&server, "");
    assert!(error.contains("--tlsca"), "{error}");
    let error = refusal(&server, &site.option("--tlsca", "client.key"));
    assert!(error.contains("no certificate"), "{error}");
}

#[test]
fn tls_begins_before_info_where_the_server_wants_that() {
    let Some(program) = nats_server("TLS is to be spoken first") else { return };
    let site = Site::with_certificates();
    let server = site.server(program, &site.tls("handshake_first: true"));
    assert_all_works(&server, &format!("--tlsfirst {}", site.option("--tlsca", "ca.pem")));
}

#[test]
fn a_server_that_verifies_its_clients_gets_a_certificate() {
    let Some(program) = nats_server("clients are to be verified") else { return };
    let site = Site::with_certificates();
    let server = site.server(program, &site.tls("verify: true"));
    let authority = site.option("--tlsca", "ca.pem");
    let cert = site.option("--tlscert", "client.pem");
    let key = site.option("--tlskey", "client.key");
    assert_all_works(&server, &format!("{authority} {cert} {key}"));
    let error = refusal(&server, &authority);
    assert!(error.contains("TLS failed") || error.contains("closed"), "{error}");
}

#[test]
fn tls_that_is_asked_for_is_never_left_out() {
    let Some(program) = nats_server("TLS is to be refused") else { return };
    let error = refusal(&format!("{program} -a 127.0.0.1 -p {{port}}"), "--tls");
    assert!(error.contains("does not speak TLS"), "{error}");
    let output = perf("throughput --tlscert a.pem");
    assert!(error_of(&output).contains("--tlskey"), "{}", error_of(&output));
}

#[test]
fn an_nkey_signs_the_nonce() {
    let Some(program) = nats_server("an nkey is to sign") else { return };
    let (site, user) = (Site::new(), KeyPair::new_user());
    let users = format!("authorization {{ users: [ {{ nkey: {} }} ] }}", user.public_key());
    let server = site.server(program, &users);
    let seed = site.write("user.nk", &format!("{}\n", user.seed().unwrap()));
    assert_all_works(&server, &format!("--nkey {seed}"));
    let stranger = site.write("stranger.nk", &KeyPair::new_user().seed().unwrap());
    let error = refusal(&server, &format!("--nkey {stranger}"));
    assert!(error.contains("Authorization Violation"), "{error}");
    let error = refusal(&server, "");
    assert!(error.contains("--nkey"), "{error}");
}

/// A JWT as NATS has them: `claims` about `subject`, signed by `issuer`.
fn jwt(issuer: &KeyPair, subject: &KeyPair, claims: &Value) -> String {
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let head = json!({ "typ": "JWT", "alg": "ed25519-nkey" });
    let body = json!({
        "jti": subject.public_key(), "iat": 1_700_000_000, "iss": issuer.public_key(),
        "sub": subject.public_key(), "name": "perf", "nats": claims,
    });
    let text = format!("{}.{}", encode(&head), encode(&body));
    let signature = issuer.sign(text.as_bytes()).unwrap();
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
}

#[test]
fn a_creds_file_brings_its_jwt_and_signs_the_nonce() {
    let Some(program) = nats_server("a user has a JWT") else { return };
    let (operator, account) = (KeyPair::new_operator(), KeyPair::new_account());
    let (site, user) = (Site::new(), KeyPair::new_user());
    let operator_jwt = jwt(&operator, &operator, &json!({ "type": "operator", "version": 2 }));
    let limits = json!({
        "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true,
        "conn": -1, "leaf": -1,
    });
    let account_claims = json!({ "type": "account", "version": 2, "limits": limits });
    let account_jwt = jwt(&operator, &account, &account_claims);
    let server = site.server(
        program,
        &format!(
            "operator: {operator_jwt}\nresolver: MEMORY\nresolver_preload: {{ {}: {account_jwt} }}",
            account.public_key()
        ),
    );
    let unlimited = json!({ "type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1 });
    let creds = |issuer: &KeyPair| {
        format!(
            "-----BEGIN NATS USER JWT-----\n{}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
            jwt(issuer, &user, &unlimited),
            user.seed().unwrap()
        )
    };
    let file = site.write("user.creds", &creds(&account));
    assert_all_works(&server, &format!("--creds {file}"));
    let forged = site.write("forged.creds", &creds(&KeyPair::new_account()));
    let error = refusal(&server, &format!("--creds {forged}"));
    assert!(error.contains("Authorization Violation"), "{error}");
}
