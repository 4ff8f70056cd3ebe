//! Batches: the records of one commit, behind a header that says where they belong.
//!
//! A batch begins on a page of its file and fills whole pages. Its header has 128 bytes:
//!
//! | bytes | |
//! |---|---|
//! | 4, 2, 2 | magic, format, and zeroes |
//! | 4, 4 | number of the file, and of the page in it: what got elsewhere is no batch |
//! | 8 | generation of the file |
//! | 8 | number of the batch, from 1 on |
//! | 8 | number of the last batch before it that is durable: those between never were |
//! | 8 | number of the first batch that is still needed |
//! | 8 | number of all records up to the last durable batch |
//! | 3 × (8, 8) | the last gaps in the numbers: batches between these two never were durable |
//! | 4, 4 | number of the file of the last durable batch, and of the page in it |
//! | 4, 4 | bytes and number of the records |
//! | 4 | CRC-32C of the records' checksums |
//! | 4 | CRC-32C of the header |

use super::checksum::{LogKey, Seed};
use super::record::{Decoded, LogRecord, RecordError, StreamId, TooLong, u32_at, u64_at};
use crate::disk::PAGE_BYTES;

/// Length of the header, in bytes.
pub const BATCH_HEADER_BYTES: usize = 128;
const MAGIC: [u8; 4] = *b"shcB";
const FORMAT: u16 = 1;
const CHECKSUM_AT: usize = 124;

/// The place of a batch in a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BatchPlace {
    /// The number of the batch's file.
    pub file: u32,
    /// The page of the file on which it begins; 0 if there is no such batch.
    pub page: u32,
}

/// A gap in the numbers of batches: those between two numbers were given up at a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BatchGap {
    /// The last batch before the gap.
    pub after: u64,
    /// The first batch behind it.
    pub before: u64,
}

impl BatchGap {
    /// Whether this batch was given up.
    pub fn contains(&self, number: u64) -> bool {
        self.after < number && number < self.before
    }
}

/// Gaps that each header tells: the last ones. So they are known without the first batch behind
/// them, even if it was the only one before the next gap.
pub const GAPS: usize = 3;

/// The header of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchHeader {
    /// Place of the batch.
    pub place: BatchPlace,
    /// The generation of the file: files that had been begun when it was.
    pub generation: u64,
    /// The number of the batch, from 1 on.
    pub number: u64,
    /// The last batch that was durable when this one was begun; 0 if none was. A batch with a
    /// number between the two never was acknowledged, and is no part of the log.
    pub durable: u64,
    /// The first batch that is needed; those before it may be overwritten.
    pub floor: u64,
    /// Number of the records of all batches up to the last durable one.
    pub earlier: u64,
    /// The last gaps in the numbers, the latest first.
    pub gaps: [BatchGap; GAPS],
    /// Place of the last durable batch.
    pub durable_at: BatchPlace,
    /// Bytes of all records.
    pub body_bytes: u32,
    /// Number of the records.
    pub records: u32,
    /// The checksum of the records' checksums.
    pub checksum: u32,
}

/// The reason for which a batch is not whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchError {
    /// The bytes from this one of the body on are no record.
    Record(usize, RecordError),
    /// All records are whole, but not those of this header.
    Checksum,
}

impl BatchHeader {
    /// Returns the pages of the whole batch.
    pub fn pages(&self) -> u32 {
        pages_for(self.body_bytes)
    }

