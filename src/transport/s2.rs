//! S2 around a route: chunks on the wire, the protocol's bytes within.
//!
//! Blocks are `minlz`'s; the stream around them (Snappy's framing: an identifier, then chunks with
//! checksums) is put together and taken apart here, because it arrives in pieces of any size.
//!
//! Compression begins in mid-stream. Both servers announce their mode in a plain INFO, and send
//! INFO again as the first compressed bytes; then the peer is greeted. Bytes behind the plain INFO
//! in the same chunk of input are compressed already (`Layers::begins_s2`). Between wire and S2
//! there may be TLS.

use minlz::crc::crc;
use minlz::s2;

use super::{Allowance, Bench, CLEAR_BYTES_MAX, Compression, Failure, LayerStep, Wrapping};
use crate::output::Piece;

/// Bytes that are compressed at once.
const BLOCK_BYTES: usize = 64 * 1024;
/// The longest block that is accepted, in bytes: the format's own limit.
const BLOCK_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The longest block that is accepted of a peer not yet registered, in bytes: that of nats-server,
/// whose first block has its interest, too.
const FIRST_BLOCK_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of a chunk's head: its type, and three bytes of length.
const HEAD_BYTES: usize = 4;
const CRC_BYTES: usize = 4;
/// The first bytes of every stream.
const IDENTIFIER: [u8; HEAD_BYTES + 6] = *b"\xff\x06\0\0S2sTwO";
/// The identifier of a stream that uses only Snappy's part of S2.
const SNAPPY: &[u8] = b"sNaPpY";

const PACKED: u8 = 0;
const STORED: u8 = 1;
const IDENTIFIES: u8 = 0xff;
/// The first type of chunks that a reader may skip without knowing them.
const SKIPPABLE: u8 = 0x80;

impl Compression {
    /// Returns the name of the compression at this round-trip time, in nanoseconds.
    pub(crate) fn name_at(&self, rtt_ns: u64) -> &'static str {
        Level::of(self, rtt_ns).name()
    }
}

/// The effort of compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Stored,
    Fast,
    Better,
    Best,
}

impl Level {
    /// Returns the level of a mode at a round-trip time of `rtt_ns` nanoseconds.
    fn of(mode: &Compression, rtt_ns: u64) -> Self {
        match mode {
            Compression::Fast => Self::Fast,
            Compression::Better => Self::Better,
            Compression::Best => Self::Best,
            Compression::Off | Compression::Accept => Self::Stored,
            Compression::Auto(thresholds_ms) => {
                let is_within = |ms: &u64| rtt_ns <= ms.saturating_mul(1_000_000);
                let levels = [Self::Stored, Self::Fast, Self::Better];
                let mut within = thresholds_ms.iter().position(is_within).into_iter();
                // With fewer than three thresholds the last one is for all that take longer.
                let last = if thresholds_ms.len() < 3 { thresholds_ms.len() - 1 } else { 3 };
                *levels.get(within.next().unwrap_or(last)).unwrap_or(&Self::Best)
            }
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Stored => "s2_uncompressed",
            Self::Fast => "s2_fast",
            Self::Better => "s2_better",
            Self::Best => "s2_best",
        }
    }
}

/// Returns the compression of this server's output that two servers agree on; `None`: neither
/// compresses. `theirs` is the mode in the other server's INFO.
///
/// # Errors
///
/// Returns an error if `theirs` is not a known mode.
pub(crate) fn negotiate(own: &Compression, theirs: &str) -> Result<Option<Compression>, ()> {
    let by_theirs = match theirs {
        "" | "not supported" | "off" => return Ok(None),
        "accept" => None,
        "s2_uncompressed" => Some(Compression::Auto(vec![u64::MAX])),
        "s2_fast" | "s2_auto" => Some(Compression::Fast),
        "s2_better" => Some(Compression::Better),
        "s2_best" => Some(Compression::Best),
        _ => return Err(()),
    };
    Ok(match own {
        Compression::Off => None,
        Compression::Accept => by_theirs,
        mode => Some(mode.clone()),
    })
}

