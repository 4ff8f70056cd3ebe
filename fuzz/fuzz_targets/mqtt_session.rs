//! Sessions of MQTT over streams on a simulated disk: clients connect, take each other's place,
//! subscribe, publish and acknowledge in any order. Whatever they do, and whatever the streams,
//! consumers, records and answers are that the server finds, nothing is asserted and all memory
//! comes home. A message of QoS 1 or 2 has a packet id that no other has on its way, only so many
//! are on their way, and none comes again between PUBREC and PUBCOMP. As long as nobody else writes
//! to the streams, the disk works and the server stays, a client takes a message of QoS 2 once.

#![no_main]

#[allow(dead_code, reason = "the simulators use the rest")]
#[path = "../../tests/sim/disk.rs"]
mod disk;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::rc::Rc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use disk::Disk;
use libfuzzer_sys::fuzz_target;
use shardcast::config::{MqttOptions, Options};
use shardcast::engine::{
    AssetLimits, ConnId, Engine, Identity, Output, Peer, Settings, ShardId, Transport,
};
use shardcast::proto::gateway::name_hash;
use shardcast::proto::mqtt::{self, Framed, MqttPacket, PacketLimits};
use shardcast::store::LogSizes;

const MS: u64 = 1_000_000;
/// Ids of clients.
const NAMES: [&str; 3] = ["c0", "c1", "c2"];
/// Filters, of which no two match one topic.
const FILTERS: [&str; 4] = ["a", "b/+", "c/#", "$d/x"];
const TOPICS: [&str; 6] = ["a", "b/x", "c", "c/y", "$d/x", "b/y"];
const STREAMS: [&str; 5] = ["$MQTT_msgs", "$MQTT_sess", "$MQTT_rmsgs", "$MQTT_qos2in", "$MQTT_out"];
const STEPS_MAX: usize = 150;
const CONNS_MAX: usize = 24;
const ROUNDS_MAX: usize = 20_000;
/// Messages of a connection that may be on their way.
const PENDING_MAX: u16 = 4;
/// The slot of the client of NATS.
const ADMIN: u32 = 0;

/// An answer that a client owes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owed {
    PubAck(u16),
    PubRec(u16),
    PubComp(u16),
}

/// A message on its way to a client.
struct Coming {
    content: (Vec<u8>, Vec<u8>),
    is_retained: bool,
    /// Whether PUBREC was sent.
    is_taken: bool,
}

/// A connection of a client.
#[derive(Default)]
struct Link {
    slot: u32,
    name: usize,
    /// Whether the connection has sent what no client sends.
    is_wild: bool,
    is_in: bool,
    is_closed: bool,
    heard: Vec<u8>,
    coming: BTreeMap<u16, Coming>,
    owed: Vec<Owed>,
    last_id: u16,
}

/// What a client knows over its connections.
#[derive(Default)]
struct Memory {
    /// Packet ids of messages that were taken and wait for PUBREL.
    taken: BTreeSet<u16>,
    /// Numbers of the messages of QoS 2 that were taken.
    had: BTreeSet<u32>,
}

struct World {
    engine: Engine,
    disk: Disk,
    now: u64,
    links: Vec<Link>,
    memories: [Memory; NAMES.len()],
    admin_heard: Vec<u8>,
    /// Subjects by which requests are answered.
    replies: Vec<Vec<u8>>,
    numbers: u32,
    /// Whether a message may come twice: streams were written to, or the disk has failed.
    is_lawless: bool,
    slots: u32,
}

fn engine(identity: &Identity) -> Engine {
    let mut options = Options::default();
    options.jetstream.is_enabled = true;
    options.network.mqtt = Some(MqttOptions {
        port: Some(0),
        ack_pending_max: PENDING_MAX,
        ack_wait_ms: 1000,
        api_timeout_ms: 2000,
        ..MqttOptions::default()
    });
    let settings = Settings::new(&options, identity, usize::MAX);
    let mut engine = Engine::new(ShardId(0), 1, Rc::new(settings), 1);
    let sizes = LogSizes { file_bytes: 1 << 18, memory_bytes: 64 << 10 };
    engine.start_streams(vec![Path::new("/d/log-0").into()], sizes);
    engine
}

