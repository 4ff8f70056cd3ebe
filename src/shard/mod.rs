//! The loop of a shard: the only place where engine, mesh and reactor meet.
//!
//! One turn ([`Shard::step`]): wait for completions, take records of other shards, hand input to
//! the engine, see what is due, and carry out the engine's actions. Everything goes to the kernel
//! at once, with the wait of the next turn. Kernel and clock are traits (`reactor`); the simulator
//! runs the same loop over others.
//!
//! - Input: at most 128 KiB per turn (`INPUT_BYTES_PER_TURN`), a chunk of each connection in turn
//!   (`inbox`). Ends of connections: at most eight per turn (`ENDS_PER_TURN`), each behind the
//!   input of its connection, so a thousand clients that leave at once hold nobody up.
//! - Accept: connections are counted on the first shard (`accept_limit`). One over the configured
//!   rate gets its error by one system call and never a slot.
//! - After a burst: when half of the connections and subscriptions, and at least 32 (`GONE_MIN`),
//!   have gone for 1 s (`GONE_FOR`), an idle shard shrinks its tables, frees spare buffers, and
//!   has the allocator return memory (`Shard::give_back_memory`). The generations of a slot that
//!   was given up go on where they ended.

#![forbid(unsafe_code)]

mod accept_limit;
mod inbox;
mod messages;
mod reactor;
mod reporter;

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use rustix::time::{ClockId, clock_gettime};

use crate::config;
use crate::engine::{
    Action, ConnId, Engine, Identity, LaneFigures, NewRoute, Peer, RouteNotice, Settings, ShardId,
    Transport, WishBytes,
};
use crate::measure::Histogram;
use crate::mesh::{Drained, Mesh};
use crate::uring::{Closing, Event, ListenerId, SocketId, Wait, ZeroCopy};
use accept_limit::AcceptLimit;
use inbox::Inbox;
pub use messages::{
    Address, Check, ClientOrder, Control, Door, Figures, Listener, NEWS_MAX, News, Outcome, Report,
    RouteOrder, Seats,
};
use messages::{REQUESTS_BYTES, TRACES_BYTES};
pub use reactor::{Clock, Io, SystemClock, Uring};
pub use reporter::Reporter;

/// Input handled between two flushes, in bytes: what it renders to should stay in the cache.
const INPUT_BYTES_PER_TURN: usize = 128 * 1024;
/// Ends of connections handled between two flushes: each costs up to 50 µs with the kernel's part.
const ENDS_PER_TURN: usize = 8;
/// How long accepting rests after it failed, for instance for want of descriptors.
pub const ACCEPT_REST: Duration = Duration::from_millis(250);
/// Memory is given back when so many connections, subscriptions and cached subjects have gone, and
/// half of them …
const GONE_MIN: usize = 32;
/// … and have not been replaced for so long: who comes and goes all the time needs it again.
const GONE_FOR: Duration = Duration::from_secs(1);
/// How long a stopping shard waits for its clients to take what is queued.
const STOP_MAX: Duration = Duration::from_secs(2);

/// Everything a shard is made of besides its reactor and its clock.
pub struct Parts<R: Io = Uring> {
    /// Which shard it is.
    pub id: ShardId,
    /// All shards, by id.
    pub addresses: Vec<AddressOf<R>>,
    /// What it is told.
    pub control: Receiver<Control<R::Socket>>,
    /// Its lanes.
    pub mesh: Mesh,
    /// Where the next connection goes.
    pub seats: Arc<Seats>,
    /// The options it starts with.
    pub options: Arc<config::Options>,
    /// Who this server is.
    pub identity: Identity,
    /// Bytes of output that its connections together may have queued.
    pub memory_bytes_max: usize,
    /// What it counts of peers' interest together with the others.
    pub wish_bytes: WishBytes,
    /// The clock's zero, the same for all shards.
    pub started: Instant,
    /// Seed of its random choices.
    pub seed: u64,
    /// Where it says what it came to.
    pub outcome: Sender<Outcome>,
    /// Where credentials are checked that take long; what it has no room for is not checked.
    pub proofs: Sender<Check>,
    /// Where the server is spoken for in the system account; holds [`NEWS_MAX`].
    pub news: Sender<News>,
    /// Where it is decided about routes.
    pub routes: Sender<RouteNotice>,
}

