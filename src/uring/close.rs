//! The end of a socket: at once, or after its last output.
//!
//! A graceful close has these states:
//!
//! 1. `Flushing`: the batch in flight is sent to its end, and the receive is cancelled.
//! 2. `Lingering`: the sending side is shut down. Input is discarded until the peer closes too, at
//!    most 2 s: closing over unread input would make the kernel drop unsent output. At the end of
//!    the process `hurry` waits only where that would happen.
//! 3. `Ending`: the last completions are awaited; then `Event::Closed`.
//!
//! An abort goes straight to `Ending`, with a reset. Of sockets with unsent output one per turn is
//! closed (`Discarded`): the kernel frees up to 4 MiB of one in 0.1 ms of this thread's time.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use rustix::net::{Shutdown, shutdown, sockopt};

use super::socket::{Receive, SocketId, SocketPhase};
use super::token::TokenKind;
use super::{Event, Reactor, is_interrupted, op};

/// The way in which a socket is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closing {
    /// After the last output: the batch in flight is sent to its end. Then the sending side is shut
    /// down, and input is discarded until the peer closes too or [`super::ReactorOptions::linger`]
    /// has passed.
    Graceful,
    /// A close at once: unsent output is dropped, by the kernel too, and the peer sees a reset.
    Abort,
}

impl Reactor {
    /// Closes a socket. Later turns report only [`Event::Closed`] of it. Earlier events that the
    /// caller has not handled yet are to be skipped, and their chunks and batches taken back. A
    /// graceful close may be followed by an abort; a second close of the same kind has no effect.
    pub fn close(&mut self, socket: SocketId, how: Closing) {
        let Some(slot) = self.sockets.get_mut(socket) else {
            return;
        };
        let is_first = slot.is_open();
        let is_worse = how == Closing::Abort && !slot.is_over();
        if !is_first && !is_worse {
            return;
        }
        slot.wanted = false;
        if how == Closing::Abort {
            self.abort(socket);
        } else {
            self.sockets.at(socket.slot).phase = SocketPhase::Flushing;
            self.cancel_receive(socket);
        }
        self.advance_closing(socket);
    }

    /// Ends graceful closes early, because the process is about to end: peers that have taken all
    /// output are no longer waited for.
    pub fn hurry(&mut self) {
        self.is_hurried = true;
        for socket in self.sockets.occupied() {
            self.end_if_all_is_taken(socket);
        }
    }

    /// Ends the wait for a peer that loses nothing by it: it has taken all output, or has sent
    /// nothing that closing would answer with a reset, so that the kernel delivers the rest.
    /// Returns whether it did.
    fn end_if_all_is_taken(&mut self, socket: SocketId) -> bool {
        let slot = self.sockets.at(socket.slot);
        if !self.is_hurried || slot.phase != SocketPhase::Lingering {
            return false;
        }
        let is_safe = slot.fd().is_none_or(|fd| {
            rustix::io::ioctl_fionread(fd).is_ok_and(|unread| unread == 0) || unsent(fd) == Some(0)
        });
        if is_safe {
            self.end_lingering(socket);
        }
        is_safe
    }

    /// Takes the next step of closing when the kernel's answers allow it.
    pub(super) fn advance_closing(&mut self, socket: SocketId) {
        let slot = self.sockets.at(socket.slot);
        if slot.phase == SocketPhase::Flushing
            && slot.sending.as_ref().is_none_or(|sending| sending.is_at_rest())
            && slot.receive == Receive::Idle
        {
            if slot.ended {
                slot.phase = SocketPhase::Ending;
            } else {
                self.start_lingering(socket);
            }
        }
        let slot = self.sockets.at(socket.slot);
        if slot.phase == SocketPhase::Ending {
            let kept = slot.sending.as_ref().map_or(0, |sending| sending.notifications);
            if slot.ops == kept && slot.fd().is_some() {
                if slot.sending.is_some() && !self.is_dropping {
                    slot.phase = SocketPhase::Discarded;
                    self.discarded.push_back(socket);
                    return;
                }
                slot.close_fd();
            }
            if slot.ops == 0 {
                self.finish(socket);
            }
        }
    }

    /// Closes one of the sockets with unsent output. Output sent without a copy waits in the
    /// kernel's queue, perhaps for a peer that never reads: closing takes it out.
    pub(super) fn close_discarded(&mut self) {
        if let Some(socket) = self.discarded.pop_front() {
            let slot = self.sockets.at(socket.slot);
            slot.phase = SocketPhase::Ending;
            slot.close_fd();
            self.advance_closing(socket);
        }
    }

