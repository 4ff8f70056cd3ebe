//! Signs of life of a connection, and the PINGs that ask for one.

/// Signs of life of a connection. Times are nanoseconds since the start.
#[derive(Debug)]
pub(crate) struct Liveness {
    pub(crate) opened: u64,
    /// Time of the last input.
    pub(crate) last_active: u64,
    /// Last measured round trip, in nanoseconds; 0 before the first.
    pub(crate) rtt: u64,
    /// PINGs without an answer.
    unanswered: u32,
    has_asked: bool,
    /// Time of the last PING.
    asked: u64,
}

/// Rules for PINGs to a peer, and for counting it as gone.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PingRule {
    /// Nanoseconds between two PINGs.
    pub(crate) interval_ns: u64,
    /// PINGs that may be without an answer before the peer counts as gone.
    pub(crate) unanswered_max: u32,
    /// Whether every interval has a PING, and not only one after an interval without input.
    pub(crate) asks_always: bool,
}

/// The action that is due at the end of a ping interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Checkup {
    /// No action: there was input in the interval.
    Alive,
    /// A PING, which is counted as sent.
    Ping,
    /// The end of the connection: too many PINGs are without an answer.
    Stale,
}

impl Liveness {
    /// A connection that is opened at `now`.
    pub(crate) fn new(now: u64) -> Self {
        Self { opened: now, last_active: now, rtt: 0, unanswered: 0, has_asked: false, asked: 0 }
    }

    /// Takes the first CONNECT as an answer to the INFO, which measures a round trip, too.
    pub(crate) fn on_first_connect(&mut self, now: u64) {
        self.rtt = now - self.opened;
    }

    /// Takes a PONG, which answers all PINGs; a PONG without a PING measures nothing.
    pub(crate) fn on_pong(&mut self, now: u64) {
        if self.unanswered > 0 {
            self.rtt = now.saturating_sub(self.asked);
        }
        self.unanswered = 0;
    }

    /// Returns the action due at `now`, when a ping interval is over.
    pub(crate) fn check(&mut self, rule: PingRule, now: u64) -> Checkup {
        let was_active = self.last_active.saturating_add(rule.interval_ns) > now;
        if self.has_asked && was_active && !rule.asks_always {
            return Checkup::Alive;
        }
        if self.unanswered >= rule.unanswered_max {
            return Checkup::Stale;
        }
        (self.has_asked, self.asked) = (true, now);
        self.unanswered += 1;
        Checkup::Ping
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: PingRule = PingRule { interval_ns: 10, unanswered_max: 2, asks_always: false };

    #[test]
    fn an_active_client_is_asked_once_and_a_silent_one_until_it_is_stale() {
        let mut client = Liveness::new(0);
        assert_eq!(client.check(RULE, 5), Checkup::Ping, "the first round trip is measured");
        client.on_pong(8);
        assert_eq!(client.rtt, 3);
        client.last_active = 8;
        assert_eq!(client.check(RULE, 15), Checkup::Alive);
        assert_eq!(client.check(RULE, 18), Checkup::Ping);
        assert_eq!(client.check(RULE, 28), Checkup::Ping);
        assert_eq!(client.check(RULE, 38), Checkup::Stale);
        client.on_pong(39);
        assert_eq!((client.rtt, client.check(RULE, 48)), (11, Checkup::Ping));
    }

    #[test]
    fn a_route_is_asked_in_each_interval() {
        let rule = PingRule { asks_always: true, ..RULE };
        let mut route = Liveness::new(0);
        for now in [10, 20, 30] {
            route.last_active = now;
            assert_eq!(route.check(rule, now), Checkup::Ping);
            route.on_pong(now + 1);
        }
    }

    #[test]
    fn a_pong_without_a_ping_measures_nothing() {
        let mut client = Liveness::new(0);
        client.on_first_connect(7);
        client.on_pong(100);
        assert_eq!(client.rtt, 7);
    }
}
