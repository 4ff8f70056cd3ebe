//! Routes: whatever bytes a peer sends, compressed or not, what is made of them does not depend on
//! where TCP cuts them, nothing is asserted, and all memory comes home. Checksums are not looked
//! at here, so that the fuzzer gets past them.

#![no_main]

use std::rc::Rc;

use libfuzzer_sys::fuzz_target;
use shardcast::cluster::Part;
use shardcast::config::Options;
use shardcast::engine::{
    Action, ConnId, Engine, Identity, NewRoute, Peer, RouteNotice, Settings, ShardId,
};

const ID: ConnId = ConnId { slot: 0, generation: 0 };
const CONNECT: &[u8] = b"CONNECT {\"name\":\"P\",\"cluster\":\"C\"}\r\n";
const INFO: &[u8] = b"INFO {\"server_id\":\"P\",\"server_name\":\"p\",\"cluster\":\"C\",\
    \"headers\":true,\"compression\":\"s2_fast\"}\r\n";
const PLAIN_INFO: &[u8] = b"INFO {\"server_id\":\"P\",\"server_name\":\"p\",\"cluster\":\"C\",\
    \"headers\":true}\r\n";

// The first two bytes choose whether there is compression, whether the peer has said before who it
// is, whether the route is for one account only, and the size of the pieces.
fuzz_target!(|data: &[u8]| {
    let [choice, piece, stream @ ..] = data else { return };
    let (packed, greeted) = (choice & 1 == 0, choice & 2 == 0);
    let part = || if choice & 4 == 0 { Part::All } else { Part::Account("$G".into()) };
    let whole = heard(stream, stream.len().max(1), (packed, greeted), part());
    let pieces = heard(stream, usize::from(*piece) + 1, (packed, greeted), part());
    assert_eq!(whole, pieces, "in pieces of {}", usize::from(*piece) + 1);
});

/// How many messages went in, how much the peer wants, and whether the connection ends.
fn heard(
    stream: &[u8],
    piece: usize,
    (packed, greeted): (bool, bool),
    part: Part,
) -> (u64, usize, bool) {
    let settings = Settings::new(&Options::default(), &Identity::default(), usize::MAX);
    let mut engine = Engine::new(ShardId(0), 1, Rc::new(settings), 1);
    engine.name_cluster("C", false);
    let peer = Peer { cid: 1, ip: "127.0.0.1".into(), port: 1 };
    engine.open_route(ID, peer, NewRoute { rid: 1, dialed: None, host: String::new() });
    let mut closed = false;
    engine.on_bytes(ID, CONNECT);
    engine.on_bytes(ID, if packed { INFO } else { PLAIN_INFO });
    turn(&mut engine, &part, &mut closed);
    if packed && greeted {
        let len = u8::try_from(INFO.len() + 4).expect("it is short");
        let head = [b"\xff\x06\0\0S2sTwO\x01", &[len, 0, 0, 0, 0, 0, 0][..]].concat();
        engine.on_bytes(ID, &[&head, INFO].concat());
        turn(&mut engine, &part, &mut closed);
    }
    for piece in stream.chunks(piece) {
        if closed {
            break;
        }
        engine.on_bytes(ID, piece);
        turn(&mut engine, &part, &mut closed);
    }
    let wishes = engine.routes(false).first().map_or(0, |route| route.subscriptions);
    let in_msgs = engine.stats().routed.in_msgs;
    let said = (in_msgs, if closed { 0 } else { wishes }, closed);
    if !closed {
        engine.on_ended(ID, false);
        turn(&mut engine, &part, &mut closed);
        assert!(closed, "what has ended is closed");
    }
    assert_eq!(engine.output_bytes(), 0, "all memory came home");
    said
}

fn turn(engine: &mut Engine, part: &Part, closed: &mut bool) {
    loop {
        while let Some(notice) = engine.pop_route_notice() {
            if let RouteNotice::Greeted { rid, .. } = notice {
                engine.register_route(rid, part.clone());
            }
        }
        engine.end_turn();
        while let Some(action) = engine.next_action() {
            match action {
                Action::Flush(id) => {
                    if let Some(batch) = engine.take_batch(id) {
                        let bytes = batch.iter().map(|piece| piece.bytes().len()).sum();
                        engine.on_sent(id, bytes, Some(batch));
                    }
                }
                Action::Close { conn, .. } => {
                    *closed = true;
                    engine.on_closed(conn);
                }
                Action::Pause(_) | Action::Resume(_) => {}
            }
        }
        if engine.next_deadline() != Some(0) {
            return;
        }
        engine.tick();
    }
}
