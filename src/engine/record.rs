//! What shards tell one another, in order, over their lanes.

#![forbid(unsafe_code)]

use bytes::Bytes;

use super::interest::Side;
use super::message_trace::{STEP_BYTES, Step, Ticket};
use super::requests::Ask;
use super::{AccountId, ConnId, Origin, ShardId, ShardSet};

/// One message from a shard to another.
#[derive(Debug)]
pub enum Record {
    /// Deliver these publishes to your subscriptions.
    Run(Box<RunRecord>),
    /// What became here of a message that is traced.
    Traced(Box<Report>),
    /// These of your requests somebody gets here.
    Placed(Box<Placed>),
    /// My interest in a filter is now this.
    Interest(Box<InterestRecord>),
    /// Answer `Settled` when you have consumed everything up to here.
    Barrier {
        /// The sender's count of turns that staged something.
        epoch: u64,
    },
    /// Everything up to this barrier is in force here.
    Settled {
        /// The epoch of the barrier that this answers.
        epoch: u64,
    },
    /// Read no more from this connection of yours: those it feeds here are behind.
    Pause {
        /// The publisher.
        conn: ConnId,
    },
    /// Those it feeds here have caught up.
    Resume {
        /// The publisher.
        conn: ConnId,
    },
}

/// A run of publishes of one connection to one subject.
#[derive(Debug, Clone)]
pub struct RunRecord {
    pub(super) account: AccountId,
    pub(super) publisher: Publisher,
    /// Whether the publisher gets its own messages.
    pub(super) echo: bool,
    /// The shards that had this queue message and could not place it.
    pub(super) visited: ShardSet,
    /// Arrival on the publisher's shard, in nanoseconds since the start of the process.
    pub(super) arrived: u64,
    /// Whether the run came from another server; then it is for clients only.
    pub(super) routed: bool,
    /// Of a run that named queue groups there: whose message it is.
    pub(super) origin: Option<Origin>,
    /// The operations as the client or the other server sent them.
    pub(super) wire: Bytes,
    /// Whether it answers requests of the receiving shard, which knows the requester.
    pub(super) answers: bool,
    /// Accounts it has gone through.
    pub(super) hops: u8,
    /// Ticket of a traced message.
    pub(super) trace: Option<Box<Ticket>>,
    /// Question of the publisher's shard for messages without a receiver.
    pub(super) ask: Option<Box<Ask>>,
    /// Whether plain subscriptions get the run.
    pub(super) plain: bool,
    /// Queue groups of which a member here gets some of the messages.
    pub(super) picks: Vec<Pick>,
}

/// The messages of a run that a shard has to give to one member each of a queue group.
#[derive(Debug, Clone)]
pub(super) struct Pick {
    pub(super) group: Box<[u8]>,
    /// Numbers within the run, from 0.
    pub(super) messages: Vec<u32>,
}

/// What became of a traced message on the sending shard.
#[derive(Debug)]
pub struct Report {
    pub(super) id: u64,
    /// Credit of the ticket, less the part that went on to other shards.
    pub(super) credit: u128,
    pub(super) steps: Vec<Step>,
    pub(super) left_out: u64,
    pub(super) hops: u32,
}

/// What the sending shard has done about requests of another.
#[derive(Debug)]
pub struct Placed {
    pub(super) id: u64,
    /// Credit of the question, less the part that went on to other shards.
    pub(super) credit: u128,
    /// The messages that somebody gets there, in order, as the requesting shard counts them.
    pub(super) numbers: Vec<u32>,
}

/// A change of a shard's interest in one filter.
#[derive(Debug)]
pub struct InterestRecord {
    pub(super) account: AccountId,
    pub(super) side: Side,
    pub(super) filter: Box<[u8]>,
    pub(super) queue: Option<Box<[u8]>>,
    /// Members of the queue group there; 1 or 0 for plain subscriptions.
    pub(super) members: u32,
}

/// A connection of some shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Publisher {
    pub(super) shard: ShardId,
    pub(super) conn: ConnId,
}

impl Record {
    /// Memory that the record keeps, in bytes.
    pub fn cost_bytes(&self) -> usize {
        let rest = match self {
            Self::Run(run) => {
                let picks = run.picks.iter().map(|pick| pick.group.len() + 4 * pick.messages.len());
                let ask = run.ask.as_ref().map_or(0, |ask| ask.cost_bytes());
                size_of::<RunRecord>() + run.wire.len() + picks.sum::<usize>() + ask
            }
            Self::Interest(interest) => {
                let queue = interest.queue.as_ref().map_or(0, |queue| queue.len());
                size_of::<InterestRecord>() + interest.filter.len() + queue
            }
            Self::Placed(placed) => size_of::<Placed>() + 4 * placed.numbers.len(),
            Self::Traced(report) => size_of::<Report>() + report.steps.len() * STEP_BYTES,
            _ => 0,
        };
        size_of::<Self>() + rest
    }
}
