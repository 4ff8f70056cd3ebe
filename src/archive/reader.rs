//! An archive on its way in, cut anywhere.

use super::entries::{EntryArchive, MAGIC};
use super::tarball::Tarball;
use crate::consumer::ArchivedConsumer;
use crate::store::StoredMessage;
use crate::transport::S2Reader;

/// The reason for which an archive is not read any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ArchiveError(pub(crate) &'static str);

/// A message of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ArchivedMessage {
    /// Sequence of the message.
    pub(crate) sequence: u64,
    /// Time of the message, in nanoseconds since 1970.
    pub(crate) time: u64,
    /// Subject of the message.
    pub(crate) subject: Box<[u8]>,
    /// Headers with the line that they begin with; empty if there are none.
    pub(crate) headers: Box<[u8]>,
    /// Payload without the headers.
    pub(crate) payload: Box<[u8]>,
}

impl ArchivedMessage {
    /// Returns the message as streams store it.
    pub(crate) fn stored(&self) -> StoredMessage<'_> {
        let Self { sequence, time, subject, headers, payload } = self;
        StoredMessage { sequence: *sequence, time: *time, flags: 0, subject, headers, payload }
    }
}

/// A part of an archive.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ArchivePart {
    /// The first sequence of the stream.
    Begins(u64),
    /// The stream's time and configuration as JSON, where the archive has it.
    Meta(Vec<u8>),
    /// A message.
    Message(ArchivedMessage),
    /// The sequence was given, and has no message.
    Erased(u64),
    /// A message that came before was deleted.
    Deleted(u64),
    /// A consumer.
    Consumer(ArchivedConsumer),
}

/// The result of reading on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ArchiveStep {
    /// The next part.
    Part(ArchivePart),
    /// More bytes are needed.
    Needs,
    /// The budget is spent.
    Later,
}

/// Bytes of the budget that a step costs beside what it unpacks.
const STEP_BYTES: usize = 256;

/// The form of an archive.
#[derive(Debug)]
enum ArchiveForm {
    /// A form that is not known yet.
    Unknown,
    Entries(EntryArchive),
    Tarball(Tarball),
}

/// An archive that is read piece by piece.
#[derive(Debug)]
pub(crate) struct ArchiveReader {
    stream: String,
    unpacker: S2Reader,
    packed: Vec<u8>,
    /// Bytes of `packed` that have been unpacked.
    taken: usize,
    plain: Vec<u8>,
    /// Bytes of `plain` that have been read.
    used: usize,
    form: ArchiveForm,
}

impl ArchiveReader {
    /// An archive of the stream with this name.
    pub(crate) fn new(stream: &str) -> Self {
        Self {
            stream: stream.to_owned(),
            unpacker: S2Reader::trusted(),
            packed: Vec::new(),
            taken: 0,
            plain: Vec::new(),
            used: 0,
            form: ArchiveForm::Unknown,
        }
    }

