//! Leaf nodes and hubs, ours and nats-server in every combination, on one shard and on several.

#![expect(clippy::disallowed_methods, reason = "tests bound how long they wait for servers")]

use std::time::{Duration, Instant};

use crate::broker::http::json;
use crate::broker::members::{Kind, Original, Ours, has_original, start};
use crate::broker::wire::Wire;
use crate::broker::{Broker, PATIENCE};

/// A hub with `block` in its block `leafnodes`, and the port for leaf nodes.
fn hub(kind: Kind, block: &str, more: &str) -> (Broker, u16) {
    let mut hub = start(
        kind,
        &format!(
            "server_name: hub\nhttp: \"127.0.0.1:-1\"\n\
             leafnodes {{ listen: \"127.0.0.1:-1\"\n{block} }}\n{more}\n"
        ),
    );
    let port = hub.logged_port("Listening for leafnode connections on ");
    (hub, port)
}

/// A leaf node of the hub at `port`, with `keys` of its remote.
fn leaf(kind: Kind, name: &str, port: u16, keys: &str, more: &str) -> Broker {
    start(
        kind,
        &format!(
            "server_name: {name}\nhttp: \"127.0.0.1:-1\"\n\
             leafnodes {{ reconnect: \"100ms\", remotes: [ {{ \
             url: \"nats-leaf://127.0.0.1:{port}\"\n{keys} }} ] }}\n{more}\n"
        ),
    )
}

/// All pairs of a hub and its leaf node.
fn pairs() -> Vec<[Kind; 2]> {
    let mut pairs = vec![[Ours(1), Ours(1)], [Ours(2), Ours(4)], [Ours(4), Ours(2)]];
    if has_original() {
        pairs.extend([[Ours(2), Original], [Original, Ours(2)]]);
    }
    pairs
}

/// Publishes on `subject` until the subscriber has got it.
pub(crate) fn until_heard(subscriber: &mut Wire, publisher: &mut Wire, subject: &str) {
    let end = Instant::now() + PATIENCE;
    loop {
        publisher.send(format!("PUB {subject} 4\r\nmark\r\nPING\r\n").as_bytes());
        publisher.until_pong_or_end();
        std::thread::sleep(Duration::from_millis(20));
        if text_of(subscriber).contains("mark") {
            return;
        }
        assert!(Instant::now() < end, "{subject} does not come");
    }
}

pub(crate) fn text_of(wire: &mut Wire) -> String {
    wire.send(b"PING\r\n");
    String::from_utf8(wire.until_pong_or_end()).expect("the protocol is text")
}

/// Waits until `found` is in what has come.
pub(crate) fn until(wire: &mut Wire, found: impl Fn(&str) -> bool) -> String {
    let end = Instant::now() + PATIENCE;
    let mut text = String::new();
    while !found(&text) {
        assert!(Instant::now() < end, "{text}");
        text.push_str(&text_of(wire));
        std::thread::sleep(Duration::from_millis(10));
    }
    text
}

#[test]
fn messages_requests_and_queue_groups_cross_both_ways_once() {
    for [hub_kind, leaf_kind] in pairs() {
        let (hub, port) = hub(hub_kind, "", "");
        let leaf = leaf(leaf_kind, "edge", port, "", "");
        for (from, to) in [(&hub, &leaf), (&leaf, &hub)] {
            let (mut publisher, mut subscriber) = (Wire::connect(from), Wire::connect(to));
            let subject = if std::ptr::eq(from, &hub) { "down" } else { "up" };
            subscriber.send(
                format!("SUB {subject}.* 1\r\nSUB {subject}.q g 2\r\nSUB {subject}.q g 3\r\n")
                    .as_bytes(),
            );
            until_heard(&mut subscriber, &mut publisher, &format!("{subject}.w"));
            text_of(&mut subscriber);
            for _ in 0..20 {
                publisher.send(format!("PUB {subject}.q r.1 1\r\nx\r\n").as_bytes());
            }
            let is_all = |text: &str| text.matches(&format!("MSG {subject}.q")).count() >= 40;
            let text = until(&mut subscriber, is_all);
            let plain = text.matches(&format!("MSG {subject}.q 1 r.1 1")).count();
            let all = text.matches(&format!("MSG {subject}.q")).count();
            assert_eq!((plain, all), (20, 40), "{hub_kind:?} {leaf_kind:?}");
        }
    }
}

#[test]
fn a_leaf_node_comes_back_after_the_hub_was_gone_and_tells_all_again() {
    for [hub_kind, leaf_kind] in pairs().into_iter().take(2) {
        let (mut hub, _) = hub(hub_kind, "", "");
        let port = hub.logged_port("Listening for leafnode connections on ");
        let leaf = leaf(leaf_kind, "edge", port, "", "");
        let mut subscriber = Wire::connect(&leaf);
        subscriber.send(b"SUB back 1\r\n");
        until_heard(&mut subscriber, &mut Wire::connect(&hub), "back");
        drop(hub);
        let again = start(
            hub_kind,
            &format!("server_name: hub\nleafnodes {{ listen: \"127.0.0.1:{port}\" }}\n"),
        );
        until_heard(&mut subscriber, &mut Wire::connect(&again), "back");
    }
}

