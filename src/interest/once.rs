//! Receivers of subjects that are used once, as the replies of most requests are.
//!
//! A requester has a subscription with a wildcard, and gives each request a reply subject of its
//! own: kept one by one they would fill the cache and never be found there again. But where filters
//! go on with wildcards alone, the last token of a subject does not matter: what all subjects with
//! the tokens before it have in common is cached once, under these tokens and a blank, which no
//! subject has. It comes and goes with the cache's other entries.

use std::rc::Rc;

use memchr::memrchr;
use slab::Slab;
use smallvec::SmallVec;

use crate::interest::Interest;
use crate::interest::outlets::ANSWER_PREFIX;
use crate::interest::subscription::Sub;
use crate::interest::targets::Targets;

/// Returns a subject up to the dot before its last token; `None` if it has one token, or an empty
/// last one.
pub(crate) fn beginning(subject: &[u8]) -> Option<&[u8]> {
    let (beginning, last) = subject.split_at(memrchr(b'.', subject)? + 1);
    (!last.is_empty()).then_some(beginning)
}

/// The receivers of a subject that is used once.
#[derive(Debug)]
pub(crate) struct ReplyTargets {
    pub(crate) targets: Rc<Targets>,
    /// Whether they are those of all subjects with the same [`beginning`], but for those of which
    /// [`Interest::is_exact`].
    pub(crate) are_common: bool,
}

impl Interest {
    /// Whether somebody is interested in this very subject, named without wildcards.
    pub(crate) fn is_exact(&self, subject: &[u8]) -> bool {
        self.table.has_literal(subject)
            || self.taps.has_literal(subject)
            || self.inside.has_literal(subject)
    }

    /// Returns as [`Self::targets_of`] for a subject that is not expected again: if it has no place
    /// in the cache yet, and can do without, it takes none.
    pub(crate) fn targets_once(
        &mut self,
        subject: &[u8],
        hash: u64,
        subs: &Slab<Sub>,
        takes_headers: impl Fn(u32) -> bool,
    ) -> (ReplyTargets, u64) {
        if let Some(targets) = self.cache.get(subject, hash) {
            self.stats.lookups += 1;
            self.stats.cache_hits += 1;
            return (ReplyTargets { targets, are_common: false }, 0);
        }
        let key = beginning(subject).filter(|_| !self.is_exact(subject)).map(|beginning| {
            let mut key = SmallVec::<[u8; 96]>::from_slice(beginning);
            key.push(b' ');
            key
        });
        let Some(key) = key else {
            let (targets, work) = self.targets_of(subject, hash, subs, takes_headers);
            return (ReplyTargets { targets, are_common: false }, work);
        };
        let key_hash = self.cache.hash(&key);
        if let Some(targets) =
            self.cache.get_changed(&key, key_hash, |targets| targets.rename(subject, hash))
        {
            self.stats.lookups += 1;
            self.stats.cache_hits += 1;
            return (ReplyTargets { targets, are_common: true }, 0);
        }
        if !self.ends_anyhow(subject) {
            let (targets, work) = self.targets_of(subject, hash, subs, takes_headers);
            return (ReplyTargets { targets, are_common: false }, work);
        }
        self.stats.lookups += 1;
        let (targets, work) = self.resolve_counted(subject, hash, subs, takes_headers);
        (
            ReplyTargets { targets: self.cache.insert(&key, key_hash, targets), are_common: true },
            work,
        )
    }

