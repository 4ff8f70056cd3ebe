//! The status of certificates: staples of the server, and peers that responders know of. The
//! responder is `openssl ocsp`, behind a small server that can also be slow, silent, or lie.

#![expect(clippy::disallowed_types, reason = "tests share what they have heard between threads")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use async_nats::{Client, ConnectOptions};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{CustomExtension, SanType};
use rustix::process::Signal;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::Value;
use tempfile::TempDir;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::broker::authority::Authority;
use crate::broker::peers::{meet, next, within};
use crate::broker::{Broker, PATIENCE, has_original, server_command, shard_counts};

/// What a responder does with a question.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mood {
    /// It answers what it knows.
    Honest,
    /// It answers in the name of somebody else.
    Forging,
    /// It takes the question and says nothing.
    Silent,
    /// It never stops talking.
    Endless,
    /// It has an error.
    Broken,
}

/// What a responder knows, and what it was asked.
struct Book {
    dir: TempDir,
    mood: Mood,
    /// Lines about certificates, as openssl keeps them.
    index: String,
    minutes: u32,
    asked: Vec<String>,
}

/// An authority with a responder.
struct Responder {
    authority: Authority,
    port: u16,
    book: Arc<Mutex<Book>>,
}

impl Responder {
    fn start() -> Self {
        let (authority, forger) = (Authority::new("authority"), Authority::new("authority"));
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let dir = tempfile::tempdir().expect("a scratch directory");
        for (from, to) in [(&authority, "own"), (&forger, "forger")] {
            for kind in ["pem", "key"] {
                let (file, copy) = (from.file(&format!("ca.{kind}")), format!("{to}.{kind}"));
                std::fs::copy(file, dir.path().join(copy)).expect("a copy");
            }
        }
        let (index, asked) = (String::new(), Vec::new());
        let book = Book { dir, mood: Mood::Honest, index, minutes: 5, asked };
        let book = Arc::new(Mutex::new(book));
        let shared = Arc::clone(&book);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let book = Arc::clone(&shared);
                std::thread::spawn(move || serve(stream, &book));
            }
        });
        Self { authority, port, book }
    }

    fn set(&self, change: impl FnOnce(&mut Book)) {
        change(&mut self.book.lock().expect("nobody panics"));
    }

    fn asked(&self) -> usize {
        self.book.lock().expect("nobody panics").asked.len()
    }

    /// Issues a certificate that names the responder, and writes its status, `V` or `R`, into the
    /// book; any other status is none.
    fn issue(&self, file: &str, is_must: bool, status: char) {
        let mut extensions = vec![access(&format!("http://127.0.0.1:{}", self.port))];
        if is_must {
            let oid = [1, 3, 6, 1, 5, 5, 7, 1, 24];
            extensions.push(CustomExtension::from_oid_content(&oid, vec![0x30, 3, 2, 1, 5]));
        }
        let local = SanType::DnsName("localhost".try_into().expect("a name"));
        self.authority.sign_with(file, file, vec![local], extensions);
        self.note(file, status);
    }

    /// Writes the status of a certificate into the book, and what was written is gone.
    fn note(&self, file: &str, status: char) {
        let der = CertificateDer::from_pem_file(self.authority.file(&format!("{file}.pem")));
        let der = der.expect("a certificate");
        let (_, cert) = X509Certificate::from_der(&der).expect("a certificate");
        let serial: String = cert.raw_serial().iter().map(|byte| format!("{byte:02X}")).collect();
        let revoked = if status == 'R' { "200101000000Z" } else { "" };
        let line = format!("{status}\t491231235959Z\t{revoked}\t{serial}\tunknown\t/CN={file}\n");
        self.set(|book| {
            let others = book.index.lines().filter(|line| !line.contains(&serial));
            let mut index: String = others.map(|line| format!("{line}\n")).collect();
            if matches!(status, 'V' | 'R') {
                index.push_str(&line);
            }
            book.index = index;
        });
    }

    fn path(&self, file: &str) -> String {
        self.authority.file(file).display().to_string()
    }

    /// A block `tls` with the certificate of `file`.
    fn tls(&self, file: &str, more: &str) -> String {
        let (cert, key) = (self.path(&format!("{file}.pem")), self.path(&format!("{file}.key")));
        let ca = self.path("ca.pem");
        format!(
            "tls {{ cert_file: \"{cert}\", key_file: \"{key}\", ca_file: \"{ca}\", timeout: 30, \
             {more} }}\n"
        )
    }

    async fn connect(&self, broker: &Broker, file: &str) -> Result<Client, ()> {
        let path = |kind: &str| self.authority.file(&format!("{file}.{kind}"));
        let options = ConnectOptions::new()
            .require_tls(true)
            .add_root_certificates(self.authority.file("ca.pem"))
            .add_client_certificate(path("pem"), path("key"))
            .connection_timeout(PATIENCE);
        let url = format!("tls://localhost:{}", broker.port());
        let client = within(options.connect(url)).await.map_err(drop)?;
        // A client of TLS 1.3 is done before the server has seen its certificate.
        within(client.flush()).await.map_err(drop)?;
        Ok(client)
    }

    /// What a client sees of the server's staple: its status, or nothing.
    fn staple(&self, broker: &Broker) -> Option<String> {
        let said = handshake(broker, &self.authority.file("ca.pem"));
        assert!(said.contains("OCSP response:"), "{said}");
        let status = said.lines().find_map(|line| line.trim().strip_prefix("Cert Status: "));
        status.map(str::to_owned)
    }
}

