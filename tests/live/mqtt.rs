//! MQTT clients of a live broker: what they may count on over shards, restarts and reloads, and
//! what strangers at the port may not do.

#![expect(clippy::disallowed_methods, reason = "tests bound how long they wait for servers")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::broker::http::json;
use crate::broker::members::{Ours, member, routes_to_each};
use crate::broker::wire::Wire;
use crate::broker::{Broker, PATIENCE, is_nats_server, shard_counts};

/// A packet as it has come.
#[derive(Debug, Clone, PartialEq)]
struct Came {
    first: u8,
    body: Vec<u8>,
}

/// A message as it has come.
#[derive(Debug, Clone, PartialEq)]
struct Heard {
    topic: String,
    payload: String,
    qos: u8,
    retain: bool,
    dup: bool,
    id: u16,
}

/// A client, which acknowledges only what it is told to.
struct Client {
    stream: TcpStream,
    bytes: Vec<u8>,
    /// Messages that came while something else was waited for.
    heard: Vec<Heard>,
}

fn text(text: &str) -> Vec<u8> {
    let len = u16::try_from(text.len()).expect("it is short");
    [&len.to_be_bytes(), text.as_bytes()].concat()
}

fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    let mut len = body.len();
    loop {
        let digit = u8::try_from(len & 0x7f).expect("seven bits");
        len >>= 7;
        out.push(if len > 0 { digit | 0x80 } else { digit });
        if len == 0 {
            break;
        }
    }
    out.extend_from_slice(body);
    out
}

/// What a CONNECT says besides the client's id.
#[derive(Default)]
struct Login {
    keeps: bool,
    user: Option<(&'static str, &'static str)>,
    /// Topic and payload of a will of QoS 1.
    will: Option<(&'static str, &'static str)>,
}

fn connect(id: &str, login: &Login) -> Vec<u8> {
    let mut flags = if login.keeps { 0 } else { 2 };
    let mut rest = text(id);
    if let Some((topic, payload)) = login.will {
        flags |= 4 | 1 << 3;
        rest.extend([text(topic), text(payload)].concat());
    }
    if let Some((user, password)) = login.user {
        flags |= 0xc0;
        rest.extend([text(user), text(password)].concat());
    }
    packet(0x10, &[&text("MQTT")[..], &[4, flags, 0, 0], &rest].concat())
}

impl Client {
    fn raw(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("the port is open");
        stream.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
        stream.set_nodelay(true).expect("no delay");
        Self { stream, bytes: Vec::new(), heard: Vec::new() }
    }

    /// A client that is in, and whether its session was there.
    fn open(port: u16, id: &str, login: &Login) -> (Self, bool) {
        let mut client = Self::raw(port);
        client.send(&connect(id, login));
        let came = client.wait_for(0x20);
        assert_eq!(came.body[1], 0, "it is accepted");
        (client, came.body[0] == 1)
    }

    fn new(port: u16, id: &str) -> Self {
        Self::open(port, id, &Login::default()).0
    }

    fn send(&mut self, bytes: &[u8]) {
        // What the broker does not want any more is seen when it is read from.
        let _ = self.stream.write_all(bytes);
    }

    /// The next packet; `None` if nothing comes for a moment. An end is a packet 0.
    fn next(&mut self) -> Option<Came> {
        loop {
            if let Some(came) = self.parse() {
                return Some(came);
            }
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Some(Came { first: 0, body: Vec::new() }),
                Ok(len) => self.bytes.extend_from_slice(&chunk[..len]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return None,
                Err(_) => return Some(Came { first: 0, body: Vec::new() }),
            }
        }
    }

    fn parse(&mut self) -> Option<Came> {
        let (mut len, mut at) = (0, 1);
        loop {
            let byte = usize::from(*self.bytes.get(at)?);
            len |= (byte & 0x7f) << (7 * (at - 1));
            at += 1;
            if byte & 0x80 == 0 {
                break;
            }
        }
        let body = self.bytes.get(at..at + len)?.to_vec();
        let first = self.bytes[0];
        self.bytes.drain(..at + len);
        Some(Came { first, body })
    }

