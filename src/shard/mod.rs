//! The loop of a shard: the only place where engine, mesh and reactor meet.
//!
//! One turn ([`Shard::step`]): wait for completions, take records of other shards, hand input to
//! the engine, see what is due, and carry out the engine's actions. Everything goes to the kernel
//! at once, with the wait of the next turn. Kernel and clock are traits (`reactor`); the simulator
//! runs the same loop over others.
//!
//! - Input: at most 128 KiB per turn (`INPUT_BYTES_PER_TURN`), a chunk of each connection in turn
//!   (`inbox`). Ends of connections: at most eight per turn (`ENDS_PER_TURN`), each behind the
//!   input of its connection, so a thousand clients that leave at once delay no other.
//! - Accept: connections are counted on the first shard (`accept_limit`). One over the configured
//!   rate gets its error by one system call and never a slot.
//! - Stop: first every shard tells its waiting clients and says farewell to the others; with all
//!   farewells, or after 500 ms, it ends its connections (`stop`). So what a shard says to a client
//!   of another arrives.
//! - After a burst: when half of the connections and subscriptions, and at least 32, have gone for
//!   1 s (`high_water`), an idle shard shrinks its tables, frees spare buffers, and has the
//!   allocator return memory (`Shard::give_back_memory`). The generations of a slot that was given
//!   up go on where they ended.

#![forbid(unsafe_code)]

mod accept_limit;
mod high_water;
mod inbox;
mod messages;
mod reactor;
mod reporter;
mod stop;
mod time;

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use rustix::time::{ClockId, clock_gettime};

use crate::config;
use crate::engine::records::join_half;
use crate::engine::{
    ConnId, CredentialCheck, Engine, GatewayNotice, Identity, LaneFigures, LeafNotice,
    MessageTrace, NewGateway, NewLeaf, NewRoute, Output, Peer, RemoteInterestBytes, RouteNotice,
    ServerRequest, Settings, ShardId, Transport,
};
use crate::measure::Histogram;
use crate::mesh::{Drained, Mesh};
use crate::uring::{Closing, Event, ListenerId, SocketId, TurnWait, ZeroCopy};
use accept_limit::AcceptLimit;
use high_water::HighWater;
use inbox::Inbox;
pub use messages::{
    Address, CalloutNews, CheckRequest, Control, Door, Figures, Listener, News, NewsQueue, Outcome,
    PeerEvent, ShardReport, ShardSeats,
};
use messages::{CALLOUTS_BYTES, REQUESTS_BYTES, TRACES_BYTES};
pub use reactor::{Clock, Io, SystemClock, Uring};
pub use reporter::Reporter;

pub use crate::engine::{ClientOrder, GatewayOrder, RouteOrder};
use stop::{STOP_MAX, Stop};
use time::{BusyPoll, TurnClock};

/// Bytes of input handled between two flushes: their output should stay in the cache.
const INPUT_BYTES_PER_TURN: usize = 128 * 1024;
/// Ends of connections handled between two flushes: each costs up to 50 µs with the kernel's part.
const ENDS_PER_TURN: usize = 8;
/// The pause in accepting after it failed, for instance for want of descriptors.
pub const ACCEPT_REST: Duration = Duration::from_millis(250);
/// Parts of a shard besides its reactor and its clock.
pub struct ShardParts<R: Io = Uring> {
    /// The shard's id.
    pub id: ShardId,
    /// The addresses of all shards, by id.
    pub addresses: Vec<AddressOf<R>>,
    /// The receiver of messages to the shard.
    pub control: Receiver<Control<R::Socket>>,
    /// The shard's lanes.
    pub mesh: Mesh,
    /// Connections of each shard, from which the shard of the next one is chosen.
    pub seats: Arc<ShardSeats>,
    /// The options at the start.
    pub options: Arc<config::Options>,
    /// The server's identity.
    pub identity: Identity,
    /// Bytes of output that the shard's connections together may have queued.
    pub memory_bytes_max: usize,
    /// Bytes of peers' interest, counted together with the other shards.
    pub remote_bytes: RemoteInterestBytes,
    /// The clock's zero, the same for all shards.
    pub started: Instant,
    /// The seed of the shard's random choices.
    pub seed: u64,
    /// The sender of the shard's outcome.
    pub outcome: Sender<Outcome>,
    /// The sender of credentials that take long to check; without room in it they are not checked.
    pub checks: Sender<CheckRequest>,
    /// The sender of questions to services about clients; without room in it they are not asked.
    pub callouts: Sender<CalloutNews>,
    /// The sender to the system account's thread: that of a [`NewsQueue`].
    pub news: Sender<News>,
    /// The sender to the thread that decides about routes.
    pub routes: Sender<RouteNotice>,
    /// The sender to the thread that decides about gateways.
    pub gateways: Sender<GatewayNotice>,
    /// The sender to the thread that dials remotes of leaf nodes.
    pub leaves: Sender<LeafNotice>,
}

