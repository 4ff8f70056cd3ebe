//! Queue messages without a local receiver: another shard, or another server, gets them.
//!
//! A queue group is its name over all filters that match. For each message one member is drawn at
//! random over all members on all shards. A local draw starts at a random member and goes on to
//! the next one that can take the message. A remote draw notes group and message (`ShardPick`),
//! which travel with the run. If no member there can take a message, `forward` passes it
//! on to a shard with members that it has not visited, or to a peer that has some (`Resort`).
//! Without any, the message is lost and counted (`Stats::queue_msgs_lost`). A forwarded message
//! may arrive after later messages of its publisher.

use smallvec::SmallVec;

use crate::core::Core;
use crate::core::message_trace::NotDelivered;
use crate::delivery::deliver::{self, Backlog};
use crate::delivery::publish::Source;
use crate::delivery::relay::LinkPick;
use crate::delivery::{index, latency, mapped_replies};
use crate::interest::ids::ShardId;
use crate::interest::reach::{Kind, LinkSlot, Reach, may_reach};
use crate::interest::targets::{QueueTargets, Targets};
use crate::interest::{Behind, Remote};
use crate::run::Run;

/// A queue group that a subject resolves to, by its position among them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Group<'a> {
    pub(crate) at: usize,
    pub(crate) targets: &'a Targets,
}

impl<'a> Group<'a> {
    fn queue(self) -> &'a QueueTargets {
        &self.targets.queues[self.at]
    }
}

/// The place of a member of a queue group that is not connected here.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Away {
    /// Another shard, or a link of that.
    Shard(ShardId),
    /// An own link.
    Link(LinkSlot),
}

/// The members that are considered for a message to a queue group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resort {
    /// Clients on other shards, and those of other servers if this one has the message from a
    /// client.
    First,
    /// Leaf nodes, and members anywhere if another server has named the group.
    Last,
    /// Members anywhere, though plain subscribers there may have had the message: as between
    /// nats-servers, a message that comes twice is better than one that is lost. Peers of this kind
    /// know better.
    Any,
}

impl Away {
    fn behind(behind: &Behind) -> (Self, u64) {
        (Self::Link(behind.link), u64::from(behind.members))
    }

    /// Returns the places that are behind own links.
    pub(crate) fn links(places: &Places<Self>) -> Places<LinkSlot> {
        let link = |(away, members): &(Self, u64)| match away {
            Self::Link(link) => Some((*link, *members)),
            Self::Shard(_) => None,
        };
        places.iter().filter_map(link).collect()
    }

    /// Returns the places that are on other shards.
    pub(crate) fn shards(places: &Places<Self>) -> Places<ShardId> {
        let shard = |(away, members): &(Self, u64)| match away {
            Self::Shard(shard) => Some((*shard, *members)),
            Self::Link(_) => None,
        };
        places.iter().filter_map(shard).collect()
    }
}

/// A message of a run, from 0, for a member of a queue group on another shard.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ShardPick {
    pub(crate) shard: ShardId,
    /// The group's position among those that the subject resolves to.
    pub(crate) group: u32,
    pub(crate) at: u32,
}

/// Picks of a run's queue messages for members that are not here: one group after the other, each
/// in the order of messages.
#[derive(Debug, Default)]
pub(crate) struct Picks {
    pub(crate) shards: SmallVec<[ShardPick; 4]>,
    pub(crate) links: Vec<LinkPick>,
}

/// Places where members of a queue group are: links or shards, and how many are there.
pub(crate) type Places<T> = SmallVec<[(T, u64); 4]>;

/// Returns the number of members at all places.
pub(crate) fn members<T>(places: &Places<T>) -> u64 {
    places.iter().map(|(_, members)| members).sum()
}

/// Draws one of the places at random by their members; `None` if there are none.
pub(crate) fn draw<T: Copy>(rng: &mut fastrand::Rng, places: &Places<T>) -> Option<T> {
    let all = members(places);
    let mut pick = (all > 0).then(|| rng.u64(..all))?;
    for (place, members) in places {
        match pick.checked_sub(*members) {
            Some(rest) => pick = rest,
            None => return Some(*place),
        }
    }
    None
}

