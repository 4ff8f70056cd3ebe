//! Routes: connections to other servers of the cluster.
//!
//! A route belongs to one shard, like any connection. The peer's interest is entered in that
//! shard's interest under the route's slot, and announced to the other shards as interest by way of
//! routes (`Kind::Route`). So a run of a client goes to shards with clients and to shards with
//! routes (`Targets::shards`); a run that came over a route goes to the first only, and never
//! leaves by another route. Interest of this server's clients is advertised to each peer, in order
//! with the messages (`core::interest_sync`).
//!
//! A shard knows only its own routes, so it does not decide which peers are accepted: it gives
//! notice ([`RouteNotice`]) and follows orders. A route is not read from after an INFO until the
//! process has handled it (`RouteOrder::HearOn`). With a pool of routes an account has one route
//! for its interest and its messages, so order and barriers are as with one.
//!
//! A route that ends is replaced by another one, often on another shard: see `link::newcomers`.
//!
//! Interest of leaf nodes behind a peer (`LS+`) stands beside the interest of its clients, each
//! with its `Origin`: a message goes to the peer once, for all of them.
//!
//! With TLS the dialling server is a TLS client, with the same certificate (`MutualTls`); INFO
//! waits for the handshake. S2 compression begins in mid-stream (`transport::s2`). After a reload
//! routes are reviewed (`review_routes`).

#![forbid(unsafe_code)]

pub(crate) mod accounts_changed;
pub(crate) mod handshake;
pub(crate) mod review;
pub(crate) mod subscriptions;

use std::rc::Rc;

use crate::auth::user::User;
use crate::cluster::{ClientUrls, PoolPart};
use crate::core::Core;
use crate::core::close::Reason;
use crate::core::conn::Conn;
use crate::core::input::UNDECIDED_BYTES_MAX;
use crate::core::input::{Operations, Taken};
use crate::core::lanes::send_barrier;
use crate::core::settings::{RouteSettings, Settings};
use crate::core::timers::Deadline;
use crate::delivery::publish::{self, NamedGroups};
use crate::interest::cost::OPERATION_WORK;
use crate::interest::ids::{ConnId, Origin};
use crate::link::gateways::GatewayNotice;
use crate::link::{FILTERS_SHOWN_MAX, RouteNotice, RouteSnapshot, Stage, shown_filter};
use crate::proto::gateway::{self, NameHash};
use crate::proto::route::{self as wire, Form, RouteInfo, RouteOp, RouteParsed};
use crate::proto::{ProtoError, Publish, encode};
use crate::run::Run;
use crate::transport::Transport;

/// Nanoseconds from the registration of a peer to its first PING, which comes up to a fifth later.
const FIRST_PING_NS: u64 = 1_000_000_000;

/// Bytes of a message that a peer may send, if clients may not send larger ones: other servers may
/// allow more than this one, but not without bound.
const PAYLOAD_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Nanoseconds that a peer that has dialled has for CONNECT and INFO each, where no other time is
/// configured: it has nothing to wait for.
pub(crate) const INTRODUCTION_NS: u64 = 5_000_000_000;

/// Bytes of an INFO that a peer may send.
const INTRODUCTION_BYTES_MAX: usize = wire::CONTROL_LINE_BYTES_MAX + 1024;

/// Bytes of interest that a peer may send before its INFO.
const EARLY_BYTES_MAX: usize = 64 * 1024;

/// Error by which a server refuses a route for one account alone.
pub(crate) const NO_DEDICATED: &str = "Not possible to have a dedicated route";

/// The head of a message between servers, besides its subject.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Head<'a> {
    /// The cluster of leaf nodes that the message came from, if it did.
    pub(crate) origin: Option<&'a [u8]>,
    pub(crate) account: &'a [u8],
    /// The queue groups to be served.
    pub(crate) queues: &'a [u8],
}

impl RouteSettings {
    /// Whether interest in a subject is advertised.
    pub(crate) fn advertises(&self, subject: &[u8]) -> bool {
        self.permissions.as_ref().is_none_or(|permissions| permissions.may_publish(subject))
    }

