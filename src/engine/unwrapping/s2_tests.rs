use std::rc::Rc;

use super::*;
use crate::config::Options;
use crate::core::layers::UNDECIDED_MAX;
use crate::engine::{Engine, Identity, NewRoute, Peer, Settings, ShardId};
use crate::link::RouteOrder;
use crate::transport::Compression;
use crate::transport::testing::{chunk_of, stream_of};

/// Takes the output of the engine.
fn take(engine: &mut Engine, id: ConnId) {
    while let Some(batch) = engine.take_batch(id) {
        let bytes = batch.iter().map(|piece| piece.bytes().len()).sum();
        engine.on_sent(id, bytes, Some(batch));
    }
}

#[test]
fn a_bomb_is_handled_bit_by_bit_and_not_at_all_before_the_peer_may_stay() {
    let mut options = Options::default();
    options.cluster.compression = Compression::Accept;
    let settings = Settings::new(&options, &Identity::default(), usize::MAX);
    let mut engine = Engine::new(ShardId(0), 1, Rc::new(settings), 1);
    engine.on_route_order(RouteOrder::Name { name: "C".to_owned(), is_dynamic: false });
    let id = ConnId { slot: 0, generation: 0 };
    let peer = Peer { cid: 7, ip: "".into(), port: 1 };
    engine.open_route(id, peer, NewRoute { rid: 7, dialed: None, host: String::new() });
    take(&mut engine, id);
    let info = b"INFO {\"server_id\":\"P\",\"server_name\":\"p\",\"cluster\":\"C\",\
        \"compression\":\"s2_fast\"}\r\n";
    // 16 blocks of 4 MiB, each of them a message without receivers.
    let mut block = b"RMSG $G x 4194000\r\n".to_vec();
    block.resize(block.len() + 4_194_000, b'x');
    block.extend_from_slice(b"\r\n");
    let mut bomb = stream_of(&[info]);
    for _ in 0..16 {
        bomb.extend(chunk_of(&block));
    }
    engine.on_bytes(id, b"CONNECT {\"name\":\"P\",\"cluster\":\"C\"}\r\n");
    engine.on_bytes(id, &[info, &bomb[..]].concat());
    for _ in 0..10 {
        engine.tick();
        engine.end_turn();
        take(&mut engine, id);
    }
    let conn = engine.core.conns.get(id).expect("open");
    assert!(conn.input.len() + conn.layers.waiting_bytes().0 <= bomb.len());
    engine.on_route_order(RouteOrder::Register(7, crate::cluster::PoolPart::All));
    let left = |engine: &Engine| {
        let conn = engine.core.conns.get(id).filter(|conn| conn.is_open()).expect("open");
        conn.layers.waiting_bytes().0 + engine.view().waiting_bytes(id)
    };
    let mut turns = 0;
    while left(&engine) > 0 {
        assert!(engine.next_deadline() == Some(engine.core.times.now), "it goes on at once");
        engine.tick();
        engine.end_turn();
        turns += 1;
    }
    assert_eq!(engine.view().stats().routed.in_msgs, 16);
    assert!(turns >= 15, "{turns} turns: one block in each");
    assert!(
        engine.core.input.layers.scratch.kept_bytes() <= 4 * 64 * 1024,
        "nothing is kept of it"
    );
}

/// Opens a route with a peer that has agreed to compress; returns its id and INFO.
fn agree(engine: &mut Engine, at: u32) -> (ConnId, String) {
    let id = ConnId { slot: at, generation: 0 };
    let peer = Peer { cid: at.into(), ip: "".into(), port: 1 };
    engine.open_route(id, peer, NewRoute { rid: at.into(), dialed: None, host: String::new() });
    take(engine, id);
    engine.on_bytes(id, b"CONNECT {\"name\":\"P\",\"cluster\":\"C\"}\r\n");
    let info = format!(
        "INFO {{\"server_id\":\"{at}\",\"server_name\":\"{at}\",\"cluster\":\"C\",\
         \"compression\":\"s2_fast\"}}\r\n"
    );
    engine.on_bytes(id, info.as_bytes());
    some_turns(engine, id, 3);
    (id, info)
}

