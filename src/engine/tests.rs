//! The engine as a whole.

#![forbid(unsafe_code)]

mod replaced_routes;

use super::*;
use crate::cluster::{ClientUrls, PoolPart};
use crate::config::Options;
use crate::config::{Account, Destination, Mapping};
use crate::interest::ids::Publisher;
use crate::interest::reach::Via;
use crate::output::{OverflowKind, OverflowRule};
use crate::run::Run;
use crate::run::frame::{Opened, Parcel, RunSource};

#[test]
fn a_server_that_ends_leaves_slow_readers_the_time_that_a_write_may_take() {
    let settings = Settings::new(&Options::default(), &Identity::default(), usize::MAX);
    let mut engine = Engine::new(ShardId(0), 1, Rc::new(settings), 1);
    let id = ConnId { slot: 0, generation: 0 };
    engine.open(id, Peer { cid: 1, ip: "127.0.0.1".into(), port: 1 }, true);
    let batch = engine.take_batch(id).expect("the greeting is queued");
    let bytes: usize = batch.iter().map(|piece| piece.bytes().len()).sum();
    engine.shut_down();
    let at = |engine: &mut Engine, ms: u64| {
        engine.set_now(ms * 1_000_000);
        engine.tick();
        let closed = |action| matches!(action, Output::Close { .. });
        std::iter::from_fn(|| engine.next_output()).any(closed)
    };
    assert!(!at(&mut engine, 5000), "what is queued is still being taken");
    engine.on_sent(id, bytes, Some(batch));
    assert!(at(&mut engine, 5001), "everything is taken");
}

#[test]
fn very_many_subscriptions_of_one_who_leaves_go_in_pieces() {
    let (mut engine, ids) = engine_with(&Options::default(), 1, 2);
    let subs: String = (0..10_000).map(|number| format!("SUB a.{number} {number}\r\n")).collect();
    engine.on_bytes(ids[0], subs.as_bytes());
    turns(&mut engine, |_| ());
    engine.on_ended(ids[0], true);
    let mut left = vec![engine.view().subscriptions()];
    let is_closed = |engine: &mut Engine| {
        let closes = |action| matches!(action, Output::Close { conn, .. } if conn == ids[0]);
        std::iter::from_fn(|| engine.next_output()).any(closes)
    };
    while !is_closed(&mut engine) {
        assert!(
            engine.next_deadline().is_some_and(|due| due <= engine.core.times.now),
            "nobody sleeps"
        );
        let publishes: String =
            (0..10_000).map(|number| format!("PUB a.{number} 0\r\n\r\n")).collect();
        engine.on_bytes(ids[1], publishes.as_bytes());
        engine.tick();
        engine.end_turn();
        left.push(engine.view().subscriptions());
    }
    let pieces: Vec<usize> = left.windows(2).map(|pair| pair[0] - pair[1]).collect();
    assert!(pieces.iter().all(|piece| (1..=512).contains(piece)), "{left:?}");
    assert_eq!(left.last(), Some(&0));
    assert_eq!(engine.view().stats().out_msgs, 0, "nothing is delivered to who has left");
    engine.on_closed(ids[0], None);
    assert_eq!(engine.view().open_conns(), 1);
}

/// A shard of a member of a cluster, with `memory_bytes_max` of memory for output.
fn member(shard: u8, shards: usize, memory_bytes_max: usize) -> Engine {
    let cluster = ClusterIdentity { name: "C".to_owned(), ..Default::default() };
    let identity = Identity { cluster: Some(cluster), ..Default::default() };
    let settings = Settings::new(&Options::default(), &identity, memory_bytes_max);
    let mut engine = Engine::new(ShardId(shard), shards, Rc::new(settings), 1);
    engine.on_route_order(RouteOrder::Name { name: "C".to_owned(), is_dynamic: false });
    engine
}

/// Opens a route to a peer, registered but without interest.
fn join(engine: &mut Engine, at: u32) -> ConnId {
    let id = ConnId { slot: at, generation: 0 };
    let peer = Peer { cid: at.into(), ip: "".into(), port: 1 };
    let host = String::new();
    engine.open_route(id, peer, NewRoute { rid: at.into(), dialed: None, host });
    engine.on_bytes(id, b"CONNECT {\"name\":\"P\",\"cluster\":\"C\"}\r\n");
    let info = format!("INFO {{\"server_id\":\"{at}\",\"server_name\":\"{at}\"}}\r\n");
    engine.on_bytes(id, info.as_bytes());
    engine.on_route_order(RouteOrder::Register(at.into(), PoolPart::All));
    turns(engine, |_| ());
    out(engine, id);
    id
}

