//! Delivery of a run: from its subject to the outboxes of its receivers.
//!
//! A run is a row of consecutive publishes of one connection to one subject. It is matched once,
//! rendered once for each group of subscriptions with the same sid, and staged once for each shard
//! that has to deliver it too.
//!
//! Runs of less than 1 KiB (`COPY_RUN_BYTES_MAX`) are copied to each member of a group, unless a
//! payload has 1.5 KiB or more (`COPY_PAYLOAD_BYTES_MAX`); other runs are shared
//! (`Outbox::push_shared`). For a group of one the run is rendered directly into the outbox; with
//! large payloads and several sids only the beginnings of the messages are, and the rest is shared
//! by all sids.

#![forbid(unsafe_code)]

use std::ops::Range;
use std::rc::Rc;

use bytes::Bytes;
use smallvec::SmallVec;

use super::away::{Away, Resort};
use super::conn::Conn;
use super::flushes::MANY;
use super::interest::{Member, NO_MAX, QueueTargets, SidGroup, Targets};
use super::message_trace::{NotDelivered, Traced};
use super::record::{Pick, Publisher, Record, RunRecord};
use super::relay::{RoutePick, draw, members};
use super::run::{Message, Run, parse_run};
use super::{AccountId, ConnId, Engine, Origin, ShardId, ShardSet};
use crate::output::Segment;
use crate::output::{Outbox, Spares};
use crate::proto::{Publish, encode, route};

/// A run of less than this, as it came, is copied to each subscriber; beyond, it is shared.
const COPY_RUN_BYTES_MAX: usize = 1024;
/// A single payload from this size on is shared even in a short run.
const COPY_PAYLOAD_BYTES_MAX: usize = 1536;

/// Answers to a request of another account are handled so many at a time.
const ANSWERS_AT_ONCE: usize = 16;

/// What the beginning of a run needs of its publisher.
#[derive(Debug, Clone, Copy)]
pub(super) struct PublisherInfo {
    pub(super) account: AccountId,
    /// A request without receivers is answered with a status (`no_responders`).
    pub(super) wants_status: bool,
}

/// Where a run comes from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source {
    pub(super) account: AccountId,
    pub(super) publisher: Publisher,
    /// Whether the publisher gets its own messages.
    pub(super) echo: bool,
    /// It came from another server: only clients of this one get it.
    pub(super) routed: bool,
    /// Whose it is, if another server sent it and has named queue groups: what no client of this
    /// one can take goes on to members elsewhere, but not back to those. None of what has gone on
    /// before.
    pub(super) origin: Option<Origin>,
    /// Shards that could not place a queue message of this run.
    pub(super) visited: ShardSet,
    /// Accounts that it has come through.
    pub(super) hops: u8,
}

impl Source {
    /// A connection of `shard` that publishes in its account.
    pub(super) fn new(account: AccountId, shard: ShardId, conn: ConnId) -> Self {
        let publisher = Publisher { shard, conn };
        let visited = ShardSet::default();
        Self { account, publisher, echo: true, routed: false, origin: None, visited, hops: 0 }
    }

    /// Whether plain subscribers everywhere may have had it: it is passed on for a queue group.
    pub(super) fn is_late(&self) -> bool {
        self.routed || !self.visited.is_empty()
    }
}

/// Who may get a run.
#[derive(Debug, Clone, Copy)]
pub(super) enum Audience<'a> {
    All,
    /// Plain subscribers, and the queue groups of these names.
    AndGroups(&'a [u8]),
    /// Those queue groups: others have had it.
    Groups(&'a [u8]),
}

impl Audience<'_> {
    fn has_plain(self) -> bool {
        !matches!(self, Self::Groups(_))
    }

    fn has_group(self, name: &[u8]) -> bool {
        match self {
            Self::All => true,
            Self::AndGroups(names) | Self::Groups(names) => {
                route::queue_names(names).any(|one| *one == *name)
            }
        }
    }
}

/// How many of those a run was delivered to here have a long backlog.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    pub(super) level_bytes: usize,
    pub(super) members: usize,
    pub(super) behind: usize,
}

