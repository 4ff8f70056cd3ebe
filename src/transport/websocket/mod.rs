//! WebSocket around a connection: frames on the wire, the protocol's bytes within.
//!
//! Payloads of data frames are the protocol's stream, wherever they are cut. A batch is one
//! message: a header before the pieces of the outbox, so segments stay shared. With compression
//! the batch is copied, by the one compressor of the shard. Control frames are in no outbox; of
//! several pings only the last is answered.
//!
//! No library puts frames around bytes without reading and writing them too, so that is done here
//! (`frame`); HTTP is parsed by `httparse` (`upgrade`), compression is `flate2`'s (`deflate`).

pub(super) mod deflate;
pub(super) mod frame;
pub(super) mod upgrade;

use flate2::Decompress;

use super::{
    Allowance, BATCH_BYTES_MAX, Bench, CLEAR_BYTES_MAX, Failure, Step, WebSocketSettings, Wrapping,
};
use crate::output::Piece;
use crate::proto::Connect;
use frame::{Decoder, Violation};
use upgrade::{GivenCookies, Refusal};

/// Compressed data that is decompressed at once, in bytes: a thousand times as much can come of it.
const PACKED_BYTES_MAX: usize = 1024;
/// Shorter batches are not worth compressing.
const PACK_BYTES_MIN: usize = 65;
/// What it costs to decompress a byte.
const INFLATE_WORK: u64 = 3;
/// The same for a message, however little is in it: what decompresses it begins anew.
const INFLATED_MESSAGE_WORK: u64 = 1_500;
/// What a frame costs, or a part of one that is taken at once.
const FRAME_WORK: u64 = 50;
/// The code of a close frame for who breaks the rules of frames.
const PROTOCOL_ERROR: u16 = 1002;
/// The code of a close frame for text that is none.
const NOT_UTF8: u16 = 1007;

/// The WebSocket of one connection.
#[derive(Debug, Default)]
pub(super) struct WebSocketLayer {
    /// The request that opens it, until it is whole and granted.
    request: Vec<u8>,
    pub(super) is_open: bool,
    decoder: Decoder,
    /// What decompresses the message that is coming.
    decompress: Option<Decompress>,
    /// Frames that wait until others had their turn.
    pub(super) waiting: Vec<u8>,
    pub(super) in_line: bool,
    /// How its frames end, behind input that waits.
    end: Option<End>,
    /// Batches that can be compressed are.
    packs: bool,
    credentials: GivenCookies,
    /// The answer to the request, until it is taken.
    response: Vec<u8>,
    /// What the last ping is to be answered with: earlier ones need no answer.
    pong: Option<Vec<u8>>,
    /// What the last frame will say, and whether it is taken.
    close: Option<Vec<u8>>,
    said_goodbye: bool,
}

/// How the frames of a connection end.
#[derive(Debug)]
enum End {
    /// The client has said so.
    Closed(Vec<u8>),
    /// They made no sense.
    Violation(Violation),
}

impl WebSocketLayer {
    /// Whether there is something to be sent that is not in the outbox.
    pub(super) fn wants_write(&self) -> bool {
        !self.response.is_empty() || self.pong.is_some() || self.wants_goodbye()
    }

    /// Whether frames wait, or their end.
    fn waits(&self) -> bool {
        self.in_line || self.end.is_some()
    }

    /// Whether the end of the frames waits for what came before it.
    pub(super) fn has_end(&self) -> bool {
        self.end.is_some()
    }

    /// Whether the last frame is still to be sent, behind everything else.
    pub(super) fn wants_goodbye(&self) -> bool {
        self.is_open && self.close.is_some() && !self.said_goodbye
    }

    /// The connection ends: its last frame says so, unless it is decided what that says.
    pub(super) fn end(&mut self, code: u16, text: &str) {
        self.close.get_or_insert_with(|| close_payload(code, text));
    }

    /// Lets cookies stand for what CONNECT leaves out.
    pub(super) fn complete(&self, connect: &mut Connect) {
        self.credentials.complete(connect);
    }

    /// Takes frames apart as far as they may be.
    pub(super) fn next(
        &mut self,
        bytes: &mut &[u8],
        allowance: Allowance,
        bench: &mut Bench,
    ) -> Step {
        if !self.is_open {
            return self.request(bytes);
        }
        loop {
            let has_plain = !bench.plain.is_empty();
            if self.waits() {
                self.put_aside(bytes);
                return match self.end.take_if(|_| !has_plain && !allowance.is_held) {
                    Some(end) => self.conclude(end),
                    None if has_plain => Step::Plain,
                    None => Step::Done,
                };
            }
            // The first frame is taken whatever others have cost: most hold one small thing.
            let is_spent = bench.has_begun && bench.work >= allowance.work;
            let is_much = bench.has_much() || is_spent;
            if has_plain && (bench.plain.len() >= CLEAR_BYTES_MAX || is_much) {
                return Step::Plain;
            }
            if !bytes.is_empty() && (allowance.is_held || is_much) {
                self.put_aside(bytes);
                self.in_line = true;
                return if is_much { Step::Turn } else { Step::Done };
            }
            bench.has_begun = true;
            if !self.unframe(bytes, bench) {
                return if has_plain { Step::Plain } else { Step::Done };
            }
        }
    }

    /// What comes is behind what waits.
    fn put_aside(&mut self, bytes: &mut &[u8]) {
        self.waiting.extend_from_slice(bytes);
        *bytes = &[];
    }

