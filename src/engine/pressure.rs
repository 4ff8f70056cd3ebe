//! Lanes, barriers and back-pressure: shards stay in step, publishers do not outrun subscribers.
//!
//! Nothing here spins, and every rule that drops something names its victim.
//!
//! # Barriers
//!
//! A PONG or `+OK` promises that everything its client sent before is in force on every shard.
//! `Engine::confirm` holds it back in the outbox (`Outbox::hold`) if its connection has staged
//! anything that is not settled. Input of the connection is handled meanwhile; output behind the
//! held reply waits behind it. `Engine::send_barriers` ends the turn with a `Record::Barrier` on
//! each lane concerned, behind the records that it covers; the other shard answers with
//! `Record::Settled`. A connection that staged nothing waits for nothing.
//!
//! An *epoch* ends with a turn that staged something or sent a barrier; a barrier covers whole
//! epochs. It covers what the *client's* shard staged, not a queue message that the next shard
//! forwards.
//!
//! A client's own message that comes back to it promises as much as a PONG (`Engine::begin_echo`):
//! for some clients this is the only way to ask. News from third parties can be relied upon too:
//! records of a turn are on the lanes before any output of that turn leaves, and a turn takes
//! records before it takes input. The exception: a record that waits for room on a lane, or is not
//! taken in a turn, may be overtaken.
//!
//! # Back-pressure
//!
//! - A *lane* to another shard has 256 records (`LANE_RECORDS_MAX`); the rest waits in the sending
//!   engine. Above 4 MiB waiting (`LANE_BYTES_MAX`) the local connections that feed the lane are
//!   paused (`Action::Pause`) until half of it is gone. Lanes are drained all the time, 64 records
//!   of each per turn (`DRAIN_RECORDS_MAX`), so two shards that fill each other go on. Records
//!   without a connection to blame (interest of a closing connection, answers) are always queued.
//! - A *wait* pauses a publisher while most receivers of its run are behind. A subscriber is
//!   behind with more than 64 MiB (`BACKLOG_BYTES_ALL`) divided by the receivers of the run
//!   pending, at least 64 KiB (`BACKLOG_BYTES_MIN`), at most 1 MiB (`BACKLOG_BYTES_MAX`) and half
//!   of `max_pending`. The wait ends when half of those have come down to half of that level, and
//!   after [`WAIT_NS_MAX`] in any case; for a route, which carries messages of many, after
//!   [`ROUTE_WAIT_NS_MAX`]. A subscriber that is behind then is *slow*: not counted, not waited
//!   for, until it has caught up. So a slow subscriber stalls a publisher once, for a bounded
//!   time. A publisher on another shard is paused by `Record::Pause`.
//! - A connection that publishes to itself, with more than 1 MiB of that pending, is paused until
//!   half of it is taken, however long that takes; the write deadline handles peers that take
//!   nothing.
//! - A *pace* is the configured rate of a connection. It is checked once per chunk of input.
//! - *Memory.* All pending output of a shard is counted, a shared segment once
//!   (`Spares::held_bytes`). Above the shard's part of half of the machine's memory the connection
//!   with the longest backlog is cut, one per turn (`Engine::bound_memory`).
//! - *Slow consumers.* `Outbox::pending_bytes` is exact; a shared segment counts in full for each
//!   holder. Over `max_pending`, or with a batch in flight for longer than `write_deadline`, the
//!   connection is aborted, logged and counted.
//! - *Input.* A shard has 16 chunks of 64 KiB, recycled after use. Besides, each connection may
//!   hold the head of one incomplete operation (`Conn::partial`), up to `max_payload`; these are
//!   not counted against the bound of output.

#![forbid(unsafe_code)]

use std::collections::VecDeque;

use super::interest::Member;
use super::publish::Source;
use super::record::{Publisher, Record};
use super::{Action, ConnId, Engine, ShardId};

/// A lane with more than this waiting is full, in bytes.
const LANE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Longest wait of a client for subscribers that are behind, in nanoseconds.
const WAIT_NS_MAX: u64 = 1_000_000_000;
/// Longest wait of a route for subscribers that are behind, in nanoseconds.
const ROUTE_WAIT_NS_MAX: u64 = 10_000_000;
/// A subscriber counts as behind when more than this is pending for it, in bytes, however few
/// share the messages; …
const BACKLOG_BYTES_MAX: usize = 1024 * 1024;
/// … and not before this is, however many do.
const BACKLOG_BYTES_MIN: usize = 64 * 1024;
/// Pending output of all subscribers of a subject together at which they count as behind, in
/// bytes.
const BACKLOG_BYTES_ALL: usize = 64 * 1024 * 1024;

