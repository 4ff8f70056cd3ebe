//! Members of a cluster as one server sees them: addresses to dial, routes to keep, news to
//! spread.
//!
//! Pure: notices of the shards, outcomes of dialling and the time come in; [`RouteStep`]s come out.
//! Times are nanoseconds since the start of the process.
//!
//! A peer that has named itself waits (`Conn::claim` in the engine) until it is registered or
//! closed. Of two routes between two shardcast servers the one dialled by the server with the
//! smaller id stays; it takes over only when the interest of the other is gone. With a nats-server
//! the first route stays once the peer has answered on it, because the peer may have kept the other
//! one.
//!
//! Between two members there is a pool of routes (`pool`). INFO of the dialling side says which
//! part a route is for. The next route is dialled when the peer has answered a PING on this one;
//! missing routes are dialled again, from either side. A reload of the block reaches the shards as
//! settings and this room as a new plan.

#![forbid(unsafe_code)]

pub mod gateways;
mod leaf_remotes;
mod leaf_url;
pub mod names;
mod pool;
mod remembered;
mod route_url;
#[cfg(test)]
mod tests;
mod urls;
mod version;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::auth::Secret;
use crate::proto::route::RouteInfo;
pub use leaf_remotes::{LeafPause, LeafPlan, LeafRemotes, LeafStep, LeafTarget};
pub use leaf_url::{LEAF_PORT, LeafScheme, LeafUrl};
pub use pool::{POOL_SIZE_MAX, PoolPart, Pooling};
pub use route_url::{PORT, RouteUrl};
pub use urls::ClientUrls;
pub use version::Version;

/// Nanoseconds after which a configured route that is down is dialled again.
const REDIAL_NS: u64 = 1_000_000_000;
/// Nanoseconds of random delay that a redial may have besides, so that servers do not dial at once.
const REDIAL_JITTER_NS: u64 = 100_000_000;
/// Nanoseconds between two attempts with back-off, at most.
const REDIAL_NS_MAX: u64 = 30_000_000_000;

/// Nanoseconds for which this server waits for the peer to make a missing connection of a pool.
const POOL_PATIENCE_NS: u64 = 3_000_000_000;

/// Nanoseconds after which a newcomer is announced once more.
const RETELL_NS: u64 = 1_000_000_000;

/// Nanoseconds for which a second connection for the same part waits at most, until the first is
/// known to be the one that the peer has taken, too.
const DOUBT_NS: u64 = 1_000_000_000;

/// Nanoseconds between two announcements of other servers' addresses to clients, at least, however
/// often peers change them.
const URLS_NS: u64 = 100_000_000;

/// Handshakes in a row that end too early before a dialled server counts as failed.
const BROKEN_MAX: u32 = 8;

/// Settings of this server that concern other members.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// The id of this server.
    pub id: String,
    /// Addresses of the configured routes.
    pub routes: Vec<RouteUrl>,
    /// The credentials for servers learnt by gossip.
    pub login: Option<(String, Secret)>,
    /// Attempts to dial a server learnt by gossip, after the first one.
    pub connect_retries: u32,
    /// Whether the time between attempts grows.
    pub connect_backoff: bool,
    /// Whether clients are told no addresses of other servers.
    pub no_advertise: bool,
    /// Assignment of accounts to the connections to a member.
    pub pooling: Pooling,
}

/// A task for the caller.
#[derive(Debug, Clone, PartialEq)]
pub enum RouteStep {
    /// A server to dial; the result goes to [`Members::on_dialed`].
    Dial {
        /// The number of the attempt's target.
        target: u64,
        /// The address to dial.
        url: RouteUrl,
        /// Earlier attempts without success.
        attempt: u32,
    },
    /// A route whose peer is accepted, for this part of the accounts.
    Register(u64, PoolPart),
    /// A route to close, because it is not needed.
    Close(u64),
    /// A route whose peer has to answer a request now: [`Members::on_confirmed`].
    Ask(u64),
    /// A route whose server is no longer configured.
    Remove(u64),
    /// A route whose last INFO is handled, so that the next may be read.
    HearOn(u64),
    /// A route on which to announce another server.
    Gossip(u64, Box<RouteInfo>),
    /// Addresses of other servers to which clients may connect.
    Urls(ClientUrls),
}

