//! Lanes, barriers and back-pressure: shards stay in step, publishers do not outrun subscribers.
//!
//! Nothing here spins, and every rule that drops something names its victim.
//!
//! # Barriers
//!
//! A PONG or `+OK` promises that everything its client sent before is in force on every shard.
//! `Core::confirm` holds it back in the outbox (`Outbox::hold`) if its connection has staged
//! anything that is not settled. Input of the connection is handled meanwhile; output behind the
//! held reply waits behind it. `Core::send_barriers` ends the turn with a `Record::Barrier` on
//! each lane concerned, behind the records that it covers; the other shard answers with
//! `Record::Settled`. A connection that staged nothing waits for nothing.
//!
//! An *epoch* ends with a turn that staged something or sent a barrier; a barrier covers whole
//! epochs. It covers what the *client's* shard staged, not a queue message that the next shard
//! forwards.
//!
//! A client's own message that comes back to it promises as much as a PONG (`begin_echo`):
//! for some clients this is the only way to ask. News from other clients can be relied upon too:
//! records of a turn are on the lanes before any output of that turn leaves, and a turn takes
//! records before it takes input. The exception: a record that waits for room on a lane, or is not
//! taken in a turn, may be overtaken.
//!
//! # Back-pressure
//!
//! - A *lane* to another shard has 64 records (`LANE_RECORDS_MAX`), each a frame of many runs
//!   (`RunFrame`) or something else; the rest waits in the sending engine. Above 4 MiB waiting
//!   (`LANE_BYTES_MAX`) the local connections that feed the lane are paused (`Output::Pause`) until
//!   half of it is gone. Lanes are drained all the time, at most 64 records of each per turn
//!   (`DRAIN_RECORDS_MAX`), so two shards that fill each other go on. Records without a connection
//!   to blame (interest of a closing connection, answers) are always queued.
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
//!   with the longest backlog is cut, one per turn (`bound_memory`).
//! - *Slow consumers.* `Outbox::pending_bytes` is exact; a shared segment counts in full for each
//!   holder. Over `max_pending`, or with a batch in flight for longer than `write_deadline`, the
//!   connection is aborted, logged and counted.
//! - *Input.* A shard has 16 chunks of 64 KiB, recycled after use. Besides, each connection may
//!   hold the head of one incomplete operation (`Input`), up to `max_payload`; these are
//!   not counted against the bound of output.

use std::collections::{BTreeSet, HashMap};

use ahash::RandomState;

use crate::core::Core;
use crate::core::brakes::Brakes;
use crate::core::brakes::Stall;
use crate::core::close::Reason;
use crate::core::outputs::Output;
use crate::core::shard_message::Record;
use crate::core::timers::Deadline;
use crate::interest::ids::Publisher;
use crate::interest::ids::{ConnId, ShardId};
use crate::interest::targets::Member;

/// Longest wait of a client for subscribers that are behind, in nanoseconds.
pub(crate) const WAIT_NS_MAX: u64 = 1_000_000_000;

/// Longest wait of a route for subscribers that are behind, in nanoseconds.
pub(crate) const ROUTE_WAIT_NS_MAX: u64 = 10_000_000;

/// Pending output above which a subscriber counts as behind, in bytes, however few share the
/// messages.
const BACKLOG_BYTES_MAX: usize = 1024 * 1024;

/// Pending output up to which no subscriber counts as behind, in bytes, however many share the
/// messages.
const BACKLOG_BYTES_MIN: usize = 64 * 1024;

/// Pending output of all subscribers of a subject together at which they count as behind, in
/// bytes.
const BACKLOG_BYTES_ALL: usize = 64 * 1024 * 1024;

/// A publisher that waits for subscribers here to catch up.
#[derive(Debug)]
pub(crate) struct Wait {
    publisher: Publisher,
    behind: Vec<ConnId>,
    /// Subscribers still behind.
    left: usize,
    /// Subscribers still behind at which the publisher goes on.
    enough: usize,
}

/// Publishers that wait for subscribers of this shard.
#[derive(Debug)]
pub(crate) struct Waits {
    /// Open waits by number, in the order of their beginnings.
    pub(crate) open: HashMap<u64, Wait, RandomState>,
    pub(crate) by_publisher: HashMap<Publisher, u64, RandomState>,
    pub(crate) deadlines: BTreeSet<(u64, u64)>,
    pub(crate) next: u64,
    /// Connections that are not read from because of back-pressure.
    pub(crate) braked: usize,
}

impl Waits {
    pub(crate) fn new(hasher: &RandomState) -> Self {
        Self {
            open: HashMap::with_hasher(hasher.clone()),
            by_publisher: HashMap::with_hasher(hasher.clone()),
            deadlines: BTreeSet::new(),
            next: 0,
            braked: 0,
        }
    }
}

