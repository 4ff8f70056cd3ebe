//! Receivers of a subject: local subscriptions one by one, other shards only as far as needed to
//! decide where a message goes.
//!
//! Every shard holds, for every filter, its own subscriptions, the set of shards that have plain
//! ones, and for each queue group the number of members per shard; and the same once more for the
//! interest of servers that are reached over the routes of a shard (`Side::Routes`).
//!
//! **Memory.** A literal filter and its receivers are one small block, to which a hash table
//! points; the texts of a subscription are one more block.
//!
//! **Announced to other shards** are the first and the last plain subscription of a filter, and
//! every change of a group's count, as `Record::Interest`. These travel on the same lanes as
//! messages, so they are in order with them.
//!
//! **Cached** is what a subject resolves to (`Targets`: groups by sid and header support, queue
//! groups over all matching filters, shards). A change of a literal filter invalidates that
//! subject. A change of a wildcard filter invalidates all subjects with its first token, or
//! everything if that token is a wildcard itself. The caches of the whole process have one bound:
//! see `cache`.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::rc::Rc;

use ahash::RandomState;
use slab::Slab;
use smallvec::SmallVec;

use super::budget::{DELIVERY_WORK, EXIT_WORK, MEMBER_WORK, MESSAGE_WORK, NODE_WORK};
use super::budget::{PICK_WORK, Price, RENDER_WORK};
use super::cache::{Cache, Tally};
use super::imports::{Exit, Outlet, answering_shard};
use super::named::{Name, Named};
use super::{Origin, ShardId, ShardSet};
use crate::output::{Overflow, Policy};
use crate::subject::{Scan, Table};

/// Index of a subscription on its shard.
pub(super) type SubKey = u32;

/// `max` of a subscription without one.
pub(super) const NO_MAX: u64 = u64::MAX;

/// One subscription of one local connection.
#[derive(Debug)]
pub(super) struct Sub {
    /// The slot of its connection.
    pub(super) conn: u32,
    /// Its place in the filter's list.
    position: u32,
    /// Its sid, its subject, and the name of its queue group: there are millions of subscriptions,
    /// and memory for one text costs less than for three.
    text: Box<[u8]>,
    sid_bytes: u32,
    subject_bytes: u32,
    /// Messages delivered since SUB.
    pub(super) delivered: u64,
    /// It ends when `delivered` reaches this.
    pub(super) max: u64,
}

impl Sub {
    pub(super) fn new(conn: u32, subject: &[u8], queue: Option<&[u8]>, sid: &[u8]) -> Self {
        Self {
            conn,
            position: 0,
            text: [sid, subject, queue.unwrap_or_default()].concat().into(),
            sid_bytes: count(sid.len()),
            subject_bytes: count(subject.len()),
            delivered: 0,
            max: NO_MAX,
        }
    }

    pub(super) fn sid(&self) -> &[u8] {
        &self.text[..self.sid_bytes as usize]
    }

    pub(super) fn subject(&self) -> &[u8] {
        &self.text[self.sid_bytes as usize..][..self.subject_bytes as usize]
    }

    /// Bytes of all three.
    pub(super) fn text_bytes(&self) -> usize {
        self.text.len()
    }

    /// Never empty: an operation's arguments are not.
    pub(super) fn queue(&self) -> Option<&[u8]> {
        let queue = &self.text[(self.sid_bytes + self.subject_bytes) as usize..];
        (!queue.is_empty()).then_some(queue)
    }
}

/// Who is at the other end of an interest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// Clients of this server.
    Clients,
    /// Other servers: only what clients of this one publish goes there.
    Routes,
    /// Leaf nodes behind other servers: their members of a queue group are the last to be chosen.
    Leaves,
}

/// What is wanted over a route.
#[derive(Debug, Clone, Copy)]
pub(super) struct Behind {
    /// The slot of the route.
    pub(super) route: u32,
    /// Members of a queue group.
    pub(super) members: u32,
    /// Who wants it.
    pub(super) origin: Origin,
}

impl Behind {
    pub(super) fn is_peers(&self) -> bool {
        self.origin == Origin::PEER
    }
}

