//! The kernel and the clock of one shard: its loop is told what the world has decided, and what it
//! asks for is noted, for the world to decide what becomes of it.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use shardcast::disk::DiskOp;
use shardcast::engine::{ConnId, Transport};
use shardcast::host::Tier;
use shardcast::measure::Histogram;
use shardcast::shard::{Clock, Door, Io};
use shardcast::uring::{Batch, Closing, Counters, Event, ListenerId, SocketId, TurnWait, ZeroCopy};

use super::disk::{Disk, Owner};

/// Pieces of input that a shard can have at once, as many as a reactor has chunks.
const CHUNKS_MAX: usize = 16;

/// What a shard hears of its kernel; a socket is called what its connection will be.
pub(super) type Heard = Event<ConnId, Chunk>;

/// Received bytes.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) id: ConnId,
    pub(super) bytes: Vec<u8>,
}

/// What a shard has asked for.
#[derive(Debug)]
pub(super) enum Asked {
    Adopt(ConnId),
    Read(ConnId),
    Pause(ConnId),
    Send(ConnId, Batch),
    Close(ConnId, Closing),
    /// It is done with so many bytes.
    Recycle(ConnId, usize),
}

impl Asked {
    pub(super) fn id(&self) -> ConnId {
        match self {
            Self::Adopt(id) | Self::Read(id) | Self::Pause(id) => *id,
            Self::Send(id, _) | Self::Close(id, _) | Self::Recycle(id, _) => *id,
        }
    }
}

struct State {
    started: Instant,
    now: u64,
    events: Vec<Heard>,
    asked: Vec<Asked>,
    /// Chunks that the shard has.
    lent: usize,
    /// The disk, which other shards may have, too, and what this one is called there.
    disk: Rc<RefCell<Disk>>,
    owner: Owner,
    /// Another shard has woken this one, which does not know yet.
    is_woken: bool,
}

/// What a shard takes for its reactor and its clock, and for what wakes others.
#[derive(Clone)]
pub(super) struct Kernel(Rc<RefCell<State>>);

impl Kernel {
    /// `started` is the zero of its time; its disk makes choices by `seed`.
    pub(super) fn new(started: Instant, seed: u64) -> Self {
        Self::on(started, Rc::new(RefCell::new(Disk::new(seed))), 0)
    }

    /// The same with a disk that is there.
    pub(super) fn on(started: Instant, disk: Rc<RefCell<Disk>>, owner: Owner) -> Self {
        let (events, asked) = (Vec::new(), Vec::new());
        let state = State { started, now: 0, events, asked, lent: 0, disk, owner, is_woken: false };
        Self(Rc::new(RefCell::new(state)))
    }

    pub(super) fn is_woken(&self) -> bool {
        self.0.borrow().is_woken
    }

    /// How many more chunks the shard can be lent.
    pub(super) fn chunks_left(&self) -> usize {
        CHUNKS_MAX - self.0.borrow().lent
    }

    /// One operation on the disk is over, if any is under way.
    pub(super) fn finish_on_disk(&self) -> Option<Heard> {
        let state = self.0.borrow();
        let done = state.disk.borrow_mut().finish_one_of(state.owner)?;
        Some(Event::Disk(Box::new(done)))
    }

    /// The next turn is taken at this time and tells this.
    pub(super) fn prepare(&self, now: u64, events: Vec<Heard>) {
        let mut state = self.0.borrow_mut();
        state.now = now;
        let chunks = events.iter().filter(|event| matches!(event, Event::Received { .. }));
        state.lent += chunks.count();
        assert!(state.events.is_empty(), "the last turn was not taken");
        state.events = events;
    }

    pub(super) fn take_asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.0.borrow_mut().asked)
    }

    fn ask(&self, asked: Asked) {
        self.0.borrow_mut().asked.push(asked);
    }
}

impl Clock for Kernel {
    fn now(&mut self) -> Instant {
        let state = self.0.borrow();
        state.started + Duration::from_nanos(state.now)
    }
}

impl Io for Kernel {
    type Socket = ConnId;
    type Chunk = Chunk;
    type Waker = Kernel;

    fn turn(&mut self, _wait: TurnWait, events: &mut Vec<Heard>) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        if std::mem::take(&mut state.is_woken) {
            events.push(Event::Woken);
        }
        events.append(&mut state.events);
        Ok(())
    }

    fn listen(&mut self, _listener: ConnId) -> ListenerId {
        unreachable!("connections are given to the shards")
    }

    fn accept(&mut self, _listener: ListenerId) {}

    fn stop_listening(&mut self, _listener: ListenerId) {}

    fn adopt(&mut self, socket: ConnId, _zero_copy: ZeroCopy) -> SocketId {
        self.ask(Asked::Adopt(socket));
        SocketId { slot: socket.slot, generation: socket.generation }
    }

    fn read(&mut self, socket: SocketId) {
        self.ask(Asked::Read(conn_id(socket)));
    }

    fn pause(&mut self, socket: SocketId) {
        self.ask(Asked::Pause(conn_id(socket)));
    }

    fn send(&mut self, socket: SocketId, batch: Batch) {
        self.ask(Asked::Send(conn_id(socket), batch));
    }

    fn close(&mut self, socket: SocketId, how: Closing) {
        self.ask(Asked::Close(conn_id(socket), how));
    }

    fn disk(&mut self, op: DiskOp) {
        let state = self.0.borrow();
        state.disk.borrow_mut().begin_for(state.owner, op);
    }

    fn hurry(&mut self) {}

    fn bytes<'a>(&'a self, chunk: &'a Chunk) -> &'a [u8] {
        &chunk.bytes
    }

    fn recycle(&mut self, chunk: Chunk) {
        self.0.borrow_mut().lent -= 1;
        self.ask(Asked::Recycle(chunk.id, chunk.bytes.len()));
    }

    fn wake(&mut self, other: &Kernel) {
        other.0.borrow_mut().is_woken = true;
    }

    fn give_back_memory(&mut self) {}

    fn tier(&self) -> Tier {
        Tier::Base
    }

    fn counters(&self) -> Counters {
        let sent_bytes = Histogram::default();
        Counters { turns: 0, enters: 0, completions: 0, woken: 0, sent_bytes }
    }

    fn examine(_socket: &ConnId, _door: &Door) -> Option<(Box<str>, u16, Transport)> {
        None
    }

    fn send_at_once(_socket: &ConnId, _bytes: &[u8]) {}
}

fn conn_id(socket: SocketId) -> ConnId {
    ConnId { slot: socket.slot, generation: socket.generation }
}

pub(super) fn socket_id(conn: ConnId) -> SocketId {
    SocketId { slot: conn.slot, generation: conn.generation }
}
