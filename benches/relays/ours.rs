//! The relay on our reactor: events in, sends out, as a shard does it.

use std::collections::VecDeque;
use std::net::TcpListener;

use shardcast::output::Piece;
use shardcast::uring::{Chunk, Event, Reactor, ReactorOptions, SocketId, TurnWait, ZeroCopy};

use super::{CHUNK_BYTES, Outboxes, say};

/// Input that is relayed between two flushes: as much as the others read before they write.
const INPUT_BYTES_PER_TURN: usize = CHUNK_BYTES;

struct Relay {
    reactor: Reactor,
    sockets: Vec<SocketId>,
    outboxes: Outboxes,
    /// A batch is with the kernel, by subscriber.
    in_flight: Vec<bool>,
    /// The subscriber of each slot of the reactor.
    subscriber_of: Vec<usize>,
    spares: Vec<Vec<u8>>,
    /// Received, not yet relayed. Where outboxes are full it stays, and soon no chunk is left to
    /// receive into.
    inbox: VecDeque<Chunk>,
}

pub(super) fn run(subscribers: usize) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    say(listener.local_addr().expect("it has a port").port());
    let mut reactor = Reactor::new(&ReactorOptions::default()).expect("a kernel with io_uring");
    reactor.listen(listener.into());
    let mut relay = Relay {
        reactor,
        sockets: Vec::new(),
        outboxes: Outboxes::new(subscribers),
        in_flight: vec![false; subscribers],
        subscriber_of: Vec::new(),
        spares: Vec::new(),
        inbox: VecDeque::new(),
    };
    let mut events = Vec::new();
    let mut accepted = 0;
    loop {
        let busy = !relay.inbox.is_empty() && relay.outboxes.full == 0;
        let wait = if busy { TurnWait::No } else { TurnWait::Forever };
        relay.reactor.turn(wait, &mut events).expect("the ring works");
        for event in events.drain(..) {
            match event {
                Event::Accepted { socket, .. } => {
                    let _ = rustix::net::sockopt::set_tcp_nodelay(&socket, true);
                    let socket = relay.reactor.adopt(socket, ZeroCopy::Never);
                    if accepted == 0 {
                        relay.reactor.read(socket);
                    } else {
                        relay.add_subscriber(socket, accepted - 1);
                    }
                    accepted += 1;
                }
                Event::Received { chunk, .. } => relay.inbox.push_back(chunk),
                Event::Sent { socket, batch: Some(batch), .. } => {
                    let subscriber = relay.subscriber_of[socket.slot as usize];
                    relay.in_flight[subscriber] = false;
                    relay.spares.extend(batch.pieces.into_iter().filter_map(emptied));
                }
                Event::Sent { .. } => {}
                Event::Ended { .. } => return,
                event => panic!("{event:?}"),
            }
        }
        relay.take_input();
        relay.flush();
    }
}

impl Relay {
    fn add_subscriber(&mut self, socket: SocketId, subscriber: usize) {
        let slot = socket.slot as usize;
        self.subscriber_of.resize(self.subscriber_of.len().max(slot + 1), 0);
        self.subscriber_of[slot] = subscriber;
        self.sockets.push(socket);
    }

    fn take_input(&mut self) {
        let mut taken_bytes = 0;
        while taken_bytes < INPUT_BYTES_PER_TURN && self.outboxes.full == 0 {
            let Some(chunk) = self.inbox.pop_front() else { return };
            taken_bytes += chunk.len();
            self.outboxes.relay(self.reactor.bytes(&chunk));
            self.reactor.recycle(chunk);
        }
    }

    fn flush(&mut self) {
        for (subscriber, socket) in self.sockets.iter().enumerate() {
            if self.in_flight[subscriber] || self.outboxes.boxes[subscriber].is_empty() {
                continue;
            }
            let bytes = self.outboxes.take(subscriber, self.spares.pop().unwrap_or_default());
            self.in_flight[subscriber] = true;
            self.reactor.send(*socket, vec![Piece::Own(bytes)].into());
        }
    }
}

fn emptied(piece: Piece) -> Option<Vec<u8>> {
    match piece {
        Piece::Own(mut bytes) => {
            bytes.clear();
            Some(bytes)
        }
        Piece::Shared { .. } => None,
    }
}
