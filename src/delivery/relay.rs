//! Runs to other servers: rendered once per link, or once for all links that get identical bytes.
//!
//! `deliver_to_links` names the queue groups of which members behind a link were picked. A pick is
//! by weight, in two steps: first a shard or one of its own links, then, on that shard, a client or
//! a link. A run from one link leaves by another as far as `interest::reach` allows: a run from a
//! route never leaves by another route. The exception is a queue message that was named for a group
//! without a client left here: it goes on to another peer, never back to its origin. Members of a
//! queue group at a leaf node of a peer come after all others (`Via::is_first_choice`).

use std::borrow::Cow;

use smallvec::SmallVec;

use crate::core::Core;
use crate::delivery::deliver::Backlog;
use crate::delivery::mapped_replies;
use crate::delivery::publish::Source;
use crate::delivery::traced::{self, Numbered};
use crate::interest::ids::{AccountId, Publisher};
use crate::interest::reach::{Kind, LinkSlot, reaches};
use crate::interest::targets::{Member, QueueTargets, Targets};
use crate::link::Link;
use crate::output::Segment;
use crate::proto::route::{self, MsgHead, PassedOn};
use crate::run::Run;

/// Wire bytes from which on a run is shared by several routes; a shorter one is copied to each.
const COPY_RUN_BYTES_MAX: usize = 1024;

/// A run as it is rendered for several links: without headers or with; in each of the forms that
/// [`form_of`] numbers.
type Renderings = [[Option<Segment>; FORMS]; 2];

/// Number of forms of a message between servers.
const FORMS: usize = 4;

/// Returns the number of a form.
fn form_of(head: MsgHead<'_>) -> usize {
    match head {
        MsgHead::Route(b"") => 0,
        MsgHead::Route(_) => 1,
        MsgHead::Leaf => 2,
        MsgHead::OfLeaves { .. } => 3,
    }
}

/// The account of a run, and the cluster of the leaf nodes that it is of, if that has a name.
#[derive(Debug, Clone, Copy)]
struct Naming<'a> {
    account: &'a [u8],
    origin: Option<&'a [u8]>,
}

impl<'a> Naming<'a> {
    /// Returns the head of the run's messages on a link.
    fn head(self, link: &Link) -> MsgHead<'a> {
        let account = link.written_account(self.account);
        match self.origin {
            _ if link.leaf().is_some() => MsgHead::Leaf,
            Some(origin) if link.peer.lnoc => MsgHead::OfLeaves { origin, account },
            _ => MsgHead::Route(account),
        }
    }
}

/// A message of a run, from 0, that goes over a link to a member of a queue group.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LinkPick {
    pub(crate) link: LinkSlot,
    /// The group's position among those that the subject resolves to.
    pub(crate) group: u32,
    pub(crate) at: u32,
}

/// The part of a run that goes over a link.
#[derive(Debug, Clone, Copy)]
struct Picked<'a> {
    run: &'a Run<'a>,
    /// Whether several links get all of the run.
    is_shared: bool,
    /// Whether all of the run goes: there is plain interest.
    is_plain: bool,
    /// Mark for the peer on a run that only queue groups may get.
    passed_on: Option<PassedOn>,
    /// Picks for queue groups behind the link, in order.
    mine: &'a [LinkPick],
    groups: &'a [QueueTargets],
}

fn render(run: &Run<'_>, head: MsgHead<'_>, headers: bool, out: &mut Vec<u8>) {
    let start = out.len();
    route::msg_prefix(out, false, head, run.subject());
    out.reserve(run.wire_bytes() + run.len() * (out.len() - start));
    let is_of_leaves = matches!(head, MsgHead::OfLeaves { .. });
    let prefix: SmallVec<[u8; 96]> = SmallVec::from_slice(&out[start..]);
    out.truncate(start);
    for message in run.publishes() {
        match (&message.header, message.tail) {
            (None, Some(tail)) if !is_of_leaves => {
                out.extend_from_slice(&prefix);
                out.extend_from_slice(tail);
            }
            _ => route::msg(out, head, message, &[], headers),
        }
    }
}

