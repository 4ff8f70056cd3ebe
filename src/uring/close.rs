//! The end of a socket: at once, or after its last output.
//!
//! A graceful close has these states:
//!
//! 1. `Flushing`: the batch in flight is sent to its end, and the receive is cancelled.
//! 2. `Lingering`: our side is shut down. Input is discarded until the peer closes too, at most 2
//!    s: closing over unread input would make the kernel drop unsent output. At the end of the
//!    process `hurry` waits only where that would happen.
//! 3. `Ending`: the last completions are awaited; then `Event::Closed`.
//!
//! An abort goes straight to `Ending`, with a reset. Of sockets with unsent output one per turn is
//! closed (`Discarded`): the kernel frees up to 4 MiB of one in 0.1 ms of this thread's time.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use rustix::net::{Shutdown, shutdown, sockopt};

use super::socket::{Phase, Receive, SocketId};
use super::token::Kind;
use super::{Event, Reactor, is_interrupted, op};

/// How a socket is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closing {
    /// The batch that is being sent is sent to its end; then our side is shut, and what the peer
    /// still sends is thrown away until it closes too or [`super::Options::linger`] has passed.
    Graceful,
    /// Now. What is not sent is dropped, by the kernel too; the peer sees a reset.
    Abort,
}

impl Reactor {
    /// Closes a socket. No later turn tells of it anything but [`Event::Closed`]; what the last
    /// turn told and the caller has not looked at yet is the caller's to skip, its chunks and
    /// batches to take back. A graceful close may be followed by an abort; closing twice is
    /// closing once.
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
            self.sockets.at(socket.slot).phase = Phase::Flushing;
            self.cancel_receive(socket);
        }
        self.advance_closing(socket);
    }

    /// From now on a peer that has taken all that was said to it is not waited for: the process is
    /// about to end.
    pub fn hurry(&mut self) {
        self.is_hurried = true;
        for socket in self.sockets.occupied() {
            self.end_if_all_is_taken(socket);
        }
    }

    /// Ends the wait for a peer that loses nothing by it: it has taken all there is, or has sent
    /// nothing that closing would answer with a reset, so that the kernel delivers the rest.
    fn end_if_all_is_taken(&mut self, socket: SocketId) -> bool {
        let slot = self.sockets.at(socket.slot);
        if !self.is_hurried || slot.phase != Phase::Lingering {
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
        if slot.phase == Phase::Flushing
            && slot.sending.as_ref().is_none_or(|sending| sending.is_at_rest())
            && slot.receive == Receive::Idle
        {
            if slot.ended {
                slot.phase = Phase::Ending;
            } else {
                self.start_lingering(socket);
            }
        }
        let slot = self.sockets.at(socket.slot);
        if slot.phase == Phase::Ending {
            let kept = slot.sending.as_ref().map_or(0, |sending| sending.notifications);
            if slot.ops == kept && slot.fd().is_some() {
                if slot.sending.is_some() && !self.is_dropping {
                    slot.phase = Phase::Discarded;
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

    /// Closes one of the sockets of which not all was sent. What was sent of them without a copy
    /// waits in the kernel's queue, perhaps for a peer that never reads: closing takes it out.
    pub(super) fn close_discarded(&mut self) {
        if let Some(socket) = self.discarded.pop_front() {
            let slot = self.sockets.at(socket.slot);
            slot.phase = Phase::Ending;
            slot.close_fd();
            self.advance_closing(socket);
        }
    }

    /// Asks the kernel to let go of everything; its answers are still awaited.
    pub(super) fn abort(&mut self, socket: SocketId) {
        let slot = self.sockets.at(socket.slot);
        slot.phase = Phase::Ending;
        if let Some(fd) = slot.fd() {
            // A peer that reads nothing must not keep our bytes in the kernel.
            let _ = sockopt::set_socket_linger(fd, Some(Duration::ZERO));
            // Wakes whatever a cancellation cannot reach.
            let _ = shutdown(fd, Shutdown::Both);
        }
        let is_sending = slot.sending.as_ref().is_some_and(|sending| sending.part_in_flight);
        let (lingers, timed) = (slot.lingers, slot.timed);
        self.cancel_receive(socket);
        for (is_there, kind) in
            [(is_sending, Kind::Send), (lingers, Kind::Linger), (timed, Kind::LingerTimer)]
        {
            if is_there {
                self.cancel(socket, kind);
            }
        }
    }

    pub(super) fn on_linger(&mut self, socket: SocketId, result: io::Result<u32>) {
        let slot = self.sockets.at(socket.slot);
        slot.lingers = false;
        if slot.phase != Phase::Lingering {
            return;
        }
        let goes_on = match &result {
            Ok(bytes) => *bytes > 0,
            // Closing over input that is still there would cost the peer our last word.
            Err(error) => is_interrupted(error),
        };
        if goes_on {
            if !self.end_if_all_is_taken(socket) {
                self.discard_input(socket);
            }
            return;
        }
        slot.phase = Phase::Ending;
        if slot.timed {
            self.cancel(socket, Kind::LingerTimer);
        }
    }

    /// The time is up; or there is no timer, and nothing else would bound the wait.
    pub(super) fn on_linger_timer(&mut self, socket: SocketId) {
        let slot = self.sockets.at(socket.slot);
        slot.timed = false;
        if slot.phase == Phase::Lingering {
            self.end_lingering(socket);
        }
    }

    /// Closes a socket for which there is no more time: softly, if all is said.
    pub(super) fn let_go(&mut self, socket: SocketId) {
        if self.sockets.at(socket.slot).phase == Phase::Lingering {
            self.end_lingering(socket);
        } else {
            self.close(socket, Closing::Abort);
        }
    }

    /// Waits no more for the peer to close. The kernel still delivers what it has taken.
    fn end_lingering(&mut self, socket: SocketId) {
        let slot = self.sockets.at(socket.slot);
        slot.phase = Phase::Ending;
        let (lingers, timed) = (slot.lingers, slot.timed);
        for (is_there, kind) in [(lingers, Kind::Linger), (timed, Kind::LingerTimer)] {
            if is_there {
                self.cancel(socket, kind);
            }
        }
    }

    fn start_lingering(&mut self, socket: SocketId) {
        let slot = self.sockets.at(socket.slot);
        slot.phase = Phase::Lingering;
        if let Some(fd) = slot.fd() {
            let _ = shutdown(fd, Shutdown::Write);
        }
        slot.timed = true;
        slot.ops += 1;
        let op = op::timer(socket.token(Kind::LingerTimer), &raw const *self.linger);
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
        let op = op::discard(socket.token(Kind::Linger), slot.raw_fd());
        // SAFETY: the operation names no memory: where the kernel would copy, it finds null.
        unsafe { self.ring.push(op) };
    }

    fn cancel(&mut self, socket: SocketId, kind: Kind) {
        self.sockets.at(socket.slot).ops += 1;
        let op = op::cancel(socket.token(Kind::Cancel), socket.token(kind));
        // SAFETY: the operation names no memory.
        unsafe { self.ring.push(op) };
    }

    fn finish(&mut self, socket: SocketId) {
        let sending = self.sockets.at(socket.slot).sending.take();
        let batch = sending.map(|sending| self.take_home(sending));
        self.sockets.remove(socket.slot);
        self.early.push(Event::Closed { socket, batch });
    }
}

/// Bytes of a socket's output, its end included, that the peer has not taken.
fn unsent(fd: BorrowedFd<'_>) -> Option<libc::c_int> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the call writes one number, where one is.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    (result == 0).then_some(bytes)
}