    /// Whether a peer's interest in a subject is taken.
    fn takes(&self, subject: &[u8]) -> bool {
        self.permissions.as_ref().is_none_or(|permissions| permissions.may_subscribe(subject, None))
    }
}

impl Settings {
    /// Returns the user of connections without credentials.
    pub(crate) fn nobody(&self) -> Rc<User> {
        Rc::clone(&self.auth.nobody)
    }
}

/// Greets the peer of a route that is ready for the protocol.
pub(crate) fn greet_route(core: &mut Core, id: ConnId) {
    let Some(conn) = core.conns.get(id) else { return };
    tracing::info!("{} - Route connection created", conn.label());
    let is_dialed = conn.link.as_ref().is_some_and(|link| link.dialed.is_some());
    let patience_ns = match core.settings.route.user {
        _ if is_dialed => stale_ns(core),
        Some(_) => core.settings.route.auth_timeout_ns,
        None => INTRODUCTION_NS,
    };
    if let Some(conn) = core.conns.get_mut(id) {
        conn.deadlines.arm(Deadline::Login, core.times.now.saturating_add(patience_ns));
    }
    if !is_dialed {
        handshake::send_route_info(core, id);
    }
    core.rearm(id);
}

/// Returns the nanoseconds that a peer may be silent.
pub(crate) fn stale_ns(core: &Core) -> u64 {
    let route = &core.settings.route;
    route.ping_interval_ns.saturating_mul(u64::from(route.ping_max) + 1)
}

/// Sets the cluster's name, until another one is agreed upon.
pub(crate) fn name_cluster(core: &mut Core, name: &str, is_dynamic: bool) {
    core.links.name = Some(name.to_owned());
    core.links.is_dynamic = is_dynamic;
    core.accounts.name_cluster(name, core.settings.server_id());
}

/// Returns the addresses for clients, as INFO names them.
pub(crate) fn client_urls(core: &Core) -> ClientUrls {
    let of = |transport| {
        core.settings.client_urls(&core.links, transport, core.endings.lame_duck.is_some())
    };
    ClientUrls { tcp: of(Transport::Tcp), websocket: of(Transport::WebSocket), leaf: None }
}

/// Accepts the peer of a route, for `part` of the accounts.
pub(crate) fn register_route(core: &mut Core, rid: u64, part: PoolPart) {
    let Some(id) = find_route(core, rid) else { return };
    let Some(conn) = core.conns.get_mut(id).filter(|conn| conn.is_open()) else { return };
    let Some(link) = &mut conn.link else { return };
    if link.stage != Stage::Info || conn.input.held().is_none() {
        return;
    }
    link.stage = Stage::Registered;
    let is_awaited = link.dialed.is_some() && part != PoolPart::All;
    let (theirs, is_shardcast) = (link.peer.route_pool_size, link.peer.shardcast);
    let modulus = core.settings.route.pooling.modulus(theirs, is_shardcast);
    let member = NameHash::of(&link.peer.server_id);
    let Some(route) = link.route_mut() else { return };
    (route.part, route.modulus, route.member) = (part, modulus, member);
    conn.deadlines.disarm(Deadline::Login);
    let jitter = core.random.rng.u64(..=FIRST_PING_NS / 5);
    let first_ping_ns = FIRST_PING_NS.min(core.settings.route.ping_interval_ns);
    // The next connection of a pool is made when the peer is known to have taken this one.
    let first_ping_ns = if is_awaited { 0 } else { first_ping_ns.saturating_add(jitter) };
    conn.deadlines.arm(Deadline::Ping, core.times.now.saturating_add(first_ping_ns));
    tracing::info!(
        "{} - Registering remote route {:?}",
        conn.label(),
        conn.link.as_ref().map_or("", |link| &link.peer.server_id)
    );
    let is_packed = conn.layers.compression().is_some();
    if let Some(login) = conn.link.as_ref().and_then(|link| link.dialed.clone()) {
        if !is_packed {
            handshake::send_route_connect(core, id, login);
        }
        handshake::send_route_info(core, id);
    }
    core.links.routes.push(id);
    introduce_to_gateways(core, id);
    let (epoch, unaware) = (send_barrier(core), core.others().collect());
    core.links.newcomers.add(id, epoch, unaware);
    core.rearm(id);
    core.start_sync(id);
}