    /// Waits for a packet of this kind; messages before it are kept.
    fn wait_for(&mut self, first: u8) -> Came {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            match self.next() {
                Some(came) if came.first == first => return came,
                Some(came) if came.first >> 4 == 3 => self.heard.push(read(&came)),
                Some(came) => assert_ne!(came.first, 0, "the connection has ended"),
                None => {}
            }
        }
        panic!("no packet {first:#x}");
    }

    fn wait_for_any(&mut self) -> Came {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            if let Some(came) = self.next() {
                return came;
            }
        }
        panic!("nothing comes");
    }

    fn wait_for_end(&mut self) {
        let end = Instant::now() + PATIENCE;
        while self.next().is_none_or(|came| came.first != 0) {
            assert!(Instant::now() < end, "the connection stays");
        }
    }

    /// Waits for so many messages.
    fn messages(&mut self, count: usize) -> Vec<Heard> {
        let end = Instant::now() + PATIENCE;
        while self.heard.len() < count {
            assert!(Instant::now() < end, "{:?}", self.heard);
            match self.next() {
                Some(came) if came.first >> 4 == 3 => self.heard.push(read(&came)),
                Some(came) => assert_ne!(came.first, 0, "the connection has ended"),
                None => {}
            }
        }
        std::mem::take(&mut self.heard)
    }

    fn subscribe(&mut self, filter: &str, qos: u8) -> u8 {
        self.send(&packet(0x82, &[&[0, 1], &text(filter)[..], &[qos]].concat()));
        self.wait_for(0x90).body[2]
    }

    fn publish(&mut self, topic: &str, payload: &str, qos: u8, retain: bool) {
        let id = if qos > 0 { &[0, 9][..] } else { b"" };
        let first = 0x30 | qos << 1 | u8::from(retain);
        self.send(&packet(first, &[&text(topic)[..], id, payload.as_bytes()].concat()));
        match qos {
            1 => drop(self.wait_for(0x40)),
            2 => {
                self.wait_for(0x50);
                self.send(&[0x62, 2, 0, 9]);
                self.wait_for(0x70);
            }
            _ => self.ping(),
        }
    }

    fn ping(&mut self) {
        self.send(&[0xc0, 0]);
        self.wait_for(0xd0);
    }

    fn acknowledge(&mut self, first: u8, id: u16) {
        self.send(&[&[first, 2], &id.to_be_bytes()[..]].concat());
    }

    fn disconnect(mut self) {
        self.send(&[0xe0, 0]);
        self.wait_for_end();
    }
}

fn read(came: &Came) -> Heard {
    let len = usize::from(u16::from_be_bytes([came.body[0], came.body[1]]));
    let (topic, rest) = came.body[2..].split_at(len);
    let qos = came.first >> 1 & 3;
    let (id, payload) = match qos {
        0 => (0, rest),
        _ => (u16::from_be_bytes([rest[0], rest[1]]), &rest[2..]),
    };
    let utf8 = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
    let (retain, dup) = (came.first & 1 == 1, came.first & 8 == 8);
    Heard { topic: utf8(topic), payload: utf8(payload), qos, retain, dup, id }
}

fn config(store: &std::path::Path, block: &str, more: &str) -> String {
    format!(
        "server_name: m\nhttp: \"127.0.0.1:-1\"\njetstream {{ store_dir: \"{}\" }}\n\
         mqtt {{ listen: \"127.0.0.1:-1\"\n{block} }}\n{more}\n",
        store.display()
    )
}

fn port_of(broker: &mut Broker) -> u16 {
    broker.logged_port("Listening for MQTT clients on mqtt://")
}

/// A broker for each number of shards, with its port for MQTT.
fn on_each(block: &str, more: &str, test: impl Fn(&mut Broker, u16)) {
    for &shards in shard_counts() {
        println!("with {shards} shards");
        let store = tempfile::tempdir().expect("a scratch directory");
        let mut broker = Broker::with_config(shards, &config(store.path(), block, more));
        let port = port_of(&mut broker);
        test(&mut broker, port);
    }
}

