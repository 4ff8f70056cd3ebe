//! Caches of resolved subjects, valid until interest changes that could match them.
//!
//! Each account has a cache of its own; all of a shard together are bounded. A hand goes round over
//! all of them, as over a clock's face: an entry that was not used since its last pass goes when
//! room is needed, and in any case within two rounds of about 16 seconds. So a publisher to many
//! subjects takes the place of unused entries, in any account, never for long that of used ones;
//! and memory of unused entries is given back.

use std::cell::Cell;
use std::rc::Rc;

use ahash::RandomState;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use crate::interest::accounts::Accounts;
use crate::interest::targets::Targets;
use crate::measure::NEVER;
use crate::subject::{first_token, is_literal};

/// Bound of all caches of the process, in charged bytes, divided among the shards: enough for a
/// hundred thousand published subjects on each of four shards.
const CHARGED_BYTES_MAX: usize = 128 * 1024 * 1024;

/// Factor by which a subject without receivers is charged: it is resolved again at little cost,
/// and publishers can invent any number of them.
const NOBODYS_CHARGE: usize = 32;

/// Cached subjects of an account are divided into this many families by their first token.
const FAMILIES: usize = 256;

/// Places that the hand passes, at most, to make room for one subject.
const STEPS_PER_SUBJECT: usize = 256;

/// Nanoseconds between two moves of the hand, whether or not room is needed.
const MOVE_NS: u64 = 250_000_000;

/// Moves of the hand in a round.
const MOVES_PER_ROUND: usize = 64;

/// Places above which a table gives memory back when few of them are taken.
const PLACES_KEPT: usize = 64;

/// Counters that the caches of a shard share, and the hash of subjects.
#[derive(Debug)]
pub(crate) struct Tally {
    /// The hash of subjects, equal on all shards.
    hasher: RandomState,
    /// Charge of all entries, in bytes.
    charged: Cell<usize>,
    /// Subjects in the caches.
    subjects: Cell<usize>,
    /// Targets of a subject without receivers.
    nobody: Rc<Targets>,
}

impl Tally {
    /// Counters of empty caches; `hash_seed` keys the hash of subjects, because clients choose
    /// them.
    pub(crate) fn new(hash_seed: u64) -> Self {
        let hasher =
            RandomState::with_seeds(hash_seed, !hash_seed, hash_seed.rotate_left(17), 0x5eed);
        let (charged, subjects) = (Cell::default(), Cell::default());
        Self { hasher, charged, subjects, nobody: Rc::default() }
    }
}

/// The cache of one account.
///
/// A change of a filter without wildcards concerns the one subject that is equal to it. A change of
/// any other outdates, at once and without a search, the subjects that may share its first token:
/// they are of one family, and families have versions. An outdated entry goes when the hand comes
/// by.
#[derive(Debug)]
pub(crate) struct Cache {
    resolved: HashTable<Resolved>,
    hasher: RandomState,
    /// The current version of each family; none before one has changed.
    versions: Option<Box<[u64; FAMILIES]>>,
    /// Number of changes that concern all families.
    epoch: u64,
    /// Position of the hand, if it is in this cache.
    hand: usize,
    tally: Rc<Tally>,
}

#[derive(Debug)]
struct Resolved {
    subject: Box<[u8]>,
    targets: Rc<Targets>,
    /// Sum of the versions of family and epoch: neither goes back, so the sum shows whether one has
    /// changed.
    version: u64,
    family: u8,
    /// Whether the entry was used since the hand came by.
    is_used: bool,
}

impl Resolved {
    fn charge(&self, tally: &Tally) -> usize {
        // A place in the table, of which an eighth is free at best, and the text.
        let place = size_of::<Self>() + size_of::<Self>() / 4 + self.subject.len() + 16;
        if Rc::ptr_eq(&self.targets, &tally.nobody) {
            place * NOBODYS_CHARGE
        } else {
            place + self.targets.cost()
        }
    }
}

