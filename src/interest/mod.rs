//! Receivers of a subject: local subscriptions one by one, other shards only as far as needed to
//! decide on the way of a message.
//!
//! Every shard holds, for every filter, its own subscriptions, the set of shards that have plain
//! ones, and for each queue group the number of members per shard; and the same once more for the
//! interest of servers that are reached over the links of a shard, by their kind (`reach`).
//!
//! **Memory.** A literal filter and its receivers are one small block, to which a hash table
//! points; the texts of a subscription are one more block.
//!
//! **Announced to other shards** are the first and the last plain subscription of a filter, and
//! every change of a group's count, as `Record::Interest`. These travel on the same lanes as
//! messages, so they are in order with them.
//!
//! **Cached** are the targets that a subject resolves to (`Targets`: groups by sid and header
//! support, queue groups over all matching filters, shards). A change of a literal filter
//! invalidates that subject. A change of a wildcard filter invalidates all subjects with its first
//! token, or everything if that token is a wildcard itself. The caches of the whole process have
//! one bound: see `cache`.

#![forbid(unsafe_code)]

pub mod account_settings;
pub(crate) mod accounts;
pub(crate) mod budget;
pub(crate) mod by_name;
pub(crate) mod cache;
pub(crate) mod census;
pub(crate) mod cost;
pub(crate) mod halves;
pub(crate) mod ids;
pub(crate) mod latency;
pub(crate) mod mapping;
pub(crate) mod once;
pub(crate) mod outlets;
pub(crate) mod reach;
pub(crate) mod stream_settings;
pub(crate) mod subscription;
pub(crate) mod taps;
pub(crate) mod targets;

use std::collections::HashMap;
use std::rc::Rc;

use ahash::RandomState;
use slab::Slab;
use smallvec::SmallVec;
use thin_vec::ThinVec;

use crate::interest::by_name::{Name, Named};
use crate::interest::cache::{Cache, Tally};
use crate::interest::cost::{MEMBER_WORK, NODE_WORK};
use crate::interest::ids::{Origin, ShardId};
use crate::interest::outlets::{Exit, Inside, parse_answer};
use crate::interest::reach::{Kind, LinkSlot, ShardsByKind, Via};
use crate::interest::subscription::{Sub, SubKey};
use crate::interest::taps::{Home, Tap, TapId};
use crate::interest::targets::{Member, Prefix, QueueTargets, SidGroup, Targets};
use crate::output::Overflow;
use crate::subject::{Scan, Table, is_literal};

/// Interest in a filter, plainly or in a queue group.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub(crate) filter: &'a [u8],
    pub(crate) queue: Option<&'a [u8]>,
}

/// Interest behind an own link.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Behind {
    pub(crate) link: LinkSlot,
    /// Members of a queue group; 1 or 0 for plain interest.
    pub(crate) members: u32,
    /// The origin of the interest.
    pub(crate) origin: Origin,
}

impl Behind {
    pub(crate) fn via(&self) -> Via {
        Via { kind: self.link.kind(), origin: self.origin }
    }

    /// Whether the interest is in this cluster, or at leaf nodes of it.
    fn is_of_cluster(&self) -> bool {
        self.link.kind().is_of_cluster()
    }

    /// Whether both are the same interest, whatever the number of members.
    fn is_same(&self, other: &Self) -> bool {
        (self.link, self.origin) == (other.link, other.origin)
    }
}

/// News for other shards and servers after a change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Change {
    /// For other shards: members of the queue group here, or 1 and 0 for the first and last plain
    /// interest.
    pub(crate) announce: Option<u32>,
    /// For other servers: members of the queue group, or 1 and 0, for all clients of this server
    /// together.
    pub(crate) advertise: Option<u32>,
    /// For leaf nodes, and about them: members that others than clients have, in this way alone.
    pub(crate) behind: Option<u32>,
    /// For other clusters: whether this cluster wants it, if that has changed.
    pub(crate) cluster: Option<bool>,
}