const KEEPS: Login = Login { keeps: true, user: None, will: None };

#[test]
fn sessions_and_what_is_retained_or_queued_outlive_a_kill() {
    on_each("", "", |broker, port| {
        let (mut keeper, _) = Client::open(port, "keeper", &KEEPS);
        assert_eq!(keeper.subscribe("k/#", 2), 2);
        keeper.disconnect();
        let mut publisher = Client::new(port, "publisher");
        publisher.publish("k/1", "one", 1, true);
        publisher.publish("k", "above", 2, false);
        publisher.publish("k/2", "lost", 0, false);
        // Stored, and not released.
        let (mut other, _) = Client::open(port, "other", &KEEPS);
        other.send(&packet(0x34, &[&text("k/3")[..], &[0, 5], b"late"].concat()));
        other.wait_for(0x50);
        broker.kill();
        broker.restart();
        let port = port_of(broker);
        let (mut keeper, is_present) = Client::open(port, "keeper", &KEEPS);
        assert!(is_present);
        let mut heard = keeper.messages(2);
        heard.sort_by(|a, b| a.payload.cmp(&b.payload));
        let shown: Vec<_> = heard.iter().map(|it| (&*it.topic, &*it.payload, it.qos)).collect();
        assert_eq!(shown, [("k", "above", 2), ("k/1", "one", 1)]);
        let (mut other, _) = Client::open(port, "other", &KEEPS);
        other.acknowledge(0x62, 5);
        other.wait_for(0x70);
        assert_eq!(keeper.messages(1)[0].payload, "late");
        let mut fresh = Client::new(port, "fresh");
        fresh.subscribe("+/1", 0);
        let retained = fresh.messages(1);
        assert!(retained[0].retain && retained[0].payload == "one", "{retained:?}");
    });
}

#[test]
fn what_is_not_acknowledged_comes_again_with_its_packet_id() {
    on_each("ack_wait: \"500ms\", max_ack_pending: 2", "", |_, port| {
        let (mut slow, mut publisher) = (Client::new(port, "slow"), Client::new(port, "p"));
        slow.subscribe("a", 2);
        for number in ["1", "2", "3"] {
            publisher.publish("a", number, 1, false);
        }
        let first = slow.messages(2);
        assert!(first.iter().all(|it| !it.dup), "{first:?}");
        let again = slow.messages(2);
        let ids = |all: &[Heard]| {
            let mut ids: Vec<_> = all.iter().map(|it| (it.id, it.payload.clone())).collect();
            ids.sort();
            ids
        };
        assert!(again.iter().all(|it| it.dup) && ids(&again) == ids(&first), "{again:?}");
        again.iter().for_each(|it| slow.acknowledge(0x40, it.id));
        let third = slow.messages(1);
        assert_eq!(third[0].payload, "3", "two at most are on their way");
        slow.acknowledge(0x40, third[0].id);
        // PUBREL comes until PUBCOMP does.
        publisher.publish("a", "exactly", 2, false);
        let message = slow.messages(1);
        slow.acknowledge(0x50, message[0].id);
        let wanted = message[0].id.to_be_bytes();
        assert_eq!(slow.wait_for(0x62).body, wanted);
        assert_eq!(slow.wait_for(0x62).body, wanted);
        slow.acknowledge(0x70, message[0].id);
        slow.ping();
    });
}