/// The encoder of all routes of a shard.
#[derive(Default)]
pub(super) struct Encoder(s2::Encoder);

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Encoder")
    }
}

/// The compression of one route.
#[derive(Debug)]
pub(super) struct S2Layer {
    pub(super) mode: Compression,
    /// Uncompressed bytes that are sent first.
    head: Vec<u8>,
    has_begun: bool,
    reader: Reader,
    /// Whether the operation handled last has agreed on compression, and the first chunk follows.
    pub(super) begins: bool,
    /// Input that waits, because it is the first or because other connections have their turn.
    pub(super) waiting: Vec<u8>,
    pub(super) in_line: bool,
    /// The error of the stream, behind the input before it.
    corrupt: Option<Corrupt>,
}

impl S2Layer {
    /// A layer that begins behind `head`. Input waits for its first turn.
    pub(super) fn new(mode: Compression, head: Vec<u8>) -> Self {
        Self {
            mode,
            head,
            has_begun: false,
            reader: Reader::default(),
            begins: true,
            waiting: Vec::new(),
            in_line: true,
            corrupt: None,
        }
    }

    /// Whether there are bytes to send that are in no outbox.
    pub(super) fn wants_write(&self) -> bool {
        !self.head.is_empty()
    }

    /// Unwraps chunks as far as the allowance permits.
    pub(super) fn next(
        &mut self,
        bytes: &mut &[u8],
        allowance: Allowance,
        bench: &mut Bench,
    ) -> LayerStep {
        if self.in_line {
            self.put_aside(bytes);
            return LayerStep::Done;
        }
        loop {
            let has_plain = !bench.plain.is_empty();
            if self.corrupt.is_some() && !has_plain {
                let Corrupt(what) = self.corrupt.take().unwrap_or(Corrupt(""));
                return LayerStep::Failed(Failure::S2(what));
            }
            let is_much = bench.has_much() || bench.work >= allowance.work;
            let is_enough = bench.plain.len() >= CLEAR_BYTES_MAX || allowance.is_piecemeal;
            if has_plain && (is_enough || is_much || self.corrupt.is_some()) {
                return LayerStep::Plain;
            }
            if !bytes.is_empty() && (allowance.is_held || is_much) {
                self.put_aside(bytes);
                self.in_line = true;
                return if is_much { LayerStep::Turn } else { LayerStep::Done };
            }
            let had_bytes = bench.plain.len();
            self.reader.is_trusted = !allowance.is_piecemeal;
            match self.reader.next(bytes, &mut bench.plain) {
                Ok(true) => bench.count_unpacked(bench.plain.len() - had_bytes, 1),
                Ok(false) if has_plain => return LayerStep::Plain,
                Ok(false) => return LayerStep::Done,
                Err(error) => {
                    bench.plain.truncate(had_bytes);
                    self.corrupt = Some(error);
                }
            }
        }
    }

    /// Returns the bytes of a chunk that has not wholly arrived.
    pub(super) fn partial_bytes(&self) -> usize {
        self.reader.partial.len()
    }

    /// Adds input behind the input that waits.
    pub(super) fn put_aside(&mut self, bytes: &mut &[u8]) {
        self.waiting.extend_from_slice(bytes);
        *bytes = &[];
    }

    /// Takes the next batch in chunks, and the bytes of the outbox in it.
    pub(super) fn take(&mut self, wrapping: &mut Wrapping<'_>) -> Option<(Vec<Piece>, usize)> {
        let Wrapping { outbox, spares, bench, taking } = wrapping;
        if outbox.is_in_flight() {
            return None;
        }
        let taken = outbox.take_up_to(BLOCK_BYTES, spares).unwrap_or_default();
        let taken_bytes = taken.iter().map(|piece| piece.bytes().len()).sum();
        if taken_bytes == 0 && self.head.is_empty() {
            return None;
        }
        let level = Level::of(&self.mode, taking.rtt_ns);
        let piece = spares.own_piece(|out| {
            out.append(&mut self.head);
            if taken_bytes > 0 {
                self.pack(&mut bench.encoder.0, level, &taken, out);
            }
        });
        let batch = outbox.start(spares, piece);
        spares.keep_batch(taken);
        Some((batch, taken_bytes))
    }