/// How others reach a shard with such a reactor.
type AddressOf<R> = Address<<R as Io>::Socket, <R as Io>::Waker>;
type EventOf<R> = Event<<R as Io>::Socket, <R as Io>::Chunk>;

/// What is done about new connections, on the shard that accepts them.
#[derive(Default)]
struct Accepting {
    listeners: Vec<(ListenerId, Door)>,
    /// When accepting goes on after it failed.
    again: Option<Instant>,
    limit: AcceptLimit,
    /// The number of the connection accepted last.
    last_cid: u64,
}

/// Where a shard says what others have to know.
struct Outlets {
    outcome: Sender<Outcome>,
    proofs: Sender<Check>,
    news: Sender<News>,
    routes: Sender<RouteNotice>,
}

/// One shard, on its own thread.
pub struct Shard<R: Io = Uring, C: Clock = SystemClock> {
    id: ShardId,
    reactor: R,
    clock: C,
    engine: Engine,
    mesh: Mesh,
    addresses: Vec<AddressOf<R>>,
    control: Receiver<Control<R::Socket>>,
    seats: Arc<Seats>,
    options: Arc<config::Options>,
    identity: Identity,
    memory_bytes_max: usize,
    started: Instant,
    now: Instant,
    /// How long the next step may sleep.
    wait: Wait,
    /// Room for what a step hears of the reactor.
    events: Vec<EventOf<R>>,
    /// Arrived, but not yet handled, each with the time of its turn in nanoseconds.
    inbox: Inbox<(u64, EventOf<R>)>,
    turn_ns: Histogram,
    accepting: Accepting,
    /// Connections whose descriptors are not closed yet.
    sockets: usize,
    /// The most connections, subscriptions and cached subjects there were since memory was last
    /// given back.
    held_max: usize,
    /// When it is to be, if nobody comes.
    give_back: Option<Instant>,
    stop_by: Option<Instant>,
    /// How long it looks for work before it sleeps.
    busy_poll: Duration,
    /// Until when it does.
    busy_until: Instant,
    /// There while clients are sent away.
    draining: bool,
    outlets: Outlets,
}

impl<R: Io, C: Clock> Shard<R, C> {
    /// Puts a shard together on the thread that will run it.
    pub fn new(parts: Parts<R>, reactor: R, clock: C) -> Self {
        let settings = Settings::new(&parts.options, &parts.identity, parts.memory_bytes_max);
        let shards = parts.addresses.len();
        let busy_poll = Duration::from_micros(parts.options.runtime.busy_poll_us.into());
        let mut engine = Engine::new(parts.id, shards, Rc::new(settings), parts.seed);
        engine.share_wish_bytes(parts.wish_bytes);
        if let Some(cluster) = &parts.identity.cluster {
            engine.name_cluster(&cluster.name, cluster.is_dynamic);
        }
        Self {
            id: parts.id,
            reactor,
            clock,
            engine,
            mesh: parts.mesh,
            addresses: parts.addresses,
            control: parts.control,
            seats: parts.seats,
            options: parts.options,
            identity: parts.identity,
            memory_bytes_max: parts.memory_bytes_max,
            started: parts.started,
            now: parts.started,
            wait: Wait::No,
            events: Vec::new(),
            inbox: Inbox::new(),
            turn_ns: Histogram::default(),
            accepting: Accepting::default(),
            sockets: 0,
            held_max: 0,
            give_back: None,
            stop_by: None,
            busy_poll,
            busy_until: parts.started,
            draining: false,
            outlets: Outlets {
                outcome: parts.outcome,
                proofs: parts.proofs,
                routes: parts.routes,
                news: parts.news,
            },
        }
    }

    /// Runs until it is told to stop.
    pub fn run(mut self) -> std::io::Result<()> {
        while !self.is_done() {
            self.step()?;
        }
        if self.sockets > 0 {
            tracing::warn!(
                "Gave up on {} connections that took nothing of what was queued for {STOP_MAX:?}",
                self.sockets
            );
        }
        Ok(())
    }

