//! A hash table in parts, so that growing never takes long.

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

/// Entries at which a table is divided into parts.
const DIVIDED_AT: usize = if cfg!(test) { 128 } else { 16 * 1024 };
/// Parts of a divided table.
const PARTS: usize = 256;

/// Entries by hash: a [`HashTable`], as long as there are few.
///
/// A table that doubles moves all its entries: 20 ms at 100,000, for which every connection waits.
/// So a large one is divided into parts by some bits of the hash, which grow each for itself.
#[derive(Debug, Clone)]
pub struct Parted<T> {
    /// All entries of a table that is not divided.
    whole: TablePart<T>,
    divided: Option<Box<Divided<T>>>,
}

#[derive(Debug, Clone)]
struct Divided<T> {
    parts: Vec<TablePart<T>>,
    /// Entries in all parts.
    len: usize,
}

#[derive(Debug, Clone)]
struct TablePart<T> {
    table: HashTable<T>,
    /// A count that changes when entries may have moved.
    layout: u64,
}

/// The progress of [`Parted::scan`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Place {
    /// Parts of the table at the last call.
    parts: usize,
    part: usize,
    bucket: usize,
    layout: u64,
    /// Times that a part was begun again; a step looks at two to this power of places.
    pub(super) factor: u32,
}

impl Place {
    const FACTOR_MAX: u32 = 24;

    fn begin_again(&mut self, part: usize, layout: u64) {
        let has_moved = (self.part, self.bucket) != (part, 0);
        self.factor += u32::from(has_moved && self.factor < Self::FACTOR_MAX);
        (self.part, self.bucket, self.layout) = (part, 0, layout);
    }
}

impl<T> Default for TablePart<T> {
    fn default() -> Self {
        Self { table: HashTable::new(), layout: 0 }
    }
}

impl<T> Default for Parted<T> {
    fn default() -> Self {
        Self { whole: TablePart::default(), divided: None }
    }
}

/// Returns the part of a hash. hashbrown uses its lowest and its highest bits.
fn part_of(hash: u64) -> usize {
    usize::from((hash >> 40).to_le_bytes()[0])
}

/// Whether to give memory back because little of it is in use.
fn is_sparse(len: usize, capacity: usize) -> bool {
    const KEPT: usize = 64;
    capacity > KEPT && len < capacity / 8
}

impl<T> Parted<T> {
    /// Returns the number of entries.
    pub fn len(&self) -> usize {
        self.divided.as_ref().map_or(self.whole.table.len(), |divided| divided.len)
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn part(&self, hash: u64) -> &TablePart<T> {
        match &self.divided {
            None => &self.whole,
            Some(divided) => &divided.parts[part_of(hash)],
        }
    }

    /// Returns the entry with this hash that is `equal`.
    pub fn find(&self, hash: u64, equal: impl FnMut(&T) -> bool) -> Option<&T> {
        self.part(hash).table.find(hash, equal)
    }

    /// Returns the entry with this hash that is `equal`.
    pub fn find_mut(&mut self, hash: u64, equal: impl FnMut(&T) -> bool) -> Option<&mut T> {
        let part = match &mut self.divided {
            None => &mut self.whole,
            Some(divided) => &mut divided.parts[part_of(hash)],
        };
        part.table.find_mut(hash, equal)
    }

    /// Returns the entry with this hash that is `equal`, made if there is none. `hasher` gives the
    /// hash of any entry.
    pub fn find_or_insert(
        &mut self,
        hash: u64,
        equal: impl FnMut(&T) -> bool,
        hasher: impl Fn(&T) -> u64,
        new: impl FnOnce() -> T,
    ) -> &mut T {
        if self.divided.is_none() && self.whole.table.len() >= DIVIDED_AT {
            self.divide(&hasher);
        }
        let mut uncounted = 0;
        let (part, len) = match &mut self.divided {
            None => (&mut self.whole, &mut uncounted),
            Some(divided) => (&mut divided.parts[part_of(hash)], &mut divided.len),
        };
        if part.table.len() == part.table.capacity() {
            part.layout += 1;
        }
        match part.table.entry(hash, equal, hasher) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(place) => {
                *len += 1;
                place.insert(new()).into_mut()
            }
        }
    }