/// Returns the places of members of a group that are not connected here: shards that were not
/// visited, and own links.
pub(crate) fn places(
    core: &Core,
    source: &Source,
    group: Group<'_>,
    resort: Resort,
) -> Places<Away> {
    let Source { from, named_by, visited, .. } = *source;
    let is_late = source.is_late();
    let is_over = match resort {
        Resort::First => false,
        Resort::Last => source.is_at_its_end(),
        Resort::Any => !is_late || source.is_at_its_end(),
    };
    if is_over {
        return Places::new();
    }
    let (targets, QueueTargets { links, remote, .. }) = (group.targets, group.queue());
    let takes = |behind: &Behind| {
        let (via, slot) = (behind.via(), behind.link.slot());
        let counts = match resort {
            _ if !via.may_be_chosen(from, named_by) => false,
            Resort::First => via.is_first_choice(from),
            // Other clusters come after all: see `place_far`.
            _ if via.kind == Kind::Gateway => false,
            _ if via.is_to_leaves() => true,
            Resort::Last => !via.is_first_choice(from),
            Resort::Any => true,
        };
        let is_known_apart =
            || targets.is_only_for(behind.link, group.at) || tells_passed_on(core, slot);
        counts
            && is_open(core, slot)
            && (!source.is_late_for(core, behind.link) || resort == Resort::Any || is_known_apart())
            && (resort == Resort::First || may_go_back(core, source, slot))
    };
    let links = links.iter().filter(|behind| takes(behind)).map(Away::behind);
    let counts = |remote: &&Remote| {
        let is_told = is_late && targets.shards.of(Kind::Route).contains(remote.shard);
        if !remote.via.may_be_chosen(from, named_by) {
            return false;
        }
        let is_first = remote.via.is_first_choice(from);
        match resort {
            Resort::First if is_told => remote.via.kind == Kind::Client,
            Resort::First => is_first,
            Resort::Last => !is_told && !is_first,
            Resort::Any => true,
        }
    };
    let is_near =
        |remote: &&Remote| remote.via.kind != Kind::Gateway && !visited.contains(remote.shard);
    let shards = remote.iter().filter(is_near).filter(counts);
    let shards = shards.map(|remote| (Away::Shard(remote.shard), u64::from(remote.members)));
    links.chain(shards).collect()
}

/// Draws one of those places at random; `None` if there are none.
fn place_away(core: &mut Core, source: &Source, group: Group<'_>, resort: Resort) -> Option<Away> {
    let places = places(core, source, group, resort);
    draw(&mut core.random.rng, &places)
}

/// Returns the nearest other cluster with members of a group, or the shard that knows it; `None` if
/// there is no such cluster, or the message is not for other clusters.
fn place_far(core: &Core, source: &Source, group: Group<'_>) -> Option<Away> {
    if !matches!(may_reach(source.from, Kind::Gateway), Reach::Yes) {
        return None;
    }
    let (targets, QueueTargets { links, remote, .. }) = (group.targets, group.queue());
    let takes = |link: &LinkSlot| {
        let slot = link.slot();
        let is_known_apart = || targets.is_only_for(*link, group.at) || tells_passed_on(core, slot);
        link.kind() == Kind::Gateway
            && is_open(core, slot)
            && (!source.is_late() || is_known_apart())
    };
    let links = links.iter().map(|behind| behind.link).filter(takes);
    let nearest = links.min_by_key(|link| distance(core, link.slot()));
    let is_there = |remote: &&Remote| {
        remote.via.kind == Kind::Gateway && !source.visited.contains(remote.shard)
    };
    let shard = || remote.iter().find(is_there).map(|remote| Away::Shard(remote.shard));
    nearest.map(Away::Link).or_else(shard)
}

/// Returns the nanoseconds of a round trip over a link; a link whose is not known is far.
fn distance(core: &Core, slot: u32) -> u64 {
    let rtt = core.conns.at(slot).map(|conn| conn.liveness.rtt);
    rtt.filter(|rtt| *rtt > 0).unwrap_or(u64::MAX)
}

/// Whether a message may go to the server behind a link, which it may have come from: over this
/// link, or over one before it that may have been another shard's.
fn may_go_back(core: &Core, source: &Source, slot: u32) -> bool {
    let link = core.conns.at(slot).and_then(|conn| conn.link.as_ref());
    source.unwanted_by.is_none() || source.unwanted_by != link.map(|link| link.server)
}

/// Whether the peer distinguishes messages that were passed on for queue groups from others.
pub(crate) fn tells_passed_on(core: &Core, slot: u32) -> bool {
    let link = core.conns.at(slot).and_then(|conn| conn.link.as_ref());
    link.is_some_and(|link| link.tells_passed_on())
}

pub(crate) fn is_open(core: &Core, slot: u32) -> bool {
    core.conns.at(slot).is_some_and(|conn| conn.is_open())
}

