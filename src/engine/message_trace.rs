//! Message tracing: reports on the way of a message with the header `Nats-Trace-Dest`, published
//! on the subject that it names; with `Nats-Trace-Only` the message is not delivered.
//!
//! Such a message is a run of its own. It is refused, and goes nowhere, if its publisher may not
//! publish to the subject of the reports. While it is delivered, [`Engine::trace`] holds the
//! events so far, and is told of each outcome where that is decided; any other run pays one look
//! at a field that is empty.
//!
//! Records to other shards carry a [`Ticket`], and each shard reports to the one that began. That
//! shard knows the end by credit: a ticket has half of the credit that its sender had left, and
//! brings it back, less what it passed on. The thread `system` makes a document of the report and
//! has it published.

#![forbid(unsafe_code)]

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::imports::{Exit, Outlet};
use super::interest::Member;
use super::mapping::Mapped;
use super::operations::is_reserved_subject;
use super::publish::Source;
use super::record::{Record, Report};
use super::run::{Content, Run};
use super::{AccountId, ConnId, Engine, ShardId};
use crate::proto::{Publish, encode};
use crate::subject;

/// Steps of one message that are told; more are counted.
const STEPS_MAX: usize = 4096;
/// Steps that a shard notes in one turn, over all messages.
const STEPS_PER_TURN_MAX: usize = 16 * 1024;
/// Steps that are kept while other shards are waited for.
const STEPS_WAITING_MAX: usize = 64 * 1024;
/// Messages for which other shards are waited for; what comes beyond is not told.
const WAITING_MAX: usize = 1024;

/// All of a trace; halved for each shard that has a part in it.
pub(super) const CREDIT: u128 = 1 << 120;

pub(super) const DEST: &[u8] = b"Nats-Trace-Dest:";
const ONLY: &[u8] = b"Nats-Trace-Only:";
const HOP: &[u8] = b"Nats-Trace-Hop:";
const ORIGIN_ACCOUNT: &[u8] = b"Nats-Trace-Origin-Account:";
/// What becomes of the destination where a message leaves those who may follow it.
pub(super) const DISABLED: &[u8] = b"trace disabled";

/// A peer with at least this protocol tells what becomes of a message.
const PEER_PROTO_MIN: i32 = 3;

/// What became of a message, as far as this server knows.
#[derive(Debug)]
pub struct MessageTrace {
    /// Where it was published, and that is to be.
    pub shard: ShardId,
    /// In which account.
    pub account: AccountId,
    /// On which subject.
    pub dest: Box<[u8]>,
    /// The message's header block.
    pub header: Box<[u8]>,
    /// Bytes of the message.
    pub message_bytes: usize,
    /// Other servers that tell the rest.
    pub hops: u32,
    /// What happened, in order on each shard.
    pub steps: Vec<Step>,
    /// How much more.
    pub left_out: u64,
}

/// One thing that happened to a message.
#[derive(Debug)]
pub struct Step {
    /// When, in nanoseconds since the process began.
    pub at_ns: u64,
    /// Where.
    pub shard: ShardId,
    /// What.
    pub event: StepEvent,
}

/// Someone at the other end of a connection.
#[derive(Debug, Clone)]
pub struct Party {
    /// A server, not a client.
    pub is_server: bool,
    /// The connection's number.
    pub cid: u64,
    /// Its name.
    pub name: Box<str>,
}

/// What can happen to a message.
#[derive(Debug)]
pub enum StepEvent {
    /// It came in.
    Ingress {
        /// From whom.
        from: Party,
        /// In which account.
        account: Arc<str>,
        /// On which subject.
        subject: Box<[u8]>,
        /// Why it goes no further.
        error: Option<Box<str>>,
    },
    /// A mapping renamed it.
    Mapped {
        /// What its subject is now.
        to: Box<[u8]>,
    },
    /// It entered a service.
    Service {
        /// The account that answers.
        account: Arc<str>,
        /// Its subject before.
        from: Box<[u8]>,
        /// And now.
        to: Box<[u8]>,
    },
    /// An account has it by a stream.
    Stream {
        /// That account.
        account: Arc<str>,
        /// Its subject there.
        to: Box<[u8]>,
    },
    /// It went out.
    Egress {
        /// To whom.
        to: Party,
        /// In which account, if not in that where it came in.
        account: Option<Arc<str>>,
        /// For which subscription; of a server none is known.
        filter: Option<Box<[u8]>>,
        /// As a member of which queue group.
        queue: Option<Box<[u8]>>,
        /// What a server calls its part of the way.
        hop: Option<u32>,
        /// Why not.
        error: Option<&'static str>,
    },
}

