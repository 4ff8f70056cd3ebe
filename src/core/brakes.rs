//! Reasons not to read from a connection, and its use of the configured rates.

use crate::interest::ids::{ShardId, ShardSet};
use crate::measure::{Meter, Rates};

/// The reason on a shard for which a publisher is paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stall {
    /// Most receivers of its messages are behind.
    Receivers,
    /// A log takes no more messages before its next commit.
    Log,
}

/// Reasons not to read from a connection.
#[derive(Debug, Default)]
pub(crate) struct Brakes {
    /// Shards with a full lane that the connection feeds.
    pub(crate) lanes: ShardSet,
    /// Shards on which most receivers of the connection's messages are behind.
    behind: ShardSet,
    /// Number of shards whose logs take no more of the connection's messages for now.
    logs: u8,
    /// Pauses because most receivers of a run were behind.
    stalls: u64,
    /// Too much input before its step of the handshake.
    pub(crate) in_line: bool,
    /// Input held back from the protocol.
    pub(crate) held: bool,
    /// Input over the configured rate.
    pub(crate) pace: bool,
    /// Too much output pending of its own messages to itself.
    pub(crate) own: bool,
    /// Too much input waiting for its turn.
    pub(crate) turn: bool,
    /// Too many requests undecided.
    pub(crate) requests: bool,
}

impl Brakes {
    pub(crate) fn any(&self) -> bool {
        self.holds() || self.in_line || self.held || self.pace || self.turn
    }

    /// Whether input that has been read already has to wait, too.
    pub(crate) fn holds(&self) -> bool {
        let shards = !self.lanes.is_empty() || !self.behind.is_empty();
        shards || self.logs > 0 || self.own || self.requests
    }

    /// Begins a pause for a reason on `shard`.
    pub(crate) fn stall(&mut self, shard: ShardId, why: Stall) {
        match why {
            Stall::Receivers => {
                self.stalls += 1;
                self.behind.insert(shard);
            }
            Stall::Log => self.logs = self.logs.saturating_add(1),
        }
    }

    /// Ends a pause for a reason on `shard`.
    pub(crate) fn end_stall(&mut self, shard: ShardId, why: Stall) {
        match why {
            Stall::Receivers => self.behind.remove(shard),
            Stall::Log => self.logs = self.logs.saturating_sub(1),
        }
    }

    /// Returns the pauses so far because most receivers of a run were behind.
    pub(crate) fn stalls(&self) -> u64 {
        self.stalls
    }
}

/// Use that a connection has made of its rates.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    msgs: Meter,
    bytes: Meter,
    /// Messages counted so far.
    msgs_seen: u64,
}

impl Pace {
    /// Counts messages and bytes that have come. Returns the time from which the next may come, in
    /// nanoseconds since the start.
    pub(crate) fn take(&mut self, rates: &Rates, bytes: usize, all_msgs: u64, now: u64) -> u64 {
        let msgs = all_msgs - self.msgs_seen;
        self.msgs_seen = all_msgs;
        let take = |meter: &mut Meter, amount, rate| match rate {
            0 => 0,
            rate => meter.take(amount, rate, now),
        };
        let msgs_due = take(&mut self.msgs, msgs, rates.msgs_per_connection);
        msgs_due.max(take(&mut self.bytes, bytes as u64, rates.bytes_per_connection))
    }
}
