//! Messages of the server itself behind one another, each with a subject of its own: the
//! acknowledgements for one publisher, above all.
//!
//! Those that have the same receivers are one run, which is delivered as a whole. For receivers of
//! another shard they travel as one record, a [`MessageBatch`], and are put into rows there.

use std::any::Any;

use crate::core::Core;
use crate::core::shard_message::{InsideRecord, Record};
use crate::delivery::inside::NOBODY;
use crate::delivery::publish::Source;
use crate::delivery::{crossing, deliver, mapped_replies};
use crate::interest::ids::{AccountId, ShardId};
use crate::interest::once::{self, ReplyTargets};
use crate::interest::targets::{Member, Targets};
use crate::proto::{Header, Publish, gateway};
use crate::run::Run;

/// Payload bytes of a message from which on it is published alone.
const PAYLOAD_BYTES_MAX: usize = 1024;
/// Wire bytes at which a row is published: its rendered bytes should stay in the cache.
const ROW_BYTES_MAX: usize = 64 * 1024;
/// Bytes at which a batch for another shard takes no further row.
const BATCH_BYTES_MAX: usize = 64 * 1024;
/// Subscriptions of receivers of a row of more than one message.
const MEMBERS_MAX: usize = 16;

/// A message of a batch, as lengths of its parts, which follow one another in the bytes of the
/// batch.
#[derive(Debug, Clone, Copy)]
struct MessageAt {
    account: AccountId,
    subject_len: usize,
    headers_len: usize,
    body_len: usize,
    /// Lengths of the decimal numbers behind the body: of the headers' length, and of that of both.
    digits: [u8; 2],
}

/// Messages without replies, in the memory of all of them.
#[derive(Debug, Default)]
pub(crate) struct MessageBatch {
    messages: Vec<MessageAt>,
    bytes: Vec<u8>,
}

impl InsideRecord for MessageBatch {
    fn cost_bytes(&self) -> usize {
        self.bytes.len() + size_of_val(&*self.messages)
    }
}

impl MessageBatch {
    pub(crate) fn push(&mut self, account: AccountId, subject: &[u8], headers: &[u8], body: &[u8]) {
        for part in [subject, headers, body] {
            self.bytes.extend_from_slice(part);
        }
        let (subject_len, headers_len, body_len) = (subject.len(), headers.len(), body.len());
        let digits = [headers_len, headers_len + body_len].map(|number| {
            let mut digits = itoa::Buffer::new();
            let digits = digits.format(number).as_bytes();
            self.bytes.extend_from_slice(digits);
            u8::try_from(digits.len()).unwrap_or(u8::MAX)
        });
        self.messages.push(MessageAt { account, subject_len, headers_len, body_len, digits });
    }

    pub(crate) fn clear(&mut self) {
        self.messages.clear();
        self.bytes.clear();
    }

    /// Publishes all messages, in their order.
    pub(crate) fn publish(&self, core: &mut Core) {
        self.publish_in(core, MessageRow::default());
    }

    /// Delivers all messages on this shard, as another one has found them to be for it.
    pub(crate) fn deliver_from(&self, core: &mut Core, staged_by: ShardId) {
        self.publish_in(core, MessageRow { staged_by: Some(staged_by), ..MessageRow::default() });
    }

    fn publish_in<'a>(&'a self, core: &mut Core, mut row: MessageRow<'a>) {
        for (account, publish) in self.publishes() {
            row.push(core, account, publish);
        }
        row.flush(core);
    }

    /// Returns the messages, each with its account.
    fn publishes(&self) -> impl Iterator<Item = (AccountId, Publish<'_>)> {
        let mut rest = &self.bytes[..];
        self.messages.iter().map(move |message| {
            let (subject, behind) = rest.split_at(message.subject_len);
            let (payload, behind) = behind.split_at(message.headers_len + message.body_len);
            let (header_text, behind) = behind.split_at(message.digits[0].into());
            let (size_text, behind) = behind.split_at(message.digits[1].into());
            rest = behind;
            let header = Header { len: message.headers_len, text: header_text };
            let header = Some(header).filter(|header| header.len > 0);
            let (reply, tail) = (None, None);
            (message.account, Publish { subject, reply, header, size_text, payload, tail })
        })
    }
}

/// The way of a row to its receivers.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum RowWay {
    /// Each message is published for itself.
    #[default]
    Alone,
    /// To few subscriptions of this shard, which take what comes, whatever its subject.
    Here,
    /// To receivers of one other shard.
    Shard(ShardId),
}

