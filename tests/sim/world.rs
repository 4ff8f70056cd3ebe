//! Engines, lanes, sockets and clients, and a scheduler that lets them act in any order.

use std::collections::VecDeque;
use std::rc::Rc;

use shardcast::config::{Options, OverflowRule};
use shardcast::engine::{
    Action, ConnId, ConnSnapshot, Dropped, Engine, Identity, Peer, Record, Settings, ShardId, Stats,
};
use shardcast::segment::Piece;

use super::book::{Book, Closed, Config, Step};
use super::script::{FILTERS, Flavour, OVERFLOW, Op, Plan, QUEUES};

/// Records that a lane holds.
const LANE_RECORDS_MAX: usize = 2;
/// Rounds in which everybody may act until all must be at rest.
const ROUNDS_MAX: usize = 200_000;
/// Times the clock may have to be advanced for that.
const JUMPS_MAX: usize = 300;
const NS_PER_MS: u64 = 1_000_000;
/// How long a publisher may be held back when everything else is at rest.
const PAUSE_NS_MAX: u64 = 2_500 * NS_PER_MS;

/// What a run amounted to.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Outcome {
    pub(crate) messages: usize,
    pub(crate) deliveries: u64,
    /// Publishers that were held back and went on.
    pub(crate) resumes: u64,
    pub(crate) cuts: u64,
    pub(crate) statuses: usize,
    /// Messages that overflow policies have dropped.
    pub(crate) dropped: u64,
}

impl std::ops::AddAssign for Outcome {
    fn add_assign(&mut self, other: Self) {
        self.messages += other.messages;
        self.deliveries += other.deliveries;
        self.resumes += other.resumes;
        self.cuts += other.cuts;
        self.statuses += other.statuses;
        self.dropped += other.dropped;
    }
}

/// A batch that the kernel is sending.
struct Batch {
    pieces: Vec<Piece>,
    /// The first piece that is not wholly taken, and how much of it is.
    piece: usize,
    offset: usize,
    /// Taken, but the engine has not been told.
    unreported: usize,
    since: u64,
}

/// One connection's socket, both ends.
struct Socket {
    session: usize,
    shard: usize,
    id: ConnId,
    /// Bytes of the session that the engine has got.
    handed: usize,
    end_handed: bool,
    reading: bool,
    /// The turn in which reading was paused; since then it may have been at its end.
    paused_turn: Step,
    paused_ns: u64,
    /// Chunks that had already arrived when reading was paused.
    grace: u32,
    batch: Option<Batch>,
    /// Taken, as far as the engine knows.
    reported_bytes: usize,
    /// `reported_bytes` when the turn began: all that the engine need have known in it.
    reported_before: usize,
    to_client: Vec<u8>,
    stalled: bool,
    /// The server has closed it; the engine has not been told.
    closing: bool,
    /// The engine's part is over.
    gone: bool,
    pong_handed_ns: u64,
    pongs: Vec<usize>,
}

struct Shard {
    engine: Engine,
    /// The generation of each slot, and whether it is taken.
    slots: Vec<(u32, bool)>,
    weight: u32,
}

struct Client {
    socket: Option<usize>,
    ops: VecDeque<Op>,
    waits_for_pong: bool,
}

pub(crate) struct World {
    rng: fastrand::Rng,
    flavour: Flavour,
    now: u64,
    shards: Vec<Shard>,
    /// By sender, then receiver.
    lanes: Vec<Vec<VecDeque<Record>>>,
    sockets: Vec<Socket>,
    clients: Vec<Client>,
    book: Book,
    outcome: Outcome,
    trace: bool,
}

macro_rules! tell {
    ($world:expr, $($args:tt)*) => {
        if $world.trace {
            eprintln!("{:>7} {:>9}µs {}", $world.book.step, $world.now / 1000, format!($($args)*));
        }
    };
}