    /// Whether all subjects that differ from this one in the last token alone have the same
    /// receivers, but for those of which [`Self::is_exact`].
    fn ends_anyhow(&self, subject: &[u8]) -> bool {
        // Exits and overflow policies look at whole subjects, and so do answers of services.
        let mut has_outlets = false;
        self.inside.for_each_match(subject, |inside| has_outlets |= !inside.outlets.is_empty());
        !has_outlets
            && self.overflow.is_none()
            && !subject.starts_with(ANSWER_PREFIX)
            && self.table.ignores_last_token(subject)
            && self.inside.ignores_last_token(subject)
            && self.taps.ignores_last_token(subject)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::interest::cache::Tally;
    use crate::interest::count;
    use crate::interest::taps::TapId;

    const FILTERS: [&str; 12] = [
        "a.b", "a.*", "a.>", "*.b", ">", "b.>", "b.*.c", "_IN.1.*", "a.b.*", "_IN.1.x", "_IN.>",
        "b.x.c",
    ];
    const SUBJECTS: [&str; 10] =
        ["a", "a.b", "a.c", "b.b", "b.x.c", "_IN.1.z", "_IN.1.x", "a.b.c", "a.b.d", "_R_.b.c"];

    /// Returns the part of targets that a publisher or receiver can notice.
    fn reached(targets: &Targets) -> (Vec<u32>, Vec<Vec<u8>>, String, u64) {
        let members = targets.groups.iter().flat_map(|group| &group.members);
        let mut subs: Vec<u32> = members.map(|member| member.sub).collect();
        subs.sort_unstable();
        let prefixes = targets.groups.iter().map(|group| group.prefix.of(true).to_vec());
        let mut prefixes: Vec<_> = prefixes.collect();
        prefixes.sort_unstable();
        let mut taps = targets.taps.to_vec();
        taps.sort_unstable_by_key(|tap| format!("{tap:?}"));
        // Without receivers the hash is of no use.
        let hash = if targets.is_empty() { 0 } else { targets.subject_hash };
        (subs, prefixes, format!("{taps:?}"), hash)
    }

    proptest! {
        #[test]
        fn what_subjects_have_in_common_is_what_each_of_them_has(
            changes in prop::collection::vec((0..FILTERS.len(), 0..4u8, 0..SUBJECTS.len()), 1..80),
        ) {
            let (mut interest, mut subs) = (Interest::new(7, &Rc::new(Tally::new(7))), Slab::new());
            let (mut keys, mut taps) = (Vec::new(), Vec::new());
            for (filter, change, ask) in changes {
                let text = FILTERS[filter].as_bytes();
                match change {
                    0 => {
                        let sid = format!("{filter}");
                        let key = count(subs.insert(Sub::new(0, text, None, sid.as_bytes())));
                        interest.add(key, &mut subs);
                        keys.push(key);
                    }
                    1 if !keys.is_empty() => {
                        let key = keys.swap_remove(filter % keys.len());
                        interest.remove(key, &mut subs);
                    }
                    2 => {
                        let tap = TapId(count(taps.len()));
                        interest.add_tap(text, tap);
                        taps.push((text, tap));
                    }
                    3 if !taps.is_empty() => {
                        let (text, tap) = taps.swap_remove(filter % taps.len());
                        interest.remove_tap(text, tap);
                    }
                    _ => {}
                }
                let subject = SUBJECTS[ask].as_bytes();
                let hash = interest.cache().hash(subject);
                let (once, _) = interest.targets_once(subject, hash, &subs, |_| true);
                let known = reached(&once.targets);
                drop(once);
                let (targets, _) = interest.resolve_counted(subject, hash, &subs, |_| true);
                prop_assert_eq!(known, reached(&targets), "{}", SUBJECTS[ask]);
            }
        }
    }

    #[test]
    fn replies_of_one_requester_take_one_place() {
        let (mut interest, mut subs) = (Interest::new(7, &Rc::new(Tally::new(7))), Slab::new());
        let key = count(subs.insert(Sub::new(0, b"_INBOX.me.*", None, b"1")));
        interest.add(key, &mut subs);
        for number in 0..2000 {
            let reply = format!("_INBOX.me.{number}");
            let hash = interest.cache().hash(reply.as_bytes());
            let (once, _) = interest.targets_once(reply.as_bytes(), hash, &subs, |_| true);
            assert!(once.are_common);
            assert_eq!(
                once.targets.groups[0].prefix.of(false),
                format!("MSG {reply} 1 ").as_bytes()
            );
        }
        assert_eq!(interest.cached_subjects(), 1);
        interest.remove(key, &mut subs);
        let hash = interest.cache().hash(b"_INBOX.me.1");
        assert!(interest.targets_once(b"_INBOX.me.1", hash, &subs, |_| true).0.targets.is_empty());
    }

    #[test]
    fn targets_in_use_are_left_alone() {
        let (mut interest, mut subs) = (Interest::new(7, &Rc::new(Tally::new(7))), Slab::new());
        let key = count(subs.insert(Sub::new(0, b"r.*", None, b"1")));
        interest.add(key, &mut subs);
        let hash = interest.cache().hash(b"r.1");
        let (one, _) = interest.targets_once(b"r.1", hash, &subs, |_| true);
        let hash = interest.cache().hash(b"r.2");
        let (two, _) = interest.targets_once(b"r.2", hash, &subs, |_| true);
        assert_eq!(one.targets.groups[0].prefix.of(false), b"MSG r.1 1 ");
        assert_eq!(two.targets.groups[0].prefix.of(false), b"MSG r.2 1 ");
    }
}
