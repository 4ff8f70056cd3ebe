//! Frames: the runs that a shard has for another, behind one another in few pieces of memory.
//!
//! A run is not written as text to be parsed again. Its subject is there once, with the hash by
//! which the other shard looks it up; of each message there is all that follows the subject on the
//! wire, and the lengths of its parts. Facts of the publisher are there once for all its runs in a
//! row. The messages of a long run are in a block of their own, which all shards that get the run
//! share.
//!
//! A frame is filled while it waits for its lane and there is room in it. The shard that has read
//! it sends it home, where it is filled again: no memory is allocated or freed for a message, and
//! none on another shard than its own.

use std::sync::Arc;

use crate::interest::ids::{AccountId, Origin, Publisher, ServerKey, ShardSet};
use crate::interest::reach::Kind;
use crate::proto::{Header, Publish};
use crate::run::ticket::{Ask, Ticket};
use crate::run::{Message, Run};

/// Bytes at which a frame takes no further run: it should stay in the second-level cache of both
/// shards.
const FRAME_BYTES_MAX: usize = 64 * 1024;
/// Bytes of a run from which on its messages are in a block.
const BLOCK_BYTES_MIN: usize = 8 * 1024;
/// Bytes of a run for several shards from which on its messages are in a block.
const SHARED_BLOCK_BYTES_MIN: usize = 1024;
/// Frames that are kept to be filled again, and frames of one other shard that wait to be sent
/// home.
pub(crate) const SPARE_FRAMES_MAX: usize = 16;
/// Blocks that are kept to be filled again.
const SPARE_BLOCKS_MAX: usize = 32;
/// Bytes of the largest block that is kept to be filled again.
const SPARE_BLOCK_BYTES_MAX: usize = 132 * 1024;

/// Messages of a long run, shared by the frames of all shards that get it.
pub(crate) type RunBlock = Arc<Vec<u8>>;

/// The source of a run, as the shard knows it that has found the receivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RunSource {
    pub(crate) account: AccountId,
    pub(crate) publisher: Publisher,
    /// Whether the publisher gets its own messages.
    pub(crate) echo: bool,
    /// The server that the run came from, if it wants none of its messages back.
    pub(crate) unwanted_by: Option<ServerKey>,
    /// The shards that had this queue message and could not place it.
    pub(crate) visited: ShardSet,
    /// Arrival on the publisher's shard, in nanoseconds since the start of the process.
    pub(crate) arrived: u64,
    /// The kind of the connection by which the run came.
    pub(crate) from: Kind,
    /// Origin of the messages, for a run of another server that named queue groups.
    pub(crate) named_by: Option<Origin>,
    /// Whether another server has passed the run on for queue groups alone.
    pub(crate) is_passed_on: bool,
    /// Accounts that the run has gone through.
    pub(crate) hops: u8,
}

/// A run on its way into a frame.
#[derive(Debug)]
pub(crate) struct Parcel<'r, 'a> {
    pub(crate) source: &'r RunSource,
    pub(crate) run: &'r Run<'a>,
    /// Hash of the run's subject: see [`crate::interest::Interest::targets_of`].
    pub(crate) subject_hash: u64,
    /// The messages that travel, by their places in the run, from 0; all if `None`.
    pub(crate) only: Option<&'r [u32]>,
    /// All messages of the run, if they are in a block.
    pub(crate) block: Option<&'r RunBlock>,
    /// Whether plain subscriptions get the run.
    pub(crate) is_plain: bool,
    /// Ticket of a traced message.
    pub(crate) ticket: Option<Box<Ticket>>,
    /// Question of the publisher's shard for messages without a receiver.
    pub(crate) ask: Option<Box<Ask>>,
}

impl<'r, 'a> Parcel<'r, 'a> {
    fn messages(&self) -> impl Iterator<Item = &'r Message<'a>> {
        let messages = &self.run.messages;
        let count = self.only.map_or(messages.len(), <[u32]>::len);
        let only = self.only;
        (0..count).filter_map(move |at| match only {
            Some(places) => messages.get(places[at] as usize),
            None => messages.get(at),
        })
    }
}