/// Tells other clusters of a new member, and the member of other clusters.
fn introduce_to_gateways(core: &mut Core, id: ConnId) {
    if core.settings.gateway.is_none() {
        return;
    }
    let Some(link) = core.conns.get(id).and_then(|conn| conn.link.as_ref()) else { return };
    let RouteInfo { server_id, server_name, gateway_url, .. } = link.peer.clone();
    let (route, id_of, name, url) = (link.rid, server_id, server_name, gateway_url);
    core.out.notify_of_gateway(GatewayNotice::Member { route, id: id_of, name, url });
    for at in 0..core.links.gateways.clusters.len() {
        let info = core.links.gateways.clusters[at].clone();
        core.reply(id, |out| gateway::info(out, &info));
    }
}

/// Asks the peer of a route for an answer, which shows that it has taken the route.
pub(crate) fn ask_route(core: &mut Core, rid: u64) {
    let Some(id) = find_route(core, rid) else { return };
    if let Some(conn) = core.conns.get_mut(id).filter(|conn| conn.is_open()) {
        conn.deadlines.arm(Deadline::Ping, core.times.now);
        core.rearm(id);
    }
}

/// Closes a route for this reason.
pub(crate) fn close_route(core: &mut Core, rid: u64, reason: &'static str) {
    if let Some(id) = find_route(core, rid) {
        core.fail(id, None, Reason::Protocol(reason));
    }
}

/// Announces another server to a peer.
pub(crate) fn gossip(core: &mut Core, rid: u64, info: &RouteInfo) {
    if let Some(id) = find_route(core, rid) {
        core.reply(id, |out| wire::info(out, info));
        core.settle_deliveries();
    }
}

/// Informs the peers that this server is about to end.
pub(crate) fn announce_lame_duck(core: &mut Core) {
    for id in core.links.routes.clone() {
        handshake::send_route_info(core, id);
    }
}

/// Returns the registered routes; `with_interest` adds the interest of each peer.
pub(crate) fn routes(core: &Core, with_interest: bool) -> Vec<RouteSnapshot> {
    let shown = if with_interest { FILTERS_SHOWN_MAX } else { 0 };
    let conns = core.links.routes.iter().filter_map(|id| core.conns.get(*id));
    let snapshot = |conn: &Conn| {
        let link = conn.link.as_ref()?;
        Some(RouteSnapshot {
            rid: link.rid,
            remote_id: link.peer.server_id.clone(),
            remote_name: link.peer.server_name.clone(),
            did_solicit: link.dialed.is_some(),
            ip: conn.peer.ip.clone(),
            port: conn.peer.port,
            opened_ns: conn.liveness.opened,
            last_active_ns: conn.last_active_ns(),
            rtt_ns: conn.liveness.rtt,
            pending_bytes: conn.outbox.pending_bytes(),
            traffic: conn.traffic,
            compression: match (conn.layers.compression(), link.offered.as_deref()) {
                (Some(mode), _) => mode.name_at(conn.liveness.rtt),
                (None, None | Some("" | "not supported")) => "not supported",
                (None, Some(_)) => "off",
            },
            subscriptions: link.remote.len(),
            account: match link.part()? {
                PoolPart::Account(name) => Some(name.clone()),
                _ => None,
            },
            interest: link.remote.iter(link.form()).take(shown).map(shown_filter).collect(),
        })
    };
    conns.filter_map(snapshot).collect()
}

pub(crate) fn find_route(core: &Core, rid: u64) -> Option<ConnId> {
    core.links.by_rid.get(&rid).copied()
}