    /// Appends the pieces as chunks.
    fn pack(
        &mut self,
        encoder: &mut s2::Encoder,
        level: Level,
        pieces: &[Piece],
        out: &mut Vec<u8>,
    ) {
        if !std::mem::replace(&mut self.has_begun, true) {
            out.extend_from_slice(&IDENTIFIER);
        }
        let mut block = Vec::new();
        for piece in pieces {
            let mut bytes = piece.bytes();
            while !bytes.is_empty() {
                let (head, rest) = bytes.split_at(bytes.len().min(BLOCK_BYTES - block.len()));
                block.extend_from_slice(head);
                bytes = rest;
                if block.len() == BLOCK_BYTES {
                    pack_block(encoder, level, &block, out);
                    block.clear();
                }
            }
        }
        if !block.is_empty() {
            pack_block(encoder, level, &block, out);
        }
    }
}

fn pack_block(encoder: &mut s2::Encoder, level: Level, block: &[u8], out: &mut Vec<u8>) {
    let packed = match level {
        Level::Stored => None,
        Level::Fast => Some(encoder.encode(block)),
        Level::Better => Some(encoder.encode_better(block)),
        Level::Best => Some(encoder.encode_best(block)),
    };
    let (kind, body) = match &packed {
        Some(packed) if packed.len() < block.len() => (PACKED, &packed[..]),
        _ => (STORED, block),
    };
    let len = u32::try_from(CRC_BYTES + body.len()).unwrap_or(u32::MAX).to_le_bytes();
    out.extend_from_slice(&[kind, len[0], len[1], len[2]]);
    out.extend_from_slice(&crc(block).to_le_bytes());
    out.extend_from_slice(body);
}

/// A stream of compressed chunks that is no connection's.
#[derive(Default)]
pub(crate) struct S2Writer {
    encoder: s2::Encoder,
    has_begun: bool,
    /// Bytes that wait for a whole block.
    block: Vec<u8>,
    packed: Vec<u8>,
}

impl std::fmt::Debug for S2Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("S2Writer").field("waiting_bytes", &self.waiting_bytes()).finish()
    }
}

impl S2Writer {
    /// Adds bytes.
    pub(crate) fn write(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (head, rest) = bytes.split_at(bytes.len().min(BLOCK_BYTES - self.block.len()));
            self.block.extend_from_slice(head);
            bytes = rest;
            if self.block.len() == BLOCK_BYTES {
                self.flush();
            }
        }
    }

    /// Compresses what waits for a whole block.
    pub(crate) fn flush(&mut self) {
        if !std::mem::replace(&mut self.has_begun, true) {
            self.packed.extend_from_slice(&IDENTIFIER);
        }
        if !self.block.is_empty() {
            pack_block(&mut self.encoder, Level::Fast, &self.block, &mut self.packed);
            self.block.clear();
        }
    }

    /// Compressed bytes that nobody has taken.
    pub(crate) fn waiting_bytes(&self) -> usize {
        self.packed.len()
    }

    /// Takes so many compressed bytes at most.
    pub(crate) fn take(&mut self, bytes_max: usize) -> Vec<u8> {
        self.packed.drain(..self.waiting_bytes().min(bytes_max)).collect()
    }
}

/// A reader of such a stream.
#[derive(Debug)]
pub(crate) struct S2Reader(Reader);

impl S2Reader {
    /// A reader that takes blocks of any length that the format allows.
    pub(crate) fn trusted() -> Self {
        Self(Reader { is_trusted: true, ..Reader::default() })
    }