/// A server to dial.
#[derive(Debug)]
struct Target {
    url: RouteUrl,
    kind: TargetKind,
    state: TargetState,
    /// Attempts without success since the last connection.
    attempts: u32,
    /// Routes since the last registered one that ended before the peer was registered.
    broken: u32,
    /// The id of the server, if it is known.
    server_id: Option<String>,
    /// The mode of passing on that gossip gave for the server.
    gossip_mode: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TargetKind {
    /// A configured server, which is dialled for ever.
    Configured,
    /// A server learnt by gossip.
    Gossiped,
    /// A member to which connections are missing; there is one such target for each. They are made
    /// one after the other, each when the peer has taken the one before.
    Pool,
}

#[derive(Debug, PartialEq, Eq)]
enum TargetState {
    Waiting {
        until: u64,
    },
    Dialing,
    /// A target with a route of its own.
    Linked,
    /// A target whose server is connected by another route.
    Covered,
    /// A target that turned out to be this server.
    GivenUp,
}

/// A route, from the moment its socket is connected.
#[derive(Debug)]
struct RouteEntry {
    /// The target from which the route was dialled; `None` if it was accepted.
    target: Option<u64>,
    is_dialed: bool,
    peer: Option<RouteInfo>,
    /// The part of the accounts that the route carries, once the peer is known.
    part: PoolPart,
    is_registered: bool,
    /// Whether the peer has taken the route, too.
    is_confirmed: bool,
    /// The time by which the fate of another route for the same part is known.
    in_doubt_until: Option<u64>,
    /// Whether the route is no longer configured, so that it is not redialled when it ends.
    is_unwanted: bool,
}

impl RouteEntry {
    fn new(target: Option<u64>) -> Self {
        let (is_dialed, part) = (target.is_some(), PoolPart::All);
        let (peer, in_doubt_until) = (None, None);
        let (is_registered, is_confirmed, is_unwanted) = (false, false, false);
        Self {
            target,
            is_dialed,
            peer,
            part,
            is_registered,
            is_confirmed,
            in_doubt_until,
            is_unwanted,
        }
    }

    fn id(&self) -> &str {
        self.peer.as_ref().map_or("", |peer| &peer.server_id)
    }
}

/// The members of the cluster.
#[derive(Debug)]
pub struct Members {
    plan: Plan,
    targets: BTreeMap<u64, Target>,
    next_target: u64,
    links: BTreeMap<u64, RouteEntry>,
    /// Servers with a new route, each with the time at which it and the others are told of each
    /// other once more. The first announcement may go with a route that ends, and a server found by
    /// gossip is not passed on: two that come at the same time may each believe that the other was
    /// announced.
    newcomers: BTreeMap<String, u64>,
    steps: VecDeque<RouteStep>,
    urls: ClientUrls,
    /// The time from which addresses may be announced to clients again.
    urls_from: u64,
    /// Whether changed addresses wait for that time.
    urls_wait: bool,
    now: u64,
    rng: fastrand::Rng,
}

impl Members {
    /// Members without connections; all configured routes are to be dialled.
    pub fn new(plan: Plan, seed: u64) -> Self {
        let mut members = Self {
            targets: BTreeMap::new(),
            next_target: 0,
            links: BTreeMap::new(),
            newcomers: BTreeMap::new(),
            steps: VecDeque::new(),
            urls: ClientUrls::default(),
            urls_from: 0,
            urls_wait: false,
            now: 0,
            rng: fastrand::Rng::with_seed(seed),
            plan,
        };
        for url in members.plan.routes.clone() {
            members.add_target(url, TargetKind::Configured, None, 0);
        }
        members
    }

    /// Sets the time of all later events. Targets whose time has come are dialled.
    pub fn set_now(&mut self, now: u64) {
        self.now = self.now.max(now);
        self.drop_complete_pools();
        self.retell();
        if self.urls_wait {
            self.review_urls();
        }
        self.end_doubts(|link, now| link.in_doubt_until.is_some_and(|until| until <= now));
        for (number, target) in &mut self.targets {
            if matches!(target.state, TargetState::Waiting { until } if until <= self.now) {
                target.state = TargetState::Dialing;
                let (url, attempt) = (target.url.clone(), target.attempts);
                self.steps.push_back(RouteStep::Dial { target: *number, url, attempt });
            }
        }
    }

