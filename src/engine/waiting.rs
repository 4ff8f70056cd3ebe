//! Input that waits in the engine: its connection has had its turn, or is held back.
//!
//! What a connection has sent is handled as far as the budget of the turn allows, and not while
//! those who get its messages are behind: the rest waits behind the head of the operation that was
//! cut, and whoever waits stands in line. Where that cuts the input makes no difference. No more is
//! read from a connection that has much waiting, so there is never more than that and what the
//! reactor had in hand.

#![forbid(unsafe_code)]

use super::conn::Conn;
use super::{ConnId, Engine, Reason};

/// With more waiting than this a connection is not read from, in bytes: as much as a chunk.
const WAITING_BYTES_MAX: usize = 64 * 1024;
/// What may follow a CONNECT whose credentials are being checked, in bytes: nobody has a claim
/// to more memory before that is done. Clients wait for the PONG anyway.
pub(super) const UNDECIDED_BYTES_MAX: usize = 16 * 1024;

impl Conn {
    /// Whether it has sent something that is still to be handled, wherever that waits: for its
    /// turn, for those who get its messages, for its login, or in a layer around the protocol.
    fn has_unheard(&self) -> bool {
        self.waits || self.claim.is_some() || self.layers.waits()
    }
}

impl Engine {
    /// Whether input may be handed in that is new. Otherwise it waits here, behind all that does.
    pub fn takes_input(&self) -> bool {
        self.budget.takes_input()
    }

    /// Bytes of a connection's input that wait to be handled.
    pub fn waiting_bytes(&self, id: ConnId) -> usize {
        self.conns.get(id).filter(|conn| conn.waits).map_or(0, |conn| conn.partial.len())
    }

    /// Handles what a client has sent, without what is around it.
    pub(super) fn on_plaintext(&mut self, id: ConnId, mut bytes: &[u8]) {
        if self.put_off(id, bytes) {
            return;
        }
        while let Some(conn) = self.conns.get_mut(id).filter(|conn| !conn.partial.is_empty()) {
            // The operation that was cut is completed in a buffer of its own, and with nothing
            // but what belongs to it: the rest is handled where it is.
            let missing = conn.need_bytes.saturating_sub(conn.partial.len());
            let take = match missing {
                0 | 1 => memchr::memchr(b'\n', bytes).map_or(bytes.len(), |at| at + 1),
                _ => missing.min(bytes.len()),
            };
            conn.partial.extend_from_slice(&bytes[..take]);
            bytes = &bytes[take..];
            if conn.partial.len() < conn.need_bytes {
                return;
            }
            let mut partial = std::mem::take(&mut conn.partial);
            let used = self.consume(id, &partial);
            let Some(conn) = self.conns.get_mut(id).filter(|conn| conn.is_open()) else { return };
            if used < partial.len() {
                partial.drain(..used);
                conn.partial = partial;
            }
            if bytes.is_empty() || self.put_off(id, bytes) {
                return;
            }
        }
        let used = self.consume(id, bytes);
        if used < bytes.len() && self.put_off(id, &bytes[used..]) {
            return;
        }
        if let Some(conn) = self.conns.get_mut(id)
            && conn.is_open()
            && used < bytes.len()
        {
            conn.partial = Vec::new();
            // What is announced is reserved only as far as it is not the client's mere word.
            let reserve = conn.need_bytes.saturating_add(2).min(4 * (bytes.len() - used));
            conn.partial.reserve(reserve);
            conn.partial.extend_from_slice(&bytes[used..]);
        }
    }

    /// Whether the input of a connection may be handled further.
    pub(super) fn may_go_on(&self, id: ConnId) -> bool {
        !self.budget.is_spent()
            && self.conns.get(id).is_some_and(|conn| conn.is_open() && !conn.brakes.holds())
    }

    /// Puts off what cannot be handled now; `false` if it can.
    pub(super) fn put_off(&mut self, id: ConnId, bytes: &[u8]) -> bool {
        let is_spent = self.budget.is_spent();
        let Some(conn) = self.conns.get_mut(id).filter(|conn| conn.is_open()) else { return false };
        if let Some(claim) = &conn.claim {
            // A peer goes on with all its interest at once; it is not read from meanwhile.
            let is_greeted = conn.route.as_ref().is_some_and(|route| route.is_greeted());
            let is_decided = is_greeted || claim.holds;
            if !is_decided && conn.partial.len() + bytes.len() > UNDECIDED_BYTES_MAX {
                tracing::error!(
                    "{} - over {UNDECIDED_BYTES_MAX} bytes sent before the login was decided",
                    conn.label()
                );
                conn.claim = None;
                self.refuse_login(id);
            } else {
                conn.partial.extend_from_slice(bytes);
            }
            return true;
        }
        // Compression may have begun with the last operation.
        if conn.layers.begins_s2() {
            conn.layers.put_aside(bytes);
            return true;
        }
        let must_wait = conn.waits || is_spent || conn.brakes.holds();
        if must_wait && !bytes.is_empty() {
            conn.partial.extend_from_slice(bytes);
            self.wait(id);
        }
        must_wait
    }

    /// What there is of its input waits.
    fn wait(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if !std::mem::replace(&mut conn.waits, true) {
            conn.timing.waits_since = self.arrived;
        }
        self.stand_in_line(id);
    }

    /// Has a connection whose input waits go on when it is its turn, unless it is held back.
    pub(super) fn stand_in_line(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id).filter(|conn| conn.waits) else { return };
        let has_much = conn.partial.len() > WAITING_BYTES_MAX;
        if !conn.brakes.holds() && !std::mem::replace(&mut conn.in_line, true) {
            self.line.push_back(id);
        }
        if has_much {
            self.brake(id, |brakes| brakes.turn = true);
        } else {
            self.release(id, |brakes| brakes.turn = false);
        }
    }

    /// Goes on with input that waits, each connection in its turn.
    pub(super) fn advance_input(&mut self) {
        while self.budget.has_left()
            && let Some(id) = self.line.pop_front()
        {
            self.go_on(id);
        }
    }

    fn go_on(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.in_line = false;
        if !conn.is_open() || !conn.waits || conn.brakes.holds() {
            return;
        }
        conn.waits = false;
        let mut rest = std::mem::take(&mut conn.partial);
        let arrived = std::mem::replace(&mut self.arrived, conn.timing.waits_since);
        self.budget.serve_input();
        let used = self.consume(id, &rest);
        if let Some(conn) = self.conns.get_mut(id).filter(|conn| conn.is_open()) {
            rest.drain(..used);
            if conn.claim.is_some() || conn.layers.begins_s2() {
                self.put_off(id, &rest);
            } else {
                // What a long wait has made of it is not kept.
                rest.shrink_to(4 * rest.len());
                conn.partial = rest;
                if !conn.partial.is_empty() && !self.may_go_on(id) {
                    self.wait(id);
                }
            }
        }
        self.arrived = arrived;
        self.keep_pace(id, 0);
        let waits = self.conns.get(id).is_some_and(|conn| conn.waits);
        if !waits {
            self.release(id, |brakes| brakes.turn = false);
            self.resume_unwrapping(id);
        }
    }

    /// All that a connection has sent is handled: so is its end, if that has come.
    pub(super) fn end_if_heard(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id).filter(|conn| conn.is_open()) else { return };
        if conn.has_unheard() {
            return;
        }
        if let Some(failed) = conn.ended.take() {
            let reason = if failed { Reason::ReadError } else { Reason::ClientClosed };
            self.fail(id, None, reason);
        }
    }
}
