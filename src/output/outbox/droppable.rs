//! Messages in an outbox that may still be dropped for later ones.
//!
//! Each message is a piece of its own. A dropped one leaves an empty piece in its place, so that
//! the numbers of the others stay; when most pieces are empty they are taken out all together.

use std::collections::{HashMap, VecDeque};

use ahash::RandomState;

use super::{Outbox, Piece, Spares};
use crate::output::{Dropped, OverflowKind, Policy};

/// Empty pieces from which on they are taken out.
const EMPTY_MIN: usize = 64;

/// Droppable messages of an outbox, by the number of the policy that allows it.
#[derive(Debug, Default)]
pub(super) struct Droppable {
    policies: Vec<(u16, PolicyQueue)>,
    /// Empty pieces in the outbox.
    empty: usize,
}

#[derive(Debug, Default)]
struct PolicyQueue {
    /// Messages, oldest first. Those that were sent meanwhile are forgotten late.
    marks: VecDeque<Mark>,
    /// Bytes of the messages in `marks`.
    bytes: usize,
    /// The piece of the last message by sid and subject, with `conflate`.
    latest: HashMap<Box<[u8]>, u64, RandomState>,
}

#[derive(Debug, Clone, Copy)]
struct Mark {
    /// The number of the piece.
    at: u64,
    /// The bytes of the message, and 0 when it was dropped.
    bytes: usize,
}

impl PolicyQueue {
    /// Forgets messages that were sent: the pieces before `taken`.
    fn forget_sent(&mut self, taken: u64) {
        while let Some(mark) = self.marks.front().filter(|mark| mark.at < taken) {
            self.bytes -= mark.bytes;
            self.marks.pop_front();
        }
        if self.latest.len() > 2 * self.marks.len() + EMPTY_MIN {
            self.latest.retain(|_, at| *at >= taken);
        }
    }

    /// Forgets the oldest message, and returns the number of its piece.
    fn pop_oldest(&mut self) -> Option<u64> {
        while let Some(mark) = self.marks.pop_front() {
            self.bytes -= mark.bytes;
            if mark.bytes > 0 {
                return Some(mark.at);
            }
        }
        None
    }

    /// Forgets the last message of `key`, and returns the number of its piece.
    fn pop_latest(&mut self, key: &[u8]) -> Option<u64> {
        let at = *self.latest.get(key)?;
        let place = self.marks.binary_search_by_key(&at, |mark| mark.at).ok()?;
        let bytes = std::mem::take(&mut self.marks[place].bytes);
        self.bytes -= bytes;
        (bytes > 0).then_some(at)
    }
}

impl Droppable {
    /// Counts an empty piece that was taken out.
    pub(super) fn on_empty_taken(&mut self) {
        self.empty = self.empty.saturating_sub(1);
    }
}

impl Outbox {
    /// Appends a whole message as far as `policy` allows, and drops others for it as the policy
    /// says. `key` is its sid and subject. Returns `false` if the message itself was dropped.
    pub(crate) fn push_loose(
        &mut self,
        spares: &mut Spares,
        policy: &Policy,
        key: &[u8],
        message: &[u8],
        dropped: &mut Dropped,
    ) -> bool {
        let len = message.len();
        // A message with no output before it is always taken, and little output is not kept apart.
        if self.pending_bytes == 0 || self.queued_bytes() + len <= policy.bytes_max / 2 {
            self.push(spares, |out| out.extend_from_slice(message));
            return true;
        }
        if policy.kind == OverflowKind::DropNewest {
            let fits = self.queued_bytes() + len <= policy.bytes_max;
            if fits {
                self.push(spares, |out| out.extend_from_slice(message));
            } else {
                dropped.newest += 1;
            }
            return fits;
        }
        let mut loose = self.droppable.take().unwrap_or_default();
        let queue = loose.queue(policy.number);
        queue.forget_sent(self.taken);
        let mut gone = 0;
        if policy.kind == OverflowKind::Conflate
            && let Some(at) = queue.pop_latest(key)
        {
            self.empty_piece(at, spares);
            dropped.conflated += 1;
            gone += 1;
        }
        let fits = self.queued_bytes() - queue.bytes + len <= policy.bytes_max;
        while fits
            && self.queued_bytes() + len > policy.bytes_max
            && let Some(at) = queue.pop_oldest()
        {
            self.empty_piece(at, spares);
            dropped.oldest += 1;
            gone += 1;
        }
        if fits {
            self.seal();
            let at = self.taken + self.sealed.len() as u64;
            self.sealed.push_back(Piece::Own(message.to_vec()));
            self.pending_bytes += len;
            spares.added_bytes += len;
            queue.marks.push_back(Mark { at, bytes: len });
            queue.bytes += len;
            if policy.kind == OverflowKind::Conflate {
                queue.latest.insert(key.into(), at);
            }
        } else {
            dropped.newest += 1;
        }
        loose.empty += gone;
        if loose.empty > EMPTY_MIN && loose.empty * 2 > self.sealed.len() {
            self.take_out_empty(&mut loose);
        }
        self.droppable = Some(loose);
        fits
    }