    /// Returns the time at which [`Members::set_now`] is needed next.
    pub fn next_deadline(&self) -> Option<u64> {
        let due = |target: &Target| match target.state {
            TargetState::Waiting { until } => Some(until),
            _ => None,
        };
        let dials = self.targets.values().filter_map(due);
        let doubts = self.links.values().filter_map(|link| link.in_doubt_until);
        let urls = self.urls_wait.then_some(self.urls_from);
        dials.chain(self.newcomers.values().copied()).chain(doubts).chain(urls).min()
    }

    /// Returns the next step to take; `None` when there are no more.
    pub fn next_step(&mut self) -> Option<RouteStep> {
        self.steps.pop_front()
    }

    /// Returns the number of servers with a registered route.
    pub fn remotes(&self) -> usize {
        let mut ids: Vec<&str> = self.registered().map(|(_, link)| link.id()).collect();
        ids.sort_unstable();
        ids.dedup();
        ids.len()
    }

    /// Replaces the plan. Routes that are no longer configured end, and new ones are dialled.
    pub fn reload(&mut self, plan: Plan) {
        let is_gone = |target: &Target| {
            target.kind == TargetKind::Configured && !plan.routes.contains(&target.url)
        };
        let gone: Vec<u64> =
            self.targets.iter().filter(|(_, t)| is_gone(t)).map(|(number, _)| *number).collect();
        for number in gone {
            let Some(target) = self.targets.remove(&number) else { continue };
            let server_id = target.server_id.clone();
            let same = |target: &Target| {
                target.kind == TargetKind::Configured && target.server_id == server_id
            };
            let is_last = server_id.is_some() && !self.targets.values().any(same);
            let is_its = |link: &RouteEntry| {
                let is_pooled =
                    link.is_dialed && is_last && Some(link.id()) == server_id.as_deref();
                link.target == Some(number) || is_pooled
            };
            for (rid, link) in self.links.iter_mut().filter(|(_, link)| is_its(link)) {
                // A route of a pool leaves it: the pool makes the other missing routes without it.
                let target = link.target.and_then(|target| self.targets.get_mut(&target));
                if let Some(pool) = target {
                    pool.state = TargetState::Waiting { until: self.now + REDIAL_NS };
                }
                (link.target, link.is_unwanted) = (None, true);
                self.steps.push_back(RouteStep::Remove(*rid));
            }
            let is_lost = server_id.is_some_and(|id| !self.is_connected(&id));
            if is_last && is_lost && matches!(target.state, TargetState::Waiting { .. }) {
                // The server is dialled like any member whose route is lost and that is not
                // configured.
                let target =
                    Target { kind: TargetKind::Gossiped, attempts: 0, broken: 0, ..target };
                self.targets.insert(number, target);
            }
        }
        let old = std::mem::replace(&mut self.plan, plan);
        for url in self.plan.routes.clone() {
            if !old.routes.contains(&url) {
                self.add_target(url, TargetKind::Configured, None, 0);
            }
        }
        // The new configuration counts at once.
        self.urls_from = self.now;
        self.review_urls();
    }

    /// Takes the result of dialling: a route, or `None` for a failure.
    pub fn on_dialed(&mut self, target: u64, rid: Option<u64>) {
        let Some(entry) = self.targets.get_mut(&target) else {
            // It was dialled, and is configured no more.
            if let Some(rid) = rid {
                self.links.insert(rid, RouteEntry { is_unwanted: true, ..RouteEntry::new(None) });
                self.steps.push_back(RouteStep::Remove(rid));
            }
            return;
        };
        match rid {
            Some(rid) => {
                entry.state = TargetState::Linked;
                self.links.insert(rid, RouteEntry::new(Some(target)));
            }
            None => {
                entry.attempts = entry.attempts.saturating_add(1);
                self.retry(target);
            }
        }
    }