    /// Takes one turn: waits as long as there is nothing to do, and does what there is.
    pub fn step(&mut self) -> std::io::Result<()> {
        let mut events = std::mem::take(&mut self.events);
        self.reactor.turn(self.wait, &mut events)?;
        self.mesh.wake();
        let began = self.read_clock();
        let mut is_busy = !events.is_empty() || !self.inbox.is_empty() || self.engine.has_more();
        if !events.is_empty() {
            self.busy_until = self.now + self.busy_poll;
        }
        for event in events.drain(..) {
            self.on_event(event, began);
        }
        self.events = events;
        // Before input: whoever has sent that may have heard of what comes over the lanes.
        self.engine.set_arrived(began);
        let (any, more) = self.take_records();
        is_busy |= any;
        self.take_input(began);
        self.obey();
        self.engine.tick();
        self.accept_if_rested();
        self.engine.end_turn();
        // First, for room on a lane lets publishers go on.
        let behind = self.publish();
        is_busy |= self.act();
        self.report_drained();
        self.wait = self.next_wait(more, behind);
        if is_busy {
            let ended = self.clock.now();
            let ended = self.ns_since_start(ended);
            self.turn_ns.add(ended.saturating_sub(began), 1);
            self.engine.depart(ended);
        }
        Ok(())
    }

    /// What it knows and decides, for whoever takes its steps one by one.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The same, to be set up or taken apart between two steps.
    pub fn engine_mut(&mut self) -> &mut Engine {
        &mut self.engine
    }

    /// How long the next step may sleep.
    pub fn wait(&self) -> Wait {
        self.wait
    }

    /// Whether something has arrived that no step has handled.
    pub fn has_input(&self) -> bool {
        !self.inbox.is_empty()
    }

    /// Tells everybody what time it is; also the caller.
    fn read_clock(&mut self) -> u64 {
        self.now = self.clock.now();
        let now = self.ns_since_start(self.now);
        self.engine.set_now(now);
        now
    }

    fn ns_since_start(&self, time: Instant) -> u64 {
        u64::try_from(time.duration_since(self.started).as_nanos()).unwrap_or(u64::MAX)
    }

    fn is_done(&self) -> bool {
        self.stop_by.is_some_and(|by| self.sockets == 0 || by <= self.now)
    }

    fn on_event(&mut self, event: EventOf<R>, now: u64) {
        match event {
            Event::Received { socket, .. } => self.inbox.push(socket, (now, event)),
            Event::Ended { socket, .. } => self.inbox.push_end(socket, (now, event)),
            Event::Sent { socket, bytes, batch } => {
                self.engine.on_sent(conn_id(socket), bytes, batch.map(|batch| batch.pieces));
            }
            Event::SendFailed { socket, error, batch } => {
                tracing::debug!("write failed: {error}");
                self.engine.on_send_failed(conn_id(socket), Some(batch.pieces));
            }
            Event::Closed { socket, batch } => {
                self.engine.take_home(batch.map(|batch| batch.pieces));
                self.engine.on_closed(conn_id(socket));
                self.sockets -= 1;
            }
            Event::Accepted { listener, socket } => self.on_accepted(listener, socket),
            Event::AcceptFailed { error, .. } => {
                tracing::error!(
                    "Error accepting connection: {error}; trying again in {ACCEPT_REST:?} \
                     (too many open files: raise the limit of descriptors, `ulimit -n`)"
                );
                self.accepting.again = Some(self.now + ACCEPT_REST);
            }
            Event::StoppedListening { listener } => {
                self.accepting.listeners.retain(|(id, _)| *id != listener);
            }
            // Nothing is stored yet.
            Event::Disk(_) | Event::Woken => {}
        }
    }

    /// Hands a bounded amount of what has arrived to the engine.
    fn take_input(&mut self, now: u64) {
        let mut taken_bytes = 0;
        while taken_bytes < INPUT_BYTES_PER_TURN && self.engine.takes_input() {
            let Some((arrived, Event::Received { socket, chunk })) = self.inbox.pop() else {
                break;
            };
            self.engine.set_arrived(arrived);
            let bytes = self.reactor.bytes(&chunk);
            taken_bytes += bytes.len();
            self.engine.on_bytes(conn_id(socket), bytes);
            self.reactor.recycle(chunk);
        }
        for _ in 0..ENDS_PER_TURN {
            let Some((_, Event::Ended { socket, error })) = self.inbox.pop_end() else { break };
            self.engine.on_ended(conn_id(socket), error.is_some());
        }
        self.engine.set_arrived(now);
    }