    /// Takes one chunk, or a part of it, and appends its contents; `false` if no bytes are left.
    ///
    /// # Errors
    ///
    /// Returns what is wrong, in words for the log.
    pub(crate) fn next(
        &mut self,
        bytes: &mut &[u8],
        out: &mut Vec<u8>,
    ) -> Result<bool, &'static str> {
        self.0.next(bytes, out).map_err(|Corrupt(what)| what)
    }
}

/// An error in a stream, in words for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Corrupt(pub(super) &'static str);

/// A reader of chunks, wherever they are cut.
#[derive(Debug, Default)]
struct Reader {
    has_begun: bool,
    /// The beginning of a chunk that has not wholly arrived.
    partial: Vec<u8>,
    /// Bytes of a chunk to be passed over that are still to come.
    skip_bytes: usize,
    /// Whether the peer is registered, so that longer blocks are accepted.
    is_trusted: bool,
}

impl Reader {
    /// Takes one chunk, or a part of it, and appends its contents; `false` if no bytes are left.
    fn next(&mut self, bytes: &mut &[u8], out: &mut Vec<u8>) -> Result<bool, Corrupt> {
        let skipped = self.skip_bytes.min(bytes.len());
        self.skip_bytes -= skipped;
        *bytes = &bytes[skipped..];
        if bytes.is_empty() {
            return Ok(false);
        }
        if self.partial.is_empty()
            && let Some(&[kind, a, b, c]) = bytes.first_chunk::<HEAD_BYTES>()
        {
            let (head, len) = (HEAD_BYTES, self.chunk_len(kind, [a, b, c])?);
            if len > 0 && bytes.len() >= head + len {
                let (chunk, rest) = bytes.split_at(head + len);
                *bytes = rest;
                self.on_chunk(kind, &chunk[head..], out)?;
                return Ok(true);
            }
        }
        self.gather(bytes, HEAD_BYTES);
        let Some(&[kind, a, b, c]) = self.partial.first_chunk::<HEAD_BYTES>() else {
            return Ok(false);
        };
        let len = self.chunk_len(kind, [a, b, c])?;
        self.gather(bytes, HEAD_BYTES + len);
        if self.partial.len() < HEAD_BYTES + len {
            return Ok(false);
        }
        let chunk = std::mem::take(&mut self.partial);
        self.on_chunk(kind, &chunk[HEAD_BYTES..], out)?;
        Ok(true)
    }

    /// Returns the longest block that is accepted, in bytes.
    fn block_bytes_max(&self) -> usize {
        if self.is_trusted { BLOCK_BYTES_MAX } else { FIRST_BLOCK_BYTES_MAX }
    }

    /// Returns the longest chunk that is accepted, in bytes: no encoder makes a longer one of a
    /// block that cannot be compressed.
    fn chunk_bytes_max(&self) -> usize {
        CRC_BYTES + self.block_bytes_max() + self.block_bytes_max() / 6 + 64
    }

    /// Moves bytes to the partial chunk until it has `len`.
    fn gather(&mut self, bytes: &mut &[u8], len: usize) {
        let missing = len.saturating_sub(self.partial.len()).min(bytes.len());
        let (head, rest) = bytes.split_at(missing);
        self.partial.extend_from_slice(head);
        *bytes = rest;
    }

    /// Returns the bytes of a chunk to gather behind its head.
    fn chunk_len(&mut self, kind: u8, [a, b, c]: [u8; 3]) -> Result<usize, Corrupt> {
        let len = u32::from_le_bytes([a, b, c, 0]) as usize;
        match kind {
            _ if !self.has_begun && kind != IDENTIFIES => Err(Corrupt("no identifier")),
            PACKED | STORED if !(CRC_BYTES + 1..=self.chunk_bytes_max()).contains(&len) => {
                Err(Corrupt("a chunk of an impossible length"))
            }
            PACKED | STORED => Ok(len),
            IDENTIFIES if len == SNAPPY.len() => Ok(len),
            IDENTIFIES => Err(Corrupt("no identifier")),
            SKIPPABLE.. => {
                self.skip_bytes = len;
                Ok(0)
            }
            _ => Err(Corrupt("a chunk of an unknown kind")),
        }
    }

