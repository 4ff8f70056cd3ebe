//! Records: entries of the log about a stream.
//!
//! | bytes | of each record |
//! |---|---|
//! | 4 | CRC-32C of all that follows |
//! | 4 | length, from the checksum to the last byte of the content |
//! | 4 | stream |
//! | 1 | kind; its highest bit is kept for an index and a term of a group of replicas |
//! | 1 | flags of a message |
//! | 2 | length of a message's subject |
//!
//! The content follows, and zeroes up to the next multiple of eight. All numbers are little-endian.
//! A message is its sequence (8), its time (8), the length of its headers (4), subject, headers and
//! payload.

use super::checksum::Seed;
use super::ranges::Ranges;

/// Length limit of a record, in bytes.
pub const RECORD_BYTES_MAX: usize = 48 << 20;
/// Alignment of records, in bytes.
pub(crate) const RECORD_ALIGNMENT: usize = 8;
/// Length of a record before its content, in bytes.
const HEAD_BYTES: usize = 16;
/// Length of a message's content before its subject, in bytes.
const MESSAGE_HEAD_BYTES: usize = 20;
const CHECKSUM_BYTES: usize = 4;

/// Number of a stream in the logs of one server; never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u32);

/// An entry of the log about a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogRecord<'a> {
    /// A message was added.
    Message(StoredMessage<'a>),
    /// These messages were removed.
    Delete(Ranges<'a>),
    /// All messages before a sequence were removed, and sequences up to another one are used up.
    Purge {
        /// The first sequence that may still be there.
        before: u64,
        /// The last sequence that was ever given; at least `before - 1`.
        last: u64,
    },
    /// The stream exists with this configuration; its owner knows the form.
    Configuration(&'a [u8]),
    /// The stream is no more.
    End,
    /// Acknowledgements of the stream's consumers; their owner knows the form.
    Consumers(&'a [u8]),
}

/// A message as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredMessage<'a> {
    /// Position of the message in the stream, from 1 on.
    pub sequence: u64,
    /// Time at which the message was stored, in nanoseconds since 1970.
    pub time: u64,
    /// Marks that the owner reads without the headers.
    pub flags: u8,
    /// Subject of the message; at most 64 KiB - 1.
    pub subject: &'a [u8],
    /// Headers with the line that they begin with; empty if there are none.
    pub headers: &'a [u8],
    /// Payload without the headers.
    pub payload: &'a [u8],
}

impl StoredMessage<'_> {
    /// Returns the bytes that limits count for the message: as many as the file store of
    /// nats-server.
    pub fn charged_bytes(&self) -> u64 {
        let headers = if self.headers.is_empty() { 0 } else { 4 + self.headers.len() };
        (22 + self.subject.len() + headers + self.payload.len() + 8) as u64
    }

    /// Returns the bytes that limits count for the message in a stream in memory: as many as the
    /// memory store of nats-server.
    pub fn charged_bytes_in_memory(&self) -> u64 {
        (self.subject.len() + self.headers.len() + self.payload.len() + 16) as u64
    }
}

/// A record that is longer than a log takes: over [`RECORD_BYTES_MAX`], or a subject over
/// 64 KiB - 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLong;

/// The reason for which bytes are no record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordError {
    /// The bytes end before the record does.
    Short,
    /// No record has this length.
    Length,
    /// The bytes are not those that were written.
    Checksum,
    /// The bytes were written, but not by this release.
    Unknown,
}

/// A record that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decoded<'a> {
    /// The stream that it is about.
    pub stream: StreamId,
    /// The record itself.
    pub record: LogRecord<'a>,
    /// The checksum of the record.
    pub checksum: u32,
    /// Bytes up to the next record.
    pub used: usize,
    /// Bytes of the record without the zeroes: a message's payload ends here.
    pub len: usize,
}

/// Kinds of records as the log has them. 0 is none: zeroes are no record.
mod kind {
    pub(crate) const MESSAGE: u8 = 1;
    pub(crate) const DELETE: u8 = 2;
    pub(crate) const PURGE: u8 = 3;
    pub(crate) const CONFIGURATION: u8 = 4;
    pub(crate) const END: u8 = 5;
    pub(crate) const CONSUMERS: u8 = 6;
}

impl<'a> LogRecord<'a> {
    /// Returns the bytes that the record takes in a log.
    pub fn stored_bytes(&self) -> usize {
        let content = match self {
            Self::Message(message) => {
                let parts = [message.subject, message.headers, message.payload];
                MESSAGE_HEAD_BYTES + parts.iter().map(|part| part.len()).sum::<usize>()
            }
            Self::Delete(ranges) => ranges.bytes().len(),
            Self::Purge { .. } => 16,
            Self::Configuration(bytes) | Self::Consumers(bytes) => bytes.len(),
            Self::End => 0,
        };
        (HEAD_BYTES + content).next_multiple_of(RECORD_ALIGNMENT)
    }