/// The address of a shard with the reactor `R`.
type AddressOf<R> = Address<<R as Io>::Socket, <R as Io>::Waker>;
type EventOf<R> = Event<<R as Io>::Socket, <R as Io>::Chunk>;

/// The state of the listeners, on the shard that accepts connections.
struct Accepting<S> {
    listeners: Vec<(ListenerId, Door)>,
    /// Listeners that wait until all streams are known.
    waiting: Vec<Listener<S>>,
    /// The time at which accepting goes on after it failed.
    again: Option<Instant>,
    limit: AcceptLimit,
    /// Connections accepted so far.
    accepted: u64,
}

/// Sources of a shard's settings.
struct Setup {
    options: Arc<config::Options>,
    identity: Identity,
    /// Bytes of output that the shard's connections together may have queued.
    memory_bytes_max: usize,
}

impl Setup {
    /// Returns the settings that follow from the options.
    fn settings(&self) -> Rc<Settings> {
        Rc::new(Settings::new(&self.options, &self.identity, self.memory_bytes_max))
    }
}

/// Senders from a shard to the other threads.
struct Outlets {
    outcome: Sender<Outcome>,
    checks: Sender<CheckRequest>,
    callouts: Sender<CalloutNews>,
    news: Sender<News>,
    routes: Sender<RouteNotice>,
    gateways: Sender<GatewayNotice>,
    leaves: Sender<LeafNotice>,
}

impl Outlets {
    /// Hands on a question or an answer about a client. The more of them wait, the smaller each has
    /// to be; the client of one that is dropped waits until its time is over.
    fn call_out(&self, news: CalloutNews) {
        let bytes = match &news {
            CalloutNews::Question { question, .. } => question.cost_bytes(),
            CalloutNews::Answer(answer) => answer.subject.len() + answer.payload.len(),
        };
        if bytes * (self.callouts.len() + 1) <= CALLOUTS_BYTES {
            let _ = self.callouts.try_send(news);
        }
    }

    /// Has credentials checked on another thread. If the queue is full, the connection's time is
    /// over before its turn would come.
    fn check(&self, shard: ShardId, conn: ConnId, check: CredentialCheck, by: Instant) {
        let _ = self.checks.try_send(CheckRequest { shard, conn, check, by });
    }

    /// Hands a request on to the server. The more requests wait, the smaller each has to be: a full
    /// queue must not fill the memory.
    fn ask(&self, request: ServerRequest) {
        if request.payload.len() * (self.news.len() + 1) <= REQUESTS_BYTES {
            self.tell(News::Request(request));
        }
    }

    /// Hands on the report on a traced message. The more waits, the smaller it has to be.
    fn report(&self, trace: Box<MessageTrace>) {
        if trace.cost_bytes() * (self.news.len() + 1) <= TRACES_BYTES {
            self.tell(News::Trace(trace));
        }
    }

    /// Sends news to the system account's thread; without room they are dropped.
    fn tell(&self, news: News) {
        let _ = self.news.try_send(news);
    }
}

