//! What a turn may cost: whoever asks for more waits until others have had theirs.
//!
//! Work is counted where it is done, in units of about a nanosecond: a turn that keeps to its
//! budget takes a few milliseconds, whatever is asked of it, and adds a bounded number of bytes,
//! since these cost something, too. Only a single operation, which cannot be cut, may go beyond.

#![forbid(unsafe_code)]

/// What a turn may cost.
const TURN_WORK: u64 = 3_000_000;

/// Taking a subscription out of every table.
const RETRACT_WORK: u64 = 2_000;

/// What one turn may still cost, and what it has cost.
#[derive(Debug)]
pub(super) struct Budget {
    /// What a turn may cost.
    turn: u64,
    /// What is left for taking out subscriptions of those who have ended.
    retract_left: u64,
    /// What this turn has cost so far.
    work: u64,
}

impl Default for Budget {
    fn default() -> Self {
        let mut budget = Self { turn: TURN_WORK, retract_left: 0, work: 0 };
        budget.refill();
        budget
    }
}

impl Budget {
    /// Turns may cost so much from now on.
    pub(super) fn set_turn(&mut self, turn: u64) {
        self.turn = turn;
        self.refill();
    }

    /// Begins the next turn. Returns what the last one has cost.
    pub(super) fn refill(&mut self) -> u64 {
        self.retract_left = self.turn / 4;
        std::mem::take(&mut self.work)
    }

    /// Subscriptions were taken out.
    pub(super) fn spend_retract(&mut self, count: usize) {
        let work = RETRACT_WORK * count as u64;
        self.work += work;
        self.retract_left = self.retract_left.saturating_sub(work);
    }

    /// How many subscriptions may be taken out.
    pub(super) fn retractions(&self) -> usize {
        usize::try_from(self.retract_left.div_ceil(RETRACT_WORK)).unwrap_or(usize::MAX)
    }
}