impl World {
    fn new() -> Self {
        let identity = Identity {
            id: "NSERVER0LONGENOUGH".to_owned(),
            name: "server".to_owned(),
            epoch_ms: 1_700_000_000_000,
            assets: AssetLimits { memory_bytes_max: 1 << 30, file_bytes_max: 1 << 30 },
            ..Identity::default()
        };
        let mut world = Self {
            engine: engine(&identity),
            disk: Disk::new(1),
            now: 1_000 * MS,
            links: Vec::new(),
            memories: Default::default(),
            admin_heard: Vec::new(),
            replies: Vec::new(),
            numbers: 0,
            is_lawless: false,
            slots: ADMIN,
        };
        world.rest();
        assert!(world.engine.view().is_ready(), "nothing is on the disk");
        world.open(Transport::Tcp);
        world.engine.on_bytes(conn(ADMIN), b"CONNECT {\"headers\":true,\"verbose\":false}\r\n");
        world.engine.on_bytes(conn(ADMIN), b"SUB $JS.API.> 1\r\nSUB $MQTT.> 2\r\n");
        world.rest();
        world
    }

    fn open(&mut self, transport: Transport) -> u32 {
        let slot = self.slots;
        self.slots += 1;
        let peer = Peer { cid: u64::from(slot) + 1, ip: "127.0.0.1".into(), port: 1 };
        self.engine.open_over(conn(slot), peer, transport, true);
        slot
    }

    /// Takes turns until there is nothing to do but for the disk.
    fn turn(&mut self) {
        self.engine.set_now(self.now);
        for _ in 0..ROUNDS_MAX {
            self.engine.tick();
            self.engine.end_turn();
            while let Some(output) = self.engine.next_output() {
                self.take(output);
            }
            let is_due = self.engine.next_deadline().is_some_and(|due| due <= self.now);
            if !is_due && !self.engine.view().has_more() {
                return;
            }
        }
        panic!("it does not come to rest");
    }

    /// Lets the disk carry out everything, too.
    fn rest(&mut self) {
        for _ in 0..ROUNDS_MAX {
            self.turn();
            let Some(done) = self.disk.finish_one() else { return };
            self.engine.on_disk(done);
        }
        panic!("the disk does not come to rest");
    }

    fn take(&mut self, output: Output) {
        match output {
            Output::Flush(id) => {
                let Some(batch) = self.engine.take_batch(id) else { return };
                let said: Vec<u8> = batch.iter().flat_map(|it| it.bytes().to_vec()).collect();
                self.engine.on_sent(id, said.len(), Some(batch));
                match self.links.iter().position(|link| link.slot == id.slot) {
                    Some(at) => self.hear(at, &said),
                    None => self.hear_requests(&said),
                }
            }
            Output::Close { conn, .. } => {
                self.engine.on_closed(conn, None);
                if let Some(link) = self.links.iter_mut().find(|link| link.slot == conn.slot) {
                    link.is_closed = true;
                    let memory = &mut self.memories[link.name];
                    for (id, coming) in std::mem::take(&mut link.coming) {
                        // What was retained is not sent again.
                        if coming.is_retained {
                            memory.taken.remove(&id);
                        }
                    }
                    link.owed.clear();
                }
            }
            Output::Disk(op) => self.disk.begin(*op),
            _ => {}
        }
    }

