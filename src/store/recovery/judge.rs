//! Torn or rotten: the batches that make the log, and those that are missing.
//!
//! Only one commit is in flight, and each batch names the last one that was durable before. So a
//! batch up to there that is missing or not whole was acknowledged, and is damage: its records are
//! kept one by one. The last batch of all may be torn, and then neither it nor any record in it was
//! acknowledged: it is dropped as a whole. A last batch that is whole may be on the disk or only in
//! a cache: it is written once more. So is one of which only a copy is left that was never
//! acknowledged, since its write has failed: it may be in a cache, too.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::super::tail::SealedBatch;
use super::super::wal::BatchAgain;
use super::salvage::salvage;
use super::scan::{FileScan, FoundBatch, FoundBody};
use crate::disk::PAGE_BYTES;
use crate::output::Segment;
use crate::record::batch::{BatchGap, BatchHeader, BatchPlace, GAPS};
use crate::record::checksum::LogKey;

/// Missing batches that are searched for one by one.
const SEARCHED_MAX: u64 = 16;
/// Bytes that a message takes in a log, at least.
const MESSAGE_BYTES_MIN: usize = 40;

/// Damage to acknowledged batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Damage {
    /// The first batch that is damaged or missing.
    pub first: u64,
    /// The last batch that is damaged or missing.
    pub last: u64,
    /// The file, if it is known.
    pub file: Option<u32>,
    /// Records of these batches that were kept.
    pub kept: u32,
    /// Records of these batches that are lost, at most.
    pub lost_max: u32,
}

/// A batch that is part of the log.
#[derive(Debug)]
pub(super) struct JudgedBatch {
    pub(super) number: u64,
    /// The place on the disk, if the batch is there as a whole for sure.
    pub(super) home: Option<BatchPlace>,
    pub(super) bytes: u32,
    /// The records, if they are in memory.
    pub(super) body: Option<Segment>,
}

impl JudgedBatch {
    /// A batch of which these records are left.
    fn salvaged<'a>(number: u64, records: impl Iterator<Item = &'a [u8]>) -> Self {
        let body: Vec<u8> = records.flatten().copied().collect();
        let bytes = u32::try_from(body.len()).unwrap_or(u32::MAX);
        Self { number, home: None, bytes, body: Some(Rc::new(body)) }
    }
}

/// The batches of a log in their order.
#[derive(Debug, Default)]
pub(super) struct Judged {
    /// Whole batches, and the records that are left of others.
    pub(super) batches: Vec<JudgedBatch>,
    pub(super) damage: Vec<Damage>,
    /// Files with records of batches without a header, and those batches.
    pub(super) salvaged: Vec<(u32, u64)>,
    /// The batch that had no end.
    pub(super) torn: Option<u64>,
    /// Batches among these that may not be on the disk, in order.
    pub(super) again: Vec<BatchAgain>,
    /// The last batch known to be durable.
    pub(super) durable: u64,
    /// Place of that batch.
    pub(super) durable_at: BatchPlace,
    /// Number of the records of all batches up to that one.
    pub(super) earlier: u64,
    /// The highest number that is known.
    pub(super) last: u64,
    /// The last batch that is part of the log.
    pub(super) kept: u64,
    /// The last gaps in the numbers, the latest first.
    pub(super) gaps: [BatchGap; GAPS],
    pub(super) floor: u64,
    /// Number of the records of all batches so far, if it is known.
    counted: Option<u64>,
}

/// The order in which batches were written, and where they were when they were acknowledged.
struct Writes {
    /// Generation, page and number of each write.
    order: Vec<(u64, u32, u64)>,
    /// Numbers of batches, their places, and the generation of the batch that says so.
    acknowledged: BTreeMap<u64, Vec<(BatchPlace, u64)>>,
}

impl Writes {
    fn new(headers: impl Iterator<Item = BatchHeader>) -> Self {
        let mut writes = Self { order: Vec::new(), acknowledged: BTreeMap::new() };
        for header in headers {
            writes.order.push((header.generation, header.place.page, header.number));
            let said = writes.acknowledged.entry(header.durable).or_default();
            if !said.iter().any(|(place, _)| *place == header.durable_at) {
                said.push((header.durable_at, header.generation));
            }
        }
        writes.order.sort_unstable();
        writes
    }

