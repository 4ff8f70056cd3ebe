//! The output of a connection, as a queue of pieces.
//!
//! Small output is copied behind one another into bytes of the connection's own; large runs are
//! references to segments that many outboxes hold. At most one batch of pieces is with the reactor
//! at a time; later output makes the next one.

mod droppable;
mod pieces;

use std::collections::VecDeque;
use std::ops::Range;

use super::{Piece, Segment};
use droppable::Droppable;
use pieces::Pieces;

/// Own bytes after which they are sealed into a piece.
const OWN_BYTES_MAX: usize = 64 * 1024;
/// Own bytes from which on they are sealed rather than moved to a larger buffer. Connections that
/// stall together would all move theirs at the same message, and delay every other connection.
const OWN_MOVED_BYTES_MAX: usize = 6 * 1024;
/// Bytes of room for one write: more than is usually written at a time.
const OWN_ROOM_BYTES: usize = 2 * 1024;
/// Bytes at which a batch ends: enough for full efficiency of a send, little enough for progress to
/// be seen.
const BATCH_BYTES_MAX: usize = 1024 * 1024;
/// Pieces at which a batch ends, well below IOV_MAX.
const BATCH_PIECES_MAX: usize = 256;

/// Memory of output that was sent: own buffers and segments, to be filled again.
#[derive(Debug, Default)]
pub(crate) struct Spares {
    buffers: Vec<Vec<u8>>,
    /// Capacity of all `buffers`.
    buffers_bytes: usize,
    segments: Vec<Segment>,
    /// Capacity of all `segments`.
    segments_bytes: usize,
    batches: Vec<Vec<Piece>>,
    /// Bytes of output that were ever queued.
    added_bytes: usize,
    /// Bytes of queued output that are sent or dropped.
    freed_bytes: usize,
    /// Value of `added_bytes` at the last `take_added_bytes`.
    counted_bytes: usize,
}

/// Bytes up to which own buffers are kept for reuse, and as many of segments.
const SPARES_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Bytes of the largest buffer that is kept for reuse.
const SPARE_BYTES_MAX: usize = 1024 * 1024;
/// Lists of pieces that are kept for reuse at most.
const SPARE_BATCHES_MAX: usize = 4096;

impl Spares {
    /// Frees all memory that is kept for reuse.
    pub(crate) fn shrink(&mut self) {
        let Self { added_bytes, freed_bytes, counted_bytes, .. } = *self;
        *self = Self { added_bytes, freed_bytes, counted_bytes, ..Self::default() };
    }

    /// Returns an empty buffer for own bytes.
    pub(crate) fn buffer(&mut self) -> Vec<u8> {
        let buffer = self.buffers.pop().unwrap_or_default();
        self.buffers_bytes -= buffer.capacity();
        buffer
    }

    /// Returns the bytes of output that are queued or in flight; a segment counts once.
    pub(crate) fn held_bytes(&self) -> usize {
        self.added_bytes - self.freed_bytes
    }

    /// Returns the bytes of output queued since the last call.
    pub(crate) fn take_added_bytes(&mut self) -> usize {
        self.added_bytes - std::mem::replace(&mut self.counted_bytes, self.added_bytes)
    }

    /// Returns an empty buffer of at least this capacity, without copying bytes for it.
    fn buffer_of(&mut self, bytes: usize) -> Vec<u8> {
        let buffer = self.buffer();
        if buffer.capacity() >= bytes { buffer } else { Vec::with_capacity(bytes) }
    }

    /// Returns a piece for one connection alone, filled by `fill`.
    pub(crate) fn own_piece(&mut self, fill: impl FnOnce(&mut Vec<u8>)) -> Piece {
        let mut buffer = self.buffer();
        fill(&mut buffer);
        self.added_bytes += buffer.len();
        Piece::Own(buffer)
    }

    /// Returns the bytes of memory that wait to be filled again.
    #[cfg(test)]
    pub(crate) fn kept_bytes(&self) -> usize {
        self.buffers_bytes + self.segments_bytes
    }

