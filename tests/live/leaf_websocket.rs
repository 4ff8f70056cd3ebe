//! Leaf nodes over WebSocket, ours and nats-server in every combination.

use rcgen::SanType;
use serde_json::Value;

use crate::broker::Broker;
use crate::broker::authority::Authority;
use crate::broker::http::json;
use crate::broker::members::{Kind, Original, Ours, has_original, start};
use crate::broker::wire::Wire;
use crate::leaf::{text_of, until, until_heard};

/// All pairs of a hub and its leaf node.
fn pairs() -> Vec<[Kind; 2]> {
    let mut pairs = vec![[Ours(1), Ours(1)], [Ours(4), Ours(2)]];
    if has_original() {
        pairs.extend([[Ours(2), Original], [Original, Ours(2)]]);
    }
    pairs
}

/// A hub with a port for WebSocket, and that port.
fn hub(kind: Kind, websocket: &str, more: &str) -> (Broker, u16) {
    let mut hub = start(
        kind,
        &format!(
            "server_name: hub\nhttp: \"127.0.0.1:-1\"\nleafnodes {{ listen: \"127.0.0.1:-1\" }}\n\
             websocket {{ listen: \"127.0.0.1:-1\"\n{websocket} }}\n{more}\n"
        ),
    );
    let port = hub.logged_port("Listening for websocket clients on ");
    (hub, port)
}

/// A leaf node with one remote of these keys.
fn leaf(kind: Kind, remote: &str) -> Broker {
    start(
        kind,
        &format!(
            "server_name: edge\nhttp: \"127.0.0.1:-1\"\n\
             leafnodes {{ reconnect: \"100ms\", remotes: [ {{ {remote} }} ] }}\n"
        ),
    )
}

/// Messages of all sizes go both ways, and a request is answered.
fn is_one_system(hub: &Broker, leaf: &Broker) {
    for (from, to, subject) in [(hub, leaf, "down"), (leaf, hub, "up")] {
        let (mut publisher, mut subscriber) = (Wire::connect(from), Wire::connect(to));
        subscriber.send(format!("SUB {subject}.* 1\r\n").as_bytes());
        until_heard(&mut subscriber, &mut publisher, &format!("{subject}.w"));
        text_of(&mut subscriber);
        for size in [0, 1, 100, 125, 126, 70_000, 300_000] {
            let payload = "abcdefgh".repeat(size / 8 + 1)[..size].to_owned();
            publisher.send(format!("PUB {subject}.m {size}\r\n{payload}\r\n").as_bytes());
            let whole = format!("MSG {subject}.m 1 {size}\r\n{payload}\r\n");
            until(&mut subscriber, |text| text.contains(&whole));
        }
    }
}

#[test]
fn messages_of_any_size_cross_both_ways_with_masks_or_compression_or_without() {
    for [hub_kind, leaf_kind] in pairs() {
        for (websocket, keys) in [
            ("", ""),
            ("compression: true", "ws_compression: true"),
            ("", "ws_compression: true, ws_no_masking: true"),
            ("compression: true", "ws_compression: true, ws_no_masking: true"),
        ] {
            let (hub, port) = hub(hub_kind, &format!("no_tls: true\n{websocket}"), "");
            let leaf = leaf(leaf_kind, &format!("url: \"ws://127.0.0.1:{port}\"\n{keys}"));
            is_one_system(&hub, &leaf);
            for broker in [&hub, &leaf] {
                let page = json(broker, "/leafz");
                assert_eq!(page["leafs"][0]["websocket"], Value::Bool(true), "{page}");
                assert_eq!(json(broker, "/varz")["leafnodes"], 1);
            }
        }
    }
}

#[test]
fn a_remote_over_wss_checks_the_certificate_and_its_login_decides() {
    let authority = Authority::new("the authority of this test");
    let name = SanType::DnsName("localhost".try_into().expect("a name"));
    authority.sign("hub", "hub", vec![name]);
    let file = |name: &str| authority.file(name).display().to_string();
    let tls =
        format!("tls {{ cert_file: '{}', key_file: '{}' }}", file("hub.pem"), file("hub.key"));
    let ca = file("ca.pem");
    for [hub_kind, leaf_kind] in pairs() {
        let users = "accounts { A { users: [{user: a, password: p}] } }\nno_auth_user: a";
        let (hub, port) = hub(hub_kind, &tls, users);
        let remote = format!(
            "url: \"wss://a:p@localhost:{port}/any\"\ntls {{ ca_file: '{ca}' }}\n\
             ws_compression: true"
        );
        is_one_system(&hub, &leaf(leaf_kind, &remote));
    }
}

#[test]
fn who_speaks_no_websocket_at_all_or_not_rightly_gets_no_leaf_connection() {
    let (hub, port) = hub(Ours(1), "no_tls: true\nhandshake_timeout: \"1s\"", "");
    let mut silent = Wire::ungreeted_at(port);
    let request = "GET /leafnode HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: \
                   Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: \
                   AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";
    let mut bare = Wire::ungreeted_at(port);
    bare.send(request.as_bytes());
    while !bare.line().trim_end().is_empty() {}
    bare.send(b"\x82\x06PING\r\n");
    silent.drain_to_end();
    let end = String::from_utf8_lossy(&bare.drain_to_end()).into_owned();
    assert!(end.contains("mask bit missing"), "{end:?}");
    assert_eq!(json(&hub, "/leafz")["leafnodes"], 0);
    // Where no block leafnodes is, there are no leaf nodes.
    let mut other =
        start(Ours(1), "websocket { listen: \"127.0.0.1:-1\", no_tls: true }\nserver_name: o");
    let port = other.logged_port("Listening for websocket clients on ");
    let mut wire = Wire::ungreeted_at(port);
    wire.send(request.as_bytes());
    let answer = String::from_utf8(wire.drain_to_end()).expect("HTTP is text");
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
}
