//! Figures and pages of a shard, as monitoring and tests read them.

use crate::auth::user::Peer;
use crate::cluster::ClientUrls;
use crate::core::Core;
use crate::core::lanes::LaneFigures;
use crate::core::snapshot::{
    Closed, ClosedConn, ConnSnapshot, Page, SubSnapshot, of_conn, of_sub, page,
};
use crate::core::{Stats, TurnCost};
use crate::gateway;
use crate::interest::InterestStats;
use crate::interest::accounts::AccountFigures;
use crate::interest::ids::{ConnId, ShardId};
use crate::jetstream::JetStream;
use crate::leaf;
use crate::leaf::snapshot::LeafSnapshot;
use crate::link::RouteSnapshot;
use crate::link::gateways::GatewaySnapshot;
use crate::measure::Histogram;
use crate::proto::encode;
use crate::route;
use crate::transport::{HandshakeFirst, Transport};

/// A look at a shard's state; nothing changes by it.
#[derive(Debug, Clone, Copy)]
pub struct View<'a>(pub(super) &'a Core, pub(super) &'a JetStream);

impl<'a> View<'a> {
    /// Whether connections may come: the streams of all shards are known.
    pub fn is_ready(self) -> bool {
        self.1.is_ready()
    }

    /// Whether nothing waits for the disk.
    pub fn is_at_rest(self) -> bool {
        self.1.is_at_rest()
    }

    /// Whether all other shards have taken leave of this one's clients.
    pub fn is_taken_leave_of(self) -> bool {
        self.0.lanes.have_taken_leave(self.0.shard)
    }

    /// Whether work waits for the next turn, because the budget of this one is spent.
    pub fn has_more(self) -> bool {
        self.0.input.layers.has_more()
            || !self.0.input.line.is_empty()
            || !self.0.links.syncing.is_empty()
            || (!self.0.out.flushes.is_empty() && !self.0.budget.sends())
            || self.0.has_leaving()
            || self.0.lanes.has_waiting()
            || !self.0.input.tapped.is_empty()
            || !self.0.input.mqtt.is_empty()
            || self.1.has_more()
    }

    /// Whether a record of another shard may be handed in.
    pub fn takes_records(self, from: ShardId) -> bool {
        self.0.budget.takes_records() && self.0.lanes.to[from.index()].arrived.is_empty()
    }

    /// Whether new input may be handed in. Otherwise it waits in the engine, behind all other input
    /// that waits.
    pub fn takes_input(self) -> bool {
        self.0.budget.takes_input()
    }

    /// Returns the bytes for a client that is turned away because connections come faster than
    /// allowed.
    pub fn turn_away(self, peer: &Peer, transport: Transport) -> Vec<u8> {
        let (core, mut out) = (self.0, Vec::new());
        if transport == Transport::WebSocket {
            return out;
        }
        let tls = core.settings.tls_of(transport);
        if tls.is_none_or(|tls| tls.first == HandshakeFirst::No) {
            let lame_duck = core.endings.lame_duck.is_some();
            let info = core.settings.info(peer, transport, &core.links, lame_duck, None);
            encode::info(&mut out, info.as_bytes());
        }
        encode::err(&mut out, "Connection throttling is active. Please try again later.");
        out
    }

    /// Connections that the shard has not been told to close.
    pub fn open_conns(self) -> usize {
        self.0.monitor.open_conns
    }

    /// Subscriptions of this shard's connections.
    pub fn subscriptions(self) -> usize {
        self.0.subs.len()
    }

    /// Subjects in the caches of receivers, over all accounts.
    pub fn cached_subjects(self) -> usize {
        self.0.hand.subjects()
    }

    /// Filters in which any shard is interested, over all accounts.
    pub fn filters(self) -> usize {
        self.0.accounts.iter().map(|account| account.interest.filters()).sum()
    }

    /// Counters of subscriptions and lookups, over all accounts.
    pub fn interest_stats(self) -> InterestStats {
        let mut all = InterestStats::default();
        self.0.accounts.iter().for_each(|account| all.add(&account.interest.stats()));
        all
    }