/// What openssl says about a handshake that asks for a staple.
fn handshake(broker: &Broker, ca: &Path) -> String {
    let output = Command::new("openssl")
        .args(["s_client", "-status", "-servername", "localhost", "-connect"])
        .arg(format!("127.0.0.1:{}", broker.port()))
        .arg("-CAfile")
        .arg(ca)
        .stdin(Stdio::null())
        .output()
        .expect("openssl is there");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The extension that names a responder.
fn access(url: &str) -> CustomExtension {
    let element = |tag: u8, content: &[u8]| {
        [&[tag, u8::try_from(content.len()).expect("short")], content].concat()
    };
    let ocsp = element(6, &[0x2b, 6, 1, 5, 5, 7, 0x30, 1]);
    let one = [ocsp, element(0x86, url.as_bytes())].concat();
    let content = element(0x30, &element(0x30, &one));
    CustomExtension::from_oid_content(&[1, 3, 6, 1, 5, 5, 7, 1, 1], content)
}

/// Answers one question.
fn serve(mut stream: TcpStream, book: &Mutex<Book>) {
    let mut unread = Vec::new();
    let (head, question) = loop {
        let mut chunk = [0; 4096];
        match stream.read(&mut chunk) {
            Ok(read @ 1..) => unread.extend_from_slice(&chunk[..read]),
            _ => return,
        }
        let Some(end) = unread.windows(4).position(|end| end == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&unread[..end]).into_owned();
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
        });
        let length: usize = length.unwrap_or(0);
        if unread.len() >= end + 4 + length {
            break (head, unread[end + 4..end + 4 + length].to_vec());
        }
    };
    let method = head.split(' ').next().expect("a method").to_owned();
    let question = match method.as_str() {
        "GET" => {
            let path = head.split(' ').nth(1).expect("a path").trim_start_matches('/');
            let text: String = form_urlencoded::parse(format!("q={path}").as_bytes())
                .map(|(_, value)| value.into_owned())
                .collect();
            STANDARD.decode(text).expect("base64")
        }
        _ => question,
    };
    let mood = {
        let mut book = book.lock().expect("nobody panics");
        book.asked.push(method);
        book.mood
    };
    let answer = match mood {
        Mood::Honest | Mood::Forging => openssl(book, mood, &question),
        Mood::Silent => {
            let _ = stream.read(&mut [0]);
            return;
        }
        Mood::Endless => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
            while stream.write_all(&[b'x'; 4096]).is_ok() {}
            return;
        }
        Mood::Broken => {
            let _ = stream
                .write_all(b"HTTP/1.1 500 Oops\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
            return;
        }
    };
    let length = answer.len();
    let head = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
    let _ = stream.write_all(&[head.as_bytes(), &answer].concat());
}

