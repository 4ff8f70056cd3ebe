//! WebSocket around a connection: frames on the wire, the protocol's bytes within.
//!
//! The other end has asked for it (a client or leaf node), or this end asks (`dial`). Then its own
//! frames are those of a client: under masks, unless the other end does without.
//!
//! Payloads of data frames are the protocol's stream, wherever they are cut. A batch is one
//! message: a header before the pieces of the outbox, so segments stay shared. With compression
//! the batch is copied, by the one compressor of the shard. Control frames are in no outbox; of
//! several pings only the last is answered.
//!
//! No library puts frames around bytes without reading and writing them too, so frames are coded
//! here (`frame`); HTTP is parsed by `httparse` (`upgrade`), compression is `flate2`'s (`deflate`).

pub(super) mod deflate;
pub(super) mod dial;
pub(super) mod frame;
pub(super) mod upgrade;

use flate2::Decompress;

use super::{
    Allowance, BATCH_BYTES_MAX, Bench, CLEAR_BYTES_MAX, Failure, LayerStep, Upgraded,
    WebSocketSettings, Wrapping,
};
use crate::output::Piece;
use crate::proto::Connect;
use dial::{AskedSocket, WebSocketDial};
use frame::{Decoder, FrameError, Framer};
use upgrade::{GivenCookies, UpgradeRefusal};

/// Compressed bytes that are decompressed at once: they can become a thousand times as many.
const PACKED_BYTES_MAX: usize = 1024;
/// The shortest batch that is worth compressing, in bytes.
const PACK_BYTES_MIN: usize = 65;
/// The cost of a decompressed byte, in units of about 1 ns.
const INFLATE_WORK: u64 = 3;
/// The cost of a compressed message besides its bytes, in units of about 1 ns: its decompressor
/// begins anew.
const INFLATED_MESSAGE_WORK: u64 = 1_500;
/// The cost of a frame, or of a part of one that is taken at once, in units of about 1 ns.
const FRAME_WORK: u64 = 50;
/// The code of a close frame for a client that breaks the rules of frames.
const PROTOCOL_ERROR: u16 = 1002;
/// The code of a close frame for text that is not UTF-8.
const NOT_UTF8: u16 = 1007;

/// The WebSocket layer of one connection.
#[derive(Debug, Default)]
pub(super) struct WebSocketLayer {
    /// The request for the WebSocket, or the answer to that of this end, until it is whole and
    /// judged.
    head: Vec<u8>,
    /// The request of this end, until the answer is there.
    asked: Option<Box<AskedSocket>>,
    pub(super) is_open: bool,
    decoder: Decoder,
    framer: Framer,
    /// The decompressor of the message that is coming.
    decompress: Option<Decompress>,
    /// Frames that wait until other connections had their turn.
    pub(super) waiting: Vec<u8>,
    pub(super) in_line: bool,
    /// The end of the client's frames, behind input that waits.
    end: Option<FramesEnd>,
    /// Whether output is compressed.
    packs: bool,
    credentials: GivenCookies,
    /// The request of this end, or the response to that of the other, until it is taken.
    spoken: Vec<u8>,
    /// The payload of the last ping, for the pong: earlier ones need no answer.
    pong: Option<Vec<u8>>,
    /// The payload of the close frame to send.
    close: Option<Vec<u8>>,
    said_goodbye: bool,
}

/// The end of a client's frames.
#[derive(Debug)]
enum FramesEnd {
    /// A close frame of the client, with its payload.
    Closed(Vec<u8>),
    /// A violation of the rules of frames.
    Violation(FrameError),
}

impl WebSocketLayer {
    /// The layer of an end that asks for the WebSocket.
    pub(super) fn dialing(dial: WebSocketDial) -> Self {
        let (asked, request) = AskedSocket::new(dial);
        Self { asked: Some(Box::new(asked)), spoken: request, ..Self::default() }
    }

    /// Whether there are bytes to send that are not in the outbox.
    pub(super) fn wants_write(&self) -> bool {
        !self.spoken.is_empty() || self.pong.is_some() || self.wants_goodbye()
    }

    /// Whether frames wait, or their end.
    fn waits(&self) -> bool {
        self.in_line || self.end.is_some()
    }

    /// Whether the end of the frames waits for the input before it.
    pub(super) fn has_end(&self) -> bool {
        self.end.is_some()
    }

    /// Whether the close frame is still to be sent, behind everything else.
    pub(super) fn wants_goodbye(&self) -> bool {
        self.is_open && self.close.is_some() && !self.said_goodbye
    }

    /// Sets the contents of the close frame, unless they are set already.
    pub(super) fn end(&mut self, code: u16, text: &str) {
        self.close.get_or_insert_with(|| close_payload(code, text));
    }