impl World {
    pub(crate) fn new(plan: &Plan, trace: bool) -> Self {
        let mut rng = fastrand::Rng::with_seed(plan.schedule);
        let count = usize::from(plan.shards);
        let settings = Rc::new(settings(&plan.flavour, usize::MAX));
        let shards = (0..plan.shards).map(|shard| Shard {
            engine: Engine::new(ShardId(shard), count, Rc::clone(&settings), rng.u64(..)),
            slots: Vec::new(),
            weight: 1,
        });
        let clients = plan.phases.first().map_or(0, Vec::len);
        let client = || Client { socket: None, ops: VecDeque::new(), waits_for_pong: false };
        Self {
            shards: shards.collect(),
            rng,
            flavour: plan.flavour,
            now: 0,
            lanes: (0..count).map(|_| (0..count).map(|_| VecDeque::new()).collect()).collect(),
            sockets: Vec::new(),
            clients: (0..clients).map(|_| client()).collect(),
            book: Book::new(plan.flavour.overflow),
            outcome: Outcome::default(),
            trace,
        }
    }

    /// Runs the whole plan.
    pub(crate) fn run(mut self, plan: Plan) -> Outcome {
        tell!(self, "{} shards, {:?}", plan.shards, plan.flavour);
        for phase in plan.phases {
            for (client, ops) in self.clients.iter_mut().zip(phase) {
                client.ops = ops;
            }
            self.stir();
            self.settle();
        }
        for socket in &mut self.sockets {
            socket.stalled = false;
        }
        self.settle();
        self.count_deliveries();
        tell!(self, "judging");
        self.book.judge();
        self.close_all();
        self.probe_memory();
        self.outcome.messages = self.book.messages.len();
        self.outcome.deliveries = self.book.deliveries;
        self.outcome.statuses = self.book.sessions.iter().map(|s| s.unanswered.len()).sum();
        self.outcome
    }

    /// Compares what the engines say of the connections that are open with what came there; for
    /// everything is at rest.
    fn count_deliveries(&mut self) {
        for shard in &self.shards {
            let page = shard.engine.conns_page(0);
            assert_eq!(page.next, None, "few connections are one page");
            for ConnSnapshot { cid, pending_bytes, traffic, dropped, .. } in page.entries {
                let s = usize::try_from(cid).unwrap_or(0) - 1;
                let session = &mut self.book.sessions[s];
                if session.reset || pending_bytes > 0 {
                    continue;
                }
                let came = session.got.len() as u64;
                let Dropped { newest, oldest, conflated } = dropped;
                assert_eq!(
                    traffic.out_msgs,
                    came + oldest + conflated,
                    "session {s} has got {came} messages, and {dropped:?}"
                );
                session.dropped = Some(dropped);
                self.outcome.dropped += newest + oldest + conflated;
            }
        }
    }

    /// Lets everybody act in a random order until the clients have nothing more to do.
    fn stir(&mut self) {
        let ops: usize = self.clients.iter().map(|client| client.ops.len()).sum();
        let patience = 200 + ops * 40;
        for at in 0..patience {
            if self.clients.iter().all(|client| client.ops.is_empty()) {
                return;
            }
            if at % 64 == 0 {
                for shard in &mut self.shards {
                    shard.weight = [0, 1, 1, 4, 16][self.rng.usize(..5)];
                }
            }
            match self.rng.u32(..100) {
                0..40 => {
                    let shard = self.pick_shard();
                    self.turn(shard, false);
                }
                40..70 => {
                    let client = self.rng.usize(..self.clients.len());
                    self.act(client);
                }
                70..97 if !self.sockets.is_empty() => {
                    let socket = self.rng.usize(..self.sockets.len());
                    self.move_bytes(socket, false);
                }
                _ => self.pass_time(),
            }
        }
    }

    fn pick_shard(&mut self) -> usize {
        let all: u32 = self.shards.iter().map(|shard| shard.weight).sum();
        if all == 0 {
            return self.rng.usize(..self.shards.len());
        }
        let mut pick = self.rng.u32(..all);
        for (at, shard) in self.shards.iter().enumerate() {
            match pick.checked_sub(shard.weight) {
                Some(rest) => pick = rest,
                None => return at,
            }
        }
        0
    }