impl Cache {
    pub(crate) fn new(tally: &Rc<Tally>) -> Self {
        let (resolved, tally) = (HashTable::new(), Rc::clone(tally));
        let hasher = tally.hasher.clone();
        Self { resolved, hasher, versions: None, epoch: 0, hand: 0, tally }
    }

    pub(crate) fn hasher(&self) -> &RandomState {
        &self.hasher
    }

    /// Returns the number of subjects, outdated ones included.
    pub(crate) fn len(&self) -> usize {
        self.resolved.len()
    }

    /// Returns the number of places that the hand passes in this cache.
    pub(crate) fn places(&self) -> usize {
        self.resolved.num_buckets().max(1)
    }

    /// Returns the hash of a subject.
    #[inline]
    pub(crate) fn hash(&self, subject: &[u8]) -> u64 {
        self.hasher.hash_one(subject)
    }

    /// Returns the targets of a subject with this hash, if they are known.
    #[inline]
    pub(crate) fn get(&mut self, subject: &[u8], hash: u64) -> Option<Rc<Targets>> {
        debug_assert_eq!(hash, self.hash(subject), "all shards have one hash");
        let resolved = self.resolved.find_mut(hash, |resolved| *resolved.subject == *subject)?;
        resolved.is_used = true;
        let version = match &self.versions {
            Some(versions) => versions[usize::from(resolved.family)] + self.epoch,
            None => self.epoch,
        };
        (resolved.version == version).then(|| Rc::clone(&resolved.targets))
    }

    /// Returns the targets under a text with this hash after a change of them, if they are known
    /// and nobody has them.
    #[inline]
    pub(crate) fn get_changed(
        &mut self,
        text: &[u8],
        hash: u64,
        change: impl FnOnce(&mut Targets),
    ) -> Option<Rc<Targets>> {
        let resolved = self.resolved.find_mut(hash, |resolved| *resolved.subject == *text)?;
        let version = match &self.versions {
            Some(versions) => versions[usize::from(resolved.family)] + self.epoch,
            None => self.epoch,
        };
        if resolved.version != version {
            return None;
        }
        resolved.is_used = true;
        let before = resolved.charge(&self.tally);
        change(Rc::get_mut(&mut resolved.targets)?);
        let charged = self.tally.charged.get() - before;
        self.tally.charged.set(charged + resolved.charge(&self.tally));
        Some(Rc::clone(&resolved.targets))
    }

    /// Enters the targets that a subject with this hash resolves to.
    pub(crate) fn insert(&mut self, subject: &[u8], hash: u64, targets: Targets) -> Rc<Targets> {
        let nobody = &self.tally.nobody;
        let targets = if targets.is_empty() { Rc::clone(nobody) } else { Rc::new(targets) };
        let family = self.family(subject);
        let version = self.version(family);
        let resolved = Resolved {
            subject: subject.into(),
            targets: Rc::clone(&targets),
            version,
            family,
            is_used: false,
        };
        let mut charged = self.tally.charged.get() + resolved.charge(&self.tally);
        let hasher = &self.hasher;
        let entry = self.resolved.entry(
            hash,
            |other| *other.subject == *subject,
            |other| hasher.hash_one(&*other.subject),
        );
        match entry {
            Entry::Occupied(mut place) => {
                let old = std::mem::replace(place.get_mut(), resolved);
                charged -= old.charge(&self.tally);
            }
            Entry::Vacant(place) => {
                place.insert(resolved);
                self.tally.subjects.set(self.tally.subjects.get() + 1);
            }
        }
        self.tally.charged.set(charged);
        targets
    }

    /// Outdates the subjects that `filter` may match: its interest has changed.
    pub(crate) fn forget(&mut self, filter: &[u8]) {
        if self.resolved.is_empty() {
            return;
        }
        if is_literal(filter) {
            let hash = self.hasher.hash_one(filter);
            let found = self.resolved.find_entry(hash, |resolved| *resolved.subject == *filter);
            if let Ok(place) = found {
                let (resolved, _) = place.remove();
                self.discharge(&resolved);
            }
            return;
        }
        match first_token(filter) {
            b"*" | b">" => self.forget_all(),
            _ => {
                let family = usize::from(self.family(filter));
                let versions = self.versions.get_or_insert_with(|| Box::new([0; FAMILIES]));
                versions[family] += 1;
            }
        }
    }