    /// Fills in fields that CONNECT leaves out from the request's cookies.
    pub(super) fn complete(&self, connect: &mut Connect) {
        self.credentials.complete(connect);
    }

    /// Unwraps frames as far as the allowance permits.
    pub(super) fn next(
        &mut self,
        bytes: &mut &[u8],
        allowance: Allowance,
        bench: &mut Bench,
    ) -> LayerStep {
        match &self.asked {
            _ if self.is_open => {}
            None => return self.request(bytes, allowance.is_held),
            Some(_) => {
                if let Some(step) = self.answer(bytes) {
                    return step;
                }
            }
        }
        loop {
            let has_plain = !bench.plain.is_empty();
            if self.waits() {
                self.put_aside(bytes);
                return match self.end.take_if(|_| !has_plain && !allowance.is_held) {
                    Some(end) => self.conclude(end),
                    None if has_plain => LayerStep::Plain,
                    None => LayerStep::Done,
                };
            }
            // The first frame is taken at any cost of other connections: most hold one small
            // message.
            let is_spent = bench.has_begun && bench.work >= allowance.work;
            let is_much = bench.has_much() || is_spent;
            if has_plain && (bench.plain.len() >= CLEAR_BYTES_MAX || is_much) {
                return LayerStep::Plain;
            }
            if !bytes.is_empty() && (allowance.is_held || is_much) {
                self.put_aside(bytes);
                self.in_line = true;
                return if is_much { LayerStep::Turn } else { LayerStep::Done };
            }
            bench.has_begun = true;
            if !self.unframe(bytes, bench) {
                return if has_plain { LayerStep::Plain } else { LayerStep::Done };
            }
        }
    }

    /// Adds input behind the input that waits.
    fn put_aside(&mut self, bytes: &mut &[u8]) {
        self.waiting.extend_from_slice(bytes);
        *bytes = &[];
    }

    /// Gathers the request, which waits while earlier steps are not decided.
    fn request(&mut self, bytes: &mut &[u8], is_held: bool) -> LayerStep {
        let request = &mut self.head;
        // A client has to wait for the response, so nothing can follow the request.
        request.extend_from_slice(bytes);
        *bytes = &[];
        match upgrade::end_of_request(request) {
            None if request.len() > upgrade::REQUEST_BYTES_MAX => {
                LayerStep::Failed(self.refuse(upgrade::TOO_LONG))
            }
            None => LayerStep::Done,
            Some(end) if end < request.len() => {
                LayerStep::Failed(Failure::Upgrade("client sent data before handshake is complete"))
            }
            Some(_) if is_held => LayerStep::Done,
            Some(_) => LayerStep::Request,
        }
    }

    /// Gathers the answer to the request of this end, and takes it; `None` once the WebSocket is
    /// open. What follows are frames, for the other end need not wait.
    fn answer(&mut self, bytes: &mut &[u8]) -> Option<LayerStep> {
        let had_bytes = self.head.len();
        self.head.extend_from_slice(bytes);
        let Some(end) = upgrade::end_of_request(&self.head) else {
            *bytes = &[];
            let is_long = self.head.len() > upgrade::REQUEST_BYTES_MAX;
            let failure = Failure::Upgrade("the answer is too long");
            return Some(if is_long { LayerStep::Failed(failure) } else { LayerStep::Done });
        };
        let asked = self.asked.take()?;
        let granted = match asked.read(&std::mem::take(&mut self.head)[..end]) {
            Ok(granted) => granted,
            Err(why) => return Some(LayerStep::Failed(Failure::Upgrade(why))),
        };
        *bytes = &bytes[end.saturating_sub(had_bytes)..];
        self.is_open = true;
        (self.packs, self.decoder.may_pack) = (granted.packs, granted.packs);
        self.decoder.may_be_bare = true;
        self.framer = granted.masks.map_or_else(Framer::default, Framer::masking);
        None
    }

    /// Grants or refuses the whole request.
    ///
    /// # Errors
    ///
    /// Returns the reason for a refusal, which the response shows.
    pub(super) fn upgrade(
        &mut self,
        settings: Option<&WebSocketSettings>,
    ) -> Result<Upgraded, Failure> {
        let request = std::mem::take(&mut self.head);
        // Without settings it was turned off since.
        let judged = settings
            .ok_or(upgrade::TOO_LONG)
            .and_then(|settings| upgrade::judge(&request, settings));
        let upgrade = judged.map_err(|refusal| self.refuse(refusal))?;
        self.is_open = true;
        self.decoder.may_pack = upgrade.packs;
        self.decoder.may_be_bare = !upgrade.wants_masks;
        self.packs = upgrade.packs;
        self.spoken = upgrade.response;
        self.credentials = upgrade.credentials;
        Ok(Upgraded { forwarded_for: upgrade.forwarded_for, speaks: upgrade.speaks })
    }

