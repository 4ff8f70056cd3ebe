use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::live::home_of;
use super::*;
use crate::store::testing::TestDisk;
use crate::store::{LogRecord, StoredMessage, StreamId, StreamStore};

const SECOND: u64 = time::SECOND;
const START: u64 = 1_700_000_000 * SECOND;

/// A stream over a disk that does at once what it is told.
struct Bench {
    disk: TestDisk,
    store: StreamStore,
    live: LiveStream,
    now: u64,
}

fn config(value: Value) -> StreamConfig {
    let mut config = json!({"name": "S", "subjects": ["s.>", "t.>"], "max_msgs": -1,
        "max_bytes": -1, "max_msgs_per_subject": -1, "max_msg_size": -1, "max_consumers": -1});
    let fields = value.as_object().unwrap().clone();
    config.as_object_mut().unwrap().extend(fields);
    serde_json::from_value(config).unwrap()
}

fn opening(now: u64) -> Opening {
    Opening { now, seed: 7, limits: StreamLimits::default(), domain: None }
}

impl Bench {
    fn new(fields: Value) -> Self {
        let mut disk = TestDisk::default();
        let (mut store, _) = StreamStore::new(disk.recover().unwrap(), 1);
        let created = time::Timestamp(START.cast_signed());
        let kept = KeptStream {
            account: "$G".to_owned(),
            created,
            config: config(fields),
            is_partial: false,
        };
        let (live, _) = LiveStream::create(StreamId(1), kept, &mut store, &opening(START)).unwrap();
        let mut bench = Self { disk, store, live, now: START };
        bench.settle();
        bench
    }

    fn settle(&mut self) {
        loop {
            self.store.end_turn();
            let Some(op) = self.store.next_op() else { break };
            self.store.on_disk(self.disk.run(op));
        }
        while self.store.next_event().is_some() {}
    }

    fn restart(&mut self) {
        self.settle();
        let (store, _) = StreamStore::new(self.disk.recover().unwrap(), 1);
        self.store = store;
        self.settle();
        let (id, bytes) = self.store.streams().next().unwrap();
        let kept = bytes.and_then(KeptStream::from_bytes).unwrap();
        self.live = LiveStream::open(id, kept, &self.store, &opening(self.now));
    }

    /// Publishes a message, and returns its acknowledgement.
    fn publish_over(
        &mut self,
        subject: &str,
        reply: &str,
        heads: &[(&str, &str)],
        body: &str,
    ) -> String {
        let mut block = Vec::new();
        heads.iter().for_each(|(name, value)| headers::add(&mut block, name, value));
        let incoming = Incoming {
            subject: subject.as_bytes(),
            reply: reply.as_bytes(),
            headers: &block,
            payload: body.as_bytes(),
        };
        let has_interest = &|_: &[u8]| true;
        let context =
            PublishContext { now: self.now, is_full: false, bytes_left: u64::MAX, has_interest };
        let published = self.live.publish(&mut self.store, &context, &incoming);
        let mut text = Vec::new();
        match self.live.pub_ack(&published, &mut text) {
            Some(_) => String::from_utf8(text).unwrap(),
            None => "no answer".to_owned(),
        }
    }

    fn publish(&mut self, subject: &str, heads: &[(&str, &str)], body: &str) -> String {
        self.publish_over(subject, "reply", heads, body)
    }

    /// The number of the error in an acknowledgement; 0 if it is none.
    fn error(&mut self, subject: &str, heads: &[(&str, &str)], body: &str) -> u64 {
        let ack = self.publish(subject, heads, body);
        let ack: Value = serde_json::from_str(&ack).unwrap_or_default();
        ack["error"]["err_code"].as_u64().unwrap_or(0)
    }

