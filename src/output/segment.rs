//! Bytes on their way to a socket: rendered once, held by every outbox that sends them.
//!
//! The engine fills segments and cuts them into pieces; the reactor keeps the pieces alive until
//! the kernel's last completion and then gives them back. Nothing here is atomic: a segment never
//! leaves the shard that rendered it.

use std::ops::Range;
use std::rc::Rc;

/// Immutable rendered bytes, shared within one shard.
pub type Segment = Rc<Vec<u8>>;

/// A part of a connection's output, in the order in which it is to be sent.
#[derive(Debug, Clone)]
pub enum Piece {
    /// Bytes of one connection alone.
    Own(Vec<u8>),
    /// A part of a segment that other connections send too.
    Shared {
        /// The segment, whose bytes stay alive and unchanged while the kernel reads them.
        segment: Segment,
        /// The part of the segment to send; never empty.
        range: Range<usize>,
    },
}

impl Piece {
    /// Returns the bytes to send.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Own(bytes) => bytes,
            Self::Shared { segment, range } => &segment[range.clone()],
        }
    }
}
