//! What one shard knows and decides.
//!
//! A pure state machine: bytes, records of other shards and the time come in; what is to be sent,
//! closed or paused comes out as [`Action`]s and [`Record`]s. The caller's loop is always
//!
//! 1. hand in what happened: [`Engine::on_bytes`], [`Engine::on_sent`], [`Engine::on_record`], …
//! 2. [`Engine::end_turn`]
//! 3. carry out [`Engine::next_action`] until there is none, and move [`Engine::pop_record`]
//!    onto the lanes as far as they have room
//!
//! Times are nanoseconds since the start of the process.

#![forbid(unsafe_code)]

mod accounts;
mod compression;
mod conn;
mod departures;
mod events;
mod imports;
mod interest;
mod mapping;
mod message_trace;
mod operations;
mod outbox;
mod overflow;
mod permissions;
mod pressure;
mod proof;
mod publish;
mod record;
mod relay;
mod renewal;
mod route;
mod secure;
mod settings;
mod snapshot;
mod telling;
mod timers;
mod tokens;
mod trace;
mod transport;
mod websocket;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::rc::Rc;

use ahash::RandomState;
use slab::Slab;

use crate::config::{HandshakeFirst, Tls};
use crate::histogram::Histogram;
use crate::proto::encode;
use crate::segment::Piece;
use accounts::Accounts;
pub use accounts::{AccountFigures, AccountId};
use conn::{Conn, FLUSH_NS, Phase};
pub use conn::{Peer, Traffic};
use departures::Departures;
pub use events::ConnEvent;
use imports::Answers;
pub use imports::ServerRequest;
pub use interest::InterestStats;
use interest::{Side, Sub, SubKey};
pub use message_trace::{MessageTrace, Party, Step, StepEvent, header_values};
use message_trace::{Trace, Traces};
use outbox::Spares;
pub use overflow::Dropped;
pub use pressure::LaneFigures;
use pressure::{Lane, Wait};
pub use proof::{NonceKey, Proof};
use publish::Run;
use record::Publisher;
pub use record::{InterestRecord, Record, Report, RunRecord};
use route::Cluster;
pub use route::{NewRoute, RouteNotice, RouteSnapshot};
pub use secure::TlsInfo;
pub use settings::{ClusterIdentity, Identity, Settings};
use snapshot::Closed;
pub use snapshot::{ClosedConn, ConnSnapshot, Page, SubSnapshot};
use timers::{NEVER, Timers};
use tokens::Pass;
pub use transport::{Credentials, Transport};
use websocket::Packer;

/// Every connection is looked at this often, whatever it waits for, in nanoseconds.
const RECHECK_NS_MAX: u64 = 10_000_000_000;

/// A shard of this server, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub u8);

/// More shards than this cannot be told apart in a [`ShardSet`].
pub const SHARDS_MAX: usize = 64;

impl ShardId {
    /// Its place in tables of all shards.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// A set of shards.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ShardSet(u64);

impl ShardSet {
    fn contains(self, shard: ShardId) -> bool {
        self.0 & 1 << shard.0 != 0
    }

    fn insert(&mut self, shard: ShardId) {
        self.0 |= 1 << shard.0;
    }

    fn remove(&mut self, shard: ShardId) {
        self.0 &= !(1 << shard.0);
    }

    fn with(self, shard: ShardId) -> Self {
        Self(self.0 | 1 << shard.0)
    }

    fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn iter(self) -> impl Iterator<Item = ShardId> {
        (0..64).filter(move |shard| self.0 & 1 << shard != 0).map(ShardId)
    }
}

/// A connection of a shard: a slot, and which life of that slot is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId {
    /// Dense from 0; used again when the connection is wholly closed.
    pub slot: u32,
    /// Counts the lives of the slot.
    pub generation: u32,
}

/// What the shard has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// There may be something to send: ask [`Engine::take_batch`].
    Flush(ConnId),
    /// Close it; [`Engine::on_closed`] ends it.
    Close {
        /// Which.
        conn: ConnId,
        /// Drop what is still in flight, too.
        abort: bool,
    },
    /// Read no more from it for now.
    Pause(ConnId),
    /// Read from it again.
    Resume(ConnId),
}

/// Counters of one shard since its start.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    /// Messages received from clients.
    pub in_msgs: u64,
    /// Their payload bytes.
    pub in_bytes: u64,
    /// Messages delivered to clients.
    pub out_msgs: u64,
    /// Their payload bytes.
    pub out_bytes: u64,
    /// Clients closed because they did not read fast enough.
    pub slow_consumers: u64,
    /// Clients closed because they did not answer PINGs.
    pub stale_connections: u64,
    /// Times that a publisher was not read from because those who get its messages were behind.
    pub stalls: u64,
    /// Queue messages for which no member was left when they arrived.
    pub queue_msgs_lost: u64,
    /// What other servers sent and were sent; it is not part of the other figures.
    pub routed: Traffic,
    /// Messages that clients have not got because they were behind.
    pub dropped: Dropped,
}

impl Stats {
    /// Messages and bytes delivered to clients.
    fn delivered(&self) -> (u64, u64) {
        (self.out_msgs, self.out_bytes)
    }
}

/// The connections of a shard by slot.
#[derive(Debug, Default)]
struct Conns(Vec<Option<Box<Conn>>>);

impl Conns {
    fn get(&self, id: ConnId) -> Option<&Conn> {
        self.at(id.slot).filter(|conn| conn.id == id)
    }

    fn get_mut(&mut self, id: ConnId) -> Option<&mut Conn> {
        self.at_mut(id.slot).filter(|conn| conn.id == id)
    }

    fn at(&self, slot: u32) -> Option<&Conn> {
        self.0.get(slot as usize)?.as_deref()
    }

    fn at_mut(&mut self, slot: u32) -> Option<&mut Conn> {
        self.0.get_mut(slot as usize)?.as_deref_mut()
    }