    fn pass(&mut self, nanoseconds: u64) {
        self.now += nanoseconds;
        while let Some(due) = self.live.next_deadline(&self.store).filter(|due| *due <= self.now) {
            self.live.tick(&mut self.store, self.now);
            self.settle();
            let next = self.live.next_deadline(&self.store);
            assert!(next.is_none_or(|next| next > due || next > self.now), "{next:?} after {due}");
        }
    }

    /// Sequences and subjects of all messages.
    fn messages(&mut self) -> Vec<(u64, String)> {
        self.settle();
        self.all().into_iter().map(|(sequence, subject, ..)| (sequence, subject)).collect()
    }

    fn all(&self) -> Vec<(u64, String, String, String)> {
        let last = self.store.stream(StreamId(1)).unwrap().state().last;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (1..=last)
            .filter_map(|sequence| {
                let record = self.store.get(StreamId(1), sequence)?.decoded.record;
                let LogRecord::Message(message) = record else { return None };
                let (subject, block) = (text(message.subject), text(message.headers));
                Some((sequence, subject, block, text(message.payload)))
            })
            .collect()
    }

    fn events(&mut self) -> Vec<StreamEvent> {
        std::iter::from_fn(|| self.live.next_event()).collect()
    }

    /// Subjects and payloads of messages that are to be published.
    fn told(&mut self) -> Vec<(String, String)> {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let told = self.events().into_iter().filter_map(|event| match event {
            StreamEvent::Publish { subject, payload, .. } => Some((text(subject), text(payload))),
            _ => None,
        });
        told.collect()
    }
}

fn pairs(list: &[(u64, &str)]) -> Vec<(u64, String)> {
    list.iter().map(|(sequence, subject)| (*sequence, (*subject).to_owned())).collect()
}

#[test]
fn a_message_goes_when_its_time_is_over_also_after_a_restart() {
    let mut bench = Bench::new(json!({"allow_msg_ttl": true, "max_age": 10 * SECOND}));
    bench.publish("s.a", &[("Nats-TTL", "never")], "");
    bench.publish("s.b", &[("Nats-TTL", "2")], "");
    bench.publish("s.c", &[("Nats-TTL", "5s")], "");
    bench.publish("s.d", &[], "");
    assert_eq!(bench.error("s.e", &[("Nats-TTL", "500ms")], ""), 10165);
    bench.pass(2 * SECOND);
    assert_eq!(bench.messages(), pairs(&[(1, "s.a"), (3, "s.c"), (4, "s.d")]));
    bench.restart();
    bench.pass(3 * SECOND);
    assert_eq!(bench.messages(), pairs(&[(1, "s.a"), (4, "s.d")]));
    bench.pass(60 * SECOND);
    assert_eq!(bench.messages(), pairs(&[(1, "s.a")]));
    assert_eq!(bench.live.next_deadline(&bench.store), None);
    let mut without = Bench::new(json!({}));
    assert_eq!(without.error("s.a", &[("Nats-TTL", "5")], ""), 10166);
}

#[test]
fn a_marker_takes_the_place_of_a_subjects_last_message_and_goes_without_one() {
    let marker = 60 * SECOND;
    let mut bench = Bench::new(json!({"allow_msg_ttl": true, "allow_rollup_hdrs": true,
        "subject_delete_marker_ttl": marker, "max_age": SECOND}));
    bench.publish("s.a", &[], "1");
    bench.publish("s.a", &[], "2");
    bench.pass(SECOND);
    let all = bench.all();
    let block =
        "NATS/1.0\r\nNats-Marker-Reason: MaxAge\r\nNats-TTL: 1m0s\r\nNats-Rollup: sub\r\n\r\n";
    assert_eq!(all, [(3, "s.a".to_owned(), block.to_owned(), String::new())]);
    bench.pass(marker);
    assert_eq!(bench.messages(), []);
}

