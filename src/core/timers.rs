//! Deadlines of connections, earliest first.
//!
//! Each connection has at most one live entry, its earliest deadline; an entry that was overtaken
//! is dropped when its time comes. So arming is free while an earlier one stands.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::core::Core;
use crate::core::close::Reason;
use crate::core::conn::Phase;
use crate::core::liveness::{Checkup, PingRule};
use crate::interest::ids::ConnId;
use crate::interest::reach::Kind;
use crate::measure::NEVER;
use crate::proto::encode;

/// Nanoseconds after which every connection is looked at, whatever its deadlines.
const RECHECK_NS_MAX: u64 = 10_000_000_000;

/// Deadlines in nanoseconds since the start, earliest first.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    heap: BinaryHeap<Reverse<(u64, ConnId)>>,
}

impl Timers {
    /// Enters `deadline` for `conn`, unless one of its `own` entries is earlier.
    pub(crate) fn enter(&mut self, conn: ConnId, deadline: u64, own: &mut Deadlines) {
        if deadline < own.entered {
            own.entered = deadline;
            self.heap.push(Reverse((deadline, conn)));
        }
    }

    /// Removes the deadlines of connections that are not `alive`, and releases memory.
    pub(crate) fn shrink(&mut self, alive: impl Fn(ConnId) -> bool) {
        self.heap.retain(|Reverse((_, conn))| alive(*conn));
        self.heap.shrink_to_fit();
    }

    /// Returns the earliest deadline.
    pub(crate) fn next(&self) -> Option<u64> {
        self.heap.peek().map(|Reverse((deadline, _))| *deadline)
    }

    /// Takes an entry whose time has come; [`Deadlines::take_entry`] says whether it was overtaken.
    pub(crate) fn pop_due(&mut self, now: u64) -> Option<(u64, ConnId)> {
        if self.next()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| entry)
    }
}

/// A kind of deadline of a connection. Of several that are due the first is handled first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deadline {
    /// The time at which INFO is sent in clear to a client that has not begun its handshake.
    Info,
    /// The time at which a connection over its rate is read from again.
    Read,
    /// The time at which the token of the user expires.
    Expiry,
    /// The time by which the proxy's header must be whole.
    Header,
    /// The time by which the login must be complete; with TLS, before that, the handshake.
    Login,
    /// The time at which a PING may be due.
    Ping,
}

impl Deadline {
    const ALL: [Self; 6] =
        [Self::Info, Self::Read, Self::Expiry, Self::Header, Self::Login, Self::Ping];
}

/// Deadlines of one connection, in nanoseconds since the start: at most one of each kind.
#[derive(Debug)]
pub(crate) struct Deadlines {
    /// Deadlines by kind; [`NEVER`] for one that is not armed.
    at: [u64; Deadline::ALL.len()],
    /// The live entry in [`Timers`].
    entered: u64,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self { at: [NEVER; Deadline::ALL.len()], entered: NEVER }
    }
}

impl Deadlines {
    /// Sets a deadline in place of the one before it.
    pub(crate) fn arm(&mut self, what: Deadline, at: u64) {
        self.at[what as usize] = at;
    }

    /// Sets a deadline unless there is an earlier one.
    pub(crate) fn arm_by(&mut self, what: Deadline, at: u64) {
        self.at[what as usize] = self.at[what as usize].min(at);
    }

    pub(crate) fn disarm(&mut self, what: Deadline) {
        self.arm(what, NEVER);
    }

    /// Returns the earliest deadline, or [`NEVER`].
    pub(crate) fn next(&self) -> u64 {
        self.at.iter().copied().min().unwrap_or(NEVER)
    }

    /// Takes the first kind that is due, which is disarmed.
    pub(crate) fn pop_due(&mut self, now: u64) -> Option<Deadline> {
        let what = Deadline::ALL.into_iter().find(|what| self.at[*what as usize] <= now)?;
        self.disarm(what);
        Some(what)
    }

    /// Whether the entry for `deadline` is the live one, which is then over.
    pub(crate) fn take_entry(&mut self, deadline: u64) -> bool {
        let is_live = self.entered == deadline;
        if is_live {
            self.entered = NEVER;
        }
        is_live
    }
}

impl Core {
    pub(crate) fn on_pong(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.liveness.on_pong(self.times.now);
    }