impl Backlog {
    /// Counts a subscriber that got a delivery.
    pub(super) fn count(&mut self, conn: &Conn) {
        if !conn.slow {
            self.members += 1;
            self.behind += usize::from(conn.outbox.pending_bytes() > self.level_bytes);
        }
    }
}

impl Engine {
    /// Handles a run from a local connection, which has permission for all of it.
    pub(super) fn publish(&mut self, from: ConnId, run: &Run<'_>) {
        let Some(conn) = self.conns.get_mut(from) else { return };
        conn.traffic.in_msgs += run.len() as u64;
        conn.traffic.in_bytes += run.payload_bytes as u64;
        let received = &mut self.accounts.at(conn.account).traffic;
        received.in_msgs += run.len() as u64;
        received.in_bytes += run.payload_bytes as u64;
        self.stats.in_msgs += run.len() as u64;
        self.stats.in_bytes += run.payload_bytes as u64;
        let account = conn.account;
        let source = &Source { echo: conn.connect.echo, ..Source::new(account, self.shard, from) };
        let wants_status = conn.connect.no_responders && run.has_reply;
        let (pending_before, staged_epoch) = (conn.outbox.pending_bytes(), conn.staged_epoch);
        // Whoever subscribes to nothing gets nothing of its own.
        let may_feed_itself = !conn.subs.is_empty();
        let resolved;
        let targets = match &run.aim {
            Some((_, targets)) => targets,
            None => {
                resolved = self.targets(account, run.subject());
                &resolved
            }
        };
        self.charge(run, targets);
        let is_apart =
            may_feed_itself && (staged_epoch > self.settled_epoch || self.may_stage(targets));
        if is_apart {
            self.begin_echo(from);
        }
        if wants_status && !run.is_certain.unwrap_or_else(|| self.is_certain(targets)) {
            if targets.leaves_account() {
                // Each is another message beyond.
                let mut one = Run::default();
                for message in &run.messages {
                    self.request(from, source, one.only(message), targets);
                }
            } else {
                self.request(from, source, run, targets);
            }
        } else if !targets.is_empty() {
            self.deliver(source, run, targets);
        }
        if is_apart {
            self.end_echo(from);
        }
        self.settle_deliveries();
        if may_feed_itself {
            self.wait_for_own(from, pending_before);
        }
    }

    /// What comes back to its publisher tells it as much as a PONG does: that what it did so far
    /// is in force on every shard, this included. So it waits as a PONG would, if anything of that
    /// is on other shards.
    fn begin_echo(&mut self, from: ConnId) {
        if let Some(conn) = self.conns.get_mut(from) {
            conn.outbox.open_hold(self.epoch);
        }
    }

    /// The run is delivered: now it is known what has to wait, and for what.
    fn end_echo(&mut self, from: ConnId) {
        let Some(conn) = self.conns.get_mut(from) else { return };
        if conn.outbox.close_hold(conn.staged_epoch, self.settled_epoch) {
            self.held.push(from);
        }
    }

    /// Whether giving a run to all these may involve other shards.
    fn may_stage(&self, targets: &Targets) -> bool {
        let may_leave = !targets.are_plain_and_here() || targets.leaves_account();
        may_leave && self.lanes.len() > 1
    }

    /// Finds out who gets the run that begins with `publish`, and how long it may be.
    pub(super) fn begin_run(
        &mut self,
        PublisherInfo { account, wants_status }: PublisherInfo,
        run: &mut Run<'_>,
        publish: &Publish<'_>,
    ) {
        let subject = run.mapped().map_or(publish.subject, |mapped| &mapped.subject);
        let targets = self.targets(account, subject);
        let is_certain =
            (wants_status && publish.reply.is_some()).then(|| self.is_certain(&targets));
        // One by one: it is asked of each whether anybody gets it.
        let asking = if is_certain == Some(false) { targets.price.once } else { 0 };
        run.aim(account, targets, self.budget.room(), asking);
        run.is_certain = is_certain;
    }

    /// Delivering the run costs what it does.
    pub(super) fn charge(&mut self, run: &Run<'_>, targets: &Targets) {
        let is_copied = run.wire_bytes < COPY_RUN_BYTES_MAX;
        self.budget.spend(targets.price.of(run.len(), run.wire_bytes, is_copied));
    }

