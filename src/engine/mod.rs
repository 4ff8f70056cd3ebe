//! The decisions of one shard.
//!
//! A state machine without clock and I/O: bytes, records of other shards and the time come in;
//! sends, closes and pauses come out as [`Output`]s and [`Record`]s. The caller's loop is
//!
//! 1. hand in all events: [`Engine::on_bytes`], [`Engine::on_sent`], [`Engine::on_record`], …
//! 2. [`Engine::end_turn`]
//! 3. carry out [`Engine::next_output`] until there is none, and move [`Engine::pop_record`] onto
//!    the lanes as far as they have room
//!
//! Times are nanoseconds since the start of the process. The same inputs and the same seed give
//! the same outputs.
//!
//! This room dispatches: it takes connections in the core's order, and hands input, deadlines and
//! records to the room of the protocol (`client`, `route`) or to `delivery`.

#![forbid(unsafe_code)]

pub(crate) mod consume;
pub(crate) mod deadlines;
pub(crate) mod leaves;
pub(crate) mod peer_status;
pub(crate) mod records;
pub(crate) mod routes;
pub(crate) mod unwrapping;
mod view;

pub(crate) use crate::auth::callout::{Question, Service};
pub use crate::auth::credential_check::{CredentialCheck, NonceKey};
pub(crate) use crate::auth::grants::Grants;
pub use crate::auth::token_users::TokenUser;
pub(crate) use crate::auth::token_users::{Callout, Trusted, WallClock, granted};
pub use crate::auth::user::Peer;
pub(crate) use crate::auth::user::User;
pub use crate::client::admin::{ClientOrder, Excess};
pub use crate::client::login::LoginNews;
pub use crate::core::answers::{CalloutAnswer, ServerRequest};
pub use crate::core::brakes::Stall;
pub use crate::core::close::Reason;
pub use crate::core::events::{AnsweredRequest, ConnEvent, LatencyReport};
pub use crate::core::lanes::LaneFigures;
pub(crate) use crate::core::leaf_settings::LeafSettings;
pub use crate::core::message_trace::{MessageTrace, Party, Step, StepEvent};
pub use crate::core::outputs::Output;
pub(crate) use crate::core::protocol_trace::Tracing;
pub(crate) use crate::core::settings::{
    AccountsSettings, AuthSettings, GatewaySettings, Intervals, ListenSettings, Login, Logins,
    RouteSettings,
};
pub use crate::core::settings::{
    AssetLimits, BatchLimits, ClusterIdentity, GatewayIdentity, Identity, Limits, PeerUser,
    Settings, StreamSettings, SyncPolicy,
};
pub use crate::core::shard_message::{
    InsideRecord, InterestRecord, LeafRecord, Placed, Record, Report,
};
pub use crate::core::snapshot::{ClosedConn, ConnSnapshot, Page, SubSnapshot};
pub use crate::core::{Stats, TurnCost};
pub use crate::interest::InterestStats;
pub use crate::interest::account_settings;
pub(crate) use crate::interest::accounts::conns_inbox;
pub use crate::interest::accounts::{ACCOUNT_REQUESTS, AccountFigures, OWN_USER};
pub use crate::interest::halves::FarHalf;
pub use crate::interest::ids::{AccountId, ConnId, SHARDS_MAX, ShardId, ShardSet};
pub use crate::interest::latency::AskedBy;
pub use crate::interest::mapping::{Destination, Mapping};
pub(crate) use crate::interest::outlets::{halves_subject, measuring_server, parse_answer};
pub use crate::interest::reach::{KINDS, Kind, PerKind, Reach, may_reach};
pub(crate) use crate::interest::taps::callout_inbox;
pub use crate::leaf::snapshot::LeafSnapshot;
pub use crate::link::gateway_state::AccountModeSnapshot;
pub use crate::link::gateways::{
    DialedGateway, GatewayNotice, GatewayOrder, GatewaySnapshot, NewGateway,
};
pub use crate::link::leaf_state::{LeafDial, LeafEnd, LeafLogin, LeafNotice, LeafRemote, NewLeaf};
pub use crate::link::remote_interest::RemoteInterestBytes;
pub use crate::link::{NewRoute, RouteNotice, RouteOrder, RouteSnapshot};
pub use crate::measure::Traffic;
pub use crate::output::Dropped;
pub use crate::run::frame::RunFrame;
pub use crate::stream::{StreamFigures, UsageFigures};
pub use crate::transport::{Credentials, TlsInfo, Transport};

