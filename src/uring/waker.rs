//! Waking a shard that sleeps in its ring.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};

/// Wakes one reactor from any thread.
#[derive(Debug, Clone)]
pub struct Waker {
    fds: Arc<Fds>,
}

#[derive(Debug)]
struct Fds {
    /// A read of this is always waiting in the ring.
    event: OwnedFd,
    /// The ring itself, where other rings can post into it.
    ring: Option<OwnedFd>,
}

impl Waker {
    /// `ring` is a descriptor of the reactor's ring, when that can be posted to.
    pub(super) fn new(ring: Option<OwnedFd>) -> io::Result<Self> {
        // Blocking: a read of a non-blocking descriptor would not wait in the ring but fail.
        let event = eventfd(0, EventfdFlags::CLOEXEC)?;
        Ok(Self { fds: Arc::new(Fds { event, ring }) })
    }

    /// Wakes the reactor by a system call; for threads that have no reactor of their own.
    pub fn wake(&self) {
        // It can only fail when 2^64 wakes went unread; then the reactor is awake anyway.
        let _ = rustix::io::write(&self.fds.event, &1u64.to_ne_bytes());
    }

    pub(super) fn event_fd(&self) -> RawFd {
        self.fds.event.as_raw_fd()
    }

    pub(super) fn ring_fd(&self) -> Option<RawFd> {
        self.fds.ring.as_ref().map(AsRawFd::as_raw_fd)
    }

    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.fds, &other.fds)
    }
}