    /// Makes all queued messages undroppable.
    pub(crate) fn keep_all(&mut self) {
        self.droppable = None;
    }

    fn empty_piece(&mut self, at: u64, spares: &mut Spares) {
        let place = usize::try_from(at - self.taken).unwrap_or(usize::MAX);
        let Some(piece) = self.sealed.get_mut(place) else { return };
        let piece = std::mem::replace(piece, Piece::Own(Vec::new()));
        let len = piece.bytes().len();
        self.pending_bytes -= len;
        spares.freed_bytes += len;
    }

    /// Takes out the empty pieces, and numbers the others anew.
    fn take_out_empty(&mut self, loose: &mut Droppable) {
        let mut empty_before = Vec::with_capacity(self.sealed.len() + 1);
        let mut empty = 0;
        for piece in self.sealed.iter() {
            empty_before.push(empty);
            empty += u64::from(piece.bytes().is_empty());
        }
        empty_before.push(empty);
        let taken = self.taken;
        let renumbered = |at: u64| match usize::try_from(at - taken) {
            Ok(place) => at - empty_before[place.min(empty_before.len() - 1)],
            Err(_) => at,
        };
        self.holds.iter_mut().for_each(|hold| hold.at = renumbered(hold.at));
        for (_, queue) in &mut loose.policies {
            queue.forget_sent(taken);
            queue.marks.retain(|mark| mark.bytes > 0);
            queue.marks.iter_mut().for_each(|mark| mark.at = renumbered(mark.at));
            let marks = &queue.marks;
            queue.latest.retain(|_, at| {
                let is_there = *at >= taken;
                if is_there {
                    *at = renumbered(*at);
                }
                is_there && marks.binary_search_by_key(at, |mark| mark.at).is_ok()
            });
        }
        self.sealed.retain(|piece| !piece.bytes().is_empty());
        loose.empty = 0;
    }
}

impl Droppable {
    fn queue(&mut self, policy: u16) -> &mut PolicyQueue {
        let known = self.policies.iter().position(|(number, _)| *number == policy);
        let at = known.unwrap_or_else(|| {
            self.policies.push((policy, PolicyQueue::default()));
            self.policies.len() - 1
        });
        &mut self.policies[at].1
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A change of an outbox.
    #[derive(Debug, Clone, Copy)]
    enum Step {
        /// A message with a policy, a subject and a size.
        Message(usize, u8, usize),
        /// Output that must not be lost, with its size.
        Fixed(usize),
        Hold,
        Release,
        /// A batch of about this many bytes is taken, and sent at once or later.
        Take(usize, bool),
        Sent,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            12 => (0..3_usize, 0..6_u8, 1..40_usize).prop_map(|(p, s, n)| Step::Message(p, s, n)),
            2 => (1..40_usize).prop_map(Step::Fixed),
            1 => Just(Step::Hold),
            1 => Just(Step::Release),
            1 => (1..200_usize, any::<bool>()).prop_map(|(n, now)| Step::Take(n, now)),
            1 => Just(Step::Sent),
        ]
    }

    /// A text; a droppable one with its policy and key.
    type Entry = (Vec<u8>, Option<(u16, u8)>);

    /// An outbox as a plain list of texts.
    #[derive(Debug, Default)]
    struct Model {
        queued: Vec<Entry>,
        in_flight: usize,
        dropped: Dropped,
    }

    impl Model {
        fn queued(&self) -> usize {
            self.queued.iter().map(|(text, _)| text.len()).sum()
        }

        fn pending(&self) -> usize {
            self.in_flight + self.queued()
        }

        fn message(&mut self, policy: &Policy, key: u8, text: Vec<u8>) {
            let max = policy.bytes_max;
            let of_policy =
                |entry: &Entry| entry.1.is_some_and(|(number, _)| number == policy.number);
            if self.pending() == 0 || self.queued() + text.len() <= max / 2 {
                return self.queued.push((text, None));
            }
            if policy.kind == OverflowKind::Conflate {
                let same = |entry: &(_, _)| entry.1 == Some((policy.number, key));
                if let Some(at) = self.queued.iter().position(same) {
                    self.queued.remove(at);
                    self.dropped.conflated += 1;
                }
            }
            let loose: usize =
                self.queued.iter().filter(|e| of_policy(e)).map(|(text, _)| text.len()).sum();
            if self.queued() - loose + text.len() > max {
                self.dropped.newest += 1;
                return;
            }
            while self.queued() + text.len() > max {
                let oldest = self.queued.iter().position(of_policy);
                self.queued.remove(oldest.expect("they are what is too much"));
                self.dropped.oldest += 1;
            }
            let mark = (policy.kind != OverflowKind::DropNewest).then_some((policy.number, key));
            self.queued.push((text, mark));
        }

