//! MQTT: whatever bytes come to its port, what is made of them does not depend on where TCP cuts
//! them, nothing is asserted, and all memory comes home; topics that become subjects come back.

#![no_main]

use std::rc::Rc;

use libfuzzer_sys::fuzz_target;
use shardcast::config::{MqttOptions, Options};
use shardcast::engine::{ConnId, Engine, Identity, Output, Peer, Settings, ShardId, Transport};
use shardcast::proto::mqtt::{self, Framed, MqttPacket, PacketLimits, connect, topic};

const ID: ConnId = ConnId { slot: 0, generation: 0 };

// The first byte chooses the size of the pieces.
fuzz_target!(|data: &[u8]| {
    let [piece, stream @ ..] = data else { return };
    decode(stream);
    let whole = heard(stream, stream.len().max(1));
    let pieces = heard(stream, usize::from(*piece) + 1);
    assert_eq!(whole, pieces, "in pieces of {}", usize::from(*piece) + 1);
});

/// Reads packets, and what is in them.
fn decode(mut stream: &[u8]) {
    let limits = PacketLimits { bytes_max: 4096, is_first: false };
    while let Ok(Framed::Packet { packet, used }) = mqtt::parse(stream, limits) {
        stream = &stream[used..];
        match packet {
            MqttPacket::Connect(body) => drop(connect::parse(body)),
            MqttPacket::Publish(publish) => check_topic(publish.topic),
            MqttPacket::Subscribe(filters) | MqttPacket::Unsubscribe(filters) => {
                for (filter, qos) in filters {
                    assert!(qos <= 2 && !filter.is_empty());
                    let _ = topic::subject_of_filter(filter);
                }
            }
            _ => {}
        }
    }
    if let Ok(Framed::Needs(bytes)) = mqtt::parse(stream, limits) {
        assert!(bytes > stream.len(), "progress is asked for");
    }
}

/// Checks that a topic with a subject is that subject's topic.
fn check_topic(topic: &[u8]) {
    let Some(subject) = topic::subject_of_topic(topic) else { return };
    let mut back = Vec::new();
    topic::write_topic(&subject, &mut back);
    assert_eq!(back, topic, "by way of {}", subject.escape_ascii());
    let is_empty = |token: &[u8]| token.is_empty();
    assert!(!subject.split(|byte| *byte == b'.').any(is_empty), "{}", subject.escape_ascii());
}

/// What a client gets, and whether its connection ends. Without JetStream no CONNECT is accepted.
fn heard(stream: &[u8], piece: usize) -> (Vec<u8>, bool) {
    let mut options = Options::default();
    options.network.mqtt = Some(MqttOptions { port: Some(0), ..MqttOptions::default() });
    let settings = Settings::new(&options, &Identity::default(), usize::MAX);
    let mut engine = Engine::new(ShardId(0), 1, Rc::new(settings), 1);
    let (mut said, mut closed) = (Vec::new(), false);
    let peer = Peer { cid: 1, ip: "127.0.0.1".into(), port: 1 };
    engine.open_over(ID, peer, Transport::Mqtt, true);
    for piece in stream.chunks(piece) {
        if closed {
            break;
        }
        engine.on_bytes(ID, piece);
        turn(&mut engine, &mut said, &mut closed);
    }
    let has_ended = closed;
    if !closed {
        engine.on_ended(ID, false);
        turn(&mut engine, &mut said, &mut closed);
        assert!(closed, "what has ended is closed");
    }
    assert_eq!(engine.view().output_bytes(), 0, "all memory came home");
    (said, has_ended)
}

fn turn(engine: &mut Engine, said: &mut Vec<u8>, closed: &mut bool) {
    loop {
        engine.end_turn();
        while let Some(output) = engine.next_output() {
            match output {
                Output::Flush(id) => {
                    if let Some(batch) = engine.take_batch(id) {
                        let before = said.len();
                        batch.iter().for_each(|piece| said.extend_from_slice(piece.bytes()));
                        engine.on_sent(id, said.len() - before, Some(batch));
                    }
                }
                Output::Close { conn, .. } => {
                    *closed = true;
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