/// Who must be told what after a change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Change {
    /// The other shards: members of the queue group here, or 1 and 0 for the first and last
    /// plain interest.
    pub(super) announce: Option<u32>,
    /// Other servers: the same, for all clients of this server together.
    pub(super) tell: Option<u32>,
}

#[derive(Debug, Default)]
struct Filter {
    plain: SmallVec<[SubKey; 4]>,
    /// Plain interest that came over own routes.
    routes: SmallVec<[Behind; 1]>,
    /// Other shards with clients that have plain interest.
    shards: ShardSet,
    /// Other shards with routes over which plain interest came.
    routers: ShardSet,
    queues: Named<Queue>,
}

#[derive(Debug)]
struct Queue {
    name: Rc<[u8]>,
    local: SmallVec<[SubKey; 4]>,
    /// Members behind own routes.
    routes: SmallVec<[Behind; 1]>,
    remote: SmallVec<[Remote; 2]>,
}

impl Name for Queue {
    fn name(&self) -> &Rc<[u8]> {
        &self.name
    }
}

/// Members of a queue group on another shard.
#[derive(Debug, Clone, Copy)]
pub(super) struct Remote {
    pub(super) shard: ShardId,
    /// Its clients.
    pub(super) clients: u32,
    /// Members on other servers that its routes lead to.
    pub(super) routed: u32,
    /// Members at leaf nodes behind those.
    pub(super) leaves: u32,
}

impl Remote {
    /// Members that a message may go to; one that came over a route stays on this server.
    pub(super) fn members(&self, is_routed: bool) -> u64 {
        u64::from(self.clients) + if is_routed { 0 } else { u64::from(self.routed) }
    }

    /// Members that it may go to if there are none of those.
    pub(super) fn last_resorts(&self, is_routed: bool) -> u64 {
        u64::from(self.leaves) + if is_routed { u64::from(self.routed) } else { 0 }
    }

    fn is_empty(&self) -> bool {
        self.members(false) + self.last_resorts(false) == 0
    }
}

impl Queue {
    fn clients(&self) -> u32 {
        let remote = self.remote.iter().map(|remote| remote.clients);
        remote.fold(count(self.local.len()), u32::saturating_add)
    }

    fn is_empty(&self) -> bool {
        self.local.is_empty() && self.routes.is_empty() && self.remote.is_empty()
    }
}

impl Filter {
    fn queue(&mut self, name: &[u8]) -> &mut Queue {
        self.queues.entry(name, |name| {
            let (local, routes, remote) = (SmallVec::new(), SmallVec::new(), SmallVec::new());
            Queue { name, local, routes, remote }
        })
    }

    fn has_clients(&self) -> bool {
        !self.plain.is_empty() || !self.shards.is_empty()
    }

    fn is_empty(&self) -> bool {
        let of_others = self.routes.is_empty() && self.routers.is_empty();
        !self.has_clients() && of_others && self.queues.is_empty()
    }
}

/// A local subscription that a subject reaches.
#[derive(Debug, Clone, Copy)]
pub(super) struct Member {
    pub(super) conn: u32,
    pub(super) sub: SubKey,
}

/// Local plain subscriptions that get identical bytes.
#[derive(Debug)]
pub(super) struct SidGroup {
    pub(super) sid: Box<[u8]>,
    /// Whether the members take headers.
    pub(super) headers: bool,
    pub(super) members: Vec<Member>,
}

/// A queue group over all filters that the subject matches.
#[derive(Debug)]
pub(super) struct QueueTargets {
    pub(super) name: Rc<[u8]>,
    pub(super) local: Vec<Member>,
    /// Members behind own routes, those at leaf nodes among them.
    pub(super) routes: SmallVec<[Behind; 1]>,
    /// Members on other shards.
    pub(super) remote: SmallVec<[Remote; 2]>,
}

impl Name for QueueTargets {
    fn name(&self) -> &Rc<[u8]> {
        &self.name
    }
}