    pub(crate) fn forget_all(&mut self) {
        self.epoch += 1;
    }

    fn family(&self, subject: &[u8]) -> u8 {
        let [family, ..] = self.hasher.hash_one(first_token(subject)).to_le_bytes();
        family
    }

    fn version(&self, family: u8) -> u64 {
        let of_family = self.versions.as_ref().map_or(0, |versions| versions[usize::from(family)]);
        of_family + self.epoch
    }

    fn discharge(&self, resolved: &Resolved) {
        let charged = self.tally.charged.get();
        self.tally.charged.set(charged - resolved.charge(&self.tally));
        self.tally.subjects.set(self.tally.subjects.get() - 1);
    }

    /// Passes one place with the hand; `false` at the end of the cache.
    fn pass(&mut self) -> bool {
        if let Ok(mut place) = self.resolved.get_bucket_entry(self.hand)
            && !std::mem::take(&mut place.get_mut().is_used)
        {
            let (resolved, _) = place.remove();
            self.discharge(&resolved);
        }
        self.hand += 1;
        if self.hand < self.resolved.num_buckets() && !self.resolved.is_empty() {
            return true;
        }
        self.hand = 0;
        self.shrink_if_sparse();
        false
    }

    fn shrink_if_sparse(&mut self) {
        let (len, hasher) = (self.resolved.len(), &self.hasher);
        if len == 0 {
            // Entries outdated by a version are gone with it.
            (self.resolved, self.versions) = (HashTable::new(), None);
        } else if self.resolved.num_buckets() > PLACES_KEPT.max(8 * len) {
            self.resolved.shrink_to(2 * len, |resolved| hasher.hash_one(&*resolved.subject));
        }
    }
}

/// The hand over all caches of a shard.
#[derive(Debug)]
pub(crate) struct Hand {
    tally: Rc<Tally>,
    /// Number of the account in whose cache the hand is.
    account: usize,
    /// Places that the hand passes in one move: the most that were needed in this round.
    pace: usize,
    charged_bytes_max: usize,
    /// Time of the next move; [`NEVER`] while all caches are empty.
    due: u64,
}

impl Hand {
    /// The hand of one of `shards` shards.
    pub(crate) fn new(tally: &Rc<Tally>, shards: usize) -> Self {
        let charged_bytes_max = CHARGED_BYTES_MAX / shards.max(1);
        Self { tally: Rc::clone(tally), account: 0, pace: 0, charged_bytes_max, due: NEVER }
    }

    /// Returns the number of subjects in all caches.
    pub(crate) fn subjects(&self) -> usize {
        self.tally.subjects.get()
    }

    /// Returns the time at which [`Hand::age`] is needed next.
    pub(crate) fn due(&self) -> Option<u64> {
        (self.due != NEVER).then_some(self.due)
    }

    /// Makes room, if the caches are over their bound.
    #[inline]
    pub(crate) fn bound(&mut self, accounts: &mut Accounts) {
        if self.tally.charged.get() > self.charged_bytes_max {
            self.make_room(accounts);
        }
    }

    #[cold]
    fn make_room(&mut self, accounts: &mut Accounts) {
        for _ in 0..STEPS_PER_SUBJECT {
            if self.tally.charged.get() <= self.charged_bytes_max {
                return;
            }
            self.pass(accounts);
        }
    }