/// Hands in all `lines` of a peer; whether the route ends with an error.
fn is_refused(engine: &mut Engine, shards: usize, id: ConnId, lines: &str) -> bool {
    engine.on_bytes(id, lines.as_bytes());
    turns(engine, |_| ());
    for shard in (0..shards).map(|shard| ShardId(u8::try_from(shard).unwrap())) {
        while engine.pop_record(shard).is_some() {}
    }
    out(engine, id).contains("-ERR 'maximum subscriptions exceeded'")
}

#[test]
fn a_member_may_want_two_million_subjects_of_a_server_with_two_gib_and_all_its_shards_count_them() {
    // All sizes are divided by this.
    const SCALE: usize = 64;
    const MACHINE_BYTES: usize = 2 * 1024 * 1024 * 1024 / SCALE;
    const SUBJECTS: usize = 2_000_000 / SCALE;
    for shards in [1, 2, 4] {
        let memory_bytes = MACHINE_BYTES / 2 / shards;
        let mut engine = member(0, shards, memory_bytes);
        let remote_bytes = RemoteInterestBytes::default();
        engine.share_remote_interest_bytes(remote_bytes.clone());
        assert_eq!(engine.core.output_bytes_max(), memory_bytes);
        let peer = join(&mut engine, 1);
        let wanted = |at: usize| format!("RS+ $G orders.region{}.{at:08}\r\n", at % 50);
        for at in (0..SUBJECTS).step_by(125) {
            let lines: String = (at..at + 125).map(wanted).collect();
            assert!(!is_refused(&mut engine, shards, peer, &lines), "{at}, {shards} shards");
        }
        let output = engine.core.output_bytes_max();
        let all = remote_bytes.total() + output * shards;
        assert!(all <= MACHINE_BYTES && output >= memory_bytes / 2, "{all}, {shards} shards");
        // Other shards count it, too.
        let mut other = member(1, shards + 1, memory_bytes * shards / (shards + 1));
        other.share_remote_interest_bytes(remote_bytes);
        let peer = join(&mut other, 1);
        let mut refused = false;
        for at in 0..SUBJECTS * 3 {
            refused |= is_refused(&mut other, shards + 1, peer, &wanted(at));
            if refused {
                let left = (MACHINE_BYTES * 3 / 4).saturating_sub(all - output * shards);
                assert!(at * 256 <= left, "{at} more, {shards} shards");
                break;
            }
        }
        assert!(refused, "{shards} shards");
    }
}

#[test]
fn peers_want_together_no_more_than_there_is_memory_for_and_another_may_when_one_has_left() {
    const MEMORY_BYTES: usize = 4 * 1024 * 1024;
    for shards in [1, 2, 4] {
        let mut engine = member(0, shards, MEMORY_BYTES);
        let peers = [1, 2].map(|at| join(&mut engine, at));
        let refused = |engine: &mut Engine, ids: [ConnId; 2]| {
            ids.map(|id| out(engine, id).contains("-ERR 'maximum subscriptions exceeded'"))
        };
        // Interest announced twice counts once, and interest withdrawn does not count.
        let want = |engine: &mut Engine, id: ConnId, at: usize| {
            let line = format!("$G w.{at}\r\n");
            engine.on_bytes(id, format!("RS+ {line}RS+ {line}RS- {line}RS+ {line}").as_bytes());
            turns(engine, |_| ());
            for shard in (1..shards).map(|shard| ShardId(u8::try_from(shard).unwrap())) {
                while engine.pop_record(shard).is_some() {}
            }
        };
        let mut wanted = 0;
        while refused(&mut engine, peers) == [false; 2] {
            want(&mut engine, peers[wanted % 2], wanted);
            wanted += 1;
            assert!(wanted < MEMORY_BYTES / 64, "{wanted} with {shards} shards");
        }
        assert!(wanted > MEMORY_BYTES / 256, "{wanted} with {shards} shards");
        engine.on_closed(peers[(wanted - 1) % 2], None);
        let peers = [peers[wanted % 2], join(&mut engine, 3)];
        want(&mut engine, peers[1], wanted);
        assert_eq!(refused(&mut engine, peers), [false; 2], "{shards} shards");
    }
}