    /// Handles a run from another server, for one member each of the groups in `queues`, too.
    pub(super) fn publish_routed(
        &mut self,
        from: ConnId,
        account: AccountId,
        (origin, queues): (Origin, &[u8]),
        run: &Run<'_>,
    ) {
        let named = (origin, queues);
        let is_traced = |publish: &Publish<'_>| self.is_traced(account, publish);
        if !run.has_headers() || !run.publishes().any(is_traced) {
            return self.take_in_routed(from, account, named, run);
        }
        let mut one = Run::default();
        for message in &run.messages {
            match self.begin_trace(from, account, &message.publish) {
                Traced::No | Traced::Yes => {
                    self.take_in_routed(from, account, named, one.only(message));
                    self.end_trace();
                }
                // The other server has no ear for errors.
                Traced::Ends | Traced::Denied(_) => {}
            }
        }
    }

    fn take_in_routed(
        &mut self,
        from: ConnId,
        account: AccountId,
        (origin, queues): (Origin, &[u8]),
        run: &Run<'_>,
    ) {
        let Some(conn) = self.conns.get_mut(from) else { return };
        conn.traffic.in_msgs += run.len() as u64;
        conn.traffic.in_bytes += run.payload_bytes as u64;
        self.stats.routed.in_msgs += run.len() as u64;
        self.stats.routed.in_bytes += run.payload_bytes as u64;
        let echo = conn.connect.echo;
        let source = &Source { routed: true, echo, ..Source::new(account, self.shard, from) };
        let targets = match &run.aim {
            Some((_, targets)) => Rc::clone(targets),
            None => self.targets(account, run.subject()),
        };
        self.charge(run, &targets);
        if route::is_passed_on(queues) {
            // Everybody else has had it, and it goes no further: it might come to who published
            // it and wants no echo.
            self.deliver_at_home(source, run, &targets, Audience::Groups(queues));
        } else {
            let source = &Source { origin: Some(origin), ..*source };
            self.deliver_at_home(source, run, &targets, Audience::AndGroups(queues));
            if targets.leaves_account() {
                self.deliver_abroad(source, run, &targets);
            }
        }
        self.settle_deliveries();
    }

    /// Delivers what another shard has matched, as far as the budget allows. The rest comes back.
    pub(super) fn on_run(&mut self, mut record: Box<RunRecord>) -> Option<Box<RunRecord>> {
        let wire = record.wire.clone();
        let mut run = Run::reusing(std::mem::take(&mut self.spare_run));
        let unread_bytes = parse_run(&wire, &mut run);
        if unread_bytes > 0 {
            debug_assert!(false, "only whole publishes travel: {unread_bytes} bytes are left");
            self.stats.garbled_runs += 1;
        }
        let targets = self.targets(record.account, run.subject());
        let (messages_max, bytes_max) = targets.price.within(self.budget.room());
        let messages_max = if record.answers { ANSWERS_AT_ONCE } else { messages_max };
        let count = run.len_within(messages_max, bytes_max);
        let mut ask = record.ask.take();
        let mut rest = (count < run.len()).then(|| {
            let mut rest = record.clone();
            rest.wire = record.wire.slice(run.keep(count)..);
            rest.picks = take_later_picks(&mut record.picks, index(count));
            rest.ask = ask.as_mut().map(|ask| ask.split_off(count));
            rest
        });
        self.charge(&run, &targets);
        self.begin_report(ask);
        self.deliver_record(&record, &run, &targets);
        self.end_report(rest.as_mut().and_then(|rest| rest.ask.as_deref_mut()));
        self.spare_run = Run::reusing(run);
        rest
    }