    /// Appends the record to `out`, which has whole records only. Returns its checksum.
    pub fn encode(&self, stream: StreamId, seed: Seed, out: &mut Vec<u8>) -> Result<u32, TooLong> {
        let padded = self.stored_bytes();
        if padded > RECORD_BYTES_MAX {
            return Err(TooLong);
        }
        let (kind, flags, subject) = match self {
            Self::Message(message) => (kind::MESSAGE, message.flags, message.subject),
            Self::Delete(_) => (kind::DELETE, 0, &[][..]),
            Self::Purge { .. } => (kind::PURGE, 0, &[][..]),
            Self::Configuration(_) => (kind::CONFIGURATION, 0, &[][..]),
            Self::End => (kind::END, 0, &[][..]),
            Self::Consumers(_) => (kind::CONSUMERS, 0, &[][..]),
        };
        let subject_bytes = u16::try_from(subject.len()).map_err(|_| TooLong)?;
        let start = out.len();
        out.reserve(padded);
        out.extend_from_slice(&[0; 8]);
        out.extend_from_slice(&stream.0.to_le_bytes());
        out.extend_from_slice(&[kind, flags]);
        out.extend_from_slice(&subject_bytes.to_le_bytes());
        self.encode_content(out)?;
        let len = u32::try_from(out.len() - start).map_err(|_| TooLong)?;
        out[start + 4..start + 8].copy_from_slice(&len.to_le_bytes());
        let checksum = seed.checksum(&out[start + CHECKSUM_BYTES..]);
        out[start..start + CHECKSUM_BYTES].copy_from_slice(&checksum.to_le_bytes());
        out.resize(start + padded, 0);
        Ok(checksum)
    }

    fn encode_content(&self, out: &mut Vec<u8>) -> Result<(), TooLong> {
        match self {
            Self::Message(message) => {
                let headers_bytes = u32::try_from(message.headers.len()).map_err(|_| TooLong)?;
                out.extend_from_slice(&message.sequence.to_le_bytes());
                out.extend_from_slice(&message.time.to_le_bytes());
                out.extend_from_slice(&headers_bytes.to_le_bytes());
                out.extend_from_slice(message.subject);
                out.extend_from_slice(message.headers);
                out.extend_from_slice(message.payload);
            }
            Self::Delete(ranges) => out.extend_from_slice(ranges.bytes()),
            Self::Purge { before, last } => {
                out.extend_from_slice(&before.to_le_bytes());
                out.extend_from_slice(&last.to_le_bytes());
            }
            Self::Configuration(bytes) | Self::Consumers(bytes) => out.extend_from_slice(bytes),
            Self::End => {}
        }
        Ok(())
    }

    /// Returns the record with which `bytes` begin, if it is as it was written.
    pub fn decode(bytes: &'a [u8], seed: Seed) -> Result<Decoded<'a>, RecordError> {
        let len = record_len(bytes)?;
        let checked = bytes.get(CHECKSUM_BYTES..len).ok_or(RecordError::Short)?;
        if seed.checksum(checked) != u32_at(bytes, 0).ok_or(RecordError::Short)? {
            return Err(RecordError::Checksum);
        }
        Self::view(bytes)
    }

    /// Returns the record with which `bytes` begin, if they have been checked before.
    pub fn view(bytes: &'a [u8]) -> Result<Decoded<'a>, RecordError> {
        let len = record_len(bytes)?;
        let used = len.next_multiple_of(RECORD_ALIGNMENT);
        if bytes.len() < used {
            return Err(RecordError::Short);
        }
        let whole = &bytes[..len];
        let fields = (u32_at(whole, 0), u32_at(whole, 8));
        let (Some(checksum), Some(stream)) = fields else { return Err(RecordError::Short) };
        let record = Self::view_content(whole).ok_or(RecordError::Unknown)?;
        Ok(Decoded { stream: StreamId(stream), record, checksum, used, len })
    }

    fn view_content(whole: &'a [u8]) -> Option<Self> {
        let content = &whole[HEAD_BYTES..];
        let (kind, flags) = (whole[12], whole[13]);
        let record = match kind {
            kind::MESSAGE => {
                let subject_bytes = usize::from(u16::from_le_bytes([whole[14], whole[15]]));
                let headers_bytes = usize::try_from(u32_at(content, 16)?).ok()?;
                let (subject, rest) =
                    content.get(MESSAGE_HEAD_BYTES..)?.split_at_checked(subject_bytes)?;
                let (headers, payload) = rest.split_at_checked(headers_bytes)?;
                let (sequence, time) = (u64_at(content, 0)?, u64_at(content, 8)?);
                Self::Message(StoredMessage { sequence, time, flags, subject, headers, payload })
            }
            kind::DELETE => Self::Delete(Ranges::parse(content)?),
            kind::PURGE => Self::Purge { before: u64_at(content, 0)?, last: u64_at(content, 8)? },
            kind::CONFIGURATION => Self::Configuration(content),
            kind::END => Self::End,
            kind::CONSUMERS => Self::Consumers(content),
            _ => return None,
        };
        Some(record)
    }
}

fn record_len(bytes: &[u8]) -> Result<usize, RecordError> {
    let len = u32_at(bytes, 4).ok_or(RecordError::Short)?;
    let len = usize::try_from(len).map_err(|_| RecordError::Length)?;
    if (HEAD_BYTES..=RECORD_BYTES_MAX).contains(&len) { Ok(len) } else { Err(RecordError::Length) }
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at + 8)?;
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::checksum::LogKey;
    use super::super::ranges::RangeList;
    use super::*;

    const STREAM: StreamId = StreamId(7);

    fn seed() -> Seed {
        LogKey(1).for_records(2)
    }

    fn message() -> StoredMessage<'static> {
        let (subject, headers) = (&b"a.b"[..], &b"NATS/1.0\r\n\r\n"[..]);
        StoredMessage { sequence: 5, time: 9, flags: 3, subject, headers, payload: b"hello" }
    }

