//! Engines without a kernel: connections whose sends are complete as soon as they are asked for.
//!
//! A scenario opens its connections and then repeats a stream of a publisher, cut into chunks as
//! TCP would, whatever that does to operations. What is measured is everything between the
//! reactor and the reactor: parsing, matching, rendering, the outboxes, the lanes.

use std::rc::Rc;

use shardcast::config::{Options, Permissions, SubjectEntry, SubjectList, User};
use shardcast::engine::{Action, ConnId, Engine, Identity, Peer, Settings, ShardId};
use shardcast::mesh::{Drained, LANE_RECORDS_MAX, Mesh};

/// Bytes of one chunk, as large as those of the reactor.
const CHUNK_BYTES: usize = 64 * 1024;
/// The stream that is repeated has about this many bytes.
const STREAM_BYTES: usize = 1024 * 1024;
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
    /// As above, with a header and one subscriber.
    Headers { payload_bytes: usize },
    /// One publisher and one subject again, and everybody has permissions.
    Permitted { subscribers: usize, payload_bytes: usize },
    /// A request at a time: each message has a reply subject, and no two in a row one subject.
    Requests { subjects: usize, payload_bytes: usize },
    /// One queue group on one subject.
    Queue { members: usize, payload_bytes: usize },
    /// Many subjects in no order. Ten subscribers share them, or one has all by a wildcard.
    Subjects { count: usize, payload_bytes: usize, wildcard: bool },
    /// SUB and UNSUB in turn, of literals or with wildcards, besides a thousand that stay.
    Churn { wildcard: bool, shards: u8 },
}

impl Scenario {
    /// How the tables call it.
    pub(crate) fn name(&self) -> String {
        match *self {
            Self::Fanout { subscribers, payload_bytes, sids, shards } => {
                let sids = if sids == Sids::Equal { "" } else { "-distinct" };
                let shards = if shards == 1 { "" } else { "-across" };
                format!("1to{subscribers}-{payload_bytes}{sids}{shards}")
            }
            Self::Headers { payload_bytes } => format!("headers-{payload_bytes}"),
            Self::Permitted { subscribers, payload_bytes } => {
                format!("1to{subscribers}-{payload_bytes}-permissions")
            }
            Self::Requests { subjects, payload_bytes } => {
                format!("requests{subjects}-{payload_bytes}")
            }
            Self::Queue { members, payload_bytes } => format!("queue{members}-{payload_bytes}"),
            Self::Subjects { count, payload_bytes, wildcard } => {
                let wildcard = if wildcard { "-wildcard" } else { "" };
                format!("subjects{count}-{payload_bytes}{wildcard}")
            }
            Self::Churn { wildcard, shards } => {
                let wildcard = if wildcard { "-wildcard" } else { "" };
                let shards = if shards == 1 { "" } else { "-across" };
                format!("churn{wildcard}{shards}")
            }
        }
    }

    /// Deliveries, or operations of a churn, that `chunks` chunks bring about on average.
    pub(crate) fn elements(&self, chunks: usize) -> u64 {
        let stream = self.stream();
        let lines = |name: &[u8]| stream.windows(name.len()).filter(|text| *text == name).count();
        let elements = match self {
            Self::Fanout { subscribers, .. } | Self::Permitted { subscribers, .. } => {
                lines(b"PUB ") * subscribers
            }
            Self::Churn { .. } => lines(b"SUB "),
            _ => lines(b"PUB "),
        };
        (elements * chunks * CHUNK_BYTES / stream.len()) as u64
    }

    fn shards(&self) -> u8 {
        match *self {
            Self::Fanout { shards, .. } | Self::Churn { shards, .. } => shards,
            _ => 1,
        }
    }