    fn refuse(&mut self, refusal: UpgradeRefusal) -> Failure {
        self.head = Vec::new();
        self.spoken = refusal.response();
        Failure::Upgrade(refusal.reason)
    }

    /// Takes a part of a frame; `false` if more bytes must come first.
    fn unframe(&mut self, bytes: &mut &[u8], bench: &mut Bench) -> bool {
        bench.work += FRAME_WORK;
        let end = match self.decoder.next(bytes, PACKED_BYTES_MAX) {
            Ok(frame::FrameStep::More) => return false,
            Ok(frame::FrameStep::Data { masked, mask, packed: false, .. }) => {
                frame::unmask(&mut bench.plain, masked, mask);
                return true;
            }
            Ok(frame::FrameStep::Data { masked, mask, ends, .. }) => {
                let mut packed = Vec::with_capacity(masked.len());
                frame::unmask(&mut packed, masked, mask);
                match self.inflate(&packed, ends, bench) {
                    Ok(()) => return true,
                    Err(violation) => FramesEnd::Violation(violation),
                }
            }
            Ok(frame::FrameStep::Ping(payload)) => {
                self.pong = Some(payload);
                return true;
            }
            Ok(frame::FrameStep::Pong) => return true,
            Ok(frame::FrameStep::Close(payload)) => FramesEnd::Closed(payload),
            Err(violation) => FramesEnd::Violation(violation),
        };
        self.end = Some(end);
        *bytes = &[];
        true
    }

    /// Decompresses a part of a message; with `ends` it is the last.
    fn inflate(&mut self, packed: &[u8], ends: bool, bench: &mut Bench) -> Result<(), FrameError> {
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

    /// Ends the stream of frames, after all input before it is handled.
    fn conclude(&mut self, end: FramesEnd) -> LayerStep {
        match end {
            FramesEnd::Closed(payload) => {
                // The same back, as the standard has it.
                let is_text = payload.get(2..).is_none_or(|text| str::from_utf8(text).is_ok());
                self.close = Some(match is_text {
                    true => payload,
                    false => close_payload(NOT_UTF8, "invalid utf8 body in close frame"),
                });
                LayerStep::Ended
            }
            FramesEnd::Violation(violation) => {
                self.close = Some(close_payload(PROTOCOL_ERROR, violation.text()));
                LayerStep::Failed(Failure::Frames(violation.text()))
            }
        }
    }

    /// Takes the next batch in frames, and the bytes of the outbox in it.
    pub(super) fn take(
        &mut self,
        bytes_max: usize,
        wrapping: &mut Wrapping<'_>,
    ) -> Option<(Vec<Piece>, usize)> {
        let Wrapping { outbox, spares, bench, taking } = wrapping;
        if outbox.is_in_flight() {
            return None;
        }
        let is_copied = self.packs || self.framer.masks();
        let bytes_max = if is_copied { BATCH_BYTES_MAX } else { bytes_max };
        let mut taken = match self.is_open {
            true => outbox.take_up_to(bytes_max, spares).unwrap_or_default(),
            false => Vec::new(),
        };
        let taken_bytes = taken.iter().map(|piece| piece.bytes().len()).sum();
        let is_last = taking.is_last && outbox.ends_with(taken_bytes) && self.wants_goodbye();
        let packed =
            (self.packs && taken_bytes >= PACK_BYTES_MIN).then(|| bench.packer.pack(&taken));
        if taken_bytes == 0 && self.spoken.is_empty() && self.pong.is_none() && !is_last {
            return None;
        }
        let goodbye = self.close.as_deref().unwrap_or_default();
        let is_shared = packed.is_none() && !self.framer.masks();
        let framer = &mut self.framer;
        let head = spares.own_piece(|out| {
            out.append(&mut self.spoken);
            if let Some(payload) = self.pong.take() {
                framer.pong(out, &payload);
            }
            match packed {
                Some(packed) => framer.data(out, std::iter::once(packed), true),
                None if taken_bytes > 0 && is_shared => framer.data_header(out, taken_bytes),
                None if taken_bytes > 0 => framer.data(out, taken.iter().map(Piece::bytes), false),
                None if is_last => framer.close(out, goodbye),
                None => {}
            }
        });
        let mut batch = outbox.start(spares, head);
        if is_shared {
            batch.append(&mut taken);
        }
        spares.keep_batch(taken);
        if is_last && taken_bytes > 0 {
            batch.push(spares.own_piece(|out| self.framer.close(out, goodbye)));
        }
        self.said_goodbye |= is_last;
        Some((batch, taken_bytes))
    }
}

fn close_payload(code: u16, text: &str) -> Vec<u8> {
    [&code.to_be_bytes(), text.as_bytes()].concat()
}