impl Core {
    /// Returns the backlog above which one of `members` equal subscribers is behind, in bytes.
    pub(crate) fn backlog_level_bytes(&self, members: usize) -> usize {
        let cut = self.settings.limits.pending_bytes_max / 2;
        // Most runs go to few, and dividing takes as long as much else.
        if members <= BACKLOG_BYTES_ALL / BACKLOG_BYTES_MAX {
            return BACKLOG_BYTES_MAX.min(cut);
        }
        (BACKLOG_BYTES_ALL / members).clamp(BACKLOG_BYTES_MIN, BACKLOG_BYTES_MAX).min(cut)
    }

    /// Pauses a publisher until half of those of `members` that are behind have caught up, for no
    /// longer than `wait_ns`.
    pub(crate) fn wait_for<'m>(
        &mut self,
        publisher: Publisher,
        members: impl Iterator<Item = &'m Member>,
        level_bytes: usize,
        wait_ns: u64,
    ) {
        if self.waits.by_publisher.contains_key(&publisher) {
            return;
        }
        let key = self.waits.next;
        let mut behind = Vec::new();
        for member in members {
            let Some(conn) = self.conns.at_mut(member.conn) else { continue };
            let is_behind = conn.is_open() && conn.outbox.pending_bytes() > level_bytes;
            if is_behind && conn.lag.join(key, level_bytes) {
                behind.push(conn.id);
            }
        }
        if behind.is_empty() {
            return;
        }
        self.waits.next += 1;
        let (left, enough) = (behind.len(), behind.len() / 2);
        self.waits.open.insert(key, Wait { publisher, behind, left, enough });
        self.waits.by_publisher.insert(publisher, key);
        self.waits.deadlines.insert((self.times.now.saturating_add(wait_ns), key));
        if publisher.shard == self.shard {
            pause_for(self, publisher.conn, self.shard, Stall::Receivers);
        } else {
            self.push_record(
                publisher.shard,
                Record::Pause { conn: publisher.conn, why: Stall::Receivers },
            );
        }
    }

    /// Takes a backlog of `id` of `pending` bytes, with which it may have caught up: waits for it
    /// may end.
    pub(crate) fn relieve(&mut self, id: ConnId, pending: usize) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        let is_own = conn.input.brakes.own;
        for key in conn.lag.catch_up(pending) {
            let Some(wait) = self.waits.open.get_mut(&key) else { continue };
            wait.left -= 1;
            if wait.left <= wait.enough {
                self.end_wait(key);
            }
        }
        if is_own && pending <= self.backlog_level_bytes(1) / 2 {
            self.release(id, |brakes| brakes.own = false);
        }
    }

    fn end_wait(&mut self, key: u64) {
        let Some(wait) = self.waits.open.remove(&key) else { return };
        let Publisher { shard, conn } = wait.publisher;
        self.waits.by_publisher.remove(&wait.publisher);
        for id in wait.behind {
            if let Some(conn) = self.conns.get_mut(id) {
                conn.lag.leave(key);
            }
        }
        if shard == self.shard {
            resume_for(self, conn, self.shard, Stall::Receivers);
        } else {
            self.push_record(shard, Record::Resume { conn, why: Stall::Receivers });
        }
    }

    /// Adds a reason not to read from a connection; with the first, reading stops.
    pub(crate) fn brake(&mut self, id: ConnId, pull: impl FnOnce(&mut Brakes)) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        let moving = !conn.input.brakes.any();
        pull(&mut conn.input.brakes);
        if moving {
            self.waits.braked += 1;
            self.out.push(Output::Pause(id));
        }
    }

    /// Removes a reason not to read from a connection; with the last, it is read from again.
    pub(crate) fn release(&mut self, id: ConnId, ease: impl FnOnce(&mut Brakes)) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if !conn.input.brakes.any() {
            return;
        }
        ease(&mut conn.input.brakes);
        let goes_on = conn.input.wants_place();
        if !conn.input.brakes.any() {
            self.waits.braked -= 1;
            if conn.is_open() {
                self.out.push(Output::Resume(id));
            }
        }
        if goes_on {
            self.stand_in_line(id);
        }
    }

    /// Returns the bound of this shard's output, in bytes.
    pub(crate) fn output_bytes_max(&self) -> usize {
        let half = self.settings.memory_bytes_max;
        let remote = self.links.remote_bytes.total() / self.lanes.to.len().max(1);
        half.min(half.saturating_mul(2).saturating_sub(remote).max(half / 2))
    }
}

