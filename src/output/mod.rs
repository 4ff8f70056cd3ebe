//! What connections are still to be sent: rendered bytes, and the queue of each connection.
//!
//! A run of messages is rendered once into a [`Segment`], of which many outboxes hold a
//! [`Piece`]; what is one connection's alone is copied behind one another. Memory that was sent
//! comes back to the shard's `Spares` and is filled again. An `Overflow` says of which subjects
//! a connection that is behind misses messages.
//!
//! No input or output, no protocol, no connections: it is told when a batch was sent.

#![forbid(unsafe_code)]

mod outbox;
mod overflow;
mod segment;

pub(crate) use outbox::{InFlight, Outbox, Spares};
pub use overflow::{Dropped, OverflowKind, OverflowRule};
pub(crate) use overflow::{Overflow, Policy};
pub use segment::{Piece, Segment};