    /// Takes a route that another server has dialled.
    pub fn on_accepted(&mut self, rid: u64) {
        self.links.insert(rid, RouteEntry::new(None));
    }

    /// Returns the number of routes, registered or not.
    pub fn links(&self) -> usize {
        self.links.len()
    }

    /// Takes the INFO of a peer at the address `ip`; its route is registered, closed or left
    /// waiting.
    ///
    /// Of two routes for the same part the first one stays, once it is known that the peer has
    /// taken it: where both have dialled, a peer that decides by itself may want the other one, and
    /// closes this one then. Two shardcast servers keep the route that the one with the smaller id
    /// has dialled.
    pub fn on_greeted(&mut self, rid: u64, mut info: RouteInfo, ip: &str) {
        let id = info.server_id.clone();
        if info.ip.is_empty() {
            let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
            info.ip = format!("nats-route://{host}:{}/", info.port);
        }
        let Some(link) = self.links.get(&rid) else { return };
        let is_dialed = link.is_dialed;
        let part = match is_dialed {
            true => self.missing(&id, info.route_pool_size),
            false => Some(self.wanted_part(&info)),
        };
        let other = part.as_ref().and_then(|part| self.find_registered(&id, part));
        let other = other.map(|(rid, link)| (rid, link.is_dialed));
        let is_shardcast = info.shardcast;
        self.bound_urls(rid, &mut info);
        let Some(link) = self.links.get_mut(&rid) else { return };
        link.peer = Some(info);
        if let Some(target) = link.target.and_then(|target| self.targets.get_mut(&target)) {
            target.server_id = Some(id.clone());
        }
        // If nothing is missing the peer does not even know of this one: nothing was said yet.
        let Some(part) = part else { return self.steps.push_back(RouteStep::Close(rid)) };
        link.part = part;
        match other {
            Some((other, other_is_dialed)) if is_shardcast => {
                if other_is_dialed && id < self.plan.id {
                    // It takes the other's place when that one's interest is gone.
                    self.steps.push_back(RouteStep::Close(other));
                } else {
                    self.steps.push_back(RouteStep::Close(rid));
                }
            }
            Some((other, _)) => self.doubt(rid, other),
            None => self.register(rid),
        }
        if !is_dialed {
            self.fill(&id, POOL_PATIENCE_NS);
        }
    }

    /// Lets a second route for the same part as `other` wait until the peer is known to have taken
    /// `other`.
    fn doubt(&mut self, rid: u64, other: u64) {
        if self.links.get(&other).is_some_and(|other| other.is_confirmed) {
            return self.steps.push_back(RouteStep::Close(rid));
        }
        if let Some(link) = self.links.get_mut(&rid) {
            link.in_doubt_until = Some(self.now + DOUBT_NS);
            self.steps.push_back(RouteStep::Ask(other));
        }
    }

    /// Closes the waiting second routes for which `is_over` is true.
    fn end_doubts(&mut self, is_over: impl Fn(&RouteEntry, u64) -> bool) {
        for (rid, link) in &mut self.links {
            if link.in_doubt_until.is_some() && is_over(link, self.now) {
                link.in_doubt_until = None;
                self.steps.push_back(RouteStep::Close(*rid));
            }
        }
    }

    /// Takes the news that the peer has taken a route as well.
    pub fn on_confirmed(&mut self, rid: u64) {
        let Some(link) = self.links.get_mut(&rid) else { return };
        link.is_confirmed = true;
        let (id, part) = (link.id().to_owned(), link.part.clone());
        self.end_doubts(|link, _| link.id() == id && link.part == part);
        let Some(link) = self.links.get_mut(&rid).filter(|link| link.is_dialed) else { return };
        let target = link.target.and_then(|target| self.targets.get_mut(&target));
        if let Some(target) = target.filter(|target| target.kind == TargetKind::Pool) {
            link.target = None;
            (target.attempts, target.state) = (0, TargetState::Waiting { until: self.now });
        }
        self.fill(&id, 0);
        self.drop_complete_pools();
    }