    fn deliver_record(&mut self, record: &RunRecord, run: &Run<'_>, targets: &Targets) {
        self.continue_trace(record.trace.as_deref());
        let RunRecord { account, publisher, echo, routed, origin, visited, hops, .. } = *record;
        let now = std::mem::replace(&mut self.arrived, record.arrived);
        let source = &Source { account, publisher, echo, routed, origin, visited, hops };
        if record.answers {
            self.deliver_answers(source, run);
        }
        let before = self.stats.delivered();
        let mut routes: &[u32] = &[];
        if record.plain {
            self.deliver_plain(source, run, targets);
            routes = if routed { &[] } else { &targets.routes };
        }
        let mut one = Run::default();
        let mut elsewhere = Picks::default();
        let onward = &Source { visited: visited.with(self.shard), ..*source };
        for pick in &record.picks {
            let group = targets.queues.place(&pick.group);
            for &at in &pick.messages {
                let Some(message) = run.messages.get(at as usize) else { continue };
                let one = one.only(message);
                let picks = &mut elsewhere;
                let is_placed =
                    group.is_some_and(|group| self.place(source, one, (group, targets), at, picks));
                if !is_placed {
                    self.forward(onward, at, group, targets, picks);
                }
            }
        }
        self.deliver_to_routes(source, run, routes, &targets.queues, elsewhere.routes);
        if !elsewhere.shards.is_empty() {
            self.stage_run(onward, run, ShardSet::default(), elsewhere.shards);
        }
        self.count_deliveries(account, before);
        self.settle_deliveries();
        self.end_trace();
        self.arrived = now;
    }

    pub(super) fn targets(&mut self, account: AccountId, subject: &[u8]) -> Rc<Targets> {
        let conns = &self.conns;
        let interest = &mut self.accounts.at(account).interest;
        let (targets, work) = interest.targets(subject, &self.subs, |slot| {
            conns.at(slot).is_some_and(|conn| conn.connect.headers)
        });
        if work > 0 {
            self.budget.spend(work);
        }
        self.hand.bound(&mut self.accounts);
        targets
    }

    /// Whether somebody here gets every message that resolves to `targets`, whatever it is. What
    /// other shards know of theirs may be news by then.
    fn is_certain(&self, targets: &Targets) -> bool {
        targets.groups.iter().flat_map(|group| &group.members).any(|member| {
            self.conns.at(member.conn).is_some_and(|conn| conn.plain)
                && self.subs[member.sub as usize].max == NO_MAX
        })
    }

    /// Delivers to local connections and stages for other shards.
    pub(super) fn deliver(&mut self, source: &Source, run: &Run<'_>, targets: &Targets) {
        self.deliver_at_home(source, run, targets, Audience::All);
        if targets.leaves_account() {
            self.deliver_abroad(source, run, targets);
        }
    }

    /// The same, but within the account, and to nobody but `audience`.
    pub(super) fn deliver_at_home(
        &mut self,
        source: &Source,
        run: &Run<'_>,
        targets: &Targets,
        audience: Audience<'_>,
    ) {
        let before = self.stats.delivered();
        if audience.has_plain() {
            self.deliver_plain(source, run, targets);
            if targets.are_plain_and_here() {
                return self.count_deliveries(source.account, before);
            }
        }
        let mut picks = Picks::default();
        for (at, group) in targets.queues.iter().enumerate() {
            if audience.has_group(&group.name) {
                self.deliver_to_group(source, run, (at, targets), &mut picks);
            }
        }
        self.count_deliveries(source.account, before);
        let (mut shards, mut routes): (_, &[u32]) = (targets.shards, &[]);
        if !audience.has_plain() {
            shards = ShardSet::default();
        } else if !source.routed {
            (shards, routes) = (shards.union(targets.routers), &targets.routes);
        }
        self.deliver_to_routes(source, run, routes, &targets.queues, picks.routes);
        if !shards.is_empty() || !picks.shards.is_empty() {
            self.stage_run(source, run, shards, picks.shards);
        }
    }

    /// Books for an account what was delivered in it since `before`.
    fn count_deliveries(&mut self, account: AccountId, (msgs, bytes): (u64, u64)) {
        let sent = &mut self.accounts.at(account).traffic;
        sent.out_msgs += self.stats.out_msgs - msgs;
        sent.out_bytes += self.stats.out_bytes - bytes;
    }

    fn deliver_plain(&mut self, source: &Source, run: &Run<'_>, targets: &Targets) {
        let reached = if let Some(policy) = &targets.overflow {
            self.deliver_loosely(source, run, targets, policy)
        } else if self.trace.is_some() {
            self.deliver_traced(source, run, targets)
        } else {
            self.deliver_to_all::<false>(source, run, targets)
        };
        self.place_first(reached);
    }