    fn pass_time(&mut self) {
        let ms = match self.rng.u32(..40) {
            0 => 1_500,
            1..4 => 300,
            4..10 => 20,
            _ => 1,
        };
        self.now += self.rng.u64(..ms * NS_PER_MS);
    }

    /// Lets everybody act until nothing happens any more.
    fn settle(&mut self) {
        tell!(self, "settling");
        let (mut jumps, began_ns) = (0, self.now);
        for _ in 0..ROUNDS_MAX {
            let mut moved = false;
            for client in 0..self.clients.len() {
                while self.act(client) {
                    moved = true;
                }
            }
            for socket in 0..self.sockets.len() {
                moved |= self.move_bytes(socket, true);
            }
            for shard in 0..self.shards.len() {
                moved |= self.turn(shard, true);
            }
            if moved {
                continue;
            }
            let Some(unrest) = self.unrest() else { return self.at_rest() };
            let due = self.shards.iter().filter_map(|shard| shard.engine.next_deadline()).min();
            let Some(due) = due.filter(|_| jumps < JUMPS_MAX) else {
                panic!("nothing happens any more, but {unrest}");
            };
            jumps += 1;
            self.check_pauses(began_ns);
            assert!(due > self.now, "a deadline of the past is never met");
            tell!(self, "waiting until {due} because {unrest}");
            self.now = due;
        }
        panic!("it never comes to rest");
    }

    /// Nobody is held back for long, whoever reads and whoever does not.
    fn check_pauses(&self, began_ns: u64) {
        for socket in &self.sockets {
            let session = &self.book.sessions[socket.session];
            let is_open = !socket.gone && !socket.closing && session.speaks() && !session.stale;
            let since = socket.paused_ns.max(began_ns);
            assert!(
                !is_open || socket.reading || self.now - since <= PAUSE_NS_MAX,
                "session {} is held back and never goes on",
                socket.session
            );
        }
    }

    fn at_rest(&mut self) {
        tell!(self, "at rest");
        self.book.step += 1;
        self.book.rests.push(self.book.step);
        for (from, shard) in self.shards.iter().enumerate() {
            for to in (0..u8::try_from(self.shards.len()).unwrap_or(0)).map(ShardId) {
                assert!(!shard.engine.has_records(to), "shard {from} keeps records for {to:?}");
            }
        }
    }

    /// What still has to happen.
    fn unrest(&self) -> Option<String> {
        for socket in &self.sockets {
            let session = &self.book.sessions[socket.session];
            if !socket.gone && !socket.closing && session.last_op.is_some() {
                return Some(format!("session {} is not closed", socket.session));
            }
            if session.over || socket.gone || socket.closing || socket.stalled {
                continue;
            }
            if !socket.reading && !session.stale && session.last_op.is_none() {
                return Some(format!("session {} is paused", socket.session));
            }
            if let Some((reply, _)) = session.awaited.front() {
                return Some(format!("session {} waits for {reply:?}", socket.session));
            }
        }
        None
    }

    /// Lets a client do its next thing. False if it cannot.
    fn act(&mut self, client: usize) -> bool {
        let Some(op) = self.clients[client].ops.front().copied() else { return false };
        let current = self.clients[client].socket.map(|socket| self.sockets[socket].session);
        let speaks = current.is_some_and(|session| self.book.sessions[session].speaks());
        if self.clients[client].waits_for_pong && speaks {
            if current.is_some_and(|session| self.book.sessions[session].awaits_pong()) {
                return self.is_deaf(client) && self.skip(client);
            }
            self.clients[client].waits_for_pong = false;
        }
        if let Op::Meet { client: other } = op
            && other != client
            && let Some(socket) = self.clients[other].socket
            && self.book.sessions[self.sockets[socket].session].awaits_pong()
        {
            return self.is_deaf(other) && self.skip(client);
        }
        self.clients[client].ops.pop_front();
        let session = if speaks { current } else { None };
        let Some(session) = session.or_else(|| self.connect(client, op)) else { return true };
        tell!(self, "client {client} (session {session}) {op:?}");
        self.perform(client, session, op);
        true
    }

