//! A batch of pieces on its way to one socket.

use std::io;

use io_uring::squeue;

use super::socket::SocketId;
use super::token::{Kind, Token};
use super::{Event, Reactor, SPARE_MAX, is_interrupted, op};
use crate::output::Piece;

/// Most vectors that one system call takes (`IOV_MAX`).
const VECTORS_MAX: usize = 1024;

/// Room for vectors that a box keeps for its next batch.
const VECTORS_KEPT: usize = 64;

/// The bytes that one send takes to a socket, in order.
#[derive(Debug, Default)]
pub struct Batch {
    /// What is sent; also what comes home, for its memory to be used again.
    pub pieces: Vec<Piece>,
}

impl Batch {
    /// How many bytes all pieces have.
    pub fn len(&self) -> usize {
        self.pieces.iter().map(|piece| piece.bytes().len()).sum()
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.pieces.iter().all(|piece| piece.bytes().is_empty())
    }
}

impl From<Vec<Piece>> for Batch {
    fn from(pieces: Vec<Piece>) -> Self {
        Self { pieces }
    }
}

/// A batch in the kernel's hands, and how far it has got.
///
/// It lives in a box: the kernel reads `header` and `vectors` where they are.
pub(super) struct Sending {
    batch: Batch,
    /// The first piece that is not sent completely.
    piece: usize,
    /// How much of that piece is sent.
    offset: usize,
    vectors: Vec<libc::iovec>,
    header: libc::msghdr,
    /// A part is with the kernel, its result not known.
    pub(super) part_in_flight: bool,
    /// That part is sent without a copy.
    pub(super) zero_copy: bool,
    /// Parts that are sent, but whose memory the kernel still reads.
    pub(super) notifications: u32,
    /// Why nothing more of it is sent.
    pub(super) error: Option<io::Error>,
}

impl Sending {
    pub(super) fn new() -> Box<Self> {
        Box::new(Self {
            batch: Batch::default(),
            piece: 0,
            offset: 0,
            vectors: Vec::new(),
            header: empty_header(),
            part_in_flight: false,
            zero_copy: false,
            notifications: 0,
            error: None,
        })
    }

    /// Takes `batch` from its beginning.
    pub(super) fn start(&mut self, batch: Batch) {
        debug_assert!(self.is_at_rest(), "a batch of an earlier send is with the kernel");
        self.batch = batch;
        self.piece = 0;
        self.offset = 0;
        self.error = None;
        self.skip_finished();
    }

    /// Whether the kernel knows none of this memory.
    pub(super) fn is_at_rest(&self) -> bool {
        !self.part_in_flight && self.notifications == 0
    }

    pub(super) fn is_all_sent(&self) -> bool {
        self.piece == self.batch.pieces.len()
    }

    /// Gives the batch back. Only when the kernel knows none of it.
    pub(super) fn take_batch(&mut self) -> Batch {
        assert!(self.is_at_rest(), "the kernel still reads this batch");
        self.vectors.clear();
        self.vectors.shrink_to(VECTORS_KEPT);
        std::mem::take(&mut self.batch)
    }

    /// `bytes` of what was last asked for are sent.
    pub(super) fn advance(&mut self, bytes: usize) {
        self.offset += bytes;
        self.skip_finished();
    }

    /// The operation that sends the next part: at most `bytes_max` bytes of it.
    pub(super) fn next_part(
        &mut self,
        token: Token,
        fd: i32,
        bytes_max: usize,
        zero_copy_from: usize,
    ) -> squeue::Entry {
        debug_assert!(!self.part_in_flight && !self.is_all_sent());
        let bytes = self.fill_vectors(bytes_max);
        self.part_in_flight = true;
        self.zero_copy = bytes >= zero_copy_from;
        if let [one] = self.vectors.as_slice() {
            return op::send(token, fd, *one, self.zero_copy);
        }
        self.header.msg_iov = self.vectors.as_mut_ptr();
        self.header.msg_iovlen = self.vectors.len();
        op::send_vectored(token, fd, &raw const self.header, self.zero_copy)
    }

    /// Points the vectors at what is to be sent next; says how many bytes that is.
    fn fill_vectors(&mut self, bytes_max: usize) -> usize {
        self.vectors.clear();
        let mut offset = self.offset;
        let mut bytes_left = bytes_max;
        for piece in &self.batch.pieces[self.piece..] {
            if self.vectors.len() == VECTORS_MAX || bytes_left == 0 {
                break;
            }
            let unsent = &piece.bytes()[offset..];
            offset = 0;
            if unsent.is_empty() {
                continue;
            }
            let len = unsent.len().min(bytes_left);
            bytes_left -= len;
            let iov_base = unsent.as_ptr().cast_mut().cast();
            self.vectors.push(libc::iovec { iov_base, iov_len: len });
        }
        bytes_max - bytes_left
    }

    /// Moves to the first piece that has unsent bytes.
    fn skip_finished(&mut self) {
        while let Some(piece) = self.batch.pieces.get(self.piece) {
            let len = piece.bytes().len();
            if self.offset < len {
                return;
            }
            self.offset -= len;
            self.piece += 1;
        }
        debug_assert_eq!(self.offset, 0, "more was sent than there was");
    }
}