pub use view::View;

use std::ops::RangeInclusive;
use std::path::Path;
use std::rc::Rc;

use crate::client::{admin, info};

use crate::core::close::{self, LameDuck, RETRACTED_PER_STEP};
use crate::core::conn::Conn;
use crate::core::timers::Deadline;
use crate::core::{Core, backpressure, input, layers};
use crate::delivery::inside::{self, InnerMessage};
use crate::delivery::latency;
use crate::disk::DiskDone;
use crate::gateway;
use crate::jetstream::JetStream;
use crate::leaf;
use crate::mqtt::Mqtt;
use crate::output::Piece;
use crate::proto::encode;
use crate::route::{self, accounts_changed, review};
use crate::run::frame::SpareFrames;
use crate::store::LogSizes;
use crate::subject;
use crate::transport::{HandshakeFirst, Taking, Tls};

/// The decisions of one shard.
#[derive(Debug)]
pub struct Engine {
    pub(crate) core: Core,
    pub(crate) jetstream: JetStream,
    pub(crate) mqtt: Mqtt,
}

impl Engine {
    /// A shard of `shards` without connections. Equal seeds make equal choices.
    pub fn new(shard: ShardId, shards: usize, settings: Rc<Settings>, seed: u64) -> Self {
        let core = Core::new(shard, shards, settings, seed);
        Self { core, jetstream: JetStream::default(), mqtt: Mqtt::default() }
    }

    /// Begins to find streams again in the logs of this shard, if JetStream is on.
    pub fn start_streams(&mut self, logs: Vec<Box<Path>>, sizes: LogSizes) {
        self.jetstream = JetStream::start(&mut self.core, logs, sizes);
        self.mqtt.tap_accounts(&mut self.core);
    }

    /// Takes the end of a disk operation.
    pub fn on_disk(&mut self, done: DiskDone) {
        self.jetstream.on_disk(&mut self.core, done);
    }

    /// Sets the time of all later calls, in nanoseconds since the start of the process.
    pub fn set_now(&mut self, now: u64) {
        self.core.times.now = self.core.times.now.max(now);
        self.core.times.arrived = self.core.times.now;
    }

    /// Sets the arrival of the input that is handed in next, if it is not new: the delay of its
    /// output is counted from there.
    pub fn set_arrived(&mut self, arrived: u64) {
        self.core.times.arrived = arrived;
    }

    /// Takes over a new connection over TCP and greets it. One that is not `admitted` gets the
    /// error for too many connections and is closed.
    pub fn open(&mut self, id: ConnId, peer: Peer, admitted: bool) {
        self.open_over(id, peer, Transport::Tcp, admitted);
    }

    /// Takes over a new connection over any transport and greets it, a WebSocket after its
    /// handshake. One that is not `admitted` gets an error and is closed.
    pub fn open_over(&mut self, id: ConnId, peer: Peer, transport: Transport, admitted: bool) {
        let mut conn = Box::new(Conn::new(id, peer, self.core.times.now));
        conn.transport = transport;
        if transport.is_mqtt() {
            conn.begin_mqtt(transport);
        }
        let settings = &self.core.settings;
        let interval = settings.ping_interval_of(transport);
        conn.deadlines.arm(Deadline::Ping, self.core.times.now.saturating_add(interval));
        conn.deadlines.arm(Deadline::Login, settings.auth_due(transport, self.core.times.now));
        if transport != Transport::WebSocket {
            tracing::debug!("{} - Client connection created", conn.label());
        }
        self.core.place_conn(conn);
        self.core.monitor.open_conns += 1;
        if transport == Transport::WebSocket {
            layers::begin_websocket(&mut self.core, id);
        }
        if admitted {
            layers::begin_header(&mut self.core, id);
            if layers::begin_tls(&mut self.core, id) {
                info::send_info(&mut self.core, id, false);
            }
            self.core.rearm(id);
        } else {
            // In clear, even if the client expects TLS: no handshake is made for a connection that
            // cannot stay.
            let in_clear = |tls: &Tls| tls.first == HandshakeFirst::No;
            if transport != Transport::WebSocket
                && self.core.settings.tls_of(transport).is_none_or(in_clear)
            {
                info::send_info(&mut self.core, id, false);
            }
            admin::refuse_seat(&mut self.core, id);
        }
    }

