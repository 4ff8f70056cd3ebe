//! Delivery to connections of this shard: the subscriptions that take a run, the way into their
//! outboxes, and the counters.
//!
//! Runs of less than 1 KiB (`COPY_RUN_BYTES_MAX`) are copied to each member of a group, unless a
//! payload has 1.5 KiB or more (`COPY_PAYLOAD_BYTES_MAX`); other runs are shared
//! (`Outbox::push_shared`). For a group of one the run is rendered directly into the outbox; with
//! large payloads and several sids only the beginnings of the messages are, and the rest is shared
//! by all sids.

use std::borrow::Cow;
use std::ops::Range;

use crate::auth::grants::Grants;
use crate::core::conn::Conn;
use crate::core::flushes::MANY;
use crate::core::message_trace::NotDelivered;
use crate::core::{Core, Delivered};
use crate::delivery::mqtt::RunPackets;
use crate::delivery::publish::{Audience, Source};
use crate::delivery::queue_groups::{self, Group, Picks};
use crate::delivery::{
    crossing, droppable, latency, mapped_replies, mqtt, relay, services, taps, traced,
};
use crate::interest::ids::{AccountId, ShardSet};
use crate::interest::targets::{Member, Prefix, SidGroup, Targets};
use crate::output::{Outbox, Segment, Spares};
use crate::proto::encode;
use crate::proto::gateway::plain_subject;
use crate::run::{COPY_RUN_BYTES_MAX, Message, Run};

/// Bytes of a payload from which on it is shared even in a short run.
const COPY_PAYLOAD_BYTES_MAX: usize = 1536;

/// Number of local receivers of a run, and of those with a long backlog.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    pub(crate) level_bytes: usize,
    pub(crate) members: usize,
    pub(crate) behind: usize,
}

impl Backlog {
    /// Counts a subscriber that got a delivery.
    pub(crate) fn count(&mut self, conn: &Conn) {
        if !conn.lag.is_slow() {
            self.members += 1;
            self.behind += usize::from(conn.outbox.pending_bytes() > self.level_bytes);
        }
    }
}

/// The way of a run into an outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// The run is rendered right there.
    Render,
    /// The run was rendered once and is copied.
    Copy,
    /// The run was rendered once and is referred to.
    Share,
    /// Only the beginnings of the messages are rendered there; the rest is referred to.
    Tails,
}

impl Way {
    /// Returns the cheapest way for `members` subscriptions with one sid; `others` says whether
    /// there are some with other sids.
    fn of(run: &Run<'_>, members: usize, others: bool) -> Self {
        let big = run.payload_bytes_max >= COPY_PAYLOAD_BYTES_MAX;
        match members {
            // Two pieces for each message: only where messages are big on the average.
            1 if others
                && !run.has_stored
                && run.payload_bytes >= COPY_PAYLOAD_BYTES_MAX * run.len() =>
            {
                Self::Tails
            }
            1 => Self::Render,
            _ if big || run.wire_bytes >= COPY_RUN_BYTES_MAX => Self::Share,
            _ => Self::Copy,
        }
    }
}

/// The parts of a run's messages behind the sid: equal for all sids.
#[derive(Debug, Default)]
struct Tails {
    /// Parts for receivers without headers, and with. The ranges are those of the messages.
    rendered: [Option<(Segment, Vec<Range<usize>>)>; 2],
}

impl Tails {
    fn push(
        &mut self,
        run: &Run<'_>,
        prefix: &Prefix,
        headers: bool,
        outbox: &mut Outbox,
        spares: &mut Spares,
    ) {
        let rendered = &mut self.rendered[usize::from(headers)];
        let (segment, ranges) = rendered.get_or_insert_with(|| render_tails(run, headers, spares));
        for (message, range) in run.messages.iter().zip(ranges) {
            let prefix = prefix.of(headers && message.publish.header.is_some());
            outbox.push(spares, |out| out.extend_from_slice(prefix));
            outbox.push_shared(segment, range.clone());
        }
    }
}