    /// Whether a client reads nothing, so that nobody should wait for what it gets.
    fn is_deaf(&self, client: usize) -> bool {
        self.clients[client].socket.is_some_and(|socket| self.sockets[socket].stalled)
    }

    fn skip(&mut self, client: usize) -> bool {
        self.clients[client].waits_for_pong = false;
        self.clients[client].ops.pop_front().is_some()
    }

    /// Opens a connection for a client that has none, unless all it wants is to end it.
    fn connect(&mut self, client: usize, op: Op) -> Option<usize> {
        if matches!(op, Op::HalfClose | Op::Reset | Op::Stall | Op::Unstall | Op::Garbage { .. }) {
            return None;
        }
        self.clients[client].waits_for_pong = false;
        let session = self.book.open();
        let shard = self.rng.usize(..self.shards.len());
        let slots = &mut self.shards[shard].slots;
        let slot = slots.iter().position(|(_, taken)| !taken).unwrap_or_else(|| {
            slots.push((0, false));
            slots.len() - 1
        });
        slots[slot].1 = true;
        let slot_number = u32::try_from(slot).unwrap_or(u32::MAX);
        let id = ConnId { slot: slot_number, generation: slots[slot].0 };
        let peer = Peer { cid: session as u64 + 1, ip: "127.0.0.1".into(), port: 1 };
        let engine = &mut self.shards[shard].engine;
        engine.set_now(self.now);
        engine.open(id, peer, true);
        self.clients[client].socket = Some(self.sockets.len());
        self.sockets.push(Socket::new(session, shard, id, self.now));
        tell!(self, "client {client} opens session {session} on shard {shard} as {id:?}");
        if self.rng.u32(..100) < 90 {
            let headers = self.rng.u32(..100) < 70;
            let config = Config {
                verbose: self.rng.u32(..100) < 20,
                pedantic: self.rng.u32(..100) < 10,
                echo: self.rng.u32(..100) < 70,
                headers,
                no_responders: headers && self.rng.u32(..100) < 60,
                protocol: self.rng.u8(..2),
            };
            tell!(self, "session {session} {config:?}");
            self.book.connect(session, config);
        }
        for _ in 0..self.rng.u32(..4) {
            let filter = self.rng.usize(..FILTERS.len());
            let queue = (self.rng.u32(..3) == 0).then(|| self.rng.usize(..QUEUES.len()));
            tell!(self, "session {session} subscribes to {}, {queue:?}", FILTERS[filter]);
            self.book.sub(session, Some(filter), queue, false);
        }
        self.drain_actions(shard);
        Some(session)
    }

    fn perform(&mut self, client: usize, s: usize, op: Op) {
        let socket = self.clients[client].socket;
        match op {
            Op::Sub { filter, queue, reuse } => self.book.sub(s, filter, queue, reuse),
            Op::SubTwice { which, filter } => self.book.sub_twice(s, which, filter),
            Op::SubInvalid { filter } => self.book.sub_invalid(s, filter),
            Op::Unsub { which } => self.book.unsub(s, which),
            Op::UnsubMax { which, max } => self.book.unsub_max(s, which, max),
            Op::UnsubUnknown => self.book.unsub_unknown(s),
            Op::Publish { subject, shape, count } => {
                let count = if self.flavour.heavy { 2 * count } else { count };
                for _ in 0..count {
                    let filler = self.filler();
                    self.book.publish(s, subject, shape, filler);
                }
            }
            Op::Ping => self.book.ping(s),
            Op::Barrier => {
                self.book.ping(s);
                self.clients[client].waits_for_pong = true;
            }
            Op::Connect { flags } => self.book.connect_again(s, flags),
            Op::Pong => self.book.pong(s),
            Op::Meet { .. } => {}
            Op::Stall => socket.into_iter().for_each(|socket| self.sockets[socket].stalled = true),
            Op::Unstall => {
                socket.into_iter().for_each(|socket| self.sockets[socket].stalled = false);
            }
            Op::HalfClose => self.book.half_close(s),
            Op::Reset => self.book.reset(s),
            Op::Garbage { which } => self.book.garbage(s, which),
        }
    }

