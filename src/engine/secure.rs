//! TLS around a connection: records on the wire, the protocol's bytes within.
//!
//! Pure like the rest: ciphertext comes in and goes out as bytes. Handshakes are what one
//! connection can make another wait for; they stand in line, and a turn takes a bounded number.

#![forbid(unsafe_code)]

use std::io::{BufRead, IoSlice, Write};
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConnection, Connection, HandshakeKind, ServerConnection};

use super::conn::{Conn, Phase};
use super::timers::NEVER;
use super::websocket::Packer;
use super::{ConnId, Engine, Reason};
use crate::certificate;
use crate::output::Piece;
use crate::output::{InFlight, Spares};
use crate::transport::{HandshakeFirst, MutualTls, Tls};

/// Steps of handshakes in one turn. One takes up to a millisecond, with a long RSA key.
const HANDSHAKE_STEPS_PER_TURN: usize = 1;
/// A connection whose handshake waits for its step is read from up to so many bytes: no step
/// needs more. What the reactor has in hand by then still comes.
const WAITING_BYTES_MAX: usize = 16 * 1024;
/// … and who has sent more before the first step has no handshake in mind. Later the client's
/// last words in it may be followed at once by what it has to say.
const HELLO_BYTES_MAX: usize = 64 * 1024;
/// What is encrypted at once, in bytes: each receiver needs a copy of its own of it.
const BATCH_BYTES_MAX: usize = 64 * 1024;
/// The longest frame of a WebSocket that has no TLS, in bytes: a batch ends with the piece that
/// makes it so long.
const FRAME_BYTES_MAX: usize = 1024 * 1024;
/// The first byte of every TLS handshake.
const HANDSHAKE_RECORD: u8 = 0x16;

/// The TLS of one connection.
#[derive(Debug)]
pub(super) struct Secure {
    stage: Stage,
    /// Ciphertext that waits for the handshake's next step.
    waiting: Vec<u8>,
    /// It stands in line for that step.
    in_line: bool,
    /// Bytes of the outbox behind the ciphertext in flight that are not counted as sent yet.
    in_flight: InFlight,
    /// Nothing follows any more.
    said_goodbye: bool,
    /// What the handshake came to, once it is done.
    info: Option<Arc<TlsInfo>>,
}

#[derive(Debug)]
enum Stage {
    /// The client's first byte decides whether there is to be TLS at all.
    Optional,
    /// INFO is on its way in clear, or not to be sent before the handshake.
    Expected,
    /// There is a session: on its way, or made.
    Session(Box<Connection>),
}

/// What is known of a finished handshake.
#[derive(Debug, Clone)]
pub struct TlsInfo {
    /// `1.2` or `1.3`.
    pub version: &'static str,
    /// Its name as Go writes it.
    pub cipher_suite: String,
    /// The client's own certificate first.
    pub peer_certs: Vec<certificate::Shown>,
}

impl Secure {
    fn new(stage: Stage) -> Box<Self> {
        Box::new(Self {
            stage,
            waiting: Vec::new(),
            in_line: false,
            in_flight: InFlight::default(),
            said_goodbye: false,
            info: None,
        })
    }

    /// Whether the protocol's bytes may flow.
    pub(super) fn is_established(&self) -> bool {
        match &self.stage {
            Stage::Optional => true,
            Stage::Expected => false,
            Stage::Session(session) => !session.is_handshaking(),
        }
    }

    /// Whether there is ciphertext to be sent.
    fn wants_write(&self) -> bool {
        matches!(&self.stage, Stage::Session(session) if session.wants_write())
    }

    /// What the handshake came to; `None` before its end.
    pub(super) fn info(&self) -> Option<&Arc<TlsInfo>> {
        self.info.as_ref()
    }

    /// Looks at a finished handshake. Returns the client's own certificate, if it has one.
    fn conclude(&mut self) -> Option<CertificateDer<'static>> {
        let Stage::Session(session) = &self.stage else { return None };
        let version = match session.protocol_version()? {
            rustls::ProtocolVersion::TLSv1_3 => "1.3",
            _ => "1.2",
        };
        let suite = session.negotiated_cipher_suite()?.suite();
        let cipher_suite = format!("{suite:?}").replace("TLS13_", "TLS_");
        let certs = session.peer_certificates().unwrap_or_default();
        let peer_certs = certs.iter().filter_map(|cert| certificate::show(cert)).collect();
        let own = certs.first().map(|cert| cert.clone().into_owned());
        self.info = Some(Arc::new(TlsInfo { version, cipher_suite, peer_certs }));
        own
    }
}