    /// Returns the part of the accounts that the dialling server wants the connection for.
    fn wanted_part(&self, info: &RouteInfo) -> PoolPart {
        match u16::try_from(info.route_pool_idx) {
            _ if !info.route_account.is_empty() => {
                PoolPart::Account(info.route_account.as_str().into())
            }
            Ok(index) if self.plan.pooling.size_with(info.route_pool_size) > 0 => {
                PoolPart::Pool(index)
            }
            _ => PoolPart::All,
        }
    }

    /// Returns the next missing connection to a server with a pool of this size. A server that was
    /// refused the last one tries another first.
    fn missing(&self, id: &str, pool_size: i32) -> Option<PoolPart> {
        let parts = self.plan.pooling.parts_with(pool_size);
        let mut missing = parts.into_iter().filter(|part| self.find_registered(id, part).is_none());
        let tried = self.pool_of(id).map_or(0, |(_, target)| target.attempts as usize);
        let first = missing.next()?;
        let rest: Vec<PoolPart> = std::iter::once(first).chain(missing).collect();
        rest.get(tried % rest.len()).cloned()
    }

    fn find_registered(&self, id: &str, part: &PoolPart) -> Option<(u64, &RouteEntry)> {
        self.registered().find(|(_, link)| link.id() == id && link.part == *part)
    }

    fn pool_of(&self, id: &str) -> Option<(u64, &Target)> {
        let is_it = |target: &Target| {
            target.kind == TargetKind::Pool && target.server_id.as_deref() == Some(id)
        };
        self.targets.iter().find(|(_, target)| is_it(target)).map(|(number, t)| (*number, t))
    }

    /// Makes the missing connections to a member, after `delay_ns`.
    fn fill(&mut self, id: &str, delay_ns: u64) {
        let Some(url) = self.where_missing(id) else { return };
        let pool = self.pool_of(id).map(|(number, _)| number);
        let number = match pool {
            Some(number) => number,
            None => self.add_target(url, TargetKind::Pool, Some(id.to_owned()), 0),
        };
        let until = self.now + delay_ns;
        if let Some(Target { state: TargetState::Waiting { until: old }, .. }) =
            self.targets.get_mut(&number)
        {
            *old = if pool.is_some() { until.min(*old) } else { until };
        }
    }

    /// Returns the address of a member to which connections are missing.
    fn where_missing(&self, id: &str) -> Option<RouteUrl> {
        let links = || self.registered().map(|(_, link)| link).filter(|link| link.id() == id);
        let peer = links().next()?.peer.as_ref()?;
        self.missing(id, peer.route_pool_size)?;
        // Where it was reached before it is reached again.
        let known = links().find_map(|link| self.targets.get(&link.target?));
        known.map(|target| target.url.clone()).or_else(|| self.url_of(peer))
    }

    /// Removes the pool targets of members to which no connection is missing, or which are gone.
    fn drop_complete_pools(&mut self) {
        let waits = |target: &Target| {
            target.kind == TargetKind::Pool && matches!(target.state, TargetState::Waiting { .. })
        };
        let waiting = self.targets.iter().filter(|(_, target)| waits(target));
        let is_complete = |target: &Target| {
            let id = target.server_id.as_deref().unwrap_or_default();
            let peer = self.registered().find(|(_, link)| link.id() == id);
            let peer = peer.and_then(|(_, link)| link.peer.as_ref());
            peer.is_none_or(|peer| self.missing(id, peer.route_pool_size).is_none())
        };
        let complete = waiting.filter(|(_, target)| is_complete(target)).map(|(number, _)| *number);
        for number in complete.collect::<Vec<_>>() {
            self.targets.remove(&number);
        }
    }

    /// Takes a later INFO of a peer.
    pub fn on_heard(&mut self, rid: u64, info: RouteInfo) {
        self.hear(rid, info);
        self.steps.push_back(RouteStep::HearOn(rid));
    }