    /// Moves the hand if it is time to.
    pub(crate) fn age(&mut self, accounts: &mut Accounts, now: u64) {
        if self.tally.subjects.get() == 0 {
            self.due = NEVER;
        } else if self.due == NEVER {
            self.due = now.saturating_add(MOVE_NS);
        } else if self.due <= now {
            self.due = now.saturating_add(MOVE_NS);
            self.pace = self.pace.max(accounts.cache_places() / MOVES_PER_ROUND + 1);
            // A round ends with its move: the next one may be much shorter.
            let mut steps = 0..self.pace;
            while steps.next().is_some() && self.pass(accounts) {}
        }
    }

    /// Passes one place; `false` if a round ends.
    fn pass(&mut self, accounts: &mut Accounts) -> bool {
        match accounts.cache_at(self.account).map(Cache::pass) {
            Some(true) => {}
            Some(false) => self.account += 1,
            None => {
                (self.account, self.pace) = (0, 0);
                return false;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use slab::Slab;

    use super::*;
    use crate::engine::AccountId;
    use crate::engine::ShardId;
    use crate::interest::reach::Via;
    use crate::interest::taps::Home;
    use crate::interest::{Remote, Wanted};

    const SECOND: u64 = 1_000_000_000;

    struct World {
        accounts: Accounts,
        hand: Hand,
    }

    impl World {
        fn new(charged_bytes_max: usize) -> Self {
            let tally = Rc::new(Tally::new(7));
            let hand = Hand { charged_bytes_max, ..Hand::new(&tally, 1) };
            Self { accounts: Accounts::new(7, tally, Home::default()), hand }
        }

        /// Whether the subject was in the cache; it is afterwards.
        fn knows(&mut self, account: u32, subject: &str) -> bool {
            let interest = &mut self.accounts.at(AccountId::new(account)).interest;
            let hits = interest.stats().cache_hits;
            interest.targets(subject.as_bytes(), &Slab::new(), |_| true);
            let was_known = interest.stats().cache_hits > hits;
            self.hand.bound(&mut self.accounts);
            was_known
        }

        fn wants_all(&mut self, account: u32) {
            let interest = &mut self.accounts.at(AccountId::new(account)).interest;
            let remote = Remote { shard: ShardId(1), via: Via::CLIENTS, members: 1 };
            interest.set_remote(remote, Wanted { filter: b">", queue: None });
        }

        fn charged(&self) -> usize {
            self.hand.tally.charged.get()
        }
    }

    #[test]
    fn all_accounts_together_stay_within_the_bound_and_what_is_used_stays() {
        let mut world = World::new(1024 * 1024);
        (0..20).for_each(|account| world.wants_all(account));
        let mut missed = 0;
        for round in 0..50_000 {
            world.knows(round % 19, &format!("flood.{round}"));
            missed += u32::from(round % 10 == 0 && !world.knows(19, "hot"));
            assert!(world.charged() < 1100 * 1024, "{} bytes", world.charged());
        }
        assert!(missed < 5, "{missed} times");
        assert!(world.hand.subjects() > 1000);
    }

    #[test]
    fn subjects_that_nobody_wants_take_a_small_part_of_the_bound() {
        let mut world = World::new(1024 * 1024);
        for number in 0..50_000 {
            world.knows(number % 3, &format!("nobody.wants.{number}"));
        }
        assert!((100..500).contains(&world.hand.subjects()), "{}", world.hand.subjects());
    }

    #[test]
    fn what_is_not_used_is_given_back_and_what_is_stays() {
        let mut world = World::new(usize::MAX);
        (0..5).for_each(|account| world.wants_all(account));
        for number in 0..10_000 {
            world.knows(number % 5, &format!("once.{number}"));
        }
        let mut now = 0;
        for _ in 0..400 {
            assert!(now == 0 || world.knows(2, "hot"));
            world.knows(2, "hot");
            world.hand.age(&mut world.accounts, now);
            now += SECOND / 10;
        }
        assert_eq!(world.hand.subjects(), 1);
        while let Some(due) = world.hand.due() {
            world.hand.age(&mut world.accounts, due);
        }
        assert_eq!((world.hand.subjects(), world.charged()), (0, 0));
        assert_eq!(world.accounts.cache_places(), 5, "and the tables with them");
    }
}
