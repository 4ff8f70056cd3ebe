//! What servers say to one another, with a peer of the test's own on the port for routes: what it
//! sees of ours is what it sees of nats-server.
//!
//! Without nats-server these say so and pass with ours alone, except under `CI`.

use async_nats::Subscriber;
use futures::StreamExt;

use crate::broker::Broker;
use crate::broker::members::{
    Kind, Original, Ours, client, config, has_original, meet, member, routes, start, until,
};
use crate::broker::peers::next;
use crate::broker::wire::Wire;

/// What each test is about: ours with one shard and with two, and the original if it is here.
fn kinds() -> Vec<Kind> {
    let original = has_original().then_some(Original);
    [Ours(1), Ours(2)].into_iter().chain(original).collect()
}

const CONNECT: &str = "CONNECT {\"name\":\"P\",\"cluster\":\"C\",\"echo\":false}\r\n";

/// What a peer says of itself, with `more` in it.
fn info(id: &str, more: &str) -> String {
    format!(
        "INFO {{\"server_id\":\"{id}\",\"server_name\":\"{id}\",\"headers\":true,\
         \"cluster\":\"C\"{more}}}\r\n"
    )
}

/// A peer, from its first line to the answer to its first PING.
fn peer(broker: &mut Broker, id: &str, more: &str) -> Wire {
    let mut wire = Wire::at(broker.route_port());
    wire.send(format!("{CONNECT}{}PING\r\n", info(id, more)).as_bytes());
    await_line(&mut wire, "PONG");
    wire
}

fn await_line(wire: &mut Wire, wanted: &str) {
    while wire.line() != wanted {}
}

/// All that a peer has said so far is in force, on every shard.
fn settle(wire: &mut Wire) {
    wire.send(b"PING\r\n");
    await_line(wire, "PONG");
}

/// The next line that is a message or an error.
fn told(wire: &mut Wire) -> String {
    loop {
        let line = wire.line();
        if ["RMSG ", "HMSG ", "-ERR "].iter().any(|start| line.starts_with(start)) {
            return line;
        }
    }
}

/// The message that comes next is this one: its line and its payload.
fn expect(wire: &mut Wire, wanted: &str, payload: &str) {
    assert_eq!((told(wire).as_str(), wire.line().as_str()), (wanted, payload));
}

/// A client that has published `payload` to `subject` before whatever it publishes next.
fn publish(wire: &mut Wire, subject: &str, payload: &str) {
    wire.send(format!("PUB {subject} {}\r\n{payload}\r\n", payload.len()).as_bytes());
}

#[test]
fn a_second_route_for_the_same_is_closed_and_the_first_lives() {
    const POOLED: &str = ",\"route_pool_size\":3";
    let second_of_pool = format!("{POOLED},\"route_pool_idx\":2");
    let own_of_account = format!("{POOLED},\"route_account\":\"$SYS\"");
    for kind in kinds() {
        for more in ["", POOLED, &second_of_pool, &own_of_account] {
            let mut broker = member(kind, "a", &mut [], "");
            let mut first = peer(&mut broker, "P", more);
            let mut second = Wire::at(broker.route_port());
            second.send(format!("{CONNECT}{}", info("P", more)).as_bytes());
            second.expect_end();
            settle(&mut first);
            // The place is free again when its connection has gone.
            drop(first);
            until_free(&mut broker, more);
        }
    }
}

/// Tries until a peer finds its place free.
fn until_free(broker: &mut Broker, more: &str) {
    loop {
        let mut wire = Wire::at(broker.route_port());
        wire.send(format!("{CONNECT}{}PING\r\n", info("P", more)).as_bytes());
        let said = String::from_utf8(wire.until_pong_or_end()).expect("the protocol is text");
        if said.ends_with("PONG\r\n") {
            return;
        }
    }
}

#[test]
fn a_second_route_is_closed_though_the_first_one_never_answers() {
    for kind in kinds() {
        let mut broker = member(kind, "a", &mut [], "");
        let mut first = Wire::at(broker.route_port());
        first.send(format!("{CONNECT}{}", info("P", "")).as_bytes());
        while !first.raw_line().starts_with("RS+ ") {}
        let mut second = Wire::at(broker.route_port());
        second.send(format!("{CONNECT}{}", info("P", "")).as_bytes());
        second.expect_end();
        settle(&mut first);
    }
}

