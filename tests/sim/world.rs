//! Shards, sockets and clients, and a scheduler that lets them act in any order.

use std::collections::VecDeque;

use shardcast::engine::{ConnSnapshot, Dropped, Peer, Transport};
use shardcast::shard::Control;

use super::book::{Book, Config};
use super::routes::{self, End, Server};
use super::script::{FILTERS, Flavour, Op, Plan, QUEUES};
use super::shards::{Order, Shard};
use super::sockets::Socket;

/// Rounds in which everybody may act until all must be at rest.
const ROUNDS_MAX: usize = 200_000;
/// Times the clock may have to be advanced for that.
const JUMPS_MAX: usize = 300;
pub(super) const NS_PER_MS: u64 = 1_000_000;
/// How long a publisher may be held back when everything else is at rest.
const PAUSE_NS_MAX: u64 = 2_500 * NS_PER_MS;

/// What a turn may cost in a run: often so little that hardly anything is handled at once.
fn turn_work(schedule: u64) -> u64 {
    [1_000, 10_000, 100_000, 3_000_000][usize::try_from(schedule % 4).unwrap_or(0)]
}

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

struct Client {
    socket: Option<usize>,
    ops: VecDeque<Op>,
    waits_for_pong: bool,
}

pub(crate) struct World {
    pub(super) rng: fastrand::Rng,
    pub(super) flavour: Flavour,
    pub(super) now: u64,
    /// What input and records may cost in one turn of a shard.
    pub(super) turn_work: u64,
    /// The shards of all servers, server by server.
    pub(super) shards: Vec<Shard>,
    pub(super) sockets: Vec<Socket>,
    /// None if there is but one.
    pub(super) servers: Vec<Server>,
    pub(super) ends: Vec<End>,
    /// A server that nobody can reach.
    pub(super) parted: Option<usize>,
    /// All servers are about to end.
    pub(super) is_leaving: bool,
    clients: Vec<Client>,
    pub(super) book: Book,
    pub(super) outcome: Outcome,
    pub(super) trace: bool,
}

macro_rules! tell {
    ($world:expr, $($args:tt)*) => {
        if $world.trace {
            eprintln!("{:>7} {:>9}µs {}", $world.book.step, $world.now / 1000, format!($($args)*));
        }
    };
}
pub(super) use tell;

impl World {
    pub(crate) fn new(plan: &Plan, trace: bool) -> Self {
        let mut rng = fastrand::Rng::with_seed(plan.schedule);
        let is_cluster = plan.servers.len() > 1;
        let mut all = Vec::new();
        for (server, _) in plan.servers.iter().enumerate() {
            let how = (&plan.flavour, is_cluster);
            all.extend(routes::shards(server, 0, plan.shards, how, &mut rng));
        }
        let member = |(server, dials): (usize, &Vec<usize>)| {
            Server::new(server, 0, dials, &plan.flavour, rng.u64(..))
        };
        let turn_work = turn_work(plan.schedule);
        all.iter_mut().for_each(|shard: &mut Shard| shard.engine_mut().set_turn_work(turn_work));
        let servers = plan.servers.iter().enumerate().filter(|_| is_cluster).map(member).collect();
        let clients = plan.phases.first().map_or(0, Vec::len);
        let client = || Client { socket: None, ops: VecDeque::new(), waits_for_pong: false };
        Self {
            shards: all,
            rng,
            flavour: plan.flavour,
            now: 0,
            turn_work,
            sockets: Vec::new(),
            servers,
            ends: Vec::new(),
            parted: None,
            is_leaving: false,
            clients: (0..clients).map(|_| client()).collect(),
            book: Book::new(&plan.flavour, is_cluster),
            outcome: Outcome::default(),
            trace,
        }
    }