    fn filler(&mut self) -> usize {
        if self.flavour.heavy {
            return self.rng.usize(..400_000);
        }
        match self.rng.u32(..20) {
            0 => self.rng.usize(..5_000),
            1..6 => self.rng.usize(..200),
            _ => self.rng.usize(..8),
        }
    }

    /// Moves bytes from the kernel to the client. False if there was nothing to do.
    fn move_bytes(&mut self, at: usize, all: bool) -> bool {
        let took = self.kernel_takes(at, all);
        let socket = &mut self.sockets[at];
        let session = socket.session;
        if self.book.sessions[session].reset || self.book.sessions[session].over {
            socket.to_client.clear();
            return took;
        }
        if socket.stalled && !(socket.gone || socket.closing) {
            return took;
        }
        let len = socket.to_client.len();
        let len = if all || len == 0 { len } else { self.rng.usize(..=len) };
        if len > 0 {
            let rest = socket.to_client.split_off(len);
            let bytes = std::mem::replace(&mut socket.to_client, rest);
            tell!(self, "session {session} reads {}", super::wire::show(&bytes));
            let heeded = self.book.hear(session, &bytes);
            if self.book.sessions[session].last_op.is_none() {
                for _ in 0..heeded.pings {
                    self.book.pong(session);
                    let end = self.book.sessions[session].out.len();
                    self.sockets[at].pongs.push(end);
                }
            }
            if heeded.stale {
                self.check_stale(at);
            }
        }
        let socket = &self.sockets[at];
        let ended = (socket.closing || socket.gone) && socket.to_client.is_empty();
        if ended {
            tell!(self, "session {session} sees the end");
            self.book.on_over(session);
        }
        took || len > 0 || ended
    }

    fn check_stale(&self, at: usize) {
        let silence = self.now - self.sockets[at].pong_handed_ns;
        let interval = self.flavour.ping_interval_ms * NS_PER_MS;
        let session = self.sockets[at].session;
        assert!(silence >= 2 * interval, "session {session} is called stale, but has answered");
    }

    fn kernel_takes(&mut self, at: usize, all: bool) -> bool {
        let socket = &mut self.sockets[at];
        if socket.stalled || socket.closing || self.book.sessions[socket.session].reset {
            return false;
        }
        let Some(batch) = &mut socket.batch else { return false };
        let mut left = if all { usize::MAX } else { self.rng.usize(1..2000) };
        if self.flavour.heavy && !all {
            left *= 200;
        }
        let mut taken = 0;
        while left > 0
            && let Some(piece) = batch.pieces.get(batch.piece)
        {
            let rest = &piece.bytes()[batch.offset..];
            let len = rest.len().min(left);
            socket.to_client.extend_from_slice(&rest[..len]);
            (taken, left, batch.offset) = (taken + len, left - len, batch.offset + len);
            if len == rest.len() {
                (batch.piece, batch.offset) = (batch.piece + 1, 0);
            }
        }
        batch.unreported += taken;
        taken > 0
    }

    /// One turn of a shard, if it has a reason for one. False if not.
    fn turn(&mut self, shard: usize, eager: bool) -> bool {
        let began = self.book.step;
        self.shards[shard].engine.set_now(self.now);
        let mut reason = false;
        for at in 0..self.sockets.len() {
            if self.sockets[at].shard == shard && !self.sockets[at].gone {
                self.sockets[at].reported_before = self.sockets[at].reported_bytes;
            }
        }
        for at in 0..self.sockets.len() {
            if self.sockets[at].shard == shard && !self.sockets[at].gone {
                reason |= self.complete(at, eager);
                reason |= self.hand_in(at, eager);
            }
        }
        reason |= self.take_records(shard, eager);
        let engine = &mut self.shards[shard].engine;
        reason |= engine.next_deadline().is_some_and(|due| due <= self.now);
        reason |= (0..).map(ShardId).zip(&self.lanes[shard]).any(|(to, lane)| {
            to.index() != shard && engine.has_records(to) && lane.len() < LANE_RECORDS_MAX
        });
        if !reason {
            return false;
        }
        engine.tick();
        let due = engine.next_deadline();
        assert!(due.is_none_or(|due| due > self.now), "what was due at {due:?} still is");
        engine.end_turn();
        self.carry_out(shard, began);
        // Memory may be given back after any turn, and nobody but the allocator notices.
        if self.now.is_multiple_of(3) {
            self.shards[shard].engine.shrink();
        }
        true
    }

