//! Gateways: connections to servers of other clusters.
//!
//! Every server dials one server of each other cluster and takes any number of connections from
//! there. The two ends are unequal: the dialling server sends messages, the other one tells the
//! interest of its whole cluster. So the interest in a cluster is that of the peer which this
//! server has dialled; it is entered under that link (`Kind::Gateway`), and messages of clients go
//! there as they go over routes. What came from another cluster goes to this one, and never on to a
//! third.
//!
//! - `handshake`: CONNECT, INFO, and what is refused
//! - `interest`: interest of a peer in the three modes that an account may be in
//! - `telling`: interest of this cluster for the peers that have dialled
//! - `review`: new settings
//!
//! All dialled gateways are on the last shard (`Lanes::gateway_shard`), so that one
//! shard knows which cluster is nearest: a queue group without a member here is served by one
//! cluster. Accepted ones are on any shard. A shard decides nothing about peers: it gives notice
//! (`GatewayNotice`) and follows orders, as with routes.
//!
//! Replies to fresh inboxes: `delivery::mapped_replies`.

#![forbid(unsafe_code)]

pub(crate) mod handshake;
pub(crate) mod interest;
pub(crate) mod review;
pub(crate) mod telling;

use crate::core::Core;
use crate::core::close::Reason;
use crate::core::conn::Conn;
use crate::core::input::{Operations, Taken};
use crate::core::timers::Deadline;
use crate::interest::cost::OPERATION_WORK;
use crate::interest::ids::ConnId;
use crate::link::gateways::{GatewayOrder, GatewaySnapshot};
use crate::link::{FILTERS_SHOWN_MAX, Stage};
use crate::proto::gateway::{self as wire, GatewayInfo, GatewayOp, GatewayParsed};
use crate::proto::route::RouteOp;
use crate::proto::{ProtoError, encode};
use crate::route::{self, Head};
use crate::run::Run;

/// Nanoseconds from the registration of a peer to its first PING, which comes up to a fifth later.
const FIRST_PING_NS: u64 = 1_000_000_000;

/// Greets the peer of a gateway that is ready for the protocol.
pub(crate) fn greet(core: &mut Core, id: ConnId) {
    let Some(settings) = &core.settings.gateway else { return };
    let Some(conn) = core.conns.get_mut(id) else { return };
    let is_dialed = conn.link.as_ref().is_some_and(|link| link.dialed.is_some());
    let patience_ns = match is_dialed {
        true => settings.ping_interval_ns.saturating_mul(u64::from(settings.ping_max) + 1),
        false => settings.auth_timeout_ns,
    };
    conn.deadlines.arm(Deadline::Login, core.times.now.saturating_add(patience_ns));
    if is_dialed {
        let cluster = conn.link.as_ref().and_then(|link| link.gateway());
        let cluster = encode::go_quoted(cluster.map_or("", |peer| &peer.cluster).as_bytes());
        tracing::info!("{} - Creating outbound gateway connection to {cluster}", conn.label());
    } else {
        tracing::info!("{} - Processing inbound gateway connection", conn.label());
        handshake::send_info(core, id);
    }
    core.rearm(id);
}

/// Carries out an order of the process; `false` if a gateway is to be read from again.
pub(crate) fn on_order(core: &mut Core, order: GatewayOrder) {
    match order {
        GatewayOrder::Register(rid, others) => register(core, rid, &others),
        GatewayOrder::Close(rid, reason) => {
            if let Some(id) = find(core, rid) {
                core.fail(id, None, Reason::Protocol(reason));
            }
        }
        GatewayOrder::Urls(urls) => {
            core.links.gateways.urls = urls;
            for id in core.links.gateways.inbounds.clone() {
                handshake::send_info(core, id);
            }
        }
        GatewayOrder::Members(members) => core.links.gateways.members = members,
        GatewayOrder::Clusters(clusters) => announce_clusters(core, clusters),
        GatewayOrder::HearOn(_) => {}
    }
}

/// Announces clusters to the members of the own one: those that are new, or have new addresses.
fn announce_clusters(core: &mut Core, clusters: Vec<GatewayInfo>) {
    let old = std::mem::replace(&mut core.links.gateways.clusters, clusters);
    let news = core.links.gateways.clusters.iter().filter(|info| !old.contains(info));
    let news: Vec<GatewayInfo> = news.cloned().collect();
    for id in core.links.routes.clone() {
        for info in &news {
            core.reply(id, |out| wire::info(out, info));
        }
    }
    core.settle_deliveries();
}

pub(crate) fn find(core: &Core, rid: u64) -> Option<ConnId> {
    core.links.gateways.by_rid.get(&rid).copied()
}

