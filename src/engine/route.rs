//! Routes: connections to other servers of the cluster.
//!
//! A route belongs to one shard, like any connection; its number says which. The peer's interest
//! is entered in that shard's interest under the route's slot, and announced to the other shards
//! as interest *behind routes* (`Side::Routes`). So a run of a client goes to shards with clients
//! (`Targets::shards`) and to shards with routes (`Targets::routers`); a run that came over a
//! route goes to the first only, and never leaves by another route. Interest of this server's
//! clients is told to each peer, in order with the messages (`telling`).
//!
//! A shard knows only its own routes, so it does not decide which peers may stay: it gives notice
//! ([`RouteNotice`]) and follows orders. A route is not read from after an INFO until that was
//! heard (`Engine::hear_on`). With a pool of routes an account is told of, and written to, on one
//! route only, so order and barriers are as with one.
//!
//! Interest of leaf nodes behind a peer (`LS+`) stands beside the interest of its clients, each
//! with its `Origin`: a message goes to the peer once, whoever there wants it.
//!
//! With TLS the dialling server is a TLS client, with the same certificate (`MutualTls`); INFO
//! waits for the handshake. S2 compression begins in mid-stream (`transport::s2`). After a reload
//! routes are judged anew (`Engine::review_routes`).

#![forbid(unsafe_code)]

mod review;
mod wishes;

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use super::budget::OPERATION_WORK;
use super::conn::{Claim, Conn, User};
use super::proof::Proof;
use super::run::Run;
use super::settings::RouteSettings;
use super::timers::NEVER;
use super::waiting::UNDECIDED_BYTES_MAX;
use super::{AccountId, ConnId, Engine, Origin, Peer, Reason};
use crate::auth::Secret;
use crate::cluster::names::{self, Agreement};
use crate::cluster::{ClientUrls, Part};
use crate::proto::encode;
use crate::proto::route::{
    self as wire, Accounts, Form, RouteConnect, RouteInfo, RouteOp, RouteParsed, Wish,
};
use crate::proto::{ProtoError, Publish};
use crate::transport::{self, Transport};
pub use wishes::WishBytes;
use wishes::Wishes;

/// The first PING to a peer comes this long after its registration, and up to a fifth later.
const FIRST_PING_NS: u64 = 1_000_000_000;
/// A message larger than this is taken from no peer, unless clients may send larger ones: other
/// servers may allow more than this one, but not without end.
const PAYLOAD_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A peer that has dialled has so many nanoseconds for each of its first words, where no other
/// time is configured: it has nothing to wait for.
const INTRODUCTION_NS: u64 = 5_000_000_000;
/// What one may send of its INFO, in bytes.
const INTRODUCTION_BYTES_MAX: usize = wire::CONTROL_LINE_BYTES_MAX + 1024;

/// Monitoring is shown no more of what a peer wants.
const WISHES_SHOWN_MAX: usize = 4096;
/// So much may a peer say of what it wants before it says who it is.
const EARLY_BYTES_MAX: usize = 64 * 1024;
/// How a server says that it will not have a route for one account alone with this one.
const NO_DEDICATED: &str = "Not possible to have a dedicated route";

/// A connection to another server that is to become a route.
#[derive(Debug, Clone)]
pub struct NewRoute {
    /// Names it over the whole server.
    pub rid: u64,
    /// We have dialled, with these credentials if there are some.
    pub dialed: Option<Option<(String, Secret)>>,
    /// Whom the certificate of who was dialled has to be for, where there is TLS.
    pub host: String,
}

/// What a shard has to say of its routes.
#[derive(Debug)]
pub enum RouteNotice {
    /// A peer has said who it is; it waits for [`Engine::register_route`].
    Greeted {
        /// Which route.
        rid: u64,
        /// Its peer.
        info: Box<RouteInfo>,
        /// Its address, without the port.
        ip: Box<str>,
    },
    /// A registered peer has answered: it has taken the route, too.
    Confirmed {
        /// Which route.
        rid: u64,
    },
    /// A registered peer has said something more: of itself, or of another server. It waits for
    /// [`Engine::hear_on`].
    Heard {
        /// Which route.
        rid: u64,
        /// What it said.
        info: Box<RouteInfo>,
    },
    /// The cluster has another name than this server has made up for it.
    Named {
        /// The route over which that came.
        rid: u64,
        /// The name.
        name: String,
        /// That, too, was made up.
        is_dynamic: bool,
    },
    /// The route is at its end.
    Ended {
        /// Which route.
        rid: u64,
        /// It led to this server itself.
        is_self: bool,
    },
}