    /// Adds bytes of the archive.
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        self.packed.extend_from_slice(bytes);
    }

    /// Whether all of the archive has been read.
    pub(crate) fn has_ended(&self) -> bool {
        match &self.form {
            ArchiveForm::Unknown => false,
            ArchiveForm::Entries(entries) => entries.has_ended(),
            ArchiveForm::Tarball(tarball) => tarball.has_ended(),
        }
    }

    /// Reads up to the next part, at the cost of `left`, a budget in bytes: few packed bytes may
    /// stand for very many.
    ///
    /// # Errors
    ///
    /// Returns an error if this is no archive of the stream.
    pub(crate) fn next_part(&mut self, left: &mut usize) -> Result<ArchiveStep, ArchiveError> {
        loop {
            if *left == 0 {
                return Ok(ArchiveStep::Later);
            }
            *left = left.saturating_sub(STEP_BYTES);
            let waiting = &self.plain[self.used..];
            let step = match &mut self.form {
                ArchiveForm::Unknown => match waiting.first_chunk() {
                    Some(MAGIC) => {
                        self.used += MAGIC.len();
                        self.form = ArchiveForm::Entries(EntryArchive::default());
                        continue;
                    }
                    Some(_) => {
                        self.form = ArchiveForm::Tarball(Tarball::new(&self.stream));
                        continue;
                    }
                    None => None,
                },
                ArchiveForm::Entries(entries) => entries.step(waiting)?,
                ArchiveForm::Tarball(tarball) => tarball.step(waiting)?,
            };
            if let Some((part, used)) = step {
                self.used += used;
                match part {
                    Some(part) => return Ok(ArchiveStep::Part(part)),
                    None => continue,
                }
            }
            self.plain.drain(..std::mem::take(&mut self.used));
            let (mut rest, before) = (&self.packed[self.taken..], self.plain.len());
            let more = self.unpacker.next(&mut rest, &mut self.plain).map_err(ArchiveError)?;
            self.taken = self.packed.len() - rest.len();
            *left = left.saturating_sub(self.plain.len() - before);
            if !more {
                self.packed.drain(..std::mem::take(&mut self.taken));
                return Ok(ArchiveStep::Needs);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::records::{SumKey, write_erased, write_message};
    use super::super::tar::{UNIT_BYTES, head};
    use super::*;
    use crate::archive::ArchiveWriter;
    use crate::consumer::ConsumerPosition;
    use crate::transport::S2Writer;

    fn consumer() -> ArchivedConsumer {
        let name = "C".to_owned();
        let position = ConsumerPosition { floor: (1, 3), delivered: (2, 4), ..<_>::default() };
        ArchivedConsumer { name, config: b"{}".to_vec(), position }
    }

    fn messages(mut put: impl FnMut(&StoredMessage<'_>)) {
        for sequence in [3, 4, 7] {
            let payload = [b'x'; 700_000];
            let headers: &[u8] = if sequence == 4 { b"NATS/1.0\r\nA: b\r\n\r\n" } else { b"" };
            let (time, flags, subject) = (sequence, 0, b"s.a");
            put(&StoredMessage { sequence, time, flags, subject, headers, payload: &payload });
        }
    }

    fn written() -> Vec<u8> {
        let mut writer = ArchiveWriter::new(br#"{"first_seq":3,"last_seq":9}"#, 5);
        writer.consumer(&consumer());
        messages(|message| writer.push(message));
        writer.finish();
        writer.take(usize::MAX)
    }

    /// An archive as nats-server made it before 2.15.
    fn tarball() -> Vec<u8> {
        let mut packer = S2Writer::default();
        let mut file = |name: &str, bytes: &[u8]| {
            packer.write(&head(name, bytes.len()));
            packer.write(bytes);
            packer.write(&vec![0; bytes.len().next_multiple_of(UNIT_BYTES) - bytes.len()]);
        };
        file("meta.inf", br#"{"name":"S"}"#);
        file("meta.sum", b"sum");
        let mut number = 0;
        messages(|message| {
            number += 1;
            let mut block = Vec::new();
            let key = SumKey::of_block("S", number);
            write_message(&mut block, key, message);
            if message.sequence == 7 {
                write_erased(&mut block, key, 9, 10);
            }
            file(&format!("msgs/{number}.blk"), &block);
        });
        file("msgs/index.db", b"what nobody needs");
        let ArchivedConsumer { name, config, position } = consumer();
        file(&format!("obs/{name}/meta.inf"), &config);
        file(&format!("obs/{name}/meta.sum"), b"sum");
        file(&format!("obs/{name}/o.dat"), &position.to_bytes());
        packer.write(&[0; 2 * UNIT_BYTES]);
        packer.flush();
        packer.take(usize::MAX)
    }

    fn parts_of(
        bytes: &[u8],
        piece: usize,
        budget: usize,
    ) -> Result<Vec<ArchivePart>, ArchiveError> {
        let (mut reader, mut parts) = (ArchiveReader::new("S"), Vec::new());
        for piece in bytes.chunks(piece) {
            reader.add(piece);
            loop {
                match reader.next_part(&mut budget.clone())? {
                    ArchiveStep::Part(part) => parts.push(part),
                    ArchiveStep::Later => {}
                    ArchiveStep::Needs => break,
                }
            }
        }
        assert!(reader.has_ended());
        Ok(parts)
    }

    #[test]
    fn archives_of_both_forms_are_read_as_they_were_written_wherever_they_are_cut() {
        for (bytes, is_tarball) in [(written(), false), (tarball(), true)] {
            let whole = parts_of(&bytes, usize::MAX, usize::MAX).unwrap();
            let sequences = whole.iter().filter_map(|part| match part {
                ArchivePart::Message(message) => Some(message.sequence),
                ArchivePart::Erased(sequence) => Some(*sequence),
                _ => None,
            });
            assert_eq!(sequences.collect::<Vec<u64>>(), [3, 4, 7, 9]);
            match is_tarball {
                true => assert_eq!(whole[0], ArchivePart::Meta(br#"{"name":"S"}"#.to_vec())),
                false => assert_eq!(whole[0], ArchivePart::Begins(3)),
            }
            assert!(whole.contains(&ArchivePart::Consumer(consumer())));
            for piece in [1, 511, 4096] {
                assert_eq!(parts_of(&bytes, piece, 1).as_ref(), Ok(&whole), "{piece}");
            }
        }
    }

    #[test]
    fn few_bytes_that_stand_for_many_are_unpacked_as_far_as_the_budget_goes() {
        let mut packer = S2Writer::default();
        packer.write(&head("nobody-needs-this", 64 << 20));
        (0..64).for_each(|_| packer.write(&vec![0; 1 << 20]));
        packer.flush();
        let (mut reader, packed) = (ArchiveReader::new("S"), packer.take(usize::MAX));
        assert!(packed.len() < 1 << 20, "{} bytes", packed.len());
        reader.add(&packed);
        let mut turns = 0;
        while reader.next_part(&mut (1 << 20)) == Ok(ArchiveStep::Later) {
            turns += 1;
            assert!(reader.plain.len() <= 5 << 20, "{} bytes", reader.plain.len());
        }
        assert!(turns >= 12, "{turns} turns");
    }

    #[test]
    fn what_is_no_archive_of_the_stream_is_refused() {
        let (bytes, mut reader) = (tarball(), ArchiveReader::new("T"));
        reader.add(&bytes);
        let mut left = usize::MAX;
        let part = reader.next_part(&mut left);
        assert!(matches!(part, Ok(ArchiveStep::Part(ArchivePart::Meta(_)))));
        assert_eq!(reader.next_part(&mut left), Err(ArchiveError("a message is damaged")));
        let mut reader = ArchiveReader::new("S");
        reader.add(b"no archive at all");
        assert!(reader.next_part(&mut left).is_err());
        let mut packer = S2Writer::default();
        packer.write(MAGIC);
        packer.write(&[0xff; 60]);
        packer.flush();
        let mut reader = ArchiveReader::new("S");
        reader.add(&packer.take(usize::MAX));
        assert!(reader.next_part(&mut left).is_err());
    }

    fn unpacked(bytes: &[u8]) -> Vec<u8> {
        let (mut reader, mut rest, mut out) = (S2Reader::trusted(), bytes, Vec::new());
        while reader.next(&mut rest, &mut out).unwrap() {}
        out
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

        #[test]
        fn whatever_an_archive_says_it_is_read_to_its_end_or_refused(
            changes in proptest::collection::vec(
                (proptest::arbitrary::any::<proptest::sample::Index>(), 0..=255_u8), 1..8,
            ),
            is_tarball: bool,
        ) {
            let mut plain = unpacked(&if is_tarball { tarball() } else { written() });
            // What is not payload is at the beginning and at the end.
            let len = plain.len();
            for (at, byte) in changes {
                let at = at.index(4096);
                let at = if at < 2048 { at } else { len - (at - 2047).min(len) };
                plain[at] = byte;
            }
            let mut packer = S2Writer::default();
            packer.write(&plain);
            packer.flush();
            let mut reader = ArchiveReader::new("S");
            reader.add(&packer.take(usize::MAX));
            let is_read_on = |step| matches!(step, Ok(ArchiveStep::Part(_) | ArchiveStep::Later));
            while is_read_on(reader.next_part(&mut (1 << 20))) {}
        }
    }
}
