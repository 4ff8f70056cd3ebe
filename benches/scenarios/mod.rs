//! Engines without a kernel: connections whose sends are complete as soon as they are asked for.
//!
//! A scenario opens its connections and then repeats the streams of its publishers, cut into chunks
//! as TCP would, whatever that does to operations. What is measured is everything between the
//! reactor and the reactor: parsing, matching, rendering, the outboxes, the lanes; on all shards.

use std::rc::Rc;

use shardcast::config::{
    MqttOptions, Options, Permissions, SubjectEntry, SubjectList, UserOptions,
};
use shardcast::engine::{ConnId, Engine, Identity, Output, Peer, Settings, ShardId, Transport};
use shardcast::mesh::{Drained, LANE_RECORDS_MAX, Mesh};
use shardcast::output::Piece;
use shardcast::store::LogSizes;

/// Bytes of one chunk, as large as those of the reactor. Several publishers share them.
const CHUNK_BYTES: usize = 64 * 1024;
/// The streams that are repeated have together about this many bytes.
const STREAM_BYTES: usize = 1024 * 1024;
/// Subjects of requests that are answered.
const SERVICES: usize = 4;
/// Turns in which the shards must have told each other what they have to.
const TURNS_MAX: usize = 100_000;

const CONNECT: &[u8] =
    b"CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true,\"protocol\":1}\r\n";

/// Whether the subscribers of a subject number their subscriptions alike, as most clients do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sids {
    /// All have sid 1: what is rendered once serves them all.
    Equal,
    /// No two are equal: each gets bytes of its own.
    Distinct,
}

/// What goes in, and who is there to get it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Scenario {
    /// One publisher and one subject.
    Fanout {
        subscribers: usize,
        payload_bytes: usize,
        sids: Sids,
        /// With two, all subscribers are on the one that does not have the publisher.
        shards: u8,
    },
    /// One publisher and one subject; subscribers are clients of MQTT, with QoS 0.
    Mqtt { subscribers: usize, payload_bytes: usize },
    /// One publisher, one subject and one subscriber, with a header.
    Headers { payload_bytes: usize },
    /// One publisher and one subject again, and everybody has permissions.
    Permitted { subscribers: usize, payload_bytes: usize },
    /// A request at a time: each message has a reply subject, and no two in a row one subject.
    Requests { subjects: usize, payload_bytes: usize },
    /// As many publishers as subscribers, each with a subject. Every publisher goes round all of
    /// them, and begins at another one.
    Pairs {
        pairs: usize,
        payload_bytes: usize,
        /// With two, all publishers are on one and all subscribers on the other.
        shards: u8,
    },
    /// Requests to a queue group, no two in a row to one subject, and as many replies, each of them
    /// to an inbox that is used once.
    RoundTrips {
        requesters: usize,
        responders: usize,
        payload_bytes: usize,
        /// With two, all requesters are on one and all responders on the other.
        shards: u8,
    },
    /// One queue group on one subject.
    Queue {
        members: usize,
        payload_bytes: usize,
        /// With two, each has half of the members.
        shards: u8,
    },
    /// Many subjects in no order. Ten subscribers share them, or one has all by a wildcard.
    Subjects { count: usize, payload_bytes: usize, wildcard: bool },
    /// SUB and UNSUB in turn, of literals or with wildcards, besides a thousand that stay.
    Churn { wildcard: bool, shards: u8 },
}