    fn written(record: &LogRecord<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        record.encode(STREAM, seed(), &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn each_kind_of_record_is_read_as_it_was_written() {
        let mut list = RangeList::default();
        list.push(3..=5);
        let records = [
            LogRecord::Message(message()),
            LogRecord::Message(StoredMessage { headers: b"", payload: b"", ..message() }),
            LogRecord::Delete(list.ranges()),
            LogRecord::Purge { before: 8, last: 9 },
            LogRecord::Configuration(b"{}"),
            LogRecord::End,
            LogRecord::Consumers(b"acks"),
        ];
        let mut all = Vec::new();
        for record in &records {
            let bytes = written(record);
            assert_eq!(bytes.len(), record.stored_bytes());
            all.extend_from_slice(&bytes);
        }
        let mut rest = &all[..];
        for record in records {
            let decoded = LogRecord::decode(rest, seed()).unwrap();
            assert_eq!((decoded.stream, decoded.record), (STREAM, record));
            rest = &rest[decoded.used..];
        }
        assert!(rest.is_empty());
    }

    #[test]
    fn what_is_too_long_is_refused_and_leaves_nothing() {
        let (subject, payload) = (vec![b'a'; 1 << 16], vec![0; RECORD_BYTES_MAX]);
        let mut bytes = Vec::new();
        for message in [
            StoredMessage { subject: &subject, ..message() },
            StoredMessage { payload: &payload, ..message() },
        ] {
            let encoded = LogRecord::Message(message).encode(STREAM, seed(), &mut bytes);
            assert_eq!(encoded, Err(TooLong));
            assert!(bytes.is_empty());
        }
    }

    #[test]
    fn zeroes_other_batches_and_other_logs_are_no_records() {
        assert_eq!(LogRecord::decode(&[0; 64], seed()), Err(RecordError::Length));
        let bytes = written(&LogRecord::End);
        for other in [LogKey(1).for_records(3), LogKey(2).for_records(2)] {
            assert_eq!(LogRecord::decode(&bytes, other), Err(RecordError::Checksum));
        }
    }

    #[test]
    fn a_kind_of_a_later_release_is_told_from_damage() {
        let mut bytes = written(&LogRecord::End);
        bytes[12] = 99;
        assert_eq!(LogRecord::decode(&bytes, seed()), Err(RecordError::Checksum));
        let checksum = seed().checksum(&bytes[CHECKSUM_BYTES..]);
        bytes[..CHECKSUM_BYTES].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(LogRecord::decode(&bytes, seed()), Err(RecordError::Unknown));
    }

    #[test]
    fn limits_count_for_a_message_what_nats_server_counts() {
        assert_eq!(message().charged_bytes(), 22 + 3 + 4 + 12 + 5 + 8);
        let bare = StoredMessage { headers: b"", ..message() };
        assert_eq!(bare.charged_bytes(), 22 + 3 + 5 + 8);
        assert_eq!(message().charged_bytes_in_memory(), 3 + 12 + 5 + 16);
    }

    proptest! {
        #[test]
        fn a_change_anywhere_is_found(at in any::<prop::sample::Index>(), bits in 1..=255_u8) {
            let mut bytes = written(&LogRecord::Message(message()));
            let len = LogRecord::view(&bytes).unwrap().len;
            bytes[at.index(len)] ^= bits;
            prop_assert!(LogRecord::decode(&bytes, seed()).is_err());
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in any::<Vec<u8>>(), len in 0..80_u32) {
            let _ = LogRecord::decode(&bytes, seed());
            let mut bytes = bytes;
            if bytes.len() >= 8 {
                bytes[4..8].copy_from_slice(&len.to_le_bytes());
            }
            if let Ok(decoded) = LogRecord::view(&bytes) {
                prop_assert!(decoded.used <= bytes.len());
            }
        }
    }
}