/// Everything one subject resolves to on this shard.
#[derive(Debug, Default)]
pub(super) struct Targets {
    pub(super) groups: Vec<SidGroup>,
    /// Local plain subscriptions over all groups.
    pub(super) members: usize,
    pub(super) queues: Named<QueueTargets>,
    /// Other shards with clients that have plain interest.
    pub(super) shards: ShardSet,
    /// Own routes, by slot, to servers with plain interest.
    pub(super) routes: SmallVec<[u32; 4]>,
    /// Other shards with routes to such servers.
    pub(super) routers: ShardSet,
    /// Where else it goes.
    pub(super) exits: Vec<Exit>,
    /// The shard that knows where it goes if it answers a request of another account.
    pub(super) answering: Option<ShardId>,
    /// Plain subscriptions that are behind miss messages rather than being cut.
    pub(super) overflow: Option<Rc<Policy>>,
    /// What it costs to give them messages.
    pub(super) price: Price,
}

impl Targets {
    pub(super) fn is_empty(&self) -> bool {
        self.members == 0
            && self.queues.is_empty()
            && !self.has_plain_elsewhere()
            && !self.leaves_account()
    }

    /// Whether a client's message surely reaches another shard or server.
    pub(super) fn has_plain_elsewhere(&self) -> bool {
        self.has_plain_on_shards() || !self.routes.is_empty()
    }

    /// The same by way of other shards.
    pub(super) fn has_plain_on_shards(&self) -> bool {
        !self.shards.union(self.routers).is_empty()
    }

    /// Whether there are none but plain subscriptions of this shard in the account.
    pub(super) fn are_plain_and_here(&self) -> bool {
        self.queues.is_empty() && !self.has_plain_elsewhere()
    }

    /// Whether clients of this server want it in its account.
    pub(super) fn has_clients(&self) -> bool {
        let remote = |group: &QueueTargets| group.remote.iter().any(|r| r.members(true) > 0);
        self.members > 0
            || !self.shards.is_empty()
            || self.queues.iter().any(|group| !group.local.is_empty() || remote(group))
    }

    /// Whether nothing but this queue group, by its place, has a message go over an own route.
    ///
    /// Plain subscribers behind a route get whatever comes over it. So what is passed on late, for
    /// a member that has gone, goes only where nobody can have got it before.
    pub(super) fn is_only_for(&self, route: u32, group: usize) -> bool {
        let goes = |queue: &QueueTargets| queue.routes.iter().any(|other| other.route == route);
        let mut groups = self.queues.iter().enumerate();
        !self.routes.contains(&route) && !groups.any(|(at, queue)| at != group && goes(queue))
    }

    /// Whether it goes anywhere else than to subscriptions of its account.
    pub(super) fn leaves_account(&self) -> bool {
        !self.exits.is_empty() || self.answering.is_some()
    }

    /// What it costs to give them messages. What they cost in other accounts is only guessed, for
    /// it to be known how many messages are a run; it is charged for there.
    fn price(&self) -> Price {
        let wide = |count: usize| count as u64;
        let (groups, queues) = (wide(self.groups.len()), wide(self.queues.len()));
        let (members, routes) = (wide(self.members), wide(self.routes.len()));
        let exits = wide(self.exits.len()) + u64::from(self.answering.is_some());
        let once = DELIVERY_WORK * members;
        let apart = if self.overflow.is_some() { once } else { 0 };
        Price {
            once,
            each: MESSAGE_WORK
                + RENDER_WORK * (groups + routes)
                + PICK_WORK * queues
                + EXIT_WORK * exits
                + apart,
            copies: groups + queues + routes + exits,
            members,
        }
    }

    /// About what it costs to keep this, in bytes.
    pub(super) fn cost(&self) -> usize {
        let members: usize = self.queues.iter().map(|queue| queue.local.len()).sum();
        200 + 120 * (self.groups.len() + self.queues.len() + self.exits.len())
            + 8 * (self.members + members)
    }
}

/// The interest of one account, on all shards.
#[derive(Debug)]
pub(super) struct Interest {
    table: Table<Filter>,
    /// Where else messages go, by filter.
    outlets: Table<Vec<Rc<Outlet>>>,
    cache: Cache,
    stats: InterestStats,
    overflow: Option<Rc<Overflow>>,
}

