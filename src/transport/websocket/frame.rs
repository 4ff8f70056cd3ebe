//! Frames of WebSocket (RFC 6455): their headers, and the rules for both ends.
//!
//! The payloads of data frames are a stream of bytes like any other, so a frame is never put
//! together: its payload is handed on as it comes.

use smallvec::SmallVec;

/// The longest payload of a control frame, in bytes.
const CONTROL_BYTES_MAX: usize = 125;
/// The bytes of a client's longest frame header: two, eight of length, four of mask.
const HEADER_BYTES_MAX: usize = 14;

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

const FINAL: u8 = 0x80;
const PACKED: u8 = 0x40;
const MASKED: u8 = 0x80;

/// A violation of the rules of frames, in the words of nats-server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::transport) enum FrameError {
    Unmasked,
    Reserved,
    NotNegotiated,
    UnknownOpcode,
    BadContinuation,
    NotContinued,
    LongControl,
    FragmentedControl,
    BadLength,
    ShortClose,
    NotDeflate,
}

impl FrameError {
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Unmasked => "mask bit missing",
            Self::Reserved => "RSV2 and RSV3 must be clear",
            Self::NotNegotiated => {
                "compressed frame received without negotiated permessage-deflate"
            }
            Self::UnknownOpcode => "unknown opcode",
            Self::BadContinuation => "invalid continuation frame",
            Self::NotContinued => {
                "new message started before final frame for previous message was received"
            }
            Self::LongControl => "control frame length bigger than maximum allowed of 125 bytes",
            Self::FragmentedControl => "control frame does not have final bit set",
            Self::BadLength => "invalid frame length",
            Self::ShortClose => "close frame payload cannot be 1 byte",
            Self::NotDeflate => "a compressed message is not in the deflate format",
        }
    }
}

/// The next item of a stream of frames.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FrameStep<'a> {
    /// The absence of a whole item: more bytes must come.
    More,
    /// A part of a message.
    Data {
        /// The payload as it came, under its mask.
        masked: &'a [u8],
        /// The mask from the payload's first byte on.
        mask: [u8; 4],
        /// Whether the message is compressed.
        packed: bool,
        /// Whether this is the last part of its message.
        ends: bool,
    },
    /// A ping, with the payload to send back in a pong.
    Ping(Vec<u8>),
    /// An answer to a ping.
    Pong,
    /// A close frame with its payload, a code and a text; nothing follows.
    Close(Vec<u8>),
}

/// A decoder of the other end's frames.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    /// The first bytes of a header that is not whole.
    head: SmallVec<[u8; HEADER_BYTES_MAX]>,
    /// The frame with the payload that is coming.
    frame: Option<Frame>,
    /// The payload of a control frame, so far.
    control: Vec<u8>,
    /// A message that is not complete; whether it is compressed.
    message: Option<bool>,
    /// Whether compression was agreed upon.
    pub(super) may_pack: bool,
    /// Whether frames may lack a mask: those of a server, or of a leaf node that has asked.
    pub(super) may_be_bare: bool,
}

#[derive(Debug)]
struct Frame {
    opcode: u8,
    is_final: bool,
    left: u64,
    mask: [u8; 4],
}

