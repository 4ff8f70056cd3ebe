//! Mirrors and sources in one account: pages of messages from the owners of origins to those of
//! copies.
//!
//! An ask goes by way of the meta shard, which knows where the origin is, to the origin's owner.
//! That one answers at once, or, if the copy has all there is, when a commit has brought more.

use std::collections::BTreeMap;

use super::follow::begin_following;
use super::order::Order;
use super::streams::room;
use super::{ActiveJetStream, META, wall};
use crate::core::Core;
use crate::interest::ids::ShardId;
use crate::store::StreamId;
use crate::stream::{CopyAsk, CopyPage, PublishContext, note_lost};

/// Nanoseconds after which a copy asks again, also if nothing has come.
const ASK_AGAIN_NS: u64 = 2_000_000_000;
/// Nanoseconds after which a new copy asks for the first time: what made it is answered before.
const BEGIN_NS: u64 = 250_000_000;
/// Nanoseconds after which a copy asks again whose origin is not there, or that had no room.
const RETRY_NS: u64 = 1_000_000_000;

/// An ask of a copy, on its way to the origin's owner.
#[derive(Debug, Clone)]
pub(super) struct CopyCall {
    /// The shard of the copy.
    from: ShardId,
    /// The stream that copies.
    copy: StreamId,
    /// Number of the ask: answers to earlier ones are ignored.
    number: u64,
    /// The origin, once the meta shard has found it.
    origin: StreamId,
    ask: CopyAsk,
    /// Whether the answer waits for a message.
    waits: bool,
}

/// The answer to an ask: a page, or none if there is no such origin.
#[derive(Debug)]
pub(super) struct CopyReply {
    copy: StreamId,
    /// Number of the copy in its stream.
    place: usize,
    number: u64,
    page: Option<CopyPage>,
}

impl CopyReply {
    /// Bytes of the messages.
    pub(super) fn bytes(&self) -> usize {
        let messages = self.page.iter().flat_map(|page| &page.messages);
        messages.map(|it| it.subject.len() + it.headers.len() + it.payload.len()).sum()
    }
}

/// The asks of a stream's copies.
#[derive(Debug, Default)]
pub(super) struct Asks {
    asks: Vec<CopyProgress>,
}

#[derive(Debug, Clone, Copy)]
struct CopyProgress {
    number: u64,
    /// Time of the next ask, in nanoseconds since the start of the process.
    again: u64,
    /// Whether the next ask waits for a message: there was none the last time.
    waits: bool,
}

impl Asks {
    pub(super) fn next_deadline(&self) -> Option<u64> {
        self.asks.iter().map(|asked| asked.again).min()
    }
}

/// Asks that wait for messages of streams of this shard.
#[derive(Debug, Default)]
pub(super) struct WaitingAsks {
    /// By origin, and by copy and its place: a further ask replaces the one before.
    by_origin: BTreeMap<StreamId, BTreeMap<(StreamId, usize), CopyCall>>,
}

impl ActiveJetStream {
    /// Begins the copies of a stream, or begins them anew after a change of its configuration.
    pub(super) fn begin_copies(&mut self, core: &mut Core, id: StreamId) {
        let Some(stream) = self.streams.all.get_mut(&id) else { return };
        let copies = stream.live.copies();
        let number = stream.asks.asks.iter().map(|asked| asked.number).max().unwrap_or(0);
        let asked =
            CopyProgress { number, again: core.times.now.saturating_add(BEGIN_NS), waits: false };
        stream.asks.asks = vec![asked; copies];
        begin_following(self, core, id);
    }

    /// Sends the next ask of a copy.
    fn ask(&mut self, core: &mut Core, id: StreamId, place: usize) {
        let Some(stream) = self.streams.all.get_mut(&id) else { return };
        let Some(asked) = stream.asks.asks.get_mut(place) else { return };
        asked.number += 1;
        asked.again = core.times.now.saturating_add(ASK_AGAIN_NS);
        // The ask after one that has waited in vain shows that the origin is there.
        let (number, waits) = (asked.number, std::mem::take(&mut asked.waits));
        let Some(ask) = stream.live.copy_ask(place) else { return };
        let from = core.shard;
        let call = CopyCall { from, copy: id, number, origin: id, ask, waits };
        self.send(core, META, Order::FindOrigin(Box::new(call)));
    }

