//! Routes: whatever bytes a peer sends, compressed or not, what is made of them does not depend on
//! where TCP cuts them, nothing is asserted, clients and other peers get whole messages, and all
//! memory comes home. Checksums are not looked at here, so that the fuzzer gets past them.

#![no_main]

use std::rc::Rc;

use libfuzzer_sys::fuzz_target;
use shardcast::cluster::PoolPart;
use shardcast::config::Options;
use shardcast::engine::{
    ConnId, Engine, Identity, NewRoute, Output, Peer, RouteNotice, RouteOrder, Settings, ShardId,
};
use shardcast::proto::route::{self, AccountNaming, Form, RouteParsed};

const ID: ConnId = ConnId { slot: 0, generation: 0 };
/// A client that gets everything, and is a member of a queue group.
const CLIENT: ConnId = ConnId { slot: 1, generation: 0 };
const CLIENT_SAYS: &[u8] =
    b"CONNECT {\"verbose\":false,\"headers\":true}\r\nSUB > 1\r\nSUB s g 2\r\n";
/// Another peer, which has members of groups, and leaf nodes that do.
const OTHER: ConnId = ConnId { slot: 2, generation: 0 };
const OTHER_SAYS: &[u8] =
    b"CONNECT {\"name\":\"Q\",\"cluster\":\"C\"}\r\nINFO {\"server_id\":\"Q\",\
    \"server_name\":\"q\",\"cluster\":\"C\",\"headers\":true,\"ln\":true}\r\nRS+ $G s h 1\r\n\
    LS+ o $G s i 1\r\nLS+ _ $G * j 2\r\n";
const CONNECT: &[u8] = b"CONNECT {\"name\":\"P\",\"cluster\":\"C\"}\r\n";
const INFO: &[u8] = b"INFO {\"server_id\":\"P\",\"server_name\":\"p\",\"cluster\":\"C\",\
    \"headers\":true,\"compression\":\"s2_fast\"}\r\n";
const PLAIN_INFO: &[u8] = b"INFO {\"server_id\":\"P\",\"server_name\":\"p\",\"cluster\":\"C\",\
    \"headers\":true,\"ln\":true}\r\n";

// The first two bytes choose whether there is compression, whether the peer has said before who it
// is, whether the route is for one account only, and the size of the pieces.
fuzz_target!(|data: &[u8]| {
    let [choice, piece, stream @ ..] = data else { return };
    let (packed, greeted) = (choice & 1 == 0, choice & 2 == 0);
    let part = || if choice & 4 == 0 { PoolPart::All } else { PoolPart::Account("$G".into()) };
    let whole = heard(stream, stream.len().max(1), (packed, greeted), part());
    let pieces = heard(stream, usize::from(*piece) + 1, (packed, greeted), part());
    assert_eq!(whole, pieces, "in pieces of {}", usize::from(*piece) + 1);
});

/// How many messages went in, how much the peer wants, and whether the connection ends.
fn heard(
    stream: &[u8],
    piece: usize,
    (packed, greeted): (bool, bool),
    part: PoolPart,
) -> (u64, usize, bool) {
    let settings = Settings::new(&Options::default(), &Identity::default(), usize::MAX);
    let mut engine = Engine::new(ShardId(0), 1, Rc::new(settings), 1);
    engine.on_route_order(RouteOrder::Name { name: "C".to_owned(), is_dynamic: false });
    let peer = Peer { cid: 1, ip: "127.0.0.1".into(), port: 1 };
    let mut closed = false;
    engine.open(CLIENT, peer.clone(), true);
    engine.on_bytes(CLIENT, CLIENT_SAYS);
    engine.open_route(OTHER, peer.clone(), NewRoute { rid: 2, dialed: None, host: String::new() });
    engine.on_bytes(OTHER, OTHER_SAYS);
    turn(&mut engine, &PoolPart::All, &mut closed);
    engine.open_route(ID, peer, NewRoute { rid: 1, dialed: None, host: String::new() });
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
    let routes = engine.view().routes(false);
    let entries = routes.iter().find(|route| route.rid == 1).map_or(0, |route| route.subscriptions);
    let in_msgs = engine.view().stats().routed.in_msgs;
    let said = (in_msgs, if closed { 0 } else { entries }, closed);
    if !closed {
        engine.on_ended(ID, false);
        turn(&mut engine, &part, &mut closed);
        assert!(closed, "what has ended is closed");
    }
    assert_eq!(engine.view().output_bytes(), 0, "all memory came home");
    said
}

fn turn(engine: &mut Engine, part: &PoolPart, closed: &mut bool) {
    loop {
        engine.end_turn();
        let mut has_news = false;
        while let Some(output) = engine.next_output() {
            match output {
                Output::Flush(id) => {
                    if let Some(batch) = engine.take_batch(id) {
                        let bytes = batch.iter().map(|piece| piece.bytes().len()).sum();
                        let said: Vec<u8> = batch.iter().flat_map(|p| p.bytes()).copied().collect();
                        match id {
                            CLIENT => assert_client_understands(&said),
                            OTHER => assert_peer_understands(&said),
                            _ => {}
                        }
                        engine.on_sent(id, bytes, Some(batch));
                    }
                }
                Output::Close { conn, .. } => {
                    *closed |= conn == ID;
                    engine.on_closed(conn, None);
                }
                Output::Link(notice) => {
                    has_news = true;
                    match *notice {
                        RouteNotice::Greeted { rid, .. } => {
                            engine.on_route_order(RouteOrder::Register(rid, part.clone()));
                        }
                        RouteNotice::Heard { rid, .. } => {
                            engine.on_route_order(RouteOrder::HearOn(rid));
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

/// What a client is sent are lines, with payloads as long as MSG and HMSG say.
fn assert_client_understands(mut said: &[u8]) {
    while !said.is_empty() {
        let end = said.windows(2).position(|two| two == b"\r\n").expect("a whole line");
        let (line, rest) = (&said[..end], &said[end + 2..]);
        said = rest;
        let words: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let sizes = match words[0] {
            b"MSG" => 1,
            b"HMSG" => 2,
            _ => continue,
        };
        assert!((3 + sizes..=4 + sizes).contains(&words.len()), "{}", line.escape_ascii());
        let number = |word: &[u8]| std::str::from_utf8(word).ok().and_then(|n| n.parse().ok());
        let size: usize = number(words[words.len() - 1]).expect("a size");
        let header: usize = number(words[words.len() - sizes]).expect("a size");
        assert!(header <= size);
        assert_eq!(&said[size..size + 2], b"\r\n");
        said = &said[size + 2..];
    }
}

/// What a peer is sent it can read.
fn assert_peer_understands(mut said: &[u8]) {
    let form = Form { accounts: AccountNaming::Named, origins: true };
    while !said.is_empty() {
        let Ok(RouteParsed::Op { used, .. }) = route::parse(said, usize::MAX, form) else {
            panic!("{}", said.escape_ascii());
        };
        said = &said[used..];
    }
}
