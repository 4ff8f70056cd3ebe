//! Clients' connections: bytes between engines and clients, and how each of them ends.

use shardcast::engine::ConnId;
use shardcast::uring::Event;

use super::book::{Closed, Step};
use super::kernel::{Asked, Chunk, Heard, socket_id};
use super::pipe::Pipe;
use super::shards::{Shard, TIGHT_BYTES_MAX};
use super::world::{NS_PER_MS, World, tell};

/// One client's connection, both ends.
pub(super) struct Socket {
    pub(super) session: usize,
    pub(super) pipe: Pipe,
    /// Bytes of the session that the shard has got.
    received: usize,
    /// The same of the engine.
    pub(super) handed: usize,
    /// The turn in which reading was paused; since then it may have been at its end.
    pub(super) paused_turn: Step,
    pub(super) paused_ns: u64,
    /// What was reported when the turn began: all that the engine need have known in it.
    pub(super) reported_before: usize,
    pong_handed_ns: u64,
    /// For how long it had said nothing when its shard called somebody stale, at most: what it
    /// says afterwards comes too late.
    silence_ns: u64,
    /// What it could have pending when its shard called it stale. That makes an end of the
    /// connection: all of it still comes, whatever later rules say.
    pub(super) stale_bytes_max: Option<usize>,
    pongs: Vec<usize>,
}

impl Socket {
    pub(super) fn new(session: usize, shard: usize, id: ConnId, now: u64) -> Self {
        Self {
            session,
            pipe: Pipe::new(shard, id),
            received: 0,
            handed: 0,
            paused_turn: 0,
            paused_ns: 0,
            reported_before: 0,
            pong_handed_ns: now,
            silence_ns: 0,
            stale_bytes_max: None,
            pongs: Vec::new(),
        }
    }
}

impl World {
    /// Moves bytes from the kernel to the client. False if there was nothing to do.
    pub(super) fn move_bytes(&mut self, at: usize, all: bool) -> bool {
        let took = self.kernel_takes(at, all);
        let Socket { session, pipe, .. } = &mut self.sockets[at];
        let session = *session;
        if self.book.sessions[session].reset || self.book.sessions[session].over {
            pipe.sent.clear();
            return took;
        }
        if pipe.stalled && pipe.is_open() {
            return took;
        }
        let len = pipe.sent.len();
        let len = if all || len == 0 { len } else { self.rng.usize(..=len) };
        if len > 0 {
            let rest = pipe.sent.split_off(len);
            let bytes = std::mem::replace(&mut pipe.sent, rest);
            tell!(self, "session {session} reads {}", super::wire::show(&bytes));
            let heeded = self.book.hear(session, &bytes);
            for _ in 0..heeded.pings {
                if self.book.sessions[session].speaks() {
                    self.book.pong(session);
                    let end = self.book.sessions[session].out.len();
                    self.sockets[at].pongs.push(end);
                }
            }
            if heeded.stale {
                self.check_stale(at);
            }
        }
        let pipe = &self.sockets[at].pipe;
        let ended = !pipe.is_open() && pipe.sent.is_empty();
        if ended {
            tell!(self, "session {session} sees the end");
            self.book.on_over(session);
        }
        took || len > 0 || ended
    }

    fn check_stale(&self, at: usize) {
        let Socket { session, silence_ns, stale_bytes_max, .. } = self.sockets[at];
        let interval = self.flavour.ping_interval_ms * NS_PER_MS;
        assert!(silence_ns >= 2 * interval, "session {session} is called stale, but has answered");
        assert!(stale_bytes_max.is_some(), "session {session} is called stale, but still read");
    }

    /// A shard has called somebody stale in this turn: whoever it stops to read from, after as
    /// long a silence.
    pub(super) fn note_stale(&mut self, shard: usize, asked: &[Asked]) {
        let interval = self.flavour.ping_interval_ms * NS_PER_MS;
        let bytes_max = self.pending_bytes_max(shard);
        for socket in self.sockets.iter_mut().filter(|socket| socket.pipe.shard == shard) {
            socket.silence_ns = socket.silence_ns.max(self.now - socket.pong_handed_ns);
            let is_it = |asked: &Asked| matches!(asked, Asked::Pause(id) if *id == socket.pipe.id);
            if socket.silence_ns >= 2 * interval && asked.iter().any(is_it) {
                socket.stale_bytes_max.get_or_insert(bytes_max);
            }
        }
    }

    fn kernel_takes(&mut self, at: usize, all: bool) -> bool {
        let Socket { session, pipe, .. } = &mut self.sockets[at];
        if pipe.stalled || pipe.closing || self.book.sessions[*session].reset {
            return false;
        }
        if pipe.batch.is_none() {
            return false;
        }
        let mut left = if all { usize::MAX } else { self.rng.usize(1..2000) };
        if self.flavour.heavy && !all {
            left *= 200;
        }
        pipe.take(left)
    }

