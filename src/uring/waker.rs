//! Wakes of a shard that sleeps in its ring.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};

use super::op;
use super::pool::Pool;
use super::ring::Ring;
use super::token::{OpToken, TokenKind};

/// A handle that wakes one reactor from any thread.
#[derive(Debug, Clone)]
pub struct Waker {
    fds: Arc<Fds>,
}

#[derive(Debug)]
struct Fds {
    /// The eventfd, a read of which always waits in the ring.
    event: OwnedFd,
    /// The reactor's ring, if other rings can post into it.
    ring: Option<OwnedFd>,
}

impl Waker {
    /// A waker; `ring` is a descriptor of the reactor's ring, if other rings can post into it.
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

    fn event_fd(&self) -> RawFd {
        self.fds.event.as_raw_fd()
    }

    fn ring_fd(&self) -> Option<RawFd> {
        self.fds.ring.as_ref().map(AsRawFd::as_raw_fd)
    }

    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.fds, &other.fds)
    }
}

/// The wakes that a reactor receives and sends.
pub(super) struct Wakes {
    own: Waker,
    /// Whether the reactor was woken since [`Wakes::take`].
    is_woken: bool,
    /// Turns in which the reactor had been woken.
    turns: u64,
    /// Wakers of reactors that were woken through the ring, by the slot of the token. They are kept
    /// for good: there are as many as shards.
    others: Vec<Waker>,
}

impl Wakes {
    /// Wakes of the reactor that `own` wakes.
    pub(super) fn new(own: Waker) -> Self {
        Self { own, is_woken: false, turns: 0, others: Vec::new() }
    }

    /// Returns the handle by which other threads wake this reactor.
    pub(super) fn own(&self) -> &Waker {
        &self.own
    }

    /// Returns the turns in which the reactor had been woken.
    pub(super) fn turns(&self) -> u64 {
        self.turns
    }

    /// Starts the read of the eventfd, whose completion is a wake. The previous read has completed.
    pub(super) fn read(&self, ring: &mut Ring, pool: &Pool) {
        let token = OpToken::new(TokenKind::BellRead, 0, 0);
        let op = op::read_waker(token, self.own.event_fd(), pool.counter());
        // SAFETY: the counter is memory of the pool that nothing else uses, and only one read of
        // the waker is ever in flight. The pool outlives it, see `Reactor::drop`.
        unsafe { ring.push(op) };
    }

    /// Notes that the reactor was woken.
    pub(super) fn note(&mut self) {
        self.is_woken = true;
    }

    /// Whether the reactor was woken, once for any number of wakes.
    pub(super) fn take(&mut self) -> bool {
        let is_woken = std::mem::take(&mut self.is_woken);
        self.turns += u64::from(is_woken);
        is_woken
    }

    /// Wakes another reactor: by an operation of `ring` where `through_ring` says that rings can
    /// reach one another, else by a system call.
    pub(super) fn wake(&mut self, other: &Waker, through_ring: bool, ring: &mut Ring) {
        let ring_fd = other.ring_fd().filter(|_| through_ring && !other.is(&self.own));
        let Some(ring_fd) = ring_fd else {
            other.wake();
            return;
        };
        let known = self.others.iter().position(|waker| waker.is(other));
        let index = known.unwrap_or_else(|| {
            self.others.push(other.clone());
            self.others.len() - 1
        });
        let slot = u32::try_from(index).unwrap_or(u32::MAX);
        let op = op::wake(OpToken::new(TokenKind::Wake, slot, 0), ring_fd);
        // SAFETY: the operation names no memory; the clone keeps the descriptor open.
        unsafe { ring.push(op) };
    }

    /// Wakes another reactor by a system call if its ring could not be reached.
    pub(super) fn on_wake(&self, slot: u32, result: &io::Result<u32>) {
        if let (Err(_), Some(waker)) = (result, self.others.get(slot as usize)) {
            waker.wake();
        }
    }
}
