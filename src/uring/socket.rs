//! The state of each socket: a dense table of small slots.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use super::send::Sending;
use super::token::{GENERATION_MASK, OpToken, TokenKind};

/// The name of a socket: a slot, and a generation of the slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SocketId {
    /// The slot, dense from 0. Free again after [`super::Event::Closed`].
    pub slot: u32,
    /// The generation of the slot, a new one for each socket.
    pub generation: u32,
}

/// The phase of a socket between `adopt` and `Closed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SocketPhase {
    /// A slot without a socket.
    Vacant,
    /// A socket that sends and receives.
    Open,
    /// Closing: the batch in flight is still being sent, and the last receive stopped.
    Flushing,
    /// Closing: all output is sent and the sending side shut down. Input is discarded, because
    /// closing over unread input makes the kernel drop unsent output.
    Lingering,
    /// Closing: only completions are awaited.
    Ending,
    /// Closing, in the queue of sockets with unsent output; `Ending` follows.
    Discarded,
}

/// The operation in the kernel that receives for a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Receive {
    /// No operation.
    Idle,
    /// A poll for input, without a chunk.
    Polling,
    /// A receive into a chunk that the reactor chose.
    Into(u16),
    /// A receive into chunks that the kernel chooses.
    Selecting,
}

/// The cancellation of a receive; it and the receive complete in any order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cancel {
    /// No cancellation.
    No,
    /// A cancellation without an answer: it could hit a new receive.
    Asked,
    /// A cancellation with an answer; the receive itself may still have to complete.
    Answered,
}

pub(super) struct Slot {
    fd: Option<OwnedFd>,
    generation: u32,
    /// Operations in the kernel that have this slot in their token.
    pub(super) ops: u32,
    pub(super) sending: Option<Box<Sending>>,
    pub(super) phase: SocketPhase,
    pub(super) receive: Receive,
    pub(super) cancel: Cancel,
    /// Whether the caller wants input.
    pub(super) wanted: bool,
    /// Whether the peer's bytes have ended.
    pub(super) ended: bool,
    /// Whether the socket waits in a queue for chunks.
    pub(super) hungry: bool,
    /// Receives with bytes, up to 255.
    pub(super) receives: u8,
    /// Whether sends may go without a copy.
    pub(super) zero_copy: bool,
    /// Whether a `Linger` is in the kernel.
    pub(super) lingers: bool,
    /// Whether a `LingerTimer` is in the kernel.
    pub(super) timed: bool,
}

impl Slot {
    fn vacant(generation: u32) -> Self {
        Self {
            fd: None,
            generation,
            ops: 0,
            sending: None,
            phase: SocketPhase::Vacant,
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

    /// Returns the descriptor for an operation; the slot keeps it open until all have completed.
    pub(super) fn raw_fd(&self) -> RawFd {
        self.fd.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }

    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(AsFd::as_fd)
    }

    /// Closes the descriptor; no operation that names it may be in the kernel.
    pub(super) fn close_fd(&mut self) {
        self.fd = None;
    }

    /// Whether only completions are awaited.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.phase, SocketPhase::Ending | SocketPhase::Discarded)
    }

    pub(super) fn is_open(&self) -> bool {
        self.phase == SocketPhase::Open
    }

    /// Returns the kind of the operation in the kernel that receives.
    pub(super) fn receive_kind(&self) -> Option<TokenKind> {
        match self.receive {
            Receive::Idle => None,
            Receive::Polling => Some(TokenKind::Poll),
            Receive::Into(_) | Receive::Selecting => Some(TokenKind::Receive),
        }
    }
}

/// All sockets of a reactor.
#[derive(Default)]
pub(super) struct Sockets {
    slots: Vec<Slot>,
    vacant: Vec<u32>,
    /// The first generation of a slot that is made anew: no slot that was given up had a higher
    /// one.
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
        assert_eq!(entry.phase, SocketPhase::Vacant);
        *entry = Slot { fd: Some(fd), phase: SocketPhase::Open, ..Slot::vacant(entry.generation) };
        SocketId { slot, generation: entry.generation }
    }

    /// Closes the descriptor and frees the slot for its next generation.
    pub(super) fn remove(&mut self, slot: u32) {
        let entry = &mut self.slots[slot as usize];
        assert_eq!(entry.ops, 0, "the kernel still works for this slot");
        *entry = Slot::vacant(entry.generation.wrapping_add(1));
        self.vacant.push(slot);
    }

    /// Gives up the vacant slots behind the last one in use.
    pub(super) fn shrink(&mut self) {
        let used = self.slots.iter().rposition(|slot| slot.phase != SocketPhase::Vacant);
        let kept = used.map_or(0, |last| last + 1);
        let given_up = self.slots.drain(kept..).map(|slot| slot.generation);
        self.first_generation = given_up.fold(self.first_generation, u32::max);
        self.slots.shrink_to_fit();
        self.vacant.retain(|slot| (*slot as usize) < kept);
        self.vacant.shrink_to_fit();
    }

    /// Returns the slot, if it is still of that generation.
    pub(super) fn get_mut(&mut self, socket: SocketId) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(socket.slot as usize)?;
        (slot.generation == socket.generation && slot.phase != SocketPhase::Vacant).then_some(slot)
    }

    /// Returns the socket for which an operation was started, if it still has its slot.
    pub(super) fn of_token(&self, token: OpToken) -> Option<SocketId> {
        let slot = self.slots.get(token.slot as usize)?;
        let same = slot.generation & GENERATION_MASK == token.generation;
        (same && slot.phase != SocketPhase::Vacant)
            .then_some(SocketId { slot: token.slot, generation: slot.generation })
    }

    /// Returns a slot that must be occupied.
    pub(super) fn at(&mut self, slot: u32) -> &mut Slot {
        &mut self.slots[slot as usize]
    }

    /// Returns all occupied slots.
    pub(super) fn occupied(&self) -> Vec<SocketId> {
        let ids = self.slots.iter().zip(0u32..);
        ids.filter(|(slot, _)| slot.phase != SocketPhase::Vacant)
            .map(|(entry, slot)| SocketId { slot, generation: entry.generation })
            .collect()
    }

    /// Takes out all batches that the kernel may still read.
    pub(super) fn take_sending(&mut self) -> impl Iterator<Item = Box<Sending>> + '_ {
        self.slots.iter_mut().filter_map(|slot| slot.sending.take())
    }
}

impl SocketId {
    pub(super) fn token(self, kind: TokenKind) -> OpToken {
        OpToken::new(kind, self.slot, self.generation)
    }
}
