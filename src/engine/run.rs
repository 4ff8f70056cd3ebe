//! A run: a row of consecutive publishes of one connection to one subject.

#![forbid(unsafe_code)]

use std::rc::Rc;

use bytes::Bytes;
use smallvec::SmallVec;

use super::AccountId;
use super::budget::Price;
use super::interest::Targets;
use super::mapping::Mapped;
use crate::proto::route::{self, RouteOp, RouteParsed};
use crate::proto::{self, Header, Op, Parsed, Publish, encode};

/// A run is handled at this many wire bytes at the latest: what it renders to should stay in the
/// second-level cache.
const RUN_BYTES_MAX: usize = 128 * 1024;

/// One publish of a run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Message<'a> {
    pub(super) publish: Publish<'a>,
    /// The whole operation as it came; empty if the message was made here.
    wire: &'a [u8],
    /// It was sent by another server's JetStream: see [`route::delivered`].
    is_stored: bool,
    /// It came over a route for one account, and does not name it.
    is_unnamed: bool,
}

impl<'a> Message<'a> {
    /// The message as its receivers see it.
    fn shown(&self) -> Publish<'a> {
        if self.is_stored { route::delivered(&self.publish) } else { self.publish }
    }

    /// Appends it in a form that can be read without knowing where it came from.
    pub(super) fn write(&self, wire: &mut Vec<u8>) {
        if self.is_unnamed {
            route::msg(wire, b"-", &self.publish, &[], true);
        } else if self.wire.is_empty() {
            encode::publish_again(wire, &self.publish);
        } else {
            wire.extend_from_slice(self.wire);
        }
    }

    /// What it takes on a wire, in bytes.
    fn wire_bytes(&self) -> usize {
        match self.wire {
            b"" => encode::publish_again_bytes(&self.publish),
            wire => wire.len(),
        }
    }
}

/// A number as the wire has it.
type Digits = SmallVec<[u8; 20]>;

/// The content of a message that the server itself makes.
#[derive(Debug)]
pub(super) struct Content {
    header_len: usize,
    header_text: Digits,
    size_text: Digits,
    payload: Vec<u8>,
}

impl Content {
    /// `header` is empty if there is none.
    pub(super) fn new(header: &[u8], body: &[u8]) -> Self {
        let payload = [header, body].concat();
        let digits = |number| Digits::from_slice(itoa::Buffer::new().format(number).as_bytes());
        Self {
            header_len: header.len(),
            header_text: digits(header.len()),
            size_text: digits(payload.len()),
            payload,
        }
    }

    /// A message with this content.
    pub(super) fn publish<'a>(&'a self, subject: &'a [u8], reply: Option<&'a [u8]>) -> Publish<'a> {
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
pub(super) struct Run<'a> {
    pub(super) messages: Vec<Message<'a>>,
    pub(super) wire_bytes: usize,
    pub(super) payload_bytes: usize,
    pub(super) header_bytes: usize,
    pub(super) payload_bytes_max: usize,
    pub(super) has_reply: bool,
    pub(super) has_stored: bool,
    /// What a mapping has made of the subject; it outlives [`Self::clear`].
    pub(super) mapped: Option<Mapped>,
    /// The account, and who gets it, where that is known already.
    pub(super) aim: Option<(AccountId, Rc<Targets>)>,
    /// Whether somebody surely gets each message of it, where that was asked for.
    pub(super) is_certain: Option<bool>,
    /// What giving it to all of them may cost, and what asking of one message more does.
    room: u64,
    asking: u64,
    /// It is handled at so many messages, …
    messages_max: usize,
    /// … or so many wire bytes, even if more of its kind follow. Known when a second one does.
    bytes_max: usize,
}

impl<'a> Run<'a> {
    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Whether `publish` continues this run.
    pub(super) fn continues_with(&mut self, publish: &Publish<'_>) -> bool {
        self.messages.last().is_some_and(|last| last.publish.subject == publish.subject)
            && self.mapped.as_ref().is_none_or(|mapped| mapped.is_certain)
            && !self.is_full()
    }

    /// The same for a publish whose mapping is drawn anew each time, and was.
    pub(super) fn resumes_with(&mut self, publish: &Publish<'_>, mapped: Option<&Mapped>) -> bool {
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

    /// It begins: these get it, and it is as long as there is `room` for what that costs. With
    /// `asking` that is so much more for each message.
    pub(super) fn aim(&mut self, account: AccountId, targets: Rc<Targets>, room: u64, asking: u64) {
        self.aim = Some((account, targets));
        (self.room, self.asking) = (room, asking);
    }

    /// How many of its messages, from the first, there are within these bounds: at least one.
    pub(super) fn len_within(&self, messages_max: usize, bytes_max: usize) -> usize {
        if self.len() <= messages_max && self.wire_bytes <= bytes_max {
            return self.len();
        }
        let mut bytes = 0;
        let fits = |message: &&Message<'_>| {
            bytes += message.wire_bytes();
            bytes <= bytes_max
        };
        self.messages.iter().take(messages_max).take_while(fits).count().max(1)
    }

