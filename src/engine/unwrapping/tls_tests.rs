use std::io::Write;
use std::rc::Rc;
use std::sync::Arc;

use rcgen::CertifiedKey;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::*;
use crate::config::{HttpOptions, Options, StartError};
use crate::engine::{Engine, Identity, Output, Peer, Settings, ShardId};
use crate::output::Piece;

/// Options with TLS, and a client's that trusts them.
fn options(block: &str) -> (Options, Arc<ClientConfig>) {
    let names = vec!["localhost".to_owned()];
    let CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(names).expect("a certificate");
    let dir = tempfile::tempdir().expect("a scratch directory");
    let file = |name: &str, text: String| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.display().to_string()
    };
    let (cert_file, key_file) =
        (file("cert", cert.pem()), file("key", signing_key.serialize_pem()));
    let text = format!("tls {{ cert_file: '{cert_file}', key_file: '{key_file}', {block} }}");
    let options = loaded(&file("conf", text)).unwrap_or_else(|error| panic!("{error}"));
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(cert.der().to_vec())).expect("usable");
    let provider = rustls::crypto::ring::default_provider().into();
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    (options, Arc::new(client))
}

fn loaded(path: &str) -> Result<Options, StartError> {
    use crate::config::args::{Command, parse};
    match parse(["-c".to_owned(), path.to_owned()])? {
        Command::Serve(args) => crate::config::load(&args),
        _ => unreachable!("-c serves"),
    }
}

/// A client whose bytes are cut anywhere, and an engine that sends in pieces of any size.
struct Wire {
    engine: Engine,
    rng: fastrand::Rng,
    batches: Vec<(ConnId, Vec<Piece>, usize)>,
}

struct Client {
    id: ConnId,
    session: ClientConnection,
    /// INFO in clear, up to its line end.
    greeting: Vec<u8>,
    heard: Vec<u8>,
    has_heard_goodbye: bool,
    closed: bool,
}

impl Wire {
    fn new(options: &Options, seed: u64) -> Self {
        let settings = Settings::new(options, &Identity::default(), usize::MAX);
        let engine = Engine::new(ShardId(0), 1, Rc::new(settings), seed);
        Self { engine, rng: fastrand::Rng::with_seed(seed), batches: Vec::new() }
    }

    fn connect(&mut self, slot: u32, config: &Arc<ClientConfig>) -> Client {
        let id = ConnId { slot, generation: 0 };
        self.engine.open(id, Peer { cid: u64::from(slot), ip: "".into(), port: 1 }, true);
        let name = "localhost".try_into().expect("a name");
        let mut session = ClientConnection::new(Arc::clone(config), name).expect("a session");
        session.set_buffer_limit(None);
        Client {
            id,
            session,
            greeting: Vec::new(),
            heard: Vec::new(),
            has_heard_goodbye: false,
            closed: false,
        }
    }

    /// Takes one turn: some of the client's output, some of the engine's.
    fn turn(&mut self, clients: &mut [Client]) {
        for client in clients.iter_mut() {
            let mut bytes = Vec::new();
            let greeted = client.greeting.ends_with(b"\r\n");
            while greeted && client.session.wants_write() {
                client.session.write_tls(&mut bytes).expect("memory");
            }
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let (head, tail) = rest.split_at(self.rng.usize(1..=rest.len()));
                self.engine.on_bytes(client.id, head);
                rest = tail;
            }
        }
        self.engine.tick();
        self.engine.end_turn();
        while let Some(action) = self.engine.next_output() {
            match action {
                Output::Flush(id) => {
                    if let Some(batch) = self.engine.take_batch(id) {
                        self.batches.push((id, batch, 0));
                    }
                }
                Output::Close { conn, .. } => {
                    let client = clients.iter_mut().find(|client| client.id == conn);
                    client.expect("one of ours").closed = true;
                    self.engine.on_closed(conn, None);
                }
                _ => {}
            }
        }
        for (id, batch, sent) in std::mem::take(&mut self.batches) {
            let bytes: Vec<u8> = batch.iter().flat_map(|piece| piece.bytes()).copied().collect();
            let now = self.rng.usize(1..=bytes.len() - sent);
            let client = clients.iter_mut().find(|client| client.id == id);
            client.expect("one of ours").receive(&bytes[sent..sent + now]);
            if sent + now == bytes.len() {
                self.engine.on_sent(id, now, Some(batch));
            } else {
                self.engine.on_sent(id, now, None);
                self.batches.push((id, batch, sent + now));
            }
        }
    }
}

