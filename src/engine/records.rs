//! Records: those that come from other shards, and those that wait for them.

use std::any::Any;

use crate::core::announce::{self, Changed};
use crate::core::lanes::{LANE_BYTES_MAX, Lanes};
use crate::core::shard_message::{InterestRecord, LeafRecord, Record};
use crate::core::{backpressure, message_trace};
use crate::delivery::row::MessageBatch;
use crate::delivery::{crossing, latency, no_responders};
use crate::engine::Engine;
use crate::interest::cost::{RECORD_WORK, RUN_WORK};
use crate::interest::halves::FarHalf;
use crate::interest::ids::ShardId;
use crate::interest::{Remote, Wanted};
use crate::leaf;

/// Returns the lanes of a shard, for frames on their way home.
pub(crate) fn lanes_of(engine: &mut Engine) -> &mut Lanes {
    &mut engine.core.lanes
}

/// Takes what another server has measured of the request with this number.
pub(crate) fn join_half(engine: &mut Engine, id: u64, half: Box<FarHalf>) {
    latency::join(&mut engine.core, id, half);
}

impl Engine {
    /// Handles a record of another shard.
    pub fn on_record(&mut self, from: ShardId, record: Record) {
        self.core.lanes.to[from.index()].push_arrived(record);
        advance_records_of(self, from);
    }

    /// Handles a record. Returns the rest of it, if the budget does not allow it all.
    fn handle_record(&mut self, from: ShardId, record: Record) -> Option<Record> {
        self.core.budget.serve_records();
        self.core.budget.spend(RECORD_WORK);
        match record {
            Record::Runs(mut frame) => {
                if !crossing::on_frame(&mut self.core, from, &mut frame) {
                    return Some(Record::Runs(frame));
                }
                self.core.lanes.to[from.index()].push_spent(frame);
            }
            Record::Traced(report) => message_trace::on_traced(&mut self.core, *report),
            Record::Placed(reports) => {
                self.core.budget.spend(RUN_WORK * reports.len() as u64);
                for placed in &reports {
                    no_responders::on_placed(&mut self.core, placed);
                }
            }
            Record::Measured { responder, report } => {
                latency::complete(&mut self.core, responder, report);
            }
            Record::Interest(interest) => {
                let InterestRecord { account, via, filter, queue, members } = *interest;
                let wanted = Wanted { filter: &filter, queue: queue.as_deref() };
                let interest = &mut self.core.accounts.at(account).interest;
                let remote = Remote { shard: from, via, members };
                let change = interest.set_remote(remote, wanted);
                let measured = &mut self.core.requests.measured;
                if members == 0 && !measured.is_empty() {
                    measured.note_left(account, &filter);
                }
                announce::tell_servers(&mut self.core, account, wanted, change);
                if let Some(members) = change.behind {
                    let change = Changed { via, link: None, members };
                    announce::advertise_behind(&mut self.core, account, change, wanted);
                }
            }
            Record::Leaf(record) => {
                let LeafRecord { cluster, is_in, key, cid } = *record;
                self.core.links.note_leaf(&cluster, is_in);
                if is_in && key != 0 {
                    leaf::close_older(&mut self.core, key, cid);
                }
            }
            Record::Barrier { epoch } => self.core.push_record(from, Record::Settled { epoch }),
            Record::Settled { epoch } => self.core.on_settled(from, epoch),
            Record::Pause { conn, why } => {
                backpressure::pause_for(&mut self.core, conn, from, why);
            }
            Record::Resume { conn, why } => {
                backpressure::resume_for(&mut self.core, conn, from, why);
            }
            Record::Farewell => self.core.lanes.to[from.index()].has_taken_leave = true,
            Record::Inside(inside) => match (inside as Box<dyn Any>).downcast::<MessageBatch>() {
                Ok(batch) => batch.deliver_from(&mut self.core, from),
                Err(other) => self.jetstream.on_record(&mut self.core, from, other),
            },
        }
        None
    }

    /// Takes the next record for another shard.
    pub fn pop_record(&mut self, to: ShardId) -> Option<Record> {
        let lane = &mut self.core.lanes.to[to.index()];
        let record = lane.queue.pop_front()?;
        lane.bytes -= record.cost_bytes();
        if lane.bytes <= LANE_BYTES_MAX / 2 && !lane.feeders.is_empty() {
            for id in std::mem::take(&mut lane.feeders) {
                self.core.release(id, |brakes| brakes.lanes.remove(to));
            }
        }
        Some(record)
    }

    /// Handles records that wait; records on the lanes are behind them.
    pub fn advance_records(&mut self) {
        for shard in self.core.others() {
            advance_records_of(self, shard);
        }
    }

    /// Whether records wait for another shard.
    pub fn has_records(&self, to: ShardId) -> bool {
        !self.core.lanes.to[to.index()].queue.is_empty()
    }
}

fn advance_records_of(engine: &mut Engine, from: ShardId) {
    while engine.core.budget.takes_records()
        && let Some(record) = engine.core.lanes.to[from.index()].arrived.pop_front()
    {
        if let Some(rest) = engine.handle_record(from, record) {
            engine.core.lanes.to[from.index()].arrived.push_front(rest);
            return;
        }
    }
}
