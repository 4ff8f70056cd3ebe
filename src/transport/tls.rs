//! TLS around a connection: records on the wire, the protocol's bytes within.
//!
//! rustls without its I/O. `Layers::next` hands ciphertext to the session and returns plain bytes.
//! `Layers::take` takes up to 64 KiB of an outbox (`BATCH_BYTES_MAX`) and encrypts it at once, so
//! that records are as long as they can be. Segments are shared up to there; behind it each
//! receiver has bytes of its own. Progress of the kernel is never counted against the outbox too
//! early, so `max_pending` and the write deadline hold.
//!
//! A step of a handshake is the one thing by which a connection can make others wait. It is taken
//! only when it is granted; the engine grants a bounded number per turn
//! (`HANDSHAKE_STEPS_PER_TURN`), and a connection with more than 16 KiB before its step is paused.
//! One ticket key for all shards lets any shard resume a session. rustls keeps it behind a lock,
//! the only lock that shards share, taken for reading once per handshake.

use std::io::{BufRead, IoSlice, Write};
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, Connection, HandshakeKind, ServerConfig, ServerConnection,
};

use super::{Failure, Step};
use crate::auth::certificate;
use crate::output::Piece;

/// A connection whose handshake waits for its step is read from up to so many bytes: no step
/// needs more. What the reactor has in hand by then still comes.
const WAITING_BYTES_MAX: usize = 16 * 1024;
/// … and who has sent more before the first step has no handshake in mind. Later the client's
/// last words in it may be followed at once by what it has to say.
const HELLO_BYTES_MAX: usize = 64 * 1024;
/// The first byte of every TLS handshake.
const HANDSHAKE_RECORD: u8 = 0x16;

/// The TLS of one connection.
#[derive(Debug)]
pub(super) struct TlsLayer {
    stage: Stage,
    /// Ciphertext that waits for the handshake's next step.
    pub(super) waiting: Vec<u8>,
    /// It stands in line for that step.
    in_line: bool,
    /// It may take that step.
    is_granted: bool,
    /// How its stream ends, which is still to be told.
    end: Option<Step>,
    /// Nothing is taken any more.
    has_ended: bool,
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

impl TlsLayer {
    fn new(stage: Stage) -> Self {
        Self {
            stage,
            waiting: Vec::new(),
            in_line: false,
            is_granted: false,
            end: None,
            has_ended: false,
            said_goodbye: false,
            info: None,
        }
    }

    /// The other end has to begin a handshake.
    pub(super) fn expected() -> Self {
        Self::new(Stage::Expected)
    }

    /// The other end may begin a handshake.
    pub(super) fn optional() -> Self {
        Self::new(Stage::Optional)
    }

    /// A handshake with a server whose certificate has to be for `host`.
    ///
    /// # Errors
    ///
    /// There is no such host; rustls has no session.
    pub(super) fn dialing(config: Arc<ClientConfig>, host: &str) -> Result<Self, String> {
        let name = ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?;
        let mut session = ClientConnection::new(config, name).map_err(|error| error.to_string())?;
        session.set_buffer_limit(None);
        Ok(Self::new(Stage::Session(Box::new(session.into()))))
    }

    /// Answers the handshake that the other end has begun. Returns whether it need not have.
    ///
    /// # Errors
    ///
    /// rustls has no session.
    pub(super) fn start(&mut self, config: Arc<ServerConfig>) -> Result<bool, String> {
        let mut session = ServerConnection::new(config).map_err(|error| error.to_string())?;
        session.set_buffer_limit(None);
        let stage = Stage::Session(Box::new(session.into()));
        Ok(matches!(std::mem::replace(&mut self.stage, stage), Stage::Optional))
    }

    /// Whether the handshake is still to be made, and has to be.
    pub(super) fn is_awaited(&self) -> bool {
        match &self.stage {
            Stage::Optional => false,
            Stage::Expected => true,
            Stage::Session(session) => session.is_handshaking(),
        }
    }

    /// Whether the other end may speak without a handshake, and does with these bytes.
    pub(super) fn is_declined(&self, wire: &[u8]) -> bool {
        matches!(self.stage, Stage::Optional) && wire.first() != Some(&HANDSHAKE_RECORD)
    }

    pub(super) fn has_session(&self) -> bool {
        matches!(self.stage, Stage::Session(_))
    }

    /// Whether there is ciphertext to be sent.
    pub(super) fn wants_write(&self) -> bool {
        matches!(&self.stage, Stage::Session(session) if session.wants_write())
    }

    /// Whether bytes of the protocol can be encrypted.
    pub(super) fn is_established(&self) -> bool {
        matches!(&self.stage, Stage::Session(session) if !session.is_handshaking())
    }

