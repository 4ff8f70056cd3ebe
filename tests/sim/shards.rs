//! Shards: their turns, and what has to be left of them in the end.

use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use shardcast::config::{
    Options, OverflowRule, Permissions, Seating, SubjectEntry, SubjectList, UserOptions,
};
use shardcast::engine::{
    ConnId, Engine, GatewayNotice, Identity, LeafNotice, Output, Peer, RemoteInterestBytes,
    RouteNotice, Settings, ShardId, Stats, TurnCost,
};
use shardcast::mesh::Mesh;
use shardcast::shard::{self, Address, Control, ShardParts, ShardSeats};
use shardcast::uring::{Batch, Closing, Event, TurnWait};

use super::book::Step;
use super::kernel::{Asked, Heard, Kernel};
use super::leaves;
use super::pipe::Pipe;
use super::script::{
    Flavour, NARROW_BYTES_MAX, OVERFLOW, PRIVATE, Rules, UNDELIVERED, UNPUBLISHED,
};
use super::sockets::Socket;
use super::world::{World, tell};

/// Records that a lane holds.
const LANE_RECORDS_MAX: usize = 2;

/// By how much the operations with which a turn goes over its budget may do so.
const OPERATION_WORK: u64 = 500_000;
/// The same in a run with large payloads.
const HEAVY_OPERATION_WORK: u64 = 20_000_000;

/// What the output of a shard may take when memory is tight.
pub(super) const TIGHT_BYTES_MAX: usize = 20_000;

/// What a shard is told by its server.
pub(super) enum Order {
    Tell(Control<ConnId>),
    Reload(Rules),
}

/// One shard of a server.
pub(super) struct Shard {
    pub(super) server: usize,
    /// What it is called within its server.
    pub(super) id: ShardId,
    real: shard::Shard<Kernel, Kernel>,
    kernel: Kernel,
    control: Sender<Control<ConnId>>,
    notices: Receiver<RouteNotice>,
    gateway_notices: Receiver<GatewayNotice>,
    leaf_notices: Receiver<LeafNotice>,
    /// When it took its last turn.
    turned_ns: u64,
    /// The generation of each slot, and whether it is taken.
    slots: Vec<(u32, bool)>,
    pub(super) weight: u32,
    /// What it is to do.
    pub(super) orders: VecDeque<Order>,
    /// What is in force.
    pub(super) rules: Rules,
    identity: Identity,
}

/// Whose connection something is about.
#[derive(Debug, Clone, Copy)]
enum Whose {
    Client(usize),
    Peer(usize),
}

impl Shard {
    /// The shards of a server, which choose at random by `seeds`.
    pub(super) fn all(
        server: usize,
        identity: &Identity,
        flavour: &Flavour,
        seeds: &[u64],
    ) -> Vec<Self> {
        let started = now();
        let options = options_of(flavour, Rules::default(), identity);
        let kernels: Vec<_> = seeds.iter().map(|seed| Kernel::new(started, *seed)).collect();
        let server = (server, identity, options);
        Self::on(server, &kernels, started, seeds)
    }

    /// The shards of a server that are given their kernels, one for each of `seeds`.
    pub(super) fn on(
        (server, identity, options): (usize, &Identity, Options),
        kernels: &[Kernel],
        started: Instant,
        seeds: &[u64],
    ) -> Vec<Self> {
        let options = Arc::new(options);
        let seats = Arc::new(ShardSeats::new(seeds.len(), Seating::Fewest));
        let controls: Vec<_> = seeds.iter().map(|_| unbounded()).collect();
        let address = |((control, _), kernel): (&(Sender<_>, Receiver<_>), &Kernel)| Address {
            control: control.clone(),
            waker: kernel.clone(),
        };
        let addresses: Vec<_> = controls.iter().zip(kernels).map(address).collect();
        let (remote_bytes, mut all) = (RemoteInterestBytes::default(), Vec::new());
        let count = u8::try_from(seeds.len()).unwrap_or(u8::MAX);
        for (at, mesh) in Mesh::all(count, LANE_RECORDS_MAX).into_iter().enumerate() {
            let id = ShardId(u8::try_from(at).unwrap_or(u8::MAX));
            let (routes, notices) = unbounded();
            let (gateways, gateway_notices) = unbounded();
            let (leaves, leaf_notices) = unbounded();
            let parts = ShardParts {
                id,
                addresses: addresses.clone(),
                control: controls[at].1.clone(),
                mesh,
                seats: Arc::clone(&seats),
                options: Arc::clone(&options),
                identity: identity.clone(),
                memory_bytes_max: usize::MAX,
                remote_bytes: remote_bytes.clone(),
                started,
                seed: seeds[at],
                // Nobody listens.
                outcome: bounded(1).0,
                checks: bounded(1).0,
                callouts: bounded(1).0,
                news: bounded(1).0,
                gateways,
                routes,
                leaves,
            };
            let kernel = kernels[at].clone();
            all.push(Self {
                server,
                id,
                real: shard::Shard::new(parts, kernel.clone(), kernel.clone()),
                kernel,
                control: controls[at].0.clone(),
                notices,
                gateway_notices,
                leaf_notices,
                turned_ns: 0,
                slots: Vec::new(),
                weight: 1,
                orders: VecDeque::new(),
                rules: Rules::default(),
                identity: identity.clone(),
            });
        }
        all
    }