    /// Whether there were any, and whether there may be more.
    fn take_records(&mut self) -> (bool, bool) {
        let Self { mesh, engine, reactor, addresses, .. } = self;
        engine.advance_records();
        let Drained { any, more } =
            mesh.drain(engine, |to| reactor.wake(&addresses[to.index()].waker));
        if any {
            self.busy_until = self.now + self.busy_poll;
        }
        (any, more)
    }

    /// Carries out what the engine wants; says whether that was anything.
    fn act(&mut self) -> bool {
        let mut any = false;
        while let Some(action) = self.engine.next_action() {
            any = true;
            match action {
                Action::Flush(conn) => {
                    if let Some(pieces) = self.engine.take_batch(conn) {
                        self.reactor.send(socket_id(conn), pieces.into());
                    }
                }
                Action::Close { conn, abort } => {
                    let how = if abort { Closing::Abort } else { Closing::Graceful };
                    self.reactor.close(socket_id(conn), how);
                    if !self.engine.is_route(conn) {
                        self.seats.leave(self.id);
                    }
                }
                Action::Pause(conn) => self.reactor.pause(socket_id(conn)),
                Action::Resume(conn) => self.reactor.read(socket_id(conn)),
            }
        }
        while let Some((conn, proof)) = self.engine.pop_proof() {
            // If there is no room, the connection's time is over before it would be its turn.
            let by = self.now + Duration::from_millis(self.options.auth.timeout_ms);
            let _ = self.outlets.proofs.try_send(Check { shard: self.id, conn, proof, by });
        }
        // What does not fit is dropped: whoever fills the queue is not to fill the memory.
        while let Some(request) = self.engine.pop_server_request() {
            // The more is waiting the smaller it has to be.
            if request.payload.len() * (self.outlets.news.len() + 1) <= REQUESTS_BYTES {
                let _ = self.outlets.news.try_send(News::Request(request));
            }
        }
        while let Some(trace) = self.engine.pop_message_trace() {
            if trace.cost_bytes() * (self.outlets.news.len() + 1) <= TRACES_BYTES {
                let _ = self.outlets.news.try_send(News::Trace(trace));
            }
        }
        while let Some(event) = self.engine.pop_event() {
            let _ = self.outlets.news.try_send(News::Event(event));
        }
        while let Some(notice) = self.engine.pop_route_notice() {
            // Whoever decides may have ended before the shards do.
            let _ = self.outlets.routes.send(notice);
        }
        any
    }

    /// Shows the other shards what was staged for them. True if not all of it had room.
    fn publish(&mut self) -> bool {
        let Self { mesh, engine, reactor, addresses, .. } = self;
        mesh.publish(engine, |to| reactor.wake(&addresses[to.index()].waker))
    }

    /// How long there may be nothing to do.
    fn next_wait(&mut self, more_records: bool, behind: bool) -> Wait {
        let waiting = more_records || !self.inbox.is_empty() || !self.control.is_empty();
        if waiting || self.now < self.busy_until {
            return Wait::No;
        }
        self.give_back_memory();
        if !self.mesh.fall_asleep(&self.engine, behind) {
            return Wait::No;
        }
        let engine_due =
            self.engine.next_deadline().map(|ns| self.started + Duration::from_nanos(ns));
        let due = [engine_due, self.accepting.again, self.stop_by, self.give_back];
        let due = due.into_iter().flatten().min();
        match due {
            Some(due) => Wait::For(due.saturating_duration_since(self.now)),
            None => Wait::Forever,
        }
    }

    /// Gives back what a burst of connections or subscriptions has left, when there is nothing
    /// else to do.
    fn give_back_memory(&mut self) {
        let held = self.sockets + self.engine.subscriptions() + self.engine.cached_subjects();
        self.held_max = self.held_max.max(held);
        if self.held_max - held < GONE_MIN.max(self.held_max / 2) {
            self.give_back = None;
            return;
        }
        if self.now < *self.give_back.get_or_insert(self.now + GONE_FOR) {
            return;
        }
        self.give_back = None;
        self.held_max = held;
        self.engine.shrink();
        self.inbox.shrink();
        self.reactor.give_back_memory();
    }

