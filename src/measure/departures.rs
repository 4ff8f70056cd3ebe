//! Delays from the arrival of input to the departure of the output that it causes.

use super::{Histogram, NEVER};

/// Batches that leave in one turn, and the delays of the batches before them.
#[derive(Debug, Default)]
pub(crate) struct Departures {
    /// Arrivals of the oldest input that a batch answers to, each with the number of such batches.
    taken: Vec<(u64, u64)>,
    delays: Histogram,
}

impl Departures {
    /// Counts a batch that is taken. Most batches of a turn have the same cause, one after the
    /// other.
    pub(crate) fn add(&mut self, arrived: u64) {
        match self.taken.last_mut() {
            Some((last, count)) if *last == arrived => *count += 1,
            _ => self.taken.push((arrived, 1)),
        }
    }

    /// Records the delays of the batches taken, which leave at `now`.
    pub(crate) fn depart(&mut self, now: u64) {
        for (arrived, count) in self.taken.drain(..).filter(|(arrived, _)| *arrived != NEVER) {
            self.delays.add(now.saturating_sub(arrived), count);
        }
    }

    /// Drops the batches taken, if the time of their departure was not given.
    pub(crate) fn forget(&mut self) {
        self.taken.clear();
    }

    /// Returns the delays, in nanoseconds.
    pub(crate) fn delays(&self) -> &Histogram {
        &self.delays
    }
}