/// What an engine knows of the cluster.
#[derive(Debug, Default)]
pub(super) struct Cluster {
    /// Its name, if this server is part of one.
    pub(super) name: Option<String>,
    /// The name was made up.
    pub(super) is_dynamic: bool,
    /// Where clients may connect to the other servers.
    pub(super) urls: ClientUrls,
    /// Registered routes of this shard.
    pub(super) routes: Vec<ConnId>,
    /// All routes of this shard, registered or not, by their numbers.
    by_rid: HashMap<u64, ConnId>,
    /// What everything that peers want costs.
    pub(super) wish_bytes: WishBytes,
    notices: VecDeque<RouteNotice>,
}

/// What is only there of a connection that is a route.
#[derive(Debug)]
pub(super) struct Route {
    rid: u64,
    dialed: Option<Option<(String, Secret)>>,
    /// The credentials of a peer that has dialled, where there have to be some.
    login: Option<(String, Secret)>,
    stage: Stage,
    /// What it is for; known from its registration on.
    pub(super) part: Part,
    /// What accounts' numbers in the pool follow from.
    pub(super) modulus: u16,
    /// The peer has answered a PING.
    is_confirmed: bool,
    /// It takes something that it did not take before, and is to be told everything again.
    is_to_be_told: bool,
    /// What the peer has first said of compression.
    offered: Option<String>,
    /// The peer takes HMSG.
    pub(super) headers: bool,
    peer: RouteInfo,
    /// Everything the peer wants.
    pub(super) wishes: Wishes,
    /// Lines in which it said so before it said who it is.
    early: Vec<u8>,
    /// With more than this unsent it is a slow consumer.
    pub(super) pending_bytes_max: usize,
}

impl Route {
    /// Everything the peer wants, each with the account that it is about.
    pub(super) fn wishes(&self) -> impl Iterator<Item = (Wish<'_>, &[u8])> {
        self.wishes.iter(self.form()).map(|wish| match &self.part {
            Part::Account(name) => (wish, name.as_bytes()),
            _ => (wish, wish.account),
        })
    }

    /// Whether it is part of the cluster.
    pub(super) fn is_registered(&self) -> bool {
        self.stage == Stage::Registered
    }

    /// Whether the peer has said who it is.
    pub(super) fn is_greeted(&self) -> bool {
        !self.peer.server_id.is_empty()
    }

    /// Whether it is for one account only, which is not named on it.
    pub(super) fn is_dedicated(&self) -> bool {
        matches!(self.part, Part::Account(_))
    }

    /// How its peer writes.
    fn form(&self) -> Form {
        let accounts = if self.is_dedicated() { Accounts::Unnamed } else { Accounts::Named };
        Form { accounts, origins: self.peer.lnocu || self.peer.ln }
    }

    /// What the peer wanted before it said who it is, as it would say so now. Then it cannot have
    /// left out the account that the route is for.
    fn take_early(&mut self) -> Vec<u8> {
        let early = std::mem::take(&mut self.early);
        let Part::Account(name) = &self.part else { return early };
        let (mut lines, mut rest) = (Vec::new(), &early[..]);
        let form = Form { accounts: Accounts::Named, ..self.form() };
        while let Ok(RouteParsed::Op { op, used }) = wire::parse(rest, 0, form) {
            rest = &rest[used..];
            match op {
                RouteOp::Interest(wish, members) if wish.account == name.as_bytes() => {
                    wire::interest(&mut lines, b"", wish.subject, wish.queue.zip(members));
                }
                RouteOp::NoInterest(wish) if wish.account == name.as_bytes() => {
                    wire::no_interest(&mut lines, b"", wish.subject, wish.queue);
                }
                _ => {}
            }
        }
        lines
    }

    /// What of the protocol the peer knows.
    pub(super) fn peer_proto(&self) -> i32 {
        self.peer.proto
    }

    /// Whether the peer tells what was passed on for queue groups from what is for everybody.
    pub(super) fn tells_passed_on(&self) -> bool {
        self.peer.shardcast
    }

    /// Its number, and the name of the server behind it.
    pub(super) fn peer_names(&self) -> (u64, &str) {
        (self.rid, &self.peer.server_name)
    }
}

/// What a message says of itself besides its subject: its origin, its account, and the queue groups
/// to be served.
type Head<'a> = (Option<&'a [u8]>, &'a [u8], &'a [u8]);

/// A wish as monitoring shows it.
fn shown_wish(wish: Wish<'_>) -> Box<[u8]> {
    let words = [Some(wish.account), Some(wish.subject), wish.queue];
    let words: Vec<&[u8]> = words.into_iter().flatten().filter(|word| !word.is_empty()).collect();
    words.join(&b' ').into()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nothing but CONNECT may come.
    Connect,
    /// INFO has to come.
    Info,
    /// It is part of the cluster.
    Registered,
    Ended,
}