    fn keep_buffer(&mut self, mut buffer: Vec<u8>) {
        self.freed_bytes += buffer.len();
        let bytes = buffer.capacity();
        if self.buffers_bytes < SPARES_BYTES_MAX && (1..=SPARE_BYTES_MAX).contains(&bytes) {
            buffer.clear();
            self.buffers_bytes += bytes;
            self.buffers.push(buffer);
        }
    }

    /// Returns a segment filled by `fill`, in reused memory if there is some.
    pub(crate) fn segment(&mut self, fill: impl FnOnce(&mut Vec<u8>)) -> Segment {
        let mut segment = self.segments.pop().unwrap_or_default();
        match Segment::get_mut(&mut segment) {
            Some(bytes) => {
                self.segments_bytes -= bytes.capacity();
                bytes.clear();
                fill(bytes);
                self.added_bytes += bytes.len();
            }
            None => unreachable!("a spare segment has no other holder"),
        }
        segment
    }

    /// Returns an empty list for the pieces of one batch.
    fn batch(&mut self) -> Vec<Piece> {
        self.batches.pop().unwrap_or_default()
    }

    /// Takes a batch back that the reactor has sent or given up, and keeps its memory for
    /// reuse.
    pub(crate) fn keep_batch(&mut self, mut batch: Vec<Piece>) {
        for piece in batch.drain(..) {
            self.keep_piece(piece);
        }
        if self.batches.len() < SPARE_BATCHES_MAX && batch.capacity() > 0 {
            self.batches.push(batch);
        }
    }

    fn keep_piece(&mut self, piece: Piece) {
        match piece {
            Piece::Own(buffer) => self.keep_buffer(buffer),
            Piece::Shared { segment, .. } => self.keep_segment(segment),
        }
    }

    /// Drops one hold of a segment; with the last hold its memory is kept for reuse.
    pub(crate) fn keep_segment(&mut self, mut segment: Segment) {
        if let Some(bytes) = Segment::get_mut(&mut segment) {
            self.freed_bytes += bytes.len();
            let capacity = bytes.capacity();
            if self.segments_bytes < SPARES_BYTES_MAX && capacity <= SPARE_BYTES_MAX {
                self.segments_bytes += capacity;
                self.segments.push(segment);
            }
        }
    }
}

/// Bytes of an outbox in a batch in flight whose bytes on the wire are more or fewer.
#[derive(Debug, Default)]
pub(crate) struct InFlight(usize);

impl InFlight {
    /// Begins to count a batch that stands for `bytes` bytes of the outbox.
    pub(crate) fn set(&mut self, bytes: usize) {
        self.0 = bytes;
    }

    /// Converts bytes that the kernel took into bytes of the outbox; all of them when
    /// `complete`.
    pub(crate) fn on_sent(&mut self, bytes: usize, complete: bool) -> usize {
        let sent = if complete { self.0 } else { bytes.min(self.0) };
        self.0 -= sent;
        sent
    }
}

/// The output of one connection.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    sealed: Pieces,
    /// Own bytes behind `sealed`, still growing.
    own: Vec<u8>,
    /// Bytes not yet taken by the kernel, those of the batch in flight included.
    pending_bytes: usize,
    in_flight: bool,
    /// Pending bytes in the batch in flight.
    in_flight_bytes: usize,
    /// Pieces ever handed to the reactor; with `sealed` it numbers them.
    taken: u64,
    /// Holds in the order of the pieces that they hold back.
    holds: VecDeque<Hold>,
    /// Requests of this connection so far: each may get a status here.
    requests: u64,
    /// Requests for which it is not decided whether a status follows.
    undecided: u32,
    /// Messages that may still be dropped, if there have been any.
    droppable: Option<Box<Droppable>>,
}

/// A wait of the pieces from `at` on, until the other shards have settled `epoch`.
#[derive(Debug)]
struct Hold {
    at: u64,
    /// The epoch, and 0 once it is settled.
    epoch: u64,
    /// Requests before the hold.
    requests: u64,
    /// Statuses of the requests before the hold, which are sent first.
    statuses: Vec<u8>,
}

/// The epoch of a hold before [`Outbox::close_hold`].
const OPEN: u64 = u64::MAX;

impl Hold {
    fn is_fulfilled(&self) -> bool {
        self.epoch == 0
    }
}

