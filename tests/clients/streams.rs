//! Streams, key-value and object stores with async-nats: the behaviours that `client.rs` has not.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fmt::{Debug, Display};
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::consumer::{self, AckPolicy, DeliverPolicy, pull, push};
use async_nats::jetstream::stream::{self, DiscardPolicy, RetentionPolicy, StorageType, Stream};
use async_nats::jetstream::{self, AckKind, Context, Message, kv, object_store};
use futures::future::try_join_all;
use futures::{StreamExt, TryStreamExt};
use tokio::io::AsyncReadExt;
use tokio::time::{sleep, timeout};

use super::{PATIENCE, ask, connect};

const ACK_WAIT: Duration = Duration::from_millis(1500);

async fn streams_of() -> Context {
    let mut context = jetstream::new(connect().await);
    context.set_timeout(PATIENCE);
    context
}

/// How the server refuses.
fn refusal<T>(outcome: Result<T, impl Display>) -> String {
    outcome.map_or_else(|error| error.to_string(), |_| "it went well".to_owned())
}

fn saw(what: impl Debug) {
    println!("{what:?}");
}

async fn state(stream: &Stream) -> (u64, u64, u64, usize) {
    let found = stream.get_info().await.unwrap().state;
    (found.messages, found.first_sequence, found.last_sequence, found.consumer_count)
}

async fn make(context: &Context, subject: &str, config: stream::Config) -> Stream {
    let config =
        stream::Config { name: "S".to_owned(), subjects: vec![subject.to_owned()], ..config };
    context.create_stream(config).await.unwrap()
}

async fn fill(context: &Context, subject: &str, count: usize) -> Vec<u64> {
    let mut sent = Vec::new();
    for at in 0..count {
        let ack = context.publish(subject.to_owned(), at.to_string().into()).await;
        sent.push(ack.unwrap().into_future());
    }
    try_join_all(sent).await.unwrap().iter().map(|ack| ack.sequence).collect()
}

async fn publish(context: &Context, headers: &[(&str, &str)]) -> Result<u64, String> {
    let mut all = HeaderMap::new();
    for (name, value) in headers {
        all.insert(*name, *value);
    }
    let sent = context.publish_with_headers("s.a", all, "1".into()).await;
    sent.unwrap().await.map(|ack| ack.sequence).map_err(|error| error.to_string())
}

fn sequence(message: &Message) -> u64 {
    message.info().unwrap().stream_sequence
}

async fn fetch(from: &consumer::Consumer<pull::Config>, count: usize) -> Vec<Message> {
    let batch = from.fetch().max_messages(count).expires(ACK_WAIT).messages().await.unwrap();
    batch.try_collect().await.unwrap()
}

async fn next(
    messages: &mut (impl futures::Stream<Item = Result<Message, impl Debug>> + Unpin),
) -> Message {
    timeout(PATIENCE, messages.next()).await.unwrap().unwrap().unwrap()
}

fn durable(name: &str) -> pull::Config {
    pull::Config { durable_name: Some(name.to_owned()), ..Default::default() }
}

pub(super) async fn behave(name: &str) -> bool {
    match name {
        "streams" => streams().await,
        "streams-pull" => pulls().await,
        "streams-push" => pushes().await,
        "streams-ordered" => ordered().await,
        "streams-acks" => acks().await,
        "streams-kill" => kill().await,
        "key-value" => key_value().await,
        "objects" => objects().await,
        _ => return false,
    }
    true
}