impl Conn {
    /// Whether there is nothing more to be sent.
    pub(super) fn is_drained(&self) -> bool {
        self.outbox.is_empty() && !self.wants_write()
    }

    /// Whether something is to be sent that is in no outbox.
    pub(super) fn wants_write(&self) -> bool {
        self.secure.as_ref().is_some_and(|secure| secure.wants_write())
            || self.websocket.as_ref().is_some_and(|websocket| websocket.wants_write())
            || self.packing.as_ref().is_some_and(|packing| !packing.head.is_empty())
    }

    /// Tells the client that nothing follows, once all is said: a peer can tell that from a cut.
    pub(super) fn say_goodbye(&mut self) {
        // Within TLS, the WebSocket's goodbye comes first.
        let is_next = self.websocket.as_ref().is_none_or(|websocket| !websocket.wants_goodbye());
        if is_next
            && let Some(secure) = &mut self.secure
            && !secure.said_goodbye
            && let Stage::Session(session) = &mut secure.stage
            && !session.is_handshaking()
        {
            secure.said_goodbye = true;
            session.send_close_notify();
        }
    }

    /// How many bytes of its outbox `bytes` on the wire stand for.
    pub(super) fn sent_bytes(&mut self, bytes: usize, complete: bool) -> usize {
        if let Some(secure) = &mut self.secure {
            return secure.in_flight.on_sent(bytes, complete);
        }
        match self.wrapped_in_flight() {
            Some(in_flight) => in_flight.on_sent(bytes, complete),
            None => bytes,
        }
    }

    /// What a layer other than TLS has in flight.
    fn wrapped_in_flight(&mut self) -> Option<&mut InFlight> {
        match (&mut self.websocket, &mut self.packing) {
            (Some(websocket), _) => Some(&mut websocket.in_flight),
            (None, Some(packing)) => Some(&mut packing.in_flight),
            (None, None) => None,
        }
    }

    /// The next batch of such a layer, and how many bytes of the outbox that is.
    fn take_wrapped(
        &mut self,
        bytes_max: usize,
        spares: &mut Spares,
        packer: &mut Packer,
    ) -> Option<(Vec<Piece>, usize)> {
        match self.packing {
            Some(_) => self.take_packed(spares, packer),
            None => self.take_frames(bytes_max, spares, packer),
        }
    }

    /// The next batch as it goes over the wire, unless one is in flight or nothing may go.
    pub(super) fn take_batch(
        &mut self,
        spares: &mut Spares,
        packer: &mut Packer,
    ) -> Option<Vec<Piece>> {
        let Some(secure) = self.secure.as_deref_mut() else {
            if self.websocket.is_none() && self.packing.is_none() {
                return self.outbox.take(spares);
            }
            let (batch, bytes) = self.take_wrapped(FRAME_BYTES_MAX, spares, packer)?;
            self.wrapped_in_flight()?.set(bytes);
            return Some(batch);
        };
        let Stage::Session(session) = &mut secure.stage else {
            let batch = self.outbox.take(spares)?;
            secure.in_flight.set(batch.iter().map(|piece| piece.bytes().len()).sum());
            return Some(batch);
        };
        if self.outbox.is_in_flight() {
            return None;
        }
        let mut taken_bytes = 0;
        if !session.is_handshaking() {
            taken_bytes = self.encrypt(spares, packer);
        }
        if matches!(self.phase, Phase::Flushing { .. }) && self.outbox.ends_with(taken_bytes) {
            self.say_goodbye();
        }
        let secure = self.secure.as_deref_mut()?;
        let Stage::Session(session) = &mut secure.stage else { return None };
        if !session.wants_write() {
            return None;
        }
        let piece = spares.own_piece(|out| {
            while session.wants_write() {
                // Writing to memory cannot fail.
                let _ = session.write_tls(out);
            }
        });
        secure.in_flight.set(taken_bytes);
        Some(self.outbox.start(spares, piece))
    }