impl Decoder {
    /// Takes the next item from `input`, with at most `packed_bytes_max` bytes of compressed data.
    pub(super) fn next<'a>(
        &mut self,
        input: &mut &'a [u8],
        packed_bytes_max: usize,
    ) -> Result<FrameStep<'a>, FrameError> {
        if self.frame.is_none() {
            let Some(frame) = self.header(input)? else { return Ok(FrameStep::More) };
            self.frame = Some(frame);
        }
        let Some(frame) = &mut self.frame else { return Ok(FrameStep::More) };
        let packed = self.message == Some(true) && frame.opcode < CLOSE;
        let most = if packed { packed_bytes_max } else { usize::MAX };
        let left = usize::try_from(frame.left).unwrap_or(usize::MAX);
        let take = left.min(input.len()).min(most);
        if take == 0 && left > 0 {
            return Ok(FrameStep::More);
        }
        let (masked, rest) = input.split_at(take);
        *input = rest;
        let mask = frame.mask;
        frame.mask.rotate_left(take % 4);
        frame.left -= take as u64;
        let is_whole = frame.left == 0;
        let (opcode, is_final) = (frame.opcode, frame.is_final);
        if is_whole {
            self.frame = None;
        }
        if opcode < CLOSE {
            let ends = is_whole && is_final;
            if ends {
                self.message = None;
            }
            return Ok(FrameStep::Data { masked, mask, packed, ends });
        }
        unmask(&mut self.control, masked, mask);
        if !is_whole {
            return Ok(FrameStep::More);
        }
        let payload = std::mem::take(&mut self.control);
        match opcode {
            PING => Ok(FrameStep::Ping(payload)),
            PONG => Ok(FrameStep::Pong),
            _ if payload.len() == 1 => Err(FrameError::ShortClose),
            _ => Ok(FrameStep::Close(payload)),
        }
    }

    /// Returns the next header, once it is whole, and checks the length of its payload.
    fn header(&mut self, input: &mut &[u8]) -> Result<Option<Frame>, FrameError> {
        let head = &mut self.head;
        if !fill(head, input, 2) {
            return Ok(None);
        }
        let (first, second) = (head[0], head[1]);
        let (opcode, is_final, packed) = (first & 0x0f, first & FINAL != 0, first & PACKED != 0);
        if first & 0x30 != 0 {
            return Err(FrameError::Reserved);
        }
        let mask_bytes = if second & MASKED == 0 { 0 } else { 4 };
        if mask_bytes == 0 && !self.may_be_bare {
            return Err(FrameError::Unmasked);
        }
        let len_bytes = match second & 0x7f {
            127 => 8,
            126 => 2,
            _ => 0,
        };
        match opcode {
            CLOSE | PING | PONG if len_bytes > 0 => return Err(FrameError::LongControl),
            CLOSE | PING | PONG if !is_final => return Err(FrameError::FragmentedControl),
            CLOSE | PING | PONG if packed => return Err(FrameError::NotNegotiated),
            CLOSE | PING | PONG => {}
            TEXT | BINARY if self.message.is_some() => return Err(FrameError::NotContinued),
            TEXT | BINARY if packed && !self.may_pack => return Err(FrameError::NotNegotiated),
            TEXT | BINARY => {}
            CONTINUATION if self.message.is_none() || packed => {
                return Err(FrameError::BadContinuation);
            }
            CONTINUATION => {}
            _ => return Err(FrameError::UnknownOpcode),
        }
        if !fill(head, input, 2 + len_bytes + mask_bytes) {
            return Ok(None);
        }
        let left = match len_bytes {
            0 => u64::from(second & 0x7f),
            _ => head[2..2 + len_bytes].iter().fold(0, |len, byte| len << 8 | u64::from(*byte)),
        };
        if left > i64::MAX.unsigned_abs() {
            return Err(FrameError::BadLength);
        }
        let mut mask = [0; 4];
        mask[..mask_bytes].copy_from_slice(&head[2 + len_bytes..]);
        head.clear();
        if matches!(opcode, TEXT | BINARY) {
            self.message = Some(packed);
        }
        Ok(Some(Frame { opcode, is_final, left, mask }))
    }
}

/// Moves bytes from `input` until there are `wanted`; returns whether there are.
fn fill(head: &mut SmallVec<[u8; HEADER_BYTES_MAX]>, input: &mut &[u8], wanted: usize) -> bool {
    let take = wanted.saturating_sub(head.len()).min(input.len());
    let (moved, rest) = input.split_at(take);
    head.extend_from_slice(moved);
    *input = rest;
    head.len() >= wanted
}

/// Appends the bytes of `masked` without their mask.
pub(super) fn unmask(out: &mut Vec<u8>, masked: &[u8], mask: [u8; 4]) {
    let start = out.len();
    out.extend_from_slice(masked);
    // Eight bytes at once: this goes over all that a client publishes.
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, rest) = out[start..].as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    rest.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
}

