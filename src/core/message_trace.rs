//! Message tracing: reports on the way of a message with the header `Nats-Trace-Dest`, published
//! on the subject that it names; with `Nats-Trace-Only` the message is not delivered.
//!
//! Such a message is a run of its own. It is refused, and goes nowhere, if its publisher may not
//! publish to the subject of the reports. While it is delivered, [`Tracer::trace`] holds the events
//! so far, and gets each outcome where that is decided; any other run pays one look at an empty
//! field.
//!
//! Records to other shards carry a [`Ticket`], and each shard reports to the shard that began. That
//! one knows the end by credit: a ticket has half of the credit that its sender had left, and
//! brings it back, less what it passed on. The thread `system` makes a document of the report and
//! has it published.

use std::collections::HashMap;
use std::sync::Arc;

use crate::core::Core;
use crate::core::conn::Conn;
use crate::core::outputs::Output;
use crate::core::shard_message::{Record, Report};
use crate::interest::ids::{AccountId, ShardId};
use crate::interest::mapping::Mapped;
use crate::interest::reach::Kind;
use crate::proto::Publish;
use crate::proto::headers::{DEST, is_sampled};
use crate::run::ticket::Ticket;

/// Steps of one message that are reported; further ones are only counted.
const STEPS_MAX: usize = 4096;

/// Steps that a shard notes in one turn, over all messages; further ones are only counted.
const STEPS_PER_TURN_MAX: usize = 16 * 1024;

/// Steps that a shard keeps while it waits for reports of other shards.
const STEPS_WAITING_MAX: usize = 64 * 1024;

/// Messages for which a shard waits for reports of others; further ones are not reported.
const WAITING_MAX: usize = 1024;

/// Credit of a whole trace; halved for each shard that has a part in it.
pub(crate) const CREDIT: u128 = 1 << 120;

/// The report on a traced message, as far as this server knows its way.
#[derive(Debug)]
pub struct MessageTrace {
    /// Shard where the message came in, and where the report is to be published.
    pub shard: ShardId,
    /// Account in which the message came in, and in which the report is published.
    pub account: AccountId,
    /// Subject of the report.
    pub dest: Box<[u8]>,
    /// The message's header block.
    pub header: Box<[u8]>,
    /// Bytes of the message.
    pub message_bytes: usize,
    /// Other servers that report the rest of the way.
    pub hops: u32,
    /// Steps on the way, in order on each shard.
    pub steps: Vec<Step>,
    /// Further steps, which were only counted.
    pub left_out: u64,
}

/// One step on the way of a message.
#[derive(Debug)]
pub struct Step {
    /// Time of the step, in nanoseconds since the process began.
    pub at_ns: u64,
    /// Shard of the step.
    pub shard: ShardId,
    /// Event of the step.
    pub event: StepEvent,
}

/// The client or server at the other end of a connection.
#[derive(Debug, Clone)]
pub struct Party {
    /// Kind of the connection.
    pub kind: Kind,
    /// The connection's number.
    pub cid: u64,
    /// Name of the client or server.
    pub name: Box<str>,
}

/// An event on the way of a message.
#[derive(Debug)]
pub enum StepEvent {
    /// The message came in.
    Ingress {
        /// Client or server that sent the message.
        from: Party,
        /// Account in which the message came in.
        account: Arc<str>,
        /// Subject on which the message came in.
        subject: Box<[u8]>,
        /// Reason why the message goes no further, if it does not.
        error: Option<Box<str>>,
    },
    /// A mapping renamed the message.
    Mapped {
        /// Subject after the mapping.
        to: Box<[u8]>,
    },
    /// The message entered a service.
    Service {
        /// The account that answers.
        account: Arc<str>,
        /// Subject before the service.
        from: Box<[u8]>,
        /// Subject within the service.
        to: Box<[u8]>,
    },
    /// The message entered another account by a stream.
    Stream {
        /// Account that imports the stream.
        account: Arc<str>,
        /// Subject in that account.
        to: Box<[u8]>,
    },
    /// The message went out, or would have.
    Egress {
        /// Client or server that gets the message.
        to: Party,
        /// Account of the receiver, if it is not the one in which the message came in.
        account: Option<Arc<str>>,
        /// Filter of the subscription; `None` for a server.
        filter: Option<Box<[u8]>>,
        /// Queue group of the subscription, if it has one.
        queue: Option<Box<[u8]>>,
        /// Number under which a server reports its part of the way.
        hop: Option<u32>,
        /// Reason why the message was not delivered, if it was not.
        error: Option<&'static str>,
    },
}

