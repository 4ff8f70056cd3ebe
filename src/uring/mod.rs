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
//! - `socket`: the state of each socket; `receive`, `send` and `close` change it
//! - `file`: operations on files
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
//! operation has completed. A dropped reactor waits for all of them and leaks what the kernel does
//! not give back.
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
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
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
use pool::Pool;
use receive::Hungry;
use ring::{Completion, Ring};
use send::Sending;
use socket::Sockets;
use token::{Kind, Token};

/// How a reactor is set up.
#[derive(Debug, Clone)]
pub struct Options {
    /// Use this tier, or fail; otherwise the best that works.
    pub tier: Option<Tier>,
    /// Bytes of one receive chunk.
    pub chunk_bytes: u32,
    /// Receive chunks, that is how much input can be waiting for the shard at once.
    pub chunks: u16,
    /// Entries of the submission queue: as many operations go into one system call.
    pub entries: u32,
    /// Most bytes asked of one send. After as many, at the latest, progress is reported.
    pub send_bytes_max: usize,
    /// Sends of at least as many bytes are not copied, on sockets that allow it.
    /// `usize::MAX`: all are copied.
    pub zero_copy_from: usize,
    /// Longest wait of a graceful close for the peer's own close.
    pub linger: Duration,
    /// Microseconds for which the kernel polls the queues of network cards before a wait sleeps.
    /// 0: it waits for their interrupts. It makes no difference on the loopback interface.
    pub napi_us: u32,
}

impl Default for Options {
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

/// Whether a turn may sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Take what is there.
    No,
    /// Until something happens, but not longer than this.
    For(Duration),
    /// Until something happens.
    Forever,
}

/// Whether a socket's big sends may be read by the network card from our memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZeroCopy {
    /// They are copied; right for peers on the same host, where not copying is slower.
    Never,
    /// They are not, from [`Options::zero_copy_from`] on.
    Allowed,
}

/// Names a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ListenerId(pub u32);

/// What happened. Turns after [`Reactor::close`] tell of a socket nothing but [`Event::Closed`].
///
/// `S` is a connection that is not adopted yet, `C` received bytes on loan: another reactor than
/// this one has others.
#[derive(Debug)]
pub enum Event<S = OwnedFd, C = Chunk> {
    /// Somebody connected.
    Accepted {
        /// Where.
        listener: ListenerId,
        /// The connection, blocking and close-on-exec; not yet adopted.
        socket: S,
    },
    /// Accepting failed and has stopped; [`Reactor::accept`] takes it up again.
    AcceptFailed {
        /// Where.
        listener: ListenerId,
        /// For instance EMFILE.
        error: io::Error,
    },
    /// The listener is closed, its port is free.
    StoppedListening {
        /// Which one.
        listener: ListenerId,
    },
    /// Bytes came in. The chunk must be recycled.
    Received {
        /// Where.
        socket: SocketId,
        /// [`Reactor::bytes`] shows them.
        chunk: C,
    },
    /// The peer sends nothing more. The socket can still be sent to, and must be closed.
    Ended {
        /// Which one.
        socket: SocketId,
        /// Why, unless the peer just closed its sending side.
        error: Option<io::Error>,
    },
    /// Some of the batch is sent.
    Sent {
        /// To whom.
        socket: SocketId,
        /// How many bytes since the last report; can be 0 when only the batch comes home.
        bytes: usize,
        /// The batch, when all of it is sent and the kernel is done with it.
        batch: Option<Batch>,
    },
    /// The batch is not sent, or not all of it. The socket must be closed.
    SendFailed {
        /// To whom.
        socket: SocketId,
        /// Why.
        error: io::Error,
        /// The batch, back from the kernel.
        batch: Batch,
    },
    /// The descriptor is closed, the slot is free.
    Closed {
        /// The last use of this id.
        socket: SocketId,
        /// What was being sent when the socket was closed, sent or not.
        batch: Option<Batch>,
    },
    /// Something was done to a file, or could not be.
    Disk(Box<DiskDone>),
    /// Somebody woke the reactor; once, however often.
    Woken,
}

struct Listener {
    fd: Option<OwnedFd>,
    /// Accepts in the kernel.
    accepts: u32,
    /// It failed, and nobody has said since that it should go on.
    resting: bool,
    stopping: bool,
    /// Cancellations in the kernel.
    cancels: u32,
}