    fn iter(&self) -> impl Iterator<Item = &Conn> {
        self.0.iter().flatten().map(Box::as_ref)
    }

    fn iter_mut(&mut self) -> impl Iterator<Item = &mut Conn> {
        self.0.iter_mut().flatten().map(Box::as_mut)
    }

    fn ids(&self) -> Vec<ConnId> {
        self.iter().map(|conn| conn.id).collect()
    }

    /// Those that are no routes.
    fn client_ids(&self) -> Vec<ConnId> {
        self.iter().filter(|conn| conn.route.is_none()).map(|conn| conn.id).collect()
    }
}

/// Why a connection ends, as monitoring names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The client closed it.
    ClientClosed,
    /// What was read or its absence broke the protocol; the text is the field's own.
    Protocol(&'static str),
    /// More was pending than `max_pending`.
    SlowConsumerPending,
    /// A write took longer than `write_deadline`.
    SlowConsumerDeadline,
    /// Writing failed.
    WriteError,
    /// Reading failed.
    ReadError,
    /// The server ends or sends its clients away.
    ServerShutdown,
}

impl Reason {
    /// Its name in the log and in monitoring.
    pub fn text(self) -> &'static str {
        match self {
            Self::ClientClosed => "Client Closed",
            Self::Protocol(text) => text,
            Self::SlowConsumerPending => "Slow Consumer (Pending Bytes)",
            Self::SlowConsumerDeadline => "Slow Consumer (Write Deadline)",
            Self::WriteError => "Write Error",
            Self::ReadError => "Read Error",
            Self::ServerShutdown => "Server Shutdown",
        }
    }
}

/// One shard's state.
#[derive(Debug)]
pub struct Engine {
    shard: ShardId,
    settings: Rc<Settings>,
    now: u64,
    rng: fastrand::Rng,
    hasher: RandomState,
    conns: Conns,
    /// Clients that the shard has not been told to close.
    open_conns: usize,
    cluster: Cluster,
    subs: Slab<Sub>,
    accounts: Accounts,
    spares: Spares,
    timers: Timers,
    actions: VecDeque<Action>,
    /// Subscriptions that reached their maximum in the run being delivered.
    ended: Vec<SubKey>,
    /// Connections that went over `max_pending` in the run being delivered.
    doomed: Vec<ConnId>,
    /// Memory for the next run.
    spare_run: Run<'static>,
    lanes: Vec<Lane>,
    /// Counts the turns that staged something for another shard; the current one included.
    epoch: u64,
    /// The last epoch in which a change of interest was announced.
    announced_epoch: u64,
    /// Every other shard has consumed what was staged up to this epoch.
    settled_epoch: u64,
    /// Connections with output that waits for an epoch to be settled.
    held: Vec<ConnId>,
    waits: HashMap<u64, Wait, RandomState>,
    waiting: HashMap<Publisher, u64, RandomState>,
    wait_deadlines: BTreeSet<(u64, u64)>,
    next_wait: u64,
    lame_duck: Option<LameDuck>,
    /// Connections whose TLS handshake can go on.
    handshakes: VecDeque<ConnId>,
    /// Memory for what is decrypted.
    plaintext: Vec<u8>,
    /// Connections whose compressed data waits until others had their turn.
    unpacking: VecDeque<ConnId>,
    /// New peers that are being told what clients want.
    tellings: VecDeque<telling::Telling>,
    packer: Packer,
    /// Memory for what is taken out of frames.
    unframed: Vec<u8>,
    /// What is to be checked elsewhere.
    proofs: VecDeque<(ConnId, Proof)>,
    /// Requests to services of other accounts.
    answers: Answers,
    /// Requests to the server itself.
    server_requests: VecDeque<ServerRequest>,
    /// What happened to connections, if anybody wants to know.
    events: VecDeque<ConnEvent>,
    /// There while a traced message is being delivered.
    trace: Option<Box<Trace>>,
    traces: Traces,
    stats: Stats,
    closed: Closed,
    /// When what is being handled arrived.
    arrived: u64,
    departures: Departures,
    /// Connections that are not read from because a lane or those who get their messages are full.
    braked: usize,
}

/// How the last clients are sent away.
#[derive(Debug, Clone, Copy)]
struct LameDuck {
    next_close: u64,
    interval: u64,
}

impl Engine {
    /// A shard of `shards` without connections. Equal seeds make equal choices.
    pub fn new(shard: ShardId, shards: usize, settings: Rc<Settings>, seed: u64) -> Self {
        assert!(shards <= SHARDS_MAX, "at most {SHARDS_MAX} shards");
        let mut rng = fastrand::Rng::with_seed(seed);
        let hasher = RandomState::with_seeds(rng.u64(..), rng.u64(..), rng.u64(..), rng.u64(..));
        let mut accounts = Accounts::new(rng.u64(..));
        settings.configure(&mut accounts);
        Self {
            shard,
            settings,
            now: 0,
            conns: Conns::default(),
            open_conns: 0,
            cluster: Cluster::default(),
            subs: Slab::new(),
            accounts,
            rng,
            spares: Spares::default(),
            timers: Timers::default(),
            actions: VecDeque::new(),
            ended: Vec::new(),
            doomed: Vec::new(),
            spare_run: Run::default(),
            lanes: (0..shards).map(|_| Lane::default()).collect(),
            epoch: 1,
            announced_epoch: 0,
            settled_epoch: 0,
            held: Vec::new(),
            answers: Answers::new(&hasher),
            server_requests: VecDeque::new(),
            events: VecDeque::new(),
            trace: None,
            traces: Traces::default(),
            waits: HashMap::with_hasher(hasher.clone()),
            waiting: HashMap::with_hasher(hasher.clone()),
            hasher,
            wait_deadlines: BTreeSet::new(),
            next_wait: 0,
            lame_duck: None,
            handshakes: VecDeque::new(),
            plaintext: Vec::new(),
            unpacking: VecDeque::new(),
            tellings: VecDeque::new(),
            packer: Packer::default(),
            unframed: Vec::new(),
            proofs: VecDeque::new(),
            stats: Stats::default(),
            closed: Closed::default(),
            arrived: 0,
            departures: Departures::default(),
            braked: 0,
        }
    }