async fn streams() {
    let context = streams_of().await;
    let config = stream::Config {
        max_messages_per_subject: 3,
        allow_direct: true,
        allow_rollup: true,
        description: Some("one".to_owned()),
        ..Default::default()
    };
    let stream = make(&context, "s.*", config).await;
    let config = stream.get_info().await.unwrap().config;
    saw(stream::Config { metadata: Default::default(), ..config.clone() });
    saw(config.metadata.into_iter().collect::<BTreeMap<_, _>>());
    let other = stream::Config { name: "S".to_owned(), ..Default::default() };
    saw(refusal(context.create_stream(other).await));
    saw(refusal(context.get_stream("none").await));
    saw(publish(&context, &[("Nats-Msg-Id", "x")]).await);
    saw(publish(&context, &[("Nats-Msg-Id", "x")]).await);
    saw(publish(&context, &[("Nats-Expected-Last-Sequence", "7")]).await);
    saw(publish(&context, &[("Nats-Expected-Last-Subject-Sequence", "7")]).await);
    saw(publish(&context, &[("Nats-Expected-Stream", "T")]).await);
    saw(refusal(context.publish("nobody", "".into()).await.unwrap().await));
    saw(fill(&context, "s.b", 5).await);
    saw(state(&stream).await);
    let subjects = stream.info_with_subjects(">").await.unwrap();
    saw(subjects.try_collect::<BTreeSet<_>>().await.unwrap());
    for found in [
        stream.get_raw_message(6).await.unwrap(),
        stream.get_last_raw_message_by_subject("s.b").await.unwrap(),
        stream.direct_get(5).await.unwrap(),
        stream.direct_get_last_for_subject("s.a").await.unwrap(),
        stream.direct_get_next_for_subject("s.b", Some(2)).await.unwrap(),
    ] {
        saw((found.sequence, found.subject, found.payload));
    }
    saw((refusal(stream.get_raw_message(2).await), refusal(stream.direct_get(2).await)));
    saw((stream.delete_message(6).await.unwrap(), refusal(stream.delete_message(6).await)));
    saw(publish(&context, &[("Nats-Rollup", "all")]).await);
    saw(state(&stream).await);
    let subjects = vec!["s.*".to_owned(), "more".to_owned()];
    let config =
        stream::Config { name: "S".to_owned(), subjects, max_messages: 4, ..Default::default() };
    saw(context.update_stream(config).await.unwrap().config.max_messages);
    fill(&context, "more", 6).await;
    saw(state(&stream).await);
    saw(stream.purge().filter("more").keep(1).await.unwrap().purged);
    saw((stream.purge().await.unwrap().purged, state(&stream).await));
    others(&context).await;
}

async fn others(context: &Context) {
    let full = stream::Config {
        name: "M".to_owned(),
        subjects: vec!["m".to_owned()],
        storage: StorageType::Memory,
        max_messages: 2,
        discard: DiscardPolicy::New,
        ..Default::default()
    };
    context.create_stream(full).await.unwrap();
    fill(context, "m", 2).await;
    saw(refusal(context.publish("m", "".into()).await.unwrap().await));
    saw(context.stream_names().try_collect::<BTreeSet<_>>().await.unwrap());
    saw(context.stream_by_subject("m").await.unwrap());
    let account = context.query_account().await.unwrap();
    saw((account.streams, account.consumers, account.limits));
    saw(context.delete_stream("S").await.unwrap().success);
    saw(refusal(context.delete_stream("S").await));
}