impl MessageTrace {
    /// Returns the memory that the report takes, in bytes.
    pub fn cost_bytes(&self) -> usize {
        size_of::<Self>() + self.header.len() + self.steps.len() * STEP_BYTES
    }
}

/// Memory that a step takes with its texts, in bytes, about.
pub(super) const STEP_BYTES: usize = 256;

/// The trace of the message that is being delivered.
#[derive(Debug)]
pub(crate) struct Trace {
    pub(crate) ticket: Ticket,
    /// The report, on the shard where the message came in.
    began: Option<Box<MessageTrace>>,
    steps: Vec<Step>,
    left_out: u64,
    pub(crate) hops: u32,
}

/// The traces of a shard.
#[derive(Debug, Default)]
pub(crate) struct Traces {
    /// Reports on messages that other shards have a part in, with the credit that is still to come
    /// back.
    waiting: HashMap<u64, (Box<MessageTrace>, u128)>,
    /// Steps in the waiting reports.
    waiting_steps: usize,
    pub(crate) next_id: u64,
    /// Steps noted in this turn.
    turn_steps: usize,
}

impl Traces {
    pub(crate) fn end_turn(&mut self) {
        self.turn_steps = 0;
    }
}

/// The reason why a subscription gets no message of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotDelivered {
    /// The connection is ending.
    Closed,
    /// The connection is the publisher and wants no echo.
    Echo,
    /// The user's permissions deny the subject.
    Denied,
    /// The subscription has had its maximum of messages.
    Maximum,
    /// The message is only traced; the subscription would have got it.
    OnlyTraced,
    /// The client gets the messages in packets of its own protocol.
    InPackets,
}

impl NotDelivered {
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Closed => "Not delivered because client is closed",
            Self::Echo => "Not delivered because of no echo",
            Self::Denied => "Not delivered because subscription denies this subject",
            Self::Maximum => "Not delivered because auto-unsubscribe exceeded",
            Self::OnlyTraced => "Not delivered because it is only traced",
            Self::InPackets => "Delivered in another form",
        }
    }
}

impl Trace {
    pub(crate) fn new(ticket: Ticket, began: Option<Box<MessageTrace>>) -> Self {
        Self { ticket, began, steps: Vec::new(), left_out: 0, hops: 0 }
    }

    /// Notes that the last noted delivery has been dropped.
    pub(crate) fn note_dropped(&mut self) {
        let step = self.steps.last_mut().filter(|_| self.left_out == 0);
        if let Some(Step { event: StepEvent::Egress { error, .. }, .. }) = step {
            *error = Some("Not delivered because client is behind");
        }
    }

    /// Whether the message is only traced, and not delivered.
    pub(crate) fn is_only(&self) -> bool {
        self.ticket.only
    }

    /// Returns subject and account of the report, on the shard where the message came in.
    pub(crate) fn dest(&self) -> Option<(&[u8], AccountId)> {
        self.began.as_ref().map(|began| (&*began.dest, began.account))
    }
}

impl Conn {
    pub(crate) fn party(&self) -> Party {
        match &self.link {
            Some(link) => {
                let (cid, name) = link.peer_names();
                Party { kind: link.kind(), cid, name: name.into() }
            }
            None => {
                let (cid, name) = (self.peer.cid, self.connect.name.clone());
                Party { kind: Kind::Client, cid, name }
            }
        }
    }
}

/// The message being traced, and the traces that are under way.
#[derive(Debug, Default)]
pub(crate) struct Tracer {
    /// The trace, while a traced message is being delivered.
    pub(crate) trace: Option<Box<Trace>>,
    pub(crate) traces: Traces,
}

/// Whether a message of a client or another server has to be looked at by `traced::begin_trace`.
pub(crate) fn is_traced(core: &mut Core, account: AccountId, publish: &Publish<'_>) -> bool {
    let header = publish.header_block();
    // Every message with headers comes by here: a search for the name would cost more.
    let mut lines = memchr::memchr_iter(b'\n', header).map(|end| &header[end + 1..]);
    lines.any(|line| line.starts_with(DEST))
        || (core.accounts.at(account).trace_rule().is_some() && is_sampled(header))
}

