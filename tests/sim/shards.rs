//! Shards: their turns, the lanes between them, and what has to be left of them in the end.

use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;

use shardcast::config::{Options, OverflowRule, Permissions, SubjectEntry, SubjectList, User};
use shardcast::engine::{
    Action, ConnId, Engine, Identity, Peer, Record, Settings, ShardId, Stats, TurnCost,
};
use shardcast::shard::RouteOrder;

use super::book::Step;
use super::pipe::Pipe;
use super::script::{
    Flavour, NARROW_BYTES_MAX, OVERFLOW, PRIVATE, Rules, UNDELIVERED, UNPUBLISHED,
};
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
    Route(RouteOrder),
    Reload(Rules),
}

/// One shard of a server.
pub(super) struct Shard {
    pub(super) server: usize,
    /// What it is called within its server.
    pub(super) id: ShardId,
    pub(super) engine: Engine,
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
    pub(super) fn new(server: usize, id: ShardId, engine: Engine, identity: Identity) -> Self {
        let (slots, orders, rules) = (Vec::new(), VecDeque::new(), Rules::default());
        Self { server, id, engine, slots, weight: 1, orders, rules, identity }
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

    /// Tells the engine what has become of a connection's output, and of the connection.
    pub(super) fn complete(&mut self, pipe: &mut Pipe, is_reset: bool) -> bool {
        let completed = pipe.complete(&mut self.engine, is_reset);
        if pipe.gone {
            let slot = &mut self.slots[pipe.id.slot as usize];
            *slot = (slot.0 + 1, false);
        }
        completed
    }

    fn obey(&mut self, order: RouteOrder) {
        match order {
            RouteOrder::Register(rid, part) => self.engine.register_route(rid, part),
            RouteOrder::Close(rid) => self.engine.close_route(rid, "Duplicate Route"),
            RouteOrder::Ask(rid) => self.engine.ask_route(rid),
            RouteOrder::Remove(rid) => self.engine.close_route(rid, "Route Removed"),
            RouteOrder::HearOn(rid) => self.engine.hear_on(rid),
            RouteOrder::Gossip(rid, info) => self.engine.gossip(rid, &info),
            RouteOrder::Urls(urls) => self.engine.set_cluster_urls(urls),
            RouteOrder::Name { .. } | RouteOrder::TurnAway(_) => {
                unreachable!("the cluster has a name, and everybody says who it is")
            }
        }
    }
}

impl World {
    /// One turn of a shard, if it has a reason for one. False if not.
    pub(super) fn turn(&mut self, shard: usize, eager: bool) -> bool {
        let began = self.book.step;
        self.shards[shard].engine.set_now(self.now);
        let mut reason = false;
        let mine = |pipe: &Pipe| pipe.shard == shard && !pipe.gone;
        for socket in self.sockets.iter_mut().filter(|socket| mine(&socket.pipe)) {
            socket.reported_before = socket.pipe.reported_bytes;
        }
        for at in 0..self.sockets.len() {
            if mine(&self.sockets[at].pipe) {
                reason |= self.complete(at, eager);
                reason |= self.hand_in(at, eager);
            }
        }
        for at in 0..self.ends.len() {
            if mine(&self.ends[at].pipe) {
                reason |= self.complete_route(at, eager);
                reason |= self.hand_in_route(at, eager);
            }
        }
        reason |= self.take_records(shard, eager);
        reason |= self.take_orders(shard, eager);
        let Shard { engine, .. } = &mut self.shards[shard];
        reason |= engine.next_deadline().is_some_and(|due| due <= self.now);
        reason |= self.neighbours(shard).any(|(to, id)| {
            self.shards[shard].engine.has_records(id)
                && self.lanes[shard][to].len() < LANE_RECORDS_MAX
        });
        if !reason {
            return false;
        }
        let Shard { engine, .. } = &mut self.shards[shard];
        engine.tick();
        let due = engine.next_deadline();
        let is_over = due.is_none_or(|due| due > self.now) || engine.has_more();
        assert!(is_over, "what was due at {due:?} still is");
        engine.end_turn();
        self.check_cost(shard);
        for at in 0..self.sockets.len() {
            if self.sockets[at].pipe.shard == shard && !self.sockets[at].pipe.gone {
                self.note_handled(at);
            }
        }
        self.carry_out(shard, began);
        // Memory may be given back after any turn, and nobody but the allocator notices.
        if self.now.is_multiple_of(3) {
            self.shards[shard].engine.shrink();
        }
        true
    }

    /// A turn keeps to its budget: for input and records, for what is sent and for subscriptions
    /// that are taken out; each may go over it by one operation.
    fn check_cost(&self, shard: usize) {
        let TurnCost { work, bytes } = self.shards[shard].engine.turn_cost();
        let operation = if self.flavour.heavy { HEAVY_OPERATION_WORK } else { OPERATION_WORK };
        let work_max = 3 * self.turn_work + operation;
        assert!(work <= work_max, "shard {shard}: {work} in one turn, which may cost {work_max}");
        let bytes_max = 4 * usize::try_from(work_max).unwrap_or(usize::MAX);
        assert!(bytes <= bytes_max, "shard {shard}: {bytes} bytes more after one turn");
    }