    /// Gathers the request.
    fn request(&mut self, bytes: &mut &[u8]) -> Step {
        let request = &mut self.request;
        // Nobody may say anything before the answer, so nothing can follow the request.
        request.extend_from_slice(bytes);
        *bytes = &[];
        match upgrade::end_of_request(request) {
            None if request.len() > upgrade::REQUEST_BYTES_MAX => {
                Step::Failed(self.refuse(upgrade::TOO_LONG))
            }
            None => Step::Done,
            Some(end) if end < request.len() => {
                Step::Failed(Failure::Upgrade("client sent data before handshake is complete"))
            }
            Some(_) => Step::Request,
        }
    }

    /// Judges the request that is whole now. Returns what it says in `X-Forwarded-For`.
    ///
    /// # Errors
    ///
    /// It is refused, and the answer says so.
    pub(super) fn upgrade(
        &mut self,
        settings: Option<&WebSocketSettings>,
    ) -> Result<Option<String>, Failure> {
        let request = std::mem::take(&mut self.request);
        // Without settings it was turned off since.
        let judged = settings
            .ok_or(upgrade::TOO_LONG)
            .and_then(|settings| upgrade::judge(&request, settings));
        let upgrade = judged.map_err(|refusal| self.refuse(refusal))?;
        self.is_open = true;
        self.decoder.may_pack = upgrade.packs;
        self.packs = upgrade.packs;
        self.response = upgrade.response;
        self.credentials = upgrade.credentials;
        Ok(upgrade.forwarded_for)
    }

    fn refuse(&mut self, refusal: Refusal) -> Failure {
        self.request = Vec::new();
        self.response = refusal.response();
        Failure::Upgrade(refusal.reason)
    }

    /// Takes a part of a frame; false if there is nothing before more bytes have come.
    fn unframe(&mut self, bytes: &mut &[u8], bench: &mut Bench) -> bool {
        bench.work += FRAME_WORK;
        let end = match self.decoder.next(bytes, PACKED_BYTES_MAX) {
            Ok(frame::Step::More) => return false,
            Ok(frame::Step::Data { masked, mask, packed: false, .. }) => {
                frame::unmask(&mut bench.plain, masked, mask);
                return true;
            }
            Ok(frame::Step::Data { masked, mask, ends, .. }) => {
                let mut packed = Vec::with_capacity(masked.len());
                frame::unmask(&mut packed, masked, mask);
                match self.inflate(&packed, ends, bench) {
                    Ok(()) => return true,
                    Err(violation) => End::Violation(violation),
                }
            }
            Ok(frame::Step::Ping(payload)) => {
                self.pong = Some(payload);
                return true;
            }
            Ok(frame::Step::Pong) => return true,
            Ok(frame::Step::Close(payload)) => End::Closed(payload),
            Err(violation) => End::Violation(violation),
        };
        self.end = Some(end);
        *bytes = &[];
        true
    }

    /// Takes a part of a compressed message; with `ends` it is the last.
    fn inflate(&mut self, packed: &[u8], ends: bool, bench: &mut Bench) -> Result<(), Violation> {
        let Bench { plain, packer, .. } = bench;
        let had_bytes = plain.len();
        let decompress = self.decompress.get_or_insert_with(|| packer.lend());
        deflate::inflate(decompress, packed, ends, plain)?;
        if ends && let Some(decompress) = self.decompress.take() {
            packer.take_back(decompress);
            bench.work += INFLATED_MESSAGE_WORK;
        }
        let bytes = plain.len() - had_bytes;
        bench.count_unpacked(bytes, INFLATE_WORK);
        Ok(())
    }

    /// All that came before the end of the frames is handled.
    fn conclude(&mut self, end: End) -> Step {
        match end {
            End::Closed(payload) => {
                // The same back, as the standard has it.
                let is_text = payload.get(2..).is_none_or(|text| str::from_utf8(text).is_ok());
                self.close = Some(match is_text {
                    true => payload,
                    false => close_payload(NOT_UTF8, "invalid utf8 body in close frame"),
                });
                Step::Ended
            }
            End::Violation(violation) => {
                self.close = Some(close_payload(PROTOCOL_ERROR, violation.text()));
                Step::Failed(Failure::Frames(violation.text()))
            }
        }
    }

    /// The next batch in frames, and how many bytes of the outbox that is.
    pub(super) fn take(
        &mut self,
        bytes_max: usize,
        wrapping: &mut Wrapping<'_>,
    ) -> Option<(Vec<Piece>, usize)> {
        let Wrapping { outbox, spares, bench, taking } = wrapping;
        if outbox.is_in_flight() {
            return None;
        }
        let bytes_max = if self.packs { BATCH_BYTES_MAX } else { bytes_max };
        let mut taken = match self.is_open {
            true => outbox.take_up_to(bytes_max, spares).unwrap_or_default(),
            false => Vec::new(),
        };
        let taken_bytes = taken.iter().map(|piece| piece.bytes().len()).sum();
        let is_last = taking.is_last && outbox.ends_with(taken_bytes) && self.wants_goodbye();
        let packed =
            (self.packs && taken_bytes >= PACK_BYTES_MIN).then(|| bench.packer.pack(&taken));
        if taken_bytes == 0 && self.response.is_empty() && self.pong.is_none() && !is_last {
            return None;
        }
        let goodbye = self.close.as_deref().unwrap_or_default();
        let head = spares.own_piece(|out| {
            out.append(&mut self.response);
            if let Some(payload) = self.pong.take() {
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
        let mut batch = outbox.start(spares, head);
        if !is_packed {
            batch.append(&mut taken);
        }
        spares.keep_batch(taken);
        if is_last && taken_bytes > 0 {
            batch.push(spares.own_piece(|out| frame::close(out, goodbye)));
        }
        self.said_goodbye |= is_last;
        Some((batch, taken_bytes))
    }
}

fn close_payload(code: u16, text: &str) -> Vec<u8> {
    [&code.to_be_bytes(), text.as_bytes()].concat()
}
