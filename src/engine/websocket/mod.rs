//! WebSocket around a connection: frames on the wire, the protocol's bytes within.
//!
//! Pure like the rest, and within TLS where there is any. Payloads of data frames are the
//! protocol's stream, wherever they are cut. A batch is one message: a header before the pieces
//! that are there anyway, so that what connections share stays shared.
//!
//! No library puts frames around bytes without reading and writing them too, so that is done
//! here (`frame`); HTTP is parsed by `httparse` (`upgrade`), compression is `flate2`'s (`deflate`).

#![forbid(unsafe_code)]

mod deflate;
mod frame;
mod upgrade;

use flate2::Decompress;

use super::conn::{Conn, Phase};
use super::{ConnId, Engine, Reason};
use crate::output::Piece;
use crate::output::{InFlight, Spares};
pub(super) use deflate::Packer;
use frame::{Decoder, Step, Violation};
use upgrade::{Credentials, Refusal, Upgrade};

/// Compressed data that is decompressed at once, in bytes: a thousand times as much can come of it.
const PACKED_BYTES_MAX: usize = 1024;
/// When so much has come of a connection's compressed data, the rest waits for the next turn.
const UNPACKED_BYTES_PER_TURN: usize = 1024 * 1024;
/// What is unmasked is handled at this many bytes.
const CLEAR_BYTES_MAX: usize = 64 * 1024;
/// Shorter batches are not worth compressing.
const PACK_BYTES_MIN: usize = 65;
/// What it costs to decompress a byte.
const INFLATE_WORK: u64 = 3;
/// What is compressed at once, in bytes.
const BATCH_BYTES_MAX: usize = 64 * 1024;
/// The code of a close frame for who breaks the rules of frames.
const PROTOCOL_ERROR: u16 = 1002;

/// The WebSocket of one connection.
#[derive(Debug, Default)]
pub(super) struct WebSocket {
    /// The request that opens it, until it is whole and granted.
    request: Vec<u8>,
    is_open: bool,
    decoder: Decoder,
    /// What decompresses the message that is coming.
    decompress: Option<Decompress>,
    /// Frames that wait until others had their turn.
    waiting: Vec<u8>,
    in_line: bool,
    /// How its frames end, behind input that waits.
    end: Option<End>,
    /// Batches that can be compressed are.
    packs: bool,
    credentials: Credentials,
    /// The answer to the request, until it is taken.
    response: Vec<u8>,
    /// What the last ping is to be answered with: earlier ones need no answer.
    pong: Option<Vec<u8>>,
    /// What the last frame will say, and whether it is taken.
    close: Option<Vec<u8>>,
    said_goodbye: bool,
    pub(super) in_flight: InFlight,
}

impl WebSocket {
    /// Whether there is something to be sent that is not in the outbox.
    pub(super) fn wants_write(&self) -> bool {
        !self.response.is_empty() || self.pong.is_some() || self.wants_goodbye()
    }

    /// Whether frames wait.
    pub(super) fn waits(&self) -> bool {
        self.in_line || self.end.is_some()
    }

    /// Whether the last frame is still to be sent, behind everything else.
    pub(super) fn wants_goodbye(&self) -> bool {
        self.is_open && self.close.is_some() && !self.said_goodbye
    }

    /// The connection ends: decides what its last frame says, unless that is decided.
    pub(super) fn end(&mut self, reason: Reason) {
        const NORMAL: u16 = 1000;
        const GOING_AWAY: u16 = 1001;
        const POLICY_VIOLATION: u16 = 1008;
        const TOO_BIG: u16 = 1009;
        let code = match reason {
            Reason::ClientClosed => NORMAL,
            Reason::ServerShutdown => GOING_AWAY,
            Reason::ReadError | Reason::WriteError => return,
            Reason::Protocol("Maximum Message Payload Exceeded") => TOO_BIG,
            Reason::Protocol("Protocol Violation" | "Parse Error") => PROTOCOL_ERROR,
            _ => POLICY_VIOLATION,
        };
        self.close.get_or_insert_with(|| close_payload(code, reason.text()));
    }

    /// Lets cookies stand for what CONNECT leaves out.
    pub(super) fn complete(&self, connect: &mut crate::proto::Connect) {
        self.credentials.complete(connect);
    }
}

