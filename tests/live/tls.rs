//! TLS as clients use it: async-nats against the broker, with certificates made here.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;

use crate::broker::authority::Authority;
use crate::broker::peers::{meet, next, within};
use crate::broker::{Broker, PATIENCE, shard_counts};
use async_nats::{Client, ConnectOptions};
use futures::future::try_join_all;
use rcgen::SanType;
use rustix::process::Signal;
use rustls::client::WantsClientCert;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{AlertDescription, ClientConfig, ClientConnection, ConfigBuilder, StreamOwned};

/// What tests of clients need besides.
trait ForClients {
    fn sign_server(&self);
    fn sign_client(&self, file: &str, email: &str);
    fn config(&self, inside: &str, outside: &str) -> String;
    fn options(&self) -> ConnectOptions;
    fn options_of(&self, client: &str) -> ConnectOptions;
}

impl ForClients for Authority {
    fn sign_server(&self) {
        let local = SanType::DnsName("localhost".try_into().expect("a name"));
        self.sign("server", "server", vec![local]);
    }

    fn sign_client(&self, file: &str, email: &str) {
        self.sign(file, file, vec![SanType::Rfc822Name(email.try_into().expect("a name"))]);
    }

    /// A configuration with the block `tls`, `inside` in it and `outside` around it.
    fn config(&self, inside: &str, outside: &str) -> String {
        let path = |name: &str| self.file(name).display().to_string();
        let (cert, key, ca) = (path("server.pem"), path("server.key"), path("ca.pem"));
        format!(
            "tls {{\n cert_file: \"{cert}\"\n key_file: \"{key}\"\n ca_file: \"{ca}\"\n \
             {inside}\n}}\n{outside}\n"
        )
    }

    fn options(&self) -> ConnectOptions {
        ConnectOptions::new().require_tls(true).add_root_certificates(self.file("ca.pem"))
    }

    fn options_of(&self, client: &str) -> ConnectOptions {
        let file = |kind: &str| self.file(&format!("{client}.{kind}"));
        self.options().add_client_certificate(file("pem"), file("key"))
    }
}

fn authority() -> Authority {
    let authority = Authority::new("the authority of this test");
    authority.sign_server();
    authority
}

async fn connect(broker: &Broker, options: ConnectOptions) -> Result<Client, String> {
    let url = format!("tls://localhost:{}", broker.port());
    let connecting = options.connection_timeout(PATIENCE).connect(url);
    within(connecting).await.map_err(|error| format!("{error} ({:?})", error.kind()))
}

/// Sends messages of all sizes from one client to the other; all arrive in order and unharmed.
async fn exchange(from: &Client, to: &Client) {
    let mut inbox = to.subscribe("exchange").await.expect("connected");
    meet(to, from).await;
    let sizes = [0, 1, 100, 5000, 16_384, 16_385, 100_000, 1_000_000];
    let payload = |size: usize| -> Vec<u8> {
        (0..size).map(|at| u8::try_from((at * 31 + at / 251) % 256).expect("a byte")).collect()
    };
    for size in sizes {
        from.publish("exchange", payload(size).into()).await.expect("connected");
    }
    for size in sizes {
        let message = next(&mut inbox).await;
        assert!(*message.payload == *payload(size), "{size} bytes arrived as they were sent");
    }
}

#[tokio::test]
async fn messages_of_any_size_pass_between_clients_with_tls() {
    let authority = authority();
    for &shards in shard_counts() {
        let broker = Broker::with_config(shards, &authority.config("", ""));
        let options = || authority.options();
        let clients = try_join_all((0..4).map(|_| connect(&broker, options()))).await;
        let clients = clients.expect("they connect");
        for pair in clients.windows(2) {
            exchange(&pair[0], &pair[1]).await;
        }
    }
}

#[tokio::test]
async fn websockets_may_be_within_tls() {
    let authority = authority();
    for &shards in shard_counts() {
        let inside = authority.config("", "");
        let config = format!(
            "http: 127.0.0.1:-1\nwebsocket {{ listen: \"localhost:-1\", compression: true\n\
             {inside} }}"
        );
        let broker = Broker::with_config(shards, &config);
        let banner = broker.banner();
        let url = &banner[banner.find("wss://").expect("it is logged")..];
        let url = url.lines().next().expect("a line");
        let options = || authority.options().connection_timeout(PATIENCE);
        let clients = try_join_all((0..2).map(|_| within(options().connect(url)))).await;
        let clients = clients.expect("they connect");
        exchange(&clients[0], &clients[1]).await;
        exchange(&clients[1], &clients[0]).await;
    }
}

