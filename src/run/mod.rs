//! A run: a row of consecutive publishes of one connection to one subject.
//!
//! `tapped` has the runs that wait for receivers inside the server, `frame` those that go to
//! another shard.

#![forbid(unsafe_code)]

pub(crate) mod frame;
pub(crate) mod tapped;
pub(crate) mod ticket;

use std::rc::Rc;

use smallvec::SmallVec;

use crate::interest::cost::Price;
use crate::interest::ids::AccountId;
use crate::interest::mapping::Mapped;
use crate::interest::targets::{Prefix, Targets};
#[cfg(test)]
use crate::proto::{self, Op, Parsed};
use crate::proto::{Header, Publish, encode, gateway, route};

/// Wire bytes from which on a run is shared by its subscribers; a shorter one is copied to each.
pub(crate) const COPY_RUN_BYTES_MAX: usize = 1024;

/// Wire bytes at which a run is handled at the latest: its rendered bytes should stay in the
/// second-level cache.
const RUN_BYTES_MAX: usize = 128 * 1024;

/// One publish of a run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Message<'a> {
    pub(crate) publish: Publish<'a>,
    /// Bytes of the operation as it came, or as a client would have written it.
    wire_bytes: usize,
    /// Whether another server's JetStream sent the message: see [`route::delivered`].
    pub(crate) is_stored: bool,
}

impl<'a> Message<'a> {
    /// Whether the message is one of a stream, whose reply names the subject that is shown.
    pub(crate) fn is_stored(&self) -> bool {
        self.is_stored
    }

    /// Appends the message for subscriptions whose messages begin with `prefix`.
    #[inline]
    fn render(&self, prefix: &Prefix, headers: bool, out: &mut Vec<u8>) {
        let has_header = self.publish.header.is_some();
        match self.publish.tail {
            Some(tail) if !self.is_stored && headers >= has_header => {
                let prefix = prefix.of(has_header);
                out.reserve(prefix.len() + tail.len());
                out.extend_from_slice(prefix);
                out.extend_from_slice(tail);
            }
            _ => self.render_anew(prefix.sid(), headers, out),
        }
    }

    /// Renders the message where it cannot be copied as it came.
    fn render_anew(&self, sid: &[u8], headers: bool, out: &mut Vec<u8>) {
        match self.is_stored {
            false => encode::msg(out, &self.publish, sid, headers),
            true => encode::msg(out, &route::delivered(&self.publish), sid, headers),
        }
    }
}

/// Decimal digits of a number on the wire.
type Digits = SmallVec<[u8; 20]>;

/// The content of a message that the server itself makes.
#[derive(Debug)]
pub(crate) struct Content {
    header_len: usize,
    header_text: Digits,
    size_text: Digits,
    payload: Vec<u8>,
}

impl Content {
    /// A content of these parts; an empty `header` is none.
    pub(crate) fn new(header: &[u8], body: &[u8]) -> Self {
        let payload = [header, body].concat();
        let digits = |number| Digits::from_slice(itoa::Buffer::new().format(number).as_bytes());
        Self {
            header_len: header.len(),
            header_text: digits(header.len()),
            size_text: digits(payload.len()),
            payload,
        }
    }

    /// Returns a message with this content.
    pub(crate) fn publish<'a>(&'a self, subject: &'a [u8], reply: Option<&'a [u8]>) -> Publish<'a> {
        let header = Header { len: self.header_len, text: &self.header_text };
        Publish {
            subject,
            reply,
            header: Some(header).filter(|header| header.len > 0),
            size_text: &self.size_text,
            payload: &self.payload,
            tail: None,
        }
    }
}

/// Consecutive publishes of one connection to one subject.
#[derive(Debug, Default)]
pub(crate) struct Run<'a> {
    pub(crate) messages: Vec<Message<'a>>,
    pub(crate) wire_bytes: usize,
    pub(crate) payload_bytes: usize,
    pub(crate) header_bytes: usize,
    pub(crate) payload_bytes_max: usize,
    pub(crate) has_reply: bool,
    pub(crate) has_stored: bool,
    /// Whether replies name their cluster: receivers here are remembered with them.
    pub(crate) has_mapped: bool,
    /// The mapped subject of the run; it outlives [`Self::clear`].
    pub(crate) mapped: Option<Mapped>,
    /// The account and the receivers, where they are known already.
    pub(crate) aim: Option<(AccountId, Rc<Targets>)>,
    /// Whether each message surely has a receiver, where that was asked for.
    pub(crate) is_certain: Option<bool>,
    /// Work that delivering the run may cost.
    room: u64,
    /// Work of one message more, for asking about its receivers.
    asking: u64,
    /// Messages at which the run is handled, even if more of its kind follow; known with the
    /// second.
    messages_max: usize,
    /// Wire bytes at which the run is handled, in the same way.
    bytes_max: usize,
}