#[test]
fn what_is_not_acknowledged_keeps_its_packet_id_in_the_next_connection() {
    on_each("ack_wait: \"500ms\"", "", |_, port| {
        let (mut first, _) = Client::open(port, "same-ids", &KEEPS);
        first.subscribe("a", 2);
        let mut publisher = Client::new(port, "publisher");
        for (payload, qos) in [("1", 1), ("2", 1), ("3", 2)] {
            publisher.publish("a", payload, qos, false);
        }
        let before = first.messages(3);
        first.acknowledge(0x40, before[0].id);
        first.ping();
        first.disconnect();
        let (mut second, is_present) = Client::open(port, "same-ids", &KEEPS);
        assert!(is_present);
        let ids = |all: &[Heard]| {
            let mut ids: Vec<_> = all.iter().map(|it| (it.id, it.payload.clone())).collect();
            ids.sort();
            ids
        };
        let again = second.messages(2);
        assert!(again.iter().all(|it| it.dup), "{again:?}");
        assert_eq!(ids(&again), ids(&before[1..]));
        again.iter().filter(|it| it.qos == 1).for_each(|it| second.acknowledge(0x40, it.id));
        // What has come with PUBREC is not a message any more in the connection after.
        let exact = again.iter().find(|it| it.qos == 2).expect("it comes again");
        second.acknowledge(0x50, exact.id);
        second.wait_for(0x62);
        second.disconnect();
        let (mut third, _) = Client::open(port, "same-ids", &KEEPS);
        assert_eq!(third.wait_for(0x62).body, exact.id.to_be_bytes());
        third.acknowledge(0x70, exact.id);
        publisher.publish("a", "4", 1, false);
        let new = third.messages(1);
        assert_eq!((&*new[0].payload, new[0].dup), ("4", false));
        assert!(before.iter().all(|it| it.id != new[0].id), "{before:?} {new:?}");
    });
}

#[test]
fn a_filter_that_is_wider_than_what_is_denied_hears_nothing_of_that() {
    let users = "authorization { users: [\n\
         { user: u, password: p, permissions { subscribe { deny: \"secret.>\" } } },\n\
         { user: n, password: p } ] }\n";
    on_each("", users, |_, port| {
        let login = |user| Login { user: Some((user, "p")), ..Login::default() };
        let (mut publisher, _) = Client::open(port, "publisher", &login("n"));
        publisher.publish("secret/kept", "no", 1, true);
        publisher.publish("open/kept", "yes", 1, true);
        let (mut hearer, _) = Client::open(port, "hearer", &login("u"));
        assert_eq!(hearer.subscribe("#", 2), 2);
        (0..=2).for_each(|qos| publisher.publish("secret/live", "no", qos, false));
        (0..=2).for_each(|qos| publisher.publish("open/live", "yes", qos, false));
        let heard = hearer.messages(4);
        assert!(heard.iter().all(|it| it.payload == "yes"), "{heard:?}");
        assert_eq!(hearer.subscribe("secret/a", 1), 0x80);
        assert_eq!(hearer.heard, []);
    });
}

#[test]
fn a_filter_without_room_for_its_consumers_leaves_nothing_behind() {
    on_each("max_ack_pending: 30000", "", |broker, port| {
        let (mut hearer, _) = Client::open(port, "hearer", &KEEPS);
        assert_eq!(hearer.subscribe("a", 1), 1);
        // It takes two consumers.
        assert_eq!(hearer.subscribe("x/#", 1), 0x80);
        assert_eq!(hearer.subscribe("b", 1), 1);
        assert_eq!(hearer.subscribe("c", 1), 0x80);
        let mut publisher = Client::new(port, "publisher");
        for topic in ["x", "x/y", "c", "b"] {
            publisher.publish(topic, topic, 1, false);
        }
        let heard = hearer.messages(1);
        assert_eq!(heard[0].topic, "b");
        hearer.acknowledge(0x40, heard[0].id);
        hearer.ping();
        assert_eq!(hearer.heard, []);
        let page = json(broker, "/jsz?streams=true&accounts=true");
        let streams = page["account_details"][0]["stream_detail"].as_array().expect("streams");
        let messages = streams.iter().find(|it| it["name"] == "$MQTT_msgs").expect("it is there");
        assert_eq!(messages["state"]["consumer_count"], 2, "{page}");
    });
}