    fn on_chunk(&mut self, kind: u8, body: &[u8], out: &mut Vec<u8>) -> Result<(), Corrupt> {
        match kind {
            IDENTIFIES if body == &IDENTIFIER[HEAD_BYTES..] || body == SNAPPY => {
                self.has_begun = true;
            }
            IDENTIFIES => return Err(Corrupt("no identifier")),
            PACKED | STORED => {
                let Some((sum, body)) = body.split_first_chunk::<CRC_BYTES>() else {
                    return Err(Corrupt("a chunk without a checksum"));
                };
                let start = out.len();
                if kind == STORED {
                    if body.len() > self.block_bytes_max() {
                        return Err(Corrupt("a block that is too long"));
                    }
                    out.extend_from_slice(body);
                } else {
                    let corrupt = |_| Corrupt("a block that is not S2");
                    let (len, _) = s2::decode_len(body).map_err(corrupt)?;
                    if len > self.block_bytes_max() {
                        return Err(Corrupt("a block that is too long"));
                    }
                    out.resize(start + len, 0);
                    s2::decode_into(&mut out[start..], body).map_err(corrupt)?;
                }
                // A fuzzer would not get past it.
                if !cfg!(fuzzing) && crc(&out[start..]) != u32::from_le_bytes(*sum) {
                    return Err(Corrupt("a wrong checksum"));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    const LEVELS: [Level; 4] = [Level::Stored, Level::Fast, Level::Better, Level::Best];

    fn packed(level: Level, batches: &[Vec<u8>]) -> Vec<u8> {
        let mut layer = S2Layer::new(Compression::Fast, Vec::new());
        let (mut encoder, mut out) = (s2::Encoder::new(), Vec::new());
        for batch in batches {
            layer.pack(&mut encoder, level, &[Piece::Own(batch.clone())], &mut out);
        }
        out
    }

    /// A stream of these batches, uncompressed.
    pub(in crate::transport) fn stored(batches: &[Vec<u8>]) -> Vec<u8> {
        packed(Level::Stored, batches)
    }

    /// A chunk with all these bytes, compressed.
    pub(in crate::transport) fn chunk(bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        pack_block(&mut s2::Encoder::new(), Level::Fast, bytes, &mut out);
        out
    }

    fn unpacked(wire: &[u8], piece: usize) -> Result<Vec<u8>, Corrupt> {
        let (mut reader, mut out) = (Reader::default(), Vec::new());
        for mut piece in wire.chunks(piece.max(1)) {
            while reader.next(&mut piece, &mut out)? {}
            assert!(piece.is_empty(), "all that has come is taken");
        }
        Ok(out)
    }

    /// Bytes with as few repetitions as those of messages, or as many.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let repeated = (prop::collection::vec(any::<u8>(), 1..40), 1..5000usize)
            .prop_map(|(part, times)| part.repeat(times));
        prop_oneof![prop::collection::vec(any::<u8>(), 1..2000), repeated]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn what_is_packed_comes_out_wherever_it_is_cut(
            batches in prop::collection::vec(bytes(), 1..4),
            level in 0..4usize,
            piece in prop_oneof![1..40usize, 1..100_000usize],
        ) {
            let wire = packed(LEVELS[level], &batches);
            prop_assert!(unpacked(&wire, piece) == Ok(batches.concat()));
        }

        #[test]
        fn a_stream_that_was_changed_is_an_error_or_ends_early(
            batch in bytes(), at in any::<prop::sample::Index>(), bit in 0..8u8, level in 0..4usize,
        ) {
            let mut wire = packed(LEVELS[level], std::slice::from_ref(&batch));
            let at = at.index(wire.len());
            wire[at] ^= 1 << bit;
            let out = unpacked(&wire, wire.len()).unwrap_or_default();
            // A chunk that is passed over, or one that does not end, leaves the rest out.
            prop_assert!(batch.starts_with(&out) || out.len() < batch.len());
        }

        #[test]
        fn whatever_comes_makes_no_more_than_its_chunks_may(
            noise in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let len = u32::try_from(noise.len() + CRC_BYTES).unwrap().to_le_bytes();
            let head = [PACKED, len[0], len[1], len[2], 0, 0, 0, 0];
            let wire = [&IDENTIFIER[..], &head, &noise].concat();
            if let Ok(out) = unpacked(&wire, wire.len()) {
                prop_assert!(out.len() <= BLOCK_BYTES_MAX);
            }
        }
    }

    #[test]
    fn a_stream_may_begin_anew_and_hold_what_is_passed_over() {
        let one = packed(Level::Fast, &[b"hello".to_vec()]);
        let skipped = [&[0xfe, 3, 0, 0][..], b"abc", &[0x99, 0, 0, 0]].concat();
        let wire = [&one[..], &skipped, &one].concat();
        for piece in 1..=wire.len() {
            assert_eq!(unpacked(&wire, piece), Ok(b"hellohello".to_vec()), "pieces of {piece}");
        }
    }

    #[test]
    fn what_is_no_stream_is_an_error() {
        let long = [&IDENTIFIER[..], &[PACKED, 0xff, 0xff, 0xff]].concat();
        let bomb = [&IDENTIFIER[..], &[PACKED, 9, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0x7f, 0]];
        for wire in [b"PING\r\n", &long[..], &bomb.concat(), b"\xff\x06\0\0s2StWo", b"\x01\0\0\0"] {
            assert!(unpacked(wire, wire.len()).is_err(), "{wire:?}");
        }
        let mut wrong = packed(Level::Stored, &[b"hello".to_vec()]);
        *wrong.last_mut().unwrap() ^= 1;
        assert_eq!(unpacked(&wrong, 1), Err(Corrupt("a wrong checksum")));
    }

    #[test]
    fn both_servers_come_to_the_same_conclusion() {
        use Compression::{Accept, Auto, Best, Better, Fast, Off};
        let modes = [Off, Accept, Fast, Better, Best, Auto(vec![10, 50, 100])];
        for (own, other) in modes.iter().flat_map(|one| modes.iter().map(move |two| (one, two))) {
            let (here, there) = (negotiate(own, other.name()), negotiate(other, own.name()));
            assert_eq!(
                here.clone().unwrap().is_some(),
                there.unwrap().is_some(),
                "{own:?} {other:?}"
            );
            let is_off = [own, other].contains(&&Off) || [own, other] == [&Accept, &Accept];
            assert_eq!(here.unwrap().is_none(), is_off, "{own:?} {other:?}");
        }
        assert_eq!(negotiate(&Accept, "s2_auto"), Ok(Some(Fast)));
        assert_eq!(negotiate(&Fast, ""), Ok(None));
        assert_eq!(negotiate(&Fast, "bogus"), Err(()));
    }

    #[test]
    fn the_longer_the_way_the_harder_is_tried() {
        let level = |thresholds: &[u64], ms: u64| {
            Level::of(&Compression::Auto(thresholds.to_vec()), ms * 1_000_000)
        };
        let all = [0, 10, 11, 50, 51, 100, 101].map(|ms| level(&[10, 50, 100], ms));
        use Level::{Best, Better, Fast, Stored};
        assert_eq!(all, [Stored, Stored, Fast, Fast, Better, Better, Best]);
        assert_eq!(level(&[10, 50], 51), Fast);
        assert_eq!(level(&[0, 50], 20), Fast);
    }
}