impl RowWay {
    fn to(core: &Core, targets: &Targets) -> Self {
        let takes_all =
            |member: &Member| core.conns.at(member.conn).is_some_and(|it| it.takes.is_plain());
        let is_beyond = targets.leaves_account() || core.tracer.trace.is_some();
        if is_beyond || !targets.queues.is_empty() || !targets.links.is_empty() {
            return Self::Alone;
        }
        let mut shards = targets.shards_from_client.iter();
        match (shards.next(), shards.next()) {
            (None, _)
                if targets.members <= MEMBERS_MAX
                    && targets.groups.iter().flat_map(|group| &group.members).all(takes_all) =>
            {
                Self::Here
            }
            (Some(shard), None) if targets.members == 0 => Self::Shard(shard),
            _ => Self::Alone,
        }
    }
}

/// Messages behind one another that have the same receivers, and are not published yet.
#[derive(Debug, Default)]
pub(crate) struct MessageRow<'a> {
    /// The messages, aimed at their receivers.
    run: Run<'a>,
    way: RowWay,
    /// The shard that has found receivers of the messages here, if another one has.
    staged_by: Option<ShardId>,
}

impl<'a> MessageRow<'a> {
    /// Adds a message; what it cannot join is published before.
    pub(crate) fn push(&mut self, core: &mut Core, account: AccountId, publish: Publish<'a>) {
        if !self.takes(core, account, &publish) {
            self.flush(core);
            if gateway::is_mapped(publish.subject) {
                // An answer to another cluster.
                let source = Source::new(account, core.shard, NOBODY);
                mapped_replies::send(core, &source, &Run::of(publish));
                return core.settle_deliveries();
            }
            let ReplyTargets { targets, are_common } = targets_once(core, account, publish.subject);
            if targets.is_empty() && self.staged_by.is_none() {
                return;
            }
            self.way = if are_common { RowWay::to(core, &targets) } else { RowWay::Alone };
            if self.staged_by.is_some() && self.way != RowWay::Here {
                self.way = RowWay::Alone;
            }
            self.run.aim = Some((account, targets));
        }
        if publish.reply.is_some() || publish.payload.len() >= PAYLOAD_BYTES_MAX {
            self.way = RowWay::Alone;
        }
        self.run.push_made(publish);
    }

    /// Whether a message can join those that are there.
    fn takes(&self, core: &mut Core, account: AccountId, publish: &Publish<'_>) -> bool {
        self.way != RowWay::Alone
            && publish.reply.is_none()
            && publish.payload.len() < PAYLOAD_BYTES_MAX
            && self.run.aim.as_ref().is_some_and(|(aimed, _)| *aimed == account)
            && self.run.wire_bytes() < ROW_BYTES_MAX
            && once::beginning(self.run.subject()) == once::beginning(publish.subject)
            && !core.accounts.at(account).interest.is_exact(publish.subject)
    }

    /// Publishes what is there.
    pub(crate) fn flush(&mut self, core: &mut Core) {
        let Some((account, targets)) = self.run.aim.take() else { return };
        core.charge(&self.run, &targets);
        match (self.staged_by, self.way) {
            (Some(shard), _) => crossing::deliver_own(core, shard, account, &self.run, &targets),
            (None, RowWay::Shard(shard)) => stage(core, shard, account, &self.run),
            (None, _) => {
                let source = Source::new(account, core.shard, NOBODY);
                deliver::deliver(core, &source, &self.run, &targets);
            }
        }
        core.settle_deliveries();
        self.run.clear();
        self.way = RowWay::Alone;
    }
}

/// Queues messages for a shard, with other ones if those are the last record that waits.
fn stage(core: &mut Core, to: ShardId, account: AccountId, run: &Run<'_>) {
    let add = |batch: &mut MessageBatch| {
        for publish in run.publishes() {
            let (headers, body) = (publish.header_block(), publish.body());
            batch.push(account, publish.subject, headers, body);
        }
    };
    let lane = &mut core.lanes.to[to.index()];
    if let Some(Record::Inside(last)) = lane.queue.back_mut()
        && let Some(batch) = (&mut **last as &mut dyn Any).downcast_mut::<MessageBatch>()
        && batch.bytes.len() < BATCH_BYTES_MAX
    {
        let before = batch.cost_bytes();
        add(batch);
        let cost = batch.cost_bytes() - before;
        lane.bytes += cost;
        lane.all_bytes += cost as u64;
        return;
    }
    let mut batch = MessageBatch::default();
    add(&mut batch);
    core.push_record(to, Record::Inside(Box::new(batch)));
}

/// Returns the receivers of a subject that is not expected again.
pub(super) fn targets_once(core: &mut Core, account: AccountId, subject: &[u8]) -> ReplyTargets {
    let conns = &core.conns;
    let interest = &mut core.accounts.at(account).interest;
    let hash = interest.cache().hash(subject);
    let (found, work) = interest.targets_once(subject, hash, &core.subs, |slot| {
        conns.at(slot).is_some_and(|conn| conn.connect.headers)
    });
    if work > 0 {
        core.budget.spend(work);
        core.hand.bound(&mut core.accounts);
    }
    found
}
