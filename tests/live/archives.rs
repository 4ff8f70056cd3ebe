//! Archives of streams move between servers: this one, nats-server, and the nats-server of 2.9,
//! whose archives have an older form.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use async_nats::Client;
use futures::StreamExt;
use serde_json::{Value, json};

use crate::broker::{Broker, has_original, is_nats_server, old_original, shard_counts};

/// Messages of the stream that moves, and some that are deleted before.
const MESSAGES: u64 = 3000;
const DELETED: [u64; 4] = [1, 2, 77, MESSAGES];

async fn ask(client: &Client, subject: &str, body: Value) -> Value {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let answer = client.request(subject.to_owned(), body.into()).await.unwrap();
    serde_json::from_slice(&answer.payload).unwrap()
}

/// Makes a stream with a consumer that has come some way.
async fn fill(client: &Client) {
    let config = json!({"name": "S", "subjects": ["s.>"]});
    ask(client, "$JS.API.STREAM.CREATE.S", config).await;
    for number in 1..=MESSAGES {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Number", number.to_string().as_str());
        let subject = format!("s.{}", number % 5);
        let body = format!("{number} ").repeat(1 + usize::try_from(number % 70).unwrap());
        if number % 3 == 0 {
            client.publish_with_headers(subject, headers, body.into()).await.unwrap();
        } else {
            client.publish(subject, body.into()).await.unwrap();
        }
    }
    client.flush().await.unwrap();
    while state(client).await["last_seq"] != MESSAGES {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for seq in DELETED {
        ask(client, "$JS.API.STREAM.MSG.DELETE.S", json!({"seq": seq})).await;
    }
    let config = json!({"name": "C", "durable_name": "C", "ack_policy": "explicit",
        "ack_wait": 600_000_000_000_i64});
    let request = json!({"stream_name": "S", "config": config});
    ask(client, "$JS.API.CONSUMER.CREATE.S.C", request).await;
    let mut inbox = client.subscribe("taken").await.unwrap();
    let next = "$JS.API.CONSUMER.MSG.NEXT.S.C";
    client.publish_with_reply(next, "taken", "10".into()).await.unwrap();
    for number in 0..10 {
        let message = inbox.next().await.unwrap();
        if number < 4 || number == 7 {
            client.request(message.reply.unwrap(), "+ACK".into()).await.unwrap();
        }
    }
}

async fn state(client: &Client) -> Value {
    let request = json!({"deleted_details": true, "subjects_filter": ">"});
    let mut info = ask(client, "$JS.API.STREAM.INFO.S", request).await;
    // That of a message that was deleted, or of the last one that is left.
    info["state"]["last_ts"].take();
    info["state"].clone()
}

/// All that is to be the same: messages, and how far the consumer has come.
async fn contents(client: &Client) -> Vec<Value> {
    let mut all = vec![state(client).await];
    let consumer = ask(client, "$JS.API.CONSUMER.INFO.S.C", Value::Null).await;
    for (part, field) in
        [("delivered", "consumer_seq"), ("delivered", "stream_seq"), ("ack_floor", "stream_seq")]
    {
        all.push(consumer[part][field].clone());
    }
    all.extend(["num_ack_pending", "num_pending"].map(|field| consumer[field].clone()));
    for seq in (1..=MESSAGES).step_by(7) {
        let got = ask(client, "$JS.API.STREAM.MSG.GET.S", json!({"seq": seq})).await;
        all.push(got["message"].clone());
    }
    all
}

async fn take_archive(client: &Client) -> Vec<Vec<u8>> {
    let mut inbox = client.subscribe("archive").await.unwrap();
    let request = json!({"deliver_subject": "archive", "chunk_size": 4096, "window_size": 8192});
    ask(client, "$JS.API.STREAM.SNAPSHOT.S", request).await;
    let mut chunks = Vec::new();
    while let Some(chunk) = inbox.next().await.filter(|chunk| !chunk.payload.is_empty()) {
        if let Some(reply) = chunk.reply {
            client.publish(reply, "".into()).await.unwrap();
        }
        chunks.push(chunk.payload.to_vec());
    }
    chunks
}

async fn put_archive(client: &Client, chunks: &[Vec<u8>]) {
    let request = json!({"config": {"name": "S", "subjects": ["s.>"]}, "state": {}});
    let begun = ask(client, "$JS.API.STREAM.RESTORE.S", request).await;
    let to = begun["deliver_subject"].as_str().unwrap().to_owned();
    for chunk in chunks {
        let answer = client.request(to.clone(), chunk.clone().into()).await.unwrap();
        assert!(answer.payload.is_empty(), "{:?}", answer.payload);
    }
    let end = client.request(to, "".into()).await.unwrap();
    let end: Value = serde_json::from_slice(&end.payload).unwrap();
    assert!(end["error"].is_null(), "{end}");
}

fn config(store: &tempfile::TempDir) -> String {
    format!("jetstream {{ store_dir: {:?} }}", store.path())
}

async fn client_of(broker: &Broker) -> Client {
    async_nats::connect(broker.url()).await.unwrap()
}

/// Moves a stream from one server to another.
async fn moves(from: &Broker, to: &Broker, what: &str) {
    let (from, to) = (client_of(from).await, client_of(to).await);
    fill(&from).await;
    let before = contents(&from).await;
    put_archive(&to, &take_archive(&from).await).await;
    let after = contents(&to).await;
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(before, after, "{what}");
    }
}

#[tokio::test]
async fn streams_move_to_nats_server_and_back_as_archives() {
    for &shards in shard_counts() {
        let stores = [(); 4].map(|()| tempfile::tempdir().unwrap());
        let ours = |at: usize| Broker::with_config(shards, &config(&stores[at]));
        moves(&ours(0), &ours(1), "from here to here").await;
        if has_original() && !is_nats_server() {
            let original = Broker::original(&config(&stores[2]));
            moves(&original, &ours(3), "from nats-server to here").await;
            let store = tempfile::tempdir().unwrap();
            let other = Broker::original(&config(&store));
            let here = tempfile::tempdir().unwrap();
            let here = Broker::with_config(shards, &config(&here));
            moves(&here, &other, "from here to nats-server").await;
        }
    }
}

#[tokio::test]
async fn an_archive_of_an_older_nats_server_is_taken() {
    let Some(program) = old_original().filter(|_| !is_nats_server()) else { return };
    let stores = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let old = Broker::of_program(&program, &config(&stores[0]));
    let ours = Broker::with_config(2, &config(&stores[1]));
    moves(&old, &ours, "from nats-server 2.9 to here").await;
}
