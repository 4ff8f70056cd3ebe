//! Gateways: whatever bytes a server of another cluster sends, dialled or accepted, with all
//! interest told or not, what is made of them does not depend on where TCP cuts them, nothing is
//! asserted, no client is shown a mapped reply, and all memory comes home.

#![no_main]

use std::rc::Rc;

use libfuzzer_sys::fuzz_target;
use shardcast::config::Options;
use shardcast::engine::{
    ConnId, DialedGateway, Engine, GatewayIdentity, GatewayNotice, GatewayOrder, Identity,
    NewGateway, Output, Peer, Settings, ShardId,
};

const ID: ConnId = ConnId { slot: 0, generation: 0 };
/// A client that gets everything, is a member of a queue group, and asks and answers.
const CLIENT: ConnId = ConnId { slot: 1, generation: 0 };
const CLIENT_SAYS: &[u8] =
    b"CONNECT {\"verbose\":false,\"headers\":true}\r\nSUB > 1\r\nSUB s g 2\r\nSUB inbox 3\r\n";
const CLIENT_GOES_ON: &[u8] = b"PUB s inbox 1\r\nx\r\nPUB a.b 1\r\ny\r\nPUB r 1\r\nz\r\n";
const CONNECT: &[u8] = b"CONNECT {\"name\":\"P\",\"gateway\":\"B\"}\r\n";
const TELLS_ALL: &[u8] = b"INFO {\"server_id\":\"P\",\"server_name\":\"p\",\"gateway\":\"B\",\
    \"headers\":true,\"gateway_iom\":true,\"shardcast\":true}\r\n";
const OPTIMIST: &[u8] =
    b"INFO {\"server_id\":\"P\",\"server_name\":\"p\",\"gateway\":\"B\",\"headers\":true}\r\n";

// The first two bytes choose who has dialled, whether the peer tells all its interest, whether it
// has said before who it is, and the size of the pieces.
fuzz_target!(|data: &[u8]| {
    let [choice, piece, stream @ ..] = data else { return };
    let whole = heard(stream, stream.len().max(1), *choice);
    let pieces = heard(stream, usize::from(*piece) + 1, *choice);
    assert_eq!(whole, pieces, "in pieces of {}", usize::from(*piece) + 1);
});

/// How many messages went in, how much the peer wants, and whether the connection ends.
fn heard(stream: &[u8], piece: usize, choice: u8) -> (u64, usize, bool) {
    let gateway = GatewayIdentity { name: "A".to_owned(), ..GatewayIdentity::default() };
    let identity = Identity { gateway: Some(gateway), ..Identity::default() };
    let settings = Settings::new(&Options::default(), &identity, usize::MAX);
    let mut engine = Engine::new(ShardId(0), 1, Rc::new(settings), 1);
    let peer = Peer { cid: 1, ip: "127.0.0.1".into(), port: 1 };
    let mut closed = false;
    engine.open(CLIENT, peer.clone(), true);
    engine.on_bytes(CLIENT, CLIENT_SAYS);
    let dialed = (choice & 1 == 0).then(|| DialedGateway {
        cluster: "B".to_owned(),
        is_configured: true,
        login: None,
        host: String::new(),
    });
    let is_dialed = dialed.is_some();
    engine.open_gateway(ID, peer, NewGateway { rid: 1, dialed });
    if choice & 4 == 0 {
        if !is_dialed {
            engine.on_bytes(ID, CONNECT);
        }
        engine.on_bytes(ID, if choice & 2 == 0 { TELLS_ALL } else { OPTIMIST });
        turn(&mut engine, &mut closed);
    }
    for piece in stream.chunks(piece) {
        if closed {
            break;
        }
        engine.on_bytes(ID, piece);
        turn(&mut engine, &mut closed);
    }
    engine.on_bytes(CLIENT, CLIENT_GOES_ON);
    turn(&mut engine, &mut closed);
    let gateways = engine.view().gateways(true);
    let entries = gateways.first().map_or(0, |gateway| gateway.subscriptions);
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
        let mut has_news = false;
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
                Output::Gateway(notice) => {
                    has_news = true;
                    match *notice {
                        GatewayNotice::Greeted { rid, .. } => {
                            engine.on_gateway_order(GatewayOrder::Register(rid, Vec::new()));
                        }
                        GatewayNotice::Heard { rid, .. } => {
                            engine.on_gateway_order(GatewayOrder::HearOn(rid));
                        }
                        _ => {}
                    }
                }
                _ => {}
            }
        }
        if !has_news && engine.next_deadline() != Some(0) {
            return;
        }
        engine.tick();
    }
}