/// An encoder of frames: those of a server, or with masks those of a client.
#[derive(Debug, Default)]
pub(super) struct Framer {
    masks: Option<fastrand::Rng>,
}

impl Framer {
    /// The frames of a client, with masks out of a source with this seed.
    pub(super) fn masking(seed: u64) -> Self {
        Self { masks: Some(fastrand::Rng::with_seed(seed)) }
    }

    /// Whether payloads go under a mask.
    pub(super) fn masks(&self) -> bool {
        self.masks.is_some()
    }

    /// Appends the header of a whole message of `len` bytes, whose payload goes without a mask.
    pub(super) fn data_header(&mut self, out: &mut Vec<u8>, len: usize) {
        debug_assert!(!self.masks(), "the payload would not be understood");
        self.header(out, FINAL | BINARY, len);
    }

    /// Appends a whole message of these parts.
    pub(super) fn data<'a>(
        &mut self,
        out: &mut Vec<u8>,
        parts: impl Iterator<Item = &'a [u8]> + Clone,
        packed: bool,
    ) {
        let first = FINAL | BINARY | if packed { PACKED } else { 0 };
        let len = parts.clone().map(<[u8]>::len).sum();
        let mut mask = self.header(out, first, len);
        for part in parts {
            unmask(out, part, mask);
            mask.rotate_left(part.len() % 4);
        }
    }

    /// Appends a pong that answers a ping with this payload.
    pub(super) fn pong(&mut self, out: &mut Vec<u8>, payload: &[u8]) {
        self.control(out, PONG, payload);
    }

    /// Appends a close frame, after which nothing follows.
    pub(super) fn close(&mut self, out: &mut Vec<u8>, payload: &[u8]) {
        self.control(out, CLOSE, payload);
    }

    fn control(&mut self, out: &mut Vec<u8>, opcode: u8, payload: &[u8]) {
        let payload = &payload[..payload.len().min(CONTROL_BYTES_MAX)];
        let mask = self.header(out, FINAL | opcode, payload.len());
        unmask(out, payload, mask);
    }

    /// Appends a header; returns the mask for the payload, which is nothing without one.
    fn header(&mut self, out: &mut Vec<u8>, first: u8, len: usize) -> [u8; 4] {
        out.push(first);
        let at = out.len();
        match (u8::try_from(len), u16::try_from(len)) {
            (Ok(len @ ..126), _) => out.push(len),
            (_, Ok(len)) => {
                out.push(126);
                out.extend_from_slice(&len.to_be_bytes());
            }
            _ => {
                out.push(127);
                out.extend_from_slice(&(len as u64).to_be_bytes());
            }
        }
        let Some(random) = &mut self.masks else { return [0; 4] };
        out[at] |= MASKED;
        let mask = random.u32(..).to_ne_bytes();
        out.extend_from_slice(&mask);
        mask
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A frame as a client sends it.
    pub(crate) fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        let mut framer = Framer::masking(7);
        let mask = framer.header(&mut frame, first, payload.len());
        unmask(&mut frame, payload, mask);
        frame
    }

    /// The items of a stream that arrives in pieces: data by message, control frames, and a
    /// violation.
    fn decoded(pieces: &[&[u8]]) -> (Vec<Vec<u8>>, Vec<String>, Option<FrameError>) {
        let mut decoder = Decoder::default();
        let (mut messages, mut others) = (vec![Vec::new()], Vec::new());
        for mut input in pieces.iter().copied() {
            loop {
                match decoder.next(&mut input, usize::MAX) {
                    Ok(FrameStep::More) => break,
                    Ok(FrameStep::Data { masked, mask, ends, .. }) => {
                        unmask(messages.last_mut().unwrap(), masked, mask);
                        if ends {
                            messages.push(Vec::new());
                        }
                    }
                    Ok(other) => others.push(format!("{other:?}")),
                    Err(violation) => return (messages, others, Some(violation)),
                }
            }
            assert!(input.is_empty(), "everything is taken");
        }
        (messages, others, None)
    }

    fn payload() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(any::<u8>(), 0..300)
    }

    proptest! {
        #[test]
        fn wherever_frames_are_cut_the_same_comes_of_them(
            frames in prop::collection::vec((0u8..12, payload()), 0..8),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let mut wire = Vec::new();
            for (kind, payload) in &frames {
                let short = &payload[..payload.len().min(CONTROL_BYTES_MAX)];
                wire.extend(match kind {
                    0 => frame(BINARY, payload),
                    1 => frame(CONTINUATION, payload),
                    2 => frame(FINAL | CONTINUATION, payload),
                    3 => frame(FINAL | PING, short),
                    4 => frame(FINAL | PONG, short),
                    5 => frame(FINAL | CLOSE, short),
                    _ => frame(FINAL | BINARY, payload),
                });
            }
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(wire.len() + 1)).collect();
            at.sort_unstable();
            let ends = at.iter().copied().chain([wire.len()]);
            let starts = [0].into_iter().chain(at.iter().copied());
            let pieces: Vec<&[u8]> = starts.zip(ends).map(|(from, to)| &wire[from..to]).collect();
            prop_assert_eq!(decoded(&pieces), decoded(&[&wire]));
        }
    }

    #[test]
    fn a_message_of_any_length_comes_out_as_it_went_in() {
        for len in [0, 1, 7, 8, 9, 125, 126, 127, 65_535, 65_536, 70_001] {
            let payload: Vec<u8> = (0..=250).cycle().take(len).collect();
            let (messages, ..) = decoded(&[&frame(FINAL | BINARY, &payload)]);
            assert!(messages[0] == payload, "{len} bytes");
        }
    }

    #[test]
    fn a_mask_is_wanted_of_clients_only_and_taken_off_wherever_it_is() {
        let parts: [&[u8]; 3] = [b"hello", b"", b" there"];
        for mut framer in [Framer::default(), Framer::masking(1)] {
            let is_bare = !framer.masks();
            let mut wire = Vec::new();
            framer.data(&mut wire, parts.iter().copied(), false);
            framer.pong(&mut wire, b"?");
            for may_be_bare in [true, false] {
                let mut decoder = Decoder { may_be_bare, ..Decoder::default() };
                let (mut input, mut got) = (&wire[..], Vec::new());
                let step = decoder.next(&mut input, usize::MAX);
                if is_bare && !may_be_bare {
                    assert_eq!(step, Err(FrameError::Unmasked));
                    continue;
                }
                let Ok(FrameStep::Data { masked, mask, .. }) = step else { panic!("{step:?}") };
                unmask(&mut got, masked, mask);
                assert_eq!(got, b"hello there");
                let pong = decoder.next(&mut input, usize::MAX);
                assert_eq!((pong, input.len()), (Ok(FrameStep::Pong), 0));
            }
        }
    }

    #[test]
    fn what_breaks_the_rules_is_named() {
        let cases: [(Vec<u8>, FrameError); 10] = [
            (vec![0x82, 0x01, b'x'], FrameError::Unmasked),
            (frame(0xa2, b"x"), FrameError::Reserved),
            (frame(0x92, b"x"), FrameError::Reserved),
            (frame(0xc2, b"x"), FrameError::NotNegotiated),
            (frame(0x83, b"x"), FrameError::UnknownOpcode),
            (frame(0x80, b"x"), FrameError::BadContinuation),
            ([frame(0x02, b"x"), frame(0x82, b"x")].concat(), FrameError::NotContinued),
            (frame(0x89, &[b'a'; 126]), FrameError::LongControl),
            (frame(0x09, b"x"), FrameError::FragmentedControl),
            (frame(0x88, b"x"), FrameError::ShortClose),
        ];
        for (wire, violation) in cases {
            assert_eq!(decoded(&[&wire]).2, Some(violation));
        }
        let endless = [&[0x82, 0xff][..], &[0xff; 8], &[0; 4]].concat();
        assert_eq!(decoded(&[&endless]).2, Some(FrameError::BadLength));
    }
}