/// A shard of the server, run on a thread of its own.
pub struct Shard<R: Io = Uring, C: Clock = SystemClock> {
    id: ShardId,
    reactor: R,
    time: TurnClock<C>,
    engine: Engine,
    mesh: Mesh,
    addresses: Vec<AddressOf<R>>,
    control: Receiver<Control<R::Socket>>,
    seats: Arc<ShardSeats>,
    setup: Setup,
    /// The longest sleep of the next step.
    wait: TurnWait,
    /// Room for the reactor's events of a step.
    events: Vec<EventOf<R>>,
    /// Events that have arrived but are not yet handled, each with the time of its turn in
    /// nanoseconds.
    inbox: Inbox<(u64, EventOf<R>)>,
    turn_ns: Histogram,
    accepting: Accepting<R::Socket>,
    /// Connections whose descriptors are not closed yet.
    sockets: usize,
    /// The mark of connections, subscriptions and cached subjects together.
    high_water: HighWater,
    busy_poll: BusyPoll,
    stop: Option<Stop>,
    /// Whether lame duck mode is on and its end is not yet reported.
    draining: bool,
    outlets: Outlets,
}

impl<S> Default for Accepting<S> {
    fn default() -> Self {
        let limit = AcceptLimit::default();
        Self { listeners: Vec::new(), waiting: Vec::new(), again: None, limit, accepted: 0 }
    }
}

impl<R: Io, C: Clock> Shard<R, C> {
    /// Puts a shard together on the thread that will run it.
    pub fn new(parts: ShardParts<R>, reactor: R, clock: C) -> Self {
        let setup = Setup {
            options: parts.options,
            identity: parts.identity,
            memory_bytes_max: parts.memory_bytes_max,
        };
        let shards = parts.addresses.len();
        let busy_poll = Duration::from_micros(setup.options.runtime.busy_poll_us.into());
        let mut engine = Engine::new(parts.id, shards, setup.settings(), parts.seed);
        engine.share_remote_interest_bytes(parts.remote_bytes);
        let logs = setup.identity.logs.get(parts.id.index()).cloned().unwrap_or_default();
        engine.start_streams(logs, setup.identity.log_sizes);
        if let Some(cluster) = &setup.identity.cluster {
            let (name, is_dynamic) = (cluster.name.clone(), cluster.is_dynamic);
            engine.on_route_order(RouteOrder::Name { name, is_dynamic });
        } else if let Some(gateway) = &setup.identity.gateway {
            let (name, is_dynamic) = (gateway.name.clone(), false);
            engine.on_route_order(RouteOrder::Name { name, is_dynamic });
        }
        Self {
            id: parts.id,
            reactor,
            time: TurnClock::new(clock, parts.started),
            engine,
            mesh: parts.mesh,
            addresses: parts.addresses,
            control: parts.control,
            seats: parts.seats,
            setup,
            wait: TurnWait::No,
            events: Vec::new(),
            inbox: Inbox::new(),
            turn_ns: Histogram::default(),
            accepting: Accepting::default(),
            sockets: 0,
            high_water: HighWater::default(),
            busy_poll: BusyPoll::new(busy_poll, parts.started),
            stop: None,
            draining: false,
            outlets: Outlets {
                outcome: parts.outcome,
                checks: parts.checks,
                callouts: parts.callouts,
                routes: parts.routes,
                gateways: parts.gateways,
                leaves: parts.leaves,
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
                "Closed {} connections whose queued output was not taken within {STOP_MAX:?}",
                self.sockets
            );
        }
        Ok(())
    }

