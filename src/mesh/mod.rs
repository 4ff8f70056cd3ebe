//! Lanes between shards: one ring for each ordered pair of shards, and wake-ups.
//!
//! A shard stages records in its engine during a turn. At the turn's end they are published, as
//! many as the ring has room for, with one store for each lane, and each sleeping shard is woken at
//! most once. A full ring never blocks: the rest stays with the engine, and the shard that makes
//! room wakes the one that waits for it.
//!
//! Runs cross a lane in frames, all of a turn in few of them: no memory, counter or store is for
//! one message. A frame that has been read goes home by a ring beside the lane in the other
//! direction, on which nobody is woken: it is looked at when there is something for that shard
//! again.

#![forbid(unsafe_code)]

mod sleep;
/// The atomics of the handshake; in `tests/loom.rs` they are those of a model.
mod sync {
    pub(super) use std::sync::atomic::{AtomicU8, Ordering, fence};
}

use std::sync::Arc;

use rtrb::{Consumer, Producer, RingBuffer};

use crate::engine::records::lanes_of;
use crate::engine::{Engine, Record, RunFrame, ShardId};
pub use sleep::Sleep;

/// Records that a lane's ring holds; more wait in the sending engine.
pub const LANE_RECORDS_MAX: usize = 64;
/// Records taken from one lane in one turn, so that no neighbour starves the sockets.
pub const DRAIN_RECORDS_MAX: usize = 64;
/// Frames on their way home from one shard; those without room are freed where they were read.
const FRAMES_HOME_MAX: usize = 8;

/// The ends of a shard's lanes.
#[derive(Debug)]
pub struct Mesh {
    shard: ShardId,
    /// Producers by shard; none to the shard itself.
    outgoing: Vec<Option<Producer<Record>>>,
    incoming: Vec<Option<Consumer<Record>>>,
    /// Ways home of frames that came from each shard, and of those that went to it.
    homeward: Vec<Option<Producer<RunFrame>>>,
    coming_home: Vec<Option<Consumer<RunFrame>>>,
    sleeps: Arc<[Sleep]>,
    /// The lane that is drained first in the next turn.
    first: usize,
    /// Wake-ups of other shards by this one.
    rings: u64,
}

/// A receiver of the records of other shards.
pub trait Receiver {
    /// Whether the receiver takes another record of that shard in this turn.
    fn takes(&self, from: ShardId) -> bool;
    /// Takes one record of that shard.
    fn take(&mut self, from: ShardId, record: Record);
    /// Gives back a frame of that shard that has been read, if there is one.
    fn give_back(&mut self, _from: ShardId) -> Option<RunFrame> {
        None
    }
}

impl Receiver for Engine {
    fn takes(&self, from: ShardId) -> bool {
        self.view().takes_records(from)
    }

    fn take(&mut self, from: ShardId, record: Record) {
        self.on_record(from, record);
    }

    fn give_back(&mut self, from: ShardId) -> Option<RunFrame> {
        lanes_of(self).to[from.index()].pop_spent()
    }
}

/// The result of one look at all lanes.
#[derive(Debug, Default, Clone, Copy)]
pub struct Drained {
    /// Whether there were records.
    pub any: bool,
    /// Whether there are more records.
    pub more: bool,
}

impl Mesh {
    /// The meshes of `shards` shards, with lanes of `records` records between them.
    pub fn all(shards: u8, records: usize) -> Vec<Self> {
        let sleeps: Arc<[Sleep]> = (0..shards).map(|_| Sleep::default()).collect();
        let mut meshes: Vec<Self> = (0..shards)
            .map(|shard| Self {
                shard: ShardId(shard),
                outgoing: (0..shards).map(|_| None).collect(),
                incoming: (0..shards).map(|_| None).collect(),
                homeward: (0..shards).map(|_| None).collect(),
                coming_home: (0..shards).map(|_| None).collect(),
                sleeps: Arc::clone(&sleeps),
                first: 0,
                rings: 0,
            })
            .collect();
        for from in 0..usize::from(shards) {
            for to in (0..usize::from(shards)).filter(|to| *to != from) {
                let (producer, consumer) = RingBuffer::new(records);
                meshes[from].outgoing[to] = Some(producer);
                meshes[to].incoming[from] = Some(consumer);
                let (producer, consumer) = RingBuffer::new(FRAMES_HOME_MAX);
                meshes[to].homeward[from] = Some(producer);
                meshes[from].coming_home[to] = Some(consumer);
            }
        }
        meshes
    }

    /// Publishes the records that the engine has staged, as far as there is room. Calls `ring` for
    /// each shard that sleeps and has to be woken. Returns whether records had to stay behind.
    pub fn publish(&mut self, engine: &mut Engine, mut ring: impl FnMut(ShardId)) -> bool {
        let mut behind = false;
        for (to, lane) in (0..).map(ShardId).zip(&mut self.outgoing) {
            let Some(lane) = lane.as_mut().filter(|_| engine.has_records(to)) else { continue };
            if let Some(frames) = &mut self.coming_home[to.index()] {
                while let Ok(frame) = frames.pop() {
                    lanes_of(engine).spares.keep(frame);
                }
            }
            let room = lane.slots();
            if let Ok(chunk) = lane.write_chunk_uninit(room)
                && chunk.fill_from_iter(std::iter::from_fn(|| engine.pop_record(to))) > 0
                && self.sleeps[to.index()].must_be_rung()
            {
                self.rings += 1;
                ring(to);
            }
            behind |= engine.has_records(to);
        }
        behind
    }