    /// Encrypts the next batch. Returns how many bytes of the outbox that is.
    fn encrypt(&mut self, spares: &mut Spares, packer: &mut Packer) -> usize {
        let taken = if self.websocket.is_some() || self.packing.is_some() {
            self.take_wrapped(BATCH_BYTES_MAX, spares, packer)
        } else {
            let batch = self.outbox.take_up_to(BATCH_BYTES_MAX, spares);
            batch.map(|batch| {
                let bytes = batch.iter().map(|piece| piece.bytes().len()).sum();
                (batch, bytes)
            })
        };
        let Some((batch, taken_bytes)) = taken else { return 0 };
        if let Some(secure) = self.secure.as_deref_mut()
            && let Stage::Session(session) = &mut secure.stage
        {
            let slices: Vec<IoSlice<'_>> =
                batch.iter().map(|piece| IoSlice::new(piece.bytes())).collect();
            let bytes: usize = slices.iter().map(|slice| slice.len()).sum();
            // All slices at once, so that records are as long as they can be. There is no limit
            // to what the session holds: it takes everything.
            let written = session.writer().write_vectored(&slices);
            debug_assert!(written.is_ok_and(|written| written == bytes));
        }
        spares.keep_batch(batch);
        taken_bytes
    }
}

impl Engine {
    /// Gives a new connection its TLS, and says whether it is to be greeted in clear.
    pub(super) fn begin_secure(&mut self, id: ConnId) -> bool {
        let Some(conn) = self.conns.get_mut(id) else { return false };
        let is_websocket = conn.websocket.is_some();
        let Some(tls) = self.settings.tls_of(conn.transport) else { return !is_websocket };
        if is_websocket {
            // The time that it has, and the first word, are the upgrade's.
            conn.secure = Some(Secure::new(Stage::Expected));
            return false;
        }
        if self.settings.allow_non_tls {
            conn.secure = Some(Secure::new(Stage::Optional));
            return true;
        }
        conn.secure = Some(Secure::new(Stage::Expected));
        conn.timing.auth_due = self.now.saturating_add(ms_to_ns(tls.timeout_ms));
        match tls.first {
            HandshakeFirst::No => true,
            HandshakeFirst::Always => false,
            HandshakeFirst::Within(ms) => {
                conn.timing.info_due = self.now.saturating_add(ms_to_ns(ms));
                false
            }
        }
    }

    /// Gives a new route its TLS, if there is any, and says whether it goes without. Who dials
    /// says first what it can; `host` is whom its certificate has to be for.
    pub(super) fn begin_route_secure(&mut self, id: ConnId, host: Option<&str>) -> bool {
        let Some(conn) = self.conns.get_mut(id) else { return false };
        let Some(MutualTls { tls, client, .. }) = &self.settings.route.tls else { return true };
        conn.timing.auth_due = self.now.saturating_add(ms_to_ns(tls.timeout_ms));
        conn.secure = Some(Secure::new(Stage::Expected));
        let Some(host) = host else { return false };
        tracing::debug!("{} - Starting TLS route client handshake", conn.label());
        let session = ServerName::try_from(host.to_owned())
            .map_err(|error| error.to_string())
            .and_then(|name| {
                let session = ClientConnection::new(Arc::clone(client), name);
                session.map_err(|error| error.to_string())
            });
        match session {
            Ok(mut session) => {
                session.set_buffer_limit(None);
                if let Some(secure) = &mut conn.secure {
                    secure.stage = Stage::Session(Box::new(session.into()));
                }
                self.flush_if_wanted(id);
            }
            Err(error) => self.fail_handshake(id, &error),
        }
        false
    }

    /// Handles what came over the wire for a connection with TLS; the rest is plain.
    ///
    /// Says `false` if the bytes are the protocol's own.
    pub(super) fn on_ciphertext(&mut self, id: ConnId, bytes: &[u8]) -> bool {
        let Some(conn) = self.conns.get_mut(id) else { return true };
        let Some(secure) = &mut conn.secure else { return false };
        if matches!(secure.stage, Stage::Optional) && bytes.first() != Some(&HANDSHAKE_RECORD) {
            conn.secure = None;
            return false;
        }
        if matches!(&secure.stage, Stage::Session(session) if !session.is_handshaking()) {
            self.decrypt(id, bytes);
            return true;
        }
        if conn.phase != Phase::Open {
            return true;
        }
        let has_session = matches!(secure.stage, Stage::Session(_));
        if !has_session && secure.waiting.len() + bytes.len() > HELLO_BYTES_MAX {
            secure.waiting = Vec::new();
            self.fail_handshake(id, "more was sent than a handshake needs");
            return true;
        }
        secure.waiting.extend_from_slice(bytes);
        let is_plenty = secure.waiting.len() > WAITING_BYTES_MAX;
        if !std::mem::replace(&mut secure.in_line, true) {
            self.handshakes.push_back(id);
        }
        if is_plenty {
            self.brake(id, |brakes| brakes.in_line = true);
        }
        true
    }

