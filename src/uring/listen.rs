//! Listeners: accepts in the kernel, and the end of accepting.
//!
//! Each listener has [`ACCEPTS_MAX`] accepts in the kernel. A listener that fails for want of
//! something, for instance descriptors, rests until the caller resumes it. A stopped listener is
//! shut down at once, and its descriptor is closed when all its accepts and their cancellations
//! have completed.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::op;
use super::ring::Ring;
use super::token::{OpToken, TokenKind};
use super::{Event, ListenerId};

/// Connections that a turn accepts from one listener at most: a crowd that comes all at once must
/// not delay the connections there are.
pub(super) const ACCEPTS_MAX: u32 = 8;

/// The listeners of a reactor, by [`ListenerId`]; none is ever taken out.
#[derive(Default)]
pub(super) struct Listeners {
    entries: Vec<Listening>,
}

/// The state of a listener.
struct Listening {
    /// The listening socket, until the kernel has let go of it.
    fd: Option<OwnedFd>,
    /// Accepts in the kernel.
    accepts: u32,
    /// Whether accepting has failed, and the caller has not resumed it since.
    is_resting: bool,
    is_stopping: bool,
    /// Cancellations in the kernel.
    cancels: u32,
}

impl Listeners {
    /// Returns the names of all listeners, stopped ones included.
    pub(super) fn ids(&self) -> impl Iterator<Item = ListenerId> + use<> {
        (0..u32::try_from(self.entries.len()).unwrap_or(u32::MAX)).map(ListenerId)
    }

    /// Takes over a listening socket; nothing is accepted before [`Listeners::accept`].
    pub(super) fn add(&mut self, socket: OwnedFd) -> ListenerId {
        // A non-blocking one would answer EAGAIN at once instead of waiting.
        let _ = rustix::io::ioctl_fionbio(&socket, false);
        let id = ListenerId(u32::try_from(self.entries.len()).unwrap_or(u32::MAX));
        self.entries.push(Listening {
            fd: Some(socket),
            accepts: 0,
            is_resting: false,
            is_stopping: false,
            cancels: 0,
        });
        id
    }

    /// Brings the accepts in the kernel to their number again, unless the listener is stopped.
    pub(super) fn accept(&mut self, id: ListenerId, ring: &mut Ring) {
        let entry = self.at(id);
        let Some(fd) = entry.fd.as_ref().filter(|_| !entry.is_stopping) else {
            return;
        };
        for _ in entry.accepts..ACCEPTS_MAX {
            let op = op::accept(OpToken::new(TokenKind::Accept, id.0, 0), fd.as_raw_fd());
            entry.accepts += 1;
            // SAFETY: the operation names no memory.
            unsafe { ring.push(op) };
        }
    }

    /// Accepts again after a failure.
    pub(super) fn resume(&mut self, id: ListenerId, ring: &mut Ring) {
        self.at(id).is_resting = false;
        self.accept(id, ring);
    }

    /// Stops accepting; connections that are under way may still be accepted.
    pub(super) fn stop(&mut self, id: ListenerId, ring: &mut Ring) {
        let entry = self.at(id);
        let Some(fd) = entry.fd.as_ref().filter(|_| !entry.is_stopping) else {
            return;
        };
        entry.is_stopping = true;
        // Refuses the next connection at once, and ends the accept if cancelling is too late.
        // The descriptor stays: an accept that names it may still wait to be submitted.
        let _ = rustix::net::shutdown(fd, rustix::net::Shutdown::Both);
        for _ in 0..entry.accepts {
            entry.cancels += 1;
            let target = OpToken::new(TokenKind::Accept, id.0, 0);
            let op = op::cancel(OpToken::new(TokenKind::CancelAccept, id.0, 0), target);
            // SAFETY: the operation names no memory.
            unsafe { ring.push(op) };
        }
    }

    /// Handles the completion of an accept. Returns the event for the caller, if there is one. The
    /// next accept is queued, unless the listener rests or is stopped.
    pub(super) fn on_accept(
        &mut self,
        id: ListenerId,
        result: io::Result<u32>,
        ring: &mut Ring,
    ) -> Option<Event> {
        let entry = self.at(id);
        entry.accepts -= 1;
        let event = match result {
            Ok(fd) => {
                // SAFETY: the kernel has just made this descriptor for the reactor, and reports it
                // once.
                let socket = unsafe { OwnedFd::from_raw_fd(fd.cast_signed()) };
                Some(Event::Accepted { listener: id, socket })
            }
            Err(_) if entry.is_stopping => None,
            Err(error) if is_of_the_connection(&error) => None,
            Err(error) => {
                let is_known = std::mem::replace(&mut entry.is_resting, true);
                (!is_known).then_some(Event::AcceptFailed { listener: id, error })
            }
        };
        if !entry.is_resting {
            self.accept(id, ring);
        }
        event
    }

    /// Notes the completion of a cancellation.
    pub(super) fn on_cancelled(&mut self, id: ListenerId) {
        self.at(id).cancels -= 1;
    }

    /// Returns the event of a closed listener, once the kernel has let go of a stopped one.
    pub(super) fn settle(&mut self, id: ListenerId) -> Option<Event> {
        let entry = self.at(id);
        let is_over = entry.is_stopping && entry.accepts == 0 && entry.cancels == 0;
        let fd = if is_over { entry.fd.take() } else { None };
        fd.map(|_| Event::StoppedListening { listener: id })
    }

    fn at(&mut self, id: ListenerId) -> &mut Listening {
        &mut self.entries[id.0 as usize]
    }
}

/// Whether a failed accept is due to its connection, so that the next one may succeed.
fn is_of_the_connection(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNABORTED
                | libc::EINTR
                | libc::EPROTO
                | libc::ENETDOWN
                | libc::EHOSTUNREACH
                | libc::ENETUNREACH
        )
    )
}