#[test]
fn thousands_of_filters_are_taken_restored_and_given_up() {
    const COUNT: usize = 4000;
    on_each("", "", |_, port| {
        let (mut keeper, _) = Client::open(port, "keeper", &KEEPS);
        let names: Vec<String> = (0..COUNT).map(|number| format!("f/{number}")).collect();
        let filters: Vec<u8> = names.iter().flat_map(|it| [&text(it)[..], &[0]].concat()).collect();
        keeper.send(&packet(0x82, &[&[0, 1], &filters[..]].concat()));
        let codes = keeper.wait_for(0x90).body;
        assert!(codes.len() == 2 + COUNT && codes[2..].iter().all(|code| *code == 0));
        let mut publisher = Client::new(port, "publisher");
        for (topic, is_heard) in [("f/0", true), ("f/3999", true), ("f/4000", false)] {
            publisher.publish(topic, topic, 1, false);
            if is_heard {
                assert_eq!(keeper.messages(1)[0].topic, topic);
            }
        }
        keeper.disconnect();
        let (mut keeper, is_present) = Client::open(port, "keeper", &KEEPS);
        keeper.ping();
        publisher.publish("f/3998", "again", 2, false);
        assert!(is_present && keeper.messages(1)[0].payload == "again");
        let filters: Vec<u8> = names.iter().flat_map(|it| text(it)).collect();
        keeper.send(&packet(0xa2, &[&[0, 2], &filters[..]].concat()));
        assert_eq!(keeper.wait_for(0xb0).body, [0, 2]);
        publisher.publish("f/3998", "not heard", 0, false);
        keeper.ping();
        assert_eq!(keeper.heard, []);
    });
}

#[test]
fn qos_2_is_refused_or_made_1_where_that_is_configured() {
    on_each("reject_qos2_publish: true", "", |_, port| {
        let mut client = Client::new(port, "publisher");
        client.send(&packet(0x34, &[&text("a")[..], &[0, 1], b"x"].concat()));
        client.wait_for_end();
        let mut client = Client::raw(port);
        let will = [&text("will")[..], &text("gone")].concat();
        let body = [&text("MQTT")[..], &[4, 0x16, 0, 0], &text("id"), &will].concat();
        client.send(&packet(0x10, &body));
        assert_eq!(client.wait_for(0x20).body, [0, 16]);
        client.wait_for_end();
    });
    on_each("downgrade_qos2_subscribe: true", "", |_, port| {
        let mut client = Client::new(port, "hearer");
        assert_eq!(client.subscribe("a", 2), 1);
        client.publish("a", "x", 2, false);
        assert_eq!(client.messages(1)[0].qos, 1);
    });
}

#[test]
fn packets_over_the_bounds_end_their_connection_and_no_other() {
    on_each("", "max_payload: 1024", |_, port| {
        let mut other = Client::new(port, "other");
        let publish = |size: usize| packet(0x30, &[&text("a")[..], &vec![b'x'; size]].concat());
        let mut client = Client::new(port, "fits");
        client.send(&publish(1024 - 25));
        client.ping();
        client.send(&publish(1024 - 24));
        client.wait_for_end();
        for bomb in
            [&b"\x30\xff\xff\xff\x7f\0\x01a"[..], b"\x82\xff\xff\xff\x7f\0\x01", b"\x10\x00"]
        {
            let mut client = Client::new(port, "bomb");
            client.send(bomb);
            client.wait_for_end();
        }
        // Before CONNECT there is room for less.
        let mut client = Client::raw(port);
        client.send(&[0x10, 0x80, 0x08, 0, 4]);
        client.wait_for_end();
        other.ping();
    });
}

