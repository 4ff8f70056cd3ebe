//! Lanes to other shards, and barriers over them: records that wait for room, and epochs in force.
//!
//! `core::backpressure` has the rules.

use std::collections::VecDeque;

use crate::core::Core;
use crate::core::shard_message::{Placed, Record};
use crate::interest::ids::{ConnId, ShardId};
use crate::run::frame::{Parcel, RunFrame, SPARE_FRAMES_MAX, SpareFrames};

/// Waiting bytes above which a lane is full.
pub(crate) const LANE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Reports in one record, at most: they are taken at once.
const PLACED_MAX: usize = 64;

/// The lane to one other shard, and records from it.
#[derive(Debug, Default)]
pub(crate) struct Lane {
    pub(crate) queue: VecDeque<Record>,
    pub(crate) bytes: usize,
    /// Records of that shard that wait for their turn. There are more than one only if the caller
    /// does not ask whether they are taken.
    pub(crate) arrived: VecDeque<Record>,
    /// Frames of that shard that have been read and are to be sent home.
    spent: Vec<RunFrame>,
    /// Runs and other records queued since the start.
    pub(crate) all_records: u64,
    pub(crate) all_bytes: u64,
    /// Local connections that are not read from until there is room.
    pub(crate) feeders: Vec<ConnId>,
    /// The last epoch in which something was staged.
    staged_epoch: u64,
    /// The last epoch for which a barrier was sent.
    barrier_epoch: u64,
    /// The last epoch that the other shard has settled.
    settled_epoch: u64,
    /// Whether the other shard stops, and has nothing more to say to clients of this one.
    pub(crate) has_taken_leave: bool,
}

impl Lane {
    /// Appends a record that has come from that shard.
    pub(crate) fn push_arrived(&mut self, record: Record) {
        self.arrived.push_back(record);
    }

    /// Takes a frame of that shard that has been read.
    pub(crate) fn push_spent(&mut self, mut frame: RunFrame) {
        if self.spent.len() < SPARE_FRAMES_MAX {
            frame.clear();
            self.spent.push(frame);
        }
    }

    /// Returns a frame of that shard that is to be sent home, if there is one.
    pub(crate) fn pop_spent(&mut self) -> Option<RunFrame> {
        self.spent.pop()
    }

    /// Counts memory of records that wait now.
    fn count(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.all_bytes += bytes as u64;
    }

    /// Returns the frame for the next run, the last record that waits.
    fn frame(&mut self, spares: &mut SpareFrames) -> Option<&mut RunFrame> {
        let has_room = matches!(self.queue.back(), Some(Record::Runs(frame)) if frame.has_room());
        if !has_room {
            let record = Record::Runs(spares.frame());
            self.count(record.cost_bytes());
            self.queue.push_back(record);
        }
        match self.queue.back_mut() {
            Some(Record::Runs(frame)) => Some(frame),
            _ => None,
        }
    }
}

/// Counters of the lane to one other shard.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LaneFigures {
    /// Runs and other records sent since the start, those that wait included.
    pub records: u64,
    /// Bytes of those records, as the bound of lanes counts them.
    pub bytes: u64,
    /// Frames and other records that wait for room, or have not been taken out of it.
    pub waiting_records: usize,
    /// Bytes that wait for room.
    pub waiting_bytes: usize,
}

/// The lanes to the other shards, and the epochs up to which their records are in force.
#[derive(Debug)]
pub(crate) struct Lanes {
    /// Lanes by shard; that to the own shard is not used.
    pub(crate) to: Vec<Lane>,
    /// Number of turns that staged something for another shard; the current one included.
    pub(crate) epoch: u64,
    /// The last epoch in which a change of interest was announced.
    pub(crate) announced_epoch: u64,
    /// The last epoch whose records every other shard has consumed.
    pub(crate) settled_epoch: u64,
    /// Connections with output that waits for an epoch to be settled.
    pub(crate) held: Vec<ConnId>,
    /// Frames that have come home.
    pub(crate) spares: SpareFrames,
}

impl Lanes {
    pub(crate) fn new(shards: usize) -> Self {
        Self {
            to: (0..shards).map(|_| Lane::default()).collect(),
            epoch: 1,
            announced_epoch: 0,
            settled_epoch: 0,
            held: Vec::new(),
            spares: SpareFrames::default(),
        }
    }

    /// Returns the shard that has all dialled gateways: one shard knows which cluster is nearest.
    pub(crate) fn gateway_shard(&self) -> ShardId {
        ShardId(u8::try_from(self.to.len().saturating_sub(1)).unwrap_or(0))
    }

    /// Whether records of other shards wait for their turn.
    pub(crate) fn has_waiting(&self) -> bool {
        self.to.iter().any(|lane| !lane.arrived.is_empty())
    }

    /// Whether every other shard has consumed what came before the barrier of this epoch.
    pub(crate) fn are_settled(&self, own: ShardId, epoch: u64) -> bool {
        let others = self.to.iter().enumerate().filter(|(at, _)| *at != own.index());
        others.map(|(_, lane)| lane.settled_epoch).all(|settled| settled >= epoch)
    }