    /// Writes the header to the first [`BATCH_HEADER_BYTES`] of `out`.
    pub fn encode(&self, key: LogKey, out: &mut [u8]) {
        let mut bytes = Vec::with_capacity(BATCH_HEADER_BYTES);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend_from_slice(&[0; 2]);
        let BatchPlace { file, page } = self.place;
        bytes.extend([file, page].iter().flat_map(|field| field.to_le_bytes()));
        let numbers = [self.generation, self.number, self.durable, self.floor, self.earlier];
        bytes.extend(numbers.iter().flat_map(|field| field.to_le_bytes()));
        let gaps = self.gaps.iter().flat_map(|gap| [gap.after, gap.before]);
        bytes.extend(gaps.flat_map(u64::to_le_bytes));
        let BatchPlace { file, page } = self.durable_at;
        let of_records = [file, page, self.body_bytes, self.records, self.checksum];
        bytes.extend(of_records.iter().flat_map(|field| field.to_le_bytes()));
        let checksum = key.for_headers().checksum(&bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        out[..BATCH_HEADER_BYTES].copy_from_slice(&bytes);
    }

    /// Returns the header with which `bytes` begin, if they do.
    pub fn decode(key: LogKey, bytes: &[u8]) -> Option<Self> {
        if !Self::looks_like_one(bytes) {
            return None;
        }
        let checksum = key.for_headers().checksum(bytes.get(..CHECKSUM_AT)?);
        if u32_at(bytes, CHECKSUM_AT)? != checksum || bytes.get(4..6)? != FORMAT.to_le_bytes() {
            return None;
        }
        Some(Self {
            place: BatchPlace { file: u32_at(bytes, 8)?, page: u32_at(bytes, 12)? },
            generation: u64_at(bytes, 16)?,
            number: u64_at(bytes, 24)?,
            durable: u64_at(bytes, 32)?,
            floor: u64_at(bytes, 40)?,
            earlier: u64_at(bytes, 48)?,
            gaps: [gap_at(bytes, 56)?, gap_at(bytes, 72)?, gap_at(bytes, 88)?],
            durable_at: BatchPlace { file: u32_at(bytes, 104)?, page: u32_at(bytes, 108)? },
            body_bytes: u32_at(bytes, 112)?,
            records: u32_at(bytes, 116)?,
            checksum: u32_at(bytes, 120)?,
        })
    }

    /// Whether the bytes begin as a header of any log does.
    pub fn looks_like_one(bytes: &[u8]) -> bool {
        bytes.starts_with(&MAGIC)
    }

    /// Checks that `body` has the records that were written behind this header.
    pub fn check(&self, key: LogKey, body: &[u8]) -> Result<(), BatchError> {
        let (mut records, mut checksum) = (0, EMPTY_CHECKSUM);
        let mut at = 0;
        while at < body.len() {
            let decoded = LogRecord::decode(&body[at..], key.for_records(self.number));
            let decoded = decoded.map_err(|error| BatchError::Record(at, error))?;
            at += decoded.used;
            records += 1;
            checksum = chained(checksum, decoded.checksum);
        }
        let is_it = (self.records, self.checksum) == (records, checksum);
        if is_it { Ok(()) } else { Err(BatchError::Checksum) }
    }
}

fn gap_at(bytes: &[u8], at: usize) -> Option<BatchGap> {
    Some(BatchGap { after: u64_at(bytes, at)?, before: u64_at(bytes, at + 8)? })
}

/// Returns the pages of a batch with `body_bytes` of records.
pub(crate) fn pages_for(body_bytes: u32) -> u32 {
    let bytes = body_bytes as usize + BATCH_HEADER_BYTES;
    u32::try_from(bytes.div_ceil(PAGE_BYTES)).unwrap_or(u32::MAX)
}

const EMPTY_CHECKSUM: u32 = 0;

fn chained(checksum: u32, next: u32) -> u32 {
    crc32c::crc32c_append(checksum, &next.to_le_bytes())
}

/// Records that become a batch.
#[derive(Debug, Clone)]
pub struct BatchBody {
    bytes: Vec<u8>,
    expected_bytes: usize,
    seed: Seed,
    records: u32,
    checksum: u32,
}

impl BatchBody {
    /// No records, for the batch with this number.
    pub fn new(key: LogKey, number: u64) -> Self {
        Self::expecting(0, key, number)
    }

    /// No records, for the batch with this number, which may get so many bytes: they are allocated
    /// at once with the first record.
    pub fn expecting(bytes: usize, key: LogKey, number: u64) -> Self {
        let seed = key.for_records(number);
        let (records, checksum) = (0, EMPTY_CHECKSUM);
        Self { bytes: Vec::new(), expected_bytes: bytes, seed, records, checksum }
    }

    /// Adds a record. Returns the byte at which it begins.
    pub fn push(&mut self, stream: StreamId, record: &LogRecord<'_>) -> Result<usize, TooLong> {
        let at = self.bytes.len();
        if at == 0 {
            self.bytes.reserve(self.expected_bytes);
        }
        let checksum = record.encode(stream, self.seed, &mut self.bytes)?;
        self.checksum = chained(self.checksum, checksum);
        self.records += 1;
        Ok(at)
    }

    /// The records.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns the number of the records.
    pub fn records(&self) -> u32 {
        self.records
    }

    /// Returns the checksum of the records' checksums.
    pub fn checksum(&self) -> u32 {
        self.checksum
    }

    /// The records alone.
    pub fn into_bytes(mut self) -> Vec<u8> {
        self.bytes.shrink_to_fit();
        self.bytes
    }
}

/// The records of a batch that was checked, each with the byte at which it begins.
#[derive(Debug, Clone)]
pub struct Records<'a> {
    body: &'a [u8],
    at: usize,
}

