//! Input: the sockets that receive, their chunks and their order.
//!
//! A socket whose receive is to be started waits in one of two queues of the hungry, the young
//! apart from the old. They are fed at the start of each turn, before the kernel works for sockets
//! that are already being read. While there are chunks for all sockets, each receive goes on until
//! it is stopped. When chunks are short, each gets one, in the order of its queue: no socket takes
//! all chunks, and a crowd of newcomers does not delay the sockets there are.

use std::collections::VecDeque;
use std::io;

use io_uring::cqueue;

use super::socket::{Cancel, Receive, SocketId};
use super::token::TokenKind;
use super::{Event, Reactor, op};
use crate::host::Tier;

/// Receives until which a socket is young: connecting takes fewer.
const YOUNG_RECEIVES: u8 = 8;
/// Chunks of which one is for the young when the old wait as well.
const YOUNG_SHARE: usize = 4;

/// Sockets that wait for chunks, in two queues, those that have waited longest first.
#[derive(Default)]
pub(super) struct Hungry {
    old: VecDeque<SocketId>,
    young: VecDeque<SocketId>,
    /// Sockets taken out, over all turns: one turn may have a single chunk.
    taken: usize,
    /// Whether a receive has found no chunk since the last `take_scarcity`.
    is_scarce: bool,
}

impl Hungry {
    fn len(&self) -> usize {
        self.old.len() + self.young.len()
    }

    pub(super) fn clear(&mut self) {
        self.old.clear();
        self.young.clear();
    }

    /// Notes that a receive found no chunk.
    fn note_scarcity(&mut self) {
        self.is_scarce = true;
    }

    /// Whether chunks are short, so that waiting sockets are to receive once each, in turn.
    fn take_scarcity(&mut self, chunks: usize) -> bool {
        let was_scarce = std::mem::take(&mut self.is_scarce) && self.len() > 1;
        was_scarce || self.len() > chunks
    }

    /// Rotates the queues: the socket that is started first may take all chunks, so it has to be
    /// another each time.
    fn rotate(&mut self, turns: usize) {
        for queue in [&mut self.old, &mut self.young] {
            let first = turns % queue.len().max(1);
            queue.rotate_left(first);
        }
    }

    /// Takes out the next socket.
    fn pop(&mut self) -> Option<SocketId> {
        self.taken = self.taken.wrapping_add(1);
        let young_first = self.taken.is_multiple_of(YOUNG_SHARE);
        let (first, second) = match young_first {
            true => (&mut self.young, &mut self.old),
            false => (&mut self.old, &mut self.young),
        };
        first.pop_front().or_else(|| second.pop_front())
    }
}

impl Reactor {
    /// Begins to receive, until [`Reactor::pause`] or [`Event::Ended`].
    pub fn read(&mut self, socket: SocketId) {
        if let Some(slot) = self.sockets.get_mut(socket).filter(|slot| slot.is_open()) {
            slot.wanted = true;
            self.settle_receive(socket);
        }
    }

    /// Stops receiving. Bytes that are received already may still be reported.
    pub fn pause(&mut self, socket: SocketId) {
        if let Some(slot) = self.sockets.get_mut(socket).filter(|slot| slot.is_open()) {
            slot.wanted = false;
            self.settle_receive(socket);
        }
    }

    /// Starts receives for waiting sockets, as far as there are chunks. Returns `false` when others
    /// could be fed in the next turn: a socket that was fed may have nothing to receive, and must
    /// not let the turn sleep while the others have.
    pub(super) fn feed_the_hungry(&mut self) -> bool {
        let chunks = self.pool.available();
        if chunks == 0 || self.hungry.len() == 0 {
            return true;
        }
        let is_scarce = self.hungry.take_scarcity(chunks);
        let with_own_chunk = self.can.tier == Tier::Base;
        if !is_scarce && !with_own_chunk {
            self.hungry.rotate(self.turns);
        }
        let mut fed = 0;
        while fed < chunks
            && let Some(socket) = self.hungry.pop()
        {
            if !self.is_to_be_fed(socket) {
                continue;
            }
            if with_own_chunk {
                self.start_receive_into(socket);
            } else {
                self.start_receive(socket, is_scarce);
            }
            fed += 1;
        }
        self.hungry.len() == 0
    }

    /// Brings the kernel's operation in line with the caller's request.
    pub(super) fn settle_receive(&mut self, socket: SocketId) {
        let slot = self.sockets.at(socket.slot);
        if !slot.is_open() || slot.ended {
            return;
        }
        match (slot.receive, slot.wanted) {
            // A poll that is no longer wanted does no harm: it takes no chunk.
            (Receive::Selecting, false) => self.cancel_receive(socket),
            (Receive::Idle, true) if slot.cancel != Cancel::Asked && !slot.hungry => {
                if self.can.tier == Tier::Base {
                    self.start_poll(socket);
                } else {
                    self.make_hungry(socket);
                }
            }
            _ => {}
        }
    }

    /// Cancels the receive, unless that is already under way.
    pub(super) fn cancel_receive(&mut self, socket: SocketId) {
        let slot = self.sockets.at(socket.slot);
        let Some(kind) = slot.receive_kind().filter(|_| slot.cancel == Cancel::No) else {
            return;
        };
        slot.cancel = Cancel::Asked;
        slot.ops += 1;
        let op = op::cancel(socket.token(TokenKind::CancelReceive), socket.token(kind));
        // SAFETY: the operation names no memory.
        unsafe { self.ring.push(op) };
    }