/// nats-server passes this too.
#[tokio::test]
async fn a_websocket_with_a_block_tls_has_tls_though_it_might_do_without() {
    let authority = authority();
    let inside = authority.config("", "");
    let config = format!("websocket {{ listen: \"localhost:-1\", no_tls: true\n{inside} }}");
    let broker = Broker::with_config(1, &config);
    let banner = broker.banner();
    let url = &banner[banner.find("wss://").expect("it is logged")..];
    let url = url.lines().next().expect("a line");
    let client = within(authority.options().connect(url)).await.expect("it connects");
    assert!(client.server_info().tls_required);
    exchange(&client, &client).await;
}

#[test]
fn tls_may_come_behind_the_header_of_a_proxy() {
    let authority = authority();
    let outside = "proxy_protocol: true\nhttp: 127.0.0.1:-1";
    let broker = Broker::with_config(1, &authority.config("", outside));
    let config = client_config(&authority.file("ca.pem"), rustls::ALL_VERSIONS);
    let mut stream = greeted(&broker);
    stream.write_all(b"PROXY TCP4 9.8.7.6 1.2.3.4 1111 4222\r\n").expect("it reads");
    let mut stream = secured(stream, config);
    stream.write_all(b"CONNECT {\"verbose\":false}\r\nPING\r\n").expect("it reads");
    let mut pong = [0; 6];
    stream.read_exact(&mut pong).expect("an answer");
    assert_eq!(&pong, b"PONG\r\n");
    let shown = crate::broker::http::json(&broker, "/connz");
    assert_eq!(shown["connections"][0]["ip"], "9.8.7.6");
}

#[tokio::test]
async fn the_handshake_may_come_before_info() {
    let authority = authority();
    let broker = Broker::with_config(1, &authority.config("handshake_first: true", ""));
    let first = connect(&broker, authority.options().tls_first()).await.expect("it connects");
    exchange(&first, &first).await;
}

#[tokio::test]
async fn a_server_that_waits_for_a_handshake_first_greets_in_clear_when_none_comes() {
    let authority = authority();
    let broker = Broker::with_config(1, &authority.config("handshake_first: 100ms", ""));
    let first = connect(&broker, authority.options().tls_first()).await.expect("it connects");
    let later = connect(&broker, authority.options()).await.expect("it connects");
    exchange(&first, &later).await;
}

#[tokio::test]
async fn where_tls_is_optional_clients_with_and_without_it_meet() {
    let authority = authority();
    let broker = Broker::with_config(2, &authority.config("", "allow_non_tls: true"));
    let secure = connect(&broker, authority.options()).await.expect("it connects");
    let plain = within(async_nats::connect(broker.url())).await.expect("it connects");
    exchange(&secure, &plain).await;
    exchange(&plain, &secure).await;
}

#[tokio::test]
async fn with_verify_only_clients_with_a_certificate_get_in() {
    let authority = authority();
    authority.sign_client("ann", "ann@example.com");
    let stranger = Authority::new("another authority");
    stranger.sign_client("bob", "ann@example.com");
    let broker = Broker::with_config(1, &authority.config("verify: true", ""));
    let ann = connect(&broker, authority.options_of("ann")).await.expect("it connects");
    exchange(&ann, &ann).await;
    connect(&broker, authority.options()).await.expect_err("it has no certificate");
    let (pem, key) = (stranger.file("bob.pem"), stranger.file("bob.key"));
    let bob = authority.options().add_client_certificate(pem, key);
    connect(&broker, bob).await.expect_err("nobody vouches for it");
}

