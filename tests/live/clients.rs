//! The official Rust client, async-nats, uses the broker as it would use nats-server.

use std::time::Duration;

use crate::broker::peers::{ask_until_answered, meet, next, within};
use crate::broker::wire::Wire;
use crate::broker::{Broker, on_each_shard_count, shard_counts};
use async_nats::{
    Client, ConnectErrorKind, ConnectOptions, Event, HeaderMap, Message, PublishErrorKind,
    RequestErrorKind, Subscriber,
};
use futures::channel::mpsc;
use futures::future::try_join_all;
use futures::{FutureExt, StreamExt};
use tokio::task::unconstrained;

#[tokio::test]
async fn a_published_message_reaches_its_subscriber() {
    on_each_shard_count(&[], async |broker| {
        let (alice, bob) = (connect(broker).await, connect(broker).await);
        let mut news = alice.subscribe("news.today").await.unwrap();
        meet(&alice, &bob).await;
        for number in 0..100 {
            bob.publish("news.today", format!("{number}").into()).await.unwrap();
        }
        for number in 0..100 {
            let message = next(&mut news).await;
            assert_eq!(message.subject.as_str(), "news.today");
            assert_eq!(text(&message), number.to_string());
        }
    })
    .await;
}

#[tokio::test]
async fn wildcards_match_one_token_or_the_rest() {
    on_each_shard_count(&[], async |broker| {
        let (alice, bob) = (connect(broker).await, connect(broker).await);
        let mut star = alice.subscribe("log.*.disk").await.unwrap();
        let mut rest = alice.subscribe("log.>").await.unwrap();
        let mut end = alice.subscribe("end").await.unwrap();
        meet(&alice, &bob).await;
        for subject in ["log", "log.a", "log.a.disk", "log.b.disk", "log.a.disk.full", "logs.a"] {
            bob.publish(subject, subject.into()).await.unwrap();
        }
        bob.publish("end", "".into()).await.unwrap();
        next(&mut end).await;
        assert_eq!(waiting(&mut star), ["log.a.disk", "log.b.disk"]);
        let below = ["log.a", "log.a.disk", "log.b.disk", "log.a.disk.full"];
        assert_eq!(waiting(&mut rest), below);
    })
    .await;
}

#[tokio::test]
async fn a_queue_group_gets_each_message_exactly_once() {
    on_each_shard_count(&[], async |broker| {
        let publishers = connect_many(broker, 2).await;
        let members = connect_many(broker, 5).await;
        let (mut works, mut ends) = (Vec::new(), Vec::new());
        for (number, member) in members.iter().enumerate() {
            // One of them listens by a wildcard: the name makes the group, not the subject.
            let subject = if number == 0 { "work.>" } else { "work.item" };
            works.push(member.queue_subscribe(subject, "crew".into()).await.unwrap());
            ends.push(member.subscribe("end").await.unwrap());
            for publisher in &publishers {
                meet(member, publisher).await;
            }
        }
        for (sender, publisher) in publishers.iter().enumerate() {
            for number in 0..500 {
                let name = format!("{sender}-{number}");
                publisher.publish("work.item", name.into()).await.unwrap();
            }
            publisher.publish("end", "".into()).await.unwrap();
        }
        let mut got = Vec::new();
        for (work, end) in works.iter_mut().zip(&mut ends) {
            next(end).await;
            next(end).await;
            let share = waiting(work);
            assert!(share.len() > 100, "{} of 1000 for one of five members", share.len());
            got.extend(share);
        }
        for name in (0..1000).map(|at| format!("{}-{}", at / 500, at % 500)) {
            let times = got.iter().filter(|&other| *other == name).count();
            assert_eq!(times, 1, "{name} came {times} times");
        }
    })
    .await;
}

#[tokio::test]
async fn requests_get_their_own_replies() {
    on_each_shard_count(&[], async |broker| {
        let (alice, bob) = (connect(broker).await, connect(broker).await);
        let mut questions = bob.subscribe("double").await.unwrap();
        let answering = tokio::spawn(async move {
            while let Some(question) = questions.next().await {
                let number: u64 = text(&question).parse().unwrap();
                let reply = question.reply.expect("a request has a reply subject");
                bob.publish(reply, (number * 2).to_string().into()).await.unwrap();
            }
        });
        let connected = ask_until_answered(&alice, "double", "0").await;
        assert_eq!(text(&connected), "0");
        let asked = (1..200).map(|number: u64| {
            let alice = &alice;
            async move {
                let question = number.to_string().into();
                let answer = alice.request("double", question).await?;
                assert_eq!(text(&answer), (number * 2).to_string());
                Ok::<_, async_nats::RequestError>(())
            }
        });
        try_join_all(asked).await.unwrap();
        answering.abort();
    })
    .await;
}