#[test]
fn a_mapping_that_a_reload_brings_is_told_to_leaf_nodes_that_are_there() {
    for [hub_kind, leaf_kind] in pairs() {
        let config = |mappings: &str| {
            format!(
                "server_name: hub\nhttp: \"127.0.0.1:-1\"\n\
                 leafnodes {{ listen: \"127.0.0.1:-1\"\n }}\n{mappings}\n"
            )
        };
        let (mut hub, port) = hub(hub_kind, "", "");
        let leaf = leaf(leaf_kind, "edge", port, "", "");
        let (mut subscriber, mut publisher) = (Wire::connect(&hub), Wire::connect(&leaf));
        subscriber.send(b"SUB there 1\r\n");
        until_heard(&mut subscriber, &mut publisher, "there");
        hub.reload(&config("mappings { here: there }"));
        until_heard(&mut subscriber, &mut publisher, "here");
        // Nor is it taken back when a client of the hub wants the same for a while.
        let mut other = Wire::connect(&hub);
        other.send(b"SUB here 1\r\nUNSUB 1\r\n");
        text_of(&mut other);
        until_heard(&mut subscriber, &mut publisher, "here");
    }
}

#[test]
fn two_leaf_nodes_hear_each_other_through_a_hub_on_any_shards_and_once() {
    let (hub, port) = hub(Ours(4), "", "");
    let leaves = ["a", "b", "c"].map(|name| leaf(Ours(2), name, port, "", ""));
    let mut wires: Vec<Wire> = leaves.iter().map(Wire::connect).collect();
    for (at, wire) in wires.iter_mut().enumerate() {
        wire.send(format!("SUB all 1\r\nSUB only.{at} 2\r\n").as_bytes());
    }
    let [first, rest @ ..] = &mut wires[..] else { panic!("three") };
    for (at, wire) in rest.iter_mut().enumerate() {
        until_heard(wire, first, &format!("only.{}", at + 1));
    }
    wires.iter_mut().for_each(|wire| drop(text_of(wire)));
    for number in 0..100 {
        wires[0].send(format!("PUB all {}\r\n{number}\r\n", number.to_string().len()).as_bytes());
    }
    for wire in &mut wires {
        let text = until(wire, |text| text.matches("MSG all 1 ").count() >= 100);
        assert_eq!(text.matches("MSG all 1 ").count(), 100, "each once");
    }
    assert_eq!(json(&hub, "/leafz")["leafnodes"], 3);
    assert_eq!(json(&hub, "/varz")["leafnodes"], 3);
}

#[test]
fn servers_that_dial_each_other_keep_one_link_at_most() {
    let (one, port) = hub(Ours(2), "", "");
    let other = start(
        Ours(2),
        &format!(
            "server_name: other\nhttp: \"127.0.0.1:-1\"\nleafnodes {{ listen: \"127.0.0.1:-1\", \
             remotes: [ {{ url: \"nats-leaf://127.0.0.1:{port}\" }} ] }}\n"
        ),
    );
    let mut other = other;
    let back = other.logged_port("Listening for leafnode connections on ");
    one.reconfigure(&format!(
        "server_name: hub\nhttp: \"127.0.0.1:-1\"\nleafnodes {{ listen: \"127.0.0.1:-1\", \
         remotes: [ {{ url: \"nats-leaf://127.0.0.1:{back}\" }} ] }}\n"
    ));
    let links = |broker: &Broker| json(broker, "/leafz")["leafnodes"].as_u64().unwrap_or(9);
    let end = Instant::now() + PATIENCE;
    let mut in_a_row = 0;
    while in_a_row < 20 {
        let is_one_at_most = links(&one) <= 1 && links(&other) <= 1;
        in_a_row = if is_one_at_most { in_a_row + 1 } else { 0 };
        assert!(Instant::now() < end, "{} and {} links", links(&one), links(&other));
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn the_user_of_a_leaf_node_decides_its_account_and_what_passes() {
    let users = "accounts { A { users: [{user: ca, password: p}] }, B { users: [{user: cb, \
                 password: p}] } }";
    let block = "authorization { users: [{user: a, password: pa, account: A}, {user: b, \
                 password: pb, account: B}] }";
    let (hub, port) = hub(Ours(2), block, users);
    let remotes = format!(
        "accounts {{ X {{ users: [{{user: x, password: p}}] }}, Y {{ users: [{{user: y, password: \
         p}}] }} }}\nleafnodes {{ remotes: [ {{ url: \"nats-leaf://a:pa@127.0.0.1:{port}\", \
         account: X, deny_imports: \"no.>\" }}, {{ url: \"nats-leaf://b:pb@127.0.0.1:{port}\", \
         account: Y }} ] }}"
    );
    let leaf = start(Ours(2), &format!("server_name: edge\n{remotes}\n"));
    let login = |broker: &Broker, user: &str| {
        let mut wire = Wire::ungreeted(broker);
        wire.line();
        let login = format!("CONNECT {{\"verbose\":false,\"user\":\"{user}\",\"pass\":\"p\"}}\r\n");
        wire.send(login.as_bytes());
        wire
    };
    let (mut x, mut y) = (login(&leaf, "x"), login(&leaf, "y"));
    let (mut a, mut b) = (login(&hub, "ca"), login(&hub, "cb"));
    for wire in [&mut x, &mut y] {
        wire.send(b"SUB > 1\r\n");
    }
    until_heard(&mut x, &mut a, "mine");
    until_heard(&mut y, &mut b, "mine");
    a.send(b"PUB no.a 1\r\n1\r\nPUB yes.a 1\r\n2\r\n");
    let text = until(&mut x, |text| text.contains("MSG yes.a"));
    assert!(!text.contains("no.a"), "{text}");
    assert!(!text_of(&mut y).contains("yes.a"), "accounts are apart");
}
