//! The decisions of one shard.
//!
//! A state machine without clock and I/O: bytes, records of other shards and the time come in;
//! what is to be sent, closed or paused comes out as [`Action`]s and [`Record`]s. The caller's
//! loop is
//!
//! 1. hand in all events: [`Engine::on_bytes`], [`Engine::on_sent`], [`Engine::on_record`], …
//! 2. [`Engine::end_turn`]
//! 3. carry out [`Engine::next_action`] until there is none, and move [`Engine::pop_record`] onto
//!    the lanes as far as they have room
//!
//! Times are nanoseconds since the start of the process. The same inputs and the same seed give
//! the same outputs.
//!
//! Where to look, each file with a chapter of its own:
//!
//! - input: `operations` (the client protocol), `waiting` and `budget` (bounded work per turn),
//!   `unwrapping` (connections with TLS, WebSocket, S2 or a proxy's header)
//! - delivery: `run`, `publish` (one run, from its subject to the outboxes), `interest` and
//!   `cache` (the receivers of a subject), `away` (queue messages without a local member),
//!   `flushes`
//! - between shards: `record`, `pressure` (lanes, barriers, back-pressure), `requests` (no
//!   responders)
//! - between servers: `route` (a connection to another server), `telling` (announced interest),
//!   `relay` (runs to routes), `renewal`
//! - accounts: `accounts`, `account_settings`, `imports`, `mapping`
//! - users: `permissions`, `proof` (credential checks), `tokens`
//! - connections: `conn`, `ending`, `timers`, `overflow`
//! - observation: `snapshot`, `events`, `departures`, `trace`, `message_trace`
//! - `settings`: the configuration as an engine uses it

#![forbid(unsafe_code)]

pub mod account_settings;
mod accounts;
mod away;
mod budget;
mod cache;
mod conn;
mod departures;
mod ending;
mod events;
mod flushes;
mod ids;
mod imports;
mod interest;
mod mapping;
mod message_trace;
mod named;
mod operations;
mod overflow;
mod permissions;
mod pressure;
mod proof;
mod publish;
mod record;
mod relay;
mod renewal;
mod requests;
mod route;
mod run;
mod settings;
mod snapshot;
mod telling;
mod timers;
mod tokens;
mod trace;
mod unwrapping;
mod waiting;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::rc::Rc;

use ahash::RandomState;
use slab::Slab;

use crate::measure::Histogram;
pub use crate::output::Dropped;
use crate::output::{Outbox, Piece, Spares};
use crate::proto::encode;
pub use crate::transport::{Credentials, TlsInfo, Transport};
use crate::transport::{HandshakeFirst, Taking, Tls};
use accounts::Accounts;
pub use accounts::{ACCOUNT_REQUESTS, AccountFigures, AccountId, OWN_USER};
use budget::{Budget, RECORD_WORK};
use cache::Hand;
use conn::{Conn, Phase};
pub use conn::{Peer, Traffic};
use departures::Departures;
use ending::LameDuck;
pub use ending::Reason;
pub use events::ConnEvent;
use flushes::Flushes;
use ids::Conns;
use ids::Origin;
pub use ids::{ConnId, SHARDS_MAX, ShardId, ShardSet};
use imports::Answers;
pub use imports::ServerRequest;
pub use interest::InterestStats;
use interest::{Sub, SubKey};
pub use mapping::{Destination, Mapping};
pub use message_trace::{MessageTrace, Party, Step, StepEvent, header_values};
use message_trace::{Trace, Traces};
pub use pressure::LaneFigures;
use pressure::{Lane, Wait};
pub use proof::{NonceKey, Proof};
pub use tokens::TokenUser;

pub(crate) use conn::User;
pub(crate) use permissions::Permissions;
use record::Publisher;
pub use record::{InterestRecord, Placed, Record, Report, RunRecord};
use requests::{Asked, Requests};
use route::Cluster;
pub use route::{NewRoute, RouteNotice, RouteSnapshot, WishBytes};
use run::Run;
pub use settings::{ClusterIdentity, Identity, Limits, PeerUser, Settings};
pub(crate) use settings::{Login, Logins, RouteSettings};
use snapshot::Closed;
pub use snapshot::{ClosedConn, ConnSnapshot, Page, SubSnapshot};
use timers::{NEVER, Timers};
pub(crate) use tokens::Trusted;
pub(crate) use trace::Tracing;
use unwrapping::Unwrapping;

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
    /// Payload bytes received from clients.
    pub in_bytes: u64,
    /// Messages delivered to clients.
    pub out_msgs: u64,
    /// Payload bytes delivered to clients.
    pub out_bytes: u64,
    /// Clients closed because they did not read fast enough.
    pub slow_consumers: u64,
    /// Clients closed because they did not answer PINGs.
    pub stale_connections: u64,
    /// Pauses of publishers because most receivers of a run were behind.
    pub stalls: u64,
    /// Queue messages for which no member was left when they arrived.
    pub queue_msgs_lost: u64,
    /// Runs from other shards that could not be parsed completely: a bug of this program.
    pub garbled_runs: u64,
    /// Messages and bytes from and to other servers, not part of the other figures.
    pub routed: Traffic,
    /// Messages dropped by overflow policies.
    pub dropped: Dropped,
}

