//! Runs between shards: put into the frame for each shard with receivers, and delivered there.

use std::borrow::Cow;

use smallvec::SmallVec;

use crate::core::{Core, lanes, message_trace};
use crate::delivery::inside::NOBODY;
use crate::delivery::publish::Source;
use crate::delivery::queue_groups::{self, Group, Picks, ShardPick};
use crate::delivery::row::targets_once;
use crate::delivery::{deliver, index, mapped_replies, no_responders, relay, taps};
use crate::interest::cost::RUN_WORK;
use crate::interest::ids::{AccountId, Publisher, ShardId, ShardSet};
use crate::interest::targets::Targets;
use crate::proto::gateway;
use crate::run::Run;
use crate::run::frame::{FrameView, Next, Opened, Parcel, RunFrame, RunHead};
use crate::run::frame::{RunSource, Unpacked};
use crate::run::ticket::Ticket;

/// Messages of another shard that a tap takes at a time: the work that they cause is not known
/// before.
const TAPPED_AT_ONCE: usize = 16;

/// Delivers what another shard has matched, as far as the budget allows. Returns whether that was
/// all of it.
pub(crate) fn on_frame(core: &mut Core, staged_by: ShardId, frame: &mut RunFrame) -> bool {
    let mut run = Run::reusing(std::mem::take(&mut core.input.spare_run));
    let Opened { view, heads, next } = frame.open();
    // At least one of them, so that there is progress in each turn.
    let is_all = loop {
        core.budget.serve_records();
        core.budget.spend(RUN_WORK);
        if !on_run(core, staged_by, view, heads, next, &mut run) {
            break false;
        }
        if next.run >= heads.len() {
            break true;
        }
        if !core.budget.takes_records() {
            break false;
        }
    };
    core.input.spare_run = Run::reusing(run);
    is_all
}

/// Delivers the next run of a frame as far as the budget allows. Returns whether that was all of
/// it.
fn on_run<'f>(
    core: &mut Core,
    staged_by: ShardId,
    view: FrameView<'f>,
    heads: &mut [RunHead],
    next: &mut Next,
    run: &mut Run<'f>,
) -> bool {
    run.clear();
    let unpacked = view.unpack(&heads[next.run..], next.message, run);
    let Some(unpacked) = unpacked.filter(|_| !run.is_empty()) else {
        debug_assert!(false, "a frame is read as it was filled");
        core.monitor.stats.garbled_runs += 1;
        *next = Next { run: next.run + 1, message: 0 };
        return true;
    };
    let head = &mut heads[next.run];
    let account = unpacked.source.account;
    let targets = match unpacked.source.publisher.conn {
        // Replies of the server itself, as a rule.
        NOBODY => targets_once(core, account, run.subject()).targets,
        _ => core.targets_of(account, run.subject(), unpacked.subject_hash),
    };
    let count = len_within(core, run, &targets);
    let is_whole = count == run.len();
    let mut ask = head.ask.take();
    let mut later = None;
    if !is_whole {
        run.keep(count);
        later = ask.as_mut().map(|ask| ask.split_off(count));
    }
    core.charge(run, &targets);
    no_responders::begin_report(core, ask);
    let ticket = head.ticket.as_deref();
    deliver_run(core, staged_by, unpacked, ticket, run, &targets);
    no_responders::end_report(core, later.as_deref_mut());
    head.ask = later;
    *next = match is_whole {
        true => Next { run: next.run + 1, message: 0 },
        false => Next { message: next.message + count, ..*next },
    };
    is_whole
}

/// Returns the number of messages, from the first, that the budget allows: at least one.
fn len_within(core: &Core, run: &Run<'_>, targets: &Targets) -> usize {
    let room = core.budget.room();
    let is_tapped = !targets.taps.iter().all(|tap| tap.is_queued());
    // Nearly always all of them, and dividing takes as long as much else.
    if !is_tapped && targets.price.is_within(room, run.len(), run.wire_bytes()) {
        return run.len();
    }
    let (messages_max, bytes_max) = targets.price.within(room);
    run.len_within(if is_tapped { TAPPED_AT_ONCE } else { messages_max }, bytes_max)
}