async fn pulls() {
    let context = streams_of().await;
    let stream = make(&context, "s.>", stream::Config::default()).await;
    fill(&context, "s.a", 200).await;
    let consumer = stream.create_consumer(durable("D")).await.unwrap();
    let batch = fetch(&consumer, 70).await;
    for message in &batch {
        message.double_ack().await.unwrap();
    }
    saw((batch.len(), sequence(&batch[0]), sequence(&batch[69])));
    let batch = consumer.batch().max_bytes(800).expires(ACK_WAIT).messages().await.unwrap();
    let limited: Vec<_> = batch.filter_map(async |one| one.ok()).collect().await;
    saw((sequence(&limited[0]), limited.len() > 2));
    for message in &limited {
        message.double_ack().await.unwrap();
    }
    let mut messages = consumer.stream().max_messages_per_batch(30).messages().await.unwrap();
    for _ in limited.len()..130 {
        next(&mut messages).await.ack().await.unwrap();
    }
    let filters = vec!["s.b".to_owned(), "s.c.*".to_owned()];
    let filtered = pull::Config { filter_subjects: filters, ..durable("F") };
    let filtered = stream.create_consumer(filtered).await.unwrap();
    let waiting = filtered.batch().max_messages(3).expires(PATIENCE).heartbeat(ACK_WAIT / 4);
    let waiting = waiting.messages().await.unwrap();
    let publishing = async {
        sleep(ACK_WAIT / 2).await;
        for subject in ["s.b", "s.a", "s.c.d", "s.c", "s.b"] {
            fill(&context, subject, 1).await;
        }
    };
    let (got, ()) = tokio::join!(waiting.try_collect::<Vec<_>>(), publishing);
    let got = got.unwrap();
    saw(got.iter().map(sequence).collect::<Vec<_>>());
    let few = pull::Config { max_ack_pending: 2, ..durable("P") };
    let few = stream.create_consumer(few).await.unwrap();
    let held = fetch(&few, 3).await;
    saw((held.len(), fetch(&few, 1).await.len()));
    held[0].double_ack().await.unwrap();
    saw(sequence(&fetch(&few, 1).await[0]));
    saw(stream.consumer_names().try_collect::<BTreeSet<_>>().await.unwrap());
    saw(refusal(stream.create_consumer_strict(durable("D")).await));
    saw(stream.delete_consumer("F").await.unwrap().success);
    saw(refusal(stream.delete_consumer("F").await));
    saw(refusal(stream.get_consumer::<pull::Config>("F").await));
    work_queue(&context).await;
}

async fn work_queue(context: &Context) {
    let config = stream::Config {
        name: "W".to_owned(),
        subjects: vec!["w".to_owned()],
        retention: RetentionPolicy::WorkQueue,
        ..Default::default()
    };
    let queue = context.create_stream(config).await.unwrap();
    fill(context, "w", 3).await;
    let consumer = queue.create_consumer(durable("W1")).await.unwrap();
    saw(refusal(queue.create_consumer(durable("W2")).await));
    for message in fetch(&consumer, 3).await {
        message.double_ack().await.unwrap();
    }
    saw(state(&queue).await);
}

async fn pushes() {
    let context = streams_of().await;
    let stream = make(&context, "s.>", stream::Config::default()).await;
    fill(&context, "s.a", 100).await;
    let config = push::Config {
        durable_name: Some("D".to_owned()),
        deliver_subject: "to.d".to_owned(),
        flow_control: true,
        idle_heartbeat: ACK_WAIT,
        ..Default::default()
    };
    let mut consumer = stream.create_consumer(config.clone()).await.unwrap();
    let mut messages = consumer.messages().await.unwrap();
    for at in 1..=100 {
        let message = next(&mut messages).await;
        message.double_ack().await.unwrap();
        assert_eq!(sequence(&message), at);
    }
    let info = consumer.info().await.unwrap();
    saw((info.push_bound, info.num_ack_pending, info.ack_floor.stream_sequence));
    let by_start = DeliverPolicy::ByStartSequence { start_sequence: 98 };
    let mut all = Vec::new();
    for (at, deliver_policy) in
        [DeliverPolicy::Last, DeliverPolicy::New, by_start].into_iter().enumerate()
    {
        let (durable_name, deliver_subject) = (Some(format!("P{at}")), format!("to.{at}"));
        let config =
            push::Config { durable_name, deliver_subject, deliver_policy, ..config.clone() };
        let consumer = stream.create_consumer(config).await.unwrap();
        all.push(consumer.messages().await.unwrap());
    }
    fill(&context, "s.b", 1).await;
    for (messages, count) in all.iter_mut().zip([2, 1, 4]) {
        let mut got = Vec::new();
        for _ in 0..count {
            got.push(sequence(&next(messages).await));
        }
        saw(got);
    }
    let config = push::Config {
        durable_name: Some("H".to_owned()),
        deliver_subject: "to.h".to_owned(),
        deliver_group: Some("crew".to_owned()),
        flow_control: false,
        headers_only: true,
        ..config
    };
    let consumer = stream.create_consumer(config).await.unwrap();
    let message = next(&mut consumer.messages().await.unwrap()).await;
    saw((
        &message.payload,
        message.headers.as_ref().unwrap().get("Nats-Msg-Size").unwrap().as_str(),
    ));
}