#[test]
fn what_a_peer_wants_before_it_says_who_it_is_counts() {
    for kind in kinds() {
        let mut broker = member(kind, "a", &mut [], "");
        let mut client = Wire::connect(&broker);
        let mut peer = Wire::at(broker.route_port());
        let early = "RS+ $G early\r\nRS+ $G over\r\nRS+ $G group q 2\r\nRS- $G over\r\n";
        peer.send(format!("{CONNECT}{early}{}PING\r\n", info("P", "")).as_bytes());
        await_line(&mut peer, "PONG");
        for subject in ["over", "early", "group"] {
            publish(&mut client, subject, "x");
        }
        expect(&mut peer, "RMSG $G early 1", "x");
        expect(&mut peer, "RMSG $G group | q 1", "x");
    }
}

#[test]
fn interest_in_an_invalid_subject_is_refused_and_the_route_stays() {
    for kind in kinds() {
        let mut broker = member(kind, "a", &mut [], "");
        let mut client = Wire::connect(&broker);
        let mut peer = peer(&mut broker, "P", "");
        for subject in ["a..b", ".a", "a.", ">.a", "a.>.b", "a..b q 1"] {
            peer.send(format!("RS+ $G {subject}\r\n").as_bytes());
            assert_eq!(told(&mut peer), "-ERR 'Invalid Subscription'", "{kind:?}: {subject}");
        }
        peer.send(b"RS+ $G a.*\r\n");
        settle(&mut peer);
        publish(&mut client, "a.b", "x");
        expect(&mut peer, "RMSG $G a.b 1", "x");
    }
}

#[test]
fn a_queue_message_whose_members_have_gone_goes_on_to_another_peer_that_has_one() {
    for kind in kinds() {
        let mut broker = member(kind, "a", &mut [], "");
        let mut client = Wire::connect(&broker);
        // Their routes are on different shards, and so one of them is not on the client's.
        let mut peers = ["P", "Q"].map(|id| peer(&mut broker, id, ""));
        for (from, to) in [(0, 1), (1, 0)] {
            client.send(b"SUB s g 1\r\n");
            client.sync();
            peers[to].send(b"RS+ $G s g 1\r\n");
            settle(&mut peers[to]);
            peers[from].send(b"RMSG $G s | g 1\r\n1\r\n");
            client.expect(b"MSG s 1 1\r\n1\r\n");
            client.send(b"UNSUB 1\r\n");
            client.sync();
            peers[from].send(b"RMSG $G s | g 1\r\n2\r\nRMSG $G s + r h g 1\r\n3\r\n");
            peers[from].send(b"HMSG $G s | g 12 13\r\nNATS/1.0\r\n\r\n4\r\nRMSG $G s 1\r\n5\r\n");
            expect(&mut peers[to], "RMSG $G s | g 1", "2");
            expect(&mut peers[to], "RMSG $G s + r g 1", "3");
            assert_eq!(told(&mut peers[to]), "HMSG $G s | g 12 13", "{kind:?}");
            assert_eq!([(); 3].map(|()| peers[to].line()), ["NATS/1.0", "", "4"], "{kind:?}");
            // The last one was for no group, and none of them goes back to who sent it.
            peers[from].send(b"RS+ $G s g 1\r\n");
            peers[to].send(b"RS- $G s g\r\n");
            settle(&mut peers[to]);
            peers[from].send(b"RMSG $G s | g 1\r\n6\r\n");
            peers[from].send(b"RS- $G s g\r\n");
            settle(&mut peers[from]);
            peers[to].send(b"RS+ $G end\r\n");
            settle(&mut peers[to]);
            publish(&mut client, "end", "7");
            expect(&mut peers[to], "RMSG $G end 1", "7");
            peers[to].send(b"RS- $G end\r\n");
        }
    }
}