impl<'a> Records<'a> {
    /// The records of `body`.
    pub fn of(body: &'a [u8]) -> Self {
        Self { body, at: 0 }
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = (usize, Decoded<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let decoded = LogRecord::view(self.body.get(self.at..)?).ok()?;
        let at = self.at;
        self.at += decoded.used;
        Some((at, decoded))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::record::StoredMessage;
    use super::*;

    const KEY: LogKey = LogKey(11);
    const STREAM: StreamId = StreamId(1);

    /// A batch of messages of which each has one byte more than the one before.
    fn batch(number: u64, count: usize) -> (BatchHeader, Vec<u8>) {
        let mut body = BatchBody::new(KEY, number);
        for len in 0..count {
            let payload = vec![b'x'; len];
            let (sequence, time, flags) = (len as u64 + 1, 4, 0);
            let (subject, headers) = (&b"a"[..], &b""[..]);
            let message =
                StoredMessage { sequence, time, flags, subject, headers, payload: &payload };
            body.push(STREAM, &LogRecord::Message(message)).unwrap();
        }
        let header = BatchHeader {
            place: BatchPlace { file: 1, page: 2 },
            generation: 3,
            number,
            durable: number - 1,
            floor: 1,
            earlier: 99,
            gaps: [1, 2, 3].map(|after| BatchGap { after, before: 10 * after }),
            durable_at: BatchPlace { file: 0, page: 9 },
            body_bytes: u32::try_from(body.bytes().len()).unwrap(),
            records: body.records(),
            checksum: body.checksum(),
        };
        (header, body.into_bytes())
    }

    #[test]
    fn a_header_is_read_as_it_was_written_and_by_its_own_log_only() {
        let (header, _) = batch(5, 3);
        let mut bytes = [0; BATCH_HEADER_BYTES];
        header.encode(KEY, &mut bytes);
        assert_eq!(BatchHeader::decode(KEY, &bytes), Some(header));
        assert_eq!(BatchHeader::decode(LogKey(12), &bytes), None);
        assert!(BatchHeader::looks_like_one(&bytes));
        for len in 0..BATCH_HEADER_BYTES {
            assert_eq!(BatchHeader::decode(KEY, &bytes[..len]), None);
        }
    }

    #[test]
    fn a_batch_fills_whole_pages() {
        let first = u32::try_from(PAGE_BYTES - BATCH_HEADER_BYTES).unwrap();
        for (bytes, pages) in [(0, 1), (1, 1), (first, 1), (first + 1, 2)] {
            assert_eq!(pages_for(bytes), pages, "{bytes}");
        }
    }

    #[test]
    fn a_batch_is_whole_with_all_of_its_records_in_their_order_and_no_others() {
        let (header, body) = batch(5, 3);
        assert_eq!(header.check(KEY, &body), Ok(()));
        let places: Vec<usize> = Records::of(&body).map(|(at, _)| at).chain([body.len()]).collect();
        let parts: Vec<&[u8]> = places.windows(2).map(|two| &body[two[0]..two[1]]).collect();
        let [one, two, three] = parts[..] else { panic!("three records") };
        for wrong in [[one, three].concat(), [two, one, three].concat(), [&body, one].concat()] {
            assert_eq!(header.check(KEY, &wrong), Err(BatchError::Checksum));
        }
        let (other, other_body) = batch(6, 3);
        assert_eq!(other.check(KEY, &other_body), Ok(()));
        assert!(header.check(KEY, &other_body).is_err());
    }

    proptest! {
        #[test]
        fn a_batch_that_was_changed_is_an_error_or_all_of_it_is_whole(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            cut in prop::option::of(any::<prop::sample::Index>()),
        ) {
            let (header, body) = batch(5, 20);
            let mut changed = body.clone();
            for (at, byte) in changes {
                let at = at.index(changed.len());
                changed[at] = byte;
            }
            if let Some(cut) = cut {
                changed.truncate(cut.index(changed.len()));
            }
            let read: Vec<_> = Records::of(&changed).collect();
            prop_assert!(read.len() <= 20 || changed != body);
            if header.check(KEY, &changed).is_ok() {
                let all = Records::of(&body);
                let written: Vec<_> = all.map(|(_, decoded)| decoded.record).collect();
                let read: Vec<_> = read.into_iter().map(|(_, decoded)| decoded.record).collect();
                prop_assert_eq!(read, written);
            }
        }

        #[test]
        fn a_header_that_was_changed_is_none(at in 0..BATCH_HEADER_BYTES, bits in 1..=255_u8) {
            let (header, _) = batch(5, 3);
            let mut bytes = [0; BATCH_HEADER_BYTES];
            header.encode(KEY, &mut bytes);
            bytes[at] ^= bits;
            prop_assert_eq!(BatchHeader::decode(KEY, &bytes), None);
        }
    }
}