/// Removes a connection that is gone, with its slot.
pub(crate) fn forget_route(core: &mut Core, conn: &Conn) {
    if let Some(link) = conn.link.as_ref().filter(|link| link.route().is_some()) {
        core.links.by_rid.remove(&link.rid);
    }
}

/// Returns the bytes that a message of another server may have.
pub(crate) fn payload_bytes_max(core: &Core) -> usize {
    core.settings.limits.payload_bytes_max.max(PAYLOAD_BYTES_MAX)
}

/// The operations of a peer.
pub(crate) struct RouteOperations<'a> {
    form: Form,
    payload_bytes_max: usize,
    /// The head that the messages of the run have in common.
    head: Head<'a>,
}

impl RouteOperations<'_> {
    /// Returns the operations in the form of this route's peer; `None` if the connection is no
    /// route.
    pub(crate) fn of(core: &Core, id: ConnId) -> Option<Self> {
        let link = core.conns.get(id)?.link.as_ref().filter(|link| link.route().is_some())?;
        let payload_bytes_max = payload_bytes_max(core);
        Some(Self { form: link.form(), payload_bytes_max, head: Head::default() })
    }
}

impl<'a> Operations<'a> for RouteOperations<'a> {
    // Once per operation, from one place: a call costs as much as a tenth of a short publish.
    #[inline(always)]
    fn take(&mut self, core: &mut Core, id: ConnId, bytes: &'a [u8], run: &mut Run<'a>) -> Taken {
        match wire::parse(bytes, self.payload_bytes_max, self.form) {
            Ok(RouteParsed::Op {
                op: RouteOp::Message { origin, account, queues, publish },
                used,
            }) => {
                let head = Head { origin, account, queues };
                if self.head != head || !run.continues_with(&publish) {
                    self.flush(core, id, run);
                    if !core.may_go_on(id) {
                        return Taken::Nothing;
                    }
                    self.head = head;
                    begin_routed(core, id, account, run, &publish);
                }
                run.push_routed(publish, used);
                Taken::Bytes(used)
            }
            Ok(RouteParsed::Op { op, used }) => {
                self.flush(core, id, run);
                if !core.may_go_on(id) {
                    return Taken::Nothing;
                }
                on_route_operation(core, id, &op, &bytes[..used]);
                Taken::after(core, id, used)
            }
            Ok(RouteParsed::Incomplete { need }) if need > need_bytes_max(core, id) => {
                refuse_route(core, id, "Authorization Violation");
                Taken::Ended
            }
            Ok(RouteParsed::Incomplete { need }) => Taken::Needs(need),
            Err(error) => {
                self.flush(core, id, run);
                on_route_violation(core, id, &error);
                Taken::Ended
            }
        }
    }

    fn flush(&mut self, core: &mut Core, id: ConnId, run: &mut Run<'a>) {
        flush_routed(core, id, self.head, run);
        if let Some(conn) = core.conns.get_mut(id).filter(|conn| conn.is_open()) {
            conn.liveness.last_active = core.times.now;
        }
    }
}

/// Sets the receivers of the run that begins with `publish`, and its bounds.
pub(crate) fn begin_routed(
    core: &mut Core,
    id: ConnId,
    account: &[u8],
    run: &mut Run<'_>,
    publish: &Publish<'_>,
) {
    if let Some(account) =
        core.account_of(id, account).filter(|_| stage_of(core, id) == Stage::Registered)
    {
        let targets = core.targets(account, publish.subject);
        run.aim(account, targets, core.budget.room(), 0);
    }
}

pub(crate) fn flush_routed(core: &mut Core, id: ConnId, head: Head<'_>, run: &mut Run<'_>) {
    if run.is_empty() {
        return;
    }
    match stage_of(core, id) {
        Stage::Connect | Stage::Info => refuse_route(core, id, "Authorization Violation"),
        Stage::Registered => {
            if let Some((account, _)) = run.aim {
                let named = NamedGroups { by: Origin::of(head.origin), names: head.queues };
                publish::publish_routed(core, id, account, named, run);
            }
        }
        Stage::Ended => {}
    }
    run.clear();
}