    /// Notes by which subjects requests are to be answered.
    fn hear_requests(&mut self, said: &[u8]) {
        self.admin_heard.extend_from_slice(said);
        while let Some(end) = self.admin_heard.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.admin_heard.drain(..=end).collect();
            let words: Vec<&[u8]> = line.trim_ascii().split(|byte| *byte == b' ').collect();
            if let [b"MSG", _, _, reply, _] | [b"HMSG", _, _, reply, _, _] = words[..]
                && reply.starts_with(b"$MQTT.JSA.")
            {
                self.replies.push(reply.to_vec());
            }
        }
    }

    fn hear(&mut self, at: usize, said: &[u8]) {
        self.links[at].heard.extend_from_slice(said);
        while let Some(packet) = take_packet(&mut self.links[at].heard) {
            let id = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
            match packet[0] >> 4 {
                2 => {
                    assert!(packet.len() == 4 && packet[2] <= 1, "{packet:?}");
                    self.links[at].is_in = packet[3] == 0;
                    if packet[3] == 0 && packet[2] == 0 {
                        self.memories[self.links[at].name] = Memory::default();
                    }
                }
                3 => self.hear_message(at, &packet),
                6 => self.hear_release(at, id(2)),
                4 | 5 | 7 => assert!(packet.len() == 4 && id(2) > 0, "{packet:?}"),
                9 | 11 | 13 => {}
                _ => panic!("no client gets {packet:?}"),
            }
        }
    }

    fn hear_message(&mut self, at: usize, packet: &[u8]) {
        let limits = PacketLimits { bytes_max: usize::MAX, is_first: false };
        let Ok(Framed::Packet { packet: MqttPacket::Publish(it), used }) =
            mqtt::parse(packet, limits)
        else {
            panic!("{packet:?} is no message");
        };
        assert_eq!(used, packet.len());
        let link = &mut self.links[at];
        assert!(link.is_in, "CONNACK comes first");
        if it.qos == 0 || link.is_wild {
            return;
        }
        // The parser has refused the packet id 0.
        let id = u16::from_be_bytes([
            packet[used - it.payload.len() - 2],
            packet[used - it.payload.len() - 1],
        ]);
        let content = (it.topic.to_vec(), it.payload.to_vec());
        match link.coming.get(&id) {
            Some(coming) => {
                assert!(it.dup && coming.content == content, "{id} is in use");
                assert!(!coming.is_taken, "{id} has had its PUBREC");
            }
            None => {
                let coming = Coming { content, is_retained: it.retain, is_taken: false };
                link.coming.insert(id, coming);
            }
        }
        let many = link.coming.values().filter(|it| !it.is_retained && !it.is_taken).count();
        assert!(many <= usize::from(PENDING_MAX), "{many} messages are on their way");
        let owed = if it.qos == 1 { Owed::PubAck(id) } else { Owed::PubRec(id) };
        if !link.owed.contains(&owed) {
            link.owed.push(owed);
        }
        let memory = &mut self.memories[link.name];
        if it.qos == 2
            && memory.taken.insert(id)
            && !it.retain
            && let Some(number) = it.payload.first_chunk().map(|it| u32::from_be_bytes(*it))
        {
            assert!(
                memory.had.insert(number) || self.is_lawless,
                "message {number} was taken twice"
            );
        }
    }

    fn hear_release(&mut self, at: usize, id: u16) {
        assert!(id > 0);
        let link = &mut self.links[at];
        self.memories[link.name].taken.remove(&id);
        if !link.owed.contains(&Owed::PubComp(id)) {
            link.owed.push(Owed::PubComp(id));
        }
    }

    /// Returns a connection that is open.
    fn pick(&self, byte: u8) -> Option<usize> {
        let open: Vec<usize> =
            (0..self.links.len()).filter(|at| !self.links[*at].is_closed).collect();
        open.get(usize::from(byte) % open.len().max(1)).copied()
    }

    fn send(&mut self, at: usize, bytes: &[u8]) {
        self.engine.on_bytes(conn(self.links[at].slot), bytes);
        self.turn();
    }

    fn connect(&mut self, how: u8) {
        if self.links.len() >= CONNS_MAX {
            return;
        }
        let (name, is_clean, has_will) =
            (usize::from(how) % NAMES.len(), how & 8 > 0, how & 16 > 0);
        let slot = self.open(Transport::Mqtt);
        let link = Link { slot, name, ..Link::default() };
        self.links.push(link);
        let flags = u8::from(is_clean) << 1 | if has_will { 0x0c } else { 0 };
        let mut body =
            [&text(b"MQTT")[..], &[4, flags, 0, 0], &text(NAMES[name].as_bytes())].concat();
        if has_will {
            body.extend(text(b"a"));
            body.extend(text(b"will"));
        }
        self.send(self.links.len() - 1, &packet(0x10, &body));
    }

    fn subscribe(&mut self, at: usize, what: u8) {
        let filter = text(FILTERS[usize::from(what) % FILTERS.len()].as_bytes());
        let body = [&[0, 7][..], &filter, &[what / 16 % 3]].concat();
        self.send(at, &packet(0x82, &body));
    }

    fn publish(&mut self, at: usize, what: u8) {
        let (topic, qos) = (TOPICS[usize::from(what) % TOPICS.len()], what / 16 % 3);
        let flags = qos << 1 | u8::from(what & 8 > 0 && what & 128 > 0);
        let link = &mut self.links[at];
        link.last_id = link.last_id % 6 + 1;
        self.numbers += 1;
        let mut body = text(topic.as_bytes());
        if qos > 0 {
            body.extend(link.last_id.to_be_bytes());
        }
        body.extend(self.numbers.to_be_bytes());
        self.send(at, &packet(0x30 | flags, &body));
    }

    /// Lets a client answer what it has got.
    fn answer(&mut self, at: usize, which: u8) {
        let link = &mut self.links[at];
        if link.owed.is_empty() {
            return;
        }
        let owed = link.owed.remove(usize::from(which) % link.owed.len());
        let (first, id) = match owed {
            Owed::PubAck(id) => (0x40, id),
            Owed::PubRec(id) => (0x50, id),
            Owed::PubComp(id) => (0x70, id),
        };
        match (owed, link.coming.get_mut(&id)) {
            (Owed::PubRec(_), Some(coming)) => coming.is_taken = true,
            (Owed::PubComp(_), Some(coming)) if !coming.is_taken => {}
            _ => drop(link.coming.remove(&id)),
        }
        self.send(at, &packet(first, &id.to_be_bytes()));
    }

    /// Lets the client of NATS do what no client should.
    fn meddle(&mut self, what: u8, rest: &[u8]) {
        self.is_lawless = true;
        let hash = name_hash::<8>(NAMES[usize::from(what) / 16 % NAMES.len()]);
        let hash = String::from_utf8_lossy(&hash);
        let stream = STREAMS[usize::from(what) / 16 % STREAMS.len()];
        let (number, rest) = rest.split_first().unwrap_or((&0, b""));
        let topic = TOPICS[usize::from(*number) % TOPICS.len()].replace('/', ".");
        let ack = String::from_utf8_lossy(rest);
        let ack: String = ack.chars().filter(char::is_ascii_graphic).collect();
        let release = format!("NATS/1.0\r\nNmqtt-PubRel:{number}\r\nNmqtt-Ack:{ack}\r\n\r\n");
        let (subject, headers, body) = match what % 16 {
            0 => (format!("$JS.API.STREAM.DELETE.{stream}"), String::new(), rest),
            1 => (format!("$JS.API.STREAM.PURGE.{stream}"), String::new(), rest),
            2 => (format!("$MQTT.sess.{hash}"), String::new(), rest),
            3 => (format!("$MQTT.out.pubrel.{hash}"), release, &b""[..]),
            4 => {
                let flags = format!("NATS/1.0\r\nNmqtt-RFlags:{ack}\r\n\r\n");
                (format!("$MQTT.rmsgs.{topic}"), flags, rest)
            }
            5 => {
                let qos = format!("NATS/1.0\r\nNmqtt-Pub:{}\r\n\r\n", number % 4);
                (format!("$MQTT.msgs.{topic}"), qos, rest)
            }
            6 => {
                let reply = format!("$JS.ACK.$MQTT_out.$MQTT_PUBREL_{hash}.1.{number}.1.1.0");
                (format!("$MQTT.deliver.pubrel.{hash} {reply}"), release, &b""[..])
            }
            7 => (format!("$MQTT.qos2.in.{hash}.{number}"), String::new(), rest),
            8 => {
                let consumer = format!("$MQTT_out.$MQTT_PUBREL_{hash}");
                (format!("$JS.API.CONSUMER.DELETE.{consumer}"), String::new(), rest)
            }
            9 => {
                let subject = format!("$MQTT.JSA.{}-0.SP.{hash}", "SERVER0L");
                (subject, String::new(), rest)
            }
            10 | 11 | 12 => return self.forge(*number, what, rest),
            13 => {
                self.disk.failures = u32::from(*number) % 20;
                return;
            }
            _ => (topic, release, rest),
        };
        self.say(&subject, headers.as_bytes(), body);
    }

    /// Answers a request in JetStream's place.
    fn forge(&mut self, number: u8, what: u8, rest: &[u8]) {
        let count = self.replies.len();
        let Some(at) = count.checked_sub(1 + usize::from(what) / 16) else { return };
        let reply = String::from_utf8_lossy(&self.replies[at]).into_owned();
        let body = match what % 16 {
            10 => rest.to_vec(),
            11 => {
                let codes = [10037, 10043, 10058, 10071, 10164, 1];
                let code = codes[usize::from(number) % codes.len()];
                format!("{{\"error\":{{\"err_code\":{code}}},\"seq\":{number}}}").into_bytes()
            }
            _ => {
                let headers = format!("NATS/1.0\r\nNmqtt-PubRel:{number}\r\n\r\n");
                let (headers, data) = (STANDARD.encode(headers), STANDARD.encode(rest));
                format!(
                    "{{\"seq\":{number},\"num_pending\":{number},\"message\":{{\"seq\":{number},\
                     \"hdrs\":\"{headers}\",\"data\":\"{data}\"}}}}"
                )
                .into_bytes()
            }
        };
        self.say(&reply, b"", &body);
    }

    /// Publishes as a client of NATS.
    fn say(&mut self, subject: &str, headers: &[u8], body: &[u8]) {
        let (head, all) = (headers.len(), headers.len() + body.len());
        let line = match head {
            0 => format!("PUB {subject} {all}\r\n"),
            _ => format!("HPUB {subject} {head} {all}\r\n"),
        };
        self.engine.on_bytes(conn(ADMIN), &[line.as_bytes(), headers, body, b"\r\n"].concat());
        self.turn();
    }

    fn step(&mut self, kind: u8, what: u8, rest: &[u8]) {
        let link = rest.first().and_then(|byte| self.pick(*byte)).or_else(|| self.pick(0));
        match (kind % 16, link) {
            (0 | 1, _) => self.connect(what),
            (2, Some(at)) => self.subscribe(at, what),
            (3, Some(at)) if what % 4 == 0 => {
                let filter = text(FILTERS[usize::from(what / 4) % FILTERS.len()].as_bytes());
                self.send(at, &packet(0xa2, &[&[0, 8][..], &filter].concat()));
            }
            (3 | 4, Some(at)) => self.publish(at, what),
            (5 | 6, Some(at)) => self.answer(at, what),
            (7, Some(at)) => {
                let id = u16::from(what) % 6 + 1;
                self.send(at, &packet(0x62, &id.to_be_bytes()));
            }
            (8, Some(at)) => {
                self.engine.on_ended(conn(self.links[at].slot), what % 2 == 0);
                self.turn();
            }
            (9, Some(at)) => self.send(at, &packet(if what % 2 == 0 { 0xe0 } else { 0xc0 }, b"")),
            (10, _) => {
                self.now += MS * [1, 300, 1100, 2500][usize::from(what) % 4];
                self.turn();
            }
            (11 | 12, _) => {
                for _ in 0..what {
                    let Some(done) = self.disk.finish_one() else { break };
                    self.engine.on_disk(done);
                    self.turn();
                }
            }
            (13, _) => self.meddle(what, rest),
            (14, Some(at)) if what % 4 == 0 => {
                self.links[at].is_wild = true;
                self.is_lawless = true;
                self.send(at, rest);
            }
            (14, _) => {
                let topic = TOPICS[usize::from(what) % TOPICS.len()].replace('/', ".");
                self.say(&topic, b"", rest);
            }
            _ => self.rest(),
        }
        assert!(self.engine.view().output_bytes() < 1 << 20, "what is sent is not kept");
    }

    /// Ends all connections: nothing of them stays.
    fn end(&mut self) {
        self.disk.failures = 0;
        for slot in 0..self.slots {
            self.engine.on_ended(conn(slot), false);
        }
        self.rest();
        for _ in 0..3 {
            self.now += 10_000 * MS;
            self.rest();
        }
        assert!(self.links.iter().all(|link| link.is_closed), "what has ended is closed");
        let view = self.engine.view();
        assert_eq!((view.output_bytes(), view.subscriptions()), (0, 0), "all memory came home");
    }
}