async fn ordered() {
    let context = streams_of().await;
    let stream = make(&context, "s.>", stream::Config::default()).await;
    let acked = fill(&context, "s.a", 3000).await;
    saw(acked == (1..=3000).collect::<Vec<_>>());
    let pulled = stream.create_consumer(pull::OrderedConfig::default()).await.unwrap();
    let mut messages = pulled.messages().await.unwrap();
    for at in 1..=3000 {
        assert_eq!(sequence(&next(&mut messages).await), at);
    }
    let config = push::OrderedConfig { deliver_subject: "to.me".to_owned(), ..Default::default() };
    let pushed = stream.create_consumer(config).await.unwrap();
    let mut messages = pushed.messages().await.unwrap();
    for at in 1..=3000 {
        assert_eq!(sequence(&next(&mut messages).await), at);
    }
    saw("in order");
}

async fn acks() {
    let context = streams_of().await;
    let stream = make(&context, "s", stream::Config::default()).await;
    fill(&context, "s", 8).await;
    let config = pull::Config { ack_wait: ACK_WAIT, max_deliver: 3, ..durable("D") };
    let mut consumer = stream.create_consumer(config).await.unwrap();
    let by = fetch(&consumer, 7).await;
    by[0].ack().await.unwrap();
    by[1].double_ack().await.unwrap();
    by[2].ack_with(AckKind::Nak(None)).await.unwrap();
    by[3].ack_with(AckKind::Nak(Some(ACK_WAIT / 2))).await.unwrap();
    by[4].ack_with(AckKind::Term).await.unwrap();
    by[5].double_ack_with(AckKind::Term).await.unwrap();
    for _ in 0..8 {
        by[6].ack_with(AckKind::Progress).await.unwrap();
        sleep(ACK_WAIT / 6).await;
    }
    by[6].ack().await.unwrap();
    let mut counts = BTreeMap::new();
    while [3, 4, 8].iter().any(|one| counts.get(one) != Some(&3)) {
        for message in fetch(&consumer, 10).await {
            counts.insert(sequence(&message), message.info().unwrap().delivered);
        }
    }
    sleep(ACK_WAIT * 3 / 2).await;
    saw((counts, fetch(&consumer, 1).await.len()));
    let info = consumer.info().await.unwrap();
    saw((info.num_ack_pending, info.num_pending, info.delivered.stream_sequence));
    let every = pull::Config { ack_policy: AckPolicy::All, ..durable("A") };
    let mut every = stream.create_consumer(every).await.unwrap();
    fetch(&every, 6).await[5].double_ack().await.unwrap();
    let info = every.info().await.unwrap();
    saw((info.ack_floor.stream_sequence, info.num_ack_pending));
}

async fn kill() {
    let context = streams_of().await;
    let stream = make(&context, "s", stream::Config::default()).await;
    saw(fill(&context, "s", 500).await.len());
    stream.create_consumer(durable("D")).await.unwrap();
    ask("stop");
    ask("start");
    let stream = streams_of().await.get_stream("S").await.unwrap();
    saw(state(&stream).await);
    let consumer = stream.get_consumer("D").await.unwrap();
    let got: Vec<_> = fetch(&consumer, 500).await.iter().map(sequence).collect();
    saw(got == (1..=500).collect::<Vec<_>>());
}

fn entry(one: &kv::Entry) -> (String, String, u64, kv::Operation) {
    let value = String::from_utf8_lossy(&one.value).into_owned();
    (one.key.clone(), value, one.revision, one.operation)
}

/// The next that `watch` tells.
async fn told<T, E: Debug>(watch: &mut (impl futures::Stream<Item = Result<T, E>> + Unpin)) -> T {
    timeout(PATIENCE, watch.next()).await.unwrap().unwrap().unwrap()
}

