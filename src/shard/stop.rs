//! The stop of a shard: first all shards tell clients, then each ends its connections.

use std::time::{Duration, Instant};

/// The longest time a stopping shard waits for its clients to take their output.
pub(super) const STOP_MAX: Duration = Duration::from_secs(2);
/// The longest time a stopping shard waits for the farewells of the others.
const FAREWELLS_MAX: Duration = Duration::from_millis(500);

/// The state of a shard that stops.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stop {
    /// The time up to which connections wait for the farewells of other shards; `None` once they
    /// are ended.
    farewells_by: Option<Instant>,
    by: Instant,
}

impl Stop {
    pub(super) fn begin(now: Instant) -> Self {
        Self { farewells_by: Some(now + FAREWELLS_MAX), by: now + STOP_MAX }
    }

    /// Whether connections are to be ended now: once only.
    pub(super) fn parts(&mut self, now: Instant, is_taken_leave_of: bool) -> bool {
        let parts = self.farewells_by.is_some_and(|by| is_taken_leave_of || by <= now);
        if parts {
            self.farewells_by = None;
        }
        parts
    }

    /// Whether the shard ends.
    pub(super) fn is_over(self, now: Instant, is_at_rest: impl Fn() -> bool) -> bool {
        self.by <= now || self.farewells_by.is_none() && is_at_rest()
    }

    /// The next time at which something is to be done.
    pub(super) fn due(self) -> Instant {
        self.farewells_by.unwrap_or(self.by)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any time will do as a beginning")]
    fn a_shard_that_never_says_farewell_does_not_hold_up_the_stop() {
        let now = Instant::now();
        let mut stop = Stop::begin(now);
        assert!(!stop.parts(now, false) && !stop.is_over(now, || true));
        assert_eq!(stop.due(), now + FAREWELLS_MAX);
        assert!(stop.parts(now + FAREWELLS_MAX, false), "in spite of the other");
        assert!(!stop.parts(now + FAREWELLS_MAX, true), "once only");
        assert!(stop.is_over(now + FAREWELLS_MAX, || true));
        assert!(!stop.is_over(now + FAREWELLS_MAX, || false));
        assert!(stop.is_over(now + STOP_MAX, || false));
    }
}