    fn options(&self) -> Options {
        let mut options = Options::default();
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
            let user = User { permissions: Some(permissions), ..User::named("anybody") };
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
            Self::Headers { .. } => vec![b"SUB bench.fan.out 1\r\n".to_vec()],
            Self::Permitted { subscribers, .. } => {
                vec![b"SUB bench.fan.out 1\r\n".to_vec(); subscribers]
            }
            Self::Requests { .. } => vec![b"SUB bench.request.* 1\r\n".to_vec()],
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

    /// What the publisher sends, over and over: whole operations.
    fn stream(&self) -> Vec<u8> {
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
        let mut number = 0;
        while stream.len() < STREAM_BYTES {
            stream.extend(self.operation(number));
            number += 1;
        }
        stream
    }

    fn operation(&self, number: usize) -> Vec<u8> {
        match *self {
            Self::Fanout { payload_bytes, .. }
            | Self::Permitted { payload_bytes, .. }
            | Self::Queue { payload_bytes, .. } => publish("bench.fan.out", payload_bytes),
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

/// A scenario in motion.
pub(crate) struct World {
    engines: Vec<Engine>,
    meshes: Vec<Mesh>,
    stream: Vec<u8>,
    /// Where the next chunk begins.
    at: usize,
}

/// The publisher's connection, on shard 0.
const PUBLISHER: ConnId = ConnId { slot: 0, generation: 0 };

impl World {
    /// Everybody is connected and subscribed, and the stream has been through once.
    pub(crate) fn new(scenario: &Scenario) -> Self {
        let shards = scenario.shards();
        let options = scenario.options();
        let settings = Rc::new(Settings::new(&options, &Identity::default(), usize::MAX));
        let engine = |shard| Engine::new(ShardId(shard), shards.into(), Rc::clone(&settings), 1);
        let stream = scenario.stream();
        let mut world = Self {
            engines: (0..shards).map(engine).collect(),
            meshes: Mesh::all(shards, LANE_RECORDS_MAX),
            stream,
            at: 0,
        };
        world.open(0, PUBLISHER, CONNECT);
        let home = shards - 1;
        for (slot, subscriptions) in (1..).zip(scenario.subscriptions()) {
            let id = ConnId { slot, generation: 0 };
            world.open(home, id, CONNECT);
            world.engines[usize::from(home)].on_bytes(id, &subscriptions);
        }
        world.settle();
        for _ in 0..world.chunks() {
            world.step();
        }
        world
    }

    fn open(&mut self, shard: u8, id: ConnId, greeting: &[u8]) {
        let engine = &mut self.engines[usize::from(shard)];
        let peer = Peer { cid: u64::from(id.slot) + 1, ip: "127.0.0.1".into(), port: 1 };
        engine.open(id, peer, true);
        engine.on_bytes(id, greeting);
    }

    /// Chunks in one pass of the stream.
    pub(crate) fn chunks(&self) -> usize {
        self.stream.len().div_ceil(CHUNK_BYTES)
    }

    /// Feeds the next chunk and lets everything happen that follows from it.
    pub(crate) fn step(&mut self) {
        let end = self.stream.len().min(self.at + CHUNK_BYTES);
        self.engines[0].on_bytes(PUBLISHER, &self.stream[self.at..end]);
        self.at = if end == self.stream.len() { 0 } else { end };
        self.settle();
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
                act(engine);
                let behind = mesh.publish(engine, |_| {});
                idle &= !more && !behind && !engine.has_more();
            }
            if idle {
                return;
            }
        }
        panic!("the shards do not come to rest");
    }
}

/// Sends everything at once, and to the end.
fn act(engine: &mut Engine) {
    while let Some(action) = engine.next_action() {
        match action {
            Action::Flush(conn) => {
                if let Some(batch) = engine.take_batch(conn) {
                    let bytes = batch.iter().map(|piece| piece.bytes().len()).sum();
                    engine.on_sent(conn, bytes, Some(batch));
                }
            }
            // The stream is fed whatever happens: backlogs are gone by the end of each turn.
            Action::Pause(_) | Action::Resume(_) => {}
            Action::Close { conn, .. } => panic!("{conn:?} is closed: the scenario is wrong"),
        }
    }
}