/// A run of a frame. Ends are the beginnings of the next run.
#[derive(Debug)]
pub(crate) struct RunHead {
    subject_hash: u64,
    /// Index of the source.
    source: u32,
    subject_bytes: u32,
    /// Place of the subject in the text; the messages are behind it, unless they are in a block.
    text: u32,
    /// Index of the first message.
    messages: u32,
    /// Index of the first pick.
    picks: u32,
    /// Index of the block, and one more; 0 without one.
    block: u32,
    is_plain: bool,
    pub(crate) ticket: Option<Box<Ticket>>,
    pub(crate) ask: Option<Box<Ask>>,
}

/// Lengths of the parts of a message, in bytes.
#[derive(Debug, Clone, Copy)]
struct MessageHead {
    /// All that follows the subject.
    tail: u32,
    payload: u32,
    /// 0 without a reply subject.
    reply: u32,
    header: u32,
    /// Text of the header's length; 0 without a header.
    header_text: u8,
    is_stored: bool,
}

fn bytes(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

impl MessageHead {
    fn of(message: &Message<'_>) -> Self {
        let Publish { reply, header, size_text, payload, .. } = message.publish;
        let reply_bytes = reply.map_or(0, <[u8]>::len);
        let header_text = header.map_or(0, |header| header.text.len());
        let words = [reply_bytes, header_text].map(|len| if len > 0 { len + 1 } else { 0 });
        let words = words[0] + words[1] + size_text.len();
        Self {
            tail: bytes(words + payload.len() + 4),
            payload: bytes(payload.len()),
            reply: bytes(reply_bytes),
            header: bytes(header.map_or(0, |header| header.len)),
            header_text: u8::try_from(header_text).unwrap_or(u8::MAX),
            is_stored: message.is_stored,
        }
    }

    /// Writes all that follows the subject.
    fn write(&self, publish: &Publish<'_>, text: &mut Vec<u8>) {
        match publish.tail {
            Some(tail) if tail.len() == self.tail as usize => text.extend_from_slice(tail),
            _ => write_tail(publish, text),
        }
    }

    /// Reads the message back; `None` if the text is shorter than the lengths say.
    #[inline]
    fn read<'a>(&self, subject: &'a [u8], tail: &'a [u8]) -> Option<Publish<'a>> {
        let (mut reply, mut header, mut at) = (None, None, 0);
        if self.reply > 0 {
            let end = self.reply as usize;
            reply = Some(tail.get(..end)?);
            at = end + 1;
        }
        if self.header_text > 0 {
            let end = at + usize::from(self.header_text);
            header = Some(Header { len: self.header as usize, text: tail.get(at..end)? });
            at = end + 1;
        }
        let end = tail.len().checked_sub(2)?;
        let start = end.checked_sub(self.payload as usize)?;
        let size_text = tail.get(at..start.checked_sub(2)?)?;
        let payload = tail.get(start..end)?;
        Some(Publish { subject, reply, header, size_text, payload, tail: Some(tail) })
    }
}

#[cold]
fn write_tail(publish: &Publish<'_>, text: &mut Vec<u8>) {
    let Publish { reply, header, size_text, payload, .. } = publish;
    for word in [*reply, header.map(|header| header.text)].into_iter().flatten() {
        text.extend_from_slice(word);
        text.push(b' ');
    }
    [size_text, &b"\r\n"[..], payload, b"\r\n"]
        .iter()
        .for_each(|part| text.extend_from_slice(part));
}

/// Messages of a run for members of one queue group.
#[derive(Debug, Clone, Copy)]
struct PickHead {
    /// Place of the group's name in the text.
    group: u32,
    group_bytes: u32,
    /// Index of the first number; the end is the beginning of the next pick.
    numbers: u32,
}

/// Contents of a frame; each list is in order.
#[derive(Debug, Default)]
struct Contents {
    sources: Vec<RunSource>,
    runs: Vec<RunHead>,
    messages: Vec<MessageHead>,
    picks: Vec<PickHead>,
    /// Numbers of picked messages within their runs, from 0.
    numbers: Vec<u32>,
    /// Subjects, messages that are in no block, and names of queue groups.
    text: Vec<u8>,
    blocks: Vec<RunBlock>,
    cost_bytes: usize,
    next: Next,
}

/// The place of the next message to be delivered.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Next {
    /// Index of its run.
    pub(crate) run: usize,
    /// Messages of that run before it.
    pub(crate) message: usize,
}