/// How often subscriptions of this shard came and went, and subjects were looked up here.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct InterestStats {
    /// Subscriptions entered.
    pub inserts: u64,
    /// Subscriptions taken out.
    pub removes: u64,
    /// Subjects looked up, once for each run of messages.
    pub lookups: u64,
    /// Those that the cache knew.
    pub cache_hits: u64,
    /// Local subscriptions that the others resolved to, all together.
    pub fanout_sum: u64,
    /// The most that one of them resolved to.
    pub fanout_max: u64,
}

impl InterestStats {
    /// Adds those of another account or shard.
    pub fn add(&mut self, other: &Self) {
        self.inserts += other.inserts;
        self.removes += other.removes;
        self.lookups += other.lookups;
        self.cache_hits += other.cache_hits;
        self.fanout_sum += other.fanout_sum;
        self.fanout_max = self.fanout_max.max(other.fanout_max);
    }
}

impl Interest {
    /// `seed` keys the hashes: subjects are chosen by clients.
    pub(super) fn new(seed: u64, tally: &Rc<Tally>) -> Self {
        let hasher = RandomState::with_seeds(seed, !seed, seed.rotate_left(17), 0x5eed);
        let (table, stats) = (Table::with_seed(seed), InterestStats::default());
        let outlets = Table::with_seed(seed);
        Self { table, outlets, cache: Cache::new(hasher, tally), stats, overflow: None }
    }

    /// Subjects that are cached.
    pub(super) fn cached_subjects(&self) -> usize {
        self.cache.len()
    }

    pub(super) fn stats(&self) -> InterestStats {
        self.stats
    }

    pub(super) fn cache(&self) -> &Cache {
        &self.cache
    }

    pub(super) fn cache_mut(&mut self) -> &mut Cache {
        &mut self.cache
    }

    pub(super) fn filters(&self) -> usize {
        self.table.len()
    }

    /// Enters a local subscription.
    pub(super) fn add(&mut self, key: SubKey, subs: &mut Slab<Sub>) -> Change {
        self.stats.inserts += 1;
        let sub = &mut subs[key as usize];
        let filter = self.table.entry(sub.subject());
        let change = match sub.queue() {
            None => {
                let had_clients = filter.has_clients();
                filter.plain.push(key);
                let members = count(filter.plain.len());
                let announce = (members == 1).then_some(1);
                (members, Change { announce, tell: (!had_clients).then_some(1) })
            }
            Some(name) => {
                let queue = filter.queue(name);
                queue.local.push(key);
                let members = count(queue.local.len());
                (members, Change { announce: Some(members), tell: Some(queue.clients()) })
            }
        };
        let (members, change) = change;
        sub.position = members - 1;
        self.cache.forget(sub.subject());
        change
    }

    /// Takes a local subscription out.
    pub(super) fn remove(&mut self, key: SubKey, subs: &mut Slab<Sub>) -> (Sub, Change) {
        self.stats.removes += 1;
        let sub = subs.remove(key as usize);
        let Some(filter) = self.table.get_mut(sub.subject()) else {
            unreachable!("a subscription is in the table from SUB to its end");
        };
        let list = match sub.queue() {
            None => &mut filter.plain,
            Some(name) => &mut filter.queue(name).local,
        };
        let at = sub.position as usize;
        assert_eq!(list.swap_remove(at), key, "positions follow every move");
        if let Some(&moved) = list.get(at) {
            subs[moved as usize].position = sub.position;
        }
        let left = count(list.len());
        let change = match sub.queue() {
            None => {
                let announce = (left == 0).then_some(0);
                Change { announce, tell: (!filter.has_clients()).then_some(0) }
            }
            Some(name) => Change { announce: Some(left), tell: Some(filter.queue(name).clients()) },
        };
        self.tidy_up(sub.subject(), sub.queue());
        (sub, change)
    }

    /// Forgets what is empty, and what was resolved, after a change of a filter.
    fn tidy_up(&mut self, subject: &[u8], queue: Option<&[u8]>) {
        if let Some(filter) = self.table.get_mut(subject) {
            if let Some(name) = queue {
                filter.queues.remove_if(name, Queue::is_empty);
            }
            if filter.is_empty() {
                self.table.remove(subject);
            }
        }
        self.cache.forget(subject);
    }

