//! Units of work of a turn, and the price of delivering to the receivers of a subject.

/// Budget of a turn for input and records, in units of about a nanosecond.
pub(crate) const TURN_WORK: u64 = 3_000_000;

/// Cost of handling one message, without deliveries.
pub(super) const MESSAGE_WORK: u64 = 50;

/// Cost of any other operation.
pub(crate) const OPERATION_WORK: u64 = 500;

/// Cost of entering a subscription, besides.
pub(crate) const SUBSCRIBE_WORK: u64 = 1_000;

/// Cost of taking a record of another shard.
pub(crate) const RECORD_WORK: u64 = 200;

/// Cost of reading one of the runs in a record.
pub(crate) const RUN_WORK: u64 = 50;

/// Cost of one place of the filter tree in a lookup.
pub(super) const NODE_WORK: u64 = 30;

/// Cost of one subscription in the result of a lookup.
pub(super) const MEMBER_WORK: u64 = 40;

/// Cost of a run for each further receiver.
pub(super) const DELIVERY_WORK: u64 = 120;

/// Cost of writing one message.
pub(super) const RENDER_WORK: u64 = 30;

/// Cost of the draw and the delivery of one queue message.
pub(super) const PICK_WORK: u64 = 200;

/// Cost of one message to another account.
pub(super) const EXIT_WORK: u64 = 10_000;

/// Cost of one send, the kernel's part included.
pub(crate) const SEND_WORK: u64 = 3_000;

/// Cost of the removal of a subscription from all tables.
pub(crate) const RETRACT_WORK: u64 = 2_000;

/// Bytes that are written for one unit of work.
const BYTES_PER_WORK: u64 = 8;

/// Bytes that the kernel takes for one unit of work.
pub(crate) const SENT_BYTES_PER_WORK: u64 = 8;

/// The work of delivering messages to all receivers that one subject resolves to.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Price {
    /// Work of a run, whatever the number of its messages.
    pub(crate) once: u64,
    /// Work of each message.
    pub(crate) each: u64,
    /// Times that the bytes of a run are written if once for all receivers that get the same.
    pub(crate) copies: u64,
    /// Times that the bytes of a run are written if they are copied to each receiver.
    pub(crate) members: u64,
}

impl Price {
    /// Returns the number of messages of a run that may be delivered with the work `room`, and of
    /// their bytes: at least one of each.
    pub(crate) fn within(&self, room: u64) -> (usize, usize) {
        let room = room.saturating_sub(self.once);
        let messages = room / self.each.max(1);
        let bytes = room.saturating_mul(BYTES_PER_WORK) / self.copies.max(1);
        let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX).max(1);
        (count(messages), count(bytes))
    }

    /// Whether a run may be delivered as a whole with the work `room`.
    pub(crate) fn is_within(&self, room: u64, messages: usize, bytes: usize) -> bool {
        let (messages, bytes) = (messages as u64, bytes as u64);
        let room = room.saturating_sub(self.once);
        self.each * messages <= room && self.copies * bytes / BYTES_PER_WORK <= room
    }

    /// Returns the work of delivering a run. If it `is_copied`, each receiver gets a copy.
    pub(crate) fn of(&self, messages: usize, bytes: usize, is_copied: bool) -> u64 {
        let copies = if is_copied { self.members.max(self.copies) } else { self.copies };
        self.once + self.each * messages as u64 + copies * bytes as u64 / BYTES_PER_WORK
    }
}