/// The way to one other shard.
#[derive(Debug, Default)]
pub(super) struct Lane {
    queue: VecDeque<Record>,
    bytes: usize,
    /// Records of that shard that wait for their turn. There are more than one only if whoever
    /// hands them in does not ask whether they are taken.
    arrived: VecDeque<Record>,
    /// What was ever queued.
    all_records: u64,
    all_bytes: u64,
    /// Local connections that are not read from until there is room.
    feeders: Vec<ConnId>,
    /// The last epoch in which something was staged.
    staged_epoch: u64,
    /// The last epoch for which a barrier was sent.
    barrier_epoch: u64,
    /// The last epoch that the other shard has settled.
    settled_epoch: u64,
}

impl Lane {
    /// A record of that shard has come.
    pub(super) fn push_arrived(&mut self, record: Record) {
        self.arrived.push_back(record);
    }
}

/// Counters of the lane to one other shard.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LaneFigures {
    /// Records sent since the start, those that wait included.
    pub records: u64,
    /// Bytes of those records, as the bound of lanes counts them.
    pub bytes: u64,
    /// Records that wait for room, or have not been taken out of it.
    pub waiting_records: usize,
    /// Bytes that wait for room.
    pub waiting_bytes: usize,
}

/// A publisher that waits for subscribers here to catch up.
#[derive(Debug)]
pub(super) struct Wait {
    publisher: Publisher,
    behind: Vec<ConnId>,
    /// Subscribers still behind.
    left: usize,
    /// It goes on when no more than this are.
    enough: usize,
}

impl Engine {
    /// The next record for another shard.
    pub fn pop_record(&mut self, to: ShardId) -> Option<Record> {
        let lane = &mut self.lanes[to.index()];
        let record = lane.queue.pop_front()?;
        lane.bytes -= record.cost_bytes();
        if lane.bytes <= LANE_BYTES_MAX / 2 && !lane.feeders.is_empty() {
            for id in std::mem::take(&mut lane.feeders) {
                self.release(id, |brakes| brakes.lanes.remove(to));
            }
        }
        Some(record)
    }

    /// Whether a record of another shard may be handed in.
    pub fn takes_records(&self, from: ShardId) -> bool {
        self.budget.takes_records() && self.lanes[from.index()].arrived.is_empty()
    }

    /// Whether records of other shards wait for their turn.
    pub(super) fn has_waiting_records(&self) -> bool {
        self.lanes.iter().any(|lane| !lane.arrived.is_empty())
    }

    /// Goes on with records that wait; what comes over the lanes is behind them.
    pub fn advance_records(&mut self) {
        for shard in self.others() {
            self.advance_records_of(shard);
        }
    }

    pub(super) fn advance_records_of(&mut self, from: ShardId) {
        while self.budget.takes_records()
            && let Some(record) = self.lanes[from.index()].arrived.pop_front()
        {
            if let Some(rest) = self.handle_record(from, record) {
                self.lanes[from.index()].arrived.push_front(rest);
                return;
            }
        }
    }

    /// Whether records wait for another shard.
    pub fn has_records(&self, to: ShardId) -> bool {
        !self.lanes[to.index()].queue.is_empty()
    }

    /// Whether more waits for another shard than is to.
    pub(super) fn has_full_lane(&self) -> bool {
        self.lanes.iter().any(|lane| lane.bytes > LANE_BYTES_MAX)
    }

    /// Counters of the lane to another shard, without the records in the ring itself.
    pub fn lane(&self, to: ShardId) -> LaneFigures {
        let lane = &self.lanes[to.index()];
        LaneFigures {
            records: lane.all_records,
            bytes: lane.all_bytes,
            waiting_records: lane.queue.len(),
            waiting_bytes: lane.bytes,
        }
    }

    /// Queues a record that no connection is to blame for.
    pub(super) fn push_record(&mut self, to: ShardId, record: Record) {
        let lane = &mut self.lanes[to.index()];
        let bytes = record.cost_bytes();
        lane.bytes += bytes;
        lane.all_records += 1;
        lane.all_bytes += bytes as u64;
        lane.queue.push_back(record);
    }