/// Runs of one shard for another.
#[derive(Debug, Default)]
pub struct RunFrame(Box<Contents>);

/// A frame that is being read.
pub(crate) struct Opened<'f> {
    pub(crate) view: FrameView<'f>,
    pub(crate) heads: &'f mut [RunHead],
    pub(crate) next: &'f mut Next,
}

/// The unchanging parts of a frame that is being read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FrameView<'f> {
    sources: &'f [RunSource],
    messages: &'f [MessageHead],
    picks: &'f [PickHead],
    numbers: &'f [u32],
    text: &'f [u8],
    blocks: &'f [RunBlock],
}

impl RunFrame {
    /// Whether another run may be put into the frame.
    pub(crate) fn has_room(&self) -> bool {
        self.0.cost_bytes < FRAME_BYTES_MAX
    }

    /// Returns the memory that the runs take, in bytes; a block counts in each frame.
    pub(crate) fn cost_bytes(&self) -> usize {
        self.0.cost_bytes
    }

    /// Returns the number of runs.
    pub fn runs(&self) -> usize {
        self.0.runs.len()
    }

    /// Appends a run. Returns the memory that it takes, in bytes.
    pub(crate) fn push(&mut self, parcel: Parcel<'_, '_>) -> usize {
        let Contents { sources, runs, messages, picks, text, blocks, .. } = &mut *self.0;
        let mut cost = size_of::<RunHead>();
        if sources.last() != Some(parcel.source) {
            sources.push(*parcel.source);
            cost += size_of::<RunSource>();
        }
        let (messages_before, text_before) = (messages.len(), text.len());
        let head = RunHead {
            subject_hash: parcel.subject_hash,
            source: bytes(sources.len() - 1),
            subject_bytes: bytes(parcel.run.subject().len()),
            text: bytes(text_before),
            messages: bytes(messages_before),
            picks: bytes(picks.len()),
            block: parcel.block.map_or(0, |_| bytes(blocks.len() + 1)),
            is_plain: parcel.is_plain,
            ticket: None,
            ask: None,
        };
        text.extend_from_slice(parcel.run.subject());
        match parcel.block {
            Some(block) => {
                messages.extend(parcel.messages().map(MessageHead::of));
                cost += block.len();
                blocks.push(Arc::clone(block));
            }
            None => parcel.messages().for_each(|message| {
                let head = MessageHead::of(message);
                head.write(&message.publish, text);
                messages.push(head);
            }),
        }
        cost += text.len() - text_before;
        cost += (messages.len() - messages_before) * size_of::<MessageHead>();
        cost += parcel.ask.as_ref().map_or(0, |ask| ask.cost_bytes());
        runs.push(RunHead { ticket: parcel.ticket, ask: parcel.ask, ..head });
        self.0.cost_bytes += cost;
        cost
    }

    /// Gives some messages of the last run, by their numbers within it, to a queue group. Returns
    /// the memory that this takes, in bytes.
    pub(crate) fn pick(&mut self, group: &[u8], picked: &[u32]) -> usize {
        let Contents { picks, numbers, text, .. } = &mut *self.0;
        picks.push(PickHead {
            group: bytes(text.len()),
            group_bytes: bytes(group.len()),
            numbers: bytes(numbers.len()),
        });
        text.extend_from_slice(group);
        numbers.extend_from_slice(picked);
        let cost = size_of::<PickHead>() + group.len() + size_of_val(picked);
        self.0.cost_bytes += cost;
        cost
    }