pub(crate) fn stage_of(core: &Core, id: ConnId) -> Stage {
    let link = core.conns.get(id).and_then(|conn| conn.link.as_ref());
    link.map_or(Stage::Ended, |link| link.stage)
}

/// Returns the bytes that an operation may have of which only the beginning has come: no connection
/// has a claim to much memory before its peer is known. Later the parser has the bound.
pub(crate) fn need_bytes_max(core: &Core, id: ConnId) -> usize {
    match stage_of(core, id) {
        Stage::Connect | Stage::Ended => UNDECIDED_BYTES_MAX,
        Stage::Info => INTRODUCTION_BYTES_MAX,
        Stage::Registered => usize::MAX,
    }
}

fn on_route_violation(core: &mut Core, id: ConnId, error: &ProtoError) {
    if let Some(conn) = core.conns.get(id) {
        match error {
            // The peer tried a route for one account alone first, and goes on without.
            ProtoError::ErrorFromClient(text) if text.contains(NO_DEDICATED) => {
                tracing::debug!("{} - Route Error {text}", conn.label());
            }
            ProtoError::ErrorFromClient(text) => {
                tracing::error!("{} - Route Error {text}", conn.label());
            }
            error => tracing::error!("{} - {error}", conn.label()),
        }
    }
    core.fail(id, error.wire(), Reason::Protocol(error.reason()));
}

pub(crate) fn refuse_route(core: &mut Core, id: ConnId, error: &str) {
    if let Some(conn) = core.conns.get(id) {
        tracing::error!("{} - {error}", conn.label());
    }
    core.fail(id, Some(error), Reason::Protocol("Route Refused"));
}

/// Handles an operation; `line` is its text.
fn on_route_operation(core: &mut Core, id: ConnId, op: &RouteOp<'_>, line: &[u8]) {
    core.budget.spend(OPERATION_WORK);
    match *op {
        // An earlier operation may have ended the connection.
        _ if stage_of(core, id) == Stage::Ended => {}
        RouteOp::Connect(json) => handshake::on_route_connect(core, id, json),
        _ if stage_of(core, id) == Stage::Connect => {
            refuse_route(core, id, "Authorization Violation");
        }
        RouteOp::Info(json) => handshake::on_route_info(core, id, json),
        RouteOp::Ping => core.confirm(id, encode::pong),
        RouteOp::Pong => on_route_pong(core, id),
        RouteOp::Interest(..) | RouteOp::NoInterest(..) if stage_of(core, id) == Stage::Info => {
            on_early_interest(core, id, line);
        }
        RouteOp::Interest(entry, members) => subscriptions::on_interest(core, id, &entry, members),
        RouteOp::NoInterest(entry) => subscriptions::on_interest_end(core, id, &entry),
        RouteOp::Nothing => {}
        RouteOp::Message { .. } => unreachable!("messages are gathered into runs"),
    }
    core.settle_deliveries();
}

/// Keeps interest that comes before the peer's INFO until the peer is accepted.
fn on_early_interest(core: &mut Core, id: ConnId, line: &[u8]) {
    let link = core.conns.get_mut(id).and_then(|conn| conn.link.as_mut());
    let Some(route) = link.and_then(|link| link.route_mut()) else { return };
    if route.early.len() + line.len() > EARLY_BYTES_MAX {
        return refuse_route(core, id, "Authorization Violation");
    }
    route.early.extend_from_slice(line);
}

fn on_route_pong(core: &mut Core, id: ConnId) {
    core.on_pong(id);
    let link = core.conns.get_mut(id).and_then(|conn| conn.link.as_mut());
    let Some(link) = link.filter(|link| link.is_registered()) else { return };
    let rid = link.rid;
    if let Some(route) = link.route_mut()
        && !std::mem::replace(&mut route.is_confirmed, true)
    {
        core.out.notify(RouteNotice::Confirmed { rid });
    }
}
