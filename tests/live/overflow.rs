//! Clients that miss messages because they do not read, rather than being cut.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::HashMap;

use crate::broker::wire::Wire;
use crate::broker::{Broker, http, is_nats_server, shard_counts};

/// Messages, far more than a client may have pending.
const MESSAGES: usize = 20_000;
const PAYLOAD_BYTES: usize = 1000;
const SUBJECTS: usize = 7;

/// What a client that read nothing while all was published got in the end: numbers of messages by
/// subject, in order.
fn read_late(policy: &str, shards: u32) -> (HashMap<String, Vec<usize>>, serde_json::Value) {
    let config = format!(
        "http: \"127.0.0.1:-1\"\nmax_pending: 2MB\n\
         overflow {{ \"telemetry.*\": {{policy: {policy}, max_pending: 64KB}} }}\n"
    );
    let broker = Broker::with_config(shards, &config);
    let mut slow = Wire::open_narrow(&broker);
    slow.send(b"CONNECT {\"verbose\":false,\"name\":\"slow\"}\r\nSUB telemetry.* 1\r\n");
    slow.sync();
    let mut publisher = Wire::connect(&broker);
    for first in (0..MESSAGES).step_by(100) {
        let mut wire = Vec::new();
        for number in first..first + 100 {
            let subject = number % SUBJECTS;
            wire.extend(format!("PUB telemetry.{subject} {PAYLOAD_BYTES}\r\n").bytes());
            wire.extend(format!("{number:0PAYLOAD_BYTES$}\r\n").bytes());
        }
        publisher.send(&wire);
    }
    publisher.sync();
    slow.send(b"PING\r\n");
    let mut got: HashMap<String, Vec<usize>> = HashMap::new();
    let mut count = 0;
    loop {
        let line = slow.line();
        if line == "PONG" {
            break;
        }
        let fields: Vec<_> = line.split(' ').collect();
        assert_eq!([fields[0], fields[2], fields[3]], ["MSG", "1", "1000"], "{line}");
        got.entry(fields[1].to_owned()).or_default().push(slow.line().parse().unwrap());
        count += 1;
    }
    let connz = http::json(&broker, "/connz");
    let conns = connz["connections"].as_array().unwrap();
    let conn = conns.iter().find(|conn| conn["name"] == "slow").expect("it was not cut").clone();
    assert_eq!(conns.iter().filter(|conn| conn.get("dropped").is_some()).count(), 1);
    let dropped = ["drop_newest", "drop_oldest", "conflate"].map(|way| {
        let (_, _, metrics) = http::get(&broker, "/metrics");
        let label = format!("dropped_by=\"{way}\"");
        let samples = metrics.lines().filter(|line| {
            line.starts_with("shardcast_overflow_dropped_messages_total{") && line.contains(&label)
        });
        let sum: u64 =
            samples.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum();
        assert_eq!(conn["dropped"][way], sum, "{way}");
        sum
    });
    assert_eq!(count + usize::try_from(dropped.iter().sum::<u64>()).unwrap(), MESSAGES);
    for (subject, numbers) in &got {
        assert!(numbers.is_sorted(), "{subject}: {numbers:?}");
    }
    (got, conn["dropped"].clone())
}

/// The last message that was published on each subject.
fn last_ones() -> Vec<usize> {
    (MESSAGES - SUBJECTS..MESSAGES).collect()
}

fn last_of(got: &HashMap<String, Vec<usize>>) -> Vec<usize> {
    let mut last: Vec<_> = got.values().map(|numbers| *numbers.last().unwrap()).collect();
    last.sort_unstable();
    last
}

#[test]
fn who_reads_late_gets_the_last_of_each_subject_that_is_conflated() {
    for shards in shards() {
        let (got, dropped) = read_late("conflate", shards);
        assert_eq!(last_of(&got), last_ones());
        assert_eq!((&dropped["drop_newest"], &dropped["drop_oldest"]), (&0.into(), &0.into()));
    }
}

#[test]
fn who_reads_late_gets_the_end_when_the_oldest_is_dropped() {
    for shards in shards() {
        let (got, dropped) = read_late("drop_oldest", shards);
        assert_eq!(last_of(&got), last_ones());
        assert_eq!((&dropped["drop_newest"], &dropped["conflate"]), (&0.into(), &0.into()));
    }
}

#[test]
fn who_reads_late_gets_the_beginning_when_the_newest_is_dropped() {
    for shards in shards() {
        let (got, dropped) = read_late("drop_newest", shards);
        let mut all: Vec<usize> = got.into_values().flatten().collect();
        all.sort_unstable();
        // What fits the kernel's buffers and ours is what came first.
        assert_eq!(all[..60], (0..60).collect::<Vec<_>>());
        assert_eq!((&dropped["drop_oldest"], &dropped["conflate"]), (&0.into(), &0.into()));
    }
}

fn shards() -> impl Iterator<Item = u32> {
    // nats-server does not know these policies.
    shard_counts().iter().copied().filter(|_| !is_nats_server())
}
