//! What must not show of shards: on which of them somebody is.
//!
//! Whoever asks gets an answer or is told that there is nobody, before the PONG of a later PING;
//! and what the server answers itself reaches inboxes that were just made.

use std::time::Duration;

use async_nats::{Client, ConnectOptions};
use futures::StreamExt;

use crate::broker::members::{Kind, member};
use crate::broker::wire::Wire;
use crate::broker::{Broker, is_nats_server, shard_counts};

const CONFIG: &str = "
    accounts {
        A {
            users [
                {user: a, password: p}
                {user: deaf, password: p, permissions: {subscribe: {deny: \"secret.>\"}}}
            ]
            exports [{service: \"svc.*\"}]
        }
        B {
            users [{user: b, password: p}]
            imports [{service: {account: A, subject: \"svc.*\"}}]
        }
    }
";

fn log_in(broker: &Broker, user: &str) -> Wire {
    let mut wire = Wire::open(broker);
    let connect = format!(
        "CONNECT {{\"verbose\":false,\"pedantic\":false,\"headers\":true,\"no_responders\":true,\
         \"user\":\"{user}\",\"pass\":\"p\"}}\r\n"
    );
    wire.send(connect.as_bytes());
    wire.sync();
    wire
}

/// The status for a request that nobody gets.
fn refusal(inbox: &str, subject: &str) -> String {
    let status = format!("NATS/1.0 503\r\nNats-Subject: {subject}\r\n\r\n");
    format!("HMSG {inbox} 1 {0} {0}\r\n{status}\r\n", status.len())
}

/// For each number of shards, connections that ask, on each shard at least one: with their inbox.
fn askers(broker: &Broker, shards: u32, user: &str) -> Vec<(Wire, String)> {
    let asker = |number| (log_in(broker, user), format!("inbox.{user}.{number}"));
    (0..2 * shards).map(asker).collect()
}

#[test]
fn a_request_whose_only_subscriber_may_not_get_it_is_refused_before_the_next_pong() {
    for &shards in shard_counts() {
        let broker = Broker::with_config(shards, CONFIG);
        let mut deaf = log_in(&broker, "deaf");
        deaf.send(b"SUB *.x 8\r\n");
        deaf.sync();
        for (mut asker, inbox) in askers(&broker, shards, "a") {
            let ask = format!("PUB secret.x {inbox} 0\r\n\r\nPING\r\n");
            asker.send(format!("SUB {inbox} 1\r\n{ask}{ask}").as_bytes());
            let answer = format!("{}PONG\r\n", refusal(&inbox, "secret.x"));
            asker.expect(format!("{answer}{answer}").as_bytes());
        }
        deaf.sync();
    }
}

#[test]
fn a_request_behind_the_last_that_a_subscription_takes_is_refused() {
    for &shards in shard_counts() {
        let broker = Broker::with_config(shards, CONFIG);
        let mut subscriber = log_in(&broker, "a");
        let subscriptions =
            ["a", "a"].into_iter().zip(["", " group"]).chain([("b", ""), ("b", " group")]);
        for (user, queue) in subscriptions {
            for (mut asker, inbox) in askers(&broker, shards, user) {
                let subject = format!("svc.{}", inbox.replace('.', "-"));
                let subscribe = format!("SUB {subject}{queue} 7\r\nUNSUB 7 1\r\n");
                subscriber.send(subscribe.as_bytes());
                subscriber.sync();
                let ask = format!("PUB {subject} {inbox} 0\r\n\r\n");
                asker.send(format!("SUB {inbox} 1\r\n{ask}{ask}PING\r\n").as_bytes());
                asker.expect(format!("{}PONG\r\n", refusal(&inbox, &subject)).as_bytes());
                let message = subscriber.line();
                let is_it = message.starts_with(&format!("MSG {subject} 7 "))
                    || message.starts_with(&format!("HMSG {subject} 7 "));
                assert!(is_it, "{message}");
                while !subscriber.line().is_empty() {}
                if user == "b" {
                    // Behind the header, which tells who asks, is the payload.
                    subscriber.expect(b"\r\n");
                }
            }
        }
    }
}

#[test]
fn each_of_very_many_requests_is_delivered_or_refused() {
    const PAIRS: usize = 2_000;
    for &shards in shard_counts() {
        let broker = Broker::with_config(shards, CONFIG);
        let mut deaf = log_in(&broker, "deaf");
        deaf.send(b"SUB *.x 8\r\n");
        deaf.sync();
        for (mut asker, inbox) in askers(&broker, shards, "a") {
            let one = |subject: &str| format!("PUB {subject} {inbox} 0\r\n\r\n");
            let pair = one("open.x") + &one("secret.x") + &one("secret.x");
            asker.send(format!("SUB {inbox} 1\r\n{}PING\r\n", pair.repeat(PAIRS)).as_bytes());
            let refused = refusal(&inbox, "secret.x").repeat(2 * PAIRS);
            asker.expect(format!("{refused}PONG\r\n").as_bytes());
            let delivered = format!("MSG open.x 8 {inbox} 0\r\n\r\n").repeat(PAIRS);
            deaf.expect(delivered.as_bytes());
        }
    }
}

const SYSTEM: &str = "
    accounts { SYS { users [{user: sys, password: p}] } }
    system_account: SYS
";

/// Servers that answer a request to all.
async fn count_answers(client: &Client) -> usize {
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.expect("connected");
    let subject = "$SYS.REQ.SERVER.PING.IDZ";
    client.publish_with_reply(subject, inbox, "".into()).await.expect("connected");
    let mut count = 0;
    while let Ok(Some(_)) = tokio::time::timeout(Duration::from_millis(200), answers.next()).await {
        count += 1;
    }
    count
}

#[tokio::test]
async fn all_servers_answer_to_an_inbox_that_was_just_made() {
    const ROUNDS: usize = 20;
    for &shards in shard_counts() {
        let kind = if is_nats_server() { Kind::Original } else { Kind::Ours(shards) };
        let mut members: Vec<Broker> = Vec::new();
        for name in ["one", "two", "three"] {
            let new = member(kind, name, &mut members.iter_mut().collect::<Vec<_>>(), SYSTEM);
            members.push(new);
        }
        for broker in &members {
            let options = ConnectOptions::with_user_and_password("sys".into(), "p".into());
            let client = options.connect(broker.url()).await.expect("the password is right");
            while count_answers(&client).await < members.len() {}
        }
        for broker in &members {
            let mut wires: Vec<Wire> = (0..shards).map(|_| log_in(broker, "sys")).collect();
            for round in 0..ROUNDS * wires.len() {
                let count = wires.len();
                let wire = &mut wires[round % count];
                let inbox = format!("fresh.{}.{round}", broker.port());
                let ask =
                    format!("SUB {inbox} 1\r\nPUB $SYS.REQ.SERVER.PING.IDZ {inbox} 0\r\n\r\n");
                wire.send(ask.as_bytes());
                for _ in &members {
                    let message = wire.line();
                    assert!(message.starts_with(&format!("MSG {inbox} 1 ")), "{message}");
                    assert!(wire.line().contains("\"id\""));
                }
                wire.send(b"UNSUB 1\r\n");
                wire.sync();
            }
        }
    }
}

/// Connections of which each other one is on another shard.
fn spread(shards: u32) -> (Broker, Vec<Wire>) {
    let broker = Broker::start(shards, &[]);
    let wires = (0..2 * shards.max(2)).map(|_| Wire::connect(&broker)).collect();
    (broker, wires)
}

const MANY: usize = 200;
const ROUNDS_OF_TWO: usize = 200;

/// Each of `wires` with each other one, a number of times.
fn for_each_pair(wires: &mut [Wire], mut act: impl FnMut(usize, &mut Wire, &mut Wire)) {
    let count = wires.len();
    for round in 0..ROUNDS_OF_TWO {
        let (one, other) = (round % count, (round + 1 + round / count % (count - 1)) % count);
        let [one, other] = wires.get_disjoint_mut([one, other]).expect("they differ");
        act(round, one, other);
    }
}

/// How many messages without payload come before the next PONG.
fn messages_until_pong(wire: &mut Wire) -> usize {
    let came = String::from_utf8_lossy(&wire.until_pong_or_end()).into_owned();
    came.lines().filter(|line| line.starts_with("MSG ")).count()
}

#[test]
fn who_has_got_its_own_message_is_subscribed_everywhere() {
    for &shards in shard_counts() {
        let (_broker, mut wires) = spread(shards);
        for_each_pair(&mut wires, |round, subscriber, publisher| {
            let own = format!("SUB flood.{round} 1\r\nSUB own 2\r\nPUB own 0\r\n\r\n");
            subscriber.send(own.as_bytes());
            subscriber.expect(b"MSG own 2 0\r\n\r\n");
            publisher.send(format!("PUB flood.{round} 0\r\n\r\n").repeat(MANY).as_bytes());
            publisher.sync();
            subscriber.send(b"UNSUB 1\r\nUNSUB 2\r\nPING\r\n");
            assert_eq!(messages_until_pong(subscriber), MANY, "{shards} shards, round {round}");
        });
    }
}

#[test]
fn who_has_got_its_own_message_has_had_delivered_what_it_published_before() {
    for &shards in shard_counts() {
        let (_broker, mut wires) = spread(shards);
        for_each_pair(&mut wires, |round, subscriber, publisher| {
            subscriber.send(format!("SUB flood.{round} 1\r\n").as_bytes());
            subscriber.sync();
            let flood = format!("PUB flood.{round} 0\r\n\r\n").repeat(MANY);
            publisher.send(format!("SUB own 2\r\n{flood}PUB own 0\r\n\r\n").as_bytes());
            publisher.expect(b"MSG own 2 0\r\n\r\n");
            subscriber.send(b"UNSUB 1\r\nPING\r\n");
            assert_eq!(messages_until_pong(subscriber), MANY, "{shards} shards, round {round}");
            publisher.send(b"UNSUB 2\r\n");
            publisher.sync();
        });
    }
}

#[test]
fn who_hears_of_a_subscription_from_a_third_may_rely_on_it() {
    for &shards in shard_counts() {
        let (_broker, mut wires) = spread(shards);
        let mut listener = wires.pop().expect("there are several");
        listener.send(b"SUB news 1\r\n");
        listener.sync();
        for_each_pair(&mut wires, |round, subscriber, publisher| {
            subscriber.send(format!("SUB flood.{round} 1\r\nPUB news 0\r\n\r\n").as_bytes());
            listener.expect(b"MSG news 1 0\r\n\r\n");
            publisher.send(format!("PUB flood.{round} 0\r\n\r\n").repeat(MANY).as_bytes());
            publisher.sync();
            subscriber.send(b"UNSUB 1\r\nPING\r\n");
            assert_eq!(messages_until_pong(subscriber), MANY, "{shards} shards, round {round}");
        });
    }
}

#[test]
fn who_hears_of_a_message_from_a_third_has_had_it_delivered_before() {
    for &shards in shard_counts() {
        let (_broker, mut wires) = spread(shards);
        let mut listener = wires.pop().expect("there are several");
        listener.send(b"SUB news 1\r\n");
        listener.sync();
        for_each_pair(&mut wires, |round, subscriber, publisher| {
            subscriber.send(format!("SUB flood.{round} 1\r\n").as_bytes());
            subscriber.sync();
            let flood = format!("PUB flood.{round} 0\r\n\r\n").repeat(MANY);
            publisher.send(format!("{flood}PUB news 0\r\n\r\n").as_bytes());
            listener.expect(b"MSG news 1 0\r\n\r\n");
            subscriber.send(b"UNSUB 1\r\nPING\r\n");
            assert_eq!(messages_until_pong(subscriber), MANY, "{shards} shards, round {round}");
        });
    }
}