/// The answer of openssl to a question.
fn openssl(book: &Mutex<Book>, mood: Mood, question: &[u8]) -> Vec<u8> {
    let book = book.lock().expect("nobody panics");
    let file = |name: &str| book.dir.path().join(name);
    std::fs::write(file("index"), &book.index).expect("written");
    std::fs::write(file("question"), question).expect("written");
    let signer = if mood == Mood::Forging { "forger" } else { "own" };
    let output = Command::new("openssl")
        .args(["ocsp", "-nmin", &book.minutes.to_string(), "-index"])
        .arg(file("index"))
        .arg("-CA")
        .arg(file("own.pem"))
        .arg("-rsigner")
        .arg(file(&format!("{signer}.pem")))
        .arg("-rkey")
        .arg(file(&format!("{signer}.key")))
        .arg("-reqin")
        .arg(file("question"))
        .arg("-respout")
        .arg(file("answer"))
        .output()
        .expect("openssl is there");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    std::fs::read(file("answer")).unwrap_or_else(|error| panic!("{error}: {said}"))
}

/// What a server that does not start says.
fn refused(config: &str) -> String {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), config.to_owned() + "\nport: -1\n").expect("written");
    let mut command = Command::new("timeout");
    command.arg("60").arg(server_command()).arg("-c").arg(file.path());
    let output = command.output().expect("timeout(1) is there");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    said
}

fn servers(config: &str) -> Vec<Broker> {
    let mut all: Vec<Broker> =
        shard_counts().iter().map(|&shards| Broker::with_config(shards, config)).collect();
    if has_original() {
        all.push(Broker::original(config));
    }
    all
}

/// nats-server passes this too, and is started beside.
#[test]
fn certificates_are_stapled_as_they_demand_and_as_the_mode_says() {
    let responder = Responder::start();
    responder.issue("plain", false, 'V');
    responder.issue("must", true, 'V');
    responder.issue("bad", true, 'R');
    for (file, mode, wanted) in [
        ("plain", "", None),
        ("plain", "ocsp: true", None),
        ("plain", "ocsp { mode: must }", None),
        ("plain", "ocsp { mode: always }", Some("good")),
        ("must", "", Some("good")),
        ("must", "ocsp { mode: auto }", Some("good")),
        ("must", "ocsp { mode: must }", Some("good")),
        ("must", "ocsp: false", None),
        ("bad", "ocsp: true", Some("revoked")),
        ("bad", "ocsp { mode: never }", None),
    ] {
        let config = responder.tls(file, "handshake_first: true") + mode;
        for broker in servers(&config) {
            let staple = responder.staple(&broker);
            assert_eq!(staple.as_deref(), wanted, "{file} with {mode:?}");
        }
    }
}

#[test]
fn a_server_that_needs_a_staple_does_not_start_without_a_good_one() {
    let responder = Responder::start();
    responder.issue("must", true, 'V');
    responder.issue("bad", true, 'R');
    let of = |file: &str, more: &str| refused(&(responder.tls(file, "") + more));
    for mode in ["must", "always"] {
        let said = of("bad", &format!("ocsp {{ mode: {mode} }}"));
        assert!(said.contains("found existing OCSP status for certificate at"), "{said}");
        assert!(said.contains(": revoked; replace the certificate"), "{said}");
    }
    let bad = "bad OCSP status update for certificate at '";
    for mood in [Mood::Broken, Mood::Endless] {
        responder.set(|book| book.mood = mood);
        let said = of("must", "");
        assert!(said.contains(bad) && said.contains("': exhausted ocsp servers: POST"), "{said}");
    }
    responder.set(|book| book.mood = Mood::Forging);
    assert!(of("must", "").contains("is not signed by the issuer"));
    let said = of("must", "ocsp { url: \"http://127.0.0.1:1\" }");
    assert!(said.contains("POST http://127.0.0.1:1"), "{said}");
    let local = SanType::DnsName("localhost".try_into().expect("a name"));
    responder.authority.sign("lonely", "lonely", vec![local]);
    let said = of("lonely", "ocsp { mode: always }");
    assert!(said.contains("no available ocsp servers"), "{said}");
}