    /// Another shard has announced its interest in a filter. Returns what other servers are to
    /// be told.
    pub(super) fn set_remote(
        &mut self,
        shard: ShardId,
        side: Side,
        subject: &[u8],
        queue: Option<&[u8]>,
        members: u32,
    ) -> Option<u32> {
        let filter = self.table.entry(subject);
        let tell = match queue {
            None => {
                let had_clients = filter.has_clients();
                let set = match side {
                    Side::Clients => &mut filter.shards,
                    Side::Routes | Side::Leaves => &mut filter.routers,
                };
                if members > 0 {
                    set.insert(shard)
                } else {
                    set.remove(shard)
                }
                let has_clients = filter.has_clients();
                (has_clients != had_clients).then_some(u32::from(has_clients))
            }
            Some(name) => {
                let queue = filter.queue(name);
                let at = queue.remote.iter().position(|remote| remote.shard == shard);
                let at = at.unwrap_or_else(|| {
                    queue.remote.push(Remote { shard, clients: 0, routed: 0, leaves: 0 });
                    queue.remote.len() - 1
                });
                let remote = &mut queue.remote[at];
                match side {
                    Side::Clients => remote.clients = members,
                    Side::Routes => remote.routed = members,
                    Side::Leaves => remote.leaves = members,
                }
                if remote.is_empty() {
                    queue.remote.swap_remove(at);
                }
                (side == Side::Clients).then(|| queue.clients())
            }
        };
        self.tidy_up(subject, queue);
        tell
    }

    /// What the server behind an own route wants of a filter, for itself or for leaf nodes. Returns
    /// what the other shards are to be told, and as what: that of all own routes together.
    pub(super) fn set_route(
        &mut self,
        (route, origin): (u32, Origin),
        subject: &[u8],
        queue: Option<&[u8]>,
        members: u32,
    ) -> Option<(Side, u32)> {
        let is_it = |other: &Behind| (other.route, other.origin) == (route, origin);
        let set = |all: &mut SmallVec<[Behind; 1]>| {
            all.retain(|other| !is_it(other));
            if members > 0 {
                all.push(Behind { route, members, origin });
            }
        };
        let filter = self.table.entry(subject);
        let announce = match queue {
            None => {
                let had_any = !filter.routes.is_empty();
                set(&mut filter.routes);
                let has_any = !filter.routes.is_empty();
                (has_any != had_any).then_some((Side::Routes, u32::from(has_any)))
            }
            Some(name) => {
                let routes = &mut filter.queue(name).routes;
                set(routes);
                let is_peers = origin == Origin::PEER;
                let same = routes.iter().filter(|behind| behind.is_peers() == is_peers);
                let all = same.map(|behind| behind.members).fold(0, u32::saturating_add);
                Some((if is_peers { Side::Routes } else { Side::Leaves }, all))
            }
        };
        self.tidy_up(subject, queue);
        announce
    }

    /// The filters of which that is so.
    pub(super) fn outlets_for_routes(&self) -> impl Iterator<Item = &[u8]> {
        self.outlets.iter().map(|(filter, _)| filter).filter(|filter| self.has_outlet(filter))
    }

    /// Whether clients of this server want this very filter.
    pub(super) fn is_wanted_by_clients(&self, filter: &[u8]) -> bool {
        self.table.get(filter).is_some_and(|filter| filter.has_clients())
    }

    /// Whether other accounts import what is published to this very filter, or the server answers
    /// it.
    pub(super) fn has_outlet(&self, filter: &[u8]) -> bool {
        let outlets = self.outlets.get(filter);
        outlets.is_some_and(|all| all.iter().any(|outlet| outlet.is_told()))
    }

    /// What other accounts import and the server answers, as other servers are told; there are as
    /// many as are configured.
    pub(super) fn of_imports(&self, mut show: impl FnMut(&[u8])) {
        let filters = self.outlets.iter().map(|(filter, _)| filter);
        filters.filter(|filter| self.has_outlet(filter)).for_each(&mut show);
    }