    /// The time of everything that is handed in from now on.
    pub fn set_now(&mut self, now: u64) {
        self.now = self.now.max(now);
        self.arrived = self.now;
    }

    /// What is handed in from now on arrived at `arrived`, if not just now: the delay of all that
    /// it sends out is counted from there.
    pub fn set_arrived(&mut self, arrived: u64) {
        self.arrived = arrived;
    }

    /// Takes over a new connection over TCP and greets it. One that is not `admitted` is told that
    /// there are too many, and closed.
    pub fn open(&mut self, id: ConnId, peer: Peer, admitted: bool) {
        self.open_over(id, peer, Transport::Tcp, admitted);
    }

    /// The same over any transport. A WebSocket is greeted when it is one.
    pub fn open_over(&mut self, id: ConnId, peer: Peer, transport: Transport, admitted: bool) {
        let mut conn = Box::new(Conn::new(id, peer, self.now));
        conn.transport = transport;
        let settings = &self.settings;
        let interval = settings.ping_interval_of(transport);
        conn.timing.ping_due = self.now.saturating_add(interval);
        conn.timing.auth_due = settings.auth_due(transport, self.now);
        if transport != Transport::WebSocket {
            tracing::debug!("{} - Client connection created", conn.label());
        }
        self.place_conn(conn);
        self.open_conns += 1;
        if transport == Transport::WebSocket {
            self.begin_websocket(id);
        }
        if admitted {
            self.begin_preface(id);
            if self.begin_secure(id) {
                self.send_info(id, false);
            }
            self.rearm(id);
        } else {
            // In clear, whatever the client expects: nobody works for those who cannot stay.
            let in_clear = |tls: &Tls| tls.first == HandshakeFirst::No;
            if transport != Transport::WebSocket
                && self.settings.tls_of(transport).is_none_or(in_clear)
            {
                self.send_info(id, false);
            }
            self.refuse_seat(id);
        }
    }

    fn place_conn(&mut self, conn: Box<Conn>) {
        let slot = conn.id.slot as usize;
        if self.conns.0.len() <= slot {
            self.conns.0.resize_with(slot + 1, || None);
        }
        assert!(self.conns.0[slot].is_none(), "a slot is used again only after on_closed");
        self.conns.0[slot] = Some(conn);
    }

    /// What a client is sent for whom there is no time: it comes too soon after others.
    pub fn turn_away(&self, peer: &Peer, transport: Transport) -> Vec<u8> {
        let mut out = Vec::new();
        if transport == Transport::WebSocket {
            return out;
        }
        let tls = self.settings.tls_of(transport);
        if tls.is_none_or(|tls| tls.first == HandshakeFirst::No) {
            let lame_duck = self.lame_duck.is_some();
            let to = (peer, transport);
            let info = self.settings.info(to, &self.cluster, lame_duck, None);
            encode::info(&mut out, info.as_bytes());
        }
        encode::err(&mut out, "Connection throttling is active. Please try again later.");
        out
    }

    fn refuse_seat(&mut self, id: ConnId) {
        let reason = Reason::Protocol("Maximum Connections Exceeded");
        self.fail(id, Some("maximum connections exceeded"), reason);
    }

    /// The client has closed its side, or reading failed.
    pub fn on_ended(&mut self, id: ConnId, failed: bool) {
        if self.waits_for_end(id, failed) {
            return;
        }
        let reason = if failed { Reason::ReadError } else { Reason::ClientClosed };
        self.fail(id, None, reason);
    }

    /// The next batch for a connection, in order; none while one is in flight.
    pub fn take_batch(&mut self, id: ConnId) -> Option<Vec<Piece>> {
        let conn = self.conns.get_mut(id)?;
        conn.dirty = false;
        if conn.phase == Phase::Closed {
            return None;
        }
        let batch = conn.take_batch(&mut self.spares, &mut self.packer)?;
        self.departures.add(conn.timing.oldest_arrived);
        // If not all of it fits, what is left is taken to be as old as this turn.
        conn.timing.oldest_arrived = if conn.outbox.has_more() { self.now } else { NEVER };
        conn.timing.send_started = self.now;
        let due = self.now.saturating_add(self.settings.write_deadline_ns);
        self.timers.arm(id, due, &mut conn.timing.armed);
        Some(batch)
    }

    /// The kernel has taken `bytes` more of the batch in flight; with `done` it comes home.
    pub fn on_sent(&mut self, id: ConnId, bytes: usize, done: Option<Vec<Piece>>) {
        let complete = done.is_some();
        if let Some(batch) = done {
            self.spares.keep_batch(batch);
        }
        let Some(conn) = self.conns.get_mut(id) else { return };
        let sent_bytes = conn.sent_bytes(bytes, complete);
        conn.outbox.on_sent(sent_bytes);
        let pending = conn.outbox.pending_bytes();
        if complete {
            conn.outbox.on_done();
            let is_drained = conn.is_drained();
            if !is_drained && !conn.dirty {
                conn.dirty = true;
                self.actions.push_back(Action::Flush(id));
            }
            if is_drained && matches!(conn.phase, Phase::Flushing { .. }) {
                self.close(id, false);
            }
        }
        self.relieve(id, pending);
    }

    /// Writing to the connection failed; its batch comes home.
    pub fn on_send_failed(&mut self, id: ConnId, batch: Option<Vec<Piece>>) {
        self.take_home(batch);
        self.abort(id, Reason::WriteError);
    }

    /// A batch of a connection that is gone comes home.
    pub fn take_home(&mut self, batch: Option<Vec<Piece>>) {
        if let Some(batch) = batch {
            self.spares.keep_batch(batch);
        }
    }

