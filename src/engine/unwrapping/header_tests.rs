use crate::core::layers::HEADER_NS;
use std::rc::Rc;

use super::*;
use crate::config::Options;
use crate::engine::{Engine, Identity, Output, Peer, Settings, ShardId};

const ID: ConnId = ConnId { slot: 0, generation: 0 };

/// An engine with a connection from 127.0.0.1, and proxies trusted there or nowhere.
fn behind_proxy(trusted: &[&str]) -> Engine {
    let mut options = Options::default();
    options.network.proxy_protocol = true;
    options.network.trusted_proxies =
        trusted.iter().map(|network| network.parse().unwrap()).collect();
    let settings = Settings::new(&options, &Identity::default(), usize::MAX);
    let mut engine = Engine::new(ShardId(0), 1, Rc::new(settings), 1);
    engine.open(ID, Peer { cid: 1, ip: "127.0.0.1".into(), port: 9 }, true);
    engine
}

fn who(engine: &Engine) -> (String, u16) {
    let conn = &engine.view().conns_page(0).entries[0];
    (conn.ip.to_string(), conn.port)
}

fn heard(engine: &mut Engine) -> String {
    let batch = engine.take_batch(ID).unwrap_or_default();
    let bytes: Vec<u8> = batch.iter().flat_map(|piece| piece.bytes()).copied().collect();
    engine.on_sent(ID, bytes.len(), Some(batch));
    let text = String::from_utf8(bytes).unwrap();
    text.rsplit_once('}').map_or(text.clone(), |(_, rest)| rest.trim().to_owned())
}

const HEADER: &[u8] = b"PROXY TCP4 9.8.7.6 5.6.7.8 1111 2222\r\nCONNECT {}\r\nPING\r\n";

#[test]
fn the_client_that_a_proxy_names_is_shown_wherever_its_header_is_cut() {
    for cut in 0..HEADER.len() {
        let mut engine = behind_proxy(&[]);
        engine.on_bytes(ID, &HEADER[..cut]);
        engine.on_bytes(ID, &HEADER[cut..]);
        assert_eq!(who(&engine), ("9.8.7.6".to_owned(), 1111), "cut at {cut}");
        assert_eq!(heard(&mut engine), "+OK\r\nPONG", "cut at {cut}");
    }
}

#[test]
fn who_comes_without_a_header_is_served() {
    let mut engine = behind_proxy(&[]);
    engine.on_bytes(ID, b"P");
    engine.on_bytes(ID, b"ING\r\n");
    assert_eq!(heard(&mut engine), "PONG");
    assert_eq!(who(&engine).1, 9);
}

#[test]
fn a_header_is_believed_of_trusted_proxies_only() {
    let mut engine = behind_proxy(&["127.0.0.0/8"]);
    engine.on_bytes(ID, HEADER);
    assert_eq!(who(&engine).1, 1111);
    let mut engine = behind_proxy(&["10.0.0.0/8"]);
    engine.on_bytes(ID, HEADER);
    assert_eq!(heard(&mut engine), "-ERR 'Unknown Protocol Operation'");
}

#[test]
fn a_header_that_does_not_end_is_waited_for_no_longer_than_it_may_take() {
    let mut engine = behind_proxy(&[]);
    engine.on_bytes(ID, &HEADER[..10]);
    engine.set_now(HEADER_NS - 1);
    engine.tick();
    assert_eq!(engine.view().open_conns(), 1);
    heard(&mut engine);
    engine.set_now(HEADER_NS);
    engine.tick();
    let closed = std::iter::from_fn(|| engine.next_output())
        .any(|action| matches!(action, Output::Close { .. }));
    assert!(closed);
}

#[test]
fn a_broken_header_ends_the_connection() {
    let mut engine = behind_proxy(&[]);
    heard(&mut engine);
    engine.on_bytes(ID, b"PROXY TCP4 nobody\r\nPING\r\n");
    assert_eq!(engine.view().open_conns(), 0);
}