impl MessageTrace {
    /// What it costs to keep, in bytes.
    pub fn cost_bytes(&self) -> usize {
        size_of::<Self>() + self.header.len() + self.steps.len() * STEP_BYTES
    }
}

/// About what a step costs with its texts, in bytes.
pub(super) const STEP_BYTES: usize = 256;

/// Goes along with a traced message to another shard.
#[derive(Debug, Clone)]
pub(super) struct Ticket {
    /// Where it is reported to.
    pub(super) origin: ShardId,
    pub(super) id: u64,
    pub(super) credit: u128,
    /// Nobody gets the message.
    pub(super) only: bool,
    /// Where it came in.
    pub(super) account: AccountId,
}

/// What is known of the message that is being delivered.
#[derive(Debug)]
pub(super) struct Trace {
    pub(super) ticket: Ticket,
    /// There where it came in.
    began: Option<Box<MessageTrace>>,
    steps: Vec<Step>,
    left_out: u64,
    hops: u32,
}

/// The traces of a shard.
#[derive(Debug, Default)]
pub(super) struct Traces {
    /// Those that other shards have a part in, with the credit that is still to come back.
    waiting: HashMap<u64, (Box<MessageTrace>, u128)>,
    /// Steps in them.
    waiting_steps: usize,
    ended: VecDeque<Box<MessageTrace>>,
    next_id: u64,
    /// Steps noted in this turn.
    turn_steps: usize,
}

/// What a header block asks for.
struct Wanted {
    dest: Box<[u8]>,
    only: bool,
}

/// Whether a message is traced.
#[derive(Debug)]
pub(super) enum Traced {
    /// It is delivered as any other.
    No,
    /// What becomes of it is noted.
    Yes,
    /// It goes no further: it was to be traced alone, and cannot be.
    Ends,
    /// It goes no further: its publisher may not publish there where it is to be told of.
    Denied(Box<[u8]>),
}

impl Traces {
    pub(super) fn end_turn(&mut self) {
        self.turn_steps = 0;
    }
}

impl Engine {
    /// What became of traced messages, until there is nothing more.
    pub fn pop_message_trace(&mut self) -> Option<Box<MessageTrace>> {
        self.traces.ended.pop_front()
    }

    /// Whether a message of a client or another server has to be looked at by
    /// [`Self::begin_trace`].
    pub(super) fn is_traced(&mut self, account: AccountId, publish: &Publish<'_>) -> bool {
        let header = publish.header_block();
        // Every message with headers comes by here: a search for the name would cost more.
        let mut lines = memchr::memchr_iter(b'\n', header).map(|end| &header[end + 1..]);
        lines.any(|line| line.starts_with(DEST))
            || (self.accounts.at(account).trace_rule().is_some() && is_sampled(header))
    }

    /// Begins to trace a message of `from`, as it came.
    pub(super) fn begin_trace(
        &mut self,
        from: ConnId,
        account: AccountId,
        publish: &Publish<'_>,
    ) -> Traced {
        let Wanted { dest, only } = match self.wanted_trace(from, account, publish) {
            Ok(wanted) => wanted,
            Err(untraced) => return untraced,
        };
        if !self.may_trace(from, account, &dest) {
            if let Some(conn) = self.conns.get(from) {
                let dest = encode::go_quoted(&dest);
                tracing::error!("{} - Publish Violation - Subject {dest}", conn.label());
            }
            return Traced::Denied(dest);
        }
        let id = self.traces.next_id;
        self.traces.next_id += 1;
        let ticket = Ticket { origin: self.shard, id, credit: CREDIT, only, account };
        let began = MessageTrace {
            shard: self.shard,
            account,
            dest,
            header: publish.header_block().into(),
            message_bytes: publish.payload.len(),
            hops: 0,
            steps: Vec::new(),
            left_out: 0,
        };
        self.trace = Some(Box::new(Trace::new(ticket, Some(Box::new(began)))));
        let Some(conn) = self.conns.get(from) else { return Traced::Yes };
        let from = conn.party();
        let account = self.accounts.name(account);
        let subject = publish.subject.into();
        self.note(StepEvent::Ingress { from, account, subject, error: None });
        Traced::Yes
    }

