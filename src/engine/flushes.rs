//! Who is to be flushed, and in which order.
//!
//! A send costs more than anything else that is done for a connection, and one message may be for
//! ten thousand. So a turn sends no more than its budget allows, and what goes to few does not
//! wait behind what goes to very many: of two that are flushed one is of the ones, one of the
//! others.

#![forbid(unsafe_code)]

use std::collections::VecDeque;

use super::conn::Conn;
use super::{Action, ConnId, Engine};

/// A message to more than this many subscribers goes to very many.
pub(super) const MANY: usize = 256;

/// Connections that have something to be sent.
#[derive(Debug, Default)]
pub(super) struct Flushes {
    /// Those that are flushed soon, and those that have got what goes to very many.
    queues: [VecDeque<ConnId>; 2],
    /// The queue that is next, if there is anybody in both.
    next: usize,
}

impl Flushes {
    pub(super) fn is_empty(&self) -> bool {
        self.queues.iter().all(VecDeque::is_empty)
    }

    /// The next one, and the queue it was in.
    fn pop(&mut self) -> Option<(ConnId, usize)> {
        let at = self.next;
        self.next = 1 - at;
        match self.queues[at].pop_front() {
            Some(id) => Some((id, at)),
            None => Some((self.queues[1 - at].pop_front()?, 1 - at)),
        }
    }

    pub(super) fn shrink(&mut self) {
        self.queues.iter_mut().for_each(VecDeque::shrink_to_fit);
    }
}

impl Conn {
    /// There is something to be sent; `soon`, if it does not go to very many.
    pub(super) fn flush(&mut self, flushes: &mut Flushes, soon: bool) {
        self.dirty = true;
        let at = usize::from(!soon);
        if !std::mem::replace(&mut self.flush_queued[at], true) {
            flushes.queues[at].push_back(self.id);
        }
    }
}

impl Engine {
    /// Whom to flush next, as far as the budget allows.
    pub(super) fn next_flush(&mut self) -> Option<Action> {
        while self.budget.sends()
            && let Some((id, at)) = self.flushes.pop()
        {
            let Some(conn) = self.conns.get_mut(id) else { continue };
            conn.flush_queued[at] = false;
            if conn.dirty {
                return Some(Action::Flush(id));
            }
        }
        None
    }
}
