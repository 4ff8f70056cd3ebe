//! Tickets and questions that go with a run to another shard, which reports on them.

use smallvec::SmallVec;

use crate::interest::ids::{AccountId, ShardId};

/// Numbers of messages within a run; most requests are a run of one.
pub(crate) type Numbers = SmallVec<[u32; 4]>;

/// The part of a trace that goes to another shard with the message.
#[derive(Debug, Clone)]
pub(crate) struct Ticket {
    /// Shard that gets the report.
    pub(crate) origin: ShardId,
    pub(crate) id: u64,
    pub(crate) credit: u128,
    /// Whether the message is only traced, and not delivered.
    pub(crate) only: bool,
    /// Account in which the message came in.
    pub(crate) account: AccountId,
}

/// The question that goes with requests to another shard: which of them have a receiver there?
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    /// Shard that gets the report.
    pub(crate) origin: ShardId,
    pub(crate) id: u64,
    pub(crate) credit: u128,
    /// Numbers of the record's messages, as the origin counts them.
    pub(crate) numbers: Numbers,
}

impl Ask {
    /// Splits off the question about the messages from `at` on, which are delivered later; its
    /// credit is added afterwards.
    pub(crate) fn split_off(&mut self, at: usize) -> Box<Self> {
        let numbers = self.numbers.drain(at.min(self.numbers.len())..).collect();
        Box::new(Self { credit: 0, numbers, ..*self })
    }

    /// Returns the memory that the question takes, in bytes.
    pub(crate) fn cost_bytes(&self) -> usize {
        size_of::<Self>() + size_of::<u32>() * self.numbers.len()
    }
}
