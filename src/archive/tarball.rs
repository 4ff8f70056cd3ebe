//! The form of archives before nats-server 2.15: a tar file.

use super::reader::{ArchiveError, ArchivePart, ArchivedMessage};
use super::records::{BlockRecord, SumKey, read_record};
use super::tar::{self, TarHead, UNIT_BYTES};
use crate::consumer::{ArchivedConsumer, ConsumerPosition};

/// The longest file that is kept as a whole, in bytes.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// The file that is being read.
#[derive(Debug)]
enum OpenFile {
    /// A head comes next.
    None,
    /// Records of messages.
    Block(SumKey),
    /// A file that is kept as a whole, by its name; none for an extension.
    Whole(Option<String>),
    /// A file that nobody needs.
    Other,
}

/// A tar file that is being read.
#[derive(Debug)]
pub(super) struct Tarball {
    stream: String,
    file: OpenFile,
    /// Bytes of the open file that are still to come, and what fills it up.
    left: u64,
    filling: usize,
    /// The name that an extension has for the next file.
    long_name: Option<String>,
    /// The meta file of a consumer whose position follows.
    meta: Option<(String, Vec<u8>)>,
    has_ended: bool,
}

impl Tarball {
    pub(super) fn new(stream: &str) -> Self {
        Self {
            stream: stream.to_owned(),
            file: OpenFile::None,
            left: 0,
            filling: 0,
            long_name: None,
            meta: None,
            has_ended: false,
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Takes a step: `None` if it needs more bytes, else the part that it has found, if any, and
    /// the bytes that it has used.
    pub(super) fn step(
        &mut self,
        waiting: &[u8],
    ) -> Result<Option<(Option<ArchivePart>, usize)>, ArchiveError> {
        if self.has_ended {
            return Ok((!waiting.is_empty()).then_some((None, waiting.len())));
        }
        let left = usize::try_from(self.left).unwrap_or(usize::MAX);
        match &self.file {
            OpenFile::None if self.filling > 0 => {
                let filling = self.filling.min(waiting.len());
                self.filling -= filling;
                Ok((filling > 0).then_some((None, filling)))
            }
            OpenFile::None => {
                let Some(head) = waiting.first_chunk::<UNIT_BYTES>() else { return Ok(None) };
                let head = tar::read_head(head).map_err(|_| ArchiveError("unexpected content"))?;
                self.open(head)?;
                Ok(Some((None, UNIT_BYTES)))
            }
            OpenFile::Other => {
                let bytes = left.min(waiting.len());
                let goes_on = bytes > 0 || left == 0;
                self.pass(bytes);
                Ok(goes_on.then_some((None, bytes)))
            }
            OpenFile::Block(key) => {
                let waiting = &waiting[..waiting.len().min(left)];
                let found = read_record(waiting, *key);
                let found = found.map_err(|_| ArchiveError("a message is damaged"))?;
                let Some((record, bytes)) = found else {
                    let is_whole = waiting.len() == left;
                    return if is_whole {
                        Err(ArchiveError("a block is cut off"))
                    } else {
                        Ok(None)
                    };
                };
                let part = part_of(&record);
                self.pass(bytes);
                Ok(Some((part, bytes)))
            }
            OpenFile::Whole(name) => {
                let Some(content) = waiting.get(..left) else { return Ok(None) };
                let (name, content) = (name.clone(), content.to_vec());
                self.pass(left);
                self.on_file(name, content).map(|part| Some((part, left)))
            }
        }
    }

    /// Goes over bytes of the open file.
    fn pass(&mut self, bytes: usize) {
        self.left -= bytes as u64;
        if self.left == 0 {
            self.file = OpenFile::None;
        }
    }

    fn open(&mut self, head: TarHead) -> Result<(), ArchiveError> {
        let bytes = match &head {
            TarHead::End => {
                self.has_ended = true;
                return Ok(());
            }
            TarHead::Extension { bytes } | TarHead::File { bytes, .. } => *bytes,
        };
        self.left = bytes;
        let unit = UNIT_BYTES as u64;
        self.filling = usize::try_from((unit - bytes % unit) % unit).unwrap_or(0);
        let name = match head {
            TarHead::File { name, .. } => Some(self.long_name.take().unwrap_or(name)),
            _ => None,
        };
        let number = name.as_deref().and_then(|name| name.strip_prefix("msgs/"));
        let number = number.and_then(|name| name.strip_suffix(".blk"));
        let is_needed = name.as_deref().is_none_or(|name| {
            name == "meta.inf" || (name.starts_with("obs/") && !name.ends_with("/meta.sum"))
        });
        self.file = if let Some(number) = number {
            let number = number.parse().map_err(|_| ArchiveError("unexpected content"))?;
            if bytes == 0 {
                OpenFile::None
            } else {
                OpenFile::Block(SumKey::of_block(&self.stream, number))
            }
        } else if is_needed {
            if bytes > FILE_BYTES_MAX {
                return Err(ArchiveError("a file is too long"));
            }
            OpenFile::Whole(name)
        } else {
            OpenFile::Other
        };
        Ok(())
    }

    fn on_file(
        &mut self,
        name: Option<String>,
        content: Vec<u8>,
    ) -> Result<Option<ArchivePart>, ArchiveError> {
        let Some(name) = name else {
            self.long_name = tar::name_in(&content).or(self.long_name.take());
            return Ok(None);
        };
        if name == "meta.inf" {
            return Ok(Some(ArchivePart::Meta(content)));
        }
        let Some((consumer, file)) = name.strip_prefix("obs/").and_then(|it| it.split_once('/'))
        else {
            return Err(ArchiveError("unexpected content"));
        };
        match file {
            "meta.inf" => {
                self.meta = Some((consumer.to_owned(), content));
                Ok(None)
            }
            "o.dat" => {
                let Some((name, meta)) = self.meta.take().filter(|(name, _)| name == consumer)
                else {
                    return Err(ArchiveError("a consumer has no configuration"));
                };
                let position = ConsumerPosition::from_bytes(&content);
                let position = position.ok_or(ArchiveError("a consumer is damaged"))?;
                Ok(Some(ArchivePart::Consumer(ArchivedConsumer { name, config: meta, position })))
            }
            _ => Ok(None),
        }
    }
}

pub(super) fn part_of(record: &BlockRecord<'_>) -> Option<ArchivePart> {
    Some(match record {
        BlockRecord::Message(message) => ArchivePart::Message(ArchivedMessage {
            sequence: message.sequence,
            time: message.time,
            subject: message.subject.into(),
            headers: message.headers.into(),
            payload: message.payload.into(),
        }),
        BlockRecord::Erased { sequence: 0 } => return None,
        BlockRecord::Erased { sequence } => ArchivePart::Erased(*sequence),
        BlockRecord::Deleted { sequence } => ArchivePart::Deleted(*sequence),
    })
}