impl Scenario {
    /// How the tables call it.
    pub(crate) fn name(&self) -> String {
        let across = if self.shards() == 1 { "" } else { "-across" };
        match *self {
            Self::Fanout { subscribers, payload_bytes, sids, .. } => {
                let sids = if sids == Sids::Equal { "" } else { "-distinct" };
                format!("1to{subscribers}-{payload_bytes}{sids}{across}")
            }
            Self::Mqtt { subscribers, payload_bytes } => {
                format!("mqtt1to{subscribers}-{payload_bytes}")
            }
            Self::Headers { payload_bytes } => format!("headers-{payload_bytes}"),
            Self::Permitted { subscribers, payload_bytes } => {
                format!("1to{subscribers}-{payload_bytes}-permissions")
            }
            Self::Requests { subjects, payload_bytes } => {
                format!("requests{subjects}-{payload_bytes}")
            }
            Self::Pairs { pairs, payload_bytes, .. } => {
                format!("pairs{pairs}-{payload_bytes}{across}")
            }
            Self::RoundTrips { requesters, responders, payload_bytes, .. } => {
                format!("roundtrips{requesters}to{responders}-{payload_bytes}{across}")
            }
            Self::Queue { members, payload_bytes, .. } => {
                format!("queue{members}-{payload_bytes}{across}")
            }
            Self::Subjects { count, payload_bytes, wildcard } => {
                let wildcard = if wildcard { "-wildcard" } else { "" };
                format!("subjects{count}-{payload_bytes}{wildcard}")
            }
            Self::Churn { wildcard, .. } => {
                let wildcard = if wildcard { "-wildcard" } else { "" };
                format!("churn{wildcard}{across}")
            }
        }
    }

    /// Deliveries, or operations of a churn, that `chunks` chunks bring about on average.
    pub(crate) fn elements(&self, chunks: usize) -> u64 {
        let (name, each) = match *self {
            Self::Fanout { subscribers, .. }
            | Self::Permitted { subscribers, .. }
            | Self::Mqtt { subscribers, .. } => (b"PUB ", subscribers),
            Self::Churn { .. } => (b"SUB ", 1),
            _ => (b"PUB ", 1),
        };
        let publishers = self.publishers();
        let bytes = chunks * CHUNK_BYTES / publishers.len();
        let elements = publishers.iter().map(|Publisher { stream, .. }| {
            let lines = stream.windows(name.len()).filter(|text| text == name).count();
            lines * each * bytes / stream.len()
        });
        elements.sum::<usize>() as u64
    }

    fn shards(&self) -> u8 {
        match *self {
            Self::Fanout { shards, .. }
            | Self::Pairs { shards, .. }
            | Self::RoundTrips { shards, .. }
            | Self::Queue { shards, .. }
            | Self::Churn { shards, .. } => shards,
            _ => 1,
        }
    }

    /// Where subscriber `number` is.
    fn home(&self, number: usize) -> usize {
        let shards = usize::from(self.shards());
        if let Self::Queue { .. } = self { number % shards } else { shards - 1 }
    }

    fn options(&self) -> Options {
        let mut options = Options::default();
        if let Self::Mqtt { .. } = self {
            options.network.mqtt = Some(MqttOptions { port: Some(0), ..MqttOptions::default() });
        }
        if let Self::Permitted { .. } = self {
            let list = |allow: &[&str], deny: &[&str]| {
                let entries = |texts: &[&str]| {
                    let entry = |text: &&str| SubjectEntry { subject: (*text).into(), queue: None };
                    texts.iter().map(entry).collect()
                };
                SubjectList { allow: entries(allow), deny: entries(deny) }
            };
            let permissions = Permissions {
                publish: list(&["bench.>", "other.*"], &["bench.secret.>"]),
                subscribe: list(&["bench.>", "_INBOX.>"], &["bench.secret.>"]),
                allow_responses: None,
            };
            let user =
                UserOptions { permissions: Some(permissions), ..UserOptions::named("anybody") };
            options.auth.users.push(user);
            options.auth.no_auth_user = Some("anybody".to_owned());
        }
        options
    }