    /// Returns the frame to be read.
    pub(crate) fn open(&mut self) -> Opened<'_> {
        let Contents { sources, runs, messages, picks, numbers, text, blocks, next, .. } =
            &mut *self.0;
        let view = FrameView { sources, messages, picks, numbers, text, blocks };
        Opened { view, heads: runs, next }
    }

    /// Empties a frame that has been read. Blocks stay until it is home.
    pub(crate) fn clear(&mut self) {
        let Contents { sources, runs, messages, picks, numbers, text, blocks, cost_bytes, next } =
            &mut *self.0;
        sources.clear();
        runs.clear();
        messages.clear();
        picks.clear();
        numbers.clear();
        text.clear();
        blocks.retain(|block| block.capacity() <= SPARE_BLOCK_BYTES_MAX);
        (*cost_bytes, *next) = (0, Next::default());
    }
}

/// A run of a frame, with what its messages need to be delivered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unpacked<'f> {
    pub(crate) source: &'f RunSource,
    pub(crate) subject_hash: u64,
    pub(crate) is_plain: bool,
    /// Messages of the run before the first one that was read.
    pub(crate) done: usize,
    picks: &'f [PickHead],
    view: FrameView<'f>,
    numbers_end: usize,
}

impl<'f> FrameView<'f> {
    /// Reads the messages of the first of `heads` into `run`, without the `done` first ones.
    ///
    /// Returns `None` if the frame was not filled as it is read: a bug of this program. The run has
    /// the messages before that.
    #[inline]
    pub(crate) fn unpack(
        self,
        heads: &[RunHead],
        done: usize,
        run: &mut Run<'f>,
    ) -> Option<Unpacked<'f>> {
        let (head, following) = heads.split_first()?;
        let next = following.first();
        let end = next.map_or(self.messages.len(), |next| next.messages as usize);
        let messages = self.messages.get(head.messages as usize..end)?;
        let start = head.text as usize + head.subject_bytes as usize;
        let subject = self.text.get(head.text as usize..start)?;
        let mut rest = match head.block.checked_sub(1) {
            Some(block) => self.blocks.get(block as usize)?.as_slice(),
            None => self.text.get(start..)?,
        };
        for (at, message) in messages.iter().enumerate() {
            let (tail, behind) = rest.split_at_checked(message.tail as usize)?;
            rest = behind;
            if at >= done {
                run.push_sent(message.read(subject, tail)?, message.is_stored);
            }
        }
        let end = next.map_or(self.picks.len(), |next| next.picks as usize);
        let picks = self.picks.get(head.picks as usize..end)?;
        let numbers_end = self.picks.get(end).map_or(self.numbers.len(), |p| p.numbers as usize);
        let source = self.sources.get(head.source as usize)?;
        let (subject_hash, is_plain) = (head.subject_hash, head.is_plain);
        Some(Unpacked { source, subject_hash, is_plain, done, picks, view: self, numbers_end })
    }
}

impl<'f> Unpacked<'f> {
    /// Whether messages were picked for queue groups.
    pub(crate) fn has_picks(&self) -> bool {
        !self.picks.is_empty()
    }

    /// Returns the names of picked queue groups, each with the numbers of its messages within the
    /// run.
    pub(crate) fn picks(self) -> impl Iterator<Item = (&'f [u8], &'f [u32])> {
        let Self { picks, view, numbers_end, .. } = self;
        picks.iter().enumerate().filter_map(move |(at, pick)| {
            let end = picks.get(at + 1).map_or(numbers_end, |next| next.numbers as usize);
            let name = pick.group as usize..pick.group as usize + pick.group_bytes as usize;
            Some((view.text.get(name)?, view.numbers.get(pick.numbers as usize..end)?))
        })
    }
}