    /// What clients of this server want, as other servers are told, besides that: a piece of it,
    /// as [`Table::scan`] has it.
    pub(super) fn of_clients(
        &self,
        at: &mut Scan,
        places: &mut usize,
        mut show: impl FnMut(&[u8], Option<(&[u8], u32)>),
    ) -> bool {
        self.table.scan(at, places, |subject, filter| {
            if filter.has_clients() && !self.has_outlet(subject) {
                show(subject, None);
            }
            for queue in filter.queues.iter().filter(|queue| queue.clients() > 0) {
                show(subject, Some((&queue.name, queue.clients())));
            }
        })
    }

    /// Says where else messages go.
    pub(super) fn set_outlets(&mut self, outlets: Table<Vec<Rc<Outlet>>>) {
        self.outlets = outlets;
        self.forget_all();
    }

    /// Takes over what becomes of messages for those who are behind.
    pub(super) fn set_overflow(&mut self, overflow: Option<Rc<Overflow>>) {
        self.overflow = overflow;
        self.forget_all();
    }

    /// Forgets what was resolved: a connection has changed how it takes messages.
    pub(super) fn forget_all(&mut self) {
        self.cache.forget_all();
    }

    /// What `subject` resolves to, and what it has cost to find that out. `takes_headers` tells
    /// that of a connection's slot.
    pub(super) fn targets(
        &mut self,
        subject: &[u8],
        subs: &Slab<Sub>,
        takes_headers: impl Fn(u32) -> bool,
    ) -> (Rc<Targets>, u64) {
        self.stats.lookups += 1;
        if let Some(targets) = self.cache.get(subject) {
            self.stats.cache_hits += 1;
            return (targets, 0);
        }
        let (targets, places) = self.resolve(subject, subs, takes_headers);
        let in_queues: usize = targets.queues.iter().map(|queue| queue.local.len()).sum();
        let fanout = (targets.members + in_queues) as u64;
        self.stats.fanout_sum += fanout;
        self.stats.fanout_max = self.stats.fanout_max.max(fanout);
        let work = NODE_WORK * places as u64 + MEMBER_WORK * fanout;
        (self.cache.insert(subject, targets), work)
    }

    fn resolve(
        &self,
        subject: &[u8],
        subs: &Slab<Sub>,
        takes_headers: impl Fn(u32) -> bool,
    ) -> (Targets, usize) {
        let overflow = self.overflow.as_ref().and_then(|overflow| overflow.policy(subject));
        let mut targets = Targets { overflow, ..Targets::default() };
        let mut group_of: HashMap<(&[u8], bool), usize, RandomState> =
            HashMap::with_hasher(self.cache.hasher().clone());
        let places = self.table.for_each_match(subject, |filter| {
            targets.shards = targets.shards.union(filter.shards);
            targets.routers = targets.routers.union(filter.routers);
            for Behind { route, .. } in &filter.routes {
                if !targets.routes.contains(route) {
                    targets.routes.push(*route);
                }
            }
            for &key in &filter.plain {
                let sub = &subs[key as usize];
                let headers = takes_headers(sub.conn);
                let at = *group_of.entry((sub.sid(), headers)).or_insert_with(|| {
                    // Most have one group of one member.
                    if targets.groups.is_empty() {
                        targets.groups.reserve_exact(1);
                    }
                    let (sid, members) = (sub.sid().into(), Vec::with_capacity(1));
                    targets.groups.push(SidGroup { sid, headers, members });
                    targets.groups.len() - 1
                });
                targets.groups[at].members.push(Member { conn: sub.conn, sub: key });
                targets.members += 1;
            }
            for queue in filter.queues.iter() {
                join_queue(&mut targets.queues, queue, subs);
            }
        });
        self.outlets.for_each_match(subject, |outlets| {
            targets.exits.extend(outlets.iter().filter_map(|outlet| Exit::of(outlet, subject)));
        });
        targets.answering = answering_shard(subject);
        targets.price = targets.price();
        (targets, places)
    }
}