    /// Figures of each account that is configured or has connections.
    pub fn account_figures(self) -> Vec<AccountFigures> {
        self.0.accounts.iter().filter(|account| !account.name.is_empty()).map(Into::into).collect()
    }

    /// Counters since the start.
    pub fn stats(self) -> Stats {
        self.0.monitor.stats
    }

    /// Delays of batches: nanoseconds from the arrival of the oldest input that a batch answers to
    /// `Engine::depart`.
    pub fn delays(self) -> &'a Histogram {
        self.0.monitor.departures.delays()
    }

    /// Bytes of output that are queued or with the kernel; bytes that connections share count once.
    pub fn output_bytes(self) -> usize {
        self.0.spares.held_bytes()
    }

    /// Connections that are not read from because of back-pressure.
    pub fn braked_conns(self) -> usize {
        self.0.waits.braked
    }

    /// Cost of the last turn.
    pub fn turn_cost(self) -> TurnCost {
        self.0.monitor.turn_cost
    }

    /// The open connections from slot `from` on, as far as one page goes.
    pub fn conns_page(self, from: u64) -> Page<ConnSnapshot> {
        page(from, self.0.conns.slots.len() as u64, |slot| {
            let conn = self.0.conns.at(u32::try_from(slot).ok()?)?;
            let shown = conn.is_open() && conn.layers.is_understood() && conn.link.is_none();
            shown.then(|| of_conn(conn))
        })
    }

    /// The subscriptions from slot `from` on, as far as one page goes.
    pub fn subs_page(self, from: u64) -> Page<SubSnapshot> {
        page(from, self.0.subs.capacity() as u64, |slot| {
            let sub = self.0.subs.get(usize::try_from(slot).ok()?)?;
            Some(of_sub(self.0.conns.at(sub.conn)?, sub))
        })
    }

    /// The connections that have ended and are remembered, in the order of their ends, from the
    /// one before which `from` had ended, as far as one page goes.
    pub fn closed_page(self, from: u64) -> Page<ClosedConn> {
        let Closed { conns, forgotten, .. } = &self.0.monitor.closed;
        page(from.max(*forgotten), forgotten + conns.len() as u64, |number| {
            let (closed, bytes) = conns.get(usize::try_from(number - forgotten).ok()?)?;
            Some((closed.clone(), *bytes))
        })
    }

    /// Returns the registered gateways; `with_interest` adds the interest of each peer.
    pub fn gateways(self, with_interest: bool) -> Vec<GatewaySnapshot> {
        gateway::gateways(self.0, with_interest)
    }

    /// The registered routes; `with_interest` adds the remote interest of each peer.
    pub fn routes(self, with_interest: bool) -> Vec<RouteSnapshot> {
        route::routes(self.0, with_interest)
    }

    /// Addresses for clients, as INFO names them.
    pub fn client_urls(self) -> ClientUrls {
        route::client_urls(self.0)
    }

    /// Returns the leaf connections that are up; `with_interest` decides whether the interest of
    /// each other end is included.
    pub fn leaves(self, with_interest: bool) -> Vec<LeafSnapshot> {
        leaf::snapshot::leaves(self.0, with_interest)
    }

    /// Whether the connection leads to another server.
    pub fn is_route(self, id: ConnId) -> bool {
        self.0.is_link(id)
    }

    /// Counters of the lane to another shard, without the records in the ring itself.
    pub fn lane(self, to: ShardId) -> LaneFigures {
        let lane = &self.0.lanes.to[to.index()];
        LaneFigures {
            records: lane.all_records,
            bytes: lane.all_bytes,
            waiting_records: lane.queue.len(),
            waiting_bytes: lane.bytes,
        }
    }

    /// Bytes of a connection's input that wait to be handled.
    pub fn waiting_bytes(self, id: ConnId) -> usize {
        self.0.conns.get(id).filter(|conn| conn.input.waits()).map_or(0, |conn| conn.input.len())
    }
}