    /// Whether `from` may publish where it wants to be told.
    fn may_trace(&mut self, from: ConnId, account: AccountId, dest: &[u8]) -> bool {
        if is_reserved_subject(dest, self.accounts.system == Some(account)) {
            return false;
        }
        let Some(conn) = self.conns.get_mut(from) else { return false };
        if conn.route.is_some() {
            return self.settings.route.tells(dest);
        }
        match conn.user.as_ref().and_then(|user| user.permissions.as_ref()) {
            None => true,
            Some(user) => conn.checks.get_or_insert_default().may_always_publish(user, dest),
        }
    }

    /// Notes why the message that is traced is not taken from its publisher.
    pub(super) fn note_refused(&mut self, reason: &str) {
        let steps = self.trace.as_mut().map(|trace| &mut trace.steps);
        for step in steps.into_iter().flatten() {
            if let StepEvent::Ingress { error, .. } = &mut step.event {
                *error = Some(reason.into());
            }
        }
    }

    /// What a message asks for; what becomes of it if that is nothing.
    fn wanted_trace(
        &mut self,
        from: ConnId,
        account: AccountId,
        publish: &Publish<'_>,
    ) -> Result<Wanted, Traced> {
        let header = publish.header_block();
        let dest = value_of(header, DEST).unwrap_or_default();
        if dest == DISABLED {
            return Err(Traced::No);
        }
        let (dest, only) = if dest.is_empty() {
            let rule = self.accounts.at(account).trace_rule().cloned();
            let rule = rule.filter(|_| is_sampled(header)).ok_or(Traced::No)?;
            if rule.sampling < 100 && self.rng.u8(..100) >= rule.sampling {
                return Err(Traced::No);
            }
            (rule.dest.as_bytes().into(), false)
        } else {
            let only = value_of(header, ONLY).is_some_and(|value| {
                [&b"true"[..], b"1", b"on"].iter().any(|yes| value.eq_ignore_ascii_case(yes))
            });
            (dest.into(), only)
        };
        let wanted = Wanted { dest, only };
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
        if let Some(conn) = self.conns.get(from) {
            tracing::error!("{} - {problem}", conn.label());
        }
        // Who wanted it to be traced alone did not want it to be delivered.
        Err(if only { Traced::Ends } else { Traced::No })
    }

    /// The message has been delivered, as far as this shard is concerned.
    pub(super) fn end_trace(&mut self) {
        let Some(trace) = self.trace.take() else { return };
        let Trace { ticket, began, steps, left_out, hops } = *trace;
        let Some(mut began) = began else {
            let Ticket { origin, id, credit, .. } = ticket;
            let report = Report { id, credit, steps, left_out, hops };
            self.push_record(origin, Record::Traced(Box::new(report)));
            return;
        };
        (began.steps, began.left_out, began.hops) = (steps, left_out, hops);
        let missing = CREDIT - ticket.credit;
        if missing == 0 {
            self.traces.ended.push_back(began);
        } else if self.traces.waiting.len() < WAITING_MAX {
            self.traces.waiting_steps += began.steps.len();
            self.traces.waiting.insert(ticket.id, (began, missing));
        }
    }

