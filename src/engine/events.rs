//! What the server tells of its connections in the system account.

#![forbid(unsafe_code)]

use super::conn::Conn;
use super::{ConnId, ConnSnapshot, Engine, Reason};

/// Events that wait to be taken; more are not told.
const EVENTS_MAX: usize = 1024;

/// Something that happened to a connection.
#[derive(Debug)]
pub enum ConnEvent {
    /// It has logged in.
    Connected(Box<ConnSnapshot>),
    /// It has ended.
    Disconnected {
        /// As it was at its end.
        conn: Box<ConnSnapshot>,
        /// Why.
        reason: Reason,
        /// When, in nanoseconds since the start of the process.
        stopped_ns: u64,
        /// It had logged in: its account has one less.
        was_in: bool,
    },
}

impl Engine {
    /// What happened to connections, until there is no more. Nothing is kept while nobody listens
    /// in the system account.
    pub fn pop_event(&mut self) -> Option<ConnEvent> {
        self.events.pop_front()
    }

    /// A connection has logged in.
    pub(super) fn tell_connected(&mut self, id: ConnId) {
        if self.is_listened_to()
            && let Some(conn) = self.conns.get(id)
        {
            self.events.push_back(ConnEvent::Connected(Box::new(conn.snapshot())));
        }
    }

    /// A connection ends, whether or not it has said anything.
    pub(super) fn tell_disconnected(&mut self, id: ConnId, reason: Reason) {
        let stopped_ns = self.now;
        if self.is_listened_to()
            && let Some(conn) =
                self.conns.get(id).filter(|conn: &&Conn| conn.layers.is_understood())
        {
            let (conn, was_in) = (Box::new(conn.snapshot()), conn.user.is_some());
            self.events.push_back(ConnEvent::Disconnected { conn, reason, stopped_ns, was_in });
        }
    }

    fn is_listened_to(&mut self) -> bool {
        let Some(system) = self.accounts.system else { return false };
        self.events.len() < EVENTS_MAX && self.accounts.at(system).interest.filters() > 0
    }
}
