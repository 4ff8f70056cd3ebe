//! Traced messages: the decision to trace a message, and the notes on its way.
//!
//! `core::message_trace` holds the notes and the reports.

use crate::auth::grants::is_reserved_subject;
use crate::core::Core;
use crate::core::message_trace::{self, CREDIT, MessageTrace, NotDelivered, StepEvent, Trace};
use crate::delivery::publish::Source;
use crate::interest::ids::{AccountId, ConnId};
use crate::interest::outlets::{Exit, Outlet};
use crate::interest::targets::Member;
use crate::proto::headers::{
    DEST, DISABLED, HOP, ONLY, ORIGIN_ACCOUNT, is_sampled, value_of, with_header,
};
use crate::proto::{Publish, encode};
use crate::run::ticket::Ticket;
use crate::run::{Content, Run};
use crate::subject;

/// Lowest protocol of a peer that reports on traced messages.
const PEER_PROTO_MIN: i32 = 3;

/// The trace that a header block asks for.
struct TraceRequest {
    dest: Box<[u8]>,
    only: bool,
}

/// Whether a message is traced.
#[derive(Debug)]
pub(crate) enum Traced {
    /// A message that is delivered as any other.
    No,
    /// A message whose way is noted.
    Yes,
    /// A message that goes no further: it was to be traced alone, and cannot be.
    Ends,
    /// A message that goes no further: its publisher may not publish to the subject of the report.
    Denied(Box<[u8]>),
}

/// A traced message as it goes over a route.
#[derive(Debug)]
pub(crate) struct Numbered {
    subject: Box<[u8]>,
    reply: Option<Box<[u8]>>,
    content: Content,
}

impl Numbered {
    fn new(one: &Run<'_>, number: u32) -> Option<Self> {
        let publish = one.publishes().next()?;
        let header = with_header(publish.header_block(), HOP, number.to_string().as_bytes());
        let content = Content::new(&header, publish.body());
        let reply = publish.reply.map(Into::into);
        Some(Self { subject: publish.subject.into(), reply, content })
    }

    pub(crate) fn run(&self) -> Run<'_> {
        Run::of(self.content.publish(&self.subject, self.reply.as_deref()))
    }
}

/// Begins to trace a message of `from`, as it came.
pub(crate) fn begin_trace(
    core: &mut Core,
    from: ConnId,
    account: AccountId,
    publish: &Publish<'_>,
) -> Traced {
    let TraceRequest { dest, only } = match wanted_trace(core, from, account, publish) {
        Ok(wanted) => wanted,
        Err(untraced) => return untraced,
    };
    if !may_trace(core, from, account, &dest) {
        if let Some(conn) = core.conns.get(from) {
            let dest = encode::go_quoted(&dest);
            tracing::error!("{} - Publish Violation - Subject {dest}", conn.label());
        }
        return Traced::Denied(dest);
    }
    let id = core.tracer.traces.next_id;
    core.tracer.traces.next_id += 1;
    let ticket = Ticket { origin: core.shard, id, credit: CREDIT, only, account };
    let began = MessageTrace {
        shard: core.shard,
        account,
        dest,
        header: publish.header_block().into(),
        message_bytes: publish.payload.len(),
        hops: 0,
        steps: Vec::new(),
        left_out: 0,
    };
    core.tracer.trace = Some(Box::new(Trace::new(ticket, Some(Box::new(began)))));
    let Some(conn) = core.conns.get(from) else { return Traced::Yes };
    let from = conn.party();
    let account = core.accounts.name(account);
    let subject = publish.subject.into();
    message_trace::note(core, StepEvent::Ingress { from, account, subject, error: None });
    Traced::Yes
}

/// Whether `from` may publish to the subject of the report.
fn may_trace(core: &mut Core, from: ConnId, account: AccountId, dest: &[u8]) -> bool {
    if is_reserved_subject(dest, core.accounts.system == Some(account)) {
        return false;
    }
    let Some(conn) = core.conns.get_mut(from) else { return false };
    if conn.link.as_ref().is_some_and(|link| link.leaf().is_none()) {
        return core.settings.route.advertises(dest);
    }
    conn.login.checks().is_none_or(|(user, checks)| checks.may_always_publish(user, dest))
}

