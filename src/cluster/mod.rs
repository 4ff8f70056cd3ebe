//! Members of a cluster as one server sees them: addresses to dial, routes to keep, news to
//! spread.
//!
//! Pure: notices of the shards, outcomes of dialling and the time come in; [`Step`]s come out.
//! Times are nanoseconds since the start of the process.
//!
//! A peer that has said its name waits (`Conn::claim` in the engine) until it is registered or
//! closed. Of two routes between two shardcast servers the one dialled by the server with the
//! smaller id stays; it takes over only when the interest of the other is gone. With a nats-server
//! the first route stays once the peer has answered on it, because the peer may have kept the
//! other one.
//!
//! Between two members there is a pool of routes (`pool`). INFO of the dialling side says which
//! part a route is for. The next route is dialled when the peer has answered a PING on this one;
//! missing routes are dialled again, from either side. A reload of the block reaches the shards as
//! settings and this room as a new plan.

#![forbid(unsafe_code)]

pub mod names;
mod pool;
mod remembered;
mod route_url;
#[cfg(test)]
mod tests;
mod urls;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::auth::Secret;
use crate::proto::route::RouteInfo;
pub use pool::{POOL_SIZE_MAX, Part, Pooling};
pub use route_url::{PORT, RouteUrl};
pub use urls::ClientUrls;

/// A configured route that is down is dialled again after so many nanoseconds, …
const REDIAL_NS: u64 = 1_000_000_000;
/// … and up to so many more, so that not all do at once.
const REDIAL_JITTER_NS: u64 = 100_000_000;
/// With back-off, the longest time between two attempts.
const REDIAL_NS_MAX: u64 = 30_000_000_000;

/// A connection of a pool that the peer should make is waited for so many nanoseconds.
const POOL_PATIENCE_NS: u64 = 3_000_000_000;

/// A newcomer is spoken of once more after so many nanoseconds.
const RETELL_NS: u64 = 1_000_000_000;

/// A second connection for the same waits at most so many nanoseconds until the first is known to
/// be the one that the peer has taken, too.
const DOUBT_NS: u64 = 1_000_000_000;

/// Clients are told where else they may connect at most once in so many nanoseconds, however often
/// peers change their minds.
const URLS_NS: u64 = 100_000_000;

/// Handshakes that end too early one after the other until a dialled server counts as failed.
const BROKEN_MAX: u32 = 8;

/// What every member has to know of this server.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// The own id.
    pub id: String,
    /// Routes that are configured.
    pub routes: Vec<RouteUrl>,
    /// The credentials for servers that others spoke of.
    pub login: Option<(String, Secret)>,
    /// How often more than once such a server is dialled.
    pub connect_retries: u32,
    /// Wait longer after each attempt.
    pub connect_backoff: bool,
    /// Clients are told nothing of other servers.
    pub no_advertise: bool,
    /// Assignment of accounts to the connections to a member.
    pub pooling: Pooling,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Connect to a server, and say what came of it: [`Members::on_dialed`].
    Dial {
        /// Names the attempt's target.
        target: u64,
        /// Where.
        url: RouteUrl,
        /// How often this was tried before without success.
        attempt: u32,
    },
    /// The route's peer may stay, for this part of what there is to tell.
    Register(u64, Part),
    /// The route is not needed.
    Close(u64),
    /// Ask the route's peer, which has to answer, now: [`Members::on_confirmed`].
    Ask(u64),
    /// The route's server is configured no more.
    Remove(u64),
    /// What the route's peer has said is heard; it may say more.
    HearOn(u64),
    /// Tell the route's peer of another server.
    Gossip(u64, Box<RouteInfo>),
    /// Clients may also connect there.
    Urls(ClientUrls),
}

/// Somebody to dial.
#[derive(Debug)]
struct Target {
    url: RouteUrl,
    kind: Kind,
    state: State,
    /// Attempts without success since it was last connected.
    attempts: u32,
    /// Routes since then that ended before the peer could stay.
    broken: u32,
    /// Who is there, as far as that is known.
    server_id: Option<String>,
    /// What gossip said about passing it on.
    gossip_mode: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// It is configured, and dialled for ever.
    Configured,
    /// Others have spoken of it.
    Gossiped,
    /// A member to which connections are missing; there is one such target for each. They are
    /// made one after the other, each when the peer has taken the one before.
    Pool,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Waiting {
        until: u64,
    },
    Dialing,
    /// A route has come of it.
    Linked,
    /// Its server is connected by another route.
    Covered,
    /// It is this server.
    GivenUp,
}