    /// Another shard has delivered its part of a traced message.
    pub(super) fn on_traced(&mut self, report: Report) {
        let Report { id, credit, mut steps, left_out, hops } = report;
        let traces = &mut self.traces;
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
            traces.ended.push_back(trace);
        }
    }

    fn note(&mut self, event: StepEvent) {
        let (at_ns, shard) = (self.now, self.shard);
        let Some(trace) = &mut self.trace else { return };
        if trace.steps.len() >= STEPS_MAX || self.traces.turn_steps >= STEPS_PER_TURN_MAX {
            trace.left_out += 1;
            return;
        }
        self.traces.turn_steps += 1;
        trace.steps.push(Step { at_ns, shard, event });
    }

    /// Notes what a mapping has made of the subject of the message that is traced, if one is.
    pub(super) fn note_mapped(&mut self, subject: &[u8], mapped: Option<&Mapped>) {
        if self.trace.is_some()
            && let Some(Mapped { subject: to, .. }) = mapped
            && **to != *subject
        {
            self.note(StepEvent::Mapped { to: to.clone() });
        }
    }

    /// What another shard needs to trace its part of the message that is being delivered.
    pub(super) fn ticket(&mut self) -> Option<Box<Ticket>> {
        let trace = self.trace.as_mut()?;
        let credit = trace.ticket.credit / 2;
        trace.ticket.credit -= credit;
        Some(Box::new(Ticket { credit, ..trace.ticket.clone() }))
    }

    /// Goes on with a trace that began on another shard.
    pub(super) fn continue_trace(&mut self, ticket: Option<&Ticket>) {
        self.trace = ticket.map(|ticket| Box::new(Trace::new(ticket.clone(), None)));
    }

    /// The message leaves for another account. Beyond it is traced only if that is `allowed`; else
    /// the trace is returned for afterwards.
    pub(super) fn trace_leaves(
        &mut self,
        event: Option<StepEvent>,
        allowed: bool,
    ) -> Option<Box<Trace>> {
        event.into_iter().for_each(|event| self.note(event));
        if allowed { None } else { self.trace.take() }
    }

    /// The same where it leaves by an exit. Whoever would have got it there counts.
    pub(super) fn trace_exit(&mut self, one: &Run<'_>, exit: &Exit) -> Option<Box<Trace>> {
        let to = exit.subject.clone();
        let (event, allowed) = match &*exit.outlet {
            Outlet::Stream { to: importer, trace, .. } => {
                let reaches = self.targets(*importer, &to).has_clients();
                let account = self.accounts.name(*importer);
                (reaches.then_some(StepEvent::Stream { account, to }), *trace)
            }
            Outlet::Service { to: asked, trace, .. } => {
                let (account, from) = (self.accounts.name(*asked), one.subject().into());
                (Some(StepEvent::Service { account, from, to }), *trace)
            }
            Outlet::Server { .. } => return None,
        };
        if event.is_some() && !allowed && self.is_trace_only() {
            self.place_first(one.len());
        }
        self.trace_leaves(event, allowed)
    }

    /// What may not be traced has been delivered.
    pub(super) fn resume_trace(&mut self, aside: Option<Box<Trace>>) {
        if aside.is_some() {
            self.trace = aside;
        }
    }

    /// Notes what came of it that a member was offered the message, and that it does not get what
    /// is only traced.
    #[cold]
    pub(super) fn trace_egress(
        &mut self,
        source: &Source,
        member: Member,
        taken: Result<usize, NotDelivered>,
    ) -> Result<usize, NotDelivered> {
        let Some(conn) = self.conns.at(member.conn) else { return taken };
        let to = conn.party();
        let sub = &self.subs[member.sub as usize];
        let (filter, queue) = (Some(sub.subject().into()), sub.queue().map(Into::into));
        let is_elsewhere = self.trace.as_ref().is_some_and(|t| t.ticket.account != source.account);
        let account = is_elsewhere.then(|| self.accounts.name(source.account));
        let error = taken.err().map(NotDelivered::text);
        self.note(StepEvent::Egress { to, account, filter, queue, hop: None, error });
        if taken.is_ok() && self.is_trace_only() {
            self.place_first(1);
            return Err(NotDelivered::OnlyTraced);
        }
        taken
    }

    /// Whether the message is not to be delivered.
    pub(super) fn is_trace_only(&self) -> bool {
        self.trace.as_ref().is_some_and(|trace| trace.is_only())
    }

    /// Notes that the message goes over an own route. Returns it with the number of that part of
    /// its way; `None` if it is not to go there.
    #[cold]
    pub(super) fn trace_hop(&mut self, slot: u32, one: &Run<'_>) -> Option<Numbered> {
        let shards = u32::try_from(self.lanes.len()).unwrap_or(1);
        let conn = self.conns.at(slot).filter(|conn| conn.takes_deliveries())?;
        let proto = conn.route.as_ref()?.peer_proto();
        let trace = self.trace.as_mut()?;
        let number = trace.hops * shards + u32::from(self.shard.0) + 1;
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
        self.note(StepEvent::Egress { to, account: None, filter: None, queue: None, hop, error });
        if only && error.is_some() {
            return None;
        }
        Numbered::new(one, number)
    }
}