/// Filters in which the interest has changed.
#[derive(Debug, Default)]
pub(crate) struct InterestChanges {
    filters: Vec<Box<[u8]>>,
    /// Whether there were too many of them to remember.
    are_many: bool,
}

impl InterestChanges {
    /// Filters that are remembered.
    const FILTERS_MAX: usize = 1024;

    fn add(&mut self, filter: &[u8]) {
        if self.filters.len() < Self::FILTERS_MAX {
            self.filters.push(filter.into());
        } else {
            self.are_many = true;
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.filters.is_empty()
    }

    /// The filters, if each is the subject that it stands for; `None` if there may be others.
    pub(crate) fn subjects(&self) -> Option<&[Box<[u8]>]> {
        let are_all = !self.are_many && self.filters.iter().all(|filter| is_literal(filter));
        are_all.then_some(&self.filters)
    }

    /// Whether interest in a subject may have changed.
    pub(crate) fn concern(&self, subject: &[u8]) -> bool {
        self.are_many || self.filters.iter().any(|filter| crate::subject::matches(filter, subject))
    }
}

#[derive(Debug, Default)]
struct Filter {
    plain: SmallVec<[SubKey; 4]>,
    /// Plain interest that came over own links; most filters have none.
    links: ThinVec<Behind>,
    /// Other shards with plain interest.
    shards: ShardsByKind,
    queues: Named<Queue>,
}

#[derive(Debug)]
struct Queue {
    name: Rc<[u8]>,
    local: SmallVec<[SubKey; 4]>,
    /// Members behind own links.
    links: ThinVec<Behind>,
    remote: SmallVec<[Remote; 4]>,
}

impl Name for Queue {
    fn name(&self) -> &Rc<[u8]> {
        &self.name
    }
}

/// Members of a queue group on another shard that are reached in the same way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Remote {
    pub(crate) shard: ShardId,
    pub(crate) via: Via,
    pub(crate) members: u32,
}

impl Remote {
    fn is_same(&self, other: &Self) -> bool {
        (self.shard, self.via) == (other.shard, other.via)
    }
}

impl Queue {
    fn clients(&self) -> u32 {
        let clients = self.remote.iter().filter(|remote| remote.via == Via::CLIENTS);
        let remote = clients.map(|remote| remote.members);
        remote.fold(count(self.local.len()), u32::saturating_add)
    }

    /// Whether there are members in this cluster or at leaf nodes of it.
    fn is_of_cluster(&self) -> bool {
        !self.local.is_empty()
            || self.links.iter().any(Behind::is_of_cluster)
            || self.remote.iter().any(|remote| remote.via.kind.is_of_cluster())
    }

    fn is_empty(&self) -> bool {
        self.local.is_empty() && self.links.is_empty() && self.remote.is_empty()
    }
}

impl Filter {
    fn queue(&mut self, name: &[u8]) -> &mut Queue {
        self.queues.entry(name, |name| {
            let (local, links, remote) = (SmallVec::new(), ThinVec::new(), SmallVec::new());
            Queue { name, local, links, remote }
        })
    }

    /// Whether there is interest outside of queue groups.
    fn is_plain(&self) -> bool {
        !self.plain.is_empty() || !self.links.is_empty() || !self.shards.is_empty()
    }

    fn has_clients(&self) -> bool {
        !self.plain.is_empty() || !self.shards.of(Kind::Client).is_empty()
    }

    /// Whether there is plain interest in this cluster or at leaf nodes of it.
    fn is_of_cluster(&self) -> bool {
        !self.plain.is_empty()
            || self.links.iter().any(Behind::is_of_cluster)
            || self.shards.has_cluster()
    }

    fn is_empty(&self) -> bool {
        let of_others = !self.links.is_empty() || !self.shards.is_empty();
        self.plain.is_empty() && !of_others && self.queues.is_empty()
    }
}

