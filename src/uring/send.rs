//! A batch of pieces on its way to one socket.

use std::io;

use io_uring::squeue;

use super::socket::SocketId;
use super::token::{OpToken, TokenKind};
use super::{Event, Reactor, ReactorOptions, is_interrupted, op};
use crate::measure::Histogram;
use crate::output::Piece;

/// Vectors that one system call takes at most (`IOV_MAX`).
const VECTORS_MAX: usize = 1024;

/// Vectors for which a box keeps room for its next batch.
const VECTORS_KEPT: usize = 64;

/// Boxes kept for batches to come.
const SPARE_MAX: usize = 1024;

/// The bytes that one send takes to a socket, in order.
#[derive(Debug, Default)]
pub struct Batch {
    /// The pieces to send; they come home afterwards, for their memory to be used again.
    pub pieces: Vec<Piece>,
}

impl Batch {
    /// Returns the bytes of all pieces.
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

/// A batch in the kernel's hands, with its progress.
///
/// It lives in a box: the kernel reads `header` and `vectors` at their address.
pub(super) struct Sending {
    batch: Batch,
    /// The first piece that is not sent completely.
    piece: usize,
    /// Bytes of the first unfinished piece that are sent.
    offset: usize,
    vectors: Vec<libc::iovec>,
    header: libc::msghdr,
    /// Whether a part is with the kernel, its result not known.
    pub(super) part_in_flight: bool,
    /// Whether the part in flight is sent without a copy.
    pub(super) zero_copy: bool,
    /// Parts that are sent, but whose memory the kernel still reads.
    pub(super) notifications: u32,
    /// The error after which nothing more is sent.
    pub(super) error: Option<io::Error>,
}

impl Sending {
    fn new() -> Box<Self> {
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

    /// Begins `batch` from its first byte.
    fn start(&mut self, batch: Batch) {
        debug_assert!(self.is_at_rest(), "a batch of an earlier send is with the kernel");
        self.batch = batch;
        self.piece = 0;
        self.offset = 0;
        self.error = None;
        self.skip_finished();
    }

    /// Whether the kernel holds none of this memory.
    pub(super) fn is_at_rest(&self) -> bool {
        !self.part_in_flight && self.notifications == 0
    }

    fn is_all_sent(&self) -> bool {
        self.piece == self.batch.pieces.len()
    }

    /// Gives the batch back. Only when the kernel holds none of it.
    fn take_batch(&mut self) -> Batch {
        assert!(self.is_at_rest(), "the kernel still reads this batch");
        self.vectors.clear();
        self.vectors.shrink_to(VECTORS_KEPT);
        std::mem::take(&mut self.batch)
    }

    /// Counts `bytes` of the last part as sent.
    fn advance(&mut self, bytes: usize) {
        self.offset += bytes;
        self.skip_finished();
    }

    /// Returns the operation that sends the next part, of at most `bytes_max` bytes.
    fn next_part(
        &mut self,
        token: OpToken,
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

    /// Points the vectors at the next unsent bytes; returns how many these are.
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

/// Settings and counters of a reactor's sends.
pub(super) struct Sends {
    /// Bytes asked of one send at most.
    bytes_max: usize,
    /// Bytes from which a part is not copied, on sockets that allow it.
    zero_copy_from: usize,
    /// Bytes that each completed send has taken.
    sent_bytes: Histogram,
    /// Boxes for batches to come.
    #[expect(clippy::vec_box, reason = "the boxes are moved as they are into the slots")]
    spare: Vec<Box<Sending>>,
}

impl Sends {
    /// Sends with the settings of `options`; `can_zero_copy` is whether the kernel can send without
    /// a copy.
    pub(super) fn new(options: &ReactorOptions, can_zero_copy: bool) -> Self {
        Self {
            bytes_max: options.send_bytes_max.max(1),
            zero_copy_from: if can_zero_copy { options.zero_copy_from } else { usize::MAX },
            sent_bytes: Histogram::default(),
            spare: Vec::new(),
        }
    }

    /// Returns the bytes that each completed send has taken.
    pub(super) fn sent_bytes(&self) -> &Histogram {
        &self.sent_bytes
    }

    /// Returns a box with a batch at its beginning.
    fn start(&mut self, batch: Batch) -> Box<Sending> {
        let mut sending = self.spare.pop().unwrap_or_else(Sending::new);
        sending.start(batch);
        sending
    }

    /// Returns the operation that sends the next part of `sending`.
    fn next_part(
        &self,
        sending: &mut Sending,
        token: OpToken,
        fd: i32,
        zero_copy: bool,
    ) -> squeue::Entry {
        let zero_copy_from = if zero_copy { self.zero_copy_from } else { usize::MAX };
        sending.next_part(token, fd, self.bytes_max, zero_copy_from)
    }

    /// Parts a batch from its box, which is kept for the next one.
    pub(super) fn take_home(&mut self, mut sending: Box<Sending>) -> Batch {
        let batch = sending.take_batch();
        if self.spare.len() < SPARE_MAX {
            self.spare.push(sending);
        }
        batch
    }
}

fn empty_header() -> libc::msghdr {
    // SAFETY: all-zero is a valid `msghdr`: null pointers and zero lengths.
    unsafe { std::mem::zeroed() }
}

impl Reactor {
    /// Sends a batch. A socket sends one batch at a time: the next one has to wait until it has
    /// come home.
    ///
    /// # Panics
    ///
    /// If the socket is closed or closing, another batch is on its way, or this one is empty.
    pub fn send(&mut self, socket: SocketId, batch: Batch) {
        assert!(!batch.is_empty(), "a batch has something to send");
        let slot = self.sockets.get_mut(socket).filter(|slot| slot.is_open());
        let Some(slot) = slot else { panic!("{socket:?} is closed: nothing can be sent to it") };
        assert!(slot.sending.is_none(), "{socket:?} is already being sent to");
        slot.sending = Some(self.sends.start(batch));
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
                self.sends.sent_bytes.add(bytes as u64, 1);
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

    /// Counts a part whose memory the kernel does not read any more.
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

    /// Queues the next part, or ends the send when it has failed.
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
        let op = self.sends.next_part(sending, socket.token(TokenKind::Send), fd, zero_copy);
        slot.ops += 1;
        // SAFETY: the pieces, the vectors and the header are in the slot's box, which neither
        // changes nor goes while `part_in_flight` or `notifications` say that the kernel has
        // it: `next_part` and `take_batch` insist on it, and so does `Reactor::drop`.
        unsafe { self.ring.push(op) };
    }

    /// Ends a send: all is sent, or nothing more will be. The kernel has let go of the batch.
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
        let batch = self.sends.take_home(sending);
        self.early.push(match error {
            Some(error) => Event::SendFailed { socket, error, batch },
            None => Event::Sent { socket, bytes, batch: Some(batch) },
        });
    }
}

/// Whether the error is one of sending without a copy only: the socket does not support it, or the
/// limit of pinned memory is reached.
fn is_of_zero_copy(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOMEM | libc::ENOBUFS))
}