#[test]
fn a_staple_is_kept_in_the_store_directory_and_renewed_by_a_reload_of_the_certificate() {
    let responder = Responder::start();
    responder.issue("must", true, 'V');
    responder.issue("next", true, 'V');
    let dir = tempfile::tempdir().expect("a scratch directory");
    let config = |file: &str| {
        let store = format!("store_dir: \"{}\"\n", dir.path().display());
        responder.tls(file, "handshake_first: true") + &store + "ocsp { mode: must }\n"
    };
    let mut broker = Broker::with_config(1, &config("must"));
    assert_eq!(responder.asked(), 1);
    let files = || std::fs::read_dir(dir.path().join("ocsp")).expect("a directory").count();
    assert_eq!(files(), 1);
    responder.set(|book| book.mood = Mood::Broken);
    broker.restart();
    assert_eq!((responder.staple(&broker).as_deref(), responder.asked()), (Some("good"), 1));
    // A certificate without a staple is not put in force.
    broker.reconfigure(&config("next"));
    broker.wait_for_line("Failed to reload server configuration: bad OCSP status update");
    assert_eq!(responder.staple(&broker).as_deref(), Some("good"));
    responder.set(|book| book.mood = Mood::Honest);
    broker.reload(&config("next"));
    assert_eq!((responder.staple(&broker).as_deref(), files()), (Some("good"), 2));
    responder.note("next", 'R');
    broker.reload(&(config("next") + "max_payload: 1000\n"));
    assert_eq!(responder.staple(&broker).as_deref(), Some("good"), "until it is asked for again");
}

#[test]
fn an_old_staple_stays_until_its_end_and_then_no_handshake_succeeds() {
    let responder = Responder::start();
    responder.issue("must", true, 'V');
    responder.set(|book| book.minutes = 1);
    let config = responder.tls("must", "handshake_first: true");
    let mut broker = Broker::with_config(2, &config);
    responder.set(|book| book.mood = Mood::Broken);
    broker.wait_for_line("Bad OCSP status update for certificate '");
    assert_eq!(responder.staple(&broker).as_deref(), Some("good"));
    broker.wait_for_line("no handshake succeeds until a responder answers");
    let said = handshake(&broker, &responder.authority.file("ca.pem"));
    assert!(!said.contains("BEGIN CERTIFICATE"), "{said}");
    responder.set(|book| book.mood = Mood::Honest);
    broker.wait_for_line("Received OCSP status for Client certificate '");
    assert_eq!(responder.staple(&broker).as_deref(), Some("good"));
}

#[test]
fn a_certificate_that_is_revoked_ends_a_server_that_must_have_a_good_one() {
    let responder = Responder::start();
    responder.issue("plain", false, 'V');
    responder.set(|book| book.minutes = 1);
    let config = responder.tls("plain", "") + "ocsp { mode: always }";
    let mut broker = Broker::with_config(1, &config);
    responder.note("plain", 'R');
    broker.wait_for_line("Received OCSP status for Client certificate '");
    assert!(!broker.wait_for_exit().success());
}

/// A configuration that checks peers, with a memory in `dir`.
fn checking(responder: &Responder, dir: &Path, peer: &str, more: &str) -> String {
    let cache = format!(
        "ocsp_cache {{ local_store: \"{}\", save_interval: 1 }}\n",
        dir.join("cache").display()
    );
    responder.tls("server", &format!("verify: true, ocsp_peer: {peer}")) + &cache + more
}

/// nats-server passes this too, and is started beside.
#[tokio::test]
async fn peers_come_in_as_their_status_and_the_options_say() {
    let responder = Responder::start();
    responder.issue("server", false, 'V');
    for (file, status) in [("good", 'V'), ("bad", 'R'), ("odd", '-')] {
        responder.issue(file, false, status);
    }
    for (peer, mood, wanted) in [
        ("true", Mood::Honest, [true, false, false]),
        ("{ verify: false }", Mood::Honest, [true, true, true]),
        ("{ verify: true, warn_only: true }", Mood::Honest, [true, true, true]),
        ("{ verify: true, unknown_is_good: true }", Mood::Honest, [true, false, true]),
        ("true", Mood::Broken, [false, false, false]),
        ("{ verify: true, allow_when_ca_unreachable: true }", Mood::Broken, [true, true, true]),
        ("{ verify: true, warn_only: true }", Mood::Broken, [true, true, true]),
        ("true", Mood::Forging, [false, false, false]),
        ("{ verify: true, allow_when_ca_unreachable: true }", Mood::Forging, [false; 3]),
        ("{ verify: true, ca_timeout: 1 }", Mood::Silent, [false, false, false]),
    ] {
        responder.set(|book| book.mood = mood);
        let dir = tempfile::tempdir().expect("a scratch directory");
        let config = checking(&responder, dir.path(), peer, "");
        for broker in servers(&config) {
            for (file, wanted) in ["good", "bad", "odd"].into_iter().zip(wanted) {
                let is_in = responder.connect(&broker, file).await.is_ok();
                assert_eq!(is_in, wanted, "{file} with {peer}");
            }
            let _ = std::fs::remove_dir_all(dir.path().join("cache"));
        }
    }
}

