use std::rc::Rc;

use crate::transport::Transport;
use proptest::prelude::*;

use super::*;
use crate::config::{Options, Secret, UserOptions, WebSocketOptions};
use crate::engine::{Engine, Identity, Output, Peer, Settings, ShardId};
use crate::output::Piece;
use crate::transport::UNPACKED_BYTES_PER_TURN;
use crate::transport::testing::{REQUEST_BYTES_MAX, deflated, end_of_request, frame, understood};

const ID: ConnId = ConnId { slot: 0, generation: 0 };
const OTHER: ConnId = ConnId { slot: 1, generation: 0 };
const REQUEST: &str = "GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n";
const FINAL_BINARY: u8 = 0x82;

fn options(compression: bool) -> Options {
    let websocket = WebSocketOptions { compression, port: Some(1), ..WebSocketOptions::default() };
    let mut options = Options::default();
    options.network.websocket = Some(websocket);
    options
}

fn engine(options: &Options) -> Engine {
    let settings = Settings::new(options, &Identity::default(), usize::MAX);
    let mut engine = Engine::new(ShardId(0), 1, Rc::new(settings), 1);
    open(&mut engine, ID);
    engine
}

fn open(engine: &mut Engine, id: ConnId) {
    let peer = Peer { cid: u64::from(id.slot) + 1, ip: "127.0.0.1".into(), port: 1 };
    engine.open_over(id, peer, Transport::WebSocket, true);
}

/// Asks for an upgrade with these header fields besides, and returns the answer.
fn upgraded(engine: &mut Engine, id: ConnId, fields: &str) -> String {
    engine.on_bytes(id, format!("{REQUEST}{fields}\r\n").as_bytes());
    let sent = sent(engine, id);
    let head = end_of_request(&sent).map_or(sent.len(), |end| end);
    String::from_utf8(sent[..head].to_vec()).unwrap()
}

/// Returns all bytes that go over the wire.
fn sent(engine: &mut Engine, id: ConnId) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some(batch) = engine.take_batch(id) {
        let before = bytes.len();
        batch.iter().for_each(|piece| bytes.extend_from_slice(piece.bytes()));
        engine.on_sent(id, bytes.len() - before, Some(batch));
    }
    bytes
}

fn heard(engine: &mut Engine, id: ConnId) -> (String, Vec<(u8, Vec<u8>)>) {
    understood(&sent(engine, id))
}

fn actions(engine: &mut Engine) -> Vec<Output> {
    std::iter::from_fn(|| engine.next_output()).collect()
}

fn is_closed(engine: &mut Engine) -> bool {
    actions(engine).iter().any(|action| matches!(action, Output::Close { conn: ID, .. }))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn wherever_a_stream_is_put_into_frames_and_cut_it_says_the_same(
        frames in prop::collection::vec(0usize..200, 1..20),
        pieces in prop::collection::vec(1usize..90, 1..20),
        packs in any::<bool>(),
    ) {
        let mut engine = engine(&options(packs));
        upgraded(&mut engine, ID, "Sec-WebSocket-Extensions: permessage-deflate\r\n");
        let payload = "payload ".repeat(30);
        let publish = format!("PUB a {}\r\n{payload}\r\n", payload.len());
        let publishes = publish.repeat(3);
        let stream =
            format!("CONNECT {{\"verbose\":false}}\r\nSUB a 7\r\n{publishes}PING\r\n");
        let (mut wire, mut rest) = (Vec::new(), stream.as_bytes());
            for (at, len) in frames.iter().cycle().enumerate() {
            let (head, tail) = rest.split_at((*len).min(rest.len()));
            let packed = deflated(head);
            match at % 3 {
                _ if packs && at % 2 == 0 => {
                    // A compressed message in two fragments.
                    let (one, two) = packed.split_at(packed.len() / 2);
                    wire.extend(frame(0x42, one));
                    wire.extend(frame(0x89, b"between"));
                    wire.extend(frame(0x80, two));
                }
                0 => wire.extend(frame(0x81, head)),
                1 => wire.extend([frame(0x02, b""), frame(0x80, head)].concat()),
                _ => wire.extend(frame(FINAL_BINARY, head)),
            }
            rest = tail;
            if rest.is_empty() {
                break;
            }
            if *len == 0 && frames.iter().all(|len| *len == 0) {
                wire.extend(frame(FINAL_BINARY, rest));
                break;
            }
        }
        let (mut rest, mut pieces) = (&wire[..], pieces.iter().cycle());
        while !rest.is_empty() {
            let (head, tail) = rest.split_at(pieces.next().unwrap().min(&rest.len()).to_owned());
            engine.on_bytes(ID, head);
            rest = tail;
        }
        let (text, others) = heard(&mut engine, ID);
        let wanted = format!("MSG a 7 {}\r\n{payload}\r\n", payload.len()).repeat(3) + "PONG\r\n";
        prop_assert_eq!(text, wanted);
        prop_assert!(others.iter().all(|(first, _)| *first == 0x8a));
        prop_assert_eq!(engine.core.spares.held_bytes(), 0, "all memory came home");
    }
}