#[test]
fn counters_add_up_and_their_rules_are_kept() {
    let mut bench = Bench::new(json!({"allow_msg_counter": true}));
    let add = |bench: &mut Bench, number| bench.publish("s.a", &[("Nats-Incr", number)], "");
    assert_eq!(add(&mut bench, "1"), r#"{"stream":"S","seq":1,"val":"1"}"#);
    assert_eq!(add(&mut bench, "+10"), r#"{"stream":"S","seq":2,"val":"11"}"#);
    assert_eq!(add(&mut bench, "-20"), r#"{"stream":"S","seq":3,"val":"-9"}"#);
    bench.restart();
    let huge = "99999999999999999999999999";
    let ack = r#"{"stream":"S","seq":4,"val":"99999999999999999999999990"}"#.to_string();
    assert_eq!(add(&mut bench, huge), ack);
    assert_eq!(bench.error("s.a", &[], "x"), 10169);
    assert_eq!(bench.error("s.a", &[("Nats-Incr", "1")], "x"), 10170);
    assert_eq!(bench.error("s.a", &[("Nats-Incr", "one")], ""), 10171);
    assert_eq!(bench.error("s.a", &[("Nats-Incr", "1"), ("Nats-Rollup", "sub")], ""), 10171);
    assert_eq!(Bench::new(json!({})).error("s.a", &[("Nats-Incr", "1")], ""), 10168);
}

fn member<'a>(id: &'a str, position: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![("Nats-Batch-Id", id), ("Nats-Batch-Sequence", position)]
}

fn last_member<'a>(id: &'a str, position: &'a str, end: &'a str) -> Vec<(&'a str, &'a str)> {
    [member(id, position), vec![("Nats-Batch-Commit", end)]].concat()
}

#[test]
fn a_batch_is_stored_as_a_whole_with_its_last_member() {
    let mut bench = Bench::new(json!({"allow_atomic": true}));
    assert_eq!(bench.publish("s.a", &member("b", "1"), "one"), "");
    assert_eq!(bench.publish("s.x", &[], "other"), r#"{"stream":"S","seq":1}"#);
    assert_eq!(bench.publish("s.b", &member("b", "2"), "two"), "");
    assert_eq!(bench.messages(), pairs(&[(1, "s.x")]));
    let ack = bench.publish("s.c", &last_member("b", "3", "1"), "three");
    assert_eq!(ack, r#"{"stream":"S","seq":4,"batch":"b","count":3}"#);
    assert_eq!(bench.publish("s.d", &member("c", "1"), "four"), "");
    let ack = bench.publish("s.e", &last_member("c", "2", "eob"), "no");
    assert_eq!(ack, r#"{"stream":"S","seq":5,"batch":"c","count":1}"#);
    let all = [(1, "s.x"), (2, "s.a"), (3, "s.b"), (4, "s.c"), (5, "s.d")];
    assert_eq!(bench.messages(), pairs(&all));
}

#[test]
fn one_member_that_may_not_be_stored_takes_its_batch_along() {
    let mut bench = Bench::new(json!({"allow_atomic": true, "allow_rollup_hdrs": true,
        "duplicate_window": 120 * SECOND}));
    bench.publish("s.a", &[("Nats-Msg-Id", "known")], "");
    let cases: [(&[(&str, &str)], u64); 6] = [
        (&[("Nats-Expected-Last-Sequence", "9")], 10071),
        (&[("Nats-Expected-Last-Subject-Sequence", "5")], 10071),
        (&[("Nats-Msg-Id", "known")], 10201),
        (&[("Nats-Expected-Last-Msg-Id", "x")], 10177),
        (&[("Nats-Rollup", "all")], 10111),
        (&[("Nats-TTL", "5")], 10166),
    ];
    for (number, (heads, error)) in cases.iter().enumerate() {
        let id = format!("b{number}");
        bench.publish("s.m", &member(&id, "1"), "");
        assert_eq!(bench.publish("s.n", &[&member(&id, "2"), *heads].concat(), ""), "");
        assert_eq!(bench.error("s.o", &last_member(&id, "3", "1"), ""), *error, "{heads:?}");
    }
    assert_eq!(bench.messages(), pairs(&[(1, "s.a")]));
}

#[test]
fn batches_that_lack_something_are_refused_or_given_up() {
    let mut bench = Bench::new(json!({"allow_atomic": true}));
    assert_eq!(bench.error("s.a", &[("Nats-Batch-Id", "b")], ""), 10175);
    assert_eq!(bench.error("s.a", &member("b", "2"), ""), 10176);
    assert_eq!(bench.error("s.a", &member(&"i".repeat(65), "1"), ""), 10179);
    assert_eq!(bench.error("s.a", &last_member("b", "1", "maybe"), ""), 10200);
    assert_eq!(bench.events(), []);
    bench.publish("s.a", &member("c", "1"), "");
    assert_eq!(bench.error("s.a", &member("c", "3"), ""), 10176);
    let abandoned =
        |batch: &str, reason| StreamEvent::BatchAbandoned { batch: batch.to_owned(), reason };
    assert_eq!(bench.events(), [abandoned("c", "incomplete")]);
    bench.publish("s.a", &member("d", "1"), "");
    bench.pass(10 * SECOND);
    assert_eq!(bench.events(), [abandoned("d", "timeout")]);
    assert_eq!(bench.error("s.a", &member("d", "2"), ""), 10176);
    assert_eq!(Bench::new(json!({})).error("s.a", &member("b", "1"), ""), 10174);
}

#[test]
fn fast_ingest_acknowledges_many_messages_at_a_time() {
    let mut bench = Bench::new(json!({"allow_batched": true}));
    let ingest = |bench: &mut Bench, place: &str| {
        let reply = format!("in.u.{place}.$FI");
        bench.publish_over("s.a", &reply, &[], "x")
    };
    assert_eq!(ingest(&mut bench, "2.fail.1.0"), "no answer");
    let told: Vec<String> = bench.told().into_iter().map(|(_, told)| told).collect();
    assert_eq!(told, [r#"{"type":"ack","seq":0,"msgs":2}"#]);
    assert_eq!(ingest(&mut bench, "2.fail.2.1"), "no answer");
    let told: Vec<String> = bench.told().into_iter().map(|(_, told)| told).collect();
    assert_eq!(told, [r#"{"type":"ack","seq":2,"msgs":2}"#]);
    let ack = ingest(&mut bench, "2.fail.3.2");
    assert_eq!(ack, r#"{"stream":"S","seq":3,"batch":"u","count":3}"#);
    ingest(&mut bench, "2.fail.1.0");
    bench.told();
    // A gap ends a batch that may have none: what was stored is acknowledged.
    let ack = ingest(&mut bench, "2.fail.3.1");
    assert_eq!(ack, r#"{"stream":"S","seq":4,"batch":"u","count":1}"#);
    let told: Vec<String> = bench.told().into_iter().map(|(_, told)| told).collect();
    assert_eq!(told, [r#"{"type":"gap","last_seq":2,"seq":3}"#]);
    assert!(ingest(&mut bench, "2.ok.5.1").contains("10208"));
    assert!(ingest(&mut bench, "2.maybe.1.0").contains("10206"));
}

#[test]
fn a_schedule_stores_its_message_when_it_is_time() {
    let mut bench = Bench::new(
        json!({"allow_msg_schedules": true, "allow_msg_ttl": true, "allow_rollup_hdrs": true}),
    );
    let every = [("Nats-Schedule", "@every 5s"), ("Nats-Schedule-Target", "t.a"), ("Mine", "v")];
    bench.publish("s.a", &every, "body");
    bench.pass(5 * SECOND);
    let block = "NATS/1.0\r\nMine: v\r\nNats-Scheduler: s.a\r\n\
                 Nats-Schedule-Next: 2023-11-14T22:13:30Z\r\n\r\n";
    assert_eq!(bench.all()[1], (2, "t.a".to_owned(), block.to_owned(), "body".to_owned()));
    bench.restart();
    bench.pass(5 * SECOND);
    assert_eq!(bench.messages(), pairs(&[(1, "s.a"), (2, "t.a"), (3, "t.a")]));
    let once = [
        ("Nats-Schedule", "@at 2020-01-01T00:00:00Z"),
        ("Nats-Schedule-Target", "t.b"),
        ("Nats-Schedule-TTL", "5m"),
    ];
    bench.publish("s.a", &once, "once");
    bench.pass(0);
    let all = bench.all();
    let (sequence, subject, block, _) = all.last().unwrap();
    assert_eq!((*sequence, subject.as_str()), (5, "t.b"));
    assert!(block.contains("Nats-Schedule-Next: purge\r\nNats-TTL: 5m\r\n"), "{block}");
    assert!(all.iter().all(|(_, subject, ..)| subject != "s.a"), "the schedule is over");
    bench.pass(10 * SECOND);
    assert_eq!(bench.live.next_deadline(&bench.store), Some(bench.now + 290 * SECOND));
}

#[test]
fn schedules_that_cannot_be_meant_are_refused() {
    let mut bench = Bench::new(json!({"allow_msg_schedules": true, "allow_rollup_hdrs": true}));
    let target = ("Nats-Schedule-Target", "t.a");
    let every = ("Nats-Schedule", "@every 5s");
    let cases: [(&[(&str, &str)], u64); 10] = [
        (&[("Nats-Schedule", "sometimes"), target], 10189),
        (&[every], 10190),
        (&[every, ("Nats-Schedule-Target", "x.y")], 10190),
        (&[every, ("Nats-Schedule-Target", "s.a")], 10190),
        (&[every, target, ("Nats-Schedule-TTL", "5")], 10166),
        (&[every, target, ("Nats-Schedule-TTL", "soon")], 10191),
        (&[every, target, ("Nats-Schedule-Rollup", "all")], 10192),
        (&[every, target, ("Nats-Schedule-Source", "t.a")], 10203),
        (&[("Nats-Schedule", "@hourly"), target, ("Nats-Schedule-Time-Zone", "Moon")], 10223),
        (&[("Nats-Scheduler", "s.b")], 10212),
    ];
    for (heads, error) in cases {
        assert_eq!(bench.error("s.a", heads, ""), error, "{heads:?}");
    }
    assert_eq!(Bench::new(json!({})).error("s.a", &[every, target], ""), 10188);
}

/// Carries pages from one stream to the copies of another until there are none.
fn carry(origin: &mut Bench, copy: &mut Bench, pages: usize) {
    let has_interest = &|_: &[u8]| true;
    for _ in 0..pages {
        origin.settle();
        let Some(ask) = copy.live.copy_ask(0) else { return };
        let page = origin.live.copy_page(&origin.store, &ask);
        let context =
            PublishContext { now: copy.now, is_full: false, bytes_left: u64::MAX, has_interest };
        assert!(copy.live.take_page(&mut copy.store, &context, 0, &page));
        copy.settle();
        if page.messages.is_empty() {
            return;
        }
    }
}

#[test]
fn a_mirror_has_the_sequences_of_its_origin_and_a_source_names_it() {
    let mut origin = Bench::new(json!({}));
    for subject in ["s.a", "s.b", "s.c"] {
        origin.publish(subject, &[("H", "v")], subject);
    }
    origin.settle();
    delete_message(&mut origin.live, &mut origin.store, br#"{"seq":2}"#).unwrap();
    let mut mirror = Bench::new(json!({"subjects": [], "mirror": {"name": "S"}}));
    carry(&mut origin, &mut mirror, 9);
    assert_eq!(mirror.messages(), pairs(&[(1, "s.a"), (3, "s.c")]));
    let (info, _) = mirror.live.copies_shown(mirror.now + 5);
    assert_eq!(info.map(|info| (info.lag, info.active)), Some((0, 5)));
    let sources = json!({"sources": [{"name": "S",
        "subject_transforms": [{"src": "s.*", "dest": "t.$1"}]}]});
    let mut target = Bench::new(sources);
    target.publish("s.own", &[], "");
    carry(&mut origin, &mut target, 9);
    assert_eq!(target.messages(), pairs(&[(1, "s.own"), (2, "t.a"), (3, "t.c")]));
    let block = &target.all()[2].2;
    let header = "NATS/1.0\r\nH: v\r\nNats-Stream-Source: S 3 s.* t.$1 s.c ";
    assert!(block.starts_with(header) && block.ends_with("\r\n\r\n"), "{block}");
    target.restart();
    origin.publish("s.d", &[], "");
    carry(&mut origin, &mut target, 9);
    assert_eq!(target.messages()[3..], pairs(&[(4, "t.d")]));
}

#[derive(Debug, Clone)]
enum Step {
    Publish { subject: usize, id: Option<u8>, ttl: Option<u8> },
    Delete(u64),
    Purge { keep: u64, subject: usize },
    Pass(u8),
    Restart,
    Carry,
}

const SUBJECTS: [&str; 4] = ["s.a", "s.b", "t.a", "t.b.c"];

fn step() -> impl Strategy<Value = Step> {
    let subject = 0..SUBJECTS.len();
    let (id, ttl) = (prop::option::of(0..6_u8), prop::option::weighted(0.2, 1..9_u8));
    prop_oneof![
        8 => (subject.clone(), id, ttl)
            .prop_map(|(subject, id, ttl)| Step::Publish { subject, id, ttl }),
        2 => (1..40_u64).prop_map(Step::Delete),
        1 => (0..3_u64, subject).prop_map(|(keep, subject)| Step::Purge { keep, subject }),
        2 => (0..4_u8).prop_map(Step::Pass),
        1 => Just(Step::Restart),
        2 => Just(Step::Carry),
    ]
}

/// A stream as a table: limits, ids and ages, done the simple way.
#[derive(Default)]
struct Model {
    messages: BTreeMap<u64, (usize, u64, Option<u64>)>,
    ids: BTreeMap<u8, (u64, u64)>,
    last: u64,
    max_msgs: usize,
    per_subject: usize,
    max_age: u64,
    discards_new: bool,
}

impl Model {
    /// Returns the sequence that a publish is acknowledged with; `None` if it is refused.
    fn publish(
        &mut self,
        now: u64,
        subject: usize,
        id: Option<u8>,
        ttl: Option<u64>,
    ) -> Option<u64> {
        let window = if self.max_age > 0 { self.max_age.min(120 * SECOND) } else { 120 * SECOND };
        if let Some((sequence, time)) = id.and_then(|id| self.ids.get(&id))
            && time + window > now
        {
            return Some(*sequence);
        }
        let of_subject: Vec<u64> = self.of(subject);
        let gives_way = of_subject.len() >= self.per_subject;
        if self.discards_new && self.messages.len() >= self.max_msgs && !gives_way {
            return None;
        }
        self.last += 1;
        self.messages.insert(self.last, (subject, now, ttl.map(|ttl| now + ttl * SECOND)));
        id.map(|id| self.ids.insert(id, (self.last, now)));
        while self.of(subject).len() > self.per_subject {
            self.messages.remove(&self.of(subject)[0]);
        }
        while self.messages.len() > self.max_msgs {
            self.messages.pop_first();
        }
        Some(self.last)
    }

    fn of(&self, subject: usize) -> Vec<u64> {
        let own = self.messages.iter().filter(|(_, message)| message.0 == subject);
        own.map(|(sequence, _)| *sequence).collect()
    }

    fn expire(&mut self, now: u64) {
        let max_age = self.max_age;
        self.messages.retain(|_, (_, time, end)| {
            (max_age == 0 || *time + max_age > now) && end.is_none_or(|end| end > now)
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_stream_is_what_a_simple_table_is_and_its_copies_miss_and_repeat_nothing(
        steps in prop::collection::vec(step(), 1..60),
        (max_msgs, per_subject) in (prop::option::of(2..9_usize), prop::option::of(1..4_usize)),
        (max_age, discards_new) in (prop::option::of(2..9_u64), any::<bool>()),
    ) {
        let limit = |limit: Option<usize>| limit.map_or(-1, |limit| i64::try_from(limit).unwrap());
        let max_age = max_age.map_or(0, |seconds| seconds * SECOND);
        let window = if max_age > 0 { max_age } else { 120 * SECOND };
        let mut bench = Bench::new(json!({"allow_msg_ttl": true, "max_msgs": limit(max_msgs),
            "max_msgs_per_subject": limit(per_subject), "max_age": max_age,
            "duplicate_window": window,
            "discard": if discards_new { "new" } else { "old" }}));
        let mut mirror = Bench::new(json!({"subjects": [], "mirror": {"name": "S"}}));
        let mut target = Bench::new(json!({"subjects": [], "sources": [{"name": "S"}]}));
        let mut model = Model {
            max_msgs: max_msgs.unwrap_or(usize::MAX),
            per_subject: per_subject.unwrap_or(usize::MAX),
            max_age,
            discards_new,
            ..Model::default()
        };
        let mut seen = BTreeMap::new();
        for step in steps {
            match step {
                Step::Publish { subject, id, ttl } => {
                    let (id_text, ttl_text) = (format!("{id:?}"), format!("{}", ttl.unwrap_or(0)));
                    let mut heads = vec![("Nats-TTL", ttl_text.as_str())];
                    heads.retain(|_| ttl.is_some());
                    heads.extend(id.map(|_| ("Nats-Msg-Id", id_text.as_str())));
                    let ack = bench.publish(SUBJECTS[subject], &heads, "x");
                    let ack: Value = serde_json::from_str(&ack).unwrap();
                    let expected = model.publish(bench.now, subject, id, ttl.map(u64::from));
                    let got = ack["seq"].as_u64().filter(|_| ack["error"].is_null());
                    prop_assert_eq!(got, expected, "{}", ack);
                }
                Step::Delete(sequence) => {
                    bench.settle();
                    let body = format!(r#"{{"seq":{sequence}}}"#);
                    let done = delete_message(&mut bench.live, &mut bench.store, body.as_bytes());
                    prop_assert_eq!(done.is_ok(), model.messages.remove(&sequence).is_some());
                }
                Step::Purge { keep, subject } => {
                    bench.settle();
                    let body = format!(r#"{{"keep":{keep},"filter":"{}"}}"#, SUBJECTS[subject]);
                    purge(&mut bench.live, &mut bench.store, body.as_bytes()).unwrap();
                    let own = model.of(subject);
                    let gone = own.len().saturating_sub(usize::try_from(keep).unwrap());
                    for sequence in &own[..gone] {
                        model.messages.remove(sequence);
                    }
                }
                Step::Pass(seconds) => {
                    bench.pass(u64::from(seconds) * SECOND);
                    model.expire(bench.now);
                }
                Step::Restart => {
                    bench.restart();
                    model.ids.retain(|_, (sequence, _)| model.messages.contains_key(sequence));
                    target.restart();
                    mirror.restart();
                }
                Step::Carry => {
                    carry(&mut bench, &mut mirror, usize::MAX);
                    carry(&mut bench, &mut target, usize::MAX);
                    seen.extend(bench.messages());
                }
            }
            let expected: Vec<(u64, String)> = model.messages.iter()
                .map(|(sequence, message)| (*sequence, SUBJECTS[message.0].to_owned())).collect();
            prop_assert_eq!(bench.messages(), expected);
        }
        let copied = mirror.messages();
        prop_assert_eq!(copied, seen.iter().map(|(at, it)| (*at, it.clone())).collect::<Vec<_>>());
        let copied: Vec<String> = target.messages().into_iter().map(|(_, it)| it).collect();
        prop_assert_eq!(copied, seen.into_values().collect::<Vec<_>>());
    }
}

#[test]
fn a_stream_in_memory_has_the_same_rules() {
    let mut bench = Bench::new(json!({"storage": "memory", "max_msgs": 2}));
    assert_eq!(home_of(bench.live.config()), crate::store::StreamHome::Memory);
    for subject in SUBJECTS {
        bench.publish(subject, &[], "");
    }
    assert_eq!(bench.messages(), pairs(&[(3, "t.a"), (4, "t.b.c")]));
}

#[test]
fn an_archived_message_with_a_subject_that_breaks_the_protocol_is_refused() {
    let mut bench = Bench::new(json!({}));
    let has_interest = &|_: &[u8]| true;
    let context =
        PublishContext { now: bench.now, is_full: false, bytes_left: u64::MAX, has_interest };
    for (subject, is_taken) in
        [("s.a", true), ("s.a 1 2\r\nPING", false), ("", false), ("s.*", false)]
    {
        let sequence = bench.live.last_sequence(&bench.store) + 1;
        let (subject, time) = (subject.as_bytes(), bench.now);
        let message =
            StoredMessage { sequence, time, flags: 0, subject, headers: b"", payload: b"x" };
        let (live, store) = (&mut bench.live, &mut bench.store);
        let published = restore::restore_message(live, store, &context, &message);
        assert_eq!(matches!(published, Published::Refused(_)), !is_taken, "{subject:?}");
    }
}

/// The answers to a get of each form.
fn gets(bench: &Bench, subject: &str) -> Vec<String> {
    let mut found = Vec::new();
    let bodies = [
        json!({"last_by_subj": subject}),
        json!({"next_by_subj": subject, "seq": 1}),
        json!({"next_by_subj": "s.>", "seq": 1, "batch": 1}),
        json!({"multi_last": ["s.>", "t.none"]}),
    ];
    for body in bodies {
        let body = body.to_string();
        let request = DirectRequest { headers: b"", body: body.as_bytes(), subject: None };
        let mut answers = Vec::new();
        direct_get(&bench.live, &bench.store, &request, &mut |headers, payload| {
            answers.extend_from_slice(if payload.is_empty() { headers } else { payload });
        });
        found.push(String::from_utf8_lossy(&answers[..1]).into_owned());
    }
    let body = json!({"last_by_subj": subject}).to_string();
    let answer = get_message(&bench.live, &bench.store, body.as_bytes());
    found.push(answer.map_or_else(
        |error| format!("{error:?}"),
        |answer| String::from_utf8_lossy(&answer.text).into_owned(),
    ));
    found
}

#[test]
fn a_value_that_is_being_changed_is_the_old_one_until_it_is_the_new_one() {
    let settings = [
        (json!({"max_msgs_per_subject": 1}), &[][..]),
        (json!({"max_msgs": 1}), &[]),
        (json!({"allow_rollup_hdrs": true}), &[(headers::name::ROLLUP, "sub")]),
    ];
    for (fields, heads) in settings {
        let mut bench = Bench::new(fields);
        bench.publish("s.a", heads, "1");
        bench.settle();
        let first = gets(&bench, "s.a");
        assert_eq!(first[..4], ["1"; 4]);
        for _ in 0..3 {
            bench.publish("s.a", heads, "2");
            assert_eq!(gets(&bench, "s.a"), first);
        }
        bench.settle();
        let last = gets(&bench, "s.a");
        assert_eq!(last[..4], ["2"; 4]);
        assert_ne!(last[4], first[4]);
    }
}