    /// Takes one turn: waits until there is work, and does it.
    pub fn step(&mut self) -> std::io::Result<()> {
        let mut events = std::mem::take(&mut self.events);
        self.reactor.turn(self.wait, &mut events)?;
        self.mesh.wake();
        let began = self.time.begin_turn();
        self.engine.set_now(began);
        let mut is_busy =
            !events.is_empty() || !self.inbox.is_empty() || self.engine.view().has_more();
        if !events.is_empty() {
            self.busy_poll.extend(self.time.now());
        }
        for event in events.drain(..) {
            self.on_event(event, began);
        }
        self.events = events;
        // Before input: a client may send because of a message that is still on a lane.
        self.engine.set_arrived(began);
        let (any, more) = self.take_records();
        is_busy |= any;
        self.take_input(began);
        self.obey();
        self.part();
        self.engine.tick();
        self.open_if_ready();
        self.accept_if_rested();
        self.engine.end_turn();
        // First, for room on a lane lets publishers go on.
        let behind = self.publish();
        is_busy |= self.act();
        self.report_drained();
        self.wait = self.next_wait(more, behind);
        if is_busy {
            let ended = self.time.read_ns();
            self.turn_ns.add(ended.saturating_sub(began), 1);
            self.engine.depart(ended);
        }
        Ok(())
    }

    /// Returns the engine, for callers that take the steps one by one.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Returns the engine, to be set up or taken apart between two steps.
    pub fn engine_mut(&mut self) -> &mut Engine {
        &mut self.engine
    }

    /// Returns the longest sleep of the next step.
    pub fn wait(&self) -> TurnWait {
        self.wait
    }

    /// Whether input waits that no step has handled.
    pub fn has_input(&self) -> bool {
        !self.inbox.is_empty()
    }