    pub(super) fn engine(&self) -> &Engine {
        self.real.engine()
    }

    pub(super) fn engine_mut(&mut self) -> &mut Engine {
        self.real.engine_mut()
    }

    /// When its sleep is over, if nothing happens.
    pub(super) fn wakes_at(&self) -> Option<u64> {
        match self.real.wait() {
            _ if self.kernel.is_woken() => Some(self.turned_ns),
            TurnWait::No => Some(self.turned_ns),
            TurnWait::For(time) => {
                Some(self.turned_ns + u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
            }
            TurnWait::Forever => None,
        }
    }

    /// Whether it can be lent one more chunk besides those in `events`.
    pub(super) fn has_chunk(&self, events: &[Heard]) -> bool {
        let chunks = events.iter().filter(|event| matches!(event, Event::Received { .. }));
        chunks.count() < self.kernel.chunks_left()
    }

    pub(super) fn pop_gateway_notice(&self) -> Option<GatewayNotice> {
        self.gateway_notices.try_recv().ok()
    }

    pub(super) fn pop_leaf_notice(&self) -> Option<LeafNotice> {
        self.leaf_notices.try_recv().ok()
    }

    pub(super) fn pop_notice(&self) -> Option<RouteNotice> {
        self.notices.try_recv().ok()
    }

    /// One operation on its disk is over, if any is under way.
    pub(super) fn finish_on_disk(&self) -> Option<Heard> {
        self.kernel.finish_on_disk()
    }

    /// Hands it all that it is to be told. False if there is nothing.
    pub(super) fn tell_orders(&mut self) -> bool {
        let any = !self.orders.is_empty();
        while let Some(Order::Tell(control)) = self.orders.pop_front() {
            let _ = self.control.send(control);
        }
        any
    }

    /// The real loop takes one turn at this time.
    pub(super) fn step(&mut self, now: u64, events: Vec<Heard>) -> Vec<Asked> {
        self.kernel.prepare(now, events);
        self.turned_ns = now;
        self.real.step().unwrap_or_else(|error| panic!("a turn fails: {error}"));
        self.kernel.take_asked()
    }

    /// A free slot, taken from now on.
    pub(super) fn take_slot(&mut self) -> ConnId {
        let slot = self.slots.iter().position(|(_, taken)| !taken).unwrap_or_else(|| {
            self.slots.push((0, false));
            self.slots.len() - 1
        });
        self.slots[slot].1 = true;
        let generation = self.slots[slot].0;
        ConnId { slot: u32::try_from(slot).unwrap_or(u32::MAX), generation }
    }

    /// What it is told of a connection's output, and of the connection.
    pub(super) fn complete(&mut self, pipe: &mut Pipe, is_reset: bool) -> Option<Heard> {
        let event = pipe.complete(is_reset);
        if pipe.gone {
            let slot = &mut self.slots[pipe.id.slot as usize];
            *slot = (slot.0 + 1, false);
        }
        event
    }
}

/// What a turn does about orders.
enum Obeyed {
    Nothing,
    Something,
    /// New rules apply, and to these sessions.
    Reload(Rules, Vec<usize>),
}

impl World {
    /// One turn of a shard, if it has a reason for one. False if not.
    pub(super) fn turn(&mut self, shard: usize, eager: bool) -> bool {
        let began = self.book.step;
        let mine = |pipe: &Pipe| pipe.shard == shard && !pipe.gone;
        for socket in self.sockets.iter_mut().filter(|socket| mine(&socket.pipe)) {
            socket.reported_before = socket.pipe.reported_bytes;
        }
        let obeyed = self.take_orders(shard, eager);
        // What is handled in the turn of a reload has to be handled behind it.
        let hears = !matches!(obeyed, Obeyed::Reload(..));
        let events = self.happenings(shard, eager, hears);
        let is_due = self.shards[shard].wakes_at().is_some_and(|due| due <= self.now);
        if events.is_empty() && !is_due && matches!(obeyed, Obeyed::Nothing) {
            return false;
        }
        let stale_before = self.shards[shard].engine().view().stats().stale_connections.total();
        let asked = self.shards[shard].step(self.now, events);
        let stale = self.shards[shard].engine().view().stats().stale_connections.total();
        if stale > stale_before {
            self.note_stale(shard, &asked);
        }
        if let Obeyed::Reload(rules, sessions) = obeyed {
            self.note_reload(shard, rules, &sessions);
        }
        let engine = self.shards[shard].engine();
        let due = engine.next_deadline();
        let is_over = due.is_none_or(|due| due > self.now) || engine.view().has_more();
        assert!(is_over, "what was due at {due:?} still is");
        self.check_cost(shard);
        self.note_turn(shard, &asked);
        for asked in asked {
            self.carry_out(shard, asked, began);
        }
        self.take_notices(shard);
        // Memory may be given back after any turn, and nobody but the allocator notices.
        if self.now.is_multiple_of(3) {
            self.shards[shard].engine_mut().shrink();
        }
        true
    }

