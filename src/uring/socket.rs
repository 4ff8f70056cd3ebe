//! What the reactor knows about each socket: a dense table of small slots.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use super::send::Sending;
use super::token::{GENERATION_MASK, Kind, Token};

/// Names one life of one slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SocketId {
    /// Dense from 0. Free again after [`super::Event::Closed`].
    pub slot: u32,
    /// Counts the lives of the slot.
    pub generation: u32,
}

/// Where a socket is between `adopt` and `Closed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nobody's slot.
    Vacant,
    /// The caller sends and reads.
    Open,
    /// Closing: the last batch is still being sent, the last receive being stopped.
    Flushing,
    /// Closing: we have said all and shut our side; what the peer still says is thrown away,
    /// because closing over unread input makes the kernel drop our unsent bytes.
    Lingering,
    /// Closing: nothing more is asked of the kernel; its last answers are awaited.
    Ending,
    /// Closing, in the queue of those of which not all was sent; then it is ending again.
    Discarded,
}

/// What the kernel does for this socket's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Receive {
    /// Nothing.
    Idle,
    /// Waits for input, without a chunk.
    Polling,
    /// Receives into a chunk that we chose.
    Into(u16),
    /// Receives into chunks that it chooses.
    Selecting,
}

/// Stopping a receive: the cancellation and what it stops complete in any order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cancel {
    /// Not asked for.
    No,
    /// Asked for, not answered: a new receive could be hit by it.
    Asked,
    /// Answered; the receive itself may still have to say its last word.
    Answered,
}

pub(super) struct Slot {
    fd: Option<OwnedFd>,
    generation: u32,
    /// Operations in the kernel that have this slot in their token.
    pub(super) ops: u32,
    pub(super) sending: Option<Box<Sending>>,
    pub(super) phase: Phase,
    pub(super) receive: Receive,
    pub(super) cancel: Cancel,
    /// The caller wants to hear what comes in.
    pub(super) wanted: bool,
    /// The peer will say nothing more.
    pub(super) ended: bool,
    /// Waits in the queue for chunks.
    pub(super) hungry: bool,
    /// How often it was received from, as far as that matters.
    pub(super) receives: u8,
    /// Sends may go without a copy.
    pub(super) zero_copy: bool,
    /// A `Linger` is in the kernel.
    pub(super) lingers: bool,
    /// A `LingerTimer` is in the kernel.
    pub(super) timed: bool,
}

impl Slot {
    fn vacant(generation: u32) -> Self {
        Self {
            fd: None,
            generation,
            ops: 0,
            sending: None,
            phase: Phase::Vacant,
            receive: Receive::Idle,
            cancel: Cancel::No,
            wanted: false,
            ended: false,
            hungry: false,
            receives: 0,
            zero_copy: false,
            lingers: false,
            timed: false,
        }
    }

    /// The descriptor for an operation; the slot keeps it open until all have completed.
    pub(super) fn raw_fd(&self) -> RawFd {
        self.fd.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }

    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(AsFd::as_fd)
    }

    /// Closes the descriptor; no operation that names it is in the kernel.
    pub(super) fn close_fd(&mut self) {
        self.fd = None;
    }

    /// Whether nothing more is asked of the kernel.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Ending | Phase::Discarded)
    }

    pub(super) fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// The operation in the kernel that brings input.
    pub(super) fn receive_kind(&self) -> Option<Kind> {
        match self.receive {
            Receive::Idle => None,
            Receive::Polling => Some(Kind::Poll),
            Receive::Into(_) | Receive::Selecting => Some(Kind::Receive),
        }
    }
}

/// All sockets of a reactor.
#[derive(Default)]
pub(super) struct Sockets {
    slots: Vec<Slot>,
    vacant: Vec<u32>,
    /// The first life of a slot that is made anew: none that was given up had as many.
    first_generation: u32,
}

impl Sockets {
    pub(super) fn insert(&mut self, fd: OwnedFd) -> SocketId {
        let slot = self.vacant.pop().unwrap_or_else(|| {
            let slot = u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
            self.slots.push(Slot::vacant(self.first_generation));
            slot
        });
        let entry = &mut self.slots[slot as usize];
        assert_eq!(entry.phase, Phase::Vacant);
        *entry = Slot { fd: Some(fd), phase: Phase::Open, ..Slot::vacant(entry.generation) };
        SocketId { slot, generation: entry.generation }
    }

    /// Closes the descriptor and frees the slot for its next life.
    pub(super) fn remove(&mut self, slot: u32) {
        let entry = &mut self.slots[slot as usize];
        assert_eq!(entry.ops, 0, "the kernel still works for this slot");
        *entry = Slot::vacant(entry.generation.wrapping_add(1));
        self.vacant.push(slot);
    }

    /// Gives up the vacant slots behind the last one in use.
    pub(super) fn shrink(&mut self) {
        let used = self.slots.iter().rposition(|slot| slot.phase != Phase::Vacant);
        let kept = used.map_or(0, |last| last + 1);
        let given_up = self.slots.drain(kept..).map(|slot| slot.generation);
        self.first_generation = given_up.fold(self.first_generation, u32::max);
        self.slots.shrink_to_fit();
        self.vacant.retain(|slot| (*slot as usize) < kept);
        self.vacant.shrink_to_fit();
    }

    /// The slot, if it is still in that life.
    pub(super) fn get_mut(&mut self, socket: SocketId) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(socket.slot as usize)?;
        (slot.generation == socket.generation && slot.phase != Phase::Vacant).then_some(slot)
    }

    /// The life that an operation was started in, if it still lasts.
    pub(super) fn of_token(&self, token: Token) -> Option<SocketId> {
        let slot = self.slots.get(token.slot as usize)?;
        let same = slot.generation & GENERATION_MASK == token.generation;
        (same && slot.phase != Phase::Vacant)
            .then_some(SocketId { slot: token.slot, generation: slot.generation })
    }

    /// A slot of which the caller knows that it is occupied.
    pub(super) fn at(&mut self, slot: u32) -> &mut Slot {
        &mut self.slots[slot as usize]
    }

    /// Everything that is not vacant.
    pub(super) fn occupied(&self) -> Vec<SocketId> {
        let ids = self.slots.iter().zip(0u32..);
        ids.filter(|(slot, _)| slot.phase != Phase::Vacant)
            .map(|(entry, slot)| SocketId { slot, generation: entry.generation })
            .collect()
    }

    /// All batches that the kernel may still read.
    pub(super) fn take_sending(&mut self) -> impl Iterator<Item = Box<Sending>> + '_ {
        self.slots.iter_mut().filter_map(|slot| slot.sending.take())
    }
}

impl SocketId {
    pub(super) fn token(self, kind: Kind) -> Token {
        Token::new(kind, self.slot, self.generation)
    }
}