#[test]
fn info_comes_with_the_answer_and_not_before() {
    let mut engine = engine(&options(false));
    assert!(sent(&mut engine, ID).is_empty());
    assert!(engine.view().conns_page(0).entries.is_empty(), "nobody yet");
    engine.on_bytes(ID, REQUEST.as_bytes());
    assert!(sent(&mut engine, ID).is_empty());
    engine.on_bytes(ID, b"\r\n");
    let wire = sent(&mut engine, ID);
    let head = end_of_request(&wire).unwrap();
    assert!(wire.starts_with(b"HTTP/1.1 101 "));
    assert!(understood(&wire[head..]).0.starts_with("INFO {"));
    assert_eq!(engine.view().conns_page(0).entries[0].transport, Transport::WebSocket);
}

#[test]
fn a_request_that_is_refused_is_answered_and_closed() {
    let mut engine = engine(&options(false));
    engine.on_bytes(ID, b"POST / HTTP/1.1\r\nHost: h\r\n\r\n");
    let answer = String::from_utf8(sent(&mut engine, ID)).unwrap();
    assert!(answer.starts_with("HTTP/1.1 405 Method Not Allowed\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nMethod Not Allowed\n"), "{answer}");
    assert!(is_closed(&mut engine));
}

#[test]
fn who_sends_no_whole_request_in_time_or_one_without_end_is_closed() {
    let mut slow = engine(&options(false));
    slow.on_bytes(ID, b"GET / HT");
    slow.set_now(1_999_999_999);
    slow.tick();
    assert!(!is_closed(&mut slow));
    slow.set_now(2_000_000_000);
    slow.tick();
    assert!(is_closed(&mut slow));
    let mut endless = engine(&options(false));
    endless.on_bytes(ID, &[b'a'; REQUEST_BYTES_MAX + 1]);
    assert!(sent(&mut endless, ID).starts_with(b"HTTP/1.1 431 "));
    assert!(is_closed(&mut endless));
    let mut hasty = engine(&options(false));
    hasty.on_bytes(ID, format!("{REQUEST}\r\nPING\r\n").as_bytes());
    assert!(is_closed(&mut hasty), "nothing may follow before the answer");
}

