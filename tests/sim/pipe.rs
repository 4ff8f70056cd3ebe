//! The kernel's part of a connection: what the server sends, a batch at a time, taken piece by
//! piece, and its end.

use shardcast::engine::{ConnId, Engine};
use shardcast::output::Piece;

/// A batch that the kernel is sending.
pub(crate) struct Batch {
    pieces: Vec<Piece>,
    /// The first piece that is not wholly taken, and how much of it is.
    piece: usize,
    offset: usize,
    /// Taken, but the engine has not been told.
    unreported: usize,
    pub(crate) since: u64,
}

/// One end of a connection, at a server.
pub(crate) struct Pipe {
    pub(crate) shard: usize,
    pub(crate) id: ConnId,
    pub(crate) reading: bool,
    /// Chunks that had already arrived when reading was paused.
    pub(crate) grace: u32,
    /// The engine knows that nothing more comes.
    pub(crate) end_handed: bool,
    pub(crate) batch: Option<Batch>,
    /// Taken, as far as the engine knows.
    pub(crate) reported_bytes: usize,
    /// Taken, but not read at the other end.
    pub(crate) sent: Vec<u8>,
    pub(crate) stalled: bool,
    /// The server has closed it; the engine has not been told.
    pub(crate) closing: bool,
    /// The engine's part is over.
    pub(crate) gone: bool,
}

impl Pipe {
    pub(crate) fn new(shard: usize, id: ConnId) -> Self {
        Self {
            shard,
            id,
            reading: true,
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

    /// Whether the engine can be handed something, which it then is: chunks that had arrived
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

    /// Begins to send what the engine has. Returns how many bytes that are.
    pub(crate) fn flush(&mut self, engine: &mut Engine, now: u64) -> usize {
        let Some(pieces) = engine.take_batch(self.id) else { return 0 };
        assert!(self.batch.is_none(), "one batch in flight at a time");
        let bytes: usize = pieces.iter().map(|piece| piece.bytes().len()).sum();
        assert!(bytes > 0, "an empty batch would never complete");
        self.batch = Some(Batch { pieces, piece: 0, offset: 0, unreported: 0, since: now });
        bytes
    }

    /// Tells the engine what has become of its output, and of the connection. False if there is
    /// nothing to tell.
    pub(crate) fn complete(&mut self, engine: &mut Engine, is_reset: bool) -> bool {
        if self.closing {
            engine.take_home(self.batch.take().map(|batch| batch.pieces));
            engine.on_closed(self.id);
            (self.closing, self.gone) = (false, true);
            return true;
        }
        let Some(batch) = &mut self.batch else { return false };
        if is_reset {
            let batch = self.batch.take().map(|batch| batch.pieces);
            engine.on_send_failed(self.id, batch);
            return true;
        }
        let taken = std::mem::take(&mut batch.unreported);
        self.reported_bytes += taken;
        if batch.piece == batch.pieces.len() {
            let batch = self.batch.take().map(|batch| batch.pieces);
            engine.on_sent(self.id, taken, batch);
            return true;
        }
        if taken > 0 {
            engine.on_sent(self.id, taken, None);
        }
        taken > 0
    }
}