    /// What the handshake came to; `None` before its end.
    pub(super) fn info(&self) -> Option<&Arc<TlsInfo>> {
        self.info.as_ref()
    }

    /// It is its turn to take the next step of its handshake.
    pub(super) fn grant_step(&mut self) {
        (self.in_line, self.is_granted) = (false, true);
    }

    /// Whether something waits for the handshake's next step that counts even if nothing follows.
    pub(super) fn waits(&self) -> bool {
        // The answer to a first word would reach nobody any more, and costs most.
        let is_hello = !self.has_session() && self.waiting.first() == Some(&HANDSHAKE_RECORD);
        self.in_line && !is_hello
    }

    /// How its stream ends, if nothing follows; once.
    pub(super) fn take_end(&mut self) -> Option<Step> {
        self.end.take()
    }

    /// Takes ciphertext, and appends what it decrypts to `cleartext`.
    pub(super) fn receive(&mut self, wire: &mut &[u8], cleartext: &mut Vec<u8>) -> Step {
        if std::mem::take(&mut self.is_granted) && self.has_session() {
            let waiting = std::mem::take(&mut self.waiting);
            return self.decrypt(&waiting, cleartext);
        }
        if wire.is_empty() {
            return Step::Done;
        }
        let bytes = std::mem::take(wire);
        if self.has_ended {
            return Step::Done;
        }
        if self.is_established() {
            return self.decrypt(bytes, cleartext);
        }
        if !self.has_session() && self.waiting.len() + bytes.len() > HELLO_BYTES_MAX {
            self.waiting = Vec::new();
            let why = "more was sent than a handshake needs".to_owned();
            return Step::Failed(Failure::Handshake(why));
        }
        self.waiting.extend_from_slice(bytes);
        let is_new = !std::mem::replace(&mut self.in_line, true);
        Step::Handshake { is_new, is_much: self.waiting.len() > WAITING_BYTES_MAX }
    }

    fn decrypt(&mut self, mut bytes: &[u8], cleartext: &mut Vec<u8>) -> Step {
        let Stage::Session(session) = &mut self.stage else { return Step::Done };
        let was_handshaking = session.is_handshaking();
        let (mut outcome, mut has_closed) = (Ok(()), false);
        while !bytes.is_empty() && outcome.is_ok() {
            // Memory has no read errors, and what is taken is handled at once, so that there is
            // always room. Nothing is taken once the client has said that nothing follows.
            if !matches!(session.read_tls(&mut bytes), Ok(1..)) {
                break;
            }
            outcome = session.process_new_packets().map(|state| {
                has_closed = state.peer_has_closed();
            });
            let mut reader = session.reader();
            while let Ok(chunk) = reader.fill_buf()
                && !chunk.is_empty()
            {
                cleartext.extend_from_slice(chunk);
                let taken = chunk.len();
                reader.consume(taken);
            }
        }
        let is_complete = was_handshaking && !session.is_handshaking();
        let resumed = session.handshake_kind() == Some(HandshakeKind::Resumed);
        self.has_ended = outcome.is_err() || has_closed;
        match outcome {
            Err(error) if session.is_handshaking() => {
                return Step::Failed(Failure::Handshake(error.to_string()));
            }
            // What came before it counts.
            Err(error) => self.end = Some(Step::Failed(Failure::Tls(error.to_string()))),
            Ok(()) if has_closed => self.end = Some(Step::Ended),
            Ok(()) => {}
        }
        if !is_complete {
            return Step::Done;
        }
        let own_cert = self.conclude();
        Step::Secured { resumed, own_cert }
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

    /// Tells the other end that nothing follows, once: it can tell that from a cut.
    pub(super) fn say_goodbye(&mut self) {
        if !self.said_goodbye
            && let Stage::Session(session) = &mut self.stage
            && !session.is_handshaking()
        {
            self.said_goodbye = true;
            session.send_close_notify();
        }
    }

    /// Encrypts a batch.
    pub(super) fn encrypt(&mut self, batch: &[Piece]) {
        let Stage::Session(session) = &mut self.stage else { return };
        let slices: Vec<IoSlice<'_>> =
            batch.iter().map(|piece| IoSlice::new(piece.bytes())).collect();
        let bytes: usize = slices.iter().map(|slice| slice.len()).sum();
        // All slices at once, so that records are as long as they can be. There is no limit
        // to what the session holds: it takes everything.
        let written = session.writer().write_vectored(&slices);
        debug_assert!(written.is_ok_and(|written| written == bytes));
    }

    /// Appends all ciphertext there is.
    pub(super) fn write(&mut self, out: &mut Vec<u8>) {
        let Stage::Session(session) = &mut self.stage else { return };
        while session.wants_write() {
            // Writing to memory cannot fail.
            let _ = session.write_tls(out);
        }
    }
}
