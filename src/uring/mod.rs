//! The kernel, through io_uring: one reactor per shard, owned by the shard's thread.
//!
//! Requests (`read`, `send`, `close`, …) are queued at no cost. [`Reactor::turn`] submits all of
//! them and waits with one system call, enters again without waiting while the kernel has more to
//! do (at most `ENTERS_MAX` times; since Linux 6.14 one entry does only twenty things), and
//! returns the events: first sends and closes, then input.
//!
//! - `ring`: the two queues; every operation goes through `Ring::push`
//! - `op`: operations, and `token`: their names (kind, slot, 24 bits of generation in `user_data`)
//! - `pool`: the memory that the kernel receives into
//! - `listen`: listeners and their accepts
//! - `socket`: the state of each socket; `receive`, `send` and `close` change it
//! - `file`: operations on files
//! - `waker`: waking this reactor, and others by way of its ring
//! - `probe`: the tier of features that the host has
//! - `memory`: memory that the allocator keeps after a burst
//!
//! | tier | from Linux | receive | wake |
//! |---|---|---|---|
//! | `base` | 5.11 | poll, then receive into a chunk | eventfd |
//! | `rings` | 6.0 | multishot from a buffer ring | `MSG_RING` |
//! | `taskrun` | 6.1 | same, with deferred task running | same |
//!
//! A tier is found by using it, never by the version of the kernel.
//!
//! **Memory** shown to the kernel belongs to the reactor until the operation's *last* completion
//! (mind `MORE` and `NOTIF`). A slot, with its descriptor and its batch, is given up when its last
//! operation has completed. A dropped reactor waits for all of them and leaks memory that the
//! kernel does not give back.
//!
//! **Bounds.** ENOBUFS is no error: sockets wait for chunks in line, and while chunks are short
//! each receives once, in turn. Each listener has eight one-shot accepts in the kernel
//! (`ACCEPTS_MAX`): a multishot accept would take a crowd of a thousand in one system call. EMFILE
//! at accept stops accepting for 250 ms (`ACCEPT_REST`). A listener is shut down, its accepts are
//! cancelled, and it is closed when both have completed, so a restart finds its port free.

#![expect(unsafe_code, reason = "the kernel reads and writes memory that the compiler cannot see")]

mod close;
#[cfg(test)]
mod faults;
mod file;
mod listen;
mod memory;
mod op;
mod pool;
mod probe;
mod receive;
mod ring;
mod send;
mod socket;
#[cfg(test)]
mod tests;
mod token;
mod waker;

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use io_uring::cqueue;
use io_uring::types::{Napi, Timespec};

use crate::disk::DiskDone;
use crate::host::Tier;
use crate::measure::Histogram;

pub use close::Closing;
pub use memory::give_back_memory;
pub use pool::Chunk;
pub use probe::{Probe, Unavailable, probe};
pub use send::Batch;
pub use socket::SocketId;
pub use waker::Waker;

use file::Files;
use listen::Listeners;
use pool::Pool;
use receive::Hungry;
use ring::{Completion, Ring};
use send::Sends;
use socket::Sockets;
use token::{OpToken, TokenKind};
use waker::Wakes;

/// Settings of a reactor.
#[derive(Debug, Clone)]
pub struct ReactorOptions {
    /// The tier to use; `None` is the best that works.
    pub tier: Option<Tier>,
    /// Bytes of one receive chunk.
    pub chunk_bytes: u32,
    /// Receive chunks: the most input that can wait for the shard at once.
    pub chunks: u16,
    /// Entries of the submission queue: the most operations of one system call.
    pub entries: u32,
    /// Bytes asked of one send at most. Progress is reported after each.
    pub send_bytes_max: usize,
    /// Bytes from which a send is not copied, on sockets that allow it. `usize::MAX`: all are
    /// copied.
    pub zero_copy_from: usize,
    /// Longest wait of a graceful close for the peer's own close.
    pub linger: Duration,
    /// Microseconds for which the kernel polls the queues of network cards before a wait sleeps. 0:
    /// interrupts only. It makes no difference on the loopback interface.
    pub napi_us: u32,
}

impl Default for ReactorOptions {
    fn default() -> Self {
        Self {
            tier: None,
            chunk_bytes: 64 * 1024,
            chunks: 16,
            entries: 4096,
            send_bytes_max: 1024 * 1024,
            zero_copy_from: usize::MAX,
            linger: Duration::from_secs(2),
            napi_us: 0,
        }
    }
}