#[test]
fn a_client_that_comes_again_takes_over_on_whatever_shard_and_its_will_is_not_sent() {
    on_each("", "", |broker, port| {
        let mut watcher = Client::new(port, "watcher");
        watcher.subscribe("gone", 1);
        let login = Login { keeps: true, will: Some(("gone", "will")), ..Login::default() };
        let (mut first, _) = Client::open(port, "same", &login);
        first.subscribe("a", 1);
        let (mut second, is_present) = Client::open(port, "same", &login);
        assert!(is_present);
        // Whoever comes at once after that is held, and sent away.
        let mut third = Client::raw(port);
        third.send(&connect("same", &login));
        first.wait_for_end();
        third.wait_for_end();
        let mut publisher = Client::new(port, "publisher");
        publisher.publish("a", "x", 1, false);
        let message = second.messages(1);
        second.acknowledge(0x40, message[0].id);
        second.ping();
        watcher.ping();
        assert_eq!(watcher.heard, []);
        // The connection that breaks has its will.
        drop(second);
        assert_eq!(watcher.messages(1)[0].payload, "will");
        let page = json(broker, "/connz?mqtt_client=watcher");
        assert_eq!(page["connections"][0]["mqtt_client"], "watcher", "{page}");
        assert_eq!(page["connections"][0]["type"], "mqtt", "{page}");
    });
}

#[test]
fn permissions_hold_for_wills_and_retained_messages_and_mappings_apply() {
    let users = "authorization { users: [\n\
         { user: u, password: p, permissions { publish: [\"ok.>\", \"m.to\"] } },\n\
         { user: n, password: p } ] }\n\
         mappings { \"m.from\": \"m.to\" }\n";
    on_each("", users, |_, port| {
        let all = Login { user: Some(("n", "p")), ..Login::default() };
        let (mut hearer, _) = Client::open(port, "hearer", &all);
        hearer.subscribe("#", 1);
        let bound = Login { user: Some(("u", "p")), will: Some(("no/w", "w")), keeps: false };
        let (client, _) = Client::open(port, "bound", &bound);
        drop(client);
        let (mut client, _) = Client::open(port, "bound", &bound);
        client.publish("no/r", "r", 1, true);
        client.publish("no/r", "r", 2, true);
        client.publish("m/from", "mapped", 2, true);
        let heard = hearer.messages(1);
        assert_eq!((&*heard[0].topic, &*heard[0].payload), ("m/to", "mapped"));
        let (mut later, _) = Client::open(port, "later", &all);
        later.subscribe("no/#", 0);
        later.subscribe("m/to", 2);
        let kept = later.messages(1);
        assert!(kept[0].retain && kept[0].qos == 2 && kept[0].topic == "m/to", "{kept:?}");
        let mut stranger = Client::raw(port);
        stranger.send(&connect("stranger", &Login::default()));
        assert_eq!(stranger.wait_for(0x20).body, [0, 5]);
        stranger.wait_for_end();
    });
}

#[test]
fn a_reload_keeps_connections_and_queued_messages() {
    if is_nats_server() {
        return;
    }
    let store = tempfile::tempdir().expect("a scratch directory");
    let mut broker = Broker::with_config(2, &config(store.path(), "", ""));
    let port = port_of(&mut broker);
    let (mut keeper, _) = Client::open(port, "keeper", &KEEPS);
    keeper.subscribe("k", 1);
    keeper.disconnect();
    let mut publisher = Client::new(port, "publisher");
    publisher.publish("k", "1", 1, false);
    broker.reload(&config(store.path(), "", "max_connections: 1000"));
    publisher.publish("k", "2", 1, false);
    let (mut keeper, is_present) = Client::open(port, "keeper", &KEEPS);
    let heard: Vec<String> = keeper.messages(2).into_iter().map(|it| it.payload).collect();
    assert!(is_present && heard == ["1", "2"], "{heard:?}");
}

#[test]
fn nats_clients_and_mqtt_clients_hear_each_other() {
    on_each("", "", |broker, port| {
        let mut nats = Wire::connect(broker);
        nats.send(b"SUB a.> 1\r\nPING\r\n");
        nats.until_pong_or_end();
        let mut client = Client::new(port, "c");
        client.subscribe("a/+", 1);
        client.publish("a/x", "hi", 1, false);
        let own = client.messages(1);
        assert_eq!((own[0].qos, &*own[0].topic), (1, "a/x"), "a client hears itself");
        client.acknowledge(0x40, own[0].id);
        nats.send(b"PUB a.y 2\r\nho\r\nPING\r\n");
        let said = String::from_utf8(nats.until_pong_or_end()).expect("text");
        assert!(said.starts_with("MSG a.x 1 2\r\nhi\r\n"), "{said:?}");
        let heard = client.messages(1);
        assert_eq!((heard[0].qos, &*heard[0].topic, &*heard[0].payload), (0, "a/y", "ho"));
    });
}