/// A traced message as it goes over a route.
#[derive(Debug)]
pub(super) struct Numbered {
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

    pub(super) fn run(&self) -> Run<'_> {
        Run::of(self.content.publish(&self.subject, self.reply.as_deref()))
    }
}

/// The reason why a subscription gets no message of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotDelivered {
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
}

impl NotDelivered {
    fn text(self) -> &'static str {
        match self {
            Self::Closed => "Not delivered because client is closed",
            Self::Echo => "Not delivered because of no echo",
            Self::Denied => "Not delivered because subscription denies this subject",
            Self::Maximum => "Not delivered because auto-unsubscribe exceeded",
            Self::OnlyTraced => "Not delivered because it is only traced",
        }
    }
}

impl Trace {
    fn new(ticket: Ticket, began: Option<Box<MessageTrace>>) -> Self {
        Self { ticket, began, steps: Vec::new(), left_out: 0, hops: 0 }
    }

    /// Notes that the delivery that was noted last has been dropped.
    pub(super) fn note_dropped(&mut self) {
        let step = self.steps.last_mut().filter(|_| self.left_out == 0);
        if let Some(Step { event: StepEvent::Egress { error, .. }, .. }) = step {
            *error = Some("Not delivered because client is behind");
        }
    }

    /// Whether nobody gets the message.
    pub(super) fn is_only(&self) -> bool {
        self.ticket.only
    }

    /// Where its steps are told.
    pub(super) fn dest(&self) -> Option<(&[u8], AccountId)> {
        self.began.as_ref().map(|began| (&*began.dest, began.account))
    }
}

impl super::Conn {
    fn party(&self) -> Party {
        match &self.route {
            Some(route) => {
                let (cid, name) = route.peer_names();
                Party { is_server: true, cid, name: name.into() }
            }
            None => Party {
                is_server: false,
                cid: self.peer.cid,
                name: self.connect.name.as_str().into(),
            },
        }
    }
}

/// The header block's lines, if it is one as nats-server reads it: only CRLF ends one.
fn lines(header: &[u8]) -> impl Iterator<Item = &[u8]> {
    let lines = header.strip_prefix(b"NATS/1.0\r\n").filter(|lines| lines.ends_with(b"\r\n"));
    let mut rest = lines.unwrap_or_default();
    std::iter::from_fn(move || {
        let end = memchr::memmem::find(rest, b"\r\n")?;
        let line = &rest[..end];
        rest = &rest[end + 2..];
        Some(line)
    })
    .filter(|line| !line.is_empty())
}

/// The first value of a header; `name` has its colon.
fn value_of<'a>(header: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    lines(header).find_map(|line| line.strip_prefix(name)).map(trimmed)
}

/// A value without the blanks around it.
fn trimmed(value: &[u8]) -> &[u8] {
    let is_shown = |byte: &u8| !matches!(byte, b' ' | b'\t');
    let Some(first) = value.iter().position(is_shown) else { return b"" };
    let last = value.iter().rposition(is_shown).unwrap_or(first);
    &value[first..=last]
}

/// Names and values of a header block, each name once, in the order of names; empty values are
/// left out.
pub fn header_values(header: &[u8]) -> Vec<(&[u8], Vec<&[u8]>)> {
    let mut all: std::collections::BTreeMap<&[u8], Vec<&[u8]>> = std::collections::BTreeMap::new();
    for line in lines(header) {
        let Some(colon) = memchr::memchr(b':', line).filter(|colon| *colon > 0) else { continue };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if !value.is_empty() {
            all.entry(name).or_default().push(value);
        }
    }
    all.into_iter().collect()
}