#[test]
fn what_many_subscribers_share_is_shared_by_websockets_too() {
    let mut engine = engine(&options(false));
    open(&mut engine, OTHER);
    for id in [ID, OTHER] {
        upgraded(&mut engine, id, "");
        engine.on_bytes(id, &frame(FINAL_BINARY, b"CONNECT {\"verbose\":false}\r\nSUB a 1\r\n"));
    }
    let payload = "x".repeat(5000);
    engine.on_bytes(ID, &frame(FINAL_BINARY, format!("PUB a 5000\r\n{payload}\r\n").as_bytes()));
    for id in [ID, OTHER] {
        let batch = engine.take_batch(id).unwrap();
        let shared = batch.iter().filter(|piece| matches!(piece, Piece::Shared { .. })).count();
        assert_eq!((batch.len(), shared), (2, 1), "a header, and what is shared");
        let bytes: Vec<u8> = batch.iter().flat_map(|piece| piece.bytes()).copied().collect();
        assert_eq!(understood(&bytes).0, format!("MSG a 1 5000\r\n{payload}\r\n"));
        engine.on_sent(id, bytes.len(), Some(batch));
    }
    assert_eq!(engine.view().output_bytes(), 0);
}

#[test]
fn of_many_pings_the_last_is_answered() {
    let mut engine = engine(&options(false));
    upgraded(&mut engine, ID, "");
    for n in 0..1000 {
        engine.on_bytes(ID, &frame(0x89, format!("{n}").as_bytes()));
    }
    assert_eq!(heard(&mut engine, ID).1, [(0x8a, b"999".to_vec())]);
}

#[test]
fn the_end_is_said_behind_everything_else() {
    let goodbye = |wire: &[u8]| {
        let mut engine = engine(&options(false));
        upgraded(&mut engine, ID, "");
        engine.on_bytes(ID, wire);
        let (text, others) = heard(&mut engine, ID);
        assert!(is_closed(&mut engine));
        (text, others)
    };
    let close = |code: u16, text: &str| (0x88, [&code.to_be_bytes(), text.as_bytes()].concat());
    let bye = close(1000, "bye").1;
    assert_eq!(goodbye(&frame(0x88, &bye)), (String::new(), vec![(0x88, bye.clone())]));
    let ping = [frame(FINAL_BINARY, b"PING\r\n"), frame(0x88, b"")].concat();
    assert_eq!(goodbye(&ping), ("PONG\r\n".to_owned(), vec![(0x88, Vec::new())]));
    let (text, others) = goodbye(&frame(FINAL_BINARY, b"bogus\r\n"));
    assert_eq!(text, "-ERR 'Unknown Protocol Operation'\r\n");
    assert_eq!(others, [close(1002, "Protocol Violation")]);
    let invalid = [&1000u16.to_be_bytes()[..], b"\xff"].concat();
    let wanted = close(1007, "invalid utf8 body in close frame");
    assert_eq!(goodbye(&frame(0x88, &invalid)).1, [wanted]);
    assert_eq!(goodbye(&[0x82, 0x01, b'x']).1, [close(1002, "mask bit missing")]);
}

#[test]
fn a_bomb_is_unpacked_in_turns_and_ends_where_its_stream_ends() {
    let mut engine = engine(&options(true));
    upgraded(&mut engine, ID, "Sec-WebSocket-Extensions: permessage-deflate\r\n");
    let connect = frame(FINAL_BINARY, b"CONNECT {\"verbose\":false}\r\n");
    engine.on_bytes(ID, &connect);
    // Empty publishes without receivers: each of them counts.
    let count = 2_000_000;
    let bomb = deflated(&b"PUB a 0\r\n\r\n".repeat(count));
    engine.on_bytes(ID, &frame(0xc2, &bomb));
    engine.on_ended(ID, false);
    assert!(
        actions(&mut engine).iter().any(|it| matches!(it, Output::Pause(conn) if *conn == ID)),
        "nothing more is read meanwhile"
    );
    let mut turns = 0;
    while engine.next_deadline().is_some_and(|due| due <= engine.core.times.now) {
        let before = engine.view().stats().in_msgs;
        engine.tick();
        engine.end_turn();
        assert!((engine.view().stats().in_msgs - before) * 11 < 3 * UNPACKED_BYTES_PER_TURN as u64);
        turns += 1;
    }
    assert!(turns > 5, "{turns}");
    assert_eq!(engine.view().stats().in_msgs, count as u64);
    sent(&mut engine, ID);
    assert!(is_closed(&mut engine), "only now");
}

