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

use super::{Failure, LayerStep};
use crate::auth::certificate;
use crate::output::Piece;

/// Bytes that may wait for a step of the handshake before the connection is paused: no step needs
/// more. Bytes that the reactor already holds still come.
const WAITING_BYTES_MAX: usize = 16 * 1024;
/// Bytes that may wait for the first step: a client that sends more has no handshake in mind. In
/// later steps the protocol's bytes may follow the handshake's at once.
const HELLO_BYTES_MAX: usize = 64 * 1024;
/// The first byte of every TLS handshake.
const HANDSHAKE_RECORD: u8 = 0x16;

/// The TLS layer of one connection.
#[derive(Debug)]
pub(super) struct TlsLayer {
    stage: TlsStage,
    /// Ciphertext that waits for the handshake's next step.
    pub(super) waiting: Vec<u8>,
    /// Whether the handshake's next step waits for its turn.
    in_line: bool,
    /// Whether the handshake's next step is granted.
    is_granted: bool,
    /// The end of the peer's stream, until it is reported.
    end: Option<LayerStep>,
    /// Whether no more input is taken.
    has_ended: bool,
    /// Whether the end of the output was announced.
    said_goodbye: bool,
    /// Properties of the session, once the handshake is complete.
    info: Option<Arc<TlsInfo>>,
}

#[derive(Debug)]
enum TlsStage {
    /// A connection on which the client's first byte decides whether there is TLS.
    Optional,
    /// A connection whose handshake must come: INFO is on its way in clear, or waits for the
    /// handshake.
    Expected,
    /// A session, complete or in its handshake.
    Session(Box<Connection>),
}

/// Properties of a session, known at the end of its handshake.
#[derive(Debug, Clone)]
pub struct TlsInfo {
    /// The version of TLS, `1.2` or `1.3`.
    pub version: &'static str,
    /// The name of the cipher suite, as Go writes it.
    pub cipher_suite: String,
    /// The certificates of the peer, its own first.
    pub peer_certs: Vec<certificate::Shown>,
}

