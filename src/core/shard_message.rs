//! Records: messages between shards, in order, over their lanes.

use std::any::Any;
use std::fmt::Debug;
use std::sync::Arc;

use crate::core::brakes::Stall;
use crate::core::events::LatencyReport;
use crate::core::message_trace::{STEP_BYTES, Step};
use crate::interest::ids::{AccountId, ConnId};
use crate::interest::reach::Via;
use crate::run::frame::RunFrame;
use crate::run::ticket::Numbers;

/// One message from a shard to another.
#[derive(Debug)]
pub enum Record {
    /// Runs to deliver to subscriptions of the receiving shard.
    Runs(RunFrame),
    /// The report of the sending shard on a traced message.
    Traced(Box<Report>),
    /// The report on a measured request that a connection of the receiving shard has answered.
    Measured {
        /// The connection that has answered.
        responder: ConnId,
        /// The report, without the responder.
        report: Box<LatencyReport>,
    },
    /// Reports on runs of requests of the receiving shard: which have a receiver on the sending
    /// one.
    Placed(Vec<Placed>),
    /// A change of the sending shard's interest in a filter.
    Interest(Box<InterestRecord>),
    /// A leaf connection of the sending shard that begins or ends.
    Leaf(Box<LeafRecord>),
    /// A question that is answered with `Settled` when everything before it has been consumed.
    Barrier {
        /// The sender's count of turns that staged something.
        epoch: u64,
    },
    /// The answer to a barrier: everything before it is in force on the sending shard.
    Settled {
        /// The epoch of the barrier that this answers.
        epoch: u64,
    },
    /// A connection of the receiving shard that is not to be read from for now.
    Pause {
        /// The publisher.
        conn: ConnId,
        /// The reason on the sending shard.
        why: Stall,
    },
    /// A connection of the receiving shard that may be read from again.
    Resume {
        /// The publisher.
        conn: ConnId,
        /// The reason that is gone.
        why: Stall,
    },
    /// The last word of a shard that stops: what it had to say to clients is before it.
    Farewell,
    /// A message between the parts of a receiver inside the server.
    Inside(Box<dyn InsideRecord>),
}

/// A message between the parts of a receiver inside the server, which a room below this one
/// understands.
pub trait InsideRecord: Any + Debug + Send {
    /// Returns the memory that the message takes besides its own size, in bytes.
    fn cost_bytes(&self) -> usize;
}

/// The report of the sending shard on its part of a traced message.
#[derive(Debug)]
pub struct Report {
    pub(crate) id: u64,
    /// Credit of the ticket, less the part that went on to other shards.
    pub(crate) credit: u128,
    pub(crate) steps: Vec<Step>,
    pub(crate) left_out: u64,
    pub(crate) hops: u32,
}

/// The report of the sending shard on requests of another.
#[derive(Debug)]
pub struct Placed {
    pub(crate) id: u64,
    /// Credit of the question, less the part that went on to other shards.
    pub(crate) credit: u128,
    /// Numbers of the messages that have a receiver there, in order, as the requesting shard counts
    /// them.
    pub(crate) numbers: Numbers,
}

impl Placed {
    /// Returns the memory that the report takes, in bytes.
    pub(crate) fn cost_bytes(&self) -> usize {
        size_of::<Self>() + size_of::<u32>() * self.numbers.len()
    }
}

/// A change of a shard's interest in one filter.
#[derive(Debug)]
pub struct InterestRecord {
    pub(crate) account: AccountId,
    pub(crate) via: Via,
    pub(crate) filter: Box<[u8]>,
    pub(crate) queue: Option<Box<[u8]>>,
    /// Members of the queue group on that shard; 1 or 0 for plain subscriptions.
    pub(crate) members: u32,
}

/// The beginning or the end of a leaf connection.
#[derive(Debug, Clone)]
pub struct LeafRecord {
    /// The cluster of the leaf node; empty if it has none, or is the hub.
    pub(crate) cluster: Arc<str>,
    pub(crate) is_in: bool,
    /// Names by which another connection of the same leaf node is known; 0 if it has none.
    pub(crate) key: u64,
    /// The number of the connection.
    pub(crate) cid: u64,
}

impl Record {
    /// Returns the memory that the record takes, in bytes.
    pub fn cost_bytes(&self) -> usize {
        let rest = match self {
            Self::Runs(frame) => frame.cost_bytes(),
            Self::Interest(interest) => {
                let queue = interest.queue.as_ref().map_or(0, |queue| queue.len());
                size_of::<InterestRecord>() + interest.filter.len() + queue
            }
            Self::Leaf(leaf) => size_of::<LeafRecord>() + leaf.cluster.len(),
            Self::Placed(reports) => reports.iter().map(Placed::cost_bytes).sum(),
            Self::Inside(inside) => size_of_val(&**inside) + inside.cost_bytes(),
            Self::Measured { report, .. } => report.cost_bytes(),
            Self::Traced(report) => size_of::<Report>() + report.steps.len() * STEP_BYTES,
            _ => 0,
        };
        size_of::<Self>() + rest
    }
}