    fn carry_out(&mut self, shard: usize, began: Step) {
        self.drain_actions_of(shard, began);
        let Self { shards, lanes, .. } = self;
        for (to, lane) in (0..).map(ShardId).zip(&mut lanes[shard]) {
            while to.index() != shard
                && lane.len() < LANE_RECORDS_MAX
                && let Some(record) = shards[shard].engine.pop_record(to)
            {
                lane.push_back(record);
            }
        }
        self.drain_actions_of(shard, began);
    }

    fn drain_actions(&mut self, shard: usize) {
        self.drain_actions_of(shard, self.book.step);
    }

    fn drain_actions_of(&mut self, shard: usize, began: Step) {
        while let Some(action) = self.shards[shard].engine.next_action() {
            let id = match action {
                Action::Flush(id) | Action::Pause(id) | Action::Resume(id) => id,
                Action::Close { conn, .. } => conn,
            };
            let is_it = |s: &Socket| s.shard == shard && s.id == id && !s.gone;
            let Some(at) = self.sockets.iter().position(is_it) else {
                panic!("{action:?} of shard {shard} is for nobody");
            };
            let socket = &mut self.sockets[at];
            if socket.closing {
                let late = matches!(action, Action::Flush(_) | Action::Pause(_));
                assert!(late, "{action:?} of shard {shard} comes behind the close");
                assert!(self.shards[shard].engine.take_batch(id).is_none(), "sent when closed");
                continue;
            }
            match action {
                Action::Flush(_) => self.flush(at),
                Action::Pause(_) => {
                    if std::mem::replace(&mut socket.reading, false) {
                        (socket.paused_turn, socket.paused_ns) = (began, self.now);
                    }
                    socket.grace = self.rng.u32(..3);
                    tell!(self, "session {} is paused", self.sockets[at].session);
                }
                Action::Resume(_) => {
                    assert!(!socket.reading, "{id:?} goes on, but was not paused");
                    socket.reading = true;
                    self.outcome.resumes += 1;
                    tell!(self, "session {} goes on", self.sockets[at].session);
                }
                Action::Close { abort, .. } => self.close(at, abort, began),
            }
        }
    }

    fn flush(&mut self, at: usize) {
        let socket = &mut self.sockets[at];
        let Some(pieces) = self.shards[socket.shard].engine.take_batch(socket.id) else { return };
        assert!(socket.batch.is_none(), "one batch in flight at a time");
        let bytes: usize = pieces.iter().map(|piece| piece.bytes().len()).sum();
        assert!(bytes > 0, "an empty batch would never complete");
        let limit = self.flavour.pending_bytes_max;
        assert!(bytes <= limit, "{bytes} bytes are pending, but {limit} are the limit");
        socket.batch = Some(Batch { pieces, piece: 0, offset: 0, unreported: 0, since: self.now });
    }

    fn close(&mut self, at: usize, abort: bool, began: Step) {
        let socket = &self.sockets[at];
        let s = socket.session;
        self.book.step += 1;
        tell!(self, "session {s} is closed, abort: {abort}");
        if abort {
            self.check_abort(at);
        } else {
            assert!(socket.batch.is_none(), "session {s} is closed over a batch in flight");
        }
        let session = &mut self.book.sessions[s];
        let socket = &mut self.sockets[at];
        let turn = if socket.reading { began } else { socket.paused_turn };
        session.closed = Some(Closed { at: self.book.step, turn, lossy: abort });
        socket.closing = true;
        if abort {
            let kept = self.rng.usize(..=socket.to_client.len());
            socket.to_client.truncate(kept);
        }
    }