#[tokio::test]
async fn a_request_that_nobody_hears_fails_at_once_with_no_responders() {
    on_each_shard_count(&[], async |broker| {
        let alice = connect(broker).await;
        for _ in 0..50 {
            let error = alice.request("is.anybody.there", "".into()).await.unwrap_err();
            assert_eq!(error.kind(), RequestErrorKind::NoResponders);
        }
    })
    .await;
}

#[tokio::test]
async fn headers_arrive_as_they_were_sent() {
    on_each_shard_count(&[], async |broker| {
        let (alice, bob) = (connect(broker).await, connect(broker).await);
        let mut inbox = alice.subscribe("with.headers").await.unwrap();
        meet(&alice, &bob).await;
        let mut headers = HeaderMap::new();
        headers.insert("Trace-Id", "abc");
        headers.append("Colour", "red");
        headers.append("Colour", "green blue");
        bob.publish_with_headers("with.headers", headers.clone(), "body".into()).await.unwrap();
        bob.publish_with_headers("with.headers", headers.clone(), "".into()).await.unwrap();
        bob.publish("with.headers", "plain".into()).await.unwrap();
        for body in ["body", ""] {
            let message = next(&mut inbox).await;
            assert_eq!(message.headers.as_ref(), Some(&headers));
            assert_eq!(text(&message), body);
        }
        let plain = next(&mut inbox).await;
        assert!(plain.headers.is_none());
        assert_eq!(text(&plain), "plain");
    })
    .await;
}

#[tokio::test]
async fn draining_delivers_what_is_under_way_and_then_ends() {
    on_each_shard_count(&[], async |broker| {
        let (alice, bob) = (connect(broker).await, connect(broker).await);
        let mut drained = alice.subscribe("drain").await.unwrap();
        let mut kept = alice.subscribe("drain").await.unwrap();
        meet(&alice, &bob).await;
        for number in 0..100 {
            bob.publish("drain", number.to_string().into()).await.unwrap();
        }
        for number in 0..100 {
            assert_eq!(text(&next(&mut kept).await), number.to_string());
        }
        drained.drain().await.unwrap();
        let got: Vec<String> = drained.map(|message| text(&message)).collect().await;
        let sent: Vec<String> = (0..100).map(|number| number.to_string()).collect();
        assert_eq!(got, sent);
        // What a connection published before it drained is not lost either.
        let mut last = bob.subscribe("last.words").await.unwrap();
        meet(&bob, &alice).await;
        alice.publish("last.words", "so long".into()).await.unwrap();
        alice.drain().await.unwrap();
        assert_eq!(text(&next(&mut last).await), "so long");
        assert!(within(kept.next()).await.is_none());
    })
    .await;
}

/// All that `client` has done is in force, as far as one of these clients can tell: what it sends
/// to itself has come back.
async fn round_trip(client: &Client) {
    let inbox = client.new_inbox();
    let mut echo = client.subscribe(inbox.clone()).await.expect("connected");
    client.publish(inbox, "".into()).await.expect("connected");
    next(&mut echo).await;
}