    /// What a shard hears in its next turn: of its disk, of output, with `hears` also of input.
    fn happenings(&mut self, shard: usize, eager: bool, hears: bool) -> Vec<Heard> {
        let rounds = if eager { usize::MAX } else { self.rng.usize(..2) };
        let disk = std::iter::from_fn(|| self.shards[shard].kernel.finish_on_disk());
        let mut events: Vec<Heard> = disk.take(rounds).collect();
        let mine = |pipe: &Pipe| pipe.shard == shard && !pipe.gone;
        for at in 0..self.sockets.len() {
            if mine(&self.sockets[at].pipe) {
                events.extend(self.complete(at, eager));
                if hears {
                    self.hand_in(at, eager, &mut events);
                }
            }
        }
        for at in 0..self.ends.len() {
            if mine(&self.ends[at].pipe) {
                events.extend(self.complete_route(at, eager));
                if hears {
                    self.hand_in_route(at, eager, &mut events);
                }
            }
        }
        events
    }

    /// Remembers what the engine has got and handled in a turn.
    fn note_turn(&mut self, shard: usize, asked: &[Asked]) {
        for asked in asked {
            if let Asked::Recycle(id, bytes) = asked
                && let Some(Whose::Client(at)) = self.whose(shard, *id)
                && self.sockets[at].pipe.is_open()
            {
                self.sockets[at].handed += bytes;
            }
        }
        for at in 0..self.sockets.len() {
            if self.sockets[at].pipe.shard == shard && !self.sockets[at].pipe.gone {
                self.note_handled(at);
            }
        }
    }

    /// A turn keeps to its budget: for input and records, for what is sent and for subscriptions
    /// that are taken out; each may go over it by one operation.
    fn check_cost(&self, shard: usize) {
        let TurnCost { work, bytes } = self.shards[shard].engine().view().turn_cost();
        let operation = if self.flavour.heavy { HEAVY_OPERATION_WORK } else { OPERATION_WORK };
        let work_max = 3 * self.turn_work + operation;
        assert!(work <= work_max, "shard {shard}: {work} in one turn, which may cost {work_max}");
        let bytes_max = 4 * usize::try_from(work_max).unwrap_or(usize::MAX);
        assert!(bytes <= bytes_max, "shard {shard}: {bytes} bytes more after one turn");
    }

    fn whose(&self, shard: usize, id: ConnId) -> Option<Whose> {
        let is_it = |pipe: &Pipe| pipe.shard == shard && pipe.id == id && !pipe.gone;
        let client = self.sockets.iter().position(|socket| is_it(&socket.pipe));
        let peer = || self.ends.iter().position(|end| is_it(&end.pipe));
        client.map(Whose::Client).or_else(|| peer().map(Whose::Peer))
    }