#[test]
fn answers_of_jetstream_to_the_server_cannot_be_made_up() {
    on_each("", "", |broker, port| {
        let mut nats = Wire::connect(broker);
        nats.send(b"SUB $MQTT.JSA.*.R.> 1\r\nPING\r\n");
        nats.until_pong_or_end();
        for id in ["a", "b"] {
            Client::new(port, id).subscribe("x", 1);
        }
        nats.send(b"PING\r\n");
        let said = String::from_utf8_lossy(&nats.until_pong_or_end()).into_owned();
        let subjects = said.lines().filter_map(|line| line.strip_prefix("MSG ")?.split(' ').next());
        let secrets: Vec<&str> =
            subjects.filter_map(|subject| subject.rsplit('.').next()).collect();
        let different: std::collections::BTreeSet<&str> = secrets.iter().copied().collect();
        assert!(secrets.len() >= 4 && different.len() == secrets.len(), "{secrets:?}");
        assert!(secrets.iter().all(|secret| secret.len() > 8), "{secrets:?}");
    });
}

#[test]
fn strangers_at_the_port_get_little_memory_and_no_answer() {
    on_each("authorization { user: u, password: p, timeout: 1 }", "", |broker, port| {
        let before = broker.resident_kib();
        let mut bombs: Vec<Client> = (0..200)
            .map(|_| {
                let mut bomb = Client::raw(port);
                // A CONNECT of almost 1 MiB of which nothing comes.
                bomb.send(&[0x10, 0xff, 0xff, 0x3f, 0, 4]);
                bomb
            })
            .collect();
        std::thread::sleep(Duration::from_millis(300));
        let grown = broker.resident_kib().saturating_sub(before);
        assert!(grown < 32 * 1024, "{grown} KiB for 200 beginnings");
        bombs.iter_mut().for_each(Client::wait_for_end);
        for bytes in [
            &b"\x10\xff\xff\xff\x7f"[..],
            b"\x10\xff\xff\xff\xff\x01",
            b"\x30\x05\0\x01a",
            b"GET / HTTP/1.1\r\n\r\n",
            b"INFO {}\r\n",
            b"\xff\xff\xff\xff",
        ] {
            let mut client = Client::raw(port);
            client.send(bytes);
            client.wait_for_end();
        }
        let page = json(broker, "/varz");
        assert_eq!(page["mqtt"]["port"], port, "{page}");
    });
}

#[test]
fn members_of_a_cluster_share_the_sessions_that_one_of_them_keeps() {
    if is_nats_server() {
        return;
    }
    let store = tempfile::tempdir().expect("a scratch directory");
    let port = "mqtt { listen: \"127.0.0.1:-1\", js_api_timeout: \"1s\" }\n";
    let streams = format!("{port}jetstream {{ store_dir: \"{}\" }}\n", store.path().display());
    let mut keeper = member(Ours(2), "keeper", &mut [], &streams);
    let mut other = member(Ours(2), "other", &mut [&mut keeper], port);
    let (kept_at, other_at) = (port_of(&mut keeper), port_of(&mut other));
    let end = Instant::now() + PATIENCE;
    while routes_to_each(&other).is_empty() {
        assert!(Instant::now() < end, "there is no route");
        std::thread::sleep(Duration::from_millis(20));
    }
    // Until interest has spread JetStream's answers do not come back.
    let mut far = Client::raw(other_at);
    loop {
        far.send(&connect("far", &Login::default()));
        match far.wait_for_any() {
            came if came.first == 0x20 => break,
            _ => far = Client::raw(other_at),
        }
        assert!(Instant::now() < end, "no session is opened");
    }
    far.subscribe("t/#", 2);
    let mut near = Client::new(kept_at, "near");
    near.subscribe("t/#", 1);
    for (client, topic) in [(0, "t/near"), (1, "t/far")] {
        let publisher = if client == 0 { &mut near } else { &mut far };
        (0..=2).for_each(|qos| publisher.publish(topic, "x", qos, false));
    }
    for (client, highest) in [(&mut near, 1), (&mut far, 2)] {
        let mut heard: Vec<_> =
            client.messages(6).into_iter().map(|it| (it.topic, it.qos)).collect();
        heard.sort();
        let topics = ["t/far", "t/far", "t/far", "t/near", "t/near", "t/near"];
        let qos = (0..=2).map(|qos: u8| qos.min(highest));
        let wanted: Vec<_> =
            topics.map(str::to_owned).into_iter().zip(qos.clone().chain(qos)).collect();
        assert_eq!(heard, wanted);
    }
    // A session moves, and takes over.
    let (mut before, _) = Client::open(kept_at, "mover", &KEEPS);
    before.subscribe("m", 1);
    let (mut after, is_present) = Client::open(other_at, "mover", &KEEPS);
    before.wait_for_end();
    near.publish("m", "y", 1, true);
    assert!(is_present && after.messages(1)[0].payload == "y");
    far.subscribe("m", 0);
    assert!(far.messages(1)[0].retain);
}

