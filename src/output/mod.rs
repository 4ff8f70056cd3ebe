//! Pending output: rendered bytes, and one queue per connection.
//!
//! A run of messages is rendered once into a [`Segment`], of which many outboxes hold a [`Piece`];
//! bytes of one connection alone are copied behind one another. Memory that was sent returns to
//! the shard's `Spares` and is reused. An `Overflow` names the subjects of which a connection that
//! is behind misses messages.
//!
//! A batch ends at 1 MiB or 256 pieces, so that progress shows. Queued bytes are never moved as
//! the queue grows: from 6 KiB on (`OWN_MOVED_BYTES_MAX`) the next bytes go to a buffer of their
//! own. Otherwise fifty connections that stall together would all move theirs at the same message.
//!
//! No input or output, no protocol, no connections: the caller reports when a batch was sent.

#![forbid(unsafe_code)]

pub(crate) mod lag;
mod outbox;
mod overflow;
mod segment;

pub(crate) use outbox::{InFlight, Outbox, Spares};
pub use overflow::{Dropped, OverflowKind, OverflowRule};
pub(crate) use overflow::{Overflow, Policy};
pub use segment::{Piece, Segment};
