//! An entry of an archive: the length of the name, the time, the sequence, and the lengths of
//! headers and payload, as numbers of seven bits a byte; then the name, the headers, the payload.

use super::position::{put, put_signed, take, take_signed};
use super::reader::{ArchiveError, ArchivePart, ArchivedMessage};
use super::writer::ConsumerText;
use crate::consumer::ArchivedConsumer;

/// The first bytes of an archive of entries.
pub(super) const MAGIC: &[u8; 8] = b"NATSARC1";
/// The longest name, and the longest entry, in bytes.
const NAME_BYTES_MAX: u64 = 1 << 20;
const ENTRY_BYTES_MAX: u64 = 64 << 20;
/// Bytes of an entry's numbers, at most.
const HEAD_BYTES_MAX: usize = 50;

/// An entry.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ArchiveEntry<'a> {
    pub(super) name: &'a [u8],
    pub(super) time: i64,
    pub(super) sequence: u64,
    pub(super) headers: &'a [u8],
    pub(super) payload: &'a [u8],
}

impl<'a> ArchiveEntry<'a> {
    /// Returns the bytes of the entry before its payload.
    pub(super) fn head(&self) -> Vec<u8> {
        let mut head = Vec::with_capacity(HEAD_BYTES_MAX + self.name.len() + self.headers.len());
        put(&mut head, self.name.len() as u64);
        put_signed(&mut head, self.time);
        put(&mut head, self.sequence);
        put(&mut head, self.headers.len() as u64);
        put(&mut head, self.payload.len() as u64);
        head.extend_from_slice(self.name);
        head.extend_from_slice(self.headers);
        head
    }

    /// Reads the first entry. Returns it with its length; `None` if it is not whole.
    fn read(bytes: &'a [u8]) -> Result<Option<(Self, usize)>, ArchiveError> {
        const BAD: ArchiveError = ArchiveError("archive: invalid archive stream");
        let mut rest = bytes;
        let numbers = (|| {
            let name = take(&mut rest)?;
            let (time, sequence) = (take_signed(&mut rest)?, take(&mut rest)?);
            Some((name, time, sequence, take(&mut rest)?, take(&mut rest)?))
        })();
        let Some((name, time, sequence, headers, payload)) = numbers else {
            return if bytes.len() >= HEAD_BYTES_MAX { Err(BAD) } else { Ok(None) };
        };
        let lengths = [name, headers, payload];
        if name > NAME_BYTES_MAX || lengths.iter().any(|len| *len > ENTRY_BYTES_MAX) {
            return Err(BAD);
        }
        let [name, headers, payload] =
            lengths.map(|len| usize::try_from(len).unwrap_or(usize::MAX));
        let used = bytes.len() - rest.len() + name + headers + payload;
        if bytes.len() < used {
            return Ok(None);
        }
        let (name, rest) = rest.split_at(name);
        let (headers, rest) = rest.split_at(headers);
        let payload = &rest[..payload];
        Ok(Some((Self { name, time, sequence, headers, payload }, used)))
    }
}

/// The state of a stream, as far as a restore needs it.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
struct StateText {
    first_seq: u64,
    last_seq: u64,
}

/// An archive of entries that is being read.
#[derive(Debug, Default)]
pub(super) struct EntryArchive {
    /// The last sequence of the stream, once its state was read.
    last: Option<u64>,
    has_ended: bool,
}

impl EntryArchive {
    pub(super) fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Takes an entry: `None` if it needs more bytes, else the part that it is, and its length.
    pub(super) fn step(
        &mut self,
        bytes: &[u8],
    ) -> Result<Option<(Option<ArchivePart>, usize)>, ArchiveError> {
        if self.has_ended {
            return Ok((!bytes.is_empty()).then_some((None, bytes.len())));
        }
        let Some((entry, used)) = ArchiveEntry::read(bytes)? else { return Ok(None) };
        let Some(last) = self.last else {
            if entry.name != b"state.json" {
                return Err(ArchiveError("expected state.json first"));
            }
            let state: StateText = serde_json::from_slice(entry.payload)
                .map_err(|_| ArchiveError("error in state.json"))?;
            self.last = Some(state.last_seq);
            return Ok(Some((Some(ArchivePart::Begins(state.first_seq)), used)));
        };
        let part = if entry.sequence > 0 {
            ArchivePart::Message(ArchivedMessage {
                sequence: entry.sequence,
                time: u64::try_from(entry.time).unwrap_or(0),
                subject: entry.name.into(),
                headers: entry.headers.into(),
                payload: entry.payload.into(),
            })
        } else if let Some(name) = entry.name.strip_prefix(b"consumers/") {
            let text: ConsumerText = serde_json::from_slice(entry.payload)
                .map_err(|_| ArchiveError("failed to decode a consumer"))?;
            let name = String::from_utf8_lossy(name).into_owned();
            let (config, position) = (text.config.get().as_bytes().to_vec(), text.state.into());
            ArchivePart::Consumer(ArchivedConsumer { name, config, position })
        } else if entry.name.is_empty() && entry.payload.is_empty() {
            self.has_ended = true;
            ArchivePart::Erased(last)
        } else {
            return Err(ArchiveError("expected message sequence"));
        };
        Ok(Some((Some(part), used)))
    }
}