    /// Whether this copy of a batch was acknowledged, and so is on the disk.
    fn is_durable(&self, header: &BatchHeader) -> bool {
        let said = self.acknowledged.get(&header.number).map_or(&[][..], |said| said);
        if said.iter().any(|(place, _)| *place == header.place) {
            return true;
        }
        if said.iter().any(|(_, generation)| header.generation <= *generation) {
            return false;
        }
        // Another batch was begun only when this one had ended.
        let write = (header.generation, header.place.page, header.number);
        let behind = self.order.partition_point(|other| *other <= write);
        self.order.get(behind).is_some_and(|(.., number)| *number != header.number)
    }
}

pub(super) fn judge(scans: &[FileScan], key: LogKey) -> Judged {
    let headers = || scans.iter().flat_map(|scan| &scan.batches).map(|batch| batch.header);
    let newest = headers().max_by_key(|header| header.durable);
    let released = scans.iter().filter_map(|scan| scan.released);
    let released = released.max_by_key(|header| header.number);
    let mut judged = Judged {
        durable: newest.map_or(0, |header| header.durable),
        durable_at: newest.map_or(BatchPlace::default(), |header| header.durable_at),
        earlier: newest.map_or(0, |header| header.earlier),
        last: headers().map(|header| header.number.max(header.durable)).max().unwrap_or(0),
        floor: scans.iter().map(|scan| scan.floor).max().unwrap_or(0).max(1),
        counted: released.map(|header| header.earlier + u64::from(header.records)),
        ..Judged::default()
    };
    let writes = Writes::new(headers());
    let gaps = gaps_of(headers());
    gaps.iter().rev().zip(&mut judged.gaps).for_each(|(known, gap)| *gap = *known);
    judged.kept = judged.durable;
    let is_given_up = |number: u64| gaps.iter().any(|gap| gap.contains(number));
    let mut next = judged.floor;
    for (number, copies) in valid(scans, judged.floor, &is_given_up) {
        let header = copies[0].header;
        let before = copies.iter().map(|copy| copy.header.durable).max().unwrap_or(0);
        let before = before.min(number - 1);
        let missing = (next..=before).filter(|number| !is_given_up(*number));
        judged.miss(missing, header.earlier, scans, key);
        next = number + 1;
        judged.counted = Some(header.earlier + u64::from(header.records));
        judged.take(number, &copies, &writes, key);
    }
    let missing = (next..=judged.durable).filter(|number| !is_given_up(*number));
    judged.miss(missing, judged.earlier, scans, key);
    judged
}

/// All gaps in the numbers of batches, in order.
fn gaps_of(headers: impl Iterator<Item = BatchHeader>) -> Vec<BatchGap> {
    let known = headers.flat_map(|header| header.gaps).filter(|gap| gap.before > 0);
    let gaps: BTreeMap<u64, BatchGap> = known.map(|gap| (gap.before, gap)).collect();
    gaps.into_values().collect()
}

/// Returns the batches that were not given up before a start, by number. A batch has several copies
/// if its first write failed, or if it was written once more after a start.
fn valid<'a>(
    scans: &'a [FileScan],
    floor: u64,
    is_given_up: &impl Fn(u64) -> bool,
) -> BTreeMap<u64, Vec<&'a FoundBatch>> {
    let mut all: BTreeMap<u64, Vec<&FoundBatch>> = BTreeMap::new();
    for batch in scans.iter().flat_map(|scan| &scan.batches) {
        if batch.header.number >= floor && !is_given_up(batch.header.number) {
            all.entry(batch.header.number).or_default().push(batch);
        }
    }
    // Batches between one and the last durable one before it were given up.
    let mut given_up = u64::MAX;
    let numbers: Vec<u64> = all.keys().rev().copied().collect();
    for number in numbers {
        if number > given_up {
            all.remove(&number);
        } else if let Some(copies) = all.get(&number) {
            given_up = copies.iter().map(|copy| copy.header.durable).max().unwrap_or(0);
        }
    }
    all
}