/// Each change is read before the next is made: what the history has no room for any more is
/// not told to a watcher that comes late.
async fn key_value() {
    let (context, other) = (streams_of().await, streams_of().await);
    let config = kv::Config { bucket: "b".to_owned(), history: 3, ..Default::default() };
    let bucket = context.create_key_value(config).await.unwrap();
    let seen = other.get_key_value("b").await.unwrap();
    let mut watch = seen.watch_all().await.unwrap();
    for at in 0..5 {
        bucket.put("a.x", at.to_string().into()).await.unwrap();
        saw(entry(&told(&mut watch).await));
    }
    saw((
        bucket.create("new", "n".into()).await.unwrap(),
        refusal(bucket.create("new", "m".into()).await),
        entry(&told(&mut watch).await),
    ));
    saw((
        bucket.update("new", "o".into(), 6).await.unwrap(),
        refusal(bucket.update("new", "p".into(), 6).await),
        entry(&told(&mut watch).await),
    ));
    bucket.delete("a.x").await.unwrap();
    saw(entry(&told(&mut watch).await));
    bucket.put("gone", "?".into()).await.unwrap();
    saw(entry(&told(&mut watch).await));
    bucket.purge("gone").await.unwrap();
    saw(entry(&told(&mut watch).await));
    saw(bucket.create("a.x", "again".into()).await.unwrap());
    saw(entry(&told(&mut watch).await));
    saw(refusal(bucket.delete_expect_revision("a.x", Some(3)).await));
    for key in ["a.x", "gone"] {
        let history: Vec<_> = seen.history(key).await.unwrap().try_collect().await.unwrap();
        saw(history.iter().map(entry).collect::<Vec<_>>());
    }
    saw(seen.keys().await.unwrap().try_collect::<BTreeSet<_>>().await.unwrap());
    saw(seen.entry_for_revision("a.x", 5).await.unwrap().as_ref().map(entry));
    saw((seen.get("new").await.unwrap(), seen.get("gone").await.unwrap()));
    let status = seen.status().await.unwrap();
    saw((status.values(), status.history(), status.bucket()));
    saw(context.delete_key_value("b").await.unwrap().success);
    saw(refusal(context.get_key_value("b").await));
}

fn thing(one: object_store::ObjectInfo) -> (String, usize) {
    (one.name, one.size)
}

async fn objects() {
    let (context, other) = (streams_of().await, streams_of().await);
    let config = object_store::Config { bucket: "o".to_owned(), ..Default::default() };
    let mut bucket = context.create_object_store(config).await.unwrap();
    let seen = other.get_object_store("o").await.unwrap();
    let mut watch = seen.watch().await.unwrap();
    let bytes = env::var("OBJECT_MB").map_or(4, |mb| mb.parse::<u32>().unwrap()) << 20;
    let content: Vec<u8> = (0..bytes).map(|at| (at / 7 % 251) as u8).collect();
    let info = bucket.put("thing", &mut &content[..]).await.unwrap();
    saw(thing(told(&mut watch).await));
    saw((&info.name, info.size, info.chunks, &info.digest));
    let mut read = Vec::new();
    seen.get("thing").await.unwrap().read_to_end(&mut read).await.unwrap();
    saw(read == content);
    for content in ["first", "second"] {
        bucket.put("small", &mut content.as_bytes()).await.unwrap();
        saw(thing(told(&mut watch).await));
    }
    bucket.add_link("link", &info).await.unwrap();
    let meta = object_store::UpdateMetadata {
        name: "renamed".to_owned(),
        description: Some("new".to_owned()),
        ..Default::default()
    };
    bucket.update_metadata("small", meta).await.unwrap();
    let listed = seen.list().await.unwrap().map_ok(|one| (one.name, one.size, one.description));
    saw(listed.try_collect::<BTreeSet<_>>().await.unwrap());
    bucket.delete("thing").await.unwrap();
    saw((refusal(seen.get("none").await), seen.info("thing").await.unwrap().deleted));
    bucket.seal().await.unwrap();
    saw(refusal(bucket.put("late", &mut &b""[..]).await));
    context.delete_object_store("o").await.unwrap();
    saw(refusal(context.get_object_store("o").await));
}