/// A route, from when its socket is connected.
#[derive(Debug)]
struct Link {
    /// What it came of; none if it was accepted.
    target: Option<u64>,
    is_dialed: bool,
    peer: Option<RouteInfo>,
    /// What it is for, as soon as the peer is known.
    part: Part,
    is_registered: bool,
    /// The peer has taken it, too.
    is_confirmed: bool,
    /// There is another one for the same: what becomes of that is known by then.
    in_doubt_until: Option<u64>,
    /// It is configured no more, and not to come back by itself.
    is_unwanted: bool,
}

impl Link {
    fn new(target: Option<u64>) -> Self {
        let (is_dialed, part) = (target.is_some(), Part::All);
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
    links: BTreeMap<u64, Link>,
    /// Servers whose route is new, and when they and the others are told of each other once more.
    /// What is said at once may go with a route that ends, and whom gossip leads to passes on
    /// nobody: two that come at the same time may each believe that the other was spoken of.
    newcomers: BTreeMap<String, u64>,
    steps: VecDeque<Step>,
    urls: ClientUrls,
    /// Others may be told from then on, …
    urls_from: u64,
    /// … and there are others to tell.
    urls_wait: bool,
    now: u64,
    rng: fastrand::Rng,
}

impl Members {
    /// Nobody is connected yet; all configured routes are to be dialled.
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
            members.add_target(url, Kind::Configured, None, 0);
        }
        members
    }

    /// The time of everything that comes from now on. Targets whose time has come are dialled.
    pub fn set_now(&mut self, now: u64) {
        self.now = self.now.max(now);
        self.drop_complete_pools();
        self.retell();
        if self.urls_wait {
            self.review_urls();
        }
        self.end_doubts(|link, now| link.in_doubt_until.is_some_and(|until| until <= now));
        for (number, target) in &mut self.targets {
            if matches!(target.state, State::Waiting { until } if until <= self.now) {
                target.state = State::Dialing;
                let (url, attempt) = (target.url.clone(), target.attempts);
                self.steps.push_back(Step::Dial { target: *number, url, attempt });
            }
        }
    }

    /// When [`Members::set_now`] is needed next.
    pub fn next_deadline(&self) -> Option<u64> {
        let due = |target: &Target| match target.state {
            State::Waiting { until } => Some(until),
            _ => None,
        };
        let dials = self.targets.values().filter_map(due);
        let doubts = self.links.values().filter_map(|link| link.in_doubt_until);
        let urls = self.urls_wait.then_some(self.urls_from);
        dials.chain(self.newcomers.values().copied()).chain(doubts).chain(urls).min()
    }

    /// The next step to take; `None` when there are no more.
    pub fn next_step(&mut self) -> Option<Step> {
        self.steps.pop_front()
    }

    /// Servers with a registered route, each counted once.
    pub fn remotes(&self) -> usize {
        let mut ids: Vec<&str> = self.registered().map(|(_, link)| link.id()).collect();
        ids.sort_unstable();
        ids.dedup();
        ids.len()
    }

    /// Another plan counts from now on. Routes that were configured and are no more end, and new
    /// ones are dialled.
    pub fn reload(&mut self, plan: Plan) {
        let is_gone =
            |target: &Target| target.kind == Kind::Configured && !plan.routes.contains(&target.url);
        let gone: Vec<u64> =
            self.targets.iter().filter(|(_, t)| is_gone(t)).map(|(number, _)| *number).collect();
        for number in gone {
            let Some(target) = self.targets.remove(&number) else { continue };
            let server_id = target.server_id.clone();
            let same =
                |target: &Target| target.kind == Kind::Configured && target.server_id == server_id;
            let is_last = server_id.is_some() && !self.targets.values().any(same);
            let is_its = |link: &Link| {
                let is_pooled =
                    link.is_dialed && is_last && Some(link.id()) == server_id.as_deref();
                link.target == Some(number) || is_pooled
            };
            for (rid, link) in self.links.iter_mut().filter(|(_, link)| is_its(link)) {
                // One of a pool leaves it: what else is missing is made without it.
                let target = link.target.and_then(|target| self.targets.get_mut(&target));
                if let Some(pool) = target {
                    pool.state = State::Waiting { until: self.now + REDIAL_NS };
                }
                (link.target, link.is_unwanted) = (None, true);
                self.steps.push_back(Step::Remove(*rid));
            }
            let is_lost = server_id.is_some_and(|id| !self.is_connected(&id));
            if is_last && is_lost && matches!(target.state, State::Waiting { .. }) {
                // It is dialled like any member whose route is lost and that is not configured.
                let target = Target { kind: Kind::Gossiped, attempts: 0, broken: 0, ..target };
                self.targets.insert(number, target);
            }
        }
        let old = std::mem::replace(&mut self.plan, plan);
        for url in self.plan.routes.clone() {
            if !old.routes.contains(&url) {
                self.add_target(url, Kind::Configured, None, 0);
            }
        }
        // What was configured counts at once.
        self.urls_from = self.now;
        self.review_urls();
    }

    /// Takes the result of dialling: a route, or `None` for a failure.
    pub fn on_dialed(&mut self, target: u64, rid: Option<u64>) {
        let Some(entry) = self.targets.get_mut(&target) else {
            // It was dialled, and is configured no more.
            if let Some(rid) = rid {
                self.links.insert(rid, Link { is_unwanted: true, ..Link::new(None) });
                self.steps.push_back(Step::Remove(rid));
            }
            return;
        };
        match rid {
            Some(rid) => {
                entry.state = State::Linked;
                self.links.insert(rid, Link::new(Some(target)));
            }
            None => {
                entry.attempts = entry.attempts.saturating_add(1);
                self.retry(target);
            }
        }
    }

    /// Another server has dialled.
    pub fn on_accepted(&mut self, rid: u64) {
        self.links.insert(rid, Link::new(None));
    }

    /// Routes, registered or not.
    pub fn links(&self) -> usize {
        self.links.len()
    }

    /// A peer, at the address `ip`, has said who it is: it may stay, or not.
    ///
    /// Of two routes for the same the first one stays, once it is known that the peer has taken it:
    /// where both have dialled, a peer that decides by itself may want the other one, and closes
    /// this one then. Two of our own keep what the one with the smaller id has dialled.
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
        let Some(part) = part else { return self.steps.push_back(Step::Close(rid)) };
        link.part = part;
        match other {
            Some((other, other_is_dialed)) if is_shardcast => {
                if other_is_dialed && id < self.plan.id {
                    // It takes the other's place when that one's interest is gone.
                    self.steps.push_back(Step::Close(other));
                } else {
                    self.steps.push_back(Step::Close(rid));
                }
            }
            Some((other, _)) => self.doubt(rid, other),
            None => self.register(rid),
        }
        if !is_dialed {
            self.fill(&id, POOL_PATIENCE_NS);
        }
    }

    /// A second route for the same as `other` waits until the peer is known to have taken that.
    fn doubt(&mut self, rid: u64, other: u64) {
        if self.links.get(&other).is_some_and(|other| other.is_confirmed) {
            return self.steps.push_back(Step::Close(rid));
        }
        if let Some(link) = self.links.get_mut(&rid) {
            link.in_doubt_until = Some(self.now + DOUBT_NS);
            self.steps.push_back(Step::Ask(other));
        }
    }

    /// Closes the second routes of which that is so.
    fn end_doubts(&mut self, is_over: impl Fn(&Link, u64) -> bool) {
        for (rid, link) in &mut self.links {
            if link.in_doubt_until.is_some() && is_over(link, self.now) {
                link.in_doubt_until = None;
                self.steps.push_back(Step::Close(*rid));
            }
        }
    }

    /// The peer has taken a route as well.
    pub fn on_confirmed(&mut self, rid: u64) {
        let Some(link) = self.links.get_mut(&rid) else { return };
        link.is_confirmed = true;
        let (id, part) = (link.id().to_owned(), link.part.clone());
        self.end_doubts(|link, _| link.id() == id && link.part == part);
        let Some(link) = self.links.get_mut(&rid).filter(|link| link.is_dialed) else { return };
        let target = link.target.and_then(|target| self.targets.get_mut(&target));
        if let Some(target) = target.filter(|target| target.kind == Kind::Pool) {
            link.target = None;
            (target.attempts, target.state) = (0, State::Waiting { until: self.now });
        }
        self.fill(&id, 0);
        self.drop_complete_pools();
    }

    /// What who has dialled says that the connection is for.
    fn wanted_part(&self, info: &RouteInfo) -> Part {
        match u16::try_from(info.route_pool_idx) {
            _ if !info.route_account.is_empty() => {
                Part::Account(info.route_account.as_str().into())
            }
            Ok(index) if self.plan.pooling.size_with(info.route_pool_size) > 0 => Part::Pool(index),
            _ => Part::All,
        }
    }

    /// The next connection that is missing to a server with a pool of this size. Who was refused
    /// the last one tries another first.
    fn missing(&self, id: &str, pool_size: i32) -> Option<Part> {
        let parts = self.plan.pooling.parts_with(pool_size);
        let mut missing = parts.into_iter().filter(|part| self.find_registered(id, part).is_none());
        let tried = self.pool_of(id).map_or(0, |(_, target)| target.attempts as usize);
        let first = missing.next()?;
        let rest: Vec<Part> = std::iter::once(first).chain(missing).collect();
        rest.get(tried % rest.len()).cloned()
    }

    fn find_registered(&self, id: &str, part: &Part) -> Option<(u64, &Link)> {
        self.registered().find(|(_, link)| link.id() == id && link.part == *part)
    }

    fn pool_of(&self, id: &str) -> Option<(u64, &Target)> {
        let is_it =
            |target: &Target| target.kind == Kind::Pool && target.server_id.as_deref() == Some(id);
        self.targets.iter().find(|(_, target)| is_it(target)).map(|(number, t)| (*number, t))
    }

    /// Makes the connections to a member that are missing, after `delay_ns`.
    fn fill(&mut self, id: &str, delay_ns: u64) {
        let Some(url) = self.where_missing(id) else { return };
        let pool = self.pool_of(id).map(|(number, _)| number);
        let number = match pool {
            Some(number) => number,
            None => self.add_target(url, Kind::Pool, Some(id.to_owned()), 0),
        };
        let until = self.now + delay_ns;
        if let Some(Target { state: State::Waiting { until: old }, .. }) =
            self.targets.get_mut(&number)
        {
            *old = if pool.is_some() { until.min(*old) } else { until };
        }
    }

    /// Where a member is reached, if connections to it are missing.
    fn where_missing(&self, id: &str) -> Option<RouteUrl> {
        let links = || self.registered().map(|(_, link)| link).filter(|link| link.id() == id);
        let peer = links().next()?.peer.as_ref()?;
        self.missing(id, peer.route_pool_size)?;
        // Where it was reached before it is reached again.
        let known = links().find_map(|link| self.targets.get(&link.target?));
        known.map(|target| target.url.clone()).or_else(|| self.url_of(peer))
    }

    /// Forgets members to which no connection is missing any more, or none is there.
    fn drop_complete_pools(&mut self) {
        let waits = |target: &Target| {
            target.kind == Kind::Pool && matches!(target.state, State::Waiting { .. })
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

    /// A peer has said something more.
    pub fn on_heard(&mut self, rid: u64, info: RouteInfo) {
        self.hear(rid, info);
        self.steps.push_back(Step::HearOn(rid));
    }

    fn hear(&mut self, rid: u64, mut info: RouteInfo) {
        self.bound_urls(rid, &mut info);
        let Some(link) = self.links.get_mut(&rid) else { return };
        if let Some(peer) = &mut link.peer
            && peer.server_id == info.server_id
        {
            (peer.connect_urls, peer.ws_connect_urls) = (info.connect_urls, info.ws_connect_urls);
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

    /// A route is at its end; `is_self` if it led to this server itself.
    pub fn on_ended(&mut self, rid: u64, is_self: bool) {
        let Some(link) = self.links.remove(&rid) else { return };
        let peer = link.peer.unwrap_or_default();
        let id = peer.server_id.as_str();
        let is_connected = self.is_connected(id);
        if let Some(number) = link.target
            && let Some(target) = self.targets.get_mut(&number)
        {
            if is_self {
                target.state = State::GivenUp;
            } else if target.kind == Kind::Pool {
                target.attempts = target.attempts.saturating_add(1);
                self.retry(number);
            } else if is_connected {
                target.state = State::Covered;
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
        let waits = |other: &&Link| other.id() == id && other.part == link.part;
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
            // Who has dialled dials again; if it does not, the other does.
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
            target.server_id.as_deref() == Some(id) && target.state == State::Covered
        };
        for target in self.targets.values_mut().filter(covered) {
            let jitter = self.rng.u64(..=REDIAL_JITTER_NS);
            target.state = State::Waiting { until: self.now + REDIAL_NS + jitter };
        }
        let is_dialed = |target: &Target| target.server_id.as_deref() == Some(id);
        if !link.is_unwanted && !self.targets.values().any(is_dialed) {
            self.dial_implicit(&peer);
        }
        self.review_urls();
    }

    /// The cluster has another name, which came over the route `by` or out of the configuration:
    /// other routes begin anew.
    pub fn on_named(&mut self, by: Option<u64>) {
        let others: Vec<u64> = self.registered().map(|(rid, _)| rid).collect();
        let others = others.into_iter().filter(|rid| Some(*rid) != by);
        self.steps.extend(others.map(Step::Close));
    }

    fn registered(&self) -> impl Iterator<Item = (u64, &Link)> {
        let registered = self.links.iter().filter(|(_, link)| link.is_registered);
        registered.map(|(rid, link)| (*rid, link))
    }

    fn is_connected(&self, id: &str) -> bool {
        !id.is_empty() && self.registered().any(|(_, link)| link.id() == id)
    }

    /// Whether the configuration names a server, whichever connections to it came of that.
    fn is_configured(&self, id: &str) -> bool {
        let its = |target: &&Target| target.server_id.as_deref() == Some(id);
        self.targets.values().filter(its).any(|target| target.kind == Kind::Configured)
    }

    fn register(&mut self, rid: u64) {
        let Some(link) = self.links.get_mut(&rid) else { return };
        (link.is_registered, link.in_doubt_until) = (true, None);
        let target = link.target;
        let Some(newcomer) = link.peer.clone() else { return };
        let part = link.part.clone();
        self.steps.push_back(Step::Register(rid, part.clone()));
        let number = target;
        let target = number.and_then(|number| self.targets.get_mut(&number));
        let (solicited, is_explicit, heard_mode) = match target {
            Some(target) if target.kind == Kind::Pool => (true, false, target.gossip_mode),
            Some(target) => {
                (target.attempts, target.broken) = (0, 0);
                (true, target.kind == Kind::Configured, target.gossip_mode)
            }
            None => (false, false, 0),
        };
        let id = newcomer.server_id.clone();
        let same = |link: &Link| link.id() == id && link.part.announced() == part.announced();
        let is_first = self.registered().filter(|(_, link)| same(link)).count() == 1;
        // Who was spoken of is passed on only where that was asked for.
        let is_passed_on = !(solicited && !is_explicit && heard_mode != 2);
        if is_first {
            self.newcomers.insert(id, self.now + RETELL_NS);
        }
        if is_first && is_passed_on && newcomer.gossip_mode != 1 {
            self.spread(&newcomer, &part, solicited, is_explicit);
        }
        self.review_urls();
    }

    /// Tells every other peer of a newcomer, once; and once more of each account for which it has a
    /// connection of its own.
    fn spread(&mut self, newcomer: &RouteInfo, part: &Part, solicited: bool, is_explicit: bool) {
        let mut told: Vec<String> = vec![newcomer.server_id.clone()];
        let mut steps = Vec::new();
        for (rid, link) in self.registered() {
            if told.iter().any(|id| id == link.id()) {
                continue;
            }
            told.push(link.id().to_owned());
            if part.announced().is_some() && link.part == Part::All {
                continue;
            }
            let to_explicit = self.is_configured(link.id());
            let gossip_mode = match () {
                () if is_explicit || (to_explicit && !solicited) => 2,
                () if !solicited => 1,
                () => 0,
            };
            steps.push(Step::Gossip(rid, Box::new(spoken_of(newcomer, part, gossip_mode))));
        }
        self.steps.extend(steps);
    }

    /// Tells newcomers and all others of each other, when it is time to. Who knows already does
    /// nothing; who did not passes it on.
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
                // Of a connection for an account hears who has one as well.
                let is_meant = link.part.announced().is_none() || to.part != Part::All;
                if is_new && is_meant && told.insert((to.id(), link.id(), link.part.announced())) {
                    let info = spoken_of(peer, &link.part, 2);
                    steps.push(Step::Gossip(rid, Box::new(info)));
                }
            }
        }
        self.steps.extend(steps);
    }

    fn review_urls(&mut self) {
        let urls = ClientUrls {
            tcp: self.urls_of_peers(self.urls.tcp.is_some(), |peer| &peer.connect_urls),
            websocket: self
                .urls_of_peers(self.urls.websocket.is_some(), |peer| &peer.ws_connect_urls),
        };
        self.urls_wait = urls != self.urls && self.now < self.urls_from;
        if urls != self.urls && !self.urls_wait {
            self.urls_from = self.now + URLS_NS;
            self.urls.clone_from(&urls);
            self.steps.push_back(Step::Urls(urls));
        }
    }

    /// Where clients of one kind may connect to peers; nothing is said before there is something.
    fn urls_of_peers(
        &self,
        was_said: bool,
        of: impl Fn(&RouteInfo) -> &Vec<String>,
    ) -> Option<Vec<String>> {
        let is_told = !self.plan.no_advertise;
        let peers =
            self.registered().filter(|_| is_told).filter_map(|(_, link)| link.peer.as_ref());
        let staying = peers.filter(|peer| !peer.ldm);
        let mut urls: Vec<String> = staying.flat_map(|peer| of(peer).iter().cloned()).collect();
        urls.sort_unstable();
        urls.dedup();
        (was_said || !urls.is_empty()).then_some(urls)
    }

    /// Where a server is reached that has said, or of which was said, this.
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
        self.add_target(url, Kind::Gossiped, id, info.gossip_mode);
    }

    fn add_target(
        &mut self,
        url: RouteUrl,
        kind: Kind,
        server_id: Option<String>,
        gossip_mode: u8,
    ) -> u64 {
        // Two servers that hear of each other at once had better not dial at once.
        let is_configured = kind == Kind::Configured;
        let until =
            if is_configured { self.now } else { self.now + self.rng.u64(..REDIAL_JITTER_NS) };
        let state = State::Waiting { until };
        let (attempts, broken) = (0, 0);
        let target = Target { url, kind, state, attempts, broken, server_id, gossip_mode };
        let number = self.next_target;
        self.targets.insert(number, target);
        self.next_target += 1;
        number
    }

    /// Puts off the next attempt, or gives the target up.
    fn retry(&mut self, number: u64) {
        let Some(target) = self.targets.get_mut(&number) else { return };
        let is_gossiped = target.kind == Kind::Gossiped;
        if is_gossiped && target.attempts > self.plan.connect_retries {
            self.targets.remove(&number);
            return;
        }
        let doubled = target.attempts.saturating_sub(1).min(5);
        let is_slower = self.plan.connect_backoff || target.kind == Kind::Pool;
        let backoff = if is_slower { REDIAL_NS << doubled } else { REDIAL_NS };
        let jitter = self.rng.u64(..=REDIAL_JITTER_NS);
        let until = self.now + backoff.min(REDIAL_NS_MAX) + jitter;
        target.state = State::Waiting { until };
    }
}

/// What is said of a member to others: of its connection for one account, if that is meant.
fn spoken_of(member: &RouteInfo, part: &Part, gossip_mode: u8) -> RouteInfo {
    RouteInfo {
        gossip_mode,
        ldm: false,
        shardcast: false,
        route_pool_idx: 0,
        route_account: part.announced().unwrap_or_default().to_owned(),
        ..member.clone()
    }
}
