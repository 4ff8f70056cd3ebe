//! Records: what a log keeps of the consumers of a stream.
//!
//! A record is a byte for its form, and entries. Numbers have seven bits a byte. An entry is
//!
//! - 1: a consumer with its number, name, time and configuration;
//! - 2: the end of a consumer;
//! - 3: positions of a consumer, and the state of some of its messages, or of all.

use super::config::ConsumerConfig;
use super::live::LiveConsumer;
use super::pending::SequencePair;
use super::source::Moment;
use crate::stream::time::Timestamp;

/// The form of records.
const FORM: u8 = 1;
const CONSUMER: u8 = 1;
const END: u8 = 2;
const STATE: u8 = 3;
/// States of a message.
const GONE: u64 = 0;
const PENDING: u64 = 1;
const GIVEN_UP: u64 = 2;
/// Messages of one entry.
const MESSAGES_MAX: usize = 1 << 16;
/// Bytes after which a record ends.
pub(super) const RECORD_BYTES: usize = 1 << 20;
const MILLISECOND: i64 = 1_000_000;

/// A record that is being written.
#[derive(Debug, Default)]
pub(super) struct RecordWriter {
    bytes: Vec<u8>,
}

impl RecordWriter {
    fn entry(&mut self, kind: u8, number: u32) {
        if self.bytes.is_empty() {
            self.bytes.push(FORM);
        }
        self.bytes.push(kind);
        self.number(u64::from(number));
    }

    fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.bytes.push(number.to_le_bytes()[0] | 0x80);
            number >>= 7;
        }
        self.bytes.push(number.to_le_bytes()[0]);
    }

    fn text(&mut self, text: &[u8]) {
        self.number(text.len() as u64);
        self.bytes.extend_from_slice(text);
    }

    fn pair(&mut self, pair: SequencePair) {
        self.number(pair.consumer);
        self.number(pair.stream);
    }

    /// Whether the record is long enough.
    pub(super) fn is_full(&self) -> bool {
        self.bytes.len() >= RECORD_BYTES
    }

    /// Takes the record, if there is anything in it.
    pub(super) fn take(&mut self) -> Option<Vec<u8>> {
        (!self.bytes.is_empty()).then(|| std::mem::take(&mut self.bytes))
    }

    /// Writes what a consumer is.
    pub(super) fn consumer(&mut self, consumer: &LiveConsumer) {
        self.entry(CONSUMER, consumer.number);
        self.text(consumer.name.as_bytes());
        self.number(consumer.created.0.cast_unsigned());
        let config = serde_json::to_vec(&*consumer.config).unwrap_or_default();
        self.text(&config);
    }

    /// Writes that a consumer is no more.
    pub(super) fn end(&mut self, number: u32) {
        self.entry(END, number);
    }

    /// Writes what has changed in a consumer, or all of it.
    pub(super) fn state(
        &mut self,
        consumer: &mut LiveConsumer,
        is_whole: bool,
        moment: Moment,
        out: &mut dyn FnMut(Vec<u8>),
    ) {
        let mut changes = std::mem::take(&mut consumer.acks.changes);
        let is_whole = is_whole || changes.is_whole;
        if is_whole {
            let acks = &consumer.acks;
            let pending = acks.all_pending().map(|(sequence, _)| sequence);
            changes.sequences = pending.collect();
            let counted = acks.all_redelivered().map(|(sequence, _)| sequence);
            changes.sequences.extend(counted);
        }
        changes.sequences.sort_unstable();
        changes.sequences.dedup();
        let mut is_first = true;
        let mut rest = &changes.sequences[..];
        loop {
            let (part, behind) = rest.split_at(rest.len().min(MESSAGES_MAX));
            self.part(consumer, is_whole && is_first, part, moment);
            if self.is_full() {
                self.take().into_iter().for_each(&mut *out);
            }
            (rest, is_first) = (behind, false);
            if rest.is_empty() {
                break;
            }
        }
    }

    fn part(&mut self, consumer: &LiveConsumer, is_whole: bool, sequences: &[u64], moment: Moment) {
        let acks = &consumer.acks;
        self.entry(STATE, consumer.number);
        self.number(u64::from(is_whole));
        self.pair(acks.delivered);
        self.pair(acks.floor);
        self.number(consumer.place.next());
        self.number(consumer.place.last_messages_upto());
        // Times are written as how long ago they were, which no change of the clock spoils.
        self.number(moment.wall / MILLISECOND.cast_unsigned());
        self.number(sequences.len() as u64);
        let mut before = 0;
        for sequence in sequences {
            self.number(sequence - before);
            before = *sequence;
            let count = acks.redeliveries(*sequence);
            match acks.pending(*sequence) {
                Some(message) => {
                    self.number(PENDING);
                    let number = message.consumer_sequence;
                    self.number(acks.delivered.consumer.saturating_sub(number));
                    let ago = moment.mono_time().saturating_sub(message.since) / MILLISECOND;
                    self.number(zigzag(ago));
                    self.number(count);
                }
                None if count > 0 => {
                    self.number(GIVEN_UP);
                    self.number(count);
                }
                None => self.number(GONE),
            }
        }
    }
}