impl Outbox {
    /// Returns the bytes not yet taken by the kernel; a shared segment counts in full.
    pub(crate) fn pending_bytes(&self) -> usize {
        self.pending_bytes
    }

    /// Returns the bytes behind the batch in flight.
    pub(crate) fn queued_bytes(&self) -> usize {
        self.pending_bytes - self.in_flight_bytes
    }

    /// Whether nothing is queued, nothing in flight, and no status may follow.
    pub(crate) fn is_empty(&self) -> bool {
        self.ends_with(0)
    }

    /// Whether the `bytes` bytes that are taken but not sent are the last ones of the outbox.
    pub(crate) fn ends_with(&self, bytes: usize) -> bool {
        self.pending_bytes == bytes && self.undecided == 0
    }

    /// Whether a status may still follow for some request.
    pub(crate) fn may_have_statuses(&self) -> bool {
        self.undecided > 0
    }

    /// Whether output is queued behind the batch in flight.
    pub(crate) fn has_more(&self) -> bool {
        !self.sealed.is_empty() || !self.own.is_empty()
    }

    pub(crate) fn is_in_flight(&self) -> bool {
        self.in_flight
    }

    pub(crate) fn is_held(&self) -> bool {
        self.holds.iter().any(|hold| !hold.is_fulfilled())
    }

    /// Appends the output of `write`; returns its length in bytes.
    pub(crate) fn push(&mut self, spares: &mut Spares, write: impl FnOnce(&mut Vec<u8>)) -> usize {
        if self.own.capacity() == 0 {
            self.own = spares.buffer();
        } else if self.own.len() >= OWN_MOVED_BYTES_MAX
            && (self.own.capacity() - self.own.len() < OWN_ROOM_BYTES
                || self.own.len() >= OWN_BYTES_MAX)
        {
            let next = (self.own.capacity() * 2).min(OWN_BYTES_MAX + OWN_ROOM_BYTES);
            self.seal();
            self.own = spares.buffer_of(next);
        }
        let before = self.own.len();
        write(&mut self.own);
        let written = self.own.len() - before;
        self.pending_bytes += written;
        spares.added_bytes += written;
        written
    }

    /// Appends a part of a segment without copying it.
    pub(crate) fn push_shared(&mut self, segment: &Segment, range: Range<usize>) {
        debug_assert!(!range.is_empty(), "an empty piece would never complete");
        self.seal();
        self.pending_bytes += range.len();
        self.sealed.push_back(Piece::Shared { segment: Segment::clone(segment), range });
    }

    /// Holds back all later output until `epoch` is settled.
    pub(crate) fn hold(&mut self, epoch: u64) {
        let requests = self.holds.back().map_or(0, |last| last.requests);
        self.hold_behind(epoch, requests);
    }

    /// Holds back all later output until `epoch` is settled and the statuses of all requests so
    /// far are queued.
    pub(crate) fn hold_behind_statuses(&mut self, epoch: u64) {
        self.hold_behind(epoch, self.requests);
    }

    fn hold_behind(&mut self, epoch: u64, requests: u64) {
        // Output behind the last hold waits for that one anyway.
        if self.holds.back().is_some_and(|l| l.epoch >= epoch && l.requests == requests) {
            return;
        }
        self.seal();
        let at = self.taken + self.sealed.len() as u64;
        self.holds.push_back(Hold { at, epoch, requests, statuses: Vec::new() });
    }

    /// Holds back all later output until [`Outbox::close_hold`] names the epoch to wait for, at
    /// most `now`, the current one.
    pub(crate) fn open_hold(&mut self, now: u64) {
        if self.holds.back().is_some_and(|last| last.epoch >= now) {
            return;
        }
        let requests = self.holds.back().map_or(0, |last| last.requests);
        self.hold_behind(OPEN, requests);
    }

    /// Lets the output since [`Outbox::open_hold`] wait for `epoch`, unless it is settled. Returns
    /// whether output waits now and none did before.
    pub(crate) fn close_hold(&mut self, epoch: u64, settled: u64) -> bool {
        let end = self.taken + self.sealed.len() as u64;
        let Some(hold) = self.holds.back_mut().filter(|hold| hold.epoch == OPEN) else {
            return false;
        };
        let is_needed = epoch > settled && (hold.at < end || !self.own.is_empty());
        hold.epoch = if is_needed { epoch } else { 0 };
        if !is_needed && hold.statuses.is_empty() {
            self.holds.pop_back();
        }
        is_needed && self.holds.iter().rev().skip(1).all(Hold::is_fulfilled)
    }