/// The interest of one account, on all shards.
#[derive(Debug)]
pub(crate) struct Interest {
    table: Table<Filter>,
    /// Receivers besides subscriptions, by filter.
    inside: Table<Inside>,
    /// Taps of this shard that come and go as subscriptions do, by filter.
    taps: Table<SmallVec<[TapId; 1]>>,
    home: Rc<Home>,
    cache: Cache,
    /// Filters that have changed, while somebody inside the server asks for them.
    watch: Option<Box<InterestChanges>>,
    stats: InterestStats,
    overflow: Option<Rc<Overflow>>,
}

/// Counters of subscriptions of this shard and of lookups of subjects.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct InterestStats {
    /// Subscriptions entered.
    pub inserts: u64,
    /// Subscriptions removed.
    pub removes: u64,
    /// Subjects looked up, once for each run of messages.
    pub lookups: u64,
    /// Lookups that the cache answered.
    pub cache_hits: u64,
    /// Local subscriptions that all other lookups resolved to, together.
    pub fanout_sum: u64,
    /// Local subscriptions that one lookup resolved to, at most.
    pub fanout_max: u64,
}

impl InterestStats {
    /// Adds the counters of another account or shard.
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
    /// Empty interest; `seed` keys the hashes, because clients choose subjects.
    pub(crate) fn new(seed: u64, tally: &Rc<Tally>) -> Self {
        let (table, stats) = (Table::with_seed(seed), InterestStats::default());
        let (inside, home) = (Table::with_seed(seed), Rc::default());
        let (taps, cache) = (Table::with_seed(seed), Cache::new(tally));
        Self { table, inside, taps, home, cache, watch: None, stats, overflow: None }
    }

    /// Returns the number of cached subjects.
    pub(crate) fn cached_subjects(&self) -> usize {
        self.cache.len()
    }

    pub(crate) fn stats(&self) -> InterestStats {
        self.stats
    }

    pub(crate) fn cache(&self) -> &Cache {
        &self.cache
    }

    pub(crate) fn cache_mut(&mut self) -> &mut Cache {
        &mut self.cache
    }

    pub(crate) fn filters(&self) -> usize {
        self.table.len()
    }

    /// Enters a local subscription.
    pub(crate) fn add(&mut self, key: SubKey, subs: &mut Slab<Sub>) -> Change {
        self.stats.inserts += 1;
        let sub = &mut subs[key as usize];
        let is_tapped = self.is_tapped(sub.subject());
        let filter = self.table.entry(sub.subject());
        let change = match sub.queue() {
            None => {
                let had_clients = is_tapped || filter.has_clients();
                let cluster = (!is_tapped && !filter.is_of_cluster()).then_some(true);
                filter.plain.push(key);
                let members = count(filter.plain.len());
                let announce = (members == 1 && !is_tapped).then_some(1);
                let advertise = (!had_clients).then_some(1);
                (members, Change { announce, advertise, behind: None, cluster })
            }
            Some(name) => {
                let queue = filter.queue(name);
                let cluster = (!queue.is_of_cluster()).then_some(true);
                queue.local.push(key);
                let members = count(queue.local.len());
                let advertise = Some(queue.clients());
                (members, Change { announce: Some(members), advertise, behind: None, cluster })
            }
        };
        let (members, change) = change;
        sub.position = members - 1;
        self.note_change(sub.subject());
        change
    }