    /// Only a connection that failed, that is at its end, or that is really slow is cut.
    fn check_abort(&mut self, at: usize) {
        let socket = &self.sockets[at];
        let session = &self.book.sessions[socket.session];
        if session.reset || session.last_op.is_some() {
            return;
        }
        let deadline = self.flavour.write_deadline_ms * NS_PER_MS;
        let late = socket.batch.as_ref().is_some_and(|batch| batch.since + deadline <= self.now);
        let pending = self.book.owed_bytes_max(socket.session) - socket.reported_before;
        let silence = self.now - socket.pong_handed_ns;
        let stale = silence >= 2 * self.flavour.ping_interval_ms * NS_PER_MS;
        assert!(
            late || stale || pending > self.flavour.pending_bytes_max,
            "session {} is cut, but has at most {pending} bytes pending and is not late",
            socket.session
        );
        self.outcome.cuts += 1;
    }

    /// Tells the engine what has become of a socket's output, and of the socket.
    fn complete(&mut self, at: usize, eager: bool) -> bool {
        if !eager && self.rng.bool() {
            return false;
        }
        let socket = &mut self.sockets[at];
        let shard = &mut self.shards[socket.shard];
        if socket.closing {
            shard.engine.take_home(socket.batch.take().map(|batch| batch.pieces));
            shard.engine.on_closed(socket.id);
            (socket.closing, socket.gone) = (false, true);
            let slot = &mut shard.slots[socket.id.slot as usize];
            *slot = (slot.0 + 1, false);
            return true;
        }
        let Some(batch) = &mut socket.batch else { return false };
        if self.book.sessions[socket.session].reset {
            let batch = socket.batch.take().map(|batch| batch.pieces);
            shard.engine.on_send_failed(socket.id, batch);
            return true;
        }
        let taken = std::mem::take(&mut batch.unreported);
        socket.reported_bytes += taken;
        if batch.piece == batch.pieces.len() {
            let batch = socket.batch.take().map(|batch| batch.pieces);
            shard.engine.on_sent(socket.id, taken, batch);
            return true;
        }
        if taken > 0 {
            shard.engine.on_sent(socket.id, taken, None);
        }
        taken > 0
    }

    /// Hands what a client has sent to its engine, in some pieces.
    fn hand_in(&mut self, at: usize, eager: bool) -> bool {
        let mut moved = false;
        let rounds = if eager { 16 } else { self.rng.u32(..4) };
        for _ in 0..rounds {
            let socket = &mut self.sockets[at];
            let session = &self.book.sessions[socket.session];
            let readable = socket.reading || socket.grace > 0;
            if !readable || socket.closing || socket.gone || socket.end_handed {
                break;
            }
            socket.grace = socket.grace.saturating_sub(1);
            let engine = &mut self.shards[socket.shard].engine;
            let rest = session.out.len() - socket.handed;
            let half_closed = session.last_op.is_some_and(|op| {
                op + 1 == session.ops.len() && session.ops[op].end == session.out.len()
            });
            if session.reset || (rest == 0 && half_closed) {
                socket.end_handed = true;
                engine.on_ended(socket.id, session.reset);
                tell!(self, "session {} has ended", self.sockets[at].session);
                return true;
            }
            if rest == 0 {
                break;
            }
            let len = match (self.flavour.cuts, self.rng.u32(..4)) {
                (0, 0..3) | (1, 0) => self.rng.usize(1..4).min(rest),
                (2, 0..3) => rest,
                _ => self.rng.usize(1..=rest),
            };
            let end = socket.handed + len;
            engine.on_bytes(socket.id, &session.out[socket.handed..end]);
            socket.handed = end;
            if socket.pongs.iter().any(|pong| *pong <= end) {
                socket.pongs.retain(|pong| *pong > end);
                // Behind its end the engine hears nothing any more.
                if socket.reading {
                    socket.pong_handed_ns = self.now;
                }
            }
            let session = socket.session;
            self.book.handed(session, end);
            moved = true;
        }
        moved
    }

