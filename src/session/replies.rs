//! Answers to packets of a client, in order: some wait until something is stored.

use std::collections::VecDeque;

use smallvec::SmallVec;

/// Answers that may wait at once; with more the client's input waits.
pub(crate) const WAITING_MAX: usize = 1024;
/// Bytes of messages to be stored at which the client's input waits.
const STORING_BYTES_MAX: usize = 8 << 20;

/// An answer that waits.
#[derive(Debug)]
struct WaitingReply {
    packet: SmallVec<[u8; 4]>,
    /// Messages that are to be stored before.
    waits: u8,
    /// Bytes of these messages.
    bytes: usize,
    /// Sequence of a message that is removed when nothing else is waited for; 0 is of none.
    removes: u64,
}

/// Answers that wait, in order.
#[derive(Debug, Default)]
pub(crate) struct PacketReplies {
    waiting: VecDeque<WaitingReply>,
    /// Number of the first answer that waits.
    first: u64,
    /// Bytes of messages for which answers wait.
    bytes: usize,
}

impl PacketReplies {
    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether as much waits as may.
    pub(crate) fn is_full(&self) -> bool {
        self.waiting.len() >= WAITING_MAX || self.bytes >= STORING_BYTES_MAX
    }

    /// Adds an answer behind the others, which waits for so many messages to be stored, of so many
    /// bytes in all. Returns its number.
    pub(crate) fn push(&mut self, packet: &[u8], waits: u8, bytes: usize) -> u64 {
        self.bytes += bytes;
        let packet = SmallVec::from_slice(packet);
        self.waiting.push_back(WaitingReply { packet, waits, bytes, removes: 0 });
        self.first + self.waiting.len() as u64 - 1
    }

    fn at(&mut self, number: u64) -> Option<&mut WaitingReply> {
        let at = number.checked_sub(self.first).and_then(|at| usize::try_from(at).ok())?;
        self.waiting.get_mut(at)
    }

    /// Has a message removed as the last step that an answer waits for: what is not stored yet
    /// would be lost without it. Returns whether it is to be removed now.
    pub(crate) fn remove_last(&mut self, number: u64, sequence: u64) -> bool {
        let Some(reply) = self.at(number) else { return false };
        reply.removes = sequence;
        reply.waits == 1
    }

    /// Notes that one of the messages is stored for which the answer with a number waits. Returns
    /// the sequence of the message that is to be removed now, if there is one.
    pub(crate) fn on_stored(&mut self, number: u64) -> Option<u64> {
        let reply = self.at(number)?;
        reply.waits = reply.waits.saturating_sub(1);
        (reply.waits == 1 && reply.removes > 0).then_some(reply.removes)
    }

    /// Takes the first answer, if it waits for nothing.
    pub(crate) fn pop(&mut self) -> Option<SmallVec<[u8; 4]>> {
        self.waiting.front().filter(|reply| reply.waits == 0)?;
        let reply = self.waiting.pop_front()?;
        self.first += 1;
        self.bytes -= reply.bytes;
        Some(reply.packet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_removed_when_all_else_is_stored() {
        let mut replies = PacketReplies::default();
        let number = replies.push(b"a", 3, 0);
        assert!(!replies.remove_last(number, 7));
        assert_eq!((replies.on_stored(number), replies.on_stored(number)), (None, Some(7)));
        assert_eq!((replies.pop(), replies.on_stored(number)), (None, None));
        assert!(replies.pop().is_some());
        let number = replies.push(b"b", 1, 0);
        assert!(replies.remove_last(number, 8), "there is nothing else");
        assert_eq!((replies.on_stored(number), replies.on_stored(99)), (None, None));
    }

    #[test]
    fn answers_leave_in_order() {
        let mut replies = PacketReplies::default();
        let (first, second) = (replies.push(b"a", 2, 9), replies.push(b"b", 1, 9));
        replies.push(b"c", 0, 0);
        replies.on_stored(second);
        replies.on_stored(first);
        assert_eq!(replies.pop(), None);
        replies.on_stored(first);
        let all: Vec<u8> = std::iter::from_fn(|| replies.pop()).flatten().collect();
        assert_eq!((all, replies.is_empty()), (b"abc".to_vec(), true));
        replies.on_stored(first);
        assert_eq!(replies.push(b"d", 1, STORING_BYTES_MAX), 3);
        assert!(replies.is_full());
        replies.on_stored(3);
        assert!(replies.pop().is_some() && !replies.is_full());
    }
}
