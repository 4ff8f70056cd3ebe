//! Replaced messages: readers still find them until the commit of the newer ones ends. Otherwise a
//! key whose value is being changed would have none for a moment.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::rc::Rc;

use crate::store::tail::RecordPlace;
use crate::subject::matches;

/// Messages that are no more in the index, and are shown until a commit ends.
#[derive(Debug, Default)]
pub(super) struct Replaced {
    by_sequence: BTreeMap<u64, ReplacedMessage>,
    /// Subjects and sequences of all of them, in order.
    by_subject: BTreeSet<(Rc<[u8]>, u64)>,
}

#[derive(Debug)]
struct ReplacedMessage {
    /// The commit that has the newer message.
    commit: u64,
    place: RecordPlace,
    subject: Rc<[u8]>,
}

impl Replaced {
    pub(super) fn insert(
        &mut self,
        sequence: u64,
        subject: Rc<[u8]>,
        place: RecordPlace,
        commit: u64,
    ) {
        self.by_subject.insert((Rc::clone(&subject), sequence));
        self.by_sequence.insert(sequence, ReplacedMessage { commit, place, subject });
    }

    pub(super) fn place(&self, sequence: u64) -> Option<RecordPlace> {
        self.by_sequence.get(&sequence).map(|message| message.place)
    }

    /// The last message of a subject, up to a sequence.
    pub(super) fn last_of(&self, subject: &[u8], up_to: u64) -> Option<u64> {
        if self.by_sequence.is_empty() {
            return None;
        }
        let end = (Rc::from(subject), up_to);
        let (found, sequence) = self.by_subject.range(..=end).next_back()?;
        (**found == *subject).then_some(*sequence)
    }

    /// The last messages, up to a sequence, of the subjects that a filter matches.
    pub(super) fn last_of_subjects(&self, filter: &[u8], up_to: u64) -> Vec<(Rc<[u8]>, u64)> {
        let mut found = Vec::new();
        let mut from = Bound::Unbounded;
        while let Some((subject, _)) = self.by_subject.range((from, Bound::Unbounded)).next() {
            if matches(filter, subject)
                && let Some(last) = self.last_of(subject, up_to)
            {
                found.push((Rc::clone(subject), last));
            }
            from = Bound::Excluded((Rc::clone(subject), u64::MAX));
        }
        found
    }

    /// The first message between two sequences with a subject that a filter matches.
    pub(super) fn next(&self, filter: &[u8], from: u64, up_to: u64) -> Option<u64> {
        if from > up_to {
            return None;
        }
        let mut messages = self.by_sequence.range(from..=up_to);
        messages.find(|(_, message)| matches(filter, &message.subject)).map(|(at, _)| *at)
    }

    /// Takes the end of all commits up to this one.
    pub(super) fn commit(&mut self, number: u64) {
        if !self.by_sequence.is_empty() {
            self.retain(|_, message| message.commit > number);
        }
    }

    /// Forgets the messages before a sequence.
    pub(super) fn forget_before(&mut self, before: u64) {
        if !self.by_sequence.is_empty() {
            self.retain(|sequence, _| sequence >= before);
        }
    }

    fn retain(&mut self, mut is_kept: impl FnMut(u64, &ReplacedMessage) -> bool) {
        let Self { by_sequence, by_subject } = self;
        by_sequence.retain(|sequence, message| {
            let keeps = is_kept(*sequence, message);
            if !keeps {
                by_subject.remove(&(Rc::clone(&message.subject), *sequence));
            }
            keeps
        });
    }
}
