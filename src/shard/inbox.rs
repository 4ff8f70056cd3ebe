//! Input that waits to be handled, in an order in which no connection starves another.

use std::collections::VecDeque;

use crate::uring::SocketId;

/// A queue of pieces of input; those of one connection stay in their order of arrival.
///
/// Connections take turns: in a round each has one piece handled, so that a connection that has
/// filled all receive chunks is not heard before one that has sent a line.
///
/// Ends are in no hurry, and a thousand can come at once: they have a queue of their own.
#[derive(Debug)]
pub(super) struct Inbox<T> {
    /// Pieces of the current round, each with its connection.
    pieces: VecDeque<(SocketId, T)>,
    /// Pieces of the next round: their connections have had their turn in the current one.
    next: VecDeque<(SocketId, T)>,
    round: u64,
    /// Ends of connections.
    ends: VecDeque<(SocketId, T)>,
    /// The round in which each connection was last heard, by slot.
    heard: Vec<u64>,
}

impl<T> Inbox<T> {
    pub(super) fn new() -> Self {
        Self {
            pieces: VecDeque::new(),
            next: VecDeque::new(),
            round: 1,
            ends: VecDeque::new(),
            heard: Vec::new(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.next.is_empty() && self.ends.is_empty()
    }

    /// Forgets which connections were heard, and frees memory. At worst one is heard twice in a
    /// round.
    pub(super) fn shrink(&mut self) {
        self.heard = Vec::new();
        self.ends.shrink_to_fit();
    }

    /// Adds a piece of a connection's input.
    pub(super) fn push(&mut self, socket: SocketId, piece: T) {
        self.pieces.push_back((socket, piece));
    }

    /// Adds the end of a connection.
    pub(super) fn push_end(&mut self, socket: SocketId, end: T) {
        self.ends.push_back((socket, end));
    }

    /// Takes out the next end, unless earlier input of its connection waits.
    pub(super) fn pop_end(&mut self) -> Option<T> {
        let (socket, _) = self.ends.front()?;
        // There are no more of these than receive chunks.
        let has_more = self.pieces.iter().chain(&self.next).any(|(other, _)| other == socket);
        if has_more { None } else { self.ends.pop_front().map(|(_, end)| end) }
    }

    /// Takes out the next piece in turn.
    pub(super) fn pop(&mut self) -> Option<T> {
        loop {
            let Some((socket, piece)) = self.pieces.pop_front() else {
                if self.next.is_empty() {
                    return None;
                }
                std::mem::swap(&mut self.pieces, &mut self.next);
                self.round += 1;
                continue;
            };
            let at = socket.slot as usize;
            if at >= self.heard.len() {
                self.heard.resize(at + 1, 0);
            }
            if self.heard[at] == self.round {
                self.next.push_back((socket, piece));
                continue;
            }
            self.heard[at] = self.round;
            return Some(piece);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::rc::Rc;

    use proptest::prelude::*;

    use super::*;
    use crate::engine::{ConnId, Engine, Peer, Settings, ShardId};

    /// Receive chunks of a shard: the most pieces that wait, and the longest wait.
    const CHUNKS: usize = 16;
    const CHUNK_BYTES: usize = 64 * 1024;

    fn socket(slot: u32) -> SocketId {
        SocketId { slot, generation: 0 }
    }

    #[test]
    fn a_ping_waits_for_one_chunk_of_a_flood_however_much_of_it_there_is() {
        let settings = Settings::new(&Default::default(), &Default::default(), usize::MAX);
        let mut engine = Engine::new(ShardId(0), 1, Rc::new(settings), 1);
        let [flood, quiet] = [0, 1].map(|slot| ConnId { slot, generation: 0 });
        for id in [flood, quiet] {
            engine.open(id, Peer { cid: 1, ip: "".into(), port: 1 }, true);
            engine.on_bytes(id, b"CONNECT {\"verbose\":false}\r\n");
            engine.take_batch(id); // INFO stays with the kernel, and with it all that follows.
        }
        let publish = b"PUB a 0\r\n\r\n";
        let chunk = publish.repeat(CHUNK_BYTES / publish.len());
        let mut inbox = Inbox::new();
        let mut handle = |inbox: &mut Inbox<(ConnId, Vec<u8>)>| {
            let (id, bytes) = inbox.pop().expect("there is more");
            engine.on_bytes(id, &bytes);
            (id, engine.view().stats().in_msgs)
        };
        // All chunks but one are the flood's, and it has just been heard.
        (0..CHUNKS).for_each(|_| inbox.push(socket(flood.slot), (flood, chunk.clone())));
        assert_eq!(handle(&mut inbox).0, flood);
        inbox.push(socket(quiet.slot), (quiet, b"PING\r\n".to_vec()));
        let (who, handled) = handle(&mut inbox);
        assert_eq!((who, handled), (quiet, (chunk.len() / publish.len()) as u64));
        // It asks again at once: one more chunk is before it, and no more.
        inbox.push(socket(quiet.slot), (quiet, b"PING\r\n".to_vec()));
        assert_eq!(handle(&mut inbox).0, flood);
        let (who, handled) = handle(&mut inbox);
        assert_eq!((who, handled), (quiet, 2 * (chunk.len() / publish.len()) as u64));
    }

    #[test]
    fn an_end_waits_for_what_was_said_before() {
        let mut inbox = Inbox::new();
        inbox.push(socket(1), "a");
        inbox.push(socket(2), "b");
        inbox.push_end(socket(1), "the end");
        assert_eq!(inbox.pop_end(), None);
        assert_eq!(inbox.pop(), Some("a"));
        assert_eq!(inbox.pop_end(), Some("the end"));
        assert!(!inbox.is_empty());
        inbox.push_end(socket(2), "the other end");
        assert_eq!((inbox.pop(), inbox.pop_end()), (Some("b"), Some("the other end")));
        // Input of the next connection in that slot is another connection's.
        inbox.push_end(socket(1), "late");
        inbox.push(SocketId { generation: 1, ..socket(1) }, "new");
        assert_eq!((inbox.pop_end(), inbox.pop()), (Some("late"), Some("new")));
        assert!(inbox.is_empty());
    }

    proptest! {
        #[test]
        fn nobody_waits_for_a_third_piece_of_another_and_each_keeps_its_order(
            steps in prop::collection::vec(prop::option::of(0..5_u32), 1..200),
        ) {
            let mut inbox = Inbox::new();
            let (mut pushed, mut popped) = (HashMap::new(), HashMap::<u32, u32>::new());
            // For each waiting piece, the connections heard since it became its connection's next.
            let mut waiting: HashMap<u32, HashMap<u32, u32>> = HashMap::new();
            for step in steps.into_iter().chain(std::iter::repeat_n(None, 200)) {
                if let Some(slot) = step {
                    let number: &mut u32 = pushed.entry(slot).or_default();
                    inbox.push(socket(slot), (slot, *number));
                    *number += 1;
                    waiting.entry(slot).or_default();
                    continue;
                }
                let Some((slot, number)) = inbox.pop() else { continue };
                let before = popped.entry(slot).or_default();
                prop_assert_eq!(number, *before, "in order");
                *before += 1;
                waiting.remove(&slot);
                for waited_for in waiting.values_mut() {
                    *waited_for.entry(slot).or_default() += 1;
                    prop_assert!(waited_for[&slot] <= 2, "three of {}", slot);
                }
                if *before < pushed[&slot] {
                    waiting.insert(slot, HashMap::new());
                }
            }
            prop_assert!(inbox.is_empty());
            prop_assert_eq!(popped, pushed);
        }
    }
}