    /// Runs the whole plan.
    pub(crate) fn run(mut self, plan: Plan) -> Outcome {
        let dials = &plan.servers;
        tell!(self, "{} shards, {:?}, servers dial {dials:?}", plan.shards, plan.flavour);
        if !self.servers.is_empty() {
            self.settle();
        }
        for phase in plan.phases {
            for (client, ops) in self.clients.iter_mut().zip(phase) {
                client.ops = ops;
            }
            self.stir();
            self.settle();
        }
        for socket in &mut self.sockets {
            socket.pipe.stalled = false;
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
            let page = shard.engine().view().conns_page(0);
            assert_eq!(page.next, None, "few connections are one page");
            for ConnSnapshot { cid, pending_bytes, traffic, dropped, .. } in page.entries {
                let s = usize::try_from(cid).unwrap_or(0) - 1;
                let session = &mut self.book.sessions[s];
                if session.reset || pending_bytes > 0 {
                    continue;
                }
                let came = session.got.len() as u64 + session.got_again;
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
            if !self.servers.is_empty() {
                self.stir_routes();
            }
        }
    }

    fn stir_routes(&mut self) {
        match self.rng.u32(..10) {
            0..2 => {
                let server = self.rng.usize(..self.servers.len());
                self.decide(server, false);
            }
            2..6 if !self.ends.is_empty() => {
                let end = self.rng.usize(..self.ends.len());
                self.move_route(end, false);
            }
            _ => {}
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
    pub(super) fn settle(&mut self) {
        tell!(self, "settling");
        let (mut jumps, began_ns) = (0, self.now);
        self.unstall_routes();
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
            for end in 0..self.ends.len() {
                moved |= self.move_route(end, true);
            }
            for server in 0..self.servers.len() {
                moved |= self.decide(server, true);
            }
            for shard in 0..self.shards.len() {
                moved |= self.turn(shard, true);
            }
            // A client may have had a route stall meanwhile: what waits there is under way, too.
            if moved || self.unstall_routes() {
                continue;
            }
            let Some(unrest) = self.unrest() else { return self.at_rest() };
            let due = self.shards.iter().filter_map(Shard::wakes_at);
            let due = due.chain(self.servers.iter().filter_map(Server::next_deadline)).min();
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

    /// Nobody is held back for long, whoever reads and whoever does not; but who takes nothing may
    /// have to wait for its own messages, until it is cut for that.
    fn check_pauses(&self, began_ns: u64) {
        let write_deadline_ns = self.flavour.write_deadline_ms * NS_PER_MS;
        for socket in &self.sockets {
            let session = &self.book.sessions[socket.session];
            let is_open = socket.pipe.is_open() && session.speaks() && !session.stale;
            let since = socket.paused_ns.max(began_ns);
            let batch = socket.pipe.batch.as_ref().filter(|_| socket.pipe.stalled);
            let own = batch.map_or(0, |batch| batch.since + write_deadline_ns);
            let until = own.max(since + PAUSE_NS_MAX);
            assert!(
                !is_open || socket.pipe.reading || self.now <= until,
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
            for to in self.shards_of(shard.server).map(|to| self.shards[to].id) {
                assert!(!shard.engine().has_records(to), "shard {from} keeps records for {to:?}");
            }
        }
    }

    /// What still has to happen.
    fn unrest(&self) -> Option<String> {
        for Socket { session: s, pipe, .. } in &self.sockets {
            let session = &self.book.sessions[*s];
            if pipe.is_open() && session.last_op.is_some() {
                return Some(format!("session {s} is not closed"));
            }
            if session.over || !pipe.is_open() || pipe.stalled {
                continue;
            }
            if !pipe.reading && !session.stale && session.last_op.is_none() {
                return Some(format!("session {s} is paused"));
            }
            if let Some((reply, _)) = session.awaited.front() {
                return Some(format!("session {s} waits for {reply:?}"));
            }
        }
        self.cluster_unrest()
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
        match op {
            Op::CutRoute { which } => self.cut_route(which),
            Op::StallRoute { which } => self.stall_route(which),
            Op::Part { server } => self.part_server(server),
            Op::UnstallRoutes => _ = self.unstall_routes(),
            Op::Reload { server, rules } => self.order_reload(server, rules),
            _ => {}
        }
        let session = if speaks { current } else { None };
        let Some(session) = session.or_else(|| self.connect(client, op)) else { return true };
        tell!(self, "client {client} (session {session}) {op:?}");
        self.perform(client, session, op);
        true
    }

    /// Whether a client reads nothing, so that nobody should wait for what it gets.
    fn is_deaf(&self, client: usize) -> bool {
        self.clients[client].socket.is_some_and(|socket| self.sockets[socket].pipe.stalled)
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
        if op.is_about_servers() {
            return None;
        }
        self.clients[client].waits_for_pong = false;
        let shard = self.rng.usize(..self.shards.len());
        let session = self.book.open(self.shards[shard].server);
        let id = self.shards[shard].take_slot();
        let peer = Peer { cid: session as u64 + 1, ip: "127.0.0.1".into(), port: 1 };
        let transport = Transport::Tcp;
        let adopt = Control::Adopt { socket: id, peer, transport, admitted: true };
        self.shards[shard].orders.push_back(Order::Tell(adopt));
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
            Op::Meet { .. }
            | Op::CutRoute { .. }
            | Op::StallRoute { .. }
            | Op::Reload { .. }
            | Op::Part { .. }
            | Op::UnstallRoutes => {}
            Op::SubPrivate => self.book.sub_private(s),
            Op::Stall | Op::Unstall => {
                if let Some(socket) = socket {
                    self.sockets[socket].pipe.stalled = matches!(op, Op::Stall);
                }
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
}

#[cfg(test)]
mod tests {
    use super::super::script::{Kind, bytes_of};
    use super::*;

    #[test]
    fn all_is_at_rest_only_when_nothing_waits_on_a_route() {
        let plan = (0..).map(|seed| Plan::decode(Kind::Cluster, &bytes_of(seed)));
        for plan in plan.filter(|plan| !plan.flavour.heavy).take(20) {
            let mut world = World::new(&plan, false);
            world.settle();
            let everything = FILTERS.iter().position(|filter| *filter == ">");
            let sub = Op::Sub { filter: everything, queue: None, reuse: false };
            world.clients[0].ops.extend([sub, Op::Barrier]);
            world.settle();
            let stalls = (0..8).map(|which| Op::StallRoute { which });
            let publish = Op::Publish { subject: 0, shape: 0, count: 1 };
            world.clients[1].ops.extend([Op::Ping].into_iter().chain(stalls).chain([publish]));
            world.settle();
            for End { pipe, .. } in &world.ends {
                let waits = pipe.batch.is_some() || !pipe.sent.is_empty();
                assert!(!pipe.is_open() || !waits, "something waits, and all is at rest");
            }
        }
    }
}