/// A route as monitoring shows it. Times are nanoseconds since the process began.
#[derive(Debug, Clone)]
pub struct RouteSnapshot {
    /// Names it over the whole server.
    pub rid: u64,
    /// Id of the server behind it.
    pub remote_id: String,
    /// Its name.
    pub remote_name: String,
    /// This server has dialled.
    pub did_solicit: bool,
    /// The peer's address without the port.
    pub ip: Box<str>,
    /// Its port.
    pub port: u16,
    /// When it was connected.
    pub opened_ns: u64,
    /// When the peer last sent something, or was last sent a message.
    pub last_active_ns: u64,
    /// The last measured round trip, in nanoseconds; 0 before the first.
    pub rtt_ns: u64,
    /// Output not yet taken by the kernel, in bytes.
    pub pending_bytes: usize,
    /// What went through it.
    pub traffic: super::Traffic,
    /// How it is compressed, as nats-server names that.
    pub compression: &'static str,
    /// How many filters the peer wants.
    pub subscriptions: usize,
    /// The one account that it is for; no wish names it.
    pub account: Option<Box<str>>,
    /// What they are, if they were asked for: account, subject and queue group.
    pub wishes: Vec<Box<[u8]>>,
}

impl Engine {
    /// Takes over a connection to another server, dialled or accepted.
    pub fn open_route(&mut self, id: ConnId, peer: Peer, new: NewRoute) {
        let mut conn = Box::new(Conn::new(id, peer, self.now));
        let NewRoute { rid, dialed, host } = new;
        let is_dialed = dialed.is_some();
        let route = Route {
            rid,
            stage: if is_dialed { Stage::Info } else { Stage::Connect },
            part: Part::All,
            modulus: 0,
            is_confirmed: false,
            is_to_be_told: false,
            dialed,
            login: None,
            offered: None,
            headers: false,
            peer: RouteInfo::default(),
            wishes: Wishes::new(&self.hasher),
            early: Vec::new(),
            pending_bytes_max: self.settings.limits.pending_bytes_max,
        };
        conn.route = Some(Box::new(route));
        conn.user = Some(self.settings.nobody());
        self.cluster.by_rid.insert(rid, id);
        self.place_conn(conn);
        if self.begin_route_tls(id, is_dialed.then_some(&*host)) {
            self.greet_route(id);
        }
        self.rearm(id);
    }

    /// A route can be spoken over from now on.
    pub(super) fn greet_route(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get(id) else { return };
        tracing::info!("{} - Route connection created", conn.label());
        let is_dialed = conn.route.as_ref().is_some_and(|route| route.dialed.is_some());
        let patience_ns = match self.settings.route.user {
            _ if is_dialed => self.stale_ns(),
            Some(_) => self.settings.route.auth_timeout_ns,
            None => INTRODUCTION_NS,
        };
        if let Some(conn) = self.conns.get_mut(id) {
            conn.timing.auth_due = self.now.saturating_add(patience_ns);
        }
        if !is_dialed {
            self.send_route_info(id);
        }
        self.rearm(id);
    }

    /// How long a peer may be silent, in nanoseconds.
    fn stale_ns(&self) -> u64 {
        let route = &self.settings.route;
        route.ping_interval_ns.saturating_mul(u64::from(route.ping_max) + 1)
    }

    /// What it says of its routes, until there is nothing more.
    pub fn pop_route_notice(&mut self) -> Option<RouteNotice> {
        self.cluster.notices.pop_front()
    }

    /// Whether a connection is a route.
    pub fn is_route(&self, id: ConnId) -> bool {
        self.conns.get(id).is_some_and(|conn| conn.route.is_some())
    }

    /// The cluster's name as long as nobody gives it another one.
    pub fn name_cluster(&mut self, name: &str, is_dynamic: bool) {
        self.cluster.name = Some(name.to_owned());
        self.cluster.is_dynamic = is_dynamic;
        self.accounts.name_cluster(name, self.settings.server_id());
    }

    /// Where clients may connect to the other servers: those that can be told are told.
    pub fn set_cluster_urls(&mut self, urls: ClientUrls) {
        let old = std::mem::replace(&mut self.cluster.urls, urls);
        let new = self.cluster.urls.clone();
        self.inform_clients(|transport| old.of(transport) != new.of(transport));
    }

    /// Where clients may connect, as INFO tells them.
    pub fn client_urls(&self) -> ClientUrls {
        let of = |transport| {
            self.settings.client_urls(&self.cluster, transport, self.lame_duck.is_some())
        };
        ClientUrls { tcp: of(Transport::Tcp), websocket: of(Transport::WebSocket) }
    }