#[test]
fn a_queue_message_goes_on_to_a_peer_that_wants_the_subject_for_others_too() {
    const OTHERS: [&str; 3] = ["RS+ $G s\r\n", "RS+ $G *\r\n", "RS+ $G s h 2\r\n"];
    for kind in kinds() {
        for (round, others) in OTHERS.into_iter().enumerate() {
            let mut broker = member(kind, "a", &mut [], "");
            // Their routes are on different shards.
            let mut peers = ["P", "Q"].map(|id| peer(&mut broker, id, ""));
            for (from, to) in [(0, 1), (1, 0)] {
                peers[to].send(format!("RS+ $G s g 1\r\n{others}").as_bytes());
                settle(&mut peers[to]);
                peers[from].send(b"RMSG $G s 1\r\n1\r\nRMSG $G s | g 1\r\n2\r\n");
                peers[from].send(b"RMSG $G s + r g 1\r\n3\r\n");
                expect(&mut peers[to], "RMSG $G s | g 1", "2");
                expect(&mut peers[to], "RMSG $G s + r g 1", "3");
                let rest = if round == 2 { "RS- $G s h\r\n" } else { "RS- $G s\r\nRS- $G *\r\n" };
                peers[to].send(format!("RS- $G s g\r\n{rest}").as_bytes());
                settle(&mut peers[to]);
            }
        }
    }
}

#[test]
fn what_is_passed_on_goes_where_nobody_has_had_it_if_there_is_a_member() {
    for kind in [Ours(1), Ours(2), Ours(4)] {
        let mut broker = member(kind, "a", &mut [], "");
        let mut peers = ["P", "Q", "R"].map(|id| peer(&mut broker, id, ""));
        peers[1].send(b"RS+ $G s g 50\r\nRS+ $G s\r\n");
        peers[2].send(b"RS+ $G s g 1\r\n");
        peers[1..].iter_mut().for_each(settle);
        (0..20).for_each(|_| peers[0].send(b"RMSG $G s | g 1\r\nx\r\n"));
        (0..20).for_each(|_| expect(&mut peers[2], "RMSG $G s | g 1", "x"));
    }
}

#[test]
fn members_of_our_kind_tell_what_was_passed_on_for_a_group_and_nobody_gets_it_twice() {
    const OURS: &str = ",\"shardcast\":true";
    for kind in [Ours(1), Ours(2), Ours(4)] {
        let mut broker = member(kind, "a", &mut [], "");
        let mut client = Wire::connect(&broker);
        client.send(b"SUB s 1\r\n");
        client.sync();
        let mut peers = ["P", "Q"].map(|id| peer(&mut broker, id, OURS));
        for (from, to) in [(0, 1), (1, 0)] {
            client.send(b"SUB s g 2\r\n");
            client.sync();
            // What peers pass on is for a member of the group alone.
            peers[from].send(b"RMSG $G s | g g 1\r\n1\r\nRMSG $G s + r g g h 1\r\n2\r\n");
            client.expect(b"MSG s 2 1\r\n1\r\nMSG s 2 r 1\r\n2\r\n");
            client.send(b"UNSUB 2\r\n");
            client.sync();
            // What goes on says so, though the peer has interest of other kinds.
            peers[to].send(b"RS+ $G s g 1\r\nRS+ $G s\r\n");
            settle(&mut peers[to]);
            peers[from].send(b"RMSG $G s | g 1\r\n3\r\nRMSG $G s + r g 1\r\n4\r\n");
            client.expect(b"MSG s 1 1\r\n3\r\nMSG s 1 r 1\r\n4\r\n");
            expect(&mut peers[to], "RMSG $G s | g g 1", "3");
            expect(&mut peers[to], "RMSG $G s + r g g 1", "4");
            // What its first server has passed on is for the group alone, and goes on once more.
            peers[from].send(b"RMSG $G s | g g g 1\r\n7\r\nRMSG $G s + r g g g 1\r\n8\r\n");
            expect(&mut peers[to], "RMSG $G s | g g 1", "7");
            expect(&mut peers[to], "RMSG $G s + r g g 1", "8");
            // But only once: it would come round to where it was published.
            peers[from].send(b"RMSG $G s | g g 1\r\n5\r\nRMSG $G s | g 1\r\n6\r\n");
            client.expect(b"MSG s 1 1\r\n6\r\n");
            expect(&mut peers[to], "RMSG $G s | g g 1", "6");
            peers[to].send(b"RS- $G s g\r\nRS- $G s\r\n");
            settle(&mut peers[to]);
        }
    }
}