    /// Takes the end of a connection's input, behind all that came before: the peer has closed its
    /// side, or reading `failed`.
    pub fn on_ended(&mut self, id: ConnId, failed: bool) {
        let Some(conn) = self.core.conns.get_mut(id).filter(|conn| conn.is_open()) else { return };
        // An end that a layer has reported before came first.
        conn.input.end(failed);
        input::end_if_heard(&mut self.core, id);
    }

    /// Takes the next batch of output for a connection; `None` while one is in flight or there is
    /// no output.
    pub fn take_batch(&mut self, id: ConnId) -> Option<Vec<Piece>> {
        let conn = self.core.conns.get_mut(id)?;
        conn.outgoing.begin_flush();
        if conn.is_closed() {
            return None;
        }
        let is_last = conn.is_flushing();
        let taking = Taking { is_last, rtt_ns: conn.liveness.rtt };
        let scratch = &mut self.core.input.layers.scratch;
        let batch = conn.layers.take(&mut conn.outbox, &mut self.core.spares, scratch, taking)?;
        self.core.budget.spend_send(conn.outbox.pending_bytes() - conn.outbox.queued_bytes());
        let arrived = conn.outgoing.on_taken(conn.outbox.has_more(), self.core.times.now);
        self.core.monitor.departures.add(arrived);
        let deadline_ns = self.core.settings.write_deadline_ns_of(conn.kind());
        let due = conn.outgoing.write_due(deadline_ns);
        self.core.timers.enter(id, due, &mut conn.deadlines);
        Some(batch)
    }

    /// Counts `bytes` more that the kernel has taken of the batch in flight; with `done` it comes
    /// home.
    pub fn on_sent(&mut self, id: ConnId, bytes: usize, done: Option<Vec<Piece>>) {
        let complete = done.is_some();
        if let Some(batch) = done {
            self.core.spares.keep_batch(batch);
        }
        let Some(conn) = self.core.conns.get_mut(id) else { return };
        let sent_bytes = conn.layers.on_sent(bytes, complete);
        conn.outbox.on_sent(sent_bytes);
        let pending = conn.outbox.pending_bytes();
        let is_waited_for = conn.is_waited_for();
        if complete {
            conn.outbox.on_done();
            let is_drained = conn.is_drained();
            if !is_drained {
                conn.flush(&mut self.core.out.flushes, false);
            }
            if is_drained && conn.is_flushing() {
                self.core.close(id, false);
            }
        }
        if is_waited_for {
            self.core.relieve(id, pending);
        }
    }

    /// Ends a connection to which writing failed; its batch comes home.
    pub fn on_send_failed(&mut self, id: ConnId, batch: Option<Vec<Piece>>) {
        batch.into_iter().for_each(|batch| self.core.spares.keep_batch(batch));
        self.core.abort(id, Reason::WriteError);
    }

    /// Frees the slot of a connection that the reactor has closed; its last batch comes home.
    pub fn on_closed(&mut self, id: ConnId, batch: Option<Vec<Piece>>) {
        batch.into_iter().for_each(|batch| self.core.spares.keep_batch(batch));
        if self.core.conns.get(id).is_none() {
            return;
        }
        self.core.retract_some(id, usize::MAX);
        self.core.leave(id);
        if let Some(mut conn) = self.core.conns.slots[id.slot as usize].take() {
            conn.outbox.clear(&mut self.core.spares);
            route::forget_route(&mut self.core, &conn);
            gateway::forget(&mut self.core, &conn);
            if !conn.is_closed() && conn.has_seat_of_clients() {
                self.core.monitor.open_conns -= 1;
            }
            self.core.waits.braked -= usize::from(conn.input.brakes.any());
        }
    }

    /// Releases memory that only more connections and subscriptions than now would need. Not to be
    /// called in the middle of a turn.
    pub fn shrink(&mut self) {
        let conns = &mut self.core.conns.slots;
        conns.truncate(conns.iter().rposition(Option::is_some).map_or(0, |last| last + 1));
        conns.shrink_to_fit();
        self.core.timers.shrink(|id| self.core.conns.get(id).is_some());
        self.core.subs.shrink_to_fit();
        self.core.out.shrink();
        self.core.input.line.shrink_to_fit();
        self.core.spares.shrink();
        self.core.lanes.spares = SpareFrames::default();
    }