/// Delivers messages of a run of another shard.
fn deliver_run(
    core: &mut Core,
    staged_by: ShardId,
    unpacked: Unpacked<'_>,
    ticket: Option<&Ticket>,
    run: &Run<'_>,
    targets: &Targets,
) {
    message_trace::continue_trace(core, ticket);
    let RunSource { account, publisher, echo, unwanted_by, visited, .. } = *unpacked.source;
    let RunSource { from, named_by, is_passed_on, hops, .. } = *unpacked.source;
    let now = std::mem::replace(&mut core.times.arrived, unpacked.source.arrived);
    let source = &Source {
        account,
        publisher,
        echo,
        unwanted_by,
        from,
        named_by,
        is_passed_on,
        staged_by,
        visited,
        hops,
    };
    if gateway::is_mapped(run.subject()) {
        mapped_replies::on_record(core, source, run);
        return end_run(core, now);
    }
    let before = core.monitor.stats.delivered();
    if unpacked.is_plain {
        taps::deliver_to_taps(core, source, run, targets);
        deliver::deliver_plain(core, source, run, targets);
    }
    // Nearly all runs cross for plain subscriptions, and end here.
    if unpacked.has_picks() || !targets.links.is_empty() {
        deliver_beyond(core, source, unpacked, run, targets);
    }
    deliver::count_deliveries(core, account, before);
    end_run(core, now);
}

/// Delivers messages of a run of another shard to its picked queue groups, and over the links of
/// this shard.
fn deliver_beyond(
    core: &mut Core,
    source: &Source,
    unpacked: Unpacked<'_>,
    run: &Run<'_>,
    targets: &Targets,
) {
    let links = match unpacked.is_plain {
        true => relay::links_for(core, source, run, targets),
        false => Cow::default(),
    };
    let elsewhere = deliver_picked(core, source, unpacked, run, targets);
    relay::deliver_to_links(core, source, run, &links, &targets.queues, elsewhere.links);
    if !elsewhere.shards.is_empty() {
        let onward = &Source { visited: source.visited.with(core.shard), ..*source };
        stage_run(core, onward, run, targets, ShardSet::default(), &elsewhere.shards);
    }
}

/// Delivers messages of the server itself that another shard has found receivers of here.
pub(super) fn deliver_own(
    core: &mut Core,
    staged_by: ShardId,
    account: AccountId,
    run: &Run<'_>,
    targets: &Targets,
) {
    let publisher = Publisher { shard: staged_by, conn: NOBODY };
    let source = Source { publisher, staged_by, ..Source::new(account, core.shard, NOBODY) };
    let before = core.monitor.stats.delivered();
    taps::deliver_to_taps(core, &source, run, targets);
    deliver::deliver_plain(core, &source, run, targets);
    if !targets.links.is_empty() {
        let links = relay::links_for(core, &source, run, targets);
        let nobody = Picks::default();
        relay::deliver_to_links(core, &source, run, &links, &targets.queues, nobody.links);
    }
    deliver::count_deliveries(core, account, before);
}

fn end_run(core: &mut Core, arrived: u64) {
    core.settle_deliveries();
    message_trace::end_trace(core);
    core.times.arrived = arrived;
}

/// Gives messages that were picked for queue groups to members of them. Returns those for members
/// that are not here.
fn deliver_picked(
    core: &mut Core,
    source: &Source,
    unpacked: Unpacked<'_>,
    run: &Run<'_>,
    targets: &Targets,
) -> Picks {
    let mut one = Run::default();
    let mut elsewhere = Picks::default();
    let onward = &Source { visited: source.visited.with(core.shard), ..*source };
    for (name, numbers) in unpacked.picks() {
        let group = targets.queues.place(name).map(|at| Group { at, targets });
        for number in numbers {
            let Some(at) = (*number as usize).checked_sub(unpacked.done) else { continue };
            let Some(message) = run.messages.get(at) else { continue };
            let (one, at) = (one.only(message), index(at));
            let picks = &mut elsewhere;
            let is_placed =
                group.is_some_and(|group| queue_groups::place(core, source, one, group, at, picks));
            if !is_placed {
                queue_groups::forward(core, onward, at, group, picks);
            }
        }
    }
    elsewhere
}

