//! Requests and the status 503: the search for a receiver of a request, on this shard and on
//! others.
//!
//! `core::requests` holds the requests that wait for reports, and explains the protocol.

use crate::core::conn::Conn;
use crate::core::message_trace::CREDIT;
use crate::core::requests::{Asked, OPEN_BYTES_MAX, Open, Unplaced};
use crate::core::shard_message::Placed;
use crate::core::{Core, bound_pending, lanes};
use crate::delivery::deliver;
use crate::delivery::publish::Source;
use crate::delivery::row::targets_once;
use crate::interest::ids::ConnId;
use crate::interest::targets::Targets;
use crate::proto::encode;
use crate::run::Run;
use crate::run::ticket::Ask;

/// Delivers requests of a local connection, which gets a status for those without a receiver.
pub(crate) fn request(
    core: &mut Core,
    from: ConnId,
    source: &Source,
    run: &Run<'_>,
    targets: &Targets,
) {
    let id = core.requests.next_id;
    core.requests.next_id += 1;
    let numbers = (0..).zip(&run.messages).map(|(number, _)| number).collect();
    let ask = Ask { origin: core.shard, id, credit: CREDIT, numbers };
    let mut asked = Box::new(Asked::new(ask));
    for (at, publish) in run.publishes().enumerate() {
        if publish.reply.is_none() {
            asked.place(at);
        }
    }
    core.requests.asked = Some(asked);
    deliver::deliver(core, source, run, targets);
    let Some(asked) = core.requests.asked.take() else { return };
    let mut unplaced = Vec::new();
    let left = run.publishes().zip(&asked.placed).zip(&asked.ask.numbers);
    for ((publish, _), number) in left.filter(|((_, is_placed), _)| !*is_placed) {
        let reply = publish.reply.unwrap_or_default();
        if let Some(sid) = sid_for_reply(core, from, reply) {
            unplaced.push(Unplaced { number: *number, reply: reply.into(), sid });
        }
    }
    let missing = CREDIT - asked.ask.credit;
    let subject = run.subject();
    if missing > 0 && !unplaced.is_empty() {
        return wait_for_reports(core, from, id, missing, subject, unplaced);
    }
    for Unplaced { reply, sid, .. } in unplaced {
        // The status shows that the subscription is known, which another client may rely on
        // elsewhere.
        core.confirm(from, |out| encode::no_responders(out, &reply, &sid, subject));
    }
}

fn wait_for_reports(
    core: &mut Core,
    from: ConnId,
    id: u64,
    missing: u128,
    subject: &[u8],
    unplaced: Vec<Unplaced>,
) {
    let Some(conn) = core.conns.get_mut(from) else { return };
    let open = Open {
        conn: from,
        request: conn.outbox.expect_status(),
        epoch: core.lanes.epoch,
        subject: subject.into(),
        missing,
        unplaced,
    };
    core.requests.bytes += open.cost_bytes();
    core.requests.open.insert(id, open);
    if core.requests.bytes > OPEN_BYTES_MAX && !conn.input.brakes.requests {
        core.requests.feeders.push(from);
        core.brake(from, |brakes| brakes.requests = true);
    }
}

/// Returns the sid of the connection's own plain subscription that takes messages to `reply`.
fn sid_for_reply(core: &mut Core, id: ConnId, reply: &[u8]) -> Option<Box<[u8]>> {
    let account = core.conns.get(id)?.account;
    let targets = targets_once(core, account, reply).targets;
    let mut members = targets.groups.iter().flat_map(|group| &group.members);
    let member = members.find(|member| member.conn == id.slot)?;
    Some(core.subs[member.sub as usize].sid().into())
}

/// Begins the report on a question of another shard.
pub(super) fn begin_report(core: &mut Core, ask: Option<Box<Ask>>) {
    core.requests.asked = ask.map(|ask| Box::new(Asked::new(*ask)));
}

/// Ends the report: the messages have been delivered, as far as this shard is concerned, but for
/// those that are asked about in `later`.
pub(super) fn end_report(core: &mut Core, later: Option<&mut Ask>) {
    let Some(asked) = core.requests.asked.take() else { return };
    let Ask { origin, id, mut credit, numbers } = asked.ask;
    if let Some(later) = later {
        later.credit = std::mem::take(&mut credit);
    }
    let placed = numbers.into_iter().zip(asked.placed).filter(|(_, is_placed)| *is_placed);
    let numbers = placed.map(|(number, _)| number).collect();
    let placed = Placed { id, credit, numbers };
    if origin == core.shard {
        on_placed(core, &placed);
    } else {
        lanes::push_placed(core, origin, placed);
    }
}

/// Takes the report of a shard that has delivered its part of requests.
pub(crate) fn on_placed(core: &mut Core, placed: &Placed) {
    let Some(mut open) = core.requests.open.remove(&placed.id) else { return };
    core.requests.bytes -= open.cost_bytes();
    open.missing = open.missing.saturating_sub(placed.credit);
    // The numbers are in order: runs and their parts are.
    open.unplaced.retain(|one| placed.numbers.binary_search(&one.number).is_err());
    if open.missing > 0 && !open.unplaced.is_empty() {
        core.requests.bytes += open.cost_bytes();
        core.requests.open.insert(placed.id, open);
        return;
    }
    tell_unplaced(core, &open);
    core.settle();
    if core.requests.bytes <= OPEN_BYTES_MAX / 2 {
        for id in std::mem::take(&mut core.requests.feeders) {
            core.release(id, |brakes| brakes.requests = false);
        }
    }
    core.settle_deliveries();
}

fn tell_unplaced(core: &mut Core, open: &Open) {
    let Some(conn) = core.conns.get_mut(open.conn) else { return };
    conn.outbox.decide_status();
    for Unplaced { reply, sid, .. } in &open.unplaced {
        let write = |out: &mut Vec<u8>| encode::no_responders(out, reply, sid, &open.subject);
        let Some(conn) = core.conns.get_mut(open.conn) else { return };
        if !conn.outbox.push_status(open.request, &mut core.spares, write) {
            core.confirm(open.conn, write);
        }
    }
    bound_pending(core, open.conn);
    // A connection at its end may have waited for nothing else.
    let conn = core.conns.get(open.conn);
    if conn.is_some_and(Conn::is_flushing) {
        core.flush_to_end(open.conn);
    }
}