/// Gives each message of the run to one member of the group, by its number: here, on another
/// shard, or behind a link.
pub(super) fn deliver_to_group(
    core: &mut Core,
    source: &Source,
    run: &Run<'_>,
    group: Group<'_>,
    picks: &mut Picks,
) {
    core.out.is_for_many = false;
    let queue = group.queue();
    let elsewhere = places(core, source, group, Resort::First);
    let (local, away) = (queue.local.len() as u64, members(&elsewhere));
    let mut one = Run::default();
    for (at, message) in run.messages.iter().enumerate() {
        let is_local = core.random.rng.u64(..(local + away).max(1)) < local
            && deliver_to_one(core, source, one.only(message), queue);
        if is_local {
            core.requests.place_at(at);
            continue;
        }
        let place = draw(&mut core.random.rng, &elsewhere)
            .or_else(|| place_away(core, source, group, Resort::Last))
            .or_else(|| place_far(core, source, group))
            .or_else(|| place_away(core, source, group, Resort::Any));
        match place {
            Some(Away::Link(link)) => {
                picks.links.push(LinkPick { link, group: index(group.at), at: index(at) });
            }
            Some(Away::Shard(shard)) => {
                picks.shards.push(ShardPick { shard, group: index(group.at), at: index(at) });
            }
            None => {}
        }
    }
}

/// Gives a message that was sent here for a group to a local member of it, or picks a link for the
/// caller. `false` if no member here can take it.
pub(crate) fn place(
    core: &mut Core,
    source: &Source,
    one: &Run<'_>,
    group: Group<'_>,
    at: u32,
    picks: &mut Picks,
) -> bool {
    let queue = group.queue();
    let links = Away::links(&places(core, source, group, Resort::First));
    let (local, behind_links) = (queue.local.len() as u64, members(&links));
    let prefers_local = behind_links == 0 || core.random.rng.u64(..local + behind_links) < local;
    if prefers_local && deliver_to_one(core, source, one, queue) {
        core.requests.place_at(at as usize);
        return true;
    }
    let link = draw(&mut core.random.rng, &links).or_else(|| {
        let last = Away::links(&places(core, source, group, Resort::Last));
        draw(&mut core.random.rng, &last).or_else(|| match place_far(core, source, group) {
            Some(Away::Link(link)) => Some(link),
            _ => None,
        })
    });
    let pick = link.map(|link| LinkPick { link, group: index(group.at), at });
    picks.links.extend(pick);
    pick.is_some()
}

/// Gives a message to one local member: a random one, or the next that can take it.
fn deliver_to_one(core: &mut Core, source: &Source, one: &Run<'_>, group: &QueueTargets) -> bool {
    if group.local.is_empty() {
        return false;
    }
    let traced = core.tracer.trace.is_some();
    let level_bytes = core.backlog_level_bytes(group.local.len());
    let mut backlog = Backlog { level_bytes, ..Backlog::default() };
    let first = core.random.rng.usize(..group.local.len());
    let (head, tail) = group.local.split_at(first);
    for &member in tail.iter().chain(head) {
        match deliver::offer(core, traced, source, one, member) {
            Ok(_) => {}
            Err(NotDelivered::OnlyTraced) => return true,
            Err(_) => continue,
        }
        let Some(conn) = core.conns.at_mut(member.conn) else { continue };
        let headers = conn.connect.headers;
        let sub = &core.subs[member.sub as usize];
        conn.outbox.push(&mut core.spares, |out| one.render_for(sub.sid(), headers, out));
        backlog.count(conn);
        deliver::account_for(core, member, one, 1, headers);
        if one.has_reply && source.from.is_server() {
            latency::note_far_requests(core, source, one);
        }
        if one.has_mapped {
            mapped_replies::remember(core, one, member);
        }
        if backlog.behind > 0 {
            core.wait_for(source.publisher, [&member].into_iter(), level_bytes, source.wait_ns());
        }
        return true;
    }
    false
}

/// Forwards a message that no member picked here can take: to another shard, or to a member that
/// may have had it.
pub(crate) fn forward(
    core: &mut Core,
    source: &Source,
    at: u32,
    group: Option<Group<'_>>,
    picks: &mut Picks,
) {
    let away = group.and_then(|group| {
        [Resort::First, Resort::Last].into_iter().find_map(|resort| {
            let shards = Away::shards(&places(core, source, group, resort));
            draw(&mut core.random.rng, &shards).map(Away::Shard)
        })
    });
    let away = away.or_else(|| place_far(core, source, group?));
    let away = away.or_else(|| place_away(core, source, group?, Resort::Any));
    match (away, group) {
        (Some(Away::Shard(shard)), Some(group)) => {
            picks.shards.push(ShardPick { shard, group: index(group.at), at });
        }
        (Some(Away::Link(link)), Some(group)) => {
            picks.links.push(LinkPick { link, group: index(group.at), at });
        }
        _ => core.monitor.stats.queue_msgs_lost += 1,
    }
}