    #[cold]
    fn deliver_traced(&mut self, source: &Source, run: &Run<'_>, targets: &Targets) -> usize {
        self.deliver_to_all::<true>(source, run, targets)
    }

    /// Gives the run to all plain subscriptions here. Returns how many of its messages, from the
    /// first, somebody gets. Whether it is traced is decided once for all of them.
    fn deliver_to_all<const TRACED: bool>(
        &mut self,
        source: &Source,
        run: &Run<'_>,
        targets: &Targets,
    ) -> usize {
        let mut backlog = Backlog {
            level_bytes: self.backlog_level_bytes(targets.members),
            ..Backlog::default()
        };
        self.is_for_many = targets.members > MANY;
        let mut reached = 0;
        if let [group] = &targets.groups[..] {
            reached = self.deliver_to_sid::<TRACED>(source, run, group, None, &mut backlog);
        } else {
            let mut tails = Tails::default();
            for group in &targets.groups {
                let tails = Some(&mut tails);
                let count = self.deliver_to_sid::<TRACED>(source, run, group, tails, &mut backlog);
                reached = reached.max(count);
            }
            tails.rendered.into_iter().flatten().for_each(|(segment, _)| {
                self.spares.keep_segment(segment);
            });
        }
        if backlog.behind * 2 > backlog.members {
            let members = targets.groups.iter().flat_map(|group| &group.members);
            self.wait_for(source, members, backlog.level_bytes);
        }
        reached
    }

    /// Gives the run to every member of a group, in the way that costs least. There are `tails`
    /// if there are other groups. Returns how many messages, from the first, some member takes.
    fn deliver_to_sid<const TRACED: bool>(
        &mut self,
        source: &Source,
        run: &Run<'_>,
        group: &SidGroup,
        mut tails: Option<&mut Tails>,
        backlog: &mut Backlog,
    ) -> usize {
        let SidGroup { sid, headers, members } = group;
        let way = Way::of(run, members.len(), tails.is_some());
        let mut rendered: Option<Segment> = None;
        let mut reached = 0;
        for &member in members {
            let Ok(count) = self.offer(TRACED, source, run, member) else { continue };
            reached = reached.max(count);
            let Some(conn) = self.conns.at_mut(member.conn) else { continue };
            let spares = &mut self.spares;
            match (if count < run.len() { Way::Render } else { way }, &mut tails) {
                (Way::Tails, Some(tails)) => {
                    tails.push(run, sid, *headers, &mut conn.outbox, spares);
                }
                (Way::Render | Way::Tails, _) => {
                    conn.outbox.push(spares, |out| run.render(count, sid, *headers, out));
                }
                (way, _) => {
                    let segment = rendered.get_or_insert_with(|| {
                        spares.segment(|out| run.render(count, sid, *headers, out))
                    });
                    if way == Way::Share {
                        conn.outbox.push_shared(segment, 0..segment.len());
                    } else {
                        conn.outbox.push(spares, |out| out.extend_from_slice(segment));
                    }
                }
            }
            backlog.count(conn);
            self.account_for(member, run, count, *headers);
        }
        if let Some(segment) = rendered {
            self.spares.keep_segment(segment);
        }
        reached
    }

    /// How many of the run's messages, from the first, `member` takes; at least one. The tracer is
    /// told, if the run is `traced`.
    #[inline]
    pub(super) fn offer(
        &mut self,
        traced: bool,
        source: &Source,
        run: &Run<'_>,
        member: Member,
    ) -> Result<usize, NotDelivered> {
        let taken = self.takes(source, run, member);
        if traced { self.trace_egress(source, member, taken) } else { taken }
    }

    /// How many of the run's messages, from the first, `member` takes; at least one.
    #[inline]
    fn takes(
        &mut self,
        source: &Source,
        run: &Run<'_>,
        member: Member,
    ) -> Result<usize, NotDelivered> {
        let Some(conn) = self.conns.at(member.conn) else { return Err(NotDelivered::Closed) };
        let sub = &self.subs[member.sub as usize];
        let left = usize::try_from(sub.max - sub.delivered).unwrap_or(usize::MAX);
        if !conn.plain {
            return self.takes_of_left(source, run, member, left);
        }
        match left.min(run.len()) {
            0 => Err(NotDelivered::Maximum),
            count => Ok(count),
        }
    }