    fn is_done(&self) -> bool {
        let is_at_rest = || self.sockets == 0 && self.engine.view().is_at_rest();
        self.stop.is_some_and(|stop| stop.is_over(self.time.now(), is_at_rest))
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
                self.engine.on_closed(conn_id(socket), batch.map(|batch| batch.pieces));
                self.sockets -= 1;
            }
            Event::Accepted { listener, socket } => self.on_accepted(listener, socket),
            Event::AcceptFailed { error, .. } => {
                tracing::error!(
                    "Error accepting connection: {error}; next attempt in {ACCEPT_REST:?} \
                     (too many open files: raise the limit of descriptors, `ulimit -n`)"
                );
                self.accepting.again = Some(self.time.now() + ACCEPT_REST);
            }
            Event::StoppedListening { listener } => {
                self.accepting.listeners.retain(|(id, _)| *id != listener);
            }
            Event::Disk(done) => self.engine.on_disk(*done),
            Event::Woken => {}
        }
    }

    /// Hands a bounded part of the waiting input to the engine.
    fn take_input(&mut self, now: u64) {
        let mut taken_bytes = 0;
        while taken_bytes < INPUT_BYTES_PER_TURN && self.engine.view().takes_input() {
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

    /// Hands records of other shards to the engine. Returns whether there were any, and whether
    /// there may be more.
    fn take_records(&mut self) -> (bool, bool) {
        let Self { mesh, engine, reactor, addresses, .. } = self;
        engine.advance_records();
        let Drained { any, more } =
            mesh.drain(engine, |to| reactor.wake(&addresses[to.index()].waker));
        if any {
            self.busy_poll.extend(self.time.now());
        }
        (any, more)
    }

    /// Carries out the engine's actions. Returns whether there were any.
    fn act(&mut self) -> bool {
        let mut any = false;
        while let Some(output) = self.engine.next_output() {
            any = true;
            match output {
                Output::Flush(conn) => {
                    if let Some(pieces) = self.engine.take_batch(conn) {
                        self.reactor.send(socket_id(conn), pieces.into());
                    }
                }
                Output::Close { conn, abort, frees_seat } => {
                    let how = if abort { Closing::Abort } else { Closing::Graceful };
                    self.reactor.close(socket_id(conn), how);
                    if frees_seat {
                        self.seats.leave(self.id);
                    }
                }
                Output::Pause(conn) => self.reactor.pause(socket_id(conn)),
                Output::Resume(conn) => self.reactor.read(socket_id(conn)),
                Output::Check(conn, check) => {
                    let patience = Duration::from_millis(self.setup.options.auth.timeout_ms);
                    let by = self.time.now() + patience;
                    self.outlets.check(self.id, conn, *check, by);
                }
                Output::Callout { conn, question, timeout_ns } => {
                    let by = self.time.now() + Duration::from_nanos(timeout_ns);
                    let shard = self.id;
                    self.outlets.call_out(CalloutNews::Question { shard, conn, question, by });
                }
                Output::PeerQuestion(conn, question) => {
                    let shard = self.id;
                    self.outlets.tell(News::PeerQuestion { shard, conn, question });
                }
                Output::Fetch { conn, account } => {
                    let shard = self.id;
                    self.outlets.tell(News::Wanted { shard, conn, account });
                }
                Output::CalloutAnswer(answer) => {
                    self.outlets.call_out(CalloutNews::Answer(*answer));
                }
                Output::Ask(request) => self.outlets.ask(*request),
                Output::Event(event) => self.outlets.tell(News::Event(*event)),
                Output::Trace(trace) => self.outlets.report(trace),
                // At the end of the server the receiver may be gone before the shards.
                Output::Link(notice) => drop(self.outlets.routes.send(*notice)),
                Output::Gateway(notice) => drop(self.outlets.gateways.send(*notice)),
                Output::Leaf(notice) => drop(self.outlets.leaves.send(*notice)),
                Output::Disk(op) => self.reactor.disk(*op),
            }
        }
        any
    }

    /// Publishes staged records to the other shards. Returns whether some had no room.
    fn publish(&mut self) -> bool {
        let Self { mesh, engine, reactor, addresses, .. } = self;
        mesh.publish(engine, |to| reactor.wake(&addresses[to.index()].waker))
    }

    /// Returns how long the shard may sleep.
    fn next_wait(&mut self, more_records: bool, behind: bool) -> TurnWait {
        let waiting = more_records || !self.inbox.is_empty() || !self.control.is_empty();
        if waiting || self.busy_poll.is_on(self.time.now()) {
            return TurnWait::No;
        }
        self.give_back_memory();
        if !self.mesh.fall_asleep(&self.engine, behind) {
            return TurnWait::No;
        }
        let engine_due = self.engine.next_deadline().map(|ns| self.time.at_ns(ns));
        let stop_due = self.stop.map(|stop| stop.due());
        let due = [engine_due, self.accepting.again, stop_due, self.high_water.due()];
        let due = due.into_iter().flatten().min();
        match due {
            Some(due) => TurnWait::For(due.saturating_duration_since(self.time.now())),
            None => TurnWait::Forever,
        }
    }

    /// Frees the memory that a burst of connections or subscriptions has left. Only for an idle
    /// shard.
    fn give_back_memory(&mut self) {
        let held = self.sockets
            + self.engine.view().subscriptions()
            + self.engine.view().cached_subjects();
        if !self.high_water.has_ebbed(held, self.time.now()) {
            return;
        }
        self.engine.shrink();
        self.inbox.shrink();
        self.reactor.give_back_memory();
    }

    /// Carries out the messages of the control thread and of the accepting shard.
    fn obey(&mut self) {
        while let Ok(control) = self.control.try_recv() {
            match control {
                Control::Adopt { socket, peer, transport, admitted } => {
                    self.adopt(socket, peer, transport, admitted);
                }
                Control::AdoptRoute { socket, peer, route } => {
                    self.adopt_route(socket, peer, route);
                }
                Control::AdoptLeaf { socket, peer, leaf } => self.adopt_leaf(socket, peer, leaf),
                Control::CloseLeaf(lid) => self.engine.close_leaf(lid),
                Control::Route(order) => self.engine.on_route_order(order),
                Control::AdoptGateway { socket, peer, gateway } => {
                    self.adopt_gateway(socket, peer, gateway);
                }
                Control::Gateway(order) => self.engine.on_gateway_order(order),
                Control::Reload(options) => {
                    self.setup.options = options;
                    self.engine.reload(self.setup.settings());
                }
                Control::Client { cid, order, to } => {
                    let _ = to.try_send(self.engine.on_client_order(cid, order));
                }
                Control::Shed { cids, excess } => self.engine.shed(cids, excess),
                Control::LameDuck { grace, spread } => {
                    self.stop_listening();
                    let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
                    self.engine.start_lame_duck(ns(grace), ns(spread));
                    self.draining = true;
                }
                Control::Publish { account, subject, reply, header, payload } => {
                    self.engine.publish_own(account, &subject, &reply, &header, &payload);
                }
                Control::FarHalf { id, half } => join_half(&mut self.engine, id, half),
                Control::Login { conn, news } => self.engine.on_login_news(conn, news),
                Control::Open(listeners) => {
                    self.accepting.waiting.extend(listeners);
                    self.open_if_ready();
                }
                Control::Stop => {
                    self.stop_listening();
                    self.engine.take_leave();
                    self.reactor.hurry();
                    self.stop = Some(Stop::begin(self.time.now()));
                }
                // The requester may have given up waiting.
                Control::Report(to) => drop(to.try_send(self.report())),
                Control::Figures(to) => drop(to.try_send(self.figures())),
                Control::Accounts(to) => drop(to.try_send(self.engine.view().account_figures())),
                Control::Conns { from, to } => {
                    drop(to.try_send(self.engine.view().conns_page(from)))
                }
                Control::Subs { from, to } => drop(to.try_send(self.engine.view().subs_page(from))),
                Control::Streams { from, with_consumers, to } => {
                    let _ = to.try_send(self.engine.streams_page(from, with_consumers));
                }
                Control::StreamUsage(to) => drop(to.try_send(self.engine.stream_usage())),
                Control::Routes { with_interest, to } => {
                    drop(to.try_send(self.engine.view().routes(with_interest)))
                }
                Control::Gateways { with_interest, to } => {
                    drop(to.try_send(self.engine.view().gateways(with_interest)))
                }
                Control::Leaves { with_interest, to } => {
                    drop(to.try_send(self.engine.view().leaves(with_interest)))
                }
                Control::Closed { from, to } => {
                    drop(to.try_send(self.engine.view().closed_page(from)))
                }
            }
        }
    }

    fn report(&self) -> ShardReport {
        ShardReport {
            shard: self.id,
            stats: self.engine.view().stats(),
            accepted: self.accepting.accepted,
            throttled: self.accepting.limit.rejected(),
            conns: self.engine.view().open_conns(),
            subscriptions: self.engine.view().subscriptions(),
            cached_subjects: self.engine.view().cached_subjects(),
            interest: self.engine.view().interest_stats(),
        }
    }

    fn figures(&self) -> Figures {
        let cpu = clock_gettime(ClockId::ThreadCPUTime);
        let others = (0..).map(ShardId).take(self.addresses.len()).filter(|to| *to != self.id);
        let lane = |to: ShardId| {
            let lane = self.engine.view().lane(to);
            let waiting_records = lane.waiting_records + self.mesh.waiting(to);
            (to, LaneFigures { waiting_records, ..lane })
        };
        Figures {
            report: self.report(),
            at_ns: self.time.now_ns(),
            tier: self.reactor.tier(),
            cpu: Duration::try_from(cpu).unwrap_or_default(),
            reactor: self.reactor.counters(),
            turn_ns: self.turn_ns.clone(),
            delay_ns: self.engine.view().delays().clone(),
            output_bytes: self.engine.view().output_bytes(),
            braked_conns: self.engine.view().braked_conns(),
            rings: self.mesh.rings(),
            accounts: self.engine.view().account_figures(),
            client_urls: self.engine.view().client_urls(),
            lanes: others.map(lane).collect(),
        }
    }

    fn adopt(&mut self, socket: R::Socket, peer: Peer, transport: Transport, admitted: bool) {
        if self.stop.is_some() {
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
        if self.stop.is_some() {
            return;
        }
        let socket = self.reactor.adopt(socket, ZeroCopy::Never);
        self.sockets += 1;
        self.engine.open_route(conn_id(socket), peer, route);
        self.reactor.read(socket);
    }

    fn adopt_gateway(&mut self, socket: R::Socket, peer: Peer, gateway: NewGateway) {
        if self.stop.is_some() {
            return;
        }
        let socket = self.reactor.adopt(socket, ZeroCopy::Never);
        self.sockets += 1;
        self.engine.open_gateway(conn_id(socket), peer, gateway);
        self.reactor.read(socket);
    }

    fn adopt_leaf(&mut self, socket: R::Socket, peer: Peer, leaf: NewLeaf) {
        if self.stop.is_some() {
            return;
        }
        let socket = self.reactor.adopt(socket, ZeroCopy::Never);
        self.sockets += 1;
        self.engine.open_leaf(conn_id(socket), peer, leaf);
        self.reactor.read(socket);
    }

    /// Gives an accepted leaf connection to the next shard in turn.
    fn seat_leaf(&mut self, socket: R::Socket, peer: Peer) {
        let shards = self.addresses.len();
        let seat = usize::try_from(peer.cid).unwrap_or_default() % shards;
        let leaf = NewLeaf { lid: peer.cid, dialed: None };
        if seat == self.id.index() {
            self.adopt_leaf(socket, peer, leaf);
        } else if self.addresses[seat]
            .control
            .send(Control::AdoptLeaf { socket, peer, leaf })
            .is_ok()
        {
            self.reactor.wake(&self.addresses[seat].waker);
        }
    }

    /// Gives a new connection to the shard whose turn it is, or rejects it.
    fn on_accepted(&mut self, listener: ListenerId, socket: R::Socket) {
        let door = self.accepting.listeners.iter().find(|(id, _)| *id == listener);
        let Some((ip, port, transport)) = door.and_then(|(_, door)| R::examine(&socket, door))
        else {
            return; // It is gone already.
        };
        self.accepting.accepted += 1;
        let peer = Peer { cid: self.seats.number(), ip, port };
        // Processes of this machine have no address, and come as fast as they like.
        let (options, now) = (&self.setup.options, self.time.now_ns());
        let tls = options.network.tls.as_ref().map_or(0, |tls| tls.connections_per_second_max);
        if let Ok(source) = peer.ip.parse()
            && !self.accepting.limit.admits(&options.rates, tls, source, now)
        {
            self.turn_away(&socket, &peer, transport);
            return;
        }
        if transport == Transport::Leaf {
            return self.seat_leaf(socket, peer);
        }
        let admitted = self.seats.all() < options.limits.connections_max;
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

    /// Tells a client that it was rejected by the rate limit. It gets no seat, no slot and no
    /// second try: there may be thousands of them.
    fn turn_away(&mut self, socket: &R::Socket, peer: &Peer, transport: Transport) {
        // A new socket has room; if not, the end says enough.
        R::send_at_once(socket, &self.engine.view().turn_away(peer, transport));
        if let Some(count) = self.accepting.limit.take_report(self.time.now_ns()) {
            tracing::warn!(
                "Rejected {count} connections due to rate limiting, the last of {}",
                peer.ip
            );
        }
    }

    /// Listens once all streams are known: a client that came before would find none of them.
    fn open_if_ready(&mut self) {
        if self.accepting.waiting.is_empty() || !self.engine.view().is_ready() {
            return;
        }
        for Listener { socket, door } in std::mem::take(&mut self.accepting.waiting) {
            self.accepting.listeners.push((self.reactor.listen(socket), door));
        }
    }

    fn accept_if_rested(&mut self) {
        if self.accepting.again.is_some_and(|again| again <= self.time.now()) {
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

    /// Ends the connections of a stopping shard, once all shards have told their clients.
    fn part(&mut self) {
        let Some(stop) = &mut self.stop else { return };
        if stop.parts(self.time.now(), self.engine.view().is_taken_leave_of()) {
            self.engine.shut_down();
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
