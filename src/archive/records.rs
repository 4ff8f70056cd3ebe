//! Records of messages in blocks, and the checksums of records and files.
//!
//! A record is its length in 4 bytes, with the highest bit set if there are headers; the sequence
//! and the time in 8 bytes each; the length of the subject in 2; the subject; the length of the
//! headers in 4, if there are any; headers and payload; a checksum of 8 bytes.

use highway::{HighwayHash, HighwayHasher, Key};
use sha2::{Digest, Sha256};

use crate::store::StoredMessage;

const HEAD_BYTES: usize = 22;
const SUM_BYTES: usize = 8;
const HAS_HEADERS: u32 = 1 << 31;
/// The mark of a sequence whose message was erased, or never there.
const ERASED: u64 = 1 << 63;
/// The mark of a sequence whose message, of an earlier record, was deleted.
const DELETED: u64 = 1 << 62;
/// The longest record that is read, in bytes.
const RECORD_BYTES_MAX: usize = 64 << 20;

/// The contents of a record.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BlockRecord<'a> {
    Message(StoredMessage<'a>),
    /// The sequence was given, and has no message.
    Erased {
        sequence: u64,
    },
    /// The message of an earlier record was deleted.
    Deleted {
        sequence: u64,
    },
}

/// A record that is damaged.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BadRecord;

/// The key of checksums for a name.
#[derive(Debug, Clone, Copy)]
pub(super) struct SumKey([u64; 4]);

impl SumKey {
    /// The key of a stream's files, or of a consumer's: `<stream>/<consumer>`.
    pub(super) fn of_files(name: &str) -> Self {
        let digest = Sha256::digest(name.as_bytes());
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(digest.chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().unwrap_or_default());
        }
        Self(words)
    }

    /// The key of a block of a stream.
    pub(super) fn of_block(stream: &str, number: u32) -> Self {
        Self::of_files(&format!("{stream}-{number}"))
    }

    fn sum(self, parts: &[&[u8]]) -> [u8; SUM_BYTES] {
        let mut hasher = HighwayHasher::new(Key(self.0));
        parts.iter().for_each(|part| hasher.append(part));
        hasher.finalize64().to_le_bytes()
    }
}

#[cfg(test)]
/// Appends the record of a message.
pub(super) fn write_message(block: &mut Vec<u8>, key: SumKey, message: &StoredMessage<'_>) {
    let StoredMessage { sequence, time, subject, headers, payload, .. } = *message;
    let head_len = u32::try_from(headers.len()).unwrap_or(u32::MAX).to_le_bytes();
    let head_len = if headers.is_empty() { &[][..] } else { &head_len[..] };
    let mark = if headers.is_empty() { 0 } else { HAS_HEADERS };
    let parts = [subject, head_len, headers, payload];
    write_record(block, key, (mark, sequence, time), parts);
}

#[cfg(test)]
/// Appends the record of a sequence that has no message: the stream goes on behind it.
pub(super) fn write_erased(block: &mut Vec<u8>, key: SumKey, sequence: u64, time: u64) {
    write_record(block, key, (0, sequence | ERASED, time), [b"", b"", b"", b""]);
}

#[cfg(test)]
fn write_record(
    block: &mut Vec<u8>,
    key: SumKey,
    (mark, sequence, time): (u32, u64, u64),
    parts: [&[u8]; 4],
) {
    let [subject, head_len, headers, payload] = parts;
    let len = HEAD_BYTES + parts.iter().map(|part| part.len()).sum::<usize>() + SUM_BYTES;
    let start = block.len();
    block.extend_from_slice(&(u32::try_from(len).unwrap_or(u32::MAX) | mark).to_le_bytes());
    block.extend_from_slice(&sequence.to_le_bytes());
    block.extend_from_slice(&time.to_le_bytes());
    block.extend_from_slice(&u16::try_from(subject.len()).unwrap_or(u16::MAX).to_le_bytes());
    let sum = key.sum(&[&block[start + 4..start + 20], subject, headers, payload]);
    for part in [subject, head_len, headers, payload, &sum] {
        block.extend_from_slice(part);
    }
}