/// Parts of a run that are rendered once for all groups.
#[derive(Debug, Default)]
struct Once {
    /// The parts behind the sid, if there are several groups.
    tails: Option<Tails>,
    /// Packets, once a client of MQTT takes some.
    packets: Option<RunPackets>,
}

impl Once {
    /// Gives the memory back; what is on its way stays.
    fn end(self, spares: &mut Spares) {
        if let Some(Tails { rendered }) = self.tails {
            rendered.into_iter().flatten().for_each(|(segment, _)| spares.keep_segment(segment));
        }
        if let Some(packets) = self.packets {
            packets.end(spares);
        }
    }
}

fn render_tails(run: &Run<'_>, headers: bool, spares: &mut Spares) -> (Segment, Vec<Range<usize>>) {
    let mut ranges = Vec::with_capacity(run.len());
    let segment = spares.segment(|out| {
        for Message { publish, .. } in &run.messages {
            // The beginning, with an empty sid, stays behind.
            let start = out.len();
            encode::msg_prefix(out, headers && publish.header.is_some(), publish.subject, b"");
            let tail = out.len();
            out.truncate(start);
            encode::msg(out, publish, b"", headers);
            ranges.push(tail..out.len());
        }
    });
    (segment, ranges)
}

/// Delivers to local connections and stages for other shards.
pub(crate) fn deliver(core: &mut Core, source: &Source, run: &Run<'_>, targets: &Targets) {
    deliver_at_home(core, source, run, targets, Audience::All);
    if targets.leaves_account() {
        services::deliver_abroad(core, source, run, targets);
        taps::deliver_to_taps(core, source, run, targets);
    }
}

/// Delivers within the account, to `audience` only.
pub(super) fn deliver_at_home(
    core: &mut Core,
    source: &Source,
    run: &Run<'_>,
    targets: &Targets,
    audience: Audience<'_>,
) {
    let before = core.monitor.stats.delivered();
    if audience.has_plain() {
        deliver_plain(core, source, run, targets);
        if targets.are_plain_and_here() {
            return count_deliveries(core, source.account, before);
        }
    }
    let mut picks = Picks::default();
    for (at, group) in targets.queues.iter().enumerate() {
        if audience.has_group(&group.name) {
            queue_groups::deliver_to_group(core, source, run, Group { at, targets }, &mut picks);
        }
    }
    count_deliveries(core, source.account, before);
    let (mut shards, mut links) = (ShardSet::default(), Cow::default());
    if audience.has_plain() {
        shards = targets.shards_from(source.from, run.subject());
        links = relay::links_for(core, source, run, targets);
    }
    relay::deliver_to_links(core, source, run, &links, &targets.queues, picks.links);
    if !shards.is_empty() || !picks.shards.is_empty() {
        crossing::stage_run(core, source, run, targets, shards, &picks.shards);
    }
}

/// Counts for an account the messages and bytes delivered in it since `before`.
pub(super) fn count_deliveries(core: &mut Core, account: AccountId, before: Delivered) {
    let sent = &mut core.accounts.at(account).traffic;
    sent.out_msgs += core.monitor.stats.out_msgs - before.msgs;
    sent.out_bytes += core.monitor.stats.out_bytes - before.bytes;
}

pub(crate) fn deliver_plain(core: &mut Core, source: &Source, run: &Run<'_>, targets: &Targets) {
    let reached = if let Some(policy) = &targets.overflow {
        droppable::deliver_loosely(core, source, run, targets, policy)
    } else if core.tracer.trace.is_some() {
        deliver_traced(core, source, run, targets)
    } else {
        deliver_to_all::<false>(core, source, run, targets)
    };
    core.requests.place_first(reached);
    if run.has_reply && source.from.is_server() && !targets.groups.is_empty() {
        latency::note_far_requests(core, source, run);
    }
    if run.has_mapped {
        mapped_replies::remember_all(core, run, targets);
    }
}