    /// Does what the control thread and the accepting shard have asked for.
    fn obey(&mut self) {
        while let Ok(control) = self.control.try_recv() {
            match control {
                Control::Adopt { socket, peer, transport, admitted } => {
                    self.adopt(socket, peer, transport, admitted);
                }
                Control::AdoptRoute { socket, peer, route } => {
                    self.adopt_route(socket, peer, route);
                }
                Control::Route(order) => self.obey_about_routes(order),
                Control::Reload(options) => {
                    let memory = self.memory_bytes_max;
                    let settings = Settings::new(&options, &self.identity, memory);
                    self.engine.reload(Rc::new(settings));
                    self.options = options;
                }
                Control::Client { cid, order, to } => {
                    let done = match order {
                        ClientOrder::Kick => self.engine.kick(cid),
                        ClientOrder::LameDuck => self.engine.advise_to_leave(cid),
                    };
                    let _ = to.try_send(done);
                }
                Control::Shed { cid_max, account } => self.engine.shed(cid_max, account),
                Control::LameDuck { grace, spread } => {
                    self.stop_listening();
                    let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
                    self.engine.start_lame_duck(ns(grace), ns(spread));
                    self.draining = true;
                }
                Control::Publish { account, subject, reply, payload } => {
                    self.engine.publish_own(account, &subject, &reply, &payload);
                }
                Control::Proven { conn, holds } => self.engine.on_proof(conn, holds),
                Control::Open(listeners) => {
                    for Listener { socket, door } in listeners {
                        self.accepting.listeners.push((self.reactor.listen(socket), door));
                    }
                }
                Control::Stop => {
                    self.stop_listening();
                    self.engine.shut_down();
                    self.reactor.hurry();
                    self.stop_by = Some(self.now + STOP_MAX);
                }
                // Whoever asked may have given up.
                Control::Report(to) => drop(to.try_send(self.report())),
                Control::Figures(to) => drop(to.try_send(self.figures())),
                Control::Accounts(to) => drop(to.try_send(self.engine.account_figures())),
                Control::Conns { from, to } => drop(to.try_send(self.engine.conns_page(from))),
                Control::Subs { from, to } => drop(to.try_send(self.engine.subs_page(from))),
                Control::Routes { wishes, to } => drop(to.try_send(self.engine.routes(wishes))),
                Control::Closed { from, to } => drop(to.try_send(self.engine.closed_page(from))),
            }
        }
    }

    fn report(&self) -> Report {
        Report {
            shard: self.id,
            stats: self.engine.stats(),
            accepted: self.accepting.last_cid,
            throttled: self.accepting.limit.rejected(),
            conns: self.engine.open_conns(),
            subscriptions: self.engine.subscriptions(),
            cached_subjects: self.engine.cached_subjects(),
            interest: self.engine.interest_stats(),
        }
    }

    fn figures(&self) -> Figures {
        let cpu = clock_gettime(ClockId::ThreadCPUTime);
        let others = (0..).map(ShardId).take(self.addresses.len()).filter(|to| *to != self.id);
        let lane = |to: ShardId| {
            let lane = self.engine.lane(to);
            let waiting_records = lane.waiting_records + self.mesh.waiting(to);
            (to, LaneFigures { waiting_records, ..lane })
        };
        Figures {
            report: self.report(),
            at_ns: self.ns_since_start(self.now),
            tier: self.reactor.tier(),
            cpu: Duration::try_from(cpu).unwrap_or_default(),
            reactor: self.reactor.counters(),
            turn_ns: self.turn_ns.clone(),
            delay_ns: self.engine.delays().clone(),
            output_bytes: self.engine.output_bytes(),
            braked_conns: self.engine.braked_conns(),
            rings: self.mesh.rings(),
            accounts: self.engine.account_figures(),
            client_urls: self.engine.client_urls(),
            lanes: others.map(lane).collect(),
        }
    }

    fn adopt(&mut self, socket: R::Socket, peer: Peer, transport: Transport, admitted: bool) {
        if self.stop_by.is_some() {
            self.seats.leave(self.id);
            return;
        }
        let socket = self.reactor.adopt(socket, ZeroCopy::Never);
        self.sockets += 1;
        self.engine.open_over(conn_id(socket), peer, transport, admitted);
        if admitted {
            self.reactor.read(socket);
        }
    }