/// Frames and blocks that have been read, to be filled again.
#[derive(Debug, Default)]
pub(crate) struct SpareFrames {
    frames: Vec<RunFrame>,
    blocks: Vec<RunBlock>,
}

impl SpareFrames {
    /// Returns an empty frame.
    pub(crate) fn frame(&mut self) -> RunFrame {
        self.frames.pop().unwrap_or_default()
    }

    /// Returns a block with all messages of a run, if it is long enough to be in one.
    pub(crate) fn block_for(&mut self, run: &Run<'_>, shards: ShardSet) -> Option<RunBlock> {
        let bytes_min = if shards.has_several() { SHARED_BLOCK_BYTES_MIN } else { BLOCK_BYTES_MIN };
        (run.wire_bytes() >= bytes_min && !shards.is_empty()).then(|| self.block(run))
    }

    /// Returns a block with all messages of the run.
    fn block(&mut self, run: &Run<'_>) -> RunBlock {
        let mut block = self.blocks.pop().unwrap_or_default();
        match Arc::get_mut(&mut block) {
            Some(text) => {
                text.clear();
                text.reserve_exact(run.wire_bytes());
                for message in &run.messages {
                    MessageHead::of(message).write(&message.publish, text);
                }
            }
            None => unreachable!("a spare block has no other holder"),
        }
        block
    }