    /// What each subscriber sends before anything is published.
    fn subscriptions(&self) -> Vec<Vec<u8>> {
        let text = |text: String| text.into_bytes();
        match *self {
            Self::Fanout { subscribers, sids, .. } => (0..subscribers)
                .map(|number| if sids == Sids::Equal { 1 } else { 1 + number })
                .map(|sid| text(format!("SUB bench.fan.out {sid}\r\n")))
                .collect(),
            Self::Mqtt { subscribers, .. } => (0..subscribers).map(mqtt_session).collect(),
            Self::Headers { .. } => vec![b"SUB bench.fan.out 1\r\n".to_vec()],
            Self::Permitted { subscribers, .. } => {
                vec![b"SUB bench.fan.out 1\r\n".to_vec(); subscribers]
            }
            Self::Requests { .. } => vec![b"SUB bench.request.* 1\r\n".to_vec()],
            Self::Pairs { pairs, .. } => {
                (0..pairs).map(|pair| text(format!("SUB bench.pair.{pair} 1\r\n"))).collect()
            }
            Self::RoundTrips { .. } => Vec::new(), // Who publishes has them.
            Self::Queue { members, .. } => {
                vec![b"SUB bench.fan.out workers 1\r\n".to_vec(); members]
            }
            Self::Subjects { wildcard: true, .. } => vec![b"SUB bench.subject.> 1\r\n".to_vec()],
            Self::Subjects { count, .. } => {
                let own = |who: usize| (who..count).step_by(10);
                let sub = |number| format!("SUB bench.subject.{number} {number}\r\n");
                (0..10).map(|who| text(own(who).map(sub).collect())).collect()
            }
            Self::Churn { .. } => {
                let sub = |number| format!("SUB bench.stays.{number} {number}\r\n");
                vec![text((0..1000).map(sub).collect())]
            }
        }
    }

    /// Who publishes.
    fn publishers(&self) -> Vec<Publisher> {
        let count = match *self {
            Self::Pairs { pairs, .. } => pairs,
            Self::RoundTrips { requesters, responders, .. } => requesters + responders,
            _ => 1,
        };
        let publisher = |number| {
            let (shard, subscriptions) = match *self {
                Self::RoundTrips { requesters, .. } if number < requesters => {
                    (0, format!("SUB _INBOX.{number}.* 1\r\n"))
                }
                Self::RoundTrips { shards, .. } => {
                    (usize::from(shards) - 1, "SUB bench.request.* workers 1\r\n".to_owned())
                }
                _ => (0, String::new()),
            };
            let stream = self.stream(number, count);
            Publisher { shard, subscriptions: subscriptions.into(), stream, at: 0 }
        };
        (0..count).map(publisher).collect()
    }

    /// What publisher `who` of `publishers` sends, over and over: whole operations.
    fn stream(&self, who: usize, publishers: usize) -> Vec<u8> {
        let mut stream = Vec::new();
        if let Self::Subjects { count, payload_bytes, .. } = *self {
            // All of them once, so that after one pass each of them is known.
            let mut numbers: Vec<usize> = (0..count).collect();
            fastrand::Rng::with_seed(7).shuffle(&mut numbers);
            for number in numbers {
                stream.extend(publish(&format!("bench.subject.{number}"), payload_bytes));
            }
            return stream;
        }
        let bytes = STREAM_BYTES / publishers * if self.is_new_to_the_end() { 2 } else { 1 };
        let mut number = 0;
        while stream.len() < bytes {
            stream.extend(self.operation(who, number));
            number += 1;
        }
        stream
    }

    /// Whether the second half of the streams has subjects that are not in the first: what is
    /// counted begins there.
    fn is_new_to_the_end(&self) -> bool {
        matches!(self, Self::RoundTrips { .. })
    }

    fn operation(&self, who: usize, number: usize) -> Vec<u8> {
        match *self {
            Self::Fanout { payload_bytes, .. }
            | Self::Permitted { payload_bytes, .. }
            | Self::Mqtt { payload_bytes, .. }
            | Self::Queue { payload_bytes, .. } => publish("bench.fan.out", payload_bytes),
            Self::Pairs { pairs, payload_bytes, .. } => {
                publish(&format!("bench.pair.{}", (who + number) % pairs), payload_bytes)
            }
            Self::RoundTrips { requesters, responders, payload_bytes, .. } => {
                let Some(responder) = who.checked_sub(requesters) else {
                    let (service, inbox) = (number % SERVICES, format!("_INBOX.{who}.{number:06}"));
                    return publish(&format!("bench.request.{service} {inbox}"), payload_bytes);
                };
                let (requester, reply) = (number % requesters, number * responders + responder);
                publish(&format!("_INBOX.{requester}.{reply:06}"), payload_bytes)
            }
            Self::Headers { payload_bytes } => publish_with_header(payload_bytes),
            Self::Requests { subjects, payload_bytes } => {
                let service = number % subjects;
                let subjects = format!("bench.request.{service} _INBOX.abcdefgh.{number}");
                publish(&subjects, payload_bytes)
            }
            Self::Subjects { payload_bytes, .. } => {
                publish(&format!("bench.subject.{number}"), payload_bytes)
            }
            Self::Churn { wildcard, .. } => {
                let last = if wildcard { "*" } else { "x" };
                format!("SUB bench.{number}.{last} {number}\r\nUNSUB {number}\r\n").into()
            }
        }
    }
}