fn join_queue(groups: &mut Named<QueueTargets>, queue: &Queue, subs: &Slab<Sub>) {
    let group = groups.entry(&queue.name, |_| {
        let name = Rc::clone(&queue.name);
        let (local, routes, remote) = (Vec::new(), SmallVec::new(), SmallVec::new());
        QueueTargets { name, local, routes, remote }
    });
    let members = queue.local.iter().map(|&sub| Member { conn: subs[sub as usize].conn, sub });
    group.local.extend(members);
    for &behind in &queue.routes {
        let same =
            |other: &&mut Behind| (other.route, other.origin) == (behind.route, behind.origin);
        match group.routes.iter_mut().find(same) {
            Some(all) => all.members = all.members.saturating_add(behind.members),
            None => group.routes.push(behind),
        }
    }
    for &remote in &queue.remote {
        match group.remote.iter_mut().find(|other| other.shard == remote.shard) {
            Some(sum) => {
                sum.clients = sum.clients.saturating_add(remote.clients);
                sum.routed = sum.routed.saturating_add(remote.routed);
                sum.leaves = sum.leaves.saturating_add(remote.leaves);
            }
            None => group.remote.push(remote),
        }
    }
}

fn count(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FILTERS: [&str; 10] =
        ["a", "a.b", "a.*", "a.>", "*.b", ">", "b.>", "b.*.c", "_INBOX.1.*", "a.b.*"];
    const SUBJECTS: [&str; 7] = ["a", "a.b", "a.c", "b.b", "b.x.c", "_INBOX.1.z", "a.b.c"];

    /// What a publisher can tell of targets.
    fn reached(targets: &Targets) -> (Vec<SubKey>, ShardSet, ShardSet, Vec<u32>) {
        let members = targets.groups.iter().flat_map(|group| &group.members);
        let mut subs: Vec<SubKey> = members.map(|member| member.sub).collect();
        subs.sort_unstable();
        let mut routes = targets.routes.to_vec();
        routes.sort_unstable();
        (subs, targets.shards, targets.routers, routes)
    }

    proptest! {
        #[test]
        fn the_cache_never_knows_anything_else_than_the_table(
            changes in prop::collection::vec((0..FILTERS.len(), 0..8u8, 0..SUBJECTS.len()), 1..60),
        ) {
            let (mut interest, mut subs) = (Interest::new(7, &Rc::default()), Slab::new());
            let mut keys: Vec<SubKey> = Vec::new();
            for (filter, change, ask) in changes {
                let subject = FILTERS[filter].as_bytes();
                match change {
                    0 => {
                        let key = count(subs.insert(Sub::new(0, subject, None, b"1")));
                        interest.add(key, &mut subs);
                        keys.push(key);
                    }
                    1 if !keys.is_empty() => {
                        let key = keys.swap_remove(filter % keys.len());
                        interest.remove(key, &mut subs);
                    }
                    4 | 5 => {
                        let (by, members) = ((9, Origin::PEER), u32::from(change == 4));
                        interest.set_route(by, subject, None, members);
                    }
                    _ => {
                        let side = if change > 5 { Side::Routes } else { Side::Clients };
                        let members = u32::from(change % 2 == 1);
                        interest.set_remote(ShardId(3), side, subject, None, members);
                    }
                }
                // One subject at a time, so that others stay cached over several changes.
                let subject = SUBJECTS[ask].as_bytes();
                let (known, _) = interest.targets(subject, &subs, |_| true);
                let (resolved, _) = interest.resolve(subject, &subs, |_| true);
                prop_assert_eq!(reached(&known), reached(&resolved));
            }
        }
    }

    #[test]
    fn a_wildcard_leaves_what_was_resolved_for_other_first_tokens() {
        let (mut interest, subs) = (Interest::new(7, &Rc::default()), Slab::new());
        let (hot, _) = interest.targets(b"prices.eur", &subs, |_| true);
        interest.set_remote(ShardId(1), Side::Clients, b"_INBOX.1.*", None, 1);
        assert!(Rc::ptr_eq(&hot, &interest.targets(b"prices.eur", &subs, |_| true).0));
    }
}