impl<'a> Run<'a> {
    pub(crate) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Whether `publish` continues this run.
    pub(crate) fn continues_with(&mut self, publish: &Publish<'_>) -> bool {
        self.messages.last().is_some_and(|last| last.publish.subject == publish.subject)
            && self.mapped.as_ref().is_none_or(|mapped| mapped.is_certain)
            && !self.is_full()
    }

    /// Whether `publish`, whose mapping is drawn anew each time and was, continues this run.
    pub(crate) fn resumes_with(&mut self, publish: &Publish<'_>, mapped: Option<&Mapped>) -> bool {
        mapped.is_some()
            && self.mapped.as_ref() == mapped
            && self.messages.last().is_some_and(|last| last.publish.subject == publish.subject)
            && !self.is_full()
    }

    fn is_full(&mut self) -> bool {
        if let ([_], Some((_, targets))) = (&self.messages[..], &self.aim) {
            let price = Price { each: targets.price.each + self.asking, ..targets.price };
            let (messages_max, bytes_max) = price.within(self.room);
            (self.messages_max, self.bytes_max) = (messages_max, bytes_max.min(RUN_BYTES_MAX));
        }
        self.wire_bytes >= self.bytes_max || self.messages.len() >= self.messages_max
    }

    /// Begins the run for the receivers `targets`. It ends where the work of its delivery, with
    /// `asking` more for each message, exceeds `room`.
    pub(crate) fn aim(&mut self, account: AccountId, targets: Rc<Targets>, room: u64, asking: u64) {
        self.aim = Some((account, targets));
        (self.room, self.asking) = (room, asking);
    }