    /// The peer of a route may stay, and gets what goes over `part` of its connections.
    pub fn register_route(&mut self, rid: u64, part: Part) {
        let Some(id) = self.find_route(rid) else { return };
        let Some(conn) = self.conns.get_mut(id).filter(|conn| conn.is_open()) else { return };
        let Some(route) = &mut conn.route else { return };
        if route.stage != Stage::Info || conn.claim.is_none() {
            return;
        }
        route.stage = Stage::Registered;
        let is_awaited = route.dialed.is_some() && part != Part::All;
        route.part = part;
        let (theirs, is_shardcast) = (route.peer.route_pool_size, route.peer.shardcast);
        route.modulus = self.settings.route.pooling.modulus(theirs, is_shardcast);
        conn.timing.auth_due = NEVER;
        let jitter = self.rng.u64(..=FIRST_PING_NS / 5);
        let first_ping_ns = FIRST_PING_NS.min(self.settings.route.ping_interval_ns);
        // The next connection of a pool is made when the peer is known to have taken this one.
        let first_ping_ns = if is_awaited { 0 } else { first_ping_ns.saturating_add(jitter) };
        conn.timing.ping_due = self.now.saturating_add(first_ping_ns);
        tracing::info!(
            "{} - Registering remote route {:?}",
            conn.label(),
            conn.route.as_ref().map_or("", |route| &route.peer.server_id)
        );
        let is_packed = conn.layers.compression().is_some();
        if let Some(login) = conn.route.as_ref().and_then(|route| route.dialed.clone()) {
            if !is_packed {
                self.send_route_connect(id, login);
            }
            self.send_route_info(id);
        }
        self.cluster.routes.push(id);
        self.rearm(id);
        self.start_telling(id);
    }