    /// Whether every other shard has said to this one's clients what it had to say.
    pub(crate) fn have_taken_leave(&self, own: ShardId) -> bool {
        let others = self.to.iter().enumerate().filter(|(at, _)| *at != own.index());
        others.map(|(_, lane)| lane).all(|lane| lane.has_taken_leave)
    }

    /// Whether any lane is full.
    pub(crate) fn has_full(&self) -> bool {
        self.to.iter().any(|lane| lane.bytes > LANE_BYTES_MAX)
    }
}

/// Sends a barrier to every other shard, before what is staged next. Returns its epoch.
pub(crate) fn send_barrier(core: &mut Core) -> u64 {
    let epoch = core.lanes.epoch;
    for shard in core.others() {
        core.lanes.to[shard.index()].barrier_epoch = epoch;
        core.push_record(shard, Record::Barrier { epoch });
    }
    core.lanes.epoch += 1;
    epoch
}

/// Queues a run, and the messages of it that were picked for queue groups, by their names. The
/// local connection that fed it is held back when the lane is full.
pub(crate) fn stage<'p>(
    core: &mut Core,
    to: ShardId,
    parcel: Parcel<'_, '_>,
    picks: impl Iterator<Item = (&'p [u8], &'p [u32])>,
) {
    let publisher = parcel.source.publisher;
    let lane = &mut core.lanes.to[to.index()];
    let Some(frame) = lane.frame(&mut core.lanes.spares) else {
        unreachable!("a frame is where the last run is")
    };
    let mut cost = frame.push(parcel);
    picks.for_each(|(group, numbers)| cost += frame.pick(group, numbers));
    lane.count(cost);
    lane.all_records += 1;
    lane.staged_epoch = core.lanes.epoch;
    if publisher.shard == core.shard {
        core.mark_staged(publisher.conn, to);
    }
}

/// Queues the report on a run of requests, with other reports if one is the last record that waits.
pub(crate) fn push_placed(core: &mut Core, to: ShardId, placed: Placed) {
    let lane = &mut core.lanes.to[to.index()];
    match lane.queue.back_mut() {
        Some(Record::Placed(reports)) if reports.len() < PLACED_MAX => {
            let cost = placed.cost_bytes();
            reports.push(placed);
            lane.count(cost);
        }
        _ => core.push_record(to, Record::Placed(vec![placed])),
    }
}

impl Core {
    /// Queues a record without a connection to be held back for it.
    pub(crate) fn push_record(&mut self, to: ShardId, record: Record) {
        let lane = &mut self.lanes.to[to.index()];
        lane.count(record.cost_bytes());
        lane.all_records += 1;
        lane.queue.push_back(record);
    }

    /// Notes that connection `id` has staged something for another shard in this turn.
    pub(crate) fn mark_staged(&mut self, id: ConnId, to: ShardId) {
        let lane = &mut self.lanes.to[to.index()];
        lane.staged_epoch = self.lanes.epoch;
        let full = lane.bytes > LANE_BYTES_MAX;
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.staged_epoch = self.lanes.epoch;
        if full && !conn.input.brakes.lanes.contains(to) {
            lane.feeders.push(id);
            self.brake(id, |brakes| brakes.lanes.insert(to));
        }
    }

    /// Sends barriers to the other shards if replies are held back, and ends the epoch.
    pub(crate) fn send_barriers(&mut self) {
        let epoch = self.lanes.epoch;
        let mut over = self.lanes.to.iter().any(|lane| lane.staged_epoch == epoch);
        if !self.lanes.held.is_empty() {
            for shard in self.others() {
                let lane = &mut self.lanes.to[shard.index()];
                if lane.barrier_epoch < lane.staged_epoch {
                    lane.barrier_epoch = epoch;
                    over = true;
                    self.push_record(shard, Record::Barrier { epoch });
                }
            }
            self.settle();
        }
        // A record staged behind a barrier belongs to a later epoch than the barrier.
        if over {
            self.lanes.epoch += 1;
        }
    }

    pub(crate) fn on_settled(&mut self, from: ShardId, epoch: u64) {
        self.links.newcomers.on_settled(from, epoch);
        let lane = &mut self.lanes.to[from.index()];
        lane.settled_epoch = lane.settled_epoch.max(epoch);
        self.settle();
    }

    /// Releases the replies whose epoch every shard has settled.
    pub(crate) fn settle(&mut self) {
        let settled = |lane: &Lane| {
            if lane.staged_epoch <= lane.settled_epoch { u64::MAX } else { lane.settled_epoch }
        };
        let all = self.lanes.to.iter().map(settled).min().unwrap_or(u64::MAX);
        // A status comes before the replies that follow its request.
        let all = all.min(self.requests.decided_epoch());
        // The current epoch may still grow.
        self.lanes.settled_epoch = all.min(self.lanes.epoch - 1).max(self.lanes.settled_epoch);
        let settled_epoch = self.lanes.settled_epoch;
        let mut held = std::mem::take(&mut self.lanes.held);
        held.retain(|id| {
            let Some(conn) = self.conns.get_mut(*id) else { return false };
            if conn.outbox.release(settled_epoch) {
                conn.flush(&mut self.out.flushes, true);
            }
            conn.outbox.is_held()
        });
        self.lanes.held = held;
    }
}