    fn hear(&mut self, rid: u64, mut info: RouteInfo) {
        self.bound_urls(rid, &mut info);
        let Some(link) = self.links.get_mut(&rid) else { return };
        if let Some(peer) = &mut link.peer
            && peer.server_id == info.server_id
        {
            (peer.connect_urls, peer.ws_connect_urls) = (info.connect_urls, info.ws_connect_urls);
            peer.leafnode_urls = info.leafnode_urls;
            peer.ldm = info.ldm;
            self.review_urls();
            return;
        }
        if info.server_id.is_empty() || info.server_id == self.plan.id {
            return;
        }
        let is_known = self.links.values().any(|link| link.id() == info.server_id);
        let id = Some(&info.server_id);
        let is_dialed = self.targets.values().any(|target| target.server_id.as_ref() == id);
        if !is_known && !is_dialed {
            self.dial_implicit(&info);
        }
    }

    /// Takes the end of a route; `is_self` if it led to this server itself.
    pub fn on_ended(&mut self, rid: u64, is_self: bool) {
        let Some(link) = self.links.remove(&rid) else { return };
        let peer = link.peer.unwrap_or_default();
        let id = peer.server_id.as_str();
        let is_connected = self.is_connected(id);
        if let Some(number) = link.target
            && let Some(target) = self.targets.get_mut(&number)
        {
            if is_self {
                target.state = TargetState::GivenUp;
            } else if target.kind == TargetKind::Pool {
                target.attempts = target.attempts.saturating_add(1);
                self.retry(number);
            } else if is_connected {
                target.state = TargetState::Covered;
            } else {
                // One that answers is not given up at once: only it may know of this server.
                target.broken = if link.is_registered { 0 } else { target.broken + 1 };
                target.attempts = u32::from(target.broken > BROKEN_MAX);
                self.retry(number);
            }
        }
        if id.is_empty() {
            return;
        }
        let waits = |other: &&RouteEntry| other.id() == id && other.part == link.part;
        if self.find_registered(id, &link.part).is_none()
            && let Some((&next, _)) = self.links.iter().find(|(_, other)| waits(other))
        {
            self.register(next);
            if link.is_registered {
                self.newcomers.insert(id.to_owned(), self.now + RETELL_NS);
            }
            return;
        }
        if is_connected {
            if link.is_registered {
                self.newcomers.insert(id.to_owned(), self.now + RETELL_NS);
            }
            if !link.is_registered
                || self.pool_of(id).is_some_and(|(it, _)| link.target == Some(it))
            {
                return; // It was tried in vain, and is tried again later.
            }
            // The server that dialled dials again; if it does not, the other does.
            let jitter = self.rng.u64(..=REDIAL_JITTER_NS);
            let delay_ns = if link.is_dialed { REDIAL_NS } else { POOL_PATIENCE_NS };
            return self.fill(id, delay_ns + jitter);
        }
        self.drop_complete_pools();
        if !link.is_registered {
            return;
        }
        self.newcomers.remove(id);
        let covered = |target: &&mut Target| {
            target.server_id.as_deref() == Some(id) && target.state == TargetState::Covered
        };
        for target in self.targets.values_mut().filter(covered) {
            let jitter = self.rng.u64(..=REDIAL_JITTER_NS);
            target.state = TargetState::Waiting { until: self.now + REDIAL_NS + jitter };
        }
        let is_dialed = |target: &Target| target.server_id.as_deref() == Some(id);
        if !link.is_unwanted && !self.targets.values().any(is_dialed) {
            self.dial_implicit(&peer);
        }
        self.review_urls();
    }

    /// Takes a change of the cluster's name, which came over the route `by` or from the
    /// configuration: other routes begin anew.
    pub fn on_named(&mut self, by: Option<u64>) {
        let others: Vec<u64> = self.registered().map(|(rid, _)| rid).collect();
        let others = others.into_iter().filter(|rid| Some(*rid) != by);
        self.steps.extend(others.map(RouteStep::Close));
    }

    fn registered(&self) -> impl Iterator<Item = (u64, &RouteEntry)> {
        let registered = self.links.iter().filter(|(_, link)| link.is_registered);
        registered.map(|(rid, link)| (*rid, link))
    }

    fn is_connected(&self, id: &str) -> bool {
        !id.is_empty() && self.registered().any(|(_, link)| link.id() == id)
    }

    /// Whether the configuration names a server, whatever its connections.
    fn is_configured(&self, id: &str) -> bool {
        let its = |target: &&Target| target.server_id.as_deref() == Some(id);
        self.targets.values().filter(its).any(|target| target.kind == TargetKind::Configured)
    }