    fn pipe(&mut self, whose: Whose) -> &mut Pipe {
        match whose {
            Whose::Client(at) => &mut self.sockets[at].pipe,
            Whose::Peer(at) => &mut self.ends[at].pipe,
        }
    }

    /// Does what a shard has asked for in a turn that began at `began`.
    fn carry_out(&mut self, shard: usize, asked: Asked, began: Step) {
        if let Asked::Recycle(..) = asked {
            return;
        }
        let Some(whose) = self.whose(shard, asked.id()) else {
            panic!("{asked:?} of shard {shard} is for nobody");
        };
        if self.pipe(whose).closing {
            assert!(matches!(asked, Asked::Pause(_)), "{asked:?} comes behind the close");
            return;
        }
        match asked {
            Asked::Recycle(..) => {}
            Asked::Adopt(_) => {
                self.pipe(whose).is_adopted = true;
                if let Whose::Client(at) = whose {
                    let rules = self.shards[shard].rules;
                    self.book.adopted(self.sockets[at].session, rules);
                }
            }
            Asked::Send(_, batch) => self.send(whose, batch),
            Asked::Pause(_) => {
                let was_reading = std::mem::replace(&mut self.pipe(whose).reading, false);
                if let Whose::Client(at) = whose
                    && was_reading
                {
                    let socket = &mut self.sockets[at];
                    (socket.paused_turn, socket.paused_ns) = (began, self.now);
                }
                self.pipe(whose).grace = self.rng.u32(..3);
                tell!(self, "{whose:?} is paused");
            }
            Asked::Read(id) => {
                let was_reading = std::mem::replace(&mut self.pipe(whose).reading, true);
                assert!(!was_reading, "{id:?} goes on, but was not paused");
                self.outcome.resumes += 1;
                tell!(self, "{whose:?} goes on");
            }
            Asked::Close(_, how) => match whose {
                Whose::Client(at) => self.close(at, how == Closing::Abort, began),
                Whose::Peer(at) => self.close_end(at, how == Closing::Abort),
            },
        }
    }

    fn send(&mut self, whose: Whose, batch: Batch) {
        let now = self.now;
        let shard = self.pipe(whose).shard;
        let limit_now = self.pending_bytes_max(shard);
        let bytes = self.pipe(whose).send(batch.pieces, now);
        // A peer may besides have pending what it was told when it came.
        let limit = match whose {
            // A connection at its end may be sent what it was owed before a reload.
            Whose::Client(at) if self.speaks(at) => {
                limit_now.max(self.sockets[at].stale_bytes_max.unwrap_or(0))
            }
            Whose::Client(_) => self.flavour.pending_bytes_max,
            Whose::Peer(_) => usize::MAX,
        };
        assert!(bytes <= limit, "{bytes} bytes are pending, but {limit} are the limit");
    }

    /// What a client of a shard may have pending by the rules that are in force there.
    pub(super) fn pending_bytes_max(&self, shard: usize) -> usize {
        match self.shards[shard].rules.narrow {
            true => NARROW_BYTES_MAX,
            false => self.flavour.pending_bytes_max,
        }
    }

    fn speaks(&self, at: usize) -> bool {
        self.book.sessions[self.sockets[at].session].speaks()
    }

    /// Tells a shard some of what it is ordered. A reload has a turn of its own, in which nothing
    /// that came before waits: it is certain then what was handled by which rules.
    fn take_orders(&mut self, shard: usize, eager: bool) -> Obeyed {
        if self.shards[shard].orders.is_empty() {
            return Obeyed::Nothing;
        }
        let count = if eager { usize::MAX } else { self.rng.usize(..3) };
        let mut obeyed = Obeyed::Nothing;
        let is_unclear = self.has_broken_off(shard);
        for at in 0..count {
            let here = &mut self.shards[shard];
            match here.orders.front() {
                None => break,
                Some(Order::Tell(_)) => {}
                Some(Order::Reload(_)) if at > 0 || is_unclear || here.real.has_input() => break,
                Some(Order::Reload(rules)) => {
                    let rules = *rules;
                    here.orders.pop_front();
                    return self.reload(shard, rules);
                }
            }
            if let Some(Order::Tell(control)) = here.orders.pop_front() {
                let _ = here.control.send(control);
                obeyed = Obeyed::Something;
            }
        }
        obeyed
    }