    /// The server closes a connection in a turn that began at `began`.
    pub(super) fn close(&mut self, at: usize, abort: bool, began: Step) {
        let socket = &self.sockets[at];
        let s = socket.session;
        self.book.step += 1;
        tell!(self, "session {s} is closed, abort: {abort}");
        if abort {
            self.check_abort(at);
        } else {
            assert!(socket.pipe.batch.is_none(), "session {s} is closed over a batch in flight");
        }
        let session = &mut self.book.sessions[s];
        let socket = &mut self.sockets[at];
        let turn = if socket.pipe.reading { began } else { socket.paused_turn };
        session.closed = Some(Closed { at: self.book.step, turn, lossy: abort });
        socket.pipe.closing = true;
        if abort {
            let kept = self.rng.usize(..=socket.pipe.sent.len());
            socket.pipe.sent.truncate(kept);
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
        let late = socket.pipe.batch.as_ref().is_some_and(|b| b.since + deadline <= self.now);
        let pending = self.owed(socket);
        let limits = self.flavour.pending_bytes_min();
        let is_tight = self.is_tight(socket.pipe.shard);
        let silence_ns = socket.silence_ns.max(self.now - socket.pong_handed_ns);
        let stale = silence_ns >= 2 * self.flavour.ping_interval_ms * NS_PER_MS;
        assert!(
            late || stale || pending > limits || is_tight,
            "session {} is cut, but has at most {pending} bytes pending and is not late",
            socket.session
        );
        self.outcome.cuts += 1;
    }

    /// Whether the output of all connections of a shard can have been too much together.
    fn is_tight(&self, shard: usize) -> bool {
        if !self.flavour.reloads {
            return false;
        }
        // What goes over routes is not counted here.
        let is_mine = |pipe: &Pipe| pipe.shard == shard && pipe.is_open();
        let clients = self.sockets.iter().filter(|socket| is_mine(&socket.pipe));
        let owed: usize = clients.map(|socket| self.owed(socket)).sum();
        self.ends.iter().any(|end| end.pipe.shard == shard) || owed > TIGHT_BYTES_MAX
    }

    /// The most that the engine can have had pending for a connection in this turn.
    fn owed(&self, socket: &Socket) -> usize {
        self.book.owed_bytes_max(socket.session).saturating_sub(socket.reported_before)
    }

    /// What a shard is told of a connection's output, and of the connection.
    pub(super) fn complete(&mut self, at: usize, eager: bool) -> Option<Heard> {
        if !eager && self.rng.bool() {
            return None;
        }
        let Socket { session, pipe, .. } = &mut self.sockets[at];
        let is_reset = self.book.sessions[*session].reset;
        self.shards[pipe.shard].complete(pipe, is_reset)
    }

    /// Hands what a client has sent to its shard, in some pieces.
    pub(super) fn hand_in(&mut self, at: usize, eager: bool, events: &mut Vec<Heard>) {
        let rounds = if eager { 16 } else { self.rng.u32(..4) };
        for _ in 0..rounds {
            let socket = &mut self.sockets[at];
            if !self.shards[socket.pipe.shard].has_chunk(events) || !socket.pipe.hears() {
                break;
            }
            let session = &self.book.sessions[socket.session];
            let id = socket.pipe.id;
            let rest = session.out.len() - socket.received;
            let half_closed = session.last_op.is_some_and(|op| {
                op + 1 == session.ops.len() && session.ops[op].end == session.out.len()
            });
            if session.reset || (rest == 0 && half_closed) {
                socket.pipe.end_handed = true;
                events.push(ended(id, session.reset));
                tell!(self, "session {} has ended", self.sockets[at].session);
                return;
            }
            if rest == 0 {
                break;
            }
            let len = piece_of(rest, self.flavour.cuts, &mut self.rng);
            let end = socket.received + len;
            events.push(received(id, session.out[socket.received..end].to_vec()));
            socket.received = end;
        }
    }

    /// Remembers what the engine has handled of what it was handed.
    pub(super) fn note_handled(&mut self, at: usize) {
        let Socket { session, handed, ref pipe, .. } = self.sockets[at];
        let Shard { rules, .. } = &self.shards[pipe.shard];
        let engine = self.shards[pipe.shard].engine();
        let (handled, rules) = (handed - engine.view().waiting_bytes(pipe.id), *rules);
        let socket = &mut self.sockets[at];
        if socket.pongs.iter().any(|pong| *pong <= handled) {
            socket.pongs.retain(|pong| *pong > handled);
            // Behind its end the engine hears nothing any more.
            if socket.pipe.is_open() {
                socket.pong_handed_ns = self.now;
            }
        }
        self.book.handed(session, handled, rules);
    }
}

pub(super) fn ended(id: ConnId, is_reset: bool) -> Heard {
    let error = is_reset.then(|| std::io::ErrorKind::ConnectionReset.into());
    Event::Ended { socket: socket_id(id), error }
}

pub(super) fn received(id: ConnId, bytes: Vec<u8>) -> Heard {
    Event::Received { socket: socket_id(id), chunk: Chunk { id, bytes } }
}

/// How much of `rest` bytes arrives at once.
pub(super) fn piece_of(rest: usize, cuts: u8, rng: &mut fastrand::Rng) -> usize {
    match (cuts, rng.u32(..4)) {
        (0, 0..3) | (1, 0) => rng.usize(1..4).min(rest),
        (2, 0..3) => rest,
        _ => rng.usize(1..=rest),
    }
}
