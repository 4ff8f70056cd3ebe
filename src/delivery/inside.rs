//! Messages that the server itself publishes, as values.

use crate::core::Core;
use crate::delivery::deliver;
use crate::delivery::publish::Source;
use crate::delivery::row::MessageRow;
use crate::interest::ids::{AccountId, ConnId};
use crate::run::{Content, Run};

/// A message of the server itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct InnerMessage<'a> {
    pub(crate) subject: &'a [u8],
    /// The reply subject; empty if there is none.
    pub(crate) reply: &'a [u8],
    /// The headers with the line that they begin with; empty if there are none.
    pub(crate) headers: &'a [u8],
    /// The payload without the headers.
    pub(crate) body: &'a [u8],
}

/// Number of a connection that does not exist.
pub(super) const NOBODY: ConnId = ConnId { slot: u32::MAX, generation: u32::MAX };

/// Publishes a message in an account. Its subjects are valid: they were checked where they came
/// from.
pub(crate) fn publish(core: &mut Core, account: AccountId, inner: &InnerMessage<'_>) {
    let reply = Some(inner.reply).filter(|reply| !reply.is_empty());
    let content = Content::new(inner.headers, inner.body);
    let mut row = MessageRow::default();
    row.push(core, account, content.publish(inner.subject, reply));
    row.flush(core);
}

/// Sends a message of a stream to a subject; its receivers see the subject that it was published
/// to. `inner.reply` is an acknowledgement's subject, an `@`, and that subject.
pub(crate) fn send_stored(core: &mut Core, account: AccountId, inner: &InnerMessage<'_>) {
    let targets = core.targets(account, inner.subject);
    if targets.is_empty() {
        return;
    }
    let content = Content::new(inner.headers, inner.body);
    let mut run = Run::default();
    run.push_stored(content.publish(inner.subject, Some(inner.reply)));
    core.charge(&run, &targets);
    let source = Source::new(account, core.shard, NOBODY);
    deliver::deliver(core, &source, &run, &targets);
    core.settle_deliveries();
}

/// Whether anybody takes messages with a subject; in a queue group, if one is named.
pub(crate) fn has_receivers(
    core: &mut Core,
    account: AccountId,
    subject: &[u8],
    queue: Option<&[u8]>,
) -> bool {
    let targets = core.targets(account, subject);
    match queue {
        Some(queue) => targets.queues.place(queue).is_some(),
        None => !targets.is_empty(),
    }
}