#[test]
fn what_a_peer_wants_that_leaves_goes_in_pieces_and_counts_no_more() {
    const ENTRIES: usize = 10_000;
    const ASKED: usize = 50;
    let (mut engine, ids) = engine_with(&Options::default(), 1, 1);
    engine.on_route_order(RouteOrder::Name { name: "C".to_owned(), is_dynamic: false });
    let route = ConnId { slot: 7, generation: 0 };
    let peer = Peer { cid: 7, ip: "".into(), port: 1 };
    engine.open_route(route, peer, NewRoute { rid: 7, dialed: None, host: String::new() });
    engine.on_bytes(route, b"CONNECT {\"name\":\"P\",\"cluster\":\"C\"}\r\n");
    engine.on_bytes(route, b"INFO {\"server_id\":\"P\",\"server_name\":\"p\",\"ln\":true}\r\n");
    engine.on_route_order(RouteOrder::Register(7, PoolPart::All));
    engine.tick();
    let before = engine.view().filters();
    let entries: String = (0..ENTRIES / 2)
        .map(|at| format!("RS+ $G a.{at}\r\nLS+ leaves $G b.{at} q 3\r\n"))
        .collect();
    engine.on_bytes(route, entries.as_bytes());
    turns(&mut engine, |_| ());
    engine.on_bytes(
        ids[0],
        b"CONNECT {\"verbose\":false,\"headers\":true,\"no_responders\":true}\r\n",
    );
    engine.on_bytes(ids[0], b"SUB re 1\r\n");
    assert_eq!(engine.view().filters() - before, ENTRIES + 1);
    out(&mut engine, route);
    out(&mut engine, ids[0]);
    engine.on_ended(route, true);
    let mut left = vec![engine.view().filters() - before - 1];
    let is_closed = |engine: &mut Engine| {
        let closes = |action| matches!(action, Output::Close { conn, .. } if conn == route);
        std::iter::from_fn(|| engine.next_output()).any(closes)
    };
    while !is_closed(&mut engine) {
        assert!(
            engine.next_deadline().is_some_and(|due| due <= engine.core.times.now),
            "nobody sleeps"
        );
        // Requesters get a status at once, without receivers.
        for at in (0..ENTRIES / 2).step_by(ENTRIES / 2 / ASKED) {
            engine.on_bytes(
                ids[0],
                format!("PUB a.{at} re 0\r\n\r\nPUB b.{at} re 0\r\n\r\n").as_bytes(),
            );
        }
        let answers = out(&mut engine, ids[0]);
        assert_eq!(answers.matches("NATS/1.0 503").count(), 2 * ASKED);
        engine.tick();
        engine.end_turn();
        left.push(engine.view().filters() - before - 1);
    }
    let pieces: Vec<usize> = left.windows(2).map(|pair| pair[0] - pair[1]).collect();
    assert!(pieces.iter().all(|piece| (1..=512).contains(piece)), "{left:?}");
    assert_eq!(left.last(), Some(&0));
    engine.on_closed(route, None);
}

/// A test that would take minutes with a look at all groups for each of them.
#[test]
fn very_many_queue_groups_on_one_filter_stall_nobody() {
    let (mut engine, ids) = engine_with(&Options::default(), 1, 2);
    let sub = |number: u32| format!("SUB a group-{number} {number}\r\n");
    let subs: String = (0..100_000).map(sub).collect();
    engine.on_bytes(ids[0], subs.as_bytes());
    turns(&mut engine, |_| ());
    for _ in 0..3 {
        engine.on_bytes(ids[1], b"SUB a late 1\r\nPUB a 0\r\n\r\nUNSUB 1\r\n");
        turns(&mut engine, |engine| drop(out(engine, ids[0])));
    }
    assert_eq!(engine.view().stats().out_msgs, 3 * 100_001);
    engine.on_ended(ids[0], false);
    while engine.view().subscriptions() > 0 {
        engine.tick();
        engine.end_turn();
    }
}

fn engine_with(options: &Options, shards: usize, conns: u32) -> (Engine, Vec<ConnId>) {
    let settings = Settings::new(options, &Identity::default(), usize::MAX);
    let mut engine = Engine::new(ShardId(0), shards, Rc::new(settings), 1);
    let ids: Vec<_> = (0..conns).map(|slot| ConnId { slot, generation: 0 }).collect();
    for id in &ids {
        engine.open(*id, Peer { cid: 1, ip: "".into(), port: 1 }, true);
        engine.on_bytes(
            *id,
            b"CONNECT {\"verbose\":false,\"headers\":true,\"no_responders\":true}\r\n",
        );
        out(&mut engine, *id);
    }
    (engine, ids)
}

fn out(engine: &mut Engine, id: ConnId) -> String {
    let mut all = Vec::new();
    while let Some(batch) = engine.take_batch(id) {
        let bytes: Vec<u8> = batch.iter().flat_map(|p| p.bytes()).copied().collect();
        engine.on_sent(id, bytes.len(), Some(batch));
        all.extend(bytes);
    }
    String::from_utf8(all).unwrap()
}