    /// Ends the holds for epochs up to `settled`. Returns whether output may be sent that could not
    /// be before.
    pub(crate) fn release(&mut self, settled: u64) -> bool {
        let mut any = false;
        let waiting = self.holds.iter_mut().skip_while(|hold| hold.is_fulfilled());
        for hold in waiting.take_while(|hold| hold.epoch <= settled) {
            hold.epoch = 0;
            any = true;
        }
        self.pass_holds(None);
        any
    }

    /// Takes out the fulfilled holds with no piece between them and the pieces taken before;
    /// appends their statuses to `batch`, if there is one. Returns the bytes of the statuses.
    fn pass_holds(&mut self, mut batch: Option<&mut Vec<Piece>>) -> usize {
        let mut bytes = 0;
        while let Some(hold) = self.holds.front_mut().filter(|hold| hold.is_fulfilled()) {
            if !hold.statuses.is_empty() {
                let Some(batch) = batch.as_deref_mut().filter(|_| hold.at == self.taken) else {
                    break;
                };
                bytes += hold.statuses.len();
                batch.push(Piece::Own(std::mem::take(&mut hold.statuses)));
            }
            self.holds.pop_front();
        }
        bytes
    }

    /// Counts a request without a decision yet on its status; returns its number.
    pub(crate) fn expect_status(&mut self) -> u64 {
        self.undecided += 1;
        self.requests += 1;
        self.requests
    }

    /// Counts a decision on the status of a request.
    pub(crate) fn decide_status(&mut self) {
        self.undecided = self.undecided.saturating_sub(1);
    }

    /// Ends the wait for all statuses that are not decided.
    pub(crate) fn expect_no_status(&mut self) {
        self.undecided = 0;
    }