/// Cost of one turn.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct TurnCost {
    /// Work, in units of about a nanosecond.
    pub work: u64,
    /// Output that was added, in bytes.
    pub bytes: usize,
}

impl Stats {
    /// Messages and bytes delivered to clients.
    fn delivered(&self) -> (u64, u64) {
        (self.out_msgs, self.out_bytes)
    }
}

/// One shard's state.
#[derive(Debug)]
pub struct Engine {
    shard: ShardId,
    settings: Rc<Settings>,
    budget: Budget,
    /// What the last turn has cost.
    turn_cost: TurnCost,
    now: u64,
    rng: fastrand::Rng,
    hasher: RandomState,
    conns: Conns,
    /// Clients that the shard has not been told to close.
    open_conns: usize,
    cluster: Cluster,
    subs: Slab<Sub>,
    accounts: Accounts,
    /// Goes round over what subjects were resolved to.
    hand: Hand,
    spares: Spares,
    timers: Timers,
    actions: VecDeque<Action>,
    flushes: Flushes,
    /// What is being delivered goes to very many.
    is_for_many: bool,
    /// Connections whose input waits for its turn.
    line: VecDeque<ConnId>,
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
    unwrapping: Unwrapping,
    /// Connections whose subscriptions are taken out, some in each turn.
    leaving: VecDeque<ConnId>,
    /// New peers that are being told what clients want.
    tellings: VecDeque<telling::Telling>,
    /// What is to be checked elsewhere.
    proofs: VecDeque<(ConnId, Proof)>,
    /// Requests to services of other accounts.
    answers: Answers,
    /// There while requests are being delivered.
    asked: Option<Box<Asked>>,
    requests: Requests,
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

impl Engine {
    /// A shard of `shards` without connections. Equal seeds make equal choices.
    pub fn new(shard: ShardId, shards: usize, settings: Rc<Settings>, seed: u64) -> Self {
        assert!(shards <= SHARDS_MAX, "at most {SHARDS_MAX} shards");
        let mut rng = fastrand::Rng::with_seed(seed);
        let hasher = RandomState::with_seeds(rng.u64(..), rng.u64(..), rng.u64(..), rng.u64(..));
        let tally = Rc::default();
        let hand = Hand::new(&tally, shards);
        let mut accounts = Accounts::new(rng.u64(..), tally);
        settings.configure(&mut accounts);
        Self {
            shard,
            settings,
            budget: Budget::default(),
            turn_cost: TurnCost::default(),
            now: 0,
            conns: Conns::default(),
            open_conns: 0,
            cluster: Cluster::default(),
            subs: Slab::new(),
            accounts,
            hand,
            rng,
            spares: Spares::default(),
            timers: Timers::default(),
            actions: VecDeque::new(),
            flushes: Flushes::default(),
            is_for_many: false,
            line: VecDeque::new(),
            ended: Vec::new(),
            doomed: Vec::new(),
            spare_run: Run::default(),
            lanes: (0..shards).map(|_| Lane::default()).collect(),
            epoch: 1,
            announced_epoch: 0,
            settled_epoch: 0,
            held: Vec::new(),
            answers: Answers::new(&hasher),
            asked: None,
            requests: Requests::default(),
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
            unwrapping: Unwrapping::default(),
            leaving: VecDeque::new(),
            tellings: VecDeque::new(),
            proofs: VecDeque::new(),
            stats: Stats::default(),
            closed: Closed::default(),
            arrived: 0,
            departures: Departures::default(),
            braked: 0,
        }
    }

    /// Sets the time of all later calls, in nanoseconds since the start of the process.
    pub fn set_now(&mut self, now: u64) {
        self.now = self.now.max(now);
        self.arrived = self.now;
    }

    /// Sets the arrival of the input that is handed in next, if it is not new: the delay of its
    /// output is counted from there.
    pub fn set_arrived(&mut self, arrived: u64) {
        self.arrived = arrived;
    }