/// The longest sleep of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TurnWait {
    /// No sleep.
    No,
    /// A sleep until an event, but no longer than this.
    For(Duration),
    /// A sleep until an event.
    Forever,
}

/// Whether the network card may read a socket's big sends from the reactor's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZeroCopy {
    /// Copied sends only; right for peers on the same host, where not copying is slower.
    Never,
    /// Sends without a copy from [`ReactorOptions::zero_copy_from`] bytes on.
    Allowed,
}

/// The name of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ListenerId(pub u32);

/// An event of a turn. After [`Reactor::close`] the only event of a socket is [`Event::Closed`].
///
/// `S` is a connection that is not adopted yet, `C` received bytes on loan: other reactors than
/// this one have other types.
#[derive(Debug)]
pub enum Event<S = OwnedFd, C = Chunk> {
    /// A new connection.
    Accepted {
        /// The listener that accepted it.
        listener: ListenerId,
        /// The connection, blocking and close-on-exec; not yet adopted.
        socket: S,
    },
    /// A failed accept, after which accepting rests until [`Reactor::accept`].
    AcceptFailed {
        /// The listener that rests.
        listener: ListenerId,
        /// The error, for instance EMFILE.
        error: io::Error,
    },
    /// The end of a listener: its port is free.
    StoppedListening {
        /// The listener that is closed.
        listener: ListenerId,
    },
    /// Received bytes. The chunk must be recycled.
    Received {
        /// The socket that received them.
        socket: SocketId,
        /// The chunk, whose bytes [`Reactor::bytes`] returns.
        chunk: C,
    },
    /// The end of the peer's bytes. The socket can still be sent to, and must be closed.
    Ended {
        /// The socket whose input has ended.
        socket: SocketId,
        /// The error, unless the peer has closed its sending side in order.
        error: Option<io::Error>,
    },
    /// Progress of a batch.
    Sent {
        /// The socket of the batch.
        socket: SocketId,
        /// Bytes sent since the last report; can be 0 when only the batch comes home.
        bytes: usize,
        /// The batch, when all of it is sent and the kernel is done with it.
        batch: Option<Batch>,
    },
    /// A failure of a batch, or of the rest of it. The socket must be closed.
    SendFailed {
        /// The socket of the batch.
        socket: SocketId,
        /// The cause of the failure.
        error: io::Error,
        /// The batch, back from the kernel.
        batch: Batch,
    },
    /// The end of a socket: its descriptor is closed, its slot is free.
    Closed {
        /// The socket's id, for the last time.
        socket: SocketId,
        /// The batch in flight when the socket was closed, sent or not.
        batch: Option<Batch>,
    },
    /// The result of a disk operation.
    Disk(Box<DiskDone>),
    /// A wake of the reactor by another thread; one event for any number of wakes.
    Woken,
}

/// Counters of a reactor since its start.
#[derive(Debug, Clone)]
pub struct Counters {
    /// Turns taken.
    pub turns: u64,
    /// System calls: entries into the kernel by way of the ring.
    pub enters: u64,
    /// Completions that the kernel has reported.
    pub completions: u64,
    /// Turns in which the reactor had been woken.
    pub woken: u64,
    /// Bytes that each completed send has taken.
    pub sent_bytes: Histogram,
}

/// The io_uring of a thread, with its sockets.
pub struct Reactor {
    // Closed first: the fields below have memory that the kernel knows.
    ring: Ring,
    pool: Pool,
    sockets: Sockets,
    files: Files,
    can: Probe,
    sends: Sends,
    linger: Box<Timespec>,
    listeners: Listeners,
    /// Sockets to be closed that have unsent output. The kernel frees the output of each, megabytes
    /// perhaps, while it is closed: one in a turn, so that many of them do not delay the others.
    discarded: VecDeque<SocketId>,
    /// Sockets that wait for chunks.
    hungry: Hungry,
    /// Turns taken; moves the order in which receives are started.
    turns: usize,
    wakes: Wakes,
    /// Events of sends and closes, which come before those of input.
    early: Vec<Event>,
    late: Vec<Event>,
    completions: Vec<Completion>,
    is_dropping: bool,
    /// Whether peers that have taken all output are no longer waited for.
    is_hurried: bool,
}

/// Rounds in which a dropped reactor waits for the kernel at most, and the wait of each.
const DROP_ROUNDS_MAX: usize = 100;
const DROP_WAIT: Duration = Duration::from_millis(50);

