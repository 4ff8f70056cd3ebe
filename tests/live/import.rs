//! `shardcast import`: a nats-server writes a store and ends; what it had is here afterwards.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;
use std::process::{Command, Output};

use async_nats::Client;
use futures::StreamExt;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::broker::{Broker, has_original, is_nats_server, server_command};

const MESSAGES: u64 = 500;

async fn ask(client: &Client, subject: &str, body: Value) -> Value {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let answer = client.request(subject.to_owned(), body.into()).await.unwrap();
    serde_json::from_slice(&answer.payload).unwrap()
}

async fn create(client: &Client, config: Value) {
    let subject = format!("$JS.API.STREAM.CREATE.{}", config["name"].as_str().unwrap());
    let made = ask(client, &subject, config).await;
    assert!(made["error"].is_null(), "{made}");
}

async fn publish(client: &Client, subject: String, number: u64) {
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Number", number.to_string().as_str());
    let body = format!("{number} ").repeat(1 + usize::try_from(number % 70).unwrap());
    let request = async_nats::Request::new().payload(body.into());
    let request = if number.is_multiple_of(3) { request.headers(headers) } else { request };
    let answer = client.send_request(subject, request).await.unwrap();
    let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
    assert!(answer["error"].is_null(), "{answer}");
}

/// Streams of several kinds, and a consumer that has come some way.
async fn fill(client: &Client) {
    create(client, json!({"name": "S", "subjects": ["s.>"], "allow_direct": true})).await;
    create(client, json!({"name": "Z", "subjects": ["z.>"], "compression": "s2"})).await;
    create(client, json!({"name": "K", "subjects": ["k.>"], "max_msgs_per_subject": 2})).await;
    create(client, json!({"name": "Q", "subjects": ["q.>"], "retention": "workqueue"})).await;
    create(client, json!({"name": "E", "subjects": ["e.>"]})).await;
    for number in 1..=MESSAGES {
        for stream in ["s", "z", "k"] {
            publish(client, format!("{stream}.{}", number % 5), number).await;
        }
        if number <= 20 {
            publish(client, "q.1".to_owned(), number).await;
            publish(client, "e.1".to_owned(), number).await;
        }
    }
    for seq in [1, 2, 77, MESSAGES] {
        ask(client, "$JS.API.STREAM.MSG.DELETE.S", json!({"seq": seq})).await;
    }
    ask(client, "$JS.API.STREAM.PURGE.Z", json!({"filter": "z.3"})).await;
    ask(client, "$JS.API.STREAM.PURGE.E", Value::Null).await;
    for stream in ["S", "Q"] {
        let config = json!({"name": "C", "durable_name": "C", "ack_policy": "explicit",
            "ack_wait": 600_000_000_000_i64});
        let request = json!({"stream_name": stream, "config": config});
        ask(client, &format!("$JS.API.CONSUMER.CREATE.{stream}.C"), request).await;
        let mut inbox = client.subscribe(format!("taken.{stream}")).await.unwrap();
        let next = format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.C");
        client.publish_with_reply(next, format!("taken.{stream}"), "10".into()).await.unwrap();
        for number in 0..10 {
            let message = inbox.next().await.unwrap();
            if number < 4 || number == 7 {
                client.request(message.reply.unwrap(), "+ACK".into()).await.unwrap();
            }
        }
    }
}

/// All that is to be the same, stream by stream.
async fn contents(client: &Client) -> Vec<(String, Value)> {
    let mut all = Vec::new();
    for stream in ["S", "Z", "K", "Q", "E"] {
        let request = json!({"deleted_details": true, "subjects_filter": ">"});
        let mut info = ask(client, &format!("$JS.API.STREAM.INFO.{stream}"), request).await;
        assert!(info["error"].is_null(), "{info}");
        // That of a message that was deleted, or of the last one that is left.
        info["state"]["last_ts"].take();
        info["config"]["metadata"].take();
        for part in ["config", "created", "state"] {
            all.push((format!("{stream} {part}"), info[part].clone()));
        }
        for seq in 1..=MESSAGES {
            let get = format!("$JS.API.STREAM.MSG.GET.{stream}");
            let got = ask(client, &get, json!({"seq": seq})).await;
            all.push((format!("{stream} {seq}"), got["message"].clone()));
        }
    }
    for stream in ["S", "Q"] {
        let info = format!("$JS.API.CONSUMER.INFO.{stream}.C");
        let info = ask(client, &info, Value::Null).await;
        for part in ["delivered", "ack_floor"] {
            for field in ["consumer_seq", "stream_seq"] {
                all.push((format!("{stream}.C {part} {field}"), info[part][field].clone()));
            }
        }
        for field in ["num_ack_pending", "num_redelivered", "num_pending"] {
            all.push((format!("{stream}.C {field}"), info[field].clone()));
        }
    }
    all
}

/// Ends a server as its operator does.
fn end(server: &mut Broker) {
    server.signal(Signal::TERM);
    server.wait_for_exit();
}

fn config(store: &Path) -> String {
    format!("jetstream {{ store_dir: {store:?} }}")
}

fn import(from: &Path, to: &Path) -> Output {
    let mut command = Command::new(server_command());
    command.arg("import").arg(from).arg("-sd").arg(to).output().unwrap()
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

/// Fills the store of `original`, ends it, and imports it.
async fn moves(mut original: Broker, from: &Path) {
    let client = async_nats::connect(original.url()).await.unwrap();
    fill(&client).await;
    let before = contents(&client).await;
    drop(client);
    end(&mut original);
    let to = tempfile::tempdir().unwrap();
    let done = import(from, to.path());
    assert!(done.status.success(), "{}", told(&done));
    assert!(told(&done).contains("$G > S: 496 messages, 1 consumers"), "{}", told(&done));
    let ours = Broker::with_config(2, &config(to.path()));
    let client = async_nats::connect(ours.url()).await.unwrap();
    let after = contents(&client).await;
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(before, after);
    }
    drop(ours);
    let again = import(from, to.path());
    assert!(!again.status.success());
    assert!(
        told(&again).contains("$G > S: not imported: a stream of this name"),
        "{}",
        told(&again)
    );
}

#[tokio::test]
async fn streams_of_a_stopped_nats_server_are_imported_with_their_consumers() {
    if !has_original() || is_nats_server() {
        return;
    }
    let from = tempfile::tempdir().unwrap();
    moves(Broker::original(&config(from.path())), from.path()).await;
}

#[tokio::test]
async fn streams_of_an_encrypted_store_are_refused_with_the_way_out() {
    if !has_original() || is_nats_server() {
        return;
    }
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let config = format!("jetstream {{ store_dir: {:?}, key: k }}", from.path());
    let mut original = Broker::original(&config);
    let client = async_nats::connect(original.url()).await.unwrap();
    create(&client, json!({"name": "S"})).await;
    end(&mut original);
    let done = import(from.path(), to.path());
    assert!(!done.status.success());
    assert!(told(&done).contains("is encrypted; start its nats-server with prev_key"));
    let nothing = import(to.path(), to.path());
    assert!(told(&nothing).contains("has no streams of a nats-server"), "{}", told(&nothing));
}