    fn register(&mut self, rid: u64) {
        let Some(link) = self.links.get_mut(&rid) else { return };
        (link.is_registered, link.in_doubt_until) = (true, None);
        let target = link.target;
        let Some(newcomer) = link.peer.clone() else { return };
        let part = link.part.clone();
        self.steps.push_back(RouteStep::Register(rid, part.clone()));
        let number = target;
        let target = number.and_then(|number| self.targets.get_mut(&number));
        let (solicited, is_explicit, heard_mode) = match target {
            Some(target) if target.kind == TargetKind::Pool => (true, false, target.gossip_mode),
            Some(target) => {
                (target.attempts, target.broken) = (0, 0);
                (true, target.kind == TargetKind::Configured, target.gossip_mode)
            }
            None => (false, false, 0),
        };
        let id = newcomer.server_id.clone();
        let same = |link: &RouteEntry| link.id() == id && link.part.announced() == part.announced();
        let is_first = self.registered().filter(|(_, link)| same(link)).count() == 1;
        // A server found by gossip is passed on only where the gossip asked for that.
        let is_passed_on = !(solicited && !is_explicit && heard_mode != 2);
        if is_first {
            self.newcomers.insert(id, self.now + RETELL_NS);
        }
        if is_first && is_passed_on && newcomer.gossip_mode != 1 {
            self.spread(&newcomer, &part, solicited, is_explicit);
        }
        self.review_urls();
    }

    /// Announces a newcomer to every other peer once, and once more for each account for which it
    /// has a connection of its own.
    fn spread(
        &mut self,
        newcomer: &RouteInfo,
        part: &PoolPart,
        solicited: bool,
        is_explicit: bool,
    ) {
        let mut told: Vec<String> = vec![newcomer.server_id.clone()];
        let mut steps = Vec::new();
        for (rid, link) in self.registered() {
            if told.iter().any(|id| id == link.id()) {
                continue;
            }
            told.push(link.id().to_owned());
            if part.announced().is_some() && link.part == PoolPart::All {
                continue;
            }
            let to_explicit = self.is_configured(link.id());
            let gossip_mode = match () {
                () if is_explicit || (to_explicit && !solicited) => 2,
                () if !solicited => 1,
                () => 0,
            };
            steps.push(RouteStep::Gossip(rid, Box::new(spoken_of(newcomer, part, gossip_mode))));
        }
        self.steps.extend(steps);
    }

    /// Announces newcomers and all other members to each other, when it is time to. A member that
    /// knows the other does nothing; one that does not passes it on.
    fn retell(&mut self) {
        let now = self.now;
        let due = self.newcomers.iter().filter(|(_, due)| **due <= now).map(|(id, _)| id.clone());
        let due: BTreeSet<String> = due.collect();
        self.newcomers.retain(|id, _| !due.contains(id));
        if due.is_empty() {
            return;
        }
        let mut told = BTreeSet::new();
        let mut steps = Vec::new();
        for (rid, to) in self.registered() {
            for (_, link) in self.registered().filter(|(_, link)| link.id() != to.id()) {
                let Some(peer) = link.peer.as_ref().filter(|peer| !peer.ldm) else { continue };
                let is_new = due.contains(to.id()) || due.contains(link.id());
                // A connection for an account is announced to peers that have one as well.
                let is_meant = link.part.announced().is_none() || to.part != PoolPart::All;
                if is_new && is_meant && told.insert((to.id(), link.id(), link.part.announced())) {
                    let info = spoken_of(peer, &link.part, 2);
                    steps.push(RouteStep::Gossip(rid, Box::new(info)));
                }
            }
        }
        self.steps.extend(steps);
    }

    fn review_urls(&mut self) {
        let clients = || self.staying().filter(|_| !self.plan.no_advertise);
        // Whether leaf nodes are told of a member is for that member to say.
        let urls = ClientUrls {
            tcp: urls_of(self.urls.tcp.is_some(), clients(), |peer| &peer.connect_urls),
            websocket: urls_of(self.urls.websocket.is_some(), clients(), |peer| {
                &peer.ws_connect_urls
            }),
            leaf: urls_of(self.urls.leaf.is_some(), self.staying(), |peer| &peer.leafnode_urls),
        };
        self.urls_wait = urls != self.urls && self.now < self.urls_from;
        if urls != self.urls && !self.urls_wait {
            self.urls_from = self.now + URLS_NS;
            self.urls.clone_from(&urls);
            self.steps.push_back(RouteStep::Urls(urls));
        }
    }