    /// Takes the next steps of handshakes.
    pub(super) fn advance_handshakes(&mut self) {
        for _ in 0..HANDSHAKE_STEPS_PER_TURN {
            let Some(id) = self.handshakes.pop_front() else { return };
            let Some(conn) = self.conns.get_mut(id).filter(|conn| conn.is_open()) else { continue };
            let Some(secure) = &mut conn.secure else { continue };
            secure.in_line = false;
            let bytes = std::mem::take(&mut secure.waiting);
            let has_session = matches!(secure.stage, Stage::Session(_));
            self.release(id, |brakes| brakes.in_line = false);
            if !has_session && !self.start_session(id) {
                continue;
            }
            self.decrypt(id, &bytes);
        }
    }

    fn start_session(&mut self, id: ConnId) -> bool {
        let Some(conn) = self.conns.get_mut(id) else { return false };
        let Some(tls) = self.settings.tls_for(conn) else {
            // A reload has turned TLS off since; the client will not be understood.
            self.fail_handshake(id, "TLS is not configured any more");
            return false;
        };
        let what = if conn.route.is_some() { "route server" } else { "client connection" };
        tracing::debug!("{} - Starting TLS {what} handshake", conn.label());
        conn.timing.info_due = NEVER;
        let mut session = match ServerConnection::new(Arc::clone(&tls.server)) {
            Ok(session) => session,
            Err(error) => {
                self.fail_handshake(id, &error.to_string());
                return false;
            }
        };
        session.set_buffer_limit(None);
        if let Some(secure) = &mut conn.secure {
            if matches!(secure.stage, Stage::Optional) {
                conn.timing.auth_due = self.now.saturating_add(ms_to_ns(tls.timeout_ms));
            }
            secure.stage = Stage::Session(Box::new(session.into()));
        }
        self.rearm(id);
        true
    }

    /// Runs ciphertext through the session and handles the plaintext that comes of it.
    fn decrypt(&mut self, id: ConnId, mut bytes: &[u8]) {
        // The session is out of its place while the plaintext is handled; nothing is sent before
        // the turn's end.
        let Some(mut secure) = self.conns.get_mut(id).and_then(|conn| conn.secure.take()) else {
            return;
        };
        let Stage::Session(session) = &mut secure.stage else { return };
        let was_handshaking = session.is_handshaking();
        let mut outcome = Ok(());
        let mut has_ended = false;
        let mut plaintext = std::mem::take(&mut self.plaintext);
        while !bytes.is_empty() && outcome.is_ok() {
            // Memory has no read errors, and what is taken is handled at once, so that there is
            // always room. Nothing is taken once the client has said that nothing follows.
            if !matches!(session.read_tls(&mut bytes), Ok(1..)) {
                break;
            }
            outcome = session.process_new_packets().map(|state| {
                has_ended = state.peer_has_closed();
            });
            let mut reader = session.reader();
            while let Ok(chunk) = reader.fill_buf()
                && !chunk.is_empty()
            {
                plaintext.extend_from_slice(chunk);
                let taken = chunk.len();
                reader.consume(taken);
            }
        }
        let is_complete = was_handshaking && !session.is_handshaking();
        let resumed = session.handshake_kind() == Some(HandshakeKind::Resumed);
        if let Some(conn) = self.conns.get_mut(id) {
            conn.secure = Some(secure);
        }
        match outcome {
            Ok(()) if is_complete => self.on_handshake_complete(id, resumed),
            Ok(()) => {}
            Err(error) if was_handshaking => self.fail_handshake(id, &error.to_string()),
            Err(error) => {
                tracing::debug!("TLS read error: {error}");
                self.fail(id, None, Reason::ReadError);
            }
        }
        if !plaintext.is_empty() {
            self.on_cleartext(id, &plaintext);
            plaintext.clear();
        }
        self.plaintext = plaintext;
        if has_ended {
            // As good as the end of the stream: answered once all that came before is.
            self.on_ended(id, false);
        }
        self.flush_if_wanted(id);
    }