#[tokio::test]
async fn the_certificate_says_which_user_a_client_is() {
    let authority = authority();
    authority.sign_client("ann", "ann@example.com");
    authority.sign_client("eve", "eve@example.com");
    let users = "authorization { users: [\n\
                 {user: \"ann@example.com\", permissions: {publish: [\"ann.>\", \"_INBOX.>\"]}}\n\
                 {user: \"CN=carl\"}\n] }";
    authority.sign("carl", "carl", Vec::new());
    let broker = Broker::with_config(2, &authority.config("verify_and_map: true", users));
    let ann = connect(&broker, authority.options_of("ann")).await.expect("it connects");
    let carl = connect(&broker, authority.options_of("carl")).await.expect("it connects");
    let mut all = carl.subscribe("*.1").await.expect("connected");
    meet(&carl, &ann).await;
    ann.publish("bob.1", "not allowed".into()).await.expect("connected");
    ann.publish("ann.1", "allowed".into()).await.expect("connected");
    let message = next(&mut all).await;
    assert_eq!(message.subject.as_str(), "ann.1");
    connect(&broker, authority.options_of("eve")).await.expect_err("no user has this address");
    // The name in CONNECT does not count, the password does.
    let with = |password: &str| {
        authority.options_of("ann").user_and_password("CN=carl".into(), password.into())
    };
    connect(&broker, with("")).await.expect("it is ann by its certificate");
    connect(&broker, with("x")).await.expect_err("ann has no such password");
}

#[tokio::test]
async fn monitoring_shows_what_a_handshake_came_to() {
    let authority = authority();
    authority.sign_client("ann", "ann@example.com");
    let config = authority.config("verify: true", "http: \"127.0.0.1:-1\"");
    let broker = Broker::with_config(1, &config);
    let _ann = connect(&broker, authority.options_of("ann")).await.expect("it connects");
    let connz = crate::broker::http::json(&broker, "/connz?auth=1");
    let conn = &connz["connections"][0];
    assert_eq!(conn["tls_version"], "1.3");
    assert_eq!(conn["tls_cipher_suite"], "TLS_AES_128_GCM_SHA256");
    let cert = &conn["tls_peer_certs"][0];
    assert_eq!(cert["subject"], "CN=ann");
    for digest in ["spki_sha256", "cert_sha256"] {
        assert_eq!(cert[digest].as_str().map(str::len), Some(64), "{digest}");
    }
}

#[tokio::test]
async fn only_pinned_certificates_get_in() {
    let authority = authority();
    authority.sign_client("ann", "ann@example.com");
    let pins = format!("verify: true\n pinned_certs: [\"{}\"]", "0".repeat(64));
    let broker = Broker::with_config(1, &authority.config(&pins, ""));
    connect(&broker, authority.options_of("ann")).await.expect_err("it is not the pinned one");
}

#[tokio::test]
async fn a_reload_takes_new_certificates_and_leaves_those_who_are_connected() {
    let (old, new) = (authority(), authority());
    let mut broker = Broker::with_config(2, &old.config("", ""));
    let before = connect(&broker, old.options()).await.expect("it connects");
    for file in ["server.pem", "server.key", "ca.pem"] {
        std::fs::copy(new.file(file), old.file(&format!("new-{file}"))).expect("copied");
        // Moved into place, so that no half file is ever read.
        std::fs::rename(old.file(&format!("new-{file}")), old.file(file)).expect("moved");
    }
    broker.signal(Signal::HUP);
    broker.wait_for_line("Reloaded server configuration");
    let after = connect(&broker, new.options()).await.expect("it trusts the new authority");
    exchange(&before, &after).await;
}

#[tokio::test]
async fn a_certificate_that_cannot_be_used_changes_nothing() {
    let authority = authority();
    let mut broker = Broker::with_config(1, &authority.config("", ""));
    std::fs::write(authority.file("server.key"), "no key").expect("written");
    broker.signal(Signal::HUP);
    broker.wait_for_line("cannot use");
    connect(&broker, authority.options()).await.expect("the old one is still in use");
}