impl TlsLayer {
    fn new(stage: TlsStage) -> Self {
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

    /// A layer whose peer must begin a handshake.
    pub(super) fn expected() -> Self {
        Self::new(TlsStage::Expected)
    }

    /// A layer whose peer may begin a handshake.
    pub(super) fn optional() -> Self {
        Self::new(TlsStage::Optional)
    }

    /// A handshake with a server whose certificate must be for `host`.
    ///
    /// # Errors
    ///
    /// Returns an error if `host` cannot be in a certificate, or if rustls has no session.
    pub(super) fn dialing(config: Arc<ClientConfig>, host: &str) -> Result<Self, String> {
        let name = ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?;
        let mut session = ClientConnection::new(config, name).map_err(|error| error.to_string())?;
        session.set_buffer_limit(None);
        Ok(Self::new(TlsStage::Session(Box::new(session.into()))))
    }

    /// Answers the handshake that the peer has begun. Returns whether it was optional.
    ///
    /// # Errors
    ///
    /// Returns an error if rustls has no session.
    pub(super) fn start(&mut self, config: Arc<ServerConfig>) -> Result<bool, String> {
        let mut session = ServerConnection::new(config).map_err(|error| error.to_string())?;
        session.set_buffer_limit(None);
        let stage = TlsStage::Session(Box::new(session.into()));
        Ok(matches!(std::mem::replace(&mut self.stage, stage), TlsStage::Optional))
    }

    /// Whether an obligatory handshake is not complete.
    pub(super) fn is_awaited(&self) -> bool {
        match &self.stage {
            TlsStage::Optional => false,
            TlsStage::Expected => true,
            TlsStage::Session(session) => session.is_handshaking(),
        }
    }

    /// Whether the handshake is optional, and these bytes do without it.
    pub(super) fn is_declined(&self, wire: &[u8]) -> bool {
        matches!(self.stage, TlsStage::Optional) && wire.first() != Some(&HANDSHAKE_RECORD)
    }

    pub(super) fn has_session(&self) -> bool {
        matches!(self.stage, TlsStage::Session(_))
    }

    /// Whether there is ciphertext to be sent.
    pub(super) fn wants_write(&self) -> bool {
        matches!(&self.stage, TlsStage::Session(session) if session.wants_write())
    }

    /// Whether bytes of the protocol can be encrypted.
    pub(super) fn is_established(&self) -> bool {
        matches!(&self.stage, TlsStage::Session(session) if !session.is_handshaking())
    }

    /// Returns the properties of the session; `None` before the end of the handshake.
    pub(super) fn info(&self) -> Option<&Arc<TlsInfo>> {
        self.info.as_ref()
    }

    /// Returns the certificates of the peer, its own first; none before the end of the handshake.
    pub(super) fn peer_certificates(&self) -> &[CertificateDer<'static>] {
        match &self.stage {
            TlsStage::Session(session) => session.peer_certificates().unwrap_or_default(),
            TlsStage::Optional | TlsStage::Expected => &[],
        }
    }

    /// Grants the next step of the handshake.
    pub(super) fn grant_step(&mut self) {
        (self.in_line, self.is_granted) = (false, true);
    }

    /// Whether input waits for the handshake's next step that must be handled even if the peer has
    /// ended.
    pub(super) fn waits(&self) -> bool {
        // The answer to a first ClientHello would reach no peer any more, and costs most.
        let is_hello = !self.has_session() && self.waiting.first() == Some(&HANDSHAKE_RECORD);
        self.in_line && !is_hello
    }

    /// Takes the end of the peer's stream, if it is not yet reported.
    pub(super) fn take_end(&mut self) -> Option<LayerStep> {
        self.end.take()
    }

    /// Takes ciphertext, and appends the decrypted bytes to `cleartext`.
    pub(super) fn receive(&mut self, wire: &mut &[u8], cleartext: &mut Vec<u8>) -> LayerStep {
        if std::mem::take(&mut self.is_granted) && self.has_session() {
            let waiting = std::mem::take(&mut self.waiting);
            return self.decrypt(&waiting, cleartext);
        }
        if wire.is_empty() {
            return LayerStep::Done;
        }
        let bytes = std::mem::take(wire);
        if self.has_ended {
            return LayerStep::Done;
        }
        if self.is_established() {
            return self.decrypt(bytes, cleartext);
        }
        if !self.has_session() && self.waiting.len() + bytes.len() > HELLO_BYTES_MAX {
            self.waiting = Vec::new();
            let why = "more was sent than a handshake needs".to_owned();
            return LayerStep::Failed(Failure::Handshake(why));
        }
        self.waiting.extend_from_slice(bytes);
        let is_new = !std::mem::replace(&mut self.in_line, true);
        LayerStep::Handshake { is_new, is_much: self.waiting.len() > WAITING_BYTES_MAX }
    }

    fn decrypt(&mut self, mut bytes: &[u8], cleartext: &mut Vec<u8>) -> LayerStep {
        let TlsStage::Session(session) = &mut self.stage else { return LayerStep::Done };
        let was_handshaking = session.is_handshaking();
        let (mut outcome, mut has_closed) = (Ok(()), false);
        while !bytes.is_empty() && outcome.is_ok() {
            // Memory has no read errors, and decrypted bytes are taken out at once, so that there
            // is always room. Input behind the client's announced end is not taken.
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
                return LayerStep::Failed(Failure::Handshake(error.to_string()));
            }
            // Bytes before the error count.
            Err(error) => self.end = Some(LayerStep::Failed(Failure::Tls(error.to_string()))),
            Ok(()) if has_closed => self.end = Some(LayerStep::Ended),
            Ok(()) => {}
        }
        if !is_complete {
            return LayerStep::Done;
        }
        let own_cert = self.conclude();
        LayerStep::Secured { resumed, own_cert }
    }

    /// Records the properties of a finished handshake. Returns the peer's own certificate, if it
    /// has one.
    fn conclude(&mut self) -> Option<CertificateDer<'static>> {
        let TlsStage::Session(session) = &self.stage else { return None };
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

    /// Announces the end of the output, once: the peer can tell it from a cut.
    pub(super) fn say_goodbye(&mut self) {
        if !self.said_goodbye
            && let TlsStage::Session(session) = &mut self.stage
            && !session.is_handshaking()
        {
            self.said_goodbye = true;
            session.send_close_notify();
        }
    }

    /// Encrypts a batch.
    pub(super) fn encrypt(&mut self, batch: &[Piece]) {
        let TlsStage::Session(session) = &mut self.stage else { return };
        let slices: Vec<IoSlice<'_>> =
            batch.iter().map(|piece| IoSlice::new(piece.bytes())).collect();
        let bytes: usize = slices.iter().map(|slice| slice.len()).sum();
        // All slices at once, so that records are as long as they can be. The session has no limit:
        // it takes everything.
        let written = session.writer().write_vectored(&slices);
        debug_assert!(written.is_ok_and(|written| written == bytes));
    }

    /// Appends all ciphertext of the session.
    pub(super) fn write(&mut self, out: &mut Vec<u8>) {
        let TlsStage::Session(session) = &mut self.stage else { return };
        while session.wants_write() {
            // Writing to memory cannot fail.
            let _ = session.write_tls(out);
        }
    }
}