    /// Takes over a new connection over TCP and greets it. One that is not `admitted` gets the
    /// error for too many connections and is closed.
    pub fn open(&mut self, id: ConnId, peer: Peer, admitted: bool) {
        self.open_over(id, peer, Transport::Tcp, admitted);
    }

    /// Takes over a new connection over any transport and greets it, a WebSocket after its
    /// handshake. One that is not `admitted` gets an error and is closed.
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
            self.begin_header(id);
            if self.begin_tls(id) {
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

    /// Bytes for a client that is turned away because connections come faster than allowed.
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

    /// The client has closed its side, or reading failed: behind all that came before.
    pub fn on_ended(&mut self, id: ConnId, failed: bool) {
        let Some(conn) = self.conns.get_mut(id).filter(|conn| conn.is_open()) else { return };
        // Not if a layer has said so before: that came first.
        conn.ended.get_or_insert(failed);
        self.end_if_heard(id);
    }

    /// The next batch of output for a connection; `None` while one is in flight or there is no
    /// output.
    pub fn take_batch(&mut self, id: ConnId) -> Option<Vec<Piece>> {
        let conn = self.conns.get_mut(id)?;
        conn.dirty = false;
        if conn.phase == Phase::Closed {
            return None;
        }
        let is_last = matches!(conn.phase, Phase::Flushing { .. });
        let taking = Taking { is_last, rtt_ns: conn.timing.rtt };
        let scratch = &mut self.unwrapping.scratch;
        let batch = conn.layers.take(&mut conn.outbox, &mut self.spares, scratch, taking)?;
        self.budget.spend_send(conn.outbox.pending_bytes() - conn.outbox.queued_bytes());
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
        let sent_bytes = conn.layers.on_sent(bytes, complete);
        conn.outbox.on_sent(sent_bytes);
        let pending = conn.outbox.pending_bytes();
        let is_waited_for = conn.is_waited_for();
        if complete {
            conn.outbox.on_done();
            let is_drained = conn.is_drained();
            if !is_drained {
                conn.flush(&mut self.flushes, false);
            }
            if is_drained && matches!(conn.phase, Phase::Flushing { .. }) {
                self.close(id, false);
            }
        }
        if is_waited_for {
            self.relieve(id, pending);
        }
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

    /// Frees the slot of a connection that the reactor has closed.
    pub fn on_closed(&mut self, id: ConnId) {
        if self.conns.get(id).is_none() {
            return;
        }
        self.retract_some(id, usize::MAX);
        self.leave(id);
        if let Some(mut conn) = self.conns.0[id.slot as usize].take() {
            conn.outbox.clear(&mut self.spares);
            self.forget_route(&conn);
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
        self.flushes.shrink();
        self.line.shrink_to_fit();
        self.spares.shrink();
    }

    /// Ends a turn: barriers go out, limits are enforced.
    pub fn end_turn(&mut self) {
        self.departures.forget();
        self.traces.end_turn();
        // Replies alone may have been too much for somebody.
        self.settle_deliveries();
        self.send_barriers();
        self.bound_memory();
        let (work, bytes) = (self.budget.refill(), self.spares.take_added_bytes());
        self.turn_cost = TurnCost { work, bytes };
    }

    /// Handles all deadlines that have passed.
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
        self.advance_leaving();
        self.advance_records();
        self.advance_input();
        self.end_overdue_waits();
        self.send_one_away();
        self.hand.age(&mut self.accounts, self.now);
    }

    /// Time at which [`Engine::tick`] is needed next, in nanoseconds since the start of the
    /// process.
    pub fn next_deadline(&self) -> Option<u64> {
        if self.has_more() {
            return Some(self.now);
        }
        let wait = self.wait_deadlines.first().map(|(deadline, _)| *deadline);
        let duck = self.lame_duck.filter(|_| self.open_conns > 0).map(|duck| duck.next_close);
        [self.timers.next(), wait, duck, self.hand.due()].into_iter().flatten().min()
    }

    /// Whether something waits for the next turn, because this one has had enough.
    pub fn has_more(&self) -> bool {
        self.unwrapping.has_more()
            || !self.line.is_empty()
            || !self.tellings.is_empty()
            || (!self.flushes.is_empty() && !self.budget.sends())
            || self.has_leaving()
            || self.has_waiting_records()
    }

    /// The next action of this turn; `None` when there are no more.
    pub fn next_action(&mut self) -> Option<Action> {
        let action = self.actions.pop_front();
        action.or_else(|| self.next_flush())
    }

    /// Credentials that are to be checked where it takes nobody's time, until there are no more;
    /// [`Engine::on_proof`] wants to hear of each.
    pub fn pop_proof(&mut self) -> Option<(ConnId, Proof)> {
        self.proofs.pop_front()
    }

    /// Handles a record of another shard.
    pub fn on_record(&mut self, from: ShardId, record: Record) {
        self.lanes[from.index()].push_arrived(record);
        self.advance_records_of(from);
    }

    /// Handles a record. What is left of it, if the budget does not allow it all, comes back.
    fn handle_record(&mut self, from: ShardId, record: Record) -> Option<Record> {
        self.budget.serve_records();
        self.budget.spend(RECORD_WORK);
        match record {
            Record::Run(run) => return self.on_run(run).map(Record::Run),
            Record::Traced(report) => self.on_traced(*report),
            Record::Placed(placed) => self.on_placed(&placed),
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
        None
    }

    /// Sends INFO anew to all clients over transports that it concerns, if they understand that.
    fn inform_clients(&mut self, concerns: impl Fn(Transport) -> bool) {
        for id in self.conns.client_ids() {
            // One that is at its end has heard its last word.
            let understands = |conn: &Conn| {
                let is_meant = concerns(conn.transport) && conn.connect.protocol >= 1;
                is_meant && conn.is_open() && conn.greeted
            };
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

    /// Subscriptions of this shard's connections.
    pub fn subscriptions(&self) -> usize {
        self.subs.len()
    }

    /// Subjects in the caches of receivers, over all accounts.
    pub fn cached_subjects(&self) -> usize {
        self.hand.subjects()
    }

    /// Filters in which any shard is interested, over all accounts.
    pub fn filters(&self) -> usize {
        self.accounts.iter().map(|account| account.interest.filters()).sum()
    }

    /// Counters of subscriptions and lookups, over all accounts.
    pub fn interest_stats(&self) -> InterestStats {
        let mut all = InterestStats::default();
        self.accounts.iter().for_each(|account| all.add(&account.interest.stats()));
        all
    }

    /// Figures of each account that is configured or has connections.
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

    /// Cost of the last turn.
    pub fn turn_cost(&self) -> TurnCost {
        self.turn_cost
    }

    /// For tests: a turn may cost so much, instead of what it usually may.
    pub fn set_turn_work(&mut self, work: u64) {
        self.budget.set_turn(work);
    }

    /// Appends to a connection's output.
    fn reply(&mut self, id: ConnId, write: impl FnOnce(&mut Vec<u8>)) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.phase == Phase::Closed || conn.is_doomed {
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
            conn.is_doomed = true;
            conn.review();
            self.doomed.push(id);
        }
        self.flush_soon(id);
    }

    /// Something was appended to a connection's output.
    fn flush_soon(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if !conn.dirty {
            conn.timing.oldest_arrived = conn.timing.oldest_arrived.min(self.arrived);
        }
        conn.flush(&mut self.flushes, true);
    }

    /// Appends a reply that promises that all the connection sent is in force on every shard:
    /// it is held back until that is so.
    fn confirm(&mut self, id: ConnId, write: impl FnOnce(&mut Vec<u8>)) {
        self.hold_back(id, Outbox::hold);
        self.reply(id, write);
    }

    /// Appends a PONG: it promises the same, and comes behind the statuses of all requests.
    fn confirm_ping(&mut self, id: ConnId) {
        self.hold_back(id, Outbox::hold_behind_statuses);
        self.reply(id, encode::pong);
    }

    fn hold_back(&mut self, id: ConnId, hold: impl FnOnce(&mut Outbox, u64)) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.staged_epoch > self.settled_epoch {
            if !conn.outbox.is_held() {
                self.held.push(id);
            }
            hold(&mut conn.outbox, conn.staged_epoch);
        }
    }

    fn send_info(&mut self, id: ConnId, after_connect: bool) {
        self.send_info_of(id, after_connect, self.lame_duck.is_some());
    }

    fn send_info_of(&mut self, id: ConnId, after_connect: bool, lame_duck: bool) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.informed = true;
        let (account, is_system) =
            (conn.account_name(), self.accounts.system == Some(conn.account));
        let account = after_connect.then_some((&*account, is_system));
        let to = (&conn.peer, conn.transport);
        let info = self.settings.info(to, &self.cluster, lame_duck, account);
        self.reply(id, |out| encode::info(out, info.as_bytes()));
    }

    fn others(&self) -> impl Iterator<Item = ShardId> + use<> {
        let (own, shards) = (self.shard, u8::try_from(self.lanes.len()).unwrap_or(u8::MAX));
        (0..shards).map(ShardId).filter(move |shard| *shard != own)
    }
}

#[cfg(test)]
mod tests;
