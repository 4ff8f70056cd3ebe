//! An archive on its way out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::entries::{ArchiveEntry, MAGIC};
use crate::consumer::{ArchivedConsumer, ConsumerPosition};
use crate::store::StoredMessage;
use crate::transport::S2Writer;

/// A consumer as an entry has it.
#[derive(Serialize, Deserialize)]
pub(super) struct ConsumerText {
    pub(super) config: Box<RawValue>,
    pub(super) state: PositionText,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct PairText {
    consumer_seq: u64,
    stream_seq: u64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct PendingText {
    sequence: u64,
    timestamp: i64,
}

/// A position as an entry has it.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct PositionText {
    delivered: PairText,
    ack_floor: PairText,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pending: BTreeMap<u64, PendingText>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    redelivered: BTreeMap<u64, u64>,
}

impl From<&ConsumerPosition> for PositionText {
    fn from(position: &ConsumerPosition) -> Self {
        let pair = |(consumer_seq, stream_seq)| PairText { consumer_seq, stream_seq };
        let pending = position.pending.iter();
        let pending = pending.map(|(stream, sequence, timestamp)| {
            (*stream, PendingText { sequence: *sequence, timestamp: *timestamp })
        });
        Self {
            delivered: pair(position.delivered),
            ack_floor: pair(position.floor),
            pending: pending.collect(),
            redelivered: position.redelivered.iter().copied().collect(),
        }
    }
}

impl From<PositionText> for ConsumerPosition {
    fn from(text: PositionText) -> Self {
        let pair = |pair: PairText| (pair.consumer_seq, pair.stream_seq);
        let pending = text.pending.into_iter();
        Self {
            floor: pair(text.ack_floor),
            delivered: pair(text.delivered),
            pending: pending.map(|(at, it)| (at, it.sequence, it.timestamp)).collect(),
            redelivered: text.redelivered.into_iter().collect(),
        }
    }
}

/// An archive that is made of a stream, piece by piece.
#[derive(Debug)]
pub(crate) struct ArchiveWriter {
    packer: S2Writer,
    /// Time of entries that are no messages, in nanoseconds since 1970.
    now: i64,
}

impl ArchiveWriter {
    /// The beginning of an archive: `state` is the state of the stream as JSON.
    pub(crate) fn new(state: &[u8], now: u64) -> Self {
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        let mut writer = Self { packer: S2Writer::default(), now };
        writer.packer.write(MAGIC);
        writer.put(&ArchiveEntry {
            name: b"state.json",
            time: now,
            payload: state,
            ..ArchiveEntry::default()
        });
        writer
    }

    fn put(&mut self, entry: &ArchiveEntry<'_>) {
        self.packer.write(&entry.head());
        self.packer.write(entry.payload);
    }

    /// Adds a consumer, before all messages.
    pub(crate) fn consumer(&mut self, consumer: &ArchivedConsumer) {
        let config = String::from_utf8_lossy(&consumer.config).into_owned();
        let Ok(config) = RawValue::from_string(config) else { return };
        let text = ConsumerText { config, state: (&consumer.position).into() };
        let payload = serde_json::to_vec(&text).unwrap_or_default();
        let name = format!("consumers/{}", consumer.name);
        let (name, payload) = (name.as_bytes(), &payload[..]);
        self.put(&ArchiveEntry { name, time: self.now, payload, ..ArchiveEntry::default() });
    }

    /// Adds a message, in the order of their sequences.
    pub(crate) fn push(&mut self, message: &StoredMessage<'_>) {
        let StoredMessage { sequence, time, subject, headers, payload, .. } = *message;
        let time = i64::try_from(time).unwrap_or(i64::MAX);
        self.put(&ArchiveEntry { name: subject, time, sequence, headers, payload });
    }

    /// Ends the archive.
    pub(crate) fn finish(&mut self) {
        self.put(&ArchiveEntry::default());
        self.packer.flush();
    }

    /// Bytes of the archive that wait to be taken.
    pub(crate) fn waiting_bytes(&self) -> usize {
        self.packer.waiting_bytes()
    }

    /// Takes so many bytes of the archive at most.
    pub(crate) fn take(&mut self, bytes_max: usize) -> Vec<u8> {
        self.packer.take(bytes_max)
    }
}