    /// Hands records of each lane to `to`, a bounded number and no more than it takes. Calls `ring`
    /// for each shard that sleeps although it has more for this one.
    pub fn drain(&mut self, to: &mut impl Receiver, mut ring: impl FnMut(ShardId)) -> Drained {
        let mut drained = Drained::default();
        let lanes = self.incoming.len();
        // The first lane takes most, if there is not enough for all: each is the first in turn.
        self.first = (self.first + 1) % lanes.max(1);
        for at in (self.first..lanes).chain(0..self.first) {
            let from = ShardId(u8::try_from(at).unwrap_or(u8::MAX));
            let Some(lane) = &mut self.incoming[at] else { continue };
            if let Some(homeward) = &mut self.homeward[at] {
                while !homeward.is_full()
                    && let Some(frame) = to.give_back(from)
                {
                    // There is room for it.
                    let _ = homeward.push(frame);
                }
            }
            let waiting = lane.slots();
            let Ok(chunk) = lane.read_chunk(waiting.min(DRAIN_RECORDS_MAX)) else { continue };
            let mut records = chunk.into_iter();
            while to.takes(from)
                && let Some(record) = records.next()
            {
                to.take(from, record);
            }
            let taken = records.iterated();
            drop(records);
            drained.more |= waiting > taken;
            if taken == 0 {
                continue;
            }
            drained.any = true;
            // The sender may sleep with records that had no room.
            if self.sleeps[from.index()].must_be_rung_for_room() {
                self.rings += 1;
                ring(from);
            }
        }
        drained
    }

    /// Announces that this shard is about to sleep; with `behind` also room has to wake it. Returns
    /// `false` if there is work after all: then it must not sleep.
    pub fn fall_asleep(&mut self, engine: &Engine, behind: bool) -> bool {
        let Self { incoming, outgoing, sleeps, shard, .. } = self;
        let idle = || {
            let nothing = incoming.iter().flatten().all(|lane| lane.slots() == 0);
            let mut lanes = (0..).map(ShardId).zip(outgoing.iter());
            let no_room = lanes.all(|(to, lane)| {
                lane.as_ref().is_none_or(|lane| !engine.has_records(to) || lane.slots() == 0)
            });
            nothing && no_room
        };
        sleeps[shard.index()].fall_asleep(behind, idle)
    }

    /// Returns the count of wake-ups of other shards by this one.
    pub fn rings(&self) -> u64 {
        self.rings
    }

    /// Returns the records on the lane to another shard that it has not taken.
    pub fn waiting(&self, to: ShardId) -> usize {
        let lane = self.outgoing[to.index()].as_ref();
        lane.map_or(0, |lane| lane.buffer().capacity() - lane.slots())
    }

    /// Marks this shard as awake, so that no other shard wakes it.
    pub fn wake(&self) {
        self.sleeps[self.shard.index()].wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{ConnId, Peer, Settings};

    /// One of two shards.
    fn engine(shard: u8) -> Engine {
        let settings = Settings::new(&Default::default(), &Default::default(), usize::MAX);
        Engine::new(ShardId(shard), 2, std::rc::Rc::new(settings), 1)
    }

    #[test]
    fn records_come_out_in_the_order_they_went_in_and_none_is_lost_in_a_full_lane() {
        let mut meshes = Mesh::all(2, 2);
        let (mut second, mut first) = (meshes.pop().unwrap(), meshes.pop().unwrap());
        let mut engine = engine(0);
        // Each barrier asked of this engine is answered on the lane.
        for epoch in 1..=5 {
            engine.on_record(ShardId(1), Record::Barrier { epoch });
        }
        struct Seen(Vec<u64>);
        impl Receiver for Seen {
            fn takes(&self, _from: ShardId) -> bool {
                true
            }

            fn take(&mut self, _from: ShardId, record: Record) {
                let Record::Settled { epoch } = record else { panic!("{record:?}") };
                self.0.push(epoch);
            }
        }
        let mut seen = Seen(Vec::new());
        let mut behind = true;
        while behind {
            behind = first.publish(&mut engine, |_| unreachable!("nobody sleeps"));
            second.drain(&mut seen, |_| unreachable!("nobody sleeps"));
        }
        assert_eq!(seen.0, [1, 2, 3, 4, 5]);
    }

    #[test]
    fn a_frame_that_was_read_goes_home_and_nobody_is_woken_for_it() {
        let mut meshes = Mesh::all(2, 2);
        let (mut second, mut first) = (meshes.pop().unwrap(), meshes.pop().unwrap());
        let (mut near, mut far) = (engine(0), engine(1));
        let id = ConnId { slot: 0, generation: 0 };
        for engine in [&mut near, &mut far] {
            engine.open(id, Peer { cid: 1, ip: "".into(), port: 1 }, true);
        }
        far.on_bytes(id, b"SUB a 1\r\n");
        second.publish(&mut far, |_| unreachable!("nobody sleeps"));
        first.drain(&mut near, |_| unreachable!("nobody sleeps"));
        for (round, at_home) in [(1, 0), (2, 1)] {
            near.on_bytes(id, b"PUB a 1\r\nx\r\n");
            let home = first.coming_home[1].as_ref().unwrap();
            assert_eq!(home.slots(), at_home);
            first.publish(&mut near, |_| unreachable!("nobody sleeps"));
            assert!(first.coming_home[1].as_ref().unwrap().is_empty(), "it is to be filled again");
            assert!(first.fall_asleep(&near, false));
            second.drain(&mut far, |_| unreachable!("nobody waits for room"));
            assert_eq!(far.view().stats().out_msgs, round);
            second.drain(&mut far, |_| unreachable!("nobody waits for room"));
            first.wake();
        }
    }
}