    /// The same where more has to be looked at, when the subscription may get `left` messages.
    fn takes_of_left(
        &mut self,
        source: &Source,
        run: &Run<'_>,
        member: Member,
        left: usize,
    ) -> Result<usize, NotDelivered> {
        let Some(conn) = self.conns.at_mut(member.conn) else { return Err(NotDelivered::Closed) };
        let sub = &self.subs[member.sub as usize];
        let own = source.publisher.conn == conn.id && source.publisher.shard == self.shard;
        if !conn.takes_deliveries() {
            return Err(NotDelivered::Closed);
        }
        if own && !source.echo {
            return Err(NotDelivered::Echo);
        }
        let permissions = conn.user.as_ref().and_then(|user| user.permissions.as_ref());
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
        if let Some(permissions) = permissions
            && permissions.allows_responses()
            && !self.trace.as_ref().is_some_and(|trace| trace.is_only())
        {
            let checks = conn.checks.get_or_insert_default();
            let replies = run.messages[..count].iter().filter_map(|m| m.publish.reply);
            replies.for_each(|reply| checks.on_request(permissions, reply, self.now));
        }
        Ok(count)
    }

    /// Books a delivery that is in the member's outbox.
    #[inline]
    pub(super) fn account_for(
        &mut self,
        member: Member,
        run: &Run<'_>,
        count: usize,
        headers: bool,
    ) {
        if let Some(tracing) = self.settings.tracing
            && let Some(conn) = self.conns.at(member.conn)
        {
            let sid = self.subs[member.sub as usize].sid();
            tracing.deliveries(conn, sid, run, count, headers);
        }
        let payload_bytes = run.delivered_bytes(count, headers);
        let Some(conn) = self.conns.at_mut(member.conn) else { return };
        let sub = &mut self.subs[member.sub as usize];
        sub.delivered += count as u64;
        if sub.delivered >= sub.max {
            self.ended.push(member.sub);
        }
        conn.traffic.out_msgs += count as u64;
        conn.traffic.out_bytes += payload_bytes as u64;
        self.stats.out_msgs += count as u64;
        self.stats.out_bytes += payload_bytes as u64;
        if conn.outbox.pending_bytes() > self.settings.limits.pending_bytes_max {
            // It gets no more, while others still do.
            conn.is_doomed = true;
            conn.plain = false;
            self.doomed.push(conn.id);
        }
        if !conn.dirty {
            conn.timing.last_delivered = self.now;
            conn.timing.oldest_arrived = conn.timing.oldest_arrived.min(self.arrived);
            conn.flush(&mut self.flushes, !self.is_for_many);
        }
    }

    /// Gives each message of the run to one member of the group, by its number: here, on another
    /// shard, or behind a route.
    fn deliver_to_group(
        &mut self,
        source: &Source,
        run: &Run<'_>,
        (number, targets): (usize, &Targets),
        picks: &mut Picks,
    ) {
        self.is_for_many = false;
        let group = &targets.queues[number];
        let elsewhere = self.places(source, (number, targets), Resort::First);
        let (local, away) = (group.local.len() as u64, members(&elsewhere));
        let mut one = Run::default();
        for (at, message) in run.messages.iter().enumerate() {
            let is_local = self.rng.u64(..(local + away).max(1)) < local
                && self.deliver_to_one(source, one.only(message), group);
            if is_local {
                self.place_at(at);
                continue;
            }
            let place = draw(&mut self.rng, &elsewhere)
                .or_else(|| self.place_away(source, (number, targets), Resort::Last))
                .or_else(|| self.place_away(source, (number, targets), Resort::Any));
            match place {
                Some(Away::Route(route)) => {
                    picks.routes.push(RoutePick { route, group: index(number), at: index(at) });
                }
                Some(Away::Shard(shard)) => {
                    add_pick(&mut picks.shards, shard, &group.name, index(at))
                }
                None => {}
            }
        }
    }