/// Puts the run into the frames for these shards, whatever interest they have.
pub(super) fn send_run(core: &mut Core, source: &Source, run: &Run<'_>, shards: ShardSet) {
    let subject_hash = core.accounts.at(source.account).interest.cache().hash(run.subject());
    let targets = Targets { subject_hash, ..Targets::default() };
    stage_run(core, source, run, &targets, shards, &[]);
}

/// Puts the run into the frames for the shards that have plain interest or were picked.
pub(super) fn stage_run(
    core: &mut Core,
    source: &Source,
    run: &Run<'_>,
    targets: &Targets,
    plain: ShardSet,
    picks: &[ShardPick],
) {
    let Source { account, publisher, echo, unwanted_by, visited, .. } = *source;
    let Source { from, named_by, is_passed_on, hops, .. } = *source;
    let arrived = core.times.arrived;
    let source = &RunSource {
        account,
        publisher,
        echo,
        unwanted_by,
        visited,
        arrived,
        from,
        named_by,
        is_passed_on,
        hops,
    };
    let block = core.lanes.spares.block_for(run, plain);
    for shard in plain.iter() {
        let (ticket, ask) = (message_trace::ticket(core), core.requests.ask(None));
        let parcel = Parcel {
            source,
            run,
            subject_hash: targets.subject_hash,
            only: None,
            block: block.as_ref(),
            is_plain: true,
            ticket,
            ask,
        };
        if picks.is_empty() {
            lanes::stage(core, shard, parcel, std::iter::empty());
        } else {
            let mine = Mine::of(picks, shard);
            lanes::stage(core, shard, parcel, mine.groups(targets));
        }
    }
    if picks.is_empty() {
        return;
    }
    let shards: ShardSet = picks.iter().map(|pick| pick.shard).collect();
    for shard in shards.iter().filter(|shard| !plain.contains(*shard)) {
        // Only picked messages travel; once, whichever groups they were picked for.
        let mut mine = Mine::of(picks, shard);
        let sent = mine.renumber();
        let (ticket, ask) = (message_trace::ticket(core), core.requests.ask(Some(&sent)));
        let parcel = Parcel {
            source,
            run,
            subject_hash: targets.subject_hash,
            only: Some(&sent),
            block: None,
            is_plain: false,
            ticket,
            ask,
        };
        lanes::stage(core, shard, parcel, mine.groups(targets));
    }
}

/// Picks of one shard: numbers of messages, by group.
#[derive(Default)]
struct Mine {
    numbers: SmallVec<[u32; 8]>,
    /// Index of each group, and of the first of its numbers.
    groups: SmallVec<[(u32, usize); 2]>,
}

impl Mine {
    fn of(picks: &[ShardPick], shard: ShardId) -> Self {
        let mut mine = Self::default();
        for pick in picks.iter().filter(|pick| pick.shard == shard) {
            if mine.groups.last().is_none_or(|(group, _)| *group != pick.group) {
                mine.groups.push((pick.group, mine.numbers.len()));
            }
            mine.numbers.push(pick.at);
        }
        mine
    }

    /// Numbers the messages as if only these were in the run. Returns their numbers until now, in
    /// order.
    fn renumber(&mut self) -> SmallVec<[u32; 8]> {
        let mut sent = self.numbers.clone();
        if self.groups.len() > 1 {
            sent.sort_unstable();
            sent.dedup();
        }
        for at in &mut self.numbers {
            *at = index(sent.binary_search(at).unwrap_or_default());
        }
        sent
    }

    /// Returns the names of the groups, each with its numbers.
    fn groups<'a>(&'a self, targets: &'a Targets) -> impl Iterator<Item = (&'a [u8], &'a [u32])> {
        self.groups.iter().enumerate().filter_map(|(at, (group, start))| {
            let end = self.groups.get(at + 1).map_or(self.numbers.len(), |(_, start)| *start);
            let name = &*targets.queues.get(*group as usize)?.name;
            Some((name, self.numbers.get(*start..end)?))
        })
    }
}