/// Accepts the peer of a gateway. One that has dialled is told of the `others`, and of all
/// interest; interest of one that was dialled counts from here on.
fn register(core: &mut Core, rid: u64, others: &[GatewayInfo]) {
    let Some(id) = find(core, rid) else { return };
    let Some(conn) = core.conns.get_mut(id).filter(|conn| conn.is_open()) else { return };
    let Some(link) = &mut conn.link else { return };
    if link.stage != Stage::Info || conn.input.held().is_none() {
        return;
    }
    link.stage = Stage::Registered;
    let is_dialed = link.dialed.is_some();
    conn.deadlines.disarm(Deadline::Login);
    let jitter = core.random.rng.u64(..=FIRST_PING_NS / 5);
    let interval_ns = core.settings.gateway.as_ref().map_or(0, |gateway| gateway.ping_interval_ns);
    let first_ping_ns = FIRST_PING_NS.min(interval_ns).saturating_add(jitter);
    conn.deadlines.arm(Deadline::Ping, core.times.now.saturating_add(first_ping_ns));
    log_registered(core, id);
    core.rearm(id);
    if is_dialed {
        handshake::send_connect(core, id);
        handshake::send_info(core, id);
        core.links.gateways.outbounds.push(id);
        interest::begin_optimistic(core, id);
    } else {
        core.links.gateways.inbounds.push(id);
        for info in others {
            core.reply(id, |out| wire::info(out, info));
        }
    }
    // Nothing is told to a peer that was dialled: then it may speak at once.
    core.start_sync(id);
}

fn log_registered(core: &Core, id: ConnId) {
    let Some(conn) = core.conns.get(id) else { return };
    let Some(link) = &conn.link else { return };
    let Some(peer) = link.gateway() else { return };
    let (label, server) = (conn.label(), &link.peer.server_id);
    let cluster = encode::go_quoted(peer.cluster.as_bytes());
    match link.dialed {
        Some(_) => tracing::info!(
            "{label} - Outbound gateway connection to {cluster} ({server}) registered"
        ),
        None => tracing::info!(
            "{label} - Inbound gateway connection from {cluster} ({server}) registered"
        ),
    }
}

/// Removes a connection that is gone, with its slot.
pub(crate) fn forget(core: &mut Core, conn: &Conn) {
    if let Some(link) = conn.link.as_ref().filter(|link| link.gateway().is_some()) {
        core.links.gateways.by_rid.remove(&link.rid);
    }
}

/// Returns the registered gateways; `with_interest` adds the interest of each peer.
pub(crate) fn gateways(core: &Core, with_interest: bool) -> Vec<GatewaySnapshot> {
    let shown = if with_interest { FILTERS_SHOWN_MAX } else { 0 };
    let all = core.links.gateways.outbounds.iter().chain(&core.links.gateways.inbounds);
    let snapshot = |conn: &Conn| {
        let link = conn.link.as_ref()?;
        let peer = link.gateway()?;
        let is_outbound = link.dialed.is_some();
        let accounts = match is_outbound {
            true => interest::modes(link),
            false => telling::modes(core, peer),
        };
        let of_peer = link.remote.iter(link.form()).filter(|entry| entry.origin.is_none());
        let interest = of_peer.take(shown).map(|entry| {
            let queue = entry.queue.map(Into::into);
            (entry.account.into(), entry.subject.into(), queue)
        });
        Some(GatewaySnapshot {
            rid: link.rid,
            cluster: peer.cluster.to_string(),
            is_configured: peer.is_configured,
            is_outbound,
            remote_id: link.peer.server_id.clone(),
            ip: conn.peer.ip.clone(),
            port: conn.peer.port,
            opened_ns: conn.liveness.opened,
            last_active_ns: conn.last_active_ns(),
            rtt_ns: conn.liveness.rtt,
            pending_bytes: conn.outbox.pending_bytes(),
            traffic: conn.traffic,
            subscriptions: link.remote.len() - link.remote.len_with_origin(),
            accounts,
            interest: interest.collect(),
        })
    };
    all.filter_map(|id| core.conns.get(*id)).filter_map(snapshot).collect()
}

/// The operations of a peer of another cluster.
pub(crate) struct GatewayOperations<'a> {
    payload_bytes_max: usize,
    /// The head that the messages of the run have in common.
    head: Head<'a>,
}

impl GatewayOperations<'_> {
    /// Returns the operations of this gateway; `None` if the connection is none.
    pub(crate) fn of(core: &Core, id: ConnId) -> Option<Self> {
        core.conns.get(id)?.link.as_ref()?.gateway()?;
        let payload_bytes_max = route::payload_bytes_max(core);
        Some(Self { payload_bytes_max, head: Head::default() })
    }
}