/// A signed number of which small ones take few bytes.
fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)).cast_unsigned()
}

fn unzigzag(number: u64) -> i64 {
    (number >> 1).cast_signed() ^ -(number & 1).cast_signed()
}

/// A message as it was kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeptMessage {
    Gone,
    /// Waiting for its acknowledgement, since a time in nanoseconds since 1970.
    Pending {
        consumer_sequence: u64,
        since: i64,
        redeliveries: u64,
    },
    GivenUp {
        redeliveries: u64,
    },
}

/// Positions and messages of a consumer as they were kept.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct KeptState {
    pub(super) is_whole: bool,
    pub(super) delivered: SequencePair,
    pub(super) floor: SequencePair,
    pub(super) next: u64,
    pub(super) last_messages_upto: u64,
    pub(super) messages: Vec<(u64, KeptMessage)>,
}

/// An entry of a record.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum KeptEntry {
    Consumer { number: u32, name: String, created: Timestamp, config: Box<ConsumerConfig> },
    End { number: u32 },
    State { number: u32, state: KeptState },
}

/// A record that is being read.
#[derive(Debug)]
pub(super) struct RecordReader<'a> {
    rest: &'a [u8],
}

impl<'a> RecordReader<'a> {
    /// A record; `None` if its form is unknown.
    pub(super) fn new(bytes: &'a [u8]) -> Option<Self> {
        let (form, rest) = bytes.split_first()?;
        (*form == FORM).then_some(Self { rest })
    }

