//! Helpers of tests: the peer's side of layers of which the server has one side only.

use super::s2::tests::{chunk, stored};
use super::websocket::deflate::{self, Packer};
pub(crate) use super::websocket::frame::tests::frame;
pub(crate) use super::websocket::upgrade::{REQUEST_BYTES_MAX, end_of_request};
use crate::output::Piece;

/// A message of permessage-deflate with these bytes.
pub(crate) fn deflated(bytes: &[u8]) -> Vec<u8> {
    Packer::default().pack(&[Piece::Own(bytes.to_vec())]).to_vec()
}

/// A stream of S2 with these batches.
pub(crate) fn stream_of(batches: &[&[u8]]) -> Vec<u8> {
    stored(&batches.iter().map(|batch| batch.to_vec()).collect::<Vec<_>>())
}

/// One more chunk of an S2 stream, with all these bytes.
pub(crate) fn chunk_of(bytes: &[u8]) -> Vec<u8> {
    chunk(bytes)
}

/// The protocol's bytes and the control frames that a client finds in `wire`.
pub(crate) fn understood(wire: &[u8]) -> (String, Vec<(u8, Vec<u8>)>) {
    let (mut text, mut others, mut rest) = (Vec::new(), Vec::new(), wire);
    let mut packer = Packer::default();
    while let [first, second, tail @ ..] = rest {
        let (len, tail) = match second {
            127 => (u64::from_be_bytes(tail[..8].try_into().unwrap()), &tail[8..]),
            126 => (u64::from(u16::from_be_bytes([tail[0], tail[1]])), &tail[2..]),
            len => (u64::from(*len), tail),
        };
        let (payload, tail) = tail.split_at(usize::try_from(len).unwrap());
        match first {
            0x82 => text.extend_from_slice(payload),
            0xc2 => {
                let mut decompress = packer.lend();
                deflate::inflate(&mut decompress, payload, true, &mut text).unwrap();
                packer.take_back(decompress);
            }
            other => others.push((*other, payload.to_vec())),
        }
        rest = tail;
    }
    (String::from_utf8(text).unwrap(), others)
}