    /// Ends a turn: barriers go out, limits are enforced.
    pub fn end_turn(&mut self) {
        self.jetstream.turn(&mut self.core);
        consume::advance_mqtt(self);
        self.core.monitor.departures.forget();
        self.core.tracer.traces.end_turn();
        // Replies alone may have filled an outbox.
        self.core.settle_deliveries();
        latency::end_turn(&mut self.core);
        self.core.send_barriers();
        backpressure::bound_memory(&mut self.core);
        let (work, bytes) = (self.core.budget.refill(), self.core.spares.take_added_bytes());
        self.core.monitor.turn_cost = TurnCost { work, bytes };
    }

    /// Handles all deadlines that have passed.
    pub fn tick(&mut self) {
        while let Some((deadline, id)) = self.core.timers.pop_due(self.core.times.now) {
            let Some(conn) = self.core.conns.get_mut(id) else { continue };
            if conn.deadlines.take_entry(deadline) {
                self.on_timer(id);
                self.core.rearm(id);
            }
        }
        self.advance_handshakes();
        self.advance_unpacking();
        routes::advance_syncs(self);
        advance_leaving(self);
        self.advance_records();
        self.advance_input();
        backpressure::end_overdue_waits(&mut self.core);
        close::send_one_away(&mut self.core);
        self.core.hand.age(&mut self.core.accounts, self.core.times.now);
        self.jetstream.tick(&mut self.core);
        self.mqtt.tick(&mut self.core);
        latency::tick(&mut self.core);
    }

    /// Returns the time at which [`Engine::tick`] is needed next, in nanoseconds since the start of
    /// the process.
    pub fn next_deadline(&self) -> Option<u64> {
        if self.view().has_more() {
            return Some(self.core.times.now);
        }
        let wait = self.core.waits.deadlines.first().map(|(deadline, _)| *deadline);
        let duck = self
            .core
            .endings
            .lame_duck
            .filter(|_| self.core.monitor.open_conns > 0)
            .map(|duck| duck.next_close);
        let streams = self.jetstream.next_deadline(&self.core);
        let mqtt = self.mqtt.next_deadline();
        let measured = self.core.requests.measured.due();
        let hand = self.core.hand.due();
        let reports = self.core.requests.reports.due();
        let due = [self.core.timers.next(), wait, duck, hand, streams, mqtt, measured, reports];
        due.into_iter().flatten().min()
    }

    /// Takes the next output of this turn; `None` when there are no more.
    pub fn next_output(&mut self) -> Option<Output> {
        self.core.out.pop().or_else(|| self.core.next_flush())
    }

    /// Counts the delays of the batches taken since the turn's end, which are on their way at
    /// `now`. Without this call they are not counted.
    pub fn depart(&mut self, now: u64) {
        self.core.monitor.departures.depart(now);
    }

    /// Sets the work of one turn instead of the usual one, for tests.
    pub fn set_turn_work(&mut self, work: u64) {
        self.core.budget.set_turn(work);
    }

    /// Returns a page of the streams of this shard.
    pub fn streams_page(&mut self, from: u64, with_consumers: bool) -> Page<StreamFigures> {
        self.jetstream.figures(&mut self.core, from, with_consumers)
    }

    /// Returns the use of JetStream by each account, over all shards.
    pub fn stream_usage(&mut self) -> Vec<UsageFigures> {
        self.jetstream.usage(&mut self.core)
    }

