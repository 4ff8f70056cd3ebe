//! Leaf nodes: whatever bytes come to the port for them, before a login and after it, compressed or
//! not, what is made of them does not depend on where TCP cuts them, nothing is asserted, and all
//! memory comes home.

#![no_main]

use std::rc::Rc;

use libfuzzer_sys::fuzz_target;
use shardcast::config::Options;
use shardcast::engine::{ConnId, Engine, Identity, NewLeaf, Output, Peer, Settings, ShardId};

const ID: ConnId = ConnId { slot: 0, generation: 0 };
/// A client that gets everything, and is a member of a queue group.
const CLIENT: ConnId = ConnId { slot: 1, generation: 0 };
const CLIENT_SAYS: &[u8] =
    b"CONNECT {\"verbose\":false,\"headers\":true}\r\nSUB > 1\r\nSUB s g 2\r\n";
/// Another leaf node, which has members of groups.
const OTHER: ConnId = ConnId { slot: 2, generation: 0 };
const OTHER_SAYS: &[u8] = b"CONNECT {\"name\":\"o\",\"cluster\":\"o\",\"headers\":true}\r\n\
    LS+ s\r\nLS+ s h 1\r\nLS+ * i 2\r\n";
const CONNECT: &[u8] = b"CONNECT {\"name\":\"p\",\"headers\":true}\r\n";
const MODE: &[u8] = b"INFO {\"client_id\":1,\"compression\":\"s2_fast\"}\r\n";

// The first two bytes choose whether there is compression, whether the leaf node has logged in, and
// the size of the pieces.
fuzz_target!(|data: &[u8]| {
    let [choice, piece, stream @ ..] = data else { return };
    let how = (choice & 1 == 0, choice & 2 == 0);
    let whole = heard(stream, stream.len().max(1), how);
    let pieces = heard(stream, usize::from(*piece) + 1, how);
    assert_eq!(whole, pieces, "in pieces of {}", usize::from(*piece) + 1);
});

/// How many messages went in, how much the leaf node wants, and whether the connection ends.
fn heard(stream: &[u8], piece: usize, (packed, greeted): (bool, bool)) -> (u64, usize, bool) {
    let settings = Settings::new(&Options::default(), &Identity::default(), usize::MAX);
    let mut engine = Engine::new(ShardId(0), 1, Rc::new(settings), 1);
    let peer = |cid| Peer { cid, ip: "127.0.0.1".into(), port: 1 };
    let mut closed = false;
    engine.open(CLIENT, peer(9), true);
    engine.on_bytes(CLIENT, CLIENT_SAYS);
    engine.open_leaf(OTHER, peer(2), NewLeaf { lid: 2, dialed: None });
    engine.on_bytes(OTHER, OTHER_SAYS);
    turn(&mut engine, &mut closed);
    engine.open_leaf(ID, peer(1), NewLeaf { lid: 1, dialed: None });
    if packed {
        engine.on_bytes(ID, MODE);
        turn(&mut engine, &mut closed);
    }
    if packed && greeted {
        let len = u8::try_from(CONNECT.len() + 4).expect("it is short");
        let head = [b"\xff\x06\0\0S2sTwO\x01", &[len, 0, 0, 0, 0, 0, 0][..]].concat();
        engine.on_bytes(ID, &[&head, CONNECT].concat());
    } else if greeted {
        engine.on_bytes(ID, CONNECT);
    }
    turn(&mut engine, &mut closed);
    for piece in stream.chunks(piece) {
        if closed {
            break;
        }
        engine.on_bytes(ID, piece);
        turn(&mut engine, &mut closed);
    }
    let leaves = engine.view().leaves(false);
    let entries = leaves.iter().find(|leaf| leaf.lid == 1).map_or(0, |leaf| leaf.subscriptions);
    let in_msgs = engine.view().stats().routed.in_msgs;
    let said = (in_msgs, if closed { 0 } else { entries }, closed);
    if !closed {
        engine.on_ended(ID, false);
        turn(&mut engine, &mut closed);
        assert!(closed, "what has ended is closed");
    }
    assert_eq!(engine.view().output_bytes(), 0, "all memory came home");
    said
}

fn turn(engine: &mut Engine, closed: &mut bool) {
    loop {
        engine.end_turn();
        while let Some(output) = engine.next_output() {
            match output {
                Output::Flush(id) => {
                    if let Some(batch) = engine.take_batch(id) {
                        let bytes = batch.iter().map(|piece| piece.bytes().len()).sum();
                        engine.on_sent(id, bytes, Some(batch));
                    }
                }
                Output::Close { conn, .. } => {
                    *closed |= conn == ID;
                    engine.on_closed(conn, None);
                }
                _ => {}
            }
        }
        if engine.next_deadline() != Some(0) {
            return;
        }
        engine.tick();
    }
}
