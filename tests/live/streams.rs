//! Streams, key-value and object stores as the official Rust client uses them.

use std::collections::BTreeSet;
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, pull, push};
use async_nats::jetstream::{self, AckKind, Context, kv, object_store, stream};
use futures::future::try_join_all;
use futures::{StreamExt, TryStreamExt};
use tokio::io::AsyncReadExt;

use crate::broker::{Broker, shard_counts};

/// A broker with JetStream in a directory of its own, for each number of shards.
async fn on_each_store(test: impl AsyncFn(&mut Broker)) {
    for &shards in shard_counts() {
        println!("with {shards} shards");
        let store = tempfile::tempdir().expect("a scratch directory");
        let store = store.path().display().to_string();
        let mut broker = Broker::start(shards, &["-js", "-sd", &store]);
        let ended = tokio::time::timeout(Duration::from_secs(120), test(&mut broker)).await;
        ended.expect("the test ends");
    }
}

async fn streams_of(broker: &Broker) -> Context {
    jetstream::new(async_nats::connect(broker.url()).await.expect("the broker takes clients"))
}

async fn make(context: &Context, name: &str, subject: &str) -> stream::Stream {
    let config = stream::Config {
        name: name.to_owned(),
        subjects: vec![subject.to_owned()],
        ..Default::default()
    };
    context.create_stream(config).await.expect("the stream is made")
}