    /// Removes a local subscription.
    pub(crate) fn remove(&mut self, key: SubKey, subs: &mut Slab<Sub>) -> (Sub, Change) {
        self.stats.removes += 1;
        let sub = subs.remove(key as usize);
        let is_tapped = self.is_tapped(sub.subject());
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
                let announce = (left == 0 && !is_tapped).then_some(0);
                let is_wanted = is_tapped || filter.has_clients();
                let cluster = (!is_tapped && !filter.is_of_cluster()).then_some(false);
                let advertise = (!is_wanted).then_some(0);
                Change { announce, advertise, behind: None, cluster }
            }
            Some(name) => {
                let queue = filter.queue(name);
                let cluster = (!queue.is_of_cluster()).then_some(false);
                let advertise = Some(queue.clients());
                Change { announce: Some(left), advertise, behind: None, cluster }
            }
        };
        self.tidy_up(Wanted { filter: sub.subject(), queue: sub.queue() });
        (sub, change)
    }

    /// Drops what is cached of a filter that has changed, and remembers the change if that is asked
    /// for.
    fn note_change(&mut self, filter: &[u8]) {
        self.cache.forget(filter);
        if let Some(watch) = &mut self.watch {
            watch.add(filter);
        }
    }

    /// Begins to remember filters that change, if that is wanted and has not begun; or ends it.
    pub(crate) fn watch(&mut self, is_wanted: bool) {
        if is_wanted {
            self.watch.get_or_insert_default();
        } else {
            self.watch = None;
        }
    }

    /// Takes the filters that have changed.
    pub(crate) fn take_changes(&mut self) -> InterestChanges {
        self.watch.as_mut().map(|watch| std::mem::take(&mut **watch)).unwrap_or_default()
    }

    /// Whether anybody takes messages with a subject; accounts that import it count as such.
    pub(crate) fn has_receivers(&self, subject: &[u8]) -> bool {
        let mut any = self.has_own_receivers(subject);
        self.inside.for_each_match(subject, |inside| any |= !inside.outlets.is_empty());
        any
    }

    /// Whether somebody subscribes to this very subject: in a queue group, if one is named, else
    /// for himself. Those who listen to all subjects of a pattern do not count, but for other
    /// accounts that import one, and what the server itself taps.
    pub(crate) fn is_bound(&self, subject: &[u8], queue: Option<&[u8]>) -> bool {
        let filter = self.table.get(subject);
        let Some(queue) = queue else {
            let mut is_wanted = filter.is_some_and(Filter::is_plain);
            self.inside.for_each_match(subject, |it| is_wanted |= !it.outlets.is_empty());
            self.taps.for_each_match(subject, |_| is_wanted = true);
            return is_wanted;
        };
        filter.is_some_and(|filter| filter.queues.iter().any(|group| *group.name == *queue))
    }

    /// Whether anybody in this account takes messages with a subject, for himself.
    pub(crate) fn has_own_receivers(&self, subject: &[u8]) -> bool {
        // Whoever has asked through a service waits for the answer.
        let mut any = parse_answer(subject).is_some();
        self.table.for_each_match(subject, |filter| any |= !filter.is_empty());
        self.taps.for_each_match(subject, |_| any = true);
        any
    }

    /// Returns the exits of a subject into other accounts.
    pub(crate) fn exits(&self, subject: &[u8]) -> Vec<Exit> {
        let mut exits = Vec::new();
        self.inside.for_each_match(subject, |inside| {
            exits.extend(inside.outlets.iter().filter_map(|outlet| Exit::of(outlet, subject)));
        });
        exits
    }

    /// Removes empty entries and cached targets after a change of a filter.
    fn tidy_up(&mut self, wanted: Wanted<'_>) {
        if let Some(filter) = self.table.get_mut(wanted.filter) {
            if let Some(name) = wanted.queue {
                filter.queues.remove_if(name, Queue::is_empty);
            }
            if filter.is_empty() {
                self.table.remove(wanted.filter);
            }
        }
        self.note_change(wanted.filter);
    }

    /// Sets the interest that another shard has announced in a filter, with 1 or 0 members if that
    /// is plain. Returns the news for other servers.
    pub(crate) fn set_remote(&mut self, remote: Remote, wanted: Wanted<'_>) -> Change {
        let is_tapped = self.is_tapped(wanted.filter);
        let filter = self.table.entry(wanted.filter);
        let Remote { shard, via, members } = remote;
        let is_of_clients = via == Via::CLIENTS;
        let (advertise, was, is) = match wanted.queue {
            None => {
                let (had_clients, was) = (filter.has_clients(), filter.is_of_cluster());
                let had_any = filter.shards.has(via, shard);
                filter.shards.set(via, shard, members > 0);
                let (had, has) = match is_of_clients {
                    true => (had_clients || is_tapped, filter.has_clients() || is_tapped),
                    false => (had_any, members > 0),
                };
                let advertise = (has != had).then_some(u32::from(has));
                (advertise, was || is_tapped, filter.is_of_cluster() || is_tapped)
            }
            Some(name) => {
                let queue = filter.queue(name);
                let was = queue.is_of_cluster();
                let at = queue.remote.iter().position(|other| other.is_same(&remote));
                match at {
                    Some(at) if members == 0 => drop(queue.remote.swap_remove(at)),
                    Some(at) => queue.remote[at] = remote,
                    None if members == 0 => {}
                    None => queue.remote.push(remote),
                }
                let advertise = Some(if is_of_clients { queue.clients() } else { members });
                (advertise, was, queue.is_of_cluster())
            }
        };
        self.tidy_up(wanted);
        let (advertise, behind) = if is_of_clients { (advertise, None) } else { (None, advertise) };
        Change { announce: None, advertise, behind, cluster: (was != is).then_some(is) }
    }

    /// Sets the interest of the server behind an own link in a filter, for itself or for leaf
    /// nodes, with 1 or 0 members if that is plain. Returns the news; members announced to other
    /// shards are those that all own links of that way lead to.
    pub(crate) fn set_link(&mut self, behind: Behind, wanted: Wanted<'_>) -> Change {
        let set = |all: &mut ThinVec<Behind>| {
            all.retain(|other| !other.is_same(&behind));
            if behind.members > 0 {
                // Nearly all filters have one link or none.
                all.reserve_exact(1);
                all.push(behind);
            }
        };
        let is_tapped = self.is_tapped(wanted.filter);
        let filter = self.table.entry(wanted.filter);
        let (announce, behind_it, was, is) = match wanted.queue {
            None => {
                let (via, was) = (behind.via(), filter.is_of_cluster());
                let has = |links: &[Behind]| links.iter().any(|link| link.via() == via);
                let is_in = |links: &[Behind]| links.iter().any(|link| link.is_same(&behind));
                let (had_any, was_in) = (has(&filter.links), is_in(&filter.links));
                set(&mut filter.links);
                let (has_any, is_in) = (has(&filter.links), is_in(&filter.links));
                let announce = (has_any != had_any).then_some(u32::from(has_any));
                let behind_it = (is_in != was_in).then_some(u32::from(is_in));
                (announce, behind_it, was || is_tapped, filter.is_of_cluster() || is_tapped)
            }
            Some(name) => {
                let queue = filter.queue(name);
                let was = queue.is_of_cluster();
                set(&mut queue.links);
                let same = queue.links.iter().filter(|other| other.via() == behind.via());
                let all = same.map(|other| other.members).fold(0, u32::saturating_add);
                (Some(all), Some(behind.members), was, queue.is_of_cluster())
            }
        };
        self.tidy_up(wanted);
        let cluster = (was != is).then_some(is);
        Change { announce, advertise: None, behind: behind_it, cluster }
    }

    /// Returns the filters of outlets and taps that are advertised to other servers.
    pub(crate) fn outlets_for_servers(&self) -> impl Iterator<Item = &[u8]> {
        let inside = self.inside.iter().filter(|(_, inside)| inside.is_told());
        let taps = self.taps.iter().map(|(filter, _)| filter);
        inside.map(|(filter, _)| filter).chain(taps)
    }

    /// Whether a tap of this shard takes messages of this very filter.
    fn is_tapped(&self, filter: &[u8]) -> bool {
        !self.taps.is_empty() && self.taps.get(filter).is_some()
    }

    /// Adds a tap for a filter, which counts as a plain subscription of this shard.
    pub(crate) fn add_tap(&mut self, filter: &[u8], tap: TapId) -> Change {
        let was_tapped = self.is_tapped(filter);
        self.taps.entry(filter).push(tap);
        self.note_change(filter);
        self.change_of_tap(filter, was_tapped, 1)
    }

    /// Removes a tap for a filter.
    pub(crate) fn remove_tap(&mut self, filter: &[u8], tap: TapId) -> Change {
        let was_tapped = self.is_tapped(filter);
        if let Some(taps) = self.taps.get_mut(filter) {
            taps.retain(|other| *other != tap);
            if taps.is_empty() {
                self.taps.remove(filter);
            }
        }
        self.note_change(filter);
        let is_tapped = self.is_tapped(filter);
        self.change_of_tap(filter, was_tapped == is_tapped, 0)
    }

    /// The news of a filter whose taps have changed; none if it `is_same`.
    fn change_of_tap(&self, filter: &[u8], is_same: bool, members: u32) -> Change {
        let filter = self.table.get(filter);
        let has_own = filter.is_some_and(|filter| !filter.plain.is_empty());
        let has_clients = filter.is_some_and(Filter::has_clients);
        let is_of_cluster = filter.is_some_and(Filter::is_of_cluster);
        Change {
            announce: (!is_same && !has_own).then_some(members),
            advertise: (!is_same && !has_clients).then_some(members),
            cluster: (!is_same && !is_of_cluster).then_some(members > 0),
            behind: None,
        }
    }

    /// Whether clients of this server are interested in this very filter.
    pub(crate) fn is_wanted_by_clients(&self, filter: &[u8]) -> bool {
        self.is_tapped(filter) || self.table.get(filter).is_some_and(Filter::has_clients)
    }

    /// Whether other accounts import messages of this very filter, or the server answers them.
    pub(crate) fn has_outlet(&self, filter: &[u8]) -> bool {
        self.is_tapped(filter) || self.inside.get(filter).is_some_and(Inside::is_told)
    }

    /// Shows the filters that other accounts import and that the server answers, for other servers;
    /// there are as many as are configured.
    pub(crate) fn of_imports(&self, mut show: impl FnMut(&[u8])) {
        self.outlets_for_servers().for_each(&mut show);
    }

    /// Whether this cluster is interested in this very filter, besides what is configured.
    pub(crate) fn is_wanted_by_cluster(&self, filter: &[u8]) -> bool {
        self.is_tapped(filter) || self.table.get(filter).is_some_and(Filter::is_of_cluster)
    }

    /// Shows the interest of this cluster for other clusters, plain filters or those of queue
    /// groups, without those of outlets and taps: a piece of it, as by [`Table::scan`].
    pub(crate) fn of_cluster(
        &self,
        at: &mut Scan,
        places: &mut usize,
        of_queues: bool,
        mut show: impl FnMut(&[u8], Option<&[u8]>),
    ) -> bool {
        self.table.scan(at, places, |subject, filter| {
            if !of_queues {
                if filter.is_of_cluster() && !self.has_outlet(subject) {
                    show(subject, None);
                }
                return;
            }
            for queue in filter.queues.iter().filter(|queue| queue.is_of_cluster()) {
                show(subject, Some(&queue.name));
            }
        })
    }

    /// Sets the receivers inside the server, and the home of taps.
    pub(crate) fn set_inside(&mut self, inside: Table<Inside>, home: Rc<Home>) {
        (self.inside, self.home) = (inside, home);
        self.forget_all();
    }

    /// Sets the overflow rules for subscribers that are behind.
    pub(crate) fn set_overflow(&mut self, overflow: Option<Rc<Overflow>>) {
        self.overflow = overflow;
        self.forget_all();
    }

    /// Drops all cached targets: a connection takes messages in another way now.
    pub(crate) fn forget_all(&mut self) {
        self.cache.forget_all();
    }

    /// Returns the targets that a subject with this hash resolves to, and the work of the lookup.
    /// `takes_headers` is asked for a connection's slot.
    #[inline]
    pub(crate) fn targets_of(
        &mut self,
        subject: &[u8],
        hash: u64,
        subs: &Slab<Sub>,
        takes_headers: impl Fn(u32) -> bool,
    ) -> (Rc<Targets>, u64) {
        self.stats.lookups += 1;
        if let Some(targets) = self.cache.get(subject, hash) {
            self.stats.cache_hits += 1;
            return (targets, 0);
        }
        self.look_up(subject, hash, subs, takes_headers)
    }

    /// Returns the targets of a subject that the cache does not know.
    #[cold]
    fn look_up(
        &mut self,
        subject: &[u8],
        hash: u64,
        subs: &Slab<Sub>,
        takes_headers: impl Fn(u32) -> bool,
    ) -> (Rc<Targets>, u64) {
        let (targets, work) = self.resolve_counted(subject, hash, subs, takes_headers);
        (self.cache.insert(subject, hash, targets), work)
    }

    /// Returns the targets of a subject, anew, and the work of that.
    fn resolve_counted(
        &mut self,
        subject: &[u8],
        hash: u64,
        subs: &Slab<Sub>,
        takes_headers: impl Fn(u32) -> bool,
    ) -> (Targets, u64) {
        let (targets, places) = self.resolve(subject, subs, takes_headers);
        let targets = Targets { subject_hash: hash, ..targets };
        let in_queues: usize = targets.queues.iter().map(|queue| queue.local.len()).sum();
        let fanout = (targets.members + in_queues) as u64;
        self.stats.fanout_sum += fanout;
        self.stats.fanout_max = self.stats.fanout_max.max(fanout);
        let work = NODE_WORK * places as u64 + MEMBER_WORK * fanout;
        (targets, work)
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
            targets.shards.add(&filter.shards);
            for Behind { link, .. } in &filter.links {
                if !targets.links.contains(link) {
                    targets.links.push(*link);
                }
            }
            for &key in &filter.plain {
                let sub = &subs[key as usize];
                let headers = takes_headers(sub.conn);
                let at = *group_of.entry((sub.sid(), headers)).or_insert_with(|| {
                    // Most subjects have one group of one member.
                    if targets.groups.is_empty() {
                        targets.groups.reserve_exact(1);
                    }
                    let prefix = Prefix::new(subject, sub.sid());
                    let members = Vec::with_capacity(1);
                    targets.groups.push(SidGroup { prefix, headers, members });
                    targets.groups.len() - 1
                });
                targets.groups[at].members.push(Member { conn: sub.conn, sub: key });
                targets.members += 1;
            }
            for queue in filter.queues.iter() {
                join_queue(&mut targets.queues, queue, subs);
            }
        });
        self.inside.for_each_match(subject, |inside| {
            let exit = |outlet| Exit::of(outlet, subject);
            targets.exits.extend(inside.outlets.iter().filter_map(exit));
            targets.taps.extend_from_slice(&inside.taps);
        });
        if !self.taps.is_empty() {
            self.taps.for_each_match(subject, |taps| {
                for tap in taps.iter().map(|tap| Tap::Queued(*tap)) {
                    if !targets.taps.contains(&tap) {
                        targets.taps.push(tap);
                    }
                }
            });
        }
        self.tap_answers(subject, &mut targets);
        targets.shards_from_client = targets.shards.reachable_from(Kind::Client, subject);
        targets.price = targets.price();
        (targets, places)
    }
}