#[test]
fn very_many_small_frames_cost_what_they_do_and_are_taken_in_turns() {
    const COUNT: usize = 6_000;
    let publish = b"PUB a 0\r\n\r\n";
    for (kind, payload, each) in
        [(0xc2, deflated(publish), 1_500), (FINAL_BINARY, publish.to_vec(), 50), (0x89, vec![], 50)]
    {
        let mut engine = engine(&options(true));
        upgraded(&mut engine, ID, "Sec-WebSocket-Extensions: permessage-deflate\r\n");
        let connect = frame(FINAL_BINARY, b"CONNECT {\"verbose\":false}\r\n");
        engine.on_bytes(ID, &connect);
        engine.end_turn();
        let frames = frame(kind, &payload).repeat(COUNT);
        for chunk in frames.chunks(64 * 1024) {
            engine.on_bytes(ID, chunk);
        }
        let (mut all, mut most) = (0, 0);
        for turn in 0.. {
            engine.tick();
            engine.end_turn();
            let work = engine.view().turn_cost().work;
            (all, most) = (all + work, most.max(work));
            if engine.next_deadline().is_none_or(|due| due > engine.core.times.now) {
                break;
            }
            assert!(turn < 1_000, "it never comes to an end");
        }
        let published = if kind == 0x89 { 0 } else { COUNT as u64 };
        assert_eq!(engine.view().stats().in_msgs, published);
        assert!(all >= COUNT as u64 * each, "{kind:#x}: {all}");
        assert!(most < 4_000_000, "{kind:#x}: {most} in one turn");
    }
}

#[test]
fn a_user_may_connect_only_in_the_ways_that_it_may() {
    let mut options = options(false);
    let user = |name: &str, only| UserOptions {
        connection_types: vec![only],
        password: Secret::new("p"),
        ..UserOptions::named(name)
    };
    options.auth.users = vec![
        user("web", crate::config::ConnectionType::Websocket),
        user("plain", crate::config::ConnectionType::Standard),
    ];
    let verdict = |transport, name: &str| {
        let mut engine = engine(&options);
        let peer = Peer { cid: 9, ip: "127.0.0.1".into(), port: 1 };
        engine.open_over(OTHER, peer, transport, true);
        let connect =
            format!("CONNECT {{\"verbose\":false,\"user\":\"{name}\",\"pass\":\"p\"}}\r\nPING\r\n");
        if transport == Transport::WebSocket {
            upgraded(&mut engine, OTHER, "");
            engine.on_bytes(OTHER, &frame(FINAL_BINARY, connect.as_bytes()));
        } else {
            engine.on_bytes(OTHER, connect.as_bytes());
        }
        let wire = String::from_utf8_lossy(&sent(&mut engine, OTHER)).into_owned();
        wire.contains("PONG")
    };
    assert!(verdict(Transport::WebSocket, "web") && verdict(Transport::Tcp, "plain"));
    assert!(!verdict(Transport::WebSocket, "plain") && !verdict(Transport::Tcp, "web"));
}

#[test]
fn the_client_that_trusted_proxies_name_is_shown() {
    let shown = |trusted: &[&str], field: &str| {
        let mut options = options(false);
        options.network.trusted_proxies =
            trusted.iter().map(|network| network.parse().unwrap()).collect();
        let mut engine = engine(&options);
        upgraded(&mut engine, ID, &format!("X-Forwarded-For: {field}\r\n"));
        engine.view().conns_page(0).entries[0].ip.to_string()
    };
    assert_eq!(shown(&[], "9.9.9.9"), "127.0.0.1");
    assert_eq!(shown(&["127.0.0.0/8"], "9.9.9.9"), "9.9.9.9");
    assert_eq!(shown(&["127.0.0.0/8"], "6.6.6.6, 9.9.9.9, 127.1.1.1"), "9.9.9.9", "no forgery");
    assert_eq!(shown(&["127.0.0.0/8"], "<script>"), "127.0.0.1");
}