    /// Returns the peers that are not about to end.
    fn staying(&self) -> impl Iterator<Item = &RouteInfo> {
        let peers = self.registered().filter_map(|(_, link)| link.peer.as_ref());
        peers.filter(|peer| !peer.ldm)
    }

    /// Returns the address of a server, from its INFO or from gossip about it.
    fn url_of(&self, info: &RouteInfo) -> Option<RouteUrl> {
        let mut url = RouteUrl::parse(&info.ip).ok().or_else(|| {
            let port = u16::try_from(info.port).ok().filter(|port| *port > 0)?;
            (!info.host.is_empty()).then(|| RouteUrl { host: info.host.clone(), port, login: None })
        })?;
        url.login = if info.auth_required { self.plan.login.clone() } else { None };
        Some(url)
    }

    fn dial_implicit(&mut self, info: &RouteInfo) {
        let Some(url) = self.url_of(info) else { return };
        if !self.has_room_for(&url, &info.server_id) {
            return;
        }
        let at = (&url.host, url.port);
        if self.targets.values().any(|target| (&target.url.host, target.url.port) == at) {
            return;
        }
        let id = Some(info.server_id.clone());
        self.add_target(url, TargetKind::Gossiped, id, info.gossip_mode);
    }

    fn add_target(
        &mut self,
        url: RouteUrl,
        kind: TargetKind,
        server_id: Option<String>,
        gossip_mode: u8,
    ) -> u64 {
        // Two servers that hear of each other at once had better not dial at once.
        let is_configured = kind == TargetKind::Configured;
        let until =
            if is_configured { self.now } else { self.now + self.rng.u64(..REDIAL_JITTER_NS) };
        let state = TargetState::Waiting { until };
        let (attempts, broken) = (0, 0);
        let target = Target { url, kind, state, attempts, broken, server_id, gossip_mode };
        let number = self.next_target;
        self.targets.insert(number, target);
        self.next_target += 1;
        number
    }

    /// Puts off the next attempt, or gives up the target.
    fn retry(&mut self, number: u64) {
        let Some(target) = self.targets.get_mut(&number) else { return };
        let is_gossiped = target.kind == TargetKind::Gossiped;
        if is_gossiped && target.attempts > self.plan.connect_retries {
            self.targets.remove(&number);
            return;
        }
        let doubled = target.attempts.saturating_sub(1).min(5);
        let is_slower = self.plan.connect_backoff || target.kind == TargetKind::Pool;
        let backoff = if is_slower { REDIAL_NS << doubled } else { REDIAL_NS };
        let jitter = self.rng.u64(..=REDIAL_JITTER_NS);
        let until = self.now + backoff.min(REDIAL_NS_MAX) + jitter;
        target.state = TargetState::Waiting { until };
    }
}

/// Returns the announcement of a member to others: of its connection for one account, if `part` is
/// one.
fn spoken_of(member: &RouteInfo, part: &PoolPart, gossip_mode: u8) -> RouteInfo {
    RouteInfo {
        gossip_mode,
        ldm: false,
        shardcast: false,
        route_pool_idx: 0,
        route_account: part.announced().unwrap_or_default().to_owned(),
        ..member.clone()
    }
}

/// Returns the addresses that `of` picks from all `peers`, each once; `None` before there were any.
fn urls_of<'a>(
    was_said: bool,
    peers: impl Iterator<Item = &'a RouteInfo>,
    of: impl Fn(&'a RouteInfo) -> &'a Vec<String>,
) -> Option<Vec<String>> {
    let mut urls: Vec<String> = peers.flat_map(|peer| of(peer).iter().cloned()).collect();
    urls.sort_unstable();
    urls.dedup();
    (was_said || !urls.is_empty()).then_some(urls)
}