/// Pauses a local connection for a reason on `shard`.
pub(crate) fn pause_for(core: &mut Core, id: ConnId, shard: ShardId, why: Stall) {
    if why == Stall::Receivers {
        core.monitor.stats.stalls += u64::from(core.conns.get(id).is_some());
    }
    core.brake(id, |brakes| brakes.stall(shard, why));
}

/// Resumes a local connection: the reason on `shard` is gone.
pub(crate) fn resume_for(core: &mut Core, id: ConnId, shard: ShardId, why: Stall) {
    core.release(id, |brakes| brakes.end_stall(shard, why));
}

/// Pauses the publisher of messages for which a log of this shard has no room.
pub(crate) fn pause_for_log(core: &mut Core, publisher: Publisher) {
    let (conn, why) = (publisher.conn, Stall::Log);
    if publisher.shard == core.shard {
        pause_for(core, conn, publisher.shard, why);
    } else {
        core.push_record(publisher.shard, Record::Pause { conn, why });
    }
}

/// Resumes a publisher that [`pause_for_log`] has paused.
pub(crate) fn resume_for_log(core: &mut Core, publisher: Publisher) {
    let (conn, why) = (publisher.conn, Stall::Log);
    if publisher.shard == core.shard {
        resume_for(core, conn, publisher.shard, why);
    } else {
        core.push_record(publisher.shard, Record::Resume { conn, why });
    }
}

/// Pauses a connection until it has taken its own messages: no other connection is affected.
/// `before` was pending for it before them.
pub(crate) fn wait_for_own(core: &mut Core, id: ConnId, before: usize) {
    let Some(conn) = core.conns.get(id) else { return };
    let pending = conn.outbox.pending_bytes();
    if pending > before && pending > core.backlog_level_bytes(1) {
        core.brake(id, |brakes| brakes.own = true);
    }
}

/// Cuts the connection with the longest backlog when all output together takes too much
/// memory; one a turn, for its memory comes back only then.
pub(crate) fn bound_memory(core: &mut Core) {
    let (held, bytes_max) = (core.spares.held_bytes(), core.output_bytes_max());
    if held <= bytes_max {
        return;
    }
    let longest = core
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
        core.abort(id, Reason::SlowConsumerPending);
    }
}

/// Counts input of a connection, and delays its reading if that was more than its rate.
pub(crate) fn keep_pace(core: &mut Core, id: ConnId, bytes: usize) {
    // Input of a route is that of many clients, paced by their own server.
    let client = core.conns.get_mut(id).filter(|conn| conn.link.is_none());
    let Some(conn) = client else { return };
    let msgs = conn.traffic.in_msgs;
    let due = conn.input.pace.take(&core.settings.rates, bytes, msgs, core.times.now);
    if due > core.times.now && conn.is_open() {
        conn.deadlines.arm(Deadline::Read, due);
        core.brake(id, |brakes| brakes.pace = true);
        core.rearm(id);
    }
}