    pub(super) fn on_receive_cancelled(&mut self, socket: SocketId) {
        let slot = self.sockets.at(socket.slot);
        slot.cancel = if slot.receive == Receive::Idle { Cancel::No } else { Cancel::Answered };
        self.settle_receive(socket);
    }

    pub(super) fn on_poll(&mut self, socket: SocketId, result: io::Result<u32>) {
        self.receive_is_over(socket);
        let slot = self.sockets.at(socket.slot);
        if !slot.is_open() || slot.ended {
            return;
        }
        match result {
            Ok(_) if slot.wanted => self.make_hungry(socket),
            Err(error) if !leaves_as_it_was(&error) => self.end(socket, Some(error)),
            _ => self.settle_receive(socket),
        }
    }

    pub(super) fn on_receive(&mut self, socket: SocketId, result: io::Result<u32>, flags: u32) {
        let chunk = match self.sockets.at(socket.slot).receive {
            Receive::Into(index) => {
                self.pool.take_from_receive(index);
                Some(index)
            }
            _ => cqueue::buffer_select(flags).inspect(|index| self.pool.take_from_ring(*index)),
        };
        if !cqueue::more(flags) {
            self.receive_is_over(socket);
        } else if self.sockets.at(socket.slot).cancel == Cancel::Answered {
            // It goes on although it was told to stop: it was just running then. Tell it again.
            self.sockets.at(socket.slot).cancel = Cancel::No;
        }
        let slot = self.sockets.at(socket.slot);
        let is_heard = slot.is_open() && !slot.ended;
        match (result, chunk) {
            (Ok(len @ 1..), Some(index)) if is_heard => {
                slot.receives = slot.receives.saturating_add(1);
                let chunk = self.pool.lend(index, len);
                self.late.push(Event::Received { socket, chunk });
            }
            (result, chunk) => {
                if let Some(index) = chunk {
                    self.pool.put_back(index);
                }
                if is_heard {
                    self.on_no_bytes(socket, result);
                }
            }
        }
        if self.sockets.at(socket.slot).is_open() {
            self.settle_receive(socket);
        } else {
            self.cancel_receive(socket);
        }
    }

    fn on_no_bytes(&mut self, socket: SocketId, result: io::Result<u32>) {
        match result {
            Ok(_) => self.end(socket, None),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                self.hungry.note_scarcity();
            }
            Err(error) if leaves_as_it_was(&error) => {}
            Err(error) => self.end(socket, Some(error)),
        }
    }

    fn end(&mut self, socket: SocketId, error: Option<io::Error>) {
        let slot = self.sockets.at(socket.slot);
        slot.ended = true;
        slot.wanted = false;
        self.late.push(Event::Ended { socket, error });
    }

    fn receive_is_over(&mut self, socket: SocketId) {
        let slot = self.sockets.at(socket.slot);
        slot.receive = Receive::Idle;
        if slot.cancel == Cancel::Answered {
            slot.cancel = Cancel::No;
        }
    }

    fn make_hungry(&mut self, socket: SocketId) {
        let slot = self.sockets.at(socket.slot);
        if !std::mem::replace(&mut slot.hungry, true) {
            let is_young = slot.receives < YOUNG_RECEIVES;
            let queue = if is_young { &mut self.hungry.young } else { &mut self.hungry.old };
            queue.push_back(socket);
        }
    }

    /// Takes the socket out of the queue; returns whether a receive is to be started for it.
    fn is_to_be_fed(&mut self, socket: SocketId) -> bool {
        let Some(slot) = self.sockets.get_mut(socket) else {
            return false;
        };
        slot.hungry = false;
        slot.is_open()
            && slot.wanted
            && !slot.ended
            && slot.receive == Receive::Idle
            && slot.cancel != Cancel::Asked
    }

    fn start_poll(&mut self, socket: SocketId) {
        let slot = self.sockets.at(socket.slot);
        slot.receive = Receive::Polling;
        slot.ops += 1;
        let op = op::poll_readable(socket.token(TokenKind::Poll), slot.raw_fd());
        // SAFETY: the operation names no memory.
        unsafe { self.ring.push(op) };
    }

    fn start_receive(&mut self, socket: SocketId, once: bool) {
        let slot = self.sockets.at(socket.slot);
        slot.receive = Receive::Selecting;
        slot.ops += 1;
        let token = socket.token(TokenKind::Receive);
        let op = if once {
            op::receive_once(token, slot.raw_fd())
        } else {
            op::receive_many(token, slot.raw_fd())
        };
        // SAFETY: the operation names no memory but the buffer ring, whose chunks the pool does
        // not touch and does not free before the ring is closed, see `Reactor::drop`.
        unsafe { self.ring.push(op) };
    }

    fn start_receive_into(&mut self, socket: SocketId) {
        let Some((index, buffer, len)) = self.pool.take_for_kernel() else {
            self.make_hungry(socket);
            return;
        };
        let slot = self.sockets.at(socket.slot);
        slot.receive = Receive::Into(index);
        slot.ops += 1;
        let op = op::receive_now(socket.token(TokenKind::Receive), slot.raw_fd(), buffer, len);
        // SAFETY: the pool has noted that the kernel holds this chunk, and neither touches nor
        // lends it before `take_from_receive`, which only the completion calls.
        unsafe { self.ring.push(op) };
    }
}

/// Errors that leave the socket as it was.
fn leaves_as_it_was(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ECANCELED | libc::EAGAIN | libc::EINTR))
}