    /// Takes back a frame that is home, and the blocks of which it was the last holder.
    pub(crate) fn keep(&mut self, mut frame: RunFrame) {
        for mut block in frame.0.blocks.drain(..) {
            if self.blocks.len() < SPARE_BLOCKS_MAX && Arc::get_mut(&mut block).is_some() {
                self.blocks.push(block);
            }
        }
        if self.frames.len() < SPARE_FRAMES_MAX {
            self.frames.push(frame);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::interest::ids::{ConnId, ShardId};
    use crate::interest::targets::Prefix;
    use crate::run::Content;

    fn source(slot: u32) -> RunSource {
        let conn = ConnId { slot, generation: 0 };
        RunSource {
            account: AccountId::GLOBAL,
            publisher: Publisher { shard: ShardId(0), conn },
            echo: true,
            unwanted_by: None,
            visited: ShardSet::default(),
            arrived: 0,
            from: Kind::Client,
            named_by: None,
            is_passed_on: false,
            hops: 0,
        }
    }

    fn parcel<'r, 'a>(source: &'r RunSource, run: &'r Run<'a>) -> Parcel<'r, 'a> {
        let (only, block, ticket, ask) = (None, None, None, None);
        Parcel { source, run, subject_hash: 7, only, block, is_plain: true, ticket, ask }
    }

    fn rendered(run: &Run<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        for headers in [true, false] {
            run.render_for(b"7", headers, &mut out);
            run.render(run.len(), &Prefix::new(run.subject(), b"7"), headers, &mut out);
        }
        out
    }

    /// Operations as clients may write them, all to the same subject.
    fn operation() -> impl Strategy<Value = Vec<u8>> {
        let blank = prop::sample::select(vec![" ", "\t", "  "]);
        let parts = (prop::bool::ANY, prop::option::of("[a-c.]{1,9}"), 0..40_usize, 0..9_usize);
        (blank, parts).prop_map(|(blank, (has_header, reply, size, header))| {
            let mut words = vec![if has_header { "HPUB" } else { "PUB" }.to_owned(), "a.b".into()];
            words.extend(reply);
            words.extend(has_header.then(|| header.min(size).to_string()));
            words.push(size.to_string());
            let mut wire = words.join(blank).into_bytes();
            wire.extend_from_slice(b"\r\n");
            wire.resize(wire.len() + size, b'x');
            wire.extend_from_slice(b"\r\n");
            wire
        })
    }

    proptest! {
        #[test]
        fn runs_come_out_as_they_went_in_wherever_one_is_cut(
            wires in prop::collection::vec(prop::collection::vec(operation(), 1..6), 1..6),
            in_blocks in any::<u8>(),
            cut in 0..6_usize,
        ) {
            let (mut frame, mut spares) = (RunFrame::default(), SpareFrames::default());
            let wires: Vec<Vec<u8>> = wires.iter().map(|wires| wires.concat()).collect();
            let runs: Vec<Run<'_>> = wires.iter().map(|wire| Run::read(wire)).collect();
            let mut cost = 0;
            for (at, run) in runs.iter().enumerate() {
                let block = (in_blocks >> at & 1 == 1).then(|| spares.block(run));
                // Two runs in a row have one source.
                let source = source(bytes(at / 2));
                cost += frame.push(Parcel { block: block.as_ref(), ..parcel(&source, run) });
                let numbers: &[u32] = if run.len() > 3 { &[0, 3] } else { &[0] };
                cost += frame.pick(b"group", numbers);
            }
            prop_assert_eq!(frame.cost_bytes(), cost);
            let Opened { view, heads, .. } = frame.open();
            for (at, run) in runs.iter().enumerate() {
                let done = cut.min(run.len() - 1);
                let mut read = Run::default();
                let unpacked = view.unpack(&heads[at..], done, &mut read).unwrap();
                prop_assert_eq!(unpacked.source, &source(bytes(at / 2)));
                let mut rest = Run::default();
                run.publishes().skip(done).for_each(|publish| rest.push(*publish, 0));
                prop_assert_eq!(rendered(&read), rendered(&rest));
                let picks: Vec<_> = unpacked.picks().collect();
                let numbers: &[u32] = if run.len() > 3 { &[0, 3] } else { &[0] };
                prop_assert_eq!(picks, [(&b"group"[..], numbers)]);
            }
        }
    }

    #[test]
    fn a_frame_that_was_not_filled_as_it_is_read_gives_what_comes_before() {
        let run = Run::read(b"PUB a 1\r\nx\r\nPUB a 1\r\nx\r\n");
        let (source, mut frame) = (source(0), RunFrame::default());
        frame.push(parcel(&source, &run));
        frame.0.text.pop();
        let mut read = Run::default();
        let Opened { view, heads, .. } = frame.open();
        assert!(view.unpack(heads, 0, &mut read).is_none());
        assert_eq!(read.len(), 1);
    }

    #[test]
    fn what_is_made_here_goes_to_another_shard_as_if_a_client_had_sent_it() {
        for (header, reply) in [(&b""[..], None), (b"NATS/1.0\r\n\r\n", Some(&b"r"[..]))] {
            let content = Content::new(header, b"hello");
            let made = Run::of(content.publish(b"a.b", reply));
            let (source, mut frame) = (source(0), RunFrame::default());
            frame.push(parcel(&source, &made));
            let mut read = Run::default();
            let Opened { view, heads, .. } = frame.open();
            assert!(view.unpack(heads, 0, &mut read).is_some());
            assert_eq!(read.wire_bytes(), made.wire_bytes(), "it is known how long that is");
            let [made, read] = [&made, &read].map(|run| rendered(run).escape_ascii().to_string());
            assert_eq!(made, read);
        }
    }

    #[test]
    fn a_block_is_filled_again_once_every_shard_has_sent_it_home() {
        let wire = [&b"PUB a 20000\r\n"[..], &[b'x'; 20000], b"\r\n"].concat();
        let run = Run::read(&wire);
        let (source, mut spares) = (source(0), SpareFrames::default());
        let block = spares.block(&run);
        let text = block.as_ptr();
        let mut frames = [spares.frame(), spares.frame()];
        for frame in &mut frames {
            frame.push(Parcel { block: Some(&block), ..parcel(&source, &run) });
            assert!(frame.cost_bytes() > 20000);
        }
        drop(block);
        for mut frame in frames {
            frame.clear();
            assert!(spares.blocks.is_empty());
            spares.keep(frame);
        }
        assert_eq!(spares.block(&run).as_ptr(), text);
        assert_eq!((spares.frames.len(), spares.frame().cost_bytes()), (2, 0));
    }
}