impl Client {
    fn say(&mut self, text: &str) {
        self.session.writer().write_all(text.as_bytes()).expect("memory");
    }

    fn receive(&mut self, mut bytes: &[u8]) {
        use std::io::Read;
        while !bytes.is_empty() && !self.greeting.ends_with(b"\r\n") {
            self.greeting.push(bytes[0]);
            bytes = &bytes[1..];
        }
        while !bytes.is_empty() {
            self.session.read_tls(&mut bytes).expect("memory");
            let state = self.session.process_new_packets().expect("records in order");
            self.has_heard_goodbye = state.peer_has_closed();
            let _ = self.session.reader().read_to_end(&mut self.heard);
        }
    }
}

#[test]
fn wherever_both_directions_are_cut_the_same_messages_arrive() {
    let (options, config) = options("");
    for seed in 0..20 {
        let mut wire = Wire::new(&options, seed);
        let mut clients = [wire.connect(0, &config), wire.connect(1, &config)];
        clients[0].say("CONNECT {\"verbose\":false}\r\nSUB a 7\r\nPING\r\n");
        while !clients[0].heard.ends_with(b"PONG\r\n") {
            wire.turn(&mut clients);
        }
        let payload = "x".repeat(40_000);
        let publish = format!("PUB a {}\r\n{payload}\r\n", payload.len());
        clients[1].say("CONNECT {\"verbose\":false}\r\n");
        (0..5).for_each(|_| clients[1].say(&publish));
        clients[1].say("bogus\r\n");
        clients[0].heard.clear();
        let wanted = format!("MSG a 7 {}\r\n{payload}\r\n", payload.len()).repeat(5);
        while clients[0].heard.len() < wanted.len() || !clients[1].closed {
            wire.turn(&mut clients);
        }
        assert!(clients[0].heard == wanted.as_bytes(), "seed {seed}");
        let error = String::from_utf8_lossy(&clients[1].heard);
        assert_eq!(error, "-ERR 'Unknown Protocol Operation'\r\n");
        assert_eq!(wire.engine.core.spares.held_bytes(), 0, "all memory came home");
    }
}

#[test]
fn handshakes_stand_in_line_and_a_turn_takes_one_step() {
    let (options, config) = options("");
    let mut wire = Wire::new(&options, 1);
    for slot in 0..10 {
        let mut client = wire.connect(slot, &config);
        let mut hello = Vec::new();
        client.session.write_tls(&mut hello).expect("memory");
        wire.engine.on_bytes(client.id, &hello);
    }
    for turn in 0..=10 {
        let conns = wire.engine.core.conns.slots.iter().flatten();
        let begun = conns.filter(|conn| conn.layers.has_session());
        assert_eq!(begun.count(), turn * HANDSHAKE_STEPS_PER_TURN);
        let is_due =
            wire.engine.next_deadline().is_some_and(|due| due <= wire.engine.core.times.now);
        assert_eq!(is_due, turn < 10, "nobody sleeps while somebody stands in line");
        wire.engine.tick();
    }
}

#[test]
fn who_sends_more_than_a_handshake_needs_is_not_read_from_until_its_step() {
    let (options, config) = options("");
    let mut wire = Wire::new(&options, 1);
    let mut client = wire.connect(0, &config);
    let mut hello = Vec::new();
    client.session.write_tls(&mut hello).expect("memory");
    hello.resize(16 * 1024 + 1, 0x17);
    wire.engine.on_bytes(client.id, &hello);
    let actions = |engine: &mut Engine| -> Vec<Output> {
        std::iter::from_fn(|| engine.next_output()).collect()
    };
    assert!(
        actions(&mut wire.engine)
            .iter()
            .any(|it| matches!(it, Output::Pause(conn) if *conn == client.id))
    );
    wire.engine.tick();
    assert!(
        actions(&mut wire.engine)
            .iter()
            .any(|it| matches!(it, Output::Resume(conn) if *conn == client.id))
    );
}