#[test]
fn an_error_follows_what_was_published_before_it_wherever_tcp_cuts() {
    let run = |cut: bool| {
        let (mut engine, ids) = engine_with(&Options::default(), 1, 1);
        engine.on_bytes(ids[0], b"SUB a 1\r\n");
        let (one, two) = (&b"PUB a 1\r\nx\r\n"[..], &b"PUB a _R_.r 1\r\ny\r\n"[..]);
        if cut {
            engine.on_bytes(ids[0], one);
            engine.on_bytes(ids[0], two);
        } else {
            engine.on_bytes(ids[0], &[one, two].concat());
        }
        engine.end_turn();
        out(&mut engine, ids[0])
    };
    assert_eq!(run(true), run(false));
}

#[test]
fn an_active_client_is_not_stale() {
    let mut options = Options::default();
    (options.timeouts.ping_interval_ms, options.timeouts.ping_max) = (1000, 1);
    let (mut engine, ids) = engine_with(&options, 1, 1);
    let mut text = String::new();
    for ms in (0..5000u64).step_by(100) {
        engine.set_now(ms * 1_000_000);
        engine.on_bytes(ids[0], b"PUB a 0\r\n\r\n");
        engine.tick();
        engine.end_turn();
        text += &out(&mut engine, ids[0]);
    }
    assert!(!text.contains("Stale"), "{text}");
}

#[test]
fn one_byte_of_an_operation_holds_little_memory() {
    let (mut engine, ids) = engine_with(&Options::default(), 1, 3);
    engine.on_bytes(ids[0], b"SUB a 1\r\n");
    let mut wire = b"PUB a 900000\r\n".to_vec();
    wire.extend(vec![b'x'; 900_000]);
    wire.extend(b"\r\n");
    engine.on_bytes(ids[1], &wire);
    out(&mut engine, ids[0]);
    engine.on_bytes(ids[2], b"P");
    let cap = engine.core.conns.get(ids[2]).unwrap().input.capacity();
    assert!(cap < 65536, "{cap}");
}

#[test]
fn a_mapping_for_a_cluster_holds_once_the_server_is_in_it() {
    let mut options = Options::default();
    let destination = |subject: &str, cluster: Option<&str>| Destination {
        subject: subject.to_owned(),
        weight: 100,
        cluster: cluster.map(str::to_owned),
    };
    let destinations = vec![destination("x", Some("X")), destination("y", None)];
    let mappings = vec![Mapping { source: "a".to_owned(), destinations }];
    options.accounts.add(Account { mappings, ..Account::named("$G") });
    let (mut engine, ids) = engine_with(&options, 1, 2);
    engine.on_bytes(ids[0], b"SUB > 1\r\n");
    out(&mut engine, ids[0]);
    let became = |engine: &mut Engine| {
        engine.on_bytes(ids[1], b"PUB a 0\r\n\r\n");
        out(engine, ids[0])
    };
    assert_eq!(became(&mut engine), "MSG y 1 0\r\n\r\n");
    engine.on_route_order(RouteOrder::Name { name: "X".to_owned(), is_dynamic: false });
    assert_eq!(became(&mut engine), "MSG x 1 0\r\n\r\n");
}

#[test]
fn what_a_steady_load_leaves_for_reuse_does_not_grow() {
    let (mut engine, ids) = engine_with(&Options::default(), 1, 2);
    engine.on_bytes(ids[0], b"SUB a 1\r\n");
    let mut kept = [0, 0];
    for kept in &mut kept {
        for _ in 0..1000 {
            engine.on_bytes(ids[1], b"PUB a 5\r\nhello\r\nPUB a");
            engine.on_bytes(ids[1], b" 5\r\nhello\r\n");
            out(&mut engine, ids[0]);
        }
        *kept = engine.core.spares.kept_bytes();
    }
    assert_eq!(kept[0], kept[1]);
}