#[cold]
fn deliver_traced(core: &mut Core, source: &Source, run: &Run<'_>, targets: &Targets) -> usize {
    deliver_to_all::<true>(core, source, run, targets)
}

/// Gives the run to all plain subscriptions here. Returns the number of its messages, from the
/// first, that have a receiver. Tracing is decided once for all of them.
fn deliver_to_all<const TRACED: bool>(
    core: &mut Core,
    source: &Source,
    run: &Run<'_>,
    targets: &Targets,
) -> usize {
    let mut backlog =
        Backlog { level_bytes: core.backlog_level_bytes(targets.members), ..Backlog::default() };
    core.out.is_for_many = targets.members > MANY;
    let mut reached = 0;
    if let [group] = &targets.groups[..] {
        let mut once = Once::default();
        reached = deliver_to_sid::<TRACED>(core, source, run, group, &mut once, &mut backlog);
        once.end(&mut core.spares);
    } else {
        let mut once = Once { tails: Some(Tails::default()), packets: None };
        for group in &targets.groups {
            let count = deliver_to_sid::<TRACED>(core, source, run, group, &mut once, &mut backlog);
            reached = reached.max(count);
        }
        once.end(&mut core.spares);
    }
    if backlog.behind * 2 > backlog.members {
        let members = targets.groups.iter().flat_map(|group| &group.members);
        core.wait_for(source.publisher, members, backlog.level_bytes, source.wait_ns());
    }
    reached
}

/// Gives the run to every member of a group, in the way that costs least. Returns the number of
/// messages, from the first, that some member takes.
fn deliver_to_sid<const TRACED: bool>(
    core: &mut Core,
    source: &Source,
    run: &Run<'_>,
    group: &SidGroup,
    once: &mut Once,
    backlog: &mut Backlog,
) -> usize {
    let SidGroup { prefix, headers, members } = group;
    let way = Way::of(run, members.len(), once.tails.is_some());
    let mut rendered: Option<Segment> = None;
    let mut reached = 0;
    for &member in members {
        let count = match offer(core, TRACED, source, run, member) {
            Ok(count) => count,
            Err(NotDelivered::InPackets) => {
                let packets = once.packets.get_or_insert_default();
                mqtt::deliver(core, run, member, packets);
                reached = run.len();
                continue;
            }
            Err(_) => continue,
        };
        reached = reached.max(count);
        let Some(conn) = core.conns.at_mut(member.conn) else { continue };
        let spares = &mut core.spares;
        match (if count < run.len() { Way::Render } else { way }, &mut once.tails) {
            (Way::Tails, Some(tails)) => {
                tails.push(run, prefix, *headers, &mut conn.outbox, spares);
            }
            (Way::Render | Way::Tails, _) => {
                conn.outbox.push(spares, |out| run.render(count, prefix, *headers, out));
            }
            (way, _) => {
                let segment = rendered.get_or_insert_with(|| {
                    spares.segment(|out| run.render(count, prefix, *headers, out))
                });
                if way == Way::Share {
                    conn.outbox.push_shared(segment, 0..segment.len());
                } else {
                    conn.outbox.push(spares, |out| out.extend_from_slice(segment));
                }
            }
        }
        backlog.count(conn);
        account_for(core, member, run, count, *headers);
    }
    if let Some(segment) = rendered {
        core.spares.keep_segment(segment);
    }
    reached
}

/// Returns the number of the run's messages, from the first, that `member` takes; at least one. The
/// result is traced, if the run is `traced`.
#[inline]
pub(crate) fn offer(
    core: &mut Core,
    traced: bool,
    source: &Source,
    run: &Run<'_>,
    member: Member,
) -> Result<usize, NotDelivered> {
    let taken = takes(core, source, run, member);
    if traced { traced::trace_egress(core, source, member, taken) } else { taken }
}