    /// Gives a message that was sent here for a group to a local member of it, or to a route:
    /// that is for the caller to carry out. False if nobody here can take it.
    fn place(
        &mut self,
        source: &Source,
        one: &Run<'_>,
        (number, targets): (usize, &Targets),
        at: u32,
        picks: &mut Picks,
    ) -> bool {
        let group = &targets.queues[number];
        let routes = Away::routes(&self.places(source, (number, targets), Resort::First));
        let (local, behind_routes) = (group.local.len() as u64, members(&routes));
        let prefers_local = behind_routes == 0 || self.rng.u64(..local + behind_routes) < local;
        if prefers_local && self.deliver_to_one(source, one, group) {
            self.place_at(at as usize);
            return true;
        }
        let route = draw(&mut self.rng, &routes).or_else(|| {
            let last = Away::routes(&self.places(source, (number, targets), Resort::Last));
            draw(&mut self.rng, &last)
        });
        let pick = route.map(|route| RoutePick { route, group: index(number), at });
        picks.routes.extend(pick);
        pick.is_some()
    }

    /// Gives a message to one local member: a random one, or the next that can take it.
    fn deliver_to_one(&mut self, source: &Source, one: &Run<'_>, group: &QueueTargets) -> bool {
        if group.local.is_empty() {
            return false;
        }
        let traced = self.trace.is_some();
        let level_bytes = self.backlog_level_bytes(group.local.len());
        let mut backlog = Backlog { level_bytes, ..Backlog::default() };
        let first = self.rng.usize(..group.local.len());
        let (head, tail) = group.local.split_at(first);
        for &member in tail.iter().chain(head) {
            match self.offer(traced, source, one, member) {
                Ok(_) => {}
                Err(NotDelivered::OnlyTraced) => return true,
                Err(_) => continue,
            }
            let Some(conn) = self.conns.at_mut(member.conn) else { continue };
            let headers = conn.connect.headers;
            let sub = &self.subs[member.sub as usize];
            conn.outbox.push(&mut self.spares, |out| one.render(1, sub.sid(), headers, out));
            backlog.count(conn);
            self.account_for(member, one, 1, headers);
            if backlog.behind > 0 {
                self.wait_for(source, [&member].into_iter(), level_bytes);
            }
            return true;
        }
        false
    }

    /// The members picked here are gone or cannot take the message: another shard may, or whoever
    /// may have had it.
    fn forward(
        &mut self,
        source: &Source,
        at: u32,
        group: Option<usize>,
        targets: &Targets,
        picks: &mut Picks,
    ) {
        let away = group.and_then(|group| {
            [Resort::First, Resort::Last].into_iter().find_map(|resort| {
                let shards = Away::shards(&self.places(source, (group, targets), resort));
                draw(&mut self.rng, &shards).map(Away::Shard)
            })
        });
        let away = away.or_else(|| self.place_away(source, (group?, targets), Resort::Any));
        match (away, group) {
            (Some(Away::Shard(shard)), Some(group)) => {
                add_pick(&mut picks.shards, shard, &targets.queues[group].name, at);
            }
            (Some(Away::Route(route)), Some(group)) => {
                picks.routes.push(RoutePick { route, group: index(group), at });
            }
            _ => self.stats.queue_msgs_lost += 1,
        }
    }