#[tokio::test]
async fn what_a_responder_has_said_is_remembered_and_saved_and_forgotten_without_a_cache() {
    let responder = Responder::start();
    responder.issue("server", false, 'V');
    responder.issue("good", false, 'V');
    responder.issue("bad", false, 'R');
    let dir = tempfile::tempdir().expect("a scratch directory");
    let config = checking(&responder, dir.path(), "true", "");
    let mut broker = Broker::with_config(2, &config);
    let first = responder.connect(&broker, "good").await.expect("good");
    let second = responder.connect(&broker, "good").await.expect("good");
    meet(&first, &second).await;
    assert_eq!(responder.asked(), 1, "the second time it is known");
    responder.connect(&broker, "bad").await.expect_err("revoked");
    responder.connect(&broker, "bad").await.expect_err("revoked");
    assert_eq!(responder.asked(), 2);
    broker.signal(Signal::TERM);
    broker.wait_for_exit();
    let file = std::fs::read(dir.path().join("cache/cache.json")).expect("it is saved at the end");
    broker.restart();
    let saved: Value = serde_json::from_slice(&file).expect("JSON");
    let mut saved: Vec<(&str, &str)> = saved
        .as_object()
        .expect("a map")
        .values()
        .map(|one| {
            let text = |key: &str| one[key].as_str().expect("text");
            (text("subject"), text("resp_status"))
        })
        .collect();
    saved.sort_unstable();
    assert_eq!(saved, [("CN=bad", "revoked"), ("CN=good", "good")]);
    responder.set(|book| book.mood = Mood::Broken);
    responder.connect(&broker, "good").await.expect("the file says so");
    responder.connect(&broker, "bad").await.expect_err("the file says so");
    assert_eq!(responder.asked(), 2);
    // nats-server understands the file.
    if has_original() {
        let original = Broker::original(&config);
        responder.connect(&original, "good").await.expect("the file says so");
        responder.connect(&original, "bad").await.expect_err("the file says so");
        assert_eq!(responder.asked(), 2);
    }
    responder.set(|book| book.mood = Mood::Honest);
    let without = responder.tls("server", "verify: true, ocsp_peer: true") + "ocsp_cache: false";
    broker.reload(&without);
    for asked in [3, 4] {
        responder.connect(&broker, "good").await.expect("good");
        assert_eq!(responder.asked(), asked);
    }
}

#[tokio::test]
async fn a_silent_responder_holds_up_nobody_but_those_about_whom_it_is_asked() {
    let responder = Responder::start();
    responder.issue("server", false, 'V');
    responder.issue("good", false, 'V');
    responder.issue("late", false, 'V');
    let dir = tempfile::tempdir().expect("a scratch directory");
    let config = checking(&responder, dir.path(), "{ verify: true, ca_timeout: 20 }", "");
    let broker = Broker::with_config(1, &config);
    let known = responder.connect(&broker, "good").await.expect("good");
    responder.set(|book| book.mood = Mood::Silent);
    let waiting: Vec<_> = (0..80).map(|_| responder.connect(&broker, "late")).collect();
    let waiting = futures::future::join_all(waiting);
    let others = async {
        for _ in 0..20 {
            let other = responder.connect(&broker, "good").await.expect("it is known");
            meet(&known, &other).await;
        }
    };
    tokio::select! {
        _ = waiting => panic!("nothing is said about the late"),
        () = others => {}
    }
}