/// Reads the first record of bytes of a block. Returns it with its length; `None` if it is not
/// whole.
///
/// # Errors
///
/// Returns an error if the record is damaged.
pub(super) fn read_record(
    bytes: &[u8],
    key: SumKey,
) -> Result<Option<(BlockRecord<'_>, usize)>, BadRecord> {
    let Some((head, _)) = bytes.split_first_chunk::<HEAD_BYTES>() else { return Ok(None) };
    let word = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().unwrap_or_default());
    let marked = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
    let (has_headers, len) = (marked & HAS_HEADERS != 0, (marked & !HAS_HEADERS) as usize);
    if !(HEAD_BYTES + SUM_BYTES..=RECORD_BYTES_MAX).contains(&len) {
        return Err(BadRecord);
    }
    let Some(body) = bytes.get(HEAD_BYTES..len) else { return Ok(None) };
    let (body, sum) = body.split_at(body.len() - SUM_BYTES);
    let subject_len = usize::from(u16::from_le_bytes([head[20], head[21]]));
    let (subject, rest) = body.split_at_checked(subject_len).ok_or(BadRecord)?;
    let (headers, payload) = if has_headers {
        let (len, rest) = rest.split_first_chunk::<4>().ok_or(BadRecord)?;
        rest.split_at_checked(u32::from_le_bytes(*len) as usize).ok_or(BadRecord)?
    } else {
        (&[][..], rest)
    };
    if key.sum(&[&head[4..20], subject, headers, payload]) != *sum {
        return Err(BadRecord);
    }
    let (sequence, time) = (word(4), word(12));
    let record = if sequence & DELETED != 0 {
        BlockRecord::Deleted { sequence: sequence & !DELETED }
    } else if sequence & ERASED != 0 || sequence == 0 {
        BlockRecord::Erased { sequence: sequence & !ERASED }
    } else {
        BlockRecord::Message(StoredMessage { sequence, time, flags: 0, subject, headers, payload })
    };
    Ok(Some((record, len)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written_and_damage_is_found() {
        let key = SumKey::of_block("S", 1);
        let message = StoredMessage {
            sequence: 7,
            time: 9,
            flags: 0,
            subject: b"s.a",
            headers: b"NATS/1.0\r\nA: b\r\n\r\n",
            payload: b"body",
        };
        let bare = StoredMessage { sequence: 8, headers: b"", ..message };
        let mut block = Vec::new();
        write_message(&mut block, key, &message);
        let first = block.len();
        write_message(&mut block, key, &bare);
        write_erased(&mut block, key, 9, 10);
        assert_eq!(read_record(&block, key), Ok(Some((BlockRecord::Message(message), first))));
        let rest = &block[first..];
        let Ok(Some((record, len))) = read_record(rest, key) else { panic!("it is whole") };
        assert_eq!(record, BlockRecord::Message(bare));
        let erased = BlockRecord::Erased { sequence: 9 };
        assert_eq!(read_record(&rest[len..], key), Ok(Some((erased, HEAD_BYTES + SUM_BYTES))));
        for cut in 0..first {
            assert_eq!(read_record(&block[..cut], key), Ok(None), "{cut}");
        }
        // Where the headers begin is not covered.
        for at in (4..20).chain(HEAD_BYTES..HEAD_BYTES + 3).chain(HEAD_BYTES + 7..first) {
            let mut bad = block.clone();
            bad[at] ^= 1;
            assert_eq!(read_record(&bad, key), Err(BadRecord), "{at}");
        }
        assert_eq!(read_record(&block, SumKey::of_block("S", 2)), Err(BadRecord));
    }

    #[test]
    fn checksums_are_those_of_highway_hash() {
        let key = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908, 0x1716_1514_1312_1110];
        let key = SumKey([key[0], key[1], key[2], 0x1f1e_1d1c_1b1a_1918]);
        assert_eq!(u64::from_le_bytes(key.sum(&[])), 0x907a_56de_22c2_6e53);
        assert_eq!(u64::from_le_bytes(key.sum(&[&[0]])), 0x7eab_43aa_c7cd_dd78);
    }
}