/// CONNECT with an id of its own, and SUBSCRIBE with QoS 0.
fn mqtt_session(number: usize) -> Vec<u8> {
    let id = format!("client{number:06}");
    let connect = [b"\x10\x18\0\x04MQTT\x04\x02\0\0\0\x0c", id.as_bytes()].concat();
    [&connect[..], b"\x82\x12\0\x01\0\x0dbench/fan/out\0"].concat()
}

fn publish(subject_and_reply: &str, payload_bytes: usize) -> Vec<u8> {
    let mut operation = format!("PUB {subject_and_reply} {payload_bytes}\r\n").into_bytes();
    operation.resize(operation.len() + payload_bytes, b'x');
    operation.extend_from_slice(b"\r\n");
    operation
}

/// A publish with a header of 32 bytes before the payload.
pub(crate) fn publish_with_header(payload_bytes: usize) -> Vec<u8> {
    const HEADER: &str = "NATS/1.0\r\nTrace: 0123456789a\r\n\r\n";
    let all_bytes = HEADER.len() + payload_bytes;
    let line = format!("HPUB bench.fan.out {} {all_bytes}\r\n{HEADER}", HEADER.len());
    let mut operation = line.into_bytes();
    operation.resize(operation.len() + payload_bytes, b'x');
    operation.extend_from_slice(b"\r\n");
    operation
}

/// Somebody who publishes.
struct Publisher {
    shard: usize,
    /// What it sends before anything is published.
    subscriptions: Vec<u8>,
    /// What it sends then, over and over.
    stream: Vec<u8>,
    /// Where its next chunk begins.
    at: usize,
}

/// A scenario in motion.
pub(crate) struct World {
    engines: Vec<Engine>,
    meshes: Vec<Mesh>,
    /// By slot of their connections.
    publishers: Vec<Publisher>,
    /// Who answers requests to JetStream, if anybody makes them.
    answerer: Option<ConnId>,
}

impl World {
    /// Everybody is connected and subscribed, and the streams have been through once, or the half
    /// of such as bring something new to their end.
    pub(crate) fn new(scenario: &Scenario) -> Self {
        let shards = scenario.shards();
        let options = scenario.options();
        let settings = Rc::new(Settings::new(&options, &Identity::default(), usize::MAX));
        let engine = |shard| Engine::new(ShardId(shard), shards.into(), Rc::clone(&settings), 1);
        let mut world = Self {
            engines: (0..shards).map(engine).collect(),
            meshes: Mesh::all(shards, LANE_RECORDS_MAX),
            publishers: Vec::new(),
            answerer: None,
        };
        let publishers = scenario.publishers();
        let subscriptions = scenario.subscriptions();
        let transport = match scenario {
            Scenario::Mqtt { .. } => Transport::Mqtt,
            _ => Transport::Tcp,
        };
        if transport == Transport::Mqtt {
            let id = conn(publishers.len() + subscriptions.len());
            world.open(0, id, Transport::Tcp, b"SUB $JS.API.> 1\r\nSUB $MQTT.sess.> 2\r\n");
            world.answerer = Some(id);
            world.engines[0].start_streams(Vec::new(), LogSizes::default());
        }
        for (number, publisher) in publishers.iter().enumerate() {
            world.open(publisher.shard, conn(number), Transport::Tcp, &publisher.subscriptions);
        }
        for (number, subscriptions) in subscriptions.iter().enumerate() {
            let id = conn(publishers.len() + number);
            world.open(scenario.home(number), id, transport, subscriptions);
        }
        world.publishers = publishers;
        world.settle();
        let bytes: usize = world.publishers.iter().map(|publisher| publisher.stream.len()).sum();
        let bytes = if scenario.is_new_to_the_end() { bytes / 2 } else { bytes };
        for _ in 0..bytes.div_ceil(CHUNK_BYTES) {
            world.step();
        }
        world
    }