fn some_turns(engine: &mut Engine, id: ConnId, turns: usize) {
    for _ in 0..turns {
        engine.tick();
        engine.end_turn();
        take(engine, id);
    }
}

#[test]
fn peers_that_may_not_stay_yet_take_little_memory_together_and_keep_nobody_out() {
    let mut options = Options::default();
    options.cluster.compression = Compression::Accept;
    let settings = Settings::new(&options, &Identity::default(), usize::MAX);
    let mut engine = Engine::new(ShardId(0), 1, Rc::new(settings), 1);
    engine.on_route_order(RouteOrder::Name { name: "C".to_owned(), is_dynamic: false });
    // The beginnings of chunks that are not compressed.
    let much = [&b"\xff\x06\0\0S2sTwO\x01\x40\x42\x0f"[..], &[b'x'; 500_000]];
    for at in 1..40 {
        let (id, _) = agree(&mut engine, at);
        engine.on_bytes(id, &much.concat());
        some_turns(&mut engine, id, 3);
    }
    let held = |conn: &Conn| conn.layers.chunk_bytes() + conn.layers.waiting_bytes().0;
    let all: Vec<usize> = (1..40)
        .filter_map(|at| engine.core.conns.at(at))
        .filter(|conn| conn.is_open())
        .map(held)
        .collect();
    assert!(all.len() == UNDECIDED_MAX && all.iter().all(|held| *held <= 600_000), "{all:?}");
    // No peer may have more memory.
    let (id, _) = agree(&mut engine, 50);
    engine.on_bytes(id, b"\xff\x06\0\0S2sTwO\x01\x80\x84\x1e");
    assert!(!engine.core.conns.get(id).is_some_and(|conn| conn.is_open()));
    // A peer sends all its interest in one chunk.
    let (id, info) = agree(&mut engine, 60);
    let entries: String = (0..40_000).map(|at| format!("RS+ $G s.{at:010}\r\n")).collect();
    let said = [&b"\xff\x06\0\0S2sTwO"[..], &chunk_of((info + &entries).as_bytes())].concat();
    said.chunks(20_000).for_each(|piece| engine.on_bytes(id, piece));
    some_turns(&mut engine, id, 10);
    engine.on_route_order(RouteOrder::Register(60, crate::cluster::PoolPart::All));
    some_turns(&mut engine, id, 1000);
    let wanted: usize = engine.view().routes(false).iter().map(|route| route.subscriptions).sum();
    assert_eq!(wanted, 40_000);
}

#[test]
fn what_came_before_a_chunk_without_sense_is_handled_however_long_that_takes() {
    let mut options = Options::default();
    options.cluster.compression = Compression::Accept;
    let settings = Settings::new(&options, &Identity::default(), usize::MAX);
    let mut engine = Engine::new(ShardId(0), 1, Rc::new(settings), 1);
    engine.on_route_order(RouteOrder::Name { name: "C".to_owned(), is_dynamic: false });
    let (id, info) = agree(&mut engine, 1);
    engine.on_bytes(id, &stream_of(&[info.as_bytes()]));
    some_turns(&mut engine, id, 3);
    engine.on_route_order(RouteOrder::Register(1, crate::cluster::PoolPart::All));
    some_turns(&mut engine, id, 3);
    let messages = b"RMSG $G x 0\r\n\r\n".repeat(200_000);
    engine.on_bytes(id, &[&chunk_of(&messages)[..], b"\x02\0\0\0"].concat());
    assert!(engine.view().waiting_bytes(id) > 0, "a turn has no time for all of it");
    some_turns(&mut engine, id, 1000);
    assert_eq!(engine.view().stats().routed.in_msgs, 200_000);
    assert!(!engine.core.conns.get(id).is_some_and(|conn| conn.is_open()));
}