impl<'a> Operations<'a> for GatewayOperations<'a> {
    // Once per operation, from one place, as for routes.
    #[inline(always)]
    fn take(&mut self, core: &mut Core, id: ConnId, bytes: &'a [u8], run: &mut Run<'a>) -> Taken {
        match wire::parse(bytes, self.payload_bytes_max) {
            Ok(GatewayParsed::Op {
                op: GatewayOp::Common(RouteOp::Message { account, queues, publish, .. }),
                used,
            }) => {
                let head = Head { origin: None, account, queues };
                if self.head != head || !run.continues_with(&publish) {
                    self.flush(core, id, run);
                    if !core.may_go_on(id) {
                        return Taken::Nothing;
                    }
                    self.head = head;
                    route::begin_routed(core, id, account, run, &publish);
                }
                run.push_routed(publish, used);
                Taken::Bytes(used)
            }
            Ok(GatewayParsed::Op { op, used }) => {
                self.flush(core, id, run);
                if !core.may_go_on(id) {
                    return Taken::Nothing;
                }
                on_operation(core, id, &op);
                Taken::after(core, id, used)
            }
            Ok(GatewayParsed::Incomplete { need }) if need > route::need_bytes_max(core, id) => {
                refuse(core, id, "Authorization Violation");
                Taken::Ended
            }
            Ok(GatewayParsed::Incomplete { need }) => Taken::Needs(need),
            Err(error) => {
                self.flush(core, id, run);
                on_violation(core, id, &error);
                Taken::Ended
            }
        }
    }

    fn flush(&mut self, core: &mut Core, id: ConnId, run: &mut Run<'a>) {
        if run.is_empty() {
            return;
        }
        let link = core.conns.get(id).and_then(|conn| conn.link.as_ref());
        if link.is_some_and(|link| link.is_registered() && link.dialed.is_some()) {
            // Messages come from the side that has dialled.
            run.clear();
            return violate(core, id, "Received message from gateway on outbound connection");
        }
        if run.aim.is_none() && route::stage_of(core, id) == Stage::Registered {
            telling::refuse_account(core, id, self.head.account);
        }
        route::flush_routed(core, id, self.head, run);
        if let Some(conn) = core.conns.get_mut(id).filter(|conn| conn.is_open()) {
            conn.liveness.last_active = core.times.now;
        }
    }
}

fn on_violation(core: &mut Core, id: ConnId, error: &ProtoError) {
    if let Some(conn) = core.conns.get(id) {
        match error {
            ProtoError::ErrorFromClient(text) => {
                tracing::error!("{} - Gateway Error {text}", conn.label());
            }
            error => tracing::error!("{} - {error}", conn.label()),
        }
    }
    core.fail(id, error.wire(), Reason::Protocol(error.reason()));
}

/// Ends a gateway with this error, of which the peer is told.
pub(crate) fn refuse(core: &mut Core, id: ConnId, error: &str) {
    if let Some(conn) = core.conns.get(id) {
        tracing::error!("{} - {error}", conn.label());
    }
    core.fail(id, Some(error), Reason::Protocol("Gateway Refused"));
}

/// Ends a gateway whose peer has broken the protocol.
pub(crate) fn violate(core: &mut Core, id: ConnId, what: &str) {
    if let Some(conn) = core.conns.get(id) {
        tracing::error!("{} - {what}", conn.label());
    }
    core.fail(id, None, Reason::Protocol("Protocol Violation"));
}

fn on_operation(core: &mut Core, id: ConnId, op: &GatewayOp<'_>) {
    core.budget.spend(OPERATION_WORK);
    match *op {
        // An earlier operation may have ended the connection.
        _ if route::stage_of(core, id) == Stage::Ended => {}
        GatewayOp::Common(RouteOp::Connect(json)) => handshake::on_connect(core, id, json),
        _ if route::stage_of(core, id) == Stage::Connect => {
            refuse(core, id, "Authorization Violation");
        }
        GatewayOp::Common(RouteOp::Info(json)) => handshake::on_info(core, id, json),
        GatewayOp::Common(RouteOp::Ping) => core.confirm(id, encode::pong),
        GatewayOp::Common(RouteOp::Pong) => core.on_pong(id),
        GatewayOp::Common(RouteOp::Nothing) => {}
        _ if !is_outbound(core, id) => {
            violate(core, id, "Received RS+ or RS- from gateway on inbound connection");
        }
        GatewayOp::Account(account) => interest::on_account(core, id, account),
        GatewayOp::NoAccount(account) => interest::on_no_account(core, id, account),
        GatewayOp::Common(RouteOp::Interest(entry, members)) => {
            interest::on_interest(core, id, &entry, members);
        }
        GatewayOp::Common(RouteOp::NoInterest(entry)) => {
            interest::on_interest_end(core, id, &entry);
        }
        GatewayOp::Common(RouteOp::Message { .. }) => {
            unreachable!("messages are gathered into runs")
        }
    }
    core.settle_deliveries();
}

/// Whether a gateway is registered, and this server has dialled it.
fn is_outbound(core: &Core, id: ConnId) -> bool {
    let link = core.conns.get(id).and_then(|conn| conn.link.as_ref());
    link.is_some_and(|link| link.is_registered() && link.dialed.is_some())
}
