//! The time of a shard's turns, and the time it polls for work before it sleeps.

use std::time::{Duration, Instant};

use super::reactor::Clock;

/// The clock of a shard, read once as a turn begins.
pub(super) struct TurnClock<C> {
    clock: C,
    /// The zero of nanoseconds, the same for all shards.
    started: Instant,
    /// The time at which the turn began.
    now: Instant,
}

impl<C: Clock> TurnClock<C> {
    /// A clock whose first turn has not begun.
    pub(super) fn new(clock: C, started: Instant) -> Self {
        Self { clock, started, now: started }
    }

    /// Reads the clock as a turn begins. Returns nanoseconds since the start.
    pub(super) fn begin_turn(&mut self) -> u64 {
        self.now = self.clock.now();
        self.now_ns()
    }

    /// Returns the time at which the turn began.
    pub(super) fn now(&self) -> Instant {
        self.now
    }

    /// Returns the time at which the turn began, in nanoseconds since the start.
    pub(super) fn now_ns(&self) -> u64 {
        self.ns(self.now)
    }

    /// Reads the clock within the turn, in nanoseconds since the start.
    pub(super) fn read_ns(&mut self) -> u64 {
        let time = self.clock.now();
        self.ns(time)
    }

    /// Returns the time that is `ns` nanoseconds after the start.
    pub(super) fn at_ns(&self, ns: u64) -> Instant {
        self.started + Duration::from_nanos(ns)
    }

    fn ns(&self, time: Instant) -> u64 {
        u64::try_from(time.duration_since(self.started).as_nanos()).unwrap_or(u64::MAX)
    }
}

/// The time after the last work in which a shard looks for more instead of sleeping.
pub(super) struct BusyPoll {
    span: Duration,
    until: Instant,
}

impl BusyPoll {
    /// Busy poll for `span` after each work; zero is none. The first span begins with the first
    /// work.
    pub(super) fn new(span: Duration, started: Instant) -> Self {
        Self { span, until: started }
    }

    /// Begins the span anew: there was work.
    pub(super) fn extend(&mut self, now: Instant) {
        self.until = now + self.span;
    }

    /// Whether the shard has to stay awake.
    pub(super) fn is_on(&self, now: Instant) -> bool {
        now < self.until
    }
}