/// Whether another system traces this message: `traceparent` with its flag for that.
fn is_sampled(header: &[u8]) -> bool {
    const NAME: &[u8] = b"traceparent:";
    let parent = lines(header).find_map(|line| {
        let (name, value) = line.split_at_checked(NAME.len())?;
        name.eq_ignore_ascii_case(NAME).then_some(value.trim_ascii())
    });
    let mut fields = parent.unwrap_or_default().split(|byte| *byte == b'-');
    let flags = fields.nth(3).filter(|flags| flags.len() == 2 && fields.next().is_none());
    let flags = flags.and_then(|flags| std::str::from_utf8(flags).ok());
    flags.and_then(|flags| u8::from_str_radix(flags, 16).ok()).is_some_and(|flags| flags & 1 == 1)
}

/// A header block in which `name`, with its colon, has this value alone, as the last of all.
pub(super) fn with_header(header: &[u8], name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut new = Vec::with_capacity(header.len() + name.len() + value.len() + 16);
    let lines = header.strip_suffix(b"\r\n\r\n").unwrap_or(b"NATS/1.0");
    for line in lines.split(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let is_old = line.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name));
        if !is_old {
            new.extend_from_slice(line);
            new.extend_from_slice(b"\r\n");
        }
    }
    new.extend_from_slice(name);
    new.push(b' ');
    new.extend_from_slice(value);
    new.extend_from_slice(b"\r\n\r\n");
    new
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_counts_only_as_nats_server_reads_it() {
        let dest = |header: &str| {
            let header = header.as_bytes().to_vec();
            value_of(&header, DEST).map(|value| String::from_utf8(value.to_vec()).unwrap())
        };
        for header in [
            "NATS/1.0\r\nNats-Trace-Dest: a\r\n\r\n",
            "NATS/1.0\r\nNats-Trace-Dest:a\r\n\r\n",
            "NATS/1.0\r\nX: y\r\nNats-Trace-Dest:   a  \r\nNats-Trace-Dest: b\r\n\r\n",
        ] {
            assert_eq!(dest(header).as_deref(), Some("a"), "{header}");
        }
        for header in [
            "",
            "NATS/1.0\r\n\r\n",
            "NATS/1.0 503\r\nNats-Trace-Dest: a\r\n\r\n",
            "NATS/1.0\r\nnats-trace-dest: a\r\n\r\n",
            "NATS/1.0\r\n Nats-Trace-Dest: a\r\n\r\n",
            "NATS/1.0\r\nNats-Trace-Dest : a\r\n\r\n",
            "NATS/1.0\r\nX-Nats-Trace-Dest: a\r\n\r\n",
            "NATS/1.0\r\nNats-Trace-Dest: a",
            "NATS/1.0\nNats-Trace-Dest: a\n\n",
            "Nats-Trace-Dest: a\r\n\r\n",
        ] {
            assert_eq!(dest(header), None, "{header}");
        }
    }

    #[test]
    fn values_are_gathered_by_name_and_empty_ones_left_out() {
        let header = b"NATS/1.0\r\nB: 1\r\na: 2\r\nB:3 \r\nE: \r\nnone\r\n: x\r\n\r\n";
        let found = header_values(header);
        let expected: [(&[u8], Vec<&[u8]>); 2] = [(b"B", vec![b"1", b"3"]), (b"a", vec![b"2"])];
        assert_eq!(found, expected);
    }

    #[test]
    fn another_systems_trace_counts_when_its_flag_says_so() {
        let is = |value: &str| is_sampled(format!("NATS/1.0\r\n{value}\r\n\r\n").as_bytes());
        assert!(is("traceparent: 00-a-b-01") && is("TraceParent:00-a-b-03"));
        for value in ["traceparent: 00-a-b-00", "traceparent: 00-a-b", "traceparent: 00-a-b-1"] {
            assert!(!is(value), "{value}");
        }
        assert!(!is("traceparent: 00-a-b-01-c") && !is("tracestate: 00-a-b-01"));
    }

    #[test]
    fn a_header_is_set_in_place_of_all_of_its_name() {
        let set =
            |header: &str| String::from_utf8(with_header(header.as_bytes(), HOP, b"2")).unwrap();
        assert_eq!(set(""), "NATS/1.0\r\nNats-Trace-Hop: 2\r\n\r\n");
        let twice = "NATS/1.0\r\nNats-Trace-Hop: 1\r\nA: b\r\nnats-trace-hop: 7\r\n\r\n";
        assert_eq!(set(twice), "NATS/1.0\r\nA: b\r\nNats-Trace-Hop: 2\r\n\r\n");
    }
}