/// Renders the messages of `mine` with the names of their groups, and the others if it is plain.
/// Returns their number, and the bytes of their payloads.
fn render_picked(
    head: MsgHead<'_>,
    headers: bool,
    picked: Picked<'_>,
    out: &mut Vec<u8>,
) -> (usize, usize) {
    let Picked { run, is_plain, passed_on, mine, groups, .. } = picked;
    let mut rest = mine;
    let (mut count, mut bytes) = (0, 0);
    for (at, message) in run.publishes().enumerate() {
        let picked = rest.iter().take_while(|pick| pick.at as usize == at).count();
        let (now, later) = rest.split_at(picked);
        rest = later;
        if is_plain || !now.is_empty() {
            let name = |pick: &LinkPick| &*groups[pick.group as usize].name;
            let mut queues: SmallVec<[&[u8]; 4]> = now.iter().map(name).collect();
            if let Some(how) = passed_on {
                route::pass_on(&mut queues, how);
            }
            route::msg(out, head, message, &queues, headers);
            count += 1;
            bytes += message.payload.len();
        }
    }
    (count, bytes)
}

/// Returns the own links that a run goes over for plain interest.
#[inline]
pub(super) fn links_for<'a>(
    core: &Core,
    source: &Source,
    run: &Run<'_>,
    targets: &'a Targets,
) -> Cow<'a, [LinkSlot]> {
    if targets.links.is_empty() {
        return Cow::default();
    }
    let newcomers = &core.links.newcomers;
    match source.from {
        Kind::Client if newcomers.is_empty() && !core.links.gateways.is_optimistic => {
            Cow::Borrowed(&targets.links)
        }
        from => {
            let Publisher { shard, conn } = source.publisher;
            let goes = |link: &LinkSlot| {
                let is_senders = shard == core.shard && conn.slot == link.slot();
                !is_senders
                    && !newcomers.is_new(link.slot(), source.staged_by)
                    && reaches(from, link.kind(), run.subject())
                    && !is_refused(core, *link, source.account, run.subject())
                    && !has_served(core, source, *link)
            };
            Cow::Owned(targets.links.iter().copied().filter(goes).collect())
        }
    }
}

/// Whether a peer that is sent messages without interest in them does not want these.
fn is_refused(core: &Core, link: LinkSlot, account: AccountId, subject: &[u8]) -> bool {
    let of_gateway = link.kind() == Kind::Gateway && core.links.gateways.is_optimistic;
    let conn = core.conns.at(link.slot()).filter(|_| of_gateway);
    let peer = conn.and_then(|conn| conn.link.as_ref()).and_then(|link| link.gateway());
    peer.is_some_and(|peer| peer.refuses(core.accounts.name(account).as_bytes(), subject))
}

/// Whether a leaf node has the message already, because it is of its cluster.
fn has_served(core: &Core, source: &Source, link: LinkSlot) -> bool {
    let Some(of) = source.named_by.filter(|_| link.kind() == Kind::Leaf) else { return false };
    let link = core.conns.at(link.slot()).and_then(|conn| conn.link.as_ref());
    link.and_then(|link| link.leaf()).is_some_and(|leaf| of.has_served(leaf.origin))
}

/// Sends the run over the own links in `plain`, and the picked messages over those in `picks`: one
/// copy of each message for each link.
#[inline]
pub(super) fn deliver_to_links(
    core: &mut Core,
    source: &Source,
    run: &Run<'_>,
    plain: &[LinkSlot],
    groups: &[QueueTargets],
    picks: Vec<LinkPick>,
) {
    if !plain.is_empty() || !picks.is_empty() {
        deliver_to_some(core, source, run, plain, groups, picks);
    }
}