#[test]
fn interest_of_leaf_nodes_is_not_taken_for_that_of_the_peers_clients() {
    const LEAVES: &str = ",\"lnoc\":true,\"lnocu\":true,\"ln\":true";
    for kind in kinds() {
        let mut broker = member(kind, "a", &mut [], "");
        let mut client = Wire::connect(&broker);
        let mut peer = peer(&mut broker, "P", LEAVES);
        let mut rounds = 0;
        for (line, arrives) in [
            ("LS+ one $G s", true),
            ("LS+ two $G s", true),
            ("LS+ _ $G s", true),
            ("RS+ $G s", true),
            ("RS- $G s", true),
            ("LS- _ $G s", true),
            ("LS- one $G s", true),
            ("LS- two $G s", false),
        ] {
            rounds += 1;
            peer.send(format!("{line}\r\n").as_bytes());
            settle(&mut peer);
            let end = format!("RS+ $G end.{rounds}\r\n");
            peer.send(end.as_bytes());
            settle(&mut peer);
            publish(&mut client, "s", "x");
            publish(&mut client, &format!("end.{rounds}"), "x");
            if arrives {
                expect(&mut peer, "RMSG $G s 1", "x");
            }
            expect(&mut peer, &format!("RMSG $G end.{rounds} 1"), "x");
        }
    }
}

#[test]
fn leaf_nodes_get_a_queue_message_only_where_there_is_no_other_member() {
    const LEAVES: &str = ",\"lnoc\":true,\"lnocu\":true,\"ln\":true";
    for kind in kinds() {
        let mut broker = member(kind, "a", &mut [], "");
        let mut client = Wire::connect(&broker);
        let mut hub = peer(&mut broker, "P", LEAVES);
        let mut other = peer(&mut broker, "Q", "");
        hub.send(b"LS+ leaves $G s g 5\r\n");
        settle(&mut hub);
        publish(&mut client, "s", "1");
        expect(&mut hub, "RMSG $G s | g 1", "1");
        other.send(b"RS+ $G s g 1\r\n");
        settle(&mut other);
        (0..20).for_each(|_| publish(&mut client, "s", "2"));
        (0..20).for_each(|_| expect(&mut other, "RMSG $G s | g 1", "2"));
        other.send(b"RS- $G s g\r\n");
        settle(&mut other);
        client.send(b"SUB s g 1\r\n");
        client.sync();
        (0..20).for_each(|_| publish(&mut client, "s", "3"));
        (0..20).for_each(|_| client.expect(b"MSG s 1 1\r\n3\r\n"));
        client.send(b"UNSUB 1\r\n");
        client.sync();
        hub.send(b"LS- leaves $G s g\r\nLS+ _ $G s g 1\r\n");
        settle(&mut hub);
        publish(&mut client, "s", "4");
        expect(&mut hub, "RMSG $G s | g 1", "4");
    }
}