impl Judged {
    fn take(&mut self, number: u64, copies: &[&FoundBatch], writes: &Writes, key: LogKey) {
        let durable = || copies.iter().filter(|copy| writes.is_durable(&copy.header));
        let kept = durable().find(|copy| copy.is_whole());
        let Some(copy) = kept.or_else(|| copies.iter().find(|copy| copy.is_whole())) else {
            return match durable().next_back() {
                Some(copy) => self.take_damaged(&[*copy], key),
                None => self.take_damaged(copies, key),
            };
        };
        let (header, body) = (copy.header, copy.whole().cloned());
        let is_last = number > self.durable;
        self.kept = self.kept.max(number);
        let is_safe = kept.is_some() && !is_last;
        if header.body_bytes > 0 {
            let home = Some(header.place).filter(|_| is_safe || body.is_none());
            let (bytes, body) = (header.body_bytes, body.clone());
            self.batches.push(JudgedBatch { number, home, bytes, body });
        }
        if kept.is_none() && !is_last {
            let (file, kept) = (Some(header.place.file), header.records);
            self.damage.push(Damage { first: number, last: number, file, kept, lost_max: 0 });
        }
        if let Some(body) = body.filter(|body| !is_safe && !body.is_empty()) {
            let (records, checksum) = (header.records, header.checksum);
            let batch = SealedBatch { number, body, records, checksum };
            self.again.push(BatchAgain { batch, header });
        }
    }

    /// Takes copies of one batch, none of them whole.
    fn take_damaged(&mut self, copies: &[&FoundBatch], key: LogKey) {
        let header = copies[0].header;
        let number = header.number;
        if number > self.durable {
            self.torn = Some(number);
            return;
        }
        let mut records = BTreeMap::new();
        for copy in copies {
            if let FoundBody::Damaged(bytes) = &copy.body {
                records.extend(salvage(bytes, key.for_records(number)));
            }
        }
        let kept = u32::try_from(records.len()).unwrap_or(u32::MAX);
        if kept > 0 {
            self.batches.push(JudgedBatch::salvaged(number, records.into_values()));
        }
        let (first, last, file) = (number, number, Some(header.place.file));
        let lost_max = header.records.saturating_sub(kept);
        self.damage.push(Damage { first, last, file, kept, lost_max });
    }

    /// Takes batches without a header: records that are left of them are between others. The batch
    /// behind them says how many records there were `earlier`.
    fn miss(
        &mut self,
        mut numbers: impl DoubleEndedIterator<Item = u64> + Clone,
        earlier: u64,
        scans: &[FileScan],
        key: LogKey,
    ) {
        let Some(first) = numbers.clone().next() else { return };
        let last = numbers.next_back().unwrap_or(first);
        let numbers = numbers.chain([last]);
        let gaps =
            || scans.iter().flat_map(|scan| scan.gaps.iter().map(move |gap| (scan.file, gap)));
        let mut kept = 0;
        for number in numbers.take(usize::try_from(SEARCHED_MAX).unwrap_or(0)) {
            let mut left = BTreeMap::new();
            for (place, (file, gap)) in gaps().enumerate() {
                let records = salvage(gap, key.for_records(number));
                if !records.is_empty() {
                    self.salvaged.push((file, number));
                }
                left.extend(records.into_iter().map(|(at, record)| ((place, at), record)));
            }
            if !left.is_empty() {
                kept += u32::try_from(left.len()).unwrap_or(u32::MAX);
                self.batches.push(JudgedBatch::salvaged(number, left.into_values()));
            }
        }
        let pages: usize = scans.iter().map(|scan| scan.gap_pages).sum();
        let records_max = earlier.min((pages * PAGE_BYTES / MESSAGE_BYTES_MIN) as u64);
        let lost_max = self.counted.map_or(records_max, |counted| earlier.saturating_sub(counted));
        let lost_max = u32::try_from(lost_max).unwrap_or(u32::MAX).saturating_sub(kept);
        self.damage.push(Damage { first, last, file: None, kept, lost_max });
    }
}