    /// Queues a run; the local connection that fed it is held back when the lane is full.
    pub(super) fn stage(&mut self, to: ShardId, record: Record) {
        let publisher = match &record {
            Record::Run(run) => run.publisher,
            _ => unreachable!("only runs are staged"),
        };
        self.push_record(to, record);
        if publisher.shard == self.shard {
            self.mark_staged(publisher.conn, to);
        }
        self.lanes[to.index()].staged_epoch = self.epoch;
    }

    /// Remembers that `id` has caused something on another shard in this turn.
    pub(super) fn mark_staged(&mut self, id: ConnId, to: ShardId) {
        let lane = &mut self.lanes[to.index()];
        lane.staged_epoch = self.epoch;
        let full = lane.bytes > LANE_BYTES_MAX;
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.staged_epoch = self.epoch;
        if full && !conn.brakes.lanes.contains(to) {
            lane.feeders.push(id);
            self.brake(id, |brakes| brakes.lanes.insert(to));
        }
    }

    /// Asks the other shards to settle what replies are held back for.
    pub(super) fn send_barriers(&mut self) {
        let epoch = self.epoch;
        let mut over = self.lanes.iter().any(|lane| lane.staged_epoch == epoch);
        if !self.held.is_empty() {
            for shard in self.others() {
                let lane = &mut self.lanes[shard.index()];
                if lane.barrier_epoch < lane.staged_epoch {
                    lane.barrier_epoch = epoch;
                    over = true;
                    self.push_record(shard, Record::Barrier { epoch });
                }
            }
            self.settle();
        }
        // What is staged behind a barrier belongs to a later epoch than the barrier.
        if over {
            self.epoch += 1;
        }
    }

    pub(super) fn on_settled(&mut self, from: ShardId, epoch: u64) {
        let lane = &mut self.lanes[from.index()];
        lane.settled_epoch = lane.settled_epoch.max(epoch);
        self.settle();
    }

    /// Lets out the replies whose epoch every shard has settled.
    pub(super) fn settle(&mut self) {
        let settled = |lane: &Lane| {
            if lane.staged_epoch <= lane.settled_epoch { u64::MAX } else { lane.settled_epoch }
        };
        let all = self.lanes.iter().map(settled).min().unwrap_or(u64::MAX);
        // A status comes before the replies that follow its request.
        let all = all.min(self.requests.decided_epoch());
        // The current epoch may still grow.
        self.settled_epoch = all.min(self.epoch - 1).max(self.settled_epoch);
        let settled_epoch = self.settled_epoch;
        let mut held = std::mem::take(&mut self.held);
        held.retain(|id| {
            let Some(conn) = self.conns.get_mut(*id) else { return false };
            if conn.outbox.release(settled_epoch) {
                conn.flush(&mut self.flushes, true);
            }
            conn.outbox.is_held()
        });
        self.held = held;
    }

    /// From which backlog on one of `members` equal subscribers is behind, in bytes.
    pub(super) fn backlog_level_bytes(&self, members: usize) -> usize {
        let share = BACKLOG_BYTES_ALL / members.max(1);
        let cut = self.settings.limits.pending_bytes_max / 2;
        share.clamp(BACKLOG_BYTES_MIN, BACKLOG_BYTES_MAX).min(cut)
    }