#[test]
fn confirmations_held_for_one_epoch_are_one_piece() {
    let (mut engine, ids) = engine_with(&Options::default(), 2, 1);
    let record = InterestRecord {
        account: AccountId::GLOBAL,
        via: Via::CLIENTS,
        filter: b"a"[..].into(),
        queue: None,
        members: 1,
    };
    engine.on_record(ShardId(1), Record::Interest(Box::new(record)));
    engine.on_bytes(ids[0], b"CONNECT {\"verbose\":true}\r\n");
    let mut wire = Vec::new();
    for _ in 0..10_000 {
        wire.extend(b"PUB a 0\r\n\r\n");
    }
    engine.on_bytes(ids[0], &wire);
    engine.end_turn();
    let mut epoch = None;
    while let Some(record) = engine.pop_record(ShardId(1)) {
        if let Record::Barrier { epoch: e } = record {
            epoch = Some(e);
        }
    }
    engine.on_record(ShardId(1), Record::Settled { epoch: epoch.unwrap() });
    let mut batches = 0;
    let mut pieces = 0;
    let mut cap = 0;
    let mut bytes = 0;
    while let Some(batch) = engine.take_batch(ids[0]) {
        batches += 1;
        pieces += batch.len();
        for p in &batch {
            if let Piece::Own(v) = p {
                cap += v.capacity();
                bytes += v.len();
            }
        }
        let n = batch.iter().map(|p| p.bytes().len()).sum();
        engine.on_sent(ids[0], n, Some(batch));
    }
    assert!(batches <= 2, "{batches} batches, {pieces} pieces, {bytes} bytes, {cap} capacity");
}

#[test]
fn a_message_picked_for_two_groups_behind_another_shard_travels_once() {
    let (mut engine, ids) = engine_with(&Options::default(), 2, 1);
    for group in [b"q", b"w"] {
        let record = InterestRecord {
            account: AccountId::GLOBAL,
            via: Via::direct(Kind::Route),
            filter: b"a"[..].into(),
            queue: Some(group[..].into()),
            members: 1,
        };
        engine.on_record(ShardId(1), Record::Interest(Box::new(record)));
    }
    engine.on_bytes(ids[0], b"PUB a 1\r\nx\r\n");
    engine.end_turn();
    let Some(Record::Runs(mut frame)) = engine.pop_record(ShardId(1)) else { panic!("no run") };
    let Opened { view, heads, .. } = frame.open();
    let mut run = Run::default();
    let unpacked = view.unpack(heads, 0, &mut run).unwrap();
    assert_eq!((heads.len(), run.len()), (1, 1));
    assert_eq!(unpacked.picks().collect::<Vec<_>>(), [(&b"q"[..], &[0][..]), (b"w", &[0])]);
}

#[test]
fn a_connection_at_its_end_is_not_told_of_other_servers_behind_its_last_word() {
    let (mut engine, ids) = engine_with(&Options::default(), 1, 1);
    engine.on_bytes(ids[0], b"CONNECT {\"protocol\":1}\r\nPING\r\nBOGUS\r\n");
    let tcp = Some(vec!["other:4222".to_owned()]);
    engine.on_route_order(RouteOrder::Urls(ClientUrls { tcp, ..ClientUrls::default() }));
    let heard = out(&mut engine, ids[0]);
    assert!(heard.ends_with("-ERR 'Unknown Protocol Operation'\r\n"), "{heard}");
}

#[test]
fn only_those_who_hold_memory_are_cut_for_it() {
    let settings = Settings::new(&Options::default(), &Identity::default(), 100_000);
    let mut engine = Engine::new(ShardId(0), 1, Rc::new(settings), 1);
    let ids: Vec<_> = (0..3).map(|slot| ConnId { slot, generation: 0 }).collect();
    for id in &ids {
        engine.open(*id, Peer { cid: 1, ip: "".into(), port: 1 }, true);
        engine.on_bytes(*id, b"CONNECT {\"verbose\":false}\r\n");
        out(&mut engine, *id);
    }
    engine.on_bytes(ids[0], b"SUB a 1\r\n");
    let mut wire = b"PUB a 900000\r\n".to_vec();
    wire.extend(vec![b'x'; 900_000]);
    wire.extend(b"\r\n");
    engine.on_bytes(ids[1], &wire);
    let _in_flight = engine.take_batch(ids[0]);
    for _ in 0..3 {
        engine.end_turn();
    }
    let open: Vec<bool> =
        ids.iter().map(|id| engine.core.conns.get(*id).unwrap().is_open()).collect();
    assert_eq!(open, [false, true, true]);
}