    /// Whether a client of the shard stands in the middle of what ends it: nobody but the engine
    /// knows whether the bytes so far have done that.
    fn has_broken_off(&self, shard: usize) -> bool {
        let is_amid = |socket: &Socket| {
            let session = &self.book.sessions[socket.session];
            session.last_op.is_some_and(|last| {
                let began = last.checked_sub(1).map_or(0, |before| session.ops[before].end);
                (began + 1..session.ops[last].end).contains(&socket.handed)
            })
        };
        let mine = |socket: &&Socket| socket.pipe.shard == shard && socket.pipe.is_open();
        self.sockets.iter().filter(mine).any(is_amid)
    }

    fn reload(&mut self, shard: usize, rules: Rules) -> Obeyed {
        tell!(self, "shard {shard} reloads: {rules:?}");
        let here = &self.shards[shard];
        let options = options_of(&self.flavour, rules, &here.identity);
        let _ = here.control.send(Control::Reload(Arc::new(options)));
        let is_mine = |pipe: &Pipe| {
            let is_heard = !pipe.end_handed || here.engine().view().waiting_bytes(pipe.id) > 0;
            pipe.shard == shard && pipe.is_adopted && pipe.is_open() && is_heard
        };
        let mine = self.sockets.iter().filter(|socket| is_mine(&socket.pipe));
        Obeyed::Reload(rules, mine.map(|socket| socket.session).collect())
    }

    fn note_reload(&mut self, shard: usize, rules: Rules, sessions: &[usize]) {
        for session in sessions {
            self.book.reloaded(*session, rules);
        }
        self.book.note_denial(shard, rules.undelivered);
        let here = &mut self.shards[shard];
        here.rules = rules;
        if rules.tight {
            // No reload makes memory short, but here one does.
            let options = options_of(&self.flavour, rules, &here.identity);
            let settings = Settings::new(&options, &here.identity, TIGHT_BYTES_MAX);
            here.engine_mut().reload(Rc::new(settings));
        }
    }

    /// A server gets another configuration; its shards take it over one by one.
    pub(super) fn order_reload(&mut self, server: u8, rules: Rules) {
        let servers = self.servers.len().max(1);
        for shard in self.shards_of(usize::from(server) % servers) {
            self.shards[shard].orders.push_back(Order::Reload(rules));
        }
        if self.flavour.leaves && self.rng.bool() {
            self.reload_remotes(usize::from(server) % servers);
        }
    }

    /// The shards of a server.
    pub(super) fn shards_of(&self, server: usize) -> std::ops::Range<usize> {
        let first = self.shards.iter().position(|shard| shard.server == server).unwrap_or(0);
        let count = self.shards.iter().filter(|shard| shard.server == server).count();
        first..first + count
    }

    /// Ends all connections in one way or another: nothing may remain of them.
    pub(super) fn close_all(&mut self) {
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
            let engine = shard.engine();
            assert_eq!(engine.view().open_conns(), 0, "connections remain on shard {at}");
            assert_eq!(engine.view().subscriptions(), 0, "subscriptions remain on shard {at}");
            let system = self.wanted_by_servers(shard.server).len();
            assert_eq!(engine.view().filters(), system, "interest remains on shard {at}");
            assert_eq!(engine.view().output_bytes(), 0, "output remains on shard {at}");
            assert_eq!(engine.view().braked_conns(), 0, "shard {at} holds somebody back");
        }
        let stats = self.shards.iter().map(|shard| shard.engine().view().stats());
        let cuts: u64 = stats.map(|stats: Stats| stats.slow_consumers.total()).sum();
        assert!(cuts >= self.outcome.cuts.min(1) || cuts == 0, "a cut that nobody counted");
        self.leave_cluster();
    }