    /// The reactor has closed the connection; its slot is free.
    pub fn on_closed(&mut self, id: ConnId) {
        if self.conns.get(id).is_none() {
            return;
        }
        self.leave(id);
        if let Some(mut conn) = self.conns.0[id.slot as usize].take() {
            conn.outbox.clear(&mut self.spares);
            if conn.phase != Phase::Closed && conn.route.is_none() {
                self.open_conns -= 1;
            }
            self.braked -= usize::from(conn.brakes.any());
        }
    }

    /// Lets go of what only more connections and subscriptions than there are now would need. Not
    /// in the middle of a turn.
    pub fn shrink(&mut self) {
        let conns = &mut self.conns.0;
        conns.truncate(conns.iter().rposition(Option::is_some).map_or(0, |last| last + 1));
        conns.shrink_to_fit();
        self.timers.shrink(|id| self.conns.get(id).is_some());
        self.subs.shrink_to_fit();
        self.actions.shrink_to_fit();
        self.spares.shrink();
    }

    /// Ends a turn: barriers go out, limits are enforced.
    pub fn end_turn(&mut self) {
        self.departures.forget();
        self.traces.end_turn();
        self.send_barriers();
        self.bound_memory();
    }

    /// Handles what is due.
    pub fn tick(&mut self) {
        while let Some((deadline, id)) = self.timers.pop_due(self.now) {
            let Some(conn) = self.conns.get_mut(id) else { continue };
            if conn.timing.armed != deadline {
                continue;
            }
            conn.timing.armed = NEVER;
            self.on_timer(id);
            self.rearm(id);
        }
        self.advance_handshakes();
        self.advance_unpacking();
        self.advance_tellings();
        self.end_overdue_waits();
        self.send_one_away();
    }

    /// When [`Engine::tick`] is needed next.
    pub fn next_deadline(&self) -> Option<u64> {
        let has_line = !self.handshakes.is_empty() || !self.unpacking.is_empty();
        if has_line || !self.tellings.is_empty() {
            return Some(self.now);
        }
        let wait = self.wait_deadlines.first().map(|(deadline, _)| *deadline);
        let duck = self.lame_duck.filter(|_| self.open_conns > 0).map(|duck| duck.next_close);
        [self.timers.next(), wait, duck].into_iter().flatten().min()
    }

    /// What to do next, until there is nothing more.
    pub fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Credentials that are to be checked where it takes nobody's time, until there are no more;
    /// [`Engine::on_proof`] wants to hear of each.
    pub fn pop_proof(&mut self) -> Option<(ConnId, Proof)> {
        self.proofs.pop_front()
    }

    /// Another shard has something to say.
    pub fn on_record(&mut self, from: ShardId, record: Record) {
        match record {
            Record::Run(run) => self.on_run(&run),
            Record::Traced(report) => self.on_traced(*report),
            Record::Interest(interest) => {
                let InterestRecord { account, side, filter, queue, members } = *interest;
                let interest = &mut self.accounts.at(account).interest;
                let tell = interest.set_remote(from, side, &filter, queue.as_deref(), members);
                if let Some(members) = tell {
                    self.tell_routes(account, (&filter, queue.as_deref()), members);
                }
            }
            Record::Barrier { epoch } => self.push_record(from, Record::Settled { epoch }),
            Record::Settled { epoch } => self.on_settled(from, epoch),
            Record::Pause { conn } => self.pause_for(conn, from),
            Record::Resume { conn } => self.resume_for(conn, from),
        }
    }

    /// The server is about to end: everybody gets what is queued, then the end of the stream.
    pub fn shut_down(&mut self) {
        // Other shards may be gone before they answer: a barrier promises nothing any more.
        self.settled_epoch = u64::MAX;
        self.settle();
        for id in self.conns.ids() {
            self.fail(id, None, Reason::ServerShutdown);
        }
    }

    /// The server takes no more connections and will send these away: clients that can be told
    /// are told now; from `first_close_ns` on they are closed one by one within `spread_ns`.
    pub fn start_lame_duck(&mut self, first_close_ns: u64, spread_ns: u64) {
        const INTERVAL_NS_MAX: u64 = 1_000_000_000;
        let interval = spread_ns / (self.open_conns as u64).max(1);
        let next_close = self.now.saturating_add(first_close_ns);
        let interval = interval.min(INTERVAL_NS_MAX);
        self.lame_duck = Some(LameDuck { next_close, interval });
        self.inform_clients();
        self.announce_lame_duck();
    }

    /// Sends INFO anew to all clients that understand that.
    fn inform_clients(&mut self) {
        for id in self.conns.client_ids() {
            // One that is at its end has heard its last word.
            let understands =
                |conn: &Conn| conn.is_open() && conn.greeted && conn.connect.protocol >= 1;
            if self.conns.get(id).is_some_and(understands) {
                self.send_info(id, false);
            }
        }
        self.settle_deliveries();
    }

    /// Connections that the shard has not been told to close.
    pub fn open_conns(&self) -> usize {
        self.open_conns
    }

    /// Local subscriptions.
    pub fn subscriptions(&self) -> usize {
        self.subs.len()
    }

    /// Subjects whose receivers are remembered, over all accounts.
    pub fn cached_subjects(&self) -> usize {
        self.accounts.iter().map(|account| account.interest.cached_subjects()).sum()
    }

    /// Filters in which any shard is interested, over all accounts.
    pub fn filters(&self) -> usize {
        self.accounts.iter().map(|account| account.interest.filters()).sum()
    }

    /// How often subscriptions came and went, and subjects were looked up, over all accounts.
    pub fn interest_stats(&self) -> InterestStats {
        let mut all = InterestStats::default();
        self.accounts.iter().for_each(|account| all.add(&account.interest.stats()));
        all
    }

    /// How each account is that is configured or has connections.
    pub fn account_figures(&self) -> Vec<AccountFigures> {
        self.accounts.iter().filter(|account| !account.name.is_empty()).map(Into::into).collect()
    }

