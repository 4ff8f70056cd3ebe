//! Publication of a run: from its publisher to all its receivers.
//!
//! A run is a row of consecutive publishes of one connection to one subject. It is matched once,
//! rendered once for each group of subscriptions with the same sid, and staged once for each shard
//! that has to deliver it too.

use crate::delivery::taps;
use std::rc::Rc;

use crate::core::backpressure::{self, ROUTE_WAIT_NS_MAX, WAIT_NS_MAX};
use crate::core::{Core, message_trace};
use crate::delivery::traced::{self, Traced};
use crate::delivery::{deliver, latency, mapped_replies, no_responders, services};
use crate::interest::ids::Publisher;
use crate::interest::ids::{AccountId, ConnId, Origin, ServerKey, ShardId, ShardSet};
use crate::interest::reach::{Kind, LinkSlot, Reach, may_reach};
use crate::interest::subscription::NO_MAX;
use crate::interest::targets::Targets;
use crate::proto::route::{self, PassedOn};
use crate::proto::{Publish, gateway};
use crate::run::Run;

/// Facts of the publisher that the beginning of a run depends on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PublisherInfo {
    pub(crate) account: AccountId,
    /// Whether a request without receivers is answered with a status (`no_responders`).
    pub(crate) wants_status: bool,
}

/// The source of a run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source {
    pub(crate) account: AccountId,
    pub(crate) publisher: Publisher,
    /// Whether the publisher gets its own messages.
    pub(crate) echo: bool,
    /// The server that the run came from, if it wants none of its messages back: it would not know
    /// the publisher any more, which may want no echo.
    pub(crate) unwanted_by: Option<ServerKey>,
    /// The kind of the connection by which the run came.
    pub(crate) from: Kind,
    /// Origin of the run, if another server sent it and has named queue groups: a message without a
    /// client of this server to take it goes on to members elsewhere, but not back to its origin.
    /// `None` for a run that has gone on before.
    pub(crate) named_by: Option<Origin>,
    /// Whether another server has passed the run on for queue groups alone.
    pub(crate) is_passed_on: bool,
    /// The shard that has found the receivers of the run: this one, or the one that has staged it.
    pub(crate) staged_by: ShardId,
    /// Shards that could not place a queue message of this run.
    pub(crate) visited: ShardSet,
    /// Accounts that the run has come through.
    pub(crate) hops: u8,
}

impl Source {
    /// The source of a client of `shard` that publishes in its account.
    pub(crate) fn new(account: AccountId, shard: ShardId, conn: ConnId) -> Self {
        let publisher = Publisher { shard, conn };
        Self {
            account,
            publisher,
            echo: true,
            unwanted_by: None,
            from: Kind::Client,
            named_by: None,
            is_passed_on: false,
            staged_by: shard,
            visited: ShardSet::default(),
            hops: 0,
        }
    }

    /// Returns the nanoseconds that the publisher may wait for subscribers that are behind.
    pub(crate) fn wait_ns(&self) -> u64 {
        if self.from.is_server() { ROUTE_WAIT_NS_MAX } else { WAIT_NS_MAX }
    }

    /// Whether plain subscribers everywhere may have had the run: it is passed on for a queue
    /// group.
    pub(crate) fn is_late(&self) -> bool {
        self.from.has_served_cluster() || self.is_passed_on || !self.visited.is_empty()
    }

    /// Whether plain subscribers behind a link of this shard may have had the run: it is late, or
    /// may have gone to their server over the link before that one.
    pub(crate) fn is_late_for(&self, core: &Core, link: LinkSlot) -> bool {
        let goes_there = matches!(may_reach(self.from, link.kind()), Reach::Yes | Reach::Others);
        let is_first_there = goes_there && self.visited.is_empty() && !self.is_passed_on;
        (self.is_late() && !is_first_there)
            || core.links.newcomers.is_new(link.slot(), self.staged_by)
    }

    /// Returns how this server passes the run on for queue groups.
    pub(crate) fn passed_on(&self) -> PassedOn {
        if self.from.has_served_cluster() { PassedOn::ByOther } else { PassedOn::ByFirst }
    }

    /// Whether other servers have passed the run on for queue groups: it goes to clients only.
    pub(crate) fn is_at_its_end(&self) -> bool {
        self.from.has_served_cluster() && self.named_by.is_none()
    }
}