/// Notes the reason for which the traced message is refused.
pub(crate) fn note_refused(core: &mut Core, reason: &str) {
    let steps = core.tracer.trace.as_mut().map(|trace| &mut trace.steps);
    for step in steps.into_iter().flatten() {
        if let StepEvent::Ingress { error, .. } = &mut step.event {
            *error = Some(reason.into());
        }
    }
}

/// Ends the trace of a message that has been delivered, as far as this shard is concerned.
pub(crate) fn end_trace(core: &mut Core) {
    let Some(trace) = core.tracer.trace.take() else { return };
    let Trace { ticket, began, steps, left_out, hops } = *trace;
    let Some(mut began) = began else {
        let Ticket { origin, id, credit, .. } = ticket;
        let report = Report { id, credit, steps, left_out, hops };
        core.push_record(origin, Record::Traced(Box::new(report)));
        return;
    };
    (began.steps, began.left_out, began.hops) = (steps, left_out, hops);
    let missing = CREDIT - ticket.credit;
    if missing == 0 {
        core.out.push(Output::Trace(began));
    } else if core.tracer.traces.waiting.len() < WAITING_MAX {
        core.tracer.traces.waiting_steps += began.steps.len();
        core.tracer.traces.waiting.insert(ticket.id, (began, missing));
    }
}

/// Takes the report of another shard that has delivered its part of a traced message.
pub(crate) fn on_traced(core: &mut Core, report: Report) {
    let Report { id, credit, mut steps, left_out, hops } = report;
    let traces = &mut core.tracer.traces;
    let Some((trace, missing)) = traces.waiting.get_mut(&id) else { return };
    let room = STEPS_MAX.saturating_sub(trace.steps.len());
    let room = room.min(STEPS_WAITING_MAX.saturating_sub(traces.waiting_steps));
    trace.left_out += left_out + steps.len().saturating_sub(room) as u64;
    steps.truncate(room);
    traces.waiting_steps += steps.len();
    trace.steps.append(&mut steps);
    trace.hops += hops;
    *missing = missing.saturating_sub(credit);
    if *missing == 0
        && let Some((trace, _)) = traces.waiting.remove(&id)
    {
        traces.waiting_steps -= trace.steps.len();
        core.out.push(Output::Trace(trace));
    }
}

pub(crate) fn note(core: &mut Core, event: StepEvent) {
    let (at_ns, shard) = (core.times.now, core.shard);
    let Some(trace) = &mut core.tracer.trace else { return };
    if trace.steps.len() >= STEPS_MAX || core.tracer.traces.turn_steps >= STEPS_PER_TURN_MAX {
        trace.left_out += 1;
        return;
    }
    core.tracer.traces.turn_steps += 1;
    trace.steps.push(Step { at_ns, shard, event });
}

/// Notes the subject that a mapping has given to the traced message, if one has.
pub(crate) fn note_mapped(core: &mut Core, subject: &[u8], mapped: Option<&Mapped>) {
    if core.tracer.trace.is_some()
        && let Some(Mapped { subject: to, .. }) = mapped
        && **to != *subject
    {
        note(core, StepEvent::Mapped { to: to.clone() });
    }
}

/// Returns the ticket with which another shard traces its part of the message being delivered.
pub(crate) fn ticket(core: &mut Core) -> Option<Box<Ticket>> {
    let trace = core.tracer.trace.as_mut()?;
    let credit = trace.ticket.credit / 2;
    trace.ticket.credit -= credit;
    Some(Box::new(Ticket { credit, ..trace.ticket.clone() }))
}

/// Continues a trace that began on another shard.
pub(crate) fn continue_trace(core: &mut Core, ticket: Option<&Ticket>) {
    core.tracer.trace = ticket.map(|ticket| Box::new(Trace::new(ticket.clone(), None)));
}

/// Notes that the message leaves for another account. It is traced there only if that is `allowed`;
/// else the trace is returned for afterwards.
pub(crate) fn trace_leaves(
    core: &mut Core,
    event: Option<StepEvent>,
    allowed: bool,
) -> Option<Box<Trace>> {
    event.into_iter().for_each(|event| note(core, event));
    if allowed { None } else { core.tracer.trace.take() }
}

/// Resumes the trace after a delivery that may not be traced.
pub(crate) fn resume_trace(core: &mut Core, aside: Option<Box<Trace>>) {
    if aside.is_some() {
        core.tracer.trace = aside;
    }
}

/// Whether the message is only traced, and not delivered.
pub(crate) fn is_trace_only(core: &Core) -> bool {
    core.tracer.trace.as_ref().is_some_and(|trace| trace.is_only())
}