impl Reactor {
    /// Sets up a reactor for the calling thread, which is the only one that may use it.
    pub fn new(options: &ReactorOptions) -> Result<Self, Unavailable> {
        let tier = match options.tier {
            Some(tier) => tier,
            None => probe(None)?.tier,
        };
        let failed = |error| Unavailable::at_use(tier, error);
        let ring =
            Ring::new(tier, options.entries).map_err(|error| Unavailable::at_setup(tier, error))?;
        let can = probe::examine(tier, &ring)?;
        if options.napi_us > 0 {
            let mut napi = Napi::new().set_busy_poll_timeout(options.napi_us);
            ring.submitter().register_napi(&mut napi).map_err(Unavailable::NoNapi)?;
        }
        let mut pool = Pool::new(options.chunks, options.chunk_bytes);
        if tier > Tier::Base {
            pool.register(&ring).map_err(|error| match error.raw_os_error() {
                Some(libc::EINVAL) => Unavailable::TooOld { tier, lacks: "buffer rings" },
                Some(libc::ENOMEM) => Unavailable::Memlock,
                _ => failed(error),
            })?;
        }
        let ring_fd = can.ring_to_ring.then(|| ring.duplicate_fd()).transpose().map_err(failed)?;
        let mut reactor = Self {
            ring,
            pool,
            sockets: Sockets::default(),
            files: Files::default(),
            can,
            sends: Sends::new(options, can.zero_copy),
            linger: Box::new(Timespec::from(options.linger)),
            listeners: Listeners::default(),
            discarded: VecDeque::new(),
            hungry: Hungry::default(),
            turns: 0,
            wakes: Wakes::new(Waker::new(ring_fd).map_err(failed)?),
            early: Vec::new(),
            late: Vec::new(),
            completions: Vec::new(),
            is_dropping: false,
            is_hurried: false,
        };
        reactor.wakes.read(&mut reactor.ring, &reactor.pool);
        Ok(reactor)
    }

    /// Returns the tier in use.
    pub fn tier(&self) -> Tier {
        self.can.tier
    }

    /// Returns the counters of the reactor since its start.
    pub fn counters(&self) -> Counters {
        Counters {
            turns: self.turns as u64,
            enters: self.ring.enters(),
            completions: self.ring.completions(),
            woken: self.wakes.turns(),
            sent_bytes: self.sends.sent_bytes().clone(),
        }
    }

    /// Returns the tier in use, and capabilities beyond it.
    pub fn capabilities(&self) -> Probe {
        self.can
    }

    /// Frees memory that only more sockets than there are now would need.
    pub fn shrink(&mut self) {
        self.sockets.shrink();
    }

    /// Submits all that was asked for, waits, and appends events to `events`: first those of sends
    /// and closes, then those of input.
    pub fn turn(&mut self, wait: TurnWait, events: &mut Vec<Event>) -> io::Result<()> {
        self.turns = self.turns.wrapping_add(1);
        let is_all_fed = self.feed_the_hungry();
        let has_news = !self.early.is_empty() || !self.late.is_empty();
        let has_work = has_news || !is_all_fed || !self.discarded.is_empty();
        self.ring.enter(if has_work { TurnWait::No } else { wait })?;
        self.close_discarded();
        self.reap();
        events.append(&mut self.early);
        if self.wakes.take() {
            events.push(Event::Woken);
        }
        events.append(&mut self.late);
        Ok(())
    }

    /// Begins to accept connections on `listener`.
    pub fn listen(&mut self, listener: OwnedFd) -> ListenerId {
        let id = self.listeners.add(listener);
        self.listeners.accept(id, &mut self.ring);
        id
    }

    /// Goes on accepting after [`Event::AcceptFailed`].
    pub fn accept(&mut self, listener: ListenerId) {
        self.listeners.resume(listener, &mut self.ring);
    }

    /// Stops accepting. [`Event::StoppedListening`] follows when the port is free; until then
    /// connections that were already there may still be reported.
    pub fn stop_listening(&mut self, listener: ListenerId) {
        self.listeners.stop(listener, &mut self.ring);
        self.late.extend(self.listeners.settle(listener));
    }

    /// Takes over a connected socket; nothing is read from it before [`Reactor::read`].
    pub fn adopt(&mut self, socket: OwnedFd, zero_copy: ZeroCopy) -> SocketId {
        // Where a descriptor is non-blocking the kernel answers EAGAIN instead of waiting.
        let _ = rustix::io::ioctl_fionbio(&socket, false);
        let id = self.sockets.insert(socket);
        self.sockets.at(id.slot).zero_copy = zero_copy == ZeroCopy::Allowed;
        id
    }