    fn take_records(&mut self, shard: usize, eager: bool) -> bool {
        let mut moved = false;
        for from in 0..self.shards.len() {
            let count = if eager { 2 } else { self.rng.usize(..3) };
            for _ in 0..count {
                let Some(record) = self.lanes[from][shard].pop_front() else { break };
                let from = ShardId(u8::try_from(from).unwrap_or(u8::MAX));
                self.shards[shard].engine.on_record(from, record);
                moved = true;
            }
        }
        moved
    }

    /// Ends all connections in one way or another: nothing may remain of them.
    fn close_all(&mut self) {
        tell!(self, "closing");
        for at in 0..self.sockets.len() {
            let session = self.sockets[at].session;
            if self.book.sessions[session].speaks() {
                if self.rng.bool() {
                    self.book.half_close(session);
                } else {
                    self.book.reset(session);
                }
            }
        }
        self.settle();
        for (at, shard) in self.shards.iter().enumerate() {
            let engine = &shard.engine;
            assert_eq!(engine.open_conns(), 0, "connections remain on shard {at}");
            assert_eq!(engine.subscriptions(), 0, "subscriptions remain on shard {at}");
            assert_eq!(engine.filters(), 0, "interest remains on shard {at}");
        }
        let stats = self.shards.iter().map(|shard| shard.engine.stats());
        let cuts: u64 = stats.map(|stats: Stats| stats.slow_consumers).sum();
        assert!(cuts >= self.outcome.cuts.min(1) || cuts == 0, "a cut that nobody counted");
    }

    /// With no memory allowed for output, the next turn cuts somebody if any is still booked.
    fn probe_memory(&mut self) {
        let settings = Rc::new(settings(&self.flavour, 0));
        for shard in 0..self.shards.len() {
            let Shard { engine, slots, .. } = &mut self.shards[shard];
            let slot = u32::try_from(slots.len()).unwrap_or(u32::MAX);
            let id = ConnId { slot, generation: 0 };
            engine.open(id, Peer { cid: 1, ip: "127.0.0.1".into(), port: 1 }, true);
            assert_eq!(engine.next_action(), Some(Action::Flush(id)));
            let batch = engine.take_batch(id);
            let bytes = batch.iter().flatten().map(|piece| piece.bytes().len()).sum();
            engine.on_sent(id, bytes, batch);
            engine.reload(Rc::clone(&settings));
            engine.end_turn();
            assert_eq!(engine.next_action(), None, "shard {shard} has lost track of its memory");
        }
    }
}

impl Socket {
    fn new(session: usize, shard: usize, id: ConnId, now: u64) -> Self {
        Self {
            session,
            shard,
            id,
            handed: 0,
            end_handed: false,
            reading: true,
            paused_turn: 0,
            paused_ns: 0,
            grace: 0,
            batch: None,
            reported_bytes: 0,
            reported_before: 0,
            to_client: Vec::new(),
            stalled: false,
            closing: false,
            gone: false,
            pong_handed_ns: now,
            pongs: Vec::new(),
        }
    }
}

fn settings(flavour: &Flavour, memory_bytes_max: usize) -> Settings {
    let mut options = Options::default();
    options.limits.pending_bytes_max = flavour.pending_bytes_max;
    options.limits.payload_bytes_max = options.limits.payload_bytes_max.max(500_000);
    options.write_deadline_ms = flavour.write_deadline_ms;
    options.ping_interval_ms = flavour.ping_interval_ms;
    if flavour.overflow {
        let rules = OVERFLOW.iter().map(|(filter, kind, pending_bytes_max)| OverflowRule {
            filter: (*filter).to_owned(),
            kind: *kind,
            pending_bytes_max: *pending_bytes_max,
        });
        options.overflow = rules.collect();
    }
    Settings::new(&options, &Identity::default(), memory_bytes_max)
}