#[test]
fn what_comes_from_leaf_nodes_is_delivered_once_and_not_sent_back_to_them() {
    const LEAVES: &str = ",\"lnoc\":true,\"lnocu\":true,\"ln\":true";
    for kind in kinds() {
        let mut broker = member(kind, "a", &mut [], "");
        let mut client = Wire::connect(&broker);
        client.send(b"SUB s.* 1\r\nSUB q g 2\r\nSUB none h 3\r\n");
        client.sync();
        let mut hub = peer(&mut broker, "P", LEAVES);
        let mut other_hub = peer(&mut broker, "Q", LEAVES);
        other_hub.send(b"LS+ leaves $G s.*\r\nLS+ leaves $G gone g 1\r\n");
        settle(&mut other_hub);
        hub.send(b"LMSG leaves $G s.a 0 1\r\na\r\nLMSG leaves $G s.b re 0 1\r\nb\r\n");
        hub.send(b"LMSG leaves $G s.c re 12 13\r\nNATS/1.0\r\n\r\nc\r\n");
        hub.send(b"LMSG leaves $G none 0 1\r\nx\r\nLMSG leaves $G q | g h 0 1\r\nd\r\n");
        hub.send(b"LMSG leaves $G q + re g 12 13\r\nNATS/1.0\r\n\r\ne\r\n");
        client.expect(b"MSG s.a 1 1\r\na\r\nMSG s.b 1 re 1\r\nb\r\nMSG s.c 1 re 1\r\nc\r\n");
        client.expect(b"MSG q 2 1\r\nd\r\nMSG q 2 re 1\r\ne\r\n");
        if kind != Original {
            // nats-server does not look at whose members of the group are behind a route.
            hub.send(b"LMSG leaves $G gone | g 0 1\r\nx\r\n");
        }
        settle(&mut hub);
        other_hub.send(b"LS+ others $G gone g 1\r\n");
        settle(&mut other_hub);
        hub.send(b"LMSG leaves $G gone | g 0 1\r\ny\r\n");
        expect(&mut other_hub, "RMSG $G gone | g 1", "y");
    }
}

#[test]
fn whatever_a_peer_makes_of_a_message_clients_get_a_whole_one_or_none() {
    for kind in kinds() {
        let mut broker = member(kind, "a", &mut [], "");
        let mut client = Wire::connect(&broker);
        client.send(b"SUB > 1\r\n");
        client.sync();
        let mut peer = peer(&mut broker, "P", ",\"lnoc\":true,\"lnocu\":true,\"ln\":true");
        for (sent, got) in [
            ("RMSG $G s + re 2", "MSG s 1 re 2"),
            ("RMSG $G s | 2", "MSG s 1 | 2"),
            ("RMSG $G s + 2", "MSG s 1 + 2"),
            ("RMSG $G s | g h 2", "MSG s 1 2"),
            ("RMSG $G s + re g 2", "MSG s 1 re 2"),
            ("HMSG $G s 0 2", "MSG s 1 2"),
            ("HMSG $G s + re 0 2", "MSG s 1 re 2"),
            ("RMSG  $G\ts  re   2", "MSG s 1 re 2"),
            ("LMSG o $G s + re 0 2", "MSG s 1 re 2"),
            ("RMSG $G a.*.> 2", "MSG a.*.> 1 2"),
        ] {
            peer.send(format!("{sent}\r\nhi\r\n").as_bytes());
            client.expect(format!("{got}\r\nhi\r\n").as_bytes());
        }
        // A subject with an empty token is nobody's.
        peer.send(b"RMSG $G a..b 2\r\nno\r\nRMSG $G .a 2\r\nno\r\nRMSG $G s 2\r\nhi\r\n");
        client.expect(b"MSG s 1 2\r\nhi\r\n");
        for bad in
            ["RMSG $G s x", "HMSG $G s 3 2", "RMSG $G s re g 2", "RMSG $G s -1", "LMSG o $G 2"]
        {
            let mut peer = self::peer(&mut broker, "B", "");
            peer.send(format!("{bad}\r\nhi\r\n").as_bytes());
            peer.drain_to_end();
        }
        publish(&mut client, "s", "still");
        client.expect(b"MSG s 1 5\r\nstill\r\n");
    }
}