    fn on_handshake_complete(&mut self, id: ConnId, resumed: bool) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        let Some(tls) = self.settings.tls_for(conn).cloned() else { return };
        let Some(secure) = &mut conn.secure else { return };
        let own_cert = secure.conclude();
        let Some(info) = secure.info().cloned() else { return };
        tracing::debug!("{} - TLS handshake complete", conn.label());
        let how = if resumed { ", resumed" } else { "" };
        tracing::debug!(
            "{} - TLS version {}, cipher suite {}{how}",
            conn.label(),
            info.version,
            info.cipher_suite
        );
        if !is_pinned(&tls, &info) {
            self.fail_handshake(id, "the certificate is not one of pinned_certs");
            return;
        }
        if tls.map {
            conn.cert_names = own_cert.map(|cert| Box::new(certificate::names(&cert)));
        }
        if conn.websocket.is_some() {
            return;
        }
        if conn.route.is_some() {
            self.greet_route(id);
            return;
        }
        conn.timing.auth_due = self.settings.auth_due(conn.transport, self.now);
        if !conn.informed {
            self.send_info(id, false);
        }
        self.rearm(id);
    }

    /// Ends a connection that has not come to an understanding; TLS tells the client why.
    pub(super) fn fail_handshake(&mut self, id: ConnId, why: &str) {
        if let Some(conn) = self.conns.get(id) {
            let noun = if conn.route.is_some() { "TLS route" } else { "TLS" };
            tracing::error!("{} - {noun} handshake error: {why}", conn.label());
        }
        self.fail(id, None, Reason::Protocol("TLS Handshake Failure"));
    }

    /// The time for a handshake is over. Nothing can be said in a language not agreed upon.
    pub(super) fn on_handshake_timeout(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.get(id) {
            let label = conn.label();
            match conn.route {
                // Somebody wants this route, and wonders why it is not there.
                Some(_) => tracing::error!("{label} - TLS route handshake error: timeout"),
                None => tracing::debug!("{label} - TLS handshake timeout"),
            }
        }
        self.fail(id, None, Reason::Protocol("TLS Handshake Failure"));
    }
}

fn is_pinned(tls: &Tls, info: &TlsInfo) -> bool {
    let own = info.peer_certs.first();
    tls.pinned_certs.is_empty() || own.is_some_and(|own| tls.pinned_certs.contains(&own.key_sha256))
}

fn ms_to_ns(ms: u64) -> u64 {
    ms.saturating_mul(1_000_000)
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use rcgen::CertifiedKey;
    use rustls::pki_types::CertificateDer;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::*;
    use crate::config::{Options, StartError};
    use crate::engine::{Action, Identity, Peer, Settings, ShardId};

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

        /// One turn: some of what the client has to send, some of what the engine has.
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
            while let Some(action) = self.engine.next_action() {
                match action {
                    Action::Flush(id) => {
                        if let Some(batch) = self.engine.take_batch(id) {
                            self.batches.push((id, batch, 0));
                        }
                    }
                    Action::Close { conn, .. } => {
                        let client = clients.iter_mut().find(|client| client.id == conn);
                        client.expect("one of ours").closed = true;
                        self.engine.on_closed(conn);
                    }
                    Action::Pause(_) | Action::Resume(_) => {}
                }
            }
            for (id, batch, sent) in std::mem::take(&mut self.batches) {
                let bytes: Vec<u8> =
                    batch.iter().flat_map(|piece| piece.bytes()).copied().collect();
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
            assert_eq!(wire.engine.spares.held_bytes(), 0, "all memory came home");
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
            let conns = wire.engine.conns.0.iter().flatten();
            let secures = conns.filter_map(|conn| conn.secure.as_ref());
            let begun = secures.filter(|secure| matches!(secure.stage, Stage::Session(_)));
            assert_eq!(begun.count(), turn * HANDSHAKE_STEPS_PER_TURN);
            let is_due = wire.engine.next_deadline().is_some_and(|due| due <= wire.engine.now);
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
        hello.resize(WAITING_BYTES_MAX + 1, 0x17);
        wire.engine.on_bytes(client.id, &hello);
        let actions = |engine: &mut Engine| -> Vec<Action> {
            std::iter::from_fn(|| engine.next_action()).collect()
        };
        assert!(actions(&mut wire.engine).contains(&Action::Pause(client.id)));
        wire.engine.tick();
        assert!(actions(&mut wire.engine).contains(&Action::Resume(client.id)));
    }

    #[test]
    fn who_sends_on_and_on_before_the_first_step_of_its_handshake_is_closed() {
        let (options, config) = options("");
        let mut wire = Wire::new(&options, 1);
        let client = wire.connect(0, &config);
        for _ in 0..1000 {
            wire.engine.on_bytes(client.id, &[HANDSHAKE_RECORD; 1000]);
        }
        let conn = wire.engine.conns.get(client.id).expect("it was not said to be closed");
        assert!(!conn.is_open());
        assert_eq!(conn.secure.as_ref().map(|secure| secure.waiting.capacity()), Some(0));
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
}
