//! Kernel and clock as a shard's loop sees them.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::net::SendFlags;

use super::messages::Door;
use crate::disk::DiskOp;
use crate::engine::{Credentials, Transport};
use crate::host::Tier;
use crate::uring::{
    self, Batch, Chunk, Closing, Counters, Event, ListenerId, SocketId, TurnWait, Waker, ZeroCopy,
};

/// Input and output of one shard: [`uring::Reactor`], where each function is described, or a
/// simulated one.
pub trait Io {
    /// A socket that no reactor has adopted.
    type Socket;
    /// Received bytes, lent until they are recycled.
    type Chunk;
    /// A handle by which other threads wake a shard.
    type Waker: Clone;

    /// Submits all requests, waits, and appends events to `events`.
    fn turn(
        &mut self,
        wait: TurnWait,
        events: &mut Vec<Event<Self::Socket, Self::Chunk>>,
    ) -> io::Result<()>;
    /// Begins to accept connections at a listening socket.
    fn listen(&mut self, listener: Self::Socket) -> ListenerId;
    /// Goes on accepting after it failed.
    fn accept(&mut self, listener: ListenerId);
    /// Stops accepting connections.
    fn stop_listening(&mut self, listener: ListenerId);
    /// Takes over a connected socket.
    fn adopt(&mut self, socket: Self::Socket, zero_copy: ZeroCopy) -> SocketId;
    /// Begins to receive from a socket.
    fn read(&mut self, socket: SocketId);
    /// Stops receiving for now, but bytes that have already arrived may still come.
    fn pause(&mut self, socket: SocketId);
    /// Sends a batch; the one before must have come home.
    fn send(&mut self, socket: SocketId, batch: Batch);
    /// Closes a socket.
    fn close(&mut self, socket: SocketId, how: Closing);
    /// Begins a disk operation; an event has its result.
    fn disk(&mut self, op: DiskOp);
    /// Stops waiting at closes for peers that have been sent all output.
    fn hurry(&mut self);
    /// Returns the bytes of a chunk.
    fn bytes<'a>(&'a self, chunk: &'a Self::Chunk) -> &'a [u8];
    /// Gives a chunk back.
    fn recycle(&mut self, chunk: Self::Chunk);
    /// Wakes another shard.
    fn wake(&mut self, other: &Self::Waker);
    /// Frees memory that only a burst has needed.
    fn give_back_memory(&mut self);
    /// Returns the tier of io_uring that the reactor uses.
    fn tier(&self) -> Tier;
    /// Returns the counters of the reactor.
    fn counters(&self) -> Counters;
    /// Returns address and port of the peer, and the transport; `None` if the connection is gone
    /// already.
    fn examine(socket: &Self::Socket, door: &Door) -> Option<(Box<str>, u16, Transport)>;
    /// Sends as many bytes as fit into the socket's buffer, without waiting.
    fn send_at_once(socket: &Self::Socket, bytes: &[u8]);
}

/// A source of monotonic time.
pub trait Clock {
    /// Returns the time, never less than before.
    fn now(&mut self) -> Instant;
}

/// The clock of the machine.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "read as a turn begins, and as it ends")]
    fn now(&mut self) -> Instant {
        Instant::now()
    }
}

/// Input and output by io_uring.
pub struct Uring(pub uring::Reactor);

impl Io for Uring {
    type Socket = OwnedFd;
    type Chunk = Chunk;
    type Waker = Waker;

    fn turn(&mut self, wait: TurnWait, events: &mut Vec<Event>) -> io::Result<()> {
        self.0.turn(wait, events)
    }

    fn listen(&mut self, listener: OwnedFd) -> ListenerId {
        self.0.listen(listener)
    }

    fn accept(&mut self, listener: ListenerId) {
        self.0.accept(listener);
    }

    fn stop_listening(&mut self, listener: ListenerId) {
        self.0.stop_listening(listener);
    }

    fn adopt(&mut self, socket: OwnedFd, zero_copy: ZeroCopy) -> SocketId {
        self.0.adopt(socket, zero_copy)
    }

    fn read(&mut self, socket: SocketId) {
        self.0.read(socket);
    }

    fn pause(&mut self, socket: SocketId) {
        self.0.pause(socket);
    }

    fn send(&mut self, socket: SocketId, batch: Batch) {
        self.0.send(socket, batch);
    }

    fn close(&mut self, socket: SocketId, how: Closing) {
        self.0.close(socket, how);
    }

    fn disk(&mut self, op: DiskOp) {
        self.0.disk(op);
    }

    fn hurry(&mut self) {
        self.0.hurry();
    }

    fn bytes<'a>(&'a self, chunk: &'a Chunk) -> &'a [u8] {
        self.0.bytes(chunk)
    }

    fn recycle(&mut self, chunk: Chunk) {
        self.0.recycle(chunk);
    }

    fn wake(&mut self, other: &Waker) {
        self.0.wake(other);
    }

    fn give_back_memory(&mut self) {
        self.0.shrink();
        uring::give_back_memory();
    }

    fn tier(&self) -> Tier {
        self.0.tier()
    }

    fn counters(&self) -> Counters {
        self.0.counters()
    }

    fn examine(socket: &OwnedFd, door: &Door) -> Option<(Box<str>, u16, Transport)> {
        let transport = match door {
            Door::Tcp => Transport::Tcp,
            Door::WebSocket => Transport::WebSocket,
            Door::Leaf => Transport::Leaf,
            Door::Mqtt => Transport::Mqtt,
            Door::Unix(path) => {
                let peer = rustix::net::sockopt::socket_peercred(socket).ok()?;
                let (uid, gid) = (peer.uid.as_raw(), peer.gid.as_raw());
                let pid = peer.pid.as_raw_nonzero().get().unsigned_abs();
                let credentials = Credentials { pid, uid, gid };
                return Some((path.clone(), 0, Transport::Unix(credentials)));
            }
        };
        let peer = rustix::net::getpeername(socket).ok().flatten()?;
        let peer = SocketAddr::try_from(peer).ok()?;
        // Messages leave when they are there; a failure here would cost latency only.
        let _ = rustix::net::sockopt::set_tcp_nodelay(socket, true);
        Some((peer.ip().to_canonical().to_string().into(), peer.port(), transport))
    }

    fn send_at_once(socket: &OwnedFd, bytes: &[u8]) {
        // A new socket has room; if not, the end says enough.
        let _ = rustix::net::send(socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    }
}