/// What a reactor has done since its start.
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

/// One thread's io_uring with its sockets.
pub struct Reactor {
    // Closed first: what follows is memory that the kernel knows.
    ring: Ring,
    pool: Pool,
    sockets: Sockets,
    files: Files,
    can: Probe,
    send_bytes_max: usize,
    zero_copy_from: usize,
    linger: Box<Timespec>,
    listeners: Vec<Listener>,
    /// Sockets to be closed of which not all was sent. The kernel frees what it holds of each,
    /// megabytes perhaps, while it is closed: one in a turn, so that many of them hold nobody up.
    discarded: VecDeque<SocketId>,
    /// Sockets that wait for chunks.
    hungry: Hungry,
    /// A receive found no chunk since the hungry were last fed.
    is_scarce: bool,
    /// Turns taken; moves the order in which receives are started.
    turns: usize,
    waker: Waker,
    woken: bool,
    /// Turns in which it was.
    woken_turns: u64,
    sent_bytes: Histogram,
    /// Wakers of those woken through the ring, by the slot of the token.
    woken_rings: Vec<Waker>,
    /// Events that leave room for what comes before them.
    early: Vec<Event>,
    late: Vec<Event>,
    completions: Vec<Completion>,
    /// Boxes for batches to come.
    #[expect(clippy::vec_box, reason = "the boxes are moved as they are into the slots")]
    spare: Vec<Box<Sending>>,
    is_dropping: bool,
    /// Nobody is waited for any more to whom all was said.
    is_hurried: bool,
}

/// Connections that a turn accepts from one listener: a crowd that comes all at once must not
/// hold up those who are there.
const ACCEPTS_MAX: u32 = 8;
/// Boxes kept for batches to come.
const SPARE_MAX: usize = 1024;
/// How often a dropped reactor asks the kernel whether it is done, and how long it waits.
const DROP_ROUNDS_MAX: usize = 100;
const DROP_WAIT: Duration = Duration::from_millis(50);

