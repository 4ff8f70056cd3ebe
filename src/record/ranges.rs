//! Sets of sequences, written as ranges: two or three bytes for most.

use std::ops::RangeInclusive;

/// Ranges of sequences, ascending, as a record has them: for each its distance from the end of the
/// one before and its length, as numbers of seven bits a byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ranges<'a> {
    bytes: &'a [u8],
}

/// Ranges of sequences that are to become part of a record.
#[derive(Debug, Clone, Default)]
pub struct RangeList {
    bytes: Vec<u8>,
    /// The last sequence in `bytes`.
    written: u64,
    /// The last range, which may become longer.
    open: Option<RangeInclusive<u64>>,
}

impl RangeList {
    /// Adds sequences. What is not above all that are there already is ignored.
    pub fn push(&mut self, range: RangeInclusive<u64>) {
        let end = self.open.as_ref().map_or(self.written, |open| *open.end());
        if *range.start() <= end || range.is_empty() {
            return;
        }
        match self.open.take() {
            Some(open) if end + 1 == *range.start() => {
                self.open = Some(*open.start()..=*range.end());
            }
            open => {
                self.open = open;
                self.write();
                self.open = Some(range);
            }
        }
    }

    fn write(&mut self) {
        if let Some(range) = self.open.take() {
            let (first, last) = range.into_inner();
            write_number(&mut self.bytes, first - self.written);
            write_number(&mut self.bytes, last - first + 1);
            self.written = last;
        }
    }

    /// Whether there is no sequence in it.
    pub fn is_empty(&self) -> bool {
        self.open.is_none() && self.bytes.is_empty()
    }

    /// All of them, for a record.
    pub fn ranges(&mut self) -> Ranges<'_> {
        self.write();
        Ranges { bytes: &self.bytes }
    }
}

impl<'a> Ranges<'a> {
    /// `None` if the bytes are no ranges.
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (mut rest, mut end) = (bytes, 0);
        while !rest.is_empty() {
            end = *read_range(&mut rest, end)?.end();
        }
        Some(Self { bytes })
    }

    pub(crate) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The ranges in their order; none is empty.
    pub fn iter(&self) -> impl Iterator<Item = RangeInclusive<u64>> + use<'a> {
        let (mut rest, mut end) = (self.bytes, 0);
        std::iter::from_fn(move || {
            let range = read_range(&mut rest, end)?;
            end = *range.end();
            Some(range)
        })
    }
}

fn read_range(rest: &mut &[u8], end: u64) -> Option<RangeInclusive<u64>> {
    let (distance, count) = (read_number(rest)?, read_number(rest)?);
    if distance == 0 || count == 0 {
        return None;
    }
    let first = end.checked_add(distance)?;
    Some(first..=first.checked_add(count - 1)?)
}

fn write_number(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    bytes.push(number.to_le_bytes()[0]);
}

fn read_number(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..u64::BITS).step_by(7) {
        let (byte, behind) = rest.split_first()?;
        *rest = behind;
        let bits = u64::from(byte & 0x7f);
        if (bits << shift) >> shift != bits {
            return None;
        }
        number |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_removal_of_one_message_takes_three_bytes_and_one_beside_it_none() {
        let mut list = RangeList::default();
        assert!(list.is_empty());
        list.push(1000..=1000);
        list.push(1001..=1001);
        list.push(900..=2000);
        assert!(!list.is_empty());
        assert_eq!(list.ranges().bytes().len(), 3);
        list.push(1001..=1003);
        list.push(1002..=1002);
        list.push(1004..=u64::MAX);
        let all: Vec<_> = list.ranges().iter().collect();
        assert_eq!(all, [1000..=1001, 1002..=1002, 1004..=u64::MAX]);
    }

    proptest! {
        #[test]
        fn what_was_pushed_is_read(
            mut pairs in prop::collection::vec((1..300_u64, 1..300_u64), 0..9),
        ) {
            let (mut list, mut end, mut expected) = (RangeList::default(), 0, Vec::new());
            for (distance, count) in pairs.drain(..) {
                let first = end + distance;
                end = first + count - 1;
                list.push(first..=end);
                expected.extend(first..=end);
            }
            let ranges = list.ranges();
            prop_assert_eq!(Ranges::parse(ranges.bytes()), Some(ranges));
            prop_assert_eq!(ranges.iter().flatten().collect::<Vec<_>>(), expected);
        }

        #[test]
        fn any_bytes_are_ranges_in_ascending_order_or_none(bytes in any::<Vec<u8>>()) {
            if let Some(ranges) = Ranges::parse(&bytes) {
                let all: Vec<_> = ranges.iter().collect();
                prop_assert!(all.iter().all(|range| !range.is_empty()));
                prop_assert!(all.windows(2).all(|two| two[0].end() < two[1].start()));
            }
        }
    }
}