#[test]
fn tiny_messages_beside_a_big_one_cost_what_they_weigh() {
    let (mut engine, ids) = engine_with(&Options::default(), 1, 3);
    engine.on_bytes(ids[0], b"SUB a 1\r\n");
    engine.on_bytes(ids[1], b"SUB a 2\r\n");
    let mut wire = b"PUB a 2000\r\n".to_vec();
    wire.extend(vec![b'x'; 2000]);
    wire.extend(b"\r\n");
    for _ in 0..5000 {
        wire.extend(b"PUB a 0\r\n\r\n");
    }
    engine.on_bytes(ids[2], &wire);
    let mut pieces = 0;
    let mut batches = 0;
    let mut bytes = 0;
    while let Some(batch) = engine.take_batch(ids[0]) {
        batches += 1;
        pieces += batch.len();
        let n: usize = batch.iter().map(|p| p.bytes().len()).sum();
        bytes += n;
        engine.on_sent(ids[0], n, Some(batch));
    }
    assert!(batches < 4, "{bytes} bytes in {pieces} pieces, {batches} batches");
}

/// Takes turns until all is done. Returns the cost of the most expensive one.
fn turns(engine: &mut Engine, mut each: impl FnMut(&mut Engine)) -> TurnCost {
    let mut most = TurnCost::default();
    for _ in 0..100_000 {
        engine.tick();
        engine.end_turn();
        let TurnCost { work, bytes } = engine.view().turn_cost();
        most = TurnCost { work: most.work.max(work), bytes: most.bytes.max(bytes) };
        each(engine);
        if engine.next_deadline() != Some(0) {
            return most;
        }
    }
    panic!("it never comes to an end");
}

#[test]
fn a_second_connect_takes_very_many_subscriptions_out_in_pieces_and_none_is_served_meanwhile() {
    let (mut engine, ids) = engine_with(&Options::default(), 1, 2);
    for at in 0..20_000 {
        engine.on_bytes(ids[0], format!("SUB a.{at} {at}\r\n").as_bytes());
        turns(&mut engine, |_| ());
    }
    out(&mut engine, ids[0]);
    engine.on_bytes(ids[0], b"CONNECT {\"verbose\":false}\r\nSUB a.1 1\r\nPING\r\n");
    let mut heard = String::new();
    let cost = turns(&mut engine, |engine| {
        engine.on_bytes(ids[1], b"PUB a.19999 2\r\nno\r\n");
        heard += &out(engine, ids[0]);
    });
    assert!(cost.work < 2_000_000, "{} in one turn", cost.work);
    assert_eq!((heard.as_str(), engine.view().subscriptions()), ("PONG\r\n", 1));
    engine.on_bytes(ids[1], b"PUB a.1 3\r\nyes\r\n");
    assert_eq!(out(&mut engine, ids[0]), "MSG a.1 1 3\r\nyes\r\n");
}

#[test]
fn who_ends_with_very_many_subscriptions_is_taken_out_in_pieces_beside_others() {
    let (mut engine, ids) = engine_with(&Options::default(), 1, 3);
    for at in 0..20_000 {
        let who = ids[at % 2];
        engine.on_bytes(who, format!("SUB a.{at} {at}\r\n").as_bytes());
        turns(&mut engine, |_| ());
    }
    engine.on_ended(ids[0], true);
    engine.on_ended(ids[1], true);
    let cost = turns(&mut engine, |_| ());
    assert!(cost.work < 2_000_000, "{} in one turn", cost.work);
    assert_eq!(engine.view().subscriptions(), 0);
}

/// Work that a turn may cost, and by how much an operation that cannot be cut may go beyond.
const TURN_WORK: u64 = 3 * 3_000_000;
const OPERATION_WORK: u64 = 4_000_000;
const TURN_BYTES: usize = 32 * 1024 * 1024;

/// Hands in the bytes of a flood, chunk by chunk as a reactor would that reads while it may, and
/// takes turns until all is handled, in each of which `witness` sends a PING. Returns the cost of
/// the most expensive turn.
fn flood(engine: &mut Engine, from: ConnId, wire: &[u8], witness: ConnId) -> TurnCost {
    wire.chunks(64 * 1024).for_each(|chunk| engine.on_bytes(from, chunk));
    turns(engine, |engine| {
        engine.on_bytes(witness, b"PING\r\n");
        let flushed = std::iter::from_fn(|| engine.next_output());
        let is_flushed = flushed
            .into_iter()
            .any(|output| matches!(output, Output::Flush(conn) if conn == witness));
        assert!(
            is_flushed
                || engine.core.conns.get(witness).is_some_and(|conn| conn.outgoing.is_dirty())
        );
        assert_eq!(out(engine, witness), "PONG\r\n", "nobody waits for the flood");
    })
}

fn assert_is_bounded(cost: TurnCost) {
    let TurnCost { work, bytes } = cost;
    assert!(work <= TURN_WORK + OPERATION_WORK, "{work} in one turn");
    assert!(bytes <= TURN_BYTES, "{bytes} bytes more after one turn");
}