#[tokio::test]
async fn clients_of_a_websocket_and_leaf_nodes_are_checked_too() {
    let responder = Responder::start();
    for (file, status) in [("server", 'V'), ("good", 'V'), ("bad", 'R')] {
        responder.issue(file, false, status);
    }
    let checked = responder.tls("server", "verify: true, ocsp_peer: true");
    let config = format!(
        "websocket {{ listen: \"127.0.0.1:-1\", {checked} }}\n\
         leafnodes {{ listen: \"127.0.0.1:-1\", {checked} }}\nocsp_cache: false\n"
    );
    for &shards in shard_counts() {
        let mut hub = Broker::with_config(shards, &config);
        let port = hub.logged_port("Listening for websocket clients on wss://127.0.0.1:");
        for (file, wanted) in [("good", true), ("bad", false)] {
            let path = |kind: &str| responder.authority.file(&format!("{file}.{kind}"));
            let options = ConnectOptions::new()
                .add_root_certificates(responder.authority.file("ca.pem"))
                .add_client_certificate(path("pem"), path("key"))
                .connection_timeout(PATIENCE);
            let url = format!("wss://localhost:{port}");
            let is_in = within(options.connect(url)).await.is_ok();
            assert_eq!(is_in, wanted, "{file}");
        }
        let port = hub.logged_port("Listening for leafnode connections on 127.0.0.1:");
        let leaf = |file: &str, more: &str| {
            let tls = responder.tls(file, more);
            let remote = format!("url: \"tls://localhost:{port}\", {tls}");
            Broker::with_config(1, &format!("leafnodes {{ remotes: [{{ {remote} }}] }}"))
        };
        let mut good = leaf("good", "ocsp_peer: true");
        good.wait_for_line("Leafnode connection created");
        let _bad = leaf("bad", "");
        hub.wait_for_line("TLS leafnode handshake error: client not OCSP valid");
        // The hub is checked by its leaf node.
        responder.note("server", 'R');
        let mut wary = leaf("good", "ocsp_peer: true");
        wary.wait_for_line("TLS leafnode handshake error: server not OCSP valid");
        responder.note("server", 'V');
    }
}

#[tokio::test]
async fn the_system_account_hears_of_a_peer_that_is_refused() {
    let responder = Responder::start();
    for (file, status) in [("server", 'V'), ("good", 'V'), ("bad", 'R')] {
        responder.issue(file, false, status);
    }
    let dir = tempfile::tempdir().expect("a scratch directory");
    let accounts = "accounts { SYS { users: [{ user: s, password: s }] } }\n\
                    system_account: SYS\nno_auth_user: s\n";
    let config = checking(&responder, dir.path(), "true", accounts);
    let broker = Broker::with_config(2, &config);
    let system = responder.connect(&broker, "good").await.expect("good");
    let mut events = system.subscribe("$SYS.SERVER.*.OCSP.PEER.>").await.expect("connected");
    system.flush().await.expect("connected");
    responder.connect(&broker, "bad").await.expect_err("revoked");
    for (end, kind, reason) in [
        ("LINK.INVALID", "ocsp_peer_link_invalid", "Invalid OCSP response status: revoked"),
        ("CONN.REJECT", "ocsp_peer_reject", "client not OCSP valid"),
    ] {
        let event = next(&mut events).await;
        assert!(event.subject.ends_with(end), "{}", event.subject);
        let event: Value = serde_json::from_slice(&event.payload).expect("JSON");
        assert_eq!(event["type"], format!("io.nats.server.advisory.v1.{kind}"));
        assert_eq!(event["peer"]["subject"], "CN=bad");
        assert_eq!(event["peer"]["issuer"], "CN=authority");
        assert_eq!(event["reason"], reason);
    }
}

/// nats-server refuses this too.
#[test]
fn peers_are_checked_only_where_they_show_certificates() {
    let responder = Responder::start();
    responder.issue("server", false, 'V');
    let said = refused(&responder.tls("server", "ocsp_peer: true"));
    assert!(said.contains("requires TLS verify (mTLS) to be enabled"), "{said}");
    let said = refused(&responder.tls("server", "verify: true, ocsp_peer { foo: 1 }"));
    assert!(said.contains("foo"), "{said}");
}

#[test]
fn servers_of_a_cluster_demand_of_each_other_what_they_have_themselves() {
    let responder = Responder::start();
    for (file, status) in [("one", 'V'), ("two", 'V'), ("bad", 'R')] {
        responder.issue(file, false, status);
    }
    let member = |file: &str, mode: &str, routes: &str| {
        let tls = responder.tls(file, "");
        format!(
            "ocsp {{ mode: {mode} }}\n\
             cluster {{ name: C, listen: \"127.0.0.1:-1\", {tls} {routes} }}"
        )
    };
    let mut stapled = Broker::with_config(2, &member("one", "always", ""));
    let routes = |port: u16| format!("routes: [\"nats-route://localhost:{port}\"]");
    let port = stapled.route_port();
    let mut other = Broker::with_config(2, &member("two", "always", &routes(port)));
    other.wait_for_line("Route connection created");
    let mut bare = Broker::with_config(1, &member("bad", "auto", ""));
    let mut wary = Broker::with_config(1, &member("two", "always", &routes(bare.route_port())));
    wary.wait_for_line("Router peer missing OCSP Staple");
}