    /// Whether all of it was read.
    pub(super) fn is_at_end(&self) -> bool {
        self.rest.is_empty()
    }

    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..u64::BITS).step_by(7) {
            let (byte, behind) = self.rest.split_first()?;
            self.rest = behind;
            let bits = u64::from(byte & 0x7f);
            if (bits << shift) >> shift != bits {
                return None;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn text(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.number()?).ok()?;
        let (text, behind) = self.rest.split_at_checked(len)?;
        self.rest = behind;
        Some(text)
    }

    fn pair(&mut self) -> Option<SequencePair> {
        Some(SequencePair { consumer: self.number()?, stream: self.number()? })
    }

    /// Reads the next entry; `None` at the end, and for what is damaged.
    pub(super) fn next(&mut self) -> Option<KeptEntry> {
        let (kind, behind) = self.rest.split_first()?;
        let start = std::mem::replace(&mut self.rest, behind);
        let entry = self.entry(*kind);
        if entry.is_none() {
            self.rest = start;
        }
        entry
    }

    fn entry(&mut self, kind: u8) -> Option<KeptEntry> {
        let number = u32::try_from(self.number()?).ok()?;
        match kind {
            CONSUMER => {
                let name = String::from_utf8(self.text()?.to_vec()).ok()?;
                let created = Timestamp(self.number()?.cast_signed());
                let config = Box::new(serde_json::from_slice(self.text()?).ok()?);
                Some(KeptEntry::Consumer { number, name, created, config })
            }
            END => Some(KeptEntry::End { number }),
            STATE => Some(KeptEntry::State { number, state: self.state()? }),
            _ => None,
        }
    }

    fn state(&mut self) -> Option<KeptState> {
        let is_whole = self.number()? != 0;
        let (delivered, floor) = (self.pair()?, self.pair()?);
        let (next, last_messages_upto) = (self.number()?, self.number()?);
        let time = i64::try_from(self.number()?).ok()?.checked_mul(MILLISECOND)?;
        let count = usize::try_from(self.number()?).ok().filter(|count| *count <= MESSAGES_MAX)?;
        let mut messages = Vec::with_capacity(count.min(self.rest.len()));
        let mut sequence: u64 = 0;
        for _ in 0..count {
            sequence = sequence.checked_add(self.number()?)?;
            let message = match self.number()? {
                GONE => KeptMessage::Gone,
                PENDING => {
                    let consumer_sequence = delivered.consumer.checked_sub(self.number()?)?;
                    let ago = unzigzag(self.number()?).checked_mul(MILLISECOND)?;
                    let since = time.checked_sub(ago)?;
                    let redeliveries = self.number()?;
                    KeptMessage::Pending { consumer_sequence, since, redeliveries }
                }
                GIVEN_UP => KeptMessage::GivenUp { redeliveries: self.number()? },
                _ => return None,
            };
            messages.push((sequence, message));
        }
        Some(KeptState { is_whole, delivered, floor, next, last_messages_upto, messages })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::cursor::ReadPlace;
    use super::*;

    fn consumer() -> LiveConsumer {
        let config = ConsumerConfig { ack_wait: 30_000_000_000, ..ConsumerConfig::default() };
        let place = ReadPlace::at(9);
        let mut consumer = LiveConsumer::new("C".into(), 7, Timestamp(5), config, place);
        consumer.acks.restart(3);
        for sequence in [3, 5, 6] {
            consumer.acks.deliver(sequence, 2 * MILLISECOND, &consumer.config);
        }
        consumer.acks.deliver(5, 3 * MILLISECOND, &consumer.config);
        consumer.acks.give_up(6);
        consumer
    }

    fn entries(bytes: &[u8]) -> Vec<KeptEntry> {
        let mut reader = RecordReader::new(bytes).unwrap();
        let entries = std::iter::from_fn(|| reader.next()).collect();
        assert!(reader.is_at_end());
        entries
    }

    #[test]
    fn what_is_written_is_read() {
        let (mut writer, mut consumer) = (RecordWriter::default(), consumer());
        let moment = Moment { mono: 12_000_000, wall: 1_000_000_000_000 };
        writer.consumer(&consumer);
        writer.state(&mut consumer, false, moment, &mut |_| panic!("it is short"));
        writer.end(4);
        let read = entries(&writer.take().unwrap());
        let config = consumer.config.clone();
        let name = "C".to_owned();
        assert_eq!(read[0], KeptEntry::Consumer { number: 7, name, created: Timestamp(5), config });
        let KeptEntry::State { number: 7, state } = &read[1] else { panic!("{:?}", read[1]) };
        assert!(state.is_whole && state.next == 9);
        let pending = |consumer_sequence, ago, redeliveries| KeptMessage::Pending {
            consumer_sequence,
            since: 1_000_000_000_000 - ago * MILLISECOND,
            redeliveries,
        };
        let expected = [
            (3, pending(1, 10, 0)),
            (5, pending(2, 9, 1)),
            (6, KeptMessage::GivenUp { redeliveries: 1 }),
        ];
        assert_eq!(state.messages, expected);
        assert_eq!(read[2], KeptEntry::End { number: 4 });
    }

    #[test]
    fn only_what_has_changed_is_written_the_second_time() {
        let (mut writer, mut consumer) = (RecordWriter::default(), consumer());
        let moment = Moment { mono: 12_000_000, wall: 1_000_000_000_000 };
        writer.state(&mut consumer, false, moment, &mut |_| {});
        writer.take();
        consumer.acks.acknowledge(3);
        writer.state(&mut consumer, false, moment, &mut |_| {});
        let bytes = writer.take().unwrap();
        assert!(bytes.len() < 30, "{}", bytes.len());
        let read = entries(&bytes);
        let [KeptEntry::State { state, .. }] = &read[..] else { panic!("{read:?}") };
        assert!(!state.is_whole);
        assert_eq!(state.messages, [(3, KeptMessage::Gone)]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_entries_or_damaged(mut bytes in any::<Vec<u8>>()) {
            bytes.insert(0, FORM);
            let mut reader = RecordReader::new(&bytes).unwrap();
            let mut count = 0;
            while reader.next().is_some() {
                count += 1;
            }
            prop_assert!(count <= bytes.len());
        }
    }
}