    fn open(&mut self, shard: usize, id: ConnId, transport: Transport, subscriptions: &[u8]) {
        let engine = &mut self.engines[shard];
        let peer = Peer { cid: u64::from(id.slot) + 1, ip: "127.0.0.1".into(), port: 1 };
        engine.open_over(id, peer, transport, true);
        if transport == Transport::Tcp {
            engine.on_bytes(id, CONNECT);
        }
        engine.on_bytes(id, subscriptions);
    }

    /// Feeds the next chunk, each publisher its part of it, and lets everything happen that follows
    /// from it.
    pub(crate) fn step(&mut self) {
        let part_bytes = CHUNK_BYTES / self.publishers.len();
        for (number, publisher) in self.publishers.iter_mut().enumerate() {
            let Publisher { shard, stream, at, .. } = publisher;
            let end = stream.len().min(*at + part_bytes);
            self.engines[*shard].on_bytes(conn(number), &stream[*at..end]);
            *at = if end == stream.len() { 0 } else { end };
        }
        self.settle();
    }

    /// Messages that have been delivered, on all shards.
    #[allow(dead_code, reason = "one of two benches looks at it")]
    pub(crate) fn delivered(&self) -> u64 {
        self.engines.iter().map(|engine| engine.view().stats().out_msgs).sum()
    }

    /// Takes turns until no shard has anything to do.
    fn settle(&mut self) {
        for _ in 0..TURNS_MAX {
            let mut idle = true;
            for (engine, mesh) in self.engines.iter_mut().zip(&mut self.meshes) {
                let Drained { any, more } = mesh.drain(engine, |_| {});
                idle &= !any;
                engine.tick();
                engine.end_turn();
                act(engine, self.answerer);
                let behind = mesh.publish(engine, |_| {});
                idle &= !more && !behind && !engine.view().has_more();
            }
            if idle {
                return;
            }
        }
        panic!("the shards do not come to rest");
    }
}

/// The connection of this number, of publishers and then subscribers, on whatever shard.
fn conn(number: usize) -> ConnId {
    ConnId { slot: u32::try_from(number).expect("a scenario has few connections"), generation: 0 }
}

/// Sends everything at once, and to the end. All requests that come to the `answerer` succeed.
fn act(engine: &mut Engine, answerer: Option<ConnId>) {
    while let Some(action) = engine.next_output() {
        match action {
            Output::Flush(conn) => {
                if let Some(batch) = engine.take_batch(conn) {
                    let bytes = batch.iter().map(|piece| piece.bytes().len()).sum();
                    let is_asked = answerer == Some(conn);
                    let answers = if is_asked { answers(&batch) } else { Vec::new() };
                    engine.on_sent(conn, bytes, Some(batch));
                    if is_asked {
                        engine.on_bytes(conn, &answers);
                    }
                }
            }
            // The stream is fed whatever happens: backlogs are gone by the end of each turn.
            Output::Pause(_) | Output::Resume(_) => {}
            Output::Close { conn, .. } => panic!("{conn:?} is closed: the scenario is wrong"),
            other => panic!("{other:?} is not expected: the scenario is wrong"),
        }
    }
}

/// Returns answers to all requests in some output: what was asked for is done.
fn answers(batch: &[Piece]) -> Vec<u8> {
    let output: Vec<u8> = batch.iter().flat_map(|piece| piece.bytes().to_vec()).collect();
    let lines = output.split(|byte| *byte == b'\n').filter(|line| line.starts_with(b"MSG $"));
    let replies = lines.filter_map(|line| line.split(|byte| *byte == b' ').nth(3));
    let answer = |reply: &[u8]| [b"PUB ", reply, b" 9\r\n{\"seq\":1}\r\n"].concat();
    replies.flat_map(answer).collect()
}