    /// Returns the number of messages, from the first, that are within these bounds: at least one.
    pub(crate) fn len_within(&self, messages_max: usize, bytes_max: usize) -> usize {
        if self.len() <= messages_max && self.wire_bytes <= bytes_max {
            return self.len();
        }
        let mut bytes = 0;
        let fits = |message: &&Message<'_>| {
            bytes += message.wire_bytes;
            bytes <= bytes_max
        };
        self.messages.iter().take(messages_max).take_while(fits).count().max(1)
    }

    /// Keeps only the first `count` messages.
    pub(crate) fn keep(&mut self, count: usize) {
        let mut messages = std::mem::take(&mut self.messages);
        messages.truncate(count);
        self.clear();
        messages.into_iter().for_each(|message| self.add(message));
    }

    /// Sets the mapped subject of the messages that follow.
    pub(crate) fn map(&mut self, mapped: Option<Mapped>) {
        self.mapped = mapped;
    }

    pub(crate) fn mapped(&self) -> Option<&Mapped> {
        self.mapped.as_ref()
    }

    /// Returns the run as if it had been published to `subject`. Messages of streams stay such.
    pub(crate) fn renamed<'b>(&'b self, subject: &'b [u8]) -> Run<'b> {
        let mut run = Run { aim: self.aim.clone(), ..Run::default() };
        for message in &self.messages {
            let publish = Publish { subject, ..message.publish };
            let is_mapped = publish.reply.is_some_and(gateway::is_mapped);
            run.push_sent(publish, message.is_stored() || is_mapped);
        }
        run
    }

    /// The run with these replies in place of its own, where there is one.
    pub(crate) fn with_replies<'b>(&'b self, replies: &'b [Option<Box<[u8]>>]) -> Run<'b> {
        let mut run = Run::default();
        for (publish, reply) in self.publishes().zip(replies) {
            let publish = match reply {
                Some(reply) => Publish { reply: Some(reply), tail: None, ..*publish },
                None => *publish,
            };
            run.push_made(publish);
        }
        run
    }

    /// A run of one message that was made here.
    pub(crate) fn of(publish: Publish<'a>) -> Self {
        let mut run = Self::default();
        run.push_made(publish);
        run
    }

    /// Appends a message that was made here, and so has never been on a wire.
    pub(crate) fn push_made(&mut self, publish: Publish<'a>) {
        self.push_sent(publish, publish.reply.is_some_and(gateway::is_mapped));
    }

    /// Appends a message that another shard has sent.
    pub(crate) fn push_sent(&mut self, publish: Publish<'a>, is_stored: bool) {
        let wire_bytes = encode::publish_again_bytes(&publish);
        self.add(Message { publish, wire_bytes, is_stored });
    }

    /// Appends a message that took `wire_bytes` on the wire.
    pub(crate) fn push(&mut self, publish: Publish<'a>, wire_bytes: usize) {
        self.add(Message { publish, wire_bytes, is_stored: false });
    }

    /// Appends a message that another server has sent.
    pub(crate) fn push_routed(&mut self, publish: Publish<'a>, wire_bytes: usize) {
        self.add(Message { publish, wire_bytes, is_stored: route::is_stored(&publish) });
    }

    /// Appends a message of a stream of this server: its reply names the subject that receivers
    /// see, behind an `@`. To other shards and servers it travels as another server's would.
    pub(crate) fn push_stored(&mut self, publish: Publish<'a>) {
        self.push_sent(publish, true);
    }

    fn add(&mut self, message: Message<'a>) {
        let Message { publish, wire_bytes, is_stored } = message;
        self.has_stored |= is_stored;
        self.has_mapped |= is_stored && publish.reply.is_some_and(gateway::is_mapped);
        self.wire_bytes += wire_bytes;
        self.payload_bytes += publish.payload.len();
        self.header_bytes += publish.header.map_or(0, |header| header.len);
        self.payload_bytes_max = self.payload_bytes_max.max(publish.payload.len());
        self.has_reply |= publish.reply.is_some();
        self.messages.push(message);
    }

    pub(crate) fn clear(&mut self) {
        self.messages.clear();
        (self.wire_bytes, self.payload_bytes, self.header_bytes) = (0, 0, 0);
        self.payload_bytes_max = 0;
        (self.has_reply, self.has_stored, self.has_mapped) = (false, false, false);
        (self.aim, self.is_certain) = (None, None);
        (self.messages_max, self.bytes_max) = (0, 0);
    }

    /// An empty run that uses the memory of an older one.
    pub(crate) fn reusing(spare: Run<'_>) -> Self {
        let mut messages = spare.messages;
        messages.clear();
        // Only the lifetime changes: the standard library collects in place.
        let messages = messages.into_iter().map(|_| unreachable!("it is empty")).collect();
        Self { messages, ..Self::default() }
    }

    /// Makes this a run of one message of another run.
    pub(crate) fn only_one_of(&mut self, run: &Run<'a>, at: usize) -> &Self {
        self.only(&run.messages[at])
    }

    /// Returns an upper bound of the bytes that the run renders to for subscriptions with `sid`.
    pub(crate) fn delivered_bytes_max(&self, sid: &[u8]) -> usize {
        self.wire_bytes + self.len() * (sid.len() + 1)
    }

    /// Makes this a run of one message.
    pub(crate) fn only(&mut self, message: &Message<'a>) -> &Self {
        self.clear();
        self.add(*message);
        self
    }

    pub(crate) fn has_headers(&self) -> bool {
        self.header_bytes > 0
    }

    pub(crate) fn len(&self) -> usize {
        self.messages.len()
    }

    pub(crate) fn wire_bytes(&self) -> usize {
        self.wire_bytes
    }

    pub(crate) fn payload_bytes(&self) -> usize {
        self.payload_bytes
    }

    pub(crate) fn publishes(&self) -> impl Iterator<Item = &Publish<'a>> {
        self.messages.iter().map(|message| &message.publish)
    }

    pub(crate) fn subject(&self) -> &'a [u8] {
        self.messages.first().map_or(b"", |message| message.publish.subject)
    }

    /// Returns the payload bytes of the first `count` messages as a receiver with or without
    /// headers gets them.
    pub(crate) fn delivered_bytes(&self, count: usize, headers: bool) -> usize {
        if count == self.len() {
            return self.payload_bytes - if headers { 0 } else { self.header_bytes };
        }
        let bytes_of = |message: &Message<'_>| {
            let header = message.publish.header.map_or(0, |header| header.len);
            message.publish.payload.len() - if headers { 0 } else { header }
        };
        self.messages[..count].iter().map(bytes_of).sum()
    }

    /// Renders the first `count` messages for subscriptions whose messages begin with `prefix`.
    #[inline]
    pub(crate) fn render(&self, count: usize, prefix: &Prefix, headers: bool, out: &mut Vec<u8>) {
        if let [message] = &self.messages[..count] {
            return message.render(prefix, headers, out);
        }
        self.render_all(count, prefix, headers, out);
    }

    /// Renders all messages for one subscription.
    pub(crate) fn render_for(&self, sid: &[u8], headers: bool, out: &mut Vec<u8>) {
        self.messages.iter().for_each(|message| message.render_anew(sid, headers, out));
    }

    fn render_all(&self, count: usize, prefix: &Prefix, headers: bool, out: &mut Vec<u8>) {
        out.reserve(self.wire_bytes + count * (prefix.sid().len() + 4));
        // In most runs no message has a header or a mapped reply: that is decided once.
        let (plain, are_plain) = (prefix.of(false), self.header_bytes == 0 && !self.has_stored);
        for message in &self.messages[..count] {
            match message.publish.tail {
                Some(tail) if are_plain => {
                    out.extend_from_slice(plain);
                    out.extend_from_slice(tail);
                }
                _ => message.render(prefix, headers, out),
            }
        }
    }
}

#[cfg(test)]
impl<'a> Run<'a> {
    /// A run of the publishes of a client that `wire` is made of.
    pub(crate) fn read(mut wire: &'a [u8]) -> Self {
        let limits = proto::ParseLimits {
            control_line_bytes_max: usize::MAX,
            payload_bytes_max: usize::MAX,
            headers: true,
        };
        let mut run = Self::default();
        while let Ok(Parsed::Op { op: Op::Pub(publish), used }) = proto::parse(wire, &limits) {
            run.push(publish, used);
            wire = &wire[used..];
        }
        assert!(wire.is_empty(), "{}", wire.escape_ascii());
        run
    }
}