    /// Puts the status of a request before the first output held back behind it; returns `false` if
    /// there is none.
    pub(crate) fn push_status(
        &mut self,
        request: u64,
        spares: &mut Spares,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> bool {
        let mut holds = self.holds.iter_mut();
        let hold = holds.find(|hold| hold.requests >= request && !hold.is_fulfilled());
        let Some(hold) = hold else { return false };
        let before = hold.statuses.len();
        write(&mut hold.statuses);
        self.pending_bytes += hold.statuses.len() - before;
        spares.added_bytes += hold.statuses.len() - before;
        true
    }

    /// Takes the next batch for the reactor, unless one is in flight or all output is held back.
    pub(crate) fn take(&mut self, spares: &mut Spares) -> Option<Vec<Piece>> {
        self.take_up_to(BATCH_BYTES_MAX, spares)
    }

    /// Begins a batch of one piece that stands for output taken before, or for no output of this
    /// outbox.
    pub(crate) fn start(&mut self, spares: &mut Spares, piece: Piece) -> Vec<Piece> {
        self.in_flight = true;
        let mut batch = spares.batch();
        batch.push(piece);
        batch
    }

    /// Takes the next batch, which ends with the piece that reaches `bytes_max`.
    pub(crate) fn take_up_to(
        &mut self,
        bytes_max: usize,
        spares: &mut Spares,
    ) -> Option<Vec<Piece>> {
        if self.in_flight {
            return None;
        }
        // There are none nearly always.
        let has_holds = !self.holds.is_empty();
        let mut left = if has_holds {
            self.free_pieces()
        } else {
            self.seal();
            self.sealed.len()
        };
        if left == 0 && self.holds.front().is_none_or(|hold| !hold.is_fulfilled()) {
            return None;
        }
        let mut batch = spares.batch();
        let mut bytes = if has_holds { self.pass_holds(Some(&mut batch)) } else { 0 };
        while left > 0 && batch.len() < BATCH_PIECES_MAX && bytes < bytes_max {
            let Some(piece) = self.sealed.pop_front() else { break };
            left -= 1;
            self.taken += 1;
            if piece.bytes().is_empty() {
                self.droppable
                    .as_mut()
                    .into_iter()
                    .for_each(|droppable| droppable.on_empty_taken());
            } else {
                bytes += piece.bytes().len();
                batch.push(piece);
            }
            if has_holds {
                bytes += self.pass_holds(Some(&mut batch));
            }
        }
        if batch.is_empty() {
            spares.keep_batch(batch);
            return None;
        }
        self.in_flight = true;
        self.in_flight_bytes = bytes;
        Some(batch)
    }

    /// Returns the number of pieces, from the first, that no hold keeps back.
    #[cold]
    fn free_pieces(&mut self) -> usize {
        if !self.is_held() {
            self.seal();
        }
        match self.holds.iter().find(|hold| !hold.is_fulfilled()) {
            Some(hold) => {
                let free = usize::try_from(hold.at - self.taken).unwrap_or(usize::MAX);
                free.min(self.sealed.len())
            }
            None => self.sealed.len(),
        }
    }

    /// Counts `bytes` more of the batch in flight as taken by the kernel.
    pub(crate) fn on_sent(&mut self, bytes: usize) {
        assert!(bytes <= self.pending_bytes, "more was sent than was pending");
        self.pending_bytes -= bytes;
        self.in_flight_bytes = self.in_flight_bytes.saturating_sub(bytes);
    }

    /// Ends the batch in flight, which is sent to its end.
    pub(crate) fn on_done(&mut self) {
        self.in_flight = false;
    }

    /// Drops all output that is not in flight.
    pub(crate) fn clear(&mut self, spares: &mut Spares) {
        self.seal();
        for piece in self.sealed.drain() {
            self.pending_bytes -= piece.bytes().len();
            self.taken += 1;
            spares.keep_piece(piece);
        }
        for hold in self.holds.drain(..) {
            self.pending_bytes -= hold.statuses.len();
            spares.keep_buffer(hold.statuses);
        }
        self.undecided = 0;
        self.droppable = None;
    }

    fn seal(&mut self) {
        if !self.own.is_empty() {
            self.sealed.push_back(Piece::Own(std::mem::take(&mut self.own)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(batch: &[Piece]) -> String {
        batch.iter().map(|p| String::from_utf8_lossy(p.bytes()).into_owned()).collect()
    }

    #[test]
    fn own_bytes_and_segments_keep_their_order() {
        let (mut outbox, mut spares) = (Outbox::default(), Spares::default());
        let segment = spares.segment(|out| out.extend_from_slice(b"xxSHAREDxx"));
        outbox.push(&mut spares, |out| out.extend_from_slice(b"one,"));
        outbox.push_shared(&segment, 2..8);
        outbox.push(&mut spares, |out| out.extend_from_slice(b",two"));
        let batch = outbox.take(&mut spares).unwrap();
        assert_eq!(text(&batch), "one,SHARED,two");
        assert_eq!(outbox.pending_bytes(), 14);
        assert!(outbox.take(&mut spares).is_none(), "one batch in flight at a time");
        outbox.on_sent(14);
        outbox.on_done();
        assert!(outbox.is_empty());
    }

    #[test]
    fn a_long_backlog_is_never_moved_and_its_pieces_are_long() {
        let (mut outbox, mut spares) = (Outbox::default(), Spares::default());
        let message = [b'x'; 150];
        for _ in 0..10_000 {
            let before = (outbox.own.len(), outbox.own.as_ptr(), outbox.sealed.len());
            outbox.push(&mut spares, |out| out.extend_from_slice(&message));
            if before.0 >= OWN_MOVED_BYTES_MAX && outbox.sealed.len() == before.2 {
                assert_eq!(outbox.own.as_ptr(), before.1, "{} bytes were moved", before.0);
            }
        }
        let pieces = outbox.sealed.len() + 1;
        assert!(outbox.pending_bytes() / pieces > OWN_BYTES_MAX / 2, "{pieces} pieces");
    }

    #[test]
    fn what_is_behind_a_hold_waits_for_its_epoch() {
        let (mut outbox, mut spares) = (Outbox::default(), Spares::default());
        outbox.push(&mut spares, |out| out.extend_from_slice(b"before"));
        outbox.hold(3);
        outbox.push(&mut spares, |out| out.extend_from_slice(b"PONG"));
        assert_eq!(text(&outbox.take(&mut spares).unwrap()), "before");
        outbox.on_sent(6);
        outbox.on_done();
        assert!(outbox.take(&mut spares).is_none());
        assert!(!outbox.release(2));
        assert!(outbox.release(3));
        assert_eq!(text(&outbox.take(&mut spares).unwrap()), "PONG");
    }

    #[test]
    fn a_hold_that_is_closed_over_nothing_holds_nothing() {
        let (mut outbox, mut spares) = (Outbox::default(), Spares::default());
        let push = |outbox: &mut Outbox, spares: &mut Spares, text: &str| {
            outbox.push(spares, |out| out.extend_from_slice(text.as_bytes()));
        };
        push(&mut outbox, &mut spares, "before,");
        outbox.open_hold(3);
        assert!(!outbox.close_hold(2, 1), "nothing was appended");
        outbox.open_hold(3);
        push(&mut outbox, &mut spares, "settled,");
        assert!(!outbox.close_hold(2, 2), "there is nothing to wait for");
        assert!(!outbox.is_held());
        outbox.open_hold(3);
        push(&mut outbox, &mut spares, "held");
        assert!(outbox.close_hold(3, 2));
        for (epoch, more) in [(3, ", too"), (4, " longer")] {
            outbox.open_hold(epoch);
            push(&mut outbox, &mut spares, more);
            assert!(!outbox.close_hold(epoch, 2), "something waits already");
        }
        assert_eq!(text(&outbox.take(&mut spares).unwrap()), "before,settled,");
        outbox.on_sent(15);
        outbox.on_done();
        assert!(outbox.take(&mut spares).is_none());
        assert!(outbox.release(3));
        assert_eq!(text(&outbox.take(&mut spares).unwrap()), "held, too");
        outbox.on_sent(9);
        outbox.on_done();
        assert!(outbox.release(4));
        assert_eq!(text(&outbox.take(&mut spares).unwrap()), " longer");
    }

    #[test]
    fn a_status_comes_before_what_was_held_back_after_its_request_and_behind_the_rest() {
        let (mut outbox, mut spares) = (Outbox::default(), Spares::default());
        let push = |outbox: &mut Outbox, spares: &mut Spares, text: &str| {
            outbox.push(spares, |out| out.extend_from_slice(text.as_bytes()));
        };
        outbox.hold(1);
        push(&mut outbox, &mut spares, "+OK,");
        let requests = [outbox.expect_status(), outbox.expect_status()];
        outbox.hold_behind_statuses(1);
        push(&mut outbox, &mut spares, "PONG,");
        let late = outbox.expect_status();
        let status = |text: &'static [u8]| move |out: &mut Vec<u8>| out.extend_from_slice(text);
        assert!(outbox.push_status(requests[1], &mut spares, status(b"503,")));
        assert!(!outbox.push_status(late, &mut spares, status(b"nothing is behind it")));
        assert!(outbox.take(&mut spares).is_none());
        requests.iter().for_each(|_| outbox.decide_status());
        assert!(outbox.release(1));
        let batch = outbox.take(&mut spares).unwrap();
        assert_eq!(text(&batch), "+OK,503,PONG,");
        outbox.on_sent(13);
        outbox.on_done();
        spares.keep_batch(batch);
        assert!(!outbox.is_empty(), "one may have a status yet");
        outbox.decide_status();
        assert!(outbox.is_empty());
        assert_eq!(spares.held_bytes(), 0);
    }

    #[test]
    fn a_segment_comes_home_with_its_last_holder() {
        let mut spares = Spares::default();
        let segment = spares.segment(|out| out.extend_from_slice(b"abc"));
        let mut boxes = [Outbox::default(), Outbox::default()];
        for outbox in &mut boxes {
            outbox.push_shared(&segment, 0..3);
        }
        drop(segment);
        for (outbox, home) in boxes.iter_mut().zip([0, 1]) {
            let batch = outbox.take(&mut spares).unwrap();
            spares.keep_batch(batch);
            assert_eq!(spares.segments.len(), home);
        }
    }
}