    /// Returns the received bytes of a chunk.
    pub fn bytes(&self, chunk: &Chunk) -> &[u8] {
        self.pool.bytes(chunk)
    }

    /// Gives a chunk back, to be received into again.
    pub fn recycle(&mut self, chunk: Chunk) {
        self.pool.recycle(chunk);
    }

    /// Returns a handle by which other threads wake this reactor.
    pub fn waker(&self) -> Waker {
        self.wakes.own().clone()
    }

    /// Wakes another reactor with this turn's submission, or by a system call where rings cannot
    /// reach each other.
    pub fn wake(&mut self, other: &Waker) {
        self.wakes.wake(other, self.can.ring_to_ring, &mut self.ring);
    }

    fn reap(&mut self) {
        let mut completions = std::mem::take(&mut self.completions);
        self.ring.reap(&mut completions);
        for completion in completions.drain(..) {
            self.on_completion(completion);
        }
        self.completions = completions;
    }

    fn on_completion(&mut self, completion: Completion) {
        let Some(token) = OpToken::from_user_data(completion.user_data) else {
            return;
        };
        let is_last = !cqueue::more(completion.flags);
        // A message from another ring is an operation of that ring.
        if is_last && token.kind != TokenKind::Woken {
            self.ring.retire();
        }
        let result = outcome(completion.result);
        match token.kind {
            TokenKind::Accept => {
                let listener = ListenerId(token.slot);
                self.late.extend(self.listeners.on_accept(listener, result, &mut self.ring));
                self.late.extend(self.listeners.settle(listener));
            }
            TokenKind::BellRead => {
                self.wakes.note();
                if !self.is_dropping {
                    self.wakes.read(&mut self.ring, &self.pool);
                }
            }
            TokenKind::Woken => self.wakes.note(),
            TokenKind::Wake => self.wakes.on_wake(token.slot, &result),
            TokenKind::CancelAccept => {
                let listener = ListenerId(token.slot);
                self.listeners.on_cancelled(listener);
                self.late.extend(self.listeners.settle(listener));
            }
            TokenKind::Disk | TokenKind::DiskSync => self.on_disk(token, result),
            _ => self.on_socket(token, result, completion.flags),
        }
    }

    fn on_socket(&mut self, token: OpToken, result: io::Result<u32>, flags: u32) {
        let Some(socket) = self.sockets.of_token(token) else {
            debug_assert!(false, "a slot was given up before its last completion");
            return;
        };
        let is_last = !cqueue::more(flags);
        if is_last {
            self.sockets.at(socket.slot).ops -= 1;
        }
        match token.kind {
            TokenKind::Receive => self.on_receive(socket, result, flags),
            TokenKind::Poll => self.on_poll(socket, result),
            TokenKind::CancelReceive => self.on_receive_cancelled(socket),
            TokenKind::Send if cqueue::notif(flags) => self.on_send_released(socket),
            TokenKind::Send => self.on_send(socket, result, !is_last),
            TokenKind::Linger => self.on_linger(socket, result),
            TokenKind::LingerTimer => self.on_linger_timer(socket),
            _ => {}
        }
        self.advance_closing(socket);
    }
}

/// Whether the same operation can be asked for again at once after this error.
fn is_interrupted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN))
}

/// Reads the kernel's "result or minus the error".
fn outcome(result: i32) -> io::Result<u32> {
    u32::try_from(result).map_err(|_| io::Error::from_raw_os_error(result.wrapping_neg()))
}

impl Drop for Reactor {
    /// Takes everything back from the kernel before the memory goes.
    fn drop(&mut self) {
        self.is_dropping = true;
        self.files.give_up();
        while !self.discarded.is_empty() {
            self.close_discarded();
        }
        self.hungry.clear();
        for socket in self.sockets.occupied() {
            self.let_go(socket);
        }
        for listener in self.listeners.ids() {
            self.stop_listening(listener);
        }
        self.wakes.own().wake();
        for _ in 0..DROP_ROUNDS_MAX {
            if self.ring.in_flight() == 0 || self.ring.enter(TurnWait::For(DROP_WAIT)).is_err() {
                break;
            }
            self.reap();
            self.early.clear();
            self.late.clear();
        }
        if self.ring.in_flight() > 0 {
            // The kernel may still read and write it, even after the ring is closed.
            std::mem::forget(std::mem::replace(&mut self.pool, Pool::new(0, 0)));
            self.sockets.take_sending().for_each(std::mem::forget);
            self.files.forget();
        }
    }
}