fn conn(slot: u32) -> ConnId {
    ConnId { slot, generation: 0 }
}

fn text(text: &[u8]) -> Vec<u8> {
    [&u16::try_from(text.len()).unwrap_or(0).to_be_bytes()[..], text].concat()
}

fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let len = u8::try_from(body.len()).unwrap_or(0);
    assert!(len < 128 && usize::from(len) == body.len(), "packets are short here");
    [&[first, len][..], body].concat()
}

/// Takes the first packet out of what the server has sent, if it is whole.
fn take_packet(heard: &mut Vec<u8>) -> Option<Vec<u8>> {
    let (mut len, mut at) = (0usize, 1);
    loop {
        let byte = *heard.get(at)?;
        len |= usize::from(byte & 0x7f) << (7 * (at - 1));
        at += 1;
        if byte & 0x80 == 0 {
            break;
        }
        assert!(at < 5, "a length has four bytes");
    }
    (heard.len() >= at + len).then(|| heard.drain(..at + len).collect())
}

// Each step is a kind, a number of bytes, a byte, and so many bytes.
fuzz_target!(|bytes: &[u8]| {
    let (mut world, mut left) = (World::new(), bytes);
    for _ in 0..STEPS_MAX {
        let [kind, len, what, rest @ ..] = left else { break };
        let (rest, next) = rest.split_at(usize::from(*len).min(rest.len()));
        left = next;
        world.step(*kind, *what, rest);
    }
    world.end();
});
