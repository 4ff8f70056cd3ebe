//! How long input waits until what it causes is on its way.

#![forbid(unsafe_code)]

use super::timers::NEVER;
use crate::measure::Histogram;

/// Batches that leave in one turn, and how long those before them took.
#[derive(Debug, Default)]
pub(super) struct Departures {
    /// How many batches are taken, by the arrival of the oldest input that each answers to.
    taken: Vec<(u64, u64)>,
    delays: Histogram,
}

impl Departures {
    /// A batch is taken. Most of a turn have the same cause, one after the other.
    pub(super) fn add(&mut self, arrived: u64) {
        match self.taken.last_mut() {
            Some((last, count)) if *last == arrived => *count += 1,
            _ => self.taken.push((arrived, 1)),
        }
    }

    /// What is taken leaves at `now`.
    pub(super) fn depart(&mut self, now: u64) {
        for (arrived, count) in self.taken.drain(..).filter(|(arrived, _)| *arrived != NEVER) {
            self.delays.add(now.saturating_sub(arrived), count);
        }
    }

    /// Nobody said when what was taken left.
    pub(super) fn forget(&mut self) {
        self.taken.clear();
    }

    /// In nanoseconds.
    pub(super) fn delays(&self) -> &Histogram {
        &self.delays
    }
}