#[test]
fn the_lines_of_an_accounts_own_route_never_name_it() {
    const OWN: &str = ",\"route_pool_size\":3,\"route_account\":\"A\"";
    let accounts = "accounts { A { users: [{user: a, password: a}] } }";
    for kind in kinds() {
        let mut broker = start(kind, &config("a", "", "accounts: [A]", accounts));
        let mut client = Wire::ungreeted(&broker);
        client.line();
        client.send(b"CONNECT {\"verbose\":false,\"user\":\"a\",\"pass\":\"a\"}\r\nSUB in 1\r\n");
        client.sync();
        // Wherever TCP cuts it. Each time it is another peer, with another group: the server need
        // not know yet that the one before has gone.
        for at in 0..4 {
            let hello = format!("{CONNECT}{}", info(&format!("P{at}"), OWN));
            let lines = format!(
                "RS+ out\r\nRS+ group{at} q 1\r\nRMSG in 2\r\nhi\r\n\
                 RS+ early x 1\r\nRS- early x\r\n"
            );
            let end = hello.len();
            let cut = [end - 2, end, end + 5, end + lines.len()][at];
            let whole = format!("{hello}{lines}PING\r\n");
            let (head, rest) = whole.split_at(cut);
            let mut peer = Wire::at(broker.route_port());
            peer.send(head.as_bytes());
            peer.send(rest.as_bytes());
            client.expect(b"MSG in 1 2\r\nhi\r\n");
            let mut heard = Vec::new();
            loop {
                let line = peer.line();
                if line == "PONG" {
                    break;
                }
                heard.push(line);
            }
            let names = |line: &String| line.starts_with("RS+ A ");
            assert!(!heard.iter().any(names), "{kind:?}: {heard:?}");
            assert!(heard.contains(&"RS+ in".to_owned()), "{kind:?}: {heard:?}");
            publish(&mut client, "out", "1");
            publish(&mut client, "early", "2");
            publish(&mut client, &format!("group{at}"), "3");
            expect(&mut peer, "RMSG out 1", "1");
            expect(&mut peer, &format!("RMSG group{at} | q 1"), "3");
        }
    }
}

/// A member, a peer of it that has logged in, and a witness among its clients; with shards of ours.
fn beside_a_mad_peer(test: impl Fn(&mut Broker, &mut Wire, &mut Wire)) {
    for kind in [Ours(1), Ours(2), Ours(4)] {
        println!("{kind:?}");
        let mut broker = member(kind, "a", &mut [], "");
        let mut witness = Wire::connect(&broker);
        witness.send(b"SUB witness 1\r\n");
        let mut peer = peer(&mut broker, "P", "");
        test(&mut broker, &mut peer, &mut witness);
        is_served(&mut witness);
    }
}

fn is_served(witness: &mut Wire) {
    witness.send(b"PUB witness 2\r\nok\r\n");
    witness.expect(b"MSG witness 1 2\r\nok\r\n");
}

/// Sends all of it while the witness is served, and waits until it is handled.
fn rave(peer: &mut Wire, witness: &mut Wire, lines: impl Iterator<Item = String>) {
    const LINES: usize = 1000;
    let lines: Vec<String> = lines.collect();
    for lines in lines.chunks(LINES) {
        peer.send(lines.concat().as_bytes());
        is_served(witness);
    }
    settle(peer);
}

#[test]
fn whatever_a_mad_peer_says_takes_no_memory_that_it_does_not_give_back_and_others_are_served() {
    type Line = fn(usize) -> String;
    const FLOODS: [(&str, Line); 9] = [
        ("the end of unknown interest", |at| format!("RS- $G not.wanted.{at}\r\n")),
        ("invalid subjects", |at| format!("RS+ $G a..{at}\r\n")),
        ("accounts that nobody has", |at| format!("RMSG no{at} s 2\r\nhi\r\n")),
        ("weights", |at| format!("RS+ $G q g {}\r\n", [-1, 0, i64::MAX, 7][at % 4])),
        ("PING and PONG", |_| "PING\r\nPONG\r\n+OK\r\n".to_owned()),
        ("gossip", |at| {
            format!(
                "INFO {{\"server_id\":\"S{at}\",\"ip\":\"nats-route://127.0.0.1:{}\"}}\r\n",
                at % 9
            )
        }),
        ("where clients connect", |at| {
            format!("INFO {{\"server_id\":\"P\",\"connect_urls\":[\"127.0.0.1:{at}\"]}}\r\n")
        }),
        ("what it takes", |at| {
            format!("INFO {{\"server_id\":\"P\",\"import\":{{\"allow\":[\"a.{at}\"]}}}}\r\n")
        }),
        ("interest that ends", |at| format!("RS+ A{at} s.{at} g 2\r\nRS- A{at} s.{at} g\r\n")),
    ];
    const GROWN_KIB_MAX: u64 = 24 * 1024;
    beside_a_mad_peer(|broker, peer, witness| {
        for (what, line) in FLOODS {
            rave(peer, witness, (0..2000).map(line));
            let before = broker.resident_kib();
            rave(peer, witness, (2000..12_000).map(line));
            let grown = broker.resident_kib().saturating_sub(before);
            assert!(grown < GROWN_KIB_MAX, "{what}: {grown} KiB more");
        }
    });
}