    /// Pauses a publisher until half of those of `members` that are behind have caught up.
    pub(super) fn wait_for<'m>(
        &mut self,
        &Source { publisher, routed, .. }: &Source,
        members: impl Iterator<Item = &'m Member>,
        level_bytes: usize,
    ) {
        if self.waiting.contains_key(&publisher) {
            return;
        }
        let key = self.next_wait;
        let mut behind = Vec::new();
        for member in members {
            let Some(conn) = self.conns.at_mut(member.conn) else { continue };
            let counts = conn.is_open()
                && !conn.slow
                && conn.outbox.pending_bytes() > level_bytes
                && conn.waited_by.last() != Some(&key);
            if counts {
                let relief = level_bytes / 2;
                conn.relief_bytes =
                    if conn.waited_by.is_empty() { relief } else { conn.relief_bytes.max(relief) };
                conn.waited_by.insert(key);
                behind.push(conn.id);
            }
        }
        if behind.is_empty() {
            return;
        }
        self.next_wait += 1;
        let (left, enough) = (behind.len(), behind.len() / 2);
        self.waits.insert(key, Wait { publisher, behind, left, enough });
        self.waiting.insert(publisher, key);
        let wait_ns = if routed { ROUTE_WAIT_NS_MAX } else { WAIT_NS_MAX };
        self.wait_deadlines.insert((self.now.saturating_add(wait_ns), key));
        if publisher.shard == self.shard {
            self.pause_for(publisher.conn, self.shard);
        } else {
            self.push_record(publisher.shard, Record::Pause { conn: publisher.conn });
        }
    }

    /// The backlog of `id` is now `pending` bytes: perhaps somebody has waited for that.
    pub(super) fn relieve(&mut self, id: ConnId, pending: usize) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        let is_own = conn.brakes.own;
        if pending <= conn.relief_bytes {
            conn.slow = false;
            for key in std::mem::take(&mut conn.waited_by) {
                let Some(wait) = self.waits.get_mut(&key) else { continue };
                wait.left -= 1;
                if wait.left <= wait.enough {
                    self.end_wait(key);
                }
            }
        }
        if is_own && pending <= self.backlog_level_bytes(1) / 2 {
            self.release(id, |brakes| brakes.own = false);
        }
    }

    pub(super) fn end_overdue_waits(&mut self) {
        while let Some(&(deadline, key)) = self.wait_deadlines.first() {
            let Some(wait) = self.waits.get(&key) else {
                self.wait_deadlines.pop_first();
                continue;
            };
            if deadline > self.now {
                return;
            }
            for id in &wait.behind {
                if let Some(conn) = self.conns.get_mut(*id)
                    && conn.waited_by.contains(&key)
                {
                    conn.slow = true;
                }
            }
            self.end_wait(key);
        }
    }

    fn end_wait(&mut self, key: u64) {
        let Some(wait) = self.waits.remove(&key) else { return };
        let Publisher { shard, conn } = wait.publisher;
        self.waiting.remove(&wait.publisher);
        for id in wait.behind {
            if let Some(conn) = self.conns.get_mut(id) {
                conn.waited_by.remove(&key);
            }
        }
        if shard == self.shard {
            self.resume_for(conn, self.shard);
        } else {
            self.push_record(shard, Record::Resume { conn });
        }
    }

    /// Those who get the messages of a local connection are behind on `shard`.
    pub(super) fn pause_for(&mut self, id: ConnId, shard: ShardId) {
        if let Some(conn) = self.conns.get_mut(id) {
            conn.stalls += 1;
            self.stats.stalls += 1;
        }
        self.brake(id, |brakes| brakes.behind.insert(shard));
    }

    /// They have caught up.
    pub(super) fn resume_for(&mut self, id: ConnId, shard: ShardId) {
        self.release(id, |brakes| brakes.behind.remove(shard));
    }

    /// Counts what has come from a connection, and reads on later if that was more than its rate.
    pub(super) fn keep_pace(&mut self, id: ConnId, bytes: usize) {
        // What comes over a route is that of many clients, whose own server paces them.
        let client = self.conns.get_mut(id).filter(|conn| conn.route.is_none());
        let Some(conn) = client else { return };
        let msgs = conn.traffic.in_msgs;
        let due = conn.pace.take(&self.settings.rates, bytes, msgs, self.now);
        if due > self.now && conn.is_open() {
            conn.timing.read_due = due;
            self.brake(id, |brakes| brakes.pace = true);
            self.rearm(id);
        }
    }

    /// Reads no more from a connection for one more reason.
    pub(super) fn brake(&mut self, id: ConnId, pull: impl FnOnce(&mut super::conn::Brakes)) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        let moving = !conn.brakes.any();
        pull(&mut conn.brakes);
        if moving {
            self.braked += 1;
            self.actions.push_back(Action::Pause(id));
        }
    }

    /// Lets one reason go; with the last, the connection is read from again.
    pub(super) fn release(&mut self, id: ConnId, ease: impl FnOnce(&mut super::conn::Brakes)) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if !conn.brakes.any() {
            return;
        }
        ease(&mut conn.brakes);
        let goes_on = conn.waits && !conn.in_line && !conn.brakes.holds();
        if !conn.brakes.any() {
            self.braked -= 1;
            if conn.is_open() {
                self.actions.push_back(Action::Resume(id));
            }
        }
        if goes_on {
            self.stand_in_line(id);
        }
    }

    /// Reads no more from a connection until it has taken what it has sent to itself: that is its
    /// own affair, and costs nobody else anything. `before` was pending for it before that.
    pub(super) fn wait_for_own(&mut self, id: ConnId, before: usize) {
        let Some(conn) = self.conns.get(id) else { return };
        let pending = conn.outbox.pending_bytes();
        if pending > before && pending > self.backlog_level_bytes(1) {
            self.brake(id, |brakes| brakes.own = true);
        }
    }

    /// Cuts the connection with the longest backlog when all output together takes too much
    /// memory; one a turn, for its memory comes back only then.
    pub(super) fn bound_memory(&mut self) {
        let (held, bytes_max) = (self.spares.held_bytes(), self.output_bytes_max());
        if held <= bytes_max {
            return;
        }
        let longest = self
            .conns
            .iter_mut()
            .filter(|conn| conn.is_open() && !conn.outbox.is_empty())
            .max_by_key(|conn| conn.outbox.pending_bytes());
        if let Some(conn) = longest {
            tracing::warn!(
                "{} - Slow Consumer Detected: {} bytes pending while the shard's output memory \
                 of {} is used up",
                conn.label(),
                conn.outbox.pending_bytes(),
                bytes_max
            );
            let id = conn.id;
            self.abort(id, super::Reason::SlowConsumerPending);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::engine::Origin;
    use crate::engine::run::{Run, parse_run};
    use crate::engine::{AccountId, Peer, Settings};

    const OTHER: ShardId = ShardId(1);

    /// A shard of two with connections in the first `conns` slots.
    fn shard_with(conns: u32) -> (Engine, Vec<ConnId>) {
        let settings = Settings::new(&Default::default(), &Default::default(), usize::MAX);
        let mut engine = Engine::new(ShardId(0), 2, Rc::new(settings), 1);
        let ids: Vec<_> = (0..conns).map(|slot| ConnId { slot, generation: 0 }).collect();
        for id in &ids {
            engine.open(*id, Peer { cid: 1, ip: "".into(), port: 1 }, true);
            engine.on_bytes(*id, b"CONNECT {\"verbose\":false}\r\n");
        }
        (engine, ids)
    }

    /// A connection of a shard that lets each send so much.
    fn paced(rates: crate::config::Rates) -> (Engine, ConnId) {
        let ping_interval_ms = u64::MAX;
        let options = crate::config::Options { rates, ping_interval_ms, ..Default::default() };
        let settings = Settings::new(&options, &Default::default(), usize::MAX);
        let mut engine = Engine::new(ShardId(0), 1, Rc::new(settings), 1);
        let id = ConnId { slot: 0, generation: 0 };
        engine.open(id, Peer { cid: 1, ip: "".into(), port: 1 }, true);
        (engine, id)
    }

    /// Whether the connection is read from after what the engine wanted last.
    fn is_read_after(engine: &mut Engine, id: ConnId, before: bool) -> bool {
        std::iter::from_fn(|| engine.next_action()).fold(before, |is_read, action| match action {
            Action::Pause(conn) if conn == id => false,
            Action::Resume(conn) if conn == id => true,
            _ => is_read,
        })
    }

    proptest::proptest! {
        /// A client that sends as fast as it is read from, in chunks of any size, gets through
        /// what its rates allow, and no less.
        #[test]
        fn a_connection_is_read_from_at_its_rate_however_it_cuts_what_it_sends(
            msgs_rate in 0_u64..50,
            bytes_rate in 0_u64..2000,
            chunks in proptest::collection::vec(1_usize..20, 1..60),
        ) {
            let (mut engine, id) = paced(crate::config::Rates {
                msgs_per_connection: msgs_rate,
                bytes_per_connection: bytes_rate,
                ..Default::default()
            });
            const SECOND: u64 = 1_000_000_000;
            let (mut now, mut bytes, mut msgs, mut is_read) = (0, 0, 0, true);
            let mut last = 0;
            for chunk in chunks {
                while !is_read {
                    let due = engine.next_deadline().expect("it is read from again some time");
                    now = now.max(due);
                    engine.set_now(now);
                    engine.tick();
                    is_read = is_read_after(&mut engine, id, is_read);
                }
                let wire = b"PUB a 0\r\n\r\n".repeat(chunk);
                engine.on_bytes(id, &wire);
                (bytes, msgs, last) = (bytes + wire.len() as u64, msgs + chunk as u64, now);
                proptest::prop_assert_eq!(engine.stats().in_msgs, msgs);
                is_read = is_read_after(&mut engine, id, is_read);
                // What had to have come evenly by now, a second's worth and this chunk aside.
                let least = |all: u64, one: u64, rate: u64| match rate {
                    0 => 0,
                    rate => (all - one) * SECOND / rate,
                };
                let needed = least(bytes, wire.len() as u64, bytes_rate)
                    .max(least(msgs, chunk as u64, msgs_rate));
                proptest::prop_assert!(now + SECOND + 1000 >= needed, "{now} {needed}");
            }
            proptest::prop_assert!(is_read || engine.next_deadline().is_some());
            proptest::prop_assert!(msgs_rate + bytes_rate > 0 || last == 0, "nobody is held back");
        }
    }

    #[test]
    fn a_reload_without_rates_reads_on_from_those_who_were_held_back() {
        let rates = crate::config::Rates { bytes_per_connection: 10, ..Default::default() };
        let (mut engine, id) = paced(rates);
        engine.on_bytes(id, &b"PUB a 0\r\n\r\n".repeat(100));
        assert!(!is_read_after(&mut engine, id, true));
        let settings = Settings::new(&Default::default(), &Default::default(), usize::MAX);
        engine.reload(Rc::new(settings));
        engine.set_now(u64::MAX / 2);
        engine.tick();
        assert!(is_read_after(&mut engine, id, false));
        engine.on_bytes(id, &b"PUB a 0\r\n\r\n".repeat(100));
        assert!(is_read_after(&mut engine, id, true));
    }

    fn turn(engine: &mut Engine, id: ConnId, bytes: &[u8]) {
        engine.on_bytes(id, bytes);
        engine.end_turn();
    }

    /// Takes everything staged for the other shard and says which barriers were among it.
    fn barriers(engine: &mut Engine) -> Vec<u64> {
        let records = std::iter::from_fn(|| engine.pop_record(OTHER));
        let epoch = |record| match record {
            Record::Barrier { epoch } => Some(epoch),
            _ => None,
        };
        records.filter_map(epoch).collect()
    }

    /// Everything a connection may be sent now.
    fn output(engine: &mut Engine, id: ConnId) -> String {
        let Some(batch) = engine.take_batch(id) else { return String::new() };
        let bytes = batch.iter().flat_map(|piece| piece.bytes()).copied().collect::<Vec<_>>();
        engine.on_sent(id, bytes.len(), Some(batch));
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_barrier_does_not_settle_what_was_staged_behind_it() {
        let (mut engine, ids) = shard_with(2);
        turn(&mut engine, ids[0], b"SUB a 1\r\n");
        turn(&mut engine, ids[0], b"PING\r\n");
        let [first] = barriers(&mut engine)[..] else { panic!("one barrier for one PING") };
        turn(&mut engine, ids[1], b"SUB b 1\r\nPING\r\n");
        engine.on_record(OTHER, Record::Settled { epoch: first });
        assert!(output(&mut engine, ids[0]).ends_with("PONG\r\n"));
        assert!(!output(&mut engine, ids[1]).ends_with("PONG\r\n"));
        let [second] = barriers(&mut engine)[..] else { panic!("a barrier of its own") };
        engine.on_record(OTHER, Record::Settled { epoch: second });
        assert_eq!(output(&mut engine, ids[1]), "PONG\r\n");
    }
    #[test]
    fn the_second_subscriber_of_a_filter_waits_for_what_the_first_one_announced() {
        let (mut engine, ids) = shard_with(2);
        turn(&mut engine, ids[0], b"SUB a 1\r\n");
        turn(&mut engine, ids[1], b"SUB a 1\r\nPING\r\n");
        assert!(!output(&mut engine, ids[1]).ends_with("PONG\r\n"));
        let [epoch] = barriers(&mut engine)[..] else { panic!("one barrier for one PING") };
        engine.on_record(OTHER, Record::Settled { epoch });
        assert_eq!(output(&mut engine, ids[1]), "PONG\r\n");
    }

    #[test]
    fn a_503_waits_until_its_subscription_holds_everywhere() {
        let (mut engine, ids) = shard_with(1);
        engine.on_bytes(ids[0], b"CONNECT {\"headers\":true,\"no_responders\":true}\r\n");
        turn(&mut engine, ids[0], b"SUB inbox 1\r\nPUB nobody inbox 0\r\n\r\n");
        assert!(!output(&mut engine, ids[0]).contains("503"));
        let [epoch] = barriers(&mut engine)[..] else { panic!("one barrier for one reply") };
        engine.on_record(OTHER, Record::Settled { epoch });
        assert!(output(&mut engine, ids[0]).contains("503"));
    }

    /// One shard whose first connection publishes `a` to all others, which have subscribed.
    fn fan_out(conns: u32, memory_bytes_max: usize) -> (Engine, Vec<ConnId>) {
        let settings = Settings::new(&Default::default(), &Default::default(), memory_bytes_max);
        let mut engine = Engine::new(ShardId(0), 1, Rc::new(settings), 1);
        let ids: Vec<_> = (0..conns).map(|slot| ConnId { slot, generation: 0 }).collect();
        for id in &ids {
            engine.open(*id, Peer { cid: 1, ip: "".into(), port: 1 }, true);
            engine.on_bytes(*id, b"CONNECT {\"verbose\":false,\"pedantic\":false}\r\n");
        }
        ids[1..].iter().for_each(|id| engine.on_bytes(*id, b"SUB a 1\r\n"));
        ids.iter().for_each(|id| drop(output(&mut engine, *id)));
        (engine, ids)
    }

    /// Publishes 600 kB, and says whether the publisher is paused or goes on, if either.
    fn publish_much(engine: &mut Engine, publisher: ConnId) -> Option<bool> {
        turn(engine, publisher, &much());
        paused(engine, publisher)
    }

    /// The same as if another server had sent it.
    fn route_much(engine: &mut Engine, route: ConnId) -> Option<bool> {
        let wire = much();
        let mut run = Run::default();
        assert_eq!(parse_run(&wire, &mut run), 0, "all of it is read");
        engine.publish_routed(route, AccountId::GLOBAL, (Origin::PEER, b""), &run);
        engine.end_turn();
        paused(engine, route)
    }

    fn much() -> Vec<u8> {
        let mut wire = b"PUB a 600000\r\n".to_vec();
        wire.resize(wire.len() + 600_000, b'x');
        wire.extend_from_slice(b"\r\n");
        wire
    }

    fn paused(engine: &mut Engine, publisher: ConnId) -> Option<bool> {
        let told = |action| match action {
            Action::Pause(id) if id == publisher => Some(true),
            Action::Resume(id) if id == publisher => Some(false),
            _ => None,
        };
        std::iter::from_fn(|| engine.next_action()).filter_map(told).last()
    }

    #[test]
    fn a_publisher_waits_while_most_subscribers_are_behind_but_not_for_one_of_them() {
        let (mut engine, ids) = fan_out(4, usize::MAX);
        // Two of three keep up.
        for _ in 0..3 {
            assert_eq!(publish_much(&mut engine, ids[0]), None);
            output(&mut engine, ids[1]);
            output(&mut engine, ids[2]);
        }
        publish_much(&mut engine, ids[0]);
        assert_eq!(publish_much(&mut engine, ids[0]), Some(true), "all three are behind");
        assert_eq!(engine.braked_conns(), 1);
        while !output(&mut engine, ids[1]).is_empty() {}
        assert_eq!(paused(&mut engine, ids[0]), None, "two of three still are");
        while !output(&mut engine, ids[2]).is_empty() {}
        assert_eq!(paused(&mut engine, ids[0]), Some(false));
        assert_eq!(engine.braked_conns(), 0);
    }

    #[test]
    fn a_paused_connection_that_ends_is_not_counted_as_paused_any_more() {
        let (mut engine, ids) = fan_out(2, usize::MAX);
        publish_much(&mut engine, ids[0]);
        assert_eq!(publish_much(&mut engine, ids[0]), Some(true));
        engine.on_ended(ids[0], true);
        while !output(&mut engine, ids[0]).is_empty() {}
        engine.on_closed(ids[0]);
        assert_eq!(engine.braked_conns(), 0);
        while !output(&mut engine, ids[1]).is_empty() {}
        assert_eq!(engine.braked_conns(), 0);
    }

    #[test]
    fn the_delay_of_a_batch_is_counted_from_the_arrival_of_its_oldest_cause() {
        let (mut engine, ids) = fan_out(2, usize::MAX);
        let before = engine.delays().clone();
        engine.set_now(1000);
        engine.set_arrived(400);
        turn(&mut engine, ids[0], b"PUB a 1\r\nx\r\n");
        engine.set_arrived(900);
        turn(&mut engine, ids[0], b"PUB a 1\r\ny\r\n");
        output(&mut engine, ids[1]);
        engine.depart(1400);
        let delays = engine.delays();
        assert_eq!(delays.count() - before.count(), 1, "one batch");
        assert_eq!(delays.sum() - before.sum(), 1000);
        engine.end_turn();
        engine.depart(1500);
        assert_eq!(engine.delays().count() - before.count(), 1, "it left only once");
    }

    #[test]
    fn a_run_of_another_shard_is_as_old_as_it_was_there() {
        let (mut near, publisher) = shard_with(1);
        let settings = Settings::new(&Default::default(), &Default::default(), usize::MAX);
        let mut far = Engine::new(OTHER, 2, Rc::new(settings), 1);
        let subscriber = ConnId { slot: 0, generation: 0 };
        far.open(subscriber, Peer { cid: 2, ip: "".into(), port: 1 }, true);
        turn(&mut far, subscriber, b"CONNECT {\"verbose\":false}\r\nSUB a 1\r\n");
        output(&mut far, subscriber);
        while let Some(record) = far.pop_record(ShardId(0)) {
            near.on_record(OTHER, record);
        }
        near.set_now(300);
        turn(&mut near, publisher[0], b"PUB a 1\r\nx\r\n");
        assert_eq!(near.lane(OTHER).waiting_records, 1);
        far.set_now(700);
        while let Some(record) = near.pop_record(OTHER) {
            far.on_record(ShardId(0), record);
        }
        far.end_turn();
        assert!(output(&mut far, subscriber).starts_with("MSG a"));
        far.depart(800);
        assert_eq!((far.delays().count(), far.delays().sum()), (1, 500));
        let lane = near.lane(OTHER);
        assert_eq!((lane.records, lane.waiting_records, lane.waiting_bytes), (1, 0, 0));
        assert!(lane.bytes > 0);
    }

    #[test]
    fn a_subscriber_that_was_waited_for_in_vain_is_waited_for_no_more() {
        let (mut engine, ids) = fan_out(2, usize::MAX);
        publish_much(&mut engine, ids[0]);
        assert_eq!(publish_much(&mut engine, ids[0]), Some(true));
        engine.set_now(WAIT_NS_MAX - 1);
        engine.tick();
        assert_eq!(paused(&mut engine, ids[0]), None);
        engine.set_now(WAIT_NS_MAX);
        engine.tick();
        assert_eq!(paused(&mut engine, ids[0]), Some(false), "it goes on after a second");
        assert_eq!(publish_much(&mut engine, ids[0]), None, "and does not wait again");
    }

    #[test]
    fn a_route_waits_for_a_slow_subscriber_ten_milliseconds_once() {
        let (mut engine, ids) = fan_out(2, usize::MAX);
        route_much(&mut engine, ids[0]);
        assert_eq!(route_much(&mut engine, ids[0]), Some(true));
        engine.set_now(ROUTE_WAIT_NS_MAX);
        engine.tick();
        assert_eq!(paused(&mut engine, ids[0]), Some(false));
        assert_eq!(route_much(&mut engine, ids[0]), None, "what it brings for others goes on");
    }

    #[test]
    fn a_route_that_waits_beside_a_client_goes_on_before_it() {
        let (mut engine, ids) = fan_out(3, usize::MAX);
        publish_much(&mut engine, ids[0]);
        assert_eq!(publish_much(&mut engine, ids[0]), Some(true));
        assert_eq!(route_much(&mut engine, ids[1]), Some(true));
        engine.set_now(ROUTE_WAIT_NS_MAX);
        engine.tick();
        assert_eq!(paused(&mut engine, ids[1]), Some(false));
        assert_eq!(engine.braked_conns(), 1, "the client waits on");
    }

    #[test]
    fn when_output_takes_too_much_memory_the_longest_backlog_is_cut() {
        let (mut engine, ids) = fan_out(3, 2_900_000);
        let cut = |engine: &mut Engine| {
            let close = |action| match action {
                Action::Close { conn, abort: true } => Some(conn),
                _ => None,
            };
            std::iter::from_fn(|| engine.next_action()).find_map(close)
        };
        for _ in 0..4 {
            publish_much(&mut engine, ids[0]);
            assert_eq!(engine.stats().slow_consumers, 0);
            output(&mut engine, ids[2]);
        }
        turn(&mut engine, ids[0], b"PUB a 500002\r\n");
        turn(&mut engine, ids[0], &[b'x'; 500_002]);
        turn(&mut engine, ids[0], b"\r\n");
        assert_eq!(cut(&mut engine), Some(ids[1]), "what is shared counts once");
        assert_eq!(engine.stats().slow_consumers, 1);
    }
}
