//! The kernel's part of a connection: what the server sends, a batch at a time, taken piece by
//! piece, and its end.

use std::io;

use shardcast::engine::ConnId;
use shardcast::output::Piece;
use shardcast::uring::{self, Event};

use super::kernel::{Heard, socket_id};

/// A batch that the kernel is sending.
pub(crate) struct Batch {
    pieces: Vec<Piece>,
    /// The first piece that is not wholly taken, and how much of it is.
    piece: usize,
    offset: usize,
    /// Taken, but the shard has not been told.
    unreported: usize,
    pub(crate) since: u64,
}

/// One end of a connection, at a server.
pub(crate) struct Pipe {
    pub(crate) shard: usize,
    pub(crate) id: ConnId,
    /// The shard knows of it.
    pub(crate) is_adopted: bool,
    pub(crate) reading: bool,
    /// Chunks that had already arrived when reading was paused.
    pub(crate) grace: u32,
    /// The shard has been told that nothing more comes.
    pub(crate) end_handed: bool,
    pub(crate) batch: Option<Batch>,
    /// Taken, as far as the shard knows.
    pub(crate) reported_bytes: usize,
    /// Taken, but not read at the other end.
    pub(crate) sent: Vec<u8>,
    pub(crate) stalled: bool,
    /// The server has closed it; the shard has not been told.
    pub(crate) closing: bool,
    /// The shard's part is over.
    pub(crate) gone: bool,
}

impl Pipe {
    pub(crate) fn new(shard: usize, id: ConnId) -> Self {
        Self {
            shard,
            id,
            is_adopted: false,
            reading: false,
            grace: 0,
            end_handed: false,
            batch: None,
            reported_bytes: 0,
            sent: Vec::new(),
            stalled: false,
            closing: false,
            gone: false,
        }
    }

    /// Whether the server has not closed it.
    pub(crate) fn is_open(&self) -> bool {
        !self.closing && !self.gone
    }

    /// Whether the shard can be handed something, which it then is: chunks that had arrived
    /// before a pause are no more afterwards.
    pub(crate) fn hears(&mut self) -> bool {
        let hears = (self.reading || self.grace > 0) && self.is_open() && !self.end_handed;
        if hears {
            self.grace = self.grace.saturating_sub(1);
        }
        hears
    }

    /// The kernel takes at most `left` bytes. False if there is nothing to take.
    pub(crate) fn take(&mut self, mut left: usize) -> bool {
        if self.stalled || self.closing {
            return false;
        }
        let Some(batch) = &mut self.batch else { return false };
        let mut taken = 0;
        while left > 0
            && let Some(piece) = batch.pieces.get(batch.piece)
        {
            let rest = &piece.bytes()[batch.offset..];
            let len = rest.len().min(left);
            self.sent.extend_from_slice(&rest[..len]);
            (taken, left, batch.offset) = (taken + len, left - len, batch.offset + len);
            if len == rest.len() {
                (batch.piece, batch.offset) = (batch.piece + 1, 0);
            }
        }
        batch.unreported += taken;
        taken > 0
    }

    /// Begins to send. Returns how many bytes that are.
    pub(crate) fn send(&mut self, pieces: Vec<Piece>, now: u64) -> usize {
        assert!(self.batch.is_none(), "one batch in flight at a time");
        let bytes: usize = pieces.iter().map(|piece| piece.bytes().len()).sum();
        assert!(bytes > 0, "an empty batch would never complete");
        self.batch = Some(Batch { pieces, piece: 0, offset: 0, unreported: 0, since: now });
        bytes
    }

    /// What the shard is told of its output, and of the connection; nothing if there is no news.
    pub(crate) fn complete(&mut self, is_reset: bool) -> Option<Heard> {
        let socket = socket_id(self.id);
        let take_home =
            |batch: &mut Option<Batch>| batch.take().map(|batch| uring::Batch::from(batch.pieces));
        if self.closing {
            (self.closing, self.gone) = (false, true);
            return Some(Event::Closed { socket, batch: take_home(&mut self.batch) });
        }
        let batch = self.batch.as_mut()?;
        if is_reset {
            let error = io::ErrorKind::ConnectionReset.into();
            let batch = take_home(&mut self.batch)?;
            return Some(Event::SendFailed { socket, error, batch });
        }
        let bytes = std::mem::take(&mut batch.unreported);
        self.reported_bytes += bytes;
        if batch.piece == batch.pieces.len() {
            return Some(Event::Sent { socket, bytes, batch: take_home(&mut self.batch) });
        }
        (bytes > 0).then_some(Event::Sent { socket, bytes, batch: None })
    }
}