#[test]
fn a_peer_that_speaks_of_itself_without_end_is_listened_to_no_faster_than_it_is_heard() {
    beside_a_mad_peer(|broker, peer, witness| {
        let urls: Vec<String> = (0..2000).map(|at| format!("\"127.0.0.1:{at}\"")).collect();
        let lists = |at: usize| {
            let rest = urls[at..].join(",");
            format!("INFO {{\"server_id\":\"P\",\"connect_urls\":[{rest}]}}\r\n")
        };
        rave(peer, witness, (0..20).map(lists));
        let before = broker.resident_kib();
        rave(peer, witness, (0..1000).map(lists));
        let grown = broker.resident_kib().saturating_sub(before);
        assert!(grown < 24 * 1024, "{grown} KiB more");
    });
}

#[test]
fn a_peer_that_makes_no_sense_is_cut_and_nobody_else_notices() {
    beside_a_mad_peer(|broker, _, witness| {
        for line in [
            "INFO {\"server_id\":1}",
            "INFO []",
            "INFO {\"server_id\":\"B\",\"connect_urls\":{}}",
            "INFO {\"server_id\":\"B\",\"route_pool_size\":1e99}",
            "INFO {",
            "CONNECT {\"name\":\"B\"}",
            "RS+ $G s g 1 1",
            "RS+",
            "RMSG $G s 99999999999999999999",
            "RMSG $G s -1",
            "LS+ $G",
            "NOTHING",
            "PUB s 1\r\nx",
        ] {
            let mut peer = peer(broker, "B", "");
            peer.send(format!("{line}\r\n").as_bytes());
            peer.drain_to_end();
            is_served(witness);
        }
        // Half a line is no line.
        let mut peer = peer(broker, "B", "");
        for byte in b"RS+ $G half.a.line" {
            peer.send(&[*byte]);
            is_served(witness);
        }
        peer.send(b"\r\n");
        settle(&mut peer);
        publish(witness, "half.a.line", "x");
        expect(&mut peer, "RMSG $G half.a.line 1", "x");
    });
}

#[test]
fn interest_of_a_peer_takes_about_as_much_memory_as_is_counted_for_it() {
    const ENTRIES: u32 = 120_000;
    // Bytes counted on the shard of the link, and on each other.
    for (queue, first, other) in [("", 278, 171), (" workers 1", 478, 363)] {
        for shards in [1, 2] {
            let mut broker = member(Ours(shards), "a", &mut [], "");
            let mut witness = Wire::connect(&broker);
            witness.send(b"SUB witness 1\r\n");
            let mut peer = peer(&mut broker, "P", "");
            let line = |at: u32| format!("RS+ $G orders.region{}.{at:08}{queue}\r\n", at % 50);
            rave(&mut peer, &mut witness, (0..1000).map(line));
            let before = broker.resident_kib();
            rave(&mut peer, &mut witness, (1000..ENTRIES).map(line));
            let grown = broker.resident_kib().saturating_sub(before) * 1024;
            let counted = u64::from(ENTRIES * (first + other * (shards - 1)));
            // Batches on their way between shards, and tables that grow, take some, once.
            let slack = u64::from(shards) * 4 * 1024 * 1024;
            let is_about = grown < counted + slack && grown + slack > counted * 7 / 8;
            assert!(is_about, "{grown} for {counted}, {shards} shards, {queue:?}");
        }
    }
}

/// A server of the original kind with leaf nodes, and where they dial.
fn hub(name: &str, seeds: &mut [&mut Broker]) -> (Broker, String) {
    const LISTENING: &str = "Listening for leafnode connections on ";
    let leaves = "leafnodes { listen: \"127.0.0.1:-1\" }";
    let hub = start(Original, &config(name, &routes("127.0.0.1", seeds), "", leaves));
    let banner = hub.banner();
    let (_, rest) = banner.split_once(LISTENING).expect("it listens for leaf nodes");
    let address = rest.lines().next().unwrap_or_default().trim().to_owned();
    (hub, address)
}

