//! Streams while their log is read, batch by batch: what is not in memory comes from the disk.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use ahash::RandomState;

use super::super::recovery::RecoveryReport;
use super::super::stream::Stream;
use super::super::wal::Staged;
use super::{LoggedStream, StreamStore};
use crate::record::batch::Records;
use crate::record::record::{LogRecord, StreamId};

/// A log that is being read.
#[derive(Debug)]
pub(super) struct Replay {
    /// The first batch that has not been read.
    next: u64,
    /// Last batches of damages, and records that were lost with them.
    damage: VecDeque<(u64, u64)>,
    /// Records that are lost so far.
    lost: u64,
}

impl Replay {
    pub(super) fn new(report: &RecoveryReport) -> Self {
        let lost = report.damage.iter().map(|damage| (damage.last, u64::from(damage.lost_max)));
        Self { next: 0, damage: lost.collect(), lost: 0 }
    }

    fn lose_before(&mut self, number: u64, streams: &mut BTreeMap<StreamId, LoggedStream>) {
        while let Some((_, records)) =
            self.damage.front().copied().filter(|(last, _)| *last < number)
        {
            self.damage.pop_front();
            self.lost += records;
            streams.values_mut().for_each(|stream| stream.unsure += records);
        }
    }
}

impl StreamStore {
    /// Goes on reading the log, as far as it is in memory.
    pub(super) fn go_on_reading(&mut self) {
        let Some(mut replay) = self.replay.take() else { return };
        while let Some((number, place, body)) = self.wal.tail().batch_from(replay.next) {
            let Some(body) = body.map(Rc::clone) else {
                self.wal.load(number);
                self.replay = Some(replay);
                return;
            };
            replay.lose_before(number, &mut self.streams);
            for (at, decoded) in Records::of(&body) {
                let staged = Staged { commit: number, place: place.plus(at) };
                self.take_record(decoded.stream, &decoded.record, staged, replay.lost);
            }
            replay.lose_before(number + 1, &mut self.streams);
            replay.next = number + 1;
        }
        replay.lose_before(u64::MAX, &mut self.streams);
        self.end_reading();
    }

    fn take_record(&mut self, id: StreamId, record: &LogRecord<'_>, staged: Staged, lost: u64) {
        if *record == LogRecord::End {
            self.streams.remove(&id);
            self.consumers.remove(&id);
            return;
        }
        let committed = self.wal.committed();
        let hasher = &self.hasher;
        let stream = self.streams.entry(id).or_insert_with(|| unlinked(hasher, lost));
        stream.index.commit(committed.min(staged.commit.saturating_sub(1)));
        match record {
            LogRecord::Message(message) if message.sequence < stream.index.next_sequence() => {
                stream.index.append(message, staged);
            }
            LogRecord::Message(message) => {
                let is_behind_a_gap = message.sequence > stream.index.next_sequence();
                if is_behind_a_gap && stream.unsure > 0 {
                    stream.index.lose_up_to(message.sequence - 1);
                }
                stream.unsure = 0;
                stream.index.append(message, staged);
            }
            LogRecord::Delete(ranges) => {
                for range in ranges.iter() {
                    stream.index.remove_range(range);
                }
            }
            LogRecord::Purge { before, last } => {
                if std::mem::take(&mut stream.unsure) > 0 {
                    stream.index.lose_up_to(*last);
                }
                stream.index.purge(*before, *last, staged.commit);
            }
            LogRecord::Configuration(bytes) => stream.configuration = Some((*bytes).into()),
            LogRecord::Consumers(bytes) => {
                self.consumers.entry(id).or_default().push((*bytes).into());
            }
            LogRecord::End => {}
        }
    }

    fn end_reading(&mut self) {
        let (committed, staged) = (self.wal.committed(), self.wal.last_batch());
        let staged = staged.filter(|number| *number > committed);
        let mut unsure = Vec::new();
        for (id, stream) in &mut self.streams {
            stream.index.link();
            // A message of it that was acknowledged may have had any of these sequences.
            let records = std::mem::take(&mut stream.unsure);
            stream.index.lose_up_to(stream.index.next_sequence() - 1 + records);
            stream.index.commit(committed);
            self.changing.extend(staged.map(|number| (number, *id)));
            unsure.extend((records > 0).then_some(*id));
            for (_, place, charged) in stream.index.places() {
                self.wal.tail_mut().add_live(place, charged);
            }
        }
        for id in unsure {
            // Lost records are counted once. Without room for that they are counted next time.
            let _ = self.restate(id);
        }
    }
}

fn unlinked(hasher: &RandomState, lost: u64) -> LoggedStream {
    let index = Stream::unlinked(hasher.clone());
    LoggedStream { unsure: lost, index, ..LoggedStream::new(hasher) }
}