pub(crate) fn end_overdue_waits(core: &mut Core) {
    while let Some(&(deadline, key)) = core.waits.deadlines.first() {
        let Some(wait) = core.waits.open.get(&key) else {
            core.waits.deadlines.pop_first();
            continue;
        };
        if deadline > core.times.now {
            return;
        }
        for id in &wait.behind {
            if let Some(conn) = core.conns.get_mut(*id) {
                conn.lag.give_up(key);
            }
        }
        core.end_wait(key);
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::delivery::publish::{self, NamedGroups};
    use crate::engine::{AccountId, Engine, Peer, Settings};
    use crate::interest::ids::Origin;
    use crate::run::Run;

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

    /// A connection of a shard with these rates for each connection.
    fn paced(rates: crate::config::Rates) -> (Engine, ConnId) {
        let mut options = crate::config::Options { rates, ..Default::default() };
        options.timeouts.ping_interval_ms = u64::MAX;
        let settings = Settings::new(&options, &Default::default(), usize::MAX);
        let mut engine = Engine::new(ShardId(0), 1, Rc::new(settings), 1);
        let id = ConnId { slot: 0, generation: 0 };
        engine.open(id, Peer { cid: 1, ip: "".into(), port: 1 }, true);
        (engine, id)
    }

    /// Whether the connection is read from after the engine's last outputs.
    fn is_read_after(engine: &mut Engine, id: ConnId, before: bool) -> bool {
        std::iter::from_fn(|| engine.next_output()).fold(before, |is_read, action| match action {
            Output::Pause(conn) if conn == id => false,
            Output::Resume(conn) if conn == id => true,
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
                proptest::prop_assert_eq!(engine.view().stats().in_msgs, msgs);
                is_read = is_read_after(&mut engine, id, is_read);
                // The time at an even rate, but for one second's worth and this chunk.
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

    /// Takes all records staged for the other shard; returns the epochs of the barriers among them.
    fn barriers(engine: &mut Engine) -> Vec<u64> {
        let records = std::iter::from_fn(|| engine.pop_record(OTHER));
        let epoch = |record| match record {
            Record::Barrier { epoch } => Some(epoch),
            _ => None,
        };
        records.filter_map(epoch).collect()
    }

    /// Returns the output of a connection.
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

    /// Publishes 600 kB; returns whether the publisher is paused or goes on, if either.
    fn publish_much(engine: &mut Engine, publisher: ConnId) -> Option<bool> {
        turn(engine, publisher, &much());
        paused(engine, publisher)
    }

    /// Publishes 600 kB as if another server had sent it.
    fn route_much(engine: &mut Engine, route: ConnId) -> Option<bool> {
        let wire = much();
        publish::publish_routed(
            &mut engine.core,
            route,
            AccountId::GLOBAL,
            NamedGroups { by: Origin::PEER, names: b"" },
            &Run::read(&wire),
        );
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
            Output::Pause(id) if id == publisher => Some(true),
            Output::Resume(id) if id == publisher => Some(false),
            _ => None,
        };
        std::iter::from_fn(|| engine.next_output()).filter_map(told).last()
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
        assert_eq!(engine.view().braked_conns(), 1);
        while !output(&mut engine, ids[1]).is_empty() {}
        assert_eq!(paused(&mut engine, ids[0]), None, "two of three still are");
        while !output(&mut engine, ids[2]).is_empty() {}
        assert_eq!(paused(&mut engine, ids[0]), Some(false));
        assert_eq!(engine.view().braked_conns(), 0);
    }

    #[test]
    fn a_paused_connection_that_ends_is_not_counted_as_paused_any_more() {
        let (mut engine, ids) = fan_out(2, usize::MAX);
        publish_much(&mut engine, ids[0]);
        assert_eq!(publish_much(&mut engine, ids[0]), Some(true));
        engine.on_ended(ids[0], true);
        while !output(&mut engine, ids[0]).is_empty() {}
        engine.on_closed(ids[0], None);
        assert_eq!(engine.view().braked_conns(), 0);
        while !output(&mut engine, ids[1]).is_empty() {}
        assert_eq!(engine.view().braked_conns(), 0);
    }

    #[test]
    fn the_delay_of_a_batch_is_counted_from_the_arrival_of_its_oldest_cause() {
        let (mut engine, ids) = fan_out(2, usize::MAX);
        let before = engine.view().delays().clone();
        engine.set_now(1000);
        engine.set_arrived(400);
        turn(&mut engine, ids[0], b"PUB a 1\r\nx\r\n");
        engine.set_arrived(900);
        turn(&mut engine, ids[0], b"PUB a 1\r\ny\r\n");
        output(&mut engine, ids[1]);
        engine.depart(1400);
        let delays = engine.view().delays();
        assert_eq!(delays.count() - before.count(), 1, "one batch");
        assert_eq!(delays.sum() - before.sum(), 1000);
        engine.end_turn();
        engine.depart(1500);
        assert_eq!(engine.view().delays().count() - before.count(), 1, "it left only once");
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
        assert_eq!(near.view().lane(OTHER).waiting_records, 1);
        far.set_now(700);
        while let Some(record) = near.pop_record(OTHER) {
            far.on_record(ShardId(0), record);
        }
        far.end_turn();
        assert!(output(&mut far, subscriber).starts_with("MSG a"));
        far.depart(800);
        assert_eq!((far.view().delays().count(), far.view().delays().sum()), (1, 500));
        let lane = near.view().lane(OTHER);
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
        assert_eq!(engine.view().braked_conns(), 1, "the client waits on");
    }

    #[test]
    fn when_output_takes_too_much_memory_the_longest_backlog_is_cut() {
        let (mut engine, ids) = fan_out(3, 2_900_000);
        let cut = |engine: &mut Engine| {
            let close = |action| match action {
                Output::Close { conn, abort: true, .. } => Some(conn),
                _ => None,
            };
            std::iter::from_fn(|| engine.next_output()).find_map(close)
        };
        for _ in 0..4 {
            publish_much(&mut engine, ids[0]);
            assert_eq!(engine.view().stats().slow_consumers.total(), 0);
            output(&mut engine, ids[2]);
        }
        turn(&mut engine, ids[0], b"PUB a 500002\r\n");
        turn(&mut engine, ids[0], &[b'x'; 500_002]);
        turn(&mut engine, ids[0], b"\r\n");
        assert_eq!(cut(&mut engine), Some(ids[1]), "what is shared counts once");
        assert_eq!(engine.view().stats().slow_consumers.total(), 1);
    }
}