/// A server of leaf cluster `cluster`, or of none, below a hub.
fn leaf(name: &str, cluster: &str, hub: &str) -> Broker {
    let cluster = match cluster {
        "" => String::new(),
        name => format!("cluster {{ name: {name}, listen: \"127.0.0.1:-1\" }}"),
    };
    let remote = format!("leafnodes {{ remotes: [{{url: \"nats-leaf://{hub}\"}}] }}");
    start(Original, &format!("server_name: {name}\n{cluster}\n{remote}\n"))
}

/// What has come so far, once what was published before `end` would have.
async fn heard_until(subscriber: &mut Subscriber, end: &str) -> Vec<String> {
    let mut heard = Vec::new();
    loop {
        let message = next(subscriber).await;
        let payload = String::from_utf8(message.payload.to_vec()).expect("it is text");
        if payload == end {
            return heard;
        }
        heard.push(payload);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_reach_leaf_nodes_of_another_member_once_and_back() {
    if !has_original() {
        return;
    }
    for (shards, cluster) in [(1, ""), (2, "LEAVES"), (2, "")] {
        let mut ours = member(Ours(shards), "a", &mut [], "");
        let (_hub, address) = hub("b", &mut [&mut ours]);
        let leaf = leaf("leaf", cluster, &address);
        let (here, below) = (client(&ours).await, client(&leaf).await);
        let mut down = below.subscribe("down.*").await.expect("connected");
        let mut up = here.subscribe("up.*").await.expect("connected");
        meet(&below, &here).await;
        meet(&here, &below).await;
        for number in 0..100 {
            here.publish("down.x", number.to_string().into()).await.expect("connected");
            below.publish("up.x", number.to_string().into()).await.expect("connected");
        }
        here.publish("down.end", "end".into()).await.expect("connected");
        below.publish("up.end", "end".into()).await.expect("connected");
        let wanted: Vec<String> = (0..100).map(|number| number.to_string()).collect();
        assert_eq!(heard_until(&mut down, "end").await, wanted, "{shards} {cluster}");
        assert_eq!(heard_until(&mut up, "end").await, wanted, "{shards} {cluster}");
        // A group with members at both ends has each message once; those here come first.
        let mut near = here.queue_subscribe("q", "g".into()).await.expect("connected");
        let mut far = below.queue_subscribe("q", "g".into()).await.expect("connected");
        meet(&below, &here).await;
        for _ in 0..50 {
            here.publish("q", "x".into()).await.expect("connected");
        }
        for _ in 0..50 {
            next(&mut near).await;
        }
        near.unsubscribe().await.expect("connected");
        meet(&here, &below).await;
        let mut got = 0;
        while got < 50 {
            here.publish("q", "y".into()).await.expect("connected");
            next(&mut far).await;
            got += 1;
        }
        meet(&below, &here).await;
        assert!(futures::FutureExt::now_or_never(far.next()).is_none(), "each once");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leaf_nodes_interest_may_end_while_that_of_its_hub_goes_on() {
    if !has_original() {
        return;
    }
    let mut ours = member(Ours(2), "a", &mut [], "");
    let (hub, address) = hub("b", &mut [&mut ours]);
    let leaf = leaf("leaf", "LEAVES", &address);
    let (here, at_hub, below) = (client(&ours).await, client(&hub).await, client(&leaf).await);
    let mut wanted = at_hub.subscribe("s").await.expect("connected");
    let mut given_up = below.subscribe("s").await.expect("connected");
    meet(&at_hub, &here).await;
    meet(&below, &here).await;
    given_up.unsubscribe().await.expect("connected");
    // What is said after it has come, it has come, too.
    meet(&below, &here).await;
    here.publish("s", "x".into()).await.expect("connected");
    assert_eq!(next(&mut wanted).await.payload, "x");
    until(|| async { here.flush().await.is_ok() }).await;
}