    /// Enters the connection's earliest deadline.
    pub(crate) fn rearm(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        let due = match conn.phase {
            Phase::Closing { .. } | Phase::Closed => NEVER,
            Phase::Flushing { until } => until,
            Phase::Open if conn.outbox.is_in_flight() => {
                let deadline_ns = self.settings.write_deadline_ns_of(conn.kind());
                conn.deadlines.next().min(conn.outgoing.write_due(deadline_ns))
            }
            Phase::Open => conn.deadlines.next(),
        };
        if due != NEVER {
            // An entry of a connection that is gone must not stay for a whole ping interval.
            let due = due.min(self.times.now.saturating_add(RECHECK_NS_MAX));
            self.timers.enter(id, due, &mut conn.deadlines);
        }
    }
}

pub(crate) fn on_ping_timer(core: &mut Core, id: ConnId) {
    let Some(conn) = core.conns.get_mut(id) else { return };
    let (noun, settings) = (conn.kind().noun(), &core.settings);
    let gateway = settings.gateway.as_ref().filter(|_| conn.kind() == Kind::Gateway);
    let rule = match (&conn.link, gateway) {
        (_, Some(gateway)) => PingRule {
            interval_ns: gateway.ping_interval_ns,
            unanswered_max: gateway.ping_max,
            asks_always: true,
        },
        (Some(link), None) if link.leaf().is_some() => PingRule {
            interval_ns: settings.ping_interval_of(conn.transport),
            unanswered_max: settings.intervals.ping_max,
            asks_always: link.dialed.is_some(),
        },
        (Some(_), None) => PingRule {
            interval_ns: settings.route.ping_interval_ns,
            unanswered_max: settings.route.ping_max,
            asks_always: true,
        },
        (None, None) => PingRule {
            interval_ns: settings.ping_interval_of(conn.transport),
            unanswered_max: settings.intervals.ping_max,
            asks_always: false,
        },
    };
    let now = core.times.now;
    conn.deadlines.arm(Deadline::Ping, now.saturating_add(rule.interval_ns));
    match conn.liveness.check(rule, now) {
        Checkup::Alive => {}
        Checkup::Stale => {
            tracing::debug!("{} - Stale {noun} Connection - Closing", conn.label());
            let kind = conn.kind();
            core.monitor.stats.stale_connections.add(kind);
            core.fail(id, Some("Stale Connection"), Reason::Protocol("Stale Connection"));
        }
        Checkup::Ping => {
            tracing::debug!("{} - {noun} Ping Timer", conn.label());
            core.reply(id, encode::ping);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_a_place_of_its_own() {
        for (at, what) in Deadline::ALL.into_iter().enumerate() {
            assert_eq!(what as usize, at);
        }
    }

    #[test]
    fn of_what_is_due_the_first_kind_comes_first_and_comes_once() {
        let mut deadlines = Deadlines::default();
        assert_eq!((deadlines.next(), deadlines.pop_due(NEVER - 1)), (NEVER, None));
        deadlines.arm(Deadline::Ping, 10);
        deadlines.arm(Deadline::Login, 20);
        deadlines.arm(Deadline::Info, 30);
        assert_eq!((deadlines.next(), deadlines.pop_due(9)), (10, None));
        assert_eq!(deadlines.pop_due(20), Some(Deadline::Login));
        assert_eq!(deadlines.pop_due(20), Some(Deadline::Ping));
        assert_eq!((deadlines.pop_due(20), deadlines.next()), (None, 30));
        deadlines.disarm(Deadline::Info);
        assert_eq!(deadlines.next(), NEVER);
    }

    #[test]
    fn a_deadline_by_a_time_is_only_made_earlier() {
        let mut deadlines = Deadlines::default();
        for (at, due) in [(20, 20), (30, 20), (10, 10)] {
            deadlines.arm_by(Deadline::Login, at);
            assert_eq!(deadlines.next(), due);
        }
    }

    #[test]
    fn an_entry_that_was_overtaken_is_dropped() {
        let (mut timers, mut own) = (Timers::default(), Deadlines::default());
        let conn = ConnId { slot: 0, generation: 0 };
        for deadline in [30, 20, 40] {
            timers.enter(conn, deadline, &mut own);
        }
        let live = std::iter::from_fn(|| timers.pop_due(100)).map(|(at, _)| own.take_entry(at));
        assert_eq!(live.collect::<Vec<_>>(), [true, false]);
    }
}