fn deliver_to_some(
    core: &mut Core,
    source: &Source,
    run: &Run<'_>,
    plain: &[LinkSlot],
    groups: &[QueueTargets],
    mut picks: Vec<LinkPick>,
) {
    let traced = core.tracer.trace.is_some();
    let account = core.accounts.name(source.account);
    let origin = source.named_by.and_then(|of| core.links.clusters.name(of)).cloned();
    let origin = origin.as_ref().filter(|_| source.from == Kind::Leaf);
    let naming = Naming { account: account.as_bytes(), origin: origin.map(|name| name.as_bytes()) };
    let replies = mapped_replies::mapped(core, source.account, run);
    let abroad = replies.as_ref().map(|replies| run.with_replies(replies));
    picks.sort_by_key(|pick| (pick.link, pick.at));
    let mut shared = Renderings::default();
    let mut backlog = Backlog { level_bytes: core.backlog_level_bytes(1), ..Backlog::default() };
    let mut members: SmallVec<[Member; 4]> = SmallVec::new();
    let picked = picks.chunk_by(|one, other| one.link == other.link);
    let picked_only = picked.clone().map(|mine| mine[0].link);
    let picked_only = picked_only.filter(|link| !plain.contains(link));
    for link in plain.iter().copied().chain(picked_only) {
        let mine = picked.clone().find(|mine| mine[0].link == link).unwrap_or_default();
        let (slot, is_plain) = (link.slot(), plain.contains(&link));
        let abroad = abroad.as_ref().filter(|_| link.kind() == Kind::Gateway);
        let run = abroad.unwrap_or(run);
        let numbered = if traced { traced::trace_hop(core, slot, run) } else { None };
        if traced && numbered.is_none() {
            continue;
        }
        let numbered = numbered.as_ref().map(Numbered::run);
        let is_shared = mine.is_empty() && plain.len() > 1 && !traced && abroad.is_none();
        let is_late = source.is_late_for(core, link) && !is_plain;
        let passed_on = is_late.then(|| source.passed_on());
        let run = numbered.as_ref().unwrap_or(run);
        let picked = Picked { run, is_shared, is_plain, passed_on, mine, groups };
        if relay(core, naming, slot, picked, &mut shared) {
            core.conns.at(slot).into_iter().for_each(|conn| backlog.count(conn));
            members.push(Member { conn: slot, sub: 0 });
            core.requests.place_first(if is_plain { run.len() } else { 0 });
            mine.iter().for_each(|pick| core.requests.place_at(pick.at as usize));
        }
    }
    shared.into_iter().flatten().flatten().for_each(|segment| core.spares.keep_segment(segment));
    if backlog.behind * 2 > backlog.members {
        core.wait_for(source.publisher, members.iter(), backlog.level_bytes, source.wait_ns());
    }
}

/// Sends the part of a run for one link; `false` if the link does not take deliveries.
fn relay(
    core: &mut Core,
    naming: Naming<'_>,
    slot: u32,
    mut picked: Picked<'_>,
    shared: &mut Renderings,
) -> bool {
    let run = picked.run;
    let Some(conn) = core.conns.at_mut(slot).filter(|conn| conn.takes_deliveries()) else {
        return false;
    };
    let Some(link) = &conn.link else { return false };
    if let Some(leaf) = link.leaf()
        && !leaf.gates.sends(conn.permissions(), run.subject())
    {
        return false;
    }
    let (headers, pending_bytes_max) = (link.headers, link.pending_bytes_max);
    let spares = &mut core.spares;
    picked.passed_on = picked.passed_on.filter(|_| link.tells_passed_on());
    let head = naming.head(link);
    let (mut count, mut bytes) = (run.len(), run.payload_bytes());
    let whole = |out: &mut Vec<u8>| render(run, head, headers, out);
    if picked.is_shared {
        let shared = &mut shared[usize::from(headers)][form_of(head)];
        let segment = shared.get_or_insert_with(|| spares.segment(whole));
        if run.wire_bytes() < COPY_RUN_BYTES_MAX {
            conn.outbox.push(spares, |out| out.extend_from_slice(segment));
        } else {
            conn.outbox.push_shared(segment, 0..segment.len());
        }
    } else if picked.mine.is_empty() {
        conn.outbox.push(spares, whole);
    } else {
        conn.outbox.push(spares, |out| {
            (count, bytes) = render_picked(head, headers, picked, out);
        });
    }
    conn.traffic.out_msgs += count as u64;
    conn.traffic.out_bytes += bytes as u64;
    core.monitor.stats.routed.out_msgs += count as u64;
    core.monitor.stats.routed.out_bytes += bytes as u64;
    if let Some((user, checks)) = conn.login.checks()
        && user.allows_responses()
    {
        let replies = run.publishes().filter_map(|publish| publish.reply);
        replies.for_each(|reply| checks.on_request(user, reply, core.times.now));
    }
    if conn.outbox.pending_bytes() > pending_bytes_max {
        core.endings.doomed.push(conn.id);
        conn.takes.doom();
    }
    conn.on_delivered(&core.times, &mut core.out.flushes, true);
    true
}
