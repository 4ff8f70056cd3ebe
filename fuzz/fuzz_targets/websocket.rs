//! WebSockets: whatever bytes come, before the upgrade or behind it, what the broker says does not
//! depend on where TCP cuts them, nothing is asserted, and all memory comes home.

#![no_main]

use std::rc::Rc;

use libfuzzer_sys::fuzz_target;
use shardcast::config::{Options, WebSocketOptions};
use shardcast::engine::{ConnId, Engine, Identity, Output, Peer, Settings, ShardId, Transport};

const ID: ConnId = ConnId { slot: 0, generation: 0 };
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\
    Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n";

// The first two bytes choose whether the upgrade is done, whether there is compression, and the
// size of the pieces.
fuzz_target!(|data: &[u8]| {
    let [choice, piece, stream @ ..] = data else { return };
    let (upgraded, packs) = (choice & 1 == 0, choice & 2 == 0);
    let whole = said(stream, stream.len().max(1), upgraded, packs);
    let pieces = said(stream, usize::from(*piece) + 1, upgraded, packs);
    // Compressed or not, what is said is put into frames as it is said; its sum is the same.
    assert_eq!(whole.1, pieces.1, "it ends, or not");
    assert_eq!(whole.0, pieces.0, "in pieces of {}", usize::from(*piece) + 1);
});

/// How many messages went in, and whether the connection ends.
fn said(stream: &[u8], piece: usize, upgraded: bool, packs: bool) -> (u64, bool) {
    let websocket =
        WebSocketOptions { compression: packs, port: Some(1), ..WebSocketOptions::default() };
    let mut options = Options::default();
    options.network.websocket = Some(websocket);
    let settings = Settings::new(&options, &Identity::default(), usize::MAX);
    let mut engine = Engine::new(ShardId(0), 1, Rc::new(settings), 1);
    let peer = Peer { cid: 1, ip: "127.0.0.1".into(), port: 1 };
    engine.open_over(ID, peer, Transport::WebSocket, true);
    let mut closed = false;
    if upgraded {
        engine.on_bytes(ID, REQUEST);
        turn(&mut engine, &mut closed);
    }
    for piece in stream.chunks(piece) {
        if closed {
            break;
        }
        engine.on_bytes(ID, piece);
        while engine.next_deadline().is_some_and(|due| due == 0) {
            engine.tick();
        }
        if upgraded {
            turn(&mut engine, &mut closed);
        }
    }
    turn(&mut engine, &mut closed);
    let in_msgs = engine.view().stats().in_msgs;
    if !closed {
        engine.on_ended(ID, false);
        let mut ended = false;
        turn(&mut engine, &mut ended);
        assert!(ended, "the end of the stream is the end");
    }
    engine.on_closed(ID, None);
    assert_eq!(engine.view().output_bytes(), 0, "all memory comes home");
    (in_msgs, closed)
}

fn turn(engine: &mut Engine, closed: &mut bool) {
    engine.end_turn();
    while let Some(action) = engine.next_output() {
        match action {
            Output::Flush(id) => {
                if let Some(batch) = engine.take_batch(id) {
                    let bytes = batch.iter().map(|piece| piece.bytes().len()).sum();
                    assert!(bytes > 0, "there is something to send");
                    engine.on_sent(id, bytes, Some(batch));
                }
            }
            Output::Close { .. } => *closed = true,
            _ => {}
        }
    }
}