/// Publishes `count` messages, all of them outstanding at once. Returns their sequences.
async fn publish(context: &Context, subject: &str, count: usize) -> Vec<u64> {
    let mut sent = Vec::new();
    for number in 0..count {
        let ack = context.publish(subject.to_owned(), number.to_string().into()).await;
        sent.push(ack.expect("the message is sent").into_future());
    }
    let acks = try_join_all(sent).await.expect("each message is acknowledged");
    acks.iter().map(|ack| ack.sequence).collect()
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_a_kill_and_what_was_confirmed_comes_no_more() {
    on_each_store(async |broker| {
        let context = streams_of(broker).await;
        let stream = make(&context, "S", "s.>").await;
        let acked = publish(&context, "s.one", 500).await;
        assert_eq!(acked, (1..=500).collect::<Vec<u64>>());
        let config = pull::Config {
            durable_name: Some("C".to_owned()),
            ack_policy: AckPolicy::Explicit,
            ack_wait: Duration::from_millis(500),
            ..Default::default()
        };
        let consumer = stream.create_consumer(config).await.unwrap();
        let messages = consumer.fetch().max_messages(200).messages().await.unwrap();
        let messages: Vec<_> = messages.try_collect().await.unwrap();
        assert_eq!(messages.len(), 200);
        let confirmed: Vec<u64> =
            messages[..100].iter().map(|message| message.info().unwrap().stream_sequence).collect();
        for message in &messages[..100] {
            message.double_ack().await.expect("the acknowledgement is confirmed");
        }
        broker.restart();
        let context = streams_of(broker).await;
        let mut stream = context.get_stream("S").await.unwrap();
        let state = &stream.info().await.unwrap().state;
        assert_eq!((state.messages, state.first_sequence, state.last_sequence), (500, 1, 500));
        for sequence in [1, 250, 500] {
            let message = stream.get_raw_message(sequence).await.unwrap();
            assert_eq!(message.payload, (sequence - 1).to_string());
        }
        let consumer = stream.get_consumer::<pull::Config>("C").await.unwrap();
        let mut left: BTreeSet<u64> = (1..=500).filter(|one| !confirmed.contains(one)).collect();
        while !left.is_empty() {
            let mut messages = consumer.fetch().max_messages(500).messages().await.unwrap();
            while let Some(message) = messages.next().await {
                let message = message.unwrap();
                let sequence = message.info().unwrap().stream_sequence;
                assert!(!confirmed.contains(&sequence), "{sequence} was confirmed");
                left.remove(&sequence);
                message.ack().await.unwrap();
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_message_that_is_refused_for_now_or_for_good_comes_again_or_no_more() {
    on_each_store(async |broker| {
        let context = streams_of(broker).await;
        let stream = make(&context, "S", "s.>").await;
        publish(&context, "s.one", 2).await;
        let config = pull::Config { durable_name: Some("C".to_owned()), ..Default::default() };
        let consumer = stream.create_consumer(config).await.unwrap();
        let mut messages = consumer.messages().await.unwrap();
        let first = messages.next().await.unwrap().unwrap();
        first.ack_with(AckKind::Nak(None)).await.unwrap();
        let second = messages.next().await.unwrap().unwrap();
        second.ack_with(AckKind::Term).await.unwrap();
        let again = messages.next().await.unwrap().unwrap();
        let info = again.info().unwrap();
        assert_eq!((info.stream_sequence, info.delivered), (1, 2));
        again.double_ack().await.unwrap();
        let mut consumer = stream.get_consumer::<pull::Config>("C").await.unwrap();
        let info = consumer.info().await.unwrap();
        assert_eq!((info.num_ack_pending, info.num_pending), (0, 0));
    })
    .await;
}

#[tokio::test]
async fn who_listens_to_a_pattern_of_subjects_takes_nothing_from_a_pushed_consumer() {
    on_each_store(async |broker| {
        let context = streams_of(broker).await;
        let client = async_nats::connect(broker.url()).await.unwrap();
        let stream = make(&context, "S", "s.>").await;
        publish(&context, "s.one", 1).await;
        let mut listener = client.subscribe("to.>").await.unwrap();
        client.flush().await.unwrap();
        let config = push::Config {
            durable_name: Some("P".to_owned()),
            deliver_subject: "to.me".to_owned(),
            ..Default::default()
        };
        let mut consumer = stream.create_consumer(config).await.unwrap();
        let info = consumer.info().await.unwrap();
        assert_eq!((info.push_bound, info.delivered.stream_sequence), (false, 0));
        let mut receiver = client.subscribe("to.me").await.unwrap();
        assert_eq!(&*receiver.next().await.unwrap().subject, "s.one");
        assert_eq!(&*listener.next().await.unwrap().subject, "s.one", "it sees what is delivered");
        assert!(consumer.info().await.unwrap().push_bound);
    })
    .await;
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_told_before_that_there_is_no_such_stream() {
    on_each_store(async |broker| {
        let client = async_nats::connect(broker.url()).await.unwrap();
        for (subject, body, code) in [
            ("CONSUMER.CREATE.S.C", "{", 10025),
            ("CONSUMER.CREATE.S.C", r#"{"stream_name":"T"}"#, 10056),
            ("CONSUMER.CREATE.S", r#"{"stream_name":"S","config":{"durable_name":"C"}}"#, 10020),
            ("CONSUMER.DURABLE.CREATE.S.C", r#"{"stream_name":"S"}"#, 10018),
            ("CONSUMER.PAUSE.S.C", r#"{"pause_until":1}"#, 10025),
            ("CONSUMER.UNPIN.S.C", r#"{"group":"a b"}"#, 10162),
            ("STREAM.MSG.GET.S", r#"{"seq":1,"last_by_subj":"s"}"#, 10003),
            ("STREAM.PURGE.S", r#"{"seq":1,"keep":1}"#, 10003),
            ("STREAM.UPDATE.S", r#"{"name":"S","max_age":-1}"#, 10052),
            ("STREAM.UPDATE.S", r#"{"name":"T"}"#, 10056),
            ("STREAM.UPDATE.S", r#"{"name":"S"}"#, 10059),
            ("CONSUMER.CREATE.S.C", r#"{"stream_name":"S"}"#, 10059),
            ("STREAM.PURGE.S", "", 10059),
        ] {
            let answer = client.request(format!("$JS.API.{subject}"), body.into()).await.unwrap();
            let answer: serde_json::Value = serde_json::from_slice(&answer.payload).unwrap();
            assert_eq!(answer["error"]["err_code"], code, "{subject} {body}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_bucket_has_a_history_and_tells_its_watchers() {
    on_each_store(async |broker| {
        let (one, other) = (streams_of(broker).await, streams_of(broker).await);
        let config = kv::Config { bucket: "b".to_owned(), history: 5, ..Default::default() };
        let bucket = one.create_key_value(config).await.unwrap();
        let seen = other.get_key_value("b").await.unwrap();
        let mut watch = seen.watch_all().await.unwrap();
        for number in 0..7 {
            bucket.put("key", number.to_string().into()).await.unwrap();
        }
        bucket.delete("key").await.unwrap();
        for number in 0..7 {
            let entry = watch.next().await.unwrap().unwrap();
            assert_eq!((&*entry.key, &entry.value[..]), ("key", number.to_string().as_bytes()));
        }
        let entry = watch.next().await.unwrap().unwrap();
        assert_eq!(entry.operation, kv::Operation::Delete);
        let history: Vec<_> = seen.history("key").await.unwrap().try_collect().await.unwrap();
        let revisions: Vec<u64> = history.iter().map(|entry| entry.revision).collect();
        assert_eq!(revisions, [4, 5, 6, 7, 8]);
        bucket.create("key", "new".into()).await.unwrap();
        assert!(bucket.update("key", "wrong".into(), 3).await.is_err());
        bucket.update("key", "right".into(), 9).await.unwrap();
        assert_eq!(seen.get("key").await.unwrap().unwrap(), "right");
    })
    .await;
}

#[tokio::test]
async fn an_object_of_many_chunks_is_read_back_by_another_client_after_a_kill() {
    on_each_store(async |broker| {
        let context = streams_of(broker).await;
        let config = object_store::Config { bucket: "o".to_owned(), ..Default::default() };
        let bucket = context.create_object_store(config).await.unwrap();
        let content: Vec<u8> = (0..8 << 20).map(|at: u32| (at / 7 % 251) as u8).collect();
        bucket.put("thing", &mut &content[..]).await.unwrap();
        broker.restart();
        let bucket = streams_of(broker).await.get_object_store("o").await.unwrap();
        let mut object = bucket.get("thing").await.unwrap();
        let mut read = Vec::new();
        object.read_to_end(&mut read).await.unwrap();
        assert!(read == content, "{} bytes of {}", read.len(), content.len());
    })
    .await;
}

#[tokio::test]
async fn publishers_of_more_than_a_commit_takes_wait_and_lose_nothing() {
    on_each_store(async |broker| {
        let context = streams_of(broker).await;
        let mut stream = make(&context, "S", "s.>").await;
        let mut sent = Vec::new();
        for _ in 0..24 {
            let ack = context.publish("s.big", vec![7; 1 << 20].into()).await.unwrap();
            sent.push(ack.into_future());
        }
        let acks = try_join_all(sent).await.unwrap();
        let sequences: Vec<u64> = acks.iter().map(|ack| ack.sequence).collect();
        assert_eq!(sequences, (1..=24).collect::<Vec<u64>>());
        assert_eq!(stream.info().await.unwrap().state.messages, 24);
    })
    .await;
}