#[test]
fn of_several_certificates_each_client_is_shown_the_one_for_the_name_it_asks_for() {
    let authority = Authority::new("the authority of this test");
    let pairs = ["one", "two"].map(|name| {
        authority.sign(name, name, vec![SanType::DnsName(name.try_into().expect("a name"))]);
        let file = |kind: &str| authority.file(&format!("{name}.{kind}")).display().to_string();
        format!("{{cert_file: \"{}\", key_file: \"{}\"}}", file("pem"), file("key"))
    });
    let broker = Broker::with_config(1, &format!("tls {{ certs: [{}] }}", pairs.join(", ")));
    for (asked, shown) in [("one", "one"), ("two", "two"), ("three", "one")] {
        let mut config = client_config(&authority.file("ca.pem"), rustls::ALL_VERSIONS);
        // The name does not matter here, only which certificate comes.
        config.dangerous().set_certificate_verifier(Arc::new(Anybody));
        let session = ClientConnection::new(config.into(), asked.try_into().expect("a name"));
        let mut stream = StreamOwned::new(session.expect("a session"), greeted(&broker));
        stream.write_all(b"CONNECT {\"verbose\":false}\r\nPING\r\n").expect("it reads");
        let mut pong = [0; 6];
        stream.read_exact(&mut pong).expect("an answer");
        let wanted = CertificateDer::from_pem_file(authority.file(&format!("{shown}.pem")));
        assert_eq!(stream.conn.peer_certificates().expect("one")[0], wanted.expect("one"));
    }
}

/// Takes any certificate.
#[derive(Debug)]
struct Anybody;

impl rustls::client::danger::ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        let provider = rustls::crypto::ring::default_provider();
        provider.signature_verification_algorithms.supported_schemes()
    }
}

#[tokio::test]
async fn without_a_ca_file_those_are_trusted_whom_the_system_trusts() {
    let authority = authority();
    authority.sign_client("ann", "ann@example.com");
    let file = |name: &str| authority.file(name).display().to_string();
    let (cert, key) = (file("server.pem"), file("server.key"));
    let config = format!("tls {{ cert_file: \"{cert}\", key_file: \"{key}\", verify: true }}");
    let broker = Broker::trusting(&authority.file("ca.pem"), 1, &config);
    connect(&broker, authority.options()).await.expect_err("it has no certificate");
    connect(&broker, authority.options_of("ann")).await.expect("the system vouches for her");
}

/// nats-server passes this too.
#[test]
fn tls_without_a_certificate_is_offered_in_vain_beside_clear_connections() {
    let broker = Broker::with_config(1, "tls {}\nallow_non_tls: true");
    let mut clear = greeted(&broker);
    clear.write_all(b"CONNECT {\"verbose\":false}\r\nPING\r\n").expect("it reads");
    let mut pong = [0; 6];
    clear.read_exact(&mut pong).expect("an answer");
    let authority = authority();
    let config = client_config(&authority.file("ca.pem"), rustls::ALL_VERSIONS);
    let mut stream = secured(greeted(&broker), config);
    stream.read(&mut [0]).expect_err("there is no certificate");
}

#[tokio::test]
async fn older_clients_speak_tls_1_2() {
    let authority = authority();
    let broker = Broker::with_config(1, &authority.config("", ""));
    let options = ConnectOptions::new().require_tls(true);
    let only_12 = client_config(&authority.file("ca.pem"), &[&rustls::version::TLS12]);
    let client = connect(&broker, options.tls_client_config(only_12)).await.expect("it connects");
    exchange(&client, &client).await;
    let broker = Broker::with_config(1, &authority.config("min_version: \"1.3\"", ""));
    let options = ConnectOptions::new().require_tls(true);
    let only_12 = client_config(&authority.file("ca.pem"), &[&rustls::version::TLS12]);
    connect(&broker, options.tls_client_config(only_12)).await.expect_err("1.2 is not wanted");
}

/// A connection that has got its INFO.
fn greeted(broker: &Broker) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", broker.port())).expect("it accepts");
    stream.set_read_timeout(Some(PATIENCE)).expect("not zero");
    let mut byte = [0];
    while byte != *b"\n" {
        stream.read_exact(&mut byte).expect("INFO");
    }
    stream
}

/// The same with TLS, whose handshake begins with the first use.
fn secured(stream: TcpStream, config: ClientConfig) -> StreamOwned<ClientConnection, TcpStream> {
    let name = "localhost".try_into().expect("a name");
    let session = ClientConnection::new(config.into(), name).expect("a session");
    StreamOwned::new(session, stream)
}