    /// Counters since the start.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// The batches taken since the turn's end are on their way at `now`: their delay is counted.
    /// Without this call it is not.
    pub fn depart(&mut self, now: u64) {
        self.departures.depart(now);
    }

    /// For each batch, the nanoseconds from the arrival of the oldest input that it answers to
    /// [`Engine::depart`].
    pub fn delays(&self) -> &Histogram {
        self.departures.delays()
    }

    /// Bytes of output that are queued or with the kernel; what connections share counts once.
    pub fn output_bytes(&self) -> usize {
        self.spares.held_bytes()
    }

    /// Connections that are not read from because of back-pressure.
    pub fn braked_conns(&self) -> usize {
        self.braked
    }

    fn on_timer(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if let Phase::Flushing { until } = conn.phase {
            if until <= self.now {
                self.close(id, true);
            }
            return;
        }
        let overdue = conn.timing.send_started.saturating_add(self.settings.write_deadline_ns);
        if conn.outbox.is_in_flight() && overdue <= self.now {
            let bytes = conn.outbox.pending_bytes();
            tracing::info!(
                "{} - Slow Consumer Detected: WriteDeadline of {:?} exceeded with {} total bytes.",
                conn.label(),
                std::time::Duration::from_nanos(self.settings.write_deadline_ns),
                bytes
            );
            self.abort(id, Reason::SlowConsumerDeadline);
        } else if conn.timing.info_due <= self.now {
            conn.timing.info_due = NEVER;
            self.send_info(id, false);
        } else if conn.timing.read_due <= self.now {
            conn.timing.read_due = NEVER;
            self.release(id, |brakes| brakes.pace = false);
        } else if conn.timing.expires_due <= self.now {
            conn.timing.expires_due = NEVER;
            if let Some(farewell) = conn.pass().map(Pass::farewell) {
                tracing::error!("{} - {farewell}", conn.label());
                self.fail(id, Some(farewell), Reason::Protocol("Authentication Expired"));
            }
        } else if conn.timing.preface_due <= self.now {
            conn.timing.preface_due = NEVER;
            self.fail_preface(id, "it takes too long");
        } else if conn.timing.auth_due <= self.now {
            conn.timing.auth_due = NEVER;
            if conn.secure.as_ref().is_some_and(|secure| !secure.is_established()) {
                self.on_handshake_timeout(id);
                return;
            }
            if !conn.is_understood() {
                self.fail_upgrade(id, "timeout");
                return;
            }
            tracing::error!("{} - authentication timeout", conn.label());
            let reason = Reason::Protocol("Authentication Timeout");
            self.fail(id, Some("Authentication Timeout"), reason);
        } else if conn.timing.ping_due <= self.now {
            self.on_ping_timer(id);
        }
    }

    fn on_ping_timer(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        let (noun, route) = (conn.noun(), &self.settings.route);
        let (interval, ping_max) = match conn.route {
            Some(_) => (route.ping_interval_ns, route.ping_max),
            None => (self.settings.ping_interval_of(conn.transport), self.settings.ping_max),
        };
        let timing = &mut conn.timing;
        timing.ping_due = self.now.saturating_add(interval);
        let active = timing.last_active.saturating_add(interval) > self.now;
        if timing.first_ping_sent && active && conn.route.is_none() {
            return;
        }
        let timing = &mut conn.timing;
        if timing.pings_out >= ping_max {
            tracing::debug!("{} - Stale {noun} Connection - Closing", conn.label());
            self.stats.stale_connections += 1;
            self.fail(id, Some("Stale Connection"), Reason::Protocol("Stale Connection"));
            return;
        }
        timing.first_ping_sent = true;
        timing.pings_out += 1;
        timing.ping_sent = self.now;
        tracing::debug!("{} - {noun} Ping Timer", conn.label());
        self.reply(id, encode::ping);
    }

    /// Enters the connection's earliest deadline.
    fn rearm(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        let timing = &conn.timing;
        let due = match conn.phase {
            Phase::Closed => NEVER,
            Phase::Flushing { until } => until,
            Phase::Open => {
                let write = if conn.outbox.is_in_flight() {
                    timing.send_started.saturating_add(self.settings.write_deadline_ns)
                } else {
                    NEVER
                };
                let own = timing.ping_due.min(timing.auth_due).min(timing.info_due);
                let own = own.min(timing.expires_due).min(timing.read_due);
                own.min(timing.preface_due).min(write)
            }
        };
        if due != NEVER {
            // An entry of a connection that is gone must not stay for a whole ping interval.
            let due = due.min(self.now.saturating_add(RECHECK_NS_MAX));
            self.timers.arm(id, due, &mut conn.timing.armed);
        }
    }