/// Returns the trace that a message asks for; without a valid one, the fate of the message.
fn wanted_trace(
    core: &mut Core,
    from: ConnId,
    account: AccountId,
    publish: &Publish<'_>,
) -> Result<TraceRequest, Traced> {
    let header = publish.header_block();
    let dest = value_of(header, DEST).unwrap_or_default();
    if dest == DISABLED {
        return Err(Traced::No);
    }
    let (dest, only) = if dest.is_empty() {
        let rule = core.accounts.at(account).trace_rule().cloned();
        let rule = rule.filter(|_| is_sampled(header)).ok_or(Traced::No)?;
        if rule.sampling < 100 && core.random.rng.u8(..100) >= rule.sampling {
            return Err(Traced::No);
        }
        (rule.dest.as_bytes().into(), false)
    } else {
        let only = value_of(header, ONLY).is_some_and(|value| {
            [&b"true"[..], b"1", b"on"].iter().any(|yes| value.eq_ignore_ascii_case(yes))
        });
        (dest.into(), only)
    };
    let wanted = TraceRequest { dest, only };
    let origin = value_of(header, ORIGIN_ACCOUNT).filter(|value| !value.is_empty());
    let problem = if let Some(other) = origin {
        let other = encode::go_quoted(other);
        format!(
            "Message tracing disabled because of header \"Nats-Trace-Origin-Account\" with \
                 value={other}"
        )
    } else if !subject::is_valid_publish(&wanted.dest) {
        let dest = encode::go_quoted(&wanted.dest);
        format!("Destination {dest} is not valid, won't be able to trace events")
    } else {
        return Ok(wanted);
    };
    if let Some(conn) = core.conns.get(from) {
        tracing::error!("{} - {problem}", conn.label());
    }
    // A message that was to be traced alone was not to be delivered.
    Err(if only { Traced::Ends } else { Traced::No })
}

/// Notes that the message leaves by an exit, if it has receivers there. Returns the trace for
/// afterwards, if the account beyond may not be traced.
pub(super) fn trace_exit(core: &mut Core, one: &Run<'_>, exit: &Exit) -> Option<Box<Trace>> {
    let to = exit.subject.clone();
    let (event, allowed) = match &*exit.outlet {
        Outlet::Stream { to: importer, trace, .. } => {
            let reaches = core.targets(*importer, &to).has_clients();
            let account = core.accounts.name(*importer);
            (reaches.then_some(StepEvent::Stream { account, to }), *trace)
        }
        Outlet::Service { to: asked, trace, .. } => {
            let (account, from) = (core.accounts.name(*asked), one.subject().into());
            (Some(StepEvent::Service { account, from, to }), *trace)
        }
    };
    if event.is_some() && !allowed && message_trace::is_trace_only(core) {
        core.requests.place_first(one.len());
    }
    message_trace::trace_leaves(core, event, allowed)
}

/// Notes the result of offering the message to a member, and keeps back a message that is only
/// traced.
#[cold]
pub(super) fn trace_egress(
    core: &mut Core,
    source: &Source,
    member: Member,
    taken: Result<usize, NotDelivered>,
) -> Result<usize, NotDelivered> {
    let Some(conn) = core.conns.at(member.conn) else { return taken };
    let to = conn.party();
    let sub = &core.subs[member.sub as usize];
    let (filter, queue) = (Some(sub.subject().into()), sub.queue().map(Into::into));
    let is_elsewhere =
        core.tracer.trace.as_ref().is_some_and(|t| t.ticket.account != source.account);
    let account = is_elsewhere.then(|| core.accounts.name(source.account));
    let error = taken.err().filter(|why| *why != NotDelivered::InPackets).map(NotDelivered::text);
    message_trace::note(core, StepEvent::Egress { to, account, filter, queue, hop: None, error });
    if taken.is_ok() && message_trace::is_trace_only(core) {
        core.requests.place_first(1);
        return Err(NotDelivered::OnlyTraced);
    }
    taken
}

/// Notes that the message goes over an own route. Returns it with the number of that part of its
/// way; `None` if it is not to go there.
#[cold]
pub(super) fn trace_hop(core: &mut Core, slot: u32, one: &Run<'_>) -> Option<Numbered> {
    let shards = u32::try_from(core.lanes.to.len()).unwrap_or(1);
    let conn = core.conns.at(slot).filter(|conn| conn.takes_deliveries())?;
    let proto = conn.link.as_ref()?.peer_proto();
    let trace = core.tracer.trace.as_mut()?;
    let number = trace.hops * shards + u32::from(core.shard.0) + 1;
    trace.hops += 1;
    let only = trace.is_only();
    let error = match (proto >= PEER_PROTO_MIN, only) {
        (true, _) => None,
        (false, true) => Some("Not delivered because remote does not support message tracing"),
        (false, false) => Some(
            "Message delivered but remote does not support message tracing so no trace \
                 event generated from there",
        ),
    };
    let to = conn.party();
    let hop = Some(number);
    message_trace::note(
        core,
        StepEvent::Egress { to, account: None, filter: None, queue: None, hop, error },
    );
    if only && error.is_some() {
        return None;
    }
    Numbered::new(one, number)
}