/// Returns the number of the run's messages, from the first, that `member` takes; at least one.
#[inline]
pub(crate) fn takes(
    core: &mut Core,
    source: &Source,
    run: &Run<'_>,
    member: Member,
) -> Result<usize, NotDelivered> {
    let Some(conn) = core.conns.at(member.conn) else { return Err(NotDelivered::Closed) };
    let sub = &core.subs[member.sub as usize];
    let left = usize::try_from(sub.max - sub.delivered).unwrap_or(usize::MAX);
    if !conn.takes.is_plain() {
        return takes_of_left(core, source, run, member, left);
    }
    match left.min(run.len()) {
        0 => Err(NotDelivered::Maximum),
        count => Ok(count),
    }
}

/// Returns as [`takes`] where more has to be looked at and the subscription may get `left`
/// messages.
fn takes_of_left(
    core: &mut Core,
    source: &Source,
    run: &Run<'_>,
    member: Member,
    left: usize,
) -> Result<usize, NotDelivered> {
    let Some(conn) = core.conns.at_mut(member.conn) else { return Err(NotDelivered::Closed) };
    let sub = &core.subs[member.sub as usize];
    let own = source.publisher.conn == conn.id && source.publisher.shard == core.shard;
    if !conn.takes_deliveries() {
        return Err(NotDelivered::Closed);
    }
    if own && !source.echo {
        return Err(NotDelivered::Echo);
    }
    let permissions = conn.permissions();
    if let Some(permissions) = permissions
        && permissions.filters_deliveries()
        && !permissions.may_receive(run.subject(), sub.queue())
    {
        return Err(NotDelivered::Denied);
    }
    let count = left.min(run.len());
    if count == 0 {
        return Err(NotDelivered::Maximum);
    }
    if permissions.is_some_and(Grants::allows_responses)
        && !core.tracer.trace.as_ref().is_some_and(|trace| trace.is_only())
        && let Some((permissions, checks)) = conn.login.checks()
    {
        let replies = run.messages[..count].iter().filter_map(|m| m.publish.reply);
        let replies = replies.map(plain_subject);
        replies.for_each(|reply| checks.on_request(permissions, reply, core.times.now));
    }
    let is_only = core.tracer.trace.as_ref().is_some_and(|trace| trace.is_only());
    if core.conns.at(member.conn).is_some_and(|conn| conn.mqtt.is_some()) && !is_only {
        return Err(NotDelivered::InPackets);
    }
    Ok(count)
}

/// Counts a delivery that is in the member's outbox.
#[inline]
pub(super) fn account_for(
    core: &mut Core,
    member: Member,
    run: &Run<'_>,
    count: usize,
    headers: bool,
) {
    if let Some(tracing) = core.settings.tracing
        && let Some(conn) = core.conns.at(member.conn).filter(|conn| conn.mqtt.is_none())
    {
        let sid = core.subs[member.sub as usize].sid();
        tracing.deliveries(conn, sid, run, count, headers);
    }
    let payload_bytes = run.delivered_bytes(count, headers);
    let Some(conn) = core.conns.at_mut(member.conn) else { return };
    let sub = &mut core.subs[member.sub as usize];
    sub.delivered += count as u64;
    if sub.delivered >= sub.max {
        core.endings.ended.push(member.sub);
    }
    conn.traffic.out_msgs += count as u64;
    conn.traffic.out_bytes += payload_bytes as u64;
    core.monitor.stats.out_msgs += count as u64;
    core.monitor.stats.out_bytes += payload_bytes as u64;
    if conn.outbox.pending_bytes() > core.settings.limits.pending_bytes_max {
        // The connection gets no more, while others still do.
        conn.takes.doom();
        core.endings.doomed.push(conn.id);
    }
    conn.on_delivered(&core.times, &mut core.out.flushes, !core.out.is_for_many);
}