    fn adopt_route(&mut self, socket: R::Socket, peer: Peer, route: NewRoute) {
        if self.stop_by.is_some() {
            return;
        }
        let socket = self.reactor.adopt(socket, ZeroCopy::Never);
        self.sockets += 1;
        self.engine.open_route(conn_id(socket), peer, route);
        self.reactor.read(socket);
    }

    fn obey_about_routes(&mut self, order: RouteOrder) {
        match order {
            RouteOrder::Register(rid, part) => self.engine.register_route(rid, part),
            RouteOrder::Close(rid) => self.engine.close_route(rid, "Duplicate Route"),
            RouteOrder::Ask(rid) => self.engine.ask_route(rid),
            RouteOrder::TurnAway(rid) => {
                self.engine.close_route(rid, "Maximum Connections Exceeded");
            }
            RouteOrder::Remove(rid) => self.engine.close_route(rid, "Route Removed"),
            RouteOrder::HearOn(rid) => self.engine.hear_on(rid),
            RouteOrder::Gossip(rid, info) => self.engine.gossip(rid, &info),
            RouteOrder::Urls(urls) => self.engine.set_cluster_urls(urls),
            RouteOrder::Name { name, is_dynamic } => {
                self.engine.name_cluster(&name, is_dynamic);
            }
        }
    }

    /// Seats a new connection on the shard with the fewest.
    fn on_accepted(&mut self, listener: ListenerId, socket: R::Socket) {
        let door = self.accepting.listeners.iter().find(|(id, _)| *id == listener);
        let Some((ip, port, transport)) = door.and_then(|(_, door)| R::examine(&socket, door))
        else {
            return; // It is gone already.
        };
        self.accepting.last_cid += 1;
        let peer = Peer { cid: self.accepting.last_cid, ip, port };
        // Processes of this machine have no address, and come as fast as they like.
        let (rates, now) = (&self.options.rates, self.ns_since_start(self.now));
        let tls = self.options.tls.as_ref().map_or(0, |tls| tls.connections_per_second_max);
        if let Ok(source) = peer.ip.parse()
            && !self.accepting.limit.admits(rates, tls, source, now)
        {
            self.turn_away(&socket, &peer, transport);
            return;
        }
        let admitted = self.seats.all() < self.options.limits.connections_max;
        let seat = self.seats.take();
        if !admitted {
            tracing::error!("{}:{} - maximum connections exceeded", peer.ip, peer.port);
        }
        if seat == self.id.index() {
            self.adopt(socket, peer, transport, admitted);
        } else if self.addresses[seat]
            .control
            .send(Control::Adopt { socket, peer, transport, admitted })
            .is_ok()
        {
            self.reactor.wake(&self.addresses[seat].waker);
        }
    }

    /// Tells a client that it has come too soon, without a seat, a slot or any patience: there
    /// may be thousands of them.
    fn turn_away(&mut self, socket: &R::Socket, peer: &Peer, transport: Transport) {
        // A new socket has room; if not, the end says enough.
        R::send_at_once(socket, &self.engine.turn_away(peer, transport));
        if let Some(count) = self.accepting.limit.take_report(self.ns_since_start(self.now)) {
            tracing::warn!(
                "Rejected {count} connections due to rate limiting, the last of {}",
                peer.ip
            );
        }
    }

    fn accept_if_rested(&mut self) {
        if self.accepting.again.is_some_and(|again| again <= self.now) {
            self.accepting.again = None;
            for (listener, _) in &self.accepting.listeners {
                self.reactor.accept(*listener);
            }
        }
    }

    fn report_drained(&mut self) {
        if self.draining && self.seats.all() == 0 {
            self.draining = false;
            // The control thread may be about to end for another reason.
            let _ = self.outlets.outcome.send(Outcome::Drained);
        }
    }

    fn stop_listening(&mut self) {
        self.accepting.again = None;
        for (listener, _) in &self.accepting.listeners {
            self.reactor.stop_listening(*listener);
        }
    }
}

fn conn_id(socket: SocketId) -> ConnId {
    ConnId { slot: socket.slot, generation: socket.generation }
}

fn socket_id(conn: ConnId) -> SocketId {
    SocketId { slot: conn.slot, generation: conn.generation }
}
