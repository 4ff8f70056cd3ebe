//! When a connection has to be looked at again.
//!
//! Each connection has at most one live entry, its earliest deadline; an entry that was overtaken
//! is dropped when its time comes. So arming is free while an earlier one stands.

#![forbid(unsafe_code)]

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::conn::Phase;
use super::tokens::Pass;
use super::{ConnId, Engine, Reason};
use crate::proto::encode;

/// The deadline of a connection that waits for nothing.
pub(super) const NEVER: u64 = u64::MAX;
/// Every connection is looked at this often, whatever it waits for, in nanoseconds.
const RECHECK_NS_MAX: u64 = 10_000_000_000;

/// Deadlines in nanoseconds since the start, earliest first.
#[derive(Debug, Default)]
pub(super) struct Timers {
    heap: BinaryHeap<Reverse<(u64, ConnId)>>,
}

impl Timers {
    /// Makes sure that `conn` is looked at by `deadline`; `armed` is its earliest entry so far.
    pub(super) fn arm(&mut self, conn: ConnId, deadline: u64, armed: &mut u64) {
        if deadline < *armed {
            *armed = deadline;
            self.heap.push(Reverse((deadline, conn)));
        }
    }

    /// Forgets the deadlines of connections that are not `alive`, and gives memory back.
    pub(super) fn shrink(&mut self, alive: impl Fn(ConnId) -> bool) {
        self.heap.retain(|Reverse((_, conn))| alive(*conn));
        self.heap.shrink_to_fit();
    }

    /// The earliest deadline.
    pub(super) fn next(&self) -> Option<u64> {
        self.heap.peek().map(|Reverse((deadline, _))| *deadline)
    }

    /// An entry whose time has come. The caller compares it with the connection's `armed`.
    pub(super) fn pop_due(&mut self, now: u64) -> Option<(u64, ConnId)> {
        if self.next()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| entry)
    }
}

impl Engine {
    pub(super) fn on_timer(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if let Phase::Flushing { until } = conn.phase {
            if until <= self.now {
                self.close(id, true);
            }
            return;
        }
        let overdue = conn.timing.send_started.saturating_add(self.settings.write_deadline_ns);
        if conn.outbox.is_in_flight() && overdue <= self.now {
            let bytes = conn.outbox.pending_bytes();
            tracing::info!(
                "{} - Slow Consumer Detected: WriteDeadline of {:?} exceeded with {} total bytes.",
                conn.label(),
                std::time::Duration::from_nanos(self.settings.write_deadline_ns),
                bytes
            );
            self.abort(id, Reason::SlowConsumerDeadline);
        } else if conn.timing.info_due <= self.now {
            conn.timing.info_due = NEVER;
            self.send_info(id, false);
        } else if conn.timing.read_due <= self.now {
            conn.timing.read_due = NEVER;
            self.release(id, |brakes| brakes.pace = false);
        } else if conn.timing.expires_due <= self.now {
            conn.timing.expires_due = NEVER;
            if let Some(farewell) = conn.pass().map(Pass::farewell) {
                tracing::error!("{} - {farewell}", conn.label());
                self.fail(id, Some(farewell), Reason::Protocol("Authentication Expired"));
            }
        } else if conn.timing.preface_due <= self.now {
            conn.timing.preface_due = NEVER;
            self.fail_header(id, "it takes too long");
        } else if conn.timing.auth_due <= self.now {
            conn.timing.auth_due = NEVER;
            if conn.layers.awaits_tls() {
                self.on_handshake_timeout(id);
                return;
            }
            if !conn.layers.is_understood() {
                self.fail_upgrade(id, "timeout");
                return;
            }
            tracing::error!("{} - authentication timeout", conn.label());
            let reason = Reason::Protocol("Authentication Timeout");
            self.fail(id, Some("Authentication Timeout"), reason);
        } else if conn.timing.ping_due <= self.now {
            self.on_ping_timer(id);
        }
    }

    pub(super) fn on_ping_timer(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        let (noun, route) = (conn.noun(), &self.settings.route);
        let (interval, ping_max) = match conn.route {
            Some(_) => (route.ping_interval_ns, route.ping_max),
            None => (self.settings.ping_interval_of(conn.transport), self.settings.ping_max),
        };
        let timing = &mut conn.timing;
        timing.ping_due = self.now.saturating_add(interval);
        let active = timing.last_active.saturating_add(interval) > self.now;
        if timing.first_ping_sent && active && conn.route.is_none() {
            return;
        }
        let timing = &mut conn.timing;
        if timing.pings_out >= ping_max {
            tracing::debug!("{} - Stale {noun} Connection - Closing", conn.label());
            self.stats.stale_connections += 1;
            self.fail(id, Some("Stale Connection"), Reason::Protocol("Stale Connection"));
            return;
        }
        timing.first_ping_sent = true;
        timing.pings_out += 1;
        timing.ping_sent = self.now;
        tracing::debug!("{} - {noun} Ping Timer", conn.label());
        self.reply(id, encode::ping);
    }

    /// Enters the connection's earliest deadline.
    pub(super) fn rearm(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        let timing = &conn.timing;
        let due = match conn.phase {
            Phase::Closed => NEVER,
            Phase::Flushing { until } => until,
            Phase::Open => {
                let write = if conn.outbox.is_in_flight() {
                    timing.send_started.saturating_add(self.settings.write_deadline_ns)
                } else {
                    NEVER
                };
                let own = timing.ping_due.min(timing.auth_due).min(timing.info_due);
                let own = own.min(timing.expires_due).min(timing.read_due);
                own.min(timing.preface_due).min(write)
            }
        };
        if due != NEVER {
            // An entry of a connection that is gone must not stay for a whole ping interval.
            let due = due.min(self.now.saturating_add(RECHECK_NS_MAX));
            self.timers.arm(id, due, &mut conn.timing.armed);
        }
    }
}
