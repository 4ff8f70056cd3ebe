//! When a connection has to be looked at again.
//!
//! Each connection has at most one live entry, its earliest deadline; an entry that was overtaken
//! is dropped when its time comes. So arming is free while an earlier one stands.

#![forbid(unsafe_code)]

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::ConnId;

/// The deadline of a connection that waits for nothing.
pub(super) const NEVER: u64 = u64::MAX;

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