    /// Cancels all operations of a socket; their completions are still awaited.
    pub(super) fn abort(&mut self, socket: SocketId) {
        let slot = self.sockets.at(socket.slot);
        slot.phase = SocketPhase::Ending;
        if let Some(fd) = slot.fd() {
            // A peer that reads nothing must not keep output in the kernel.
            let _ = sockopt::set_socket_linger(fd, Some(Duration::ZERO));
            // Wakes operations that a cancellation cannot reach.
            let _ = shutdown(fd, Shutdown::Both);
        }
        let is_sending = slot.sending.as_ref().is_some_and(|sending| sending.part_in_flight);
        let (lingers, timed) = (slot.lingers, slot.timed);
        self.cancel_receive(socket);
        for (is_there, kind) in [
            (is_sending, TokenKind::Send),
            (lingers, TokenKind::Linger),
            (timed, TokenKind::LingerTimer),
        ] {
            if is_there {
                self.cancel(socket, kind);
            }
        }
    }

    pub(super) fn on_linger(&mut self, socket: SocketId, result: io::Result<u32>) {
        let slot = self.sockets.at(socket.slot);
        slot.lingers = false;
        if slot.phase != SocketPhase::Lingering {
            return;
        }
        let goes_on = match &result {
            Ok(bytes) => *bytes > 0,
            // Closing over input that is still there would cost the peer the last output.
            Err(error) => is_interrupted(error),
        };
        if goes_on {
            if !self.end_if_all_is_taken(socket) {
                self.discard_input(socket);
            }
            return;
        }
        slot.phase = SocketPhase::Ending;
        if slot.timed {
            self.cancel(socket, TokenKind::LingerTimer);
        }
    }

    /// Ends the wait for the peer: its time is up; or there is no timer, and nothing else would
    /// bound the wait.
    pub(super) fn on_linger_timer(&mut self, socket: SocketId) {
        let slot = self.sockets.at(socket.slot);
        slot.timed = false;
        if slot.phase == SocketPhase::Lingering {
            self.end_lingering(socket);
        }
    }

    /// Closes a socket without a further wait: without a reset if all output is sent.
    pub(super) fn let_go(&mut self, socket: SocketId) {
        if self.sockets.at(socket.slot).phase == SocketPhase::Lingering {
            self.end_lingering(socket);
        } else {
            self.close(socket, Closing::Abort);
        }
    }

    /// Ends the wait for the peer's close. The kernel still delivers the output that it has taken.
    fn end_lingering(&mut self, socket: SocketId) {
        let slot = self.sockets.at(socket.slot);
        slot.phase = SocketPhase::Ending;
        let (lingers, timed) = (slot.lingers, slot.timed);
        for (is_there, kind) in [(lingers, TokenKind::Linger), (timed, TokenKind::LingerTimer)] {
            if is_there {
                self.cancel(socket, kind);
            }
        }
    }

    fn start_lingering(&mut self, socket: SocketId) {
        let slot = self.sockets.at(socket.slot);
        slot.phase = SocketPhase::Lingering;
        if let Some(fd) = slot.fd() {
            let _ = shutdown(fd, Shutdown::Write);
        }
        slot.timed = true;
        slot.ops += 1;
        let op = op::timer(socket.token(TokenKind::LingerTimer), &raw const *self.linger);
        // SAFETY: the box is as old as the reactor, is never changed, and the kernel reads it
        // when the entry is submitted, at the latest by `Reactor::drop`, which precedes its end.
        unsafe { self.ring.push(op) };
        self.discard_input(socket);
        self.end_if_all_is_taken(socket);
    }

    fn discard_input(&mut self, socket: SocketId) {
        let slot = self.sockets.at(socket.slot);
        slot.lingers = true;
        slot.ops += 1;
        let op = op::discard(socket.token(TokenKind::Linger), slot.raw_fd());
        // SAFETY: the operation names no memory: where the kernel would copy, it finds null.
        unsafe { self.ring.push(op) };
    }

    fn cancel(&mut self, socket: SocketId, kind: TokenKind) {
        self.sockets.at(socket.slot).ops += 1;
        let op = op::cancel(socket.token(TokenKind::Cancel), socket.token(kind));
        // SAFETY: the operation names no memory.
        unsafe { self.ring.push(op) };
    }

    fn finish(&mut self, socket: SocketId) {
        let sending = self.sockets.at(socket.slot).sending.take();
        let batch = sending.map(|sending| self.sends.take_home(sending));
        self.sockets.remove(socket.slot);
        self.early.push(Event::Closed { socket, batch });
    }
}

/// Returns the bytes of a socket's output, its end included, that the peer has not taken.
fn unsent(fd: BorrowedFd<'_>) -> Option<libc::c_int> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the call writes one number, where one is.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    (result == 0).then_some(bytes)
}