impl Reactor {
    /// Sets up a reactor for the calling thread, which is the only one that may use it.
    pub fn new(options: &Options) -> Result<Self, Unavailable> {
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
            send_bytes_max: options.send_bytes_max.max(1),
            zero_copy_from: if can.zero_copy { options.zero_copy_from } else { usize::MAX },
            linger: Box::new(Timespec::from(options.linger)),
            listeners: Vec::new(),
            discarded: VecDeque::new(),
            hungry: Hungry::default(),
            is_scarce: false,
            turns: 0,
            waker: Waker::new(ring_fd).map_err(failed)?,
            woken: false,
            woken_turns: 0,
            sent_bytes: Histogram::default(),
            woken_rings: Vec::new(),
            early: Vec::new(),
            late: Vec::new(),
            completions: Vec::new(),
            spare: Vec::new(),
            is_dropping: false,
            is_hurried: false,
        };
        reactor.read_waker();
        Ok(reactor)
    }

    /// The tier in use.
    pub fn tier(&self) -> Tier {
        self.can.tier
    }

    /// Counters of the reactor since its start.
    pub fn counters(&self) -> Counters {
        Counters {
            turns: self.turns as u64,
            enters: self.ring.enters(),
            completions: self.ring.completions(),
            woken: self.woken_turns,
            sent_bytes: self.sent_bytes.clone(),
        }
    }

    /// The tier in use, and what goes beyond it.
    pub fn capabilities(&self) -> Probe {
        self.can
    }

    /// Lets go of what only more sockets than there are now would need.
    pub fn shrink(&mut self) {
        self.sockets.shrink();
    }

    /// Submits all that was asked for, waits, and appends what happened to `events`: first what
    /// became of sends and closes, then what came in.
    pub fn turn(&mut self, wait: Wait, events: &mut Vec<Event>) -> io::Result<()> {
        self.turns = self.turns.wrapping_add(1);
        let is_all_fed = self.feed_the_hungry();
        let has_news = !self.early.is_empty() || !self.late.is_empty();
        let has_work = has_news || !is_all_fed || !self.discarded.is_empty();
        self.ring.enter(if has_work { Wait::No } else { wait })?;
        self.close_discarded();
        self.reap();
        events.append(&mut self.early);
        if std::mem::take(&mut self.woken) {
            self.woken_turns += 1;
            events.push(Event::Woken);
        }
        events.append(&mut self.late);
        Ok(())
    }

    /// Accepts connections on `listener` from now on.
    pub fn listen(&mut self, listener: OwnedFd) -> ListenerId {
        // A non-blocking one would answer EAGAIN at once instead of waiting.
        let _ = rustix::io::ioctl_fionbio(&listener, false);
        let id = ListenerId(u32::try_from(self.listeners.len()).unwrap_or(u32::MAX));
        self.listeners.push(Listener {
            fd: Some(listener),
            accepts: 0,
            resting: false,
            stopping: false,
            cancels: 0,
        });
        self.accept(id);
        id
    }

    /// Goes on accepting after [`Event::AcceptFailed`].
    pub fn accept(&mut self, listener: ListenerId) {
        let entry = &mut self.listeners[listener.0 as usize];
        entry.resting = false;
        let Some(fd) = entry.fd.as_ref().filter(|_| !entry.stopping) else {
            return;
        };
        for _ in entry.accepts..ACCEPTS_MAX {
            let op = op::accept(Token::new(Kind::Accept, listener.0, 0), fd.as_raw_fd());
            entry.accepts += 1;
            // SAFETY: the operation names no memory.
            unsafe { self.ring.push(op) };
        }
    }

    /// Accepts nothing more. [`Event::StoppedListening`] says when the port is free; until then
    /// connections that were already there may still be reported.
    pub fn stop_listening(&mut self, listener: ListenerId) {
        let entry = &mut self.listeners[listener.0 as usize];
        let Some(fd) = entry.fd.as_ref().filter(|_| !entry.stopping) else {
            return;
        };
        entry.stopping = true;
        // Refuses the next connection at once, and ends the accept if cancelling is too late.
        // The descriptor stays: an accept that names it may still wait to be submitted.
        let _ = rustix::net::shutdown(fd, rustix::net::Shutdown::Both);
        for _ in 0..entry.accepts {
            entry.cancels += 1;
            let target = Token::new(Kind::Accept, listener.0, 0);
            let op = op::cancel(Token::new(Kind::CancelAccept, listener.0, 0), target);
            // SAFETY: the operation names no memory.
            unsafe { self.ring.push(op) };
        }
        self.settle_listener(listener.0);
    }

    /// Takes over a connected socket; nothing is read from it before [`Reactor::read`].
    pub fn adopt(&mut self, socket: OwnedFd, zero_copy: ZeroCopy) -> SocketId {
        // Where a descriptor is non-blocking the kernel answers EAGAIN instead of waiting.
        let _ = rustix::io::ioctl_fionbio(&socket, false);
        let id = self.sockets.insert(socket);
        self.sockets.at(id.slot).zero_copy = zero_copy == ZeroCopy::Allowed;
        id
    }

    /// What was received.
    pub fn bytes(&self, chunk: &Chunk) -> &[u8] {
        self.pool.bytes(chunk)
    }

    /// Gives a chunk back, to be received into again.
    pub fn recycle(&mut self, chunk: Chunk) {
        self.pool.recycle(chunk);
    }

    /// A handle by which other threads wake this reactor.
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Wakes another reactor with this turn's submission, or by a system call where rings cannot
    /// reach each other.
    pub fn wake(&mut self, other: &Waker) {
        let ring_fd = other.ring_fd().filter(|_| self.can.ring_to_ring && !other.is(&self.waker));
        let Some(ring_fd) = ring_fd else {
            other.wake();
            return;
        };
        let known = self.woken_rings.iter().position(|waker| waker.is(other));
        let index = known.unwrap_or_else(|| {
            // Kept for good: there are as many wakers as shards.
            self.woken_rings.push(other.clone());
            self.woken_rings.len() - 1
        });
        let slot = u32::try_from(index).unwrap_or(u32::MAX);
        let op = op::wake(Token::new(Kind::Wake, slot, 0), ring_fd);
        // SAFETY: the operation names no memory; the clone keeps the descriptor open.
        unsafe { self.ring.push(op) };
    }

    fn read_waker(&mut self) {
        let token = Token::new(Kind::BellRead, 0, 0);
        let op = op::read_waker(token, self.waker.event_fd(), self.pool.counter());
        // SAFETY: the counter is memory of the pool that nothing else uses, and only one read of
        // the waker is ever in flight. The pool outlives it, see `drop`.
        unsafe { self.ring.push(op) };
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
        let Some(token) = Token::from_user_data(completion.user_data) else {
            return;
        };
        let is_last = !cqueue::more(completion.flags);
        // Another ring's wish is the other ring's operation.
        if is_last && token.kind != Kind::Woken {
            self.ring.retire();
        }
        let result = outcome(completion.result);
        match token.kind {
            Kind::Accept => self.on_accept(token.slot, result),
            Kind::BellRead => {
                self.woken = true;
                if !self.is_dropping {
                    self.read_waker();
                }
            }
            Kind::Woken => self.woken = true,
            Kind::Wake => {
                if let (Err(_), Some(waker)) = (result, self.woken_rings.get(token.slot as usize)) {
                    waker.wake();
                }
            }
            Kind::CancelAccept => {
                self.listeners[token.slot as usize].cancels -= 1;
                self.settle_listener(token.slot);
            }
            Kind::Disk | Kind::DiskSync => self.on_disk(token, result),
            _ => self.on_socket(token, result, completion.flags),
        }
    }

    fn on_socket(&mut self, token: Token, result: io::Result<u32>, flags: u32) {
        let Some(socket) = self.sockets.of_token(token) else {
            debug_assert!(false, "a slot was given up before its last completion");
            return;
        };
        let is_last = !cqueue::more(flags);
        if is_last {
            self.sockets.at(socket.slot).ops -= 1;
        }
        match token.kind {
            Kind::Receive => self.on_receive(socket, result, flags),
            Kind::Poll => self.on_poll(socket, result),
            Kind::CancelReceive => self.on_receive_cancelled(socket),
            Kind::Send if cqueue::notif(flags) => self.on_send_released(socket),
            Kind::Send => self.on_send(socket, result, !is_last),
            Kind::Linger => self.on_linger(socket, result),
            Kind::LingerTimer => self.on_linger_timer(socket),
            _ => {}
        }
        self.advance_closing(socket);
    }

    fn on_accept(&mut self, slot: u32, result: io::Result<u32>) {
        let listener = ListenerId(slot);
        let entry = &mut self.listeners[slot as usize];
        entry.accepts -= 1;
        match result {
            Ok(fd) => {
                // SAFETY: the kernel has just made this descriptor for us, and tells us once.
                let socket = unsafe { OwnedFd::from_raw_fd(fd.cast_signed()) };
                self.late.push(Event::Accepted { listener, socket });
            }
            Err(_) if entry.stopping => {}
            Err(error) if is_of_the_connection(&error) => {}
            Err(error) => {
                if !std::mem::replace(&mut entry.resting, true) {
                    self.late.push(Event::AcceptFailed { listener, error });
                }
            }
        }
        if !self.listeners[slot as usize].resting {
            self.accept(listener);
        }
        self.settle_listener(slot);
    }

    /// Reports a stopped listener once the kernel has let go of it.
    fn settle_listener(&mut self, slot: u32) {
        let entry = &mut self.listeners[slot as usize];
        if entry.stopping && entry.accepts == 0 && entry.cancels == 0 && entry.fd.is_some() {
            entry.fd = None;
            self.late.push(Event::StoppedListening { listener: ListenerId(slot) });
        }
    }
}

/// A failed accept that says nothing about the next one.
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

/// Errors after which the same can be asked again at once.
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
        while !self.discarded.is_empty() {
            self.close_discarded();
        }
        self.hungry.clear();
        for socket in self.sockets.occupied() {
            self.let_go(socket);
        }
        for slot in 0..self.listeners.len() {
            self.stop_listening(ListenerId(u32::try_from(slot).unwrap_or(u32::MAX)));
        }
        self.waker.wake();
        for _ in 0..DROP_ROUNDS_MAX {
            if self.ring.in_flight() == 0 || self.ring.enter(Wait::For(DROP_WAIT)).is_err() {
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