#[test]
fn who_sends_on_and_on_before_the_first_step_of_its_handshake_is_closed() {
    let (options, config) = options("");
    let mut wire = Wire::new(&options, 1);
    let client = wire.connect(0, &config);
    for _ in 0..1000 {
        wire.engine.on_bytes(client.id, &[0x16; 1000]);
    }
    let conn = wire.engine.core.conns.get(client.id).expect("it was not said to be closed");
    assert!(!conn.is_open());
    assert_eq!(conn.layers.waiting_bytes(), (0, 0));
}

#[test]
fn a_goodbye_is_answered_once_what_came_before_it_is() {
    let (options, config) = options("");
    for seed in 0..20 {
        let mut wire = Wire::new(&options, seed);
        let mut clients = [wire.connect(0, &config)];
        while clients[0].session.is_handshaking() {
            wire.turn(&mut clients);
        }
        clients[0].say("CONNECT {\"verbose\":false}\r\nSUB a 1\r\nPUB a 2\r\nhi\r\nPING\r\n");
        clients[0].session.send_close_notify();
        while !clients[0].closed {
            wire.turn(&mut clients);
        }
        assert!(clients[0].has_heard_goodbye, "seed {seed}");
        assert_eq!(clients[0].heard, b"MSG a 1 2\r\nhi\r\nPONG\r\n", "seed {seed}");
    }
}

#[test]
fn what_follows_a_clients_goodbye_is_not_looked_at() {
    let (options, config) = options("");
    let mut wire = Wire::new(&options, 1);
    let mut clients = [wire.connect(0, &config)];
    clients[0].say("CONNECT {\"verbose\":false}\r\nPING\r\n");
    while clients[0].heard.is_empty() {
        wire.turn(&mut clients);
    }
    clients[0].session.send_close_notify();
    let mut bytes = Vec::new();
    clients[0].session.write_tls(&mut bytes).expect("memory");
    bytes.extend_from_slice(b"more");
    wire.engine.on_bytes(clients[0].id, &bytes);
    wire.engine.on_bytes(clients[0].id, b"and more");
    while !clients[0].closed {
        wire.turn(&mut clients);
    }
    assert!(clients[0].has_heard_goodbye);
}

#[test]
fn who_begins_no_handshake_in_time_is_closed() {
    let (options, config) = options("timeout: 3");
    let mut wire = Wire::new(&options, 1);
    let mut clients = [wire.connect(0, &config)];
    wire.engine.set_now(2_999_000_000);
    wire.turn(&mut clients);
    assert!(!clients[0].closed);
    wire.engine.set_now(3_000_000_000);
    while !clients[0].closed {
        wire.turn(&mut clients);
    }
}

#[test]
fn why_a_client_gives_its_handshake_up_is_known_though_it_is_gone_at_once() {
    let ((mut options, _), (_, stranger)) = (options(""), options(""));
    options.monitoring.http = Some(HttpOptions { host: None, port: 0, is_tls: false });
    let mut wire = Wire::new(&options, 1);
    let Client { id, mut session, .. } = wire.connect(0, &stranger);
    let sent = |engine: &mut Engine| {
        let batch = engine.take_batch(id).expect("something to send");
        let bytes: Vec<u8> = batch.iter().flat_map(|piece| piece.bytes()).copied().collect();
        engine.on_sent(id, bytes.len(), Some(batch));
        bytes
    };
    let said = |session: &mut ClientConnection| {
        let mut bytes = Vec::new();
        session.write_tls(&mut bytes).expect("memory");
        bytes
    };
    assert!(sent(&mut wire.engine).starts_with(b"INFO "));
    wire.engine.on_bytes(id, &said(&mut session));
    wire.engine.tick();
    session.read_tls(&mut &sent(&mut wire.engine)[..]).expect("memory");
    assert!(session.process_new_packets().is_err(), "nobody vouches for the server");
    wire.engine.on_bytes(id, &said(&mut session));
    wire.engine.on_ended(id, false);
    wire.engine.tick();
    let reason = wire.engine.view().closed_page(0).entries[0].reason;
    assert_eq!(reason, Reason::Protocol("TLS Handshake Failure"));
}