/// The queue groups of which another server has named one member each to get a run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NamedGroups<'a> {
    /// Origin of the run.
    pub(crate) by: Origin,
    /// Names of the groups as on the wire: see [`route::queue_names`].
    pub(crate) names: &'a [u8],
}

/// The subscribers that may get a run.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Audience<'a> {
    All,
    /// Plain subscribers, and the queue groups of these names.
    AndGroups(&'a [u8]),
    /// The queue groups of these names: other subscribers have had it.
    Groups(&'a [u8]),
}

impl Audience<'_> {
    pub(crate) fn has_plain(self) -> bool {
        !matches!(self, Self::Groups(_))
    }

    pub(crate) fn has_group(self, name: &[u8]) -> bool {
        match self {
            Self::All => true,
            Self::AndGroups(names) | Self::Groups(names) => {
                route::queue_names(names).any(|one| *one == *name)
            }
        }
    }
}

/// Handles a run from a local connection, which has permission for all of it.
pub(crate) fn publish(core: &mut Core, from: ConnId, run: &Run<'_>) {
    let Some(conn) = core.conns.get_mut(from) else { return };
    conn.traffic.in_msgs += run.len() as u64;
    conn.traffic.in_bytes += run.payload_bytes as u64;
    let received = &mut core.accounts.at(conn.account).traffic;
    received.in_msgs += run.len() as u64;
    received.in_bytes += run.payload_bytes as u64;
    core.monitor.stats.in_msgs += run.len() as u64;
    core.monitor.stats.in_bytes += run.payload_bytes as u64;
    let account = conn.account;
    let source = &Source { echo: conn.connect.echo, ..Source::new(account, core.shard, from) };
    let wants_status = conn.connect.no_responders && run.has_reply;
    let (pending_before, staged_epoch) = (conn.outbox.pending_bytes(), conn.staged_epoch);
    // A connection without subscriptions gets nothing of its own.
    let may_feed_itself = !conn.subs.is_empty();
    let resolved;
    let targets = match &run.aim {
        Some((_, targets)) => targets,
        None => {
            resolved = core.targets(account, run.subject());
            &resolved
        }
    };
    core.charge(run, targets);
    let is_apart =
        may_feed_itself && (staged_epoch > core.lanes.settled_epoch || may_stage(core, targets));
    if !core.requests.measured.halves.is_empty() {
        latency::on_near_answer(core, source, run);
    }
    if !core.links.gateways.replies.is_empty() && mapped_replies::answer(core, source, run) {
        return core.settle_deliveries();
    }
    if is_apart {
        begin_echo(core, from);
    }
    if wants_status && !run.is_certain.unwrap_or_else(|| is_certain(core, targets)) {
        if targets.leaves_account() {
            // Each message is another one beyond.
            let mut one = Run::default();
            for message in &run.messages {
                no_responders::request(core, from, source, one.only(message), targets);
            }
        } else {
            no_responders::request(core, from, source, run, targets);
        }
    } else if !targets.is_empty() {
        deliver::deliver(core, source, run, targets);
    }
    if is_apart {
        end_echo(core, from);
    }
    core.settle_deliveries();
    if may_feed_itself {
        backpressure::wait_for_own(core, from, pending_before);
    }
}

/// Begins to hold back messages that come back to their publisher. They promise as much as a PONG
/// does: all that the publisher sent so far is in force on every shard, this included. So they wait
/// as a PONG would, if any of that is on other shards.
fn begin_echo(core: &mut Core, from: ConnId) {
    if let Some(conn) = core.conns.get_mut(from) {
        conn.outbox.open_hold(core.lanes.epoch);
    }
}

/// Ends the holding back after the delivery of a run: it is known now which output has to wait, and
/// for which epoch.
fn end_echo(core: &mut Core, from: ConnId) {
    let Some(conn) = core.conns.get_mut(from) else { return };
    if conn.outbox.close_hold(conn.staged_epoch, core.lanes.settled_epoch) {
        core.lanes.held.push(from);
    }
}

/// Whether delivering a run to all these may involve other shards.
fn may_stage(core: &Core, targets: &Targets) -> bool {
    let may_leave = !targets.are_plain_and_here() || targets.leaves_account();
    may_leave && core.lanes.to.len() > 1
}