    /// A look at the shard's figures, connections and subscriptions.
    pub fn view(&self) -> View<'_> {
        View(&self.core, &self.jetstream)
    }

    /// Tells clients that wait for something that the server ends. Those of other shards hear of it
    /// before the farewell.
    pub fn take_leave(&mut self) {
        self.jetstream.shut_down(&mut self.core);
        for shard in self.core.others() {
            self.core.push_record(shard, Record::Farewell);
        }
    }

    /// Ends all connections because the server ends: each gets its queued output, then the end of
    /// the stream.
    pub fn shut_down(&mut self) {
        // Other shards may be gone before they answer: a barrier promises nothing any more.
        self.core.lanes.settled_epoch = u64::MAX;
        self.core.forget_requests();
        self.core.settle();
        for id in self.core.conns.ids() {
            self.core.fail(id, None, Reason::ServerShutdown);
        }
    }

    /// Begins to send connections away, because the server is to end: clients are informed now if
    /// their protocol allows that; from `first_close_ns` on connections are closed one by one
    /// within `spread_ns`.
    pub fn start_lame_duck(&mut self, first_close_ns: u64, spread_ns: u64) {
        const INTERVAL_NS_MAX: u64 = 1_000_000_000;
        let interval = spread_ns / (self.core.monitor.open_conns as u64).max(1);
        let next_close = self.core.times.now.saturating_add(first_close_ns);
        let interval = interval.min(INTERVAL_NS_MAX);
        self.core.endings.lame_duck = Some(LameDuck { next_close, interval });
        info::inform_clients(&mut self.core, |_| true);
        route::announce_lame_duck(&mut self.core);
    }

    /// Publishes a message of the server itself in an account; an empty `reply` or `header` is
    /// none. Invalid subjects are logged and not published on.
    pub fn publish_own(
        &mut self,
        account: AccountId,
        subject: &[u8],
        reply: &[u8],
        header: &[u8],
        payload: &[u8],
    ) {
        let given = Some(reply).filter(|reply| !reply.is_empty());
        if ![Some(subject), given].into_iter().flatten().all(subject::is_word) {
            let subject = encode::go_quoted(subject);
            return tracing::error!("Not published on {subject}: invalid subject or reply");
        }
        let inner = InnerMessage { subject, reply, headers: header, body: payload };
        inside::publish(&mut self.core, account, &inner);
    }

    /// Takes over a new configuration: connections that are no longer allowed are closed,
    /// subscriptions that are no longer permitted end, and connections with more than the new
    /// `max_pending` of output are slow consumers. New deadlines count from here on. As in
    /// nats-server, clients are not informed: a new INFO is for new connections.
    pub fn reload(&mut self, settings: Rc<Settings>) {
        let before = accounts_changed::before_accounts_change(&self.core);
        if before.is_some() {
            accounts_changed::forget_remote_interest(&mut self.core, |name| {
                !settings.has_account(name)
            });
        }
        let old = std::mem::replace(&mut self.core.settings, settings);
        self.core.settings.configure(&mut self.core.accounts);
        if let Some(before) = &before {
            accounts_changed::after_accounts_changed(&mut self.core, before);
        }
        self.core.conns.iter_mut().for_each(|conn| conn.outbox.keep_all());
        for id in self.core.conns.client_ids() {
            admin::review_user(&mut self.core, id, &old);
            admin::review_limits(&mut self.core, id, &old);
        }
        review::review_routes(&mut self.core, &old);
        gateway::review::review_gateways(&mut self.core, &old);
        leaf::review::review_leaves(&mut self.core, &old);
        self.jetstream.reload(&mut self.core);
        self.mqtt.tap_accounts(&mut self.core);
        self.core.settle_deliveries();
    }

    /// Closes the connections with these numbers: there are too many.
    pub fn shed(&mut self, cids: RangeInclusive<u64>, excess: Excess) {
        admin::shed(&mut self.core, cids, excess);
    }

    /// Carries out an order about the client with this number; `false` if there is none.
    pub fn on_client_order(&mut self, cid: u64, order: ClientOrder) -> bool {
        match order {
            ClientOrder::Kick => admin::kick(&mut self.core, cid),
            ClientOrder::LameDuck => admin::advise_to_leave(&mut self.core, cid),
        }
    }
}

/// Removes subscriptions of connections that are leaving, each connection in its turn.
fn advance_leaving(engine: &mut Engine) {
    while engine.core.has_leaving()
        && let count @ 1.. = engine.core.budget.retractions()
        && let Some(id) = engine.core.endings.leaving.pop_front()
    {
        engine.core.retract_some(id, count.min(RETRACTED_PER_STEP));
        let Some(conn) = engine.core.conns.get_mut(id) else { continue };
        if conn.interests() > 0 {
            engine.core.endings.leaving.push_back(id);
            continue;
        }
        conn.set_leaving(false);
        engine.core.close_if_left(id);
        consume::admit_if_left(engine, id);
    }
}

#[cfg(test)]
mod tests;