    /// Asks once more where no answer came, or none with messages.
    pub(super) fn tick_copies(&mut self, core: &mut Core, id: StreamId) {
        let Some(stream) = self.streams.all.get(&id) else { return };
        let asks = stream.asks.asks.iter().enumerate();
        let due = asks.filter(|(_, asked)| asked.again <= core.times.now);
        for place in due.map(|(place, _)| place).collect::<Vec<_>>() {
            self.ask(core, id, place);
        }
    }

    /// Finds the origin of an ask, on the meta shard.
    pub(super) fn find_origin(&mut self, core: &mut Core, mut call: CopyCall) {
        match self.origin_of(call.copy, &call.ask.origin) {
            Some((origin, owner)) => {
                call.origin = origin;
                self.send(core, owner, Order::Ask(Box::new(call)));
            }
            None => self.reply_to_ask(core, &call, None),
        }
    }

    /// Answers an ask with a page of a stream of this shard, or lets it wait.
    pub(super) fn on_ask(&mut self, core: &mut Core, call: CopyCall) {
        let page = self.streams.all.get(&call.origin).and_then(|stream| {
            Some(stream.live.copy_page(self.logs.store(stream.log)?, &call.ask))
        });
        let is_empty = page.as_ref().is_some_and(|page| page.messages.is_empty());
        // A page without messages may be one whose messages are on their way from the disk.
        if is_empty && (self.misses(call.origin) || call.waits) {
            let waiting = self.streams.waiting.by_origin.entry(call.origin).or_default();
            waiting.insert((call.copy, call.ask.copy), call);
            return;
        }
        self.reply_to_ask(core, &call, page);
    }

    fn reply_to_ask(&mut self, core: &mut Core, call: &CopyCall, page: Option<CopyPage>) {
        let CopyCall { copy, number, .. } = *call;
        let reply = CopyReply { copy, place: call.ask.copy, number, page };
        self.send(core, call.from, Order::Page(Box::new(reply)));
    }

    /// Answers the asks that a commit has brought messages for.
    pub(super) fn feed_copies(&mut self, core: &mut Core) {
        if self.streams.waiting.by_origin.is_empty() {
            return;
        }
        let waiting = std::mem::take(&mut self.streams.waiting);
        for call in waiting.by_origin.into_values().flat_map(BTreeMap::into_values) {
            self.on_ask(core, call);
        }
    }

    /// Answers the asks that wait for messages of a stream.
    pub(super) fn feed_copies_of(&mut self, core: &mut Core, id: StreamId) {
        let waiting = self.streams.waiting.by_origin.remove(&id);
        for call in waiting.into_iter().flat_map(BTreeMap::into_values) {
            self.on_ask(core, call);
        }
    }

    /// Answers the asks for a stream that is no more.
    pub(super) fn end_origin(&mut self, core: &mut Core, id: StreamId) {
        let waiting = self.streams.waiting.by_origin.remove(&id);
        for call in waiting.into_iter().flat_map(BTreeMap::into_values) {
            self.reply_to_ask(core, &call, None);
        }
    }

    /// Takes the answer to an ask.
    pub(super) fn on_page(&mut self, core: &mut Core, reply: CopyReply) {
        let CopyReply { copy: id, place, number, page } = reply;
        let now = wall(core);
        let retry = core.times.now.saturating_add(RETRY_NS);
        let Some(stream) = self.streams.all.get_mut(&id) else { return };
        let Some(asked) = stream.asks.asks.get_mut(place) else { return };
        if asked.number != number {
            return;
        }
        let Some(page) = page else {
            asked.again = retry;
            note_lost(&mut stream.live, place);
            return self.settle(core, id);
        };
        let (is_full, bytes_left) = room(core, stream.account, &stream.usage, &stream.live);
        let Some((store, _)) = self.logs.parts(stream.log) else { return };
        let consumers = &stream.consumers;
        let has_interest = &|subject: &[u8]| consumers.wants(subject);
        let context = PublishContext { now, is_full, bytes_left, has_interest };
        let is_taken = stream.live.take_page(store, &context, place, &page);
        // The next ask comes with the next turn: a long way is done in pieces.
        asked.again = if is_taken { core.times.now.saturating_add(1) } else { retry };
        asked.waits = is_taken && page.messages.is_empty();
        self.settle(core, id);
    }
}
