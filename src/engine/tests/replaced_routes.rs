//! Routes that end while a run waits on a lane, and the next ones to the same peer.

use super::*;

const NEAR: ShardId = ShardId(0);
const FAR: ShardId = ShardId(1);
const CLIENT: ConnId = ConnId { slot: 0, generation: 0 };

/// Two shards of a server, with a client each.
struct Pair {
    near: Engine,
    far: Engine,
}

impl Pair {
    fn new() -> Self {
        let mut pair = Self { near: member(0, 2, usize::MAX), far: member(1, 2, usize::MAX) };
        for engine in [&mut pair.near, &mut pair.far] {
            engine.open(CLIENT, Peer { cid: 1, ip: "".into(), port: 1 }, true);
            engine.on_bytes(CLIENT, b"CONNECT {\"verbose\":false}\r\n");
            out(engine, CLIENT);
        }
        pair
    }

    /// Brings the records of one shard to the other.
    fn bring_to(&mut self, shard: ShardId) {
        let Self { near, far } = self;
        let (from, to, by) = if shard == FAR { (near, far, NEAR) } else { (far, near, FAR) };
        turns(from, |_| ());
        while let Some(record) = from.pop_record(shard) {
            to.on_record(by, record);
        }
        turns(to, |_| ());
    }

    fn come_to_rest(&mut self) {
        for _ in 0..3 {
            self.bring_to(FAR);
            self.bring_to(NEAR);
        }
    }

    /// The publisher's shard has a route to a peer that wants `a`, and the other shard a client.
    /// That one subscribes, and a message is published: it has gone over the route, and waits on
    /// the lane when the route ends and the other shard gets the next one.
    fn replace_route(is_shardcast: bool, subscribes: &str) -> (Self, ConnId) {
        let (mut pair, wants) = (Self::new(), "RS+ $G a\r\n");
        let first = peer(&mut pair.near, 1, is_shardcast, wants);
        pair.far.on_bytes(CLIENT, subscribes.as_bytes());
        pair.come_to_rest();
        out(&mut pair.near, first);
        pair.near.on_bytes(CLIENT, b"PUB a 1\r\n1\r\n");
        assert_eq!(out(&mut pair.near, first), "RMSG $G a 1\r\n1\r\n");
        pair.near.on_ended(first, true);
        let second = peer(&mut pair.far, 2, is_shardcast, wants);
        (pair, second)
    }
}

/// A route to the same peer, which wants that.
fn peer(engine: &mut Engine, at: u32, is_shardcast: bool, wants: &str) -> ConnId {
    let id = ConnId { slot: at, generation: 0 };
    let address = Peer { cid: at.into(), ip: "".into(), port: 1 };
    let new = NewRoute { rid: at.into(), dialed: None, host: String::new() };
    engine.open_route(id, address, new);
    let connect =
        format!("CONNECT {{\"name\":\"P\",\"cluster\":\"C\",\"echo\":{}}}\r\n", !is_shardcast);
    engine.on_bytes(id, connect.as_bytes());
    let info = format!(
        "INFO {{\"server_id\":\"P\",\"server_name\":\"P\",\"shardcast\":{is_shardcast}}}\r\n"
    );
    engine.on_bytes(id, info.as_bytes());
    engine.on_route_order(RouteOrder::Register(at.into(), PoolPart::All));
    turns(engine, |_| ());
    engine.on_bytes(id, wants.as_bytes());
    turns(engine, |_| ());
    out(engine, id);
    id
}

#[test]
fn what_waits_on_a_lane_does_not_go_once_more_over_a_route_that_begins_meanwhile() {
    let (mut pair, second) = Pair::replace_route(true, "SUB a 1\r\n");
    pair.bring_to(FAR);
    assert_eq!(out(&mut pair.far, CLIENT), "MSG a 1 1\r\n1\r\n");
    assert_eq!(out(&mut pair.far, second), "", "it has had that over the route before");
    pair.come_to_rest();
    pair.near.on_bytes(CLIENT, b"PUB a 1\r\n2\r\n");
    pair.bring_to(FAR);
    assert_eq!(out(&mut pair.far, CLIENT), "MSG a 1 1\r\n2\r\n");
    assert_eq!(out(&mut pair.far, second), "RMSG $G a 1\r\n2\r\n");
}

#[test]
fn a_new_route_gets_what_was_staged_for_it_however_early() {
    let mut pair = Pair::new();
    let route = peer(&mut pair.far, 1, true, "RS+ $G a\r\n");
    pair.bring_to(NEAR);
    // Before the other shard has heard anything of this one.
    pair.near.on_bytes(CLIENT, b"PUB a 1\r\n1\r\n");
    pair.bring_to(FAR);
    assert_eq!(out(&mut pair.far, route), "RMSG $G a 1\r\n1\r\n");
}