    /// Appends to a connection's output.
    fn reply(&mut self, id: ConnId, write: impl FnOnce(&mut Vec<u8>)) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.phase == Phase::Closed {
            return;
        }
        if self.settings.tracing.is_some() {
            let mut line = Vec::new();
            write(&mut line);
            // nats-server leaves the quotes of an error out.
            let text = String::from_utf8_lossy(&line).trim_end().replace('\'', "");
            tracing::trace!("{} - ->> [{text}]", conn.label());
            conn.outbox.push(&mut self.spares, |out| out.extend_from_slice(&line));
        } else {
            conn.outbox.push(&mut self.spares, write);
        }
        if conn.outbox.pending_bytes() > conn.pending_bytes_max(&self.settings.limits) {
            self.doomed.push(id);
        }
        self.flush_soon(id);
    }

    /// Something was appended to a connection's output.
    fn flush_soon(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if !conn.dirty {
            conn.dirty = true;
            conn.timing.oldest_arrived = conn.timing.oldest_arrived.min(self.arrived);
            self.actions.push_back(Action::Flush(id));
        }
    }

    /// Appends a reply that promises that all the connection sent is in force on every shard:
    /// it is held back until that is so.
    fn confirm(&mut self, id: ConnId, write: impl FnOnce(&mut Vec<u8>)) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.staged_epoch > self.settled_epoch {
            if !conn.outbox.is_held() {
                self.held.push(id);
            }
            conn.outbox.hold(conn.staged_epoch);
        }
        self.reply(id, write);
    }

    fn send_info(&mut self, id: ConnId, after_connect: bool) {
        self.send_info_of(id, after_connect, self.lame_duck.is_some());
    }

    fn send_info_of(&mut self, id: ConnId, after_connect: bool, lame_duck: bool) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.informed = true;
        let account = conn.account_name();
        let account = after_connect.then_some(&*account);
        let to = (&conn.peer, conn.transport);
        let info = self.settings.info(to, &self.cluster, lame_duck, account);
        self.reply(id, |out| encode::info(out, info.as_bytes()));
    }

    /// Ends a connection: its error, if any, and all that is queued is sent within
    /// [`FLUSH_NS`], or the write deadline when the server sends it away; nothing more is read.
    fn fail(&mut self, id: ConnId, error: Option<&str>, reason: Reason) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if !conn.is_open() {
            return;
        }
        let patience = match reason {
            Reason::ServerShutdown => self.settings.write_deadline_ns,
            _ => FLUSH_NS,
        };
        let until = self.now.saturating_add(patience);
        conn.phase = Phase::Flushing { until };
        conn.review();
        conn.partial = Vec::new();
        if conn.is_understood() {
            conn.log_end(reason);
        }
        if let Some(websocket) = &mut conn.websocket {
            websocket.end(reason);
        }
        if let Some(error) = error.filter(|_| conn.is_understood()) {
            self.reply(id, |out| encode::err(out, error));
        }
        self.remember(id, reason);
        self.leave(id);
        self.actions.push_back(Action::Pause(id));
        self.rearm(id);
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.outbox.is_empty() {
            conn.say_goodbye();
        }
        if conn.is_drained() {
            self.close(id, false);
        } else if !conn.dirty {
            conn.dirty = true;
            self.actions.push_back(Action::Flush(id));
        }
    }

    /// Ends a connection at once; what is queued is dropped.
    fn abort(&mut self, id: ConnId, reason: Reason) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.phase == Phase::Closed {
            return;
        }
        if matches!(reason, Reason::SlowConsumerPending | Reason::SlowConsumerDeadline) {
            self.stats.slow_consumers += 1;
            self.accounts.at(conn.account).slow_consumers += 1;
        }
        if conn.is_open() {
            conn.log_end(reason);
            self.remember(id, reason);
        }
        self.close(id, true);
        self.leave(id);
    }

    fn close(&mut self, id: ConnId, abort: bool) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.phase == Phase::Closed {
            return;
        }
        conn.phase = Phase::Closed;
        conn.review();
        conn.outbox.clear(&mut self.spares);
        self.open_conns -= usize::from(conn.route.is_none());
        self.actions.push_back(Action::Close { conn: id, abort });
    }

    /// Takes the connection out of every table.
    fn leave(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        let keys: Vec<SubKey> = conn.subs.drain().collect();
        conn.checks = None;
        for key in keys {
            self.retract(key);
        }
        self.leave_route(id);
        self.leave_account(id);
        self.relieve(id, 0);
    }

    /// Counts a connection as one of its account no more.
    fn leave_account(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if std::mem::take(&mut conn.seated) {
            self.accounts.at(conn.account).leave();
        }
    }

    /// Removes a subscription that its connection no longer knows.
    fn retract(&mut self, key: SubKey) {
        let Some(conn) = self.conns.at(self.subs[key as usize].conn) else { return };
        let (id, account) = (conn.id, conn.account);
        let interest = &mut self.accounts.at(account).interest;
        let (sub, change) = interest.remove(key, &mut self.subs);
        let what = (sub.subject(), sub.queue());
        if let Some(members) = change.announce {
            self.announce(id, account, Side::Clients, what, members);
        }
        if let Some(members) = change.tell {
            self.tell_routes(account, what, members);
        }
    }

    fn announce(
        &mut self,
        id: ConnId,
        account: AccountId,
        side: Side,
        (filter, queue): (&[u8], Option<&[u8]>),
        members: u32,
    ) {
        for shard in self.others() {
            let record = InterestRecord {
                account,
                side,
                filter: filter.into(),
                queue: queue.map(Into::into),
                members,
            };
            self.push_record(shard, Record::Interest(Box::new(record)));
            self.announced_epoch = self.epoch;
            self.mark_staged(id, shard);
        }
    }

    /// Ends subscriptions that reached their maximum and connections that went over a limit while
    /// a run was delivered: not before, because its targets name them.
    fn settle_deliveries(&mut self) {
        while let Some(key) = self.ended.pop() {
            self.end_subscription(key);
        }
        while let Some(id) = self.doomed.pop() {
            let Some(conn) = self.conns.get(id) else { continue };
            if conn.phase == Phase::Closed {
                continue;
            }
            tracing::info!(
                "{} - Slow Consumer Detected: MaxPending of {} Exceeded",
                conn.label(),
                conn.pending_bytes_max(&self.settings.limits)
            );
            self.abort(id, Reason::SlowConsumerPending);
        }
    }

    fn end_subscription(&mut self, key: SubKey) {
        let Some(sub) = self.subs.get(key as usize) else { return };
        let hash = self.hasher.hash_one(sub.sid());
        if let Some(conn) = self.conns.at_mut(sub.conn)
            && let Ok(entry) = conn.subs.find_entry(hash, |other| *other == key)
        {
            entry.remove();
            self.retract(key);
        }
    }

    /// Closes the next connection of a lame duck.
    fn send_one_away(&mut self) {
        let Some(duck) = &mut self.lame_duck else { return };
        if duck.next_close > self.now {
            return;
        }
        duck.next_close = self.now.saturating_add(duck.interval);
        let client = |conn: &&Conn| conn.is_open() && conn.route.is_none();
        let client = self.conns.iter().find(client).map(|conn| conn.id);
        if let Some(id) = client {
            self.fail(id, None, Reason::ServerShutdown);
        }
    }

    fn others(&self) -> impl Iterator<Item = ShardId> + use<> {
        let (own, shards) = (self.shard, u8::try_from(self.lanes.len()).unwrap_or(u8::MAX));
        (0..shards).map(ShardId).filter(move |shard| *shard != own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Options;
    use crate::config::{Account, Destination, Mapping};

    #[test]
    fn a_server_that_ends_leaves_slow_readers_the_time_that_a_write_may_take() {
        let settings = Settings::new(&Options::default(), &Identity::default(), usize::MAX);
        let mut engine = Engine::new(ShardId(0), 1, Rc::new(settings), 1);
        let id = ConnId { slot: 0, generation: 0 };
        engine.open(id, Peer { cid: 1, ip: "127.0.0.1".into(), port: 1 }, true);
        let batch = engine.take_batch(id).expect("the greeting is queued");
        let bytes: usize = batch.iter().map(|piece| piece.bytes().len()).sum();
        engine.shut_down();
        let at = |engine: &mut Engine, ms: u64| {
            engine.set_now(ms * 1_000_000);
            engine.tick();
            let closed = |action| matches!(action, Action::Close { .. });
            std::iter::from_fn(|| engine.next_action()).any(closed)
        };
        assert!(!at(&mut engine, 5000), "what is queued is still being taken");
        engine.on_sent(id, bytes, Some(batch));
        assert!(at(&mut engine, 5001), "everything is taken");
    }

    fn engine_with(options: &Options, shards: usize, conns: u32) -> (Engine, Vec<ConnId>) {
        let settings = Settings::new(options, &Identity::default(), usize::MAX);
        let mut engine = Engine::new(ShardId(0), shards, Rc::new(settings), 1);
        let ids: Vec<_> = (0..conns).map(|slot| ConnId { slot, generation: 0 }).collect();
        for id in &ids {
            engine.open(*id, Peer { cid: 1, ip: "".into(), port: 1 }, true);
            engine.on_bytes(
                *id,
                b"CONNECT {\"verbose\":false,\"headers\":true,\"no_responders\":true}\r\n",
            );
            out(&mut engine, *id);
        }
        (engine, ids)
    }

    fn out(engine: &mut Engine, id: ConnId) -> String {
        let mut all = Vec::new();
        while let Some(batch) = engine.take_batch(id) {
            let bytes: Vec<u8> = batch.iter().flat_map(|p| p.bytes()).copied().collect();
            engine.on_sent(id, bytes.len(), Some(batch));
            all.extend(bytes);
        }
        String::from_utf8(all).unwrap()
    }

    #[test]
    fn an_error_follows_what_was_published_before_it_wherever_tcp_cuts() {
        let run = |cut: bool| {
            let (mut engine, ids) = engine_with(&Options::default(), 1, 1);
            engine.on_bytes(ids[0], b"SUB a 1\r\n");
            let (one, two) = (&b"PUB a 1\r\nx\r\n"[..], &b"PUB a _R_.r 1\r\ny\r\n"[..]);
            if cut {
                engine.on_bytes(ids[0], one);
                engine.on_bytes(ids[0], two);
            } else {
                engine.on_bytes(ids[0], &[one, two].concat());
            }
            engine.end_turn();
            out(&mut engine, ids[0])
        };
        assert_eq!(run(true), run(false));
    }

    #[test]
    fn an_active_client_is_not_stale() {
        let options = Options { ping_interval_ms: 1000, ping_max: 1, ..Options::default() };
        let (mut engine, ids) = engine_with(&options, 1, 1);
        let mut text = String::new();
        for ms in (0..5000u64).step_by(100) {
            engine.set_now(ms * 1_000_000);
            engine.on_bytes(ids[0], b"PUB a 0\r\n\r\n");
            engine.tick();
            engine.end_turn();
            text += &out(&mut engine, ids[0]);
        }
        assert!(!text.contains("Stale"), "{text}");
    }

    #[test]
    fn one_byte_of_an_operation_holds_little_memory() {
        let (mut engine, ids) = engine_with(&Options::default(), 1, 3);
        engine.on_bytes(ids[0], b"SUB a 1\r\n");
        let mut wire = b"PUB a 900000\r\n".to_vec();
        wire.extend(vec![b'x'; 900_000]);
        wire.extend(b"\r\n");
        engine.on_bytes(ids[1], &wire);
        out(&mut engine, ids[0]);
        engine.on_bytes(ids[2], b"P");
        let cap = engine.conns.get(ids[2]).unwrap().partial.capacity();
        assert!(cap < 65536, "{cap}");
    }

    #[test]
    fn a_mapping_for_a_cluster_holds_once_the_server_is_in_it() {
        let mut options = Options::default();
        let destination = |subject: &str, cluster: Option<&str>| Destination {
            subject: subject.to_owned(),
            weight: 100,
            cluster: cluster.map(str::to_owned),
        };
        let destinations = vec![destination("x", Some("X")), destination("y", None)];
        let mappings = vec![Mapping { source: "a".to_owned(), destinations }];
        options.accounts.add(Account { mappings, ..Account::named("$G") });
        let (mut engine, ids) = engine_with(&options, 1, 2);
        engine.on_bytes(ids[0], b"SUB > 1\r\n");
        out(&mut engine, ids[0]);
        let became = |engine: &mut Engine| {
            engine.on_bytes(ids[1], b"PUB a 0\r\n\r\n");
            out(engine, ids[0])
        };
        assert_eq!(became(&mut engine), "MSG y 1 0\r\n\r\n");
        engine.name_cluster("X", false);
        assert_eq!(became(&mut engine), "MSG x 1 0\r\n\r\n");
    }

    #[test]
    fn what_a_steady_load_leaves_for_reuse_does_not_grow() {
        let (mut engine, ids) = engine_with(&Options::default(), 1, 2);
        engine.on_bytes(ids[0], b"SUB a 1\r\n");
        let mut kept = [0, 0];
        for kept in &mut kept {
            for _ in 0..1000 {
                engine.on_bytes(ids[1], b"PUB a 5\r\nhello\r\nPUB a");
                engine.on_bytes(ids[1], b" 5\r\nhello\r\n");
                out(&mut engine, ids[0]);
            }
            *kept = engine.spares.kept_bytes();
        }
        assert_eq!(kept[0], kept[1]);
    }

    #[test]
    fn confirmations_held_for_one_epoch_are_one_piece() {
        let (mut engine, ids) = engine_with(&Options::default(), 2, 1);
        let record = InterestRecord {
            account: AccountId::GLOBAL,
            side: Side::Clients,
            filter: b"a"[..].into(),
            queue: None,
            members: 1,
        };
        engine.on_record(ShardId(1), Record::Interest(Box::new(record)));
        engine.on_bytes(ids[0], b"CONNECT {\"verbose\":true}\r\n");
        let mut wire = Vec::new();
        for _ in 0..10_000 {
            wire.extend(b"PUB a 0\r\n\r\n");
        }
        engine.on_bytes(ids[0], &wire);
        engine.end_turn();
        let mut epoch = None;
        while let Some(record) = engine.pop_record(ShardId(1)) {
            if let Record::Barrier { epoch: e } = record {
                epoch = Some(e);
            }
        }
        engine.on_record(ShardId(1), Record::Settled { epoch: epoch.unwrap() });
        let mut batches = 0;
        let mut pieces = 0;
        let mut cap = 0;
        let mut bytes = 0;
        while let Some(batch) = engine.take_batch(ids[0]) {
            batches += 1;
            pieces += batch.len();
            for p in &batch {
                if let Piece::Own(v) = p {
                    cap += v.capacity();
                    bytes += v.len();
                }
            }
            let n = batch.iter().map(|p| p.bytes().len()).sum();
            engine.on_sent(ids[0], n, Some(batch));
        }
        assert!(batches <= 2, "{batches} batches, {pieces} pieces, {bytes} bytes, {cap} capacity");
    }

    #[test]
    fn a_message_picked_for_two_groups_behind_another_shard_travels_once() {
        let (mut engine, ids) = engine_with(&Options::default(), 2, 1);
        for group in [b"q", b"w"] {
            let record = InterestRecord {
                account: AccountId::GLOBAL,
                side: Side::Routes,
                filter: b"a"[..].into(),
                queue: Some(group[..].into()),
                members: 1,
            };
            engine.on_record(ShardId(1), Record::Interest(Box::new(record)));
        }
        engine.on_bytes(ids[0], b"PUB a 1\r\nx\r\n");
        engine.end_turn();
        let Some(Record::Run(run)) = engine.pop_record(ShardId(1)) else { panic!("no run") };
        assert_eq!(run.wire, b"PUB a 1\r\nx\r\n"[..]);
        assert_eq!(run.picks.len(), 2);
        assert!(run.picks.iter().all(|pick| pick.messages == [0]));
    }

    #[test]
    fn a_connection_at_its_end_is_not_told_of_other_servers_behind_its_last_word() {
        let (mut engine, ids) = engine_with(&Options::default(), 1, 1);
        engine.on_bytes(ids[0], b"CONNECT {\"protocol\":1}\r\nPING\r\nBOGUS\r\n");
        engine.set_cluster_urls(vec!["other:4222".to_owned()]);
        let heard = out(&mut engine, ids[0]);
        assert!(heard.ends_with("-ERR 'Unknown Protocol Operation'\r\n"), "{heard}");
    }

    #[test]
    fn only_those_who_hold_memory_are_cut_for_it() {
        let settings = Settings::new(&Options::default(), &Identity::default(), 100_000);
        let mut engine = Engine::new(ShardId(0), 1, Rc::new(settings), 1);
        let ids: Vec<_> = (0..3).map(|slot| ConnId { slot, generation: 0 }).collect();
        for id in &ids {
            engine.open(*id, Peer { cid: 1, ip: "".into(), port: 1 }, true);
            engine.on_bytes(*id, b"CONNECT {\"verbose\":false}\r\n");
            out(&mut engine, *id);
        }
        engine.on_bytes(ids[0], b"SUB a 1\r\n");
        let mut wire = b"PUB a 900000\r\n".to_vec();
        wire.extend(vec![b'x'; 900_000]);
        wire.extend(b"\r\n");
        engine.on_bytes(ids[1], &wire);
        let _in_flight = engine.take_batch(ids[0]);
        for _ in 0..3 {
            engine.end_turn();
        }
        let open: Vec<bool> =
            ids.iter().map(|id| engine.conns.get(*id).unwrap().is_open()).collect();
        assert_eq!(open, [false, true, true]);
    }

    #[test]
    fn tiny_messages_beside_a_big_one_cost_what_they_weigh() {
        let (mut engine, ids) = engine_with(&Options::default(), 1, 3);
        engine.on_bytes(ids[0], b"SUB a 1\r\n");
        engine.on_bytes(ids[1], b"SUB a 2\r\n");
        let mut wire = b"PUB a 2000\r\n".to_vec();
        wire.extend(vec![b'x'; 2000]);
        wire.extend(b"\r\n");
        for _ in 0..5000 {
            wire.extend(b"PUB a 0\r\n\r\n");
        }
        engine.on_bytes(ids[2], &wire);
        let mut pieces = 0;
        let mut batches = 0;
        let mut bytes = 0;
        while let Some(batch) = engine.take_batch(ids[0]) {
            batches += 1;
            pieces += batch.len();
            let n: usize = batch.iter().map(|p| p.bytes().len()).sum();
            bytes += n;
            engine.on_sent(ids[0], n, Some(batch));
        }
        assert!(batches < 4, "{bytes} bytes in {pieces} pieces, {batches} batches");
    }
}