impl Interest {
    /// Adds the shard that keeps the request, for an answer to a request through this server.
    fn tap_answers(&self, subject: &[u8], targets: &mut Targets) {
        let Some((node, shard, _)) = parse_answer(subject) else { return };
        if *node != *self.home.node.as_bytes() || shard.index() >= self.home.shards {
            return;
        }
        if shard == self.home.shard {
            targets.taps.push(Tap::Answers);
        } else {
            targets.shards.set(Via::CLIENTS, shard, true);
        }
    }
}

fn join_queue(groups: &mut Named<QueueTargets>, queue: &Queue, subs: &Slab<Sub>) {
    let group = groups.entry(&queue.name, |_| {
        let name = Rc::clone(&queue.name);
        let (local, links, remote) = (Vec::new(), SmallVec::new(), SmallVec::new());
        QueueTargets { name, local, links, remote }
    });
    let members = queue.local.iter().map(|&sub| Member { conn: subs[sub as usize].conn, sub });
    group.local.extend(members);
    for &behind in &queue.links {
        match group.links.iter_mut().find(|other| other.is_same(&behind)) {
            Some(all) => all.members = all.members.saturating_add(behind.members),
            None => group.links.push(behind),
        }
    }
    for &remote in &queue.remote {
        match group.remote.iter_mut().find(|other| other.is_same(&remote)) {
            Some(all) => all.members = all.members.saturating_add(remote.members),
            None => group.remote.push(remote),
        }
    }
}