/// Sets the receivers of the run that begins with `publish`, and its bounds.
pub(crate) fn begin_run(
    core: &mut Core,
    PublisherInfo { account, wants_status }: PublisherInfo,
    run: &mut Run<'_>,
    publish: &Publish<'_>,
) {
    let subject = run.mapped().map_or(publish.subject, |mapped| &mapped.subject);
    let targets = core.targets(account, subject);
    let is_certain = (wants_status && publish.reply.is_some()).then(|| is_certain(core, &targets));
    // Other shards are asked about the receivers of each message.
    let asking = if is_certain == Some(false) { targets.price.once } else { 0 };
    run.aim(account, targets, core.budget.room(), asking);
    run.is_certain = is_certain;
}

/// Handles a run from another server, for one member each of the groups in `queues`, too.
pub(crate) fn publish_routed(
    core: &mut Core,
    from: ConnId,
    account: AccountId,
    named: NamedGroups<'_>,
    run: &Run<'_>,
) {
    let is_traced = |publish: &Publish<'_>| message_trace::is_traced(core, account, publish);
    if !run.has_headers() || !run.publishes().any(is_traced) {
        return take_in_routed(core, from, account, named, run);
    }
    let mut one = Run::default();
    for message in &run.messages {
        match traced::begin_trace(core, from, account, &message.publish) {
            Traced::No | Traced::Yes => {
                take_in_routed(core, from, account, named, one.only(message));
                message_trace::end_trace(core);
            }
            // The other server does not take errors.
            Traced::Ends | Traced::Denied(_) => {}
        }
    }
}

fn take_in_routed(
    core: &mut Core,
    from: ConnId,
    account: AccountId,
    NamedGroups { by, names }: NamedGroups<'_>,
    run: &Run<'_>,
) {
    let Some(conn) = core.conns.get_mut(from) else { return };
    conn.traffic.in_msgs += run.len() as u64;
    conn.traffic.in_bytes += run.payload_bytes as u64;
    core.monitor.stats.routed.in_msgs += run.len() as u64;
    core.monitor.stats.routed.in_bytes += run.payload_bytes as u64;
    // Whoever brings messages of other servers is one, if no link says of which kind.
    let kind = conn.link.as_ref().map_or(Kind::Route, |link| link.kind());
    let link = conn.link.as_ref().filter(|_| !conn.connect.echo);
    let unwanted_by = link.map(|link| link.server);
    if matches!(kind, Kind::Leaf | Kind::Hub) {
        let received = &mut core.accounts.at(account).traffic;
        received.in_msgs += run.len() as u64;
        received.in_bytes += run.payload_bytes as u64;
    }
    let new = Source::new(account, core.shard, from);
    let source = &Source { from: kind, unwanted_by, ..new };
    if gateway::is_mapped(run.subject()) && core.settings.gateway.is_some() {
        mapped_replies::take_in(core, source, run);
        return core.settle_deliveries();
    }
    let targets = match &run.aim {
        Some((_, targets)) => Rc::clone(targets),
        None => core.targets(account, run.subject()),
    };
    core.charge(run, &targets);
    let passed_on = route::passed_on(names);
    // What other servers have passed on goes no further: it might come to its publisher, which may
    // want no echo.
    let named_by = (passed_on != Some(PassedOn::ByOther)).then_some(by);
    let source = &Source { named_by, is_passed_on: passed_on.is_some(), ..*source };
    if passed_on.is_some() {
        deliver::deliver_at_home(core, source, run, &targets, Audience::Groups(names));
    } else {
        deliver::deliver_at_home(core, source, run, &targets, Audience::AndGroups(names));
        if targets.leaves_account() {
            services::deliver_abroad(core, source, run, &targets);
            taps::deliver_to_taps(core, source, run, &targets);
        }
    }
    core.settle_deliveries();
}

/// Whether every message that resolves to `targets` surely has a receiver here. Other shards'
/// interest may have changed by then.
pub(crate) fn is_certain(core: &Core, targets: &Targets) -> bool {
    targets.taps.iter().any(|tap| tap.is_queued())
        || targets.groups.iter().flat_map(|group| &group.members).any(|member| {
            core.conns.at(member.conn).is_some_and(|conn| conn.takes.is_plain())
                && core.subs[member.sub as usize].max == NO_MAX
        })
}