    /// What the other servers still want of this one: answers and requests in the system account,
    /// and that leaf nodes see whether they are in a circle.
    fn wanted_by_servers(&self, server: usize) -> BTreeSet<String> {
        let text = |entry: &[u8]| String::from_utf8_lossy(entry).into_owned();
        let mut wanted = BTreeSet::new();
        for shard in &self.shards[self.shards_of(server)] {
            let view = shard.engine().view();
            for route in view.routes(true) {
                for entry in &route.interest {
                    let entry = text(entry);
                    wanted.insert(match route.account.as_deref() {
                        Some("$SYS") => entry,
                        _ => entry.strip_prefix("$SYS ").unwrap_or_default().to_owned(),
                    });
                }
            }
            for gateway in view.gateways(true) {
                wanted.extend(gateway.interest.iter().map(|(_, subject, _)| text(subject)));
            }
            for leaf in view.leaves(true) {
                wanted.extend(leaf.interest.iter().map(|entry| text(entry)));
            }
        }
        for entry in &wanted {
            let mut known = ["_R_.", "$SYS.REQ.", "$SYS.LATENCY.M2.", "$LDS."].into_iter();
            let is_known = known.any(|start| entry.starts_with(start));
            assert!(is_known, "a peer of server {server} has interest in {entry:?}");
        }
        wanted
    }

    /// With no memory allowed for output, the next turn cuts somebody if any is still booked.
    pub(super) fn probe_memory(&mut self) {
        for shard in 0..self.shards.len() {
            let (options, identity) =
                (options(&self.flavour, self.shards[shard].rules), Identity::default());
            let settings = Rc::new(Settings::new(&options, &identity, 0));
            let here = &mut self.shards[shard];
            let slot = u32::try_from(here.slots.len()).unwrap_or(u32::MAX);
            let engine = here.engine_mut();
            let id = ConnId { slot, generation: 0 };
            engine.end_turn();
            engine.open(id, Peer { cid: 1, ip: "127.0.0.1".into(), port: 1 }, true);
            assert!(matches!(engine.next_output(), Some(Output::Flush(conn)) if conn == id));
            let batch = engine.take_batch(id);
            let bytes = batch.iter().flatten().map(|piece| piece.bytes().len()).sum();
            engine.on_sent(id, bytes, batch);
            engine.reload(Rc::clone(&settings));
            engine.end_turn();
            assert!(engine.next_output().is_none(), "shard {shard} has lost track of its memory");
        }
    }
}

fn options_of(flavour: &Flavour, rules: Rules, identity: &Identity) -> Options {
    let mut options = options(flavour, rules);
    // Where other members are told to dial it.
    options.cluster.advertise = identity.cluster.as_ref().map(|_| format!("{}:1", identity.name));
    options
}

#[expect(clippy::disallowed_methods, reason = "times have to begin somewhere; none is looked at")]
pub(super) fn now() -> Instant {
    Instant::now()
}

fn options(flavour: &Flavour, rules: Rules) -> Options {
    let mut options = Options::default();
    options.limits.pending_bytes_max =
        if rules.narrow { NARROW_BYTES_MAX } else { flavour.pending_bytes_max };
    options.limits.payload_bytes_max = options.limits.payload_bytes_max.max(500_000);
    options.timeouts.write_deadline_ms = flavour.write_deadline_ms;
    options.timeouts.ping_interval_ms = flavour.ping_interval_ms;
    options.cluster.ping_interval_ms = flavour.ping_interval_ms;
    if flavour.overflow && !rules.strict {
        let rules = OVERFLOW.iter().map(|(filter, kind, pending_bytes_max)| OverflowRule {
            filter: (*filter).to_owned(),
            kind: *kind,
            pending_bytes_max: *pending_bytes_max,
        });
        options.overflow = rules.collect();
    }
    if flavour.leaves {
        options.leaf.users.push(leaves::user());
    }
    if flavour.reloads {
        let deny = |subjects: &[&str], denies: bool| SubjectList {
            deny: subjects
                .iter()
                .filter(|_| denies)
                .map(|subject| SubjectEntry { subject: (*subject).to_owned(), queue: None })
                .collect(),
            ..SubjectList::default()
        };
        let permissions = Permissions {
            publish: deny(&[UNPUBLISHED], rules.unpublished),
            subscribe: deny(&[UNDELIVERED, PRIVATE.0], rules.undelivered),
            allow_responses: None,
        };
        let user = UserOptions { permissions: Some(permissions), ..UserOptions::named("guest") };
        options.auth.users.push(user);
        options.auth.no_auth_user = Some("guest".to_owned());
        // Time makes leaps, and a guest's CONNECT may take long to arrive: it is not to be cut.
        options.auth.timeout_ms = 24 * 60 * 60 * 1000;
    }
    options
}
