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
//!   (`Engine::advance_leaving`); they receive nothing meanwhile.
//!
//! Only a single operation, which cannot be divided, may exceed the budget: a message to a million
//! subscribers.

#![forbid(unsafe_code)]

/// Budget of a turn for input and records, in units of about a nanosecond.
const TURN_WORK: u64 = 3_000_000;

/// Cost of handling one message, without deliveries.
pub(super) const MESSAGE_WORK: u64 = 50;
/// Cost of any other operation.
pub(super) const OPERATION_WORK: u64 = 500;
/// Entering a subscription, besides.
pub(super) const SUBSCRIBE_WORK: u64 = 1_000;
/// Taking a record of another shard.
pub(super) const RECORD_WORK: u64 = 200;
/// Cost of one place of the filter tree in a lookup.
pub(super) const NODE_WORK: u64 = 30;
/// Cost of one subscription in the result of a lookup.
pub(super) const MEMBER_WORK: u64 = 40;
/// Cost of a run for each further receiver.
pub(super) const DELIVERY_WORK: u64 = 120;
/// Writing one message.
pub(super) const RENDER_WORK: u64 = 30;
/// Cost of the draw and the delivery of one queue message.
pub(super) const PICK_WORK: u64 = 200;
/// Cost of one message to another account.
pub(super) const EXIT_WORK: u64 = 10_000;
/// Cost of one send, the kernel's part included.
const SEND_WORK: u64 = 3_000;
/// Cost of the removal of a subscription from all tables.
const RETRACT_WORK: u64 = 2_000;
/// Bytes that are written for one unit, …
pub(super) const BYTES_PER_WORK: u64 = 8;
/// … and that the kernel takes.
const SENT_BYTES_PER_WORK: u64 = 8;

/// What one turn may still cost, and what it has cost.
///
/// Who comes first in a turn leaves something for those who come later: records leave half of it,
/// input that is new a quarter.
#[derive(Debug)]
pub(super) struct Budget {
    /// What a turn may cost; as much again may be sent.
    turn: u64,
    /// What is left for input and records.
    left: u64,
    /// What whoever is served now has to leave.
    floor: u64,
    /// What is left for sending.
    send_left: u64,
    /// What is left for taking out subscriptions of those who have ended.
    retract_left: u64,
    /// What this turn has cost so far.
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
    /// Turns may cost so much from now on.
    pub(super) fn set_turn(&mut self, turn: u64) {
        self.turn = turn;
        self.refill();
    }

    /// Begins the next turn. Returns what the last one has cost.
    pub(super) fn refill(&mut self) -> u64 {
        (self.left, self.floor) = (self.turn, 0);
        (self.send_left, self.retract_left) = (self.turn, self.turn / 4);
        std::mem::take(&mut self.work)
    }

    /// Something was done.
    pub(super) fn spend(&mut self, work: u64) {
        self.work += work;
        self.left = self.left.saturating_sub(work);
    }

    /// A batch is on its way.
    pub(super) fn spend_send(&mut self, bytes: usize) {
        let work = SEND_WORK + bytes as u64 / SENT_BYTES_PER_WORK;
        self.work += work;
        self.send_left = self.send_left.saturating_sub(work);
    }

    /// Subscriptions were taken out.
    pub(super) fn spend_retract(&mut self, count: usize) {
        let work = RETRACT_WORK * count as u64;
        self.work += work;
        self.retract_left = self.retract_left.saturating_sub(work);
    }

    /// How many subscriptions may be taken out.
    pub(super) fn retractions(&self) -> usize {
        usize::try_from(self.retract_left.div_ceil(RETRACT_WORK)).unwrap_or(usize::MAX)
    }

    /// Whether more may be sent.
    pub(super) fn sends(&self) -> bool {
        self.send_left > 0
    }

    /// Whether input that is new may be handled.
    pub(super) fn takes_input(&self) -> bool {
        self.left > self.turn / 4
    }

    /// Whether records may be handled.
    pub(super) fn takes_records(&self) -> bool {
        self.left > self.turn / 2
    }

    /// Somebody's input is served now, for a share of what is left.
    pub(super) fn serve_input(&mut self) {
        self.floor = self.left.saturating_sub(self.turn / 2);
    }

    /// Another shard is served now, for a share.
    pub(super) fn serve_records(&mut self) {
        self.floor = self.left.saturating_sub(self.turn / 4).max(self.turn / 2);
    }

    /// Whether anything is left.
    pub(super) fn has_left(&self) -> bool {
        self.left > 0
    }

    /// Whether whoever is served now has had its share.
    pub(super) fn is_spent(&self) -> bool {
        self.left <= self.floor
    }

    /// What whoever is served now may still cost.
    pub(super) fn room(&self) -> u64 {
        self.left.saturating_sub(self.floor)
    }
}

/// What it costs to give messages to all that one subject resolves to.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Price {
    /// However many they are.
    pub(super) once: u64,
    /// For each of them.
    pub(super) each: u64,
    /// How often their bytes are written when they are written once for all who get the same, …
    pub(super) copies: u64,
    /// … and when they are copied to everybody.
    pub(super) members: u64,
}

impl Price {
    /// How many messages of a run may be given for `room`, and how many bytes they may have: at
    /// least one of them.
    pub(super) fn within(&self, room: u64) -> (usize, usize) {
        let room = room.saturating_sub(self.once);
        let messages = room / self.each.max(1);
        let bytes = room.saturating_mul(BYTES_PER_WORK) / self.copies.max(1);
        let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX).max(1);
        (count(messages), count(bytes))
    }

    /// What a run costs. If it `is_copied`, it is to everybody.
    pub(super) fn of(&self, messages: usize, bytes: usize, is_copied: bool) -> u64 {
        let copies = if is_copied { self.members.max(self.copies) } else { self.copies };
        self.once + self.each * messages as u64 + copies * bytes as u64 / BYTES_PER_WORK
    }
}
