//! permessage-deflate (RFC 7692) without a context that outlives a message: one compressor for the
//! whole shard, and decompressors that are lent to a connection for a message.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::frame::FrameError;
use crate::output::Piece;

/// The end of every compressed message, which is left out on the wire.
const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];
/// Bytes of room for output that are made at a time.
const ROOM_BYTES: usize = 16 * 1024;
/// Decompressors kept for messages to come.
const SPARES_MAX: usize = 8;

/// Compressor and spare decompressors for the connections of a shard.
#[derive(Debug, Default)]
pub(in crate::transport) struct Packer {
    compress: Option<Compress>,
    packed: Vec<u8>,
    spares: Vec<Decompress>,
}

impl Packer {
    /// Returns the pieces as one compressed message.
    pub(in crate::transport) fn pack(&mut self, pieces: &[Piece]) -> &[u8] {
        let compress =
            self.compress.get_or_insert_with(|| Compress::new(Compression::fast(), false));
        compress.reset();
        let out = &mut self.packed;
        out.clear();
        for piece in pieces {
            deflate(compress, piece.bytes(), out, FlushCompress::None);
        }
        deflate(compress, &[], out, FlushCompress::Sync);
        debug_assert!(out.ends_with(&TAIL));
        out.truncate(out.len() - TAIL.len());
        out
    }

    /// Lends a decompressor for a new message.
    pub(in crate::transport) fn lend(&mut self) -> Decompress {
        self.spares.pop().unwrap_or_else(|| Decompress::new(false))
    }

    /// Takes back a decompressor of [`Packer::lend`].
    pub(in crate::transport) fn take_back(&mut self, mut decompress: Decompress) {
        if self.spares.len() < SPARES_MAX {
            decompress.reset(false);
            self.spares.push(decompress);
        }
    }
}

fn deflate(compress: &mut Compress, mut input: &[u8], out: &mut Vec<u8>, flush: FlushCompress) {
    loop {
        out.reserve(ROOM_BYTES);
        let before = compress.total_in();
        // Any bytes can be compressed, and there is room.
        let _ = compress.compress_vec(input, out, flush);
        let taken = usize::try_from(compress.total_in() - before).unwrap_or(usize::MAX);
        input = &input[taken.min(input.len())..];
        // Room that is left shows that nothing is kept back.
        if input.is_empty() && out.len() < out.capacity() {
            return;
        }
    }
}

/// Appends a decompressed part of a message; with `ends` it is the last.
pub(in crate::transport) fn inflate(
    decompress: &mut Decompress,
    input: &[u8],
    ends: bool,
    out: &mut Vec<u8>,
) -> Result<(), FrameError> {
    inflate_part(decompress, input, out)?;
    if ends { inflate_part(decompress, &TAIL, out) } else { Ok(()) }
}

fn inflate_part(
    decompress: &mut Decompress,
    mut input: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), FrameError> {
    loop {
        out.reserve(ROOM_BYTES);
        let (in_before, out_before) = (decompress.total_in(), out.len());
        let status = decompress
            .decompress_vec(input, out, FlushDecompress::None)
            .map_err(|_| FrameError::NotDeflate)?;
        let taken = usize::try_from(decompress.total_in() - in_before).unwrap_or(usize::MAX);
        input = &input[taken.min(input.len())..];
        if status == Status::StreamEnd {
            // A block that calls itself the last: another stream may follow in the same message.
            decompress.reset(false);
        }
        let is_idle = taken == 0 && out.len() == out_before;
        if input.is_empty() && out.len() < out.capacity() {
            return Ok(());
        }
        if is_idle && status != Status::StreamEnd {
            return Err(FrameError::NotDeflate);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The bytes that a peer makes of `packed`, shown to it in two parts.
    fn unpacked(packer: &mut Packer, packed: &[u8], cut: usize) -> Result<Vec<u8>, FrameError> {
        let mut decompress = packer.lend();
        let mut out = Vec::new();
        inflate(&mut decompress, &packed[..cut], false, &mut out)?;
        inflate(&mut decompress, &packed[cut..], true, &mut out)?;
        packer.take_back(decompress);
        Ok(out)
    }

    fn noise() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(any::<u8>(), 0..300)
    }

    proptest! {
        #[test]
        fn what_is_packed_comes_out_again(
            parts in prop::collection::vec((any::<u8>(), 0usize..60_000, noise()), 1..4),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut packer = Packer::default();
            let part = |(byte, len, noise): &(u8, usize, Vec<u8>)| {
                Piece::Own([&vec![*byte; *len][..], noise].concat())
            };
            let pieces: Vec<Piece> = parts.iter().map(part).collect();
            let whole: Vec<u8> = pieces.iter().flat_map(Piece::bytes).copied().collect();
            for _ in 0..2 {
                let packed = packer.pack(&pieces).to_vec();
                let cut = cut.index(packed.len() + 1);
                prop_assert!(unpacked(&mut packer, &packed, cut) == Ok(whole.clone()));
            }
        }
    }

    #[test]
    fn what_is_no_deflate_is_refused_and_a_last_block_is_not_the_end() {
        let mut packer = Packer::default();
        assert_eq!(unpacked(&mut packer, &[0xff; 20], 3), Err(FrameError::NotDeflate));
        let mut whole = Vec::new();
        let mut compress = Compress::new(Compression::fast(), false);
        deflate(&mut compress, b"PING\r\n", &mut whole, FlushCompress::Finish);
        whole.push(0);
        assert_eq!(unpacked(&mut packer, &whole, 2), Ok(b"PING\r\n".to_vec()));
    }
}