pub(crate) fn count(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::interest::ids::ShardSet;
    use crate::interest::reach::KINDS;

    impl Interest {
        /// Returns as `targets_of`, for a subject of which the hash is not known.
        pub(crate) fn targets(
            &mut self,
            subject: &[u8],
            subs: &Slab<Sub>,
            takes_headers: impl Fn(u32) -> bool,
        ) -> (Rc<Targets>, u64) {
            self.targets_of(subject, self.cache.hash(subject), subs, takes_headers)
        }
    }

    const FILTERS: [&str; 10] =
        ["a", "a.b", "a.*", "a.>", "*.b", ">", "b.>", "b.*.c", "_INBOX.1.*", "a.b.*"];
    const SUBJECTS: [&str; 7] = ["a", "a.b", "a.c", "b.b", "b.x.c", "_INBOX.1.z", "a.b.c"];

    fn plain(filter: &[u8]) -> Wanted<'_> {
        Wanted { filter, queue: None }
    }

    /// Returns the part of targets that a publisher can notice.
    fn reached(targets: &Targets) -> (Vec<SubKey>, [ShardSet; KINDS], Vec<LinkSlot>) {
        let members = targets.groups.iter().flat_map(|group| &group.members);
        let mut subs: Vec<SubKey> = members.map(|member| member.sub).collect();
        subs.sort_unstable();
        let mut links = targets.links.to_vec();
        links.sort_unstable();
        (subs, Kind::ALL.map(|kind| targets.shards.of(kind)), links)
    }

    proptest! {
        #[test]
        fn the_cache_never_knows_anything_else_than_the_table(
            changes in prop::collection::vec((0..FILTERS.len(), 0..8u8, 0..SUBJECTS.len()), 1..60),
        ) {
            let (mut interest, mut subs) = (Interest::new(7, &Rc::new(Tally::new(7))), Slab::new());
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
                        let link = LinkSlot::new(9, Kind::Route);
                        let (members, origin) = (u32::from(change == 4), Origin::PEER);
                        interest.set_link(Behind { link, members, origin }, plain(subject));
                    }
                    _ => {
                        let kind = if change > 5 { Kind::Route } else { Kind::Client };
                        let (shard, via) = (ShardId(3), Via::direct(kind));
                        let members = u32::from(change % 2 == 1);
                        interest.set_remote(Remote { shard, via, members }, plain(subject));
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
        let (mut interest, subs) = (Interest::new(7, &Rc::new(Tally::new(7))), Slab::new());
        let (hot, _) = interest.targets(b"prices.eur", &subs, |_| true);
        let remote = Remote { shard: ShardId(1), via: Via::CLIENTS, members: 1 };
        interest.set_remote(remote, plain(b"_INBOX.1.*"));
        assert!(Rc::ptr_eq(&hot, &interest.targets(b"prices.eur", &subs, |_| true).0));
    }
}