    /// Puts the run on the lanes of the shards that have plain interest or were picked.
    fn stage_run(
        &mut self,
        source: &Source,
        run: &Run<'_>,
        plain: ShardSet,
        mut picks: SmallVec<[(ShardId, Pick); 2]>,
    ) {
        let Source { account, publisher, echo, routed, origin, visited, hops } = *source;
        let arrived = self.arrived;
        let record = |wire, plain, picks, trace, ask| {
            Record::Run(Box::new(RunRecord {
                account,
                publisher,
                echo,
                routed,
                origin,
                visited,
                arrived,
                wire,
                answers: false,
                hops,
                trace,
                ask,
                plain,
                picks,
            }))
        };
        let mut whole: Option<Bytes> = None;
        for shard in plain.iter() {
            let wire = whole.get_or_insert_with(|| run.concat()).clone();
            let mine = take_picks(&mut picks, shard);
            let picks = mine.into_iter().collect();
            let (trace, ask) = (self.ticket(), self.ask(None));
            self.stage(shard, record(wire, true, picks, trace, ask));
        }
        while let Some((shard, _)) = picks.first() {
            let shard = *shard;
            let mut picks = take_picks(&mut picks, shard);
            // Only what was picked travels; once, whichever groups it was picked for.
            let mut sent: SmallVec<[u32; 8]> = SmallVec::new();
            picks.iter().for_each(|pick| sent.extend_from_slice(&pick.messages));
            if picks.len() > 1 {
                sent.sort_unstable();
                sent.dedup();
            }
            let mut wire = Vec::new();
            sent.iter().for_each(|at| run.messages[*at as usize].write(&mut wire));
            for at in picks.iter_mut().flat_map(|pick| &mut pick.messages) {
                *at = index(sent.binary_search(at).unwrap_or_default());
            }
            let (trace, ask) = (self.ticket(), self.ask(Some(&sent)));
            self.stage(shard, record(Bytes::from(wire), false, picks, trace, ask));
        }
    }
}

/// Where the queue messages of a run go that do not stay here.
#[derive(Debug, Default)]
struct Picks {
    shards: SmallVec<[(ShardId, Pick); 2]>,
    routes: Vec<RoutePick>,
}

/// How a run gets into an outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// It is rendered right there.
    Render,
    /// It was rendered once and is copied.
    Copy,
    /// It was rendered once and is referred to.
    Share,
    /// Only the beginnings of the messages are rendered there; the rest is referred to.
    Tails,
}

impl Way {
    /// The cheapest way for `members` subscriptions with one sid; `others` says whether there
    /// are some with other sids.
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

/// What follows the sid in each message of a run: the same for all sids.
#[derive(Debug, Default)]
struct Tails {
    /// For receivers without headers, and with. The ranges are those of the messages.
    rendered: [Option<(Segment, Vec<Range<usize>>)>; 2],
}

impl Tails {
    fn push(
        &mut self,
        run: &Run<'_>,
        sid: &[u8],
        headers: bool,
        outbox: &mut Outbox,
        spares: &mut Spares,
    ) {
        let rendered = &mut self.rendered[usize::from(headers)];
        let (segment, ranges) = rendered.get_or_insert_with(|| render_tails(run, headers, spares));
        for (message, range) in run.messages.iter().zip(ranges) {
            let headers = headers && message.publish.header.is_some();
            let subject = message.publish.subject;
            outbox.push(spares, |out| encode::msg_prefix(out, headers, subject, sid));
            outbox.push_shared(segment, range.clone());
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

fn add_pick(picks: &mut SmallVec<[(ShardId, Pick); 2]>, shard: ShardId, group: &[u8], at: u32) {
    // One group comes after the other, so its picks are the last ones.
    let mut of_group = picks.iter_mut().rev().take_while(|(_, pick)| *pick.group == *group);
    match of_group.find(|(to, _)| *to == shard) {
        Some((_, pick)) => pick.messages.push(at),
        None => picks.push((shard, Pick { group: group.into(), messages: vec![at] })),
    }
}

fn take_picks(picks: &mut SmallVec<[(ShardId, Pick); 2]>, shard: ShardId) -> Vec<Pick> {
    let mut taken = Vec::new();
    picks.retain(|(to, pick)| {
        if *to != shard {
            return true;
        }
        let messages = std::mem::take(&mut pick.messages);
        taken.push(Pick { group: std::mem::take(&mut pick.group), messages });
        false
    });
    taken
}

/// Takes out what is picked of the messages from number `from` on, and numbers those anew.
fn take_later_picks(picks: &mut Vec<Pick>, from: u32) -> Vec<Pick> {
    let mut later = Vec::new();
    for pick in &mut *picks {
        let at = pick.messages.partition_point(|message| *message < from);
        let messages = pick.messages.split_off(at);
        if !messages.is_empty() {
            let messages = messages.into_iter().map(|message| message - from).collect();
            later.push(Pick { group: pick.group.clone(), messages });
        }
    }
    picks.retain(|pick| !pick.messages.is_empty());
    later
}

/// A place in a run or in a list of groups; both are far shorter than this can count.
fn index(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}