fn close_payload(code: u16, text: &str) -> Vec<u8> {
    [&code.to_be_bytes(), text.as_bytes()].concat()
}

impl Conn {
    /// Whether the other end understands the protocol by now.
    pub(super) fn is_understood(&self) -> bool {
        self.websocket.as_ref().is_none_or(|websocket| websocket.is_open)
    }

    /// The next batch in frames, and how many bytes of the outbox that is; `None` if there is
    /// nothing to send or a batch is in flight.
    pub(super) fn take_frames(
        &mut self,
        bytes_max: usize,
        spares: &mut Spares,
        packer: &mut Packer,
    ) -> Option<(Vec<Piece>, usize)> {
        let websocket = self.websocket.as_deref_mut()?;
        if self.outbox.is_in_flight() {
            return None;
        }
        let bytes_max = if websocket.packs { BATCH_BYTES_MAX } else { bytes_max };
        let mut taken = match websocket.is_open {
            true => self.outbox.take_up_to(bytes_max, spares).unwrap_or_default(),
            false => Vec::new(),
        };
        let taken_bytes = taken.iter().map(|piece| piece.bytes().len()).sum();
        let is_last = matches!(self.phase, Phase::Flushing { .. })
            && self.outbox.ends_with(taken_bytes)
            && websocket.wants_goodbye();
        let packed =
            (websocket.packs && taken_bytes >= PACK_BYTES_MIN).then(|| packer.pack(&taken));
        if taken_bytes == 0 && websocket.response.is_empty() && websocket.pong.is_none() && !is_last
        {
            return None;
        }
        let goodbye = websocket.close.as_deref().unwrap_or_default();
        let head = spares.own_piece(|out| {
            out.append(&mut websocket.response);
            if let Some(payload) = websocket.pong.take() {
                frame::pong(out, &payload);
            }
            match packed {
                Some(packed) => {
                    frame::data_header(out, packed.len(), true);
                    out.extend_from_slice(packed);
                }
                None if taken_bytes > 0 => frame::data_header(out, taken_bytes, false),
                None if is_last => frame::close(out, goodbye),
                None => {}
            }
        });
        let is_packed = packed.is_some();
        let mut batch = self.outbox.start(spares, head);
        if !is_packed {
            batch.append(&mut taken);
        }
        spares.keep_batch(taken);
        if is_last && taken_bytes > 0 {
            batch.push(spares.own_piece(|out| frame::close(out, goodbye)));
        }
        websocket.said_goodbye |= is_last;
        Some((batch, taken_bytes))
    }
}

impl Engine {
    /// Makes a new connection a WebSocket, which is silent until its request is there.
    pub(super) fn begin_websocket(&mut self, id: ConnId) {
        let (Some(conn), Some(options)) = (self.conns.get_mut(id), &self.settings.websocket) else {
            return;
        };
        conn.websocket = Some(Box::default());
        let timeout_ns = options.handshake_timeout_ms.saturating_mul(1_000_000);
        conn.timing.auth_due = self.now.saturating_add(timeout_ns);
        conn.timing.ping_due = super::NEVER;
    }

    /// Handles what came for a WebSocket, without its TLS.
    pub(super) fn on_frames(&mut self, id: ConnId, bytes: &[u8]) {
        let Some(conn) = self.conns.get_mut(id).filter(|conn| conn.is_open()) else { return };
        let Some(websocket) = conn.websocket.as_deref_mut() else { return };
        if !websocket.is_open {
            self.on_request(id, bytes);
        } else if websocket.waits() {
            websocket.waiting.extend_from_slice(bytes);
        } else {
            self.unframe(id, bytes);
        }
    }