    /// Leaves only the first `count` messages in it. Returns their wire bytes.
    pub(super) fn keep(&mut self, count: usize) -> usize {
        let mut messages = std::mem::take(&mut self.messages);
        messages.truncate(count);
        self.clear();
        messages.into_iter().for_each(|message| self.add(message, message.wire_bytes()));
        self.wire_bytes
    }

    /// What follows is mapped to this.
    pub(super) fn map(&mut self, mapped: Option<Mapped>) {
        self.mapped = mapped;
    }

    pub(super) fn mapped(&self) -> Option<&Mapped> {
        self.mapped.as_ref()
    }

    /// The same run as if it had been published to `subject`.
    pub(super) fn renamed<'b>(&'b self, subject: &'b [u8]) -> Run<'b> {
        let mut run = Run { aim: self.aim.clone(), ..Run::default() };
        self.publishes().for_each(|publish| run.push_made(Publish { subject, ..*publish }));
        run
    }

    /// A run of one message that was made here.
    pub(super) fn of(publish: Publish<'a>) -> Self {
        let mut run = Self::default();
        run.push_made(publish);
        run
    }

    /// Takes in a message that was made here, and so has never been on a wire.
    fn push_made(&mut self, publish: Publish<'a>) {
        let message = Message { publish, wire: b"", is_stored: false, is_unnamed: false };
        self.add(message, message.wire_bytes());
    }

    pub(super) fn push(&mut self, publish: Publish<'a>, wire: &'a [u8]) {
        let message = Message { publish, wire, is_stored: false, is_unnamed: false };
        self.add(message, wire.len());
    }

    /// The same for what another server has sent.
    pub(super) fn push_routed(
        &mut self,
        publish: Publish<'a>,
        wire: &'a [u8],
        accounts: route::Accounts,
    ) {
        let is_unnamed = accounts == route::Accounts::Unnamed;
        let message = Message { publish, wire, is_stored: route::is_stored(&publish), is_unnamed };
        self.add(message, wire.len());
    }

    fn add(&mut self, message: Message<'a>, wire_bytes: usize) {
        let Message { publish, is_stored, .. } = message;
        self.has_stored |= is_stored;
        self.wire_bytes += wire_bytes;
        self.payload_bytes += publish.payload.len();
        self.header_bytes += publish.header.map_or(0, |header| header.len);
        self.payload_bytes_max = self.payload_bytes_max.max(publish.payload.len());
        self.has_reply |= publish.reply.is_some();
        self.messages.push(message);
    }

    pub(super) fn clear(&mut self) {
        self.messages.clear();
        (self.wire_bytes, self.payload_bytes, self.header_bytes) = (0, 0, 0);
        self.payload_bytes_max = 0;
        (self.has_reply, self.has_stored) = (false, false);
        (self.aim, self.is_certain) = (None, None);
        (self.messages_max, self.bytes_max) = (0, 0);
    }

    /// An empty run that uses the memory of an older one.
    pub(super) fn reusing(spare: Run<'_>) -> Self {
        let mut messages = spare.messages;
        messages.clear();
        // Only the lifetime changes: the standard library collects in place.
        let messages = messages.into_iter().map(|_| unreachable!("it is empty")).collect();
        Self { messages, ..Self::default() }
    }

    /// Makes it a run of one message of another run.
    pub(super) fn only_one_of(&mut self, run: &Run<'a>, at: usize) -> &Self {
        self.only(&run.messages[at])
    }

    /// At least what it renders to for subscriptions with `sid`, in bytes.
    pub(super) fn delivered_bytes_max(&self, sid: &[u8]) -> usize {
        self.wire_bytes + self.len() * (sid.len() + 1)
    }

    /// Makes it a run of one message.
    pub(super) fn only(&mut self, message: &Message<'a>) -> &Self {
        self.clear();
        self.add(*message, message.wire_bytes());
        self
    }