    /// A registered peer has been told everything, and may speak.
    pub(super) fn hear_route(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id).filter(|conn| conn.is_open()) else { return };
        if conn.claim.take().is_none() {
            return; // It was heard before.
        }
        conn.need_bytes = 0;
        let early = conn.route.as_mut().map(|route| route.take_early()).unwrap_or_default();
        let rest = [early, std::mem::take(&mut conn.partial)].concat();
        self.release(id, |brakes| brakes.claims = false);
        self.on_plaintext(id, &rest);
        self.resume_unwrapping(id);
    }

    /// What the peer of a route has said of itself or of others is known where that counts: it is
    /// read from again as soon as it knows what it may take now. So no peer speaks faster than it
    /// is listened to.
    pub fn hear_on(&mut self, rid: u64) {
        let Some(id) = self.find_route(rid) else { return };
        let route = self.conns.get_mut(id).and_then(|conn| conn.route.as_mut());
        let Some(route) = route.filter(|route| route.is_registered()) else { return };
        if std::mem::take(&mut route.is_to_be_told) {
            self.start_telling(id);
        } else {
            self.hear_route(id);
        }
    }

    /// The peer of a route has to answer now: whether it has taken the route is the question.
    pub fn ask_route(&mut self, rid: u64) {
        let Some(id) = self.find_route(rid) else { return };
        if let Some(conn) = self.conns.get_mut(id).filter(|conn| conn.is_open()) {
            conn.timing.ping_due = self.now;
            self.rearm(id);
        }
    }

    /// A route is not needed, for this reason.
    pub fn close_route(&mut self, rid: u64, reason: &'static str) {
        if let Some(id) = self.find_route(rid) {
            self.fail(id, None, Reason::Protocol(reason));
        }
    }

    /// Tells a peer of another server.
    pub fn gossip(&mut self, rid: u64, info: &RouteInfo) {
        if let Some(id) = self.find_route(rid) {
            self.reply(id, |out| wire::info(out, info));
            self.settle_deliveries();
        }
    }

    /// Tells the peers that this server is about to end.
    pub(super) fn announce_lame_duck(&mut self) {
        for id in self.cluster.routes.clone() {
            self.send_route_info(id);
        }
    }

    /// The registered routes; with `wishes` also what each peer wants.
    pub fn routes(&self, wishes: bool) -> Vec<RouteSnapshot> {
        let shown = if wishes { WISHES_SHOWN_MAX } else { 0 };
        let conns = self.cluster.routes.iter().filter_map(|id| self.conns.get(*id));
        let snapshot = |conn: &Conn| {
            let route = conn.route.as_ref()?;
            Some(RouteSnapshot {
                rid: route.rid,
                remote_id: route.peer.server_id.clone(),
                remote_name: route.peer.server_name.clone(),
                did_solicit: route.dialed.is_some(),
                ip: conn.peer.ip.clone(),
                port: conn.peer.port,
                opened_ns: conn.timing.opened,
                last_active_ns: conn.timing.last_active.max(conn.timing.last_delivered),
                rtt_ns: conn.timing.rtt,
                pending_bytes: conn.outbox.pending_bytes(),
                traffic: conn.traffic,
                compression: match (conn.layers.compression(), route.offered.as_deref()) {
                    (Some(mode), _) => mode.name_at(conn.timing.rtt),
                    (None, None | Some("" | "not supported")) => "not supported",
                    (None, Some(_)) => "off",
                },
                subscriptions: route.wishes.len(),
                account: match &route.part {
                    Part::Account(name) => Some(name.clone()),
                    _ => None,
                },
                wishes: route.wishes.iter(route.form()).take(shown).map(shown_wish).collect(),
            })
        };
        conns.filter_map(snapshot).collect()
    }

    fn find_route(&self, rid: u64) -> Option<ConnId> {
        self.cluster.by_rid.get(&rid).copied()
    }

    /// A connection is gone, with its slot.
    pub(super) fn forget_route(&mut self, conn: &Conn) {
        if let Some(route) = &conn.route {
            self.cluster.by_rid.remove(&route.rid);
        }
    }

    /// Handles all whole operations of a peer. Returns how many bytes they took; all of them when
    /// the connection is at its end.
    pub(super) fn consume_route(&mut self, id: ConnId, bytes: &[u8]) -> usize {
        let mut run = Run::reusing(std::mem::take(&mut self.spare_run));
        let used = self.consume_route_with(&mut run, id, bytes);
        self.spare_run = Run::reusing(run);
        used
    }

    fn consume_route_with<'a>(&mut self, run: &mut Run<'a>, id: ConnId, bytes: &'a [u8]) -> usize {
        let payload_bytes_max = self.settings.limits.payload_bytes_max.max(PAYLOAD_BYTES_MAX);
        let mut at = 0;
        let mut need_bytes = 0;
        let Some(route) = self.conns.get(id).and_then(|conn| conn.route.as_ref()) else { return 0 };
        let form = route.form();
        // What the messages of a run have in common besides their subject.
        let mut head = Head::default();
        while at < bytes.len() {
            match wire::parse(&bytes[at..], payload_bytes_max, form) {
                Ok(RouteParsed::Op {
                    op: RouteOp::Message { origin, account, queues, publish },
                    used,
                }) => {
                    if head != (origin, account, queues) || !run.continues_with(&publish) {
                        self.flush_routed(id, head, run);
                        if !self.may_go_on(id) {
                            break;
                        }
                        head = (origin, account, queues);
                        self.begin_routed(id, account, run, &publish);
                    }
                    run.push_routed(publish, &bytes[at..at + used], form.accounts);
                    at += used;
                }
                Ok(RouteParsed::Op { op, used }) => {
                    self.flush_routed(id, head, run);
                    if !self.may_go_on(id) {
                        break;
                    }
                    self.on_route_operation(id, &op, &bytes[at..at + used]);
                    at += used;
                    let Some(conn) = self.conns.get(id).filter(|conn| conn.is_open()) else {
                        return bytes.len();
                    };
                    if conn.claim.is_some() || conn.layers.begins_s2() {
                        break;
                    }
                }
                Ok(RouteParsed::Incomplete { need }) if need > self.need_bytes_max(id) => {
                    self.refuse_route(id, "Authorization Violation");
                    return bytes.len();
                }
                Ok(RouteParsed::Incomplete { need }) => {
                    need_bytes = need;
                    break;
                }
                Err(error) => {
                    self.flush_routed(id, head, run);
                    self.on_route_violation(id, &error);
                    return bytes.len();
                }
            }
        }
        self.flush_routed(id, head, run);
        let Some(conn) = self.conns.get_mut(id).filter(|conn| conn.is_open()) else {
            return bytes.len();
        };
        conn.timing.last_active = self.now;
        conn.need_bytes = need_bytes;
        at
    }

    /// Finds out who gets the run that begins with `publish`, and how long it may be.
    fn begin_routed(
        &mut self,
        id: ConnId,
        account: &[u8],
        run: &mut Run<'_>,
        publish: &Publish<'_>,
    ) {
        if let Some(account) =
            self.account_of(id, account).filter(|_| self.stage_of(id) == Stage::Registered)
        {
            let targets = self.targets(account, publish.subject);
            run.aim(account, targets, self.budget.room(), 0);
        }
    }

    fn flush_routed(&mut self, id: ConnId, (origin, _, queues): Head<'_>, run: &mut Run<'_>) {
        if run.is_empty() {
            return;
        }
        match self.stage_of(id) {
            Stage::Connect | Stage::Info => self.refuse_route(id, "Authorization Violation"),
            Stage::Registered => {
                if let Some((account, _)) = run.aim {
                    self.publish_routed(id, account, (Origin::of(origin), queues), run);
                }
            }
            Stage::Ended => {}
        }
        run.clear();
    }

    /// The account that a peer speaks of, by its name or without one.
    fn account_of(&self, id: ConnId, name: &[u8]) -> Option<AccountId> {
        match &self.conns.get(id)?.route.as_ref()?.part {
            Part::Account(name) => self.accounts.find(name.as_bytes()),
            _ => self.accounts.find(name),
        }
    }

    fn stage_of(&self, id: ConnId) -> Stage {
        let route = self.conns.get(id).and_then(|conn| conn.route.as_ref());
        route.map_or(Stage::Ended, |route| route.stage)
    }

    /// How long an operation may be of which only the beginning has come: nobody has a claim to
    /// much memory before it is known who that is. Later the parser knows.
    fn need_bytes_max(&self, id: ConnId) -> usize {
        match self.stage_of(id) {
            Stage::Connect | Stage::Ended => UNDECIDED_BYTES_MAX,
            Stage::Info => INTRODUCTION_BYTES_MAX,
            Stage::Registered => usize::MAX,
        }
    }

    fn on_route_violation(&mut self, id: ConnId, error: &ProtoError) {
        if let Some(conn) = self.conns.get(id) {
            match error {
                // It tried a route for one account alone first, and goes on without.
                ProtoError::ErrorFromClient(text) if text.contains(NO_DEDICATED) => {
                    tracing::debug!("{} - Route Error {text}", conn.label());
                }
                ProtoError::ErrorFromClient(text) => {
                    tracing::error!("{} - Route Error {text}", conn.label());
                }
                error => tracing::error!("{} - {error}", conn.label()),
            }
        }
        self.fail(id, error.wire(), Reason::Protocol(error.reason()));
    }

    fn refuse_route(&mut self, id: ConnId, error: &str) {
        if let Some(conn) = self.conns.get(id) {
            tracing::error!("{} - {error}", conn.label());
        }
        self.fail(id, Some(error), Reason::Protocol("Route Refused"));
    }

    /// Handles an operation, which was written so.
    fn on_route_operation(&mut self, id: ConnId, op: &RouteOp<'_>, line: &[u8]) {
        self.budget.spend(OPERATION_WORK);
        match *op {
            // What came before it may have ended the connection.
            _ if self.stage_of(id) == Stage::Ended => {}
            RouteOp::Connect(json) => self.on_route_connect(id, json),
            _ if self.stage_of(id) == Stage::Connect => {
                self.refuse_route(id, "Authorization Violation");
            }
            RouteOp::Info(json) => self.on_route_info(id, json),
            RouteOp::Ping => self.confirm(id, encode::pong),
            RouteOp::Pong => self.on_route_pong(id),
            RouteOp::Interest(..) | RouteOp::NoInterest(..) if self.stage_of(id) == Stage::Info => {
                self.on_early_wish(id, line);
            }
            RouteOp::Interest(wish, members) => self.on_wish(id, &wish, members),
            RouteOp::NoInterest(wish) => self.on_wish_end(id, &wish),
            RouteOp::Nothing => {}
            RouteOp::Message { .. } => unreachable!("messages are gathered into runs"),
        }
        self.settle_deliveries();
    }

    /// A peer says what it wants before it says who it is: that waits until it may stay.
    fn on_early_wish(&mut self, id: ConnId, line: &[u8]) {
        let route = self.conns.get_mut(id).and_then(|conn| conn.route.as_mut());
        let Some(route) = route else { return };
        if route.early.len() + line.len() > EARLY_BYTES_MAX {
            return self.refuse_route(id, "Authorization Violation");
        }
        route.early.extend_from_slice(line);
    }

    fn on_route_pong(&mut self, id: ConnId) {
        self.on_pong(id);
        let route = self.conns.get_mut(id).and_then(|conn| conn.route.as_mut());
        if let Some(route) = route
            && route.stage == Stage::Registered
            && !std::mem::replace(&mut route.is_confirmed, true)
        {
            self.cluster.notices.push_back(RouteNotice::Confirmed { rid: route.rid });
        }
    }

    fn on_route_connect(&mut self, id: ConnId, json: &[u8]) {
        let connect: RouteConnect = match wire::read(json) {
            Some(connect) if self.stage_of(id) == Stage::Connect => connect,
            _ => return self.fail(id, None, Reason::Protocol("Protocol Violation")),
        };
        if !connect.lang.is_empty() {
            return self.refuse_route(id, "attempted to connect to route port");
        }
        if connect.cluster == wire::NO_CLUSTER {
            let name = encode::go_quoted(connect.cluster.as_bytes());
            let error = format!("Rejecting connection, cluster name {name} is reserved");
            return self.refuse_route(id, &error);
        }
        if !connect.gateway.is_empty() {
            let gateway = encode::go_quoted(connect.gateway.as_bytes());
            let error = format!("Rejecting connection from gateway {gateway} on the Route port");
            return self.refuse_route(id, &error);
        }
        if let (Some(user), Some(secret)) = (&self.settings.route.user, &self.settings.route.pass) {
            let is_user = *user == connect.user;
            if is_user && secret.is_bcrypt() {
                let proof = Proof::Password { secret: secret.clone(), given: connect.pass.clone() };
                self.hold_route(id);
                self.proofs.push_back((id, proof));
            } else if !is_user || !secret.matches(&connect.pass) {
                return self.refuse_route(id, "Authorization Violation");
            }
        }
        if !self.agree_on_name(id, &connect.cluster, connect.dynamic) {
            let (own, theirs) =
                (self.cluster.name.as_deref().unwrap_or_default(), &connect.cluster);
            let error = format!(
                "Rejecting connection, cluster name {} does not match {}",
                encode::go_quoted(theirs.as_bytes()),
                encode::go_quoted(own.as_bytes())
            );
            return self.refuse_route(id, &error);
        }
        let due = self.now.saturating_add(INTRODUCTION_NS);
        if let Some(conn) = self.conns.get_mut(id)
            && let Some(route) = &mut conn.route
        {
            (route.peer.lnocu, route.peer.ln) = (false, connect.ln);
            conn.connect.echo = connect.echo;
            route.login = Some((connect.user, Secret::new(connect.pass)));
            route.stage = Stage::Info;
            conn.timing.auth_due = due;
        }
        self.rearm(id);
    }

    /// What follows waits until it is decided whether the peer may stay.
    fn hold_route(&mut self, id: ConnId) {
        let nobody = self.settings.nobody();
        if let Some(conn) = self.conns.get_mut(id) {
            conn.claim = Some(Claim { user: nobody, again: false, holds: false });
            self.brake(id, |brakes| brakes.claims = true);
        }
    }

    /// Whether both can be of one cluster; takes over the peer's name for it where it must.
    fn agree_on_name(&mut self, id: ConnId, theirs: &str, is_dynamic: bool) -> bool {
        let own = self.cluster.name.as_deref().unwrap_or_default();
        match names::agree((own, self.cluster.is_dynamic), (theirs, is_dynamic)) {
            Agreement::Keep => true,
            Agreement::Refuse => false,
            Agreement::Adopt => {
                let Some(conn) = self.conns.get(id) else { return false };
                let Some(route) = &conn.route else { return false };
                tracing::info!("{} - Cluster name updated to {theirs}", conn.label());
                let (rid, name) = (route.rid, theirs.to_owned());
                let notice = RouteNotice::Named { rid, name, is_dynamic };
                self.name_cluster(theirs, is_dynamic);
                self.cluster.notices.push_back(notice);
                true
            }
        }
    }

    fn on_route_info(&mut self, id: ConnId, json: &[u8]) {
        let Some(info) = wire::read::<RouteInfo>(json) else {
            return self.fail(id, None, Reason::Protocol("Protocol Violation"));
        };
        let Some(conn) = self.conns.get_mut(id) else { return };
        let label = conn.label();
        let Some(route) = &mut conn.route else { return };
        let rid = route.rid;
        if route.stage == Stage::Registered {
            let is_peer = info.server_id == route.peer.server_id;
            let was = (route.peer.import.take(), route.peer.export.take());
            let is = if is_peer { (info.import.clone(), info.export.clone()) } else { was.clone() };
            (route.peer.import, route.peer.export) = is.clone();
            // What it did not take before it may take now; twice the same makes no difference.
            route.is_to_be_told = was != is;
            self.cluster.notices.push_back(RouteNotice::Heard { rid, info: Box::new(info) });
            return self.hold_route(id);
        }
        let own = &self.settings.route.info;
        let is_dialed = route.dialed.is_some();
        let reason = if info.server_id == own.server_id {
            tracing::debug!("{label} - route to self");
            let ended = RouteNotice::Ended { rid, is_self: true };
            route.stage = Stage::Ended;
            self.cluster.notices.push_back(ended);
            "Duplicate Route"
        } else if info.client_id != 0 {
            tracing::error!(
                "{label} - attempted to connect to a client port; routes need that of the cluster"
            );
            "Wrong Port"
        } else if info.server_id.is_empty() {
            "Protocol Violation"
        } else if let Some(error) = (!is_dialed).then(|| self.misplaced(&info)).flatten() {
            return self.refuse_route(id, &error);
        } else if !is_dialed && info.server_name == own.server_name {
            tracing::error!("{label} - Remote server has a duplicate name: {:?}", info.server_name);
            "Duplicate Server Name"
        } else if info.cluster == wire::NO_CLUSTER {
            "Cluster Name Conflict"
        } else if !info.cluster.is_empty()
            && !self.agree_on_name(id, &info.cluster, info.cluster_dynamic)
        {
            tracing::error!(
                "{label} - Rejecting connection, cluster name {:?} does not match {:?}",
                info.cluster,
                self.cluster.name.as_deref().unwrap_or_default()
            );
            "Cluster Name Conflict"
        } else {
            ""
        };
        if !reason.is_empty() {
            return self.fail(id, None, Reason::Protocol(reason));
        }
        if self.begins_packing(id, &info.compression) {
            return;
        }
        // The rest is not for the peer to do.
        let due = self.now.saturating_add(self.stale_ns());
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.timing.auth_due = due;
        let ip = conn.peer.ip.clone();
        // Who has dialled has said so in CONNECT; who was dialled says nothing, and ours want none.
        conn.connect.echo &= !info.shardcast;
        if let Some(route) = &mut conn.route {
            route.headers = info.headers && self.settings.headers;
            route.peer = info.clone();
        }
        self.hold_route(id);
        let info = Box::new(info);
        self.cluster.notices.push_back(RouteNotice::Greeted { rid, info, ip });
    }

    /// What is wrong with the place that who dials wants among the connections.
    fn misplaced(&self, info: &RouteInfo) -> Option<String> {
        let pooling = &self.settings.route.pooling;
        let (account, index) = (&info.route_account, info.route_pool_idx);
        let size = pooling.size_with(info.route_pool_size);
        if !account.is_empty() {
            let name = encode::go_quoted(account.as_bytes());
            return match (self.accounts.find(account.as_bytes()), size) {
                (None, _) => Some(format!("Unable to lookup account {name}: account missing")),
                (_, 0) => Some(format!("{NO_DEDICATED} for account {name} between those servers")),
                _ if pooling.is_dedicated(account) => None,
                _ => Some(format!("No route for account {name}")),
            };
        }
        match u16::try_from(index) {
            // Without a pool there are no places in it.
            _ if size == 0 => None,
            Ok(at) if at < size => None,
            _ => Some(format!("Invalid route pool index: {index} - pool size is {size}")),
        }
    }

    /// Compresses the route from here on, if its peer and this server want that: who it is is
    /// said again then. Also true if the route ends here.
    fn begins_packing(&mut self, id: ConnId, theirs: &str) -> bool {
        let Some(conn) = self.conns.get_mut(id) else { return true };
        let Some(route) = &mut conn.route else { return true };
        if route.offered.is_some() {
            return false;
        }
        route.offered = Some(theirs.to_owned());
        let login = route.dialed.clone();
        let Ok(agreed) = transport::negotiate(&self.settings.route.compression, theirs) else {
            let mode = encode::go_quoted(theirs.as_bytes());
            self.refuse_route(id, &format!("unsupported route compression mode {mode}"));
            return true;
        };
        let Some(mode) = agreed else { return false };
        let mut head = Vec::new();
        if let Some(login) = &login {
            wire::connect(&mut head, &self.route_connect(login.clone()));
            let info = RouteInfo { compression: mode.name().to_owned(), ..self.route_info() };
            wire::info(&mut head, &info);
        }
        self.begin_s2(id, mode, head);
        if login.is_none() {
            self.send_route_info(id);
        }
        true
    }

    fn route_connect(&self, login: Option<(String, Secret)>) -> RouteConnect {
        let (user, pass) = match login {
            Some((user, pass)) => (user, pass.revealed().to_owned()),
            None => Default::default(),
        };
        RouteConnect {
            echo: false,
            headers: self.settings.headers,
            tls_required: self.settings.route.info.tls_required,
            user,
            pass,
            name: self.settings.route.info.server_id.clone(),
            cluster: self.cluster.name.clone().unwrap_or_default(),
            dynamic: self.cluster.is_dynamic,
            lnoc: true,
            ln: true,
            ..RouteConnect::default()
        }
    }

    fn send_route_connect(&mut self, id: ConnId, login: Option<(String, Secret)>) {
        let connect = self.route_connect(login);
        let Some(conn) = self.conns.get_mut(id) else { return };
        // Not by way of a trace, which would show the password.
        conn.outbox.push(&mut self.spares, |out| wire::connect(out, &connect));
        self.flush_soon(id);
    }

    /// What this server says of itself over any route.
    fn route_info(&self) -> RouteInfo {
        let mut info = self.settings.route.info.clone();
        info.cluster = self.cluster.name.clone().unwrap_or_default();
        info.cluster_dynamic = self.cluster.is_dynamic;
        info.ldm = self.lame_duck.is_some();
        info
    }

    fn send_route_info(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get(id) else { return };
        let mut info = self.route_info();
        info.nonce = self.settings.nonce(conn.peer.cid);
        if let Some(mode) = conn.layers.compression() {
            info.compression = mode.name().to_owned();
        }
        // Who dials chooses what the connection is for.
        match conn.route.as_ref().filter(|route| route.dialed.is_some()).map(|r| &r.part) {
            Some(Part::Pool(index)) => info.route_pool_idx = (*index).into(),
            Some(Part::Account(name)) => info.route_account = (**name).into(),
            Some(Part::All) | None => {}
        }
        self.reply(id, |out| wire::info(out, &info));
    }
}

impl RouteSettings {
    /// Whether peers are told of interest in a subject.
    pub(super) fn tells(&self, subject: &[u8]) -> bool {
        self.permissions.as_ref().is_none_or(|permissions| permissions.may_publish(subject))
    }

    /// Whether a peer's interest in a subject is taken.
    fn takes(&self, subject: &[u8]) -> bool {
        self.permissions.as_ref().is_none_or(|permissions| permissions.may_subscribe(subject, None))
    }
}

impl super::Settings {
    /// A user who needs no credentials.
    pub(super) fn nobody(&self) -> Rc<User> {
        Rc::clone(&self.nobody)
    }
}