        /// Takes the first pieces, of `bytes` in all; returns their bytes.
        fn take(&mut self, bytes: usize) -> Vec<u8> {
            let mut all = Vec::new();
            while all.len() < bytes {
                all.extend(self.queued.remove(0).0);
            }
            assert_eq!(all.len(), bytes, "messages are sent as wholes");
            self.in_flight += bytes;
            all
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

        #[test]
        fn what_is_dropped_and_what_is_kept_is_what_the_policies_say(
            steps in prop::collection::vec(step(), 1..400),
        ) {
            let policy = |number, kind, bytes_max| Policy { number, kind, bytes_max };
            let policies = [
                policy(0, OverflowKind::DropNewest, 300),
                policy(1, OverflowKind::DropOldest, 400),
                policy(2, OverflowKind::Conflate, 350),
            ];
            let (mut outbox, mut spares) = (Outbox::default(), Spares::default());
            let (mut model, mut dropped) = (Model::default(), Dropped::default());
            let (mut epoch, mut number) = (0, 0);
            let mut batch = None;
            for step in steps {
                number += 1;
                match step {
                    Step::Message(which, key, len) => {
                        let text = format!("{number}:{}", "x".repeat(len)).into_bytes();
                        let policy = &policies[which];
                        let key_text = [key];
                        outbox.push_loose(&mut spares, policy, &key_text, &text, &mut dropped);
                        model.message(policy, key, text);
                    }
                    Step::Fixed(len) => {
                        let text = format!("{number}:{}", "y".repeat(len)).into_bytes();
                        outbox.push(&mut spares, |out| out.extend_from_slice(&text));
                        model.queued.push((text, None));
                    }
                    Step::Hold => {
                        epoch += 1;
                        outbox.hold(epoch);
                    }
                    Step::Release => {
                        outbox.release(epoch);
                    }
                    Step::Take(bytes, now) => {
                        if let Some(taken) = outbox.take_up_to(bytes, &mut spares) {
                            let got: Vec<u8> =
                                taken.iter().flat_map(|p| p.bytes().to_vec()).collect();
                            prop_assert!(!got.is_empty());
                            prop_assert!(taken.iter().all(|piece| !piece.bytes().is_empty()));
                            prop_assert_eq!(&got, &model.take(got.len()));
                            batch = Some((taken, got.len()));
                        }
                        if now && let Some((taken, bytes)) = batch.take() {
                            send(&mut outbox, &mut spares, &mut model, taken, bytes);
                        }
                    }
                    Step::Sent => {
                        if let Some((taken, bytes)) = batch.take() {
                            send(&mut outbox, &mut spares, &mut model, taken, bytes);
                        }
                    }
                }
                prop_assert_eq!(outbox.pending_bytes(), model.pending());
                prop_assert_eq!(spares.held_bytes(), model.pending());
                prop_assert_eq!(dropped, model.dropped);
                prop_assert!(outbox.sealed.len() <= 4 * EMPTY_MIN + 2 * model.queued.len());
            }
            outbox.release(epoch);
            if let Some((taken, bytes)) = batch.take() {
                send(&mut outbox, &mut spares, &mut model, taken, bytes);
            }
            while let Some(taken) = outbox.take(&mut spares) {
                let got: Vec<u8> = taken.iter().flat_map(|p| p.bytes().to_vec()).collect();
                prop_assert_eq!(&got, &model.take(got.len()));
                send(&mut outbox, &mut spares, &mut model, taken, got.len());
            }
            prop_assert!(outbox.is_empty() && model.queued.is_empty());
        }
    }

    fn send(
        outbox: &mut Outbox,
        spares: &mut Spares,
        model: &mut Model,
        taken: Vec<Piece>,
        bytes: usize,
    ) {
        spares.keep_batch(taken);
        outbox.on_sent(bytes);
        outbox.on_done();
        model.in_flight -= bytes;
    }

    #[test]
    fn one_subject_that_changes_for_ever_needs_no_more_room() {
        let policy = Policy { number: 0, kind: OverflowKind::Conflate, bytes_max: 1000 };
        let (mut outbox, mut spares) = (Outbox::default(), Spares::default());
        let mut dropped = Dropped::default();
        for number in 0..100_000_u64 {
            let text = format!("{number:>40}");
            outbox.push_loose(&mut spares, &policy, b"a", text.as_bytes(), &mut dropped);
            assert!(outbox.sealed.len() <= 4 * EMPTY_MIN);
        }
        // Up to half of the room nothing is dropped; behind that there is the last one.
        assert_eq!(outbox.pending_bytes(), 12 * 40 + 40);
        assert_eq!(dropped.conflated, 100_000 - 13);
        let batch = outbox.take(&mut spares).unwrap();
        let text: Vec<u8> = batch.iter().flat_map(|piece| piece.bytes().to_vec()).collect();
        assert!(text.ends_with(b" 99999"));
    }
}