fn empty_header() -> libc::msghdr {
    // SAFETY: all-zero is a valid `msghdr`: null pointers and zero lengths.
    unsafe { std::mem::zeroed() }
}

impl Reactor {
    /// Sends a batch. Only one can be on its way to a socket: the next one is for when this one
    /// has come home.
    ///
    /// # Panics
    ///
    /// If the socket is closed or closing, another batch is on its way, or this one is empty.
    pub fn send(&mut self, socket: SocketId, batch: Batch) {
        assert!(!batch.is_empty(), "a batch has something to send");
        let mut sending = self.spare.pop().unwrap_or_else(Sending::new);
        let slot = self.sockets.get_mut(socket).filter(|slot| slot.is_open());
        let Some(slot) = slot else { panic!("{socket:?} is closed: nothing can be sent to it") };
        assert!(slot.sending.is_none(), "{socket:?} is already being sent to");
        sending.start(batch);
        slot.sending = Some(sending);
        self.send_next_part(socket);
    }

    pub(super) fn on_send(&mut self, socket: SocketId, result: io::Result<u32>, is_kept: bool) {
        let slot = self.sockets.at(socket.slot);
        let is_told = slot.is_open();
        let is_over = slot.is_over();
        let Some(sending) = slot.sending.as_mut() else {
            return;
        };
        sending.part_in_flight = false;
        sending.notifications += u32::from(is_kept);
        match result {
            _ if is_over => return,
            Ok(bytes @ 1..) => {
                let bytes = bytes as usize;
                self.sent_bytes.add(bytes as u64, 1);
                sending.advance(bytes);
                if sending.is_all_sent() && sending.is_at_rest() {
                    self.send_is_over(socket, bytes);
                    return;
                }
                if is_told {
                    self.early.push(Event::Sent { socket, bytes, batch: None });
                }
            }
            Ok(0) => sending.error = Some(io::ErrorKind::WriteZero.into()),
            Err(error) if is_interrupted(&error) => {}
            Err(error) if sending.zero_copy && is_of_zero_copy(&error) => slot.zero_copy = false,
            Err(error) => sending.error = Some(error),
        }
        self.send_next_part(socket);
    }

    /// The kernel does not read the memory of a part any more.
    pub(super) fn on_send_released(&mut self, socket: SocketId) {
        let slot = self.sockets.at(socket.slot);
        let is_over = slot.is_over();
        let Some(sending) = slot.sending.as_mut() else {
            return;
        };
        sending.notifications -= 1;
        if sending.is_at_rest() && !is_over && (sending.is_all_sent() || sending.error.is_some()) {
            self.send_is_over(socket, 0);
        }
    }

    /// Asks for the next part, or ends the send when it has failed.
    fn send_next_part(&mut self, socket: SocketId) {
        let slot = self.sockets.at(socket.slot);
        let (fd, zero_copy) = (slot.raw_fd(), slot.zero_copy);
        let Some(sending) = slot.sending.as_mut() else {
            return;
        };
        if sending.error.is_some() || sending.is_all_sent() {
            if sending.is_at_rest() {
                self.send_is_over(socket, 0);
            }
            return;
        }
        let zero_copy_from = if zero_copy { self.zero_copy_from } else { usize::MAX };
        let token = socket.token(Kind::Send);
        let op = sending.next_part(token, fd, self.send_bytes_max, zero_copy_from);
        slot.ops += 1;
        // SAFETY: the pieces, the vectors and the header are in the slot's box, which neither
        // changes nor goes while `part_in_flight` or `notifications` say that the kernel has
        // it: `next_part` and `take_batch` insist on it, and so does `Reactor::drop`.
        unsafe { self.ring.push(op) };
    }

    /// All is sent, or nothing more will be; the kernel has let go of the batch.
    fn send_is_over(&mut self, socket: SocketId, bytes: usize) {
        let slot = self.sockets.at(socket.slot);
        let is_told = slot.is_open();
        let Some(sending) = slot.sending.as_mut() else {
            return;
        };
        let error = sending.error.take();
        if !is_told {
            // The batch goes home with `Closed`.
            if error.is_some() {
                self.abort(socket);
            }
            return;
        }
        let Some(sending) = slot.sending.take() else {
            return;
        };
        let batch = self.take_home(sending);
        self.early.push(match error {
            Some(error) => Event::SendFailed { socket, error, batch },
            None => Event::Sent { socket, bytes, batch: Some(batch) },
        });
    }

    /// Parts a batch from its box, which is kept for the next.
    pub(super) fn take_home(&mut self, mut sending: Box<Sending>) -> Batch {
        let batch = sending.take_batch();
        if self.spare.len() < SPARE_MAX {
            self.spare.push(sending);
        }
        batch
    }
}

/// Errors of sending without a copy that sending with one does not have: the socket cannot do
/// it, or not so much memory may be pinned.
fn is_of_zero_copy(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOMEM | libc::ENOBUFS))
}