#[tokio::test]
async fn a_drain_loses_nothing_that_was_published_a_round_trip_before() {
    const ROUNDS: usize = 50;
    const MESSAGES: usize = 200;
    on_each_shard_count(&[], async |broker| {
        // On all shards.
        let publishers = connect_many(broker, 4).await;
        for round in 0..ROUNDS {
            for publisher in &publishers {
                let client = connect(broker).await;
                let flood = client.subscribe("flood").await.unwrap();
                round_trip(&client).await;
                for _ in 0..MESSAGES {
                    publisher.publish("flood", "x".into()).await.unwrap();
                }
                round_trip(publisher).await;
                client.drain().await.unwrap();
                assert_eq!(within(flood.count()).await, MESSAGES, "round {round}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn after_a_restart_on_the_same_port_subscriptions_go_on() {
    on_each_shard_count(&[], async |broker| {
        let (events, mut happened) = mpsc::unbounded();
        let options = ConnectOptions::new()
            .reconnect_delay_callback(|_| Duration::from_millis(20))
            .event_callback(move |event| {
                let events = events.clone();
                async move { events.unbounded_send(event).unwrap_or_default() }
            });
        let alice = options.connect(broker.url()).await.unwrap();
        let mut news = alice.subscribe("news.*").await.unwrap();
        let mut work = alice.queue_subscribe("work", "crew".into()).await.unwrap();
        wait_for(&mut happened, Event::Connected).await;
        for round in 0..3 {
            broker.restart();
            wait_for(&mut happened, Event::Disconnected).await;
            wait_for(&mut happened, Event::Connected).await;
            let bob = connect(broker).await;
            meet(&alice, &bob).await;
            bob.publish("news.back", round.to_string().into()).await.unwrap();
            bob.publish("work", round.to_string().into()).await.unwrap();
            assert_eq!(text(&next(&mut news).await), round.to_string());
            assert_eq!(text(&next(&mut work).await), round.to_string());
        }
    })
    .await;
}

#[tokio::test]
async fn the_server_tells_its_payload_limit_and_keeps_it() {
    for &shards in shard_counts() {
        let broker = Broker::with_config(shards, "max_payload: 1024\n");
        let alice = connect(&broker).await;
        assert_eq!(alice.server_info().max_payload, 1024);
        let mut inbox = alice.subscribe("limit").await.unwrap();
        alice.publish("limit", vec![b'x'; 1024].into()).await.unwrap();
        assert_eq!(next(&mut inbox).await.payload.len(), 1024);
        let error = alice.publish("limit", vec![b'x'; 1025].into()).await.unwrap_err();
        assert_eq!(error.kind(), PublishErrorKind::MaxPayloadExceeded);
        let mut rude = Wire::connect(&broker);
        rude.send(b"PUB limit 1025\r\n");
        rude.expect(b"-ERR 'Maximum Payload Violation'\r\n");
        rude.expect_end();
        assert!(inbox.next().now_or_never().is_none());
    }
}

#[tokio::test]
async fn only_the_right_user_and_password_are_let_in() {
    on_each_shard_count(&["--user", "derek", "--pass", "s3cr3t"], async |broker| {
        let user = |name: &str, pass: &str| {
            ConnectOptions::with_user_and_password(name.into(), pass.into())
        };
        let welcome = user("derek", "s3cr3t").connect(broker.url()).await.unwrap();
        sends_to_itself(&welcome).await;
        refused(broker, user("derek", "secret")).await;
        refused(broker, user("erik", "s3cr3t")).await;
        refused(broker, ConnectOptions::with_token("s3cr3t".into())).await;
        refused(broker, ConnectOptions::new()).await;
        sends_to_itself(&welcome).await;
    })
    .await;
}

#[tokio::test]
async fn only_the_right_token_is_let_in() {
    on_each_shard_count(&["--auth", "t0ken"], async |broker| {
        let right = ConnectOptions::with_token("t0ken".into());
        sends_to_itself(&right.connect(broker.url()).await.unwrap()).await;
        refused(broker, ConnectOptions::with_token("token".into())).await;
        refused(broker, ConnectOptions::with_token("".into())).await;
        refused(broker, ConnectOptions::new()).await;
    })
    .await;
}

#[tokio::test]
async fn a_subscription_ends_after_the_number_of_messages_it_asked_for() {
    on_each_shard_count(&[], async |broker| {
        let (alice, bob) = (connect(broker).await, connect(broker).await);
        for wanted in [1, 2, 17] {
            let mut inbox = alice.subscribe("few").await.unwrap();
            inbox.unsubscribe_after(wanted).await.unwrap();
            meet(&alice, &bob).await;
            for number in 0..wanted + 5 {
                bob.publish("few", number.to_string().into()).await.unwrap();
            }
            let got: Vec<String> =
                within(inbox.map(|message| text(&message)).collect::<Vec<String>>()).await;
            let first: Vec<String> = (0..wanted).map(|number| number.to_string()).collect();
            assert_eq!(got, first);
        }
    })
    .await;
}

#[tokio::test]
async fn payloads_of_a_mebibyte_arrive_whole_and_in_order() {
    on_each_shard_count(&[], async |broker| {
        let (alice, bob) = (connect(broker).await, connect(broker).await);
        let mut inbox = alice.subscribe("large").await.unwrap();
        meet(&alice, &bob).await;
        for round in 0..8_usize {
            let payload: Vec<u8> = pattern(round).take(1_048_576 - round).collect();
            bob.publish("large", payload.into()).await.unwrap();
        }
        for round in 0..8_usize {
            let message = next(&mut inbox).await;
            assert_eq!(message.payload.len(), 1_048_576 - round);
            assert!(message.payload.iter().copied().zip(pattern(round)).all(|(a, b)| a == b));
        }
    })
    .await;
}

#[tokio::test]
async fn two_hundred_connections_each_get_every_message() {
    on_each_shard_count(&[], async |broker| {
        let bob = connect(broker).await;
        let crowd = connect_many(broker, 200).await;
        let mut inboxes = Vec::new();
        for client in &crowd {
            inboxes.push(client.subscribe("crowd").await.unwrap());
        }
        for client in &crowd {
            meet(client, &bob).await;
        }
        for number in 0..50 {
            bob.publish("crowd", number.to_string().into()).await.unwrap();
        }
        for inbox in &mut inboxes {
            for number in 0..50 {
                assert_eq!(text(&next(inbox).await), number.to_string());
            }
        }
    })
    .await;
}

#[tokio::test]
async fn what_a_client_asked_for_before_it_calls_another_holds_where_the_other_publishes() {
    on_each_shard_count(&[], async |broker| {
        let publishers = connect_many(broker, 4).await;
        for round in 0..200 {
            let subscriber = connect(broker).await;
            let subject = format!("causal.{round}");
            let mut inbox = subscriber.subscribe(subject.clone()).await.unwrap();
            let publisher = &publishers[round % 4];
            meet(&subscriber, publisher).await;
            publisher.publish(subject, "hi".into()).await.unwrap();
            assert_eq!(text(&next(&mut inbox).await), "hi");
        }
    })
    .await;
}

#[tokio::test]
async fn a_slow_consumer_is_cut_and_a_healthy_client_gets_everything() {
    for &shards in shard_counts() {
        let mut broker = Broker::with_config(shards, "max_pending: 1MB\n");
        let mut slow = Wire::open_narrow(&broker);
        slow.send(b"CONNECT {\"verbose\":false}\r\nSUB flood 1\r\nPING\r\n");
        slow.expect(b"PONG\r\n");
        let (alice, bob) = (connect(&broker).await, connect(&broker).await);
        let mut inbox = alice.subscribe("flood").await.unwrap();
        meet(&alice, &bob).await;
        // The healthy client sets the pace and so never has much to catch up on.
        for round in 0..512_usize {
            let payload: Vec<u8> = pattern(round).take(32_768).collect();
            bob.publish("flood", payload.clone().into()).await.unwrap();
            assert_eq!(next(&mut inbox).await.payload, payload);
        }
        assert!(slow.drain_to_end().len() < 512 * 32_768, "nothing was cut");
        broker.wait_for_line("Slow Consumer");
        meet(&alice, &bob).await;
    }
}

async fn connect(broker: &Broker) -> Client {
    async_nats::connect(broker.url()).await.expect("the broker takes the client")
}

async fn connect_many(broker: &Broker, count: usize) -> Vec<Client> {
    let connecting = (0..count).map(|_| async_nats::connect(broker.url()));
    try_join_all(connecting).await.expect("the broker takes every client")
}

#[tokio::test]
async fn a_client_with_an_nkey_signs_in_by_it() {
    let (ann, eve) = (nkeys::KeyPair::new_user(), nkeys::KeyPair::new_user());
    let seed = |key: &nkeys::KeyPair| key.seed().expect("a key of our own");
    let config = format!(
        "authorization {{ users: [ {{ nkey: {}, permissions: {{ publish: \"self\" }} }},\n\
         {{ user: bob, password: pw }} ] }}",
        ann.public_key()
    );
    for &shards in shard_counts() {
        let broker = Broker::with_config(shards, &config);
        let client = ConnectOptions::with_nkey(seed(&ann)).connect(broker.url()).await;
        sends_to_itself(&client.expect("its key is known")).await;
        refused(&broker, ConnectOptions::with_nkey(seed(&eve))).await;
        refused(&broker, ConnectOptions::new()).await;
        // The public key alone is no password.
        let thief = ConnectOptions::with_user_and_password(ann.public_key(), String::new());
        refused(&broker, thief).await;
        let bob = ConnectOptions::with_user_and_password("bob".into(), "pw".into());
        sends_to_itself(&bob.connect(broker.url()).await.expect("its password is right")).await;
    }
}

async fn sends_to_itself(client: &Client) {
    let mut inbox = client.subscribe("self").await.expect("connected");
    client.publish("self", "me".into()).await.expect("connected");
    assert_eq!(text(&next(&mut inbox).await), "me");
}

async fn refused(broker: &Broker, options: ConnectOptions) {
    let error = options.connect(broker.url()).await.expect_err("wrong credentials");
    assert_eq!(error.kind(), ConnectErrorKind::AuthorizationViolation);
}

async fn wait_for(happened: &mut mpsc::UnboundedReceiver<Event>, event: Event) {
    while within(happened.next()).await.expect("the client lives") != event {}
}

/// What has arrived already.
fn waiting(subscriber: &mut Subscriber) -> Vec<String> {
    let mut texts = Vec::new();
    // Unconstrained: tokio would pretend after some messages that there are no more.
    while let Some(Some(message)) = unconstrained(subscriber.next()).now_or_never() {
        texts.push(text(&message));
    }
    texts
}

fn text(message: &Message) -> String {
    String::from_utf8(message.payload.to_vec()).expect("the tests send text")
}

/// Bytes that differ from place to place and from round to round.
fn pattern(round: usize) -> impl Iterator<Item = u8> {
    (round..).map(|at| u8::try_from((at * 31 + at / 251) % 256).expect("below 256"))
}