/// nats-server passes this too.
#[test]
fn a_goodbye_is_answered_at_once_and_nothing_follows_it() {
    let authority = authority();
    let broker = Broker::with_config(1, &authority.config("", ""));
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let config = client_config(&authority.file("ca.pem"), &[version]);
        let mut stream = secured(greeted(&broker), config);
        stream.write_all(b"CONNECT {\"verbose\":false}\r\nSUB a 1\r\nPING\r\n").expect("it reads");
        let mut pong = [0; 6];
        stream.read_exact(&mut pong).expect("an answer");
        stream.write_all(b"PUB a 2\r\nhi\r\nPING\r\n").expect("it reads");
        stream.conn.send_close_notify();
        stream.flush().expect("it reads");
        // Without a goodbye from the server, the end is an error here.
        let mut rest = String::new();
        stream.read_to_string(&mut rest).expect("the server's goodbye");
        assert_eq!(rest, "MSG a 1 2\r\nhi\r\nPONG\r\n");
        assert_eq!(stream.sock.read(&mut pong).expect("the end"), 0);
    }
}

/// nats-server passes this too.
#[test]
fn who_shows_a_certificate_of_an_unknown_authority_is_told_so() {
    let authority = authority();
    let broker = Broker::with_config(1, &authority.config("verify: true", ""));
    // One of another name, one of the same, and nobody but the client itself.
    let (other, twin) = (Authority::new("another authority"), self::authority());
    let shown = [&other, &twin].map(|stranger| {
        stranger.sign("bob", "bob", Vec::new());
        (stranger.file("bob.pem"), stranger.file("bob.key"))
    });
    let own = (twin.file("ca.pem"), twin.file("ca.key"));
    for (cert, key) in shown.into_iter().chain([own]) {
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            let config = client_config_of(&authority.file("ca.pem"), &[version], (&cert, &key));
            let mut stream = secured(greeted(&broker), config);
            let error = stream.read(&mut [0]).expect_err("nobody vouches for it");
            let told = error.get_ref().and_then(|error| error.downcast_ref());
            let unknown = rustls::Error::AlertReceived(AlertDescription::UnknownCA);
            assert_eq!(told, Some(&unknown), "{} {version:?}: {error}", cert.display());
        }
    }
}

fn client_config(
    ca_file: &Path,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> ClientConfig {
    trusting(ca_file, versions).with_no_client_auth()
}

/// The same with a certificate and its key.
fn client_config_of(
    ca_file: &Path,
    versions: &[&'static rustls::SupportedProtocolVersion],
    (cert, key): (&Path, &Path),
) -> ClientConfig {
    let cert = CertificateDer::from_pem_file(cert).expect("a certificate");
    let key = PrivateKeyDer::from_pem_file(key).expect("a key");
    let config = trusting(ca_file, versions).with_client_auth_cert(vec![cert], key);
    config.expect("a pair")
}

fn trusting(
    ca_file: &Path,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> ConfigBuilder<ClientConfig, WantsClientCert> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca_file).expect("a certificate")).expect("usable");
    ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
        .with_protocol_versions(versions)
        .expect("versions that exist")
        .with_root_certificates(roots)
}

#[tokio::test]
async fn many_handshakes_at_once_all_succeed_while_others_are_served() {
    let authority = authority();
    let broker = Broker::with_config(1, &authority.config("timeout: 30", ""));
    let settled = connect(&broker, authority.options()).await.expect("it connects");
    let storm = try_join_all((0..100).map(|_| connect(&broker, authority.options())));
    let (clients, ()) = futures::join!(storm, exchange(&settled, &settled));
    let clients = clients.expect("all connect");
    exchange(&clients[0], &clients[99]).await;
}

#[test]
fn who_does_not_speak_tls_is_closed_and_hears_nothing_that_could_be_misread() {
    let authority = authority();
    let config = authority.config("timeout: 0.2", "");
    let broker = Broker::with_config(1, &config);
    let sends: [&[u8]; 4] = [
        b"",
        b"CONNECT {}\r\nPING\r\n",
        b"\x16\x03\x01\x00\x05hello",
        b"\x16\x03\x01\x40\x00\x01\x00\x3f\xfc",
    ];
    for sent in sends {
        let mut socket = TcpStream::connect(("127.0.0.1", broker.port())).expect("connected");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        socket.write_all(sent).expect("sent");
        let mut heard = Vec::new();
        // A reset instead of an end is no lie either.
        let _ = socket.read_to_end(&mut heard);
        let text = String::from_utf8_lossy(&heard);
        assert!(text.starts_with("INFO "), "{text}");
        assert!(!text.contains("PONG") && !text.contains("+OK"), "{text}");
    }
}
