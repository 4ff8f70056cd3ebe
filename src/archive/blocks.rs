//! Files of messages as a stopped nats-server leaves them: blocks, compressed or not, and the
//! indexes that were beside them before nats-server 2.10.

use std::collections::BTreeSet;

use super::position::{take, take_signed};
use super::reader::{ArchiveError, ArchivePart};
use super::records::{SumKey, read_record};
use super::tarball::part_of;
use crate::transport::S2Reader;

/// The first bytes of a compressed block; the last of them is the method, S2.
const COMPRESSED: &[u8; 4] = b"cmp\x01";
/// The longest block that is unpacked, in bytes.
const BLOCK_BYTES_MAX: u64 = 256 << 20;
/// Bytes of the last record's checksum, which stay as they are in a compressed block.
const SUM_BYTES: usize = 8;
/// The first bytes of an index: its mark and version.
const INDEX_HEAD: &[u8] = &[22, 1];

/// A block of a stream that is read record by record.
#[derive(Debug)]
pub(crate) struct BlockFile {
    key: SumKey,
    plain: Vec<u8>,
    at: usize,
}

impl BlockFile {
    /// Takes the file of the stream's block with this number.
    ///
    /// # Errors
    ///
    /// Returns an error if the file is compressed and cannot be unpacked.
    pub(crate) fn new(stream: &str, number: u32, file: Vec<u8>) -> Result<Self, ArchiveError> {
        let plain = match file.strip_prefix(COMPRESSED) {
            Some(packed) => unpacked(packed)?,
            None => file,
        };
        Ok(Self { key: SumKey::of_block(stream, number), plain, at: 0 })
    }

    /// Reads the next record; `None` at the end.
    ///
    /// # Errors
    ///
    /// Returns an error if the record is damaged or cut off. The rest of the block is passed over.
    pub(crate) fn next_part(&mut self) -> Result<Option<ArchivePart>, ArchiveError> {
        while let Some(rest) = self.plain.get(self.at..).filter(|rest| !rest.is_empty()) {
            match read_record(rest, self.key) {
                Ok(Some((record, bytes))) => {
                    self.at += bytes;
                    if let Some(part) = part_of(&record) {
                        return Ok(Some(part));
                    }
                }
                Ok(None) | Err(_) => {
                    let damaged = rest.len();
                    self.at = self.plain.len();
                    return Err(ArchiveError(match damaged {
                        0..64 => "a record at its end is cut off",
                        _ => "a record is damaged",
                    }));
                }
            }
        }
        Ok(None)
    }
}

/// Returns the records of a compressed block.
fn unpacked(packed: &[u8]) -> Result<Vec<u8>, ArchiveError> {
    const BAD: ArchiveError = ArchiveError("it cannot be unpacked");
    let mut rest = packed;
    let len = take(&mut rest).filter(|len| *len <= BLOCK_BYTES_MAX).ok_or(BAD)?;
    let (mut body, sum) =
        rest.split_at_checked(rest.len() - SUM_BYTES.min(rest.len())).ok_or(BAD)?;
    let (mut reader, mut plain) = (S2Reader::trusted(), Vec::new());
    while reader.next(&mut body, &mut plain).map_err(ArchiveError)? {
        if plain.len() as u64 > len {
            return Err(BAD);
        }
    }
    plain.extend_from_slice(sum);
    if plain.len() as u64 == len { Ok(plain) } else { Err(BAD) }
}

/// The contents of an index: the sequences of its block that have messages.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct BlockIndex {
    /// The first sequence: messages before it are gone.
    pub(crate) first: u64,
    /// The last sequence that was given.
    pub(crate) last: u64,
    /// Sequences behind the first whose messages were deleted.
    pub(crate) deleted: BTreeSet<u64>,
}

