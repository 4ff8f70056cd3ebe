//! A leaf node that does what its user may not: it gets nothing beyond its permissions, and is
//! told why it goes.

use crate::broker::members::{Ours, start};
use crate::broker::wire::Wire;
use crate::broker::{Broker, is_nats_server, shard_counts};

const USERS: &str = "accounts { A { users: [ { user: c, password: p }, { user: edge, password: p, \
    permissions: { publish: \"ok.>\", subscribe: [\"hear.>\", \"_INBOX.>\"] } } ] }\n\
    B { users: [ { user: b, password: p } ] } }";

struct Hub {
    broker: Broker,
    port: u16,
}

impl Hub {
    fn start(shards: u32) -> Self {
        let config =
            format!("server_name: hub\n{USERS}\nleafnodes {{ listen: \"127.0.0.1:-1\" }}\n");
        let mut broker = start(Ours(shards), &config);
        let port = broker.logged_port("Listening for leafnode connections on ");
        Self { broker, port }
    }

    /// A client of the hub, of this user.
    fn client(&self, user: &str) -> Wire {
        let mut wire = Wire::ungreeted(&self.broker);
        wire.line();
        let login = format!("CONNECT {{\"verbose\":false,\"user\":\"{user}\",\"pass\":\"p\"}}\r\n");
        wire.send(login.as_bytes());
        wire.sync();
        wire
    }

    /// A leaf node of the user with permissions, whose interest is known.
    fn leaf(&self, interest: &[&str]) -> Wire {
        let mut wire = Wire::at(self.port);
        wire.send(b"CONNECT {\"name\":\"edge\",\"user\":\"edge\",\"pass\":\"p\"}\r\n");
        for subject in interest {
            wire.send(format!("LS+ {subject}\r\n").as_bytes());
        }
        wire.send(b"PING\r\n");
        wire.until_pong_or_end();
        wire
    }
}

/// All that a leaf node hears before its PONG.
fn heard(leaf: &mut Wire) -> String {
    leaf.send(b"PING\r\n");
    String::from_utf8(leaf.until_pong_or_end()).expect("the protocol is text")
}

#[test]
fn interest_in_more_than_it_may_hear_brings_only_what_it_may() {
    if is_nats_server() {
        return;
    }
    for &shards in shard_counts() {
        let hub = Hub::start(shards);
        let mut leaf = hub.leaf(&[">", "*.secret", "hear.x"]);
        let (mut client, mut other) = (hub.client("c"), hub.client("b"));
        client.send(b"PUB hear.secret 1\r\n1\r\nPUB no.secret 1\r\n2\r\nPUB secret 1\r\n3\r\n");
        client.send(b"PUB $JS.API.INFO 1\r\n5\r\nPUB $KV.b.k 1\r\n6\r\n");
        client.sync();
        other.send(b"PUB hear.secret 1\r\n4\r\n");
        other.sync();
        client.send(b"PUB hear.last 4\r\nlast\r\n");
        let mut all = String::new();
        while !all.contains("last\r\n") {
            all.push_str(&heard(&mut leaf));
        }
        let lines: Vec<&str> = all.lines().filter(|line| line.starts_with("LMSG")).collect();
        assert_eq!(lines, ["LMSG hear.secret 1", "LMSG hear.last 4"], "{all}");
    }
}

#[test]
fn an_answer_that_names_the_hubs_own_cluster_is_no_way_round_the_permissions() {
    if is_nats_server() {
        return;
    }
    let config = format!(
        "server_name: hub\n{USERS}\nleafnodes {{ listen: \"127.0.0.1:-1\" }}\ngateway {{ name: A, \
         listen: \"127.0.0.1:-1\" }}\n"
    );
    for &shards in shard_counts() {
        let mut broker = start(Ours(shards), &config);
        let port = broker.logged_port("Listening for leafnode connections on ");
        let hub = Hub { broker, port };
        let mut client = hub.client("c");
        client.send(b"SUB > 1\r\n");
        client.sync();
        let mut leaf = hub.leaf(&[]);
        // The hash of `A`, and of a server that nobody knows.
        leaf.send(b"LMSG _GR_.NUmM6c.AAAAAA.no.secret 1\r\nx\r\nLMSG ok.last 4\r\nlast\r\n");
        let mut all = String::new();
        while !all.contains("last\r\n") {
            client.send(b"PING\r\n");
            all.push_str(&String::from_utf8(client.until_pong_or_end()).expect("text"));
        }
        let lines: Vec<&str> = all.lines().filter(|line| line.starts_with("MSG")).collect();
        assert_eq!(lines, ["MSG ok.last 1 4"], "{all}");
    }
}

#[test]
fn what_it_may_not_do_ends_its_connection_and_reaches_nobody() {
    if is_nats_server() {
        return;
    }
    for &shards in shard_counts() {
        let hub = Hub::start(shards);
        let mut client = hub.client("c");
        client.send(b"SUB > 1\r\nSUB no.> g 2\r\n");
        client.sync();
        for (said, error) in [
            ("LS+ no.a\r\n", "Permissions Violation for Subscription to \"no.a\""),
            ("LMSG no.a 1\r\nx\r\n", "Permissions Violation for Publish to \"no.a\""),
            ("LMSG no.a | g 1\r\nx\r\n", "Permissions Violation for Publish to \"no.a\""),
            ("LMSG no.a + ok.r g 1\r\nx\r\n", "Permissions Violation for Publish to \"no.a\""),
            ("HMSG no.a 12 13\r\nNATS/1.0\r\n\r\nx\r\n", "Publish to \"no.a\""),
            ("LMSG $SYS.REQ.SERVER.PING 0\r\n\r\n", "Publish to \"$SYS.REQ.SERVER.PING\""),
            ("LMSG ok.a 1048577\r\n", "Maximum Payload Violation"),
            ("RMSG B no.a 1\r\nx\r\n", "Unknown Protocol Operation"),
            ("PUB no.a 1\r\nx\r\n", "Unknown Protocol Operation"),
        ] {
            let mut leaf = hub.leaf(&[]);
            leaf.send(said.as_bytes());
            let end = String::from_utf8(leaf.drain_to_end()).expect("the protocol is text");
            assert!(end.contains(error), "{said:?} gets {end:?}");
        }
        // A subject of an account that it is not bound to is one of its own.
        let mut leaf = hub.leaf(&[]);
        leaf.send(b"LMSG ok.last 4\r\nlast\r\n");
        let mut all = String::new();
        while !all.contains("last\r\n") {
            client.send(b"PING\r\n");
            all.push_str(&String::from_utf8(client.until_pong_or_end()).expect("text"));
        }
        let lines: Vec<&str> = all.lines().filter(|line| line.starts_with("MSG")).collect();
        assert_eq!(lines, ["MSG ok.last 1 4"], "{all}");
    }
}