    #[cold]
    fn divide(&mut self, hasher: &impl Fn(&T) -> u64) {
        let whole = std::mem::take(&mut self.whole).table;
        let len = whole.len();
        let room = || TablePart { table: HashTable::with_capacity(2 * len / PARTS), layout: 0 };
        let mut parts: Vec<TablePart<T>> = std::iter::repeat_with(room).take(PARTS).collect();
        for value in whole {
            let hash = hasher(&value);
            parts[part_of(hash)].table.insert_unique(hash, value, hasher);
        }
        self.divided = Some(Box::new(Divided { parts, len }));
    }

    /// Takes out the entry with this hash that is `equal`. `hasher` gives the hash of any entry.
    pub fn remove(
        &mut self,
        hash: u64,
        equal: impl FnMut(&T) -> bool,
        hasher: impl Fn(&T) -> u64,
    ) -> Option<T> {
        let part = match &mut self.divided {
            None => &mut self.whole,
            Some(divided) => &mut divided.parts[part_of(hash)],
        };
        let (value, _) = part.table.find_entry(hash, equal).ok()?.remove();
        if is_sparse(part.table.len(), part.table.capacity()) {
            part.layout += 1;
            part.table.shrink_to(part.table.len() * 2, hasher);
        }
        self.forget(1);
        Some(value)
    }

    /// Takes out up to `count` entries, in no order.
    pub fn take(&mut self, count: usize) -> Vec<T> {
        let mut taken = Vec::with_capacity(count.min(self.len()));
        let parts = match &mut self.divided {
            None => std::slice::from_mut(&mut self.whole),
            Some(divided) => &mut divided.parts[..],
        };
        for part in parts.iter_mut().filter(|part| !part.table.is_empty()) {
            let left = count - taken.len();
            if left == 0 {
                break;
            }
            taken.extend(part.table.extract_if(|_| true).take(left));
        }
        self.forget(taken.len());
        taken
    }

    /// Counts removed entries. With the last one all memory is freed.
    fn forget(&mut self, count: usize) {
        if let Some(divided) = &mut self.divided {
            divided.len -= count;
            if divided.len == 0 {
                self.divided = None;
            }
        }
    }

    fn parts(&self) -> &[TablePart<T>] {
        match &self.divided {
            None => std::slice::from_ref(&self.whole),
            Some(divided) => &divided.parts,
        }
    }

