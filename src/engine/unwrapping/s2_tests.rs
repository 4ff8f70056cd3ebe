use std::rc::Rc;

use super::*;
use crate::config::Options;
use crate::engine::{Identity, NewRoute, Peer, Settings, ShardId};
use crate::transport::testing::{chunk_of, stream_of};

/// Takes what the engine has to send.
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
    engine.name_cluster("C", false);
    let id = ConnId { slot: 0, generation: 0 };
    let peer = Peer { cid: 7, ip: "".into(), port: 1 };
    engine.open_route(id, peer, NewRoute { rid: 7, dialed: None, host: String::new() });
    take(&mut engine, id);
    let info = b"INFO {\"server_id\":\"P\",\"server_name\":\"p\",\"cluster\":\"C\",\
        \"compression\":\"s2_fast\"}\r\n";
    // 16 blocks of 4 MiB, each of them a message for nobody.
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
    let conn = engine.conns.get(id).expect("open");
    assert!(conn.partial.len() + conn.layers.waiting_bytes().0 <= bomb.len());
    engine.register_route(7, crate::cluster::Part::All);
    let left = |engine: &Engine| {
        let conn = engine.conns.get(id).filter(|conn| conn.is_open()).expect("open");
        conn.layers.waiting_bytes().0 + engine.waiting_bytes(id)
    };
    let mut turns = 0;
    while left(&engine) > 0 {
        assert!(engine.next_deadline() == Some(engine.now), "it goes on at once");
        engine.tick();
        engine.end_turn();
        turns += 1;
    }
    assert_eq!(engine.stats().routed.in_msgs, 16);
    assert!(turns >= 15, "{turns} turns: one block in each");
    assert!(engine.unwrapping.scratch.kept_bytes() <= 4 * 64 * 1024, "nothing is kept of it");
}