#[test]
fn short_messages_to_very_many_subscriptions_of_who_reads_nothing_add_little_in_a_turn() {
    let (mut engine, ids) = engine_with(&Options::default(), 1, 22);
    let subs: String = (0..1000).map(|at| format!("SUB a {at}\r\nSUB b x{at}\r\n")).collect();
    for id in &ids[2..] {
        engine.on_bytes(*id, subs.as_bytes());
        turns(&mut engine, |_| ());
        out(&mut engine, *id);
    }
    assert_eq!(engine.view().subscriptions(), 40_000);
    let wire = b"PUB a 0\r\n\r\nPUB b 0\r\n\r\n".repeat(30);
    let cost = flood(&mut engine, ids[0], &wire, ids[1]);
    assert_is_bounded(cost);
    // The subscribers are waited for a second, and the flood is not handled meanwhile.
    assert!(engine.view().waiting_bytes(ids[0]) > 0);
    assert!(engine.view().output_bytes() < 16 * 1024 * 1024, "{}", engine.view().output_bytes());
    engine.set_now(1_000_000_000);
    let mut most = TurnCost::default();
    while engine.view().waiting_bytes(ids[0]) > 0 {
        engine.tick();
        engine.end_turn();
        let TurnCost { work, bytes } = engine.view().turn_cost();
        most = TurnCost { work: most.work.max(work), bytes: most.bytes.max(bytes) };
    }
    assert_is_bounded(most);
    assert_eq!(engine.view().stats().out_msgs, 60 * 20_000);
}

#[test]
fn subjects_that_are_looked_up_in_very_many_filters_leave_others_their_turn() {
    let (mut engine, ids) = engine_with(&Options::default(), 1, 3);
    for at in 0..4096 {
        // Each filter is a way that has to be tried to its end.
        let tokens = (0..12).map(|bit| if at >> bit & 1 == 0 { "*" } else { "x" });
        let filter: Vec<&str> = tokens.chain(["end"]).collect();
        engine.on_bytes(ids[2], format!("SUB {} {at}\r\n", filter.join(".")).as_bytes());
        turns(&mut engine, |_| ());
    }
    let publish = |at: usize| format!("PUB {}{at} 0\r\n\r\n", "x.".repeat(12));
    let wire: String = (0..500).map(publish).collect();
    let cost = flood(&mut engine, ids[0], wire.as_bytes(), ids[1]);
    assert_is_bounded(cost);
    assert_eq!(engine.view().stats().in_msgs, 500);
}

#[test]
fn a_fan_out_of_very_many_subjects_to_very_many_subscribers_is_cut_into_turns() {
    let (mut engine, ids) = engine_with(&Options::default(), 1, 2002);
    for id in &ids[2..] {
        engine.on_bytes(*id, b"SUB s.* 1\r\n");
        turns(&mut engine, |_| ());
    }
    let wire: String = (0..300).map(|at| format!("PUB s.{at} 0\r\n\r\n")).collect();
    let cost = flood(&mut engine, ids[0], wire.as_bytes(), ids[1]);
    assert_is_bounded(cost);
    assert_eq!(engine.view().stats().out_msgs, 300 * 2000);
}

#[test]
fn a_run_for_very_many_different_subscriptions_is_cut_into_turns_on_the_shard_that_delivers_it() {
    for home in [0, 1] {
        let (mut engine, ids) = engine_with(&Options::default(), 2, 1002);
        for (at, id) in (0..).zip(&ids[2..]) {
            engine.on_bytes(*id, format!("SUB a {at}\r\n").as_bytes());
            turns(&mut engine, |_| ());
        }
        let wire = b"PUB a 0\r\n\r\n".repeat(1000);
        let cost = if home == 0 {
            flood(&mut engine, ids[0], &wire, ids[1])
        } else {
            while engine.pop_record(ShardId(1)).is_some() {}
            let source = &RunSource {
                account: AccountId::GLOBAL,
                publisher: Publisher { shard: ShardId(1), conn: ids[0] },
                echo: true,
                unwanted_by: None,
                visited: ShardSet::default(),
                arrived: 0,
                from: Kind::Client,
                named_by: None,
                is_passed_on: false,
                hops: 0,
            };
            let subject_hash = engine.core.targets(AccountId::GLOBAL, b"a").subject_hash;
            let mut frame = RunFrame::default();
            frame.push(Parcel {
                source,
                run: &Run::read(&wire),
                subject_hash,
                only: None,
                block: None,
                is_plain: true,
                ticket: None,
                ask: None,
            });
            engine.on_record(ShardId(1), Record::Runs(frame));
            assert!(!engine.view().takes_records(ShardId(1)), "what is behind it waits");
            engine.on_record(ShardId(1), Record::Barrier { epoch: 9 });
            assert!(!engine.has_records(ShardId(1)), "not all that was before it is in force");
            turns(&mut engine, |_| ())
        };
        assert_is_bounded(cost);
        assert_eq!(engine.view().stats().out_msgs, 1000 * 1000);
    }
}