#[test]
fn a_queue_message_on_a_lane_is_for_the_group_alone_behind_a_route_that_begins_meanwhile() {
    for is_shardcast in [true, false] {
        let (mut pair, second) = Pair::replace_route(is_shardcast, "SUB a q 1\r\n");
        pair.far.on_bytes(CLIENT, b"UNSUB 1\r\n");
        pair.far.on_bytes(second, b"RS+ $G a q 1\r\n");
        turns(&mut pair.far, |_| ());
        out(&mut pair.far, second);
        pair.bring_to(FAR);
        let sent = out(&mut pair.far, second);
        match is_shardcast {
            true => assert_eq!(sent, "RMSG $G a | q q q 1\r\n1\r\n"),
            // It cannot be told that, and a message that comes twice is better than one that is
            // lost.
            false => assert_eq!(sent, "RMSG $G a | q 1\r\n1\r\n"),
        }
    }
}

#[test]
fn a_queue_message_goes_back_to_its_server_by_no_route_if_that_wants_none_back() {
    for is_shardcast in [true, false] {
        let mut pair = Pair::new();
        let first = peer(&mut pair.near, 1, is_shardcast, "");
        pair.far.on_bytes(CLIENT, b"SUB a q 1\r\n");
        pair.come_to_rest();
        pair.near.on_bytes(first, b"RMSG $G a | q 1\r\n1\r\n");
        turns(&mut pair.near, |_| ());
        pair.near.on_ended(first, true);
        let second = peer(&mut pair.far, 2, is_shardcast, "RS+ $G a q 1\r\n");
        pair.far.on_bytes(CLIENT, b"UNSUB 1\r\n");
        turns(&mut pair.far, |_| ());
        out(&mut pair.far, second);
        pair.bring_to(FAR);
        let (sent, lost) = (out(&mut pair.far, second), pair.far.view().stats().queue_msgs_lost);
        match is_shardcast {
            // Its publisher is a member, perhaps, and wants no echo.
            true => assert_eq!((&*sent, lost), ("", 1)),
            false => assert_eq!((&*sent, lost), ("RMSG $G a | q 1\r\n1\r\n", 0)),
        }
    }
}

#[test]
fn a_member_that_left_the_first_server_costs_a_queue_message_none_of_its_ways_to_others() {
    let mut pair = Pair::new();
    let route = peer(&mut pair.near, 1, true, "RS+ $G a q 1\r\n");
    pair.far.on_bytes(CLIENT, b"SUB a q 1\r\n");
    pair.come_to_rest();
    pair.near.on_bytes(CLIENT, b"PUB a 1\r\n1\r\n");
    pair.far.on_bytes(CLIENT, b"UNSUB 1\r\n");
    turns(&mut pair.far, |_| ());
    pair.come_to_rest();
    // The peer is its second server, and may pass it on to a third.
    let sent = out(&mut pair.near, route);
    assert!(sent.contains("RMSG $G a | q q q 1\r\n1\r\n"), "{sent}");
}

#[test]
fn a_message_that_was_passed_on_for_a_group_alone_is_marked_so_for_a_leaf_node() {
    for is_shardcast in [true, false] {
        let mut pair = Pair::new();
        let leaf = ConnId { slot: 2, generation: 0 };
        let address = Peer { cid: 2, ip: "".into(), port: 1 };
        pair.near.open_leaf(leaf, address, NewLeaf { lid: 2, dialed: None });
        let connect = format!(
            "CONNECT {{\"server_id\":\"L\",\"name\":\"L\",\"shardcast\":{is_shardcast}}}\r\n"
        );
        pair.near.on_bytes(leaf, connect.as_bytes());
        pair.come_to_rest();
        pair.near.on_bytes(leaf, b"LS+ a\r\nLS+ a q 1\r\n");
        let route = peer(&mut pair.near, 1, true, "");
        pair.come_to_rest();
        out(&mut pair.near, leaf);
        pair.near.on_bytes(route, b"RMSG $G a | q q q 1\r\n1\r\n");
        pair.come_to_rest();
        let sent = out(&mut pair.near, leaf);
        match is_shardcast {
            true => assert_eq!(sent, "LMSG a | q q 1\r\n1\r\n"),
            false => assert_eq!(sent, "LMSG a | q 1\r\n1\r\n"),
        }
    }
}
