//! Budget of a turn: bounded work per turn, so no connection waits longer than a turn or two.
//!
//! Work is counted where it is done, in units of about a nanosecond: places of the filter tree,
//! deliveries, rendered bytes, operations, records, removed subscriptions. A turn within its
//! budget takes a few milliseconds and adds a bounded number of bytes.
//!
//! - New input may use three quarters of a turn's budget, records half; a connection gets at
//!   most half before the next one's turn, another shard a quarter.
//! - Input over the budget waits in the engine, unparsed (`waiting`). With more than 64 KiB
//!   waiting its connection is paused. TLS, WebSocket and S2 stop with their connection.
//! - A run ends where the budget does (`Targets::price`). The rest of a run that came over a lane
//!   stays in front of that lane; a barrier behind it is answered later.
//! - Sends have a budget of the same size (`flushes`).
//! - Subscriptions of a connection that ends, or sends a second CONNECT, are removed in pieces
//!   (`advance_leaving`); they receive nothing meanwhile.
//!
//! Only a single operation, which cannot be divided, may exceed the budget: a message to a million
//! subscribers.

use crate::interest::cost::{RETRACT_WORK, SEND_WORK, SENT_BYTES_PER_WORK, TURN_WORK};

/// The work left in a turn and the work done in it, in units of about a nanosecond.
///
/// Early work leaves something for later work: records leave half of the budget, new input a
/// quarter.
#[derive(Debug)]
pub(crate) struct Budget {
    /// Work of one turn; sends may take as much again.
    turn: u64,
    /// Work left for input and records.
    left: u64,
    /// Work that the connection or shard being served has to leave.
    floor: u64,
    /// Work left for sends.
    send_left: u64,
    /// Work left for removing subscriptions of connections that have ended.
    retract_left: u64,
    /// Work done in this turn so far.
    work: u64,
}

impl Default for Budget {
    fn default() -> Self {
        let mut budget =
            Self { turn: TURN_WORK, left: 0, floor: 0, send_left: 0, retract_left: 0, work: 0 };
        budget.refill();
        budget
    }
}

impl Budget {
    /// Sets the work of one turn, from now on.
    pub(crate) fn set_turn(&mut self, turn: u64) {
        self.turn = turn;
        self.refill();
    }

    /// Begins the next turn. Returns the work of the last one.
    pub(crate) fn refill(&mut self) -> u64 {
        (self.left, self.floor) = (self.turn, 0);
        (self.send_left, self.retract_left) = (self.turn, self.turn / 4);
        std::mem::take(&mut self.work)
    }

    /// Counts work that was done.
    pub(crate) fn spend(&mut self, work: u64) {
        self.work += work;
        self.left = self.left.saturating_sub(work);
    }

    /// Counts the work of sending a batch of `bytes`.
    pub(crate) fn spend_send(&mut self, bytes: usize) {
        let work = SEND_WORK + bytes as u64 / SENT_BYTES_PER_WORK;
        self.work += work;
        self.send_left = self.send_left.saturating_sub(work);
    }

    /// Counts the work of removing `count` subscriptions.
    pub(crate) fn spend_retract(&mut self, count: usize) {
        let work = RETRACT_WORK * count as u64;
        self.work += work;
        self.retract_left = self.retract_left.saturating_sub(work);
    }

    /// Returns the number of subscriptions that may be removed now.
    pub(crate) fn retractions(&self) -> usize {
        usize::try_from(self.retract_left.div_ceil(RETRACT_WORK)).unwrap_or(usize::MAX)
    }

    /// Whether more may be sent.
    pub(crate) fn sends(&self) -> bool {
        self.send_left > 0
    }

    /// Whether new input may be handled.
    pub(crate) fn takes_input(&self) -> bool {
        self.left > self.turn / 4
    }

    /// Whether records may be handled.
    pub(crate) fn takes_records(&self) -> bool {
        self.left > self.turn / 2
    }

    /// Begins to serve the input of a connection, with at most half of a turn's budget.
    pub(crate) fn serve_input(&mut self) {
        self.floor = self.left.saturating_sub(self.turn / 2);
    }

    /// Begins to serve the records of another shard, with at most a quarter of a turn's budget.
    pub(crate) fn serve_records(&mut self) {
        self.floor = self.left.saturating_sub(self.turn / 4).max(self.turn / 2);
    }

    /// Whether any work is left for input and records.
    pub(crate) fn has_left(&self) -> bool {
        self.left > 0
    }

    /// Whether the connection or shard being served has had its share.
    pub(crate) fn is_spent(&self) -> bool {
        self.left <= self.floor
    }

    /// Returns the work left for the connection or shard being served.
    pub(crate) fn room(&self) -> u64 {
        self.left.saturating_sub(self.floor)
    }
}