    fn on_request(&mut self, id: ConnId, bytes: &[u8]) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        let Some(websocket) = conn.websocket.as_deref_mut() else { return };
        let request = &mut websocket.request;
        // Nobody may say anything before the answer, so nothing can follow the request.
        request.extend_from_slice(bytes);
        let judged = match upgrade::end_of_request(request) {
            None if request.len() > upgrade::REQUEST_BYTES_MAX => Err(upgrade::TOO_LONG),
            None => return,
            Some(end) if end < request.len() => {
                self.fail_upgrade(id, "client sent data before handshake is complete");
                return;
            }
            Some(_) => match &self.settings.websocket {
                Some(options) => upgrade::judge(request, options),
                // A reload has turned it off since.
                None => Err(upgrade::TOO_LONG),
            },
        };
        websocket.request = Vec::new();
        match judged {
            Ok(upgrade) => self.on_upgraded(id, upgrade),
            Err(refusal) => self.refuse_upgrade(id, refusal),
        }
    }

    fn on_upgraded(&mut self, id: ConnId, upgrade: Upgrade) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        let Some(websocket) = conn.websocket.as_deref_mut() else { return };
        websocket.is_open = true;
        websocket.decoder.may_pack = upgrade.packs;
        websocket.packs = upgrade.packs;
        websocket.response = upgrade.response;
        websocket.credentials = upgrade.credentials;
        let forwarded = upgrade.forwarded_for.as_deref().unwrap_or_default();
        if !forwarded.is_empty() && self.settings.trusts(&conn.peer.ip) {
            // Each proxy appends whom it has heard: the last one that no proxy of ours is.
            let mut hops = forwarded.rsplit(',').map(str::trim);
            let client = hops.find(|hop| !self.settings.trusts(hop));
            if let Some(client) = client.filter(|hop| hop.parse::<core::net::IpAddr>().is_ok()) {
                conn.peer.ip = client.into();
            }
        }
        tracing::debug!("{} - Client connection created", conn.label());
        let interval = self.settings.ping_interval_of(conn.transport);
        conn.timing.ping_due = self.now.saturating_add(interval);
        conn.timing.auth_due = self.settings.auth_due(conn.transport, self.now);
        self.send_info(id, false);
        self.rearm(id);
    }

    fn refuse_upgrade(&mut self, id: ConnId, refusal: Refusal) {
        if let Some(websocket) = self.conns.get_mut(id).and_then(|conn| conn.websocket.as_mut()) {
            websocket.response = refusal.response();
        }
        self.fail_upgrade(id, refusal.reason);
    }

    /// Ends a connection that has not become a WebSocket.
    pub(super) fn fail_upgrade(&mut self, id: ConnId, why: &str) {
        if let Some(conn) = self.conns.get(id) {
            let address = conn.peer.address();
            tracing::error!("{address} - websocket handshake error: {why}");
        }
        self.fail(id, None, Reason::Protocol("Protocol Violation"));
    }

    /// Takes the frames apart and handles what is in them.
    fn unframe(&mut self, id: ConnId, mut bytes: &[u8]) {
        let mut clear = std::mem::take(&mut self.unframed);
        let mut unpacked_bytes = 0;
        let mut end = None;
        while let Some(conn) = self.conns.get_mut(id).filter(|conn| conn.is_open())
            && let Some(websocket) = conn.websocket.as_deref_mut()
        {
            if conn.waits {
                // It is resumed when that has been handled.
                websocket.waiting.extend_from_slice(bytes);
                websocket.in_line = true;
                break;
            }
            match websocket.decoder.next(&mut bytes, PACKED_BYTES_MAX) {
                Ok(Step::More) => break,
                Ok(Step::Data { masked, mask, packed: false, .. }) => {
                    frame::unmask(&mut clear, masked, mask);
                }
                Ok(Step::Data { masked, mask, ends, .. }) => {
                    let mut packed = Vec::with_capacity(masked.len());
                    frame::unmask(&mut packed, masked, mask);
                    let had_bytes = clear.len();
                    let packer = &mut self.packer;
                    let decompress = websocket.decompress.get_or_insert_with(|| packer.lend());
                    if let Err(violation) = deflate::inflate(decompress, &packed, ends, &mut clear)
                    {
                        end = Some(End::Violation(violation));
                        break;
                    }
                    if ends && let Some(decompress) = websocket.decompress.take() {
                        packer.take_back(decompress);
                    }
                    let bytes = clear.len() - had_bytes;
                    unpacked_bytes += bytes;
                    self.budget.spend(INFLATE_WORK * bytes as u64);
                }
                Ok(Step::Ping(payload)) => websocket.pong = Some(payload),
                Ok(Step::Pong) => {}
                Ok(Step::Close(payload)) => {
                    end = Some(End::Closed(payload));
                    break;
                }
                Err(violation) => {
                    end = Some(End::Violation(violation));
                    break;
                }
            }
            if clear.len() >= CLEAR_BYTES_MAX {
                self.on_plaintext(id, &clear);
                clear.clear();
            }
            let is_much = unpacked_bytes > UNPACKED_BYTES_PER_TURN || self.budget.is_spent();
            if is_much && !bytes.is_empty() {
                self.put_aside(id, bytes);
                break;
            }
        }
        if !clear.is_empty() {
            self.on_plaintext(id, &clear);
            clear.clear();
        }
        // What a bomb has made of it is not kept.
        clear.shrink_to(2 * CLEAR_BYTES_MAX);
        self.unframed = clear;
        if let Some(conn) = self.conns.get_mut(id)
            && let Some(websocket) = conn.websocket.as_deref_mut()
        {
            websocket.end = end;
            if !conn.waits {
                self.end_frames(id);
            }
        }
        self.flush_if_wanted(id);
    }

    /// All that came before the end of a WebSocket's frames is handled.
    fn end_frames(&mut self, id: ConnId) {
        let websocket = self.conns.get_mut(id).and_then(|conn| conn.websocket.as_deref_mut());
        if let Some(end) = websocket.and_then(|websocket| websocket.end.take()) {
            self.end_websocket(id, end);
        }
    }

    /// Goes on with what waits in the layers around the protocol.
    pub(super) fn resume_unwrapping(&mut self, id: ConnId) {
        self.end_frames(id);
        let Some(conn) = self.conns.get(id) else { return };
        if conn.websocket.as_ref().is_some_and(|websocket| websocket.in_line) {
            self.unpacking.push_back(id);
        }
        self.resume_unpacking(id);
    }

    fn end_websocket(&mut self, id: ConnId, end: End) {
        let Some(conn) = self.conns.get_mut(id).filter(|conn| conn.is_open()) else { return };
        let label = conn.label();
        let Some(websocket) = conn.websocket.as_deref_mut() else { return };
        let reason = match end {
            End::Closed(payload) => {
                // The same back, as the standard has it.
                const NOT_UTF8: u16 = 1007;
                let is_text = payload.get(2..).is_none_or(|text| str::from_utf8(text).is_ok());
                websocket.close = Some(match is_text {
                    true => payload,
                    false => close_payload(NOT_UTF8, "invalid utf8 body in close frame"),
                });
                Reason::ClientClosed
            }
            End::Violation(violation) => {
                tracing::error!("{label} - read error: {}", violation.text());
                websocket.close = Some(close_payload(PROTOCOL_ERROR, violation.text()));
                Reason::ReadError
            }
        };
        self.fail(id, None, reason);
    }

    /// The rest is handled when others had their turn.
    fn put_aside(&mut self, id: ConnId, bytes: &[u8]) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        let Some(websocket) = conn.websocket.as_deref_mut() else { return };
        websocket.waiting.extend_from_slice(bytes);
        websocket.in_line = true;
        self.unpacking.push_back(id);
        self.brake(id, |brakes| brakes.in_line = true);
    }

    /// Goes on with one of those that were put aside.
    pub(super) fn advance_unpacking(&mut self) {
        let Some(id) = self.unpacking.pop_front() else { return };
        let Some(conn) = self.conns.get_mut(id).filter(|conn| conn.is_open()) else { return };
        if conn.waits {
            return; // It is resumed when that has been handled.
        }
        self.budget.serve_input();
        let Some(websocket) = conn.websocket.as_deref_mut() else {
            return self.advance_packed(id);
        };
        websocket.in_line = false;
        let bytes = std::mem::take(&mut websocket.waiting);
        self.release(id, |brakes| brakes.in_line = false);
        self.unframe(id, &bytes);
        self.end_if_heard(id);
    }

    /// Has what the layers around the protocol want to send taken.
    pub(super) fn flush_if_wanted(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.wants_write() {
            conn.flush(&mut self.flushes, true);
        }
    }
}

/// How the frames of a connection end.
#[derive(Debug)]
enum End {
    /// The client has said so.
    Closed(Vec<u8>),
    /// They made no sense.
    Violation(Violation),
}

#[cfg(test)]
mod tests;