    /// The other shards of its server, with what they are called there.
    fn neighbours(&self, shard: usize) -> impl Iterator<Item = (usize, ShardId)> + use<> {
        let server = self.shards[shard].server;
        let all = self.shards.iter().enumerate();
        let others = all.filter(|(at, other)| *at != shard && other.server == server);
        let others: Vec<_> = others.map(|(at, other)| (at, other.id)).collect();
        others.into_iter()
    }

    fn carry_out(&mut self, shard: usize, began: Step) {
        self.drain_actions_of(shard, began);
        for (to, id) in self.neighbours(shard) {
            let lane = &mut self.lanes[shard][to];
            while lane.len() < LANE_RECORDS_MAX
                && let Some(record) = self.shards[shard].engine.pop_record(id)
            {
                lane.push_back(record);
            }
        }
        self.drain_actions_of(shard, began);
        self.take_notices(shard);
    }

    pub(super) fn drain_actions(&mut self, shard: usize) {
        self.drain_actions_of(shard, self.book.step);
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

    fn drain_actions_of(&mut self, shard: usize, began: Step) {
        while let Some(action) = self.shards[shard].engine.next_action() {
            let id = match action {
                Action::Flush(id) | Action::Pause(id) | Action::Resume(id) => id,
                Action::Close { conn, .. } => conn,
            };
            let Some(whose) = self.whose(shard, id) else {
                panic!("{action:?} of shard {shard} is for nobody");
            };
            if self.pipe(whose).closing {
                let late = matches!(action, Action::Flush(_) | Action::Pause(_));
                assert!(late, "{action:?} of shard {shard} comes behind the close");
                assert!(self.shards[shard].engine.take_batch(id).is_none(), "sent when closed");
                continue;
            }
            match action {
                Action::Flush(_) => self.flush(whose),
                Action::Pause(_) => {
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
                Action::Resume(_) => {
                    let was_reading = std::mem::replace(&mut self.pipe(whose).reading, true);
                    assert!(!was_reading, "{id:?} goes on, but was not paused");
                    self.outcome.resumes += 1;
                    tell!(self, "{whose:?} goes on");
                }
                Action::Close { abort, .. } => match whose {
                    Whose::Client(at) => self.close(at, abort, began),
                    Whose::Peer(at) => self.close_end(at, abort),
                },
            }
        }
    }

    fn flush(&mut self, whose: Whose) {
        let pipe = match whose {
            Whose::Client(at) => &mut self.sockets[at].pipe,
            Whose::Peer(at) => &mut self.ends[at].pipe,
        };
        let is_narrow = self.shards[pipe.shard].rules.narrow;
        let bytes = pipe.flush(&mut self.shards[pipe.shard].engine, self.now);
        // A peer may besides have pending what it was told when it came.
        let limit = match whose {
            // A connection at its end may be sent what it was owed before a reload.
            Whose::Client(at) if is_narrow && self.speaks(at) => NARROW_BYTES_MAX,
            Whose::Client(_) => self.flavour.pending_bytes_max,
            Whose::Peer(_) => usize::MAX,
        };
        assert!(bytes <= limit, "{bytes} bytes are pending, but {limit} are the limit");
    }

    fn speaks(&self, at: usize) -> bool {
        self.book.sessions[self.sockets[at].session].speaks()
    }

    fn take_records(&mut self, shard: usize, eager: bool) -> bool {
        let mut moved = false;
        for from in self.shards_of(self.shards[shard].server) {
            let count = if eager { 2 } else { self.rng.usize(..3) };
            for _ in 0..count {
                if !self.shards[shard].engine.takes_records(self.shards[from].id) {
                    break;
                }
                let Some(record) = self.lanes[from][shard].pop_front() else { break };
                let from = self.shards[from].id;
                self.shards[shard].engine.on_record(from, record);
                moved = true;
            }
        }
        moved
    }

    fn take_orders(&mut self, shard: usize, eager: bool) -> bool {
        if self.shards[shard].orders.is_empty() {
            return false;
        }
        let count = if eager { usize::MAX } else { self.rng.usize(..3) };
        let mut moved = false;
        for _ in 0..count {
            let Some(order) = self.shards[shard].orders.pop_front() else { break };
            match order {
                Order::Route(order) => self.shards[shard].obey(order),
                Order::Reload(rules) => self.reload(shard, rules),
            }
            moved = true;
        }
        moved
    }

    fn reload(&mut self, shard: usize, rules: Rules) {
        tell!(self, "shard {shard} reloads: {rules:?}");
        let here = &mut self.shards[shard];
        here.rules = rules;
        let settings = settings(&self.flavour, rules, &here.identity);
        here.engine.reload(Rc::new(settings));
        let engine = &self.shards[shard].engine;
        let is_mine = |pipe: &Pipe| {
            let is_heard = !pipe.end_handed || engine.waiting_bytes(pipe.id) > 0;
            pipe.shard == shard && pipe.is_open() && is_heard
        };
        for socket in self.sockets.iter().filter(|socket| is_mine(&socket.pipe)) {
            self.book.reloaded(socket.session, rules);
        }
    }

    /// A server gets another configuration; its shards take it over one by one.
    pub(super) fn order_reload(&mut self, server: u8, rules: Rules) {
        let servers = self.servers.len().max(1);
        for shard in self.shards_of(usize::from(server) % servers) {
            self.shards[shard].orders.push_back(Order::Reload(rules));
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
            let engine = &shard.engine;
            assert_eq!(engine.open_conns(), 0, "connections remain on shard {at}");
            assert_eq!(engine.subscriptions(), 0, "subscriptions remain on shard {at}");
            let system = self.wanted_in_system(shard.server).len();
            assert_eq!(engine.filters(), system, "interest remains on shard {at}");
            assert_eq!(engine.output_bytes(), 0, "output remains on shard {at}");
            assert_eq!(engine.braked_conns(), 0, "shard {at} holds somebody back");
        }
        let stats = self.shards.iter().map(|shard| shard.engine.stats());
        let cuts: u64 = stats.map(|stats: Stats| stats.slow_consumers).sum();
        assert!(cuts >= self.outcome.cuts.min(1) || cuts == 0, "a cut that nobody counted");
        self.leave_cluster();
    }

    /// What the other servers still want of this one: answers and requests in the system account.
    fn wanted_in_system(&self, server: usize) -> BTreeSet<String> {
        let shards = &self.shards[self.shards_of(server)];
        let routes = shards.iter().flat_map(|shard| shard.engine.routes(true));
        let mut wanted = BTreeSet::new();
        for route in routes {
            for wish in &route.wishes {
                let wish = String::from_utf8_lossy(wish);
                let subject = match route.account.as_deref() {
                    Some("$SYS") => &wish,
                    _ => wish.strip_prefix("$SYS ").unwrap_or_default(),
                };
                let is_systems = subject.starts_with("_R_.") || subject.starts_with("$SYS.REQ.");
                assert!(is_systems, "a peer of server {server} wants {wish:?}");
                wanted.insert(subject.to_owned());
            }
        }
        wanted
    }

    /// With no memory allowed for output, the next turn cuts somebody if any is still booked.
    pub(super) fn probe_memory(&mut self) {
        for shard in 0..self.shards.len() {
            let (options, identity) =
                (options(&self.flavour, self.shards[shard].rules), Identity::default());
            let settings = Rc::new(Settings::new(&options, &identity, 0));
            let Shard { engine, slots, .. } = &mut self.shards[shard];
            let slot = u32::try_from(slots.len()).unwrap_or(u32::MAX);
            let id = ConnId { slot, generation: 0 };
            engine.end_turn();
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

/// Lanes between all shards, by sender, then receiver.
pub(super) fn lanes(shards: usize) -> Vec<Vec<VecDeque<Record>>> {
    (0..shards).map(|_| (0..shards).map(|_| VecDeque::new()).collect()).collect()
}

pub(super) fn settings(flavour: &Flavour, rules: Rules, identity: &Identity) -> Settings {
    let mut options = options(flavour, rules);
    // Where other members are told to dial it.
    options.cluster.advertise = identity.cluster.as_ref().map(|_| format!("{}:1", identity.name));
    let memory_bytes_max = if rules.tight { TIGHT_BYTES_MAX } else { usize::MAX };
    Settings::new(&options, identity, memory_bytes_max)
}

fn options(flavour: &Flavour, rules: Rules) -> Options {
    let mut options = Options::default();
    options.limits.pending_bytes_max =
        if rules.narrow { NARROW_BYTES_MAX } else { flavour.pending_bytes_max };
    options.limits.payload_bytes_max = options.limits.payload_bytes_max.max(500_000);
    options.write_deadline_ms = flavour.write_deadline_ms;
    options.ping_interval_ms = flavour.ping_interval_ms;
    options.cluster.ping_interval_ms = flavour.ping_interval_ms;
    if flavour.overflow && !rules.strict {
        let rules = OVERFLOW.iter().map(|(filter, kind, pending_bytes_max)| OverflowRule {
            filter: (*filter).to_owned(),
            kind: *kind,
            pending_bytes_max: *pending_bytes_max,
        });
        options.overflow = rules.collect();
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
        let user = User { permissions: Some(permissions), ..User::named("guest") };
        options.auth.users.push(user);
        options.auth.no_auth_user = Some("guest".to_owned());
        // Time makes leaps, and a guest's CONNECT may take long to arrive: it is not to be cut.
        options.auth.timeout_ms = 24 * 60 * 60 * 1000;
    }
    options
}