impl BlockIndex {
    /// Reads the file of an index; `None` if it is damaged, or of a later version, whose blocks say
    /// themselves what was deleted.
    pub(crate) fn from_bytes(file: &[u8]) -> Option<Self> {
        let mut rest = file.strip_prefix(INDEX_HEAD)?;
        let rest = &mut rest;
        let (_messages, _bytes) = (take(rest)?, take(rest)?);
        let (first, _) = (take(rest)?, take_signed(rest)?);
        let (last, _) = (take(rest)?, take_signed(rest)?);
        let count = take(rest)?;
        *rest = rest.get(SUM_BYTES..)?;
        let deleted = (0..count).map(|_| take(rest)?.checked_add(first));
        Some(Self { first, last, deleted: deleted.collect::<Option<_>>()? })
    }
}

#[cfg(test)]
mod tests {
    use super::super::position::{put, put_signed};
    use super::super::records::{write_erased, write_message};
    use super::*;
    use crate::store::StoredMessage;
    use crate::transport::S2Writer;

    fn block() -> Vec<u8> {
        let key = SumKey::of_block("S", 3);
        let mut block = Vec::new();
        for sequence in [5, 6] {
            let (time, flags, headers) = (9, 0, &b""[..]);
            let payload = &[b'x'; 1000];
            let message = StoredMessage { sequence, time, flags, subject: b"s", headers, payload };
            write_message(&mut block, key, &message);
        }
        write_erased(&mut block, key, 7, 9);
        block
    }

    fn sequences(file: Vec<u8>) -> Vec<Result<u64, ArchiveError>> {
        let mut block = match BlockFile::new("S", 3, file) {
            Ok(block) => block,
            Err(error) => return vec![Err(error)],
        };
        let next = || match block.next_part() {
            Ok(part) => Some(Ok(match part? {
                ArchivePart::Message(message) => message.sequence,
                ArchivePart::Erased(sequence) => 100 + sequence,
                other => panic!("{other:?}"),
            })),
            Err(error) => Some(Err(error)),
        };
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn a_block_is_read_compressed_or_not() {
        let plain = block();
        assert_eq!(sequences(plain.clone()), [Ok(5), Ok(6), Ok(107)]);
        let (body, sum) = plain.split_at(plain.len() - SUM_BYTES);
        let mut writer = S2Writer::default();
        writer.write(body);
        writer.flush();
        let mut packed = COMPRESSED.to_vec();
        put(&mut packed, plain.len() as u64);
        packed.extend_from_slice(&writer.take(usize::MAX));
        packed.extend_from_slice(sum);
        assert!(packed.len() < plain.len());
        assert_eq!(sequences(packed.clone()), [Ok(5), Ok(6), Ok(107)]);
        packed.truncate(packed.len() - 1);
        assert_eq!(sequences(packed).len(), 1);
    }

    #[test]
    fn damage_costs_the_rest_of_its_block_and_is_said() {
        let mut block = block();
        let at = block.len() / 2 + 100;
        block[at] ^= 1;
        let found = sequences(block.clone());
        assert_eq!(found[0], Ok(5));
        assert_eq!(found[1..], [Err(ArchiveError("a record is damaged"))]);
        block.truncate(10);
        assert_eq!(sequences(block), [Err(ArchiveError("a record at its end is cut off"))]);
    }

    #[test]
    fn an_index_names_what_was_deleted() {
        let mut file = INDEX_HEAD.to_vec();
        put(&mut file, 2);
        put(&mut file, 200);
        for (sequence, time) in [(10, 7), (13, 8)] {
            put(&mut file, sequence);
            put_signed(&mut file, time);
        }
        put(&mut file, 2);
        file.extend_from_slice(&[0; SUM_BYTES]);
        put(&mut file, 1);
        put(&mut file, 2);
        let index = BlockIndex { first: 10, last: 13, deleted: [11, 12].into() };
        assert_eq!(BlockIndex::from_bytes(&file), Some(index));
        assert_eq!(BlockIndex::from_bytes(&file[..file.len() - 1]), None);
        file[1] = 2;
        assert_eq!(BlockIndex::from_bytes(&file), None);
    }
}