    pub(super) fn has_headers(&self) -> bool {
        self.header_bytes > 0
    }

    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }

    pub(super) fn wire_bytes(&self) -> usize {
        self.wire_bytes
    }

    pub(super) fn payload_bytes(&self) -> usize {
        self.payload_bytes
    }

    pub(super) fn publishes(&self) -> impl Iterator<Item = &Publish<'a>> {
        self.messages.iter().map(|message| &message.publish)
    }

    pub(super) fn subject(&self) -> &'a [u8] {
        self.messages.first().map_or(b"", |message| message.publish.subject)
    }

    /// Payload bytes of the first `count` messages as a receiver with or without headers gets them.
    pub(super) fn delivered_bytes(&self, count: usize, headers: bool) -> usize {
        if count == self.len() {
            return self.payload_bytes - if headers { 0 } else { self.header_bytes };
        }
        let bytes_of = |message: &Message<'_>| {
            let header = message.publish.header.map_or(0, |header| header.len);
            message.publish.payload.len() - if headers { 0 } else { header }
        };
        self.messages[..count].iter().map(bytes_of).sum()
    }

    /// The run as it travels to other shards.
    pub(super) fn concat(&self) -> Bytes {
        let mut wire = Vec::with_capacity(self.wire_bytes);
        self.messages.iter().for_each(|message| message.write(&mut wire));
        Bytes::from(wire)
    }

    /// Renders the first `count` messages for subscriptions with `sid`.
    pub(super) fn render(&self, count: usize, sid: &[u8], headers: bool, out: &mut Vec<u8>) {
        if let [message] = &self.messages[..count] {
            return match message.is_stored {
                false => encode::msg(out, &message.publish, sid, headers),
                true => encode::msg(out, &message.shown(), sid, headers),
            };
        }
        out.reserve(self.wire_bytes + count * (sid.len() + 4));
        if self.has_stored {
            let shown = self.messages[..count].iter().map(Message::shown);
            return shown.for_each(|publish| encode::msg(out, &publish, sid, headers));
        }
        let start = out.len();
        encode::msg_prefix(out, false, self.subject(), sid);
        let prefix: SmallVec<[u8; 96]> = SmallVec::from_slice(&out[start..]);
        out.truncate(start);
        for message in &self.messages[..count] {
            match (&message.publish.header, message.publish.tail) {
                (None, Some(tail)) => {
                    out.extend_from_slice(&prefix);
                    out.extend_from_slice(tail);
                }
                _ => encode::msg(out, &message.publish, sid, headers),
            }
        }
    }
}

/// Takes the publishes in `wire`, which another shard has written, into a run. Returns how many
/// bytes at the end could not be read; none, unless it wrote them wrongly.
#[must_use]
pub(super) fn parse_run<'a>(wire: &'a [u8], run: &mut Run<'a>) -> usize {
    let limits = proto::Limits {
        control_line_bytes_max: usize::MAX,
        payload_bytes_max: usize::MAX,
        headers: true,
    };
    let mut rest = wire;
    // RMSG, HMSG and LMSG, as another server has sent them; clients send PUB and HPUB.
    if matches!(wire, [b'R' | b'r', ..] | [_, b'M' | b'm', ..]) {
        let form = route::Form { accounts: route::Accounts::Named, origins: true };
        while let Ok(RouteParsed::Op { op: RouteOp::Message { publish, .. }, used }) =
            route::parse(rest, usize::MAX, form)
        {
            run.push_routed(publish, &rest[..used], route::Accounts::Named);
            rest = &rest[used..];
        }
    }
    while let Ok(Parsed::Op { op: Op::Pub(publish), used }) = proto::parse(rest, &limits) {
        run.push(publish, &rest[..used]);
        rest = &rest[used..];
    }
    rest.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_of_a_run_is_counted_and_what_comes_before_is_taken() {
        for (wire, messages, unread) in [
            (&b"PUB a 1\r\nx\r\nHPUB a 1 2\r\nxy\r\n"[..], 2, 0),
            (b"PUB a 1\r\nx\r\nPUB a b c d 1\r\nx\r\n", 1, 18),
            (b"PUB a 1\r\nx", 0, 10),
            (b"RMSG $G a 1\r\nx\r\nSUB a 1\r\n", 1, 9),
        ] {
            let mut run = Run::default();
            assert_eq!(parse_run(wire, &mut run), unread, "{}", wire.escape_ascii());
            assert_eq!(run.len(), messages, "{}", wire.escape_ascii());
        }
    }

    #[test]
    fn what_is_made_here_goes_to_another_shard_as_if_a_client_had_sent_it() {
        for (header, reply) in [(&b""[..], None), (b"NATS/1.0\r\n\r\n", Some(&b"r"[..]))] {
            let content = Content::new(header, b"hello");
            let made = Run::of(content.publish(b"a.b", reply));
            let wire = made.concat();
            assert_eq!(wire.len(), made.wire_bytes(), "it is known how long that is");
            let mut read = Run::default();
            assert_eq!(parse_run(&wire, &mut read), 0);
            let [one, other] = [&made, &read].map(|run| {
                let mut out = Vec::new();
                run.render(1, b"7", true, &mut out);
                out
            });
            assert_eq!(one.escape_ascii().to_string(), other.escape_ascii().to_string());
        }
    }
}
