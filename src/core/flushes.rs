//! Connections to be flushed, and their order.
//!
//! A send costs more than anything else that is done for a connection, and one message may be for
//! ten thousand. So a turn sends no more than its budget allows, and output for few subscribers
//! does not wait behind a message to very many: flushes come from two queues by turns.

use std::collections::VecDeque;

use crate::core::conn::Conn;
use crate::core::outputs::Output;
use crate::core::{Core, Times};
use crate::interest::ids::ConnId;
use crate::measure::NEVER;

/// Subscribers of a message above which it goes to very many.
pub(crate) const MANY: usize = 256;

/// Connections with output to be sent.
#[derive(Debug, Default)]
pub(crate) struct Flushes {
    /// Connections to be flushed soon, and connections with a message that goes to very many.
    queues: [VecDeque<ConnId>; 2],
    /// Index of the queue that is next, if both have connections.
    next: usize,
}

impl Flushes {
    pub(crate) fn is_empty(&self) -> bool {
        self.queues.iter().all(VecDeque::is_empty)
    }

    /// Takes the next connection; returns it with the index of its queue.
    fn pop(&mut self) -> Option<(ConnId, usize)> {
        let at = self.next;
        self.next = 1 - at;
        match self.queues[at].pop_front() {
            Some(id) => Some((id, at)),
            None => Some((self.queues[1 - at].pop_front()?, 1 - at)),
        }
    }

    pub(crate) fn shrink(&mut self) {
        self.queues.iter_mut().for_each(VecDeque::shrink_to_fit);
    }
}

/// Output of a connection on its way to the kernel. Times are nanoseconds since the start.
#[derive(Debug)]
pub(crate) struct Outgoing {
    /// Whether there is output to flush.
    is_dirty: bool,
    /// Whether the connection is in the queue for early flushes, and in the one for the others.
    queued: [bool; 2],
    /// Arrival of the oldest input that output which is not yet taken answers to.
    oldest_arrived: u64,
    /// Turn of the last message delivered; at first, the opening.
    last_delivered: u64,
    /// Time at which the batch in flight was handed to the kernel.
    send_started: u64,
}

impl Outgoing {
    /// A connection without output that is opened at `now`.
    pub(crate) fn new(now: u64) -> Self {
        Self {
            is_dirty: false,
            queued: [false; 2],
            oldest_arrived: NEVER,
            last_delivered: now,
            send_started: 0,
        }
    }

    pub(crate) fn is_dirty(&self) -> bool {
        self.is_dirty
    }

    pub(crate) fn last_delivered(&self) -> u64 {
        self.last_delivered
    }

    /// Marks the output as clean: it is about to be taken.
    pub(crate) fn begin_flush(&mut self) {
        self.is_dirty = false;
    }

    /// Notes that a batch was taken at `now`. Returns the arrival of the oldest input that it
    /// answers to. Output that did not fit into it (`has_more`) is taken to be as old as this turn.
    pub(crate) fn on_taken(&mut self, has_more: bool, now: u64) -> u64 {
        self.send_started = now;
        std::mem::replace(&mut self.oldest_arrived, if has_more { now } else { NEVER })
    }

    /// Returns the time by which the batch in flight must be sent, if it may take
    /// `write_deadline_ns`.
    pub(crate) fn write_due(&self, write_deadline_ns: u64) -> u64 {
        self.send_started.saturating_add(write_deadline_ns)
    }
}

impl Conn {
    /// Notes output that was appended and answers to input that arrived at `arrived` ([`NEVER`]: to
    /// none); `soon`, if it does not go to very many.
    #[inline]
    pub(crate) fn mark_dirty(&mut self, arrived: u64, flushes: &mut Flushes, soon: bool) {
        let outgoing = &mut self.outgoing;
        if !outgoing.is_dirty {
            outgoing.oldest_arrived = outgoing.oldest_arrived.min(arrived);
        }
        outgoing.is_dirty = true;
        let at = usize::from(!soon);
        if !std::mem::replace(&mut outgoing.queued[at], true) {
            flushes.queues[at].push_back(self.id);
        }
    }

    /// Notes a message that was appended to the output. With output before it the connection is in
    /// a queue already.
    #[inline]
    pub(crate) fn on_delivered(&mut self, times: &Times, flushes: &mut Flushes, soon: bool) {
        if !self.outgoing.is_dirty {
            self.outgoing.last_delivered = times.now;
            self.mark_dirty(times.arrived, flushes, soon);
        }
    }

    /// Notes output that was there before, or that a layer has made.
    pub(crate) fn flush(&mut self, flushes: &mut Flushes, soon: bool) {
        self.mark_dirty(NEVER, flushes, soon);
    }
}

impl Core {
    /// Returns the next connection to flush, as far as the budget allows.
    pub(crate) fn next_flush(&mut self) -> Option<Output> {
        while self.budget.sends()
            && let Some((id, at)) = self.out.flushes.pop()
        {
            let Some(conn) = self.conns.get_mut(id) else { continue };
            conn.outgoing.queued[at] = false;
            if conn.outgoing.is_dirty() {
                return Some(Output::Flush(id));
            }
        }
        None
    }
}