/// A packet in a frame of a WebSocket, masked with zeros.
fn frame(packet: &[u8]) -> Vec<u8> {
    let len = u8::try_from(packet.len()).ok().filter(|len| *len < 126).expect("it is short");
    [&[0x82, 0x80 | len, 0, 0, 0, 0], packet].concat()
}

/// The HTTP answer to a request for a WebSocket, and the connection.
fn upgraded(port: u16, path: &str) -> (String, TcpStream) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the port is open");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Protocol: mqtt\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).expect("it is taken");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => break,
        }
    }
    (String::from_utf8_lossy(&head).into_owned(), stream)
}

#[test]
fn mqtt_is_spoken_in_websockets_where_it_is_configured() {
    let websocket = "websocket { listen: \"127.0.0.1:-1\", no_tls: true }\n\
        authorization { users: [ { user: ws, password: p, allowed_connection_types: [MQTT_WS] },\n\
        { user: tcp, password: p, allowed_connection_types: [MQTT] } ] }\n";
    on_each("", websocket, |broker, port| {
        let at = broker.logged_port("Listening for websocket clients on ws://");
        let login = |user| Login { user: Some((user, "p")), ..Login::default() };
        let (head, mut stream) = upgraded(at, "/mqtt");
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        assert!(head.contains("Sec-WebSocket-Protocol: mqtt"), "{head}");
        stream.write_all(&frame(&connect("ws", &login("ws")))).expect("it is taken");
        let mut answer = [0; 6];
        stream.read_exact(&mut answer).expect("CONNACK");
        assert_eq!(answer, [0x82, 4, 0x20, 2, 0, 0]);
        stream.write_all(&frame(&[0xc0, 0])).expect("it is taken");
        stream.read_exact(&mut answer[..4]).expect("PINGRESP");
        assert_eq!(answer[..4], [0x82, 2, 0xd0, 0]);
        // Each user has its own way in.
        let (_, mut stream) = upgraded(at, "/mqtt");
        stream.write_all(&frame(&connect("ws2", &login("tcp")))).expect("it is taken");
        stream.read_exact(&mut answer).expect("CONNACK");
        assert_eq!(answer, [0x82, 4, 0x20, 2, 0, 5]);
        Client::open(port, "tcp", &login("tcp"));
        let mut client = Client::raw(port);
        client.send(&connect("tcp2", &login("ws")));
        assert_eq!(client.wait_for(0x20).body, [0, 5]);
    });
    if !is_nats_server() {
        let mut broker =
            Broker::with_config(1, "websocket { listen: \"127.0.0.1:-1\", no_tls: true }");
        let at = broker.logged_port("Listening for websocket clients on ws://");
        assert!(upgraded(at, "/mqtt").0.starts_with("HTTP/1.1 404"));
    }
}