    /// Returns all entries, in no promised order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.parts().iter().flat_map(|part| &part.table)
    }

    /// Visits entries from the place of an earlier call on, at no more than `steps` places, which
    /// are used up. Returns whether all have been visited.
    ///
    /// Entries may come and go between two calls. An entry that is there all the time is visited,
    /// perhaps more than once; one that comes or goes may be visited or not. When a change has
    /// moved visited entries, their part is begun again, and from then on each step looks at twice
    /// as many places: so the scan ends however often that happens.
    pub fn scan(&self, at: &mut Place, steps: &mut usize, mut visit: impl FnMut(&T)) -> bool {
        let parts = self.parts();
        if at.parts != parts.len() {
            at.begin_again(0, parts[0].layout);
            at.parts = parts.len();
        }
        while let Some(TablePart { table, layout }) = parts.get(at.part) {
            if at.layout != *layout {
                at.begin_again(at.part, *layout);
            }
            let (buckets, stride) = (table.num_buckets(), 1 << at.factor);
            while at.bucket < buckets {
                if *steps == 0 {
                    return false;
                }
                *steps -= 1;
                let end = buckets.min(at.bucket + stride);
                (at.bucket..end).filter_map(|place| table.get_bucket(place)).for_each(&mut visit);
                at.bucket = end;
            }
            at.part += 1;
            at.bucket = 0;
            at.layout = parts.get(at.part).map_or(0, |next| next.layout);
        }
        true
    }

    /// Returns the bytes of memory, without memory that entries point to.
    pub fn memory_bytes(&self) -> usize {
        let of_parts = self.divided.as_ref().map_or(0, |divided| divided.parts.capacity());
        let tables = self.parts().iter().map(|part| part.table.allocation_size());
        of_parts * size_of::<TablePart<T>>() + tables.sum::<usize>()
    }

    /// Returns the number of entries that there is memory for.
    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.parts().iter().map(|part| part.table.capacity()).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use ahash::RandomState;
    use proptest::prelude::*;

    use super::*;

    fn hash(value: &u32) -> u64 {
        RandomState::with_seeds(1, 2, 3, 4).hash_one(value)
    }

    fn insert(table: &mut Parted<u32>, value: u32) {
        table.find_or_insert(hash(&value), |other| *other == value, hash, || value);
    }

    fn remove(table: &mut Parted<u32>, value: u32) -> Option<u32> {
        table.remove(hash(&value), |other| *other == value, hash)
    }

    proptest! {
        #[test]
        fn it_is_a_set_however_large(
            steps in prop::collection::vec((0..4_u8, 0..2_000_u32, 0..300_u32), 0..40),
        ) {
            let (mut table, mut model) = (Parted::default(), BTreeSet::new());
            for (step, first, count) in steps {
                match step {
                    0 | 1 => (first..first + count).for_each(|value| {
                        insert(&mut table, value);
                        model.insert(value);
                    }),
                    2 => (first..first + count).for_each(|value| {
                        assert_eq!(remove(&mut table, value).is_some(), model.remove(&value));
                    }),
                    _ => {
                        let taken = table.take(count as usize);
                        prop_assert_eq!(taken.len(), model.len().min(count as usize));
                        taken.iter().for_each(|value| assert!(model.remove(value)));
                    }
                }
                prop_assert_eq!(table.len(), model.len());
                let all: BTreeSet<u32> = table.iter().copied().collect();
                prop_assert_eq!(&all, &model);
                let has = |value: u32| table.find(hash(&value), |other| *other == value).is_some();
                prop_assert!((0..2_300).all(|value| has(value) == model.contains(&value)));
            }
        }

        #[test]
        fn what_is_there_all_the_time_is_visited_whatever_comes_and_goes(
            changes in prop::collection::vec((any::<bool>(), 1_000..3_000_u32, 0..200_u32), 0..60),
            stay in 0..1_000_u32,
            steps in 1..50_usize,
        ) {
            let mut table = Parted::default();
            (0..stay).for_each(|value| insert(&mut table, value));
            let (mut at, mut visited) = (Place::default(), BTreeSet::new());
            let mut changes = changes.into_iter();
            let mut calls = 0;
            let mut see = |value: &u32| {
                visited.insert(*value);
            };
            while !table.scan(&mut at, &mut steps.clone(), &mut see) {
                calls += 1;
                prop_assert!(calls < 100_000, "it comes to an end");
                if let Some((inserts, first, count)) = changes.next() {
                    for value in first..first + count {
                        if inserts {
                            insert(&mut table, value);
                        } else {
                            remove(&mut table, value);
                        }
                    }
                }
            }
            prop_assert!((0..stay).all(|value| visited.contains(&value)));
        }
    }

    #[test]
    fn no_part_ever_moves_more_than_a_small_share_of_the_entries() {
        let mut table = Parted::default();
        (0..100_000).for_each(|value| insert(&mut table, value));
        let largest = table.parts().iter().map(|part| part.table.len()).max();
        assert!(largest.is_some_and(|largest| largest < 2 * 100_000 / PARTS), "{largest:?}");
    }

    #[test]
    fn memory_is_given_back_with_the_last_entry() {
        let mut table = Parted::default();
        (0..10_000).for_each(|value| insert(&mut table, value));
        (0..10_000).for_each(|value| assert_eq!(remove(&mut table, value), Some(value)));
        assert!(table.capacity() < 200, "{}", table.capacity());
    }
}