#[test]
fn who_is_owed_too_much_by_errors_alone_is_cut_in_the_same_turn() {
    let mut options = Options::default();
    options.limits.pending_bytes_max = 1000;
    let (mut engine, ids) = engine_with(&options, 1, 1);
    engine.on_bytes(ids[0], &b"PUB _GR_.x 0\r\n\r\n".repeat(100));
    engine.end_turn();
    let is_cut = |action| matches!(action, Output::Close { abort: true, .. });
    assert!(std::iter::from_fn(|| engine.next_output()).any(is_cut));
    assert_eq!(engine.view().stats().slow_consumers.total(), 1);
}

#[test]
fn who_sends_to_itself_is_not_heard_until_it_has_taken_that_and_loses_nothing() {
    let (mut engine, ids) = engine_with(&Options::default(), 1, 1);
    engine.on_bytes(ids[0], b"SUB a 1\r\n");
    out(&mut engine, ids[0]);
    let message = [&b"PUB a 1000000\r\n"[..], &[b'x'; 1_000_000], b"\r\n"].concat();
    let wire = message.repeat(100);
    let (mut at, mut reads, mut got_bytes) = (0, true, 0_usize);
    // The subscriber takes a batch in 1.5 s: longer than any other is waited for.
    for step in 0..200_u64 {
        if engine.view().stats().out_msgs == 100 {
            break;
        }
        engine.set_now(step * 1_500_000_000);
        // Bytes that the reactor has in hand come even if nothing more is read.
        for _ in 0..if reads { 16 } else { 0 } {
            let end = wire.len().min(at + 64 * 1024);
            engine.on_bytes(ids[0], &wire[at..end]);
            at = end;
        }
        engine.tick();
        engine.end_turn();
        let mut batch = None;
        while let Some(action) = engine.next_output() {
            match action {
                Output::Pause(_) => reads = false,
                Output::Resume(_) => reads = true,
                Output::Flush(id) => batch = engine.take_batch(id).or(batch),
                Output::Close { .. } => panic!("it is cut after {got_bytes} bytes"),
                _ => {}
            }
        }
        let pending = engine.core.conns.get(ids[0]).map_or(0, |conn| conn.outbox.pending_bytes());
        assert!(pending < 4_000_000, "{pending}");
        if let Some(batch) = batch {
            let bytes: usize = batch.iter().map(|piece| piece.bytes().len()).sum();
            got_bytes += bytes;
            engine.on_sent(ids[0], bytes, Some(batch));
        }
    }
    assert_eq!(engine.view().stats().out_msgs, 100);
    assert_eq!(engine.view().stats().slow_consumers.total(), 0);
}

#[test]
fn a_traced_message_is_dropped_for_who_is_behind_like_any_other_and_that_is_told() {
    let rule = OverflowRule {
        filter: "a".to_owned(),
        kind: OverflowKind::DropNewest,
        pending_bytes_max: 1024,
    };
    let options = Options { overflow: vec![rule], ..Options::default() };
    let (mut engine, ids) = engine_with(&options, 1, 2);
    engine.on_bytes(ids[0], b"SUB a 1\r\n");
    out(&mut engine, ids[0]);
    let mut errors = Vec::new();
    for _ in 0..40 {
        let header = "NATS/1.0\r\nNats-Trace-Dest: t\r\n\r\n";
        engine.on_bytes(ids[1], format!("HPUB a 32 32\r\n{header}\r\n").as_bytes());
        engine.end_turn();
        let report = |output| match output {
            Output::Trace(trace) => Some(trace),
            _ => None,
        };
        let trace = std::iter::from_fn(|| engine.next_output()).find_map(report).unwrap();
        errors.extend(trace.steps.into_iter().filter_map(|step| match step.event {
            StepEvent::Egress { error, .. } => Some(error),
            _ => None,
        }));
    }
    let told = errors.iter().filter(|error| error.is_none()).count();
    assert_eq!(out(&mut engine, ids[0]).matches("HMSG a 1 32 32\r\n").count(), told);
    assert!((1..40).contains(&told) && errors.len() == 40, "{errors:?}");
}
